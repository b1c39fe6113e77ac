//! Llama 1 to 3, TinyLlama, SmolLM2 (Touvron et al. 2023; Grattafiori et al. 2024).
//! Reference: transformers' `models/llama/modeling_llama.py`.

use super::blocks::{Decoder, DecoderDefaults, DecoderKeys, PreNormLayer};
use super::settings::{Read, Settings};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};

/// The defaults of transformers' `LlamaConfig`.
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
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        Ok(Config {
            attention_bias: s.flag("attention_bias", false)?,
            mlp_bias: s.flag("mlp_bias", false)?,
            keys,
        })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("llama", |_| None)
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
                self_attn: layer.self_attn([self.attention_bias; 2], &rotary)?,
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.mlp(self.mlp_bias)?.into(),
            })
        })?;
        Ok(Box::new(model))
    }
}
