//! Frames of a guest: how well slices keep the budget that they are given.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::stats::{quantile, sorted};
use super::timer::Timer;
use super::{BenchError, Meta};
use crate::checkpoint::{CheckpointError, ModelFiles};
use crate::dtype::Dtype;
use crate::engine::{ClipId, Engine, EngineOptions, Event, Request, RequestId, Sampling, SpeechRequest};
use crate::gpu::{Gpu, GpuOptions, Recorder, Tensor};
use crate::models::ModelShape;
use crate::ops;

/// What to measure.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Budgets of a frame in milliseconds.
    pub budgets_ms: Vec<f64>,
    /// Frames of each test.
    pub n_frames: usize,
    /// Type that matrices are quantised to while loading. Default: as stored.
    pub quantize: Option<Dtype>,
}

impl Default for GuestOptions {
    fn default() -> Self {
        GuestOptions { budgets_ms: vec![2.0, 4.0, 8.0, 16.0], n_frames: 1000, quantize: None }
    }
}

/// The frames of one kind of work with one budget. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestRow {
    /// `load`, `prompt`, `decode`, `mixed` or `clip`.
    pub work: String,
    /// The budget.
    pub budget_ms: f64,
    /// Frames that had work.
    pub n_frames: usize,
    /// The device's time of a frame: median, 95th and 99th percentile, and the longest. `None` if the device has no
    /// timestamps, or the frames only copied.
    pub device_ms: Option<[f64; 4]>,
    /// The share of frames that exceeded their budget by more than 20 %, in percent.
    pub percent_over: f64,
    /// A dispatch of about the budget's length, always the same, in the same frames: its percentiles as multiples of its
    /// median. What it varies, nobody can predict.
    pub calibrated: [f64; 4],
    /// The host's time of the call: median, 95th and 99th percentile, and the longest.
    pub host_ms: [f64; 4],
    /// Tokens of prompts and of answers per second of device time; bytes while loading.
    pub per_second: f64,
}

/// Frames of a guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Circumstances.
    pub meta: Meta,
    /// The model's folder, or the name of the shape.
    pub model: String,
    /// The longest time of what cannot be cut, as measured in the end.
    pub smallest_slice_ms: f64,
    /// Measurements.
    pub rows: Vec<GuestRow>,
}

/// Loads the model that `open` returns as a guest would, and runs prompts, answers, both, and clips of sound in frames of
/// each budget. `progress` gets a description of each step; `command` goes into the report.
///
/// Each frame is submitted together with a calibrated dispatch, and ends before the next one begins.
///
/// # Errors
/// [`BenchError::Parameter`], [`BenchError::Engine`], [`BenchError::Gpu`].
pub fn guest(
    gpu: &GpuOptions,
    open: &dyn Fn() -> Result<ModelFiles, CheckpointError>,
    options: &GuestOptions,
    command: String,
    progress: &mut dyn FnMut(&str),
) -> Result<GuestReport, BenchError> {
    let wrong = |name, found: String, expected| Err(BenchError::Parameter { name, found, expected });
    if let Some(ms) = options.budgets_ms.iter().find(|ms| !ms.is_finite() || **ms <= 0.0) {
        return wrong("budget", ms.to_string(), "a number of milliseconds above 0");
    }
    if options.n_frames == 0 {
        return wrong("frames", "0".into(), "at least 1");
    }
    let host = Gpu::open(gpu)?;
    let device = host.as_guest()?;
    let mut rows = Vec::new();
    let (mut name, mut smallest_slice_ms) = (String::new(), 0.0f64);
    for budget_ms in &options.budgets_ms {
        let mut frames = Frames::new(&host, *budget_ms)?;
        progress(&format!("loading in frames of {budget_ms} ms"));
        let mut engine = frames.load(&device, open()?, options.quantize, &mut rows)?;
        for &work in Work::of(engine.shape()) {
            progress(&format!("{} in frames of {budget_ms} ms", work.name()));
            rows.push(frames.run(&mut engine, work, options.n_frames)?);
        }
        name = engine.name().to_string();
        smallest_slice_ms = engine.smallest_slice().map_or(0.0, |time| time.as_secs_f64() * 1e3);
    }
    Ok(GuestReport { meta: Meta::new(&host, command), model: name, smallest_slice_ms, rows })
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Work {
    #[default]
    Prompt,
    Decode,
    Mixed,
    Clip,
}

impl Work {
    fn of(shape: &ModelShape) -> &'static [Work] {
        match shape.audio {
            None => &[Work::Prompt, Work::Decode, Work::Mixed],
            Some(_) => &[Work::Clip, Work::Decode],
        }
    }

    fn name(self) -> &'static str {
        match self {
            Work::Prompt => "prompt",
            Work::Decode => "decode",
            Work::Mixed => "mixed",
            Work::Clip => "clip",
        }
    }
}

/// A host's frames.
struct Frames {
    host: Gpu,
    budget_ms: f64,
    timer: Timer,
    rec: Recorder,
    calibration: [Tensor; 2],
    n_steps: usize,
}

/// Times of frames.
#[derive(Default)]
struct Times {
    device_ms: Vec<f64>,
    host_ms: Vec<f64>,
    calibrated_ms: Vec<f64>,
}

impl Frames {
    fn new(host: &Gpu, budget_ms: f64) -> Result<Self, BenchError> {
        let table = |label| Tensor::zeros(host, label, [16, 4096], Dtype::F32);
        let mut frames = Frames {
            host: host.clone(),
            budget_ms,
            timer: Timer::new(host)?,
            rec: Recorder::new(host)?,
            calibration: [table("calibration from")?, table("calibration to")?],
            n_steps: 1024,
        };
        // As long as the budget, by the shortest of some runs of a known length.
        let mut shortest = f64::INFINITY;
        for _ in 0..8 {
            shortest = shortest.min(frames.calibrated()?);
        }
        let n = frames.n_steps as f64 * budget_ms / shortest.max(1e-3);
        frames.n_steps = (n as usize / 8 * 8).clamp(8, 1 << 20);
        Ok(frames)
    }

    /// Runs the calibrated dispatch, and returns its milliseconds.
    fn calibrated(&mut self) -> Result<f64, BenchError> {
        let ([x, y], n_steps) = (&self.calibration, self.n_steps);
        let launch = |rec: &mut Recorder, _| ops::probe_fma(rec, x, y, n_steps, [0.75, 0.5]);
        Ok(self.timer.time(&mut self.rec, &launch, 1)?)
    }

    fn budget(&self) -> Duration {
        Duration::from_secs_f64(self.budget_ms * 1e-3)
    }

    fn load(
        &mut self,
        device: &Gpu,
        files: ModelFiles,
        quantize: Option<Dtype>,
        rows: &mut Vec<GuestRow>,
    ) -> Result<Engine, BenchError> {
        let options = EngineOptions { ctx: Some(512), quantize, max_seqs: 4, ..EngineOptions::default() };
        let mut loading = Engine::loading(device, files, options)?;
        let mut times = Times::default();
        while !loading.is_done() {
            let is_uploading = loading.progress().done_bytes < loading.progress().total_bytes;
            let begin = Instant::now();
            let buffers = loading.advance(self.budget())?;
            let host_ms = begin.elapsed().as_secs_f64() * 1e3;
            self.host.submit(buffers)?;
            self.host.wait()?;
            if is_uploading {
                times.host_ms.push(host_ms);
                times.calibrated_ms.push(self.calibrated()?);
            }
            // Of the frame before, whose results this call has found. Frames that only copy are not timed.
            times.device_ms.extend(Some(sum_ms(&loading.slice_times())).filter(|ms| *ms > 0.0));
        }
        let n_bytes = loading.progress().total_bytes as f64;
        let seconds = times.host_ms.iter().sum::<f64>() * 1e-3;
        rows.push(self.row("load", times, n_bytes / seconds.max(1e-9)));
        Ok(loading.finish()?)
    }

    /// Frames of one kind of work.
    fn run(&mut self, engine: &mut Engine, work: Work, n_frames: usize) -> Result<GuestRow, BenchError> {
        let mut requests = Requests { work, ..Requests::default() };
        // What was never measured has a frame of its own, which a warm-up takes.
        self.frames(engine, &mut requests, n_frames / 4 + 50)?;
        let (times, n_tokens) = self.frames(engine, &mut requests, n_frames)?;
        let seconds = times.device_ms.iter().sum::<f64>() * 1e-3;
        // Nothing is left for the next kind of work.
        requests.end(engine);
        while !engine.is_idle() {
            let buffers = engine.advance(self.budget())?;
            self.host.submit(buffers)?;
            self.host.wait()?;
            engine.events()?;
        }
        engine.slice_times();
        Ok(self.row(work.name(), times, n_tokens as f64 / seconds.max(1e-9)))
    }

    /// Runs `n` frames that have work. Returns their times, and the tokens of prompts and answers.
    fn frames(
        &mut self,
        engine: &mut Engine,
        requests: &mut Requests,
        n: usize,
    ) -> Result<(Times, usize), BenchError> {
        let (mut times, mut n_tokens) = (Times::default(), 0);
        while times.host_ms.len() < n {
            requests.refill(engine)?;
            let begin = Instant::now();
            let buffers = engine.advance(self.budget())?;
            let host_ms = begin.elapsed().as_secs_f64() * 1e3;
            let has_work = !buffers.is_empty();
            self.host.submit(buffers)?;
            self.host.wait()?;
            for event in engine.events()? {
                match event {
                    Event::Token { .. } => n_tokens += 1,
                    Event::Done { id, usage, .. } => {
                        n_tokens += usage.prompt_tokens - usage.cached_tokens;
                        requests.open.retain(|(open, _)| *open != id);
                    }
                    Event::Failed { error, .. } => return Err(error.into()),
                    _ => {}
                }
            }
            let slices = engine.slice_times();
            if has_work {
                times.host_ms.push(host_ms);
                times.calibrated_ms.push(self.calibrated()?);
                times.device_ms.push(sum_ms(&slices));
            }
        }
        Ok((times, n_tokens))
    }

    fn row(&self, work: &str, times: Times, per_second: f64) -> GuestRow {
        let Times { device_ms, host_ms, calibrated_ms } = times;
        let n_frames = host_ms.len();
        let is_over = |ms: &&f64| **ms > 1.2 * self.budget_ms;
        let n_over = device_ms.iter().filter(is_over).count();
        let calibrated = quantiles(calibrated_ms);
        let is_timed = self.host.caps().timestamps && !device_ms.is_empty();
        GuestRow {
            work: work.into(),
            budget_ms: self.budget_ms,
            n_frames,
            percent_over: 100.0 * n_over as f64 / device_ms.len().max(1) as f64,
            device_ms: is_timed.then(|| quantiles(device_ms)),
            calibrated: calibrated.map(|ms| ms / calibrated[0].max(f64::MIN_POSITIVE)),
            host_ms: quantiles(host_ms),
            per_second,
        }
    }
}

fn sum_ms(slices: &[Duration]) -> f64 {
    slices.iter().map(|time| time.as_secs_f64() * 1e3).sum()
}

/// Median, 95th and 99th percentile, and the largest.
fn quantiles(values: Vec<f64>) -> [f64; 4] {
    let values = sorted(values);
    [0.5, 0.95, 0.99, 1.0].map(|q| quantile(&values, q))
}

/// The requests that keep an engine busy.
#[derive(Default)]
struct Requests {
    work: Work,
    /// The open ones, and whether each is a long prompt.
    open: Vec<(RequestId, bool)>,
    clip: Option<ClipId>,
    state: u32,
}

/// Tokens of a long prompt.
const N_PROMPT: usize = 256;
/// Tokens of an answer.
const N_ANSWER: usize = 128;

impl Requests {
    /// Submits what is missing.
    fn refill(&mut self, engine: &mut Engine) -> Result<(), BenchError> {
        let (n_prompts, n_answers) = match self.work {
            Work::Prompt => (1, 0),
            Work::Decode => (0, 1),
            Work::Mixed => (1, 2),
            Work::Clip => (0, 0),
        };
        if let Some(audio) = engine.shape().audio.as_ref() {
            let n = audio.n_frames * audio.n_mels;
            let is_heard = self.clip.is_none() || self.work == Work::Clip && engine.is_idle();
            if is_heard {
                self.clip.take().into_iter().for_each(|clip| engine.forget(clip));
                let features: Vec<f32> = (0..n).map(|_| self.draw() as f32 / 32768.0 - 0.5).collect();
                self.clip = Some(engine.listen(&features)?);
            }
        }
        for (is_prompt, n) in [(true, n_prompts), (false, n_answers)] {
            while self.open.iter().filter(|(_, prompt)| *prompt == is_prompt).count() < n {
                let vocab_size = engine.shape().vocab_size;
                let ctx = engine.ctx();
                let (n_prompt, n_answer) = if is_prompt { (N_PROMPT, 1) } else { (4, N_ANSWER) };
                let n_prompt = n_prompt.min(ctx.saturating_sub(n_answer + 1)).max(1);
                let prompt = (0..n_prompt).map(|_| self.draw() % vocab_size as u32).collect();
                let id = engine.submit(Request {
                    sampling: Sampling { seed: Some(1), ..Sampling::default() },
                    max_tokens: Some(n_answer),
                    // Nothing ends an answer early.
                    stop_tokens: Some(Vec::new()),
                    speech: self.clip.map(|clip| SpeechRequest { clip, rules: None, alignment: false }),
                    ..Request::new(prompt)
                })?;
                self.open.push((id, is_prompt));
            }
        }
        Ok(())
    }

    /// Random numbers of 15 bits (the constants of C's `rand`).
    fn draw(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        (self.state >> 16) & 0x7fff
    }

    fn end(self, engine: &mut Engine) {
        self.open.iter().for_each(|(id, _)| engine.cancel(*id));
        self.clip.into_iter().for_each(|clip| engine.forget(clip));
    }
}
