//! Self-attention with its projections.

use super::Activations;
use crate::gpu::{Recorder, Tensor};
use crate::models::{Batch, Loader, ModelError};
use crate::ops::{self, Attention, Rotary};

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
    /// Weights of the query and key norms, `[1, head_dim]` each, and their epsilon.
    pub head_norm: Option<(Tensor, Tensor, f32)>,
    /// Rotation of queries and keys.
    pub rotary: Option<Rotary>,
}

impl SelfAttention {
    /// Loads `q_proj`, `k_proj`, `v_proj`, stacked into one matrix, and `o_proj`.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader<'_>,
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
                Some(eps) => Some((
                    loader.vector(&name("q_norm.weight"), shape.head_dim)?,
                    loader.vector(&name("k_norm.weight"), shape.head_dim)?,
                    *eps,
                )),
            },
            rotary,
        })
    }

    /// Records attention of layer `i` from `a.h`, added to `a.x`.
    pub fn record(&self, i: usize, rec: &mut Recorder, batch: &Batch<'_>, a: &Activations) {
        let Attention { n_heads, n_kv_heads, head_dim, .. } = self.shape;
        let kv = &batch.kv[i];
        let n = batch.n;
        ops::linear(rec, &a.h, &self.qkv, self.qkv_bias.as_ref(), false, &a.qkv, n);
        if let Some((q, k, eps)) = &self.head_norm {
            ops::head_norm(rec, q, k, n_heads, n_kv_heads, *eps, 0.0, &a.qkv, n.count());
        }
        ops::rope_append(
            rec,
            batch.rows,
            batch.pages,
            &a.qkv,
            self.rotary.as_ref(),
            [n_heads, n_kv_heads, head_dim],
            batch.page_size,
            &a.q,
            &kv.k,
            &kv.v,
            n.count(),
        );
        self.shape.launch(rec, &batch.attention_plan(&a.partial), &a.q, &kv.k, &kv.v, &a.o);
        ops::linear(rec, &a.o, &self.out, self.out_bias.as_ref(), true, &a.x, n);
    }
}
