//! Self-attention with its projections.

use super::{Linear, Target};
use crate::gpu::{Recorder, Tensor};
use crate::models::{Activations, Batch, Loader, ModelError};
use crate::ops::{self, Attention, HeadNorm, Input, KvLayer, Qkv, RopeAppend, Rotary};

/// Self-attention: joint projection, norms of heads, rotation, append to the KV cache, attention, output.
#[derive(Debug)]
pub struct SelfAttention {
    /// Heads and scale.
    pub shape: Attention,
    /// Queries above keys above values: `[(n_heads + 2·n_kv_heads)·head_dim, hidden_size]`.
    pub qkv: Linear,
    /// `[hidden_size, n_heads·head_dim]`.
    pub out: Linear,
    /// Norms of queries and keys.
    pub head_norm: Option<HeadNorm>,
    /// For each head the score of one more key, whose value is zero: `[1, n_heads]` F32.
    pub sinks: Option<Tensor>,
    /// Rotation of queries and keys.
    pub rotary: Option<Rotary>,
}

impl SelfAttention {
    /// Loads `q_proj`, `k_proj` and `v_proj` as one product, and `o_proj`, all below `prefix`. `biases` says whether the
    /// former and the latter have biases. The heads are not normalised and have no sinks.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        prefix: &str,
        shape: Attention,
        hidden_size: usize,
        [qkv_bias, out_bias]: [bool; 2],
        rotary: Rotary,
    ) -> Result<Self, ModelError> {
        let (n_q, n_kv) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let [q, k, v, o] = ["q_proj", "k_proj", "v_proj", "o_proj"].map(|part| format!("{prefix}.{part}"));
        Ok(SelfAttention {
            shape,
            qkv: Linear::stack(loader, &[(&q, n_q), (&k, n_kv), (&v, n_kv)], hidden_size, qkv_bias)?,
            out: Linear::load(loader, &o, [hidden_size, n_q], out_bias)?,
            head_norm: None,
            sinks: None,
            rotary: Some(rotary),
        })
    }

    /// Records the attention of `input`'s rows, whose keys and values go to `kv`. Uses `qkv`, `q`, `o` and `partial` of
    /// `a`.
    pub fn record<'a>(
        &'a self,
        rec: &mut Recorder,
        b: &Batch<'_>,
        kv: &KvLayer,
        input: impl Into<Input<'a>>,
        y: Target<'_>,
        a: &Activations,
    ) {
        let Attention { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let to = RopeAppend {
            rotary: self.rotary.as_ref(),
            heads: [n_heads, n_kv_heads, head_dim],
            places: b.places(),
            q: &a.q,
            cache: kv,
        };
        let product = self.qkv.of(input);
        ops::qkv(rec, Qkv { product, head_norm: self.head_norm.as_ref(), projected: &a.qkv, to }, b.n);
        self.shape.launch(rec, &b.attention_plan(&a.partial), &a.q, kv, self.sinks.as_ref(), &a.o);
        self.out.record(rec, b.n, &a.o, y);
    }
}
