//! wginfer: a GPU-native inference runtime written directly against `wgpu`.

pub mod error;
pub mod text;

pub use error::{Error, Result};
