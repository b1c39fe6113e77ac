//! How the rows of a batch go through products: the choice of variant, and `shaders/parts/rows_*.wgsl`.

use std::ops::Range;

use super::{
    PORTABLE_LANES, PRODUCTS, REDUCE_SUBGROUP, REDUCE_WORKGROUP, ROWS_FEW, ROWS_REG, RmsNorm, SHARE_1,
    SHARE_2, SHARE_4, SHARE_8, inputs_part, rms_norm,
};
use crate::dtype::Dtype;
use crate::gpu::{Caps, Kernel, Part, Product, Recorder, Tensor, Variant, View};

/// The rows of a batch: first decode rows, then prompt rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rows {
    /// Number of decode rows.
    pub n_decode: usize,
    /// Number of prompt rows.
    pub n_prompt: usize,
}

impl Rows {
    /// Total number of rows.
    pub fn count(self) -> usize {
        self.n_decode + self.n_prompt
    }

    /// For each kind of rows, whether they are a prompt's, and their number.
    pub(super) fn kinds(self) -> [(bool, usize); 2] {
        [(false, self.n_decode), (true, self.n_prompt)]
    }
}

/// The input of a product: `x` `[rows, n_in]` F32, normalised if there is a norm.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The rows.
    pub x: &'a Tensor,
    /// The norm, and scratch `[rows, n_in]` F32 for normalised rows, for products that do not normalise themselves.
    pub norm: Option<(&'a RmsNorm, &'a Tensor)>,
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(x: &'a Tensor) -> Self {
        Input { x, norm: None }
    }
}

impl<'a> Input<'a> {
    /// The rows of a span, normalised by a kernel of its own if there is a norm.
    pub(super) fn normed(&self, rec: &mut Recorder, span: Span) -> &'a Tensor {
        let Some((norm, h)) = self.norm else { return self.x };
        rms_norm(rec, self.x, norm, None, false, h, span.rows());
        h
    }

    /// The override that a kernel which can normalise its input reads.
    pub(super) fn set(&self, variant: Variant) -> Variant {
        variant.set("NORM", self.norm.is_some().into())
    }

    /// The norm's weights, epsilon and offset for such a kernel.
    pub(super) fn norm_params(&self, rec: &Recorder) -> (View, f32, f32) {
        match self.norm {
            Some((norm, _)) => (norm.w.view(), norm.eps, norm.offset),
            None => (rec.unused(), 0.0, 0.0),
        }
    }
}

/// A product with weights: `x̂·Wᵀ + bias`, where `x̂` `[rows, n_in]` F32 is the input or its norm.
#[derive(Clone, Copy, Debug)]
pub struct Affine<'a> {
    /// The rows.
    pub input: Input<'a>,
    /// The weights `[n_out, n_in]`, of any type for weights.
    pub w: &'a Tensor,
    /// `[1, n_out]` F32.
    pub bias: Option<&'a Tensor>,
}

impl<'a> Affine<'a> {
    /// The product of `input` with `w`.
    pub fn new(input: impl Into<Input<'a>>, w: &'a Tensor, bias: Option<&'a Tensor>) -> Self {
        Affine { input: input.into(), w, bias }
    }

    /// # Panics
    /// If the shapes disagree.
    pub(super) fn assert(&self, what: &str) {
        let Affine { input: Input { x, .. }, w, bias } = self;
        assert_eq!(x.n_cols(), w.n_cols(), "{what}: {x:?} and {w:?}");
        assert!(bias.is_none_or(|b| b.n_cols() == w.n_rows()), "{what}: {bias:?} and {w:?}");
    }
}

/// A way to compute a product. All rows that go the same way have the same order of sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// For few rows that share one read of the weights: lanes reduce the sums of a quad of outputs.
    Few,
    /// For few rows that share one read of the weights: each lane has its own quad of outputs.
    Reg,
    /// For many rows: tiles of rows and outputs in workgroup memory.
    Tile,
    /// For many rows: cooperative matrices, in large tiles if there are many of them, else in small ones.
    Coop,
    /// Cooperative matrices in large tiles.
    CoopLarge,
    /// Cooperative matrices in small tiles.
    CoopSmall,
}

impl Way {
    const ALL: [Way; 6] = [Way::Few, Way::Reg, Way::Tile, Way::Coop, Way::CoopLarge, Way::CoopSmall];
    /// The names, in the order of [`Way::ALL`].
    pub const NAMES: [&'static str; 6] = ["few", "reg", "tile", "coop", "coop large", "coop small"];

    pub fn name(self) -> &'static str {
        Way::NAMES[self as usize]
    }

    fn named(name: &str) -> Option<Way> {
        Way::ALL.into_iter().find(|way| way.name() == name)
    }

    /// Whether few rows share one read of the weights. Then the same kernel computes norms, gates and rotation.
    pub fn shares(self) -> bool {
        matches!(self, Way::Few | Way::Reg)
    }

    fn is_coop(self) -> bool {
        matches!(self, Way::Coop | Way::CoopLarge | Way::CoopSmall)
    }

    /// Whether the device can run it.
    fn runs(self, caps: &Caps) -> bool {
        match self {
            Way::Few | Way::Tile => true,
            Way::Reg => caps.is_one_subgroup(REG_LANES),
            // If large tiles fit, small ones do too.
            Way::Coop | Way::CoopSmall => coop_fits(caps, COOP_SMALL),
            Way::CoopLarge => coop_fits(caps, COOP_LARGE),
        }
    }

    /// All ways that the device can run.
    pub fn all(caps: &Caps) -> Vec<Way> {
        Way::ALL.into_iter().filter(|way| way.runs(caps)).collect()
    }

    /// Whether rows may go this way: F16 inputs are only for prompts, and only if [`Caps::f16_products`] allows them.
    fn is_open(self, caps: &Caps, is_prompt: bool) -> bool {
        self.runs(caps) && (!self.is_coop() || (is_prompt && caps.f16_products()))
    }

    /// The default way, which depends only on capabilities. Decode rows share reads of the weights. So do prompt rows
    /// on software devices, where barriers cost more than reading the weights again for every few rows.
    fn default(caps: &Caps, is_prompt: bool) -> Way {
        let ways: &[Way] = match (caps.cpu, is_prompt) {
            (true, _) => &[Way::Reg, Way::Few],
            (false, false) => &[Way::Few],
            (false, true) => &[Way::Coop, Way::Tile],
        };
        ways.iter().copied().find(|way| way.is_open(caps, is_prompt)).unwrap_or(Way::Few)
    }

    /// The ways that measurements may choose, the default first.
    pub fn open(caps: &Caps, is_prompt: bool) -> Vec<Way> {
        let default = Way::default(caps, is_prompt);
        let others = Way::ALL.into_iter().filter(|way| *way != default && way.is_open(caps, is_prompt));
        std::iter::once(default).chain(others).collect()
    }

    /// The way of decode rows or of prompt rows through an operation on `w`: the measured one, if there is one that the
    /// device can run, else the default.
    pub fn of(rec: &Recorder, operation: &'static str, w: &Tensor, is_prompt: bool) -> Way {
        let caps = rec.caps(PRODUCTS);
        let product = Product { operation, is_prompt, dtype: w.dtype(), n_out: w.n_rows(), n_in: w.n_cols() };
        let tuning = rec.tuning().unwrap_or_else(|| super::tuning(rec.gpu()));
        let measured = tuning.get(&product).and_then(Way::named);
        let usable = measured.filter(|way| way.is_open(caps, is_prompt));
        usable.unwrap_or_else(|| Way::default(caps, is_prompt))
    }
}

/// Subgroups per workgroup of `linear_coop`, down the rows and along the outputs: first for large products, which are
/// bound by loads of x and w, then for those that would leave most of a device idle with large tiles.
pub(super) const COOP_LARGE: [u32; 2] = [4, 2];
pub(super) const COOP_SMALL: [u32; 2] = [2, 1];

/// Whether the device can run `linear_coop` with workgroups of `[down, along]` subgroups.
pub(super) fn coop_fits(caps: &Caps, [down, along]: [u32; 2]) -> bool {
    let subgroups = down * along;
    let (Some(tile), Some(width)) = (caps.coop_tile(), caps.coop_width(subgroups)) else { return false };
    // Tiles of f16 with 40 elements per row, and one tile of sums per subgroup.
    let bytes = (2 * down + 4 * along) * tile * 80 + subgroups * tile * tile * 4;
    // Each lane loads the same number of vec4s of x, and at most four unpack a word of w: it has four components. A lane's
    // share of x, w and a tile of sums is at most 16 vec4s, words or sums.
    let is_even = (16 * tile).is_multiple_of(width * along) && width * down <= 16 * tile && tile <= width;
    is_even && bytes <= caps.max_workgroup_bytes && subgroups * width <= caps.max_workgroup_size
}

/// Indexed by the base-2 logarithm of the number of rows that share one read of the weights.
pub(super) static SHARES: [&Part; 4] = [&SHARE_1, &SHARE_2, &SHARE_4, &SHARE_8];

/// Most rows that share one read of the weights: as many sums as fit in a lane's registers beside weights and inputs
/// (with 16 rows RADV keeps one wave on GCN, and software devices, whose vector units have 32 registers, take twice as
/// long as for twice 8). A lane finishes one row of `rows_few`, so a workgroup has at least as many lanes.
pub(super) fn most_shared(caps: &Caps, dtype: Dtype) -> usize {
    let fits = match dtype {
        // With 8 rows, RADV keeps some of their values in scratch on RDNA 3.
        Dtype::Q2_K | Dtype::Q5_1 if !caps.cpu => 4,
        _ => 8,
    };
    caps.one_subgroup().map_or(fits, |width| (width as usize).min(fits))
}

/// Lanes of `rows_reg`, which must be one subgroup: the width of subgroups on software devices.
const REG_LANES: u32 = 8;

/// Consecutive rows of one dispatch, and their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub way: Way,
    pub row0: usize,
    pub n_rows: usize,
}

impl Span {
    /// All rows of a batch on their ways through an operation on `w`. A way does not depend on the number of rows.
    pub fn all(rec: &mut Recorder, operation: &'static str, w: &Tensor, n: Rows) -> Vec<Span> {
        for (is_prompt, n_rows) in n.kinds() {
            for part in w.ranges() {
                let (dtype, n_out, n_in) = (part.tensor.dtype(), part.rows.len(), w.n_cols());
                rec.note_product(Product { operation, is_prompt, dtype, n_out, n_in }, n_rows);
            }
        }
        let caps = rec.caps(PRODUCTS);
        let [decode, prompt] = [false, true].map(|is_prompt| Way::of(rec, operation, w, is_prompt));
        let parts = if decode == prompt {
            [(decode, 0, n.count()), (prompt, n.count(), 0)]
        } else {
            [(decode, 0, n.n_decode), (prompt, n.n_decode, n.n_prompt)]
        };
        let mut spans = Vec::with_capacity(4);
        for (way, row0, n_rows) in parts {
            // On software devices, whole groups first, then the rest in the smallest group that holds it: the order of
            // sums is the same. On other devices one more dispatch costs more than idle rows.
            let most = most_shared(caps, w.dtype());
            let whole = if way.shares() && caps.cpu { n_rows / most * most } else { n_rows };
            spans.push(Span { way, row0, n_rows: whole });
            spans.push(Span { way, row0: row0 + whole, n_rows: n_rows - whole });
        }
        spans.retain(|span| span.n_rows > 0);
        spans
    }

    pub fn rows(self) -> Range<usize> {
        self.row0..self.row0 + self.n_rows
    }

    /// Rows that share one read of the weights.
    pub fn n_shared(self, caps: &Caps, dtype: Dtype) -> usize {
        self.n_rows.next_power_of_two().clamp(1, most_shared(caps, dtype))
    }

    /// The variant of a kernel whose rows share reads of weights of `dtype`, and its workgroups for `n_quads` quads of
    /// outputs.
    pub fn sharing(
        self,
        kernel: &'static Kernel,
        caps: &Caps,
        dtype: Dtype,
        n_quads: u32,
    ) -> (Variant, [u32; 3]) {
        let n_shared = self.n_shared(caps, dtype);
        self.way.sharing(kernel, caps, n_quads, n_shared, self.n_rows.div_ceil(n_shared))
    }
}

impl Way {
    /// As [`Span::sharing`], for `n_groups` groups of `n_shared` rows.
    pub fn sharing(
        self,
        kernel: &'static Kernel,
        caps: &Caps,
        n_quads: u32,
        n_shared: usize,
        n_groups: usize,
    ) -> (Variant, [u32; 3]) {
        let variant = self.shared(kernel, caps, n_shared);
        (variant, Way::shared_groups(caps, n_groups as u32, n_quads.div_ceil(self.quads())))
    }

    /// The variant of a kernel of which `n_shared` rows share reads of weights.
    pub fn shared(self, kernel: &'static Kernel, caps: &Caps, n_shared: usize) -> Variant {
        let variant = Variant::new(kernel);
        let variant = match (self, caps.one_subgroup()) {
            (Way::Reg, _) => variant.part(&ROWS_REG).set("WG", REG_LANES),
            (_, Some(width)) => variant.part(&ROWS_FEW).part(&REDUCE_SUBGROUP).set("WG", width),
            (_, None) => variant.part(&ROWS_FEW).part(&REDUCE_WORKGROUP).set("WG", PORTABLE_LANES),
        };
        variant.part(SHARES[n_shared.ilog2() as usize]).part(inputs_part(caps))
    }

    /// Quads of outputs of a workgroup whose rows share reads of weights.
    pub fn quads(self) -> u32 {
        if self == Way::Reg { REG_LANES } else { 1 }
    }

    /// Workgroups for groups of rows and of quads. The groups of rows that read the same weights are neighbours, so that all
    /// but the first find them in a cache.
    pub fn shared_groups(caps: &Caps, row_groups: u32, quad_groups: u32) -> [u32; 3] {
        let [gx, gy, _] = caps.spread(quad_groups);
        [row_groups, gx, gy]
    }
}

/// Most pieces along the outputs of a product. More would cost parameter blocks, and a piece of a head over a vocabulary of
/// 150,000 has 2 to 3 thousand outputs.
const MOST_OUT_PIECES: u32 = 64;

/// How a product's dispatch is cut if it takes longer than a budget: by its groups of rows, or if there is only one, by
/// groups of outputs. The order of sums does not depend on either.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Groups of rows, each of `rows` rows.
    row_groups: u32,
    rows: u32,
    /// Groups of outputs, each of `outs` outputs.
    out_groups: u32,
    outs: u32,
    /// Groups of outputs per piece.
    out_step: u32,
}

/// A piece of a product: its first row and rows, its first output and the end of its outputs, and its groups of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProductPiece {
    pub row0: u32,
    pub n_rows: u32,
    pub out0: u32,
    pub n_out: u32,
    pub row_groups: u32,
    pub out_groups: u32,
}

impl Cut {
    /// Of `n_rows` rows in groups of `rows`, and `n_out` outputs in groups of `outs`.
    pub fn new([n_rows, rows]: [u32; 2], [n_out, outs]: [u32; 2]) -> Cut {
        let (row_groups, out_groups) = (n_rows.div_ceil(rows), n_out.div_ceil(outs));
        Cut { row_groups, rows, out_groups, outs, out_step: out_groups.div_ceil(MOST_OUT_PIECES).max(1) }
    }

    /// Of a dispatch that is one piece, with `row_groups` groups whose rows are listed elsewhere.
    pub fn none(row_groups: u32, [n_out, outs]: [u32; 2]) -> Cut {
        let out_groups = n_out.div_ceil(outs);
        Cut { row_groups, rows: 0, out_groups, outs, out_step: out_groups.max(1) }
    }

    pub fn n_pieces(self) -> usize {
        let by_outs = self.out_groups.div_ceil(self.out_step);
        (if self.rows > 0 && self.row_groups > 1 { self.row_groups } else { by_outs }) as usize
    }

    /// The piece made of `pieces`, of `n_rows` rows and `n_out` outputs in total.
    pub fn piece(self, pieces: Range<usize>, n_rows: u32, n_out: u32) -> ProductPiece {
        let (first, end) = (pieces.start as u32, pieces.end as u32);
        if self.rows > 0 && self.row_groups > 1 {
            let (row0, end_row) = (first * self.rows, (end * self.rows).min(n_rows));
            let (n_rows, row_groups) = (end_row - row0, end - first);
            return ProductPiece { row0, n_rows, out0: 0, n_out, row_groups, out_groups: self.out_groups };
        }
        let (first, end) = (first * self.out_step, (end * self.out_step).min(self.out_groups));
        let (out0, end_out) = (first * self.outs, (end * self.outs).min(n_out));
        ProductPiece {
            row0: 0,
            n_rows,
            out0,
            n_out: end_out - out0,
            row_groups: self.row_groups,
            out_groups: end - first,
        }
    }
}

/// Blocks of 32 inputs per row of weights.
pub(super) fn n_blocks(w: &Tensor) -> u32 {
    (w.stride() / crate::dtype::BLOCK) as u32
}

/// 16-byte words per row of weights.
pub(super) fn words(w: &Tensor) -> u32 {
    (w.row_bytes() / 16) as u32
}
