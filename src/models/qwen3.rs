//! Qwen 3 (Yang et al. 2025): Llama whose queries and keys are normalised a head; no biases.
//! Reference: transformers' `models/qwen3/modeling_qwen3.py`.

use serde::Deserialize;

use super::blocks::{Decoder, DecoderKeys, Variety};
use super::qwen2::Window;
use super::{Architecture, Loader, Model, ModelError, ModelShape};

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    keys: DecoderKeys,
    #[serde(default)]
    attention_bias: bool,
    #[serde(flatten)]
    window: Window,
}

/// `head_dim` of a config that does not say it: here it does not follow from `hidden_size`.
const HEAD_DIM: usize = 128;

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let head_dim = Some(self.keys.head_dim.unwrap_or(HEAD_DIM));
        let keys = DecoderKeys { head_dim, ..self.keys.clone() };
        ModelShape { has_head_norm: true, ..keys.shape("qwen3", |i| self.window.of_layer(i)) }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let variety = Variety {
            qkv_bias: self.attention_bias,
            out_bias: self.attention_bias,
            mlp_bias: false,
            head_norm: true,
        };
        Ok(Box::new(Decoder::load(loader, &self.shape(), &self.keys, variety, max_seq_len)?))
    }
}
