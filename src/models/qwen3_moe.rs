//! Qwen 3's mixtures of experts (Yang et al. 2025): Qwen 3 with experts instead of an MLP in all or some layers.
//! Reference: transformers' `models/qwen3_moe/modeling_qwen3_moe.py`.

use super::blocks::{
    CHOSEN, DecoderDefaults, DecoderKeys, EXPERTS, Embed, FeedForward, FinalNorm, Head, Mlp, Moe, MoeNames,
    SelfAttention, Target, load_rms_norm, normed,
};
use super::settings::{INNER_WIDTH, LAYERS, Read, Settings, WINDOW};
use super::{
    Architecture, Batch, Capacity, ExpertNames, ExpertsShape, FromSettings, Loader, Model, ModelError,
    ModelShape, Names, Scratch, Shown,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Act, HeadNorm, RmsNorm, Scoring};

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
        let n_experts = s.whole("num_experts", EXPERTS, 128)?;
        Ok(Config {
            attention_bias: s.flag("attention_bias", false)?,
            sliding_window: s.some_whole("sliding_window", WINDOW, Some(4096))?.filter(|_| slides),
            experts: ExpertsShape {
                n_experts,
                n_chosen: s.whole(
                    "num_experts_per_tok",
                    1..=n_experts.min(*CHOSEN.end()),
                    8.min(n_experts),
                )?,
                intermediate_size: s.whole("moe_intermediate_size", INNER_WIDTH, 768)?,
                layers,
            },
            norm_topk_prob: s.flag("norm_topk_prob", false)?,
            keys,
        })
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: FeedForward,
}

struct Qwen3Moe {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
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
        let (keys, names) = (&self.keys, self.keys.names());
        let (n, hidden) = (self.experts.n_experts, ("hidden_size", keys.hidden_size));
        let router = Shown { tensor: "layers.0.mlp.gate.weight", shape: [("num_experts", n), hidden] };
        Names { shown: [names.shown, vec![router]].concat(), ..names }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let (keys, shape) = (&self.keys, ModelShape { max_seq_len, ..self.shape() });
        let (n, n_inner, eps) = (keys.hidden_size, keys.intermediate_size, keys.rms_norm_eps);
        let (act, tied) = (keys.hidden_act, keys.tie_word_embeddings);
        let head_dim = keys.heads.head_dim;
        let rotary = keys.rope.table(loader.gpu(), max_seq_len)?;
        let root = loader.root(&self.names());
        let embedding = format!("{root}embed_tokens.weight");
        let tables = [embedding.as_str(), "lm_head.weight"];
        let embed_tokens = loader.embedding(tables, [keys.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(keys.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            let post = name("post_attention_layernorm.weight");
            layers.push(Layer {
                input_layernorm: load_rms_norm(loader, &name("input_layernorm.weight"), n, eps)?,
                self_attn: SelfAttention {
                    head_norm: Some(HeadNorm {
                        q: loader.vector(&name("self_attn.q_norm.weight"), head_dim)?,
                        k: loader.vector(&name("self_attn.k_norm.weight"), head_dim)?,
                        eps,
                        offset: 0.0,
                    }),
                    ..SelfAttention::load(
                        loader,
                        &name("self_attn"),
                        *a,
                        n,
                        [self.attention_bias; 2],
                        rotary.clone(),
                    )?
                },
                post_attention_layernorm: load_rms_norm(loader, &post, n, eps)?,
                mlp: match shape.experts_of(i) {
                    Some(experts) => {
                        let scoring = Scoring { sigmoid: false, normalised: self.norm_topk_prob };
                        FeedForward::Sparse(moe(loader, &name("mlp"), n, experts, act, scoring)?)
                    }
                    None => {
                        FeedForward::Dense(Mlp::load_gated(loader, &name("mlp"), act, [n, n_inner], false)?)
                    }
                },
            });
        }
        let norm = FinalNorm::Rms(load_rms_norm(loader, &format!("{root}norm.weight"), n, eps)?);
        let head = Head::load(loader, tables, norm, &embed_tokens, tied)?;
        Ok(Box::new(Qwen3Moe { shape, embed_tokens: Embed::tokens(embed_tokens), layers, head }))
    }
}

/// Loads a layer's experts.
fn moe(
    loader: &mut Loader,
    prefix: &str,
    hidden_size: usize,
    shape: &ExpertsShape,
    act: Act,
    scoring: Scoring,
) -> Result<Moe, ModelError> {
    let (router, experts) = (format!("{prefix}.gate"), format!("{prefix}.experts"));
    let names = |parts, joined| ExpertNames { prefix: &experts, parts, joined, transposed: false };
    let names = MoeNames {
        router: &router,
        experts: [names(&["gate_proj", "up_proj"], "gate_up_proj"), names(&["down_proj"], "down_proj")],
        bias: false,
    };
    Moe::load(loader, names, hidden_size, shape, act, scoring)
}

impl Model for Qwen3Moe {
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
