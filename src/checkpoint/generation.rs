//! `generation_config.json`, or the same keys of `config.json`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::CheckpointError;
use crate::models::AudioShape;
use crate::models::settings::{Read, Settings, TOKENS};

/// The generation that the model's authors recommend: `generation_config.json`, or the same keys of `config.json` where
/// that file is absent, as in transformers. A key that is absent is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationConfig {
    /// `false` takes the most probable token, whatever the other keys say.
    pub do_sample: Option<bool>,
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Only the `top_k` most probable tokens.
    pub top_k: Option<u32>,
    /// Only the fewest most probable tokens that hold `top_p` of the mass.
    pub top_p: Option<f32>,
    /// Only tokens with at least `min_p` times the largest probability.
    pub min_p: Option<f32>,
    /// Divides or multiplies the logits of tokens that were there before.
    pub repetition_penalty: Option<f32>,
    /// The keys of a speech model; none of them for others.
    pub speech: SpeechConfig,
    /// The file, for messages.
    pub path: PathBuf,
    /// The whole file; null if there is no file.
    pub json: Value,
}

/// The keys of `generation_config.json` that only speech models have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpeechConfig {
    /// Whether the model knows more languages than English.
    pub is_multilingual: Option<bool>,
    /// Tokens that are never written.
    pub suppress_tokens: Option<Vec<u32>>,
    /// Tokens that are not written first.
    pub begin_suppress_tokens: Option<Vec<u32>>,
    /// The token of the language if nobody chooses one: the first of `forced_decoder_ids`. Default: detected.
    pub language: Option<u32>,
    /// The latest timestamp that may come first, in steps of 20 ms.
    pub max_initial_timestamp_index: Option<u32>,
    /// (layer, head) of the cross-attention that follows the sound. Empty if the file names none.
    pub alignment_heads: Vec<[usize; 2]>,
}

impl GenerationConfig {
    /// Parses the file at `path`. `audio` is the model's audio encoder, if it has one.
    ///
    /// # Errors
    /// [`CheckpointError::Setting`] with a key, its line, its value and its range.
    pub(super) fn parse(
        path: &Path,
        json: &str,
        audio: Option<&AudioShape>,
    ) -> Result<GenerationConfig, CheckpointError> {
        let read = || -> Read<GenerationConfig> {
            let settings = Settings::parse(json)?;
            let speech = audio.map(|audio| SpeechConfig::read(&settings, audio)).transpose()?;
            let config = GenerationConfig::read(&settings)?;
            // A value that is no JSON of ours, such as a number beyond f64, is one of a key that nobody reads.
            let value = |raw: &str| serde_json::from_str::<Value>(raw).ok();
            let entry = |(key, raw): (&str, &str)| Some((key.to_string(), value(raw)?));
            let json = settings.entries().filter_map(entry).collect();
            Ok(GenerationConfig { json, speech: speech.unwrap_or_default(), ..config })
        };
        let config = read().map_err(|error| CheckpointError::setting(path, error))?;
        Ok(GenerationConfig { path: path.into(), ..config })
    }

    /// Reads the keys of any model.
    fn read(s: &Settings<'_>) -> Read<GenerationConfig> {
        let real = |key, range| s.some_real(key, range).map(|x| x.map(|x| x as f32));
        let top_p = real("top_p", 0.0..=1.0)?;
        if top_p == Some(0.0) {
            return Err(s.wrong("top_p", "a number above 0, at most 1"));
        }
        Ok(GenerationConfig {
            do_sample: s.some_flag("do_sample")?,
            temperature: real("temperature", 0.0..=100.0)?,
            top_k: s.some_whole("top_k", TOKENS, None)?.map(|n| n as u32),
            top_p,
            min_p: real("min_p", 0.0..=1.0)?,
            repetition_penalty: real("repetition_penalty", 0.01..=100.0)?,
            ..GenerationConfig::default()
        })
    }
}

impl SpeechConfig {
    fn read(s: &Settings<'_>, audio: &AudioShape) -> Read<SpeechConfig> {
        let pairs = "a list of pairs: a position and a token";
        let forced: Option<Vec<(usize, Option<u32>)>> = s.of_type("forced_decoder_ids", pairs)?;
        let pairs = "a list of pairs: a layer and a head";
        let alignment_heads: Vec<[usize; 2]> = s.of_type("alignment_heads", pairs)?.unwrap_or_default();
        let layers = &audio.cross_attention;
        let is_absent = |[layer, head]: &&[usize; 2]| layers.get(*layer).is_none_or(|a| *head >= a.n_heads);
        if let Some([layer, head]) = alignment_heads.iter().find(is_absent) {
            let n_heads = layers.first().map_or(0, |a| a.n_heads);
            let expected = format!("heads of the decoder, which has {} layers of {n_heads}", layers.len());
            return Err(s.wrong_value("alignment_heads", format!("layer {layer}, head {head}"), expected));
        }
        Ok(SpeechConfig {
            is_multilingual: s.some_flag("is_multilingual")?,
            suppress_tokens: s.tokens("suppress_tokens")?,
            begin_suppress_tokens: s.tokens("begin_suppress_tokens")?,
            language: forced.and_then(|forced| match *forced.first()? {
                (1, token) => token,
                _ => None,
            }),
            max_initial_timestamp_index: s
                .some_whole("max_initial_timestamp_index", TOKENS, None)?
                .map(|n| n as u32),
            alignment_heads,
        })
    }
}
