//! Root-mean-square norm.

use bytemuck::{Pod, Zeroable};

use super::{assert_rows, folding, kernel};
use crate::gpu::{Recorder, Tensor};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    n_rows: u32,
    n_cols: u32,
    x_stride: u32,
    y_stride: u32,
    eps: f32,
    offset: f32,
}

kernel!(RMS_NORM, "rms_norm", Params, [Read, Read, Read, ReadWrite]);

/// `y[r] = x[s] / sqrt(mean(x[s]²) + eps) · (w + offset)` for `n_rows` rows, where `s` is `r`, or
/// `index[0, r]` if an index `[1, _]` is given. `x` and `y` `[_, n_cols]`, `w` `[1, n_cols]` F32.
///
/// Zhang & Sennrich 2019, equation 4; `offset` is 1 for models that store the weight less one.
///
/// # Panics
/// If the shapes disagree.
#[allow(clippy::too_many_arguments)]
pub fn rms_norm(
    rec: &mut Recorder,
    x: &Tensor,
    w: &Tensor,
    index: Option<&Tensor>,
    eps: f32,
    offset: f32,
    y: &Tensor,
    n_rows: usize,
) {
    assert_eq!((x.n_cols(), w.n_cols()), (y.n_cols(), y.n_cols()), "rms_norm: {x:?}, {w:?}, {y:?}");
    assert_rows("rms_norm", y, n_rows);
    let params = Params {
        n_rows: n_rows as u32,
        n_cols: x.n_cols() as u32,
        x_stride: (x.stride() / 4) as u32,
        y_stride: (y.stride() / 4) as u32,
        eps,
        offset,
    };
    let variant = folding(&RMS_NORM, rec.gpu().caps()).set("GATHER", index.is_some().into());
    let index = index.map_or_else(|| rec.unused(), Tensor::view);
    let groups = rec.gpu().caps().spread(n_rows as u32);
    rec.dispatch(variant, &params, &[x.view(), w.view(), index, y.view()], groups);
}
