//! Products with weights.

use bytemuck::{Pod, Zeroable};

use super::{Input, PRODUCT, Rows, Span, assert_rows, coop, kernel, weights};
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
// Rows and outputs are held below their counts before they index x and w, and by `put` before y and b; `launch`
// asserts that the tensors have them; indices into workgroup memory come of constants and of subgroup and lane.
kernel!(LINEAR_COOP, "linear_coop", Params, [Read, Read, Read, Read, ReadWrite], proven);

/// Rows and outputs of a tile of `linear_tile`.
const TILE: u32 = 64;
/// Subgroups of a workgroup of `linear_coop`, down the rows and along the outputs: for large products, which pay
/// for fetching x and w, and for those that would leave most of a device idle with large tiles.
const COOP_LARGE: [u32; 2] = [4, 2];
const COOP_SMALL: [u32; 2] = [2, 1];
/// Large tiles that make a product large: fewer leave more than half of the largest cards idle, which have about
/// 130 multiprocessors. Not measured.
const COOP_LARGE_TILES: u32 = 64;

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
            let variant = many(rec.gpu().caps(), w, span.rows().len());
            launch(rec, variant, x.into(), w, bias, add, y, span);
        }
    }
}

/// Every variant that this device can run for `n_rows` rows, the default one for decoding first: for tests and
/// benchmarks, each with a launch like [`linear`]'s.
pub fn linear_variants(caps: &Caps, dtype: Dtype, n_rows: usize) -> Vec<LinearVariant> {
    let sharing = Span::sharing(caps, 0, n_rows);
    let ways = super::ways(&LINEAR, caps).into_iter();
    let coop = [("coop", COOP_LARGE), ("coop small", COOP_SMALL)];
    ways.map(|(name, way)| (name, sharing.of(way).part(weights(dtype)).part(&PRODUCT)))
        .chain([("tile", tile(dtype))])
        .chain(coop.into_iter().filter_map(|(name, shape)| Some((name, coop_variant(caps, dtype, shape)?))))
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

/// In tiles through workgroup memory, on any device.
fn tile(dtype: Dtype) -> Variant {
    Variant::new(&LINEAR_TILE).part(weights(dtype)).part(&PRODUCT)
}

/// `linear_coop` with workgroups of `[down, along]` subgroups, where the device can run it.
fn coop_variant(caps: &Caps, dtype: Dtype, [down, along]: [u32; 2]) -> Option<Variant> {
    let (tile, width) = (caps.coop_tile()?, caps.subgroup?);
    let subgroups = down * along;
    // Tiles of f16 with 40 values a row, and a tile of sums a subgroup.
    let bytes = (2 * down + 4 * along) * tile * 80 + subgroups * tile * tile * 4;
    // Each lane fetches as many vec4 of x as any other.
    let even = (16 * tile).is_multiple_of(width * along);
    let fits = even && bytes <= caps.max_workgroup_bytes && subgroups * width <= caps.max_workgroup_size;
    fits.then(|| {
        Variant::new(&LINEAR_COOP)
            .part(coop(tile))
            .part(weights(dtype))
            .part(&PRODUCT)
            .set("SG", width)
            .set("SG_ROWS", down)
            .set("SG_OUTS", along)
    })
}

/// Rows and outputs of a workgroup's tile in `linear_coop`.
fn coop_tile(tile: u32, [down, along]: [u32; 2]) -> [u32; 2] {
    [2 * tile * down, 4 * tile * along]
}

/// For prompt rows.
fn many(caps: &Caps, w: &Tensor, n_rows: usize) -> Variant {
    let dtype = w.dtype();
    if let Some(tile) = caps.coop_tile().filter(|_| caps.f16_products()) {
        let [rows, outs] = coop_tile(tile, COOP_LARGE);
        let large = (n_rows as u32).div_ceil(rows) * (w.n_rows() as u32).div_ceil(outs) >= COOP_LARGE_TILES;
        let shapes = if large { [COOP_LARGE, COOP_SMALL] } else { [COOP_SMALL, COOP_SMALL] };
        if let Some(variant) = shapes.into_iter().find_map(|shape| coop_variant(caps, dtype, shape)) {
            return variant;
        }
    }
    tile(dtype)
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
    let mut variant = variant.set("ADD", add.into()).set("BIAS", bias.is_some().into());
    if variant.kernel.name == LINEAR.name {
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
        let groups = match variant.kernel.name {
            "linear_tile" => [n_out.div_ceil(TILE), (rows.len() as u32).div_ceil(TILE), 1],
            "linear_coop" => {
                let value = |name| variant.overrides().find(|(n, _)| *n == name).map_or(1, |(_, v)| v);
                let tile = rec.gpu().caps().coop_tile().expect("the variant was made for it");
                let [tile_rows, outs] = coop_tile(tile, [value("SG_ROWS"), value("SG_OUTS")]);
                [n_out.div_ceil(outs), (rows.len() as u32).div_ceil(tile_rows), 1]
            }
            _ => super::groups(rec.gpu().caps(), &variant, n_out.div_ceil(4), rows.len()),
        };
        rec.dispatch(variant, &params, &[x.view(), norm.clone(), range, bias.clone(), y.view()], groups);
    }
}
