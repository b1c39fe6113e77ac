//! Whisper (Radford et al. 2022): an audio encoder of log-mel frames, with two convolutions and layers that see both
//! sides, and a decoder with cross-attention to the encoder's rows. Learned positions, layer norms, no gate.
//! Reference: transformers' `models/whisper/modeling_whisper.py`.

use std::ops::RangeInclusive;

use super::blocks::{
    Embed, FinalNorm, Head, HeadKeys, Heads, LayerNorm, Linear, Mlp, SelfAttention, Target, act,
};
use super::settings::{INNER_WIDTH, LAYERS, ROWS, Read, Settings, WIDTH};
use super::{
    Activations, Architecture, AudioEncoder, AudioScratch, AudioShape, Batch, BatchClips, Capacity,
    FromSettings, Loader, Model, ModelError, ModelKind, ModelShape, Names, Scratch, Shown,
};
use crate::dtype::Dtype;
use crate::gpu::{Gpu, GpuError, Recorder, Tensor};
use crate::ops::{
    self, Act, Attention, AttentionPlan, HeadWeights, KvLayer, Lookup, Places, RopeAppend, Rows,
};

pub struct Config {
    vocab_size: usize,
    num_mel_bins: usize,
    d_model: usize,
    encoder_layers: usize,
    encoder_heads: Heads,
    encoder_ffn_dim: usize,
    decoder_layers: usize,
    decoder_heads: Heads,
    decoder_ffn_dim: usize,
    max_source_positions: usize,
    max_target_positions: usize,
    activation_function: Act,
    tie_word_embeddings: bool,
}

impl FromSettings for Config {
    fn read(s: &Settings<'_>) -> Read<Self> {
        let d_model = s.whole("d_model", WIDTH, 384)?;
        let heads = |key| Heads::read(s, HeadKeys::only(key, 6), d_model);
        Ok(Config {
            vocab_size: s.whole("vocab_size", ROWS, 51_865)?,
            num_mel_bins: s.whole("num_mel_bins", MEL_BINS, 80)?,
            d_model,
            encoder_layers: s.whole("encoder_layers", LAYERS, 4)?,
            encoder_heads: heads("encoder_attention_heads")?,
            encoder_ffn_dim: s.whole("encoder_ffn_dim", INNER_WIDTH, 1536)?,
            decoder_layers: s.whole("decoder_layers", LAYERS, 4)?,
            decoder_heads: heads("decoder_attention_heads")?,
            decoder_ffn_dim: s.whole("decoder_ffn_dim", INNER_WIDTH, 1536)?,
            max_source_positions: s.whole("max_source_positions", CLIP_ROWS, 1500)?,
            max_target_positions: s.whole("max_target_positions", ROWS, 448)?,
            activation_function: act(s, "activation_function", "gelu")?,
            tie_word_embeddings: s.flag("tie_word_embeddings", true)?,
        })
    }
}

/// Mel bins: the original has 80 or 128.
const MEL_BINS: RangeInclusive<usize> = 1..=1024;
/// Rows of a clip, 20 ms each: up to 20 minutes. The original has 1,500.
const CLIP_ROWS: RangeInclusive<usize> = 1..=60_000;
/// torch's default epsilon, for which the config has no key.
const EPS: f32 = 1e-5;

/// Positions per page of the encoder's keys and values.
const PAGE_SIZE: usize = 16;

impl Architecture for Config {
    fn shape(&self) -> ModelShape {
        let decoder = |causal| vec![self.decoder_heads.attention(causal, None); self.decoder_layers];
        ModelShape {
            architecture: "whisper",
            kind: ModelKind::Decoder,
            hidden_size: self.d_model,
            vocab_size: self.vocab_size,
            max_seq_len: self.max_target_positions,
            attention: decoder(true),
            intermediate_size: self.decoder_ffn_dim,
            has_gate: false,
            hidden_act: self.activation_function,
            has_layer_norm: true,
            has_head_norm: false,
            ties_embeddings: self.tie_word_embeddings,
            experts: None,
            audio: Some(AudioShape {
                n_mels: self.num_mel_bins,
                n_frames: 2 * self.max_source_positions,
                n_positions: self.max_source_positions,
                attention: vec![self.encoder_heads.attention(false, None); self.encoder_layers],
                intermediate_size: self.encoder_ffn_dim,
                cross_attention: decoder(false),
            }),
        }
    }

    fn names(&self) -> Names {
        let hidden = ("d_model", self.d_model);
        let (encoder, decoder) =
            (("encoder_ffn_dim", self.encoder_ffn_dim), ("decoder_ffn_dim", self.decoder_ffn_dim));
        let (words, clip, text) = (
            ("vocab_size", self.vocab_size),
            ("max_source_positions", self.max_source_positions),
            ("max_target_positions", self.max_target_positions),
        );
        Names {
            prefix: "model.",
            layers: vec![
                ("encoder.layers.", "encoder_layers", self.encoder_layers),
                ("decoder.layers.", "decoder_layers", self.decoder_layers),
            ],
            shown: vec![
                Shown { tensor: "decoder.embed_tokens.weight", shape: [words, hidden] },
                Shown { tensor: "decoder.embed_positions.weight", shape: [text, hidden] },
                Shown { tensor: "encoder.embed_positions.weight", shape: [clip, hidden] },
                Shown { tensor: "encoder.layers.0.fc1.weight", shape: [encoder, hidden] },
                Shown { tensor: "decoder.layers.0.fc1.weight", shape: [decoder, hidden] },
            ],
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
        let (n, act, tied) = (self.d_model, self.activation_function, self.tie_word_embeddings);
        let root = loader.root(&self.names());
        let encoder = Encoder::load(self, root, loader)?;
        let embedding = format!("{root}decoder.embed_tokens.weight");
        let tables = [embedding.as_str(), "proj_out.weight"];
        let embed_tokens = loader.embedding(tables, [self.vocab_size, n], tied)?;
        let embed_positions = format!("{root}decoder.embed_positions.weight");
        let embed_positions = loader.as_stored(&embed_positions, [self.max_target_positions, n])?;
        let cross = self.decoder_heads.attention(false, None);
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
        let head = Head::load(loader, tables, FinalNorm::Layer(norm), &embed_tokens, tied)?;
        let embed_tokens = Embed::tokens(embed_tokens);
        let embed_positions = Embed::added(embed_positions, Lookup::AddPosition);
        Ok(Box::new(Whisper { shape, encoder, embed_tokens, embed_positions, layers, head }))
    }

    fn load_audio_encoder(&self, loader: &mut Loader) -> Result<Option<Box<dyn AudioEncoder>>, ModelError> {
        let root = loader.root(&self.names());
        Ok(Some(Box::new(Encoder::load(self, root, loader)?)))
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
        sinks: None,
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
    /// The blocks of attention's portable variants.
    portable_blocks: Tensor,
    pages: Tensor,
    ends: Tensor,
}

impl Encoder {
    fn load(config: &Config, root: &str, loader: &mut Loader) -> Result<Self, ModelError> {
        let n = config.d_model;
        let n_positions = config.max_source_positions;
        let gpu = loader.gpu().clone();
        let (attention, act) = (config.encoder_heads.attention(false, None), config.activation_function);
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
        let blocks = |is_portable: bool| {
            let most = attention.block_rows(gpu.caps_of(is_portable));
            let block = |row: usize| [row as u32, most.min(n_positions - row) as u32];
            let blocks: Vec<[u32; 2]> = (0..n_positions).step_by(most).map(block).collect();
            table("clip blocks", [blocks.len(), 2], blocks.as_flattened())
        };
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
            blocks: blocks(false)?,
            portable_blocks: blocks(true)?,
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

    fn batch<'a>(&'a self, rec: &Recorder, kv: &'a [KvLayer]) -> Batch<'a> {
        let is_portable = rec.is_portable(Attention::OPERATION);
        let blocks = if is_portable { &self.portable_blocks } else { &self.blocks };
        Batch {
            n: prompt(self.n_positions),
            n_sampled: 0,
            n_prompt_blocks: blocks.n_rows(),
            longest: 0,
            rows: &self.rows,
            blocks,
            // Not read: there are no tokens.
            tokens: &self.rows,
            types: None,
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
        ops::unfold(rec, features, first, n_frames, 1, mel);
        ops::gate_up(rec, self.act, self.conv1.of(mel), before, active, prompt(n_frames));
        ops::unfold(rec, active, 0, n_frames, 2, frames);
        ops::gate_up(rec, self.act, self.conv2.of(frames), &a.h, &a.x, prompt(n_positions));
        let batch = self.batch(rec, kv);
        self.embed_positions.record(rec, &batch, &a.x);
    }

    fn layer(&self, i: usize, rec: &mut Recorder, s: &mut Scratch) {
        let (layer, AudioScratch { a, kv, .. }) = (&self.layers[i], audio(s));
        let (b, n_rows) = (&self.batch(rec, kv), self.n_positions);
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
        self.shape.launch(rec, &plan, &a.q, kv, None, &a.o);
        if let Some(shown) = clips.alignment {
            for (at, [_, head]) in shown.heads.iter().enumerate().filter(|(_, [layer, _])| *layer == i) {
                let first = at * clips.n_positions;
                let to = HeadWeights { head: *head, p: shown.weights, first };
                ops::attention_weights(rec, &self.shape, &plan, &a.q, kv, to);
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

    fn outputs(&self, rec: &mut Recorder, b: &Batch<'_>, s: &mut Scratch) -> Tensor {
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
            let to = RopeAppend { rotary: None, heads, places, q: &s.a.q, cache };
            ops::rope_append(rec, cross_kv, to, 0..n_rows);
        }
    }
}
