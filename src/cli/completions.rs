//! `wginfer completions`: what a shell offers after the tab key.

use std::io::Write;

use super::failure::Failure;

/// Write a completion script for a shell
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

/// Writes the script for `program`, which is all commands together.
pub fn run(args: &Args, mut program: clap::Command, out: &mut dyn Write) -> Result<(), Failure> {
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "wginfer", &mut script);
    Ok(out.write_all(&script)?)
}
