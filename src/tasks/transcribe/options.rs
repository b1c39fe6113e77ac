//! How a recording is transcribed, under the original's names.

use super::TranscribeError;
use super::window::Decoded;
use crate::engine::{EngineError, EngineOptions};

/// What becomes of speech.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpeechTask {
    /// Text in the language that is spoken.
    #[default]
    Transcribe,
    /// English text.
    Translate,
}

impl SpeechTask {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            SpeechTask::Transcribe => "transcribe",
            SpeechTask::Translate => "translate",
        }
    }
}

/// How a recording is transcribed. The defaults are those of `whisper.transcribe`.
#[derive(Clone, Debug, PartialEq)]
pub struct TranscribeOptions {
    /// Code or name of the language; it is detected in the first window without.
    pub language: Option<String>,
    /// What becomes of the speech.
    pub task: SpeechTask,
    /// Let the model say when segments begin and end; each window is one segment otherwise.
    pub timestamps: bool,
    /// Find out when each word is said.
    pub word_timestamps: bool,
    /// The temperatures that are tried in turn until an answer is good enough.
    pub temperatures: Vec<f32>,
    /// An answer that compresses better than this repeats itself: the next temperature is tried.
    pub compression_ratio_threshold: Option<f64>,
    /// An answer whose mean log-probability is lower is not trusted: the next temperature is tried.
    pub logprob_threshold: Option<f64>,
    /// A window with a higher probability of being no speech, and too low a mean log-probability, is taken as silent.
    pub no_speech_threshold: Option<f64>,
    /// Give the text before a window to the model.
    pub condition_on_previous_text: bool,
    /// Text that stands before the recording's, for names and spelling.
    pub initial_prompt: Option<String>,
    /// Answers among which the best is chosen at temperatures above 0.
    pub best_of: usize,
    /// Beams of a beam search at temperature 0; the most probable token is taken at each step without.
    pub beam_size: Option<usize>,
    /// A beam search ends with `beam_size` times this many answers.
    pub patience: f32,
    /// Exponent of the length by which answers are compared; 1 takes the mean over the tokens, as does none, but for the
    /// constants of Google's formula.
    pub length_penalty: Option<f32>,
    /// Tokens of a window at most; half the decoder's context without.
    pub max_tokens: Option<usize>,
    /// Windows that are decoded side by side. With more than one, the recording is cut where it is quiet, and no window
    /// knows the text before.
    pub batch_size: usize,
    /// Skip what holds no sound that could be speech. The original has no such thing.
    pub vad: bool,
    /// Seconds of the recording to pass over.
    pub offset: f64,
    /// Seconds after that to hear; all without.
    pub duration: Option<f64>,
    /// The same seed gives the same text at temperatures above 0.
    pub seed: u64,
}

impl Default for TranscribeOptions {
    fn default() -> Self {
        TranscribeOptions {
            language: None,
            task: SpeechTask::Transcribe,
            timestamps: true,
            word_timestamps: false,
            temperatures: vec![0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            compression_ratio_threshold: Some(2.4),
            logprob_threshold: Some(-1.0),
            no_speech_threshold: Some(0.6),
            condition_on_previous_text: true,
            initial_prompt: None,
            best_of: 5,
            beam_size: None,
            patience: 1.0,
            length_penalty: None,
            max_tokens: None,
            batch_size: 1,
            vad: false,
            offset: 0.0,
            duration: None,
            seed: 0,
        }
    }
}

/// Counts above this are a slip of the hand.
const MOST: usize = 256;

impl TranscribeOptions {
    /// Checks every option against its range.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] names it.
    pub fn check(&self) -> Result<(), TranscribeError> {
        let check = |name, fits: bool, found: String, expected| {
            if fits { Ok(()) } else { Err(EngineError::Parameter { name, found, expected }) }
        };
        let count = |name, n: usize| check(name, (1..=MOST).contains(&n), n.to_string(), "1 to 256");
        let all: Vec<String> = self.temperatures.iter().map(f32::to_string).collect();
        let fit = !all.is_empty() && self.temperatures.iter().all(|t| (0.0..=100.0).contains(t));
        check("temperature", fit, all.join(", "), "numbers from 0 to 100, at least one")?;
        count("best_of", self.best_of)?;
        count("beam_size", self.beam_size.unwrap_or(1))?;
        count("batch_size", self.batch_size)?;
        count("max_tokens", self.max_tokens.unwrap_or(1).min(MOST))?;
        let patience = self.patience;
        check(
            "patience",
            patience > 0.0 && patience <= 100.0,
            patience.to_string(),
            "a number above 0, at most 100",
        )?;
        let penalty = self.length_penalty.unwrap_or(1.0);
        check("length_penalty", (0.0..=1.0).contains(&penalty), penalty.to_string(), "a number from 0 to 1")?;
        let seconds = |name, value: f64| {
            let fits = value >= 0.0 && value <= f64::from(u32::MAX);
            check(name, fits, value.to_string(), "seconds, at least 0")
        };
        seconds("offset", self.offset)?;
        Ok(seconds("duration", self.duration.unwrap_or(0.0))?)
    }

    /// What the engine must be built with, over `options`, to align words by the heads `alignment_heads`.
    pub(super) fn engine(&self, alignment_heads: &[[usize; 2]], options: EngineOptions) -> EngineOptions {
        let n_beams = self.beam_size.unwrap_or(1);
        let n_samples = if self.temperatures.iter().any(|t| *t > 0.0) { self.best_of } else { 1 };
        EngineOptions {
            // One more for the probability that nobody speaks, which is asked for along with the text.
            max_seqs: (self.batch_size * n_beams).max(n_samples) + 1,
            max_logprobs: n_beams + 1,
            max_clips: self.batch_size,
            logits: true,
            alignment_heads: if self.word_timestamps { alignment_heads.to_vec() } else { Vec::new() },
            ..options
        }
    }

    /// Whether an answer is so bad that the next temperature shall be tried.
    pub(super) fn fails(&self, answer: &Decoded) -> bool {
        let repeats = self.compression_ratio_threshold.is_some_and(|most| answer.compression_ratio > most);
        let is_improbable = self.logprob_threshold.is_some_and(|least| answer.avg_logprob < least);
        // Of silence nothing probable can be said.
        let is_silent =
            is_improbable && self.no_speech_threshold.is_some_and(|most| answer.no_speech_prob > most);
        (repeats || is_improbable) && !is_silent
    }

    /// Whether a window holds no speech.
    pub(super) fn is_silent(&self, answer: &Decoded) -> bool {
        // What is probable enough was said after all.
        let is_probable = self.logprob_threshold.is_some_and(|least| answer.avg_logprob > least);
        self.no_speech_threshold.is_some_and(|most| answer.no_speech_prob > most) && !is_probable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(compression_ratio: f64, avg_logprob: f64, no_speech_prob: f64) -> Decoded {
        Decoded { tokens: Vec::new(), temperature: 0.0, avg_logprob, compression_ratio, no_speech_prob }
    }

    #[test]
    fn thresholds_decide_as_the_original_does() {
        let options = TranscribeOptions::default();
        // Compression ratio, mean log-probability, no-speech probability; tried again, taken as silent.
        let cases = [
            (1.5, -0.3, 0.1, false, false),
            (2.5, -0.3, 0.1, true, false),
            (1.5, -1.2, 0.1, true, false),
            (1.5, -1.2, 0.7, false, true),
            (2.5, -1.2, 0.7, false, true),
            (2.5, -0.3, 0.7, true, false),
        ];
        for (ratio, logprob, no_speech, fails, is_silent) in cases {
            let answer = answer(ratio, logprob, no_speech);
            assert_eq!(
                (options.fails(&answer), options.is_silent(&answer)),
                (fails, is_silent),
                "{answer:?}"
            );
        }
        let off = TranscribeOptions {
            compression_ratio_threshold: None,
            logprob_threshold: None,
            no_speech_threshold: None,
            ..options.clone()
        };
        assert!(!off.fails(&answer(9.0, -9.0, 1.0)) && !off.is_silent(&answer(9.0, -9.0, 1.0)));
        // Without a floor for the probability, that of silence decides alone.
        let alone = TranscribeOptions { logprob_threshold: None, ..options };
        assert!(alone.is_silent(&answer(1.0, -0.1, 0.7)));
    }

    #[test]
    fn options_out_of_range_are_named() {
        assert!(TranscribeOptions::default().check().is_ok());
        let wrong: [(&str, TranscribeOptions); 8] = [
            ("temperature", TranscribeOptions { temperatures: Vec::new(), ..Default::default() }),
            ("temperature", TranscribeOptions { temperatures: vec![f32::NAN], ..Default::default() }),
            ("best_of", TranscribeOptions { best_of: 0, ..Default::default() }),
            ("beam_size", TranscribeOptions { beam_size: Some(1000), ..Default::default() }),
            ("patience", TranscribeOptions { patience: 0.0, ..Default::default() }),
            ("length_penalty", TranscribeOptions { length_penalty: Some(2.0), ..Default::default() }),
            ("offset", TranscribeOptions { offset: -1.0, ..Default::default() }),
            ("duration", TranscribeOptions { duration: Some(f64::INFINITY), ..Default::default() }),
        ];
        for (name, options) in wrong {
            let error = options.check().expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
