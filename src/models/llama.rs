//! Llama 1 to 3, TinyLlama, SmolLM2 (Touvron et al. 2023; Grattafiori et al. 2024).
//! Reference: transformers' `models/llama/modeling_llama.py`.

use serde::Deserialize;

use super::blocks::{Decoder, DecoderConfig, Rope};
use super::{Architecture, Capacity, Model, ModelError, ModelShape};
use crate::ops::Attention;
use crate::weights::Loader;

#[derive(Deserialize)]
pub struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(flatten)]
    rope: Rope,
}

pub fn silu() -> String {
    "silu".into()
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1));
        let attention = Attention {
            n_heads: self.num_attention_heads,
            n_kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
            softcap: None,
        };
        ModelShape {
            architecture: "llama",
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: vec![attention; self.num_hidden_layers],
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
            mlp_bias: self.mlp_bias,
            head_norm: false,
        };
        Ok(Box::new(Decoder::load(loader, &config, capacity)?))
    }
}
