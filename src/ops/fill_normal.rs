//! Random weights.

use std::ops::Range;

use super::{assert_rows, kernel};
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
    fill_normal_rows(rec, w, 0..w.n_rows(), seed, mean, scale);
}

/// Fills `rows` of `w` with the values that [`fill_normal`] gives them.
///
/// # Panics
/// If `w` is of another type, or if a binding may not begin with the first of the rows.
pub fn fill_normal_rows(
    rec: &mut Recorder,
    w: &Tensor,
    rows: Range<usize>,
    seed: u32,
    mean: f32,
    scale: f32,
) {
    assert_rows("fill_normal", w, rows.end);
    let (dtype, per_vec4) = match w.dtype() {
        Dtype::F32 => (0, 4),
        Dtype::F16 => (1, 8),
        Dtype::BF16 => (2, 8),
        other => unreachable!("no values are drawn in {other}"),
    };
    let lanes = super::PORTABLE_LANES;
    let variant = Variant::new(&FILL_NORMAL).set("WG", lanes).set("TYPE", dtype);
    for mut range in w.ranges() {
        range.rows = range.rows.start.max(rows.start)..range.rows.end.min(rows.end);
        if range.rows.is_empty() {
            continue;
        }
        let (first, align) = (range.rows.start, rec.gpu().caps().storage_align as usize);
        assert!(
            (first * w.row_bytes()).is_multiple_of(align),
            "fill_normal: row {first} of {w:?} is not aligned"
        );
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
