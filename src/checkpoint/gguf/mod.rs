//! A model in GGUF files: its config, the names of its tensors and its tokenizer, from the metadata.

mod config;
mod names;
mod pre;
mod tokenizer;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files;
use super::{CheckpointError, GenerationConfig, ModelFiles, Parts};
use crate::models::{self, ModelError, ModelKind, SettingError};
use crate::text::{TextError, Tokenizer};
use crate::weights::{TensorFile, Weights};

/// Opens the model in `files`, one or all its parts in their order. Paths are for messages.
pub(super) fn read(
    files: impl IntoIterator<Item = (PathBuf, impl Into<TensorFile>)>,
    parts: Parts,
) -> Result<ModelFiles, CheckpointError> {
    let (weights, metadata) = Weights::from_gguf(files)?;
    let mut weights = parts.of(weights);
    let path = metadata.path().to_path_buf();
    let config = config::read(&metadata, &weights)?;
    names::rename(&metadata, &mut weights)?;
    config::FACTORS.iter().for_each(|name| weights.remove(name));
    // Errors name the metadata's keys.
    let wrong = |error: ModelError| {
        let value = |key: &str, found: &str, expected: &str| {
            let key = config.source(key).unwrap_or(key);
            CheckpointError::config(&path, format!("`{key}` is `{found}`, expected {expected}"))
        };
        match error {
            ModelError::Setting(error) => match *error {
                SettingError::Value { key, found, expected, .. } => value(&key, &found, &expected),
                error => CheckpointError::config(&path, error),
            },
            ModelError::Unsupported { key, found, expected } => value(key, &found, &expected),
            other => other.into(),
        }
    };
    let architecture = models::open(&config.json()).map_err(wrong)?;
    models::check_weights(&*architecture, &weights).map_err(wrong)?;
    let shape = architecture.shape();
    let generation = GenerationConfig::parse(&path, &config::generation(&metadata)?, None)?;
    Ok(ModelFiles {
        name: path.display().to_string(),
        tokenizer: match parts {
            Parts::All => tokenizer::read(&metadata)?,
            Parts::Headers => Err(TextError::NotOpened),
        },
        embedding: match shape.kind {
            ModelKind::Decoder => None,
            ModelKind::Encoder => Some(config::embedding(&metadata)?),
        },
        labels: architecture.labels().cloned(),
        config: config.json(),
        architecture,
        weights: Arc::new(weights),
        generation,
    })
}

/// Opens the tokenizer of such a model.
pub(super) fn open_tokenizer(path: &Path) -> Result<Tokenizer, CheckpointError> {
    let (_, metadata) = Weights::from_gguf(files::gguf_parts(path)?)?;
    Ok(tokenizer::read(&metadata)??)
}
