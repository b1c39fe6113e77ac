//! Requests that belong together: submitted as there is room, numbered in their order, ended together.

use std::collections::{HashMap, VecDeque};

use super::TaskError;
use super::task::Events;
use crate::engine::{Encoded, Engine, EngineError, Event, Output, Request, RequestId, TextEncoder};

/// Requests of one batch that an engine holds at most: more than it can end from one call to the next, and few enough
/// that others find room in its queue.
const MOST_OUT: usize = 512;

/// What takes requests.
pub(super) trait Submit {
    /// What is asked of it.
    type Request;

    /// Whether it takes another request where `n_out` of the same batch are out.
    fn has_room(&self, n_out: usize) -> bool;
    fn submit(&mut self, request: Self::Request) -> Result<RequestId, EngineError>;
    /// Ends a request, and returns whether an event will say so.
    fn cancel(&mut self, id: RequestId) -> bool;
}

impl Submit for Engine {
    type Request = Request;

    fn has_room(&self, n_out: usize) -> bool {
        n_out < MOST_OUT && Engine::has_room(self)
    }

    fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        Engine::submit(self, request)
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        Engine::cancel(self, id);
        true
    }
}

impl Submit for TextEncoder {
    type Request = (Vec<u32>, Output);

    fn has_room(&self, n_out: usize) -> bool {
        n_out < MOST_OUT.max(4 * self.max_seqs())
    }

    fn submit(&mut self, (token_ids, output): (Vec<u32>, Output)) -> Result<RequestId, EngineError> {
        TextEncoder::submit(self, token_ids, output)
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        TextEncoder::cancel(self, id);
        false
    }
}

/// Requests that belong together. When one fails, so do all.
pub(super) struct Batch<R> {
    backlog: VecDeque<R>,
    /// The number of the first request in the backlog.
    next: usize,
    out: HashMap<RequestId, usize>,
    is_cancelled: bool,
    failure: Option<EngineError>,
    /// Those that are out must be cancelled.
    must_cancel: bool,
}

impl<R> Batch<R> {
    pub fn new(requests: impl IntoIterator<Item = R>) -> Batch<R> {
        Batch {
            backlog: requests.into_iter().collect(),
            next: 0,
            out: HashMap::new(),
            is_cancelled: false,
            failure: None,
            must_cancel: false,
        }
    }

    /// Adds a request.
    pub fn push(&mut self, request: R) {
        self.backlog.push_back(request);
    }

    /// Submits as much as there is room for.
    pub fn advance(&mut self, engine: &mut impl Submit<Request = R>) {
        while engine.has_room(self.out.len()) {
            let Some(request) = self.backlog.pop_front() else { break };
            match engine.submit(request) {
                Ok(id) => drop(self.out.insert(id, self.next)),
                Err(error) => self.fail(error),
            }
            self.next += 1;
        }
        if std::mem::take(&mut self.must_cancel) {
            self.out.retain(|id, _| engine.cancel(*id));
        }
    }

    /// Ends all requests.
    pub fn cancel(&mut self, engine: &mut impl Submit<Request = R>) {
        if !self.is_done() {
            self.is_cancelled = true;
            self.backlog.clear();
            self.out.retain(|id, _| engine.cancel(*id));
        }
    }

    /// Fails without an engine: what was submitted runs to its end, and nobody hears of it.
    pub fn give_up(&mut self, error: EngineError) {
        self.fail(error);
        self.out.clear();
    }

    /// Fails; what is out is cancelled at the next call of [`Batch::advance`].
    fn fail(&mut self, error: EngineError) {
        self.failure.get_or_insert(error);
        self.backlog.clear();
        self.must_cancel = true;
    }

    /// Whether all requests have ended.
    pub fn is_done(&self) -> bool {
        self.backlog.is_empty() && self.out.is_empty()
    }

    /// Whether all requests ended well.
    ///
    /// # Errors
    /// As [`Batch::failure`]; [`TaskError::Stopped`] if they were cancelled, or have not ended.
    pub fn result(&mut self) -> Result<(), TaskError> {
        self.failure()?;
        if self.is_cancelled || !self.is_done() { Err(TaskError::Stopped) } else { Ok(()) }
    }

    /// Whether none has failed.
    ///
    /// # Errors
    /// What the first that failed was refused for or failed with.
    pub fn failure(&mut self) -> Result<(), EngineError> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl Batch<Request> {
    /// Takes its events, and hands them on with the numbers of their requests.
    pub fn observe(&mut self, events: &mut Events, mut on: impl FnMut(usize, Event)) {
        for event in events.take(|id| self.out.contains_key(&id)) {
            let id = event.request();
            let Some(i) = self.out.get(&id).copied() else { continue };
            if matches!(event, Event::Done { .. } | Event::Failed { .. }) {
                self.out.remove(&id);
            }
            match event {
                Event::Failed { error, .. } => self.fail(error),
                // What was on its way when the batch was cancelled counts, too.
                event if self.failure.is_none() => on(i, event),
                _ => {}
            }
        }
    }
}

impl Batch<(Vec<u32>, Output)> {
    /// Takes its results, and hands them on with the numbers of their texts.
    pub fn observe_encoded(&mut self, events: &mut Events, mut on: impl FnMut(usize, Vec<f32>)) {
        let own: Vec<Encoded> =
            events.encoder.extract_if(.., |encoded| self.out.contains_key(&encoded.id)).collect();
        for Encoded { id, values } in own {
            match (self.out.remove(&id), values) {
                (Some(i), Ok(values)) => on(i, values),
                (Some(_), Err(error)) => self.fail(error),
                (None, _) => {}
            }
        }
    }
}
