//! Labels to choose from, and the engine that weighs them.

use std::path::PathBuf;

use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Engine, EngineOptions};
use wginfer::tasks::{self, Label};

use super::args::DeviceArgs;
use super::failure::Failure;
use super::prompt;

/// Which labels there are.
#[derive(clap::Args)]
pub struct LabelArgs {
    /// Labels with commas between, each with `: DESCRIPTION` behind it if that helps; may be given several times
    #[arg(long, value_name = "LABELS", value_delimiter = ',', conflicts_with = "labels_file")]
    labels: Vec<String>,

    /// Labels from a file, one a line: descriptions may have commas there
    #[arg(long, value_name = "FILE")]
    labels_file: Option<PathBuf>,
}

impl LabelArgs {
    /// The labels; none if none were given.
    pub fn read(&self) -> Result<Vec<Label>, Failure> {
        match &self.labels_file {
            None => Ok(self.labels.iter().map(|label| Label::parse(label)).collect()),
            Some(path) => {
                let text = prompt::text(None, Some(path))?;
                let lines = text.lines().filter(|line| !line.trim().is_empty());
                let labels: Vec<Label> = lines.map(Label::parse).collect();
                match labels.is_empty() {
                    true => Err(Failure::failed(format!("{} has no labels", prompt::name(Some(path))))),
                    false => Ok(labels),
                }
            }
        }
    }
}

/// An engine that gives the log-probabilities of prompts.
pub fn load(checkpoint: ModelFiles, device: &DeviceArgs) -> Result<Engine, Failure> {
    checkpoint.tokenizer.as_ref().map_err(Clone::clone)?;
    let vocab_size = checkpoint.architecture.shape().vocab_size;
    let prompt_logprobs = tasks::prompt_logprob_rows(vocab_size);
    device.load(checkpoint, EngineOptions { prompt_logprobs, ..EngineOptions::default() })
}
