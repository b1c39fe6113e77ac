//! GPT-2 (Radford et al. 2019): learned positions, layer norms, no gate; weights stored transposed.
//! Reference: transformers' `models/gpt2/modeling_gpt2.py`.

use super::blocks::{
    Decoder, DecoderLayer, Embed, FinalNorm, Head, HeadKeys, Heads, LayerNorm, Linear, Mlp, SelfAttention,
    Target, act,
};
use super::settings::{EPSILON, INNER_WIDTH, LAYERS, ROWS, Read, Settings, WIDTH};
use super::{
    Activations, Architecture, Batch, FromSettings, Loader, Model, ModelError, ModelKind, ModelShape, Names,
    Shown,
};
use crate::gpu::Recorder;
use crate::ops::{Act, KvLayer, Lookup};

pub struct Config {
    n_embd: usize,
    n_layer: usize,
    heads: Heads,
    n_positions: usize,
    n_inner: usize,
    vocab_size: usize,
    layer_norm_epsilon: f32,
    activation_function: Act,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    tie_word_embeddings: bool,
}

impl FromSettings for Config {
    const ALSO: &'static [(&'static str, &'static str)] = &[
        ("hidden_size", "n_embd"),
        ("max_position_embeddings", "n_positions"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ];

    fn read(s: &Settings<'_>) -> Read<Self> {
        let n_embd = s.whole("n_embd", WIDTH, 768)?;
        Ok(Config {
            n_embd,
            n_layer: s.whole("n_layer", LAYERS, 12)?,
            heads: Heads::read(s, HeadKeys::only("n_head", 12), n_embd)?,
            n_positions: s.whole("n_positions", ROWS, 1024)?,
            n_inner: s.some_whole("n_inner", INNER_WIDTH, None)?.unwrap_or(4 * n_embd),
            vocab_size: s.whole("vocab_size", ROWS, 50_257)?,
            layer_norm_epsilon: s.real("layer_norm_epsilon", EPSILON, 1e-5)? as f32,
            activation_function: act(s, "activation_function", "gelu_new")?,
            scale_attn_weights: s.flag("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: s.flag("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: s.flag("tie_word_embeddings", true)?,
        })
    }
}

struct Layer {
    ln_1: LayerNorm,
    attn: SelfAttention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let attention = |i: usize| {
            let mut attention = self.heads.attention(true, None);
            if !self.scale_attn_weights {
                attention.scale = 1.0;
            }
            if self.scale_attn_by_inverse_layer_idx {
                attention.scale /= (i + 1) as f32;
            }
            attention
        };
        ModelShape {
            architecture: "gpt2",
            kind: ModelKind::Decoder,
            hidden_size: self.n_embd,
            vocab_size: self.vocab_size,
            max_seq_len: self.n_positions,
            attention: (0..self.n_layer).map(attention).collect(),
            intermediate_size: self.n_inner,
            has_gate: false,
            hidden_act: self.activation_function,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: self.tie_word_embeddings,
            experts: None,
            audio: None,
        }
    }

    fn names(&self) -> Names {
        let hidden = ("n_embd", self.n_embd);
        Names {
            prefix: "transformer.",
            layers: vec![("h.", "n_layer", self.n_layer)],
            shown: vec![
                Shown { tensor: "wte.weight", shape: [("vocab_size", self.vocab_size), hidden] },
                Shown { tensor: "wpe.weight", shape: [("n_positions", self.n_positions), hidden] },
                Shown { tensor: "h.0.mlp.c_fc.weight", shape: [hidden, ("n_inner", self.n_inner)] },
            ],
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
        let (act, tied) = (self.activation_function, self.tie_word_embeddings);
        let root = loader.root(&self.names());
        let embedding = format!("{root}wte.weight");
        let tables = [embedding.as_str(), "lm_head.weight"];
        let wte = loader.embedding(tables, [self.vocab_size, n], tied)?;
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
                    sinks: None,
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
        let head = Head::load(loader, tables, ln_f, &wte, tied)?;
        let embed_positions = Some(Embed::added(wpe, Lookup::AddPosition));
        Ok(Box::new(Decoder { shape, embed_tokens: Embed::tokens(wte), embed_positions, layers, head }))
    }
}

/// A product whose weights are stored transposed, `[n_in, n_out]`: transformers' `Conv1D`.
fn conv1d(loader: &mut Loader, name: &str, [n_out, n_in]: [usize; 2]) -> Result<Linear, ModelError> {
    Ok(Linear {
        w: loader.transposed(&format!("{name}.weight"), [n_out, n_in])?,
        b: Some(loader.vector(&format!("{name}.bias"), n_out)?),
    })
}

impl DecoderLayer for Layer {
    fn record(&self, rec: &mut Recorder, b: &Batch<'_>, kv: &KvLayer, a: &Activations) {
        let n_rows = b.n.count();
        let h = self.ln_1.record(rec, &a.x, &a.h, n_rows);
        self.attn.record(rec, b, kv, h, Target::Add(&a.x), a);
        let h = self.ln_2.record(rec, &a.x, &a.h, n_rows);
        self.mlp.record(rec, b.n, h, Target::Add(&a.x), a);
    }
}
