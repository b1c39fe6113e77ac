//! Draws the next token.

use super::{SAMPLING, SELECT, assert_rows, kernel, vocabulary};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_vocab: u32,
        z_stride: u32,
        tokens_stride: u32,
    }
}

kernel!(
    SAMPLE,
    "sample",
    Params,
    [Read, Records(SamplingRecord), Read, ReadWrite, ReadWrite, ReadWrite, ReadWrite, ReadWrite]
);

/// The token that `sample` writes if logits are not finite.
pub const NOT_A_TOKEN: u32 = u32::MAX;

device_struct! {
    /// One sequence's sampling parameters as the device reads them: `Sampling` in `shaders/parts/sampling.wgsl`.
    pub struct SamplingRecord {
        /// Low word of the seed.
        pub seed_low: u32,
        /// High word of the seed.
        pub seed_high: u32,
        /// 0 takes the most probable token.
        pub temperature: f32,
        /// 0 is off.
        pub top_k: u32,
        /// 1 is off.
        pub top_p: f32,
        /// 0 is off.
        pub min_p: f32,
        /// 1 is off.
        pub repetition_penalty: f32,
        /// 0 is off.
        pub presence_penalty: f32,
        /// 0 is off.
        pub frequency_penalty: f32,
        /// Entries of the bias list.
        pub n_bias: u32,
        /// 1 if tokens are counted for the penalties.
        pub counts: u32,
        /// Fills the record to a multiple of 16 bytes.
        pub pad: u32,
    }
}

/// The rows of a batch that get a token.
#[derive(Clone, Copy, Debug)]
pub struct Draws<'a> {
    /// (sequence, position) of each row of the batch: `[_, 2]`.
    pub rows: &'a Tensor,
    /// The row of the batch for each row of logits: `[1, _]`.
    pub index: &'a Tensor,
    /// [`SamplingRecord`]s: `[n_seqs, 12]` U32.
    pub sampling: &'a Tensor,
    /// The counts of [`count_prompt`](super::count_prompt) and [`sample`]: `[n_seqs, n_vocab]` U32.
    pub counts: &'a Tensor,
}

/// Draws a token for each of `n_rows` rows of logits `z` `[n_rows, n_vocab]`. Writes it to `chosen` `[1, n_rows]` and
/// to `tokens` `[n_seqs, ctx]` at the next position, counts it in `counts` if the sequence has penalties, advances the
/// row's position in `rows`, and writes the bits of `1/temperature` and of the smallest kept logit to `filters`
/// `[n_rows, 2]` U32.
///
/// The formulas are in `shaders/sample.wgsl`. Ties at the border of top-k and top-p are kept. transformers does so for
/// top-k, but breaks ties for top-p by the order of its sort.
///
/// # Panics
/// If the shapes disagree.
pub fn sample(
    rec: &mut Recorder,
    draws: Draws<'_>,
    z: &Tensor,
    tokens: &Tensor,
    chosen: &Tensor,
    filters: &Tensor,
    n_rows: usize,
) {
    let Draws { rows, index, sampling, counts } = draws;
    assert_eq!(counts.n_cols(), z.n_cols(), "sample: {counts:?} and {z:?}");
    assert_rows("sample", z, n_rows);
    assert_rows("sample", filters, n_rows);
    let params = Params {
        n_rows: n_rows as u32,
        n_vocab: z.n_cols() as u32,
        z_stride: (z.stride() / 4) as u32,
        tokens_stride: tokens.n_cols() as u32,
    };
    let variant = vocabulary(&SAMPLE, rec, z.n_cols()).part(&SAMPLING).part(&SELECT);
    let bindings = [index, sampling, z, rows, tokens, counts, chosen, filters].map(Tensor::view);
    let groups = rec.gpu().caps().spread(n_rows as u32);
    rec.dispatch(variant, &params, &bindings, groups);
}
