//! Results on their way to the host: a ring of mappable buffers, mapped when the host submits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::timing::{TIMING_BYTES, elapsed_ms};
use super::{Buffer, Gpu, GpuError};

/// A ring of buffers that device results are copied into. A guest can use it: mapping begins when the
/// host submits the recording, and nothing here waits.
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

/// A ticket for bytes that were recorded to be read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readback {
    slot: usize,
    size: u64,
    /// Bytes at the end that are timestamps.
    timing_bytes: u64,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Arrived {
    /// The bytes that were asked for, one range after the other.
    pub bytes: Vec<u8>,
    /// Milliseconds that the device worked on the recording, if it was timed.
    pub device_ms: Option<f64>,
}

impl ReadbackRing {
    /// Allocates `n_slots` buffers of `slot_bytes` each, and room for timestamps.
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

    /// Whether a slot is free.
    pub fn has_room(&self) -> bool {
        self.slots[self.next].state.load(Ordering::Acquire) == FREE
    }

    /// Records copies of `(buffer, offset, size)`, one after the other, into the next slot, the last
    /// `timing_bytes` of them timestamps. `None` if the ring is full.
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
        let done = state.clone();
        encoder.map_buffer_on_submit(buffer, wgpu::MapMode::Read, 0..size, move |result| {
            done.store(if result.is_ok() { MAPPED } else { FAILED }, Ordering::Release);
        });
        self.gpu.count(|c| &c.read_bytes, size);
        Some(Readback { slot, size, timing_bytes })
    }

    /// Whether the bytes have arrived (or never will).
    pub fn is_ready(&self, pending: Readback) -> bool {
        self.slots[pending.slot].state.load(Ordering::Acquire) >= MAPPED
    }

    /// What has arrived, if it has; frees the slot.
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
