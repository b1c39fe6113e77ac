//! Recordings: samples, log-mel frames compared with the reference, voice activity, and broken
//! files of all kinds.
#![cfg(feature = "audio")]

#[path = "reference/mel.rs"]
mod reference;

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::io::{Cursor, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use reference::Fault;
use wginfer::audio::{AudioError, AudioReader, HOP_LENGTH, MelFrames, PcmFormat, PcmSample, SAMPLE_RATE};

const FILES: [&str; 6] = ["tone.flac", "tone.mp3", "tone.ogg", "tone.m4a", "video.mp4", "video.mkv"];

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn file(name: &str) -> PathBuf {
    here().join("tests/audio").join(name)
}

/// A file of reference data that not every machine has; prints a line if it is absent.
fn shared(name: &str) -> Option<PathBuf> {
    let path = here().join("../shared").join(name);
    if path.is_file() {
        return Some(path);
    }
    // Not `eprintln!`: the test harness captures its output for tests that pass.
    let test = std::thread::current().name().unwrap_or("a test").to_string();
    let _ = writeln!(std::io::stderr(), "{test}: skipped, `{}` is absent", path.display());
    None
}

/// All samples, and the error that ended them.
fn all(reader: Result<AudioReader, AudioError>, piece: usize) -> (Vec<f32>, Option<AudioError>) {
    let mut reader = match reader {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), Some(error)),
    };
    let mut samples = Vec::new();
    loop {
        match reader.read(piece, &mut samples) {
            Ok(0) => return (samples, None),
            Ok(_) => {}
            Err(error) => {
                assert_eq!(reader.read(piece, &mut samples).expect("an error comes once"), 0);
                return (samples, Some(error));
            }
        }
    }
}

fn good(reader: Result<AudioReader, AudioError>) -> Vec<f32> {
    let (samples, error) = all(reader, 4096);
    assert!(error.is_none(), "{}", error.unwrap());
    samples
}

/// The error, whose message follows the crate's conventions.
fn bad(reader: Result<AudioReader, AudioError>) -> AudioError {
    let error = all(reader, 1000).1.expect("an error");
    let text = error.to_string();
    assert!(!text.ends_with('.') && !text.contains('\n'), "{text}");
    error
}

fn memory(samples: &[f32]) -> AudioReader {
    AudioReader::samples(samples.to_vec(), SAMPLE_RATE, 1).expect("samples")
}

fn noise(n: usize, amplitude: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e3779b97f4a7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| amplitude * next()).collect()
}

fn tone(n: usize, rate: u32, hz: f64, amplitude: f64) -> Vec<f32> {
    (0..n).map(|i| (amplitude * (TAU * hz * i as f64 / f64::from(rate)).sin()) as f32).collect()
}

/// A WAV file: `tag` 1 for integers, 3 for floating point, 6 for A-law, 7 for µ-law.
fn wav(tag: u16, bits: u16, rate: u32, n_channels: u16, data: &[u8]) -> Vec<u8> {
    let row = n_channels * bits / 8;
    // All formats but integers give the length of an extension: none here.
    let extension: &[u8] = if tag == 1 { &[] } else { &[0, 0] };
    let n_format = 16 + extension.len() as u32;
    let mut out = Vec::new();
    out.extend(b"RIFF");
    out.extend((20 + n_format + data.len() as u32).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(n_format.to_le_bytes());
    out.extend(tag.to_le_bytes());
    out.extend(n_channels.to_le_bytes());
    out.extend(rate.to_le_bytes());
    out.extend(rate.wrapping_mul(row.into()).to_le_bytes());
    out.extend(row.to_le_bytes());
    out.extend(bits.to_le_bytes());
    out.extend(extension);
    out.extend(b"data");
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    out
}

fn wav_s16(rate: u32, n_channels: u16, values: &[i16]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    wav(1, 16, rate, n_channels, &data)
}

// Log-mel frames.

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |worst, (a, b)| {
        let error = (f64::from(*a) - b).abs();
        if error.is_nan() { f64::INFINITY } else { error.max(worst) }
    })
}

#[test]
fn frames_are_those_of_transformers() {
    #[derive(serde::Deserialize)]
    struct Golden {
        mel_frames: BTreeMap<usize, Vec<f64>>,
    }
    let Some(clip) = shared("audio/jfk.wav") else { return };
    let models = ["golden/whisper-en", "golden/whisper-multilingual", "models/whisper-tiny.en-encoder"];
    for model in models {
        let Some(path) = shared(&format!("{model}/golden.json")) else { continue };
        let golden: Golden = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut frames = MelFrames::new(AudioReader::open(&clip).unwrap(), 80).unwrap();
        let window = frames.window(0, 3000).unwrap();
        assert_eq!(frames.n_frames(), Some(1100));
        assert_eq!(window.len(), 3000 * 80);
        assert!(golden.mel_frames.len() >= 6);
        for (t, expected) in &golden.mel_frames {
            let error = worst(&window[t * 80..][..80], expected);
            assert!(error <= 1e-4, "{model} frame {t}: {error}");
        }
        // The next frame is different.
        assert!(worst(&window[501 * 80..][..80], &golden.mel_frames[&500]) > 1e-2);
    }
}

#[test]
fn frames_are_those_of_the_definition() {
    for (n, n_mels) in [(1, 80), (7, 128), (161, 80), (400, 128), (3001, 80), (2777, 128)] {
        // Loud frames, some of them at the start, and quiet ones: the mirror and the clamp matter.
        let mut samples = noise(n, 1e-5, n as u64);
        for (i, value) in samples.iter_mut().enumerate().filter(|(i, _)| i % 1100 < 300) {
            *value += (0.9 * (i as f64 * 0.3).cos()) as f32;
        }
        let n_frames = n / HOP_LENGTH + 5;
        let mut frames = MelFrames::new(memory(&samples), n_mels).unwrap();
        let found = frames.window(0, n_frames).unwrap();
        assert_eq!(frames.n_frames(), Some(n / HOP_LENGTH));
        // Both sums are in f64; the rest is the rounding of logarithms down to -10 to f32.
        let tolerance = 8.0 * f64::from(f32::EPSILON);
        let error = worst(&found, &reference::log_mel(&samples, n_mels, n_frames, Fault::None));
        assert!(error <= tolerance, "{n} samples, {n_mels} mels: {error}");
        assert!(found.iter().any(|value| *value != found[0]), "not trivial");
        if n < 2000 {
            continue;
        }
        let faults = [
            Fault::SymmetricWindow,
            Fault::ZerosAtStart,
            Fault::HtkScale,
            Fault::NoNorm,
            Fault::HopOfOneMore,
        ];
        for (i, fault) in faults.into_iter().enumerate() {
            let error = worst(&found, &reference::log_mel(&samples, n_mels, n_frames, fault));
            assert!(error > 100.0 * tolerance, "fault {i} is not seen: {error}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Windows are the same however the recording is read and whatever has been discarded.
    #[test]
    fn frames_do_not_depend_on_how_they_are_read(
        n in 1usize..20_000,
        starts in prop::collection::vec(0usize..40, 1..6),
        ahead in 0usize..200,
        length in 1usize..50,
    ) {
        let samples = noise(n, 0.3, n as u64);
        let mut whole = MelFrames::new(memory(&samples), 80).unwrap();
        whole.fill_to(1000).unwrap();
        let mut pieces = MelFrames::new(memory(&samples), 80).unwrap();
        let mut at = 0;
        for step in starts {
            at += step;
            pieces.discard_before(at);
            if step % 3 == 0 {
                pieces.fill_to(at + ahead).unwrap();
            }
            prop_assert_eq!(pieces.window(at, length).unwrap(), whole.window(at, length).unwrap());
        }
    }
}

#[test]
fn the_maximum_is_that_of_all_frames_up_to_the_windows_end() {
    // Quiet, loud, quiet: the clamp rises with the loud part and stays.
    let mut samples = noise(48_000, 1e-6, 1);
    samples[16_000..32_000].copy_from_slice(&tone(16_000, SAMPLE_RATE, 1000.0, 0.9));
    let mut frames = MelFrames::new(memory(&samples), 80).unwrap();
    frames.fill_to(300).unwrap();
    let least = |window: &[f32]| window.iter().fold(f32::MAX, |least, value| least.min(*value));
    let before = least(&frames.window(0, 50).unwrap());
    frames.discard_before(250);
    let after = least(&frames.window(250, 50).unwrap());
    assert!(before < -1.4, "{before}");
    assert!(after > -1.0, "{after}");
    // Beyond the end too, with nothing kept.
    frames.discard_before(1000);
    assert_eq!(frames.window(1000, 2).unwrap(), vec![after; 160]);
}

#[test]
fn frames_of_silence_and_of_one_sample() {
    let mut silence = MelFrames::new(memory(&[0.0; 16_000]), 128).unwrap();
    assert!(silence.window(0, 3000).unwrap().iter().all(|value| *value == -1.5));
    let mut one = MelFrames::new(memory(&[1.0]), 80).unwrap();
    let window = one.window(0, 3000).unwrap();
    assert_eq!(one.n_frames(), Some(0));
    assert!(window.iter().all(|value| value.is_finite()) && window[0] > window[80 * 10]);
}

#[test]
fn a_number_of_mel_bins_out_of_range() {
    for n_mels in [0, 202, usize::MAX] {
        let error = MelFrames::new(memory(&[0.0]), n_mels).err().expect("refused");
        assert!(error.to_string().contains("expected 1 to 201"), "{error}");
    }
}

/// Reads no more than a window needs, and keeps no more than later windows need.
#[test]
fn an_hour_is_not_read_at_once() {
    struct Counted(u64, Arc<AtomicUsize>);
    impl Read for Counted {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let n = buffer.len().min(self.0 as usize);
            buffer[..n].fill(1);
            self.0 -= n as u64;
            self.1.fetch_add(n, Ordering::Relaxed);
            Ok(n)
        }
    }
    let n_read = Arc::new(AtomicUsize::new(0));
    let second = SAMPLE_RATE as usize * 2;
    let source = Counted(3600 * second as u64, n_read.clone());
    let mut frames = MelFrames::new(AudioReader::pcm(source, PcmFormat::default()).unwrap(), 80).unwrap();
    for minute in 0..3 {
        frames.discard_before(minute * 6000);
        frames.window(minute * 6000, 3000).unwrap();
        assert!(n_read.load(Ordering::Relaxed) < (minute * 60 + 31) * second);
    }
    assert_eq!((frames.n_frames(), frames.duration()), (None, None));
}

// Samples.

#[test]
fn a_flac_has_the_samples_that_went_in() {
    let found = good(AudioReader::open(&file("tone.flac")));
    let expected = tone(6400, SAMPLE_RATE, 440.0, 0.5);
    let expected: Vec<f32> = expected.iter().map(|value| (value * 32768.0).round() / 32768.0).collect();
    assert_eq!(found.len(), 6400);
    assert!(found[..1600].iter().all(|value| *value == 0.0));
    assert_eq!(found[1600..], expected[1600..]);
}

#[test]
fn the_same_speech_from_three_formats() {
    let (Some(wav), Some(flac)) = (shared("audio/jfk.wav"), shared("audio/jfk.flac")) else { return };
    let wav = good(AudioReader::open(&wav));
    // 24 bits, two channels at 44.1 kHz. The other file was made from this one by another resampler.
    let flac = good(AudioReader::open(&flac));
    assert_eq!((wav.len(), flac.len()), (176_000, 176_000));
    let error = |lag: usize| {
        let pairs = wav[lag..].iter().zip(&flac);
        let (mut difference, mut power) = (0.0, 0.0);
        for (a, b) in pairs {
            difference += f64::from(a - b).powi(2);
            power += f64::from(*a).powi(2);
        }
        (difference / power).sqrt()
    };
    assert!(error(0) < 0.05, "{}", error(0));
    assert!(error(1) > 2.0 * error(0), "{} {}", error(0), error(1));

    // Other recordings: only tests that they can be read.
    for (name, seconds) in [("audio/84-121550-0000.flac", 8.435), ("audio/common_voice_en_59751.mp3", 3.6)] {
        let Some(path) = shared(name) else { continue };
        let reader = AudioReader::open(&path).unwrap();
        let duration = reader.duration().expect("a duration");
        let samples = good(Ok(reader));
        let found = samples.len() as f64 / 16_000.0;
        assert!(
            (found - seconds).abs() < 0.1 && (found - duration).abs() < 0.1,
            "{name}: {found} {duration}"
        );
    }
}

#[test]
fn every_format_gives_the_tone_when_it_sounds() {
    for name in FILES {
        let reader = AudioReader::open(&file(name)).unwrap();
        let duration = reader.duration().expect("a duration");
        let samples = good(Ok(reader));
        assert!((duration - 0.4).abs() < 0.06, "{name}: {duration} s");
        assert!((samples.len() as f64 / 16_000.0 - 0.4).abs() < 0.06, "{name}: {} samples", samples.len());
        let rms = |from: f64, to: f64| {
            let part = &samples[(from * 16e3) as usize..(to * 16e3) as usize];
            (part.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / part.len() as f64).sqrt()
        };
        let expected = 0.5 / 2f64.sqrt();
        assert!(rms(0.0, 0.09) < 0.03, "{name}: {} before the tone", rms(0.0, 0.09));
        // At 48 kbit/s an encoder may lower the level by half a decibel.
        assert!((rms(0.12, 0.37) / expected - 1.0).abs() < 0.08, "{name}: {}", rms(0.12, 0.37));
        // The onset lies within 3 ms.
        assert!(rms(0.094, 0.097) < 0.3 * expected, "{name}: {}", rms(0.094, 0.097));
        assert!(rms(0.103, 0.106) > 0.5 * expected, "{name}: {}", rms(0.103, 0.106));
        // So does its phase: the tone correlates with itself, not with its quadrature.
        let at = |i: usize, quarter: f64| (TAU * (440.0 * i as f64 / 16e3 + quarter)).sin();
        let sum =
            |quarter: f64| (2400..5600).map(|i| f64::from(samples[i]) * at(i, quarter)).sum::<f64>() / 1600.0;
        let phase = sum(0.25).atan2(sum(0.0)) / TAU / 440.0;
        assert!(phase.abs() < 1e-4, "{name}: {phase} s late");
    }
}

/// A tone in the middle of its recording, at any rate, is the same tone at the same time.
#[test]
fn resampling_keeps_frequency_amplitude_and_time() {
    for rate in [8000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 44_101, 48_000, 96_000, 192_000, 1000]
    {
        for hz in [100.0, 440.0, 3000.0, 7400.0] {
            if hz > 0.45 * f64::from(rate) {
                continue;
            }
            let n = (rate as usize * 17) / 10 + 3;
            let samples = tone(n, rate, hz, 0.7);
            let found = good(AudioReader::samples(samples, rate, 1));
            assert_eq!(found.len(), (n * 16_000).div_ceil(rate as usize), "{rate} Hz");
            let expected = tone(found.len(), SAMPLE_RATE, hz, 0.7);
            let error = |a: &[f32], b: &[f32]| {
                let inner = 4000..a.len().min(b.len()) - 4000;
                inner.map(|i| (a[i] - b[i]).abs()).fold(0.0, f32::max)
            };
            let same = error(&found, &expected);
            assert!(same < 2e-4, "{rate} Hz, {hz} Hz: {same}");
            assert!(error(&found[1..], &expected) > 0.02, "a shift of one sample is seen");
        }
    }
    // Nothing above the new limit aliases.
    let found = good(AudioReader::samples(tone(96_000, 48_000, 11_000.0, 0.7), 48_000, 1));
    let most = found[4000..found.len() - 4000].iter().fold(0.0f32, |most, value| most.max(value.abs()));
    assert!(most < 1e-5, "{most}");
}

#[test]
fn channels_are_averaged() {
    let ramp = noise(700, 0.5, 3);
    for n_channels in [2usize, 3, 7] {
        let rows: Vec<i16> = (0..100 * n_channels).map(|i| (ramp[i % 700] * 32000.0) as i16).collect();
        let expected: Vec<f32> = rows
            .chunks(n_channels)
            .map(|row| row.iter().map(|v| f64::from(*v)).sum::<f64>() / n_channels as f64 / 32768.0)
            .map(|mean| mean as f32)
            .collect();
        let floats: Vec<f32> = rows.iter().map(|v| f32::from(*v) / 32768.0).collect();
        let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        let format = PcmFormat { n_channels, ..PcmFormat::default() };
        let from_file = good(AudioReader::decode(wav_s16(16_000, n_channels as u16, &rows)));
        let from_pcm = good(AudioReader::pcm(Cursor::new(bytes), format));
        let from_memory = good(AudioReader::samples(floats, 16_000, n_channels));
        for found in [from_file, from_pcm, from_memory] {
            assert_eq!(found, expected, "{n_channels} channels");
        }
    }
}

#[test]
fn every_width_of_wav() {
    // 0.25 and -0.5 in each.
    let cases: [(u16, u16, Vec<u8>); 6] = [
        (1, 8, vec![0xa0, 0x40]),
        (1, 16, [8192i16, -16384].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (1, 24, vec![0, 0, 0x20, 0, 0, 0xc0]),
        (1, 32, [1i32 << 29, -(1 << 30)].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (3, 32, [0.25f32, -0.5].iter().flat_map(|v| v.to_le_bytes()).collect()),
        (3, 64, [0.25f64, -0.5].iter().flat_map(|v| v.to_le_bytes()).collect()),
    ];
    for (tag, bits, data) in cases {
        assert_eq!(good(AudioReader::decode(wav(tag, bits, 16_000, 1, &data))), [0.25, -0.5], "{tag} {bits}");
    }
    // G.711: the largest positive and negative values of A-law and µ-law, and the smallest.
    let a_law = good(AudioReader::decode(wav(6, 8, 16_000, 1, &[0xaa, 0x2a, 0xd5])));
    assert_eq!(a_law, [32256.0 / 32768.0, -32256.0 / 32768.0, 8.0 / 32768.0]);
    let mu_law = good(AudioReader::decode(wav(7, 8, 16_000, 1, &[0x80, 0x00, 0xff])));
    assert_eq!(mu_law, [32124.0 / 32768.0, -32124.0 / 32768.0, 0.0]);
}

#[test]
fn samples_do_not_depend_on_how_they_are_read() {
    /// A reader that returns pieces of odd sizes, with interruptions.
    struct Drips(Vec<u8>, usize, usize);
    impl Read for Drips {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.2 += 1;
            if self.2.is_multiple_of(5) {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            let n = (self.2 * 7 % 13 + 1).min(buffer.len()).min(self.0.len() - self.1);
            buffer[..n].copy_from_slice(&self.0[self.1..][..n]);
            self.1 += n;
            Ok(n)
        }
    }
    let samples = noise(30_001, 0.5, 9);
    let bytes: Vec<u8> = samples.iter().flat_map(|v| v.to_le_bytes()).collect();
    for rate in [16_000, 44_100] {
        let format = PcmFormat { sample_rate: rate, n_channels: 1, sample: PcmSample::F32Le };
        let expected = good(AudioReader::samples(samples.clone(), rate, 1));
        for piece in [1, 7, 160, 4093, 100_000] {
            let (found, error) = all(AudioReader::pcm(Drips(bytes.clone(), 0, 0), format), piece);
            assert!(error.is_none() && found == expected, "{rate} Hz, {piece} samples at a time");
        }
    }
    for name in FILES {
        let expected = good(AudioReader::open(&file(name)));
        for piece in [1, 997, 100_000] {
            assert_eq!(all(AudioReader::open(&file(name)), piece).0, expected, "{name}");
        }
        assert_eq!(good(AudioReader::decode(std::fs::read(file(name)).unwrap())), expected);
    }
}

#[test]
fn small_recordings() {
    assert_eq!(good(AudioReader::decode(wav_s16(16_000, 1, &[16384]))), [0.5]);
    for rate in [1000, 8000, 44_100, 48_000, 96_000] {
        let found = good(AudioReader::samples(vec![0.5], rate, 1));
        assert_eq!(found.len(), 16_000usize.div_ceil(rate as usize), "{rate}");
    }
    let silence = good(AudioReader::decode(wav_s16(8000, 1, &[0; 8000])));
    assert_eq!(silence, vec![0.0; 16_000]);
}

/// The header of a WAV file that was written to a pipe has an unknown length, or about the largest possible one.
#[test]
fn a_wav_of_unknown_length() {
    for length in [u32::MAX, 0x7fff_f000] {
        let mut bytes = wav_s16(16_000, 1, &[1000; 777]);
        bytes[40..44].copy_from_slice(&length.to_le_bytes());
        bytes[4..8].copy_from_slice(&length.saturating_add(36).to_le_bytes());
        let reader = AudioReader::decode(bytes).unwrap();
        assert_eq!(reader.duration(), None);
        assert_eq!(good(Ok(reader)).len(), 777);
    }
}

// What can go wrong.

#[test]
fn files_that_are_no_recording() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let error = bad(AudioReader::open(&dir.path().join("none.wav")));
    assert!(matches!(error, AudioError::Read { .. }) && error.to_string().contains("none.wav`"), "{error}");
    assert!(matches!(bad(AudioReader::open(dir.path())), AudioError::Read { .. }));
    assert!(matches!(bad(AudioReader::open(&path("empty.wav", b""))), AudioError::Empty { .. }));
    let header_alone = wav_s16(16_000, 1, &[]);
    assert!(matches!(bad(AudioReader::open(&path("header.wav", &header_alone))), AudioError::Empty { .. }));

    let text = "Ask not what your country can do for you.\n".repeat(3000);
    let error = bad(AudioReader::open(&path("speech.mp3", text.as_bytes())));
    assert!(matches!(&error, AudioError::Format { found, .. } if found == "text"), "{error}");
    assert!(error.hint().unwrap().contains("ffmpeg"));
    let png = [b"\x89PNG\r\n\x1a\n".to_vec(), vec![7; 5000]].concat();
    let error = bad(AudioReader::open(&path("picture.png", &png)));
    assert!(error.to_string().contains("`89 50 4e 47`"), "{error}");
    let error = bad(AudioReader::open(&path("weights.bin", &vec![0; 200_000])));
    assert!(matches!(error, AudioError::Format { .. }), "{error}");
}

/// A pipe, as a shell makes one for `<(cat a.flac)`, is a recording; a device is none.
#[test]
#[cfg(unix)]
fn a_pipe_is_read_whole() {
    let dir = tempfile::TempDir::new().expect("a folder");
    for name in ["tone.flac", "tone.m4a", "tone.ogg", "tone.mp3"] {
        let pipe = dir.path().join(name);
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().expect("`mkfifo` runs");
        assert!(made.success());
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::write(pipe, std::fs::read(file(name)).expect("a file"))
        });
        assert_eq!(good(AudioReader::open(&pipe)), good(AudioReader::open(&file(name))), "{name}");
        writer.join().expect("it is written").expect("it is read");
    }
    for device in ["/dev/zero", "/dev/null"] {
        let error = bad(AudioReader::open(Path::new(device))).to_string();
        assert!(error.contains(device) && error.contains("found a device"), "{error}");
    }
}

#[test]
fn sound_that_is_not_there_or_not_decoded() {
    let error = bad(AudioReader::open(&file("silent.mp4")));
    assert!(matches!(&error, AudioError::NoTrack { found, .. } if found == "video"), "{error}");
    let error = bad(AudioReader::open(&file("tone.opus")));
    assert!(matches!(&error, AudioError::Codec { found, .. } if found == "`Opus`"), "{error}");
    assert!(error.hint().unwrap().contains("ffmpeg"));
}

#[test]
fn recordings_that_break_off() {
    let whole = std::fs::read(file("tone.flac")).unwrap();
    let expected = good(AudioReader::decode(whole.clone()));
    let mut lengths = Vec::new();
    for percent in [30, 60, 80, 99] {
        let (samples, error) = all(AudioReader::decode(whole[..whole.len() * percent / 100].to_vec()), 1000);
        let Some(AudioError::Broken { seconds, .. }) = error else { panic!("{percent} %: {error:?}") };
        assert_eq!(samples, expected[..samples.len()], "{percent} %");
        assert!((seconds - samples.len() as f64 / 16e3).abs() < 1e-3, "{percent} %: {seconds}");
        lengths.push(samples.len());
    }
    assert!(lengths.is_sorted() && lengths[3] > 0 && lengths[3] < 6400, "{lengths:?}");

    let whole = wav_s16(16_000, 2, &[500; 64_000]);
    let (samples, error) = all(AudioReader::decode(whole[..44 + 40_000].to_vec()), 999);
    assert_eq!(samples.len(), 10_000);
    let text = error.unwrap().to_string();
    assert!(text.contains("breaks after 0.62 s") && text.contains("promises 2.00 s"), "{text}");

    // Frames: the error comes once; then the good part is available.
    let reader = AudioReader::decode(whole[..44 + 40_000].to_vec()).unwrap();
    let mut frames = MelFrames::new(reader, 80).unwrap();
    assert!(matches!(frames.window(0, 3000), Err(AudioError::Broken { .. })));
    assert_eq!(frames.n_frames(), Some(62));
    assert_eq!(frames.window(0, 62).unwrap().len(), 62 * 80);
}

/// A damaged packet becomes silence; later packets keep their times.
#[test]
fn a_damaged_packet_moves_nothing() {
    let Some(path) = shared("audio/84-121550-0000.flac") else { return };
    let mut bytes = std::fs::read(&path).unwrap();
    let expected = good(AudioReader::decode(bytes.clone()));
    let middle = bytes.len() / 2;
    bytes[middle..middle + 40].fill(0x55);
    let found = good(AudioReader::decode(bytes));
    assert_eq!(found.len(), expected.len());
    let differ: Vec<usize> = (0..found.len()).filter(|i| found[*i] != expected[*i]).collect();
    assert!(
        !differ.is_empty() && differ[differ.len() - 1] - differ[0] < 3 * 4096,
        "{} samples",
        differ.len()
    );
}

#[test]
fn samples_that_are_no_numbers() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e20] {
        for rate in [16_000, 48_000] {
            let mut samples = vec![0.25; rate as usize];
            samples[rate as usize / 4] = value;
            let bytes: Vec<u8> = samples.iter().flat_map(|v| v.to_le_bytes()).collect();
            let format = PcmFormat { sample_rate: rate, n_channels: 1, sample: PcmSample::F32Le };
            let readers = [
                AudioReader::decode(wav(3, 32, rate, 1, &bytes)),
                AudioReader::pcm(Cursor::new(bytes), format),
                AudioReader::samples(samples, rate, 1),
            ];
            for reader in readers {
                let (samples, error) = all(reader, 4096);
                let Some(error @ AudioError::NotFinite { seconds, .. }) = error else { panic!("{error:?}") };
                assert_eq!(seconds, 0.25, "{error}");
                assert!(error.to_string().contains("0.2500 s"), "{error}");
                assert_eq!(samples.len(), 4000);
            }
        }
    }
}

#[test]
fn raw_samples_with_something_left_over() {
    let stereo = PcmFormat { n_channels: 2, ..PcmFormat::default() };
    let (samples, error) = all(AudioReader::pcm(Cursor::new(vec![0; 6403]), stereo), 4096);
    assert_eq!(samples.len(), 1600);
    assert_eq!(
        error.unwrap().to_string(),
        "the stream of raw samples ends after 0.10 s with 3 of the 4 bytes of one moment"
    );
    let error = AudioReader::samples(vec![0.0; 5], 16_000, 2).err().unwrap();
    assert!(error.to_string().contains("1 of the 2 samples"), "{error}");
    assert!(matches!(bad(AudioReader::pcm(Cursor::new([]), stereo)), AudioError::Empty { .. }));
    assert!(matches!(bad(AudioReader::samples(Vec::new(), 16_000, 1)), AudioError::Empty { .. }));
    let error = bad(AudioReader::pcm(Cursor::new(wav_s16(16_000, 1, &[1; 100])), stereo));
    assert!(error.to_string().contains("a WAV file"), "{error}");
}

#[test]
fn rates_and_channels_out_of_range() {
    for (sample_rate, n_channels, what) in [
        (0, 1, "sample rate of 0"),
        (999, 1, "999"),
        (u32::MAX, 1, "4294967295"),
        (16_000, 0, "channels of 0"),
    ] {
        let format = PcmFormat { sample_rate, n_channels, sample: PcmSample::S16Le };
        let error = AudioReader::pcm(Cursor::new([0; 8]), format).err().expect("refused");
        assert!(error.to_string().contains(what), "{error}");
        assert!(AudioReader::samples(vec![0.0; 8], sample_rate, n_channels).is_err());
    }
    // Headers of files.
    let aiff = |n_channels: u16| {
        let mut out = b"FORM\0\0\0\x2eAIFFCOMM\0\0\0\x12".to_vec();
        out.extend(n_channels.to_be_bytes());
        out.extend(b"\0\0\0\x04\0\x10\x40\x0c\xfa\0\0\0\0\0\0\0SSND\0\0\0\x08\0\0\0\0\0\0\0\0");
        out
    };
    let with_list = {
        // Another chunk, of odd length, before the format.
        let mut out = wav_s16(16_000, 40, &[1; 400]);
        out.splice(12..12, *b"LIST\x03\0\0\0abc\0");
        out
    };
    for (bytes, what) in [
        (wav_s16(0, 1, &[1; 100]), "a sample rate of 0, expected 1000 to 768000 Hz"),
        (wav_s16(0, 2, &[1; 4000]), "a sample rate of 0, expected 1000 to 768000 Hz"),
        (wav_s16(u32::MAX, 1, &[1; 100]), "a sample rate of 4294967295, expected 1000 to 768000 Hz"),
        (wav_s16(16_000, 0, &[1; 100]), "a number of channels of 0, expected 1 to 26"),
        (wav_s16(16_000, 32, &[1; 640]), "a number of channels of 32, expected 1 to 26"),
        (wav(3, 32, 48_000, 64, &[0; 512]), "a number of channels of 64, expected 1 to 26"),
        (with_list, "a number of channels of 40, expected 1 to 26"),
        (aiff(0), "a number of channels of 0, expected 1 to 26"),
        (aiff(33), "a number of channels of 33, expected 1 to 26"),
    ] {
        let error = bad(AudioReader::decode(bytes));
        assert!(error.to_string().contains(what), "{error}");
        assert!(!error.hint().unwrap_or_default().contains("incomplete"), "{:?}", error.hint());
    }
    assert_eq!(good(AudioReader::decode(wav_s16(16_000, 26, &[1; 26 * 20]))).len(), 20);
    let error = bad(AudioReader::decode(wav(1, 12, 16_000, 1, &[1; 100])));
    assert!(error.hint().is_some_and(|hint| hint.contains("convert")), "{error}");
    let error = bad(AudioReader::decode(wav_s16(2_000_000, 1, &[1; 100])));
    assert!(error.to_string().contains("sample rate of 2000000, expected 1000 to 768000 Hz"), "{error}");
}

/// Files with random bytes changed, or cut off: samples or an error, never a panic, and never many more samples than the file has.
#[test]
fn corrupt_files_never_panic() {
    let mut files: Vec<Vec<u8>> = FILES.iter().map(|name| std::fs::read(file(name)).unwrap()).collect();
    files.push(std::fs::read(file("tone.opus")).unwrap());
    files.push(std::fs::read(file("silent.mp4")).unwrap());
    files.push(wav_s16(44_100, 2, &[300; 2000]));
    files.push(wav(6, 8, 8000, 1, &[0x33; 3000]));
    let n_rounds: u64 = std::env::var("WGINFER_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let (mut n_good, mut n_bad) = (0, 0);
    for (f, whole) in files.iter().enumerate() {
        for round in 0..n_rounds {
            let random = noise(64, 0.5, round * 131 + f as u64 + 1);
            let mut random = random.iter().map(|value| f64::from(*value) + 0.5);
            let mut pick = |n: usize| ((random.next().unwrap() * n as f64) as usize).min(n - 1);
            let mut bytes = whole.clone();
            match round % 4 {
                0 => bytes.truncate(pick(whole.len())),
                // Headers matter most.
                1 => (0..3).for_each(|_| bytes[pick(200.min(whole.len()))] = pick(256) as u8),
                2 => (0..8).for_each(|_| bytes[pick(whole.len())] ^= 1 << pick(8)),
                _ => {
                    let (from, to) = (pick(whole.len()), pick(whole.len()));
                    let part = whole[from..(from + 64).min(whole.len())].to_vec();
                    let to = to.min(whole.len() - part.len());
                    bytes[to..to + part.len()].copy_from_slice(&part);
                }
            }
            let reader = AudioReader::decode(bytes);
            let mut samples = Vec::new();
            let outcome = reader.and_then(|mut reader| {
                // Ten minutes are more than any of them contains.
                while samples.len() < 600 * 16_000 && reader.read(16_000, &mut samples)? > 0 {}
                Ok(())
            });
            assert!(samples.len() < 600 * 16_000, "file {f}, round {round}: endless");
            assert!(samples.iter().all(|value| value.is_finite()), "file {f}, round {round}");
            match outcome {
                Ok(()) => n_good += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    n_bad += 1;
                }
            }
        }
    }
    assert!(n_good > 20 && n_bad > 20, "{n_good} could be read, {n_bad} could not");
}

// Voice activity.

/// Bursts of a voice-like sound at the given seconds, over noise of the given amplitude.
fn bursts(seconds: usize, amplitude: f32, spans: &[(f64, f64)]) -> Vec<f32> {
    let mut samples = noise(seconds * 16_000, amplitude, 5);
    for (from, to) in spans {
        let span = (from * 16e3) as usize..(to * 16e3) as usize;
        for (i, sample) in span.clone().zip(&mut samples[span]) {
            let t = i as f64 / 16e3;
            // Syllables: four swells a second.
            let swell = 0.25 + 0.75 * (TAU * 2.0 * (t - from)).sin().abs();
            let voice: f64 = (1..20).map(|k| (TAU * 130.0 * f64::from(k) * t).sin() / f64::from(k)).sum();
            *sample += (0.1 * swell * voice) as f32;
        }
    }
    samples
}

fn flags(samples: &[f32]) -> Vec<bool> {
    let mut frames = MelFrames::new(memory(samples), 80).unwrap();
    (0..samples.len() / HOP_LENGTH).map(|t| frames.is_speech(t).unwrap()).collect()
}

#[test]
fn speech_is_found_from_its_onset_to_its_end() {
    let spans = [(10.0, 11.5), (14.0, 14.2), (20.0, 27.0)];
    for amplitude in [0.0, 1e-4, 3e-3] {
        let found = flags(&bursts(30, amplitude, &spans));
        for (from, to) in spans {
            let (from, to) = ((from * 100.0) as usize, (to * 100.0) as usize);
            // No speech is lost, and 100 ms before it are kept.
            assert!(found[from - 10..to].iter().all(|flag| *flag), "{amplitude}: {from}");
            assert!(!found[from - 60] && !found[to + 60], "{amplitude}: {from}");
        }
        // Once the floor is known, noise is silence.
        assert!(found[850..950].iter().all(|flag| !flag), "{amplitude}");
    }
}

#[test]
fn noise_and_clicks_are_not_speech_and_a_word_at_the_start_is() {
    assert!(flags(&[0.0; 160_000]).iter().all(|flag| !flag));
    // Loud noise may count as speech until it is older than the longest speech without a pause.
    let steady = flags(&noise(30 * 16_000, 0.1, 2));
    assert!(steady[..700].iter().all(|flag| *flag) && steady[850..].iter().all(|flag| !flag));
    let mut click = noise(20 * 16_000, 1e-3, 2);
    click[15 * 16_000] = 0.02;
    assert!(flags(&click)[1000..].iter().all(|flag| !flag));
    let start = flags(&bursts(12, 1e-4, &[(0.0, 3.0)]));
    assert!(start[..300].iter().all(|flag| *flag) && start[350..900].iter().all(|flag| !flag));
}

#[test]
fn silence_is_skipped_in_one_step() {
    let samples = bursts(120, 1e-4, &[(1.0, 2.0), (100.0, 101.0)]);
    let mut frames = MelFrames::new(memory(&samples), 80).unwrap();
    let first = frames.skip_silence(0).unwrap().expect("speech");
    assert!((60..=100).contains(&first), "{first}");
    let second = frames.skip_silence(300).unwrap().expect("speech");
    assert!((9970..=10_000).contains(&second), "{second}");
    assert_eq!(frames.window(second, 10).unwrap().len(), 800);
    assert_eq!(frames.skip_silence(10_200).unwrap(), None);
    assert_eq!(frames.n_frames(), Some(12_000));
}

#[test]
fn the_quietest_frame_lies_in_the_pause() {
    let samples = bursts(6, 1e-3, &[(0.0, 3.0), (3.4, 6.0)]);
    let mut frames = MelFrames::new(memory(&samples), 80).unwrap();
    let found = frames.quietest(200..500).unwrap();
    assert!((305..340).contains(&found), "{found}");
}

#[test]
fn real_speech_is_speech() {
    let Some(path) = shared("audio/jfk.wav") else { return };
    let samples = good(AudioReader::open(&path));
    let found = flags(&samples);
    // There is speech from 0.3 s to 10.6 s, with pauses below a second.
    let n = found[30..1060].iter().filter(|flag| **flag).count();
    assert!(n > 950, "{n}");
}

#[test]
fn readers_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<MelFrames>();
    is_send::<AudioReader>();
}
