//! Device time: timestamps around passes.

use super::{Buffer, Gpu, GpuError};

/// Most passes per recording that can be timed. A slice of a step has one, rarely two.
const MAX_PASSES: u32 = 8;

/// Bytes of a recording's timestamps in a readback.
pub(super) const TIMING_BYTES: u64 = 2 * 8 * MAX_PASSES as u64;

/// Timestamps of one recording at a time.
pub(super) struct Timing {
    queries: wgpu::QuerySet,
    pub resolved: Buffer,
    /// Timestamps written since `start`; `None` while nothing is timed.
    n_written: Option<u32>,
}

impl Timing {
    /// `None` if the device has no timestamps.
    pub fn new(gpu: &Gpu) -> Result<Option<Self>, GpuError> {
        if !gpu.caps().timestamps {
            return Ok(None);
        }
        let queries = gpu.device().create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timing"),
            ty: wgpu::QueryType::Timestamp,
            count: 2 * MAX_PASSES,
        });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = gpu.create_buffer("timing", TIMING_BYTES, usage)?;
        Ok(Some(Timing { queries, resolved, n_written: None }))
    }

    pub fn start(&mut self) {
        self.n_written = Some(0);
    }

    /// The timestamps that the next pass writes, if it is timed.
    pub fn pass(&mut self) -> Option<wgpu::ComputePassTimestampWrites<'_>> {
        let at = self.n_written.filter(|n| *n < 2 * MAX_PASSES)?;
        self.n_written = Some(at + 2);
        Some(wgpu::ComputePassTimestampWrites {
            query_set: &self.queries,
            beginning_of_pass_write_index: Some(at),
            end_of_pass_write_index: Some(at + 1),
        })
    }

    /// Ends the timing, records the copy of the timestamps into `resolved`, and returns their size in bytes.
    pub fn stop(&mut self, encoder: &mut wgpu::CommandEncoder) -> u64 {
        let n = self.n_written.take().unwrap_or(0);
        if n > 0 {
            encoder.resolve_query_set(&self.queries, 0..n, &self.resolved, 0);
        }
        u64::from(n) * 8
    }
}

/// Milliseconds between the first and the last timestamp in `bytes`; a tick has `period_ns` nanoseconds.
pub(super) fn elapsed_ms(bytes: &[u8], period_ns: f32) -> Option<f64> {
    let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(bytes);
    let (first, last) = (ticks.first()?, ticks.last()?);
    // Some drivers' clocks go backwards across a reset; there is no time then.
    last.checked_sub(*first).map(|n| n as f64 * f64::from(period_ns) * 1e-6)
}
