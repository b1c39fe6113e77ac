//! Layer 5: tasks, built on the engine: chat, answer, classify, embed, rerank, transcribe, summarize, score.
//! Nothing here prints.
//!
//! A task on many inputs ([`ClassifyTask`], [`EncodeTask`], [`MatchTask`]) has a result for each ([`Finished`]): an input
//! that is empty, too long or fails in another way of its own is an error there, and the others are done. Its other
//! errors, such as a lost device, concern all inputs that have not finished.
//!
//! Each task is a [`Task`], which a host drives step by step on its own device. For a device of our own, there is also
//! a function that waits for the result; it calls [`run`] with the task.

mod answer;
mod batch;
mod chat;
mod classify;
mod embed;
mod error;
mod instruct;
mod passage;
mod rerank;
mod score;
mod split;
mod summarize;
mod task;
pub mod transcribe;
mod write;

pub use answer::{Answer, AnswerTask, Embed, Piece, answer, vectors};
pub use chat::{Chat, Reply};
pub use classify::{
    Classification, ClassifyInput, ClassifyTask, Label, LabelProbability, check_labels, classify,
    prompt_logprob_rows,
};
pub use embed::{
    COSINE_TEMPERATURE, Direction, EncodeTask, Encoding, cosine, encode, encode_tokens, label_scores,
};
pub use error::TaskError;
pub use passage::Quote;
pub use rerank::{RERANK_INSTRUCTION, rerank, rerank_task};
pub use score::{
    Match, MatchTask, Perplexity, PerplexityTask, ScoreWindow, exact_match, normalized, perplexity, total,
    windows,
};
pub use split::{DocumentOptions, MIN_PIECE_TOKENS, split};
pub use summarize::{SummarizeTask, Summary, summarize};
pub use task::{Engines, Events, Finished, Observer, Progress, Task, run};
