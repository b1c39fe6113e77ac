//! A device of our own that was lost is opened again. What it was replaced by is known to everyone who still has it, so
//! that engines that shared the old device share the new one.

use std::sync::{Arc, Mutex, Weak};

use super::tuning::Origin;
use super::{Counters, Gpu, GpuError, Inner, Tunable, adapter, lock};

/// The device that replaced a lost one, as long as somebody uses it.
pub(super) struct Successor {
    inner: Weak<Inner>,
    counters: Arc<Counters>,
}

impl Gpu {
    /// Opens a device of our own again if it was lost: on the same adapter, or on the best one if it is gone. Returns the
    /// device that another call has opened already, and this one if it works.
    ///
    /// Nothing of what was on the lost device is on the new one.
    ///
    /// # Errors
    /// [`GpuError::Adopted`]: a host opens its device itself. [`GpuError::NoAdapter`], [`GpuError::NoDevice`].
    pub fn reopen(&self) -> Result<Gpu, GpuError> {
        self.check_owned()?;
        if self.check_alive().is_ok() {
            return Ok(self.clone());
        }
        // Held while the device is opened: whoever comes later gets the same one.
        let mut successor = lock(&self.inner.successor);
        if let Some(next) = successor.as_ref().and_then(|next| self.with(next)) {
            drop(successor);
            return next.reopen();
        }
        let gpu = Gpu::open_adapter(
            &adapter::again(self.info(), self.inner.options.stand_in)?,
            &self.inner.options,
        )?;
        *successor = Some(Successor { inner: Arc::downgrade(&gpu.inner), counters: gpu.counters.clone() });
        Ok(Gpu { instead: self.instead.clone(), ..gpu })
    }

    /// The device that has replaced this one, if it was lost and opened again; else this one.
    pub fn current(&self) -> Gpu {
        let next = lock(&self.inner.successor).as_ref().and_then(|next| self.with(next));
        next.map_or_else(|| self.clone(), |next| next.current())
    }

    /// The successor in place of this device.
    fn with(&self, Successor { inner, counters }: &Successor) -> Option<Gpu> {
        Some(Gpu { inner: inner.upgrade()?, counters: counters.clone(), ..self.clone() })
    }

    /// Whether both are one device.
    pub(crate) fn is_same_device(&self, other: &Gpu) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Whether both devices are of one adapter.
    pub(crate) fn is_same_adapter(&self, other: &Gpu) -> bool {
        adapter::is_same(self.info(), other.info())
    }

    /// Takes over what tuning chose and self-tests found on a lost device of the same adapter, driver and capabilities,
    /// so that the same variants run here from the first step on.
    pub(crate) fn inherit(&self, lost: &Gpu, tunable: &Tunable) {
        if Origin::of(self, tunable) != Origin::of(lost, tunable) {
            return;
        }
        if let Some(tuning) = lost.inner.tuning.get() {
            let _ = self.inner.tuning.set(tuning.clone()); // what is known already stays
        }
        if let Some(trust) = lost.inner.trust.get() {
            let _ = self.inner.trust.set(Mutex::new(lock(trust).clone()));
        }
    }
}
