//! `wginfer score`: perplexity of a text, accuracy on questions.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::Value;
use wginfer::engine::{Engine, EngineError, Usage};
use wginfer::tasks::{self, Classification, ClassifyInput, ClassifyTask, Label, MatchTask, TaskError};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::labels::{LabelArgs, load};
use super::rows::{Done, Draft, Object, Rows, brief, field, is_jsonl};
use super::watch::{watch, watch_each};
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
  {\"prompt\": ..., \"label\": ...}   are those in the field `labels`, or those of `--labels`
Blank lines are skipped. In JSON, `index` is that of a line, from 0, blank ones counted. A line that fails has `error`
there and counts in no accuracy; the exit code is 1. Ctrl-C stops, and writes what is done.";

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
#[derive(Clone)]
struct Item {
    question: String,
    expected: String,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    /// A prompt to answer freely.
    Answer,
    /// One of these labels for a prompt.
    Prompt(Vec<Label>),
    /// One of these labels for a text.
    Text(Vec<Label>),
}

/// What the model found for an item.
struct Found {
    answer: String,
    is_right: bool,
    usage: Usage,
}

/// The result of one line.
#[derive(Serialize)]
struct ItemJson<'a> {
    index: usize,
    /// From 1, as editors count.
    line: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_right: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct AccuracyJson<'a> {
    /// Null if no line has a result.
    accuracy: Option<f64>,
    right: usize,
    items: usize,
    /// Lines that failed.
    failed: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    exact_match: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label_accuracy: Option<f64>,
    usage: Usage,
    results: Vec<ItemJson<'a>>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let labels = args.labels.read()?;
    let from = prompt::name(args.file.as_deref());
    let empty = || Failure::failed(format!("{from} is empty"));
    if is_jsonl(args.file.as_deref(), args.jsonl) {
        if args.max_tokens == 0 {
            return Err(Failure::usage("`max_tokens` is 0, expected at least 1"));
        }
        if !labels.is_empty() {
            tasks::check_labels(&labels)?;
        }
        let objects = Rows::objects(args.file.as_deref())?;
        if objects.rows.is_empty() {
            return Err(empty());
        }
        let items = objects.map(|object| item(&object, &labels));
        let mut engine = load(args.model.open()?, &args.device)?;
        return accuracy(args, &mut engine, items);
    }
    let text = prompt::text(None, args.file.as_deref())?;
    if text.trim().is_empty() {
        return Err(empty());
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

fn item(object: &Object, labels: &[Label]) -> Result<Item, Failure> {
    let own = match object.get("labels") {
        None => None,
        Some(Value::Array(list)) => {
            let names: Option<Vec<Label>> = list.iter().map(|v| v.as_str().map(Label::parse)).collect();
            Some(names.ok_or_else(|| Failure::failed("`labels` must be a list of texts"))?)
        }
        Some(other) => {
            return Err(Failure::failed(format!("`labels` is {}, expected a list of texts", brief(other))));
        }
    };
    let labels = own.unwrap_or_else(|| labels.to_vec());
    let field = |key| field(object, key);
    let (question, expected, kind) =
        match (field("prompt")?, field("text")?, field("answer")?, field("label")?) {
            (Some(prompt), None, Some(answer), None) => (prompt, answer, Kind::Answer),
            (Some(prompt), None, None, Some(label)) => (prompt, label, Kind::Prompt(labels)),
            (None, Some(text), None, Some(label)) => (text, label, Kind::Text(labels)),
            _ => {
                let keys: Vec<String> = object.keys().map(|key| format!("`{key}`")).collect();
                let found = if keys.is_empty() { "none".to_string() } else { keys.join(", ") };
                return Err(Failure::failed(format!(
                    "expected `prompt` with `answer` or `label`, or `text` with `label`, found {found}"
                )));
            }
        };
    if let Kind::Prompt(labels) | Kind::Text(labels) = &kind {
        if labels.is_empty() {
            return Err(Failure::failed("expected a field `labels`, or `--labels`, found none"));
        }
        tasks::check_labels(labels)?;
        if !labels.iter().any(|label| label.name == expected) {
            return Err(Failure::failed(format!("`label` is `{expected}`, which is not among the labels")));
        }
    }
    Ok(Item { question: question.to_string(), expected: expected.to_string(), kind })
}

/// Asks the model. `on` receives what it found for each item, with its index.
fn ask(
    engine: &mut Engine,
    items: &[Item],
    max_tokens: usize,
    mut on: impl FnMut(usize, Result<Found, Failure>),
) -> Result<(), Failure> {
    // Lines with the same labels are one batch.
    let mut by_labels: BTreeMap<&[Label], Vec<usize>> = BTreeMap::new();
    let mut free = Vec::new();
    for (i, item) in items.iter().enumerate() {
        match &item.kind {
            Kind::Answer => free.push(i),
            Kind::Prompt(labels) | Kind::Text(labels) => by_labels.entry(labels).or_default().push(i),
        }
    }
    if !free.is_empty() {
        let pairs: Vec<(&str, &str)> =
            free.iter().map(|i| (&items[*i].question[..], &items[*i].expected[..])).collect();
        let mut task = MatchTask::new(engine, &pairs, max_tokens)?;
        watch_each(&mut task, engine, free.len(), |i, found| {
            let of = |m: tasks::Match| Found { answer: m.answer, is_right: m.is_right, usage: m.usage };
            on(free[i], found.map(of));
        })?;
    }
    for (labels, group) in &by_labels {
        let input = |i: &usize| match items[*i].kind {
            Kind::Text(_) => ClassifyInput::Text(&items[*i].question),
            _ => ClassifyInput::Prompt(&items[*i].question),
        };
        let inputs: Vec<ClassifyInput<'_>> = group.iter().map(input).collect();
        let mut task = match ClassifyTask::new(engine, &inputs, labels) {
            Ok(task) => task,
            Err(error) => {
                // Only these lines have these labels.
                for i in group {
                    match of_labels(&error) {
                        Some(again) => on(*i, Err(again.into())),
                        None => return Err(error.into()),
                    }
                }
                continue;
            }
        };
        watch_each(&mut task, engine, group.len(), |i, found| {
            let of = |classification: Classification| {
                let answer = classification.best().map(|best| best.label.clone()).unwrap_or_default();
                let is_right = answer == items[group[i]].expected;
                Found { answer, is_right, usage: classification.usage }
            };
            on(group[i], found.map(of));
        })?;
    }
    Ok(())
}

/// Another of an error that is about the labels.
fn of_labels(error: &TaskError) -> Option<TaskError> {
    match error {
        TaskError::Label { label, problem } => Some(TaskError::Label { label: label.clone(), problem }),
        TaskError::Engine(EngineError::PromptTooLong { found, expected }) => {
            Some(EngineError::PromptTooLong { found: *found, expected: *expected }.into())
        }
        _ => None,
    }
}

/// The items that were answered, and the answers.
fn answered(done: &Done<Item, Found>) -> impl Iterator<Item = (&Item, &Found)> {
    done.rows.iter().filter_map(|row| row.input.as_ref().zip(row.good()))
}

fn accuracy(args: &Args, engine: &mut Engine, items: Rows<Item>) -> Result<(), Failure> {
    let asked: Vec<Item> = items.good().into_iter().cloned().collect();
    let json = args.json;
    let draft = Draft::new(items, None, move |done, out| write_accuracy(done, json, out));
    let work = ask(engine, &asked, args.max_tokens, |i, found| draft.set(i, found));
    let done = draft.finish(work)?;
    let usage = tasks::total(answered(&done).map(|(_, found)| found.usage));
    log::info!(
        "{} prompt ({} cached) + {} generated tokens",
        usage.prompt_tokens,
        usage.cached_tokens,
        usage.completion_tokens
    );
    done.report(args.json)
}

fn write_accuracy(done: &Done<Item, Found>, json: bool, out: &mut dyn Write) -> Result<(), Failure> {
    let share = |of: &dyn Fn(&Item) -> bool| {
        let right: Vec<bool> =
            answered(done).filter(|(item, _)| of(item)).map(|(_, found)| found.is_right).collect();
        let n_right = right.iter().filter(|right| **right).count();
        (!right.is_empty()).then(|| (n_right as f64 / right.len() as f64, n_right, right.len()))
    };
    let is_free = |item: &Item| matches!(item.kind, Kind::Answer);
    let (exact, labelled) = (share(&is_free), share(&|item| !is_free(item)));
    if json {
        let results = done.finished().map(|row| ItemJson {
            index: row.index,
            line: row.index + 1,
            expected: row.input.as_ref().map(|item| &item.expected[..]),
            found: row.good().map(|found| &found.answer[..]),
            is_right: row.good().map(|found| found.is_right),
            error: row.error().map(Failure::message),
        });
        let all = share(&|_| true);
        let (right, n_items) = all.map_or((0, 0), |(_, n_right, n)| (n_right, n));
        let accuracy = AccuracyJson {
            accuracy: all.map(|a| a.0),
            right,
            items: n_items,
            failed: done.finished().count() - n_items,
            exact_match: exact.map(|e| e.0),
            label_accuracy: labelled.map(|l| l.0),
            usage: tasks::total(answered(done).map(|(_, found)| found.usage)),
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
    Ok(())
}
