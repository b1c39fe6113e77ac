//! Which sentences of a document an answer rests on, by the words that they share.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde::Serialize;
use unicode_segmentation::UnicodeSegmentation;

use super::split::sentences;

/// Sentences that a quotation has at most.
const MOST_SENTENCES: usize = 3;

/// A passage of a document, word for word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quote {
    /// What it says.
    pub text: String,
    /// Its first and last line in the document, from 1.
    pub lines: [usize; 2],
    /// Its first byte in the document, and the one behind its last.
    pub bytes: [usize; 2],
}

/// A document's sentences with their words.
pub(super) struct Passages<'a> {
    document: &'a str,
    sentences: Vec<(Range<usize>, HashSet<String>)>,
    /// In how many sentences each word stands.
    n_with: HashMap<String, usize>,
}

impl<'a> Passages<'a> {
    pub fn new(document: &'a str) -> Self {
        let with_words = |range: Range<usize>| (range.clone(), words(&document[range]));
        let sentences: Vec<_> = sentences(document).into_iter().map(with_words).collect();
        let mut n_with = HashMap::new();
        for word in sentences.iter().flat_map(|(_, words)| words) {
            *n_with.entry(word.clone()).or_insert(0) += 1;
        }
        Passages { document, sentences, n_with }
    }

    /// What a word tells: the rarer, the more (the inverse document frequency, over sentences).
    fn weight(&self, word: &str) -> f64 {
        let n_with = self.n_with.get(word).copied().unwrap_or(0);
        ((self.sentences.len() as f64 + 1.0) / (n_with as f64 + 0.5)).ln().max(0.0)
    }

    /// How much of question and answer the sentences in `range` speak of: the share of their words, by weight. Words of
    /// the question that stand nowhere in the document count for nothing.
    pub fn support(&self, range: &Range<usize>, question: &str, answer: &str) -> f64 {
        let here: HashSet<&String> = self.within(range).flat_map(|i| &self.sentences[i].1).collect();
        let mut wanted = words(question);
        wanted.retain(|word| self.n_with.contains_key(word));
        wanted.extend(words(answer));
        let all: f64 = wanted.iter().map(|word| self.weight(word)).sum();
        let found: f64 = wanted.iter().filter(|word| here.contains(word)).map(|word| self.weight(word)).sum();
        if all > 0.0 { found / all } else { 0.0 }
    }

    /// The sentences in `ranges` that share the most with the answer and, less so, with the question; none where nothing
    /// is shared.
    pub fn quote(&self, ranges: &[Range<usize>], question: &str, answer: &str) -> Option<Quote> {
        let asked = words(question);
        let new: HashSet<String> = words(answer).difference(&asked).cloned().collect();
        let score = |i: usize| -> f64 {
            let words = &self.sentences[i].1;
            let sum = |of: &HashSet<String>| of.intersection(words).map(|w| self.weight(w)).sum::<f64>();
            // What the answer adds to the question is what must be found.
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
        // Neighbours that tell what is still missing of the answer.
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
        Some(quote(self.document, self.sentences[first].0.start..self.sentences[last].0.end))
    }

    /// Indices of the sentences that begin in `range`.
    fn within(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.sentences.partition_point(|(s, _)| s.start < range.start);
        first..self.sentences.partition_point(|(s, _)| s.start < range.end).max(first)
    }
}

/// The bytes `range` of a document, with their lines.
fn quote(document: &str, range: Range<usize>) -> Quote {
    Quote {
        text: document[range.clone()].to_string(),
        lines: lines(document, &range),
        bytes: [range.start, range.end],
    }
}

/// The first and the last line of a document that `range` touches, from 1.
pub(super) fn lines(document: &str, range: &Range<usize>) -> [usize; 2] {
    let line_of = |at: usize| 1 + document[..at].matches('\n').count();
    let text = document[range.clone()].trim_end();
    let start = range.start + text.len() - text.trim_start().len();
    [line_of(start), line_of(range.start + text.len())]
}

/// The words of a text, in lower case and without the endings of English plurals and verbs.
fn words(text: &str) -> HashSet<String> {
    text.unicode_words().map(|word| stem(&word.to_lowercase())).collect()
}

fn stem(word: &str) -> String {
    let word = word.strip_suffix("'s").or(word.strip_suffix("’s")).unwrap_or(word);
    let endings = ["ing", "ed", "es", "s", "e"];
    let stem = endings.iter().filter_map(|ending| word.strip_suffix(ending)).find(|stem| stem.len() > 2);
    stem.unwrap_or(word).to_string()
}

/// Words by which models say that a text does not tell.
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

/// Whether an answer is that the text does not tell. Its first sentence decides.
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
        let passages = Passages::new(STORY);
        let all = [0..STORY.len()];
        let quote = passages
            .quote(&all, "Where was the ball found?", "The ball was under a bench.")
            .expect("a quote");
        assert_eq!((quote.text.as_str(), quote.lines), ("Tom found the ball under a bench.", [4, 4]));
        assert_eq!(&STORY[quote.bytes[0]..quote.bytes[1]], quote.text);
        let quote = passages.quote(&all, "What colour?", "A red ball, in the park.").expect("a quote");
        assert_eq!(
            (quote.text.as_str(), quote.lines),
            ("Mia had a red ball.\nOne day, Mia lost it in the park.", [1, 2])
        );
        assert_eq!(passages.quote(&all, "Why?", "Seventeen kangaroos!"), None);
        let first = passages.support(&(0..20), "What did Mia have?", "Mia had a red ball.");
        let last = passages.support(&(60..STORY.len()), "What did Mia have?", "Mia had a red ball.");
        assert!(first > 0.9 && last < 0.5, "{first} {last}");
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
