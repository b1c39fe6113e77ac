//! A model in GGUF files: its config, the names of its tensors and its tokenizer, from the metadata.

mod config;
mod names;
mod pre;
mod tokenizer;

use std::path::PathBuf;
use std::sync::Arc;

use super::{CheckpointError, EmbeddingConfig, GenerationConfig, ModelFiles, Parts};
use crate::models::{self, ModelError, ModelKind};
use crate::text::TextError;
use crate::weights::{TensorFile, Weights};

/// Opens the model in `files`, one or all its parts in their order. Paths are for messages.
pub(super) fn read(
    files: impl IntoIterator<Item = (PathBuf, impl Into<TensorFile>)>,
    parts: Parts,
) -> Result<ModelFiles, CheckpointError> {
    let (weights, metadata) = Weights::from_gguf(files)?;
    let mut weights = parts.of(weights);
    let path = metadata.path().to_path_buf();
    let config = config::json(&metadata, &weights)?;
    names::rename(&metadata, &mut weights)?;
    weights.remove(config::FREQUENCY_FACTORS);
    let config = serde_json::to_string_pretty(&config).expect("a map of plain values");
    let wrong = |error: ModelError| match error {
        ModelError::Setting(error) => CheckpointError::config(&path, error),
        ModelError::Unsupported { key, found, expected } => {
            CheckpointError::config(&path, format!("`{key}` is `{found}`, expected {expected}"))
        }
        other => other.into(),
    };
    let architecture = models::open(&config).map_err(wrong)?;
    models::check_weights(&*architecture, &weights).map_err(wrong)?;
    let shape = architecture.shape();
    let generation = GenerationConfig::parse(&path, &config::generation(&metadata)?, None)?;
    Ok(ModelFiles {
        name: path.display().to_string(),
        tokenizer: match parts {
            Parts::All => tokenizer::read(&metadata)?,
            Parts::Headers => Err(TextError::NotOpened),
        },
        embedding: (shape.kind == ModelKind::Encoder).then(EmbeddingConfig::default),
        labels: architecture.labels().cloned(),
        config,
        architecture,
        weights: Arc::new(weights),
        generation,
    })
}
