//! Layer 5: what people do with models, over the engine. Nothing here prints.

mod chat;

pub use chat::{Chat, Reply};
