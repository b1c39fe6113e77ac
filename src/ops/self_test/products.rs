//! Trials of products with weights.

use super::super::rows::{COOP_LARGE, Span, Way};
use super::super::{
    Act, Affine, ExpertInput, ExpertProduct, Input, KvLayer, PAIR_F16, PRODUCTS, Places, Qkv, ROWS_REG,
    RmsNorm, RopeAppend, Rotary, Routes, SHARES, Temperature, experts, experts::DIRECT, gate_up as gate,
    linear as product, qkv as projection,
};
use super::{Launch, Setup, is_set, odd_width, weights_dtype};
use crate::dtype::Dtype;
use crate::gpu::{GpuError, Recorder, Tensor, Variant};

/// The rows before those of the span, so that its start matters.
const ROW0: usize = 1;
const PAGE_SIZE: usize = 16;

/// The way of a variant, and a number of rows that makes it the one that runs.
fn way(variant: &Variant) -> (Way, usize) {
    if let Some(down) = variant.value("SG_ROWS") {
        // More rows than a tile of the largest shape has.
        return (if down == COOP_LARGE[0] { Way::CoopLarge } else { Way::CoopSmall }, 133);
    }
    let n_shared = SHARES.iter().position(|share| variant.has(share)).map_or(1, |log| 1 << log);
    // One row less still shares reads in a group of that size.
    let n_rows = if n_shared > 2 { n_shared - 1 } else { n_shared };
    (if variant.has(&ROWS_REG) { Way::Reg } else { Way::Few }, n_rows)
}

/// The span for a recorder: of the variant, or of the variant that runs on every device.
fn span(rec: &Recorder, (way, n_rows): (Way, usize)) -> Span {
    Span { way: if rec.is_portable(PRODUCTS) { Way::Few } else { way }, row0: ROW0, n_rows }
}

/// Rows, optionally with a norm.
struct Inputs {
    x: Tensor,
    norm: Option<RmsNorm>,
    bias: Option<Tensor>,
    w: Tensor,
}

impl Inputs {
    fn new(setup: &mut Setup<'_>, variant: &Variant, n_rows: usize, n_out: usize) -> Result<Self, GpuError> {
        let dtype = weights_dtype(variant);
        let n_in = odd_width(dtype);
        let norm = if is_set(variant, "NORM") {
            Some(RmsNorm { w: setup.norm(n_in)?, eps: 1e-5, offset: 0.5 })
        } else {
            None
        };
        let bias = if is_set(variant, "BIAS") { Some(setup.activations([1, n_out])?) } else { None };
        Ok(Inputs {
            x: setup.activations([ROW0 + n_rows, n_in])?,
            norm,
            bias,
            w: setup.weights([n_out, n_in], dtype)?,
        })
    }

    /// Kernels whose rows share reads need no scratch for normalised rows.
    fn product(&self) -> Affine<'_> {
        let input = Input { x: &self.x, norm: self.norm.as_ref().map(|norm| (norm, &self.x)) };
        Affine::new(input, &self.w, self.bias.as_ref())
    }
}

pub(super) fn linear(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let way = way(variant);
    if let Some(routed) = variant.value("ROUTED") {
        return with_experts(setup, variant, way.0, routed);
    }
    // More than a large tile has, and not a multiple of four.
    let n_out = if way.0.shares() { 37 } else { 139 };
    let inputs = Inputs::new(setup, variant, way.1, n_out)?;
    let y = setup.results([ROW0 + way.1, n_out])?;
    setup.tolerance = super::Tolerance::new(inputs.x.n_cols() + 4, 1.0);
    let add = is_set(variant, "ADD");
    Ok(Box::new(move |rec| {
        let span = span(rec, way);
        product::launch(rec, inputs.product(), add, &y, span);
    }))
}

/// A product with the weights of experts, of which no row takes the last.
fn with_experts(setup: &mut Setup<'_>, variant: &Variant, way: Way, routed: u32) -> Result<Launch, GpuError> {
    let (n_experts, k, n_out) = (5, 2, if way.shares() { 37 } else { 139 });
    // Pairs of more rows than there are experts are listed.
    let n_rows = ROW0 + if routed == DIRECT { 1 } else { 29 };
    let inputs = Inputs::new(setup, variant, n_rows - ROW0, n_experts * n_out)?;
    let ids: Vec<u32> = (0..n_rows as u32).flat_map(|r| [r * 3 % 4, (r * 3 + 1) % 4]).collect();
    let routes = Routes::of(setup.gpu, setup.table([n_rows, k], &ids)?, n_experts)?;
    let y = setup.results([n_rows * k, n_out])?;
    setup.tolerance = super::Tolerance::new(inputs.x.n_cols() + 4, 1.0);
    Ok(Box::new(move |rec| {
        let span = span(rec, (way, n_rows - ROW0));
        let Inputs { x, bias, w, .. } = &inputs;
        let parts = std::slice::from_ref(w);
        let product = ExpertProduct { input: ExpertInput::Rows(x), parts, bias: bias.as_ref() };
        experts::span(rec, product, (w, 0), &routes.routed(), &y, span);
    }))
}

pub(super) fn gate_up(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let way = way(variant);
    let act = Act::ALL.into_iter().find(|act| Some(*act as u32) == variant.value("ACT"));
    let act = act.expect("a known activation");
    let n_out = 37;
    let n_w = if is_set(variant, "GATED") { 2 * n_out } else { n_out };
    let inputs = Inputs::new(setup, variant, way.1, n_w)?;
    let y = setup.results([ROW0 + way.1, n_out])?;
    setup.tolerance = super::Tolerance::new(inputs.x.n_cols() + 8, 2.0);
    Ok(Box::new(move |rec| {
        let span = span(rec, way);
        gate::fused(rec, act, inputs.product(), &y, span);
    }))
}

pub(super) fn qkv(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let way = way(variant);
    let n_rows = ROW0 + way.1;
    // Eight of twelve dimensions are rotated.
    let (heads, n_rot) = ([3, 1, 12], 8);
    let [n_heads, n_kv_heads, head_dim] = heads;
    let inputs = Inputs::new(setup, variant, way.1, (n_heads + 2 * n_kv_heads) * head_dim)?;
    // Two sequences, each on two pages.
    let places: Vec<u32> = (0..n_rows as u32).flat_map(|r| [r % 2, 11 + r / 2]).collect();
    let (rows, pages) = (setup.table([n_rows, 2], &places)?, setup.table([2, 2], &[2, 0, 3, 1])?);
    let angle = |pos: usize, i: usize| pos as f32 * 1e4f32.powf(-(2.0 * i as f32) / n_rot as f32);
    let angles = (0..2 * PAGE_SIZE).flat_map(|pos| (0..n_rot / 2).map(move |i| angle(pos, i)));
    let cos_sin: Vec<u32> = angles.flat_map(|angle| [angle.cos(), angle.sin()]).map(f32::to_bits).collect();
    let cos_sin = setup.table([2 * PAGE_SIZE, n_rot], &cos_sin)?;
    let interleaved = is_set(variant, "INTERLEAVED");
    let temperature = is_set(variant, "TEMPERED").then_some(Temperature { beta: 0.5, original: 5 });
    let rotary = Rotary { cos_sin, n_rot, interleaved, temperature };
    let dtype = if variant.has(&PAIR_F16) { Dtype::F16 } else { Dtype::F32 };
    let width = n_kv_heads * PAGE_SIZE * head_dim;
    let [k, v] = [setup.zeros([4, width], dtype)?, setup.zeros([4, width], dtype)?];
    let (cache, q) = (KvLayer { k, v, dtype }, setup.results([n_rows, n_heads * head_dim])?);
    setup.tolerance = super::Tolerance::new(inputs.x.n_cols() + 4, 1.0);
    Ok(Box::new(move |rec| {
        let span = span(rec, way);
        let places = Places { rows: &rows, pages: &pages, page_size: PAGE_SIZE };
        let product = inputs.product();
        let to = RopeAppend { rotary: Some(&rotary), heads, places, q: &q, cache: &cache };
        projection::fused(rec, Qkv { product, head_norm: None, projected: &q, to }, span);
    }))
}
