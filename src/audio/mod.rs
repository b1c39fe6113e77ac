//! Layer 2: recordings to the log-mel frames that speech models hear. No GPU.
//!
//! [`AudioReader`] gives the samples of a file, of a stream of raw PCM or of memory as one channel at
//! [`SAMPLE_RATE`], a piece at a time. [`MelFrames`] turns them into log-mel frames, which are those of Whisper's
//! reference, and says which frames are likely to hold speech. Neither holds more of a recording than it must.
//!
//! Files are decoded where the crate's feature `audio` is on; raw PCM and samples in memory need no feature.
//!
//! A recording that breaks gives all that came before the break, then the error, once; after that it counts as
//! ended where it broke. Whoever passes the error on loses nothing that was read, and whoever keeps it can go on
//! with what was good.

#[cfg(feature = "audio")]
mod decode;
mod mel;
mod reader;
mod resample;
mod source;
mod speech;

pub use mel::{HOP_LENGTH, MelFrames};
pub use reader::AudioReader;
pub use source::{PcmFormat, PcmSample};

/// Samples a second of all that this module gives, as Whisper was trained on.
pub const SAMPLE_RATE: u32 = 16_000;

/// What can be wrong with a recording.
///
/// `name` is the file's name in backticks, or words for a source that has none; times are seconds from the start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AudioError {
    /// The system cannot read it.
    #[error("{name} cannot be read: {source}")]
    Read {
        /// The recording.
        name: String,
        /// The system's words.
        source: std::io::Error,
    },
    /// There is not one sample in it.
    #[error("{name} is empty: expected at least one sample, found none")]
    Empty {
        /// The recording.
        name: String,
    },
    /// It is in no format that is read here.
    #[error("{name} is not a recording: expected {expected}, found {found}")]
    Format {
        /// The recording.
        name: String,
        /// The formats that are read.
        expected: &'static str,
        /// What it looks like.
        found: String,
    },
    /// A container without sound.
    #[error("{name} has no sound: expected an audio track, found {found}")]
    NoTrack {
        /// The recording.
        name: String,
        /// The tracks that are there.
        found: String,
    },
    /// The sound is coded in a way that is not read here.
    #[error("the sound of {name} cannot be decoded: expected {expected}, found {found}")]
    Codec {
        /// The recording.
        name: String,
        /// The codecs that are read.
        expected: &'static str,
        /// The one that is there, or what is odd about it.
        found: String,
    },
    /// A property of the sound, or of the frames asked for, is out of range.
    #[error("{name} has {what} {found}, expected {expected}")]
    Property {
        /// The recording.
        name: String,
        /// The property.
        what: &'static str,
        /// Its range.
        expected: String,
        /// Its value.
        found: u64,
    },
    /// It breaks off, or is damaged so that nothing after this time can be read.
    #[error("{name} breaks after {seconds:.2} s: {reason}")]
    Broken {
        /// The recording.
        name: String,
        /// Where.
        seconds: f64,
        /// What the decoder said.
        reason: String,
    },
    /// It ends inside a sample or between the channels of one moment.
    #[error("{name} ends after {seconds:.2} s with {found} of the {expected} {unit} of one moment")]
    Partial {
        /// The recording.
        name: String,
        /// Where.
        seconds: f64,
        /// How many are left over.
        found: usize,
        /// How many there should be.
        expected: usize,
        /// What is counted: `bytes` or `samples`.
        unit: &'static str,
    },
    /// A sample is not a number, infinite, or so large that its power is.
    #[error("{name} has the sample {value} at {seconds:.4} s, expected a finite number near -1 to 1")]
    NotFinite {
        /// The recording.
        name: String,
        /// Where.
        seconds: f64,
        /// The sample, or the mean of the channels.
        value: f32,
    },
}

impl AudioError {
    /// What to do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Empty { .. } => "check that the recording has finished and that the microphone was on",
            Self::Format { .. } | Self::Codec { .. } => {
                "convert it: `ffmpeg -i INPUT -ac 1 -ar 16000 output.wav`"
            }
            Self::NoTrack { .. } => "choose a file with sound: a video must have an audio track",
            Self::Broken { .. } => {
                "the file may be incomplete: fetch it again; all before the break can be used"
            }
            Self::Partial { .. } => "check the sample format and the number of channels",
            Self::NotFinite { .. } => "check the program that wrote it, and the sample format of raw samples",
            _ => return None,
        };
        Some(hint.to_string())
    }
}
