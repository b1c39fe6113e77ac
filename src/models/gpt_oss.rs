//! gpt-oss (OpenAI 2025): a mixture of experts whose attention has sinks, and a window in every second layer.
//! Reference: transformers' `models/gpt_oss/modeling_gpt_oss.py`.

use super::blocks::{
    Around, CHOSEN, DecoderDefaults, DecoderKeys, EXPERTS, Embed, FinalNorm, Head, LayerType, Moe, MoeNames,
    Rope, SelfAttention, THETA, Target, load_rms_norm, normed,
};
use super::settings::{Read, Settings, WINDOW};
use super::{
    Architecture, Batch, Capacity, ExpertNames, ExpertsShape, FromSettings, Loader, Model, ModelError,
    ModelShape, Names, Scratch, Shown,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Act, RmsNorm, Scoring};

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
        let n_experts = s.whole("num_local_experts", EXPERTS, 128)?;
        let alternate = |i| if i % 2 == 0 { LayerType::Sliding } else { LayerType::Full };
        let layer_types = LayerType::read(s, keys.num_hidden_layers)?;
        Ok(Config {
            attention_bias: s.flag("attention_bias", true)?,
            sliding_window: s.some_whole("sliding_window", WINDOW, Some(128))?,
            layer_types: layer_types.unwrap_or_else(|| (0..keys.num_hidden_layers).map(alternate).collect()),
            experts: ExpertsShape {
                n_experts,
                n_chosen: s.whole(
                    "num_experts_per_tok",
                    1..=n_experts.min(*CHOSEN.end()),
                    4.min(n_experts),
                )?,
                intermediate_size: keys.intermediate_size,
                layers: vec![true; keys.num_hidden_layers],
            },
            keys,
        })
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Moe,
}

struct GptOss {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let window = |i: usize| self.sliding_window.filter(|_| self.layer_types[i] == LayerType::Sliding);
        let shape = self.keys.shape("gpt_oss", window);
        ModelShape { hidden_act: ACT, experts: Some(self.experts.clone()), ..shape }
    }

    fn names(&self) -> Names {
        let names = self.keys.names();
        let n_experts = ("num_local_experts", self.experts.n_experts);
        let shape = [n_experts, ("hidden_size", self.keys.hidden_size)];
        let router = Shown { tensor: "layers.0.mlp.router.weight", shape };
        Names { shown: [names.shown, vec![router]].concat(), ..names }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let (n, eps, tied) = (keys.hidden_size, keys.rms_norm_eps, keys.tie_word_embeddings);
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let root = loader.root(&self.names());
        let embedding = format!("{root}embed_tokens.weight");
        let tables = [embedding.as_str(), "lm_head.weight"];
        let embed_tokens = loader.embedding(tables, [keys.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(keys.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            let post = name("post_attention_layernorm.weight");
            let (router, experts) = (name("mlp.router"), name("mlp.experts"));
            let names = |parts, joined| ExpertNames { prefix: &experts, parts, joined, transposed: true };
            let experts =
                [names(&["gate_proj", "up_proj"], "gate_up_proj"), names(&["down_proj"], "down_proj")];
            let moe = MoeNames { router: &router, experts, bias: true };
            let biases = [self.attention_bias; 2];
            // The second is what a GGUF file's becomes.
            let sinks = [name("self_attn.sinks"), name("self_attn.sinks.weight")];
            let sinks = if loader.has(&sinks[0]) { &sinks[0] } else { &sinks[1] };
            layers.push(Layer {
                input_layernorm: load_rms_norm(loader, &name("input_layernorm.weight"), n, eps)?,
                self_attn: SelfAttention {
                    sinks: Some(loader.vector(sinks, a.n_heads)?),
                    ..SelfAttention::load(loader, &name("self_attn"), *a, n, biases, rotary.clone())?
                },
                post_attention_layernorm: load_rms_norm(loader, &post, n, eps)?,
                mlp: Moe::load(loader, moe, n, &self.experts, ACT, SCORING)?,
            });
        }
        let norm = FinalNorm::Rms(load_rms_norm(loader, &format!("{root}norm.weight"), n, eps)?);
        let head = Head::load(loader, tables, norm, &embed_tokens, tied)?;
        Ok(Box::new(GptOss { shape, embed_tokens: Embed::tokens(embed_tokens), layers, head }))
    }
}

impl Model for GptOss {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        Scratch::new(gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.embed_tokens.record(rec, b, &s.a.x);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a) = (&self.layers[i], &s.a);
        let x = Target::Add(&a.x);
        layer.self_attn.record(rec, b, &b.kv[i], normed(&layer.input_layernorm, a), x, a);
        layer.mlp.record(rec, b.n, &layer.post_attention_layernorm, a);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
    }
}
