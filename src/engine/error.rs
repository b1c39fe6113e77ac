//! The error of the engine.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::gpu::GpuError;
use crate::models::ModelError;
use crate::text::TextError;
use crate::weights::WeightsError;

/// An error of the engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A file of the model is invalid.
    #[error("`{}`: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
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
    /// The prompt has no tokens.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id outside the vocabulary.
    #[error("token {token} at position {position} is not in the vocabulary of {vocab_size}")]
    TokenRange {
        /// The id.
        token: u32,
        /// Where.
        position: usize,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// The prompt is longer than the context.
    #[error("the prompt has {found} tokens, the context holds {expected}")]
    PromptTooLong {
        /// Its length.
        found: usize,
        /// The context's.
        expected: usize,
    },
    /// As many requests wait as [`EngineOptions::max_waiting`](super::EngineOptions::max_waiting) allows.
    #[error("{waiting} requests wait already, expected fewer")]
    Busy {
        /// Requests that wait.
        waiting: usize,
    },
    /// The prompt is larger than the KV cache.
    #[error("the prompt has {found} tokens, the cache holds {expected}")]
    CacheTooSmall {
        /// Its tokens.
        found: usize,
        /// The cache's positions.
        expected: usize,
    },
    /// [`Loading::finish`](super::Loading::finish) was called too early.
    #[error("the model is not loaded yet: {done_bytes} of {total_bytes} bytes are on the device")]
    NotLoaded {
        /// Uploaded so far.
        done_bytes: usize,
        /// In the checkpoint.
        total_bytes: usize,
    },
    /// The model computed logits that are not finite.
    #[error("the logits after position {position} are not finite")]
    NotFinite {
        /// Position of the last token.
        position: usize,
    },
    /// An encoder computed values that are not finite.
    #[error("the output of the model is not finite")]
    OutputNotFinite,
    /// A clip has the wrong form.
    #[error("the clip has {found}, expected {expected}")]
    Clip {
        /// What it has.
        found: String,
        /// What the audio encoder expects.
        expected: String,
    },
    /// A request with a clip for a language model, or one without a clip for a speech model.
    #[error("`{architecture}` {problem}")]
    Speech {
        /// The model's architecture.
        architecture: &'static str,
        /// What does not fit.
        problem: &'static str,
    },
    /// Opening the model.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Text.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

/// A speech model got only text.
pub(super) const NEEDS_CLIP: &str = "is a speech model: it transcribes clips, and cannot continue a text";
/// A language model got a clip.
pub(super) const NO_AUDIO_ENCODER: &str = "is a language model: it has no audio encoder";

impl EngineError {
    /// Advice for the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            EngineError::Speech { problem: NEEDS_CLIP, .. } => {
                Some("`tasks::transcribe` drives a speech model".into())
            }
            EngineError::Speech { problem: NO_AUDIO_ENCODER, .. } => Some("open a Whisper model".into()),
            EngineError::PromptTooLong { .. } => {
                Some("shorten the prompt, or raise `EngineOptions::ctx`".into())
            }
            EngineError::CacheTooSmall { .. } => {
                Some("shorten the prompt, or raise `EngineOptions::kv_tokens`".into())
            }
            EngineError::Busy { .. } => Some("submit it again when other requests have ended".into()),
            EngineError::NotFinite { .. } => Some(
                "the weights contain values that are not finite, or too large for `EngineOptions::kv_dtype`"
                    .into(),
            ),
            EngineError::OutputNotFinite => {
                Some("the weights contain values that are not finite, or the checkpoint is damaged".into())
            }
            EngineError::TokenRange { .. } => Some(
                "`tokenizer.json` may belong to another model than the weights, or have tokens that it lacks"
                    .into(),
            ),
            EngineError::Checkpoint(e) => e.hint(),
            EngineError::Text(e) => e.hint(),
            EngineError::Model(e) => e.hint(),
            EngineError::Weights(e) => e.hint(),
            EngineError::Gpu(e) => e.hint(),
            _ => None,
        }
    }
}
