//! Options of a transcription, with the original's names.

use super::{Decoded, TranscribeError};
use crate::engine::{EngineError, EngineOptions};

/// The language of the transcript.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpeechTask {
    /// Text in the spoken language.
    #[default]
    Transcribe,
    /// English text.
    Translate,
}

impl SpeechTask {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            SpeechTask::Transcribe => "transcribe",
            SpeechTask::Translate => "translate",
        }
    }
}

/// Options of a transcription. The defaults are those of `whisper.transcribe`.
#[derive(Clone, Debug, PartialEq)]
pub struct TranscribeOptions {
    /// Code or name of the language. Default: detected in the first window.
    pub language: Option<String>,
    /// Transcribe or translate.
    pub task: SpeechTask,
    /// Whether the model predicts when segments begin and end. If not, each window is one segment.
    pub timestamps: bool,
    /// Whether to compute the times of words. With `timestamps`, they also decide where the next window begins.
    pub word_timestamps: bool,
    /// Temperatures to try in turn until a window's text is good enough.
    pub temperatures: Vec<f32>,
    /// A text with a higher compression ratio repeats itself, and the next temperature is tried.
    pub compression_ratio_threshold: Option<f64>,
    /// For a text with a lower mean log-probability, the next temperature is tried.
    pub logprob_threshold: Option<f64>,
    /// A window with a higher probability of no speech, and a mean log-probability below `logprob_threshold`, counts as
    /// silent.
    pub no_speech_threshold: Option<f64>,
    /// Whether the model gets the text before a window as a prompt.
    pub condition_on_previous_text: bool,
    /// A prompt before the first window, for names and spelling.
    pub initial_prompt: Option<String>,
    /// Number of samples at temperatures above 0, from which the best is chosen.
    pub best_of: usize,
    /// Number of beams of a beam search at temperature 0. Default: greedy.
    pub beam_size: Option<usize>,
    /// A beam search ends with this many texts, times `beam_size`.
    pub patience: f32,
    /// Exponent of the length penalty, with which texts are compared (Google's formula). Default: compare mean
    /// log-probabilities.
    pub length_penalty: Option<f32>,
    /// Most tokens per window. Default: half the decoder's context.
    pub max_tokens: Option<usize>,
    /// Windows that are decoded at once. If more than 1, the recording is cut where it is quiet, and windows do not get
    /// the text before them.
    pub batch_size: usize,
    /// Whether to skip passages that are too quiet to be speech. The original has no such option.
    pub vad: bool,
    /// Seconds of the recording to skip.
    pub offset: f64,
    /// Seconds to transcribe after that. Default: all.
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

/// Upper limit of counts, to catch typing errors.
const MOST: usize = 256;

impl TranscribeOptions {
    /// Checks every option against its range.
    ///
    /// # Errors
    /// [`EngineError::Parameter`] with the first one that is out of its range.
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

    /// The options that the engine must be built with: `options`, with those that these options and the heads
    /// `alignment_heads` need.
    pub(super) fn engine(&self, alignment_heads: &[[usize; 2]], options: EngineOptions) -> EngineOptions {
        let n_beams = self.beam_size.unwrap_or(1);
        let n_samples = if self.temperatures.iter().any(|t| *t > 0.0) { self.best_of } else { 1 };
        EngineOptions {
            // One more for the probability of no speech, which is requested along with the text.
            max_seqs: (self.batch_size * n_beams).max(n_samples) + 1,
            max_logprobs: n_beams + 1,
            max_clips: self.batch_size,
            logits: true,
            alignment_heads: if self.word_timestamps { alignment_heads.to_vec() } else { Vec::new() },
            ..options
        }
    }

    /// Whether a text is so bad that the next temperature should be tried.
    pub(super) fn fails(&self, answer: &Decoded) -> bool {
        let repeats = self.compression_ratio_threshold.is_some_and(|most| answer.compression_ratio > most);
        let is_improbable = self.logprob_threshold.is_some_and(|least| answer.avg_logprob < least);
        // Silence has no probable text.
        let is_silent =
            is_improbable && self.no_speech_threshold.is_some_and(|most| answer.no_speech_prob > most);
        (repeats || is_improbable) && !is_silent
    }

    /// Whether a window contains no speech.
    pub(super) fn is_silent(&self, answer: &Decoded) -> bool {
        // A text that is probable enough overrules this.
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
        // Compression ratio, mean log-probability, no-speech probability; try again, silent.
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
        // Without a threshold for the log-probability, only the probability of no speech decides.
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
