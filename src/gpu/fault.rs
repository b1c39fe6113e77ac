//! Faults of a device. Its loss is a state: once lost, it stays lost, and every call says so.

use std::sync::Mutex;

use super::{Gpu, GpuError, lock};
use crate::guard::guarded;

/// The first fault, which a loss replaces: the fault may have been its first sign.
#[derive(Debug, Default)]
pub(super) struct Fault(Mutex<Option<GpuError>>);

impl Fault {
    pub fn note(&self, error: GpuError) {
        let mut noted = lock(&self.0);
        let is_lost = noted.as_ref().is_some_and(GpuError::is_loss);
        if noted.is_none() || !is_lost && error.is_loss() {
            *noted = Some(error);
        }
    }

    fn get(&self) -> Option<GpuError> {
        lock(&self.0).clone()
    }
}

impl Gpu {
    /// Checks that the device works.
    ///
    /// # Errors
    /// [`GpuError::Lost`]; on a device of our own also the first fault that was reported outside any error scope.
    pub fn check_alive(&self) -> Result<(), GpuError> {
        let fault = &self.inner.fault;
        let noted = fault.get();
        let is_lost = noted.as_ref().is_some_and(GpuError::is_loss);
        if !is_lost && (noted.is_some() || !self.inner.owned) && !self.answers() {
            fault.note(GpuError::Lost { message: "it was destroyed, or its driver gave it up".into() });
        }
        fault.get().map_or(Ok(()), Err)
    }

    /// What a failed call means: `error`, or the loss of which it is the first sign.
    pub(crate) fn fault(&self, error: GpuError) -> GpuError {
        if self.inner.owned {
            self.inner.fault.note(error.clone());
        }
        self.check_alive().err().unwrap_or(error)
    }

    /// Whether the device still validates what it is asked. An adopted device belongs to the host, and so do the
    /// callbacks that report its loss.
    fn answers(&self) -> bool {
        let device = &self.inner.device;
        let scope = device.push_error_scope(wgpu::ErrorFilter::Validation);
        // A device that works refuses a buffer of no use. A lost one reports nothing any more.
        let _refused = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("none"),
            size: 4,
            usage: wgpu::BufferUsages::empty(),
            mapped_at_creation: false,
        });
        pollster::block_on(scope.pop()).is_some()
    }

    /// Calls `work`, whose errors on an adopted device would reach the host's handler, which may panic.
    ///
    /// # Errors
    /// The first error that `wgpu` reported, or [`GpuError::Lost`].
    pub(crate) fn scoped<T>(&self, work: impl FnOnce() -> T) -> Result<T, GpuError> {
        if self.inner.owned {
            return Ok(work());
        }
        let device = &self.inner.device;
        let filters =
            [wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation];
        let [internal, memory, validation] = filters.map(|filter| device.push_error_scope(filter));
        let result = work();
        let errors = [validation, memory, internal].map(|scope| pollster::block_on(scope.pop()));
        match errors.into_iter().flatten().next() {
            None => Ok(result),
            Some(error) => {
                self.check_alive()?;
                Err(GpuError::Device { message: error.to_string() })
            }
        }
    }

    /// Polls the device.
    pub(super) fn poll_device(&self, poll: wgpu::PollType) -> Result<(), GpuError> {
        // wgpu panics if it learns here that the driver has lost the device.
        let polled = guarded(|| self.inner.device.poll(poll));
        if let Err(message) = &polled {
            self.inner.fault.note(GpuError::Lost { message: message.clone() });
        }
        self.check_alive()?;
        match polled {
            Ok(Err(error)) => Err(GpuError::Device { message: error.to_string() }),
            _ => Ok(()),
        }
    }
}
