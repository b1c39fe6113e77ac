//! Finds a model, opens a device, and loads the model onto it.

use std::ffi::OsStr;
use std::path::PathBuf;

use wginfer::checkpoint::{CheckpointError, ModelFiles, Source};
use wginfer::engine::{EncoderOptions, Engine, EngineOptions, Event, TextEncoder};
use wginfer::gpu::{Gpu, GpuOptions, SelfTest};
use wginfer::hub::Hub;
use wginfer::models::ModelKind;

use super::args::{DeviceArgs, ModelArg, Precision, Quantize};
use super::failure::Failure;
use super::{download, format, terminal};

/// Environment variable: the folder of compiled kernels, of tuning's choices and of what self-tests found.
const CACHE_ENV: &str = "WGINFER_CACHE_DIR";

/// A name, and the model there.
pub type Opened = (String, Result<ModelFiles, Failure>);

impl ModelArg {
    /// The name of the model, if one was given.
    fn name(&self) -> Option<&OsStr> {
        self.model.as_deref().filter(|model| !model.is_empty())
    }

    /// Opens a model of any kind. Default: the demonstration model, with a line on standard error that says so.
    pub fn open_any(&self) -> Result<ModelFiles, Failure> {
        if self.name().is_none() {
            self.say_demo();
        }
        Ok(self.reopen()?)
    }

    fn say_demo(&self) {
        log::info!(
            "no model given: using the demonstration model in the binary (`--model` or `WGINFER_MODEL` chooses \
             another)"
        );
    }

    /// Opens the config and the headers of every model at the name, each with its name: several if a folder or a
    /// repository has several GGUF models. Default: as [`ModelArg::open_any`].
    pub fn headers(&self) -> Result<Vec<Opened>, Failure> {
        let Some(name) = self.name() else {
            self.say_demo();
            return Ok(vec![(
                Source::Demo.to_string(),
                ModelFiles::headers(&Source::Demo).map_err(Failure::from),
            )]);
        };
        let bar = terminal::spinner();
        let opened = ModelFiles::all_headers(name, &mut |name| {
            bar.set_message(format!("reading the header of {}", format::escaped(name)));
        });
        terminal::finish(&bar);
        Ok(opened?.into_iter().map(|(name, files)| (name, files.map_err(Failure::from))).collect())
    }

    /// As [`ModelArg::open_any`], but accepts only a decoder.
    pub fn open(&self) -> Result<ModelFiles, Failure> {
        let files = self.open_any()?;
        files.expect(ModelKind::Decoder)?;
        Ok(files)
    }

    /// Opens an encoder; there is no default.
    pub fn open_encoder(&self) -> Result<ModelFiles, Failure> {
        if self.name().is_none() {
            let message = "no model given, and the demonstration model in the binary has no embeddings";
            let hint =
                "give the folder of a sentence-embedding model, such as all-MiniLM-L6-v2: `--model DIR`";
            return Err(Failure::failed(message).with_hint(hint));
        }
        let files = self.open_any()?;
        files.expect(ModelKind::Encoder)?;
        Ok(files)
    }

    /// Opens a reranker; there is no default.
    pub fn open_reranker(&self) -> Result<ModelFiles, Failure> {
        const HINT: &str = "give a reranker, such as bge-reranker-v2-m3, ms-marco-MiniLM-L6-v2 or Qwen3-Reranker-0.6B: \
                            `--model MODEL`";
        if self.name().is_none() {
            let message = "no model given, and the demonstration model in the binary is no reranker";
            return Err(Failure::failed(message).with_hint(HINT));
        }
        let files = self.open_any()?;
        let is_unknown = files.kind() == ModelKind::Decoder && !files.name.to_lowercase().contains("rerank");
        let files = files.into_reranker()?;
        if is_unknown {
            log::warn!(
                "`{}` is a language model; whether it was trained to judge texts is unknown",
                files.name
            );
        }
        Ok(files)
    }

    /// As [`ModelArg::open_any`], but prints no line.
    pub fn reopen(&self) -> Result<ModelFiles, CheckpointError> {
        match self.name().map_or(Ok(Source::Demo), Source::parse)? {
            Source::Hub(name) => {
                let hub = Hub::from_env()?;
                download::shown(&name, |progress| ModelFiles::from_hub(&hub, &name, progress))
            }
            source => ModelFiles::from_source(&source),
        }
    }
}

impl DeviceArgs {
    /// `options` with the fields that these flags set.
    pub fn options(&self, options: EngineOptions) -> EngineOptions {
        let quantize = self.quantize.map(Quantize::dtype);
        EngineOptions { ctx: self.ctx, quantize, kv_dtype: self.kv_type.dtype(), ..options }
    }

    /// `options` with the fields that these flags set.
    pub fn encoder_options(&self, options: EncoderOptions) -> EncoderOptions {
        EncoderOptions { ctx: self.ctx, quantize: self.quantize.map(Quantize::dtype), ..options }
    }

    /// Opens the device.
    pub fn open(&self) -> Result<Gpu, Failure> {
        Ok(Gpu::open(&GpuOptions {
            select: self.gpu.name(),
            f32_products: self.precision == Precision::F32,
            cache_dir: cache_dir(),
            self_test: match (self.self_test, self.no_self_test) {
                (true, _) => SelfTest::Always,
                (_, true) => SelfTest::Never,
                _ => SelfTest::default(),
            },
            ..GpuOptions::default()
        })?)
    }

    /// Opens the device and loads an encoder.
    pub fn load_encoder(&self, checkpoint: ModelFiles) -> Result<TextEncoder, Failure> {
        let options = self.encoder_options(EncoderOptions::default());
        let gpu = self.open()?;
        let bar = terminal::bar("loading", checkpoint.weights.n_bytes() as u64);
        let encoder = TextEncoder::load(&gpu, checkpoint, options, &mut |progress| {
            bar.set_position(progress.done_bytes as u64);
        });
        terminal::finish(&bar);
        let encoder = encoder?;
        warn_of_unused(encoder.unused_tensors());
        Ok(encoder)
    }

    /// Opens the device and loads the model.
    pub fn load(&self, checkpoint: ModelFiles, options: EngineOptions) -> Result<Engine, Failure> {
        let gpu = self.open()?;
        let bar = terminal::bar("loading", checkpoint.weights.n_bytes() as u64);
        let engine = Engine::load(&gpu, checkpoint, self.options(options), &mut |progress| {
            bar.set_position(progress.done_bytes as u64);
        });
        terminal::finish(&bar);
        let engine = engine?;
        warn_of_unused(engine.unused_tensors());
        Ok(engine)
    }
}

fn warn_of_unused(names: &[String]) {
    const SHOWN: usize = 3;
    if names.is_empty() {
        return;
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect();
    let more = if names.len() > SHOWN { ", …" } else { "" };
    let n = names.len();
    let tensors = if n == 1 { "1 tensor".to_string() } else { format!("{n} tensors") };
    log::warn!("{tensors} of the checkpoint not used: {}{more}", shown.join(", "));
}

/// The user's cache folder for wginfer, if the system has one.
pub fn cache_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = var(CACHE_ENV) {
        return Some(dir);
    }
    let base = if cfg!(windows) {
        var("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        var("HOME").map(|home| home.join("Library/Caches"))
    } else {
        // The XDG specification wants relative paths ignored.
        let xdg = var("XDG_CACHE_HOME").filter(|dir| dir.is_absolute());
        xdg.or_else(|| var("HOME").map(|home| home.join(".cache")))
    };
    base.map(|dir| dir.join("wginfer"))
}

/// Runs the engine until nothing is left to do.
pub fn drive(
    engine: &mut Engine,
    mut on_event: impl FnMut(Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    while !engine.is_idle() {
        engine.pump()?.into_iter().try_for_each(&mut on_event)?;
    }
    engine.events()?.into_iter().try_for_each(&mut on_event)
}
