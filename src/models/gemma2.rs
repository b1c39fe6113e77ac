//! Gemma 2 (Gemma Team 2024): norms before and after attention and MLP, caps on scores and logits, and a window in every
//! other layer. Reference: transformers' `models/gemma2/modeling_gemma2.py`.

use super::blocks::{
    DecoderDefaults, DecoderKeys, Embed, FinalNorm, Head, LayerType, Mlp, SelfAttention, added,
    load_rms_norm, normed,
};
use super::settings::{CAP, Read, Settings, WINDOW};
use super::{
    Architecture, Batch, Capacity, FromSettings, Loader, Model, ModelError, ModelShape, Names, Scratch,
    lm_head,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{HeadNorm, RmsNorm, Rotary};

/// The defaults of transformers' `Gemma2Config`.
const DEFAULTS: DecoderDefaults = DecoderDefaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    num_hidden_layers: 26,
    num_attention_heads: 8,
    num_key_value_heads: Some(4),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    rms_norm_eps: 1e-6,
    hidden_act: ("hidden_activation", "gelu_pytorch_tanh"),
    tie_word_embeddings: true,
    rope_theta: 10_000.0,
    original_max_position_embeddings: None,
};

/// What Gemma 2 and 3 share.
pub struct Keys {
    pub decoder: DecoderKeys,
    attention_bias: bool,
    query_pre_attn_scalar: f64,
    sliding_window: Option<usize>,
    pub layer_types: Vec<LayerType>,
    final_logit_softcapping: Option<f64>,
    /// Added to the weights of norms, unless a file says that they have it added already.
    pub norm_offset: f32,
}

impl Keys {
    /// Reads the keys. By default, each `every`-th layer sees all keys.
    pub fn read(
        s: &Settings<'_>,
        default: &DecoderDefaults,
        every: usize,
        final_cap: Option<f64>,
    ) -> Read<Keys> {
        let decoder = DecoderKeys::read(s, default)?;
        Ok(Keys {
            attention_bias: s.flag("attention_bias", false)?,
            query_pre_attn_scalar: s.real("query_pre_attn_scalar", 1e-3..=1e6, 256.0)?,
            sliding_window: s.some_whole("sliding_window", WINDOW, Some(4096))?,
            layer_types: LayerType::read_every(s, decoder.num_hidden_layers, every)?,
            final_logit_softcapping: s.real_or_none("final_logit_softcapping", CAP, final_cap)?,
            norm_offset: s.some_real("norm_offset", 0.0..=1.0)?.unwrap_or(1.0) as f32,
            decoder,
        })
    }

    pub fn shape(&self, architecture: &'static str, score_cap: Option<f64>) -> ModelShape {
        let slides = |i: usize| self.layer_types[i] == LayerType::Sliding;
        let mut shape = self.decoder.shape(architecture, |i| self.sliding_window.filter(|_| slides(i)));
        for attention in &mut shape.attention {
            attention.scale = self.query_pre_attn_scalar.powf(-0.5) as f32;
            attention.softcap = score_cap.map(|cap| cap as f32);
        }
        shape
    }

    /// Loads the model. `queries_and_keys` gives the norms and the rotation of a layer, whose attention has the prefix.
    pub fn load(
        &self,
        loader: &mut Loader,
        shape: ModelShape,
        root: &str,
        mut queries_and_keys: impl FnMut(
            &mut Loader,
            usize,
            &str,
        ) -> Result<(Option<HeadNorm>, Rotary), ModelError>,
    ) -> Result<Box<dyn Model>, ModelError> {
        let keys = &self.decoder;
        let (n, n_inner) = (keys.hidden_size, keys.intermediate_size);
        let (act, tied) = (keys.hidden_act, keys.tie_word_embeddings);
        let rms_norm = |loader: &mut Loader, name: String| -> Result<RmsNorm, ModelError> {
            let norm = load_rms_norm(loader, &name, n, keys.rms_norm_eps)?;
            Ok(RmsNorm { offset: self.norm_offset, ..norm })
        };
        let embedding = format!("{root}embed_tokens.weight");
        let tables = [embedding.as_str(), lm_head(root)];
        let table = loader.embedding(tables, [keys.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(keys.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            let (head_norm, rotary) = queries_and_keys(loader, i, &name("self_attn"))?;
            let biases = [self.attention_bias; 2];
            layers.push(Layer {
                input_layernorm: rms_norm(loader, name("input_layernorm.weight"))?,
                self_attn: SelfAttention {
                    head_norm,
                    ..SelfAttention::load(loader, &name("self_attn"), *a, n, biases, rotary)?
                },
                post_attention_layernorm: rms_norm(loader, name("post_attention_layernorm.weight"))?,
                pre_feedforward_layernorm: rms_norm(loader, name("pre_feedforward_layernorm.weight"))?,
                mlp: Mlp::load_gated(loader, &name("mlp"), act, [n, n_inner], false)?,
                post_feedforward_layernorm: rms_norm(loader, name("post_feedforward_layernorm.weight"))?,
            });
        }
        let norm = FinalNorm::Rms(rms_norm(loader, format!("{root}norm.weight"))?);
        let head = Head {
            softcap: self.final_logit_softcapping.map(|cap| cap as f32),
            ..Head::load(loader, tables, norm, &table, tied)?
        };
        // transformers rounds the factor to the type that it computes in, here F32.
        let embed_tokens = Embed { scale: (n as f64).sqrt() as f32, ..Embed::tokens(table) };
        Ok(Box::new(Gemma { shape, embed_tokens, layers, head }))
    }
}

struct Layer {
    input_layernorm: RmsNorm,
    self_attn: SelfAttention,
    post_attention_layernorm: RmsNorm,
    pre_feedforward_layernorm: RmsNorm,
    mlp: Mlp,
    post_feedforward_layernorm: RmsNorm,
}

struct Gemma {
    shape: ModelShape,
    embed_tokens: Embed,
    layers: Vec<Layer>,
    head: Head,
}

impl Model for Gemma {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        Scratch::new(gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.embed_tokens.record(rec, b, &s.a.x);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a) = (&self.layers[i], &s.a);
        let (input, x) = (normed(&layer.input_layernorm, a), added(&layer.post_attention_layernorm, a));
        layer.self_attn.record(rec, b, &b.kv[i], input, x, a);
        let (input, x) =
            (normed(&layer.pre_feedforward_layernorm, a), added(&layer.post_feedforward_layernorm, a));
        layer.mlp.record(rec, b.n, input, x, a);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
    }
}

/// The key that makes an encoder of the model.
pub const BOTH_SIDES: &str = "use_bidirectional_attention";

pub fn refuse_both_sides(s: &Settings<'_>, sees_both: bool) -> Read<()> {
    if sees_both { Err(s.wrong(BOTH_SIDES, "`false`: only the decoder runs")) } else { Ok(()) }
}

pub struct Config {
    keys: Keys,
    attn_logit_softcapping: Option<f64>,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        refuse_both_sides(s, s.some_flag(BOTH_SIDES)?.unwrap_or(false))?;
        Ok(Config {
            keys: Keys::read(s, &DEFAULTS, 2, Some(30.0))?,
            attn_logit_softcapping: s.real_or_none("attn_logit_softcapping", CAP, Some(50.0))?,
        })
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        self.keys.shape("gemma2", self.attn_logit_softcapping)
    }

    fn names(&self) -> Names {
        self.keys.decoder.names()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let rotary = self.keys.decoder.rope.table(loader.gpu(), max_seq_len)?;
        let root = loader.root(&self.names());
        self.keys.load(loader, shape, root, |_, _, _| Ok((None, rotary.clone())))
    }
}
