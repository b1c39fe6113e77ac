//! A sequence: one request in the scheduler.

use std::ops::Range;
use std::time::Instant;

use super::Keep;
use super::pages::{Node, PAGE_SIZE, Prefix, Published, ROOT, Token};
use crate::engine::EngineError;
use crate::engine::events::{Event, FinishReason, Logits, Logprobs, Request, RequestId, Timings, Usage};
use crate::text::StreamDecoder;

/// A request, its place on the device, and its results so far.
///
/// Its rows come in two phases: first those of fed tokens, which are known at admission (the prompt, and after a
/// preemption the tokens generated before), then one row per step, for the token that the previous step draws.
pub(in crate::engine) struct Sequence {
    pub id: RequestId,
    pub request: Request,
    pub seed: u64,
    /// The prompt, then generated tokens that have arrived.
    pub tokens: Vec<Token>,
    /// Its row of the device's tables, while it runs.
    pub slot: usize,
    pub pages: Vec<u32>,
    /// The root of its prefixes in the cache.
    pub root: Node,
    pub published: Published,
    /// Tokens of the prompt that were found in the cache when it was first admitted.
    pub n_cached: usize,
    /// Tokens whose ids were written to the device's table at admission.
    pub n_fed: usize,
    /// Positions whose keys and values have been recorded.
    pub n_recorded: usize,
    /// Recorded draws, including those that have arrived.
    pub n_drawn: usize,
    /// Most draws: `max_tokens`, or the limit of context and cache.
    pub most: usize,
    /// Its steps in flight.
    pub n_in_flight: usize,
    /// Set once no more steps are recorded.
    pub finished: Option<FinishReason>,
    /// It releases its pages once nothing of it is in flight, and waits again.
    pub is_preempted: bool,
    pub failed: bool,
    /// Positions of the prompt whose logits or log-probabilities have been reported.
    pub n_reported: usize,
    /// Positions of the prompt whose attention to a clip has been reported.
    pub n_aligned: usize,
    end_logprobs: Option<Logprobs>,
    decoder: Option<StreamDecoder>,
    /// Text held back because it may be the beginning of a stop text.
    held: String,
    submitted: Instant,
    admitted: Option<Instant>,
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    gaps_ms: Vec<f64>,
}

/// What a row is computed for, besides its keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Wanted {
    pub draw: bool,
    pub logits: bool,
    pub score: bool,
    /// The logits stay on the device.
    pub kept: Option<Keep>,
    pub alignment: bool,
}

impl Wanted {
    /// Whether the row gets logits.
    pub fn is_sampled(self) -> bool {
        self.draw || self.logits || self.score || self.kept.is_some()
    }
}

impl Sequence {
    pub fn new(
        id: RequestId,
        request: Request,
        seed: u64,
        most: usize,
        decoder: Option<StreamDecoder>,
    ) -> Self {
        let mut tokens: Vec<Token> = request.prompt.iter().map(|id| Token::prompt(*id)).collect();
        for range in &request.generated {
            tokens[range.clone()].iter_mut().for_each(|token| *token = Token::generated(token.id()));
        }
        Sequence {
            id,
            seed,
            tokens,
            slot: 0,
            pages: Vec::new(),
            root: ROOT,
            published: Published::default(),
            n_cached: 0,
            n_fed: 0,
            n_recorded: 0,
            n_drawn: 0,
            most,
            n_in_flight: 0,
            finished: None,
            is_preempted: false,
            failed: false,
            n_reported: 0,
            n_aligned: 0,
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

    /// Gives it a slot, and the pages of its cached prefix after `root`.
    pub fn admit(&mut self, slot: usize, root: Node, prefix: Prefix) {
        (self.slot, self.root, self.pages) = (slot, root, prefix.pages);
        self.published = Published { node: root, n_pages: 0 };
        self.n_recorded = prefix.n_tokens;
        self.n_fed = self.tokens.len();
        self.n_drawn = self.tokens.len() - self.n_prompt();
        if self.admitted.is_none() {
            self.n_cached = prefix.n_tokens;
            self.admitted = Some(Instant::now());
        }
    }

    /// Gives up its pages, and returns them with their contents. Nothing of it is in flight.
    pub fn give_up_pages(&mut self) -> (Option<(Published, Vec<Token>)>, Vec<u32>) {
        // Steps recorded before a stop was found wrote beyond the last token. That part is not published.
        let n = self.n_recorded.min(self.tokens.len());
        let pages = std::mem::take(&mut self.pages);
        let leaves = (!pages.is_empty()).then(|| (self.published, self.tokens[..n].to_vec()));
        self.n_recorded = 0;
        (leaves, pages)
    }

    pub fn n_prompt(&self) -> usize {
        self.request.prompt.len()
    }

    /// Whether steps may compute rows of it.
    pub fn is_active(&self) -> bool {
        self.finished.is_none() && !self.is_preempted
    }

    /// Positions of fed tokens that have not been recorded.
    pub fn unfed(&self) -> Range<usize> {
        // The prediction after the last token is not part of the prompt's probability.
        let end = self.n_fed - usize::from(self.request.prompt_logprobs.is_some());
        if self.is_active() { self.n_recorded..end.max(self.n_recorded) } else { 0..0 }
    }

    /// Whether the next step has a row for the token that the last one draws.
    pub fn decodes(&self) -> bool {
        self.is_active() && self.n_recorded >= self.n_fed && self.n_drawn > 0 && self.n_drawn < self.most
    }

    /// Pages that it still needs for all fed tokens.
    pub fn n_pages_to_feed(&self) -> usize {
        self.unfed().end.div_ceil(PAGE_SIZE).saturating_sub(self.pages.len())
    }

    /// What the row at fed position `pos` is computed for.
    pub fn wanted(&self, pos: usize) -> Wanted {
        let is_new = pos >= self.n_reported;
        let is_last = pos + 1 == self.n_prompt();
        Wanted {
            draw: self.request.writes() && pos + 1 == self.n_fed,
            logits: match self.request.logits {
                Some(Logits::All) => is_new,
                Some(Logits::Last) => is_last,
                Some(Logits::Kept { .. }) | None => false,
            },
            kept: match self.request.logits {
                Some(Logits::Kept { row, softmax }) if is_last => Some(Keep { row, softmax }),
                _ => None,
            },
            score: is_new && self.request.prompt_logprobs.is_some_and(|from| pos + 1 >= from),
            alignment: self.aligns() && pos >= self.n_aligned && pos < self.n_prompt(),
        }
    }

    /// Tokens whose rows need not be computed if their keys and values are cached: all but those whose results are
    /// needed.
    pub fn n_shareable(&self) -> usize {
        let all = if self.aligns() { self.n_aligned } else { self.tokens.len() };
        let all = match self.request.logits {
            Some(Logits::All) => all.min(self.n_reported),
            _ => all,
        };
        // A token's log-probability is a result of the row before it.
        let from = self.request.prompt_logprobs.map(|from| from.max(self.n_reported + 1));
        from.map_or(all, |from| all.min(from))
    }

    /// Whether the request asks for the prompt rows' attention to the clip.
    fn aligns(&self) -> bool {
        self.request.speech.as_ref().is_some_and(|speech| speech.alignment)
    }

    /// Handles a token that has arrived; `ends` is whether it is an end token.
    pub fn arrived(&mut self, token: u32, ends: bool, logprobs: Option<Logprobs>, events: &mut Vec<Event>) {
        if self.finished.is_some() {
            return; // drawn before the stop was found
        }
        let now = Instant::now();
        match self.last_token {
            Some(last) => self.gaps_ms.push((now - last).as_secs_f64() * 1e3),
            None => self.first_token = Some(now),
        }
        self.last_token = Some(now);
        self.tokens.push(Token::generated(token));
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

    /// Adds `piece` to the held text, and returns the part that cannot belong to a stop text. Finishes at a stop text,
    /// also if the decoder still holds a part of it back.
    fn release(&mut self, piece: &str) -> String {
        self.held.push_str(piece);
        let stops = || self.request.stop.iter().filter(|s| !s.is_empty());
        if stops().next().is_none() {
            return std::mem::take(&mut self.held);
        }
        let pending = self.decoder.as_ref().and_then(|d| d.pending().ok()).unwrap_or_default();
        let n_held = self.held.len();
        self.held.push_str(&pending);
        if let Some(at) = self.stop_at() {
            self.finished = Some(FinishReason::Stop);
            self.decoder = None; // nothing follows a stop text
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        self.held.truncate(n_held);
        let stops = || self.request.stop.iter().filter(|s| !s.is_empty());
        let is_open = |at: &usize| stops().any(|stop| stop.starts_with(&self.held[*at..]));
        let keep = self.held.char_indices().map(|(at, _)| at).find(is_open).unwrap_or(self.held.len());
        let kept = self.held.split_off(keep);
        std::mem::replace(&mut self.held, kept)
    }

    /// Where the first stop text in the held text begins.
    fn stop_at(&self) -> Option<usize> {
        let stops = self.request.stop.iter().filter(|stop| !stop.is_empty());
        stops.filter_map(|stop| self.held.find(stop.as_str())).min()
    }

    pub fn fail(&mut self, error: EngineError, events: &mut Vec<Event>) {
        self.finished = Some(FinishReason::Stop);
        self.failed = true;
        events.push(Event::Failed { id: self.id, error });
    }

    /// The last event, once nothing is in flight. `None` after a failure, which has had its event.
    pub fn done(&mut self) -> Option<Event> {
        let mut finish_reason = self.finished?;
        if self.failed {
            return None;
        }
        self.held.push_str(&self.decoder.as_mut().and_then(|d| d.finish().ok()).unwrap_or_default());
        if let Some(at) = self.stop_at() {
            finish_reason = FinishReason::Stop;
            self.held.truncate(at);
        }
        let text = std::mem::take(&mut self.held);
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Tokenizer, TokenizerFiles};

    /// Text and reason of an answer of at most `most` tokens, and how many arrived until its end.
    fn answer(tokens: &[u32], stop: &[&str], most: usize) -> (String, FinishReason, usize) {
        const TOKENIZER: &str = r#"{ "decoder": { "type": "ByteFallback" }, "model": { "type": "BPE", "merges": [],
            "vocab": { "<0x0A>": 0, "<0xC3>": 1, "<0xA9>": 2, "a": 3, "b": 4 } } }"#;
        let files = TokenizerFiles { tokenizer: TOKENIZER.as_bytes(), ..TokenizerFiles::default() };
        let tokenizer = Tokenizer::from_files(&files).expect("a tokenizer");
        // The prompt ends in a byte token, which belongs to no answer and ends none.
        let request =
            Request { stop: stop.iter().map(|stop| stop.to_string()).collect(), ..Request::new(vec![3, 0]) };
        let decoder = StreamDecoder::after(&tokenizer, &request.prompt, true).expect("a decoder");
        let mut sequence = Sequence::new(RequestId(0), request, 0, most, Some(decoder));
        let mut events = Vec::new();
        let mut n_arrived = 0;
        for token in tokens {
            if sequence.finished.is_none() {
                sequence.arrived(*token, false, None, &mut events);
                n_arrived += 1;
            }
        }
        events.extend(sequence.done());
        let mut text = String::new();
        for event in events {
            match event {
                Event::Token { text: piece, .. } => text += &piece,
                Event::Done { text: piece, finish_reason, .. } => {
                    return (text + &piece, finish_reason, n_arrived);
                }
                other => panic!("{other:?}"),
            }
        }
        panic!("not ended")
    }

    #[test]
    fn stop_texts_of_byte_tokens_end_the_answer_at_once() {
        use FinishReason::{Length, Stop};
        let of = |text: &str, reason, n| (text.to_string(), reason, n);
        assert_eq!(answer(&[0, 0, 0], &["\n"], 3), of("", Stop, 1));
        assert_eq!(answer(&[0], &["\n"], 1), of("", Stop, 1));
        assert_eq!(answer(&[0, 0, 0], &["\n\n"], 3), of("", Stop, 2));
        assert_eq!(answer(&[3, 0, 4], &["\n"], 3), of("a", Stop, 2));
        assert_eq!(answer(&[3, 4, 0, 3], &["b\n"], 4), of("a", Stop, 3));
        assert_eq!(answer(&[1, 2, 3], &["é"], 3), of("", Stop, 2));
        assert_eq!(answer(&[0, 3, 4], &["\na"], 3), of("", Stop, 2));
        assert_eq!(answer(&[0, 4, 0], &["\na", "x"], 3), of("\nb\n", Length, 3));
        // Half a character at the end is the replacement character of the flushed text.
        assert_eq!(answer(&[3, 1], &["\u{fffd}"], 2), of("a", Stop, 2));
        assert_eq!(answer(&[1, 3], &[], 2), of("\u{fffd}a", Length, 2));
    }
}
