//! Products with weights.

use bytemuck::{Pod, Zeroable};

use super::{Input, PRODUCT, Rows, Span, assert_rows, kernel, weights};
use crate::dtype::Dtype;
use crate::gpu::{Caps, Recorder, Tensor, Variant};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    row0: u32,
    n_rows: u32,
    n_in: u32,
    n_blocks: u32,
    x_stride: u32,
    w_stride: u32,
    out0: u32,
    n_out: u32,
    y_stride: u32,
    eps: f32,
    offset: f32,
}

kernel!(LINEAR, "linear", Params, [Read, Read, Read, Read, ReadWrite]);
kernel!(LINEAR_TILE, "linear_tile", Params, [Read, Read, Read, Read, ReadWrite]);

/// Rows and outputs of a tile of `linear_tile`.
const TILE: u32 = 64;

/// `y = x̂·Wᵀ + bias`, or added to `y` if `add`: `x̂` `[rows, n_in]` F32 is `x` or its norm, `w` `[n_out, n_in]` of any
/// weight type, `bias` `[1, n_out]` F32, `y` `[rows, n_out]` F32.
///
/// Decoding rows and prompt rows may go through different kernels, never a row through one that depends on how
/// many there are: so a row's sum has the same order in every batch.
///
/// # Panics
/// If the shapes disagree.
pub fn linear<'a>(
    rec: &mut Recorder,
    input: impl Into<Input<'a>>,
    w: &Tensor,
    bias: Option<&Tensor>,
    add: bool,
    y: &Tensor,
    n: Rows,
) {
    let input = input.into();
    for part in Span::all(&rec.gpu().caps().clone(), n) {
        span(rec, input, w, bias, add, y, part);
    }
}

/// As [`linear`], for the rows of a span.
pub(super) fn span(
    rec: &mut Recorder,
    input: Input<'_>,
    w: &Tensor,
    bias: Option<&Tensor>,
    add: bool,
    y: &Tensor,
    span: Span,
) {
    match span {
        Span::Sharing { .. } => {
            let variant =
                span.of(super::way(&LINEAR, rec.gpu().caps())).part(weights(w.dtype())).part(&PRODUCT);
            launch(rec, variant, input, w, bias, add, y, span);
        }
        Span::Prompt { .. } => {
            let x = input.normed(rec, span);
            launch(rec, many(w.dtype()), x.into(), w, bias, add, y, span);
        }
    }
}

/// Every variant that this device can run for `n_rows` rows, the default one for decoding first: for tests and
/// benchmarks, each with a launch like [`linear`]'s.
pub fn linear_variants(caps: &Caps, dtype: Dtype, n_rows: usize) -> Vec<LinearVariant> {
    let sharing = Span::sharing(caps, 0, n_rows);
    let ways = super::ways(&LINEAR, caps).into_iter();
    ways.map(|(name, way)| (name, sharing.of(way).part(weights(dtype)).part(&PRODUCT)))
        .chain([("tile", many(dtype))])
        .map(|(name, variant)| LinearVariant { name, variant })
        .collect()
}

/// One way to compute a product.
#[derive(Clone, Copy)]
pub struct LinearVariant {
    name: &'static str,
    variant: Variant,
}

impl LinearVariant {
    /// What tells it from the others.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// As [`linear`] for `n_rows` rows, with this variant.
    ///
    /// # Panics
    /// If the shapes disagree.
    #[allow(clippy::too_many_arguments)]
    pub fn launch(
        &self,
        rec: &mut Recorder,
        x: &Tensor,
        w: &Tensor,
        bias: Option<&Tensor>,
        add: bool,
        y: &Tensor,
        n_rows: usize,
    ) {
        let span = Span::sharing(rec.gpu().caps(), 0, n_rows);
        launch(rec, self.variant, x.into(), w, bias, add, y, span);
    }
}

/// For the rows of prompts.
fn many(dtype: Dtype) -> Variant {
    Variant::new(&LINEAR_TILE).part(weights(dtype)).part(&PRODUCT)
}

#[allow(clippy::too_many_arguments)]
fn launch(
    rec: &mut Recorder,
    variant: Variant,
    input: Input<'_>,
    w: &Tensor,
    bias: Option<&Tensor>,
    add: bool,
    y: &Tensor,
    span: Span,
) {
    let rows = span.rows();
    let x = input.x;
    assert_eq!(x.n_cols(), w.n_cols(), "linear: {x:?} and {w:?}");
    assert_eq!(y.n_cols(), w.n_rows(), "linear: {y:?} and {w:?}");
    assert!(bias.is_none_or(|b| b.n_cols() == y.n_cols()), "linear: {bias:?} and {y:?}");
    assert_rows("linear", x, rows.end);
    assert_rows("linear", y, rows.end);
    let is_tile = variant.kernel.name == LINEAR_TILE.name;
    let mut variant = variant.set("ADD", add.into()).set("BIAS", bias.is_some().into());
    if !is_tile {
        variant = input.set(variant);
    }
    let bias = bias.map_or_else(|| rec.unused(), Tensor::view);
    let (norm, eps, offset) = input.norm_params(rec);
    for range in w.ranges() {
        let n_out = range.rows.len() as u32;
        let params = Params {
            row0: rows.start as u32,
            n_rows: rows.len() as u32,
            n_in: w.n_cols() as u32,
            n_blocks: super::n_blocks(w),
            x_stride: (x.stride() / 4) as u32,
            w_stride: super::words(w),
            out0: range.rows.start as u32,
            n_out,
            y_stride: y.stride() as u32,
            eps,
            offset,
        };
        let groups = if is_tile {
            [n_out.div_ceil(TILE), (rows.len() as u32).div_ceil(TILE), 1]
        } else {
            super::groups(rec.gpu().caps(), &variant, n_out.div_ceil(4), rows.len())
        };
        rec.dispatch(variant, &params, &[x.view(), norm.clone(), range, bias.clone(), y.view()], groups);
    }
}
