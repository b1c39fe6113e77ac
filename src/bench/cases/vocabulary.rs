//! Operations over the vocabulary, after the logits.

use bytemuck::Zeroable;

use super::super::check::Check;
use super::super::reference as exact;
use super::{Case, Cost, MOST_DECODE, Prepared, Workload, clear, scattered, values};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, Recorder};
use crate::ops::{self, Draws, SamplingRecord};

/// Tokens that `top_k` finds: the most that OpenAI's API allows for chats.
const BEST: usize = 20;

/// Each sequence has one row with logits, so there are at most as many as decode rows.
fn cases(work: &Workload<'_>, case: impl FnOnce(usize) -> Vec<Case>) -> Vec<Case> {
    if work.n_rows > MOST_DECODE || !work.is_first_dtype { Vec::new() } else { case(work.model().vocab_size) }
}

pub(super) fn softcap(work: &Workload<'_>) -> Vec<Case> {
    softcap_by(work, Some(2.0))
}

/// Only a factor.
pub(super) fn softcap_switched(work: &Workload<'_>) -> Vec<Case> {
    softcap_by(work, None)
}

fn softcap_by(work: &Workload<'_>, cap: Option<f32>) -> Vec<Case> {
    const SCALE: f32 = 1.5;
    let n_rows = work.n_rows;
    cases(work, |n| {
        let cost = Cost { flops: 4.0 * (n_rows * n) as f64, bytes: (8 * n_rows * n) as f64 };
        let what = format!("{n}{}", if cap.is_none() { " without cap" } else { "" });
        vec![work.case("softcap", what, Dtype::F32, cost, move |pool| {
            let some = pool.some;
            let (fresh, y) = (pool.activations("fresh", [n_rows, n], 1)?, pool.output([n_rows, n])?);
            let (fresh2, y2, y3) = (fresh.clone(), y.clone(), y.clone());
            let launch = move |rec: &mut Recorder, _: usize| ops::softcap(rec, &y, SCALE, cap, n_rows);
            let verify = move |gpu: &Gpu| {
                let mut check = Check::f32(4, 4.0);
                for r in some(n_rows, 2) {
                    let capped = |x: &f64| exact::softcap(*x, SCALE.into(), cap.map(f64::from));
                    let want: Vec<f64> = values(gpu, &fresh2, r)?.iter().map(capped).collect();
                    check.extend(&values(gpu, &y2, r)?, &want);
                }
                Ok(check)
            };
            let reset = move |rec: &mut Recorder| rec.copy(&fresh, 0, &y3, 0, y3.size_bytes());
            Ok(Prepared::new(launch, verify).reset(reset))
        })]
    })
}

pub(super) fn softmax(work: &Workload<'_>) -> Vec<Case> {
    softmax_by(work, false, false)
}

/// Logarithms, and what a sampling filter left.
pub(super) fn softmax_switched(work: &Workload<'_>) -> Vec<Case> {
    let others = [(true, false), (false, true), (true, true)];
    others.into_iter().flat_map(|(log, filter)| softmax_by(work, log, filter)).collect()
}

fn softmax_by(work: &Workload<'_>, log: bool, filter: bool) -> Vec<Case> {
    /// A filter's factor, and the least value that it keeps.
    const FILTER: [f32; 2] = [1.5, 0.25];
    let n_rows = work.n_rows;
    cases(work, |n| {
        let cost = Cost { flops: 4.0 * (n_rows * n) as f64, bytes: (8 * n_rows * n) as f64 };
        let what = format!("{n}{}{}", if log { " log" } else { "" }, if filter { " filtered" } else { "" });
        vec![work.case("softmax", what, Dtype::F32, cost, move |pool| {
            let some = pool.some;
            let (x, y) = (pool.activations("x", [n_rows, n], 1)?, pool.output([n_rows, n])?);
            let filters = pool.table("filters", [n_rows, 2], &FILTER.map(f32::to_bits).repeat(n_rows))?;
            let (x2, y2, y3) = (x.clone(), y.clone(), y.clone());
            let launch = move |rec: &mut Recorder, _: usize| {
                ops::softmax(rec, &x, filter.then_some(&filters), log, &y, n_rows);
            };
            let verify = move |gpu: &Gpu| {
                let mut check = Check::f32(n, 4.0);
                for r in some(n_rows, 2) {
                    let z = values(gpu, &x2, r)?;
                    let [scale, least] = if filter { FILTER.map(f64::from) } else { [1.0, f64::MIN] };
                    let kept = |z: &f64| if *z < least { f64::NEG_INFINITY } else { scale * z };
                    let z: Vec<f64> = z.iter().map(kept).collect();
                    if !log {
                        check.extend(&values(gpu, &y2, r)?, &exact::softmax(&z));
                        continue;
                    }
                    // What the filter removed has the most negative finite number.
                    let finite = |y: Vec<f64>| y.into_iter().map(|y| y.max(-100.0)).collect::<Vec<_>>();
                    check.extend(&finite(values(gpu, &y2, r)?), &finite(exact::log_softmax(&z)));
                }
                Ok(check)
            };
            Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
        })]
    })
}

pub(super) fn token_logprob(work: &Workload<'_>) -> Vec<Case> {
    let n_rows = work.n_rows;
    cases(work, |n| {
        let cost = Cost { flops: 3.0 * (n_rows * n) as f64, bytes: (4 * n_rows * n) as f64 };
        vec![work.case("token_logprob", format!("{n}"), Dtype::F32, cost, move |pool| {
            let some = pool.some;
            let z = pool.activations("z", [n_rows, n], 1)?;
            let (index, places) = places(n_rows);
            let index = pool.table("index", [1, n_rows], &index)?;
            let rows = pool.table("rows", [n_rows, 2], &places)?;
            // The token after position 5 of sequence r.
            let next = move |r: usize| scattered(r + 1, n);
            let tokens: Vec<u32> = (0..16 * n_rows).map(|i| next(i / 16)).collect();
            let tokens = pool.table("tokens", [n_rows, 16], &tokens)?;
            let y = pool.output([1, n_rows])?;
            let (z2, y2, y3) = (z.clone(), y.clone(), y.clone());
            let launch = move |rec: &mut Recorder, _: usize| {
                ops::token_logprob(rec, &rows, &index, &tokens, &z, 0..n_rows, &y);
            };
            let verify = move |gpu: &Gpu| {
                let mut check = Check::f32(n, 4.0);
                let got = values(gpu, &y2, 0)?;
                for r in some(n_rows, 2) {
                    check.push(got[r], exact::token_logprob(&values(gpu, &z2, r)?, next(r) as usize));
                }
                Ok(check)
            };
            Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
        })]
    })
}

pub(super) fn top_k(work: &Workload<'_>) -> Vec<Case> {
    let n_rows = work.n_rows;
    cases(work, |n| {
        let k = BEST.min(n);
        let cost = Cost { flops: 0.0, bytes: (4 * n_rows * n) as f64 };
        vec![work.case("top_k", format!("{k} of {n}"), Dtype::F32, cost, move |pool| {
            let some = pool.some;
            let x = pool.activations("x", [n_rows, n], 1)?;
            let chosen = pool.table("chosen", [1, n_rows], &vec![0; n_rows])?;
            let width = 2 * (1 + k);
            let y = pool.table("best", [n_rows, width], &vec![0; n_rows * width])?;
            let (x2, y2, y3) = (x.clone(), y.clone(), y.clone());
            let launch = move |rec: &mut Recorder, _: usize| ops::top_k(rec, &x, &chosen, k, &y, n_rows);
            let verify = move |gpu: &Gpu| {
                // Columns are right or wrong.
                let mut check = Check::f32(1, 1.0);
                for r in some(n_rows, 2) {
                    let columns: Vec<f64> = values(gpu, &y2, r)?.into_iter().step_by(2).skip(1).collect();
                    let want: Vec<f64> =
                        exact::top_k(&values(gpu, &x2, r)?, k).into_iter().map(|c| c as f64).collect();
                    check.extend(&columns, &want);
                }
                Ok(check)
            };
            Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
        })]
    })
}

/// Tables by which row r of the logits is row r of the batch and belongs to sequence r, at position 5.
pub(super) fn places(n_rows: usize) -> (Vec<u32>, Vec<u32>) {
    ((0..n_rows as u32).collect(), (0..n_rows as u32).flat_map(|r| [r, 5]).collect())
}

pub(super) fn penalize(work: &Workload<'_>) -> Vec<Case> {
    let n_rows = work.n_rows;
    cases(work, |n| {
        let cost = Cost { flops: 4.0 * (n_rows * n) as f64, bytes: (12 * n_rows * n) as f64 };
        vec![work.case("penalize", format!("{n}"), Dtype::F32, cost, move |pool| {
            let some = pool.some;
            // Penalties that can be applied many times without overflow.
            let record = SamplingRecord {
                repetition_penalty: 1.0,
                presence_penalty: 0.5,
                frequency_penalty: 0.25,
                counts: 1,
                ..SamplingRecord::zeroed()
            };
            let (index, places) = places(n_rows);
            let index = pool.table("index", [1, n_rows], &index)?;
            let rows = pool.table("rows", [n_rows, 2], &places)?;
            let records = vec![record; n_rows];
            let sampling = pool.table("sampling", [n_rows, 12], bytemuck::cast_slice(&records))?;
            let bias = pool.table("bias", [n_rows, 2], &vec![0; 2 * n_rows])?;
            // One token in four was seen, up to three times.
            let seen = |i: usize| scattered(i + 1, 13).saturating_sub(9);
            let counts: Vec<u32> = (0..n_rows * n).map(seen).collect();
            let counts = pool.table("counts", [n_rows, n], &counts)?;
            let (fresh, z) = (pool.activations("fresh", [n_rows, n], 1)?, pool.output([n_rows, n])?);
            let (fresh2, z2, z3) = (fresh.clone(), z.clone(), z.clone());
            let launch = move |rec: &mut Recorder, _: usize| {
                let (rows, index) = (&rows, &index);
                let draws = Draws { rows, index, sampling: &sampling, counts: &counts };
                ops::penalize(rec, draws, &bias, &z, n_rows);
            };
            let verify = move |gpu: &Gpu| {
                let mut check = Check::f32(4, 1.0);
                let s = exact::Sampling {
                    presence_penalty: 0.5,
                    frequency_penalty: 0.25,
                    ..exact::Sampling::GREEDY
                };
                for r in some(n_rows, 2) {
                    let counts: Vec<u32> = (r * n..(r + 1) * n).map(seen).collect();
                    let want = exact::penalize(&values(gpu, &fresh2, r)?, s, &vec![false; n], &counts, &[]);
                    check.extend(&values(gpu, &z2, r)?, &want);
                }
                Ok(check)
            };
            let reset = move |rec: &mut Recorder| rec.copy(&fresh, 0, &z3, 0, fresh.size_bytes());
            Ok(Prepared::new(launch, verify).reset(reset))
        })]
    })
}

pub(super) fn sample(work: &Workload<'_>) -> Vec<Case> {
    cases(work, |n| {
        let filtered =
            exact::Sampling { seed: 7, temperature: 0.8, top_k: 40, top_p: 0.95, ..exact::Sampling::GREEDY };
        let plain = exact::Sampling { seed: 7, temperature: 1.0, ..exact::Sampling::GREEDY };
        let kinds =
            [("greedy", exact::Sampling::GREEDY), ("plain", plain), ("top-k 40, top-p 0.95", filtered)];
        kinds.into_iter().map(|(name, s)| draw(work, n, name, s)).collect()
    })
}

fn draw(work: &Workload<'_>, n: usize, name: &str, s: exact::Sampling) -> Case {
    let n_rows = work.n_rows;
    // Counts one read of the logits; filters read them more often.
    let cost = Cost { flops: (n_rows * n) as f64, bytes: (4 * n_rows * n) as f64 };
    work.case("sample", format!("{n} {name}"), Dtype::F32, cost, move |pool| {
        let some = pool.some;
        let record = SamplingRecord {
            seed_low: s.seed as u32,
            temperature: s.temperature as f32,
            top_k: s.top_k as u32,
            top_p: s.top_p as f32,
            repetition_penalty: 1.0,
            ..SamplingRecord::zeroed()
        };
        let (index, places) = places(n_rows);
        let index = pool.table("index", [1, n_rows], &index)?;
        let fresh = pool.table("fresh rows", [n_rows, 2], &places)?;
        let rows = pool.table("rows", [n_rows, 2], &places)?;
        let sampling = pool.table("sampling", [n_rows, 12], bytemuck::cast_slice(&vec![record; n_rows]))?;
        let tokens = pool.table("tokens", [n_rows, 16], &vec![0; 16 * n_rows])?;
        let counts = pool.table("counts", [n_rows, n], &vec![0; n_rows * n])?;
        let chosen = pool.table("chosen", [1, n_rows], &vec![0; n_rows])?;
        let filters = pool.table("filters", [n_rows, 2], &vec![0; 2 * n_rows])?;
        let z = pool.draw("z", [n_rows, n], Dtype::F32, 1, 0.0, 3.0)?;
        let (rows2, z2, chosen2) = (rows.clone(), z.clone(), chosen.clone());
        let launch = move |rec: &mut Recorder, _: usize| {
            let draws = Draws { rows: &rows, index: &index, sampling: &sampling, counts: &counts };
            ops::sample(rec, draws, &z, &tokens, &chosen, &filters, n_rows);
        };
        let verify = move |gpu: &Gpu| {
            // Tokens are right or wrong, except if the first two are almost equal.
            let mut check = Check::f32(1, 1.0);
            let got = values(gpu, &chosen2, 0)?;
            for r in some(n_rows, 4) {
                let (token, lead) = exact::sample(&values(gpu, &z2, r)?, s, 5);
                let got = if lead > 1e-3 { got[r] } else { token as f64 };
                // Plus one, so that token 0 is not zero.
                check.push(got + 1.0, token as f64 + 1.0);
            }
            Ok(check)
        };
        let reset = move |rec: &mut Recorder| rec.copy(&fresh, 0, &rows2, 0, fresh.size_bytes());
        Ok(Prepared::new(launch, verify).reset(reset))
    })
}
