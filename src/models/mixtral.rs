//! Mixtral (Jiang et al. 2024): Mistral with a mixture of experts instead of an MLP.
//! Reference: transformers' `models/mixtral/modeling_mixtral.py`.

use super::blocks::{Decoder, DecoderDefaults, DecoderKeys, MoeNames, PreNormLayer, read_experts};
use super::settings::{Read, Settings, WINDOW};
use super::{Architecture, ExpertsShape, FromSettings, Loader, Model, ModelError, ModelShape, Names};
use crate::ops::Scoring;

/// The defaults of transformers' `MixtralConfig`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: Some(8),
    head_dim: None,
    max_position_embeddings: 131_072,
    original_max_position_embeddings: None,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: false,
    hidden_act: ("hidden_act", "silu"),
    rope_theta: 1e6,
};

/// A softmax over the chosen experts.
const SCORING: Scoring = Scoring { sigmoid: false, normalised: true };

/// The experts of a layer.
const EXPERTS: MoeNames<'_> = MoeNames {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    parts: ["w1", "w3", "w2"],
    transposed: false,
    bias: false,
};

pub struct Config {
    keys: DecoderKeys,
    sliding_window: Option<usize>,
    experts: ExpertsShape,
}

impl FromSettings for Config {
    const ALSO: &'static [(&'static str, &'static str)] = &[("num_experts", "num_local_experts")];

    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        let (inner, layers) = (keys.intermediate_size, vec![true; keys.num_hidden_layers]);
        Ok(Config {
            sliding_window: s.some_whole("sliding_window", WINDOW, None)?,
            experts: read_experts(s, ("num_local_experts", 8), 2, inner, layers)?,
            keys,
        })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let shape = self.keys.shape("mixtral", |_| self.sliding_window);
        ModelShape { experts: Some(self.experts.clone()), ..shape }
    }

    fn names(&self) -> Names {
        let n_experts = ("num_local_experts", self.experts.n_experts);
        self.keys.names_with_router("layers.0.block_sparse_moe.gate.weight", n_experts)
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let model = Decoder::load(loader, keys, shape, |layer| {
            Ok(PreNormLayer {
                input_layernorm: layer.norm("input_layernorm")?,
                self_attn: layer.self_attn([false; 2], &rotary)?,
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.experts(EXPERTS, &self.experts, keys.hidden_act, SCORING)?.into(),
            })
        })?;
        Ok(Box::new(model))
    }
}
