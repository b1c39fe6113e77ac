//! Trials of attention.

use super::super::attention::ATTENTION_ROW;
use super::super::{
    Attention, AttentionPlan, HeadWeights, KV_F16, KV_F16_64, KV_F16_WIDE, KV_F32, KV_F32_64, KvLayer, Rows,
    attention_weights,
};
use super::{Launch, Setup, Tolerance, is_set};
use crate::dtype::{BLOCK, Dtype};
use crate::gpu::{GpuError, Part, Tensor, Variant};

const PAGE_SIZE: usize = 16;
const N_KV_HEADS: usize = 2;

/// The shape of a variant's attention.
fn shape(variant: &Variant) -> Attention {
    let value = |name| variant.value(name).expect("every variant of attention sets it") as usize;
    let head_dim = 4 * value("N_D4");
    Attention {
        n_heads: N_KV_HEADS * value("GROUP"),
        n_kv_heads: N_KV_HEADS,
        head_dim,
        scale: (head_dim as f32).powf(-0.5),
        causal: is_set(variant, "CAUSAL"),
        window: None,
        softcap: None,
    }
}

/// The pages, keys and values of `n_seqs` sequences of up to `n_keys` positions, and queries of `rows`.
struct Inputs {
    rows: Tensor,
    pages: Tensor,
    ends: Tensor,
    q: Tensor,
    cache: KvLayer,
}

impl Inputs {
    fn new(
        setup: &mut Setup<'_>,
        variant: &Variant,
        shape: &Attention,
        places: &[[u32; 2]],
        [n_seqs, n_keys]: [usize; 2],
    ) -> Result<Inputs, GpuError> {
        let per_seq = n_keys.div_ceil(PAGE_SIZE);
        let n_pages = n_seqs * per_seq;
        // Pages of all sequences interleaved, in no order.
        let page = |i: usize| ((i % per_seq * n_seqs + i / per_seq) * 7 % n_pages) as u32;
        let table: Vec<u32> = (0..n_pages).map(page).collect();
        let ends: Vec<u32> = (0..n_seqs).map(|s| (n_keys - 3 * s) as u32).collect();
        let width = N_KV_HEADS * PAGE_SIZE * shape.head_dim;
        let has_one = |parts: &[&'static Part]| parts.iter().any(|part| variant.has(part));
        let dtype = match () {
            () if has_one(&[&KV_F32, &KV_F32_64]) => Dtype::F32,
            () if has_one(&[&KV_F16, &KV_F16_64, &KV_F16_WIDE]) => Dtype::F16,
            () => Dtype::Q8_0,
        };
        let [k, v] = [cache(setup, [n_pages, width], dtype)?, cache(setup, [n_pages, width], dtype)?];
        Ok(Inputs {
            rows: setup.table([places.len(), 2], places.as_flattened())?,
            pages: setup.table([n_seqs, per_seq], &table)?,
            ends: setup.table([1, n_seqs], &ends)?,
            q: setup.activations([places.len(), shape.n_heads * shape.head_dim])?,
            cache: KvLayer { k, v, dtype },
        })
    }
}

/// Keys or values of `n_pages` pages of `width` elements.
fn cache(setup: &mut Setup<'_>, [n_pages, width]: [usize; 2], dtype: Dtype) -> Result<Tensor, GpuError> {
    if dtype != Dtype::Q8_0 {
        return setup.normal([n_pages, width], dtype, 0.0, 1.0);
    }
    // Four scales in F32, then four blocks of signed bytes.
    let n_cols = KvLayer::bytes(dtype, width) / 4;
    let seed = setup.seed() as usize;
    let word = |i: usize| match i % (4 + BLOCK) {
        0..4 => (1.0f32 / 64.0).to_bits(),
        _ => ((1 + i + seed) as u32).wrapping_mul(2_654_435_761),
    };
    let words: Vec<u32> = (0..n_pages * n_cols).map(word).collect();
    setup.table([n_pages, n_cols], &words)
}

pub(super) fn attention(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let mut shape = shape(variant);
    let is_split = is_set(variant, "SPLIT");
    let [all, portable] = [false, true].map(|is_portable| shape.block_rows(setup.gpu.caps_of(is_portable)));
    let is_decode = is_split || variant.kernel.name == ATTENTION_ROW.name;
    // Decode rows at the end of contexts of two splits or of one, or a prompt of two blocks and a part.
    let n_rows = if is_decode { 3 } else { 2 * all.max(portable) + 1 };
    let (n, n_seqs, n_keys) = match is_decode {
        true => (Rows { n_decode: n_rows, n_prompt: 0 }, n_rows, if is_split { 531 } else { 61 }),
        false => (Rows { n_decode: 0, n_prompt: n_rows }, 1, n_rows),
    };
    if !is_decode && shape.causal {
        shape.window = Some(2 * n_rows / 3);
    }
    let place = |r: usize| if is_decode { [r, n_keys - 1 - 5 * r] } else { [0, r] };
    let places: Vec<[u32; 2]> = (0..n_rows).map(|r| place(r).map(|n| n as u32)).collect();
    let inputs = Inputs::new(setup, variant, &shape, &places, [n_seqs, n_keys])?;
    let blocks_of = |most: usize| {
        let step = if is_decode { 1 } else { most };
        let block = |first: usize| [first as u32, step.min(n_rows - first) as u32];
        let blocks: Vec<[u32; 2]> = (0..n_rows).step_by(step).map(block).collect();
        setup.table([blocks.len(), 2], blocks.as_flattened())
    };
    let [all, portable] = [blocks_of(all)?, blocks_of(portable)?];
    let partial_shape = shape.partial_shape(setup.gpu.caps(), n.n_decode.max(1), n_keys);
    let partial = Tensor::zeros(setup.gpu, "self-test", partial_shape, Dtype::F32)?;
    let o = setup.results([n_rows, shape.n_heads * shape.head_dim])?;
    let sinks = match is_set(variant, "SINKS") {
        true => Some(setup.normal([1, shape.n_heads], Dtype::F32, 0.0, 2.0)?),
        false => None,
    };
    // As for other sums, times the size of a score, whose error is relative to a weight.
    setup.tolerance = Tolerance::new(shape.head_dim, 16.0);
    Ok(Box::new(move |rec| {
        let Inputs { rows, pages, ends, q, cache } = &inputs;
        let blocks = if rec.is_portable(Attention::OPERATION) { &portable } else { &all };
        let plan = AttentionPlan {
            rows,
            blocks,
            pages,
            page_size: PAGE_SIZE,
            ends: (!shape.causal).then_some(ends),
            n,
            n_prompt_blocks: if is_decode { 0 } else { blocks.n_rows() },
            longest: if is_decode { n_keys } else { 0 },
            partial: &partial,
            max_seq_len: n_keys,
        };
        shape.launch(rec, &plan, q, cache, sinks.as_ref(), &o);
    }))
}

pub(super) fn weights(setup: &mut Setup<'_>, variant: &Variant) -> Result<Launch, GpuError> {
    let shape = shape(variant);
    let (n_rows, n_keys, first) = (3, 67, 2);
    let places = [[1, 5], [0, 9], [1, 6]];
    let inputs = Inputs::new(setup, variant, &shape, &places, [2, n_keys])?;
    let partial = setup.table([1, 1], &[0])?;
    let p = setup.results([n_rows, first + n_keys])?;
    setup.tolerance = Tolerance::new(shape.head_dim, 16.0);
    Ok(Box::new(move |rec| {
        let Inputs { rows, pages, ends, q, cache } = &inputs;
        let plan = AttentionPlan {
            rows,
            blocks: rows,
            pages,
            page_size: PAGE_SIZE,
            ends: Some(ends),
            n: Rows { n_decode: 0, n_prompt: n_rows },
            n_prompt_blocks: n_rows,
            longest: 0,
            partial: &partial,
            max_seq_len: n_keys,
        };
        let to = HeadWeights { head: shape.n_heads - 1, p: &p, first };
        attention_weights::attention_weights(rec, &shape, &plan, q, cache, to);
    }))
}
