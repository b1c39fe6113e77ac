//! Llama 1 to 3, TinyLlama, SmolLM2 (Touvron et al. 2023; Grattafiori et al. 2024).
//! Reference: transformers' `models/llama/modeling_llama.py`.

use serde::Deserialize;

use super::blocks::{Decoder, DecoderKeys, Variety};
use super::{Architecture, Loader, Model, ModelError, ModelShape};

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    keys: DecoderKeys,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("llama", |_| None)
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let variety = Variety {
            qkv_bias: self.attention_bias,
            out_bias: self.attention_bias,
            mlp_bias: self.mlp_bias,
            head_norm: false,
        };
        Ok(Box::new(Decoder::load(loader, &self.shape(), &self.keys, variety, max_seq_len)?))
    }
}
