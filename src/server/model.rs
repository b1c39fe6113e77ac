//! A model with a thread of its own, which owns its engine. Work comes in through a channel, and results leave through
//! the channel of each work: no handler ever waits for the device.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use wginfer::checkpoint::{Ability, ModelFiles, Source};
use wginfer::engine::{EncoderOptions, Engine, EngineError, EngineOptions, Health, Sampling, TextEncoder};
use wginfer::gpu::Gpu;
use wginfer::models::ModelKind;
use wginfer::tasks::transcribe::{TranscribeOptions, Transcriber};
use wginfer::tasks::{Engines, Events, Task};
use wginfer::text::{ChatTemplate, ReasoningFormat, TextError, Tokenizer};

use super::counters::Counters;
use super::error::ApiError;
use super::kept::Kept;
use super::stream::now;

/// Most log-probabilities of a token that a request may ask for, as OpenAI's API has it.
pub const MAX_LOGPROBS: usize = 20;

/// Recordings that a speech model transcribes at once. Others wait.
const MAX_RECORDINGS: usize = 2;

/// How models are loaded and kept.
#[derive(Clone)]
pub struct ModelOptions {
    /// Options of engines of language models, with the number of sequences that run at once.
    pub engine: EngineOptions,
    /// Options of encoders.
    pub encoder: EncoderOptions,
    /// Most pieces of work that a model has at once, running or waiting.
    pub max_open: usize,
    /// How long a model stays on the device after its last work. Default: for ever.
    pub keep_alive: Option<Duration>,
}

/// What is known of a model whether it is on the device or not.
pub struct Info {
    pub abilities: Vec<Ability>,
    pub tokenizer: Option<Tokenizer>,
    pub template: Result<ChatTemplate, TextError>,
    /// How it marks its thoughts, if it does.
    pub reasoning: Option<ReasoningFormat>,
    /// The sampling parameters that its authors recommend.
    pub sampling: Sampling,
    /// Context length in tokens.
    pub ctx: usize,
    pub vocab_size: usize,
    pub architecture: &'static str,
    pub n_bytes: usize,
    /// Width of its embeddings, if it has them.
    pub width: usize,
    /// When the server opened it, in seconds since 1970.
    pub created: u64,
}

/// Where a model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not on the device; it is loaded for the next work.
    Unloaded,
    Loading,
    Ready,
    /// Its device was lost, and is being replaced. Requests wait.
    Lost,
    /// Loading failed; the next work tries again.
    Failed,
}

/// A model of the server.
pub struct Model {
    /// The name in requests.
    pub id: String,
    pub info: Info,
    /// The last conversations.
    pub kept: Kept,
    pub counters: Arc<Counters>,
    /// The files of a speech model, by which a transcriber knows its tokens.
    speech: Option<ModelFiles>,
    orders: Mutex<Sender<Order>>,
    state: Arc<Mutex<State>>,
    n_open: Arc<AtomicUsize>,
    max_open: usize,
}

/// The engine of a model on the device.
pub enum Loaded {
    Language(Box<Engine>),
    Encoder(Box<TextEncoder>),
}

impl Loaded {
    fn engines(&mut self) -> Engines<'_> {
        match self {
            Loaded::Language(engine) => Engines::from(&mut **engine),
            Loaded::Encoder(encoder) => Engines::from(&mut **encoder),
        }
    }

    pub fn language(&self) -> Result<&Engine, ApiError> {
        match self {
            Loaded::Language(engine) => Ok(engine),
            Loaded::Encoder(_) => Err(ApiError::internal("the model is an encoder")),
        }
    }

    pub fn encoder(&self) -> Result<&TextEncoder, ApiError> {
        match self {
            Loaded::Encoder(encoder) => Ok(encoder),
            Loaded::Language(_) => Err(ApiError::internal("the model is a language model")),
        }
    }

    fn is_idle(&self) -> bool {
        match self {
            Loaded::Language(engine) => engine.is_idle(),
            Loaded::Encoder(encoder) => encoder.is_idle(),
        }
    }

    fn health(&self) -> Health {
        match self {
            Loaded::Language(engine) => engine.health(),
            Loaded::Encoder(encoder) => encoder.health(),
        }
    }

    /// Submits the next slices, or waits for results.
    fn pump(&mut self) -> Result<Events, EngineError> {
        Ok(match self {
            Loaded::Language(engine) => engine.pump()?.into(),
            Loaded::Encoder(encoder) => encoder.pump()?.into(),
        })
    }
}

/// Begins work on the model, or says why that is not possible.
type Start = Box<dyn FnOnce(Result<&mut Loaded, ApiError>) -> Option<Box<dyn Job>> + Send>;

enum Order {
    Work(Start),
    /// Load the model now.
    Load,
}

/// A task with the channel that its results go to.
trait Job: Send {
    /// The next step. Work that nobody waits for any more is cancelled.
    fn advance(&mut self, engines: &mut Engines<'_>);
    fn observe(&mut self, events: &mut Events);
    /// Sends what is new. Returns whether the work has ended.
    fn report(&mut self) -> bool;
    fn fail(&mut self, error: ApiError);
}

/// What running work sends.
pub enum Message<T: Task> {
    Progress(T::Progress),
    Done(T::Output),
}

type Sent<T> = Result<Message<T>, ApiError>;

struct TaskJob<T: Task> {
    task: T,
    out: UnboundedSender<Sent<T>>,
    is_cancelled: bool,
    _slot: Slot,
}

impl<T> Job for TaskJob<T>
where
    T: Task + Send,
    T::Progress: Send,
    T::Output: Send,
    T::Error: Into<ApiError>,
{
    fn advance(&mut self, engines: &mut Engines<'_>) {
        if self.out.is_closed() && !self.is_cancelled {
            self.is_cancelled = true;
            self.task.cancel(engines);
        }
        self.task.advance(engines);
    }

    fn observe(&mut self, events: &mut Events) {
        self.task.observe(events);
    }

    fn report(&mut self) -> bool {
        while let Some(progress) = self.task.progress() {
            // Nobody may be there to take it.
            let _ = self.out.send(Ok(Message::Progress(progress)));
        }
        if !self.task.is_done() {
            return false;
        }
        let _ = self.out.send(self.task.finish().map(Message::Done).map_err(Into::into));
        true
    }

    fn fail(&mut self, error: ApiError) {
        let _ = self.out.send(Err(error));
    }
}

/// Running work. Dropping it cancels the work.
pub struct Running<T: Task> {
    messages: UnboundedReceiver<Sent<T>>,
}

impl<T: Task> Running<T> {
    /// The next message. The last one is [`Message::Done`] or an error.
    pub async fn next(&mut self) -> Result<Message<T>, ApiError> {
        match self.messages.recv().await {
            Some(message) => message,
            None => Err(ApiError::unavailable("the server is shutting down")),
        }
    }

    /// Waits for the result, and passes each report to `on`.
    pub async fn finish(mut self, mut on: impl FnMut(T::Progress)) -> Result<T::Output, ApiError> {
        loop {
            match self.next().await? {
                Message::Progress(progress) => on(progress),
                Message::Done(output) => return Ok(output),
            }
        }
    }
}

/// A place in the queue of a model, given back when it is dropped.
struct Slot(Arc<AtomicUsize>);

impl Slot {
    fn take(n_open: &Arc<AtomicUsize>, max_open: usize) -> Option<Slot> {
        let taken =
            n_open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| (n < max_open).then_some(n + 1));
        taken.is_ok().then(|| Slot(n_open.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Model {
    /// Opens a model and starts its thread. Nothing is loaded yet.
    ///
    /// # Errors
    /// Those of the files.
    pub fn open(
        gpu: &Gpu,
        source: Source,
        options: &ModelOptions,
        counters: Arc<Counters>,
    ) -> Result<Model, wginfer::Error> {
        let files = opened(&source)?;
        let info = Info::of(&files, options);
        let (orders, inbox) = channel();
        let state = Arc::new(Mutex::new(State::Unloaded));
        let id = id_of(&source);
        let owner = Owner {
            id: id.clone(),
            gpu: gpu.clone(),
            source,
            options: options.clone(),
            state: state.clone(),
            loaded: None,
            waiting: VecDeque::new(),
            jobs: Vec::new(),
        };
        let named = thread::Builder::new().name(format!("model {id}"));
        named.spawn(move || owner.run(&inbox)).expect("a thread for the model");
        let (n_open, max_open) = (Arc::default(), options.max_open);
        let speech = files.can(Ability::Transcribe).then_some(files);
        let (kept, orders) = (Kept::default(), Mutex::new(orders));
        Ok(Model { id, info, kept, counters, speech, orders, state, n_open, max_open })
    }

    pub fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pieces of work that run or wait.
    pub fn n_open(&self) -> usize {
        self.n_open.load(Ordering::SeqCst)
    }

    /// A transcriber for a request.
    ///
    /// # Errors
    /// 400 for options that the model does not have.
    pub fn transcriber(&self, options: TranscribeOptions) -> Result<Transcriber, ApiError> {
        let files = self.speech.as_ref().ok_or_else(|| ApiError::internal("the model is no speech model"))?;
        Ok(Transcriber::new(files, options)?)
    }

    /// Loads the model, unless it is on the device.
    pub fn load(&self) {
        self.send(Order::Load);
    }

    fn send(&self, order: Order) {
        // The thread ends only with the program.
        let _ = self.orders.lock().unwrap_or_else(PoisonError::into_inner).send(order);
    }

    /// Runs a task on the model's thread; `start` makes it there, with the engine. The model is loaded first if it is not
    /// on the device.
    ///
    /// # Errors
    /// 429 if too much waits already. Errors of `start` and of the task come as messages.
    pub fn run<T, F>(&self, start: F) -> Result<Running<T>, ApiError>
    where
        T: Task + Send + 'static,
        T::Progress: Send,
        T::Output: Send,
        T::Error: Into<ApiError>,
        F: FnOnce(&Loaded) -> Result<T, ApiError> + Send + 'static,
    {
        let slot = Slot::take(&self.n_open, self.max_open).ok_or_else(|| {
            let message = format!("{} requests run or wait already", self.max_open);
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, message).with_retry_after(1)
        })?;
        let (out, messages) = unbounded_channel();
        self.send(Order::Work(Box::new(move |loaded| {
            if out.is_closed() {
                return None;
            }
            match loaded.and_then(|loaded| start(loaded)) {
                Ok(task) => Some(Box::new(TaskJob { task, out, is_cancelled: false, _slot: slot })),
                Err(error) => {
                    let _ = out.send(Err(error));
                    None
                }
            }
        })));
        Ok(Running { messages })
    }
}

impl Info {
    fn of(files: &ModelFiles, options: &ModelOptions) -> Info {
        let shape = files.architecture.shape();
        let tokenizer = files.tokenizer.as_ref().ok().cloned();
        let template = files.tokenizer.clone().and_then(|tokenizer| tokenizer.chat_template());
        let ctx = match files.kind() {
            ModelKind::Decoder => options.engine.ctx,
            ModelKind::Encoder => options.encoder.ctx,
        };
        Info {
            abilities: files.abilities(),
            reasoning: tokenizer.as_ref().and_then(ReasoningFormat::of),
            tokenizer,
            template,
            sampling: Sampling::from(&files.generation),
            ctx: ctx.unwrap_or(shape.max_seq_len.min(wginfer::engine::DEFAULT_CTX)),
            vocab_size: shape.vocab_size,
            architecture: shape.architecture,
            n_bytes: files.weights.n_bytes(),
            width: files.embedding.as_ref().map_or(0, |config| config.width(shape.hidden_size)),
            created: now(),
        }
    }
}

/// Opens a model, as a reranker if its name says that it is one and nothing in its files does.
fn opened(source: &Source) -> Result<ModelFiles, wginfer::Error> {
    let files = ModelFiles::from_source(source)?;
    let is_judge = files.kind() == ModelKind::Decoder && id_of(source).to_lowercase().contains("rerank");
    Ok(if is_judge { files.into_reranker()? } else { files })
}

/// The name of a model in requests: that on the hub, or the last part of a path.
fn id_of(source: &Source) -> String {
    let of_path = |path: &Path| {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let stem = if path.is_file() { path.file_stem() } else { path.file_name() };
        stem.map_or_else(|| "model".to_string(), |name| name.to_string_lossy().into_owned())
    };
    match source {
        Source::Folder(path) | Source::Gguf(path) => of_path(path),
        Source::Demo => "demo".to_string(),
        source => source.to_string(),
    }
}

/// The thread of a model.
struct Owner {
    id: String,
    gpu: Gpu,
    source: Source,
    options: ModelOptions,
    state: Arc<Mutex<State>>,
    loaded: Option<Loaded>,
    /// Work that waits for others to end.
    waiting: VecDeque<Start>,
    jobs: Vec<Box<dyn Job>>,
}

impl Owner {
    /// Runs until the server drops the model.
    fn run(mut self, inbox: &Receiver<Order>) {
        let mut last_used = Instant::now();
        loop {
            let order = match self.next(inbox, last_used) {
                Ok(order) => order,
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.unload();
                    continue;
                }
            };
            if let Some(order) = order {
                self.take(order);
                continue; // all that waits begins together
            }
            self.step();
            last_used = Instant::now();
        }
    }

    /// The next order. Waits only if there is nothing else to do; `None` if there is no order but work.
    fn next(&self, inbox: &Receiver<Order>, last_used: Instant) -> Result<Option<Order>, RecvTimeoutError> {
        let is_busy = !self.jobs.is_empty()
            || !self.waiting.is_empty()
            || self.loaded.as_ref().is_some_and(|loaded| !loaded.is_idle());
        if is_busy {
            return match inbox.recv_timeout(Duration::ZERO) {
                Err(RecvTimeoutError::Timeout) => Ok(None),
                order => order.map(Some),
            };
        }
        match (&self.loaded, self.options.keep_alive) {
            (Some(_), Some(keep)) => inbox.recv_timeout(keep.saturating_sub(last_used.elapsed())).map(Some),
            _ => inbox.recv().map(Some).map_err(|_| RecvTimeoutError::Disconnected),
        }
    }

    fn take(&mut self, order: Order) {
        let ready = self.ready();
        match (order, ready) {
            (Order::Load, _) => {}
            (Order::Work(start), Ok(())) => self.waiting.push_back(start),
            (Order::Work(start), Err(error)) => drop(start(Err(error))),
        }
    }

    /// Begins work that waits, as much as the model does at once.
    fn begin(&mut self) {
        let Some(loaded) = &mut self.loaded else { return };
        let most = match loaded {
            Loaded::Language(engine) if engine.shape().audio.is_some() => MAX_RECORDINGS,
            _ => usize::MAX,
        };
        while self.jobs.len() < most {
            let Some(start) = self.waiting.pop_front() else { break };
            self.jobs.extend(start(Ok(loaded)));
        }
    }

    /// Loads the model, unless it is loaded.
    fn ready(&mut self) -> Result<(), ApiError> {
        if self.loaded.is_some() {
            return Ok(());
        }
        self.set(State::Loading);
        log::info!("loading `{}`", self.id);
        let begin = Instant::now();
        match self.load() {
            Ok(loaded) => {
                log::info!("`{}` is ready after {:.1} s", self.id, begin.elapsed().as_secs_f64());
                self.loaded = Some(loaded);
                self.set(State::Ready);
                Ok(())
            }
            Err(error) => {
                // The message may have paths of this machine.
                log::error!("`{}` cannot be loaded: {error}", self.id);
                self.set(State::Failed);
                let message = format!("the model `{}` cannot be loaded; the server's log says why", self.id);
                Err(ApiError::unavailable(message))
            }
        }
    }

    fn load(&self) -> Result<Loaded, wginfer::Error> {
        let files = opened(&self.source)?;
        if files.kind() == ModelKind::Encoder {
            let encoder = TextEncoder::load(&self.gpu, files, self.options.encoder.clone(), &mut |_| {})?;
            return Ok(Loaded::Encoder(Box::new(encoder)));
        }
        let mut options = EngineOptions { max_logprobs: MAX_LOGPROBS, ..self.options.engine.clone() };
        if files.can(Ability::Transcribe) {
            options = Transcriber::new(&files, most_of_speech())?.engine_options(options);
            options.max_clips = MAX_RECORDINGS;
        }
        Ok(Loaded::Language(Box::new(Engine::load(&self.gpu, files, options, &mut |_| {})?)))
    }

    fn unload(&mut self) {
        log::info!("unloading `{}`, which had no work for some time", self.id);
        self.loaded = None;
        self.set(State::Unloaded);
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// One round of all jobs.
    fn step(&mut self) {
        self.begin();
        let Some(loaded) = &mut self.loaded else { return };
        for job in &mut self.jobs {
            job.advance(&mut loaded.engines());
        }
        let pumped = loaded.pump();
        let state = if loaded.health() == Health::Well { State::Ready } else { State::Lost };
        match pumped {
            Ok(mut events) => {
                *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
                self.jobs.iter_mut().for_each(|job| job.observe(&mut events));
                self.jobs.retain_mut(|job| !job.report());
            }
            Err(error) => {
                log::error!("`{}` failed: {error}", self.id);
                let error = ApiError::unavailable("the device failed; the server's log says why");
                self.jobs.drain(..).for_each(|mut job| job.fail(error.clone()));
                self.waiting.drain(..).for_each(|start| drop(start(Err(error.clone()))));
                // The next work loads it again.
                self.loaded = None;
                self.set(State::Unloaded);
            }
        }
    }
}

/// What a speech model must be loaded for, so that a request may ask for anything.
fn most_of_speech() -> TranscribeOptions {
    TranscribeOptions { word_timestamps: true, ..TranscribeOptions::default() }
}
