//! Layer 5: what people do with models, over the engine. Nothing here prints.

mod chat;
mod embed;

pub use chat::{Chat, Reply};
pub use embed::{Encodings, cosine, encode, encode_tokens};
