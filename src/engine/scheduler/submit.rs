//! Checks and queues a request.

use std::hash::{BuildHasher, Hasher};

use super::pages::PAGE_SIZE;
use super::sequence::Sequence;
use super::{Limits, Scheduler};
use crate::engine::error::{NEEDS_CLIP, NO_AUDIO_ENCODER};
use crate::engine::{EngineError, Logits, Request, RequestId};
use crate::text::StreamDecoder;

impl Scheduler {
    /// Queues a request. Its events carry the id.
    pub fn submit(&mut self, request: Request) -> Result<RequestId, EngineError> {
        if !self.has_room() {
            return Err(EngineError::Busy { waiting: self.waiting.len() });
        }
        self.check(&request)?;
        let Limits { ctx, n_pages, .. } = self.limits;
        let n = request.prompt.len();
        let most = match request.writes() {
            false => 0,
            // The last drawn token is never computed, so it needs no place in the cache.
            true => request.max_tokens.unwrap_or(usize::MAX).min(ctx - n).min(n_pages * PAGE_SIZE - n + 1),
        };
        let id = RequestId(self.next_id);
        self.next_id += 1;
        if let (Some(clips), Some(speech)) = (&mut self.clips, &request.speech) {
            clips.hold(speech.clip);
        }
        let seed = request.sampling.seed.unwrap_or_else(|| random_seed(id));
        let decoder = self.tokenizer.as_ref().map(|t| StreamDecoder::after(t, &request.prompt, true));
        let decoder = decoder.transpose()?.map(|decoder| decoder.showing(request.shown_tokens.clone()));
        self.waiting.insert(id, Sequence::new(id, request, seed, most, decoder));
        Ok(id)
    }

    /// Whether another request may wait.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < self.limits.max_waiting
    }

    fn check(&self, request: &Request) -> Result<(), EngineError> {
        let Limits { vocab_size, ctx, n_pages, .. } = self.limits;
        request.sampling.check(vocab_size)?;
        let n = request.prompt.len();
        if n == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        // A draw needs a position after the prompt, logits do not.
        let holds = if request.writes() { ctx - 1 } else { ctx };
        if n > holds {
            return Err(EngineError::PromptTooLong { found: n, expected: holds });
        }
        if n > n_pages * PAGE_SIZE {
            return Err(EngineError::CacheTooSmall { found: n, expected: n_pages * PAGE_SIZE });
        }
        if let Some(position) = request.prompt.iter().position(|t| *t as usize >= vocab_size) {
            return Err(EngineError::TokenRange { token: request.prompt[position], position, vocab_size });
        }
        let wrong = |name, found: String, expected| Err(EngineError::Parameter { name, found, expected });
        if let Some(range) = request.generated.iter().find(|range| range.start > range.end || range.end > n) {
            return wrong("generated", format!("{range:?}"), "ranges of the prompt's tokens");
        }
        if request.logprobs.is_some_and(|k| k > self.limits.max_logprobs) {
            let found = request.logprobs.unwrap_or(0).to_string();
            let expected = "at most what the engine was built for (`EngineOptions::max_logprobs`)";
            return wrong("logprobs", found, expected);
        }
        match request.logits {
            Some(Logits::Kept { row, .. }) if row >= self.limits.kept_rows => {
                return wrong(
                    "row",
                    row.to_string(),
                    "a row that the engine was built with (`EngineOptions::kept_rows`)",
                );
            }
            Some(Logits::Last | Logits::All) if !self.limits.has_logits => {
                return wrong("logits", "set".into(), "an engine built with `EngineOptions::logits`");
            }
            _ => {}
        }
        if let Some(from) = request.prompt_logprobs {
            if !self.limits.has_prompt_logprobs {
                let expected = "an engine built with `EngineOptions::prompt_logprobs`";
                return wrong("prompt_logprobs", "set".into(), expected);
            }
            if request.logits.is_some() {
                return wrong("prompt_logprobs", "set with `logits`".into(), "one of the two");
            }
            if from == 0 || from >= n {
                let expected = "a position of the prompt after its first token";
                return wrong("prompt_logprobs", from.to_string(), expected);
            }
        }
        if request.max_tokens == Some(0) && request.writes() {
            return wrong("max_tokens", "0".into(), "at least 1");
        }
        match (&self.clips, &request.speech) {
            (None, None) => Ok(()),
            (Some(clips), Some(speech)) => {
                if !clips.knows(speech.clip) {
                    return wrong("clip", format!("clip {}", speech.clip.0), "one that is kept");
                }
                if speech.alignment && !self.limits.has_alignment {
                    let expected = "an engine built with `EngineOptions::alignment_heads`";
                    return wrong("alignment", "true".into(), expected);
                }
                speech.rules.iter().try_for_each(|rules| rules.check(n, vocab_size))
            }
            (clips, _) => {
                let problem = if clips.is_some() { NEEDS_CLIP } else { NO_AUDIO_ENCODER };
                Err(EngineError::Speech { architecture: self.limits.architecture, problem })
            }
        }
    }
}

/// A seed that differs from request to request and from run to run.
fn random_seed(id: RequestId) -> u64 {
    // The standard library seeds its hash maps with the system's randomness.
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(id.0);
    hasher.finish()
}
