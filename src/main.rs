//! The command line of wginfer: parse, run, exit code. It sees the library's public API alone.
#![deny(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
