//! What a model takes on a device, and how fast it will run there, from its config and the headers of its weights.
//!
//! The bytes are those that a load adds up before it allocates: [`Engine::estimate`], [`TextEncoder::estimate`].
//!
//! The rates are sums. The engine says which products, attentions and other kernels a step would dispatch
//! ([`Engine::rehearsals`]), and each of them is timed at its shape, or at a smaller one of the same kind where it is
//! large. Times are kept for the device ([`Measured`]): a model whose kernels have been timed needs none.

mod timed;

use std::time::Duration;

use serde::Serialize;

use super::cases::Pool;
use super::model::n_params_and_dtype;
use super::shapes::Shape;
use super::timer::Timer;
use super::{BenchError, ModelOptions};
use crate::checkpoint::ModelFiles;
use crate::dtype::Dtype;
use crate::engine::{EncoderOptions, Engine, EngineOptions, MemoryFit, StepRows, TextEncoder};
use crate::gpu::{Gpu, GpuError, Measured, Rehearsal};
use crate::models::ModelKind;
use crate::ops::{self, Rows};
use timed::Timed;

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

/// Slices of an engine's work on a device of our own, about: each is a submission.
const SLICE_US: f64 = 20e3;

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
