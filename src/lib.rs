//! wginfer: a GPU-native inference runtime written directly against `wgpu`.
#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod dtype;
pub mod engine;
pub mod error;
pub mod gpu;
pub mod models;
pub mod ops;
pub mod tasks;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
pub use wgpu;
