//! Reports, as they are written to files.

use serde::{Deserialize, Serialize};

use super::{BenchError, Limits};
use crate::gpu::Gpu;

/// The version of the linked `wgpu`. A test compares it with `Cargo.lock`.
pub const WGPU_VERSION: &str = "30.0.1";

/// The circumstances of a measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meta {
    /// Name of this program.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Version of `wgpu`.
    pub wgpu_version: String,
    /// Day and time in UTC, ISO 8601.
    pub date: String,
    /// The command line.
    pub command: String,
    /// The device.
    pub adapter: String,
    /// Its driver, with version.
    pub driver: String,
    /// `vulkan`, `metal` or `dx12`.
    pub backend: String,
}

impl Meta {
    /// The circumstances of this moment and device.
    pub fn new(gpu: &Gpu, command: String) -> Meta {
        let info = gpu.info();
        let now = jiff::Timestamp::now().round(jiff::Unit::Second);
        Meta {
            program: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
            wgpu_version: WGPU_VERSION.into(),
            date: now.map_or_else(|_| String::new(), |t| t.to_string()),
            command,
            adapter: info.name.clone(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
            backend: info.backend.to_str().into(),
        }
    }
}

/// One kernel at one shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelRow {
    /// The operation.
    pub kernel: String,
    /// The dispatched variant.
    pub variant: String,
    /// Whether this variant is the default.
    pub is_default: bool,
    /// The model, and its part.
    pub shape: String,
    /// Type of weights or cache; F32 if there are only activations.
    pub dtype: String,
    /// Rows of the batch.
    pub n_rows: usize,
    /// Microseconds per run: the median of the samples.
    pub us: f64,
    /// The 10th percentile.
    pub us_low: f64,
    /// The 90th percentile.
    pub us_high: f64,
    /// Samples.
    pub n_samples: usize,
    /// GFLOP/s.
    pub gflops: f64,
    /// GB/s.
    pub gbps: f64,
    /// Share of the limit in percent. Above 100 if the device's cache helps.
    pub percent: f64,
    /// `memory` or `arithmetic`: which limit.
    pub limit: String,
    /// The largest error of the sample of outputs, in units of the tolerance; `None` if it is not finite.
    pub error: Option<f64>,
    /// Whether the outputs are right.
    pub is_right: bool,
}

impl KernelRow {
    /// The key that a row of another run must share to be compared.
    pub fn key(&self) -> String {
        format!("{} · {} · {} · {} · {} rows", self.kernel, self.variant, self.shape, self.dtype, self.n_rows)
    }
}

/// Kernels at the shapes of models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelReport {
    /// Circumstances.
    pub meta: Meta,
    /// What the device can do.
    pub limits: Limits,
    /// Measurements.
    pub rows: Vec<KernelRow>,
    /// Cases that would have taken too long or did not fit, each with the reason.
    pub skipped: Vec<String>,
}

/// One test of a model: a prompt, an answer, or both.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRow {
    /// `pp512`, `tg128`, `pp512+tg128`.
    pub test: String,
    /// Positions in the cache before it.
    pub depth: usize,
    /// Sequences at a time.
    pub batch: usize,
    /// Tokens per second of all sequences together: the mean over repetitions.
    pub tokens_per_second: f64,
    /// Standard deviation of the tokens per second.
    pub sigma: f64,
    /// Repetitions.
    pub n_repetitions: usize,
    /// Share of the limit in percent.
    pub percent: f64,
    /// `memory` or `arithmetic`: which limit.
    pub limit: String,
    /// Milliseconds to the first token, mean.
    pub time_to_first_token_ms: f64,
    /// Milliseconds between the tokens of a sequence: 50th, 95th and 99th percentile. `None` for prompts.
    pub time_per_output_token_ms: Option<[f64; 3]>,
}

impl ModelRow {
    /// The test, with the depth if it is not 0 and the batch if it is not 1.
    pub fn label(&self) -> String {
        let mut label = self.test.clone();
        if self.depth > 0 {
            label += &format!(" @ d{}", self.depth);
        }
        if self.batch > 1 {
            label += &format!(" × {}", self.batch);
        }
        label
    }
}

/// The measured model, its loading and its memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// The folder, or the name of the shape.
    pub name: String,
    /// Architecture.
    pub architecture: String,
    /// Type of most of the weights, or the type that they were quantised to.
    pub dtype: String,
    /// Type of the cache.
    pub kv_dtype: String,
    /// Whether the weights are random.
    pub is_random: bool,
    /// Parameters.
    pub n_params: u64,
    /// Bytes of weights in device memory.
    pub weights_bytes: u64,
    /// Milliseconds from the opened checkpoint to an engine with its weights in device memory, with pipelines in the
    /// cache; compilation runs in parallel.
    pub load_ms: f64,
    /// Milliseconds to compile all pipelines with an empty cache. The driver may have its own cache.
    pub compile_cold_ms: f64,
    /// The same with the cache that the first compilation left.
    pub compile_warm_ms: f64,
    /// Peak of allocated device memory, in bytes.
    pub peak_device_bytes: u64,
    /// Peak host memory of this process in bytes, if the system reports it.
    pub peak_host_bytes: Option<u64>,
    /// What the times include besides the model, in words.
    pub times_include: String,
}

/// A model end to end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// Circumstances.
    pub meta: Meta,
    /// What the device can do.
    pub limits: Limits,
    /// The model.
    pub model: ModelSummary,
    /// Measurements.
    pub rows: Vec<ModelRow>,
}

/// A report of either kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Report {
    /// From [`kernels`](super::kernels).
    Kernels(KernelReport),
    /// From [`model`](super::model).
    Model(ModelReport),
}

impl Report {
    /// Reads a report from JSON; `name` is for messages.
    ///
    /// # Errors
    /// [`BenchError::NoReport`].
    pub fn from_json(name: &str, json: &str) -> Result<Report, BenchError> {
        let wrong = |message| BenchError::NoReport { name: name.into(), message };
        let report: Report = serde_json::from_str(json).map_err(|e| wrong(e.to_string()))?;
        match report.measured().into_iter().find(|(_, _, value)| *value <= 0.0) {
            Some((row, key, value)) => {
                Err(wrong(format!("`{key}` of `{row}` is {value}, expected a number above 0")))
            }
            None => Ok(report),
        }
    }

    /// What was measured: row, key and value.
    fn measured(&self) -> Vec<(String, &'static str, f64)> {
        match self {
            Report::Kernels(report) => report.rows.iter().map(|row| (row.key(), "us", row.us)).collect(),
            Report::Model(report) => {
                let of = |row: &ModelRow| (row.label(), "tokens_per_second", row.tokens_per_second);
                report.rows.iter().map(of).collect()
            }
        }
    }

    /// `kernel` or `model`, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Report::Kernels(_) => "kernel",
            Report::Model(_) => "model",
        }
    }

    /// Circumstances.
    pub fn meta(&self) -> &Meta {
        match self {
            Report::Kernels(report) => &report.meta,
            Report::Model(report) => &report.meta,
        }
    }
}
