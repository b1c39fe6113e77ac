//! Device memory that is counted while it exists.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Counters;

/// A buffer that updates the device's memory counters when it is created and dropped.
pub(super) struct Buffer {
    buffer: wgpu::Buffer,
    counters: Arc<Counters>,
}

impl Buffer {
    pub fn new(buffer: wgpu::Buffer, counters: Arc<Counters>) -> Self {
        let live = counters.live_bytes.fetch_add(buffer.size(), Ordering::Relaxed) + buffer.size();
        counters.peak_bytes.fetch_max(live, Ordering::Relaxed);
        Buffer { buffer, counters }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.counters.live_bytes.fetch_sub(self.buffer.size(), Ordering::Relaxed);
    }
}

impl std::ops::Deref for Buffer {
    type Target = wgpu::Buffer;

    fn deref(&self) -> &wgpu::Buffer {
        &self.buffer
    }
}
