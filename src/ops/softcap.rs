//! A factor and a cap on logits.

use super::{PORTABLE_LANES, assert_rows, kernel};
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        n: u32,
        scale: f32,
        softcap: f32,
    }
}

kernel!(SOFTCAP, "softcap", Params, [ReadWrite]);

/// `y = cap · tanh(scale · y / cap)`, or `y = scale · y` if there is no cap, in place for the first `n_rows` rows of `y`
/// `[_, n_cols]` F32.
///
/// `final_logit_softcapping` in transformers' `modeling_gemma2.py`.
///
/// # Panics
/// If `y` has fewer rows.
pub fn softcap(rec: &mut Recorder, y: &Tensor, scale: f32, cap: Option<f32>, n_rows: usize) {
    assert_rows("softcap", y, n_rows);
    let n = (n_rows * y.stride() / 4) as u32;
    let params = Params { n, scale, softcap: cap.unwrap_or(0.0) };
    let variant = Variant::new(&SOFTCAP).set("WG", PORTABLE_LANES);
    let groups = rec.gpu().caps().spread(n.div_ceil(PORTABLE_LANES));
    rec.dispatch(variant, &params, &[y.view()], groups);
}
