//! Models by name: what is downloaded, what is kept, and what a hub, a network and other programs can do to it.

#[path = "../common/mod.rs"]
mod common;
#[cfg(feature = "cli")]
mod program;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use server::{Fault, ON_HUB, Server, hash};
use tempfile::TempDir;
use wginfer::checkpoint::ModelFiles;
use wginfer::hub::{Hub, HubError, HubName, HubOptions};

/// A hub with a repository, and an empty cache.
struct Setup {
    server: Server,
    cache: TempDir,
}

/// The contents of a golden model, with what a repository has besides.
fn llama() -> Vec<(&'static str, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let read = |name: &str| fs::read(dir.join(name)).expect("a golden model");
    vec![
        ("config.json", read("config.json")),
        ("generation_config.json", read("generation_config.json")),
        ("model.safetensors", read("model.safetensors")),
        ("tokenizer.json", read("tokenizer.json")),
        ("pytorch_model.bin", vec![1; 20_000]),
        ("onnx/model.onnx", vec![2; 20_000]),
        ("README.md", b"# A model".to_vec()),
    ]
}

/// Bytes without a pattern.
fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..n).map(|_| next()).collect()
}

const BIG: &str = "m-Q8_0.gguf";
const N_BIG: usize = 700_001;

impl Setup {
    fn new() -> Setup {
        Setup { server: Server::start(), cache: TempDir::new().expect("a folder") }
    }

    /// A repository with one file.
    fn big() -> (Setup, Vec<u8>) {
        let (setup, big) = (Setup::new(), bytes(N_BIG, 1));
        setup.server.put("a/b", &[(BIG, big.clone())]);
        (setup, big)
    }

    fn options(&self) -> HubOptions {
        HubOptions {
            endpoint: self.server.endpoint.clone(),
            token: Some("secret".into()),
            cache_dir: self.cache.path().join("hub"),
            offline: false,
            timeout: Duration::from_millis(500),
            backoff: Duration::from_millis(1),
        }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.options()).expect("an address")
    }

    fn pull(&self, name: &str) -> Result<PathBuf, HubError> {
        self.hub().pull(&parsed(name), &mut |_| {})
    }

    fn open(&self, name: &str) -> Result<PathBuf, HubError> {
        self.hub().open(&parsed(name), &mut |_| {})
    }

    fn repo(&self) -> PathBuf {
        self.options().cache_dir.join("models--a--b")
    }

    /// The names of the blobs, complete or not.
    fn blobs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.repo().join("blobs")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

fn parsed(name: &str) -> HubName {
    HubName::parse(name).expect("a name")
}

/// The ranges that large files were asked for in.
fn ranges(server: &Server) -> Vec<Option<String>> {
    server.asked().into_iter().filter(|asked| asked.is_cdn).map(|asked| asked.range).collect()
}

// --- what is downloaded --------------------------------------------------------------------------------------

#[test]
fn a_folder_is_downloaded_once_and_only_what_a_model_is_made_of() {
    let setup = Setup::new();
    let files = llama();
    setup.server.put("a/b", &files);
    let mut last = None;
    let mut seen = Vec::new();
    let opened = ModelFiles::from_hub(&setup.hub(), &parsed("a/b"), &mut |at| {
        assert!(at.done_bytes <= at.total_bytes, "{at:?}");
        last = Some((at.done_bytes, at.total_bytes));
        if seen.last().is_none_or(|file| file != at.file) {
            seen.push(at.file.to_string());
        }
    });
    let opened = opened.expect("the model opens");
    assert_eq!(opened.name, "a/b");
    assert!(opened.tokenizer.is_ok());
    let total: usize = files[..4].iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(last, Some((total as u64, total as u64)));
    assert_eq!(seen, ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]);
    let asked = setup.server.asked();
    assert!(!asked.iter().any(|asked| asked.path.contains("pytorch") || asked.path.contains("onnx")));

    // The layout that other programs read.
    let path = setup.open("a/b").expect("it is there");
    let commit = fs::read_to_string(setup.repo().join("refs/main")).expect("a commit");
    assert_eq!(path, setup.repo().join("snapshots").join(&commit));
    for (name, content) in &files[..4] {
        assert_eq!(&fs::read(path.join(name)).expect("a file"), content, "{name}");
        #[cfg(unix)]
        assert_eq!(
            fs::read_link(path.join(name)).expect("a link"),
            Path::new("../../blobs").join(hash(content))
        );
    }
    assert_eq!(setup.blobs().len(), 4);
    // Nothing is asked of the hub when all is there.
    assert_eq!(setup.server.asked().len(), 0);
    let offline = HubOptions { offline: true, ..setup.options() };
    let again = Hub::new(offline).expect("an address").open(&parsed("a/b"), &mut |_| panic!("no download"));
    assert_eq!(again.expect("it is there"), path);
}

#[test]
fn every_file_that_a_model_may_have_is_downloaded() {
    let setup = Setup::new();
    let module = |kind: &str, path: &str| serde_json::json!({ "idx": 0, "name": "0", "path": path, "type": format!("sentence_transformers.models.{kind}") });
    let modules = serde_json::json!([
        module("Transformer", ""),
        module("Pooling", "1_Pooling"),
        module("Normalize", "2_Normalize")
    ]);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bert-classifier");
    let read = |name: &str| fs::read(dir.join(name)).expect("a golden model");
    let weights = read("model.safetensors");
    let tensors = wginfer::weights::Weights::from_bytes(weights.clone()).expect("tensors");
    let map =
        tensors.entries().iter().map(|entry| (entry.name.clone(), "model-00001-of-00001.safetensors".into()));
    let map: serde_json::Map<String, serde_json::Value> = map.collect();
    let index = serde_json::json!({ "weight_map": map });
    let wanted = [
        ("config.json", read("config.json")),
        ("tokenizer.json", read("tokenizer.json")),
        ("tokenizer_config.json", b"{}".to_vec()),
        ("special_tokens_map.json", b"{}".to_vec()),
        ("added_tokens.json", b"{}".to_vec()),
        ("chat_template.jinja", b"x".to_vec()),
        ("chat_template.json", br#"{"chat_template": "x"}"#.to_vec()),
        ("modules.json", modules.to_string().into_bytes()),
        ("sentence_bert_config.json", br#"{"max_seq_length": 9}"#.to_vec()),
        ("config_sentence_transformers.json", b"{}".to_vec()),
        (
            "1_Pooling/config.json",
            br#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#.to_vec(),
        ),
        ("model-00001-of-00001.safetensors", weights),
        ("model.safetensors.index.json", index.to_string().into_bytes()),
    ];
    setup.server.put("a/b", &wanted);
    let path = setup.pull("a/b").expect("it is there");
    for (name, _) in &wanted {
        assert!(path.join(name).is_file(), "{name}");
    }
    let embedding = ModelFiles::open(&path).expect("the model opens").embedding.expect("an encoder");
    assert_eq!((embedding.is_declared, embedding.max_seq_length), (true, Some(9)));
}

#[test]
fn gguf_files_are_chosen_and_parts_belong_together() {
    let setup = Setup::new();
    let files = [
        ("m-Q4_K_M.gguf", bytes(5000, 1)),
        ("m-Q8_0.gguf", bytes(6000, 2)),
        ("BF16/m-BF16-00001-of-00002.gguf", bytes(7000, 3)),
        ("BF16/m-BF16-00002-of-00002.gguf", bytes(8000, 4)),
    ];
    setup.server.put("a/b", &files);
    for (name, expected) in [("a/b", 0..1), ("a/b:q8_0", 1..2), ("a/b:BF16", 2..4)] {
        let path = setup.open(name).expect(name);
        assert!(path.ends_with(files[expected.start].0), "{name}: {}", path.display());
        for (file, content) in &files[expected] {
            let there = path.with_file_name(Path::new(file).file_name().expect("a name"));
            assert_eq!(&fs::read(there).expect("a file"), content);
        }
    }
    let Err(HubError::NoTag { found, .. }) = setup.open("a/b:Q5_K_M") else { panic!("there is none") };
    assert_eq!(found.len(), 3, "{found:?}");
}

#[test]
fn listings_have_pages() {
    let setup = Setup::new();
    let names: Vec<String> = (0..23).map(|i| format!("m-{i:02}-Q8_0.gguf")).collect();
    let files: Vec<(&str, Vec<u8>)> = names.iter().map(|name| (name.as_str(), bytes(10, 1))).collect();
    setup.server.put("a/b", &files);
    setup.server.page_size(5);
    assert!(setup.pull("a/b:m-22-Q8_0.gguf").expect("the last page").ends_with("m-22-Q8_0.gguf"));
}

#[test]
fn a_newer_version_is_pulled_and_the_older_used_until_then() {
    let setup = Setup::new();
    let mut files = llama();
    setup.server.put("a/b", &files);
    let old = setup.open("a/b").expect("it is there");
    files[1].1 = b"{\"temperature\": 0.25}".to_vec();
    setup.server.put("a/b", &files);
    setup.server.asked();
    assert_eq!(setup.open("a/b").expect("it is there"), old);
    assert_eq!(setup.server.asked().len(), 0);
    let new = setup.pull("a/b").expect("it is there");
    assert_ne!(new, old);
    assert_eq!(setup.open("a/b").expect("it is there"), new);
    // What has not changed is not downloaded again.
    let fetched: Vec<String> =
        setup.server.asked().into_iter().filter(|a| a.path.contains("/resolve/")).map(|a| a.path).collect();
    assert!(fetched.len() == 1 && fetched[0].ends_with("generation_config.json"), "{fetched:?}");
}

// --- networks ------------------------------------------------------------------------------------------------

#[test]
fn a_download_goes_on_where_it_was_cut() {
    let (setup, big) = Setup::big();
    setup
        .server
        .fault(BIG, &[Fault::Cut(100_000), Fault::Cut(1), Fault::Stall(300_000), Fault::Cut(0), Fault::None]);
    let path = setup.pull("a/b").expect("it arrives in the end");
    assert_eq!(fs::read(path).expect("a file"), big);
    let from = |n: usize| Some(format!("bytes={n}-"));
    assert_eq!(ranges(&setup.server), [None, from(100_000), from(100_001), from(400_001), from(400_001)]);
    assert_eq!(setup.blobs(), [hash(&big)]);
}

#[test]
fn a_later_process_goes_on_too() {
    let (setup, big) = Setup::big();
    setup.server.fault(BIG, &[Fault::Cut(123_456)]);
    setup.server.always(BIG, Fault::Close);
    let error = setup.pull("a/b").expect_err("the connection ends");
    assert!(matches!(&error, HubError::Network { .. }), "{error}");
    assert!(error.to_string().contains(BIG), "{error}");
    assert_eq!(setup.blobs(), [format!("{}.incomplete", hash(&big))]);
    // It is listed as a part, and can be removed by its name.
    let listed = setup.hub().list().expect("a cache");
    assert!(matches!(&listed[..], [model] if !model.is_complete && model.n_bytes == 123_456), "{listed:?}");
    assert!(matches!(setup.hub().open(&parsed("a/b"), &mut |_| {}), Err(HubError::Network { .. })));
    setup.server.mend();
    setup.server.asked();
    let mut first = None;
    let path = setup.hub().open(&parsed("a/b"), &mut |at| {
        first.get_or_insert(at.done_bytes);
    });
    assert_eq!(fs::read(path.expect("it arrives")).expect("a file"), big);
    assert_eq!(ranges(&setup.server), [Some("bytes=123456-".to_string())]);
    assert_eq!(first, Some(123_456));
}

#[test]
fn a_part_can_be_removed() {
    let (setup, _) = Setup::big();
    setup.server.fault(BIG, &[Fault::Cut(70_000)]);
    setup.server.always(BIG, Fault::Close);
    assert!(setup.pull("a/b:Q8_0").is_err());
    assert_eq!(setup.hub().remove(&parsed("a/b:Q8_0")).expect("a part"), 70_000);
    assert!(setup.blobs().is_empty() && setup.hub().list().expect("a cache").is_empty());
}

#[test]
fn what_servers_do_with_a_range() {
    let faults = [
        Fault::Whole,
        Fault::OtherRange,
        Fault::Status(503, "Retry-After: 0"),
        Fault::Status(429, "Retry-After: 0"),
        Fault::Status(500, ""),
        // A signature that is no longer valid.
        Fault::Status(403, ""),
        Fault::Length(N_BIG - 1),
        Fault::Length(10),
        Fault::More,
        Fault::Gzip,
        Fault::Chunked,
        Fault::Close,
        Fault::Stall(0),
    ];
    for fault in faults {
        for faults in [vec![fault.clone()], vec![Fault::Cut(50_000), fault.clone()]] {
            if matches!(faults[..], [Fault::Status(416, _)]) {
                continue; // no range was asked for
            }
            let (setup, big) = Setup::big();
            setup.server.fault(BIG, &faults);
            let path = setup.pull("a/b").unwrap_or_else(|error| panic!("{faults:?}: {error}"));
            assert_eq!(fs::read(path).expect("a file"), big, "{faults:?}");
            assert_eq!(setup.blobs(), [hash(&big)], "{faults:?}");
        }
    }
}

#[test]
fn wrong_content_is_never_kept() {
    // Once: it is downloaded again.
    for faults in [vec![Fault::Flip], vec![Fault::Cut(600_000), Fault::None]] {
        let (setup, big) = Setup::big();
        setup.server.fault(BIG, &faults);
        assert_eq!(fs::read(setup.pull("a/b").expect("it arrives")).expect("a file"), big);
    }
    // Whatever lies where the last attempt ended.
    for left in [vec![0; 1000], vec![0; N_BIG], vec![0; N_BIG + 1]] {
        let (setup, big) = Setup::big();
        fs::create_dir_all(setup.repo().join("blobs")).expect("a folder");
        fs::write(setup.repo().join("blobs").join(format!("{}.incomplete", hash(&big))), left)
            .expect("written");
        assert_eq!(fs::read(setup.pull("a/b").expect("it arrives")).expect("a file"), big);
    }
    // A blob that another program left unfinished.
    let (setup, big) = Setup::big();
    fs::create_dir_all(setup.repo().join("blobs")).expect("a folder");
    fs::write(setup.repo().join("blobs").join(hash(&big)), b"<html>Forbidden</html>").expect("written");
    assert_eq!(fs::read(setup.pull("a/b").expect("it arrives")).expect("a file"), big);
    // Always, of a large file and of a small one.
    for (file, content) in [(BIG, bytes(N_BIG, 1)), ("config.json", llama()[0].1.clone())] {
        let setup = Setup::new();
        let mut files = llama();
        files.push((BIG, bytes(N_BIG, 1)));
        setup.server.put("a/b", &files);
        setup.server.always(file, Fault::Flip);
        let name = if file == BIG { "a/b:Q8_0" } else { "a/b" };
        let error = setup.pull(name).expect_err("the content is wrong");
        let HubError::Corrupt { file: found, expected, .. } = &error else { panic!("{error}") };
        assert_eq!((found.as_str(), expected), (file, &hash(&content)));
        assert!(!setup.blobs().iter().any(|blob| blob.starts_with(expected)), "{:?}", setup.blobs());
        assert!(setup.hub().list().expect("a cache").iter().all(|model| !model.is_complete));
    }
}

#[test]
fn two_at_once_download_once() {
    let (setup, big) = Setup::big();
    setup.server.fault(BIG, &[Fault::Stall(100_000)]);
    let paths: Vec<PathBuf> = std::thread::scope(|scope| {
        let pull = || scope.spawn(|| setup.pull("a/b").expect("it arrives"));
        [pull(), pull(), pull()].into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    paths.iter().for_each(|path| assert_eq!(fs::read(path).expect("a file"), big));
    assert_eq!(ranges(&setup.server), [None, Some("bytes=100000-".to_string())]);
    assert_eq!(setup.blobs(), [hash(&big)]);
}

// --- refusals ------------------------------------------------------------------------------------------------

#[test]
fn refusals_say_what_to_do() {
    let (setup, _) = Setup::big();
    setup.server.put("Qwen/Qwen3-4B-GGUF", &[]);
    setup.server.put("other/qwen3-4b-gguf-fixed", &[]);
    let error = setup.pull("someone/Qwen3-4B-GGUF").expect_err("there is none");
    let HubError::NotFound { alike, .. } = &error else { panic!("{error}") };
    assert_eq!(alike, &["Qwen/Qwen3-4B-GGUF", "other/qwen3-4b-gguf-fixed"]);
    let hint = error.hint().expect("a hint");
    assert!(hint.contains("`Qwen/Qwen3-4B-GGUF`"), "{hint}");
    assert!(
        matches!(setup.pull("someone/quite-else"), Err(HubError::NotFound { alike, .. }) if alike.is_empty())
    );

    let hub_file = format!("{BIG}{ON_HUB}");
    setup.server.always(&hub_file, Fault::Status(403, "X-Error-Code: GatedRepo"));
    let error = setup.pull("a/b").expect_err("it is gated");
    assert!(matches!(&error, HubError::Gated { has_token: true, .. }), "{error}");
    assert!(error.hint().expect("a hint").contains("/a/b"), "{:?}", error.hint());
    let no_token = Hub::new(HubOptions { token: None, ..setup.options() }).expect("an address");
    setup.server.mend();
    setup.server.always(&hub_file, Fault::Status(401, "X-Error-Code: GatedRepo"));
    let error = no_token.pull(&parsed("a/b"), &mut |_| {}).expect_err("it is gated");
    assert!(matches!(&error, HubError::Gated { has_token: false, .. }), "{error}");
    assert!(error.hint().expect("a hint").contains("HF_TOKEN"));
    setup.server.mend();
    setup.server.always(&hub_file, Fault::Status(401, ""));
    assert!(matches!(setup.pull("a/b"), Err(HubError::Token { .. })));
    setup.server.mend();
    setup.server.always(&hub_file, Fault::Status(418, ""));
    assert!(matches!(setup.pull("a/b"), Err(HubError::Status { status: 418, .. })));
    setup.server.mend();
    setup.server.always(&hub_file, Fault::Status(403, "X-Error-Message: not from here"));
    let error = setup.pull("a/b").expect_err("it is refused").to_string();
    assert!(error.contains("403 (not from here)"), "{error}");
    setup.server.mend();
    setup.server.always(&hub_file, Fault::Status(429, "Retry-After: 3600"));
    let error = setup.pull("a/b").expect_err("nobody waits for so long").to_string();
    assert!(error.contains("wait for 3600 s"), "{error}");
    for (token, is_right) in [("hf_Abc-1", true), ("two words", false), ("né", false), ("a\nb", false)] {
        let hub = Hub::new(HubOptions { token: Some(token.into()), ..setup.options() });
        assert_eq!(hub.is_ok(), is_right, "{token}");
    }
    assert!(setup.blobs().iter().all(|blob| blob.ends_with(".incomplete")), "{:?}", setup.blobs());
}

#[test]
fn the_token_goes_to_the_hub_only() {
    let (setup, _) = Setup::big();
    let other = Server::start();
    other.put("a/b", &[(BIG, bytes(N_BIG, 1))]);
    let hub_file = format!("{BIG}{ON_HUB}");
    // To another server, which sends on to the server of its large files.
    setup.server.fault(&hub_file, &[Fault::Redirect(other.endpoint.clone())]);
    setup.pull("a/b").expect("it arrives");
    let here = setup.server.asked();
    assert!(here.iter().all(|asked| asked.token.as_deref() == Some("Bearer secret")), "{here:?}");
    let there = other.asked();
    assert_eq!(there.len(), 2);
    assert!(there.iter().all(|asked| asked.token.is_none()), "{there:?}");
}

#[test]
fn a_listing_cannot_leave_its_folder() {
    let sha = "0a".repeat(20);
    let file = |path: &str, oid: &str| {
        serde_json::json!([{ "type": "file", "path": path, "size": 1, "oid": oid }]).to_string()
    };
    let cases = [
        (format!("{{\"sha\": \"{sha}\"}}"), file("../../x-Q8_0.gguf", &sha)),
        (format!("{{\"sha\": \"{sha}\"}}"), file("/etc/x-Q8_0.gguf", &sha)),
        (format!("{{\"sha\": \"{sha}\"}}"), file("a\\..\\x-Q8_0.gguf", &sha)),
        (format!("{{\"sha\": \"{sha}\"}}"), file("x-Q8_0.gguf", "../../../x")),
        (format!("{{\"sha\": \"{sha}\"}}"), file("x-Q8_0.gguf", "")),
        (format!("{{\"sha\": \"{sha}\"}}"), file("x-Q8_0.gguf", &sha).replace("1,", "18446744073709551615,")),
        (format!("{{\"sha\": \"{sha}\"}}"), "[{".into()),
        (format!("{{\"sha\": \"{sha}\"}}"), "{}".into()),
        ("{\"sha\": \"../../../x\"}".into(), "[]".into()),
        ("{\"sha\": null}".into(), "[]".into()),
        ("<html>".into(), "[]".into()),
    ];
    for (info, tree) in cases {
        let setup = Setup::new();
        setup.server.page("/api/models/a/b/revision/main", 200, "", &info);
        setup.server.page(&format!("/api/models/a/b/tree/{sha}"), 200, "", &tree);
        let error = setup.pull("a/b").expect_err(&tree);
        assert!(matches!(&error, HubError::Listing { .. } | HubError::NoModel { .. }), "{tree}: {error}");
        assert!(!setup.options().cache_dir.exists(), "{tree}");
    }
    // Pages that lead to themselves, and redirects.
    let setup = Setup::new();
    let next =
        format!("Link: <{}/api/models/a/b/tree/{sha}?recursive=true>; rel=\"next\"", setup.server.endpoint);
    setup.server.page("/api/models/a/b/revision/main", 200, "", &format!("{{\"sha\": \"{sha}\"}}"));
    setup.server.page(&format!("/api/models/a/b/tree/{sha}"), 200, next.leak(), "[]");
    assert!(matches!(setup.pull("a/b"), Err(HubError::Listing { .. })));
    setup.server.page("/api/models/a/b/revision/main", 302, "Location: /api/models/a/b/revision/main", "");
    assert!(matches!(setup.pull("a/b"), Err(HubError::Network { .. })));
    setup.server.page("/api/models/a/b/revision/main", 302, "Location: file:///etc/passwd", "");
    assert!(matches!(setup.pull("a/b"), Err(HubError::Network { .. })));
}

#[test]
fn addresses_that_are_none() {
    let setup = Setup::new();
    for endpoint in ["", "hub.example", "ftp://hub.example", "http://"] {
        let options = HubOptions { endpoint: endpoint.into(), ..setup.options() };
        assert!(matches!(Hub::new(options), Err(HubError::Endpoint { .. })), "{endpoint}");
    }
    // Nobody listens there.
    let options = HubOptions { endpoint: "http://127.0.0.1:1".into(), ..setup.options() };
    let error = Hub::new(options).expect("an address").pull(&parsed("a/b"), &mut |_| {}).expect_err("nobody");
    assert!(matches!(&error, HubError::Network { host, .. } if host == "127.0.0.1:1"), "{error}");
}

/// What another process is downloading is not removed, and nothing outside of the cache is.
#[test]
fn removals_take_only_what_is_theirs() {
    let setup = Setup::new();
    let content = bytes(5000, 1);
    setup.server.put("a/b", &[("m-Q8_0.gguf", content.clone())]);
    let path = setup.pull("a/b").expect("it is there");
    let locks = setup.options().cache_dir.join(".locks/models--a--b");
    let lock = fs::File::create(locks.join(format!("{}.lock", hash(&content)))).expect("a lock");
    lock.lock().expect("it is free");
    for name in ["a/b", "a/b:Q8_0"] {
        assert!(matches!(setup.hub().remove(&parsed(name)), Err(HubError::Busy { .. })), "{name}");
    }
    drop(lock);
    #[cfg(unix)]
    {
        let outside = setup.cache.path().join("precious.gguf");
        fs::write(&outside, &content).expect("it can be written");
        fs::remove_file(&path).expect("a link");
        std::os::unix::fs::symlink(&outside, &path).expect("a link");
        setup.hub().remove(&parsed("a/b:Q8_0")).expect("it is there");
        assert!(outside.is_file() && !path.exists());
    }
}

/// A file that has become shorter is downloaded again, and not used offline.
#[test]
fn files_that_are_too_short_are_missing() {
    let (setup, big) = Setup::big();
    let path = setup.pull("a/b:Q8_0").expect("it is there");
    let blob = fs::canonicalize(&path).expect("a blob");
    fs::write(&blob, &big[..1000]).expect("it can be written");
    let offline = Hub::new(HubOptions { offline: true, ..setup.options() }).expect("an address");
    assert!(matches!(offline.open(&parsed("a/b:Q8_0"), &mut |_| {}), Err(HubError::Offline { .. })));
    assert_eq!(fs::read(setup.open("a/b:Q8_0").expect("it arrives")).expect("a file"), big);
}

// --- the cache -----------------------------------------------------------------------------------------------

#[test]
fn models_that_other_programs_downloaded() {
    let setup = Setup::new();
    let sha = "0b".repeat(20);
    let snapshot = setup.repo().join("snapshots").join(&sha);
    let put = |name: &str, content: &[u8]| {
        fs::create_dir_all(snapshot.join(name).parent().expect("a folder")).expect("a folder");
        fs::write(snapshot.join(name), content).expect("it can be written");
    };
    let offline = || Hub::new(HubOptions { offline: true, ..setup.options() }).expect("an address");
    let open = || offline().open(&parsed("a/b"), &mut |_| {});
    fs::create_dir_all(setup.repo().join("refs")).expect("a folder");
    fs::write(setup.repo().join("refs/main"), &sha).expect("it can be written");
    put("config.json", &llama()[0].1);
    put("tokenizer.json", &llama()[3].1);
    // A tokenizer alone is no model.
    assert!(matches!(open(), Err(HubError::Offline { .. })));
    put("model.safetensors", &llama()[2].1);
    assert_eq!(open().expect("a model"), snapshot);
    // A hub that refuses, too: the model is there.
    setup.server.page("/api/models/a/b/revision/main", 200, "", "<html>Log in</html>");
    assert_eq!(setup.open("a/b").expect("a model"), snapshot);
    setup.server.page("/api/models/a/b/revision/main", 401, "X-Error-Code: RepoNotFound", "");
    assert_eq!(setup.open("a/b").expect("a model"), snapshot);
    setup.server.unpage();
    // With a network, the settings that were not downloaded are.
    setup.server.put("a/b", &llama());
    let path = setup.open("a/b").expect("a model");
    assert!(path.join("generation_config.json").is_file());
    // A type by name needs no network.
    put("m-Q4_0.gguf", b"GGUF");
    assert_eq!(
        offline().open(&parsed("a/b:Q4_0"), &mut |_| {}).expect("a model"),
        snapshot.join("m-Q4_0.gguf")
    );
}

#[test]
fn lists_and_removals() {
    let setup = Setup::new();
    let shared = bytes(9000, 7);
    let files = |content: &[u8]| [("m-Q4_0.gguf", shared.clone()), ("m-Q8_0.gguf", content.to_vec())];
    setup.server.put("a/b", &files(&bytes(5000, 1)));
    setup.server.put("c/d", &llama());
    for name in ["a/b:Q4_0", "a/b:Q8_0", "c/d"] {
        setup.pull(name).expect("it is there");
    }
    let names = || -> Vec<(String, u64, bool)> {
        let all = setup.hub().list().expect("a cache");
        assert!(all.iter().all(|model| model.last_used.is_some() && model.path.exists()));
        all.into_iter().map(|model| (model.name, model.n_bytes, model.is_complete)).collect()
    };
    let llama_bytes = llama()[..4].iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let row = |name: &str, n_bytes, is_complete| (name.to_string(), n_bytes, is_complete);
    let (q4, q8, cd) = (
        row("a/b:m-Q4_0.gguf", 9000, true),
        row("a/b:m-Q8_0.gguf", 5000, true),
        row("c/d", llama_bytes, true),
    );
    assert_eq!(names(), [q4.clone(), q8.clone(), cd.clone()]);
    // A later version has one of the files unchanged; the other one is still there, and used with no request.
    setup.server.put("a/b", &files(&bytes(6000, 2)));
    setup.pull("a/b:Q4_0").expect("it is there");
    assert_eq!(names(), [q4.clone(), q8.clone(), cd.clone()]);
    setup.server.asked();
    setup.open("a/b:Q8_0").expect("it is there");
    assert_eq!(setup.server.asked().len(), 0);
    let hub = setup.hub();
    assert!(matches!(hub.remove(&parsed("a/b:F16")), Err(HubError::NoTag { .. })));
    assert_eq!(hub.remove(&parsed("a/b:Q4_0")).expect("it is there"), 9000);
    assert_eq!(names(), [q8, cd.clone()]);
    assert!(matches!(hub.remove(&parsed("a/b:Q4_0")), Err(HubError::NotCached { .. })));
    let rest = hub.remove(&parsed("a/b")).expect("it is there");
    assert!((5000..7000).contains(&rest), "{rest}");
    assert_eq!(names(), std::slice::from_ref(&cd));
    for name in ["a/b", "a/b:Q4_0", "e/f"] {
        assert!(matches!(hub.remove(&parsed(name)), Err(HubError::NotCached { .. })), "{name}");
    }
    // Part of a model is listed as such.
    let snapshot = setup.open("c/d").expect("it is there");
    fs::remove_file(snapshot.join("config.json")).expect("it can be removed");
    assert!(matches!(&names()[..], [(_, _, false)]));
    assert!(hub.remove(&parsed("c/d")).expect("it is there") > llama_bytes);
    assert!(names().is_empty());
}

#[test]
fn a_full_disk_is_noticed_first() {
    let setup = Setup::new();
    let sha = "0c".repeat(20);
    let tree = serde_json::json!([{ "type": "file", "path": "m-Q8_0.gguf", "size": 1u64 << 49, "oid": "1".repeat(40),
        "lfs": { "oid": "ab".repeat(32), "size": 1u64 << 49 } }]);
    setup.server.page("/api/models/a/b/revision/main", 200, "", &format!("{{\"sha\": \"{sha}\"}}"));
    setup.server.page(&format!("/api/models/a/b/tree/{sha}"), 200, "", &tree.to_string());
    let error = setup.pull("a/b").expect_err("nobody has so much");
    let HubError::NoSpace { needed_bytes, free_bytes, .. } = &error else { panic!("{error}") };
    assert!(*needed_bytes == 1 << 49 && *free_bytes > 0, "{error}");
}
