//! Formats numbers and tokens for people.

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

/// The text of one token inside a text, in quotes; its spelling in the vocabulary if it is not a whole character.
pub fn token(tokenizer: Option<&Tokenizer>, id: u32) -> String {
    let Some(tokenizer) = tokenizer else { return String::new() };
    // Some decoders drop the space before the first word, so the token is decoded after itself.
    let one = tokenizer.decode(&[id], false).unwrap_or_default();
    let two = tokenizer.decode(&[id, id], false).unwrap_or_default();
    let text = two.strip_prefix(one.as_str()).unwrap_or(&one);
    if text.contains(char::REPLACEMENT_CHARACTER) || text.is_empty() {
        return tokenizer.id_to_token(id).map_or_else(|| "(none)".to_string(), |t| format!("{t:?}"));
    }
    format!("{text:?}")
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
