//! Scores: perplexity of texts, and exact match of answers.

use std::collections::VecDeque;

use serde::Serialize;

use super::TaskError;
use super::batch::Batch;
use super::instruct::{Instruction, Prompter};
use super::task::{Engines, Events, Finished, Observer, Progress, Task, collected, observed, rest};
use super::write::{Style, Writing, Written, add};
use crate::engine::{Engine, EngineError, Event, Request, Sampling, Usage};

/// How well a model predicts a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// `e^(nll / scored)`.
    pub perplexity: f64,
    /// `nll / ln 2 / bytes`.
    pub bits_per_byte: f64,
    /// The negative natural logarithm of the probability of all scored tokens.
    pub nll: f64,
    /// Tokens of the text, including those that the model expects around it.
    pub tokens: usize,
    /// Tokens that have a probability: all but the first.
    pub scored: usize,
    /// Bytes of the scored tokens' text.
    pub bytes: usize,
    /// Number of windows.
    pub windows: usize,
    /// Most tokens per window.
    pub ctx: usize,
    /// Tokens between the beginnings of two windows.
    pub stride: usize,
}

/// A window of a text, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreWindow {
    /// The first token that the model reads.
    pub begin: usize,
    /// The first token that is scored.
    pub scored: usize,
    /// The end, exclusive.
    pub end: usize,
}

/// The windows of a text of `n_tokens` tokens: of `ctx` tokens each, `stride` apart. A window scores the tokens that
/// the windows before it did not: its last `stride` tokens, or all but the first token in the first window. So every
/// token but the first is scored once, with at least `ctx − stride` tokens before it, or all that exist.
///
/// "Perplexity of fixed-length models" in the documentation of transformers. There, the mean of a window is weighted by
/// its length; here, the sum over all tokens is exact.
///
/// # Errors
/// [`TaskError::Parameter`] unless `1 ≤ stride < ctx`.
pub fn windows(n_tokens: usize, ctx: usize, stride: usize) -> Result<Vec<ScoreWindow>, TaskError> {
    if stride == 0 || stride >= ctx {
        let expected = "at least 1 and less than the context";
        return Err(TaskError::Parameter { name: "stride", found: stride.to_string(), expected });
    }
    let mut windows = Vec::new();
    let mut scored = 1;
    for begin in (0..n_tokens).step_by(stride) {
        let end = (begin + ctx).min(n_tokens);
        if end > scored {
            windows.push(ScoreWindow { begin, scored, end });
            scored = end;
        }
        if end == n_tokens {
            break;
        }
    }
    Ok(windows)
}

/// Computes the perplexity of `text` with [`PerplexityTask`], and waits for it.
///
/// # Errors
/// Those of [`PerplexityTask::new`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where
/// only the host submits.
pub fn perplexity(
    engine: &mut Engine,
    text: &str,
    stride: Option<usize>,
    on: &mut Observer<'_>,
) -> Result<Perplexity, TaskError> {
    let mut task = PerplexityTask::new(engine, text, stride)?;
    observed(&mut task, &mut Engines::from(engine), on)
}

/// Computes the perplexity of a text. Reads back 4 bytes per token.
///
/// The engine must be built with [`EngineOptions::prompt_logprobs`](crate::engine::EngineOptions::prompt_logprobs).
pub struct PerplexityTask {
    batch: Batch<Request>,
    /// `nll` and `scored` accumulate; the other figures are computed at the end.
    found: Perplexity,
    progress: VecDeque<Progress>,
}

impl PerplexityTask {
    /// Cuts `text` into [`windows`] of the engine's context, `stride` tokens apart. Default stride: half the context.
    ///
    /// # Errors
    /// [`TaskError::Empty`]; [`TaskError::TooShort`] for a text of one token, which has none before it; those of
    /// [`windows`].
    pub fn new(engine: &Engine, text: &str, stride: Option<usize>) -> Result<PerplexityTask, TaskError> {
        let no_tokenizer = || TaskError::NoTokenizer { model: engine.name().to_string() };
        let tokenizer = engine.tokenizer().ok_or_else(no_tokenizer)?;
        // Names of special tokens in the text are ordinary characters; the tokens around it are the model's.
        let plain = tokenizer.encode_plain(text)?;
        let whole = tokenizer.encode(text, true)?;
        let ids = if tokenizer.encode(text, false)? == plain {
            whole
        } else {
            tokenizer.encode("", true)?.into_iter().chain(plain).collect()
        };
        let first = match &ids[..] {
            _ if text.is_empty() => return Err(TaskError::Empty { what: "text" }),
            [first, _, ..] => *first,
            few => return Err(TaskError::TooShort { what: "text", found: few.len(), expected: 2 }),
        };
        let n_unscored =
            if tokenizer.is_special(first) { 0 } else { tokenizer.decode(&[first], false)?.len() };
        let ctx = engine.ctx();
        let stride = stride.unwrap_or((ctx / 2).max(1));
        let windows = windows(ids.len(), ctx, stride)?;
        let found = Perplexity {
            perplexity: 0.0,
            bits_per_byte: 0.0,
            nll: 0.0,
            tokens: ids.len(),
            scored: 0,
            bytes: text.len().saturating_sub(n_unscored).max(1),
            windows: windows.len(),
            ctx,
            stride,
        };
        let requests = windows.iter().map(|w| Request {
            prompt_logprobs: Some(w.scored - w.begin),
            ..Request::new(ids[w.begin..w.end].to_vec())
        });
        let begin = Progress::Done { n_done: 0, n_pieces: ids.len() - 1 };
        Ok(PerplexityTask { batch: Batch::new(requests), found, progress: VecDeque::from([begin]) })
    }
}

impl Task for PerplexityTask {
    type Output = Perplexity;
    type Error = TaskError;
    type Progress = Progress;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        match engines.language() {
            Ok(engine) => self.batch.advance(engine),
            Err(error) => self.batch.give_up(error),
        }
    }

    fn observe(&mut self, events: &mut Events) {
        self.batch.observe(events, |_, event| {
            if let Event::PromptLogprobs { logprobs, .. } = event {
                self.found.nll -= logprobs.iter().map(|p| f64::from(*p)).sum::<f64>();
                self.found.scored += logprobs.len();
                let n_pieces = self.found.tokens - 1;
                self.progress.push_back(Progress::Done { n_done: self.found.scored, n_pieces });
            }
        });
    }

    fn progress(&mut self) -> Option<Progress> {
        self.progress.pop_front()
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(engine) = engines.language() {
            self.batch.cancel(engine);
        }
    }

    fn is_done(&self) -> bool {
        self.batch.is_done()
    }

    /// The perplexity.
    ///
    /// # Errors
    /// What the engine refuses or fails with, [`EngineError::OutputNotFinite`], [`TaskError::Stopped`].
    fn finish(&mut self) -> Result<Perplexity, TaskError> {
        self.batch.result()?;
        let Perplexity { nll, scored, bytes, .. } = self.found;
        if nll.is_nan() {
            return Err(EngineError::OutputNotFinite.into());
        }
        Ok(Perplexity {
            perplexity: (nll / scored as f64).exp(),
            bits_per_byte: nll / std::f64::consts::LN_2 / bytes as f64,
            ..self.found.clone()
        })
    }
}

/// An answer, compared with the expected one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Match {
    /// The model's answer.
    pub answer: String,
    /// Whether it equals the expected answer, both [`normalized`].
    pub is_right: bool,
    /// Token counts.
    pub usage: Usage,
}

/// Compares answers to prompts with the expected ones, with [`MatchTask`], and waits for them. Returns the result or the
/// error of each prompt, in their order.
///
/// # Errors
/// Those of [`MatchTask::new`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where only
/// the host submits.
pub fn exact_match(
    engine: &mut Engine,
    items: &[(&str, &str)],
    max_tokens: usize,
    on: &mut Observer<'_>,
) -> Result<Vec<Result<Match, TaskError>>, TaskError> {
    let mut task = MatchTask::new(engine, items, max_tokens)?;
    collected(&mut task, &mut Engines::from(engine), items.len(), on)
}

/// Compares greedy answers to prompts with the expected ones, all in one batch. If the model has a chat template, a
/// prompt is a user's message; otherwise the model continues it, to the end of the line. A prompt that fails does not
/// stop the others.
pub struct MatchTask {
    writing: Writing,
    /// Of each prompt that is asked: its index, and the expected answer, [`normalized`].
    expected: Vec<(usize, String)>,
    finished: VecDeque<Finished<Match>>,
}

impl MatchTask {
    /// A task for pairs of a prompt and the expected answer, which may have up to `max_tokens` tokens. A prompt that is
    /// blank or too long is an error of its own in the result.
    ///
    /// # Errors
    /// [`TaskError::NoTokenizer`], [`TaskError::Engine`] for a chat template that is not valid.
    pub fn new(engine: &Engine, items: &[(&str, &str)], max_tokens: usize) -> Result<MatchTask, TaskError> {
        let prompter = Prompter::new(engine)?;
        let ids = |prompt: &str| {
            if prompt.trim().is_empty() {
                return Err(TaskError::Empty { what: "prompt" });
            }
            let ids = prompter.prompt(&Instruction { system: None, user: prompt, cue: "" })?;
            let (found, ctx) = (ids.len(), engine.ctx());
            if found >= ctx {
                return Err(TaskError::Engine(EngineError::PromptTooLong { found, expected: ctx - 1 }));
            }
            Ok(ids)
        };
        let (mut prompts, mut expected, mut finished) = (Vec::new(), Vec::new(), VecDeque::new());
        for (index, (prompt, answer)) in items.iter().enumerate() {
            match ids(prompt) {
                Ok(ids) => {
                    prompts.push(ids);
                    expected.push((index, normalized(answer)));
                }
                Err(error) => finished.push_back(Finished { index, result: Err(error) }),
            }
        }
        let stop = if prompter.has_template() { Vec::new() } else { vec!["\n".to_string()] };
        let style = Style { stop, ..prompter.style(Sampling::greedy(), max_tokens) };
        Ok(MatchTask { writing: Writing::independent(prompts, &style), expected, finished })
    }

    /// Compares the answers that have arrived.
    fn compare(&mut self) {
        for (i, written) in self.writing.take_finished() {
            let (index, expected) = &self.expected[i];
            let compare = |written: Written| {
                let is_right = normalized(&written.text) == *expected;
                Match { is_right, answer: written.text, usage: written.usage }
            };
            self.finished.push_back(Finished { index: *index, result: written.map(compare) });
        }
    }
}

impl Task for MatchTask {
    type Output = Vec<Finished<Match>>;
    type Error = TaskError;
    type Progress = Finished<Match>;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        match engines.language() {
            Ok(engine) => self.writing.advance(engine),
            Err(error) => self.writing.give_up(error),
        }
        self.compare();
    }

    fn observe(&mut self, events: &mut Events) {
        self.writing.observe(events, &mut VecDeque::new());
        self.compare();
    }

    fn progress(&mut self) -> Option<Finished<Match>> {
        self.finished.pop_front()
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        if let Ok(engine) = engines.language() {
            self.writing.cancel(engine);
        }
    }

    fn is_done(&self) -> bool {
        self.writing.is_done()
    }

    /// The answer or the error of each prompt. An error of a prompt is [`TaskError::Empty`], one of the tokenizer or the
    /// template, one with which [`Engine::submit`] refuses a prompt, or [`EngineError::NotFinite`].
    ///
    /// # Errors
    /// [`TaskError::Engine`], [`TaskError::Stopped`].
    fn finish(&mut self) -> Result<Vec<Finished<Match>>, TaskError> {
        self.writing.result()?;
        Ok(rest(&mut self.finished))
    }
}

/// The normal form for comparing answers: lower case, without punctuation, articles and extra white space.
///
/// `normalize_answer` of the evaluation script of SQuAD (Rajpurkar et al. 2016), with the punctuation of all scripts.
pub fn normalized(text: &str) -> String {
    let lower = text.to_lowercase();
    let plain: String = lower.chars().filter(|c| !is_punctuation(*c)).collect();
    let words = plain.split_whitespace().filter(|word| !["a", "an", "the"].contains(word));
    words.collect::<Vec<_>>().join(" ")
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || !(c.is_alphanumeric() || c.is_whitespace() || c.is_ascii())
}

/// Adds up the token counts of several results.
pub fn total(usages: impl IntoIterator<Item = Usage>) -> Usage {
    let mut sum = Usage::default();
    usages.into_iter().for_each(|usage| add(&mut sum, usage));
    sum
}

#[cfg(test)]
mod tests {
    use super::{ScoreWindow, normalized, windows};

    #[test]
    fn answers_are_compared_as_squad_does() {
        assert_eq!(normalized("  The Cat,  a DOG and “an” owl's. "), "cat dog and owls");
        assert_ne!(normalized("another"), normalized("other"));
    }

    #[test]
    fn windows_as_in_the_documentation_of_transformers() {
        let found = windows(10, 4, 2).expect("a stride that fits");
        let expected = [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)];
        assert_eq!(found, expected.map(|(begin, scored, end)| ScoreWindow { begin, scored, end }));
        assert!(windows(10, 4, 4).is_err() && windows(10, 4, 0).is_err());
    }
}
