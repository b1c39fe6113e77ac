//! OLMo 2 (OLMo Team 2024): norms after attention and MLP, none before, and norms of all queries and of all keys.
//! Reference: transformers' `models/olmo2/modeling_olmo2.py`.

use super::blocks::{Decoder, DecoderDefaults, DecoderKeys, DecoderLayer, Mlp, SelfAttention, added};
use super::settings::{Read, Settings};
use super::{Activations, Architecture, Batch, FromSettings, Loader, Model, ModelError, ModelShape, Names};
use crate::gpu::Recorder;
use crate::ops::{KvLayer, RmsNorm};

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

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        ModelShape { has_head_norm: true, ..self.keys.shape("olmo2", |_| None) }
    }

    fn names(&self) -> Names {
        self.keys.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let model = Decoder::load(loader, keys, shape, |layer| {
            let a = layer.attention;
            Ok(Layer {
                self_attn: SelfAttention {
                    head_norm: Some(layer.head_norm([a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim])?),
                    ..layer.self_attn([self.attention_bias; 2], &rotary)?
                },
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.mlp(false)?,
                post_feedforward_layernorm: layer.norm("post_feedforward_layernorm")?,
            })
        })?;
        Ok(Box::new(model))
    }
}

impl DecoderLayer for Layer {
    fn record(&self, rec: &mut Recorder, b: &Batch<'_>, kv: &KvLayer, a: &Activations) {
        let x = added(&self.post_attention_layernorm, a);
        self.self_attn.record(rec, b, kv, &a.x, x, a);
        let x = added(&self.post_feedforward_layernorm, a);
        self.mlp.record(rec, b.n, &a.x, x, a);
    }
}
