//! Requests to an engine and what becomes of them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{
    Engine, EngineOptions, Event, FinishReason, Logits, Logprobs, Request, RequestId, Sampling, Usage,
};
use wginfer::gpu::Gpu;

pub fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

pub fn load(gpu: &Gpu, model: &str, options: EngineOptions) -> Engine {
    let checkpoint = ModelFiles::open(&folder(model)).expect("checkpoint");
    Engine::load(gpu, checkpoint, options, &mut |_| {}).expect("engine")
}

pub fn f32_options() -> EngineOptions {
    EngineOptions { kv_dtype: Dtype::F32, logits: true, max_seqs: 4, ..EngineOptions::default() }
}

/// What became of a request.
#[derive(Default, Debug, Clone, PartialEq)]
pub struct Outcome {
    pub tokens: Vec<u32>,
    pub text: String,
    pub logits: Vec<Vec<f32>>,
    pub logprobs: Vec<Logprobs>,
    pub first_score: Option<usize>,
    pub scores: Vec<f32>,
    pub usage: Usage,
    pub finish_reason: Option<FinishReason>,
    pub error: Option<String>,
}

pub fn take(outcomes: &mut HashMap<RequestId, Outcome>, event: Event) {
    match event {
        Event::Token { id, token, text, logprobs } => {
            let o = outcomes.entry(id).or_default();
            o.tokens.push(token);
            o.text.push_str(&text);
            o.logprobs.extend(logprobs);
        }
        Event::Logits { id, position, values } => {
            let o = outcomes.entry(id).or_default();
            o.logits.push(values);
            assert!(position >= o.logits.len() - 1);
        }
        Event::Alignment { .. } => panic!("nobody asked for what rows attend to"),
        Event::PromptLogprobs { id, position, logprobs } => {
            let o = outcomes.entry(id).or_default();
            o.first_score.get_or_insert(position);
            assert_eq!(position, o.first_score.unwrap_or(0) + o.scores.len(), "in order, without a gap");
            o.scores.extend(logprobs);
        }
        Event::Done { id, text, finish_reason, usage, .. } => {
            let o = outcomes.entry(id).or_default();
            o.text.push_str(&text);
            assert_eq!(o.finish_reason.replace(finish_reason), None, "a request ends once");
            o.usage = usage;
        }
        Event::Failed { id, error } => {
            outcomes.entry(id).or_default().error = Some(error.to_string());
        }
    }
}

/// Runs requests together and returns what became of each, in order.
pub fn run(engine: &mut Engine, requests: Vec<Request>) -> Vec<Outcome> {
    let ids: Vec<_> = requests.into_iter().map(|r| engine.submit(r).expect("submit")).collect();
    let mut outcomes = HashMap::new();
    engine.run(|event| take(&mut outcomes, event)).expect("run");
    ids.iter().map(|id| outcomes.remove(id).unwrap_or_default()).collect()
}

pub fn all_logits(prompt: &[u32]) -> Request {
    Request { logits: Some(Logits::All), ..Request::new(prompt.to_vec()) }
}

pub fn write(prompt: &[u32], n: usize, sampling: Sampling) -> Request {
    Request { sampling, max_tokens: Some(n), stop_tokens: Some(vec![]), ..Request::new(prompt.to_vec()) }
}

pub fn prompt(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = super::Rng::new(seed);
    (0..n).map(|_| rng.below(384) as u32).collect()
}

pub fn seeded(seed: u64) -> Sampling {
    Sampling { seed: Some(seed), ..Sampling::default() }
}

pub fn scores(prompt: &[u32], from: usize) -> Request {
    Request { prompt_logprobs: Some(from), ..Request::new(prompt.to_vec()) }
}

/// A device of a host's, and its queue.
pub fn host() -> (Gpu, wginfer::wgpu::Queue) {
    let instance = wginfer::wgpu::Instance::default();
    let adapter = pollster::block_on(instance.request_adapter(&Default::default())).expect("an adapter");
    let (device, queue) =
        pollster::block_on(adapter.request_device(&Gpu::required(&adapter))).expect("a device");
    (Gpu::adopt(device, queue.clone()).expect("large enough"), queue)
}

/// Records and runs one step, which may be several slices, and returns the text of what was recorded.
pub fn step(gpu: &Gpu, engine: &mut Engine) -> String {
    let mut text = String::new();
    for n_slices in 0.. {
        assert!(n_slices < 10_000, "the step ends");
        let buffers = engine.advance(std::time::Duration::from_secs(3600)).expect("it records");
        text += &engine.take_trace();
        gpu.submit(buffers).expect("our own queue");
        gpu.wait().expect("it runs");
        if !engine.events().expect("no failure").is_empty() {
            break;
        }
    }
    text
}
