//! Speech to text with Whisper: a recording of any length, window by window.
//!
//! The reference is `whisper/transcribe.py` and what it calls. What differs: the log-mel frames are normalised by the
//! loudest so far, because a recording is not read to its end beforehand; what lies beyond its end is silence; a window's
//! only segment begins with its first timestamp, not with the window; segments without text are left out.

mod beam;
mod format;
mod languages;
mod options;
mod segments;
mod tokens;
mod transcription;
mod window;
mod words;

use std::ops::ControlFlow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use format::{Transcript, TranscriptFormat, TranscriptWriter};
pub use languages::{LANGUAGES, language_name};
pub use options::{SpeechTask, TranscribeOptions};
pub use transcription::Transcription;

use crate::audio::{AudioError, AudioReader};
use crate::checkpoint::ModelFiles;
use crate::engine::{Engine, EngineError, EngineOptions};
use crate::ops::Attention;
use crate::tasks::{Engines, run};
use crate::text::{TextError, Tokenizer};
use tokens::{Language, SpeechTokens};

/// What can go wrong with a transcription.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TranscribeError {
    /// The model reads and writes, it does not hear.
    #[error("`{architecture}` does not hear, expected a speech model (`whisper`)")]
    NotSpeech {
        /// `model_type` in the config.
        architecture: &'static str,
    },
    /// The tokenizer is no Whisper's.
    #[error("the tokenizer has no token `{name}`, expected that of a speech model")]
    Token {
        /// The token.
        name: &'static str,
    },
    /// A language that is unknown here or to the model.
    #[error("language `{found}` is not known, expected {expected}")]
    Language {
        /// What was asked for.
        found: String,
        /// What could have been.
        expected: String,
    },
    /// The model does not translate.
    #[error("the model knows English alone, expected a multilingual one to translate")]
    NoTranslation,
    /// The recording.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The engine, or an option that is out of its range.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<TextError> for TranscribeError {
    fn from(error: TextError) -> Self {
        TranscribeError::Engine(error.into())
    }
}

impl TranscribeError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            TranscribeError::NotSpeech { .. } => {
                Some("a language model continues text; give a speech model, such as whisper-small".into())
            }
            TranscribeError::Token { .. } => Some("`tokenizer.json` may belong to another model".into()),
            TranscribeError::Audio(e) => e.hint(),
            TranscribeError::Engine(e) => e.hint(),
            _ => None,
        }
    }
}

/// A word, and when it is said.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Word {
    /// With the space before it and the marks that belong to it.
    pub word: String,
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// The mean over its tokens.
    pub probability: f64,
}

/// A stretch of a recording and its text, with the fields of OpenAI's API.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Segment {
    /// Counted from 0.
    pub id: usize,
    /// Frame (10 ms) at which the window begins that it was heard in.
    pub seek: usize,
    /// Seconds.
    pub start: f64,
    /// Seconds.
    pub end: f64,
    /// With the space before it.
    pub text: String,
    /// With the timestamps around it.
    pub tokens: Vec<u32>,
    /// At which the window was decoded.
    pub temperature: f32,
    /// The mean over the window's tokens.
    pub avg_logprob: f64,
    /// Of the window's text.
    pub compression_ratio: f64,
    /// Of the window.
    pub no_speech_prob: f64,
    /// If they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<Word>>,
}

/// What a transcription tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// The language was detected.
    Language {
        /// Its code.
        code: &'static str,
        /// Among those that the model knows.
        probability: f32,
    },
    /// The next segment, in order of time.
    Segment(Segment),
    /// A window is done.
    Window {
        /// Seconds of the recording that are done.
        until: f64,
        /// All that was generated, the end token excepted: what no segment has yet is heard again in the next window.
        tokens: Vec<u32>,
    },
}

/// What does not change from window to window.
#[derive(Clone, Debug)]
struct Plan {
    tokens: SpeechTokens,
    tokenizer: Tokenizer,
    options: TranscribeOptions,
    /// Nothing where the model knows English alone.
    language: Option<Language>,
    /// (layer, head) of the heads that look at what is being said.
    alignment_heads: Vec<[usize; 2]>,
}

impl Plan {
    /// The text of `tokens`, without what steers and without times.
    fn text(&self, tokens: &[u32]) -> Result<String, TextError> {
        self.tokenizer.decode(&self.words(tokens), true)
    }

    /// Those of `tokens` that are text.
    fn words(&self, tokens: &[u32]) -> Vec<u32> {
        tokens.iter().copied().filter(|token| *token < self.tokens.end).collect()
    }
}

/// Transcribes recordings with one model.
#[derive(Clone, Debug)]
pub struct Transcriber(Arc<Plan>);

impl Transcriber {
    /// Reads what the checkpoint says on prompts and suppressed tokens.
    ///
    /// # Errors
    /// A model that does not hear, a tokenizer without the tokens that it needs, a language that it does not know, an
    /// option that is out of its range.
    pub fn new(files: &ModelFiles, options: TranscribeOptions) -> Result<Transcriber, TranscribeError> {
        let shape = files.architecture.shape();
        let Some(sound) = &shape.audio else {
            return Err(TranscribeError::NotSpeech { architecture: shape.architecture });
        };
        options.check()?;
        let tokenizer = files.tokenizer.as_ref().map_err(Clone::clone)?.clone();
        let tokens = SpeechTokens::new(files, &tokenizer)?;
        let language = match &options.language {
            Some(language) => tokens.language(language)?,
            None => None,
        };
        if !tokens.can(options.task) {
            return Err(TranscribeError::NoTranslation);
        }
        let alignment_heads = alignment_heads(&files.generation.json, &sound.cross_attention)?;
        Ok(Transcriber(Arc::new(Plan { tokens, tokenizer, options, language, alignment_heads })))
    }

    /// What the engine must be built with, over `options`.
    pub fn engine_options(&self, options: EngineOptions) -> EngineOptions {
        self.0.options.engine(&self.0.alignment_heads, options)
    }

    /// Begins with a recording.
    ///
    /// # Errors
    /// [`TranscribeError::NotSpeech`] if the engine's model does not hear.
    pub fn begin(&self, engine: &Engine, audio: AudioReader) -> Result<Transcription, TranscribeError> {
        Transcription::new(self.0.clone(), engine, audio)
    }

    /// Transcribes a recording, and tells `on_heard` of segments as they come; after `Break`, what has come is all.
    ///
    /// # Errors
    /// The engine's, and those of the recording, after all that could be heard was told;
    /// [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, whose host submits.
    pub fn transcribe(
        &self,
        engine: &mut Engine,
        audio: AudioReader,
        mut on_heard: impl FnMut(&Heard) -> ControlFlow<()>,
    ) -> Result<Transcript, TranscribeError> {
        let mut transcription = self.begin(engine, audio)?;
        let mut segments = Vec::new();
        let transcript = run(&mut transcription, &mut Engines::from(engine), |heard| {
            let Some(heard) = heard else { return ControlFlow::Continue(()) };
            let flow = on_heard(&heard);
            if let Heard::Segment(segment) = heard {
                segments.push(segment);
            }
            flow
        })?;
        Ok(Transcript { segments, ..transcript })
    }
}

/// Heads that are looked at where nobody says which: their weights over a clip come back for every token.
const MOST_HEADS: usize = 24;

/// The heads that `generation_config.json` names, or some of the upper half of the decoder, evenly spread
/// (`whisper/model.py` takes all of them).
fn alignment_heads(generation: &Value, layers: &[Attention]) -> Result<Vec<[usize; 2]>, TranscribeError> {
    let listed = match generation.get("alignment_heads") {
        None | Some(Value::Null) => None,
        Some(list) => Some(Vec::<[usize; 2]>::deserialize(list).map_err(|e| EngineError::Config {
            path: "generation_config.json".into(),
            message: format!("`alignment_heads`: {e}"),
        })?),
    };
    let of_layer = |layer: usize| (0..layers[layer].n_heads).map(move |head| [layer, head]);
    Ok(listed.unwrap_or_else(|| {
        let upper: Vec<[usize; 2]> = (layers.len() / 2..layers.len()).flat_map(of_layer).collect();
        upper.iter().copied().step_by(upper.len().div_ceil(MOST_HEADS).max(1)).collect()
    }))
}
