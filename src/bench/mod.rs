//! Layer 5: benchmarks. Times of kernels and of whole models on this device, as a share of the device's limits, and the
//! comparison of two runs.
//!
//! [`kernels`] times every operation of a forward pass at the shapes of named models, and checks the outputs. [`model`]
//! times prompts and answers end to end, if needed with random weights. [`tune`] chooses among the variants of
//! products. All measure the device's [`Limits`] first, in the same run. [`guest`] measures how well slices keep the budget
//! of a frame. [`compare`] joins [`Report`]s in one table.
//! [`doctor`] measures nothing: it checks every variant that the device can run. An [`Estimator`] predicts what [`model`]
//! would measure.
//!
//! Runs rotate through copies of weights and KV caches that together exceed the device's cache, because in a forward
//! pass every layer has its own. Activations are not rotated: in a forward pass the operation before has just written
//! them.

mod cases;
mod check;
mod compare;
mod doctor;
mod estimate;
mod guest;
mod kernels;
mod model;
mod probe;
mod reference;
mod report;
mod shapes;
mod stats;
mod timer;
mod tune;

use std::path::PathBuf;

pub use cases::{Case, Cost, Pool, Prepared, Workload, operations};
pub use compare::{ComparedRow, Comparison, Value, compare};
pub use doctor::{DoctorDevice, DoctorOptions, DoctorReport, DoctorRow, Verdict, doctor, doctor_variants};
pub use estimate::{Estimate, EstimateOptions, EstimatedRate, Estimator};
pub use guest::{GuestOptions, GuestReport, GuestRow, guest};
pub use kernels::{BenchProgress, KernelOptions, kernels};
pub use model::{ModelOptions, model};
pub use probe::{Limits, limits};
pub use report::{KernelReport, KernelRow, Meta, ModelReport, ModelRow, ModelSummary, Report, WGPU_VERSION};
pub use shapes::{SHAPES, Shape};
pub use timer::{Clock, Launch, Timer};
pub use tune::{TuneCandidate, TuneOptions, TuneReport, TuneRow, tune};

use crate::checkpoint::CheckpointError;
use crate::dtype::Dtype;
use crate::engine::EngineError;
use crate::gpu::GpuError;
use crate::models::ModelError;

/// The types of weights that are measured.
pub const WEIGHTS: &[Dtype] = &Dtype::WEIGHTS;

/// An error of a benchmark.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// Neither a named shape nor a file.
    #[error("shape `{found}` is not known, these are: {known}")]
    UnknownShape {
        /// The requested shape.
        found: String,
        /// The named shapes.
        known: String,
    },
    /// The filter matches no case.
    #[error("no kernel matches `{found}`, these are: {known}")]
    NoKernel {
        /// The filter.
        found: String,
        /// The operations.
        known: String,
    },
    /// A parameter is out of its range.
    #[error("`{name}` is {found}, expected {expected}")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// Its value.
        found: String,
        /// Its range.
        expected: &'static str,
    },
    /// A file could not be read.
    #[error("`{}` cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is not a report.
    #[error("`{name}` is no report of a benchmark: {message}")]
    NoReport {
        /// The file.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// Reports of different kinds have no rows in common.
    #[error("`{first}` holds {expected} rows, `{other}` {found} rows")]
    Kinds {
        /// The first file.
        first: String,
        /// The other file.
        other: String,
        /// Kind of the first.
        expected: &'static str,
        /// Kind of the other.
        found: &'static str,
    },
    /// A shape's model is not supported.
    #[error("`{name}`: {source}")]
    Model {
        /// The shape.
        name: String,
        /// What is wrong.
        source: ModelError,
    },
    /// Opening a model, or the config of a shape.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

impl BenchError {
    /// The filter matches no case of `kernels`.
    fn no_kernel(filter: Option<&str>, kernels: &[&str]) -> BenchError {
        let known: Vec<String> = kernels.iter().map(|name| format!("`{name}`")).collect();
        BenchError::NoKernel { found: filter.unwrap_or_default().into(), known: known.join(", ") }
    }

    /// Advice for the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            BenchError::UnknownShape { .. } => {
                Some("the path of a `config.json` in Hugging Face's form is a shape too".into())
            }
            BenchError::NoKernel { .. } => {
                Some("a filter is a part of a row's kernel, variant, shape or type".into())
            }
            BenchError::NoReport { .. } => Some("`Report` as JSON is one".into()),
            BenchError::Kinds { .. } => Some("compare reports of kernels, or reports of models".into()),
            BenchError::Model { source, .. } => source.hint(),
            BenchError::Checkpoint(e) => e.hint(),
            BenchError::Engine(e) => e.hint(),
            BenchError::Gpu(e) => e.hint(),
            _ => None,
        }
    }
}
