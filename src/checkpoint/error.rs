//! What can go wrong from a model's name to an opened model.

use std::path::{Path, PathBuf};

use super::Ability;
use crate::models::{ModelError, ModelKind};
use crate::text::TextError;
use crate::weights::WeightsError;

/// What can go wrong from a model's name to an opened model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// There is nothing at the path.
    #[error("there is no folder `{}`", path.display())]
    NoFolder {
        /// The path.
        path: PathBuf,
    },
    /// The path names something else.
    #[error("`{}` is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A GGUF file.
    #[error("`{}` is a GGUF file, which is not supported yet", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
    },
    /// `owner/name`.
    #[error("there is no folder `{name}`, and names on the hub are not supported yet")]
    HubName {
        /// The name.
        name: String,
    },
    /// A file could not be read.
    #[error("`{}` cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A file's name belongs to something that holds no bytes.
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
        /// Its size, or what was read of it.
        found_bytes: u64,
        /// The limit of its kind.
        limit_bytes: u64,
    },
    /// A file does not hold what it should.
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
    /// Random weights of a type that cannot be drawn.
    #[error("`dtype` is {found}, expected `F32`, `F16` or `BF16`, which can be quantised at load")]
    RandomDtype {
        /// The type.
        found: crate::dtype::Dtype,
    },
    /// A model of the other kind than is needed.
    #[error("`{architecture}` is {}: it can {}", match kind {
        ModelKind::Decoder => "a model that writes",
        ModelKind::Encoder => "an encoder",
    }, listed(can))]
    WrongKind {
        /// `model_type` in the config.
        architecture: &'static str,
        /// What the model is.
        kind: ModelKind,
        /// What it can do.
        can: Vec<Ability>,
    },
    /// `config.json`.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tensors.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The tokenizer, where it alone was asked for.
    #[error(transparent)]
    Text(#[from] TextError),
}

/// What a folder must hold.
const LAYOUT: &str =
    "give a folder in Hugging Face layout: `config.json`, `model.safetensors`, `tokenizer.json`";

impl CheckpointError {
    /// `path` does not hold what it should.
    pub(super) fn config(path: &Path, message: impl ToString) -> CheckpointError {
        CheckpointError::Config { path: path.to_path_buf(), message: message.to_string() }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        use CheckpointError::*;
        match self {
            NoFolder { .. } | NotAFolder { .. } | Gguf { .. } | NoWeights { .. } => Some(LAYOUT.into()),
            Io { path, .. } if path.ends_with("config.json") => Some(LAYOUT.into()),
            HubName { name } => {
                Some(format!("`hf download {name} --local-dir DIR` fetches it; then open the folder `DIR`"))
            }
            WrongKind { kind: ModelKind::Decoder, .. } => Some("`Engine::load` takes it".into()),
            WrongKind { kind: ModelKind::Encoder, .. } => Some("`TextEncoder::load` takes it".into()),
            Model(e) => e.hint(),
            Weights(e) => e.hint(),
            Text(e) => e.hint(),
            _ => None,
        }
    }
}

/// Abilities with `and` between.
fn listed(abilities: &[Ability]) -> String {
    abilities.iter().map(|ability| ability.name()).collect::<Vec<_>>().join(" and ")
}
