//! Requests and their events.

use std::ops::Range;
use std::time::Duration;

use serde::Serialize;

use super::{ClipId, Engine, EngineError, Sampling, SpeechRules};

/// The id of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// The positions whose logits a request returns instead of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// The last token.
    Last,
    /// Every token.
    All,
    /// The last token. They stay on the device, in row `row` of [`Engine::kept`], for a shader of the host's. There is
    /// no [`Event::Logits`], and nothing checks that they are finite.
    Kept {
        /// Below [`EngineOptions::kept_rows`](super::EngineOptions::kept_rows).
        row: usize,
        /// Whether their softmax is kept instead: the probabilities of the next token.
        softmax: bool,
    },
}

/// A prompt, and how to continue it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens to generate. Default: as many as fit in the context.
    pub max_tokens: Option<usize>,
    /// Texts that end the answer. They are not part of it.
    pub stop: Vec<String>,
    /// Special tokens that are part of the text, such as the marks of
    /// [`ReasoningFormat::special_tokens`](crate::text::ReasoningFormat::special_tokens). Others have no text.
    pub shown_tokens: Vec<u32>,
    /// Tokens that end the answer. Default: the checkpoint's.
    pub stop_tokens: Option<Vec<u32>>,
    /// For each token, the log-probabilities of the chosen one and of this many best ones.
    pub logprobs: Option<usize>,
    /// Logits instead of text. Nothing is generated.
    pub logits: Option<Logits>,
    /// For a speech model, the clip to transcribe and the rules of the transcript.
    pub speech: Option<SpeechRequest>,
    /// Log-probabilities of the prompt's own tokens from this position on, instead of text. Reads back 4 bytes per
    /// token. The part before the position is shared with other prompts as usual.
    pub prompt_logprobs: Option<usize>,
    /// Ranges of the prompt that this model generated earlier, such as the answers of a conversation. They are computed
    /// as generated tokens again, so that the same request gives the same bits whether the cache still has them or not.
    /// Tokens outside are computed as a prompt. Default: none.
    pub generated: Vec<Range<usize>>,
}

/// For a speech model, the clip to transcribe and the rules of the transcript.
#[derive(Clone, Debug)]
pub struct SpeechRequest {
    /// From [`Engine::listen`](super::Engine::listen).
    pub clip: ClipId,
    /// The rules for the next token. Default: any token may follow.
    pub rules: Option<SpeechRules>,
    /// Whether to report the attention of the prompt's rows to the clip: [`Event::Alignment`].
    pub alignment: bool,
}

impl Request {
    /// A request with default sampling.
    pub fn new(prompt: Vec<u32>) -> Self {
        Request {
            prompt,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            shown_tokens: Vec::new(),
            stop_tokens: None,
            logprobs: None,
            logits: None,
            speech: None,
            prompt_logprobs: None,
            generated: Vec::new(),
        }
    }

    /// A request to continue a text, with default sampling. [`Chat`](crate::tasks::Chat) renders messages with the model's
    /// template.
    ///
    /// # Errors
    /// [`EngineError::Text`] if the checkpoint has no tokenizer, or it cannot split the text.
    pub fn text(engine: &Engine, text: &str) -> Result<Self, EngineError> {
        let tokenizer = engine.model().tokenizer.as_ref().map_err(Clone::clone)?;
        Ok(Request::new(tokenizer.encode(text, true)?))
    }

    /// Whether text is generated.
    pub(super) fn writes(&self) -> bool {
        self.logits.is_none() && self.prompt_logprobs.is_none()
    }
}

/// A token with the logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// The natural logarithm of its probability; the most negative finite number if it cannot be drawn.
    pub logprob: f32,
}

/// Probabilities at one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Logprobs {
    /// The chosen token under the model.
    pub chosen: TokenLogprob,
    /// The best tokens under the model, best first.
    pub top: Vec<TokenLogprob>,
    /// The chosen token after penalties, temperature and filters.
    pub sampled: TokenLogprob,
    /// The best tokens after penalties, temperature and filters.
    pub sampled_top: Vec<TokenLogprob>,
}

/// Why an answer ended, with OpenAI's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token or a stop text.
    Stop,
    /// `max_tokens` was reached, or context or cache are full.
    Length,
    /// Cancelled by the caller.
    Cancelled,
}

impl FinishReason {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// Token counts, with OpenAI's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Generated tokens, including an end token.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Tokens of the prompt whose keys and values were found in the cache.
    pub cached_tokens: usize,
}

/// Times of a request, measured when results arrive at the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timings {
    /// From submission to the first token.
    pub time_to_first_token_ms: f64,
    /// Median of the times between tokens.
    pub time_per_output_token_median_ms: f64,
    /// 95th percentile of the times between tokens.
    pub time_per_output_token_p95_ms: f64,
    /// Computed prompt tokens per second, until the first token.
    pub prompt_tokens_per_second: f64,
    /// Tokens per second after the first one.
    pub decode_tokens_per_second: f64,
    /// From submission to the end.
    pub total_ms: f64,
}

impl Timings {
    pub(super) fn new(
        waiting: Duration,
        first: Duration,
        gaps: &[f64],
        n_computed: usize,
        total: Duration,
    ) -> Self {
        let mut sorted = gaps.to_vec();
        sorted.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let last = sorted.len().saturating_sub(1);
            sorted.get((q * last as f64).round() as usize).copied().unwrap_or(0.0)
        };
        let decode_ms: f64 = gaps.iter().sum();
        let prompt_s = first.saturating_sub(waiting).as_secs_f64();
        let rate = |n: f64, s: f64| if s > 0.0 { n / s } else { 0.0 };
        Timings {
            time_to_first_token_ms: first.as_secs_f64() * 1e3,
            time_per_output_token_median_ms: quantile(0.5),
            time_per_output_token_p95_ms: quantile(0.95),
            prompt_tokens_per_second: rate(n_computed as f64, prompt_s),
            decode_tokens_per_second: rate(gaps.len() as f64, decode_ms / 1e3),
            total_ms: total.as_secs_f64() * 1e3,
        }
    }
}

/// An event of a request.
#[derive(Debug)]
pub enum Event {
    /// A token was generated. There is no event for an end token.
    Token {
        /// The request.
        id: RequestId,
        /// The token.
        token: u32,
        /// The text that became certain with it. It never contains a part of a character, or of a possible stop text.
        text: String,
        /// Log-probabilities, if the request asked for them.
        logprobs: Option<Logprobs>,
    },
    /// Logits, if the request asked for them.
    Logits {
        /// The request.
        id: RequestId,
        /// Position of the token before the one that they predict.
        position: usize,
        /// `[vocab_size]`.
        values: Vec<f32>,
    },
    /// The attention of a prompt row to the clip, if the request asked for it.
    Alignment {
        /// The request.
        id: RequestId,
        /// Position of the row's token.
        position: usize,
        /// Weights of each of [`EngineOptions::alignment_heads`](super::EngineOptions), each of which sums to one:
        /// `[n_heads, n_positions]`.
        weights: Vec<f32>,
    },
    /// Log-probabilities of some of the prompt's tokens, in order. A prompt has one or more of these events.
    PromptLogprobs {
        /// The request.
        id: RequestId,
        /// Position of the first one.
        position: usize,
        /// The natural logarithm of each token's probability, given the tokens before it.
        logprobs: Vec<f32>,
    },
    /// The request is done.
    Done {
        /// The request.
        id: RequestId,
        /// The text that was held back until now.
        text: String,
        /// Why.
        finish_reason: FinishReason,
        /// Log-probabilities of the end token, if one ended the answer and the request asked for them.
        end_logprobs: Option<Logprobs>,
        /// Token counts.
        usage: Usage,
        /// Times.
        timings: Timings,
    },
    /// The request failed. Other requests continue.
    Failed {
        /// The request.
        id: RequestId,
        /// Why.
        error: EngineError,
    },
}

impl Event {
    /// The request.
    pub fn request(&self) -> RequestId {
        match self {
            Event::Token { id, .. }
            | Event::Logits { id, .. }
            | Event::PromptLogprobs { id, .. }
            | Event::Alignment { id, .. }
            | Event::Done { id, .. }
            | Event::Failed { id, .. } => *id,
        }
    }
}
