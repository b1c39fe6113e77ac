//! `wginfer bench`: measures kernels and models, and compares reports.

mod compare;
mod guest;
mod kernels;
mod model;

use std::io::Write;

use super::failure::Failure;

/// Measure kernels and models on this device, and compare reports
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Kernels(kernels::Args),
    Model(model::Args),
    Guest(guest::Args),
    Compare(compare::Args),
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    match &args.command {
        Command::Kernels(args) => kernels::run(args, out),
        Command::Model(args) => model::run(args, out),
        Command::Guest(args) => guest::run(args, out),
        Command::Compare(args) => compare::run(args, out),
    }
}
