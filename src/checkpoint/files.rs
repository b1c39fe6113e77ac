//! Reading files: every file of a model is opened here, once.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::CheckpointError;
use crate::weights::Weights;

/// Files by name, in a folder or in the binary.
#[derive(Clone, Copy)]
pub(super) enum Files<'a> {
    Folder(&'a Path),
    Embedded(&'static [(&'static str, &'static [u8])]),
}

/// The kind of a file that is read into memory, which limits its size.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A few settings. The largest, with the names of 20 thousand labels or the special tokens of a large vocabulary, have
    /// about 1 MB.
    Settings,
    /// `tokenizer.json`. With a vocabulary of 256 thousand tokens, it has 33 MB.
    Tokenizer,
    /// A chat template: up to tens of KB.
    Template,
    /// The index of shards. With 92 thousand tensors (an expert has three), it has 9 MB.
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

/// The contents of a file.
pub(super) type Bytes = Cow<'static, [u8]>;

impl Files<'_> {
    /// The path of the file `name` in messages. The name may contain a folder: `1_Pooling/config.json`.
    pub fn path(self, name: &str) -> PathBuf {
        match self {
            // `join` would add a separator at the end.
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

    /// The tensors in the subfolder `folder`, or those of the model itself if it is empty.
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

/// The name of the file `name` in the subfolder `folder`, which may be empty.
pub(super) fn in_folder(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}

/// Turns the error that there is no such file into `None`.
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
    // Reads one byte beyond the limit, to notice a file that is longer than its metadata.
    file.take(limit_bytes + 1).read_to_end(&mut bytes).map_err(io)?;
    check(bytes.len() as u64)?;
    Ok(bytes)
}

/// Opens the file at `path`; follows links.
pub(super) fn open(path: &Path) -> Result<File, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    let check = |metadata: Metadata| match not_a_file(&metadata) {
        Some(found) => Err(CheckpointError::NotAFile { path: path.to_path_buf(), found }),
        None => Ok(()),
    };
    // Checks before opening, because opening a named pipe waits for a writer.
    check(std::fs::metadata(path).map_err(io)?)?;
    log::trace!("opening `{}`", path.display());
    let file = File::open(path).map_err(io)?;
    // Checks the opened file again: the path may lead elsewhere by now.
    check(file.metadata().map_err(io)?)?;
    Ok(file)
}

/// The kind of a file that is not regular; `None` for a regular one.
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
