//! Many inputs, each an argument or a line: a bad one is an error of its row, and the others are done.
//!
//! A row's index is that of its line in the file or standard input, from 0; all lines count, also blank ones, which have
//! no row. Of arguments it is the place among them.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use wginfer::tasks::TaskError;

use super::failure::Failure;
use super::{format, prompt};

/// An input.
#[derive(Debug)]
pub struct Row<T> {
    pub index: usize,
    /// The input, or why there is none.
    pub input: Result<T, Failure>,
}

/// All inputs, and where they come from.
#[derive(Debug)]
pub struct Rows<T> {
    pub rows: Vec<Row<T>>,
    /// The name of the file or of standard input; `None` for arguments.
    from: Option<String>,
}

/// A JSON object.
pub type Object = serde_json::Map<String, Value>;

/// Whether the lines of a file are JSON objects: by the flag, or by its name.
pub fn is_jsonl(file: Option<&Path>, flag: bool) -> bool {
    flag || file.and_then(Path::extension).is_some_and(|e| e == "jsonl")
}

impl Rows<String> {
    /// Texts: the arguments, or if there are none, the lines of a file or of standard input, or of a JSON Lines file each
    /// object's field `text`.
    pub fn texts(arguments: &[String], file: Option<&Path>, jsonl: bool) -> Result<Rows<String>, Failure> {
        let rows = if !arguments.is_empty() {
            let row = |(index, text): (usize, &String)| Row { index, input: Ok(text.clone()) };
            Rows { rows: arguments.iter().enumerate().map(row).collect(), from: None }
        } else if is_jsonl(file, jsonl) {
            let of_object = |object: Object| {
                let missing = Failure::failed("expected a field `text`, found none");
                let text = field(&object, "text")?.map(str::to_string);
                text.ok_or(missing.with_hint("such as {\"text\": \"a cat\"}"))
            };
            Rows::objects(file)?.map(of_object)
        } else {
            Rows::lines(file)?
        };
        if rows.rows.is_empty() {
            return Err(Failure::failed(format!("there is no text in {}", prompt::name(file))));
        }
        Ok(rows.map(|text| match text.trim().is_empty() {
            true => Err(TaskError::Empty { what: "text" }.into()),
            false => Ok(text),
        }))
    }

    /// The lines of a file or of standard input that are not blank.
    pub fn lines(file: Option<&Path>) -> Result<Rows<String>, Failure> {
        let lines = prompt::lines(file)?;
        let n_lines = lines.len();
        let mut rows: Vec<Row<String>> =
            lines.into_iter().enumerate().map(|(index, input)| Row { index, input }).collect();
        rows.retain(|row| row.input.as_ref().map_or(true, |line| !line.trim().is_empty()));
        match n_lines - rows.len() {
            // An empty file has one empty line.
            0 => {}
            _ if rows.is_empty() => {}
            1 => log::info!("1 blank line skipped"),
            n => log::info!("{n} blank lines skipped"),
        }
        Ok(Rows { rows, from: Some(prompt::name(file)) })
    }
}

impl Rows<Object> {
    /// The objects of a JSON Lines file.
    pub fn objects(file: Option<&Path>) -> Result<Rows<Object>, Failure> {
        Ok(Rows::lines(file)?.map(|line| {
            serde_json::from_str(&line).map_err(|e| {
                // It counts lines within this one.
                let what = e.to_string().replace(" at line 1 column ", " at column ");
                Failure::failed(format!("expected a JSON object: {what}"))
            })
        }))
    }
}

impl<T> Rows<T> {
    /// Makes other inputs of the good ones.
    pub fn map<U>(self, mut make: impl FnMut(T) -> Result<U, Failure>) -> Rows<U> {
        let make = |row: Row<T>| Row { index: row.index, input: row.input.and_then(&mut make) };
        Rows { rows: self.rows.into_iter().map(make).collect(), from: self.from }
    }

    /// All inputs, for a list of which every line is needed.
    ///
    /// # Errors
    /// That of the first bad one.
    pub fn all(self) -> Result<Vec<T>, Failure> {
        let from = self.from;
        let inputs = self.rows.into_iter().map(|row| row.input.map_err(|e| e.at(&place(&from, row.index))));
        inputs.collect()
    }

    /// The good inputs.
    pub fn good(&self) -> Vec<&T> {
        self.rows.iter().filter_map(|row| row.input.as_ref().ok()).collect()
    }

    /// The inputs with their indices, and what became of each. `results` are those of [`Rows::good`], in their order.
    pub fn with<R>(self, results: impl IntoIterator<Item = Result<R, Failure>>) -> Done<T, R> {
        let mut results = results.into_iter();
        let finish = |row: Row<T>| match row.input {
            Err(failure) => DoneRow { index: row.index, input: None, result: Err(failure) },
            Ok(input) => {
                let result = results.next().unwrap_or_else(|| Err(TaskError::Stopped.into()));
                DoneRow { index: row.index, input: Some(input), result }
            }
        };
        Done { rows: self.rows.into_iter().map(finish).collect(), from: self.from }
    }
}

/// The place of a row, for people, who count from 1.
fn place(from: &Option<String>, index: usize) -> String {
    match from {
        Some(from) => format!("{from}, line {}", index + 1),
        None => format!("text {}", index + 1),
    }
}

/// An input and what became of it.
pub struct DoneRow<T, R> {
    pub index: usize,
    /// The input, if it could be read.
    pub input: Option<T>,
    pub result: Result<R, Failure>,
}

/// What became of all inputs.
pub struct Done<T, R> {
    pub rows: Vec<DoneRow<T, R>>,
    from: Option<String>,
}

impl<T, R> Done<T, R> {
    /// Fails if a row has failed. Prints the errors of the rows, unless they are in the result that was written.
    pub fn report(self, errors_are_written: bool) -> Result<(), Failure> {
        let (n, from) = (self.rows.len(), self.from);
        let failed = self.rows.into_iter();
        let failed = failed.filter_map(|row| Some(row.result.err()?.at(&place(&from, row.index))));
        let mut failed: Vec<Failure> = failed.collect();
        match failed.len() {
            0 => Ok(()),
            1 => failed.pop().map_or(Ok(()), Err),
            n_failed => {
                if !errors_are_written {
                    failed.iter().for_each(|failure| log::error!("{}", failure.lines().0));
                }
                let failure = Failure::failed(format!("{n_failed} of {n} inputs failed"));
                Err(if errors_are_written {
                    failure.with_hint("`error` in the result says why")
                } else {
                    failure
                })
            }
        }
    }
}

/// A row as JSON has it: the fields of its result, or `error`.
#[derive(Serialize)]
pub struct RowJson<'a, R> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(flatten)]
    result: ResultJson<'a, R>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum ResultJson<'a, R> {
    Done(R),
    Failed { error: &'a str },
}

impl<R> DoneRow<String, R> {
    /// The row with `fields` of its result.
    pub fn json<'a, F: Serialize>(&'a self, fields: impl FnOnce(&'a R) -> F) -> RowJson<'a, F> {
        let result = match &self.result {
            Ok(result) => ResultJson::Done(fields(result)),
            Err(failure) => ResultJson::Failed { error: failure.message() },
        };
        RowJson { index: self.index, text: self.input.as_deref(), result }
    }
}

/// The text of a field, if the object has it.
pub fn field<'a>(object: &'a Object, key: &str) -> Result<Option<&'a str>, Failure> {
    match object.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(Failure::failed(format!("`{key}` is {}, expected a text", brief(other)))),
    }
}

/// A value in a message.
pub fn brief(value: &Value) -> String {
    const MOST: usize = 80;
    format::shown(&value.to_string(), MOST)
}
