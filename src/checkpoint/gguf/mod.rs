//! A model in GGUF files: its config, the names of its tensors and its tokenizer, from the metadata.

mod architectures;
mod config;
mod names;
mod pre;
mod tokenizer;
mod vocabulary;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::files;
use super::{CheckpointError, DenseModule, EmbeddingConfig, GenerationConfig, ModelFiles, Parts, Scoring};
use crate::models::{self, ModelError, ModelKind, SCORE, SettingError};
use crate::text::{TextError, Tokenizer};
use crate::weights::{TensorFile, Weights};
use config::Rows;

/// Opens the model in `files`, one or all its parts in their order. Paths are for messages.
pub(super) fn read(
    files: impl IntoIterator<Item = (PathBuf, impl Into<TensorFile>)>,
    parts: Parts,
) -> Result<ModelFiles, CheckpointError> {
    let (weights, metadata) = Weights::from_gguf(files)?;
    let mut weights = parts.of(weights);
    let path = metadata.path().to_path_buf();
    let (config, names) = architectures::read(&metadata, &weights)?;
    names::rename(names, &metadata, &mut weights)?;
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
    let mut architecture = models::open(&config.json()).map_err(wrong)?;
    models::check_weights(&*architecture, &weights).map_err(wrong)?;
    let rows = config::rows(&metadata)?;
    let shape = architecture.shape();
    let is_decoder = shape.kind == ModelKind::Decoder;
    let has = |name: &str| weights.get(name).is_some();
    let (judges, embeds) = match &rows {
        Rows::Rank if is_decoder && has(&format!("{SCORE}.weight")) => (true, false),
        Rows::Rank if is_decoder || architecture.labels().is_none() => {
            let found = if has("classifier.weight") { "`cls.output.weight` alone" } else { "no head" };
            let message = format!(
                "a reranker whose head is not whole: expected the tensors `cls.weight` and `cls.output.weight`, found \
                 {found}"
            );
            return Err(CheckpointError::config(&path, message));
        }
        Rows::Embed(_) => (false, is_decoder),
        Rows::Any | Rows::Rank => (false, false),
    };
    if embeds {
        architecture = models::embedder(architecture, None);
    }
    let weights = Arc::new(weights);
    let mut embedding = match rows {
        Rows::Embed(config) => Some(config),
        _ => (!is_decoder).then(EmbeddingConfig::default),
    };
    if let Some(embedding) = &mut embedding {
        let mut width = shape.hidden_size;
        for (name, [out_features, in_features]) in config::dense(&weights) {
            if in_features != width {
                let message = format!("tensor `{name}.weight` takes {in_features} values, expected {width}");
                return Err(CheckpointError::config(&path, message));
            }
            let (weights, bias, act) = (weights.clone(), false, None);
            embedding.dense.push(DenseModule { weights, name, in_features, out_features, bias, act });
            width = out_features;
        }
    }
    let generation = GenerationConfig::parse(&path, &config::generation(&metadata)?, None)?;
    let config = config.json();
    let files = ModelFiles {
        name: path.display().to_string(),
        tokenizer: match parts {
            Parts::All => tokenizer::read(&metadata)?,
            Parts::Headers => Err(TextError::NotOpened),
        },
        embedding,
        labels: architecture.labels().cloned(),
        scoring: Scoring::of(&*architecture, &path, &config)?,
        config,
        architecture,
        weights,
        generation,
    };
    Ok(if judges { files.judging() } else { files })
}

/// Opens the tokenizer of such a model.
pub(super) fn open_tokenizer(path: &Path) -> Result<Tokenizer, CheckpointError> {
    let (_, metadata) = Weights::from_gguf(files::gguf_parts(path)?)?;
    Ok(tokenizer::read(&metadata)??)
}
