//! A desktop application with a model: conversations, and transcripts of files that are dropped on the window. The model
//! runs on egui's own device, in a few milliseconds of each frame, so that the window never stands still.

mod app;
mod model;
mod plot;

use std::path::PathBuf;
use std::sync::Arc;

use eframe::egui_wgpu::{WgpuSetup, WgpuSetupCreateNew};
use wginfer::gpu::Gpu;
use wginfer::wgpu;

use app::Desk;

const USAGE: &str = "\
A desktop application with a model. Drop a recording on its window for a transcript.

usage: desk [OPTIONS]
  --model MODEL      a folder, a GGUF file or a name on the Hugging Face hub (default: the demonstration model)
  --speech MODEL     the speech model for recordings (default: the small one of this repository)
  --budget MS        milliseconds of each frame for the model (default: 8)
  --say TEXT         the first message
  --transcribe FILE  as if this recording were dropped on the window
  --frames N         end N frames after the model has been loaded, without vertical synchronisation
  --screenshot FILE  write the last of these frames as PNG";

/// What the command line says.
pub struct Args {
    model: String,
    speech: PathBuf,
    budget_ms: f32,
    say: Option<String>,
    transcribe: Option<PathBuf>,
    frames: Option<usize>,
    screenshot: Option<PathBuf>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        model: String::new(),
        speech: PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/whisper-words")),
        budget_ms: 8.0,
        say: None,
        transcribe: None,
        frames: None,
        screenshot: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("`{word}` needs a value"));
        let wrong = |found: &str| format!("`{word}` is `{found}`, expected a number above 0");
        match &word[..] {
            "--model" => args.model = value()?,
            "--speech" => args.speech = value()?.into(),
            "--budget" => {
                let text = value()?;
                args.budget_ms =
                    text.parse().ok().filter(|ms| (0.1..=1e3).contains(ms)).ok_or_else(|| wrong(&text))?;
            }
            "--say" => args.say = Some(value()?),
            "--transcribe" => args.transcribe = Some(value()?.into()),
            "--frames" => {
                let text = value()?;
                args.frames = Some(text.parse().ok().filter(|n| *n > 0).ok_or_else(|| wrong(&text))?);
            }
            "--screenshot" => args.screenshot = Some(value()?.into()),
            "--help" | "-h" => return Err(USAGE.into()),
            other => return Err(format!("unknown option `{other}`\n\n{USAGE}")),
        }
    }
    Ok(args)
}

fn main() -> eframe::Result {
    let args = parse(std::env::args().skip(1)).unwrap_or_else(|message| {
        eprintln!("{message}");
        std::process::exit(2);
    });
    let mut options = eframe::NativeOptions {
        viewport: eframe::egui::ViewportBuilder::default()
            .with_inner_size([900.0, 620.0])
            .with_drag_and_drop(true),
        ..Default::default()
    };
    // The whole of what the library asks of the host's device.
    options.wgpu_options.wgpu_setup = WgpuSetup::CreateNew(WgpuSetupCreateNew {
        device_descriptor: Arc::new(Gpu::required),
        ..WgpuSetupCreateNew::without_display_handle()
    });
    if args.frames.is_some() {
        options.wgpu_options.surface.present_mode = wgpu::PresentMode::AutoNoVsync;
    }
    eframe::run_native("desk", options, Box::new(|creation| Ok(Box::new(Desk::new(creation, args)?))))
}
