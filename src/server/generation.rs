//! Text generation: one or more answers to one or more prompts, as a task on a language model.

use std::collections::{HashMap, VecDeque};
use std::mem;

use wginfer::engine::{EngineError, Event, FinishReason, Logprobs, Request, RequestId, Timings, Usage};
use wginfer::tasks::{Engines, Events, Task};

use super::error::ApiError;
use super::model::{Message, Running};

/// What happened to an answer.
pub enum Piece {
    /// All prompts were accepted.
    Accepted,
    Token {
        index: usize,
        token: u32,
        text: String,
        logprobs: Option<Logprobs>,
    },
    End {
        index: usize,
        text: String,
        ending: Ending,
    },
}

/// The end of an answer.
pub struct Ending {
    pub finish_reason: FinishReason,
    pub usage: Usage,
    pub timings: Timings,
}

/// Generates answers. An error of one ends all.
pub struct Generation {
    /// Not submitted yet, with their indices.
    waiting: VecDeque<(usize, Request)>,
    is_accepted: bool,
    open: HashMap<RequestId, usize>,
    pieces: VecDeque<Piece>,
    failure: Option<EngineError>,
    is_cancelled: bool,
}

impl Generation {
    /// One answer for each request.
    pub fn new(requests: Vec<Request>) -> Generation {
        Generation {
            waiting: requests.into_iter().enumerate().collect(),
            is_accepted: false,
            open: HashMap::new(),
            pieces: VecDeque::new(),
            failure: None,
            is_cancelled: false,
        }
    }

    fn fail(&mut self, error: EngineError) {
        self.waiting.clear();
        self.failure.get_or_insert(error);
    }
}

/// Waits until the prompts are accepted. Their errors have a status of their own, so an answer begins after this.
///
/// # Errors
/// Those of the prompts.
pub async fn accepted(running: &mut Running<Generation>) -> Result<(), ApiError> {
    loop {
        match running.next().await? {
            Message::Progress(Piece::Accepted) => return Ok(()),
            Message::Progress(_) => {}
            Message::Done(()) => return Err(ApiError::internal("the answer ended before it began")),
        }
    }
}

impl Task for Generation {
    type Output = ();
    type Error = EngineError;
    type Progress = Piece;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        let Some(engine) = engines.language.as_deref_mut() else { return };
        while engine.has_room() && self.failure.is_none() {
            let Some((index, request)) = self.waiting.pop_front() else { break };
            match engine.submit(request) {
                Ok(id) => drop(self.open.insert(id, index)),
                Err(error) => self.fail(error),
            }
        }
        if self.failure.is_some() && !mem::replace(&mut self.is_cancelled, true) {
            self.open.keys().for_each(|id| engine.cancel(*id));
        }
        if self.waiting.is_empty() && self.failure.is_none() && !mem::replace(&mut self.is_accepted, true) {
            self.pieces.push_back(Piece::Accepted);
        }
    }

    fn observe(&mut self, events: &mut Events) {
        let own: Vec<Event> =
            events.language.extract_if(.., |event| self.open.contains_key(&event.request())).collect();
        for event in own {
            let id = event.request();
            let index = self.open[&id];
            match event {
                Event::Token { token, text, logprobs, .. } => {
                    self.pieces.push_back(Piece::Token { index, token, text, logprobs });
                }
                Event::Done { text, finish_reason, usage, timings, .. } => {
                    self.open.remove(&id);
                    let ending = Ending { finish_reason, usage, timings };
                    self.pieces.push_back(Piece::End { index, text, ending });
                }
                Event::Failed { error, .. } => {
                    self.open.remove(&id);
                    self.fail(error);
                }
                _ => {}
            }
        }
    }

    fn progress(&mut self) -> Option<Piece> {
        self.pieces.pop_front()
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        self.waiting.clear();
        self.is_accepted = true;
        if let Some(engine) = engines.language.as_deref_mut() {
            self.open.keys().for_each(|id| engine.cancel(*id));
        }
    }

    fn is_done(&self) -> bool {
        self.open.is_empty() && self.waiting.is_empty() && (self.is_accepted || self.failure.is_some())
    }

    fn finish(&mut self) -> Result<(), EngineError> {
        self.failure.take().map_or(Ok(()), Err)
    }
}
