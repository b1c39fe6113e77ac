//! From a checkpoint to tensors: in bounded pieces, types as stored or quantised on the device.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use half::{bf16, f16};

use crate::dtype::{Dtype, SUPERBLOCK};
use crate::gpu::{Gpu, ROW_ALIGN, Recorder, Tensor};
use crate::ops;
use crate::weights::{Entry, Weights, WeightsError};

/// Bytes of weights in device memory so far, and in all.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Uploaded.
    pub done_bytes: usize,
    /// In the checkpoint.
    pub total_bytes: usize,
}

/// Bytes of one write: the driver keeps a copy of each until it is submitted.
const PIECE: usize = 4 << 20;
/// Bytes after which our own queue is flushed, so that those copies stay few.
const FLUSH: usize = 64 << 20;

/// Makes tensors of a checkpoint. Matrices keep the type they are stored in unless they are to be quantised; vectors
/// (norms, biases), which are a thousandth of a model, become F32 so that one kernel reads them all.
pub struct Loader<'a> {
    gpu: &'a Gpu,
    weights: &'a Weights,
    quantize: Option<Dtype>,
    rec: Recorder,
    /// Where pieces wait to be quantised, by type and width.
    staging: HashMap<(Dtype, usize), Tensor>,
    taken: HashSet<String>,
    progress: &'a mut dyn FnMut(Progress),
    done_bytes: usize,
    unflushed: usize,
}

impl<'a> Loader<'a> {
    /// A loader onto one device, which quantises matrices to `quantize` (only on a device of our own); `progress`
    /// hears of each piece.
    ///
    /// # Errors
    /// [`WeightsError::Gpu`].
    pub fn new(
        gpu: &'a Gpu,
        weights: &'a Weights,
        quantize: Option<Dtype>,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, WeightsError> {
        Ok(Loader {
            gpu,
            weights,
            quantize,
            rec: Recorder::new(gpu)?,
            staging: HashMap::new(),
            taken: HashSet::new(),
            progress,
            done_bytes: 0,
            unflushed: 0,
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.gpu
    }

    /// Whether the checkpoint has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(name).is_some()
    }

    /// A matrix, `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`], [`WeightsError::Dtype`], [`WeightsError::Gpu`].
    pub fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Tensor, WeightsError> {
        self.stack(&[(name, shape[0])], shape[1])
    }

    /// An embedding or a head, `[n_rows, n_cols]`: quantised to `Q8_0` at the least, because what is lost there is
    /// lost for every token (llama.cpp keeps them in 6 bits where the rest has 4).
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn table(&mut self, name: &str, [n_rows, n_cols]: [usize; 2]) -> Result<Tensor, WeightsError> {
        let target = self.quantize.map(|_| Dtype::Q8_0);
        self.load(&[(name, n_rows)], n_cols, target)
    }

    /// A matrix that is not quantised, `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn as_stored(&mut self, name: &str, [n_rows, n_cols]: [usize; 2]) -> Result<Tensor, WeightsError> {
        self.load(&[(name, n_rows)], n_cols, None)
    }

    /// Matrices of the same width, one below the other: `[(name, n_rows)…, n_cols]`. Where their types differ
    /// they all become F32.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn stack(&mut self, parts: &[(&str, usize)], n_cols: usize) -> Result<Tensor, WeightsError> {
        self.load(parts, n_cols, self.target(n_cols))
    }

    /// What matrices of this width are quantised to.
    fn target(&self, n_cols: usize) -> Option<Dtype> {
        self.quantize.map(|dtype| match dtype {
            Dtype::Q4_K if !n_cols.is_multiple_of(SUPERBLOCK) => Dtype::Q8_0,
            other => other,
        })
    }

    fn load(
        &mut self,
        parts: &[(&str, usize)],
        n_cols: usize,
        target: Option<Dtype>,
    ) -> Result<Tensor, WeightsError> {
        let entries =
            parts.iter().map(|(name, n)| self.entry(name, &[*n, n_cols])).collect::<Result<Vec<_>, _>>()?;
        let dtypes = entries.iter().map(|e| dtype_of(e)).collect::<Result<HashSet<_>, _>>()?;
        let common =
            if dtypes.len() == 1 { *dtypes.iter().next().unwrap_or(&Dtype::F32) } else { Dtype::F32 };
        let n_rows = parts.iter().map(|(_, n)| n).sum();
        let tensor = Tensor::weights(self.gpu, parts[0].0, [n_rows, n_cols], target.unwrap_or(common))?;
        let mut row = 0;
        for (entry, (_, n)) in entries.into_iter().zip(parts) {
            let stored = dtype_of(entry)?;
            let written = if target.is_some() { stored } else { common };
            let bytes = self.weights.bytes(entry);
            let row_bytes = stored.bytes(n_cols);
            let padded_bytes = written.bytes(n_cols.next_multiple_of(ROW_ALIGN));
            for rows in pieces(&tensor, row..row + n, padded_bytes) {
                let from = (rows.start - row) * row_bytes..(rows.end - row) * row_bytes;
                let piece = &bytes[from.clone()];
                if stored == written && padded_bytes == row_bytes {
                    self.put(&tensor, rows, written, piece)?;
                } else {
                    let mut padded = vec![0; rows.len() * padded_bytes];
                    for (from, to) in piece.chunks(row_bytes).zip(padded.chunks_mut(padded_bytes)) {
                        if stored == written {
                            to[..row_bytes].copy_from_slice(from);
                        } else {
                            let wide = widen(stored, from);
                            to[..4 * n_cols].copy_from_slice(bytemuck::cast_slice(&wide));
                        }
                    }
                    self.put(&tensor, rows, written, &padded)?;
                }
                let n_bytes = piece.len();
                self.weights.release(entry, from);
                self.uploaded(n_bytes)?;
            }
            row += n;
        }
        Ok(tensor)
    }

    /// A matrix that is stored as `[n_cols, n_rows]`, turned to `[n_rows, n_cols]` (GPT-2's `Conv1D`).
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn transposed(&mut self, name: &str, [n_rows, n_cols]: [usize; 2]) -> Result<Tensor, WeightsError> {
        let entry = self.entry(name, &[n_cols, n_rows])?;
        let dtype = dtype_of(entry)?;
        let bytes = self.weights.bytes(entry);
        let size = dtype.bytes(1);
        let target = self.target(n_cols).unwrap_or(dtype);
        let tensor = Tensor::weights(self.gpu, name, [n_rows, n_cols], target)?;
        let row_bytes = dtype.bytes(n_cols.next_multiple_of(ROW_ALIGN));
        for rows in pieces(&tensor, 0..n_rows, row_bytes) {
            let mut piece = vec![0; rows.len() * row_bytes];
            for c in 0..n_cols {
                let source = &bytes[(c * n_rows + rows.start) * size..][..rows.len() * size];
                for (r, element) in source.chunks(size).enumerate() {
                    piece[r * row_bytes + c * size..][..size].copy_from_slice(element);
                }
            }
            let n = rows.len();
            self.put(&tensor, rows, dtype, &piece)?;
            self.uploaded(n * n_cols * size)?;
        }
        self.weights.release(entry, 0..bytes.len());
        Ok(tensor)
    }

    /// Writes rows of a tensor, `bytes` in `dtype` with padding, or quantises them if the tensor is quantised.
    fn put(
        &mut self,
        tensor: &Tensor,
        rows: Range<usize>,
        dtype: Dtype,
        bytes: &[u8],
    ) -> Result<(), WeightsError> {
        if tensor.dtype() == dtype {
            tensor.write(self.gpu, rows.start, bytes);
            return Ok(());
        }
        let n_cols = tensor.n_cols();
        let key = (dtype, n_cols);
        let fits = self.staging.get(&key).is_some_and(|staging| staging.n_rows() >= rows.len());
        if !fits {
            let shape = [rows.len(), n_cols];
            self.staging.insert(key, Tensor::zeros(self.gpu, "weights to quantise", shape, dtype)?);
        }
        let staging = &self.staging[&key];
        staging.write(self.gpu, 0, bytes);
        ops::quantize(&mut self.rec, staging, tensor, rows.start, rows.len());
        // The next piece is written to the same place: the queue keeps the order of submissions.
        if let Some(buffer) = self.rec.finish()? {
            self.gpu.submit([buffer]);
        }
        if self.rec.params_are_low() {
            self.gpu.wait()?;
            self.rec.reset_params();
        }
        Ok(())
    }

    /// A vector as F32, `[1, n]`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Tensor, WeightsError> {
        self.vectors(&[(name, n)])
    }

    /// Vectors one after the other as F32, `[1, n + …]`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn vectors(&mut self, parts: &[(&str, usize)]) -> Result<Tensor, WeightsError> {
        let mut values = Vec::new();
        for (name, n) in parts {
            let entry = self.entry(name, &[*n])?;
            let bytes = self.weights.bytes(entry);
            values.extend(widen(dtype_of(entry)?, bytes));
            self.uploaded(bytes.len())?;
        }
        Ok(Tensor::from_f32(self.gpu, parts[0].0, [1, values.len()], &values)?)
    }

    /// Names that nothing asked for.
    pub fn unused(&self) -> Vec<&'a str> {
        let entries = self.weights.entries().iter().map(|e| e.name.as_str());
        entries.filter(|name| !self.taken.contains(*name)).collect()
    }

    fn entry(&mut self, name: &str, shape: &[usize]) -> Result<&'a Entry, WeightsError> {
        let entry = self.weights.get(name).ok_or_else(|| {
            // The same tensor of another layer shows best what the names here look like.
            let is_number = |part: &str| part.parse::<usize>().is_ok();
            let suffix =
                name.split('.').skip_while(|part| !is_number(part)).skip(1).collect::<Vec<_>>().join(".");
            let entries = self.weights.entries();
            let alike = entries
                .iter()
                .find(|e| !suffix.is_empty() && e.name.ends_with(&suffix))
                .map(|e| e.name.as_str());
            let alike = alike.or(entries.first().map(|e| e.name.as_str()));
            let like = alike.map_or(String::new(), |n| format!(", such as `{n}`"));
            WeightsError::Missing { name: name.into(), found: format!("{} tensors{like}", entries.len()) }
        })?;
        if entry.shape != shape {
            return Err(WeightsError::Shape {
                name: name.into(),
                expected: shape.to_vec(),
                found: entry.shape.clone(),
            });
        }
        self.taken.insert(name.to_string());
        Ok(entry)
    }

    fn uploaded(&mut self, n: usize) -> Result<(), WeightsError> {
        self.done_bytes += n;
        self.unflushed += n;
        if self.unflushed >= FLUSH && self.gpu.is_owned() {
            self.unflushed = 0;
            self.gpu.submit([]);
            self.gpu.wait()?;
        }
        (self.progress)(Progress { done_bytes: self.done_bytes, total_bytes: self.weights.n_bytes() });
        Ok(())
    }
}

fn dtype_of(entry: &Entry) -> Result<Dtype, WeightsError> {
    match entry.dtype.as_str() {
        "F32" => Ok(Dtype::F32),
        "F16" => Ok(Dtype::F16),
        "BF16" => Ok(Dtype::BF16),
        found => Err(WeightsError::Dtype { name: entry.name.clone(), found: found.into() }),
    }
}

/// `rows` of a tensor in pieces of about [`PIECE`] bytes where a row has `row_bytes`, none across two bindings.
fn pieces(tensor: &Tensor, rows: Range<usize>, row_bytes: usize) -> Vec<Range<usize>> {
    let most = (PIECE / row_bytes.max(1)).max(1);
    let ranges = tensor.ranges().map(|view| view.rows.start.max(rows.start)..view.rows.end.min(rows.end));
    ranges.flat_map(|r| r.clone().step_by(most).map(move |at| at..(at + most).min(r.end))).collect()
}

fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}
