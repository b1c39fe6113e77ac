//! What a model takes on a device, and how fast it will run there, from its config and the headers of its weights.
//!
//! The bytes are those that a load adds up before it allocates: [`Engine::estimate`], [`TextEncoder::estimate`].
//!
//! The rates are sums. The engine says which products, attentions and other kernels a step would dispatch
//! ([`Engine::rehearsals`]), and each of them is timed at its shape, or at a smaller one of the same kind where it is
//! large. Times are kept for the device ([`Measured`]): a model whose kernels have been timed needs none.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cases::{Case, MOST_DECODE, Pool, Workload, attention, products};
use super::model::n_params_and_dtype;
use super::shapes::Shape;
use super::stats::{quantile, sorted};
use super::timer::Timer;
use super::{BenchError, ModelOptions};
use crate::checkpoint::ModelFiles;
use crate::dtype::Dtype;
use crate::engine::{EncoderOptions, Engine, EngineOptions, MemoryFit, StepRows, TextEncoder};
use crate::gpu::{Gpu, GpuError, Measured, Product, Recorder, Rehearsal, fnv};
use crate::models::ModelKind;
use crate::ops::{self, Attention, Rows};

/// What to estimate.
#[derive(Clone, Debug)]
pub struct EstimateOptions {
    /// Context length in tokens; of an encoder, longest text. Default: the engine's.
    pub ctx: Option<usize>,
    /// Most sequences that run at once; of an encoder, most texts in a batch. Default: 1 sequence, as in a conversation;
    /// of an encoder, the engine's default.
    pub batch: Option<usize>,
    /// Type that matrices are quantised to while loading. Default: as stored.
    pub quantize: Option<Dtype>,
    /// Type of the KV cache.
    pub kv_dtype: Dtype,
    /// Whether to predict rates, for which kernels are timed.
    pub rates: bool,
    /// Time for each kernel that is timed, of which a model has about twenty.
    pub budget: Duration,
}

impl Default for EstimateOptions {
    fn default() -> Self {
        EstimateOptions {
            ctx: None,
            batch: None,
            quantize: None,
            kv_dtype: EngineOptions::default().kv_dtype,
            rates: true,
            budget: Duration::from_millis(400),
        }
    }
}

impl EstimateOptions {
    /// The options of the engine that is estimated.
    pub fn engine(&self) -> EngineOptions {
        EngineOptions {
            ctx: self.ctx,
            max_seqs: self.batch.unwrap_or(1),
            quantize: self.quantize,
            kv_dtype: self.kv_dtype,
            ..EngineOptions::default()
        }
    }

    /// The options of the encoder that is estimated.
    pub fn encoder(&self) -> EncoderOptions {
        let default = EncoderOptions::default();
        EncoderOptions {
            ctx: self.ctx,
            max_seqs: self.batch.unwrap_or(default.max_seqs),
            quantize: self.quantize,
            ..default
        }
    }
}

/// What a model takes, and how fast it will run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Name of the model.
    pub name: String,
    /// Its architecture.
    pub architecture: String,
    /// Type of most of its bytes on the device.
    pub dtype: String,
    /// Its parameters.
    pub n_params: u64,
    /// The device.
    pub device: String,
    /// Context length in tokens; of an encoder, longest text.
    pub ctx: usize,
    /// The longest that the model supports.
    pub max_seq_len: usize,
    /// Most sequences at once; of an encoder, most texts in a batch.
    pub batch: usize,
    /// Weights on the device.
    pub weights_bytes: u64,
    /// The KV cache.
    pub cache_bytes: u64,
    /// Activations, tables and readback.
    pub scratch_bytes: u64,
    /// What loading takes for a while, at most.
    pub staging_bytes: u64,
    /// All together.
    pub total_bytes: u64,
    /// Free memory. `None` where nobody tells.
    pub free_bytes: Option<u64>,
    /// Whether it fits. `None` where nobody tells how much is free.
    pub fits: Option<bool>,
    /// What is missing.
    pub missing_bytes: u64,
    /// If it does not fit, a shorter context that would, or would together with `fitting_quantize`.
    pub fitting_ctx: Option<usize>,
    /// If it does not fit, a type with which it would, or would together with `fitting_ctx`.
    pub fitting_quantize: Option<String>,
    /// Predicted rates.
    pub rates: Vec<EstimatedRate>,
    /// Why rates are missing, if they are.
    pub not_predicted: Option<String>,
}

/// A predicted rate, of a test that [`model`](super::model) measures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EstimatedRate {
    /// `pp512`, `tg128`: as in [`ModelRow`](super::ModelRow).
    pub test: String,
    /// Positions in the cache before the test.
    pub depth: usize,
    /// Tokens per second, of all sequences together.
    pub tokens_per_second: f64,
}

/// Why nothing is predicted of encoders.
const NO_ENCODERS: &str = "rates are predicted only of language models";
/// Why nothing is predicted of speech models.
const NO_SPEECH: &str = "rates are predicted only of language models: a transcript's depend on the speech";

/// Times as long as a kernel is timed, work before the first one is.
const WARM_UP: u32 = 4;
/// Kernels of products, which the engine names with their shapes.
const PRODUCTS: [&str; 5] = ["linear", "linear_tile", "linear_coop", "qkv", "gate_up"];
/// Slices of an engine's work on a device of our own, about: each is a submission.
const SLICE_US: f64 = 20e3;
/// Contexts at which attention of decode rows is timed: within a split, at the length of one, and of several.
const CONTEXTS: [usize; 3] = [128, 512, 2048];
/// Rows of prompts at which attention is timed.
const PROMPTS: [usize; 2] = [128, 512];
/// Rows of prompts at which products are timed: those of a whole step.
const PROMPT_ROWS: usize = 256;

/// What is measured smaller than it is, because it takes long there or needs much memory.
#[derive(Clone, Copy)]
struct Cuts {
    /// Weights of a product of decode rows, and of prompt rows.
    most_weights: [usize; 2],
    /// Bytes that the copies of weights and caches exceed together.
    rotate_bytes: u64,
    /// Rows of embeddings.
    n_embeddings: usize,
}

impl Cuts {
    /// Software devices have few processors, so that little work keeps them busy.
    fn of(gpu: &Gpu) -> Cuts {
        match gpu.caps().cpu {
            true => Cuts { most_weights: [8 << 20, 1 << 19], rotate_bytes: 64 << 20, n_embeddings: 4096 },
            false => {
                Cuts { most_weights: [256 << 20, 256 << 20], rotate_bytes: 256 << 20, n_embeddings: 4096 }
            }
        }
    }
}

/// Estimates models on one device.
pub struct Estimator<'a> {
    gpu: &'a Gpu,
    cuts: Cuts,
    measured: Measured,
    n_measured: usize,
    is_warm: bool,
    pool: Pool<'a>,
    timer: Timer,
}

impl<'a> Estimator<'a> {
    /// An estimator that knows the times which earlier ones kept for the device.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`]; [`GpuError::Adopted`], because only a device of our own can be timed.
    pub fn new(gpu: &'a Gpu) -> Result<Estimator<'a>, BenchError> {
        gpu.check_owned()?;
        let cuts = Cuts::of(gpu);
        Ok(Estimator {
            gpu,
            cuts,
            measured: Measured::read(gpu, ops::tunable()),
            n_measured: 0,
            is_warm: false,
            pool: Pool::new(gpu, cuts.rotate_bytes),
            timer: Timer::new(gpu)?,
        })
    }

    /// Forgets the times that are kept, so that kernels are timed again.
    pub fn forget(&mut self) {
        self.measured = Measured::default();
    }

    /// The number of kernels that this estimator has timed.
    pub fn n_measured(&self) -> usize {
        self.n_measured
    }

    /// Keeps the times for later runs on this device, if there are new ones.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self) -> std::io::Result<()> {
        if self.n_measured == 0 { Ok(()) } else { self.measured.save(self.gpu, ops::tunable()) }
    }

    /// Estimates a model, of which only config and headers are read. `progress` gets the name of each kernel that is
    /// timed.
    ///
    /// # Errors
    /// [`BenchError::Engine`] as from [`Engine::estimate`]; [`BenchError::Gpu`].
    pub fn estimate(
        &mut self,
        files: &ModelFiles,
        options: &EstimateOptions,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Estimate, BenchError> {
        let shape = files.architecture.shape();
        let (fit, batch) = match files.kind() {
            ModelKind::Decoder => {
                let engine = options.engine();
                (Engine::estimate(self.gpu, files, engine.clone())?, engine.max_seqs)
            }
            ModelKind::Encoder => {
                let encoder = options.encoder();
                (TextEncoder::estimate(self.gpu, files, encoder.clone())?, encoder.max_seqs)
            }
        };
        let (rates, not_predicted) = match (shape.kind, &shape.audio) {
            (ModelKind::Encoder, _) => (Vec::new(), Some(NO_ENCODERS.into())),
            (_, Some(_)) => (Vec::new(), Some(NO_SPEECH.into())),
            _ if !options.rates => (Vec::new(), None),
            _ => match self.rates(files, options, fit.ctx, progress) {
                Ok(rates) => (rates, None),
                Err(BenchError::Gpu(error @ (GpuError::OutOfMemory { .. } | GpuError::TooLarge { .. }))) => {
                    (Vec::new(), Some(format!("a kernel cannot be timed: {error}")))
                }
                Err(error) => return Err(error),
            },
        };
        let MemoryFit { ctx, need, free_bytes, fitting_ctx, fitting_quantize } = fit;
        let (n_params, dtype) = n_params_and_dtype(files, options.quantize);
        Ok(Estimate {
            name: files.name.clone(),
            architecture: shape.architecture.to_string(),
            dtype,
            n_params,
            device: self.gpu.info().name.clone(),
            ctx,
            max_seq_len: shape.max_seq_len,
            batch,
            weights_bytes: need.weights_bytes,
            cache_bytes: need.cache_bytes,
            scratch_bytes: need.scratch_bytes,
            staging_bytes: need.staging_bytes,
            total_bytes: need.total_bytes(),
            free_bytes,
            fits: free_bytes.map(|_| fit.fits()),
            missing_bytes: fit.missing_bytes(),
            fitting_ctx,
            fitting_quantize: fitting_quantize.map(|dtype| dtype.to_string()),
            rates,
            not_predicted,
        })
    }

    /// The rates of [`ModelOptions`]' default tests, cut to the context, and of an answer at its end.
    fn rates(
        &mut self,
        files: &ModelFiles,
        options: &EstimateOptions,
        ctx: usize,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<EstimatedRate>, BenchError> {
        let engine = EngineOptions { ctx: Some(ctx), ..options.engine() };
        let (batch, tests) = (engine.max_seqs, ModelOptions::default());
        // A draw needs a position after it.
        let n_prompt = tests.prompts[0].min(ctx - 1);
        let n_answer = tests.answers[0].min(ctx.saturating_sub(2));
        let n_rows = (batch * n_prompt).min(engine.max_rows.max(batch + 1));
        let decode = |n| Rows { n_decode: n, n_prompt: 0 };
        let prompt = Rows { n_decode: 0, n_prompt: n_rows };
        let steps = [(decode(batch), batch), (prompt, 0), (prompt, batch)];
        let steps = steps.map(|(n, n_draws)| StepRows { n, n_draws, longest: 1 });
        let rehearsals = Engine::rehearsals(self.gpu, files, engine.clone(), &steps)?;
        let [answered, computed, drawn] = &rehearsals[..] else { unreachable!("one for each step") };

        let shape =
            Shape { name: String::new(), config_json: String::new(), model: files.architecture.shape() };
        let mut model =
            Timed { all: self, shape, kv_dtype: engine.kv_dtype, budget: options.budget, progress };
        let submission_us = model.submission_us()?;
        let with_submissions = |us: f64| us + submission_us * (us / SLICE_US).ceil().max(1.0);
        let mut rates = Vec::new();
        let mut rate = |test, depth, n_tokens: usize, us: f64| {
            rates.push(EstimatedRate {
                test,
                depth,
                tokens_per_second: (batch * n_tokens) as f64 / us * 1e6,
            });
        };
        if n_prompt > 0 {
            let head_us = model.us(&without(drawn, computed), batch)?;
            let us = model.us(computed, n_rows)?;
            let n_steps = (batch * n_prompt) as f64 / n_rows as f64;
            let attention_us = batch as f64 * model.prompt_attention_us(n_prompt)?;
            let step_us = with_submissions(us + attention_us / n_steps);
            rate(format!("pp{n_prompt}"), 0, n_prompt, n_steps * step_us + head_us);
        }
        if n_answer > 0 {
            let us = model.us(answered, batch)?;
            let deepest = ctx - n_answer - 1;
            let mut depths = vec![0, deepest];
            depths.dedup();
            for depth in depths {
                let attention_us = model.decode_attention_us(batch, depth + n_answer / 2 + 1)?;
                rate(format!("tg{n_answer}"), depth, 1, with_submissions(us + attention_us));
            }
        }
        Ok(rates)
    }
}

/// What `more` dispatches beyond `less`.
fn without(more: &Rehearsal, less: &Rehearsal) -> Rehearsal {
    let mut rest = more.clone();
    for kernel in &less.kernels {
        if let Some(at) = rest.kernels.iter().position(|k| k == kernel) {
            rest.kernels.swap_remove(at);
        }
    }
    for product in &less.products {
        if let Some(at) = rest.products.iter().position(|p| p == product) {
            rest.products.swap_remove(at);
        }
    }
    rest
}

/// The time of an operation, and the kernels that it dispatches.
struct Time {
    us: f64,
    kernels: Vec<&'static str>,
}

/// The times of one model's kernels.
struct Timed<'a, 'g, 'p> {
    all: &'a mut Estimator<'g>,
    shape: Shape,
    kv_dtype: Dtype,
    budget: Duration,
    progress: &'p mut dyn FnMut(&str),
}

impl Timed<'_, '_, '_> {
    /// Microseconds of a step without its attention, which depends on positions. `n_rows` is the number of its rows.
    fn us(&mut self, step: &Rehearsal, n_rows: usize) -> Result<f64, BenchError> {
        let mut kernels = BTreeMap::<&str, usize>::new();
        step.kernels.iter().for_each(|kernel| *kernels.entry(kernel).or_default() += 1);
        let mut products = BTreeMap::<(Product, usize), usize>::new();
        step.products.iter().for_each(|product| *products.entry(*product).or_default() += 1);
        let mut us = 0.0;
        for ((product, n_rows), n) in products {
            let time = self.product(&product, n_rows)?;
            us += n as f64 * time.us;
            for kernel in time.kernels {
                kernels.entry(kernel).and_modify(|left| *left = left.saturating_sub(n));
            }
        }
        for (kernel, n) in kernels {
            let is_summed = PRODUCTS.contains(&kernel) || kernel.starts_with(Attention::OPERATION);
            if n > 0 && !is_summed {
                us += n as f64 * self.other(kernel, n_rows)?;
            }
        }
        Ok(us)
    }

    /// The time of a product with weights.
    fn product(&mut self, product: &Product, n_rows: usize) -> Result<Time, BenchError> {
        let cuts = self.all.cuts;
        let n_timed = match product.is_prompt {
            true => PROMPT_ROWS,
            false => n_rows.min(MOST_DECODE),
        };
        let work = self.work(n_timed, product.dtype);
        let (case, share) =
            products::of_step(&work, product, cuts.most_weights[usize::from(product.is_prompt)]);
        let Time { us, kernels } = self.time(&case)?;
        Ok(Time { us: us * share * n_rows as f64 / n_timed as f64, kernels })
    }

    /// Microseconds of another kernel over `n_rows` rows.
    fn other(&mut self, kernel: &str, n_rows: usize) -> Result<f64, BenchError> {
        let mut shape = self.shape.clone();
        if kernel == "embed" {
            shape.model.vocab_size = shape.model.vocab_size.min(self.all.cuts.n_embeddings);
        }
        let timed = |n_rows| {
            // The type is that of the cache, for the kernel that appends to it; to others it makes no difference.
            let work = Workload { shape: &shape, ..self.work(n_rows, self.kv_dtype) };
            let mut cases = work.cases_of(kernel);
            // The engine's default draws from all tokens.
            let plain = cases.iter().position(|case| case.shape.ends_with(" plain")).unwrap_or(0);
            (plain < cases.len()).then(|| cases.swap_remove(plain))
        };
        match timed(n_rows).map(|case| (case, 1.0)).or_else(|| Some((timed(1)?, n_rows as f64))) {
            Some((case, share)) => Ok(share * self.time(&case)?.us),
            // No case of its own: a dispatch that does little.
            None => match if self.shape.model.has_layer_norm { "layer_norm" } else { "rms_norm" } {
                norm if norm != kernel => self.other(norm, 1),
                _ => Ok(0.0),
            },
        }
    }

    /// Microseconds of the attention of a step whose `n_seqs` sequences have `n_positions` positions each, of all layers.
    fn decode_attention_us(&mut self, n_seqs: usize, n_positions: usize) -> Result<f64, BenchError> {
        let n_timed = n_seqs.min(MOST_DECODE);
        let mut us = 0.0;
        for (attention, n_layers) in self.attentions() {
            let mut points = Vec::new();
            for context in CONTEXTS {
                let work = self.work(n_timed, Dtype::F32);
                let case = attention::of_step(&work, attention, context, self.kv_dtype);
                if !points.is_empty() && case.cost.bytes > self.all.cuts.rotate_bytes as f64 {
                    break;
                }
                points.push((context as f64, self.time(&case)?.us));
            }
            // Beyond a window nothing is read.
            let [.., last] = CONTEXTS;
            let n_seen = n_positions.min(attention.window.unwrap_or(usize::MAX).max(last));
            us += n_layers as f64 * along(&points, n_seen as f64);
        }
        Ok(us * n_seqs as f64 / n_timed as f64)
    }

    /// Microseconds of the attention over a prompt of one sequence, of all layers.
    fn prompt_attention_us(&mut self, n_prompt: usize) -> Result<f64, BenchError> {
        let mut us = 0.0;
        for (attention, n_layers) in self.attentions() {
            let n_seen = |n: usize| -> f64 {
                let window = attention.window.unwrap_or(usize::MAX);
                (1..=n).map(|seen| seen.min(window)).sum::<usize>() as f64
            };
            let mut times = [0.0; 2];
            for (time, n_rows) in times.iter_mut().zip(PROMPTS) {
                let work = self.work(n_rows, Dtype::F32);
                *time = self.time(&attention::of_step(&work, attention, n_rows, self.kv_dtype))?.us;
            }
            // A row costs something, and each key that it sees.
            let [few, many] = PROMPTS.map(|n| [n as f64, n_seen(n)]);
            let determinant = few[0] * many[1] - many[0] * few[1];
            // A window of one key makes both the same.
            let a_row = match determinant > 0.0 {
                true => ((times[0] * many[1] - times[1] * few[1]) / determinant).max(0.0),
                false => 0.0,
            };
            let a_key = ((times[1] - a_row * many[0]) / many[1]).max(0.0);
            us += n_layers as f64 * (a_row * n_prompt as f64 + a_key * n_seen(n_prompt));
        }
        Ok(us)
    }

    /// The different attentions of the layers, each with the number of its layers.
    fn attentions(&self) -> Vec<(Attention, usize)> {
        let mut all: Vec<(Attention, usize)> = Vec::new();
        for attention in &self.shape.model.attention {
            match all.iter_mut().find(|(known, _)| known == attention) {
                Some((_, n)) => *n += 1,
                None => all.push((*attention, 1)),
            }
        }
        all
    }

    fn work(&self, n_rows: usize, dtype: Dtype) -> Workload<'_> {
        let (caps, rotate_bytes) = (self.all.gpu.caps(), self.all.cuts.rotate_bytes);
        Workload { caps, shape: &self.shape, n_rows, dtype, is_first_dtype: true, rotate_bytes }
    }

    /// The time of a case, measured if it is not known.
    fn time(&mut self, case: &Case) -> Result<Time, BenchError> {
        let gpu = self.all.gpu;
        let plan = gpu.plan();
        let planned = case.prepare(&mut Pool::new(&plan, 0))?;
        let Rehearsal { variants, kernels, .. } =
            Recorder::new(&plan)?.rehearsal(|rec| planned.launch(rec, 0));
        // Another choice of variants has times of its own.
        let labels = variants.iter().map(|variant| variant.label()).collect::<Vec<_>>().join("\n");
        let what = format!("{}{} {} {} rows", case.kernel, case.shape, case.dtype, case.n_rows);
        let name = format!("{what}, {:016x}", fnv(0, labels.as_bytes()));
        if let Some(us) = self.all.measured.get(&name) {
            return Ok(Time { us, kernels });
        }
        (self.progress)(&what);
        let prepared = case.prepare(&mut self.all.pool)?;
        let mut rec = Recorder::new(gpu)?;
        rec.rehearse(|rec| prepared.launch(rec, 0))?;
        let launch = |rec: &mut Recorder, i: usize| prepared.launch(rec, i);
        if !std::mem::replace(&mut self.all.is_warm, true) {
            // A device raises its clocks, and the system moves a software device's threads apart, only after a while of
            // work: on llvmpipe the first kernel took twice as long in two of three runs.
            self.all.timer.samples(&mut rec, &launch, WARM_UP * self.budget)?;
        }
        let samples = self.all.timer.samples(&mut rec, &launch, self.budget)?;
        Ok(Time { us: self.keep(name, quantile(&samples, 0.5)), kernels })
    }

    /// Microseconds that a submission takes beside its work.
    fn submission_us(&mut self) -> Result<f64, BenchError> {
        const NAME: &str = "submission";
        if let Some(us) = self.all.measured.get(NAME) {
            return Ok(us);
        }
        (self.progress)(NAME);
        let gpu = self.all.gpu;
        let word = gpu.dummy()?;
        let mut rec = Recorder::new(gpu)?;
        let mut samples = Vec::new();
        let begin = Instant::now();
        while samples.len() < 3 || begin.elapsed() < self.budget {
            rec.clear(&word, 0, word.size_bytes());
            let commands = rec.finish()?;
            let begin = Instant::now();
            gpu.submit(commands)?;
            gpu.wait()?;
            samples.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        Ok(self.keep(NAME.into(), quantile(&sorted(samples), 0.5)))
    }

    /// Keeps a time, which no clock is so fine that it is 0.
    fn keep(&mut self, name: String, us: f64) -> f64 {
        let us = us.max(1e-3);
        self.all.measured.set(name, us);
        self.all.n_measured += 1;
        us
    }
}

/// The value at `x` of straight lines through `points`, the last of which goes on.
fn along(points: &[(f64, f64)], x: f64) -> f64 {
    let Some(&(first_x, first)) = points.first() else { return 0.0 };
    if points.len() == 1 {
        return first * x / first_x;
    }
    let pair = points.windows(2).find(|pair| x <= pair[1].0).unwrap_or(&points[points.len() - 2..]);
    let slope = ((pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0)).max(0.0);
    (pair[0].1 + slope * (x - pair[0].0)).max(first * 0.1)
}
