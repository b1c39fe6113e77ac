//! Ministral 3 (Mistral AI 2025): Mistral with heads of their own width, `yarn`, and a factor on queries that grows with
//! their position. Reference: transformers' `models/ministral3/modeling_ministral3.py`.

use super::blocks::{Around, Decoder, DecoderDefaults, DecoderKeys, PreNormLayer, Rope};
use super::settings::{ROWS, Read, Settings, WINDOW};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};
use crate::ops::{Rotary, Temperature};

/// The defaults of transformers' `Ministral3Config`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 131_072,
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_hidden_layers: 34,
    num_attention_heads: 32,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    max_position_embeddings: 262_144,
    rms_norm_eps: 1e-5,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_max_position_embeddings: None,
};

/// The rotation of a config that has none.
const ROPE: &str = r#"{"type": "yarn", "rope_theta": 1e6, "factor": 16, "original_max_position_embeddings": 16384,
    "mscale": 1, "mscale_all_dim": 1, "llama_4_scaling_beta": 0.1}"#;

pub struct Config {
    keys: DecoderKeys,
    sliding_window: Option<usize>,
    temperature: Option<Temperature>,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let mut keys = DecoderKeys::read(s, &DEFAULTS)?;
        let (trained, original) =
            (keys.max_position_embeddings, s.some_whole("original_max_position_embeddings", ROWS, None)?);
        let scaling = match Rope::scaling(s)? {
            Some(scaling) => scaling,
            None => {
                let scaling = Settings::parse(ROPE)?;
                let around = Around { trained, original, theta: DEFAULTS.rope_theta, partial: 1.0 };
                keys.rope = Rope::scaled(&scaling, keys.heads.head_dim, around)?;
                scaling
            }
        };
        let within = scaling.some_whole("original_max_position_embeddings", ROWS, None)?;
        let original = original.or(within).unwrap_or(trained) as u32;
        let beta = scaling.some_real("llama_4_scaling_beta", 0.0..=1e3)?.filter(|beta| *beta != 0.0);
        Ok(Config {
            sliding_window: s.some_whole("sliding_window", WINDOW, None)?,
            temperature: beta.map(|beta| Temperature { beta: beta as f32, original }),
            keys,
        })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("ministral3", |_| self.sliding_window)
    }

    fn names(&self) -> Names {
        self.keys.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let rotary = Rotary { temperature: self.temperature, ..keys.rope.table(loader.gpu(), max_seq_len)? };
        let model = Decoder::load(loader, keys, shape, |layer| {
            Ok(PreNormLayer {
                input_layernorm: layer.norm("input_layernorm")?,
                self_attn: layer.self_attn([false; 2], &rotary)?,
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.mlp(false)?.into(),
            })
        })?;
        loader.ignore_vision();
        Ok(Box::new(model))
    }
}
