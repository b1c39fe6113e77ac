//! The places that a model can come from, and the names that users give them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::CheckpointError;

/// A place that a model can come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// The demonstration model that is compiled into the binary: stories of a small world. `assets/demo` says how it
    /// was made.
    Demo,
}

impl Source {
    /// Decides what `name` is.
    ///
    /// # Errors
    /// [`CheckpointError::NoFolder`], [`CheckpointError::NotAFolder`], [`CheckpointError::Gguf`],
    /// [`CheckpointError::HubName`].
    pub fn parse(name: impl AsRef<OsStr>) -> Result<Source, CheckpointError> {
        let path = Path::new(name.as_ref());
        if path.is_dir() {
            return Ok(Source::Folder(path.to_path_buf()));
        }
        let path = path.to_path_buf();
        if path.extension() == Some(OsStr::new("gguf")) {
            return Err(CheckpointError::Gguf { path });
        }
        if path.exists() {
            return Err(CheckpointError::NotAFolder { path });
        }
        match path.to_str().filter(|name| is_hub_name(name)) {
            Some(name) => Err(CheckpointError::HubName { name: name.into() }),
            None => Err(CheckpointError::NoFolder { path }),
        }
    }
}

/// Whether `name` has the form `owner/name`.
fn is_hub_name(name: &str) -> bool {
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() == 2 && parts.iter().all(|p| !p.is_empty() && !p.starts_with(['.', '~']) && !p.contains('\\'))
}
