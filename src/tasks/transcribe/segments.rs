//! From a window's tokens to segments, and to the start of the next window.

/// Log-mel frames per step of the timestamps: 20 ms.
pub(super) const FRAMES_PER_POSITION: usize = 2;
/// Log-mel frames per second.
pub(super) const FRAMES_PER_SECOND: f64 = 100.0;

/// A part of a text between two timestamps. Times are frames from the window's start.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
    /// The tokens, including timestamps.
    pub tokens: Vec<u32>,
}

/// The division of a window by its timestamps.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Split {
    pub spans: Vec<Span>,
    /// Frames from this window's start to the next one's.
    pub advance: usize,
    /// Whether the last token is a single timestamp, after which there is no speech.
    pub ends_in_silence: bool,
}

/// Splits the tokens of a window of which `n_frames` are sound, as `whisper/transcribe.py` does.
///
/// Two consecutive timestamps end one segment and begin the next. The text after the last such pair is unfinished: the
/// next window begins there. Timestamps are the tokens from `first_timestamp` on.
pub(super) fn split(tokens: &[u32], first_timestamp: u32, n_frames: usize) -> Split {
    let is_timestamp = |token: &u32| *token >= first_timestamp;
    let frames = |token: u32| (token.saturating_sub(first_timestamp)) as usize * FRAMES_PER_POSITION;
    let ends_in_silence = matches!(tokens, [.., a, b] if !is_timestamp(a) && is_timestamp(b));
    let mut cuts: Vec<usize> =
        (1..tokens.len()).filter(|i| is_timestamp(&tokens[i - 1]) && is_timestamp(&tokens[*i])).collect();
    if cuts.is_empty() {
        // The first and the last timestamp give the extent of the text, if they are plausible. (In the original, such a
        // segment begins with its window, whatever its first timestamp is.)
        let times = || tokens.iter().filter(|t| is_timestamp(t)).map(|t| frames(*t));
        let begins = tokens.first().is_some_and(is_timestamp);
        let first = times().next().filter(|first| begins && *first < n_frames).unwrap_or(0);
        let end = times().next_back().filter(|end| *end > first).unwrap_or(n_frames);
        let span = Span { start: first, end, tokens: tokens.to_vec() };
        let spans = if tokens.is_empty() { Vec::new() } else { vec![span] };
        return Split { spans, advance: n_frames, ends_in_silence };
    }
    if ends_in_silence {
        cuts.push(tokens.len());
    }
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let spans: Vec<Span> = starts
        .zip(&cuts)
        .map(|(from, to)| {
            let tokens = tokens[from..*to].to_vec();
            let at = |token: Option<&u32>| token.map_or(0, |t| frames(*t));
            Span { start: at(tokens.first()), end: at(tokens.last()), tokens }
        })
        .collect();
    let reached = spans.last().map_or(0, |span| span.end);
    // If the model predicts that the next window begins where this one does, the loop must still advance.
    let advance = if ends_in_silence || reached == 0 { n_frames } else { reached };
    Split { spans, advance, ends_in_silence }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first timestamp of a vocabulary of 100 words.
    const T: u32 = 100;

    fn spans(tokens: &[u32]) -> Vec<(usize, usize, Vec<u32>)> {
        split(tokens, T, 3000).spans.into_iter().map(|s| (s.start, s.end, s.tokens)).collect()
    }

    #[test]
    fn pairs_of_timestamps_cut() {
        let tokens = [T, 1, 2, T + 50, T + 50, 3, T + 120, T + 130, 4];
        let found = split(&tokens, T, 3000);
        assert_eq!(
            spans(&tokens),
            [(0, 100, vec![T, 1, 2, T + 50]), (100, 240, vec![T + 50, 3, T + 120])],
            "what is unfinished is left to the next window"
        );
        assert_eq!((found.advance, found.ends_in_silence), (240, false));
    }

    #[test]
    fn a_single_timestamp_at_the_end_means_silence_after_it() {
        let tokens = [T, 1, T + 50, T + 60, 3, T + 120];
        let found = split(&tokens, T, 2500);
        assert_eq!(found.spans.len(), 2);
        assert_eq!(found.spans[1], Span { start: 120, end: 240, tokens: vec![T + 60, 3, T + 120] });
        assert_eq!((found.advance, found.ends_in_silence), (2500, true));
    }

    #[test]
    fn one_segment_reaches_to_its_last_timestamp() {
        assert_eq!(spans(&[T, 1, 2, T + 70]), [(0, 140, vec![T, 1, 2, T + 70])]);
        assert_eq!(spans(&[T + 20, 1, 2, T + 70]), [(40, 140, vec![T + 20, 1, 2, T + 70])]);
        // A single timestamp at the start does not give the end.
        assert_eq!(spans(&[T + 20, 1, 2]), [(40, 3000, vec![T + 20, 1, 2])]);
        assert_eq!(spans(&[T, 1, 2]), [(0, 3000, vec![T, 1, 2])]);
        assert_eq!(spans(&[1, 2]), [(0, 3000, vec![1, 2])]);
        assert_eq!(split(&[1, 2], T, 700).advance, 700);
        assert_eq!(split(&[], T, 700), Split { spans: Vec::new(), advance: 700, ends_in_silence: false });
    }

    #[test]
    fn a_window_always_ends_later_than_it_began() {
        let mut state = 1u64;
        for _ in 0..20_000 {
            // A small generator is enough to produce every pattern of a few tokens.
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as u32
            };
            let tokens: Vec<u32> =
                (0..next() % 8).map(|_| if next() % 2 == 0 { next() % T } else { T + next() % 3 }).collect();
            let found = split(&tokens, T, 40);
            assert!(found.advance > 0, "{tokens:?}");
            let kept: Vec<u32> = found.spans.iter().flat_map(|s| s.tokens.clone()).collect();
            assert!(tokens.starts_with(&kept), "segments are a beginning of {tokens:?}");
        }
    }
}
