//! What the commands on a document of any length share.

use std::io::Write;
use std::path::PathBuf;

use wginfer::engine::{Engine, EngineOptions, FinishReason, Sampling, Usage};
use wginfer::tasks::{DocumentOptions, Observer, TaskError};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::prompt::Document;
use super::sampling::SamplingArgs;
use super::watch::watch;
use super::{json, prompt};

/// The document, and the options of the task on it.
#[derive(clap::Args)]
pub struct DocumentArgs {
    /// The document, text or Markdown; `-` is standard input. Default: standard input
    #[arg(long, short, value_name = "DOCUMENT")]
    file: Option<PathBuf>,

    /// Maximum number of tokens of the result. Default: 256, at most a quarter of the context
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// Maximum number of tokens of a piece of the document. Default: a twelfth of the context, from 64 to 1024
    #[arg(long, value_name = "N")]
    piece_tokens: Option<usize>,

    /// Write an object
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    sampling: SamplingArgs,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

impl DocumentArgs {
    /// The document, which must not be empty.
    pub fn read(&self) -> Result<Document, Failure> {
        let document = prompt::document(self.file.as_deref())?;
        match document.text.trim().is_empty() {
            true => Err(Failure::failed(format!("{} is empty", prompt::name(self.file.as_deref())))),
            false => Ok(document),
        }
    }

    /// Loads the model and runs `task`. Writes its text to `out` as it is generated, or its result as JSON. Returns the
    /// result.
    pub fn run<T: serde::Serialize>(
        &self,
        out: &mut dyn Write,
        task: impl FnOnce(&mut Engine, &DocumentOptions, &mut Observer<'_>) -> Result<T, TaskError>,
    ) -> Result<T, Failure> {
        if self.max_tokens == Some(0) {
            return Err(Failure::usage("`max_tokens` is 0, expected at least 1"));
        }
        let checkpoint = self.model.open()?;
        let options = DocumentOptions {
            sampling: self.sampling.over(&Sampling::greedy()),
            max_tokens: self.max_tokens,
            piece_tokens: self.piece_tokens,
        };
        options.sampling.check(checkpoint.architecture.shape().vocab_size)?;
        checkpoint.tokenizer.as_ref().map_err(Clone::clone)?;
        let mut engine = self.device.load(checkpoint, EngineOptions::default())?;
        let mut ends_line = true;
        let result = watch(
            |text| {
                if self.json {
                    return Ok(());
                }
                ends_line = text.ends_with('\n');
                write!(out, "{text}").and_then(|()| out.flush())
            },
            |on| task(&mut engine, &options, on),
        );
        if !ends_line {
            writeln!(out)?;
        }
        let result = result?;
        if self.json {
            json::write(&result, out)?;
        }
        Ok(out.flush().map(|()| result)?)
    }
}

/// Logs the tokens used, and warns of what was cut short.
pub fn report(usage: &Usage, finish_reason: FinishReason, n_cut: usize) {
    if finish_reason == FinishReason::Length {
        log::warn!("the result ended at its maximum number of tokens; `--max-tokens` raises it");
    }
    if n_cut > 0 {
        let what =
            if n_cut == 1 { "1 result of a piece".into() } else { format!("{n_cut} results of pieces") };
        log::warn!("{what} ended at a quarter of a piece's tokens; `--piece-tokens` raises it");
    }
    let cached = match usage.cached_tokens {
        0 => String::new(),
        n => format!(" ({n} cached)"),
    };
    log::info!("{} prompt{cached} + {} generated tokens", usage.prompt_tokens, usage.completion_tokens);
}
