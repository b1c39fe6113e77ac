//! Layer 2: recordings to log-mel frames, the input of speech models. No GPU.
//!
//! [`AudioReader`] reads a file, a stream of raw PCM or samples in memory as one channel at [`SAMPLE_RATE`], piece by
//! piece. [`MelFrames`] turns the samples into the log-mel frames of Whisper's reference, and detects which frames are
//! likely to contain speech. Both keep only as much of a recording in memory as they need.
//!
//! Decoding of files needs the crate's feature `audio`; raw PCM and samples in memory need no feature.
//!
//! A damaged recording gives all samples before the damage, then the error once. After that it counts as ended there.
//! So a caller that handles the error can continue with the part that was good.

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

/// Sample rate of this module's output in Hz, the rate that Whisper was trained on.
pub const SAMPLE_RATE: u32 = 16_000;

/// An error in a recording.
///
/// `name` is the file's name in backticks, or a description if the source has none. Times are seconds from the start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AudioError {
    /// The system cannot read it.
    #[error("{name} cannot be read: {source}")]
    Read {
        /// The recording.
        name: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// It has no samples.
    #[error("{name} is empty: expected at least one sample, found none")]
    Empty {
        /// The recording.
        name: String,
    },
    /// Its format is not supported.
    #[error("{name} is not a recording: expected {expected}, found {found}")]
    Format {
        /// The recording.
        name: String,
        /// The supported formats.
        expected: &'static str,
        /// What the file looks like.
        found: String,
    },
    /// The container has no audio track.
    #[error("{name} has no sound: expected an audio track, found {found}")]
    NoTrack {
        /// The recording.
        name: String,
        /// Its tracks.
        found: String,
    },
    /// Its codec is not supported.
    #[error("the sound of {name} cannot be decoded: expected {expected}, found {found}")]
    Codec {
        /// The recording.
        name: String,
        /// The supported codecs.
        expected: &'static str,
        /// The codec found, or what is unusual about it.
        found: String,
    },
    /// A property of the recording, or of the requested frames, is out of range.
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
    /// It is cut off, or damaged so that nothing after this time can be read.
    #[error("{name} breaks after {seconds:.2} s: {reason}")]
    Broken {
        /// The recording.
        name: String,
        /// Where.
        seconds: f64,
        /// The decoder's message.
        reason: String,
    },
    /// It ends inside a sample, or between the channels of one moment.
    #[error("{name} ends after {seconds:.2} s with {found} of the {expected} {unit} of one moment")]
    Partial {
        /// The recording.
        name: String,
        /// Where.
        seconds: f64,
        /// Units of the last moment.
        found: usize,
        /// Units that a moment should have.
        expected: usize,
        /// `bytes` or `samples`.
        unit: &'static str,
    },
    /// A sample is NaN, infinite, or so large that its square is infinite.
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
    /// Advice for the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Empty { .. } => "check that the recording has finished and that the microphone was on",
            Self::Format { .. } | Self::Codec { .. } => {
                "convert it: `ffmpeg -i INPUT -ac 1 -ar 16000 output.wav`"
            }
            Self::Property { what: source::CHANNELS, .. } => {
                "mix them: `ffmpeg -i INPUT -ac 1 -ar 16000 output.wav`"
            }
            Self::Broken { seconds: 0.0, .. } => {
                "the file may be damaged or unusual: fetch it again, or convert it: `ffmpeg -i INPUT -ac 1 output.wav`"
            }
            Self::NoTrack { .. } => "choose a file with sound: a video must have an audio track",
            Self::Broken { .. } => {
                "the file may be incomplete: fetch it again; the part before the damage can be used"
            }
            Self::Partial { .. } => "check the sample format and the number of channels",
            Self::NotFinite { .. } => "check the program that wrote it, and the sample format of raw samples",
            _ => return None,
        };
        Some(hint.to_string())
    }
}
