//! The resumable engine for encoders: from texts to embeddings, or to the logits of a classification head.
//!
//! A batch has whole texts: as many of the waiting ones as fit, in their order.

mod batch;
mod embedding;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::loading::{Loading, n_rows, n_seqs, staging_bytes};
use super::memory::MemoryFit;
use super::model::page_width;
use super::options::DEFAULT_CTX;
use super::self_test::{Tested, Trials};
use super::stepper::{Machine, ReadRange, Stepper};
use super::{EngineError, LoadedModel, MemoryNeed, PAGE_SIZE, RequestId};
use crate::checkpoint::{EmbeddingConfig, ModelFiles, Scoring};
use crate::dtype::Dtype;
use crate::gpu::{Caps, Depths, Gpu, GpuError, MOST_IN_FLIGHT, ROW_ALIGN, Recorder, Tensor, Tuning, Variant};
use crate::models::{Batch, Capacity, Labels, LoadProgress, Model, ModelKind, ModelShape, Problem, Scratch};
use crate::ops::{self, KvLayer, Rows};
use crate::text::{Pair, Tokenizer};
use batch::{Tables, TextBatch};
use embedding::Embedding;

/// Sizes and settings of a [`TextEncoder`]. All device memory is allocated when it is built.
#[derive(Clone, Debug)]
pub struct EncoderOptions {
    /// Longest text in tokens. Default: the model's maximum, capped at 4096.
    pub ctx: Option<usize>,
    /// Most texts in a batch.
    pub max_seqs: usize,
    /// Most tokens in a batch; at least `ctx`.
    pub max_rows: usize,
    /// Type that matrices are quantised to while loading: `Q8_0`, `Q4_0` or `Q4_K`. Default: as stored.
    pub quantize: Option<Dtype>,
    /// Rows of [`TextEncoder::kept`]. Default: 0.
    pub kept_rows: usize,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        EncoderOptions { ctx: None, max_seqs: 256, max_rows: 2048, quantize: None, kept_rows: 0 }
    }
}

/// The output for a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// The embedding.
    #[default]
    Embedding,
    /// The logits of the classification head.
    Logits,
    /// The softmax of the logits: the probabilities of labels of which exactly one holds
    /// ([`Problem::SingleLabel`]).
    Probabilities,
}

/// The result of a text.
#[derive(Debug)]
pub struct Encoded {
    /// The id that [`TextEncoder::submit`] returned.
    pub id: RequestId,
    /// The embedding, or one logit or probability per label; [`EngineError::OutputNotFinite`] if a value is not finite.
    pub values: Result<Vec<f32>, EngineError>,
}

/// A text that waits for its batch.
#[derive(Debug)]
struct Waiting {
    token_ids: Vec<u32>,
    /// Of the tokens; empty if all have the first.
    types: Vec<u32>,
    output: Output,
    /// Row of the table that stays on the device.
    kept: Option<usize>,
}

/// Runs texts through one encoder. As in [`Engine`](super::Engine), only [`TextEncoder::run`] and [`TextEncoder::pump`]
/// wait; a guest calls [`TextEncoder::advance`] and reads [`TextEncoder::events`].
pub struct TextEncoder {
    gpu: Gpu,
    model: Arc<LoadedModel>,
    config: EmbeddingConfig,
    scoring: Option<Scoring>,
    machine: Encoding,
    stepper: Stepper<TextBatch>,
    next_id: u64,
    says_mean: bool,
}

/// The waiting texts, and the model with its tables.
struct Encoding {
    /// In the order of submission.
    waiting: BTreeMap<RequestId, Waiting>,
    events: Vec<Encoded>,
    max_seqs: usize,
    max_rows: usize,
    shape: ModelShape,
    block_rows: usize,
    gpu: Gpu,
    encoder: Arc<dyn Model>,
    scratch: Scratch,
    embedding: Embedding,
    /// If exactly one label holds: `[max_seqs, n_labels]`.
    probabilities: Option<Tensor>,
    /// For the host: `[kept_rows, width of the widest output]`.
    kept: Option<Tensor>,
    /// The same cache for all layers: each layer reads only what it has written itself.
    kv: Vec<KvLayer>,
    /// `[n_pages, 1]`: page `i` of text `s` is `s + i`.
    pages: Tensor,
    /// One for each batch that can be in flight, used in turn.
    tables: [Tables; MOST_IN_FLIGHT],
    /// Index of the tables of the latest batch.
    current: usize,
}

impl TextEncoder {
    /// Loads a model and allocates everything. Calls `progress` during the upload of weights. For an adopted device see
    /// [`Engine::load`](super::Engine::load).
    ///
    /// # Errors
    /// [`EngineError`] with the file, tensor or limit.
    pub fn load(
        gpu: &Gpu,
        files: ModelFiles,
        options: EncoderOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<TextEncoder, EngineError> {
        TextEncoder::loading(gpu, files, options)?.wait(progress)
    }

    /// Starts to load a model in slices. This call checks names, shapes and limits, and allocates everything.
    ///
    /// # Errors
    /// As [`TextEncoder::load`].
    pub fn loading(
        gpu: &Gpu,
        mut files: ModelFiles,
        options: EncoderOptions,
    ) -> Result<Loading<TextEncoder>, EngineError> {
        TextEncoder::estimate(gpu, &files, options.clone())?.check()?;
        let shape = files.architecture.shape();
        let config = files.embedding.take().unwrap_or_default();
        let scoring = files.scoring;
        let capacity = capacity(&shape, &config, &options)?;
        let Capacity { max_seqs, max_seq_len: ctx, .. } = capacity;
        let read_bytes = read_bytes(&files, &config, max_seqs);
        let (model, upload) = LoadedModel::plan(gpu, files, ModelKind::Encoder, ctx, options.quantize)?;
        let (embedding, mut uploads) = Embedding::plan(gpu, &config, shape.hidden_size, max_seqs)?;
        uploads.push(upload);

        let model = Arc::new(model);
        let widest = widest(&config, &shape, model.labels.as_ref());
        let mut machine = Encoding::new(gpu, &shape, model.weights.clone(), embedding, capacity)?
            .with_outputs(model.labels.as_ref(), [options.kept_rows, widest])?;
        let mut stepper = Stepper::new(gpu, read_bytes, true)?;
        let tested = machine.tested(stepper.recorder(), model.labels.is_some())?;
        stepper.recorder().finish()?; // parameter blocks are allocated by now, or do not fit
        let says_mean = !config.is_declared;
        let mut encoder =
            TextEncoder { gpu: gpu.clone(), model, config, scoring, machine, stepper, next_id: 1, says_mean };
        Loading::new(gpu, uploads, tested, |_, self_test| {
            encoder.stepper.begin(&mut encoder.machine, self_test);
            encoder
        })
    }

    /// What [`TextEncoder::load`] would take, and whether there is memory for it. Nothing is allocated, and only the
    /// headers of the weights are read ([`ModelFiles::headers`]).
    ///
    /// # Errors
    /// As [`TextEncoder::load`], except for what only an allocation or the bytes of tensors can show.
    pub fn estimate(
        gpu: &Gpu,
        files: &ModelFiles,
        options: EncoderOptions,
    ) -> Result<MemoryFit, EngineError> {
        let shape = files.architecture.shape();
        let config = files.embedding.clone().unwrap_or_default();
        let capacity = capacity(&shape, &config, &options)?;
        let Capacity { max_rows, max_seqs, max_seq_len: ctx, .. } = capacity;
        MemoryFit::new(gpu, ctx, options.quantize, |ctx, quantize| {
            let plan = gpu.plan();
            let (weights, loader) = LoadedModel::allocate(&plan, files, ModelKind::Encoder, ctx, quantize)?;
            let weights_bytes = plan.counts().live_bytes;
            let capacity = Capacity { max_rows: max_rows.max(ctx), max_seq_len: ctx, ..capacity };
            let (embedding, _) = Embedding::plan(&plan, &config, shape.hidden_size, max_seqs)?;
            let widest = widest(&config, &shape, files.labels.as_ref());
            let mut encoding = Encoding::new(&plan, &shape, weights, embedding, capacity)?
                .with_outputs(files.labels.as_ref(), [options.kept_rows, widest])?;
            let read_bytes = read_bytes(files, &config, max_seqs);
            let mut stepper = Stepper::<TextBatch>::new(&plan, read_bytes, true)?;
            let _tested = encoding.tested(stepper.recorder(), files.labels.is_some())?;
            let scratch_bytes = plan.counts().live_bytes - weights_bytes;
            let staging_bytes = staging_bytes(gpu, &loader)?;
            Ok(MemoryNeed { weights_bytes, cache_bytes: 0, scratch_bytes, staging_bytes })
        })
    }

    /// The variants that an encoder for `files` uses on a device with `caps`, each once. `tuning` chooses among the
    /// variants of products; by default the capabilities do. Any device will do as `gpu`: nothing is allocated, compiled
    /// or run.
    ///
    /// # Errors
    /// As [`TextEncoder::load`], except for what only an allocation can show.
    pub fn variants(
        gpu: &Gpu,
        caps: &Caps,
        files: &ModelFiles,
        options: EncoderOptions,
        tuning: Option<Arc<Tuning>>,
    ) -> Result<Vec<Variant>, EngineError> {
        let plan = gpu.plan_for(caps.clone());
        let shape = files.architecture.shape();
        let config = files.embedding.clone().unwrap_or_default();
        let capacity = capacity(&shape, &config, &options)?;
        let Capacity { max_seqs, max_seq_len: ctx, .. } = capacity;
        let (weights, loader) =
            LoadedModel::allocate(&plan, files, ModelKind::Encoder, ctx, options.quantize)?;
        let (embedding, mut uploads) = Embedding::plan(&plan, &config, shape.hidden_size, max_seqs)?;
        uploads.push(loader.finish());
        let widest = widest(&config, &shape, files.labels.as_ref());
        let mut machine = Encoding::new(&plan, &shape, weights, embedding, capacity)?
            .with_outputs(files.labels.as_ref(), [options.kept_rows, widest])?;
        let mut rec = Recorder::new(&plan)?;
        rec.set_tuning(tuning);
        super::variants::of(&mut rec, &mut uploads, |rec| machine.batches(rec, files.labels.is_some()))
    }

    /// The model's name, for messages: the folder that it was loaded from.
    pub fn name(&self) -> &str {
        &self.model.name
    }

    /// The model's shape.
    pub fn shape(&self) -> &ModelShape {
        &self.model.shape
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The tokenizer, if the checkpoint has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.model.tokenizer()
    }

    /// Turns a text into the ids for [`TextEncoder::submit`]: in lower case if the model expects that, with the tokens
    /// around it, cut to [`TextEncoder::ctx`]. Returns the ids, and how many of the text's ids were cut.
    ///
    /// # Errors
    /// [`EngineError::Text`] if there is no tokenizer, or it cannot split the text.
    pub fn tokenize(&self, text: &str) -> Result<(Vec<u32>, usize), EngineError> {
        let tokenizer = self.model.tokenizer.as_ref().map_err(Clone::clone)?;
        let text = match self.config.do_lower_case {
            true => text.to_lowercase().into(),
            false => std::borrow::Cow::Borrowed(text),
        };
        Ok(tokenizer.encode_cut(&text, self.ctx())?)
    }

    /// As [`TextEncoder::tokenize`], for a pair of texts, of which the end of the longer is cut.
    ///
    /// # Errors
    /// [`EngineError::Text`] if there is no tokenizer, it has no template for pairs, or it cannot split a text.
    pub fn tokenize_pair(&self, first: &str, second: &str) -> Result<Pair, EngineError> {
        let tokenizer = self.model.tokenizer.as_ref().map_err(Clone::clone)?;
        Ok(tokenizer.encode_pair(first, second, self.ctx())?)
    }

    /// The labels of the classification head, if there is one.
    pub fn labels(&self) -> Option<&Labels> {
        self.model.labels.as_ref()
    }

    /// How it scores a text for a query, if it was made for that.
    pub fn scoring(&self) -> Option<Scoring> {
        self.scoring
    }

    /// The modules that turn rows into embeddings.
    pub fn embedding(&self) -> &EmbeddingConfig {
        &self.config
    }

    /// Length of an embedding.
    pub fn embedding_width(&self) -> usize {
        self.config.width(self.model.shape.hidden_size)
    }

    /// Longest text in tokens, including those around it.
    pub fn ctx(&self) -> usize {
        self.model.max_seq_len
    }

    /// Most texts in a batch.
    pub fn max_seqs(&self) -> usize {
        self.machine.max_seqs
    }

    /// Tensors of the checkpoint that the architecture does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.model.unused_tensors
    }

    /// Bytes of the weights in device memory.
    pub fn weights_bytes(&self) -> u64 {
        self.model.weights_bytes
    }

    /// Queues a text, and returns the id that its result has. Its tokens have the first type, if the model distinguishes
    /// the texts of a pair.
    ///
    /// # Errors
    /// As [`TextEncoder::submit_typed`].
    pub fn submit(&mut self, token_ids: Vec<u32>, output: Output) -> Result<RequestId, EngineError> {
        self.submit_typed(token_ids, Vec::new(), output)
    }

    /// As [`TextEncoder::submit`], with the type of each token ([`Pair`](crate::text::Pair)), or none.
    ///
    /// # Panics
    /// If there are types, but not as many as tokens.
    ///
    /// # Errors
    /// [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`], [`EngineError::TokenRange`];
    /// [`EngineError::Parameter`] if the checkpoint has no classification head; [`EngineError::Gpu`] if the device is
    /// lost. After an error, nothing has been queued.
    pub fn submit_typed(
        &mut self,
        token_ids: Vec<u32>,
        types: Vec<u32>,
        output: Output,
    ) -> Result<RequestId, EngineError> {
        self.queue(Waiting { token_ids, types, output, kept: None })
    }

    /// As [`TextEncoder::submit_typed`], and the values also stay in row `row` of [`TextEncoder::kept`].
    ///
    /// # Panics
    /// As [`TextEncoder::submit_typed`].
    ///
    /// # Errors
    /// As [`TextEncoder::submit_typed`]; [`EngineError::Parameter`] if there is no such row.
    pub fn submit_kept(
        &mut self,
        token_ids: Vec<u32>,
        types: Vec<u32>,
        output: Output,
        row: usize,
    ) -> Result<RequestId, EngineError> {
        if row >= self.kept().map_or(0, Tensor::n_rows) {
            let expected = "a row that the encoder was built with (`EncoderOptions::kept_rows`)";
            return Err(EngineError::Parameter { name: "row", found: row.to_string(), expected });
        }
        self.queue(Waiting { token_ids, types, output, kept: Some(row) })
    }

    /// The results of [`TextEncoder::submit_kept`] in device memory, for a shader of the host's: `[kept_rows, width]` F32,
    /// where a row begins each [`Tensor::stride`] values of [`Tensor::buffer`], which is a storage buffer. `None` if
    /// [`EncoderOptions::kept_rows`] is 0. Beyond the width of its text's output, a row has what was there before.
    ///
    /// A row is complete once the text's [`Encoded`] has come, and is overwritten by nothing but the next text with this
    /// row: by those command buffers of [`TextEncoder::advance`] that compute it.
    pub fn kept(&self) -> Option<&Tensor> {
        self.machine.kept.as_ref()
    }

    fn queue(&mut self, text: Waiting) -> Result<RequestId, EngineError> {
        let Waiting { token_ids, types, output, .. } = &text;
        let output = *output;
        assert!(types.is_empty() || types.len() == token_ids.len(), "one type for each token");
        self.stepper.check(&mut self.machine)?;
        let (vocab_size, ctx) = (self.model.shape.vocab_size, self.ctx());
        if token_ids.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if token_ids.len() > ctx {
            return Err(EngineError::PromptTooLong { found: token_ids.len(), expected: ctx });
        }
        if let Some(position) = token_ids.iter().position(|t| *t as usize >= vocab_size) {
            return Err(EngineError::TokenRange { token: token_ids[position], position, vocab_size });
        }
        if output != Output::Embedding && self.labels().is_none() {
            let expected = "`Embedding`: the checkpoint has no classification head";
            return Err(EngineError::Parameter { name: "output", found: format!("`{output:?}`"), expected });
        }
        if output == Output::Probabilities && self.machine.probabilities.is_none() {
            let expected = "`Logits`: the checkpoint's labels do not exclude each other";
            return Err(EngineError::Parameter { name: "output", found: "`Probabilities`".into(), expected });
        }
        if output == Output::Embedding && std::mem::take(&mut self.says_mean) {
            log::info!("`{}` has no `modules.json`: using mean pooling and normalisation", self.name());
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.machine.waiting.insert(id, text);
        Ok(id)
    }

    /// Cancels a waiting text. If its batch has begun, the result still comes.
    pub fn cancel(&mut self, id: RequestId) {
        self.machine.waiting.remove(&id);
    }

    /// Whether no text waits or runs, and no result is in flight.
    pub fn is_idle(&self) -> bool {
        self.machine.waiting.is_empty() && self.stepper.is_idle()
    }

    /// Records work for about `budget` of device time, at least one dispatch or piece of one, and returns the command
    /// buffers to submit, in order. Empty if two slices are in flight already or there is nothing to do. Never waits.
    ///
    /// What a dispatch takes is learnt from the device's timestamps: 99 of 100 calls exceed their budget by at most 20 %,
    /// unless it is shorter than [`TextEncoder::smallest_slice`]. A kind of dispatch that was never measured has a call of its own.
    ///
    /// All of them must be submitted, because later recordings depend on them.
    ///
    /// # Errors
    /// [`EngineError::Gpu`]: with [`GpuError::Dropped`] if a command buffer was dropped instead of submitted, which ends all
    /// that is open.
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.stepper.advance(&mut self.machine, budget)
    }

    /// The longest time of what cannot be cut, as measured so far: a dispatch, or the smallest piece of one. Shorter budgets
    /// of [`TextEncoder::advance`] are exceeded, but every call still makes progress. A guest's first budget that is too short is
    /// reported as a warning. `None` until something was measured.
    pub fn smallest_slice(&self) -> Option<Duration> {
        self.stepper.smallest_slice()
    }

    /// The device's times of the slices that have finished since the last call, in order; the last 64, if there were more.
    /// Each is what one command buffer of [`TextEncoder::advance`] took, by the device's clock: on an adopted device without
    /// timestamps there are none.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        self.stepper.slice_times()
    }

    /// What the last [`TextEncoder::advance`] left of its budget, as predicted.
    pub(super) fn left(&self) -> Duration {
        self.stepper.left()
    }

    /// The results since the last call, in no particular order. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] if the device is lost. The results from before come first, with an error for each text that
    /// was open.
    pub fn events(&mut self) -> Result<Vec<Encoded>, EngineError> {
        let collected = self.stepper.collect(&mut self.machine);
        self.events_or(collected)
    }

    /// The results, or if there are none, what has happened.
    fn events_or(&mut self, result: Result<(), EngineError>) -> Result<Vec<Encoded>, EngineError> {
        let events = std::mem::take(&mut self.machine.events);
        if events.is_empty() { result.map(|()| events) } else { Ok(events) }
    }

    /// Submits the next slices to our own queue, or waits for the oldest slice in flight if there is nothing to submit,
    /// and returns results. Call it until [`TextEncoder::is_idle`].
    ///
    /// # Errors
    /// As [`TextEncoder::events`]; [`GpuError::Adopted`] on an adopted device, where only the host submits. In that case
    /// nothing has been recorded.
    pub fn pump(&mut self) -> Result<Vec<Encoded>, EngineError> {
        self.gpu.check_owned()?;
        let pumped = self.stepper.pump(&mut self.machine);
        self.events_or(pumped)
    }

    /// Runs until all texts are done, and passes each result to `on_result`.
    ///
    /// # Errors
    /// As [`TextEncoder::pump`].
    pub fn run(&mut self, mut on_result: impl FnMut(Encoded)) -> Result<(), EngineError> {
        while !self.is_idle() {
            self.pump()?.into_iter().for_each(&mut on_result);
        }
        self.events()?.into_iter().for_each(&mut on_result);
        Ok(())
    }
}

/// The sizes of an encoder.
fn capacity(
    shape: &ModelShape,
    config: &EmbeddingConfig,
    options: &EncoderOptions,
) -> Result<Capacity, EngineError> {
    let made_for = config.max_seq_length.unwrap_or(usize::MAX).min(shape.max_seq_len);
    let ctx = options.ctx.unwrap_or(made_for.min(DEFAULT_CTX));
    if ctx == 0 || ctx > shape.max_seq_len {
        let expected = "at least 1 and no more than the positions of the model";
        return Err(EngineError::Parameter { name: "ctx", found: ctx.to_string(), expected });
    }
    let max_seqs = n_seqs("max_seqs", options.max_seqs)?;
    let max_rows = n_rows("max_rows", options.max_rows)?.max(ctx);
    Ok(Capacity { max_rows, max_seqs, max_sampled: max_seqs, max_seq_len: ctx })
}

/// The width of the widest output.
fn widest(config: &EmbeddingConfig, shape: &ModelShape, labels: Option<&Labels>) -> usize {
    config.width(shape.hidden_size).max(labels.map_or(0, |labels| labels.names.len()))
}

/// Most bytes that a batch reads back.
fn read_bytes(files: &ModelFiles, config: &EmbeddingConfig, max_seqs: usize) -> u64 {
    let widest = widest(config, &files.architecture.shape(), files.labels.as_ref());
    (max_seqs * Dtype::F32.bytes(widest.next_multiple_of(ROW_ALIGN))) as u64
}

impl Machine for Encoding {
    type Work = TextBatch;

    /// The texts of the next batch: as many from the front as fit and want the same output.
    fn next(&mut self) -> Option<TextBatch> {
        let (_, first) = self.waiting.first_key_value()?;
        let mut batch = TextBatch { output: first.output, ..TextBatch::default() };
        while let Some(next) = self.waiting.first_entry() {
            let fits = batch.rows.len() + next.get().token_ids.len() <= self.max_rows;
            if next.get().output != batch.output || !fits || batch.ids.len() == self.max_seqs {
                break;
            }
            let (id, text) = next.remove_entry();
            batch.push(id, &text, self.block_rows);
        }
        Some(batch)
    }

    fn n_parts(&self, _: &TextBatch) -> usize {
        self.kv.len()
    }

    fn begin(&mut self, rec: &mut Recorder, texts: &mut TextBatch) {
        // At most one slice is in flight, of the previous batch, so nothing reads the tables of the batch before that.
        self.current = (self.current + 1) % self.tables.len();
        self.tables[self.current].write(&self.gpu, texts);
        let both_sides = texts.rows.len() as f64 / texts.ids.len().max(1) as f64;
        rec.set_depths(Depths { prompt: both_sides, both_sides, ..Depths::default() });
    }

    fn record(
        &mut self,
        rec: &mut Recorder,
        texts: &mut TextBatch,
        part: usize,
    ) -> Result<Vec<ReadRange>, EngineError> {
        Ok(match self.layers(rec, texts, part..part + 1) {
            None => Vec::new(),
            Some(result) => {
                let n_bytes = (texts.ids.len() * result.row_bytes()) as u64;
                for (text, row) in &texts.kept {
                    if let Some(kept) = &self.kept {
                        let (from, to) = (text * result.row_bytes(), row * kept.row_bytes());
                        rec.copy(&result, from as u64, kept, to as u64, result.row_bytes() as u64);
                    }
                }
                texts.width = [result.n_cols(), result.stride()];
                vec![(result, 0, n_bytes)]
            }
        })
    }

    fn landed(&mut self, texts: TextBatch, bytes: &[u8]) {
        let [width, stride] = texts.width;
        let n_bytes = texts.ids.len() * stride * 4;
        let words: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[..n_bytes]);
        for (id, row) in texts.ids.iter().zip(words.chunks(stride)) {
            let is_finite = row[..width].iter().all(|v| v.is_finite());
            let values =
                if is_finite { Ok(row[..width].to_vec()) } else { Err(EngineError::OutputNotFinite) };
            self.events.push(Encoded { id: *id, values });
        }
    }

    fn variants_changed(&mut self, rec: &Recorder) {
        self.block_rows = self.shape.block_rows(rec);
    }

    fn abandon(&mut self, batches: Vec<TextBatch>, error: &GpuError) {
        let recorded = batches.into_iter().flat_map(|texts| texts.ids);
        let waiting = std::mem::take(&mut self.waiting).into_keys();
        for id in recorded.chain(waiting) {
            self.events.push(Encoded { id, values: Err(error.clone().into()) });
        }
    }
}

impl Encoding {
    /// Allocates everything but the weights.
    fn new(
        gpu: &Gpu,
        shape: &ModelShape,
        encoder: Arc<dyn Model>,
        embedding: Embedding,
        capacity: Capacity,
    ) -> Result<Encoding, GpuError> {
        let Capacity { max_rows, max_seqs, .. } = capacity;
        let n_pages = batch::n_pages(max_rows, max_seqs);
        let width = shape.attention.iter().map(page_width).max().unwrap_or(0);
        let kv = KvLayer::new(gpu, 0, n_pages, width, Dtype::F32)?;
        let pages: Vec<u32> = (0..n_pages as u32).collect();
        Ok(Encoding {
            waiting: BTreeMap::new(),
            events: Vec::new(),
            max_seqs,
            max_rows,
            shape: shape.clone(),
            block_rows: 1, // until `tested` knows the variants
            gpu: gpu.clone(),
            scratch: encoder.scratch(gpu, capacity)?,
            encoder,
            embedding,
            probabilities: None,
            kept: None,
            kv: vec![kv; shape.n_layers()],
            pages: Tensor::from_u32(gpu, "pages", [n_pages, 1], &pages)?,
            tables: [Tables::new(gpu, max_rows, max_seqs)?, Tables::new(gpu, max_rows, max_seqs)?],
            current: 0,
        })
    }

    /// Allocates what holds probabilities of labels, and `[kept_rows, width]` for the host.
    fn with_outputs(mut self, labels: Option<&Labels>, kept: [usize; 2]) -> Result<Encoding, GpuError> {
        if let Some(labels) = labels.filter(|labels| labels.problem == Problem::SingleLabel) {
            let shape = [self.max_seqs, labels.names.len()];
            self.probabilities = Some(Tensor::zeros(&self.gpu, "label probabilities", shape, Dtype::F32)?);
        }
        if kept[0] > 0 {
            self.kept = Some(Tensor::zeros(&self.gpu, "kept", kept, Dtype::F32)?);
        }
        Ok(self)
    }

    /// Every variant that batches of this encoder use, and their self-test.
    fn tested(&mut self, rec: &mut Recorder, has_head: bool) -> Result<Tested, GpuError> {
        let tested = Trials::plan(&rec.gpu().clone(), rec, |rec| self.batches(rec, has_head))?;
        self.variants_changed(rec);
        Ok(tested)
    }

    /// Records every kind of batch, to collect their variants: few rows share reads in smaller groups, large products
    /// take large tiles.
    fn batches(&mut self, rec: &mut Recorder, has_head: bool) {
        let outputs =
            if has_head { &[Output::Embedding, Output::Probabilities][..] } else { &[Output::Embedding] };
        let (max_seqs, max_rows, n_layers) = (self.max_seqs, self.max_rows, self.kv.len());
        for n_rows in [1, 2, 3, 7, 15, max_rows] {
            for output in outputs {
                let texts = TextBatch {
                    output: *output,
                    rows: vec![[0, 0]; n_rows.min(max_rows)],
                    blocks: vec![[0, 1]],
                    spans: vec![[0, 1]; n_rows.min(max_seqs)],
                    ..TextBatch::default()
                };
                self.layers(rec, &texts, 0..n_layers);
            }
        }
    }

    /// Records some layers of a batch. After the last one, returns the tensor of its results, one row per text.
    fn layers(&mut self, rec: &mut Recorder, texts: &TextBatch, layers: Range<usize>) -> Option<Tensor> {
        let Tables { rows, blocks, tokens, types, ends, spans } = &self.tables[self.current];
        let batch = Batch {
            n: Rows { n_decode: 0, n_prompt: texts.rows.len() },
            n_sampled: 0,
            n_prompt_blocks: texts.blocks.len(),
            longest: 0,
            rows,
            blocks,
            tokens,
            types: Some(types),
            pages: &self.pages,
            page_size: PAGE_SIZE,
            ends: Some(ends),
            clips: None,
            sampled: ends, // not read: no row gets logits over the vocabulary
            kv: &self.kv,
        };
        let (encoder, s) = (&*self.encoder, &mut self.scratch);
        if layers.start == 0 {
            encoder.embed(rec, &batch, s);
        }
        for i in layers.clone() {
            encoder.layer(i, rec, &batch, s);
        }
        if layers.end < self.kv.len() {
            return None;
        }
        let x = encoder.outputs(rec, &batch, s);
        let n_seqs = texts.spans.len();
        let logits = match texts.output {
            Output::Logits | Output::Probabilities => encoder.classify(rec, spans, n_seqs, s),
            Output::Embedding => None,
        };
        if let (Output::Probabilities, Some(z), Some(p)) = (texts.output, &logits, &self.probabilities) {
            ops::softmax(rec, z, None, false, p, n_seqs);
            return Some(p.clone());
        }
        Some(logits.unwrap_or_else(|| self.embedding.record(rec, &x, spans, n_seqs)))
    }
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextEncoder")
            .field("name", &self.name())
            .field("ctx", &self.ctx())
            .finish_non_exhaustive()
    }
}
