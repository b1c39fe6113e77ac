//! Gemma 3 (Gemma Team 2025): Gemma 2 with norms of each head of queries and keys in place of the cap on scores, a window
//! in five layers of six, and a rotation of their own for these. Of checkpoints with a vision tower, the text model.
//! EmbeddingGemma (Vera et al. 2025) is one whose rows see both sides.
//! Reference: transformers' `models/gemma3/modeling_gemma3.py`.

use super::blocks::{Around, DecoderDefaults, LayerType, Rope, THETA};
use super::gemma2::{BOTH_SIDES, Keys};
use super::settings::{LAYERS, Read, Settings};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};

/// The defaults of transformers' `Gemma3TextConfig`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 262_208,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 131_072,
    rms_norm_eps: 1e-6,
    hidden_act: ("hidden_activation", "gelu_pytorch_tanh"),
    tie_word_embeddings: true,
    rope_theta: 1_000_000.0,
    original_max_position_embeddings: None,
};

pub struct Config {
    keys: Keys,
    /// The rotation of layers with a window. That of the others is among the keys.
    local_rope: Rope,
    /// Whether rows see those after them, too: the model embeds.
    sees_both: bool,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let sees_both = s.flag(BOTH_SIDES, false)?;
        let every = s.whole("sliding_window_pattern", 1..=*LAYERS.end(), 6)?;
        let mut keys = Keys::read(s, &DEFAULTS, every, None)?;
        let decoder = &mut keys.decoder;
        let (head_dim, trained) = (decoder.heads.head_dim, decoder.max_position_embeddings);
        let rope = |layers: &str, earlier, theta| {
            let around = Around { trained, original: None, theta, partial: 1.0 };
            Rope::of_layers(s, layers, earlier, head_dim, around)
        };
        // The earlier keys of a scaling are those of the layers that see all keys.
        let earlier = s.object("rope_scaling")?.filter(|scaling| scaling.entries().next().is_some());
        let theta = s.real("rope_theta", THETA, DEFAULTS.rope_theta)?;
        decoder.rope = rope("full_attention", earlier, theta)?;
        let theta = s.real("rope_local_base_freq", THETA, 10_000.0)?;
        Ok(Config { local_rope: rope("sliding_attention", None, theta)?, keys, sees_both })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let mut shape = ModelShape { has_head_norm: true, ..self.keys.shape("gemma3_text", None) };
        if self.sees_both {
            for attention in &mut shape.attention {
                attention.causal = false;
                // Half of the window is on each side.
                attention.window = attention.window.map(|n| n / 2);
            }
        }
        shape
    }

    fn names(&self) -> Names {
        self.keys.decoder.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let decoder = &self.keys.decoder;
        let full = decoder.rope.table(loader.gpu(), max_seq_len)?;
        let sliding = self.local_rope.table(loader.gpu(), max_seq_len)?;
        let model = self.keys.load(loader, shape, |layer| {
            let rotary = match self.keys.layer_types[layer.i] {
                LayerType::Full => &full,
                LayerType::Sliding => &sliding,
            };
            Ok((Some(layer.head_norm([decoder.heads.head_dim; 2])?), rotary.clone()))
        })?;
        loader.ignore_vision();
        Ok(model)
    }
}
