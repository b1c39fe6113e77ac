//! `wginfer completions`: completion scripts for shells.

use std::io::Write;

use super::failure::Failure;

/// Write a completion script for a shell
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

/// Writes the script for `program` with all its commands.
pub fn run(args: &Args, mut program: clap::Command, out: &mut dyn Write) -> Result<(), Failure> {
    // Into memory first: the generator panics if it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "wginfer", &mut script);
    Ok(out.write_all(&script)?)
}
