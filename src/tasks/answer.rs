//! Answers from a document, with the passage that they rest on.

use std::collections::VecDeque;
use std::ops::Range;

use serde::Serialize;

use super::embed::{EncodeTask, Encoding};
use super::instruct::{Instruction, Prompter};
use super::passage::{Passages, Quote, is_unknown};
use super::split::split;
use super::task::{Engines, Events, Observer, Progress, Task, observed};
use super::write::{Style, Writing, Written, add, n_cut};
use super::{DocumentOptions, TaskError, cosine};
use crate::engine::{Engine, FinishReason, Output, TextEncoder, Usage};

/// The system message. The demonstration model answers 30 of 30 questions on unseen stories right with it, and as many
/// without it.
const SYSTEM: &str = "Answer only from the text, in one short sentence. If the text does not tell, answer: The text \
                      does not say.";

/// The answer if no piece of the document has one.
const UNKNOWN: &str = "The text does not say.";

/// Most pieces that are asked if an embedder chooses them.
const N_CHOSEN: usize = 4;

/// An answer counts if its piece supports it at least this much, relative to the best-supported answer.
const SUPPORTED: f64 = 0.8;

/// Returns the embeddings of texts, all of the same length.
pub type Embed<'a> = dyn FnMut(&[&str]) -> Result<Vec<Vec<f32>>, TaskError> + 'a;

/// An answer from a document.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The answer.
    pub answer: String,
    /// Whether the document contains an answer.
    pub found: bool,
    /// The passage that supports it: the sentences that share the most words with it, from a piece that gave it.
    pub quote: Option<Quote>,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// The document's pieces, in order.
    pub pieces: Vec<Piece>,
    /// Number of rounds.
    pub rounds: usize,
    /// Number of pieces' answers that reached their limit before their end.
    pub cut: usize,
    /// Token counts of all of it.
    pub usage: Usage,
}

/// A piece of a document.
#[derive(Clone, Debug, Serialize)]
pub struct Piece {
    /// First and last line, from 1.
    pub lines: [usize; 2],
    /// Number of tokens.
    pub tokens: usize,
    /// Its answer to the question; `None` if an embedder chose others.
    pub answer: Option<String>,
    /// Whether the piece contains an answer.
    pub found: bool,
}

/// Answers `question` from `document` with [`AnswerTask`], and waits for the answer. If there is an `embed`, it chooses
/// the pieces.
///
/// # Errors
/// Those of [`AnswerTask::new`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where only
/// the host submits.
pub fn answer(
    engine: &mut Engine,
    document: &str,
    question: &str,
    options: &DocumentOptions,
    embed: Option<&mut Embed<'_>>,
    on: &mut Observer<'_>,
) -> Result<Answer, TaskError> {
    let mut task = AnswerTask::new(engine, document, question, options)?;
    if let Some(embed) = embed {
        let vectors = embed(&task.texts())?;
        task.choose(&vectors)?;
    }
    observed(&mut task, &mut Engines::from(engine), on)
}

/// Answers a question from a document.
///
/// The document is cut into pieces ([`split`](super::split())), and each piece is asked, or only those whose embeddings
/// are nearest to the question's if there is an embedder; all in one batch. Answers that their piece does not support
/// are dropped, judged by the words that the piece shares with question and answer. If the remaining answers differ,
/// the same question goes to a text made of them, again in pieces if necessary. A piece's answer has at most a quarter
/// of a piece's tokens, so each round has fewer pieces than the last; otherwise the result is [`TaskError::Endless`].
///
/// One of our encoders chooses pieces with [`AnswerTask::choose_with`], any other embedder with [`AnswerTask::texts`]
/// and [`AnswerTask::choose`].
pub struct AnswerTask {
    prompter: Prompter,
    question: String,
    passages: Passages,
    /// Byte ranges of the pieces in the document.
    ranges: Vec<Range<usize>>,
    piece_tokens: usize,
    /// Style of the last answer, and in `short` of answers that another round follows.
    whole: Style,
    short: Style,
    /// Pieces that are asked in the first round.
    asked: Vec<usize>,
    pieces: Vec<Piece>,
    /// Answers of pieces that are supported.
    notes: Vec<Note>,
    rounds: usize,
    cut: usize,
    usage: Usage,
    progress: VecDeque<Progress>,
    phase: Phase,
}

enum Phase {
    New,
    /// The question and the pieces are embedded.
    Choose(EncodeTask),
    /// The first round: pieces are asked.
    Pieces(Writing),
    /// All answers are the same, but reached their limit: one is generated again with the full limit.
    Again(Writing),
    /// A later round: `n_pieces` pieces of text made of answers are asked.
    Merge {
        n_pieces: usize,
        writing: Writing,
    },
    Ended(Result<Answer, TaskError>),
}

/// An answer of one piece.
struct Note {
    text: String,
    range: Range<usize>,
    support: f64,
    finish_reason: FinishReason,
}

impl AnswerTask {
    /// Cuts the document into pieces.
    ///
    /// # Errors
    /// [`TaskError`] says what is empty, out of range or has no room.
    pub fn new(
        engine: &Engine,
        document: &str,
        question: &str,
        options: &DocumentOptions,
    ) -> Result<AnswerTask, TaskError> {
        let (question, prompter) = (question.trim(), Prompter::new(engine)?);
        for (what, text) in [("document", document), ("question", question)] {
            if text.trim().is_empty() {
                return Err(TaskError::Empty { what });
            }
        }
        let room = options.room(engine, prompt(&prompter, question, "")?.len())?;
        let mut count = |text: &str| prompter.count(text);
        let ranges = split(document, room.piece_tokens, &mut count)?;
        let passages = Passages::new(document, &ranges);
        let mut pieces = Vec::with_capacity(ranges.len());
        for range in &ranges {
            let tokens = count(&document[range.clone()])?;
            pieces.push(Piece { lines: passages.lines(range), tokens, answer: None, found: false });
        }
        let whole = prompter.style(options.sampling.clone(), room.max_tokens);
        let short = Style { max_tokens: room.max_tokens.min(room.piece_tokens / 4), ..whole.clone() };
        Ok(AnswerTask {
            question: question.to_string(),
            passages,
            piece_tokens: room.piece_tokens,
            whole,
            short,
            asked: (0..ranges.len()).collect(),
            ranges,
            pieces,
            notes: Vec::new(),
            rounds: 0,
            cut: 0,
            usage: Usage::default(),
            progress: VecDeque::new(),
            phase: Phase::New,
            prompter,
        })
    }

    /// The texts for an embedder: the question, then the pieces.
    pub fn texts(&self) -> Vec<&str> {
        let pieces = self.ranges.iter().map(|range| self.passages.text(range).trim());
        std::iter::once(&self.question[..]).chain(pieces).collect()
    }

    /// Asks only the pieces whose vectors are nearest to the question's. `vectors` are those of [`AnswerTask::texts`].
    /// Call it before the first [`Task::advance`].
    ///
    /// # Errors
    /// [`TaskError::Embedder`] for another number of vectors, or vectors of different lengths.
    pub fn choose(&mut self, vectors: &[Vec<f32>]) -> Result<(), TaskError> {
        self.asked = nearest(vectors, self.ranges.len())?;
        Ok(())
    }

    /// Asks only the pieces that are nearest to the question by `encoder`. The task then needs both engines, the
    /// language model's and this one. Call it before the first [`Task::advance`].
    ///
    /// # Errors
    /// As [`EncodeTask::new`].
    pub fn choose_with(&mut self, encoder: &TextEncoder) -> Result<(), TaskError> {
        self.phase = Phase::Choose(EncodeTask::new(encoder, &self.texts(), Output::Embedding)?);
        Ok(())
    }

    /// Continues with the next phase once the current one is done.
    fn proceed(&mut self, engines: &mut Engines<'_>) -> Result<(), TaskError> {
        let mut written = Vec::new();
        match &mut self.phase {
            Phase::New => {}
            Phase::Choose(task) => {
                task.advance(engines);
                if !task.is_done() {
                    return Ok(());
                }
                let finished = task.finish()?.into_iter();
                let vectors = vectors(finished.map(|finished| finished.result).collect())?;
                self.choose(&vectors)?;
            }
            Phase::Pieces(writing) | Phase::Again(writing) | Phase::Merge { writing, .. } => {
                writing.advance(engines.language()?);
                if !writing.is_done() {
                    return Ok(());
                }
                written = writing.finish()?;
                written.iter().for_each(|written| add(&mut self.usage, written.usage));
            }
            Phase::Ended(_) => return Ok(()),
        }
        self.phase = match std::mem::replace(&mut self.phase, Phase::New) {
            Phase::New | Phase::Choose(_) => self.ask_pieces()?,
            Phase::Pieces(_) => self.compare(written)?,
            Phase::Again(_) => match written.pop() {
                Some(last) => self.conclude(last.text, last.finish_reason),
                None => return Err(TaskError::Stopped),
            },
            Phase::Merge { n_pieces, .. } => self.merged(n_pieces, written)?,
            Phase::Ended(result) => Phase::Ended(result),
        };
        Ok(())
    }

    /// The first round.
    fn ask_pieces(&mut self) -> Result<Phase, TaskError> {
        let n_tokens = self.asked.iter().map(|i| self.pieces[*i].tokens).sum();
        self.begin_round(self.asked.len(), n_tokens);
        let texts: Vec<&str> = self.asked.iter().map(|i| self.passages.text(&self.ranges[*i])).collect();
        let prompts = self.prompts(&texts)?;
        Ok(Phase::Pieces(self.ask(prompts)))
    }

    /// Takes the answers of the pieces, and compares them.
    fn compare(&mut self, written: Vec<Written>) -> Result<Phase, TaskError> {
        let is_single = self.asked.len() == 1;
        self.cut += if is_single { 0 } else { n_cut(&written) };
        for (i, written) in self.asked.iter().zip(written) {
            let found = !is_unknown(&written.text);
            if found {
                let support = self.passages.support(*i, &self.question, &written.text);
                let (range, finish_reason) = (self.ranges[*i].clone(), written.finish_reason);
                self.notes.push(Note { text: written.text.clone(), range, support, finish_reason });
            }
            (self.pieces[*i].answer, self.pieces[*i].found) = (Some(written.text), found);
        }
        let best = self.notes.iter().map(|note| note.support).fold(0.0, f64::max);
        self.notes.retain(|note| note.support >= SUPPORTED * best);
        let mut texts: Vec<String> = self.notes.iter().map(|note| note.text.clone()).collect();
        texts.sort();
        texts.dedup();
        match &texts[..] {
            _ if is_single => {
                let text = self.pieces[self.asked[0]].answer.clone().unwrap_or_default();
                let reason = self.notes.first().map_or(FinishReason::Stop, |note| note.finish_reason);
                Ok(self.conclude(text, reason))
            }
            [] => Ok(self.report(UNKNOWN)),
            [one] if self.notes.iter().all(|note| note.finish_reason == FinishReason::Stop) => {
                Ok(self.report(one))
            }
            // An answer that reached its limit is generated again with the full limit.
            [_] => {
                let text = self.passages.text(&self.notes[0].range);
                let (n_tokens, prompts) = (self.prompter.count(text)?, self.prompts(&[text])?);
                self.begin_round(1, n_tokens);
                Ok(Phase::Again(self.ask(prompts)))
            }
            _ => {
                let texts = self.notes.iter().map(|note| note.text.clone()).collect();
                self.merge(self.asked.len(), texts)
            }
        }
    }

    /// A round over the answers of a round of `n_pieces`.
    fn merge(&mut self, n_pieces: usize, answers: Vec<String>) -> Result<Phase, TaskError> {
        let joined = answers.join("\n\n");
        let ranges = split(&joined, self.piece_tokens, &mut |text| self.prompter.count(text))?;
        let n_next = ranges.len();
        if n_next >= n_pieces {
            return Err(TaskError::Endless { n_pieces, n_next });
        }
        let n_tokens = self.prompter.count(&joined)?;
        self.begin_round(n_next, n_tokens);
        let texts: Vec<&str> = ranges.into_iter().map(|range| &joined[range]).collect();
        let prompts = self.prompts(&texts)?;
        Ok(Phase::Merge { n_pieces: n_next, writing: self.ask(prompts) })
    }

    /// Takes the answers of a later round.
    fn merged(&mut self, n_pieces: usize, mut written: Vec<Written>) -> Result<Phase, TaskError> {
        if let [last] = &mut written[..] {
            let text = std::mem::take(&mut last.text);
            return Ok(self.conclude(text, last.finish_reason));
        }
        self.cut += n_cut(&written);
        let known = written.into_iter().map(|written| written.text).filter(|text| !is_unknown(text));
        let answers: Vec<String> = known.collect();
        if answers.is_empty() { Ok(self.report(UNKNOWN)) } else { self.merge(n_pieces, answers) }
    }

    fn begin_round(&mut self, n_pieces: usize, n_tokens: usize) {
        self.rounds += 1;
        self.progress.push_back(Progress::Round { round: self.rounds, n_pieces, n_tokens });
    }

    fn prompts(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, TaskError> {
        texts.iter().map(|text| prompt(&self.prompter, &self.question, text)).collect()
    }

    /// Submits all prompts in one batch. A single prompt is the last one, and its answer is reported as it is
    /// generated.
    fn ask(&mut self, mut prompts: Vec<Vec<u32>>) -> Writing {
        match (prompts.pop(), prompts.is_empty()) {
            (Some(one), true) => Writing::one(one, &self.whole, &mut self.progress),
            (last, _) => {
                prompts.extend(last);
                Writing::several(prompts, &self.short, &mut self.progress)
            }
        }
    }

    /// Ends with an answer that has not been reported yet.
    fn report(&mut self, text: &str) -> Phase {
        self.progress.push_back(Progress::Text(text.to_string()));
        self.conclude(text.to_string(), FinishReason::Stop)
    }

    fn conclude(&mut self, answer: String, finish_reason: FinishReason) -> Phase {
        let found = !is_unknown(&answer);
        let ranges: Vec<Range<usize>> = self.notes.iter().map(|note| note.range.clone()).collect();
        let quote = found.then(|| self.passages.quote(&ranges, &self.question, &answer)).flatten();
        let pieces = std::mem::take(&mut self.pieces);
        let (rounds, cut, usage) = (self.rounds, self.cut, self.usage);
        Phase::Ended(Ok(Answer { answer, found, quote, finish_reason, pieces, rounds, cut, usage }))
    }
}

impl Task for AnswerTask {
    type Output = Answer;
    type Error = TaskError;
    type Progress = Progress;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        if let Err(error) = self.proceed(engines) {
            self.phase = Phase::Ended(Err(error));
        }
    }

    fn observe(&mut self, events: &mut Events) {
        match &mut self.phase {
            Phase::Choose(task) => task.observe(events),
            Phase::Pieces(writing) | Phase::Again(writing) | Phase::Merge { writing, .. } => {
                writing.observe(events, &mut self.progress);
            }
            Phase::New | Phase::Ended(_) => {}
        }
    }

    fn progress(&mut self) -> Option<Progress> {
        self.progress.pop_front()
    }

    fn cancel(&mut self, engines: &mut Engines<'_>) {
        let is_last = match &self.phase {
            Phase::New | Phase::Choose(_) => false,
            Phase::Pieces(_) => self.asked.len() == 1,
            Phase::Merge { n_pieces, .. } => *n_pieces == 1,
            Phase::Again(_) | Phase::Ended(_) => true,
        };
        let is_running = match &mut self.phase {
            Phase::Choose(task) => {
                task.cancel(engines);
                !task.is_done()
            }
            Phase::Pieces(writing) | Phase::Again(writing) | Phase::Merge { writing, .. } => {
                if let Ok(engine) = engines.language() {
                    writing.cancel(engine);
                }
                !writing.is_done()
            }
            Phase::New | Phase::Ended(_) => false,
        };
        // Between two rounds: the next one must not begin. The last one's result stays.
        if !is_running && !is_last {
            self.phase = Phase::Ended(Err(TaskError::Stopped));
        }
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    fn finish(&mut self) -> Result<Answer, TaskError> {
        match std::mem::replace(&mut self.phase, Phase::Ended(Err(TaskError::Stopped))) {
            Phase::Ended(result) => result,
            _ => Err(TaskError::Stopped),
        }
    }
}

fn prompt(prompter: &Prompter, question: &str, text: &str) -> Result<Vec<u32>, TaskError> {
    let user = format!("Text:\n{}\n\nQuestion: {question}", text.trim());
    prompter.prompt(&Instruction { system: Some(SYSTEM), user: &user, cue: "Answer:" })
}

/// The vectors for [`AnswerTask::choose`], from an encoder's results for [`AnswerTask::texts`]. A piece that has none, such
/// as one of invisible characters, has zeros, which are near to nothing.
///
/// # Errors
/// That of the question.
pub fn vectors(results: Vec<Result<Encoding, TaskError>>) -> Result<Vec<Vec<f32>>, TaskError> {
    let mut results = results.into_iter();
    let question = results.next().transpose()?.unwrap_or_default().values;
    let zeros = vec![0.0; question.len()];
    let pieces = results.map(|piece| piece.map_or_else(|_| zeros.clone(), |piece| piece.values));
    Ok(std::iter::once(question).chain(pieces).collect())
}

/// Those of `n_pieces` whose embeddings are nearest to the question's, in the order of the document. The question's is
/// the first of `vectors`.
fn nearest(vectors: &[Vec<f32>], n_pieces: usize) -> Result<Vec<usize>, TaskError> {
    let wrong = |found| TaskError::Embedder { found, expected: 1 + n_pieces };
    let [asked, pieces @ ..] = vectors else { return Err(wrong("no vector".into())) };
    if pieces.len() != n_pieces {
        return Err(wrong(format!("{} vectors", vectors.len())));
    }
    if pieces.iter().any(|piece| piece.len() != asked.len()) {
        return Err(wrong("vectors of different lengths".into()));
    }
    let near: Vec<f32> = pieces.iter().map(|piece| cosine(asked, piece)).collect();
    let mut order: Vec<usize> = (0..n_pieces).collect();
    order.sort_by(|a, b| near[*b].total_cmp(&near[*a]));
    order.truncate(N_CHOSEN);
    order.sort();
    Ok(order)
}
