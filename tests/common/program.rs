//! A run of the program, as a user starts it.
#![allow(dead_code)] // each test binary uses its own part of this

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

pub struct Run {
    pub command: Command,
    pub stdin: Vec<u8>,
}

pub struct Done {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

/// The program with the arguments in `line`, separated by spaces, without the user's settings.
pub fn wginfer(line: &str) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wginfer"));
    with_signals(&mut command);
    command.args(line.split_whitespace());
    command.env_remove("WGINFER_MODEL").env_remove("WGINFER_GPU");
    command.env("WGINFER_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    // Not the user's models and token, and not the network.
    for name in ["HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"] {
        command.env_remove(name);
    }
    command.env("HF_HOME", concat!(env!("CARGO_TARGET_TMPDIR"), "/hf")).env("HF_HUB_OFFLINE", "1");
    Run { command, stdin: Vec::new() }.piped()
}

impl Run {
    /// With pipes as standard streams.
    pub fn piped(mut self) -> Run {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self
    }

    /// One more argument, which may contain spaces.
    pub fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Run {
        self.command.arg(arg);
        self
    }

    pub fn model(self, dir: &Path) -> Run {
        self.arg("--model").arg(dir)
    }

    pub fn env(mut self, name: &str, value: &str) -> Run {
        self.command.env(name, value);
        self
    }

    pub fn stdin(mut self, bytes: &[u8]) -> Run {
        self.stdin = bytes.to_vec();
        self
    }

    pub fn spawn(mut self) -> Child {
        let mut child = self.command.spawn().expect("the program starts");
        // A program that does not read to the end closes the pipe; that is no error here.
        let _ = child.stdin.take().expect("a pipe").write_all(&self.stdin);
        child
    }

    pub fn done(self) -> Done {
        let output = self.spawn().wait_with_output().expect("the program ends");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Done { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }

    /// Standard output of a run that succeeds.
    #[track_caller]
    pub fn out(self) -> String {
        self.succeeds().out
    }

    #[track_caller]
    pub fn succeeds(self) -> Done {
        let done = self.done();
        assert_eq!(done.code, Some(0), "{}", done.err);
        done
    }

    #[track_caller]
    pub fn json(self) -> Value {
        serde_json::from_str(&self.out()).expect("JSON")
    }

    /// Fails with `code`, nothing on standard output, and one line that names `what`, with a hint at most.
    #[track_caller]
    pub fn fails(self, code: i32, what: &str) {
        let done = self.done();
        assert_eq!(done.code, Some(code), "{}", done.err);
        assert_eq!(done.out, "");
        assert!(!done.err.contains("panicked"), "{}", done.err);
        let lines: Vec<&str> = done.err.lines().collect();
        let error = lines.iter().rposition(|l| l.starts_with("error: ")).expect("a line with the error");
        assert!(lines[error].contains(what), "`{what}` is not in: {}", lines[error]);
        let rest = &lines[error + 1..];
        assert!(rest.len() <= 1 && rest.iter().all(|l| l.starts_with("hint: ")), "{}", done.err);
    }

    /// Fails with code 2 in the parser of arguments, with nothing on standard output.
    #[track_caller]
    pub fn fails_to_parse(self) {
        let done = self.done();
        assert_eq!((done.code, done.out.as_str()), (Some(2), ""), "{}", done.err);
    }
}

/// The signals that end the program, as `kill` names them, with the exit codes.
pub const SIGNALS: [(&str, i32); 3] = [("INT", 130), ("TERM", 143), ("HUP", 129)];

/// Sends a signal to a program.
#[track_caller]
pub fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
    assert!(sent.expect("`kill` runs").success());
}

/// Gives the program the default action for signals. It would inherit those that are ignored here: tests may run under
/// `nohup`, or as a shell's background job.
pub fn with_signals(command: &mut Command) {
    #[cfg(unix)]
    {
        let by_default = || {
            for signal in [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
                // SAFETY: `signal` may be called between fork and exec.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            Ok(())
        };
        // SAFETY: nothing but that happens there.
        unsafe { std::os::unix::process::CommandExt::pre_exec(command, by_default) };
    }
    #[cfg(not(unix))]
    let _ = command;
}

/// Waits until something is so, but not for ever.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a program has a signal, by its number, in one of the masks of its status: `SigCgt`, `SigIgn`.
#[cfg(target_os = "linux")]
pub fn has_signal(child: &Child, mask: &str, number: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap_or(":0");
    let mask = u64::from_str_radix(line.trim_start_matches(':').trim(), 16).expect("a mask");
    mask & (1 << (number - 1)) != 0
}

/// Reads lines until one contains `text`, and returns what was read.
#[track_caller]
pub fn read_until(reader: &mut impl BufRead, text: &str) -> String {
    let mut read = String::new();
    while !read.contains(text) {
        assert!(reader.read_line(&mut read).expect("text") > 0, "`{text}` is not in: {read}");
    }
    read
}
