//! What a task can get wrong beyond what the engine says.

use crate::engine::EngineError;
use crate::text::TextError;

/// What a task can get wrong beyond what the engine says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// A parameter is out of its range.
    #[error("`{name}` is {found}, expected {expected}")]
    Parameter {
        /// Its name.
        name: &'static str,
        /// Its value.
        found: String,
        /// Its range.
        expected: &'static str,
    },
    /// A text that must say something is empty.
    #[error("the {what} is empty")]
    Empty {
        /// Which text.
        what: &'static str,
    },
    /// The checkpoint has no tokenizer, and the task reads text.
    #[error("`{model}` has no tokenizer, which texts need")]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// The context has no room for a piece of a document beside the instruction.
    #[error("the context of {ctx} tokens has no room for a document: {n_around} tokens are around it")]
    NoRoom {
        /// The context.
        ctx: usize,
        /// Tokens of instruction, question and answer.
        n_around: usize,
    },
    /// The results of a round are no shorter than what went into it.
    #[error("{n_pieces} pieces gave results that fill {n_next}: it would never end")]
    Endless {
        /// Pieces of the round.
        n_pieces: usize,
        /// Pieces of the next.
        n_next: usize,
    },
    /// A label that cannot be told from others, or not at all.
    #[error("label `{label}` {problem}")]
    Label {
        /// The label.
        label: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// One of several things to be done cannot be.
    #[error("{what} {number}: {error}")]
    Item {
        /// What things.
        what: &'static str,
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
        error: EngineError,
    },
    /// The caller stopped the task before its result.
    #[error("stopped before there was a result")]
    Stopped,
    /// The embedder gave another number of vectors, or vectors of different lengths.
    #[error("the embedder gave {found} for {expected} texts")]
    Embedder {
        /// What came.
        found: String,
        /// Texts that went in.
        expected: usize,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl TaskError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            TaskError::NoRoom { .. } => Some("raise `EngineOptions::ctx`, or ask a shorter question".into()),
            TaskError::Endless { .. } => Some("the model repeats its text; try another model".into()),
            TaskError::Engine(e) | TaskError::Item { error: e, .. } => e.hint(),
            _ => None,
        }
    }
}

impl From<TextError> for TaskError {
    fn from(error: TextError) -> Self {
        TaskError::Engine(error.into())
    }
}
