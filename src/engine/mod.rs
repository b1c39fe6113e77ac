//! Layer 4: the resumable engine, from requests to command buffers, and from results to events.
//!
//! Only [`Engine::run`] and [`Engine::pump`] wait. A guest calls [`Engine::advance`] once per frame, submits the
//! command buffers that it returns, and reads [`Engine::events`].
//!
//! - `scheduler`: requests, sequences, the page table, and what the next step computes. Plain data, no device.
//! - `runner`: the model with its tables on the device. Records a step and reads its results.
//! - `stepper`: cuts recordings into slices within a budget, and handles results.
//! - `frames`: several engines in the frames of one host.
//! - `loading`: the upload of a model to the device, on the same stepper.
//! - `self_test`: variants on a driver that was never seen before, against the portable ones.
//!
//! [`TextEncoder`] runs encoders, which read a text in one pass, on the same stepper.

mod encoder;
mod error;
mod events;
mod frames;
mod loading;
mod memory;
mod model;
mod options;
mod runner;
mod sampling;
mod scheduler;
mod self_test;
mod stepper;
mod variants;

use std::sync::{Arc, Weak};
use std::time::Duration;

pub use encoder::{Encoded, EncoderOptions, Output, TextEncoder};
pub use error::{EngineError, MemoryNeed};
pub use events::{
    Event, FinishReason, Logits, Logprobs, Request, RequestId, SpeechRequest, Timings, TokenLogprob, Usage,
};
pub use frames::{Frames, Guest};
pub use loading::Loading;
pub use memory::MemoryFit;
pub use model::{LoadedModel, page_bytes};
pub use options::{DEFAULT_CTX, EngineOptions};
pub use sampling::{MAX_BIAS, Sampling, SpeechRules, TimestampRules};
pub use scheduler::{ClipId, PAGE_SIZE};
#[cfg(feature = "bench")]
pub(crate) use variants::StepRows;

use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::ModelShape;
use crate::text::Tokenizer;
use runner::{Clips, Runner};
use scheduler::{Scheduler, Work};
use stepper::{Machine, ReadRange, Stepper};

/// Runs requests on one model, in one batch.
pub struct Engine {
    gpu: Gpu,
    model: Arc<LoadedModel>,
    machine: Decoding,
    stepper: Stepper<Work>,
    /// Time to compile the pipelines.
    compile_time: Duration,
}

/// The two halves of an engine: the scheduler decides, the runner records.
struct Decoding {
    model: Arc<LoadedModel>,
    scheduler: Scheduler,
    runner: Runner,
}

impl Engine {
    /// The model's name, for messages: the folder that it was loaded from.
    pub fn name(&self) -> &str {
        &self.model.name
    }

    /// The model's shape.
    pub fn shape(&self) -> &ModelShape {
        &self.model.shape
    }

    /// The model in device memory, to build another engine on it ([`Engine::new`]).
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

    /// Context length in tokens.
    pub fn ctx(&self) -> usize {
        self.machine.scheduler.limits().ctx
    }

    /// Capacity of the KV cache in tokens, for all sequences together.
    pub fn kv_tokens(&self) -> usize {
        self.machine.scheduler.limits().n_pages * PAGE_SIZE
    }

    /// Tensors of the checkpoint that the architecture does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.model.unused_tensors
    }

    /// Bytes of the weights in device memory.
    pub fn weights_bytes(&self) -> u64 {
        self.model.weights_bytes
    }

    /// Time to compile the pipelines. Compilation runs in parallel with the upload of weights.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Queues a request, and returns the id that its events have.
    ///
    /// # Errors
    /// [`EngineError::Busy`] if [`EngineOptions::max_waiting`] requests wait already; [`EngineError::EmptyPrompt`],
    /// [`EngineError::PromptTooLong`], [`EngineError::CacheTooSmall`], [`EngineError::TokenRange`],
    /// [`EngineError::Parameter`]; [`EngineError::Gpu`] if the device is lost. After an error, nothing has been queued.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        self.stepper.check(&mut self.machine)?;
        self.machine.scheduler.submit(request)
    }

    /// Whether [`Engine::submit`] accepts another request now.
    pub fn has_room(&self) -> bool {
        self.machine.scheduler.has_room()
    }

    /// The logits or probabilities that requests leave on the device ([`Logits::Kept`]), for a shader of the host's:
    /// `[kept_rows, vocab_size]` F32. A row begins each [`Tensor::stride`] values of [`Tensor::buffer`], which is a storage
    /// buffer. `None` if [`EngineOptions::kept_rows`] is 0.
    ///
    /// A row is complete once the request's [`Event::Done`] has come, and is overwritten by nothing but the next request
    /// with this row: by those command buffers of [`Engine::advance`] that compute it.
    pub fn kept(&self) -> Option<&Tensor> {
        self.machine.runner.results.kept.as_ref().map(|kept| &kept.rows)
    }

    /// Queues an audio clip for the audio encoder: log-mel features `[n_frames, n_mels]` (sizes in
    /// [`AudioShape`](crate::models::AudioShape)), row by row. Requests may refer to the clip immediately.
    ///
    /// # Errors
    /// [`EngineError::Speech`] if the model has no audio encoder; [`EngineError::Clip`] if the features have another
    /// size or are not finite, or [`EngineOptions::max_clips`] clips are kept already; [`EngineError::Gpu`] if the
    /// device is lost.
    pub fn listen(&mut self, features: &[f32]) -> Result<ClipId, EngineError> {
        self.stepper.check(&mut self.machine)?;
        self.machine.scheduler.listen(features)
    }

    /// Drops a clip once the requests that refer to it have ended. New requests may not refer to it.
    pub fn forget(&mut self, clip: ClipId) {
        self.machine.scheduler.forget(clip);
    }

    /// Gives the clip's place back so when another clip needs it and `owner` has been dropped, which may happen where no
    /// engine is at hand.
    pub fn forget_with(&mut self, clip: ClipId, owner: Weak<()>) {
        self.machine.scheduler.forget_with(clip, owner);
    }

    /// Cancels a request: immediately if it waits, else before its next step. Its last event still comes.
    pub fn cancel(&mut self, id: RequestId) {
        self.machine.scheduler.cancel(id);
    }

    /// Whether no request waits or runs, and no result is in flight.
    pub fn is_idle(&self) -> bool {
        self.machine.scheduler.is_idle() && self.stepper.is_idle()
    }

    /// Records work for about `budget` of device time, at least one dispatch or piece of one, and returns the command
    /// buffers to submit, in order. Empty if two slices are in flight already or there is nothing to do. Never waits.
    ///
    /// What a dispatch takes is learnt from the device's timestamps: 99 of 100 calls exceed their budget by at most 20 %,
    /// unless it is shorter than [`Engine::smallest_slice`]. A kind of dispatch that was never measured has a call of its own.
    ///
    /// All of them must be submitted, because later recordings depend on them.
    ///
    /// # Errors
    /// [`EngineError::Gpu`]: with [`GpuError::Dropped`] if a command buffer was dropped instead of submitted, which ends all
    /// that is open.
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.stepper.advance(&mut self.machine, budget)
    }

    /// The longest time of what cannot be cut, as measured so far: a dispatch, or the smallest piece of one. Shorter budgets
    /// of [`Engine::advance`] are exceeded, but every call still makes progress. A guest's first budget that is too short is
    /// reported as a warning. `None` until something was measured.
    pub fn smallest_slice(&self) -> Option<Duration> {
        self.stepper.smallest_slice()
    }

    /// The device's times of the slices that have finished since the last call, in order; the last 64, if there were more.
    /// Each is what one command buffer of [`Engine::advance`] took, by the device's clock: on an adopted device without
    /// timestamps there are none.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        self.stepper.slice_times()
    }

    /// Starts or stops to keep the text of the recording: [`Recorder::trace`].
    pub fn trace(&mut self, on: bool) {
        self.stepper.recorder().trace(on);
    }

    /// The text of the recording since then: [`Recorder::take_trace`].
    pub fn take_trace(&mut self) -> String {
        self.stepper.recorder().take_trace()
    }

    /// The events since the last call. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] if the device is lost. The events from before come first, with one [`Event::Failed`] for
    /// each request that was open.
    pub fn events(&mut self) -> Result<Vec<Event>, EngineError> {
        let collected = self.stepper.collect(&mut self.machine);
        self.events_or(collected)
    }

    /// The events, or if there are none, what has happened.
    fn events_or(&mut self, result: Result<(), EngineError>) -> Result<Vec<Event>, EngineError> {
        let events = self.machine.scheduler.events();
        if events.is_empty() { result.map(|()| events) } else { Ok(events) }
    }

    /// Submits the next slices to our own queue, or waits for the oldest slice in flight if there is nothing to submit,
    /// and returns the events. Call it until [`Engine::is_idle`].
    ///
    /// # Errors
    /// As [`Engine::events`]; [`GpuError::Adopted`] on an adopted device, where only the host submits. In that case
    /// nothing has been recorded.
    pub fn pump(&mut self) -> Result<Vec<Event>, EngineError> {
        self.gpu.check_owned()?;
        let pumped = self.stepper.pump(&mut self.machine);
        self.events_or(pumped)
    }

    /// Runs until all requests have ended, and passes each event to `on_event`.
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

    fn n_parts(&self, work: &Work) -> usize {
        match work {
            Work::Clip(_) => self.runner.clips.as_ref().map_or(1, Clips::n_layers),
            Work::Step(_) => self.runner.n_layers(),
        }
    }

    fn begin(&mut self, rec: &mut Recorder, work: &mut Work) {
        match work {
            Work::Step(step) => self.runner.begin(rec, step),
            Work::Clip(clip) => {
                if let Some(clips) = &self.runner.clips {
                    clips.upload(&self.runner.gpu, clip.place, &std::mem::take(&mut clip.features));
                }
            }
        }
    }

    fn record(
        &mut self,
        rec: &mut Recorder,
        work: &mut Work,
        part: usize,
    ) -> Result<Vec<ReadRange>, EngineError> {
        Ok(match work {
            Work::Step(step) => self.runner.record(rec, step, part..part + 1),
            Work::Clip(clip) => {
                self.runner.encode_clip(rec, clip.place, part..part + 1);
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

    fn variants_changed(&mut self, rec: &Recorder) {
        self.scheduler.variants_changed(self.model.shape.block_rows(rec));
    }

    fn abandon(&mut self, _: Vec<Work>, error: &GpuError) {
        self.scheduler.abandon(error);
    }
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("name", &self.name()).field("ctx", &self.ctx()).finish_non_exhaustive()
    }
}
