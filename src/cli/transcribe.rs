//! `wginfer transcribe`: speech to text.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use indicatif::ProgressBar;
use wginfer::audio::{AudioReader, PcmFormat, PcmSample, SAMPLE_RATE};
use wginfer::engine::{Engine, EngineOptions};
use wginfer::tasks::transcribe::{
    Segment, SpeechTask, TranscribeOptions, Transcriber, Transcript, TranscriptEvent, TranscriptFormat,
    TranscriptWriter, language_name,
};
use wginfer::tasks::{self, Engines};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::interrupt::Unfinished;
use super::output::{self, Inputs, Output, Target};
use super::{format, terminal};

const EXAMPLES: &str = "Examples:
  wginfer transcribe -m ~/models/whisper-small talk.mp3
  wginfer transcribe -m ~/models/whisper-small film.mp4 --format srt --output film.srt
  wginfer transcribe -m ~/models/whisper-small *.flac --format json --word-timestamps --output-dir transcripts
  arecord -f S16_LE -r 16000 -t raw | wginfer transcribe -m ~/models/whisper-small - --language de

Segments are written as they are decoded, JSON at the end. A file is written as `NAME.partial` and renamed when it is
whole; Ctrl-C stops and leaves the valid transcript so far there.";

/// Transcribe speech
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Sound files, or videos with sound; `-` is raw PCM from standard input
    #[arg(required = true)]
    audio: Vec<PathBuf>,

    /// Spoken language, as `en` or `english`. Default: detected
    #[arg(long, value_name = "LANGUAGE")]
    language: Option<String>,

    /// Translate to English
    #[arg(long)]
    translate: bool,

    /// Compute the times of words: segments begin and end with their words, and JSON lists the words
    #[arg(long)]
    word_timestamps: bool,

    /// One segment per window, with no timestamps from the model
    #[arg(long)]
    no_timestamps: bool,

    /// Format of the transcript; `json` is OpenAI's `verbose_json`
    #[arg(long, value_name = "FORMAT", default_value = "text", help_heading = "Output")]
    format: OutputFormat,

    /// Same as `--format json`
    #[arg(long, conflicts_with = "format", help_heading = "Output")]
    json: bool,

    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE", conflicts_with = "output_dir", help_heading = "Output")]
    output: Option<PathBuf>,

    /// Write one file per recording into this folder, named as the recording
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    output_dir: Option<PathBuf>,

    /// Write only the token ids of the first window, chosen greedily, with no check of their quality
    #[arg(long, help_heading = "Output", conflicts_with_all = ["format", "json", "output", "output_dir", "word_timestamps",
        "beam_size", "batch_size", "vad"])]
    token_ids: bool,

    /// Temperature of the first attempt
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    temperature: f32,

    /// Added for each further attempt, up to 1, while the text fails a threshold; 0 makes one attempt
    #[arg(
        long,
        value_name = "T",
        default_value_t = 0.2,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    temperature_increment_on_fallback: f32,

    /// A window's text fails if it compresses better than this, because it repeats itself
    #[arg(
        long,
        value_name = "X",
        default_value_t = 2.4,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    compression_ratio_threshold: f64,

    /// A window's text fails if its mean log-probability is lower than this
    #[arg(long, value_name = "X", default_value_t = -1.0, allow_negative_numbers = true, help_heading = "Decoding")]
    logprob_threshold: f64,

    /// A window is silent if its probability of no speech is higher than this and its log-probability fails
    #[arg(
        long,
        value_name = "P",
        default_value_t = 0.6,
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    no_speech_threshold: f64,

    /// Candidates at temperatures above 0, of which the best is chosen
    #[arg(long, value_name = "N", default_value_t = 5, help_heading = "Decoding")]
    best_of: usize,

    /// Beams of the beam search at temperature 0. Default: greedy decoding
    #[arg(long, value_name = "N", help_heading = "Decoding")]
    beam_size: Option<usize>,

    /// A beam search ends when it has this many finished texts per beam
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        requires = "beam_size",
        allow_negative_numbers = true,
        help_heading = "Decoding"
    )]
    patience: f32,

    /// Exponent, from 0 to 1, of the length by which candidates are compared. Default: their mean log-probability
    #[arg(long, value_name = "ALPHA", allow_negative_numbers = true, help_heading = "Decoding")]
    length_penalty: Option<f32>,

    /// Maximum number of tokens of a window. Default: half the model's context
    #[arg(long, value_name = "N", help_heading = "Decoding")]
    max_tokens: Option<usize>,

    /// Text before the first window, to suggest names and spelling
    #[arg(long, value_name = "TEXT", help_heading = "Decoding")]
    initial_prompt: Option<String>,

    /// Decode each window independently of the text before it
    #[arg(long, help_heading = "Decoding")]
    no_condition_on_previous_text: bool,

    /// Seed of the sampling at temperatures above 0
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Decoding")]
    seed: u64,

    /// Windows that are decoded in one batch; with more than 1, the recording is cut where it is quiet, and each window
    /// is decoded independently of the text before it
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Recording")]
    batch_size: usize,

    /// Skip parts that are too quiet to be speech, by their energy. Default: all parts are transcribed
    #[arg(long, help_heading = "Recording")]
    vad: bool,

    /// Seconds to skip at the beginning
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.0,
        allow_negative_numbers = true,
        help_heading = "Recording"
    )]
    offset: f64,

    /// Seconds to transcribe. Default: all
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, help_heading = "Recording")]
    duration: Option<f64>,

    /// Raw PCM: samples per second. Default: 16000
    #[arg(long, value_name = "HZ", value_parser = clap::value_parser!(u32).range(1_000..=768_000),
        help_heading = "Recording")]
    sample_rate: Option<u32>,

    /// Raw PCM: channels. Default: 1
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Recording")]
    channels: Option<u16>,

    /// Raw PCM: format of a sample. Default: s16le
    #[arg(long, value_name = "FORMAT", help_heading = "Recording")]
    sample_format: Option<SampleFormat>,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    Text,
    Srt,
    Vtt,
    Json,
    Tsv,
}

impl OutputFormat {
    fn library(self) -> TranscriptFormat {
        match self {
            OutputFormat::Text => TranscriptFormat::Text,
            OutputFormat::Srt => TranscriptFormat::Srt,
            OutputFormat::Vtt => TranscriptFormat::Vtt,
            OutputFormat::Json => TranscriptFormat::Json,
            OutputFormat::Tsv => TranscriptFormat::Tsv,
        }
    }
}

/// ffmpeg's names.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SampleFormat {
    S16le,
    F32le,
}

/// Figures of one transcription.
struct Figures {
    /// Seconds of sound transcribed.
    seconds: f64,
    elapsed: Duration,
    n_tokens: usize,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let outputs = args.outputs()?;
    if args.model.model.as_deref().is_none_or(|model| model.is_empty()) {
        let hint = "a folder in Hugging Face layout, such as `hf download openai/whisper-small` fetches";
        return Err(Failure::usage("no speech model was given, expected `--model DIR`").with_hint(hint));
    }
    let inputs = Inputs::default().model(&args.model).files(&args.audio);
    let outputs = output::plan(&outputs, &inputs)?;
    let checkpoint = args.model.open()?;
    let transcriber = Transcriber::new(&checkpoint, args.options())?;
    // One that can be opened is needed before a model is loaded. The others are opened in their turn: there may be more of
    // them than files that a process can have open.
    let mut opened = Vec::new();
    while let Some(path) = args.audio.get(opened.len()) {
        opened.push(args.open(path));
        if opened.last().is_some_and(Result::is_ok) {
            break;
        }
    }
    let mut failures = Failures(None);
    if opened.iter().all(Result::is_err) {
        opened.into_iter().filter_map(Result::err).for_each(|failure| failures.push(failure));
        return failures.last();
    }
    let mut engine = args.device.load(checkpoint, transcriber.engine_options(EngineOptions::default()))?;

    let n = args.audio.len();
    let rest = args.audio[opened.len()..].iter().map(|path| args.open(path));
    for (i, reader) in opened.into_iter().chain(rest).enumerate() {
        let name = args.audio[i].display();
        let result = reader.and_then(|reader| {
            if args.token_ids {
                return token_ids(&transcriber, &mut engine, reader, out);
            }
            match outputs.get(i) {
                Some(target) => log::info!("{name} -> {}", target.path().display()),
                None if n > 1 => {
                    writeln!(out, "--- {} ---", format::escaped(&name.to_string()))?;
                    out.flush()?;
                }
                None => {}
            }
            transcribe(args, &transcriber, &mut engine, reader, outputs.get(i))
        });
        match result {
            Ok(()) => {}
            Err(Failure::ClosedPipe) => return Err(Failure::ClosedPipe),
            // The other recordings may be readable.
            Err(failure) => failures.push(failure),
        }
    }
    failures.last()
}

/// The failures of recordings. All but the last are printed, which ends the program.
struct Failures(Option<Failure>);

impl Failures {
    fn push(&mut self, failure: Failure) {
        if let Some(earlier) = self.0.replace(failure) {
            terminal::error(&earlier);
        }
    }

    fn last(self) -> Result<(), Failure> {
        self.0.map_or(Ok(()), Err)
    }
}

impl Args {
    /// The format of the transcript.
    fn format(&self) -> OutputFormat {
        if self.json { OutputFormat::Json } else { self.format }
    }

    fn options(&self) -> TranscribeOptions {
        let (first, increment) = (self.temperature, self.temperature_increment_on_fallback);
        let mut temperatures = vec![first];
        if increment > 0.0 && !self.token_ids {
            // At least a hundredth apart: more attempts are of no use.
            let next = |i: u32| first + increment.max(0.01) * i as f32;
            temperatures.extend((1..).map(next).take_while(|t| *t <= 1.0 + 1e-6));
        }
        let threshold = |value| Some(value).filter(|_| !self.token_ids);
        TranscribeOptions {
            language: self.language.clone(),
            task: if self.translate { SpeechTask::Translate } else { SpeechTask::Transcribe },
            timestamps: !self.no_timestamps,
            word_timestamps: self.word_timestamps,
            temperatures,
            compression_ratio_threshold: threshold(self.compression_ratio_threshold),
            logprob_threshold: threshold(self.logprob_threshold),
            no_speech_threshold: threshold(self.no_speech_threshold),
            condition_on_previous_text: !self.no_condition_on_previous_text,
            initial_prompt: self.initial_prompt.clone(),
            best_of: self.best_of,
            beam_size: self.beam_size,
            patience: self.patience,
            length_penalty: self.length_penalty,
            max_tokens: self.max_tokens,
            batch_size: self.batch_size,
            vad: self.vad,
            offset: self.offset,
            duration: self.duration,
            seed: self.seed,
        }
    }

    /// The file of each recording's transcript; none where they go to standard output.
    fn outputs(&self) -> Result<Vec<PathBuf>, Failure> {
        let n = self.audio.len();
        let is_stdin = |path: &PathBuf| path.as_os_str() == "-";
        let n_stdin = self.audio.iter().filter(|path| is_stdin(path)).count();
        if n_stdin > 1 {
            return Err(Failure::usage("standard input can be read once"));
        }
        let raw = self.sample_rate.is_some() || self.channels.is_some() || self.sample_format.is_some();
        if raw && n_stdin == 0 {
            let message =
                "`--sample-rate`, `--channels` and `--sample-format` describe raw PCM, expected `-` as input";
            return Err(Failure::usage(message).with_hint("sound files name their format themselves"));
        }
        if n > 1
            && (self.output.is_some()
                || (self.output_dir.is_none() && self.format() != OutputFormat::Text && !self.token_ids))
        {
            let message = format!("{n} recordings make {n} files, expected `--output-dir`");
            return Err(Failure::usage(message));
        }
        let Some(dir) = &self.output_dir else { return Ok(self.output.iter().cloned().collect()) };
        let mut outputs: Vec<PathBuf> = Vec::new();
        for path in &self.audio {
            let stem = if is_stdin(path) { Some("stdin".as_ref()) } else { path.file_stem() };
            let mut name = stem.unwrap_or(path.as_os_str()).to_os_string();
            name.push(".");
            name.push(self.format().library().extension());
            let output = dir.join(name);
            if let Some(i) = outputs.iter().position(|other| *other == output) {
                let (other, path) = (self.audio[i].display(), path.display());
                let message = format!(
                    "two recordings would be written to `{}`: `{other}` and `{path}`",
                    output.display()
                );
                return Err(
                    Failure::usage(message).with_hint("transcribe one of them on its own, with `--output`")
                );
            }
            outputs.push(output);
        }
        std::fs::create_dir_all(dir).map_err(|e| {
            let message = format!("`{}` cannot be made a folder for the transcripts: {e}", dir.display());
            Failure::failed(message)
        })?;
        Ok(outputs)
    }

    fn open(&self, path: &Path) -> Result<AudioReader, Failure> {
        if path.as_os_str() != "-" {
            return Ok(AudioReader::open(path)?);
        }
        let format = PcmFormat {
            sample_rate: self.sample_rate.unwrap_or(SAMPLE_RATE),
            n_channels: self.channels.unwrap_or(1).into(),
            sample: match self.sample_format {
                Some(SampleFormat::F32le) => PcmSample::F32Le,
                Some(SampleFormat::S16le) | None => PcmSample::S16Le,
            },
        };
        Ok(AudioReader::pcm(std::io::stdin(), format)?)
    }
}

/// A transcript as far as it is written.
struct Draft {
    format: TranscriptFormat,
    /// Until the first segment.
    out: Option<Output>,
    /// From then on.
    writer: Option<TranscriptWriter<Output>>,
    n_segments: usize,
    /// As far as it is known; in JSON, with all segments.
    transcript: Transcript,
}

impl Draft {
    fn writer(&mut self) -> std::io::Result<Option<&mut TranscriptWriter<Output>>> {
        if let Some(out) = self.out.take() {
            self.writer = Some(TranscriptWriter::new(out, self.format)?);
        }
        Ok(self.writer.as_mut())
    }

    fn segment(&mut self, segment: Segment) -> std::io::Result<()> {
        self.n_segments += 1;
        if let Some(writer) = self.writer()? {
            writer.segment(&segment)?;
        }
        // The other formats are written by now, and a recording may be long.
        if self.format == TranscriptFormat::Json {
            self.transcript.segments.push(segment);
        }
        Ok(())
    }

    /// Writes the end.
    fn finish(mut self) -> std::io::Result<Option<Output>> {
        self.writer()?;
        self.writer.map(|writer| writer.finish(&self.transcript)).transpose()
    }

    /// Writes the end of what is done so far. Returns the file that it is in.
    fn leave(self) -> Option<PathBuf> {
        self.finish().ok()??.leave()
    }
}

/// Writes one recording's transcript as it is decoded: to `target`, or to standard output.
fn transcribe(
    args: &Args,
    transcriber: &Transcriber,
    engine: &mut Engine,
    reader: AudioReader,
    target: Option<&Target>,
) -> Result<(), Failure> {
    let begin = Instant::now();
    let mut transcription = transcriber.begin(engine, reader)?;
    let out = output::create(target)?;
    let bar = terminal::seconds(transcription.duration());
    let mut figures = Figures { seconds: 0.0, elapsed: Duration::ZERO, n_tokens: 0 };
    let draft = Draft {
        format: args.format().library(),
        out: Some(out),
        writer: None,
        n_segments: 0,
        transcript: Transcript {
            task: if args.translate { SpeechTask::Translate } else { SpeechTask::Transcribe },
            language: transcription.language().map(str::to_string),
            duration: transcription.duration(),
            segments: Vec::new(),
        },
    };
    let draft = Unfinished::new(draft, Draft::leave);
    let mut written = Ok(());
    let result = tasks::run(&mut transcription, &mut Engines::from(engine), |event| {
        if let (Some(event), Ok(())) = (event, &written) {
            written = write_event(event, &draft, &bar, &mut figures);
        }
        if written.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    terminal::finish(&bar);
    figures.elapsed = begin.elapsed();
    let done: Result<(), Failure> = draft.finish(|mut draft| {
        written?;
        draft.transcript.language = transcription.language().map(str::to_string);
        draft.transcript.duration = transcription.duration();
        match result {
            Ok(_) => draft.finish()?.map_or(Ok(()), Output::commit),
            // Not a word of it can be used: nothing is written.
            Err(error) if draft.n_segments == 0 => Err(error.into()),
            Err(error) => {
                let failure = Failure::from(error);
                Err(match draft.leave() {
                    Some(file) => failure.with_hint(format!("what was done is in `{}`", file.display())),
                    None => failure,
                })
            }
        }
    });
    if figures.n_tokens > 0 || done.is_ok() {
        report(&figures, args.offset);
    }
    done
}

/// Writes one event of a transcription, and counts it.
fn write_event(
    event: TranscriptEvent,
    draft: &Unfinished<Draft>,
    bar: &ProgressBar,
    figures: &mut Figures,
) -> std::io::Result<()> {
    match event {
        TranscriptEvent::Language { code, probability } => {
            log::info!("language: {} ({:.0} %)", language_name(code), 100.0 * probability);
            draft.update(|draft| draft.transcript.language = Some(code.to_string()));
        }
        // A signal waits for the draft, not for the bar.
        TranscriptEvent::Segment(segment) => {
            draft.update(|draft| bar.suspend(|| draft.segment(segment)))?;
        }
        TranscriptEvent::Window { until, tokens } => {
            // A stream's length is unknown.
            bar.set_length(bar.length().unwrap_or(0).max(until as u64));
            bar.set_position(until as u64);
            figures.seconds = until;
            figures.n_tokens += tokens.len();
            draft.update(|draft| draft.transcript.duration = draft.transcript.duration.max(until));
        }
    }
    Ok(())
}

/// The line of figures.
fn report(figures: &Figures, offset: f64) {
    let elapsed = figures.elapsed.as_secs_f64().max(1e-3);
    let seconds = (figures.seconds - offset).max(0.0);
    log::info!(
        "{seconds:.1} s of sound in {elapsed:.1} s: {:.1} × real time · {} tokens, {:.0} tok/s",
        seconds / elapsed,
        figures.n_tokens,
        figures.n_tokens as f64 / elapsed,
    );
}

/// Writes the token ids of a recording's first window.
fn token_ids(
    transcriber: &Transcriber,
    engine: &mut Engine,
    reader: AudioReader,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut ids = String::new();
    transcriber.transcribe(engine, reader, |event| match event {
        TranscriptEvent::Window { tokens, .. } => {
            let list: Vec<String> = tokens.iter().map(u32::to_string).collect();
            ids = list.join(",");
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    })?;
    Ok(writeln!(out, "{ids}")?)
}
