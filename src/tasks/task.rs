//! The contract of all tasks, and the blocking loop over it.

use std::ops::ControlFlow;

use crate::engine::{Encoded, Engine, EngineError, Event, RequestId, TextEncoder};

/// Work on a model, step by step, on a device of our own or a host's.
///
/// None of the methods waits. A host calls them once a frame, beside the engine's own:
///
/// ```no_run
/// use std::time::Duration;
/// use wginfer::engine::Engine;
/// use wginfer::tasks::{DocumentOptions, Engines, Progress, SummarizeTask, Summary, Task, TaskError};
/// # struct Host { queue: wginfer::wgpu::Queue }
/// # impl Host { fn draw_frame(&self) {} }
///
/// # fn summarize(host: &Host, engine: &mut Engine, document: &str) -> Result<Summary, TaskError> {
/// let mut task = SummarizeTask::new(engine, document, None, &DocumentOptions::default())?;
/// while !task.is_done() {
///     task.advance(&mut Engines::from(&mut *engine));
///     host.queue.submit(engine.advance(Duration::from_millis(4))?);
///     host.draw_frame();
///     task.observe(&mut engine.events()?.into());
///     while let Some(progress) = task.progress() {
///         if let Progress::Text(text) = progress {
///             print!("{text}");
///         }
///     }
/// }
/// task.finish()
/// # }
/// ```
///
/// Several tasks can share an engine: `advance` each of them, then hand the same [`Events`] to each. A task takes its
/// own events and leaves the others. Where the engine's queue is full, the tasks that are advanced first get the room. A task that is dropped half way is not heard any more, but what it has submitted
/// runs to its end: [`Task::cancel`] it first to stop that.
pub trait Task {
    /// The result.
    type Output;
    /// What can go wrong.
    type Error: From<EngineError>;
    /// What is reported on the way.
    type Progress;

    /// Submits what comes next, as far as the engine has room. Errors are what [`Task::finish`] returns.
    fn advance(&mut self, engines: &mut Engines<'_>);

    /// Takes the events of this task out of `events`.
    fn observe(&mut self, events: &mut Events);

    /// The next thing to report; none if nothing is new.
    fn progress(&mut self) -> Option<Self::Progress>;

    /// Stops, unless the task is done. It may take some more calls until the engine has ended what was submitted.
    fn cancel(&mut self, engines: &mut Engines<'_>);

    /// Whether there is a result, or an error.
    fn is_done(&self) -> bool;

    /// The result, to be taken once [`Task::is_done`] says so.
    ///
    /// # Errors
    /// Whatever stopped the task.
    fn finish(&mut self) -> Result<Self::Output, Self::Error>;
}

/// The engines that are there for tasks. A task must always get those that it began with.
#[derive(Debug, Default)]
pub struct Engines<'a> {
    /// Of a language model, or of one that transcribes.
    pub language: Option<&'a mut Engine>,
    /// Of an encoder.
    pub encoder: Option<&'a mut TextEncoder>,
}

/// What the engines reported: [`Engine::events`] and [`TextEncoder::events`].
#[derive(Debug, Default)]
pub struct Events {
    /// Of the language model.
    pub language: Vec<Event>,
    /// Of the encoder.
    pub encoder: Vec<Encoded>,
}

impl<'a> From<&'a mut Engine> for Engines<'a> {
    fn from(engine: &'a mut Engine) -> Self {
        Engines { language: Some(engine), encoder: None }
    }
}

impl<'a> From<&'a mut TextEncoder> for Engines<'a> {
    fn from(encoder: &'a mut TextEncoder) -> Self {
        Engines { language: None, encoder: Some(encoder) }
    }
}

impl From<Vec<Event>> for Events {
    fn from(language: Vec<Event>) -> Self {
        Events { language, encoder: Vec::new() }
    }
}

impl From<Vec<Encoded>> for Events {
    fn from(encoder: Vec<Encoded>) -> Self {
        Events { language: Vec::new(), encoder }
    }
}

impl Engines<'_> {
    /// The language model's.
    pub(crate) fn language(&mut self) -> Result<&mut Engine, EngineError> {
        self.language.as_deref_mut().ok_or(missing("no language model"))
    }

    /// The encoder's.
    pub(crate) fn encoder(&mut self) -> Result<&mut TextEncoder, EngineError> {
        self.encoder.as_deref_mut().ok_or(missing("no encoder"))
    }

    /// Submits to our own queues, and waits for results if there was nothing to submit.
    fn pump(&mut self) -> Result<Events, EngineError> {
        let mut events = Events::default();
        if let Some(engine) = &mut self.language {
            events.language = engine.pump()?;
        }
        if let Some(encoder) = &mut self.encoder {
            events.encoder = encoder.pump()?;
        }
        Ok(events)
    }
}

fn missing(found: &str) -> EngineError {
    let expected = "the engine that the task was made for";
    EngineError::Parameter { name: "engines", found: found.to_string(), expected }
}

impl Events {
    /// Takes out the language model's events of some requests, in their order.
    pub(super) fn take(&mut self, is_own: impl Fn(RequestId) -> bool) -> Vec<Event> {
        self.language.extract_if(.., |event| is_own(event.request())).collect()
    }
}

/// Runs a task to its end. `on_progress` hears what is new, and `None` once in every round, so that it can end the task
/// at any time: at `Break` the task is cancelled. What was on its way then is still reported.
///
/// Events of other requests are dropped: nothing else should run on the engines meanwhile.
///
/// # Errors
/// Those of the task; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, whose host submits.
pub fn run<T: Task>(
    task: &mut T,
    engines: &mut Engines<'_>,
    mut on_progress: impl FnMut(Option<T::Progress>) -> ControlFlow<()>,
) -> Result<T::Output, T::Error> {
    let mut is_stopped = false;
    loop {
        while let Some(progress) = task.progress() {
            if on_progress(Some(progress)).is_break() && !is_stopped {
                is_stopped = true;
                task.cancel(engines);
            }
        }
        if task.is_done() {
            return task.finish();
        }
        if !is_stopped && on_progress(None).is_break() {
            is_stopped = true;
            task.cancel(engines);
        }
        task.advance(engines);
        match engines.pump() {
            Ok(mut events) => task.observe(&mut events),
            Err(error) => {
                task.cancel(engines);
                return Err(error.into());
            }
        }
    }
}

/// What tasks report on the way. The caller can end a blocking one at any of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// A round begins.
    Round {
        /// Its number, from 1.
        round: usize,
        /// Pieces that are worked in it.
        n_pieces: usize,
        /// Tokens of their text.
        n_tokens: usize,
    },
    /// So much of the round is done. It is also reported where nothing has changed, so that the caller can end the task.
    Done {
        /// Pieces that are done.
        n_done: usize,
        /// Pieces of the round.
        n_pieces: usize,
    },
    /// The next part of the final text.
    Text(String),
}

/// Hears of progress.
pub type Observer<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Runs a task whose observer hears in every round how much is done.
pub(super) fn observed<T: Task<Progress = Progress>>(
    task: &mut T,
    engines: &mut Engines<'_>,
    on: &mut Observer<'_>,
) -> Result<T::Output, T::Error> {
    let mut last = None;
    run(task, engines, |progress| match progress {
        Some(progress) => {
            if let Progress::Done { .. } = progress {
                last = Some(progress.clone());
            }
            on(progress)
        }
        None => last.clone().map_or(ControlFlow::Continue(()), &mut *on),
    })
}
