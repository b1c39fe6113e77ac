//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values.
//! Reference: transformers' `models/qwen2/modeling_qwen2.py`.

use serde::Deserialize;

use super::blocks::{Decoder, DecoderKeys, Variety};
use super::{Architecture, Loader, Model, ModelError, ModelShape};

#[derive(Deserialize)]
pub struct Config {
    #[serde(flatten)]
    keys: DecoderKeys,
    #[serde(flatten)]
    window: Window,
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
        self.keys.shape("qwen2", |i| self.window.of_layer(i))
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let variety = Variety { qkv_bias: true, ..Variety::default() };
        Ok(Box::new(Decoder::load(loader, &self.shape(), &self.keys, variety, max_seq_len)?))
    }
}
