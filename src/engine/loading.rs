//! Loading: everything is allocated first, then weights are uploaded in slices while kernels compile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::memory::MemoryFit;
use super::model::{page_bytes, page_width};
use super::runner::{Clips, Results, Runner, SlotTables, StepTables};
use super::scheduler::{Admission, ClipTable, Keep, Limits, PAGE_SIZE, Scheduler, Step, Work};
use super::self_test::{Tested, Trials};
use super::stepper::{Machine, ReadRange, Stepper};
use super::{Decoding, Engine, EngineError, EngineOptions, LoadedModel, MemoryNeed, RequestId, Sampling};
use crate::checkpoint::ModelFiles;
use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{Gpu, GpuError, ROW_ALIGN, Recorder};
use crate::models::{
    Capacity, LoadProgress, Loader, MOST_SLICE, Model, ModelError, ModelKind, ModelShape, Upload,
};
use crate::ops::{KvLayer, Rows};

/// An engine whose weights are being uploaded. A guest calls [`Loading::advance`] in its frame loop until
/// [`Loading::is_done`], then [`Loading::finish`]. On a device of our own, [`Loading::wait`] does all that.
pub struct Loading<E> {
    gpu: Gpu,
    uploads: Uploads,
    stepper: Stepper<Pieces>,
    compiler: JoinHandle<Result<Duration, GpuError>>,
    /// Set once the kernels of the uploads are compiled, which come first. On an adopted device nothing is recorded
    /// before: a call would wait for the compiler.
    can_upload: Arc<AtomicBool>,
    /// Begins once the kernels are compiled.
    self_test: Option<Trials>,
    /// Makes the engine; gets the time to compile, and the self-test, which may not have ended.
    finish: Box<Finish<E>>,
}

type Finish<E> = dyn FnOnce(Duration, Option<Trials>) -> E + Send;

/// The uploads that are not finished.
struct Uploads {
    uploads: Vec<Upload>,
    pace: Pace,
}

/// The speed of uploads: the time per byte of the host or the device, whichever takes longer.
#[derive(Debug, Default)]
pub(super) struct Pace {
    ms_per_byte: Option<f64>,
}

impl Pace {
    /// Bytes that `ms` are enough for, with some to spare.
    pub fn n_bytes(&self, ms: f64) -> usize {
        let n = self.ms_per_byte.map_or(FIRST_SLICE as f64, |each| SHARE * ms / each);
        (n as usize).clamp(LEAST_SLICE, MOST_SLICE)
    }

    /// Learns that `n_bytes` took `ms`. Slower is believed sooner than faster.
    pub fn learn(&mut self, ms: f64, n_bytes: usize) {
        if n_bytes > 0 {
            let found = ms / n_bytes as f64;
            let known = self.ms_per_byte.get_or_insert(found);
            *known += (found - *known) * if found > *known { 0.3 } else { 0.1 };
        }
    }
}

impl<E> Loading<E> {
    /// Starts to compile `variants`. `finish` makes the engine when everything is done.
    pub(super) fn new(
        gpu: &Gpu,
        mut uploads: Vec<Upload>,
        Tested { variants, self_test }: Tested,
        finish: impl FnOnce(Duration, Option<Trials>) -> E + Send + 'static,
    ) -> Result<Self, EngineError> {
        let mut stepper = Stepper::new(gpu, 4, true)?;
        let of_uploads = match gpu.is_owned() {
            true => Vec::new(),
            false => super::variants::of(stepper.recorder(), &mut uploads, |_| {})?,
        };
        let can_upload = Arc::new(AtomicBool::new(of_uploads.is_empty()));
        let (compiler, are_compiled) = (gpu.clone(), can_upload.clone());
        let compile = move || {
            let begin = Instant::now();
            compiler.compile(&of_uploads)?;
            are_compiled.store(true, Ordering::Release);
            variants.compile(&compiler).map(|()| begin.elapsed())
        };
        Ok(Loading {
            gpu: gpu.clone(),
            uploads: Uploads { uploads, pace: Pace::default() },
            stepper,
            compiler: std::thread::spawn(compile),
            can_upload,
            self_test,
            finish: Box::new(finish),
        })
    }

    /// Bytes uploaded, and the total.
    pub fn progress(&self) -> LoadProgress {
        let mut sum = LoadProgress { done_bytes: 0, total_bytes: 0 };
        for progress in self.uploads.uploads.iter().map(Upload::progress) {
            sum.done_bytes += progress.done_bytes;
            sum.total_bytes += progress.total_bytes;
        }
        sum
    }

    /// Whether [`Loading::finish`] returns the engine without waiting.
    pub fn is_done(&self) -> bool {
        let is_tested = self.self_test.as_ref().is_none_or(Trials::is_done);
        self.uploads.is_done() && self.stepper.is_idle() && self.compiler.is_finished() && is_tested
    }

    /// Records uploads for about `budget` of the host's or the device's time, whichever takes longer, and returns the command
    /// buffers to submit: none until the kernels of uploads are compiled. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`], [`EngineError::Model`].
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        // If the compiler ended early, the first recording finds its error, too.
        if !self.can_upload.load(Ordering::Acquire) && !self.compiler.is_finished() {
            self.stepper.check(&mut self.uploads)?;
            return Ok(Vec::new());
        }
        let mut buffers = self.stepper.advance(&mut self.uploads, budget)?;
        if let Some(test) = self.compiled_test() {
            buffers.extend(test.advance()?);
        }
        Ok(buffers)
    }

    /// As [`Engine::slice_times`]. Slices that only copy take no time that the device's clock shows.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        self.stepper.slice_times()
    }

    /// As [`Engine::smallest_slice`].
    pub fn smallest_slice(&self) -> Option<Duration> {
        self.stepper.smallest_slice()
    }

    /// What the last [`Loading::advance`] left of its budget, as predicted.
    pub(super) fn left(&self) -> Duration {
        self.stepper.left()
    }

    /// The self-test, if its kernels are compiled.
    fn compiled_test(&mut self) -> Option<&mut Trials> {
        self.self_test.as_mut().filter(|_| self.compiler.is_finished())
    }

    /// Returns the engine. Waits for the thread that compiles kernels, and on a device of our own for the self-test. On an
    /// adopted device, the engine continues a self-test that has not ended.
    ///
    /// # Errors
    /// [`EngineError::NotLoaded`] if uploads are not finished; [`EngineError::Gpu`] with a kernel that does not
    /// compile. (A variant that needs optional capabilities is replaced by the portable one instead.)
    pub fn finish(mut self) -> Result<E, EngineError> {
        if !self.uploads.is_done() || !self.stepper.is_idle() {
            let LoadProgress { done_bytes, total_bytes } = self.progress();
            return Err(EngineError::NotLoaded { done_bytes, total_bytes });
        }
        let died = |_| Err(GpuError::Device { message: "the compiler's thread died".into() });
        let compile_time = self.compiler.join().unwrap_or_else(died)?;
        if let (Some(test), true) = (&mut self.self_test, self.gpu.is_owned()) {
            test.run()?;
        }
        Ok((self.finish)(compile_time, self.self_test))
    }

    /// Uploads the rest and returns the engine. Calls `progress` for each piece. On an adopted device, uploads are
    /// queued for the host's next submission, which works only if nothing has to be quantised.
    ///
    /// # Errors
    /// Those of [`Loading::advance`] and [`Loading::finish`]; [`GpuError::Adopted`] if only the host's submissions
    /// could complete it.
    pub fn wait(mut self, progress: &mut dyn FnMut(LoadProgress)) -> Result<E, EngineError> {
        if self.gpu.is_owned() {
            while !self.uploads.is_done() || !self.stepper.is_idle() {
                self.stepper.pump(&mut self.uploads)?;
                if let Some(test) = self.compiled_test() {
                    test.pump()?;
                }
                progress(self.progress());
            }
        } else {
            for upload in &mut self.uploads.uploads {
                upload.run(&self.gpu, progress).map_err(ModelError::from)?;
            }
        }
        self.finish()
    }
}

impl Uploads {
    fn is_done(&self) -> bool {
        self.uploads.iter().all(Upload::is_done)
    }
}

/// Some pieces of an upload: its index.
struct Pieces(usize);

/// The share of a budget that uploads aim at: one dispatch of a software device varies by a third.
const SHARE: f64 = 0.8;
/// Most bytes between two looks at the host's clock: it reads and copies so much in about a millisecond.
const A_PIECE: usize = 1 << 20;
/// Bytes of the first slice of an upload, of whose speed nothing is known.
const FIRST_SLICE: usize = 256 << 10;
/// Fewest bytes of a slice: less would take longer to submit than to copy.
const LEAST_SLICE: usize = 64 << 10;

impl Machine for Uploads {
    type Work = Pieces;

    const IS_WHOLE: bool = true;

    fn next(&mut self) -> Option<Pieces> {
        self.uploads.iter().position(|upload| !upload.is_done()).map(Pieces)
    }

    fn n_parts(&self, _: &Pieces) -> usize {
        1
    }

    fn begin(&mut self, _: &mut Recorder, _: &mut Pieces) {}

    /// Records as much as the frame has time for: the host reads and converts meanwhile, so its clock counts like the
    /// device's.
    fn record(
        &mut self,
        rec: &mut Recorder,
        Pieces(at): &mut Pieces,
        _: usize,
    ) -> Result<Vec<ReadRange>, EngineError> {
        let upload = &mut self.uploads[*at];
        let (begin, left_ms, spent_ms) = (Instant::now(), rec.meter().left_ms(), rec.meter().spent_ms());
        let passed_ms = || begin.elapsed().as_secs_f64() * 1e3;
        let done_before = upload.progress().done_bytes;
        let n_bytes = self.pace.n_bytes(left_ms);
        upload
            .record_while(rec, n_bytes, n_bytes.min(A_PIECE), || passed_ms() < left_ms)
            .map_err(ModelError::from)?;
        let (host_ms, device_ms) = (passed_ms(), rec.meter().spent_ms() - spent_ms);
        rec.meter().spend((host_ms - device_ms).max(0.0));
        let ms = host_ms.max(device_ms);
        self.pace.learn(ms, upload.progress().done_bytes - done_before);
        Ok(Vec::new())
    }

    fn landed(&mut self, _: Pieces, _: &[u8]) {}

    fn abandon(&mut self, _: Vec<Pieces>, _: &GpuError) {}
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
        let fit = Engine::fit(gpu, &files, &options)?;
        fit.check()?;
        let (model, upload) = LoadedModel::plan(gpu, files, ModelKind::Decoder, fit.ctx, options.quantize)?;
        let (mut engine, tested) = Engine::build(gpu, Arc::new(model), &options, sizes)?;
        Loading::new(gpu, vec![upload], tested, |compile_time, self_test| {
            engine.compile_time = compile_time;
            engine.stepper.begin(&mut engine.machine, self_test);
            engine
        })
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
        Engine::fit(gpu, files, &options)
    }

    /// As [`Engine::estimate`], for `options` that were checked and whose `ctx` is set.
    fn fit(gpu: &Gpu, files: &ModelFiles, options: &EngineOptions) -> Result<MemoryFit, EngineError> {
        let shape = files.architecture.shape();
        let ctx = options.ctx.unwrap_or(shape.max_seq_len);
        MemoryFit::new(gpu, ctx, options.quantize, |ctx, quantize| {
            let plan = gpu.plan();
            let (weights, loader) = LoadedModel::allocate(&plan, files, ModelKind::Decoder, ctx, quantize)?;
            let options = EngineOptions { ctx: Some(ctx), quantize, ..options.clone() };
            let need = Engine::need(&plan, &shape, &weights, &options)?;
            Ok(MemoryNeed { staging_bytes: staging_bytes(gpu, &loader)?, ..need })
        })
    }

    /// Builds another engine on a loaded model, on the same device, with its own activations, KV cache and requests.
    /// Ignores [`EngineOptions::quantize`].
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
        let options = EngineOptions { ctx: Some(ctx), ..options };
        let sizes = Sizes::new(gpu, &model.shape, &options)?;
        let fit = MemoryFit::new(gpu, ctx, None, |ctx, _| {
            let options = EngineOptions { ctx: Some(ctx), ..options.clone() };
            Engine::need(&gpu.plan(), &model.shape, &model.weights, &options)
        })?;
        fit.check()?;
        let (mut engine, Tested { variants, mut self_test }) =
            Engine::build(gpu, model.clone(), &options, sizes)?;
        let begin = Instant::now();
        variants.compile(gpu)?;
        engine.compile_time = begin.elapsed();
        if let (Some(test), true) = (&mut self_test, gpu.is_owned()) {
            test.run()?;
        }
        engine.stepper.begin(&mut engine.machine, self_test);
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
        let (mut runner, _clips, mut stepper) = Engine::allocate(plan, shape, weights, options, sizes)?;
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
    ) -> Result<(Runner, Option<ClipTable>, Stepper<Work>), EngineError> {
        let Sizes { capacity, n_pages, seq_pages, max_logprobs, .. } = sizes;
        let Capacity { max_rows, max_seqs, max_sampled, max_seq_len: ctx } = capacity;
        let kv = shape.attention.iter().enumerate();
        let kv = kv.map(|(i, a)| KvLayer::new(gpu, i, n_pages, page_width(a), options.kv_dtype));
        let clips = shape.audio.as_ref().map(|audio| {
            let n_places = n_seqs("max_clips", options.max_clips)?;
            let table = ClipTable::new(n_places, [audio.n_frames, audio.n_mels]);
            let heads = &options.alignment_heads;
            let clips = Clips::new(gpu, audio, n_places, capacity, options.kv_dtype, heads)?;
            Ok::<_, EngineError>((table, clips))
        });
        let (clip_table, clips) = clips.transpose()?.unzip();
        let runner = Runner {
            gpu: gpu.clone(),
            model: weights.clone(),
            scratch: weights.scratch(gpu, capacity)?,
            kv: kv.collect::<Result<_, GpuError>>()?,
            steps: StepTables::new(gpu, max_rows, max_sampled)?,
            slots: SlotTables::new(gpu, max_seqs, ctx, seq_pages, shape.vocab_size)?,
            results: Results::new(gpu, capacity, shape.vocab_size, max_logprobs, options.kept_rows)?,
            clips,
        };
        let mut read_bytes = runner.results.step_bytes();
        if options.logits {
            read_bytes +=
                (max_sampled * Dtype::F32.bytes(shape.vocab_size.next_multiple_of(ROW_ALIGN))) as u64;
        }
        if let Some(clips) = runner.clips.as_ref().filter(|clips| clips.weights.is_some()) {
            read_bytes += (max_rows * 4 * clips.alignment_width()) as u64;
        }
        Ok((runner, clip_table, Stepper::new(gpu, read_bytes, options.run_ahead)?))
    }

    /// Allocates everything but the weights. Returns the variants that its steps use, too, and their self-test.
    fn build(
        gpu: &Gpu,
        model: Arc<LoadedModel>,
        options: &EngineOptions,
        sizes: Sizes,
    ) -> Result<(Engine, Tested), EngineError> {
        let shape = &model.shape;
        let Sizes { capacity, n_pages, max_logprobs, prompt_logprobs, .. } = sizes;
        let Capacity { max_rows, max_seqs, max_sampled, max_seq_len: ctx } = capacity;
        let (mut runner, clip_table, mut stepper) =
            Engine::allocate(gpu, shape, &model.weights, options, sizes)?;
        let tested = Trials::plan(gpu, stepper.recorder(), |rec| rehearse(&mut runner, rec, sizes))?;
        stepper.recorder().finish()?; // parameter blocks are allocated by now, or do not fit
        let limits = Limits {
            architecture: shape.architecture,
            vocab_size: shape.vocab_size,
            ctx,
            n_pages,
            max_seqs,
            max_rows,
            max_sampled,
            max_waiting: options.max_waiting,
            block_rows: shape.block_rows(stepper.recorder()),
            max_logprobs,
            has_logits: options.logits,
            kept_rows: options.kept_rows,
            has_prompt_logprobs: prompt_logprobs > 0,
            has_alignment: runner.clips.as_ref().is_some_and(|clips| clips.weights.is_some()),
            prefix_cache: options.prefix_cache,
        };
        let (tokenizer, end_tokens) = (model.tokenizer().cloned(), model.end_tokens());
        let scheduler = Scheduler::new(limits, clip_table, tokenizer, end_tokens);
        let machine = Decoding { model: model.clone(), scheduler, runner };
        let (gpu, compile_time) = (gpu.clone(), Duration::ZERO);
        Ok((Engine { gpu, model, machine, stepper, compile_time }, tested))
    }
}

/// Most bytes that a load takes and then gives back.
pub(super) fn staging_bytes(gpu: &Gpu, loader: &Loader) -> Result<u64, GpuError> {
    let plan = gpu.plan();
    let _stepper = Stepper::<Pieces>::new(&plan, 4, true)?;
    Ok(plan.counts().live_bytes + loader.staging_bytes())
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
