//! Standard error: log lines, the progress bar, the final error.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use log::{Level, LevelFilter};

use super::failure::Failure;

struct Terminal {
    /// The bar on the screen, if any: lines are written above it.
    bar: Mutex<Option<ProgressBar>>,
}

static TERMINAL: Terminal = Terminal { bar: Mutex::new(None) };

/// Sets the level of messages: with `quiet` only errors, with `verbose` also warnings of other crates.
pub fn init(quiet: bool, verbose: bool) {
    let most = match (quiet, verbose) {
        (true, _) => LevelFilter::Error,
        (false, false) => LevelFilter::Info,
        (false, true) => LevelFilter::Debug,
    };
    log::set_max_level(most);
    // It fails only if there is a logger already.
    let _ = log::set_logger(&TERMINAL);
}

/// Whether only errors are printed.
pub fn is_quiet() -> bool {
    log::max_level() < LevelFilter::Info
}

/// Prints the error that ends the program.
pub fn error(failure: &Failure) {
    let (message, hint) = failure.lines();
    TERMINAL.line(&format!("error: {message}"));
    if let Some(hint) = hint {
        TERMINAL.line(&format!("hint: {hint}"));
    }
}

/// Smaller models load faster than a bar can be read.
const WORTH_A_BAR: u64 = 64 << 20;

/// A bar over a number of bytes, shown only on a terminal and unless quiet. [`finish`] removes it.
pub fn bar(what: &'static str, n_bytes: u64) -> ProgressBar {
    let template = "{msg} {bar:32} {bytes}/{total_bytes}, {bytes_per_sec}";
    show(template, Some(n_bytes), n_bytes >= WORTH_A_BAR, what)
}

/// A bar over a number of texts. [`finish`] removes it.
pub fn texts(what: &'static str, n: usize) -> ProgressBar {
    show("{msg} {bar:32} {pos}/{len} texts, {elapsed}", Some(n as u64), true, what)
}

/// A bar over named steps. [`finish`] removes it.
pub fn steps() -> ProgressBar {
    show("{bar:24} {pos}/{len} {elapsed} {wide_msg}", Some(0), true, "")
}

/// A bar over the seconds of a recording. [`finish`] removes it.
pub fn seconds(n: f64) -> ProgressBar {
    show("{bar:32} {pos}/{len} s, {eta} left", Some(n.ceil() as u64), true, "")
}

/// A line with the current step. [`finish`] removes it.
pub fn spinner() -> ProgressBar {
    let bar = show("{elapsed} {wide_msg}", None, true, "");
    bar.enable_steady_tick(std::time::Duration::from_millis(250));
    bar
}

fn show(template: &str, length: Option<u64>, worth_it: bool, what: &'static str) -> ProgressBar {
    let shown = worth_it && std::io::stderr().is_terminal() && !is_quiet();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(length, target);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what);
    if let Ok(mut slot) = TERMINAL.bar.lock() {
        *slot = Some(bar.clone());
    }
    bar
}

/// Removes the bar from the screen.
pub fn finish(bar: &ProgressBar) {
    bar.finish_and_clear();
    if let Ok(mut slot) = TERMINAL.bar.lock() {
        *slot = None;
    }
}

/// Removes the bar that is on the screen, if any.
pub fn clear() {
    let bar = TERMINAL.bar.lock().ok().and_then(|mut bar| bar.take());
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
}

impl Terminal {
    fn line(&self, text: &str) {
        // If standard error is closed, nobody reads it, so failures are ignored: `eprintln!` would panic.
        let write = || {
            let _ = writeln!(std::io::stderr(), "{text}");
        };
        match self.bar.lock().ok().and_then(|bar| bar.clone()) {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl log::Log for Terminal {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Drivers and wgpu log much that the user can do nothing about.
        let verbose = log::max_level() >= LevelFilter::Debug;
        let ours = metadata.target().split("::").next() == Some("wginfer");
        ours || (verbose && metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        match record.level() {
            Level::Error => self.line(&format!("error: {}", record.args())),
            Level::Warn => self.line(&format!("warning: {}", record.args())),
            _ => self.line(&record.args().to_string()),
        }
    }

    fn flush(&self) {}
}
