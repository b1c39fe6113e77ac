//! Voice activity detection by energy: which frames are likely to contain speech.

use std::collections::VecDeque;

/// Hz: where speech has most of its energy. Mains hum, rumble and hiss lie outside.
pub(super) const BAND: std::ops::Range<f64> = 200.0..3800.0;
/// The weight of a new frame in the smoothed energy: about 30 ms, shorter than a syllable, longer than fluctuations of
/// noise.
const SMOOTHING: f64 = 0.3;
/// The noise floor is the least energy of these frames: 8 s in blocks of 1 s. Speech has a pause within 8 s; a fan that
/// starts counts as noise after 8 s.
const FLOOR_BLOCK: usize = 100;
const FLOOR_BLOCKS: usize = 8;
/// dB of full scale: the highest floor assumed during the first 8 s, so that a recording that begins in the middle of a
/// word is not taken for loud noise.
const FIRST_FLOOR: f64 = -60.0;
/// dB above the floor at which speech begins. The smoothed energy of steady noise stays within 2 dB of its least.
const ONSET: f64 = 6.0;
/// dB above the floor at which speech ends; the difference from `ONSET` is the hysteresis.
const OFFSET: f64 = 4.0;
/// dB of full scale: nothing below is speech. The smallest step of 16-bit samples is -90 dB, and the quietest usable
/// recordings are 20 dB above this limit.
const SILENCE: f64 = -75.0;
/// Frames above the onset until speech begins: a click is shorter.
pub(super) const ONSET_FRAMES: usize = 3;
/// Frames that count as speech after the energy has fallen: gaps between words, and their quiet ends.
const HANGOVER: usize = 30;
/// Frames that count as speech before an onset: quiet consonants precede the vowel that is detected.
pub(super) const PADDING: usize = 20;

/// A voice activity detector that compares each frame's energy with the least energy of the last seconds.
///
/// It does not recognise voices: loud music or typing counts as speech. Frames that it flags as silent can be skipped.
/// The flag of a frame is final [`PADDING`] + [`ONSET_FRAMES`] frames later.
#[derive(Default)]
pub(super) struct SpeechDetector {
    /// Smoothed mean square of the band.
    smoothed: Option<f64>,
    /// The least energy in dB of each of the last blocks, and in `block` of the current one.
    floors: VecDeque<f64>,
    block: f64,
    n_frames: usize,
    n_rising: usize,
    /// Frames until speech ends if the energy stays low.
    n_left: usize,
    first_frame: usize,
    /// Smoothed energy in dB of full scale, from `first_frame`.
    energies: VecDeque<f32>,
    speech: VecDeque<bool>,
}

impl SpeechDetector {
    /// Takes the next frame's mean square in [`BAND`].
    pub(super) fn push(&mut self, mean_square: f64) {
        let before = self.smoothed.unwrap_or(mean_square);
        let smoothed = before + SMOOTHING * (mean_square - before);
        self.smoothed = Some(smoothed);
        // 1e-15 avoids log10(0), and is far below the smallest step of samples.
        let energy = 10.0 * (smoothed + 1e-15).log10();

        if self.n_frames.is_multiple_of(FLOOR_BLOCK) {
            if self.n_frames > 0 {
                self.floors.push_back(self.block);
            }
            if self.floors.len() > FLOOR_BLOCKS {
                self.floors.pop_front();
            }
            self.block = energy;
        }
        self.block = self.block.min(energy);
        let unknown = if self.floors.len() < FLOOR_BLOCKS { FIRST_FLOOR } else { f64::INFINITY };
        let floor = self.floors.iter().fold(self.block.min(unknown), |floor, block| floor.min(*block));

        let is_above = |margin: f64| energy > floor + margin && energy > SILENCE;
        self.n_rising = if is_above(ONSET) { self.n_rising + 1 } else { 0 };
        if self.n_rising >= ONSET_FRAMES || self.n_left > 0 && is_above(OFFSET) {
            if self.n_left == 0 {
                let n_padded = (PADDING + self.n_rising - 1).min(self.speech.len());
                let at = self.speech.len() - n_padded;
                self.speech.range_mut(at..).for_each(|flag| *flag = true);
            }
            self.n_left = HANGOVER + 1;
        }
        self.n_left = self.n_left.saturating_sub(1);
        self.speech.push_back(self.n_left > 0);
        self.energies.push_back(energy as f32);
        self.n_frames += 1;
    }

    /// Whether `frame` is likely to contain speech. Frames that were not pushed are silent.
    pub(super) fn is_speech(&self, frame: usize) -> bool {
        self.speech.get(frame - self.first_frame).copied().unwrap_or(false)
    }

    /// The smoothed energy of `frame` in dB of full scale.
    pub(super) fn energy(&self, frame: usize) -> f32 {
        self.energies.get(frame - self.first_frame).copied().unwrap_or(f32::NEG_INFINITY)
    }

    /// Discards all frames before `frame`.
    pub(super) fn discard_before(&mut self, frame: usize) {
        let n = frame.saturating_sub(self.first_frame).min(self.speech.len());
        self.speech.drain(..n);
        self.energies.drain(..n);
        self.first_frame += n;
    }
}
