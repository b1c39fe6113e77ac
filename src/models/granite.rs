//! Granite 3, dense (Granite Team 2024): Llama with factors on the embedding, on scores, on what a layer adds to the
//! residual stream, and on logits. Reference: transformers' `models/granite/modeling_granite.py`.

use std::ops::RangeInclusive;

use super::blocks::{
    DecoderDefaults, DecoderKeys, Embed, FinalNorm, Head, Mlp, SelfAttention, Target, load_rms_norm, normed,
};
use super::settings::{Read, Settings};
use super::{
    Architecture, Batch, Capacity, FromSettings, Loader, Model, ModelError, ModelShape, Names, Scratch,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::RmsNorm;

/// The defaults of transformers' `GraniteConfig`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_max_position_embeddings: None,
};

pub struct Config {
    keys: DecoderKeys,
    attention_bias: bool,
    mlp_bias: bool,
    embedding_multiplier: f64,
    attention_multiplier: f64,
    /// Nothing is multiplied by it: the residual stream here is that of the paper divided by it. RMS norms give the same
    /// result if their epsilon is divided by its square.
    residual_multiplier: f64,
    logits_scaling: f64,
}

/// Factors. Published models have 0.008 to 16.
const FACTOR: RangeInclusive<f64> = 1e-3..=1e3;

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        Ok(Config {
            attention_bias: s.flag("attention_bias", false)?,
            mlp_bias: s.flag("mlp_bias", false)?,
            embedding_multiplier: s.real("embedding_multiplier", FACTOR, 1.0)?,
            attention_multiplier: s.real("attention_multiplier", FACTOR, 1.0)?,
            residual_multiplier: s.real("residual_multiplier", FACTOR, 1.0)?,
            logits_scaling: s.real("logits_scaling", FACTOR, 1.0)?,
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

struct Granite {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let mut shape = self.keys.shape("granite", |_| None);
        shape.attention.iter_mut().for_each(|a| a.scale = self.attention_multiplier as f32);
        shape
    }

    fn names(&self) -> Names {
        self.keys.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let (n, n_inner, residual) = (keys.hidden_size, keys.intermediate_size, self.residual_multiplier);
        let eps = (f64::from(keys.rms_norm_eps) / (residual * residual)) as f32;
        let (act, tied) = (keys.hidden_act, keys.tie_word_embeddings);
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let root = loader.root(&self.names());
        let embedding = format!("{root}embed_tokens.weight");
        let tables = [embedding.as_str(), "lm_head.weight"];
        let table = loader.embedding(tables, [keys.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(keys.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            let post = name("post_attention_layernorm.weight");
            layers.push(Layer {
                input_layernorm: load_rms_norm(loader, &name("input_layernorm.weight"), n, eps)?,
                self_attn: SelfAttention::load(
                    loader,
                    &name("self_attn"),
                    *a,
                    n,
                    [self.attention_bias; 2],
                    rotary.clone(),
                )?,
                post_attention_layernorm: load_rms_norm(loader, &post, n, eps)?,
                mlp: Mlp::load_gated(loader, &name("mlp"), act, [n, n_inner], self.mlp_bias)?,
            });
        }
        let norm = FinalNorm::Rms(load_rms_norm(loader, &format!("{root}norm.weight"), n, eps)?);
        let scale = (1.0 / self.logits_scaling) as f32;
        let head = Head { scale, ..Head::load(loader, tables, norm, &table, tied)? };
        let scale = (self.embedding_multiplier / residual) as f32;
        let embed_tokens = Embed { scale, ..Embed::tokens(table) };
        Ok(Box::new(Granite { shape, embed_tokens, layers, head }))
    }
}

impl Model for Granite {
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
