//! From rows to an embedding: the files that sentence-transformers writes beside a model.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::CheckpointError;
use super::files::{Files, Kind, in_folder, optional};
use crate::ops::{Act, Pooling};
use crate::weights::Weights;

/// How the rows of a text become its embedding: the modules of sentence-transformers (Reimers & Gurevych 2019).
#[derive(Clone, Debug)]
pub struct EmbeddingConfig {
    /// Pooling modes; their results are put side by side.
    pub pooling: Vec<Pooling>,
    /// Products after the pooling, in order.
    pub dense: Vec<DenseModule>,
    /// The result has length 1.
    pub normalize: bool,
    /// Maximum number of tokens of a text. Default: the model's maximum.
    pub max_seq_length: Option<usize>,
    /// Texts are put into lower case first.
    pub do_lower_case: bool,
    /// Prefixes of texts by name, such as `query`.
    pub prompts: BTreeMap<String, String>,
    /// Name of the prompt to use by default.
    pub default_prompt_name: Option<String>,
    /// Whether there was a `modules.json`. Default: the mean of all tokens, normalised.
    pub is_declared: bool,
}

/// Maximum number of modules: published models have three to five, and each opens files of its own.
const MOST_MODULES: usize = 16;

/// A product with an activation after the pooling.
#[derive(Clone, Debug)]
pub struct DenseModule {
    /// `linear.weight`, `linear.bias`.
    pub weights: Arc<Weights>,
    /// Width of its input.
    pub in_features: usize,
    /// Width of its output.
    pub out_features: usize,
    /// Whether there is a bias.
    pub bias: bool,
    /// The activation; `None` is the identity.
    pub act: Option<Act>,
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

/// The mean of all tokens, with length 1: what sentence-transformers does where there is no `modules.json`.
impl Default for EmbeddingConfig {
    fn default() -> Self {
        EmbeddingConfig {
            pooling: vec![Pooling::Mean],
            dense: Vec::new(),
            normalize: true,
            max_seq_length: None,
            do_lower_case: false,
            prompts: BTreeMap::new(),
            default_prompt_name: None,
            is_declared: false,
        }
    }
}

impl EmbeddingConfig {
    /// Reads the files of a model whose rows have `hidden_size`.
    pub(super) fn read(files: Files<'_>, hidden_size: usize) -> Result<EmbeddingConfig, CheckpointError> {
        let transformer: TransformerConfig =
            optional(json(files, "sentence_bert_config.json"))?.unwrap_or_default();
        let prompts: PromptConfig =
            optional(json(files, "config_sentence_transformers.json"))?.unwrap_or_default();
        let common = EmbeddingConfig {
            max_seq_length: transformer.max_seq_length,
            do_lower_case: transformer.do_lower_case,
            prompts: prompts.prompts,
            default_prompt_name: prompts.default_prompt_name,
            ..EmbeddingConfig::default()
        };
        const MODULES: &str = "modules.json";
        let Some(modules) = optional(json::<Vec<Module>>(files, MODULES))? else { return Ok(common) };
        let mut config =
            EmbeddingConfig { pooling: Vec::new(), normalize: false, is_declared: true, ..common };
        let wrong = |message: String| Err(CheckpointError::config(&files.path(MODULES), message));
        if modules.len() > MOST_MODULES {
            return wrong(format!("{} modules, expected at most {MOST_MODULES}", modules.len()));
        }
        let mut width = hidden_size;
        for module in &modules {
            // A name with a path in it could reach outside the folder.
            let mut parts = Path::new(&module.path).components();
            if !matches!((parts.next(), parts.next()), (None | Some(Component::Normal(_)), None)) {
                return wrong(format!("`path` is `{}`, expected a folder beside it", module.path));
            }
            let folder = module.path.as_str();
            // The packages moved between versions, the classes did not.
            let class = module.r#type.rsplit('.').next().unwrap_or_default();
            match class {
                _ if config.normalize => {
                    return wrong(format!("`{class}` comes after `Normalize`, expected that to be the last"));
                }
                "Transformer" if module.path.is_empty() && config.pooling.is_empty() => {}
                "Transformer" => {
                    return wrong(format!("`Transformer` is in `{folder}`, expected it first, in no folder"));
                }
                "Pooling" if config.pooling.is_empty() => {
                    config.pooling = pooling(files, folder, hidden_size)?;
                    width = config.pooling.len() * hidden_size;
                }
                "Dense" if !config.pooling.is_empty() => {
                    let dense = DenseModule::read(files, folder, width)?;
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
fn pooling(files: Files<'_>, folder: &str, hidden_size: usize) -> Result<Vec<Pooling>, CheckpointError> {
    let name = in_folder(folder, "config.json");
    let config: PoolingConfig = json(files, &name)?;
    let wrong = |message: String| Err(CheckpointError::config(&files.path(&name), message));
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
    fn read(files: Files<'_>, folder: &str, width: usize) -> Result<DenseModule, CheckpointError> {
        let name = in_folder(folder, "config.json");
        let config: DenseConfig = json(files, &name)?;
        let wrong = |message: String| Err(CheckpointError::config(&files.path(&name), message));
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
        let weights = files.weights(folder)?.into();
        Ok(DenseModule { weights, in_features, out_features, bias, act })
    }
}

/// A JSON file.
fn json<T: DeserializeOwned>(files: Files<'_>, name: &str) -> Result<T, CheckpointError> {
    let text = files.read(name, Kind::Settings)?;
    serde_json::from_slice(&text).map_err(|e| CheckpointError::config(&files.path(name), e))
}
