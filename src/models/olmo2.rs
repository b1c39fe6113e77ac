//! OLMo 2 (OLMo Team 2024): norms after attention and MLP, none before, and norms of all queries and of all keys.
//! Reference: transformers' `models/olmo2/modeling_olmo2.py`.

use super::blocks::{
    DecoderDefaults, DecoderKeys, Embed, FinalNorm, Head, Mlp, SelfAttention, added, load_rms_norm,
};
use super::settings::{Read, Settings};
use super::{
    Architecture, Batch, Capacity, FromSettings, Loader, Model, ModelError, ModelShape, Names, Scratch,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{HeadNorm, RmsNorm};

/// The defaults of transformers' `Olmo2Config`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 50_304,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-5,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_max_position_embeddings: None,
};

pub struct Config {
    keys: DecoderKeys,
    attention_bias: bool,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        Ok(Config { attention_bias: s.flag("attention_bias", false)?, keys })
    }
}

struct Layer {
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

struct Olmo2 {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        ModelShape { has_head_norm: true, ..self.keys.shape("olmo2", |_| None) }
    }

    fn names(&self) -> Names {
        self.keys.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let (n, n_inner, eps) = (keys.hidden_size, keys.intermediate_size, keys.rms_norm_eps);
        let (act, tied) = (keys.hidden_act, keys.tie_word_embeddings);
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let root = loader.root(&self.names());
        let embedding = format!("{root}embed_tokens.weight");
        let tables = [embedding.as_str(), "lm_head.weight"];
        let embed_tokens = loader.embedding(tables, [keys.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(keys.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            layers.push(Layer {
                self_attn: SelfAttention {
                    head_norm: Some(HeadNorm {
                        q: loader.vector(&name("self_attn.q_norm.weight"), a.n_heads * a.head_dim)?,
                        k: loader.vector(&name("self_attn.k_norm.weight"), a.n_kv_heads * a.head_dim)?,
                        eps,
                        offset: 0.0,
                    }),
                    ..SelfAttention::load(
                        loader,
                        &name("self_attn"),
                        *a,
                        n,
                        [self.attention_bias; 2],
                        rotary.clone(),
                    )?
                },
                post_attention_layernorm: load_rms_norm(
                    loader,
                    &name("post_attention_layernorm.weight"),
                    n,
                    eps,
                )?,
                mlp: Mlp::load_gated(loader, &name("mlp"), act, [n, n_inner], false)?,
                post_feedforward_layernorm: load_rms_norm(
                    loader,
                    &name("post_feedforward_layernorm.weight"),
                    n,
                    eps,
                )?,
            });
        }
        let norm = FinalNorm::Rms(load_rms_norm(loader, &format!("{root}norm.weight"), n, eps)?);
        let head = Head::load(loader, tables, norm, &embed_tokens, tied)?;
        Ok(Box::new(Olmo2 { shape, embed_tokens: Embed::tokens(embed_tokens), layers, head }))
    }
}

impl Model for Olmo2 {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        Scratch::new(gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.embed_tokens.record(rec, b, &s.a.x);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a) = (&self.layers[i], &s.a);
        let x = added(&layer.post_attention_layernorm, a);
        layer.self_attn.record(rec, b, &b.kv[i], &a.x, x, a);
        let x = added(&layer.post_feedforward_layernorm, a);
        layer.mlp.record(rec, b.n, &a.x, x, a);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
    }
}
