//! The weights of attention, for alignment (word timestamps).

use super::{Attention, AttentionPlan, KvLayer, assert_rows, folding, kernel, kv};
use crate::gpu::{Recorder, Tensor, device_struct};

device_struct! {
    struct Params {
        row0: u32,
        n_rows: u32,
        n_kv_heads: u32,
        head: u32,
        q_stride: u32,
        p_stride: u32,
        p_first: u32,
        pages_stride: u32,
        page_size: u32,
        scale: f32,
    }
}

kernel!(ATTENTION_WEIGHTS, "attention_weights", Params, [Read, Read, Read, Read, Read, Read, ReadWrite]);

/// Where the weights of a query head go.
#[derive(Clone, Copy, Debug)]
pub struct HeadWeights<'a> {
    /// The query head.
    pub head: usize,
    /// `[rows, _]` F32.
    pub p: &'a Tensor,
    /// The column of the first key.
    pub first: usize,
}

/// Writes the weights of a query head for the plan's prompt rows, over all keys of each row's sequence. `q` and `cache`
/// are as in [`Attention::launch`]; the attention sees both sides, with no window and no cap.
///
/// # Panics
/// If the shapes disagree.
pub fn attention_weights(
    rec: &mut Recorder,
    shape: &Attention,
    plan: &AttentionPlan<'_>,
    q: &Tensor,
    cache: &KvLayer,
    to: HeadWeights<'_>,
) {
    let HeadWeights { head, p, first } = to;
    let Attention { n_heads, n_kv_heads, head_dim, scale, causal, window, softcap } = *shape;
    assert!(head < n_heads, "attention_weights: head {head} of {n_heads}");
    assert!(!causal && window.is_none() && softcap.is_none(), "attention_weights: {shape:?}");
    assert_eq!(q.n_cols(), n_heads * head_dim, "attention_weights: {q:?}");
    assert!(first + plan.max_seq_len <= p.n_cols(), "attention_weights: {p:?}");
    for tensor in [q, p] {
        assert_rows("attention_weights", tensor, plan.n.count());
    }
    cache.check("attention_weights", n_kv_heads * plan.page_size * head_dim);
    let params = Params {
        row0: plan.n.n_decode as u32,
        n_rows: plan.n.n_prompt as u32,
        n_kv_heads: n_kv_heads as u32,
        head: head as u32,
        q_stride: (q.stride() / 4) as u32,
        p_stride: p.stride() as u32,
        p_first: first as u32,
        pages_stride: plan.pages.n_cols() as u32,
        page_size: plan.page_size as u32,
        scale,
    };
    let variant = folding(&ATTENTION_WEIGHTS, rec)
        .part(kv(rec.caps(ATTENTION_WEIGHTS.name), cache.dtype))
        .set("GROUP", (n_heads / n_kv_heads) as u32)
        .set("N_D4", (head_dim / 4) as u32);
    let ends = plan.ends.expect("keys on both sides want the ends of sequences").view();
    let groups = rec.gpu().caps().spread(plan.n.n_prompt as u32);
    let [rows, pages, q, k, v, p] = [plan.rows, plan.pages, q, &cache.k, &cache.v, p].map(Tensor::view);
    rec.dispatch(variant, &params, &[rows, pages, ends, q, k, v, p], groups);
}
