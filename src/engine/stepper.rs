//! The stepper runs everything that is recorded layer by layer: steps of an engine, audio clips, batches of texts,
//! uploads of weights.
//!
//! A [`Machine`] decides what comes next and records it. The [`Stepper`] cuts that to a budget, keeps at most two
//! slices in flight, and passes results back. Only [`Stepper::pump`] waits.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use super::EngineError;
use super::self_test::{Trials, distrusted};
use crate::dtype::Dtype;
use crate::gpu::{
    Flight, Gpu, GpuError, Landed, Load, MOST_IN_FLIGHT, Meter, Place, Portable, Recorder, Tensor,
};

/// Most times of slices that are kept.
const MOST_TIMES: usize = 64;

/// Device time per submission of [`Stepper::pump`]: longer submissions starve a desktop's compositor.
pub(super) const SLICE: Duration = Duration::from_millis(20);

/// A source of work that is recorded layer by layer.
pub(super) trait Machine {
    /// One unit of work, from its planning to its results.
    type Work;
    /// Decides what comes next. `None` if there is nothing to do.
    fn next(&mut self) -> Option<Self::Work>;
    /// Parts of some work (layers), at least one. A part can be cut between any two of its dispatches.
    fn n_parts(&self, work: &Self::Work) -> usize;
    /// Writes what the work reads, and records copies, once before the first part.
    fn begin(&mut self, rec: &mut Recorder, work: &mut Self::Work);
    /// Records a part of the work; with the first part also what comes before it, with the last what follows. Returns the
    /// byte ranges to read back, which are none before the last part. A part that was cut is recorded again, and its recorder
    /// skips what it has: so the dispatches are a function of the work and the part.
    ///
    /// # Errors
    /// A failed recording. The work is dropped.
    fn record(
        &mut self,
        rec: &mut Recorder,
        work: &mut Self::Work,
        part: usize,
    ) -> Result<Vec<ReadRange>, EngineError>;
    /// Whether parts are never cut: they look at what is left of the budget themselves.
    const IS_WHOLE: bool = false;
    /// Handles the results of work whose last layer has run.
    fn landed(&mut self, work: Self::Work, bytes: &[u8]);
    /// Another set of operations runs portable variants from the next work on: `rec` knows which.
    fn variants_changed(&mut self, _rec: &Recorder) {}
    /// Ends everything that is open: the device does no more work. `works` were recorded, at least in part.
    fn abandon(&mut self, works: Vec<Self::Work>, error: &GpuError);
}

/// A byte range to read back: tensor, offset, bytes.
pub(super) type ReadRange = (Tensor, u64, u64);

/// A recorded part of some work, in flight.
struct Slice<W> {
    /// The work that it completes.
    done: Option<W>,
    /// Its dispatches.
    load: Load,
    /// The call that recorded it.
    call: u64,
}

/// Work that is being recorded.
struct Recording<W> {
    work: W,
    has_begun: bool,
    place: Place,
}

/// Cuts the work of a [`Machine`] into slices.
pub(super) struct Stepper<W> {
    gpu: Gpu,
    rec: Recorder,
    flight: Flight<Slice<W>>,
    recording: Option<Recording<W>>,
    /// Calls of [`Stepper::advance`].
    n_calls: u64,
    /// Device times of slices that have finished, for the owner.
    times: VecDeque<Duration>,
    /// Whether it was reported that a slice cannot be as short as a budget.
    has_warned: bool,
    /// A word to read back if there is nothing else, so that the end of a slice is noticed.
    mark: Tensor,
    most_in_flight: usize,
    /// The test of variants that the work will use when it has ended.
    self_test: Option<Trials>,
    /// Why the device does no more work.
    broken: Option<GpuError>,
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
            n_calls: 0,
            times: VecDeque::with_capacity(MOST_TIMES),
            has_warned: false,
            mark: Tensor::zeros(gpu, "mark", [1, 1], Dtype::U32)?,
            most_in_flight: if run_ahead { MOST_IN_FLIGHT } else { 1 },
            self_test: None,
            broken: None,
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

    /// Checks that the device works. If it does not, everything that is open ends.
    ///
    /// # Errors
    /// [`EngineError::Gpu`]: once returned, every later call returns it, too.
    pub fn check<M: Machine<Work = W>>(&mut self, machine: &mut M) -> Result<(), EngineError> {
        let alive = self.gpu.check_alive();
        match (&self.broken, alive) {
            // An earlier fault does not hide a loss.
            (Some(_), Err(error)) => Err(error.into()),
            (Some(error), Ok(())) => Err(error.clone().into()),
            (None, Err(error)) => Err(self.abandon(machine, error)),
            (None, Ok(())) => Ok(()),
        }
    }

    /// Ends everything that is open.
    fn abandon<M: Machine<Work = W>>(&mut self, machine: &mut M, error: GpuError) -> EngineError {
        let mut works: Vec<W> = self.flight.abandon().filter_map(|slice| slice.done).collect();
        works.extend(self.recording.take().map(|recording| recording.work));
        machine.abandon(works, &error);
        self.broken = Some(error.clone());
        error.into()
    }

    /// The longest time of a dispatch, or of the smallest piece of one, as measured so far: no slice is surely shorter.
    pub fn smallest_slice(&self) -> Option<Duration> {
        let ms = self.rec.metered()?.longest_piece_ms()?;
        Some(Duration::from_secs_f64(ms * 1e-3))
    }

    /// Device times of the slices that have finished since the last call.
    pub fn slice_times(&mut self) -> Vec<Duration> {
        self.times.drain(..).collect()
    }

    /// What the last call of [`Stepper::advance`] left of its budget, as predicted. Nothing if no more may follow.
    pub fn left(&self) -> Duration {
        let meter = self.rec.metered().filter(|meter| !meter.is_full());
        Duration::from_secs_f64(meter.map_or(0.0, Meter::left_ms) * 1e-3)
    }

    /// Records work for about `budget` of device time, at least one dispatch or piece of one, and returns the command
    /// buffers to submit, in order. Empty if no more slices may be in flight or there is nothing to do. Never waits.
    ///
    /// # Errors
    /// Those of [`Stepper::check`] and of [`Machine::record`].
    pub fn advance<M: Machine<Work = W>>(
        &mut self,
        machine: &mut M,
        budget: Duration,
    ) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.n_calls += 1;
        self.collect(machine)?;
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let (gpu, mut buffers) = (self.gpu.clone(), Vec::new());
        let recorded = gpu.scoped(|| self.record(machine, budget, &mut buffers));
        match recorded.unwrap_or_else(|e| Err(e.into())).and_then(|()| self.test(&mut buffers)) {
            Ok(()) => Ok(buffers),
            Err(EngineError::Gpu(error)) => Err(self.abandon(machine, error)),
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
        self.rec.meter().frame(budget.as_secs_f64() * 1e3);
        while self.flight.has_room(self.most_in_flight) && !self.rec.meter().is_full() {
            if self.rec.params_are_low() {
                if !self.flight.is_empty() {
                    break;
                }
                self.rec.reset_params();
            }
            let mut recording = match self.recording.take() {
                Some(recording) => recording,
                None => {
                    self.end_test(machine);
                    let Some(work) = machine.next() else { break };
                    Recording { work, has_begun: false, place: Place::default() }
                }
            };
            let Recording { work, has_begun, place } = &mut recording;
            if !std::mem::replace(has_begun, true) {
                self.rec.meter().begin_part(0, true);
                machine.begin(&mut self.rec, work);
                self.rec.meter().end_part();
            }
            if !self.gpu.is_owned() {
                // A guest looks for results once per frame, so only the device can measure their time.
                self.rec.start_timing();
            }
            let (before, n_parts) = (*place, machine.n_parts(work));
            let walk = |rec: &mut Recorder, part| machine.record(rec, work, part);
            let ended = place.go_on(n_parts, M::IS_WHOLE, &mut self.rec, Recorder::meter, walk)?;
            if ended.is_none() && *place == before {
                self.recording = Some(recording); // the next call continues it
                break;
            }
            let is_done = ended.is_some();
            let mut sources = ended.unwrap_or_default();
            if sources.is_empty() {
                sources.push((self.mark.clone(), 0, 4));
            }
            let done = match is_done {
                true => Some(recording.work),
                false => {
                    self.recording = Some(recording);
                    None
                }
            };
            let sources: Vec<_> = sources.iter().map(|(tensor, at, n)| (tensor, *at, *n)).collect();
            let load = self.rec.meter().end_slice();
            self.flight.record(&mut self.rec, &sources, Slice { done, load, call: self.n_calls });
            buffers.extend(self.rec.finish()?);
        }
        self.warn();
        Ok(())
    }

    /// Reports once that a guest's budget is too short for this device.
    fn warn(&mut self) {
        let Some((kernel, ms, budget_ms)) = self.rec.meter().take_too_slow() else { return };
        if !self.gpu.is_owned() && !std::mem::replace(&mut self.has_warned, true) {
            log::warn!(
                "`{}` is too slow for a budget of {budget_ms:.1} ms: the smallest piece of `{kernel}` takes {ms:.1} ms",
                self.gpu.info().name
            );
        }
    }

    /// Handles results that have arrived. Never waits.
    ///
    /// # Errors
    /// As [`Stepper::check`].
    pub fn collect<M: Machine<Work = W>>(&mut self, machine: &mut M) -> Result<(), EngineError> {
        if self.broken.is_none()
            && let Err(error) = self.land(machine)
        {
            return Err(self.abandon(machine, error));
        }
        self.check(machine)
    }

    fn land<M: Machine<Work = W>>(&mut self, machine: &mut M) -> Result<(), GpuError> {
        self.gpu.poll()?;
        while let Some(Landed { content: slice, bytes, ms, is_timed }) = self.flight.land()? {
            if is_timed || self.gpu.is_owned() {
                self.rec.meter().landed(&slice.load, ms);
                if self.times.len() == MOST_TIMES {
                    self.times.pop_front();
                }
                self.times.extend(Duration::try_from_secs_f64(ms * 1e-3));
            } else {
                // A guest sees the end of a slice as late as its next frame comes: that is no time of the device.
                self.rec.meter().seen(&slice.load, ms, self.n_calls <= slice.call + 1);
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
        if let Err(error) = self.flight.submit(buffers) {
            return Err(self.abandon(machine, error));
        }
        self.collect(machine)
    }
}
