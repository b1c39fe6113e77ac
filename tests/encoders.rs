//! Text encoders against the reference implementation (transformers, f32): embeddings of a real model, logits of small
//! ones with random weights; and properties of every batch.

mod common;

use std::path::{Path, PathBuf};

use wginfer::checkpoint::ModelFiles;
use wginfer::engine::{EncoderOptions, Engine, EngineError, EngineOptions, Output, TextEncoder};
use wginfer::gpu::{Gpu, GpuError, GpuOptions};
use wginfer::tasks::{self, TaskError};

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

fn open(dir: &Path) -> ModelFiles {
    ModelFiles::open(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

fn encoder(gpu: &Gpu, dir: &Path, options: EncoderOptions) -> TextEncoder {
    TextEncoder::load(gpu, open(dir), options, &mut |_| {})
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
}

/// The results of texts, in order.
fn encode(encoder: &mut TextEncoder, texts: &[Vec<u32>], output: Output) -> Vec<Vec<f32>> {
    all(tasks::encode_tokens(encoder, texts.to_vec(), output, &mut |_| {}))
        .into_iter()
        .map(|encoding| encoding.values)
        .collect()
}

/// The result of every text.
fn all<T>(rows: Result<Vec<Result<T, TaskError>>, TaskError>) -> Vec<T> {
    rows.expect("it runs").into_iter().map(|row| row.expect("a good text")).collect()
}

fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).fold(0.0, |m, (a, b)| m.max((a - b).abs()))
}

/// The device with all capabilities, portable, and as if it were hardware; all with F32 products.
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

/// Decoders that embed: Qwen3-Embedding and EmbeddingGemma, as folders and as files, with prompts.
#[test]
fn decoders_embed_as_the_reference() {
    #[derive(serde::Deserialize)]
    struct Text {
        prompt: Option<String>,
        text: String,
        token_ids: Vec<u32>,
        embedding: Vec<f32>,
    }
    for (model, pooling) in [("qwen3-embedding", 3), ("embedding-gemma", 1)] {
        let text = std::fs::read(folder(model).join("golden.json")).expect("golden.json");
        let golden: Vec<Text> = serde_json::from_slice(&text).expect("golden.json");
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("model.gguf");
        let mut file = common::gguf::of_folder(&folder(model));
        let architecture = if model == "qwen3-embedding" { "qwen3" } else { "gemma-embedding" };
        file.whole(&format!("{architecture}.pooling_type"), pooling);
        for part in ["2", "3"] {
            let Ok(bytes) = std::fs::read(folder(model).join(format!("{part}_Dense/model.safetensors")))
            else {
                continue;
            };
            let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
            let tensor = tensors.tensor("linear.weight").expect("a matrix");
            let dims: Vec<usize> = tensor.shape().iter().rev().copied().collect();
            file.tensor(&format!("dense_{part}.weight"), &dims, 0, tensor.data().to_vec());
        }
        // A file has no key for the scale of scores: it is that of the heads' size, which the folder's is not.
        for (name, _, kind, bytes) in &mut file.tensors {
            if model == "embedding-gemma" && name.contains("attn_q_norm") {
                assert_eq!(*kind, 0, "{name}");
                let scaled =
                    |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]) * (20.0f32 / 17.0).sqrt();
                *bytes = bytes.chunks_exact(4).flat_map(|b| scaled(b).to_le_bytes()).collect();
            }
        }
        std::fs::write(&path, file.bytes()).expect("a file");
        let prompts = open(&folder(model)).embedding.expect("modules").prompts;
        for gpu in devices() {
            for place in [folder(model), path.clone()] {
                let files = open(&place);
                assert_eq!(files.abilities(), [wginfer::checkpoint::Ability::Embed]);
                assert!(Engine::load(&gpu, files, EngineOptions::default(), &mut |_| {}).is_err());
                let mut encoder = encoder(&gpu, &place, EncoderOptions::default());
                assert_eq!(encoder.unused_tensors(), [""; 0]);
                let ids: Vec<Vec<u32>> = golden.iter().map(|text| text.token_ids.clone()).collect();
                let found = encode(&mut encoder, &ids, Output::Embedding);
                for (text, found) in golden.iter().zip(&found) {
                    let cosine = tasks::cosine(found, &text.embedding);
                    let error = worst(found, &text.embedding);
                    assert!(cosine > 0.9999 && error < 1e-3, "{model}, {}: {cosine}, {error}", text.text);
                    let alone =
                        encode(&mut encoder, std::slice::from_ref(&text.token_ids), Output::Embedding);
                    common::assert_same_bits(&text.text, &alone[0], found);
                    if place == path {
                        continue;
                    }
                    let prompt = text.prompt.as_ref().map_or("", |name| &prompts[name]);
                    let (ids, n_cut) = encoder.tokenize(&format!("{prompt}{}", text.text)).expect("ids");
                    assert_eq!((&ids, n_cut), (&text.token_ids, 0), "{}", text.text);
                }
                let other = tasks::cosine(&found[0], &golden[1].embedding);
                assert!(other < 0.999, "{model}: texts would pass for each other: {other}");
            }
        }
    }
}

/// `n` token ids of a vocabulary of `vocab_size`.
fn ids(rng: &mut common::Rng, n: usize, vocab_size: usize) -> Vec<u32> {
    (0..n).map(|_| rng.below(vocab_size) as u32).collect()
}

/// Texts of many lengths, in batches of any size, give the same results as each text by itself.
#[test]
fn a_text_does_not_depend_on_its_company() {
    for gpu in devices() {
        for model in CLASSIFIERS {
            let lengths = [1, 2, 16, 17, 3, 64, 33, 1, 15, 128, 7, 31, 100, 5];
            let options = EncoderOptions { max_rows: 130, max_seqs: 5, ..EncoderOptions::default() };
            let mut small = encoder(&gpu, &folder(model), options);
            let mut large = encoder(&gpu, &folder(model), EncoderOptions::default());
            let mut rng = common::Rng::new(3);
            let texts: Vec<Vec<u32>> = lengths.iter().map(|n| ids(&mut rng, *n, 384)).collect();
            for output in [Output::Embedding, Output::Logits] {
                let together = encode(&mut large, &texts, output);
                let in_parts = encode(&mut small, &texts, output);
                for (i, text) in texts.iter().enumerate() {
                    let what = format!("{model}, {output:?} of {} tokens", lengths[i]);
                    let alone = encode(&mut large, std::slice::from_ref(text), output).swap_remove(0);
                    common::assert_same_bits(&what, &together[i], &alone);
                    common::assert_same_bits(&what, &in_parts[i], &alone);
                    // Another text has another result, so that equal results are no accident.
                    assert!(i == 0 || worst(&together[0], &alone) > 1e-4, "{what}: like another text");
                }
            }
        }
    }
}

/// A guest's slices give the same as the blocking calls, whatever the budget, and results of both kinds stay separate.
#[test]
fn slices_give_the_same_as_one_run() {
    // A device of its own, because counters include the allocations of other tests.
    let Some(gpu) = common::open(&GpuOptions::default()) else { return };
    let mut rng = common::Rng::new(4);
    let texts: Vec<Vec<u32>> = (0..40).map(|i| ids(&mut rng, 1 + i * 3 % 90, 384)).collect();
    let options = EncoderOptions { max_rows: 200, max_seqs: 7, ..EncoderOptions::default() };
    let mut whole = encoder(&gpu, &folder("bert-classifier"), options.clone());
    let [embeddings, logits] =
        [Output::Embedding, Output::Logits].map(|output| encode(&mut whole, &texts, output));
    for budget in [std::time::Duration::ZERO, std::time::Duration::from_millis(3)] {
        let mut sliced = encoder(&gpu, &folder("bert-classifier"), options.clone());
        let mut expected = std::collections::HashMap::new();
        let mut n_cancelled = 0;
        for (i, text) in texts.iter().enumerate() {
            let output = if i % 3 == 0 { Output::Logits } else { Output::Embedding };
            let values = if i % 3 == 0 { &logits[i] } else { &embeddings[i] };
            let id = sliced.submit(text.clone(), output).expect("it is accepted");
            if i == 20 {
                sliced.cancel(id);
                n_cancelled += 1;
            } else {
                expected.insert(id, values);
            }
        }
        assert!(!sliced.is_idle());
        let before = gpu.counts();
        let mut n_submissions = 0;
        while !sliced.is_idle() {
            let buffers = sliced.advance(budget).expect("it records");
            n_submissions += buffers.len();
            gpu.submit(buffers).expect("submit");
            for encoded in sliced.events().expect("it reads") {
                let values = encoded.values.expect("numbers");
                let expected = expected.remove(&encoded.id).expect("a text that waits, once");
                common::assert_same_bits("a slice", &values, expected);
            }
            gpu.wait().expect("the device works");
        }
        assert!(expected.is_empty() && n_cancelled == 1);
        assert!(n_submissions > 6, "{n_submissions} slices");
        assert_eq!(gpu.counts().allocations, before.allocations, "nothing is allocated after loading");
    }
}

/// On a host's device nothing is submitted, and the host may run it on any thread.
#[test]
fn a_guest_embeds() {
    fn assert_send_sync<T: Send + Sync>() {}
    assert_send_sync::<TextEncoder>();
    // A guest has no cooperative matrices, and so no products of F16.
    let Some(own) = common::exact() else { return };
    let instance = wginfer::wgpu::Instance::default();
    let options = wginfer::wgpu::RequestAdapterOptions::default();
    let adapter = pollster::block_on(instance.request_adapter(&options)).expect("an adapter");
    let (device, queue) =
        pollster::block_on(adapter.request_device(&Gpu::required(&adapter))).expect("a device");
    let guest = Gpu::adopt(device, queue.clone()).expect("large enough");
    let mut rng = common::Rng::new(6);
    let texts: Vec<Vec<u32>> = (0..9).map(|i| ids(&mut rng, 1 + 13 * i, 384)).collect();
    let mut encoder_of_guest = encoder(&guest, &folder("modernbert-classifier"), EncoderOptions::default());
    let mut index_of = std::collections::HashMap::new();
    for (i, text) in texts.iter().enumerate() {
        index_of.insert(encoder_of_guest.submit(text.clone(), Output::Logits).expect("submit"), i);
    }
    let adopted = |e: &EngineError| matches!(e, EngineError::Gpu(GpuError::Adopted));
    assert!(encoder_of_guest.pump().is_err_and(|e| adopted(&e)), "only the host submits");
    assert!(encoder_of_guest.run(|_| {}).is_err_and(|e| adopted(&e)), "only the host waits");
    let mut found = vec![Vec::new(); texts.len()];
    for n_frames in 0.. {
        if encoder_of_guest.is_idle() {
            break;
        }
        queue.submit(encoder_of_guest.advance(std::time::Duration::from_millis(1)).expect("advance"));
        for encoded in encoder_of_guest.events().expect("events") {
            found[index_of[&encoded.id]] = encoded.values.expect("numbers");
        }
        assert!(n_frames < 100_000, "it gets on");
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    assert_eq!(guest.counts().submissions, 0, "the queue is the host's");
    let mut alone = encoder(&own, &folder("modernbert-classifier"), EncoderOptions::default());
    let expected = encode(&mut alone, &texts, Output::Logits);
    for (found, expected) in found.iter().zip(&expected) {
        assert!(worst(found, expected) < 1e-3, "{found:?}, expected {expected:?}");
    }
}

/// A copy of a model's folder to change.
fn copy(from: &Path) -> tempfile::TempDir {
    let dir = tempfile::TempDir::new().expect("a temporary folder");
    copy_into(from, dir.path());
    dir
}

fn copy_into(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("it is there") {
        let path = entry.expect("an entry").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            std::fs::create_dir(&to).expect("a folder");
            copy_into(&path, &to);
        } else {
            std::fs::copy(&path, &to).expect("it can be copied");
        }
    }
}

/// Rewrites a file of a model with `change`.
fn change(dir: &Path, file: &str, change: impl FnOnce(&mut serde_json::Value)) {
    let path = dir.join(file);
    let mut json = std::fs::read(&path)
        .ok()
        .map_or(serde_json::json!({}), |text| serde_json::from_slice(&text).expect("JSON"));
    change(&mut json);
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, json.to_string()).expect("it can be written");
}

/// Writes a safetensors file of F32 or F16 tensors.
fn write_tensors(path: &Path, tensors: &[(String, &str, Vec<usize>, Vec<u8>)]) {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, dtype, shape, bytes) in tensors {
        let offsets = [at, at + bytes.len()];
        header.insert(
            name.clone(),
            serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": offsets }),
        );
        at += bytes.len();
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    tensors.iter().for_each(|(.., bytes)| file.extend(bytes));
    std::fs::write(path, file).expect("it can be written");
}

/// The tensors of a safetensors file.
fn read_tensors(path: &Path) -> Vec<(String, String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(path).expect("it is there");
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + n]).expect("JSON");
    let tensor = |(name, info): (&String, &serde_json::Value)| {
        let numbers = |key: &str| -> Vec<usize> {
            info[key]
                .as_array()
                .expect("a list")
                .iter()
                .map(|v| v.as_u64().expect("a number") as usize)
                .collect()
        };
        let range = numbers("data_offsets");
        let data = bytes[8 + n + range[0]..8 + n + range[1]].to_vec();
        (name.clone(), info["dtype"].as_str().expect("a type").to_string(), numbers("shape"), data)
    };
    let entries = header.as_object().expect("an object").iter();
    entries.filter(|(name, _)| *name != "__metadata__").map(tensor).collect()
}

#[derive(serde::Deserialize)]
struct Sentence {
    text: String,
    token_ids: Vec<u32>,
    embedding: Vec<f32>,
}

/// Against sentence-transformers: F32 as stored, and F16.
#[test]
fn a_real_model_gives_the_embeddings_of_the_reference() {
    let (Some(dir), Some(gpu)) = (minilm(), common::gpu()) else { return };
    let half = copy(&dir);
    let tensors = read_tensors(&dir.join("model.safetensors"));
    let tensors: Vec<_> = tensors
        .into_iter()
        .filter(|(_, dtype, ..)| dtype == "F32")
        .map(|(name, _, shape, bytes)| {
            let words: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
            let halves = words.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
            (name, "F16", shape, halves)
        })
        .collect();
    write_tensors(&half.path().join("model.safetensors"), &tensors);
    let text = std::fs::read(dir.join("golden.json")).expect("golden.json");
    let golden: Vec<Sentence> = serde_json::from_slice(&text).expect("golden.json");
    for (dir, what) in [(&*dir, "F32"), (half.path(), "F16")] {
        let mut encoder = encoder(&gpu, dir, EncoderOptions::default());
        assert_eq!(encoder.unused_tensors(), [""; 0], "{what}");
        assert_eq!((encoder.ctx(), encoder.embedding_width()), (256, 384), "{what}");
        let texts: Vec<&str> = golden.iter().map(|sentence| sentence.text.as_str()).collect();
        let found = all(tasks::encode(&mut encoder, &texts, Output::Embedding, &mut |_| {}));
        for (i, sentence) in golden.iter().enumerate() {
            assert_eq!(encoder.tokenize(&sentence.text).expect("ids"), (sentence.token_ids.clone(), 0));
            let cosine = tasks::cosine(&found[i].values, &sentence.embedding);
            assert!(cosine >= 0.9999, "{what}: {} has cosine {cosine}", sentence.text);
            let length = tasks::cosine(&found[i].values, &found[i].values).sqrt();
            assert!((length - 1.0).abs() < 1e-5 && found[i].values.len() == 384, "{what}");
            let other = &golden[(i + 1) % golden.len()].embedding;
            assert!(tasks::cosine(&found[i].values, other) < 0.9999, "{what}: any text passes");
        }
        let (texts, labels) =
            (["the kitten purred", "steel cables hold the road"], ["a cat", "a bridge", "rain"]);
        let temperature = tasks::COSINE_TEMPERATURE;
        let mut embed = |texts: &[&str]| {
            let found = all(tasks::encode(&mut encoder, texts, Output::Embedding, &mut |_| {}));
            found.into_iter().map(|encoding| encoding.values).collect::<Vec<_>>()
        };
        let scores = tasks::label_scores(&embed(&texts), &embed(&labels), temperature);
        let most = |row: &[f64]| (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
        assert_eq!(
            (scores[0].len(), most(&scores[0]), most(&scores[1])),
            (3, Some(0), Some(1)),
            "{scores:?}"
        );
        assert!(scores.iter().flatten().all(|score| score.abs() <= 1.0 / temperature + 1e-3), "{scores:?}");

        let long = "tide ".repeat(100_000);
        let cut = all(tasks::encode(&mut encoder, &[&long], Output::Embedding, &mut |_| {}));
        assert_eq!((cut[0].n_tokens, cut[0].n_cut), (256, 100_002 - 256));
        // What stands around a text is no text.
        let empty = tasks::encode(&mut encoder, &["\u{200b}", "\t", "a"], Output::Embedding, &mut |_| {});
        let empty: Vec<bool> = empty.expect("it runs").iter().map(Result::is_ok).collect();
        assert_eq!(empty, [false, false, true]);
        let (ids, _) = encoder.tokenize(&long).expect("ids");
        assert_eq!((ids[0], ids[255]), (101, 102), "what stands around a text is not cut");
    }
}

/// The steps after the encoder, compared with the plain rows: several ways of pooling, products, normalisation.
#[test]
fn modules_after_the_encoder() {
    let Some(gpu) = common::gpu() else { return };
    let dir = copy(&folder("distilbert-classifier"));
    let (texts, hidden, n_out) = ([vec![3, 141, 59, 26, 5], vec![35]], 64, 24);
    let modules = |dir: &Path, classes: &[&str]| {
        let list: Vec<_> = classes
            .iter()
            .enumerate()
            .map(|(i, class)| {
                let path = if i == 0 { String::new() } else { format!("{i}_{class}") };
                serde_json::json!({ "idx": i, "name": i.to_string(), "path": path,
                    "type": format!("sentence_transformers.models.{class}") })
            })
            .collect();
        change(dir, "modules.json", |json| *json = list.into());
    };
    let pooled = |dir: &Path, config: serde_json::Value| {
        change(dir, "1_Pooling/config.json", |json| *json = config);
        encode(&mut encoder(&gpu, dir, EncoderOptions::default()), &texts, Output::Embedding)
    };
    modules(dir.path(), &["Transformer", "Pooling"]);
    let switch = |name: &str| serde_json::json!({ "word_embedding_dimension": hidden, name: true });
    let [first, last, mean, root, max, weighted] = [
        "cls_token",
        "lasttoken",
        "mean_tokens",
        "mean_sqrt_len_tokens",
        "max_tokens",
        "weightedmean_tokens",
    ]
    .map(|name| pooled(dir.path(), switch(&format!("pooling_mode_{name}"))));
    // For one token all ways of pooling are equal.
    for other in [&last, &mean, &root, &max, &weighted] {
        assert!(worst(&other[1], &first[1]) < 1e-6);
        assert!(worst(&other[0], &first[0]) > 1e-3);
    }
    let five: Vec<f32> = mean[0].iter().map(|x| x * 5.0).collect();
    let by_root: Vec<f32> = root[0].iter().map(|x| x * 5f32.sqrt()).collect();
    assert!(worst(&five, &by_root) < 1e-4);
    let both = serde_json::json!({ "pooling_mode_max_tokens": true, "pooling_mode_cls_token": true });
    let beside = pooled(dir.path(), both);
    assert_eq!(beside[0], [&first[0][..], &max[0]].concat(), "`cls` comes first");
    assert_eq!(pooled(dir.path(), serde_json::json!({ "pooling_mode": ["max", "cls"] })), beside);

    modules(dir.path(), &["Transformer", "Pooling", "Dense", "Normalize"]);
    let mut rng = common::Rng::new(5);
    let (w, b) = (rng.normals(n_out * hidden, 0.2), rng.normals(n_out, 0.5));
    let dense = |name: &str| {
        serde_json::json!({ "in_features": hidden, "out_features": n_out, "bias": true,
            "activation_function": format!("torch.nn.modules.activation.{name}") })
    };
    change(dir.path(), "2_Dense/config.json", |json| *json = dense("Tanh"));
    let bytes = |values: &[f32]| bytemuck::cast_slice(values).to_vec();
    write_tensors(
        &dir.path().join("2_Dense/model.safetensors"),
        &[
            ("linear.bias".into(), "F32", vec![n_out], bytes(&b)),
            ("linear.weight".into(), "F32", vec![n_out, hidden], bytes(&w)),
        ],
    );
    let found = pooled(dir.path(), switch("pooling_mode_mean_tokens"));
    for (found, mean) in found.iter().zip(&mean) {
        let (w, b) = (common::rows_f64(&w, hidden), common::to_f64(&b));
        let y = common::reference::linear(&common::to_f64(mean), &w, Some(&b));
        let y: Vec<f64> = y.into_iter().map(f64::tanh).collect();
        let length = y.iter().map(|y| y * y).sum::<f64>().sqrt();
        let want: Vec<f64> = y.iter().map(|y| y / length).collect();
        common::assert_close("dense", found, &want, common::Tolerance::f32(hidden, 1.0));
    }
}

#[test]
fn quantised_weights_classify_alike() {
    let Some(gpu) = common::gpu() else { return };
    let golden = golden("bert-classifier");
    let options = EncoderOptions { quantize: Some(wginfer::dtype::Dtype::Q8_0), ..EncoderOptions::default() };
    let mut encoder = encoder(&gpu, &folder("bert-classifier"), options);
    let found = encode(&mut encoder, &[golden.token_ids], Output::Logits).swap_remove(0);
    let error = worst(&found, &golden.logits);
    assert!(error > 1e-4 && error < 0.1, "{found:?}, expected {:?}", golden.logits);
}

#[test]
fn labels_have_probabilities() {
    use wginfer::models::Problem;
    let labels = |dir: &Path| open(dir).labels.expect("labels");
    let dir = copy(&folder("bert-classifier"));
    let three = labels(dir.path());
    assert_eq!(
        (three.names.join(" "), three.problem),
        ("negative neutral positive".into(), Problem::SingleLabel)
    );
    let p = three.probabilities(&[1.0, 0.0, -200.0]).expect("probabilities");
    assert!((p[0] - 0.731_058_6).abs() < 1e-6 && (p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    change(dir.path(), "config.json", |c| c["problem_type"] = "multi_label_classification".into());
    let p = labels(dir.path()).probabilities(&[1.0, 0.0, -200.0]).expect("probabilities");
    assert!((p[0] - 0.731_058_6).abs() < 1e-6 && p[1] == 0.5 && p[2] == 0.0);
    change(dir.path(), "config.json", |c| {
        c["problem_type"] = serde_json::Value::Null;
        c["id2label"] = serde_json::json!({ "0": "score" });
    });
    assert_eq!(labels(dir.path()).probabilities(&[3.5]), None);
    change(dir.path(), "config.json", |c| c["id2label"] = serde_json::Value::Null);
    assert_eq!(labels(dir.path()).names, ["LABEL_0", "LABEL_1"]);
    change(dir.path(), "config.json", |c| c["architectures"] = serde_json::json!(["BertModel"]));
    assert_eq!(open(dir.path()).labels, None);
}

#[test]
fn what_a_folder_can_get_wrong_is_named() {
    let opened = |dir: &Path| match ModelFiles::open(dir) {
        Ok(_) => panic!("{} was opened", dir.display()),
        Err(error) => error.to_string(),
    };
    let config = |key: &str, value: serde_json::Value, what: &str| {
        let dir = copy(&folder("bert-classifier"));
        change(dir.path(), "config.json", |c| c[key] = value);
        let error = opened(dir.path());
        assert!(error.contains(what), "{error}");
    };
    config(
        "id2label",
        serde_json::json!({ "0": "a", "2": "b" }),
        "`id2label` is `0, 2`, expected the ids 0 to 1",
    );
    config("id2label", serde_json::json!({}), "`id2label` is `{}`, expected a label or more");
    config("hidden_act", "snake".into(), "`hidden_act` is `snake`, expected `silu`");
    config("problem_type", "poetry".into(), "`problem_type` is `poetry`");
    config(
        "num_attention_heads",
        3.into(),
        "`num_attention_heads` is `3`, expected a divisor of the width 64",
    );
    config("num_attention_heads", 0.into(), "`num_attention_heads`");
    config("hidden_size", 72.into(), "expected a divisor of the width 72, with heads of a multiple of 4");
    config("model_type", "resnet".into(), "`resnet` is not supported");

    let modules = |modules: serde_json::Value, pooling: serde_json::Value, what: &str| {
        let dir = copy(&folder("bert-classifier"));
        change(dir.path(), "modules.json", |json| *json = modules);
        change(dir.path(), "1_Pooling/config.json", |json| *json = pooling);
        let error = opened(dir.path());
        assert!(error.contains(what), "{error}");
    };
    let module =
        |class: &str, path: &str| serde_json::json!({ "path": path, "type": format!("a.b.{class}") });
    let pooling = serde_json::json!([module("Transformer", ""), module("Pooling", "1_Pooling")]);
    modules(pooling.clone(), serde_json::json!({ "word_embedding_dimension": 65 }), "is `65`, expected 64");
    modules(pooling.clone(), serde_json::json!({}), "no `pooling_mode_…` is true");
    modules(pooling.clone(), serde_json::json!({ "pooling_mode": "median" }), "`median`, expected `cls`");
    modules(pooling.clone(), "mean".into(), "1_Pooling/config.json");
    modules(serde_json::json!([module("Transformer", "")]), serde_json::json!({}), "no module `Pooling`");
    modules(serde_json::json!([module("CNN", "")]), serde_json::json!({}), "module `CNN` does not run here");
    modules(serde_json::json!([module("Pooling", "../..")]), serde_json::json!({}), "`path` is `../..`");
    modules(serde_json::json!({ "a": 1 }), serde_json::json!({}), "modules.json");

    let dir = copy(&folder("roberta-classifier"));
    let path = dir.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("it is there");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("it can be written");
    assert!(opened(dir.path()).contains("is not a valid checkpoint"));

    let Some(gpu) = common::gpu() else { return };
    let bert = open(&folder("bert-classifier"));
    let error = Engine::load(&gpu, bert, EngineOptions::default(), &mut |_| {}).expect_err("an encoder");
    assert_eq!(error.to_string(), "`bert` is an encoder: it can embed and classify");
    let llama = open(&folder("llama"));
    let error =
        TextEncoder::load(&gpu, llama, EncoderOptions::default(), &mut |_| {}).expect_err("a decoder");
    assert_eq!(error.to_string(), "`llama` is a decoder: it can generate");
    let loaded = |dir: &Path, options: EncoderOptions, what: &str| {
        let error = TextEncoder::load(&gpu, open(dir), options, &mut |_| {}).expect_err("it is refused");
        assert!(error.to_string().contains(what), "{error}");
    };
    let dir = copy(&folder("bert-classifier"));
    change(dir.path(), "config.json", |c| c["id2label"] = serde_json::json!({ "0": "a", "1": "b" }));
    loaded(dir.path(), EncoderOptions::default(), "`classifier.weight` has shape [3, 64], expected [2, 64]");
    let dir = folder("roberta-classifier");
    let ctx = |n| EncoderOptions { ctx: Some(n), ..EncoderOptions::default() };
    // 130 rows of positions, two of which stand for padding.
    loaded(&dir, ctx(129), "`ctx` is 129");
    loaded(&dir, ctx(0), "`ctx` is 0");
    loaded(&dir, EncoderOptions { max_rows: 0, ..EncoderOptions::default() }, "`max_rows` is 0");
    let mut encoder = encoder(&gpu, &dir, ctx(128));
    let mut refused = |ids: Vec<u32>, what: &str| {
        let error = encoder.submit(ids, Output::Embedding).expect_err("it is refused").to_string();
        assert!(error.contains(what), "{error}");
    };
    refused(vec![], "empty");
    refused(vec![1; 129], "129 tokens, the context holds 128");
    refused(vec![1, 384], "token 384 at position 1");
    // Refused texts are errors of their own, and leave nothing behind.
    let texts = vec![vec![1, 2], vec![1, 384], vec![], vec![3, 4, 5], vec![1; 129]];
    let mut n_reported = 0;
    let found = tasks::encode_tokens(&mut encoder, texts, Output::Logits, &mut |n| n_reported = n);
    let found = found.expect("it runs");
    let errors: Vec<String> =
        found.iter().map(|row| row.as_ref().map_or_else(|e| e.to_string(), |_| String::new())).collect();
    assert_eq!(n_reported, 5);
    for (error, what) in errors.iter().zip(["", "token 384 at position 1", "is empty", "", "129 tokens"]) {
        assert!(error.contains(what) && error.is_empty() == what.is_empty(), "{errors:?}");
    }
    let alone = encode(&mut encoder, &[vec![3, 4, 5]], Output::Logits);
    assert_eq!(found[3].as_ref().expect("a good text").values, alone[0]);
    // What concerns the model is an error of all.
    let bare = copy(&dir);
    change(bare.path(), "config.json", |c| c["architectures"] = serde_json::json!(["RobertaModel"]));
    let mut bare = self::encoder(&gpu, bare.path(), EncoderOptions::default());
    let error = tasks::encode_tokens(&mut bare, vec![vec![1], vec![2]], Output::Logits, &mut |_| {});
    assert!(error.expect_err("no head").to_string().contains("no classification head"));
    assert!(encoder.is_idle());
    assert_eq!(encode(&mut encoder, &[vec![1; 128]], Output::Embedding)[0].len(), 64);
}

/// The real model, if it is present.
fn minilm() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/all-MiniLM-L6-v2");
    if !dir.join("golden.json").exists() {
        common::say(&format!("skipped, `{}` is not there: parts of the encoders' tests", dir.display()));
        return None;
    }
    Some(dir)
}
