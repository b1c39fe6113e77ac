//! Formats numbers, tokens and texts for people.

use std::borrow::Cow;

use wginfer::engine::{FinishReason, Timings, Usage};
use wginfer::text::Tokenizer;

/// A number of bytes in a suitable unit.
pub fn bytes(n: u64) -> String {
    scaled(n, 1024.0, &["bytes", "KiB", "MiB", "GiB", "TiB"])
}

/// A count in thousands, millions or billions.
pub fn count(n: u64) -> String {
    scaled(n, 1000.0, &["", "K", "M", "B", "T"])
}

fn scaled(n: u64, base: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (n as f64, 0);
    // A value that would round up to the base is shown in the next unit.
    while value >= base - 0.05 && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let digits = if unit == 0 { 0 } else { 1 };
    format!("{value:.digits$} {}", units[unit]).trim_end().to_string()
}

/// A time in milliseconds, with two or three significant digits.
pub fn ms(ms: f64) -> String {
    let digits = if ms < 1.0 {
        2
    } else if ms < 10.0 {
        1
    } else {
        0
    };
    format!("{ms:.digits$}")
}

/// Whether a terminal acts on a character, or people see another order than that of the text: control characters (C0, DEL,
/// C1), separators of lines, and those that override the direction of writing.
pub fn is_acting(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// How a character that [`is_acting`] is shown.
pub fn escape(c: char) -> String {
    match c {
        '\n' => "\\n".to_string(),
        '\r' => "\\r".to_string(),
        '\t' => "\\t".to_string(),
        c => c.escape_unicode().to_string(),
    }
}

/// `text` with the characters escaped that [`is_acting`] names.
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(is_acting) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_acting(c) { shown += &escape(c) } else { shown.push(c) }
    }
    Cow::Owned(shown)
}

/// `text` on one line for people: [`escaped`], and without its middle if it has more than `most` characters, of which it
/// keeps three quarters at the beginning.
pub fn shown(text: &str, most: usize) -> String {
    let n_tail = most / 4;
    if text.chars().nth(most).is_none() {
        return escaped(text).into_owned();
    }
    let at = |at: Option<(usize, char)>| at.map_or(0, |(at, _)| at);
    let head = &text[..at(text.char_indices().nth(most - n_tail))];
    let tail = &text[at(text.char_indices().nth_back(n_tail.saturating_sub(1)))..];
    let n_cut = text.len() - head.len() - tail.len();
    format!("{}…({} more)…{}", escaped(head), bytes(n_cut as u64), escaped(tail))
}

/// The text of one token inside a text, in quotes; its spelling in the vocabulary if it is not a whole character.
pub fn token(tokenizer: Option<&Tokenizer>, id: u32) -> String {
    let Some(tokenizer) = tokenizer else { return String::new() };
    // Some decoders drop the space before the first word, so the token is decoded after itself.
    let one = tokenizer.decode(&[id], false).unwrap_or_default();
    let two = tokenizer.decode(&[id, id], false).unwrap_or_default();
    let text = two.strip_prefix(one.as_str()).unwrap_or(&one);
    if text.contains(char::REPLACEMENT_CHARACTER) || text.is_empty() {
        return tokenizer.id_to_token(id).map_or_else(|| "(none)".to_string(), |token| quoted(&token));
    }
    quoted(text)
}

/// A token in quotes; most have less than ten characters.
fn quoted(token: &str) -> String {
    const MOST: usize = 40;
    match token.chars().nth(MOST) {
        None => format!("{token:?}"),
        Some(_) => format!("{:?}…", token.chars().take(MOST).collect::<String>()),
    }
}

/// The line of figures of an answer.
pub fn figures(usage: &Usage, finish_reason: FinishReason, timings: &Timings) -> String {
    let cached = match usage.cached_tokens {
        0 => String::new(),
        n => format!(" ({n} cached)"),
    };
    let mut line = format!(
        "{} prompt{cached} + {} generated tokens ({}) · first token {} ms",
        usage.prompt_tokens,
        usage.completion_tokens,
        finish_reason.as_str(),
        ms(timings.time_to_first_token_ms),
    );
    if usage.completion_tokens > 1 {
        line += &format!(
            " · {} ms/token median, {} p95",
            ms(timings.time_per_output_token_median_ms),
            ms(timings.time_per_output_token_p95_ms),
        );
    }
    line += &format!(" · prompt {:.0} tok/s", timings.prompt_tokens_per_second);
    if usage.completion_tokens > 1 {
        line += &format!(", decode {:.0} tok/s", timings.decode_tokens_per_second);
    }
    line
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_acts_on_a_terminal_is_escaped() {
        let cases = [
            ("\x1b]0;title\x07\x1b[31mred", "\\u{1b}]0;title\\u{7}\\u{1b}[31mred"),
            ("a\rb\nc\td", "a\\rb\\nc\\td"),
            ("\x7f\0\x08", "\\u{7f}\\u{0}\\u{8}"),
            ("\u{9b}31m\u{85}", "\\u{9b}31m\\u{85}"),
            ("a\u{202e}b\u{2066}c\u{2069}\u{2028}", "a\\u{202e}b\\u{2066}c\\u{2069}\\u{2028}"),
            ("né 猫 👩‍👩‍👧 שלום \\ \\u{1b}", "né 猫 👩‍👩‍👧 שלום \\ \\u{1b}"),
        ];
        for (text, expected) in cases {
            assert_eq!(super::escaped(text), expected);
            assert_eq!(super::shown(text, 1000), expected);
            // Debug's escapes, in which tokens are shown, cover the same.
            assert!(!format!("{text:?}").contains(super::is_acting), "{text:?}");
        }
    }

    #[test]
    fn long_texts_lose_their_middle() {
        assert_eq!(super::shown("abcdefgh", 8), "abcdefgh");
        assert_eq!(super::shown("abcdefghi", 8), "abcdef…(1 bytes more)…hi");
        let long = format!("ä{}é", "\x1b".repeat(10 << 20));
        let shown = super::shown(&long, 100);
        assert!(shown.len() < 800 && shown.starts_with("ä\\u{1b}") && shown.ends_with("\\u{1b}é"), "{shown}");
        assert!(shown.contains("10.0 MiB more"), "{shown}");
        // Only the cut is new.
        assert_eq!(super::shown("", 8), "");
        assert!(super::shown("ab", 1).starts_with("a…"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(super::bytes(0), "0 bytes");
        assert_eq!(super::bytes(1023), "1023 bytes");
        assert_eq!(super::bytes(1536), "1.5 KiB");
        assert_eq!(super::bytes((1 << 30) - 1), "1.0 GiB");
        assert_eq!(super::count(999), "999");
        assert_eq!(super::count(1_710_000), "1.7 M");
        assert_eq!(super::ms(0.456), "0.46");
        assert_eq!(super::ms(35.4), "35");
    }
}
