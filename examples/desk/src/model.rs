//! A model on its way to the device: opened on a thread, then uploaded in slices between frames.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use wginfer::checkpoint::{ModelFiles, Source};
use wginfer::dtype::Dtype;
use wginfer::engine::{Engine, EngineOptions, Loading, Sampling};
use wginfer::gpu::Gpu;
use wginfer::hub::{Download, Hub};
use wginfer::wgpu::CommandBuffer;

pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What the thread that opens a model reports.
pub enum Report<T> {
    /// What it does, and which part of it is done.
    Progress(String, f32),
    Opened(Box<Result<(Loading<Engine>, T), Failure>>),
}

/// A model from its name to its engine; `T` is what else was read from its files.
pub enum Model<T> {
    Opening {
        reports: Receiver<Report<T>>,
        what: String,
        part: f32,
    },
    Loading(Loading<Engine>, T),
    Ready(Engine, T),
    /// Nothing has been asked for, or it failed.
    None,
}

impl<T: Send + 'static> Model<T> {
    /// Opens `name` on a thread: files are read and parsed there, or downloaded. `extra` makes `T` and the options of them.
    pub fn open(
        gpu: &Gpu,
        name: String,
        extra: impl FnOnce(&ModelFiles) -> Result<(T, EngineOptions), Failure> + Send + 'static,
    ) -> Model<T> {
        let (send, reports) = channel();
        let gpu = gpu.clone();
        std::thread::spawn(move || {
            let open = || {
                let files = files(&name, &send)?;
                let (extra, options) = extra(&files)?;
                Ok((Engine::loading(&gpu, files, options)?, extra))
            };
            // Nobody listens any more if another model was chosen.
            let _ = send.send(Report::Opened(Box::new(open())));
        });
        Model::Opening { reports, what: "opening".into(), part: 0.0 }
    }

    /// The next work for the device. Never waits.
    ///
    /// # Errors
    /// Those of opening, of loading and of the engine. The model is gone then.
    pub fn advance(&mut self, budget: Duration) -> Result<Vec<CommandBuffer>, Failure> {
        match std::mem::replace(self, Model::None) {
            Model::Opening { reports, mut what, mut part } => {
                while let Ok(report) = reports.try_recv() {
                    match report {
                        Report::Progress(now, of_it) => (what, part) = (now, of_it),
                        Report::Opened(opened) => {
                            let (loading, extra) = (*opened)?;
                            *self = Model::Loading(loading, extra);
                            return Ok(Vec::new());
                        }
                    }
                }
                *self = Model::Opening { reports, what, part };
                Ok(Vec::new())
            }
            Model::Loading(loading, extra) if loading.is_done() => {
                *self = Model::Ready(loading.finish()?, extra);
                Ok(Vec::new())
            }
            Model::Loading(mut loading, extra) => {
                let buffers = loading.advance(budget)?;
                *self = Model::Loading(loading, extra);
                Ok(buffers)
            }
            Model::Ready(mut engine, extra) => {
                let buffers = engine.advance(budget)?;
                *self = Model::Ready(engine, extra);
                Ok(buffers)
            }
            Model::None => Ok(Vec::new()),
        }
    }

    pub fn engine(&mut self) -> Option<&mut Engine> {
        match self {
            Model::Ready(engine, _) => Some(engine),
            _ => None,
        }
    }

    /// Whether frames are needed for it.
    pub fn is_busy(&self) -> bool {
        match self {
            Model::Opening { .. } | Model::Loading(..) => true,
            Model::Ready(engine, _) => !engine.is_idle(),
            Model::None => false,
        }
    }

    /// What is done before it is ready, and which part of that is done.
    pub fn progress(&self) -> Option<(String, f32)> {
        match self {
            Model::Opening { what, part, .. } => Some((what.clone(), *part)),
            Model::Loading(loading, _) => {
                let progress = loading.progress();
                let [done, total] = [progress.done_bytes, progress.total_bytes].map(|n| n as f64 / 1e6);
                Some((format!("loading {done:.1} of {total:.1} MB"), (done / total.max(1e-9)) as f32))
            }
            Model::Ready(..) | Model::None => None,
        }
    }
}

/// Opens a folder, a GGUF file, a model of the hub, or without a name the demonstration model.
fn files<T>(name: &str, reports: &Sender<Report<T>>) -> Result<ModelFiles, Failure> {
    let source = if name.trim().is_empty() { Source::Demo } else { Source::parse(name.trim())? };
    let Source::Hub(name) = &source else { return Ok(ModelFiles::from_source(&source)?) };
    let on = &mut |download: Download<'_>| {
        let part = download.done_bytes as f32 / download.total_bytes.max(1) as f32;
        let _ = reports.send(Report::Progress(format!("downloading {}", download.file), part));
    };
    Ok(ModelFiles::from_hub(&Hub::from_env()?, name, on)?)
}

/// Options for a conversation, and the sampling that the model's authors recommend.
pub fn for_chat(files: &ModelFiles, quantize: Option<Dtype>) -> (Sampling, EngineOptions) {
    let options = EngineOptions { max_seqs: 2, quantize, ..EngineOptions::default() };
    (Sampling::from(&files.generation), options)
}
