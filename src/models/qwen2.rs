//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values.
//! Reference: transformers' `models/qwen2/modeling_qwen2.py`.

use serde::Deserialize;

use super::blocks::{Decoder, DecoderConfig, Rope};
use super::llama::silu;
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
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    window: Window,
    #[serde(flatten)]
    rope: Rope,
}

/// Which layers see a window only: those that `layer_types` says, in older configs those from
/// `max_window_layers` on.
#[derive(Deserialize)]
pub struct Window {
    #[serde(default)]
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<String>>,
}

impl Window {
    pub fn of_layer(&self, i: usize) -> Option<usize> {
        let slides = match &self.layer_types {
            Some(types) => types.get(i).is_some_and(|t| t == "sliding_attention"),
            None => i >= self.max_window_layers.unwrap_or(0),
        };
        self.sliding_window.filter(|_| self.use_sliding_window && slides)
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let head_dim = self.hidden_size / self.num_attention_heads.max(1);
        let attention = |i| Attention {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: self.window.of_layer(i),
            softcap: None,
        };
        ModelShape {
            architecture: "qwen2",
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
            qkv_bias: true,
            out_bias: false,
            mlp_bias: false,
            head_norm: false,
        };
        Ok(Box::new(Decoder::load(loader, &config, capacity)?))
    }
}
