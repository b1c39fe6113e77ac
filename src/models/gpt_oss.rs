//! gpt-oss (OpenAI 2025): a mixture of experts whose attention has sinks, and a window in every second layer.
//! Reference: transformers' `models/gpt_oss/modeling_gpt_oss.py`.

use super::blocks::{
    Around, Decoder, DecoderDefaults, DecoderKeys, LayerLoader, LayerType, MoeNames, PreNormLayer, Rope,
    SelfAttention, THETA, read_experts,
};
use super::settings::{Read, Settings, WINDOW};
use super::{Architecture, ExpertsShape, FromSettings, Loader, Model, ModelError, ModelShape, Names};
use crate::gpu::Tensor;
use crate::ops::{Act, Scoring};

/// The defaults of transformers' `GptOssConfig`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 201_088,
    hidden_size: 2880,
    intermediate_size: 2880,
    num_hidden_layers: 36,
    num_attention_heads: 64,
    num_key_value_heads: Some(8),
    head_dim: Some(64),
    max_position_embeddings: 131_072,
    original_max_position_embeddings: None,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: false,
    hidden_act: ("hidden_act", "silu"),
    rope_theta: 150_000.0,
};

/// The default of `rope_parameters`.
const ROPE: &str = r#"{"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
    "original_max_position_embeddings": 4096}"#;

/// The activation function of the experts, whatever `hidden_act` says.
const ACT: Act = Act::Clamped;
/// A softmax over the chosen experts.
const SCORING: Scoring = Scoring { sigmoid: false, normalised: true };

/// The experts of a layer.
const EXPERTS: MoeNames<'_> = MoeNames {
    router: "mlp.router",
    experts: "mlp.experts",
    parts: ["gate_proj", "up_proj", "down_proj"],
    transposed: true,
    bias: true,
};

pub struct Config {
    keys: DecoderKeys,
    attention_bias: bool,
    /// Number of keys of the layers with a window.
    sliding_window: Option<usize>,
    layer_types: Vec<LayerType>,
    experts: ExpertsShape,
}

impl FromSettings for Config {
    const ALSO: &'static [(&'static str, &'static str)] = &[("num_experts", "num_local_experts")];

    fn read(s: &Settings<'_>) -> Read<Self> {
        let mut keys = DecoderKeys::read(s, &DEFAULTS)?;
        if !s.has("rope_parameters") && !s.has("rope_scaling") {
            let theta = s.real("rope_theta", THETA, DEFAULTS.rope_theta)?;
            let trained = keys.max_position_embeddings;
            let around = Around { trained, original: None, theta, partial: 1.0 };
            keys.rope = Rope::scaled(&Settings::parse(ROPE)?, keys.heads.head_dim, around)?;
        }
        // The activation function of the experts, which has these numbers in it.
        for (key, only) in [("swiglu_limit", 7.0), ("swiglu_alpha", 1.702)] {
            let found = s.real(key, 0.0..=1e6, only)?;
            if found != only {
                return Err(s.wrong_value(key, found, only));
            }
        }
        let alternate = |i| if i % 2 == 0 { LayerType::Sliding } else { LayerType::Full };
        let layer_types = LayerType::read(s, keys.num_hidden_layers)?;
        let (inner, layers) = (keys.intermediate_size, vec![true; keys.num_hidden_layers]);
        Ok(Config {
            attention_bias: s.flag("attention_bias", true)?,
            sliding_window: s.some_whole("sliding_window", WINDOW, Some(128))?,
            layer_types: layer_types.unwrap_or_else(|| (0..keys.num_hidden_layers).map(alternate).collect()),
            experts: read_experts(s, ("num_local_experts", 128), 4, inner, layers)?,
            keys,
        })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let window = |i: usize| self.sliding_window.filter(|_| self.layer_types[i] == LayerType::Sliding);
        let shape = self.keys.shape("gpt_oss", window);
        ModelShape { hidden_act: ACT, experts: Some(self.experts.clone()), ..shape }
    }

    fn names(&self) -> Names {
        let n_experts = ("num_local_experts", self.experts.n_experts);
        self.keys.names_with_router("layers.0.mlp.router.weight", n_experts)
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let model = Decoder::load(loader, keys, shape, |layer| {
            Ok(PreNormLayer {
                input_layernorm: layer.norm("input_layernorm")?,
                self_attn: SelfAttention {
                    sinks: Some(sinks(layer)?),
                    ..layer.self_attn([self.attention_bias; 2], &rotary)?
                },
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                mlp: layer.experts(EXPERTS, &self.experts, ACT, SCORING)?.into(),
            })
        })?;
        Ok(Box::new(model))
    }
}

/// The scores of the sinks, one for each head.
fn sinks(layer: &mut LayerLoader<'_>) -> Result<Tensor, ModelError> {
    // The second is what a GGUF file's becomes.
    let names = ["self_attn.sinks", "self_attn.sinks.weight"].map(|part| layer.name(part));
    let name = if layer.loader.has(&names[0]) { &names[0] } else { &names[1] };
    Ok(layer.loader.vector(name, layer.attention.n_heads)?)
}
