//! Mixtral (Jiang et al. 2024): Mistral with a mixture of experts instead of an MLP.
//! Reference: transformers' `models/mixtral/modeling_mixtral.py`.

use super::blocks::{
    CHOSEN, DecoderDefaults, DecoderKeys, EXPERTS, Embed, FinalNorm, Head, Moe, MoeNames, SelfAttention,
    Target, load_rms_norm, normed,
};
use super::settings::{Read, Settings, WINDOW};
use super::{
    Architecture, Batch, Capacity, ExpertNames, ExpertsShape, FromSettings, Loader, Model, ModelError,
    ModelShape, Names, Scratch, Shown,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{RmsNorm, Scoring};

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

pub struct Config {
    keys: DecoderKeys,
    sliding_window: Option<usize>,
    experts: ExpertsShape,
}

impl FromSettings for Config {
    const ALSO: &'static [(&'static str, &'static str)] = &[("num_experts", "num_local_experts")];

    fn read(s: &Settings<'_>) -> Read<Self> {
        let keys = DecoderKeys::read(s, &DEFAULTS)?;
        let n_experts = s.whole("num_local_experts", EXPERTS, 8)?;
        Ok(Config {
            sliding_window: s.some_whole("sliding_window", WINDOW, None)?,
            experts: ExpertsShape {
                n_experts,
                n_chosen: s.whole(
                    "num_experts_per_tok",
                    1..=n_experts.min(*CHOSEN.end()),
                    2.min(n_experts),
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
    block_sparse_moe: Moe,
}

struct Mixtral {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let shape = self.keys.shape("mixtral", |_| self.sliding_window);
        ModelShape { experts: Some(self.experts.clone()), ..shape }
    }

    fn names(&self) -> Names {
        let names = self.keys.names();
        let n_experts = ("num_local_experts", self.experts.n_experts);
        let shape = [n_experts, ("hidden_size", self.keys.hidden_size)];
        let router = Shown { tensor: "layers.0.block_sparse_moe.gate.weight", shape };
        Names { shown: [names.shown, vec![router]].concat(), ..names }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let (n, eps) = (keys.hidden_size, keys.rms_norm_eps);
        let (act, tied) = (keys.hidden_act, keys.tie_word_embeddings);
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let root = loader.root(&self.names());
        let embedding = format!("{root}embed_tokens.weight");
        let tables = [embedding.as_str(), "lm_head.weight"];
        let embed_tokens = loader.embedding(tables, [keys.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(keys.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            let post = name("post_attention_layernorm.weight");
            let (router, experts) = (name("block_sparse_moe.gate"), name("block_sparse_moe.experts"));
            let names = |parts, joined| ExpertNames { prefix: &experts, parts, joined, transposed: false };
            // The gate, the other half, and the second product.
            let experts = [names(&["w1", "w3"], "gate_up_proj"), names(&["w2"], "down_proj")];
            let moe = MoeNames { router: &router, experts, bias: false };
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
                block_sparse_moe: Moe::load(loader, moe, n, &self.experts, act, SCORING)?,
            });
        }
        let norm = FinalNorm::Rms(load_rms_norm(loader, &format!("{root}norm.weight"), n, eps)?);
        let head = Head::load(loader, tables, norm, &embed_tokens, tied)?;
        Ok(Box::new(Mixtral { shape, embed_tokens: Embed::tokens(embed_tokens), layers, head }))
    }
}

impl Model for Mixtral {
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
        layer.block_sparse_moe.record(rec, b.n, &layer.post_attention_layernorm, a);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
    }
}
