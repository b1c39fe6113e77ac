//! Layer 4: the resumable engine, from requests to command buffers, and from results to events.
//!
//! Only [`Engine::run`] and [`Engine::pump`] wait. A guest calls [`Engine::advance`] once per frame, submits the
//! command buffers that it returns, and reads [`Engine::events`].
//!
//! - `scheduler`: requests, sequences, the page table, and what the next step computes. Plain data, no device.
//! - `runner`: the model with its tables on the device. Records a step and reads its results.
//! - `stepper`: cuts recordings into slices within a budget, and handles results.
//! - `frames`: several engines in the frames of one host.
//! - `build`: everything that an engine has on a device, while it is made: the upload of weights, on the same stepper.
//! - `loading`: the first build.
//! - `recovery`: the next ones. A device that is lost is replaced, and requests go on.
//! - `self_test`: variants on a driver that was never seen before, against the portable ones.
//!
//! [`TextEncoder`] runs encoders, which read a text in one pass, on the same stepper.

mod build;
mod encoder;
mod error;
mod events;
mod frames;
mod loading;
mod memory;
mod model;
mod options;
mod recovery;
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
pub use recovery::{DeviceEvent, Health};
pub use sampling::{MAX_BIAS, Sampling, SpeechRules, TimestampRules};
pub use scheduler::{ClipId, PAGE_SIZE};
#[cfg(feature = "bench")]
pub(crate) use variants::StepRows;

use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::ModelShape;
use crate::text::Tokenizer;
use build::Built;
use loading::OnDevice;
use recovery::{Recovery, Survivor};
use runner::{Clips, Runner};
use scheduler::{Scheduler, Work};
use stepper::{Machine, ReadRange, Stepper};

/// Runs requests on one model, in one batch.
///
/// If the device is lost, it is opened again, or the host hands in another one ([`Engine::replace_device`]). Requests
/// wait until everything is there, and go on where they were: no token is lost, repeated or changed. See
/// [`EngineOptions::recovery`] and [`Engine::health`].
pub struct Engine {
    model: Arc<LoadedModel>,
    scheduler: Scheduler,
    /// What it has on the device. `None` until everything is there, and after a loss.
    live: Option<OnDevice>,
    recovery: Recovery<OnDevice>,
    /// Time to compile the pipelines.
    compile_time: Duration,
}

/// The two halves of an engine: the scheduler decides, the runner records.
struct Decoding<'a> {
    model: &'a LoadedModel,
    scheduler: &'a mut Scheduler,
    runner: &'a mut Runner,
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

    /// The device; after a loss the lost one, until everything is on another.
    pub fn gpu(&self) -> &Gpu {
        self.recovery.gpu()
    }

    /// Whether the engine has a device that works.
    pub fn health(&self) -> Health {
        self.recovery.health()
    }

    /// What has happened to the device since the last call. It is logged, too.
    pub fn device_events(&mut self) -> Vec<DeviceEvent> {
        self.recovery.events()
    }

    /// Goes on with another device: a host's next one, after a loss or whenever it likes. The weights are read from their
    /// files again and uploaded in slices that [`Engine::advance`] returns, and requests go on where they were. Engines on
    /// one model, and others on that device, should get clones of one [`Gpu`], so that they share the weights.
    ///
    /// A device of another adapter, or with other capabilities, may compute other last bits: texts go on with those.
    pub fn replace_device(&mut self, gpu: &Gpu) {
        self.uninstall();
        self.recovery.replace(gpu);
    }

    /// The tokenizer, if the checkpoint has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.model.tokenizer()
    }

    /// Context length in tokens.
    pub fn ctx(&self) -> usize {
        self.scheduler.limits().ctx
    }

    /// Capacity of the KV cache in tokens, for all sequences together.
    pub fn kv_tokens(&self) -> usize {
        self.scheduler.limits().n_pages * PAGE_SIZE
    }

    /// Tensors of the checkpoint that the architecture does not use.
    pub fn unused_tensors(&self) -> &[String] {
        &self.model.unused_tensors
    }

    /// Bytes of the weights in device memory.
    pub fn weights_bytes(&self) -> u64 {
        self.model.weights_bytes
    }

    /// Time to compile the pipelines, on the latest device. Compilation runs in parallel with the upload of weights.
    pub fn compile_time(&self) -> Duration {
        self.compile_time
    }

    /// Queues a request, and returns the id that its events have.
    ///
    /// # Errors
    /// [`EngineError::Busy`] if [`EngineOptions::max_waiting`] requests wait already; [`EngineError::EmptyPrompt`],
    /// [`EngineError::PromptTooLong`], [`EngineError::CacheTooSmall`], [`EngineError::TokenRange`],
    /// [`EngineError::Parameter`]; [`EngineError::Gpu`] if the device is lost for good. After an error, nothing has been
    /// queued.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        self.check()?;
        self.scheduler.submit(request)
    }

    /// Whether [`Engine::submit`] accepts another request now.
    pub fn has_room(&self) -> bool {
        self.scheduler.has_room()
    }

    /// The logits or probabilities that requests leave on the device ([`Logits::Kept`]), for a shader of the host's:
    /// `[kept_rows, vocab_size]` F32. A row begins each [`Tensor::stride`] values of [`Tensor::buffer`], which is a storage
    /// buffer. `None` if [`EngineOptions::kept_rows`] is 0.
    ///
    /// A row is complete once the request's [`Event::Done`] has come, and is overwritten by nothing but the next request
    /// with this row: by those command buffers of [`Engine::advance`] that compute it.
    ///
    /// After a loss there is none until the engine is on another device, where it is another tensor, without the rows of
    /// requests that are done.
    pub fn kept(&self) -> Option<&Tensor> {
        self.live.as_ref()?.runner.results.kept.as_ref().map(|kept| &kept.rows)
    }

    /// Queues an audio clip for the audio encoder: log-mel features `[n_frames, n_mels]` (sizes in
    /// [`AudioShape`](crate::models::AudioShape)), row by row. Requests may refer to the clip immediately.
    ///
    /// # Errors
    /// [`EngineError::Speech`] if the model has no audio encoder; [`EngineError::Clip`] if the features have another
    /// size or are not finite, or [`EngineOptions::max_clips`] clips are kept already; [`EngineError::Gpu`] if the
    /// device is lost for good.
    pub fn listen(&mut self, features: &[f32]) -> Result<ClipId, EngineError> {
        self.check()?;
        self.scheduler.listen(features)
    }

    /// Drops a clip once the requests that refer to it have ended. New requests may not refer to it.
    pub fn forget(&mut self, clip: ClipId) {
        self.scheduler.forget(clip);
    }

    /// Gives the clip's place back so when another clip needs it and `owner` has been dropped, which may happen where no
    /// engine is at hand.
    pub fn forget_with(&mut self, clip: ClipId, owner: Weak<()>) {
        self.scheduler.forget_with(clip, owner);
    }

    /// Cancels a request: immediately if it waits, else before its next step. Its last event still comes.
    pub fn cancel(&mut self, id: RequestId) {
        self.scheduler.cancel(id);
    }

    /// Whether no request waits or runs, and no result is in flight.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.live.as_ref().is_none_or(|live| live.stepper.is_idle())
    }

    /// The stepper with its machine, if everything is on a device.
    fn parts(&mut self) -> Option<(&mut Stepper<Work>, Decoding<'_>)> {
        let Engine { model, scheduler, live, .. } = self;
        let OnDevice { runner, stepper, .. } = live.as_mut()?;
        Some((stepper, Decoding { model, scheduler, runner }))
    }

    /// Checks that the device works, or that another one is to follow.
    fn check(&mut self) -> Result<(), EngineError> {
        let checked = match &self.live {
            Some(live) => live.stepper.check(),
            None => return self.recovery.check(),
        };
        self.survive(checked)
    }

    /// Records work for about `budget` of device time, at least one dispatch or piece of one, and returns the command
    /// buffers to submit, in order. Empty if two slices are in flight already or there is nothing to do. Never waits.
    ///
    /// What a dispatch takes is learnt from the device's timestamps. Slices are made so short that 99 of 100 exceed their
    /// budget by at most 20 % on a device whose times for the same work vary by a third, unless the budget is shorter than
    /// [`Engine::smallest_slice`]. Where times vary more, as on a busy software device, budgets are exceeded by more. A kind of
    /// dispatch that was never measured has a call of its own.
    ///
    /// All of them must be submitted, because later recordings depend on them.
    ///
    /// After a loss there is nothing to submit until there is another device, then the upload of the weights.
    ///
    /// # Errors
    /// [`EngineError::Gpu`]: with [`GpuError::Dropped`] if a command buffer was dropped instead of submitted, which ends all
    /// that is open.
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        let advanced = match self.parts() {
            Some((stepper, mut machine)) => stepper.advance(&mut machine, budget),
            None => return self.rebuild(budget),
        };
        self.survive(advanced)
    }

    /// The longest time of what cannot be cut, as measured so far: a dispatch, or the smallest piece of one. Shorter budgets
    /// of [`Engine::advance`] are exceeded, but every call still makes progress. A guest's first budget that is too short is
    /// reported as a warning. `None` until something was measured.
    pub fn smallest_slice(&self) -> Option<Duration> {
        match &self.live {
            Some(live) => live.stepper.smallest_slice(),
            None => self.recovery.smallest_slice(),
        }
    }

    /// The device's times of the slices that have finished since the last call, in order; the last 64, if there were more.
    /// Each is what one command buffer of [`Engine::advance`] took by the device's timestamps. A host's device that has none
    /// gives no times.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        match &mut self.live {
            Some(live) => live.stepper.slice_times(),
            None => self.recovery.slice_times(),
        }
    }

    /// What the last [`Engine::advance`] left of its budget, as predicted.
    fn left(&self) -> Duration {
        self.live.as_ref().map_or_else(|| self.recovery.left(), |live| live.stepper.left())
    }

    /// Starts or stops to keep the text of the recording: [`Recorder::trace`]. Nothing is
    /// kept any more after a loss.
    pub fn trace(&mut self, on: bool) {
        if let Some(live) = &mut self.live {
            live.stepper.recorder().trace(on);
        }
    }

    /// The text of the recording since then: [`Recorder::take_trace`].
    pub fn take_trace(&mut self) -> String {
        self.live.as_mut().map(|live| live.stepper.recorder().take_trace()).unwrap_or_default()
    }

    /// The events since the last call. Never waits.
    ///
    /// # Errors
    /// [`EngineError::Gpu`] if the device is lost for good. The events from before come first, with one [`Event::Failed`]
    /// for each request that was open.
    pub fn events(&mut self) -> Result<Vec<Event>, EngineError> {
        let collected = match self.parts() {
            Some((stepper, mut machine)) => {
                let collected = stepper.collect(&mut machine);
                self.survive(collected)
            }
            None => self.recovery.check(),
        };
        self.events_or(collected)
    }

    /// The events, or if there are none, what has happened.
    fn events_or(&mut self, result: Result<(), EngineError>) -> Result<Vec<Event>, EngineError> {
        let events = self.scheduler.events();
        if events.is_empty() { result.map(|()| events) } else { Ok(events) }
    }

    /// Submits the next slices to our own queue, or waits for the oldest slice in flight if there is nothing to submit,
    /// and returns the events. Call it until [`Engine::is_idle`]. After a loss it waits for a moment, or uploads weights.
    ///
    /// # Errors
    /// As [`Engine::events`]; [`GpuError::Adopted`] on an adopted device, where only the host submits. In that case
    /// nothing has been recorded.
    pub fn pump(&mut self) -> Result<Vec<Event>, EngineError> {
        self.gpu().check_owned()?;
        let pumped = match self.parts() {
            Some((stepper, mut machine)) => {
                let pumped = stepper.pump(&mut machine);
                self.survive(pumped)
            }
            None => self.rebuild_pumping(),
        };
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

impl Survivor for Engine {
    type Parts = OnDevice;

    fn recovery(&self) -> &Recovery<OnDevice> {
        &self.recovery
    }

    fn recovery_mut(&mut self) -> &mut Recovery<OnDevice> {
        &mut self.recovery
    }

    fn install(&mut self, Built { mut parts, compile_time, self_test }: Built<OnDevice>) {
        self.compile_time = compile_time;
        self.model.uploaded(&parts.runner.gpu);
        let OnDevice { runner, stepper, n_pages } = &mut parts;
        self.scheduler.placed(*n_pages, self.model.shape.block_rows(stepper.recorder()));
        let mut machine = Decoding { model: &self.model, scheduler: &mut self.scheduler, runner };
        stepper.begin(&mut machine, self_test);
        self.live = Some(parts);
    }

    fn uninstall(&mut self) -> u64 {
        if let Some(OnDevice { runner, stepper, .. }) = self.live.take() {
            self.model.leave(&runner.gpu);
            self.scheduler.lost(stepper.take_back());
        }
        self.scheduler.n_landed()
    }

    fn abandon(&mut self, error: &GpuError) {
        self.scheduler.abandon(error);
    }
}

impl Machine for Decoding<'_> {
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
                    clips.upload(&self.runner.gpu, clip.place, &clip.features);
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
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("name", &self.name()).field("ctx", &self.ctx()).finish_non_exhaustive()
    }
}
