//! The first half of an MLP: norm, product and activation in one kernel.

use super::rows::{Cut, ProductPiece};
use super::{
    ACT, Act, Affine, PRODUCTS, Rows, Span, Way, assert_rows, gate, kernel, linear, weights, words_part,
};
use crate::gpu::{Recorder, Size, Tensor, device_struct};

device_struct! {
    struct Params {
        row0: u32,
        n_rows: u32,
        n_in: u32,
        n_blocks: u32,
        x_stride: u32,
        w_stride: u32,
        out0: u32,
        end: u32,
        n_out: u32,
        y_stride: u32,
        eps: f32,
        offset: f32,
    }
}

kernel!(GATE_UP, "gate_up", Params, [Read, Read, Read, Read, ReadWrite]);

/// `y = act(x̂·Wgᵀ + bg) · (x̂·Wuᵀ + bu)`, `[rows, n_out]` F32, if the weights of the product are `[2·n_out, n_in]`, `Wg`
/// above `Wu`; if they are `[n_out, n_in]`, `y = act(x̂·Wᵀ + b)`. `up` `[rows, rows of w]` F32 is scratch for the input
/// of the activation if that runs as a kernel of its own.
///
/// Shazeer 2020 for the gate.
///
/// # Panics
/// If the shapes disagree.
pub fn gate_up(rec: &mut Recorder, act: Act, product: Affine<'_>, up: &Tensor, y: &Tensor, n: Rows) {
    product.assert("gate_up");
    let (x, w) = (product.input.x, product.w);
    let gated = w.n_rows() == 2 * y.n_cols();
    assert!(gated || w.n_rows() == y.n_cols(), "gate_up: {w:?} and {y:?}");
    for tensor in [x, y] {
        assert_rows("gate_up", tensor, n.count());
    }
    for span in Span::all(rec, "gate_up", w, n) {
        // One binding must hold gate and up of an output.
        if w.ranges().count() > 1 || !span.way.shares() {
            linear::span(rec, product, false, up, span);
            gate(rec, act, up, y, span.rows());
            continue;
        }
        fused(rec, act, product, y, span);
    }
}

/// As [`gate_up`], for the rows of a span and in one kernel.
pub(super) fn fused(rec: &mut Recorder, act: Act, product: Affine<'_>, y: &Tensor, span: Span) {
    let Affine { input, w, bias } = product;
    let (x, gated) = (input.x, w.n_rows() == 2 * y.n_cols());
    let a_quad = if gated { 2 } else { 4 };
    let gpu = rec.gpu().clone();
    let caps = gpu.caps_of(rec.is_portable(PRODUCTS));
    let n_shared = span.n_shared(caps, w.dtype());
    let variant = span.way.shared(&GATE_UP, caps, n_shared);
    let (n_rows, n_out) = (span.n_rows as u32, y.n_cols() as u32);
    let cut = Cut::new([n_rows, n_shared as u32], [n_out, a_quad * span.way.quads()]);
    let variant = variant.part(words_part(caps)).part(weights(w.dtype())).part(&ACT);
    let variant = variant.set("BIAS", bias.is_some().into()).set("ACT", act as u32);
    let variant = input.set(variant).set("GATED", gated.into());
    let (norm, eps, offset) = input.norm_params(rec);
    let params = |piece: ProductPiece| Params {
        row0: span.row0 as u32 + piece.row0,
        n_rows: piece.n_rows,
        n_in: w.n_cols() as u32,
        n_blocks: super::n_blocks(w),
        x_stride: (x.stride() / 4) as u32,
        w_stride: super::words(w),
        out0: piece.out0,
        end: piece.out0 + piece.n_out,
        n_out,
        y_stride: y.stride() as u32,
        eps,
        offset,
    };
    let bias = bias.map_or_else(|| rec.unused(), Tensor::view);
    let groups = |piece: ProductPiece| Way::shared_groups(caps, piece.row_groups, piece.out_groups);
    let n_pieces = cut.n_pieces();
    let size = Size { n_pieces, groups: groups(cut.piece(0..n_pieces, n_rows, n_out)), depth: 1.0 };
    rec.dispatch_pieces(variant, &[x.view(), norm, w.view(), bias, y.view()], size, |pieces| {
        let piece = cut.piece(pieces, n_rows, n_out);
        (params(piece), groups(piece))
    });
}
