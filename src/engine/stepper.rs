//! The stepper runs everything that is recorded layer by layer: steps of an engine, audio clips, batches of texts,
//! uploads of weights.
//!
//! A [`Machine`] decides what comes next and records it. The [`Stepper`] cuts that to a budget, keeps at most two
//! slices in flight, and passes results back. Only [`Stepper::pump`] waits.

use std::ops::Range;
use std::time::Duration;

use super::EngineError;
use super::self_test::{Trials, distrusted};
use crate::dtype::Dtype;
use crate::gpu::{Flight, Gpu, GpuError, Landed, MOST_IN_FLIGHT, Portable, Recorder, Tensor};

/// Device time per submission of [`Stepper::pump`]: longer submissions starve a desktop's compositor.
pub(super) const SLICE: Duration = Duration::from_millis(20);

/// A source of work that is recorded layer by layer.
pub(super) trait Machine {
    /// One unit of work, from its planning to its results.
    type Work;
    /// Decides what comes next. `None` if there is nothing to do.
    fn next(&mut self) -> Option<Self::Work>;
    /// The size of some work.
    fn size(&self, work: &Self::Work) -> Size;
    /// Records some layers of the work; with the first layer also what comes before it, with the last what follows.
    /// Returns the byte ranges to read back, which are none before the last layer.
    ///
    /// # Errors
    /// A failed recording. The work is dropped.
    fn record(
        &mut self,
        rec: &mut Recorder,
        work: &mut Self::Work,
        layers: Range<usize>,
    ) -> Result<Vec<ReadRange>, EngineError>;
    /// Handles the results of work whose last layer has run.
    fn landed(&mut self, work: Self::Work, bytes: &[u8]);
    /// Another set of operations runs portable variants from the next work on: `rec` knows which.
    fn variants_changed(&mut self, _rec: &Recorder) {}
}

/// A byte range to read back: tensor, offset, bytes.
pub(super) type ReadRange = (Tensor, u64, u64);

/// The size of some work, on which its time depends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub kind: Kind,
    pub n_layers: usize,
    /// The time of a layer is proportional to this.
    pub n_units: usize,
}

/// Kinds of work. Each has its own moving average of times.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A step of single rows: reading the weights takes most of the time, whatever their number.
    Decode,
    /// A step with prompt rows; a unit is a row.
    Prompt,
    /// The audio encoder over a clip.
    Clip,
    /// A batch of texts; a unit is a row.
    Texts,
    /// Weights; a layer is a piece.
    Upload,
}

const N_KINDS: usize = 5;

/// A recorded part of some work, in flight.
struct Slice<W> {
    /// The work that it completes.
    done: Option<W>,
    kind: Kind,
    /// Layers times units.
    n: usize,
}

/// Cuts the work of a [`Machine`] into slices.
pub(super) struct Stepper<W> {
    gpu: Gpu,
    rec: Recorder,
    flight: Flight<Slice<W>>,
    /// The work that is being recorded, and its next layer.
    recording: Option<(W, usize)>,
    /// Moving averages for each kind: milliseconds per layer and unit.
    ms: [f64; N_KINDS],
    /// A word to read back if there is nothing else, so that the end of a slice is noticed.
    mark: Tensor,
    most_in_flight: usize,
    /// The test of variants that the work will use when it has ended.
    self_test: Option<Trials>,
    /// The error of a recording, for the next call: this one returned the buffers that were recorded before it.
    failed: Option<EngineError>,
}

impl<W> Stepper<W> {
    /// A stepper for work that reads back up to `max_bytes` at a time. With `run_ahead`, a slice is recorded while
    /// another one runs.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu, max_bytes: u64, run_ahead: bool) -> Result<Self, GpuError> {
        Ok(Stepper {
            gpu: gpu.clone(),
            rec: Recorder::new(gpu)?,
            flight: Flight::new(gpu, max_bytes.max(4))?,
            recording: None,
            // Initial guesses, so high that a slice has one layer until something has been measured.
            ms: [SLICE.as_secs_f64() * 1e3; N_KINDS],
            mark: Tensor::zeros(gpu, "mark", [1, 1], Dtype::U32)?,
            most_in_flight: if run_ahead { MOST_IN_FLIGHT } else { 1 },
            self_test: None,
            failed: None,
        })
    }

    pub fn recorder(&mut self) -> &mut Recorder {
        &mut self.rec
    }

    /// Begins when the kernels are compiled: operations with variants that did not compile run portable ones. Takes over a
    /// self-test, which may have ended. Its trials are recorded along with the work; the first work after its end uses what
    /// it found.
    pub fn begin<M: Machine<Work = W>>(&mut self, machine: &mut M, self_test: Option<Trials>) {
        if self.rec.add_portable(distrusted(&self.gpu)) {
            machine.variants_changed(&self.rec);
        }
        self.self_test = self_test;
    }

    /// Whether nothing is being recorded or in flight.
    pub fn is_idle(&self) -> bool {
        self.recording.is_none() && self.flight.is_empty()
    }

    /// Checks that the device works.
    ///
    /// # Errors
    /// [`EngineError::Gpu`].
    pub fn check(&self) -> Result<(), EngineError> {
        Ok(self.gpu.check_alive()?)
    }

    /// The works that were recorded, at least in part, and have no results yet, in their order. The device does no more
    /// work.
    pub fn take_back(mut self) -> Vec<W> {
        let mut works: Vec<W> = self.flight.abandon().filter_map(|slice| slice.done).collect();
        works.extend(self.recording.take().map(|(work, _)| work));
        works
    }

    /// Records work for about `budget` of device time, at least one layer, and returns the command buffers to submit,
    /// in order. Empty if no more slices may be in flight or there is nothing to do. Never waits.
    ///
    /// # Errors
    /// Those of [`Machine::record`]; [`EngineError::Gpu`], after which the stepper is of no more use.
    pub fn advance<M: Machine<Work = W>>(
        &mut self,
        machine: &mut M,
        budget: Duration,
    ) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.collect(machine)?;
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let (gpu, mut buffers) = (self.gpu.clone(), Vec::new());
        let recorded = gpu.scoped(|| self.record(machine, budget, &mut buffers));
        match recorded.unwrap_or_else(|e| Err(e.into())).and_then(|()| self.test(&mut buffers)) {
            Ok(()) => Ok(buffers),
            Err(error @ EngineError::Gpu(_)) => Err(error),
            Err(error) if buffers.is_empty() => Err(error),
            Err(error) => {
                self.failed = Some(error);
                Ok(buffers)
            }
        }
    }

    /// Records trials of the self-test.
    fn test(&mut self, buffers: &mut Vec<wgpu::CommandBuffer>) -> Result<(), EngineError> {
        if let Some(test) = &mut self.self_test {
            buffers.extend(test.advance()?);
        }
        Ok(())
    }

    /// Ends a self-test that is done, between two works: all layers of a step run the same variants.
    fn end_test<M: Machine<Work = W>>(&mut self, machine: &mut M) {
        if self.self_test.take_if(|test| test.is_done()).is_some() {
            self.rec.set_portable(Portable::These(distrusted(&self.gpu)));
            machine.variants_changed(&self.rec);
        }
    }

    /// Records slices within the budget, and adds their buffers to `buffers`.
    fn record<M: Machine<Work = W>>(
        &mut self,
        machine: &mut M,
        budget: Duration,
        buffers: &mut Vec<wgpu::CommandBuffer>,
    ) -> Result<(), EngineError> {
        let mut left_ms = budget.as_secs_f64() * 1e3;
        while self.flight.has_room(self.most_in_flight) {
            let (mut work, first) = match self.recording.take() {
                Some(recording) => recording,
                None if self.rec.params_are_low() && !self.flight.is_empty() => break,
                None => {
                    if self.rec.params_are_low() {
                        self.rec.reset_params();
                    }
                    self.end_test(machine);
                    match machine.next() {
                        Some(work) => (work, 0),
                        None => break,
                    }
                }
            };
            let Size { kind, n_layers, n_units } = machine.size(&work);
            let layer_ms = self.ms[kind as usize] * n_units as f64;
            if !buffers.is_empty() && left_ms < layer_ms {
                self.recording = Some((work, first)); // the next call continues it
                break;
            }
            let last = first.saturating_add((left_ms / layer_ms).max(1.0) as usize).min(n_layers);
            left_ms -= (last - first) as f64 * layer_ms;
            if !self.gpu.is_owned() {
                // A guest looks for results once per frame, so only the device can measure their time.
                self.rec.start_timing();
            }
            let mut sources = machine.record(&mut self.rec, &mut work, first..last)?;
            if sources.is_empty() {
                sources.push((self.mark.clone(), 0, 4));
            }
            let (done, recording) = match last == n_layers {
                true => (Some(work), None),
                false => (None, Some((work, last))),
            };
            self.recording = recording;
            let sources: Vec<_> = sources.iter().map(|(tensor, at, n)| (tensor, *at, *n)).collect();
            self.flight.record(&mut self.rec, &sources, Slice { done, kind, n: (last - first) * n_units });
            buffers.extend(self.rec.finish()?);
        }
        Ok(())
    }

    /// Handles results that have arrived. Never waits.
    ///
    /// # Errors
    /// As [`Stepper::check`].
    pub fn collect<M: Machine<Work = W>>(&mut self, machine: &mut M) -> Result<(), EngineError> {
        self.land(machine)?;
        self.check()
    }

    fn land<M: Machine<Work = W>>(&mut self, machine: &mut M) -> Result<(), GpuError> {
        self.gpu.poll()?;
        while let Some(Landed { content: slice, bytes, ms }) = self.flight.land()? {
            if slice.n > 0 {
                // A large weight for new values, because the initial guess is far off.
                let average = &mut self.ms[slice.kind as usize];
                *average += (ms / slice.n as f64 - *average) * 0.5;
            }
            if let Some(work) = slice.done {
                machine.landed(work, &bytes);
            }
        }
        Ok(())
    }

    /// Submits the next slices to our own queue, or waits for the oldest slice in flight if there is nothing to submit,
    /// and handles results that have arrived.
    ///
    /// # Errors
    /// [`GpuError::Adopted`] on an adopted device, where only the host submits; those of [`Stepper::advance`].
    pub fn pump<M: Machine<Work = W>>(&mut self, machine: &mut M) -> Result<(), EngineError> {
        self.gpu.check_owned()?;
        let buffers = self.advance(machine, SLICE)?;
        self.flight.submit(buffers)?;
        self.collect(machine)
    }
}
