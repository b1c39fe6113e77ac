//! How a command can end early.

use std::process::ExitCode;

use wginfer::audio::AudioError;
use wginfer::bench::BenchError;
use wginfer::checkpoint::CheckpointError;
use wginfer::engine::EngineError;
use wginfer::gpu::GpuError;
use wginfer::tasks::TaskError;
use wginfer::tasks::transcribe::TranscribeError;
use wginfer::text::TextError;

/// Why a command did not finish.
#[derive(Debug)]
pub enum Failure {
    /// Nobody reads standard output any more, as after `| head`: that is no error.
    ClosedPipe,
    /// The arguments make no sense: exit code 2.
    Usage { message: String, hint: Option<String> },
    /// Something went wrong: exit code 1.
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

    /// Message and hint, each in one line whatever a driver or a file had to say.
    pub fn lines(&self) -> (String, Option<String>) {
        let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        match self {
            Failure::ClosedPipe => ("standard output was closed".to_string(), None),
            Failure::Usage { message, hint } | Failure::Failed { message, hint } => {
                (one_line(message), hint.as_deref().map(one_line))
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

impl From<wginfer::Error> for Failure {
    fn from(error: wginfer::Error) -> Self {
        let (message, hint) = (error.to_string(), error.hint());
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
        Failure::Failed { hint: super::model::hint(&error), message: error.to_string() }
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

/// Only writing to standard output fails this way; whoever reads says what could not be read.
impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Failure::ClosedPipe,
            _ => Failure::failed(format!("standard output cannot be written: {error}")),
        }
    }
}

/// As above: what is turned to JSON here always can be, so the stream is what failed.
impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        std::io::Error::from(error).into()
    }
}
