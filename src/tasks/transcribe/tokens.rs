//! Whisper's special tokens: languages, tasks, and suppressed tokens.

use super::languages::{self, LANGUAGES};
use super::{SpeechTask, TranscribeError};
use crate::checkpoint::{GenerationConfig, ModelFiles};
use crate::engine::{EngineError, SpeechRules, TimestampRules};
use crate::text::Tokenizer;

/// Size of the vocabulary from which on a checkpoint counts as multilingual, if it does not specify that
/// (`is_multilingual` in `whisper/model.py`).
const MULTILINGUAL_VOCAB: usize = 51_865;
/// The default for the latest beginning of a window's first segment: 1 s.
const MAX_INITIAL_TIMESTAMP: u32 = 50;

/// A language of the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Language {
    pub code: &'static str,
    pub token: u32,
}

/// The special tokens in `tokenizer.json` and `generation_config.json`.
#[derive(Clone, Debug)]
pub(super) struct SpeechTokens {
    pub start: u32,
    pub end: u32,
    pub no_timestamps: u32,
    pub first_timestamp: u32,
    /// Comes before earlier text.
    pub previous: Option<u32>,
    pub no_speech: Option<u32>,
    transcribe: Option<u32>,
    translate: Option<u32>,
    /// Empty if the model knows only English.
    pub languages: Vec<Language>,
    /// Always suppressed.
    pub suppress: Vec<u32>,
    /// Suppressed at the beginning.
    suppress_first: Vec<u32>,
    max_initial: u32,
    /// The language if nobody chooses one, by the checkpoint. Default: detected.
    pub default_language: Option<Language>,
}

impl SpeechTokens {
    /// # Errors
    /// [`TranscribeError::Token`] with the first missing token, [`EngineError::Config`] with a list that is too long.
    pub fn new(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<SpeechTokens, TranscribeError> {
        let GenerationConfig { speech, path, .. } = &files.generation;
        let vocab_size = files.architecture.shape().vocab_size;
        let id = |name: &str| tokenizer.token_to_id(name).filter(|id| (*id as usize) < vocab_size);
        let need = |name: &'static str| id(name).ok_or(TranscribeError::Token { name });

        let start = need("<|startoftranscript|>")?;
        let end = need("<|endoftext|>")?;
        let no_timestamps = need("<|notimestamps|>")?;
        let is_multilingual = speech.is_multilingual.unwrap_or(vocab_size >= MULTILINGUAL_VOCAB);
        let language = |(code, _): (&'static str, &str)| {
            id(&format!("<|{code}|>")).map(|token| Language { code, token })
        };
        let languages: Vec<Language> =
            if is_multilingual { LANGUAGES.into_iter().filter_map(language).collect() } else { Vec::new() };
        // The original's name, and the one in Hugging Face's vocabularies.
        let no_speech = id("<|nospeech|>").or_else(|| id("<|nocaptions|>"));
        let previous = id("<|startofprev|>");
        let (transcribe, translate) = (id("<|transcribe|>"), id("<|translate|>"));

        // The checkpoint's list, and all special tokens, which are no text.
        let mut suppress = speech.suppress_tokens.clone().unwrap_or_default();
        suppress.extend(
            [Some(start), previous, id("<|startoflm|>"), no_speech, transcribe, translate].iter().flatten(),
        );
        suppress.retain(|token| (*token as usize) < vocab_size);
        suppress.sort_unstable();
        suppress.dedup();
        let mut suppress_first = match &speech.begin_suppress_tokens {
            Some(tokens) => tokens.clone(),
            None => {
                tokenizer.encode_plain(" ").map_err(EngineError::from)?.into_iter().chain([end]).collect()
            }
        };
        suppress_first.retain(|token| (*token as usize) < vocab_size);
        suppress_first.sort_unstable();
        suppress_first.dedup();
        if suppress_first.len() > SpeechRules::MOST_FIRST {
            let (n, most) = (suppress_first.len(), SpeechRules::MOST_FIRST);
            let message = format!("`begin_suppress_tokens` has {n} tokens, expected at most {most}");
            return Err(EngineError::Config { path: path.clone(), message }.into());
        }
        let max_initial = speech.max_initial_timestamp_index.unwrap_or(MAX_INITIAL_TIMESTAMP);
        Ok(SpeechTokens {
            start,
            end,
            no_timestamps,
            first_timestamp: no_timestamps + 1,
            default_language: languages.iter().find(|l| Some(l.token) == speech.language).copied(),
            previous,
            no_speech,
            transcribe,
            translate,
            languages,
            suppress,
            suppress_first,
            max_initial,
        })
    }

    /// The language with that code or name.
    ///
    /// # Errors
    /// [`TranscribeError::Language`].
    pub fn language(&self, text: &str) -> Result<Option<Language>, TranscribeError> {
        let wrong = |expected: String| Err(TranscribeError::Language { found: text.to_string(), expected });
        let Some((code, _)) = languages::find(text) else {
            return wrong("a code such as `en` or a name such as `english`".into());
        };
        if self.languages.is_empty() {
            return if code == "en" {
                Ok(None)
            } else {
                wrong("`en`, the only one that this model knows".into())
            };
        }
        match self.languages.iter().find(|language| language.code == code) {
            Some(language) => Ok(Some(*language)),
            None => {
                let known: Vec<String> = self.languages.iter().map(|l| format!("`{}`", l.code)).collect();
                wrong(format!("one that this model knows: {}", known.join(", ")))
            }
        }
    }

    /// Whether the model can do `task`.
    pub fn can(&self, task: SpeechTask) -> bool {
        match task {
            SpeechTask::Transcribe => true,
            SpeechTask::Translate => !self.languages.is_empty() && self.translate.is_some(),
        }
    }

    /// The prompt after earlier text: `<|startoftranscript|>`, then language and task if the model has a choice.
    pub fn start(&self, language: Option<Language>, task: SpeechTask) -> Vec<u32> {
        let mut tokens = vec![self.start];
        if let Some(language) = language {
            tokens.push(language.token);
            tokens.extend(match task {
                SpeechTask::Transcribe => self.transcribe,
                SpeechTask::Translate => self.translate,
            });
        }
        tokens
    }

    /// The rules for the tokens after a prompt of `prompt_len` tokens.
    pub fn rules(&self, prompt_len: usize, timestamps: bool) -> SpeechRules {
        SpeechRules {
            prompt_len,
            end: self.end,
            suppress_first: self.suppress_first.clone(),
            timestamps: timestamps.then_some(TimestampRules {
                first: self.first_timestamp,
                no_timestamps: self.no_timestamps,
                max_initial: Some(self.max_initial),
            }),
        }
    }
}
