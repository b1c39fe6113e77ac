//! Reading: every file of a model is opened here, once.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::CheckpointError;
use crate::file::{self, FileError};
#[cfg(feature = "hub")]
use crate::hub::{RemoteFile, RemoteModel};
use crate::weights::{TensorFile, Weights};

/// Files by name: those of a folder, on the hub, or in the binary.
#[derive(Clone, Copy)]
pub(super) enum Files<'a> {
    Folder(&'a Path),
    #[cfg(feature = "hub")]
    Remote(&'a RemoteModel),
    Embedded(&'static [(&'static str, &'static [u8])]),
}

/// The content of a file that is read into memory; it bounds the size.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// Settings in JSON. The names of 20 thousand labels, or the special tokens of a large vocabulary, take about 1 MB.
    Settings,
    /// `tokenizer.json`. A vocabulary of 256 thousand tokens takes 33 MB.
    Tokenizer,
    /// A chat template. Long ones take tens of KB.
    Template,
    /// The shard of each tensor. An entry takes about 100 bytes, and a model of many experts has 100 thousand tensors.
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

/// The content of a file.
pub(super) type Bytes = Cow<'static, [u8]>;

impl Files<'_> {
    /// The path of a file, for messages. The name may have a folder in it: `1_Pooling/config.json`.
    pub fn path(self, name: &str) -> PathBuf {
        match self {
            // Joined with an empty name it would end in a separator.
            Files::Folder(dir) if name.is_empty() => dir.to_path_buf(),
            Files::Folder(dir) => dir.join(name),
            #[cfg(feature = "hub")]
            Files::Remote(_) => name.into(),
            Files::Embedded(_) => name.into(),
        }
    }

    /// Reads a file.
    pub fn read(self, name: &str, kind: Kind) -> Result<Bytes, CheckpointError> {
        match self {
            Files::Folder(dir) => Ok(read(&dir.join(name), kind)?.into()),
            #[cfg(feature = "hub")]
            Files::Remote(model) => match model.settings.get(name) {
                Some(bytes) => Ok(bytes.clone().into()),
                None => Err(missing(name)),
            },
            Files::Embedded(files) => Ok(embedded(files, name)?.into()),
        }
    }

    /// Opens the tensors in `folder`; an empty name is the folder of the other files.
    pub fn weights(self, folder: &str) -> Result<Weights, CheckpointError> {
        let single = in_folder(folder, "model.safetensors");
        let open = |name: &str| -> Result<(PathBuf, TensorFile), CheckpointError> {
            let path = self.path(name);
            let file = match self {
                Files::Folder(_) => open(&path)?.into(),
                #[cfg(feature = "hub")]
                Files::Remote(model) => remote(model.weights.get(name).ok_or_else(|| missing(name))?),
                Files::Embedded(_) => return Err(missing(name)),
            };
            Ok((path, file))
        };
        if let Files::Embedded(files) = self {
            return Ok(Weights::from_bytes(embedded(files, &single)?)?);
        }
        if let Some(file) = optional(open(&single))? {
            return Ok(Weights::from_files([file])?);
        }
        let index = in_folder(folder, "model.safetensors.index.json");
        let Some(json) = optional(self.read(&index, Kind::Index))? else {
            return Err(CheckpointError::NoWeights { dir: self.path(folder) });
        };
        let index = Weights::index(&self.path(&index), &json)?;
        let files = index.files().into_iter().map(|name| open(&in_folder(folder, name)));
        Ok(Weights::from_shards(&index, files.collect::<Result<Vec<_>, _>>()?)?)
    }
}

/// The GGUF file at `path`, or all parts of the model that it is a part of, in their order:
/// `NAME-00001-of-00003.gguf`, …
pub(super) fn gguf_parts(path: &Path) -> Result<Vec<(PathBuf, File)>, CheckpointError> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let Some((stem, _, n)) = split_name(name) else { return Ok(vec![(path.to_path_buf(), open(path)?)]) };
    let part = |no: usize| {
        let path = path.with_file_name(format!("{stem}-{no:05}-of-{n:05}.gguf"));
        match optional(open(&path))? {
            Some(file) => Ok((path, file)),
            None => Err(CheckpointError::NoPart { path, n }),
        }
    };
    (1..=n).map(part).collect()
}

/// The parts of the name of a GGUF file that is one of several: what comes before the numbers, its number from 1, and
/// how many there are.
fn split_name(name: &str) -> Option<(&str, usize, usize)> {
    let (rest, n) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, no) = rest.rsplit_once('-')?;
    let number = |digits: &str| match digits.len() == 5 && digits.bytes().all(|b| b.is_ascii_digit()) {
        true => digits.parse::<usize>().ok(),
        false => None,
    };
    let (no, n) = (number(no)?, number(n)?);
    (1..=n).contains(&no).then_some((stem, no, n))
}

/// The only GGUF model in a folder without `config.json`, if there is one.
pub(super) fn gguf_in(dir: &Path) -> Result<Option<PathBuf>, CheckpointError> {
    if dir.join(super::CONFIG).exists() {
        return Ok(None);
    }
    let io = |source| CheckpointError::Io { path: dir.to_path_buf(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        // Later parts of a model are no models of their own.
        if name.ends_with(".gguf") && split_name(name).is_none_or(|(_, no, _)| no == 1) {
            found.push(path);
        }
    }
    found.sort();
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(CheckpointError::ManyGguf { dir: dir.to_path_buf(), found }),
    }
}

/// What a file is by its first bytes: a GGUF file, or one in ggml's format from before GGUF.
pub(super) fn container(path: &Path) -> Result<Option<Container>, CheckpointError> {
    let mut begin = Vec::new();
    let read = open(path)?.take(4).read_to_end(&mut begin);
    read.map_err(|source| CheckpointError::Io { path: path.to_path_buf(), source })?;
    Ok(match begin.as_slice() {
        b"GGUF" => Some(Container::Gguf),
        b"lmgg" => Some(Container::Ggml),
        _ => None,
    })
}

/// A container of a whole model in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Container {
    Gguf,
    Ggml,
}

/// A file in the binary.
fn embedded(files: &[(&'static str, &'static [u8])], name: &str) -> Result<&'static [u8], CheckpointError> {
    let file = files.iter().find(|(known, _)| *known == name);
    file.map(|(_, bytes)| *bytes).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> CheckpointError {
    CheckpointError::Io { path: name.into(), source: ErrorKind::NotFound.into() }
}

/// A file on the hub.
#[cfg(feature = "hub")]
pub(super) fn remote(file: &RemoteFile) -> TensorFile {
    let file = file.clone();
    TensorFile::Remote { n_bytes: file.n_bytes(), read: Box::new(move |range| file.read(range)) }
}

/// The name of a file in `folder`; an empty name is the folder of the model itself.
pub(super) fn in_folder(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}

/// Turns the error that a file does not exist into `None`.
pub(super) fn optional<T>(result: Result<T, CheckpointError>) -> Result<Option<T>, CheckpointError> {
    match result {
        Err(CheckpointError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Reads the file at `path`, without a byte order mark.
pub(super) fn read(path: &Path, kind: Kind) -> Result<Vec<u8>, CheckpointError> {
    let mut bytes = file::read(path, kind.limit_bytes()).map_err(|error| refused(path, error))?;
    log::trace!("opening `{}`", path.display());
    // All of them are text, in which an editor on Windows may have put a byte order mark.
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(CheckpointError::NotUtf8 { path: path.to_path_buf(), line: 1, at: 0 });
    }
    if bytes.starts_with(b"\xef\xbb\xbf") {
        bytes.drain(..3);
    }
    Ok(bytes)
}

/// Opens the regular file at `path`. Links are followed.
pub(super) fn open(path: &Path) -> Result<File, CheckpointError> {
    let file = file::open(path).map_err(|error| refused(path, error))?;
    log::trace!("opening `{}`", path.display());
    Ok(file)
}

fn refused(path: &Path, error: FileError) -> CheckpointError {
    let path = path.to_path_buf();
    match error {
        FileError::Io(source) => CheckpointError::Io { path, source },
        FileError::NotAFile { found } => CheckpointError::NotAFile { path, found },
        FileError::TooLarge { found_bytes, limit_bytes } => {
            CheckpointError::TooLarge { path, found_bytes, limit_bytes }
        }
    }
}
