//! What the endpoints that generate text have in common: sampling parameters, log-probabilities, token counts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wginfer::engine::{FinishReason, Logprobs, Sampling, Timings, TokenLogprob, Usage};
use wginfer::text::Tokenizer;

use super::error::ApiError;
use super::model::{Info, MAX_LOGPROBS};

/// Most answers to one prompt.
const MAX_N: usize = 128;
/// Most texts that end an answer. OpenAI allows 4.
const MAX_STOP: usize = 16;

/// Sampling parameters with OpenAI's names, then those that other servers have in common.
#[derive(Debug, Default, Deserialize)]
pub struct SamplingFields {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub seed: Option<i64>,
    pub logit_bias: Option<BTreeMap<String, f32>>,
    pub n: Option<usize>,
    pub stop: Option<OneOrMany<String>>,
    pub max_tokens: Option<i64>,
    pub max_completion_tokens: Option<i64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    /// llama.cpp's name.
    pub repeat_penalty: Option<f32>,
}

/// A value, or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> From<OneOrMany<T>> for Vec<T> {
    fn from(value: OneOrMany<T>) -> Vec<T> {
        match value {
            OneOrMany::One(value) => vec![value],
            OneOrMany::Many(values) => values,
        }
    }
}

impl SamplingFields {
    /// The sampling parameters: those of the request, and the model's own for the others.
    ///
    /// # Errors
    /// 400 for one that is out of its range.
    pub fn sampling(&self, info: &Info) -> Result<Sampling, ApiError> {
        let own = &info.sampling;
        let top_k = match self.top_k {
            None => own.top_k,
            // 0 and -1 are off.
            Some(k @ -1..) => u32::try_from(k.max(0)).unwrap_or(u32::MAX),
            Some(k) => return Err(ApiError::field("top_k", format!("`top_k` is {k}, expected at least 0"))),
        };
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_k,
            top_p: self.top_p.unwrap_or(own.top_p),
            min_p: self.min_p.unwrap_or(own.min_p),
            repetition_penalty: self
                .repetition_penalty
                .or(self.repeat_penalty)
                .unwrap_or(own.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias()?,
            seed: self.seed.map(|seed| seed as u64),
        };
        sampling.check(info.vocab_size)?;
        Ok(sampling)
    }

    fn logit_bias(&self) -> Result<Vec<(u32, f32)>, ApiError> {
        let wrong = |token: &str| {
            ApiError::field("logit_bias", format!("`logit_bias` has the key `{token}`, expected token ids"))
        };
        let entries = self.logit_bias.iter().flatten();
        entries.map(|(token, bias)| Ok((token.parse().map_err(|_| wrong(token))?, *bias))).collect()
    }

    /// Number of answers to a prompt.
    ///
    /// # Errors
    /// 400 for one that is out of its range.
    pub fn n(&self) -> Result<usize, ApiError> {
        match self.n.unwrap_or(1) {
            n @ 1..=MAX_N => Ok(n),
            n => Err(ApiError::field("n", format!("`n` is {n}, expected 1 to {MAX_N}"))),
        }
    }

    /// Texts that end an answer.
    ///
    /// # Errors
    /// 400 for too many.
    pub fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stop: Vec<String> = self.stop.clone().map_or(Vec::new(), Vec::from);
        if stop.len() > MAX_STOP {
            let message = format!("`stop` has {} texts, expected at most {MAX_STOP}", stop.len());
            return Err(ApiError::field("stop", message));
        }
        Ok(stop.into_iter().filter(|text| !text.is_empty()).collect())
    }

    /// Most tokens of an answer; -1 is as many as fit.
    ///
    /// # Errors
    /// 400 for one that is out of its range.
    pub fn max_tokens(&self) -> Result<Option<usize>, ApiError> {
        let (name, value) = match self.max_completion_tokens {
            Some(n) => ("max_completion_tokens", Some(n)),
            None => ("max_tokens", self.max_tokens),
        };
        match value {
            None | Some(-1) => Ok(None),
            Some(n @ 1..) => Ok(Some(usize::try_from(n).unwrap_or(usize::MAX))),
            Some(n) => Err(ApiError::field(name, format!("`{name}` is {n}, expected at least 1"))),
        }
    }
}

/// The sampling parameters of answer `i` to one prompt.
pub fn nth(sampling: &Sampling, i: usize) -> Sampling {
    Sampling { seed: sampling.seed.map(|seed| seed.wrapping_add(i as u64)), ..sampling.clone() }
}

/// Checks a number of log-probabilities.
///
/// # Errors
/// 400.
pub fn check_logprobs(name: &str, n: usize) -> Result<usize, ApiError> {
    match n {
        n if n <= MAX_LOGPROBS => Ok(n),
        n => Err(ApiError::field(name, format!("`{name}` is {n}, expected at most {MAX_LOGPROBS}"))),
    }
}

/// The log-probability of a token, in chat completions.
#[derive(Debug, Serialize)]
pub struct TokenProbability {
    token: String,
    logprob: f32,
    /// UTF-8; `null` if the token is a part of a character.
    bytes: Option<Vec<u8>>,
}

/// A token of an answer with the best ones at its place.
#[derive(Debug, Serialize)]
pub struct ContentLogprob {
    #[serde(flatten)]
    chosen: TokenProbability,
    top_logprobs: Vec<TokenProbability>,
}

impl TokenProbability {
    pub fn new(tokenizer: &Tokenizer, TokenLogprob { token, logprob }: TokenLogprob) -> TokenProbability {
        let text = text_of(tokenizer, token);
        let bytes = (!text.contains(char::REPLACEMENT_CHARACTER)).then(|| text.clone().into_bytes());
        TokenProbability { token: text, logprob, bytes }
    }
}

impl ContentLogprob {
    pub fn new(tokenizer: &Tokenizer, logprobs: &Logprobs, n_top: usize) -> ContentLogprob {
        let of = |token: &TokenLogprob| TokenProbability::new(tokenizer, *token);
        ContentLogprob {
            chosen: of(&logprobs.chosen),
            top_logprobs: logprobs.top.iter().take(n_top).map(of).collect(),
        }
    }
}

/// The text of one token.
pub fn text_of(tokenizer: &Tokenizer, token: u32) -> String {
    tokenizer.decode(&[token], false).unwrap_or_default()
}

/// Token counts of all answers to a request.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct UsageFields {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptDetails,
}

#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PromptDetails {
    /// Tokens whose keys and values were in the cache.
    pub cached_tokens: usize,
}

impl UsageFields {
    /// Adds an answer. `is_first` says whether its prompt has not been counted yet.
    pub fn add(&mut self, usage: &Usage, is_first: bool) {
        if is_first {
            self.prompt_tokens += usage.prompt_tokens;
            self.prompt_tokens_details.cached_tokens += usage.cached_tokens;
        }
        self.completion_tokens += usage.completion_tokens;
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

/// Times of an answer, with llama.cpp's names.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct TimingFields {
    pub prompt_n: usize,
    pub prompt_per_second: f64,
    pub predicted_n: usize,
    pub predicted_per_second: f64,
    pub time_to_first_token_ms: f64,
    pub total_ms: f64,
}

impl TimingFields {
    pub fn new(usage: &Usage, timings: &Timings) -> TimingFields {
        TimingFields {
            prompt_n: usage.prompt_tokens - usage.cached_tokens,
            prompt_per_second: timings.prompt_tokens_per_second,
            predicted_n: usage.completion_tokens,
            predicted_per_second: timings.decode_tokens_per_second,
            time_to_first_token_ms: timings.time_to_first_token_ms,
            total_ms: timings.total_ms,
        }
    }
}

/// The whole answer to a request.
#[derive(Serialize)]
pub struct Completion<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub system_fingerprint: &'static str,
    pub choices: Vec<Value>,
    pub usage: UsageFields,
    pub timings: Option<TimingFields>,
}

/// The reason of an end with OpenAI's names. A cancelled answer is one that nobody reads.
pub fn reason(finish_reason: FinishReason) -> &'static str {
    match finish_reason {
        FinishReason::Length => "length",
        FinishReason::Stop | FinishReason::Cancelled => "stop",
    }
}
