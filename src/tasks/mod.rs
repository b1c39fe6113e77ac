//! Layer 5: what people do with models, over the engine. Nothing here prints.

mod answer;
mod chat;
mod classify;
mod embed;
mod error;
mod instruct;
mod passage;
mod score;
mod split;
mod summarize;
pub mod transcribe;

pub use answer::{Answer, Embed, Piece, answer};
pub use chat::{Chat, Reply};
pub use classify::{Classification, Input, Label, LabelProbability, classify, prompt_logprob_rows};
pub use embed::{COSINE_TEMPERATURE, Encodings, cosine, encode, encode_tokens, label_scores};
pub use error::TaskError;
pub use instruct::{Observer, Progress};
pub use passage::Quote;
pub use score::{Match, Perplexity, Window, exact_match, normalized, perplexity, total, windows};
pub use split::{DocumentOptions, MIN_PIECE_TOKENS, split};
pub use summarize::{Summary, summarize};
