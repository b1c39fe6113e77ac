//! What architectures are made of.

mod activations;
mod attention;
mod decoder;
mod layer_norm;
mod mlp;
mod rope;

pub use activations::{Activations, Widths};
pub use attention::{Projections, SelfAttention};
pub(super) use decoder::act;
pub use decoder::{Decoder, DecoderKeys, DecoderLayer, Variety};
pub use layer_norm::LayerNorm;
pub use mlp::Mlp;
pub use rope::{Rope, RopeScaling, RopeType};
