//! Products with weights.

use super::rows::{COOP_LARGE, COOP_SMALL, Cut, ProductPiece, coop_fits};
use super::{Affine, PRODUCT, Rows, Span, Way, assert_rows, coop, kernel, weights, words_part};
use crate::gpu::{Caps, Recorder, Size, Tensor, Variant, device_struct};

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
        n_slots: u32,
        expert0: u32,
        n_experts: u32,
        b_stride: u32,
        w0: u32,
    }
}

// Proven: rows and outputs are bounded by their counts before they index x, w, y and b; `launch` asserts that the tensors
// have them. `route` and `group` write all that is read of routes: experts below their number, and pairs of the rows.
// Indices into workgroup memory derive from constants, subgroup and lane.
kernel!(LINEAR, "linear", Params, [Read, Read, Read, Read, Read, ReadWrite], proven);
kernel!(LINEAR_TILE, "linear_tile", Params, [Read, Read, Read, Read, Read, ReadWrite], proven);
kernel!(LINEAR_COOP, "linear_coop", Params, [Read, Read, Read, Read, Read, ReadWrite], proven);

/// Rows and outputs of a tile of `linear_tile`.
pub(super) const TILE: u32 = 64;
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
pub(super) fn coop_tile(tile: u32, [down, along]: [u32; 2]) -> [u32; 2] {
    [2 * tile * down, 4 * tile * along]
}

/// Subgroups per workgroup of `linear_coop`, if the variant leaves them to the size of the product.
fn coop_shape(caps: &Caps, tile: u32, w: &Tensor, n_rows: u32) -> [u32; 2] {
    let [rows, outs] = coop_tile(tile, COOP_LARGE);
    let is_large = n_rows.div_ceil(rows) * (w.n_rows() as u32).div_ceil(outs) >= COOP_LARGE_TILES;
    if is_large && coop_fits(caps, COOP_LARGE) { COOP_LARGE } else { COOP_SMALL }
}

/// The rows of a dispatch that are pairs of a row and a slot, and what they take of experts' weights.
#[derive(Clone, Copy)]
pub(super) struct Pairs<'a> {
    /// The first pair, and how many there are.
    pub pair0: usize,
    pub n_pairs: usize,
    /// Pairs per row of x.
    pub n_slots: usize,
    /// The experts of w, one below the other.
    pub n_experts: usize,
    /// The first column of y.
    pub out0: usize,
    /// Elements of the bias per expert.
    pub b_stride: usize,
    /// `ROUTED`, what it reads, and the groups there, of at most `size` pairs.
    pub routed: u32,
    pub routes: &'a Tensor,
    pub n_groups: usize,
    pub size: usize,
}

/// As [`span`], for rows that are normalised already, or that the kernel normalises.
pub(super) fn launch(rec: &mut Recorder, product: Affine<'_>, add: bool, y: &Tensor, span: Span) {
    product.assert("linear");
    let rows = span.rows();
    assert_eq!(y.n_cols(), product.w.n_rows(), "linear: {y:?} and {:?}", product.w);
    assert_rows("linear", product.input.x, rows.end);
    assert_rows("linear", y, rows.end);
    dispatch(rec, product, add, y, span, None);
}

/// As [`launch`], for the rows of `span`, or for `pairs`, which go its way.
pub(super) fn dispatch(
    rec: &mut Recorder,
    product: Affine<'_>,
    add: bool,
    y: &Tensor,
    span: Span,
    pairs: Option<Pairs<'_>>,
) {
    let Affine { input, w, bias } = product;
    let (x, has_bias) = (input.x, bias.is_some());
    let (row0, n_rows) = pairs.map_or((span.row0, span.n_rows), |pairs| (pairs.pair0, pairs.n_pairs));
    let routes = pairs.map_or_else(|| rec.unused(), |pairs| pairs.routes.view());
    let bias = bias.map_or_else(|| rec.unused(), Tensor::view);
    let (norm, eps, offset) = input.norm_params(rec);
    let gpu = rec.gpu().clone();
    let caps = gpu.caps_of(rec.is_portable(super::PRODUCTS));
    for range in w.ranges() {
        // Of an expert's rows, if there are several in a range.
        let n_own = pairs.map_or(range.rows.len(), |pairs| w.n_rows() / pairs.n_experts);
        let n_out = n_own as u32;
        let params = |piece: ProductPiece| Params {
            row0: row0 as u32 + piece.row0,
            n_rows: piece.n_rows,
            n_in: w.n_cols() as u32,
            n_blocks: super::n_blocks(w),
            x_stride: (x.stride() / 4) as u32,
            w_stride: super::words(&range.tensor),
            out0: pairs.map_or(range.first, |pairs| pairs.out0) as u32 + piece.out0,
            n_out: piece.n_out,
            y_stride: y.stride() as u32,
            eps,
            offset,
            n_slots: pairs.map_or(1, |pairs| pairs.n_slots) as u32,
            expert0: (range.first / n_own.max(1)) as u32,
            n_experts: (range.rows.len() / n_own.max(1)) as u32,
            b_stride: pairs.map_or(0, |pairs| pairs.b_stride) as u32,
            w0: piece.out0,
        };
        let cut = |rows: u32, outs: u32| match pairs {
            // Groups of listed pairs.
            Some(pairs) => Cut::none(pairs.n_groups as u32, [n_out, outs]),
            None => Cut::new([n_rows as u32, rows], [n_out, outs]),
        };
        let (variant, cut) = match span.way {
            Way::Few | Way::Reg => {
                let n_shared = match pairs {
                    Some(pairs) => pairs.size,
                    None => span.n_shared(caps, range.tensor.dtype()),
                };
                let variant = input.set(span.way.shared(&LINEAR, caps, n_shared));
                (variant, cut(n_shared as u32, 4 * span.way.quads()))
            }
            Way::Tile => (Variant::new(&LINEAR_TILE), cut(TILE, TILE)),
            Way::Coop | Way::CoopLarge | Way::CoopSmall => {
                let tile = caps.coop_tile().expect("only devices with matrices have the way");
                let shape = match span.way {
                    // Few rows take an expert.
                    _ if pairs.is_some() => COOP_SMALL,
                    Way::CoopLarge => COOP_LARGE,
                    Way::CoopSmall => COOP_SMALL,
                    _ => coop_shape(caps, tile, w, n_rows as u32),
                };
                let width = caps.coop_width(shape[0] * shape[1]).expect("`coop_fits`");
                let [tile_rows, outs] = coop_tile(tile, shape);
                let variant = Variant::new(&LINEAR_COOP).part(coop(tile)).set("SG", width);
                let variant = variant.set("SG_ROWS", shape[0]).set("SG_OUTS", shape[1]);
                (variant, cut(tile_rows, outs))
            }
        };
        let groups = |piece: ProductPiece| match span.way.shares() {
            true => Way::shared_groups(caps, piece.row_groups, piece.out_groups),
            false => [piece.out_groups, piece.row_groups, 1],
        };
        let piece = |pieces| cut.piece(pieces, n_rows as u32, n_out);
        let variant = variant.part(words_part(caps)).part(weights(range.tensor.dtype())).part(&PRODUCT);
        let variant = variant.set("ADD", add.into()).set("BIAS", has_bias.into());
        let variant = pairs.map_or(variant, |pairs| variant.set("ROUTED", pairs.routed));
        let bindings = [x.view(), norm.clone(), range.clone(), bias.clone(), routes.clone(), y.view()];
        let n_pieces = cut.n_pieces();
        let size = Size { n_pieces, groups: groups(piece(0..n_pieces)), depth: 1.0 };
        rec.dispatch_pieces(variant, &bindings, size, |pieces| {
            let piece = piece(pieces);
            (params(piece), groups(piece))
        });
    }
}
