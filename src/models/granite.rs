//! Granite 3, dense (Granite Team 2024): Llama with factors on the embedding, on scores, on what a layer adds to the
//! residual stream, and on logits. Reference: transformers' `models/granite/modeling_granite.py`.

use std::ops::RangeInclusive;

use super::blocks::{Decoder, DecoderDefaults, DecoderKeys, PreNormLayer};
use super::settings::{Read, Settings};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};

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
        let mut keys = DecoderKeys::read(s, &DEFAULTS)?;
        let residual_multiplier = s.real("residual_multiplier", FACTOR, 1.0)?;
        keys.rms_norm_eps =
            (f64::from(keys.rms_norm_eps) / (residual_multiplier * residual_multiplier)) as f32;
        Ok(Config {
            attention_bias: s.flag("attention_bias", false)?,
            mlp_bias: s.flag("mlp_bias", false)?,
            embedding_multiplier: s.real("embedding_multiplier", FACTOR, 1.0)?,
            attention_multiplier: s.real("attention_multiplier", FACTOR, 1.0)?,
            residual_multiplier,
            logits_scaling: s.real("logits_scaling", FACTOR, 1.0)?,
            keys,
        })
    }
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
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let mut model = Decoder::load(loader, keys, shape, |layer| {
            Ok(PreNormLayer {
                input_layernorm: layer.norm("input_layernorm")?,
                self_attn: layer.self_attn([self.attention_bias; 2], &rotary)?,
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.mlp(self.mlp_bias)?.into(),
            })
        })?;
        model.embed_tokens.scale = (self.embedding_multiplier / self.residual_multiplier) as f32;
        model.head.scale = (1.0 / self.logits_scaling) as f32;
        Ok(Box::new(model))
    }
}
