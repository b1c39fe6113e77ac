//! The most probable tokens.

use super::{SELECT, assert_rows, kernel, vocabulary};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_cols: u32,
        x_stride: u32,
        k: u32,
        y_stride: u32,
    }
}

kernel!(TOP_K, "top_k", Params, [Read, Read, ReadWrite]);

/// A `k` for which five passes are enough, however many elements are equal.
const LISTED: usize = 128;

/// Writes pairs of column and bits of the value to each row of `y` `[n_rows, 2·(1 + most)]` U32: first the element that
/// `chosen` `[1, n_rows]` names, then the `k` largest elements of `x` `[n_rows, n_cols]`, largest first; on a tie, the
/// smaller column first.
///
/// # Panics
/// If the shapes disagree or `k` is larger than `n_cols` or than `most`.
pub fn top_k(rec: &mut Recorder, x: &Tensor, chosen: &Tensor, k: usize, y: &Tensor, n_rows: usize) {
    assert!(k <= x.n_cols() && 2 * (1 + k) <= y.n_cols(), "top_k: {k} of {x:?} to {y:?}");
    assert_rows("top_k", x, n_rows);
    assert_rows("top_k", y, n_rows);
    let params = Params {
        n_rows: n_rows as u32,
        n_cols: x.n_cols() as u32,
        x_stride: (x.stride() / 4) as u32,
        k: k as u32,
        y_stride: (y.n_cols() / 2) as u32,
    };
    // More may take a pass each.
    let n_passes = if k <= LISTED { 6 } else { 6 + k };
    let variant = vocabulary(&TOP_K, rec, x.n_cols() * n_passes / 6).part(&SELECT);
    let groups = rec.gpu().caps().spread(n_rows as u32);
    rec.dispatch(variant, &params, &[x.view(), chosen.view(), y.view()], groups);
}
