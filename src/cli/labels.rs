//! The labels of a classification, and the engine that scores them.

use std::path::PathBuf;

use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Engine, EngineOptions};
use wginfer::tasks::{self, Label};

use super::args::DeviceArgs;
use super::failure::Failure;
use super::prompt;
use super::rows::Rows;

/// The labels.
#[derive(clap::Args)]
pub struct LabelArgs {
    /// Labels separated by commas, each optionally followed by `: DESCRIPTION`; can be repeated
    #[arg(long, value_name = "LABELS", value_delimiter = ',', conflicts_with = "labels_file")]
    labels: Vec<String>,

    /// Read the labels from a file, one per line; descriptions can contain commas
    #[arg(long, value_name = "FILE")]
    labels_file: Option<PathBuf>,
}

impl LabelArgs {
    /// The labels, possibly none.
    pub fn read(&self) -> Result<Vec<Label>, Failure> {
        match &self.labels_file {
            None => Ok(self.labels.iter().map(|label| Label::parse(label)).collect()),
            Some(path) => {
                let rows = Rows::lines(Some(path))?.map(|line| Ok(Label::parse(&line)));
                let labels = rows.all()?;
                match labels.is_empty() {
                    true => Err(Failure::failed(format!("{} has no labels", prompt::name(Some(path))))),
                    false => Ok(labels),
                }
            }
        }
    }
}

/// Loads an engine that computes the log-probabilities of prompts.
pub fn load(checkpoint: ModelFiles, device: &DeviceArgs) -> Result<Engine, Failure> {
    checkpoint.tokenizer.as_ref().map_err(Clone::clone)?;
    let vocab_size = checkpoint.architecture.shape().vocab_size;
    let prompt_logprobs = tasks::prompt_logprob_rows(vocab_size);
    device.load(checkpoint, EngineOptions { prompt_logprobs, ..EngineOptions::default() })
}
