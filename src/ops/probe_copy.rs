//! Measures the device's memory bandwidth.

use super::kernel;
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        n: u32,
    }
}

kernel!(PROBE_COPY, "probe_copy", Params, [Read, ReadWrite]);

/// Lanes per workgroup: the most that every device allows.
const LANES: u32 = 256;
/// Least copies per invocation, so that its start and end cost little.
const COPIES: u32 = 4;

/// `y = x`, with the same shape and type.
///
/// # Panics
/// If shapes or types disagree, or the size of a row is not a multiple of 16 bytes.
pub fn probe_copy(rec: &mut Recorder, x: &Tensor, y: &Tensor) {
    assert_eq!((x.dtype(), x.n_rows(), x.n_cols()), (y.dtype(), y.n_rows(), y.n_cols()), "probe_copy");
    let bytes = x.row_bytes() * x.n_rows();
    assert_eq!(bytes % 16, 0, "probe_copy: {x:?}");
    let params = Params { n: (bytes / 16) as u32 };
    let groups = params.n.div_ceil(LANES * COPIES).min(rec.gpu().caps().max_workgroups);
    let variant = Variant::new(&PROBE_COPY).set("WG", LANES);
    rec.dispatch(variant, &params, &[x.view(), y.view()], [groups, 1, 1]);
}
