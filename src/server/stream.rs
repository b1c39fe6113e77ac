//! Server-sent events, and what is in all answers: ids and times.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;

use super::error::ApiError;

/// Time between comments that keep a connection open while a prompt is computed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Sends `first`, then what `step` makes, until it gives no next state; then `[DONE]`. An error is sent as an event. When
/// the client goes away, the state is dropped.
pub fn respond<S, F, R>(first: VecDeque<Event>, state: S, step: F) -> Response
where
    S: Send + 'static,
    F: Fn(S) -> R + Clone + Send + 'static,
    R: Future<Output = Result<(Vec<Event>, Option<S>), ApiError>> + Send,
{
    let events = unfold((first, Some(state), true), move |(mut ready, mut state, is_open)| {
        let step = step.clone();
        async move {
            loop {
                if let Some(event) = ready.pop_front() {
                    return Some((Ok::<_, Infallible>(event), (ready, state, is_open)));
                }
                let Some(current) = state.take() else {
                    let done = Event::default().data("[DONE]");
                    return is_open.then_some((Ok(done), (ready, None, false)));
                };
                match step(current).await {
                    Ok((events, next)) => (ready, state) = (events.into(), next),
                    Err(error) => {
                        let body = serde_json::to_string(&error.body()).unwrap_or_default();
                        ready.push_back(Event::default().data(body));
                    }
                }
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

/// An id that no other answer has.
pub fn id(prefix: &str) -> String {
    static HASH: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{:016x}{:08x}", HASH.hash_one(n), n as u32)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}
