//! The terminal. Everything for standard error is written here: log lines, the progress bar, the final error; what comes
//! from files is escaped and cut there. [`Escaping`] does the former for standard output.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use log::{Level, LevelFilter};

use super::failure::Failure;
use super::format;

/// Most characters of a line on standard error: ten lines of a terminal.
const MOST: usize = 800;

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

/// Prints a message of several lines, which may repeat the arguments, and with them names of files.
pub fn lines(text: &str) {
    text.trim_end().lines().for_each(|line| TERMINAL.line(line));
}

/// Prints a part of what a model thinks, unless quiet: dimmed on a terminal.
pub fn thought(text: &str) {
    if is_quiet() || text.is_empty() {
        return;
    }
    let (dim, normal) = if io::stderr().is_terminal() { ("\x1b[2m", "\x1b[22m") } else { ("", "") };
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|c| push_shown(c, &mut shown));
    // Nobody reads it if it fails.
    let _ = write!(io::stderr(), "{dim}{shown}{normal}");
}

/// Adds a character as a terminal may get it: none acts but line break and tab.
fn push_shown(c: char, shown: &mut String) {
    match c {
        '\n' | '\t' => shown.push(c),
        c if format::is_acting(c) => *shown += &format::escape(c),
        c => shown.push(c),
    }
}

/// Smaller models load faster than a bar can be read.
const WORTH_A_BAR: u64 = 64 << 20;

/// A bar over a number of bytes, shown only on a terminal and unless quiet. [`finish`] removes it.
pub fn bar(what: &'static str, n_bytes: u64) -> ProgressBar {
    let template = "{msg} {bar:32} {bytes}/{total_bytes}, {bytes_per_sec}";
    show(template, Some(n_bytes), n_bytes >= WORTH_A_BAR, what)
}

/// A bar over the bytes of a download. [`finish`] removes it.
pub fn download(n_bytes: u64) -> ProgressBar {
    let template = "{wide_msg} {bar:24} {bytes}/{total_bytes}, {bytes_per_sec}, {eta} left";
    show(template, Some(n_bytes), true, "")
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
    /// Writes one line, whatever is in it.
    fn line(&self, text: &str) {
        let text = format::shown(text, MOST);
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

fn is_ours(metadata: &log::Metadata<'_>) -> bool {
    metadata.target().split("::").next() == Some("wginfer")
}

impl log::Log for Terminal {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Drivers and wgpu log much that the user can do nothing about.
        let verbose = log::max_level() >= LevelFilter::Debug;
        is_ours(metadata) || (verbose && metadata.level() <= Level::Warn)
    }

    fn log(&self, record: &log::Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = match record.level() {
            Level::Error => format!("error: {}", record.args()),
            Level::Warn => format!("warning: {}", record.args()),
            _ => record.args().to_string(),
        };
        // A message of ours is one line, and so a line break in it comes from a file.
        match is_ours(record.metadata()) {
            true => self.line(&text),
            false => text.lines().for_each(|line| self.line(line)),
        }
    }

    fn flush(&self) {}
}

/// Standard output: on a terminal, no control character acts but line break and tab.
pub type Stdout = Escaping<io::Stdout>;

/// Standard output.
pub fn stdout() -> Stdout {
    let out = io::stdout();
    Escaping { is_terminal: out.is_terminal(), out, pending: Vec::new() }
}

/// Escapes what acts on a terminal, if it is one.
pub struct Escaping<W> {
    out: W,
    is_terminal: bool,
    /// The beginning of a character whose other bytes have not been written yet.
    pending: Vec<u8>,
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.is_terminal {
            return self.out.write(bytes);
        }
        let mut whole = std::mem::take(&mut self.pending);
        whole.extend_from_slice(bytes);
        let mut shown = String::with_capacity(whole.len());
        let mut chunks = whole.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            chunk.valid().chars().for_each(|c| push_shown(c, &mut shown));
            let broken = chunk.invalid();
            if chunks.peek().is_none() && std::str::from_utf8(broken).is_err_and(|e| e.error_len().is_none())
            {
                self.pending = broken.to_vec();
            } else {
                broken.iter().for_each(|byte| shown += &format!("\\x{byte:02x}"));
            }
        }
        self.out.write_all(shown.as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::Escaping;

    #[test]
    fn nothing_acts_on_a_terminal() {
        let cases: [(&[u8], &str); 5] = [
            (b"a story\n\twith a tab\n", "a story\n\twith a tab\n"),
            (b"\x1b]0;title\x07\x1b[2J\r", "\\u{1b}]0;title\\u{7}\\u{1b}[2J\\r"),
            ("né 猫\u{9b}m\u{202e}x".as_bytes(), "né 猫\\u{9b}m\\u{202e}x"),
            (b"\x9b31m \xff\xc3(", "\\x9b31m \\xff\\xc3("),
            (b"\xe7\x8c", ""),
        ];
        for (bytes, expected) in cases {
            // In one piece, and byte by byte.
            for step in [bytes.len(), 1] {
                let mut out = Escaping { out: Vec::new(), is_terminal: true, pending: Vec::new() };
                bytes.chunks(step).for_each(|piece| out.write_all(piece).expect("memory"));
                assert_eq!(String::from_utf8(out.out).expect("UTF-8"), expected);
            }
        }
    }
}
