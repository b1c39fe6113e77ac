//! Layer 3: models, opened but not loaded.
//!
//! A [`Source`] becomes [`ModelFiles`], the parts of a model whatever container it came in. [`Source::parse`] decides
//! what a name is; `files` reads and checks every file. A new container is a variant of [`Source`] and a function that
//! makes [`ModelFiles`] of it.

mod embedding;
mod error;
mod files;
mod generation;
mod gguf;
mod rerank;
mod source;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;

pub use embedding::{DenseModule, EmbeddingConfig};
pub use error::CheckpointError;
use files::{Files, Kind, optional};
pub use generation::{GenerationConfig, SpeechConfig};
pub use rerank::Scoring;
pub use source::Source;

use crate::dtype::Dtype;
#[cfg(feature = "hub")]
use crate::hub::{Download, Hub, HubName, RemoteModel};
use crate::models::{self, Architecture, Labels, ModelKind, ModelShape};
use crate::text::{TextError, Tokenizer, TokenizerFiles};
use crate::weights::Weights;

/// An opened model: all its parts, none of them in device memory yet.
pub struct ModelFiles {
    /// The path of the folder or file, or the name of the demonstration model, for messages.
    pub name: String,
    /// `config.json`; of a GGUF file the same keys, made from its metadata.
    pub config: String,
    /// The architecture that `config` describes.
    pub architecture: Box<dyn Architecture>,
    /// The tensors, with the names of Hugging Face's checkpoints. Those of files are read when they are loaded.
    pub weights: Arc<Weights>,
    /// The tokenizer with its chat template, or the reason why it is missing.
    pub tokenizer: Result<Tokenizer, TextError>,
    /// `generation_config.json`, or the same keys of `config.json`.
    pub generation: GenerationConfig,
    /// `modules.json` and the files that it names: from rows to an embedding. `Some` for every encoder.
    pub embedding: Option<EmbeddingConfig>,
    /// The labels of the classification head, if there is one.
    pub labels: Option<Labels>,
    /// How it scores a text for a query, if it was made for that.
    pub scoring: Option<Scoring>,
}

/// The name of a model, and the model or why it cannot be opened.
pub type NamedFiles = (String, Result<ModelFiles, CheckpointError>);

/// What of a model is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parts {
    All,
    /// The config and the headers of weights: no tokenizer, and no tensor's bytes.
    Headers,
}

impl Parts {
    fn of(self, weights: Weights) -> Weights {
        if self == Parts::Headers { weights.headers_only() } else { weights }
    }
}

/// A task that a model can do itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ability {
    /// Continue a text.
    Generate,
    /// Transcribe speech.
    Transcribe,
    /// Turn a text into a vector.
    Embed,
    /// Compute the probabilities of the labels of its own classification head.
    Classify,
    /// Score texts for a query.
    Rerank,
}

impl Ability {
    /// A verb.
    pub fn name(self) -> &'static str {
        match self {
            Ability::Generate => "generate",
            Ability::Transcribe => "transcribe",
            Ability::Embed => "embed",
            Ability::Classify => "classify",
            Ability::Rerank => "rerank",
        }
    }
}

/// The demonstration model's files.
macro_rules! demo {
    ($($file:literal),* $(,)?) => {
        Files::Embedded(&[$(($file, include_bytes!(concat!("../../assets/demo/", $file)))),*])
    };
}

const DEMO: Files<'static> = demo!(
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
);

/// Vocabularies in other formats: the message that `tokenizer.json` is missing names those that are there.
const OTHER_TOKENIZERS: [&str; 6] =
    ["tokenizer.model", "spiece.model", "tiktoken.model", "vocab.json", "merges.txt", "vocab.txt"];

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

impl ModelFiles {
    /// Opens the model at `path`, in any container that [`Source`] knows.
    ///
    /// # Errors
    /// Those of [`Source::parse`] and [`ModelFiles::from_source`].
    pub fn open(path: &Path) -> Result<ModelFiles, CheckpointError> {
        ModelFiles::from_source(&Source::parse(path)?)
    }

    /// Opens the demonstration model in the binary, [`Source::Demo`].
    ///
    /// # Errors
    /// [`CheckpointError`], if these files are not what they should be.
    pub fn demo() -> Result<ModelFiles, CheckpointError> {
        ModelFiles::from_source(&Source::Demo)
    }

    /// Opens a source. A model of the hub that is not in its cache is downloaded first; [`ModelFiles::from_hub`] reports
    /// how far it is.
    ///
    /// # Errors
    /// [`CheckpointError`] says what is wrong with which file.
    pub fn from_source(source: &Source) -> Result<ModelFiles, CheckpointError> {
        ModelFiles::parts(source, Parts::All)
    }

    /// Opens only the config and the headers of the weights of a source: what
    /// [`Engine::estimate`](crate::engine::Engine::estimate) needs. A model of the hub is not downloaded. There is no
    /// tokenizer, and the model cannot be loaded.
    ///
    /// # Errors
    /// As [`ModelFiles::from_source`].
    pub fn headers(source: &Source) -> Result<ModelFiles, CheckpointError> {
        ModelFiles::parts(source, Parts::Headers)
    }

    /// As [`ModelFiles::headers`], every model at `name`, each with its name: several if a folder or a repository has
    /// several GGUF models. `progress` gets each name before it is opened.
    ///
    /// # Errors
    /// As [`Source::parse`], except [`CheckpointError::ManyGguf`]; [`CheckpointError::Hub`]. What is wrong with one of
    /// several models stands in its place.
    pub fn all_headers(
        name: impl AsRef<OsStr>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Vec<NamedFiles>, CheckpointError> {
        let sources = match Source::parse(name) {
            Err(CheckpointError::ManyGguf { found, .. }) => found.into_iter().map(Source::Gguf).collect(),
            #[cfg(feature = "hub")]
            Ok(Source::Hub(name)) => {
                let open = |model: RemoteModel| {
                    let name = model.name.to_string();
                    progress(&name);
                    (name, ModelFiles::remote(&model))
                };
                return Ok(Hub::from_env()?.remotes(&name)?.into_iter().map(open).collect());
            }
            other => vec![other?],
        };
        let open = |source: &Source| {
            let name = source.to_string();
            progress(&name);
            (name, ModelFiles::headers(source))
        };
        Ok(sources.iter().map(open).collect())
    }

    fn parts(source: &Source, parts: Parts) -> Result<ModelFiles, CheckpointError> {
        match source {
            Source::Folder(dir) => ModelFiles::read(source.to_string(), Files::Folder(dir), parts),
            Source::Gguf(path) => gguf::read(files::gguf_parts(path)?, parts),
            #[cfg(feature = "hub")]
            Source::Hub(name) => match parts {
                Parts::All => ModelFiles::from_hub(&Hub::from_env()?, name, &mut |_| {}),
                Parts::Headers => ModelFiles::remote(&Hub::from_env()?.remote(name)?),
            },
            Source::Demo => ModelFiles::read(source.to_string(), DEMO, parts),
        }
    }

    /// Opens a model of the hub, and downloads it first if it is not in the cache.
    ///
    /// # Errors
    /// [`CheckpointError::Hub`], and those of [`ModelFiles::from_source`].
    #[cfg(feature = "hub")]
    pub fn from_hub(
        hub: &Hub,
        name: &HubName,
        progress: &mut dyn FnMut(Download<'_>),
    ) -> Result<ModelFiles, CheckpointError> {
        let files = ModelFiles::open(&hub.open(name, progress)?)?;
        Ok(ModelFiles { name: name.to_string(), ..files })
    }

    /// Opens the config and the headers of a model that is on the hub.
    #[cfg(feature = "hub")]
    fn remote(model: &RemoteModel) -> Result<ModelFiles, CheckpointError> {
        let name = model.name.to_string();
        if !model.is_gguf {
            return ModelFiles::read(name, Files::Remote(model), Parts::Headers);
        }
        let files = model.weights.iter().map(|(path, file)| (path.into(), files::remote(file)));
        Ok(ModelFiles { name, ..gguf::read(files, Parts::Headers)? })
    }

    /// A model of the shape that `config_json` describes, with random weights that are drawn on the device at load,
    /// matrices in `dtype`: for measurements. It has no tokenizer, and needs a device of our own.
    ///
    /// # Errors
    /// [`CheckpointError::Model`] says what is wrong with the config, [`CheckpointError::RandomDtype`] that nothing is
    /// drawn in `dtype`.
    pub fn random(name: &str, config_json: &str, dtype: Dtype) -> Result<ModelFiles, CheckpointError> {
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(CheckpointError::RandomDtype { found: dtype });
        }
        let architecture = models::open(config_json)?;
        let embedding = (architecture.shape().kind == ModelKind::Encoder).then(EmbeddingConfig::default);
        let labels = architecture.labels().cloned();
        Ok(ModelFiles {
            name: name.to_string(),
            config: config_json.to_string(),
            architecture,
            weights: Weights::random(dtype).into(),
            tokenizer: Err(TextError::NoTokenizer { dir: name.into(), found: Vec::new() }),
            generation: GenerationConfig::default(),
            embedding,
            labels,
            scoring: None,
        })
    }

    /// Reads files in Hugging Face layout, each once.
    fn read(name: String, files: Files<'_>, parts: Parts) -> Result<ModelFiles, CheckpointError> {
        let config = text(&files.path(CONFIG), files.read(CONFIG, Kind::Settings)?.into_owned())?;
        let mut architecture = models::open(&config)?;
        let ModelShape { kind, hidden_size, audio, .. } = architecture.shape();
        if kind == ModelKind::Decoder && audio.is_none() && EmbeddingConfig::is_in(files)? {
            architecture = models::embedder(architecture, None);
        }
        let kind = architecture.shape().kind;
        let generation_path = files.path(GENERATION_CONFIG);
        let generation_json = optional(files.read(GENERATION_CONFIG, Kind::Settings))?;
        let generation_json =
            generation_json.map(|json| text(&generation_path, json.into_owned())).transpose()?;
        let generation = match &generation_json {
            Some(json) => GenerationConfig::parse(&generation_path, json, audio.as_ref())?,
            None => GenerationConfig::parse(&files.path(CONFIG), &config, audio.as_ref())?,
        };
        let embedding = match kind {
            ModelKind::Decoder => None,
            ModelKind::Encoder => Some(EmbeddingConfig::read(files, hidden_size)?),
        };
        let labels = architecture.labels().cloned();
        let scoring = Scoring::of(&*architecture, &files.path(CONFIG), &config)?;
        let weights = Arc::new(parts.of(files.weights("")?));
        models::check_weights(&*architecture, &weights)?;
        let built = match parts {
            Parts::All => {
                tokenizer(files, Some(config.as_bytes()), generation_json.as_deref().map(str::as_bytes))
            }
            Parts::Headers => Err(TextError::NotOpened.into()),
        };
        let tokenizer = match built {
            Ok(tokenizer) => Ok(tokenizer),
            Err(CheckpointError::Text(error)) => Err(error),
            Err(other) => return Err(other),
        };
        Ok(ModelFiles {
            name,
            config,
            architecture,
            weights,
            tokenizer,
            generation,
            embedding,
            labels,
            scoring,
        })
    }

    /// Whether the model is a decoder or an encoder.
    pub fn kind(&self) -> ModelKind {
        self.architecture.shape().kind
    }

    /// Everything that the model can do.
    pub fn abilities(&self) -> Vec<Ability> {
        match self.kind() {
            ModelKind::Decoder if self.architecture.shape().audio.is_some() => vec![Ability::Transcribe],
            ModelKind::Decoder => vec![Ability::Generate],
            ModelKind::Encoder if self.scoring == Some(Scoring::Judgement) => vec![Ability::Rerank],
            ModelKind::Encoder if self.scoring.is_some() => {
                vec![Ability::Embed, Ability::Classify, Ability::Rerank]
            }
            ModelKind::Encoder if self.labels.is_some() => vec![Ability::Embed, Ability::Classify],
            ModelKind::Encoder => vec![Ability::Embed],
        }
    }

    /// Whether the model can do something.
    pub fn can(&self, ability: Ability) -> bool {
        self.abilities().contains(&ability)
    }

    /// Returns an error if the model is of the other kind.
    ///
    /// # Errors
    /// [`CheckpointError::WrongKind`] says what the model can do.
    pub fn expect(&self, kind: ModelKind) -> Result<(), CheckpointError> {
        if self.kind() == kind {
            return Ok(());
        }
        let architecture = self.architecture.shape().architecture;
        Err(CheckpointError::WrongKind { architecture, kind: self.kind(), can: self.abilities() })
    }
}

/// Opens the tensors of a folder or a GGUF file, and nothing else of the model.
///
/// # Errors
/// [`CheckpointError`] says what is wrong with which file.
pub fn open_weights(path: &Path) -> Result<Weights, CheckpointError> {
    match Source::parse(path)? {
        Source::Gguf(path) => Ok(Weights::from_gguf(files::gguf_parts(&path)?)?.0),
        _ => Files::Folder(path).weights(""),
    }
}

/// Opens the tokenizer of a folder that need not hold a whole model, or of a GGUF file, whose architecture need not run.
///
/// # Errors
/// [`CheckpointError::Text`] if `tokenizer.json` is missing or the content of a file is wrong; [`CheckpointError::Io`],
/// [`CheckpointError::NotAFile`] or [`CheckpointError::TooLarge`] if a file cannot be read; [`CheckpointError::Weights`]
/// if a GGUF file is not valid.
pub fn open_tokenizer(path: &Path) -> Result<Tokenizer, CheckpointError> {
    if path.is_file() {
        return gguf::open_tokenizer(path);
    }
    let files = Files::Folder(path);
    let config = optional(files.read(CONFIG, Kind::Settings))?;
    let generation = optional(files.read(GENERATION_CONFIG, Kind::Settings))?;
    tokenizer(files, config.as_deref(), generation.as_deref())
}

/// Reads a `config.json`: the file at `path`, or the one in the folder there.
///
/// # Errors
/// [`CheckpointError::Io`], [`CheckpointError::NotAFile`] or [`CheckpointError::TooLarge`] if it cannot be read,
/// [`CheckpointError::NotUtf8`] if it is not text.
pub fn read_config(path: &Path) -> Result<String, CheckpointError> {
    let path = if path.is_dir() { path.join(CONFIG) } else { path.to_path_buf() };
    text(&path, files::read(&path, Kind::Settings)?)
}

/// Reads the files of a tokenizer other than `config.json` and `generation_config.json`, and builds it.
fn tokenizer(
    files: Files<'_>,
    config: Option<&[u8]>,
    generation_config: Option<&[u8]>,
) -> Result<Tokenizer, CheckpointError> {
    let Some(tokenizer) = optional(files.read("tokenizer.json", Kind::Tokenizer))? else {
        let dir = files.path("");
        let found = OTHER_TOKENIZERS.into_iter().filter(|name| dir.join(name).exists());
        let found = found.map(str::to_string).collect();
        return Err(TextError::NoTokenizer { dir, found }.into());
    };
    let tokenizer_config = optional(files.read("tokenizer_config.json", Kind::Settings))?;
    let special_tokens_map = optional(files.read("special_tokens_map.json", Kind::Settings))?;
    let added_tokens = optional(files.read("added_tokens.json", Kind::Settings))?;
    let jinja = optional(files.read("chat_template.jinja", Kind::Template))?;
    let template = match jinja {
        Some(_) => None,
        None => optional(files.read("chat_template.json", Kind::Template))?,
    };
    Ok(Tokenizer::from_files(&TokenizerFiles {
        tokenizer: &tokenizer,
        tokenizer_config: tokenizer_config.as_deref(),
        special_tokens_map: special_tokens_map.as_deref(),
        added_tokens: added_tokens.as_deref(),
        generation_config,
        config,
        chat_template_jinja: jinja.as_deref(),
        chat_template_json: template.as_deref(),
    })?)
}

/// The contents of the file at `path` as text. A byte order mark is none of it.
fn text(path: &Path, bytes: Vec<u8>) -> Result<String, CheckpointError> {
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let line = 1 + e.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
        CheckpointError::NotUtf8 { path: path.to_path_buf(), line, at }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_string).unwrap_or(text))
}
