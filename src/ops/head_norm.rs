//! RMS norm of query and key heads.

use super::{assert_rows, folding, kernel};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        n_rows: u32,
        n_heads: u32,
        n_kv_heads: u32,
        head_dim: u32,
        stride: u32,
        eps: f32,
        offset: f32,
    }
}

kernel!(HEAD_NORM, "head_norm", Params, [Read, Read, ReadWrite]);

/// The norms of query and key heads.
#[derive(Clone, Debug)]
pub struct HeadNorm {
    /// Weights for queries, `[1, head_dim]` F32.
    pub q: Tensor,
    /// Weights for keys, `[1, head_dim]` F32.
    pub k: Tensor,
    /// Added to the mean of squares.
    pub eps: f32,
    /// Added to the weights.
    pub offset: f32,
}

/// Normalises each query and key head of `qkv` `[n_rows, (n_heads + 2·n_kv_heads)·head_dim]`, in place. Values do not
/// change.
///
/// `Qwen3Attention.q_norm` and `k_norm` in transformers' `modeling_qwen3.py`.
///
/// # Panics
/// If the shapes disagree or `head_dim` is not a multiple of 4.
pub fn head_norm(
    rec: &mut Recorder,
    norm: &HeadNorm,
    [n_heads, n_kv_heads]: [usize; 2],
    qkv: &Tensor,
    n_rows: usize,
) {
    let (q_w, k_w) = (&norm.q, &norm.k);
    let head_dim = q_w.n_cols();
    assert_eq!(head_dim % 4, 0, "head_norm: head_dim {head_dim}");
    assert_eq!(k_w.n_cols(), head_dim, "head_norm: {k_w:?}");
    assert_eq!(qkv.n_cols(), (n_heads + 2 * n_kv_heads) * head_dim, "head_norm: {qkv:?}");
    assert_rows("head_norm", qkv, n_rows);
    let params = Params {
        n_rows: n_rows as u32,
        n_heads: n_heads as u32,
        n_kv_heads: n_kv_heads as u32,
        head_dim: head_dim as u32,
        stride: (qkv.stride() / 4) as u32,
        eps: norm.eps,
        offset: norm.offset,
    };
    let variant = folding(&HEAD_NORM, rec);
    let groups = rec.gpu().caps().spread((n_rows * (n_heads + n_kv_heads)) as u32);
    rec.dispatch(variant, &params, &[q_w.view(), k_w.view(), qkv.view()], groups);
}
