//! `wginfer embed`: vectors of texts.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use wginfer::checkpoint::EmbeddingConfig;
use wginfer::engine::Output;
use wginfer::tasks::{self, Encoding};

use super::args::{DeviceArgs, ModelArg};
use super::encode::encode;
use super::failure::Failure;
use super::json;
use super::output::{self, Inputs};
use super::rows::{Done, DoneRow, Rows};
use super::table::{Format, Table};

const EXAMPLES: &str = "Examples:
  wginfer embed -m ~/models/all-MiniLM-L6-v2 \"A cat sits on the mat.\"
  wginfer embed -m ~/models/all-MiniLM-L6-v2 -f lines.txt --format npy -o vectors.npy
  wginfer embed -m ~/models/all-MiniLM-L6-v2 --similarity \"a cat\" \"a kitten\" \"a bridge\"
  wginfer embed -m ~/models/e5-small-v2 --prefix \"query: \" \"how tall is a giraffe\"

Blank lines are skipped. In JSON, `index` is that of a text's line, from 0, blank ones counted. A text that fails has
`error` there, and a row of NaN in the other formats, so that row i is always that of the i-th text; the exit code is 1.";

/// Compute embeddings of texts: vectors whose cosine measures similarity
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The texts. Default: standard input, one text per line
    #[arg(conflicts_with = "file")]
    texts: Vec<String>,

    /// Read the texts from a file, one per line; `-` is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Lines are JSON objects with the text in the field `text`
    #[arg(long, conflicts_with = "texts")]
    jsonl: bool,

    /// Format of the vectors: `json` is an array of objects, `csv` a line of numbers per text, `npy` a NumPy array of
    /// float32
    #[arg(long, value_name = "FORMAT")]
    format: Option<EmbedFormat>,

    /// Same as `--format json`
    #[arg(long, conflicts_with = "format")]
    json: bool,

    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Write the cosines between all texts instead of their vectors: as a table, or in the format of `--format`
    #[arg(long)]
    similarity: bool,

    /// Put this before each text, as models such as E5 expect
    #[arg(long, value_name = "TEXT", conflicts_with = "prompt_name", allow_hyphen_values = true)]
    prefix: Option<String>,

    /// Put the model's prompt of this name, such as `query`, before each text
    #[arg(long, value_name = "NAME")]
    prompt_name: Option<String>,

    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EmbedFormat {
    Json,
    Csv,
    Npy,
}

/// The result for a text as `--format json` writes it.
#[derive(Serialize)]
struct EmbeddingJson<'a> {
    n_tokens: usize,
    embedding: &'a [f32],
}

impl EmbeddingJson<'_> {
    fn of(encoding: &Encoding) -> EmbeddingJson<'_> {
        EmbeddingJson { n_tokens: encoding.n_tokens, embedding: &encoding.values }
    }
}

#[derive(Serialize)]
struct SimilarityJson<'a> {
    /// Those of the texts.
    indices: Vec<usize>,
    texts: Vec<Option<&'a str>>,
    /// Null for a text that failed.
    similarity: Matrix,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ErrorJson<'a>>,
}

#[derive(Serialize)]
struct ErrorJson<'a> {
    index: usize,
    error: &'a str,
}

impl ErrorJson<'_> {
    fn of(row: &Row) -> Option<ErrorJson<'_>> {
        Some(ErrorJson { index: row.index, error: row.result.as_ref().err()?.message() })
    }
}

/// Texts with their embeddings.
type Embedded = Done<String, Encoding>;
type Row = DoneRow<String, Encoding>;

/// Rows of numbers; NaN where there is no result.
type Matrix = Vec<Vec<f32>>;

pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let to_terminal = args.output.is_none() && std::io::stdout().is_terminal();
    if args.format == Some(EmbedFormat::Npy) && to_terminal {
        let hint = "give `--output FILE`, or redirect standard output";
        return Err(Failure::usage("`npy` is binary, and standard output is a terminal").with_hint(hint));
    }
    let inputs = Inputs::default().model(&args.model).file(args.input());
    let output = output::plan(&args.output, &inputs)?.pop();
    let checkpoint = args.model.open_encoder()?;
    let texts = Rows::texts(&args.texts, args.file.as_deref(), args.jsonl)?;
    let prefix = args.prefix(&checkpoint.embedding.clone().unwrap_or_default())?;
    if let Err(error) = &checkpoint.tokenizer {
        return Err(error.clone().into());
    }
    let mut encoder = args.device.load_encoder(checkpoint)?;
    let encodings = encode(&mut encoder, &texts.good(), &prefix, Output::Embedding)?;
    let (embedded, width) = (texts.with(encodings), encoder.embedding_width());
    match output {
        None => args.write(&embedded, width, out)?,
        Some(target) => target.write(|out| args.write(&embedded, width, out))?,
    }
    embedded.report(args.format().is_none_or(|format| format == EmbedFormat::Json) && !args.shows_table())
}

impl Args {
    /// The format in the arguments, if any.
    fn format(&self) -> Option<EmbedFormat> {
        if self.json { Some(EmbedFormat::Json) } else { self.format }
    }

    /// The file of the texts, if they come from one.
    fn input(&self) -> Option<&Path> {
        match self.texts.is_empty() {
            true => Some(self.file.as_deref().unwrap_or(Path::new("-"))),
            false => None,
        }
    }

    /// The prefix of each text.
    fn prefix(&self, config: &EmbeddingConfig) -> Result<String, Failure> {
        if let Some(prefix) = &self.prefix {
            return Ok(prefix.clone());
        }
        let Some(name) = self.prompt_name.as_ref().or(config.default_prompt_name.as_ref()) else {
            return Ok(String::new());
        };
        config.prompts.get(name).cloned().ok_or_else(|| {
            let known = config.prompts.keys().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "none".to_string() } else { known };
            Failure::usage(format!("the model has no prompt `{name}`, it has {known}"))
                .with_hint("`--prefix` takes any text")
        })
    }

    /// Whether the result is a table.
    fn shows_table(&self) -> bool {
        self.similarity && self.format().is_none()
    }

    fn write(&self, embedded: &Embedded, width: usize, out: &mut dyn Write) -> Result<(), Failure> {
        if !self.similarity {
            return match self.format().unwrap_or(EmbedFormat::Json) {
                EmbedFormat::Json => objects(embedded, out),
                EmbedFormat::Csv => csv(&vectors(embedded, width), out),
                EmbedFormat::Npy => npy(&vectors(embedded, width), out),
            };
        }
        let rows = &embedded.rows;
        let cosine = |a: &Row, b: &Row| match (&a.result, &b.result) {
            (Ok(a), Ok(b)) => tasks::cosine(&a.values, &b.values),
            _ => f32::NAN,
        };
        let similarity: Matrix = rows.iter().map(|a| rows.iter().map(|b| cosine(a, b)).collect()).collect();
        match self.format() {
            None => table(embedded, &similarity, out),
            Some(EmbedFormat::Json) => {
                let all = SimilarityJson {
                    indices: rows.iter().map(|row| row.index).collect(),
                    texts: rows.iter().map(|row| row.input.as_deref()).collect(),
                    similarity,
                    errors: rows.iter().filter_map(ErrorJson::of).collect(),
                };
                json::line(&all, out)
            }
            Some(EmbedFormat::Csv) => csv(&similarity, out),
            Some(EmbedFormat::Npy) => npy(&similarity, out),
        }
    }
}

/// The vector of each text; one of NaN for a text that failed.
fn vectors(embedded: &Embedded, width: usize) -> Matrix {
    let nan = || vec![f32::NAN; width];
    embedded.rows.iter().map(|row| row.result.as_ref().map_or_else(|_| nan(), |e| e.values.clone())).collect()
}

/// Writes an array, one text per line.
fn objects(embedded: &Embedded, out: &mut dyn Write) -> Result<(), Failure> {
    for (i, row) in embedded.rows.iter().enumerate() {
        out.write_all(if i == 0 { b"[" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, &row.json(EmbeddingJson::of))?;
    }
    Ok(out.write_all(b"]\n")?)
}

fn csv(rows: &[Vec<f32>], out: &mut dyn Write) -> Result<(), Failure> {
    for row in rows {
        let cells: Vec<String> = row.iter().map(f32::to_string).collect();
        writeln!(out, "{}", cells.join(","))?;
    }
    Ok(())
}

/// Writes a two-dimensional array in NumPy's format, version 1.0: magic bytes, the header's length, a header in Python
/// that ends at a multiple of 64 bytes, the values row by row.
fn npy(rows: &[Vec<f32>], out: &mut dyn Write) -> Result<(), Failure> {
    const BEFORE_HEADER: usize = 10;
    let shape = (rows.len(), rows.first().map_or(0, Vec::len));
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape:?}, }}");
    let length = (BEFORE_HEADER + header.len() + 1).next_multiple_of(64) - BEFORE_HEADER;
    header = format!("{header:<0$}\n", length - 1);
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&(length as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for value in rows.iter().flatten() {
        out.write_all(&value.to_le_bytes())?;
    }
    Ok(())
}

fn table(embedded: &Embedded, similarity: &Matrix, out: &mut dyn Write) -> Result<(), Failure> {
    /// Characters of a text in the table.
    const SHOWN: usize = 32;
    let numbers = (1..=embedded.rows.len()).map(|i| format!(" {i}"));
    let headers: Vec<String> = [" #".to_string(), "text".to_string()].into_iter().chain(numbers).collect();
    let mut table = Table::new(&headers);
    for (i, (row, similarity)) in embedded.rows.iter().zip(similarity).enumerate() {
        let text = row.input.as_deref().unwrap_or_default();
        let is_long = text.chars().nth(SHOWN).is_some();
        let shown: String = text.chars().take(if is_long { SHOWN - 1 } else { SHOWN }).collect();
        let shown = if is_long { shown + "…" } else { shown };
        let cells = similarity.iter().map(|cosine| format!("{cosine:.3}"));
        table.push([(i + 1).to_string(), shown].into_iter().chain(cells).collect());
    }
    table.write(Format::Table, out)
}
