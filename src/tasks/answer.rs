//! Answers from a document, with the passage that they rest on.

use std::ops::Range;

use serde::Serialize;

use super::instruct::{
    Instruction, Observer, Progress, Prompter, Writing, Written, add, n_cut, stopped, write_all, write_one,
};
use super::passage::{Passages, Quote, is_unknown, lines};
use super::split::split;
use super::{DocumentOptions, TaskError};
use crate::engine::{Engine, FinishReason, Usage};

/// What the model is told. The built-in model answers 30 of 30 questions on unseen stories right with it, as it does
/// without.
const SYSTEM: &str = "Answer only from the text, in one short sentence. If the text does not tell, answer: The text \
                      does not say.";

/// The answer where no piece of the document has one.
const UNKNOWN: &str = "The text does not say.";

/// Pieces that are asked at most where an embedder chooses them.
const N_CHOSEN: usize = 4;

/// An answer counts if its piece speaks of question and answer at least this much as the one that does most so.
const SUPPORTED: f64 = 0.8;

/// Gives the embeddings of texts, one of the same length for each.
pub type Embed<'a> = dyn FnMut(&[&str]) -> Result<Vec<Vec<f32>>, TaskError> + 'a;

/// What a document says to a question.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The answer.
    pub answer: String,
    /// Whether the document has one.
    pub found: bool,
    /// The passage that it rests on: sentences of a piece that gave the answer, those that share most words with it.
    pub quote: Option<Quote>,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// The document's pieces, in order.
    pub pieces: Vec<Piece>,
    /// Rounds of work.
    pub rounds: usize,
    /// Answers of pieces that had no room to end.
    pub cut: usize,
    /// Token counts of all of it.
    pub usage: Usage,
}

/// A piece of a document.
#[derive(Clone, Debug, Serialize)]
pub struct Piece {
    /// Its first and last line, from 1.
    pub lines: [usize; 2],
    /// Its tokens.
    pub tokens: usize,
    /// What it says to the question; none where an embedder chose others.
    pub answer: Option<String>,
    /// Whether that is an answer.
    pub found: bool,
}

/// An answer of one piece.
struct Note {
    text: String,
    range: Range<usize>,
    support: f64,
    finish_reason: FinishReason,
}

/// Answers `question` from `document`.
///
/// The document is cut into pieces ([`split`](super::split())), and each is asked, or those whose embeddings are nearest
/// to the question's if there is an embedder; all in one batch. Answers whose piece speaks of something else are
/// dropped, by the words that it shares with question and answer. If several differ, the same question goes to a text
/// made of them, in pieces again if that is what it takes: a piece's answer has at most a quarter of a piece's tokens, so
/// each round has fewer pieces than the last, and a round that had not would be [`TaskError::Endless`].
///
/// # Errors
/// [`TaskError`] says what is empty, out of range or has no room.
///
/// # Panics
/// On an adopted device, whose host submits.
pub fn answer(
    engine: &mut Engine,
    document: &str,
    question: &str,
    options: &DocumentOptions,
    embed: Option<&mut Embed<'_>>,
    on: &mut Observer<'_>,
) -> Result<Answer, TaskError> {
    let (question, prompter) = (question.trim(), Prompter::new(engine)?);
    for (what, text) in [("document", document), ("question", question)] {
        if text.trim().is_empty() {
            return Err(TaskError::Empty { what });
        }
    }
    let prompt = |text: &str| {
        let user = format!("Text:\n{}\n\nQuestion: {question}", text.trim());
        prompter.prompt(&Instruction { system: Some(SYSTEM), user: &user, cue: "Answer:" })
    };
    let room = options.room(engine, prompt("")?.len())?;
    let mut count = |text: &str| prompter.count(text);
    let ranges = split(document, room.piece_tokens, &mut count)?;
    let mut pieces = Vec::with_capacity(ranges.len());
    for range in &ranges {
        let tokens = count(&document[range.clone()])?;
        pieces.push(Piece { lines: lines(document, range), tokens, answer: None, found: false });
    }
    let asked = match embed {
        Some(embed) => nearest(document, &ranges, question, embed)?,
        None => (0..ranges.len()).collect(),
    };
    let stop = prompter.stop();
    let whole = Writing { sampling: &options.sampling, max_tokens: room.max_tokens, stop: &stop };
    let short = Writing { max_tokens: room.max_tokens.min(room.piece_tokens / 4), ..whole };
    let tell = |on: &mut Observer<'_>, round, n_pieces, n_tokens| {
        stopped(on(Progress::Round { round, n_pieces, n_tokens }))
    };
    let (mut usage, mut cut) = (Usage::default(), 0);

    tell(on, 1, asked.len(), asked.iter().map(|i| pieces[*i].tokens).sum())?;
    let is_single = asked.len() == 1;
    let written =
        ask(engine, asked.iter().map(|i| prompt(&document[ranges[*i].clone()])), &whole, &short, on)?;
    cut += if is_single { 0 } else { n_cut(&written) };
    let passages = Passages::new(document, &ranges);
    let mut notes = Vec::new();
    for (i, written) in asked.iter().zip(written) {
        add(&mut usage, written.usage);
        let found = !is_unknown(&written.text);
        if found {
            let support = passages.support(*i, question, &written.text);
            let (range, finish_reason) = (ranges[*i].clone(), written.finish_reason);
            notes.push(Note { text: written.text.clone(), range, support, finish_reason });
        }
        (pieces[*i].answer, pieces[*i].found) = (Some(written.text), found);
    }
    let best = notes.iter().map(|note| note.support).fold(0.0, f64::max);
    notes.retain(|note| note.support >= SUPPORTED * best);

    let mut rounds = 1;
    let mut texts: Vec<String> = notes.iter().map(|note| note.text.clone()).collect();
    texts.sort();
    texts.dedup();
    let (text, finish_reason) = match &texts[..] {
        _ if is_single => {
            let text = pieces[asked[0]].answer.clone().unwrap_or_default();
            (text, notes.first().map_or(FinishReason::Stop, |note| note.finish_reason))
        }
        [] => {
            stopped(on(Progress::Text(UNKNOWN)))?;
            (UNKNOWN.to_string(), FinishReason::Stop)
        }
        [one] if notes.iter().all(|note| note.finish_reason == FinishReason::Stop) => {
            stopped(on(Progress::Text(one)))?;
            (one.clone(), FinishReason::Stop)
        }
        // One that had no room to end is asked once more, and may go on.
        [_] => {
            let range = notes[0].range.clone();
            let (n_tokens, prompt) = (count(&document[range.clone()])?, prompt(&document[range])?);
            rounds += 1;
            tell(on, rounds, 1, n_tokens)?;
            let written = write_one(engine, prompt, &whole, on)?;
            add(&mut usage, written.usage);
            (written.text, written.finish_reason)
        }
        _ => {
            let mut joined = notes.iter().map(|note| &note.text[..]).collect::<Vec<_>>().join("\n\n");
            let mut n_pieces = asked.len();
            loop {
                let ranges = split(&joined, room.piece_tokens, &mut count)?;
                if ranges.len() >= n_pieces {
                    return Err(TaskError::Endless { n_pieces, n_next: ranges.len() });
                }
                n_pieces = ranges.len();
                rounds += 1;
                tell(on, rounds, n_pieces, count(&joined)?)?;
                let prompts = ranges.iter().map(|range| prompt(&joined[range.clone()]));
                let mut written = ask(engine, prompts, &whole, &short, on)?;
                written.iter().for_each(|written| add(&mut usage, written.usage));
                if let [last] = &mut written[..] {
                    break (std::mem::take(&mut last.text), last.finish_reason);
                }
                cut += n_cut(&written);
                let told = written.iter().filter(|written| !is_unknown(&written.text));
                joined = told.map(|written| &written.text[..]).collect::<Vec<_>>().join("\n\n");
                if joined.is_empty() {
                    stopped(on(Progress::Text(UNKNOWN)))?;
                    break (UNKNOWN.to_string(), FinishReason::Stop);
                }
            }
        }
    };
    let found = !is_unknown(&text);
    let ranges: Vec<Range<usize>> = notes.iter().map(|note| note.range.clone()).collect();
    let quote = found.then(|| passages.quote(&ranges, question, &text)).flatten();
    Ok(Answer { answer: text, found, quote, finish_reason, pieces, rounds, cut, usage })
}

/// Asks all in one batch; one alone is the last, told as it comes.
fn ask(
    engine: &mut Engine,
    prompts: impl Iterator<Item = Result<Vec<u32>, TaskError>>,
    whole: &Writing<'_>,
    short: &Writing<'_>,
    on: &mut Observer<'_>,
) -> Result<Vec<Written>, TaskError> {
    let mut prompts = prompts.collect::<Result<Vec<_>, _>>()?;
    match (prompts.pop(), prompts.is_empty()) {
        (Some(one), true) => Ok(vec![write_one(engine, one, whole, on)?]),
        (last, _) => {
            prompts.extend(last);
            write_all(engine, prompts, short, on)
        }
    }
}

/// The pieces whose embeddings are nearest to the question's, in the order of the document.
fn nearest(
    document: &str,
    ranges: &[Range<usize>],
    question: &str,
    embed: &mut Embed<'_>,
) -> Result<Vec<usize>, TaskError> {
    let pieces = ranges.iter().map(|range| document[range.clone()].trim());
    let texts: Vec<&str> = std::iter::once(question).chain(pieces).collect();
    let vectors = embed(&texts)?;
    let wrong = |found| TaskError::Embedder { found, expected: texts.len() };
    let [asked, pieces @ ..] = &vectors[..] else { return Err(wrong("no vector".into())) };
    if pieces.len() != ranges.len() {
        return Err(wrong(format!("{} vectors", vectors.len())));
    }
    if pieces.iter().any(|piece| piece.len() != asked.len()) {
        return Err(wrong("vectors of different lengths".into()));
    }
    let near: Vec<f64> = pieces.iter().map(|piece| cosine(asked, piece)).collect();
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by(|a, b| near[*b].total_cmp(&near[*a]));
    order.truncate(N_CHOSEN);
    order.sort();
    Ok(order)
}

/// The cosine of the angle between two vectors; 0 if one is zero.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}
