//! What a model takes is known from its headers, to the byte; rates come from times that are kept.

mod common;

use std::path::{Path, PathBuf};
use std::time::Duration;

use common::gguf::of_folder;
use wginfer::bench::{BenchError, Estimate, EstimateOptions, Estimator};
use wginfer::checkpoint::{ModelFiles, Source};
use wginfer::dtype::Dtype;
use wginfer::engine::{Engine, EngineError, PAGE_SIZE, TextEncoder, page_bytes};
use wginfer::gpu::{Gpu, GpuOptions, Measured};
use wginfer::models::ModelError;
use wginfer::ops::tunable;
use wginfer::weights::WeightsError;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// A device of its own, whose memory no other test counts.
fn device() -> Option<Gpu> {
    common::open(&GpuOptions::default())
}

fn source(path: &Path) -> Source {
    Source::parse(path).expect("a model")
}

fn headers(path: &Path) -> ModelFiles {
    ModelFiles::headers(&source(path)).expect("headers")
}

/// Without rates.
fn bytes_only(ctx: usize) -> EstimateOptions {
    EstimateOptions { ctx: Some(ctx), rates: false, ..EstimateOptions::default() }
}

fn estimate(gpu: &Gpu, files: &ModelFiles, options: &EstimateOptions) -> Estimate {
    let mut estimator = Estimator::new(gpu).expect("an estimator");
    estimator.estimate(files, options, &mut |kernel| panic!("`{kernel}` is timed")).expect("an estimate")
}

/// What is in device memory once a model is loaded is what was estimated.
fn assert_bytes(path: &Path, options: &EstimateOptions) {
    let Some(gpu) = device() else { return };
    let before = gpu.counts();
    let estimated = estimate(&gpu, &headers(path), options);
    let of_estimator = gpu.counts();
    // A timer reads back through a ring; nothing of the model's size.
    assert!(of_estimator.allocated_bytes - before.allocated_bytes < 1 << 16, "nothing was allocated");

    let gpu = device().expect("a device");
    let files = ModelFiles::from_source(&source(path)).expect("a model");
    let engine = Engine::load(&gpu, files, options.engine(), &mut |_| {}).expect("an engine");
    let what = format!("{} {options:?}", path.display());
    assert_eq!(engine.ctx(), estimated.ctx, "{what}");
    let pages = engine.kv_tokens() / PAGE_SIZE;
    assert_eq!(
        (pages * page_bytes(engine.shape(), options.kv_dtype)) as u64,
        estimated.cache_bytes,
        "{what}"
    );
    let live = gpu.counts().live_bytes;
    let Estimate { weights_bytes, cache_bytes, scratch_bytes, staging_bytes, total_bytes, .. } = estimated;
    assert_eq!(live, weights_bytes + cache_bytes + scratch_bytes, "{what}: {estimated:?}");
    assert_eq!(total_bytes, live + staging_bytes);
    // Tables that the model computes, such as angles, are weights in memory, but not of the file.
    assert!((engine.weights_bytes()..engine.weights_bytes() + (1 << 20)).contains(&weights_bytes), "{what}");
    let peak = gpu.counts().peak_bytes;
    assert!(peak <= total_bytes, "{what}: {peak} of {total_bytes}, {estimated:?}");
    assert!(estimated.rates.is_empty() && scratch_bytes > 0);
}

#[test]
fn the_bytes_of_decoders_are_those_that_are_allocated() {
    for model in ["llama", "llama3-rope", "mistral-window", "gpt2", "qwen2", "qwen3", "qwen3-moe"] {
        assert_bytes(&golden(model), &bytes_only(200));
        let options = EstimateOptions { batch: Some(3), quantize: Some(Dtype::Q8_0), ..bytes_only(128) };
        assert_bytes(&golden(model), &options);
    }
    let f32_cache = EstimateOptions { kv_dtype: Dtype::F32, batch: Some(2), ..bytes_only(64) };
    assert_bytes(&golden("llama"), &f32_cache);
    assert_bytes(&golden("llama"), &EstimateOptions { quantize: Some(Dtype::Q4_K), ..f32_cache });
}

#[test]
fn the_bytes_of_gguf_files_are_those_that_are_allocated() {
    for name in ["q4_k_m", "q2_k", "iq4_xs"] {
        assert_bytes(&golden(&format!("gguf/llama-{name}.gguf")), &bytes_only(100));
    }
}

#[test]
fn the_bytes_of_a_speech_model_are_those_that_are_allocated() {
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words");
    let options = EstimateOptions { batch: Some(2), ..bytes_only(40) };
    assert_bytes(&words, &options);
    let Some(gpu) = common::gpu() else { return };
    let estimated = estimate(&gpu, &headers(&words), &EstimateOptions { rates: true, ..options });
    assert!(estimated.not_predicted.is_some_and(|reason| reason.contains("speech")));
}

#[test]
fn the_bytes_of_encoders_are_those_that_are_allocated() {
    for model in ["bert-classifier", "distilbert-classifier", "modernbert-classifier", "roberta-classifier"] {
        let Some(gpu) = common::gpu() else { return };
        let options = EstimateOptions { batch: Some(5), rates: true, ..bytes_only(48) };
        let estimated = estimate(&gpu, &headers(&golden(model)), &options);
        assert!(estimated.rates.is_empty());
        let reason = estimated.not_predicted.as_deref();
        assert!(reason.is_some_and(|reason| reason.contains("only of language models")));

        let gpu = device().expect("a device");
        let files = ModelFiles::open(&golden(model)).expect("a model");
        let encoder = TextEncoder::load(&gpu, files, options.encoder(), &mut |_| {}).expect("an encoder");
        assert_eq!((encoder.ctx(), encoder.max_seqs()), (estimated.ctx, estimated.batch));
        let live = gpu.counts().live_bytes;
        assert_eq!(live, estimated.weights_bytes + estimated.scratch_bytes, "{model}: {estimated:?}");
        assert_eq!(estimated.cache_bytes, 0);
    }
}

/// A copy of a file that is a hole from byte `from` on.
fn with_hole(original: &Path, from: u64, copy: &Path) {
    let bytes = std::fs::read(original).expect("a file");
    std::fs::write(copy, &bytes[..from as usize]).expect("it can be written");
    let file = std::fs::OpenOptions::new().write(true).open(copy).expect("it is there");
    file.set_len(bytes.len() as u64).expect("a hole");
}

/// Where the data of a safetensors file begins.
fn safetensors_data(path: &Path) -> u64 {
    let bytes = std::fs::read(path).expect("a file");
    8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"))
}

#[test]
fn config_and_headers_are_enough() {
    let Some(gpu) = common::gpu() else { return };
    let dir = tempfile::tempdir().expect("a folder");
    let same = |original: &Path, hole: &Path| {
        let named = |path: &Path| {
            let options = EstimateOptions { quantize: Some(Dtype::Q4_0), ..bytes_only(64) };
            Estimate { name: String::new(), free_bytes: None, ..estimate(&gpu, &headers(path), &options) }
        };
        assert_eq!(named(original), named(hole), "{}", original.display());
    };
    for model in ["llama", "gpt2", "bert-classifier"] {
        let hole = dir.path().join(model);
        std::fs::create_dir(&hole).expect("a folder");
        std::fs::copy(golden(model).join("config.json"), hole.join("config.json")).expect("a copy");
        let weights = golden(model).join("model.safetensors");
        with_hole(&weights, safetensors_data(&weights), &hole.join("model.safetensors"));
        same(&golden(model), &hole);
        // There is nothing to load.
        if model == "llama" {
            let files = headers(&hole);
            assert!(files.tokenizer.is_err_and(|error| error.to_string().contains("headers")));
            let error = Engine::load(&gpu, headers(&golden(model)), bytes_only(64).engine(), &mut |_| {});
            let Err(EngineError::Model(ModelError::Weights(WeightsError::HeadersOnly { name }))) = error
            else {
                panic!("{error:?}")
            };
            assert!(name.starts_with("model."), "{name}");
        }
    }
    // With a tensor of factors that the config is made of, and with a tokenizer that nobody knows.
    for model in ["llama3-rope", "llama"] {
        let mut file = of_folder(&golden(model));
        file.text("tokenizer.ggml.pre", "of tomorrow");
        let whole = dir.path().join(format!("{model}.gguf"));
        let bytes = file.bytes_at(None);
        std::fs::write(&whole, &bytes).expect("it can be written");
        let n_data: usize = file.tensors.iter().map(|(.., data)| data.len().next_multiple_of(32)).sum();
        let hole = dir.path().join(format!("{model}-hole.gguf"));
        with_hole(&whole, (bytes.len().next_multiple_of(32) - n_data) as u64, &hole);
        same(&whole, &hole);
    }
}

#[test]
fn what_does_not_fit_says_what_would() {
    let with_memory =
        |free_bytes| common::open(&GpuOptions { free_bytes: Some(free_bytes), ..GpuOptions::default() });
    let options = EstimateOptions { batch: Some(8), ..bytes_only(512) };
    let of = |free_bytes: u64, options: &EstimateOptions| {
        with_memory(free_bytes).map(|gpu| estimate(&gpu, &headers(&golden("llama")), options))
    };
    let Some(needs) = of(1 << 40, &options).map(|estimate| estimate.total_bytes) else { return };
    let exact = of(needs, &options).expect("an estimate");
    assert_eq!((exact.fits, exact.missing_bytes, exact.free_bytes), (Some(true), 0, Some(needs)));
    let short = of(needs - 1, &options).expect("an estimate");
    assert_eq!((short.fits, short.missing_bytes), (Some(false), 1));
    assert!(short.fitting_ctx.is_some() || short.fitting_quantize.is_some(), "{short:?}");
    // What is named does fit.
    let quantize = short.fitting_quantize.as_deref().map(|name| Dtype::from_name(name).expect("a type"));
    let fitting = EstimateOptions { ctx: short.fitting_ctx.or(options.ctx), quantize, ..options.clone() };
    assert_eq!(of(needs - 1, &fitting).expect("an estimate").fits, Some(true));
    let hopeless = of(1000, &options).expect("an estimate");
    assert_eq!((hopeless.fits, hopeless.fitting_ctx, hopeless.fitting_quantize), (Some(false), None, None));
}

#[test]
fn wrong_options_are_refused() {
    let Some(gpu) = common::gpu() else { return };
    let mut estimator = Estimator::new(&gpu).expect("an estimator");
    let plain = || bytes_only(64);
    for (model, options, name) in [
        ("llama", EstimateOptions { ctx: Some(0), ..plain() }, "ctx"),
        ("llama", EstimateOptions { ctx: Some(usize::MAX), ..plain() }, "ctx"),
        ("llama", EstimateOptions { batch: Some(0), ..plain() }, "max_seqs"),
        ("llama", EstimateOptions { kv_dtype: Dtype::Q4_0, ..plain() }, "kv_dtype"),
        ("llama", EstimateOptions { quantize: Some(Dtype::F16), ..plain() }, "quantize"),
        ("bert-classifier", EstimateOptions { ctx: Some(0), ..plain() }, "ctx"),
        ("bert-classifier", EstimateOptions { ctx: Some(1 << 20), ..plain() }, "ctx"),
    ] {
        let error = estimator.estimate(&headers(&golden(model)), &options, &mut |_| {}).expect_err("wrong");
        let BenchError::Engine(EngineError::Parameter { name: found, .. }) = error else {
            panic!("{model} {options:?}: {error}")
        };
        assert_eq!(found, name, "{model}");
    }
}

/// A small model with norms of heads, and one with layer norms and positions.
const CONFIGS: [&str; 2] = [
    r#"{"model_type": "qwen3", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 203,
        "max_position_embeddings": 700, "tie_word_embeddings": false}"#,
    r#"{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 131}"#,
];

#[test]
fn kernels_are_timed_once() {
    let dir = tempfile::tempdir().expect("a folder");
    let open = || common::open(&GpuOptions { cache_dir: Some(dir.path().into()), ..GpuOptions::default() });
    let Some(gpu) = open() else { return };
    let (mut first, mut n_timed) = (Vec::new(), 0);
    let mut estimator = Estimator::new(&gpu).expect("an estimator");
    let options =
        EstimateOptions { batch: Some(2), budget: Duration::from_millis(5), ..EstimateOptions::default() };
    for config in CONFIGS {
        let files = ModelFiles::random("small", config, Dtype::F16).expect("a model");
        first.push(estimator.estimate(&files, &options, &mut |_| n_timed += 1).expect("an estimate"));
    }
    assert!(n_timed > 20 && n_timed == estimator.n_measured(), "{n_timed}");
    for (estimated, [n_prompt, ctx]) in first.iter().zip([[512, 700], [255, 256]]) {
        let tests: Vec<(&str, usize)> =
            estimated.rates.iter().map(|rate| (rate.test.as_str(), rate.depth)).collect();
        assert_eq!(tests, [(&*format!("pp{n_prompt}"), 0), ("tg128", 0), ("tg128", ctx - 129)]);
        let rates: Vec<f64> = estimated.rates.iter().map(|rate| rate.tokens_per_second).collect();
        assert!(rates.iter().all(|rate| rate.is_finite() && *rate > 0.0), "{rates:?}");
    }
    estimator.save().expect("a file");

    // The second time, the same from what was kept.
    let gpu = open().expect("a device");
    let mut again = Estimator::new(&gpu).expect("an estimator");
    for (config, first) in CONFIGS.iter().zip(&first) {
        let files = ModelFiles::random("small", config, Dtype::F16).expect("a model");
        let estimated = again.estimate(&files, &options, &mut |kernel| panic!("`{kernel}` is timed again"));
        let estimated = estimated.expect("an estimate");
        for (again, first) in estimated.rates.iter().zip(&first.rates) {
            // JSON rounds the last bit.
            let [again, first] = [again, first].map(|rate| rate.tokens_per_second);
            assert!((again / first - 1.0).abs() < 1e-12, "{again} {first}");
        }
    }
    assert_eq!(again.n_measured(), 0);
    again.forget();
    let files = ModelFiles::random("small", CONFIGS[0], Dtype::F16).expect("a model");
    again.estimate(&files, &options, &mut |_| {}).expect("an estimate");
    assert!(again.n_measured() > 10, "all are timed again");
    let mut again = Estimator::new(&gpu).expect("an estimator");
    // Another type has other kernels.
    let files = ModelFiles::random("small", CONFIGS[1], Dtype::F32).expect("a model");
    let mut timed = Vec::new();
    again.estimate(&files, &options, &mut |kernel| timed.push(kernel.to_string())).expect("an estimate");
    assert!(!timed.is_empty() && timed.iter().all(|kernel| kernel.contains("F32")), "{timed:?}");

    // A file that is damaged is no reason to fail.
    let path = Measured::path(&gpu, tunable()).expect("a path");
    std::fs::write(&path, "{").expect("it can be written");
    assert!(Measured::read(&gpu, tunable()).is_empty());
    assert_eq!(Estimator::new(&gpu).expect("an estimator").n_measured(), 0);
}
