//! Quantises weights on the device.

use super::{WORDS_32, assert_rows, kernel, quantizer, weights};
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_blocks: u32,
        w_stride: u32,
        y_stride: u32,
        y0: u32,
    }
}

kernel!(QUANTIZE, "quantize", Params, [Read, ReadWrite]);

/// Quantises the first `n_rows` rows of `w` `[_, n_cols]` F32, F16 or BF16 to the type of `y` `[_, n_cols]`, and writes
/// them to `y` from row `y0` on.
///
/// ggml's rules: `ggml-quants.c`, `quantize_row_q8_0_ref`, `quantize_row_q4_0_ref`, `quantize_row_q4_K_ref`.
///
/// # Panics
/// If the shapes disagree or `y` is not quantised.
pub fn quantize(rec: &mut Recorder, w: &Tensor, y: &Tensor, y0: usize, n_rows: usize) {
    assert_eq!(w.n_cols(), y.n_cols(), "quantize: {w:?} and {y:?}");
    assert_rows("quantize", w, n_rows);
    assert_rows("quantize", y, y0 + n_rows);
    let lanes = super::PORTABLE_LANES;
    let variant = Variant::new(&QUANTIZE)
        .part(&WORDS_32)
        .part(weights(w.dtype()))
        .part(quantizer(y.dtype()))
        .set("WG", lanes);
    let source = w.view();
    for range in y.ranges() {
        let (first, end) = (range.rows.start.max(y0), range.rows.end.min(y0 + n_rows));
        if first >= end {
            continue;
        }
        assert_eq!(first, y0, "quantize: rows of {y:?} in one binding");
        let params = Params {
            n_rows: (end - first) as u32,
            n_blocks: super::n_blocks(w),
            w_stride: super::words(w),
            y_stride: super::words(y),
            y0: (first - range.rows.start) as u32,
        };
        let items = params.n_rows * params.n_blocks.div_ceil(8);
        let groups = rec.gpu().caps().spread(items.div_ceil(lanes));
        rec.dispatch(variant, &params, &[source.clone(), range], groups);
    }
}
