//! Operations of speech models.

use super::super::check::Check;
use super::super::reference as exact;
use super::attention::{cache, cache_dtype, page};
use super::{Case, Cost, MOST_DECODE, Prepared, Workload, clear, values};
use crate::dtype::Dtype;
use crate::engine::PAGE_SIZE;
use crate::gpu::{Gpu, Recorder};
use crate::ops::{self, AttentionPlan, HeadWeights, KvLayer, Rows, SpeechRecord};

/// The input of the encoder's second convolution for a clip, whatever the number of rows: listed with prompts.
pub(super) fn unfold(work: &Workload<'_>) -> Vec<Case> {
    let Some(audio) = work.model().audio.as_ref().filter(|_| work.n_rows > MOST_DECODE) else {
        return Vec::new();
    };
    let (n_in, hidden, stride) = (audio.n_frames, work.model().hidden_size, 2);
    let n_rows = n_in.div_ceil(stride);
    let cost = Cost { flops: 0.0, bytes: (4 * (n_in + 3 * n_rows) * hidden) as f64 };
    work.once(work.case("unfold", format!("{n_in}×{hidden} by {stride}"), Dtype::F32, cost, move |pool| {
        let some = pool.some;
        let (x, y) = (pool.activations("x", [n_in, hidden], 1)?, pool.output([n_rows, 3 * hidden])?);
        let (x2, y2, y3) = (x.clone(), y.clone(), y.clone());
        let launch = move |rec: &mut Recorder, _: usize| ops::unfold(rec, &x, 0, n_in, stride, &y);
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(1, 1.0);
            for t in some(n_rows, 4) {
                // The rows of its window, or zeros before the first row.
                let rows = (0..3).map(|k| (stride * t + k).checked_sub(1).filter(|row| *row < n_in));
                let row = |row: Option<usize>| match row {
                    Some(row) => values(gpu, &x2, row),
                    None => Ok(vec![0.0; hidden]),
                };
                let rows = rows.map(row).collect::<Result<Vec<_>, _>>()?;
                // As if in the middle of three rows.
                check.extend(&values(gpu, &y2, t)?, &exact::unfold(&rows, 1, 1));
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &y3)))
    }))
}

/// One head's weights over a clip.
pub(super) fn attention_weights(work: &Workload<'_>) -> Vec<Case> {
    let Some(audio) = work.model().audio.as_ref().filter(|_| work.n_rows > MOST_DECODE) else {
        return Vec::new();
    };
    let (shape, n_keys, n_rows) = (audio.cross_attention[0], audio.n_positions, work.n_rows);
    let (d, width) = (shape.head_dim, shape.n_kv_heads * PAGE_SIZE * shape.head_dim);
    let Some(dtype) = cache_dtype(work) else { return Vec::new() };
    let cost = Cost {
        flops: (n_rows * n_keys * (2 * d + 4)) as f64,
        bytes: (n_keys * KvLayer::bytes(dtype, d) + 4 * n_rows * (d + n_keys)) as f64,
    };
    vec![work.case("attention_weights", format!("{d} over {n_keys}"), dtype, cost, move |pool| {
        let some = pool.some;
        let n_pages = n_keys.div_ceil(PAGE_SIZE);
        let cache = cache(pool, [n_pages, width], dtype, 3)?;
        let places: Vec<u32> = (0..n_rows as u32).flat_map(|r| [0, r]).collect();
        let rows = pool.table("rows", [n_rows, 2], &places)?;
        let pages = pool.table("pages", [1, n_pages], &(0..n_pages as u32).collect::<Vec<_>>())?;
        let ends = pool.table("ends", [1, 1], &[n_keys as u32])?;
        let q = pool.activations("q", [n_rows, shape.n_heads * d], 5)?;
        let p = pool.output([n_rows, n_keys])?;
        let (k2, q2, p2, p3) = (cache.k.clone(), q.clone(), p.clone(), p.clone());
        let launch = move |rec: &mut Recorder, _: usize| {
            let plan = AttentionPlan {
                rows: &rows,
                blocks: &rows,
                pages: &pages,
                page_size: PAGE_SIZE,
                ends: Some(&ends),
                n: Rows { n_decode: 0, n_prompt: n_rows },
                n_prompt_blocks: 0,
                longest: n_keys,
                partial: &rows,
                max_seq_len: n_keys,
            };
            let to = HeadWeights { head: 0, p: &p, first: 0 };
            ops::attention_weights(rec, &shape, &plan, &q, &cache, to);
        };
        let verify = move |gpu: &Gpu| {
            // As for other sums, times the size of a score, whose error is relative to a weight.
            let mut check = Check::f32(d, 16.0);
            let pages = (0..n_pages).map(|i| page(gpu, dtype, &k2, i)).collect::<Result<Vec<_>, _>>()?;
            let keys: Vec<Vec<f64>> =
                (0..n_keys).map(|j| pages[j / PAGE_SIZE][j % PAGE_SIZE * d..][..d].to_vec()).collect();
            for r in some(n_rows, 2) {
                let want = exact::attention_weights(shape.scale.into(), &values(gpu, &q2, r)?[..d], &keys);
                check.extend(&values(gpu, &p2, r)?, &want);
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &p3)))
    })]
}

/// The rules of a transcript that is in the middle of a segment.
pub(super) fn speech_rules(work: &Workload<'_>) -> Vec<Case> {
    let (n_rows, n) = (work.n_rows, work.model().vocab_size);
    if work.model().audio.is_none() || n_rows > MOST_DECODE {
        return Vec::new();
    }
    let cost = Cost { flops: 0.0, bytes: (8 * n_rows * n) as f64 };
    // 30 s of timestamps are the end of the vocabulary.
    let first = n - 1501.min(n / 2);
    let rules = exact::SpeechRules {
        end: first - 107.min(first),
        suppress_first: Vec::new(),
        timestamps: Some(exact::TimestampRules { first, no_timestamps: first - 1, max_initial: None }),
    };
    work.once(work.case("speech_rules", format!("{n}"), Dtype::F32, cost, move |pool| {
        let some = pool.some;
        let record = SpeechRecord {
            on: 1,
            prompt_len: 4,
            end: rules.end as u32,
            timestamps: 1,
            first: first as u32,
            no_timestamps: first as u32 - 1,
            max_initial: u32::MAX,
            pad: 0,
            suppress_first: [u32::MAX; 4],
        };
        let generated = [first + 7, 11];
        let mut sequence = vec![0; 4];
        sequence.extend(generated.map(|token| token as u32));
        let (index, places) = super::vocabulary::places(n_rows);
        let index = pool.table("index", [1, n_rows], &index)?;
        let rows = pool.table("rows", [n_rows, 2], &places)?;
        let records = pool.table("rules", [n_rows, 12], bytemuck::cast_slice(&vec![record; n_rows]))?;
        let tokens = pool.table("tokens", [n_rows, 6], &sequence.repeat(n_rows))?;
        let (fresh, z) = (pool.activations("fresh", [n_rows, n], 1)?, pool.output([n_rows, n])?);
        let (fresh2, z2, z3, rules) = (fresh.clone(), z.clone(), z.clone(), rules.clone());
        let launch = move |rec: &mut Recorder, _: usize| {
            ops::speech_rules(rec, &rows, &index, &records, &tokens, &z, n_rows);
        };
        let verify = move |gpu: &Gpu| {
            let mut check = Check::f32(1, 1.0);
            let finite = |values: Vec<f64>| values.into_iter().map(|v| v.max(-10.0)).collect::<Vec<_>>();
            for r in some(n_rows, 2) {
                let want = exact::speech_rules(&values(gpu, &fresh2, r)?, &generated, &rules);
                check.extend(&finite(values(gpu, &z2, r)?), &finite(want));
            }
            Ok(check)
        };
        let reset = move |rec: &mut Recorder| rec.copy(&fresh, 0, &z3, 0, fresh.size_bytes());
        Ok(Prepared::new(launch, verify).reset(reset))
    }))
}
