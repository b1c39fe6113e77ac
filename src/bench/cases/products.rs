//! Products with weights: every matrix of the model, every variant.

use super::super::check::Check;
use super::super::shapes::Matrix;
use super::super::{reference as exact, shapes};
use super::{Case, Cost, MOST_DECODE, Prepared, Workload, clear, values};
use crate::dtype::Dtype;
use crate::engine::PAGE_SIZE;
use crate::gpu::{Gpu, Product, Recorder};
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
            let case = product(work, matrix, Some(variant));
            cases.push(Case { variant: Some(variant.name().to_string()), ..case });
        }
    }
    cases
}

/// One product, with this variant or as a model records it.
fn product(work: &Workload<'_>, (name, n_out, n_in): Matrix, variant: Option<LinearVariant>) -> Case {
    let (n_rows, dtype, n) = (work.n_rows, work.dtype, work.rows());
    let what = format!("{name} {n_out}×{n_in}");
    work.case("linear", what, dtype, cost(n_rows, n_in, n_out, n_out, dtype), move |pool| {
        let some = pool.some;
        let weights = pool.weights([n_out, n_in], dtype, (n_in as f32).powf(-0.5))?;
        let x = pool.activations("x", [n_rows, n_in], 1)?;
        let y = pool.output([n_rows, n_out])?;
        let (first, x2, y2, y3) = (weights[0].clone(), x.clone(), y.clone(), y.clone());
        let model = (weights[0].clone(), x.clone(), y.clone());
        let default = move |rec: &mut Recorder, _: usize| {
            let (w, x, y) = &model;
            ops::linear(rec, Affine::new(x, w, None), false, y, n);
        };
        let launch = move |rec: &mut Recorder, i: usize| {
            let product = Affine::new(&x, &weights[i % weights.len()], None);
            match variant {
                Some(variant) => variant.launch(rec, product, false, &y, n_rows),
                None => ops::linear(rec, product, false, &y, n),
            }
        };
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(n_in + 2, 1.0);
            let outputs = some(n_out, 16);
            let w = outputs.iter().map(|o| values(gpu, &first, *o)).collect::<Result<Vec<_>, _>>()?;
            for r in some(n_rows, 3) {
                let y = values(gpu, &y2, r)?;
                let got: Vec<f64> = outputs.iter().map(|o| y[*o]).collect();
                check.extend(&got, &exact::linear(&values(gpu, &x2, r)?, &w, None));
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)).with_default(default))
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
            _ => ("linear", product(&work, matrix, None)),
        };
        (Product { operation, is_prompt, dtype, n_out, n_in }, case)
    };
    matrices.into_iter().map(case).collect()
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

/// Norm, projection, rotation and append to an F16 cache. The check compares only the queries.
pub(super) fn qkv(work: &Workload<'_>) -> Vec<Case> {
    let a = work.model().attention.first().filter(|a| !work.model().has_layer_norm && a.n_heads > 0);
    a.map(|a| projection(work, a)).into_iter().collect()
}

fn projection(work: &Workload<'_>, a: &Attention) -> Case {
    let has_norm = !work.model().has_layer_norm;
    let (n_rows, n_in, dtype, n) = (work.n_rows, work.model().hidden_size, work.dtype, work.rows());
    let heads = [a.n_heads, a.n_kv_heads, a.head_dim];
    let (n_q, n_out) = (a.n_heads * a.head_dim, (a.n_heads + 2 * a.n_kv_heads) * a.head_dim);
    let page = a.n_kv_heads * PAGE_SIZE * a.head_dim;
    work.case("qkv", format!("{n_out}×{n_in}"), dtype, cost(n_rows, n_in, n_out, n_out, dtype), move |pool| {
        let some = pool.some;
        let weights = pool.weights([n_out, n_in], dtype, (n_in as f32).powf(-0.5))?;
        let x = pool.activations("x", [n_rows, n_in], 1)?;
        let norm = RmsNorm { w: pool.draw("g", [1, n_in], Dtype::F32, 2, 1.0, 0.1)?, eps: EPS, offset: 0.0 };
        let (h, room, q) =
            (pool.output([n_rows, n_in])?, pool.output([n_rows, n_out])?, pool.output([n_rows, n_q])?);
        // Each row has its own page, and the first slot of it.
        let ids: Vec<u32> = (0..n_rows as u32).collect();
        let places: Vec<u32> = ids.iter().flat_map(|r| [*r, 0]).collect();
        let (rows, pages) =
            (pool.table("rows", [n_rows, 2], &places)?, pool.table("pages", [n_rows, 1], &ids)?);
        let cache = KvLayer::new(pool.gpu(), 0, n_rows, page, Dtype::F16)?;
        let (first, x2, norm2, q2, q3) = (weights[0].clone(), x.clone(), norm.clone(), q.clone(), q.clone());
        let launch = move |rec: &mut Recorder, i: usize| {
            let input = Input { x: &x, norm: has_norm.then_some((&norm, &h)) };
            let places = Places { rows: &rows, pages: &pages, page_size: PAGE_SIZE };
            let to = RopeAppend { rotary: None, heads, places, q: &q, cache: &cache };
            let product = Affine::new(input, &weights[i % weights.len()], None);
            ops::qkv(rec, Qkv { product, head_norm: None, projected: &room, to }, n);
        };
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(n_in + 4, 1.0);
            let outputs = some(n_q, 16);
            let w = outputs.iter().map(|o| values(gpu, &first, *o)).collect::<Result<Vec<_>, _>>()?;
            let g = values(gpu, &norm2.w, 0)?;
            for r in some(n_rows, 3) {
                let q = values(gpu, &q2, r)?;
                let got: Vec<f64> = outputs.iter().map(|o| q[*o]).collect();
                let x = values(gpu, &x2, r)?;
                let x = if has_norm { exact::rms_norm(&x, &g, EPS.into(), 0.0) } else { x };
                check.extend(&got, &exact::linear(&x, &w, None));
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &q3)))
    })
}

/// Norm, both projections and the gate.
pub(super) fn gate_up(work: &Workload<'_>) -> Vec<Case> {
    if work.model().has_layer_norm || !work.model().has_gate {
        return Vec::new();
    }
    vec![feed_forward(work)]
}

fn feed_forward(work: &Workload<'_>) -> Case {
    let (has_norm, gated) = (!work.model().has_layer_norm, work.model().has_gate);
    let (n_rows, n_in, dtype, n) = (work.n_rows, work.model().hidden_size, work.dtype, work.rows());
    let n_out = work.model().intermediate_size;
    let n_w = if gated { 2 * n_out } else { n_out };
    let what = format!("{}{n_out}×{n_in}", if gated { "2·" } else { "" });
    work.case("gate_up", what, dtype, cost(n_rows, n_in, n_w, n_out, dtype), move |pool| {
        let some = pool.some;
        let weights = pool.weights([n_w, n_in], dtype, (n_in as f32).powf(-0.5))?;
        let x = pool.activations("x", [n_rows, n_in], 1)?;
        let norm = RmsNorm { w: pool.draw("g", [1, n_in], Dtype::F32, 2, 1.0, 0.1)?, eps: EPS, offset: 0.0 };
        let (h, up, y) =
            (pool.output([n_rows, n_in])?, pool.output([n_rows, n_w])?, pool.output([n_rows, n_out])?);
        let (first, x2, norm2, y2, y3) = (weights[0].clone(), x.clone(), norm.clone(), y.clone(), y.clone());
        let launch = move |rec: &mut Recorder, i: usize| {
            let input = Input { x: &x, norm: has_norm.then_some((&norm, &h)) };
            let product = Affine::new(input, &weights[i % weights.len()], None);
            ops::gate_up(rec, Act::Silu, product, &up, &y, n);
        };
        let verify = move |gpu: &Gpu| {
            // Two sums and an exponential.
            let mut check = Check::f32(n_in + 8, 2.0);
            let outputs = some(n_out, 16);
            let ups = outputs.iter().filter(|_| gated).map(|o| o + n_out);
            let rows = outputs.iter().copied().chain(ups);
            let w = rows.map(|o| values(gpu, &first, o)).collect::<Result<Vec<_>, _>>()?;
            let g = values(gpu, &norm2.w, 0)?;
            for r in some(n_rows, 3) {
                let y = values(gpu, &y2, r)?;
                let got: Vec<f64> = outputs.iter().map(|o| y[*o]).collect();
                let x = values(gpu, &x2, r)?;
                let x = if has_norm { exact::rms_norm(&x, &g, EPS.into(), 0.0) } else { x };
                let product = exact::linear(&x, &w, None);
                let want = if gated {
                    exact::gate(exact::silu, &product)
                } else {
                    product.into_iter().map(exact::silu).collect()
                };
                check.extend(&got, &want);
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
    })
}
