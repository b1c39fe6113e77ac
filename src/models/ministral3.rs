//! Ministral 3 (Mistral AI 2025): Mistral with heads of their own width, `yarn`, and a factor on queries that grows with
//! their position. Reference: transformers' `models/ministral3/modeling_ministral3.py`.

use super::blocks::{
    Around, DecoderDefaults, DecoderKeys, Embed, FinalNorm, Head, Mlp, Rope, SelfAttention, Target,
    load_rms_norm, normed,
};
use super::settings::{ROWS, Read, Settings, WINDOW};
use super::{
    Architecture, Batch, Capacity, FromSettings, Loader, Model, ModelError, ModelShape, Names, Scratch,
    lm_head,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{RmsNorm, Rotary, Temperature};

/// The defaults of transformers' `Ministral3Config`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 131_072,
    hidden_size: 4096,
    intermediate_size: 14_336,
    num_hidden_layers: 34,
    num_attention_heads: 32,
    num_key_value_heads: Some(8),
    head_dim: Some(128),
    max_position_embeddings: 262_144,
    rms_norm_eps: 1e-5,
    hidden_act: ("hidden_act", "silu"),
    tie_word_embeddings: false,
    rope_theta: 10_000.0,
    original_max_position_embeddings: None,
};

/// The rotation of a config that has none.
const ROPE: &str = r#"{"type": "yarn", "rope_theta": 1e6, "factor": 16, "original_max_position_embeddings": 16384,
    "mscale": 1, "mscale_all_dim": 1, "llama_4_scaling_beta": 0.1}"#;

pub struct Config {
    keys: DecoderKeys,
    sliding_window: Option<usize>,
    temperature: Option<Temperature>,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let mut keys = DecoderKeys::read(s, &DEFAULTS)?;
        let (trained, original) =
            (keys.max_position_embeddings, s.some_whole("original_max_position_embeddings", ROWS, None)?);
        let scaling = match Rope::scaling(s)? {
            Some(scaling) => scaling,
            None => {
                let scaling = Settings::parse(ROPE)?;
                let around = Around { trained, original, theta: DEFAULTS.rope_theta, partial: 1.0 };
                keys.rope = Rope::scaled(&scaling, keys.heads.head_dim, around)?;
                scaling
            }
        };
        let within = scaling.some_whole("original_max_position_embeddings", ROWS, None)?;
        let original = original.or(within).unwrap_or(trained) as u32;
        let beta = scaling.some_real("llama_4_scaling_beta", 0.0..=1e3)?.filter(|beta| *beta != 0.0);
        Ok(Config {
            sliding_window: s.some_whole("sliding_window", WINDOW, None)?,
            temperature: beta.map(|beta| Temperature { beta: beta as f32, original }),
            keys,
        })
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

struct Ministral3 {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("ministral3", |_| self.sliding_window)
    }

    fn names(&self) -> Names {
        self.keys.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let (n, n_inner, eps) = (keys.hidden_size, keys.intermediate_size, keys.rms_norm_eps);
        let (act, tied) = (keys.hidden_act, keys.tie_word_embeddings);
        let rotary = Rotary { temperature: self.temperature, ..keys.rope.table(loader.gpu(), max_seq_len)? };
        let root = loader.root(&self.names());
        let embedding = format!("{root}embed_tokens.weight");
        let tables = [embedding.as_str(), lm_head(root)];
        let embed_tokens = loader.embedding(tables, [keys.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(keys.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            let post = name("post_attention_layernorm.weight");
            layers.push(Layer {
                input_layernorm: load_rms_norm(loader, &name("input_layernorm.weight"), n, eps)?,
                self_attn: SelfAttention::load(
                    loader,
                    &name("self_attn"),
                    *a,
                    n,
                    [false; 2],
                    rotary.clone(),
                )?,
                post_attention_layernorm: load_rms_norm(loader, &post, n, eps)?,
                mlp: Mlp::load_gated(loader, &name("mlp"), act, [n, n_inner], false)?,
            });
        }
        let norm = FinalNorm::Rms(load_rms_norm(loader, &format!("{root}norm.weight"), n, eps)?);
        let head = Head::load(loader, tables, norm, &embed_tokens, tied)?;
        loader.ignore_vision();
        Ok(Box::new(Ministral3 { shape, embed_tokens: Embed::tokens(embed_tokens), layers, head }))
    }
}

impl Model for Ministral3 {
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
        layer.mlp.record(rec, b.n, normed(&layer.post_attention_layernorm, a), x, a);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
    }
}
