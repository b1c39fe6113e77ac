//! Sampling parameters, with OpenAI's names.

use crate::checkpoint::GenerationConfig;
use crate::ops::{SamplingRecord, SpeechRecord};

use super::EngineError;

/// Most entries of [`Sampling::logit_bias`].
pub const MAX_BIAS: usize = 1024;

/// Sampling parameters of one request. The formulas are in `shaders/sample.wgsl` and `shaders/penalize.wgsl`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token; 1 leaves the model's probabilities as they are.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens; 0 is off.
    pub top_k: u32,
    /// Only the fewest most probable tokens that hold `top_p` of the probability; 1 is off.
    pub top_p: f32,
    /// Only tokens with at least `min_p` times the largest probability; 0 is off.
    pub min_p: f32,
    /// Lowers the logits of tokens in prompt and output: divides positive ones, multiplies negative ones; 1 is off.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens in the output; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the logits of tokens in the output, times their count; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text. Default: a random seed for each request.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// The sampling parameters that the model's authors recommend.
impl From<&GenerationConfig> for Sampling {
    fn from(config: &GenerationConfig) -> Self {
        let off = Sampling::default();
        Sampling {
            temperature: match config.do_sample {
                Some(false) => 0.0,
                _ => config.temperature.unwrap_or(off.temperature),
            },
            top_k: config.top_k.unwrap_or(off.top_k),
            top_p: config.top_p.unwrap_or(off.top_p),
            min_p: config.min_p.unwrap_or(off.min_p),
            repetition_penalty: config.repetition_penalty.unwrap_or(off.repetition_penalty),
            ..off
        }
    }
}

/// The rules for the next token of a transcript, in the format that Whisper was trained on. They are in
/// `shaders/speech_rules.wgsl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpeechRules {
    /// Tokens before the first generated one: the request's prompt, or less if the prompt ends with the beginning of a
    /// transcript.
    pub prompt_len: usize,
    /// The token that ends a transcript.
    pub end: u32,
    /// Tokens that may not come first, at most 4.
    pub suppress_first: Vec<u32>,
    /// The rules for timestamps. Default: none.
    pub timestamps: Option<TimestampRules>,
}

/// The rules for timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimestampRules {
    /// The timestamp 0.00. All later tokens of the vocabulary are timestamps too.
    pub first: u32,
    /// The token for "no timestamps", which is forbidden.
    pub no_timestamps: u32,
    /// The latest timestamp that may come first, counted from `first`. Default: any.
    pub max_initial: Option<u32>,
}

impl SpeechRules {
    /// Most tokens in `suppress_first`.
    pub const MOST_FIRST: usize = 4;

    /// Checks the rules for a prompt of `n_prompt` tokens.
    ///
    /// # Errors
    /// [`EngineError::Parameter`].
    pub(super) fn check(&self, n_prompt: usize, vocab_size: usize) -> Result<(), EngineError> {
        let wrong = |name, found: String, expected| Err(EngineError::Parameter { name, found, expected });
        if self.prompt_len == 0 || self.prompt_len > n_prompt {
            let expected = "at least 1, at most the prompt's length";
            return wrong("prompt_len", self.prompt_len.to_string(), expected);
        }
        if self.suppress_first.len() > Self::MOST_FIRST {
            return wrong("suppress_first", format!("{} tokens", self.suppress_first.len()), "at most 4");
        }
        let times = self.timestamps.iter().flat_map(|t| [t.first, t.no_timestamps]);
        let mut tokens = times.chain(self.suppress_first.iter().copied()).chain([self.end]);
        match tokens.find(|token| *token as usize >= vocab_size) {
            Some(token) => wrong("rules", format!("token {token}"), "tokens of the vocabulary"),
            None => Ok(()),
        }
    }

    pub(super) fn record(&self) -> SpeechRecord {
        let mut suppress_first = [u32::MAX; Self::MOST_FIRST];
        suppress_first[..self.suppress_first.len()].copy_from_slice(&self.suppress_first);
        let times = self.timestamps;
        SpeechRecord {
            on: 1,
            prompt_len: self.prompt_len as u32,
            end: self.end,
            timestamps: times.is_some().into(),
            first: times.map_or(0, |t| t.first),
            no_timestamps: times.map_or(0, |t| t.no_timestamps),
            max_initial: times.and_then(|t| t.max_initial).unwrap_or(u32::MAX),
            pad: 0,
            suppress_first,
        }
    }
}

impl Sampling {
    /// Always the most probable token.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Default::default() }
    }

    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] with the first one that is out of its range.
    pub fn check(&self, vocab_size: usize) -> Result<(), EngineError> {
        let range = |name, value: f32, low: f32, high: f32, expected| {
            let fits = value.is_finite() && value >= low && value <= high;
            if fits {
                Ok(())
            } else {
                Err(EngineError::Parameter { name, found: value.to_string(), expected })
            }
        };
        range("temperature", self.temperature, 0.0, 100.0, "a number from 0 to 100")?;
        range("top_p", self.top_p, f32::MIN_POSITIVE, 1.0, "a number above 0, at most 1")?;
        range("min_p", self.min_p, 0.0, 1.0, "a number from 0 to 1")?;
        range("repetition_penalty", self.repetition_penalty, 0.01, 100.0, "a number from 0.01 to 100")?;
        range("presence_penalty", self.presence_penalty, -100.0, 100.0, "a number from -100 to 100")?;
        range("frequency_penalty", self.frequency_penalty, -100.0, 100.0, "a number from -100 to 100")?;
        let bias =
            |found: String, expected| Err(EngineError::Parameter { name: "logit_bias", found, expected });
        if self.logit_bias.len() > MAX_BIAS {
            return bias(format!("{} entries", self.logit_bias.len()), "at most 1024 entries");
        }
        let mut seen = std::collections::HashSet::new();
        for (token, value) in &self.logit_bias {
            if *token as usize >= vocab_size {
                return bias(format!("token {token}"), "tokens of the vocabulary");
            }
            if !seen.insert(token) {
                return bias(format!("token {token} twice"), "each token once");
            }
            if !value.is_finite() {
                return bias(value.to_string(), "finite numbers");
            }
        }
        Ok(())
    }

    /// Whether the tokens must be counted.
    pub(super) fn counts(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether the logits are changed before the draw.
    pub(super) fn penalizes(&self) -> bool {
        self.counts() || !self.logit_bias.is_empty()
    }

    pub(super) fn record(&self, seed: u64) -> SamplingRecord {
        // Below 1e-4, a difference of logits divided by the temperature could overflow, and the draw is greedy anyway.
        let temperature = if self.temperature < 1e-4 { 0.0 } else { self.temperature };
        SamplingRecord {
            seed_low: seed as u32,
            seed_high: (seed >> 32) as u32,
            temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            n_bias: self.logit_bias.len() as u32,
            counts: self.counts().into(),
            pad: 0,
        }
    }
}
