//! Layer 4: the resumable machine that turns requests into command buffers and results into events.
//!
//! Nothing here waits unless [`Engine::run`] or [`Engine::pump`] is asked to. A guest calls [`Engine::advance`] once a
//! frame, submits what it gets, and reads [`Engine::events`].
//!
//! - `scheduler`: requests, sequences, the page table, what the next step computes: plain data, no device.
//! - `runner`: the model with its tables on the device: records a step, reads its results.
//! - `stepper`: cuts what is recorded into slices within a budget, and takes in what comes back.
//! - `loading`: a model on its way to the device, on the same stepper.
//!
//! [`TextEncoder`] puts encoders, which read a text in one pass, on the same stepper.

mod encoder;
mod error;
mod events;
mod loading;
mod model;
mod options;
mod runner;
mod sampling;
mod scheduler;
mod stepper;

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

pub use encoder::{Encoded, EncoderOptions, Output, TextEncoder};
pub use error::EngineError;
pub use events::{
    Event, FinishReason, Logits, Logprobs, Request, RequestId, SpeechRequest, Timings, TokenLogprob, Usage,
};
pub use loading::Loading;
pub use model::{LoadedModel, page_bytes};
pub use options::EngineOptions;
pub use sampling::{MAX_BIAS, Sampling, SpeechRules, TimestampRules};
pub use scheduler::{ClipId, PAGE_SIZE};

use crate::gpu::{Gpu, Recorder};
use crate::models::ModelShape;
use crate::text::Tokenizer;
use runner::{Clips, Runner};
use scheduler::{Scheduler, Work};
use stepper::{Kind, Machine, Size, Source, Stepper};

/// Runs requests on one model.
pub struct Engine {
    gpu: Gpu,
    model: Arc<LoadedModel>,
    machine: Decoding,
    stepper: Stepper<Work>,
    /// How long its pipelines took to compile.
    compile_time: Duration,
}

/// What an engine's steps are made by: the one decides, the other records.
struct Decoding {
    scheduler: Scheduler,
    runner: Runner,
}

impl Engine {
    /// Where the model came from.
    pub fn name(&self) -> &str {
        &self.model.name
    }

    /// The model's shape.
    pub fn shape(&self) -> &ModelShape {
        &self.model.shape
    }

    /// The model in device memory, for another engine on it.
    pub fn model(&self) -> &Arc<LoadedModel> {
        &self.model
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The tokenizer, if the checkpoint has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.model.tokenizer()
    }

    /// Positions that a sequence may have.
    pub fn ctx(&self) -> usize {
        self.machine.scheduler.limits().ctx
    }

    /// Positions that the cache holds for all sequences together.
    pub fn kv_tokens(&self) -> usize {
        self.machine.scheduler.limits().n_pages * PAGE_SIZE
    }

    /// Tensors of the checkpoint that the architecture did not ask for.
    pub fn unused_tensors(&self) -> &[String] {
        &self.model.unused_tensors
    }

    /// Bytes that its weights take in device memory.
    pub fn weights_bytes(&self) -> u64 {
        self.model.weights_bytes
    }

    /// How long its pipelines took to compile, while weights were uploaded.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Queues a request. Its events carry the id.
    ///
    /// # Errors
    /// [`EngineError::Busy`] where [`EngineOptions::max_waiting`] requests wait already;
    /// [`EngineError::EmptyPrompt`], [`EngineError::PromptTooLong`], [`EngineError::CacheTooSmall`],
    /// [`EngineError::TokenRange`], [`EngineError::Parameter`]. Nothing was queued then.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        self.machine.scheduler.submit(request)
    }

    /// Whether [`Engine::submit`] takes another request now.
    pub fn has_room(&self) -> bool {
        self.machine.scheduler.has_room()
    }

    /// Queues a clip of sound for the audio encoder: its log-mel features `[n_frames, n_mels]` of the
    /// [`AudioShape`](crate::models::AudioShape), row by row. Requests may name it at once.
    ///
    /// # Errors
    /// [`EngineError::Speech`] if the model does not hear, [`EngineError::Clip`] if the features have another form or all
    /// places ([`EngineOptions::max_clips`]) are taken.
    pub fn listen(&mut self, features: &[f32]) -> Result<ClipId, EngineError> {
        self.machine.scheduler.listen(features)
    }

    /// Gives the clip's place back once the requests that name it have ended; no other may name it.
    pub fn forget(&mut self, clip: ClipId) {
        self.machine.scheduler.forget(clip);
    }

    /// Gives the clip's place back so when another clip needs it and `owner` has been dropped, which may happen where no
    /// engine is at hand.
    pub fn forget_with(&mut self, clip: ClipId, owner: Weak<()>) {
        self.machine.scheduler.forget_with(clip, owner);
    }

    /// Ends a request: at once if it waits, else before its next step. Its last event comes all the same.
    pub fn cancel(&mut self, id: RequestId) {
        self.machine.scheduler.cancel(id);
    }

    /// Whether nothing waits, runs or is on its way back.
    pub fn is_idle(&self) -> bool {
        self.machine.scheduler.is_idle() && self.stepper.is_idle()
    }

    /// Records work for about `budget` of the device's time, at least one layer, and returns it for
    /// submission, in order. Empty when two slices are in flight already or there is nothing to do. Never waits.
    ///
    /// Everything returned must be submitted: later recordings build on it.
    ///
    /// # Errors
    /// [`EngineError::Gpu`].
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.stepper.advance(&mut self.machine, budget)
    }

    /// What happened since the last call. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] if the device is lost.
    pub fn events(&mut self) -> Result<Vec<Event>, EngineError> {
        self.stepper.collect(&mut self.machine)?;
        Ok(self.machine.scheduler.events())
    }

    /// Submits the next slices to our own queue, and waits for the oldest in flight if there was nothing to
    /// submit. Returns the events; the engine is idle once [`Engine::is_idle`] says so.
    ///
    /// # Errors
    /// [`EngineError::Gpu`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, whose host
    /// submits: nothing was recorded then.
    pub fn pump(&mut self) -> Result<Vec<Event>, EngineError> {
        self.stepper.pump(&mut self.machine)?;
        Ok(self.machine.scheduler.events())
    }

    /// Runs until nothing is left to do.
    ///
    /// # Errors
    /// As [`Engine::pump`].
    pub fn run(&mut self, mut on_event: impl FnMut(Event)) -> Result<(), EngineError> {
        while !self.is_idle() {
            self.pump()?.into_iter().for_each(&mut on_event);
        }
        self.events()?.into_iter().for_each(&mut on_event);
        Ok(())
    }
}

impl Machine for Decoding {
    type Work = Work;

    fn next(&mut self) -> Option<Work> {
        self.scheduler.next()
    }

    fn size(&self, work: &Work) -> Size {
        match work {
            Work::Clip(_) => {
                let n_layers = self.runner.clips.as_ref().map_or(0, Clips::n_layers);
                Size { kind: Kind::Clip, n_layers, n_units: 1 }
            }
            Work::Step(step) => {
                let n_layers = self.runner.n_layers();
                match step.n.n_prompt {
                    0 => Size { kind: Kind::Decode, n_layers, n_units: 1 },
                    n => Size { kind: Kind::Prompt, n_layers, n_units: n },
                }
            }
        }
    }

    fn record(
        &mut self,
        rec: &mut Recorder,
        work: &mut Work,
        layers: Range<usize>,
    ) -> Result<Vec<Source>, EngineError> {
        Ok(match work {
            Work::Step(step) => self.runner.step(rec, step, layers),
            Work::Clip(clip) => {
                if let (0, Some(clips)) = (layers.start, &self.runner.clips) {
                    clips.upload(&self.runner.gpu, clip.place, &std::mem::take(&mut clip.features));
                }
                self.runner.hear(rec, clip.place, layers);
                Vec::new()
            }
        })
    }

    fn landed(&mut self, work: Work, bytes: &[u8]) {
        match work {
            Work::Clip(clip) => self.scheduler.clip_landed(clip.id),
            Work::Step(step) => {
                let results = self.runner.results(&step, bytes);
                self.scheduler.step_landed(&step, results);
            }
        }
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("name", &self.name()).field("ctx", &self.ctx()).finish_non_exhaustive()
    }
}
