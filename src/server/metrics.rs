//! `/metrics`: counts and times in the text format of Prometheus.

use std::fmt::Write;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Server;
use super::model::State as ModelState;

/// Counts a request, and the time until its answer begins.
pub async fn count(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    // Not the path itself: there are as many of those as clients like.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_string();
    let begin = Instant::now();
    let response = next.run(request).await;
    server.counters.duration.add(begin.elapsed().as_secs_f64());
    let mut requests = server.counters.requests.lock().unwrap_or_else(PoisonError::into_inner);
    *requests.entry((route, response.status().as_u16())).or_default() += 1;
    drop(requests);
    response
}

/// All metrics.
pub async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let mut out = String::new();
    let m = &server.counters;
    let _ = writeln!(
        out,
        "# HELP wginfer_requests_total Requests, by route and status.\n# TYPE wginfer_requests_total counter"
    );
    for ((route, status), n) in m.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let _ = writeln!(out, "wginfer_requests_total{{route=\"{route}\",status=\"{status}\"}} {n}");
    }
    let counters = [
        ("wginfer_prompt_tokens_total", "Tokens of prompts, those in the cache included.", &m.prompt_tokens),
        ("wginfer_cached_tokens_total", "Tokens of prompts that were in the cache.", &m.cached_tokens),
        ("wginfer_completion_tokens_total", "Generated tokens.", &m.completion_tokens),
    ];
    for (name, help, counter) in counters {
        let n = counter.load(Ordering::Relaxed);
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {n}");
    }
    m.time_to_first_token.write(
        &mut out,
        "wginfer_time_to_first_token_seconds",
        "From the submission of a prompt to the first token.",
    );
    m.time_per_output_token.write(
        &mut out,
        "wginfer_time_per_output_token_seconds",
        "Median time between the tokens of an answer.",
    );
    m.duration.write(
        &mut out,
        "wginfer_request_duration_seconds",
        "From a request to the beginning of its answer.",
    );
    let _ = writeln!(
        out,
        "# HELP wginfer_open_requests Requests that run or wait.\n# TYPE wginfer_open_requests gauge"
    );
    for model in &server.models {
        let _ = writeln!(out, "wginfer_open_requests{{model={:?}}} {}", model.id, model.n_open());
    }
    let _ = writeln!(
        out,
        "# HELP wginfer_model_ready Whether a model is on the device.\n# TYPE wginfer_model_ready gauge"
    );
    for model in &server.models {
        let is_ready = u8::from(model.state() == ModelState::Ready);
        let _ = writeln!(out, "wginfer_model_ready{{model={:?}}} {is_ready}", model.id);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], out).into_response()
}
