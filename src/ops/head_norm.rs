//! RMS norm of queries and keys, of each head or of all together.

use super::{assert_rows, folding, kernel};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_q: u32,
        n_k: u32,
        q_n4: u32,
        k_n4: u32,
        stride: u32,
        eps: f32,
        offset: f32,
    }
}

kernel!(HEAD_NORM, "head_norm", Params, [Read, Read, ReadWrite]);

/// The norms of queries and keys: of each head, or of all heads together, by the width of the weights.
#[derive(Clone, Debug)]
pub struct HeadNorm {
    /// Weights for queries, `[1, head_dim]` or `[1, n_heads·head_dim]` F32.
    pub q: Tensor,
    /// Weights for keys, `[1, head_dim]` or `[1, n_kv_heads·head_dim]` F32.
    pub k: Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Added to the weights.
    pub offset: f32,
}

/// Normalises queries and keys of `qkv` `[n_rows, (n_heads + 2·n_kv_heads)·head_dim]`, in place. Values do not change.
///
/// `q_norm` and `k_norm` in transformers' `modeling_qwen3.py`, of each head, and `modeling_olmo2.py`, of all together.
///
/// # Panics
/// If the shapes disagree or `head_dim` is not a multiple of 4.
pub fn head_norm(
    rec: &mut Recorder,
    norm: &HeadNorm,
    [n_heads, n_kv_heads, head_dim]: [usize; 3],
    qkv: &Tensor,
    n_rows: usize,
) {
    let (q_w, k_w) = (&norm.q, &norm.k);
    assert_eq!(head_dim % 4, 0, "head_norm: head_dim {head_dim}");
    for (w, n) in [(q_w, n_heads), (k_w, n_kv_heads)] {
        assert!(
            [head_dim, n * head_dim].contains(&w.n_cols()),
            "head_norm: {w:?} for {n} heads of {head_dim}"
        );
    }
    assert_eq!(qkv.n_cols(), (n_heads + 2 * n_kv_heads) * head_dim, "head_norm: {qkv:?}");
    assert_rows("head_norm", qkv, n_rows);
    let [n_q, n_k] = [(q_w, n_heads), (k_w, n_kv_heads)].map(|(w, n)| n * head_dim / w.n_cols());
    let params = Params {
        n_rows: n_rows as u32,
        n_q: n_q as u32,
        n_k: n_k as u32,
        q_n4: (q_w.n_cols() / 4) as u32,
        k_n4: (k_w.n_cols() / 4) as u32,
        stride: (qkv.stride() / 4) as u32,
        eps: norm.eps,
        offset: norm.offset,
    };
    let variant = folding(&HEAD_NORM, rec);
    let groups = rec.gpu().caps().spread((n_rows * (n_q + n_k)) as u32);
    rec.dispatch(variant, &params, &[q_w.view(), k_w.view(), qkv.view()], groups);
}
