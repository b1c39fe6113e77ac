//! The command line of wginfer: parse, run, exit code. It sees the library's public API alone.
#![deny(unsafe_code)]

mod cli;

fn main() -> std::process::ExitCode {
    #[cfg(target_os = "linux")]
    quiet_headless_drivers();
    cli::main()
}

/// Without a session, Mesa's choice of a device looks for a display in `XDG_RUNTIME_DIR` and complains on standard
/// error that there is no such variable; any folder contents it.
#[cfg(target_os = "linux")]
fn quiet_headless_drivers() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: no other thread runs yet.
        #[allow(unsafe_code)]
        unsafe {
            std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir());
        }
    }
}
