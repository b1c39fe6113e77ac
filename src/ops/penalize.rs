//! Penalties and biases on logits.

use super::{Draws, SAMPLING, SamplingRecord, assert_rows, kernel};
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_vocab: u32,
        z_stride: u32,
        bias_stride: u32,
    }
}

kernel!(PENALIZE, "penalize", Params, [Read, Read, Records(SamplingRecord), Read, Read, ReadWrite]);

/// Tokens of a lane: `EACH` in the shader.
const EACH: u32 = 8;

/// Applies each sequence's repetition, presence and frequency penalties and its logit bias to logits `z`
/// `[n_rows, n_vocab]`, in place. `bias` `[n_seqs, 2·most]` U32 holds pairs of token and bits of the bias.
///
/// Keskar et al. 2019, section 4.1, for the repetition penalty; OpenAI's API reference for the others.
///
/// # Panics
/// If the shapes disagree.
pub fn penalize(rec: &mut Recorder, draws: Draws<'_>, bias: &Tensor, z: &Tensor, n_rows: usize) {
    let Draws { rows, index, sampling, counts } = draws;
    assert_eq!(counts.n_cols(), z.n_cols(), "penalize: {counts:?} and {z:?}");
    assert_rows("penalize", z, n_rows);
    let params = Params {
        n_rows: n_rows as u32,
        n_vocab: z.n_cols() as u32,
        z_stride: z.stride() as u32,
        bias_stride: (bias.n_cols() / 2) as u32,
    };
    let bindings = [rows, index, sampling, bias, counts, z].map(Tensor::view);
    let lanes = super::PORTABLE_LANES;
    let variant = Variant::new(&PENALIZE).part(&SAMPLING).set("WG", lanes);
    let [gx, gy, _] = rec.gpu().caps().spread(n_rows as u32);
    rec.dispatch(variant, &params, &bindings, [gx, gy, params.n_vocab.div_ceil(EACH * lanes)]);
}
