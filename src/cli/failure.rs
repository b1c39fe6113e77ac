//! The error of a command, with a hint for the user.

use std::process::ExitCode;

use wginfer::audio::AudioError;
use wginfer::bench::BenchError;
use wginfer::checkpoint::CheckpointError;
use wginfer::engine::EngineError;
use wginfer::gpu::GpuError;
use wginfer::hub::HubError;
use wginfer::models::{ModelError, ModelKind};
use wginfer::tasks::TaskError;
use wginfer::tasks::transcribe::TranscribeError;
use wginfer::text::TextError;
use wginfer::weights::WeightsError;

/// Why a command did not finish.
#[derive(Debug)]
pub enum Failure {
    /// Nobody reads standard output any more, as after `| head`. This is no error.
    ClosedPipe,
    /// The arguments are invalid: exit code 2.
    Usage { message: String, hint: Option<String> },
    /// The command failed: exit code 1.
    Failed { message: String, hint: Option<String> },
}

impl Failure {
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::Usage { message: message.into(), hint: None }
    }

    pub fn failed(message: impl Into<String>) -> Failure {
        Failure::Failed { message: message.into(), hint: None }
    }

    /// Adds what the user can do about it.
    pub fn with_hint(mut self, text: impl Into<String>) -> Failure {
        if let Failure::Usage { hint, .. } | Failure::Failed { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// Message and hint, each on one line.
    pub fn lines(&self) -> (String, Option<String>) {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let hint = match self {
            Failure::ClosedPipe => None,
            Failure::Usage { hint, .. } | Failure::Failed { hint, .. } => hint.as_deref(),
        };
        (one_line(self.message()), hint.map(one_line))
    }

    /// The message, with its line breaks.
    pub fn message(&self) -> &str {
        match self {
            Failure::ClosedPipe => "standard output was closed",
            Failure::Usage { message, .. } | Failure::Failed { message, .. } => message,
        }
    }

    /// The failure of one input, which is at `place`. It is no wrong usage.
    pub fn at(self, place: &str) -> Failure {
        match self {
            Failure::ClosedPipe => Failure::ClosedPipe,
            Failure::Usage { message, hint } | Failure::Failed { message, hint } => {
                Failure::Failed { message: format!("{place}: {message}"), hint }
            }
        }
    }

    pub fn exit_code(&self) -> ExitCode {
        match self {
            Failure::ClosedPipe => ExitCode::SUCCESS,
            Failure::Failed { .. } => ExitCode::from(1),
            Failure::Usage { .. } => ExitCode::from(2),
        }
    }
}

/// An error of an output that has a name.
#[derive(Debug)]
pub struct WriteError {
    pub name: std::path::PathBuf,
    pub source: std::io::Error,
}

impl std::fmt::Display for WriteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` cannot be written: {}", self.name.display(), self.source)
    }
}

impl std::error::Error for WriteError {}

/// The hint for an error in terms of flags and commands: the library's own hints name its options.
fn in_flags(error: &wginfer::Error) -> Option<&'static str> {
    use wginfer::Error;
    match error {
        Error::Gpu(e) => of_gpu(e),
        Error::Weights(e) => of_weights(e),
        Error::Text(e) => of_text(e),
        Error::Hub(e) => of_hub(e),
        Error::Model(e) => of_model(e),
        Error::Checkpoint(e) => of_checkpoint(e),
        Error::Engine(e) => of_engine(e),
        Error::Transcribe(TranscribeError::NotSpeech { .. }) => {
            Some("a language model continues text: use `wginfer generate` or `wginfer chat`")
        }
        Error::Transcribe(TranscribeError::Engine(e)) => of_engine(e),
        Error::Task(TaskError::NoRoom { .. }) => Some("raise `--ctx`, or ask a shorter question"),
        Error::Task(TaskError::Engine(e)) => of_engine(e),
        Error::Bench(BenchError::NoReport { .. }) => {
            Some("`bench kernels --json` or `bench model --json` writes one")
        }
        Error::Bench(BenchError::Kinds { .. }) => {
            Some("compare what `bench kernels` wrote, or what `bench model` wrote")
        }
        Error::Bench(BenchError::Model { source, .. }) => of_model(source),
        Error::Bench(BenchError::Checkpoint(e)) => of_checkpoint(e),
        Error::Bench(BenchError::Engine(e)) => of_engine(e),
        Error::Bench(BenchError::Gpu(e)) => of_gpu(e),
        _ => None,
    }
}

fn of_engine(error: &EngineError) -> Option<&'static str> {
    match error {
        EngineError::Speech { .. } => Some(
            "`wginfer transcribe` runs speech models, `wginfer generate` and `wginfer chat` language models",
        ),
        EngineError::PromptTooLong { .. } => Some("shorten the prompt, or raise `--ctx`"),
        EngineError::NotFinite { .. } => {
            Some("the weights contain values that are not finite, or too large for `--kv-type f16`")
        }
        EngineError::Checkpoint(e) => of_checkpoint(e),
        EngineError::Text(e) => of_text(e),
        EngineError::Model(e) => of_model(e),
        EngineError::Weights(e) => of_weights(e),
        EngineError::Gpu(e) => of_gpu(e),
        _ => None,
    }
}

fn of_checkpoint(error: &CheckpointError) -> Option<&'static str> {
    match error {
        CheckpointError::NotAReranker { .. } => Some(
            "give a reranker, such as bge-reranker-v2-m3 or Qwen3-Reranker-0.6B; `wginfer embed` compares texts by vectors",
        ),
        CheckpointError::WrongKind { kind: ModelKind::Encoder, .. } => {
            Some("use `wginfer embed`, `wginfer classify` or `wginfer rerank`")
        }
        CheckpointError::WrongKind { kind: ModelKind::Decoder, .. } => {
            Some("use `wginfer generate` or `wginfer chat`, or a sentence-embedding model here")
        }
        CheckpointError::Hub(e) => of_hub(e),
        CheckpointError::Text(e) => of_text(e),
        CheckpointError::Model(e) => of_model(e),
        CheckpointError::Weights(e) => of_weights(e),
        _ => None,
    }
}

fn of_hub(error: &HubError) -> Option<&'static str> {
    match error {
        HubError::NoSpace { .. } => {
            Some("`wginfer list` shows what is there, `wginfer rm` frees space, `HF_HOME` moves the cache")
        }
        HubError::NotCached { .. } => Some("`wginfer list` shows what is there"),
        HubError::NoTag { found, has_folder: true, .. } if found.is_empty() => Some(
            "it has weights in safetensors: leave out the colon and what follows; `--quantize` quantises them",
        ),
        _ => None,
    }
}

fn of_model(error: &ModelError) -> Option<&'static str> {
    match error {
        ModelError::Weights(e) => of_weights(e),
        _ => None,
    }
}

fn of_weights(error: &WeightsError) -> Option<&'static str> {
    match error {
        WeightsError::Gpu(e) => of_gpu(e),
        _ => None,
    }
}

fn of_text(error: &TextError) -> Option<&'static str> {
    match error {
        TextError::NoChatTemplate | TextError::NoDefaultTemplate { .. } => Some(
            "a base model continues text: use `wginfer generate`, or choose a model tuned for conversation",
        ),
        TextError::TemplateSyntax { .. } | TextError::TemplateRender { .. } => {
            Some("`wginfer generate` continues a text without the chat template")
        }
        _ => None,
    }
}

fn of_gpu(error: &GpuError) -> Option<&'static str> {
    match error {
        GpuError::NoSuchAdapter { .. } => Some("`wginfer devices` lists names and indices"),
        GpuError::TooLarge { .. } | GpuError::OutOfMemory { .. } => {
            Some("a smaller `--ctx`, fewer sequences or a smaller model needs less memory")
        }
        _ => None,
    }
}

/// What would fit in memory, in flags.
fn fitting(error: &wginfer::Error) -> Option<String> {
    use wginfer::Error;
    let (Error::Engine(engine)
    | Error::Transcribe(TranscribeError::Engine(engine))
    | Error::Task(TaskError::Engine(engine))
    | Error::Bench(BenchError::Engine(engine))) = error
    else {
        return None;
    };
    let EngineError::Memory { fitting_ctx, fitting_quantize, .. } = engine else { return None };
    let ctx = fitting_ctx.map(|n| format!("`--ctx {n}`"));
    let quantize = fitting_quantize.map(|dtype| match error {
        // The weights of a shape are drawn in the type.
        Error::Bench(_) => format!("`--type {dtype}` (with `--model`: `--quantize {dtype}`)"),
        _ => format!("`--quantize {dtype}`"),
    });
    let flags: Vec<String> = ctx.into_iter().chain(quantize).collect();
    (!flags.is_empty()).then(|| format!("it would fit with {}", flags.join(" and ")))
}

impl From<wginfer::Error> for Failure {
    fn from(error: wginfer::Error) -> Self {
        let flags = in_flags(&error).map(str::to_string).or_else(|| fitting(&error));
        let hint = flags.or_else(|| error.hint());
        let message = error.to_string();
        match error {
            wginfer::Error::Engine(EngineError::Parameter { .. })
            | wginfer::Error::Transcribe(
                TranscribeError::Language { .. } | TranscribeError::Engine(EngineError::Parameter { .. }),
            )
            | wginfer::Error::Task(
                TaskError::Parameter { .. }
                | TaskError::Label { .. }
                | TaskError::Engine(EngineError::Parameter { .. }),
            )
            | wginfer::Error::Bench(
                BenchError::Parameter { .. }
                | BenchError::UnknownShape { .. }
                | BenchError::NoKernel { .. }
                | BenchError::Engine(EngineError::Parameter { .. }),
            ) => Failure::Usage { message, hint },
            _ => Failure::Failed { message, hint },
        }
    }
}

impl From<CheckpointError> for Failure {
    fn from(error: CheckpointError) -> Self {
        // The name may have been meant as a path.
        let is_network = matches!(error, CheckpointError::Hub(HubError::Network { .. }));
        let name = match &error {
            CheckpointError::Hub(HubError::NotFound { id: name, .. } | HubError::Offline { name }) => {
                Some(name.clone())
            }
            _ => None,
        };
        match (wginfer::Error::from(error).into(), name) {
            (Failure::Failed { message, hint }, Some(name)) => {
                Failure::Failed { message: format!("there is no folder `{name}`, and {message}"), hint }
            }
            (Failure::Failed { message, hint }, None) if is_network => {
                Failure::Failed { message: format!("there is no such folder, and {message}"), hint }
            }
            (failure, _) => failure,
        }
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        wginfer::Error::from(error).into()
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        wginfer::Error::from(error).into()
    }
}

impl From<GpuError> for Failure {
    fn from(error: GpuError) -> Self {
        wginfer::Error::from(error).into()
    }
}

impl From<AudioError> for Failure {
    fn from(error: AudioError) -> Self {
        wginfer::Error::from(error).into()
    }
}

impl From<TranscribeError> for Failure {
    fn from(error: TranscribeError) -> Self {
        wginfer::Error::from(error).into()
    }
}

impl From<TaskError> for Failure {
    fn from(error: TaskError) -> Self {
        wginfer::Error::from(error).into()
    }
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        wginfer::Error::from(error).into()
    }
}

impl From<TextError> for Failure {
    fn from(error: TextError) -> Self {
        wginfer::Error::from(error).into()
    }
}

/// Only writing fails this way, to a file with a name or to standard output: readers map their own errors.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            _ if error.get_ref().is_some_and(|inner| inner.is::<WriteError>()) => {
                Failure::failed(error.to_string())
            }
            std::io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::failed(format!("standard output cannot be written: {error}")),
        }
    }
}

/// As above: serialisation to JSON cannot fail here, so the stream did.
impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        std::io::Error::from(error).into()
    }
}
