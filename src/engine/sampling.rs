//! How the next token is chosen, under OpenAI's names.

use crate::ops::SamplingRecord;

use super::EngineError;

/// Entries that a bias list may have.
pub const MAX_BIAS: usize = 1024;

/// Sampling parameters of one request. The formulas stand in `shaders/sample.wgsl` and
/// `shaders/penalize.wgsl`.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token; 1 leaves the model's probabilities as they are.
    pub temperature: f32,
    /// Only the `top_k` most probable tokens; 0 is off.
    pub top_k: u32,
    /// Only the fewest most probable tokens that hold `top_p` of the mass; 1 is off.
    pub top_p: f32,
    /// Only tokens with at least `min_p` times the largest probability; 0 is off.
    pub min_p: f32,
    /// Divides or multiplies the logits of tokens in prompt and output; 1 is off.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens in the output; 0 is off.
    pub presence_penalty: f32,
    /// Taken off the logits of tokens in the output, times their count; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// The same seed gives the same text; without one, each request draws its own.
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

impl Sampling {
    /// The most probable token, always.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Default::default() }
    }

    /// Checks every parameter against its range.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] names it.
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
        // Below this, 1 / temperature times a logit's distance could overflow; the draw is greedy by then.
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
