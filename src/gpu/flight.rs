//! Slices of recorded work in flight: submitted, or to be submitted, and not finished.

use std::collections::VecDeque;
use std::time::Instant;

use super::{Gpu, GpuError, Readback, ReadbackRing, Recorder, Submission, Tensor};

/// Slices in flight: one runs while the next waits behind it.
pub(crate) const MOST_IN_FLIGHT: usize = 2;

/// Slices in the order of recording, each with the owner's data for when it finishes.
pub(crate) struct Flight<T> {
    gpu: Gpu,
    ring: ReadbackRing,
    slices: VecDeque<InFlight<T>>,
    last_finish: Instant,
}

struct InFlight<T> {
    content: T,
    readback: Readback,
    recorded: Instant,
    submission: Option<Submission>,
}

/// A finished slice.
pub(crate) struct Landed<T> {
    pub content: T,
    /// The bytes read back.
    pub bytes: Vec<u8>,
    /// Its duration, by the device's clock, or else by the times at which slices were seen to finish.
    pub ms: f64,
    /// Whether that was the device's clock.
    pub is_timed: bool,
}

impl<T> Flight<T> {
    /// Room for slices that read back up to `slot_bytes`.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu, slot_bytes: u64) -> Result<Self, GpuError> {
        Ok(Flight {
            gpu: gpu.clone(),
            ring: ReadbackRing::new(gpu, "readback", MOST_IN_FLIGHT + 2, slot_bytes)?,
            slices: VecDeque::new(),
            last_finish: Instant::now(),
        })
    }

    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Whether another slice can follow, with at most `most` in flight.
    pub fn has_room(&self, most: usize) -> bool {
        self.slices.len() < most && self.ring.has_room()
    }

    /// Ends a slice with the byte ranges to read back: `(tensor, offset, bytes)`, at least one.
    pub fn record(&mut self, rec: &mut Recorder, sources: &[(&Tensor, u64, u64)], content: T) {
        if let Some(readback) = rec.read(&mut self.ring, sources) {
            self.slices.push_back(InFlight { content, readback, recorded: Instant::now(), submission: None });
        }
    }

    /// Slices whose command buffers were dropped instead of submitted: they will never finish.
    pub fn n_dropped(&self) -> usize {
        self.slices.iter().filter(|slice| self.ring.is_dropped(slice.readback)).count()
    }

    /// Forgets all slices, which will never finish, and returns their contents.
    pub fn abandon(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.slices).into_iter().map(|slice| slice.content)
    }

    /// Submits `buffers` to our own queue, or waits for the oldest slice if there are none.
    ///
    /// # Errors
    /// [`GpuError::Adopted`] on an adopted device, [`GpuError::Lost`].
    pub fn submit(&mut self, buffers: Vec<wgpu::CommandBuffer>) -> Result<(), GpuError> {
        self.gpu.check_owned()?;
        if buffers.is_empty() {
            if let Some(submission) = self.slices.front().and_then(|s| s.submission.clone()) {
                self.gpu.wait_for(submission)?;
            }
        } else {
            let submission = self.gpu.submit(buffers)?;
            for slice in &mut self.slices {
                slice.submission.get_or_insert_with(|| submission.clone());
            }
        }
        Ok(())
    }

    /// The oldest slice, if it has finished. Never waits.
    ///
    /// # Errors
    /// [`GpuError::Lost`]; [`GpuError::Dropped`] if a slice was dropped instead of submitted; [`GpuError::Device`] if its
    /// results could not be mapped.
    pub fn land(&mut self) -> Result<Option<Landed<T>>, GpuError> {
        if let n @ 1.. = self.n_dropped() {
            self.gpu.check_alive()?;
            return Err(GpuError::Dropped { n });
        }
        if !self.slices.front().is_some_and(|slice| self.ring.is_ready(slice.readback)) {
            return Ok(None);
        }
        let Some(slice) = self.slices.pop_front() else { return Ok(None) };
        let arrived = self.ring.take(slice.readback).ok_or_else(|| {
            self.gpu.fault(GpuError::Device { message: "results could not be mapped".to_string() })
        })?;
        let now = Instant::now();
        let seen = now - slice.recorded.max(self.last_finish);
        self.last_finish = now;
        let ms = arrived.device_ms.unwrap_or(seen.as_secs_f64() * 1e3);
        let is_timed = arrived.device_ms.is_some();
        Ok(Some(Landed { content: slice.content, bytes: arrived.bytes, ms, is_timed }))
    }
}
