//! Kernels that no forward pass runs: what fills, quantises and counts, and the probes of the device. They are checked,
//! not measured.

use std::sync::Arc;

use super::super::check::Check;
use super::super::reference as exact;
use super::{Case, Cost, MOST_DECODE, Pool, Prepared, Workload, clear, padded_values, scattered, values};
use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{Caps, Gpu, GpuError, Recorder, SubgroupProbe, Tensor};
use crate::ops;

/// Nobody asks.
const NO_COST: Cost = Cost { flops: 0.0, bytes: 0.0 };

/// The types that values are drawn in, and that are quantised.
const FLOATS: [Dtype; 3] = [Dtype::F32, Dtype::F16, Dtype::BF16];

/// Integers are right or wrong.
fn integers() -> Check {
    Check::absolute(0.5)
}

pub(super) fn fill_normal(work: &Workload<'_>) -> Vec<Case> {
    let (n_rows, n_cols, dtype) = (work.n_rows, work.model().hidden_size, work.dtype);
    if !FLOATS.contains(&dtype) {
        return Vec::new();
    }
    vec![work.case("fill_normal", format!("{n_cols}"), dtype, NO_COST, move |pool| {
        let (some, seed, mean, scale) = (pool.some, 5, -0.5, 2.0);
        let w = Tensor::zeros(pool.gpu(), "w", [n_rows, n_cols], dtype)?;
        // What is not written stays no number in any of the types.
        let n_words = w.size_bytes() as usize / 4;
        let nan = pool.table("no numbers", [1, n_words], &vec![0x7fc0_7fc0; n_words])?;
        let (w2, w3) = (w.clone(), w.clone());
        let launch = move |rec: &mut Recorder, _: usize| ops::fill_normal(rec, &w, seed, mean, scale);
        let verify = move |gpu: &Gpu| {
            let eps = match dtype {
                Dtype::F16 => half::f16::EPSILON.to_f64(),
                Dtype::BF16 => half::bf16::EPSILON.to_f64(),
                _ => f64::from(f32::EPSILON),
            };
            // A unit in the last place is half of what is allowed.
            let mut check = Check::f32(1, 0.5).rounded_to(eps);
            for r in some(n_rows, 4) {
                let got = padded_values(gpu, &w2, r)?;
                let drawn =
                    |c: usize| exact::fill_normal(seed, r as u32, c as u32, mean.into(), scale.into());
                let want: Vec<f64> =
                    (0..got.len()).map(|c| if c < n_cols { drawn(c) } else { 0.0 }).collect();
                check.extend(&got, &want);
            }
            Ok(check)
        };
        let reset = move |rec: &mut Recorder| rec.copy(&nan, 0, &w3, 0, w3.size_bytes());
        Ok(Prepared::new(launch, verify).reset(reset))
    })]
}

/// To a quantised type, from each type that files hold.
pub(super) fn quantize(work: &Workload<'_>) -> Vec<Case> {
    let (n_rows, dtype) = (work.n_rows, work.dtype);
    if !Dtype::QUANTISED.contains(&dtype) {
        return Vec::new();
    }
    // More than a superblock at odd shapes, too.
    let n_cols = work.model().hidden_size + work.model().intermediate_size;
    let case = |from: Dtype| {
        work.case("quantize", format!("{n_cols} from {from}"), dtype, NO_COST, move |pool| {
            let some = pool.some;
            let w = pool.draw("w", [n_rows, n_cols], from, 6, 0.01, 0.1)?;
            let y = Tensor::zeros(pool.gpu(), "y", [n_rows, n_cols], dtype)?;
            let (w2, y2, y3) = (w.clone(), y.clone(), y.clone());
            let launch = move |rec: &mut Recorder, _: usize| ops::quantize(rec, &w, &y, 0, n_rows);
            let verify = move |gpu: &Gpu| {
                let mut check = Check::absolute(1.0);
                for r in some(n_rows, 1) {
                    let w: Vec<f32> = padded_values(gpu, &w2, r)?.into_iter().map(|x| x as f32).collect();
                    let want = exact::quant::round(dtype.name(), &w);
                    let got = padded_values(gpu, &y2, r)?;
                    compare_quants(&mut check, dtype, &w, &got, &want);
                }
                Ok(check)
            };
            Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
        })
    };
    FLOATS.into_iter().map(case).collect()
}

/// Quants near the middle between two may be rounded to either, and if two scales of Q4_K are almost equally good,
/// rounding decides between them. So no value is off by more than the difference that makes, and the row as a whole is as
/// near to `w` as the reference's.
fn compare_quants(check: &mut Check, dtype: Dtype, w: &[f32], got: &[f64], want: &[f32]) {
    /// Quants between the least and the greatest.
    const FEW: f64 = 8.0;
    for (got, want) in got.chunks(BLOCK).zip(want.chunks(BLOCK)) {
        let (low, high) = want.iter().fold((0f32, 0f32), |(low, high), w| (low.min(*w), high.max(*w)));
        let n_steps = if dtype == Dtype::Q8_0 { 127.0 } else { FEW };
        let allowed = 1.1 * f64::from(high - low) / n_steps;
        // A block of zeros is one.
        let unit = if allowed > 0.0 { allowed } else { f64::MIN_POSITIVE };
        for (got, want) in got.iter().zip(want) {
            check.push(got / unit, f64::from(*want) / unit);
        }
    }
    let far = |values: &mut dyn Iterator<Item = f64>| {
        values.zip(w).map(|(value, w)| (value - f64::from(*w)).powi(2)).sum::<f64>()
    };
    let [ours, theirs] = [far(&mut got.iter().copied()), far(&mut want.iter().map(|x| f64::from(*x)))];
    // At most a tenth more.
    check.push((ours / theirs - 1.0).max(0.0) / 0.1, 0.0);
}

/// Each sequence has counts of its own.
pub(super) fn count_prompt(work: &Workload<'_>) -> Vec<Case> {
    let (n_seqs, n_vocab) = (work.n_rows, work.model().vocab_size);
    if n_seqs > MOST_DECODE || !work.is_first_dtype {
        return Vec::new();
    }
    vec![work.case("count_prompt", format!("{n_vocab}"), Dtype::F32, NO_COST, move |pool| {
        let some = pool.some;
        // Some tokens several times, and at the end one that is not in the vocabulary.
        let (n_prompt, n_tokens) = (71, 203);
        let token = move |seq: usize, i: usize| match i {
            202 => n_vocab as u32 + 3,
            _ => scattered(1 + seq + i % 67, n_vocab),
        };
        let ids = |seq: usize| (0..n_tokens).map(move |i| token(seq, i));
        let tokens =
            pool.table("tokens", [n_seqs, n_tokens], &(0..n_seqs).flat_map(ids).collect::<Vec<_>>())?;
        let counts = pool.table("counts", [n_seqs, n_vocab], &vec![77; n_seqs * n_vocab])?;
        let counts2 = counts.clone();
        let launch = move |rec: &mut Recorder, _: usize| {
            for seq in 0..n_seqs {
                ops::count_prompt(rec, &tokens, &counts, seq, [n_prompt, n_tokens]);
            }
        };
        let verify = move |gpu: &Gpu| {
            let mut check = integers();
            for seq in some(n_seqs, 2) {
                let ids: Vec<u32> = (0..n_tokens).map(|i| token(seq, i)).collect();
                let want = exact::count_prompt(&ids, n_prompt, n_vocab);
                let want: Vec<f64> = want.into_iter().map(f64::from).collect();
                check.extend(&values(gpu, &counts2, seq)?, &want);
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify))
    })]
}

pub(super) fn probe_copy(work: &Workload<'_>) -> Vec<Case> {
    let (n_rows, n_cols) = (work.n_rows, work.model().hidden_size);
    work.once(work.case("probe_copy", format!("{n_cols}"), Dtype::F32, NO_COST, move |pool| {
        let some = pool.some;
        let (x, y) = (pool.activations("x", [n_rows, n_cols], 1)?, pool.output([n_rows, n_cols])?);
        let (x2, y2, y3) = (x.clone(), y.clone(), y.clone());
        let launch = move |rec: &mut Recorder, _: usize| ops::probe_copy(rec, &x, &y);
        let verify = move |gpu: &Gpu| {
            // Nothing is rounded.
            let mut check = Check::f32(1, 1.0).rounded_to(f64::EPSILON);
            for r in some(n_rows, 4) {
                check.extend(&values(gpu, &y2, r)?, &values(gpu, &x2, r)?);
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
    }))
}

pub(super) fn probe_fma(work: &Workload<'_>) -> Vec<Case> {
    let (n_rows, n_cols) = (work.n_rows, work.model().hidden_size);
    work.once(work.case("probe_fma", format!("{n_cols}"), Dtype::F32, NO_COST, move |pool| {
        let (some, n_steps, factors) = (pool.some, 16, [0.75f32, 0.5]);
        let (x, y) = (pool.activations("x", [n_rows, n_cols], 1)?, pool.output([n_rows, n_cols])?);
        let (x2, y2, y3) = (x.clone(), y.clone(), y.clone());
        let launch = move |rec: &mut Recorder, _: usize| ops::probe_fma(rec, &x, &y, n_steps, factors);
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(n_steps, 1.0);
            for r in some(n_rows, 4) {
                let x = values(gpu, &x2, r)?;
                let want: Vec<f64> =
                    x.iter().map(|x| exact::probe_fma(*x, n_steps, factors.map(f64::from))).collect();
                check.extend(&values(gpu, &y2, r)?, &want);
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
    }))
}

pub(super) fn probe_subgroups(work: &Workload<'_>) -> Vec<Case> {
    probes(work, "probe_subgroups", false)
}

pub(super) fn probe_coop(work: &Workload<'_>) -> Vec<Case> {
    probes(work, "probe_coop", true)
}

/// The probes of the widths that kernels could run at. Rows do not matter.
fn probes(work: &Workload<'_>, kernel: &'static str, matrices: bool) -> Vec<Case> {
    let sizes = SubgroupProbe::sizes(work.caps).into_iter().filter(|(_, on)| *on == matrices);
    let case = |(size, _): (u32, bool)| {
        let what = format!("workgroups of {size}");
        work.case(kernel, what, Dtype::F32, NO_COST, move |pool: &mut Pool<'_>| probe(pool, size, matrices))
    };
    if work.is_first_dtype && work.n_rows == 1 { sizes.map(case).collect() } else { Vec::new() }
}

/// Where the device's width is certain, every invocation has it. Elsewhere it is in the driver's range, or 0, which the
/// probe takes for uncertain.
fn probe(pool: &Pool<'_>, size: u32, matrices: bool) -> Result<Prepared, GpuError> {
    let tile = pool.gpu().caps().matrix_tile().filter(|_| matrices);
    let probe = Arc::new(SubgroupProbe::new(pool.gpu(), size, tile)?);
    let probe2 = probe.clone();
    let launch = move |rec: &mut Recorder, _: usize| probe.record(rec);
    let verify = move |gpu: &Gpu| {
        let mut check = integers();
        let widths = probe2.widths(gpu)?;
        for width in &widths {
            check.push((*width).into(), expected_width(gpu.caps(), (size, matrices), *width).into());
        }
        for (got, want) in probe2.products(gpu, widths[0])? {
            check.push(got.into(), want.into());
        }
        Ok(check)
    };
    Ok(Prepared::new(launch, verify))
}

fn expected_width(caps: &Caps, (size, matrices): (u32, bool), found: u32) -> u32 {
    let Some(range) = &caps.subgroups else { return 0 };
    let is_possible = found == 0 || (range.min..=range.max).contains(&found);
    range.width(size, matrices).unwrap_or(if is_possible { found } else { range.min })
}
