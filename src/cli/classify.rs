//! `wginfer classify`: labels for texts.

use std::io::Write;
use std::path::PathBuf;

use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Output, Usage};
use wginfer::models::{ModelKind, Problem};
use wginfer::tasks::{
    self, COSINE_TEMPERATURE, Classification, ClassifyInput, ClassifyTask, Encoding, Label,
};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::labels::{LabelArgs, load};
use super::rows::{Done, DoneRow, Draft, Rows};
use super::watch::watch_each;
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
`error` instead of labels. The others are classified; the exit code is 1. Ctrl-C stops, and writes what is done.";

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

pub fn run(args: &Args, _out: &mut dyn Write) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&args.threshold) {
        return Err(Failure::usage(format!(
            "`threshold` is {}, expected a number from 0 to 1",
            args.threshold
        )));
    }
    let labels = args.labels.read()?;
    let checkpoint = args.model.open_any()?;
    let classified = match checkpoint.kind() {
        ModelKind::Decoder => by_language_model(args, checkpoint, &labels)?,
        ModelKind::Encoder => by_encoder(args, checkpoint, &labels)?,
    };
    let usage = tasks::total(classified.rows.iter().filter_map(DoneRow::good).map(|found| found.usage));
    log::info!(
        "texts: {} · {} prompt tokens ({} cached)",
        classified.rows.len(),
        usage.prompt_tokens,
        usage.cached_tokens
    );
    classified.report(args.json)
}

/// Writes a line for each label of each text that has labels.
fn write_lines(
    classified: &Classified,
    shown: impl Fn(&Classification) -> Classification,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    for row in &classified.rows {
        let Some(classification) = row.good().map(&shown) else { continue };
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
    let mut task = ClassifyTask::new(&engine, &inputs, labels)?;
    let n_texts = inputs.len();
    let draft = args.draft(texts);
    let work = watch_each(&mut task, &mut engine, n_texts, |i, found| draft.set(i, found));
    draft.finish(work)
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
    match head {
        Some(head) if !labels.is_empty() => {
            let message = format!("`{name}` has labels of its own: {}", head.names.join(", "));
            Err(Failure::usage(message).with_hint("leave `--labels` out, or give another model"))
        }
        Some(head) => {
            if head.problem == Problem::Regression {
                let message = format!("the head of `{name}` gives a value, not probabilities of labels");
                return Err(Failure::failed(message).with_hint("`wginfer logits` shows it"));
            }
            let texts = args.texts()?;
            let mut encoder = args.device.load_encoder(checkpoint)?;
            let task = encode::task(&encoder, &texts.good(), "", Output::Logits)?;
            let draft = args.draft(texts);
            let classify = |encoding: Result<Encoding, Failure>| {
                let encoding = encoding?;
                let probabilities = head.probabilities(&encoding.values).unwrap_or_default();
                let probabilities = probabilities.into_iter().map(f64::from);
                let names = head.names.iter().map(String::as_str);
                Ok(Classification::of(names, probabilities, usage(&encoding)).checked()?)
            };
            let work = encode::run(&mut encoder, task, |i, encoding| draft.set(i, classify(encoding)));
            draft.finish(work)
        }
        None if labels.is_empty() => Err(no_labels("an embedder")),
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
            let task = encode::task(&encoder, &texts.good(), "", Output::Embedding)?;
            let draft = args.draft(texts);
            let classify = |encoding: Result<Encoding, Failure>| {
                let encoding = encoding?;
                let names = labels.iter().map(|label| label.name.as_str());
                let scores = tasks::label_scores(&[&encoding.values], &named, COSINE_TEMPERATURE);
                Ok(Classification::new(names, &scores[0], usage(&encoding)).checked()?)
            };
            let work = encode::run(&mut encoder, task, |i, encoding| draft.set(i, classify(encoding)));
            draft.finish(work)
        }
    }
}

impl Args {
    /// The texts whose labels will be written.
    fn draft(&self, texts: Rows<String>) -> Draft<String, Classification> {
        let top = match self.top {
            Some(top) => top as usize,
            None if texts.rows.len() > 1 && !self.json => 1,
            None => usize::MAX,
        };
        let (threshold, json) = (self.threshold, self.json);
        let shown = move |found: &Classification| {
            let mut found = found.clone();
            found.labels.truncate(top);
            found.labels.retain(|label| label.probability >= threshold);
            found
        };
        Draft::new(texts, None, move |classified, out| match json {
            true => {
                let rows = classified.rows.iter().filter_map(|row| row.json(shown));
                json::write(&rows.collect::<Vec<_>>(), out)
            }
            false => write_lines(classified, shown, out),
        })
    }

    fn texts(&self) -> Result<Rows<String>, Failure> {
        Rows::texts(&self.texts, self.file.as_deref(), self.jsonl)
    }
}
