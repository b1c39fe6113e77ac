//! `wginfer classify`: labels for texts.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use wginfer::engine::{Engine, EngineOptions};
use wginfer::tasks::{self, Classification, Input, Label};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::prompt;
use super::watch::watch;

const EXAMPLES: &str = "Examples:
  wginfer classify \"Mia lost her ball and cried.\" --labels happy,sad,afraid,angry
  wginfer classify -f mails.txt --labels \"spam: unwanted advertising,ham: all other mail\" --json
  wginfer classify --jsonl -f reviews.jsonl --labels-file labels.txt --threshold 0.5

A language model is asked which label fits. A label's score is the mean log-probability of its tokens as the
answer, less that for an empty text; probabilities are the softmax of the scores.";

#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct ClassifyArgs {
    /// The texts; from standard input without
    #[arg(conflicts_with = "file", value_name = "TEXT")]
    texts: Vec<String>,

    /// Read the texts from a file, one a line; `-` is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Each line is a JSON object with the text in its field `text`
    #[arg(long, conflicts_with = "texts")]
    jsonl: bool,

    #[command(flatten)]
    labels: LabelArgs,

    /// Show only the K most probable labels; all for one text, one for each of several without
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,

    /// Show only labels that are at least so probable
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    threshold: f64,

    /// Write an array of objects
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

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

/// One text's labels as `--json` writes them.
#[derive(Serialize)]
struct TextJson<'a> {
    text: &'a str,
    #[serde(flatten)]
    classification: &'a Classification,
}

pub fn run(args: &ClassifyArgs, out: &mut dyn Write) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&args.threshold) {
        return Err(Failure::usage(format!(
            "`threshold` is {}, expected a number from 0 to 1",
            args.threshold
        )));
    }
    let labels = args.labels.read()?;
    if labels.is_empty() {
        let hint = "a language model needs them: `--labels happy,sad`, or `--labels-file FILE`";
        return Err(Failure::usage("no labels given").with_hint(hint));
    }
    let texts = texts(args)?;
    let mut engine = load(&args.model, &args.device)?;
    let inputs: Vec<Input<'_>> = texts.iter().map(|text| Input::Text(text)).collect();
    let mut classified = watch(|_| Ok(()), |on| tasks::classify(&mut engine, &inputs, &labels, on))?;
    let usage = tasks::total(classified.iter().map(|c| c.usage));

    let top = match args.top {
        Some(top) => top as usize,
        None if texts.len() > 1 && !args.json => 1,
        None => usize::MAX,
    };
    for classification in &mut classified {
        classification.labels.truncate(top);
        classification.labels.retain(|label| label.probability >= args.threshold);
    }
    let results = texts.iter().zip(&classified);
    if args.json {
        let all: Vec<TextJson<'_>> =
            results.map(|(text, classification)| TextJson { text, classification }).collect();
        serde_json::to_writer_pretty(&mut *out, &all)?;
        writeln!(out)?;
    } else {
        for (text, classification) in results {
            // One text is known to who asks; several are told apart.
            let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let behind = if texts.len() > 1 { format!("\t{line}") } else { String::new() };
            for label in &classification.labels {
                writeln!(out, "{}\t{:.4}{behind}", label.label, label.probability)?;
            }
            if classification.labels.is_empty() {
                writeln!(out, "-\t-{behind}")?;
            }
        }
    }
    log::info!(
        "{} texts, {} labels · {} prompt tokens ({} cached)",
        texts.len(),
        labels.len(),
        usage.prompt_tokens,
        usage.cached_tokens
    );
    Ok(())
}

/// An engine that gives the log-probabilities of prompts.
pub fn load(model: &ModelArg, device: &DeviceArgs) -> Result<Engine, Failure> {
    let checkpoint = model.open()?;
    checkpoint.tokenizer.as_ref().map_err(Clone::clone)?;
    let vocab_size = checkpoint.architecture.shape().vocab_size;
    let prompt_logprobs = tasks::prompt_logprob_rows(vocab_size);
    device.load(checkpoint, EngineOptions { prompt_logprobs, ..EngineOptions::default() })
}

fn texts(args: &ClassifyArgs) -> Result<Vec<String>, Failure> {
    if !args.texts.is_empty() {
        return Ok(args.texts.clone());
    }
    let (text, from) = (prompt::text(None, args.file.as_deref())?, prompt::name(args.file.as_deref()));
    let has_extension = args.file.as_deref().and_then(Path::extension).is_some_and(|e| e == "jsonl");
    let texts: Vec<String> = if args.jsonl || has_extension {
        let texts = prompt::objects(&text, &from)?.into_iter().map(|(line, object)| {
            let text = prompt::field(&object, "text", &from, line)?;
            let missing =
                || Failure::failed(format!("{from}, line {line}: expected a field `text`, found none"));
            text.map(str::to_string).ok_or_else(missing)
        });
        texts.collect::<Result<_, _>>()?
    } else {
        text.lines().filter(|line| !line.trim().is_empty()).map(str::to_string).collect()
    };
    if texts.is_empty() { Err(Failure::failed(format!("{from} is empty"))) } else { Ok(texts) }
}
