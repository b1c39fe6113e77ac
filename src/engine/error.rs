//! The error of the engine.

use std::path::PathBuf;

use crate::checkpoint::CheckpointError;
use crate::dtype::Dtype;
use crate::gpu::GpuError;
use crate::models::ModelError;
use crate::text::TextError;
use crate::weights::WeightsError;

/// Bytes of memory that an engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryNeed {
    /// The weights.
    pub weights_bytes: u64,
    /// The KV cache.
    pub cache_bytes: u64,
    /// Activations, tables, readback, and a speech model's clips.
    pub scratch_bytes: u64,
    /// What the upload holds for a while, at most: stages, and the driver's copies of what is written.
    pub staging_bytes: u64,
}

impl MemoryNeed {
    /// All together.
    pub fn total_bytes(&self) -> u64 {
        let MemoryNeed { weights_bytes, cache_bytes, scratch_bytes, staging_bytes } = *self;
        [cache_bytes, scratch_bytes, staging_bytes].into_iter().fold(weights_bytes, u64::saturating_add)
    }
}

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
    /// The free memory does not hold the model.
    #[error(
        "the model needs {} of memory ({} for weights, {} for the KV cache, {} for the rest), {} are free",
        size(need.total_bytes()),
        size(need.weights_bytes),
        size(need.cache_bytes),
        size(need.scratch_bytes.saturating_add(need.staging_bytes)),
        size(*free_bytes)
    )]
    Memory {
        /// What it would take.
        need: MemoryNeed,
        /// What is free.
        free_bytes: u64,
        /// A shorter context that would fit, or would together with `fitting_quantize`.
        fitting_ctx: Option<usize>,
        /// A quantised type with which it would fit, or would together with `fitting_ctx`.
        fitting_quantize: Option<Dtype>,
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
    Model(ModelError),
    /// The weights.
    #[error(transparent)]
    Weights(WeightsError),
    /// The device.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

// An error of the device is always `Gpu`, wherever it happened.
impl From<WeightsError> for EngineError {
    fn from(error: WeightsError) -> Self {
        match error {
            WeightsError::Gpu(error) => EngineError::Gpu(error),
            other => EngineError::Weights(other),
        }
    }
}

impl From<ModelError> for EngineError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Weights(WeightsError::Gpu(error)) => EngineError::Gpu(error),
            other => EngineError::Model(other),
        }
    }
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
            EngineError::Memory { fitting_ctx, fitting_quantize, .. } => {
                let ctx = fitting_ctx.map(|n| format!("`EngineOptions::ctx` {n}"));
                let quantize = fitting_quantize.map(|dtype| format!("`EngineOptions::quantize` {dtype}"));
                let fitting: Vec<String> = ctx.into_iter().chain(quantize).collect();
                Some(match fitting.is_empty() {
                    true => "a smaller model is needed".to_string(),
                    false => format!("it would fit with {}", fitting.join(" and ")),
                })
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

/// A number of bytes in a unit that suits it.
fn size(bytes: u64) -> String {
    match bytes as f64 / 1e6 {
        mb if mb < 1000.0 => format!("{mb:.1} MB"),
        mb => format!("{:.1} GB", mb / 1000.0),
    }
}
