//! Texts that a language model generates for a task, one for each prompt.

use std::collections::VecDeque;

use super::TaskError;
use super::batch::Batch;
use super::task::{Events, Progress};
use crate::engine::{Engine, EngineError, Event, FinishReason, Request, Sampling, Usage};
use crate::text::{Delta, ReasoningFormat, ReasoningParser, Tokenizer};

/// How texts are generated.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub sampling: Sampling,
    pub max_tokens: usize,
    pub stop: Vec<String>,
    /// How the model marks its thoughts, which are no part of the texts.
    pub reasoning: Option<(Tokenizer, ReasoningFormat)>,
}

/// A finished text, without white space around it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub text: String,
    pub finish_reason: FinishReason,
    pub usage: Usage,
}

/// The generation of texts for several prompts, all in one batch.
pub(super) struct Writing {
    batch: Batch<Request>,
    texts: Vec<Text>,
    /// Finished texts that have not been taken.
    finished: Vec<usize>,
    /// If there is one text, which is reported as it is generated.
    stream: Option<Stream>,
    n_done: usize,
    /// How many texts have been reported as done.
    n_reported: usize,
}

/// A text so far, and its end once it has one.
#[derive(Default)]
struct Text {
    parser: Option<ReasoningParser>,
    text: String,
    end: Option<(FinishReason, Usage)>,
}

/// The reported part of a text.
#[derive(Default)]
struct Stream {
    /// White space, which is reported with the text after it, so that the whole has none at its ends.
    held: String,
    is_begun: bool,
}

impl Writing {
    /// Several texts that are of use only together. Reports to `progress` how many are done.
    pub fn several(prompts: Vec<Vec<u32>>, style: &Style, progress: &mut VecDeque<Progress>) -> Writing {
        Writing::of(prompts, style, Batch::new, progress)
    }

    /// As [`Writing::several`], but a text can fail while the others go on; see [`Writing::take_finished`].
    pub fn independent(prompts: Vec<Vec<u32>>, style: &Style) -> Writing {
        Writing::of(prompts, style, Batch::independent, &mut VecDeque::new())
    }

    fn of(
        prompts: Vec<Vec<u32>>,
        style: &Style,
        batch: impl FnOnce(Vec<Request>) -> Batch<Request>,
        progress: &mut VecDeque<Progress>,
    ) -> Writing {
        progress.push_back(Progress::Done { n_done: 0, n_pieces: prompts.len() });
        let text = |prompt: &Vec<u32>| {
            let (tokenizer, format) = style.reasoning.as_ref()?;
            // The engine refuses a prompt that cannot be decoded.
            ReasoningParser::after(tokenizer, *format, prompt).ok()
        };
        let texts = prompts.iter().map(|prompt| Text { parser: text(prompt), ..Text::default() }).collect();
        Writing {
            batch: batch(requests(prompts, style)),
            texts,
            finished: Vec::new(),
            stream: None,
            n_done: 0,
            n_reported: 0,
        }
    }

    /// One text, which is reported to `progress` as it is generated. If it is cancelled, the part so far is the text.
    pub fn one(prompt: Vec<u32>, style: &Style, progress: &mut VecDeque<Progress>) -> Writing {
        Writing { stream: Some(Stream::default()), ..Writing::several(vec![prompt], style, progress) }
    }

    pub fn advance(&mut self, engine: &mut Engine) {
        self.batch.advance(engine);
    }

    pub fn observe(&mut self, events: &mut Events, progress: &mut VecDeque<Progress>) {
        let n_pieces = self.texts.len();
        self.batch.observe(events, |i, event| {
            let (Event::Token { text, .. } | Event::Done { text, .. }) = &event else { return };
            let text = self.texts[i].push(text, matches!(event, Event::Done { .. }));
            if let Some(text) = self.stream.as_mut().and_then(|stream| stream.push(&text)) {
                progress.push_back(Progress::Text(text));
            }
            if let Event::Done { finish_reason, usage, .. } = event {
                self.texts[i].end = Some((finish_reason, usage));
                self.finished.push(i);
                self.n_done += 1;
            }
        });
        while self.stream.is_none() && self.n_reported < self.n_done + self.batch.n_errors() {
            self.n_reported += 1;
            progress.push_back(Progress::Done { n_done: self.n_reported, n_pieces });
        }
    }

    /// Fails without an engine.
    pub fn give_up(&mut self, error: EngineError) {
        self.batch.give_up(error);
    }

    pub fn cancel(&mut self, engine: &mut Engine) {
        self.batch.cancel(engine);
    }

    pub fn is_done(&self) -> bool {
        self.batch.is_done()
    }

    /// The texts, in the order of their prompts.
    ///
    /// # Errors
    /// The error of a request that was refused or failed, [`TaskError::Stopped`].
    pub fn finish(&mut self) -> Result<Vec<Written>, TaskError> {
        match self.batch.result() {
            // Of a cancelled single text, the part so far is the text.
            Err(TaskError::Stopped) if self.stream.is_some() => {}
            result => result?,
        }
        (0..self.texts.len()).map(|i| self.written(i)).collect()
    }

    /// Takes the texts that have finished, or the errors with which their requests failed, with the numbers of their
    /// prompts.
    pub fn take_finished(&mut self) -> Vec<(usize, Result<Written, TaskError>)> {
        let errors = self.batch.take_errors().into_iter().map(|(i, error)| (i, Err(error.into())));
        let mut finished: Vec<_> = errors.collect();
        for i in std::mem::take(&mut self.finished) {
            finished.push((i, self.written(i)));
        }
        finished
    }

    /// Checks that all requests have ended; see [`Batch::result`].
    pub fn result(&mut self) -> Result<(), TaskError> {
        self.batch.result()
    }

    /// Takes a text that has ended.
    fn written(&mut self, i: usize) -> Result<Written, TaskError> {
        let Text { text, end, .. } = std::mem::take(&mut self.texts[i]);
        let (finish_reason, usage) = end.ok_or(TaskError::Stopped)?;
        Ok(Written { text: text.trim().to_string(), finish_reason, usage })
    }
}

fn requests(prompts: Vec<Vec<u32>>, style: &Style) -> Vec<Request> {
    let marks = style.reasoning.as_ref().map(|(tokenizer, format)| format.special_tokens(tokenizer));
    let marks = marks.unwrap_or_default();
    let request = |prompt| Request {
        sampling: style.sampling.clone(),
        max_tokens: Some(style.max_tokens),
        stop: style.stop.clone(),
        shown_tokens: marks.clone(),
        ..Request::new(prompt)
    };
    prompts.into_iter().map(request).collect()
}

impl Text {
    /// Takes the next part of what the model writes. Returns what of it is text, and no thought.
    fn push(&mut self, text: &str, is_last: bool) -> String {
        let content = match &mut self.parser {
            None => text.to_string(),
            Some(parser) => {
                let mut deltas = parser.push(text);
                if is_last {
                    deltas.extend(parser.finish());
                }
                let content = |delta| if let Delta::Content(text) = delta { Some(text) } else { None };
                deltas.into_iter().filter_map(content).collect()
            }
        };
        self.text.push_str(&content);
        content
    }
}

impl Stream {
    /// Takes the next part of the text. Returns the part that can be reported.
    fn push(&mut self, text: &str) -> Option<String> {
        self.held.push_str(text);
        let n = self.held.trim_end().len();
        if n == 0 {
            return None;
        }
        let rest = self.held.split_off(n);
        let text = std::mem::replace(&mut self.held, rest);
        let is_begun = std::mem::replace(&mut self.is_begun, true);
        Some(if is_begun { text } else { text.trim_start().to_string() })
    }
}

/// The number of texts that reached `max_tokens` before their end.
pub(super) fn n_cut(written: &[Written]) -> usize {
    written.iter().filter(|written| written.finish_reason == FinishReason::Length).count()
}

/// Adds up token counts.
pub(super) fn add(sum: &mut Usage, usage: Usage) {
    sum.prompt_tokens += usage.prompt_tokens;
    sum.completion_tokens += usage.completion_tokens;
    sum.total_tokens += usage.total_tokens;
    sum.cached_tokens += usage.cached_tokens;
}
