//! What lies in an encoder's folder, opened but not loaded; among it what sentence-transformers wrote of how rows become
//! an embedding.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::super::EngineError;
use super::super::checkpoint::config;
use crate::models::{self, EncoderArchitecture};
use crate::ops::{Act, Pooling};
use crate::text::{TextError, Tokenizer};
use crate::weights::Weights;

/// An encoder's folder in Hugging Face layout: architecture, weights (mapped), tokenizer (if there is one), and how its
/// rows become an embedding.
pub struct EncoderCheckpoint {
    /// Where it came from, for messages.
    pub name: String,
    /// From `config.json`.
    pub architecture: Box<dyn EncoderArchitecture>,
    /// The tensors.
    pub weights: Weights,
    /// The tokenizer, or why there is none.
    pub tokenizer: Result<Tokenizer, TextError>,
    /// From `modules.json` and the files beside it.
    pub embedding: EmbeddingConfig,
}

/// How the rows of a text become its embedding: the modules of sentence-transformers (Reimers & Gurevych 2019).
#[derive(Debug)]
pub struct EmbeddingConfig {
    /// Pooled in these ways, one beside the other.
    pub pooling: Vec<Pooling>,
    /// Products after that, in order.
    pub dense: Vec<DenseModule>,
    /// The result has length 1.
    pub normalize: bool,
    /// Tokens of a text; what the model was made for without.
    pub max_seq_length: Option<usize>,
    /// Texts are put into lower case first.
    pub do_lower_case: bool,
    /// What is put before a text, by name, such as `query`.
    pub prompts: BTreeMap<String, String>,
    /// Which of them unasked.
    pub default_prompt_name: Option<String>,
    /// Whether there was a `modules.json`: without one the mean is taken and normalised.
    pub is_declared: bool,
}

/// A product with an activation after the pooling.
#[derive(Debug)]
pub struct DenseModule {
    /// `linear.weight`, `linear.bias`.
    pub weights: Arc<Weights>,
    /// Values that go in.
    pub in_features: usize,
    /// Values that come out.
    pub out_features: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// None where it is the identity.
    pub act: Option<Act>,
}

impl EncoderCheckpoint {
    /// Opens a folder.
    ///
    /// # Errors
    /// [`EngineError::Model`], [`EngineError::Config`] and [`EngineError::Weights`] say what is wrong with which file.
    pub fn open(dir: &Path) -> Result<EncoderCheckpoint, EngineError> {
        let architecture = models::open_encoder(&config(dir)?)?;
        let embedding = EmbeddingConfig::open(dir, architecture.shape().hidden_size)?;
        Ok(EncoderCheckpoint {
            name: dir.display().to_string(),
            architecture,
            weights: Weights::open(dir)?,
            tokenizer: Tokenizer::open(dir),
            embedding,
        })
    }
}

/// An entry of `modules.json`.
#[derive(Deserialize)]
struct Module {
    path: String,
    r#type: String,
}

/// `sentence_bert_config.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    do_lower_case: bool,
}

/// `config_sentence_transformers.json`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct PromptConfig {
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// `1_Pooling/config.json`. Later versions name modes, earlier ones have a switch for each.
#[derive(Deserialize)]
struct PoolingConfig {
    word_embedding_dimension: Option<usize>,
    pooling_mode: Option<Modes>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
    #[serde(default = "yes")]
    include_prompt: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Modes {
    One(String),
    Several(Vec<String>),
}

/// `2_Dense/config.json`.
#[derive(Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: String,
}

fn yes() -> bool {
    true
}

impl EmbeddingConfig {
    fn open(dir: &Path, hidden_size: usize) -> Result<EmbeddingConfig, EngineError> {
        let transformer: TransformerConfig =
            read(&dir.join("sentence_bert_config.json"))?.unwrap_or_default();
        let prompts: PromptConfig = read(&dir.join("config_sentence_transformers.json"))?.unwrap_or_default();
        let mut config = EmbeddingConfig {
            pooling: Vec::new(),
            dense: Vec::new(),
            normalize: false,
            max_seq_length: transformer.max_seq_length,
            do_lower_case: transformer.do_lower_case,
            prompts: prompts.prompts,
            default_prompt_name: prompts.default_prompt_name,
            is_declared: true,
        };
        let path = dir.join("modules.json");
        let Some(modules) = read::<Vec<Module>>(&path)? else {
            return Ok(EmbeddingConfig {
                pooling: vec![Pooling::Mean],
                normalize: true,
                is_declared: false,
                ..config
            });
        };
        let wrong = |message| Err(EngineError::Config { path: path.clone(), message });
        let mut width = hidden_size;
        for module in &modules {
            // A name with a path in it could reach outside the folder.
            if std::path::Path::new(&module.path).components().count() > 1 || module.path == ".." {
                return wrong(format!("`path` is `{}`, expected a folder beside it", module.path));
            }
            let folder = dir.join(&module.path);
            // The packages moved between versions, the classes did not.
            let class = module.r#type.rsplit('.').next().unwrap_or_default();
            match class {
                _ if config.normalize => {
                    return wrong(format!("`{class}` comes after `Normalize`, expected that to be the last"));
                }
                "Transformer" if module.path.is_empty() && config.pooling.is_empty() => {}
                "Transformer" => {
                    let path = &module.path;
                    return wrong(format!("`Transformer` is in `{path}`, expected it first, in no folder"));
                }
                "Pooling" if config.pooling.is_empty() => {
                    config.pooling = pooling(&folder, hidden_size)?;
                    width = config.pooling.len() * hidden_size;
                }
                "Dense" if !config.pooling.is_empty() => {
                    let dense = DenseModule::open(&folder, width)?;
                    width = dense.out_features;
                    config.dense.push(dense);
                }
                "Normalize" if !config.pooling.is_empty() => config.normalize = true,
                _ => {
                    return wrong(format!(
                        "module `{class}` does not run here, expected `Transformer`, `Pooling`, then `Dense` and \
                         `Normalize` if need be"
                    ));
                }
            }
        }
        match config.pooling.is_empty() {
            true => wrong("no module `Pooling`, expected one".into()),
            false => Ok(config),
        }
    }

    /// Values of an embedding of a model whose rows have `hidden_size`.
    pub fn width(&self, hidden_size: usize) -> usize {
        self.dense.last().map_or(self.pooling.len() * hidden_size, |dense| dense.out_features)
    }
}

/// The ways of a `Pooling` module, in the order in which sentence-transformers puts them side by side.
fn pooling(folder: &Path, hidden_size: usize) -> Result<Vec<Pooling>, EngineError> {
    let path = folder.join("config.json");
    let config: PoolingConfig = need(&path)?;
    let wrong = |message| Err(EngineError::Config { path: path.clone(), message });
    if let Some(found) = config.word_embedding_dimension.filter(|n| *n != hidden_size) {
        let message =
            format!("`word_embedding_dimension` is {found}, expected {hidden_size} as in the model");
        return wrong(message);
    }
    if !config.include_prompt {
        return wrong("`include_prompt` is false, expected true".into());
    }
    let named = match &config.pooling_mode {
        None => Vec::new(),
        Some(Modes::One(name)) => vec![name.as_str()],
        Some(Modes::Several(names)) => names.iter().map(String::as_str).collect(),
    };
    let known = [
        (Pooling::First, config.pooling_mode_cls_token),
        (Pooling::Max, config.pooling_mode_max_tokens),
        (Pooling::Mean, config.pooling_mode_mean_tokens),
        (Pooling::MeanSqrtLen, config.pooling_mode_mean_sqrt_len_tokens),
        (Pooling::WeightedMean, config.pooling_mode_weightedmean_tokens),
        (Pooling::Last, config.pooling_mode_lasttoken),
    ];
    let names =
        || known.iter().map(|(pooling, _)| format!("`{}`", pooling.name())).collect::<Vec<_>>().join(", ");
    if let Some(found) = named.iter().find(|found| !known.iter().any(|(p, _)| p.name() == **found)) {
        return wrong(format!("`pooling_mode` is `{found}`, expected one of {}", names()));
    }
    let is_chosen = |pooling: &Pooling, switch: bool| match named.is_empty() {
        true => switch,
        false => named.contains(&pooling.name()),
    };
    let chosen: Vec<Pooling> = known
        .into_iter()
        .filter(|(pooling, on)| is_chosen(pooling, *on))
        .map(|(pooling, _)| pooling)
        .collect();
    match chosen.is_empty() {
        true => wrong(format!("no `pooling_mode_…` is true, expected one: {}", names())),
        false => Ok(chosen),
    }
}

impl DenseModule {
    fn open(folder: &Path, width: usize) -> Result<DenseModule, EngineError> {
        let path = folder.join("config.json");
        let config: DenseConfig = need(&path)?;
        let wrong = |message| Err(EngineError::Config { path: path.clone(), message });
        if config.in_features != width {
            return wrong(format!("`in_features` is {}, expected {width}", config.in_features));
        }
        if config.out_features == 0 {
            return wrong("`out_features` is 0, expected at least 1".into());
        }
        let class = config.activation_function.rsplit('.').next().unwrap_or_default();
        let act = match class {
            "Identity" => None,
            "Tanh" => Some(Act::Tanh),
            "ReLU" => Some(Act::Relu),
            "GELU" => Some(Act::Gelu),
            "SiLU" => Some(Act::Silu),
            found => {
                let expected = "`Identity`, `Tanh`, `ReLU`, `GELU` or `SiLU`";
                return wrong(format!("`activation_function` is `{found}`, expected {expected}"));
            }
        };
        let DenseConfig { in_features, out_features, bias, .. } = config;
        Ok(DenseModule { weights: Arc::new(Weights::open(folder)?), in_features, out_features, bias, act })
    }
}

/// A JSON file, `None` if it is not there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EngineError> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(EngineError::Io { path: path.into(), source }),
    };
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|e| EngineError::Config { path: path.into(), message: e.to_string() })
}

/// A JSON file that must be there.
fn need<T: DeserializeOwned>(path: &Path) -> Result<T, EngineError> {
    let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
    read(path)?.ok_or(EngineError::Io { path: path.into(), source: missing })
}
