//! The encoder that BERT's descendants share: attention, add, norm, feed-forward, add, norm (Devlin et al. 2019).

use super::{ClassificationHead, LayerNorm, Mlp, SelfAttention};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::models::{Batch, Capacity, Loader, Model, ModelError, ModelShape, Scratch};
use crate::ops::{self, Act, Lookup};

/// What the weights are called, after `root`.
#[derive(Clone, Debug)]
pub struct PostNormNames<'a> {
    /// What all names begin with, the dot included.
    pub root: &'a str,
    /// Prefix of the layers, whose numbers follow.
    pub layer: &'a str,
    /// Queries, keys, values.
    pub qkv: [&'a str; 3],
    /// The output of attention, and the norm after it.
    pub out: [&'a str; 2],
    /// The feed-forward part's two layers.
    pub mlp: [&'a str; 2],
    /// The norm after them.
    pub norm: &'a str,
}

impl<'a> PostNormNames<'a> {
    /// The names of BERT, which RoBERTa kept.
    pub fn bert(root: &'a str) -> Self {
        PostNormNames {
            root,
            layer: "encoder.layer",
            qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
            out: ["attention.output.dense", "attention.output.LayerNorm"],
            mlp: ["intermediate.dense", "output.dense"],
            norm: "output.LayerNorm",
        }
    }
}

/// Sizes and options beyond the shape.
#[derive(Clone, Copy, Debug)]
pub struct PostNormKeys {
    /// Activation of the feed-forward part.
    pub act: Act,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Rows of the position table.
    pub n_positions: usize,
    /// Row of the first position.
    pub first_position: usize,
    /// Rows of the token-type table, if there is one; all tokens have the first type.
    pub n_types: Option<usize>,
}

#[derive(Debug)]
struct Layer {
    attention: SelfAttention,
    attention_norm: LayerNorm,
    mlp: Mlp,
    mlp_norm: LayerNorm,
}

/// The whole, with a classification head or without.
#[derive(Debug)]
pub struct PostNormEncoder {
    shape: ModelShape,
    first_position: usize,
    words: Tensor,
    positions: Tensor,
    types: Option<Tensor>,
    norm: LayerNorm,
    layers: Vec<Layer>,
    head: Option<ClassificationHead>,
}

impl PostNormEncoder {
    /// Loads the weights; the head is the architecture's own.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn load(
        loader: &mut Loader,
        shape: &ModelShape,
        keys: PostNormKeys,
        names: &PostNormNames<'_>,
        head: Option<ClassificationHead>,
        max_seq_len: usize,
    ) -> Result<Self, ModelError> {
        let (n, n_inner, eps, root) = (shape.hidden_size, shape.intermediate_size, keys.eps, names.root);
        let table = |part: &str| format!("{root}embeddings.{part}_embeddings.weight");
        let words = loader.table(&table("word"), [shape.vocab_size, n])?;
        let positions = loader.as_stored(&table("position"), [keys.n_positions, n])?;
        let types = match keys.n_types {
            Some(n_types) => Some(loader.as_stored(&table("token_type"), [n_types, n])?),
            None => None,
        };
        let norm = LayerNorm::load(loader, &format!("{root}embeddings.LayerNorm"), n, true, eps)?;
        let mut layers = Vec::with_capacity(shape.n_layers());
        for (i, attention) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}{}.{i}.{part}", names.layer);
            let weight = |part: &str| name(part) + ".weight";
            let bias = |part: &str| name(part) + ".bias";
            let (weights, biases) = (names.qkv.map(weight), names.qkv.map(bias));
            let [out, out_norm] = names.out;
            let [up, down] = names.mlp;
            layers.push(Layer {
                attention: SelfAttention {
                    shape: *attention,
                    qkv: loader.stack(&weights.each_ref().map(|name| (&**name, n)), n)?,
                    qkv_bias: Some(loader.vectors(&biases.each_ref().map(|name| (&**name, n)))?),
                    out: loader.matrix(&weight(out), [n, n])?,
                    out_bias: Some(loader.vector(&bias(out), n)?),
                    head_norm: None,
                    rotary: None,
                },
                attention_norm: LayerNorm::load(loader, &name(out_norm), n, true, eps)?,
                mlp: Mlp {
                    act: keys.act,
                    up: loader.matrix(&weight(up), [n_inner, n])?,
                    up_bias: Some(loader.vector(&bias(up), n_inner)?),
                    down: loader.matrix(&weight(down), [n, n_inner])?,
                    down_bias: Some(loader.vector(&bias(down), n)?),
                },
                mlp_norm: LayerNorm::load(loader, &name(names.norm), n, true, eps)?,
            });
        }
        // Numbers of rows that some versions of transformers store, and heads of pretraining.
        for name in ["embeddings.position_ids", "embeddings.token_type_ids", "pooler."] {
            loader.ignore(&format!("{root}{name}"));
        }
        for name in ["cls.", "lm_head.", "vocab_"] {
            loader.ignore(name);
        }
        let shape = ModelShape { max_seq_len, ..shape.clone() };
        let first_position = keys.first_position;
        Ok(PostNormEncoder { shape, first_position, words, positions, types, norm, layers, head })
    }
}

impl Model for PostNormEncoder {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        let head = self.head.as_ref().map(|head| head.scratch(gpu, capacity.max_seqs));
        Ok(Scratch {
            labels: head.transpose()?,
            ..Scratch::new(gpu, &self.shape, capacity.without_logits())?
        })
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let h = &s.a.h;
        let mut look_up = |lookup, table| ops::embed(rec, lookup, b.rows, b.tokens, table, 1.0, h, b.n);
        look_up(Lookup::Token, &self.words);
        look_up(Lookup::AddPositionAfter(self.first_position), &self.positions);
        if let Some(types) = &self.types {
            look_up(Lookup::AddRow(0), types);
        }
        self.norm.record(rec, h, &s.a.x, b.n.count());
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a, n_rows) = (&self.layers[i], &s.a, b.n.count());
        layer.attention.record(i, rec, b, (&a.x).into(), a);
        layer.attention_norm.record(rec, &a.x, &a.h, n_rows);
        layer.mlp.record_onto(rec, b, (&a.h).into(), a, &a.h);
        layer.mlp_norm.record(rec, &a.h, &a.x, n_rows);
    }

    fn rows(&self, _: &mut Recorder, _: &Batch<'_>, s: &mut Scratch) -> Tensor {
        s.a.x.clone()
    }

    fn classify(&self, rec: &mut Recorder, spans: &Tensor, n_seqs: usize, s: &mut Scratch) -> Option<Tensor> {
        let (head, labels) = (self.head.as_ref()?, s.labels.as_ref()?);
        Some(head.record(rec, &s.a.x, spans, n_seqs, labels))
    }
}
