//! Speech to text, end to end: against the reference implementation on random weights, against the truth with a tiny model
//! that was trained on spoken words, and as a user runs it.

mod common;
#[path = "common/program.rs"]
mod program;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use program::SIGNALS;
use serde_json::Value;
use tempfile::TempDir;
use wginfer::audio::{AudioError, AudioReader};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{Engine, EngineOptions};
use wginfer::tasks::transcribe::{
    Segment, SpeechTask, TranscribeError, TranscribeOptions, Transcriber, Transcript, TranscriptEvent,
};

/// Seconds that a timestamp may be off.
const NEAR: f64 = 0.15;

fn words() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words")
}

fn clip(name: &str) -> PathBuf {
    words().join(name)
}

fn reader(name: &str) -> AudioReader {
    AudioReader::open(&clip(name)).expect("a recording")
}

fn golden(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("golden.json")).expect("golden.json")).expect("JSON")
}

/// What lies beside the repository; says so and gives nothing where it does not.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(path);
    if !path.exists() {
        common::say(&format!("skipped: {} is not there", path.display()));
        return None;
    }
    Some(path)
}

/// A model and how it shall hear. None where there is no device.
struct Hearing {
    engine: Engine,
    transcriber: Transcriber,
}

impl Hearing {
    fn new(dir: &Path, options: TranscribeOptions) -> Option<Hearing> {
        let gpu = common::gpu()?;
        let checkpoint = ModelFiles::open(dir).expect("a checkpoint");
        let transcriber = Transcriber::new(&checkpoint, options).expect("a speech model");
        let options = EngineOptions { kv_dtype: Dtype::F32, ..EngineOptions::default() };
        let options = transcriber.engine_options(options);
        let engine = Engine::load(&gpu, checkpoint, options, &mut |_| {}).expect("an engine");
        Some(Hearing { engine, transcriber })
    }

    fn hear(&mut self, audio: AudioReader) -> Transcript {
        let on_heard = |_: &TranscriptEvent| ControlFlow::Continue(());
        self.transcriber.transcribe(&mut self.engine, audio, on_heard).expect("a transcript")
    }

    /// All that is told.
    fn all(&mut self, audio: AudioReader) -> Vec<TranscriptEvent> {
        let mut all = Vec::new();
        let on_heard = |heard: &TranscriptEvent| {
            all.push(heard.clone());
            ControlFlow::Continue(())
        };
        self.transcriber.transcribe(&mut self.engine, audio, on_heard).expect("a transcript");
        all
    }
}

fn tokens(heard: &[TranscriptEvent]) -> Vec<Vec<u32>> {
    let windows = heard.iter().filter_map(|heard| match heard {
        TranscriptEvent::Window { tokens, .. } => Some(tokens.clone()),
        _ => None,
    });
    windows.collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

/// Greedy, whatever it is worth.
fn greedy() -> TranscribeOptions {
    TranscribeOptions {
        temperatures: vec![0.0],
        compression_ratio_threshold: None,
        logprob_threshold: None,
        no_speech_threshold: None,
        condition_on_previous_text: false,
        ..TranscribeOptions::default()
    }
}

// --- the reference implementation, random weights ---

#[test]
fn ids_are_those_of_the_reference() {
    for model in ["whisper-en", "whisper-multilingual"] {
        let (Some(dir), Some(audio)) = (shared(&format!("golden/{model}")), shared("audio/jfk.wav")) else {
            return;
        };
        let golden = golden(&dir);
        let language = Some("en".to_string());
        let plain = &golden["greedy_without_timestamps"];
        let n = plain.as_array().expect("a list").len();
        let options = TranscribeOptions {
            timestamps: false,
            max_tokens: Some(n),
            language: language.clone(),
            ..greedy()
        };
        let Some(mut hearing) = Hearing::new(&dir, options) else { return };
        let audio = || AudioReader::open(&audio).expect("a recording");
        assert_eq!(tokens(&hearing.all(audio()))[0], ids(plain), "{model}");

        // transformers takes the clip for 30 s, so it hears a second window behind the last timestamp of the first.
        let mut samples = Vec::new();
        audio().read(usize::MAX, &mut samples).expect("samples");
        samples.resize(480_000, 0.0);
        let options = TranscribeOptions { max_tokens: Some(100), language, ..greedy() };
        let Some(mut hearing) = Hearing::new(&dir, options) else { return };
        let found = tokens(&hearing.all(AudioReader::samples(samples, 16_000, 1).expect("samples")));
        let expected = ids(&golden["greedy_with_timestamps"]);
        let at = expected
            .iter()
            .enumerate()
            .skip(1)
            .position(|(i, t)| *t == expected[0] || i + 1 == expected.len());
        let n_first = at.expect("a second window") + 1;
        assert!(
            found[0].starts_with(&expected[..n_first - 1]),
            "{model}: {:?}\nexpected {expected:?}",
            found[0]
        );
        assert!(n_first > 10, "{model}: the first window is worth comparing");
    }
}

#[test]
fn the_language_is_the_one_that_the_reference_detects() {
    let (Some(dir), Some(audio)) = (shared("golden/whisper-multilingual"), shared("audio/jfk.wav")) else {
        return;
    };
    let expected = golden(&dir)["detected_language_id"].as_u64().expect("an id") as u32;
    let options = TranscribeOptions { max_tokens: Some(2), ..greedy() };
    let Some(mut hearing) = Hearing::new(&dir, options) else { return };
    let heard = hearing.all(AudioReader::open(&audio).expect("a recording"));
    let TranscriptEvent::Language { code, .. } = &heard[0] else { panic!("{heard:?}") };
    let tokenizer = hearing.engine.tokenizer().expect("a tokenizer");
    assert_eq!(tokenizer.token_to_id(&format!("<|{code}|>")), Some(expected));
}

// --- the truth, a trained model ---

/// What was said, and when.
#[derive(Clone, serde::Deserialize)]
struct Phrase {
    text: String,
    start: f64,
    end: f64,
    words: Vec<Spoken>,
}

#[derive(Clone, serde::Deserialize)]
struct Spoken {
    word: String,
    start: f64,
    end: f64,
}

/// The phrases of a recording, or their translation.
fn phrases(name: &str, key: &str) -> Vec<Phrase> {
    serde_json::from_value(golden(&words())[name][key].clone()).expect("phrases")
}

/// Whether segments are what was said, when it was said.
fn check(segments: &[Segment], phrases: &[Phrase]) -> Result<(), String> {
    let texts = |all: Vec<&str>| all.concat();
    let found = texts(segments.iter().map(|s| s.text.as_str()).collect());
    let expected = texts(phrases.iter().map(|p| p.text.as_str()).collect());
    if found != expected || segments.len() != phrases.len() {
        return Err(format!("`{found}`, expected `{expected}`"));
    }
    for (segment, Phrase { text, start, end, .. }) in segments.iter().zip(phrases) {
        if (segment.start - start).abs() > NEAR || (segment.end - end).abs() > NEAR {
            return Err(format!(
                "`{text}` from {} to {}, expected {start} to {end}",
                segment.start, segment.end
            ));
        }
    }
    Ok(())
}

#[test]
fn what_was_said_is_written_with_its_times() {
    let Some(mut hearing) = Hearing::new(&words(), TranscribeOptions::default()) else { return };
    for (name, language) in [("en", "en"), ("de", "de")] {
        let transcript = hearing.hear(reader(&format!("{name}.flac")));
        let mut phrases = phrases(name, "phrases");
        check(&transcript.segments, &phrases).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(transcript.language.as_deref(), Some(language));
        assert!((transcript.duration - 7.0).abs() < 1e-6, "{}", transcript.duration);
        let segment = &transcript.segments[0];
        assert!(segment.avg_logprob < 0.0 && segment.avg_logprob > -0.5, "{}", segment.avg_logprob);
        assert!(segment.no_speech_prob < 0.1 && segment.temperature == 0.0);
        // The comparison can fail: another word, and another time.
        phrases[0].start += 2.0 * NEAR;
        assert!(check(&transcript.segments, &phrases).is_err());
        phrases[0].start -= 2.0 * NEAR;
        phrases[0].text = phrases[0].text.replace('e', "a");
        assert!(check(&transcript.segments, &phrases).is_err());
    }
}

#[test]
fn german_becomes_english() {
    let options = TranscribeOptions { task: SpeechTask::Translate, ..TranscribeOptions::default() };
    let Some(mut hearing) = Hearing::new(&words(), options) else { return };
    let transcript = hearing.hear(reader("de.flac"));
    check(&transcript.segments, &phrases("de", "translation")).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(transcript.language.as_deref(), Some("de"));
}

#[test]
fn silence_is_not_written() {
    for vad in [false, true] {
        let options = TranscribeOptions { vad, ..TranscribeOptions::default() };
        let Some(mut hearing) = Hearing::new(&words(), options) else { return };
        let silent = AudioReader::samples(vec![0.0; 16_000 * 25], 16_000, 1).expect("samples");
        for audio in [reader("silence.flac"), silent] {
            let transcript = hearing.hear(audio);
            assert_eq!(transcript.segments, []);
            assert_eq!(transcript.text(), "");
        }
    }
}

#[test]
fn words_have_their_times() {
    let options = TranscribeOptions { word_timestamps: true, ..TranscribeOptions::default() };
    let Some(mut hearing) = Hearing::new(&words(), options) else { return };
    let transcript = hearing.hear(reader("en.flac"));
    let phrases = phrases("en", "phrases");
    let expected: Vec<_> = phrases.iter().flat_map(|p| p.words.clone()).collect();
    let found: Vec<_> = transcript.segments.iter().flat_map(|s| s.words.clone().expect("words")).collect();
    let plain = |text: &str| text.trim_matches([' ', '.']).to_lowercase();
    assert_eq!(
        found.iter().map(|w| plain(&w.word)).collect::<Vec<_>>(),
        expected.iter().map(|w| plain(&w.word)).collect::<Vec<_>>()
    );
    let middle = |start: f64, end: f64| (start + end) / 2.0;
    let mut worst = 0.0f64;
    for (found, Spoken { start, end, .. }) in found.iter().zip(&expected) {
        assert!(found.start <= found.end && found.probability > 0.5, "{found:?}");
        worst = worst.max((middle(found.start, found.end) - middle(*start, *end)).abs());
    }
    assert!(worst < 0.35, "a word is {worst} s off");
    for segment in &transcript.segments {
        let words = segment.words.as_ref().expect("words");
        assert_eq!(words.iter().map(|w| w.word.as_str()).collect::<String>(), segment.text);
        let ends = (words[0].start, words[words.len() - 1].end);
        assert_eq!((segment.start, segment.end), ends, "a segment begins and ends with its words");
    }
}

/// The times of words change nothing in the text, and no window is invented after the last word.
#[test]
fn words_have_times_without_timestamps_too() {
    for batch_size in [1, 2] {
        let options = TranscribeOptions { timestamps: false, batch_size, ..TranscribeOptions::default() };
        let Some(mut plain) = Hearing::new(&words(), options.clone()) else { return };
        let with_words = TranscribeOptions { word_timestamps: true, ..options };
        let Some(mut hearing) = Hearing::new(&words(), with_words) else { return };
        for name in ["en.flac", "de.flac", "long.flac", "silence.flac"] {
            let (plain, found) = (plain.hear(reader(name)), hearing.hear(reader(name)));
            let texts = |transcript: &Transcript| -> Vec<(usize, String)> {
                transcript.segments.iter().map(|s| (s.seek, s.text.clone())).collect()
            };
            assert_eq!(texts(&found), texts(&plain), "{name}");
            assert_eq!(found.duration, plain.duration);
            for segment in &found.segments {
                let words = segment.words.as_ref().expect("words");
                assert_eq!(words.iter().map(|w| w.word.as_str()).collect::<String>(), segment.text);
                assert!(words.is_sorted_by(|a, b| a.start <= a.end && a.end <= b.start), "{words:?}");
            }
        }
    }
}

fn mean_logprob(transcript: &Transcript) -> f64 {
    let segments = &transcript.segments;
    segments.iter().map(|s| s.avg_logprob).sum::<f64>() / segments.len() as f64
}

#[test]
fn beams_find_nothing_worse() {
    let beams = TranscribeOptions { beam_size: Some(4), ..TranscribeOptions::default() };
    let Some(mut greedy) = Hearing::new(&words(), TranscribeOptions::default()) else { return };
    let Some(mut beams) = Hearing::new(&words(), beams) else { return };
    for name in ["en", "de"] {
        let greedy = greedy.hear(reader(&format!("{name}.flac")));
        let found = beams.hear(reader(&format!("{name}.flac")));
        check(&found.segments, &phrases(name, "phrases")).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (found, greedy) = (mean_logprob(&found), mean_logprob(&greedy));
        assert!(found >= greedy - 1e-3, "{name}: {found}, greedily {greedy}");
    }
}

#[test]
fn a_bad_answer_is_tried_again_warmer() {
    // No answer is as probable as this asks for, so the last attempt is what counts.
    let options = TranscribeOptions {
        logprob_threshold: Some(1.0),
        no_speech_threshold: None,
        temperatures: vec![0.0, 0.2, 0.4],
        ..TranscribeOptions::default()
    };
    let Some(mut hearing) = Hearing::new(&words(), options) else { return };
    let transcript = hearing.hear(reader("en.flac"));
    assert!(transcript.segments.iter().all(|s| s.temperature == 0.4), "{transcript:?}");
    // Seeds are given, so it is the same every time.
    assert_eq!(hearing.hear(reader("en.flac")), transcript);
    // Five samples at a low temperature have the greedy answer among them.
    check(&transcript.segments, &phrases("en", "phrases")).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn recordings_longer_than_a_window() {
    let reference = &golden(&words())["long"]["sequential"];
    let options = TranscribeOptions { condition_on_previous_text: false, ..TranscribeOptions::default() };
    let Some(mut hearing) = Hearing::new(&words(), options.clone()) else { return };
    let heard = hearing.all(reader("long.flac"));
    let untils: Vec<f64> = heard
        .iter()
        .filter_map(|h| if let TranscriptEvent::Window { until, .. } = h { Some(*until) } else { None })
        .collect();
    assert!(
        untils.len() >= 4 && untils.is_sorted() && (untils[untils.len() - 1] - 36.0).abs() < 0.02,
        "{untils:?}"
    );
    let segments: Vec<Segment> = heard
        .iter()
        .filter_map(|h| if let TranscriptEvent::Segment(s) = h { Some(s.clone()) } else { None })
        .collect();
    assert!(segments.iter().enumerate().all(|(i, s)| s.id == i && s.start < s.end));
    assert!(segments.is_sorted_by_key(|s| s.start), "segments come in order of time");
    let text = compare(&segments, reference);

    // With what was said before, which the reference gives to its windows as the original does.
    let conditioned = TranscribeOptions { condition_on_previous_text: true, ..options.clone() };
    let Some(mut hearing) = Hearing::new(&words(), conditioned) else { return };
    let conditioned = hearing.hear(reader("long.flac"));
    compare(&conditioned.segments, &golden(&words())["long"]["sequential_conditioned"]);
    assert_ne!(conditioned.text(), text.trim(), "earlier text matters");

    // Side by side.
    let options = TranscribeOptions { batch_size: 4, ..options };
    let Some(mut hearing) = Hearing::new(&words(), options) else { return };
    let transcript = hearing.hear(reader("long.flac"));
    assert!(transcript.segments.is_sorted_by_key(|s| s.start));
    let truth: String = phrases("long", "phrases").into_iter().map(|p| p.text).collect();
    let (alone, together) = (word_errors(&text, &truth), word_errors(&transcript.text(), &truth));
    assert!(together <= alone + 0.1, "{together} of the words are wrong, one after the other {alone}");
}

/// Whether segments are the reference's, token for token; their text.
fn compare(segments: &[Segment], reference: &Value) -> String {
    let expected = reference["segments"].as_array().expect("segments");
    assert_eq!(segments.len(), expected.len());
    for (segment, expected) in segments.iter().zip(expected) {
        // The reference counts the beginning of an unfinished segment to the one before.
        let all = ids(&expected["tokens"]);
        assert!(
            all.starts_with(&segment.tokens) && all.len() <= segment.tokens.len() + 1,
            "{segment:?}, {all:?}"
        );
        let time = |key: &str| expected[key].as_f64().expect("seconds");
        assert!((segment.start - time("start")).abs() < 0.02, "{segment:?}, expected {expected}");
        assert!((segment.end - time("end")).abs() < 0.02, "{segment:?}, expected {expected}");
    }
    let text: String = segments.iter().map(|s| s.text.as_str()).collect();
    assert_eq!(text, reference["text"].as_str().expect("a text"));
    text
}

/// Edits from `found` to `expected`, over the words of that.
fn word_errors(found: &str, expected: &str) -> f64 {
    let split =
        |text: &str| text.to_lowercase().replace('.', "").split_whitespace().map(str::to_string).collect();
    let (found, expected): (Vec<String>, Vec<String>) = (split(found), split(expected));
    let mut row: Vec<usize> = (0..=expected.len()).collect();
    for (i, a) in found.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in expected.iter().enumerate() {
            let best = (diagonal + usize::from(a != b)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], best);
        }
    }
    row[expected.len()] as f64 / expected.len() as f64
}

#[test]
fn a_part_of_a_recording() {
    for (offset, duration, part) in [(2.0, None, 1..3), (0.0, Some(2.2), 0..1)] {
        let options = TranscribeOptions { offset, duration, ..TranscribeOptions::default() };
        let Some(mut hearing) = Hearing::new(&words(), options) else { return };
        let transcript = hearing.hear(reader("en.flac"));
        check(&transcript.segments, &phrases("en", "phrases")[part]).unwrap_or_else(|e| panic!("{e}"));
    }
}

// --- long recordings ---

/// Speech for seven seconds, then quiet, for as long as it is asked for, without being kept.
struct Endless {
    speech: Vec<u8>,
    period: usize,
    at: usize,
    n: usize,
}

impl Endless {
    /// `seconds` of PCM, with speech every `period` seconds.
    fn new(seconds: usize, period: usize) -> Endless {
        let mut samples = Vec::new();
        reader("en.flac").read(usize::MAX, &mut samples).expect("samples");
        let speech = samples.iter().flat_map(|s| ((s * 32767.0) as i16).to_le_bytes()).collect();
        Endless { speech, period: period * 32_000, at: 0, n: seconds * 32_000 }
    }
}

impl Read for Endless {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let n = out.len().min(self.n - self.at);
        for byte in &mut out[..n] {
            *byte = self.speech.get(self.at % self.period).copied().unwrap_or(0);
            self.at += 1;
        }
        Ok(n)
    }
}

/// Resident memory of a process in MiB.
#[cfg(target_os = "linux")]
fn resident(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") / 1024.0
}

#[test]
#[cfg(target_os = "linux")]
fn an_hour_takes_no_more_memory_than_a_minute() {
    if common::gpu().is_none() {
        return;
    }
    // One hour, with speech every five minutes.
    let mut child =
        wginfer("transcribe - --vad --format tsv --quiet -m").arg(words()).spawn().expect("it runs");
    let mut pipe = child.stdin.take().expect("a pipe");
    let feed = std::thread::spawn(move || std::io::copy(&mut Endless::new(3600, 300), &mut pipe));
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().skip(1);
    let phrases = phrases("en", "phrases");
    let (mut n, mut after_first, mut most) = (0, 0.0, 0.0f64);
    for line in lines {
        let line = line.expect("text");
        let [start, _, text]: [&str; 3] =
            line.split('\t').collect::<Vec<_>>().try_into().expect("three cells");
        let phrase = &phrases[n % phrases.len()];
        let (start, expected) =
            (start.parse::<f64>().expect("a time") / 1000.0, phrase.start + 300.0 * (n / 3) as f64);
        assert_eq!(text, phrase.text.trim(), "at {start}");
        assert!((start - expected).abs() <= NEAR, "{start}, expected {expected}");
        n += 1;
        if n == 2 * phrases.len() {
            after_first = resident(child.id());
        }
        most = most.max(resident(child.id()));
    }
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    feed.join().expect("it is fed").expect("it is read");
    assert_eq!(n, 12 * phrases.len());
    // An hour of samples is 220 MiB, of frames 110.
    assert!(most - after_first < 24.0, "{} MiB more than after five minutes", most - after_first);
}

#[test]
fn what_was_heard_before_a_break_is_told() {
    let Some(mut hearing) = Hearing::new(&words(), TranscribeOptions::default()) else { return };
    let mut samples = Vec::new();
    reader("en.flac").read(usize::MAX, &mut samples).expect("samples");
    samples.extend([f32::NAN; 100]);
    samples.extend(vec![0.0; 16_000]);
    let audio = AudioReader::samples(samples, 16_000, 1).expect("samples");
    let mut texts = Vec::new();
    let result = hearing.transcriber.transcribe(&mut hearing.engine, audio, |heard| {
        if let TranscriptEvent::Segment(segment) = heard {
            texts.push(segment.text.clone());
        }
        ControlFlow::Continue(())
    });
    let error = result.expect_err("it breaks");
    assert!(matches!(error, TranscribeError::Audio(AudioError::NotFinite { .. })), "{error}");
    assert_eq!(texts, phrases("en", "phrases").into_iter().map(|p| p.text).collect::<Vec<_>>());

    // Stopping in the middle leaves the engine as it was.
    let mut n = 0;
    let transcript = hearing.transcriber.transcribe(&mut hearing.engine, reader("long.flac"), |heard| {
        n += usize::from(matches!(heard, TranscriptEvent::Segment(_)));
        if n == 1 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(transcript.expect("what came").segments.len(), 1);
    check(&hearing.hear(reader("en.flac")).segments, &phrases("en", "phrases"))
        .unwrap_or_else(|e| panic!("{e}"));
}

// --- what is not right ---

#[test]
fn models_and_languages_that_do_not_go() {
    let new = |dir: &Path, options| Transcriber::new(&ModelFiles::open(dir).expect("a checkpoint"), options);
    let default = TranscribeOptions::default;
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let error = new(&llama, default()).expect_err("it is deaf");
    assert!(error.to_string().contains("`llama` has no audio encoder"), "{error}");
    let language = |name: &str| TranscribeOptions { language: Some(name.into()), ..default() };
    for good in ["de", "German", " ENGLISH "] {
        assert!(new(&words(), language(good)).is_ok(), "{good}");
    }
    let error = new(&words(), language("xx")).expect_err("no such language").to_string();
    assert!(error.contains("`xx`"), "{error}");
    let error = new(&words(), language("french")).expect_err("not a language of the model").to_string();
    assert!(error.contains("`en`, `de`"), "{error}");
    if let Some(english) = shared("golden/whisper-en") {
        assert!(new(&english, language("en")).is_ok());
        assert!(matches!(new(&english, language("de")), Err(TranscribeError::Language { .. })));
        let translate = TranscribeOptions { task: SpeechTask::Translate, ..default() };
        assert!(matches!(new(&english, translate), Err(TranscribeError::NoTranslation)));
    }
}

// --- as a user runs it ---

fn wginfer(line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wginfer"));
    program::with_signals(&mut command);
    command.args(line.split_whitespace());
    command.env_remove("WGINFER_MODEL").env_remove("WGINFER_GPU");
    command.env("WGINFER_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn transcribe(line: &str, audio: &[&Path]) -> Output {
    wginfer("transcribe")
        .arg("-m")
        .arg(words())
        .args(line.split_whitespace())
        .args(audio)
        .output()
        .expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

#[track_caller]
fn succeeds(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Fails with `code` and one line that names `what`, and at most one hint; what is on standard output.
#[track_caller]
fn fails(output: &Output, code: i32, what: &str) -> String {
    let err = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{err}");
    assert!(!err.contains("panicked"), "{err}");
    let line = err.lines().rfind(|line| line.starts_with("error: ")).expect("a line with the error");
    assert!(line.contains(what), "`{what}` is not in: {line}");
    text(&output.stdout)
}

/// `01:02.345` or `00:01:02,345` in seconds.
fn seconds(time: &str) -> f64 {
    time.replace(',', ".")
        .split(':')
        .fold(0.0, |sum, part| 60.0 * sum + part.parse::<f64>().expect("a number"))
}

/// (start, end, text) of cues, which are blocks of lines apart by empty ones.
fn cues(text: &str) -> Vec<(f64, f64, String)> {
    let cue = |block: &str| {
        let mut lines = block.lines().skip_while(|line| !line.contains(" --> "));
        let (start, end) = lines.next()?.split_once(" --> ")?;
        Some((seconds(start), seconds(end), lines.collect::<Vec<_>>().join("\n")))
    };
    text.split("\n\n").filter_map(cue).collect()
}

#[test]
fn every_format_says_the_same() {
    if common::gpu().is_none() {
        return;
    }
    let run = |line: &str| succeeds(transcribe(line, &[&clip("en.flac")]));
    let phrases = phrases("en", "phrases");
    let near = |found: &[(f64, f64, String)], what: &str| {
        assert_eq!(found.len(), phrases.len(), "{what}: {found:?}");
        for ((start, end, text), phrase) in found.iter().zip(&phrases) {
            assert_eq!(text, phrase.text.trim(), "{what}");
            assert!(
                (start - phrase.start).abs() <= NEAR && (end - phrase.end).abs() <= NEAR,
                "{what}: {found:?}"
            );
        }
    };
    let lines: Vec<&str> = phrases.iter().map(|p| p.text.trim()).collect();
    assert_eq!(run(""), lines.join("\n") + "\n");
    let srt = run("--format srt");
    assert!(srt.starts_with("1\n00:00:00,"), "{srt}");
    near(&cues(&srt), "srt");
    let vtt = run("--format vtt");
    assert!(vtt.starts_with("WEBVTT\n\n00:00."), "{vtt}");
    near(&cues(&vtt), "vtt");
    let tsv = run("--format tsv");
    assert!(tsv.starts_with("start\tend\ttext\n"), "{tsv}");
    let rows = tsv.lines().skip(1).map(|line| {
        let cells: Vec<&str> = line.split('\t').collect();
        let seconds = |cell: &str| cell.parse::<f64>().expect("milliseconds") / 1000.0;
        (seconds(cells[0]), seconds(cells[1]), cells[2].to_string())
    });
    near(&rows.collect::<Vec<_>>(), "tsv");
    let json: Value = serde_json::from_str(&run("--json --word-timestamps")).expect("JSON");
    assert_eq!((&json["task"], &json["language"]), (&"transcribe".into(), &"english".into()));
    assert_eq!(json["text"], lines.join(" "));
    assert_eq!(
        json["words"].as_array().expect("words").len(),
        phrases.iter().map(|p| p.words.len()).sum::<usize>()
    );
    let json: Value = serde_json::from_str(&run("--format json")).expect("JSON");
    let segment = |s: &Value| {
        let number = |key: &str| s[key].as_f64().expect("seconds");
        (number("start"), number("end"), s["text"].as_str().expect("a text").trim().to_string())
    };
    near(&json["segments"].as_array().expect("segments").iter().map(segment).collect::<Vec<_>>(), "json");
    let ids = &golden(&words())["en"]["greedy_without_timestamps"];
    assert_eq!(
        run("--token-ids --no-timestamps --language en").trim(),
        ids.to_string().trim_matches(['[', ']']).replace(' ', "")
    );
}

#[test]
fn several_recordings_make_several_files() {
    if common::gpu().is_none() {
        return;
    }
    let dir = TempDir::new().expect("a folder");
    let missing = dir.path().join("missing.wav");
    let (en, de) = (clip("en.flac"), clip("de.flac"));
    let to = format!("--format srt --output-dir {}", dir.path().join("out").display());
    let output = transcribe(&to, &[&en, &missing, &de]);
    assert_eq!(fails(&output, 1, "missing.wav"), "");
    for name in ["en", "de"] {
        let srt = fs::read_to_string(dir.path().join("out").join(format!("{name}.srt"))).expect("a file");
        assert_eq!(cues(&srt).len(), 3, "{srt}");
    }
    // Token ids, too, are those of the others; if there are no others, every failure is printed.
    let output = transcribe("--token-ids --language en", &[&missing, &en, &missing]);
    assert_eq!(fails(&output, 1, "missing.wav").lines().count(), 1);
    let output = transcribe("", &[&missing, &dir.path().join("none.wav")]);
    assert_eq!(fails(&output, 1, "none.wav"), "");
    assert!(String::from_utf8_lossy(&output.stderr).contains("missing.wav"));
    let out = succeeds(transcribe("", &[&en, &de]));
    assert_eq!(out.matches("--- ").count(), 2, "{out}");
    fails(&transcribe("--format json", &[&en, &de]), 2, "--output-dir");
    fails(&transcribe(&to, &[&en, &en]), 2, "two recordings");
    let file = dir.path().join("one.vtt");
    let out = succeeds(transcribe(&format!("--format vtt --output {}", file.display()), &[&en]));
    assert_eq!((out.as_str(), cues(&fs::read_to_string(&file).expect("a file")).len()), ("", 3));
    fails(&transcribe("--output /nonexistent/x.txt", &[&en]), 1, "`/nonexistent/x.txt` cannot be written");
}

#[test]
fn raw_samples_from_standard_input() {
    if common::gpu().is_none() {
        return;
    }
    let mut pcm = Vec::new();
    Endless::new(7, 7).read_to_end(&mut pcm).expect("memory");
    let run = |line: &str, bytes: &[u8]| {
        let mut child = wginfer("transcribe -")
            .arg("-m")
            .arg(words())
            .args(line.split_whitespace())
            .spawn()
            .expect("it runs");
        let _ = child.stdin.take().expect("a pipe").write_all(bytes);
        child.wait_with_output().expect("it ends")
    };
    let expected: String =
        phrases("en", "phrases").iter().map(|p| p.text.trim().to_string() + "\n").collect();
    assert_eq!(succeeds(run("", &pcm)), expected);
    // The same in two channels of f32.
    let values = pcm.chunks(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 32768.0);
    let stereo: Vec<u8> = values.flat_map(|v| [v.to_le_bytes(), v.to_le_bytes()].concat()).collect();
    assert_eq!(succeeds(run("--channels 2 --sample-format f32le", &stereo)), expected);
    fails(&run("", &fs::read(clip("en.flac")).expect("a file")), 1, "a FLAC file");
    for line in ["", "--json", "--format vtt"] {
        assert_eq!(fails(&run(line, &[]), 1, "is empty"), "");
    }
    fails(&run("--sample-rate 5", &[]), 2, "");
    fails(&transcribe("--sample-rate 8000", &[&clip("en.flac")]), 2, "raw PCM");
}

/// [`Endless`] that counts what was read of it.
struct Counted(Endless, Arc<AtomicUsize>);

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        // What was read before has been written to the pipe.
        self.1.store(self.0.at, Ordering::SeqCst);
        self.0.read(out)
    }
}

/// What is done is beside the place of the file, which has what it had before.
#[test]
#[cfg(unix)]
fn signals_leave_a_valid_file() {
    if common::gpu().is_none() {
        return;
    }
    let dir = TempDir::new().expect("a folder");
    for (format, (signal, code)) in ["srt", "json", "vtt"].into_iter().zip(SIGNALS) {
        let (file, next) =
            (dir.path().join(format!("stdin.{format}")), dir.path().join(format!("en.{format}")));
        let partial = dir.path().join(format!("stdin.{format}.partial"));
        fs::write(&file, "before").expect("it can be written");
        let mut child = wginfer(&format!("transcribe - --format {format} --output-dir"))
            .arg(dir.path())
            .arg(clip("en.flac"))
            .arg("-m")
            .arg(words())
            .spawn()
            .expect("it runs");
        let mut pipe = child.stdin.take().expect("a pipe");
        let read = Arc::new(AtomicUsize::new(0));
        let mut speech = Counted(Endless::new(36_000, 7), read.clone());
        let feed = std::thread::spawn(move || std::io::copy(&mut speech, &mut pipe).map(drop));
        // More than one window of 30 s, and what a pipe holds: the first is done.
        program::wait_until("it reads", || read.load(Ordering::SeqCst) > 36 * 32_000);
        program::send(&child, signal);
        let output = child.wait_with_output().expect("it ends");
        feed.join().expect("it is fed").expect_err("nobody reads the rest");
        let err = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{err}");
        let said =
            format!("error: interrupted by SIG{signal}\nhint: what was done is in `{}`\n", partial.display());
        assert!(err.ends_with(&said), "{err}");
        assert_eq!(fs::read_to_string(&file).expect("a file"), "before");
        assert!(!next.exists(), "the next recording is not begun");
        let written = fs::read_to_string(&partial).expect("a file");
        let n = match format {
            "json" => {
                let json: Value = serde_json::from_str(&written).expect("valid JSON");
                assert_eq!(json["language"], "english");
                json["segments"].as_array().expect("segments").len()
            }
            _ => cues(&written).len(),
        };
        assert!(n >= 3, "{n} segments were done: {written}");
    }
}

/// An output is replaced when it is whole, and never one that is read.
#[test]
#[cfg(unix)]
fn recordings_are_not_destroyed() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let en = fs::read(clip("en.flac")).expect("a recording");
    for name in ["a.flac", "b.txt", "c.partial", "config.txt"] {
        fs::write(at(name), &en).expect("it can be written");
    }
    symlink("a.flac", at("soft")).expect("a link");
    fs::hard_link(at("a.flac"), at("hard.flac")).expect("a link");
    let to = |output: &str| format!("--output {}", at(output).display());
    let into = format!("--output-dir {}", dir.path().display());
    for (line, audio) in [
        (to("a.flac"), "a.flac"),
        (to("soft"), "a.flac"),
        (to("a.flac"), "soft"),
        (to("hard.flac"), "soft"),
        (to("c"), "c.partial"),
        (into.clone(), "b.txt"),
    ] {
        assert_eq!(fails(&transcribe(&line, &[&at(audio)]), 2, "is the same file as the input"), "");
    }
    for name in ["a.flac", "hard.flac", "b.txt", "c.partial"] {
        assert!(fs::read(at(name)).expect("a recording") == en, "{name}");
    }
    fails(&transcribe(&into, &[&at("a.flac"), &at("a.mp3")]), 2, "a.flac` and `");
    symlink("one.txt", at("hard.txt")).expect("a link");
    symlink("one.txt", at("a.txt")).expect("a link");
    fails(&transcribe(&into, &[&at("a.flac"), &at("hard.flac")]), 2, "two outputs are the same file");
    fails(
        &transcribe("--output /nonexistent/x.txt", &[&clip("en.flac")]),
        1,
        "`/nonexistent/x.txt` cannot be written",
    );
    if common::gpu().is_none() {
        return;
    }
    // The file behind the link has its new content, with its old permissions, and nothing else is left.
    fs::write(at("one.txt"), "before").expect("it can be written");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o640);
    fs::set_permissions(at("one.txt"), permissions).expect("it can be set");
    fs::write(at("one.txt.partial"), "left").expect("it can be written");
    succeeds(transcribe(&to("a.txt"), &[&at("a.flac")]));
    assert!(at("a.txt").is_symlink() && !at("one.txt.partial").exists());
    assert_eq!(fs::read_to_string(at("one.txt")).expect("a file").lines().count(), 3);
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(at("one.txt")).expect("a file"));
    assert_eq!(mode & 0o777, 0o640);
    // A recording that breaks: what is done is beside the place.
    fs::write(at("cut.flac"), &en[..en.len() * 2 / 3]).expect("it can be written");
    let output = transcribe(&to("one.txt"), &[&at("cut.flac")]);
    fails(&output, 1, "cut.flac");
    assert!(text(&output.stderr).contains("one.txt.partial`"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(at("one.txt")).expect("a file").lines().count(), 3);
    assert!((1..3).contains(&fs::read_to_string(at("one.txt.partial")).expect("a file").lines().count()));
}

#[test]
fn bad_input() {
    let dir = TempDir::new().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).expect("a file");
        path
    };
    fails(&transcribe("", &[Path::new("/nonexistent.wav")]), 1, "/nonexistent.wav");
    fails(&transcribe("", &[&write("empty.wav", b"")]), 1, "empty");
    fails(&transcribe("", &[&write("notes.txt", b"one two three")]), 1, "not a recording");
    fails(&transcribe("--language xx", &[&clip("en.flac")]), 2, "language `xx`");
    fails(&transcribe("--beam-size 0", &[&clip("en.flac")]), 2, "beam_size");
    fails(&transcribe("--offset=-1", &[&clip("en.flac")]), 2, "offset");
    fails(&transcribe("--temperature nan", &[&clip("en.flac")]), 2, "temperature");
    let line = "transcribe --model";
    let llama = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    fails(
        &wginfer(line).arg(&llama).arg(clip("en.flac")).output().expect("it runs"),
        1,
        "`llama` has no audio encoder",
    );
    fails(&wginfer("transcribe x.wav").output().expect("it runs"), 2, "--model");
    if common::gpu().is_none() {
        return;
    }
    let output = wginfer("generate hello --model").arg(words()).output().expect("it runs");
    fails(&output, 1, "`whisper`");
    assert!(text(&output.stderr).contains("wginfer transcribe"), "{}", text(&output.stderr));

    // Cut off: what is there is written, then it fails.
    let flac = fs::read(clip("en.flac")).expect("a file");
    let output = transcribe("", &[&write("cut.flac", &flac[..flac.len() * 2 / 3])]);
    let out = fails(&output, 1, "cut.flac");
    assert!(out.starts_with(phrases("en", "phrases")[0].text.trim()), "{out}");
    // One sample, less than a frame, silence: nothing to write, and nothing wrong.
    for n in [1, 100, 16_000] {
        let path = write(&format!("{n}.wav"), &wav(16_000, 1, &vec![0; n]));
        assert_eq!(succeeds(transcribe("", &[&path])), "");
    }
    // Seven channels at 8 kHz: what was said up to 4 kHz is still there.
    let mut samples = Vec::new();
    reader("en.flac").read(usize::MAX, &mut samples).expect("samples");
    let half = samples.chunks(2).map(|pair| (pair.iter().sum::<f32>() / pair.len() as f32 * 32767.0) as i16);
    let path = write("seven.wav", &wav(8_000, 7, &half.flat_map(|s| [s; 7]).collect::<Vec<_>>()));
    let out = succeeds(transcribe("--language en --format tsv", &[&path]));
    assert!(out.lines().count() >= 2, "{out}");
}

/// A WAV file of 16-bit samples.
fn wav(sample_rate: u32, n_channels: u16, samples: &[i16]) -> Vec<u8> {
    let n_bytes = 2 * samples.len() as u32;
    let mut file = b"RIFF".to_vec();
    file.extend((36 + n_bytes).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0\x01\0");
    file.extend(n_channels.to_le_bytes());
    file.extend(sample_rate.to_le_bytes());
    file.extend((sample_rate * u32::from(n_channels) * 2).to_le_bytes());
    file.extend((n_channels * 2).to_le_bytes());
    file.extend(b"\x10\0data");
    file.extend(n_bytes.to_le_bytes());
    file.extend(samples.iter().flat_map(|s| s.to_le_bytes()));
    file
}
