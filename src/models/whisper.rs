//! Whisper (Radford et al. 2022): an audio encoder of log-mel frames, with two convolutions and layers that see both
//! sides, and a decoder with cross-attention to the encoder's rows. Learned positions, layer norms, no gate.
//! Reference: transformers' `models/whisper/modeling_whisper.py`.

use serde::Deserialize;

use super::blocks::{Embed, FinalNorm, Head, LayerNorm, Linear, Mlp, SelfAttention, Target, act};
use super::{
    Activations, Architecture, AudioEncoder, AudioScratch, AudioShape, Batch, BatchClips, Capacity, Loader,
    Model, ModelError, ModelKind, ModelShape, Scratch,
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

/// torch's default epsilon, for which the config has no key.
const EPS: f32 = 1e-5;

/// Positions per page of the encoder's keys and values.
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

/// The prefix of names. Checkpoints of the bare model have none.
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
        let shape = ModelShape { max_seq_len, ..self.shape() };
        let (n, act) = (self.d_model, self.act()?);
        let root = root(loader);
        let encoder = Encoder::load(self, &root, loader)?;
        let embed_tokens =
            loader.table(&format!("{root}decoder.embed_tokens.weight"), [self.vocab_size, n])?;
        let embed_positions = format!("{root}decoder.embed_positions.weight");
        let embed_positions = loader.as_stored(&embed_positions, [self.max_target_positions, n])?;
        let cross = self.attention(self.decoder_attention_heads, false);
        let mut layers = Vec::with_capacity(self.decoder_layers);
        for (i, causal) in shape.attention.iter().enumerate() {
            let prefix = format!("{root}decoder.layers.{i}");
            let name = |part: &str| format!("{prefix}.{part}");
            layers.push(DecoderLayer {
                self_attn_norm: LayerNorm::load(loader, &name("self_attn_layer_norm"), n, true, EPS)?,
                self_attn: self_attention(loader, &name("self_attn"), *causal, n)?,
                encoder_attn_norm: LayerNorm::load(loader, &name("encoder_attn_layer_norm"), n, true, EPS)?,
                encoder_attn: CrossAttention::load(loader, &name("encoder_attn"), cross, n)?,
                final_norm: LayerNorm::load(loader, &name("final_layer_norm"), n, true, EPS)?,
                mlp: mlp(loader, &prefix, act, [n, self.decoder_ffn_dim])?,
            });
        }
        let norm = LayerNorm::load(loader, &format!("{root}decoder.layer_norm"), n, true, EPS)?;
        let (norm, tied) = (FinalNorm::Layer(norm), self.tie_word_embeddings);
        let head = Head::load(loader, "proj_out.weight", norm, &embed_tokens, tied)?;
        let embed_tokens = Embed::tokens(embed_tokens);
        let embed_positions = Embed::added(embed_positions, Lookup::AddPosition);
        Ok(Box::new(Whisper { shape, encoder, embed_tokens, embed_positions, layers, head }))
    }

    fn load_audio_encoder(&self, loader: &mut Loader) -> Result<Option<Box<dyn AudioEncoder>>, ModelError> {
        Ok(Some(Box::new(self.encoder(loader)?)))
    }
}

/// `q_proj`, `k_proj` (which has no bias) and `v_proj` as one product, and `out_proj`.
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
        qkv: Linear {
            w: loader.stack(&matrices, n)?,
            b: Some(loader.vectors(&[(&name("q_proj.bias"), n), ("", n), (&name("v_proj.bias"), n)])?),
        },
        out: Linear::load(loader, &name("out_proj"), [n, n], true)?,
        head_norm: None,
        rotary: None,
    })
}

fn mlp(loader: &mut Loader, prefix: &str, act: Act, [n, n_inner]: [usize; 2]) -> Result<Mlp, ModelError> {
    Ok(Mlp {
        act,
        up: Linear::load(loader, &format!("{prefix}.fc1"), [n_inner, n], true)?,
        down: Linear::load(loader, &format!("{prefix}.fc2"), [n, n_inner], true)?,
    })
}

struct EncoderLayer {
    self_attn_norm: LayerNorm,
    self_attn: SelfAttention,
    final_norm: LayerNorm,
    mlp: Mlp,
}

/// The audio encoder, for one clip at a time: with 1,500 rows, a clip fills a device.
struct Encoder {
    /// The shape of only its layers.
    shape: ModelShape,
    act: Act,
    n_mels: usize,
    n_positions: usize,
    /// The convolutions, three frames wide.
    conv1: Linear,
    conv2: Linear,
    embed_positions: Embed,
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
        let mut convolution = |name: &str, n_in: usize| -> Result<Linear, ModelError> {
            let name = format!("{root}encoder.{name}");
            Ok(Linear {
                w: loader.convolution(&format!("{name}.weight"), [n, n_in, 3])?,
                b: Some(loader.vector(&format!("{name}.bias"), n)?),
            })
        };
        let (conv1, conv2) = (convolution("conv1", config.num_mel_bins)?, convolution("conv2", n)?);
        let positions = format!("{root}encoder.embed_positions.weight");
        let positions = loader.as_stored(&positions, [n_positions, n])?;
        let mut layers = Vec::with_capacity(config.encoder_layers);
        for i in 0..config.encoder_layers {
            let prefix = format!("{root}encoder.layers.{i}");
            let name = |part: &str| format!("{prefix}.{part}");
            layers.push(EncoderLayer {
                self_attn_norm: LayerNorm::load(loader, &name("self_attn_layer_norm"), n, true, EPS)?,
                self_attn: self_attention(loader, &name("self_attn"), attention, n)?,
                final_norm: LayerNorm::load(loader, &name("final_layer_norm"), n, true, EPS)?,
                mlp: mlp(loader, &prefix, act, [n, config.encoder_ffn_dim])?,
            });
        }
        let norm = LayerNorm::load(loader, &format!("{root}encoder.layer_norm"), n, true, EPS)?;

        // The shape of only the encoder's layers, whose rows are one prompt.
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
            embed_positions: Embed::added(positions, Lookup::AddPosition),
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
            // Not read: there are no tokens.
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

/// The audio encoder's part of a scratch.
fn audio(s: &Scratch) -> &AudioScratch {
    s.audio.as_ref().expect("the scratch is of a model with an audio encoder")
}

impl AudioEncoder for Encoder {
    fn scratch(&self, gpu: &Gpu) -> Result<Scratch, GpuError> {
        let audio = Some(self.audio_scratch(gpu)?);
        Ok(Scratch { audio, ..Scratch::new(gpu, &self.shape, Capacity::NONE)? })
    }

    fn embed(&self, rec: &mut Recorder, features: &Tensor, first: usize, s: &mut Scratch) {
        let AudioScratch { a, unfolded: [mel, frames], frames: [before, active], kv, .. } = audio(s);
        let (n_frames, n_positions) = (2 * self.n_positions, self.n_positions);
        let Linear { w, b } = &self.conv1;
        ops::unfold(rec, features, first, n_frames, 1, mel);
        ops::gate_up(rec, self.act, mel.into(), w, b.as_ref(), before, active, prompt(n_frames));
        let Linear { w, b } = &self.conv2;
        ops::unfold(rec, active, 0, n_frames, 2, frames);
        ops::gate_up(rec, self.act, frames.into(), w, b.as_ref(), &a.h, &a.x, prompt(n_positions));
        self.embed_positions.record(rec, &self.batch(kv), &a.x);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, s: &mut Scratch) {
        let (layer, AudioScratch { a, kv, .. }) = (&self.layers[i], audio(s));
        let (b, n_rows) = (&self.batch(kv), self.n_positions);
        let h = layer.self_attn_norm.record(rec, &a.x, &a.h, n_rows);
        layer.self_attn.record(rec, b, &kv[i], h, Target::Add(&a.x), a);
        let h = layer.final_norm.record(rec, &a.x, &a.h, n_rows);
        layer.mlp.record(rec, b.n, h, Target::Add(&a.x), a);
    }

    fn rows(&self, rec: &mut Recorder, s: &mut Scratch) -> Tensor {
        let a = &audio(s).a;
        self.norm.record(rec, &a.x, &a.h, self.n_positions).clone()
    }
}

/// Cross-attention of a decoder's rows to a clip.
struct CrossAttention {
    shape: Attention,
    q: Linear,
    /// Keys above values: `[2·d_model, d_model]`.
    kv: Linear,
    out: Linear,
}

impl CrossAttention {
    fn load(loader: &mut Loader, prefix: &str, shape: Attention, n: usize) -> Result<Self, ModelError> {
        let name = |part: &str| format!("{prefix}.{part}");
        Ok(CrossAttention {
            shape,
            q: Linear::load(loader, &name("q_proj"), [n, n], true)?,
            kv: Linear {
                w: loader.stack(&[(&name("k_proj.weight"), n), (&name("v_proj.weight"), n)], n)?,
                b: Some(loader.vectors(&[("", n), (&name("v_proj.bias"), n)])?),
            },
            out: Linear::load(loader, &name("out_proj"), [n, n], true)?,
        })
    }

    /// Records the attention of `input`'s rows to the clips' keys and values of layer `i`.
    fn record(
        &self,
        i: usize,
        rec: &mut Recorder,
        b: &Batch<'_>,
        input: &Tensor,
        y: Target<'_>,
        a: &Activations,
    ) {
        let clips: &BatchClips<'_> = b.clips.as_ref().expect("a model with an audio encoder gets clips");
        self.q.record(rec, b.n, input, Target::Set(&a.q));
        let plan = AttentionPlan {
            pages: clips.pages,
            ends: Some(clips.ends),
            longest: clips.n_positions,
            max_seq_len: clips.n_positions,
            ..b.attention_plan(&a.partial)
        };
        let kv = &clips.kv[i];
        self.shape.launch(rec, &plan, &a.q, kv, &a.o);
        if let Some(shown) = clips.alignment {
            for (at, [_, head]) in shown.heads.iter().enumerate().filter(|(_, [layer, _])| *layer == i) {
                let first = at * clips.n_positions;
                ops::attention_weights(rec, &self.shape, &plan, *head, &a.q, kv, shown.weights, first);
            }
        }
        self.out.record(rec, b.n, &a.o, y);
    }
}

struct DecoderLayer {
    self_attn_norm: LayerNorm,
    self_attn: SelfAttention,
    encoder_attn_norm: LayerNorm,
    encoder_attn: CrossAttention,
    final_norm: LayerNorm,
    mlp: Mlp,
}

struct Whisper {
    shape: ModelShape,
    encoder: Encoder,
    embed_tokens: Embed,
    embed_positions: Embed,
    layers: Vec<DecoderLayer>,
    head: Head,
}

impl Model for Whisper {
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError> {
        assert!(capacity.max_seq_len <= self.shape.max_seq_len, "loaded for {}", self.shape.max_seq_len);
        // Partial sums must suffice for the longer of text and clip.
        let max_seq_len = capacity.max_seq_len.max(self.encoder.n_positions);
        let shape = ModelShape { max_seq_len, ..self.shape.clone() };
        let audio = Some(self.encoder.audio_scratch(gpu)?);
        Ok(Scratch { audio, ..Scratch::new(gpu, &shape, Capacity { max_seq_len, ..capacity })? })
    }

    fn embed(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        self.embed_tokens.record(rec, b, &s.a.x);
        self.embed_positions.record(rec, b, &s.a.x);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) {
        let (layer, a, n_rows) = (&self.layers[i], &s.a, b.n.count());
        let x = Target::Add(&a.x);
        let h = layer.self_attn_norm.record(rec, &a.x, &a.h, n_rows);
        layer.self_attn.record(rec, b, &b.kv[i], h, x, a);
        let h = layer.encoder_attn_norm.record(rec, &a.x, &a.h, n_rows);
        layer.encoder_attn.record(i, rec, b, h, x, a);
        let h = layer.final_norm.record(rec, &a.x, &a.h, n_rows);
        layer.mlp.record(rec, b.n, h, x, a);
    }

    fn logits(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
        self.head.record(rec, b, &s.a)
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
        let clip = self.encoder.rows(rec, s);
        let (cross_kv, n_rows) = (&audio(s).cross_kv, self.encoder.n_positions);
        let places = Places { rows: &self.encoder.rows, pages, page_size };
        for (layer, cache) in self.layers.iter().zip(kv) {
            let CrossAttention { shape, kv, .. } = &layer.encoder_attn;
            kv.record(rec, prompt(n_rows), &clip, Target::Set(cross_kv));
            let heads = [0, shape.n_kv_heads, shape.head_dim];
            ops::rope_append(rec, places, cross_kv, None, heads, &s.a.q, cache, 0..n_rows);
        }
    }
}
