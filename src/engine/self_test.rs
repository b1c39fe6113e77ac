//! The self-test of a driver that was never seen before: the variants that an engine uses and that need optional
//! capabilities run on small inputs, and so do the portable ones. An operation with a variant that computes something
//! else, or does not compile, runs portable variants on this device from then on.
//!
//! It has tensors of its own and changes nothing of the engine's. Nothing here waits but [`Trials::pump`].

use std::ops::Range;

use crate::gpu::{Flight, Gpu, GpuError, Landed, MOST_IN_FLIGHT, Portable, Recorder, Variant, WrongVariant};
use crate::ops::self_test::{Trial, Verdict, operation_of, operations};
use crate::ops::tunable;

/// Trials per submission to our own queue. On an adopted device, a slice has one.
const A_SLICE: usize = 8;

/// The variants that an engine compiles, and the test of those of which nothing is known.
pub(super) struct Tested {
    pub variants: Variants,
    pub self_test: Option<Trials>,
}

/// The variants that an engine compiles.
pub(super) struct Variants {
    all: Vec<Variant>,
    /// Those that would run if every operation ran portable variants.
    portable: Vec<Variant>,
}

impl Variants {
    /// Compiles them. An operation with a variant that does not compile runs portable variants on this device from then
    /// on. (On Vulkan, `wgpu` loses a device whose driver refuses a pipeline: that is not survived.)
    ///
    /// # Errors
    /// [`GpuError::Compile`] with a portable variant; [`GpuError::Lost`] and other faults of the device.
    pub fn compile(&self, gpu: &Gpu) -> Result<(), GpuError> {
        let mut refused = Vec::new();
        for (variant, error) in gpu.compile_all(&self.all)? {
            match operation_of(&variant).filter(|_| !self.portable.contains(&variant)) {
                Some(operation) => refused.push(WrongVariant::refused(operation, &variant, &error)),
                None => return Err(error),
            }
        }
        if !refused.is_empty() {
            gpu.compile(&self.portable)?;
            gpu.check_alive()?;
            report(gpu, &refused);
            gpu.add_trust(tunable(), Vec::new(), refused);
        }
        Ok(())
    }
}

/// A self-test that runs, or has run.
pub(super) struct Trials {
    gpu: Gpu,
    rec: Recorder,
    flight: Flight<Range<usize>>,
    trials: Vec<Trial>,
    n_recorded: usize,
    n_judged: usize,
    right: Vec<String>,
    wrong: Vec<WrongVariant>,
}

impl Trials {
    /// The variants that `record` records with `rec`, and the test of those of which nothing is known. Until its end, their
    /// operations are recorded by `rec` with portable variants, and so are, forever, those that an
    /// earlier test found wrong.
    ///
    /// # Errors
    /// [`GpuError::OutOfMemory`].
    pub fn plan(
        gpu: &Gpu,
        rec: &mut Recorder,
        mut record: impl FnMut(&mut Recorder),
    ) -> Result<Tested, GpuError> {
        let trust = gpu.trust(tunable());
        let mut with = |operations: Portable| {
            rec.set_portable(operations);
            rec.variants(&mut record)
        };
        let portable = with(Portable::All);
        let mut all = with(Portable::These(distrusted(gpu)));
        let is_untested = |variant: &&Variant| {
            gpu.wants_self_test() && !portable.contains(variant) && !trust.knows(variant)
        };
        let untested: Vec<Variant> = all.iter().filter(is_untested).copied().collect();
        if untested.is_empty() {
            return Ok(Tested { variants: Variants { all, portable }, self_test: None });
        }
        let (mut own, mut trials) = (Recorder::new(gpu)?, Vec::new());
        for variant in untested {
            match Trial::of(gpu, &variant)?.filter(|trial| trial.runs_its_variant(&mut own)) {
                Some(trial) => trials.push(trial),
                // A test holds that there are none.
                None => log::debug!("self-test: nothing tries `{}`", variant.label()),
            }
        }
        let mut safe = distrusted(gpu);
        safe.extend(trials.iter().map(|trial| trial.operation));
        rec.set_portable(Portable::These(safe));
        let tried = own.variants(|rec| trials.iter().for_each(|trial| trial.record(rec)));
        for variant in portable.iter().copied().chain(tried) {
            if !all.contains(&variant) {
                all.push(variant);
            }
        }
        Ok(Tested { variants: Variants { all, portable }, self_test: Some(Trials::new(gpu, own, trials)?) })
    }

    fn new(gpu: &Gpu, rec: Recorder, trials: Vec<Trial>) -> Result<Trials, GpuError> {
        // The largest slice, whichever trials are left out.
        let mut bytes: Vec<u64> = trials.iter().map(Trial::n_bytes).collect();
        bytes.sort_unstable();
        Ok(Trials {
            gpu: gpu.clone(),
            rec,
            flight: Flight::new(gpu, bytes.iter().rev().take(A_SLICE).sum())?,
            trials,
            n_recorded: 0,
            n_judged: 0,
            right: Vec::new(),
            wrong: Vec::new(),
        })
    }

    /// Whether every variant has been judged.
    pub fn is_done(&self) -> bool {
        self.n_judged == self.trials.len()
    }

    /// Judges what has arrived and records the next trials. Never waits. Called once the variants are compiled.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn advance(&mut self) -> Result<Vec<wgpu::CommandBuffer>, GpuError> {
        if self.n_recorded == 0 {
            let refused = distrusted(&self.gpu);
            self.trials.retain(|trial| !refused.contains(&trial.operation));
        }
        if self.is_done() {
            return Ok(Vec::new());
        }
        let gpu = self.gpu.clone();
        gpu.scoped(|| {
            gpu.poll()?;
            while let Some(Landed { content: range, bytes, .. }) = self.flight.land()? {
                self.judge(range, &bytes);
            }
            self.record()
        })?
    }

    fn record(&mut self) -> Result<Vec<wgpu::CommandBuffer>, GpuError> {
        // A host's frames have little time for them.
        let n = if self.gpu.is_owned() { A_SLICE } else { 1 };
        let range = self.n_recorded..(self.n_recorded + n).min(self.trials.len());
        if range.is_empty() || !self.flight.has_room(MOST_IN_FLIGHT) {
            return Ok(Vec::new());
        }
        let trials = &self.trials[range.clone()];
        trials.iter().for_each(|trial| trial.record(&mut self.rec));
        let sources: Vec<_> = trials.iter().flat_map(Trial::sources).collect();
        self.n_recorded = range.end;
        self.flight.record(&mut self.rec, &sources, range);
        Ok(self.rec.finish()?.into_iter().collect())
    }

    /// Submits the next trials to our own queue, or waits for those in flight if there are none.
    ///
    /// # Errors
    /// [`GpuError`]; [`GpuError::Adopted`] on an adopted device.
    pub fn pump(&mut self) -> Result<(), GpuError> {
        let buffers = self.advance()?;
        if !self.is_done() {
            self.flight.submit(buffers)?;
        }
        Ok(())
    }

    /// Runs all trials and waits for them, on a device of our own.
    ///
    /// # Errors
    /// As [`Trials::pump`].
    pub fn run(&mut self) -> Result<(), GpuError> {
        while !self.is_done() {
            self.pump()?;
        }
        Ok(())
    }

    fn judge(&mut self, range: Range<usize>, mut bytes: &[u8]) {
        for trial in &self.trials[range.clone()] {
            let (own, rest) = bytes.split_at(trial.n_bytes() as usize);
            bytes = rest;
            let label = trial.variant.label();
            match trial.judge(own) {
                Verdict::Same => self.right.push(label),
                Verdict::Unclear => log::warn!(
                    "`{label}` could not be tested: the portable variant's outputs are not finite, or all zero"
                ),
                Verdict::Differs(error) => {
                    let operation = trial.operation.to_string();
                    self.wrong.push(WrongVariant { operation, variant: label, error, refusal: None });
                }
            }
        }
        self.n_judged = range.end;
        if self.is_done() {
            self.end();
        }
    }

    /// Reports what is wrong, and keeps what was found.
    fn end(&mut self) {
        let (right, wrong) = (std::mem::take(&mut self.right), std::mem::take(&mut self.wrong));
        log::debug!("self-test: {} variants right, {} wrong", right.len(), wrong.len());
        report(&self.gpu, &wrong);
        self.gpu.add_trust(tunable(), right, wrong);
    }
}

/// Reports what is wrong, one line per operation.
fn report(gpu: &Gpu, wrong: &[WrongVariant]) {
    let name = &gpu.info().name;
    for operation in operations() {
        let mut of_it = wrong.iter().filter(|wrong| wrong.operation == operation);
        let Some(WrongVariant { variant, error, refusal, .. }) = of_it.next() else { continue };
        let what = match (refusal, error) {
            (Some(words), _) => format!("`{name}` does not compile `{variant}` ({words})"),
            (None, Some(error)) => format!(
                "self-test of `{name}`: the results of `{variant}` and of the portable variant differ by {error:.0} \
                 times the tolerance"
            ),
            (None, None) => format!(
                "self-test of `{name}`: the results of `{variant}` and of the portable variant differ"
            ),
        };
        log::warn!("{what}; from now on operation `{operation}` runs portable variants there");
    }
}

/// The operations that run portable variants on this device.
pub(super) fn distrusted(gpu: &Gpu) -> Vec<&'static str> {
    let trust = gpu.trust(tunable());
    operations().into_iter().filter(|operation| trust.is_wrong(operation)).collect()
}
