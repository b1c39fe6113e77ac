//! Splits documents at paragraphs and sentences into pieces within a token budget.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use super::TaskError;
use crate::engine::{Engine, Sampling};

/// Least budget of a piece: a single character may have four tokens, one per byte.
pub const MIN_PIECE_TOKENS: usize = 16;

/// Default for the most tokens of a piece: a twelfth of the context, within these bounds. Small models find more in
/// short texts: the demonstration model answers 30 of 30 questions about one story, and 15 of 30 if a piece has two
/// stories.
const PIECE_TOKENS: [usize; 2] = [64, 1024];

/// Default for the most tokens of an answer or a summary.
const MAX_TOKENS: usize = 256;

/// Tokens by which a prompt may exceed the sum of its parts.
const SEAM: usize = 8;

/// Options for tasks on documents.
#[derive(Clone, Debug)]
pub struct DocumentOptions {
    /// Sampling parameters. Default: greedy.
    pub sampling: Sampling,
    /// Most tokens of the result. Default: 256, capped at a quarter of the context.
    pub max_tokens: Option<usize>,
    /// Most tokens of a piece, capped by the context. Default: a twelfth of the context, from 64 to 1024.
    pub piece_tokens: Option<usize>,
}

impl Default for DocumentOptions {
    fn default() -> Self {
        DocumentOptions { sampling: Sampling::greedy(), max_tokens: None, piece_tokens: None }
    }
}

/// How the context is divided.
pub(super) struct Room {
    pub piece_tokens: usize,
    pub max_tokens: usize,
}

impl DocumentOptions {
    /// Divides the engine's context; `n_around` tokens are around a piece.
    pub(super) fn room(&self, engine: &Engine, n_around: usize) -> Result<Room, TaskError> {
        let ctx = engine.ctx();
        let max_tokens = self.max_tokens.unwrap_or(MAX_TOKENS.min(ctx / 4)).max(1);
        let n_around = n_around.saturating_add(max_tokens).saturating_add(SEAM);
        let left = ctx.saturating_sub(n_around);
        if left < PIECE_TOKENS[0] {
            return Err(TaskError::NoRoom { ctx, n_around });
        }
        let [least, most] = PIECE_TOKENS;
        if let Some(found) = self.piece_tokens.filter(|n| *n < least) {
            let expected = "at least 64";
            return Err(TaskError::Parameter { name: "piece_tokens", found: found.to_string(), expected });
        }
        let piece_tokens = self.piece_tokens.unwrap_or((ctx / 12).clamp(least, most)).min(left);
        Ok(Room { piece_tokens, max_tokens })
    }
}

/// Places to cut a text, the best first.
#[derive(Clone, Copy, PartialEq)]
enum Unit {
    Paragraph,
    Sentence,
    Word,
    Char,
}

/// Cuts `document` into pieces of at most `budget` tokens by `count`, and returns their byte ranges.
///
/// The ranges have no gaps, so nothing is dropped. A piece takes as many whole paragraphs as fit. A paragraph that is
/// larger than a piece is cut between sentences, a sentence between words, a word between characters.
///
/// # Errors
/// [`TaskError::Parameter`] if `budget` is smaller than [`MIN_PIECE_TOKENS`]; those of `count`.
pub fn split(
    document: &str,
    budget: usize,
    count: &mut dyn FnMut(&str) -> Result<usize, TaskError>,
) -> Result<Vec<Range<usize>>, TaskError> {
    if budget < MIN_PIECE_TOKENS {
        let expected = "at least 16";
        return Err(TaskError::Parameter { name: "budget", found: budget.to_string(), expected });
    }
    let mut pieces = Vec::new();
    let mut waiting = vec![(0..document.len(), budget)];
    while let Some((range, target)) = waiting.pop() {
        let mut packer = Packer {
            document,
            budget: target,
            count,
            pieces: Vec::new(),
            piece: range.start..range.start,
            n_tokens: 0,
        };
        packer.pack(range.clone(), Unit::Paragraph)?;
        let mut packed = packer.finish();
        // Tokens were summed unit by unit. If a whole has more tokens than its parts, the budget is lowered and it is
        // cut again.
        while let Some(piece) = packed.pop() {
            if target > 1 && count(&document[piece.clone()])? > budget {
                waiting.push((piece, target * 3 / 4));
            } else {
                pieces.push(piece);
            }
        }
    }
    pieces.sort_by_key(|piece| piece.start);
    Ok(pieces)
}

struct Packer<'a> {
    document: &'a str,
    budget: usize,
    count: &'a mut dyn FnMut(&str) -> Result<usize, TaskError>,
    pieces: Vec<Range<usize>>,
    /// The current piece, and its tokens.
    piece: Range<usize>,
    n_tokens: usize,
}

impl Packer<'_> {
    /// Adds `range` as a whole if it fits in a piece, else unit by unit.
    fn pack(&mut self, range: Range<usize>, unit: Unit) -> Result<(), TaskError> {
        for part in units(&self.document[range.clone()], unit) {
            let part = range.start + part.start..range.start + part.end;
            let n = (self.count)(&self.document[part.clone()])?;
            if self.n_tokens + n > self.budget {
                let smaller = match unit {
                    Unit::Paragraph => Some(Unit::Sentence),
                    Unit::Sentence => Some(Unit::Word),
                    Unit::Word => Some(Unit::Char),
                    Unit::Char => None,
                };
                match smaller {
                    Some(smaller) if n > self.budget => {
                        self.pack(part, smaller)?;
                        continue;
                    }
                    _ => self.flush(),
                }
            }
            self.piece.end = part.end;
            self.n_tokens += n;
        }
        Ok(())
    }

    fn flush(&mut self) {
        if !self.piece.is_empty() {
            self.pieces.push(self.piece.clone());
        }
        (self.piece, self.n_tokens) = (self.piece.end..self.piece.end, 0);
    }

    fn finish(mut self) -> Vec<Range<usize>> {
        self.flush();
        self.pieces
    }
}

/// The units of `text`, without gaps. White space belongs to the unit after it, as in the vocabularies of most
/// tokenizers.
fn units(text: &str, unit: Unit) -> Vec<Range<usize>> {
    let starts = match unit {
        Unit::Paragraph => paragraph_starts(text),
        Unit::Sentence => sentence_starts(text),
        Unit::Word => text.unicode_word_indices().map(|(at, _)| at).collect(),
        Unit::Char => text.char_indices().map(|(at, _)| at).collect(),
    };
    // A border is moved before the white space that precedes it.
    let borders = starts.into_iter().filter(|at| *at > 0).map(|at| match unit {
        Unit::Char => at,
        _ => text[..at].trim_end().len(),
    });
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for border in borders.chain([text.len()]).filter(|b| *b > 0) {
        if border > start {
            ranges.push(start..border);
            start = border;
        }
    }
    ranges
}

/// Where paragraphs start: after lines that are blank.
fn paragraph_starts(text: &str) -> Vec<usize> {
    let mut starts = Vec::new();
    let (mut at, mut after_blank) = (0, true);
    for line in text.split_inclusive('\n') {
        let is_blank = line.trim().is_empty();
        if !is_blank && after_blank {
            starts.push(at);
        }
        after_blank = is_blank;
        at += line.len();
    }
    starts
}

/// The byte ranges of the sentences of `text` (Unicode UAX #29), without the white space around them.
///
/// A line break ends a sentence only before a blank line, or a list item, heading, quotation or table row of Markdown,
/// because lines may be wrapped anywhere. Text that continues in lower case is not a new sentence (`"Stop!" said
/// Tom.`).
pub(super) fn sentences(text: &str) -> Vec<Range<usize>> {
    let mut starts = sentence_starts(text);
    starts.push(text.len());
    let trimmed = |w: &[usize]| {
        let sentence = text[w[0]..w[1]].trim_end();
        let start = w[0] + sentence.len() - sentence.trim_start().len();
        start..w[0] + sentence.len()
    };
    let mut starts_from_0 = vec![0];
    starts_from_0.extend(starts.into_iter().filter(|at| *at > 0));
    starts_from_0.windows(2).map(trimmed).filter(|range| !range.is_empty()).collect()
}

/// Where sentences start.
fn sentence_starts(text: &str) -> Vec<usize> {
    // Joins wrapped lines to the one before. A space has as many bytes as the line break.
    let mut joined = String::with_capacity(text.len());
    let mut after_text = false;
    for line in text.split_inclusive('\n') {
        let is_blank = line.trim().is_empty();
        if after_text && !is_blank && !begins_block(line.trim_start()) {
            let n_bytes = joined.len();
            joined.truncate(joined.trim_end_matches(['\r', '\n']).len());
            joined.extend(std::iter::repeat_n(' ', n_bytes - joined.len()));
        }
        joined.push_str(line);
        after_text = !is_blank;
    }
    let mut starts: Vec<usize> = Vec::new();
    for (at, sentence) in joined.split_sentence_bound_indices() {
        let first = sentence.trim_start().chars().next();
        if first.is_some_and(|c| !c.is_lowercase()) || at == 0 || joined[..at].ends_with('\n') {
            starts.push(at);
        }
    }
    starts
}

/// Whether a line of Markdown begins a new element: a heading, a list item, a quotation, a table row, a fence.
fn begins_block(line: &str) -> bool {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    let is_numbered = rest.len() < line.len() && (rest.starts_with(". ") || rest.starts_with(") "));
    let marks = ["#", "- ", "* ", "+ ", ">", "|", "```", "~~~"];
    is_numbered || marks.iter().any(|mark| line.starts_with(mark))
}

#[cfg(test)]
mod tests {
    use super::{paragraph_starts, sentences};

    fn texts(text: &str) -> Vec<&str> {
        sentences(text).into_iter().map(|range| &text[range]).collect()
    }

    #[test]
    fn sentences_end_where_they_should() {
        assert_eq!(texts(" One. Two!\nThree\nfour?  "), ["One.", "Two!", "Three\nfour?"]);
        assert_eq!(texts("\"Stop!\" said Tom. He ran."), ["\"Stop!\" said Tom.", "He ran."]);
        assert_eq!(texts("A title\n\nIt is 3.5 m long."), ["A title", "It is 3.5 m long."]);
        assert_eq!(
            texts("Buy:\r\n- milk\r\n- two\r\n  eggs\r\n1. wash"),
            ["Buy:", "- milk", "- two\r\n  eggs", "1. wash"]
        );
        assert_eq!(texts("今日は。明日も！"), ["今日は。", "明日も！"]);
        assert!(texts(" \n\n ").is_empty());
    }

    #[test]
    fn paragraphs_start_after_blank_lines() {
        assert_eq!(paragraph_starts("a\nb\n \n\nc\n"), [0, 7]);
    }
}
