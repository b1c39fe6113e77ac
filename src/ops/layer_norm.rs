//! Layer norm.

use super::{assert_rows, folding, kernel};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_cols: u32,
        x_stride: u32,
        y_stride: u32,
        eps: f32,
    }
}

kernel!(LAYER_NORM, "layer_norm", Params, [Read, Read, Read, Read, ReadWrite]);

/// The weights of a layer norm.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// `[1, n_cols]` F32.
    pub w: Tensor,
    /// `[1, n_cols]` F32; zeros if the norm has no bias.
    pub b: Tensor,
    /// Added to the variance.
    pub eps: f32,
}

/// `y[r] = (x[s] − mean) / sqrt(var + eps) · w + b` for `n_rows` rows, where `s` is `r`, or `index[0, r]` if an
/// index `[1, _]` is given. `x` and `y` `[_, n_cols]` F32.
///
/// Ba et al. 2016, equation 4.
///
/// # Panics
/// If the shapes disagree.
pub fn layer_norm(
    rec: &mut Recorder,
    x: &Tensor,
    norm: &LayerNorm,
    index: Option<&Tensor>,
    y: &Tensor,
    n_rows: usize,
) {
    let (LayerNorm { w, b, eps }, n) = (norm, y.n_cols());
    assert_eq!([x.n_cols(), w.n_cols(), b.n_cols()], [n; 3], "layer_norm: {x:?}, {w:?}, {b:?}, {y:?}");
    assert_rows("layer_norm", y, n_rows);
    let params = Params {
        n_rows: n_rows as u32,
        n_cols: n as u32,
        x_stride: (x.stride() / 4) as u32,
        y_stride: (y.stride() / 4) as u32,
        eps: *eps,
    };
    let variant = folding(&LAYER_NORM, rec).set("GATHER", index.is_some().into());
    let index = index.map_or_else(|| rec.unused(), Tensor::view);
    let groups = rec.gpu().caps().spread(n_rows as u32);
    rec.dispatch(variant, &params, &[x.view(), w.view(), b.view(), index, y.view()], groups);
}
