//! Times of words, from the decoder's cross-attention: `whisper/timing.py`.

use super::segments::FRAMES_PER_POSITION;
use super::{Segment, Word};
use crate::text::{TextError, Tokenizer};

/// Positions of the encoder per second.
const POSITIONS_PER_SECOND: f64 = 50.0;
/// Width of the median filter in positions.
const MEDIAN_WIDTH: usize = 7;
/// Languages written without spaces: every character is a word.
const WITHOUT_SPACES: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];
/// Punctuation that belongs to the word after it, or to the word before it.
const PREPENDED: &str = "\"'“¿([{-";
const APPENDED: &str = "\"'.。,，!！?？:：”)]}、";
const SENTENCE_ENDS: &str = ".。!！?？";
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// A word in a window. Times are seconds from the window's start.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Timing {
    pub word: String,
    /// Its tokens.
    pub n_tokens: usize,
    pub start: f64,
    pub end: f64,
    pub probability: f64,
}

/// The decoder's cross-attention while it reads a window's text.
pub(super) struct Alignment {
    /// Cross-attention of the alignment heads, `[n_rows][n_heads * n_positions]`; each head's positions sum to 1. The
    /// rows are the tokens of start, text and end.
    pub rows: Vec<Vec<f32>>,
    /// Positions per head.
    pub n_positions: usize,
    /// Rows before the one that predicts the first token of the text.
    pub n_before: usize,
    /// The probability of each token of the text.
    pub probabilities: Vec<f64>,
}

/// The words of `tokens`, the text of a window with `n_frames` frames of the recording.
///
/// # Errors
/// [`TextError`] for tokens that cannot be decoded.
pub(super) fn align(
    tokens: &[u32],
    alignment: &Alignment,
    n_frames: usize,
    tokenizer: &Tokenizer,
    language: &str,
) -> Result<Vec<Timing>, TextError> {
    let words = split_words(tokens, tokenizer, language)?;
    let n_positions = (n_frames / FRAMES_PER_POSITION).min(alignment.n_positions);
    if words.is_empty() || n_positions == 0 {
        return Ok(Vec::new());
    }
    let matrix = matrix(alignment, n_positions);
    // A token is predicted by the row before it; the end token's row ends the last word.
    let rows = &matrix[alignment.n_before..matrix.len() - 1];
    let cost: Vec<Vec<f64>> = rows.iter().map(|row| row.iter().map(|value| -value).collect()).collect();
    let path = warp(&cost);
    // The first position of the path in each row.
    let mut jumps = vec![0.0; rows.len()];
    for (row, position) in path.into_iter().rev() {
        jumps[row] = position as f64 / POSITIONS_PER_SECOND;
    }
    let mut at = 0;
    let timing = |(word, n_tokens): (String, usize)| {
        let (from, to) = (at, at + n_tokens);
        at = to;
        let probability = alignment.probabilities[from..to].iter().sum::<f64>() / n_tokens as f64;
        Timing { word, n_tokens, start: jumps[from], end: jumps[to], probability }
    };
    Ok(words.into_iter().map(timing).collect())
}

/// The mean over the heads of the attention to the first `n_positions`, normalised over the tokens and smoothed over
/// time: `[n_rows][n_positions]`.
fn matrix(alignment: &Alignment, n_positions: usize) -> Vec<Vec<f64>> {
    let rows = &alignment.rows;
    let n_heads = rows.first().map_or(0, |row| row.len() / alignment.n_positions);
    let mut mean = vec![vec![0.0; n_positions]; rows.len()];
    for head in 0..n_heads {
        let from = head * alignment.n_positions;
        let mut weights: Vec<Vec<f64>> = rows
            .iter()
            .map(|row| {
                // The softmax over the positions of the recording.
                let row = &row[from..from + n_positions];
                let sum: f64 = row.iter().map(|w| f64::from(*w)).sum();
                row.iter().map(|w| f64::from(*w) / sum.max(f64::MIN_POSITIVE)).collect()
            })
            .collect();
        normalise(&mut weights);
        for (mean, row) in mean.iter_mut().zip(&weights) {
            for (mean, value) in mean.iter_mut().zip(median_filter(row, MEDIAN_WIDTH)) {
                *mean += value / n_heads as f64;
            }
        }
    }
    mean
}

/// Subtracts the mean of each column and divides by its standard deviation.
fn normalise(rows: &mut [Vec<f64>]) {
    let n = rows.len() as f64;
    for column in 0..rows.first().map_or(0, Vec::len) {
        let mean = rows.iter().map(|row| row[column]).sum::<f64>() / n;
        let variance = rows.iter().map(|row| (row[column] - mean).powi(2)).sum::<f64>() / n;
        for row in rows.iter_mut() {
            // A column that is the same for all tokens carries no information.
            row[column] = if variance > 0.0 { (row[column] - mean) / variance.sqrt() } else { 0.0 };
        }
    }
}

/// The median of `width` values around each one, mirrored at both ends. Shorter rows do not change.
fn median_filter(row: &[f64], width: usize) -> Vec<f64> {
    let (n, half) = (row.len(), width / 2);
    if n <= half {
        return row.to_vec();
    }
    let mirrored = |i: usize| {
        let at = i.abs_diff(half);
        if at < n { at } else { 2 * (n - 1) - at }
    };
    let mut around = vec![0.0; width];
    let median = |i: usize| {
        around.iter_mut().enumerate().for_each(|(k, value)| *value = row[mirrored(i + k)]);
        around.sort_by(f64::total_cmp);
        around[half]
    };
    (0..n).map(median).collect()
}

/// Dynamic time warping: the cells of the cheapest path through `cost [n_rows][n_columns]` from the first cell to the
/// last, in steps down, right, or both.
fn warp(cost: &[Vec<f64>]) -> Vec<(usize, usize)> {
    let (n, m) = (cost.len(), cost.first().map_or(0, Vec::len));
    // Costs up to each cell, with a row and a column before the first.
    let mut before = vec![f64::INFINITY; m + 1];
    before[0] = 0.0;
    let mut steps = vec![[0u8; 2]; n * m];
    for (i, row) in cost.iter().enumerate() {
        let mut current = vec![f64::INFINITY; m + 1];
        for (j, value) in row.iter().enumerate() {
            let (both, down, right) = (before[j], before[j + 1], current[j]);
            let (least, step) = if both < down && both < right {
                (both, [1, 1])
            } else if down < both && down < right {
                (down, [1, 0])
            } else {
                (right, [0, 1])
            };
            current[j + 1] = value + least;
            steps[i * m + j] = step;
        }
        before = current;
    }
    let (mut i, mut j) = (n.saturating_sub(1), m.saturating_sub(1));
    let mut path = Vec::new();
    if n * m == 0 {
        return path;
    }
    loop {
        path.push((i, j));
        let [down, right] = match (i, j) {
            (0, 0) => break,
            (0, _) => [0, 1],
            (_, 0) => [1, 0],
            _ => steps[i * m + j],
        };
        (i, j) = (i - usize::from(down), j - usize::from(right));
    }
    path.reverse();
    path
}

/// The words of `tokens`, with the number of tokens of each.
///
/// # Errors
/// [`TextError`] for tokens that cannot be decoded.
fn split_words(
    tokens: &[u32],
    tokenizer: &Tokenizer,
    language: &str,
) -> Result<Vec<(String, usize)>, TextError> {
    let characters = split_characters(tokens, |ids| tokenizer.decode(ids, false))?;
    Ok(if WITHOUT_SPACES.contains(&language) { characters } else { join_at_spaces(characters) })
}

/// The shortest runs of tokens that are whole characters.
fn split_characters(
    tokens: &[u32],
    decode: impl Fn(&[u32]) -> Result<String, TextError>,
) -> Result<Vec<(String, usize)>, TextError> {
    let whole: Vec<char> = decode(tokens)?.chars().collect();
    let mut runs = Vec::new();
    let (mut from, mut offset) = (0, 0);
    for to in 1..=tokens.len() {
        let text = decode(&tokens[from..to])?;
        // A replacement character is a part of a character, unless the whole text has it too.
        let broken = text.chars().position(|c| c == char::REPLACEMENT_CHARACTER);
        let is_whole = broken.is_none_or(|at| whole.get(offset + at) == Some(&char::REPLACEMENT_CHARACTER));
        if is_whole || to == tokens.len() {
            offset += text.chars().count();
            runs.push((text, to - from));
            from = to;
        }
    }
    Ok(runs)
}

/// Words begin with a space; punctuation is a word of its own.
fn join_at_spaces(parts: Vec<(String, usize)>) -> Vec<(String, usize)> {
    let mut words: Vec<(String, usize)> = Vec::new();
    for (text, n) in parts {
        let begins = text.starts_with(' ') || PUNCTUATION.contains(text.trim());
        match words.last_mut().filter(|_| !begins) {
            Some((word, n_tokens)) => {
                word.push_str(&text);
                *n_tokens += n;
            }
            None => words.push((text, n)),
        }
    }
    words
}

/// Merges punctuation into the words that it belongs to. The punctuation's own word becomes empty, without tokens.
fn merge_punctuation(words: &mut [Timing]) {
    let Some(last) = words.len().checked_sub(1) else { return };
    let mut following = last;
    for i in (0..last).rev() {
        let (left, right) = words.split_at_mut(following);
        let (mark, word) = (&mut left[i], &mut right[0]);
        if mark.word.starts_with(' ') && PREPENDED.contains(mark.word.trim()) {
            word.word.insert_str(0, &std::mem::take(&mut mark.word));
            word.n_tokens += std::mem::take(&mut mark.n_tokens);
        } else {
            following = i;
        }
    }
    let mut previous = 0;
    for i in 1..=last {
        let (left, right) = words.split_at_mut(i);
        let (word, mark) = (&mut left[previous], &mut right[0]);
        if !word.word.ends_with(' ') && APPENDED.contains(mark.word.as_str()) {
            word.word.push_str(&std::mem::take(&mut mark.word));
            word.n_tokens += std::mem::take(&mut mark.n_tokens);
        } else {
            previous = i;
        }
    }
}

/// Assigns words to the segments of a window, and sets the segments' times to theirs. `n_tokens` are the numbers of
/// text tokens of the segments. Words that are too long at pauses are cut, as in `add_word_timestamps`, because
/// attention stays on the last sound before a pause.
///
/// Returns the end of the last segment in seconds; `last_speech` is that of the previous window.
pub(super) fn distribute(
    segments: &mut [Segment],
    n_tokens: &[usize],
    mut timings: Vec<Timing>,
    time_offset: f64,
    mut last_speech: f64,
) -> f64 {
    let mut durations: Vec<f64> = timings.iter().map(|t| t.end - t.start).filter(|d| *d != 0.0).collect();
    durations.sort_by(f64::total_cmp);
    let median = match durations.len() {
        0 => 0.0,
        n if n % 2 == 1 => durations[n / 2],
        n => (durations[n / 2 - 1] + durations[n / 2]) / 2.0,
    }
    .min(0.7);
    let longest = median * 2.0;
    if !durations.is_empty() {
        for i in 1..timings.len() {
            if timings[i].end - timings[i].start > longest {
                if SENTENCE_ENDS.contains(timings[i].word.as_str()) {
                    timings[i].end = timings[i].start + longest;
                } else if SENTENCE_ENDS.contains(timings[i - 1].word.as_str()) {
                    timings[i].start = timings[i].end - longest;
                }
            }
        }
    }
    merge_punctuation(&mut timings);

    let mut timings = timings.into_iter().peekable();
    for (segment, n_tokens) in segments.iter_mut().zip(n_tokens) {
        let mut n_taken = 0;
        let mut words = Vec::new();
        while n_taken < *n_tokens
            && let Some(timing) = timings.next()
        {
            n_taken += timing.n_tokens;
            if !timing.word.is_empty() {
                words.push(Word {
                    word: timing.word,
                    start: rounded(time_offset + timing.start),
                    end: rounded(time_offset + timing.end),
                    probability: timing.probability,
                });
            }
        }
        if !words.is_empty() {
            fit(segment, &mut words, median, last_speech);
            last_speech = segment.end;
        }
        segment.words = Some(words);
    }
    last_speech
}

/// Cuts words that are too long at a segment's ends, and moves the segment's times.
fn fit(segment: &mut Segment, words: &mut [Word], median: f64, last_speech: f64) {
    let longest = median * 2.0;
    let n = words.len();
    let second_end = words.get(1).map(|word| word.end);
    let is_long = words[0].end - words[0].start > longest
        || second_end.is_some_and(|end| end - words[0].start > longest * 2.0);
    if words[0].end - last_speech > median * 4.0 && is_long {
        if let Some(end) = second_end.filter(|end| end - words[1].start > longest) {
            let boundary = (end / 2.0).max(end - longest);
            words[0].end = boundary;
            words[1].start = boundary;
        }
        words[0].start = (words[0].end - longest).max(0.0);
    }
    // The timestamp is used if the attention's time is far from it.
    if segment.start < words[0].end && segment.start - 0.5 > words[0].start {
        words[0].start = (words[0].end - median).min(segment.start).max(0.0);
    } else {
        segment.start = words[0].start;
    }
    let last = &mut words[n - 1];
    if segment.end > last.start && segment.end + 0.5 < last.end {
        last.end = (last.start + median).max(segment.end);
    } else {
        segment.end = last.end;
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warping_follows_the_cheap_cells() {
        let cost = [[0., 0., 1., 1., 1.], [1., 1., 0., 1., 1.], [1., 1., 1., 0., 0.]].map(Vec::from);
        assert_eq!(warp(&cost), [(0, 0), (0, 1), (1, 2), (2, 3), (2, 4)]);
        // More rows than columns: several tokens at one time.
        let cost = [[0.], [5.], [1.]].map(Vec::from);
        assert_eq!(warp(&cost), [(0, 0), (1, 0), (2, 0)]);
        assert_eq!(warp(&[]), []);
    }

    #[test]
    fn warping_is_never_dearer_than_any_other_path() {
        fn cheapest(cost: &[Vec<f64>], i: usize, j: usize) -> f64 {
            let rest = [(1, 0), (0, 1), (1, 1)]
                .into_iter()
                .filter(|(di, dj)| i + di < cost.len() && j + dj < cost[0].len())
                .map(|(di, dj)| cheapest(cost, i + di, j + dj))
                .fold(f64::INFINITY, f64::min);
            cost[i][j] + if rest.is_finite() { rest } else { 0.0 }
        }
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / f64::from(1 << 24) - 0.3
        };
        for (n, m) in [(1, 6), (5, 1), (2, 7), (5, 4), (6, 5)] {
            let cost: Vec<Vec<f64>> = (0..n).map(|_| (0..m).map(|_| next()).collect()).collect();
            let path = warp(&cost);
            assert_eq!((path[0], *path.last().expect("a path")), ((0, 0), (n - 1, m - 1)));
            let steps = path.windows(2).map(|w| (w[1].0 - w[0].0, w[1].1 - w[0].1));
            assert!(steps.clone().all(|step| [(1, 0), (0, 1), (1, 1)].contains(&step)), "{path:?}");
            let sum: f64 = path.iter().map(|(i, j)| cost[*i][*j]).sum();
            assert!((sum - cheapest(&cost, 0, 0)).abs() < 1e-9, "{path:?} costs {sum}");
        }
    }

    #[test]
    fn medians_mirror_the_ends() {
        assert_eq!(median_filter(&[1., 9., 2., 3., 8.], 3), [9., 2., 3., 3., 3.]);
        assert_eq!(median_filter(&[5., 1.], 3), [1., 5.]);
        assert_eq!(median_filter(&[5., 1.], 7), [5., 1.]);
    }

    #[test]
    fn characters_and_words_stay_whole() {
        // Every token is a byte.
        let decode = |ids: &[u32]| {
            let bytes: Vec<u8> = ids.iter().map(|id| *id as u8).collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let split = |bytes: &[u8]| {
            let ids: Vec<u32> = bytes.iter().map(|b| u32::from(*b)).collect();
            split_characters(&ids, decode).expect("bytes decode")
        };
        let found = split("né, a".as_bytes());
        assert_eq!(
            found,
            [("n".into(), 1), ("é".into(), 2), (",".into(), 1), (" ".into(), 1), ("a".into(), 1)]
        );
        // A byte that is not a character is a word of its own.
        assert_eq!(split(b"a\xffb").iter().map(|(_, n)| *n).collect::<Vec<_>>(), [1, 1, 1]);
        let words = |parts: &[&str]| {
            join_at_spaces(parts.iter().map(|part| (part.to_string(), 1)).collect::<Vec<_>>())
        };
        assert_eq!(
            words(&[" And", " so", "me", "thing", ",", " yes"]),
            [(" And".into(), 1), (" something".into(), 3), (",".into(), 1), (" yes".into(), 1)]
        );
    }

    fn timing(word: &str, start: f64, end: f64) -> Timing {
        Timing { word: word.into(), n_tokens: 1, start, end, probability: 0.5 }
    }

    #[test]
    fn marks_go_to_their_words() {
        let mut words: Vec<Timing> = [" \"", "Yes", ",", "\"", " he", " said", ".", " (", "so", ")"]
            .map(|w| timing(w, 0.0, 0.0))
            .into();
        merge_punctuation(&mut words);
        let found: Vec<(&str, usize)> =
            words.iter().filter(|w| !w.word.is_empty()).map(|w| (w.word.as_str(), w.n_tokens)).collect();
        assert_eq!(found, [(" \"Yes,\"", 4), (" he", 1), (" said.", 2), (" (so)", 3)]);
        merge_punctuation(&mut []);
    }

    fn segment(start: f64, end: f64) -> Segment {
        Segment { start, end, ..Segment::default() }
    }

    #[test]
    fn words_go_to_their_segments() {
        let mut segments = [segment(10.0, 11.0), segment(11.0, 12.5)];
        let timings = vec![
            timing(" One", 0.2, 0.6),
            timing(" two", 0.6, 0.9),
            timing(".", 0.9, 0.9),
            timing(" Three", 1.2, 1.6),
        ];
        let end = distribute(&mut segments, &[3, 1], timings, 10.0, 10.0);
        let words = |s: &Segment| {
            let words = s.words.iter().flatten();
            words.map(|w| (w.word.clone(), w.start, w.end)).collect::<Vec<_>>()
        };
        assert_eq!(words(&segments[0]), [(" One".into(), 10.2, 10.6), (" two.".into(), 10.6, 10.9)]);
        assert_eq!(words(&segments[1]), [(" Three".into(), 11.2, 11.6)]);
        assert_eq!((segments[0].start, segments[0].end), (10.2, 10.9));
        assert_eq!(end, 11.6);
    }

    #[test]
    fn attention_that_dwells_in_a_pause_is_cut() {
        // The first word is said to begin 3 s before the segment's timestamp.
        let mut segments = [segment(3.2, 5.0)];
        let timings = vec![timing(" One", 0.0, 3.6), timing(" two", 3.6, 4.0), timing(" three", 4.0, 4.4)];
        distribute(&mut segments, &[3], timings, 0.0, 0.0);
        let words = segments[0].words.as_ref().expect("words");
        // Twice the median of 0.4 s at most.
        assert!((words[0].start - 2.8).abs() < 1e-9, "{}", words[0].start);
        assert_eq!(words[0].end, 3.6);
    }

    #[test]
    fn attention_becomes_times() {
        // Three tokens after two of the prompt, then the end; each looks at its own ten positions of 40.
        let n_positions = 40;
        let looks =
            |at: usize| (0..n_positions).map(|i| if i / 10 == at { 0.09 } else { 0.01 / 3.0 }).collect();
        let rows: Vec<Vec<f32>> = [3, 0, 1, 2, 3, 3].map(looks).into();
        let alignment = Alignment { rows, n_positions, n_before: 1, probabilities: vec![1.0; 3] };
        let matrix = matrix(&alignment, n_positions);
        let best =
            |row: &[f64]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i / 10);
        assert_eq!(
            matrix[1..5].iter().map(|row| best(row)).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(2), Some(3)]
        );
    }
}
