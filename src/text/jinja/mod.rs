//! Jinja, as chat templates use it: Jinja2's language with Python's values and methods.
//!
//! A template is a program from an untrusted file. So everything that it can spend has a limit ([`limits`]), and each
//! place that computes, copies or descends goes through [`budget::Budget`], which counts. Two rules keep that simple:
//!
//! - No text or list is made before its size has been charged.
//! - Values and syntax trees have a limited depth from the start, so that whatever descends into them (comparison,
//!   output, JSON, destruction) needs no counter of its own.
//!
//! A library cannot do that from outside: an operator that doubles a text sixty times takes sixty steps.
//!
//! `lexer` makes tokens, `parser` a [`syntax`] tree, `vm` evaluates it. It alone calls templates' code: the others compute
//! with values. `compare` and `access` are what all need of them, `ops` are the operators, `methods` those of Python's
//! types, `filters` and `predicates` (what follows `is`) Jinja's, `format` is `%` and `str.format`, `json` reads and
//! writes JSON.
//!
//! The reference is Jinja2 as `transformers` sets it up: sandboxed, `trim_blocks`, `lstrip_blocks`, loop controls.

mod access;
mod args;
mod budget;
mod compare;
mod filters;
mod format;
mod globals;
mod json;
mod lexer;
mod methods;
mod names;
mod ops;
mod parser;
mod predicates;
mod repr;
mod syntax;
mod value;
mod vm;

use std::collections::BTreeSet;
use std::sync::Arc;

use syntax::{Name, Node};
use vm::Vm;

/// What a template may spend. Real templates stay far below: they have some 500 lines, nest 20 levels and evaluate about
/// 50 expressions per message.
pub(super) mod limits {
    /// Bytes of a template's source.
    pub const SOURCE: u64 = 1 << 20;
    /// Levels of nesting in the source: blocks, brackets and prefix operators.
    pub const NESTING: u64 = 200;
    /// Operators, or filters and subscripts, in a row in one expression.
    pub const OPERATORS: u64 = 1000;
    /// Steps: evaluated expressions and statements, visited items, and each 64 bytes that are read or written. It bounds
    /// the time: some seconds at worst.
    pub const STEPS: u64 = 10_000_000;
    /// Bytes of all texts and lists that are made, not only those still in use.
    pub const MEMORY: u64 = 512 << 20;
    /// Bytes of the rendered prompt.
    pub const OUTPUT: u64 = 64 << 20;
    /// Levels of evaluation: expressions, blocks, calls of macros and recursive loops.
    pub const DEPTH: u64 = 1000;
    /// Levels of lists and dicts in each other.
    pub const VALUE_DEPTH: u64 = 150;
    /// Items of a `range`, as in Jinja2's sandbox.
    pub const RANGE: u64 = 100_000;
}

/// The stack of the thread that parses and renders. Unused pages are never touched, so they cost nothing.
const STACK_BYTES: usize = 64 << 20;

/// The longest message of an error.
const MESSAGE_CHARS: usize = 1000;

/// Why a template cannot be parsed or rendered.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Error {
    /// The line in the template, from 1. 0 is unknown.
    pub line: usize,
    pub kind: ErrorKind,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum ErrorKind {
    /// The template is wrong, or does not suit its variables.
    Failed(String),
    /// The template called `raise_exception`.
    Raised(String),
    /// More than `limit` of `what`.
    Limit { what: &'static str, limit: u64 },
}

impl Error {
    /// A failure. Names in the message may be as long as the template.
    fn new(message: impl Into<String>) -> Error {
        Error { line: 0, kind: ErrorKind::Failed(cut(message.into())) }
    }

    fn limit(what: &'static str, limit: u64) -> Error {
        Error { line: 0, kind: ErrorKind::Limit { what, limit } }
    }

    /// Sets the line, unless it is known.
    fn at(mut self, line: usize) -> Error {
        if self.line == 0 {
            self.line = line;
        }
        self
    }
}

/// The use of an undefined value for something that needs one.
fn undefined(what: Option<&str>) -> Error {
    Error::new(match what {
        Some(name) => format!("`{}` is undefined", repr::brief(name)),
        None => "an item is undefined".to_string(),
    })
}

/// The first characters of a message.
fn cut(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS) {
        message.truncate(end);
        message.push_str("...");
    }
    message
}

type Result<T> = std::result::Result<T, Error>;

/// A parsed template.
#[derive(Clone)]
pub(super) struct Template {
    body: Arc<[Node]>,
    /// Names that it reads before it assigns them.
    read: Arc<BTreeSet<Name>>,
}

impl Template {
    /// Parses `source`.
    pub fn parse(source: &str) -> Result<Template> {
        if source.len() as u64 > limits::SOURCE {
            return Err(Error::limit("bytes of source", limits::SOURCE));
        }
        let (body, read) = on_own_stack(|| parser::parse(source))?;
        Ok(Template { body: body.into(), read: read.into() })
    }

    /// Whether a part of the template reads the variable `name`.
    pub fn reads(&self, name: &str) -> bool {
        self.read.contains(name)
    }

    /// Renders the template with `variables`.
    pub fn render(&self, variables: &[(&str, &serde_json::Value)]) -> Result<String> {
        on_own_stack(|| Vm::default().render(&self.body, variables))
    }
}

/// Runs `work` on a thread whose stack suffices for the limits on depth, whatever the caller's stack is.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".into()).stack_size(STACK_BYTES);
        let thread = thread.spawn_scoped(scope, work);
        let thread = thread.map_err(|e| Error::new(format!("no thread can be started: {e}")))?;
        thread.join().unwrap_or_else(|_| Err(Error::new("the evaluation panicked: this is a bug")))
    })
}
