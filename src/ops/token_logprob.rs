//! Log-probabilities of a prompt's tokens.

use std::ops::Range;

use super::{EXP_SUM, assert_rows, kernel, vocabulary};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        r0: u32,
        n_rows: u32,
        n_vocab: u32,
        z_stride: u32,
        tokens_stride: u32,
    }
}

kernel!(TOKEN_LOGPROB, "token_logprob", Params, [Read, Read, Read, Read, ReadWrite]);

/// Writes to `y` `[1, _]`, from its start on, the log-probability that each row in `range` of the logits `z` `[_,
/// n_vocab]` gives to the token after its position. `rows` `[_, 2]` and `index` `[1, _]` give the sequence and position
/// of a row of `z`, `tokens` `[n_seqs, ctx]` the next token.
///
/// # Panics
/// If the shapes disagree.
pub fn token_logprob(
    rec: &mut Recorder,
    rows: &Tensor,
    index: &Tensor,
    tokens: &Tensor,
    z: &Tensor,
    range: Range<usize>,
    y: &Tensor,
) {
    assert_rows("token_logprob", z, range.end);
    assert!(index.n_cols() >= range.end && y.n_cols() >= range.len(), "token_logprob: {index:?} and {y:?}");
    let params = Params {
        r0: range.start as u32,
        n_rows: range.len() as u32,
        n_vocab: z.n_cols() as u32,
        z_stride: (z.stride() / 4) as u32,
        tokens_stride: tokens.n_cols() as u32,
    };
    let variant = vocabulary(&TOKEN_LOGPROB, rec, z.n_cols()).part(&EXP_SUM);
    let groups = rec.gpu().caps().spread(range.len() as u32);
    rec.dispatch(variant, &params, &[rows, index, tokens, z, y].map(Tensor::view), groups);
}
