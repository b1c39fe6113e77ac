//! GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): layer norms, rotation of a part of each head, and
//! attention and MLP side by side on the same input.
//! Reference: transformers' `models/gpt_neox/modeling_gpt_neox.py`.

use super::blocks::{
    Around, Decoder, DecoderLayer, Embed, FinalNorm, Head, HeadKeys, Heads, LayerNorm, Linear, Mlp, Rope,
    SelfAttention, Target, act,
};
use super::settings::{EPSILON, INNER_WIDTH, LAYERS, ROWS, Read, Settings, WIDTH};
use super::{
    Activations, Architecture, Batch, FromSettings, Loader, Model, ModelError, ModelKind, ModelShape, Names,
    Shown,
};
use crate::gpu::Recorder;
use crate::ops::{Act, KvLayer};

pub struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    heads: Heads,
    vocab_size: usize,
    max_position_embeddings: usize,
    layer_norm_eps: f32,
    hidden_act: Act,
    attention_bias: bool,
    use_parallel_residual: bool,
    tie_word_embeddings: bool,
    rope: Rope,
}

impl FromSettings for Config {
    const ALSO: &'static [(&'static str, &'static str)] =
        &[("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")];

    fn read(s: &Settings<'_>) -> Read<Self> {
        let hidden_size = s.whole("hidden_size", WIDTH, 6144)?;
        let heads = Heads::read(s, HeadKeys::only("num_attention_heads", 64), hidden_size)?;
        let max_position_embeddings = s.whole("max_position_embeddings", ROWS, 2048)?;
        let around =
            Around { trained: max_position_embeddings, original: None, theta: 10_000.0, partial: 0.25 };
        Ok(Config {
            hidden_size,
            intermediate_size: s.whole("intermediate_size", INNER_WIDTH, 24_576)?,
            num_hidden_layers: s.whole("num_hidden_layers", LAYERS, 44)?,
            vocab_size: s.whole("vocab_size", ROWS, 50_432)?,
            layer_norm_eps: s.real("layer_norm_eps", EPSILON, 1e-5)? as f32,
            hidden_act: act(s, "hidden_act", "gelu")?,
            attention_bias: s.flag("attention_bias", true)?,
            use_parallel_residual: s.flag("use_parallel_residual", true)?,
            tie_word_embeddings: s.flag("tie_word_embeddings", false)?,
            rope: Rope::read(s, heads.head_dim, around)?,
            max_position_embeddings,
            heads,
        })
    }
}

struct Layer {
    input_layernorm: LayerNorm,
    attention: SelfAttention,
    post_attention_layernorm: LayerNorm,
    mlp: Mlp,
    use_parallel_residual: bool,
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        ModelShape {
            architecture: "gpt_neox",
            kind: ModelKind::Decoder,
            hidden_size: self.hidden_size,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_position_embeddings,
            attention: vec![self.heads.attention(true, None); self.num_hidden_layers],
            intermediate_size: self.intermediate_size,
            hidden_act: self.hidden_act,
            has_gate: false,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: self.tie_word_embeddings,
            experts: None,
            audio: None,
        }
    }

    fn names(&self) -> Names {
        let (hidden, inner) =
            (("hidden_size", self.hidden_size), ("intermediate_size", self.intermediate_size));
        Names {
            prefix: "gpt_neox.",
            layers: vec![("layers.", "num_hidden_layers", self.num_hidden_layers)],
            shown: vec![
                Shown { tensor: "embed_in.weight", shape: [("vocab_size", self.vocab_size), hidden] },
                Shown { tensor: "layers.0.mlp.dense_4h_to_h.weight", shape: [hidden, inner] },
            ],
        }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let (n, n_inner, eps) = (self.hidden_size, self.intermediate_size, self.layer_norm_eps);
        let (bias, tied) = (self.attention_bias, self.tie_word_embeddings);
        let rotary = self.rope.table(loader.gpu(), max_seq_len)?;
        let root = loader.root(&self.names());
        let embedding = format!("{root}embed_in.weight");
        let tables = [embedding.as_str(), "embed_out.weight"];
        let embed_in = loader.embedding(tables, [self.vocab_size, n], tied)?;
        let mut layers = Vec::with_capacity(self.num_hidden_layers);
        for (i, a) in shape.attention.iter().enumerate() {
            let name = |part: &str| format!("{root}layers.{i}.{part}");
            // Buffers of old checkpoints.
            for buffer in ["bias", "masked_bias", "rotary_emb."] {
                loader.ignore(&name(&format!("attention.{buffer}")));
            }
            let (query_key_value, post) =
                (name("attention.query_key_value"), name("post_attention_layernorm"));
            loader.lies_by_head(&query_key_value, self.heads.n_heads);
            layers.push(Layer {
                input_layernorm: LayerNorm::load(loader, &name("input_layernorm"), n, true, eps)?,
                attention: SelfAttention {
                    shape: *a,
                    qkv: Linear::load(loader, &query_key_value, [3 * n, n], bias)?,
                    out: Linear::load(loader, &name("attention.dense"), [n, n], bias)?,
                    head_norm: None,
                    sinks: None,
                    rotary: Some(rotary.clone()),
                },
                post_attention_layernorm: LayerNorm::load(loader, &post, n, true, eps)?,
                mlp: Mlp {
                    act: self.hidden_act,
                    up: Linear::load(loader, &name("mlp.dense_h_to_4h"), [n_inner, n], true)?,
                    down: Linear::load(loader, &name("mlp.dense_4h_to_h"), [n, n_inner], true)?,
                },
                use_parallel_residual: self.use_parallel_residual,
            });
        }
        let norm = LayerNorm::load(loader, &format!("{root}final_layer_norm"), n, true, eps)?;
        let head = Head::load(loader, tables, FinalNorm::Layer(norm), &embed_in, tied)?;
        let embed_tokens = Embed::tokens(embed_in);
        Ok(Box::new(Decoder { shape, embed_tokens, embed_positions: None, layers, head }))
    }
}

impl DecoderLayer for Layer {
    fn record(&self, rec: &mut Recorder, b: &Batch<'_>, kv: &KvLayer, a: &Activations) {
        let Layer { input_layernorm, attention, post_attention_layernorm, mlp, .. } = self;
        let (x, n_rows) = (Target::Add(&a.x), b.n.count());
        if self.use_parallel_residual {
            // Both norms read x, so the MLP's first half runs before attention adds to it.
            let h = post_attention_layernorm.record(rec, &a.x, &a.h, n_rows);
            mlp.record_up(rec, b.n, h, a);
            let h = input_layernorm.record(rec, &a.x, &a.h, n_rows);
            attention.record(rec, b, kv, h, x, a);
            mlp.record_down(rec, b.n, x, a);
        } else {
            let h = input_layernorm.record(rec, &a.x, &a.h, n_rows);
            attention.record(rec, b, kv, h, x, a);
            let h = post_attention_layernorm.record(rec, &a.x, &a.h, n_rows);
            mlp.record(rec, b.n, h, x, a);
        }
    }
}
