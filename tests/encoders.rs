//! Text encoders against the reference implementation (transformers, f32): embeddings of a real model, logits of small
//! ones with random weights; and what must hold of any batch.

mod common;

use std::path::{Path, PathBuf};

use wginfer::engine::{EncoderCheckpoint, EncoderOptions, Output, TextEncoder};
use wginfer::gpu::Gpu;
use wginfer::tasks;

const CLASSIFIERS: [&str; 4] =
    ["bert-classifier", "roberta-classifier", "distilbert-classifier", "modernbert-classifier"];

#[derive(serde::Deserialize)]
struct Golden {
    token_ids: Vec<u32>,
    logits: Vec<f32>,
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

fn golden(model: &str) -> Golden {
    let text = std::fs::read(folder(model).join("golden.json")).expect("golden.json");
    serde_json::from_slice(&text).expect("golden.json")
}

fn open(dir: &Path) -> EncoderCheckpoint {
    EncoderCheckpoint::open(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

fn encoder(gpu: &Gpu, dir: &Path, options: EncoderOptions) -> TextEncoder {
    TextEncoder::load(gpu, open(dir), options, &mut |_| {})
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

/// The results of texts, in order.
fn encode(encoder: &mut TextEncoder, texts: &[Vec<u32>], output: Output) -> Vec<Vec<f32>> {
    tasks::encode_tokens(encoder, texts.to_vec(), output, &mut |_| {}).expect("it runs")
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

/// The device as it is, portable, and as if it were hardware; all with products of F32.
fn devices() -> Vec<Gpu> {
    let options = |disable: &str| wginfer::gpu::GpuOptions {
        disable: disable.into(),
        f32_products: true,
        ..Default::default()
    };
    ["", "subgroups", "software"].iter().filter_map(|names| common::open(&options(names))).collect()
}

#[test]
fn classifiers_give_the_logits_of_the_reference() {
    for gpu in devices() {
        for model in CLASSIFIERS {
            let golden = golden(model);
            let mut encoder = encoder(&gpu, &folder(model), EncoderOptions::default());
            assert_eq!(encoder.unused_tensors(), [""; 0], "{model}");
            let found = encode(&mut encoder, &[golden.token_ids], Output::Logits).swap_remove(0);
            let error = worst(&found, &golden.logits);
            assert!(error < 1e-3, "{model}: {found:?}, expected {:?}", golden.logits);
            let mut wrong = golden.logits.clone();
            wrong[1] += 3e-3;
            assert!(worst(&found, &wrong) > 1e-3, "{model}: a wrong reference passes");
        }
    }
}
