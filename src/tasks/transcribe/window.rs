//! Decodes one window: attempts at rising temperatures until one is good enough.

use std::sync::Arc;

use miniz_oxide::deflate::compress_to_vec_zlib;

use super::beam::{self, BeamSearch, Hypothesis};
use super::tokens::Language;
use super::words::Alignment;
use super::{Decoded, Plan, TranscribeError};
use crate::engine::{
    ClipId, Engine, Event, FinishReason, Logits, Logprobs, Request, Sampling, SpeechRequest,
};
use crate::tasks::Events;
use crate::tasks::batch::Batch;

/// The default compression level of `zlib`.
const ZLIB_LEVEL: u8 = 6;
/// Added to the logit of a suppressed token, so that its probability vanishes.
const SUPPRESSED: f32 = -1e30;
/// Log-probabilities below this belong to suppressed tokens.
const IMPOSSIBLE: f32 = -1e20;

/// A window that is being decoded. When all requests of `batch` are done, [`Window::proceed`] continues.
pub(super) struct Window {
    clip: ClipId,
    /// The engine forgets the clip when this is dropped with the window.
    _owner: Arc<()>,
    /// The prompt before `<|startoftranscript|>`: earlier text, after its start token.
    history: Vec<u32>,
    language: Option<Language>,
    stage: Stage,
    batch: Batch<Request>,
    /// The purpose of each request of the batch.
    roles: Vec<Role>,
    no_speech_prob: f64,
}

enum Stage {
    /// Nothing has been requested yet.
    New,
    /// The language is being detected.
    Language { found: Option<(Language, f32)> },
    /// Several texts are being sampled at temperature `attempt`.
    Draw { attempt: usize, samples: Vec<Hypothesis> },
    /// A beam search, which is only done at temperature 0.
    Beam { attempt: usize, search: BeamSearch, candidates: Vec<Vec<(u32, f64)>>, n_steps: usize },
    /// The text's attention is being computed.
    Align { tokens: Vec<u32>, alignment: Alignment },
    /// Nothing is pending.
    Idle,
}

/// The purpose of a request.
#[derive(Clone, Copy, PartialEq)]
enum Role {
    Language,
    NoSpeech,
    Sample(usize),
    Beam(usize),
    Align,
}

/// The result of [`Window::proceed`].
pub(super) enum Step {
    /// Results are pending.
    Waits,
    /// The language is known.
    Language(Language, f32),
    /// The text is known.
    Decoded(Decoded),
    /// The text's attention is known, after [`Window::align`].
    Aligned(Vec<u32>, Alignment),
}

impl Window {
    /// A window of `clip` after `history`, in `language` if that is known or the model knows only one.
    pub fn new(engine: &mut Engine, clip: ClipId, history: Vec<u32>, language: Option<Language>) -> Window {
        let owner = Arc::new(());
        engine.forget_with(clip, Arc::downgrade(&owner));
        Window {
            clip,
            _owner: owner,
            history,
            language,
            stage: Stage::New,
            batch: Batch::new([]),
            roles: Vec::new(),
            no_speech_prob: 0.0,
        }
    }

    pub fn clip(&self) -> ClipId {
        self.clip
    }

    pub fn language(&self) -> Option<Language> {
        self.language
    }

    /// Handles the events of this window's requests.
    pub fn observe(&mut self, events: &mut Events, plan: &Plan) {
        let (stage, no_speech_prob) = (&mut self.stage, &mut self.no_speech_prob);
        self.batch.observe(events, |i, event| match (self.roles[i], event, &mut *stage) {
            (Role::Language, Event::Logits { values, .. }, Stage::Language { found }) => {
                *found = best_language(&values, &plan.tokens.languages);
            }
            (Role::NoSpeech, Event::Logits { values, .. }, _) => {
                *no_speech_prob = plan.tokens.no_speech.map_or(0.0, |token| probability(&values, token));
            }
            (Role::Align, Event::Logits { position, values, .. }, Stage::Align { tokens, alignment }) => {
                let text = position.checked_sub(alignment.n_before);
                if let Some(i) = text.filter(|i| *i < tokens.len()) {
                    // Only among text tokens: no timestamp, no end.
                    let texts = &values[..plan.tokens.end as usize];
                    alignment.probabilities[i] = probability(texts, tokens[i]);
                }
            }
            (Role::Align, Event::Alignment { position, weights, .. }, Stage::Align { alignment, .. }) => {
                alignment.rows[position] = weights;
            }
            (Role::Sample(i), Event::Token { token, logprobs, .. }, Stage::Draw { samples, .. }) => {
                samples[i].tokens.push(token);
                samples[i].sum_logprob += chosen(&logprobs);
            }
            (Role::Beam(i), Event::Token { logprobs, .. }, Stage::Beam { candidates, .. }) => {
                candidates[i] = best_tokens(logprobs);
            }
            (role, Event::Done { finish_reason: FinishReason::Stop, end_logprobs, .. }, stage) => {
                match (role, stage) {
                    (Role::Sample(i), Stage::Draw { samples, .. }) => {
                        samples[i].sum_logprob += chosen(&end_logprobs);
                    }
                    (Role::Beam(i), Stage::Beam { candidates, .. }) => {
                        candidates[i] = best_tokens(end_logprobs);
                    }
                    _ => {}
                }
            }
            _ => {}
        });
    }

    /// Cancels the requests, and drops the clip.
    pub fn cancel(&mut self, engine: &mut Engine) {
        self.batch.cancel(engine);
        engine.forget(self.clip);
    }

    /// Continues with the next step once all requests are done.
    ///
    /// # Errors
    /// Those of the engine, of a request, and of the tokenizer.
    pub fn proceed(&mut self, engine: &mut Engine, plan: &Plan) -> Result<Step, TranscribeError> {
        self.batch.advance(engine);
        if !self.batch.is_done() {
            return Ok(Step::Waits);
        }
        std::mem::replace(&mut self.batch, Batch::new([])).failure()?;
        self.roles.clear();
        match std::mem::replace(&mut self.stage, Stage::Idle) {
            Stage::New if self.language.is_none() && !plan.tokens.languages.is_empty() => {
                self.stage = Stage::Language { found: None };
                self.ask(
                    engine,
                    Role::Language,
                    Request { logits: Some(Logits::Last), ..self.request(vec![plan.tokens.start]) },
                );
                Ok(Step::Waits)
            }
            Stage::New => {
                let prompt: Vec<u32> = self.history.iter().copied().chain([plan.tokens.start]).collect();
                self.ask(
                    engine,
                    Role::NoSpeech,
                    Request { logits: Some(Logits::Last), ..self.request(prompt) },
                );
                self.attempt(engine, plan, 0);
                Ok(Step::Waits)
            }
            Stage::Language { found } => {
                self.stage = Stage::New;
                let (language, probability) = found.ok_or(TranscribeError::Token { name: "<|en|>" })?;
                self.language = Some(language);
                Ok(Step::Language(language, probability))
            }
            Stage::Draw { attempt, samples } => self.judge(engine, plan, attempt, samples),
            Stage::Beam { attempt, mut search, candidates, n_steps } => {
                let goes_on = search.step(&candidates, plan.tokens.end);
                if goes_on && n_steps < self.most_tokens(engine, plan) {
                    self.step_beams(engine, plan, attempt, search, n_steps + 1);
                    return Ok(Step::Waits);
                }
                self.judge(engine, plan, attempt, search.finish())
            }
            Stage::Align { tokens, alignment } => Ok(Step::Aligned(tokens, alignment)),
            Stage::Idle => Ok(Step::Waits),
        }
    }

    /// Requests the decoder's attention while it reads `tokens`, a text without timestamps.
    pub fn align(&mut self, engine: &mut Engine, plan: &Plan, tokens: Vec<u32>) {
        let mut prompt = plan.tokens.start(self.language, plan.options.task);
        let n_before = prompt.len();
        prompt.push(plan.tokens.no_timestamps);
        prompt.extend(&tokens);
        prompt.push(plan.tokens.end);
        let speech = SpeechRequest { clip: self.clip, rules: None, alignment: true };
        let request = Request { logits: Some(Logits::All), speech: Some(speech), ..Request::new(prompt) };
        let n_positions = engine.shape().audio.as_ref().map_or(1, |audio| audio.n_positions);
        let alignment = Alignment {
            rows: vec![Vec::new(); request.prompt.len()],
            n_positions,
            n_before,
            probabilities: vec![0.0; tokens.len()],
        };
        self.stage = Stage::Align { tokens, alignment };
        self.ask(engine, Role::Align, request);
    }

    /// Number of tokens before the first generated one.
    fn prompt(&self, plan: &Plan) -> Vec<u32> {
        let mut prompt = self.history.clone();
        prompt.extend(plan.tokens.start(self.language, plan.options.task));
        if !plan.options.timestamps {
            prompt.push(plan.tokens.no_timestamps);
        }
        prompt
    }

    /// Half of the context, as in the original.
    fn most_tokens(&self, engine: &Engine, plan: &Plan) -> usize {
        let half = engine.ctx() / 2;
        let room = engine.ctx().saturating_sub(self.prompt(plan).len());
        plan.options.max_tokens.unwrap_or(half).min(room)
    }

    fn request(&self, prompt: Vec<u32>) -> Request {
        let speech = SpeechRequest { clip: self.clip, rules: None, alignment: false };
        Request { speech: Some(speech), ..Request::new(prompt) }
    }

    fn ask(&mut self, engine: &mut Engine, role: Role, request: Request) {
        self.roles.push(role);
        self.batch.push(request);
        self.batch.advance(engine);
    }

    /// A request for text after `prompt`, of which the first `prompt_len` tokens are not generated ones.
    fn draw(&self, plan: &Plan, prompt: Vec<u32>, prompt_len: usize, temperature: f32) -> Request {
        let rules = plan.tokens.rules(prompt_len, plan.options.timestamps);
        let logit_bias = plan.tokens.suppress.iter().map(|token| (*token, SUPPRESSED)).collect();
        Request {
            sampling: Sampling { temperature, logit_bias, ..Sampling::default() },
            stop_tokens: Some(vec![plan.tokens.end]),
            logprobs: Some(0),
            speech: Some(SpeechRequest { clip: self.clip, rules: Some(rules), alignment: false }),
            ..Request::new(prompt)
        }
    }

    /// Requests texts at the temperature of this attempt.
    fn attempt(&mut self, engine: &mut Engine, plan: &Plan, attempt: usize) {
        let temperature = plan.options.temperatures[attempt];
        let n = match (temperature == 0.0, plan.options.beam_size) {
            (true, Some(n_beams)) => {
                let search = BeamSearch::new(n_beams, f64::from(plan.options.patience));
                return self.step_beams(engine, plan, attempt, search, 1);
            }
            (true, None) => 1,
            (false, _) => plan.options.best_of,
        };
        let prompt = self.prompt(plan);
        for i in 0..n {
            let mut request = self.draw(plan, prompt.clone(), prompt.len(), temperature);
            request.max_tokens = Some(self.most_tokens(engine, plan));
            // The seed differs between attempts and samples, not between runs.
            let seed = plan.options.seed.wrapping_add((attempt * plan.options.best_of + i) as u64);
            request.sampling.seed = Some(seed);
            self.ask(engine, Role::Sample(i), request);
        }
        let none = Hypothesis { tokens: Vec::new(), sum_logprob: 0.0 };
        self.stage = Stage::Draw { attempt, samples: vec![none; n] };
    }

    /// Requests the next token of every beam.
    fn step_beams(
        &mut self,
        engine: &mut Engine,
        plan: &Plan,
        attempt: usize,
        search: BeamSearch,
        n_steps: usize,
    ) {
        let prompt = self.prompt(plan);
        let n_best = plan.options.beam_size.unwrap_or(1) + 1;
        for (i, beam) in search.beams().iter().enumerate() {
            let tokens = prompt.iter().chain(&beam.tokens).copied().collect();
            let request = self.draw(plan, tokens, prompt.len(), 0.0);
            let request = Request { max_tokens: Some(1), logprobs: Some(n_best), ..request };
            self.ask(engine, Role::Beam(i), request);
        }
        let candidates = vec![Vec::new(); search.beams().len()];
        self.stage = Stage::Beam { attempt, search, candidates, n_steps };
    }

    /// Chooses the best text, and tries again at the next temperature if it is not good enough.
    fn judge(
        &mut self,
        engine: &mut Engine,
        plan: &Plan,
        attempt: usize,
        answers: Vec<Hypothesis>,
    ) -> Result<Step, TranscribeError> {
        let best = beam::best(&answers, plan.options.length_penalty.map(f64::from));
        let answer = &answers[best.unwrap_or(0)];
        let decoded = Decoded {
            temperature: plan.options.temperatures[attempt],
            avg_logprob: answer.sum_logprob / (answer.tokens.len() + 1) as f64,
            compression_ratio: compression_ratio(plan.text(&answer.tokens)?.trim()),
            no_speech_prob: self.no_speech_prob,
            tokens: answer.tokens.clone(),
        };
        if plan.options.fails(&decoded) && attempt + 1 < plan.options.temperatures.len() {
            self.attempt(engine, plan, attempt + 1);
            return Ok(Step::Waits);
        }
        Ok(Step::Decoded(decoded))
    }
}

/// The log-probability of the chosen token.
fn chosen(logprobs: &Option<Logprobs>) -> f64 {
    logprobs.as_ref().map_or(0.0, |l| f64::from(l.chosen.logprob))
}

/// The best tokens that can be drawn.
fn best_tokens(logprobs: Option<Logprobs>) -> Vec<(u32, f64)> {
    let top = logprobs.map(|l| l.top).unwrap_or_default();
    top.iter().filter(|t| t.logprob > IMPOSSIBLE).map(|t| (t.token, f64::from(t.logprob))).collect()
}

/// The softmax of `logits` at `token`.
fn probability(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    let exp = |logit: &f32| f64::from(logit - largest).exp();
    let sum: f64 = logits.iter().map(exp).sum();
    logits.get(token as usize).map_or(0.0, exp) / sum
}

/// The most probable language, and its probability among the languages.
fn best_language(logits: &[f32], languages: &[Language]) -> Option<(Language, f32)> {
    let known: Vec<f32> = languages.iter().filter_map(|l| logits.get(l.token as usize).copied()).collect();
    let best = (0..known.len()).rev().max_by(|a, b| known[*a].total_cmp(&known[*b]))?;
    Some((languages[best], probability(&known, best as u32) as f32))
}

/// The compression ratio: bytes of `text`, divided by its compressed bytes. Much above 2 for text that repeats itself.
fn compression_ratio(text: &str) -> f64 {
    text.len() as f64 / compress_to_vec_zlib(text.as_bytes(), ZLIB_LEVEL).len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repetition_is_noticed() {
        // Python's `len(text) / len(zlib.compress(text))`.
        let jfk = "And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country.";
        assert!((compression_ratio(jfk) - 1.3544).abs() < 0.03, "{}", compression_ratio(jfk));
        assert!(compression_ratio(&"yes ".repeat(40)) > 2.4);
        assert_eq!(compression_ratio(""), 0.0);
    }

    #[test]
    fn the_best_language_is_the_first_of_equals() {
        let languages = [Language { code: "en", token: 1 }, Language { code: "de", token: 3 }];
        let (language, p) = best_language(&[9.0, 0.0, 9.0, 1.0], &languages).expect("one");
        assert_eq!(language.code, "de");
        assert!((f64::from(p) - 1.0 / (1.0 + (-1.0f64).exp())).abs() < 1e-6);
        assert_eq!(best_language(&[0.0; 4], &languages).expect("one").0.code, "en");
    }
}
