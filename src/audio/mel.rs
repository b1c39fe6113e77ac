//! Log-mel frames, as `whisper/audio.py` and transformers' `WhisperFeatureExtractor` compute them.

use std::ops::Range;
use std::sync::Arc;

use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

use super::speech::{self, SpeechDetector};
use super::{AudioError, AudioReader, SAMPLE_RATE};

/// Samples between the centres of two frames: 10 ms.
pub const HOP_LENGTH: usize = 160;
/// Samples of a frame's window: 25 ms.
const N_FFT: usize = 400;
const N_BINS: usize = N_FFT / 2 + 1;
/// Samples before a frame's centre.
const BEFORE: usize = N_FFT / 2;
/// Samples read at a time: one second.
const READ: usize = SAMPLE_RATE as usize;
/// `log10` of the smallest power that the reference distinguishes.
const SILENCE: f32 = -10.0;

/// The log-mel frames of a recording, computed on demand.
///
/// Frame `t` is computed from the samples around `t · 160`, counted from the start of the recording: a Fourier
/// transform over 400 samples (periodic Hann window, centred, mirrored at the start of the recording), its power
/// through `n_mels` triangular filters with Slaney's scale and norm, and `log10`, at least -10. Zeros follow the end of
/// the recording, as in the reference's clips padded to 30 s. Sums are in f64.
///
/// Frames are kept until [`MelFrames::discard_before`]; a discarded frame is not available again.
pub struct MelFrames {
    reader: AudioReader,
    stft: Stft,
    filters: Vec<Filter>,
    /// The samples that later frames need, from sample `first_sample` of the recording.
    samples: Vec<f32>,
    first_sample: usize,
    /// Known once the end has been reached.
    n_samples: Option<usize>,
    /// `log10` of the mel power, `[n, n_mels]` from frame `first_frame`.
    rows: Vec<f32>,
    first_frame: usize,
    /// For each row the largest value of the recording so far, and in `maximum_before` that before the first row.
    maxima: Vec<f32>,
    maximum_before: f32,
    speech: SpeechDetector,
}

impl MelFrames {
    /// Frames of `n_mels` values: 80, or 128 for Whisper large-v3.
    ///
    /// # Errors
    /// [`AudioError::Property`] if `n_mels` is 0 or larger than the number of frequencies.
    pub fn new(reader: AudioReader, n_mels: usize) -> Result<Self, AudioError> {
        if n_mels == 0 || n_mels > N_BINS {
            return Err(AudioError::Property {
                name: reader.name().to_string(),
                what: "a number of mel bins of",
                expected: format!("1 to {N_BINS}"),
                found: n_mels as u64,
            });
        }
        Ok(Self {
            reader,
            stft: Stft::new(),
            filters: filters(n_mels),
            samples: Vec::new(),
            first_sample: 0,
            n_samples: None,
            rows: Vec::new(),
            first_frame: 0,
            maxima: Vec::new(),
            maximum_before: SILENCE,
            speech: SpeechDetector::default(),
        })
    }

    /// The number of values per frame.
    pub fn n_mels(&self) -> usize {
        self.filters.len()
    }

    /// The recording's length in seconds, if it is known in advance or the end has been reached.
    pub fn duration(&self) -> Option<f64> {
        let found = self.n_samples.map(|n| n as f64 / f64::from(SAMPLE_RATE));
        found.or_else(|| self.reader.duration())
    }

    /// The number of frames of the recording without padding, 100 per second rounded down, once the end has been
    /// reached.
    pub fn n_frames(&self) -> Option<usize> {
        self.n_samples.map(|n| n / HOP_LENGTH)
    }

    /// Reads until all frames before `frame` are computed, or the end is reached.
    ///
    /// # Errors
    /// Damage of the recording, once; after that it counts as ended there.
    pub fn fill_to(&mut self, frame: usize) -> Result<(), AudioError> {
        while self.n_samples.is_none() && self.n_computed() < frame {
            let at = self.first_sample + self.samples.len();
            // Reads only what is needed, so as not to wait for a live source.
            let wanted = ((frame - 1) * HOP_LENGTH + BEFORE).saturating_sub(at).clamp(1, READ);
            let read = self.reader.read(wanted, &mut self.samples);
            let n = *read.as_ref().unwrap_or(&0);
            if n < wanted {
                self.n_samples = Some(at + n);
            }
            self.compute();
            // If the last samples came before a failure, the next read returns it.
            if n < wanted {
                read?;
                self.reader.read(1, &mut self.samples)?;
            }
        }
        Ok(())
    }

    /// The frames `first_frame .. first_frame + n_frames`, normalised: `[n_frames, n_mels]`, row by row; the reference
    /// has the transpose.
    ///
    /// A value is `(max(x, m - 8) + 4) / 4`, with `x` the logarithm and `m` the largest one of the recording up to the
    /// window's end. Departure from the reference: it takes the largest of the whole recording, which is not known
    /// while reading; for a recording of one window the two are equal. Frames beyond the end are silence.
    ///
    /// # Errors
    /// As [`MelFrames::fill_to`].
    ///
    /// # Panics
    /// If `first_frame` was discarded.
    pub fn window(&mut self, first_frame: usize, n_frames: usize) -> Result<Vec<f32>, AudioError> {
        self.clip(first_frame..first_frame + n_frames, n_frames)
    }

    /// The frames `frames` as [`MelFrames::window`] gives them, padded with silence to `n_frames`.
    ///
    /// # Errors
    /// As [`MelFrames::fill_to`].
    ///
    /// # Panics
    /// If the first frame was discarded.
    pub fn clip(&mut self, frames: Range<usize>, n_frames: usize) -> Result<Vec<f32>, AudioError> {
        self.fill_to(frames.end)?;
        let n_mels = self.n_mels();
        let from = self.kept(frames.start).min(self.maxima.len());
        let to = self.kept(frames.end).min(self.maxima.len());
        let maximum = if to == 0 { self.maximum_before } else { self.maxima[to - 1] };
        let normalised = |value: f32| (value.max(maximum - 8.0) + 4.0) / 4.0;
        let rows = &self.rows[from * n_mels..to * n_mels];
        let mut window: Vec<f32> = rows.iter().map(|value| normalised(*value)).collect();
        window.resize(n_frames * n_mels, normalised(SILENCE));
        Ok(window)
    }

    /// Discards all frames before `frame`, so that memory stays bounded.
    pub fn discard_before(&mut self, frame: usize) {
        let n = frame.saturating_sub(self.first_frame).min(self.maxima.len());
        if n == 0 {
            return;
        }
        self.maximum_before = self.maxima[n - 1];
        self.maxima.drain(..n);
        self.rows.drain(..n * self.n_mels());
        self.first_frame += n;
        self.speech.discard_before(self.first_frame);
    }

    /// Whether `frame` is likely to contain speech, judged only by energy.
    ///
    /// The energy between 200 and 3800 Hz, smoothed over 30 ms, is compared with its least value in the last 8 s, the
    /// floor. Speech begins 200 ms before the energy has been 6 dB above the floor for 30 ms, and ends when it has been
    /// less than 4 dB above for 300 ms. Nothing below -75 dB of full scale is speech; in the first 8 s, everything
    /// above -54 dB is. Loud sounds count as speech. Frames that are not flagged can be skipped.
    ///
    /// # Errors
    /// As [`MelFrames::fill_to`], up to 230 ms later.
    ///
    /// # Panics
    /// If the frame was discarded.
    pub fn is_speech(&mut self, frame: usize) -> Result<bool, AudioError> {
        self.fill_to(frame + speech::PADDING + speech::ONSET_FRAMES)?;
        self.kept(frame);
        Ok(self.n_frames().is_none_or(|n| frame < n) && self.speech.is_speech(frame))
    }

    /// The first frame at or after `frame` that is likely to contain speech ([`MelFrames::is_speech`]); `None` if there
    /// is none until the end. Discards frames before it, so that memory stays bounded.
    ///
    /// # Errors
    /// As [`MelFrames::fill_to`].
    ///
    /// # Panics
    /// If the frame was discarded.
    pub fn skip_silence(&mut self, frame: usize) -> Result<Option<usize>, AudioError> {
        let mut frame = frame;
        loop {
            if self.is_speech(frame)? {
                return Ok(Some(frame));
            }
            if self.n_frames().is_some_and(|n| frame >= n) {
                return Ok(None);
            }
            frame += 1;
            // Once per second.
            if frame.is_multiple_of(100) {
                self.discard_before(frame);
            }
        }
    }

    /// The quietest frame of `frames` (on a tie, the first): the best place to cut a recording.
    ///
    /// # Errors
    /// As [`MelFrames::fill_to`].
    ///
    /// # Panics
    /// If the range is empty, or its first frame was discarded.
    pub fn quietest(&mut self, frames: Range<usize>) -> Result<usize, AudioError> {
        self.fill_to(frames.end)?;
        assert!(!frames.is_empty(), "no frames to choose from");
        self.kept(frames.start);
        let energy = |frame: &usize| self.speech.energy(*frame);
        Ok(frames.clone().min_by(|a, b| energy(a).total_cmp(&energy(b))).unwrap_or(frames.start))
    }

    /// The index of `frame` among the kept rows.
    fn kept(&self, frame: usize) -> usize {
        let first = self.first_frame;
        assert!(frame >= first, "frame {frame} was discarded, the first that is kept is {first}");
        frame - first
    }

    /// The number of frames computed so far, discarded ones included.
    fn n_computed(&self) -> usize {
        self.first_frame + self.maxima.len()
    }

    /// Computes all frames whose samples have been read, and drops samples that no later frame needs.
    fn compute(&mut self) {
        let n_read = self.first_sample + self.samples.len();
        loop {
            let middle = self.n_computed() * HOP_LENGTH;
            let is_due = match self.n_samples {
                // Later frames contain only zeros.
                Some(n) => middle < n + BEFORE,
                None => middle + BEFORE <= n_read,
            };
            if !is_due {
                break;
            }
            let sample = |i: usize| {
                // Mirrored at the start: the sample before the first is the second.
                let at = (middle + i).abs_diff(BEFORE);
                at.checked_sub(self.first_sample).and_then(|at| self.samples.get(at)).copied().unwrap_or(0.0)
            };
            self.stft.transform(sample);
            let mut maximum = self.maxima.last().copied().unwrap_or(self.maximum_before);
            for filter in &self.filters {
                let value = filter.apply(&self.stft.power).max(1e-10).log10() as f32;
                maximum = maximum.max(value);
                self.rows.push(value);
            }
            self.maxima.push(maximum);
            self.speech.push(self.stft.mean_square(speech::BAND));
        }
        // The first two frames need mirrored samples, so nothing is dropped before both are computed.
        let seen = (self.n_computed() * HOP_LENGTH).saturating_sub(BEFORE);
        let n = seen.saturating_sub(self.first_sample).min(self.samples.len());
        if self.n_computed() > 1 {
            self.samples.drain(..n);
            self.first_sample += n;
        }
    }
}

/// The power spectrum of one frame.
struct Stft {
    fft: Arc<dyn RealToComplex<f64>>,
    hann: Vec<f64>,
    input: Vec<f64>,
    spectrum: Vec<Complex<f64>>,
    scratch: Vec<Complex<f64>>,
    power: Vec<f64>,
}

impl Stft {
    fn new() -> Self {
        let fft = RealFftPlanner::new().plan_fft_forward(N_FFT);
        let hann = |i: usize| 0.5 - 0.5 * (std::f64::consts::TAU * i as f64 / N_FFT as f64).cos();
        Self {
            hann: (0..N_FFT).map(hann).collect(),
            input: fft.make_input_vec(),
            spectrum: fft.make_output_vec(),
            scratch: fft.make_scratch_vec(),
            power: vec![0.0; N_BINS],
            fft,
        }
    }

    /// Sets `power` to the squared magnitudes of the windowed samples.
    fn transform(&mut self, sample: impl Fn(usize) -> f32) {
        for (i, (input, weight)) in self.input.iter_mut().zip(&self.hann).enumerate() {
            *input = f64::from(sample(i)) * weight;
        }
        self.fft
            .process_with_scratch(&mut self.input, &mut self.spectrum, &mut self.scratch)
            .expect("buffers of the transform's own length");
        for (power, value) in self.power.iter_mut().zip(&self.spectrum) {
            *power = value.norm_sqr();
        }
    }

    /// The mean square of the samples in the frequency range `band` (Hz), by Parseval's theorem.
    fn mean_square(&self, band: Range<f64>) -> f64 {
        let bin = |hz: f64| (hz * N_FFT as f64 / f64::from(SAMPLE_RATE)) as usize;
        let sum: f64 = self.power[bin(band.start)..bin(band.end)].iter().sum();
        // A Hann window's mean square is 3/8.
        2.0 * sum / (N_FFT * N_FFT) as f64 / 0.375
    }
}

/// One triangular filter: its weights from the first nonzero frequency on.
struct Filter {
    first: usize,
    weights: Vec<f64>,
}

impl Filter {
    fn apply(&self, power: &[f64]) -> f64 {
        let power = &power[self.first..self.first + self.weights.len()];
        self.weights.iter().zip(power).map(|(weight, power)| weight * power).sum()
    }
}

/// Slaney's filters from 0 to 8000 Hz: `librosa.filters.mel(sr=16000, n_fft=400, n_mels=n_mels)`.
fn filters(n_mels: usize) -> Vec<Filter> {
    let nyquist = f64::from(SAMPLE_RATE) / 2.0;
    let edge = |i: usize| mel_to_hz(hz_to_mel(nyquist) * i as f64 / (n_mels + 1) as f64);
    let filter = |i: usize| {
        let (low, middle, high) = (edge(i), edge(i + 1), edge(i + 2));
        let weight = |bin: usize| {
            let hz = nyquist * bin as f64 / (N_BINS - 1) as f64;
            let triangle = ((hz - low) / (middle - low)).min((high - hz) / (high - middle)).max(0.0);
            // Slaney's norm: every filter has the same area.
            triangle * 2.0 / (high - low)
        };
        let weights: Vec<f64> = (0..N_BINS).map(weight).collect();
        let first = weights.iter().position(|w| *w > 0.0).unwrap_or(0);
        let end = weights.iter().rposition(|w| *w > 0.0).map_or(0, |last| last + 1);
        Filter { first, weights: weights[first..end].to_vec() }
    };
    (0..n_mels).map(filter).collect()
}

/// Slaney's scale: linear to 1000 Hz, which is 15 mel, then 27 mel for a factor of 6.4.
fn hz_to_mel(hz: f64) -> f64 {
    if hz < 1000.0 { hz * 3.0 / 200.0 } else { 15.0 + 27.0 * (hz / 1000.0).ln() / 6.4f64.ln() }
}

fn mel_to_hz(mel: f64) -> f64 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * (6.4f64.ln() * (mel - 15.0) / 27.0).exp() }
}
