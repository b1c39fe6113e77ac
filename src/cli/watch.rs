//! A bar over a task's pieces.

use std::ops::ControlFlow;

use wginfer::engine::Engine;
use wginfer::tasks::{self, Engines, Finished, Observer, Progress, Task, TaskError};

use super::failure::Failure;
use super::terminal;

/// Runs a task on `n` inputs and shows its progress. `on` receives the result of each, with its index.
pub fn watch_each<R, T>(
    task: &mut T,
    engine: &mut Engine,
    n: usize,
    mut on: impl FnMut(usize, Result<R, Failure>),
) -> Result<(), Failure>
where
    T: Task<Progress = Finished<R>, Error = TaskError>,
{
    let bar = terminal::steps();
    bar.set_length(n as u64);
    let result = tasks::run(task, &mut Engines::from(engine), |finished| {
        if let Some(Finished { index, result }) = finished {
            on(index, result.map_err(Failure::from));
            bar.inc(1);
        }
        ControlFlow::Continue(())
    });
    terminal::finish(&bar);
    Ok(result.map(drop)?)
}

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
