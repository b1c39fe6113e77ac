//! ModernBERT (Warner et al. 2024): norms before attention and MLP, rotary positions, gates, and a window in most
//! layers. Reference: transformers' `models/modernbert/modeling_modernbert.py`.

use super::blocks::{
    Around, ClassificationHead, Embed, HeadKeys, HeadNames, Heads, LayerNorm, LayerType, Linear, Mlp, Rope,
    SelfAttention, Sequences, THETA, Target, act, read_labels,
};
use super::settings::{EPSILON, INNER_WIDTH, LAYERS, ROWS, Read, Settings, WIDTH, WINDOW};
use super::{
    Architecture, Batch, Capacity, FromSettings, Labels, Loader, Model, ModelError, ModelKind, ModelShape,
    Names, Scratch, Shown,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Act, Pooling};

pub struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    heads: Heads,
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_activation: Act,
    norm_eps: f32,
    norm_bias: bool,
    attention_bias: bool,
    mlp_bias: bool,
    /// The window: number of keys on both sides together.
    local_attention: usize,
    layer_types: Vec<LayerType>,
    /// The rotation of layers that see all keys, and of those with a window.
    ropes: [Rope; 2],
    classifier_pooling: Pooling,
    classifier_bias: bool,
    classifier_activation: Act,
    labels: Option<Labels>,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let hidden_size = s.whole("hidden_size", WIDTH, 768)?;
        let num_hidden_layers = s.whole("num_hidden_layers", LAYERS, 22)?;
        let heads = Heads::read(s, HeadKeys::only("num_attention_heads", 12), hidden_size)?;
        let max_position_embeddings = s.whole("max_position_embeddings", ROWS, 8192)?;
        let every = s.whole("global_attn_every_n_layers", ROWS, 3)?;
        let by_number = |i: usize| if i.is_multiple_of(every) { LayerType::Full } else { LayerType::Sliding };
        let layer_types = LayerType::read(s, num_hidden_layers)?;
        let rope = |layers: &str, theta: f64| {
            let around = Around { trained: max_position_embeddings, original: None, theta, partial: 1.0 };
            Rope::of_layers(s, layers, None, heads.head_dim, around)
        };
        Ok(Config {
            hidden_size,
            intermediate_size: s.whole("intermediate_size", INNER_WIDTH, 1152)?,
            num_hidden_layers,
            heads,
            vocab_size: s.whole("vocab_size", ROWS, 50_368)?,
            max_position_embeddings,
            hidden_activation: act(s, "hidden_activation", "gelu")?,
            norm_eps: s.real("norm_eps", EPSILON, 1e-5)? as f32,
            norm_bias: s.flag("norm_bias", false)?,
            attention_bias: s.flag("attention_bias", false)?,
            mlp_bias: s.flag("mlp_bias", false)?,
            local_attention: s.whole("local_attention", 2..=*WINDOW.end(), 128)?,
            layer_types: layer_types.unwrap_or_else(|| (0..num_hidden_layers).map(by_number).collect()),
            ropes: [
                rope("full_attention", s.real("global_rope_theta", THETA, 160_000.0)?)?,
                rope("sliding_attention", s.real("local_rope_theta", THETA, 10_000.0)?)?,
            ],
            classifier_pooling: s.one_of(
                "classifier_pooling",
                &[("cls", Pooling::First), ("mean", Pooling::Mean)],
                "cls",
            )?,
            classifier_bias: s.flag("classifier_bias", false)?,
            classifier_activation: act(s, "classifier_activation", "gelu")?,
            labels: read_labels(s)?,
        })
    }
}

struct Layer {
    /// `None` in the first layer, whose input is already normalised.
    attn_norm: Option<LayerNorm>,
    attn: SelfAttention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

struct ModernBert {
    shape: ModelShape,
    tok_embeddings: Embed,
    norm: LayerNorm,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    head: Option<ClassificationHead>,
}

impl Config {
    fn head(&self, loader: &mut Loader) -> Result<Option<ClassificationHead>, ModelError> {
        let Some(labels) = &self.labels else { return Ok(None) };
        let names = HeadNames {
            dense: "head.dense",
            dense_bias: self.classifier_bias,
            norm: Some(("head.norm", self.norm_bias, self.norm_eps)),
            out: "classifier",
        };
        let (pooling, act) = (self.classifier_pooling, self.classifier_activation);
        let sizes = [self.hidden_size, labels.names.len()];
        ClassificationHead::load(loader, names, pooling, act, sizes).map(Some)
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let attention = |kind: &LayerType| {
            let window = (*kind == LayerType::Sliding).then_some(self.local_attention / 2);
            self.heads.attention(false, window)
        };
        ModelShape {
            architecture: "modernbert",
            kind: ModelKind::Encoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: self.layer_types.iter().map(attention).collect(),
            intermediate_size: self.intermediate_size,
            has_gate: true,
            hidden_act: self.hidden_activation,
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
        let (hidden, inner) =
            (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size));
        Names {
            prefix: "model.",
            layers: vec![("layers.", "num_hidden_layers", self.num_hidden_layers)],
            shown: vec![
                Shown {
                    tensor: "embeddings.tok_embeddings.weight",
                    shape: [("vocab_size", self.vocab_size), hidden],
                },
                Shown { tensor: "layers.0.mlp.Wo.weight", shape: [hidden, inner] },
            ],
        }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let (n, n_inner, eps) = (self.hidden_size, self.intermediate_size, self.norm_eps);
        let act = self.hidden_activation;
        let root = loader.root(&self.names());
        let norm = |loader: &mut Loader, name: &str| {
            LayerNorm::load(loader, &format!("{root}{name}"), n, self.norm_bias, eps)
        };
        let [full, sliding] = &self.ropes;
        let (full, sliding) =
            (full.table(loader.gpu(), max_seq_len)?, sliding.table(loader.gpu(), max_seq_len)?);
        let words = loader.table(&format!("{root}embeddings.tok_embeddings.weight"), [self.vocab_size, n])?;
        let embedding_norm = norm(loader, "embeddings.norm")?;
        let mut layers = Vec::with_capacity(self.num_hidden_layers);
        for (i, attention) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            let (attention_bias, mlp_bias) = (self.attention_bias, self.mlp_bias);
            layers.push(Layer {
                attn_norm: match i {
                    0 => None,
                    _ => Some(norm(loader, &format!("layers.{i}.attn_norm"))?),
                },
                attn: SelfAttention {
                    shape: *attention,
                    qkv: Linear::load(loader, &name("attn.Wqkv"), [3 * n, n], attention_bias)?,
                    out: Linear::load(loader, &name("attn.Wo"), [n, n], attention_bias)?,
                    head_norm: None,
                    sinks: None,
                    rotary: Some(match self.layer_types[i] {
                        LayerType::Full => full.clone(),
                        LayerType::Sliding => sliding.clone(),
                    }),
                },
                mlp_norm: norm(loader, &format!("layers.{i}.mlp_norm"))?,
                mlp: Mlp {
                    act,
                    up: Linear::load(loader, &name("mlp.Wi"), [2 * n_inner, n], mlp_bias)?,
                    down: Linear::load(loader, &name("mlp.Wo"), [n, n_inner], mlp_bias)?,
                },
            });
        }
        let final_norm = norm(loader, "final_norm")?;
        let head = self.head(loader)?;
        // The head of pretraining.
        for name in ["head.", "decoder."] {
            loader.ignore(name);
        }
        let tok_embeddings = Embed::tokens(words);
        Ok(Box::new(ModernBert { shape, tok_embeddings, norm: embedding_norm, layers, final_norm, head }))
    }
}

impl Model for ModernBert {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        ClassificationHead::scratch(self.head.as_ref(), gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.tok_embeddings.record(rec, b, &s.a.h);
        self.norm.record(rec, &s.a.h, &s.a.x, b.n.count());
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a, n_rows) = (&self.layers[i], &s.a, b.n.count());
        let h = match &layer.attn_norm {
            None => &a.x,
            Some(norm) => norm.record(rec, &a.x, &a.h, n_rows),
        };
        layer.attn.record(rec, b, &b.kv[i], h, Target::Add(&a.x), a);
        let h = layer.mlp_norm.record(rec, &a.x, &a.h, n_rows);
        layer.mlp.record(rec, b.n, h, Target::Add(&a.x), a);
    }

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.final_norm.record(rec, &s.a.x, &s.a.h, b.n.count()).clone()
    }

    fn classify(&self, rec: &mut Recorder, spans: &Tensor, n_seqs: usize, s: &mut Scratch) -> Option<Tensor> {
        let sequences = Sequences { x: &s.a.h, spans, n_seqs };
        Some(self.head.as_ref()?.record(rec, sequences, s.labels.as_ref()?))
    }
}
