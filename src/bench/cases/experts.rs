//! Mixtures of experts: the router's choice, the lists of pairs, products with the experts' weights, and their sum.

use super::super::check::Check;
use super::super::reference as exact;
use super::{Case, Cost, Prepared, Workload, clear, values};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::ExpertsShape;
use crate::ops::{self, ExpertInput, ExpertProduct, Routes, Scoring};

/// The table of the experts that rows choose: each row different ones, some of them often.
fn table(n_rows: usize, experts: &ExpertsShape) -> Vec<u32> {
    let (n, k) = (experts.n_experts, experts.n_chosen);
    let of_row = |r: usize| {
        let first = r * r % 7 + 5 * r / 3;
        (0..k).map(move |slot| ((first + slot * (n / k)) % n) as u32)
    };
    (0..n_rows).flat_map(of_row).collect()
}

pub(super) fn route(work: &Workload<'_>) -> Vec<Case> {
    route_by(work, Scoring { sigmoid: false, normalised: true })
}

/// The other ways.
pub(super) fn route_switched(work: &Workload<'_>) -> Vec<Case> {
    let others = [(false, false), (true, false), (true, true)];
    let by = |(sigmoid, normalised)| route_by(work, Scoring { sigmoid, normalised });
    others.into_iter().flat_map(by).collect()
}

fn route_by(work: &Workload<'_>, scoring: Scoring) -> Vec<Case> {
    let Some(ExpertsShape { n_experts, n_chosen: k, .. }) = work.model().experts else { return Vec::new() };
    let n_rows = work.n_rows;
    let Scoring { sigmoid, normalised } = scoring;
    let kind = if sigmoid { " sigmoid" } else { "" };
    let what = format!("{k} of {n_experts}{kind}{}", if normalised { "" } else { " of all" });
    let bytes = (4 * n_rows * (n_experts + 2 * k)) as f64;
    let cost = Cost { flops: (n_rows * n_experts) as f64, bytes };
    work.once(work.case("route", what, Dtype::F32, cost, move |pool| {
        let some = pool.some;
        let logits = pool.activations("logits", [n_rows, n_experts], 1)?;
        let routes = Routes::new(pool.gpu(), n_rows, n_experts, k)?;
        let (read, ids, weights) = (logits.clone(), routes.ids.clone(), routes.weights.clone());
        let launch = move |rec: &mut Recorder, _: usize| {
            ops::route(rec, scoring, &logits, &routes, n_rows);
        };
        let verify = move |gpu: &Gpu| {
            // The smallest weights count, too.
            let mut check = Check::f32(n_experts + 2, 1.0);
            for r in some(n_rows, 4) {
                let want = exact::route(&values(gpu, &read, r)?, k, sigmoid, normalised);
                let got = values(gpu, &ids, r)?.into_iter().zip(values(gpu, &weights, r)?);
                for ((e, weight), (expert, exact)) in got.zip(want) {
                    // Another expert's weight is wrong by more than 1.
                    check.push(weight + 2.0 * (e - expert as f64), exact);
                }
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify))
    }))
}

pub(super) fn group(work: &Workload<'_>) -> Vec<Case> {
    /// Not a power of two.
    const SIZE: usize = 5;
    let Some(shape) = work.model().experts.clone() else { return Vec::new() };
    let (n_rows, n_experts, k) = (work.n_rows, shape.n_experts, shape.n_chosen);
    let cost = Cost { flops: 0.0, bytes: (8 * n_rows * k) as f64 };
    let what = format!("{k} of {n_experts}");
    work.once(work.case("group", what, Dtype::F32, cost, move |pool| {
        let ids = table(n_rows, &shape);
        let routes = Routes::of(pool.gpu(), pool.table("experts", [n_rows, k], &ids)?, n_experts)?;
        let (lists, lists2) = (routes.lists.clone(), routes.lists.clone());
        let n_blocks = n_rows * k / SIZE + n_experts;
        let launch = move |rec: &mut Recorder, _: usize| {
            ops::group(rec, &routes, 0..n_rows, SIZE);
        };
        let verify = move |gpu: &Gpu| {
            let words: Vec<usize> = values(gpu, &lists, 0)?.into_iter().map(|word| word as usize).collect();
            let listed = |block: &[usize]| {
                let pairs = words.get(block[1]..block[1] + block[2]).unwrap_or_default();
                [&block[..1], &block[2..], pairs].concat()
            };
            let got: Vec<usize> =
                words[..3 * n_blocks].chunks(3).filter(|block| block[2] > 0).flat_map(listed).collect();
            let block = |e: usize, pairs: &[usize]| [&[e, pairs.len()], pairs].concat();
            let groups = exact::group(&ids, n_experts);
            let of = |(e, pairs): (usize, &Vec<usize>)| {
                pairs.chunks(SIZE).flat_map(|pairs| block(e, pairs)).collect::<Vec<usize>>()
            };
            let want: Vec<usize> = groups.iter().enumerate().flat_map(of).collect();
            let mut check = Check::absolute(0.5);
            check.push(got.len() as f64, want.len() as f64);
            got.iter().zip(&want).for_each(|(got, want)| check.push(*got as f64, *want as f64));
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &lists2)))
    }))
}

pub(super) fn combine(work: &Workload<'_>) -> Vec<Case> {
    let Some(ExpertsShape { n_experts, n_chosen: k, .. }) = work.model().experts else { return Vec::new() };
    let (n_rows, hidden) = (work.n_rows, work.model().hidden_size);
    let n = (n_rows * hidden) as f64;
    let cost = Cost { flops: 2.0 * n * k as f64, bytes: 4.0 * n * (k + 2) as f64 };
    let what = format!("{k}·{hidden}");
    work.once(work.case("combine", what, Dtype::F32, cost, move |pool| {
        let some = pool.some;
        let mut routes = Routes::new(pool.gpu(), n_rows, n_experts, k)?;
        routes.weights = pool.activations("weights", [n_rows, k], 1)?;
        let y = pool.activations("y", [n_rows * k, hidden], 2)?;
        let fresh = pool.activations("fresh", [n_rows, hidden], 3)?;
        let x = pool.output([n_rows, hidden])?;
        let (weights, y2, fresh2) = (routes.weights.clone(), y.clone(), fresh.clone());
        let (x2, x3) = (x.clone(), x.clone());
        let launch = move |rec: &mut Recorder, _: usize| ops::combine(rec, &routes, &y, &x, n_rows);
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(k + 1, 1.0);
            for r in some(n_rows, 4) {
                let pairs = (r * k..(r + 1) * k).map(|p| values(gpu, &y2, p));
                let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
                let want = exact::combine(&values(gpu, &fresh2, r)?, &values(gpu, &weights, r)?, &pairs);
                check.extend(&values(gpu, &x2, r)?, &want);
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| rec.copy(&fresh, 0, &x3, 0, x3.size_bytes())))
    }))
}

/// The products with experts' weights.
pub(super) fn products(work: &Workload<'_>) -> Vec<Case> {
    let Some(shape) = work.model().experts.clone() else { return Vec::new() };
    let (hidden, inner) = (work.model().hidden_size, shape.intermediate_size);
    vec![
        product(work, "gate_up", &shape, [2 * inner, hidden], false),
        product(work, "down", &shape, [hidden, inner], false),
    ]
}

/// With biases.
pub(super) fn products_switched(work: &Workload<'_>) -> Vec<Case> {
    let Some(shape) = work.model().experts.clone() else { return Vec::new() };
    let shapes = [work.model().hidden_size, shape.intermediate_size];
    vec![product(work, "down", &shape, shapes, true)]
}

/// One product of all experts, whose input is the rows, or for `down` the pairs.
fn product(
    work: &Workload<'_>,
    name: &str,
    shape: &ExpertsShape,
    [n_out, n_in]: [usize; 2],
    has_bias: bool,
) -> Case {
    let (n_rows, dtype, n, of_rows) = (work.n_rows, work.dtype, work.rows(), name != "down");
    let (n_experts, k) = (shape.n_experts, shape.n_chosen);
    let n_pairs = n_rows * k;
    let what = format!("experts {name} {n_experts}·{n_out}×{n_in}{}", if has_bias { " bias" } else { "" });
    let ids = table(n_rows, shape);
    let n_taken = exact::group(&ids, n_experts).iter().filter(|pairs| !pairs.is_empty()).count();
    let n_inputs = if of_rows { n_rows } else { n_pairs };
    let cost = Cost {
        flops: 2.0 * (n_pairs * n_out) as f64 * n_in as f64,
        bytes: (n_taken * n_out * dtype.bytes(n_in) + 4 * (n_inputs * n_in + n_pairs * n_out)) as f64,
    };
    work.case("linear", what, dtype, cost, move |pool| {
        let some = pool.some;
        let n_copies = pool.n_copies((n_experts * n_out * dtype.bytes(n_in)) as u64);
        let weights = (0..n_copies as u32).map(|seed| {
            let tensor = Tensor::experts(pool.gpu(), "experts", [n_experts * n_out, n_in], dtype, n_out)?;
            pool.drawn(tensor, seed, 0.0, (n_in as f32).powf(-0.5))
        });
        let weights = weights.collect::<Result<Vec<_>, GpuError>>()?;
        let x = pool.activations("x", [n_inputs, n_in], 1)?;
        let bias = pool.draw("bias", [1, n_experts * n_out], Dtype::F32, 4, 0.0, 1.0)?;
        let bias = Some(bias).filter(|_| has_bias);
        let y = pool.output([n_pairs, n_out])?;
        let routes = Routes::of(pool.gpu(), pool.table("experts", [n_rows, k], &ids)?, n_experts)?;
        let (w, x2, bias2, ids) = (weights[0].clone(), x.clone(), bias.clone(), ids.clone());
        let (y2, y3) = (y.clone(), y.clone());
        let launch = move |rec: &mut Recorder, i: usize| {
            let input = if of_rows { ExpertInput::Rows(&x) } else { ExpertInput::Pairs(&x) };
            let parts = std::slice::from_ref(&weights[i % weights.len()]);
            let product = ExpertProduct { input, parts, bias: bias.as_ref() };
            ops::expert_linear(rec, product, &routes.routed(), &y, n);
        };
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(n_in + 1, 1.0);
            let b = bias2.as_ref().map(|bias| values(gpu, bias, 0)).transpose()?;
            let outputs = some(n_out, 16);
            for p in some(n_pairs, 5) {
                let first = ids[p] as usize * n_out;
                let own =
                    outputs.iter().map(|o| values(gpu, &w, first + o)).collect::<Result<Vec<_>, _>>()?;
                let b = b.as_ref().map(|b| outputs.iter().map(|o| b[first + o]).collect::<Vec<f64>>());
                let x = values(gpu, &x2, if of_rows { p / k } else { p })?;
                let got = values(gpu, &y2, p)?;
                let got: Vec<f64> = outputs.iter().map(|o| got[*o]).collect();
                check.extend(&got, &exact::linear(&x, &own, b.as_deref()));
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
    })
}
