//! Layer 5: what people do with models, over the engine. Nothing here prints.

mod chat;
mod embed;
pub mod transcribe;

pub use chat::{Chat, Reply};
pub use embed::{COSINE_TEMPERATURE, Encodings, cosine, encode, encode_tokens, label_scores};
