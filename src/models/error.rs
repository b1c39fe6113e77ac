//! What can go wrong from a config to a model in device memory.

use crate::weights::WeightsError;

/// What can be wrong with a model's description.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// `config.json` is not JSON or lacks a key.
    #[error("`config.json`: {message}")]
    Config {
        /// What is wrong.
        message: String,
    },
    /// No file here runs this architecture.
    #[error("architecture `{found}` is not supported, these are: {known}")]
    UnknownArchitecture {
        /// `model_type` in the config.
        found: String,
        /// Those that run.
        known: String,
    },
    /// The architecture is known, this variety of it is not.
    #[error("`config.json`: `{key}` is `{found}`, expected {expected}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What runs.
        expected: String,
    },
    /// The weights do not fit the config, or the device does not fit the weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl From<crate::gpu::GpuError> for ModelError {
    fn from(error: crate::gpu::GpuError) -> Self {
        ModelError::Weights(error.into())
    }
}

impl ModelError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            ModelError::Weights(error) => error.hint(),
            _ => None,
        }
    }
}
