//! `wginfer rerank`: texts in the order of how well they answer a query.

use std::io::Write;
use std::path::PathBuf;

use serde::Serialize;
use wginfer::engine::Usage;
use wginfer::tasks::{self, Encoding};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::rows::{Done, DoneRow, Draft, Rows};
use super::{encode, format, json, table};

const EXAMPLES: &str = "Examples:
  wginfer rerank -m ~/models/bge-reranker-v2-m3 \"how tall is a giraffe\" \"It is 5 m tall.\" \"Cats sleep a lot.\"
  wginfer rerank -m Qwen/Qwen3-Reranker-0.6B \"how tall is a giraffe\" -f passages.txt --top-n 5
  wginfer rerank -m ~/models/ms-marco-MiniLM-L6-v2 \"tides\" -f passages.txt --json | jq .results[0]

A cross-encoder (a classification head with one label) reads query and text as a pair; its score is the logistic function
of the logit, unless its config says otherwise. A Qwen3 language model answers yes or no, as Qwen3-Reranker was trained
to; its score is the probability of yes.

Blank lines are skipped. `index` is that of a text's line, from 0, blank ones counted. A text that fails has no score, and
is in `errors` in JSON; the exit code is 1. Ctrl-C stops, and writes what is done.";

/// Sort texts by how well they answer a query
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// What is looked for
    query: String,

    /// The texts. Default: standard input, one text per line
    #[arg(conflicts_with = "file", value_name = "TEXT")]
    texts: Vec<String>,

    /// Read the texts from a file, one per line; `-` is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Lines are JSON objects with the text in the field `text`
    #[arg(long, conflicts_with = "texts")]
    jsonl: bool,

    /// Number of texts to write, the best first. Default: all
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top_n: Option<u32>,

    /// What the model should look for, if it takes an instruction. Default: passages that answer a web search
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,

    /// Write an object with `results`, as servers with the interface of Jina or Cohere do
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

/// All scores as `--json` writes them.
#[derive(Serialize)]
struct RankingJson<'a> {
    model: &'a str,
    results: Vec<ResultJson<'a>>,
    usage: Usage,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorJson<'a>>,
}

#[derive(Serialize)]
struct ResultJson<'a> {
    index: usize,
    relevance_score: f32,
    document: DocumentJson<'a>,
}

#[derive(Serialize)]
struct DocumentJson<'a> {
    text: &'a str,
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    index: usize,
    error: &'a str,
}

impl ResultJson<'_> {
    fn of(row: &Row, score: f32) -> ResultJson<'_> {
        let document = DocumentJson { text: row.input.as_deref().unwrap_or_default() };
        ResultJson { index: row.index, relevance_score: score, document }
    }
}

impl ErrorJson<'_> {
    fn of(row: &Row) -> Option<ErrorJson<'_>> {
        Some(ErrorJson { index: row.index, error: row.error()?.message() })
    }
}

/// The texts, and the score of each.
type Ranked = Done<String, Encoding>;
type Row = DoneRow<String, Encoding>;

pub fn run(args: &Args, _out: &mut dyn Write) -> Result<(), Failure> {
    let checkpoint = args.model.open_reranker()?;
    let texts = Rows::texts(&args.texts, args.file.as_deref(), args.jsonl)?;
    let name = checkpoint.name.clone();
    let mut encoder = args.device.load_encoder(checkpoint)?;
    let task = tasks::rerank_task(&encoder, &args.query, &texts.good(), args.instruction.as_deref())?;
    let (top_n, json) = (args.top_n.map_or(usize::MAX, |n| n as usize), args.json);
    let draft = Draft::new(texts, None, move |ranked, out| {
        let best = best_first(ranked, top_n);
        if json { write_json(&name, ranked, &best, out) } else { write_lines(&best, out) }
    });
    let work = encode::run(&mut encoder, task, |i, result| draft.set(i, result));
    draft.finish(work)?.report(json)
}

fn score(row: &Row) -> Option<f32> {
    row.good()?.values.first().copied()
}

/// The rows that have scores, the best first; of equal ones the first first.
fn best_first(ranked: &Ranked, top_n: usize) -> Vec<(&Row, f32)> {
    let mut best: Vec<(&Row, f32)> = ranked.rows.iter().filter_map(|row| Some((row, score(row)?))).collect();
    best.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    best.truncate(top_n);
    best
}

/// Writes score, index and text of each row.
fn write_lines(best: &[(&Row, f32)], out: &mut dyn Write) -> Result<(), Failure> {
    for (row, score) in best {
        let text = row.input.iter().flat_map(|text| text.split_whitespace()).collect::<Vec<_>>().join(" ");
        writeln!(out, "{score:.4}\t{}\t{}", row.index, format::shown(&text, table::MOST))?;
    }
    Ok(())
}

fn write_json(
    model: &str,
    ranked: &Ranked,
    best: &[(&Row, f32)],
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let n_tokens = ranked.rows.iter().filter_map(DoneRow::good).map(|encoding| encoding.n_tokens).sum();
    json::write(
        &RankingJson {
            model,
            results: best.iter().map(|(row, score)| ResultJson::of(row, *score)).collect(),
            usage: Usage { prompt_tokens: n_tokens, total_tokens: n_tokens, ..Usage::default() },
            errors: ranked.rows.iter().filter_map(ErrorJson::of).collect(),
        },
        out,
    )
}
