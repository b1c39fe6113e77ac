//! What architectures are made of.

mod attention;
mod classifier;
mod decoder;
mod layer_norm;
mod mlp;
mod post_norm;
mod rope;

pub use attention::{Projections, SelfAttention};
pub use classifier::{ClassificationHead, HeadNames, LabelKeys};
pub(super) use decoder::act;
pub use decoder::{Decoder, DecoderKeys, DecoderLayer, Variety};
pub use layer_norm::LayerNorm;
pub use mlp::Mlp;
pub use post_norm::{PostNormEncoder, PostNormKeys, PostNormNames};
pub use rope::{Rope, RopeScaling, RopeType};
