//! The kernel variants that a model uses on a device of given capabilities, without such a device.

use std::sync::Arc;

use super::loading::{DEFAULT_CTX, Sizes, rehearse};
use super::{Engine, EngineError, EngineOptions, LoadedModel};
use crate::checkpoint::ModelFiles;
use crate::gpu::{Caps, Gpu, Recorder, Tuning, Variant};
use crate::models::{ModelKind, Upload};

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
        let ctx = options.ctx.unwrap_or(shape.max_seq_len.min(DEFAULT_CTX));
        let options = EngineOptions { ctx: Some(ctx), ..options };
        let sizes = Sizes::new(&plan, &shape, &options)?;
        let (weights, loader) =
            LoadedModel::allocate(&plan, files, ModelKind::Decoder, ctx, options.quantize)?;
        let (mut runner, _, mut stepper) = Engine::allocate(&plan, &shape, &weights, &options, sizes)?;
        stepper.recorder().set_tuning(tuning);
        of(stepper.recorder(), &mut [loader.finish()], |rec| rehearse(&mut runner, rec, sizes))
    }
}

/// The variants of uploads and of the work that `record` records, on a plan.
pub(super) fn of(
    rec: &mut Recorder,
    uploads: &mut [Upload],
    record: impl FnOnce(&mut Recorder),
) -> Result<Vec<Variant>, EngineError> {
    let mut staged = Ok(());
    let variants = rec.variants(|rec| {
        staged = uploads.iter_mut().try_for_each(|upload| upload.rehearse(rec));
        record(rec);
    });
    staged?;
    rec.finish()?;
    Ok(variants)
}
