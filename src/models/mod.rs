//! Layer 3: architectures. One architecture is one file, an architecture is three recordings.
//!
//! A file here reads like the paper: the config with Hugging Face's keys, the weights by their names, then
//! `embed`, `layer` and `logits`. It names no wgpu type, no file format and no quantised type. A [`Model`] writes token
//! by token; an [`Encoder`] reads whole texts.

mod batch;
mod bert;
pub mod blocks;
mod distilbert;
mod error;
mod gpt2;
mod llama;
mod loader;
mod mistral;
mod modernbert;
mod qwen2;
mod qwen3;
mod roberta;
mod upload;
mod whisper;

use serde::de::DeserializeOwned;

use crate::gpu::{Caps, Recorder, Tensor};
use crate::ops::{Attention, KvLayer};
pub use batch::{Alignment, Batch, Capacity, Clips};
pub use error::ModelError;
pub use loader::Loader;
pub use upload::{Progress, Upload};

/// What a model is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// It writes token by token: a [`Model`].
    Decoder,
    /// It reads whole texts: an [`Encoder`].
    Encoder,
}

/// The shape of a model, as far as cache and scheduler need it.
#[derive(Clone, Debug)]
pub struct ModelShape {
    /// `model_type` in the config.
    pub architecture: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Logits a row.
    pub vocab_size: usize,
    /// Positions that the model was made for.
    pub max_seq_len: usize,
    /// Attention of each layer.
    pub attention: Vec<Attention>,
    /// Width of the feed-forward part.
    pub intermediate_size: usize,
    /// The feed-forward part has a gate.
    pub has_gate: bool,
    /// The norms are layer norms, not RMS norms.
    pub has_layer_norm: bool,
    /// Queries and keys are normalised a head.
    pub has_head_norm: bool,
    /// Logits come from the embedding.
    pub ties_embeddings: bool,
    /// What it hears, if it does.
    pub audio: Option<AudioShape>,
}

/// The shape of what hears in a model.
#[derive(Clone, Debug)]
pub struct AudioShape {
    /// Bins of a frame of features.
    pub n_mels: usize,
    /// Frames of a clip, 10 ms each.
    pub n_frames: usize,
    /// Rows that a clip becomes, 20 ms each: what the decoder attends to.
    pub n_positions: usize,
    /// Attention of each layer of the encoder.
    pub attention: Vec<Attention>,
    /// Width of the feed-forward part of its layers.
    pub intermediate_size: usize,
    /// Attention of each layer of the decoder to a clip.
    pub cross_attention: Vec<Attention>,
}

impl ModelShape {
    /// Layers.
    pub fn n_layers(&self) -> usize {
        self.attention.len()
    }
}

/// A model in device memory, with its activations. The recordings of one model run one after the other.
pub trait Model: Send + Sync {
    /// Records the residual stream's start: one row for each row of the batch.
    fn embed(&self, rec: &mut Recorder, batch: &Batch<'_>);
    /// Records layer `i` on the residual stream.
    fn layer(&self, i: usize, rec: &mut Recorder, batch: &Batch<'_>);
    /// Records the logits `[max_sampled, vocab_size]` F32 of the rows that `batch.sampled` names, and returns
    /// where they will be.
    fn logits(&self, rec: &mut Recorder, batch: &Batch<'_>) -> &Tensor;
    /// What hears in it, if it does: its recordings run one after the other with those of the model.
    fn audio_encoder(&self) -> Option<&dyn AudioEncoder> {
        None
    }
    /// Records the keys and values that the layers' cross-attention takes from the encoder's last clip, into the
    /// `pages` `[1, _]` of that clip.
    fn attend_to(&self, _rec: &mut Recorder, _pages: &Tensor, _page_size: usize, _kv: &[KvLayer]) {}
}

/// What turns a clip's features into rows that a decoder attends to.
pub trait AudioEncoder: Send + Sync {
    /// Records the residual stream's start from the clip's features, `[_, n_mels]` F32 from row `first` on.
    fn embed(&self, rec: &mut Recorder, features: &Tensor, first: usize);
    /// Records layer `i` on it.
    fn layer(&self, i: usize, rec: &mut Recorder);
    /// Records the last norm, and returns where the clip's rows will be: `[n_positions, hidden_size]` F32.
    fn rows(&self, rec: &mut Recorder) -> &Tensor;
}

/// A parsed `config.json`: what a model is before its weights are there.
pub trait Architecture: Send + Sync {
    /// Its shape.
    fn shape(&self) -> ModelShape;
    /// Loads the weights.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    fn load(&self, loader: &mut Loader<'_>, capacity: Capacity) -> Result<Box<dyn Model>, ModelError>;
    /// Loads what hears alone, if the model hears.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    fn load_audio_encoder(
        &self,
        _loader: &mut Loader<'_>,
    ) -> Result<Option<Box<dyn AudioEncoder>>, ModelError> {
        Ok(None)
    }
}

/// A text encoder in device memory, with its activations. A batch holds whole sequences, all of their rows those of
/// prompts; its `ends` are set. The recordings of one encoder run one after the other.
pub trait Encoder: Send + Sync {
    /// Records the stream's start: one row for each row of the batch.
    fn embed(&self, rec: &mut Recorder, batch: &Batch<'_>);
    /// Records layer `i` on the stream.
    fn layer(&self, i: usize, rec: &mut Recorder, batch: &Batch<'_>);
    /// Records what is left after the last layer, and returns where the batch's rows will be:
    /// `[max_rows, hidden_size]` F32.
    fn rows(&self, rec: &mut Recorder, batch: &Batch<'_>) -> &Tensor;
    /// Records the classification head on what [`Encoder::rows`] left, `n_seqs` sequences whose rows `spans`
    /// `[n_seqs, 2]` names as (first row, rows), and returns where the logits will be: `[max_seqs, n_labels]` F32. `None`
    /// if the checkpoint has no head.
    fn logits(&self, rec: &mut Recorder, spans: &Tensor, n_seqs: usize) -> Option<&Tensor>;
}

/// What a classification head tells apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// In the order of the logits.
    pub names: Vec<String>,
    /// What the logits mean.
    pub problem: Problem,
}

/// What the logits of a classification head mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// One label holds: softmax gives its probability.
    #[serde(rename = "single_label_classification")]
    SingleLabel,
    /// Each label holds or not: the logistic function gives its probability.
    #[serde(rename = "multi_label_classification")]
    MultiLabel,
    /// The logits are the values themselves.
    Regression,
}

impl Labels {
    /// The probability of each label; `None` where logits are values, not scores.
    pub fn probabilities(&self, logits: &[f32]) -> Option<Vec<f32>> {
        let logits = logits.iter().map(|z| f64::from(*z));
        match self.problem {
            Problem::SingleLabel => {
                let largest = logits.clone().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = logits.map(|z| (z - largest).exp()).collect();
                let sum: f64 = weights.iter().sum();
                Some(weights.iter().map(|w| (w / sum) as f32).collect())
            }
            Problem::MultiLabel => Some(logits.map(|z| (1.0 / (1.0 + (-z).exp())) as f32).collect()),
            Problem::Regression => None,
        }
    }
}

/// A parsed `config.json` of an encoder: what it is before its weights are there.
pub trait EncoderArchitecture: Send + Sync {
    /// Its shape.
    fn shape(&self) -> ModelShape;
    /// The labels of its classification head, if it has one.
    ///
    /// # Errors
    /// [`ModelError::Config`], [`ModelError::Unsupported`].
    fn labels(&self) -> Result<Option<Labels>, ModelError>;
    /// Loads the weights.
    ///
    /// # Errors
    /// [`ModelError::Weights`], [`ModelError::Unsupported`].
    fn load(&self, loader: &mut Loader<'_>, capacity: Capacity) -> Result<Box<dyn Encoder>, ModelError>;
}

type Parsed<A> = Result<Box<A>, ModelError>;

/// How a config is read.
enum Parse {
    Decoder(fn(&str) -> Parsed<dyn Architecture>),
    Encoder(fn(&str) -> Parsed<dyn EncoderArchitecture>),
}

impl Parse {
    fn kind(&self) -> ModelKind {
        match self {
            Parse::Decoder(_) => ModelKind::Decoder,
            Parse::Encoder(_) => ModelKind::Encoder,
        }
    }
}

/// Every architecture by its `model_type`.
static ARCHITECTURES: &[(&str, Parse)] = &[
    ("bert", Parse::Encoder(|json| Ok(Box::new(parse::<bert::Config>(json)?)))),
    ("camembert", Parse::Encoder(|json| Ok(Box::new(parse::<roberta::Config>(json)?)))),
    ("distilbert", Parse::Encoder(|json| Ok(Box::new(parse::<distilbert::Config>(json)?)))),
    ("gpt2", Parse::Decoder(|json| Ok(Box::new(parse::<gpt2::Config>(json)?)))),
    ("llama", Parse::Decoder(|json| Ok(Box::new(parse::<llama::Config>(json)?)))),
    ("mistral", Parse::Decoder(|json| Ok(Box::new(parse::<mistral::Config>(json)?)))),
    ("modernbert", Parse::Encoder(|json| Ok(Box::new(parse::<modernbert::Config>(json)?)))),
    ("qwen2", Parse::Decoder(|json| Ok(Box::new(parse::<qwen2::Config>(json)?)))),
    ("qwen3", Parse::Decoder(|json| Ok(Box::new(parse::<qwen3::Config>(json)?)))),
    ("roberta", Parse::Encoder(|json| Ok(Box::new(parse::<roberta::Config>(json)?)))),
    ("whisper", Parse::Decoder(|json| Ok(Box::new(parse::<whisper::Config>(json)?)))),
    ("xlm-roberta", Parse::Encoder(|json| Ok(Box::new(parse::<roberta::Config>(json)?)))),
];

/// The `model_type`s that run.
pub fn architectures() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect()
}

/// The keys of any `config.json` that say how to read the rest.
#[derive(serde::Deserialize)]
struct Header {
    model_type: String,
    quantization_config: Option<serde_json::Value>,
}

/// How a `config.json` is to be read, and its `model_type`.
fn recognise(config_json: &str) -> Result<(&'static Parse, String), ModelError> {
    let header: Header = parse(config_json)?;
    let known = ARCHITECTURES.iter().find(|(name, _)| *name == header.model_type);
    let Some((_, parse)) = known else {
        let known = architectures().iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
        return Err(ModelError::UnknownArchitecture { found: header.model_type, known });
    };
    if let Some(quantization) = header.quantization_config {
        let found = quantization["quant_method"].as_str().unwrap_or("present").to_string();
        let expected = "weights in F32, F16 or BF16".into();
        return Err(ModelError::Unsupported { key: "quantization_config", found, expected });
    }
    Ok((parse, header.model_type))
}

/// What the model of a `config.json` is made for.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], [`ModelError::Config`], [`ModelError::Unsupported`].
pub fn kind(config_json: &str) -> Result<ModelKind, ModelError> {
    Ok(recognise(config_json)?.0.kind())
}

/// Reads the `config.json` of a language model.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`], [`ModelError::WrongKind`], [`ModelError::Config`] names a key that is missing,
/// [`ModelError::Unsupported`] one whose value does not run.
pub fn open(config_json: &str) -> Result<Box<dyn Architecture>, ModelError> {
    match recognise(config_json)? {
        (Parse::Decoder(parse), _) => {
            let architecture = parse(config_json)?;
            check(&architecture.shape())?;
            Ok(architecture)
        }
        (other, found) => Err(ModelError::WrongKind { found, kind: other.kind() }),
    }
}

/// Reads the `config.json` of an encoder.
///
/// # Errors
/// As [`open`].
pub fn open_encoder(config_json: &str) -> Result<Box<dyn EncoderArchitecture>, ModelError> {
    match recognise(config_json)? {
        (Parse::Encoder(parse), _) => {
            let architecture = parse(config_json)?;
            let shape = architecture.shape();
            check(&shape)?;
            if let Some(a) = shape.attention.iter().find(|a| a.n_heads * a.head_dim != shape.hidden_size) {
                return Err(ModelError::Unsupported {
                    key: "num_attention_heads",
                    found: a.n_heads.to_string(),
                    expected: format!("a divisor of the hidden size {}", shape.hidden_size),
                });
            }
            architecture.labels()?;
            Ok(architecture)
        }
        (other, found) => Err(ModelError::WrongKind { found, kind: other.kind() }),
    }
}

fn parse<C: DeserializeOwned>(json: &str) -> Result<C, ModelError> {
    serde_json::from_str(json).map_err(|e| ModelError::Config { message: e.to_string() })
}

/// What the kernels need of any shape.
fn check(shape: &ModelShape) -> Result<(), ModelError> {
    let no = |key, found: String, expected: &str| {
        Err(ModelError::Unsupported { key, found, expected: expected.to_string() })
    };
    for (key, n) in [
        ("hidden_size", shape.hidden_size),
        ("vocab_size", shape.vocab_size),
        ("max_position_embeddings", shape.max_seq_len),
        ("num_hidden_layers", shape.n_layers()),
    ] {
        // No table that a model has may pass what a u32 index on the device can count.
        if n == 0 || n > 1 << 28 {
            return no(key, n.to_string(), "a number from 1 to 2^28");
        }
    }
    let audio = shape.audio.iter().flat_map(|audio| audio.attention.iter().chain(&audio.cross_attention));
    for a in shape.attention.iter().chain(audio) {
        if a.n_heads == 0 {
            return no("num_attention_heads", "0".into(), "at least 1");
        }
        if a.head_dim == 0 || a.head_dim % 4 != 0 || a.head_dim > 256 {
            return no("head_dim", a.head_dim.to_string(), "a multiple of 4, at most 256");
        }
        if a.n_kv_heads == 0 || a.n_heads % a.n_kv_heads != 0 {
            let expected = format!("a divisor of the {} attention heads", a.n_heads);
            return no("num_key_value_heads", a.n_kv_heads.to_string(), &expected);
        }
    }
    Ok(())
}

/// Whether the attention kernel fits the device, which `open` cannot know.
pub(crate) fn check_device(shape: &ModelShape, caps: &Caps) -> Result<(), ModelError> {
    let audio = shape.audio.iter().flat_map(|audio| audio.attention.iter().chain(&audio.cross_attention));
    match shape.attention.iter().chain(audio).find(|a| !a.fits(caps)) {
        None => Ok(()),
        Some(a) => Err(ModelError::Unsupported {
            key: "num_attention_heads",
            found: format!("{} heads for {} key-value heads of {}", a.n_heads, a.n_kv_heads, a.head_dim),
            expected: "groups that fit the device's workgroup memory".into(),
        }),
    }
}
