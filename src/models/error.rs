//! The error of models.

use super::SettingError;
use crate::weights::WeightsError;

/// An error in a model's config or weights.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// `config.json` is not JSON, or a key has a value outside its range.
    #[error("`config.json`{}: {}", .0.place(), .0)]
    Setting(#[source] Box<SettingError>),
    /// The architecture is not supported.
    #[error("architecture `{found}` is not supported, these are: {known}")]
    UnknownArchitecture {
        /// `model_type` in the config.
        found: String,
        /// The supported ones.
        known: String,
    },
    /// The architecture is supported, but this option of it is not.
    #[error("`config.json`: `{key}` is `{found}`, expected {expected}")]
    Unsupported {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// The supported values.
        expected: String,
    },
    /// The weights do not match the config, or do not fit on the device.
    #[error(transparent)]
    Weights(#[from] WeightsError),
}

impl From<SettingError> for ModelError {
    fn from(error: SettingError) -> Self {
        ModelError::Setting(error.into())
    }
}

impl From<crate::gpu::GpuError> for ModelError {
    fn from(error: crate::gpu::GpuError) -> Self {
        ModelError::Weights(error.into())
    }
}

impl ModelError {
    /// Advice for the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            ModelError::Weights(error) => error.hint(),
            ModelError::Setting(error) => error.hint(),
            _ => None,
        }
    }
}
