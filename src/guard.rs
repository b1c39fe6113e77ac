//! Layer 0: calls into libraries that may panic on the contents of a file.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// Whether this thread is inside [`guarded`].
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Calls a library that may panic, and returns the panic's message as an error. Nothing is printed.
///
/// The first call replaces the panic hook of the process by one that passes on every panic except those in here.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            // The flag is gone while a thread ends.
            if !GUARDED.try_with(Cell::get).unwrap_or(false) {
                before(info);
            }
        }));
    });
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
        assert!(!GUARDED.get());
    }
}
