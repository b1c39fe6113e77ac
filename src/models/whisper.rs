//! Whisper (Radford et al. 2022): an encoder of log-mel frames, two convolutions and layers with attention to both
//! sides, and a decoder with attention to what that heard; learned positions, layer norms, no gate.
//! Reference: transformers' `models/whisper/modeling_whisper.py`.

use serde::Deserialize;

use super::blocks::{LayerNorm, Mlp, SelfAttention, act};
use super::{
    Activations, Architecture, AudioEncoder, AudioScratch, AudioShape, Batch, Capacity, Clips, Loader, Model,
    ModelError, ModelKind, ModelShape, Scratch,
};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{self, Act, Attention, AttentionPlan, KvLayer, Lookup, Places, Rows};

#[derive(Deserialize)]
pub struct Config {
    vocab_size: usize,
    num_mel_bins: usize,
    d_model: usize,
    encoder_layers: usize,
    encoder_attention_heads: usize,
    encoder_ffn_dim: usize,
    decoder_layers: usize,
    decoder_attention_heads: usize,
    decoder_ffn_dim: usize,
    max_source_positions: usize,
    max_target_positions: usize,
    #[serde(default = "gelu")]
    activation_function: String,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
}

fn gelu() -> String {
    "gelu".into()
}

fn yes() -> bool {
    true
}

/// That of torch, which the config has no key for.
const EPS: f32 = 1e-5;

/// Positions a page of the encoder's keys and values.
const PAGE_SIZE: usize = 16;

impl Config {
    fn attention(&self, n_heads: usize, causal: bool) -> Attention {
        let head_dim = self.d_model / n_heads.max(1);
        let scale = (head_dim as f32).powf(-0.5);
        Attention { n_heads, n_kv_heads: n_heads, head_dim, scale, causal, window: None, softcap: None }
    }

    fn act(&self) -> Result<Act, ModelError> {
        act("activation_function", &self.activation_function)
    }

    fn encoder(&self, loader: &mut Loader) -> Result<Encoder, ModelError> {
        Encoder::load(self, &root(loader), loader)
    }
}

/// What names begin with: checkpoints of the bare model have no prefix.
fn root(loader: &Loader) -> String {
    let has_prefix = loader.has("model.encoder.conv1.weight");
    if has_prefix { "model.".into() } else { String::new() }
}

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let cross = self.attention(self.decoder_attention_heads, false);
        ModelShape {
            architecture: "whisper",
            kind: ModelKind::Decoder,
            hidden_size: self.d_model,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_target_positions,
            attention: vec![self.attention(self.decoder_attention_heads, true); self.decoder_layers],
            intermediate_size: self.decoder_ffn_dim,
            has_gate: false,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: self.tie_word_embeddings,
            audio: Some(AudioShape {
                n_mels: self.num_mel_bins,
                n_frames: 2 * self.max_source_positions,
                n_positions: self.max_source_positions,
                attention: vec![self.attention(self.encoder_attention_heads, false); self.encoder_layers],
                intermediate_size: self.encoder_ffn_dim,
                cross_attention: vec![cross; self.decoder_layers],
            }),
        }
    }

    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError> {
        if max_seq_len > self.max_target_positions {
            return Err(ModelError::Unsupported {
                key: "max_target_positions",
                found: self.max_target_positions.to_string(),
                expected: format!("at least the context of {max_seq_len}: positions are learned"),
            });
        }
        let (n, act) = (self.d_model, self.act()?);
        let root = root(loader);
        let encoder = Encoder::load(self, &root, loader)?;
        let tokens = loader.table(&format!("{root}decoder.embed_tokens.weight"), [self.vocab_size, n])?;
        let positions = format!("{root}decoder.embed_positions.weight");
        let positions = loader.as_stored(&positions, [self.max_target_positions, n])?;
        let (causal, cross) = (
            self.attention(self.decoder_attention_heads, true),
            self.attention(self.decoder_attention_heads, false),
        );
        let mut layers = Vec::with_capacity(self.decoder_layers);
        for i in 0..self.decoder_layers {
            let prefix = format!("{root}decoder.layers.{i}");
            let norm = |loader: &mut Loader, part: &str| {
                LayerNorm::load(loader, &format!("{prefix}.{part}"), n, true, EPS)
            };
            layers.push(DecoderLayer {
                attention_norm: norm(loader, "self_attn_layer_norm")?,
                attention: self_attention(loader, &format!("{prefix}.self_attn"), causal, n)?,
                cross_norm: norm(loader, "encoder_attn_layer_norm")?,
                cross: CrossAttention::load(loader, &format!("{prefix}.encoder_attn"), cross, n)?,
                mlp_norm: norm(loader, "final_layer_norm")?,
                mlp: mlp(loader, &prefix, act, [n, self.decoder_ffn_dim])?,
            });
        }
        let norm = LayerNorm::load(loader, &format!("{root}decoder.layer_norm"), n, true, EPS)?;
        let head = if self.tie_word_embeddings {
            tokens.clone()
        } else {
            loader.table("proj_out.weight", [self.vocab_size, n])?
        };
        let shape = ModelShape { max_seq_len, ..self.shape() };
        Ok(Box::new(Whisper { shape, encoder, tokens, positions, layers, norm, head }))
    }

    fn load_audio_encoder(&self, loader: &mut Loader) -> Result<Option<Box<dyn AudioEncoder>>, ModelError> {
        Ok(Some(Box::new(self.encoder(loader)?)))
    }
}

/// `q_proj`, `k_proj` (which has no bias) and `v_proj` as one matrix, and `out_proj`.
fn self_attention(
    loader: &mut Loader,
    prefix: &str,
    shape: Attention,
    n: usize,
) -> Result<SelfAttention, ModelError> {
    let name = |part: &str| format!("{prefix}.{part}");
    let matrices = [(&*name("q_proj.weight"), n), (&*name("k_proj.weight"), n), (&*name("v_proj.weight"), n)];
    Ok(SelfAttention {
        shape,
        qkv: loader.stack(&matrices, n)?,
        qkv_bias: Some(loader.vectors(&[(&name("q_proj.bias"), n), ("", n), (&name("v_proj.bias"), n)])?),
        out: loader.matrix(&name("out_proj.weight"), [n, n])?,
        out_bias: Some(loader.vector(&name("out_proj.bias"), n)?),
        head_norm: None,
        rotary: None,
    })
}

fn mlp(loader: &mut Loader, prefix: &str, act: Act, [n, n_inner]: [usize; 2]) -> Result<Mlp, ModelError> {
    Ok(Mlp {
        act,
        up: loader.matrix(&format!("{prefix}.fc1.weight"), [n_inner, n])?,
        up_bias: Some(loader.vector(&format!("{prefix}.fc1.bias"), n_inner)?),
        down: loader.matrix(&format!("{prefix}.fc2.weight"), [n, n_inner])?,
        down_bias: Some(loader.vector(&format!("{prefix}.fc2.bias"), n)?),
    })
}

struct EncoderLayer {
    attention_norm: LayerNorm,
    attention: SelfAttention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

/// The audio encoder. One clip at a time fills a device: it has 1,500 rows.
struct Encoder {
    /// Of its layers alone.
    shape: ModelShape,
    act: Act,
    n_mels: usize,
    n_positions: usize,
    /// Three frames wide, weights and bias.
    conv1: (Tensor, Tensor),
    conv2: (Tensor, Tensor),
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    /// The tables of a batch of one sequence.
    rows: Tensor,
    blocks: Tensor,
    pages: Tensor,
    ends: Tensor,
}

impl Encoder {
    fn load(config: &Config, root: &str, loader: &mut Loader) -> Result<Self, ModelError> {
        let n = config.d_model;
        let n_positions = config.max_source_positions;
        let gpu = loader.gpu().clone();
        let attention = config.attention(config.encoder_attention_heads, false);
        let act = config.act()?;
        let mut convolution = |name: &str, n_in: usize| -> Result<(Tensor, Tensor), ModelError> {
            let name = format!("{root}encoder.{name}");
            let w = loader.convolution(&format!("{name}.weight"), [n, n_in, 3])?;
            Ok((w, loader.vector(&format!("{name}.bias"), n)?))
        };
        let (conv1, conv2) = (convolution("conv1", config.num_mel_bins)?, convolution("conv2", n)?);
        let positions = format!("{root}encoder.embed_positions.weight");
        let positions = loader.as_stored(&positions, [n_positions, n])?;
        let mut layers = Vec::with_capacity(config.encoder_layers);
        for i in 0..config.encoder_layers {
            let prefix = format!("{root}encoder.layers.{i}");
            let norm = |loader: &mut Loader, part: &str| {
                LayerNorm::load(loader, &format!("{prefix}.{part}"), n, true, EPS)
            };
            layers.push(EncoderLayer {
                attention_norm: norm(loader, "self_attn_layer_norm")?,
                attention: self_attention(loader, &format!("{prefix}.self_attn"), attention, n)?,
                mlp_norm: norm(loader, "final_layer_norm")?,
                mlp: mlp(loader, &prefix, act, [n, config.encoder_ffn_dim])?,
            });
        }
        let norm = LayerNorm::load(loader, &format!("{root}encoder.layer_norm"), n, true, EPS)?;

        // A model of the encoder's layers alone, whose rows are those of one prompt.
        let shape = ModelShape {
            attention: vec![attention; config.encoder_layers],
            intermediate_size: config.encoder_ffn_dim,
            max_seq_len: n_positions,
            ..config.shape()
        };
        let table = |label: &str, shape, data: &[u32]| Tensor::from_u32(&gpu, label, shape, data);
        let rows: Vec<u32> = (0..n_positions as u32).flat_map(|pos| [0, pos]).collect();
        let most = attention.block_rows(gpu.caps());
        let blocks: Vec<u32> = (0..n_positions)
            .step_by(most)
            .flat_map(|row| [row as u32, most.min(n_positions - row) as u32])
            .collect();
        let n_pages = n_positions.div_ceil(PAGE_SIZE);
        let pages: Vec<u32> = (0..n_pages as u32).collect();
        Ok(Encoder {
            shape,
            act,
            n_mels: config.num_mel_bins,
            n_positions,
            conv1,
            conv2,
            positions,
            layers,
            norm,
            rows: table("clip rows", [n_positions, 2], &rows)?,
            blocks: table("clip blocks", [blocks.len() / 2, 2], &blocks)?,
            pages: table("encoder pages", [1, n_pages], &pages)?,
            ends: table("clip end", [1, 1], &[n_positions as u32])?,
        })
    }

    fn audio_scratch(&self, gpu: &Gpu) -> Result<AudioScratch, GpuError> {
        let (n, n_positions, n_frames) = (self.shape.hidden_size, self.n_positions, 2 * self.n_positions);
        let capacity = Capacity { max_rows: n_positions, max_seq_len: n_positions, ..Capacity::NONE };
        let tensor = |label: &str, shape| Tensor::zeros(gpu, label, shape, Dtype::F32);
        let kv = KvLayer::new(gpu, 0, self.pages.n_cols(), n * PAGE_SIZE, Dtype::F32)?;
        Ok(AudioScratch {
            a: Activations::new(gpu, &self.shape, capacity)?,
            unfolded: [
                tensor("unfolded mel", [n_frames, 3 * self.n_mels])?,
                tensor("unfolded frames", [n_positions, 3 * n])?,
            ],
            frames: [tensor("frames", [n_frames, n])?, tensor("active frames", [n_frames, n])?],
            kv: vec![kv; self.layers.len()],
            cross_kv: tensor("clip kv", [n_positions, 2 * n])?,
        })
    }

    fn batch<'a>(&'a self, kv: &'a [KvLayer]) -> Batch<'a> {
        Batch {
            n: prompt(self.n_positions),
            n_sampled: 0,
            n_prompt_blocks: self.blocks.n_rows(),
            longest: 0,
            rows: &self.rows,
            blocks: &self.blocks,
            // There are no tokens.
            tokens: &self.rows,
            pages: &self.pages,
            page_size: PAGE_SIZE,
            ends: Some(&self.ends),
            clips: None,
            sampled: &self.ends,
            kv,
        }
    }
}

fn prompt(n_rows: usize) -> Rows {
    Rows { n_decode: 0, n_prompt: n_rows }
}

/// An audio encoder's part of a scratch.
fn audio(s: &Scratch) -> &AudioScratch {
    s.audio.as_ref().expect("the scratch is of a model with an audio encoder")
}

impl AudioEncoder for Encoder {
    fn scratch(&self, gpu: &Gpu) -> Result<Scratch, GpuError> {
        let audio = Some(self.audio_scratch(gpu)?);
        Ok(Scratch { audio, ..Scratch::new(gpu, &self.shape, Capacity::NONE)? })
    }

    fn embed(&self, rec: &mut Recorder, features: &Tensor, first: usize, s: &mut Scratch) {
        let AudioScratch { a, unfolded: [mel, frames], frames: [before, active], .. } = audio(s);
        let n_frames = 2 * self.n_positions;
        let (w, b) = &self.conv1;
        ops::unfold(rec, features, first, n_frames, 1, mel);
        ops::gate_up(rec, self.act, mel.into(), w, Some(b), before, active, prompt(n_frames));
        let (w, b) = &self.conv2;
        ops::unfold(rec, active, 0, n_frames, 2, frames);
        ops::gate_up(rec, self.act, frames.into(), w, Some(b), &a.h, &a.x, prompt(self.n_positions));
        let (rows, n) = (&self.rows, prompt(self.n_positions));
        ops::embed(rec, Lookup::AddPosition, rows, rows, &self.positions, 1.0, &a.x, n);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, s: &mut Scratch) {
        let (layer, AudioScratch { a, kv, .. }) = (&self.layers[i], audio(s));
        let batch = self.batch(kv);
        layer.attention_norm.record(rec, &a.x, &a.h, self.n_positions);
        layer.attention.record(i, rec, &batch, (&a.h).into(), a);
        layer.mlp_norm.record(rec, &a.x, &a.h, self.n_positions);
        layer.mlp.record(rec, &batch, (&a.h).into(), a);
    }

    fn rows(&self, rec: &mut Recorder, s: &mut Scratch) -> Tensor {
        let a = &audio(s).a;
        self.norm.record(rec, &a.x, &a.h, self.n_positions);
        a.h.clone()
    }
}

/// Attention of a decoder's rows to a clip.
struct CrossAttention {
    shape: Attention,
    q: Tensor,
    q_bias: Tensor,
    /// Keys above values: `[2·d_model, d_model]`.
    kv: Tensor,
    kv_bias: Tensor,
    out: Tensor,
    out_bias: Tensor,
}

impl CrossAttention {
    fn load(loader: &mut Loader, prefix: &str, shape: Attention, n: usize) -> Result<Self, ModelError> {
        let name = |part: &str| format!("{prefix}.{part}");
        Ok(CrossAttention {
            shape,
            q: loader.matrix(&name("q_proj.weight"), [n, n])?,
            q_bias: loader.vector(&name("q_proj.bias"), n)?,
            kv: loader.stack(&[(&name("k_proj.weight"), n), (&name("v_proj.weight"), n)], n)?,
            kv_bias: loader.vectors(&[("", n), (&name("v_proj.bias"), n)])?,
            out: loader.matrix(&name("out_proj.weight"), [n, n])?,
            out_bias: loader.vector(&name("out_proj.bias"), n)?,
        })
    }

    /// Records attention of layer `i` on `input`, added to `a.x`.
    fn record(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, input: &Tensor, a: &Activations) {
        let clips: &Clips<'_> = b.clips.as_ref().expect("a model that hears gets clips");
        ops::linear(rec, input, &self.q, Some(&self.q_bias), false, &a.q, b.n);
        let plan = AttentionPlan {
            pages: clips.pages,
            ends: Some(clips.ends),
            longest: clips.n_positions,
            max_seq_len: clips.n_positions,
            ..b.attention_plan(&a.partial)
        };
        self.shape.launch(rec, &plan, &a.q, &clips.kv[i], &a.o);
        if let Some(shown) = clips.alignment {
            for (at, [_, head]) in shown.heads.iter().enumerate().filter(|(_, [layer, _])| *layer == i) {
                let first = at * clips.n_positions;
                ops::attention_weights(
                    rec,
                    &self.shape,
                    &plan,
                    *head,
                    &a.q,
                    &clips.kv[i],
                    shown.weights,
                    first,
                );
            }
        }
        ops::linear(rec, &a.o, &self.out, Some(&self.out_bias), true, &a.x, b.n);
    }
}

struct DecoderLayer {
    attention_norm: LayerNorm,
    attention: SelfAttention,
    cross_norm: LayerNorm,
    cross: CrossAttention,
    mlp_norm: LayerNorm,
    mlp: Mlp,
}

struct Whisper {
    shape: ModelShape,
    encoder: Encoder,
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    head: Tensor,
}

impl Model for Whisper {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        let audio = Some(self.encoder.audio_scratch(gpu)?);
        // Partial sums are for the longer of text and clip.
        let most = capacity.max_seq_len.max(self.encoder.n_positions);
        assert!(capacity.max_seq_len <= self.shape.max_seq_len, "loaded for {}", self.shape.max_seq_len);
        let shape = ModelShape { max_seq_len: most, ..self.shape.clone() };
        Ok(Scratch { audio, ..Scratch::new(gpu, &shape, Capacity { max_seq_len: most, ..capacity })? })
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        ops::embed(rec, Lookup::Token, b.rows, b.tokens, &self.tokens, 1.0, &s.a.x, b.n);
        ops::embed(rec, Lookup::AddPosition, b.rows, b.tokens, &self.positions, 1.0, &s.a.x, b.n);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a, n_rows) = (&self.layers[i], &s.a, b.n.count());
        layer.attention_norm.record(rec, &a.x, &a.h, n_rows);
        layer.attention.record(i, rec, b, (&a.h).into(), a);
        layer.cross_norm.record(rec, &a.x, &a.h, n_rows);
        layer.cross.record(i, rec, b, &a.h, a);
        layer.mlp_norm.record(rec, &a.x, &a.h, n_rows);
        layer.mlp.record(rec, b, (&a.h).into(), a);
    }

    fn logits(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        let (a, LayerNorm { w, b: bias, eps }) = (&s.a, &self.norm);
        ops::layer_norm(rec, &a.x, w, bias, Some(b.sampled), *eps, &a.last, b.n_sampled);
        let n = Rows { n_decode: b.n_sampled, n_prompt: 0 };
        ops::linear(rec, &a.last, &self.head, None, false, &a.logits, n);
        a.logits.clone()
    }

    fn audio_encoder(&self) -> Option<&dyn AudioEncoder> {
        Some(&self.encoder)
    }

    fn attend_to(
        &self,
        rec: &mut Recorder,
        pages: &Tensor,
        page_size: usize,
        kv: &[KvLayer],
        s: &mut Scratch,
    ) {
        let heard = self.encoder.rows(rec, s);
        let cross_kv = &audio(s).cross_kv;
        let n = self.encoder.n_positions;
        let places = Places { rows: &self.encoder.rows, pages, page_size };
        for (layer, cache) in self.layers.iter().zip(kv) {
            let CrossAttention { shape, kv: w, kv_bias, .. } = &layer.cross;
            ops::linear(rec, &heard, w, Some(kv_bias), false, cross_kv, prompt(n));
            let heads = [0, shape.n_kv_heads, shape.head_dim];
            ops::rope_append(rec, places, cross_kv, None, heads, &s.a.q, cache, 0..n);
        }
    }
}
