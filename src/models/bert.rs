//! BERT and models of the same shape: MiniLM, BGE, E5, GTE (Devlin et al. 2019).
//! Reference: transformers' `models/bert/modeling_bert.py`.

use serde::Deserialize;

use super::blocks::{
    ClassificationHead, Embed, HeadNames, LabelKeys, LayerNorm, Linear, Mlp, PostNormLayer, SelfAttention,
    Sequences,
};
use super::{
    Architecture, Batch, Capacity, Labels, Loader, Model, ModelError, ModelKind, ModelShape, Scratch,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Act, Attention, Lookup, Pooling};

/// The keys of `config.json` that BERT and RoBERTa share.
#[derive(Deserialize)]
pub struct Config {
    pub(super) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    #[serde(default = "one")]
    type_vocab_size: usize,
    #[serde(default = "eps")]
    layer_norm_eps: f32,
    hidden_act: String,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(flatten)]
    pub(super) labels: LabelKeys,
}

fn one() -> usize {
    1
}

fn eps() -> f32 {
    1e-12
}

impl Config {
    pub(super) fn shape(&self, architecture: &'static str) -> ModelShape {
        let n_heads = self.num_attention_heads;
        let head_dim = self.hidden_size / n_heads.max(1);
        let scale = (head_dim as f32).powf(-0.5);
        let n_kv_heads = n_heads;
        let attention =
            Attention { n_heads, n_kv_heads, head_dim, scale, causal: false, window: None, softcap: None };
        ModelShape {
            architecture,
            kind: ModelKind::Encoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: vec![attention; self.num_hidden_layers],
            intermediate_size: self.intermediate_size,
            has_gate: false,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: false,
            audio: None,
        }
    }

    /// The activation function, after a check that the other options of the config are supported.
    ///
    /// # Errors
    /// [`ModelError::Unsupported`].
    fn act(&self) -> Result<Act, ModelError> {
        let unsupported = |key, found: &str, expected: &str| {
            Err(ModelError::Unsupported { key, found: found.into(), expected: expected.into() })
        };
        if let Some(found) = self.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return unsupported("position_embedding_type", found, "`absolute`");
        }
        if self.is_decoder {
            return unsupported("is_decoder", "true", "an encoder");
        }
        super::blocks::act("hidden_act", &self.hidden_act)
    }
}

/// The encoder of BERT and RoBERTa.
pub(super) struct Bert {
    shape: ModelShape,
    words: Embed,
    positions: Embed,
    /// All tokens have the first type.
    types: Embed,
    norm: LayerNorm,
    layers: Vec<PostNormLayer>,
    head: Option<ClassificationHead>,
}

impl Bert {
    /// Loads an encoder of this shape, whose tensors' names begin with `root`, and the head with `head`. `positions`
    /// gives a token's row in the position table.
    ///
    /// # Errors
    /// [`ModelError::Weights`], [`ModelError::Unsupported`].
    pub fn load(
        loader: &mut Loader,
        config: &Config,
        shape: ModelShape,
        root: &str,
        positions: Lookup,
        head: impl FnOnce(&mut Loader) -> Result<Option<ClassificationHead>, ModelError>,
    ) -> Result<Self, ModelError> {
        let act = config.act()?;
        let head = head(loader)?;
        let (n, n_inner, eps) = (shape.hidden_size, shape.intermediate_size, config.layer_norm_eps);
        let table = |part: &str| format!("{root}embeddings.{part}_embeddings.weight");
        let words = loader.table(&table("word"), [shape.vocab_size, n])?;
        let position = loader.as_stored(&table("position"), [config.max_position_embeddings, n])?;
        let types = loader.as_stored(&table("token_type"), [config.type_vocab_size, n])?;
        let norm = LayerNorm::load(loader, &format!("{root}embeddings.LayerNorm"), n, true, eps)?;
        let mut layers = Vec::with_capacity(shape.n_layers());
        for (i, attention) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}encoder.layer.{i}.{part}");
            let [q, k, v] = ["attention.self.query", "attention.self.key", "attention.self.value"].map(name);
            layers.push(PostNormLayer {
                attention: SelfAttention {
                    shape: *attention,
                    qkv: Linear::stack(loader, &[(&q, n), (&k, n), (&v, n)], n, true)?,
                    out: Linear::load(loader, &name("attention.output.dense"), [n, n], true)?,
                    head_norm: None,
                    rotary: None,
                },
                attention_norm: LayerNorm::load(loader, &name("attention.output.LayerNorm"), n, true, eps)?,
                mlp: Mlp {
                    act,
                    up: Linear::load(loader, &name("intermediate.dense"), [n_inner, n], true)?,
                    down: Linear::load(loader, &name("output.dense"), [n, n_inner], true)?,
                },
                mlp_norm: LayerNorm::load(loader, &name("output.LayerNorm"), n, true, eps)?,
            });
        }
        // Row indices that some versions of transformers store, and heads of pretraining.
        for name in ["embeddings.position_ids", "embeddings.token_type_ids", "pooler."] {
            loader.ignore(&format!("{root}{name}"));
        }
        for name in ["cls.", "lm_head.", "vocab_"] {
            loader.ignore(name);
        }
        Ok(Bert {
            shape,
            words: Embed::tokens(words),
            positions: Embed::added(position, positions),
            types: Embed::added(types, Lookup::AddRow(0)),
            norm,
            layers,
            head,
        })
    }
}

impl Model for Bert {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        ClassificationHead::scratch(self.head.as_ref(), gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let a = &s.a;
        for table in [&self.words, &self.positions, &self.types] {
            table.record(rec, b, &a.h);
        }
        self.norm.record(rec, &a.h, &a.x, b.n.count());
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.layers[i].record(rec, b, &b.kv[i], &s.a);
    }

    fn rows(&self, _: &mut Recorder, _: &Batch<'_>, s: &mut Scratch) -> Tensor {
        s.a.x.clone()
    }

    fn classify(&self, rec: &mut Recorder, spans: &Tensor, n_seqs: usize, s: &mut Scratch) -> Option<Tensor> {
        let sequences = Sequences { x: &s.a.x, spans, n_seqs };
        Some(self.head.as_ref()?.record(rec, sequences, s.labels.as_ref()?))
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        Config::shape(self, "bert")
    }

    fn labels(&self) -> Result<Option<Labels>, ModelError> {
        self.labels.labels()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..Architecture::shape(self) };
        let root = if loader.has("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        let head = |loader: &mut Loader| {
            let Some(labels) = self.labels.labels()? else { return Ok(None) };
            let dense = format!("{root}pooler.dense");
            let names = HeadNames { dense: &dense, dense_bias: true, norm: None, out: "classifier" };
            let sizes = [self.hidden_size, labels.names.len()];
            ClassificationHead::load(loader, names, Pooling::First, Act::Tanh, sizes).map(Some)
        };
        Ok(Box::new(Bert::load(loader, self, shape, root, Lookup::AddPosition, head)?))
    }
}
