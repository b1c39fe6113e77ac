//! The command line: `pull`, `list`, `rm`, and names where a model is expected.

#[path = "../common/program.rs"]
#[allow(clippy::duplicate_mod)]
mod run;

use std::process::Command;

use run::{Run, wginfer};
use serde_json::Value;

use super::*;

impl Setup {
    fn wginfer(&self, line: &str) -> Run {
        let home = self.cache.path().to_str().expect("UTF-8");
        wginfer(line)
            .env("HF_HOME", home)
            .env("HF_HUB_OFFLINE", "0")
            .env("HF_ENDPOINT", &self.server.endpoint)
    }
}

#[test]
fn a_name_works_as_a_folder_does() {
    let setup = Setup::new();
    setup.server.put("a/b", &llama());
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama");
    let logits = |run: Run| run.arg("--token-ids=1,2,3").arg("--json").out();
    let by_name = setup.wginfer("logits --model a/b");
    let expected = logits(wginfer("logits").model(&golden));
    assert_eq!(logits(by_name), expected);
    let again = setup
        .wginfer("logits --model hf.co/a/b")
        .env("HF_HUB_OFFLINE", "1")
        .arg("--token-ids=1,2,3")
        .arg("--json");
    let done = again.succeeds();
    assert_eq!(done.out, expected);
    assert!(!done.err.contains("downloading"), "{}", done.err);
}

#[test]
fn pull_list_and_rm() {
    let setup = Setup::new();
    let gguf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/llama-q4_k_m.gguf");
    let gguf = fs::read(gguf).expect("a golden model");
    setup.server.put("a/b", &llama());
    setup.server.put("c/d-GGUF", &[("d-Q4_K_M.gguf", gguf.clone()), ("d-Q8_0.gguf", bytes(9000, 3))]);
    assert_eq!(setup.wginfer("list").out(), "");
    assert_eq!(setup.wginfer("list --json").json(), serde_json::json!([]));
    let done = setup.wginfer("pull a/b c/d-GGUF").succeeds();
    let paths: Vec<&str> = done.out.lines().collect();
    assert!(paths.len() == 2 && paths.iter().all(|path| Path::new(path).exists()), "{}", done.out);
    assert!(done.err.contains("downloading `a/b`: "), "{}", done.err);
    let rows = setup.wginfer("list --json").json();
    let field = |row: usize, key: &str| rows[row][key].clone();
    assert_eq!(
        (field(0, "name"), field(0, "type"), field(0, "complete")),
        ("a/b".into(), "F32".into(), true.into())
    );
    assert_eq!((field(1, "name"), field(1, "type")), ("c/d-GGUF:d-Q4_K_M.gguf".into(), "Q4_K".into()));
    assert_eq!(field(1, "bytes"), gguf.len());
    let table = setup.wginfer("list").out();
    assert!(table.contains("c/d-GGUF:d-Q4_K_M.gguf") && table.contains("now"), "{table}");
    // Names that `list` prints are names for all commands.
    setup.wginfer("inspect --model c/d-GGUF:d-Q4_K_M.gguf").env("HF_HUB_OFFLINE", "1").succeeds();
    let removed: Value = setup.wginfer("rm --json c/d-GGUF:Q4_K_M").json();
    assert_eq!(removed["freed_bytes"], gguf.len());
    setup.wginfer("rm c/d-GGUF:Q4_K_M").fails(1, "is not in the cache");
    setup.wginfer("rm a/b c/d-GGUF").succeeds();
    setup.wginfer("rm a/b").fails(1, "is not in the cache");
    assert_eq!(setup.wginfer("list").out(), "");
}

#[test]
fn failures_are_one_line_with_a_hint() {
    let (setup, _) = Setup::big();
    setup.server.put("x/Qwen3-4B", &[]);
    setup.wginfer("pull name").fails(2, "`name` is not a name on the hub");
    setup.wginfer("pull ../x a/b").fails(2, "`../x` is not a name on the hub");
    setup.wginfer("pull a/c").fails(1, "there is no model `a/c` on 127.0.0.1");
    setup.wginfer("inspect --model a/c").fails(1, "there is no folder `a/c`, and there is no model `a/c` on");
    setup.wginfer("pull a/b:Q5_K_M").fails(1, "has no GGUF file `Q5_K_M`: there is `m-Q8_0.gguf`");
    setup
        .wginfer("pull x/Qwen3-4B")
        .fails(1, "has neither `config.json` with `model.safetensors` nor a GGUF file");
    setup.wginfer("inspect --model a/b").env("HF_HUB_OFFLINE", "1").fails(1, "`HF_HUB_OFFLINE` is set");
    setup.wginfer("pull a/b").env("HF_ENDPOINT", "hub").fails(1, "`HF_ENDPOINT` is `hub`");
    setup.wginfer("inspect --model a/b").fails(1, "m-Q8_0.gguf");
    let done = setup.wginfer("pull y/qwen3-4b").done();
    assert!(done.err.contains("hint: there are `x/Qwen3-4B`"), "{}", done.err);
    // Proxies.
    let done = setup.wginfer("pull a/b").env("HTTP_PROXY", "http://127.0.0.1:1").env("NO_PROXY", "").done();
    assert_eq!(done.code, Some(1), "{}", done.err);
    setup
        .wginfer("pull a/b")
        .env("ALL_PROXY", "socks5://127.0.0.1:1")
        .env("NO_PROXY", "")
        .fails(1, "cannot be fetched");
    setup
        .wginfer("pull a/b")
        .env("HTTP_PROXY", "::::")
        .fails(1, "`HTTP_PROXY` is not the address of a proxy");
    // Numbers that no timeout has.
    setup.wginfer("pull a/b").env("HF_HUB_DOWNLOAD_TIMEOUT", "18446744073709551615").succeeds();
    let done = setup.wginfer("rm e/f a/b g/h").done();
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert!(
        done.err.contains("removed `a/b`") && done.err.contains("`e/f`") && done.err.contains("`g/h`"),
        "{}",
        done.err
    );
    #[cfg(not(feature = "tls"))]
    setup.wginfer("pull a/b").env("HF_ENDPOINT", "https://127.0.0.1:1").fails(1, "this build has none");
    #[cfg(feature = "tls")]
    {
        // No TLS is spoken there.
        let https = setup.server.endpoint.replace("http://", "https://");
        setup
            .wginfer("pull a/b")
            .env("HF_ENDPOINT", &https)
            .fails(1, "the list of files of `a/b` cannot be fetched");
    }
}

#[cfg(unix)]
#[test]
fn a_process_that_is_killed_leaves_what_the_next_goes_on_from() {
    let (setup, big) = Setup::big();
    for (signal, at) in [("KILL", 200_000), ("INT", 100_000), ("TERM", 100_000)] {
        setup.server.fault(BIG, &[Fault::Stall(at)]);
        let mut child = setup.wginfer("pull a/b").env("HF_HUB_DOWNLOAD_TIMEOUT", "60").spawn();
        // Until the stall, or else the signal tests nothing.
        let partial = setup.repo().join("blobs").join(format!("{}.incomplete", hash(&big)));
        let before = fs::metadata(&partial).map_or(0, |found| found.len());
        for _ in 0..1000 {
            if fs::metadata(&partial).is_ok_and(|found| found.len() >= before + at as u64) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        run::send(&child, signal);
        assert!(!child.wait().expect("it ends").success());
        assert_eq!(setup.blobs(), [format!("{}.incomplete", hash(&big))]);
    }
    setup.server.asked();
    let path = setup.wginfer("pull a/b").out();
    assert_eq!(fs::read(path.trim()).expect("a file"), big);
    assert_eq!(ranges(&setup.server), [Some("bytes=400000-".to_string())]);
}

#[cfg(unix)]
#[test]
fn a_disk_that_fills_up_loses_nothing() {
    let (setup, big) = Setup::big();
    // The limit of a file's size stands for the disk's; its signal is ignored.
    let mut limited = Command::new("bash");
    limited
        .arg("-c")
        .arg("trap '' XFSZ; ulimit -f 300; exec \"$0\" pull a/b")
        .arg(env!("CARGO_BIN_EXE_wginfer"));
    limited
        .env("HF_HOME", setup.cache.path())
        .env("HF_ENDPOINT", &setup.server.endpoint)
        .env_remove("HF_HUB_OFFLINE");
    limited.env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN");
    let output = limited.output().expect("bash runs");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(".incomplete`: File too large"), "{error}");
    let path = setup.wginfer("pull a/b").out();
    assert_eq!(fs::read(path.trim()).expect("a file"), big);
    let asked = ranges(&setup.server);
    assert!(asked.len() == 2 && asked[1].is_some(), "{asked:?}");
}

/// Hugging Face's Python library reads what we downloaded, with no network, and we read what it downloaded.
#[test]
fn the_cache_is_that_of_the_python_library() {
    // Where `.ci/python` puts it.
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python");
    let python = || {
        let mut command = Command::new("python3");
        command.env("PYTHONPATH", &library);
        command
    };
    let has = python().arg("-c").arg("import huggingface_hub").output();
    if !has.is_ok_and(|output| output.status.success()) {
        return common::not_run("the cache shared with Python", "`.ci/python` installs huggingface_hub");
    }
    let run = |setup: &Setup, offline: &str, code: &str| {
        let mut command = python();
        command.env("HF_HOME", setup.cache.path()).env("HF_ENDPOINT", &setup.server.endpoint);
        command.env("HF_HUB_OFFLINE", offline).env_remove("HF_HUB_CACHE").env_remove("HF_TOKEN");
        command.env("HF_HUB_DISABLE_XET", "1").env("HF_HUB_DISABLE_TELEMETRY", "1");
        let output = command.arg("-c").arg(code).output().expect("Python runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_string()
    };
    let files = llama();
    let setup = Setup::new();
    setup.server.put("a/b", &files);
    let path = setup.wginfer("pull a/b").out();
    let theirs = run(
        &setup,
        "1",
        "from huggingface_hub import hf_hub_download, scan_cache_dir\n\
         for name in ['config.json', 'model.safetensors']: path = hf_hub_download('a/b', name)\n\
         repo, = scan_cache_dir().repos\n\
         print(path.rsplit('/', 1)[0], repo.repo_id, repo.nb_files, repo.size_on_disk, len(scan_cache_dir().warnings))",
    );
    let snapshot = "from huggingface_hub import snapshot_download; print(snapshot_download('a/b'))";
    assert_eq!(run(&setup, "1", snapshot), path.trim());
    let size: usize = files[..4].iter().map(|(_, bytes)| bytes.len()).sum();
    assert_eq!(theirs, format!("{} a/b 4 {size} 0", path.trim()));

    let setup = Setup::new();
    setup.server.put("a/b", &files);
    let theirs = run(
        &setup,
        "0",
        "from huggingface_hub import snapshot_download\n\
         print(snapshot_download('a/b', allow_patterns=['*.json', '*.safetensors']))",
    );
    setup.server.asked();
    let name = parsed("a/b");
    let cache_dir = setup.cache.path().join("hub");
    let offline = HubOptions { offline: true, cache_dir: cache_dir.clone(), ..setup.options() };
    let ours = Hub::new(offline).expect("an address").open(&name, &mut |_| {}).expect("a model");
    assert_eq!(ours, Path::new(&theirs));
    // Where Python left everything, nothing is downloaded.
    setup.wginfer("pull a/b").succeeds();
    let fetched: Vec<_> = setup.server.asked().into_iter().filter(|a| a.path.contains("/resolve/")).collect();
    assert!(fetched.is_empty(), "{fetched:?}");
}

#[cfg(feature = "bench")]
#[test]
fn an_estimate_downloads_headers_only() {
    let setup = Setup::new();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut gguf = fs::read(golden.join("gguf/llama-q4_k_m.gguf")).expect("a golden model");
    let other = fs::read(golden.join("gguf/llama-q2_k.gguf")).expect("a golden model");
    let local = |model: &Path| wginfer("estimate --no-rates --json").model(model).json()[0].clone();
    let expected = [local(&golden.join("llama")), local(&golden.join("gguf/llama-q4_k_m.gguf"))];
    // What follows the last tensor would be downloaded with it.
    gguf.resize(12 << 20, 0);
    setup.server.put("a/b", &llama());
    setup.server.put("c/d", &[("d-Q2_K.gguf", other), ("d-Q4_K_M.gguf", gguf.clone())]);
    let estimate = |names: &str| setup.wginfer(&format!("estimate --no-rates --json {names}"));
    let rows = estimate("a/b c/d").json();
    let names: Vec<&str> = (0..3).map(|i| rows[i]["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["a/b", "c/d:d-Q2_K.gguf", "c/d:d-Q4_K_M.gguf"]);
    for (row, expected) in [(&rows[0], &expected[0]), (&rows[2], &expected[1])] {
        let mut expected = expected.clone();
        ["name", "free_bytes"].iter().for_each(|key| expected[key] = row[key].clone());
        assert_eq!(*row, expected);
    }
    let asked = setup.server.asked();
    // However many models it has.
    let n_listings = asked.iter().filter(|asked| asked.path.starts_with("/api/models/c/d/tree/")).count();
    assert_eq!(n_listings, 1);
    let large: Vec<_> = asked.iter().filter(|asked| asked.path.ends_with("d-Q4_K_M.gguf")).collect();
    assert!(
        !large.is_empty() && large.iter().all(|a| a.range.as_deref() == Some("bytes=0-4194303")),
        "{large:?}"
    );
    assert_eq!(setup.wginfer("list --json").json(), serde_json::json!([]));
    // Servers that cut, or know no ranges.
    setup.server.fault("d-Q4_K_M.gguf", &[Fault::Cut(1000), Fault::Whole]);
    assert_eq!(estimate("c/d:Q4_K_M").json()[0]["name"], "c/d:Q4_K_M");
    setup.server.always("d-Q4_K_M.gguf@hub", Fault::Status(403, "X-Error-Code: GatedRepo"));
    estimate("c/d:Q4_K_M").fails(1, "is gated");
    // A model in the cache is estimated from there.
    setup.server.mend();
    setup.wginfer("pull c/d:Q4_K_M").succeeds();
    let offline = estimate("c/d:Q4_K_M").env("HF_HUB_OFFLINE", "1").json();
    assert_eq!(offline[0]["weights_bytes"], rows[2]["weights_bytes"]);
    estimate("a/b").env("HF_HUB_OFFLINE", "1").fails(1, "HF_HUB_OFFLINE");
}
