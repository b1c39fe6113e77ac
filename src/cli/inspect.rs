//! `wginfer inspect`: a model's contents and memory needs. It uses no GPU.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use serde_json::{Map, Value};
use wginfer::checkpoint::{EmbeddingConfig, ModelFiles};
use wginfer::dtype::{BLOCK, Dtype};
use wginfer::engine::{PAGE_SIZE, Sampling, page_bytes};
use wginfer::models::{AudioShape, ModelKind, ModelShape, Problem};
use wginfer::ops::{Attention, KvLayer};
use wginfer::text::{Message, TextError, Tokenizer};
use wginfer::weights::Weights;

use super::args::ModelArg;
use super::failure::Failure;
use super::{format, json, sampling, table};

const EXAMPLES: &str = "Examples:
  wginfer inspect
  wginfer inspect -m ~/models/SmolLM2-360M-Instruct --tensors";

/// Show a model's contents and memory needs; needs no GPU
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// List every tensor
    #[arg(long)]
    tensors: bool,

    /// Write an object
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArg,
}

/// Tokens for which the cache's size is reported.
const KV_TOKENS: usize = 1000;

#[derive(Serialize)]
struct Report {
    name: String,
    architecture: &'static str,
    n_params: usize,
    n_tensors: usize,
    /// Parameters of each type.
    dtypes: BTreeMap<String, usize>,
    weights_bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    kv_bytes_per_1000_tokens: Option<KvBytes>,
    largest_binding: Option<TensorRow>,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    sliding_window: Option<usize>,
    hidden_size: usize,
    vocab_size: usize,
    max_seq_len: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    audio: Option<AudioRow>,
    tokenizer: Option<TokenizerRow>,
    /// Why there is no tokenizer.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokenizer_error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sampling: Option<Map<String, Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    classifier: Option<ClassifierRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<EmbeddingRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorRow>>,
}

/// The audio encoder.
#[derive(Serialize)]
struct AudioRow {
    n_mels: usize,
    clip_seconds: f64,
    n_positions: usize,
    n_layers: usize,
    n_heads: usize,
    /// Keys and values of a clip for the decoder's layers.
    kv_bytes_per_clip: ClipBytes,
}

#[derive(Serialize)]
struct ClipBytes {
    f16: usize,
    f32: usize,
}

impl AudioRow {
    fn of(audio: &AudioShape) -> AudioRow {
        let kv_bytes = |dtype| -> usize {
            let width = |a: &Attention| a.n_kv_heads * a.head_dim * audio.n_positions;
            audio.cross_attention.iter().map(|a| 2 * KvLayer::bytes(dtype, width(a))).sum()
        };
        AudioRow {
            n_mels: audio.n_mels,
            // 10 ms per frame.
            clip_seconds: audio.n_frames as f64 / 100.0,
            n_positions: audio.n_positions,
            n_layers: audio.attention.len(),
            n_heads: audio.attention.first().map_or(0, |a| a.n_heads),
            kv_bytes_per_clip: ClipBytes { f16: kv_bytes(Dtype::F16), f32: kv_bytes(Dtype::F32) },
        }
    }
}

#[derive(Serialize)]
struct KvBytes {
    f16: usize,
    f32: usize,
    /// Only if the head dimension is a multiple of 32.
    q8_0: Option<usize>,
}

/// The classification head.
#[derive(Serialize)]
struct ClassifierRow {
    problem: Problem,
    labels: Vec<String>,
}

/// The pooling of an encoder's rows into an embedding.
#[derive(Serialize)]
struct EmbeddingRow {
    width: usize,
    pooling: Vec<String>,
    n_dense: usize,
    normalize: bool,
    /// Number of tokens to which a text is cut.
    max_seq_length: usize,
    prompts: Vec<String>,
    /// Whether the checkpoint declares it, in `modules.json`.
    declared: bool,
}

#[derive(Serialize)]
struct TensorRow {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    n_bytes: usize,
}

#[derive(Serialize)]
struct TokenizerRow {
    n_tokens: usize,
    bos: Option<String>,
    eos: Vec<String>,
    /// Whether there is a chat template that works.
    chat_template: bool,
    /// Why the chat template does not work.
    #[serde(skip_serializing_if = "Option::is_none")]
    chat_template_error: Option<String>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let checkpoint = args.model.open_any()?;
    let report = match checkpoint.kind() {
        ModelKind::Decoder => Report::of(&checkpoint, args.tensors),
        ModelKind::Encoder => Report::of_encoder(&checkpoint, args.tensors),
    };
    if args.json {
        return json::write(&report, out);
    }
    report.write(out)
}

impl Report {
    fn of(checkpoint: &ModelFiles, with_tensors: bool) -> Report {
        let shape = checkpoint.architecture.shape();
        // A page holds `PAGE_SIZE` positions, and 1000 is not a multiple.
        let kv_bytes = |dtype| page_bytes(&shape, dtype) * KV_TOKENS / PAGE_SIZE;
        let has_blocks = shape.attention.iter().all(|a| a.head_dim.is_multiple_of(BLOCK));
        let number = |text: &str| {
            text.parse::<u64>().map(Value::from).or_else(|_| text.parse::<f64>().map(Value::from))
        };
        let sampling = sampling::values(&Sampling::from(&checkpoint.generation))
            .into_iter()
            .map(|(name, value)| (name.to_string(), number(&value).unwrap_or(Value::Null)));
        Report {
            kv_bytes_per_1000_tokens: Some(KvBytes {
                f16: kv_bytes(Dtype::F16),
                f32: kv_bytes(Dtype::F32),
                q8_0: has_blocks.then(|| kv_bytes(Dtype::Q8_0)),
            }),
            sampling: Some(sampling.collect()),
            ..Report::common(
                &checkpoint.name,
                &shape,
                &checkpoint.weights,
                &checkpoint.tokenizer,
                with_tensors,
            )
        }
    }

    fn of_encoder(checkpoint: &ModelFiles, with_tensors: bool) -> Report {
        let shape = checkpoint.architecture.shape();
        let row = |config: &EmbeddingConfig| EmbeddingRow {
            width: config.width(shape.hidden_size),
            pooling: config.pooling.iter().map(|pooling| pooling.name().to_string()).collect(),
            n_dense: config.dense.len(),
            normalize: config.normalize,
            max_seq_length: config.max_seq_length.unwrap_or(usize::MAX).min(shape.max_seq_len),
            prompts: config.prompts.keys().cloned().collect(),
            declared: config.is_declared,
        };
        let labels = checkpoint.labels.clone();
        Report {
            classifier: labels.map(|l| ClassifierRow { problem: l.problem, labels: l.names }),
            embedding: checkpoint.embedding.as_ref().map(row),
            ..Report::common(
                &checkpoint.name,
                &shape,
                &checkpoint.weights,
                &checkpoint.tokenizer,
                with_tensors,
            )
        }
    }

    /// The lines that any model has.
    fn common(
        name: &str,
        shape: &ModelShape,
        weights: &Weights,
        tokenizer: &Result<Tokenizer, TextError>,
        with_tensors: bool,
    ) -> Report {
        let rows: Vec<TensorRow> = weights.entries().iter().map(TensorRow::of).collect();
        let mut dtypes = BTreeMap::new();
        for row in &rows {
            *dtypes.entry(row.dtype.clone()).or_default() += row.shape.iter().product::<usize>();
        }
        let largest = weights.entries().iter().max_by_key(|e| e.n_bytes);
        let first = shape.attention.first();
        let (tokenizer, tokenizer_error) = match tokenizer {
            Ok(tokenizer) => (Some(TokenizerRow::of(tokenizer)), None),
            Err(error) => (None, Some(error.to_string())),
        };
        Report {
            name: name.to_string(),
            architecture: shape.architecture,
            n_params: weights.n_params(),
            n_tensors: rows.len(),
            dtypes,
            weights_bytes: weights.n_bytes(),
            kv_bytes_per_1000_tokens: None,
            largest_binding: largest.map(TensorRow::of),
            n_layers: shape.n_layers(),
            n_heads: first.map_or(0, |a| a.n_heads),
            n_kv_heads: first.map_or(0, |a| a.n_kv_heads),
            head_dim: first.map_or(0, |a| a.head_dim),
            sliding_window: shape.attention.iter().find_map(|a| a.window),
            hidden_size: shape.hidden_size,
            vocab_size: shape.vocab_size,
            max_seq_len: shape.max_seq_len,
            audio: shape.audio.as_ref().map(AudioRow::of),
            tokenizer,
            tokenizer_error,
            sampling: None,
            classifier: None,
            embedding: None,
            tensors: with_tensors.then_some(rows),
        }
    }

    fn write(&self, out: &mut dyn Write) -> Result<(), Failure> {
        /// Most characters of a value, of which a classifier's labels are the longest.
        const MOST: usize = 1600;
        let mut row = |name: &str, value: String| writeln!(out, "{name:<20} {}", format::shown(&value, MOST));
        let bytes = |n: usize| format::bytes(n as u64);
        row("model", self.name.clone())?;
        row("architecture", self.architecture.to_string())?;
        row("parameters", format!("{} ({})", format::count(self.n_params as u64), self.n_params))?;
        let dtypes = self.dtypes.iter().map(|(name, n)| format!("{name} {}", format::count(*n as u64)));
        row("types", dtypes.collect::<Vec<_>>().join(", "))?;
        row("tensors", self.n_tensors.to_string())?;
        row("weights", bytes(self.weights_bytes))?;
        if let Some(kv) = &self.kv_bytes_per_1000_tokens {
            let q8_0 = kv.q8_0.map_or(String::new(), |n| format!(", {} in q8_0", bytes(n)));
            row("cache, 1000 tokens", format!("{} in f16, {} in f32{q8_0}", bytes(kv.f16), bytes(kv.f32)))?;
        }
        if let Some(t) = &self.largest_binding {
            row("largest binding", format!("{} (`{}`)", bytes(t.n_bytes), t.name))?;
        }
        row("layers", self.n_layers.to_string())?;
        row(
            "heads",
            format!("{} of {}, {} for keys and values", self.n_heads, self.head_dim, self.n_kv_heads),
        )?;
        if let Some(n) = self.sliding_window {
            row("sliding window", n.to_string())?;
        }
        row("hidden size", self.hidden_size.to_string())?;
        row("context", self.max_seq_len.to_string())?;
        if let Some(audio) = &self.audio {
            row(
                "hears",
                format!(
                    "{} mel bins, clips of {} s as {} rows",
                    audio.n_mels, audio.clip_seconds, audio.n_positions
                ),
            )?;
            row("encoder", format!("{} layers, {} heads", audio.n_layers, audio.n_heads))?;
            let kv = &audio.kv_bytes_per_clip;
            row("cache, a clip", format!("{} in f16, {} in f32", bytes(kv.f16), bytes(kv.f32)))?;
        }
        row("vocabulary", self.vocab_size.to_string())?;
        match (&self.tokenizer, &self.tokenizer_error) {
            (Some(t), _) if self.sampling.is_none() => row("tokenizer", format!("{} tokens", t.n_tokens))?,
            (Some(t), _) => {
                row("tokenizer", format!("{} tokens, ends with {}", t.n_tokens, listed(&t.eos)))?;
                let works = if t.chat_template { "yes" } else { "no" };
                row("chat template", t.chat_template_error.clone().unwrap_or_else(|| works.to_string()))?;
            }
            (None, error) => row("tokenizer", error.clone().unwrap_or_default())?,
        }
        if let Some(sampling) = &self.sampling {
            let set = sampling.iter().filter(|(_, value)| !value.is_null());
            row(
                "sampling",
                set.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", "),
            )?;
        }
        if let Some(classifier) = &self.classifier {
            let what = match classifier.problem {
                Problem::SingleLabel => "one of",
                Problem::MultiLabel => "any of",
                Problem::Regression => "values of",
            };
            row("labels", format!("{what} {}", listed(&classifier.labels)))?;
        }
        if let Some(e) = &self.embedding {
            let mut how = e.pooling.join(" beside ");
            match e.n_dense {
                0 => {}
                1 => how += ", then a product",
                n => how += &format!(", then {n} products"),
            }
            if e.normalize {
                how += ", length 1";
            }
            if !e.declared {
                how += " (no `modules.json`)";
            }
            row("embedding", format!("{} values: {how}", e.width))?;
            row("longest text", format!("{} tokens", e.max_seq_length))?;
            if !e.prompts.is_empty() {
                row("prompts", listed(&e.prompts))?;
            }
        }
        let tensors = self.tensors.iter().flatten();
        let names: Vec<String> = tensors.clone().map(|t| format::shown(&t.name, table::MOST)).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        for (i, (t, name)) in tensors.zip(names).enumerate() {
            if i == 0 {
                writeln!(out)?;
            }
            writeln!(out, "{name:<width$}  {:<5} {:?}", format::shown(&t.dtype, table::MOST), t.shape)?;
        }
        Ok(())
    }
}

fn listed(tokens: &[String]) -> String {
    if tokens.is_empty() {
        return "none".to_string();
    }
    tokens.iter().map(|t| format!("`{}`", format::shown(t, table::MOST))).collect::<Vec<_>>().join(", ")
}

impl TensorRow {
    fn of(entry: &wginfer::weights::Entry) -> TensorRow {
        TensorRow {
            name: entry.stored_name.clone(),
            dtype: entry.dtype.clone(),
            shape: entry.shape.clone(),
            n_bytes: entry.n_bytes,
        }
    }
}

impl TokenizerRow {
    fn of(tokenizer: &Tokenizer) -> TokenizerRow {
        let name = |id: u32| tokenizer.id_to_token(id).unwrap_or_else(|| id.to_string());
        // What is wrong with a template may show only when it is rendered.
        let template = tokenizer.chat_template().and_then(|template| {
            match template.render(&[Message::user("Hello")], true, &serde_json::Map::new()) {
                // It works: it wants another conversation.
                Ok(_) | Err(TextError::TemplateRefused { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        });
        TokenizerRow {
            n_tokens: tokenizer.vocab_size(),
            bos: tokenizer.bos().map(name),
            eos: tokenizer.eos().iter().map(|id| name(*id)).collect(),
            chat_template: template.is_ok(),
            chat_template_error: match template {
                Ok(()) | Err(TextError::NoChatTemplate | TextError::NoDefaultTemplate { .. }) => None,
                Err(error) => Some(error.to_string()),
            },
        }
    }
}
