//! From a checkpoint to an engine: everything is allocated and compiled here, nothing later.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::clips::Clips;
use super::forward::{Forward, Results, SlotTables};
use super::plan::{Plan, PlanTables};
use super::{Engine, EngineError, EngineOptions, KvPages, PAGE_SIZE, RequestId, SLICE};
use crate::checkpoint::ModelFiles;
use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{Flight, Gpu, GpuError, ROW_ALIGN, Recorder, Variant};
use crate::models::{AudioShape, Capacity, Loader, Model, ModelError, ModelKind, Progress, check_device};
use crate::ops::{Attention, KvLayer, Rows};
use crate::text::Tokenizer;

/// Longest context that is allocated unless asked for: models are made for 128 K and more, few machines are.
const DEFAULT_CTX: usize = 4096;
impl Engine {
    /// Loads a model and allocates everything; `progress` hears of the weights on their way.
    ///
    /// On an adopted device uploads wait for the host's next submission, and the driver keeps a copy of each until
    /// then: a host that submits from `progress` (even nothing) keeps these copies few.
    ///
    /// # Errors
    /// [`EngineError`] names the file, tensor or limit.
    pub fn load(
        gpu: &Gpu,
        files: ModelFiles,
        options: EngineOptions,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Engine, EngineError> {
        files.expect(ModelKind::Decoder)?;
        let shape = files.architecture.shape();
        check_device(&shape, gpu.caps())?;
        let tokenizer = files.tokenizer.clone().ok();
        if let Some(found) = tokenizer.as_ref().map(Tokenizer::vocab_size).filter(|n| *n > shape.vocab_size) {
            return Err(EngineError::TokenizerMismatch { tokenizer: found, model: shape.vocab_size });
        }
        let wrong = |name, found: Dtype, expected| {
            Err(EngineError::Parameter { name, found: found.to_string(), expected })
        };
        if !KvLayer::DTYPES.contains(&options.kv_dtype) {
            return wrong("kv_dtype", options.kv_dtype, "`F32`, `F16` or `Q8_0`");
        }
        if options.kv_dtype == Dtype::Q8_0 && shape.attention.iter().any(|a| a.head_dim % BLOCK != 0) {
            return wrong("kv_dtype", options.kv_dtype, "`F32` or `F16`: heads are no multiple of 32 wide");
        }
        if let Some(found) = options.quantize.filter(|dtype| !dtype.is_quantised()) {
            return wrong("quantize", found, "`Q8_0`, `Q4_0` or `Q4_K`");
        }
        if let Some(found) = options.quantize.filter(|_| !gpu.is_owned()) {
            return wrong("quantize", found, "none on an adopted device: quantising needs submissions");
        }
        let at_least_one = |name, n: usize| {
            let expected = "at least 1";
            if n > 0 { Ok(n) } else { Err(EngineError::Parameter { name, found: n.to_string(), expected }) }
        };
        let ctx = at_least_one("ctx", options.ctx.unwrap_or(shape.max_seq_len.min(DEFAULT_CTX)))?;
        if ctx > shape.max_seq_len {
            log::warn!("a context of {ctx} is longer than the {} the model was made for", shape.max_seq_len);
        }
        let max_seqs = at_least_one("max_seqs", options.max_seqs)?;
        // A step has room for one decoding row of each sequence and for some of a prompt besides.
        let max_rows = at_least_one("max_rows", options.max_rows)?.max(max_seqs + 1);
        let options = EngineOptions {
            max_seqs,
            max_rows,
            prompt_logprobs: options.prompt_logprobs.min(max_rows),
            ..options
        };
        let max_sampled = options.max_sampled();
        let capacity = Capacity { max_rows, max_seqs, max_sampled, max_seq_len: ctx };
        // Asked first, so that a context beyond all bounds fails before anything is allocated for it.
        let seq_pages = ctx.div_ceil(PAGE_SIZE);
        let page_row = |a: &Attention| KvLayer::bytes(options.kv_dtype, KvPages::width(a));
        let largest = shape.attention.iter().map(page_row).max().unwrap_or(1);
        let limit_bytes = gpu.caps().max_binding_bytes.min(gpu.caps().max_buffer_bytes);
        let bindable = limit_bytes as usize / largest;
        if seq_pages > bindable {
            let bytes = (seq_pages as u64).saturating_mul(largest as u64);
            return Err(GpuError::TooLarge { what: "key cache 0".into(), bytes, limit_bytes }.into());
        }
        let n_pages = options.kv_tokens.map_or(max_seqs.saturating_mul(seq_pages), |n| n.div_ceil(PAGE_SIZE));
        let n_pages = n_pages.clamp(seq_pages, bindable);

        let mut loader = Loader::new(gpu, &files.weights, options.quantize);
        let model: Arc<dyn Model> = files.architecture.load(&mut loader, ctx)?.into();
        let scratch = model.scratch(gpu, capacity)?;
        let unused_tensors = loader.unused().into_iter().map(str::to_string).collect();

        let weights_bytes = loader.device_bytes();
        let pages = KvPages::new(gpu, &shape, n_pages, options.kv_dtype)?;

        let max_logprobs = options.max_logprobs.min(shape.vocab_size);
        let clips = |audio: &AudioShape| {
            let n_places = at_least_one("max_clips", options.max_clips)?;
            Clips::new(gpu, audio, n_places, capacity, options.kv_dtype, &options.alignment_heads)
        };
        let clips = shape.audio.as_ref().map(clips).transpose()?;
        let forward = Forward {
            plans: PlanTables::new(gpu, max_rows, max_sampled)?,
            slots: SlotTables::new(gpu, max_seqs, ctx, seq_pages, shape.vocab_size)?,
            results: Results::new(gpu, capacity, shape.vocab_size, max_logprobs)?,
            pages,
            model,
            clips,
        };
        let mut slot_bytes = forward.results.step_bytes();
        if options.logits {
            slot_bytes +=
                (max_sampled * Dtype::F32.bytes(shape.vocab_size.next_multiple_of(ROW_ALIGN))) as u64;
        }
        if let Some(clips) = forward.clips.as_ref().filter(|clips| clips.weights.is_some()) {
            slot_bytes += (max_rows * 4 * clips.alignment_width()) as u64;
        }
        let flight = Flight::new(gpu, slot_bytes)?;
        let mut end_tokens = tokenizer.as_ref().map(|t| t.eos().to_vec()).unwrap_or_default();
        end_tokens.retain(|t| (*t as usize) < shape.vocab_size);
        let mut engine = Engine {
            gpu: gpu.clone(),
            name: files.name.clone(),
            forward,
            scratch,
            tokenizer,
            end_tokens,
            ctx,
            rec: Recorder::new(gpu)?,
            flight,
            free_slots: (0..max_seqs).rev().collect(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            recording: None,
            events: Vec::new(),
            next_id: 1,
            // First guesses, low enough for one layer a slice until something was measured.
            decode_ms: SLICE.as_secs_f64() * 1e3,
            prompt_ms: SLICE.as_secs_f64() * 1e3,
            clip_ms: SLICE.as_secs_f64() * 1e3,
            unused_tensors,
            weights_bytes,
            compile_time: Duration::ZERO,
            options: EngineOptions { max_logprobs, ..options },
            shape,
        };
        let variants = engine.variants();
        engine.compile_time = upload_and_compile(gpu, loader, &variants, progress)?;
        Ok(engine)
    }

    /// Every variant that steps of this engine use.
    fn variants(&mut self) -> Vec<Variant> {
        // Every number of rows that shares weights, with a prompt in the step and without.
        let max_seqs = self.options.max_seqs;
        let counts = (0..).map(|i| 1 << i).take_while(|n| *n < 2 * max_seqs).map(|n: usize| n.min(max_seqs));
        let plan = |n_decode: usize, n_prompt: usize| Plan {
            n: Rows { n_decode, n_prompt },
            blocks: vec![[0, 1]; n_decode + 1],
            sampled: vec![0; n_decode],
            draws: vec![RequestId(0); n_decode],
            count: vec![(0, 1)],
            penalizes: true,
            rules: true,
            aligned: vec![(RequestId(0), 0, 0)],
            logprobs: (self.options.max_logprobs > 0).then_some(self.options.max_logprobs),
            ..Plan::default()
        };
        let decode = counts.map(|n| plan(n, 0));
        // Of a prompt's rows those that do not fill a group share weights in fewer, with the row that decodes or
        // without it; large products take large tiles.
        let n_prompt = [1, 2, 3, 7, 15, self.options.max_rows - 1].into_iter();
        let prompt = n_prompt.map(|n: usize| plan(1, n.min(self.options.max_rows - 1)));
        // Every number of rows that shares the head's weights, beyond those of the rows that decode.
        let n_scores = self.options.prompt_logprobs;
        let counts = (0..).map(|i| 1 << i).take_while(|n| *n < 2 * n_scores).map(|n: usize| n.min(n_scores));
        let scores = counts.map(|n| Plan {
            n: Rows { n_decode: 0, n_prompt: n },
            blocks: vec![[0, 1]],
            sampled: vec![0; n],
            scores: vec![(RequestId(0), 1); n],
            ..Plan::default()
        });
        let plans: Vec<Plan> = decode.chain(prompt).chain(scores).collect();
        let (forward, ctx, n_layers) = (&self.forward, self.ctx, self.shape.n_layers());
        let s = &mut self.scratch;
        self.rec.variants(|rec| {
            let n_heard = forward.clips.as_ref().map_or(0, Clips::n_layers);
            forward.hear(rec, None, [0, n_heard], s);
            for mut plan in plans {
                for longest in [1, ctx] {
                    plan.longest = longest;
                    let batch = forward.batch(&plan);
                    forward.model.embed(rec, &batch, s);
                    (0..n_layers).for_each(|i| forward.model.layer(i, rec, &batch, s));
                    forward.draw(rec, &plan, s);
                }
            }
        })
    }
}

/// Uploads weights while kernels compile; returns how long those took.
pub(super) fn upload_and_compile(
    gpu: &Gpu,
    loader: Loader<'_>,
    variants: &[Variant],
    progress: &mut dyn FnMut(Progress),
) -> Result<Duration, EngineError> {
    let (compiled, uploaded) = std::thread::scope(|scope| {
        let compiler = scope.spawn(|| {
            let begin = Instant::now();
            gpu.compile(variants).map(|()| begin.elapsed())
        });
        let uploaded = loader.upload(progress);
        let died = |_| Err(GpuError::Device { message: "a compiler thread died".into() });
        (compiler.join().unwrap_or_else(died), uploaded)
    });
    uploaded.map_err(ModelError::from)?;
    Ok(compiled?)
}
