//! Samples of one channel at one rate, from whatever holds a recording.

use std::io::Read;

use super::resample::Resampler;
use super::source::{Pcm, PcmFormat, Samples, Source, check};
use super::{AudioError, SAMPLE_RATE};

/// The largest magnitude whose power, summed over a frame, is still a finite `f32`. Sound on a 16-bit scale passes.
const LOUDEST: f32 = 1e15;

/// The samples of a recording: one channel, the mean of all of them, at [`SAMPLE_RATE`], near -1 to 1.
///
/// Samples that come at that rate are passed on unchanged. Others are resampled without a delay: sample `i` is the
/// sound at `i / 16000` seconds.
pub struct AudioReader {
    name: String,
    source: Box<dyn Source>,
    /// What the source gave last.
    chunk: Vec<f32>,
    rate: u32,
    /// None where the rate is the right one.
    resampler: Option<Resampler>,
    /// Samples that came from the source at `rate`, and the seconds before, at other rates.
    n_taken: u64,
    base: f64,
    /// Samples to be read.
    ready: Vec<f32>,
    ended: bool,
    /// Why it ended, until somebody has been told.
    failure: Option<AudioError>,
}

impl AudioReader {
    /// Opens a sound file, or a video whose sound can be decoded: WAV, AIFF, FLAC, MP3, OGG (Vorbis, FLAC), M4A, MP4
    /// and Matroska (AAC-LC, ALAC, MP3, Vorbis, FLAC, PCM).
    ///
    /// The sound of a packet that cannot be decoded is replaced by silence, so that the times after it hold.
    ///
    /// # Errors
    /// A file that cannot be read, is empty, is in no such format, or has no sound.
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

    /// Reads raw PCM, from standard input for instance, as it comes.
    ///
    /// # Errors
    /// A format that is out of range.
    pub fn pcm(reader: impl Read + Send + 'static, format: PcmFormat) -> Result<Self, AudioError> {
        let name = "the stream of raw samples".to_string();
        let source = Pcm::new(name.clone(), reader, format)?;
        Ok(Self::new(name, Box::new(source)))
    }

    /// Reads `samples [n, n_channels]` near -1 to 1, at `sample_rate`.
    ///
    /// # Errors
    /// A rate or number of channels that is out of range, or samples that are not whole rows.
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

    /// The recording's length in seconds, where its container says it or it lies in memory.
    pub fn duration(&self) -> Option<f64> {
        self.source.duration()
    }

    /// What messages call the recording: the file's name in backticks, or words.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Appends the next `n` samples to `out` and returns how many there were: fewer only at the end.
    ///
    /// # Errors
    /// What ended the recording before its end, once, after the last good sample has been read. A recording without
    /// a sample is an error too.
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

    /// Seconds that came from the source.
    fn seconds(&self) -> f64 {
        self.base + self.n_taken as f64 / f64::from(self.rate)
    }

    /// Passes the chunk on, or its part before a sample that is no number.
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
