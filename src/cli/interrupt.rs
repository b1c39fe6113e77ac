//! Ctrl-C: it stops the answer that is being written; if there is none, the program.

use std::sync::atomic::{AtomicU8, Ordering};

use super::failure::Failure;

const IDLE: u8 = 0;
const WRITING: u8 = 1;
const STOPPING: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(IDLE);

/// 128 + SIGINT, as shells report it.
const EXIT_CODE: i32 = 130;

/// Catches Ctrl-C from now on.
pub fn init() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        let stopped = STATE.compare_exchange(WRITING, STOPPING, Ordering::SeqCst, Ordering::SeqCst);
        // There is nothing to stop, or this is the second Ctrl-C.
        if stopped.is_err() {
            std::process::exit(EXIT_CODE);
        }
    })
    .map_err(|e| Failure::failed(format!("ctrl-c cannot be caught: {e}")))
}

/// While this lives, Ctrl-C sets [`Writing::is_stopped`].
pub struct Writing(());

impl Writing {
    pub fn begin() -> Writing {
        STATE.store(WRITING, Ordering::SeqCst);
        Writing(())
    }

    pub fn is_stopped(&self) -> bool {
        STATE.load(Ordering::SeqCst) == STOPPING
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        STATE.store(IDLE, Ordering::SeqCst);
    }
}
