//! wginfer runs language models, Whisper and text encoders on any GPU that Vulkan, Metal or DX12 reaches. It is written
//! directly against `wgpu`: hand-written WGSL compute shaders do the arithmetic, a Rust host schedules forward passes
//! over persistent device buffers, and the KV cache lives in device memory.
//!
//! ```no_run
//! use std::path::Path;
//! use wginfer::checkpoint::ModelFiles;
//! use wginfer::engine::{Engine, EngineOptions, Event, Request};
//! use wginfer::gpu::{Gpu, GpuOptions};
//!
//! # fn main() -> wginfer::Result<()> {
//! let gpu = Gpu::open(&GpuOptions::default())?;
//! let files = ModelFiles::open(Path::new("path/to/SmolLM2-135M-Instruct"))?;
//! let mut engine = Engine::load(&gpu, files, EngineOptions::default(), &mut |_| {})?;
//! let prompt = match engine.tokenizer() {
//!     Some(tokenizer) => tokenizer.encode("Once upon a time", true)?,
//!     None => vec![1],
//! };
//! engine.submit(Request { max_tokens: Some(64), ..Request::new(prompt) })?;
//! engine.run(|event| {
//!     if let Event::Token { text, .. } = event {
//!         print!("{text}");
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! An application that renders with `wgpu` lends its own device ([`gpu::Gpu::adopt`]), calls
//! [`engine::Engine::advance`] once a frame with the milliseconds that it can spare, submits what it gets along
//! with its own work, and reads [`engine::Engine::events`], which never waits.
//!
//! # Invariants
//!
//! A test holds each.
//!
//! 1. Only `gpu` calls `wgpu`. `engine` may name `wgpu::CommandBuffer`; this file re-exports `wgpu`.
//! 2. The library never creates a device unless asked, never submits to an adopted queue, never blocks on it,
//!    and installs no device-wide callback on a device that it did not create.
//! 3. In steady-state decoding the host uploads nothing but command buffers, and reads back 4 bytes a sequence
//!    a step (more only where log-probabilities were asked for). Sampling runs on the device, and the next step
//!    reads its token from there, so the host records step t+1 before token t has arrived.
//! 4. A batch of sequences is the unit of work; one sequence is a batch of one.
//! 5. No device memory is allocated after the engine is built.
//! 6. A `.wgsl` file is plain WGSL that a WGSL tool can parse: no preprocessor, no templates.
//! 7. Every kernel has a declaration that matches its WGSL (checked by naga's reflection), an f64 reference, and
//!    a test on random shapes.
//! 8. One architecture is one file under `models`; it names no `wgpu` type, no file format and no quantised type.
//! 9. A weight type is a [`dtype::Dtype`] and a shader part, not a model and not a copy of a kernel.
//! 10. A shape mismatch inside the library is a bug (an assertion). What a user or a file can get wrong is an
//!     `Err` that names the thing, the expected and the found.
//! 11. The command line uses the public API alone, and only it prints.
//!
//! Two more follow from how kernels are chosen and tables are written:
//!
//! 12. A row's result does not depend on its batch: the order of its sums depends on the device (and what
//!     `bench::tune` measured and kept for it), on the shapes and types of weights and on whether the row decodes or
//!     belongs to a prompt, never on how many rows there are. So the same seed gives the same text whatever else runs,
//!     and logits are the same however a prompt is cut.
//! 13. What a recording that waits to be submitted reads is never overwritten: parameter blocks are written once,
//!     a slot's tables change only while nothing in flight touches the slot, and the tables of a step's rows are
//!     copied in the recording itself.
//!
//! # Map
//!
//! A module imports only lower layers, and inside layer 2 nobody imports a neighbour.
//!
//! | layer | module | what it knows |
//! |---|---|---|
//! | 0 | [`dtype`], [`error`] | element types; the crate's error |
//! | 1 | [`gpu`] | device, capabilities, tensors, kernel declarations, recorder, readback, what tuning keeps |
//! | 2 | [`ops`] | one file an operation: its kernels, the choice of variant, the launch |
//! | 2 | [`weights`] | containers of tensors |
//! | 2 | [`text`] | tokenizer, streaming decoder, chat template |
//! | 2 | [`audio`] | recordings to log-mel frames: decoding, resampling, voice activity |
//! | 3 | [`models`] | one file an architecture, made of `models::blocks`; the loader, from checkpoint to device memory |
//! | 3 | [`checkpoint`] | a source (a folder, the demonstration model) opened: config, weights, tokenizer, settings; it names no device |
//! | 4 | [`engine`] | requests to events: pages, scheduler, sampling parameters, clips of sound; texts to vectors and labels |
//! | 5 | [`tasks`] | what people do with models: conversations, answers, summaries, labels, embeddings, transcripts, scores |
//! | 5 | `bench` | how fast kernels and models are on this device, and how near to its limits (feature `bench`) |
//! | 6 | `cli` | the command line, part of the binary |
//!
//! `shaders/` holds the kernels, one file each; `shaders/README.md` says how one is written. A step of the engine
//! is a `Plan` of rows (`engine/plan.rs`); `engine/forward.rs` records it: `embed`, every `layer`, `logits`, then
//! the draw. A token's way through the device is: token table, `embed`, layers, `logits`, `sample`, token table.
//! Beside steps the engine records clips of sound (`engine/clips.rs`): an encoder hears one, layer by layer, and leaves
//! keys and values for the decoder's cross-attention in pages of their own. A text encoder is not written to and has no
//! cache: [`engine::TextEncoder`] packs whole texts into batches and leaves a vector for each.
#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod audio;
#[cfg(feature = "bench")]
pub mod bench;
pub mod checkpoint;
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

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
