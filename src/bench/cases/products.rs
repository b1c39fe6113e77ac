//! Products with weights: every matrix of the model, every variant.

use std::fmt;
use std::rc::Rc;

use super::super::check::Check;
use super::super::shapes::Matrix;
use super::super::{reference as exact, shapes};
use super::attention::{Pairs, page as page_of};
use super::rows::{activate, all_acts};
use super::{Case, Cost, MOST_DECODE, Pool, Prepared, Workload, clear, experts, values};
use crate::dtype::Dtype;
use crate::engine::PAGE_SIZE;
use crate::gpu::{Gpu, GpuError, Product, Recorder, Tensor};
use crate::models::ModelShape;
use crate::ops::{
    self, Act, Affine, Attention, Input, KvLayer, LinearVariant, Places, Qkv, RmsNorm, RopeAppend,
};

pub(super) fn linear(work: &Workload<'_>) -> Vec<Case> {
    let mut matrices = shapes::layer_matrices(work.model(), 0);
    if work.n_rows <= MOST_DECODE {
        // Only few rows of a prompt get logits.
        matrices.push(shapes::head(work.model()));
    }
    let mut cases = Vec::new();
    for matrix in matrices {
        for variant in ops::linear_variants(work.caps) {
            let case = product(work, matrix, Some(variant), Switches::default());
            cases.push(Case { variant: Some(variant.name().to_string()), ..case });
        }
    }
    cases.extend(experts::products(work));
    cases
}

/// What products compute beside the product. Weights of one type will do: no kernel has a line for a type and a switch.
const SWITCHED: Dtype = Dtype::F16;

/// What a product computes beside the product.
#[derive(Clone, Copy, Default)]
struct Switches {
    /// Normalises its rows itself.
    norm: bool,
    /// Adds to what is there.
    add: bool,
    /// Has a bias.
    bias: bool,
}

impl Switches {
    const NORM: Switches = Switches { norm: true, add: false, bias: false };

    /// The norm that the kernel of a model's product computes, if any.
    fn of_model(model: &ModelShape) -> Switches {
        if model.has_layer_norm { Switches::default() } else { Switches::NORM }
    }

    /// All of them, with no bias and with one.
    fn all() -> impl Iterator<Item = Switches> {
        let some = [(false, false), (true, false), (false, true)];
        some.into_iter().flat_map(|(norm, add)| [false, true].map(|bias| Switches { norm, add, bias }))
    }
}

impl fmt::Display for Switches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = [(self.norm, " norm"), (self.add, " add"), (self.bias, " bias")];
        words.into_iter().filter(|(is, _)| *is).try_for_each(|(_, word)| f.write_str(word))
    }
}

/// One matrix with every switch.
pub(super) fn linear_switched(work: &Workload<'_>) -> Vec<Case> {
    if work.dtype != SWITCHED {
        return Vec::new();
    }
    let Some(matrix) = shapes::layer_matrices(work.model(), 0).pop() else { return Vec::new() };
    let mut cases = Vec::new();
    for variant in ops::linear_variants(work.caps) {
        // The others get rows that are normalised already.
        for switches in Switches::all().filter(|switches| !switches.norm || variant.normalises()) {
            let case = product(work, matrix, Some(variant), switches);
            cases.push(Case { variant: Some(variant.name().to_string()), ..case });
        }
    }
    cases
}

/// What a product reads: weights in several copies, rows, and what its switches need.
struct Operands {
    weights: Vec<Tensor>,
    x: Tensor,
    /// With scratch for normalised rows.
    norm: Option<(RmsNorm, Tensor)>,
    bias: Option<Tensor>,
}

impl Operands {
    fn new(
        pool: &mut Pool<'_>,
        [n_out, n_in]: [usize; 2],
        dtype: Dtype,
        n_rows: usize,
        switches: Switches,
    ) -> Result<Operands, GpuError> {
        let weights = pool.weights([n_out, n_in], dtype, (n_in as f32).powf(-0.5))?;
        let w = pool.draw("g", [1, n_in], Dtype::F32, 2, 1.0, 0.1)?;
        let norm = (RmsNorm { w, eps: EPS, offset: 0.0 }, pool.output([n_rows, n_in])?);
        let bias = pool.draw("bias", [1, n_out], Dtype::F32, 4, 0.0, 1.0)?;
        Ok(Operands {
            weights,
            x: pool.activations("x", [n_rows, n_in], 1)?,
            norm: Some(norm).filter(|_| switches.norm),
            bias: Some(bias).filter(|_| switches.bias),
        })
    }

    /// The product with copy `i` of the weights.
    fn product(&self, i: usize) -> Affine<'_> {
        let input = Input { x: &self.x, norm: self.norm.as_ref().map(|(norm, h)| (norm, h)) };
        Affine::new(input, &self.weights[i % self.weights.len()], self.bias.as_ref())
    }

    /// The reference's outputs `outputs` of the rows `rows`, with the first copy.
    fn exact(&self, gpu: &Gpu, rows: &[usize], outputs: &[usize]) -> Result<Vec<Vec<f64>>, GpuError> {
        let w = outputs.iter().map(|o| values(gpu, &self.weights[0], *o)).collect::<Result<Vec<_>, _>>()?;
        let b = self.bias.as_ref().map(|bias| values(gpu, bias, 0)).transpose()?;
        let b = b.map(|b| outputs.iter().map(|o| b[*o]).collect::<Vec<f64>>());
        let norm = self.norm.as_ref().map(|(norm, _)| values(gpu, &norm.w, 0)).transpose()?;
        let row = |r: &usize| {
            let x = values(gpu, &self.x, *r)?;
            let x = norm.as_ref().map(|w| exact::rms_norm(&x, w, EPS.into(), 0.0)).unwrap_or(x);
            Ok(exact::linear(&x, &w, b.as_deref()))
        };
        rows.iter().map(row).collect()
    }
}

/// These columns of a row.
fn columns(gpu: &Gpu, tensor: &Tensor, r: usize, columns: &[usize]) -> Result<Vec<f64>, GpuError> {
    let row = values(gpu, tensor, r)?;
    Ok(columns.iter().map(|c| row[*c]).collect())
}

/// One product, with this variant or as a model records it.
fn product(
    work: &Workload<'_>,
    (name, n_out, n_in): Matrix,
    variant: Option<LinearVariant>,
    switches: Switches,
) -> Case {
    let (n_rows, dtype, n) = (work.n_rows, work.dtype, work.rows());
    let what = format!("{name} {n_out}×{n_in}{switches}");
    work.case("linear", what, dtype, cost(n_rows, n_in, n_out, n_out, dtype), move |pool| {
        let some = pool.some;
        let operands = Rc::new(Operands::new(pool, [n_out, n_in], dtype, n_rows, switches)?);
        let fresh = pool.activations("fresh", [n_rows, n_out], 5)?;
        let y = pool.output([n_rows, n_out])?;
        let (model, read, add) = (operands.clone(), operands.clone(), switches.add);
        let (fresh2, y2, y3, y4) = (fresh.clone(), y.clone(), y.clone(), y.clone());
        let default = move |rec: &mut Recorder, _: usize| ops::linear(rec, model.product(0), add, &y4, n);
        let launch = move |rec: &mut Recorder, i: usize| match variant {
            Some(variant) => variant.launch(rec, operands.product(i), add, &y, n_rows),
            None => ops::linear(rec, operands.product(i), add, &y, n),
        };
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(n_in + 2, 1.0);
            let (rows, outputs) = (some(n_rows, 3), some(n_out, 16));
            for (r, mut want) in rows.iter().zip(read.exact(gpu, &rows, &outputs)?) {
                if add {
                    let before = columns(gpu, &fresh2, *r, &outputs)?;
                    want.iter_mut().zip(before).for_each(|(want, before)| *want += before);
                }
                check.extend(&columns(gpu, &y2, *r, &outputs)?, &want);
            }
            Ok(check)
        };
        let reset = move |rec: &mut Recorder| rec.copy(&fresh, 0, &y3, 0, y3.size_bytes());
        Ok(Prepared::new(launch, verify).reset(reset).with_default(default))
    })
}

/// The products of a model whose variants measurements may choose, as models record them, each with its key. The head
/// only has decode rows.
pub(in super::super) fn tunable(work: &Workload<'_>) -> Vec<(Product, Case)> {
    let model = work.model();
    let is_prompt = work.n_rows > MOST_DECODE;
    let mut matrices = shapes::layer_matrices(model, 0);
    if !is_prompt {
        matrices.push(shapes::head(model));
    }
    let case = |matrix: Matrix| {
        let (name, n_out, n_in) = matrix;
        // As the loader quantises it.
        let dtype = if name == "head" && work.dtype.is_quantised() { Dtype::Q8_0 } else { work.dtype };
        let work = Workload { dtype, ..*work };
        let (operation, case) = match (name, model.attention.first()) {
            // If heads are normalised in between, the projection is a plain product.
            ("qkv", Some(a)) if !model.has_head_norm => ("qkv", projection(&work, a)),
            ("gate_up" | "up", _) => ("gate_up", feed_forward(&work)),
            _ => ("linear", product(&work, matrix, None, Switches::default())),
        };
        (Product { operation, is_prompt, dtype, n_out, n_in }, case)
    };
    matrices.into_iter().map(case).collect()
}

/// A product that a step of a model records, and how many times its work the product has: outputs beyond `most` weights
/// are left out, because they cost what others do. A part of a stack of different types is a product of its own.
pub(in super::super) fn of_step(work: &Workload<'_>, product: &Product, most: usize) -> (Case, f64) {
    let (model, Product { operation, dtype, n_out, n_in, .. }) = (work.model(), *product);
    let n_projected = |a: &Attention| (a.n_heads + 2 * a.n_kv_heads) * a.head_dim;
    let mut shape = work.shape.clone();
    shape.model.hidden_size = n_in;
    if let ("qkv", Some(a)) = (operation, model.attention.iter().find(|a| n_projected(a) == n_out)) {
        return (projection(&Workload { dtype, shape: &shape, ..*work }, a), 1.0);
    }
    // Whole workgroups of any variant.
    let n_cut = (most / n_in.max(1)).next_multiple_of(256).min(n_out);
    let n_gates = if model.has_gate { 2 } else { 1 };
    let is_mlp = operation == "gate_up" && n_out == n_gates * model.intermediate_size;
    let n_cut = if is_mlp { n_cut / n_gates * n_gates } else { n_cut };
    shape.model.intermediate_size = n_cut / n_gates;
    let work = Workload { dtype, shape: &shape, ..*work };
    let case = match is_mlp {
        true => feed_forward(&work),
        false => self::product(&work, ("", n_cut, n_in), None, Switches::default()),
    };
    (case, n_out as f64 / n_cut as f64)
}

/// Epsilon of the norms.
const EPS: f32 = 1e-5;

/// The cost of a fused product: its weights once, its input rows, its outputs.
fn cost(n_rows: usize, n_in: usize, n_out: usize, n_written: usize, dtype: Dtype) -> Cost {
    Cost {
        flops: 2.0 * (n_rows * n_out) as f64 * n_in as f64,
        bytes: (n_out * dtype.bytes(n_in)) as f64 + (n_rows * 4 * (n_in + n_written)) as f64,
    }
}

/// Norm, projection, rotation and append to an F16 cache.
pub(super) fn qkv(work: &Workload<'_>) -> Vec<Case> {
    let a = work.model().attention.first().filter(|a| !work.model().has_layer_norm && a.n_heads > 0);
    a.map(|a| projection(work, a)).into_iter().collect()
}

/// Every cache, with every switch and both kinds of pairs.
pub(super) fn qkv_switched(work: &Workload<'_>) -> Vec<Case> {
    let Some(a) = work.model().attention.first().filter(|_| work.dtype == SWITCHED) else {
        return Vec::new();
    };
    let mut cases = Vec::new();
    for cache in [Dtype::F32, Dtype::F16] {
        for switches in Switches::all().filter(|switches| !switches.add) {
            for pairs in [Pairs::Halves, Pairs::Neighbours, Pairs::Tempered] {
                let case = project(work, a, switches, cache, pairs);
                cases.push(Case { shape: format!("{} to {cache}{switches} {pairs:?}", case.shape), ..case });
            }
        }
    }
    cases
}

fn projection(work: &Workload<'_>, a: &Attention) -> Case {
    project(work, a, Switches::of_model(work.model()), Dtype::F16, Pairs::None)
}

fn project(work: &Workload<'_>, a: &Attention, switches: Switches, cache_dtype: Dtype, pairs: Pairs) -> Case {
    let (n_rows, n_in, dtype, n) = (work.n_rows, work.model().hidden_size, work.dtype, work.rows());
    let heads = [a.n_heads, a.n_kv_heads, a.head_dim];
    let (n_q, n_out) = (a.n_heads * a.head_dim, (a.n_heads + 2 * a.n_kv_heads) * a.head_dim);
    let page = a.n_kv_heads * PAGE_SIZE * a.head_dim;
    let what = format!("{n_out}×{n_in}");
    work.case("qkv", what, dtype, cost(n_rows, n_in, n_out, n_out, dtype), move |pool| {
        let some = pool.some;
        let operands = Rc::new(Operands::new(pool, [n_out, n_in], dtype, n_rows, switches)?);
        let (room, q) = (pool.output([n_rows, n_out])?, pool.output([n_rows, n_q])?);
        // Each row has its own page, and a slot of it.
        let pos = |r: usize| r % PAGE_SIZE;
        let places: Vec<u32> = (0..n_rows).flat_map(|r| [r as u32, pos(r) as u32]).collect();
        let ids: Vec<u32> = (0..n_rows as u32).collect();
        let (rows, pages) =
            (pool.table("rows", [n_rows, 2], &places)?, pool.table("pages", [n_rows, 1], &ids)?);
        let rotary = pairs.rotary(pool, heads[2], PAGE_SIZE)?;
        let cache = KvLayer::new(pool.gpu(), 0, n_rows, page, cache_dtype)?;
        let (read, cache2, q2) = (operands.clone(), cache.clone(), q.clone());
        let written = [q.clone(), cache.k.clone(), cache.v.clone()];
        let launch = move |rec: &mut Recorder, i: usize| {
            let places = Places { rows: &rows, pages: &pages, page_size: PAGE_SIZE };
            let to = RopeAppend { rotary: rotary.as_ref(), heads, places, q: &q, cache: &cache };
            let product = operands.product(i);
            ops::qkv(rec, Qkv { product, head_norm: None, projected: &room, to }, n);
        };
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(n_in + 4, 1.0);
            // Rounding to the cache's type counts as one tolerance.
            let f16 = Some(half::f16::EPSILON.to_f64()).filter(|_| cache_dtype == Dtype::F16);
            let unit = f16.map_or(1.0, |eps| check.relative() / eps);
            let scaled = |all: &[f64]| all.iter().map(|value| unit * value).collect::<Vec<f64>>();
            let [n_heads, n_kv_heads, d] = heads;
            let (q_heads, kv_heads) = (some(n_heads, 2), some(n_kv_heads, 2));
            // All dimensions of a head, because pairs of them are rotated.
            let dims = |first: usize, heads: &[usize]| -> Vec<usize> {
                heads.iter().flat_map(|h| (first + h) * d..(first + h + 1) * d).collect()
            };
            let parts = [dims(0, &q_heads), dims(n_heads, &kv_heads), dims(n_heads + n_kv_heads, &kv_heads)];
            let rows = some(n_rows, 3);
            for (r, want) in rows.iter().zip(read.exact(gpu, &rows, &parts.concat())?) {
                let (q, kv) = want.split_at(parts[0].len());
                let (k, v) = kv.split_at(parts[1].len());
                let factor = pairs.temperature(pos(*r));
                let q: Vec<f64> = pairs.turn(q, d, pos(*r)).into_iter().map(|q| q * factor).collect();
                check.extend(&columns(gpu, &q2, *r, &parts[0])?, &q);
                for (tensor, want) in [(&cache2.k, pairs.turn(k, d, pos(*r))), (&cache2.v, v.to_vec())] {
                    let page = page_of(gpu, cache_dtype, tensor, *r)?;
                    for (h, want) in kv_heads.iter().zip(want.chunks(d)) {
                        let got = &page[(h * PAGE_SIZE + pos(*r)) * d..][..d];
                        check.extend(&scaled(got), &scaled(want));
                    }
                }
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| written.iter().for_each(|t| clear(rec, t))))
    })
}

/// Norm, both projections and the gate.
pub(super) fn gate_up(work: &Workload<'_>) -> Vec<Case> {
    if work.model().has_layer_norm || !work.model().has_gate || work.model().experts_of(0).is_some() {
        return Vec::new();
    }
    vec![feed_forward(work)]
}

/// Every activation: gated, normed and not; not gated, with a bias and with none.
pub(super) fn gate_up_switched(work: &Workload<'_>) -> Vec<Case> {
    if work.dtype != SWITCHED {
        return Vec::new();
    }
    let bias = Switches { bias: true, ..Switches::default() };
    let kinds =
        [(true, Switches::NORM), (true, Switches::default()), (false, bias), (false, Switches::default())];
    let all = all_acts().flat_map(|(act, gated)| kinds.map(|(g, switches)| (act, gated, g, switches)));
    let all = all.filter(|(_, gated, g, _)| gated == g);
    let case = |(act, gated, _, switches)| {
        let case = activated(work, act, gated, switches);
        Case { shape: format!("{} {act:?}{switches}", case.shape), ..case }
    };
    all.map(case).collect()
}

fn feed_forward(work: &Workload<'_>) -> Case {
    activated(work, work.model().hidden_act, work.model().has_gate, Switches::of_model(work.model()))
}

fn activated(work: &Workload<'_>, act: Act, gated: bool, switches: Switches) -> Case {
    let (n_rows, n_in, dtype, n) = (work.n_rows, work.model().hidden_size, work.dtype, work.rows());
    let n_out = work.model().intermediate_size;
    let n_w = if gated { 2 * n_out } else { n_out };
    let what = format!("{}{n_out}×{n_in}", if gated { "2·" } else { "" });
    work.case("gate_up", what, dtype, cost(n_rows, n_in, n_w, n_out, dtype), move |pool| {
        let some = pool.some;
        let operands = Rc::new(Operands::new(pool, [n_w, n_in], dtype, n_rows, switches)?);
        let (up, y) = (pool.output([n_rows, n_w])?, pool.output([n_rows, n_out])?);
        let (read, y2, y3) = (operands.clone(), y.clone(), y.clone());
        let launch = move |rec: &mut Recorder, i: usize| {
            ops::gate_up(rec, act, operands.product(i), &up, &y, n);
        };
        let verify = move |gpu: &Gpu| {
            // Two sums and an exponential.
            let mut check = Check::f32(n_in + 8, 2.0);
            let (rows, outputs) = (some(n_rows, 3), some(n_out, 16));
            let ups = outputs.iter().filter(|_| gated).map(|o| o + n_out);
            let all: Vec<usize> = outputs.iter().copied().chain(ups).collect();
            for (r, product) in rows.iter().zip(read.exact(gpu, &rows, &all)?) {
                check.extend(&columns(gpu, &y2, *r, &outputs)?, &activate(act, gated, &product));
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
    })
}
