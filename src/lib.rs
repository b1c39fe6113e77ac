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
//! 3. In steady-state decoding the host uploads nothing but command buffers and the table entry of a page that a sequence
//!    has just been given, and reads back 4 bytes a sequence a step (more only where log-probabilities were asked for).
//!    Sampling runs on the device, and the next step reads its token from there, so the host records step t+1 before
//!    token t has arrived.
//! 4. A batch of sequences is the unit of work; one sequence is a batch of one. A sequence may have several rows of either
//!    kind in a step: those of a prompt, and single ones, as generated tokens are computed. A token's kind belongs to its
//!    identity in the prefix cache.
//! 5. No device memory is allocated after the engine is built. Pages of the cache are handed out as they are needed; when
//!    none is left the youngest request gives way and is computed again later, to the same bits.
//! 6. A `.wgsl` file is plain WGSL that a WGSL tool can parse: no preprocessor, no templates.
//! 7. Every kernel has a declaration that matches its WGSL (checked by naga's reflection), an f64 reference, and
//!    a test on random shapes.
//! 8. One architecture is one file under `models`; it names no `wgpu` type, no file format and no quantised type.
//! 9. A weight type is a [`dtype::Dtype`] and a shader part, not a model and not a copy of a kernel.
//! 10. A shape mismatch inside the library is a bug (an assertion). What a user or a file can get wrong is an
//!     `Err` that names the thing, the expected and the found.
//! 11. The command line uses the public API alone, and only it prints.
//! 12. A row's result has the same bits in every batch: the order of its sums depends on the device (and what
//!     `bench::tune` measured and kept for it), on the shapes and types of weights and on the row's kind, never on how many
//!     rows there are, how a prompt is cut or what the cache holds. So the same request with the same seed gives the same
//!     text on one device.
//! 13. What a recording that waits to be submitted reads is never overwritten: parameter blocks are written once, a slot's
//!     tables change only while nothing in flight touches the slot, or are appended to beyond the positions in flight;
//!     pages return once what is in flight has landed; the tables of a step's rows are copied in the recording itself.
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
//! | 3 | [`models`] | one file an architecture, made of `models::blocks`; the loader: a plan, then a resumable upload |
//! | 3 | [`checkpoint`] | a source (a folder, the demonstration model) opened: config, weights, tokenizer, settings; it names no device |
//! | 4 | [`engine`] | requests to events, texts to vectors and labels |
//! | 5 | [`tasks`] | what people do with models: conversations, answers, summaries, labels, embeddings, transcripts, scores |
//! | 5 | `bench` | how fast kernels and models are on this device, and how near to its limits (feature `bench`) |
//! | 6 | `cli` | the command line, part of the binary |
//!
//! `shaders/` holds the kernels, one file each; `shaders/README.md` says how one is written.
//!
//! The engine has three parts. `engine/scheduler` decides: requests, sequences, the page table and what the next step
//! computes are plain data there, tested without a device. `engine/runner` records what was decided, a `Step` of rows:
//! `embed`, every `layer`, `logits`, then the draw; and reads the results. `engine/stepper.rs` cuts what is recorded to a
//! budget and keeps at most two slices in flight, for steps as for clips of sound, batches of texts and weights on their
//! way to the device. A token's way through the device is: token table, `embed`, layers, `logits`, `sample`, token table.
//! An audio encoder runs over a clip, layer by layer, and leaves keys and values for the decoder's cross-attention in pages
//! of their own. A text encoder has no cache: [`engine::TextEncoder`] packs whole texts into batches and leaves a vector for
//! each.
//!
//! # What an addition touches
//!
//! | addition | files |
//! |---|---|
//! | a kernel `x` | `shaders/x.wgsl`, `src/ops/x.rs`, its line in `src/ops/mod.rs`; `src/bench/reference`, a case in `src/bench/cases` and one in `tests/kernels.rs` |
//! | a weight type | `src/dtype.rs`, `shaders/parts/weights_x.wgsl`, its line in `src/ops/mod.rs`; `src/bench/reference/quant.rs` and its line in `src/bench/cases/mod.rs`; where it can be made at load, `shaders/parts/quantize_x.wgsl` |
//! | an architecture | `src/models/x.rs`, its line in `src/models/mod.rs`; a folder in `tests/golden` and its name in `tests/golden.rs` |
//! | a container format | `src/weights/x.rs`, a variant in `src/checkpoint/source.rs` and its function in `src/checkpoint/mod.rs` |
//! | a sampling parameter | `src/engine/sampling.rs`, the record in `src/ops/sample.rs`, the shader that reads it with `shaders/parts/sampling.wgsl`; its entry in `src/cli/sampling.rs` |
//! | a task | `src/tasks/x.rs`, its line in `src/tasks/mod.rs` |
//! | a command | `src/cli/x.rs`, its line in `src/cli/mod.rs` |
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
