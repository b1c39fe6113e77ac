//! `generation_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::CheckpointError;

/// `generation_config.json`: the sampling that the model's authors recommend. A key that is absent is `None`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// `false` takes the most probable token, whatever the other keys say.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Only the `top_k` most probable tokens.
    pub top_k: Option<u32>,
    /// Only the fewest most probable tokens that hold `top_p` of the mass.
    pub top_p: Option<f32>,
    /// Only tokens with at least `min_p` times the largest probability.
    pub min_p: Option<f32>,
    /// Divides or multiplies the logits of tokens that were there before.
    pub repetition_penalty: Option<f32>,
    /// The whole file, with the keys of a speech model; null if there is no file.
    #[serde(skip)]
    pub json: Value,
}

impl GenerationConfig {
    /// Parses the file at `path`.
    ///
    /// # Errors
    /// [`CheckpointError::Config`].
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<GenerationConfig, CheckpointError> {
        let wrong = |e| CheckpointError::config(path, e);
        let config: GenerationConfig = serde_json::from_slice(json).map_err(wrong)?;
        Ok(GenerationConfig { json: serde_json::from_slice(json).map_err(wrong)?, ..config })
    }
}
