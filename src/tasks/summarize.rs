//! Summaries of documents of any length.

use std::collections::VecDeque;

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use super::instruct::{Instruction, Prompter};
use super::split::split;
use super::task::{Engines, Events, Observer, Progress, Task, observed};
use super::write::{Style, Writing, Written, add, n_cut};
use super::{DocumentOptions, TaskError};
use crate::engine::{Engine, FinishReason, Usage};

/// Default for the most words of a summary: one sentence per piece, for as many sentences as are easy to read.
const MAX_WORDS: usize = 100;

/// Least words for the summary of a piece: hardly any sentence is shorter.
const MIN_WORDS: usize = 15;

/// A summary of a document.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The summary: one line for each piece of the last round.
    pub summary: String,
    /// Number of words.
    pub words: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Number of pieces in each round, the document's first.
    pub rounds: Vec<usize>,
    /// Number of pieces' summaries that reached their limit before their end.
    pub cut: usize,
    /// Token counts of all of it.
    pub usage: Usage,
}

/// Summarises `document` in about `words` words with [`SummarizeTask`], and waits for the summary.
///
/// # Errors
/// Those of [`SummarizeTask::new`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where
/// only the host submits.
pub fn summarize(
    engine: &mut Engine,
    document: &str,
    words: Option<usize>,
    options: &DocumentOptions,
    on: &mut Observer<'_>,
) -> Result<Summary, TaskError> {
    let mut task = SummarizeTask::new(engine, document, words, options)?;
    observed(&mut task, &mut Engines::from(engine), on)
}

/// Summarises a document.
///
/// The document is cut into pieces ([`split`](super::split())), which are summarised in one batch. If their summaries
/// together have few enough words, they are the result; otherwise they are the document of the next round, until there
/// is one piece. A summary has at most a quarter of a piece's tokens, so each round has fewer pieces than the last;
/// otherwise the result is [`TaskError::Endless`].
pub struct SummarizeTask {
    prompter: Prompter,
    words: Option<usize>,
    piece_tokens: usize,
    /// How the last summary is written, and those that others follow.
    whole: Style,
    short: Style,
    /// The document, then the summaries of each round.
    text: String,
    rounds: Vec<usize>,
    cut: usize,
    usage: Usage,
    progress: VecDeque<Progress>,
    phase: Phase,
}

enum Phase {
    New,
    /// A round of summaries.
    Round(Writing),
    Ended(Result<Summary, TaskError>),
}

impl SummarizeTask {
    /// A summary of `document` in about `words` words. Default: one sentence per piece, and at most 100 words.
    ///
    /// # Errors
    /// [`TaskError::Empty`], [`TaskError::Parameter`], [`TaskError::NoRoom`].
    pub fn new(
        engine: &Engine,
        document: &str,
        words: Option<usize>,
        options: &DocumentOptions,
    ) -> Result<SummarizeTask, TaskError> {
        if words == Some(0) {
            return Err(TaskError::Parameter { name: "words", found: "0".into(), expected: "at least 1" });
        }
        if document.trim().is_empty() {
            return Err(TaskError::Empty { what: "document" });
        }
        let prompter = Prompter::new(engine)?;
        let room = options.room(engine, prompt(&prompter, "", words)?.len())?;
        let whole = prompter.style(options.sampling.clone(), room.max_tokens);
        let short = Style { max_tokens: room.max_tokens.min(room.piece_tokens / 4), ..whole.clone() };
        Ok(SummarizeTask {
            prompter,
            words,
            piece_tokens: room.piece_tokens,
            whole,
            short,
            text: document.to_string(),
            rounds: Vec::new(),
            cut: 0,
            usage: Usage::default(),
            progress: VecDeque::new(),
            phase: Phase::New,
        })
    }

    /// Continues with the next phase once the current one is done.
    fn proceed(&mut self, engines: &mut Engines<'_>) -> Result<(), TaskError> {
        match &mut self.phase {
            Phase::New => self.phase = self.begin_round()?,
            Phase::Round(writing) => {
                writing.advance(engines.language()?);
                if writing.is_done() {
                    let written = writing.finish()?;
                    self.phase = self.end_round(written)?;
                }
            }
            Phase::Ended(_) => {}
        }
        Ok(())
    }

    /// Starts a round: the summaries of the text's pieces.
    fn begin_round(&mut self) -> Result<Phase, TaskError> {
        let ranges = split(&self.text, self.piece_tokens, &mut |text| self.prompter.count(text))?;
        let n_next = ranges.len();
        if let Some(n_pieces) = self.rounds.last().copied().filter(|n| n_next >= *n) {
            return Err(TaskError::Endless { n_pieces, n_next });
        }
        self.rounds.push(n_next);
        let n_tokens = self.prompter.count(&self.text)?;
        self.progress.push_back(Progress::Round { round: self.rounds.len(), n_pieces: n_next, n_tokens });
        if n_next == 1 {
            let prompt = prompt(&self.prompter, &self.text, self.words)?;
            return Ok(Phase::Round(Writing::one(prompt, &self.whole, &mut self.progress)));
        }
        let share = self.words.map(|n| (n / n_next).max(MIN_WORDS));
        let prompts = ranges.into_iter().map(|range| prompt(&self.prompter, &self.text[range], share));
        let prompts = prompts.collect::<Result<_, _>>()?;
        Ok(Phase::Round(Writing::several(prompts, &self.short, &mut self.progress)))
    }

    /// Takes the summaries of a round.
    fn end_round(&mut self, mut written: Vec<Written>) -> Result<Phase, TaskError> {
        written.iter().for_each(|written| add(&mut self.usage, written.usage));
        if let [last] = &mut written[..] {
            let summary = std::mem::take(&mut last.text);
            return Ok(self.conclude(summary, last.finish_reason));
        }
        self.cut += n_cut(&written);
        let lines: Vec<&str> = written.iter().map(|w| &w.text[..]).filter(|text| !text.is_empty()).collect();
        if lines.iter().map(|line| n_words(line)).sum::<usize>() <= self.words.unwrap_or(MAX_WORDS) {
            let summary = lines.join("\n");
            self.progress.push_back(Progress::Text(summary.clone()));
            let reason = written.iter().map(|w| w.finish_reason).find(|r| *r != FinishReason::Stop);
            return Ok(self.conclude(summary, reason.unwrap_or(FinishReason::Stop)));
        }
        self.text = lines.join("\n\n");
        self.begin_round()
    }

    fn conclude(&mut self, summary: String, finish_reason: FinishReason) -> Phase {
        let (words, rounds) = (n_words(&summary), std::mem::take(&mut self.rounds));
        let (cut, usage) = (self.cut, self.usage);
        Phase::Ended(Ok(Summary { summary, words, finish_reason, rounds, cut, usage }))
    }
}

impl Task for SummarizeTask {
    type Output = Summary;
    type Error = TaskError;
    type Progress = Progress;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        if let Err(error) = self.proceed(engines) {
            self.phase = Phase::Ended(Err(error));
        }
    }

    fn observe(&mut self, events: &mut Events) {
        if let Phase::Round(writing) = &mut self.phase {
            writing.observe(events, &mut self.progress);
        }
    }

    fn progress(&mut self) -> Option<Progress> {
        self.progress.pop_front()
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        match (&mut self.phase, engines.language()) {
            (Phase::New, _) => self.phase = Phase::Ended(Err(TaskError::Stopped)),
            (Phase::Round(writing), Ok(engine)) if !writing.is_done() => writing.cancel(engine),
            // Between two rounds: the next one must not begin. The last one's result stays.
            (Phase::Round(_), _) if self.rounds.last() != Some(&1) => {
                self.phase = Phase::Ended(Err(TaskError::Stopped));
            }
            _ => {}
        }
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    fn finish(&mut self) -> Result<Summary, TaskError> {
        match std::mem::replace(&mut self.phase, Phase::Ended(Err(TaskError::Stopped))) {
            Phase::Ended(result) => result,
            _ => Err(TaskError::Stopped),
        }
    }
}

fn prompt(prompter: &Prompter, text: &str, words: Option<usize>) -> Result<Vec<u32>, TaskError> {
    let how = match words {
        Some(n) => format!("in at most {n} words"),
        None => "in one sentence".to_string(),
    };
    let user = format!("Text:\n{}\n\nSummarize the text {how}.", text.trim());
    prompter.prompt(&Instruction { system: None, user: &user, cue: "Summary:" })
}

fn n_words(text: &str) -> usize {
    text.unicode_words().count()
}
