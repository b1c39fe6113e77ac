//! Transcription with Whisper: recordings of any length, window by window.
//!
//! The reference is `whisper/transcribe.py`. Departures from it: log-mel frames are normalised by the loudest frame so
//! far, because a recording is not read to its end first; frames beyond its end are silence; a window's only segment
//! begins with its first timestamp, not with the window; segments without text are omitted; without timestamps, the next
//! window begins where this one ends, whether or not there are times of words, so that the text is the same.

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

use serde::Serialize;

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

/// An error of a transcription.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TranscribeError {
    /// The model is not a speech model.
    #[error("`{architecture}` has no audio encoder, expected a speech model (`whisper`)")]
    NotSpeech {
        /// `model_type` in the config.
        architecture: &'static str,
    },
    /// The tokenizer is not that of a Whisper model.
    #[error("the tokenizer has no token `{name}`, expected that of a speech model")]
    Token {
        /// The token.
        name: &'static str,
    },
    /// The language is unknown, or the model does not know it.
    #[error("language `{found}` is not known, expected {expected}")]
    Language {
        /// The requested language.
        found: String,
        /// The known languages.
        expected: String,
    },
    /// The model does not translate.
    #[error("the model knows only English, expected a multilingual one to translate")]
    NoTranslation,
    /// The recording.
    #[error(transparent)]
    Audio(#[from] AudioError),
    /// The engine; or an option is out of its range.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<TextError> for TranscribeError {
    fn from(error: TextError) -> Self {
        TranscribeError::Engine(error.into())
    }
}

impl TranscribeError {
    /// Advice for the user, if there is any.
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

/// A word with its times.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Word {
    /// The word, with the space before it and adjacent punctuation.
    pub word: String,
    /// Start in seconds.
    pub start: f64,
    /// End in seconds.
    pub end: f64,
    /// The mean probability of its tokens.
    pub probability: f64,
}

/// A segment of a recording and its text, with the fields of OpenAI's API.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Segment {
    /// Counted from 0.
    pub id: usize,
    /// Start of its window, in frames of 10 ms.
    pub seek: usize,
    /// Start in seconds.
    pub start: f64,
    /// End in seconds.
    pub end: f64,
    /// The text, with the space before it.
    pub text: String,
    /// The tokens, with the timestamps around them.
    pub tokens: Vec<u32>,
    /// The temperature at which the window was decoded.
    pub temperature: f32,
    /// The mean log-probability of the window's tokens.
    pub avg_logprob: f64,
    /// The compression ratio of the window's text.
    pub compression_ratio: f64,
    /// The probability that the window contains no speech.
    pub no_speech_prob: f64,
    /// The words, if [`TranscribeOptions::word_timestamps`] is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub words: Option<Vec<Word>>,
}

/// A progress report of a transcription.
#[derive(Clone, Debug, PartialEq)]
pub enum TranscriptEvent {
    /// The language was detected.
    Language {
        /// Its code.
        code: &'static str,
        /// Its probability among the model's languages.
        probability: f32,
    },
    /// The next segment, in order of time.
    Segment(Segment),
    /// A window is done.
    Window {
        /// The end of the finished part of the recording, in seconds.
        until: f64,
        /// All generated tokens but the end token. Tokens that are in no segment yet are generated again in the next
        /// window.
        tokens: Vec<u32>,
    },
}

/// The settings of a transcriber, which are the same for all windows.
#[derive(Clone, Debug)]
struct Plan {
    tokens: SpeechTokens,
    tokenizer: Tokenizer,
    options: TranscribeOptions,
    /// `None` if it is to be detected, or if the model knows only English.
    language: Option<Language>,
    /// (layer, head) of the alignment heads.
    alignment_heads: Vec<[usize; 2]>,
}

impl Plan {
    /// The text of `tokens`, without special tokens and timestamps.
    fn text(&self, tokens: &[u32]) -> Result<String, TextError> {
        self.tokenizer.decode(&self.words(tokens), true)
    }

    /// The text tokens among `tokens`.
    fn words(&self, tokens: &[u32]) -> Vec<u32> {
        tokens.iter().copied().filter(|token| *token < self.tokens.end).collect()
    }
}

/// The decoded text of a window.
#[derive(Clone, Debug)]
struct Decoded {
    /// Without the end token.
    tokens: Vec<u32>,
    temperature: f32,
    /// The mean log-probability of the tokens, including the end token.
    avg_logprob: f64,
    /// Bytes of the text, divided by its compressed bytes.
    compression_ratio: f64,
    no_speech_prob: f64,
}

/// Transcribes recordings with one model.
#[derive(Clone, Debug)]
pub struct Transcriber(Arc<Plan>);

impl Transcriber {
    /// A transcriber for the model in `files`, whose tokenizer and settings it reads.
    ///
    /// # Errors
    /// [`TranscribeError::NotSpeech`], [`TranscribeError::Token`], [`TranscribeError::Language`],
    /// [`TranscribeError::NoTranslation`]; [`EngineError::Parameter`] for an option that is out of its range.
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
            None => tokens.default_language,
        };
        if !tokens.can(options.task) {
            return Err(TranscribeError::NoTranslation);
        }
        let alignment_heads =
            alignment_heads(&files.generation.speech.alignment_heads, &sound.cross_attention);
        Ok(Transcriber(Arc::new(Plan { tokens, tokenizer, options, language, alignment_heads })))
    }

    /// The options that the engine must be built with: `options`, with those that transcription needs.
    pub fn engine_options(&self, options: EngineOptions) -> EngineOptions {
        self.0.options.engine(&self.0.alignment_heads, options)
    }

    /// Starts the transcription of a recording.
    ///
    /// # Errors
    /// [`TranscribeError::NotSpeech`] if the engine's model is not a speech model.
    pub fn begin(&self, engine: &Engine, audio: AudioReader) -> Result<Transcription, TranscribeError> {
        Transcription::new(self.0.clone(), engine, audio)
    }

    /// Transcribes a recording, and calls `on_event` with segments as they come. `Break` ends the transcript there.
    ///
    /// # Errors
    /// Those of the engine; those of the recording, after all segments before the damage;
    /// [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where only the host submits.
    pub fn transcribe(
        &self,
        engine: &mut Engine,
        audio: AudioReader,
        mut on_event: impl FnMut(&TranscriptEvent) -> ControlFlow<()>,
    ) -> Result<Transcript, TranscribeError> {
        let mut transcription = self.begin(engine, audio)?;
        let mut segments = Vec::new();
        let transcript = run(&mut transcription, &mut Engines::from(engine), |event| {
            let Some(event) = event else { return ControlFlow::Continue(()) };
            let flow = on_event(&event);
            if let TranscriptEvent::Segment(segment) = event {
                segments.push(segment);
            }
            flow
        })?;
        Ok(Transcript { segments, ..transcript })
    }
}

/// Most alignment heads if the checkpoint names none: each one's weights over a clip are read back for every token.
const MOST_HEADS: usize = 24;

/// The alignment heads that the checkpoint names, or some heads of the upper half of the decoder, evenly spread
/// (`whisper/model.py` takes all of these).
fn alignment_heads(named: &[[usize; 2]], layers: &[Attention]) -> Vec<[usize; 2]> {
    if !named.is_empty() {
        return named.to_vec();
    }
    let of_layer = |layer: usize| (0..layers[layer].n_heads).map(move |head| [layer, head]);
    let upper: Vec<[usize; 2]> = (layers.len() / 2..layers.len()).flat_map(of_layer).collect();
    upper.iter().copied().step_by(upper.len().div_ceil(MOST_HEADS).max(1)).collect()
}
