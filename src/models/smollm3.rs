//! SmolLM3 (Bakouch et al. 2025): Llama with no rotation in some layers (Yang et al. 2025, "Rope to Nope and Back Again").
//! Reference: transformers' `models/smollm3/modeling_smollm3.py`.

use super::blocks::{Decoder, DecoderDefaults, DecoderKeys, LayerType, PreNormLayer, SelfAttention};
use super::settings::{ROWS, Read, Settings, WINDOW};
use super::{Architecture, FromSettings, Loader, Model, ModelError, ModelShape, Names};

/// The defaults of transformers' `SmolLM3Config`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 128_256,
    hidden_size: 2048,
    intermediate_size: 11_008,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    num_key_value_heads: Some(4),
    head_dim: None,
    max_position_embeddings: 32_768,
    rms_norm_eps: 1e-6,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: true,
    rope_theta: 2_000_000.0,
    original_max_position_embeddings: None,
};

pub struct Config {
    keys: DecoderKeys,
    attention_bias: bool,
    mlp_bias: bool,
    /// For each layer whether it rotates queries and keys.
    rotates: Vec<bool>,
    /// For each layer the keys that a query sees.
    windows: Vec<Option<usize>>,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        let rotates = rotates(s, keys.num_hidden_layers)?;
        let (has_window, window) =
            (s.flag("use_sliding_window", false)?, s.some_whole("sliding_window", WINDOW, None)?);
        let window = window.filter(|_| has_window);
        let types = LayerType::read(s, keys.num_hidden_layers)?;
        let slides = |i: usize| types.as_ref().map_or(!rotates[i], |types| types[i] == LayerType::Sliding);
        Ok(Config {
            attention_bias: s.flag("attention_bias", false)?,
            mlp_bias: s.flag("mlp_bias", false)?,
            windows: (0..keys.num_hidden_layers).map(|i| window.filter(|_| slides(i))).collect(),
            rotates,
            keys,
        })
    }
}

/// Reads which of `n_layers` layers rotate. Default: all but each fourth.
fn rotates(s: &Settings<'_>, n_layers: usize) -> Read<Vec<bool>> {
    const KEY: &str = "no_rope_layers";
    let interval = s.whole("no_rope_layer_interval", ROWS, 4)?;
    let expected = format!("a list of {n_layers} numbers: 1 for a layer that rotates, else 0");
    // Despite its name, 1 is a layer that rotates. transformers ignores what goes beyond the layers.
    match s.of_type::<Vec<i64>>(KEY, &expected)? {
        Some(list) if list.len() < n_layers => Err(s.wrong(KEY, expected)),
        Some(list) => Ok(list[..n_layers].iter().map(|rotates| *rotates != 0).collect()),
        None => Ok((1..=n_layers).map(|i| i % interval != 0).collect()),
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("smollm3", |i| self.windows[i])
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
                self_attn: SelfAttention {
                    rotary: self.rotates[layer.i].then(|| rotary.clone()),
                    ..layer.self_attn([self.attention_bias; 2], &rotary)?
                },
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.mlp(self.mlp_bias)?.into(),
            })
        })?;
        Ok(Box::new(model))
    }
}
