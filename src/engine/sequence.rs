//! One request on its way through the engine.

use std::time::Instant;

use super::events::{Event, FinishReason, Logprobs, Request, RequestId, Timings, Usage};
use super::{EngineError, Logits};
use crate::text::StreamDecoder;

/// A request, its place on the device, and what came back so far.
pub(super) struct Sequence {
    pub id: RequestId,
    pub request: Request,
    pub seed: u64,
    /// Prompt, then what was generated and has arrived.
    pub tokens: Vec<u32>,
    /// Row of the device's tables; known once admitted.
    pub slot: usize,
    pub pages: Vec<u32>,
    /// Tokens of the prompt found in the cache.
    pub n_cached: usize,
    /// Positions whose keys and values are recorded.
    pub n_recorded: usize,
    /// Draws recorded.
    pub n_drawn: usize,
    /// Most draws: `max_tokens`, or what the context holds.
    pub most: usize,
    /// Steps recorded and not arrived yet.
    pub n_in_flight: usize,
    /// Set once no more steps are recorded.
    pub finished: Option<FinishReason>,
    pub failed: bool,
    /// Where its prefix begins in the cache.
    pub root: u64,
    end_logprobs: Option<Logprobs>,
    decoder: Option<StreamDecoder>,
    /// Text that may be the beginning of a stop text.
    held: String,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    gaps_ms: Vec<f64>,
}

impl Sequence {
    pub fn new(
        id: RequestId,
        request: Request,
        seed: u64,
        most: usize,
        decoder: Option<StreamDecoder>,
    ) -> Self {
        Sequence {
            id,
            seed,
            tokens: request.prompt.clone(),
            slot: 0,
            pages: Vec::new(),
            n_cached: 0,
            n_recorded: 0,
            n_drawn: 0,
            most,
            n_in_flight: 0,
            finished: None,
            failed: false,
            root: 0,
            end_logprobs: None,
            decoder,
            held: String::new(),
            submitted: Instant::now(),
            admitted: None,
            first_token: None,
            last_token: None,
            gaps_ms: Vec::new(),
            request,
        }
    }

    pub fn admit(&mut self, slot: usize, root: u64, pages: Vec<u32>, n_cached: usize) {
        (self.slot, self.root, self.pages) = (slot, root, pages);
        // All logits need all rows computed: what is cached has none.
        (self.n_cached, self.n_recorded) = (n_cached, n_cached);
        self.admitted = Some(Instant::now());
    }

    pub fn n_prompt(&self) -> usize {
        self.request.prompt.len()
    }

    /// Prompt rows that are still to be recorded.
    pub fn n_prompt_left(&self) -> usize {
        // What a prompt's last token leads to is no part of the prompt's probability.
        let n_rows = self.n_prompt() - usize::from(self.request.prompt_logprobs.is_some());
        if self.finished.is_some() { 0 } else { n_rows.saturating_sub(self.n_recorded) }
    }

    /// Whether the next step has a decoding row for it.
    pub fn decodes(&self) -> bool {
        self.finished.is_none() && self.n_prompt_left() == 0 && self.n_drawn > 0 && self.n_drawn < self.most
    }

    /// Takes in a token that arrived; `ends` says whether it is an end token.
    pub fn arrived(&mut self, token: u32, ends: bool, logprobs: Option<Logprobs>, events: &mut Vec<Event>) {
        if self.finished.is_some() {
            return; // drawn ahead of a stop that was found late
        }
        let now = Instant::now();
        match self.last_token {
            Some(last) => self.gaps_ms.push((now - last).as_secs_f64() * 1e3),
            None => self.first_token = Some(now),
        }
        self.last_token = Some(now);
        self.tokens.push(token);
        if ends {
            self.finished = Some(FinishReason::Stop);
            self.end_logprobs = logprobs;
            return;
        }
        let piece = match self.decoder.as_mut().map(|d| d.push(token)) {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => {
                self.fail(EngineError::Text(error), events);
                return;
            }
            None => String::new(),
        };
        let text = self.release(&piece);
        events.push(Event::Token { id: self.id, token, text, logprobs });
        if self.finished.is_none() && self.tokens.len() - self.n_prompt() >= self.most {
            self.finished = Some(FinishReason::Length);
        }
    }

    /// Adds `piece` to the held text and returns what cannot belong to a stop text; finishes at a stop text.
    fn release(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        let stops = || self.request.stop.iter().filter(|s| !s.is_empty());
        if let Some(at) = stops().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.finished = Some(FinishReason::Stop);
            self.decoder = None; // nothing follows a stop text
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let is_open = |at: &usize| stops().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(is_open).unwrap_or(self.held.len());
        let kept = self.held.split_off(keep);
        std::mem::replace(&mut self.held, kept)
    }

    pub fn fail(&mut self, error: EngineError, events: &mut Vec<Event>) {
        self.finished = Some(FinishReason::Stop);
        self.failed = true;
        events.push(Event::Failed { id: self.id, error });
    }

    /// The last event, once nothing is in flight.
    pub fn done(&mut self) -> Option<Event> {
        let finish_reason = self.finished?;
        if self.failed {
            return None;
        }
        let mut text = std::mem::take(&mut self.held);
        text.push_str(&self.decoder.as_mut().and_then(|d| d.finish().ok()).unwrap_or_default());
        let n_generated = self.tokens.len() - self.n_prompt();
        let usage = Usage {
            prompt_tokens: self.n_prompt(),
            completion_tokens: n_generated,
            total_tokens: self.tokens.len(),
            cached_tokens: self.n_cached,
        };
        let since = |t: Option<Instant>| t.map_or(self.submitted.elapsed(), |t| t - self.submitted);
        let timings = Timings::new(
            since(self.admitted),
            since(self.first_token),
            &self.gaps_ms,
            self.n_prompt() - self.n_cached,
            self.submitted.elapsed(),
        );
        let end_logprobs = self.end_logprobs.take();
        Some(Event::Done { id: self.id, text, finish_reason, end_logprobs, usage, timings })
    }

    /// Whether the prompt's rows shall show what they attend to.
    pub fn aligns(&self) -> bool {
        self.request.speech.as_ref().is_some_and(|speech| speech.alignment)
    }

    /// Rows from position `pos` on that may be computed if `n_free` more can get logits.
    pub fn n_rows_within(&self, pos: usize, n_free: usize) -> usize {
        match (self.request.logits, self.request.prompt_logprobs) {
            (Some(Logits::All), _) => n_free,
            (_, Some(from)) => (from - 1).saturating_sub(pos) + n_free,
            // All but the last, which draws or leaves its logits.
            _ if n_free == 0 => self.n_prompt_left() - 1,
            _ => usize::MAX,
        }
    }

    /// Whether the log-probability of the token after row `pos` is wanted.
    pub fn wants_score(&self, pos: usize) -> bool {
        self.request.prompt_logprobs.is_some_and(|from| pos + 1 >= from)
    }

    /// Whether logits are wanted of row `pos`.
    pub fn wants_logits(&self, pos: usize) -> bool {
        match self.request.logits {
            Some(Logits::All) => true,
            Some(Logits::Last) => pos + 1 == self.n_prompt(),
            None => false,
        }
    }
}
