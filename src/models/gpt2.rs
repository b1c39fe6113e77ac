//! GPT-2 (Radford et al. 2019): learned positions, layer norms, no gate; weights stored transposed.
//! Reference: transformers' `models/gpt2/modeling_gpt2.py`.

use serde::Deserialize;

use super::blocks::{LayerNorm, Mlp, SelfAttention};
use super::{Architecture, Batch, Capacity, Loader, Model, ModelError, ModelKind, ModelShape, Scratch};
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{self, Act, Attention, Lookup, Rows};

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
    attention: SelfAttention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

struct Gpt2 {
    shape: ModelShape,
    wte: Tensor,
    wpe: Tensor,
    layers: Vec<Layer>,
    ln_f: LayerNorm,
    head: Tensor,
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
        let (n, n_inner) = (self.n_embd, self.n_inner.unwrap_or(4 * self.n_embd));
        let act: Act = super::blocks::act("activation_function", &self.activation_function)?;
        // The original checkpoints were saved without their head, and so without the prefix.
        let root = if loader.has("transformer.wte.weight") { "transformer." } else { "" };
        let wte = loader.table(&format!("{root}wte.weight"), [self.vocab_size, n])?;
        let wpe = loader.as_stored(&format!("{root}wpe.weight"), [self.n_positions, n])?;
        let eps = self.layer_norm_epsilon;
        let norm =
            |loader: &mut Loader, name: &str| LayerNorm::load(loader, &format!("{root}{name}"), n, true, eps);
        let mut layers = Vec::with_capacity(self.n_layer);
        for (i, attention) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}h.{i}.{part}");
            layers.push(Layer {
                ln_1: norm(loader, &format!("h.{i}.ln_1"))?,
                attention: SelfAttention {
                    shape: *attention,
                    qkv: loader.transposed(&name("attn.c_attn.weight"), [3 * n, n])?,
                    qkv_bias: Some(loader.vector(&name("attn.c_attn.bias"), 3 * n)?),
                    out: loader.transposed(&name("attn.c_proj.weight"), [n, n])?,
                    out_bias: Some(loader.vector(&name("attn.c_proj.bias"), n)?),
                    head_norm: None,
                    rotary: None,
                },
                ln_2: norm(loader, &format!("h.{i}.ln_2"))?,
                mlp: Mlp {
                    act,
                    up: loader.transposed(&name("mlp.c_fc.weight"), [n_inner, n])?,
                    up_bias: Some(loader.vector(&name("mlp.c_fc.bias"), n_inner)?),
                    down: loader.transposed(&name("mlp.c_proj.weight"), [n, n_inner])?,
                    down_bias: Some(loader.vector(&name("mlp.c_proj.bias"), n)?),
                },
            });
        }
        let ln_f = norm(loader, "ln_f")?;
        let head = if self.tie_word_embeddings {
            wte.clone()
        } else {
            loader.table("lm_head.weight", [self.vocab_size, n])?
        };
        Ok(Box::new(Gpt2 { shape, wte, wpe, layers, ln_f, head }))
    }
}

impl Model for Gpt2 {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        Scratch::new(gpu, &self.shape, capacity)
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        ops::embed(rec, Lookup::Token, b.rows, b.tokens, &self.wte, 1.0, &s.a.x, b.n);
        ops::embed(rec, Lookup::AddPosition, b.rows, b.tokens, &self.wpe, 1.0, &s.a.x, b.n);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a, n_rows) = (&self.layers[i], &s.a, b.n.count());
        layer.ln_1.record(rec, &a.x, &a.h, n_rows);
        layer.attention.record(i, rec, b, (&a.h).into(), a);
        layer.ln_2.record(rec, &a.x, &a.h, n_rows);
        layer.mlp.record(rec, b, (&a.h).into(), a);
    }

    fn logits(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        let (a, LayerNorm { w, b: bias, eps }) = (&s.a, &self.ln_f);
        ops::layer_norm(rec, &a.x, w, bias, Some(b.sampled), *eps, &a.last, b.n_sampled);
        let n = Rows { n_decode: b.n_sampled, n_prompt: 0 };
        ops::linear(rec, &a.last, &self.head, None, false, &a.logits, n);
        a.logits.clone()
    }
}
