//! Readback of results: a ring of mappable buffers, mapped when the host submits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::timing::{TIMING_BYTES, elapsed_ms};
use super::{Buffer, Gpu, GpuError};

/// A ring of buffers for results of the device. A guest can use it: mapping starts when the host submits the recording,
/// and nothing here waits.
pub struct ReadbackRing {
    gpu: Gpu,
    slots: Vec<Slot>,
    next: usize,
}

struct Slot {
    buffer: Buffer,
    state: Arc<AtomicU8>,
}

const FREE: u8 = 0;
const IN_FLIGHT: u8 = 1;
const MAPPED: u8 = 2;
const FAILED: u8 = 3;
/// The recording was dropped and will never be submitted.
const DROPPED: u8 = 4;

/// Marks a slot when its recording ends: `wgpu` drops the callback of a command buffer that is dropped.
struct Mark(Arc<AtomicU8>);

impl Drop for Mark {
    fn drop(&mut self) {
        let _ = self.0.compare_exchange(IN_FLIGHT, DROPPED, Ordering::AcqRel, Ordering::Acquire);
    }
}

/// A ticket for a recorded readback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readback {
    slot: usize,
    size: u64,
    /// Bytes at the end that are timestamps.
    timing_bytes: u64,
}

/// The result of a readback.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The requested bytes, one range after the other.
    pub bytes: Vec<u8>,
    /// Device time of the recording in milliseconds, if it was timed.
    pub device_ms: Option<f64>,
}

impl ReadbackRing {
    /// Allocates `n_slots` buffers of `slot_bytes` each, plus the size of timestamps.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu, label: &str, n_slots: usize, slot_bytes: u64) -> Result<Self, GpuError> {
        let slots = (0..n_slots)
            .map(|_| {
                let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
                let buffer =
                    gpu.create_buffer(label, slot_bytes.next_multiple_of(8) + TIMING_BYTES, usage)?;
                Ok(Slot { buffer, state: Arc::new(AtomicU8::new(FREE)) })
            })
            .collect::<Result<_, GpuError>>()?;
        Ok(ReadbackRing { gpu: gpu.clone(), slots, next: 0 })
    }

    /// Whether the next slot is free.
    pub fn has_room(&self) -> bool {
        self.slots[self.next].state.load(Ordering::Acquire) == FREE
    }

    /// Records copies of the ranges `(buffer, offset, size)` into the next slot, one after the other. The last
    /// `timing_bytes` are timestamps. Returns `None` if the ring is full.
    ///
    /// # Panics
    /// If the copies are larger than a slot.
    pub(super) fn record(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        sources: &[(&wgpu::Buffer, u64, u64)],
        timing_bytes: u64,
    ) -> Option<Readback> {
        if !self.has_room() {
            return None;
        }
        let slot = self.next;
        self.next = (self.next + 1) % self.slots.len();
        let Slot { buffer, state } = &self.slots[slot];
        let mut size = 0;
        for &(source, offset, bytes) in sources {
            encoder.copy_buffer_to_buffer(source, offset, buffer, size, Some(bytes));
            size += bytes;
        }
        state.store(IN_FLIGHT, Ordering::Release);
        let mark = Mark(state.clone());
        encoder.map_buffer_on_submit(buffer, wgpu::MapMode::Read, 0..size, move |result| {
            let mark = &mark; // all of it, so that it is dropped with this call
            mark.0.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
        });
        self.gpu.count(|c| &c.read_bytes, size);
        Some(Readback { slot, size, timing_bytes })
    }

    /// Whether the recording was dropped instead of submitted. Its bytes never arrive.
    pub(super) fn is_dropped(&self, pending: Readback) -> bool {
        self.slots[pending.slot].state.load(Ordering::Acquire) == DROPPED
    }

    /// Whether the bytes have arrived, or mapping has failed.
    pub fn is_ready(&self, pending: Readback) -> bool {
        self.slots[pending.slot].state.load(Ordering::Acquire) >= MAPPED
    }

    /// The result, if it has arrived; frees the slot.
    pub fn take(&mut self, pending: Readback) -> Option<Arrived> {
        let Slot { buffer, state } = &self.slots[pending.slot];
        if state.load(Ordering::Acquire) != MAPPED {
            return None;
        }
        let bytes = buffer.get_mapped_range(0..pending.size).ok().map(|view| view.to_vec());
        buffer.unmap();
        state.store(FREE, Ordering::Release);
        let mut bytes = bytes?;
        let ticks = bytes.split_off((pending.size - pending.timing_bytes) as usize);
        let device_ms = elapsed_ms(&ticks, self.gpu.inner.queue.get_timestamp_period());
        Some(Arrived { bytes, device_ms })
    }
}
