//! The resumable machine under everything that is recorded layer by layer: steps of an engine, clips of sound, batches
//! of texts, weights on their way to the device.
//!
//! A [`Machine`] decides what comes next and records it; the [`Stepper`] cuts that to a budget, keeps at most two slices
//! in flight, and takes in what comes back. Nothing here waits unless [`Stepper::pump`] is asked to.

use std::ops::Range;
use std::time::Duration;

use super::EngineError;
use crate::dtype::Dtype;
use crate::gpu::{Flight, Gpu, GpuError, Landed, MOST_IN_FLIGHT, Recorder, Tensor};

/// Time that [`Stepper::pump`] gives a submission: longer ones starve a desktop's compositor.
pub(super) const SLICE: Duration = Duration::from_millis(20);

/// What is recorded, layer by layer.
pub(super) trait Machine {
    /// Some work, from its planning to its results.
    type Work;
    /// Decides what comes next; `None` if there is nothing to do.
    fn next(&mut self) -> Option<Self::Work>;
    /// How large it is.
    fn size(&self, work: &Self::Work) -> Size;
    /// Records some of its layers, what comes before the first and what follows the last. Returns the bytes that the
    /// host should read once they have run: none unless the last layer is among them.
    ///
    /// # Errors
    /// What cannot be recorded: the machine is of no use then.
    fn record(
        &mut self,
        rec: &mut Recorder,
        work: &mut Self::Work,
        layers: Range<usize>,
    ) -> Result<Vec<Source>, EngineError>;
    /// Takes in the results of work whose last layer has run.
    fn landed(&mut self, work: Self::Work, bytes: &[u8]);
}

/// A byte range that the host should read: tensor, offset, bytes.
pub(super) type Source = (Tensor, u64, u64);

/// What the time of some work depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub kind: Kind,
    pub n_layers: usize,
    /// What the time of a layer is proportional to.
    pub n_units: usize,
}

/// Kinds of work, whose times are learned apart.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A step of single rows: reading the weights takes most of its time, however many there are.
    Decode,
    /// A step with rows of prompts; a unit is a row.
    Prompt,
    /// The audio encoder over a clip.
    Clip,
    /// A batch of texts; a unit is a row.
    Texts,
    /// Weights; a layer is a piece.
    Upload,
}

const N_KINDS: usize = 5;

/// Part of some work that was recorded and has not come back.
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
    /// What is being recorded, and the layer that comes next.
    recording: Option<(W, usize)>,
    /// Moving averages: milliseconds a layer and unit of each kind.
    ms: [f64; N_KINDS],
    /// What is read where nothing else is: it only says that the slice has run.
    mark: Tensor,
    most_in_flight: usize,
}

impl<W> Stepper<W> {
    /// For work that reads back up to `max_bytes` at a time. With `run_ahead` a slice is recorded while another runs.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn new(gpu: &Gpu, max_bytes: u64, run_ahead: bool) -> Result<Self, GpuError> {
        Ok(Stepper {
            gpu: gpu.clone(),
            rec: Recorder::new(gpu)?,
            flight: Flight::new(gpu, max_bytes.max(4))?,
            recording: None,
            // First guesses, high enough for one layer a slice until something was measured.
            ms: [SLICE.as_secs_f64() * 1e3; N_KINDS],
            mark: Tensor::zeros(gpu, "mark", [1, 1], Dtype::U32)?,
            most_in_flight: if run_ahead { MOST_IN_FLIGHT } else { 1 },
        })
    }

    pub fn recorder(&mut self) -> &mut Recorder {
        &mut self.rec
    }

    /// Whether nothing is being recorded or on its way back.
    pub fn is_idle(&self) -> bool {
        self.recording.is_none() && self.flight.is_empty()
    }

    /// Records work for about `budget` of the device's time, at least one layer, and returns it for submission, in
    /// order. Empty when the most slices are in flight or there is nothing to do. Never waits.
    ///
    /// # Errors
    /// The device's, and those of [`Machine::record`].
    pub fn advance<M: Machine<Work = W>>(
        &mut self,
        machine: &mut M,
        budget: Duration,
    ) -> Result<Vec<wgpu::CommandBuffer>, EngineError> {
        self.collect(machine)?;
        let mut left_ms = budget.as_secs_f64() * 1e3;
        let mut buffers = Vec::new();
        while self.flight.has_room(self.most_in_flight) {
            let (mut work, first) = match self.recording.take() {
                Some(recording) => recording,
                None if self.rec.params_are_low() && !self.flight.is_empty() => break,
                None => {
                    if self.rec.params_are_low() {
                        self.rec.reset_params();
                    }
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
                // A guest sees results once a frame: only the device knows how long they took.
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
        Ok(buffers)
    }

    /// Takes in what has come back. Never waits.
    ///
    /// # Errors
    /// The device is lost.
    pub fn collect<M: Machine<Work = W>>(&mut self, machine: &mut M) -> Result<(), EngineError> {
        self.gpu.poll()?;
        while let Some(Landed { content: slice, bytes, ms }) = self.flight.land()? {
            if slice.n > 0 {
                // The first guess is meant to be wrong: measured values replace it quickly.
                let average = &mut self.ms[slice.kind as usize];
                *average += (ms / slice.n as f64 - *average) * 0.5;
            }
            if let Some(work) = slice.done {
                machine.landed(work, &bytes);
            }
        }
        Ok(())
    }

    /// Submits the next slices to our own queue, or waits for the oldest in flight if there is nothing to submit, and
    /// takes in what has come back.
    ///
    /// # Errors
    /// [`GpuError::Adopted`] on an adopted device, whose host submits; else those of [`Stepper::advance`].
    pub fn pump<M: Machine<Work = W>>(&mut self, machine: &mut M) -> Result<(), EngineError> {
        self.gpu.check_owned()?;
        let buffers = self.advance(machine, SLICE)?;
        self.flight.submit(buffers)?;
        self.collect(machine)
    }
}
