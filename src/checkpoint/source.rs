//! The places that a model can come from, and the names that users give them.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use super::CheckpointError;
use super::files::{self, Container};
#[cfg(feature = "hub")]
use crate::hub::HubName;

/// A place that a model can come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// A GGUF file, or one of the parts of a model.
    Gguf(PathBuf),
    /// A model of the hub: in its cache, or to be downloaded.
    #[cfg(feature = "hub")]
    Hub(HubName),
    /// The demonstration model that is compiled into the binary: stories of a small world. `assets/demo` says how it
    /// was made.
    Demo,
}

impl Source {
    /// Decides what `name` is: a path that exists wins over a name on the hub.
    ///
    /// # Errors
    /// [`CheckpointError::NoFolder`], [`CheckpointError::NotAModel`], [`CheckpointError::ManyGguf`],
    /// [`CheckpointError::Ggml`], [`CheckpointError::Io`].
    pub fn parse(name: impl AsRef<OsStr>) -> Result<Source, CheckpointError> {
        let path = Path::new(name.as_ref());
        if path.is_dir() {
            let gguf = files::gguf_in(path)?;
            return Ok(gguf.map_or_else(|| Source::Folder(path.to_path_buf()), Source::Gguf));
        }
        let is_gguf = path.extension() == Some(OsStr::new("gguf"));
        #[cfg(feature = "hub")]
        if !path.exists()
            && let Some(name) = path.to_str().and_then(HubName::parse)
            && (name.pick.is_some() || !is_gguf)
        {
            return Ok(Source::Hub(name));
        }
        let path = path.to_path_buf();
        if !is_gguf && !path.exists() {
            return Err(CheckpointError::NoFolder { path });
        }
        match files::container(&path)? {
            Some(Container::Gguf) => Ok(Source::Gguf(path)),
            Some(Container::Ggml) => Err(CheckpointError::Ggml { path }),
            // Its reader says what it found.
            None if is_gguf => Ok(Source::Gguf(path)),
            None => Err(CheckpointError::NotAModel { path }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Folder(path) | Source::Gguf(path) => path.display().fmt(f),
            #[cfg(feature = "hub")]
            Source::Hub(name) => name.fmt(f),
            Source::Demo => f.write_str("demonstration model"),
        }
    }
}
