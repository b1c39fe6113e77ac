//! Unfolding (im2col), which makes convolutions over rows products.

use super::{assert_rows, kernel};
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        first: u32,
        n_in: u32,
        n_rows: u32,
        n_channels: u32,
        stride: u32,
        x_stride: u32,
        y_stride: u32,
    }
}

kernel!(UNFOLD, "unfold", Params, [Read, ReadWrite]);

/// Writes the inputs of each output of a convolution over rows of width 3, padding 1 and stride `stride`:
/// `y[t, 3c + k] = x[first + stride·t + k − 1, c]`, zero outside the `n_in` rows from `first` on. `x` is
/// `[_, n_channels]`, `y` `[⌈n_in / stride⌉, 3·n_channels]`, both F32.
///
/// # Panics
/// If the shapes disagree.
pub fn unfold(rec: &mut Recorder, x: &Tensor, first: usize, n_in: usize, stride: usize, y: &Tensor) {
    let n_rows = n_in.div_ceil(stride);
    assert_eq!(y.n_cols(), 3 * x.n_cols(), "unfold: {x:?} and {y:?}");
    assert_rows("unfold", x, first + n_in);
    assert_rows("unfold", y, n_rows);
    let params = Params {
        first: first as u32,
        n_in: n_in as u32,
        n_rows: n_rows as u32,
        n_channels: x.n_cols() as u32,
        stride: stride as u32,
        x_stride: x.stride() as u32,
        y_stride: y.stride() as u32,
    };
    let lanes = super::PORTABLE_LANES;
    let items = (n_rows * y.n_cols()) as u32;
    let groups = rec.gpu().caps().spread(items.div_ceil(lanes));
    rec.dispatch(Variant::new(&UNFOLD).set("WG", lanes), &params, &[x.view(), y.view()], groups);
}
