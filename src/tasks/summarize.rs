//! Summaries of documents of any length.

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use super::instruct::{
    Instruction, Observer, Progress, Prompter, Writing, add, n_cut, stopped, write_all, write_one,
};
use super::split::split;
use super::{DocumentOptions, TaskError};
use crate::engine::{Engine, FinishReason, Usage};

/// Words of a summary at most, unless asked otherwise: a sentence a piece, for as many sentences as can be read at once.
const MAX_WORDS: usize = 100;

/// A piece of a text is summed up in no fewer words: no sentence has much fewer.
const MIN_WORDS: usize = 15;

/// A document in a few words.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The summary: a line for each piece that it was made from, if there are several.
    pub summary: String,
    /// Its words.
    pub words: usize,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Pieces of each round, the document's first.
    pub rounds: Vec<usize>,
    /// Summaries of pieces that had no room to end.
    pub cut: usize,
    /// Token counts of all of it.
    pub usage: Usage,
}

/// Sums `document` up in about `words` words, or in one sentence a piece and a hundred words at most without.
///
/// The document is cut into pieces ([`split`](super::split())), which are summed up in one batch. Their summaries
/// together are the result if they have few enough words; else they are the document of the next round, until there is
/// one piece. A summary has at most a quarter of a piece's tokens, so each round has fewer pieces than the last, and a
/// round that had not would be [`TaskError::Endless`].
///
/// # Errors
/// [`TaskError`] says what is empty, out of range or has no room.
///
/// # Panics
/// On an adopted device, whose host submits.
pub fn summarize(
    engine: &mut Engine,
    document: &str,
    words: Option<usize>,
    options: &DocumentOptions,
    on: &mut Observer<'_>,
) -> Result<Summary, TaskError> {
    if words == Some(0) {
        return Err(TaskError::Parameter { name: "words", found: "0".into(), expected: "at least 1" });
    }
    if document.trim().is_empty() {
        return Err(TaskError::Empty { what: "document" });
    }
    let prompter = Prompter::new(engine)?;
    let prompt = |text: &str, words: Option<usize>| {
        let how = match words {
            Some(n) => format!("in at most {n} words"),
            None => "in one sentence".to_string(),
        };
        let user = format!("Text:\n{}\n\nSummarize the text {how}.", text.trim());
        prompter.prompt(&Instruction { system: None, user: &user, cue: "Summary:" })
    };
    let room = options.room(engine, prompt("", words)?.len())?;
    let stop = prompter.stop();
    let whole = Writing { sampling: &options.sampling, max_tokens: room.max_tokens, stop: &stop };
    let short = Writing { max_tokens: room.max_tokens.min(room.piece_tokens / 4), ..whole };
    let mut count = |text: &str| prompter.count(text);
    let most = words.unwrap_or(MAX_WORDS);
    let (mut usage, mut rounds, mut cut) = (Usage::default(), Vec::new(), 0);
    let mut text = document.to_string();
    let (summary, finish_reason) = loop {
        let ranges = split(&text, room.piece_tokens, &mut count)?;
        let n_next = ranges.len();
        if let Some(n_pieces) = rounds.last().copied().filter(|n| n_next >= *n) {
            return Err(TaskError::Endless { n_pieces, n_next });
        }
        rounds.push(n_next);
        let n_tokens = count(&text)?;
        stopped(on(Progress::Round { round: rounds.len(), n_pieces: n_next, n_tokens }))?;
        if n_next == 1 {
            let written = write_one(engine, prompt(&text, words)?, &whole, on)?;
            add(&mut usage, written.usage);
            break (written.text, written.finish_reason);
        }
        let share = words.map(|n| (n / n_next).max(MIN_WORDS));
        let prompts = ranges.iter().map(|range| prompt(&text[range.clone()], share));
        let written = write_all(engine, prompts.collect::<Result<_, _>>()?, &short, on)?;
        written.iter().for_each(|written| add(&mut usage, written.usage));
        cut += n_cut(&written);
        let lines: Vec<&str> = written.iter().map(|w| &w.text[..]).filter(|text| !text.is_empty()).collect();
        if lines.iter().map(|line| n_words(line)).sum::<usize>() <= most {
            let summary = lines.join("\n");
            stopped(on(Progress::Text(&summary)))?;
            let reason = written.iter().map(|w| w.finish_reason).find(|r| *r != FinishReason::Stop);
            break (summary, reason.unwrap_or(FinishReason::Stop));
        }
        text = lines.join("\n\n");
    };
    let words = n_words(&summary);
    Ok(Summary { summary, words, finish_reason, rounds, cut, usage })
}

fn n_words(text: &str) -> usize {
    text.unicode_words().count()
}
