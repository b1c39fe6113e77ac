//! From a checkpoint to tensors: in bounded pieces, types as stored.

use std::collections::HashSet;

use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
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

/// Makes tensors of a checkpoint. Matrices keep the type they are stored in; vectors (norms, biases),
/// which are a thousandth of a model, become F32 so that one kernel reads them all.
pub struct Loader<'a> {
    gpu: &'a Gpu,
    weights: &'a Weights,
    taken: HashSet<String>,
    progress: &'a mut dyn FnMut(Progress),
    done_bytes: usize,
    unflushed: usize,
}

impl<'a> Loader<'a> {
    /// A loader onto one device; `progress` hears of each piece.
    pub fn new(gpu: &'a Gpu, weights: &'a Weights, progress: &'a mut dyn FnMut(Progress)) -> Self {
        Loader { gpu, weights, taken: HashSet::new(), progress, done_bytes: 0, unflushed: 0 }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.gpu
    }

    /// Whether the checkpoint has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(name).is_some() || self.weights.random_dtype().is_some()
    }

    /// A matrix as stored, `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::Shape`], [`WeightsError::Dtype`], [`WeightsError::Gpu`].
    pub fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Result<Tensor, WeightsError> {
        self.stack(&[(name, shape[0])], shape[1])
    }

    /// Matrices of the same width, one below the other: `[(name, n_rows)…, n_cols]`. Where their types differ
    /// they all become F32.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn stack(&mut self, parts: &[(&str, usize)], n_cols: usize) -> Result<Tensor, WeightsError> {
        if let Some(dtype) = self.weights.random_dtype() {
            let n_rows = parts.iter().map(|(_, n)| n).sum();
            return self.random(parts[0].0, [n_rows, n_cols], dtype);
        }
        let entries =
            parts.iter().map(|(name, n)| self.entry(name, &[*n, n_cols])).collect::<Result<Vec<_>, _>>()?;
        let dtypes = entries.iter().map(|e| dtype_of(e)).collect::<Result<HashSet<_>, _>>()?;
        let dtype = if dtypes.len() == 1 { *dtypes.iter().next().unwrap_or(&Dtype::F32) } else { Dtype::F32 };
        let n_rows = parts.iter().map(|(_, n)| n).sum();
        let tensor = Tensor::weights(self.gpu, parts[0].0, [n_rows, n_cols], dtype)?;
        let mut row = 0;
        for (entry, (_, n)) in entries.into_iter().zip(parts) {
            let stored = dtype_of(entry)?;
            let bytes = self.weights.bytes(entry);
            let row_bytes = stored.bytes(n_cols);
            let rows_a_piece = (PIECE / tensor.row_bytes().max(1)).max(1);
            for (i, piece) in bytes.chunks(rows_a_piece * row_bytes).enumerate() {
                let at = row + i * rows_a_piece;
                if stored == dtype && tensor.row_bytes() == row_bytes {
                    tensor.write(self.gpu, at, piece);
                } else {
                    let mut padded = vec![0; piece.len() / row_bytes * tensor.row_bytes()];
                    for (from, to) in piece.chunks(row_bytes).zip(padded.chunks_mut(tensor.row_bytes())) {
                        if stored == dtype {
                            to[..row_bytes].copy_from_slice(from);
                        } else {
                            let wide = widen(stored, from);
                            to[..4 * n_cols].copy_from_slice(bytemuck::cast_slice(&wide));
                        }
                    }
                    tensor.write(self.gpu, at, &padded);
                }
                let start = i * rows_a_piece * row_bytes;
                self.weights.release(entry, start..start + piece.len());
                self.uploaded(piece.len())?;
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
        if self.weights.random_dtype().is_some() {
            return self.matrix(name, [n_rows, n_cols]);
        }
        let entry = self.entry(name, &[n_cols, n_rows])?;
        let dtype = dtype_of(entry)?;
        let bytes = self.weights.bytes(entry);
        let size = dtype.bytes(1);
        let tensor = Tensor::weights(self.gpu, name, [n_rows, n_cols], dtype)?;
        let rows_a_piece = (PIECE / tensor.row_bytes().max(1)).max(1);
        for first in (0..n_rows).step_by(rows_a_piece) {
            let n = rows_a_piece.min(n_rows - first);
            let mut piece = vec![0; n * tensor.row_bytes()];
            for c in 0..n_cols {
                let source = &bytes[(c * n_rows + first) * size..][..n * size];
                for (r, element) in source.chunks(size).enumerate() {
                    piece[r * tensor.row_bytes() + c * size..][..size].copy_from_slice(element);
                }
            }
            tensor.write(self.gpu, first, &piece);
            self.uploaded(n * n_cols * size)?;
        }
        self.weights.release(entry, 0..bytes.len());
        Ok(tensor)
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
        if self.weights.random_dtype().is_some() {
            let n = parts.iter().map(|(_, n)| n).sum();
            return self.random(parts[0].0, [1, n], Dtype::F32);
        }
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

    /// A tensor drawn on the device. A matrix keeps the size of what it is multiplied with, a norm's weight is
    /// about 1 and a bias about 0, so that logits stay finite through any number of layers.
    fn random(
        &mut self,
        name: &str,
        [n_rows, n_cols]: [usize; 2],
        dtype: Dtype,
    ) -> Result<Tensor, WeightsError> {
        if !self.gpu.is_owned() {
            let message = "random weights are drawn on a device of our own alone".to_string();
            return Err(GpuError::Device { message }.into());
        }
        let tensor = Tensor::weights(self.gpu, name, [n_rows, n_cols], dtype)?;
        let (mean, scale) = match (n_rows, name.ends_with(".bias")) {
            (1, false) => (1.0, 0.05),
            (1, true) => (0.0, 0.05),
            _ => (0.0, (n_cols as f32).powf(-0.5)),
        };
        let mut rec = Recorder::new(self.gpu)?;
        // The bytes so far tell one tensor from another.
        ops::fill_normal(&mut rec, &tensor, self.done_bytes as u32, mean, scale);
        self.gpu.submit(rec.finish()?);
        self.uploaded(tensor.size_bytes() as usize)?;
        Ok(tensor)
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

fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::F32 | Dtype::U32 => {
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
        }
    }
}
