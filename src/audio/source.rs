//! Sources of samples: a recording in memory, a stream of raw PCM, and the trait of all sources. `decode.rs` has files.

use std::io::Read;

use super::{AudioError, SAMPLE_RATE};

/// Plausible sample rates in Hz. A header with another rate is damaged.
pub(super) const SAMPLE_RATES: std::ops::RangeInclusive<u32> = 1_000..=768_000;
/// Most channels, for higher-order Ambisonics. A header with more is damaged.
const MAX_CHANNELS: usize = 256;
/// The property of [`AudioError::Property`].
pub(super) const CHANNELS: &str = "a number of channels of";
/// Samples in memory, or bytes of a stream, per chunk.
const CHUNK: usize = 1 << 14;

/// A source of samples, before resampling.
pub(super) trait Source: Send {
    /// Replaces `mono` by the next samples, the mean of all channels, and returns their rate. `None` at the end.
    ///
    /// # Errors
    /// Damage after all samples so far. It is not called again.
    fn next(&mut self, mono: &mut Vec<f32>) -> Result<Option<u32>, AudioError>;

    /// Length in seconds, if it is known in advance.
    fn duration(&self) -> Option<f64>;
}

/// The format of a sample of raw PCM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PcmSample {
    /// Signed 16-bit integers, little-endian (`s16le`).
    S16Le,
    /// 32-bit floating point, little-endian (`f32le`).
    F32Le,
}

/// The format of raw PCM. Default: 16 kHz, one channel, [`PcmSample::S16Le`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PcmFormat {
    /// Samples per second in each channel.
    pub sample_rate: u32,
    /// Channels, interleaved.
    pub n_channels: usize,
    /// One sample.
    pub sample: PcmSample,
}

impl Default for PcmFormat {
    fn default() -> Self {
        Self { sample_rate: SAMPLE_RATE, n_channels: 1, sample: PcmSample::S16Le }
    }
}

/// Checks the ranges of a rate and a number of channels.
pub(super) fn check(name: &str, sample_rate: u32, n_channels: usize) -> Result<(), AudioError> {
    if !SAMPLE_RATES.contains(&sample_rate) {
        let expected = format!("{} to {} Hz", SAMPLE_RATES.start(), SAMPLE_RATES.end());
        let (name, what, found) = (name.to_string(), "a sample rate of", u64::from(sample_rate));
        return Err(AudioError::Property { name, what, expected, found });
    }
    check_channels(name, n_channels, MAX_CHANNELS)
}

/// Checks a number of channels.
pub(super) fn check_channels(name: &str, n_channels: usize, most: usize) -> Result<(), AudioError> {
    if (1..=most).contains(&n_channels) {
        return Ok(());
    }
    let (what, expected, found) = (CHANNELS, format!("1 to {most}"), n_channels as u64);
    Err(AudioError::Property { name: name.to_string(), what, expected, found })
}

/// Appends the mean of each row of `interleaved [n, n_channels]` to `mono`.
pub(super) fn mix(interleaved: &[f32], n_channels: usize, mono: &mut Vec<f32>) {
    if n_channels == 1 {
        return mono.extend_from_slice(interleaved);
    }
    let scale = 1.0 / n_channels as f64;
    let mean = |row: &[f32]| (row.iter().map(|value| f64::from(*value)).sum::<f64>() * scale) as f32;
    mono.extend(interleaved.chunks_exact(n_channels).map(mean));
}

/// A recording in memory.
pub(super) struct Samples {
    samples: Vec<f32>,
    sample_rate: u32,
    n_channels: usize,
    taken: usize,
}

impl Samples {
    pub(super) fn new(
        name: &str,
        samples: Vec<f32>,
        sample_rate: u32,
        n_channels: usize,
    ) -> Result<Self, AudioError> {
        check(name, sample_rate, n_channels)?;
        let found = samples.len() % n_channels;
        if found != 0 {
            let (name, expected, unit) = (name.to_string(), n_channels, "samples");
            let seconds = (samples.len() / n_channels) as f64 / f64::from(sample_rate);
            return Err(AudioError::Partial { name, seconds, found, expected, unit });
        }
        Ok(Samples { samples, sample_rate, n_channels, taken: 0 })
    }
}

impl Source for Samples {
    fn next(&mut self, mono: &mut Vec<f32>) -> Result<Option<u32>, AudioError> {
        let rest = &self.samples[self.taken..];
        let rest = &rest[..rest.len().min(CHUNK * self.n_channels)];
        mono.clear();
        mix(rest, self.n_channels, mono);
        self.taken += rest.len();
        Ok((!rest.is_empty()).then_some(self.sample_rate))
    }

    fn duration(&self) -> Option<f64> {
        Some((self.samples.len() / self.n_channels) as f64 / f64::from(self.sample_rate))
    }
}

/// A stream of raw PCM.
pub(super) struct Pcm<R> {
    name: String,
    reader: R,
    format: PcmFormat,
    /// Bytes read; the first `n_taken` of them have been returned.
    bytes: Vec<u8>,
    n_taken: usize,
    n_read: u64,
}

impl<R: Read> Pcm<R> {
    pub(super) fn new(name: String, reader: R, format: PcmFormat) -> Result<Self, AudioError> {
        check(&name, format.sample_rate, format.n_channels)?;
        Ok(Pcm { name, reader, format, bytes: Vec::new(), n_taken: 0, n_read: 0 })
    }

    /// Refuses a stream that begins like a file, whose bytes would be noise.
    fn refuse_files(&self) -> Result<(), AudioError> {
        let starts: [(&[u8], &str); 5] = [
            (b"RIFF", "a WAV file"),
            (b"fLaC", "a FLAC file"),
            (b"OggS", "an OGG file"),
            (b"ID3", "an MP3 file"),
            (&[0x1a, 0x45, 0xdf, 0xa3], "a Matroska file"),
        ];
        match starts.iter().find(|(start, _)| self.bytes.starts_with(start)) {
            None => Ok(()),
            Some((_, what)) => Err(AudioError::Format {
                name: self.name.clone(),
                expected: "samples without a header",
                found: what.to_string(),
            }),
        }
    }
}

impl<R: Read + Send> Source for Pcm<R> {
    fn next(&mut self, mono: &mut Vec<f32>) -> Result<Option<u32>, AudioError> {
        let PcmFormat { sample_rate, n_channels, sample } = self.format;
        let sample_bytes = match sample {
            PcmSample::S16Le => 2,
            PcmSample::F32Le => 4,
        };
        let row_bytes = sample_bytes * n_channels;
        self.bytes.drain(..self.n_taken);
        self.n_taken = 0;
        // The first four bytes identify a file.
        let wanted = if self.n_read == 0 { row_bytes.max(4) } else { row_bytes };
        while self.bytes.len() < wanted {
            let at = self.bytes.len();
            self.bytes.resize(at + CHUNK, 0);
            let read = self.reader.read(&mut self.bytes[at..]);
            self.bytes.truncate(at + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => break,
                Ok(_) => {}
                Err(source) if source.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(AudioError::Read { name: self.name.clone(), source }),
            }
        }
        if self.n_read == 0 {
            self.refuse_files()?;
        }
        let whole = self.bytes.len() / row_bytes * row_bytes;
        if whole == 0 {
            let seconds = self.n_read as f64 / row_bytes as f64 / f64::from(sample_rate);
            return match self.bytes.len() {
                0 => Ok(None),
                found => Err(AudioError::Partial {
                    name: self.name.clone(),
                    seconds,
                    found,
                    expected: row_bytes,
                    unit: "bytes",
                }),
            };
        }
        let bytes = &self.bytes[..whole];
        let values: Vec<f32> = match sample {
            PcmSample::S16Le => {
                let value = |b: &[u8]| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0;
                bytes.chunks_exact(2).map(value).collect()
            }
            PcmSample::F32Le => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
        };
        mono.clear();
        mix(&values, n_channels, mono);
        self.n_taken = whole;
        self.n_read += whole as u64;
        Ok(Some(sample_rate))
    }

    fn duration(&self) -> Option<f64> {
        None
    }
}
