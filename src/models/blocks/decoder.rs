//! The decoder that Llama's descendants share: norm, attention, norm, gated feed-forward, on one stream.

use serde::Deserialize;

use super::{Mlp, Projections, Rope, SelfAttention};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::{Batch, Capacity, Loader, Model, ModelError, ModelKind, ModelShape, Scratch};
use crate::ops::{self, Act, Attention, Input, Lookup, RmsNorm, Rows};

/// The keys of `config.json` that the descendants have in common.
#[derive(Clone, Debug, Deserialize)]
pub struct DecoderKeys {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key-value heads; one for each query head without.
    pub num_key_value_heads: Option<usize>,
    /// Values a head; `hidden_size / num_attention_heads` without, unless the architecture says otherwise.
    pub head_dim: Option<usize>,
    /// Logits a row.
    pub vocab_size: usize,
    /// Positions that the model was made for.
    pub max_position_embeddings: usize,
    /// Epsilon of the norms.
    pub rms_norm_eps: f32,
    /// Activation of the gate; `silu` without.
    pub hidden_act: Option<String>,
    /// Logits come from the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Rotation.
    #[serde(flatten)]
    pub rope: Rope,
}

impl DecoderKeys {
    /// The model's shape; `window` gives the keys that a query of layer `i` sees, if not all.
    pub fn shape(&self, architecture: &'static str, window: impl Fn(usize) -> Option<usize>) -> ModelShape {
        let n_heads = self.num_attention_heads;
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / n_heads.max(1));
        let attention = |i| Attention {
            n_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(n_heads),
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            causal: true,
            window: window(i),
            softcap: None,
        };
        ModelShape {
            architecture,
            kind: ModelKind::Decoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: (0..self.num_hidden_layers).map(attention).collect(),
            intermediate_size: self.intermediate_size,
            has_gate: true,
            has_layer_norm: false,
            has_head_norm: false,
            ties_embeddings: self.tie_word_embeddings,
            audio: None,
        }
    }
}

/// What tells one descendant's weights from another's.
#[derive(Clone, Copy, Debug, Default)]
pub struct Variety {
    /// `q_proj`, `k_proj`, `v_proj` have biases.
    pub qkv_bias: bool,
    /// `o_proj` has a bias.
    pub out_bias: bool,
    /// The feed-forward part has biases.
    pub mlp_bias: bool,
    /// Queries and keys are normalised a head.
    pub head_norm: bool,
}

/// One layer.
#[derive(Debug)]
pub struct DecoderLayer {
    attention_norm: RmsNorm,
    attention: SelfAttention,
    mlp_norm: RmsNorm,
    mlp: Mlp,
}

/// The whole.
#[derive(Debug)]
pub struct Decoder {
    shape: ModelShape,
    embed: Tensor,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    head: Tensor,
}

/// The activation that a config names.
///
/// # Errors
/// [`ModelError::Unsupported`].
pub(crate) fn act(key: &'static str, name: &str) -> Result<Act, ModelError> {
    Act::from_name(name).ok_or_else(|| ModelError::Unsupported {
        key,
        found: name.to_string(),
        expected: "`silu`, `gelu`, `gelu_new`, `gelu_pytorch_tanh`, `relu` or `tanh`".into(),
    })
}

impl Decoder {
    /// Loads the weights.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`], [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        shape: &ModelShape,
        keys: &DecoderKeys,
        variety: Variety,
        max_seq_len: usize,
    ) -> Result<Self, ModelError> {
        let hidden = shape.hidden_size;
        let act = act("hidden_act", keys.hidden_act.as_deref().unwrap_or("silu"))?;
        let head_dim = shape.attention[0].head_dim;
        let gpu = loader.gpu().clone();
        let rotary = keys.rope.table(&gpu, head_dim, shape.max_seq_len, max_seq_len)?;
        let norm = |loader: &mut Loader, name: &str| -> Result<RmsNorm, ModelError> {
            Ok(RmsNorm { w: loader.vector(name, hidden)?, eps: keys.rms_norm_eps, offset: 0.0 })
        };
        let embed = loader.table("model.embed_tokens.weight", [shape.vocab_size, hidden])?;
        let mut layers = Vec::with_capacity(shape.n_layers());
        for (i, attention) in shape.attention.iter().enumerate() {
            let prefix = format!("model.layers.{i}");
            let names = Projections {
                prefix: &format!("{prefix}.self_attn"),
                qkv_bias: variety.qkv_bias,
                out_bias: variety.out_bias,
                head_norm: variety.head_norm.then_some(keys.rms_norm_eps),
            };
            let sizes = [hidden, keys.intermediate_size];
            let post = format!("{prefix}.post_attention_layernorm.weight");
            layers.push(DecoderLayer {
                attention_norm: norm(loader, &format!("{prefix}.input_layernorm.weight"))?,
                attention: SelfAttention::load(loader, &names, *attention, hidden, Some(rotary.clone()))?,
                mlp_norm: norm(loader, &post)?,
                mlp: Mlp::load_gated(loader, &format!("{prefix}.mlp"), act, sizes, variety.mlp_bias)?,
            });
        }
        let norm = norm(loader, "model.norm.weight")?;
        let head = if keys.tie_word_embeddings {
            embed.clone()
        } else {
            loader.table("lm_head.weight", [shape.vocab_size, hidden])?
        };
        let shape = ModelShape { max_seq_len, ..shape.clone() };
        Ok(Decoder { shape, embed, layers, norm, head })
    }
}

impl Model for Decoder {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        Scratch::new(gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        ops::embed(rec, Lookup::Token, b.rows, b.tokens, &self.embed, 1.0, &s.a.x, b.n);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a) = (&self.layers[i], &s.a);
        let input = |norm| Input { x: &a.x, norm: Some((norm, &a.h)) };
        layer.attention.record(i, rec, b, input(&layer.attention_norm), a);
        layer.mlp.record(rec, b, input(&layer.mlp_norm), a);
    }

    fn logits(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        let a = &s.a;
        ops::rms_norm(rec, &a.x, &self.norm, Some(b.sampled), &a.last, 0..b.n_sampled);
        let n = Rows { n_decode: b.n_sampled, n_prompt: 0 };
        ops::linear(rec, &a.last, &self.head, None, false, &a.logits, n);
        a.logits.clone()
    }
}
