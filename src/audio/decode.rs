//! Decodes sound files with `symphonia`, packet by packet.

use std::fs::{File, FileType};
use std::io::{ErrorKind, Read, Seek};
use std::path::Path;

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known::{
    CODEC_ID_AAC, CODEC_ID_AC3, CODEC_ID_EAC3, CODEC_ID_FLAC, CODEC_ID_OPUS, CODEC_ID_SPEEX,
};
use symphonia::core::codecs::audio::{AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatReader, Track, TrackType};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::units::{Duration, TimeBase, Timestamp};

use super::source::{SAMPLE_RATES, Source, check, check_channels, mix};
use super::{AudioError, SAMPLE_RATE};
use crate::guard::guarded;

const FORMATS: &str = "WAV, AIFF, FLAC, MP3, OGG, M4A, MP4 or Matroska";
const CODECS: &str = "PCM, FLAC, ALAC, MP3, AAC-LC or Vorbis";

/// Samples that an AAC encoder puts before the sound: at least one frame. The container marks them in a list that the
/// library does not read.
const AAC_DELAY: usize = 1024;
/// Seconds that a packet may be late by its container's clock, whose resolution is at least a millisecond. Shorter than
/// a lost packet of any codec at its usual rates.
const MIN_GAP: f64 = 0.02;
/// Most seconds of lost sound that are filled with silence. A larger gap is a damaged clock.
const MAX_GAP: f64 = 60.0;
/// A program that writes a WAV file to a pipe does not know its length, and sets about the largest possible one.
const UNKNOWN_BYTES: u64 = 0x7fff_0000;

/// Most bytes of a recording that comes through a pipe: 100 minutes of CD quality.
const PIPE_BYTES: u64 = 1 << 30;
/// Most channels of a WAV or AIFF file that the library reads: those that have positions.
const MOST_POSITIONS: usize = 26;
/// Bytes in which the header of a WAV or AIFF file is searched for.
const START: u64 = 4096;

const PANICKED: &str = "the decoder failed on its contents";

pub(super) struct Decoder {
    name: String,
    format: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    time_base: Option<TimeBase>,
    /// The timestamp of the first sample.
    start: Option<Timestamp>,
    /// Samples at the start still to skip.
    n_skipped: usize,
    duration: Option<f64>,
    /// Least duration in seconds, by the header. A shorter file is incomplete.
    promised: Option<f64>,
    /// Samples returned at `rate`, and in `base` the seconds before, at other rates or of other tracks.
    n_given: u64,
    rate: u32,
    base: f64,
    /// Seconds before the current track, in a file with several streams.
    track_start: f64,
    interleaved: Vec<f32>,
    n_damaged: usize,
    is_pcm: bool,
}

impl Decoder {
    /// Opens the file at `path`, called `name` in messages. A pipe, which is no place to seek in, is read whole.
    pub(super) fn open(path: &Path, name: String) -> Result<Self, AudioError> {
        let read = |source| AudioError::Read { name: name.clone(), source };
        let kind = std::fs::metadata(path).map_err(read)?.file_type();
        // Opening a folder succeeds; only reading it fails.
        if kind.is_dir() {
            return Err(read(ErrorKind::IsADirectory.into()));
        }
        // Some devices never end, and opening one can have effects.
        if is_device(kind) {
            return Err(AudioError::Format { name, expected: FORMATS, found: "a device".into() });
        }
        let file = File::open(path).map_err(read)?;
        if kind.is_file() {
            return Self::new(Box::new(file), name);
        }
        let mut bytes = Vec::new();
        file.take(PIPE_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > PIPE_BYTES {
            let reason =
                format!("a pipe can hold at most {} MiB; write it to a file first", PIPE_BYTES >> 20);
            return Err(read(std::io::Error::new(ErrorKind::InvalidData, reason)));
        }
        Self::new(Box::new(std::io::Cursor::new(bytes)), name)
    }

    /// Finds the format and the audio track of `source`.
    pub(super) fn new(mut source: Box<dyn MediaSource>, name: String) -> Result<Self, AudioError> {
        let mut start = Vec::new();
        let read = source.by_ref().take(START).read_to_end(&mut start).and_then(|_| source.rewind());
        read.map_err(|source| AudioError::Read { name: name.clone(), source })?;
        if start.is_empty() {
            return Err(AudioError::Empty { name });
        }
        // The library only says that the number is invalid.
        if let Some(n_channels) = n_channels(&start) {
            check_channels(&name, n_channels, MOST_POSITIONS)?;
        }
        let stream = MediaSourceStream::new(source, Default::default());
        let probe = symphonia::default::get_probe();
        let probe = || probe.probe(&Hint::new(), stream, Default::default(), Default::default());
        let format = match guarded(probe).unwrap_or(Err(Error::DecodeError(PANICKED))) {
            Ok(format) => format,
            Err(Error::IoError(source)) if source.kind() != ErrorKind::UnexpectedEof => {
                return Err(AudioError::Read { name, source });
            }
            Err(Error::DecodeError(reason)) => {
                return Err(AudioError::Broken { name, seconds: 0.0, reason: reason.into() });
            }
            Err(_) => {
                return Err(AudioError::Format {
                    name,
                    expected: FORMATS,
                    found: described(&start[..start.len().min(16)]),
                });
            }
        };
        let panicked = || AudioError::Broken { name: name.clone(), seconds: 0.0, reason: PANICKED.into() };
        let chosen = guarded(|| choose(&name, format.as_ref()));
        let (track, decoder) = chosen.unwrap_or_else(|_| Err(panicked()))?;
        let mut new = Self {
            name,
            track: 0,
            time_base: None,
            start: None,
            n_skipped: 0,
            duration: None,
            promised: None,
            n_given: 0,
            rate: SAMPLE_RATE,
            base: 0.0,
            track_start: 0.0,
            interleaved: Vec::new(),
            n_damaged: 0,
            is_pcm: false,
            decoder,
            format,
        };
        new.begin(&track);
        Ok(new)
    }

    fn begin(&mut self, track: &Track) {
        self.track = track.id;
        self.time_base = track.time_base;
        self.start = None;
        self.track_start = self.seconds();
        let params = self.decoder.codec_params();
        self.n_skipped = if params.codec == CODEC_ID_AAC { AAC_DELAY } else { 0 };
        let seconds = |n: u64| params.sample_rate.map(|rate| n as f64 / f64::from(rate));
        let by_clock = |base: Option<TimeBase>, duration: Option<Duration>| {
            Some(base?.calc_duration(duration?)?.as_secs_f64())
        };
        let media = self.format.media_info();
        let duration = track.num_frames.and_then(seconds);
        let duration = duration.or_else(|| by_clock(track.time_base, track.duration));
        let duration = duration.or_else(|| by_clock(media.time_base, media.duration));
        self.duration = duration.filter(|seconds| *seconds > 0.0 && seconds.is_finite());

        self.is_pcm = is_pcm(self.decoder.as_ref());
        let row_bits = params.bits_per_sample.unwrap_or(8) as u64
            * params.channels.as_ref().map_or(1, |channels| channels.count()) as u64;
        let n_bytes = track.num_frames.map(|n| n.saturating_mul(row_bits / 8));
        let is_unknown = self.is_pcm && n_bytes.is_some_and(|n| n >= UNKNOWN_BYTES);
        if is_unknown {
            self.duration = None;
        }
        // For others the length is an estimate, or the container's reader notices an incomplete file itself.
        self.promised = if self.is_pcm || params.codec == CODEC_ID_FLAC { self.duration } else { None };
    }

    /// Skips samples before time zero, which the encoder added, if the first sample has the timestamp `pts`.
    fn skip_early(&mut self, pts: Timestamp) {
        let (base, rate) = (self.time_base, self.decoder.codec_params().sample_rate);
        let early = base.and_then(|base| base.calc_time(pts)).map_or(0.0, |time| -time.as_secs_f64());
        // Saturates: a timestamp after zero skips nothing.
        let n = (early.min(MAX_GAP) * f64::from(rate.unwrap_or(0))).round() as usize;
        self.n_skipped = self.n_skipped.max(n);
    }

    /// Seconds returned so far.
    fn seconds(&self) -> f64 {
        self.base + self.n_given as f64 / f64::from(self.rate)
    }

    fn broken(&self, reason: impl Into<String>) -> AudioError {
        AudioError::Broken { name: self.name.clone(), seconds: self.seconds(), reason: reason.into() }
    }

    fn failed(&self, error: Error) -> AudioError {
        match error {
            Error::IoError(e) if e.kind() == ErrorKind::UnexpectedEof => match self.end() {
                Err(error) => error,
                Ok(_) => self.broken("the file ends too early"),
            },
            Error::IoError(source) => AudioError::Read { name: self.name.clone(), source },
            other => self.broken(other.to_string()),
        }
    }

    fn end(&self) -> Result<Option<u32>, AudioError> {
        if self.n_given == 0 && self.base == 0.0 && self.n_damaged > 0 {
            return Err(self.broken(format!("none of its {} packets can be decoded", self.n_damaged)));
        }
        match self.promised {
            // A millisecond is less than any packet and more than any rounding.
            Some(promised) if self.seconds() - self.track_start < promised - 1e-3 => {
                Err(self.broken(format!("the file ends too early: its header promises {promised:.2} s")))
            }
            _ => Ok(None),
        }
    }

    /// As [`Source::next`].
    fn read(&mut self, mono: &mut Vec<f32>) -> Result<Option<u32>, AudioError> {
        mono.clear();
        loop {
            let packet = match self.format.next_packet() {
                Ok(Some(packet)) if packet.track_id == self.track => packet,
                Ok(Some(_)) => continue,
                Ok(None) => return self.end(),
                // In PCM, only the header shows whether all samples are there.
                Err(Error::IoError(e)) if e.kind() == ErrorKind::UnexpectedEof && self.is_pcm => {
                    return self.end();
                }
                // The next of several streams in one file.
                Err(Error::ResetRequired) => {
                    let (track, decoder) = choose(&self.name, self.format.as_ref())?;
                    self.decoder = decoder;
                    self.begin(&track);
                    continue;
                }
                Err(error) => return Err(self.failed(error)),
            };
            let pts = packet.pts.saturating_add(packet.trim_start);
            let start = match self.start {
                Some(start) => start,
                None => {
                    self.skip_early(pts);
                    *self.start.insert(pts)
                }
            };
            let buffer = match self.decoder.decode(&packet) {
                Ok(buffer) => buffer,
                // The next packet's timestamp shows how much was lost.
                Err(Error::DecodeError(reason)) => {
                    if self.n_damaged == 0 {
                        log::warn!(
                            "{} is damaged near {:.2} s ({reason}): parts that cannot be decoded become silence",
                            self.name,
                            self.seconds()
                        );
                    }
                    self.n_damaged += 1;
                    continue;
                }
                Err(error) => return Err(self.failed(error)),
            };
            let (rate, n_channels) = (buffer.spec().rate(), buffer.spec().channels().count());
            if rate == 0 || n_channels == 0 || buffer.frames() == 0 {
                continue;
            }
            buffer.copy_to_vec_interleaved(&mut self.interleaved);

            let since = pts.get().checked_sub(start.get()).map(Timestamp::new);
            let at = self.time_base.zip(since).and_then(|(base, since)| base.calc_time(since));
            let gap = at.map_or(0.0, |at| self.track_start + at.as_secs_f64() - self.seconds());
            if gap > MAX_GAP {
                return Err(self.broken(format!("its clock jumps {gap:.0} s ahead")));
            }
            // Ignores a rate that the reader will refuse.
            if gap > MIN_GAP && SAMPLE_RATES.contains(&rate) {
                mono.resize((gap * f64::from(rate)).round() as usize, 0.0);
            }
            mix(&self.interleaved, n_channels, mono);
            if rate != self.rate {
                (self.base, self.n_given, self.rate) = (self.seconds(), 0, rate);
            }
            self.n_given += mono.len() as u64;

            let skipped = self.n_skipped.min(mono.len());
            self.n_skipped -= skipped;
            mono.drain(..skipped);
            if !mono.is_empty() {
                return Ok(Some(rate));
            }
        }
    }
}

impl Source for Decoder {
    fn next(&mut self, mono: &mut Vec<f32>) -> Result<Option<u32>, AudioError> {
        guarded(|| self.read(mono)).unwrap_or_else(|_| Err(self.broken(PANICKED)))
    }

    fn duration(&self) -> Option<f64> {
        self.duration
    }
}

#[cfg(unix)]
fn is_device(kind: FileType) -> bool {
    use std::os::unix::fs::FileTypeExt;
    kind.is_char_device() || kind.is_block_device()
}

#[cfg(not(unix))]
fn is_device(_kind: FileType) -> bool {
    false
}

/// The audio track, and its decoder.
fn choose(name: &str, format: &dyn FormatReader) -> Result<(Track, Box<dyn AudioDecoder>), AudioError> {
    let Some(track) = format.default_track(TrackType::Audio) else {
        let kinds = format.tracks().iter().map(|track| match track.track_type() {
            Some(TrackType::Video) => "video",
            Some(TrackType::Subtitle) => "subtitles",
            _ => "something unknown",
        });
        let kinds: Vec<&str> = kinds.collect();
        let found = if kinds.is_empty() { "no track".to_string() } else { kinds.join(", ") };
        return Err(AudioError::NoTrack { name: name.to_string(), found });
    };
    let codec = |found: String| AudioError::Codec { name: name.to_string(), expected: CODECS, found };
    let params: &AudioCodecParameters = match &track.codec_params {
        Some(CodecParameters::Audio(params)) => params,
        _ => return Err(codec("a track without parameters".into())),
    };
    // The default removes samples that the encoder added at both ends, if the container marks them.
    match symphonia::default::get_codecs().make_audio_decoder(params, &AudioDecoderOptions::default()) {
        Ok(decoder) => {
            // Other codecs have the rate in their packets too.
            if let Some(rate) = params.sample_rate.filter(|_| is_pcm(decoder.as_ref())) {
                check(name, rate, 1)?;
            }
            Ok((track.clone(), decoder))
        }
        Err(Error::Unsupported(reason)) => Err(codec(match codec_name(params.codec) {
            Some(name) => format!("`{name}`"),
            None => format!("codec `{}` ({reason})", params.codec),
        })),
        Err(error) => Err(codec(error.to_string())),
    }
}

fn is_pcm(decoder: &dyn AudioDecoder) -> bool {
    decoder.codec_info().short_name.starts_with("pcm")
}

/// The number of channels in the header of a WAV or AIFF file that begins with `start`.
fn n_channels(start: &[u8]) -> Option<usize> {
    let (id, at, is_little) = match (start.get(..4)?, start.get(8..12)?) {
        (b"RIFF", b"WAVE") => (b"fmt ", 2, true),
        (b"FORM", b"AIFF" | b"AIFC") => (b"COMM", 0, false),
        _ => return None,
    };
    let mut rest = &start[12..];
    loop {
        let (size, content) = (rest.get(4..8)?, rest.get(8..)?);
        if rest.starts_with(id) {
            let n: [u8; 2] = content.get(at..at + 2)?.try_into().ok()?;
            return Some(usize::from(if is_little { u16::from_le_bytes(n) } else { u16::from_be_bytes(n) }));
        }
        let size: [u8; 4] = size.try_into().ok()?;
        let size = if is_little { u32::from_le_bytes(size) } else { u32::from_be_bytes(size) };
        // Chunks begin at even offsets.
        rest = content.get((size as usize).checked_next_multiple_of(2)?..)?;
    }
}

/// Names of common codecs that are not supported.
fn codec_name(codec: AudioCodecId) -> Option<&'static str> {
    match codec {
        CODEC_ID_OPUS => Some("Opus"),
        CODEC_ID_SPEEX => Some("Speex"),
        CODEC_ID_AC3 => Some("AC-3"),
        CODEC_ID_EAC3 => Some("E-AC-3"),
        CODEC_ID_AAC => Some("an AAC profile other than LC"),
        _ => None,
    }
}

/// A description of the first bytes of a file.
fn described(start: &[u8]) -> String {
    match std::str::from_utf8(start) {
        Ok(text) if !text.contains(|c: char| c.is_control() && !c.is_whitespace()) => "text".into(),
        _ => {
            let hex: Vec<String> = start.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
            format!("a file that starts with the bytes `{}`", hex.join(" "))
        }
    }
}
