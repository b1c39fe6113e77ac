//! Qwen 3 (Yang et al. 2025): Llama with norms of each head of queries and keys, and a window in some layers.
//! Reference: transformers' `models/qwen3/modeling_qwen3.py`.

use super::blocks::{
    DecoderDefaults, DecoderKeys, Embed, FinalNorm, Head, Mlp, SelfAttention, Target, load_rms_norm, normed,
};
use super::qwen2::Window;
use super::settings::{Read, Settings};
use super::{
    Architecture, Batch, Capacity, FromSettings, Loader, Model, ModelError, ModelShape, Names, Scratch,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{HeadNorm, RmsNorm};

/// The defaults of transformers' `Qwen3Config`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: Some(32),
    head_dim: Some(128),
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_max_position_embeddings: None,
};

pub struct Config {
    keys: DecoderKeys,
    attention_bias: bool,
    window: Window,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        Ok(Config {
            attention_bias: s.flag("attention_bias", false)?,
            window: Window::read(s, keys.num_hidden_layers)?,
            keys,
        })
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

struct Qwen3 {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        ModelShape { has_head_norm: true, ..self.keys.shape("qwen3", |i| self.window.of_layer(i)) }
    }

    fn names(&self) -> Names {
        self.keys.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let (n, n_inner, eps) = (keys.hidden_size, keys.intermediate_size, keys.rms_norm_eps);
        let (act, tied) = (keys.hidden_act, keys.tie_word_embeddings);
        let head_dim = keys.heads.head_dim;
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let root = loader.root(&self.names());
        let embedding = format!("{root}embed_tokens.weight");
        let tables = [embedding.as_str(), "lm_head.weight"];
        let embed_tokens = loader.embedding(tables, [keys.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(keys.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            let post = name("post_attention_layernorm.weight");
            layers.push(Layer {
                input_layernorm: load_rms_norm(loader, &name("input_layernorm.weight"), n, eps)?,
                self_attn: SelfAttention {
                    head_norm: Some(HeadNorm {
                        q: loader.vector(&name("self_attn.q_norm.weight"), head_dim)?,
                        k: loader.vector(&name("self_attn.k_norm.weight"), head_dim)?,
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
                post_attention_layernorm: load_rms_norm(loader, &post, n, eps)?,
                mlp: Mlp::load_gated(loader, &name("mlp"), act, [n, n_inner], false)?,
            });
        }
        let norm = FinalNorm::Rms(load_rms_norm(loader, &format!("{root}norm.weight"), n, eps)?);
        let head = Head::load(loader, tables, norm, &embed_tokens, tied)?;
        Ok(Box::new(Qwen3 { shape, embed_tokens: Embed::tokens(embed_tokens), layers, head }))
    }
}

impl Model for Qwen3 {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        Scratch::new(gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.embed_tokens.record(rec, b, &s.a.x);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a) = (&self.layers[i], &s.a);
        let x = Target::Add(&a.x);
        layer.self_attn.record(rec, b, &b.kv[i], normed(&layer.input_layernorm, a), x, a);
        layer.mlp.record(rec, b.n, normed(&layer.post_attention_layernorm, a), x, a);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
    }
}
