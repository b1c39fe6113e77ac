//! Gemma 2 (Gemma Team 2024): norms before and after attention and MLP, caps on scores and logits, and a window in every
//! other layer. Reference: transformers' `models/gemma2/modeling_gemma2.py`.

use super::blocks::{
    Decoder, DecoderDefaults, DecoderKeys, DecoderLayer, LayerLoader, LayerType, Mlp, SelfAttention, added,
    normed,
};
use super::settings::{CAP, Read, Settings, WINDOW};
use super::{Activations, Architecture, Batch, FromSettings, Loader, Model, ModelError, ModelShape, Names};
use crate::gpu::Recorder;
use crate::ops::{HeadNorm, KvLayer, RmsNorm, Rotary};

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
}

impl Keys {
    /// Reads the keys. By default, each `every`-th layer sees all keys.
    pub fn read(
        s: &Settings<'_>,
        default: &DecoderDefaults,
        every: usize,
        final_cap: Option<f64>,
    ) -> Read<Keys> {
        let mut decoder = DecoderKeys::read(s, default)?;
        // Unless a file says that the weights have it added already.
        decoder.norm_offset = s.some_real("norm_offset", 0.0..=1.0)?.unwrap_or(1.0) as f32;
        Ok(Keys {
            attention_bias: s.flag("attention_bias", false)?,
            query_pre_attn_scalar: s.real("query_pre_attn_scalar", 1e-3..=1e6, 256.0)?,
            sliding_window: s.some_whole("sliding_window", WINDOW, Some(4096))?,
            layer_types: LayerType::read_every(s, decoder.num_hidden_layers, every)?,
            final_logit_softcapping: s.real_or_none("final_logit_softcapping", CAP, final_cap)?,
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

    /// Loads the model. `queries_and_keys` gives the norms and the rotation of a layer.
    pub fn load(
        &self,
        loader: &mut Loader,
        shape: ModelShape,
        mut queries_and_keys: impl FnMut(&mut LayerLoader<'_>) -> Result<(Option<HeadNorm>, Rotary), ModelError>,
    ) -> Result<Box<dyn Model>, ModelError> {
        let mut model = Decoder::load(loader, &self.decoder, shape, |layer| {
            let (head_norm, rotary) = queries_and_keys(layer)?;
            Ok(Layer {
                input_layernorm: layer.norm("input_layernorm")?,
                self_attn: SelfAttention { head_norm, ..layer.self_attn([self.attention_bias; 2], &rotary)? },
                post_attention_layernorm: layer.norm("post_attention_layernorm")?,
                pre_feedforward_layernorm: layer.norm("pre_feedforward_layernorm")?,
                mlp: layer.mlp(false)?,
                post_feedforward_layernorm: layer.norm("post_feedforward_layernorm")?,
            })
        })?;
        // transformers rounds the factor to the type that it computes in, here F32.
        model.embed_tokens.scale = (self.decoder.hidden_size as f64).sqrt() as f32;
        model.head.softcap = self.final_logit_softcapping.map(|cap| cap as f32);
        Ok(Box::new(model))
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

impl DecoderLayer for Layer {
    fn record(&self, rec: &mut Recorder, b: &Batch<'_>, kv: &KvLayer, a: &Activations) {
        let (input, x) = (normed(&self.input_layernorm, a), added(&self.post_attention_layernorm, a));
        self.self_attn.record(rec, b, kv, input, x, a);
        let (input, x) =
            (normed(&self.pre_feedforward_layernorm, a), added(&self.post_feedforward_layernorm, a));
        self.mlp.record(rec, b.n, input, x, a);
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
        self.keys.load(loader, shape, |_| Ok((None, rotary.clone())))
    }
}
