//! Runs texts through an encoder, for vectors or labels.

use std::time::Instant;

use wginfer::engine::{Output, TextEncoder};
use wginfer::tasks::{self, Encoding};

use super::failure::Failure;
use super::terminal;

/// Runs texts through an encoder, with `prefix` before each, and logs the figures. Returns the result or the error of each
/// text, in their order.
pub fn encode(
    encoder: &mut TextEncoder,
    texts: &[&String],
    prefix: &str,
    output: Output,
) -> Result<Vec<Result<Encoding, Failure>>, Failure> {
    let n = texts.len();
    let begin = Instant::now();
    let bar = terminal::texts("computing", n);
    let prefixed: Vec<String> = texts.iter().map(|text| format!("{prefix}{text}")).collect();
    let encodings = tasks::encode(encoder, &prefixed, output, &mut |n_done| bar.set_position(n_done as u64));
    terminal::finish(&bar);
    let encodings = encodings?;
    let done = || encodings.iter().flatten();
    let n_cut: usize = done().map(|encoding| encoding.n_cut).sum();
    if n_cut > 0 {
        let n_texts = done().filter(|encoding| encoding.n_cut > 0).count();
        let (ctx, most) = (encoder.ctx(), encoder.shape().max_seq_len);
        let more = if ctx < most { format!("; `--ctx` may be up to {most}") } else { String::new() };
        log::warn!("{n_texts} of {} cut to {ctx} tokens, {n_cut} tokens lost{more}", counted(n));
    }
    let seconds = begin.elapsed().as_secs_f64();
    let n_tokens: usize = done().map(|encoding| encoding.n_tokens).sum();
    log::info!(
        "{} · {n_tokens} tokens in {seconds:.2} s · {:.0} tok/s",
        counted(n),
        n_tokens as f64 / seconds
    );
    Ok(encodings.into_iter().map(|encoding| Ok(encoding?)).collect())
}

fn counted(n: usize) -> String {
    if n == 1 { "1 text".to_string() } else { format!("{n} texts") }
}
