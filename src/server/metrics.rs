//! `/metrics`: counts and times in the text format of Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use wginfer::engine::{Timings, Usage};

use super::Server;
use super::model::State as ModelState;

/// Upper bounds in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// A histogram of seconds.
#[derive(Default)]
struct Histogram {
    counts: [AtomicU64; SECONDS.len()],
    n: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    fn add(&self, seconds: f64) {
        for (bound, count) in SECONDS.iter().zip(&self.counts) {
            if seconds <= *bound {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.n.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add((seconds * 1e6) as u64, Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        for (bound, count) in SECONDS.iter().zip(&self.counts) {
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {}", count.load(Ordering::Relaxed));
        }
        let n = self.n.load(Ordering::Relaxed);
        let sum = self.sum_us.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {n}\n{name}_sum {sum}\n{name}_count {n}");
    }
}

/// What the server counts.
#[derive(Default)]
pub struct Metrics {
    /// By route and status.
    requests: Mutex<BTreeMap<(String, u16), u64>>,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    time_to_first_token: Histogram,
    time_per_output_token: Histogram,
    duration: Histogram,
}

impl Metrics {
    /// Counts an answer.
    pub fn answered(&self, usage: &Usage, timings: &Timings) {
        let add = |counter: &AtomicU64, n: usize| counter.fetch_add(n as u64, Ordering::Relaxed);
        add(&self.prompt_tokens, usage.prompt_tokens);
        add(&self.cached_tokens, usage.cached_tokens);
        add(&self.completion_tokens, usage.completion_tokens);
        self.time_to_first_token.add(timings.time_to_first_token_ms / 1e3);
        if usage.completion_tokens > 1 {
            self.time_per_output_token.add(timings.time_per_output_token_median_ms / 1e3);
        }
    }
}

/// Counts a request, and the time until its answer begins.
pub async fn count(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    // Not the path itself: there are as many of those as clients like.
    let route = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_string();
    let begin = Instant::now();
    let response = next.run(request).await;
    server.metrics.duration.add(begin.elapsed().as_secs_f64());
    let mut requests = server.metrics.requests.lock().unwrap_or_else(PoisonError::into_inner);
    *requests.entry((route, response.status().as_u16())).or_default() += 1;
    drop(requests);
    response
}

/// All metrics.
pub async fn metrics(State(server): State<Arc<Server>>) -> Response {
    let mut out = String::new();
    let m = &server.metrics;
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
