//! GGUF files: what they make of a model, and what is refused.

mod common;

use std::path::{Path, PathBuf};

use common::Rng;
use common::gguf::{Gguf, encoded, of_folder, vocabularies, vocabulary_of};
use common::reference::quant;
use serde_json::Value;
use wginfer::checkpoint::{CheckpointError, ModelFiles, Source, open_tokenizer};
use wginfer::dtype::Dtype;
use wginfer::engine::{
    EncoderOptions, Engine, EngineOptions, Event, Logits, Output, Request, Sampling, TextEncoder,
};
use wginfer::gpu::Gpu;
use wginfer::models::{Loader, ModelError};
use wginfer::tasks;
use wginfer::text::Tokenizer;
use wginfer::weights::ggml::{self, GgmlType};

fn quantised() -> impl Iterator<Item = Dtype> {
    Dtype::WEIGHTS.into_iter().filter(|dtype| dtype.is_quantised())
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

/// A folder with a file of these contents.
fn written(name: &str, bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).expect("a file");
    (dir, path)
}

fn open(bytes: &[u8]) -> Result<ModelFiles, CheckpointError> {
    let (_dir, path) = written("model.gguf", bytes);
    ModelFiles::open(&path)
}

fn engine(gpu: &Gpu, files: ModelFiles, quantize: Option<Dtype>) -> Engine {
    let options =
        EngineOptions { quantize, kv_dtype: Dtype::F32, logits: true, ctx: Some(64), ..Default::default() };
    Engine::load(gpu, files, options, &mut |_| {}).expect("an engine")
}

/// Bytes of the weights in device memory.
fn device_bytes(gpu: &Gpu, files: &ModelFiles, quantize: Option<Dtype>) -> u64 {
    let mut loader = Loader::new(gpu, files.weights.clone(), quantize);
    files.architecture.load(&mut loader, 64).expect("a model");
    loader.device_bytes()
}

/// Logits of all positions.
fn logits(engine: &mut Engine, ids: &[u32]) -> Vec<Vec<f32>> {
    engine.submit(Request { logits: Some(Logits::All), ..Request::new(ids.to_vec()) }).expect("submit");
    let mut rows = Vec::new();
    engine
        .run(|event| match event {
            Event::Logits { values, .. } => rows.push(values),
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        })
        .expect("run");
    assert_eq!(rows.len(), ids.len());
    rows
}

/// Largest error over the largest logit.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let worst = found.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(scale > 0.0 && worst.is_finite());
    worst / scale
}

/// A row on the device has the values of the stored one.
#[test]
fn rows_keep_their_values() {
    let mut rng = Rng::new(1);
    for dtype in quantised() {
        let kind = GgmlType::from_name(dtype.name()).expect("a type of ggml");
        assert_eq!(Dtype::from_name(kind.name), Some(dtype));
        for n_blocks in [1, 2, 3, 7, 8, 9, 17, 40] {
            let n = n_blocks * kind.block;
            let row: Vec<u8> = (0..n_blocks * kind.block_bytes).map(|_| rng.bits() as u8).collect();
            let mut packed = vec![0; dtype.bytes(n)];
            ggml::repack(dtype, &row, &mut packed);
            let (got, want) = (quant::decode(dtype.name(), &packed, n), quant::stored(dtype.name(), &row));
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert_eq!(got.len(), want.len(), "{dtype}");
            assert!(got.iter().zip(&want).all(same), "{dtype}, {n_blocks} blocks");
        }
    }
}

/// The reference decodes blocks as the Python package `gguf` does. `tests/golden_blocks.py` wrote the file.
#[test]
fn blocks_are_decoded_as_ggml_does() {
    let golden: serde_json::Value = serde_json::from_str(include_str!("golden/blocks.json")).expect("JSON");
    let bytes = |hex: &serde_json::Value| -> Vec<u8> {
        let hex = hex.as_str().expect("a string");
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect()
    };
    for dtype in quantised() {
        let blocks = bytes(&golden[dtype.name()]["blocks"]);
        let want: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes(&golden[dtype.name()]["values"]));
        let got: Vec<u32> = quant::stored(dtype.name(), &blocks).iter().map(|x| x.to_bits()).collect();
        assert!(!want.is_empty() && got == want, "{dtype}");
    }
}

/// A row takes the bytes that ggml's takes, and at most what completes its planes, of which there are five.
#[test]
fn rows_take_no_more_bytes_than_ggmls() {
    for dtype in quantised() {
        let kind = GgmlType::from_name(dtype.name()).expect("a type of ggml");
        for n_blocks in 1..200 {
            let (ours, theirs) = (dtype.bytes(n_blocks * kind.block), n_blocks * kind.block_bytes);
            assert!(ours >= theirs && ours <= theirs + 5 * 15, "{dtype}: {ours} bytes for {n_blocks} blocks");
        }
        // Rows of 4,096 elements need no padding.
        assert_eq!(dtype.bytes(4096), 4096 / kind.block * kind.block_bytes, "{dtype}");
    }
}

const IDS: [u32; 7] = [5, 301, 17, 99, 4, 230, 11];

/// A folder of each family of decoders.
const FAMILIES: [&str; 12] = [
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma2",
    "gemma3",
    "olmo2",
    "phi3",
    "smollm3",
    "gpt-neox",
    "ministral3",
    "granite",
];

/// A folder and the file that llama.cpp's converter makes of it are the same model, bit for bit: config, order of rows,
/// types, tokenizer.
#[test]
fn a_folder_and_its_file_are_one_model() {
    let Some(gpu) = common::gpu() else { return };
    let others = [
        "llama3-rope",
        "phi3-short",
        "phi3-long",
        "gpt-neox-sequential",
        "qwen3-moe",
        "mixtral",
        "gpt-oss",
        "gpt-oss-mxfp4",
    ];
    for model in FAMILIES.into_iter().chain(others) {
        let file = of_folder(&folder(model));
        let (ours, theirs) =
            (open(&file.bytes()).expect(model), ModelFiles::open(&folder(model)).expect("a folder"));
        assert_eq!(ours.architecture.shape().architecture, theirs.architecture.shape().architecture);
        let tokenizers = [&ours, &theirs].map(|files| files.tokenizer.clone().expect("a tokenizer"));
        for text in ["Hello world", "<|bos|>a  b\n\nc<|eos|>", "don't 1234 é🙂 漢字", ""] {
            let [a, b] = tokenizers.each_ref().map(|t| t.encode(text, true).expect("ids"));
            assert_eq!(a, b, "{model}: {text:?}");
            let [a, b] = [(&tokenizers[0], a), (&tokenizers[1], b)].map(|(t, ids)| t.decode(&ids, true));
            assert_eq!(a.expect("a text"), b.expect("a text"), "{model}: {text:?}");
        }
        assert_eq!((tokenizers[0].bos(), tokenizers[0].eos()), (Some(0), &[1][..]), "{model}");
        let mut engines = [ours, theirs].map(|files| engine(&gpu, files, None));
        assert_eq!(engines[0].unused_tensors(), &[] as &[String], "{model}");
        let [a, b] = engines.each_mut().map(|engine| logits(engine, &IDS));
        if ["llama3-rope", "phi3-short", "phi3-long"].contains(&model) {
            // The file has the factors of the frequencies, or the one on scores, rounded to F32.
            let worst = a.iter().zip(&b).map(|(a, b)| error(a, b)).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{model}: {worst}");
            let mut plain = file.clone();
            plain.tensors.retain(|(name, ..)| !name.starts_with("rope_"));
            let plain = logits(&mut engine(&gpu, open(&plain.bytes()).expect(model), None), &IDS);
            assert!(error(&plain[6], &b[6]) > 1e-4, "{model}: the factors do nothing");
        } else {
            assert!(a == b, "{model}: other logits");
        }
    }
}

const ENCODERS: [&str; 4] =
    ["bert-classifier", "roberta-classifier", "distilbert-classifier", "modernbert-classifier"];

/// A folder of an encoder and its file give the same embeddings, bit for bit.
#[test]
fn an_encoder_and_its_file_are_one_model() {
    let Some(gpu) = common::gpu() else { return };
    for model in ENCODERS {
        let mut file = of_folder(&folder(model));
        let embedding = |files: ModelFiles| {
            let mut encoder =
                TextEncoder::load(&gpu, files, EncoderOptions::default(), &mut |_| {}).expect(model);
            let texts = vec![IDS.to_vec(), vec![7; 31]];
            let rows = tasks::encode_tokens(&mut encoder, texts, Output::Embedding, &mut |_| {});
            let rows: Vec<Vec<f32>> =
                rows.expect(model).into_iter().map(|row| row.expect("a good text").values).collect();
            (rows, encoder.ctx(), encoder.unused_tensors().to_vec())
        };
        let ours = open(&file.bytes()).expect(model);
        assert!(ours.embedding.as_ref().is_some_and(|config| !config.is_declared), "{model}");
        let (ours, ctx, unused) = embedding(ours);
        assert_eq!(unused, &[] as &[String], "{model}");
        let (theirs, their_ctx, _) = embedding(ModelFiles::open(&folder(model)).expect("a folder"));
        assert_eq!(ctx, their_ctx, "{model}");
        assert!(ours == theirs, "{model}: other embeddings");
        let key =
            format!("{}.pooling_type", if model.starts_with("modern") { "modern-bert" } else { "bert" });
        let pooled = |file: &mut Gguf, kind: u64| {
            file.whole(&key, kind);
            open(&file.bytes())
        };
        let [mean, first, last] =
            [1, 2, 3].map(|kind| embedding(pooled(&mut file, kind).expect("a model")).0);
        assert!(mean == ours && first != ours && last != ours && first != last, "{model}: pooling");
        let error = pooled(&mut file, 4).err().expect("a reranker without a head").to_string();
        assert!(error.contains("expected the tensors `cls.weight` and `cls.output.weight`"), "{error}");
        let error = pooled(&mut file, 5).err().expect("no such pooling").to_string();
        assert!(error.contains(&format!("`{key}` is `5`, expected 0 to 4")), "{error}");
    }
}

/// A file with a classification head gives the logits of its folder, bit for bit, and the labels that it names.
#[test]
fn a_classifier_and_its_file_are_one_model() {
    let Some(gpu) = common::gpu() else { return };
    for (model, head) in [
        ("distilbert-classifier", &[("pre_classifier", "cls"), ("classifier", "cls.output")][..]),
        (
            "modernbert-classifier",
            &[("head.dense", "cls"), ("head.norm", "cls.norm"), ("classifier", "cls.output")],
        ),
    ] {
        let read = |name: &str| std::fs::read(folder(model).join(name)).expect(name);
        // A file has no key for ModernBERT's pooling before the head, which is the mean.
        let dir = tempfile::tempdir().expect("a folder");
        let mut config: Value = serde_json::from_slice(&read("config.json")).expect("JSON");
        config["classifier_pooling"] = "mean".into();
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
        for name in ["model.safetensors", "tokenizer.json"] {
            std::fs::copy(folder(model).join(name), dir.path().join(name)).expect(name);
        }
        let mut file = of_folder(&folder(model));
        let bytes = read("model.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        for (from, to) in head {
            for part in ["weight", "bias"] {
                let Ok(tensor) = tensors.tensor(&format!("{from}.{part}")) else { continue };
                let dims: Vec<usize> = tensor.shape().iter().rev().copied().collect();
                assert_eq!(tensor.dtype(), safetensors::Dtype::BF16, "{from}");
                file.tensor(&format!("{to}.{part}"), &dims, 30, tensor.data().to_vec());
            }
        }
        let logits = |files: ModelFiles| {
            let mut encoder =
                TextEncoder::load(&gpu, files, EncoderOptions::default(), &mut |_| {}).expect(model);
            assert_eq!(encoder.unused_tensors(), [""; 0], "{model}");
            let texts = vec![IDS.to_vec(), vec![7; 31]];
            let rows = tasks::encode_tokens(&mut encoder, texts, Output::Logits, &mut |_| {});
            let values = |row: Result<tasks::Encoding, _>| row.expect("a good text").values;
            rows.expect(model).into_iter().map(values).collect::<Vec<Vec<f32>>>()
        };
        let architecture = if model.starts_with("modern") { "modern-bert" } else { "bert" };
        file.texts(&format!("{architecture}.classifier.output_labels"), &["bad", "so so", "good"]);
        let ours = open(&file.bytes()).expect(model);
        let labels = ours.labels.clone().expect("labels").names;
        let theirs = ModelFiles::open(dir.path()).expect("a folder");
        let n_labels = theirs.labels.as_ref().expect("labels").names.len();
        assert!(
            labels.len() == n_labels && labels.starts_with(&["bad".into(), "so so".into()]),
            "{labels:?}"
        );
        assert!(logits(ours) == logits(theirs), "{model}: other logits");
        // Half a head is none.
        file.tensors.retain(|(name, ..)| !name.starts_with("cls.weight"));
        assert!(open(&file.bytes()).expect(model).labels.is_none(), "{model}");
    }
}

/// Mixtral's files from before April 2024 have a tensor for each expert.
#[test]
fn experts_of_old_files_lie_apart() {
    let Some(gpu) = common::gpu() else { return };
    let file = of_folder(&folder("mixtral"));
    let mut old = file.clone();
    old.tensors.clear();
    for (name, dims, kind, data) in &file.tensors {
        match name.split_once("_exps") {
            Some((stem, suffix)) => {
                let own = data.len() / dims[2];
                for (e, data) in data.chunks(own).enumerate() {
                    old.tensor(&format!("{stem}.{e}{suffix}"), &dims[..2], *kind, data.to_vec());
                }
            }
            None => old.tensor(name, dims, *kind, data.clone()),
        }
    }
    assert!(old.tensors.len() > file.tensors.len());
    let mut engines = [&file, &old].map(|file| engine(&gpu, open(&file.bytes()).expect("a model"), None));
    assert_eq!(engines[1].unused_tensors(), [""; 0]);
    let [a, b] = engines.each_mut().map(|engine| logits(engine, &IDS));
    assert!(a == b, "other logits");
    for (mut file, name) in [
        (old.clone(), "blk.1.ffn_up.2.weight"),
        (file, "blk.0.ffn_gate_exps.weight"),
        (old, "blk.0.ffn_gate.0.weight"),
    ] {
        file.tensors.retain(|(other, ..)| other != name);
        let files = open(&file.bytes()).expect("a model");
        let loaded = files.architecture.load(&mut Loader::new(&gpu, files.weights.clone(), None), 64);
        let error = loaded.err().expect(name).to_string();
        assert!(error.contains(&format!("tensor `{name}` is missing")), "{error}");
    }
}

/// Each tensor that a model needs is missed by the name that the file would have for it.
#[test]
fn missing_tensors_have_the_names_of_the_file() {
    let Some(gpu) = common::gpu() else { return };
    let load = |file: &Gguf| -> Result<(), String> {
        let files = open(&file.bytes()).map_err(|error| error.to_string())?;
        let mut loader = Loader::new(&gpu, files.weights.clone(), None);
        let loaded: Result<_, ModelError> = files.architecture.load(&mut loader, 64);
        loaded.map(drop).map_err(|error| error.to_string())
    };
    for model in FAMILIES.into_iter().chain(ENCODERS) {
        let whole = of_folder(&folder(model));
        load(&whole).expect(model);
        let mut n = 0;
        for (name, ..) in &whole.tensors {
            // What may be absent: a head that is the embedding, and the types of DistilBERT's tokens.
            if ["output.weight", "token_types.weight"].contains(&name.as_str()) {
                continue;
            }
            let mut file = whole.clone();
            file.tensors.retain(|(other, ..)| other != name);
            let error = load(&file).expect_err(name);
            assert!(error.contains(&format!("tensor `{name}` is missing")), "{model}: {error}");
            for theirs in ["model.layers", "gpt_neox", "transformer.h", "encoder.layer", "embeddings."] {
                assert!(!error.contains(theirs), "{model}: {error}");
            }
            n += 1;
        }
        assert!(n > 10, "{model}: {n} tensors");
    }
}

/// Which layers have a window is a number, a list, or a fact of the architecture.
#[test]
fn windows_of_layers() {
    let whole = of_folder(&folder("gemma3"));
    let windows = |file: &Gguf| -> Vec<usize> {
        let shape = open(&file.bytes()).expect("a model").architecture.shape();
        shape.attention.iter().map(|a| a.window.unwrap_or(0)).collect()
    };
    assert_eq!(windows(&whole), [8, 8, 8, 8, 8, 0, 8]);
    const PATTERN: &str = "gemma3.attention.sliding_window_pattern";
    let mut file = whole.clone();
    file.whole(PATTERN, 3);
    assert_eq!(windows(&file), [8, 8, 0, 8, 8, 0, 8]);
    file.list(PATTERN, 7, 7, &[0, 0, 1, 0, 1, 1, 0]);
    assert_eq!(windows(&file), [0, 0, 8, 0, 8, 8, 0]);
    file.list(PATTERN, 7, 2, &[0, 1]);
    let error = open(&file.bytes()).err().expect("two switches for seven layers").to_string();
    assert!(error.contains("`a list of 2`, expected one of 7"), "{error}");
    let mut file = whole.clone();
    file.remove("gemma3.attention.sliding_window");
    assert_eq!(windows(&file), [0; 7]);
    assert_eq!(windows(&of_folder(&folder("gemma2"))), [8, 0]);
    // OLMo 3 has the name of OLMo 2.
    let mut file = of_folder(&folder("olmo2"));
    file.whole("olmo2.attention.sliding_window", 4096);
    let error = open(&file.bytes()).err().expect("OLMo 3").to_string();
    assert!(error.contains("`olmo2.attention.sliding_window` is `4096`, expected none"), "{error}");
}

/// Rows of queries and keys in the order of Hugging Face's checkpoints are another model.
#[test]
fn the_order_of_rows_counts() {
    let Some(gpu) = common::gpu() else { return };
    let right = of_folder(&folder("llama"));
    let mut wrong = right.clone();
    for (name, dims, _, data) in &mut wrong.tensors {
        if name.contains("attn_q.") {
            let row = data.len() / dims[1];
            data.rotate_left(row);
        }
    }
    let [a, b] = [right, wrong]
        .map(|file| logits(&mut engine(&gpu, open(&file.bytes()).expect("a model"), None), &IDS));
    assert!(error(&a[6], &b[6]) > 0.01, "the same logits");
}

/// Matrices of a stack that have different types keep them, and compute what their values in F32 do.
#[test]
fn stacks_of_several_types_keep_them() {
    let Some(gpu) = common::gpu() else { return };
    let mut file = of_folder(&folder("llama"));
    let mut wide = file.clone();
    let (mut n, mut stored_bytes) = (0, 0);
    for ((name, dims, kind, data), (.., wide_data)) in file.tensors.iter_mut().zip(&mut wide.tensors) {
        assert_eq!(*kind, 0, "{name}");
        let values: Vec<f32> = data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let to = match name.as_str() {
            name if name.contains("attn_k.") => 1,
            name if name.contains("attn_v.") || name.contains("ffn_up.") => 8,
            name if name.contains("attn_q.") || name.contains("ffn_gate.") => 2,
            _ => continue,
        };
        n += 1;
        *kind = to;
        let dtype = if to == 8 { "Q8_0" } else { "Q4_0" };
        *data = match to {
            1 => encoded(1, &values),
            // Scales and quants of any kind: the values are those of the reference.
            _ => blocks(to, &values, dims[0]),
        };
        let rounded = match to {
            1 => data.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            _ => quant::stored(dtype, data),
        };
        *wide_data = encoded(0, &rounded);
        stored_bytes += data.len();
    }
    assert_eq!(n, 10);
    let files = [&file, &wide].map(|file| open(&file.bytes()).expect("a model"));
    let [narrow, wide] = files.each_ref().map(|files| device_bytes(&gpu, files, None) as usize);
    assert!(narrow < wide && narrow > stored_bytes, "{narrow} and {wide} bytes");
    let [a, b] = files.map(|files| logits(&mut engine(&gpu, files, None), &IDS));
    for (a, b) in a.iter().zip(&b) {
        assert!(error(a, b) < 1e-5, "{}", error(a, b));
    }
}

/// Values in blocks of Q8_0 (8) or Q4_0 (2), by the rules of the quantiser.
fn blocks(kind: u32, values: &[f32], n_cols: usize) -> Vec<u8> {
    assert!(n_cols.is_multiple_of(32));
    let block = |x: &[f32]| {
        let most = x.iter().fold(0.0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        let d = if kind == 8 { most.abs() / 127.0 } else { most / -8.0 };
        let d = half::f16::from_f32(d);
        let q = |x: f32| if d.to_f32() == 0.0 { 0.0 } else { x / d.to_f32() };
        let mut bytes = d.to_le_bytes().to_vec();
        match kind {
            8 => bytes.extend(x.iter().map(|x| q(*x).round().clamp(-127.0, 127.0) as i8 as u8)),
            _ => {
                let q = |x: f32| (q(x) + 8.5).floor().clamp(0.0, 15.0) as u8;
                bytes.extend((0..16).map(|i| q(x[i]) | q(x[16 + i]) << 4));
            }
        }
        bytes
    };
    values.chunks(32).flat_map(block).collect()
}

/// Quantised matrices stay as they are whatever is asked for, and the others become what a folder's do.
#[test]
fn what_is_quantised_stays() {
    let Some(gpu) = common::gpu() else { return };
    let file = of_folder(&folder("llama"));
    let from_folder = ModelFiles::open(&folder("llama")).expect("a folder");
    let [a, b] = [open(&file.bytes()).expect("a model"), from_folder]
        .map(|files| logits(&mut engine(&gpu, files, Some(Dtype::Q8_0)), &IDS));
    assert!(a == b, "quantised at load");
    let mut stored = file.clone();
    for (name, dims, kind, data) in &mut stored.tensors {
        if name.contains("ffn_") && dims.len() == 2 && dims[0].is_multiple_of(32) {
            let values: Vec<f32> =
                data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            (*kind, *data) = (2, blocks(2, &values, dims[0]));
        }
    }
    let [as_stored, quantised, all] =
        [(&stored, None), (&stored, Some(Dtype::Q8_0)), (&file, Some(Dtype::Q8_0))]
            .map(|(file, quantize)| device_bytes(&gpu, &open(&file.bytes()).expect("a model"), quantize));
    assert!(quantised < as_stored && quantised < all, "{as_stored}, {quantised} and {all} bytes");
}

/// Files of llama.cpp's own quantiser, in mixtures of Q2_K, Q3_K, Q4_K, Q5_K, Q6_K and IQ4_XS, and the last logits of a Llama
/// with the values that they hold.
#[test]
fn files_of_llama_cpp() {
    let dir = folder("gguf");
    let golden = std::fs::read(dir.join("golden.json")).expect("the logits");
    let Some(gpu) = common::exact() else { return };
    let golden: serde_json::Value = serde_json::from_slice(&golden).expect("JSON");
    let ids: Vec<u32> = serde_json::from_value(golden["token_ids"].clone()).expect("ids");
    for (name, expected) in golden["logits"].as_object().expect("logits by files") {
        let files = ModelFiles::open(&dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected: Vec<f32> = serde_json::from_value(expected.clone()).expect("logits");
        let row = logits(&mut engine(&gpu, files, None), &ids).pop().expect("rows");
        let found = error(&row, &expected);
        assert!(found <= 1e-3, "{name}: error {found} of the largest logit");
        let others = golden["logits"].as_object().expect("logits").iter().filter(|(other, _)| *other != name);
        for (other, values) in others {
            let values: Vec<f32> = serde_json::from_value(values.clone()).expect("logits");
            assert!(error(&row, &values) > 1e-3, "{name} and {other} cannot be told apart");
        }
    }
}

fn small() -> Gguf {
    of_folder(&folder("llama"))
}

#[test]
fn broken_headers_are_named() {
    let good = small();
    let n = good.bytes().len();
    open(&good.bytes()).expect("it is good");
    let refused = |bytes: Vec<u8>, message: &str| {
        let error = open(&bytes).err().unwrap_or_else(|| panic!("opened: {message}")).to_string();
        assert!(error.contains(message), "{error}, expected {message}");
    };
    let with = |change: &dyn Fn(&mut Gguf)| {
        let mut file = good.clone();
        change(&mut file);
        file.bytes()
    };
    let patched = |at: usize, patch: &[u8]| {
        let mut bytes = good.bytes();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        bytes
    };
    refused(Vec::new(), "no header, expected `GGUF`");
    refused(b"PK\x03\x04 and more".to_vec(), "it begins with `PK\\x03\\x04`, expected `GGUF`");
    refused(good.bytes()[..7].to_vec(), "the version at byte 4 takes 4 bytes, more than the file has");
    refused(with(&|file| file.version = 1), "GGUF version 1, expected version 2 or 3");
    refused(with(&|file| file.version = 4), "GGUF version 4, expected version 2 or 3");
    refused(patched(4, &3u32.to_be_bytes()), "a GGUF file for big-endian machines");
    open(&with(&|file| file.version = 2)).expect("version 2 is the same");
    refused(patched(8, &u64::MAX.to_le_bytes()), "18446744073709551615 tensors, expected at most");
    refused(patched(16, &(1u64 << 40).to_le_bytes()), "1099511627776 keys, expected at most");
    refused(patched(24, &(1u64 << 33).to_le_bytes()), "key 0 has 8589934592 bytes, expected at most 65535");
    refused(good.bytes()[..n - 1].to_vec(), "beyond the file's end");
    refused(with(&|file| file.key("odd", 13, &[0; 4])), "`odd` has type 13, expected one from 0 to 12");
    refused(with(&|file| file.key("odd", 7, &[2])), "`odd` is the switch 2, expected 0 or 1");
    refused(
        with(&|file| file.again("general.architecture", 7, &[1])),
        "key `general.architecture` is there twice",
    );
    refused(with(&|file| file.key("odd", 8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe])), "is not UTF-8");
    refused(with(&|file| file.list("odd", 4, usize::MAX, &[])), "elements of `odd`, expected at most");
    refused(with(&|file| file.list("odd", 14, 1, &[0; 8])), "`odd` is a list of type 14");
    let nested = |depth: usize| {
        let one = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
        [one.repeat(depth), 0u32.to_le_bytes().to_vec(), 0u64.to_le_bytes().to_vec()].concat()
    };
    open(&with(&|file| file.key("nested", 9, &nested(2)))).expect("lists in lists");
    refused(with(&|file| file.key("odd", 9, &nested(1000))), "lists in lists, deeper than 4");
    refused(
        with(&|file| file.whole("general.alignment", 0)),
        "`general.alignment` is `0`, expected a multiple of 8",
    );
    refused(with(&|file| file.whole("general.alignment", 12)), "`general.alignment` is `12`");
    refused(
        with(&|file| file.text("general.alignment", "32")),
        "`general.alignment` is `32`, expected a whole number",
    );
    let aligned = with(&|file| {
        file.whole("general.alignment", 24);
        file.alignment = 24;
    });
    open(&aligned).expect("an alignment that is no power of two");
    refused(with(&|file| file.whole("general.alignment", 24)), "expected a multiple of 24");
}

#[test]
fn broken_tensors_are_named() {
    let good = small();
    let refused = |change: &dyn Fn(&mut Gguf), message: &str| {
        let mut file = good.clone();
        change(&mut file);
        let error = open(&file.bytes()).err().unwrap_or_else(|| panic!("opened: {message}")).to_string();
        assert!(error.contains(message), "{error}, expected {message}");
    };
    refused(&|file| file.tensor("t", &[1; 5], 0, vec![0; 4]), "tensor `t` has 5 dimensions, expected 1 to 4");
    refused(&|file| file.tensor("t", &[], 0, vec![0; 4]), "tensor `t` has 0 dimensions");
    refused(&|file| file.tensor("t", &[0, 4], 0, vec![]), "which no file holds");
    refused(&|file| file.tensor("t", &[1 << 40, 1 << 40], 0, vec![0; 4]), "which no file holds");
    refused(&|file| file.tensor("t", &[1 << 32], 0, vec![0; 4]), "which no file holds");
    refused(
        &|file| file.tensor("t", &[8], 5, vec![0; 4]),
        "tensor `t` has ggml's type number 5, expected one of F32",
    );
    refused(
        &|file| file.tensor("t", &[33], 8, vec![0; 34]),
        "rows of 33 elements in Q8_0, expected a multiple of 32",
    );
    refused(
        &|file| file.tensor("output_norm.weight", &[1], 0, vec![0; 4]),
        "tensor `output_norm.weight` is there twice",
    );
    let twice = |file: &mut Gguf| {
        let head = file.tensors.iter().position(|(name, ..)| name == "output.weight").expect("a head");
        file.tensors[head].0 = "model.embed_tokens.weight".into();
    };
    refused(&twice, "tensor `token_embd.weight` is there twice");
    let offsets = |change: &dyn Fn(&mut Vec<u64>)| {
        let mut at = 0;
        let mut all: Vec<u64> = Vec::new();
        for (.., data) in &good.tensors {
            all.push(at);
            at += data.len().next_multiple_of(32) as u64;
        }
        change(&mut all);
        open(&good.bytes_at(Some(&all))).err().expect("refused").to_string()
    };
    assert!(offsets(&|all| all[1] = all[0]).contains("overlap"));
    assert!(offsets(&|all| all[1] += 1).contains("expected a multiple of 32"));
    assert!(offsets(&|all| all[1] = u64::MAX - 31).contains("beyond the file's end"));
}

#[test]
fn broken_metadata_is_named() {
    let good = small();
    let refused = |change: &dyn Fn(&mut Gguf), message: &str| {
        let mut file = good.clone();
        change(&mut file);
        let error = open(&file.bytes()).err().unwrap_or_else(|| panic!("opened: {message}")).to_string();
        assert!(error.contains(message), "{error}, expected {message}");
    };
    refused(&|file| file.remove("general.architecture"), "`general.architecture` is missing");
    refused(
        &|file| file.text("general.architecture", "mamba"),
        "architecture `mamba` is not supported, these are: `bert`",
    );
    refused(
        &|file| file.remove("llama.block_count"),
        "`llama.block_count` is missing, expected a whole number",
    );
    refused(
        &|file| file.text("llama.block_count", "two"),
        "`llama.block_count` is `two`, expected a whole number",
    );
    refused(
        &|file| file.whole("llama.block_count", 0),
        "`llama.block_count` is `0`, expected a whole number from 1 to",
    );
    refused(
        &|file| file.whole("llama.block_count", 3),
        "`llama.block_count` is `3`, expected at most 2: the last layer's tensors are such as `blk.1.",
    );
    refused(&|file| file.whole("llama.attention.head_count", 0), "`llama.attention.head_count` is `0`");
    refused(&|file| file.real("llama.rope.freq_base", -1.0), "`llama.rope.freq_base` is `-1.0`, expected");
    refused(
        &|file| file.whole("llama.rope.dimension_count", 8),
        "`llama.rope.dimension_count` is `8`, expected 16",
    );
    refused(&|file| file.whole("llama.expert_count", 8), "`llama.expert_used_count`");
    refused(
        &|file| file.text("llama.rope.scaling.type", "longrope"),
        "`llama.rope.scaling.type` is `longrope`",
    );
    refused(
        &|file| file.whole("tokenizer.ggml.eos_token_id", 999),
        "expected the id of one of the 384 tokens",
    );
    refused(&|file| file.remove("tokenizer.ggml.merges"), "`tokenizer.ggml.merges` is missing");
    refused(&|file| file.list("tokenizer.ggml.token_type", 5, 1, &[0; 4]), "expected a list of 384");
    refused(
        &|file| file.tensors.retain(|(name, ..)| name != "token_embd.weight"),
        "tensor `token_embd.weight` is missing",
    );
    let tokenizer = |change: &dyn Fn(&mut Gguf)| {
        let mut file = good.clone();
        change(&mut file);
        open(&file.bytes()).expect("a model").tokenizer.expect_err("no tokenizer").to_string()
    };
    let error = tokenizer(&|file| file.text("tokenizer.ggml.pre", "qwen99"));
    assert!(
        error.contains("`tokenizer.ggml.pre` is `qwen99`, expected one of `default`, `gpt-2`"),
        "{error}"
    );
    let error = tokenizer(&|file| file.text("tokenizer.ggml.model", "rwkv"));
    assert!(error.contains("`tokenizer.ggml.model` is `rwkv`, expected `gpt2`"), "{error}");
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.model"] {
        let error = tokenizer(&|file| file.remove(key));
        assert!(error.contains(&format!("`{key}` is nothing, expected")), "{error}");
    }
}

#[test]
fn other_shapes_are_named() {
    let Some(gpu) = common::gpu() else { return };
    for (name, expected) in [
        ("blk.1.attn_k.weight", "has shape [31, 64], expected [32, 64]"),
        ("blk.1.ffn_norm.weight", "has shape [63], expected [64]"),
        ("blk.0.ffn_up.weight", "has shape [175, 64], expected [176, 64]"),
    ] {
        let mut file = small();
        let (_, dims, kind, data) =
            file.tensors.iter_mut().find(|(known, ..)| known == name).expect("a tensor");
        assert_eq!(*kind, 0, "{name}");
        let row = data.len() / dims.last().expect("a dimension");
        data.truncate(data.len() - row);
        *dims.last_mut().expect("a dimension") -= 1;
        let files = open(&file.bytes()).expect("it opens");
        let error = Engine::load(&gpu, files, EngineOptions::default(), &mut |_| {}).expect_err("refused");
        assert!(error.to_string().contains(&format!("tensor `{name}` {expected}")), "{error}");
    }
}

#[test]
fn a_type_that_the_device_lacks_is_named() {
    let Some(gpu) = common::gpu() else { return };
    let mut file = small();
    let (name, dims, kind, data) =
        file.tensors.iter_mut().find(|(name, ..)| name == "blk.0.attn_norm.weight").expect("a norm");
    assert_eq!((dims.as_slice(), *kind), (&[64][..], 0), "{name}");
    (*kind, *data) = (26, vec![0; 256]);
    let files = open(&file.bytes()).expect("it opens");
    let options = EngineOptions::default();
    let error = Engine::load(&gpu, files, options, &mut |_| {}).expect_err("refused").to_string();
    assert!(error.contains("`blk.0.attn_norm.weight` has type `I32`, expected one of `F32`"), "{error}");
}

#[test]
fn a_model_in_several_files() {
    let good = small();
    let n = good.tensors.len();
    let dir = tempfile::tempdir().expect("a folder");
    let path = |no: usize| dir.path().join(format!("tiny-{no:05}-of-00003.gguf"));
    let part = |i: usize, change: &dyn Fn(&mut Gguf)| {
        let mut file = if i == 0 { good.clone() } else { Gguf::new() };
        file.tensors = good.tensors[n * i / 3..n * (i + 1) / 3].to_vec();
        file.key("split.no", 2, &(i as u16).to_le_bytes());
        file.key("split.count", 2, &3u16.to_le_bytes());
        file.key("split.tensors.count", 5, &(n as i32).to_le_bytes());
        change(&mut file);
        std::fs::write(path(i + 1), file.bytes()).expect("a file");
    };
    (0..3).for_each(|i| part(i, &|_| {}));
    let whole = open(&good.bytes()).expect("a model");
    for path in [path(1), path(3), dir.path().to_path_buf()] {
        let files = ModelFiles::open(&path).expect("all parts");
        assert_eq!(files.weights.n_bytes(), whole.weights.n_bytes());
        assert_eq!(files.weights.entries().len(), n);
    }
    let error = |path: PathBuf| ModelFiles::open(&path).err().expect("refused").to_string();
    part(1, &|file| file.key("split.no", 2, &2u16.to_le_bytes()));
    assert!(error(path(1)).contains("`split.no` is `2`, expected 1 in this place"));
    part(1, &|file| file.tensors.truncate(1));
    assert!(error(path(1)).contains("expected"), "{}", error(path(1)));
    std::fs::remove_file(path(2)).expect("it is there");
    assert!(error(path(3)).contains("tiny-00002-of-00003.gguf`, which is one of the 3 parts"));
    let mut alone = good.clone();
    alone.key("split.count", 2, &3u16.to_le_bytes());
    let found = open(&alone.bytes()).err().expect("refused").to_string();
    assert!(found.contains("`split.count` is `3`, expected 1"), "{found}");
}

#[test]
fn what_a_name_is() {
    let (dir, path) = written("model.gguf", &small().bytes());
    assert_eq!(Source::parse(&path).expect("a file"), Source::Gguf(path.clone()));
    assert_eq!(Source::parse(dir.path()).expect("a folder"), Source::Gguf(path.clone()));
    let other = dir.path().join("other.bin");
    std::fs::copy(&path, &other).expect("a copy");
    assert_eq!(Source::parse(&other).expect("a file"), Source::Gguf(other));
    std::fs::copy(&path, dir.path().join("second.gguf")).expect("a copy");
    let error = Source::parse(dir.path()).expect_err("two").to_string();
    assert!(error.contains("2 GGUF files, expected one: `model.gguf`, `second.gguf`"), "{error}");
    let (_dir, whisper) = written("ggml-tiny.en.bin", b"lmgg\x00\x00");
    let error = Source::parse(&whisper).expect_err("ggml");
    assert!(error.to_string().contains("ggml's format from before GGUF"), "{error}");
    assert!(error.hint().expect("a hint").contains("openai/whisper-tiny.en"));
}

/// SentencePiece: the best pair first, bytes for unknown characters, a space in front.
#[test]
fn a_sentence_piece_vocabulary() {
    let mut file = small();
    let words = ["▁", "a", "b", "c", "▁a", "ab", "bc", "▁ab", "abc"];
    let scores = [-20.0, -21.0, -22.0, -23.0, -3.0, -2.0, -1.0, -4.0, -9.0];
    let bytes = (0..256).map(|b| format!("<0x{b:02X}>"));
    let tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_string).into_iter().chain(bytes).collect();
    let mut tokens = [tokens, words.map(str::to_string).to_vec()].concat();
    let (first, n) = (259, tokens.len());
    let mut types = [vec![2, 3, 3], vec![6; 256], vec![1; words.len()]].concat();
    let mut all: Vec<f32> = [vec![0.0; 259], scores.to_vec()].concat();
    while tokens.len() < 384 {
        tokens.push(format!("[PAD{}]", tokens.len()));
        types.push(5);
        all.push(0.0);
    }
    file.text("tokenizer.ggml.model", "llama");
    file.texts("tokenizer.ggml.tokens", &tokens);
    let types: Vec<u8> = types.iter().flat_map(|t: &i32| t.to_le_bytes()).collect();
    file.list("tokenizer.ggml.token_type", 5, 384, &types);
    file.list("tokenizer.ggml.scores", 6, 384, &all.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
    for key in ["merges", "pre", "add_bos_token", "bos_token_id", "eos_token_id"] {
        file.remove(&format!("tokenizer.ggml.{key}"));
    }
    let open = |file: &Gguf| open(&file.bytes()).expect("a model").tokenizer.expect("a tokenizer");
    let tokenizer = open(&file);
    let id = |word: &str| (first + words.iter().position(|known| *known == word).expect(word)) as u32;
    assert!(n < 384);
    // `bc` is better than `▁a`, and that than `abc`.
    let ids = |text: &str| tokenizer.encode(text, true).expect("ids");
    assert_eq!(ids("abc"), [1, id("▁a"), id("bc")]);
    assert_eq!(ids("ab"), [1, id("▁ab")]);
    assert_eq!(ids("aé"), [1, id("▁a"), 3 + 0xc3, 3 + 0xa9]);
    assert_eq!(ids("a a"), [1, id("▁a"), id("▁a")]);
    assert_eq!(ids("<s>a</s>"), [1, 1, id("▁a"), 2]);
    assert_eq!(tokenizer.decode(&ids("abc aé"), true).expect("a text"), "abc aé");
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), &[2][..]));
    file.flag("tokenizer.ggml.add_space_prefix", false);
    file.flag("tokenizer.ggml.add_bos_token", false);
    file.flag("tokenizer.ggml.add_eos_token", true);
    assert_eq!(open(&file).encode("ab", true).expect("ids"), [id("ab"), 2]);
}

#[test]
fn chat_templates_and_ends() {
    let mut file = small();
    file.text("tokenizer.chat_template", "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}");
    file.texts("tokenizer.chat_templates", &["tool_use"]);
    file.text("tokenizer.chat_template.tool_use", "tools");
    file.whole("tokenizer.ggml.eot_token_id", 0);
    let tokenizer = open(&file.bytes()).expect("a model").tokenizer.expect("a tokenizer");
    let template = tokenizer.chat_template().expect("a template");
    let text =
        template.render(&[wginfer::text::Message::user("Hi")], true, &Default::default()).expect("a text");
    assert_eq!(text, "<|bos|>Hi");
    assert_eq!(tokenizer.eos(), [1, 0]);
    // The template has the first token, and it is there once.
    let ids = tokenizer.encode(&text, false).expect("ids");
    assert_eq!(ids.iter().filter(|id| **id == 0).count(), 1);
}

/// The tokenizer of this metadata.
fn tokenizer_of(file: &Gguf) -> Tokenizer {
    let (_dir, path) = written("vocabulary.gguf", &file.bytes());
    open_tokenizer(&path).unwrap_or_else(|error| panic!("{error}"))
}

/// Vocabularies of every kind and every name of `tokenizer.ggml.pre`, with the ids that llama.cpp has. `tests/gguf_ids.py
/// --golden` wrote the file. A text whose ids are null is one of which llama.cpp makes something else than the models' own
/// tokenizers.
#[test]
fn small_vocabularies_have_the_ids_of_llama_cpp() {
    let golden = vocabularies();
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let texts: Vec<String> = serde_json::from_value(golden["texts"].clone()).expect("texts");
    let (mut wrong, mut n_names, mut seen) = (Vec::new(), 0, std::collections::HashSet::new());
    for case in list(&golden["cases"]) {
        let mut file = vocabulary_of(&golden, &case);
        let ids: Vec<Option<Vec<u32>>> = serde_json::from_value(case["ids"].clone()).expect("ids");
        seen.insert(ids.clone());
        for pre in list(&case["pre"]) {
            file.text("tokenizer.ggml.pre", pre.as_str().expect("a name"));
            let tokenizer = tokenizer_of(&file);
            n_names += 1;
            for (text, ids) in texts.iter().zip(&ids) {
                let Some(ids) = ids else { continue };
                let found = tokenizer.encode(text, true).expect("ids");
                if found != *ids {
                    wrong.push(format!(
                        "{} {pre}: {text:?}: {found:?}, expected {ids:?}",
                        case["keys"]["model"]
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} texts:\n{}", wrong.len(), wrong.join("\n"));
    assert!(n_names > 90 && seen.len() > 30, "{n_names} names, {} ways", seen.len());
}

/// What a vocabulary spells, it reads.
#[test]
fn small_vocabularies_spell_what_they_read() {
    let file = |model: &str, tokens: &[&str], types: &[i32], scores: &[f32]| {
        let mut file = Gguf::new();
        file.text("tokenizer.ggml.model", model);
        file.texts("tokenizer.ggml.tokens", tokens);
        let types: Vec<u8> = types.iter().flat_map(|kind| kind.to_le_bytes()).collect();
        file.list("tokenizer.ggml.token_type", 5, tokens.len(), &types);
        let bytes: Vec<u8> = scores.iter().flat_map(|score| score.to_le_bytes()).collect();
        file.list("tokenizer.ggml.scores", 6, scores.len(), &bytes);
        file
    };
    // WordPiece: the longest beginning, then what continues it; a word of which a rest is left is unknown.
    let tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁un", "aff", "able", "▁,", "a"];
    let mut bert = file("bert", &tokens, &[3, 3, 3, 3, 1, 1, 1, 1, 1], &[]);
    for (key, id) in [("unknown", 1), ("cls", 2), ("seperator", 3), ("padding", 0)] {
        bert.whole(&format!("tokenizer.ggml.{key}_token_id"), id);
    }
    let tokenizer = tokenizer_of(&bert);
    assert_eq!(tokenizer.encode("UNAFFABLE, Unx", true).expect("ids"), [2, 4, 5, 6, 7, 1, 3]);
    assert_eq!(tokenizer.id_to_token(5).as_deref(), Some("##aff"));
    assert_eq!(tokenizer.decode(&[2, 4, 5, 6, 3], true).expect("a text"), "unaffable");
    bert.flag("tokenizer.ggml.normalizer.lowercase", false);
    assert_eq!(tokenizer_of(&bert).encode("un UN", false).expect("ids"), [4, 1]);
    // Unigram: the pieces with the largest sum, not the longest ones.
    let tokens = ["<pad>", "</s>", "<unk>", "▁", "▁ab", "c", "abc", "▁a", "bc", "<x>"];
    let types = [3, 3, 2, 1, 1, 1, 1, 1, 1, 4];
    let scores = [0.0, 0.0, 0.0, -2.0, -3.0, -3.0, -9.0, -2.5, -2.0, 0.0];
    let mut t5 = file("t5", &tokens, &types, &scores);
    t5.flag("tokenizer.ggml.add_space_prefix", true);
    let tokenizer = tokenizer_of(&t5);
    assert_eq!(tokenizer.encode("abc", true).expect("ids"), [7, 8, 1]);
    assert_eq!(tokenizer.encode("ab ab<x>??", true).expect("ids"), [4, 4, 9, 3, 2, 1]);
    assert_eq!(tokenizer.decode(&[4, 4, 7, 8], true).expect("a text"), "ab ab abc");
    assert_eq!(tokenizer.eos(), &[1]);
    // By a map of characters in which both ends of a line become a space, each end alone.
    let mut units = [0u32; 784];
    (units[0], units[0o415], units[0o412]) =
        (256 << 10, 512 << 10 | 1 << 8 | 0o15, 512 << 10 | 1 << 8 | 0o12);
    (units[0o415 ^ 512], units[0o412 ^ 512]) = (1 << 31, 1 << 31);
    let units = [
        (4 * units.len() as u32).to_le_bytes().to_vec(),
        units.map(u32::to_le_bytes).concat(),
        b" \0".to_vec(),
    ];
    t5.list("tokenizer.ggml.precompiled_charsmap", 0, units.concat().len(), &units.concat());
    let tokenizer = tokenizer_of(&t5);
    for (ends, marks) in
        [("\n", 1), ("\r", 1), ("\r\n", 2), ("\r\n\n", 3), ("\r\n\r\n", 4), ("\r\r\n", 3), ("\n\r", 2)]
    {
        let expected = [vec![7], vec![3; marks], vec![8, 1]].concat();
        assert_eq!(tokenizer.encode(&format!("a{ends}bc"), true).expect("ids"), expected, "{ends:?}");
    }
    t5.remove("tokenizer.ggml.precompiled_charsmap");
    t5.whole("tokenizer.ggml.unknown_token_id", u64::from(u32::MAX));
    let (_dir, path) = written("vocabulary.gguf", &t5.bytes());
    let error = open_tokenizer(&path).expect_err("no unknown token").to_string();
    assert!(error.contains("`tokenizer.ggml.unknown_token_id` is "), "{error}");
    t5.remove("tokenizer.ggml.scores");
    let (_dir, path) = written("vocabulary.gguf", &t5.bytes());
    let error = open_tokenizer(&path).expect_err("no scores").to_string();
    assert!(error.contains("`tokenizer.ggml.scores` is missing, expected a list of 10"), "{error}");
}

/// The files of `tests/gguf_ids.py` in the folder that `WGINFER_GGUF_CASES` names, with this ending in place of theirs.
fn cases(test: &str, ending: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let Some(dir) = std::env::var_os("WGINFER_GGUF_CASES") else {
        common::say(&format!("skipped, `WGINFER_GGUF_CASES` names no folder: {test}"));
        return Vec::new();
    };
    let entries = std::fs::read_dir(&dir).expect("the folder of cases");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "gguf"));
    let cases = paths.into_iter().filter_map(|path| {
        let case = std::fs::read(path.with_extension(ending)).ok()?;
        Some((path, case))
    });
    let cases: Vec<_> = cases.collect();
    assert!(!cases.is_empty(), "no `.{ending}` of a GGUF file in {dir:?}");
    cases
}

/// Ids of texts in many scripts.
#[test]
fn cases_have_the_ids_of_llama_cpp() {
    let mut wrong = Vec::new();
    for (path, cases) in cases("cases_have_the_ids_of_llama_cpp", "json") {
        let cases: Vec<(String, Vec<u32>)> = serde_json::from_slice(&cases).expect("pairs of text and ids");
        let tokenizer = open_tokenizer(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert!(cases.len() >= 20, "{}: {} cases", path.display(), cases.len());
        for (text, expected) in cases {
            let found = tokenizer.encode(&text, true).expect("ids");
            if found != expected {
                let spelled = |ids: &[u32]| -> Vec<String> {
                    ids.iter().map(|id| tokenizer.id_to_token(*id).unwrap_or_default()).collect()
                };
                let (found, expected) = (spelled(&found), spelled(&expected));
                wrong.push(format!("{}: {text:?}: {found:?}, expected {expected:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} texts:\n{}", wrong.len(), wrong.join("\n"));
}

/// Ids that follow a prompt, up to the first that is not certain: the cache and the products of this device have errors.
#[test]
fn cases_have_the_greedy_ids_of_transformers() {
    #[derive(serde::Deserialize)]
    struct Case {
        prompt: Vec<u32>,
        greedy: Vec<u32>,
        /// By how much each logit was larger than the next one.
        gaps: Vec<f32>,
    }
    /// Logits of these models are up to about 30. This is more than F16 does to them.
    const UNCERTAIN: f32 = 0.02;
    let cases = cases("cases_have_the_greedy_ids_of_transformers", "greedy.json");
    let Some(gpu) = common::gpu().filter(|_| !cases.is_empty()) else { return };
    for (path, cases) in cases {
        let cases: Vec<Case> = serde_json::from_slice(&cases).expect("prompts and ids");
        let mut engine = engine(&gpu, ModelFiles::open(&path).expect("a model"), None);
        let mut open = Vec::new();
        for Case { prompt, greedy, gaps } in cases {
            let ids = [&prompt[..], &greedy].concat();
            let ids = &ids[..ids.len().min(64)];
            // After an id that is not certain it goes on from the reference's.
            let mut from = prompt.len();
            while from < ids.len() {
                let certain = gaps[from - prompt.len()..].iter().take_while(|gap| **gap > UNCERTAIN).count();
                let (before, expected) =
                    (ids[..from].to_vec(), ids[from..ids.len().min(from + certain)].to_vec());
                from += certain + 1;
                if !expected.is_empty() {
                    let sampling = Sampling { temperature: 0.0, ..Sampling::default() };
                    let max_tokens = Some(expected.len());
                    let request = Request { max_tokens, sampling, ..Request::new(before.clone()) };
                    open.push((engine.submit(request).expect("submit"), before, expected, Vec::new()));
                }
            }
        }
        let run = engine.run(|event| {
            if let Event::Token { id, token, .. } = event {
                open.iter_mut().filter(|(of, ..)| *of == id).for_each(|(.., found)| found.push(token));
            }
        });
        run.expect("run");
        let mut n_certain = 0;
        for (_, before, expected, found) in open {
            // It stops at the end of a text.
            let next = expected.get(found.len());
            let is_end = |id: &u32| engine.tokenizer().is_some_and(|t| t.eos().contains(id));
            assert!(next.is_none_or(is_end), "{}: {} ids after {before:?}", path.display(), found.len());
            assert_eq!(found, expected[..found.len()], "{}: after {before:?}", path.display());
            n_certain += found.len();
        }
        assert!(n_certain > 200, "{}: {n_certain} ids", path.display());
    }
}
