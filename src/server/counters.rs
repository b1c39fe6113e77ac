//! What the server counts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use wginfer::engine::{Timings, Usage};

/// Upper bounds in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

/// A histogram of seconds.
#[derive(Default)]
pub struct Histogram {
    counts: [AtomicU64; SECONDS.len()],
    n: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn add(&self, seconds: f64) {
        for (bound, count) in SECONDS.iter().zip(&self.counts) {
            if seconds <= *bound {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.n.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add((seconds * 1e6) as u64, Ordering::Relaxed);
    }

    pub fn write(&self, out: &mut String, name: &str, help: &str) {
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
pub struct Counters {
    /// By route and status.
    pub requests: Mutex<BTreeMap<(String, u16), u64>>,
    pub prompt_tokens: AtomicU64,
    pub cached_tokens: AtomicU64,
    pub completion_tokens: AtomicU64,
    pub time_to_first_token: Histogram,
    pub time_per_output_token: Histogram,
    pub duration: Histogram,
}

impl Counters {
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
