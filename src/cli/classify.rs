//! `wginfer classify`: labels for texts.

use std::io::Write;
use std::path::PathBuf;

use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Output, Usage};
use wginfer::models::{ModelKind, Problem};
use wginfer::tasks::{self, COSINE_TEMPERATURE, Classification, ClassifyInput, Encoding, Label};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::labels::{LabelArgs, load};
use super::rows::{Done, Rows};
use super::watch::watch;
use super::{encode, format, json, table};

const EXAMPLES: &str = "Examples:
  wginfer classify \"Mia lost her ball and cried.\" --labels happy,sad,afraid,angry
  wginfer classify -f mails.txt --labels \"spam: unwanted advertising,ham: all other mail\" --json
  wginfer classify --jsonl -f reviews.jsonl --labels-file labels.txt --threshold 0.5

A model with a classification head has its own labels. A language model is asked which label fits: a label's score is
the mean log-probability of its tokens as the answer, minus that for an empty text. With an embedding model, a
label's score is the cosine between the text and the label's description, or its name, divided by 0.05.
Probabilities are the softmax of the scores.

Blank lines are skipped. In JSON, `index` is that of a text's line, from 0, blank ones counted, and a text that fails has
`error` instead of labels. The others are classified; the exit code is 1.";

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

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&args.threshold) {
        return Err(Failure::usage(format!(
            "`threshold` is {}, expected a number from 0 to 1",
            args.threshold
        )));
    }
    let labels = args.labels.read()?;
    let checkpoint = args.model.open_any()?;
    let mut classified = match checkpoint.kind() {
        ModelKind::Decoder => by_language_model(args, checkpoint, &labels)?,
        ModelKind::Encoder => by_encoder(args, checkpoint, &labels)?,
    };
    let n_texts = classified.rows.len();
    let top = match args.top {
        Some(top) => top as usize,
        None if n_texts > 1 && !args.json => 1,
        None => usize::MAX,
    };
    let (mut n_labels, mut usages) = (0, Vec::new());
    for classification in classified.rows.iter_mut().flat_map(|row| &mut row.result) {
        n_labels = classification.labels.len();
        usages.push(classification.usage);
        classification.labels.truncate(top);
        classification.labels.retain(|label| label.probability >= args.threshold);
    }
    if args.json {
        json::write(&classified.rows.iter().map(|row| row.json(|found| found)).collect::<Vec<_>>(), out)?;
    } else {
        write_lines(&classified, out)?;
    }
    let usage = tasks::total(usages);
    log::info!(
        "texts: {n_texts}, labels: {n_labels} · {} prompt tokens ({} cached)",
        usage.prompt_tokens,
        usage.cached_tokens
    );
    classified.report(args.json)
}

/// Writes a line for each label of each text that has labels.
fn write_lines(classified: &Classified, out: &mut dyn Write) -> Result<(), Failure> {
    for row in &classified.rows {
        let Ok(classification) = &row.result else { continue };
        // The user knows a single text; several need names.
        let line = row.input.iter().flat_map(|text| text.split_whitespace()).collect::<Vec<_>>().join(" ");
        let several = classified.rows.len() > 1;
        let behind = if several { format!("\t{}", format::shown(&line, table::MOST)) } else { String::new() };
        for label in &classification.labels {
            let name = format::shown(&label.label, table::MOST);
            writeln!(out, "{name}\t{:.4}{behind}", label.probability)?;
        }
        if classification.labels.is_empty() {
            writeln!(out, "-\t-{behind}")?;
        }
    }
    Ok(())
}

/// The texts, and the classification of each.
type Classified = Done<String, Classification>;

fn no_labels(who: &str) -> Failure {
    let hint = format!("{who} needs them: `--labels happy,sad`, or `--labels-file FILE`");
    Failure::usage("no labels given").with_hint(hint)
}

fn by_language_model(args: &Args, checkpoint: ModelFiles, labels: &[Label]) -> Result<Classified, Failure> {
    if labels.is_empty() {
        return Err(no_labels("a language model"));
    }
    let texts = args.texts()?;
    let mut engine = load(checkpoint, &args.device)?;
    let inputs: Vec<ClassifyInput<'_>> =
        texts.good().into_iter().map(|text| ClassifyInput::Text(text)).collect();
    let classified = watch(|_| Ok(()), |on| tasks::classify(&mut engine, &inputs, labels, on))?;
    Ok(texts.with(classified.into_iter().map(|classification| Ok(classification?))))
}

/// Classifies with the model's head if it has one, and otherwise by the similarity of texts and labels.
fn by_encoder(args: &Args, checkpoint: ModelFiles, labels: &[Label]) -> Result<Classified, Failure> {
    checkpoint.tokenizer.as_ref().map_err(Clone::clone)?;
    let head = checkpoint.labels.clone();
    let usage = |encoding: &Encoding| {
        let prompt_tokens = encoding.n_tokens;
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
            let texts = args.texts()?;
            let mut encoder = args.device.load_encoder(checkpoint)?;
            let encodings = encode::encode(&mut encoder, &texts.good(), "", Output::Logits)?;
            let classify = |encoding: Result<Encoding, Failure>| {
                let encoding = encoding?;
                let probabilities = head.probabilities(&encoding.values).unwrap_or_default();
                let probabilities = probabilities.into_iter().map(f64::from);
                let names = head.names.iter().map(String::as_str);
                Ok(Classification::of(names, probabilities, usage(&encoding)).checked()?)
            };
            texts.with(encodings.into_iter().map(classify))
        }
        None if labels.is_empty() => return Err(no_labels("an embedder")),
        None => {
            tasks::check_labels(labels)?;
            let texts = args.texts()?;
            let mut encoder = args.device.load_encoder(checkpoint)?;
            let meant: Vec<&String> =
                labels.iter().map(|label| label.description.as_ref().unwrap_or(&label.name)).collect();
            let named = tasks::encode(&mut encoder, &meant, Output::Embedding, &mut |_| {})?;
            let named = labels.iter().zip(named).map(|(label, encoding)| {
                Ok(encoding.map_err(|e| Failure::from(e).at(&format!("label `{}`", label.name)))?.values)
            });
            let named = named.collect::<Result<Vec<_>, Failure>>()?;
            let encodings = encode::encode(&mut encoder, &texts.good(), "", Output::Embedding)?;
            let classify = |encoding: Result<Encoding, Failure>| {
                let encoding = encoding?;
                let names = labels.iter().map(|label| label.name.as_str());
                let scores = tasks::label_scores(&[&encoding.values], &named, COSINE_TEMPERATURE);
                Ok(Classification::new(names, &scores[0], usage(&encoding)).checked()?)
            };
            texts.with(encodings.into_iter().map(classify))
        }
    };
    Ok(classified)
}

impl Args {
    fn texts(&self) -> Result<Rows<String>, Failure> {
        Rows::texts(&self.texts, self.file.as_deref(), self.jsonl)
    }
}
