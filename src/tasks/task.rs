//! The contract of all tasks, and the loop that runs a task to its end.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::TaskError;
use crate::engine::{Encoded, Engine, EngineError, Event, RequestId, TextEncoder};

/// A task on a model, which runs step by step on a device of our own or of a host.
///
/// None of the methods waits. A host calls them once per frame, together with the engine's:
///
/// ```no_run
/// use std::time::Duration;
/// use wginfer::engine::Engine;
/// use wginfer::tasks::{DocumentOptions, Engines, Progress, SummarizeTask, Summary, Task, TaskError};
/// # struct Queue;
/// # impl Queue { fn submit<T>(&self, _: T) {} }
/// # struct Host { queue: Queue }
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
/// own events and leaves the others. If the engine's queue is full, the tasks that are advanced first get the room. The
/// requests of a dropped task run to their end; call [`Task::cancel`] first to stop them.
pub trait Task {
    /// The result.
    type Output;
    /// The error.
    type Error: From<EngineError>;
    /// The progress reports.
    type Progress;

    /// Submits the next requests, as far as the engine accepts them. [`Task::finish`] returns errors.
    fn advance(&mut self, engines: &mut Engines<'_>);

    /// Takes the events of this task out of `events`.
    fn observe(&mut self, events: &mut Events);

    /// The next report; `None` if nothing is new.
    fn progress(&mut self) -> Option<Self::Progress>;

    /// Stops the task, unless it is done. The engine may need some more calls until it has ended the task's requests.
    fn cancel(&mut self, engines: &mut Engines<'_>);

    /// Whether there is a result, or an error.
    fn is_done(&self) -> bool;

    /// Takes the result, once [`Task::is_done`].
    ///
    /// # Errors
    /// The error that stopped the task.
    fn finish(&mut self) -> Result<Self::Output, Self::Error>;
}

/// The engines for tasks. A task must always get the same engines.
#[derive(Debug, Default)]
pub struct Engines<'a> {
    /// The engine of a language model or a speech model.
    pub language: Option<&'a mut Engine>,
    /// The engine of an encoder.
    pub encoder: Option<&'a mut TextEncoder>,
}

/// The events of the engines: [`Engine::events`] and [`TextEncoder::events`].
#[derive(Debug, Default)]
pub struct Events {
    /// Those of the language model.
    pub language: Vec<Event>,
    /// Those of the encoder.
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
    /// The language model's engine.
    pub(crate) fn language(&mut self) -> Result<&mut Engine, EngineError> {
        self.language.as_deref_mut().ok_or(missing("no language model"))
    }

    /// The encoder's engine.
    pub(crate) fn encoder(&mut self) -> Result<&mut TextEncoder, EngineError> {
        self.encoder.as_deref_mut().ok_or(missing("no encoder"))
    }

    /// Submits to our own queues, or waits for results if there is nothing to submit.
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
    /// Takes the language model's events of some requests out, in their order.
    pub(super) fn take(&mut self, is_own: impl Fn(RequestId) -> bool) -> Vec<Event> {
        self.language.extract_if(.., |event| is_own(event.request())).collect()
    }
}

/// Runs a task to its end. Calls `on_progress` with each report, and once per round with `None`, so that the caller can
/// stop the task at any time: `Break` cancels it. Results that arrive later are still reported.
///
/// Drops the events of other requests, so nothing else should run on the engines.
///
/// # Errors
/// Those of the task; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where only the host
/// submits.
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

/// Progress reports of tasks. The caller of a blocking function can stop the task at each of them.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// A round begins.
    Round {
        /// Its number, from 1.
        round: usize,
        /// Its pieces.
        n_pieces: usize,
        /// Tokens in the text of its pieces.
        n_tokens: usize,
    },
    /// The progress of a round. Repeated when nothing has changed, so that the caller can stop the task.
    Done {
        /// Finished pieces.
        n_done: usize,
        /// All pieces of the round.
        n_pieces: usize,
    },
    /// The next part of the final text.
    Text(String),
}

/// The result of one of many inputs. A task reports each as soon as it is there; [`Task::finish`] returns those that were
/// not reported.
#[derive(Debug)]
pub struct Finished<R> {
    /// The index of the input.
    pub index: usize,
    /// The result, or the input's own error.
    pub result: Result<R, TaskError>,
}

/// Takes the results that were not reported, in the order of the inputs.
pub(super) fn rest<R>(finished: &mut VecDeque<Finished<R>>) -> Vec<Finished<R>> {
    let mut rest = Vec::from(std::mem::take(finished));
    rest.sort_by_key(|finished| finished.index);
    rest
}

/// A callback for progress reports.
pub type Observer<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Runs a task on `n` inputs to its end. Returns the result of each, in their order.
pub(super) fn collected<R, T>(
    task: &mut T,
    engines: &mut Engines<'_>,
    n: usize,
    on: &mut Observer<'_>,
) -> Result<Vec<Result<R, TaskError>>, TaskError>
where
    T: Task<Output = Vec<Finished<R>>, Error = TaskError, Progress = Finished<R>>,
{
    let mut results: Vec<Result<R, TaskError>> = (0..n).map(|_| Err(TaskError::Stopped)).collect();
    let mut n_done = 0;
    let rest = run(task, engines, |finished| {
        if let Some(Finished { index, result }) = finished {
            n_done += 1;
            results[index] = result;
        }
        on(Progress::Done { n_done, n_pieces: n })
    })?;
    rest.into_iter().for_each(|Finished { index, result }| results[index] = result);
    Ok(results)
}

/// Runs a task, and repeats the last [`Progress::Done`] in every round.
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
