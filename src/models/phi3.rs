//! Phi-3, Phi-3.5 and Phi-4-mini (Abdin et al. 2024): Llama with queries, keys and values in one matrix, and gate and up in
//! another; rotation of a part of each head, by factors for each frequency in long contexts.
//! Reference: transformers' `models/phi3/modeling_phi3.py`.

use super::blocks::{
    Decoder, DecoderDefaults, DecoderKeys, FeedForward, Heads, Mlp, PreNormLayer, SelfAttention,
};
use super::settings::{Read, Settings, WINDOW};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};

/// The defaults of transformers' `Phi3Config`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 32_064,
    hidden_size: 3072,
    intermediate_size: 8192,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 4096,
    rms_norm_eps: 1e-5,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_max_position_embeddings: Some(4096),
};

pub struct Config {
    keys: DecoderKeys,
    sliding_window: Option<usize>,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        Ok(Config { sliding_window: s.some_whole("sliding_window", WINDOW, None)?, keys })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("phi3", |_| self.sliding_window)
    }

    fn names(&self) -> Names {
        self.keys.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let (n, n_inner) = (keys.hidden_size, keys.intermediate_size);
        let Heads { n_heads, n_kv_heads, head_dim } = keys.heads;
        let n_qkv = (n_heads + 2 * n_kv_heads) * head_dim;
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let model = Decoder::load(loader, keys, shape, |layer| {
            Ok(PreNormLayer {
                input_layernorm: layer.norm("input_layernorm")?,
                self_attn: SelfAttention {
                    shape: layer.attention,
                    qkv: layer.linear("self_attn.qkv_proj", [n_qkv, n])?,
                    out: layer.linear("self_attn.o_proj", [n, n_heads * head_dim])?,
                    head_norm: None,
                    sinks: None,
                    rotary: Some(rotary.clone()),
                },
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: FeedForward::Dense(Mlp {
                    act: keys.hidden_act,
                    up: layer.linear("mlp.gate_up_proj", [2 * n_inner, n])?,
                    down: layer.linear("mlp.down_proj", [n, n_inner])?,
                }),
            })
        })?;
        Ok(Box::new(model))
    }
}
