//! Measures every case.

use std::collections::HashMap;
use std::time::Duration;

use super::cases::{Case, Pool, Prepared, Workload, operations};
use super::shapes::Shape;
use super::stats::quantile;
use super::timer::Timer;
use super::{BenchError, KernelReport, KernelRow, Limits, Meta, limits};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Recorder};

/// What to measure, and for how long.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Models.
    pub shapes: Vec<Shape>,
    /// Words that a case's label must contain. Default: all cases.
    pub filter: Option<String>,
    /// Types of weights.
    pub dtypes: Vec<Dtype>,
    /// Rows of the batch: up to 32 are decode rows, more are prompt rows.
    pub n_rows: Vec<usize>,
    /// Time for a row of the report.
    pub budget: Duration,
    /// Longest single run: cases that are expected to take longer are skipped, so that the whole finishes.
    pub longest_run: Duration,
    /// Size in bytes that the copies of weights and caches exceed together: at least twice the device's cache.
    pub rotate_bytes: u64,
    /// Added to one output of each case before the check, in units of the tolerance, to test that the check notices it.
    pub perturbation: f64,
}

impl KernelOptions {
    /// All types and numbers of rows at `shapes`, with 200 ms per row of the report.
    pub fn new(shapes: Vec<Shape>) -> KernelOptions {
        KernelOptions {
            shapes,
            filter: None,
            dtypes: super::WEIGHTS.to_vec(),
            n_rows: vec![1, 2, 4, 8, 16, 32, 128, 512, 2048],
            budget: Duration::from_millis(200),
            longest_run: Duration::from_millis(1500),
            // More than twice the largest cache of today's cards, 96 MiB.
            rotate_bytes: 256 << 20,
            perturbation: 0.0,
        }
    }

    /// A quick overview: one type, three numbers of rows, smaller buffers.
    pub fn quick(shapes: Vec<Shape>) -> KernelOptions {
        KernelOptions {
            dtypes: vec![Dtype::F16],
            n_rows: vec![1, 8, 128],
            budget: Duration::from_millis(40),
            longest_run: Duration::from_millis(300),
            rotate_bytes: 64 << 20,
            ..KernelOptions::new(shapes)
        }
    }

    fn check(&self) -> Result<(), BenchError> {
        let wrong = |name, found: String, expected| Err(BenchError::Parameter { name, found, expected });
        if let Some(n) = self.n_rows.iter().find(|n| **n == 0 || **n > 1 << 16) {
            return wrong("rows", n.to_string(), "numbers from 1 to 65536");
        }
        if let Some(dtype) = self.dtypes.iter().find(|d| !super::WEIGHTS.contains(d)) {
            return wrong("type", dtype.to_string(), "a type of weights");
        }
        if self.budget.is_zero() || self.budget > Duration::from_secs(3600) {
            return wrong("time-ms", self.budget.as_millis().to_string(), "at least 1, at most an hour");
        }
        if !self.perturbation.is_finite() {
            return wrong("perturbation", self.perturbation.to_string(), "a number");
        }
        Ok(())
    }
}

/// The progress of a run.
#[derive(Clone, Copy, Debug)]
pub struct BenchProgress<'a> {
    /// Cases done.
    pub n_done: usize,
    /// Total number of cases.
    pub n_total: usize,
    /// The label of the next case.
    pub next: &'a str,
}

/// Rows' worth of time for each limit: every row is compared with them.
const LIMIT_ROWS: u32 = 4;

/// Measures the device's limits and then every case that the filter matches. `command` goes into the report.
///
/// # Errors
/// [`BenchError::NoKernel`], [`BenchError::Parameter`], [`BenchError::Gpu`].
pub fn kernels(
    gpu: &Gpu,
    options: &KernelOptions,
    command: String,
    progress: &mut dyn FnMut(BenchProgress<'_>),
) -> Result<KernelReport, BenchError> {
    options.check()?;
    let cases = list(gpu, options)?;
    let limits = limits(gpu, options.rotate_bytes, options.budget * LIMIT_ROWS)?;
    let mut pool = Pool::new(gpu, options.rotate_bytes);
    let mut timer = Timer::new(gpu)?;
    let mut report =
        KernelReport { meta: Meta::new(gpu, command), limits, rows: Vec::new(), skipped: Vec::new() };
    // Time of the same variant with fewer rows, divided by the least time.
    let mut slowness: HashMap<String, f64> = HashMap::new();
    for (i, case) in cases.iter().enumerate() {
        let label = case.label();
        progress(BenchProgress { n_done: i, n_total: cases.len(), next: &label });
        let (least_us, _) = limits.least_us(case.cost.flops, case.cost.bytes);
        let key = format!("{} {:?} {} {}", case.kernel, case.variant, case.shape, case.dtype);
        let expected_us = least_us * slowness.get(&key).copied().unwrap_or(1.0);
        if expected_us > options.longest_run.as_secs_f64() * 1e6 {
            report.skipped.push(format!("{label}: a run takes about {:.1} s", expected_us * 1e-6));
            continue;
        }
        let prepared = match case.prepare(&mut pool) {
            Ok(prepared) => prepared,
            Err(error @ (GpuError::TooLarge { .. } | GpuError::OutOfMemory { .. })) => {
                report.skipped.push(format!("{label}: {error}"));
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let row = measure(gpu, options, case, &prepared, &limits, &mut timer)?;
        slowness.insert(key, row.us / least_us);
        report.rows.push(row);
    }
    Ok(report)
}

/// The cases that the filter matches; cases that share weights are adjacent.
fn list(gpu: &Gpu, options: &KernelOptions) -> Result<Vec<Case>, BenchError> {
    let mut cases = Vec::new();
    for shape in &options.shapes {
        let mut of_shape = Vec::new();
        for (i, dtype) in options.dtypes.iter().enumerate() {
            for n_rows in &options.n_rows {
                let work = Workload {
                    caps: gpu.caps(),
                    shape,
                    n_rows: *n_rows,
                    dtype: *dtype,
                    is_first_dtype: i == 0,
                    rotate_bytes: options.rotate_bytes,
                };
                of_shape.extend(work.cases());
            }
        }
        // A stable sort: rows and variants keep their order within one matrix of weights.
        let mut order: HashMap<(&str, String, Dtype), usize> = HashMap::new();
        let place = |name: &str| operations().iter().position(|known| *known == name).unwrap_or(0);
        for case in &of_shape {
            let next = order.len();
            order.entry((case.kernel, case.shape.clone(), case.dtype)).or_insert(next);
        }
        of_shape.sort_by_key(|case| {
            (place(case.kernel), order.get(&(case.kernel, case.shape.clone(), case.dtype)).copied())
        });
        cases.extend(of_shape);
    }
    if let Some(filter) = &options.filter {
        let words: Vec<String> = filter.to_lowercase().split_whitespace().map(str::to_string).collect();
        cases.retain(|case| {
            let label = case.label().to_lowercase();
            words.iter().all(|word| label.contains(word))
        });
    }
    if cases.is_empty() {
        return Err(BenchError::no_kernel(options.filter.as_deref(), &operations()));
    }
    Ok(cases)
}

fn measure(
    gpu: &Gpu,
    options: &KernelOptions,
    case: &Case,
    prepared: &Prepared,
    limits: &Limits,
    timer: &mut Timer,
) -> Result<KernelRow, BenchError> {
    let mut rec = Recorder::new(gpu)?;
    let variants = rec.variants(|rec| prepared.launch(rec, 0));
    let is_default = prepared.default_variants(&mut rec).is_none_or(|default| default == variants);
    gpu.compile(&variants)?;
    let dispatched: Vec<String> = variants.iter().map(name_of).collect();
    let samples = timer.samples(&mut rec, &|rec, i| prepared.launch(rec, i), options.budget)?;
    let error = prepared.error(gpu, &mut rec, options.perturbation)?;
    let us = quantile(&samples, 0.5);
    let (least_us, by_memory) = limits.least_us(case.cost.flops, case.cost.bytes);
    Ok(KernelRow {
        kernel: case.kernel.into(),
        is_default,
        variant: case.variant.clone().unwrap_or_else(|| dispatched.join(" + ")),
        shape: case.shape.clone(),
        dtype: case.dtype.to_string(),
        n_rows: case.n_rows,
        us,
        us_low: quantile(&samples, 0.1),
        us_high: quantile(&samples, 0.9),
        n_samples: samples.len(),
        gflops: case.cost.flops / us * 1e-3,
        gbps: case.cost.bytes / us * 1e-3,
        percent: least_us / us * 100.0,
        limit: if by_memory { "memory" } else { "arithmetic" }.into(),
        error: Some(error).filter(|e| e.is_finite()),
        is_right: error <= 1.0,
    })
}

/// The kernel's name, and the part that reduces values, if it has one.
fn name_of(variant: &crate::gpu::Variant) -> String {
    let fold = variant.parts().find_map(|part| part.name.strip_prefix("reduce_"));
    fold.map_or(variant.kernel.name.to_string(), |fold| format!("{}/{fold}", variant.kernel.name))
}
