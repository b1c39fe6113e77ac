//! The kernel variants that a model uses on a device of given capabilities, without such a device.

use std::sync::Arc;

use super::build::variants_of;
use super::loading::{Sizes, rehearse};
use super::{Engine, EngineError, EngineOptions, LoadedModel};
#[cfg(feature = "bench")]
use super::{RequestId, scheduler::Step, self_test::distrusted};
use crate::checkpoint::ModelFiles;
use crate::gpu::{Caps, Gpu, Tuning, Variant};
#[cfg(feature = "bench")]
use crate::gpu::{Portable, Rehearsal};
use crate::models::ModelKind;
#[cfg(feature = "bench")]
use crate::ops::Rows;

impl Engine {
    /// The variants that an engine for `files` uses on a device with `caps`, each once: those of the upload, of the
    /// audio encoder and of every kind of step. `tuning` chooses among the variants of products; by default the
    /// capabilities do. Any device will do as `gpu`: nothing is allocated, compiled or run.
    ///
    /// # Errors
    /// As [`Engine::load`], except for what only an allocation can show.
    pub fn variants(
        gpu: &Gpu,
        caps: &Caps,
        files: &ModelFiles,
        options: EngineOptions,
        tuning: Option<Arc<Tuning>>,
    ) -> Result<Vec<Variant>, EngineError> {
        let plan = gpu.plan_for(caps.clone());
        let shape = files.architecture.shape();
        let options = options.for_model(&shape);
        let sizes = Sizes::new(&plan, &shape, &options)?;
        let ctx = sizes.capacity.max_seq_len;
        let (weights, loader) =
            LoadedModel::allocate(&plan, files, ModelKind::Decoder, ctx, options.quantize)?;
        let (mut runner, mut stepper) = Engine::allocate(&plan, &shape, &weights, &options, sizes)?;
        stepper.recorder().set_tuning(tuning);
        variants_of(stepper.recorder(), &mut [loader.finish()], |rec| rehearse(&mut runner, rec, sizes))
    }
}

#[cfg(feature = "bench")]
impl Engine {
    /// What steps of `rows` rows with a draw in each dispatch, where every sequence with a decode row has `longest`
    /// positions: those that an engine for `files` would record, with what tuning and self-tests found on `gpu`. Nothing
    /// is allocated, compiled or run.
    ///
    /// # Errors
    /// As [`Engine::estimate`].
    pub(crate) fn rehearsals(
        gpu: &Gpu,
        files: &ModelFiles,
        options: EngineOptions,
        steps: &[StepRows],
    ) -> Result<Vec<Rehearsal>, EngineError> {
        let plan = gpu.plan();
        let shape = files.architecture.shape();
        let options = options.for_model(&shape);
        let sizes = Sizes::new(&plan, &shape, &options)?;
        let ctx = sizes.capacity.max_seq_len;
        let (weights, _) = LoadedModel::allocate(&plan, files, ModelKind::Decoder, ctx, options.quantize)?;
        let (mut runner, mut stepper) = Engine::allocate(&plan, &shape, &weights, &options, sizes)?;
        let rec = stepper.recorder();
        rec.set_portable(Portable::These(distrusted(gpu)));
        let n_layers = runner.n_layers();
        let one = |step: &StepRows| {
            let step = Step {
                n: step.n,
                blocks: vec![[0, 1]; step.n.count()],
                sampled: vec![0; step.n_draws],
                draws: vec![RequestId(0); step.n_draws],
                longest: step.longest,
                ..Step::default()
            };
            rec.rehearsal(|rec| drop(runner.record(rec, &step, 0..n_layers)))
        };
        Ok(steps.iter().map(one).collect())
    }
}

/// The rows of a step.
#[cfg(feature = "bench")]
#[derive(Clone, Copy, Debug)]
pub(crate) struct StepRows {
    pub n: Rows,
    /// Rows that get logits and a token.
    pub n_draws: usize,
    /// Positions of the longest sequence with a decode row.
    pub longest: usize,
}
