//! Layer 6: the command line. Standard output carries the result alone; everything else is said through
//! `log`, whose lines `terminal` writes to standard error.

mod answer;
mod args;
mod bench;
mod chat;
mod classify;
mod devices;
mod document;
mod embed;
mod failure;
mod format;
mod generate;
mod inspect;
mod interrupt;
mod logits;
mod model;
mod plot;
mod prompt;
mod sampling;
mod score;
mod summarize;
mod table;
mod terminal;
mod transcribe;
mod tune;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Args, Command};
use failure::Failure;

/// Parses the arguments, runs the command and says how it went: 0 done, 1 failed, 2 wrong usage.
pub fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(shown) => {
            // Help and version come this way too. Where they cannot be printed nobody reads them.
            let _ = shown.print();
            return if shown.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    hush_device_select();
    terminal::init(args.quiet, args.verbose);
    match run(&args) {
        Ok(()) | Err(Failure::ClosedPipe) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal::error(&failure);
            failure.exit_code()
        }
    }
}

fn run(args: &Args) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match &args.command {
        Command::Generate(args) => generate::run(args, &mut out)?,
        Command::Chat(args) => chat::run(args, &mut out)?,
        Command::Embed(args) => embed::run(args, &mut out)?,
        Command::Transcribe(args) => transcribe::run(args, &mut out)?,
        Command::Answer(args) => answer::run(args, &mut out)?,
        Command::Summarize(args) => summarize::run(args, &mut out)?,
        Command::Classify(args) => classify::run(args, &mut out)?,
        Command::Score(args) => score::run(args, &mut out)?,
        Command::Logits(args) => logits::run(args, &mut out)?,
        Command::Inspect(args) => inspect::run(args, &mut out)?,
        Command::Devices(args) => devices::run(args, &mut out)?,
        Command::Bench(command) => bench::run(command, &mut out)?,
        Command::Tune(args) => tune::run(args, &mut out)?,
        Command::Completions { shell } => {
            // Into memory first: the generator panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "wginfer", &mut script);
            out.write_all(&script)?;
        }
    }
    Ok(out.flush()?)
}

/// Mesa's Vulkan layer that orders devices asks the desktop which one it uses, and without a desktop complains
/// on standard error, twice a run. Without one it has nothing to ask, so it is switched off.
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
