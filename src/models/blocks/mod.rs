//! Blocks that architectures consist of. A block has weights, an input and a [`Target`]. It calls operations, and knows
//! nothing of the model around it.

mod attention;
mod classifier;
mod decoder;
mod embed;
mod head;
mod keys;
mod linear;
mod mlp;
mod moe;
mod norm;
mod post_norm;
mod rope;

pub use attention::SelfAttention;
pub(crate) use classifier::read_labels;
pub use classifier::{ClassificationHead, HeadNames, Sequences};
pub use decoder::{Decoder, DecoderLayer, LayerLoader, PreNormLayer};
pub use embed::Embed;
pub use head::{FinalNorm, Head};
pub(crate) use keys::{DecoderDefaults, HeadKeys};
pub use keys::{DecoderKeys, Heads, LayerType};
pub use linear::{Linear, Target};
pub use mlp::Mlp;
pub(super) use mlp::act;
pub(crate) use moe::read_experts;
pub use moe::{Experts, FeedForward, Moe, MoeNames};
pub use norm::{LayerNorm, added, load_rms_norm, normed};
pub use post_norm::PostNormLayer;
pub use rope::Rope;
pub(crate) use rope::{Around, THETA};
