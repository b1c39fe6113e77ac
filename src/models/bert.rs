//! BERT and models of the same shape: MiniLM, BGE, E5, GTE (Devlin et al. 2019).
//! Reference: transformers' `models/bert/modeling_bert.py`.

use super::blocks::{
    ClassificationHead, Embed, HeadKeys, HeadNames, Heads, LayerNorm, Linear, Mlp, PostNormLayer,
    SelfAttention, Sequences, act, read_labels,
};
use super::settings::{EPSILON, INNER_WIDTH, LAYERS, ROWS, Read, Settings, WIDTH};
use super::{
    Architecture, Batch, Capacity, FromSettings, Labels, Loader, Model, ModelError, ModelKind, ModelShape,
    Names, Scratch, Shown,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Act, Lookup, Pooling};

/// The keys of `config.json` that BERT and RoBERTa share.
pub struct Config {
    pub(super) hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    heads: Heads,
    vocab_size: usize,
    pub(super) max_position_embeddings: usize,
    type_vocab_size: usize,
    layer_norm_eps: f32,
    hidden_act: Act,
    pub(super) labels: Option<Labels>,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        Config::read_with(s, 30_522)
    }
}

impl Config {
    /// Reads the keys; the families differ in the default of `vocab_size`.
    pub(super) fn read_with(s: &Settings<'_>, vocab_size: usize) -> Read<Config> {
        s.one_of("position_embedding_type", &[("absolute", ())], "absolute")?;
        if s.flag("is_decoder", false)? {
            return Err(s.wrong("is_decoder", "`false`: only encoders run"));
        }
        let hidden_size = s.whole("hidden_size", WIDTH, 768)?;
        Ok(Config {
            hidden_size,
            intermediate_size: s.whole("intermediate_size", INNER_WIDTH, 3072)?,
            num_hidden_layers: s.whole("num_hidden_layers", LAYERS, 12)?,
            heads: Heads::read(s, HeadKeys::only("num_attention_heads", 12), hidden_size)?,
            vocab_size: s.whole("vocab_size", ROWS, vocab_size)?,
            max_position_embeddings: s.whole("max_position_embeddings", ROWS, 512)?,
            type_vocab_size: s.whole("type_vocab_size", ROWS, 2)?,
            layer_norm_eps: s.real("layer_norm_eps", EPSILON, 1e-12)? as f32,
            hidden_act: act(s, "hidden_act", "gelu")?,
            labels: read_labels(s)?,
        })
    }

    pub(super) fn shape(&self, architecture: &'static str) -> ModelShape {
        ModelShape {
            architecture,
            kind: ModelKind::Encoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: vec![self.heads.attention(false, None); self.num_hidden_layers],
            intermediate_size: self.intermediate_size,
            has_gate: false,
            hidden_act: self.hidden_act,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: false,
            experts: None,
            audio: None,
        }
    }

    pub(super) fn names(&self, prefix: &'static str) -> Names {
        let (hidden, inner) =
            (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size));
        let (words, positions, types) = (
            ("vocab_size", self.vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
            ("type_vocab_size", self.type_vocab_size),
        );
        Names {
            prefix,
            layers: vec![("encoder.layer.", "num_hidden_layers", self.num_hidden_layers)],
            shown: vec![
                Shown { tensor: "embeddings.word_embeddings.weight", shape: [words, hidden] },
                Shown { tensor: "embeddings.position_embeddings.weight", shape: [positions, hidden] },
                Shown { tensor: "embeddings.token_type_embeddings.weight", shape: [types, hidden] },
                Shown { tensor: "encoder.layer.0.intermediate.dense.weight", shape: [inner, hidden] },
            ],
        }
    }
}

/// The encoder of BERT and RoBERTa.
pub(super) struct Bert {
    shape: ModelShape,
    words: Embed,
    positions: Embed,
    /// The second text of a pair may have another type.
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
        let act = config.hidden_act;
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
                    sinks: None,
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
        self.words.record(rec, b, &a.h);
        self.positions.record(rec, b, &a.h);
        // A model with one type takes no other.
        let types = b.types.filter(|_| self.types.table.n_rows() > 1);
        self.types.record_types(rec, &Batch { types, ..b.clone() }, &a.h);
        self.norm.record(rec, &a.h, &a.x, b.n.count());
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.layers[i].record(rec, b, &b.kv[i], &s.a);
    }

    fn outputs(&self, _: &mut Recorder, _: &Batch<'_>, s: &mut Scratch) -> Tensor {
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

    fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }

    fn names(&self) -> Names {
        Config::names(self, "bert.")
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..Architecture::shape(self) };
        let root = loader.root(&Architecture::names(self));
        let head = |loader: &mut Loader| {
            let Some(labels) = &self.labels else { return Ok(None) };
            let dense = format!("{root}pooler.dense");
            let names = HeadNames { dense: &dense, dense_bias: true, norm: None, out: "classifier" };
            let sizes = [self.hidden_size, labels.names.len()];
            ClassificationHead::load(loader, names, Pooling::First, Act::Tanh, sizes).map(Some)
        };
        Ok(Box::new(Bert::load(loader, self, shape, root, Lookup::AddPosition, head)?))
    }
}
