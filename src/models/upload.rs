//! The upload of weights to the device: in pieces, resumable, for a device of our own or a host's.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, MOST_IN_FLIGHT, ROW_ALIGN, Recorder, Tensor};
use crate::ops;
use crate::weights::{Entry, Order, Weights, WeightsError, ggml};

/// The progress of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadProgress {
    /// Bytes that have been uploaded, or are in the checkpoint but not needed.
    pub done_bytes: usize,
    /// Bytes of the checkpoint.
    pub total_bytes: usize,
}

/// Most bytes per write.
const PIECE: usize = 4 << 20;
/// Maximum bytes that one recording quantises. Stages of this size stay in device memory while weights are quantised.
const STAGED_PIECE: usize = 2 << 20;
/// Stages: one per recording that can wait or run at a time, including the one that is being made.
const N_STAGES: usize = MOST_IN_FLIGHT;
/// Most bytes per slice of an engine's upload: the driver keeps a copy of each piece until it has been submitted.
pub(crate) const MOST_SLICE: usize = 32 << 20;
/// Bytes per slice of [`Upload::run`].
const SLICE: usize = 8 << 20;

/// Fills a [`Loader`](super::Loader)'s tensors, slice by slice, with [`Upload::record`].
///
/// A piece that keeps its type is a write to the queue, and needs no recording. A piece that is quantised is written to
/// a stage, from which a recorded dispatch reads it. Random values are recorded dispatches.
pub struct Upload {
    weights: Arc<Weights>,
    /// Tensors that are not complete. The first one is complete up to row `row`.
    items: VecDeque<Item>,
    row: usize,
    progress: LoadProgress,
    stages: Stages,
}

/// A tensor that waits for its content.
pub(super) struct Item {
    pub tensor: Tensor,
    /// The type that is written: the tensor's, or before quantisation.
    pub written: Dtype,
    pub source: Source,
}

pub(super) enum Source {
    /// Matrices one below the other.
    Stacked(Vec<Part>),
    /// Vectors one after the other, with their lengths. `None` is zeros.
    Vectors(Vec<(Option<(Entry, Dtype)>, usize)>),
    /// Approximately normal values, with this mean and standard deviation.
    Random { seed: u32, mean: f32, scale: f32 },
}

/// A matrix of a stack.
#[derive(Clone)]
pub(super) struct Part {
    pub entry: Entry,
    /// The type it is stored in.
    pub dtype: Dtype,
    pub layout: Layout,
}

/// How a matrix is stored.
#[derive(Clone)]
pub(super) enum Layout {
    /// Row by row.
    Rows,
    /// Column by column, `[n_cols, n_rows]`. If they alternate, the columns are in the order of
    /// [`Order::Alternating`] with one head.
    Columns { alternate: bool },
    /// As transformers stores MXFP4: the entry has the blocks, `[n_rows, n_blocks, 16]`, and these are their scales,
    /// `[n_rows, n_blocks]`.
    Mxfp4 { scales: Entry },
}

impl Part {
    /// A matrix that is stored row by row.
    pub fn rows((entry, dtype): (Entry, Dtype)) -> Part {
        Part { entry, dtype, layout: Layout::Rows }
    }

    pub fn n_rows(&self) -> usize {
        self.entry.shape[usize::from(matches!(self.layout, Layout::Columns { .. }))]
    }

    /// Bytes in the file.
    pub fn n_bytes(&self) -> usize {
        let scales = if let Layout::Mxfp4 { scales } = &self.layout { scales.n_bytes } else { 0 };
        self.entry.n_bytes + scales
    }

    /// Bytes of a row that [`Part::read`] returns.
    fn row_bytes(&self) -> usize {
        self.n_bytes() / self.n_rows().max(1)
    }

    /// The bytes of rows, row by row: of MXFP4 as ggml stores it.
    fn read<'a>(&self, weights: &'a Weights, rows: Range<usize>) -> Result<Cow<'a, [u8]>, WeightsError> {
        let entry = &self.entry;
        match &self.layout {
            Layout::Rows => weights.read_rows(entry, rows),
            Layout::Columns { alternate } => {
                let order = if *alternate { Order::Alternating { n_heads: 1 } } else { Order::Plain };
                let (n_rows, n_cols, size) = (self.n_rows(), entry.shape[0], self.dtype.bytes(1));
                let mut columns = entry.clone();
                (columns.shape, columns.order) = (vec![n_rows, n_cols], order);
                let (first, end) = columns.stored_rows(rows.clone());
                let mut all = vec![0; rows.len() * n_cols * size];
                for c in 0..n_cols {
                    let column =
                        weights.read(entry, (c * n_rows + first) * size..(c * n_rows + end) * size)?;
                    for (r, row) in rows.clone().enumerate() {
                        let from = (columns.stored_row(row) - first) * size;
                        all[(r * n_cols + c) * size..][..size].copy_from_slice(&column[from..from + size]);
                    }
                }
                Ok(all.into())
            }
            Layout::Mxfp4 { scales } => {
                let blocks = weights.read_rows(entry, rows.clone())?;
                let scales = weights.read_rows(scales, rows.clone())?;
                let mut all = Vec::with_capacity(rows.len() * self.row_bytes());
                ggml::mxfp4(&blocks, &scales, &mut all);
                Ok(all.into())
            }
        }
    }
}

impl Upload {
    pub(super) fn new(gpu: &Gpu, weights: Arc<Weights>, items: Vec<Item>) -> Upload {
        let n_bytes: usize = items.iter().map(Item::n_bytes).sum();
        let total_bytes = weights.n_bytes().max(n_bytes);
        let stage_bytes = stage_bytes(gpu, &items);
        Upload {
            weights,
            items: items.into(),
            row: 0,
            progress: LoadProgress { done_bytes: total_bytes - n_bytes, total_bytes },
            stages: Stages { tensors: Vec::new(), n_bytes: stage_bytes, n_used: 0 },
        }
    }

    /// The progress so far.
    pub fn progress(&self) -> LoadProgress {
        self.progress
    }

    /// Whether everything has been written or recorded. It is in device memory once the last recording has finished.
    pub fn is_done(&self) -> bool {
        self.items.is_empty()
    }

    /// Writes and records the next pieces of at most 4 MiB: about `n_bytes` in total, at least one piece. Fewer if a
    /// stage is full or few parameter blocks are left.
    ///
    /// Each call makes one recording, which is finished ([`Recorder::finish`]) and submitted before the next. The
    /// caller:
    /// - keeps at most one earlier recording unsubmitted, because stages would be overwritten before they are read;
    /// - submits even if nothing was recorded, and waits for earlier slices from time to time: the driver keeps a copy
    ///   of written bytes until the next submission has finished, so two slices in flight take `2 · n_bytes` of host
    ///   memory;
    /// - resets the recorder ([`Recorder::reset_params`]) when its parameters are low and nothing is in flight.
    ///
    /// # Errors
    /// [`WeightsError::Io`] if the file cannot be read, [`WeightsError::Value`] with a value that cannot be quantised,
    /// [`WeightsError::Gpu`] if there is no memory for a stage. The call can be repeated.
    pub fn record(&mut self, rec: &mut Recorder, n_bytes: usize) -> Result<(), WeightsError> {
        self.record_while(rec, n_bytes, usize::MAX, || true)
    }

    /// As [`Upload::record`], with pieces of at most `piece` bytes, and no other begins unless `go_on`.
    pub(crate) fn record_while(
        &mut self,
        rec: &mut Recorder,
        n_bytes: usize,
        piece: usize,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<(), WeightsError> {
        let goal = self.progress.done_bytes.saturating_add(n_bytes);
        let mut n_staged = 0;
        while let Some(item) = self.items.front() {
            if item.is_staged() {
                if n_staged == 1 {
                    break;
                }
                n_staged += 1;
            }
            let rows = item.piece(self.row, self.stages.n_bytes, piece);
            item.record(rec, &self.weights, &mut self.stages, rows.clone())?;
            self.progress.done_bytes += item.piece_bytes(rows.clone());
            self.row = rows.end;
            if rows.end == item.tensor.n_rows() {
                self.items.pop_front();
                self.row = 0;
            }
            if self.progress.done_bytes >= goal || rec.params_are_low() || !go_on() {
                break;
            }
        }
        if self.items.is_empty() {
            self.stages.free(rec);
        }
        Ok(())
    }

    /// Records the dispatches of the first piece of each tensor, to collect their variants. Reads and writes no weights.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub(crate) fn rehearse(&mut self, rec: &mut Recorder) -> Result<(), GpuError> {
        for item in &self.items {
            let rows = item.piece(0, self.stages.n_bytes, usize::MAX);
            let stage = item.stage(rec, &mut self.stages, rows.len())?;
            item.dispatch(rec, stage.as_ref(), rows);
        }
        Ok(())
    }

    /// Uploads everything, and on a device of our own waits for it. Calls `progress` after each slice.
    ///
    /// On an adopted device, writes are queued for the host's next submission, and the driver keeps a copy of each
    /// until then. A host that submits from `progress`, even nothing, keeps these copies few.
    ///
    /// # Errors
    /// Those of [`Upload::record`]; [`GpuError::Adopted`] if weights are quantised or random on an adopted device, where the
    /// host must submit the recordings of [`Upload::record`].
    pub fn run(&mut self, gpu: &Gpu, progress: &mut dyn FnMut(LoadProgress)) -> Result<(), WeightsError> {
        if self.items.iter().any(Item::is_recorded) {
            gpu.check_owned()?;
        }
        let mut rec = Recorder::new(gpu)?;
        let mut last = None;
        while !self.is_done() {
            let buffer = gpu.scoped(|| {
                self.record(&mut rec, SLICE)?;
                Ok::<_, WeightsError>(rec.finish()?)
            })??;
            if gpu.is_owned() {
                let submission = gpu.submit(buffer)?;
                if let Some(before) = last.replace(submission) {
                    gpu.wait_for(before)?;
                }
                if rec.params_are_low() {
                    gpu.wait()?;
                    rec.reset_params();
                }
            }
            progress(self.progress);
        }
        if gpu.is_owned() {
            gpu.wait()?;
        }
        Ok(())
    }
}

impl Item {
    /// Bytes of its source, or of its random values.
    pub fn n_bytes(&self) -> usize {
        match &self.source {
            Source::Stacked(parts) => parts.iter().map(Part::n_bytes).sum(),
            Source::Vectors(parts) => parts.iter().flat_map(|(e, _)| e).map(|(e, _)| e.n_bytes).sum(),
            Source::Random { .. } => self.piece_bytes(0..self.tensor.n_rows()),
        }
    }

    /// Whether it goes through a stage.
    fn is_staged(&self) -> bool {
        self.tensor.dtype() != self.written
    }

    /// Whether it needs dispatches.
    fn is_recorded(&self) -> bool {
        self.is_staged() || matches!(self.source, Source::Random { .. })
    }

    /// Bytes per written row, with padding.
    fn row_bytes(&self) -> usize {
        self.written.bytes(self.tensor.n_cols().next_multiple_of(ROW_ALIGN))
    }

    /// The piece that begins with row `row`, of at most `n_bytes`, but at least a row. It is in one entry and one binding.
    fn piece(&self, row: usize, stage_bytes: usize, n_bytes: usize) -> Range<usize> {
        let n_rows = self.tensor.n_rows();
        let most = if self.is_staged() { stage_bytes } else { PIECE }.min(n_bytes);
        let most = match most / self.row_bytes().max(1) {
            // A piece of random values is a binding: four rows, each a multiple of 64 bytes, satisfy every device's
            // alignment.
            n if self.is_recorded() && !self.is_staged() => (n / 4 * 4).max(4),
            n => n.max(1),
        };
        let binding = self.tensor.ranges().find(|view| view.rows.contains(&row));
        let end = binding.map_or(n_rows, |view| view.rows.end);
        let end = match &self.source {
            Source::Stacked(parts) => {
                let (first, part) = part(parts, row);
                end.min(first + part.n_rows())
            }
            _ => end,
        };
        row..(row + most).min(end)
    }

    /// Bytes of the source of `rows`, or of their random values.
    fn piece_bytes(&self, rows: Range<usize>) -> usize {
        match &self.source {
            Source::Stacked(parts) => rows.len() * part(parts, rows.start).1.row_bytes(),
            Source::Vectors(_) => self.n_bytes(),
            Source::Random { .. } => rows.len() * self.tensor.row_bytes(),
        }
    }

    /// Writes or records one piece.
    fn record(
        &self,
        rec: &mut Recorder,
        weights: &Weights,
        stages: &mut Stages,
        rows: Range<usize>,
    ) -> Result<(), WeightsError> {
        let content = self.content(weights, rows.clone())?;
        if self.is_staged() {
            self.check(&content, rows.start)?;
        }
        let stage = self.stage(rec, stages, rows.len())?;
        if !matches!(self.source, Source::Random { .. }) {
            let (to, row) = self.target(stage.as_ref(), rows.start);
            to.write(rec.gpu(), row, &content);
        }
        self.dispatch(rec, stage.as_ref(), rows);
        Ok(())
    }

    /// The stage of a piece of `n_rows`, if it goes through one.
    fn stage(&self, rec: &Recorder, stages: &mut Stages, n_rows: usize) -> Result<Option<Tensor>, GpuError> {
        let shape = [n_rows, self.tensor.n_cols()];
        self.is_staged().then(|| stages.next(rec.gpu(), shape, self.written)).transpose()
    }

    /// The tensor that row `row` is written to, and the row there.
    fn target<'a>(&'a self, stage: Option<&'a Tensor>, row: usize) -> (&'a Tensor, usize) {
        stage.map_or((&self.tensor, row), |stage| (stage, 0))
    }

    /// Records the dispatches of one piece: random values, quantisation.
    fn dispatch(&self, rec: &mut Recorder, stage: Option<&Tensor>, rows: Range<usize>) {
        if let Source::Random { seed, mean, scale } = self.source {
            let (to, row) = self.target(stage, rows.start);
            // Rows of a stage count from 0 in every piece.
            let seed = seed.wrapping_add((rows.start - row) as u32);
            ops::fill_normal_rows(rec, to, row..row + rows.len(), seed, mean, scale);
        }
        if let Some(stage) = stage {
            ops::quantize(rec, stage, &self.tensor, rows.start, rows.len());
        }
    }

    /// The bytes to write for `rows`, with padding (except a vector's).
    fn content<'a>(&self, weights: &'a Weights, rows: Range<usize>) -> Result<Cow<'a, [u8]>, WeightsError> {
        let (n_cols, row_bytes) = (self.tensor.n_cols(), self.row_bytes());
        match &self.source {
            Source::Stacked(parts) => {
                let (first, part) = part(parts, rows.start);
                let (stored, stored_bytes) = (part.dtype, part.row_bytes());
                let piece = part.read(weights, rows.start - first..rows.end - first)?;
                if stored == self.written && stored_bytes == row_bytes && !stored.is_quantised() {
                    return Ok(piece);
                }
                let mut padded = vec![0; rows.len() * row_bytes];
                for (from, to) in piece.chunks(stored_bytes).zip(padded.chunks_mut(row_bytes)) {
                    match stored == self.written {
                        true => ggml::repack(stored, from, to),
                        false => to[..4 * n_cols].copy_from_slice(bytemuck::cast_slice(&widen(stored, from))),
                    }
                }
                Ok(padded.into())
            }
            Source::Vectors(parts) => {
                let mut values = Vec::with_capacity(n_cols);
                for (entry, n) in parts {
                    match entry {
                        Some((entry, stored)) => {
                            values.extend(widen(*stored, &weights.read_rows(entry, 0..*n)?));
                        }
                        None => values.resize(values.len() + n, 0.0),
                    }
                }
                Ok(bytemuck::cast_slice(&values).to_vec().into())
            }
            Source::Random { .. } => Ok(Cow::default()),
        }
    }

    /// Checks that what is written from row `row` on can be quantised. The device would make numbers of values that
    /// are none.
    fn check(&self, content: &[u8], row: usize) -> Result<(), WeightsError> {
        let expected = self.tensor.dtype().most_quantised();
        let Some(found) = first_beyond(self.written, content, expected) else { return Ok(()) };
        let name = match &self.source {
            Source::Stacked(parts) => &part(parts, row).1.entry.stored_name,
            _ => self.tensor.label(),
        };
        Err(WeightsError::Value { name: name.to_string(), found, expected })
    }
}

/// Size of a stage for `items`. Small models need a smaller one, and it must fit in one binding.
fn stage_bytes(gpu: &Gpu, items: &[Item]) -> usize {
    let most = STAGED_PIECE.min(gpu.caps().max_binding_bytes as usize);
    let staged = items.iter().filter(|item| item.is_staged());
    staged.map(|item| item.piece(0, most, usize::MAX).len() * item.row_bytes()).max().unwrap_or(0)
}

/// Most bytes that an upload of `items` takes besides their tensors: stages, and the driver's copies of what is
/// written, two slices in flight.
pub(super) fn staging_bytes(gpu: &Gpu, items: &[Item]) -> u64 {
    let written: u64 = items.iter().map(|item| (item.row_bytes() * item.tensor.n_rows()) as u64).sum();
    let copies = written.min((MOST_IN_FLIGHT * MOST_SLICE) as u64);
    (N_STAGES * stage_bytes(gpu, items)) as u64 + copies
}

/// The part with row `row` of a stack, and its first row.
fn part(parts: &[Part], row: usize) -> (usize, &Part) {
    let mut first = 0;
    for part in parts {
        if row < first + part.n_rows() {
            return (first, part);
        }
        first += part.n_rows();
    }
    unreachable!("row {row} of a stack of {first}")
}

/// Staging buffers for pieces to quantise, used in turn.
struct Stages {
    tensors: Vec<Tensor>,
    /// Size of each stage.
    n_bytes: usize,
    n_used: usize,
}

impl Stages {
    fn next(&mut self, gpu: &Gpu, shape: [usize; 2], dtype: Dtype) -> Result<Tensor, GpuError> {
        let at = self.n_used % N_STAGES;
        if at == self.tensors.len() {
            self.tensors.push(Tensor::zeros(gpu, "weights to quantise", [1, self.n_bytes / 4], Dtype::U32)?);
        }
        self.n_used += 1;
        Ok(self.tensors[at].reshaped(shape, dtype))
    }

    /// Frees the memory, as soon as the recordings have finished.
    fn free(&mut self, rec: &mut Recorder) {
        self.tensors.drain(..).for_each(|stage| rec.forget(&stage));
    }
}

fn widen(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Dtype::BF16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// The first value of `bytes` that is not a number from `-most` to `most`.
fn first_beyond(dtype: Dtype, bytes: &[u8], most: f32) -> Option<f32> {
    // Without its sign, a float's bits grow with its value, and those of infinity and NaN are the largest.
    let beyond = match dtype {
        Dtype::F16 => {
            let most = f16::from_f32(most.min(f16::MAX.to_f32())).to_bits();
            bytes.chunks_exact(2).position(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7fff > most)
        }
        Dtype::BF16 => {
            let most = (most.to_bits() >> 16) as u16;
            bytes.chunks_exact(2).position(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7fff > most)
        }
        _ => {
            let bits = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7fff_ffff;
            bytes.chunks_exact(4).position(|b| bits(b) > most.to_bits())
        }
    };
    let (size, at) = (dtype.bytes(1), beyond?);
    widen(dtype, &bytes[at * size..][..size]).first().copied()
}
