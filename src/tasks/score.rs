//! How well a language model knows a text, and how often its answers are right.

use serde::Serialize;

use super::TaskError;
use super::instruct::{Instruction, Observer, Progress, Prompter, Writing, add, run, stopped, write_all};
use crate::engine::{Engine, EngineError, Event, Request, Sampling, Usage};

/// How well a model foresees a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Perplexity {
    /// `e^(nll / scored)`.
    pub perplexity: f64,
    /// `nll / ln 2 / bytes`.
    pub bits_per_byte: f64,
    /// The negative logarithm of the probability of all scored tokens together.
    pub nll: f64,
    /// Tokens of the text, those that the model expects around it included.
    pub tokens: usize,
    /// Tokens that have a probability: all but the first.
    pub scored: usize,
    /// Bytes of the text that the scored tokens stand for.
    pub bytes: usize,
    /// Windows.
    pub windows: usize,
    /// Tokens of a window at most.
    pub ctx: usize,
    /// Tokens from one window's beginning to the next one's.
    pub stride: usize,
}

/// A window of a text: its first token, the first one scored, and the one behind its last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Where the model begins to read.
    pub begin: usize,
    /// The first token that is scored.
    pub scored: usize,
    /// The token behind the last.
    pub end: usize,
}

/// The windows of a text of `n_tokens`: of `ctx` tokens each, `stride` apart, each scoring what the ones before it did
/// not: its last `stride` tokens, the first window all but its first token. So every token but the first is scored
/// once, with at least `ctx − stride` tokens before it (as far as there are so many).
///
/// "Perplexity of fixed-length models" in the documentation of transformers; there a window's mean is weighed by its
/// length, here the sum of all tokens is exact.
///
/// # Errors
/// [`TaskError::Parameter`] unless `1 ≤ stride < ctx`.
pub fn windows(n_tokens: usize, ctx: usize, stride: usize) -> Result<Vec<Window>, TaskError> {
    if stride == 0 || stride >= ctx {
        let expected = "at least 1 and less than the context";
        return Err(TaskError::Parameter { name: "stride", found: stride.to_string(), expected });
    }
    let mut windows = Vec::new();
    let mut scored = 1;
    for begin in (0..n_tokens).step_by(stride) {
        let end = (begin + ctx).min(n_tokens);
        if end > scored {
            windows.push(Window { begin, scored, end });
            scored = end;
        }
        if end == n_tokens {
            break;
        }
    }
    Ok(windows)
}

/// Measures the perplexity of `text`, in [`windows`] of the engine's context, half a context apart unless `stride` says
/// otherwise. 4 bytes a token come back from the device.
///
/// The engine must be built with [`EngineOptions::prompt_logprobs`](crate::engine::EngineOptions::prompt_logprobs).
///
/// # Errors
/// [`TaskError::Empty`] for a text of fewer than two tokens, and those of [`windows`].
///
/// # Panics
/// On an adopted device, whose host submits.
pub fn perplexity(
    engine: &mut Engine,
    text: &str,
    stride: Option<usize>,
    on: &mut Observer<'_>,
) -> Result<Perplexity, TaskError> {
    let no_tokenizer = || TaskError::NoTokenizer { model: engine.name().to_string() };
    let tokenizer = engine.tokenizer().ok_or_else(no_tokenizer)?;
    // Special tokens in a stranger's text are characters like others; those around it are the model's.
    let plain = tokenizer.encode_plain(text)?;
    let whole = tokenizer.encode(text, true)?;
    let ids = if tokenizer.encode(text, false)? == plain {
        whole
    } else {
        tokenizer.encode("", true)?.into_iter().chain(plain).collect()
    };
    let Some(first) = ids.first().copied().filter(|_| ids.len() > 1) else {
        return Err(TaskError::Empty { what: "text" });
    };
    let n_unscored = if tokenizer.is_special(first) { 0 } else { tokenizer.decode(&[first], false)?.len() };
    let bytes = text.len().saturating_sub(n_unscored).max(1);
    let ctx = engine.ctx();
    let stride = stride.unwrap_or((ctx / 2).max(1));
    let windows = windows(ids.len(), ctx, stride)?;
    let requests = windows.iter().map(|w| Request {
        prompt_logprobs: Some(w.scored - w.begin),
        ..Request::new(ids[w.begin..w.end].to_vec())
    });
    let n_pieces = ids.len() - 1;
    stopped(on(Progress::Round { round: 1, n_pieces: windows.len(), n_tokens: ids.len() }))?;
    let (mut nll, mut scored) = (0.0, 0);
    let flow = run(engine, requests.collect(), &mut |event| {
        if let Some((_, Event::PromptLogprobs { logprobs, .. })) = event {
            nll -= logprobs.iter().map(|p| f64::from(*p)).sum::<f64>();
            scored += logprobs.len();
        }
        on(Progress::Done { n_done: scored, n_pieces })
    })?;
    stopped(flow)?;
    Ok(Perplexity {
        perplexity: (nll / scored as f64).exp(),
        bits_per_byte: nll / std::f64::consts::LN_2 / bytes as f64,
        nll,
        tokens: ids.len(),
        scored,
        bytes,
        windows: windows.len(),
        ctx,
        stride,
    })
}

/// An answer beside the one that was expected.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Match {
    /// What the model answered.
    pub answer: String,
    /// Whether it is what was expected, both [`normalized`].
    pub is_right: bool,
    /// Token counts.
    pub usage: Usage,
}

/// Asks each prompt, greedily and in one batch, and compares the answers with those expected. A prompt is a user's turn
/// where the model has a chat template; it is continued, to the end of the line, where there is none.
///
/// # Errors
/// What the engine refuses a prompt for.
///
/// # Panics
/// On an adopted device, whose host submits.
pub fn exact_match(
    engine: &mut Engine,
    items: &[(&str, &str)],
    max_tokens: usize,
    on: &mut Observer<'_>,
) -> Result<Vec<Match>, TaskError> {
    let prompter = Prompter::new(engine)?;
    let mut prompts = Vec::with_capacity(items.len());
    for (i, (prompt, _)) in items.iter().enumerate() {
        let ids = prompter.prompt(&Instruction { system: None, user: prompt, cue: "" })?;
        if ids.len() >= engine.ctx() {
            let error = EngineError::PromptTooLong { found: ids.len(), expected: engine.ctx() - 1 };
            return Err(TaskError::Item { what: "prompt", number: i + 1, error });
        }
        prompts.push(ids);
    }
    let stop: &[String] = if prompter.has_template() { &[] } else { &["\n".to_string()] };
    let how = Writing { sampling: &Sampling::greedy(), max_tokens, stop };
    let written = write_all(engine, prompts, &how, on)?;
    let matches = items.iter().zip(written).map(|((_, expected), written)| Match {
        is_right: normalized(&written.text) == normalized(expected),
        answer: written.text,
        usage: written.usage,
    });
    Ok(matches.collect())
}

/// A text as answers are compared: in lower case, without punctuation, articles and spare white space.
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
    use super::{Window, normalized, windows};

    #[test]
    fn answers_are_compared_as_squad_does() {
        assert_eq!(normalized("  The Cat,  a DOG and “an” owl's. "), "cat dog and owls");
        assert_ne!(normalized("another"), normalized("other"));
    }

    #[test]
    fn windows_as_in_the_documentation_of_transformers() {
        let found = windows(10, 4, 2).expect("a stride that fits");
        let expected = [(0, 1, 4), (2, 4, 6), (4, 6, 8), (6, 8, 10)];
        assert_eq!(found, expected.map(|(begin, scored, end)| Window { begin, scored, end }));
        assert!(windows(10, 4, 4).is_err() && windows(10, 4, 0).is_err());
    }
}
