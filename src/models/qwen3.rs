//! Qwen 3 (Yang et al. 2025): Llama with norms of each head of queries and keys, and a window in some layers.
//! Reference: transformers' `models/qwen3/modeling_qwen3.py`.

use super::blocks::{Decoder, DecoderDefaults, DecoderKeys, PreNormLayer, SelfAttention};
use super::qwen2::Window;
use super::settings::{Read, Settings};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};

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

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        ModelShape { has_head_norm: true, ..self.keys.shape("qwen3", |i| self.window.of_layer(i)) }
    }

    fn names(&self) -> Names {
        self.keys.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let model = Decoder::load(loader, keys, shape, |layer| {
            Ok(PreNormLayer {
                input_layernorm: layer.norm("input_layernorm")?,
                self_attn: SelfAttention {
                    head_norm: Some(layer.head_norm([keys.heads.head_dim; 2])?),
                    ..layer.self_attn([self.attention_bias; 2], &rotary)?
                },
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.mlp(false)?.into(),
            })
        })?;
        Ok(Box::new(model))
    }
}
