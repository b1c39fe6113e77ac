//! Opening models: what a name is, what is read of a folder, and what lies in a file's place that is no file.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::TempDir;
use wginfer::checkpoint::{Ability, CheckpointError, GenerationConfig, ModelFiles, Source, open_tokenizer};
use wginfer::dtype::Dtype;
use wginfer::engine::Sampling;
use wginfer::models::ModelKind;

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
        matches!(refused(file.to_str().expect("UTF-8")), CheckpointError::NotAFolder { path } if path == file)
    );
    assert!(matches!(refused("a/b.gguf"), CheckpointError::Gguf { .. }));
    for name in ["owner/name", "Qwen/Qwen3-0.6B"] {
        assert!(matches!(refused(name), CheckpointError::HubName { name: found } if found == name));
        assert!(refused(name).hint().expect("a hint").contains(&format!("`hf download {name}")));
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
    assert_eq!(ModelFiles::open(dir.path()).expect("a model").generation, GenerationConfig::default());
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
    assert!(matches!(error(dir.path()), CheckpointError::Config { path: named, .. } if named == path));
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
