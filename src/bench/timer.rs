//! Timing what a recorder records.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::stats::sorted;
use crate::gpu::{Gpu, GpuError, ReadbackRing, Recorder, Tensor};

/// What a time was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Timestamps that the device writes before and after the work.
    Device,
    /// The host's clock around submission and wait, for devices without timestamps: it includes what the
    /// submission costs.
    Host,
}

impl Clock {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Clock::Device => "device",
            Clock::Host => "host",
        }
    }
}

/// Records one run of what is timed; the number says which run, for those that rotate buffers.
pub type Launch<'a> = dyn Fn(&mut Recorder, usize) + 'a;

/// Most runs in one recording.
const MOST_RUNS: usize = 1024;
/// Most samples: more do not change a median.
const MOST_SAMPLES: usize = 200;

/// Runs what is recorded and says how long it took, on a device of our own.
pub struct Timer {
    gpu: Gpu,
    ring: ReadbackRing,
    /// Something to read back, so that the timestamps come along.
    word: Tensor,
    next_run: usize,
}

impl Timer {
    /// A timer for one device.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu) -> Result<Timer, GpuError> {
        let ring = ReadbackRing::new(gpu, "timer", 1, 4)?;
        Ok(Timer { gpu: gpu.clone(), ring, word: gpu.dummy()?, next_run: 0 })
    }

    /// What it reads.
    pub fn clock(&self) -> Clock {
        if self.gpu.caps().timestamps { Clock::Device } else { Clock::Host }
    }

    /// Milliseconds that `n_runs` runs in one recording take.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn time(&mut self, rec: &mut Recorder, launch: &Launch<'_>, n_runs: usize) -> Result<f64, GpuError> {
        rec.start_timing();
        for _ in 0..n_runs {
            launch(rec, self.next_run);
            self.next_run += 1;
        }
        let pending = rec.read(&mut self.ring, &[(&self.word, 0, 4)]);
        let buffers = rec.finish()?;
        let begin = Instant::now();
        self.gpu.submit(buffers)?;
        self.gpu.wait()?;
        let host_ms = begin.elapsed().as_secs_f64() * 1e3;
        let arrived = pending.and_then(|pending| self.ring.take(pending));
        Ok(arrived.and_then(|a| a.device_ms).filter(|ms| *ms > 0.0).unwrap_or(host_ms))
    }

    /// Microseconds a run, sorted: samples of several runs each for about `budget`, at least two.
    pub(super) fn samples(
        &mut self,
        rec: &mut Recorder,
        launch: &Launch<'_>,
        budget: Duration,
    ) -> Result<Vec<f64>, GpuError> {
        let begin = Instant::now();
        // The first run warms caches and clocks.
        let first_ms = self.time(rec, launch, 1)?;
        // About sixteen samples, each long enough that the ends of a recording do not show.
        let n_runs =
            (budget.as_secs_f64() * 1e3 / 16.0 / first_ms.max(1e-4)).clamp(1.0, MOST_RUNS as f64) as usize;
        let mut us = Vec::new();
        while us.len() < 2 || (begin.elapsed() < budget && us.len() < MOST_SAMPLES) {
            us.push(self.time(rec, launch, n_runs)? * 1e3 / n_runs as f64);
        }
        Ok(sorted(us))
    }
}
