//! The window: settings on the left, the conversation on the right. In each frame the models get their milliseconds, and
//! what they have computed is shown.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use eframe::egui::{self, Align, Color32, CornerRadius, Key, Layout, Margin, RichText, ScrollArea, Ui};
use eframe::{CreationContext, Frame};
use wginfer::audio::AudioReader;
use wginfer::dtype::Dtype;
use wginfer::engine::{EngineOptions, Sampling};
use wginfer::gpu::{Gpu, GpuOptions};
use wginfer::tasks::transcribe::{TranscribeOptions, Transcriber, TranscriptEvent, Transcription};
use wginfer::tasks::{Chat, Engines, Events, Task};
use wginfer::text::Delta;

use crate::Args;
use crate::model::{Failure, Model, for_chat};
use crate::plot::Plot;

/// Who says something in the conversation.
#[derive(Clone, Copy, PartialEq)]
enum Who {
    You,
    Model,
    /// The name of a recording.
    Recording,
    Error,
}

struct Message {
    who: Who,
    title: String,
    text: String,
}

pub struct Desk {
    gpu: Gpu,
    args: Args,
    language: Model<Sampling>,
    speech: Model<Transcriber>,
    chat: Option<Chat>,
    transcription: Option<Transcription>,
    /// Recordings that wait.
    dropped: VecDeque<PathBuf>,
    messages: Vec<Message>,
    typed: String,
    /// A message that waits for the model.
    unsaid: Option<String>,

    model_name: String,
    quantize: Option<Dtype>,
    sampling: Sampling,
    max_tokens: usize,
    budget_ms: f32,

    frame_plot: Plot,
    token_plot: Plot,
    last_frame: Option<Instant>,
    frame_ms: Vec<f64>,
    /// When the last pieces of text arrived.
    pieces: VecDeque<Instant>,
    n_tokens: usize,
    n_transcripts: usize,
    is_saved: Arc<AtomicBool>,
}

impl Desk {
    pub fn new(creation: &CreationContext<'_>, args: Args) -> Result<Desk, Failure> {
        let state = creation.wgpu_render_state.as_ref().ok_or("egui renders without wgpu")?;
        let options = GpuOptions {
            adapter: Some(state.adapter.clone()),
            cache_dir: Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cache")),
            ..GpuOptions::default()
        };
        let gpu = Gpu::adopt_with(state.device.clone(), state.queue.clone(), &options)?;
        creation.egui_ctx.set_visuals(egui::Visuals::dark());
        let mut desk = Desk {
            gpu,
            language: Model::None,
            speech: Model::None,
            chat: None,
            transcription: None,
            dropped: args.transcribe.iter().cloned().collect(),
            messages: Vec::new(),
            typed: String::new(),
            unsaid: args.say.clone(),
            model_name: args.model.clone(),
            quantize: None,
            sampling: Sampling::default(),
            max_tokens: 256,
            budget_ms: args.budget_ms,
            frame_plot: Plot::new("frame", "ms", Color32::from_rgb(110, 170, 255), 240),
            token_plot: Plot::new("text", "tokens/s", Color32::from_rgb(255, 170, 80), 240),
            last_frame: None,
            frame_ms: Vec::new(),
            pieces: VecDeque::new(),
            n_tokens: 0,
            n_transcripts: 0,
            is_saved: Arc::default(),
            args,
        };
        desk.load();
        Ok(desk)
    }

    /// Begins to load the model whose name stands in the window. The one before is dropped.
    fn load(&mut self) {
        let quantize = self.quantize;
        self.chat = None;
        self.language =
            Model::open(&self.gpu, self.model_name.clone(), move |files| Ok(for_chat(files, quantize)));
    }

    /// One step of everything, and the submission of what was recorded. Never waits.
    fn step(&mut self, queue: &wginfer::wgpu::Queue) -> Result<(), Failure> {
        let n_busy = u32::from(self.language.is_busy()) + u32::from(self.speech.is_busy());
        let share = Duration::from_secs_f32(self.budget_ms / 1e3) / n_busy.max(1);
        let was_ready = self.language.engine().is_some();
        if let (Some(engine), Some(chat)) = (self.language.engine(), &mut self.chat) {
            chat.advance(&mut Engines::from(engine));
        }
        queue.submit(self.language.advance(share)?);
        if let (false, Model::Ready(engine, sampling)) = (was_ready, &self.language) {
            self.sampling = sampling.clone();
            let tokenizer = engine.tokenizer().ok_or("the model has no tokenizer")?;
            self.chat = Some(Chat::new(tokenizer, sampling.clone())?);
        }
        if self.can_say()
            && let Some(text) = self.unsaid.take()
        {
            self.say(&text);
        }
        self.hear_model()?;
        self.step_transcription(queue, share)
    }

    fn can_say(&self) -> bool {
        self.chat.as_ref().is_some_and(|chat| chat.is_done())
    }

    fn say(&mut self, text: &str) {
        let Some(chat) = &mut self.chat else { return };
        chat.sampling = self.sampling.clone();
        chat.max_tokens = Some(self.max_tokens);
        chat.say(text);
        self.messages.push(Message { who: Who::You, title: "you".into(), text: text.into() });
        let title = match self.model_name.trim() {
            "" => "demonstration model",
            name => name,
        };
        self.messages.push(Message { who: Who::Model, title: title.into(), text: String::new() });
        self.pieces.clear();
    }

    /// Shows what the model has written.
    fn hear_model(&mut self) -> Result<(), Failure> {
        let Some(engine) = self.language.engine() else { return Ok(()) };
        let mut events = Events::from(engine.events()?);
        let Some(chat) = &mut self.chat else { return Ok(()) };
        let was_done = chat.is_done();
        chat.observe(&mut events);
        let now = Instant::now();
        while let Some(piece) = chat.progress() {
            let (Delta::Content(text) | Delta::Reasoning(text)) = piece;
            if let Some(message) = self.messages.iter_mut().rev().find(|message| message.who == Who::Model) {
                message.text += &text;
            }
            self.pieces.push_back(now);
        }
        while self.pieces.front().is_some_and(|first| now - *first > Duration::from_secs(1)) {
            self.pieces.pop_front();
        }
        if !was_done {
            self.token_plot.push(self.pieces.len() as f32);
            if chat.is_done() {
                self.n_tokens += chat.finish()?.usage.completion_tokens;
            }
        }
        Ok(())
    }

    /// Transcribes the recordings that were dropped, one after the other.
    fn step_transcription(&mut self, queue: &wginfer::wgpu::Queue, share: Duration) -> Result<(), Failure> {
        if matches!(self.speech, Model::None) && !self.dropped.is_empty() {
            let name = self.args.speech.to_string_lossy().into_owned();
            self.speech = Model::open(&self.gpu, name, |files| {
                let transcriber = Transcriber::new(files, TranscribeOptions::default())?;
                let options = EngineOptions { max_seqs: 1, ..EngineOptions::default() };
                let options = transcriber.engine_options(options);
                Ok((transcriber, options))
            });
        }
        if let (Model::Ready(engine, transcriber), None, Some(path)) =
            (&self.speech, &self.transcription, self.dropped.front())
        {
            let title = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            let recording = AudioReader::open(path);
            self.dropped.pop_front();
            self.transcription = Some(transcriber.begin(engine, recording?)?);
            self.messages.push(Message { who: Who::Recording, title, text: String::new() });
        }
        if let (Some(engine), Some(transcription)) = (self.speech.engine(), &mut self.transcription) {
            transcription.advance(&mut Engines::from(engine));
        }
        queue.submit(self.speech.advance(share)?);
        let (Some(engine), Some(transcription)) = (self.speech.engine(), &mut self.transcription) else {
            return Ok(());
        };
        transcription.observe(&mut Events::from(engine.events()?));
        while let Some(event) = transcription.progress() {
            let message = self.messages.iter_mut().rev().find(|message| message.who == Who::Recording);
            if let (TranscriptEvent::Segment(segment), Some(message)) = (event, message) {
                let line = format!("{:.1} s  {}\n", segment.start, segment.text.trim());
                message.text += &line;
            }
        }
        if transcription.is_done() {
            let done = transcription.finish();
            self.transcription = None;
            done?;
            self.n_transcripts += 1;
        }
        Ok(())
    }

    /// Says what failed, and drops what cannot go on. The next load begins anew.
    fn fail(&mut self, failure: &Failure) {
        self.messages.push(Message { who: Who::Error, title: "error".into(), text: failure.to_string() });
        self.transcription = None;
        if self.language.engine().is_none() && !self.language.is_busy() {
            self.chat = None;
        }
    }

    fn is_busy(&self) -> bool {
        self.language.is_busy() || self.speech.is_busy() || !self.dropped.is_empty() || self.unsaid.is_some()
    }

    // --- the window ---

    fn settings(&mut self, ui: &mut Ui) {
        ui.add_space(6.0);
        ui.heading("Model");
        let hint = "folder, .gguf, or owner/name on the hub";
        let edit =
            egui::TextEdit::singleline(&mut self.model_name).hint_text(hint).desired_width(f32::INFINITY);
        let entered = ui.add(edit).lost_focus() && ui.input(|input| input.key_pressed(Key::Enter));
        let mut chosen = entered;
        ui.horizontal(|ui| {
            chosen |= ui.button("Load").clicked();
            if ui.button("Demonstration").clicked() {
                self.model_name.clear();
                chosen = true;
            }
            let name = self.quantize.map_or("as stored".to_string(), |dtype| dtype.to_string());
            egui::ComboBox::from_id_salt("type").selected_text(name).width(84.0).show_ui(ui, |ui| {
                ui.selectable_value(&mut self.quantize, None, "as stored");
                for dtype in [Dtype::Q8_0, Dtype::Q4_0, Dtype::Q4_K] {
                    ui.selectable_value(&mut self.quantize, Some(dtype), dtype.to_string());
                }
            });
        });
        if chosen {
            self.load();
        }
        match (&self.language, self.language.progress()) {
            (_, Some((what, part))) => drop(ui.add(egui::ProgressBar::new(part).text(what))),
            (Model::Ready(engine, _), _) => {
                let megabytes = engine.weights_bytes() as f64 / 1e6;
                ui.label(format!(
                    "{}: {megabytes:.1} MB, context {}",
                    engine.shape().architecture,
                    engine.ctx()
                ));
            }
            _ => drop(ui.label("no model")),
        }
        ui.label(RichText::new(&self.gpu.info().name).weak());

        ui.add_space(10.0);
        ui.heading("Answers");
        let Sampling { temperature, top_p, .. } = &mut self.sampling;
        ui.add(egui::Slider::new(temperature, 0.0..=2.0).text("temperature"));
        ui.add(egui::Slider::new(top_p, 0.01..=1.0).text("top-p"));
        ui.add(egui::Slider::new(&mut self.max_tokens, 1..=2048).logarithmic(true).text("max tokens"));

        ui.add_space(10.0);
        ui.heading("Frames");
        ui.add(egui::Slider::new(&mut self.budget_ms, 0.5..=33.0).logarithmic(true).text("ms for the model"));
        self.frame_plot.show(ui, 90.0);
        ui.add_space(4.0);
        self.token_plot.show(ui, 90.0);

        ui.add_space(10.0);
        ui.heading("Recordings");
        let text = match (self.speech.progress(), &self.transcription) {
            (Some((what, _)), _) => what,
            (None, Some(transcription)) => format!("transcribing {:.0} s", transcription.duration()),
            (None, None) => "Drop a sound file on the window for its transcript.".into(),
        };
        ui.label(text);
    }

    fn conversation(&mut self, ui: &mut Ui) {
        ScrollArea::vertical().stick_to_bottom(true).auto_shrink([false, false]).show(ui, |ui| {
            ui.add_space(6.0);
            if self.messages.is_empty() {
                ui.label(RichText::new("Say something below. The demonstration model tells stories: “Tell me a story about a dog.”").weak());
            }
            for message in &self.messages {
                bubble(ui, message);
            }
        });
    }

    fn input(&mut self, ui: &mut Ui) {
        ui.with_layout(Layout::right_to_left(Align::Center), |ui| {
            let is_answering = self.chat.as_ref().is_some_and(|chat| !chat.is_done());
            let mut send = false;
            if is_answering {
                if ui.button("Stop").clicked()
                    && let (Some(engine), Some(chat)) = (self.language.engine(), &mut self.chat)
                {
                    chat.cancel(&mut Engines::from(engine));
                }
            } else {
                send = ui.add_enabled(self.can_say(), egui::Button::new("Send")).clicked();
            }
            let edit =
                egui::TextEdit::singleline(&mut self.typed).hint_text("Message").desired_width(f32::INFINITY);
            let response = ui.add(edit);
            if response.lost_focus() && ui.input(|input| input.key_pressed(Key::Enter)) {
                send = true;
                response.request_focus();
            }
            if send && self.can_say() && !self.typed.trim().is_empty() {
                let text = std::mem::take(&mut self.typed);
                self.say(text.trim());
            }
        });
    }

    /// Ends a run that has a number of frames: with a screenshot, then for good.
    fn end(&mut self, ctx: &egui::Context) {
        let Some(frames) = self.args.frames.filter(|frames| self.frame_ms.len() >= *frames) else { return };
        if self.frame_ms.len() == frames
            && let Some(file) = self.args.screenshot.clone()
        {
            let is_saved = self.is_saved.clone();
            let save = egui::ScreenshotCallback::new(move |image| {
                save(&file, &image).unwrap_or_else(|error| eprintln!("error: `{}`: {error}", file.display()));
                is_saved.store(true, Ordering::Relaxed);
            });
            ctx.send_viewport_cmd(egui::ViewportCommand::Screenshot(save));
        } else if self.args.screenshot.is_none() || self.is_saved.load(Ordering::Relaxed) {
            ctx.send_viewport_cmd(egui::ViewportCommand::Close);
        }
    }
}

impl eframe::App for Desk {
    fn logic(&mut self, ctx: &egui::Context, frame: &mut Frame) {
        let now = Instant::now();
        let is_loaded = matches!(self.language, Model::Ready(..) | Model::None);
        if let Some(last) = self.last_frame.replace(now) {
            let ms = (now - last).as_secs_f64() * 1e3;
            self.frame_plot.push(ms as f32);
            if is_loaded {
                self.frame_ms.push(ms);
            }
        }
        self.dropped.extend(ctx.input(|input| {
            input.raw.dropped_files.iter().map(|file| file.path().to_path_buf()).collect::<Vec<_>>()
        }));
        if let Some(state) = frame.wgpu_render_state()
            && let Err(failure) = self.step(&state.queue)
        {
            self.fail(&failure);
        }
        self.end(ctx);
        if self.is_busy() || self.args.frames.is_some() {
            ctx.request_repaint();
        } else {
            // The time until the next event is no time of a frame.
            self.last_frame = None;
        }
    }

    fn ui(&mut self, ui: &mut Ui, _: &mut Frame) {
        egui::Panel::left("settings").exact_size(270.0).show(ui, |ui| self.settings(ui));
        egui::Panel::bottom("input").exact_size(42.0).show(ui, |ui| self.input(ui));
        egui::CentralPanel::default().show(ui, |ui| self.conversation(ui));
    }

    fn on_exit(&mut self) {
        let mut sorted = self.frame_ms.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1).filter(|_| self.args.frames.is_some()) else { return };
        let at = |q: f64| sorted[(q * last as f64).round() as usize];
        println!(
            "frames: {}, ms: median {:.1}, p95 {:.1}, p99 {:.1}, worst {:.1}",
            sorted.len(),
            at(0.5),
            at(0.95),
            at(0.99),
            at(1.0)
        );
        println!("tokens: {}, transcripts: {}", self.n_tokens, self.n_transcripts);
        for Message { title, text, .. } in &self.messages {
            println!("{title}: {}", text.trim().replace('\n', " | "));
        }
    }
}

/// A message: one's own on the right.
fn bubble(ui: &mut Ui, message: &Message) {
    let (align, fill) = match message.who {
        Who::You => (Align::Max, Color32::from_rgb(38, 70, 120)),
        Who::Model => (Align::Min, Color32::from_rgb(48, 48, 54)),
        Who::Recording => (Align::Min, Color32::from_rgb(36, 66, 48)),
        Who::Error => (Align::Min, Color32::from_rgb(110, 34, 34)),
    };
    let widest = 0.8 * ui.available_width();
    ui.with_layout(Layout::top_down(align), |ui| {
        ui.label(RichText::new(&message.title).small().weak());
        let frame = egui::Frame::new()
            .fill(fill)
            .corner_radius(CornerRadius::same(8))
            .inner_margin(Margin::symmetric(10, 7));
        frame.show(ui, |ui| {
            ui.set_max_width(widest);
            let text = if message.text.is_empty() { "…" } else { message.text.trim() };
            let text = RichText::new(text).size(15.0).color(Color32::from_gray(235));
            ui.add(egui::Label::new(text).wrap().halign(Align::Min).selectable(true));
        });
        ui.add_space(8.0);
    });
}

fn save(file: &Path, image: &egui::ColorImage) -> Result<(), Failure> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let to = std::io::BufWriter::new(std::fs::File::create(file)?);
    let [width, height] = image.size.map(|side| side as u32);
    let mut encoder = png::Encoder::new(to, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let pixels: Vec<u8> = image.pixels.iter().flat_map(|p| [p.r(), p.g(), p.b()]).collect();
    encoder.write_header()?.write_image_data(&pixels)?;
    Ok(())
}
