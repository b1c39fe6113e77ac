//! Softmax and log-softmax.

use super::{EXP_SUM, assert_rows, kernel, vocabulary};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_cols: u32,
        x_stride: u32,
        y_stride: u32,
    }
}

kernel!(SOFTMAX, "softmax", Params, [Read, Read, ReadWrite]);

/// `y = softmax(x)` over the columns of `n_rows` rows, or its logarithm if `log`. With `filters` `[_, 2]` F32
/// as [`sample`](super::sample) leaves them, each row is scaled by the first value and elements below the second
/// count as minus infinity (the most negative finite number in the output, if `log`).
///
/// # Panics
/// If the shapes disagree.
pub fn softmax(
    rec: &mut Recorder,
    x: &Tensor,
    filters: Option<&Tensor>,
    log: bool,
    y: &Tensor,
    n_rows: usize,
) {
    assert_eq!(x.n_cols(), y.n_cols(), "softmax: {x:?} and {y:?}");
    assert_rows("softmax", x, n_rows);
    assert_rows("softmax", y, n_rows);
    let params = Params {
        n_rows: n_rows as u32,
        n_cols: x.n_cols() as u32,
        x_stride: (x.stride() / 4) as u32,
        y_stride: (y.stride() / 4) as u32,
    };
    let variant = vocabulary(&SOFTMAX, rec, x.n_cols()).part(&EXP_SUM);
    let variant = variant.set("LOG", log.into()).set("FILTER", filters.is_some().into());
    let filters = filters.map_or_else(|| rec.unused(), Tensor::view);
    let groups = rec.gpu().caps().spread(n_rows as u32);
    rec.dispatch(variant, &params, &[x.view(), filters, y.view()], groups);
}
