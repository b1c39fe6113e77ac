//! Qwen 2 and 2.5 (Yang et al. 2024): Llama with biases on queries, keys and values, and a window in some layers.
//! Reference: transformers' `models/qwen2/modeling_qwen2.py`.

use super::blocks::{Decoder, DecoderDefaults, DecoderKeys, LayerType, PreNormLayer};
use super::settings::{LAYERS, Read, Settings, WINDOW};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};

/// The defaults of transformers' `Qwen2Config`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 151_936,
    hidden_size: 4096,
    intermediate_size: 22_016,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: Some(32),
    head_dim: None,
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_max_position_embeddings: None,
};

pub struct Config {
    keys: DecoderKeys,
    window: Window,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        Ok(Config { window: Window::read(s, keys.num_hidden_layers)?, keys })
    }
}

/// The layers with a window: those in `layer_types`, or in older configs those from `max_window_layers` on.
pub struct Window {
    /// Number of keys. `None` if no layer has a window.
    sliding_window: Option<usize>,
    max_window_layers: usize,
    layer_types: Option<Vec<LayerType>>,
}

impl Window {
    pub fn read(s: &Settings<'_>, n_layers: usize) -> Read<Window> {
        let is_used = s.flag("use_sliding_window", false)?;
        Ok(Window {
            sliding_window: s.some_whole("sliding_window", WINDOW, Some(4096))?.filter(|_| is_used),
            max_window_layers: s.whole("max_window_layers", 0..=*LAYERS.end(), 28)?,
            layer_types: LayerType::read(s, n_layers)?,
        })
    }

    pub fn of_layer(&self, i: usize) -> Option<usize> {
        let slides = match &self.layer_types {
            Some(types) => types[i] == LayerType::Sliding,
            None => i >= self.max_window_layers,
        };
        self.sliding_window.filter(|_| slides)
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("qwen2", |i| self.window.of_layer(i))
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
                self_attn: layer.self_attn([true, false], &rotary)?,
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.mlp(false)?.into(),
            })
        })?;
        Ok(Box::new(model))
    }
}
