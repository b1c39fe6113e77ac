//! Products with weights.

use bytemuck::{Pod, Zeroable};

use super::{PRODUCT, Rows, assert_rows, coop, folding, kernel, weights};
use crate::dtype::Dtype;
use crate::gpu::{Caps, Recorder, Tensor, Variant};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    row0: u32,
    n_rows: u32,
    n_groups: u32,
    x_stride: u32,
    out0: u32,
    n_out: u32,
    y_stride: u32,
}

kernel!(LINEAR_FEW, "linear_few", Params, [Read, Read, Read, ReadWrite]);
kernel!(LINEAR_TILE, "linear_tile", Params, [Read, Read, Read, ReadWrite]);
kernel!(LINEAR_REG, "linear_reg", Params, [Read, Read, Read, ReadWrite]);
// Rows and outputs are held below their counts before they index x and w, and by `put` before y and b; `launch`
// asserts that the tensors have them; indices into workgroup memory come of constants and of subgroup and lane.
kernel!(LINEAR_COOP, "linear_coop", Params, [Read, Read, Read, ReadWrite], proven);

/// Rows that one workgroup of `linear_few` and one invocation of `linear_reg` multiply at most.
const MOST_ROWS: u32 = 8;
/// Outputs of one workgroup of `linear_few` and of one invocation of `linear_reg`.
const OUTPUTS: u32 = 4;
/// Rows and outputs of a tile of `linear_tile`.
const TILE: u32 = 64;
/// Subgroups of a workgroup of `linear_coop`, down the rows and along the outputs: for large products, which pay
/// for fetching x and w, and for those that would leave most of a device idle with large tiles.
const COOP_LARGE: [u32; 2] = [4, 2];
const COOP_SMALL: [u32; 2] = [2, 1];
/// Large tiles that make a product large: fewer leave more than half of the largest cards idle, which have about
/// 130 multiprocessors. Not measured.
const COOP_LARGE_TILES: u32 = 64;
/// Lanes of `linear_reg`, which must be one subgroup: those of the vector units that software devices run on.
const REG_LANES: u32 = 8;

/// `y = x·Wᵀ + bias`, or added to `y` if `add`: `x` `[rows, n_in]` F32, `w` `[n_out, n_in]` of any weight type,
/// `bias` `[1, n_out]` F32, `y` `[rows, n_out]` F32.
///
/// Decoding rows and prompt rows go through different kernels, so that a row's sum has the same order in
/// every batch.
///
/// # Panics
/// If the shapes disagree.
pub fn linear(
    rec: &mut Recorder,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    add: bool,
    y: &Tensor,
    n: Rows,
) {
    let gpu = rec.gpu().clone();
    let caps = gpu.caps();
    for (variant, row0, n_rows) in [
        (few(caps, w.dtype(), n.n_decode), 0, n.n_decode),
        (many(caps, w, n.n_prompt), n.n_decode, n.n_prompt),
    ] {
        if n_rows > 0 {
            launch(rec, variant, x, w, bias, add, y, row0, n_rows);
        }
    }
}

/// Every variant that this device can run for `n_rows` rows, the default ones first: for tests and
/// benchmarks, each with a launch like [`linear`]'s.
pub fn linear_variants(caps: &Caps, dtype: Dtype, n_rows: usize) -> Vec<LinearVariant> {
    let tile = Variant::new(&LINEAR_TILE).part(weights(dtype)).part(&PRODUCT);
    let reg = (caps.subgroup == Some(REG_LANES))
        .then(|| Variant::new(&LINEAR_REG).part(weights(dtype)).part(&PRODUCT));
    let coop = [COOP_LARGE, COOP_SMALL].into_iter().filter_map(|shape| coop_variant(caps, dtype, shape));
    [few(caps, dtype, n_rows), tile].into_iter().chain(reg).chain(coop).map(LinearVariant).collect()
}

/// One way to compute a product.
#[derive(Clone, Copy)]
pub struct LinearVariant(Variant);

impl LinearVariant {
    /// Name of the kernel.
    pub fn name(&self) -> &'static str {
        self.0.kernel.name
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
        launch(rec, self.0, x, w, bias, add, y, 0, n_rows);
    }
}

/// For decoding rows: weights stream by once for up to eight rows.
fn few(caps: &Caps, dtype: Dtype, n_rows: usize) -> Variant {
    let rows = (n_rows as u32).next_power_of_two().clamp(1, MOST_ROWS);
    folding(&LINEAR_FEW, caps).part(weights(dtype)).part(&PRODUCT).set("N_ROWS", rows)
}

/// `linear_coop` with workgroups of `[down, along]` subgroups, where the device can run it.
fn coop_variant(caps: &Caps, dtype: Dtype, [down, along]: [u32; 2]) -> Option<Variant> {
    let (tile, width) = (caps.coop_tile()?, caps.subgroup?);
    let subgroups = down * along;
    // Tiles of f16 with 40 values a row, and a tile of sums a subgroup.
    let bytes = (2 * down + 4 * along) * tile * 80 + subgroups * tile * tile * 4;
    // Each lane fetches as many vec4 of x and groups of w as any other.
    let even = (16 * tile).is_multiple_of(width * along) && (16 * tile).is_multiple_of(width * down);
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
    match caps.subgroup {
        Some(REG_LANES) if caps.cpu => Variant::new(&LINEAR_REG).part(weights(dtype)).part(&PRODUCT),
        // Barriers cost a software device more than reading the weights again for every eight rows.
        Some(_) if caps.cpu => few(caps, dtype, MOST_ROWS as usize),
        _ => Variant::new(&LINEAR_TILE).part(weights(dtype)).part(&PRODUCT),
    }
}

#[allow(clippy::too_many_arguments)]
fn launch(
    rec: &mut Recorder,
    variant: Variant,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    add: bool,
    y: &Tensor,
    row0: usize,
    n_rows: usize,
) {
    assert_eq!(x.n_cols(), w.n_cols(), "linear: {x:?} and {w:?}");
    assert_eq!(y.n_cols(), w.n_rows(), "linear: {y:?} and {w:?}");
    assert!(bias.is_none_or(|b| b.n_cols() == y.n_cols()), "linear: {bias:?} and {y:?}");
    assert_rows("linear", x, row0 + n_rows);
    assert_rows("linear", y, row0 + n_rows);
    let variant = variant.set("ADD", add.into()).set("BIAS", bias.is_some().into());
    let bias = bias.map_or_else(|| rec.unused(), Tensor::view);
    let n = n_rows as u32;
    for range in w.ranges() {
        let n_out = range.rows.len() as u32;
        let params = Params {
            row0: row0 as u32,
            n_rows: n,
            n_groups: (w.stride() / 8) as u32,
            x_stride: (x.stride() / 4) as u32,
            out0: range.rows.start as u32,
            n_out,
            y_stride: y.stride() as u32,
        };
        let groups = match variant.kernel.name {
            "linear_few" => {
                let [gx, gy, _] = rec.gpu().caps().spread(n_out.div_ceil(OUTPUTS));
                let rows = variant.overrides().find(|(name, _)| *name == "N_ROWS").map_or(1, |(_, v)| v);
                [gx, gy, n.div_ceil(rows)]
            }
            "linear_tile" => [n_out.div_ceil(TILE), n.div_ceil(TILE), 1],
            "linear_coop" => {
                let value = |name| variant.overrides().find(|(n, _)| *n == name).map_or(1, |(_, v)| v);
                let tile = rec.gpu().caps().coop_tile().expect("the variant was made for it");
                let [rows, outs] = coop_tile(tile, [value("SG_ROWS"), value("SG_OUTS")]);
                [n_out.div_ceil(outs), n.div_ceil(rows), 1]
            }
            _ => [n_out.div_ceil(OUTPUTS * REG_LANES), n.div_ceil(MOST_ROWS), 1],
        };
        rec.dispatch(variant, &params, &[x.view(), range, bias.clone(), y.view()], groups);
    }
}
