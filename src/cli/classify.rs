//! `wginfer classify`: labels for texts.

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Output, Usage};
use wginfer::models::{ModelKind, Problem};
use wginfer::tasks::{self, COSINE_TEMPERATURE, Classification, ClassifyInput, Encodings, Label};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::labels::{LabelArgs, load};
use super::watch::watch;
use super::{encode, json, prompt};

const EXAMPLES: &str = "Examples:
  wginfer classify \"Mia lost her ball and cried.\" --labels happy,sad,afraid,angry
  wginfer classify -f mails.txt --labels \"spam: unwanted advertising,ham: all other mail\" --json
  wginfer classify --jsonl -f reviews.jsonl --labels-file labels.txt --threshold 0.5

A model with a classification head has its own labels. A language model is asked which label fits: a label's score is
the mean log-probability of its tokens as the answer, minus that for an empty text. With an embedding model, a
label's score is the cosine between the text and the label's description, or its name, divided by 0.05.
Probabilities are the softmax of the scores.";

/// Classify texts: compute the probability of each label
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The texts. Default: standard input
    #[arg(conflicts_with = "file", value_name = "TEXT")]
    texts: Vec<String>,

    /// Read the texts from a file, one per line; `-` is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Lines are JSON objects with the text in the field `text`
    #[arg(long, conflicts_with = "texts")]
    jsonl: bool,

    #[command(flatten)]
    labels: LabelArgs,

    /// Number of labels to print per text. Default: all for one text, the best for several
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,

    /// Show only labels with at least this probability
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

/// One text's labels as `--json` writes them.
#[derive(Serialize)]
struct TextJson<'a> {
    text: &'a str,
    #[serde(flatten)]
    classification: &'a Classification,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&args.threshold) {
        return Err(Failure::usage(format!(
            "`threshold` is {}, expected a number from 0 to 1",
            args.threshold
        )));
    }
    let labels = args.labels.read()?;
    let checkpoint = args.model.open_any()?;
    let (mut classified, texts) = match checkpoint.kind() {
        ModelKind::Decoder => by_language_model(args, checkpoint, &labels)?,
        ModelKind::Encoder => by_encoder(args, checkpoint, &labels)?,
    };
    let n_labels = classified.first().map_or(0, |c| c.labels.len());
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
        json::write(&all, out)?;
    } else {
        for (text, classification) in results {
            // The user knows a single text; several need names.
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
        "texts: {}, labels: {} · {} prompt tokens ({} cached)",
        texts.len(),
        n_labels,
        usage.prompt_tokens,
        usage.cached_tokens
    );
    Ok(())
}

/// The classification of each text, and the texts.
type Classified = (Vec<Classification>, Vec<String>);

fn no_labels(who: &str) -> Failure {
    let hint = format!("{who} needs them: `--labels happy,sad`, or `--labels-file FILE`");
    Failure::usage("no labels given").with_hint(hint)
}

fn by_language_model(args: &Args, checkpoint: ModelFiles, labels: &[Label]) -> Result<Classified, Failure> {
    if labels.is_empty() {
        return Err(no_labels("a language model"));
    }
    let texts = texts(args)?;
    let mut engine = load(checkpoint, &args.device)?;
    let inputs: Vec<ClassifyInput<'_>> = texts.iter().map(|text| ClassifyInput::Text(text)).collect();
    let classified = watch(|_| Ok(()), |on| tasks::classify(&mut engine, &inputs, labels, on))?;
    Ok((classified, texts))
}

/// Classifies with the model's head if it has one, and otherwise by the similarity of texts and labels.
fn by_encoder(args: &Args, checkpoint: ModelFiles, labels: &[Label]) -> Result<Classified, Failure> {
    checkpoint.tokenizer.as_ref().map_err(Clone::clone)?;
    let head = checkpoint.labels.clone();
    let usage = |encodings: &Encodings, i: usize| {
        let prompt_tokens = encodings.n_tokens[i];
        Usage { prompt_tokens, total_tokens: prompt_tokens, ..Usage::default() }
    };
    let name = checkpoint.name.clone();
    let classified = match head {
        Some(head) if !labels.is_empty() => {
            let message = format!("`{name}` has labels of its own: {}", head.names.join(", "));
            return Err(Failure::usage(message).with_hint("leave `--labels` out, or give another model"));
        }
        Some(head) => {
            if head.problem == Problem::Regression {
                let message = format!("the head of `{name}` gives a value, not probabilities of labels");
                return Err(Failure::failed(message).with_hint("`wginfer logits` shows it"));
            }
            let texts = texts(args)?;
            let mut encoder = args.device.load_encoder(checkpoint)?;
            let encodings = encode::encode(&mut encoder, &texts, "", Output::Logits)?;
            let classify = |(i, logits): (usize, &Vec<f32>)| {
                let probabilities = head.probabilities(logits).unwrap_or_default();
                let probabilities = probabilities.into_iter().map(f64::from);
                let names = head.names.iter().map(String::as_str);
                Classification::of(names, probabilities, usage(&encodings, i))
            };
            (encodings.values.iter().enumerate().map(classify).collect(), texts)
        }
        None if labels.is_empty() => return Err(no_labels("an embedder")),
        None => {
            tasks::check_labels(labels)?;
            let texts = texts(args)?;
            let mut encoder = args.device.load_encoder(checkpoint)?;
            let meant: Vec<&String> =
                labels.iter().map(|label| label.description.as_ref().unwrap_or(&label.name)).collect();
            let named = tasks::encode(&mut encoder, &meant, Output::Embedding, &mut |_| {})?;
            let encodings = encode::encode(&mut encoder, &texts, "", Output::Embedding)?;
            let classify = |(i, scores): (usize, Vec<f64>)| {
                let names = labels.iter().map(|label| label.name.as_str());
                Classification::new(names, &scores, usage(&encodings, i))
            };
            let scores = tasks::label_scores(&encodings.values, &named.values, COSINE_TEMPERATURE);
            (scores.into_iter().enumerate().map(classify).collect(), texts)
        }
    };
    Ok(classified)
}

/// The texts, without empty lines.
fn texts(args: &Args) -> Result<Vec<String>, Failure> {
    if !args.texts.is_empty() {
        return Ok(args.texts.clone());
    }
    let mut texts = prompt::lines(args.file.as_deref(), args.jsonl)?;
    texts.retain(|text| !text.trim().is_empty());
    Ok(texts)
}
