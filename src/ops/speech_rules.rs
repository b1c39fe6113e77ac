//! The rules for the next token of a transcript.

use super::{assert_rows, kernel, vocabulary};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_vocab: u32,
        z_stride: u32,
        tokens_stride: u32,
    }
}

kernel!(SPEECH_RULES, "speech_rules", Params, [Read, Read, Records(SpeechRecord), Read, ReadWrite]);

device_struct! {
    /// A sequence's rules, as the device reads them.
    pub struct SpeechRecord {
        /// 1: there are rules.
        pub on: u32,
        /// Tokens before the first that is generated.
        pub prompt_len: u32,
        /// The token that ends a transcript.
        pub end: u32,
        /// 1: timestamps are drawn.
        pub timestamps: u32,
        /// The timestamp of zero; the others follow it, to the end of the vocabulary.
        pub first: u32,
        /// The token that says that there are none.
        pub no_timestamps: u32,
        /// The highest timestamp that may begin, counted from the first.
        pub max_initial: u32,
        /// Not used.
        pub pad: u32,
        /// Tokens that may not come first; [`u32::MAX`] for none.
        pub suppress_first: [u32; 4],
    }
}

/// Sets the logits of tokens that the rules of each row's sequence do not allow next to -1e30, in `z` `[n_rows,
/// n_vocab]` F32. `rows` `[_, 2]` holds (sequence, position), `index` `[1, n_rows]` the row of the batch for a row of
/// `z`, `rules` `[n_seqs, 12]` U32 [`SpeechRecord`]s, `tokens` `[n_seqs, ctx]` ids.
///
/// The rules are in `shaders/speech_rules.wgsl`. Reference: openai/whisper's `decoding.py`.
///
/// # Panics
/// If the shapes disagree.
pub fn speech_rules(
    rec: &mut Recorder,
    rows: &Tensor,
    index: &Tensor,
    rules: &Tensor,
    tokens: &Tensor,
    z: &Tensor,
    n_rows: usize,
) {
    assert_eq!(rules.n_cols(), size_of::<SpeechRecord>() / 4, "speech_rules: {rules:?}");
    assert_rows("speech_rules", z, n_rows);
    let params = Params {
        n_rows: n_rows as u32,
        n_vocab: z.n_cols() as u32,
        z_stride: z.stride() as u32,
        tokens_stride: tokens.n_cols() as u32,
    };
    let variant = vocabulary(&SPEECH_RULES, rec, z.n_cols());
    let groups = rec.gpu().caps().spread(n_rows as u32);
    let bindings = [rows, index, rules, tokens, z].map(Tensor::view);
    rec.dispatch(variant, &params, &bindings, groups);
}
