//! `wginfer embed`: vectors of texts.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use wginfer::checkpoint::EmbeddingConfig;
use wginfer::engine::Output;
use wginfer::tasks::{Direction, Encoding};

use super::args::{DeviceArgs, ModelArg};
use super::failure::Failure;
use super::output::{self, Inputs};
use super::rows::{Done, DoneRow, Draft, Rows};
use super::table::{Format, Table};
use super::{encode, json};

const EXAMPLES: &str = "Examples:
  wginfer embed -m ~/models/all-MiniLM-L6-v2 \"A cat sits on the mat.\"
  wginfer embed -m ~/models/all-MiniLM-L6-v2 -f lines.txt --format npy -o vectors.npy
  wginfer embed -m ~/models/all-MiniLM-L6-v2 --similarity \"a cat\" \"a kitten\" \"a bridge\"
  wginfer embed -m ~/models/e5-small-v2 --prefix \"query: \" \"how tall is a giraffe\"

Blank lines are skipped. In JSON, `index` is that of a text's line, from 0, blank ones counted. A text that fails has
`error` there, and a row of NaN in the other formats, so that row i is always that of the i-th text; the exit code is 1.
Ctrl-C leaves what is done in `NAME.partial`, or writes it to standard output; other texts are not there, or NaN. Cosines
are those of the texts that are done, which JSON names.";

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

    /// Write to this file; `-` is standard output, the default
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
    similarity: Similarity<'a>,
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
        Some(ErrorJson { index: row.index, error: row.error()?.message() })
    }
}

/// Texts with their embeddings.
type Embedded = Done<String, Encoding>;
type Row = DoneRow<String, Encoding>;

/// The cosines between all texts, computed row by row; NaN where a text has no embedding.
struct Similarity<'a>(Vec<Option<Direction<'a>>>);

impl Similarity<'_> {
    fn of<'a>(rows: &[&'a Row]) -> Similarity<'a> {
        Similarity(rows.iter().map(|row| Some(Direction::of(&row.good()?.values))).collect())
    }

    fn rows(&self) -> impl Iterator<Item = Vec<f32>> {
        let cosine = |a: &Option<Direction<'_>>, b: &Option<Direction<'_>>| match (a, b) {
            (Some(a), Some(b)) => a.cosine(b),
            _ => f32::NAN,
        };
        self.0.iter().map(move |a| self.0.iter().map(|b| cosine(a, b)).collect())
    }
}

impl Serialize for Similarity<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.rows())
    }
}

pub fn run(args: &Args, _out: &mut dyn Write) -> Result<(), Failure> {
    let to_terminal = args.output.is_none() && std::io::stdout().is_terminal();
    if args.format == Some(EmbedFormat::Npy) && to_terminal {
        let hint = "give `--output FILE`, or redirect standard output";
        return Err(Failure::usage("`npy` is binary, and standard output is a terminal").with_hint(hint));
    }
    let inputs = Inputs::default().model(&args.model).file(args.input());
    let target = output::plan(&args.output, &inputs)?.pop();
    let checkpoint = args.model.open_encoder()?;
    let texts = Rows::texts(&args.texts, args.file.as_deref(), args.jsonl)?;
    let (form, n_texts) = (args.form(), texts.rows.len());
    if matches!(form, Form::Similarity(None)) && n_texts > MOST_IN_TABLE {
        let message = format!("a table of {n_texts} texts, expected at most {MOST_IN_TABLE}");
        return Err(Failure::usage(message).with_hint("`--format` writes more, in other formats"));
    }
    let prefix = args.prefix(&checkpoint.embedding.clone().unwrap_or_default())?;
    if let Err(error) = &checkpoint.tokenizer {
        return Err(error.clone().into());
    }
    let mut encoder = args.device.load_encoder(checkpoint)?;
    let task = encode::task(&encoder, &texts.good(), &prefix, Output::Embedding)?;
    let width = encoder.embedding_width();
    let draft = Draft::new(texts, target, move |embedded, out| form.write(embedded, width, out));
    let work = encode::run(&mut encoder, task, |i, result| draft.set(i, result));
    let is_json =
        matches!(form, Form::Vectors(EmbedFormat::Json) | Form::Similarity(Some(EmbedFormat::Json)));
    draft.finish(work)?.report(is_json)
}

/// Most texts in a table of cosines.
const MOST_IN_TABLE: usize = 1000;

/// What is written.
#[derive(Clone, Copy)]
enum Form {
    Vectors(EmbedFormat),
    /// A table if there is no format.
    Similarity(Option<EmbedFormat>),
}

impl Args {
    fn form(&self) -> Form {
        let format = if self.json { Some(EmbedFormat::Json) } else { self.format };
        match self.similarity {
            true => Form::Similarity(format),
            false => Form::Vectors(format.unwrap_or(EmbedFormat::Json)),
        }
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
}

impl Form {
    fn write(self, embedded: &Embedded, width: usize, out: &mut dyn Write) -> Result<(), Failure> {
        let n_rows = embedded.rows.len();
        let format = match self {
            Form::Vectors(EmbedFormat::Json) => return objects(embedded, out),
            Form::Vectors(EmbedFormat::Csv) => return csv(vectors(embedded, width), out),
            Form::Vectors(EmbedFormat::Npy) => return npy([n_rows, width], vectors(embedded, width), out),
            Form::Similarity(format) => format,
        };
        let rows: Vec<&Row> = embedded.finished().collect();
        let similarity = Similarity::of(&rows);
        match format {
            None => table(&rows, &similarity, out),
            Some(EmbedFormat::Json) => {
                let all = SimilarityJson {
                    indices: rows.iter().map(|row| row.index).collect(),
                    texts: rows.iter().map(|row| row.input.as_deref()).collect(),
                    similarity,
                    errors: rows.iter().filter_map(|row| ErrorJson::of(row)).collect(),
                };
                json::line(&all, out)
            }
            Some(EmbedFormat::Csv) => csv(similarity.rows(), out),
            Some(EmbedFormat::Npy) => npy([rows.len(); 2], similarity.rows(), out),
        }
    }
}

/// The vector of each text; one of NaN for a text that has none.
fn vectors(embedded: &Embedded, width: usize) -> impl Iterator<Item = Vec<f32>> {
    let nan = move || vec![f32::NAN; width];
    embedded.rows.iter().map(move |row| row.good().map_or_else(nan, |e| e.values.clone()))
}

/// Writes an array, one text per line.
fn objects(embedded: &Embedded, out: &mut dyn Write) -> Result<(), Failure> {
    for (i, row) in embedded.finished().enumerate() {
        out.write_all(if i == 0 { b"[" } else { b",\n" })?;
        serde_json::to_writer(&mut *out, &row.json(EmbeddingJson::of))?;
    }
    Ok(out.write_all(b"]\n")?)
}

fn csv(rows: impl Iterator<Item = Vec<f32>>, out: &mut dyn Write) -> Result<(), Failure> {
    for row in rows {
        let cells: Vec<String> = row.iter().map(f32::to_string).collect();
        writeln!(out, "{}", cells.join(","))?;
        out.flush()?; // valid to here
    }
    Ok(())
}

/// Writes a two-dimensional array in NumPy's format, version 1.0: magic bytes, the header's length, a header in Python
/// that ends at a multiple of 64 bytes, the values row by row.
fn npy(
    [n_rows, n_cols]: [usize; 2],
    rows: impl Iterator<Item = Vec<f32>>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    const BEFORE_HEADER: usize = 10;
    let shape = (n_rows, n_cols);
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape:?}, }}");
    let length = (BEFORE_HEADER + header.len() + 1).next_multiple_of(64) - BEFORE_HEADER;
    header = format!("{header:<0$}\n", length - 1);
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&(length as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for row in rows {
        for value in row {
            out.write_all(&value.to_le_bytes())?;
        }
    }
    Ok(())
}

fn table(rows: &[&Row], similarity: &Similarity<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    /// Characters of a text in the table.
    const SHOWN: usize = 32;
    let numbers = (1..=rows.len()).map(|i| format!(" {i}"));
    let headers: Vec<String> = [" #".to_string(), "text".to_string()].into_iter().chain(numbers).collect();
    let mut table = Table::new(&headers);
    for (i, (row, similarity)) in rows.iter().zip(similarity.rows()).enumerate() {
        let text = row.input.as_deref().unwrap_or_default();
        let is_long = text.chars().nth(SHOWN).is_some();
        let shown: String = text.chars().take(if is_long { SHOWN - 1 } else { SHOWN }).collect();
        let shown = if is_long { shown + "…" } else { shown };
        let cells = similarity.iter().map(|cosine| format!("{cosine:.3}"));
        table.push([(i + 1).to_string(), shown].into_iter().chain(cells).collect());
    }
    table.write(Format::Table, out)
}
