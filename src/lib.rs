//! wginfer runs language models, Whisper and text encoders on any GPU that Vulkan, Metal or DX12 supports. It is
//! written directly against `wgpu`: WGSL compute shaders do the arithmetic, a Rust host schedules forward passes over
//! persistent device buffers, and the KV cache lives in device memory.
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
//! engine.submit(Request { max_tokens: Some(64), ..Request::text(&engine, "Once upon a time")? })?;
//! engine.run(|event| {
//!     if let Event::Token { text, .. } = event {
//!         print!("{text}");
//!     }
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! An application that renders with `wgpu` lends its own device ([`gpu::Gpu::adopt`]). Once per frame it calls
//! [`engine::Engine::advance`] with the milliseconds that it can spare, submits the command buffers along with its own
//! work, and reads [`engine::Engine::events`], which never waits. Results can stay in a buffer for the application's
//! shaders ([`engine::Engine::kept`], [`engine::TextEncoder::kept`]). `examples/` has two such applications, packages of
//! their own: a renderer and a desktop application.
//!
//! # Invariants
//!
//! Each of these holds everywhere, and tests check them.
//!
//! 1. Only `gpu` calls `wgpu`. `engine` may name `wgpu::CommandBuffer`; this file re-exports `wgpu`. A host's shader gets at
//!    a result by its [`gpu::Tensor::buffer`].
//! 2. The library creates a device only in [`gpu::Gpu::open`], and again in [`gpu::Gpu::reopen`]. It never submits to an
//!    adopted queue, never blocks on it, and installs no device-wide callback on an adopted device.
//! 3. In steady-state decoding the host uploads nothing but command buffers and the table entry of a page that a
//!    sequence has just been given, and reads back 4 bytes per sequence and step (more only for log-probabilities).
//!    Sampling runs on the device, and the next step reads its token from there, so the host records step t+1 before
//!    token t has arrived.
//! 4. A batch of sequences is the unit of work; one sequence is a batch of one. In a step a sequence can have several
//!    rows of either kind: rows of a prompt, and single rows, as for generated tokens. A token's kind is part of its
//!    identity in the prefix cache.
//! 5. No device memory is allocated after the engine is built, except on another device after a loss. Pages of the cache
//!    are allocated as they are needed; when none is left, the youngest request gives its pages up and is computed again
//!    later, with the same bits.
//! 6. A `.wgsl` file is plain WGSL that a WGSL tool can parse: no preprocessor, no templates.
//! 7. Every kernel has a declaration that matches its WGSL (checked by naga's reflection), an f64 reference, and
//!    a test on random shapes.
//! 8. One architecture is one file under `models`; it names no `wgpu` type, no file format and no quantised type.
//! 9. A weight type is a [`dtype::Dtype`] and a shader part, not a model and not a copy of a kernel.
//! 10. A shape mismatch inside the library is a bug (an assertion). What a user or a file can get wrong is an
//!     `Err` that names the value, what was expected and what was found. A panic of a library that reads a file is
//!     caught and becomes an `Err`; [`panic_is_caught`] tells a panic hook that it need not be reported.
//! 11. The command line and the server use only the public API, and only the command line prints.
//! 12. A row's result has the same bits in every batch: the order of its sums depends on the device (and what
//!     `bench::tune` measured and self-tests found there), on the shapes and types of weights and on the row's kind,
//!     never on how many rows there are, how a prompt is cut or what the cache holds. So the same request with the same
//!     seed gives the same text on one device. It changes once if a self-test ends while an engine runs, which happens
//!     only on an adopted device with a new driver: between two steps, from the portable variants to the fastest that
//!     passed. Requests that are open then go on, but their later rows may have other last bits; prefixes that were
//!     computed before are shared with no request that begins after. A clip keeps the keys and values that it has.
//! 13. Data that a recording reads is never overwritten before the recording has run. Parameter blocks are written
//!     once. A slot's tables change only while nothing in flight uses the slot, or grow beyond the positions in flight.
//!     Pages are freed when the work in flight has finished. The tables of a step's rows are copied in the recording
//!     itself.
//! 14. A lost device is a state, and costs no token. What was in flight counts as not computed. Sequences wait with the
//!     tokens that have arrived, and go on when the weights and tables are on another device: our own, opened again, or a
//!     host's next one. Their keys are computed again by rows of the same kinds, and their draws have the same seeds and
//!     positions, so on the same adapter the text is the same. None of this blocks a guest. If recovery is switched off
//!     or fails, every open request ends with one `Failed`, and every later call returns the loss. On a device of our own
//!     nothing waits for ever, and nothing panics.
//! 15. What a load will take is added up by the code that allocates it, on a plan of the device, and compared with the
//!     free memory before anything is allocated. An estimate is the same sum.
//! 16. Files are not trusted: their sizes are bounded, their numbers have ranges, and chat templates and tokenizers
//!     count what they make of a text.
//!
//! # Map
//!
//! A module imports only lower layers, and the modules of layer 2 do not import each other.
//!
//! | layer | module | contents |
//! |---|---|---|
//! | 0 | [`dtype`], [`error`], `file`, `guard` | element types; the crate's error; regular files of bounded size; panics of libraries |
//! | 1 | [`gpu`] | device, capabilities and quirks, tensors, kernel declarations, recorder, readback; what tuning chose, self-tests found and estimates timed |
//! | 2 | [`ops`] | one file per operation: its kernels, the choice of variant, the launch |
//! | 2 | [`weights`] | containers of tensors: safetensors, GGUF; ggml's blocks |
//! | 2 | [`text`] | tokenizer, streaming decoder, thoughts apart from answers, chat templates: an interpreter of Jinja that counts what it spends |
//! | 2 | [`audio`] | recordings to log-mel frames: decoding, resampling, voice activity |
//! | 2 | `hub` | names of models on the hub: choice of files, download, cache (feature `hub`) |
//! | 3 | [`models`] | one file per architecture, made of `models::blocks`; the loader: a plan, then a resumable upload |
//! | 3 | [`checkpoint`] | opens a model (a folder, a GGUF file, a name on the hub, the demonstration model): config, weights, tokenizer, settings; it names no device |
//! | 4 | [`engine`] | requests to events, texts to vectors and labels |
//! | 5 | [`tasks`] | conversations, answers, summaries, labels, embeddings, rankings, transcripts, scores |
//! | 5 | `bench` | measures kernels and models against the device's limits, and estimates models (feature `bench`) |
//! | 6 | `server` | OpenAI's API over HTTP, part of the binary (feature `server`) |
//! | 6 | `cli` | the command line, part of the binary |
//!
//! `shaders/` holds the kernels, one file each; `shaders/README.md` describes how to write one.
//!
//! The engine has four parts. `engine/scheduler` decides what the next step computes: requests, sequences and the page
//! table are plain data there, tested with no device. `engine/runner` records the decision, a `Step` of rows (`embed`,
//! every `layer`, `outputs`, then the draw), and reads the results. `engine/stepper.rs` cuts recorded work to a budget
//! and keeps at most two slices in flight. It does so for steps, for clips of sound, for batches of texts and for the
//! upload of weights. `engine/recovery.rs` brings everything that an engine has on a device (`engine/build.rs`) to the next
//! one when it is lost; the first load is the same, from nothing.
//!
//! A recording is walked layer by layer, and its dispatches are a function of the step: `gpu/meter.rs` counts them, passes
//! those that were recorded before, and stops where the budget of the frame ends, between two dispatches or between the
//! pieces of one (rows, outputs, blocks of attention). The next walk goes on there. `gpu/cost.rs` predicts what each takes,
//! from the device's times of earlier slices. Both are plain numbers, tested on hours of frames with no device.
//! `engine/frames.rs` shares a frame among several engines.
//!
//! On a driver that was never seen before, `engine/self_test.rs` runs the variants that need optional capabilities, on
//! small inputs, and compares them with the variants that run on every device (`ops/self_test`): during the upload, or
//! on an adopted device along with the engine's own work. An operation with a variant that differs, or that does not
//! compile, runs the latter from then on; the recorder answers for each operation which capabilities it may use. Nothing
//! knows what is right: only `bench` has references.
//!
//! On the device, a token takes this path: token table, `embed`, layers, logits, `sample`, token table. The audio
//! encoder runs over a clip, layer by layer, and writes keys and values for the decoder's cross-attention to pages of
//! their own. A text encoder has no cache: [`engine::TextEncoder`] packs whole texts into batches and computes one
//! vector per text. A decoder that embeds or judges texts is one, too: its head over the vocabulary is left out, and its
//! last rows are its outputs (`models/embedder.rs`).
//!
//! # Where additions go
//!
//! | addition | files |
//! |---|---|
//! | a kernel `x` | `shaders/x.wgsl`, `src/ops/x.rs`, its line in `src/ops/mod.rs`; `src/bench/reference`, a case in `src/bench/cases` and one in `tests/kernels.rs` |
//! | a variant of a kernel that needs an optional capability | the choice in the operation's file; its trial in `src/ops/self_test` |
//! | a weight type | `src/dtype.rs`, `shaders/parts/weights_x.wgsl`, its lines in `src/ops/mod.rs`; `src/bench/reference/quant.rs` and its line in `src/bench/cases/mod.rs`; where GGUF files hold it, `src/weights/ggml.rs`; where it can be made at load, `shaders/parts/quantize_x.wgsl`, `src/engine/model.rs` and `src/cli/args.rs` |
//! | an architecture | `src/models/x.rs`, its lines in `src/models/mod.rs`; a folder in `tests/golden` and its name in `tests/golden.rs`; its name in `tests/config_defaults.py`, a config in `tests/backends/list.rs`; where GGUF files hold it, its lines in `src/checkpoint/gguf/config.rs` and `names.rs`, and its name in `tests/gguf.rs` |
//! | a container format | `src/weights/x.rs` and its call in `src/weights/mod.rs`; a variant in `src/checkpoint/source.rs`, its function in `src/checkpoint/mod.rs`, the reading of its files in `src/checkpoint/files.rs` |
//! | a sampling parameter | `src/engine/sampling.rs`, the record in `src/ops/sample.rs`, the shader that reads it with `shaders/parts/sampling.wgsl`; its entry in `src/cli/sampling.rs`; its reference in `src/bench/reference` with a case in `tests/sampling.rs`; `src/checkpoint/generation.rs` if models recommend it |
//! | a fault of a driver | its line in `src/gpu/quirks.rs` |
//! | a task | `src/tasks/x.rs`, its lines in `src/tasks/mod.rs` |
//! | a command | `src/cli/x.rs`, its lines in `src/cli/mod.rs` |
//! | a route of the server | `src/server/x.rs`, its line in `router` of `src/server/mod.rs`; `tests/server.rs` |
#![warn(missing_docs)]
#![deny(unsafe_code)]

pub mod audio;
#[cfg(feature = "bench")]
pub mod bench;
pub mod checkpoint;
pub mod dtype;
pub mod engine;
pub mod error;
mod file;
pub mod gpu;
mod guard;
#[cfg(feature = "hub")]
pub mod hub;
pub mod models;
pub mod ops;
pub mod tasks;
pub mod text;
pub mod weights;

pub use error::{Error, Result};
pub use guard::panic_is_caught;
pub use wgpu;

/// The README's examples compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
