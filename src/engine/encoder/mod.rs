//! The resumable machine for encoders: texts in, embeddings or the logits of a classification head out.
//!
//! A batch holds whole texts, as many of those that wait as there is room for, in the order they came.

mod batch;
mod embedding;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::load::upload_and_compile;
use super::{EngineError, PAGE_SIZE, RequestId, SLICE};
use crate::checkpoint::{EmbeddingConfig, ModelFiles};
use crate::dtype::Dtype;
use crate::gpu::{Flight, Gpu, Landed, MOST_IN_FLIGHT, ROW_ALIGN, Recorder, Tensor, Variant};
use crate::models::{
    Batch, Capacity, Labels, Loader, Model, ModelKind, ModelShape, Progress, Scratch, check_device,
};
use crate::ops::{KvLayer, Rows};
use crate::text::{TextError, Tokenizer};
use batch::{Plan, Tables};
use embedding::Embedding;

/// Longest text that is allocated for unless asked for, as for language models.
const DEFAULT_CTX: usize = 4096;

/// How large a [`TextEncoder`] is built. Everything is allocated then, nothing later.
#[derive(Clone, Debug)]
pub struct EncoderOptions {
    /// Tokens of a text; what the model was made for, at most 4,096, without.
    pub ctx: Option<usize>,
    /// Texts of a batch.
    pub max_seqs: usize,
    /// Tokens of a batch; at least one text's.
    pub max_rows: usize,
    /// Type that matrices are quantised to while they are loaded: `Q8_0`, `Q4_0` or `Q4_K`; as they are stored without.
    pub quantize: Option<Dtype>,
}

impl Default for EncoderOptions {
    fn default() -> Self {
        EncoderOptions { ctx: None, max_seqs: 256, max_rows: 2048, quantize: None }
    }
}

/// What is wanted of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Output {
    /// Its embedding.
    #[default]
    Embedding,
    /// The logits of the classification head.
    Logits,
}

/// A result.
#[derive(Debug)]
pub struct Encoded {
    /// Whose.
    pub id: RequestId,
    /// The embedding, or one logit a label; [`EngineError::OutputNotFinite`] if that is no number.
    pub values: Result<Vec<f32>, EngineError>,
}

/// A text that waits for its batch.
#[derive(Debug)]
struct Waiting {
    id: RequestId,
    token_ids: Vec<u32>,
    output: Output,
}

/// Part of a batch that was recorded and has not finished.
struct Slice {
    /// The texts whose results it completes.
    ids: Vec<RequestId>,
    /// Values of each: read, and padded to.
    width: [usize; 2],
    n_layers: usize,
    n_rows: usize,
}

/// A batch that is being recorded, and the layer that comes next.
struct Recording {
    plan: Plan,
    layer: usize,
}

/// The model with its tables: what a batch's recording needs.
struct Forward {
    model: Arc<dyn Model>,
    n_layers: usize,
    embedding: Embedding,
    /// One scratch cache, the same for all layers: each reads what it wrote itself, and no other does.
    kv: Vec<KvLayer>,
    /// Page `i` of the text that is named `s` is `s + i`: `[n_pages, 1]`.
    pages: Tensor,
    /// One for each batch that can be under way, taken in turn.
    tables: [Tables; MOST_IN_FLIGHT],
}

/// Runs texts through one encoder. Like [`Engine`](super::Engine) it never waits unless [`TextEncoder::run`] or
/// [`TextEncoder::pump`] is asked to; a guest calls [`TextEncoder::advance`] and reads [`TextEncoder::events`].
pub struct TextEncoder {
    gpu: Gpu,
    name: String,
    shape: ModelShape,
    labels: Option<Labels>,
    tokenizer: Result<Tokenizer, TextError>,
    config: EmbeddingConfig,
    ctx: usize,
    max_seqs: usize,
    max_rows: usize,
    block_rows: usize,
    forward: Forward,
    scratch: Scratch,
    /// The tables of the batch that was begun last.
    current: usize,
    rec: Recorder,
    flight: Flight<Slice>,
    waiting: VecDeque<Waiting>,
    recording: Option<Recording>,
    events: Vec<Encoded>,
    next_id: u64,
    /// Moving average: milliseconds a layer and row.
    row_ms: f64,
    unused_tensors: Vec<String>,
    weights_bytes: u64,
    says_mean: bool,
}

impl TextEncoder {
    /// Loads an encoder and allocates everything; `progress` hears of the weights on their way. On an adopted device
    /// as [`Engine::load`](super::Engine::load).
    ///
    /// # Errors
    /// [`EngineError`] names the file, tensor or limit.
    pub fn load(
        gpu: &Gpu,
        files: ModelFiles,
        options: EncoderOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<TextEncoder, EngineError> {
        files.expect(ModelKind::Encoder)?;
        let (shape, config) = (files.architecture.shape(), files.embedding.clone().unwrap_or_default());
        check_device(&shape, gpu.caps())?;
        let tokenizer = files.tokenizer.clone();
        match tokenizer.as_ref().map(Tokenizer::vocab_size) {
            Ok(found) if found > shape.vocab_size => {
                return Err(EngineError::TokenizerMismatch { tokenizer: found, model: shape.vocab_size });
            }
            _ => {}
        }
        let wrong = |name, found: String, expected| Err(EngineError::Parameter { name, found, expected });
        if let Some(found) = options.quantize.filter(|dtype| !dtype.is_quantised()) {
            return wrong("quantize", found.to_string(), "`Q8_0`, `Q4_0` or `Q4_K`");
        }
        if let Some(found) = options.quantize.filter(|_| !gpu.is_owned()) {
            let expected = "none on an adopted device: quantising needs submissions";
            return wrong("quantize", found.to_string(), expected);
        }
        let made_for = config.max_seq_length.unwrap_or(usize::MAX).min(shape.max_seq_len);
        let ctx = options.ctx.unwrap_or(made_for.min(DEFAULT_CTX));
        if ctx == 0 || ctx > shape.max_seq_len {
            let expected = "at least 1 and no more than the positions of the model";
            return wrong("ctx", ctx.to_string(), expected);
        }
        for (name, n) in [("max_seqs", options.max_seqs), ("max_rows", options.max_rows)] {
            if n == 0 {
                return wrong(name, n.to_string(), "at least 1");
            }
        }
        let (max_seqs, max_rows) = (options.max_seqs, options.max_rows.max(ctx));
        let capacity = Capacity { max_rows, max_seqs, max_sampled: max_seqs, max_seq_len: ctx };

        let mut loader = Loader::new(gpu, &files.weights, options.quantize);
        let model: Arc<dyn Model> = files.architecture.load(&mut loader, ctx)?.into();
        let scratch = model.scratch(gpu, capacity)?;
        let unused_tensors = loader.unused().into_iter().map(str::to_string).collect();
        let weights_bytes = loader.device_bytes();
        let embedding = Embedding::load(gpu, &config, shape.hidden_size, max_seqs)?;

        let n_pages = batch::n_pages(max_rows, max_seqs);
        let kv_width = PAGE_SIZE * shape.hidden_size;
        let kv = KvLayer::new(gpu, 0, n_pages, kv_width, Dtype::F32)?;
        let pages: Vec<u32> = (0..n_pages as u32).collect();
        let forward = Forward {
            model,
            n_layers: shape.n_layers(),
            embedding,
            kv: vec![kv; shape.n_layers()],
            pages: Tensor::from_u32(gpu, "pages", [n_pages, 1], &pages)?,
            tables: [Tables::new(gpu, max_rows, max_seqs)?, Tables::new(gpu, max_rows, max_seqs)?],
        };
        let labels = files.labels.clone();
        let n_labels = labels.as_ref().map_or(0, |labels| labels.names.len());
        let widest = config.width(shape.hidden_size).max(n_labels);
        let slot_bytes = (max_seqs * Dtype::F32.bytes(widest.next_multiple_of(ROW_ALIGN))) as u64;
        let mut this = TextEncoder {
            gpu: gpu.clone(),
            name: files.name.clone(),
            labels,
            tokenizer,
            ctx,
            max_seqs,
            max_rows,
            block_rows: shape.attention.iter().map(|a| a.block_rows(gpu.caps())).min().unwrap_or(1),
            forward,
            scratch,
            current: 0,
            rec: Recorder::new(gpu)?,
            flight: Flight::new(gpu, slot_bytes)?,
            waiting: VecDeque::new(),
            recording: None,
            events: Vec::new(),
            next_id: 1,
            // A first guess, low enough for one layer a slice until something was measured.
            row_ms: SLICE.as_secs_f64() * 1e3,
            unused_tensors,
            weights_bytes,
            says_mean: !config.is_declared,
            config,
            shape,
        };
        let variants = this.variants();
        upload_and_compile(gpu, loader, &variants, progress)?;
        Ok(this)
    }

    /// Every variant that batches of this encoder use: few rows share weights in fewer, large products take large tiles.
    fn variants(&mut self) -> Vec<Variant> {
        let outputs = match self.labels {
            Some(_) => &[Output::Embedding, Output::Logits][..],
            None => &[Output::Embedding],
        };
        let (forward, max_seqs, max_rows) = (&self.forward, self.max_seqs, self.max_rows);
        let s = &mut self.scratch;
        self.rec.variants(|rec| {
            for n_rows in [1, 2, 3, 7, 15, max_rows] {
                for output in outputs {
                    let plan = Plan {
                        output: *output,
                        rows: vec![[0, 0]; n_rows.min(max_rows)],
                        blocks: vec![[0, 1]],
                        spans: vec![[0, 1]; n_rows.min(max_seqs)],
                        ..Plan::default()
                    };
                    let batch = forward.batch(&plan, 0);
                    forward.model.embed(rec, &batch, s);
                    (0..forward.n_layers).for_each(|i| forward.model.layer(i, rec, &batch, s));
                    forward.result(rec, &plan, 0, s);
                }
            }
        })
    }

    /// Where the model came from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's shape.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The tokenizer, if the checkpoint has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref().ok()
    }

    /// Turns a text into the ids that [`TextEncoder::submit`] takes, as the model expects them: in lower case if it
    /// wants that, with the tokens around it, cut to the model's length. Returns the ids, and how many of the text's were
    /// cut.
    ///
    /// # Errors
    /// [`EngineError::Text`]: there is no tokenizer, or it cannot split the text.
    pub fn tokenize(&self, text: &str) -> Result<(Vec<u32>, usize), EngineError> {
        let tokenizer = self.tokenizer.as_ref().map_err(Clone::clone)?;
        let text = match self.config.do_lower_case {
            true => text.to_lowercase().into(),
            false => std::borrow::Cow::Borrowed(text),
        };
        Ok(tokenizer.encode_cut(&text, self.ctx)?)
    }

    /// The labels of the classification head, if there is one.
    pub fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }

    /// How rows become embeddings.
    pub fn embedding(&self) -> &EmbeddingConfig {
        &self.config
    }

    /// Values of an embedding.
    pub fn embedding_width(&self) -> usize {
        self.config.width(self.shape.hidden_size)
    }

    /// Tokens that a text may have, those around it included.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Texts that a batch holds.
    pub fn max_seqs(&self) -> usize {
        self.max_seqs
    }

    /// Tensors of the checkpoint that the architecture did not ask for.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused_tensors
    }

    /// Bytes that its matrices take in device memory.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// Queues a text. Its result carries the id.
    ///
    /// # Errors
    /// [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`], [`EngineError::TokenRange`],
    /// [`EngineError::Parameter`] if the checkpoint has no classification head: nothing was queued then.
    pub fn submit(&mut self, token_ids: Vec<u32>, output: Output) -> Result<RequestId, EngineError> {
        let vocab_size = self.shape.vocab_size;
        if token_ids.is_empty() {
            return Err(EngineError::EmptyPrompt);
        }
        if token_ids.len() > self.ctx {
            return Err(EngineError::PromptTooLong { found: token_ids.len(), expected: self.ctx });
        }
        if let Some(position) = token_ids.iter().position(|t| *t as usize >= vocab_size) {
            return Err(EngineError::TokenRange { token: token_ids[position], position, vocab_size });
        }
        if output == Output::Logits && self.labels.is_none() {
            let expected = "`Embedding`: the checkpoint has no classification head";
            return Err(EngineError::Parameter { name: "output", found: "`Logits`".into(), expected });
        }
        if output == Output::Embedding && std::mem::take(&mut self.says_mean) {
            log::info!("`{}` has no `modules.json`: taking the mean of all tokens, with length 1", self.name);
        }
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.waiting.push_back(Waiting { id, token_ids, output });
        Ok(id)
    }

    /// Takes back a text that waits; the result of one whose batch has begun still comes.
    pub fn cancel(&mut self, id: RequestId) {
        self.waiting.retain(|text| text.id != id);
    }

    /// Whether nothing waits, runs or is on its way back.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.recording.is_none() && self.flight.is_empty()
    }

    /// Records work for about `budget` of the device's time, at least one layer, and returns it for submission, in
    /// order. Empty when two slices are in flight already or there is nothing to do. Never waits.
    ///
    /// Everything returned must be submitted: later recordings build on it.
    ///
    /// # Errors
    /// [`EngineError::Gpu`].
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.collect()?;
        let mut left_ms = budget.as_secs_f64() * 1e3;
        let mut buffers = Vec::new();
        while self.flight.has_room(MOST_IN_FLIGHT) {
            let recording = match self.recording.take() {
                Some(recording) => recording,
                None if self.rec.params_are_low() && !self.flight.is_empty() => break,
                None => {
                    if self.rec.params_are_low() {
                        self.rec.reset_params();
                    }
                    match self.plan() {
                        Some(plan) => Recording { plan, layer: 0 },
                        None => break,
                    }
                }
            };
            let layer_ms = self.row_ms * recording.plan.rows.len() as f64;
            if !buffers.is_empty() && left_ms < layer_ms {
                self.recording = Some(recording); // the next call goes on with it
                break;
            }
            let n_layers = (left_ms / layer_ms).max(1.0) as usize;
            left_ms -= self.record(recording, n_layers) as f64 * layer_ms;
            buffers.extend(self.rec.finish()?);
        }
        Ok(buffers)
    }

    /// Results that have come since the last call, in no order. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] if the device is lost.
    pub fn events(&mut self) -> Result<Vec<Encoded>, EngineError> {
        self.collect()?;
        Ok(std::mem::take(&mut self.events))
    }

    /// Submits the next slices to our own queue, and waits for the oldest in flight if there was nothing to submit.
    /// Returns results; all have come once [`TextEncoder::is_idle`] says so.
    ///
    /// # Errors
    /// [`EngineError::Gpu`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, whose host
    /// submits: nothing was recorded then.
    pub fn pump(&mut self) -> Result<Vec<Encoded>, EngineError> {
        self.gpu.check_owned()?;
        let buffers = self.advance(SLICE)?;
        self.flight.submit(buffers)?;
        self.events()
    }

    /// Runs until nothing is left to do.
    ///
    /// # Errors
    /// As [`TextEncoder::pump`].
    pub fn run(&mut self, mut on_result: impl FnMut(Encoded)) -> Result<(), EngineError> {
        self.gpu.check_owned()?;
        while !self.is_idle() {
            self.pump()?.into_iter().for_each(&mut on_result);
        }
        self.events()?.into_iter().for_each(&mut on_result);
        Ok(())
    }

    /// The texts of the next batch: those at the front that want the same, as many as there is room for.
    fn plan(&mut self) -> Option<Plan> {
        let mut plan = Plan { output: self.waiting.front()?.output, ..Plan::default() };
        while let Some(next) = self.waiting.front() {
            let fits = plan.rows.len() + next.token_ids.len() <= self.max_rows;
            if next.output != plan.output || !fits || plan.ids.len() == self.max_seqs {
                break;
            }
            plan.push(next, self.block_rows);
            self.waiting.pop_front();
        }
        Some(plan)
    }

    /// Records up to `n_layers` layers of a batch, and its results after the last; returns how many.
    fn record(&mut self, mut recording: Recording, n_layers: usize) -> usize {
        let first = recording.layer;
        if first == 0 {
            // At most one slice is in flight, of the batch before: nothing reads the tables of the one before that.
            self.current = (self.current + 1) % self.forward.tables.len();
        }
        let (rec, forward, current, plan) = (&mut self.rec, &self.forward, self.current, &recording.plan);
        let s = &mut self.scratch;
        if !self.gpu.is_owned() {
            // A guest sees results once a frame: only the device knows how long they took.
            rec.start_timing();
        }
        let batch = forward.batch(plan, current);
        if first == 0 {
            forward.tables[current].write(&self.gpu, plan);
            forward.model.embed(rec, &batch, s);
        }
        let last = first.saturating_add(n_layers).min(forward.n_layers);
        for i in first..last {
            forward.model.layer(i, rec, &batch, s);
        }
        let ends = last == forward.n_layers;
        // Without results the bytes are of no use but to tell that the slice is done.
        let (source, n_bytes, width) = match ends {
            false => (forward.tables[current].ends.clone(), 4, [0, 0]),
            true => {
                let result = forward.result(rec, plan, current, s);
                let n_bytes = (plan.ids.len() * result.row_bytes()) as u64;
                let width = [result.n_cols(), result.stride()];
                (result, n_bytes, width)
            }
        };
        let slice = Slice {
            ids: if ends { plan.ids.clone() } else { Vec::new() },
            width,
            n_layers: last - first,
            n_rows: plan.rows.len(),
        };
        self.flight.record(rec, &[(&source, 0, n_bytes)], slice);
        if !ends {
            recording.layer = last;
            self.recording = Some(recording);
        }
        last - first
    }

    /// Takes in finished slices.
    fn collect(&mut self) -> Result<(), EngineError> {
        self.gpu.poll()?;
        while let Some(Landed { content: slice, bytes, ms }) = self.flight.land()? {
            if slice.n_layers > 0 {
                let sample = ms / (slice.n_layers * slice.n_rows) as f64;
                // The first guess is meant to be wrong: measured values replace it quickly.
                self.row_ms += (sample - self.row_ms) * 0.5;
            }
            let [width, stride] = slice.width;
            let n_bytes = slice.ids.len() * stride * 4;
            let words: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes[..n_bytes]);
            for (id, row) in slice.ids.iter().zip(words.chunks(stride.max(1))) {
                let is_finite = row[..width].iter().all(|v| v.is_finite());
                let values =
                    if is_finite { Ok(row[..width].to_vec()) } else { Err(EngineError::OutputNotFinite) };
                self.events.push(Encoded { id: *id, values });
            }
        }
        Ok(())
    }
}

impl Forward {
    fn batch<'a>(&'a self, plan: &Plan, tables: usize) -> Batch<'a> {
        let Tables { rows, blocks, tokens, ends, .. } = &self.tables[tables];
        Batch {
            n: Rows { n_decode: 0, n_prompt: plan.rows.len() },
            n_sampled: 0,
            n_prompt_blocks: plan.blocks.len(),
            longest: 0,
            rows,
            blocks,
            tokens,
            pages: &self.pages,
            page_size: PAGE_SIZE,
            ends: Some(ends),
            clips: None,
            sampled: ends, // not read: no row gets logits over the vocabulary
            kv: &self.kv,
        }
    }

    /// Records what comes after the last layer; returns where the results will be, one row a text.
    fn result(&self, rec: &mut Recorder, plan: &Plan, tables: usize, s: &mut Scratch) -> Tensor {
        let x = self.model.rows(rec, &self.batch(plan, tables), s);
        let (spans, n_seqs) = (&self.tables[tables].spans, plan.spans.len());
        let logits = match plan.output {
            Output::Logits => self.model.classify(rec, spans, n_seqs, s),
            Output::Embedding => None,
        };
        logits.unwrap_or_else(|| self.embedding.record(rec, &x, spans, n_seqs).clone())
    }
}

impl std::fmt::Debug for TextEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextEncoder")
            .field("name", &self.name)
            .field("ctx", &self.ctx)
            .finish_non_exhaustive()
    }
}
