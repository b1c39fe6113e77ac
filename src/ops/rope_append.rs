//! Rotary embedding and the append to the KV cache.

use bytemuck::{Pod, Zeroable};

use super::{assert_rows, kernel, kv};
use crate::gpu::{Recorder, Tensor, Variant};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    n_rows: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    n_rot: u32,
    x_stride: u32,
    q_stride: u32,
    pages_stride: u32,
    page_size: u32,
}

kernel!(ROPE_APPEND, "rope_append", Params, [Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite]);

/// The rotation of queries and keys.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Bits of cosine and sine for each position and frequency, in pairs: `[max_seq_len, n_rot]` U32, which
    /// rows are not padded in.
    pub cos_sin: Tensor,
    /// Dimensions of a head that are rotated.
    pub n_rot: usize,
    /// Pairs are (2i, 2i+1), not (i, i + n_rot/2).
    pub interleaved: bool,
}

/// Splits `qkv` `[n_rows, (n_heads + 2·n_kv_heads)·head_dim]` into rotated queries `q`
/// `[n_rows, n_heads·head_dim]` and rotated keys and values, which go to the pages of each row's place:
/// `rows` `[_, 2]` (sequence, position), `pages` `[n_seqs, _]`, `k` and `v`
/// `[n_pages, n_kv_heads·page_size·head_dim]` F32 or F16.
///
/// Su et al. 2021, equation 34.
///
/// # Panics
/// If the shapes disagree or `head_dim` is not a multiple of 8.
#[allow(clippy::too_many_arguments)]
pub fn rope_append(
    rec: &mut Recorder,
    rows: &Tensor,
    pages: &Tensor,
    qkv: &Tensor,
    rotary: Option<&Rotary>,
    [n_heads, n_kv_heads, head_dim]: [usize; 3],
    page_size: usize,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    n_rows: usize,
) {
    assert_eq!(head_dim % 8, 0, "rope_append: head_dim {head_dim}");
    assert_eq!(qkv.n_cols(), (n_heads + 2 * n_kv_heads) * head_dim, "rope_append: {qkv:?}");
    assert_eq!(q.n_cols(), n_heads * head_dim, "rope_append: {q:?}");
    for cache in [k, v] {
        assert_eq!(cache.n_cols(), n_kv_heads * page_size * head_dim, "rope_append: {cache:?}");
    }
    assert_eq!(k.dtype(), v.dtype(), "rope_append: {k:?} and {v:?}");
    assert_rows("rope_append", qkv, n_rows);
    assert_rows("rope_append", q, n_rows);
    let n_rot = rotary.map_or(0, |r| r.n_rot);
    assert!(n_rot.is_multiple_of(2) && n_rot <= head_dim, "rope_append: {n_rot} of {head_dim} rotated");
    assert!(rotary.is_none_or(|r| r.cos_sin.stride() == r.n_rot), "rope_append: {rotary:?}");
    let params = Params {
        n_rows: n_rows as u32,
        n_heads: n_heads as u32,
        n_kv_heads: n_kv_heads as u32,
        head_dim: head_dim as u32,
        n_rot: n_rot as u32,
        x_stride: qkv.stride() as u32,
        q_stride: (q.stride() / 4) as u32,
        pages_stride: pages.n_cols() as u32,
        page_size: page_size as u32,
    };
    let lanes = super::PORTABLE_LANES;
    let variant = Variant::new(&ROPE_APPEND)
        .part(kv(k.dtype()))
        .set("WG", lanes)
        .set("INTERLEAVED", rotary.is_some_and(|r| r.interleaved).into());
    let cos_sin = rotary.map_or_else(|| rec.unused(), |r| r.cos_sin.view());
    let items = n_rows * (n_heads + 2 * n_kv_heads) * head_dim / 4;
    let groups = rec.gpu().caps().spread((items as u32).div_ceil(lanes));
    let bindings = [rows.view(), pages.view(), qkv.view(), cos_sin, q.view(), k.view(), v.view()];
    rec.dispatch(variant, &params, &bindings, groups);
}
