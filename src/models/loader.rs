//! From a checkpoint to tensors: in bounded pieces, types as stored or quantised on the device.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, ROW_ALIGN, Recorder, Tensor};
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

/// Makes tensors of a checkpoint, or draws them. Matrices keep the type they are stored in unless they are to be
/// quantised; vectors (norms, biases), which are a thousandth of a model, become F32 so that one kernel reads them all.
///
/// Tensors are allocated when they are asked for, and filled by [`Loader::upload`]: so all names and shapes are
/// checked before anything is uploaded, and kernels compile meanwhile.
pub struct Loader<'a> {
    gpu: &'a Gpu,
    weights: &'a Weights,
    quantize: Option<Dtype>,
    taken: HashSet<String>,
    uploads: Vec<Upload<'a>>,
}

/// A tensor that waits for its content.
struct Upload<'a> {
    tensor: Tensor,
    /// Type of what is written; if the tensor is quantised, of what is quantised.
    written: Dtype,
    source: Source<'a>,
}

enum Source<'a> {
    /// Entries one below the other.
    Stacked(Vec<&'a Entry>),
    /// Stored as `[n_cols, n_rows]`.
    Transposed(&'a Entry),
    /// Drawn with this mean and deviation.
    Random { mean: f32, scale: f32 },
}

impl<'a> Loader<'a> {
    /// A loader onto one device, which quantises matrices to `quantize` (only on a device of our own).
    pub fn new(gpu: &'a Gpu, weights: &'a Weights, quantize: Option<Dtype>) -> Self {
        Loader { gpu, weights, quantize, taken: HashSet::new(), uploads: Vec::new() }
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.gpu
    }

    /// Whether the checkpoint has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.weights.get(name).is_some() || self.weights.random_dtype().is_some()
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
        self.stacked(&[(name, n_rows)], n_cols, target)
    }

    /// A matrix that is not quantised, `[n_rows, n_cols]`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn as_stored(&mut self, name: &str, [n_rows, n_cols]: [usize; 2]) -> Result<Tensor, WeightsError> {
        self.stacked(&[(name, n_rows)], n_cols, None)
    }

    /// The weights of a convolution over rows, stored as `[n_out, n_in, width]`, as a matrix `[n_out, n_in·width]` that is
    /// not quantised.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn convolution(
        &mut self,
        name: &str,
        [n_out, n_in, width]: [usize; 3],
    ) -> Result<Tensor, WeightsError> {
        if self.weights.random_dtype().is_some() {
            return self.as_stored(name, [n_out, n_in * width]);
        }
        let entry = self.entry(name, &[n_out, n_in, width])?;
        let dtype = dtype_of(entry)?;
        self.later(name, [n_out, n_in * width], dtype, dtype, Source::Stacked(vec![entry]))
    }

    /// Matrices of the same width, one below the other: `[(name, n_rows)…, n_cols]`. Where their types differ
    /// they all become F32.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn stack(&mut self, parts: &[(&str, usize)], n_cols: usize) -> Result<Tensor, WeightsError> {
        self.stacked(parts, n_cols, self.quantize)
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
        let written = dtype_of(entry)?;
        let dtype = self.quantize.unwrap_or(written);
        self.later(name, [n_rows, n_cols], dtype, written, Source::Transposed(entry))
    }

    /// A vector as F32, `[1, n]`.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn vector(&mut self, name: &str, n: usize) -> Result<Tensor, WeightsError> {
        self.vectors(&[(name, n)])
    }

    /// Vectors one after the other as F32, `[1, n + …]`; zeros where the name is empty.
    ///
    /// # Errors
    /// As [`Loader::matrix`].
    pub fn vectors(&mut self, parts: &[(&str, usize)]) -> Result<Tensor, WeightsError> {
        let n_cols = parts.iter().map(|(_, n)| n).sum();
        let label = parts.iter().map(|(name, _)| *name).find(|name| !name.is_empty()).unwrap_or_default();
        if self.weights.random_dtype().is_some() {
            let mean = if label.ends_with(".bias") { 0.0 } else { 1.0 };
            let source = Source::Random { mean, scale: 0.05 };
            return self.later(label, [1, n_cols], Dtype::F32, Dtype::F32, source);
        }
        let mut values = Vec::with_capacity(n_cols);
        for (name, n) in parts {
            if name.is_empty() {
                values.resize(values.len() + n, 0.0);
                continue;
            }
            let entry = self.entry(name, &[*n])?;
            values.extend(widen(dtype_of(entry)?, self.weights.bytes(entry)));
        }
        Ok(Tensor::from_f32(self.gpu, label, [1, n_cols], &values)?)
    }

    /// Counts tensors whose names begin with `prefix` as asked for: those that a checkpoint may have and nobody needs.
    pub fn ignore(&mut self, prefix: &str) {
        let names = self.weights.entries().iter().map(|e| &e.name).filter(|name| name.starts_with(prefix));
        self.taken.extend(names.cloned());
    }

    /// Names that nothing asked for.
    pub fn unused(&self) -> Vec<&'a str> {
        let entries = self.weights.entries().iter().map(|e| e.name.as_str());
        entries.filter(|name| !self.taken.contains(*name)).collect()
    }

    /// Bytes in device memory of what was asked for so far, vectors excepted that are there already.
    pub fn device_bytes(&self) -> u64 {
        self.uploads.iter().map(|u| u.tensor.size_bytes()).sum()
    }

    fn stacked(
        &mut self,
        parts: &[(&str, usize)],
        n_cols: usize,
        target: Option<Dtype>,
    ) -> Result<Tensor, WeightsError> {
        let shape = [parts.iter().map(|(_, n)| n).sum(), n_cols];
        if let Some(dtype) = self.weights.random_dtype() {
            // A matrix keeps the size of what it is multiplied with, so that logits stay finite.
            let source = Source::Random { mean: 0.0, scale: (n_cols as f32).powf(-0.5) };
            return self.later(parts[0].0, shape, target.unwrap_or(dtype), dtype, source);
        }
        let entries =
            parts.iter().map(|(name, n)| self.entry(name, &[*n, n_cols])).collect::<Result<Vec<_>, _>>()?;
        let dtypes = entries.iter().map(|e| dtype_of(e)).collect::<Result<HashSet<_>, _>>()?;
        let common =
            if dtypes.len() == 1 { *dtypes.iter().next().unwrap_or(&Dtype::F32) } else { Dtype::F32 };
        self.later(parts[0].0, shape, target.unwrap_or(common), common, Source::Stacked(entries))
    }

    fn later(
        &mut self,
        name: &str,
        shape: [usize; 2],
        dtype: Dtype,
        written: Dtype,
        source: Source<'a>,
    ) -> Result<Tensor, WeightsError> {
        let tensor = Tensor::weights(self.gpu, name, shape, dtype)?;
        self.uploads.push(Upload { tensor: tensor.clone(), written, source });
        Ok(tensor)
    }

    /// Fills the tensors; `progress` hears of each piece.
    ///
    /// # Errors
    /// [`WeightsError::Gpu`].
    pub fn upload(self, progress: &mut dyn FnMut(Progress)) -> Result<(), WeightsError> {
        let Loader { gpu, weights, uploads, .. } = self;
        let random = uploads.iter().filter(|u| matches!(u.source, Source::Random { .. }));
        let total_bytes = weights.n_bytes() + random.map(|u| u.tensor.size_bytes() as usize).sum::<usize>();
        let mut writer = Writer {
            gpu,
            rec: None,
            staging: HashMap::new(),
            progress,
            // Vectors are there already.
            done: Progress {
                done_bytes: total_bytes - uploads.iter().map(Upload::n_bytes).sum::<usize>(),
                total_bytes,
            },
            unflushed: 0,
        };
        for upload in &uploads {
            match &upload.source {
                Source::Stacked(entries) => writer.stacked(weights, upload, entries)?,
                Source::Transposed(entry) => writer.transposed(weights, upload, entry)?,
                Source::Random { mean, scale } => writer.random(upload, *mean, *scale)?,
            }
        }
        writer.flush()
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
}

impl Upload<'_> {
    fn n_bytes(&self) -> usize {
        match &self.source {
            Source::Stacked(entries) => entries.iter().map(|e| e.n_bytes).sum(),
            Source::Transposed(entry) => entry.n_bytes,
            Source::Random { .. } => self.tensor.size_bytes() as usize,
        }
    }

    /// Bytes of a row of what is written, padding included.
    fn row_bytes(&self) -> usize {
        self.written.bytes(self.tensor.n_cols().next_multiple_of(ROW_ALIGN))
    }

    /// `rows` in pieces of about [`PIECE`] bytes, none across two bindings.
    fn pieces(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let most = (PIECE / self.row_bytes().max(1)).max(1);
        let ranges = self.tensor.ranges();
        let ranges = ranges.map(|view| view.rows.start.max(rows.start)..view.rows.end.min(rows.end));
        ranges.flat_map(|r| r.clone().step_by(most).map(move |at| at..(at + most).min(r.end))).collect()
    }
}

/// Writes pieces, and counts them.
struct Writer<'a> {
    gpu: &'a Gpu,
    rec: Option<Recorder>,
    /// Where pieces wait to be quantised, by type and width.
    staging: HashMap<(Dtype, usize), Tensor>,
    progress: &'a mut dyn FnMut(Progress),
    done: Progress,
    unflushed: usize,
}

impl Writer<'_> {
    fn stacked(
        &mut self,
        weights: &Weights,
        upload: &Upload<'_>,
        entries: &[&Entry],
    ) -> Result<(), WeightsError> {
        let n_cols = upload.tensor.n_cols();
        let padded_bytes = upload.row_bytes();
        let mut row = 0;
        for entry in entries {
            let (stored, n_rows) = (dtype_of(entry)?, entry.shape[0]);
            let bytes = weights.bytes(entry);
            let row_bytes = stored.bytes(n_cols);
            for rows in upload.pieces(row..row + n_rows) {
                let from = (rows.start - row) * row_bytes..(rows.end - row) * row_bytes;
                let piece = &bytes[from.clone()];
                let n_bytes = piece.len();
                if stored == upload.written && padded_bytes == row_bytes {
                    self.put(upload, rows, piece)?;
                } else {
                    let mut padded = vec![0; rows.len() * padded_bytes];
                    for (from, to) in piece.chunks(row_bytes).zip(padded.chunks_mut(padded_bytes)) {
                        if stored == upload.written {
                            to[..row_bytes].copy_from_slice(from);
                        } else {
                            let wide = widen(stored, from);
                            to[..4 * n_cols].copy_from_slice(bytemuck::cast_slice(&wide));
                        }
                    }
                    self.put(upload, rows, &padded)?;
                }
                weights.release(entry, from);
                self.uploaded(n_bytes)?;
            }
            row += n_rows;
        }
        Ok(())
    }

    fn transposed(
        &mut self,
        weights: &Weights,
        upload: &Upload<'_>,
        entry: &Entry,
    ) -> Result<(), WeightsError> {
        let bytes = weights.bytes(entry);
        let (n_rows, n_cols, row_bytes) =
            (upload.tensor.n_rows(), upload.tensor.n_cols(), upload.row_bytes());
        let size = upload.written.bytes(1);
        for rows in upload.pieces(0..n_rows) {
            let mut piece = vec![0; rows.len() * row_bytes];
            for c in 0..n_cols {
                let source = &bytes[(c * n_rows + rows.start) * size..][..rows.len() * size];
                for (r, element) in source.chunks(size).enumerate() {
                    piece[r * row_bytes + c * size..][..size].copy_from_slice(element);
                }
            }
            let n_bytes = rows.len() * n_cols * size;
            self.put(upload, rows, &piece)?;
            self.uploaded(n_bytes)?;
        }
        weights.release(entry, 0..bytes.len());
        Ok(())
    }

    /// Draws on the device.
    fn random(&mut self, upload: &Upload<'_>, mean: f32, scale: f32) -> Result<(), WeightsError> {
        if !self.gpu.is_owned() {
            let message = "random weights are drawn on a device of our own alone".to_string();
            return Err(GpuError::Device { message }.into());
        }
        let tensor = &upload.tensor;
        // The bytes so far tell one tensor from another.
        let seed = self.done.done_bytes as u32;
        if tensor.dtype() == upload.written {
            ops::fill_normal(self.recorder()?, tensor, seed, mean, scale);
            self.submit()?;
            return self.uploaded(tensor.size_bytes() as usize);
        }
        for rows in upload.pieces(0..tensor.n_rows()) {
            let staging = self.staging(upload, rows.len())?;
            let seed = seed.wrapping_add(rows.start as u32);
            let n_bytes = rows.len() * tensor.row_bytes();
            ops::fill_normal(self.recorder()?, &staging, seed, mean, scale);
            ops::quantize(self.recorder()?, &staging, tensor, rows.start, rows.len());
            self.submit()?;
            self.uploaded(n_bytes)?;
        }
        Ok(())
    }

    /// Writes rows, `bytes` with padding, or quantises them if the tensor is quantised.
    fn put(&mut self, upload: &Upload<'_>, rows: Range<usize>, bytes: &[u8]) -> Result<(), WeightsError> {
        if upload.tensor.dtype() == upload.written {
            upload.tensor.write(self.gpu, rows.start, bytes);
            return Ok(());
        }
        // The next piece is written to the same place: the queue keeps the order of submissions.
        let staging = self.staging(upload, rows.len())?;
        staging.write(self.gpu, 0, bytes);
        ops::quantize(self.recorder()?, &staging, &upload.tensor, rows.start, rows.len());
        self.submit()
    }

    /// Room for `n_rows` rows of a type and width.
    fn staging(&mut self, upload: &Upload<'_>, n_rows: usize) -> Result<Tensor, WeightsError> {
        let key = (upload.written, upload.tensor.n_cols());
        match self.staging.get(&key) {
            Some(staging) if staging.n_rows() >= n_rows => Ok(staging.clone()),
            _ => {
                let staging = Tensor::zeros(self.gpu, "weights to quantise", [n_rows, key.1], key.0)?;
                self.staging.insert(key, staging.clone());
                Ok(staging)
            }
        }
    }

    fn recorder(&mut self) -> Result<&mut Recorder, WeightsError> {
        let rec = match self.rec.take() {
            Some(rec) => rec,
            None => Recorder::new(self.gpu)?,
        };
        Ok(self.rec.insert(rec))
    }

    fn submit(&mut self) -> Result<(), WeightsError> {
        let Some(rec) = &mut self.rec else { return Ok(()) };
        if let Some(buffer) = rec.finish()? {
            self.gpu.submit([buffer])?;
        }
        if rec.params_are_low() {
            self.gpu.wait()?;
            rec.reset_params();
        }
        Ok(())
    }

    fn uploaded(&mut self, n: usize) -> Result<(), WeightsError> {
        self.done.done_bytes += n;
        self.unflushed += n;
        if self.unflushed >= FLUSH {
            self.flush()?;
        }
        (self.progress)(self.done);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), WeightsError> {
        if self.unflushed > 0 && self.gpu.is_owned() {
            self.unflushed = 0;
            self.gpu.submit([])?;
            self.gpu.wait()?;
        }
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
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}
