//! `wginfer score`: perplexity of a text, accuracy on questions.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use wginfer::engine::{Engine, Usage};
use wginfer::tasks::{self, ClassifyInput, Label};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::labels::{LabelArgs, load};
use super::watch::watch;
use super::{json, prompt};

const EXAMPLES: &str = "Examples:
  wginfer score -m ~/models/SmolLM2-360M -f wiki.txt --ctx 2048 --stride 512
  wginfer score -f questions.jsonl --json
  wginfer score -f reviews.jsonl --labels positive,negative

A text: its perplexity and bits per byte, in windows of `--ctx` tokens `--stride` apart, each scoring the tokens
that the windows before it did not. Every token but the first is scored once.

A `.jsonl` file has one object per line:
  {\"prompt\": ..., \"answer\": ...}  the greedy answer is right if it is the same in lower case, without
                                  punctuation, articles and spare blanks (as SQuAD compares)
  {\"text\": ..., \"label\": ...}     the most probable label (as `classify` finds it) is right; the labels
  {\"prompt\": ..., \"label\": ...}   are those in the field `labels`, or those of `--labels`";

/// Measure the perplexity of a text, or the accuracy of a model's answers
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The text, or a `.jsonl` file of prompts and answers; `-` is standard input. Default: standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Treat the input as a `.jsonl` file, whatever its name
    #[arg(long)]
    jsonl: bool,

    /// Tokens from the beginning of one window to that of the next. Default: half the context
    #[arg(long, value_name = "N")]
    stride: Option<usize>,

    #[command(flatten)]
    labels: LabelArgs,

    /// Maximum number of tokens of an answer
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,

    /// Write an object; for a `.jsonl` file, with the result of each line
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

/// A line of a `.jsonl` file.
struct Item {
    line: usize,
    question: String,
    expected: String,
    kind: Kind,
}

enum Kind {
    /// A prompt to answer freely.
    Answer,
    /// One of these labels for a prompt.
    Prompt(Vec<Label>),
    /// One of these labels for a text.
    Text(Vec<Label>),
}

/// The result of one line.
#[derive(Serialize)]
struct ItemJson<'a> {
    line: usize,
    expected: &'a str,
    found: String,
    is_right: bool,
}

#[derive(Default, Serialize)]
struct AccuracyJson<'a> {
    accuracy: f64,
    right: usize,
    items: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    exact_match: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label_accuracy: Option<f64>,
    usage: Usage,
    results: Vec<ItemJson<'a>>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let labels = args.labels.read()?;
    let (text, from) = (prompt::text(None, args.file.as_deref())?, prompt::name(args.file.as_deref()));
    if text.trim().is_empty() {
        return Err(Failure::failed(format!("{from} is empty")));
    }
    let has_extension = args.file.as_deref().and_then(Path::extension).is_some_and(|e| e == "jsonl");
    if args.jsonl || has_extension {
        if args.max_tokens == 0 {
            return Err(Failure::usage("`max_tokens` is 0, expected at least 1"));
        }
        let items = items(&text, &from, &labels)?;
        let mut engine = load(args.model.open()?, &args.device)?;
        return accuracy(args, &mut engine, &items, out);
    }
    if !labels.is_empty() {
        let hint = "`--jsonl` treats a file of any name as one";
        return Err(Failure::usage("labels are for a `.jsonl` file").with_hint(hint));
    }
    let mut engine = load(args.model.open()?, &args.device)?;
    let found = watch(|_| Ok(()), |on| tasks::perplexity(&mut engine, &text, args.stride, on))?;
    if args.json {
        json::write(&found, out)?;
    } else {
        writeln!(out, "perplexity     {:.4}", found.perplexity)?;
        writeln!(out, "bits per byte  {:.4}", found.bits_per_byte)?;
    }
    log::info!(
        "{} of {} tokens scored, {} bytes · {} windows of at most {} tokens, {} apart",
        found.scored,
        found.tokens,
        found.bytes,
        found.windows,
        found.ctx,
        found.stride
    );
    Ok(())
}

fn items(text: &str, from: &str, labels: &[Label]) -> Result<Vec<Item>, Failure> {
    let parse = |(line, object): (usize, prompt::Object)| {
        let wrong = |message: String| Failure::failed(format!("{from}, line {line}: {message}"));
        let field = |key| prompt::field(&object, key, from, line);
        let (asked, text, answer, label) =
            (field("prompt")?, field("text")?, field("answer")?, field("label")?);
        let own = match object.get("labels") {
            None => None,
            Some(serde_json::Value::Array(list)) => {
                let names: Option<Vec<Label>> = list.iter().map(|v| v.as_str().map(Label::parse)).collect();
                Some(names.ok_or_else(|| wrong("`labels` must be a list of texts".into()))?)
            }
            Some(other) => return Err(wrong(format!("`labels` is {other}, expected a list of texts"))),
        };
        let labels = own.unwrap_or_else(|| labels.to_vec());
        let (question, expected, kind) = match (asked, text, answer, label) {
            (Some(prompt), None, Some(answer), None) => (prompt, answer, Kind::Answer),
            (Some(prompt), None, None, Some(label)) => (prompt, label, Kind::Prompt(labels)),
            (None, Some(text), None, Some(label)) => (text, label, Kind::Text(labels)),
            _ => {
                let message = "expected `prompt` with `answer` or `label`, or `text` with `label`";
                let keys: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
                return Err(wrong(format!("{message}, found {}", keys.join(", "))));
            }
        };
        if let Kind::Prompt(labels) | Kind::Text(labels) = &kind {
            if labels.is_empty() {
                return Err(wrong("expected a field `labels`, or `--labels`, found none".into()));
            }
            if !labels.iter().any(|label| label.name == expected) {
                return Err(wrong(format!("`label` is `{expected}`, which is not among the labels")));
            }
        }
        Ok(Item { line, question: question.to_string(), expected: expected.to_string(), kind })
    };
    prompt::objects(text, from)?.into_iter().map(parse).collect()
}

fn accuracy(args: &Args, engine: &mut Engine, items: &[Item], out: &mut dyn Write) -> Result<(), Failure> {
    // Lines with the same labels are one batch.
    let mut by_labels: BTreeMap<&[Label], Vec<usize>> = BTreeMap::new();
    let mut free = Vec::new();
    for (i, item) in items.iter().enumerate() {
        match &item.kind {
            Kind::Answer => free.push(i),
            Kind::Prompt(labels) | Kind::Text(labels) => by_labels.entry(labels).or_default().push(i),
        }
    }
    let mut found: Vec<(String, bool)> = vec![Default::default(); items.len()];
    let mut usages = Vec::new();
    watch(
        |_| Ok(()),
        |on| {
            if !free.is_empty() {
                let pairs: Vec<(&str, &str)> =
                    free.iter().map(|i| (&items[*i].question[..], &items[*i].expected[..])).collect();
                let matches = tasks::exact_match(engine, &pairs, args.max_tokens, on)?;
                for (i, found_one) in free.iter().zip(matches) {
                    usages.push(found_one.usage);
                    found[*i] = (found_one.answer, found_one.is_right);
                }
            }
            for (labels, group) in &by_labels {
                let input = |i: &usize| match items[*i].kind {
                    Kind::Text(_) => ClassifyInput::Text(&items[*i].question),
                    _ => ClassifyInput::Prompt(&items[*i].question),
                };
                let inputs: Vec<ClassifyInput<'_>> = group.iter().map(input).collect();
                for (i, classified) in group.iter().zip(tasks::classify(engine, &inputs, labels, on)?) {
                    let best = classified.best().map(|best| best.label.clone()).unwrap_or_default();
                    usages.push(classified.usage);
                    found[*i] = (best.clone(), best == items[*i].expected);
                }
            }
            Ok(())
        },
    )?;
    let share = |of: &dyn Fn(&Item) -> bool| {
        let right: Vec<bool> = items
            .iter()
            .zip(&found)
            .filter(|(item, _)| of(item))
            .map(|(_, (_, is_right))| *is_right)
            .collect();
        let n_right = right.iter().filter(|right| **right).count();
        (!right.is_empty()).then(|| (n_right as f64 / right.len() as f64, n_right, right.len()))
    };
    let is_free = |item: &Item| matches!(item.kind, Kind::Answer);
    let (exact, labelled) = (share(&is_free), share(&|item| !is_free(item)));
    let (accuracy, right, n_items) = share(&|_| true).unwrap_or_default();
    let usage = tasks::total(usages);
    if args.json {
        let results = items.iter().zip(found).map(|(item, (found, is_right))| ItemJson {
            line: item.line,
            expected: &item.expected,
            found,
            is_right,
        });
        let accuracy = AccuracyJson {
            accuracy,
            right,
            items: n_items,
            exact_match: exact.map(|e| e.0),
            label_accuracy: labelled.map(|l| l.0),
            usage,
            results: results.collect(),
        };
        json::write(&accuracy, out)?;
    } else {
        for (name, share) in [("exact match", exact), ("label accuracy", labelled)] {
            if let Some((share, right, n)) = share {
                writeln!(out, "{name:<14} {share:.4} ({right} of {n})")?;
            }
        }
    }
    log::info!(
        "{} prompt ({} cached) + {} generated tokens",
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens
    );
    Ok(())
}
