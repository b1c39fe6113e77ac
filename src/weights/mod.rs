//! Layer 2: containers of tensors: safetensors and GGUF.
//!
//! [`Weights`] is an open container: names, shapes, and where the bytes are. The loader of models makes device tensors
//! from it, and reads the bytes piece by piece. Nothing is mapped: a mapped file that somebody shortens kills the
//! process.

mod entry;
pub mod ggml;
pub mod gguf;
mod safetensors;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::dtype::Dtype;
use crate::gpu::GpuError;
pub use entry::{Entry, Order};

/// An error in a checkpoint's tensors.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// A file could not be read.
    #[error("`{}` cannot be read: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is not valid.
    #[error("`{}` is not a valid checkpoint: {message}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A tensor that the architecture needs is missing.
    #[error("tensor `{name}` is missing; the checkpoint has {found}")]
    Missing {
        /// Its name.
        name: String,
        /// The number of tensors, and a similar name.
        found: String,
    },
    /// A tensor's shape does not match the config.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// From the config.
        expected: Vec<usize>,
        /// In the file.
        found: Vec<usize>,
    },
    /// A tensor has a type that no kernel reads.
    #[error("tensor `{name}` has type `{found}`, expected one of {}", known_types())]
    Dtype {
        /// Its name.
        name: String,
        /// In the file.
        found: String,
    },
    /// A tensor holds a value that cannot be quantised.
    #[error("tensor `{name}` holds {found}, expected finite numbers up to {expected:e} to quantise")]
    Value {
        /// Its name.
        name: String,
        /// The first such value.
        found: f32,
        /// Largest magnitude that the quantised type holds.
        expected: f32,
    },
    /// The model was opened to be estimated.
    #[error("tensor `{name}` cannot be read: only the headers of this model are open")]
    HeadersOnly {
        /// Its name.
        name: String,
    },
    /// A device error.
    #[error(transparent)]
    Gpu(#[from] GpuError),
}

impl WeightsError {
    /// Advice for the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            WeightsError::Format { .. } => Some("the file may be incomplete: download it again".into()),
            WeightsError::Io { source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                Some("the file became shorter while it was read: wait until it is complete".into())
            }
            WeightsError::Value { .. } => {
                Some("the file may be damaged: download it again, or load it as it is stored".into())
            }
            WeightsError::Missing { .. } | WeightsError::Shape { .. } => {
                Some("the config and the weights may belong to different models".into())
            }
            WeightsError::Gpu(error) => error.hint(),
            _ => None,
        }
    }
}

fn known_types() -> String {
    Dtype::WEIGHTS.map(|dtype| format!("`{dtype}`")).join(", ")
}

/// An open checkpoint.
#[derive(Debug, Default)]
pub struct Weights {
    files: Vec<Data>,
    /// Sorted by name.
    entries: Vec<Entry>,
    random: Option<Dtype>,
    stored_names: Option<StoredNames>,
    /// Whether only the headers may be read.
    headers_only: bool,
    /// Pairs of tensors that have been compared, by file and place: a load is planned before it is made.
    compared: Mutex<BTreeMap<[(usize, usize); 2], bool>>,
}

/// Returns the name in the file of the tensor that an architecture knows by another one.
struct StoredNames(Box<StoredName>);

type StoredName = dyn Fn(&str) -> Option<String> + Send + Sync;

impl std::fmt::Debug for StoredNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredNames")
    }
}

/// The shard of each tensor: `model.safetensors.index.json`.
#[derive(Clone, Debug)]
pub struct ShardIndex {
    path: PathBuf,
    /// The file of each tensor.
    shards: BTreeMap<String, String>,
}

impl ShardIndex {
    /// The names of the files, each once.
    pub fn files(&self) -> BTreeSet<&str> {
        self.shards.values().map(String::as_str).collect()
    }
}

/// A file that tensors are read from.
pub enum TensorFile {
    /// On this machine.
    Local(File),
    /// Elsewhere.
    Remote {
        /// Size of the file.
        n_bytes: u64,
        /// Returns a range of its bytes.
        read: ReadRange,
    },
}

/// Returns a range of the bytes of a file.
pub type ReadRange = Box<dyn Fn(Range<u64>) -> std::io::Result<Vec<u8>> + Send + Sync>;

impl From<File> for TensorFile {
    fn from(file: File) -> TensorFile {
        TensorFile::Local(file)
    }
}

enum Data {
    File(PathBuf, Mutex<File>),
    Remote(PathBuf, ReadRange),
    Embedded(Cow<'static, [u8]>),
}

impl Data {
    /// A file, and its size.
    fn of(path: PathBuf, file: TensorFile) -> Result<(Data, usize), WeightsError> {
        match file {
            TensorFile::Local(file) => match file.metadata() {
                Ok(found) => Ok((Data::File(path, Mutex::new(file)), found.len() as usize)),
                Err(source) => Err(WeightsError::Io { path, source }),
            },
            TensorFile::Remote { n_bytes, read } => Ok((Data::Remote(path, read), n_bytes as usize)),
        }
    }
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Data::File(path, _) | Data::Remote(path, _) => write!(f, "`{}`", path.display()),
            Data::Embedded(bytes) => write!(f, "{} bytes", bytes.len()),
        }
    }
}

impl Data {
    /// The bytes from `start` to `end`.
    fn read(&self, Range { start, end }: Range<usize>) -> Result<Cow<'_, [u8]>, WeightsError> {
        let (path, file) = match self {
            Data::File(path, file) => (path, file),
            Data::Remote(path, read) => {
                let bytes = read(start as u64..end as u64);
                return bytes
                    .map(Cow::Owned)
                    .map_err(|source| WeightsError::Io { path: path.clone(), source });
            }
            Data::Embedded(bytes) => return Ok(Cow::Borrowed(&bytes[start..end])),
        };
        let io = |source| WeightsError::Io { path: path.clone(), source };
        // A poisoned lock is fine: every reader sets the position first.
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start as u64)).map_err(io)?;
        let mut bytes = Vec::with_capacity(end - start);
        file.by_ref().take((end - start) as u64).read_to_end(&mut bytes).map_err(io)?;
        match bytes.len() == end - start {
            true => Ok(bytes.into()),
            false => Err(io(std::io::Error::new(
                std::io::ErrorKind::UnexpectedEof,
                format!("it ends at byte {}, expected at least {end}", start + bytes.len()),
            ))),
        }
    }
}

impl Weights {
    /// Opens safetensors files, of which only the headers are read now. The paths are for messages.
    ///
    /// # Errors
    /// [`WeightsError::Io`], [`WeightsError::Format`].
    pub fn from_files(
        files: impl IntoIterator<Item = (PathBuf, impl Into<TensorFile>)>,
    ) -> Result<Weights, WeightsError> {
        let mut weights = Weights::default();
        for (path, file) in files {
            weights.open(path, file.into(), |_| true)?;
        }
        Ok(weights)
    }

    /// Adds the tensors of a file whose names are `wanted`.
    fn open(
        &mut self,
        path: PathBuf,
        file: TensorFile,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), WeightsError> {
        let (data, n_bytes) = Data::of(path.clone(), file)?;
        self.add(&path, data, n_bytes, wanted)
    }

    /// Reads the index at `path` (`model.safetensors.index.json`), which lists the shard of each tensor.
    ///
    /// # Errors
    /// [`WeightsError::Format`].
    pub fn index(path: &Path, index_json: &[u8]) -> Result<ShardIndex, WeightsError> {
        safetensors::index(path, index_json)
    }

    /// Opens the files that an index names, in the order of [`ShardIndex::files`]. A tensor that is in two files is taken
    /// from the one that the index names.
    ///
    /// # Errors
    /// As [`Weights::from_files`]; [`WeightsError::Format`] with a file that lacks a tensor for which the index names it.
    pub fn from_shards(
        index: &ShardIndex,
        files: impl IntoIterator<Item = (PathBuf, impl Into<TensorFile>)>,
    ) -> Result<Weights, WeightsError> {
        let mut weights = Weights::default();
        for (shard, (path, file)) in index.files().into_iter().zip(files) {
            weights.open(path, file.into(), |tensor| {
                index.shards.get(tensor).is_none_or(|named| named == shard)
            })?;
        }
        for (tensor, shard) in &index.shards {
            if weights.get(tensor).is_none() {
                let path = index.path.with_file_name(shard);
                let message =
                    format!("it has no tensor `{tensor}`, for which `{}` names it", index.path.display());
                return Err(WeightsError::Format { path, message });
            }
        }
        Ok(weights)
    }

    /// Opens a safetensors file in memory.
    ///
    /// # Errors
    /// [`WeightsError::Format`].
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Weights, WeightsError> {
        let mut weights = Weights::default();
        let bytes = bytes.into();
        let n_bytes = bytes.len();
        weights.add(Path::new("model.safetensors"), Data::Embedded(bytes), n_bytes, |_| true)?;
        Ok(weights)
    }

    /// Random weights instead of a checkpoint: the loader generates each tensor on the device, with matrices in
    /// `dtype`. For benchmarks, which need only a model's shape.
    pub fn random(dtype: Dtype) -> Weights {
        Weights { random: Some(dtype), ..Weights::default() }
    }

    /// The type of random matrices; `None` for a checkpoint.
    pub(crate) fn random_dtype(&self) -> Option<Dtype> {
        self.random
    }

    /// The same tensors, of which only names, types and shapes count: their bytes may not have been downloaded. A read is
    /// an error, and tensors of the same type and shape count as equal.
    pub(crate) fn headers_only(self) -> Weights {
        Weights { headers_only: true, ..self }
    }

    /// Whether only the headers may be read.
    pub(crate) fn has_only_headers(&self) -> bool {
        self.headers_only
    }

    /// Opens the GGUF files of one model, in their order, of which only the headers are read now. The paths are for
    /// messages. Also returns the metadata of the first one.
    ///
    /// # Errors
    /// [`WeightsError::Io`], [`WeightsError::Format`].
    pub fn from_gguf(
        files: impl IntoIterator<Item = (PathBuf, impl Into<TensorFile>)>,
    ) -> Result<(Weights, gguf::Metadata), WeightsError> {
        let mut weights = Weights::default();
        let mut all: Vec<gguf::Metadata> = Vec::new();
        for (path, file) in files {
            let (data, n_bytes) = Data::of(path.clone(), file.into())?;
            let (metadata, mut entries) =
                gguf::open(&path, |range| data.read(range), n_bytes, weights.files.len())?;
            weights.files.push(data);
            weights.entries.append(&mut entries);
            weights.sort(&path)?;
            all.push(metadata);
        }
        gguf::check_parts(&all, weights.entries.len())?;
        Ok((weights, all.into_iter().next().unwrap_or_default()))
    }

    /// Gives each tensor the name that `name` has for it, and says how its rows lie. `stored` is the way back, for
    /// messages about tensors that are not there.
    ///
    /// # Errors
    /// [`WeightsError::Format`] if two tensors get the same name. `path` is for the message.
    pub(crate) fn rename(
        &mut self,
        path: &Path,
        name: impl Fn(&str) -> Option<(String, Order)>,
        stored: impl Fn(&str) -> Option<String> + Send + Sync + 'static,
    ) -> Result<(), WeightsError> {
        self.stored_names = Some(StoredNames(Box::new(stored)));
        for entry in &mut self.entries {
            let Some((name, order)) = name(&entry.name) else { continue };
            entry.name = name;
            entry.order = match (order, entry.shape.first()) {
                // A matrix of another shape is refused when it is loaded.
                (Order::Alternating { n_heads }, Some(n)) if n_heads == 0 || n % (2 * n_heads) != 0 => {
                    Order::Plain
                }
                _ => order,
            };
        }
        self.sort(path)
    }

    /// The name in the file of the tensor that an architecture loads as `name`.
    pub(crate) fn stored_name(&self, name: &str) -> String {
        let stored = self.stored_names.as_ref().and_then(|stored| stored.0(name));
        stored.unwrap_or_else(|| name.to_string())
    }

    /// Adds a matrix `name` of some rows of the matrix `of`, which are read now. Of headers or random weights, only its
    /// shape counts.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`] if there are no such rows; those of [`Weights::read_rows`].
    pub(crate) fn add_rows(&mut self, name: &str, of: &str, rows: &[usize]) -> Result<(), WeightsError> {
        if self.random.is_some() {
            return Ok(());
        }
        let Some(source) = self.get(of).cloned() else {
            let found = format!("{} tensors", self.entries.len());
            return Err(WeightsError::Missing { name: self.stored_name(of), found });
        };
        let most = rows.iter().max().map_or(0, |row| row + 1);
        if source.shape.len() != 2 || source.shape[0] < most {
            let expected = vec![most, source.shape.last().copied().unwrap_or(1)];
            return Err(WeightsError::Shape { name: source.stored_name, expected, found: source.shape });
        }
        let mut bytes = Vec::with_capacity(rows.len() * source.row_bytes());
        if !self.headers_only {
            for row in rows {
                bytes.extend_from_slice(&self.read_rows(&source, *row..row + 1)?);
            }
        }
        let mut shape = source.shape.clone();
        shape[0] = rows.len();
        let n_bytes = rows.len() * source.row_bytes();
        let (order, file, name) = (Order::Plain, self.files.len(), name.to_string());
        self.files.push(Data::Embedded(bytes.into()));
        self.entries.push(Entry { name, shape, n_bytes, order, file, start: 0, ..source });
        self.entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(())
    }

    /// Forgets a tensor that no model loads.
    pub(crate) fn remove(&mut self, name: &str) {
        self.entries.retain(|entry| entry.name != name);
    }

    fn add(
        &mut self,
        path: &Path,
        data: Data,
        n_bytes: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), WeightsError> {
        let mut entries = safetensors::entries(path, |range| data.read(range), n_bytes, self.files.len())?;
        entries.retain(|entry| wanted(&entry.name));
        self.files.push(data);
        self.entries.append(&mut entries);
        self.sort(path)
    }

    fn sort(&mut self, path: &Path) -> Result<(), WeightsError> {
        self.entries.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = self.entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let name = &pair[1].stored_name;
            let message = format!("tensor `{name}` is there twice, and no index says which counts");
            return Err(WeightsError::Format { path: path.to_path_buf(), message });
        }
        Ok(())
    }

    /// All tensors, by name.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.binary_search_by(|e| e.name.as_str().cmp(name)).ok().map(|i| &self.entries[i])
    }

    /// Bytes of all tensors.
    pub fn n_bytes(&self) -> usize {
        self.entries.iter().map(|e| e.n_bytes).sum()
    }

    /// Elements of all tensors.
    pub fn n_params(&self) -> usize {
        self.entries.iter().map(|e| e.shape.iter().product::<usize>()).sum()
    }

    /// Whether two tensors have the same type, shape and bytes.
    ///
    /// # Errors
    /// As [`Weights::read`].
    pub(crate) fn are_equal(&self, a: &Entry, b: &Entry) -> Result<bool, WeightsError> {
        /// Bytes that are read at once.
        const PIECE: usize = 4 << 20;
        if a.dtype != b.dtype || a.shape != b.shape {
            return Ok(false);
        }
        if self.headers_only {
            return Ok(true);
        }
        let pair = [a, b].map(|entry| (entry.file, entry.start));
        let compared = || self.compared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = compared().get(&pair) {
            return Ok(*known);
        }
        let mut equal = true;
        for first in (0..a.n_bytes).step_by(PIECE) {
            let range = first..(first + PIECE).min(a.n_bytes);
            equal = self.read(a, range.clone())? == self.read(b, range)?;
            if !equal {
                break;
            }
        }
        compared().insert(pair, equal);
        Ok(equal)
    }

    /// Reads rows of a matrix, or elements of a vector, as they are stored, in the order of the matrix.
    ///
    /// # Errors
    /// As [`Weights::read`].
    pub(crate) fn read_rows(&self, entry: &Entry, rows: Range<usize>) -> Result<Cow<'_, [u8]>, WeightsError> {
        let n = entry.row_bytes();
        match entry.order {
            Order::Alternating { n_heads } => {
                // The rows of a head change places only among themselves.
                let head = entry.shape[0] / n_heads;
                let first = rows.start / head * head;
                let stored = self.read(entry, first * n..rows.end.next_multiple_of(head) * n)?;
                let row = |row| &stored[(entry.stored_row(row) - first) * n..][..n];
                Ok(rows.flat_map(row).copied().collect::<Vec<u8>>().into())
            }
            Order::ByHead { n_heads } => {
                // The rows of a head's queries, keys or values stay together.
                let head = entry.shape[0] / (3 * n_heads);
                let (mut row, mut bytes) = (rows.start, Vec::with_capacity(rows.len() * n));
                while row < rows.end {
                    let end = rows.end.min((row / head + 1) * head);
                    let first = entry.stored_row(row);
                    bytes.extend_from_slice(&self.read(entry, first * n..(first + end - row) * n)?);
                    row = end;
                }
                Ok(bytes.into())
            }
            Order::Plain | Order::Transposed | Order::Stacked => {
                self.read(entry, rows.start * n..rows.end * n)
            }
        }
    }

    /// Reads a range of a tensor's bytes, in the order of the file.
    ///
    /// # Errors
    /// [`WeightsError::Io`] if the file cannot be read, or has become shorter since it was opened;
    /// [`WeightsError::HeadersOnly`].
    pub(crate) fn read(&self, entry: &Entry, range: Range<usize>) -> Result<Cow<'_, [u8]>, WeightsError> {
        if self.headers_only {
            return Err(WeightsError::HeadersOnly { name: entry.name.clone() });
        }
        // The readers of the containers checked the range against the file.
        self.files[entry.file].read(entry.start + range.start..entry.start + range.end)
    }
}
