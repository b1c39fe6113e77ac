//! GPT-2 (Radford et al. 2019): learned positions, layer norms, no gate; weights stored transposed.
//! Reference: transformers' `models/gpt2/modeling_gpt2.py`.

use serde::Deserialize;

use super::blocks::{Embed, FinalNorm, Head, LayerNorm, Linear, Mlp, SelfAttention, Target};
use super::{Architecture, Batch, Capacity, Loader, Model, ModelError, ModelKind, ModelShape, Scratch};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Attention, Lookup};

#[derive(Deserialize)]
pub struct Config {
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_positions: usize,
    n_inner: Option<usize>,
    vocab_size: usize,
    layer_norm_epsilon: f32,
    #[serde(default = "gelu_new")]
    activation_function: String,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

fn gelu_new() -> String {
    "gelu_new".into()
}

fn yes() -> bool {
    true
}

struct Layer {
    ln_1: LayerNorm,
    attn: SelfAttention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

struct Gpt2 {
    shape: ModelShape,
    wte: Embed,
    wpe: Embed,
    layers: Vec<Layer>,
    head: Head,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let head_dim = self.n_embd / self.n_head.max(1);
        let attention = |i: usize| {
            let mut scale = if self.scale_attn_weights { (head_dim as f32).powf(-0.5) } else { 1.0 };
            if self.scale_attn_by_inverse_layer_idx {
                scale /= (i + 1) as f32;
            }
            let (n_heads, n_kv_heads) = (self.n_head, self.n_head);
            Attention { n_heads, n_kv_heads, head_dim, scale, causal: true, window: None, softcap: None }
        };
        ModelShape {
            architecture: "gpt2",
            kind: ModelKind::Decoder,
            hidden_size: self.n_embd,
            vocab_size: self.vocab_size,
            max_seq_len: self.n_positions,
            attention: (0..self.n_layer).map(attention).collect(),
            intermediate_size: self.n_inner.unwrap_or(4 * self.n_embd),
            has_gate: false,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: self.tie_word_embeddings,
            audio: None,
        }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        if max_seq_len > self.n_positions {
            return Err(ModelError::Unsupported {
                key: "n_positions",
                found: self.n_positions.to_string(),
                expected: format!("at least the context of {max_seq_len}: positions are learned"),
            });
        }
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let (n, n_inner, eps) = (shape.hidden_size, shape.intermediate_size, self.layer_norm_epsilon);
        let act = super::blocks::act("activation_function", &self.activation_function)?;
        // The original checkpoints have no head, and so no prefix.
        let root = if loader.has("transformer.wte.weight") { "transformer." } else { "" };
        let wte = loader.table(&format!("{root}wte.weight"), [self.vocab_size, n])?;
        let wpe = loader.as_stored(&format!("{root}wpe.weight"), [self.n_positions, n])?;
        let mut layers = Vec::with_capacity(self.n_layer);
        for (i, attention) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}h.{i}.{part}");
            layers.push(Layer {
                ln_1: LayerNorm::load(loader, &name("ln_1"), n, true, eps)?,
                attn: SelfAttention {
                    shape: *attention,
                    qkv: conv1d(loader, &name("attn.c_attn"), [3 * n, n])?,
                    out: conv1d(loader, &name("attn.c_proj"), [n, n])?,
                    head_norm: None,
                    rotary: None,
                },
                ln_2: LayerNorm::load(loader, &name("ln_2"), n, true, eps)?,
                mlp: Mlp {
                    act,
                    up: conv1d(loader, &name("mlp.c_fc"), [n_inner, n])?,
                    down: conv1d(loader, &name("mlp.c_proj"), [n, n_inner])?,
                },
            });
        }
        let ln_f = FinalNorm::Layer(LayerNorm::load(loader, &format!("{root}ln_f"), n, true, eps)?);
        let head = Head::load(loader, "lm_head.weight", ln_f, &wte, self.tie_word_embeddings)?;
        let (wte, wpe) = (Embed::tokens(wte), Embed::added(wpe, Lookup::AddPosition));
        Ok(Box::new(Gpt2 { shape, wte, wpe, layers, head }))
    }
}

/// A product whose weights are stored transposed, `[n_in, n_out]`: transformers' `Conv1D`.
fn conv1d(loader: &mut Loader, name: &str, [n_out, n_in]: [usize; 2]) -> Result<Linear, ModelError> {
    Ok(Linear {
        w: loader.transposed(&format!("{name}.weight"), [n_out, n_in])?,
        b: Some(loader.vector(&format!("{name}.bias"), n_out)?),
    })
}

impl Model for Gpt2 {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        Scratch::new(gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.wte.record(rec, b, &s.a.x);
        self.wpe.record(rec, b, &s.a.x);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a, n_rows) = (&self.layers[i], &s.a, b.n.count());
        let h = layer.ln_1.record(rec, &a.x, &a.h, n_rows);
        layer.attn.record(rec, b, &b.kv[i], h, Target::Add(&a.x), a);
        let h = layer.ln_2.record(rec, &a.x, &a.h, n_rows);
        layer.mlp.record(rec, b.n, h, Target::Add(&a.x), a);
    }

    fn logits(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
    }
}
