//! The resumable engine for encoders: from texts to embeddings, or to the logits of a classification head.
//!
//! A batch has whole texts: as many of the waiting ones as fit, in their order.

mod batch;
mod embedding;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::build::{Build, Built, Uploading, variants_of};
use super::loading::{Loading, n_rows, n_seqs, staging_bytes};
use super::memory::MemoryFit;
use super::model::page_width;
use super::options::{DEFAULT_CTX, DEFAULT_RECOVERY};
use super::recovery::{DeviceEvent, Health, Recovery, Survivor};
use super::self_test::{Tested, Trials};
use super::stepper::{Machine, ReadRange, Stepper};
use super::{EngineError, LoadedModel, MemoryNeed, PAGE_SIZE, RequestId};
use crate::checkpoint::{EmbeddingConfig, ModelFiles, Scoring};
use crate::dtype::Dtype;
use crate::gpu::{Caps, Depths, Gpu, GpuError, MOST_IN_FLIGHT, ROW_ALIGN, Recorder, Tensor, Tuning, Variant};
use crate::models::{
    Batch, Capacity, Labels, LoadProgress, Loader, Model, ModelKind, ModelShape, Problem, Scratch,
};
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
    /// How long to try to get a device again after a loss, as
    /// [`EngineOptions::recovery`](super::EngineOptions::recovery). `None`: a loss ends every open text with an error.
    /// Default: 60 seconds.
    pub recovery: Option<Duration>,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        EncoderOptions {
            ctx: None,
            max_seqs: 256,
            max_rows: 2048,
            quantize: None,
            kept_rows: 0,
            recovery: DEFAULT_RECOVERY,
        }
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
/// wait; a guest calls [`TextEncoder::advance`] and reads [`TextEncoder::events`]. It survives the loss of its device as
/// an engine does.
pub struct TextEncoder {
    model: Arc<LoadedModel>,
    config: EmbeddingConfig,
    scoring: Option<Scoring>,
    max_seqs: usize,
    kept_rows: usize,
    queue: Queue,
    /// What it has on the device. `None` until everything is there, and after a loss.
    live: Option<OnDevice>,
    recovery: Recovery<OnDevice>,
    next_id: u64,
    says_mean: bool,
}

/// What an encoder has on a device.
pub struct OnDevice {
    encoding: Encoding,
    stepper: Stepper<TextBatch>,
}

/// The waiting texts, and the results.
#[derive(Default)]
struct Queue {
    /// In the order of submission.
    waiting: BTreeMap<RequestId, Waiting>,
    events: Vec<Encoded>,
    /// Batches whose results have arrived.
    n_landed: u64,
}

/// The queue, and the model with its tables.
struct Texts<'a> {
    queue: &'a mut Queue,
    encoding: &'a mut Encoding,
}

/// The sizes of an encoder.
#[derive(Clone, Copy)]
struct Sizes {
    capacity: Capacity,
    /// Rows of [`TextEncoder::kept`].
    kept_rows: usize,
}

/// The model with its tables.
struct Encoding {
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
        let shape = files.architecture.shape();
        let config = files.embedding.take().unwrap_or_default();
        let scoring = files.scoring;
        let capacity = capacity(&shape, &config, &options)?;
        let Capacity { max_seqs, max_seq_len: ctx, .. } = capacity;
        let model = LoadedModel::new(gpu, files, ModelKind::Encoder, ctx, options.quantize)?;
        let model = Arc::new(model);
        let sizes = Sizes { capacity, kept_rows: options.kept_rows };
        let (own, own_config) = (model.clone(), config.clone());
        let make = move |gpu: &Gpu| TextEncoder::build(gpu, &own, &own_config, sizes);
        let recovery = Recovery::begin(gpu, options.recovery, make)?;
        let (says_mean, queue) = (!config.is_declared, Queue::default());
        Ok(Loading::new(TextEncoder {
            model,
            config,
            scoring,
            max_seqs,
            kept_rows: options.kept_rows,
            queue,
            live: None,
            recovery,
            next_id: 1,
            says_mean,
        }))
    }

    /// Allocates everything on a device, and begins to upload weights and to compile the variants of its batches.
    fn build(
        gpu: &Gpu,
        model: &LoadedModel,
        config: &EmbeddingConfig,
        sizes: Sizes,
    ) -> Result<Build<OnDevice>, EngineError> {
        let (shape, labels) = (&model.shape, model.labels.as_ref());
        let Sizes { capacity, kept_rows } = sizes;
        let Capacity { max_seqs, max_seq_len: ctx, .. } = capacity;
        fit(gpu, shape, labels, config, sizes, model.quantize, |plan, ctx, quantize| {
            model.allocate_again(plan, ctx, quantize)
        })?
        .check()?;
        let (weights, loader) = model.allocate_again(gpu, ctx, model.quantize)?;
        let (embedding, mut uploads) = Embedding::plan(gpu, config, shape.hidden_size, max_seqs)?;
        uploads.push(loader.finish());
        let widest = widest(config, shape, labels);
        let read_bytes = read_bytes(widest, max_seqs);
        let mut encoding = Encoding::new(gpu, shape, weights, embedding, capacity)?
            .with_outputs(labels, [kept_rows, widest])?;
        let mut stepper = Stepper::new(gpu, read_bytes, true)?;
        let tested = encoding.tested(stepper.recorder(), model.labels.is_some())?;
        stepper.recorder().finish()?; // parameter blocks are allocated by now, or do not fit
        Ok(Build::new(gpu, OnDevice { encoding, stepper }, Uploading::new(gpu, uploads)?, tested))
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
        let sizes = Sizes { capacity, kept_rows: options.kept_rows };
        let allocate =
            |plan: &Gpu, ctx, quantize| LoadedModel::allocate(plan, files, ModelKind::Encoder, ctx, quantize);
        fit(gpu, &shape, files.labels.as_ref(), &config, sizes, options.quantize, allocate)
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
        variants_of(&mut rec, &mut uploads, |rec| machine.batches(rec, files.labels.is_some()))
    }

    /// The model's name, for messages: the folder that it was loaded from.
    pub fn name(&self) -> &str {
        &self.model.name
    }

    /// The model's shape.
    pub fn shape(&self) -> &ModelShape {
        &self.model.shape
    }

    /// The device; after a loss the lost one, until everything is on another.
    pub fn gpu(&self) -> &Gpu {
        self.recovery.gpu()
    }

    /// Whether the encoder has a device that works.
    pub fn health(&self) -> Health {
        self.recovery.health()
    }

    /// What has happened to the device since the last call. It is logged, too.
    pub fn device_events(&mut self) -> Vec<DeviceEvent> {
        self.recovery.events()
    }

    /// Goes on with another device, as [`Engine::replace_device`](super::Engine::replace_device).
    pub fn replace_device(&mut self, gpu: &Gpu) {
        self.uninstall();
        self.recovery.replace(gpu);
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
        self.max_seqs
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
    /// lost for good. After an error, nothing has been queued.
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
        if row >= self.kept_rows {
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
    /// row: by those command buffers of [`TextEncoder::advance`] that compute it. After a loss there is none until the
    /// encoder is on another device, where it is another tensor, without the rows of texts that are done.
    pub fn kept(&self) -> Option<&Tensor> {
        self.live.as_ref()?.encoding.kept.as_ref()
    }

    fn queue(&mut self, text: Waiting) -> Result<RequestId, EngineError> {
        let Waiting { token_ids, types, output, .. } = &text;
        let output = *output;
        assert!(types.is_empty() || types.len() == token_ids.len(), "one type for each token");
        self.check()?;
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
        let is_single = |labels: &Labels| labels.problem == Problem::SingleLabel;
        if output == Output::Probabilities && !self.labels().is_some_and(is_single) {
            let expected = "`Logits`: the checkpoint's labels do not exclude each other";
            return Err(EngineError::Parameter { name: "output", found: "`Probabilities`".into(), expected });
        }
        if output == Output::Embedding && std::mem::take(&mut self.says_mean) {
            log::info!("`{}` has no `modules.json`: using mean pooling and normalisation", self.name());
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.queue.waiting.insert(id, text);
        Ok(id)
    }

    /// Cancels a waiting text. If its batch has begun, the result still comes.
    pub fn cancel(&mut self, id: RequestId) {
        self.queue.waiting.remove(&id);
    }

    /// Whether no text waits or runs, and no result is in flight.
    pub fn is_idle(&self) -> bool {
        self.queue.waiting.is_empty() && self.live.as_ref().is_none_or(|live| live.stepper.is_idle())
    }

    /// The stepper with its machine, if everything is on a device.
    fn parts(&mut self) -> Option<(&mut Stepper<TextBatch>, Texts<'_>)> {
        let TextEncoder { queue, live, .. } = self;
        let OnDevice { encoding, stepper } = live.as_mut()?;
        Some((stepper, Texts { queue, encoding }))
    }

    /// Checks that the device works, or that another one is to follow.
    fn check(&mut self) -> Result<(), EngineError> {
        let checked = match &self.live {
            Some(live) => live.stepper.check(),
            None => return self.recovery.check(),
        };
        self.survive(checked)
    }

    /// Records work for about `budget` of device time, at least one dispatch or piece of one, and returns the command
    /// buffers to submit, in order. Empty if two slices are in flight already or there is nothing to do. Never waits.
    ///
    /// What a dispatch takes is learnt from the device's timestamps. Slices are made so short that 99 of 100 exceed their
    /// budget by at most 20 % on a device whose times for the same work vary by a third, unless the budget is shorter than
    /// [`TextEncoder::smallest_slice`]. Where times vary more, as on a busy software device, budgets are exceeded by more. A kind of
    /// dispatch that was never measured has a call of its own.
    ///
    /// All of them must be submitted, because later recordings depend on them.
    ///
    /// # Errors
    /// [`EngineError::Gpu`]: with [`GpuError::Dropped`] if a command buffer was dropped instead of submitted, which ends all
    /// that is open.
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        let advanced = match self.parts() {
            Some((stepper, mut machine)) => stepper.advance(&mut machine, budget),
            None => return self.rebuild(budget),
        };
        self.survive(advanced)
    }

    /// The longest time of what cannot be cut, as measured so far: a dispatch, or the smallest piece of one. Shorter budgets
    /// of [`TextEncoder::advance`] are exceeded, but every call still makes progress. A guest's first budget that is too short is
    /// reported as a warning. `None` until something was measured.
    pub fn smallest_slice(&self) -> Option<Duration> {
        match &self.live {
            Some(live) => live.stepper.smallest_slice(),
            None => self.recovery.smallest_slice(),
        }
    }

    /// The device's times of the slices that have finished since the last call, in order; the last 64, if there were more.
    /// Each is what one command buffer of [`TextEncoder::advance`] took by the device's timestamps. A host's device that has none
    /// gives no times.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        match &mut self.live {
            Some(live) => live.stepper.slice_times(),
            None => self.recovery.slice_times(),
        }
    }

    /// What the last [`TextEncoder::advance`] left of its budget, as predicted.
    pub(super) fn left(&self) -> Duration {
        self.live.as_ref().map_or_else(|| self.recovery.left(), |live| live.stepper.left())
    }

    /// The results since the last call, in no particular order. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] if the device is lost for good. The results from before come first, with an error for each
    /// text that was open.
    pub fn events(&mut self) -> Result<Vec<Encoded>, EngineError> {
        let collected = match self.parts() {
            Some((stepper, mut machine)) => {
                let collected = stepper.collect(&mut machine);
                self.survive(collected)
            }
            None => self.recovery.check(),
        };
        self.events_or(collected)
    }

    /// The results, or if there are none, what has happened.
    fn events_or(&mut self, result: Result<(), EngineError>) -> Result<Vec<Encoded>, EngineError> {
        let events = std::mem::take(&mut self.queue.events);
        if events.is_empty() { result.map(|()| events) } else { Ok(events) }
    }

    /// Submits the next slices to our own queue, or waits for the oldest slice in flight if there is nothing to submit,
    /// and returns results. Call it until [`TextEncoder::is_idle`].
    ///
    /// # Errors
    /// As [`TextEncoder::events`]; [`GpuError::Adopted`] on an adopted device, where only the host submits. In that case
    /// nothing has been recorded.
    pub fn pump(&mut self) -> Result<Vec<Encoded>, EngineError> {
        self.gpu().check_owned()?;
        let pumped = match self.parts() {
            Some((stepper, mut machine)) => {
                let pumped = stepper.pump(&mut machine);
                self.survive(pumped)
            }
            None => self.rebuild_pumping(),
        };
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
fn read_bytes(widest: usize, max_seqs: usize) -> u64 {
    (max_seqs * Dtype::F32.bytes(widest.next_multiple_of(ROW_ALIGN))) as u64
}

/// What a load would take. `allocate` plans the weights for a context and a quantised type.
fn fit(
    gpu: &Gpu,
    shape: &ModelShape,
    labels: Option<&Labels>,
    config: &EmbeddingConfig,
    Sizes { capacity, kept_rows }: Sizes,
    quantize: Option<Dtype>,
    allocate: impl Fn(&Gpu, usize, Option<Dtype>) -> Result<(Arc<dyn Model>, Loader), EngineError>,
) -> Result<MemoryFit, EngineError> {
    let Capacity { max_rows, max_seqs, max_seq_len: ctx, .. } = capacity;
    MemoryFit::new(gpu, ctx, quantize, |ctx, quantize| {
        let plan = gpu.plan();
        let (weights, loader) = allocate(&plan, ctx, quantize)?;
        let weights_bytes = plan.counts().live_bytes;
        let capacity = Capacity { max_rows: max_rows.max(ctx), max_seq_len: ctx, ..capacity };
        let (embedding, _) = Embedding::plan(&plan, config, shape.hidden_size, max_seqs)?;
        let widest = widest(config, shape, labels);
        let mut encoding = Encoding::new(&plan, shape, weights, embedding, capacity)?
            .with_outputs(labels, [kept_rows, widest])?;
        let mut stepper = Stepper::<TextBatch>::new(&plan, read_bytes(widest, max_seqs), true)?;
        let _tested = encoding.tested(stepper.recorder(), labels.is_some())?;
        let scratch_bytes = plan.counts().live_bytes - weights_bytes;
        let staging_bytes = staging_bytes(gpu, &loader)?;
        Ok(MemoryNeed { weights_bytes, cache_bytes: 0, scratch_bytes, staging_bytes })
    })
}

impl Survivor for TextEncoder {
    type Parts = OnDevice;

    fn recovery(&self) -> &Recovery<OnDevice> {
        &self.recovery
    }

    fn recovery_mut(&mut self) -> &mut Recovery<OnDevice> {
        &mut self.recovery
    }

    fn install(&mut self, Built { mut parts, self_test, .. }: Built<OnDevice>) {
        let OnDevice { encoding, stepper } = &mut parts;
        stepper.begin(&mut Texts { queue: &mut self.queue, encoding }, self_test);
        self.live = Some(parts);
    }

    fn uninstall(&mut self) -> u64 {
        if let Some(OnDevice { stepper, .. }) = self.live.take() {
            let batches = stepper.take_back().into_iter();
            self.queue.waiting.extend(batches.flat_map(|batch| batch.ids.into_iter().zip(batch.texts)));
        }
        self.queue.n_landed
    }

    fn abandon(&mut self, error: &GpuError) {
        for id in std::mem::take(&mut self.queue.waiting).into_keys() {
            self.queue.events.push(Encoded { id, values: Err(error.clone().into()) });
        }
    }
}

impl Machine for Texts<'_> {
    type Work = TextBatch;

    /// The texts of the next batch: as many from the front as fit and want the same output.
    fn next(&mut self) -> Option<TextBatch> {
        let Texts { queue: Queue { waiting, .. }, encoding } = self;
        let (_, first) = waiting.first_key_value()?;
        let mut batch = TextBatch { output: first.output, ..TextBatch::default() };
        while let Some(next) = waiting.first_entry() {
            let fits = batch.rows.len() + next.get().token_ids.len() <= encoding.max_rows;
            if next.get().output != batch.output || !fits || batch.ids.len() == encoding.max_seqs {
                break;
            }
            let (id, text) = next.remove_entry();
            batch.push(id, text, encoding.block_rows);
        }
        Some(batch)
    }

    fn n_parts(&self, _: &TextBatch) -> usize {
        self.encoding.kv.len()
    }

    fn begin(&mut self, rec: &mut Recorder, texts: &mut TextBatch) {
        let Texts { encoding, .. } = self;
        // At most one slice is in flight, of the previous batch, so nothing reads the tables of the batch before that.
        encoding.current = (encoding.current + 1) % encoding.tables.len();
        encoding.tables[encoding.current].write(&encoding.gpu, texts);
        let both_sides = texts.rows.len() as f64 / texts.ids.len().max(1) as f64;
        rec.set_depths(Depths { prompt: both_sides, both_sides, ..Depths::default() });
    }

    fn record(
        &mut self,
        rec: &mut Recorder,
        texts: &mut TextBatch,
        part: usize,
    ) -> Result<Vec<ReadRange>, EngineError> {
        let Texts { encoding, .. } = self;
        Ok(match encoding.layers(rec, texts, part..part + 1) {
            None => Vec::new(),
            Some(result) => {
                let n_bytes = (texts.ids.len() * result.row_bytes()) as u64;
                for (text, row) in &texts.kept {
                    if let Some(kept) = &encoding.kept {
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
        self.queue.n_landed += 1;
        let [width, stride] = texts.width;
        let n_bytes = texts.ids.len() * stride * 4;
        let words: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[..n_bytes]);
        for (id, row) in texts.ids.iter().zip(words.chunks(stride)) {
            let is_finite = row[..width].iter().all(|v| v.is_finite());
            let values =
                if is_finite { Ok(row[..width].to_vec()) } else { Err(EngineError::OutputNotFinite) };
            self.queue.events.push(Encoded { id: *id, values });
        }
    }

    fn variants_changed(&mut self, rec: &Recorder) {
        self.encoding.variants_changed(rec);
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

    fn variants_changed(&mut self, rec: &Recorder) {
        self.block_rows = self.shape.block_rows(rec);
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
