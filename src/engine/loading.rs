//! Loading: everything is allocated first, then weights are uploaded in slices while kernels compile.

use std::sync::Arc;
use std::time::Duration;

use super::build::{Build, upload_bytes};
use super::memory::MemoryFit;
use super::model::{page_bytes, page_width};
use super::recovery::{Health, Recovery, Survivor};
use super::runner::{Clips, Results, Runner, SlotTables, StepTables};
use super::scheduler::{Admission, ClipTable, Keep, Limits, PAGE_SIZE, Scheduler, Step, Work};
use super::self_test::Trials;
use super::stepper::Stepper;
use super::{Engine, EngineError, EngineOptions, LoadedModel, MemoryNeed, RequestId, Sampling};
use crate::checkpoint::ModelFiles;
use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{Gpu, GpuError, ROW_ALIGN, Recorder};
use crate::models::{Capacity, LoadProgress, Loader, Model, ModelKind, ModelShape};
use crate::ops::{KvLayer, Rows};

/// An engine whose weights are being uploaded. A guest calls [`Loading::advance`] in its frame loop until
/// [`Loading::is_done`], then [`Loading::finish`]. On a device of our own, [`Loading::wait`] does all that.
///
/// A device that is lost meanwhile is replaced as for an engine that is loaded, and the upload begins again.
pub struct Loading<E> {
    engine: E,
}

impl<E: Survivor> Loading<E> {
    /// `engine` has nothing on a device, and its recovery has begun.
    pub(super) fn new(engine: E) -> Loading<E> {
        Loading { engine }
    }

    /// Bytes uploaded, and the total.
    pub fn progress(&self) -> LoadProgress {
        self.engine.recovery().progress()
    }

    /// Whether [`Loading::finish`] returns the engine without waiting.
    pub fn is_done(&self) -> bool {
        self.engine.recovery().is_done()
    }

    /// Whether there is a device that works.
    pub fn health(&self) -> Health {
        self.engine.recovery().health()
    }

    /// Begins again on another device: a host's next one, if this one was lost.
    pub fn replace_device(&mut self, gpu: &Gpu) {
        self.engine.recovery_mut().replace(gpu);
    }

    /// Records uploads for about `budget` of the host's or the device's time, whichever takes longer, and returns the command
    /// buffers to submit: none until the kernels of uploads are compiled. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`], [`EngineError::Model`].
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.engine.recovery_mut().advance(budget)
    }

    /// As [`Engine::slice_times`]. Slices that only copy take no time that the device's clock shows.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        self.engine.recovery_mut().slice_times()
    }

    /// As [`Engine::smallest_slice`].
    pub fn smallest_slice(&self) -> Option<Duration> {
        self.engine.recovery().smallest_slice()
    }

    /// What the last [`Loading::advance`] left of its budget, as predicted.
    pub(super) fn left(&self) -> Duration {
        self.engine.recovery().left()
    }

    /// Returns the engine. Waits for the thread that compiles kernels, and on a device of our own for the self-test. On an
    /// adopted device, the engine continues a self-test that has not ended.
    ///
    /// # Errors
    /// [`EngineError::NotLoaded`] if uploads are not finished; [`EngineError::Gpu`] with a kernel that does not
    /// compile. (A variant that needs optional capabilities is replaced by the portable one instead.)
    pub fn finish(mut self) -> Result<E, EngineError> {
        if !self.engine.recovery().is_uploaded() {
            let LoadProgress { done_bytes, total_bytes } = self.progress();
            return Err(EngineError::NotLoaded { done_bytes, total_bytes });
        }
        // If the device is lost at this moment, the engine begins with a recovery.
        if let Some(built) = self.engine.recovery_mut().ready(true)? {
            self.engine.install(built);
        }
        Ok(self.engine)
    }

    /// Uploads the rest and returns the engine. Calls `progress` for each piece. On an adopted device, uploads are
    /// queued for the host's next submission, which works only if nothing has to be quantised.
    ///
    /// # Errors
    /// Those of [`Loading::advance`] and [`Loading::finish`]; [`GpuError::Adopted`] if only the host's submissions
    /// could complete it.
    pub fn wait(mut self, progress: &mut dyn FnMut(LoadProgress)) -> Result<E, EngineError> {
        let recovery = self.engine.recovery_mut();
        if recovery.gpu().is_owned() {
            while !recovery.is_uploaded() {
                recovery.pump()?;
                progress(recovery.progress());
            }
        } else {
            recovery.write(progress)?;
        }
        self.finish()
    }
}

/// What an engine has on a device.
pub struct OnDevice {
    pub(super) runner: Runner,
    pub(super) stepper: Stepper<Work>,
    /// Pages of the cache.
    pub(super) n_pages: usize,
}

impl Engine {
    /// Loads a model and allocates everything. Calls `progress` during the upload of weights.
    ///
    /// On an adopted device, uploads are queued for the host's next submission, and the driver keeps a copy of each
    /// until then. [`Engine::loading`] keeps fewer copies.
    ///
    /// # Errors
    /// [`EngineError`] with the file, tensor or limit.
    pub fn load(
        gpu: &Gpu,
        files: ModelFiles,
        options: EngineOptions,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Engine, EngineError> {
        Engine::loading(gpu, files, options)?.wait(progress)
    }

    /// Starts to load a model in slices. This call checks names, shapes and limits, and allocates everything.
    ///
    /// # Errors
    /// As [`Engine::load`].
    pub fn loading(
        gpu: &Gpu,
        files: ModelFiles,
        options: EngineOptions,
    ) -> Result<Loading<Engine>, EngineError> {
        let shape = files.architecture.shape();
        let options = options.for_model(&shape);
        // Checked first, so that a context beyond all limits fails before anything is allocated.
        let sizes = Sizes::new(gpu, &shape, &options)?;
        let ctx = sizes.capacity.max_seq_len;
        let model = LoadedModel::new(gpu, files, ModelKind::Decoder, ctx, options.quantize)?;
        Ok(Loading::new(Engine::begin(gpu, Arc::new(model), options, sizes)?))
    }

    /// What [`Engine::load`] would take, and whether there is memory for it. Nothing is allocated, and only the headers
    /// of the weights are read ([`ModelFiles::headers`]).
    ///
    /// # Errors
    /// As [`Engine::load`], except for what only an allocation or the bytes of tensors can show.
    pub fn estimate(gpu: &Gpu, files: &ModelFiles, options: EngineOptions) -> Result<MemoryFit, EngineError> {
        let shape = files.architecture.shape();
        let options = options.for_model(&shape);
        Sizes::new(gpu, &shape, &options)?;
        Engine::fit(gpu, &shape, &options, |plan, ctx, quantize| {
            LoadedModel::allocate(plan, files, ModelKind::Decoder, ctx, quantize)
        })
    }

    /// What a load with `options`, which were checked and whose `ctx` is set, would take. `allocate` plans the weights for
    /// a context and a quantised type.
    fn fit(
        gpu: &Gpu,
        shape: &ModelShape,
        options: &EngineOptions,
        allocate: impl Fn(&Gpu, usize, Option<Dtype>) -> Result<(Arc<dyn Model>, Loader), EngineError>,
    ) -> Result<MemoryFit, EngineError> {
        let ctx = options.ctx.unwrap_or(shape.max_seq_len);
        MemoryFit::new(gpu, ctx, options.quantize, |ctx, quantize| {
            let plan = gpu.plan();
            let (weights, loader) = allocate(&plan, ctx, quantize)?;
            let options = EngineOptions { ctx: Some(ctx), quantize, ..options.clone() };
            let need = Engine::need(&plan, shape, &weights, &options)?;
            Ok(MemoryNeed { staging_bytes: staging_bytes(gpu, &loader)?, ..need })
        })
    }

    /// As [`Engine::fit`], for a model that is on the device already, or must be read again.
    fn fit_again(gpu: &Gpu, model: &LoadedModel, options: &EngineOptions) -> Result<MemoryFit, EngineError> {
        let Some(weights) = model.on(gpu) else {
            return Engine::fit(gpu, &model.shape, options, |plan, ctx, quantize| {
                model.allocate_again(plan, ctx, quantize)
            });
        };
        let ctx = options.ctx.unwrap_or(model.max_seq_len);
        MemoryFit::new(gpu, ctx, None, |ctx, _| {
            let options = EngineOptions { ctx: Some(ctx), ..options.clone() };
            Engine::need(&gpu.plan(), &model.shape, &weights, &options)
        })
    }

    /// Builds another engine on a loaded model, on the same device, with its own activations, KV cache and requests.
    /// Ignores [`EngineOptions::quantize`]. On another device, the model would be uploaded again.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] if the context is longer than the one that the model was loaded for;
    /// [`EngineError::Gpu`].
    pub fn new(gpu: &Gpu, model: &Arc<LoadedModel>, options: EngineOptions) -> Result<Engine, EngineError> {
        let ctx = options.ctx.unwrap_or(model.max_seq_len);
        if ctx > model.max_seq_len {
            let expected = "at most the context that the model was loaded for";
            return Err(EngineError::Parameter { name: "ctx", found: ctx.to_string(), expected });
        }
        let options = EngineOptions { ctx: Some(ctx), quantize: model.quantize, ..options };
        let sizes = Sizes::new(gpu, &model.shape, &options)?;
        let mut engine = Engine::begin(gpu, model.clone(), options, sizes)?;
        while engine.gpu().is_owned() && engine.live.is_none() {
            engine.rebuild_pumping()?;
        }
        engine.take_ready(true)?;
        Ok(engine)
    }

    /// What an engine takes on `plan`, where nothing is allocated, and what has been planned there before: `weights`.
    fn need(
        plan: &Gpu,
        shape: &ModelShape,
        weights: &Arc<dyn Model>,
        options: &EngineOptions,
    ) -> Result<MemoryNeed, EngineError> {
        let weights_bytes = plan.counts().live_bytes;
        let sizes = Sizes::new(plan, shape, options)?;
        let (mut runner, mut stepper) = Engine::allocate(plan, shape, weights, options, sizes)?;
        let _tested = Trials::plan(plan, stepper.recorder(), |rec| rehearse(&mut runner, rec, sizes))?;
        let cache_bytes = (sizes.n_pages as u64).saturating_mul(page_bytes(shape, options.kv_dtype) as u64);
        let scratch_bytes = plan.counts().live_bytes.saturating_sub(weights_bytes + cache_bytes);
        Ok(MemoryNeed { weights_bytes, cache_bytes, scratch_bytes, staging_bytes: 0 })
    }

    /// Allocates everything but the weights.
    pub(super) fn allocate(
        gpu: &Gpu,
        shape: &ModelShape,
        weights: &Arc<dyn Model>,
        options: &EngineOptions,
        sizes: Sizes,
    ) -> Result<(Runner, Stepper<Work>), EngineError> {
        let Sizes { capacity, n_pages, seq_pages, max_logprobs, .. } = sizes;
        let Capacity { max_rows, max_seqs, max_sampled, max_seq_len: ctx } = capacity;
        let kv = shape.attention.iter().enumerate();
        let kv = kv.map(|(i, a)| KvLayer::new(gpu, i, n_pages, page_width(a), options.kv_dtype));
        let clips = shape.audio.as_ref().map(|audio| {
            let n_places = n_seqs("max_clips", options.max_clips)?;
            let heads = &options.alignment_heads;
            Clips::new(gpu, audio, n_places, capacity, options.kv_dtype, heads)
        });
        let runner = Runner {
            gpu: gpu.clone(),
            model: weights.clone(),
            scratch: weights.scratch(gpu, capacity)?,
            kv: kv.collect::<Result<_, GpuError>>()?,
            steps: StepTables::new(gpu, max_rows, max_sampled)?,
            slots: SlotTables::new(gpu, max_seqs, ctx, seq_pages, shape.vocab_size)?,
            results: Results::new(gpu, capacity, shape.vocab_size, max_logprobs, options.kept_rows)?,
            clips: clips.transpose()?,
        };
        let mut read_bytes = runner.results.step_bytes();
        if options.logits {
            read_bytes +=
                (max_sampled * Dtype::F32.bytes(shape.vocab_size.next_multiple_of(ROW_ALIGN))) as u64;
        }
        if let Some(clips) = runner.clips.as_ref().filter(|clips| clips.weights.is_some()) {
            read_bytes += (max_rows * 4 * clips.alignment_width()) as u64;
        }
        Ok((runner, Stepper::new(gpu, read_bytes, options.run_ahead)?))
    }

    /// Begins to build an engine on a device. It has nothing there until that is done.
    fn begin(
        gpu: &Gpu,
        model: Arc<LoadedModel>,
        options: EngineOptions,
        sizes: Sizes,
    ) -> Result<Engine, EngineError> {
        let shape = &model.shape;
        let Sizes { capacity, n_pages, max_logprobs, prompt_logprobs, .. } = sizes;
        let Capacity { max_rows, max_seqs, max_sampled, max_seq_len: ctx } = capacity;
        let limits = Limits {
            architecture: shape.architecture,
            vocab_size: shape.vocab_size,
            ctx,
            n_pages,
            max_seqs,
            max_rows,
            max_sampled,
            max_waiting: options.max_waiting,
            block_rows: 1, // until the variants are known
            max_logprobs,
            has_logits: options.logits,
            kept_rows: options.kept_rows,
            has_prompt_logprobs: prompt_logprobs > 0,
            has_alignment: shape.audio.is_some() && !options.alignment_heads.is_empty(),
            prefix_cache: options.prefix_cache,
        };
        let clips = shape.audio.as_ref().map(|audio| {
            let n_places = n_seqs("max_clips", options.max_clips)?;
            Ok::<_, EngineError>(ClipTable::new(n_places, [audio.n_frames, audio.n_mels]))
        });
        let (tokenizer, end_tokens) = (model.tokenizer().cloned(), model.end_tokens());
        let scheduler = Scheduler::new(limits, clips.transpose()?, tokenizer, end_tokens);
        let (own, patience) = (model.clone(), options.recovery);
        let recovery = Recovery::begin(gpu, patience, move |gpu| Engine::build(gpu, &own, &options))?;
        Ok(Engine { model, scheduler, live: None, recovery, compile_time: Duration::ZERO })
    }

    /// Allocates everything on a device, and begins to upload weights and to compile the variants of its steps.
    fn build(
        gpu: &Gpu,
        model: &LoadedModel,
        options: &EngineOptions,
    ) -> Result<Build<OnDevice>, EngineError> {
        let shape = &model.shape;
        let sizes = Sizes::new(gpu, shape, options)?;
        Engine::fit_again(gpu, model, options)?.check()?;
        let (weights, upload) = model.place(gpu)?;
        let (mut runner, mut stepper) = Engine::allocate(gpu, shape, &weights, options, sizes)?;
        let tested = Trials::plan(gpu, stepper.recorder(), |rec| rehearse(&mut runner, rec, sizes))?;
        stepper.recorder().finish()?; // parameter blocks are allocated by now, or do not fit
        Ok(Build::new(gpu, OnDevice { runner, stepper, n_pages: sizes.n_pages }, upload, tested))
    }
}

/// Most bytes that a load takes and then gives back.
pub(super) fn staging_bytes(gpu: &Gpu, loader: &Loader) -> Result<u64, GpuError> {
    Ok(upload_bytes(gpu)? + loader.staging_bytes())
}

/// The sizes of an engine.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) capacity: Capacity,
    /// Pages of the cache.
    n_pages: usize,
    /// Most pages of one sequence.
    seq_pages: usize,
    max_logprobs: usize,
    prompt_logprobs: usize,
}

impl Sizes {
    /// Checks `options`, whose `ctx` is set, against a model and a device.
    pub(super) fn new(gpu: &Gpu, shape: &ModelShape, options: &EngineOptions) -> Result<Sizes, EngineError> {
        let wrong = |found: Dtype, expected| {
            Err(EngineError::Parameter { name: "kv_dtype", found: found.to_string(), expected })
        };
        if !KvLayer::DTYPES.contains(&options.kv_dtype) {
            return wrong(options.kv_dtype, "`F32`, `F16` or `Q8_0`");
        }
        if options.kv_dtype == Dtype::Q8_0 && shape.attention.iter().any(|a| a.head_dim % BLOCK != 0) {
            return wrong(options.kv_dtype, "`F32` or `F16`: the head size is not a multiple of 32");
        }
        let ctx = n_rows("ctx", options.ctx.unwrap_or(shape.max_seq_len))?;
        if ctx > shape.max_seq_len && !gpu.is_plan() {
            log::warn!(
                "a context of {ctx} tokens is longer than the model's maximum of {}",
                shape.max_seq_len
            );
        }
        let max_seqs = n_seqs("max_seqs", options.max_seqs)?;
        in_range("max_waiting", options.max_waiting, usize::MAX, "at least 1")?;
        // A step holds one row of each sequence that decodes, and at least one prompt row.
        let max_rows = n_rows("max_rows", options.max_rows)?.max(max_seqs + 1);
        let prompt_logprobs = options.prompt_logprobs.min(max_rows);
        let max_sampled = max_seqs.max(prompt_logprobs);
        let seq_pages = ctx.div_ceil(PAGE_SIZE);
        let page_bytes = shape.attention.iter().map(|a| KvLayer::bytes(options.kv_dtype, page_width(a)));
        let largest = page_bytes.max().unwrap_or(1).max(1);
        let limit_bytes = gpu.caps().max_binding_bytes.min(gpu.caps().max_buffer_bytes);
        let bindable = limit_bytes as usize / largest;
        if seq_pages > bindable {
            let bytes = (seq_pages as u64).saturating_mul(largest as u64);
            return Err(GpuError::TooLarge { what: "key cache 0".into(), bytes, limit_bytes }.into());
        }
        let n_pages = match options.kv_tokens {
            Some(n) => in_range("kv_tokens", n, usize::MAX, "at least 1")?.div_ceil(PAGE_SIZE),
            None => max_seqs.saturating_mul(seq_pages),
        };
        Ok(Sizes {
            capacity: Capacity { max_rows, max_seqs, max_sampled, max_seq_len: ctx },
            n_pages: n_pages.min(bindable),
            seq_pages,
            max_logprobs: options.max_logprobs.min(shape.vocab_size),
            prompt_logprobs,
        })
    }
}

/// Most sequences and clips of an engine.
const MOST_SEQS: usize = 1 << 20;
/// Most positions of a sequence, and rows of a step: tables have indices of 32 bits.
const MOST_ROWS: usize = 1 << 28;

/// Checks an option that counts sequences or clips.
pub(super) fn n_seqs(name: &'static str, n: usize) -> Result<usize, EngineError> {
    in_range(name, n, MOST_SEQS, "a number from 1 to 2^20")
}

/// Checks an option that counts positions or rows.
pub(super) fn n_rows(name: &'static str, n: usize) -> Result<usize, EngineError> {
    in_range(name, n, MOST_ROWS, "a number from 1 to 2^28")
}

fn in_range(name: &'static str, n: usize, most: usize, expected: &'static str) -> Result<usize, EngineError> {
    match (1..=most).contains(&n) {
        true => Ok(n),
        false => Err(EngineError::Parameter { name, found: n.to_string(), expected }),
    }
}

/// Records every kind of step of an engine, to collect their variants.
pub(super) fn rehearse(runner: &mut Runner, rec: &mut Recorder, sizes: Sizes) {
    let Sizes { capacity: Capacity { max_rows, max_seqs, max_seq_len, .. }, max_logprobs, .. } = sizes;
    // Every number of rows up to the largest group that shares one read of the weights.
    let counts =
        |most: usize| (0..).map(|i| 1 << i).take_while(move |n| *n < 2 * most).map(move |n| most.min(n));
    let id = RequestId(0);
    let counted = Admission {
        slot: 0,
        tokens: vec![0],
        n_prompt: 1,
        pages: Vec::new(),
        sampling: Sampling { presence_penalty: 1.0, ..Sampling::default() },
        seed: 0,
        clip: None,
    };
    let step = |n_decode: usize, n_prompt: usize| Step {
        admitted: vec![counted.clone()],
        n: Rows { n_decode, n_prompt },
        blocks: vec![[0, 1]; n_decode + 1],
        sampled: vec![0; n_decode],
        draws: vec![id; n_decode],
        penalizes: true,
        rules: true,
        aligned: vec![(id, 0, 0)],
        logprobs: (max_logprobs > 0).then_some(max_logprobs),
        kept: vec![(id, Keep { row: 0, softmax: true })],
        ..Step::default()
    };
    // Steps with and without a prompt. Prompt rows that do not fill a group share reads in a smaller one, with or
    // without the decode row; large products take large tiles.
    let decode = counts(max_seqs).map(|n| step(n, 0));
    let prompt = [1, 2, 3, 7, 15, max_rows - 1].map(|n| step(1, n.min(max_rows - 1)));
    // Every number of rows that share reads of the head's weights, beyond the numbers of decode rows.
    let scores = counts(sizes.prompt_logprobs).map(|n| Step {
        n: Rows { n_decode: 0, n_prompt: n },
        blocks: vec![[0, 1]],
        sampled: vec![0; n],
        scores: vec![(id, 1); n],
        ..Step::default()
    });
    let steps: Vec<Step> = decode.chain(prompt).chain(scores).collect();
    let (n_layers, n_audio_layers) = (runner.n_layers(), runner.clips.as_ref().map_or(0, Clips::n_layers));
    runner.encode_clip(rec, 0, 0..n_audio_layers);
    for mut step in steps {
        for longest in [1, max_seq_len] {
            step.longest = longest;
            runner.record(rec, &step, 0..n_layers);
        }
    }
}
