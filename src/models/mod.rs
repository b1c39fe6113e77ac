//! Layer 3: architectures. One architecture is one file, with three recordings: `embed`, `layer` and `outputs`.
//!
//! A file reads like the paper: the config with Hugging Face's keys, the weights by their names, then the recordings.
//! It names no wgpu type, no file format and no quantised type. A [`Model`] has the weights, which never change.
//! Recordings write only to a [`Scratch`].

mod batch;
mod bert;
pub mod blocks;
mod distilbert;
mod embedder;
mod error;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod granite;
mod llama;
mod loader;
mod ministral3;
mod mistral;
mod mixtral;
mod modernbert;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod roberta;
mod scratch;
pub(crate) mod settings;
mod smollm3;
mod upload;
mod whisper;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::gpu::{Caps, Gpu, GpuError, Recorder, Tensor};
use crate::ops::{Act, Attention, KvLayer};
use crate::weights::{Order, Weights};
pub use batch::{Alignment, Batch, BatchClips, Capacity};
pub(crate) use embedder::{SCORE, embedder};
pub use error::ModelError;
pub use loader::{ExpertNames, Loader};
pub use scratch::{Activations, AudioScratch, ExpertScratch, LabelScratch, Scratch};
pub use settings::SettingError;
use settings::{Read, Settings};
pub(crate) use upload::MOST_SLICE;
pub use upload::{LoadProgress, Upload};

/// The kind of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// It generates token by token: [`Model::outputs`] are logits.
    Decoder,
    /// It reads whole texts: [`Model::outputs`] are rows of hidden states.
    Encoder,
}

/// The shape of a model: sizes and options that the engine and benchmarks need.
#[derive(Clone, Debug)]
pub struct ModelShape {
    /// `model_type` in the config.
    pub architecture: &'static str,
    /// Decoder or encoder.
    pub kind: ModelKind,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of logits per row.
    pub vocab_size: usize,
    /// Longest sequence that the model supports, in tokens.
    pub max_seq_len: usize,
    /// Attention of each layer.
    pub attention: Vec<Attention>,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Whether the MLP has a gate.
    pub has_gate: bool,
    /// Activation function of the MLP.
    pub hidden_act: Act,
    /// Whether the norms are layer norms or RMS norms.
    pub has_layer_norm: bool,
    /// Whether each head of queries and keys is normalised.
    pub has_head_norm: bool,
    /// Whether the head shares the weights of the embedding.
    pub ties_embeddings: bool,
    /// The experts, if there are any.
    pub experts: Option<ExpertsShape>,
    /// The audio encoder, if there is one.
    pub audio: Option<AudioShape>,
}

/// The shape of a mixture of experts.
#[derive(Clone, Debug)]
pub struct ExpertsShape {
    /// Experts of a layer.
    pub n_experts: usize,
    /// Experts that a row takes.
    pub n_chosen: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// For each layer, whether its MLP is a mixture of experts.
    pub layers: Vec<bool>,
}

/// The shape of an audio encoder.
#[derive(Clone, Debug)]
pub struct AudioShape {
    /// Mel bins per frame.
    pub n_mels: usize,
    /// Frames per clip, 10 ms each.
    pub n_frames: usize,
    /// Rows per clip after the encoder, 20 ms each. The decoder attends to them.
    pub n_positions: usize,
    /// Attention of each layer of the encoder.
    pub attention: Vec<Attention>,
    /// Width of the encoder's MLP.
    pub intermediate_size: usize,
    /// Cross-attention of each layer of the decoder.
    pub cross_attention: Vec<Attention>,
}

impl ModelShape {
    /// Most prompt rows per block of attention, for the variants that `rec` records.
    pub(crate) fn block_rows(&self, rec: &Recorder) -> usize {
        let caps = rec.caps(Attention::OPERATION);
        self.attention.iter().map(|a| a.block_rows(caps)).min().unwrap_or(1)
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.attention.len()
    }

    /// The experts of layer `i`, if it has any.
    pub fn experts_of(&self, i: usize) -> Option<&ExpertsShape> {
        self.experts.as_ref().filter(|experts| experts.layers.get(i) == Some(&true))
    }
}

/// A model's weights in device memory. They never change, and several engines may share them. A recording writes only
/// to the [`Scratch`] that is passed in.
///
/// [`ModelShape::kind`] says whether it is a decoder or an encoder.
pub trait Model: Send + Sync {
    /// Allocates the buffers that recordings write, for batches up to `capacity`.
    ///
    /// # Errors
    /// [`GpuError::TooLarge`], [`GpuError::OutOfMemory`].
    ///
    /// # Panics
    /// If `capacity` has longer sequences than the model was loaded for.
    fn scratch(&self, gpu: &Gpu, capacity: Capacity) -> Result<Scratch, GpuError>;
    /// Records the start of the residual stream: one row for each row of the batch.
    fn embed(&self, rec: &mut Recorder, batch: &Batch<'_>, s: &mut Scratch);
    /// Records layer `i` on the residual stream.
    fn layer(&self, i: usize, rec: &mut Recorder, batch: &Batch<'_>, s: &mut Scratch);
    /// Records the end, and returns its tensor, F32. Of a decoder: the logits of the rows in `batch.sampled`,
    /// `[max_sampled, vocab_size]`. Of an encoder: the batch's rows, `[max_rows, hidden_size]`; the batch has whole
    /// sequences, as prompt rows, and its `ends` are set.
    fn outputs(&self, rec: &mut Recorder, batch: &Batch<'_>, s: &mut Scratch) -> Tensor;
    /// Records the classification head on the result of [`Model::outputs`], for `n_seqs` sequences with their (first row,
    /// rows) in `spans` `[n_seqs, 2]`. Returns the tensor of the logits, `[max_seqs, n_labels]` F32; `None` if the
    /// checkpoint has no head.
    fn classify(
        &self,
        _rec: &mut Recorder,
        _spans: &Tensor,
        _n_seqs: usize,
        _s: &mut Scratch,
    ) -> Option<Tensor> {
        None
    }
    /// The audio encoder, if the model has one.
    fn audio_encoder(&self) -> Option<&dyn AudioEncoder> {
        None
    }
    /// Records the keys and values of all layers' cross-attention for the audio encoder's last clip, and writes them to
    /// the `pages` `[1, _]` of that clip.
    fn attend_to(
        &self,
        _rec: &mut Recorder,
        _pages: &Tensor,
        _page_size: usize,
        _kv: &[KvLayer],
        _s: &mut Scratch,
    ) {
    }
}

/// The weights of an audio encoder, which turns a clip's features into rows for the decoder's cross-attention.
pub trait AudioEncoder: Send + Sync {
    /// Allocates the buffers that its recordings write, for an encoder that was loaded without its decoder. The scratch
    /// of a whole model includes them.
    ///
    /// # Errors
    /// As [`Model::scratch`].
    fn scratch(&self, gpu: &Gpu) -> Result<Scratch, GpuError>;
    /// Records the start of the residual stream from the clip's features, `[_, n_mels]` F32 from row `first` on.
    fn embed(&self, rec: &mut Recorder, features: &Tensor, first: usize, s: &mut Scratch);
    /// Records layer `i` on the residual stream.
    fn layer(&self, i: usize, rec: &mut Recorder, s: &mut Scratch);
    /// Records the last norm, and returns the tensor of the clip's rows, `[n_positions, hidden_size]` F32.
    fn rows(&self, rec: &mut Recorder, s: &mut Scratch) -> Tensor;
}

/// A parsed `config.json`: a model before its weights are loaded.
pub trait Architecture: Send + Sync {
    /// The model's shape.
    fn shape(&self) -> ModelShape;
    /// The names by which a checkpoint of this model is known.
    fn names(&self) -> Names;
    /// The labels of the classification head, if the model has one.
    fn labels(&self) -> Option<&Labels> {
        None
    }
    /// Loads the weights, for sequences of up to `max_seq_len` positions.
    ///
    /// # Errors
    /// [`ModelError::Weights`], [`ModelError::Unsupported`].
    fn load(&self, loader: &mut Loader, max_seq_len: usize) -> Result<Box<dyn Model>, ModelError>;
    /// Loads the audio encoder without its decoder, if the model has one.
    ///
    /// # Errors
    /// As [`Architecture::load`].
    fn load_audio_encoder(&self, _loader: &mut Loader) -> Result<Option<Box<dyn AudioEncoder>>, ModelError> {
        Ok(None)
    }
}

/// The names of tensors by which a checkpoint of a model is known, without `prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// What all names of the model without its heads begin with (transformers' `base_model_prefix`), unless it was saved
    /// alone.
    pub prefix: &'static str,
    /// For each stack of layers: what comes before a layer's number, the key of their number, and that number.
    pub layers: Vec<(&'static str, &'static str, usize)>,
    /// Tensors whose shapes show keys of the config.
    pub shown: Vec<Shown>,
}

/// A matrix whose shape shows two keys of a config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Its name.
    pub tensor: &'static str,
    /// For each dimension, the key and its value.
    pub shape: [(&'static str, usize); 2],
}

/// Where models of images and text have the text model, whose prefix is `model.` if it is alone, and the name of its head:
/// as transformers 5 writes them, and as earlier versions did.
const LANGUAGE_MODELS: [(&str, &str); 2] =
    [("model.language_model.", "lm_head.weight"), ("language_model.model.", "language_model.lm_head.weight")];

/// The name of a text model's head, if the model's names begin with `root`.
fn lm_head(root: &str) -> &'static str {
    LANGUAGE_MODELS.iter().find(|(prefix, _)| *prefix == root).map_or("lm_head.weight", |(_, head)| head)
}

impl Names {
    /// The prefix that a checkpoint's names have.
    pub(crate) fn root(&self, weights: &Weights) -> &'static str {
        let any = |begin: &str| weights.entries().iter().any(|entry| entry.name.starts_with(begin));
        if let Some((prefix, _)) = LANGUAGE_MODELS.iter().find(|(prefix, _)| any(prefix)) {
            return prefix;
        }
        let is_bare = !any(self.prefix) && self.layers.iter().any(|(before, ..)| any(before));
        if is_bare { "" } else { self.prefix }
    }
}

/// The labels of a classification head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// The names, in the order of the logits.
    pub names: Vec<String>,
    /// What the logits mean.
    pub problem: Problem,
}

/// What the logits of a classification head mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// Exactly one label holds; the softmax gives its probability.
    #[serde(rename = "single_label_classification")]
    SingleLabel,
    /// Each label may hold or not; the logistic function gives its probability.
    #[serde(rename = "multi_label_classification")]
    MultiLabel,
    /// The logits are the values themselves.
    Regression,
}

impl Labels {
    /// The probability of each label; `None` for [`Problem::Regression`].
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

/// An architecture that is read from the keys of its config.
trait FromSettings: Architecture + Sized + 'static {
    /// Other names that files have for the family's keys (transformers' `attribute_map`), each with the key.
    const ALSO: &'static [(&'static str, &'static str)] = &[];

    /// Reads the keys. What a key may be is said where it is read: see [`settings`].
    fn read(s: &Settings<'_>) -> Read<Self>;
}

/// Reads an architecture.
type Parse = fn(&mut Settings<'_>) -> Read<Box<dyn Architecture>>;

fn parse<C: FromSettings>(s: &mut Settings<'_>) -> Read<Box<dyn Architecture>> {
    s.also(C::ALSO);
    Ok(Box::new(C::read(s)?))
}

/// As [`parse`], for a model of images and text, of which only the text part runs.
fn parse_text<C: FromSettings>(s: &mut Settings<'_>) -> Read<Box<dyn Architecture>> {
    if let Some(text) = s.object("text_config")? {
        *s = text;
    }
    parse::<C>(s)
}

/// A model of images and text, whose text model is one of two families. The default is transformers' for either.
fn parse_mistral3(s: &mut Settings<'_>) -> Read<Box<dyn Architecture>> {
    let families = [
        ("mistral", parse_text::<mistral::Config> as Parse),
        ("ministral3", parse_text::<ministral3::Config>),
    ];
    let text = s.object("text_config")?;
    let parse =
        text.as_ref().map_or(Ok(families[0].1), |text| text.one_of("model_type", &families, "mistral"))?;
    parse(s)
}

/// Every architecture, by its `model_type`.
static ARCHITECTURES: &[(&str, Parse)] = &[
    ("bert", parse::<bert::Config>),
    ("camembert", parse::<roberta::Config>),
    ("distilbert", parse::<distilbert::Config>),
    ("gemma2", parse::<gemma2::Config>),
    ("gemma3", parse_text::<gemma3::Config>),
    ("gemma3_text", parse::<gemma3::Config>),
    ("gpt2", parse::<gpt2::Config>),
    ("gpt_neox", parse::<gpt_neox::Config>),
    ("gpt_oss", parse::<gpt_oss::Config>),
    ("granite", parse::<granite::Config>),
    ("llama", parse::<llama::Config>),
    ("ministral3", parse::<ministral3::Config>),
    ("mistral", parse::<mistral::Config>),
    ("mistral3", parse_mistral3),
    ("mixtral", parse::<mixtral::Config>),
    ("modernbert", parse::<modernbert::Config>),
    ("olmo2", parse::<olmo2::Config>),
    ("phi3", parse::<phi3::Config>),
    ("qwen2", parse::<qwen2::Config>),
    ("qwen3", parse::<qwen3::Config>),
    ("qwen3_moe", parse::<qwen3_moe::Config>),
    ("roberta", parse::<roberta::Config>),
    ("smollm3", parse::<smollm3::Config>),
    ("whisper", parse::<whisper::Config>),
    ("xlm-roberta", parse::<roberta::Config>),
];

/// The supported `model_type`s.
pub fn architectures() -> Vec<&'static str> {
    ARCHITECTURES.iter().map(|(name, _)| *name).collect()
}

/// Parses the `config.json` of a model of any kind. A key that is absent has the default of transformers 5.
///
/// # Errors
/// [`ModelError::UnknownArchitecture`]; [`ModelError::Setting`] with a key, its line, its value and its range.
pub fn open(config_json: &str) -> Result<Box<dyn Architecture>, ModelError> {
    let architecture = read(&mut Settings::parse(config_json)?)?;
    let shape = architecture.shape();
    check(&shape)?;
    // A decoder whose rows see both sides generates nothing.
    let only_embeds = shape.kind == ModelKind::Decoder && shape.attention.iter().any(|a| !a.causal);
    Ok(if only_embeds { embedder(architecture, None) } else { architecture })
}

fn read(s: &mut Settings<'_>) -> Result<Box<dyn Architecture>, ModelError> {
    let known = || architectures().iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    let found = s.some_text("model_type")?;
    let found = found.ok_or_else(|| s.wrong("model_type", format!("one of {}", known())))?;
    let Some((_, parse)) = ARCHITECTURES.iter().find(|(name, _)| *name == found) else {
        return Err(ModelError::UnknownArchitecture { found, known: known() });
    };
    if let Some(quantization) = s.object("quantization_config")? {
        let method = quantization.some_text("quant_method")?.unwrap_or_else(|| "present".into());
        // Which matrices have that type is seen from their names.
        if (found.as_str(), method.as_str()) == ("gpt_oss", "mxfp4") {
            return Ok(parse(s)?);
        }
        let found = method;
        return Err(s.wrong_value("quantization_config", found, "weights in F32, F16 or BF16").into());
    }
    Ok(parse(s)?)
}

/// The keys of `config.json` that the family `model_type` reads, with their defaults; `None` if it is not supported.
/// `null` is the default of a key that may be absent.
pub fn defaults(model_type: &str) -> Option<BTreeMap<String, Value>> {
    let config = serde_json::json!({ "model_type": model_type }).to_string();
    let mut settings = Settings::parse(&config).ok()?;
    read(&mut settings).ok()?;
    Some(settings.defaults())
}

/// Checks the numbers of a config against the shapes of the weights, before anything of their size is allocated.
/// Tensors that are missing are not its matter.
///
/// # Errors
/// [`ModelError::Unsupported`] with a key that the weights contradict.
pub(crate) fn check_weights(architecture: &dyn Architecture, weights: &Weights) -> Result<(), ModelError> {
    let names = architecture.names();
    let root = names.root(weights);
    for Shown { tensor, shape } in &names.shown {
        let Some(entry) = weights.get(&format!("{root}{tensor}")) else { continue };
        let mut found_shape = entry.shape.clone();
        if entry.order == Order::Transposed {
            found_shape.reverse();
        }
        for (axis, (key, value)) in shape.iter().enumerate() {
            let found = found_shape.get(axis).copied().unwrap_or(1);
            if found != *value || entry.shape.len() != shape.len() {
                let expected = format!("{found}: tensor `{}` has shape {:?}", entry.stored_name, entry.shape);
                return Err(ModelError::Unsupported { key, found: value.to_string(), expected });
            }
        }
    }
    for (before, key, n) in names.layers {
        let before = format!("{root}{before}");
        let number = |name: &str| name.strip_prefix(&before)?.split('.').next()?.parse::<usize>().ok();
        let numbered = weights.entries().iter().filter_map(|entry| Some((number(&entry.name)?, entry)));
        if let Some((last, entry)) = numbered.max_by_key(|(i, _)| *i).filter(|(last, _)| n > last + 1) {
            let expected =
                format!("at most {}: the last layer's tensors are such as `{}`", last + 1, entry.stored_name);
            return Err(ModelError::Unsupported { key, found: n.to_string(), expected });
        }
    }
    Ok(())
}

/// Checks what kernels require of a shape, whatever the keys of its numbers are.
fn check(shape: &ModelShape) -> Result<(), ModelError> {
    let no = |key, found: String, expected: &str| {
        Err(ModelError::Unsupported { key, found, expected: expected.to_string() })
    };
    let audio = shape.audio.iter().flat_map(|audio| audio.attention.iter().chain(&audio.cross_attention));
    for a in shape.attention.iter().chain(audio) {
        if a.head_dim == 0 || a.head_dim % 4 != 0 || a.head_dim > 256 {
            return no("head_dim", a.head_dim.to_string(), "a multiple of 4, at most 256");
        }
        // All encoders so far have an attention output of the width of the residual stream.
        if shape.kind == ModelKind::Encoder && a.n_heads * a.head_dim != shape.hidden_size {
            let expected = format!("a divisor of the hidden size {}", shape.hidden_size);
            return no("num_attention_heads", a.n_heads.to_string(), &expected);
        }
    }
    Ok(())
}

/// Checks that the attention kernel fits the device, which `open` does not know.
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
