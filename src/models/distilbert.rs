//! DistilBERT (Sanh et al. 2019): BERT without token types and pooler, half as deep.
//! Reference: transformers' `models/distilbert/modeling_distilbert.py`.

use super::blocks::{
    ClassificationHead, Embed, HeadKeys, HeadNames, Heads, LayerNorm, Linear, Mlp, PostNormLayer,
    SelfAttention, Sequences, act, read_labels,
};
use super::settings::{INNER_WIDTH, LAYERS, ROWS, Read, Settings, WIDTH};
use super::{
    Architecture, Batch, Capacity, FromSettings, Labels, Loader, Model, ModelError, ModelKind, ModelShape,
    Names, Scratch, Shown,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Act, Lookup, Pooling};

pub struct Config {
    dim: usize,
    hidden_dim: usize,
    n_layers: usize,
    heads: Heads,
    vocab_size: usize,
    max_position_embeddings: usize,
    activation: Act,
    labels: Option<Labels>,
}

impl FromSettings for Config {
    const ALSO: &'static [(&'static str, &'static str)] =
        &[("hidden_size", "dim"), ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")];

    fn read(s: &Settings<'_>) -> Read<Self> {
        let dim = s.whole("dim", WIDTH, 768)?;
        Ok(Config {
            dim,
            hidden_dim: s.whole("hidden_dim", INNER_WIDTH, 3072)?,
            n_layers: s.whole("n_layers", LAYERS, 6)?,
            heads: Heads::read(s, HeadKeys::only("n_heads", 12), dim)?,
            vocab_size: s.whole("vocab_size", ROWS, 30_522)?,
            max_position_embeddings: s.whole("max_position_embeddings", ROWS, 512)?,
            activation: act(s, "activation", "gelu")?,
            labels: read_labels(s)?,
        })
    }
}

/// The epsilon of the norms, for which the config has no key.
const EPS: f32 = 1e-12;

struct DistilBert {
    shape: ModelShape,
    words: Embed,
    positions: Embed,
    norm: LayerNorm,
    layers: Vec<PostNormLayer>,
    head: Option<ClassificationHead>,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        ModelShape {
            architecture: "distilbert",
            kind: ModelKind::Encoder,
            hidden_size: self.dim,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: vec![self.heads.attention(false, None); self.n_layers],
            intermediate_size: self.hidden_dim,
            has_gate: false,
            hidden_act: self.activation,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: false,
            experts: None,
            audio: None,
        }
    }

    fn labels(&self) -> Option<&Labels> {
        self.labels.as_ref()
    }

    fn names(&self) -> Names {
        let (hidden, inner) = (("dim", self.dim), ("hidden_dim", self.hidden_dim));
        let (words, positions) =
            (("vocab_size", self.vocab_size), ("max_position_embeddings", self.max_position_embeddings));
        Names {
            prefix: "distilbert.",
            layers: vec![("transformer.layer.", "n_layers", self.n_layers)],
            shown: vec![
                Shown { tensor: "embeddings.word_embeddings.weight", shape: [words, hidden] },
                Shown { tensor: "embeddings.position_embeddings.weight", shape: [positions, hidden] },
                Shown { tensor: "transformer.layer.0.ffn.lin1.weight", shape: [inner, hidden] },
            ],
        }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let (n, n_inner) = (self.dim, self.hidden_dim);
        let act = self.activation;
        let root = loader.root(&self.names());
        let head = match &self.labels {
            None => None,
            Some(labels) => {
                let (dense, out) = ("pre_classifier", "classifier");
                let names = HeadNames { dense, dense_bias: true, norm: None, out };
                let sizes = [n, labels.names.len()];
                Some(ClassificationHead::load(loader, names, Pooling::First, Act::Relu, sizes)?)
            }
        };
        let table = |part: &str| format!("{root}embeddings.{part}_embeddings.weight");
        let words = loader.table(&table("word"), [self.vocab_size, n])?;
        // Sinusoidal positions are stored like learned ones.
        let positions = loader.as_stored(&table("position"), [self.max_position_embeddings, n])?;
        let norm = LayerNorm::load(loader, &format!("{root}embeddings.LayerNorm"), n, true, EPS)?;
        let mut layers = Vec::with_capacity(self.n_layers);
        for (i, attention) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}transformer.layer.{i}.{part}");
            let [q, k, v] = ["attention.q_lin", "attention.k_lin", "attention.v_lin"].map(name);
            layers.push(PostNormLayer {
                attention: SelfAttention {
                    shape: *attention,
                    qkv: Linear::stack(loader, &[(&q, n), (&k, n), (&v, n)], n, true)?,
                    out: Linear::load(loader, &name("attention.out_lin"), [n, n], true)?,
                    head_norm: None,
                    sinks: None,
                    rotary: None,
                },
                attention_norm: LayerNorm::load(loader, &name("sa_layer_norm"), n, true, EPS)?,
                mlp: Mlp {
                    act,
                    up: Linear::load(loader, &name("ffn.lin1"), [n_inner, n], true)?,
                    down: Linear::load(loader, &name("ffn.lin2"), [n, n_inner], true)?,
                },
                mlp_norm: LayerNorm::load(loader, &name("output_layer_norm"), n, true, EPS)?,
            });
        }
        // Heads of pretraining, and row indices that some versions of transformers store.
        for name in ["vocab_", "cls.", "lm_head."] {
            loader.ignore(name);
        }
        for name in ["embeddings.position_ids", "embeddings.token_type_ids", "pooler."] {
            loader.ignore(&format!("{root}{name}"));
        }
        let (words, positions) = (Embed::tokens(words), Embed::added(positions, Lookup::AddPosition));
        Ok(Box::new(DistilBert { shape, words, positions, norm, layers, head }))
    }
}

impl Model for DistilBert {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        ClassificationHead::scratch(self.head.as_ref(), gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let a = &s.a;
        self.words.record(rec, b, &a.h);
        self.positions.record(rec, b, &a.h);
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
