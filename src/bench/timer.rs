//! Times recordings.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::stats::sorted;
use crate::gpu::{Gpu, GpuError, ReadbackRing, Recorder, Tensor};

/// The clock of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// Timestamps that the device writes before and after the work.
    Device,
    /// The host's clock around submission and wait, for devices without timestamps. Includes the cost of the
    /// submission.
    Host,
}

impl Clock {
    /// `device` or `host`.
    pub fn as_str(self) -> &'static str {
        match self {
            Clock::Device => "device",
            Clock::Host => "host",
        }
    }
}

/// Records one run. The number of the run selects the buffers if they rotate.
pub type Launch<'a> = dyn Fn(&mut Recorder, usize) + 'a;

/// Most runs per recording.
const MOST_RUNS: usize = 1024;
/// Most samples: more do not change the median.
const MOST_SAMPLES: usize = 200;

/// Measures the time of recordings, on a device of our own.
pub struct Timer {
    gpu: Gpu,
    ring: ReadbackRing,
    /// A word to read back, because timestamps are read back with results.
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

    /// The clock that it reads.
    pub fn clock(&self) -> Clock {
        if self.gpu.caps().timestamps { Clock::Device } else { Clock::Host }
    }

    /// Milliseconds of `n_runs` runs in one recording.
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

    /// Sorted samples of the microseconds per run, at least two, measured for about `budget`.
    pub(super) fn samples(
        &mut self,
        rec: &mut Recorder,
        launch: &Launch<'_>,
        budget: Duration,
    ) -> Result<Vec<f64>, GpuError> {
        let begin = Instant::now();
        // The first run warms caches and clocks.
        let first_ms = self.time(rec, launch, 1)?;
        // About sixteen samples, each long enough to make the overhead of a recording negligible.
        let n_runs =
            (budget.as_secs_f64() * 1e3 / 16.0 / first_ms.max(1e-4)).clamp(1.0, MOST_RUNS as f64) as usize;
        let mut us = Vec::new();
        while us.len() < 2 || (begin.elapsed() < budget && us.len() < MOST_SAMPLES) {
            us.push(self.time(rec, launch, n_runs)? * 1e3 / n_runs as f64);
        }
        Ok(sorted(us))
    }
}
