//! The sentences of a document that support an answer, by the words that they share.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use super::split::sentences;

/// Most sentences of a quotation.
const MOST_SENTENCES: usize = 3;

/// A passage of a document, word for word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quote {
    /// The text.
    pub text: String,
    /// First and last line in the document, from 1.
    pub lines: [usize; 2],
    /// Byte range in the document: first, and end (exclusive).
    pub bytes: [usize; 2],
}

/// A document's sentences with their words.
pub(super) struct Passages {
    document: String,
    sentences: Vec<(Range<usize>, HashSet<String>)>,
    /// The number of sentences that contain each word.
    n_with: HashMap<String, usize>,
    /// The words of each piece, and the number of pieces that contain each word.
    pieces: Vec<HashSet<String>>,
    n_pieces_with: HashMap<String, usize>,
    /// Byte offsets of line ends.
    breaks: Vec<usize>,
}

impl Passages {
    pub fn new(document: &str, pieces: &[Range<usize>]) -> Self {
        let with_words = |range: Range<usize>| (range.clone(), words(&document[range]));
        let sentences: Vec<_> = sentences(document).into_iter().map(with_words).collect();
        let pieces: Vec<_> = pieces.iter().map(|range| words(&document[range.clone()])).collect();
        let n_with = count(sentences.iter().map(|(_, words)| words));
        let n_pieces_with = count(pieces.iter());
        let breaks = document.match_indices('\n').map(|(at, _)| at).collect();
        Passages { document: document.to_string(), sentences, n_with, pieces, n_pieces_with, breaks }
    }

    /// The document's text in `range`.
    pub fn text(&self, range: &Range<usize>) -> &str {
        &self.document[range.clone()]
    }

    /// The first and last line of `range`, from 1, ignoring white space at its ends.
    pub fn lines(&self, range: &Range<usize>) -> [usize; 2] {
        let line_of = |at: usize| 1 + self.breaks.partition_point(|end| *end < at);
        let text = self.document[range.clone()].trim_end();
        let start = range.start + text.len() - text.trim_start().len();
        [line_of(start), line_of(range.start + text.len())]
    }

    /// How well piece `i` supports the question and its answer, from 0 to 1: the share of the question's words that the
    /// piece contains, ignoring words that are not in the document, times the mean of 1 and the share of the answer's
    /// new words that the piece contains (an answer may use other words). A word weighs more the fewer pieces contain
    /// it, and a name weighs twice.
    pub fn support(&self, i: usize, question: &str, answer: &str) -> f64 {
        let n_with = |word: &String| self.n_pieces_with.get(word).copied().unwrap_or(0);
        // A capitalised word inside the question is usually a name, and names matter most.
        let names: HashSet<String> = question
            .unicode_words()
            .skip(1)
            .filter(|word| word.starts_with(char::is_uppercase))
            .map(|word| stem(&word.to_lowercase()))
            .collect();
        let share = |wanted: &HashSet<String>| {
            let (mut found, mut all) = (0.0, 0.0);
            for word in wanted {
                let weight =
                    rarity(n_with(word), self.pieces.len()) * if names.contains(word) { 2.0 } else { 1.0 };
                all += weight;
                found += if self.pieces[i].contains(word) { weight } else { 0.0 };
            }
            if all > 0.0 { found / all } else { 1.0 }
        };
        let mut asked = words(question);
        let new = words(answer).difference(&asked).cloned().collect();
        asked.retain(|word| n_with(word) > 0);
        share(&asked) * (1.0 + share(&new)) / 2.0
    }

    /// The sentences in `ranges` that share the most words with the answer and, with less weight, with the question.
    /// `None` if they share none.
    pub fn quote(&self, ranges: &[Range<usize>], question: &str, answer: &str) -> Option<Quote> {
        let asked = words(question);
        let new: HashSet<String> = words(answer).difference(&asked).cloned().collect();
        let score = |i: usize| -> f64 {
            let words = &self.sentences[i].1;
            let weight = |w: &String| rarity(self.n_with[w], self.sentences.len());
            let sum = |of: &HashSet<String>| of.intersection(words).map(weight).sum::<f64>();
            // The answer's words that are not in the question must be found.
            2.0 * sum(&new) + sum(&asked)
        };
        let mut best: Option<(f64, usize, &Range<usize>)> = None;
        for range in ranges {
            for i in self.within(range) {
                let score = score(i);
                if score > best.map_or(0.0, |best| best.0) {
                    best = Some((score, i, range));
                }
            }
        }
        let (_, at, range) = best?;
        // Adds neighbours that contain words of the answer that are still missing.
        let near = self.within(range);
        let (mut first, mut last) = (at, at);
        let mut missing: HashSet<&String> =
            new.iter().filter(|word| !self.sentences[at].1.contains(*word)).collect();
        while last - first + 1 < MOST_SENTENCES {
            let tells = |i: usize| missing.iter().any(|word| self.sentences[i].1.contains(*word));
            if first > near.start && tells(first - 1) {
                first -= 1;
            } else if last + 1 < near.end && tells(last + 1) {
                last += 1;
            } else {
                break;
            }
            missing.retain(|word| !(first..=last).any(|i| self.sentences[i].1.contains(*word)));
        }
        let range = self.sentences[first].0.start..self.sentences[last].0.end;
        let (lines, bytes) = (self.lines(&range), [range.start, range.end]);
        Some(Quote { text: self.document[range].to_string(), lines, bytes })
    }

    /// Indices of the sentences that begin in `range`.
    fn within(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.sentences.partition_point(|(s, _)| s.start < range.start);
        first..self.sentences.partition_point(|(s, _)| s.start < range.end).max(first)
    }
}

/// The number of sets that contain each word.
fn count<'a>(sets: impl Iterator<Item = &'a HashSet<String>>) -> HashMap<String, usize> {
    let mut n_with = HashMap::new();
    for word in sets.flatten() {
        *n_with.entry(word.clone()).or_insert(0) += 1;
    }
    n_with
}

/// The inverse document frequency of a word that is in so many of `n` texts.
fn rarity(n_with: usize, n: usize) -> f64 {
    ((n as f64 + 1.0) / (n_with as f64 + 0.5)).ln().max(0.0)
}

/// Stop words. In short documents they are not frequent enough to get a low weight. Only English; for other languages,
/// their frequency must suffice.
const FUNCTION_WORDS: &[&str] = &[
    "a", "about", "an", "and", "are", "as", "at", "be", "been", "but", "by", "can", "could", "did", "do",
    "does", "for", "from", "had", "has", "have", "he", "her", "his", "how", "i", "if", "in", "is", "it",
    "its", "of", "on", "or", "she", "so", "that", "the", "their", "there", "they", "this", "to", "was",
    "were", "what", "when", "where", "which", "who", "whom", "whose", "why", "will", "with", "would", "you",
];

/// The words of a text without stop words, in lower case and without the endings of English plurals and verbs.
fn words(text: &str) -> HashSet<String> {
    let words = text.unicode_words().map(str::to_lowercase);
    words.filter(|word| !FUNCTION_WORDS.contains(&word.as_str())).map(|word| stem(&word)).collect()
}

fn stem(word: &str) -> String {
    let word = word.strip_suffix("'s").or(word.strip_suffix("’s")).unwrap_or(word);
    let endings = ["ing", "ed", "es", "s", "e"];
    let stem = endings.iter().filter_map(|ending| word.strip_suffix(ending)).find(|stem| stem.len() > 2);
    stem.unwrap_or(word).to_string()
}

/// Phrases of answers that the text has no answer.
const UNKNOWN: &[&str] = &[
    "does not say",
    "doesn't say",
    "does not tell",
    "doesn't tell",
    "does not mention",
    "doesn't mention",
    "does not state",
    "doesn't state",
    "does not specify",
    "doesn't specify",
    "does not provide",
    "doesn't provide",
    "does not contain",
    "doesn't contain",
    "not mentioned",
    "not stated",
    "not specified",
    "not provided",
    "no information",
    "not enough information",
    "cannot be determined",
    "i don't know",
    "i do not know",
];

/// Whether an answer is that the text has no answer. Its first sentence decides.
pub(super) fn is_unknown(answer: &str) -> bool {
    let first = sentences(answer).into_iter().next().map(|range| answer[range].to_lowercase());
    first.is_none_or(|first| {
        let plain = first.replace('’', "'");
        UNKNOWN.iter().any(|words| plain.contains(words))
            || plain.trim_matches(|c: char| !c.is_alphanumeric()) == "unknown"
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORY: &str = "Mia had a red ball.\nOne day, Mia lost it in the park. Tom came.\n\nTom found the ball under a bench.";

    #[test]
    fn quotes_are_what_the_answer_says() {
        let passages = Passages::new(STORY, &[0..20, 20..STORY.len()]);
        let whole = 0..STORY.len();
        let all = std::slice::from_ref(&whole);
        let quote =
            passages.quote(all, "Where was the ball found?", "The ball was under a bench.").expect("a quote");
        assert_eq!((quote.text.as_str(), quote.lines), ("Tom found the ball under a bench.", [4, 4]));
        assert_eq!(&STORY[quote.bytes[0]..quote.bytes[1]], quote.text);
        let quote = passages.quote(all, "What colour?", "A red ball, in the park.").expect("a quote");
        assert_eq!(
            (quote.text.as_str(), quote.lines),
            ("Mia had a red ball.\nOne day, Mia lost it in the park.", [1, 2])
        );
        assert_eq!(passages.quote(all, "Why?", "Seventeen kangaroos!"), None);
        let [first, last] = [0, 1].map(|i| passages.support(i, "What did Tom find?", "Tom found the ball."));
        assert!(first < 0.1 && last > 0.9, "{first} {last}");
    }

    #[test]
    fn ignorance_is_recognised() {
        for answer in
            ["The story does not say.", "", "Unknown.", "The text doesn’t mention it. It may be so."]
        {
            assert!(is_unknown(answer), "{answer}");
        }
        for answer in
            ["No, Tom did not say sorry.", "She was sad. The text does not say why.", "An unknown man."]
        {
            assert!(!is_unknown(answer), "{answer}");
        }
    }
}
