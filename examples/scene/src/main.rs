//! A renderer with a character that talks. Everything runs on one device: the scene, which fills half a frame, the fox's
//! words, the feeling of the player's line and the transcript of the radio, in the milliseconds a frame that are left.
//!
//! The renderer owns the device. The guest records command buffers, which are submitted along with the renderer's.

mod guest;
mod overlay;
mod stage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use wginfer::gpu::{Gpu, GpuOptions};
use wginfer::wgpu;
use winit::application::ApplicationHandler;
use winit::dpi::LogicalSize;
use winit::event::{ElementState, KeyEvent, WindowEvent};
use winit::event_loop::{ActiveEventLoop, ControlFlow, EventLoop};
use winit::keyboard::{Key, NamedKey};
use winit::window::{Window, WindowId};

use guest::{Failure, Guest, LABELS};
use overlay::{Letters, Quad, panel};
use stage::{Detail, Scene, Stage};

const USAGE: &str = "\
A renderer with a character that talks. Type a line and press Enter; Tab plays the radio, Esc ends.

usage: scene [OPTIONS]
  --budget MS        milliseconds of each frame for the guest (default: 4)
  --frames N         end after N frames with loaded models, without vertical synchronisation; the fox talks all the time
  --no-guest         only the scene
  --detail N         samples for each pixel of the scene; below 1, a smaller picture (default: what fills half a frame)
  --say TEXT         the first line
  --screenshot FILE  write the last frame as PNG
  --halfway FILE     write the middle frame, too";

/// What the player says when nobody types.
const LINES: [&str; 4] = [
    "Tell me a sad story about a dog.",
    "Mia found her red ball. Mia jumped for joy.",
    "Tell me a story about the sea.",
    "Ivy was lost in the dark forest. She was all alone.",
];

/// Half of a frame at 60 frames a second.
const HALF_A_FRAME: Duration = Duration::from_micros(8_333);

struct Args {
    budget: Duration,
    frames: Option<usize>,
    has_guest: bool,
    detail: Option<f32>,
    say: Option<String>,
    screenshot: Option<PathBuf>,
    halfway: Option<PathBuf>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        budget: Duration::from_millis(4),
        frames: None,
        has_guest: true,
        detail: None,
        say: None,
        screenshot: None,
        halfway: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` needs a value"));
        let wrong = |found: &str| format!("`{word}` is `{found}`, expected a number above 0");
        let number = |text: String| match text.parse::<f32>() {
            Ok(number) if number > 0.0 && number <= 1e6 => Ok(number),
            _ => Err(wrong(&text)),
        };
        match &word[..] {
            "--budget" => args.budget = Duration::from_secs_f32(number(value()?)? / 1e3),
            "--frames" => args.frames = Some(number(value()?)? as usize),
            "--no-guest" => args.has_guest = false,
            "--detail" => args.detail = Some(number(value()?)?),
            "--say" => args.say = Some(value()?),
            "--screenshot" => args.screenshot = Some(value()?.into()),
            "--halfway" => args.halfway = Some(value()?.into()),
            "--help" | "-h" => return Err(USAGE.into()),
            other => return Err(format!("unknown option `{other}`\n\n{USAGE}")),
        }
    }
    Ok(args)
}

fn main() {
    let args = parse(std::env::args().skip(1)).unwrap_or_else(|message| {
        eprintln!("{message}");
        std::process::exit(2);
    });
    let event_loop = EventLoop::new().expect("a display");
    event_loop.set_control_flow(ControlFlow::Poll);
    let mut app = App { args, show: None, failure: None };
    event_loop.run_app(&mut app).expect("the event loop runs");
    if let Some(failure) = app.failure {
        eprintln!("error: {failure}");
        std::process::exit(1);
    }
}

struct App {
    args: Args,
    show: Option<Show>,
    failure: Option<Failure>,
}

impl ApplicationHandler for App {
    fn resumed(&mut self, event_loop: &ActiveEventLoop) {
        if self.show.is_none() {
            match Show::new(event_loop, &self.args) {
                Ok(show) => self.show = Some(show),
                Err(failure) => self.end(event_loop, Some(failure)),
            }
        }
    }

    fn window_event(&mut self, event_loop: &ActiveEventLoop, _: WindowId, event: WindowEvent) {
        let Some(show) = &mut self.show else { return };
        match event {
            WindowEvent::CloseRequested => self.end(event_loop, None),
            WindowEvent::Resized(size) => show.resize([size.width, size.height]),
            WindowEvent::KeyboardInput { event, .. } if event.state == ElementState::Pressed => {
                if show.key(event) {
                    self.end(event_loop, None);
                }
            }
            WindowEvent::RedrawRequested => match show.frame(&self.args) {
                Ok(false) => {}
                Ok(true) => self.end(event_loop, None),
                Err(failure) => self.end(event_loop, Some(failure)),
            },
            _ => {}
        }
    }

    fn about_to_wait(&mut self, _: &ActiveEventLoop) {
        if let Some(show) = &self.show {
            show.window.request_redraw();
        }
    }
}

impl App {
    fn end(&mut self, event_loop: &ActiveEventLoop, failure: Option<Failure>) {
        if let Some(show) = self.show.take() {
            show.report();
        }
        self.failure = failure;
        event_loop.exit();
    }
}

/// The window and all that is in it.
struct Show {
    window: Arc<Window>,
    surface: wgpu::Surface<'static>,
    config: wgpu::SurfaceConfiguration,
    device: wgpu::Device,
    queue: wgpu::Queue,
    stage: Stage,
    letters: Letters,
    detail: Detail,
    guest: Option<Guest>,
    /// What the player is typing, and said last.
    typed: String,
    said: String,
    n_said: usize,
    began: Instant,
    last_frame: Option<Instant>,
    /// Milliseconds from frame to frame: while models load, and after.
    loading_ms: Vec<f64>,
    frame_ms: Vec<f64>,
    /// Whether half of the frames have been drawn.
    is_half_done: bool,
}

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets")
}

impl Show {
    fn new(event_loop: &ActiveEventLoop, args: &Args) -> Result<Show, Failure> {
        let attributes =
            Window::default_attributes().with_title("scene").with_inner_size(LogicalSize::new(800, 450));
        let window = Arc::new(event_loop.create_window(attributes)?);
        let display = Box::new(event_loop.owned_display_handle());
        let instance =
            wgpu::Instance::new(wgpu::InstanceDescriptor::new_with_display_handle_from_env(display));
        let surface = instance.create_surface(window.clone())?;
        let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions {
            compatible_surface: Some(&surface),
            power_preference: wgpu::PowerPreference::HighPerformance,
            ..Default::default()
        }))?;

        // What the guest needs is also enough for the renderer.
        let (device, queue) = pollster::block_on(adapter.request_device(&Gpu::required(&adapter)))?;
        let cache_dir = Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cache"));
        let options = GpuOptions { cache_dir, ..GpuOptions::default() };
        let gpu = Gpu::adopt_with(device.clone(), queue.clone(), &options)?;

        let size = window.inner_size();
        let size = [size.width.max(1), size.height.max(1)];
        let mut config =
            surface.get_default_config(&adapter, size[0], size[1]).ok_or("no surface for this adapter")?;
        // Colours are written as they are shown.
        config.format = config.format.remove_srgb_suffix();
        config.present_mode = match args.frames {
            Some(_) => wgpu::PresentMode::AutoNoVsync,
            None => wgpu::PresentMode::AutoVsync,
        };
        surface.configure(&device, &config);
        let letters = Letters::new(18.0);
        let mut stage = Stage::new(device.clone(), queue.clone(), config.format, size, &letters);
        let detail = Detail::of(args.detail.unwrap_or_else(|| calibrate(&mut stage, &device, &queue, size)));
        stage.set(size, detail);
        println!("{}: {detail:?}", adapter.get_info().name);
        Ok(Show {
            window,
            surface,
            config,
            device,
            queue,
            stage,
            letters,
            detail,
            guest: args.has_guest.then(|| Guest::new(&gpu, assets())),
            typed: String::new(),
            said: String::new(),
            n_said: 0,
            began: Instant::now(),
            last_frame: None,
            loading_ms: Vec::new(),
            frame_ms: Vec::new(),
            is_half_done: false,
        })
    }

    fn resize(&mut self, size: [u32; 2]) {
        let size = size.map(|side| side.max(1));
        if [self.config.width, self.config.height] != size {
            [self.config.width, self.config.height] = size;
            self.surface.configure(&self.device, &self.config);
            self.stage.set(size, self.detail);
        }
    }

    /// Handles a key. Returns whether it ends the program.
    fn key(&mut self, event: KeyEvent) -> bool {
        match event.logical_key {
            Key::Named(NamedKey::Escape) => return true,
            Key::Named(NamedKey::Tab) => self.play(),
            Key::Named(NamedKey::Backspace) => drop(self.typed.pop()),
            Key::Named(NamedKey::Enter) if !self.typed.trim().is_empty() => {
                let line = std::mem::take(&mut self.typed);
                self.say(line.trim());
            }
            _ => {
                self.typed.extend(event.text.iter().flat_map(|text| text.chars()).filter(|c| !c.is_control()))
            }
        }
        false
    }

    fn say(&mut self, line: &str) {
        if let Some(guest) = &mut self.guest {
            guest.say(line);
            self.said = line.to_string();
            self.n_said += 1;
        }
    }

    fn play(&mut self) {
        if let Some(guest) = &mut self.guest {
            guest.play(assets().join("whisper-words/en.flac"));
        }
    }

    /// A frame. Returns whether it was the last.
    fn frame(&mut self, args: &Args) -> Result<bool, Failure> {
        let is_loading = self.guest.as_ref().is_some_and(|guest| guest.loaded().is_some());
        // One first line, and in a measurement another one after each.
        let is_quiet = self.guest.as_ref().is_some_and(Guest::is_idle) && self.typed.is_empty();
        if self.n_said == 0 && self.guest.is_some() || is_quiet && args.frames.is_some() {
            let line = args.say.as_deref().filter(|_| self.n_said == 0);
            self.say(line.unwrap_or(LINES[self.n_said % LINES.len()]));
            self.play();
        }

        let surface = match self.surface.get_current_texture() {
            wgpu::CurrentSurfaceTexture::Success(texture) => texture,
            wgpu::CurrentSurfaceTexture::Timeout | wgpu::CurrentSurfaceTexture::Occluded => return Ok(false),
            _ => {
                self.surface.configure(&self.device, &self.config);
                return Ok(false);
            }
        };
        let now = Instant::now();
        if let Some(last) = self.last_frame.replace(now) {
            let ms = if is_loading { &mut self.loading_ms } else { &mut self.frame_ms };
            ms.push((now - last).as_secs_f64() * 1e3);
        }

        // The guest's work and the renderer's own, in one submission.
        let mut buffers = match &mut self.guest {
            Some(guest) => guest.advance(args.budget)?,
            None => Vec::new(),
        };
        self.prepare(args.budget);
        buffers.push(self.stage.draw(&surface.texture.create_view(&Default::default())));
        self.queue.submit(buffers);
        self.queue.present(surface);
        if let Some(guest) = &mut self.guest {
            guest.observe()?;
        }

        let Some(frames) = args.frames else { return Ok(false) };
        let n_frames = self.frame_ms.len();
        if n_frames >= frames.div_ceil(2) && !std::mem::replace(&mut self.is_half_done, true) {
            args.halfway.as_ref().map_or(Ok(()), |file| self.save(file))?;
            // The time that it takes is no time of a frame.
            self.last_frame = None;
        }
        if n_frames >= frames {
            args.screenshot.as_ref().map_or(Ok(()), |file| self.save(file))?;
        }
        Ok(n_frames >= frames)
    }

    /// Lays out what is drawn over the scene.
    fn prepare(&mut self, budget: Duration) {
        let [width, height] = [self.config.width, self.config.height].map(|side| side as f32);
        let mut quads: Vec<Quad> = Vec::new();
        let (line, ink, pale) = (self.letters.line(), [0.13, 0.1, 0.16, 1.0], [1.0, 1.0, 1.0, 0.92]);
        let dark = [0.05, 0.04, 0.1, 0.62];
        let recent = &self.frame_ms[self.frame_ms.len().saturating_sub(30)..];
        let mean = recent.iter().sum::<f64>() / recent.len().max(1) as f64;
        if let Some(guest) = &self.guest {
            // The fox's words, the last lines of them.
            let text = match guest.loaded() {
                Some(part) => format!("(The fox wakes up: {:.0} %)", part * 100.0),
                None if guest.answer.is_empty() => "…".to_string(),
                None => guest.answer.trim().to_string(),
            };
            let lines = self.letters.wrap(&text, 0.5 * width);
            let lines = &lines[lines.len().saturating_sub(6)..];
            let widest = lines.iter().map(|line| self.letters.width(line)).fold(0.0, f32::max);
            let [w, h] = [widest + 36.0, lines.len() as f32 * line + 24.0];
            let (right, bottom) = (0.5 * width + 0.31 * height, 0.47 * height);
            let left = (right - w).max(12.0);
            panel(&mut quads, [left, bottom - h, w, h], pale, 16.0);
            for (size, dx, dy) in [(14.0, 0.0, 8.0), (8.0, 14.0, 22.0)] {
                panel(&mut quads, [left + w - 24.0 + dx, bottom + dy, size, size], pale, size / 2.0);
            }
            for (i, text) in lines.iter().enumerate() {
                self.letters.write(&mut quads, text, [left + 18.0, bottom - h + 12.0 + i as f32 * line], ink);
            }
            // The feeling of the player's line.
            let [w, h] = [190.0, 126.0];
            let rect = [width - w - 14.0, 14.0, w, h];
            panel(&mut quads, rect, dark, 12.0);
            self.letters.write(&mut quads, "your line feels", [rect[0] + 14.0, rect[1] + 8.0], pale);
            let step = (h - 44.0) / LABELS.len() as f32;
            for (i, label) in LABELS.iter().enumerate() {
                self.letters.write(
                    &mut quads,
                    label,
                    [rect[0] + 14.0, rect[1] + 34.0 + i as f32 * step],
                    pale,
                );
            }
            let bars = [rect[0] + 72.0, rect[1] + 34.0, w - 86.0, h - 44.0];
            if let Some((kept, tokens)) = guest.probabilities().filter(|_| !self.stage.has_bars()) {
                self.stage.show(&kept, tokens, bars);
            }
            // What the radio said, and the player.
            if !guest.heard.is_empty() || guest.is_listening() {
                let heard = if guest.heard.is_empty() { "(listening)" } else { guest.heard.trim() };
                let text = format!("radio: {heard}");
                panel(&mut quads, [14.0, height - 84.0, self.letters.width(&text) + 28.0, 30.0], dark, 10.0);
                self.letters.write(&mut quads, &text, [28.0, height - 79.0], [0.7, 1.0, 0.6, 1.0]);
            }
            let text = if self.typed.is_empty() {
                format!("you: {}", self.said)
            } else {
                format!("you: {}_", self.typed)
            };
            panel(&mut quads, [14.0, height - 46.0, width - 28.0, 32.0], dark, 10.0);
            self.letters.write(&mut quads, &text, [28.0, height - 40.0], pale);
        }
        let guest = match &self.guest {
            Some(_) => format!(", {} ms of them the guest's", budget.as_secs_f32() * 1e3),
            None => String::new(),
        };
        let text = format!("{mean:.1} ms a frame{guest}");
        panel(&mut quads, [14.0, 14.0, self.letters.width(&text) + 28.0, 30.0], dark, 10.0);
        self.letters.write(&mut quads, &text, [28.0, 19.0], pale);
        let is = |is: bool| if is { 1.0 } else { 0.0 };
        let scene = Scene {
            size: [width, height],
            time: self.began.elapsed().as_secs_f32(),
            samples: 1.0,
            talk: is(self.guest.as_ref().is_some_and(Guest::is_talking)),
            listen: is(self.guest.as_ref().is_some_and(Guest::is_listening)),
        };
        self.stage.prepare(scene, &quads);
    }

    fn save(&self, file: &Path) -> Result<(), Failure> {
        if let Some(folder) = file.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let to = std::io::BufWriter::new(std::fs::File::create(file)?);
        let mut encoder = png::Encoder::new(to, self.config.width, self.config.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&self.stage.screenshot())?;
        Ok(())
    }

    /// Prints what was measured.
    fn report(&self) {
        for (what, ms) in [("loading", &self.loading_ms), ("frames", &self.frame_ms)] {
            let mut sorted = ms.clone();
            sorted.sort_by(f64::total_cmp);
            let Some(last) = sorted.len().checked_sub(1) else { continue };
            let at = |q: f64| sorted[(q * last as f64).round() as usize];
            let rate = 1e3 * sorted.len() as f64 / sorted.iter().sum::<f64>();
            println!(
                "{what}: {}, {rate:.1} per second, ms: median {:.1}, p95 {:.1}, p99 {:.1}, worst {:.1}",
                sorted.len(),
                at(0.5),
                at(0.95),
                at(0.99),
                at(1.0),
            );
        }
        if let Some(guest) = &self.guest {
            let seconds = self.frame_ms.iter().sum::<f64>() / 1e3;
            println!(
                "tokens: {}, {:.1} per second, answers: {}, transcripts: {}, heard:{}",
                guest.n_tokens,
                guest.n_tokens as f64 / seconds.max(1e-9),
                guest.n_answers,
                guest.n_transcripts,
                guest.heard,
            );
        }
    }
}

/// The detail with which the scene takes half a frame on this device, but no blur that nobody would play.
fn calibrate(stage: &mut Stage, device: &wgpu::Device, queue: &wgpu::Queue, size: [u32; 2]) -> f32 {
    const N: u32 = 8;
    let scene = Scene { size: [1.0; 2], time: 1.0, samples: 1.0, talk: 1.0, listen: 1.0 };
    let mut seconds = |detail: f32| {
        stage.set(size, Detail::of(detail));
        stage.prepare(scene, &[]);
        let begin = Instant::now();
        for _ in 0..N {
            let mut encoder = device.create_command_encoder(&Default::default());
            stage.draw_scene(&mut encoder);
            queue.submit([encoder.finish()]);
        }
        stage.wait();
        begin.elapsed().as_secs_f32() / N as f32
    };
    let mut detail = 0.05;
    seconds(detail); // compiles
    for _ in 0..5 {
        let times = HALF_A_FRAME.as_secs_f32() / seconds(detail).min(seconds(detail));
        detail = (detail * times.clamp(0.1, 8.0)).clamp(0.05, 4096.0);
    }
    detail
}
