//! Counts what a sequence has before its next draw, for the penalties.

use super::kernel;
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        seq: u32,
        n_prompt: u32,
        n_tokens: u32,
        tokens_stride: u32,
        counts_stride: u32,
    }
}

kernel!(COUNT_PROMPT, "count_prompt", Params, [Read, ReadWrite]);

/// Clears the counts of sequence `seq` in `counts` `[n_seqs, n_vocab]`, sets bit 31 for each of the first `n_prompt`
/// ids in `tokens` `[n_seqs, ctx]`, and adds one for each of those from there to `n_tokens`.
pub fn count_prompt(
    rec: &mut Recorder,
    tokens: &Tensor,
    counts: &Tensor,
    seq: usize,
    [n_prompt, n_tokens]: [usize; 2],
) {
    let row = counts.row_bytes() as u64;
    rec.clear(counts, seq as u64 * row, row);
    let params = Params {
        seq: seq as u32,
        n_prompt: n_prompt as u32,
        n_tokens: n_tokens as u32,
        tokens_stride: tokens.n_cols() as u32,
        counts_stride: counts.n_cols() as u32,
    };
    let lanes = super::PORTABLE_LANES;
    let groups = rec.gpu().caps().spread((n_tokens as u32).div_ceil(lanes));
    let variant = Variant::new(&COUNT_PROMPT).set("WG", lanes);
    rec.dispatch(variant, &params, &[tokens.view(), counts.view()], groups);
}
