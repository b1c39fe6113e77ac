//! The error of tasks.

use crate::engine::EngineError;
use crate::text::TextError;

/// An error of a task.
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
    /// A text that must not be empty is empty.
    #[error("the {what} is empty")]
    Empty {
        /// Which text.
        what: &'static str,
    },
    /// A text has too few tokens.
    #[error("the {what} has {found} {}, expected at least {expected}", if *found == 1 { "token" } else { "tokens" })]
    TooShort {
        /// Which text.
        what: &'static str,
        /// Its tokens, without those around it.
        found: usize,
        /// The least number.
        expected: usize,
    },
    /// The checkpoint has no tokenizer, which the task needs.
    #[error("`{model}` has no tokenizer, which texts need")]
    NoTokenizer {
        /// The model.
        model: String,
    },
    /// The context is too small for an instruction and a piece of a document.
    #[error(
        "the context of {ctx} tokens has no room for a document: the instruction and answer take {n_around}"
    )]
    NoRoom {
        /// The context.
        ctx: usize,
        /// Tokens of instruction, question and answer.
        n_around: usize,
    },
    /// The results of a round are not shorter than its input.
    #[error("the results of {n_pieces} pieces fill {n_next}: the rounds would never end")]
    Endless {
        /// Pieces of the round.
        n_pieces: usize,
        /// Pieces of the next.
        n_next: usize,
    },
    /// A label is empty, has no tokens, or occurs twice.
    #[error("label `{label}` {problem}")]
    Label {
        /// The label.
        label: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The caller stopped the task before it had a result.
    #[error("stopped before there was a result")]
    Stopped,
    /// The embedder returned the wrong number of vectors, or vectors of different lengths.
    #[error("the embedder gave {found} for {expected} texts")]
    Embedder {
        /// What it returned.
        found: String,
        /// Number of texts.
        expected: usize,
    },
    /// The engine.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl TaskError {
    /// Advice for the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        match self {
            TaskError::NoRoom { .. } => Some("raise `EngineOptions::ctx`, or ask a shorter question".into()),
            TaskError::Endless { .. } => Some("the model repeats its text; try another model".into()),
            TaskError::Engine(e) => e.hint(),
            _ => None,
        }
    }
}

impl From<TextError> for TaskError {
    fn from(error: TextError) -> Self {
        TaskError::Engine(error.into())
    }
}

/// Whether an error is about the content of one input, so that other inputs can succeed.
pub(super) fn is_of_input(error: &EngineError) -> bool {
    matches!(
        error,
        EngineError::EmptyPrompt
            | EngineError::TokenRange { .. }
            | EngineError::PromptTooLong { .. }
            | EngineError::CacheTooSmall { .. }
            | EngineError::NotFinite { .. }
            | EngineError::OutputNotFinite
            | EngineError::Text(_)
    )
}
