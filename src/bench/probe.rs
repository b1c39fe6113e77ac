//! The device's limits: the rates of a copy and of multiply-adds, measured first in every run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BenchError;
use super::timer::{Clock, Launch, Timer};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, Recorder, Tensor};
use crate::ops;

/// The device's limits, as reached by small kernels.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory bandwidth in GB/s, reading and writing beyond the cache: by `probe_copy` or by the driver's copy,
    /// whichever is faster.
    pub copy_gbps: f64,
    /// Arithmetic in F32 GFLOP/s by `probe_fma`; a multiply-add counts as two.
    pub fma_gflops: f64,
    /// The clock of the measurement.
    pub clock: Clock,
}

impl Limits {
    /// The least microseconds for moving `bytes` and computing `flops`, and whether memory is the limit.
    pub fn least_us(&self, flops: f64, bytes: f64) -> (f64, bool) {
        let (memory, arithmetic) = (bytes / self.copy_gbps * 1e-3, flops / self.fma_gflops * 1e-3);
        (memory.max(arithmetic), memory >= arithmetic)
    }
}

/// Measures both limits, for about `budget` each, with buffers of `bytes` in total.
///
/// # Errors
/// [`BenchError::Gpu`].
pub fn limits(gpu: &Gpu, bytes: u64, budget: Duration) -> Result<Limits, BenchError> {
    let mut timer = Timer::new(gpu)?;
    let caps = gpu.caps();
    const COLS: usize = 4096;
    let row_bytes = Dtype::F32.bytes(COLS) as u64;
    let n_rows = ((bytes / 2).min(caps.max_binding_bytes) / row_bytes).max(1) as usize;
    let tensor = |label, n_rows| Tensor::zeros(gpu, label, [n_rows, COLS], Dtype::F32);
    let (x, y) = (tensor("copy from", n_rows)?, tensor("copy to", n_rows)?);
    let kernel_us = best(gpu, &mut timer, budget, &|rec, _| ops::probe_copy(rec, &x, &y))?;
    // On software devices a kernel loads word by word; the driver's copy reaches the bandwidth of memory.
    let driver_us = best(gpu, &mut timer, budget, &|rec, _| rec.copy(&x, 0, &y, 0, x.size_bytes()))?;
    let us = kernel_us.min(driver_us);
    let copy_gbps = 2.0 * x.size_bytes() as f64 / us * 1e-3;

    // Enough invocations to fill any card, each long enough to make its start negligible. A software device needs
    // fewer.
    let (n_rows, n_steps) = if caps.cpu { (16, 1024) } else { (256, 4096) };
    let (x, y) = (tensor("chain from", n_rows)?, tensor("chain to", n_rows)?);
    let us = best(gpu, &mut timer, budget, &|rec, _| ops::probe_fma(rec, &x, &y, n_steps, [0.75, 0.5]))?;
    let fma_gflops = 2.0 * (n_rows * COLS * n_steps) as f64 / us * 1e-3;
    Ok(Limits { copy_gbps, fma_gflops, clock: timer.clock() })
}

/// The shortest time in microseconds, because a limit is the best case.
fn best(gpu: &Gpu, timer: &mut Timer, budget: Duration, launch: &Launch<'_>) -> Result<f64, BenchError> {
    let mut rec = Recorder::new(gpu)?;
    rec.rehearse(|rec| launch(rec, 0))?;
    let samples = timer.samples(&mut rec, launch, budget)?;
    Ok(samples.first().copied().unwrap_or(f64::INFINITY))
}
