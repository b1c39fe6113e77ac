//! From rows to an embedding: the files that sentence-transformers writes beside a model.

use std::collections::BTreeMap;
use std::path::{Component, Path};
use std::sync::Arc;

use serde::Deserialize;

use super::files::{Files, Kind, in_folder, optional};
use super::{CheckpointError, text};
use crate::models::settings::{ROWS, Read, Settings, WIDTH};
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

const MODULES: &str = "modules.json";

/// Maximum number of modules: published models have three to five, and each opens files of its own.
const MOST_MODULES: usize = 16;

/// A product with an activation after the pooling.
#[derive(Clone, Debug)]
pub struct DenseModule {
    /// `{name}.weight`, `{name}.bias`.
    pub weights: Arc<Weights>,
    /// What the names of its tensors begin with.
    pub name: &'static str,
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
        let transformer = settings(files, "sentence_bert_config.json", |s| {
            Ok((s.some_whole("max_seq_length", ROWS, None)?, s.flag("do_lower_case", false)?))
        });
        let (max_seq_length, do_lower_case) = optional(transformer)?.unwrap_or_default();
        let prompts = settings(files, "config_sentence_transformers.json", |s| {
            let prompts = s.of_type("prompts", "texts by their names")?;
            Ok((prompts.unwrap_or_default(), s.some_text("default_prompt_name")?))
        });
        let (prompts, default_prompt_name) = optional(prompts)?.unwrap_or_default();
        let common = EmbeddingConfig {
            max_seq_length,
            do_lower_case,
            prompts,
            default_prompt_name,
            ..EmbeddingConfig::default()
        };
        let Some(modules) = optional(modules(files, MODULES))? else { return Ok(common) };
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

    /// Whether the files of a decoder make an embedder of it: `modules.json` names a pooling. Other models have modules of
    /// other tasks there.
    pub(super) fn is_in(files: Files<'_>) -> Result<bool, CheckpointError> {
        let modules = optional(modules(files, MODULES))?.unwrap_or_default();
        Ok(modules.iter().any(|module| module.r#type.ends_with("Pooling")))
    }

    /// Values of an embedding of a model whose rows have `hidden_size`.
    pub fn width(&self, hidden_size: usize) -> usize {
        self.dense.last().map_or(self.pooling.len() * hidden_size, |dense| dense.out_features)
    }
}

/// The ways of a `Pooling` module, in the order in which sentence-transformers puts them side by side. Later versions
/// name them, earlier ones have a switch for each.
fn pooling(files: Files<'_>, folder: &str, hidden_size: usize) -> Result<Vec<Pooling>, CheckpointError> {
    let switches = [
        ("pooling_mode_cls_token", Pooling::First),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
        ("pooling_mode_lasttoken", Pooling::Last),
    ];
    let names = switches.map(|(_, pooling)| (pooling.name(), pooling));
    let name = in_folder(folder, "config.json");
    let chosen: Vec<Pooling> = settings(files, &name, |s| {
        const DIMENSION: &str = "word_embedding_dimension";
        if s.some_whole(DIMENSION, WIDTH, None)?.is_some_and(|n| n != hidden_size) {
            return Err(s.wrong(DIMENSION, format!("{hidden_size} as in the model")));
        }
        if !s.flag("include_prompt", true)? {
            return Err(s.wrong("include_prompt", "`true`"));
        }
        const NAMED: &str = "pooling_mode";
        let named = match s.written(NAMED).is_some_and(|written| written.starts_with('[')) {
            true => s.list_of(NAMED, &names)?.unwrap_or_default(),
            false => s.some_one_of(NAMED, &names)?.into_iter().collect(),
        };
        let mut chosen = Vec::new();
        for (key, pooling) in switches {
            let is_on = s.flag(key, false)?;
            if if named.is_empty() { is_on } else { named.contains(&pooling) } {
                chosen.push(pooling);
            }
        }
        Ok(chosen)
    })?;
    if chosen.is_empty() {
        let names = names.map(|(name, _)| format!("`{name}`")).join(", ");
        let message = format!("no `pooling_mode_…` is true, expected one: {names}");
        return Err(CheckpointError::config(&files.path(&name), message));
    }
    Ok(chosen)
}

impl DenseModule {
    fn read(files: Files<'_>, folder: &str, width: usize) -> Result<DenseModule, CheckpointError> {
        let (out_features, bias, act) = settings(files, &in_folder(folder, "config.json"), |s| {
            if s.needed_whole("in_features", WIDTH)? != width {
                return Err(s.wrong("in_features", width));
            }
            let (out_features, bias) = (s.needed_whole("out_features", WIDTH)?, s.flag("bias", true)?);
            let known = [
                ("Identity", None),
                ("Tanh", Some(Act::Tanh)),
                ("ReLU", Some(Act::Relu)),
                ("GELU", Some(Act::Gelu)),
                ("SiLU", Some(Act::Silu)),
            ];
            const ACT: &str = "activation_function";
            let class = s.some_text(ACT)?.unwrap_or_default();
            let class = class.rsplit('.').next().unwrap_or_default();
            let Some((_, act)) = known.iter().find(|(name, _)| *name == class) else {
                return Err(s.wrong(ACT, "`Identity`, `Tanh`, `ReLU`, `GELU` or `SiLU`"));
            };
            Ok((out_features, bias, *act))
        })?;
        let weights = files.weights(folder)?.into();
        Ok(DenseModule { weights, name: "linear", in_features: width, out_features, bias, act })
    }
}

/// The entries of `modules.json`.
fn modules(files: Files<'_>, name: &str) -> Result<Vec<Module>, CheckpointError> {
    let path = files.path(name);
    let text = text(&path, files.read(name, Kind::Settings)?.into_owned())?;
    serde_json::from_str(&text).map_err(|e| CheckpointError::config(&path, e))
}

/// Reads the keys of a JSON file.
fn settings<T>(
    files: Files<'_>,
    name: &str,
    read: impl FnOnce(&Settings<'_>) -> Read<T>,
) -> Result<T, CheckpointError> {
    let path = files.path(name);
    let text = text(&path, files.read(name, Kind::Settings)?.into_owned())?;
    Settings::parse(&text).and_then(|s| read(&s)).map_err(|error| CheckpointError::setting(&path, error))
}
