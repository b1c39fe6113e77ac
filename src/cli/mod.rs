//! Layer 6: the command line. Standard output carries only the result; everything else goes through `log`, whose lines
//! `terminal` writes to standard error.
//!
//! Exit codes: 0 done, 1 failed, 2 wrong usage; 130, 143 and 129 after SIGINT (Ctrl-C), SIGTERM and SIGHUP, which end
//! every command alike (`interrupt`).
//!
//! Texts of files and models can hold characters on which a terminal acts. They are escaped on standard error, in tables
//! and other reports for people, and in everything that goes to a terminal. JSON, CSV and generated text that goes to a
//! pipe or a file are exact.
//!
//! A command is a file with its arguments (`Args`) and what it does (`run`), and a line in the table below. What
//! commands share is in files that import no command.

mod answer;
mod args;
mod bench;
mod chat;
mod classify;
mod completions;
mod devices;
mod doctor;
mod document;
mod download;
mod embed;
mod encode;
mod estimate;
mod failure;
mod format;
mod generate;
mod inspect;
mod interrupt;
mod json;
mod labels;
mod list;
mod logits;
mod measure;
mod model;
mod names;
mod output;
mod plot;
mod prompt;
mod pull;
mod rerank;
mod rm;
mod rows;
mod sampling;
mod score;
#[cfg(feature = "server")]
mod serve;
mod summarize;
mod table;
mod terminal;
mod transcribe;
mod tune;
mod variants;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use failure::Failure;
use interrupt::Outputs;
use output::Out;

/// The package's version and that of the `wgpu` in `Cargo.lock`; a test compares them.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (wgpu 30.0.1)");

const EXAMPLES: &str = "Examples:
  wginfer generate \"Once upon a time\"
  wginfer chat --model Qwen/Qwen3-0.6B
  wginfer transcribe --model ~/models/whisper-small talk.mp3
  wginfer answer -f story.txt \"Who found the ball?\"
  wginfer embed --model ~/models/all-MiniLM-L6-v2 --similarity \"a cat\" \"a kitten\"
  wginfer devices

MODEL is a `.gguf` file, a folder in Hugging Face layout (`config.json`, `model.safetensors`, `tokenizer.json`), or a name
on the Hugging Face hub, which is downloaded once: `owner/name`, `owner/name:Q4_K_M`. Default: the small demonstration
model in the binary.";

/// Run language models, Whisper and text encoders on any GPU
#[derive(Parser)]
#[command(name = "wginfer", version = VERSION, about, after_help = EXAMPLES, max_term_width = 100)]
struct Program {
    #[command(subcommand)]
    command: Command,

    /// Print only errors
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,

    /// Print more on standard error
    #[arg(long, short, global = true)]
    verbose: bool,
}

/// Declares the subcommands, each in its file.
macro_rules! commands {
    ($($(#[$when:meta])* $name:ident($file:ident),)+) => {
        #[derive(Subcommand)]
        enum Command {
            $($(#[$when])* $name(Box<$file::Args>),)+
            Completions(completions::Args),
        }

        impl Command {
            fn run(&self, out: &mut dyn Write) -> Result<(), Failure> {
                match self {
                    $($(#[$when])* Command::$name(args) => $file::run(args, out),)+
                    Command::Completions(args) => completions::run(args, Program::command(), out),
                }
            }
        }
    };
}

// In the order of the help.
commands! {
    Generate(generate),
    Chat(chat),
    Answer(answer),
    Summarize(summarize),
    Classify(classify),
    Score(score),
    Embed(embed),
    Rerank(rerank),
    Transcribe(transcribe),
    #[cfg(feature = "server")]
    Serve(serve),
    Logits(logits),
    Inspect(inspect),
    Estimate(estimate),
    Pull(pull),
    List(list),
    Rm(rm),
    Devices(devices),
    Doctor(doctor),
    Variants(variants),
    Bench(bench),
    Tune(tune),
}

/// Parses the arguments and runs the command. Exit codes: 0 done, 1 failed, 2 wrong usage, 128 plus the number of a
/// signal.
pub fn main() -> ExitCode {
    hush_device_select();
    hush_caught_panics();
    let caught = interrupt::init(Outputs {
        end_line: output::end_line,
        leave_all: output::leave_all,
        n_written: output::n_written,
    });
    let program = match Program::try_parse() {
        Ok(program) => program,
        Err(shown) => {
            // Help and version take this path too. If they cannot be printed, nobody reads them.
            // Errors repeat arguments, among them names of files, with their escapes.
            match std::env::args_os().any(|arg| arg.to_string_lossy().contains(format::is_acting)) {
                true => terminal::lines(&shown.render().to_string()),
                false => drop(shown.print()),
            }
            return if shown.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    terminal::init(program.quiet, program.verbose);
    if let Err(error) = caught {
        log::warn!("signals cannot be caught, and leave nothing of unfinished output: {error}");
    }
    let mut out = Out::new();
    let done = program.command.run(&mut out);
    let flushed = out.finish();
    match done.and_then(|()| Ok(flushed?)) {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal::error(&failure);
            failure.exit_code()
        }
    }
}

/// Reports no panic that becomes an error.
fn hush_caught_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !wginfer::panic_is_caught() {
            report(info);
        }
    }));
}

/// Switches Mesa's device-select layer off if there is no desktop. The layer asks the desktop which device it uses;
/// with no desktop to ask, it prints an error twice per run.
#[cfg(target_os = "linux")]
fn hush_device_select() {
    let of_use = ["WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "DISPLAY", "MESA_VK_DEVICE_SELECT", "DRI_PRIME"];
    if of_use.iter().all(|name| std::env::var_os(name).is_none()) {
        // SAFETY: no other thread runs yet.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("NODEVICE_SELECT", "1");
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn hush_device_select() {}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn definitions_are_consistent() {
        super::Program::command().debug_assert();
    }

    /// Every command has its result as JSON.
    #[test]
    fn every_command_has_json() {
        fn leaves(command: &clap::Command, all: &mut Vec<clap::Command>) {
            match command.has_subcommands() {
                true => command.get_subcommands().for_each(|command| leaves(command, all)),
                false => all.push(command.clone()),
            }
        }
        let mut all = Vec::new();
        leaves(&super::Program::command(), &mut all);
        assert!(all.len() > 14);
        let has_json = |c: &clap::Command| c.get_arguments().any(|arg| arg.get_long() == Some("json"));
        let lack: Vec<&str> = all.iter().filter(|c| !has_json(c)).map(|c| c.get_name()).collect();
        assert_eq!(lack.into_iter().filter(|name| *name != "serve").collect::<Vec<_>>(), ["completions"]);
    }

    #[test]
    fn version_names_the_wgpu_in_use() {
        let lock = include_str!("../../Cargo.lock");
        let (_, entry) = lock.split_once("name = \"wgpu\"\nversion = \"").expect("wgpu is locked");
        let (version, _) = entry.split_once('"').expect("a version");
        assert!(super::VERSION.ends_with(&format!("(wgpu {version})")), "{} is locked", version);
        assert_eq!(wginfer::bench::WGPU_VERSION, version, "what reports say");
    }
}
