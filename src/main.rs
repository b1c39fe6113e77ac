//! The command line of wginfer: parse, run, exit code. It uses only the public API of the library.
#![deny(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
