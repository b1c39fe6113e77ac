//! Qwen 3's mixtures of experts (Yang et al. 2025): Qwen 3 with experts instead of an MLP in all or some layers.
//! Reference: transformers' `models/qwen3_moe/modeling_qwen3_moe.py`.

use super::blocks::{
    Decoder, DecoderDefaults, DecoderKeys, MoeNames, PreNormLayer, SelfAttention, read_experts,
};
use super::settings::{INNER_WIDTH, LAYERS, Read, Settings, WINDOW};
use super::{Architecture, ExpertsShape, FromSettings, Loader, Model, ModelError, ModelShape, Names};
use crate::ops::Scoring;

/// The defaults of transformers' `Qwen3MoeConfig`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 151_936,
    hidden_size: 2048,
    intermediate_size: 6144,
    num_hidden_layers: 24,
    num_attention_heads: 32,
    num_key_value_heads: Some(4),
    head_dim: None,
    max_position_embeddings: 32_768,
    original_max_position_embeddings: None,
    rms_norm_eps: 1e-6,
    tie_word_embeddings: false,
    hidden_act: ("hidden_act", "silu"),
    rope_theta: 10_000.0,
};

/// The experts of a layer.
const EXPERTS: MoeNames<'_> = MoeNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    parts: ["gate_proj", "up_proj", "down_proj"],
    transposed: false,
    bias: false,
};

pub struct Config {
    keys: DecoderKeys,
    attention_bias: bool,
    /// Number of keys that a query sees. `None` if it sees all.
    sliding_window: Option<usize>,
    experts: ExpertsShape,
    norm_topk_prob: bool,
}

impl FromSettings for Config {
    const ALSO: &'static [(&'static str, &'static str)] = &[("num_local_experts", "num_experts")];

    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        let slides = s.flag("use_sliding_window", false)?;
        let step = s.whole("decoder_sparse_step", LAYERS, 1)?;
        let dense: Option<Vec<usize>> = s.of_type("mlp_only_layers", "a list of numbers of layers")?;
        let dense = dense.unwrap_or_default();
        let layers =
            (0..keys.num_hidden_layers).map(|i| !dense.contains(&i) && (i + 1) % step == 0).collect();
        let intermediate_size = s.whole("moe_intermediate_size", INNER_WIDTH, 768)?;
        Ok(Config {
            attention_bias: s.flag("attention_bias", false)?,
            sliding_window: s.some_whole("sliding_window", WINDOW, Some(4096))?.filter(|_| slides),
            experts: read_experts(s, ("num_experts", 128), 8, intermediate_size, layers)?,
            norm_topk_prob: s.flag("norm_topk_prob", false)?,
            keys,
        })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        ModelShape {
            has_head_norm: true,
            experts: Some(self.experts.clone()),
            ..self.keys.shape("qwen3_moe", |_| self.sliding_window)
        }
    }

    fn names(&self) -> Names {
        self.keys.names_with_router("layers.0.mlp.gate.weight", ("num_experts", self.experts.n_experts))
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let scoring = Scoring { sigmoid: false, normalised: self.norm_topk_prob };
        let model = Decoder::load(loader, keys, shape, |layer| {
            Ok(PreNormLayer {
                input_layernorm: layer.norm("input_layernorm")?,
                self_attn: SelfAttention {
                    head_norm: Some(layer.head_norm([keys.heads.head_dim; 2])?),
                    ..layer.self_attn([self.attention_bias; 2], &rotary)?
                },
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: if self.experts.layers[layer.i] {
                    layer.experts(EXPERTS, &self.experts, keys.hidden_act, scoring)?.into()
                } else {
                    layer.mlp(false)?.into()
                },
            })
        })?;
        Ok(Box::new(model))
    }
}
