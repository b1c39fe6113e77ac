//! The error of opening a model.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Ability;
#[cfg(feature = "hub")]
use crate::hub::HubError;
use crate::models::{ModelError, ModelKind, SettingError};
use crate::text::TextError;
use crate::weights::WeightsError;

/// An error in opening a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The path does not exist.
    #[error("there is no folder `{}`", path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// The path is neither that of a folder nor of a GGUF file.
    #[error("`{}` is neither a folder nor a GGUF file", path.display())]
    NotAModel {
        /// The path.
        path: PathBuf,
    },
    /// A file in ggml's format from before GGUF.
    #[error("`{}` is in ggml's format from before GGUF, which is not supported", path.display())]
    Ggml {
        /// The file.
        path: PathBuf,
    },
    /// A folder without `config.json` has several GGUF models.
    #[error("`{}` has {} GGUF files, expected one: {}", dir.display(), found.len(), names(found))]
    ManyGguf {
        /// The folder.
        dir: PathBuf,
        /// The files.
        found: Vec<PathBuf>,
    },
    /// One of the parts of a GGUF model is missing.
    #[error("there is no file `{}`, which is one of the {n} parts of the model", path.display())]
    NoPart {
        /// The file.
        path: PathBuf,
        /// The number of parts.
        n: usize,
    },
    /// A file could not be read.
    #[error("`{}` cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's message.
        source: std::io::Error,
    },
    /// A folder, pipe, socket or device has the name of a file.
    #[error("`{}` cannot be read: it is {found}, expected a regular file", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A file is larger than any of its kind.
    #[error("`{}` cannot be read: it has {found_bytes} bytes, expected at most {limit_bytes}", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size, or the number of bytes that were read.
        found_bytes: u64,
        /// The limit for files of its kind.
        limit_bytes: u64,
    },
    /// A file is not JSON, or a key of it has a value outside its range.
    #[error("`{}`{}: {error}", path.display(), error.place())]
    Setting {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: Box<SettingError>,
    },
    /// A text file has bytes that are no text.
    #[error("`{}` is not UTF-8: line {line} has other bytes at position {at} of the file", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The first byte that is no text, from 0.
        at: usize,
    },
    /// The content of a file is wrong.
    #[error("`{}`: {message}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The folder has no weights.
    #[error("`{}` has no `model.safetensors` and no `model.safetensors.index.json`", dir.display())]
    NoWeights {
        /// The folder.
        dir: PathBuf,
    },
    /// Random weights cannot be drawn in this type.
    #[error("`dtype` is {found}, expected `F32`, `F16` or `BF16`, which can be quantised at load")]
    RandomDtype {
        /// The type.
        found: crate::dtype::Dtype,
    },
    /// A decoder where an encoder is needed, or the other way round.
    #[error("`{architecture}` is {}: it can {}", match kind {
        ModelKind::Decoder => "a decoder",
        ModelKind::Encoder => "an encoder",
    }, listed(can))]
    WrongKind {
        /// `model_type` in the config.
        architecture: &'static str,
        /// The model's kind.
        kind: ModelKind,
        /// Its abilities.
        can: Vec<Ability>,
    },
    /// A model that scores no texts.
    #[error(
        "`{name}` is no reranker: it is {found}, expected a classification head with one label, or Qwen3"
    )]
    NotAReranker {
        /// The model's name.
        name: String,
        /// What it is.
        found: String,
    },
    /// Weights that are to change have other owners.
    #[error("the weights of `{name}` are shared, expected no other owner: a head is to be added to them")]
    SharedWeights {
        /// The model's name.
        name: String,
    },
    /// Downloading a model of the hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(#[from] HubError),
    /// `config.json`.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer, from [`open_tokenizer`](super::open_tokenizer) only.
    #[error(transparent)]
    Text(#[from] TextError),
}

const LAYOUT: &str = if cfg!(feature = "hub") {
    "give a `.gguf` file, a folder in Hugging Face layout (`config.json`, `model.safetensors`, `tokenizer.json`), or a \
     name on the hub, `owner/name`"
} else {
    "give a `.gguf` file, or a folder in Hugging Face layout: `config.json`, `model.safetensors`, `tokenizer.json`"
};

impl CheckpointError {
    /// An error in the content of the file at `path`.
    pub(super) fn config(path: &Path, message: impl ToString) -> CheckpointError {
        CheckpointError::Config { path: path.to_path_buf(), message: message.to_string() }
    }

    /// An error in the keys of the settings file at `path`.
    pub(super) fn setting(path: &Path, error: SettingError) -> CheckpointError {
        CheckpointError::Setting { path: path.to_path_buf(), error: error.into() }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        use CheckpointError::*;
        match self {
            NoFolder { .. } | NotAModel { .. } | NoWeights { .. } => Some(LAYOUT.into()),
            Ggml { .. } => Some(
                "for Whisper, give a folder in Hugging Face layout, such as that of `openai/whisper-tiny.en`; for others, \
                 a `.gguf` file"
                    .into(),
            ),
            ManyGguf { .. } => Some("give one of them".into()),
            NoPart { .. } => Some("all parts must be in one folder".into()),
            Io { path, source } if path.ends_with("config.json") && source.kind() == ErrorKind::NotFound => {
                Some(LAYOUT.into())
            }
            TooLarge { .. } | NotAFile { .. } => {
                Some("the folder may be damaged: download the model again".into())
            }
            Setting { error, .. } => error.hint(),
            NotUtf8 { .. } => Some("save the file as UTF-8, or download it again".into()),
            WrongKind { kind: ModelKind::Decoder, .. } => Some("`Engine::load` takes it".into()),
            WrongKind { kind: ModelKind::Encoder, .. } => Some("`TextEncoder::load` takes it".into()),
            #[cfg(feature = "hub")]
            Hub(e) => e.hint(),
            Model(e) => e.hint(),
            Weights(e) => e.hint(),
            Text(e) => e.hint(),
            _ => None,
        }
    }
}

/// The first names of files.
fn names(files: &[PathBuf]) -> String {
    let name = |path: &PathBuf| format!("`{}`", Path::new(path.file_name().unwrap_or_default()).display());
    let names: Vec<String> = files.iter().take(5).map(name).collect();
    format!("{}{}", names.join(", "), if files.len() > 5 { ", …" } else { "" })
}

/// Abilities with `and` between.
fn listed(abilities: &[Ability]) -> String {
    abilities.iter().map(|ability| ability.name()).collect::<Vec<_>>().join(" and ")
}
