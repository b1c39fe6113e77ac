//! What lies in a model folder, opened but not loaded.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::{EngineError, Sampling};
use crate::dtype::Dtype;
use crate::models::{self, Architecture, ModelKind, ModelShape};
use crate::text::{TextError, Tokenizer};
use crate::weights::Weights;

/// A model folder in Hugging Face layout, or the demonstration model in the binary: architecture, weights
/// (mapped), tokenizer (if there is one) and the sampling that its makers recommend.
pub struct Checkpoint {
    /// Where it came from, for messages.
    pub name: String,
    /// From `config.json`.
    pub architecture: Box<dyn Architecture>,
    /// The tensors.
    pub weights: Weights,
    /// The tokenizer, or why there is none.
    pub tokenizer: Result<Tokenizer, TextError>,
    /// From `generation_config.json`.
    pub sampling: Sampling,
    /// `generation_config.json` as it is, for those who know more of its keys; null without one.
    pub generation: Value,
}

/// A file of the demonstration model.
macro_rules! demo {
    ($file:literal) => {
        &include_bytes!(concat!("../../assets/demo/", $file))[..]
    };
}

/// The keys of `generation_config.json` that say how to sample.
#[derive(Default, Deserialize)]
#[serde(default)]
struct GenerationConfig {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

/// `generation_config.json` as it is, and what it says of sampling.
fn generation(json: &[u8], path: PathBuf) -> Result<(Value, Sampling), EngineError> {
    let wrong = |e: serde_json::Error| EngineError::Config { path: path.clone(), message: e.to_string() };
    let config =
        GenerationConfig::deserialize(&mut serde_json::Deserializer::from_slice(json)).map_err(wrong)?;
    Ok((serde_json::from_slice(json).map_err(wrong)?, config.sampling()))
}

impl GenerationConfig {
    fn sampling(&self) -> Sampling {
        let off = Sampling::default();
        Sampling {
            temperature: match self.do_sample {
                Some(false) => 0.0,
                _ => self.temperature.unwrap_or(off.temperature),
            },
            top_k: self.top_k.unwrap_or(off.top_k),
            top_p: self.top_p.unwrap_or(off.top_p),
            min_p: self.min_p.unwrap_or(off.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(off.repetition_penalty),
            ..off
        }
    }
}

impl Checkpoint {
    /// What the model in a folder is made for: whether this opens it, or
    /// [`EncoderCheckpoint`](super::EncoderCheckpoint).
    ///
    /// # Errors
    /// [`EngineError::Io`], [`EngineError::Model`].
    pub fn kind(dir: &Path) -> Result<ModelKind, EngineError> {
        Ok(models::open(&config(dir)?)?.shape().kind)
    }

    /// Opens a folder.
    ///
    /// # Errors
    /// [`EngineError::Model`] and [`EngineError::Weights`] say what is wrong with which file.
    pub fn open(dir: &Path) -> Result<Checkpoint, EngineError> {
        let config = config(dir)?;
        let path = dir.join("generation_config.json");
        let (generation, sampling) = match std::fs::read(&path) {
            Ok(text) => generation(&text, path)?,
            Err(_) => (Value::Null, GenerationConfig::default().sampling()),
        };
        Ok(Checkpoint {
            name: dir.display().to_string(),
            architecture: architecture(&config, ModelKind::Decoder)?,
            weights: Weights::open(dir)?,
            tokenizer: Tokenizer::open(dir),
            sampling,
            generation,
        })
    }

    /// A model of the shape that `config_json` describes, with random weights that are drawn on the device at load,
    /// matrices in `dtype`: for measurements. It has no tokenizer, and needs a device of our own.
    ///
    /// # Errors
    /// [`EngineError::Model`] says what is wrong with the config, [`EngineError::Parameter`] that nothing is drawn in
    /// `dtype`.
    pub fn random(name: &str, config_json: &str, dtype: Dtype) -> Result<Checkpoint, EngineError> {
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            let (found, expected) =
                (dtype.to_string(), "`F32`, `F16` or `BF16`, which can be quantised at load");
            return Err(EngineError::Parameter { name: "dtype", found, expected });
        }
        Ok(Checkpoint {
            name: name.to_string(),
            architecture: architecture(config_json, ModelKind::Decoder)?,
            weights: Weights::random(dtype),
            tokenizer: Err(TextError::NoTokenizer { dir: name.into(), found: Vec::new() }),
            sampling: Sampling::default(),
            generation: Value::Null,
        })
    }

    /// The demonstration model that is compiled into the binary: stories of a small world. `assets/demo` says
    /// how it was made.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], if these files are not what they should be.
    pub fn demo() -> Result<Checkpoint, EngineError> {
        let (generation, sampling) =
            generation(demo!("generation_config.json"), "generation_config.json".into())?;
        Ok(Checkpoint {
            name: "demonstration model".to_string(),
            architecture: architecture(&String::from_utf8_lossy(demo!("config.json")), ModelKind::Decoder)?,
            weights: Weights::from_bytes(demo!("model.safetensors"))?,
            tokenizer: Tokenizer::from_parts(
                demo!("tokenizer.json"),
                Some(demo!("tokenizer_config.json")),
                Some(demo!("generation_config.json")),
                Some(demo!("config.json")),
                None,
            ),
            sampling,
            generation,
        })
    }
}

/// The architecture that a `config.json` describes, if it is of the kind that is needed.
pub(super) fn architecture(
    config_json: &str,
    needed: ModelKind,
) -> Result<Box<dyn Architecture>, EngineError> {
    let architecture = models::open(config_json)?;
    let ModelShape { architecture: found, kind, .. } = architecture.shape();
    match kind == needed {
        true => Ok(architecture),
        false => Err(EngineError::WrongKind { found: found.into(), kind }),
    }
}

/// The `config.json` of a folder.
pub(super) fn config(dir: &Path) -> Result<String, EngineError> {
    let path = dir.join("config.json");
    std::fs::read_to_string(&path).map_err(|source| EngineError::Io { path, source })
}
