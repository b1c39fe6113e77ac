//! Measures the device's rate of fused multiply-adds.

use super::kernel;
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        n: u32,
        n_steps: u32,
        a: f32,
        b: f32,
    }
}

kernel!(PROBE_FMA, "probe_fma", Params, [Read, ReadWrite]);

/// `y[i]` is `x[i]` after `n_steps` times `v ↦ v·a + b`; `x` and `y` are F32 with the same shape.
///
/// # Panics
/// If shapes disagree, rows times stride is not a multiple of 16, or `n_steps` is not a multiple of 8.
pub fn probe_fma(rec: &mut Recorder, x: &Tensor, y: &Tensor, n_steps: usize, [a, b]: [f32; 2]) {
    assert_eq!((x.n_rows(), x.n_cols()), (y.n_rows(), y.n_cols()), "probe_fma: {x:?} and {y:?}");
    let n = x.n_rows() * x.stride();
    assert!(n.is_multiple_of(16) && n_steps.is_multiple_of(8), "probe_fma: {n_steps} steps of {x:?}");
    let params = Params { n: (n / 4) as u32, n_steps: n_steps as u32, a, b };
    let lanes = super::PORTABLE_LANES;
    let groups = (params.n / 4).div_ceil(lanes);
    assert!(groups <= rec.gpu().caps().max_workgroups, "probe_fma: {x:?} is too large");
    rec.dispatch(Variant::new(&PROBE_FMA).set("WG", lanes), &params, &[x.view(), y.view()], [groups, 1, 1]);
}
