//! Mixtures of experts: which experts a row takes, products with their weights, and their sum.

use std::cell::Cell;
use std::ops::Range;

use super::linear::{self, Pairs, TILE, coop_tile};
use super::rows::COOP_SMALL;
use super::{Affine, Input, PRODUCTS, Rows, Span, Way, assert_rows, kernel, most_shared};
use crate::dtype::Dtype;
use crate::gpu::{Caps, Gpu, GpuError, Product, Recorder, Tensor, Variant, device_struct};

device_struct! {
    struct RouteParams {
        n_rows: u32,
        n_experts: u32,
        k: u32,
        x_stride: u32,
        y_stride: u32,
    }
}

device_struct! {
    struct GroupParams {
        pair0: u32,
        n_pairs: u32,
        n_experts: u32,
        size: u32,
        n_blocks: u32,
    }
}

device_struct! {
    struct CombineParams {
        n_rows: u32,
        n_cols: u32,
        k: u32,
        x_stride: u32,
        w_stride: u32,
        y_stride: u32,
    }
}

kernel!(ROUTE, "route", RouteParams, [Read, ReadWrite, ReadWrite]);
kernel!(GROUP, "group", GroupParams, [Read, ReadWrite]);
kernel!(COMBINE, "combine", CombineParams, [Read, Read, ReadWrite]);

/// `ROUTED`, if a group is one pair, and if groups are listed.
pub(super) const DIRECT: u32 = 1;
const LISTED: u32 = 2;

/// Most experts of a layer.
pub const MOST_EXPERTS: usize = 512;
/// Most experts that a row takes.
pub const MOST_CHOSEN: usize = 64;

/// How a router's logits become weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// Each logit's logistic function instead of the softmax.
    pub sigmoid: bool,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalised: bool,
}

/// The experts that rows take. A pair is a row with one of its slots: pair `row·k + slot`.
#[derive(Debug)]
pub struct Routes {
    /// `[rows, k]` U32.
    pub ids: Tensor,
    /// `[rows, k]` F32.
    pub weights: Tensor,
    /// Scratch for the pairs listed by expert, as in `shaders/group.wgsl`.
    pub lists: Tensor,
    n_experts: usize,
}

/// What [`route`] has recorded.
#[derive(Debug)]
pub struct Routed<'a> {
    routes: &'a Routes,
    /// The rows that the lists are of, and the size of their blocks.
    listed: Cell<Option<(usize, usize, usize)>>,
}

impl Routes {
    /// Allocates them for `n_rows` rows that take `k` of `n_experts` experts each.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    ///
    /// # Panics
    /// If `k` is more than [`MOST_CHOSEN`], or `n_experts` less than that or more than [`MOST_EXPERTS`].
    pub fn new(gpu: &Gpu, n_rows: usize, n_experts: usize, k: usize) -> Result<Routes, GpuError> {
        Routes::of(gpu, Tensor::zeros(gpu, "experts", [n_rows, k], Dtype::U32)?, n_experts)
    }

    /// As [`Routes::new`], with the table of experts.
    ///
    /// # Errors
    /// As [`Routes::new`].
    ///
    /// # Panics
    /// As [`Routes::new`].
    pub fn of(gpu: &Gpu, ids: Tensor, n_experts: usize) -> Result<Routes, GpuError> {
        let (n_rows, k) = (ids.n_rows(), ids.n_cols());
        assert!(
            k <= MOST_CHOSEN && k <= n_experts && n_experts <= MOST_EXPERTS,
            "{k} of {n_experts} experts"
        );
        // Blocks of one pair are the most.
        let n_words = 4 * n_rows * k + 3 * n_experts;
        Ok(Routes {
            ids,
            weights: Tensor::zeros(gpu, "experts' weights", [n_rows, k], Dtype::F32)?,
            lists: Tensor::zeros(gpu, "pairs by expert", [1, n_words], Dtype::U32)?,
            n_experts,
        })
    }

    /// Experts per row.
    pub fn k(&self) -> usize {
        self.ids.n_cols()
    }

    fn n_blocks(&self, n_rows: usize, size: usize) -> usize {
        n_rows * self.k() / size + self.n_experts
    }

    /// For products, once the experts are in the table.
    pub fn routed(&self) -> Routed<'_> {
        Routed { routes: self, listed: Cell::new(None) }
    }
}

impl Routed<'_> {
    /// Lists the pairs of `span`'s rows, unless they are listed. Returns the number of blocks.
    fn list(&self, rec: &mut Recorder, span: Span, size: usize) -> usize {
        let listed = Some((span.row0, span.n_rows, size));
        if self.listed.replace(listed) != listed {
            return group(rec, self.routes, span.rows(), size);
        }
        self.routes.n_blocks(span.n_rows, size)
    }
}

/// Lists the pairs of `rows` by their experts, in blocks of at most `size`. Returns the number of blocks, of which some are
/// empty.
///
/// # Panics
/// If there are not as many rows.
pub fn group(rec: &mut Recorder, routes: &Routes, rows: Range<usize>, size: usize) -> usize {
    assert_rows("group", &routes.ids, rows.end);
    let (k, n_experts) = (routes.k(), routes.n_experts);
    let n_blocks = routes.n_blocks(rows.len(), size);
    let params = GroupParams {
        pair0: (rows.start * k) as u32,
        n_pairs: (rows.len() * k) as u32,
        n_experts: n_experts as u32,
        size: size as u32,
        n_blocks: n_blocks as u32,
    };
    let bindings = [routes.ids.view(), routes.lists.view()];
    rec.dispatch(Variant::new(&GROUP), &params, &bindings, [n_experts as u32, 1, 1]);
    n_blocks
}

/// Chooses each row's experts by the `logits` `[rows, n_experts]` F32: those with the largest, on a tie the ones with the
/// lower number.
///
/// # Panics
/// If the shapes disagree.
pub fn route<'a>(
    rec: &mut Recorder,
    scoring: Scoring,
    logits: &Tensor,
    routes: &'a Routes,
    n_rows: usize,
) -> Routed<'a> {
    assert_eq!(logits.n_cols(), routes.n_experts, "route: {logits:?}");
    for tensor in [logits, &routes.ids] {
        assert_rows("route", tensor, n_rows);
    }
    let params = RouteParams {
        n_rows: n_rows as u32,
        n_experts: routes.n_experts as u32,
        k: routes.k() as u32,
        x_stride: logits.stride() as u32,
        y_stride: routes.weights.stride() as u32,
    };
    let variant = Variant::new(&ROUTE).set("SIGMOID", scoring.sigmoid.into());
    let variant = variant.set("NORMALISED", scoring.normalised.into());
    let bindings = [logits.view(), routes.ids.view(), routes.weights.view()];
    let groups = rec.gpu().caps().spread(n_rows as u32);
    rec.dispatch(variant, &params, &bindings, groups);
    routes.routed()
}

/// `x[r] += Σ weight·y` over the pairs of each row, with `x` `[rows, n_cols]` and `y` `[pairs, n_cols]` F32.
///
/// # Panics
/// If the shapes disagree.
pub fn combine(rec: &mut Recorder, routes: &Routes, y: &Tensor, x: &Tensor, n_rows: usize) {
    assert_eq!(x.n_cols(), y.n_cols(), "combine: {x:?} and {y:?}");
    assert_rows("combine", x, n_rows);
    assert_rows("combine", y, n_rows * routes.k());
    let params = CombineParams {
        n_rows: n_rows as u32,
        n_cols: x.n_cols() as u32,
        k: routes.k() as u32,
        x_stride: x.stride() as u32,
        w_stride: routes.weights.stride() as u32,
        y_stride: y.stride() as u32,
    };
    let n_groups = ((n_rows * x.n_cols()) as u32).div_ceil(64);
    let bindings = [routes.weights.view(), y.view(), x.view()];
    let groups = rec.gpu().caps().spread(n_groups);
    rec.dispatch(Variant::new(&COMBINE), &params, &bindings, groups);
}

/// The input of a product with experts' weights.
#[derive(Clone, Copy, Debug)]
pub enum ExpertInput<'a> {
    /// `[rows, n_in]` F32: all pairs of a row read the row.
    Rows(&'a Tensor),
    /// `[pairs, n_in]` F32.
    Pairs(&'a Tensor),
}

/// A product of each pair with its expert's weights: `y = x·W[expert]ᵀ + bias[expert]`.
#[derive(Clone, Copy, Debug)]
pub struct ExpertProduct<'a> {
    /// What it reads.
    pub input: ExpertInput<'a>,
    /// The experts' weights one below the other, in one or several parts: `[n_experts·n, n_in]`, of any type for weights.
    /// The outputs of a part come after those of the one before.
    pub parts: &'a [Tensor],
    /// `[1, n_experts·n_out]` F32.
    pub bias: Option<&'a Tensor>,
}

/// Writes `y` `[pairs, n_out]` F32, for the pairs of `n` rows.
///
/// Pairs share reads of the weights with others of the same expert, but the order of a pair's sums depends only on the
/// kind of its row, as in [`linear`](super::linear()).
///
/// # Panics
/// If the shapes disagree.
pub fn expert_linear(
    rec: &mut Recorder,
    product: ExpertProduct<'_>,
    routed: &Routed<'_>,
    y: &Tensor,
    n: Rows,
) {
    let routes = routed.routes;
    let k = routes.k();
    let mut out0 = 0;
    for w in product.parts {
        let n_own = w.n_rows() / routes.n_experts;
        note(rec, routes, w, n_own, n);
        let [decode, prompt] = [false, true].map(|is_prompt| Way::of(rec, "linear", w, is_prompt));
        let spans = match decode == prompt {
            true => [(decode, 0, n.count()), (prompt, n.count(), 0)],
            false => [(decode, 0, n.n_decode), (prompt, n.n_decode, n.n_prompt)],
        };
        for (way, row0, n_rows) in spans.into_iter().filter(|(_, _, n_rows)| *n_rows > 0) {
            span(rec, product, (w, out0), routed, y, Span { way, row0, n_rows });
        }
        out0 += n_own;
    }
    assert_eq!(out0, y.n_cols(), "expert_linear: {:?} and {y:?}", product.parts);
    assert_rows("expert_linear", y, n.count() * k);
}

/// As [`expert_linear`], for a part of the weights and the rows of a span.
pub(super) fn span(
    rec: &mut Recorder,
    product: ExpertProduct<'_>,
    (w, out0): (&Tensor, usize),
    taken: &Routed<'_>,
    y: &Tensor,
    span: Span,
) {
    let routes = taken.routes;
    let (k, n_experts) = (routes.k(), routes.n_experts);
    let (x, n_slots) = match product.input {
        ExpertInput::Rows(x) => (x, k),
        ExpertInput::Pairs(x) => (x, 1),
    };
    let end = span.rows().end;
    assert!(
        x.n_cols() == w.n_cols() && w.n_rows().is_multiple_of(n_experts),
        "expert_linear: {x:?} and {w:?}"
    );
    assert_rows("expert_linear", x, end * k / n_slots);
    let b_stride = product.bias.map_or(0, |bias| bias.n_cols() / n_experts);
    assert!(product.bias.is_none() || b_stride == y.n_cols(), "expert_linear: {:?} and {y:?}", product.bias);
    let n_pairs = span.n_rows * k;
    let size = block(rec.caps(PRODUCTS), span.way, w.dtype());
    // Pairs that are fewer than the experts share too little to be listed.
    let (routed, list, n_groups, size) = match span.way.shares() && n_pairs <= n_experts {
        true => (DIRECT, &routes.ids, n_pairs, 1),
        false => (LISTED, &routes.lists, taken.list(rec, span, size), size),
    };
    let pair0 = span.row0 * k;
    let pairs =
        Pairs { pair0, n_pairs, n_slots, n_experts, out0, b_stride, routed, routes: list, n_groups, size };
    let affine = Affine { input: Input::from(x), w, bias: product.bias };
    linear::dispatch(rec, affine, false, y, span, Some(pairs));
}

/// Most pairs that share reads where rows do: with more, most blocks would not be full.
const MOST_PAIRS: usize = 4;

/// Most pairs of a block.
fn block(caps: &Caps, way: Way, dtype: Dtype) -> usize {
    match way {
        Way::Few | Way::Reg => MOST_PAIRS.min(most_shared(caps, dtype)),
        Way::Tile => TILE as usize,
        Way::Coop | Way::CoopLarge | Way::CoopSmall => {
            let tile = caps.coop_tile().expect("only devices with matrices have the way");
            coop_tile(tile, COOP_SMALL)[0] as usize
        }
    }
}

/// Notes the product as one of as many outputs as the experts have that are taken, over the rows that each of them has.
fn note(rec: &mut Recorder, routes: &Routes, w: &Tensor, n_own: usize, n: Rows) {
    for (is_prompt, n_rows) in n.kinds() {
        let n_pairs = n_rows * routes.k();
        let n_taken = n_pairs.min(routes.n_experts);
        let (dtype, n_out, n_in) = (w.dtype(), n_taken * n_own, w.n_cols());
        rec.note_product(
            Product { operation: "linear", is_prompt, dtype, n_out, n_in },
            n_pairs.div_ceil(n_taken.max(1)),
        );
    }
}
