//! `wginfer logits`: logits, to compare with another implementation.
//!
//! A language model has the logits after a position, a classifier those of its labels.

use std::io::Write;

use serde::Serialize;
use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{Engine, EngineError, EngineOptions, Event, Logits, Output, Request};
use wginfer::models::ModelKind;
use wginfer::tasks;

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::{format, json, model, prompt, table};

const EXAMPLES: &str = "Examples:
  wginfer logits \"Once upon a\" --top 5
  wginfer logits --token-ids 1,403,407 --kv-type f32 --json
  wginfer logits \"Once upon a\" --all --top 3 --json";

/// Show the logits after a prompt, or those of a classifier's labels
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The prompt
    #[arg(required_unless_present = "token_ids", conflicts_with = "token_ids")]
    text: Option<String>,

    /// Token ids instead of text, separated by commas
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    token_ids: Option<Vec<u32>>,

    /// Show the logits after every position. Default: after the last
    #[arg(long)]
    all: bool,

    /// Number of best tokens or labels to show. Default: 10, and all logits with `--json`
    #[arg(long, value_name = "K")]
    top: Option<usize>,

    /// Write token ids and logits as an object: a number for each token of the vocabulary, or with `--top` a list of
    /// the best
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

/// Default number of rows of the table.
const TOP: usize = 10;

/// The object of `--json`.
#[derive(Serialize)]
struct LogitsJson<'a, T> {
    token_ids: &'a [u32],
    #[serde(flatten)]
    found: Found<T>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Found<T> {
    Logits(T),
    Top(T),
}

/// The value of the last position, or with `--all` the list of all positions.
#[derive(Serialize)]
#[serde(untagged)]
enum Rows<T> {
    Last(Option<T>),
    All(Vec<T>),
}

impl<T> Rows<T> {
    fn of(all: bool, rows: impl Iterator<Item = T>) -> Rows<T> {
        if all { Rows::All(rows.collect()) } else { Rows::Last(rows.last()) }
    }
}

/// One of the best tokens.
#[derive(Serialize)]
struct TokenJson {
    token_id: u32,
    /// Its spelling in the vocabulary.
    token: Option<String>,
    logit: f32,
    probability: f64,
}

/// One of the best labels.
#[derive(Serialize)]
struct LabelJson<'a> {
    label: &'a str,
    logit: f32,
    /// Only if the head gives probabilities.
    probability: Option<f32>,
}

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let checkpoint = args.model.open_any()?;
    match checkpoint.kind() {
        ModelKind::Decoder => of_tokens(args, checkpoint, out),
        ModelKind::Encoder => of_labels(args, checkpoint, out),
    }
}

fn of_labels(args: &Args, checkpoint: ModelFiles, out: &mut dyn Write) -> Result<(), Failure> {
    if args.all {
        return Err(Failure::usage("`--all` is for language models: a classifier has one row of logits"));
    }
    if checkpoint.labels.is_none() {
        let message = format!("`{}` has no classification head", checkpoint.name);
        return Err(Failure::failed(message).with_hint("`wginfer embed` gives its embeddings"));
    }
    let mut encoder = args.device.load_encoder(checkpoint)?;
    let (ids, n_cut) = match (&args.token_ids, &args.text) {
        (Some(ids), _) => (ids.clone(), 0),
        (None, text) => encoder.tokenize(text.as_deref().unwrap_or_default())?,
    };
    if n_cut > 0 {
        log::warn!("the text was cut to {} tokens, {n_cut} tokens lost", encoder.ctx());
    }
    let ids = prompt::check(ids)?;
    let mut rows = tasks::encode_tokens(&mut encoder, vec![ids.clone()], Output::Logits, &mut |_| {})?;
    let (Some(row), Some(labels)) = (rows.pop(), encoder.labels()) else { return Ok(()) };
    let logits = &row?.values;
    let probabilities = labels.probabilities(logits);
    let probability = |i: usize| probabilities.as_ref().map(|p| p[i]);
    if args.json {
        let Some(n_top) = args.top else {
            return json::line(&LogitsJson { token_ids: &ids, found: Found::Logits(logits) }, out);
        };
        let row =
            |i: usize| LabelJson { label: &labels.names[i], logit: logits[i], probability: probability(i) };
        let top: Vec<LabelJson<'_>> = best(logits, n_top).map(row).collect();
        return json::line(&LogitsJson { token_ids: &ids, found: Found::Top(top) }, out);
    }
    let last = if probabilities.is_some() { "probability" } else { "" };
    writeln!(out, "{}", format!("{:<24} {:>10} {last:>12}", "label", "logit").trim_end())?;
    for i in best(logits, args.top.unwrap_or(TOP)) {
        let p = probability(i).map_or(String::new(), |p| format!(" {:>10.3} %", 100.0 * p));
        let name = format::shown(&labels.names[i], table::MOST);
        writeln!(out, "{name:<24} {:>10.4}{p}", logits[i])?;
    }
    Ok(())
}

fn of_tokens(args: &Args, checkpoint: ModelFiles, out: &mut dyn Write) -> Result<(), Failure> {
    let ids = match (&args.token_ids, &args.text) {
        (Some(ids), _) => ids.clone(),
        (None, text) => prompt::encode(&checkpoint, text.as_deref().unwrap_or_default())?,
    };
    let ids = prompt::check(ids)?;
    let options = EngineOptions {
        // The number of positions whose logits are computed at a time.
        max_seqs: if args.all { 8 } else { 1 },
        kv_tokens: Some(ids.len()),
        logits: true,
        ..EngineOptions::default()
    };
    let mut engine = args.device.load(checkpoint, options)?;
    let wanted = if args.all { Logits::All } else { Logits::Last };
    engine.submit(Request { logits: Some(wanted), ..Request::new(ids.clone()) })?;
    let mut rows: Vec<(usize, Vec<f32>)> = Vec::new();
    model::drive(&mut engine, |event| match event {
        Event::Logits { position, values, .. } if values.iter().all(|v| v.is_finite()) => {
            rows.push((position, values));
            Ok(())
        }
        Event::Logits { position, .. } => Err(EngineError::NotFinite { position }.into()),
        Event::Failed { error, .. } => Err(error.into()),
        _ => Ok(()),
    })?;
    rows.sort_by_key(|(position, _)| *position);

    if args.json {
        let token_ids = &ids[..];
        let rows = rows.iter().map(|(_, values)| &values[..]);
        return match args.top {
            None => {
                let found = Found::Logits(Rows::of(args.all, rows));
                json::line(&LogitsJson { token_ids, found }, out)
            }
            Some(n_top) => {
                let found = Found::Top(Rows::of(args.all, rows.map(|values| top(&engine, n_top, values))));
                json::line(&LogitsJson { token_ids, found }, out)
            }
        };
    }
    for (i, (position, values)) in rows.iter().enumerate() {
        if i > 0 {
            writeln!(out)?;
        }
        table(out, &engine, args.top.unwrap_or(TOP), ids[*position], *position, values)?;
    }
    Ok(())
}

/// The best tokens after one position, as a table.
fn table(
    out: &mut dyn Write,
    engine: &Engine,
    n_top: usize,
    token: u32,
    position: usize,
    values: &[f32],
) -> Result<(), Failure> {
    let text = format::token(engine.tokenizer(), token);
    writeln!(out, "after position {position}, token {token} {text}")?;
    writeln!(out, "{:>7}  {:<16} {:>10} {:>12}", "id", "text", "logit", "probability")?;
    for row in top(engine, n_top, values) {
        let text = format::token(engine.tokenizer(), row.token_id);
        let p = 100.0 * row.probability;
        writeln!(out, "{:>7}  {text:<16} {:>10.4} {p:>10.3} %", row.token_id, row.logit)?;
    }
    Ok(())
}

/// The best tokens after one position.
fn top(engine: &Engine, n_top: usize, values: &[f32]) -> Vec<TokenJson> {
    let largest = values.iter().copied().fold(f32::MIN, f32::max);
    let share = |logit: f32| (f64::from(logit) - f64::from(largest)).exp();
    let sum: f64 = values.iter().map(|v| share(*v)).sum();
    let row = |i: usize| TokenJson {
        token_id: i as u32,
        token: engine.tokenizer().and_then(|t| t.id_to_token(i as u32)),
        logit: values[i],
        probability: share(values[i]) / sum,
    };
    best(values, n_top).map(row).collect()
}

/// Indices of the `n_top` largest `values`, the largest first.
fn best(values: &[f32], n_top: usize) -> impl Iterator<Item = usize> {
    let mut best: Vec<usize> = (0..values.len()).collect();
    best.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    best.into_iter().take(n_top)
}
