//! `generation_config.json`.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::CheckpointError;

/// `generation_config.json`: the settings that the model's authors recommend. An absent key is `None`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationConfig {
    /// If `false`, the most probable token is taken, whatever the other keys are.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Only the `top_k` most probable tokens.
    pub top_k: Option<u32>,
    /// Only the fewest most probable tokens that hold `top_p` of the probability.
    pub top_p: Option<f32>,
    /// Only tokens with at least `min_p` times the largest probability.
    pub min_p: Option<f32>,
    /// Lowers the logits of tokens that occurred before: divides positive ones, multiplies negative ones.
    pub repetition_penalty: Option<f32>,
    /// The whole file, for its other keys; null if there is none.
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
