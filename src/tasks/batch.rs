//! A batch of requests that belong together: submitted as the engine accepts them, numbered in their order, ended
//! together.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::TaskError;
use super::error::is_of_input;
use super::task::Events;
use crate::engine::{Encoded, Engine, EngineError, Event, Output, Request, RequestId, TextEncoder};

/// Most requests of one batch in an engine's queue: more than it finishes between two calls, and few enough to leave
/// space for others.
const MOST_OUT: usize = 512;

/// An engine that accepts requests.
pub(super) trait Submit {
    /// The type of its requests.
    type Request;

    /// Whether it accepts another request of a batch that has `n_out` requests submitted.
    fn has_room(&self, n_out: usize) -> bool;
    fn submit(&mut self, request: Self::Request) -> Result<RequestId, EngineError>;
    /// Cancels a request, and returns whether an event will follow.
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
    /// Token ids, their types, and what is wanted.
    type Request = (Vec<u32>, Vec<u32>, Output);

    fn has_room(&self, n_out: usize) -> bool {
        n_out < MOST_OUT.max(4 * self.max_seqs())
    }

    fn submit(&mut self, (token_ids, types, output): Self::Request) -> Result<RequestId, EngineError> {
        TextEncoder::submit_typed(self, token_ids, types, output)
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        TextEncoder::cancel(self, id);
        false
    }
}

/// Requests that belong together.
pub(super) struct Batch<R> {
    backlog: VecDeque<R>,
    /// The number of the first request in the backlog.
    next: usize,
    out: HashMap<RequestId, usize>,
    is_cancelled: bool,
    /// Whether the other requests go on if one fails because of its content.
    goes_on: bool,
    /// The errors of such requests, by their numbers.
    errors: BTreeMap<usize, EngineError>,
    /// The error that ended all.
    failure: Option<EngineError>,
    /// Whether the submitted requests must be cancelled.
    must_cancel: bool,
}

impl<R> Batch<R> {
    /// Requests that are of use only together: if one fails, all fail.
    pub fn new(requests: impl IntoIterator<Item = R>) -> Batch<R> {
        Batch {
            backlog: requests.into_iter().collect(),
            next: 0,
            out: HashMap::new(),
            is_cancelled: false,
            goes_on: false,
            errors: BTreeMap::new(),
            failure: None,
            must_cancel: false,
        }
    }

    /// Requests that are independent: if one fails because of its content, the others go on.
    pub fn independent(requests: impl IntoIterator<Item = R>) -> Batch<R> {
        Batch { goes_on: true, ..Batch::new(requests) }
    }

    /// Adds a request.
    pub fn push(&mut self, request: R) {
        self.backlog.push_back(request);
    }

    /// Submits as many requests as the engine accepts.
    pub fn advance(&mut self, engine: &mut impl Submit<Request = R>) {
        while engine.has_room(self.out.len()) {
            let Some(request) = self.backlog.pop_front() else { break };
            match engine.submit(request) {
                Ok(id) => drop(self.out.insert(id, self.next)),
                Err(error) => self.fail_one(self.next, error),
            }
            self.next += 1;
        }
        if std::mem::take(&mut self.must_cancel) {
            self.out.retain(|id, _| engine.cancel(*id));
        }
    }

    /// Cancels all requests.
    pub fn cancel(&mut self, engine: &mut impl Submit<Request = R>) {
        if !self.is_done() {
            self.is_cancelled = true;
            self.backlog.clear();
            self.out.retain(|id, _| engine.cancel(*id));
        }
    }

    /// Fails without an engine: submitted requests run to their end, and their events are ignored.
    pub fn give_up(&mut self, error: EngineError) {
        self.fail(error);
        self.out.clear();
    }

    /// Request `i` has failed.
    fn fail_one(&mut self, i: usize, error: EngineError) {
        match self.goes_on && is_of_input(&error) {
            true => drop(self.errors.insert(i, error)),
            false => self.fail(error),
        }
    }

    /// Fails. The next call of [`Batch::advance`] cancels the submitted requests.
    fn fail(&mut self, error: EngineError) {
        self.failure.get_or_insert(error);
        self.backlog.clear();
        self.must_cancel = true;
    }

    /// Whether all requests have ended.
    pub fn is_done(&self) -> bool {
        self.backlog.is_empty() && self.out.is_empty()
    }

    /// The number of requests that have failed because of their content.
    pub fn n_errors(&self) -> usize {
        self.errors.len()
    }

    /// Takes the errors of requests that have failed because of their content, by their numbers.
    pub fn take_errors(&mut self) -> BTreeMap<usize, EngineError> {
        std::mem::take(&mut self.errors)
    }

    /// Checks that all requests have ended. Those of [`Batch::independent`] may have failed.
    ///
    /// # Errors
    /// As [`Batch::failure`]; [`TaskError::Stopped`] if they were cancelled, or have not ended.
    pub fn result(&mut self) -> Result<(), TaskError> {
        self.failure()?;
        if self.is_cancelled || !self.is_done() { Err(TaskError::Stopped) } else { Ok(()) }
    }

    /// Checks that nothing has ended all requests.
    ///
    /// # Errors
    /// The error of the first request that was refused or failed; of [`Batch::independent`] requests, only one that is
    /// not about its content.
    pub fn failure(&mut self) -> Result<(), EngineError> {
        self.failure.take().map_or(Ok(()), Err)
    }
}

impl Batch<Request> {
    /// Takes its events, and passes them on with the numbers of their requests.
    pub fn observe(&mut self, events: &mut Events, mut on: impl FnMut(usize, Event)) {
        for event in events.take(|id| self.out.contains_key(&id)) {
            let id = event.request();
            let Some(i) = self.out.get(&id).copied() else { continue };
            if matches!(event, Event::Done { .. } | Event::Failed { .. }) {
                self.out.remove(&id);
            }
            match event {
                Event::Failed { error, .. } => self.fail_one(i, error),
                // Events after a cancellation count, too.
                event if self.failure.is_none() => on(i, event),
                _ => {}
            }
        }
    }
}

impl Batch<(Vec<u32>, Vec<u32>, Output)> {
    /// Takes its results, and passes them on with the numbers of their texts.
    pub fn observe_encoded(&mut self, events: &mut Events, mut on: impl FnMut(usize, Vec<f32>)) {
        let own: Vec<Encoded> =
            events.encoder.extract_if(.., |encoded| self.out.contains_key(&encoded.id)).collect();
        for Encoded { id, values } in own {
            match (self.out.remove(&id), values) {
                (Some(i), Ok(values)) => on(i, values),
                (Some(i), Err(error)) => self.fail_one(i, error),
                (None, _) => {}
            }
        }
    }
}
