//! Results that arrived, and sequences that are done.

use super::clips::Clips;
use super::plan::Plan;
use super::{Engine, EngineError, Event, FinishReason, Kind, Logprobs, RequestId, Slice, TokenLogprob, Work};
use crate::gpu::{Landed, ROW_ALIGN};
use crate::ops::NOT_A_TOKEN;

impl Engine {
    /// Takes in finished slices.
    pub(super) fn collect(&mut self) -> Result<(), EngineError> {
        self.gpu.poll()?;
        while let Some(Landed { content: slice, bytes, ms }) = self.flight.land()? {
            self.measure(&slice, ms);
            match slice.done {
                Some(Work::Step(plan)) => self.arrived(&plan, &bytes),
                Some(Work::Clip(clip)) => {
                    self.forward.clips.iter_mut().for_each(|clips| clips.release(clip));
                }
                None => {}
            }
        }
        self.retire();
        Ok(())
    }

    /// Updates the moving average of a layer's time.
    fn measure(&mut self, slice: &Slice, ms: f64) {
        if slice.n_layers == 0 {
            return;
        }
        let ms = ms / slice.n_layers as f64;
        let (average, sample) = match slice.kind {
            Kind::Decode => (&mut self.decode_ms, ms),
            Kind::Prompt(n) => (&mut self.prompt_ms, ms / n as f64),
            Kind::Clip => (&mut self.clip_ms, ms),
        };
        // The first guess is meant to be wrong: measured values replace it quickly.
        *average += (sample - *average) * 0.5;
    }

    /// Hands a step's results to its sequences.
    fn arrived(&mut self, plan: &Plan, bytes: &[u8]) {
        let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes[..bytes.len() / 4 * 4]);
        let n_draws = plan.draws.len();
        let width = self.forward.results.logprobs.as_ref().map_or(0, |l| l.top.n_cols());
        let has_logprobs = plan.logprobs.is_some() && width > 0;
        let logits_at = n_draws * if has_logprobs { 1 + 2 * width } else { 1 };
        let vocab = self.shape.vocab_size;
        for s in self.running.iter_mut().filter(|s| plan.rows.iter().any(|row| row[0] as usize == s.slot)) {
            s.n_in_flight -= 1;
        }
        for (i, id) in plan.draws.iter().enumerate() {
            let Some(s) = self.running.iter_mut().find(|s| s.id == *id) else { continue };
            let token = words[i];
            if token == NOT_A_TOKEN {
                if s.finished.is_none() {
                    let position = s.tokens.len() - 1;
                    s.fail(EngineError::NotFinite { position }, &mut self.events);
                }
                continue;
            }
            let logprobs = s.request.logprobs.filter(|_| has_logprobs).map(|k| {
                let pairs = |table: usize| {
                    let row = &words[n_draws + (table * n_draws + i) * width..][..2 * (1 + k)];
                    let pair = |p: &[u32]| TokenLogprob { token: p[0], logprob: f32::from_bits(p[1]) };
                    row.chunks(2).map(pair).collect::<Vec<_>>()
                };
                let (top, sampled_top) = (pairs(0), pairs(1));
                Logprobs {
                    chosen: top[0],
                    top: top[1..].to_vec(),
                    sampled: sampled_top[0],
                    sampled_top: sampled_top[1..].to_vec(),
                }
            });
            let ends = s.request.stop_tokens.as_ref().unwrap_or(&self.end_tokens).contains(&token);
            s.arrived(token, ends, logprobs, &mut self.events);
        }
        let stride = vocab.next_multiple_of(ROW_ALIGN);
        let aligned_at = logits_at + plan.logits.len() * stride + plan.scores.len();
        let width = self.forward.clips.as_ref().map_or(0, Clips::alignment_width);
        for (i, (id, position, _)) in plan.aligned.iter().enumerate() {
            let weights =
                words[aligned_at + i * width..][..width].iter().map(|w| f32::from_bits(*w)).collect();
            self.events.push(Event::Alignment { id: *id, position: *position, weights });
        }
        for (i, (id, position)) in plan.logits.iter().enumerate() {
            let Some(s) = self.running.iter_mut().find(|s| s.id == *id) else { continue };
            let values: Vec<f32> =
                words[logits_at + i * stride..][..vocab].iter().map(|w| f32::from_bits(*w)).collect();
            if s.finished.is_none() && !values.iter().all(|v| v.is_finite()) {
                s.fail(EngineError::NotFinite { position: *position }, &mut self.events);
            }
            if s.finished.is_some() {
                continue;
            }
            self.events.push(Event::Logits { id: *id, position: *position, values });
            if position + 1 == s.n_prompt() {
                s.finished = Some(FinishReason::Length);
            }
        }
        self.scored(&plan.scores, &words[logits_at + plan.logits.len() * stride..]);
    }

    /// Hands log-probabilities of prompts' tokens to their sequences, those of one sequence in one event.
    fn scored(&mut self, scores: &[(RequestId, usize)], words: &[u32]) {
        let mut words = words.iter();
        for tokens in scores.chunk_by(|a, b| a.0 == b.0) {
            let (id, position) = tokens[0];
            let logprobs: Vec<f32> = words.by_ref().take(tokens.len()).map(|w| f32::from_bits(*w)).collect();
            let Some(s) = self.running.iter_mut().find(|s| s.id == id) else { continue };
            if s.finished.is_some() {
                continue;
            }
            if let Some(at) = logprobs.iter().position(|p| !p.is_finite()) {
                s.fail(EngineError::NotFinite { position: position + at - 1 }, &mut self.events);
                continue;
            }
            let end = position + logprobs.len();
            self.events.push(Event::PromptLogprobs { id, position, logprobs });
            if end == s.n_prompt() {
                s.finished = Some(FinishReason::Length);
            }
        }
    }

    /// Sends off sequences that are finished and have nothing in flight, and frees their room.
    fn retire(&mut self) {
        let mut i = 0;
        while i < self.running.len() {
            if self.running[i].finished.is_none() || self.running[i].n_in_flight > 0 {
                i += 1;
                continue;
            }
            let mut s = self.running.swap_remove(i);
            if self.options.prefix_cache && !s.failed {
                // Steps drawn ahead of a late stop wrote beyond the last token that counts; what is published
                // ends before it.
                let n = s.n_recorded.min(s.tokens.len());
                self.forward.pages.leave(s.root, &s.pages, &s.tokens[..n]);
            }
            self.forward.pages.release(&s.pages);
            self.free_slots.push(s.slot);
            if let (Some(clips), Some(speech)) = (&mut self.forward.clips, &s.request.speech) {
                clips.release(speech.clip);
            }
            self.events.extend(s.done());
        }
    }
}
