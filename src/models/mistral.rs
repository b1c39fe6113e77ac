//! Mistral (Jiang et al. 2023): Llama with a window of keys, and no biases.
//! Reference: transformers' `models/mistral/modeling_mistral.py`.

use super::blocks::{Decoder, DecoderDefaults, DecoderKeys, PreNormLayer};
use super::settings::{Read, Settings, WINDOW};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};

/// The defaults of transformers' `MistralConfig`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: Some(8),
    head_dim: None,
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-6,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_max_position_embeddings: None,
};

pub struct Config {
    keys: DecoderKeys,
    sliding_window: Option<usize>,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        Ok(Config {
            // Absent it is 4096, `null` is none.
            sliding_window: s.some_whole("sliding_window", WINDOW, Some(4096))?,
            keys,
        })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("mistral", |_| self.sliding_window)
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
                self_attn: layer.self_attn([false; 2], &rotary)?,
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.mlp(false)?.into(),
            })
        })?;
        loader.ignore_vision();
        Ok(Box::new(model))
    }
}
