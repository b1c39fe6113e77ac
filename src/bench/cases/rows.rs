//! Operations on whole rows: embedding, norms, activations.

use super::super::check::Check;
use super::super::reference as exact;
use super::{Case, Cost, Prepared, Workload, clear, scattered, values};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, Recorder};
use crate::ops::{self, Act, Embed, HeadNorm, LayerNorm, Lookup, Pooling, RmsNorm};

const EPS: f32 = 1e-5;
/// Of embedded rows: a power of two, so that it does not round.
const SCALE: f32 = 0.5;

pub(super) fn embed(work: &Workload<'_>) -> Vec<Case> {
    vec![embed_by(work, Lookup::Token)]
}

/// Rows that are added.
pub(super) fn embed_switched(work: &Workload<'_>) -> Vec<Case> {
    [Lookup::AddToken, Lookup::AddPosition, Lookup::AddPositionAfter(2), Lookup::AddRow(1)]
        .map(|lookup| embed_by(work, lookup))
        .into()
}

fn embed_by(work: &Workload<'_>, lookup: Lookup) -> Case {
    let (n_rows, dtype, n) = (work.n_rows, work.dtype, work.rows());
    let (n_table, hidden) = (work.model().vocab_size, work.model().hidden_size);
    let cost = Cost { flops: 0.0, bytes: (n_rows * (dtype.bytes(hidden) + 4 * hidden)) as f64 };
    let adds = lookup != Lookup::Token;
    let what = match lookup {
        Lookup::Token => format!("{n_table}×{hidden}"),
        other => format!("{n_table}×{hidden} {other:?}"),
    };
    work.case("embed", what, dtype, cost, move |pool| {
        let some = pool.some;
        // One table of that size exceeds any cache, and changing tokens reach all of it.
        const PROMPTS: usize = 16;
        let table = pool.weights([n_table, hidden], dtype, 1.0)?.swap_remove(0);
        let places: Vec<[u32; 2]> = (0..n_rows as u32).map(|r| [0, r]).collect();
        let rows = pool.table("rows", [n_rows, 2], places.as_flattened())?;
        let ids = |i| (0..n_rows).map(|r| scattered(1 + r + i * n_rows, n_table)).collect::<Vec<u32>>();
        let prompts = (0..PROMPTS)
            .map(|i| pool.table("tokens", [1, n_rows], &ids(i)))
            .collect::<Result<Vec<_>, _>>()?;
        let fresh = pool.activations("fresh", [n_rows, hidden], 1)?;
        let x = pool.output([n_rows, hidden])?;
        let (table2, x2, x3, ids) = (table.clone(), x.clone(), x.clone(), ids(0));
        let fresh2 = fresh.clone();
        let embed = Embed { table, lookup, scale: SCALE };
        let launch = move |rec: &mut Recorder, i: usize| {
            ops::embed(rec, &embed, &rows, &prompts[i % PROMPTS], &x, n);
        };
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(2, 1.0);
            for r in some(n_rows, 4) {
                let id = match lookup {
                    Lookup::Token | Lookup::AddToken => ids[r] as usize,
                    Lookup::AddPosition => r,
                    Lookup::AddPositionAfter(offset) => r + offset,
                    Lookup::AddRow(row) => row,
                };
                let mut want = exact::embed(&[values(gpu, &table2, id)?], 0, SCALE.into());
                if adds {
                    let before = values(gpu, &fresh2, r)?;
                    want.iter_mut().zip(before).for_each(|(want, before)| *want += before);
                }
                check.extend(&values(gpu, &x2, r)?, &want);
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| rec.copy(&fresh, 0, &x3, 0, x3.size_bytes())))
    })
}

pub(super) fn rms_norm(work: &Workload<'_>) -> Vec<Case> {
    if work.model().has_layer_norm { Vec::new() } else { norm(work, "rms_norm", false, false) }
}

/// Rows of an index, and rows that are added.
pub(super) fn rms_norm_switched(work: &Workload<'_>) -> Vec<Case> {
    [norm(work, "rms_norm", true, false), norm(work, "rms_norm", false, true)].into_iter().flatten().collect()
}

pub(super) fn layer_norm(work: &Workload<'_>) -> Vec<Case> {
    if work.model().has_layer_norm { norm(work, "layer_norm", false, false) } else { Vec::new() }
}

/// Rows of an index.
pub(super) fn layer_norm_switched(work: &Workload<'_>) -> Vec<Case> {
    norm(work, "layer_norm", true, false)
}

fn norm(work: &Workload<'_>, kernel: &'static str, gathers: bool, adds: bool) -> Vec<Case> {
    let (n_rows, hidden) = (work.n_rows, work.model().hidden_size);
    let has_mean = kernel == "layer_norm";
    let per_element = if has_mean { 7.0 } else { 4.0 };
    let cost = Cost { flops: per_element * (n_rows * hidden) as f64, bytes: (8 * n_rows * hidden) as f64 };
    let what = format!("{hidden}{}", if gathers { " gathered" } else { "" });
    let what = format!("{what}{}", if adds { " added" } else { "" });
    work.once(work.case(kernel, what, Dtype::F32, cost, move |pool| {
        let some = pool.some;
        // The other way round.
        let source = move |r: usize| if gathers { n_rows - 1 - r } else { r };
        let index: Vec<u32> = (0..n_rows).map(|r| source(r) as u32).collect();
        let index = pool.table("index", [1, n_rows], &index)?;
        let x = pool.activations("x", [n_rows, hidden], 1)?;
        let w = pool.draw("w", [1, hidden], Dtype::F32, 2, 1.0, 0.1)?;
        let b = pool.draw("b", [1, hidden], Dtype::F32, 3, 0.0, 0.1)?;
        let fresh = pool.activations("fresh", [n_rows, hidden], 4)?;
        let y = pool.output([n_rows, hidden])?;
        let (x2, w2, b2, y2, y3) = (x.clone(), w.clone(), b.clone(), y.clone(), y.clone());
        let fresh2 = fresh.clone();
        let norm = RmsNorm { w: w.clone(), eps: EPS, offset: 0.0 };
        let layer = LayerNorm { w, b, eps: EPS };
        let launch = move |rec: &mut Recorder, _: usize| {
            let index = gathers.then_some(&index);
            if has_mean {
                ops::layer_norm(rec, &x, &layer, index, &y, n_rows);
            } else {
                ops::rms_norm(rec, &x, &norm, index, adds, &y, 0..n_rows);
            }
        };
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(hidden, 1.0);
            let (w, b) = (values(gpu, &w2, 0)?, values(gpu, &b2, 0)?);
            for r in some(n_rows, 4) {
                let x = values(gpu, &x2, source(r))?;
                let mut want = if has_mean {
                    exact::layer_norm(&x, &w, &b, EPS.into())
                } else {
                    exact::rms_norm(&x, &w, EPS.into(), 0.0)
                };
                if adds {
                    let before = values(gpu, &fresh2, r)?;
                    want.iter_mut().zip(before).for_each(|(want, before)| *want += before);
                }
                check.extend(&values(gpu, &y2, r)?, &want);
            }
            Ok(check)
        };
        let reset = move |rec: &mut Recorder| match adds {
            true => rec.copy(&fresh, 0, &y3, 0, y3.size_bytes()),
            false => clear(rec, &y3),
        };
        Ok(Prepared::new(launch, verify).reset(reset))
    }))
}

pub(super) fn head_norm(work: &Workload<'_>) -> Vec<Case> {
    head_norm_by(work, false)
}

/// All heads together.
pub(super) fn head_norm_switched(work: &Workload<'_>) -> Vec<Case> {
    head_norm_by(work, true)
}

fn head_norm_by(work: &Workload<'_>, together: bool) -> Vec<Case> {
    let Some(a) = work.model().attention.first().filter(|_| work.model().has_head_norm) else {
        return Vec::new();
    };
    let (n_rows, n_heads, n_kv_heads, head_dim) = (work.n_rows, a.n_heads, a.n_kv_heads, a.head_dim);
    let n_normed = n_rows * (n_heads + n_kv_heads) * head_dim;
    let cost = Cost { flops: 4.0 * n_normed as f64, bytes: (8 * n_normed) as f64 };
    let [n_q, n_k] = if together { [n_heads * head_dim, n_kv_heads * head_dim] } else { [head_dim; 2] };
    let what =
        format!("{n_heads}+{n_kv_heads} heads of {head_dim}{}", if together { " together" } else { "" });
    work.once(work.case("head_norm", what, Dtype::F32, cost, move |pool| {
        let some = pool.some;
        let n_cols = (n_heads + 2 * n_kv_heads) * head_dim;
        let fresh = pool.activations("qkv", [n_rows, n_cols], 1)?;
        let qkv = pool.output([n_rows, n_cols])?;
        let q_w = pool.draw("q_w", [1, n_q], Dtype::F32, 2, 1.0, 0.1)?;
        let k_w = pool.draw("k_w", [1, n_k], Dtype::F32, 3, 1.0, 0.1)?;
        let (fresh2, qkv2, qkv3) = (fresh.clone(), qkv.clone(), qkv.clone());
        let (q_w2, k_w2) = (q_w.clone(), k_w.clone());
        let norm = HeadNorm { q: q_w, k: k_w, eps: EPS, offset: 0.0 };
        let heads = [n_heads, n_kv_heads, head_dim];
        let launch = move |rec: &mut Recorder, _: usize| ops::head_norm(rec, &norm, heads, &qkv, n_rows);
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(n_q, 1.0);
            let (q_w, k_w) = (values(gpu, &q_w2, 0)?, values(gpu, &k_w2, 0)?);
            for r in some(n_rows, 4) {
                let x = values(gpu, &fresh2, r)?;
                let want = exact::head_norm(&x, &q_w, &k_w, heads, EPS.into(), 0.0);
                check.extend(&values(gpu, &qkv2, r)?, &want);
            }
            Ok(check)
        };
        let reset = move |rec: &mut Recorder| rec.copy(&fresh, 0, &qkv3, 0, fresh.size_bytes());
        Ok(Prepared::new(launch, verify).reset(reset))
    }))
}

/// The reference of an activation of one value.
fn exact_act(act: Act) -> fn(f64) -> f64 {
    match act {
        Act::Silu => exact::silu,
        Act::GeluTanh => exact::gelu_tanh,
        Act::Gelu => exact::gelu,
        Act::Relu => exact::relu,
        Act::Tanh => f64::tanh,
        Act::Clamped => unreachable!("it needs a gate"),
    }
}

/// Every activation, with and without a gate.
pub(super) fn all_acts() -> impl Iterator<Item = (Act, bool)> {
    let all = Act::ALL.into_iter().flat_map(|act| [(act, true), (act, false)]);
    all.filter(|(act, gated)| *gated || *act != Act::Clamped)
}

/// The reference of `act`; if `gated`, of the left half, times the right half.
pub(super) fn activate(act: Act, gated: bool, x: &[f64]) -> Vec<f64> {
    if act == Act::Clamped {
        return exact::clamped_gate(x);
    }
    if gated { exact::gate(exact_act(act), x) } else { x.iter().map(|x| exact_act(act)(*x)).collect() }
}

pub(super) fn gate(work: &Workload<'_>) -> Vec<Case> {
    gate_by(work, work.model().hidden_act, work.model().has_gate)
}

/// Every activation, gated and not.
pub(super) fn gate_switched(work: &Workload<'_>) -> Vec<Case> {
    all_acts().flat_map(|(act, gated)| gate_by(work, act, gated)).collect()
}

fn gate_by(work: &Workload<'_>, act: Act, gated: bool) -> Vec<Case> {
    let (n_rows, n) = (work.n_rows, work.model().intermediate_size);
    let n_x = if gated { 2 * n } else { n };
    // An exponential counts as one.
    let per_element = if gated { 5.0 } else { 10.0 };
    let cost = Cost { flops: per_element * (n_rows * n) as f64, bytes: (4 * n_rows * (n_x + n)) as f64 };
    let what = format!("{act:?} {n}{}", if gated { "" } else { " ungated" }).to_lowercase();
    work.once(work.case("gate", what, Dtype::F32, cost, move |pool| {
        let some = pool.some;
        let x = pool.activations("x", [n_rows, n_x], 1)?;
        let y = pool.output([n_rows, n])?;
        let (x2, y2, y3) = (x.clone(), y.clone(), y.clone());
        let launch = move |rec: &mut Recorder, _: usize| ops::gate(rec, act, &x, &y, 0..n_rows);
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(5, 1.0);
            for r in some(n_rows, 4) {
                check.extend(&values(gpu, &y2, r)?, &activate(act, gated, &values(gpu, &x2, r)?));
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
    }))
}

/// As for sentence embeddings: the mean of the rows of each text.
pub(super) fn pool(work: &Workload<'_>) -> Vec<Case> {
    pool_by(work, Pooling::Mean)
}

/// The other ways.
pub(super) fn pool_switched(work: &Workload<'_>) -> Vec<Case> {
    let others = [Pooling::First, Pooling::Last, Pooling::MeanSqrtLen, Pooling::Max, Pooling::WeightedMean];
    others.into_iter().flat_map(|pooling| pool_by(work, pooling)).collect()
}

fn pool_by(work: &Workload<'_>, pooling: Pooling) -> Vec<Case> {
    /// Rows of a text, but the last.
    const TEXT: usize = 32;
    let (n_rows, hidden) = (work.n_rows, work.model().hidden_size);
    let n_seqs = n_rows.div_ceil(TEXT);
    let cost = Cost { flops: (n_rows * hidden) as f64, bytes: (4 * (n_rows + n_seqs) * hidden) as f64 };
    let what = format!("{} {hidden}", pooling.name());
    work.once(work.case("pool", what, Dtype::F32, cost, move |pool| {
        let some = pool.some;
        let x = pool.activations("x", [n_rows, hidden], 1)?;
        let y = pool.output([n_seqs, hidden])?;
        let spans: Vec<[u32; 2]> =
            (0..n_rows).step_by(TEXT).map(|r| [r as u32, TEXT.min(n_rows - r) as u32]).collect();
        let table = pool.table("spans", [n_seqs, 2], spans.as_flattened())?;
        let (x2, y2, y3) = (x.clone(), y.clone(), y.clone());
        let launch = move |rec: &mut Recorder, _: usize| ops::pool(rec, pooling, &table, &x, &y, 0, n_seqs);
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(TEXT, 1.0);
            for s in some(n_seqs, 4) {
                let [first, n] = spans[s].map(|n| n as usize);
                let rows = (first..first + n).map(|r| values(gpu, &x2, r)).collect::<Result<Vec<_>, _>>()?;
                check.extend(&values(gpu, &y2, s)?, &exact::pool(pooling.name(), &rows));
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
    }))
}
