//! Everything that wginfer does here. It records command buffers, and the renderer submits them with its own: nothing in
//! this file submits or waits.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use wginfer::audio::AudioReader;
use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Engine, EngineOptions, Loading, Logits, Request, Sampling};
use wginfer::gpu::{Gpu, Tensor};
use wginfer::tasks::transcribe::{TranscribeOptions, Transcriber, TranscriptEvent, Transcription};
use wginfer::tasks::{Chat, Engines, Events, Task};
use wginfer::text::{Delta, Message};
use wginfer::wgpu::CommandBuffer;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The feelings among which the player's line is classified.
pub const LABELS: [&str; 4] = ["happy", "sad", "afraid", "angry"];

/// The row of [`Engine::kept`] with the probabilities of the line's labels.
pub const ROW: usize = 0;

/// Tokens of an answer: more than a bubble holds say little.
const MAX_TOKENS: usize = 90;

/// A model from its files to its engine.
enum Model<T> {
    /// A thread opens the files: they are parsed there.
    Opening(Receiver<Result<(Loading<Engine>, T), Failure>>),
    /// Weights are uploaded in the renderer's frames.
    Loading(Loading<Engine>, T),
    Ready(Engine, T),
    /// Between two states, and after an error.
    None,
}

impl<T: Send + 'static> Model<T> {
    fn open(open: impl FnOnce() -> Result<(Loading<Engine>, T), Failure> + Send + 'static) -> Self {
        let (send, opened) = channel();
        std::thread::spawn(move || send.send(open()));
        Model::Opening(opened)
    }

    /// The engine's next work, or the load's.
    fn advance(&mut self, budget: Duration) -> Result<Vec<CommandBuffer>, Failure> {
        match std::mem::replace(self, Model::None) {
            Model::Opening(opened) => match opened.try_recv() {
                Ok(opened) => {
                    let (loading, extra) = opened?;
                    *self = Model::Loading(loading, extra);
                }
                Err(_) => *self = Model::Opening(opened),
            },
            Model::Loading(loading, extra) if loading.is_done() => {
                *self = Model::Ready(loading.finish()?, extra);
            }
            other => *self = other,
        }
        Ok(match self {
            Model::Loading(loading, _) => loading.advance(budget)?,
            Model::Ready(engine, _) => engine.advance(budget)?,
            Model::Opening(_) | Model::None => Vec::new(),
        })
    }

    fn is_busy(&self) -> bool {
        match self {
            Model::Loading(..) => true,
            Model::Ready(engine, _) => !engine.is_idle(),
            Model::Opening(_) | Model::None => false,
        }
    }
}

/// The fox that talks, and the radio that it listens to.
pub struct Guest {
    language: Model<()>,
    speech: Model<Transcriber>,
    fox: Option<Chat>,
    radio: Option<Transcription>,
    /// What the player said and nobody has answered.
    line: Option<String>,
    recording: Option<PathBuf>,
    /// The fox's answer so far.
    pub answer: String,
    /// What the radio said.
    pub heard: String,
    /// Whether nothing has been heard of the latest recording.
    is_new: bool,
    pub n_tokens: usize,
    pub n_answers: usize,
    pub n_transcripts: usize,
    last_word: Option<Instant>,
}

impl Guest {
    pub fn new(gpu: &Gpu, assets: PathBuf) -> Guest {
        let (language, speech) = (gpu.clone(), gpu.clone());
        Guest {
            language: Model::open(move || {
                let options =
                    EngineOptions { max_seqs: 2, ctx: Some(512), kept_rows: 1, ..Default::default() };
                Ok((Engine::loading(&language, ModelFiles::demo()?, options)?, ()))
            }),
            speech: Model::open(move || {
                let files = ModelFiles::open(&assets.join("whisper-words"))?;
                let transcriber = Transcriber::new(&files, TranscribeOptions::default())?;
                let options = transcriber.engine_options(EngineOptions { max_seqs: 1, ..Default::default() });
                Ok((Engine::loading(&speech, files, options)?, transcriber))
            }),
            fox: None,
            radio: None,
            line: None,
            recording: None,
            answer: String::new(),
            heard: String::new(),
            is_new: true,
            n_tokens: 0,
            n_answers: 0,
            n_transcripts: 0,
            last_word: None,
        }
    }

    /// The player says something: the fox answers, and the feeling of the line is classified.
    pub fn say(&mut self, line: &str) {
        self.line = Some(line.to_string());
    }

    /// The radio plays a recording.
    pub fn play(&mut self, recording: PathBuf) {
        self.recording = Some(recording);
    }

    pub fn is_talking(&self) -> bool {
        self.last_word.is_some_and(|last| last.elapsed() < Duration::from_millis(250))
    }

    pub fn is_listening(&self) -> bool {
        self.radio.is_some()
    }

    /// Whether both models are loaded and nothing is to be done.
    pub fn is_idle(&self) -> bool {
        let is_ready = matches!((&self.language, &self.speech), (Model::Ready(..), Model::Ready(..)));
        is_ready
            && self.line.is_none()
            && self.fox.is_none()
            && self.recording.is_none()
            && self.radio.is_none()
    }

    /// The progress of loading, from 0 to 1; `None` once the fox can talk.
    pub fn loaded(&self) -> Option<f32> {
        match &self.language {
            Model::Loading(loading, _) => {
                let progress = loading.progress();
                Some(progress.done_bytes as f32 / progress.total_bytes.max(1) as f32)
            }
            Model::Ready(..) => None,
            Model::Opening(_) | Model::None => Some(0.0),
        }
    }

    /// The device's table of probabilities, and the tokens of the labels, once the model is loaded.
    pub fn probabilities(&self) -> Option<(Tensor, [u32; LABELS.len()])> {
        let Model::Ready(engine, ()) = &self.language else { return None };
        let tokenizer = engine.tokenizer()?;
        let first = |label: &str| Some(*tokenizer.encode_plain(label).ok()?.first()?);
        let tokens = LABELS.map(first);
        let tokens = tokens.iter().copied().collect::<Option<Vec<u32>>>()?;
        Some((engine.kept()?.clone(), tokens.try_into().ok()?))
    }

    /// Command buffers of about `budget` of device time, to submit before or after the renderer's own.
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<CommandBuffer>, Failure> {
        self.begin()?;
        if let (Model::Ready(engine, ()), Some(fox)) = (&mut self.language, &mut self.fox) {
            fox.advance(&mut Engines::from(engine));
        }
        if let (Model::Ready(engine, _), Some(radio)) = (&mut self.speech, &mut self.radio) {
            radio.advance(&mut Engines::from(engine));
        }
        let n_busy = u32::from(self.language.is_busy()) + u32::from(self.speech.is_busy());
        let share = budget / n_busy.max(1);
        let mut buffers = self.language.advance(share)?;
        buffers.extend(self.speech.advance(share)?);
        Ok(buffers)
    }

    /// Begins what has been asked for, once its model is loaded.
    fn begin(&mut self) -> Result<(), Failure> {
        if let (Model::Ready(engine, ()), Some(line)) = (&mut self.language, self.line.take()) {
            let tokenizer = engine.tokenizer().ok_or("the model has no tokenizer")?.clone();
            let mut fox = Chat::new(&tokenizer, Sampling { temperature: 0.7, ..Sampling::default() })?;
            fox.max_tokens = Some(MAX_TOKENS);
            fox.say(&line);
            self.fox = Some(fox);
            self.answer.clear();

            // The answer to this question is one word: its probabilities stay on the device.
            let question = format!("Text:\n{line}\n\nHow does this text feel: happy, sad, afraid or angry?");
            let template = tokenizer.chat_template()?;
            let prompt = template.render(&[Message::user(question)], true, &Default::default())?;
            engine.submit(Request {
                logits: Some(Logits::Kept { row: ROW, softmax: true }),
                ..Request::new(tokenizer.encode(&prompt, false)?)
            })?;
        }
        if let (Model::Ready(engine, transcriber), Some(recording)) = (&self.speech, &self.recording) {
            self.radio = Some(transcriber.begin(engine, AudioReader::open(recording)?)?);
            self.recording = None;
            self.is_new = true;
        }
        Ok(())
    }

    /// Takes what has arrived. Never waits.
    pub fn observe(&mut self) -> Result<(), Failure> {
        if let Model::Ready(engine, ()) = &mut self.language {
            let mut events = Events::from(engine.events()?);
            if let Some(fox) = &mut self.fox {
                fox.observe(&mut events);
                while let Some(piece) = fox.progress() {
                    let (Delta::Content(text) | Delta::Reasoning(text)) = piece;
                    self.answer += &text;
                    self.last_word = Some(Instant::now());
                }
                if fox.is_done() {
                    self.n_tokens += fox.finish()?.usage.completion_tokens;
                    self.n_answers += 1;
                    self.fox = None;
                }
            }
        }
        if let Model::Ready(engine, _) = &mut self.speech {
            let mut events = Events::from(engine.events()?);
            if let Some(radio) = &mut self.radio {
                radio.observe(&mut events);
                while let Some(event) = radio.progress() {
                    if let TranscriptEvent::Segment(segment) = event {
                        if std::mem::take(&mut self.is_new) {
                            self.heard.clear();
                        }
                        self.heard += &segment.text;
                    }
                }
                if radio.is_done() {
                    radio.finish()?;
                    self.n_transcripts += 1;
                    self.radio = None;
                }
            }
        }
        Ok(())
    }
}
