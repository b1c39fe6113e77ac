//! Every architecture against logits and greedy text of the reference implementation (transformers, f32), on
//! small checkpoints with random weights in each type that checkpoints come in.

mod common;

use std::iter;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use common::reference::quant;
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{Engine, EngineOptions, Event, Logits, Request, Sampling};
use wginfer::gpu::{Gpu, GpuOptions};
use wginfer::tasks::Chat;
use wginfer::text::Message;

const MODELS: &[&str] = &[
    "llama",
    "llama3-rope",
    "mistral-window",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma2",
    "gemma2-odd",
    "gemma3",
    "gemma3-linear",
    "olmo2",
    "phi3",
    "phi3-short",
    "phi3-long",
    "smollm3",
    "gpt-neox",
    "gpt-neox-sequential",
    "ministral3",
    "granite",
    "qwen3-moe",
    "qwen3-moe-mixed",
    "mixtral",
    "gpt-oss",
    "gpt-oss-mxfp4",
];

#[derive(serde::Deserialize)]
struct Golden {
    token_ids: Vec<u32>,
    last_logits: Vec<f32>,
    argmax: Vec<u32>,
    greedy: Vec<u32>,
}

fn folder(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

fn golden(model: &str) -> Golden {
    let text = std::fs::read(folder(model).join("golden.json")).expect("golden.json");
    serde_json::from_slice(&text).expect("golden.json")
}

fn engine(gpu: &Gpu, model: &str, options: EngineOptions) -> Engine {
    let checkpoint = ModelFiles::open(&folder(model)).expect("checkpoint");
    Engine::load(gpu, checkpoint, options, &mut |_| {}).expect("engine")
}

/// Logits of every position of the golden prompt.
fn logits(engine: &mut Engine, ids: &[u32], which: Logits) -> Vec<Vec<f32>> {
    logits_of(engine, Request { logits: Some(which), ..Request::new(ids.to_vec()) })
}

fn logits_of(engine: &mut Engine, request: Request) -> Vec<Vec<f32>> {
    engine.submit(request).expect("submit");
    let mut rows = Vec::new();
    engine
        .run(|event| match event {
            Event::Logits { values, .. } => rows.push(values),
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        })
        .expect("run");
    rows
}

fn greedy(engine: &mut Engine, ids: &[u32], n: usize) -> Vec<u32> {
    let request = Request {
        sampling: Sampling::greedy(),
        max_tokens: Some(n),
        stop_tokens: Some(Vec::new()),
        ..Request::new(ids.to_vec())
    };
    engine.submit(request).expect("submit");
    let mut tokens = Vec::new();
    engine
        .run(|event| match event {
            Event::Token { token, .. } => tokens.push(token),
            Event::Failed { error, .. } => panic!("{error}"),
            _ => {}
        })
        .expect("run");
    tokens
}

fn argmax(row: &[f32]) -> u32 {
    (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("a row") as u32
}

/// Largest error over the largest logit of the reference.
fn error(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let worst = found.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(scale > 0.0 && worst.is_finite());
    worst / scale
}

fn disabled(names: &str) -> GpuOptions {
    GpuOptions { disable: names.into(), ..GpuOptions::default() }
}

/// With an F16 cache or F16 products, the logits have ten times the tolerance.
fn check(options: &GpuOptions, kv_dtype: Dtype) {
    let Some(gpu) = common::open(options) else { return };
    let exact = kv_dtype == Dtype::F32 && !gpu.caps().f16_products();
    let bound = if exact { 1e-3 } else { 1e-2 };
    for model in MODELS {
        let golden = golden(model);
        // The original context of this one: the factors of its frequencies are those within it.
        let ctx = (*model == "phi3-short").then_some(64);
        let options = EngineOptions { kv_dtype, ctx, logits: true, ..EngineOptions::default() };
        let mut engine = engine(&gpu, model, options);
        assert_eq!(engine.unused_tensors(), &[] as &[String], "{model}");
        let all = logits(&mut engine, &golden.token_ids, Logits::All);
        let last = logits(&mut engine, &golden.token_ids, Logits::Last);
        assert_eq!(all.len(), golden.token_ids.len(), "{model}");
        for row in [&all[all.len() - 1], &last[0]] {
            let found = error(row, &golden.last_logits);
            assert!(found <= bound, "{model}: error {found} of the largest logit, at most {bound}");
            let mut moved = golden.last_logits.clone();
            moved[7] += 2.0 * bound * moved.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            assert!(error(row, &moved) > bound, "{model}: the comparison cannot fail");
        }
        if exact {
            assert_eq!(all.iter().map(|r| argmax(r)).collect::<Vec<_>>(), golden.argmax, "{model}");
            let found = greedy(&mut engine, &golden.token_ids, golden.greedy.len());
            assert_eq!(found, golden.greedy, "{model}");
        }
    }
}

/// Other values of a tensor, from its name, its shape and its values.
type Change<'a> = &'a dyn Fn(&str, &[usize], Vec<f32>) -> Vec<f32>;

/// An engine for a folder's model with all values in the type `to`, changed by `change`. Blocks of MXFP4 stay as they
/// are.
fn converted(gpu: &Gpu, model: &str, to: Dtype, quantize: Option<Dtype>, change: Change<'_>) -> Engine {
    let bytes = std::fs::read(folder(model).join("model.safetensors")).expect("weights");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let converted = |(name, tensor): (&str, safetensors::tensor::TensorView<'_>)| {
        let values = match tensor.dtype() {
            safetensors::Dtype::U8 => {
                return (name.to_string(), tensor.dtype(), tensor.shape().to_vec(), tensor.data().to_vec());
            }
            dtype => common::tensor_values(dtype, tensor.data()),
        };
        let values = change(name, tensor.shape(), values);
        let (dtype, data) = common::tensor_bytes(to, &values);
        (name.to_string(), dtype, tensor.shape().to_vec(), data)
    };
    let all: Vec<_> = tensors.iter().map(converted).collect();
    let views = all.iter().map(|(name, dtype, shape, data)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), data);
        (name, view.expect("as many bytes as the shape has"))
    });
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(
        dir.path().join("model.safetensors"),
        safetensors::serialize(views, None).expect("serialised"),
    )
    .expect("written");
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(folder(model).join(name), dir.path().join(name)).expect(name);
    }
    let ctx = (model == "phi3-short").then_some(64);
    let options =
        EngineOptions { kv_dtype: Dtype::F32, ctx, quantize, logits: true, ..EngineOptions::default() };
    let files = ModelFiles::open(dir.path()).expect("checkpoint");
    let is_stored = |dtype: &str| ["U8", to.name()].contains(&dtype);
    assert!(files.weights.entries().iter().all(|entry| is_stored(&entry.dtype)), "{model} in {to}");
    Engine::load(gpu, files, options, &mut |_| {}).expect("engine")
}

/// What quantising to Q8_0 at load makes of a tensor. Blocks lie along the inputs of a product; vectors, routers and
/// tables of positions stay.
fn quantised(model: &str, name: &str, shape: &[usize], values: Vec<f32>) -> Vec<f32> {
    let stays = ["bias", "router.weight", ".gate.weight", "wpe.weight"];
    if shape.len() == 1 || stays.iter().any(|part| name.ends_with(part)) {
        return values;
    }
    let n_cols = shape[shape.len() - 1];
    let is_turned = match model {
        "gpt2" => name.contains(".c_"),
        _ => shape.len() == 3,
    };
    if !is_turned {
        return values.chunks(n_cols).flat_map(|row| quant::round("Q8_0", row)).collect();
    }
    let mut values = values;
    let n_in = shape[shape.len() - 2];
    for matrix in values.chunks_mut(n_in * n_cols) {
        for i in 0..n_cols {
            let row: Vec<f32> = (0..n_in).map(|j| matrix[j * n_cols + i]).collect();
            quant::round("Q8_0", &row).into_iter().enumerate().for_each(|(j, x)| matrix[j * n_cols + i] = x);
        }
    }
    values
}

/// Every decoder with weights in each type: it computes what the same values in F32 give, as prompt and as decode rows. The
/// stored values in F32 give the reference's logits.
///
/// Both sides multiply the same values in F32; only the order of their sums differs. Errors of 2^-11 in all weights change
/// logits by up to 5e-3 of the largest (`STIFFEST` in `golden_families.py`), so those of sums, some 2^-24·√200, by some 3e-6. The
/// bound is 30 times that. Q8_0 has a tenfold one: a device that divides less exactly may round a value to the next step.
#[test]
fn every_type_of_weights_has_the_logits_of_its_values() {
    let Some(gpu) = common::exact() else { return };
    for model in MODELS {
        let golden = golden(model);
        let ids = &golden.token_ids;
        // As prompt rows, and as decode rows.
        let rows = |engine: &mut Engine| {
            let generated =
                Request { generated: iter::once(0..ids.len()).collect(), ..Request::new(ids.clone()) };
            [Request::new(ids.clone()), generated].map(|request| {
                let request = Request { logits: Some(Logits::Last), ..request };
                logits_of(engine, request).pop().expect("a row")
            })
        };
        let same: Change<'_> = &|_, _, values| values;
        let plain = rows(&mut converted(&gpu, model, Dtype::F32, None, same));
        for row in &plain {
            let found = error(row, &golden.last_logits);
            assert!(found <= 1e-3, "{model} in F32: error {found} of the largest logit");
        }
        for dtype in [Dtype::F16, Dtype::BF16, Dtype::Q8_0] {
            let quantises = dtype == Dtype::Q8_0;
            let (to, quantize) = if quantises { (Dtype::F32, Some(dtype)) } else { (dtype, None) };
            let rounded: Change<'_> = &|name, shape, values| match quantises {
                true => quantised(model, name, shape, values),
                false => {
                    let (stored, data) = common::tensor_bytes(dtype, &values);
                    common::tensor_values(stored, &data)
                }
            };
            let bound = if quantises { 1e-3 } else { 1e-4 };
            let narrow = rows(&mut converted(&gpu, model, to, quantize, same));
            let wide = rows(&mut converted(&gpu, model, Dtype::F32, None, rounded));
            for (kind, (narrow, wide)) in ["prompt", "decode"].into_iter().zip(narrow.iter().zip(&wide)) {
                let found = error(narrow, wide);
                assert!(
                    found <= bound,
                    "{model} in {dtype}, {kind}: error {found} of the largest logit, at most {bound}"
                );
            }
            if quantises {
                let effect = error(&narrow[0], &plain[0]);
                assert!(effect > bound, "{model}: the comparison cannot fail: {effect}");
            }
        }
    }
}

/// A checkpoint with a vision tower, under the names of either version of transformers: its text model is the same, and
/// the rest is not missed. Gemma's config has the earlier keys of the rotations.
#[test]
fn the_text_model_of_a_model_that_sees() {
    let Some(gpu) = common::exact() else { return };
    for (model, model_type) in [("gemma3", "gemma3"), ("ministral3", "mistral3")] {
        let golden = golden(model);
        let read = |name: &str| std::fs::read(folder(model).join(name)).expect(name);
        let mut text: serde_json::Value = serde_json::from_slice(&read("config.json")).expect("JSON");
        let keys = text.as_object_mut().expect("an object");
        if model == "gemma3" {
            for key in ["rope_parameters", "layer_types", "_sliding_window_pattern"] {
                keys.remove(key).expect(key);
            }
            keys.insert("sliding_window_pattern".into(), 6.into());
            keys.insert("rope_local_base_freq".into(), 10_000.into());
        }
        let bytes = read("model.safetensors");
        let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        for [language, head, vision] in [
            ["language_model.model.", "language_model.", "vision_tower."],
            ["model.language_model.", "", "model.vision_tower."],
        ] {
            let dir = tempfile::tempdir().expect("a folder");
            let config =
                serde_json::json!({ "model_type": model_type, "text_config": &text, "vision_config": {} });
            std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
            let renamed = |name: &str| match name.strip_prefix("model.") {
                Some(rest) => format!("{language}{rest}"),
                None => format!("{head}{name}"),
            };
            let mut all: Vec<(String, _)> =
                tensors.iter().map(|(name, tensor)| (renamed(name), tensor)).collect();
            all.push((format!("{vision}patch_embedding.weight"), all[0].1.clone()));
            let file = safetensors::serialize(all, None).expect("serialised");
            std::fs::write(dir.path().join("model.safetensors"), file).expect("written");
            let files = ModelFiles::open(dir.path()).expect("checkpoint");
            let options = EngineOptions { kv_dtype: Dtype::F32, logits: true, ..EngineOptions::default() };
            let mut engine = Engine::load(&gpu, files, options, &mut |_| {}).expect("engine");
            assert_eq!(engine.unused_tensors(), &[] as &[String]);
            let row = logits(&mut engine, &golden.token_ids, Logits::Last).remove(0);
            let found = error(&row, &golden.last_logits);
            assert!(found <= 1e-3, "{model} {language}: error {found} of the largest logit");
        }
    }
}

/// The head of a model that sees belongs to the whole model, and is tied as the whole model's config says: here the checkpoint
/// has none, and the text model's config says that it is not tied.
#[test]
fn the_head_of_a_model_that_sees_is_tied_by_its_own_config() {
    let Some(gpu) = common::exact() else { return };
    let read = |name: &str| std::fs::read(folder("ministral3").join(name)).expect(name);
    let text: serde_json::Value = serde_json::from_slice(&read("config.json")).expect("JSON");
    assert_eq!(text["tie_word_embeddings"], false);
    let bytes = read("model.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let headless = tensors.iter().filter(|(name, _)| *name != "lm_head.weight");
    let file = safetensors::serialize(headless, None).expect("serialised");
    let load = |config: serde_json::Value| {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("config.json"), config.to_string()).expect("written");
        std::fs::write(dir.path().join("model.safetensors"), &file).expect("written");
        let files = ModelFiles::open(dir.path()).expect("checkpoint");
        let options = EngineOptions { kv_dtype: Dtype::F32, logits: true, ..EngineOptions::default() };
        let mut engine = Engine::load(&gpu, files, options, &mut |_| {})?;
        Ok::<_, wginfer::Error>(logits(&mut engine, &[5, 301, 17], Logits::Last).remove(0))
    };
    let mut tied = text.clone();
    tied["tie_word_embeddings"] = true.into();
    let expected = load(tied).expect("a model with a tied head");
    let sees = serde_json::json!({ "model_type": "mistral3", "text_config": text, "vision_config": {} });
    assert_eq!(load(sees.clone()).expect("tied by default"), expected);
    let mut sees = sees;
    sees["tie_word_embeddings"] = false.into();
    let error = load(sees).expect_err("no head").to_string();
    assert!(error.contains("tensor `lm_head.weight` is missing"), "{error}");
}

#[test]
fn f32_cache_with_all_capabilities() {
    check(&disabled(""), Dtype::F32);
}

#[test]
fn f32_cache_without_capabilities() {
    check(&disabled("f16,subgroups,timestamps,pipeline-cache,cooperative-matrices"), Dtype::F32);
}

/// The smallest device: fewer storage buffers, so projection, rotation and cache are kernels of their own.
#[test]
fn f32_cache_with_the_smallest_limits() {
    check(&disabled("f16,subgroups,cooperative-matrices,limits"), Dtype::F32);
}

/// On software devices: the variants that a graphics card would run, with subgroups and without.
#[test]
fn f32_cache_with_the_variants_of_hardware() {
    check(&disabled("software"), Dtype::F32);
    check(&disabled("software,subgroups"), Dtype::F32);
}

/// F32 inputs of products, although the device has faster units for F16: the tolerance is the narrow one.
#[test]
fn f32_cache_and_f32_products() {
    if common::coop().is_some() {
        let options = GpuOptions { f32_products: true, ..disabled("software") };
        check(&options, Dtype::F32);
    }
}

#[test]
fn f16_cache() {
    check(&disabled(""), Dtype::F16);
}

/// A quantised cache, if heads are wide enough for its blocks; otherwise an error.
#[test]
fn q8_0_cache() {
    let Some(gpu) = common::exact() else { return };
    let golden = golden("qwen3");
    let options = EngineOptions { kv_dtype: Dtype::Q8_0, logits: true, ..EngineOptions::default() };
    let mut engine = engine(&gpu, "qwen3", options.clone());
    let row = logits(&mut engine, &golden.token_ids, Logits::Last).remove(0);
    let found = error(&row, &golden.last_logits);
    assert!(found > 1e-4 && found <= 2e-2, "error {found} of the largest logit");
    let checkpoint = ModelFiles::open(&folder("llama")).expect("checkpoint");
    let refused = Engine::load(&gpu, checkpoint, options, &mut |_| {}).expect_err("heads of 16");
    assert!(refused.to_string().contains("`kv_dtype` is Q8_0"), "{refused}");
}

/// The cost of quantising: perplexity of typical texts, compared with that of the stored weights.
#[test]
fn quantising_costs_little() {
    let Some(gpu) = common::exact() else { return };
    let demo = ModelFiles::demo().expect("checkpoint");
    let tokenizer = demo.tokenizer.expect("tokenizer");
    #[derive(serde::Deserialize)]
    struct Demo {
        cases: Vec<Case>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
    }
    let text =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/golden.json")).expect("read");
    let demo: Demo = serde_json::from_slice(&text).expect("golden.json");
    let texts = demo.cases.iter().map(|case| tokenizer.encode(&case.text, true).expect("encode")).collect();
    perplexities(&gpu, "the demonstration model", &|| ModelFiles::demo().expect("checkpoint"), texts);

    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260k");
    let Ok(text) = std::fs::read(dir.join("golden.json")) else {
        common::say(&format!("skipped, `{}` is not here: perplexity of stories260k", dir.display()));
        return;
    };
    #[derive(serde::Deserialize)]
    struct Story {
        token_ids: Vec<u32>,
        greedy: Vec<u32>,
    }
    let stories: Vec<Story> = serde_json::from_slice(&text).expect("golden.json");
    let texts = stories.into_iter().map(|s| [s.token_ids, s.greedy].concat()).collect();
    perplexities(&gpu, "stories260k", &|| ModelFiles::open(&dir).expect("checkpoint"), texts);
}

/// Prints the perplexity of `texts` for each type of weights and of the cache, and compares it with the unquantised one.
fn perplexities(gpu: &Gpu, name: &str, open: &dyn Fn() -> ModelFiles, texts: Vec<Vec<u32>>) {
    let perplexity = |quantize: Option<Dtype>, kv_dtype: Dtype| {
        let options = EngineOptions { quantize, kv_dtype, logits: true, ..EngineOptions::default() };
        let mut engine = Engine::load(gpu, open(), options, &mut |_| {}).expect("engine");
        let (mut sum, mut n) = (0.0, 0);
        for ids in &texts {
            let rows = logits(&mut engine, ids, Logits::All);
            for (row, next) in rows.iter().zip(&ids[1..]) {
                let top = row.iter().fold(f32::MIN, |m, v| m.max(*v));
                let total: f64 = row.iter().map(|v| f64::from(v - top).exp()).sum();
                sum += total.ln() - f64::from(row[*next as usize] - top);
                n += 1;
            }
        }
        (sum / f64::from(n)).exp()
    };
    let plain = perplexity(None, Dtype::F16);
    common::say(&format!("{name}: perplexity {plain:.4} as stored"));
    let has_wide_heads = open().architecture.shape().attention.iter().all(|a| a.head_dim % 32 == 0);
    let cases = [
        (Some(Dtype::Q8_0), Dtype::F16, 1.005),
        (Some(Dtype::Q4_0), Dtype::F16, 1.25),
        (Some(Dtype::Q4_K), Dtype::F16, 1.15),
        (None, Dtype::Q8_0, 1.005),
    ];
    for (quantize, kv_dtype, most) in
        cases.into_iter().filter(|(_, kv, _)| *kv != Dtype::Q8_0 || has_wide_heads)
    {
        let found = perplexity(quantize, kv_dtype);
        let what = quantize.map_or(format!("cache {kv_dtype}"), |dtype| dtype.to_string());
        common::say(&format!("{name}: perplexity {found:.4} in {what}, {:.3} times", found / plain));
        assert!(found <= most * plain && found != plain, "{name} {what}: {found}, as stored {plain}");
    }
}

/// The trained story model, if it is present. It is not part of the repository.
#[test]
fn stories260k_writes_what_the_reference_writes() {
    #[derive(serde::Deserialize)]
    struct Story {
        prompt: String,
        token_ids: Vec<u32>,
        last_logits: Vec<f32>,
        greedy: Vec<u32>,
        text: String,
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260k");
    let Ok(text) = std::fs::read(dir.join("golden.json")) else {
        common::say(&format!("skipped, `{}` is not here: stories260k", dir.display()));
        return;
    };
    let Some(gpu) = common::exact() else { return };
    let stories: Vec<Story> = serde_json::from_slice(&text).expect("golden.json");
    let options = EngineOptions { kv_dtype: Dtype::F32, logits: true, ..EngineOptions::default() };
    let checkpoint = ModelFiles::open(&dir).expect("checkpoint");
    let mut engine = Engine::load(&gpu, checkpoint, options, &mut |_| {}).expect("engine");
    for story in stories {
        let tokenizer = engine.tokenizer().expect("tokenizer").clone();
        assert_eq!(tokenizer.encode(&story.prompt, true).expect("encode"), story.token_ids);
        let row = logits(&mut engine, &story.token_ids, Logits::Last).remove(0);
        assert!(error(&row, &story.last_logits) <= 1e-3, "{}", story.prompt);
        let found = greedy(&mut engine, &story.token_ids, story.greedy.len());
        assert_eq!(found, story.greedy, "{}", story.prompt);
        let mut text = story.prompt.clone();
        let request = Request { sampling: Sampling::greedy(), ..Request::new(story.token_ids.clone()) };
        engine.submit(Request { max_tokens: Some(found.len()), ..request }).expect("submit");
        let add = |event| match event {
            Event::Token { text: piece, .. } | Event::Done { text: piece, .. } => text.push_str(&piece),
            _ => {}
        };
        engine.run(add).expect("run");
        assert_eq!(text, story.text, "what is streamed goes on from the prompt");
    }
}

/// The model in the binary: its files match, and its text is the reference's.
#[test]
fn the_demonstration_model_is_what_its_golden_file_says() {
    #[derive(serde::Deserialize)]
    struct Demo {
        prompt: String,
        token_ids: Vec<u32>,
        last_logits: Vec<f32>,
        greedy: Vec<u32>,
        greedy_text: String,
        chat_messages: Vec<Message>,
        chat_text: String,
        chat_token_ids: Vec<u32>,
        cases: Vec<Case>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        question: String,
        expected: String,
        answer_greedy: String,
    }
    let Some(gpu) = common::exact() else { return };
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    let text = std::fs::read(dir.join("golden.json")).expect("golden.json");
    let demo: Demo = serde_json::from_slice(&text).expect("golden.json");
    let options = EngineOptions { kv_dtype: Dtype::F32, logits: true, ..EngineOptions::default() };
    let checkpoint = ModelFiles::demo().expect("checkpoint");
    assert!(checkpoint.weights.n_params() <= 2_000_000);
    let mut engine = Engine::load(&gpu, checkpoint, options, &mut |_| {}).expect("engine");
    let tokenizer = engine.tokenizer().expect("tokenizer").clone();
    assert_eq!(tokenizer.encode(&demo.prompt, true).expect("encode"), demo.token_ids);
    let row = logits(&mut engine, &demo.token_ids, Logits::Last).remove(0);
    assert!(error(&row, &demo.last_logits) <= 1e-3);
    let found = greedy(&mut engine, &demo.token_ids, demo.greedy.len());
    assert_eq!(found, demo.greedy);
    assert_eq!(tokenizer.decode(&found, true).expect("decode"), demo.greedy_text);

    let template = tokenizer.chat_template().expect("chat template");
    let rendered = template.render(&demo.chat_messages, true, &Default::default()).expect("render");
    assert_eq!(rendered, demo.chat_text);
    assert_eq!(tokenizer.encode(&rendered, false).expect("encode"), demo.chat_token_ids);

    // Questions about stories that are not in its training data.
    let mut n_right = 0;
    for case in &demo.cases {
        let mut chat = Chat::new(&tokenizer, Sampling::greedy()).expect("chat");
        let text = format!("Text:\n{}\n\nQuestion: {}", case.text, case.question);
        let reply = chat.ask(&mut engine, &text, |_| ControlFlow::Continue(())).expect("an answer");
        assert_eq!(reply.text, case.answer_greedy, "{text}");
        n_right += usize::from(reply.text == case.expected);
    }
    assert!(10 * n_right >= 9 * demo.cases.len(), "{n_right} of {} are right", demo.cases.len());
}
