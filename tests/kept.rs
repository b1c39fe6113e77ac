//! Results that stay on the device for a host's own shaders.

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::requests::host;
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{
    EncoderOptions, Engine, EngineError, EngineOptions, Event, FinishReason, Logits, Output, Request,
    TextEncoder,
};
use wginfer::gpu::{Gpu, Tensor};
use wginfer::wgpu;

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

fn engine(gpu: &Gpu, kept_rows: usize) -> Engine {
    let options = EngineOptions { logits: true, kept_rows, ..EngineOptions::default() };
    Engine::load(gpu, ModelFiles::demo().expect("a model"), options, &mut |_| {}).expect("an engine")
}

fn encoder(gpu: &Gpu, model: &str, kept_rows: usize) -> TextEncoder {
    let files = ModelFiles::open(&folder(model)).expect("a model");
    TextEncoder::load(gpu, files, EncoderOptions { kept_rows, ..EncoderOptions::default() }, &mut |_| {})
        .expect("an encoder")
}

/// A row of a tensor, read by the host with its own queue.
fn row(gpu: &Gpu, queue: &wgpu::Queue, tensor: &Tensor, row: usize) -> Vec<f32> {
    let (at, size) = ((row * tensor.row_bytes()) as u64, tensor.row_bytes() as u64);
    let to = gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("the host's"),
        size,
        usage: wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ,
        mapped_at_creation: false,
    });
    let mut encoder = gpu.device().create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(tensor.buffer(), at, &to, 0, size);
    queue.submit([encoder.finish()]);
    to.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("it can be mapped"));
    gpu.device().poll(wgpu::PollType::wait_indefinitely()).expect("it works");
    let mut values: Vec<f32> = bytemuck::pod_collect_to_vec(&to.get_mapped_range(..).expect("it is mapped"));
    values.truncate(tensor.n_cols());
    values
}

/// Frames until the engine is idle. Returns the events.
fn frames(engine: &mut Engine, queue: &wgpu::Queue) -> Vec<Event> {
    let mut events = Vec::new();
    while !engine.is_idle() {
        queue.submit(engine.advance(Duration::from_millis(4)).expect("it works"));
        events.extend(engine.events().expect("it works"));
    }
    events
}

/// The logits after a text, as an event has them.
fn reported(engine: &mut Engine, queue: &wgpu::Queue, text: &str) -> Vec<f32> {
    let request = Request::text(engine, text).expect("a tokenizer");
    engine.submit(Request { logits: Some(Logits::Last), ..request }).expect("it fits");
    let values = frames(engine, queue).into_iter().find_map(|event| match event {
        Event::Logits { values, .. } => Some(values),
        _ => None,
    });
    values.expect("they were asked for")
}

fn keep(engine: &mut Engine, text: &str, row: usize, softmax: bool) {
    let request = Request::text(engine, text).expect("a tokenizer");
    engine.submit(Request { logits: Some(Logits::Kept { row, softmax }), ..request }).expect("it fits");
}

#[track_caller]
fn same_as_softmax(found: &[f32], logits: &[f32]) {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let weights: Vec<f64> = logits.iter().map(|z| f64::from(z - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let expected: Vec<f64> = weights.iter().map(|w| w / sum).collect();
    common::assert_close("softmax", found, &expected, common::Tolerance::f32(logits.len(), 1.0));
}

#[test]
fn logits_stay_on_the_device() {
    if common::gpu().is_none() {
        return;
    }
    let (gpu, queue) = host();
    let mut engine = engine(&gpu, 3);
    let table = engine.kept().expect("it was asked for").clone();
    assert_eq!((table.n_rows(), table.n_cols()), (3, engine.shape().vocab_size));
    let [sea, fox] = ["Mia went to the sea.", "The fox was"].map(|text| reported(&mut engine, &queue, text));
    assert_ne!(sea, fox);

    // Two at once, each with a row of its own, beside a request that generates.
    let before = gpu.counts();
    keep(&mut engine, "Mia went to the sea.", 1, false);
    keep(&mut engine, "The fox was", 2, true);
    let story = Request::text(&engine, "One day").expect("a tokenizer");
    engine.submit(Request { max_tokens: Some(3), ..story }).expect("it fits");
    let events = frames(&mut engine, &queue);
    let of_logits = events.iter().filter(|event| matches!(event, Event::Logits { .. })).count();
    let ends = events
        .iter()
        .filter(|event| matches!(event, Event::Done { finish_reason: FinishReason::Length, .. }));
    assert_eq!((of_logits, ends.count()), (0, 3), "{events:?}");
    let n_bytes = gpu.counts().read_bytes - before.read_bytes;
    // A word and two timestamps for each slice, and the tokens.
    assert!(
        n_bytes < table.row_bytes() as u64 / 2,
        "{n_bytes} bytes went through the host, a row has {}",
        table.row_bytes()
    );
    assert_eq!(gpu.counts().allocations, before.allocations, "nothing is allocated");
    common::assert_same_bits("logits", &row(&gpu, &queue, &table, 1), &sea);
    same_as_softmax(&row(&gpu, &queue, &table, 2), &fox);
    assert!(row(&gpu, &queue, &table, 0).iter().all(|value| *value == 0.0), "nobody asked for it");

    // Only the next request for a row changes it.
    keep(&mut engine, "The fox was", 1, false);
    frames(&mut engine, &queue);
    common::assert_same_bits("logits", &row(&gpu, &queue, &table, 1), &fox);
    same_as_softmax(&row(&gpu, &queue, &table, 2), &fox);
}

#[test]
fn what_an_encoder_computes_stays_on_the_device() {
    if common::gpu().is_none() {
        return;
    }
    let (gpu, queue) = host();
    let mut encoder = encoder(&gpu, "bert-classifier", 4);
    let table = encoder.kept().expect("it was asked for").clone();
    let outputs = [Output::Embedding, Output::Logits, Output::Probabilities];
    for (row, output) in outputs.into_iter().enumerate() {
        let ids = encoder.tokenize("The sea is calm.").expect("a tokenizer").0;
        encoder.submit_kept(ids, Vec::new(), output, row).expect("it fits");
        // Others in the batch, which keep nothing.
        let ids = encoder.tokenize("The mountains are high.").expect("a tokenizer").0;
        encoder.submit(ids, output).expect("it fits");
    }
    let mut values = Vec::new();
    while !encoder.is_idle() {
        queue.submit(encoder.advance(Duration::from_millis(4)).expect("it works"));
        values.extend(encoder.events().expect("it works"));
    }
    values.sort_by_key(|encoded| encoded.id);
    let values: Vec<Vec<f32>> = values.into_iter().map(|encoded| encoded.values.expect("numbers")).collect();
    assert_eq!(values.len(), 6);
    for i in 0..3 {
        let (found, expected) = (row(&gpu, &queue, &table, i), &values[2 * i]);
        common::assert_same_bits("kept", &found[..expected.len()], expected);
        assert_ne!(expected, &values[2 * i + 1], "the other text has other values");
    }
    let labels = encoder.labels().expect("a head").clone();
    let expected = labels.probabilities(&values[2]).expect("one label holds");
    assert_eq!(values[4].len(), labels.names.len());
    for (found, expected) in values[4].iter().zip(expected) {
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }
    assert!(row(&gpu, &queue, &table, 3).iter().all(|value| *value == 0.0), "nobody asked for it");
}

#[test]
fn a_row_that_is_not_there_is_refused() {
    let Some(gpu) = common::gpu() else { return };
    let is_of_row = |error: EngineError, found: &str| {
        let text = error.to_string();
        assert!(text.contains("`row`") && text.contains(found) && text.contains("kept_rows"), "{text}");
    };
    for kept_rows in [0, 2] {
        let mut engine = engine(&gpu, kept_rows);
        assert_eq!(engine.kept().is_some(), kept_rows > 0);
        let kept = Logits::Kept { row: kept_rows, softmax: false };
        let request = Request::text(&engine, "The fox").expect("a tokenizer");
        let error = engine.submit(Request { logits: Some(kept), ..request }).expect_err("no such row");
        is_of_row(error, &kept_rows.to_string());
        let mut encoder = encoder(&gpu, "bert-classifier", kept_rows);
        let error = encoder.submit_kept(vec![1], Vec::new(), Output::Embedding, kept_rows);
        is_of_row(error.expect_err("no such row"), &kept_rows.to_string());
    }
}

#[test]
fn a_text_is_a_request() {
    let Some(gpu) = common::gpu() else { return };
    let engine = engine(&gpu, 0);
    let request = Request::text(&engine, "The fox was").expect("a tokenizer");
    let ids = engine.tokenizer().expect("a tokenizer").encode("The fox was", true).expect("ids");
    assert_eq!(format!("{request:?}"), format!("{:?}", Request::new(ids)));
    let config = std::fs::read_to_string(folder("llama").join("config.json")).expect("a config");
    let files = ModelFiles::random("no words", &config, Dtype::F32).expect("a model");
    let mute = Engine::load(&gpu, files, EngineOptions::default(), &mut |_| {}).expect("an engine");
    assert!(matches!(Request::text(&mute, "The fox"), Err(EngineError::Text(_))));
}
