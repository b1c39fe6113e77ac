//! A model end to end, through the engine's public API.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::shapes::{n_encoder, n_expert, n_multiplied, n_params, n_taken};
use super::stats::{mean_and_sigma, quantile, sorted};
use super::{BenchError, Limits, Meta, ModelReport, ModelRow, ModelSummary, limits};
use crate::checkpoint::{CheckpointError, ModelFiles};
use crate::dtype::Dtype;
use crate::engine::{
    ClipId, Engine, EngineOptions, Event, PAGE_SIZE, Request, Sampling, SpeechRequest, page_bytes,
};
use crate::gpu::{Gpu, GpuOptions};
use crate::models::ModelShape;

/// What to measure, and how often.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Tokens of prompts, each a test `pp…`.
    pub prompts: Vec<usize>,
    /// Tokens of answers, each a test `tg…`.
    pub answers: Vec<usize>,
    /// Prompts with answers, each a test `pp…+tg…`.
    pub both: Vec<(usize, usize)>,
    /// Positions in the cache before a test.
    pub depths: Vec<usize>,
    /// Numbers of sequences in a batch.
    pub batches: Vec<usize>,
    /// Repetitions of each test.
    pub n_repetitions: usize,
    /// Most rows per step: prompts are computed in chunks of this size.
    pub max_rows: usize,
    /// Type that matrices are quantised to while loading. Default: as stored.
    pub quantize: Option<Dtype>,
    /// Type of the cache.
    pub kv_dtype: Dtype,
}

impl Default for ModelOptions {
    fn default() -> Self {
        let engine = EngineOptions::default();
        ModelOptions {
            prompts: vec![512],
            answers: vec![128],
            both: vec![(512, 128)],
            depths: vec![0],
            batches: vec![1],
            n_repetitions: 5,
            max_rows: engine.max_rows,
            quantize: engine.quantize,
            kv_dtype: engine.kv_dtype,
        }
    }
}

/// A prompt, an answer, or both, of a batch of sequences.
#[derive(Clone, Copy, Debug)]
struct Test {
    n_prompt: usize,
    n_answer: usize,
    depth: usize,
    batch: usize,
}

impl Test {
    fn name(&self) -> String {
        match (self.n_prompt, self.n_answer) {
            (p, 0) => format!("pp{p}"),
            (0, n) => format!("tg{n}"),
            (p, n) => format!("pp{p}+tg{n}"),
        }
    }

    /// The test, cut to a model of `most` positions.
    fn within(self, most: usize) -> Test {
        let n_answer = self.n_answer.min(most.saturating_sub(self.n_prompt.min(1) + 2));
        let n_prompt = self.n_prompt.min(most.saturating_sub(n_answer + 1));
        let depth = self.depth.min(most.saturating_sub(n_prompt.max(1) + n_answer + 1));
        Test { n_prompt, n_answer, depth, ..self }
    }

    /// Positions of a sequence. An answer needs at least one token before it, and the last draw one position after it.
    fn n_positions(&self) -> usize {
        self.depth + self.n_prompt.max(1) + self.n_answer + 1
    }
}

impl ModelOptions {
    fn tests(&self) -> Result<Vec<Test>, BenchError> {
        let wrong = |name, found: String, expected| Err(BenchError::Parameter { name, found, expected });
        if self.n_repetitions == 0 {
            return wrong("repetitions", "0".into(), "at least 1");
        }
        if self.batches.contains(&0) {
            return wrong("batch", "0".into(), "at least 1");
        }
        if let Some((p, n)) = self.both.iter().find(|(p, n)| *p == 0 || *n == 0) {
            return wrong("pg", format!("{p},{n}"), "at least 1 of both");
        }
        let prompts = self.prompts.iter().map(|p| (*p, 0));
        let answers = self.answers.iter().map(|n| (0, *n));
        let mut tests = Vec::new();
        // A user leaves a kind out with 0 tokens.
        for (n_prompt, n_answer) in
            prompts.chain(answers).chain(self.both.iter().copied()).filter(|t| *t != (0, 0))
        {
            for &batch in &self.batches {
                tests.extend(self.depths.iter().map(|&depth| Test { n_prompt, n_answer, depth, batch }));
            }
        }
        if tests.is_empty() {
            return wrong("tests", "0".into(), "at least one prompt or answer");
        }
        Ok(tests)
    }
}

/// Time for each of the device's limits.
const LIMITS_BUDGET: Duration = Duration::from_millis(200);
/// Bytes that the copy moves: more than any cache holds.
const COPY_BYTES: u64 = 256 << 20;

/// Loads the model that `open` returns twice, the first time with an empty cache of compiled kernels, and measures it.
/// `progress` gets a description of each step; `command` goes into the report.
///
/// Prompts are random token ids. Repetitions share only the first `depth` tokens.
///
/// # Errors
/// [`BenchError::Parameter`], [`BenchError::Engine`], [`BenchError::Gpu`].
pub fn model(
    gpu: &GpuOptions,
    open: &dyn Fn() -> Result<ModelFiles, CheckpointError>,
    options: &ModelOptions,
    command: String,
    progress: &mut dyn FnMut(&str),
) -> Result<ModelReport, BenchError> {
    let mut tests = options.tests()?;
    let shape = open()?.architecture.shape();
    if shape.audio.is_some() {
        // A speech model's positions are limited to those it was trained on.
        tests.iter_mut().for_each(|test| *test = test.within(shape.max_seq_len));
    }
    let most = |f: fn(&Test) -> usize| tests.iter().map(f).max().unwrap_or(1);
    let engine_options = EngineOptions {
        ctx: Some(most(Test::n_positions)),
        max_seqs: most(|t| t.batch),
        max_rows: options.max_rows,
        quantize: options.quantize,
        // Twice what a test needs, so that the `depth` tokens before it are not evicted.
        kv_tokens: Some(2 * most(|t| t.batch * t.n_positions().next_multiple_of(PAGE_SIZE))),
        kv_dtype: options.kv_dtype,
        ..EngineOptions::default()
    };
    let folder = TemporaryFolder::new();
    let gpu_options = GpuOptions { cache_dir: Some(folder.0.clone()), ..gpu.clone() };
    progress("limits of the device");
    let cold_gpu = Gpu::open(&gpu_options)?;
    let limits = limits(&cold_gpu, COPY_BYTES, LIMITS_BUDGET)?;
    progress("loading with an empty kernel cache");
    let cold = Engine::load(&cold_gpu, open()?, engine_options.clone(), &mut |_| {})?.compile_time();
    drop(cold_gpu);

    progress("loading with compiled kernels");
    let gpu = Gpu::open(&gpu_options)?;
    let files = open()?;
    let is_random = files.weights.random_dtype().is_some();
    let (n_all, dtype) = n_params_and_dtype(&files, options.quantize);
    let begin = Instant::now();
    let mut engine = Engine::load(&gpu, files, engine_options, &mut |_| {})?;
    gpu.submit([])?;
    gpu.wait()?;
    let load = begin.elapsed();
    let weights_bytes = engine.weights_bytes();
    let bytes_per_param = weights_bytes as f64 / n_all.max(1) as f64;

    let mut random_ids = Ids { state: 1, vocab_size: shape.vocab_size as u64 };
    let mut rows = Vec::new();
    let mut clip = None;
    if let Some(audio) = &shape.audio {
        progress(&format!("a clip of {:.0} s", audio.n_frames as f64 / 100.0));
        let features: Vec<f32> = (0..audio.n_frames * audio.n_mels)
            .map(|_| random_ids.draw(1)[0] as f32 / shape.vocab_size as f32 - 0.5)
            .collect();
        // A warm-up.
        encode_clip(&mut engine, &features)?;
        let runs = (0..options.n_repetitions).map(|_| encode_clip(&mut engine, &features));
        let runs = runs.collect::<Result<Vec<_>, _>>()?;
        let n = n_encoder(&shape);
        let least_us = limits.least_us(2.0 * audio.n_positions as f64 * n, n * bytes_per_param);
        rows.push(row(format!("enc{}", audio.n_positions), [0, 1], &runs, (least_us.0 * 1e-6, least_us.1)));
        clip = Some(engine.listen(&features)?);
    }
    for (i, test) in tests.iter().enumerate() {
        progress(&format!("{} of {}: {} at depth {}", i + 1, tests.len(), test.name(), test.depth));
        let runs = repeat(&mut engine, test, clip, options.n_repetitions, &mut random_ids)?;
        let least = least_seconds(&shape, test, options.kv_dtype, bytes_per_param, &limits);
        rows.push(row(test.name(), [test.depth, test.batch], &runs, least));
    }
    let detokenised = if engine.tokenizer().is_some() {
        "turning the answer's ids into text is inside"
    } else {
        "there is no tokenizer, so no text"
    };
    Ok(ModelReport {
        meta: Meta::new(&gpu, command),
        limits,
        model: ModelSummary {
            name: engine.name().to_string(),
            architecture: shape.architecture.to_string(),
            dtype,
            kv_dtype: options.kv_dtype.to_string(),
            is_random,
            n_params: n_all,
            weights_bytes,
            load_ms: load.as_secs_f64() * 1e3,
            compile_cold_ms: cold.as_secs_f64() * 1e3,
            compile_warm_ms: engine.compile_time().as_secs_f64() * 1e3,
            peak_device_bytes: gpu.counts().peak_bytes,
            peak_host_bytes: peak_host_bytes(),
            times_include: format!(
                "sampling is inside the times; {detokenised}; prompts are random ids, so encoding text is outside"
            ),
        },
        rows,
    })
}

/// The number of parameters of a model, and the type of most of their bytes on the device.
pub(super) fn n_params_and_dtype(files: &ModelFiles, quantize: Option<Dtype>) -> (u64, String) {
    let (n_all, stored) = match files.weights.random_dtype() {
        Some(dtype) => (n_params(&files.architecture.shape()) as u64, dtype.to_string()),
        None => (files.weights.n_params() as u64, stored_dtype(files)),
    };
    (n_all, quantize.map_or(stored, |dtype| dtype.to_string()))
}

/// The type of most bytes of a checkpoint.
fn stored_dtype(files: &ModelFiles) -> String {
    let mut bytes = std::collections::BTreeMap::<&str, usize>::new();
    for entry in files.weights.entries() {
        *bytes.entry(&entry.dtype).or_default() += entry.n_bytes;
    }
    bytes.into_iter().max_by_key(|(_, n)| *n).map_or_else(String::new, |(name, _)| name.to_string())
}

/// A folder for compiled kernels that is removed on drop.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn new() -> Self {
        let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.subsec_nanos());
        TemporaryFolder(std::env::temp_dir().join(format!("wginfer-bench-{}-{nanos}", std::process::id())))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // If it does not exist or cannot be removed, the system's cleaning of temporary files handles it.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Random token ids (SplitMix64, Steele et al. 2014).
struct Ids {
    state: u64,
    vocab_size: u64,
}

impl Ids {
    fn draw(&mut self, n: usize) -> Vec<u32> {
        let id = |_| {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) % self.vocab_size) as u32
        };
        (0..n).map(id).collect()
    }
}

/// One repetition.
struct Run {
    n_tokens: usize,
    seconds: f64,
    first_token_ms: f64,
    /// Milliseconds between consecutive tokens.
    gaps_ms: Vec<f64>,
}

/// Runs the audio encoder once.
fn encode_clip(engine: &mut Engine, features: &[f32]) -> Result<Run, BenchError> {
    let n_tokens = engine.shape().audio.as_ref().map_or(0, |audio| audio.n_positions);
    let begin = Instant::now();
    let clip = engine.listen(features)?;
    while !engine.is_idle() {
        engine.pump()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    engine.forget(clip);
    Ok(Run { n_tokens, seconds, first_token_ms: seconds * 1e3, gaps_ms: Vec::new() })
}

fn repeat(
    engine: &mut Engine,
    test: &Test,
    clip: Option<ClipId>,
    n_repetitions: usize,
    ids: &mut Ids,
) -> Result<Vec<Run>, BenchError> {
    let before: Vec<Vec<u32>> = (0..test.batch).map(|_| ids.draw(test.depth)).collect();
    if test.depth > 0 {
        // Fills the cache with what the tests find there.
        answer(engine, &before, clip, 1)?;
    }
    // A warm-up, as in llama-bench.
    once(engine, test, clip, &before, ids)?;
    (0..n_repetitions).map(|_| once(engine, test, clip, &before, ids)).collect()
}

fn once(
    engine: &mut Engine,
    test: &Test,
    clip: Option<ClipId>,
    before: &[Vec<u32>],
    ids: &mut Ids,
) -> Result<Run, BenchError> {
    let prompt = |before: &Vec<u32>| [before.clone(), ids.draw(test.n_prompt.max(1))].concat();
    let prompts: Vec<Vec<u32>> = before.iter().map(prompt).collect();
    // The prompt's last step draws the first token; decode steps draw the others.
    let arrived = answer(engine, &prompts, clip, test.n_answer + 1)?;
    let all = || arrived.times.iter().flatten().copied();
    let firsts = || arrived.times.iter().filter_map(|times| times.first().copied());
    let first = firsts().fold(0.0, f64::max);
    let last = all().fold(0.0, f64::max);
    let gaps = |times: &Vec<f64>| times.windows(2).map(|pair| (pair[1] - pair[0]) * 1e3).collect::<Vec<_>>();
    let gaps_ms: Vec<f64> = arrived.times.iter().flat_map(gaps).collect();
    let (n_tokens, seconds) = match (test.n_prompt, test.n_answer) {
        (_, 0) => (arrived.n_computed, last),
        // From the first token on: the time before belongs to the prompt.
        (0, _) => (gaps_ms.len(), last - first),
        _ => (arrived.n_computed + gaps_ms.len(), last),
    };
    Ok(Run { n_tokens, seconds, first_token_ms: first * 1e3, gaps_ms })
}

/// Arrival times of tokens, in seconds after the requests were submitted, and the number of prompt rows computed.
struct Arrived {
    times: Vec<Vec<f64>>,
    n_computed: usize,
}

fn answer(
    engine: &mut Engine,
    prompts: &[Vec<u32>],
    clip: Option<ClipId>,
    n_tokens: usize,
) -> Result<Arrived, BenchError> {
    let begin = Instant::now();
    let requests = prompts.iter().enumerate().map(|(i, prompt)| {
        engine.submit(Request {
            sampling: Sampling { seed: Some(i as u64), ..Sampling::default() },
            max_tokens: Some(n_tokens),
            // Nothing ends an answer early.
            stop_tokens: Some(Vec::new()),
            speech: clip.map(|clip| SpeechRequest { clip, rules: None, alignment: false }),
            ..Request::new(prompt.clone())
        })
    });
    let requests = requests.collect::<Result<Vec<_>, _>>()?;
    let mut arrived = Arrived { times: vec![Vec::new(); prompts.len()], n_computed: 0 };
    while !engine.is_idle() {
        for event in engine.pump()? {
            let now = begin.elapsed().as_secs_f64();
            match event {
                Event::Token { id, .. } => {
                    if let Some(i) = requests.iter().position(|request| *request == id) {
                        arrived.times[i].push(now);
                    }
                }
                Event::Done { usage, .. } => {
                    arrived.n_computed += usage.prompt_tokens - usage.cached_tokens;
                }
                Event::Failed { error, .. } => return Err(error.into()),
                Event::Logits { .. } | Event::Alignment { .. } | Event::PromptLogprobs { .. } => {}
            }
        }
    }
    Ok(arrived)
}

/// The least time in seconds of a test at the device's limits, and whether memory is the limit. Counts the weights once
/// for the prompt and once per token, of experts those that rows take, and the cache of each sequence.
fn least_seconds(
    model: &ModelShape,
    test: &Test,
    kv_dtype: Dtype,
    bytes_per_param: f64,
    limits: &Limits,
) -> (f64, bool) {
    let [layers, head] = n_multiplied(model);
    let expert = n_expert(model);
    let n_chosen = model.experts.as_ref().map_or(0, |experts| experts.n_chosen) as f64;
    let batch = test.batch as f64;
    let kv_bytes = (page_bytes(model, kv_dtype) / PAGE_SIZE) as f64;
    let pass = |n_rows: f64, pos: f64, n_heads: f64| {
        let flops = 2.0 * n_rows * (layers + n_chosen * expert) + 2.0 * n_heads * head;
        let n_read = layers + head + n_taken(model, n_rows) * expert;
        limits.least_us(flops, n_read * bytes_per_param + batch * pos * kv_bytes)
    };
    let (mut us, mut by_memory) = (0.0, false);
    if test.n_prompt > 0 {
        let (prompt_us, memory) = pass(batch * test.n_prompt as f64, test.depth as f64, batch);
        (us, by_memory) = (prompt_us, memory);
    }
    if test.n_answer > 0 {
        let middle = (test.depth + test.n_prompt.max(1)) as f64 + test.n_answer as f64 / 2.0;
        let (step_us, memory) = pass(batch, middle, batch);
        us += step_us * test.n_answer as f64;
        by_memory = memory;
    }
    (us * 1e-6, by_memory)
}

fn row(
    test: String,
    [depth, batch]: [usize; 2],
    runs: &[Run],
    (least_s, by_memory): (f64, bool),
) -> ModelRow {
    let rates: Vec<f64> = runs.iter().map(|run| run.n_tokens as f64 / run.seconds.max(1e-9)).collect();
    let (tokens_per_second, sigma) = mean_and_sigma(&rates);
    let seconds = mean_and_sigma(&runs.iter().map(|run| run.seconds).collect::<Vec<_>>()).0;
    let gaps = sorted(runs.iter().flat_map(|run| run.gaps_ms.iter().copied()).collect());
    ModelRow {
        test,
        depth,
        batch,
        tokens_per_second,
        sigma,
        n_repetitions: runs.len(),
        percent: least_s / seconds.max(1e-9) * 100.0,
        limit: if by_memory { "memory" } else { "arithmetic" }.into(),
        time_to_first_token_ms: mean_and_sigma(&runs.iter().map(|r| r.first_token_ms).collect::<Vec<_>>()).0,
        time_per_output_token_ms: (!gaps.is_empty()).then(|| [0.5, 0.95, 0.99].map(|q| quantile(&gaps, q))),
    }
}

/// Peak memory of this process. Only Linux reports it.
fn peak_host_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
