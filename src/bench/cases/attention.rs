//! Operations on the KV cache: append and attention.

use super::super::check::Check;
use super::super::reference as exact;
use super::{Case, Cost, Pool, Prepared, Workload, clear, scattered, values};
use crate::dtype::{BLOCK, Dtype};
use crate::engine::PAGE_SIZE;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{self, Attention, AttentionPlan, KvLayer, Places, RopeAppend, Rotary, Temperature};

/// Positions of the sequences with decode rows: a short and a long conversation.
const CONTEXTS: [usize; 2] = [512, 4096];

/// The type of cache that goes with a type of weights.
pub(super) fn cache_dtype(work: &Workload<'_>) -> Option<Dtype> {
    let fits_blocks = work.model().attention.iter().all(|a| a.head_dim.is_multiple_of(BLOCK));
    match work.dtype {
        Dtype::F32 | Dtype::F16 => Some(work.dtype),
        Dtype::Q8_0 if fits_blocks => Some(work.dtype),
        // Measured at least once, whatever the weights are.
        _ => work.is_first_dtype.then_some(Dtype::F16),
    }
}

/// Block tables of `n_seqs` sequences of `n_positions`, pages of all of them interleaved.
fn pages(pool: &Pool<'_>, n_seqs: usize, n_positions: usize) -> Result<Tensor, GpuError> {
    let per_seq = n_positions.div_ceil(PAGE_SIZE);
    let page = |i: usize| (i % per_seq * n_seqs + i / per_seq) as u32;
    let table: Vec<u32> = (0..n_seqs * per_seq).map(page).collect();
    pool.table("pages", [n_seqs, per_seq], &table)
}

/// A cache of `n_pages` pages of `width` approximately normal keys and values.
pub(super) fn cache(
    pool: &Pool<'_>,
    [n_pages, width]: [usize; 2],
    dtype: Dtype,
    seed: u32,
) -> Result<KvLayer, GpuError> {
    let cache = KvLayer::new(pool.gpu(), 0, n_pages, width, dtype)?;
    if dtype != Dtype::Q8_0 {
        for (i, tensor) in [&cache.k, &cache.v].into_iter().enumerate() {
            pool.fill(tensor, 2 * seed + i as u32, 0.0, 1.0)?;
        }
        return Ok(cache);
    }
    for (i, tensor) in [&cache.k, &cache.v].into_iter().enumerate() {
        // Four scales, then four bytes a word.
        let word = |w: usize| match w % 36 {
            0..4 => (1.0f32 / 64.0).to_bits(),
            _ => scattered(1 + w + i + 2 * seed as usize, 0xffff_fffb),
        };
        for row in 0..n_pages {
            let words: Vec<u32> = (0..tensor.n_cols()).map(|w| word(row * tensor.n_cols() + w)).collect();
            tensor.write(pool.gpu(), row, bytemuck::cast_slice(&words));
        }
    }
    Ok(cache)
}

/// The keys or values of a page.
pub(super) fn page(gpu: &Gpu, dtype: Dtype, tensor: &Tensor, page: usize) -> Result<Vec<f64>, GpuError> {
    if dtype != Dtype::Q8_0 {
        return values(gpu, tensor, page);
    }
    let words = gpu.read_row(tensor, page)?;
    let blocks = |blocks: &[u32]| {
        let d = |i: usize| f64::from(f32::from_bits(blocks[i / BLOCK]));
        let quants: &[i8] = bytemuck::cast_slice(&blocks[4..]);
        quants.iter().enumerate().map(|(i, q)| d(i) * f64::from(*q)).collect::<Vec<f64>>()
    };
    Ok(words[..tensor.n_cols()].chunks(36).flat_map(blocks).collect())
}

/// (sequence, position) of each row: one of each sequence at its end, or all of one sequence.
fn places(n_rows: usize, decodes: bool, last: usize) -> Vec<[u32; 2]> {
    (0..n_rows as u32).map(|r| if decodes { [r, last as u32] } else { [0, r] }).collect()
}

/// Which dimensions of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pairs {
    None,
    Halves,
    Neighbours,
    /// As `Halves`, with a factor on queries.
    Tempered,
}

/// It changes every third position.
const TEMPERATURE: Temperature = Temperature { beta: 0.5, original: 3 };

impl Pairs {
    /// The rotation of heads of `head_dim` at positions up to `n_positions`.
    pub(super) fn rotary(
        self,
        pool: &Pool<'_>,
        head_dim: usize,
        n_positions: usize,
    ) -> Result<Option<Rotary>, GpuError> {
        let bits = |f: f64| (f as f32).to_bits();
        let angles = (0..n_positions).flat_map(|pos| angles(pos, head_dim));
        let cos_sin: Vec<u32> = angles.flat_map(|angle| [bits(angle.cos()), bits(angle.sin())]).collect();
        let cos_sin = pool.table("cos_sin", [n_positions, head_dim], &cos_sin)?;
        let interleaved = self == Pairs::Neighbours;
        let temperature = (self == Pairs::Tempered).then_some(TEMPERATURE);
        let rotary = Rotary { cos_sin, n_rot: head_dim, interleaved, temperature };
        Ok(Some(rotary).filter(|_| self != Pairs::None))
    }

    /// The reference's rotation of all heads of a row.
    pub(super) fn turn(self, row: &[f64], head_dim: usize, pos: usize) -> Vec<f64> {
        let angles = if self == Pairs::None { Vec::new() } else { angles(pos, head_dim) };
        row.chunks(head_dim).flat_map(|head| exact::rope(head, &angles, self == Pairs::Neighbours)).collect()
    }

    /// The reference's factor on queries.
    pub(super) fn temperature(self, pos: usize) -> f64 {
        let Temperature { beta, original } = TEMPERATURE;
        if self == Pairs::Tempered { exact::temperature(pos, beta.into(), original as usize) } else { 1.0 }
    }
}

/// The angle of each pair of a head at a position.
fn angles(pos: usize, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| pos as f64 * 1e4f64.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

pub(super) fn rope_append(work: &Workload<'_>) -> Vec<Case> {
    rope_append_by(work, Pairs::Halves)
}

/// Other pairs, and none.
pub(super) fn rope_append_switched(work: &Workload<'_>) -> Vec<Case> {
    [Pairs::None, Pairs::Neighbours, Pairs::Tempered]
        .into_iter()
        .flat_map(|pairs| rope_append_by(work, pairs))
        .collect()
}

fn rope_append_by(work: &Workload<'_>, pairs: Pairs) -> Vec<Case> {
    let (Some(a), Some(dtype)) = (work.model().attention.first(), cache_dtype(work)) else {
        return Vec::new();
    };
    let (n_rows, n_heads, n_kv_heads, head_dim) = (work.n_rows, a.n_heads, a.n_kv_heads, a.head_dim);
    let decodes = work.rows().n_decode > 0;
    let n_cols = (n_heads + 2 * n_kv_heads) * head_dim;
    let n_turned = n_rows * (n_heads + n_kv_heads) * head_dim;
    let cost = Cost {
        flops: 3.0 * n_turned as f64,
        bytes: (n_rows
            * (4 * n_cols + 4 * n_heads * head_dim + KvLayer::bytes(dtype, 2 * n_kv_heads * head_dim)))
            as f64,
    };
    let what = format!("{n_heads}+{n_kv_heads} heads of {head_dim}");
    let what = if pairs == Pairs::Halves { what } else { format!("{what} {pairs:?}") };
    vec![work.case("rope_append", what, dtype, cost, move |pool| {
        let some = pool.some;
        let (n_seqs, n_positions) = if decodes { (n_rows, PAGE_SIZE) } else { (1, n_rows) };
        let places = places(n_rows, decodes, PAGE_SIZE - 1);
        let rows = pool.table("rows", [n_rows, 2], places.as_flattened())?;
        let pages = pages(pool, n_seqs, n_positions)?;
        let qkv = pool.activations("qkv", [n_rows, n_cols], 1)?;
        let rotary = pairs.rotary(pool, head_dim, n_positions)?;
        let q = pool.output([n_rows, n_heads * head_dim])?;
        let n_pages = n_seqs * n_positions.div_ceil(PAGE_SIZE);
        let cache = KvLayer::new(pool.gpu(), 0, n_pages, n_kv_heads * PAGE_SIZE * head_dim, dtype)?;
        let (qkv2, q2, q3, k2) = (qkv.clone(), q.clone(), q.clone(), cache.k.clone());
        let launch = move |rec: &mut Recorder, _: usize| {
            let heads = [n_heads, n_kv_heads, head_dim];
            let places = Places { rows: &rows, pages: &pages, page_size: PAGE_SIZE };
            let to = RopeAppend { rotary: rotary.as_ref(), heads, places, q: &q, cache: &cache };
            ops::rope_append(rec, &qkv, to, 0..n_rows);
        };
        let verify = move |gpu: &Gpu| {
            let eps = match dtype {
                Dtype::F16 => half::f16::EPSILON.to_f64(),
                // Half a step of 127.
                Dtype::Q8_0 => 0.5 / 127.0,
                _ => f32::EPSILON.into(),
            };
            let mut check = Check::f32(3, 1.0).rounded_to(eps);
            for r in some(n_rows, 4) {
                let [seq, pos] = places[r].map(|n| n as usize);
                let turned = pairs.turn(&values(gpu, &qkv2, r)?, head_dim, pos);
                let n_q = n_heads * head_dim;
                let factor = pairs.temperature(pos);
                let want_q: Vec<f64> = turned[..n_q].iter().map(|q| q * factor).collect();
                check.extend(&values(gpu, &q2, r)?, &want_q);
                let page = page(gpu, dtype, &k2, pos / PAGE_SIZE * n_seqs + seq)?;
                for (h, want) in turned[n_q..].chunks(head_dim).take(n_kv_heads).enumerate() {
                    check.extend(&page[(h * PAGE_SIZE + pos % PAGE_SIZE) * head_dim..][..head_dim], want);
                }
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &q3)))
    })]
}

pub(super) fn attention(work: &Workload<'_>) -> Vec<Case> {
    let (Some(a), Some(dtype)) = (work.model().attention.first(), cache_dtype(work)) else {
        return Vec::new();
    };
    if !a.fits(work.caps) {
        return Vec::new();
    }
    let decodes = work.rows().n_decode > 0;
    let mut cases = Vec::new();
    if let Some(audio) = &work.model().audio {
        // Rows of the decoder to a clip, or of the encoder among themselves: the shapes are the same.
        cases.push(attend(work, audio.cross_attention[0], audio.n_positions, false, dtype));
    }
    let position_bytes = KvLayer::bytes(dtype, 2 * a.n_kv_heads * a.head_dim);
    if !decodes {
        cases.push(attend(work, *a, work.n_rows, false, dtype));
        return cases;
    }
    // A context beyond the model's, or too large for all rows together, is cut.
    let most = (work.rotate_bytes as usize / position_bytes / work.n_rows).max(PAGE_SIZE);
    let mut contexts: Vec<usize> = CONTEXTS
        .iter()
        .map(|n| (*n).min(work.model().max_seq_len).min(most) / PAGE_SIZE * PAGE_SIZE)
        .collect();
    contexts.retain(|n| *n > 0);
    contexts.dedup();
    cases.extend(contexts.into_iter().map(|context| attend(work, *a, context, false, dtype)));
    cases
}

/// Sinks and a cap, over more keys than one split has anywhere.
pub(super) fn attention_switched(work: &Workload<'_>) -> Vec<Case> {
    let (Some(a), Some(dtype)) = (work.model().attention.first(), cache_dtype(work)) else {
        return Vec::new();
    };
    if !a.fits(work.caps) || !a.causal {
        return Vec::new();
    }
    let context = if work.rows().n_decode > 0 { work.model().max_seq_len.min(600) } else { work.n_rows };
    let capped = Attention { softcap: Some(2.5), ..*a };
    vec![attend(work, capped, context, true, dtype)]
}

/// Attention of a model as its steps run it: decode rows at the end of sequences of `context` positions, or the first
/// `context` rows of a prompt.
pub(in super::super) fn of_step(work: &Workload<'_>, shape: Attention, context: usize, dtype: Dtype) -> Case {
    let case = attend(work, shape, context, false, dtype);
    match shape.window {
        None => case,
        Some(window) => Case { shape: format!("{}, {window} seen", case.shape), ..case },
    }
}

/// Rows at the end of sequences of `context` positions, or the prompt of one; rows that see all `context` keys if they
/// see both sides.
fn attend(work: &Workload<'_>, shape: Attention, context: usize, has_sinks: bool, dtype: Dtype) -> Case {
    let (n_rows, n) = (work.n_rows, work.rows());
    let decodes = n.n_decode > 0;
    let (n_q, n_kv) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
    let n_seen = move |pos: usize| match shape.causal {
        true => (pos + 1).min(shape.window.unwrap_or(pos + 1)),
        false => context,
    };
    let (seen, kept) = if decodes {
        let n = n_rows * n_seen(context - 1);
        (n as f64, n as f64)
    } else {
        ((0..n_rows).map(n_seen).sum::<usize>() as f64, context as f64)
    };
    let cost = Cost {
        flops: 4.0 * n_q as f64 * seen,
        bytes: kept * KvLayer::bytes(dtype, 2 * n_kv) as f64 + (8 * n_rows * n_q) as f64,
    };
    let heads = format!("{}/{} heads of {}", shape.n_heads, shape.n_kv_heads, shape.head_dim);
    let what = match (decodes, shape.causal) {
        (true, true) => format!("{heads} at {context}"),
        (false, true) => format!("{heads}, prompt"),
        (_, false) => format!("{heads} over {context}"),
    };
    let cap = if shape.softcap.is_some() { " capped" } else { "" };
    let what = format!("{what}{cap}{}", if has_sinks { " with sinks" } else { "" });
    work.case("attention", what, dtype, cost, move |pool| {
        let some = pool.some;
        let n_seqs = if decodes { n_rows } else { 1 };
        let places = places(n_rows, decodes, context - 1);
        let block_rows = shape.block_rows(pool.gpu().caps());
        let blocks: Vec<[u32; 2]> = if decodes {
            (0..n_rows as u32).map(|r| [r, 1]).collect()
        } else {
            let block = |first: usize| [first as u32, block_rows.min(n_rows - first) as u32];
            (0..n_rows).step_by(block_rows).map(block).collect()
        };
        let rows = pool.table("rows", [n_rows, 2], places.as_flattened())?;
        let n_blocks = blocks.len();
        let blocks = pool.table("blocks", [n_blocks, 2], blocks.as_flattened())?;
        let pages = pages(pool, n_seqs, context)?;
        let ends = pool.table("ends", [1, n_seqs], &vec![context as u32; n_seqs])?;
        let n_pages = n_seqs * context.div_ceil(PAGE_SIZE);
        let width = n_kv * PAGE_SIZE;
        let n_copies = pool.n_copies((2 * n_pages * KvLayer::bytes(dtype, width)) as u64);
        let caches = (0..n_copies as u32)
            .map(|seed| cache(pool, [n_pages, width], dtype, seed))
            .collect::<Result<Vec<_>, _>>()?;
        let partial = pool.output(shape.partial_shape(pool.gpu().caps(), n.n_decode.max(1), context))?;
        let q = pool.activations("q", [n_rows, n_q], 5)?;
        let o = pool.output([n_rows, n_q])?;
        let sinks = match has_sinks {
            true => Some(pool.draw("sinks", [1, shape.n_heads], Dtype::F32, 7, 0.0, 2.0)?),
            false => None,
        };
        let sinks2 = sinks.clone();
        let (cache2, q2, o2, o3) = (caches[0].clone(), q.clone(), o.clone(), o.clone());
        let launch = move |rec: &mut Recorder, i: usize| {
            let plan = AttentionPlan {
                rows: &rows,
                blocks: &blocks,
                pages: &pages,
                page_size: PAGE_SIZE,
                ends: (!shape.causal).then_some(&ends),
                n,
                n_prompt_blocks: n_blocks - n.n_decode,
                longest: if decodes { context } else { 0 },
                partial: &partial,
                max_seq_len: context,
            };
            shape.launch(rec, &plan, &q, &caches[i % caches.len()], sinks.as_ref(), &o);
        };
        let verify = move |gpu: &Gpu| {
            // As for other sums, times the size of a score, whose error is relative to a weight.
            let mut check = Check::f32(shape.head_dim, 16.0);
            let (group, d) = (shape.n_heads / shape.n_kv_heads, shape.head_dim);
            let one = exact::Attention {
                n_heads: 1,
                n_kv_heads: 1,
                scale: shape.scale.into(),
                window: shape.window,
                softcap: shape.softcap.map(f64::from),
            };
            let sinks = sinks2.as_ref().map(|sinks| values(gpu, sinks, 0)).transpose()?;
            for r in some(n_rows, 2) {
                let [seq, pos] = places[r].map(|n| n as usize);
                let (q, o) = (values(gpu, &q2, r)?, values(gpu, &o2, r)?);
                let page = |tensor: &Tensor, i: usize| page(gpu, dtype, tensor, i * n_seqs + seq);
                let last = if shape.causal { pos } else { context - 1 };
                let all = |cache: &Tensor| {
                    (0..=last / PAGE_SIZE).map(|i| page(cache, i)).collect::<Result<Vec<_>, _>>()
                };
                let (k, v) = (all(&cache2.k)?, all(&cache2.v)?);
                for h in some(shape.n_heads, 3) {
                    let of_head = |pages: &[Vec<f64>]| -> Vec<Vec<f64>> {
                        let at = |p: usize| (h / group * PAGE_SIZE + p % PAGE_SIZE) * d;
                        (0..=last).map(|p| pages[p / PAGE_SIZE][at(p)..][..d].to_vec()).collect()
                    };
                    let (q, k, v) = (&q[h * d..][..d], of_head(&k), of_head(&v));
                    let want = exact::attention(one, q, &k, &v, sinks.as_ref().map(|sinks| &sinks[h..=h]));
                    check.extend(&o[h * d..][..d], &want);
                }
            }
            Ok(check)
        };
        Ok(Prepared::new(launch, verify).reset(move |rec| clear(rec, &o3)))
    })
}
