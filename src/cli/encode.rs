//! Runs texts through an encoder, for vectors or labels.

use std::ops::ControlFlow;
use std::time::Instant;

use wginfer::engine::{Output, TextEncoder};
use wginfer::tasks::{self, EncodeTask, Encoding, Engines, Finished};

use super::failure::Failure;
use super::terminal;

/// The task for texts, with `prefix` before each.
pub fn task(
    encoder: &TextEncoder,
    texts: &[&String],
    prefix: &str,
    output: Output,
) -> Result<EncodeTask, Failure> {
    let prefixed: Vec<String> = texts.iter().map(|text| format!("{prefix}{text}")).collect();
    Ok(EncodeTask::new(encoder, &prefixed, output)?)
}

/// Runs the task, and logs the figures. `on` receives the result or the error of each text, with its index.
pub fn run(
    encoder: &mut TextEncoder,
    mut task: EncodeTask,
    mut on: impl FnMut(usize, Result<Encoding, Failure>),
) -> Result<(), Failure> {
    let n = task.n_texts();
    let begin = Instant::now();
    let bar = terminal::texts("computing", n);
    let (mut n_tokens, mut n_cut, mut n_cut_texts) = (0, 0, 0);
    let result = tasks::run(&mut task, &mut Engines::from(&mut *encoder), |finished| {
        if let Some(Finished { index, result }) = finished {
            if let Ok(encoding) = &result {
                n_tokens += encoding.n_tokens;
                n_cut += encoding.n_cut;
                n_cut_texts += usize::from(encoding.n_cut > 0);
            }
            on(index, result.map_err(Failure::from));
            bar.inc(1);
        }
        ControlFlow::Continue(())
    });
    terminal::finish(&bar);
    result?;
    if n_cut > 0 {
        let (ctx, most) = (encoder.ctx(), encoder.shape().max_seq_len);
        let more = if ctx < most { format!("; `--ctx` may be up to {most}") } else { String::new() };
        log::warn!("{n_cut_texts} of {} cut to {ctx} tokens, {n_cut} tokens lost{more}", counted(n));
    }
    let seconds = begin.elapsed().as_secs_f64();
    log::info!(
        "{} · {n_tokens} tokens in {seconds:.2} s · {:.0} tok/s",
        counted(n),
        n_tokens as f64 / seconds
    );
    Ok(())
}

fn counted(n: usize) -> String {
    if n == 1 { "1 text".to_string() } else { format!("{n} texts") }
}
