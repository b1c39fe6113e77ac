//! Root-mean-square norm.

use std::ops::Range;

use super::{assert_rows, folding, kernel};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        row0: u32,
        n_rows: u32,
        n_cols: u32,
        x_stride: u32,
        y_stride: u32,
        eps: f32,
        offset: f32,
    }
}

kernel!(RMS_NORM, "rms_norm", Params, [Read, Read, Read, ReadWrite]);

/// The weights of a root-mean-square norm.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// `[1, n_cols]` F32.
    pub w: Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Added to the weights: 1 for models that store them minus one.
    pub offset: f32,
}

/// `y[r] = x[s] / sqrt(mean(x[s]²) + eps) · (w + offset)`, or added to `y` if `add`, for the rows of `range`, where `s` is
/// `r`, or `index[0, r]` if an index `[1, _]` is given. `x` and `y` `[_, n_cols]` F32.
///
/// Zhang & Sennrich 2019, equation 4.
///
/// # Panics
/// If the shapes disagree.
pub fn rms_norm(
    rec: &mut Recorder,
    x: &Tensor,
    norm: &RmsNorm,
    index: Option<&Tensor>,
    add: bool,
    y: &Tensor,
    range: Range<usize>,
) {
    let w = &norm.w;
    assert_eq!((x.n_cols(), w.n_cols()), (y.n_cols(), y.n_cols()), "rms_norm: {x:?}, {w:?}, {y:?}");
    assert_rows("rms_norm", y, range.end);
    let params = Params {
        row0: range.start as u32,
        n_rows: range.len() as u32,
        n_cols: x.n_cols() as u32,
        x_stride: (x.stride() / 4) as u32,
        y_stride: (y.stride() / 4) as u32,
        eps: norm.eps,
        offset: norm.offset,
    };
    let variant = folding(&RMS_NORM, rec).set("GATHER", index.is_some().into());
    let variant = if add { variant.set("ADD", 1) } else { variant };
    let index = index.map_or_else(|| rec.unused(), Tensor::view);
    let groups = rec.gpu().caps().spread(range.len() as u32);
    rec.dispatch(variant, &params, &[x.view(), w.view(), index, y.view()], groups);
}
