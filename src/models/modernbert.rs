//! ModernBERT (Warner et al. 2024): norms before attention and MLP, rotary positions, gates, and a window in most
//! layers. Reference: transformers' `models/modernbert/modeling_modernbert.py`.

use serde::Deserialize;

use super::blocks::{
    ClassificationHead, Embed, HeadNames, LabelKeys, LayerNorm, Linear, Mlp, Rope, RopeScaling,
    SelfAttention, Sequences, Target,
};
use super::{
    Architecture, Batch, Capacity, Labels, Loader, Model, ModelError, ModelKind, ModelShape, Scratch,
};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Attention, Pooling};

#[derive(Deserialize)]
pub struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "eps")]
    norm_eps: f32,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    /// The window: number of keys on both sides together.
    local_attention: usize,
    #[serde(default = "three")]
    global_attn_every_n_layers: usize,
    layer_types: Option<Vec<LayerType>>,
    #[serde(default)]
    rope_parameters: RopeParameters,
    #[serde(default = "global_theta")]
    global_rope_theta: f64,
    /// `null` in checkpoints with one theta for all layers.
    local_rope_theta: Option<f64>,
    #[serde(default = "cls")]
    classifier_pooling: String,
    #[serde(default)]
    classifier_bias: bool,
    #[serde(default = "gelu")]
    classifier_activation: String,
    #[serde(flatten)]
    labels: LabelKeys,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum LayerType {
    FullAttention,
    SlidingAttention,
}

/// The form of transformers 5. Earlier versions have one theta for each type of layer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RopeParameters {
    full_attention: Option<RopeScaling>,
    sliding_attention: Option<RopeScaling>,
}

fn gelu() -> String {
    "gelu".into()
}

fn cls() -> String {
    "cls".into()
}

fn eps() -> f32 {
    1e-5
}

fn three() -> usize {
    3
}

fn global_theta() -> f64 {
    160_000.0
}

/// The default theta of local layers.
const LOCAL_THETA: f64 = 10_000.0;

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
    fn layer_type(&self, i: usize) -> LayerType {
        match &self.layer_types {
            Some(types) => types.get(i).copied().unwrap_or(LayerType::FullAttention),
            None if i.is_multiple_of(self.global_attn_every_n_layers.max(1)) => LayerType::FullAttention,
            None => LayerType::SlidingAttention,
        }
    }

    fn rope(&self, layers: LayerType) -> Rope {
        match layers {
            LayerType::FullAttention => {
                Rope::new(self.rope_parameters.full_attention.clone(), self.global_rope_theta)
            }
            LayerType::SlidingAttention => {
                let theta = self.local_rope_theta.unwrap_or(LOCAL_THETA);
                Rope::new(self.rope_parameters.sliding_attention.clone(), theta)
            }
        }
    }

    fn head(&self, loader: &mut Loader) -> Result<Option<ClassificationHead>, ModelError> {
        let Some(labels) = self.labels.labels()? else { return Ok(None) };
        let names = HeadNames {
            dense: "head.dense",
            dense_bias: self.classifier_bias,
            norm: Some(("head.norm", self.norm_bias, self.norm_eps)),
            out: "classifier",
        };
        let pooling = match self.classifier_pooling.as_str() {
            "cls" => Pooling::First,
            "mean" => Pooling::Mean,
            found => {
                return Err(ModelError::Unsupported {
                    key: "classifier_pooling",
                    found: found.into(),
                    expected: "`cls` or `mean`".into(),
                });
            }
        };
        let act = super::blocks::act("classifier_activation", &self.classifier_activation)?;
        let sizes = [self.hidden_size, labels.names.len()];
        ClassificationHead::load(loader, names, pooling, act, sizes).map(Some)
    }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let (n_heads, n_kv_heads) = (self.num_attention_heads, self.num_attention_heads);
        let head_dim = self.hidden_size / n_heads.max(1);
        let attention = |i| Attention {
            n_heads,
            n_kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            causal: false,
            window: (self.layer_type(i) == LayerType::SlidingAttention).then_some(self.local_attention / 2),
            softcap: None,
        };
        ModelShape {
            architecture: "modernbert",
            kind: ModelKind::Encoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: (0..self.num_hidden_layers).map(attention).collect(),
            intermediate_size: self.intermediate_size,
            has_gate: true,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: false,
            audio: None,
        }
    }

    fn labels(&self) -> Result<Option<Labels>, ModelError> {
        self.labels.labels()
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        if self.local_attention < 2 {
            return Err(ModelError::Unsupported {
                key: "local_attention",
                found: self.local_attention.to_string(),
                expected: "at least 2".into(),
            });
        }
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let (n, n_inner, eps) = (self.hidden_size, self.intermediate_size, self.norm_eps);
        let act = super::blocks::act("hidden_activation", &self.hidden_activation)?;
        let root = if loader.has("model.embeddings.tok_embeddings.weight") { "model." } else { "" };
        let norm = |loader: &mut Loader, name: &str| {
            LayerNorm::load(loader, &format!("{root}{name}"), n, self.norm_bias, eps)
        };
        let rotary = |layers| {
            let (head_dim, trained) = (n / self.num_attention_heads, self.max_position_embeddings);
            self.rope(layers).table(loader.gpu(), head_dim, trained, max_seq_len)
        };
        let (full, sliding) = (rotary(LayerType::FullAttention)?, rotary(LayerType::SlidingAttention)?);
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
                    rotary: Some(match self.layer_type(i) {
                        LayerType::FullAttention => full.clone(),
                        LayerType::SlidingAttention => sliding.clone(),
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

    fn rows(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.final_norm.record(rec, &s.a.x, &s.a.h, b.n.count()).clone()
    }

    fn classify(&self, rec: &mut Recorder, spans: &Tensor, n_seqs: usize, s: &mut Scratch) -> Option<Tensor> {
        let sequences = Sequences { x: &s.a.h, spans, n_seqs };
        Some(self.head.as_ref()?.record(rec, sequences, s.labels.as_ref()?))
    }
}
