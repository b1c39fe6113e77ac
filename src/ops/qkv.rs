//! The first half of attention: norm, joint projection, rotation and append to the cache in one kernel.

use std::ops::Range;

use super::{
    Affine, HeadNorm, RopeAppend, Rows, Span, Temperature, assert_rows, head_norm, kernel, linear, pair,
    rope_append, weights, words_part,
};
use crate::dtype::Dtype;
use crate::gpu::{Recorder, Size, Tensor, device_struct};

device_struct! {
    struct Params {
        row0: u32,
        n_rows: u32,
        n_in: u32,
        n_blocks: u32,
        x_stride: u32,
        w_stride: u32,
        n_heads: u32,
        n_kv_heads: u32,
        head_dim: u32,
        n_rot: u32,
        q_stride: u32,
        pages_stride: u32,
        page_size: u32,
        eps: f32,
        offset: f32,
        original: u32,
        beta: f32,
    }
}

kernel!(QKV, "qkv", Params, [Read, Read, Read, Read, Read, Read, Read, ReadWrite, ReadWrite, ReadWrite]);

/// What [`qkv`] reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Qkv<'a> {
    /// The joint projection, to `(n_heads + 2·n_kv_heads)·head_dim` outputs: queries, keys, values.
    pub product: Affine<'a>,
    /// The norms of queries and keys.
    pub head_norm: Option<&'a HeadNorm>,
    /// Scratch `[rows, outputs]` F32 for the product if heads are normalised in between, or if the device runs the steps
    /// as kernels of their own.
    pub projected: &'a Tensor,
    /// The rotation, and where queries, keys and values go.
    pub to: RopeAppend<'a>,
}

/// Projects, rotates and appends: of the product's outputs the queries go to `q`, the keys and values to each row's page
/// in `cache`, as in [`rope_append`].
///
/// # Panics
/// If the shapes disagree.
pub fn qkv(rec: &mut Recorder, qkv: Qkv<'_>, n: Rows) {
    let Qkv { product, head_norm: norm, projected, to } = qkv;
    let RopeAppend { rotary, heads, cache, .. } = to;
    let gpu = rec.gpu().clone();
    let caps = gpu.caps();
    // A lane has only two pairs of dimensions, not a whole head or block.
    let fuses = norm.is_none()
        && product.w.ranges().count() == 1
        && caps.max_storage_buffers as usize >= QKV.bindings.len()
        && cache.dtype != Dtype::Q8_0
        && rotary.is_none_or(|r| r.n_rot.is_multiple_of(4));
    if !fuses {
        linear::linear(rec, product, false, projected, n);
        if let Some(norm) = norm {
            head_norm(rec, norm, heads, projected, n.count());
        }
        rope_append(rec, projected, to, 0..n.count());
        return;
    }
    for span in Span::all(rec, "qkv", product.w, n) {
        // On llvmpipe, a product of eight rows with rotation and append in one kernel took twice as long as two
        // kernels.
        if span.way.shares() && !(caps.cpu && span.n_rows > 2) {
            fused(rec, qkv, span);
        } else {
            linear::span(rec, product, false, projected, span);
            rope_append(rec, projected, to, span.rows());
        }
    }
}

/// As [`qkv`], for the rows of a span and in one kernel.
pub(super) fn fused(rec: &mut Recorder, qkv: Qkv<'_>, span: Span) {
    let Qkv { product, to, .. } = qkv;
    let RopeAppend { rotary, heads: [n_heads, n_kv_heads, head_dim], places, q, cache } = to;
    product.assert("qkv");
    let Affine { input, w, bias } = product;
    let x = input.x;
    let n_rot = rotary.map_or(0, |r| r.n_rot);
    assert_eq!(w.n_rows(), (n_heads + 2 * n_kv_heads) * head_dim, "qkv: {w:?}");
    assert_eq!(q.n_cols(), n_heads * head_dim, "qkv: {q:?}");
    assert!(rotary.is_none_or(|r| r.cos_sin.stride() == r.n_rot), "qkv: {rotary:?}");
    assert!(head_dim.is_multiple_of(4) && n_rot <= head_dim, "qkv: {n_rot} of {head_dim} rotated");
    cache.check("qkv", n_kv_heads * places.page_size * head_dim);
    for tensor in [x, q, places.rows] {
        assert_rows("qkv", tensor, span.rows().end);
    }
    let caps = rec.caps(super::PRODUCTS);
    let n_shared = span.n_shared(caps, w.dtype()) as u32;
    let (variant, groups) = span.sharing(&QKV, caps, w.dtype(), (w.n_rows() / 4) as u32);
    let variant = variant.part(words_part(caps)).part(weights(w.dtype())).part(pair(cache.dtype));
    let variant = input.set(variant).set("BIAS", bias.is_some().into());
    let variant = variant.set("INTERLEAVED", rotary.is_some_and(|r| r.interleaved).into());
    let (variant, Temperature { beta, original }) = Temperature::set(variant, rotary);
    let (norm, eps, offset) = input.norm_params(rec);
    // A piece is a group of rows.
    let params = |pieces: Range<usize>| Params {
        row0: span.row0 as u32 + pieces.start as u32 * n_shared,
        n_rows: (pieces.len() as u32 * n_shared).min(span.n_rows as u32 - pieces.start as u32 * n_shared),
        n_in: w.n_cols() as u32,
        n_blocks: super::n_blocks(w),
        x_stride: (x.stride() / 4) as u32,
        w_stride: super::words(w),
        n_heads: n_heads as u32,
        n_kv_heads: n_kv_heads as u32,
        head_dim: head_dim as u32,
        n_rot: n_rot as u32,
        q_stride: (q.stride() / 2) as u32,
        pages_stride: places.pages.n_cols() as u32,
        page_size: places.page_size as u32,
        eps,
        offset,
        original,
        beta,
    };
    let bias = bias.map_or_else(|| rec.unused(), Tensor::view);
    let cos_sin = rotary.map_or_else(|| rec.unused(), |r| r.cos_sin.view());
    let [rows, pages, w, q, k, v] = [places.rows, places.pages, w, q, &cache.k, &cache.v].map(Tensor::view);
    let [row_groups, gx, gy] = groups;
    let size = Size { n_pieces: row_groups as usize, groups, depth: 1.0 };
    let bindings = [x.view(), norm, w, bias, rows, pages, cos_sin, q, k, v];
    rec.dispatch_pieces(variant, &bindings, size, |pieces| {
        let n = pieces.len() as u32;
        (params(pieces), [n, gx, gy])
    });
}
