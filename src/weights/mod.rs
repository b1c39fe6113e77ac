//! Layer 2: containers of tensors.
//!
//! [`Weights`] is an open container: names, shapes and bytes, mapped into memory. The loader of models makes device
//! tensors from it.

mod safetensors;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::dtype::Dtype;
use crate::gpu::GpuError;

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
    #[error("tensor `{name}` has type `{found}`, expected one of `F32`, `F16`, `BF16`")]
    Dtype {
        /// Its name.
        name: String,
        /// In the file.
        found: String,
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
            WeightsError::Missing { .. } | WeightsError::Shape { .. } => {
                Some("`config.json` and the weights may belong to different models".into())
            }
            WeightsError::Gpu(error) => error.hint(),
            _ => None,
        }
    }
}

/// One tensor of a checkpoint.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Type as the file names it.
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Bytes in the file.
    pub n_bytes: usize,
    file: usize,
    start: usize,
}

/// An open checkpoint.
#[derive(Debug, Default)]
pub struct Weights {
    files: Vec<Data>,
    /// Sorted by name.
    entries: Vec<Entry>,
    random: Option<Dtype>,
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

enum Data {
    Mapped(memmap2::Mmap),
    Embedded(Cow<'static, [u8]>),
}

impl std::fmt::Debug for Data {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes().len())
    }
}

impl Data {
    fn bytes(&self) -> &[u8] {
        match self {
            Data::Mapped(map) => map,
            Data::Embedded(bytes) => bytes,
        }
    }
}

impl Weights {
    /// Maps open safetensors files and reads only their headers. The paths are for messages.
    ///
    /// # Errors
    /// [`WeightsError::Io`], [`WeightsError::Format`].
    pub fn map(files: &[(PathBuf, File)]) -> Result<Weights, WeightsError> {
        let mut weights = Weights::default();
        for (path, file) in files {
            weights.map_file(path, file, |_| true)?;
        }
        Ok(weights)
    }

    /// Adds the tensors of a file whose names are `wanted`.
    fn map_file(
        &mut self,
        path: &Path,
        file: &File,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<(), WeightsError> {
        // SAFETY: the map is read-only. Shortening the file during the run only kills the process, as with every
        // mapped checkpoint.
        #[allow(unsafe_code)]
        let map = unsafe { memmap2::Mmap::map(file) };
        let map = map.map_err(|source| WeightsError::Io { path: path.to_path_buf(), source })?;
        self.add(path, Data::Mapped(map), wanted)
    }

    /// Reads the index at `path` (`model.safetensors.index.json`), which lists the shard of each tensor.
    ///
    /// # Errors
    /// [`WeightsError::Format`].
    pub fn index(path: &Path, index_json: &[u8]) -> Result<ShardIndex, WeightsError> {
        safetensors::index(path, index_json)
    }

    /// Maps the files that an index names, in the order of [`ShardIndex::files`]. A tensor that is in two files is taken
    /// from the one that the index names.
    ///
    /// # Errors
    /// As [`Weights::map`]; [`WeightsError::Format`] with a file that lacks a tensor for which the index names it.
    pub fn map_shards(index: &ShardIndex, files: &[(PathBuf, File)]) -> Result<Weights, WeightsError> {
        let mut weights = Weights::default();
        for (shard, (path, file)) in index.files().into_iter().zip(files) {
            weights
                .map_file(path, file, |tensor| index.shards.get(tensor).is_none_or(|named| named == shard))?;
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
        weights.add(Path::new("model.safetensors"), Data::Embedded(bytes.into()), |_| true)?;
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

    fn add(&mut self, path: &Path, data: Data, wanted: impl Fn(&str) -> bool) -> Result<(), WeightsError> {
        let mut entries = safetensors::entries(path, data.bytes(), self.files.len())?;
        entries.retain(|entry| wanted(&entry.name));
        self.files.push(data);
        self.entries.append(&mut entries);
        self.entries.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = self.entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            let message = format!("tensor `{}` is there twice, and no index says which counts", pair[0].name);
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
    pub(crate) fn are_equal(&self, a: &Entry, b: &Entry) -> bool {
        /// Bytes that are compared at once, and released.
        const PIECE: usize = 4 << 20;
        let mut pieces = (0..a.n_bytes).step_by(PIECE).map(|first| first..(first + PIECE).min(a.n_bytes));
        let is_equal = |range: std::ops::Range<usize>| {
            let is_equal = self.bytes(a)[range.clone()] == self.bytes(b)[range.clone()];
            self.release(a, range.clone());
            self.release(b, range);
            is_equal
        };
        a.dtype == b.dtype && a.shape == b.shape && pieces.all(is_equal)
    }

    /// Lets the system reclaim the memory of a range of a tensor's bytes, so that loading a large model does not fill
    /// the host's memory.
    pub(crate) fn release(&self, entry: &Entry, range: std::ops::Range<usize>) {
        #[cfg(unix)]
        if let Data::Mapped(map) = &self.files[entry.file] {
            // SAFETY: the map is shared and never written, so its pages can be read from the file again.
            #[allow(unsafe_code)]
            let released = unsafe {
                let advice = memmap2::UncheckedAdvice::DontNeed;
                map.unchecked_advise_range(advice, entry.start + range.start, range.len())
            };
            // This is only advice: an error does not matter.
            let _ = released;
        }
        #[cfg(not(unix))]
        let _ = (entry, range);
    }

    pub(crate) fn bytes(&self, entry: &Entry) -> &[u8] {
        // `safetensors::entries` checked the range against the file.
        &self.files[entry.file].bytes()[entry.start..entry.start + entry.n_bytes]
    }
}
