//! Random weights.

use super::kernel;
use crate::dtype::Dtype;
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        seed: u32,
        row0: u32,
        n_rows: u32,
        n_cols: u32,
        stride: u32,
        mean: f32,
        scale: f32,
    }
}

kernel!(FILL_NORMAL, "fill_normal", Params, [ReadWrite]);

/// Fills `w` `[n_rows, n_cols]` F32, F16 or BF16 with approximately normal values of mean `mean` and standard deviation
/// `scale`. Each depends only on `seed`, row and column.
///
/// # Panics
/// If `w` has another type.
pub fn fill_normal(rec: &mut Recorder, w: &Tensor, seed: u32, mean: f32, scale: f32) {
    let (dtype, per_vec4) = match w.dtype() {
        Dtype::F32 => (0, 4),
        Dtype::F16 => (1, 8),
        Dtype::BF16 => (2, 8),
        other => unreachable!("no values are drawn in {other}"),
    };
    let lanes = super::PORTABLE_LANES;
    let variant = Variant::new(&FILL_NORMAL).set("WG", lanes).set("TYPE", dtype);
    for range in w.ranges() {
        let params = Params {
            seed,
            row0: range.rows.start as u32,
            n_rows: range.rows.len() as u32,
            n_cols: w.n_cols() as u32,
            stride: (w.stride() / per_vec4) as u32,
            mean,
            scale,
        };
        let items = params.n_rows * params.stride;
        let groups = rec.gpu().caps().spread(items.div_ceil(lanes));
        rec.dispatch(variant, &params, &[range], groups);
    }
}
