//! Qwen 3 (Yang et al. 2025): Llama whose queries and keys are normalised a head; no biases.
//! Reference: transformers' `models/qwen3/modeling_qwen3.py`.

use serde::Deserialize;

use super::blocks::{Decoder, DecoderConfig, Rope};
use super::llama::silu;
use super::qwen2::Window;
use super::{Architecture, Capacity, Model, ModelError, ModelShape};
use crate::ops::Attention;
use crate::weights::Loader;

#[derive(Deserialize)]
pub struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    /// Not `hidden_size / num_attention_heads` here.
    #[serde(default = "head_dim")]
    head_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(flatten)]
    window: Window,
    #[serde(flatten)]
    rope: Rope,
}

fn head_dim() -> usize {
    128
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let attention = |i| Attention {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            scale: (self.head_dim as f32).powf(-0.5),
            window: self.window.of_layer(i),
            softcap: None,
        };
        ModelShape {
            architecture: "qwen3",
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: (0..self.num_hidden_layers).map(attention).collect(),
        }
    }

    fn load(&self, loader: &mut Loader<'_>, capacity: Capacity) -> Result<Box<dyn Model>, ModelError> {
        let config = DecoderConfig {
            shape: self.shape(),
            intermediate_size: self.intermediate_size,
            rms_norm_eps: self.rms_norm_eps,
            hidden_act: &self.hidden_act,
            tie_word_embeddings: self.tie_word_embeddings,
            rope: &self.rope,
            qkv_bias: self.attention_bias,
            out_bias: self.attention_bias,
            mlp_bias: false,
            head_norm: true,
        };
        Ok(Box::new(Decoder::load(loader, &config, capacity)?))
    }
}
