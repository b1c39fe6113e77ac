//! Reading: every file of a model is opened here, once.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::CheckpointError;
use crate::weights::Weights;

/// Files by name: those of a folder, or those in the binary.
#[derive(Clone, Copy)]
pub(super) enum Files<'a> {
    Folder(&'a Path),
    Embedded(&'static [(&'static str, &'static [u8])]),
}

/// What a file that is read into memory holds: that bounds its size.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A few settings. The largest have the names of 20 thousand labels, or the special tokens of a large vocabulary:
    /// about 1 MB.
    Settings,
    /// `tokenizer.json`. A vocabulary of 256 thousand tokens takes 33 MB.
    Tokenizer,
    /// A chat template: up to tens of KB.
    Template,
    /// Which shard has which tensor. 92 thousand tensors (an expert's matrices are three) take 9 MB.
    Index,
}

impl Kind {
    fn limit_bytes(self) -> u64 {
        match self {
            Kind::Settings => 16 << 20,
            Kind::Tokenizer => 128 << 20,
            Kind::Template => 1 << 20,
            Kind::Index => 64 << 20,
        }
    }
}

/// What is in a file.
pub(super) type Bytes = Cow<'static, [u8]>;

impl Files<'_> {
    /// What messages call the file `name`, which may be in a folder of its own: `1_Pooling/config.json`.
    pub fn path(self, name: &str) -> PathBuf {
        match self {
            // A path that ends in a separator reads badly.
            Files::Folder(dir) if name.is_empty() => dir.to_path_buf(),
            Files::Folder(dir) => dir.join(name),
            Files::Embedded(_) => name.into(),
        }
    }

    /// Reads a file.
    pub fn read(self, name: &str, kind: Kind) -> Result<Bytes, CheckpointError> {
        match self {
            Files::Folder(dir) => Ok(read(&dir.join(name), kind)?.into()),
            Files::Embedded(_) => Ok(self.embedded(name)?.into()),
        }
    }

    /// The tensors in `folder`, or beside the other files if that is empty.
    pub fn weights(self, folder: &str) -> Result<Weights, CheckpointError> {
        let single = in_folder(folder, "model.safetensors");
        let Files::Folder(dir) = self else { return Ok(Weights::from_bytes(self.embedded(&single)?)?) };
        let open = |name: &str| {
            let path = dir.join(name);
            open(&path).map(|file| (path, file))
        };
        if let Some(file) = optional(open(&single))? {
            return Ok(Weights::map(&[file])?);
        }
        let index = in_folder(folder, "model.safetensors.index.json");
        let Some(json) = optional(self.read(&index, Kind::Index))? else {
            return Err(CheckpointError::NoWeights { dir: self.path(folder) });
        };
        let names = Weights::shards(&self.path(&index), &json)?;
        let files = names.iter().map(|name| open(&in_folder(folder, name)));
        Ok(Weights::map(&files.collect::<Result<Vec<_>, _>>()?)?)
    }

    /// A file in the binary.
    pub fn embedded(self, name: &str) -> Result<&'static [u8], CheckpointError> {
        let files = if let Files::Embedded(files) = self { files } else { &[] };
        let file = files.iter().find(|(known, _)| *known == name);
        let missing = || CheckpointError::Io { path: name.into(), source: ErrorKind::NotFound.into() };
        file.map(|(_, bytes)| *bytes).ok_or_else(missing)
    }
}

/// The name of the file `name` in `folder`, which is empty for those that are in none.
pub(super) fn in_folder(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}

/// `None` instead of the error that there is no such file.
pub(super) fn optional<T>(result: Result<T, CheckpointError>) -> Result<Option<T>, CheckpointError> {
    match result {
        Err(CheckpointError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Reads the file at `path`.
pub(super) fn read(path: &Path, kind: Kind) -> Result<Vec<u8>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    let limit_bytes = kind.limit_bytes();
    let check = |found_bytes| match found_bytes > limit_bytes {
        true => Err(CheckpointError::TooLarge { path: path.to_path_buf(), found_bytes, limit_bytes }),
        false => Ok(()),
    };
    let file = open(path)?;
    let n_bytes = file.metadata().map_err(io)?.len();
    check(n_bytes)?;
    let mut bytes = Vec::with_capacity(n_bytes as usize);
    // One byte more than is allowed, so that more than was announced is noticed.
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(io)?;
    check(bytes.len() as u64)?;
    Ok(bytes)
}

/// Opens the file at `path`, or the one that a link there leads to.
pub(super) fn open(path: &Path) -> Result<File, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    let check = |metadata: Metadata| match not_a_file(&metadata) {
        Some(found) => Err(CheckpointError::NotAFile { path: path.to_path_buf(), found }),
        None => Ok(()),
    };
    // Before it is opened: opening a pipe waits for someone who writes to it.
    check(std::fs::metadata(path).map_err(io)?)?;
    log::trace!("opening `{}`", path.display());
    let file = File::open(path).map_err(io)?;
    // The same once more, of what was opened: the path may lead elsewhere by now.
    check(file.metadata().map_err(io)?)?;
    Ok(file)
}

/// What is there, unless it is a regular file.
fn not_a_file(metadata: &Metadata) -> Option<&'static str> {
    if metadata.is_file() {
        return None;
    }
    if metadata.is_dir() {
        return Some("a folder");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let found = metadata.file_type();
        if found.is_fifo() {
            return Some("a named pipe");
        }
        if found.is_socket() {
            return Some("a socket");
        }
        if found.is_char_device() || found.is_block_device() {
            return Some("a device");
        }
    }
    Some("something else")
}
