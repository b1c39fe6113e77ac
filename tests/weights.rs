//! Checkpoints of every form: types, shards, both forms of config, and broken files.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype as Stored, TensorView};
use wginfer::checkpoint::ModelFiles;
use wginfer::dtype::Dtype;
use wginfer::engine::{Engine, EngineOptions, Event, Logits, Request};
use wginfer::gpu::{Gpu, GpuOptions};
use wginfer::models::Loader;
use wginfer::weights::Weights;

fn golden(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(model)
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A tensor of a checkpoint to write: name, shape with values, and the type on disk.
type Part<'a> = (&'a String, &'a (Vec<usize>, Vec<f32>), Stored);

/// The tensors of an F32 checkpoint.
fn read(model: &str) -> Tensors {
    let bytes = std::fs::read(golden(model).join("model.safetensors")).expect("read");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let floats = |data: &[u8]| data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    file.iter().map(|(name, t)| (name.to_string(), (t.shape().to_vec(), floats(t.data())))).collect()
}

fn encode(stored: Stored, values: &[f32]) -> Vec<u8> {
    match stored {
        Stored::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Stored::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn round(stored: Stored, value: f32) -> f32 {
    match stored {
        Stored::F16 => f16::from_f32(value).to_f32(),
        Stored::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn write(path: &Path, tensors: &[Part<'_>]) {
    let data: Vec<_> = tensors.iter().map(|(_, (_, values), stored)| encode(*stored, values)).collect();
    let views = tensors.iter().zip(&data).map(|((name, (shape, _), stored), bytes)| {
        (name.to_string(), TensorView::new(*stored, shape.clone(), bytes).expect("view"))
    });
    std::fs::write(path, safetensors::serialize(views, None).expect("serialize")).expect("write");
}

/// A folder with a golden model's config and a checkpoint of `tensors`.
fn folder(model: &str, tensors: &[Part<'_>]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::copy(golden(model).join("config.json"), dir.path().join("config.json")).expect("copy");
    write(&dir.path().join("model.safetensors"), tensors);
    dir
}

fn logits(gpu: &Gpu, dir: &Path) -> Vec<Vec<f32>> {
    logits_in(gpu, dir, None)
}

fn logits_in(gpu: &Gpu, dir: &Path, quantize: Option<Dtype>) -> Vec<Vec<f32>> {
    let options = EngineOptions {
        quantize,
        kv_dtype: Dtype::F32,
        logits: true,
        max_seqs: 2,
        max_rows: 32,
        ctx: Some(64),
        ..Default::default()
    };
    let checkpoint = ModelFiles::open(dir).expect("checkpoint");
    let mut engine = Engine::load(gpu, checkpoint, options, &mut |_| {}).expect("engine");
    let ids = vec![5, 301, 17, 99, 4, 230, 11];
    engine.submit(Request { logits: Some(Logits::All), ..Request::new(ids) }).expect("submit");
    let mut rows = Vec::new();
    engine
        .run(|event| {
            if let Event::Logits { values, .. } = event {
                rows.push(values);
            }
        })
        .expect("run");
    assert_eq!(rows.len(), 7);
    rows
}

fn load_error(gpu: &Gpu, dir: &Path) -> String {
    let checkpoint = match ModelFiles::open(dir) {
        Ok(checkpoint) => checkpoint,
        Err(error) => return error.to_string(),
    };
    match Engine::load(gpu, checkpoint, EngineOptions::default(), &mut |_| {}) {
        Ok(_) => panic!("it loads"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn each_type_computes_what_its_values_in_f32_do() {
    let Some(gpu) = common::gpu() else { return };
    let tensors = read("llama");
    let mut seen = Vec::new();
    for stored in [Stored::F16, Stored::BF16] {
        let rounded: Tensors = tensors
            .iter()
            .map(|(n, (s, v))| (n.clone(), (s.clone(), v.iter().map(|v| round(stored, *v)).collect())))
            .collect();
        let all = |stored| rounded.iter().map(move |(n, t)| (n, t, stored)).collect::<Vec<_>>();
        let narrow = logits(&gpu, folder("llama", &all(stored)).path());
        let wide = logits(&gpu, folder("llama", &all(Stored::F32)).path());
        assert!(narrow == wide, "{stored:?}");
        // Mixed in one stacked matrix: keys wide, the others narrow.
        let mixed: Vec<_> = rounded
            .iter()
            .map(|(n, t)| (n, t, if n.contains("k_proj") { Stored::F32 } else { stored }))
            .collect();
        assert!(logits(&gpu, folder("llama", &mixed).path()) == wide, "{stored:?} mixed with F32");
        seen.push(wide);
    }
    assert!(seen[0] != seen[1], "the types round differently");
}

/// A quantised model computes what its weights, dequantised, do in F32: stacked matrices, transposed ones and tables,
/// which are kept in more bits.
#[test]
fn quantised_weights_are_their_values() {
    let Some(gpu) = common::exact() else { return };
    for model in ["llama", "gpt2"] {
        // GPT-2's checkpoint is not in F32.
        let bytes = std::fs::read(golden(model).join("model.safetensors")).expect("read");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let tensors: Tensors = file
            .iter()
            .map(|(name, t)| (name.to_string(), (t.shape().to_vec(), decode(t.dtype(), t.data()))))
            .collect();
        let original = logits(&gpu, &golden(model));
        let largest = original.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
        let far = |a: &[Vec<f32>], b: &[Vec<f32>]| {
            let pairs = a.iter().flatten().zip(b.iter().flatten());
            pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs())) / largest
        };
        for dtype in Dtype::QUANTISED {
            let rounded: Tensors = tensors
                .iter()
                .map(|(name, (shape, values))| {
                    (name.clone(), (shape.clone(), dequantised(name, shape, values, dtype)))
                })
                .collect();
            let parts: Vec<_> = rounded.iter().map(|(n, t)| (n, t, Stored::F32)).collect();
            let wide = logits(&gpu, folder(model, &parts).path());
            let found = logits_in(&gpu, &golden(model), Some(dtype));
            let (error, loss) = (far(&found, &wide), far(&wide, &original));
            // A device may round a few weights to the other side, or choose another scale if the search finds
            // several that are almost equally good.
            let most = if dtype == Dtype::Q4_K { 1e-2 } else { 2e-3 };
            assert!(error <= most, "{model} {dtype}: {error} of the largest logit");
            assert!(
                loss > 3.0 * error.max(1e-3),
                "{model} {dtype}: quantising lost {loss}, the comparison {error}"
            );
        }
    }
}

fn decode(stored: Stored, data: &[u8]) -> Vec<f32> {
    match stored {
        Stored::F16 => data.chunks(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        Stored::BF16 => data.chunks(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        _ => data.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// A loaded tensor, decoded to F32.
fn dequantised(name: &str, shape: &[usize], values: &[f32], dtype: Dtype) -> Vec<f32> {
    let [n_rows, n_cols] = *shape else { return values.to_vec() };
    if name.contains("wpe") {
        return values.to_vec();
    }
    let is_table = ["embed_tokens", "lm_head", "wte"].iter().any(|word| name.contains(word));
    let dtype = if is_table { Dtype::Q8_0 } else { dtype };
    // GPT-2's matrices are stored with their columns first.
    let is_transposed = name.contains(".c_");
    let (n_rows, n_cols) = if is_transposed { (n_cols, n_rows) } else { (n_rows, n_cols) };
    let at = |r: usize, c: usize| if is_transposed { c * n_rows + r } else { r * n_cols + c };
    let mut rounded = vec![0.0; values.len()];
    for r in 0..n_rows {
        let mut row: Vec<f32> = (0..n_cols).map(|c| values[at(r, c)]).collect();
        row.resize(n_cols.next_multiple_of(32), 0.0);
        let row = common::reference::quant::round(dtype.name(), &row);
        (0..n_cols).for_each(|c| rounded[at(r, c)] = row[c]);
    }
    rounded
}

#[test]
fn shards_are_one_checkpoint() {
    let Some(gpu) = common::gpu() else { return };
    let tensors = read("llama");
    let all: Vec<_> = tensors.iter().map(|(n, t)| (n, t, Stored::F32)).collect();
    let whole = logits(&gpu, folder("llama", &all).path());
    let dir = folder("llama", &all);
    std::fs::remove_file(dir.path().join("model.safetensors")).expect("remove");
    let (a, b) = all.split_at(all.len() / 2);
    let mut map = serde_json::Map::new();
    for (part, file) in [(a, "model-00001-of-00002.safetensors"), (b, "model-00002-of-00002.safetensors")] {
        write(&dir.path().join(file), part);
        map.extend(part.iter().map(|(name, ..)| (name.to_string(), file.into())));
    }
    let index = dir.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).expect("write");
    assert!(logits(&gpu, dir.path()) == whole);

    std::fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).expect("remove");
    assert!(load_error(&gpu, dir.path()).contains("model-00002-of-00002.safetensors` cannot be read"));
    std::fs::write(&index, r#"{"weight_map": {"x": "../../etc/passwd"}}"#).expect("write");
    assert!(load_error(&gpu, dir.path()).contains("is not the name of a file in the folder"));
    std::fs::write(&index, "{}").expect("write");
    assert!(load_error(&gpu, dir.path()).contains("no `weight_map`"));
    std::fs::write(&index, r#"{"weight_map": {"x": 3}}"#).expect("write");
    assert!(load_error(&gpu, dir.path()).contains("`x` has 3, expected the name of a file"));
}

/// A tensor that two shards have is that of the shard that the index names.
#[test]
fn an_index_decides_between_shards() {
    let Some(gpu) = common::gpu() else { return };
    let tensors = read("llama");
    let all: Vec<_> = tensors.iter().map(|(n, t)| (n, t, Stored::F32)).collect();
    let zeros: Tensors =
        tensors.iter().map(|(n, (shape, v))| (n.clone(), (shape.clone(), vec![0.0; v.len()]))).collect();
    let other: Vec<_> = zeros.iter().map(|(n, t)| (n, t, Stored::F32)).collect();
    let dir = folder("llama", &all);
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    std::fs::remove_file(dir.path().join("model.safetensors")).expect("remove");
    let n = all.len() / 2;
    let index = |map: serde_json::Value| {
        let index = serde_json::json!({ "weight_map": map }).to_string();
        std::fs::write(dir.path().join("model.safetensors.index.json"), index).expect("write");
    };
    // Each shard has its own half and zeros for some of the other.
    let shard = |own: &[Part<'_>], others: &[Part<'_>], name: &str| {
        write(&dir.path().join(name), &[own, others].concat());
    };
    shard(&all[..n], &other[n..], names[0]);
    shard(&all[n..], &other[..1], names[1]);
    let of = |i: usize| names[usize::from(i >= n)];
    let map: serde_json::Map<_, _> =
        all.iter().enumerate().map(|(i, (name, ..))| (name.to_string(), of(i).into())).collect();
    index(map.clone().into());
    assert!(logits(&gpu, dir.path()) == logits(&gpu, folder("llama", &all).path()));

    // A tensor that the index does not list, in both.
    let mut without = map.clone();
    without.remove(all[0].0);
    index(without.into());
    let error = load_error(&gpu, dir.path());
    assert!(error.contains(&format!("tensor `{}` is there twice", all[0].0)), "{error}");
    // One that is not in the shard that the index names: both are named.
    shard(&all[n + 1..], &[], names[1]);
    index(map.into());
    let error = load_error(&gpu, dir.path());
    assert!(error.contains(&format!("{}` is not a valid checkpoint: it has no tensor", names[1])), "{error}");
    assert!(error.contains(&format!("`{}`, for which", all[n].0)), "{error}");
    assert!(error.contains("model.safetensors.index.json` names it"), "{error}");
}

/// Every family's checkpoint may be saved with the prefix of its names, or from the bare model.
#[test]
fn names_have_the_prefix_of_the_family_or_none() {
    let Some(gpu) = common::gpu() else { return };
    for (model, prefix) in [
        ("llama", "model."),
        ("mistral-window", "model."),
        ("qwen2", "model."),
        ("qwen3", "model."),
        ("gpt2", "transformer."),
        ("bert-classifier", "bert."),
        ("roberta-classifier", "roberta."),
        ("distilbert-classifier", "distilbert."),
        ("modernbert-classifier", "model."),
        ("whisper-words", "model."),
    ] {
        let mut of = golden(model);
        if !of.exists() {
            of = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(model);
        }
        let bytes = std::fs::read(of.join("model.safetensors")).expect("read");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        assert!(file.names().iter().any(|name| name.starts_with(prefix)), "{model}: {:?}", file.names());
        let bare =
            file.iter().map(|(name, view)| (name.strip_prefix(prefix).unwrap_or(name).to_string(), view));
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::copy(of.join("config.json"), dir.path().join("config.json")).expect("copy");
        let bytes = safetensors::serialize(bare, None).expect("serialize");
        std::fs::write(dir.path().join("model.safetensors"), bytes).expect("write");
        let files = ModelFiles::open(dir.path()).expect("a checkpoint");
        let mut loader = Loader::new(&gpu, files.weights.clone(), None);
        let loaded = files.architecture.load(&mut loader, 64);
        loaded.map(|_| ()).unwrap_or_else(|e| panic!("{model}: {e}"));
        assert_eq!(loader.unused(), &[] as &[&str], "{model}");
        // The numbers are held against the weights under both names.
        let config = std::fs::read_to_string(of.join("config.json")).expect("read");
        let vocab = config.replace("\"vocab_size\": ", "\"vocab_size\": 1");
        std::fs::write(dir.path().join("config.json"), vocab).expect("write");
        assert!(load_error(&gpu, dir.path()).contains("`vocab_size` is `1"), "{model}");
    }
}

/// What is stored counts more than `tie_word_embeddings`, as in transformers 5.
#[test]
fn stored_heads_count_more_than_the_config() {
    let Some(gpu) = common::gpu() else { return };
    let tensors = read("llama");
    let (embedding, head) = ("model.embed_tokens.weight", "lm_head.weight");
    let tied = |names: &[&str], with: &str| {
        let values = tensors[with].clone();
        let mut stored = tensors.clone();
        stored.remove(embedding);
        stored.remove(head);
        for name in names {
            let of = if names.len() == 2 && *name == embedding { &tensors[embedding] } else { &values };
            stored.insert(name.to_string(), of.clone());
        }
        let all: Vec<_> = stored.iter().map(|(n, t)| (n, t, Stored::F32)).collect();
        let dir = folder("llama", &all);
        let path = dir.path().join("config.json");
        let text = std::fs::read_to_string(&path).expect("read");
        let text = text.replace("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
        std::fs::write(&path, text).expect("write");
        (logits(&gpu, dir.path()), dir)
    };
    let as_stored = logits(&gpu, &golden("llama"));
    let (both, _) = tied(&[embedding, head], head);
    assert!(both == as_stored, "another head is used");
    let (shared, one) = tied(&[embedding], embedding);
    assert!(shared != as_stored, "the embedding is the head");
    let (equal, two) = tied(&[embedding, head], embedding);
    assert!(equal == shared, "an equal head is the embedding");
    let (only_head, _) = tied(&[head], embedding);
    assert!(only_head == shared, "the head is the embedding");
    // One copy in memory.
    let [one, two] = [one, two].map(|dir| {
        let checkpoint = ModelFiles::open(dir.path()).expect("checkpoint");
        let mut loader = Loader::new(&gpu, checkpoint.weights.clone(), None);
        checkpoint.architecture.load(&mut loader, 64).map(|_| ()).expect("it loads");
        assert_eq!(loader.unused(), &[] as &[&str]);
        loader.device_bytes()
    });
    assert_eq!(one, two);
}

/// Within the trained length dynamic scaling is none. Beyond it, its frequencies depend on the length of each text.
#[test]
fn dynamic_rotation_is_plain_within_the_trained_length() {
    let Some(gpu) = common::gpu() else { return };
    let tensors = read("llama");
    let all: Vec<_> = tensors.iter().map(|(n, t)| (n, t, Stored::F32)).collect();
    let dir = folder("llama", &all);
    let path = dir.path().join("config.json");
    let text = std::fs::read_to_string(&path).expect("read");
    let dynamic = text.replace("\"rope_type\": \"default\"", "\"rope_type\": \"dynamic\", \"factor\": 4.0");
    assert_ne!(text, dynamic);
    std::fs::write(&path, dynamic).expect("write");
    assert!(logits(&gpu, dir.path()) == logits(&gpu, &golden("llama")));
    let options = EngineOptions { ctx: Some(257), ..Default::default() };
    let checkpoint = ModelFiles::open(dir.path()).expect("checkpoint");
    let error = Engine::load(&gpu, checkpoint, options, &mut |_| {}).expect_err("too long").to_string();
    assert!(error.contains("`rope_type` is `dynamic`, expected another one for a context of 257"), "{error}");
}

#[test]
fn large_tables_are_bound_in_ranges_of_rows() {
    let Some(whole) = common::gpu() else { return };
    let dir = golden("llama");
    // Bindings of 64 KiB: the embedding and the head, 96 KiB each, come in two ranges of rows.
    let options = GpuOptions { max_binding_bytes: Some(64 << 10), ..Default::default() };
    let Some(small) = common::open(&options) else { return };
    assert!(logits(&small, &dir) == logits(&whole, &dir));
    // A tensor that cannot be split is an error, not a panic.
    let options = EngineOptions { max_rows: 4000, ..Default::default() };
    let checkpoint = ModelFiles::open(&dir).expect("checkpoint");
    let error = Engine::load(&small, checkpoint, options, &mut |_| {}).expect_err("too large").to_string();
    assert!(error.contains("in one piece, this device allows 65536"), "{error}");
}

#[test]
fn both_forms_of_config_say_the_same() {
    let Some(gpu) = common::gpu() else { return };
    let tensors = read("llama3-rope");
    let all: Vec<_> = tensors.iter().map(|(n, t)| (n, t, Stored::F32)).collect();
    let dir = folder("llama3-rope", &all);
    let expected = logits(&gpu, dir.path());
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("json");
    // As transformers 4 wrote it.
    let mut rope = config["rope_parameters"].take();
    config.as_object_mut().expect("object").remove("rope_parameters");
    config["rope_theta"] = rope.as_object_mut().expect("object").remove("rope_theta").expect("theta");
    config["torch_dtype"] = "float32".into();
    rope["type"] = rope["rope_type"].clone();
    config["rope_scaling"] = rope;
    std::fs::write(&path, config.to_string()).expect("write");
    assert!(logits(&gpu, dir.path()) == expected);
    // And the scaling matters.
    config["rope_scaling"] = serde_json::Value::Null;
    std::fs::write(&path, config.to_string()).expect("write");
    assert!(logits(&gpu, dir.path()) != expected);
}

#[test]
fn configs_that_do_not_run_are_refused_by_name() {
    let text = std::fs::read_to_string(golden("llama").join("config.json")).expect("read");
    let config: serde_json::Value = serde_json::from_str(&text).expect("json");
    let refused = |key: &str, value: Option<serde_json::Value>, words: &str| {
        let mut changed = config.clone();
        let object = changed.as_object_mut().expect("object");
        match value {
            Some(value) => object.insert(key.into(), value),
            None => object.remove(key),
        };
        let error = wginfer::models::open(&changed.to_string()).err().expect(words).to_string();
        assert!(error.contains(words), "`{error}` lacks `{words}`");
    };
    refused("model_type", Some("mamba".into()), "architecture `mamba` is not supported, these are: `bert`");
    refused(
        "hidden_size",
        Some("wide".into()),
        "`hidden_size` is `\"wide\"`, expected a whole number from 1",
    );
    refused("head_dim", Some(14.into()), "`head_dim` is `14`, expected a multiple of 4");
    refused("num_key_value_heads", Some(3.into()), "a divisor of the 4 attention heads");
    refused("num_attention_heads", Some(0.into()), "`num_attention_heads`");
    refused("num_hidden_layers", Some(0.into()), "`num_hidden_layers` is `0`");
    refused("quantization_config", Some(serde_json::json!({"quant_method": "gptq"})), "`gptq`");
    refused(
        "rope_parameters",
        Some(serde_json::json!({"rope_type": "mrope"})),
        "`mrope`, expected `default`",
    );
    assert!(wginfer::models::open("not json").is_err());
    assert!(wginfer::models::open("{}").err().expect("refused").to_string().contains("model_type"));
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let Some(gpu) = common::gpu() else { return };
    let tensors = read("llama");
    let all: Vec<_> = tensors.iter().map(|(n, t)| (n, t, Stored::F32)).collect();
    let name = "model.layers.1.mlp.down_proj.weight";
    let without: Vec<_> = all.iter().filter(|(n, ..)| *n != name).copied().collect();
    let error = load_error(&gpu, folder("llama", &without).path());
    assert!(error.contains(&format!("tensor `{name}` is missing")), "{error}");
    assert!(error.contains("model.layers.0.mlp.down_proj.weight"), "it names one that is alike: {error}");

    let (shape, values) = &tensors[name];
    let turned = (vec![shape[1], shape[0]], values.clone());
    let wrong: Vec<_> = all.iter().map(|(n, t, s)| (*n, if *n == name { &turned } else { *t }, *s)).collect();
    let error = load_error(&gpu, folder("llama", &wrong).path());
    assert!(error.contains("has shape [176, 64], expected [64, 176]"), "{error}");

    let wrong: Vec<_> =
        all.iter().map(|(n, t, s)| (*n, *t, if *n == name { Stored::I32 } else { *s })).collect();
    let error = load_error(&gpu, folder("llama", &wrong).path());
    assert!(error.contains(&format!("`{name}` has type `I32`, expected one of `F32`")), "{error}");

    // Unused tensors are listed, and the rest loads.
    let extra = "model.layers.9.extra.weight".to_string();
    let tensor = (vec![3], vec![1.0, 2.0, 3.0]);
    let more = [&all[..], &[(&extra, &tensor, Stored::F32)]].concat();
    let dir = folder("llama", &more);
    let checkpoint = ModelFiles::open(dir.path()).expect("checkpoint");
    let engine = Engine::load(&gpu, checkpoint, EngineOptions::default(), &mut |_| {}).expect("engine");
    assert_eq!(engine.unused_tensors(), [extra]);
}

#[test]
fn broken_files_are_errors() {
    let bytes = std::fs::read(golden("llama").join("model.safetensors")).expect("read");
    let open = |bytes: &[u8]| Weights::from_bytes(bytes.to_vec());
    assert!(open(&bytes).is_ok());
    // Cut at twenty places: in the length, in the header, between and inside tensors, one byte short.
    let n = bytes.len();
    for i in 0..20 {
        let cut = [0, 1, 7, 8, 9, 100, n - 1, n - 2].get(i).copied().unwrap_or(n * i / 20);
        let error = open(&bytes[..cut]).expect_err("cut").to_string();
        assert!(error.contains("is not a valid checkpoint"), "{cut}: {error}");
        assert!(error.contains(&format!("{cut} bytes")), "it says how long the file is: {error}");
    }
    // A header with wrong sizes, with a wrong length, or that is not JSON.
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let text = std::str::from_utf8(&bytes[8..8 + header]).expect("utf-8");
    for (from, to) in [("384", "999"), ("\"F32\"", "\"F16\""), ("[0,", "[9,"), ("{", "[")] {
        assert!(text.contains(from), "the header has `{from}`");
        let lie = text.replacen(from, to, 1);
        let file = [&(lie.len() as u64).to_le_bytes(), lie.as_bytes(), &bytes[8 + header..]].concat();
        assert!(open(&file).is_err(), "{from} to {to}");
    }
    for length in [0u64, 1 << 20, 1 << 40, u64::MAX] {
        let file = [&length.to_le_bytes(), &bytes[8..]].concat();
        assert!(open(&file).is_err(), "header of {length} bytes");
    }
    let empty = tempfile::tempdir().expect("a folder");
    std::fs::copy(golden("llama").join("config.json"), empty.path().join("config.json")).expect("copy");
    let error = ModelFiles::open(empty.path()).err().expect("no weights").to_string();
    assert!(error.contains("has no `model.safetensors`"), "{error}");
}
