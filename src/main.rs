//! The command line of wginfer, and the server: parse, run, exit code. They use only the public API of the library.
#![deny(unsafe_code)]

mod cli;
#[cfg(feature = "server")]
mod server;

fn main() -> std::process::ExitCode {
    cli::main()
}
