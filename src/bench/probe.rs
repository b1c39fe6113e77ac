//! What the device can do: a copy and a multiply-add, measured before everything else in the same run.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::BenchError;
use super::timer::{Clock, Launch, Timer};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, Recorder, Tensor};
use crate::ops;

/// The device's limits, as small kernels reach them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Billions of bytes a second read and written beyond the cache, by `probe_copy` or the driver's own copy,
    /// whichever is faster.
    pub copy_gbps: f64,
    /// Billions of F32 operations a second by `probe_fma`, two a multiply-add.
    pub fma_gflops: f64,
    /// What the times were read from.
    pub clock: Clock,
}

impl Limits {
    /// Microseconds below which nothing that moves `bytes` and computes `flops` can get, and whether memory is why.
    pub fn least_us(&self, flops: f64, bytes: f64) -> (f64, bool) {
        let (memory, arithmetic) = (bytes / self.copy_gbps * 1e-3, flops / self.fma_gflops * 1e-3);
        (memory.max(arithmetic), memory >= arithmetic)
    }
}

/// Measures both, for about `budget` each, with buffers of `bytes` together.
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
    // On software devices a kernel's loads go one by one, and the driver's copy shows what the memory can do.
    let driver_us = best(gpu, &mut timer, budget, &|rec, _| rec.copy(&x, 0, &y, 0, x.size_bytes()))?;
    let us = kernel_us.min(driver_us);
    let copy_gbps = 2.0 * x.size_bytes() as f64 / us * 1e-3;

    // Enough invocations to fill any card, each long enough to forget its start; a processor needs fewer.
    let (n_rows, n_steps) = if caps.cpu { (16, 1024) } else { (256, 4096) };
    let (x, y) = (tensor("chain from", n_rows)?, tensor("chain to", n_rows)?);
    let us = best(gpu, &mut timer, budget, &|rec, _| ops::probe_fma(rec, &x, &y, n_steps, [0.75, 0.5]))?;
    let fma_gflops = 2.0 * (n_rows * COLS * n_steps) as f64 / us * 1e-3;
    Ok(Limits { copy_gbps, fma_gflops, clock: timer.clock() })
}

/// The shortest time, in microseconds: a limit is what can be reached.
fn best(gpu: &Gpu, timer: &mut Timer, budget: Duration, launch: &Launch<'_>) -> Result<f64, BenchError> {
    let mut rec = Recorder::new(gpu)?;
    rec.rehearse(|rec| launch(rec, 0))?;
    let samples = timer.samples(&mut rec, launch, budget)?;
    Ok(samples.first().copied().unwrap_or(f64::INFINITY))
}
