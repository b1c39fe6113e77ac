//! Layer 0: calls into libraries that may panic on the contents of a file.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    /// Whether this thread is inside [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread would be caught and returned as an error: for the panic hook of a program, which need
/// not report it. The library leaves the hook alone, because it belongs to the whole process.
pub fn panic_is_caught() -> bool {
    // The flag is gone while a thread ends.
    GUARDED.try_with(Cell::get).unwrap_or(false)
}

/// Calls a library that may panic, and returns the panic's message as an error.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let outer = GUARDED.replace(true);
    // State that a panic may have left inconsistent is not used again.
    let result = catch_unwind(AssertUnwindSafe(call));
    GUARDED.set(outer);
    result.map_err(message)
}

fn message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => payload.downcast::<&str>().map_or("a panic".into(), |message| message.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panics_become_errors() {
        assert_eq!(guarded(|| 3), Ok(3));
        assert_eq!(guarded(|| -> u8 { panic!("index {}", 7) }), Err("index 7".into()));
        assert_eq!(guarded(|| -> u8 { panic!("plain") }), Err("plain".into()));
        assert_eq!(guarded(|| guarded(|| -> u8 { panic!("inner") })), Ok(Err("inner".into())));
        assert_eq!((guarded(panic_is_caught), panic_is_caught()), (Ok(true), false));
    }
}
