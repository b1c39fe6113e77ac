//! Rerankers against the reference implementation (transformers, f32), as folders and as GGUF files, with random weights.

mod common;

use std::path::{Path, PathBuf};

use common::gguf::{Gguf, of_folder};
use serde::Deserialize;
use wginfer::checkpoint::{Ability, CheckpointError, ModelFiles, Scoring};
use wginfer::engine::{EncoderOptions, Output, TextEncoder};
use wginfer::gpu::Gpu;
use wginfer::tasks::{self, TaskError};

const CROSS_ENCODERS: [&str; 2] = ["bert-reranker", "xlm-roberta-reranker"];
const JUDGE: &str = "qwen3-reranker";

#[derive(Deserialize)]
struct Golden {
    query: String,
    documents: Vec<Document>,
}

#[derive(Deserialize)]
struct Document {
    text: String,
    token_ids: Vec<u32>,
    #[serde(default)]
    type_ids: Vec<u32>,
    #[serde(default)]
    logit: f32,
    score: f32,
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

fn golden(model: &str) -> Golden {
    let text = std::fs::read(folder(model).join("golden.json")).expect("golden.json");
    serde_json::from_slice(&text).expect("golden.json")
}

fn open(dir: &Path) -> ModelFiles {
    ModelFiles::open(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

fn device() -> Option<Gpu> {
    common::open(&wginfer::gpu::GpuOptions { f32_products: true, ..Default::default() })
}

fn encoder(gpu: &Gpu, files: ModelFiles) -> TextEncoder {
    let files = files.into_reranker().expect("a reranker");
    assert!(files.can(Ability::Rerank), "{:?}", files.abilities());
    TextEncoder::load(gpu, files, EncoderOptions::default(), &mut |_| {}).expect("an encoder")
}

fn scores(encoder: &mut TextEncoder, query: &str, texts: &[&str]) -> Vec<f32> {
    let rows = tasks::rerank(encoder, query, texts, None, &mut |_| {}).expect("it runs");
    rows.into_iter()
        .map(|row| {
            let values = row.expect("a score").values;
            assert_eq!(values.len(), 1);
            values[0]
        })
        .collect()
}

/// The logits of token ids with their types.
fn logits(encoder: &mut TextEncoder, ids: &[u32], types: &[u32]) -> Vec<f32> {
    encoder.submit_typed(ids.to_vec(), types.to_vec(), Output::Logits).expect("it is accepted");
    let mut found = Vec::new();
    encoder.run(|encoded| found.push(encoded.values.expect("logits"))).expect("it runs");
    found.swap_remove(0)
}

#[track_caller]
fn near(what: &str, found: f32, expected: f32) {
    assert!((found - expected).abs() < 1e-3, "{what}: {found}, expected {expected}");
}

#[test]
fn scores_are_those_of_the_reference() {
    let Some(gpu) = device() else { return };
    for model in CROSS_ENCODERS.into_iter().chain([JUDGE]) {
        let golden = golden(model);
        let mut encoder = encoder(&gpu, open(&folder(model)));
        assert_eq!(encoder.unused_tensors(), [""; 0], "{model}");
        let texts: Vec<&str> = golden.documents.iter().map(|document| document.text.as_str()).collect();
        let found = scores(&mut encoder, &golden.query, &texts);
        let (least, most) = found.iter().fold((1.0f32, 0.0f32), |(a, b), x| (a.min(*x), b.max(*x)));
        assert!(most - least > 0.1, "{model}: {found:?} would pass for each other");
        for (document, found) in golden.documents.iter().zip(&found) {
            near(&format!("{model}: {}", document.text), *found, document.score);
            // Alone it has the same bits.
            let alone = scores(&mut encoder, &golden.query, &[&document.text]);
            common::assert_same_bits(model, &alone, &[*found]);
        }
    }
}

#[test]
fn pairs_have_the_tokens_and_types_of_the_reference() {
    for model in CROSS_ENCODERS {
        let golden = golden(model);
        let tokenizer = open(&folder(model)).tokenizer.expect("a tokenizer");
        for document in &golden.documents {
            let pair = tokenizer.encode_pair(&golden.query, &document.text, 500).expect("a pair");
            assert_eq!((&pair.token_ids, &pair.types), (&document.token_ids, &document.type_ids), "{model}");
            assert_eq!(pair.n_cut, 0);
            // Cut, the longer text loses its end, and the tokens around stay.
            let n = pair.token_ids.len() - 5;
            let cut = tokenizer.encode_pair(&golden.query, &document.text, n).expect("a pair");
            assert_eq!((cut.token_ids.len(), cut.types.len(), cut.n_cut), (n, n, 5), "{model}");
            let ends = |ids: &[u32]| (ids[0], ids[ids.len() - 1]);
            assert_eq!(ends(&cut.token_ids), ends(&pair.token_ids), "{model}");
            let least = tokenizer.encode_pair(&golden.query, &document.text, 0).expect("a pair");
            let n_around = if model == "bert-reranker" { 3 } else { 4 };
            assert_eq!(least.token_ids.len(), n_around, "{model}: only the tokens around the texts");
        }
    }
}

/// BERT distinguishes the texts of a pair. A reference without types would be another.
#[test]
fn types_count() {
    let Some(gpu) = device() else { return };
    for model in CROSS_ENCODERS {
        let document = &golden(model).documents[0];
        let mut encoder = encoder(&gpu, open(&folder(model)));
        let [typed, plain] =
            [&document.type_ids[..], &[]].map(|types| logits(&mut encoder, &document.token_ids, types));
        near(model, typed[0], document.logit);
        let differs = (typed[0] - plain[0]).abs() > 3e-3;
        assert_eq!(differs, model == "bert-reranker", "{model}: {typed:?} and {plain:?}");
    }
}

/// A tensor of the folder's weights: dimensions, innermost first, ggml's number of the type, bytes.
fn stored(model: &str, name: &str) -> (Vec<usize>, u32, Vec<u8>) {
    let bytes = std::fs::read(folder(model).join("model.safetensors")).expect("weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let tensor = tensors.tensor(name).expect(name);
    let kind = match tensor.dtype() {
        safetensors::Dtype::F32 => 0,
        safetensors::Dtype::F16 => 1,
        safetensors::Dtype::BF16 => 30,
        other => panic!("{name}: {other:?}"),
    };
    (tensor.shape().iter().rev().copied().collect(), kind, tensor.data().to_vec())
}

fn opened(file: &Gguf) -> Result<ModelFiles, CheckpointError> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, file.bytes()).expect("a file");
    ModelFiles::open(&path)
}

/// A cross-encoder as a GGUF file with both products of its head.
fn cross_encoder(model: &str) -> Gguf {
    let mut file = of_folder(&folder(model));
    let [dense, out] = match model {
        "bert-reranker" => ["bert.pooler.dense", "classifier"],
        _ => ["classifier.dense", "classifier.out_proj"],
    };
    for (from, to) in [(dense, "cls"), (out, "cls.output")] {
        for part in ["weight", "bias"] {
            let (dims, kind, bytes) = stored(model, &format!("{from}.{part}"));
            file.tensor(&format!("{to}.{part}"), &dims, kind, bytes);
        }
    }
    file.whole("bert.pooling_type", 4);
    file
}

#[test]
fn files_have_the_logits_of_their_folders() {
    let Some(gpu) = device() else { return };
    for model in CROSS_ENCODERS {
        let files = opened(&cross_encoder(model)).expect("a model");
        assert_eq!(files.scoring, Some(Scoring::Logistic), "{model}");
        let mut encoder = encoder(&gpu, files);
        assert_eq!(encoder.unused_tensors(), [""; 0], "{model}");
        for document in golden(model).documents {
            let found = logits(&mut encoder, &document.token_ids, &document.type_ids);
            near(model, found[0], document.logit);
        }
    }
    // A file has the rows of `yes` and `no`.
    let mut file = of_folder(&folder(JUDGE));
    let (_, dims, kind, embedding) =
        file.tensors.iter().find(|tensor| tensor.0 == "token_embd.weight").expect("an embedding").clone();
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder(JUDGE).join("golden.json")).expect("golden.json"))
            .expect("JSON");
    let row_bytes = embedding.len() / dims[1];
    let rows = ["yes", "no"].map(|answer| golden[answer].as_u64().expect("an id") as usize);
    let head = rows.iter().flat_map(|row| embedding[row * row_bytes..][..row_bytes].to_vec()).collect();
    file.whole("qwen3.pooling_type", 4);
    let headless = opened(&file).err().expect("no head").to_string();
    assert!(headless.contains("found no head"), "{headless}");
    file.tensor("cls.output.weight", &[dims[0], 2], kind, head);
    let files = opened(&file).expect("a model");
    assert_eq!((files.scoring, files.abilities()), (Some(Scoring::Judgement), vec![Ability::Rerank]));
    let mut encoder = encoder(&gpu, files);
    for document in self::golden(JUDGE).documents {
        let found = logits(&mut encoder, &document.token_ids, &[]);
        near(JUDGE, 1.0 / (1.0 + (found[1] - found[0]).exp()), document.score);
    }
}

#[test]
fn what_is_no_reranker_is_refused() {
    for (model, found) in [
        ("bert-classifier", "labels"),
        ("llama", "`llama`, a model that generates"),
        ("qwen3-embedding", "an embedder"),
    ] {
        let error = open(&folder(model)).into_reranker().err().expect("none").to_string();
        assert!(error.contains("is no reranker") && error.contains(found), "{error}");
    }
    // A head cannot be added to weights that somebody else has; a model that has one needs none.
    let files = open(&folder(JUDGE));
    let shared = files.weights.clone();
    let error = files.into_reranker().err().expect("shared weights").to_string();
    assert!(error.contains("the weights of `") && error.contains("are shared"), "{error}");
    drop(shared);
    let files = open(&folder("bert-reranker"));
    let _shared = files.weights.clone();
    files.into_reranker().expect("a reranker");
    // Converters leave the first product of BERT's head out.
    let mut file = cross_encoder("bert-reranker");
    file.tensors.retain(|(name, ..)| !name.starts_with("cls.weight") && !name.starts_with("cls.bias"));
    let error = opened(&file).err().expect("half a head").to_string();
    assert!(error.contains("expected the tensors `cls.weight` and `cls.output.weight`"), "{error}");
    let mut file = cross_encoder("bert-reranker");
    file.whole("bert.pooling_type", 5);
    let error = opened(&file).err().expect("no such pooling").to_string();
    assert!(error.contains("`bert.pooling_type` is `5`, expected 0 to 4"), "{error}");
}

#[test]
fn inputs_that_are_wrong_are_refused() {
    let Some(gpu) = device() else { return };
    let mut cross = encoder(&gpu, open(&folder(CROSS_ENCODERS[0])));
    let run = |encoder: &mut TextEncoder, query: &str, instruction| {
        tasks::rerank(encoder, query, &["a", " ", "b"], instruction, &mut |_| {})
    };
    let refused = |error: TaskError, part: &str| assert!(error.to_string().contains(part), "{error}");
    refused(run(&mut cross, " ", None).expect_err("no query"), "the query is empty");
    refused(run(&mut cross, "q", Some("x")).expect_err("no such option"), "`instruction` is x");
    let rows = run(&mut cross, "q", None).expect("it runs");
    assert!(rows[0].is_ok() && rows[2].is_ok());
    assert!(matches!(rows[1], Err(TaskError::Empty { what: "text" })), "{:?}", rows[1]);
    let files = open(&folder("bert-classifier"));
    let mut other =
        TextEncoder::load(&gpu, files, EncoderOptions::default(), &mut |_| {}).expect("an encoder");
    refused(run(&mut other, "q", None).expect_err("no reranker"), "expected a reranker");

    // A model that judges hears an instruction, and cuts only the text.
    let mut judge = encoder(&gpu, open(&folder(JUDGE)));
    let [by_default, other] = [None, Some("Find lies")].map(|instruction| {
        run(&mut judge, "q", instruction).expect("it runs").swap_remove(0).expect("a score").values[0]
    });
    assert!((by_default - other).abs() > 1e-4, "{by_default} and {other}");
    let long = "a b c ".repeat(600);
    let row = tasks::rerank(&mut judge, "q", &[&long], None, &mut |_| {}).expect("it runs").swap_remove(0);
    let row = row.expect("a score");
    assert_eq!(row.n_tokens, judge.ctx());
    assert!(row.n_cut > 100, "{}", row.n_cut);
}

/// sentence-transformers names the activation in the config.
#[test]
fn the_config_names_the_activation() {
    let dir = tempfile::tempdir().expect("a folder");
    let from = folder(CROSS_ENCODERS[0]);
    for entry in std::fs::read_dir(&from).expect("a folder") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("it can be copied");
    }
    let config = std::fs::read_to_string(from.join("config.json")).expect("a config");
    let with = |activation: &str| {
        let text = config.replacen('{', &format!("{{ {activation},"), 1);
        std::fs::write(dir.path().join("config.json"), text).expect("it can be written");
        ModelFiles::open(dir.path())
    };
    let identity = "torch.nn.modules.linear.Identity";
    for key in [
        format!("\"sentence_transformers\": {{ \"activation_fn\": \"{identity}\" }}"),
        format!("\"sbert_ce_default_activation_function\": \"{identity}\""),
    ] {
        assert_eq!(with(&key).expect("a model").scoring, Some(Scoring::Logit), "{key}");
    }
    let sigmoid = "\"sentence_transformers\": { \"activation_fn\": \"torch.nn.modules.activation.Sigmoid\" }";
    assert_eq!(with(sigmoid).expect("a model").scoring, Some(Scoring::Logistic));
    let error = with("\"sbert_ce_default_activation_function\": \"torch.nn.ReLU\"").err().expect("unknown");
    assert!(error.to_string().contains("expected `Sigmoid` or `Identity`"), "{error}");

    let Some(gpu) = device() else { return };
    let mut logit = encoder(
        &gpu,
        with(&format!("\"sbert_ce_default_activation_function\": \"{identity}\"")).expect("a model"),
    );
    let golden = golden(CROSS_ENCODERS[0]);
    let found = scores(&mut logit, &golden.query, &[&golden.documents[0].text]);
    near("the logit", found[0], golden.documents[0].logit);
}
