//! Reads a recording as samples of one channel at one rate.

use std::io::Read;

use super::resample::Resampler;
use super::source::{Pcm, PcmFormat, Samples, Source, check};
use super::{AudioError, SAMPLE_RATE};

/// The largest magnitude whose square, summed over a frame, is a finite `f32`. Samples on a 16-bit scale are accepted.
const LOUDEST: f32 = 1e15;

/// The samples of a recording: the mean of all channels, at [`SAMPLE_RATE`], about -1 to 1.
///
/// Samples at that rate are unchanged. Others are resampled with no delay: sample `i` is at `i / 16000` seconds.
pub struct AudioReader {
    name: String,
    source: Box<dyn Source>,
    /// The last chunk of the source.
    chunk: Vec<f32>,
    rate: u32,
    /// `None` if the source has the right rate.
    resampler: Option<Resampler>,
    /// Samples from the source at `rate`, and in `base` the seconds before, at other rates.
    n_taken: u64,
    base: f64,
    /// Samples ready to be read.
    ready: Vec<f32>,
    ended: bool,
    /// The error that ended it, until it has been returned.
    failure: Option<AudioError>,
}

impl AudioReader {
    /// Opens a sound file, or a video with sound: WAV, AIFF, FLAC, MP3, OGG (Vorbis, FLAC), M4A, MP4
    /// and Matroska (AAC-LC, ALAC, MP3, Vorbis, FLAC, PCM).
    ///
    /// A packet that cannot be decoded becomes silence, so that later times are right. A pipe is read whole, up to 1 GiB.
    ///
    /// # Errors
    /// [`AudioError`] if the file cannot be read, is a device, is empty, has another format, or has no sound.
    #[cfg(feature = "audio")]
    pub fn open(path: &std::path::Path) -> Result<Self, AudioError> {
        let name = format!("`{}`", path.display());
        let source = super::decode::Decoder::open(path, name.clone())?;
        Ok(Self::new(name, Box::new(source)))
    }

    /// Decodes a file's bytes, in a format of [`AudioReader::open`].
    ///
    /// # Errors
    /// As [`AudioReader::open`].
    #[cfg(feature = "audio")]
    pub fn decode(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self, AudioError> {
        let name = "the recording".to_string();
        let source = super::decode::Decoder::new(Box::new(std::io::Cursor::new(bytes)), name.clone())?;
        Ok(Self::new(name, Box::new(source)))
    }

    /// Reads a stream of raw PCM, such as standard input.
    ///
    /// # Errors
    /// [`AudioError::Property`] for a format that is out of range.
    pub fn pcm(reader: impl Read + Send + 'static, format: PcmFormat) -> Result<Self, AudioError> {
        let name = "the stream of raw samples".to_string();
        let source = Pcm::new(name.clone(), reader, format)?;
        Ok(Self::new(name, Box::new(source)))
    }

    /// Reads `samples` `[n, n_channels]`, about -1 to 1, at `sample_rate` Hz.
    ///
    /// # Errors
    /// [`AudioError::Property`] for a rate or number of channels that is out of range; [`AudioError::Partial`] if the
    /// last row is incomplete.
    pub fn samples(samples: Vec<f32>, sample_rate: u32, n_channels: usize) -> Result<Self, AudioError> {
        let name = "the recording in memory".to_string();
        let source = Samples::new(&name, samples, sample_rate, n_channels)?;
        Ok(Self::new(name, Box::new(source)))
    }

    fn new(name: String, source: Box<dyn Source>) -> Self {
        Self {
            name,
            source,
            chunk: Vec::new(),
            rate: SAMPLE_RATE,
            resampler: None,
            n_taken: 0,
            base: 0.0,
            ready: Vec::new(),
            ended: false,
            failure: None,
        }
    }

    /// The recording's length in seconds, if its container has it or it is in memory.
    pub fn duration(&self) -> Option<f64> {
        self.source.duration()
    }

    /// The recording's name in messages: the file's name in backticks, or a description.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Appends the next `n` samples to `out`, and returns their number, which is smaller only at the end.
    ///
    /// # Errors
    /// Damage of the recording, once, after all samples before it have been read; [`AudioError::Empty`] if it has no
    /// samples.
    pub fn read(&mut self, n: usize, out: &mut Vec<f32>) -> Result<usize, AudioError> {
        while self.ready.len() < n && !self.ended {
            let next = self.source.next(&mut self.chunk);
            let failure = match next {
                Ok(Some(rate)) => self.accept(rate).err(),
                Ok(None) => {
                    self.ended = true;
                    let name = self.name.clone();
                    (self.seconds() == 0.0).then_some(AudioError::Empty { name })
                }
                Err(error) => Some(error),
            };
            self.ended |= failure.is_some();
            self.failure = failure;
            if self.ended
                && let Some(resampler) = self.resampler.take()
            {
                resampler.finish(&mut self.ready);
            }
        }
        let n = n.min(self.ready.len());
        if n == 0
            && let Some(failure) = self.failure.take()
        {
            return Err(failure);
        }
        out.extend(self.ready.drain(..n));
        Ok(n)
    }

    /// Seconds read from the source.
    fn seconds(&self) -> f64 {
        self.base + self.n_taken as f64 / f64::from(self.rate)
    }

    /// Takes the chunk, or its part before a sample that is not finite.
    fn accept(&mut self, rate: u32) -> Result<(), AudioError> {
        if rate != self.rate {
            if let Some(resampler) = self.resampler.take() {
                resampler.finish(&mut self.ready);
            }
            check(&self.name, rate, 1)?;
            (self.base, self.n_taken, self.rate) = (self.seconds(), 0, rate);
            self.resampler = (rate != SAMPLE_RATE).then(|| Resampler::new(rate));
        }
        let bad = self.chunk.iter().position(|value| value.is_nan() || value.abs() > LOUDEST);
        let good = &self.chunk[..bad.unwrap_or(self.chunk.len())];
        match &mut self.resampler {
            Some(resampler) => resampler.push(good, &mut self.ready),
            None => self.ready.extend_from_slice(good),
        }
        self.n_taken += good.len() as u64;
        match bad {
            Some(i) => Err(AudioError::NotFinite {
                name: self.name.clone(),
                seconds: self.seconds(),
                value: self.chunk[i],
            }),
            None => Ok(()),
        }
    }
}
