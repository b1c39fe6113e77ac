//! Rotary embedding and append to the KV cache.

use std::ops::Range;

use super::{KvLayer, append, assert_rows, kernel};
use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct Params {
        row0: u32,
        n_rows: u32,
        n_heads: u32,
        n_kv_heads: u32,
        head_dim: u32,
        n_rot: u32,
        x_stride: u32,
        q_stride: u32,
        pages_stride: u32,
        page_size: u32,
        original: u32,
        beta: f32,
    }
}

kernel!(ROPE_APPEND, "rope_append", Params, [Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite]);

/// The rotation of queries and keys.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Pairs of bits of cosine and sine for each position and frequency: `[max_seq_len, n_rot]`. U32, so that rows have
    /// no padding.
    pub cos_sin: Tensor,
    /// Rotated dimensions of a head.
    pub n_rot: usize,
    /// Pairs are (2i, 2i+1), not (i, i + n_rot/2).
    pub interleaved: bool,
    /// The factor on rotated queries.
    pub temperature: Option<Temperature>,
}

/// A factor on queries that grows with their position: `1 + beta·ln(1 + ⌊pos / original⌋)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    /// How much it grows.
    pub beta: f32,
    /// Positions with the factor 1, at least one.
    pub original: u32,
}

impl Temperature {
    /// Sets the override that a kernel reads, and returns its parameters.
    pub(super) fn set(variant: Variant, of: Option<&Rotary>) -> (Variant, Temperature) {
        match of.and_then(|rotary| rotary.temperature) {
            Some(temperature) => (variant.set("TEMPERED", 1), temperature),
            None => (variant, Temperature { beta: 0.0, original: 1 }),
        }
    }
}

/// The sequences, positions and pages of a batch's rows.
#[derive(Clone, Copy, Debug)]
pub struct Places<'a> {
    /// (sequence, position) of each row: `[_, 2]`.
    pub rows: &'a Tensor,
    /// Pages of each sequence: `[n_seqs, _]`.
    pub pages: &'a Tensor,
    /// Positions per page.
    pub page_size: usize,
}

/// Where projected queries, keys and values go.
#[derive(Clone, Copy, Debug)]
pub struct RopeAppend<'a> {
    /// The rotation of queries and keys.
    pub rotary: Option<&'a Rotary>,
    /// `n_heads`, `n_kv_heads`, `head_dim`.
    pub heads: [usize; 3],
    /// The rows' places in the cache.
    pub places: Places<'a>,
    /// The queries `[_, n_heads·head_dim]` F32. If there are no query heads, it is not written.
    pub q: &'a Tensor,
    /// Keys and values of this layer, to which those of the rows are appended.
    pub cache: &'a KvLayer,
}

/// Splits the rows `range` of `qkv` `[_, (n_heads + 2·n_kv_heads)·head_dim]` F32 into rotated queries, which go to `q`,
/// and rotated keys and values, which go to each row's page in the cache.
///
/// Su et al. 2021, equation 34.
///
/// # Panics
/// If the shapes disagree, or `head_dim` is not a multiple of 4 (for a `Q8_0` cache, of 32).
pub fn rope_append(rec: &mut Recorder, qkv: &Tensor, to: RopeAppend<'_>, range: Range<usize>) {
    let RopeAppend { rotary, heads: [n_heads, n_kv_heads, head_dim], places, q, cache } = to;
    let Places { rows, pages, page_size } = places;
    // Dimensions per invocation: in a quantised cache a whole block.
    let n_dims = if cache.dtype == Dtype::Q8_0 { BLOCK } else { 4 };
    assert!(head_dim % n_dims == 0, "rope_append: head_dim {head_dim}");
    assert_eq!(qkv.n_cols(), (n_heads + 2 * n_kv_heads) * head_dim, "rope_append: {qkv:?}");
    assert!(n_heads == 0 || q.n_cols() == n_heads * head_dim, "rope_append: {q:?}");
    cache.check("rope_append", n_kv_heads * page_size * head_dim);
    for tensor in [qkv, rows].into_iter().chain((n_heads > 0).then_some(q)) {
        assert_rows("rope_append", tensor, range.end);
    }
    let n_rot = rotary.map_or(0, |r| r.n_rot);
    assert!(n_rot.is_multiple_of(2) && n_rot <= head_dim, "rope_append: {n_rot} of {head_dim} rotated");
    assert!(rotary.is_none_or(|r| r.cos_sin.stride() == r.n_rot), "rope_append: {rotary:?}");
    let lanes = super::PORTABLE_LANES;
    let variant = Variant::new(&ROPE_APPEND)
        .part(append(cache.dtype))
        .set("WG", lanes)
        .set("INTERLEAVED", rotary.is_some_and(|r| r.interleaved).into())
        // As an override, because otherwise the divisions for the angles took most of the kernel's time on llvmpipe.
        .set("ROTATES", (n_rot > 0).into());
    let (variant, Temperature { beta, original }) = Temperature::set(variant, rotary);
    let params = Params {
        row0: range.start as u32,
        n_rows: range.len() as u32,
        n_heads: n_heads as u32,
        n_kv_heads: n_kv_heads as u32,
        head_dim: head_dim as u32,
        n_rot: n_rot as u32,
        x_stride: qkv.stride() as u32,
        q_stride: (q.stride() / 4) as u32,
        pages_stride: pages.n_cols() as u32,
        page_size: page_size as u32,
        original,
        beta,
    };
    let cos_sin = rotary.map_or_else(|| rec.unused(), |r| r.cos_sin.view());
    let items = range.len() * (n_heads + 2 * n_kv_heads) * head_dim / n_dims;
    let groups = rec.gpu().caps().spread((items as u32).div_ceil(lanes));
    let bindings = [rows.view(), pages.view(), qkv.view(), cos_sin, q.view(), cache.k.view(), cache.v.view()];
    rec.dispatch(variant, &params, &bindings, groups);
}
