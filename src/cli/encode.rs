//! Runs texts through an encoder, for vectors or labels.

use std::time::Instant;

use wginfer::engine::{EngineError, Output, TextEncoder};
use wginfer::tasks::{self, Encodings, TaskError};

use super::failure::Failure;
use super::terminal;

/// Runs texts through an encoder, with `prefix` before each, and logs the figures.
pub fn encode(
    encoder: &mut TextEncoder,
    texts: &[String],
    prefix: &str,
    output: Output,
) -> Result<Encodings, Failure> {
    let n = texts.len();
    let n_empty = texts.iter().filter(|text| text.trim().is_empty()).count();
    if n_empty > 0 {
        log::warn!("{n_empty} of {} {} empty", counted(n), if n_empty == 1 { "is" } else { "are" });
    }
    let begin = Instant::now();
    let bar = terminal::texts("computing", n);
    let prefixed: Vec<String> = texts.iter().map(|text| format!("{prefix}{text}")).collect();
    let encodings = tasks::encode(encoder, &prefixed, output, &mut |n_done| bar.set_position(n_done as u64));
    terminal::finish(&bar);
    if let Err(TaskError::Engine(EngineError::EmptyPrompt)) = encodings {
        // Most tokenizers put special tokens even around an empty text.
        let is_empty = |text: &String| encoder.tokenize(text).is_ok_and(|(ids, _)| ids.is_empty());
        let i = prefixed.iter().position(is_empty).unwrap_or(0);
        return Err(Failure::failed(format!("text {} of {n} has no tokens", i + 1)));
    }
    let encodings = encodings?;
    let (n_texts, n_tokens) = encodings.cut();
    if n_texts > 0 {
        let (ctx, most) = (encoder.ctx(), encoder.shape().max_seq_len);
        let more = if ctx < most { format!("; `--ctx` may be up to {most}") } else { String::new() };
        log::warn!("{n_texts} of {} cut to {ctx} tokens, {n_tokens} tokens lost{more}", counted(n));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let n_tokens: usize = encodings.n_tokens.iter().sum();
    log::info!(
        "{} · {n_tokens} tokens in {seconds:.2} s · {:.0} tok/s",
        counted(n),
        n_tokens as f64 / seconds
    );
    Ok(encodings)
}

fn counted(n: usize) -> String {
    if n == 1 { "1 text".to_string() } else { format!("{n} texts") }
}
