//! A bar over a task's pieces.

use std::ops::ControlFlow;

use wginfer::tasks::{Observer, Progress, TaskError};

use super::failure::Failure;
use super::terminal;

/// Runs a task and shows its progress. `on_text` receives its text as it is generated; its error ends the task.
pub fn watch<T>(
    mut on_text: impl FnMut(&str) -> std::io::Result<()>,
    task: impl FnOnce(&mut Observer<'_>) -> Result<T, TaskError>,
) -> Result<T, Failure> {
    let bar = terminal::steps();
    let mut written = Ok(());
    let result = task(&mut |progress| {
        match progress {
            Progress::Round { round, n_pieces, n_tokens } => {
                let pieces = if n_pieces == 1 { "1 piece" } else { &format!("{n_pieces} pieces") };
                log::info!("round {round}: {pieces}, {n_tokens} tokens");
                bar.set_position(0);
            }
            Progress::Done { n_done, n_pieces } => {
                bar.set_length(n_pieces as u64);
                bar.set_position(n_done as u64);
            }
            Progress::Text(text) => {
                if !bar.is_finished() {
                    terminal::finish(&bar);
                }
                written = on_text(&text);
            }
        }
        match written.is_err() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    terminal::finish(&bar);
    written?;
    Ok(result?)
}
