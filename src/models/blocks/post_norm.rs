//! The layer of the first transformers, which BERT, RoBERTa and DistilBERT share: they differ in what comes before their
//! layers, after them, and in the weights' names.

use super::{LayerNorm, Mlp, SelfAttention, Target};
use crate::gpu::Recorder;
use crate::models::{Activations, Batch};
use crate::ops::KvLayer;

/// Attention, add, norm, feed-forward, add, norm (Vaswani et al. 2017, figure 1, left).
#[derive(Debug)]
pub struct PostNormLayer {
    /// Attention to both sides.
    pub attention: SelfAttention,
    /// After it and its residual connection.
    pub attention_norm: LayerNorm,
    /// The feed-forward part.
    pub mlp: Mlp,
    /// After it and its residual connection.
    pub mlp_norm: LayerNorm,
}

impl PostNormLayer {
    /// Records the layer on `a.x`.
    pub fn record(&self, rec: &mut Recorder, b: &Batch<'_>, kv: &KvLayer, a: &Activations) {
        let n_rows = b.n.count();
        self.attention.record(rec, b, kv, &a.x, Target::Add(&a.x), a);
        self.attention_norm.record(rec, &a.x, &a.h, n_rows);
        self.mlp.record(rec, b.n, &a.h, Target::Add(&a.h), a);
        self.mlp_norm.record(rec, &a.h, &a.x, n_rows);
    }
}
