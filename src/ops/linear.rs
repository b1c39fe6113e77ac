//! Products with weights.

use super::rows::{COOP_LARGE, COOP_SMALL, coop_fits};
use super::{Affine, PRODUCT, Rows, Span, Way, assert_rows, coop, kernel, weights, words_part};
use crate::gpu::{Caps, Recorder, Tensor, Variant, device_struct};

device_struct! {
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
}

// Proven: rows and outputs are bounded by their counts before they index x, w, y and b; `launch` asserts that the tensors
// have them. Indices into workgroup memory derive from constants, subgroup and lane.
kernel!(LINEAR, "linear", Params, [Read, Read, Read, Read, ReadWrite], proven);
kernel!(LINEAR_TILE, "linear_tile", Params, [Read, Read, Read, Read, ReadWrite], proven);
kernel!(LINEAR_COOP, "linear_coop", Params, [Read, Read, Read, Read, ReadWrite], proven);

/// Rows and outputs of a tile of `linear_tile`.
const TILE: u32 = 64;
/// A product is large from this number of large tiles on: fewer leave more than half of the largest cards idle, which
/// have about 130 multiprocessors. Not measured; `wginfer tune` measures on each device.
const COOP_LARGE_TILES: u32 = 64;

/// `y = x̂·Wᵀ + bias`, or added to `y` if `add`; `y` is `[rows, n_out]` F32.
///
/// Decode rows and prompt rows may go through different kernels, but the choice never depends on the number of rows. So
/// a row's sum has the same order in every batch.
///
/// # Panics
/// If the shapes disagree.
pub fn linear(rec: &mut Recorder, product: Affine<'_>, add: bool, y: &Tensor, n: Rows) {
    for part in Span::all(rec, "linear", product.w, n) {
        span(rec, product, add, y, part);
    }
}

/// As [`linear`], for the rows of a span.
pub(super) fn span(rec: &mut Recorder, product: Affine<'_>, add: bool, y: &Tensor, span: Span) {
    // Tiles read each input many times, so a kernel of its own normalises them first.
    let Affine { input, w, bias } = product;
    let product = if span.way.shares() { product } else { Affine::new(input.normed(rec, span), w, bias) };
    launch(rec, product, add, y, span);
}

/// Every variant that this device can run, each with a launch like [`linear`]'s, for tests and benchmarks. The default
/// is the first entry of [`product_variants`](super::product_variants).
pub fn linear_variants(caps: &Caps) -> Vec<LinearVariant> {
    // `Coop` is one of the two that follow it.
    Way::all(caps).into_iter().filter(|way| *way != Way::Coop).map(|way| LinearVariant { way }).collect()
}

/// One way to compute a product.
#[derive(Clone, Copy)]
pub struct LinearVariant {
    way: Way,
}

impl LinearVariant {
    /// Its name among the variants.
    pub fn name(&self) -> &'static str {
        self.way.name()
    }

    /// Whether its kernel normalises rows. Others get them normalised.
    pub fn normalises(&self) -> bool {
        self.way.shares()
    }

    /// As [`linear`] for `n_rows` rows, with this variant.
    ///
    /// # Panics
    /// If the shapes disagree.
    pub fn launch(&self, rec: &mut Recorder, product: Affine<'_>, add: bool, y: &Tensor, n_rows: usize) {
        launch(rec, product, add, y, Span { way: self.way, row0: 0, n_rows });
    }
}

/// Rows and outputs of a workgroup's tile in `linear_coop`.
fn coop_tile(tile: u32, [down, along]: [u32; 2]) -> [u32; 2] {
    [2 * tile * down, 4 * tile * along]
}

/// Subgroups per workgroup of `linear_coop`, if the variant leaves them to the size of the product.
fn coop_shape(caps: &Caps, tile: u32, w: &Tensor, n_rows: u32) -> [u32; 2] {
    let [rows, outs] = coop_tile(tile, COOP_LARGE);
    let is_large = n_rows.div_ceil(rows) * (w.n_rows() as u32).div_ceil(outs) >= COOP_LARGE_TILES;
    if is_large && coop_fits(caps, COOP_LARGE) { COOP_LARGE } else { COOP_SMALL }
}

/// As [`span`], for rows that are normalised already, or that the kernel normalises.
pub(super) fn launch(rec: &mut Recorder, product: Affine<'_>, add: bool, y: &Tensor, span: Span) {
    product.assert("linear");
    let Affine { input, w, bias } = product;
    let (x, rows) = (input.x, span.rows());
    assert_eq!(y.n_cols(), w.n_rows(), "linear: {y:?} and {w:?}");
    assert_rows("linear", x, rows.end);
    assert_rows("linear", y, rows.end);
    let (n_rows, has_bias) = (rows.len() as u32, bias.is_some());
    let bias = bias.map_or_else(|| rec.unused(), Tensor::view);
    let (norm, eps, offset) = input.norm_params(rec);
    let gpu = rec.gpu().clone();
    let caps = gpu.caps_of(rec.is_portable(super::PRODUCTS));
    for range in w.ranges() {
        let n_out = range.rows.len() as u32;
        let params = Params {
            row0: rows.start as u32,
            n_rows,
            n_in: w.n_cols() as u32,
            n_blocks: super::n_blocks(w),
            x_stride: (x.stride() / 4) as u32,
            w_stride: super::words(&range.tensor),
            out0: range.first as u32,
            n_out,
            y_stride: y.stride() as u32,
            eps,
            offset,
        };
        let (variant, groups) = match span.way {
            Way::Few | Way::Reg => {
                let (variant, groups) = span.sharing(&LINEAR, caps, range.tensor.dtype(), n_out.div_ceil(4));
                (input.set(variant), groups)
            }
            Way::Tile => (Variant::new(&LINEAR_TILE), [n_out.div_ceil(TILE), n_rows.div_ceil(TILE), 1]),
            Way::Coop | Way::CoopLarge | Way::CoopSmall => {
                let tile = caps.coop_tile().expect("only devices with matrices have the way");
                let shape = match span.way {
                    Way::CoopLarge => COOP_LARGE,
                    Way::CoopSmall => COOP_SMALL,
                    _ => coop_shape(caps, tile, w, n_rows),
                };
                let width = caps.coop_width(shape[0] * shape[1]).expect("`coop_fits`");
                let [tile_rows, outs] = coop_tile(tile, shape);
                let variant = Variant::new(&LINEAR_COOP).part(coop(tile)).set("SG", width);
                let variant = variant.set("SG_ROWS", shape[0]).set("SG_OUTS", shape[1]);
                (variant, [n_out.div_ceil(outs), n_rows.div_ceil(tile_rows), 1])
            }
        };
        let variant = variant.part(words_part(caps)).part(weights(range.tensor.dtype())).part(&PRODUCT);
        let variant = variant.set("ADD", add.into()).set("BIAS", has_bias.into());
        rec.dispatch(variant, &params, &[x.view(), norm.clone(), range, bias.clone(), y.view()], groups);
    }
}
