//! The crate's error: one variant a layer, each layer's own enum inside.

use crate::audio::AudioError;
#[cfg(feature = "bench")]
use crate::bench::BenchError;
use crate::checkpoint::CheckpointError;
use crate::engine::EngineError;
use crate::gpu::GpuError;
#[cfg(feature = "hub")]
use crate::hub::HubError;
use crate::models::ModelError;
use crate::tasks::TaskError;
use crate::tasks::transcribe::TranscribeError;
use crate::text::TextError;
use crate::weights::WeightsError;

/// Anything a user, a file or a device can get wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// A checkpoint's tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Tokenizer or chat template.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Recordings.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// Names of models, and their download.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A model's config.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Opening a model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Requests, and everything on the way to the first token.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Transcription.
    #[error(transparent)]
    Transcribe(#[from] TranscribeError),
    /// Tasks.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// Measurement.
    #[cfg(feature = "bench")]
    #[error(transparent)]
    Bench(#[from] BenchError),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Gpu(e) => e.hint(),
            Error::Weights(e) => e.hint(),
            Error::Text(e) => e.hint(),
            Error::Audio(e) => e.hint(),
            #[cfg(feature = "hub")]
            Error::Hub(e) => e.hint(),
            Error::Model(e) => e.hint(),
            Error::Checkpoint(e) => e.hint(),
            Error::Engine(e) => e.hint(),
            Error::Transcribe(e) => e.hint(),
            Error::Task(e) => e.hint(),
            #[cfg(feature = "bench")]
            Error::Bench(e) => e.hint(),
        }
    }
}

/// `Result` with the crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
