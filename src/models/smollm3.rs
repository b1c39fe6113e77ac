//! SmolLM3 (Bakouch et al. 2025): Llama with no rotation in some layers (Yang et al. 2025, "Rope to Nope and Back Again").
//! Reference: transformers' `models/smollm3/modeling_smollm3.py`.

use super::blocks::{
    DecoderDefaults, DecoderKeys, Embed, FinalNorm, Head, LayerType, Mlp, SelfAttention, Target,
    load_rms_norm, normed,
};
use super::settings::{ROWS, Read, Settings, WINDOW};
use super::{
    Architecture, Batch, Capacity, FromSettings, Loader, Model, ModelError, ModelShape, Names, Scratch,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::RmsNorm;

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

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

struct SmolLm3 {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
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
        let (n, n_inner, eps) = (keys.hidden_size, keys.intermediate_size, keys.rms_norm_eps);
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
            layers.push(Layer {
                input_layernorm: load_rms_norm(loader, &name("input_layernorm.weight"), n, eps)?,
                self_attn: SelfAttention {
                    rotary: self.rotates[i].then(|| rotary.clone()),
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
                mlp: Mlp::load_gated(loader, &name("mlp"), act, [n, n_inner], self.mlp_bias)?,
            });
        }
        let norm = FinalNorm::Rms(load_rms_norm(loader, &format!("{root}norm.weight"), n, eps)?);
        let head = Head::load(loader, tables, norm, &embed_tokens, tied)?;
        Ok(Box::new(SmolLm3 { shape, embed_tokens: Embed::tokens(embed_tokens), layers, head }))
    }
}

impl Model for SmolLm3 {
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
