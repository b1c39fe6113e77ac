//! The layer of the original transformer, which BERT, RoBERTa and DistilBERT share. They differ before and after their
//! layers, and in the names of weights.

use super::{LayerNorm, Mlp, SelfAttention, Target};
use crate::gpu::Recorder;
use crate::models::{Activations, Batch};
use crate::ops::KvLayer;

/// Attention, add, norm, MLP, add, norm (Vaswani et al. 2017, figure 1, left).
#[derive(Debug)]
pub struct PostNormLayer {
    /// Attention that sees both sides.
    pub attention: SelfAttention,
    /// The norm after attention and its residual connection.
    pub attention_norm: LayerNorm,
    /// The MLP.
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
