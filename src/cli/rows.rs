//! Many inputs, each an argument or a line: a bad one is an error of its row, and the others are done. If a signal ends
//! the program, what is done is written ([`Draft`]).
//!
//! A row's index is that of its line in the file or standard input, from 0; all lines count, also blank ones, which have
//! no row. Of arguments it is the place among them.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;
use wginfer::tasks::TaskError;

use super::failure::Failure;
use super::interrupt::Unfinished;
use super::output::{self, Target};
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
    /// `None` if a signal or an error came before it was done.
    pub result: Option<Result<R, Failure>>,
}

impl<T, R> DoneRow<T, R> {
    /// Its result, if it has one.
    pub fn good(&self) -> Option<&R> {
        self.result.as_ref()?.as_ref().ok()
    }

    /// Its error, if it has one.
    pub fn error(&self) -> Option<&Failure> {
        self.result.as_ref()?.as_ref().err()
    }
}

/// All inputs, and what became of them.
pub struct Done<T, R> {
    pub rows: Vec<DoneRow<T, R>>,
    from: Option<String>,
}

impl<T, R> Done<T, R> {
    /// The rows that are done, or have failed.
    pub fn finished(&self) -> impl Iterator<Item = &DoneRow<T, R>> {
        self.rows.iter().filter(|row| row.result.is_some())
    }

    /// Fails if a row has failed. Prints the errors of the rows, unless they are in the result that was written.
    pub fn report(self, errors_are_written: bool) -> Result<(), Failure> {
        let (n, from) = (self.rows.len(), self.from);
        let failed = self.rows.into_iter();
        let failed = failed.filter_map(|row| Some(row.result?.err()?.at(&place(&from, row.index))));
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

/// What a command writes of its rows.
type Write<T, R> = Box<dyn FnOnce(&Done<T, R>, &mut dyn io::Write) -> Result<(), Failure> + Send>;

/// The results of rows as they arrive. If a signal or an error ends the work, what is done is written: to
/// `NAME.partial`, or to standard output.
pub struct Draft<T, R>(Unfinished<Parts<T, R>>);

struct Parts<T, R> {
    done: Done<T, R>,
    /// The place of each good input.
    places: Vec<usize>,
    /// Standard output if `None`.
    target: Option<Target>,
    write: Write<T, R>,
}

impl<T: Send + 'static, R: Send + 'static> Draft<T, R> {
    /// `write` writes the rows to `target`, or to standard output.
    pub fn new(
        rows: Rows<T>,
        target: Option<Target>,
        write: impl FnOnce(&Done<T, R>, &mut dyn io::Write) -> Result<(), Failure> + Send + 'static,
    ) -> Draft<T, R> {
        let begin = |row: Row<T>| match row.input {
            Ok(input) => DoneRow { index: row.index, input: Some(input), result: None },
            Err(failure) => DoneRow { index: row.index, input: None, result: Some(Err(failure)) },
        };
        let done = Done { rows: rows.rows.into_iter().map(begin).collect(), from: rows.from };
        let places = (0..done.rows.len()).filter(|i| done.rows[*i].result.is_none()).collect();
        Draft(Unfinished::new(Parts { done, places, target, write: Box::new(write) }, Parts::leave))
    }

    /// The result of a good input, by its place among those of [`Rows::good`].
    pub fn set(&self, i: usize, result: Result<R, Failure>) {
        self.0.update(|parts| parts.done.rows[parts.places[i]].result = Some(result));
    }

    /// Writes all rows if `work` has done them all, and otherwise those that are done.
    ///
    /// # Errors
    /// Those of `work` and of the output.
    pub fn finish(self, work: Result<(), Failure>) -> Result<Done<T, R>, Failure> {
        self.0.finish(|parts| match work {
            Ok(()) => {
                let Parts { done, target, write, .. } = parts;
                let mut out = output::create(target.as_ref())?;
                write(&done, &mut out)?;
                out.commit()?;
                Ok(done)
            }
            Err(failure) => Err(match parts.leave() {
                Some(file) => failure.with_hint(format!("what was done is in `{}`", file.display())),
                None => failure,
            }),
        })
    }
}

impl<T, R> Parts<T, R> {
    /// Writes what is done, if anything is. Returns the file that it is in.
    fn leave(self) -> Option<PathBuf> {
        self.done.rows.iter().find_map(DoneRow::good)?;
        let mut out = output::create(self.target.as_ref()).ok()?;
        (self.write)(&self.done, &mut out).ok()?;
        out.leave()
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
    /// The row with `fields` of its result; `None` if it is not done.
    pub fn json<'a, F: Serialize>(&'a self, fields: impl FnOnce(&'a R) -> F) -> Option<RowJson<'a, F>> {
        let result = match self.result.as_ref()? {
            Ok(result) => ResultJson::Done(fields(result)),
            Err(failure) => ResultJson::Failed { error: failure.message() },
        };
        Some(RowJson { index: self.index, text: self.input.as_deref(), result })
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
