//! Self-attention with its projections.

use crate::gpu::{Recorder, Tensor};
use crate::models::{Activations, Batch, Loader, ModelError};
use crate::ops::{self, Attention, HeadNorm, Input, Rotary};

/// Names and options of the four projections, relative to a layer's prefix.
#[derive(Clone, Debug)]
pub struct Projections<'a> {
    /// Prefix such as `model.layers.0.self_attn`.
    pub prefix: &'a str,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The output has a bias.
    pub out_bias: bool,
    /// Queries and keys are normalised a head, with this epsilon.
    pub head_norm: Option<f32>,
}

/// Self-attention: joint projection, head norms, rotation, append, attention, output.
#[derive(Debug)]
pub struct SelfAttention {
    /// Heads and scale.
    pub shape: Attention,
    /// `[(n_heads + 2·n_kv_heads)·head_dim, hidden_size]`.
    pub qkv: Tensor,
    /// `[1, (n_heads + 2·n_kv_heads)·head_dim]`.
    pub qkv_bias: Option<Tensor>,
    /// `[hidden_size, n_heads·head_dim]`.
    pub out: Tensor,
    /// `[1, hidden_size]`.
    pub out_bias: Option<Tensor>,
    /// Norms of query and key heads.
    pub head_norm: Option<HeadNorm>,
    /// Rotation of queries and keys.
    pub rotary: Option<Rotary>,
}

impl SelfAttention {
    /// Loads `q_proj`, `k_proj`, `v_proj`, stacked into one matrix, and `o_proj`.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        names: &Projections<'_>,
        shape: Attention,
        hidden_size: usize,
        rotary: Option<Rotary>,
    ) -> Result<Self, ModelError> {
        let Projections { prefix, qkv_bias, out_bias, head_norm } = names;
        let (n_q, n_kv) = (shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim);
        let name = |part: &str| format!("{prefix}.{part}");
        let names =
            |suffix: &str| ["q_proj", "k_proj", "v_proj"].map(|part| format!("{prefix}.{part}.{suffix}"));
        let (weights, biases) = (names("weight"), names("bias"));
        let [q, k, v] = weights.each_ref().map(String::as_str);
        let qkv = loader.stack(&[(q, n_q), (k, n_kv), (v, n_kv)], hidden_size)?;
        let [q, k, v] = biases.each_ref().map(String::as_str);
        let bias = [(q, n_q), (k, n_kv), (v, n_kv)];
        Ok(SelfAttention {
            shape,
            qkv,
            qkv_bias: qkv_bias.then(|| loader.vectors(&bias)).transpose()?,
            out: loader.matrix(&name("o_proj.weight"), [hidden_size, n_q])?,
            out_bias: out_bias.then(|| loader.vector(&name("o_proj.bias"), hidden_size)).transpose()?,
            head_norm: match head_norm {
                None => None,
                Some(eps) => Some(HeadNorm {
                    q: loader.vector(&name("q_norm.weight"), shape.head_dim)?,
                    k: loader.vector(&name("k_norm.weight"), shape.head_dim)?,
                    eps: *eps,
                    offset: 0.0,
                }),
            },
            rotary,
        })
    }

    /// Records attention of layer `i` on `input`, added to `a.x`.
    pub fn record(&self, i: usize, rec: &mut Recorder, batch: &Batch<'_>, input: Input<'_>, a: &Activations) {
        let Attention { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        ops::qkv(
            rec,
            input,
            &self.qkv,
            self.qkv_bias.as_ref(),
            self.head_norm.as_ref(),
            self.rotary.as_ref(),
            [n_heads, n_kv_heads, head_dim],
            batch.places(),
            &a.qkv,
            &a.q,
            &batch.kv[i],
            batch.n,
        );
        self.shape.launch(rec, &batch.attention_plan(&a.partial), &a.q, &batch.kv[i], &a.o);
        ops::linear(rec, &a.o, &self.out, self.out_bias.as_ref(), true, &a.x, batch.n);
    }
}
