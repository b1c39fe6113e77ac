//! Layer 4: the resumable machine that turns requests into command buffers and results into events.
//!
//! Nothing here waits unless [`Engine::run`] is asked to. A guest calls [`Engine::advance`] once a frame,
//! submits what it gets, and reads [`Engine::events`].
//!
//! A step is one forward pass over a batch: one decoding row for each sequence that writes, then rows of
//! prompts. Steps are recorded ahead of their results: the token that a step draws is read on the device by
//! the next, so the host is told of it late and only looks for the end.
//!
//! [`TextEncoder`] is the same machine for encoders, which read a text in one pass.

mod clips;
mod collect;
mod encoder;
mod error;
mod events;
mod forward;
mod load;
mod options;
mod pages;
mod plan;
mod sampling;
mod schedule;
mod sequence;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

pub use clips::ClipId;
pub use encoder::{Encoded, EncoderOptions, Output, TextEncoder};
pub use error::EngineError;
pub use events::{
    Event, FinishReason, Logits, Logprobs, Request, RequestId, SpeechRequest, Timings, TokenLogprob, Usage,
};
pub use options::EngineOptions;
pub use pages::{KvPages, PAGE_SIZE};
pub use sampling::{MAX_BIAS, Sampling, SpeechRules, TimestampRules};

use crate::gpu::{Flight, Gpu, MOST_IN_FLIGHT, Recorder};
use crate::models::{ModelShape, Scratch};
use crate::text::{StreamDecoder, Tokenizer};
use clips::Clips;
use forward::Forward;
use plan::Plan;
use sequence::Sequence;

/// Time that [`Engine::run`] lets a submission take: longer ones starve a desktop's compositor.
const SLICE: Duration = Duration::from_millis(20);

/// What is recorded layer by layer.
#[derive(Clone)]
enum Work {
    /// A forward pass over a batch.
    Step(Box<Plan>),
    /// The encoder over a clip.
    Clip(ClipId),
}

/// Part of some work that was recorded and has not finished.
struct Slice {
    /// The work that it completes.
    done: Option<Work>,
    n_layers: usize,
    kind: Kind,
}

/// What a layer's time depends on.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Decode,
    /// With so many rows of prompts.
    Prompt(usize),
    /// Of the encoder.
    Clip,
}

/// Work that is being recorded, and the layer that comes next.
struct Recording {
    work: Work,
    layer: usize,
}

/// Runs requests on one model.
pub struct Engine {
    gpu: Gpu,
    name: String,
    forward: Forward,
    scratch: Scratch,
    shape: ModelShape,
    tokenizer: Option<Tokenizer>,
    end_tokens: Vec<u32>,
    options: EngineOptions,
    ctx: usize,
    rec: Recorder,
    flight: Flight<Slice>,
    /// Slots that no step in flight touches.
    free_slots: Vec<usize>,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    recording: Option<Recording>,
    events: Vec<Event>,
    next_id: u64,
    /// Moving averages: milliseconds a layer of a decode step, a layer and row of a prompt, a layer of a clip.
    decode_ms: f64,
    prompt_ms: f64,
    clip_ms: f64,
    unused_tensors: Vec<String>,
    weights_bytes: u64,
    compile_time: Duration,
}

impl Engine {
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
        self.tokenizer.as_ref()
    }

    /// Positions that a sequence may have.
    pub fn ctx(&self) -> usize {
        self.ctx
    }

    /// Tensors of the checkpoint that the architecture did not ask for.
    pub fn unused_tensors(&self) -> &[String] {
        &self.unused_tensors
    }

    /// Bytes that its matrices take in device memory.
    pub fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// How long its pipelines took to compile, while weights were uploaded.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Queues a request. Its events carry the id.
    ///
    /// # Errors
    /// [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`], [`EngineError::TokenRange`],
    /// [`EngineError::Parameter`]: nothing was queued then.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        let vocab_size = self.shape.vocab_size;
        request.sampling.check(vocab_size)?;
        let n = request.prompt.len();
        if n == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        // A draw needs a place after the prompt, logits do not.
        let holds = if request.writes() { self.ctx - 1 } else { self.ctx };
        if n > holds {
            return Err(EngineError::PromptTooLong { found: n, expected: holds });
        }
        if let Some(position) = request.prompt.iter().position(|t| *t as usize >= vocab_size) {
            return Err(EngineError::TokenRange { token: request.prompt[position], position, vocab_size });
        }
        if request.logprobs.is_some_and(|k| k > self.options.max_logprobs) {
            let found = request.logprobs.unwrap_or(0).to_string();
            let expected = "at most what the engine was built for (`EngineOptions::max_logprobs`)";
            return Err(EngineError::Parameter { name: "logprobs", found, expected });
        }
        if request.logits.is_some() && !self.options.logits {
            let expected = "an engine built with `EngineOptions::logits`";
            return Err(EngineError::Parameter { name: "logits", found: "asked for".into(), expected });
        }
        if let Some(from) = request.prompt_logprobs {
            let wrong = |found: String, expected| {
                Err(EngineError::Parameter { name: "prompt_logprobs", found, expected })
            };
            if self.options.prompt_logprobs == 0 {
                let expected = "an engine built with `EngineOptions::prompt_logprobs`";
                return wrong("asked for".into(), expected);
            }
            if request.logits.is_some() {
                return wrong("asked for with `logits`".into(), "one of the two");
            }
            if from == 0 || from >= n {
                return wrong(from.to_string(), "a position of the prompt behind its first token");
            }
        }
        if request.max_tokens == Some(0) && request.writes() {
            let expected = "at least 1";
            return Err(EngineError::Parameter { name: "max_tokens", found: "0".into(), expected });
        }
        match (&self.forward.clips, &request.speech) {
            (None, None) => {}
            (Some(clips), Some(speech)) => {
                if !clips.knows(speech.clip) {
                    let (found, expected) = (format!("clip {}", speech.clip.0), "one that is kept");
                    return Err(EngineError::Parameter { name: "clip", found, expected });
                }
                if speech.alignment && clips.weights.is_none() {
                    let expected = "an engine built with `EngineOptions::alignment_heads`";
                    return Err(EngineError::Parameter { name: "alignment", found: "true".into(), expected });
                }
                speech.rules.iter().try_for_each(|rules| rules.check(n, vocab_size))?;
            }
            (clips, _) => {
                let problem = if clips.is_some() { error::NEEDS_CLIP } else { error::HEARS_NOTHING };
                return Err(EngineError::Speech { architecture: self.shape.architecture, problem });
            }
        }
        let most = match request.writes() {
            false => 0,
            true => request.max_tokens.unwrap_or(usize::MAX).min(self.ctx - n),
        };
        let id = RequestId(self.next_id);
        self.next_id += 1;
        let seed = request.sampling.seed.unwrap_or_else(|| random_seed(id));
        let decoder = self.tokenizer.as_ref().map(|t| decoder_after(t, &request.prompt));
        self.waiting.push_back(Sequence::new(id, request, seed, most, decoder));
        Ok(id)
    }

    /// Queues a clip of sound for the encoder: its log-mel features `[n_frames, n_mels]` of the
    /// [`AudioShape`](crate::models::AudioShape), row by row. Requests may name it at once.
    ///
    /// # Errors
    /// [`EngineError::Speech`] if the model does not hear, [`EngineError::Clip`] if the features have another form or all
    /// places ([`EngineOptions::max_clips`]) are taken.
    pub fn listen(&mut self, features: &[f32]) -> Result<ClipId, EngineError> {
        let (architecture, problem) = (self.shape.architecture, error::HEARS_NOTHING);
        let clips = self.forward.clips.as_mut().ok_or(EngineError::Speech { architecture, problem })?;
        clips.listen(features)
    }

    /// Gives the clip's place back once the requests that were admitted are done with it.
    pub fn forget(&mut self, clip: ClipId) {
        self.forward.clips.iter_mut().for_each(|clips| clips.forget(clip));
    }

    /// Ends a request: at once if it waits, else before its next step. Its last event comes all the same.
    pub fn cancel(&mut self, id: RequestId) {
        if let Some(at) = self.waiting.iter().position(|s| s.id == id) {
            if let Some(mut sequence) = self.waiting.remove(at) {
                sequence.finished = Some(FinishReason::Cancelled);
                self.events.extend(sequence.done());
            }
        } else if let Some(sequence) = self.running.iter_mut().find(|s| s.id == id) {
            sequence.finished.get_or_insert(FinishReason::Cancelled);
        }
    }

    /// Whether nothing waits, runs or is on its way back.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.forward.clips.as_ref().is_none_or(|clips| !clips.has_waiting())
            && self.running.is_empty()
            && self.recording.is_none()
            && self.flight.is_empty()
    }

    /// Records work for about `budget` of the device's time, at least one layer, and returns it for
    /// submission, in order. Empty when two slices are in flight already or there is nothing to do. Never waits.
    ///
    /// Everything returned must be submitted: later recordings build on it.
    ///
    /// # Errors
    /// [`EngineError::Gpu`].
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.collect()?;
        let mut left_ms = budget.as_secs_f64() * 1e3;
        let mut buffers = Vec::new();
        let most = if self.options.run_ahead { MOST_IN_FLIGHT } else { 1 };
        while self.flight.has_room(most) {
            let recording = match self.recording.take() {
                Some(recording) => recording,
                None if self.rec.params_are_low() && !self.flight.is_empty() => break,
                None => {
                    if self.rec.params_are_low() {
                        self.rec.reset_params();
                    }
                    match self.next_work() {
                        Some(work) => Recording { work, layer: 0 },
                        None => break,
                    }
                }
            };
            let (kind, layer_ms) = self.layer_cost(&recording.work);
            if !buffers.is_empty() && left_ms < layer_ms {
                self.recording = Some(recording); // the next call goes on with it
                break;
            }
            let n_layers = (left_ms / layer_ms).max(1.0) as usize;
            left_ms -= self.record(recording, kind, n_layers) as f64 * layer_ms;
            buffers.extend(self.rec.finish()?);
        }
        Ok(buffers)
    }

    /// What happened since the last call. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] if the device is lost.
    pub fn events(&mut self) -> Result<Vec<Event>, EngineError> {
        self.collect()?;
        Ok(std::mem::take(&mut self.events))
    }

    /// Submits the next slices to our own queue, and waits for the oldest in flight if there was nothing to
    /// submit. Returns the events; the engine is idle once [`Engine::is_idle`] says so.
    ///
    /// # Errors
    /// [`EngineError::Gpu`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, whose host
    /// submits: nothing was recorded then.
    pub fn pump(&mut self) -> Result<Vec<Event>, EngineError> {
        self.gpu.check_owned()?;
        let buffers = self.advance(SLICE)?;
        self.flight.submit(buffers)?;
        self.events()
    }

    /// Runs until nothing is left to do.
    ///
    /// # Errors
    /// As [`Engine::pump`].
    pub fn run(&mut self, mut on_event: impl FnMut(Event)) -> Result<(), EngineError> {
        self.gpu.check_owned()?;
        while !self.is_idle() {
            self.pump()?.into_iter().for_each(&mut on_event);
        }
        self.events()?.into_iter().for_each(&mut on_event);
        Ok(())
    }

    /// What a layer is expected to take, in milliseconds.
    fn layer_cost(&self, work: &Work) -> (Kind, f64) {
        match work {
            Work::Clip(_) => (Kind::Clip, self.clip_ms),
            Work::Step(plan) => match plan.n.n_prompt {
                0 => (Kind::Decode, self.decode_ms),
                n => (Kind::Prompt(n), self.prompt_ms * n as f64),
            },
        }
    }

    /// Records up to `n_layers` layers, and what follows the last; returns how many.
    fn record(&mut self, mut recording: Recording, kind: Kind, n_layers: usize) -> usize {
        let (rec, forward, s) = (&mut self.rec, &mut self.forward, &mut self.scratch);
        let first = recording.layer;
        if !self.gpu.is_owned() {
            // A guest sees results once a frame: only the device knows how long they took.
            rec.start_timing();
        }
        let n_all = match &recording.work {
            Work::Step(_) => self.shape.n_layers(),
            Work::Clip(_) => forward.clips.as_ref().map_or(0, Clips::n_layers),
        };
        let last = first.saturating_add(n_layers).min(n_all);
        let ends = last == n_all;
        let mut sources = Vec::new();
        match &recording.work {
            Work::Step(plan) => {
                if first == 0 {
                    forward.plans.upload(&self.gpu, rec, plan);
                    forward.model.embed(rec, &forward.batch(plan), s);
                }
                (first..last).for_each(|i| forward.model.layer(i, rec, &forward.batch(plan), s));
                if ends {
                    sources = forward.draw(rec, plan, s);
                }
            }
            Work::Clip(clip) => forward.hear(rec, Some(*clip), [first, last], s),
        }
        if sources.is_empty() {
            sources.push((forward.results.chosen.clone(), 0, 4)); // of no use but to tell that the slice is done
        }
        let sources: Vec<_> = sources.iter().map(|(tensor, from, n)| (tensor, *from, *n)).collect();
        let done = ends.then(|| recording.work.clone());
        self.flight.record(rec, &sources, Slice { done, n_layers: last - first, kind });
        if !ends {
            recording.layer = last;
            self.recording = Some(recording);
        }
        last - first
    }
}

/// A decoder that knows how the prompt ends, because decoders in the manner of SentencePiece drop a space at the
/// beginning of a text, and the answer is none. After a special token (a chat's turn) it is one.
fn decoder_after(tokenizer: &Tokenizer, prompt: &[u32]) -> StreamDecoder {
    /// Tokens that a character or a space may hang on.
    const CONTEXT: usize = 8;
    let mut decoder = StreamDecoder::new(tokenizer, true);
    let n_text = prompt.iter().rev().take(CONTEXT).take_while(|t| !tokenizer.is_special(**t)).count();
    for token in &prompt[prompt.len() - n_text..] {
        // What the prompt says is known; ids that do not decode say nothing about the answer.
        let _ = decoder.push(*token);
    }
    decoder
}

/// A seed that differs from request to request and from run to run.
fn random_seed(id: RequestId) -> u64 {
    // The standard library keys its hash maps from the system's randomness.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(id.0);
    hasher.finish()
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("name", &self.name).field("ctx", &self.ctx).finish()
    }
}
