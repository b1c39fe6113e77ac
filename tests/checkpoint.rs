//! Opening models: what a name is, what is read of a folder, and what lies in a file's place that is no file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::TempDir;
use wginfer::checkpoint::{Ability, CheckpointError, GenerationConfig, ModelFiles, Source, open_tokenizer};
use wginfer::dtype::Dtype;
use wginfer::engine::{EngineOptions, Sampling};
use wginfer::models::ModelKind;
use wginfer::tasks::transcribe::{TranscribeOptions, Transcriber};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            fs::create_dir(&target).expect("a folder");
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("it can be copied");
        }
    }
}

fn write(path: &Path, json: serde_json::Value) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, json.to_string()).expect("it can be written");
}

/// A language model with every file that one may have. `is_sharded` decides which files have the weights.
fn decoder(is_sharded: bool) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    copy(&golden("llama"), dir.path());
    write(
        &dir.path().join("generation_config.json"),
        serde_json::json!({ "temperature": 0.5, "eos_token_id": 7 }),
    );
    write(&dir.path().join("tokenizer_config.json"), serde_json::json!({}));
    write(&dir.path().join("chat_template.json"), serde_json::json!({ "chat_template": "a" }));
    if is_sharded {
        let (whole, shard) = (dir.path().join("model.safetensors"), "model-00001-of-00001.safetensors");
        fs::rename(whole, dir.path().join(shard)).expect("it can be renamed");
        let index = serde_json::json!({ "weight_map": { "model.norm.weight": shard } });
        write(&dir.path().join("model.safetensors.index.json"), index);
    }
    dir
}

/// A sentence-embedding model with every file that one may have.
fn encoder() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    copy(&golden("bert-classifier"), dir.path());
    let module = |class: &str, path: &str| serde_json::json!({ "path": path, "type": class });
    let modules = [module("Transformer", ""), module("Pooling", "1_Pooling"), module("Dense", "2_Dense")];
    write(&dir.path().join("modules.json"), modules.to_vec().into());
    write(&dir.path().join("sentence_bert_config.json"), serde_json::json!({ "max_seq_length": 40 }));
    let prompts = serde_json::json!({ "prompts": { "query": "q: " } });
    write(&dir.path().join("config_sentence_transformers.json"), prompts);
    write(&dir.path().join("1_Pooling/config.json"), serde_json::json!({ "pooling_mode_mean_tokens": true }));
    let dense = serde_json::json!({
        "in_features": 64, "out_features": 8, "activation_function": "torch.nn.modules.linear.Identity"
    });
    write(&dir.path().join("2_Dense/config.json"), dense);
    fs::copy(dir.path().join("model.safetensors"), dir.path().join("2_Dense/model.safetensors"))
        .expect("a copy");
    dir
}

/// The files that are read of [`decoder`]`(false)`.
const DECODER: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.json",
];
/// Those that are read of [`decoder`]`(true)` besides or instead.
const SHARDED: [&str; 2] = ["model.safetensors.index.json", "model-00001-of-00001.safetensors"];
/// The files that are read of [`encoder`] alone.
const ENCODER: [&str; 6] = [
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
];

fn error(dir: &Path) -> CheckpointError {
    match ModelFiles::open(dir) {
        Ok(_) => panic!("{} was opened", dir.display()),
        Err(error) => error,
    }
}

// --- names -------------------------------------------------------------------------------------------------

#[test]
fn what_a_name_is() {
    let dir = TempDir::new().expect("a folder");
    assert_eq!(Source::parse(dir.path()).expect("a folder"), Source::Folder(dir.path().to_path_buf()));
    let file = dir.path().join("file");
    fs::write(&file, "").expect("it can be written");
    let refused = |name: &str| Source::parse(name).expect_err(name);
    assert!(
        matches!(refused(file.to_str().expect("UTF-8")), CheckpointError::NotAModel { path } if path == file)
    );
    assert!(matches!(refused("a/b.gguf"), CheckpointError::Io { path, .. } if path == Path::new("a/b.gguf")));
    #[cfg(feature = "hub")]
    for name in ["owner/name", "Qwen/Qwen3-4B-GGUF:Q4_K_M", "hf.co/owner/name"] {
        let expected = wginfer::hub::HubName::parse(name).expect("a name");
        assert_eq!(Source::parse(name).expect("a name on the hub"), Source::Hub(expected));
    }
    for name in ["name", "./not/there", "/not/there", "~/there", "a/b/c", "not/", "../there", "c:\\not/there"]
    {
        assert!(matches!(refused(name), CheckpointError::NoFolder { .. }), "{name}");
        assert!(refused(name).to_string().contains(&format!("`{name}`")), "{name}");
    }
}

// --- what is read --------------------------------------------------------------------------------------------

/// Keeps what the library says of files that it opens.
struct Opened(Mutex<Vec<PathBuf>>);

static OPENED: Opened = Opened(Mutex::new(Vec::new()));

impl log::Log for Opened {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("wginfer::checkpoint")
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        if let Some(path) = line.strip_prefix("opening `").and_then(|rest| rest.strip_suffix('`')) {
            self.0.lock().expect("a list").push(path.into());
        }
    }

    fn flush(&self) {}
}

#[test]
fn every_file_is_opened_once() {
    log::set_logger(&OPENED).expect("no other logger");
    log::set_max_level(log::LevelFilter::Trace);
    let sharded: Vec<&str> =
        DECODER.into_iter().filter(|name| *name != "model.safetensors").chain(SHARDED).collect();
    let encoder_files: Vec<&str> =
        ["config.json", "model.safetensors", "tokenizer.json"].into_iter().chain(ENCODER).collect();
    for (dir, expected) in
        [(decoder(false), DECODER.to_vec()), (decoder(true), sharded), (encoder(), encoder_files)]
    {
        ModelFiles::open(dir.path()).expect("a model");
        let opened = OPENED.0.lock().expect("a list").clone();
        let mut opened: Vec<&Path> =
            opened.iter().filter_map(|path| path.strip_prefix(dir.path()).ok()).collect();
        let mut expected: Vec<&Path> = expected.into_iter().map(Path::new).collect();
        opened.sort();
        expected.sort();
        assert_eq!(opened, expected);
    }
}

#[test]
fn a_model_says_what_it_can_do() {
    let llama = decoder(false);
    let files = ModelFiles::open(llama.path()).expect("a model");
    assert_eq!((files.kind(), files.abilities()), (ModelKind::Decoder, vec![Ability::Generate]));
    assert!(files.embedding.is_none() && files.labels.is_none());
    assert_eq!(files.config, fs::read_to_string(llama.path().join("config.json")).expect("a config"));
    let tokenizer = files.tokenizer.expect("a tokenizer");
    assert!(tokenizer.eos().contains(&7), "`generation_config.json` ends texts: {:?}", tokenizer.eos());
    assert!(tokenizer.chat_template().is_ok());

    let bert = encoder();
    let files = ModelFiles::open(bert.path()).expect("a model");
    assert_eq!(
        (files.kind(), files.abilities()),
        (ModelKind::Encoder, vec![Ability::Embed, Ability::Classify])
    );
    assert!(files.can(Ability::Classify) && !files.can(Ability::Generate));
    assert_eq!(files.labels.expect("a head").names.len(), 3);
    let embedding = files.embedding.expect("an encoder");
    assert_eq!((embedding.max_seq_length, embedding.prompts["query"].as_str()), (Some(40), "q: "));
    assert_eq!((embedding.dense.len(), embedding.width(64), embedding.is_declared), (1, 8, true));

    let whisper = ModelFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words"))
        .expect("a model");
    assert_eq!(whisper.abilities(), [Ability::Transcribe]);
    assert!(whisper.expect(ModelKind::Decoder).is_ok());
    let error = whisper.expect(ModelKind::Encoder).expect_err("it writes");
    assert_eq!(error.to_string(), "`whisper` is a decoder: it can transcribe");
    assert!(whisper.generation.json.is_object());

    let demo = ModelFiles::demo().expect("a model");
    assert_eq!((demo.name.as_str(), demo.abilities()), ("demonstration model", vec![Ability::Generate]));
    assert!(demo.tokenizer.is_ok() && demo.generation.json.is_object());
    let random = ModelFiles::random("tiny", &demo.config, Dtype::F16).expect("a shape");
    assert!(random.can(Ability::Generate) && random.tokenizer.is_err());
    let random = ModelFiles::random("tiny", &files.config, Dtype::F16).expect("a shape");
    assert!(random.can(Ability::Classify) && random.embedding.is_some());
    assert!(matches!(
        ModelFiles::random("tiny", &demo.config, Dtype::Q8_0),
        Err(CheckpointError::RandomDtype { found: Dtype::Q8_0 })
    ));
}

#[test]
fn optional_files_may_be_absent() {
    let dir = decoder(false);
    for name in ["generation_config.json", "tokenizer_config.json", "chat_template.json"] {
        fs::remove_file(dir.path().join(name)).expect("it was there");
        assert!(ModelFiles::open(dir.path()).expect(name).tokenizer.is_ok(), "{name}");
    }
    let generation = ModelFiles::open(dir.path()).expect("a model").generation;
    assert_eq!(Sampling::from(&generation), Sampling::from(&GenerationConfig::default()));
    fs::remove_file(dir.path().join("tokenizer.json")).expect("it was there");
    let files = ModelFiles::open(dir.path()).expect("a model of token ids");
    assert!(files.tokenizer.expect_err("no tokenizer").to_string().contains("`tokenizer.json`"));
    fs::remove_file(dir.path().join("model.safetensors")).expect("it was there");
    assert!(matches!(error(dir.path()), CheckpointError::NoWeights { dir: named } if named == dir.path()));
    fs::remove_file(dir.path().join("config.json")).expect("it was there");
    assert!(
        matches!(error(dir.path()), CheckpointError::Io { path, .. } if path == dir.path().join("config.json"))
    );

    let dir = encoder();
    for name in ["sentence_bert_config.json", "config_sentence_transformers.json", "modules.json"] {
        fs::remove_file(dir.path().join(name)).expect("it was there");
        ModelFiles::open(dir.path()).expect(name);
    }
    assert!(!ModelFiles::open(dir.path()).expect("a model").embedding.expect("an encoder").is_declared);
}

#[test]
fn recommended_sampling() {
    let sampling = |json: serde_json::Value| {
        let dir = decoder(false);
        write(&dir.path().join("generation_config.json"), json);
        Sampling::from(&ModelFiles::open(dir.path()).expect("a model").generation)
    };
    assert_eq!(sampling(serde_json::json!({})), Sampling::default());
    let all = serde_json::json!({
        "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.5
    });
    let expected = Sampling {
        temperature: 0.6,
        top_k: 20,
        top_p: 0.9,
        min_p: 0.1,
        repetition_penalty: 1.5,
        ..Sampling::default()
    };
    assert_eq!(sampling(all), expected);
    assert_eq!(sampling(serde_json::json!({ "do_sample": false, "temperature": 0.6 })), Sampling::greedy());
    let dir = decoder(false);
    let path = dir.path().join("generation_config.json");
    write(&path, serde_json::json!({ "top_k": "many" }));
    assert!(matches!(error(dir.path()), CheckpointError::Setting { path: named, .. } if named == path));
}

// --- hostile folders -----------------------------------------------------------------------------------------

/// Replaces each file of a folder, one after the other, by what `place` puts there, and expects `refused` of the error.
fn each_file(dir: &TempDir, names: &[&str], place: &dyn Fn(&Path), refused: &dyn Fn(&Path, CheckpointError)) {
    for name in names {
        let path = dir.path().join(name);
        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).expect("it is there");
        place(&path);
        refused(&path, error(dir.path()));
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.expect("it was put there");
        fs::rename(&aside, &path).expect("it can be put back");
    }
    ModelFiles::open(dir.path()).expect("all as it was");
}

/// [`each_file`] of every file that a model may have.
fn each_file_of_all(place: &dyn Fn(&Path), refused: &dyn Fn(&Path, CheckpointError)) {
    each_file(&decoder(false), &DECODER, place, refused);
    each_file(&decoder(true), &SHARDED, place, refused);
    each_file(&encoder(), &ENCODER, place, refused);
    let jinja = decoder(false);
    fs::write(jinja.path().join("chat_template.jinja"), "a").expect("it can be written");
    each_file(&jinja, &["chat_template.jinja"], place, refused);
}

/// Expects that `path` is named as something else than a file.
fn not_a_file(kind: &str) -> impl Fn(&Path, CheckpointError) {
    let kind = kind.to_string();
    move |path: &Path, error: CheckpointError| {
        let message = format!("`{}` cannot be read: it is {kind}, expected a regular file", path.display());
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn a_folder_is_no_file() {
    each_file_of_all(&|path| fs::create_dir(path).expect("a folder"), &not_a_file("a folder"));
}

#[cfg(unix)]
#[test]
fn a_device_is_no_file() {
    // One that never ends, and one that ends at once.
    for device in ["/dev/zero", "/dev/null"] {
        let link = |path: &Path| std::os::unix::fs::symlink(device, path).expect("a link");
        each_file_of_all(&link, &not_a_file("a device"));
    }
}

#[cfg(unix)]
#[test]
fn a_pipe_is_no_file() {
    let pipe = |path: &Path| {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.expect("`mkfifo` runs").success());
    };
    each_file_of_all(&pipe, &not_a_file("a named pipe"));
}

#[cfg(unix)]
#[test]
fn links_lead_to_files() {
    let (real, links) = (encoder(), TempDir::new().expect("a folder"));
    for entry in fs::read_dir(real.path()).expect("a folder") {
        let entry = entry.expect("an entry");
        std::os::unix::fs::symlink(entry.path(), links.path().join(entry.file_name())).expect("a link");
    }
    ModelFiles::open(links.path()).expect("a model");
    // One that leads to itself.
    let path = links.path().join("modules.json");
    fs::remove_file(&path).expect("it is there");
    std::os::unix::fs::symlink(&path, &path).expect("a link");
    assert!(matches!(error(links.path()), CheckpointError::Io { path: named, .. } if named == path));
}

#[test]
fn a_file_without_end_is_not_read() {
    // Sparse: it takes no room on the disk.
    let huge = |path: &Path| fs::File::create(path).and_then(|file| file.set_len(1 << 40)).expect("a file");
    each_file_of_all(&huge, &|path, error| {
        let name = path.display().to_string();
        match error {
            CheckpointError::TooLarge { path: named, found_bytes, limit_bytes } => {
                assert_eq!((named.as_path(), found_bytes), (path, 1 << 40));
                assert!((1 << 20..1 << 30).contains(&limit_bytes), "{name}: {limit_bytes}");
            }
            // A container of tensors may have any size, and is mapped; its header is what is wrong.
            other => {
                assert!(name.ends_with(".safetensors"), "{name}: {other}");
                assert!(
                    other.to_string().contains(&format!("`{name}` is not a valid checkpoint")),
                    "{other}"
                );
            }
        }
    });
}

#[test]
fn names_stay_in_the_folder() {
    let dir = decoder(true);
    for name in ["../model.safetensors", "/", "/etc/passwd", "..", ".", "a/b", ""] {
        let index = serde_json::json!({ "weight_map": { "model.norm.weight": name } });
        write(&dir.path().join("model.safetensors.index.json"), index);
        let error = error(dir.path()).to_string();
        assert!(error.contains("is not the name of a file in the folder"), "{name}: {error}");
    }
    let dir = encoder();
    for path in ["../1_Pooling", "/", "/etc", "..", "a/b"] {
        let modules = serde_json::json!([
            { "path": "", "type": "Transformer" }, { "path": path, "type": "Pooling" }
        ]);
        write(&dir.path().join("modules.json"), modules);
        let error = error(dir.path()).to_string();
        assert!(error.contains(&format!("`path` is `{path}`")), "{error}");
    }
    let module = serde_json::json!({ "path": "", "type": "Transformer" });
    write(&dir.path().join("modules.json"), vec![module; 17].into());
    assert!(error(dir.path()).to_string().contains("17 modules, expected at most 16"));
}

#[test]
fn a_tokenizer_by_itself() {
    let dir = TempDir::new().expect("a folder");
    fs::copy(golden("llama").join("tokenizer.json"), dir.path().join("tokenizer.json")).expect("a copy");
    let tokenizer = open_tokenizer(dir.path()).expect("a tokenizer");
    assert!(tokenizer.eos().is_empty());
    write(&dir.path().join("config.json"), serde_json::json!({ "eos_token_id": 7 }));
    assert_eq!(open_tokenizer(dir.path()).expect("a tokenizer").eos(), [7]);
    fs::create_dir(dir.path().join("generation_config.json")).expect("a folder");
    assert!(matches!(open_tokenizer(dir.path()), Err(CheckpointError::NotAFile { .. })));
}

// --- what files say ------------------------------------------------------------------------------------------

/// The config of a golden model, with the keys of `changes` in place of its own.
fn config(model: &str, changes: &serde_json::Value) -> serde_json::Value {
    let bytes = fs::read(folder(model).join("config.json")).expect("a config");
    let mut config: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

/// The folder of a golden model, or of a model in `assets`.
fn folder(model: &str) -> PathBuf {
    let golden = golden(model);
    if golden.exists() { golden } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(model) }
}

/// A copy of a golden model, with the keys of `changes` in its config.
fn model_with(model: &str, changes: serde_json::Value) -> TempDir {
    let dir = TempDir::new().expect("a folder");
    copy(&folder(model), dir.path());
    write(&dir.path().join("config.json"), config(model, &changes));
    dir
}

fn refused(config: &str) -> String {
    match wginfer::models::open(config) {
        Ok(_) => panic!("{} was read", &config[..config.len().min(200)]),
        Err(error) => error.to_string(),
    }
}

/// Every key of every family, by the type of its default: what is no such value is refused by name, with its line.
#[test]
fn every_key_has_a_type_and_a_range() {
    let huge = ["-1", "9223372036854775808", "18446744073709551617", "1e300", "1e999", "-1e999", "0.5"];
    let wholes = [&huge[..], &["\"32\"", "[]", "{}", "true"]].concat();
    let reals = ["-1", "1e300", "1e999", "\"1\"", "[1]", "{}", "false"];
    let mut n_keys = 0;
    for model_type in wginfer::models::architectures() {
        for (key, default) in wginfer::models::defaults(model_type).expect("a family") {
            let (wrong, written): (&[&str], _) = match &default {
                serde_json::Value::Number(n) if n.is_u64() => (&wholes, format!("{n}.0")),
                serde_json::Value::Number(n) => (&reals, n.to_string()),
                serde_json::Value::Bool(flag) => (&["0", "\"true\"", "[]", "{}"], flag.to_string()),
                serde_json::Value::String(_) if key != "model_type" => {
                    (&["0", "\"poetry\"", "[]", "{}"], default.to_string())
                }
                _ => continue,
            };
            n_keys += 1;
            let config = |value: &str| {
                format!("{{\n\"model_type\": \"{model_type}\",\n\"_\": 1e999,\n\"{key}\":\n {value}\n}}")
            };
            for value in wrong {
                let error = refused(&config(value));
                let found =
                    format!("`config.json`, line 5: `{key}` is `{}`, expected ", value.trim_matches('"'));
                let quoted = format!("`config.json`, line 5: `{key}` is `{value}`, expected ");
                assert!(error.starts_with(&found) || error.starts_with(&quoted), "{model_type}: {error}");
            }
            // A float that is whole, and `null`, which is as if the key were absent.
            for value in [&written, "null"] {
                if let Err(e) = wginfer::models::open(&config(value)) {
                    panic!("{model_type} {key}: {e}");
                }
            }
        }
    }
    assert!(n_keys > 100, "{n_keys} keys");
}

#[test]
fn numbers_that_contradict_each_other_are_named() {
    let json = |value: &str| -> serde_json::Value { serde_json::from_str(value).expect("JSON") };
    for (model, changes, words) in [
        ("llama", r#"{"num_hidden_layers": 1000000000}"#, "`num_hidden_layers` is `1000000000`, expected"),
        (
            "llama",
            r#"{"num_hidden_layers": 0}"#,
            "`num_hidden_layers` is `0`, expected a whole number from 1",
        ),
        ("llama", r#"{"head_dim": 14}"#, "`head_dim` is `14`, expected a multiple of 4, at most 256"),
        ("llama", r#"{"head_dim": 512}"#, "`head_dim` is `512`, expected a whole number from 1 to 256"),
        (
            "llama",
            r#"{"num_key_value_heads": 3}"#,
            "`num_key_value_heads` is `3`, expected a divisor of the 4",
        ),
        (
            "llama",
            r#"{"head_dim": null, "num_attention_heads": 5}"#,
            "`num_attention_heads` is `5`, expected",
        ),
        ("llama", r#"{"rope_theta": 0}"#, "`rope_theta` is `0`"),
        (
            "llama",
            r#"{"rope_parameters": {"rope_theta": 1e300}}"#,
            "`rope_parameters.rope_theta` is `1e+300`",
        ),
        ("llama", r#"{"rope_parameters": {"rope_type": "linear", "factor": 0}}"#, "factor` is `0`"),
        (
            "llama",
            r#"{"rope_scaling": {"type": "longrope", "factor": 4}}"#,
            "`rope_scaling.long_factor` is missing, expected a list of 8 numbers",
        ),
        ("mistral-window", r#"{"sliding_window": 0}"#, "`sliding_window` is `0`"),
        ("mistral-window", r#"{"sliding_window": 4294967297}"#, "`sliding_window` is `4294967297`"),
        (
            "qwen2",
            r#"{"layer_types": ["full_attention"]}"#,
            "`layer_types` is `a list of 1`, expected one of 2",
        ),
        (
            "qwen3",
            r#"{"layer_types": ["full_attention", "poetry"]}"#,
            "`layer_types[1]` is `poetry`, expected `full_attention` or `sliding_attention`",
        ),
        ("qwen3-moe", r#"{"num_experts_per_tok": 9}"#, "`num_experts_per_tok` is `9`"),
        ("qwen3-moe", r#"{"mlp_only_layers": ["all"]}"#, "`mlp_only_layers`"),
        ("mixtral", r#"{"num_local_experts": 513}"#, "`num_local_experts` is `513`"),
        ("gpt-oss", r#"{"swiglu_limit": 6}"#, "`swiglu_limit` is `6`, expected 7"),
        (
            "gpt-oss",
            r#"{"quantization_config": {"quant_method": "gptq"}}"#,
            "`quantization_config` is `gptq`",
        ),
        ("modernbert-classifier", r#"{"layer_types": [1, 2]}"#, "`layer_types[0]` is `1`"),
        ("modernbert-classifier", r#"{"local_attention": 1}"#, "`local_attention` is `1`"),
        ("gpt2", r#"{"n_head": 3}"#, "`n_head` is `3`, expected a divisor of the width 64"),
        ("bert-classifier", r#"{"num_attention_heads": 64}"#, "`num_attention_heads` is `64`"),
        ("bert-classifier", r#"{"is_decoder": true}"#, "`is_decoder` is `true`"),
        (
            "roberta-classifier",
            r#"{"pad_token_id": 200}"#,
            "`max_position_embeddings` is `130`, expected more than",
        ),
        ("whisper-words", r#"{"decoder_attention_heads": 7}"#, "`decoder_attention_heads` is `7`"),
        ("whisper-words", r#"{"max_source_positions": 100000000}"#, "`max_source_positions` is `100000000`"),
    ] {
        let error = refused(&config(model, &json(changes)).to_string());
        assert!(error.contains(words), "{model} {changes}: {error}");
    }
}

#[test]
fn configs_as_people_write_them() {
    let read = |config: &str| wginfer::models::open(config).map(|a| a.shape()).expect(config);
    let layers = |config: &str| read(config).n_layers();
    // The last of two equal keys counts.
    assert_eq!(layers(r#"{"model_type": "gpt2", "n_layer": 3, "n_layer": 5}"#), 5);
    assert_eq!(layers(r#"{"n_layer": 3.0, "n_head": 1.2e1, "model_type": "gpt2"}"#), 3);
    // What nobody reads may be anything.
    let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(layers(&format!(r#"{{"model_type": "gpt2", "x": {nested}, "y": 1e999, "n_layer": 3}}"#)), 3);
    let error = refused(&format!(r#"{{"model_type": "gpt2", "n_layer": {nested}}}"#));
    assert!(error.contains("`n_layer` is `[[[[") && error.len() < 300, "{error}");
    for (config, words) in [
        (nested.as_str(), "`config.json`: "),
        ("", "`config.json`: EOF while parsing"),
        ("[]", "`config.json`: "),
        ("{", "`config.json`: EOF"),
        ("{\n\"model_type\": \"gpt2\",\n}", "at line 3"),
        ("{}", "`model_type` is missing, expected one of `bert`"),
        (r#"{"model_type": 3}"#, "`model_type` is `3`, expected a text"),
        (r#"{"model_type": "mamba"}"#, "architecture `mamba` is not supported"),
        (
            r#"{"model_type": "gpt2", "quantization_config": {"quant_method": "awq"}}"#,
            "is `awq`, expected weights in",
        ),
    ] {
        let error = refused(config);
        assert!(error.contains(words), "{error}");
    }
    // Absent Mistral has a window, `null` is none.
    let windows = |keys: &str| read(&format!(r#"{{"model_type": "mistral"{keys}}}"#)).attention[0].window;
    assert_eq!([windows(""), windows(r#", "sliding_window": null"#)], [Some(4096), None]);
    let heads = |keys: &str| read(&format!(r#"{{"model_type": "mistral"{keys}}}"#)).attention[0].n_kv_heads;
    assert_eq!([heads(""), heads(r#", "num_key_value_heads": null"#)], [8, 32]);
    // Each second or sixth layer sees all keys, if no list says which.
    let windows = |config: &str| {
        let attention = read(config).attention;
        attention.iter().map(|a| a.window.unwrap_or(0)).collect::<Vec<_>>()
    };
    let gemma2 = r#"{"model_type": "gemma2", "num_hidden_layers": 3, "sliding_window": 7}"#;
    assert_eq!(windows(gemma2), [7, 0, 7]);
    let gemma3 = |keys: &str| {
        windows(&format!(
            r#"{{"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 9{keys}}}"#
        ))
    };
    assert_eq!(gemma3(""), [9, 9, 9, 9, 9, 0, 9]);
    assert_eq!(gemma3(r#", "sliding_window_pattern": 2"#), [9, 0, 9, 0, 9, 0, 9]);
    let caps = |keys: &str| read(&format!(r#"{{"model_type": "gemma2"{keys}}}"#)).attention[0].softcap;
    assert_eq!([caps(""), caps(r#", "attn_logit_softcapping": null"#)], [Some(50.0), None]);
    // The text part of a model that also sees.
    let text = r#"{"model_type": "gemma3", "text_config": {"num_hidden_layers": 3}, "vision_config": {}}"#;
    assert_eq!((read(text).architecture, layers(text)), ("gemma3_text", 3));
    let error = refused("{\"model_type\": \"gemma3\", \"text_config\": {\n\"num_hidden_layers\": 0}}");
    assert!(error.contains("line 2: `text_config.num_hidden_layers` is `0`, expected"), "{error}");
    // Its head is tied as the outer config says.
    for model_type in ["gemma3", "mistral3"] {
        let is_tied = |outer: &str, inner: &str| {
            read(&format!(r#"{{"model_type": "{model_type}"{outer}, "text_config": {{{inner}}}}}"#))
                .ties_embeddings
        };
        for inner in ["", r#""tie_word_embeddings": false"#, r#""tie_word_embeddings": true"#] {
            assert!(is_tied("", inner), "{model_type}, {inner}: the default of transformers");
            assert!(is_tied(r#", "tie_word_embeddings": true"#, inner), "{model_type}, {inner}");
            assert!(!is_tied(r#", "tie_word_embeddings": false"#, inner), "{model_type}, {inner}");
        }
        let wrong =
            format!(r#"{{"model_type": "{model_type}", "tie_word_embeddings": 1, "text_config": {{}}}}"#);
        let error = refused(&wrong);
        assert!(
            error.contains("line 1: `tie_word_embeddings` is `1`, expected `true` or `false`"),
            "{error}"
        );
    }
    // The layers from `max_window_layers` on.
    let qwen = read(r#"{"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 64}"#);
    assert_eq!(qwen.attention.iter().filter(|a| a.window == Some(64)).count(), 4);
}

/// Keys that one family has: what follows from them, and what is said of wrong ones.
#[test]
fn keys_of_one_family() {
    // SmolLM3's window is that of layers with no rotation, unless their types are listed.
    let windows = |keys: &str| {
        let config = format!(
            r#"{{"model_type": "smollm3", "num_hidden_layers": 5, "sliding_window": 7, "use_sliding_window": true{keys}}}"#
        );
        let shape = wginfer::models::open(&config).map(|a| a.shape()).expect(keys);
        shape.attention.iter().map(|a| a.window.unwrap_or(0)).collect::<Vec<_>>()
    };
    assert_eq!(windows(""), [0, 0, 0, 7, 0]);
    assert_eq!(windows(r#", "no_rope_layer_interval": 2"#), [0, 7, 0, 7, 0]);
    assert_eq!(windows(r#", "no_rope_layers": [0, 1, 1, 0, 1, 0]"#), [7, 0, 0, 7, 0]);
    assert_eq!(windows(r#", "use_sliding_window": false"#), [0; 5]);
    let listed = r#", "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention",
        "full_attention"]"#;
    assert_eq!(windows(listed), [7, 0, 0, 0, 0]);
    for (config, words) in [
        (
            r#"{"model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [1, 0]}"#,
            "`no_rope_layers` is `[1, 0]`, expected a list of 3 numbers: 1 for a layer that rotates",
        ),
        (r#"{"model_type": "smollm3", "no_rope_layer_interval": 0}"#, "is `0`, expected a whole number"),
        // GPT-NeoX's own names of the keys of its rotation.
        (r#"{"model_type": "gpt_neox", "rotary_pct": 0.001}"#, "is `0.001`, expected a number that rotates"),
        (r#"{"model_type": "gpt_neox", "rotary_emb_base": 1}"#, "is `1`, expected a number from 2"),
        (
            r#"{"model_type": "ministral3", "rope_parameters": {"llama_4_scaling_beta": -1}}"#,
            "`rope_parameters.llama_4_scaling_beta` is `-1`, expected a number from 0",
        ),
        (
            r#"{"model_type": "phi3", "rope_scaling": {"type": "su", "short_factor": [1]}}"#,
            "`rope_scaling.long_factor` is missing, expected a list of 48 numbers",
        ),
    ] {
        let error = refused(config);
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_config_that_is_no_text_is_named() {
    let dir = model_with("llama", serde_json::json!({}));
    let path = dir.path().join("config.json");
    let text = config("llama", &serde_json::json!({})).to_string();
    fs::write(&path, format!("\u{feff}{text}")).expect("it can be written");
    ModelFiles::open(dir.path()).expect("a byte order mark is no text");
    let utf16: Vec<u8> = format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let latin1 = [b"{\n\"a\": 1,\n\"name\": \"Caf", &[0xe9][..], b"\"}"].concat();
    for (bytes, words) in
        [(utf16, "line 1 has other bytes at position 0"), (latin1, "line 3 has other bytes")]
    {
        for name in ["config.json", "generation_config.json"] {
            let path = dir.path().join(name);
            fs::write(&path, &bytes).expect("it can be written");
            let error = error(dir.path());
            assert!(
                error.to_string().contains(&format!("`{}` is not UTF-8: {words}", path.display())),
                "{error}"
            );
            assert!(error.hint().expect("a hint").contains("UTF-8"));
            fs::write(&path, if name == "config.json" { text.as_str() } else { "{}" })
                .expect("it can be written");
        }
    }
}

/// What the weights show is held against the config when the model is opened, before anything is allocated.
#[test]
fn weights_decide_about_numbers_of_a_config() {
    for (model, key, value, words) in [
        (
            "llama",
            "num_hidden_layers",
            1000,
            "expected at most 2: the last layer's tensors are such as `model.layers.1.",
        ),
        (
            "llama",
            "vocab_size",
            1 << 28,
            "expected 384: tensor `model.embed_tokens.weight` has shape [384, 64]",
        ),
        ("llama", "hidden_size", 1 << 20, "expected 64: tensor `model.embed_tokens.weight`"),
        ("llama", "intermediate_size", 1 << 22, "expected 176: tensor `model.layers.0.mlp.down_proj.weight`"),
        ("qwen3", "intermediate_size", 175, "expected 176"),
        ("gpt2", "n_layer", 3, "expected at most 2"),
        ("gpt2", "n_positions", 1 << 28, "expected 256: tensor `transformer.wpe.weight`"),
        ("gpt2", "n_inner", 1 << 22, "expected 256"),
        ("bert-classifier", "num_hidden_layers", 12, "expected at most 2"),
        ("bert-classifier", "type_vocab_size", 1 << 28, "expected 2"),
        ("bert-classifier", "max_position_embeddings", 1 << 28, "expected 128"),
        ("roberta-classifier", "vocab_size", 50265, "expected 384"),
        ("distilbert-classifier", "n_layers", 6, "expected at most 2"),
        ("distilbert-classifier", "hidden_dim", 1 << 22, "expected 128"),
        ("modernbert-classifier", "intermediate_size", 1152, "expected 128"),
        ("whisper-words", "encoder_layers", 1024, "expected at most 2"),
        ("whisper-words", "decoder_layers", 4, "expected at most 3"),
        ("whisper-words", "max_target_positions", 1 << 28, "expected 96"),
        ("whisper-words", "decoder_ffn_dim", 1 << 22, "expected 192"),
    ] {
        let dir = model_with(model, serde_json::json!({ key: value }));
        let error = error(dir.path()).to_string();
        assert!(error.contains(&format!("`{key}` is `{value}`, {words}")), "{model}: {error}");
    }
    // A key that is absent has the reference's default, which belongs to another model.
    let dir = model_with("llama", serde_json::json!({ "hidden_size": null }));
    assert!(error(dir.path()).to_string().contains("`hidden_size` is `4096`, expected 64"));
    // Fewer layers than the checkpoint has are a choice.
    let dir = model_with("llama", serde_json::json!({ "num_hidden_layers": 1 }));
    ModelFiles::open(dir.path()).expect("a model of one layer");
}

#[test]
fn numbers_of_a_generation_config_have_ranges() {
    for (json, words) in [
        (r#"{"temperature": -1}"#, "line 1: `temperature` is `-1`, expected a number from 0 to 100"),
        ("{\n\n\"temperature\": 1e999}", "line 3: `temperature` is `1e999`"),
        (r#"{"temperature": "hot"}"#, "`temperature` is `\"hot\"`"),
        (r#"{"top_k": -1}"#, "`top_k` is `-1`, expected a whole number from 0"),
        (r#"{"top_k": 4294967296}"#, "`top_k` is `4294967296`"),
        (r#"{"top_p": 0}"#, "`top_p` is `0`, expected a number above 0, at most 1"),
        (r#"{"top_p": 2.5}"#, "`top_p` is `2.5`"),
        (r#"{"min_p": 1.5}"#, "`min_p` is `1.5`"),
        (r#"{"repetition_penalty": 0}"#, "`repetition_penalty` is `0`, expected a number from 0.01 to 100"),
        (r#"{"do_sample": "yes"}"#, "`do_sample` is `\"yes\"`, expected `true` or `false`"),
        ("[]", "generation_config.json`: "),
        ("{", "generation_config.json`: EOF"),
    ] {
        let dir = decoder(false);
        let path = dir.path().join("generation_config.json");
        fs::write(&path, json).expect("it can be written");
        let error = error(dir.path());
        assert!(matches!(&error, CheckpointError::Setting { path: named, .. } if *named == path), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    // Keys of speech models are read only of those.
    let dir = decoder(false);
    write(
        &dir.path().join("generation_config.json"),
        serde_json::json!({ "alignment_heads": "none", "top_k": 2.0 }),
    );
    assert_eq!(ModelFiles::open(dir.path()).expect("a model").generation.top_k, Some(2));
    for (json, words) in [
        (
            serde_json::json!({ "alignment_heads": [[0, 0], [9, 1]] }),
            "`alignment_heads` is `layer 9, head 1`",
        ),
        (serde_json::json!({ "alignment_heads": [[-1, 0]] }), "expected a list of pairs: a layer and a head"),
        (serde_json::json!({ "suppress_tokens": [1, "two"] }), "`suppress_tokens[1]` is `\"two\"`"),
        (serde_json::json!({ "suppress_tokens": [1, -2] }), "`suppress_tokens[1]` is `-2`"),
        (serde_json::json!({ "max_initial_timestamp_index": -1 }), "`max_initial_timestamp_index` is `-1`"),
        (serde_json::json!({ "is_multilingual": "no" }), "`is_multilingual` is"),
    ] {
        let dir = model_with("whisper-words", serde_json::json!({}));
        write(&dir.path().join("generation_config.json"), json);
        let error = error(dir.path()).to_string();
        assert!(error.contains(words) && error.contains("generation_config.json`, line 1: "), "{error}");
    }
}

/// As in transformers, the keys of `config.json` count where there is no `generation_config.json`.
#[test]
fn a_config_may_have_the_keys_of_a_generation_config() {
    let lists = serde_json::json!({
        "suppress_tokens": [438, 523, -1], "begin_suppress_tokens": [220, 496],
        "forced_decoder_ids": [[1, 499], [2, 501]], "temperature": 0.5
    });
    let dir = model_with("whisper-words", lists);
    let with_both = ModelFiles::open(dir.path()).expect("a model").generation;
    assert!(with_both.path.ends_with("generation_config.json") && with_both.temperature.is_none());
    fs::remove_file(dir.path().join("generation_config.json")).expect("it was there");
    let found = ModelFiles::open(dir.path()).expect("a model").generation;
    assert_eq!(found.path, dir.path().join("config.json"));
    assert_eq!((found.temperature, found.speech.language), (Some(0.5), Some(499)));
    assert_eq!(found.speech.suppress_tokens, Some(vec![438, 523]));
    assert_eq!(found.speech.begin_suppress_tokens, Some(vec![220, 496]));
    let expected = with_both.speech.alignment_heads.as_slice();
    assert_eq!((found.speech.alignment_heads.len(), expected), (0, &[[2, 0], [2, 1]][..]));
}

#[test]
fn a_key_that_nobody_reads_may_hold_anything() {
    let dir = model_with("llama", serde_json::json!({}));
    fs::remove_file(dir.path().join("generation_config.json")).expect("it was there");
    let path = dir.path().join("config.json");
    let config = fs::read_to_string(&path).expect("a config");
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    for value in ["1e999", "-1e999", "[1e999]", "{\"x\": 1e999}", "1000000000000000019884624838656", &deep] {
        fs::write(&path, config.replacen('{', &format!("{{\"other\": {value},"), 1)).expect("a config");
        let found = ModelFiles::open(dir.path()).map(|_| ());
        found.unwrap_or_else(|error| panic!("{value}: {error}"));
    }
}

#[test]
fn labels_as_people_write_them() {
    let labels = |keys: serde_json::Value| {
        let config = config("bert-classifier", &keys).to_string();
        let labels = wginfer::models::open(&config).map(|a| a.labels().map(|labels| labels.names.clone()));
        labels.map(|names| names.expect("a head")).map_err(|e| e.to_string())
    };
    let found = |id2label: serde_json::Value| labels(serde_json::json!({ "id2label": id2label }));
    assert_eq!(found(serde_json::json!({ "1": "b", "0": "a" })).expect("labels"), ["a", "b"]);
    assert_eq!(found(serde_json::json!({ "0": 0, "1": 7 })).expect("labels"), ["0", "7"]);
    assert_eq!(found(serde_json::json!({ " 0": 1.5, "01": -1 })).expect("labels"), ["1.5", "-1"]);
    let ten: serde_json::Map<String, serde_json::Value> =
        (0..12).map(|i| (i.to_string(), format!("x{i}").into())).collect();
    assert_eq!(found(ten.into()).expect("labels")[10..], ["x10", "x11"]);
    assert_eq!(found(serde_json::Value::Null).expect("labels"), ["LABEL_0", "LABEL_1"]);
    let three = serde_json::json!({ "id2label": null, "num_labels": 3 });
    assert_eq!(labels(three).expect("labels"), ["LABEL_0", "LABEL_1", "LABEL_2"]);
    for (id2label, words) in [
        (serde_json::json!({ "0": "a", "2": "b" }), "`id2label` is `0, 2`, expected the ids 0 to 1"),
        (serde_json::json!({ "a": 0 }), "`id2label.a` is `0`, expected a whole number as its key"),
        (serde_json::json!({ "0": ["a"] }), "`id2label.0` is `[\"a\"]`, expected the name of a label"),
        (serde_json::json!({ "0": null }), "`id2label.0` is `null`"),
        (serde_json::json!({}), "`id2label` is `{}`, expected a label or more"),
        (serde_json::json!(["a", "b"]), "`id2label` is `[\"a\",\"b\"]`, expected an object"),
    ] {
        let error = found(id2label).expect_err(words);
        assert!(error.contains(words), "{error}");
    }
    let many = serde_json::json!({ "id2label": null, "num_labels": 1u64 << 40 });
    assert!(labels(many).expect_err("too many").contains("`num_labels` is `1099511627776`"));
    let problem = labels(serde_json::json!({ "problem_type": "poetry" })).expect_err("unknown");
    assert!(
        problem.contains("`problem_type` is `poetry`, expected `single_label_classification`"),
        "{problem}"
    );
}

#[test]
fn lists_of_a_speech_model_are_named_as_in_the_file() {
    let transcriber = |generation: serde_json::Value, heads: bool| {
        let dir = model_with("whisper-words", serde_json::json!({}));
        let path = dir.path().join("generation_config.json");
        write(&path, generation);
        let files = ModelFiles::open(dir.path()).expect("a model");
        let options = TranscribeOptions { word_timestamps: heads, ..TranscribeOptions::default() };
        let made = Transcriber::new(&files, options).map_err(|e| e.to_string());
        (made, path)
    };
    let (made, path) =
        transcriber(serde_json::json!({ "begin_suppress_tokens": [1, 2, 3, 4, 5, 6, 7] }), false);
    let expected = format!("`{}`: `begin_suppress_tokens` has 7 tokens, expected at most 4", path.display());
    assert_eq!(made.expect_err("too many"), expected);
    // Four, one of them twice, and tokens that the model does not have.
    let four = serde_json::json!({ "begin_suppress_tokens": [1, 2, 2, 3, 4, -1, 50256, 50257] });
    assert!(transcriber(four, false).0.is_ok());
    // No heads are as good as no list: words get times from the upper half of the decoder.
    for generation in [serde_json::json!({ "alignment_heads": [] }), serde_json::json!({})] {
        let transcriber = transcriber(generation, true).0.expect("a transcriber");
        let options = transcriber.engine_options(EngineOptions::default());
        assert_eq!(options.alignment_heads.len(), 8, "two layers of four heads");
    }
}

/// The defaults of transformers' config classes, as `config_defaults.py` wrote them.
#[test]
fn absent_keys_have_the_defaults_of_transformers() {
    let table: serde_json::Value =
        serde_json::from_str(include_str!("config_defaults.json")).expect("a table");
    for model_type in wginfer::models::architectures() {
        let found = wginfer::models::defaults(model_type).expect("a family");
        let expected = table[model_type].as_object().unwrap_or_else(|| panic!("no table of {model_type}"));
        let mut n_compared = 0;
        for (key, default) in &found {
            let Some(expected) = expected.get(key) else {
                // Without a default a key that the class does not know either changes nothing.
                let is_known = default.is_null() || NOT_IN_THE_REFERENCE.contains(&key.as_str());
                assert!(is_known, "{model_type}: `{key}` has no reference");
                continue;
            };
            assert!(
                same(default, expected),
                "{model_type}: `{key}` is {default}, in transformers {expected}"
            );
            n_compared += 1;
        }
        assert!(n_compared >= 8, "{model_type}: {n_compared} keys");
    }
}

/// Keys of earlier versions, which are no field of transformers' classes.
const NOT_IN_THE_REFERENCE: [&str; 6] = [
    "partial_rotary_factor",
    "position_embedding_type",
    "global_attn_every_n_layers",
    "sliding_window_pattern",
    // Gemma 3's, which is `global_rope_theta` in the table, and its other base.
    "rope_theta",
    "rope_local_base_freq",
];

/// Whether two defaults are the same number or value.
fn same(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    a == b || a.as_f64().is_some_and(|a| Some(a) == b.as_f64())
}
