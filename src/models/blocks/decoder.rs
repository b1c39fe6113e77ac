//! What decoders share: the model around the layers, its loading, and the layer of Llama.

use super::{
    DecoderKeys, Embed, FeedForward, FinalNorm, Head, Linear, Mlp, Moe, MoeNames, SelfAttention, Target,
    load_rms_norm, normed,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::{
    Activations, Batch, Capacity, ExpertsShape, Loader, Model, ModelError, ModelShape, Scratch, lm_head,
};
use crate::ops::{Act, Attention, HeadNorm, KvLayer, RmsNorm, Rotary, Scoring};

/// Embedding, layers, final norm and head.
#[derive(Debug)]
pub struct Decoder<L> {
    /// Its shape, with the context that it was loaded for.
    pub shape: ModelShape,
    /// The table of tokens, whose rows start the residual stream.
    pub embed_tokens: Embed,
    /// A table whose rows are added to it.
    pub embed_positions: Option<Embed>,
    /// The layers.
    pub layers: Vec<L>,
    /// The final norm and the head.
    pub head: Head,
}

/// A layer of a [`Decoder`].
pub trait DecoderLayer: Send + Sync {
    /// Records the layer on the residual stream `a.x`. Its keys and values go to `kv`.
    fn record(&self, rec: &mut Recorder, b: &Batch<'_>, kv: &KvLayer, a: &Activations);
}

impl<L: DecoderLayer> Model for Decoder<L> {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        Scratch::new(gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.embed_tokens.record(rec, b, &s.a.x);
        if let Some(positions) = &self.embed_positions {
            positions.record(rec, b, &s.a.x);
        }
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.layers[i].record(rec, b, &b.kv[i], &s.a);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
    }
}

impl<L> Decoder<L> {
    /// Loads a decoder whose tensors have the names of Llama's: the embedding, each layer by `layer`, the final norm, and
    /// the head. `shape` has the context to load for.
    ///
    /// # Errors
    /// [`ModelError::Weights`], and those of `layer`.
    pub fn load(
        loader: &mut Loader,
        keys: &DecoderKeys,
        shape: ModelShape,
        mut layer: impl FnMut(&mut LayerLoader<'_>) -> Result<L, ModelError>,
    ) -> Result<Self, ModelError> {
        let root = loader.root(&keys.names());
        let (embedding, tied) = (format!("{root}embed_tokens.weight"), keys.tie_word_embeddings);
        let tables = [embedding.as_str(), lm_head(root)];
        let table = loader.embedding(tables, [keys.vocab_size, keys.hidden_size], tied)?;
        let mut layers = Vec::with_capacity(shape.n_layers());
        for (i, attention) in shape.attention.iter().enumerate() {
            let prefix = format!("{root}layers.{i}.");
            layers.push(layer(&mut LayerLoader { loader, keys, i, attention: *attention, prefix })?);
        }
        let norm = FinalNorm::Rms(keys.load_norm(loader, &format!("{root}norm.weight"))?);
        let head = Head::load(loader, tables, norm, &table, tied)?;
        Ok(Decoder { shape, embed_tokens: Embed::tokens(table), embed_positions: None, layers, head })
    }
}

impl DecoderKeys {
    fn load_norm(&self, loader: &mut Loader, name: &str) -> Result<RmsNorm, ModelError> {
        let norm = load_rms_norm(loader, name, self.hidden_size, self.rms_norm_eps)?;
        Ok(RmsNorm { offset: self.norm_offset, ..norm })
    }
}

/// Loads the parts of one layer of a [`Decoder`], in the sizes of its keys. Each method takes a part's name in the layer,
/// and fails with [`ModelError::Weights`].
pub struct LayerLoader<'a> {
    /// The model's loader.
    pub loader: &'a mut Loader,
    /// The layer's number, from 0.
    pub i: usize,
    /// The layer's heads.
    pub attention: Attention,
    keys: &'a DecoderKeys,
    /// What the names of the layer's tensors begin with, with its dot.
    prefix: String,
}

impl LayerLoader<'_> {
    /// The name of a part in the checkpoint.
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.prefix)
    }

    /// A norm of the residual stream, or of what is added to it.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn norm(&mut self, part: &str) -> Result<RmsNorm, ModelError> {
        let name = self.name(&format!("{part}.weight"));
        self.keys.load_norm(self.loader, &name)
    }

    /// `self_attn`, as [`SelfAttention::load`] has it.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn self_attn(&mut self, biases: [bool; 2], rotary: &Rotary) -> Result<SelfAttention, ModelError> {
        let (name, n) = (self.name("self_attn"), self.keys.hidden_size);
        SelfAttention::load(self.loader, &name, self.attention, n, biases, rotary.clone())
    }

    /// The norms `q_norm` and `k_norm` of `self_attn`, with `n_q` and `n_k` elements.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn head_norm(&mut self, [n_q, n_k]: [usize; 2]) -> Result<HeadNorm, ModelError> {
        let [q, k] = ["q_norm", "k_norm"].map(|part| self.name(&format!("self_attn.{part}.weight")));
        Ok(HeadNorm {
            q: self.loader.vector(&q, n_q)?,
            k: self.loader.vector(&k, n_k)?,
            eps: self.keys.rms_norm_eps,
            offset: self.keys.norm_offset,
        })
    }

    /// A product `[n_out, n_in]` with no biases.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn linear(&mut self, part: &str, shape: [usize; 2]) -> Result<Linear, ModelError> {
        let name = self.name(part);
        Linear::load(self.loader, &name, shape, false)
    }

    /// `mlp`, with a gate.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn mlp(&mut self, bias: bool) -> Result<Mlp, ModelError> {
        let (name, keys) = (self.name("mlp"), self.keys);
        let widths = [keys.hidden_size, keys.intermediate_size];
        Mlp::load_gated(self.loader, &name, keys.hidden_act, widths, bias)
    }

    /// A mixture of experts.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn experts(
        &mut self,
        names: MoeNames<'_>,
        shape: &ExpertsShape,
        act: Act,
        scoring: Scoring,
    ) -> Result<Moe, ModelError> {
        let [router, experts] = [names.router, names.experts].map(|part| self.name(part));
        let names = MoeNames { router: &router, experts: &experts, ..names };
        Moe::load(self.loader, names, self.keys.hidden_size, shape, act, scoring)
    }
}

/// The layer of Llama, and of those of its descendants that differ only in its parts: norm, attention, norm, MLP.
#[derive(Debug)]
pub struct PreNormLayer {
    /// The norm before attention.
    pub input_layernorm: RmsNorm,
    /// Attention.
    pub self_attn: SelfAttention,
    /// The norm before the second half.
    pub post_attention_layernorm: RmsNorm,
    /// The second half.
    pub mlp: FeedForward,
}

impl DecoderLayer for PreNormLayer {
    fn record(&self, rec: &mut Recorder, b: &Batch<'_>, kv: &KvLayer, a: &Activations) {
        self.self_attn.record(rec, b, kv, normed(&self.input_layernorm, a), Target::Add(&a.x), a);
        self.mlp.record(rec, b.n, &self.post_attention_layernorm, a);
    }
}
