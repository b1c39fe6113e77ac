//! Device memory that is counted while it exists.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Counters;

/// A buffer that updates the device's memory counters when it is created and dropped.
pub(super) struct Buffer {
    buffer: wgpu::Buffer,
    n_bytes: u64,
    counters: Arc<Counters>,
}

impl Buffer {
    /// Counts `buffer` as `n_bytes`, its size except in a plan.
    pub fn new(buffer: wgpu::Buffer, n_bytes: u64, counters: Arc<Counters>) -> Self {
        let live = counters.live_bytes.fetch_add(n_bytes, Ordering::Relaxed) + n_bytes;
        counters.peak_bytes.fetch_max(live, Ordering::Relaxed);
        Buffer { buffer, n_bytes, counters }
    }

    pub fn size(&self) -> u64 {
        self.n_bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.counters.live_bytes.fetch_sub(self.n_bytes, Ordering::Relaxed);
    }
}

impl std::ops::Deref for Buffer {
    type Target = wgpu::Buffer;

    fn deref(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}
