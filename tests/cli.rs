//! The program as a user runs it: exit codes, what goes to which stream, and what bad input does.

mod common;
#[path = "common/program.rs"]
mod program;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use program::{SIGNALS, wginfer};

// --- checkpoints ---

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn whisper() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/whisper-words")
}

fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(name).join("golden.json")).expect("it is there")).expect("JSON")
}

fn ids(value: &Value) -> String {
    let ids = value.as_array().expect("a list").iter().map(Value::to_string);
    ids.collect::<Vec<_>>().join(",")
}

/// A copy of a golden checkpoint to break.
fn copy() -> TempDir {
    copy_of("llama")
}

fn copy_of(name: &str) -> TempDir {
    let dir = TempDir::new().expect("a temporary folder");
    for entry in fs::read_dir(golden(name)).expect("it is there") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("it can be copied");
    }
    dir
}

fn change_config(dir: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("JSON");
    change(config.as_object_mut().expect("an object"));
    fs::write(path, config.to_string()).expect("it can be written");
}

fn change_weights(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let path = dir.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("it is there");
    change(&mut bytes);
    fs::write(path, bytes).expect("it can be written");
}

/// The JSON header of a safetensors file, and where the data begins.
fn header(bytes: &[u8]) -> (String, usize) {
    let n = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    (String::from_utf8(bytes[8..8 + n].to_vec()).expect("UTF-8"), 8 + n)
}

// --- usage ---

#[test]
fn help_has_examples() {
    let bench = ["bench kernels --help", "bench model --help", "bench guest --help", "bench compare --help"];
    let commands = ["generate", "chat", "embed", "logits", "inspect", "estimate", "tune"]
        .map(|name| format!("{name} --help"));
    let lines = commands.iter().map(String::as_str).chain(bench).chain(["--help"]);
    for line in lines {
        assert!(wginfer(line).out().contains("Examples:"), "{line}");
    }
}

#[test]
fn version_names_wgpu() {
    let version = wginfer("--version").out();
    assert!(version.starts_with(concat!("wginfer ", env!("CARGO_PKG_VERSION"), " (wgpu ")), "{version}");
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        assert!(wginfer("completions").arg(shell).out().contains("wginfer"), "{shell}");
    }
}

#[test]
fn wrong_usage_is_code_2() {
    for line in ["", "--nonsense", "generate --nonsense", "frobnicate", "logits", "generate --n 0 a"] {
        let done = wginfer(line).done();
        assert_eq!(done.code, Some(2), "`{line}`: {}", done.err);
        assert_eq!(done.out, "", "`{line}`");
    }
}

#[test]
fn parameters_out_of_range() {
    wginfer("generate a --temperature -1").fails(2, "`temperature` is -1");
    wginfer("generate a --top-p 2").fails(2, "`top_p` is 2");
    wginfer("generate a --min-p NaN").fails(2, "`min_p` is NaN");
    wginfer("generate a --logit-bias 2048=1").fails(2, "token 2048");
    wginfer("chat --max-tokens 0").fails(2, "`max_tokens` is 0");
}

// --- models that cannot be opened ---

#[test]
fn no_such_model() {
    wginfer("inspect --model ./not/there").fails(1, "./not/there");
    wginfer("inspect --model owner/name").fails(1, "there is no folder `owner/name`, and");
    wginfer("inspect --model some.gguf").fails(1, "`some.gguf` cannot be read");
    wginfer("inspect --model Cargo.toml").fails(1, "`Cargo.toml` is neither a folder nor a GGUF file");
    wginfer("inspect").env("WGINFER_MODEL", "./not/there").fails(1, "./not/there");
}

#[test]
fn empty_folder() {
    wginfer("inspect").model(TempDir::new().expect("a folder").path()).fails(1, "config.json");
}

#[test]
fn config_with_a_missing_key() {
    let dir = copy();
    change_config(dir.path(), |config| drop(config.remove("hidden_size")));
    wginfer("inspect").model(dir.path()).fails(1, "hidden_size");
}

/// What is wrong in a file is no wrong usage.
#[test]
fn generation_config_out_of_range() {
    let dir = copy();
    let path = dir.path().join("generation_config.json");
    fs::write(&path, r#"{"temperature": -1}"#).expect("it can be written");
    let error =
        format!("`{}`, line 1: `temperature` is `-1`, expected a number from 0 to 100", path.display());
    for command in ["generate a", "inspect", "chat"] {
        wginfer(command).model(dir.path()).fails(1, &error);
    }
}

#[test]
fn unknown_architecture() {
    let dir = copy();
    change_config(dir.path(), |config| drop(config.insert("model_type".into(), "rnn".into())));
    wginfer("inspect").model(dir.path()).fails(1, "`rnn`");
}

#[test]
fn truncated_weights() {
    let dir = copy();
    let whole = fs::read(dir.path().join("model.safetensors")).expect("it is there");
    for i in 0..20 {
        change_weights(dir.path(), |bytes| *bytes = whole[..whole.len() * i / 20].to_vec());
        wginfer("inspect").model(dir.path()).fails(1, "model.safetensors");
    }
}

#[test]
fn header_that_lies() {
    let dir = copy();
    change_weights(dir.path(), |bytes| bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes()));
    wginfer("inspect").model(dir.path()).fails(1, "model.safetensors");
    let dir = copy();
    change_weights(dir.path(), |bytes| {
        let (text, start) = header(bytes);
        let lie = text.replacen("[384,64]", "[984,64]", 1);
        assert_ne!(lie, text, "the embedding is 384 × 64");
        bytes[8..start].copy_from_slice(lie.as_bytes());
    });
    wginfer("inspect").model(dir.path()).fails(1, "model.safetensors");
}

#[test]
fn no_tokenizer() {
    let dir = copy();
    fs::remove_file(dir.path().join("tokenizer.json")).expect("it is there");
    wginfer("generate a").model(dir.path()).fails(1, "tokenizer.json");
    wginfer("chat").model(dir.path()).fails(1, "tokenizer.json");
    if common::gpu().is_some() {
        let out = wginfer("logits --token-ids 1,2,3 --top 2").model(dir.path()).out();
        assert_eq!(out.lines().count(), 4, "{out}");
        let out =
            wginfer("generate --token-ids 1,2,3 --max-tokens 4 --logit-bias 1=-99").model(dir.path()).out();
        assert_eq!(out.trim().split(',').filter(|id| id.parse::<u32>().is_ok()).count(), 4, "{out}");
    }
}

#[test]
fn no_chat_template() {
    wginfer("chat").model(&golden("llama")).fails(1, "no chat template");
}

#[test]
fn tokenizer_of_another_model() {
    if common::gpu().is_none() {
        return;
    }
    let dir = copy();
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/tokenizer.json");
    fs::copy(other, dir.path().join("tokenizer.json")).expect("it can be copied");
    // Only a prompt shows it: a tokenizer may have tokens that the model lacks.
    wginfer("generate together")
        .model(dir.path())
        .fails(1, "token 1781 at position 0 is not in the vocabulary of 384");
    let done = wginfer("generate together").model(dir.path()).done();
    assert!(done.err.contains("hint: `tokenizer.json` may belong to another model"), "{}", done.err);
    assert!(!wginfer("generate a --max-tokens 2").model(dir.path()).out().is_empty());
}

/// Weights that are no numbers for one token: only its rows have no result.
#[test]
fn a_row_that_is_no_number_costs_only_itself() {
    if common::gpu().is_none() {
        return;
    }
    // Their heads have tanh and ReLU, which make a number of everything unless they take care.
    for (model, table) in [("bert-classifier", "bert"), ("distilbert-classifier", "distilbert")] {
        let dir = copy_of(model);
        let tokenizer = wginfer::checkpoint::open_tokenizer(dir.path()).expect("a tokenizer");
        let odd = tokenizer.encode("b", false).expect("ids");
        assert_ne!(odd, tokenizer.encode("a", false).expect("ids"));
        change_weights(dir.path(), |bytes| {
            let (text, start) = header(bytes);
            let tensors: Value = serde_json::from_str(&text).expect("JSON");
            let table = &tensors[format!("{table}.embeddings.word_embeddings.weight")];
            let number = |value: &Value| value.as_u64().expect("a number") as usize;
            let [from, to] = [0, 1].map(|i| start + number(&table["data_offsets"][i]));
            let row_bytes = (to - from) / number(&table["shape"][0]);
            odd.iter().for_each(|id| bytes[from + *id as usize * row_bytes..][..row_bytes].fill(0xff));
        });
        for command in ["embed", "classify"] {
            let run = wginfer(&format!("{command} --json")).stdin(b"a\nb\na a\n").model(dir.path()).done();
            assert_eq!(run.code, Some(1), "{model}: {}", run.err);
            let rows: Vec<Value> = serde_json::from_str(&run.out).expect("JSON");
            assert_eq!(rows.len(), 3, "{model}, {command}");
            for (i, row) in rows.iter().enumerate() {
                assert_eq!(row["index"], i, "{model}, {command}");
                let error = row["error"].as_str();
                assert_eq!(
                    error.is_some_and(|e| e.contains("not finite")),
                    i == 1,
                    "{model}, {command}: {row}"
                );
            }
        }
    }
}

#[test]
fn weights_that_are_no_numbers() {
    if common::gpu().is_none() {
        return;
    }
    let dir = copy();
    change_weights(dir.path(), |bytes| {
        let (text, start) = header(bytes);
        let tensors: Value = serde_json::from_str(&text).expect("JSON");
        let at = |i: usize| {
            let offset = tensors["model.norm.weight"]["data_offsets"][i].as_u64().expect("an offset");
            start + offset as usize
        };
        bytes[at(0)..at(1)].fill(0xff);
    });
    wginfer("generate --token-ids 1,2,3").model(dir.path()).fails(1, "not finite");
    wginfer("logits --token-ids 1,2,3").model(dir.path()).fails(1, "not finite");
    wginfer("logits --token-ids 1,2,3 --json --all").model(dir.path()).fails(1, "not finite");
}

// --- prompts ---

#[test]
fn empty_prompt() {
    wginfer("generate").fails(1, "the prompt is empty");
    wginfer("generate").stdin(b"\n").fails(1, "the prompt is empty");
    wginfer("logits").arg("").fails(1, "the prompt is empty");
}

#[test]
fn prompt_that_is_no_text() {
    wginfer("generate").stdin(b"Once \xff upon").fails(1, "byte 5 is `0xff`");
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("prompt.txt");
    fs::write(&path, b"\xc3").expect("it can be written");
    wginfer("generate --file").arg(&path).fails(1, "prompt.txt");
    wginfer("generate --file ./not/there").fails(1, "./not/there");
}

#[test]
fn token_out_of_range() {
    if common::gpu().is_some() {
        wginfer("logits --token-ids 5,384").model(&golden("llama")).fails(1, "token 384 at position 1");
        wginfer("generate --token-ids 4294967295").model(&golden("llama")).fails(1, "token 4294967295");
    }
    wginfer("logits --token-ids 5,x").fails_to_parse();
}

#[test]
fn prompt_longer_than_the_context() {
    if common::gpu().is_some() {
        let run = wginfer("generate --ctx 4 --token-ids 1,2,3,4,5").model(&golden("llama"));
        run.fails(1, "the prompt has 5 tokens, the context holds 3");
    }
}

#[test]
fn absurd_sizes() {
    if common::gpu().is_none() {
        return;
    }
    wginfer("generate a --ctx 0").fails(2, "`ctx` is 0");
    wginfer("generate a --max-tokens 0").fails(2, "`max_tokens` is 0");
    let most = usize::MAX;
    wginfer(&format!("generate --token-ids 5 --ctx 9 --max-tokens {most}")).succeeds();
    wginfer(&format!("generate a --ctx {most}")).fails(2, "`ctx` is 18446744073709551615, expected");
    wginfer("generate a --ctx 4000000000").fails(2, "expected a number from 1 to 2^28");
    wginfer("generate a --ctx 200000000").fails(1, "needs");
}

// --- streams and devices ---

#[test]
fn closed_pipe_ends_quietly() {
    let mut lines = vec!["--help", "completions zsh", "inspect --tensors", "generate --help"];
    if common::gpu().is_some() {
        lines.extend(["generate --max-tokens 40 Once", "logits --all --json Once", "devices"]);
    }
    for line in lines {
        let mut child = wginfer(line).spawn();
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "`{line}`: {err}");
        assert!(!err.contains("panicked") && !err.contains("error: "), "`{line}`: {err}");
    }
}

#[test]
fn cache_folder_that_cannot_be_written() {
    if common::gpu().is_none() {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    let dir = file.path().join("below-a-file");
    let run = wginfer("generate --max-tokens 3 Once").env("WGINFER_CACHE_DIR", &dir.display().to_string());
    let done = run.succeeds();
    assert!(!done.err.contains("panicked"), "{}", done.err);
    if wginfer("devices --json").json()[0]["pipeline_cache"] == true {
        assert!(done.err.contains("warning: compiled kernels are not kept in"), "{}", done.err);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn no_adapter() {
    let hidden =
        |line| wginfer(line).env("VK_DRIVER_FILES", "/not/there").env("VK_ICD_FILENAMES", "/not/there");
    hidden("devices").fails(1, "no GPU adapter found");
    hidden("generate a").fails(1, "no GPU adapter found");
    // This one needs none.
    assert!(hidden("inspect").out().contains("parameters"));
}

#[test]
fn no_such_adapter() {
    if common::gpu().is_some() {
        wginfer("generate a --gpu abacus").fails(1, "`abacus`");
        wginfer("generate a").env("WGINFER_GPU", "99").fails(1, "`99`");
    }
}

#[test]
fn quiet_says_nothing() {
    if common::gpu().is_some() {
        let done = wginfer("generate --quiet --max-tokens 3 Once").succeeds();
        assert_eq!(done.err, "");
        let done = wginfer("generate --max-tokens 3 Once").succeeds();
        assert!(done.err.contains("demonstration model") && done.err.contains("using "), "{}", done.err);
        assert!(done.err.contains("1 prompt + 3 generated tokens (length)"), "{}", done.err);
    }
}

// --- results ---

#[test]
fn inspect_as_json() {
    let report = wginfer("inspect --json --tensors").model(&golden("llama")).json();
    assert_eq!(report["architecture"], "llama");
    assert_eq!(report["n_layers"], 2);
    assert_eq!((&report["n_heads"], &report["n_kv_heads"]), (&4.into(), &2.into()));
    // Keys and values of 2 heads of 16 in 2 layers, 2 bytes each.
    assert_eq!(report["kv_bytes_per_1000_tokens"]["f16"], 2 * 2 * 16 * 2 * 2 * 1000);
    let tensors = report["tensors"].as_array().expect("a list");
    assert_eq!(tensors.len() as u64, report["n_tensors"].as_u64().expect("a number"));
    let bytes: u64 = tensors.iter().filter_map(|t| t["n_bytes"].as_u64()).sum();
    assert_eq!(report["weights_bytes"], bytes);
    assert_eq!(wginfer("inspect --json").json()["tokenizer"]["chat_template"], true);
}

#[test]
fn estimate_shows_memory_and_rates() {
    if common::gpu().is_none() {
        return;
    }
    let estimates = wginfer("estimate --json --batch 2 -c 200").arg(golden("llama")).json();
    let one = &estimates[0];
    assert_eq!(
        (&one["architecture"], &one["dtype"], &one["ctx"]),
        (&"llama".into(), &"F32".into(), &200.into())
    );
    let bytes = |name: &str| one[format!("{name}_bytes")].as_u64().expect(name);
    let sum: u64 = ["weights", "cache", "scratch", "staging"].map(bytes).iter().sum();
    assert_eq!((sum, one["fits"] == true), (bytes("total"), bytes("free") >= sum));
    // Keys and values of 2 heads of 16 in 2 layers, 2 bytes each, for two sequences of whole pages.
    assert_eq!(bytes("cache"), 2 * 2 * 16 * 2 * 2 * 2 * 208);
    let rates = one["rates"].as_array().expect("a list");
    let tests: Vec<&str> = rates.iter().filter_map(|rate| rate["test"].as_str()).collect();
    assert_eq!(tests, ["pp199", "tg128", "tg128"]);
    assert!(rates.iter().all(|rate| rate["tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0)));
    // The times are kept.
    let again = wginfer("estimate --batch 2 -c 200").arg(golden("llama")).succeeds();
    assert!(!again.err.contains("timing"), "{}", again.err);
    let timed = wginfer("estimate --batch 2 -c 200 --again").arg(golden("llama")).succeeds();
    assert!(timed.err.contains("timing kernels"), "{}", timed.err);
    assert!(again.out.starts_with("model") && again.out.contains("2×200"), "{}", again.out);

    let demo = wginfer("estimate --no-rates").succeeds();
    assert!(demo.err.contains("no model given"), "{}", demo.err);
    assert!(demo.out.contains("demonstration model") && demo.out.contains("yes"), "{}", demo.out);
    let named = wginfer("estimate --no-rates").env("WGINFER_MODEL", &golden("qwen3").display().to_string());
    assert!(named.out().contains("qwen3"));
    let shape = wginfer("estimate --no-rates --shape llama-3.1-8b --type Q4_K --json").json();
    let weights = shape[0]["weights_bytes"].as_f64().expect("a number");
    assert!((4.9e9..5.3e9).contains(&weights), "{weights}");
}

#[test]
fn estimate_has_a_row_for_each_model() {
    if common::gpu().is_none() {
        return;
    }
    let rows = |run: program::Run| {
        let rows = run.json();
        rows.as_array().expect("a list").iter().map(|row| row["dtype"].clone()).collect::<Vec<_>>()
    };
    let files = wginfer("estimate --no-rates --json").arg(golden("gguf"));
    assert_eq!(rows(files), ["IQ4_XS", "Q2_K", "Q3_K", "Q4_K", "Q5_K"]);
    let done =
        wginfer("estimate --no-rates ./not/there").arg(golden("llama")).arg(golden("bert-classifier")).done();
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("`./not/there`"), "{}", done.err);
    assert!(done.err.contains("rates are predicted only of language models"), "{}", done.err);
    let lines: Vec<&str> = done.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", done.out);
    assert!(lines[1].contains("./not/there") && lines[1].ends_with("error"), "{}", done.out);
    let all = wginfer("estimate --no-rates --json ./not/there ./nor/this").done();
    assert_eq!(all.code, Some(1));
    let refused: Value = serde_json::from_str(&all.out).expect("JSON");
    assert!(refused[1]["error"].as_str().is_some_and(|error| error.contains("./nor/this")), "{refused}");
    assert!(all.err.contains("2 of 2 models cannot be estimated"), "{}", all.err);
}

#[test]
fn estimate_refuses_what_is_wrong() {
    if common::gpu().is_none() {
        return;
    }
    wginfer("estimate -c 0").fails(2, "`ctx` is 0");
    wginfer("estimate --batch 0").fails_to_parse();
    wginfer("estimate --quantize Q9").fails_to_parse();
    wginfer("estimate --shape llama-15m -m a").fails_to_parse();
    wginfer("estimate ./not/there").fails(1, "./not/there");
    wginfer("estimate owner/name").fails(1, "`owner/name` is not in the cache, and `HF_HUB_OFFLINE` is set");
    wginfer("estimate -c 1000").arg(golden("gpt2")).fails(1, "`n_positions` is `256`");
    let beyond = wginfer("estimate --no-rates -c 1000").arg(golden("llama")).succeeds();
    assert!(beyond.err.contains("longer than the model's maximum of 256"), "{}", beyond.err);
    let dir = copy();
    change_weights(dir.path(), |bytes| bytes.truncate(100));
    wginfer("estimate").arg(dir.path()).fails(1, "model.safetensors");
    let bytes = fs::read(golden("gguf/llama-q2_k.gguf")).expect("it is there");
    fs::write(dir.path().join("cut.gguf"), &bytes[..200]).expect("it can be written");
    wginfer("estimate").arg(dir.path().join("cut.gguf")).fails(1, "is not a valid checkpoint");
}

#[test]
fn doctor_checks_kernels() {
    if common::gpu().is_none() {
        return;
    }
    let report = wginfer("doctor --json odd gpt2 layer_norm").json();
    let right = report["variants"].as_array().expect("an array").iter().filter(|row| row["verdict"] == "ok");
    assert!(right.count() > 0 && report["is_right"] == true, "{report}");
    assert!(!report["device"]["kind"].is_null() && !report["meta"]["driver"].is_null(), "{report}");
    // The demonstration model's own shapes.
    let model = wginfer("doctor --json rms_norm 13 rows -m assets/demo").json();
    let text = wginfer("doctor odd llama rms_norm 3 rows").succeeds();
    for part in
        ["adapter ", "limits ", "quirks ", "rms_norm", "not supported: ", " ok\n", "variants ok, 0 not"]
    {
        assert!(text.out.contains(part), "no `{part}` in {}", text.out);
    }
    assert!(!text.out.contains("linear"), "what the filter leaves out: {}", text.out);
    let encoder = wginfer("doctor --json pool bert 3 rows -m tests/golden/bert-classifier").json();
    assert!(encoder["variants"].as_array().is_some_and(|rows| rows.len() == 1), "{encoder}");
    assert!(model["variants"].as_array().is_some_and(|rows| !rows.is_empty()), "{model}");
    wginfer("doctor no-such-kernel").fails(2, "`no-such-kernel`");
}

/// llvmpipe takes the width of its subgroups from a variable: 4, 8 or 16 invocations. Other devices ignore it.
#[test]
fn kernels_are_right_with_subgroups_of_other_widths() {
    let Some(gpu) = common::gpu() else { return };
    for bits in [128, 512] {
        let run = wginfer("doctor --json odd llama Q4_0 13 rows");
        let report = run.env("LP_NATIVE_VECTOR_WIDTH", &bits.to_string()).json();
        assert_eq!(report["is_right"], true, "{bits} bits: {report}");
        let wrong =
            report["variants"].as_array().expect("an array").iter().find(|row| row["verdict"] == "wrong");
        assert!(wrong.is_none(), "{bits} bits: {wrong:?}");
        if gpu.info().name.contains("llvmpipe") {
            assert_eq!(report["device"]["subgroups"], serde_json::json!([bits / 32, bits / 32]));
        }
    }
}

#[test]
fn variants_of_devices_that_are_not_there() {
    if common::gpu().is_none() {
        return;
    }
    let list = |line: &str| {
        let labels = wginfer(line).model(&golden("llama")).json();
        let labels = labels.as_array().expect("a list").iter();
        labels.map(|label| label.as_str().expect("a label").to_string()).collect::<Vec<_>>()
    };
    let least = list("variants --json --on minimum");
    let has = |labels: &[String], word: &str| labels.iter().any(|label| label.contains(word));
    assert!(has(&least, "sample+reduce_workgroup") && !has(&least, "subgroup") && !has(&least, "quantize"));
    let rdna3 = list("variants --json --on rdna3 --quantize Q4_0");
    for word in
        ["linear_coop+coop_16+words_32+weights_q4_0", "attention_coop", "reduce_subgroup", "quantize+"]
    {
        assert!(has(&rdna3, word), "no {word} in {rdna3:?}");
    }
    // Without matrix units, and as text.
    let exact = wginfer("variants --on rdna3 --precision f32").model(&golden("llama")).out();
    assert!(exact.contains("linear_tile+words_32+weights_") && !exact.contains("coop"), "{exact}");
    // An encoder, and the device in this machine.
    let encoder = wginfer("variants").model(&golden("bert-classifier")).out();
    assert!(encoder.contains("pool") && encoder.lines().count() > 10, "{encoder}");
    wginfer("variants --on toaster").fails_to_parse();
}

#[test]
fn devices_as_json() {
    if common::gpu().is_some() {
        let devices = wginfer("devices --json").json();
        assert_eq!(devices[0]["index"], 0);
        assert!(devices[0]["max_binding_bytes"].as_u64() >= Some(128 << 20), "{devices}");
        assert!(wginfer("devices").out().starts_with("0  "));
        // What is switched off is not there, and nothing else can be.
        let less = wginfer("devices --json").env("WGINFER_DISABLE", "f16, subgroups").json();
        assert_eq!((&less[0]["f16"], less[0]["subgroups"].is_null()), (&false.into(), true), "{less}");
        wginfer("devices").env("WGINFER_DISABLE", "wings").fails(1, "`WGINFER_DISABLE` names `wings`");
    }
}

#[test]
fn logits_are_those_of_the_reference() {
    if common::gpu().is_none() {
        return;
    }
    let golden_json = golden_json("llama");
    let prompt = ids(&golden_json["token_ids"]);
    let run = |flags: &str| {
        wginfer(&format!("logits --kv-type f32 --precision f32 --json {flags} --token-ids {prompt}"))
            .model(&golden("llama"))
            .json()
    };
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
    };
    let got = run("");
    assert_eq!(got["token_ids"], golden_json["token_ids"]);
    let want = numbers(&golden_json["last_logits"]);
    let largest = common::largest(&want);
    let error = |got: &[f64]| {
        assert_eq!(got.len(), want.len());
        got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
    };
    let last = numbers(&got["logits"]);
    assert!(error(&last) < 1e-3, "{}", error(&last));
    let all = run("--all");
    let rows = all["logits"].as_array().expect("a list");
    assert_eq!(rows.len(), golden_json["token_ids"].as_array().expect("a list").len());
    assert!(error(&numbers(&rows[rows.len() - 1])) < 1e-3);
    // Another position's are others.
    assert!(error(&numbers(&rows[0])) > 1e-2);

    // The best of them, in order, with their share of all.
    let best = |json: &Value| -> Vec<usize> {
        json.as_array()
            .expect("a list")
            .iter()
            .map(|t| t["token_id"].as_u64().expect("an id") as usize)
            .collect()
    };
    let three = run("--top 3");
    assert_eq!((three.get("logits"), best(&three["top"]).len()), (None, 3), "{three}");
    let mut by_logit: Vec<usize> = (0..last.len()).collect();
    by_logit.sort_by(|a, b| last[*b].total_cmp(&last[*a]));
    assert_eq!(best(&three["top"]), by_logit[..3]);
    let first = &three["top"][0];
    assert_eq!(first["logit"], got["logits"][by_logit[0]]);
    assert!(first["token"].is_string(), "{first}");
    let sum: f64 = last.iter().map(|z| (z - last[by_logit[0]]).exp()).sum();
    // Logits are written in as few digits as tell F32 apart.
    assert!((first["probability"].as_f64().expect("a number") - 1.0 / sum).abs() < 1e-6, "{first}");
    let all_best = run("--top 3 --all");
    let lists = all_best["top"].as_array().expect("a list of lists");
    assert_eq!((lists.len(), &lists[lists.len() - 1]), (rows.len(), &three["top"]));
}

#[test]
fn weights_and_cache_are_quantised_as_asked() {
    if common::gpu().is_none() {
        return;
    }
    let plain = wginfer("generate --json --temperature 0 --max-tokens 12").arg("Once upon a time").json();
    let mut texts = vec![plain["text"].clone()];
    for flags in [
        "--quantize Q8_0",
        "--quantize q4_0",
        "--quantize Q4_K",
        "--kv-type q8_0",
        "--kv-type Q8_0 --quantize Q8_0",
    ] {
        let line = format!("generate --json --temperature 0 --max-tokens 12 {flags}");
        let answer = wginfer(&line).arg("Once upon a time").json();
        assert_eq!(answer["usage"]["completion_tokens"], 12, "{flags}: {answer}");
        texts.push(answer["text"].clone());
    }
    assert_eq!(texts[0], texts[1], "in eight bits it tells the same story");
    let refused = wginfer("generate --quantize Q5_K hello").done();
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("Q8_0") && refused.err.contains("Q4_K"), "{}", refused.err);
    // Heads of 16 have no blocks of 32.
    let refused = wginfer("generate --kv-type q8_0 --token-ids 1,2").model(&golden("llama")).done();
    assert_eq!(refused.code, Some(2));
    assert!(refused.err.contains("`kv_dtype` is Q8_0, expected `F32` or `F16`"), "{}", refused.err);
    let report = wginfer("inspect --json").json();
    assert_eq!(report["kv_bytes_per_1000_tokens"]["q8_0"], 4 * 2 * 2 * 36 * 1000);
}

#[test]
fn generate_as_json() {
    if common::gpu().is_none() {
        return;
    }
    let golden_json = golden_json("llama");
    let greedy = golden_json["greedy"].as_array().expect("a list");
    let prompt = ids(&golden_json["token_ids"]);
    let line = format!(
        "generate --json --kv-type f32 --temperature 0 --max-tokens {} --token-ids {prompt}",
        greedy.len()
    );
    let answer = wginfer(&line).model(&golden("llama")).json();
    let got = answer["token_ids"].as_array().expect("a list");
    assert_eq!(got[..], greedy[..got.len()], "{answer}");
    assert!(got.len() == greedy.len() || answer["finish_reason"] == "stop", "{answer}");
    let usage = &answer["usage"];
    assert_eq!(usage["prompt_tokens"], golden_json["token_ids"].as_array().expect("a list").len());
    let sum = usage["prompt_tokens"].as_u64().zip(usage["completion_tokens"].as_u64()).map(|(a, b)| a + b);
    assert_eq!(usage["total_tokens"].as_u64(), sum);
    assert!(answer["timings"]["time_to_first_token_ms"].as_f64() > Some(0.0), "{answer}");
}

#[test]
fn several_answers_repeat() {
    if common::gpu().is_none() {
        return;
    }
    let texts = |line: &str| -> Vec<String> {
        let answers = wginfer(line).arg("Once upon a time").json();
        let all = answers.as_array().cloned().unwrap_or_else(|| vec![answers]);
        all.iter().map(|a| a["text"].as_str().expect("text").to_string()).collect()
    };
    let line = "generate --json --max-tokens 20 --temperature 1 --top-p 1";
    let three = texts(&format!("{line} --n 3 --seed 1"));
    assert_eq!(three.len(), 3);
    assert_eq!(three, texts(&format!("{line} --n 3 --seed 1")));
    assert_eq!(three[1..2], texts(&format!("{line} --seed 2")));
    assert!(three[0] != three[1] || three[1] != three[2], "{three:?}");
    let plain =
        wginfer("generate --max-tokens 20 --temperature 1 --top-p 1 --n 3 --seed 1").arg("Once upon a time");
    let expected: Vec<String> = (0..3)
        .map(|i| format!("--- {} ---\nOnce upon a time{}\n", i + 1, three[i].trim_end_matches('\n')))
        .collect();
    assert_eq!(plain.out(), expected.concat());
}

#[test]
fn prompts_from_everywhere_are_the_same() {
    if common::gpu().is_none() {
        return;
    }
    let line = "generate --no-echo --temperature 0 --max-tokens 12";
    let argument = wginfer(line).arg("Once upon a time").out();
    assert!(argument.len() > 10, "{argument}");
    assert_eq!(wginfer(line).stdin(b"Once upon a time\n").out(), argument);
    let file = tempfile::NamedTempFile::new().expect("a file");
    fs::write(file.path(), "Once upon a time\r\n").expect("it can be written");
    assert_eq!(wginfer(line).arg("-f").arg(file.path()).out(), argument);
    let echoed = wginfer("generate --temperature 0 --max-tokens 12").arg("Once upon a time").out();
    assert_eq!(echoed, format!("Once upon a time{argument}"));
    // Words of its own answer stop it.
    let word = argument.split_whitespace().nth(3).expect("a few words");
    let stopped = wginfer(line).arg("--stop").arg(word).arg("Once upon a time").out();
    let before = argument.split(word).next().expect("the beginning");
    assert_eq!(stopped.trim_end_matches('\n'), before.trim_end_matches('\n'));
}

#[test]
fn explanations_are_a_line_a_token() {
    if common::gpu().is_none() {
        return;
    }
    let out = wginfer("generate --explain --max-tokens 6 --seed 3").arg("Once upon a time").out();
    assert_eq!(out.lines().count(), 6, "{out}");
    assert!(out.lines().all(|l| l.contains("before: ") && l.contains("after: ")), "{out}");
    let answer = wginfer("generate --explain --json --max-tokens 6 --seed 3").arg("Once upon a time").json();
    let steps = answer["logprobs"].as_array().expect("a list");
    assert_eq!(steps.len(), 6);
    for step in steps {
        assert_eq!(step["top"].as_array().map(Vec::len), Some(5), "{step}");
        assert!(step["sampled_top"].as_array().is_some_and(|top| !top.is_empty()), "{step}");
        assert!(step["logprob"].as_f64() <= Some(0.0), "{step}");
    }
}

// --- signals ---

/// Without its end token it would write for minutes.
const LONG: &str = "generate --token-ids 5,6 --ctx 30000 --max-tokens 30000 --logit-bias 1=-99";

#[test]
#[cfg(unix)]
fn signals_stop_the_answer_and_keep_it() {
    if common::gpu().is_none() {
        return;
    }
    for (flags, (signal, code)) in ["", "--n 2", "--explain"].into_iter().zip(SIGNALS) {
        let mut child = wginfer(&format!("{LONG} {flags}")).model(&golden("llama")).spawn();
        let mut out = child.stdout.take().expect("a pipe");
        // After a few tokens, every answer has one.
        let mut text = vec![0; 40];
        out.read_exact(&mut text).expect("it begins to write");
        program::send(&child, signal);
        out.read_to_end(&mut text).expect("it ends");
        let output = child.wait_with_output().expect("it ends");
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert!(err.ends_with(&format!("error: interrupted by SIG{signal}\n")), "{err}");
        let text = String::from_utf8(text).expect("text");
        assert!(text.ends_with('\n'), "{text}");
        assert_eq!(text.matches("--- ").count(), if flags == "--n 2" { 2 } else { 0 }, "{text}");
    }
}

/// The tokens of an answer are on standard output at the end, in valid JSON.
#[test]
#[cfg(unix)]
fn signals_leave_valid_json() {
    if common::gpu().is_none() {
        return;
    }
    // Nothing shows that the answers have begun, so a run that has none yet is followed by one with more time.
    let mut wait = Duration::from_millis(200);
    loop {
        let child = wginfer(&format!("{LONG} --n 2 --json")).model(&golden("llama")).spawn();
        std::thread::sleep(wait);
        program::send(&child, "TERM");
        let output = child.wait_with_output().expect("it ends");
        assert!([Some(143), None].contains(&output.status.code()), "{output:?}");
        let begun: Option<Value> = (!output.stdout.is_empty())
            .then(|| serde_json::from_slice(&output.stdout).expect("JSON, or nothing"));
        let Some(begun) = begun.filter(|answers| answers[0]["token_ids"][0].is_number()) else {
            wait *= 2;
            assert!(wait < Duration::from_secs(60), "no answer begins");
            continue;
        };
        assert_eq!(output.status.code(), Some(143));
        for answer in begun.as_array().expect("a list") {
            let n = answer["token_ids"].as_array().expect("a list").len();
            assert_eq!((&answer["finish_reason"], &answer["timings"]), (&"cancelled".into(), &Value::Null));
            assert_eq!(answer["usage"]["completion_tokens"], n, "{answer}");
            assert_eq!(answer["usage"]["total_tokens"], n + 2, "{answer}");
        }
        break;
    }
}

/// No command has to notice a signal: while it waits for its input, and whatever else it does.
#[test]
#[cfg(target_os = "linux")]
fn signals_end_every_command() {
    let shape = tiny_shape();
    let shape = shape.path().to_str().expect("UTF-8");
    let (bert, speech) = (golden("bert-classifier"), whisper());
    let waiting = [
        "generate".to_string(),
        "chat".to_string(),
        "chat --json".to_string(),
        "answer Who?".to_string(),
        "summarize --json".to_string(),
        "score".to_string(),
        "classify --labels a,b".to_string(),
        format!("classify --json -m {}", bert.display()),
        format!("embed --format csv -m {}", bert.display()),
        format!("transcribe - --json -m {}", speech.display()),
    ];
    let busy = ["bench kernels --shape", "bench model --shape", "tune --shape"]
        .map(|command| format!("{command} {shape} --quiet"));
    let n_waiting = waiting.len();
    for (i, line) in waiting.into_iter().chain(busy).enumerate() {
        if i >= n_waiting && common::gpu().is_none() {
            return;
        }
        let (signal, code) = SIGNALS[i % SIGNALS.len()];
        let mut child = wginfer(&line).command.spawn().expect("it starts");
        // It stays open.
        let stdin = child.stdin.take();
        program::wait_until("SIGTERM is caught", || program::has_signal(&child, "SigCgt", 15));
        if i >= n_waiting {
            // Its threads: it is at work on the device.
            let tasks = format!("/proc/{}/task", child.id());
            program::wait_until("it works", || fs::read_dir(&tasks).is_ok_and(|all| all.count() > 3));
        }
        program::send(&child, signal);
        let begin = Instant::now();
        let output = child.wait_with_output().expect("it ends");
        assert!(begin.elapsed() < Duration::from_secs(5), "`{line}` took {:?}", begin.elapsed());
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "`{line}`: {err}");
        assert!(err.ends_with(&format!("error: interrupted by SIG{signal}\n")), "`{line}`: {err}");
        assert!(
            output.stdout.is_empty() || serde_json::from_slice::<Value>(&output.stdout).is_ok(),
            "`{line}`"
        );
        drop(stdin);
    }
}

/// Nobody reads the output, so the program is stuck in it.
#[test]
#[cfg(target_os = "linux")]
fn signals_end_a_program_that_cannot_write() {
    let dir = TempDir::new().expect("a folder");
    let path = dir.path().join("a.json");
    // More than a pipe holds.
    report(&path, 2000);
    for (flags, (signal, code)) in ["", "--json", "--format csv"].into_iter().zip(SIGNALS) {
        let run = wginfer(&format!("bench compare {flags}")).arg(&path).arg(&path);
        let mut child = run.spawn();
        let out = child.stdout.take().expect("a pipe");
        program::wait_until("SIGTERM is caught", || program::has_signal(&child, "SigCgt", 15));
        let status = format!("/proc/{}/status", child.id());
        let sleeps = || fs::read_to_string(&status).is_ok_and(|status| status.contains("State:\tS"));
        program::wait_until("it is stuck", sleeps);
        program::send(&child, signal);
        let begin = Instant::now();
        let output = child.wait_with_output().expect("it ends");
        assert!(begin.elapsed() < Duration::from_secs(5), "`{flags}` took {:?}", begin.elapsed());
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "`{flags}`: {err}");
        assert!(err.ends_with(&format!("error: interrupted by SIG{signal}\n")), "`{flags}`: {err}");
        drop(out);
    }
}

/// `nohup` ignores SIGHUP, and a shell SIGINT in its background jobs. They stay ignored.
#[test]
#[cfg(target_os = "linux")]
fn ignored_signals_stay_ignored() {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' INT HUP; exec \"$0\" generate", env!("CARGO_BIN_EXE_wginfer")]);
    command.env_remove("WGINFER_MODEL");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    program::with_signals(&mut command);
    for is_ended in [false, true] {
        let mut child = command.spawn().expect("it starts");
        let stdin = child.stdin.take();
        program::wait_until("SIGTERM is caught", || program::has_signal(&child, "SigCgt", 15));
        for (signal, number) in [("HUP", 1), ("INT", 2)] {
            assert!(program::has_signal(&child, "SigIgn", number), "{signal}");
            program::send(&child, signal);
        }
        if is_ended {
            program::send(&child, "TERM");
        } else {
            drop(stdin);
        }
        let output = child.wait_with_output().expect("it ends");
        let err = String::from_utf8_lossy(&output.stderr);
        let (code, what) =
            if is_ended { (143, "interrupted by SIGTERM") } else { (1, "the prompt is empty") };
        assert_eq!(output.status.code(), Some(code), "{err}");
        assert!(err.contains(what), "{err}");
    }
}

// --- files that are written ---

/// A report that `bench compare` reads, which needs no device.
fn report(path: &Path, n_rows: usize) {
    let meta = ["program", "version", "wgpu_version", "date", "command", "adapter", "driver", "backend"];
    let meta: serde_json::Map<String, Value> = meta.iter().map(|key| (key.to_string(), "x".into())).collect();
    let row = |i: usize| {
        serde_json::json!({
            "kernel": "k", "variant": "v", "is_default": true, "shape": "s", "dtype": "F16", "n_rows": i, "us": 1.0,
            "us_low": 0.9, "us_high": 1.1, "n_samples": 3, "gflops": 1.0, "gbps": 1.0, "percent": 1.0,
            "limit": "memory", "error": null, "is_right": true,
        })
    };
    let report = serde_json::json!({
        "kind": "kernels",
        "meta": meta,
        "limits": { "copy_gbps": 1.0, "fma_gflops": 1.0, "clock": "device" },
        "rows": (0..n_rows).map(row).collect::<Vec<_>>(),
        "skipped": [],
    });
    fs::write(path, report.to_string()).expect("it can be written");
}

#[test]
#[cfg(unix)]
fn an_output_is_no_input() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    let model = golden("bert-classifier");
    fs::write(at("texts"), "one\ntwo\n").expect("it can be written");
    symlink("texts", at("soft")).expect("a link");
    fs::hard_link(at("texts"), at("hard")).expect("a link");
    fs::copy(at("texts"), at("x.partial")).expect("it can be copied");
    let embed =
        |file: &str, output: &str| wginfer("embed -f").arg(at(file)).arg("-o").arg(at(output)).model(&model);
    for (file, output) in
        [("texts", "texts"), ("texts", "soft"), ("soft", "hard"), ("hard", "soft"), ("x.partial", "x")]
    {
        embed(file, output).fails(2, "is the same file as the input");
    }
    let mut from_stdin = wginfer("embed -o").arg(at("hard")).model(&model).command;
    let output = from_stdin.stdin(fs::File::open(at("texts")).expect("a file")).output().expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    // The model's own files, by whatever name.
    let own = copy_of("bert-classifier");
    symlink(own.path().join("config.json"), at("config")).expect("a link");
    for output in [own.path().join("config.json"), own.path().join("model.safetensors"), at("config")] {
        let before = fs::read(&output).expect("a file");
        wginfer("embed a -o").arg(&output).model(own.path()).fails(2, "of the model");
        assert_eq!(fs::read(&output).expect("a file"), before);
    }
    for name in ["texts", "hard", "x.partial"] {
        assert_eq!(fs::read_to_string(at(name)).expect("a file"), "one\ntwo\n", "{name}");
    }
    // A plot that is a report.
    report(&at("a.json"), 1);
    let before = fs::read(at("a.json")).expect("a file");
    symlink("a.json", at("a.svg")).expect("a link");
    let compare =
        |plot: &str| wginfer("bench compare").arg(at("a.json")).arg(at("a.json")).arg("--plot").arg(at(plot));
    compare("a.svg").fails(2, "is the same file as the input");
    assert_eq!(fs::read(at("a.json")).expect("a file"), before);
    // Any other file is replaced, behind its link, and keeps its permissions.
    fs::write(at("old"), "old").expect("it can be written");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(at("old"), permissions).expect("it can be set");
    symlink("old", at("b.svg")).expect("a link");
    compare("b.svg").succeeds();
    assert!(at("b.svg").is_symlink());
    assert!(fs::read_to_string(at("old")).expect("a file").starts_with("<svg"));
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(at("old")).expect("a file"));
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
#[cfg(unix)]
fn outputs_that_are_no_files() {
    use std::os::unix::fs::symlink;
    let dir = TempDir::new().expect("a folder");
    let at = |name: &str| dir.path().join(name);
    report(&at("a.json"), 1);
    let compare = |plot: &str| {
        wginfer("bench compare --json").arg(at("a.json")).arg(at("a.json")).arg("--plot").arg(at(plot))
    };
    for (name, device) in [("null.svg", "/dev/null"), ("full.svg", "/dev/full"), ("out.svg", "/dev/stdout")] {
        symlink(device, at(name)).expect("a link");
    }
    compare("null.svg").succeeds();
    compare("full.svg").fails(1, "full.svg` cannot be written");
    let out = compare("out.svg").out();
    assert!(out.starts_with("<svg") && out.contains("</svg>") && out.contains("\"rows\""), "{out}");
    assert!(["null.svg", "full.svg", "out.svg"].iter().all(|name| at(name).is_symlink()));
    // A shell has appended to a file before, and does afterwards.
    let file = fs::File::create(at("file")).expect("a file");
    let mut before = file.try_clone().expect("a descriptor");
    std::io::Write::write_all(&mut before, b"before\n").expect("it can be written");
    let output = compare("out.svg").command.stdout(file).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let written = fs::read_to_string(at("file")).expect("a file");
    assert!(written.starts_with("before\n<svg") && written.contains("\"rows\""), "{written}");
    // Before any work.
    wginfer("embed a -o ./not/there")
        .model(&golden("bert-classifier"))
        .fails(1, "`./not/there` cannot be written");
    wginfer("embed a -o").arg(dir.path()).model(&golden("bert-classifier")).fails(1, "cannot be written");
    fs::create_dir(at("c.svg.partial")).expect("a folder");
    compare("c.svg").fails(1, "c.svg.partial`, which is a folder");
    assert!(!at("c.svg").exists());
}

// --- chat ---

#[test]
fn chat_through_a_pipe() {
    if common::gpu().is_none() {
        return;
    }
    let script = b"/set temperature 0\n/set top_p 2\n/nonsense\nWho are you?\nAnd who am I?\n/reset\nWho are you?\n/exit\nNot heard.\n";
    let done = wginfer("chat --max-tokens 12").stdin(script).succeeds();
    let answers: Vec<&str> = done.out.lines().collect();
    assert_eq!(answers.len(), 3, "{}", done.out);
    assert_eq!(answers[0], answers[2], "{}", done.out);
    assert!(done.err.contains("`top_p` is 2") && done.err.contains("`/nonsense`"), "{}", done.err);
    let figures: Vec<&str> = done.err.lines().filter(|l| l.contains("generated tokens")).collect();
    assert_eq!(figures.len(), 3, "{}", done.err);
    assert!(!figures[0].contains("cached") && figures[1].contains("cached"), "{}", done.err);
}

#[test]
fn chat_as_json_lines() {
    if common::gpu().is_none() {
        return;
    }
    let script = b"Who are you?\n/set top_p 2\nAnd who am I?\n";
    let line = "chat --max-tokens 12 --temperature 0";
    let plain = wginfer(line).stdin(script).out();
    let done = wginfer(&format!("{line} --json")).stdin(script).succeeds();
    let replies: Vec<Value> =
        done.out.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(replies.len(), 2, "{}", done.out);
    let texts = replies.iter().map(|reply| format!("{}\n", reply["text"].as_str().expect("a text")));
    assert_eq!(texts.collect::<String>(), plain);
    assert!(["length", "stop"].contains(&replies[0]["finish_reason"].as_str().expect("a reason")));
    assert_eq!(replies[1]["n_dropped"], 0);
    assert!(replies[1]["usage"]["prompt_tokens"].as_u64() > replies[0]["usage"]["prompt_tokens"].as_u64());
    assert!(replies[1]["timings"]["time_to_first_token_ms"].as_f64() > Some(0.0), "{}", replies[1]);
    assert!(done.err.contains("`top_p` is 2"), "{}", done.err);
}

/// The demonstration model, whose template begins a thought in the prompt unless told otherwise.
fn thinking() -> TempDir {
    let dir = TempDir::new().expect("a temporary folder");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo");
    for entry in fs::read_dir(demo).expect("it is there") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("it can be copied");
    }
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}\
        {{ '<|im_start|>assistant\n' }}{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}";
    fs::write(dir.path().join("chat_template.jinja"), template).expect("it can be written");
    dir
}

#[test]
fn chat_shows_thoughts_apart() {
    if common::gpu().is_none() {
        return;
    }
    let dir = thinking();
    let chat = |flags: &str| {
        let line = format!("chat --max-tokens 12 --temperature 0 {flags}");
        wginfer(&line).model(dir.path()).stdin(b"Who are you?\n").succeeds()
    };
    let thought = chat("--json");
    let json: Value = serde_json::from_str(&thought.out).expect("an object");
    assert_eq!(json["text"], "", "{json}");
    let said = json["reasoning_content"].as_str().expect("a thought").to_string();
    assert!(said.len() > 10 && !thought.err.contains(&said), "{}", thought.err);
    let shown = chat("");
    assert_eq!(shown.out, "\n");
    assert!(shown.err.contains(&format!("{said}\n")) && !shown.err.contains('\u{1b}'), "{}", shown.err);
    assert!(shown.err.contains("before the model had thought it through"), "{}", shown.err);
    let quiet = chat("--quiet");
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("\n", ""));
    // Told not to think, it has the prompt of the demonstration model.
    let plain = wginfer("chat --max-tokens 12 --temperature 0").stdin(b"Who are you?\n").out();
    let told = chat("--no-think");
    assert_eq!(told.out, plain);
    assert!(!told.err.contains(plain.trim()), "{}", told.err);
    assert!(!chat("--no-think --json").out.contains("reasoning_content"));
    assert_eq!(chat("--no-think --think").out, "\n");
    let refused = wginfer("chat --reasoning-effort low").model(dir.path());
    refused.fails(2, "does not read `reasoning_effort`");
    wginfer("chat --no-think").fails(2, "does not read `enable_thinking`");
}

#[test]
fn chat_drops_what_does_not_fit() {
    if common::gpu().is_none() {
        return;
    }
    let script = "Tell me a story about a small dog.\n".repeat(6);
    let done = wginfer("chat --ctx 80 --max-tokens 16 --temperature 0").stdin(script.as_bytes()).succeeds();
    assert_eq!(done.err.lines().filter(|l| l.contains("generated tokens")).count(), 6, "{}", done.err);
    assert!(done.err.contains("dropped to fit the context of 80 tokens"), "{}", done.err);
    // One message that is too long is refused, and the next is answered.
    let script = format!("{}\nHello.\n", "story ".repeat(200));
    let done = wginfer("chat --ctx 80 --temperature 0").stdin(script.as_bytes()).done();
    assert!(done.err.contains("the context holds 79"), "{}", done.err);
    assert_eq!(done.code, Some(1), "{}", done.err);
    assert!(done.err.ends_with("error: 1 message has no answer\n"), "{}", done.err);
    assert_eq!(done.err.lines().filter(|l| l.contains("generated tokens")).count(), 1, "{}", done.err);
}

#[test]
fn chat_refuses_what_is_no_text() {
    if common::gpu().is_some() {
        wginfer("chat").stdin(b"\xff\n").fails(1, "not valid UTF-8");
    }
}

#[test]
fn chat_without_an_answer_fails() {
    if common::gpu().is_none() {
        return;
    }
    let dir = copy();
    fs::write(dir.path().join("chat_template.jinja"), "{{ raise_exception('no') }}")
        .expect("it can be written");
    for flags in ["", "--json"] {
        let run = wginfer(&format!("chat {flags}"))
            .model(dir.path())
            .stdin(b"One.\n\n/help\nTwo.\n/exit\nThree.\n");
        run.fails(1, "2 messages have no answer");
    }
    wginfer("chat").model(dir.path()).stdin(b"/help\n").succeeds();
}

/// At a terminal without bracketed paste, pasted lines arrive together: each is a message, none is lost.
#[test]
#[cfg(target_os = "linux")]
fn chat_hears_all_pasted_lines() {
    if common::gpu().is_none() {
        return;
    }
    let line = format!("{} chat --max-tokens 3 --temperature 0", env!("CARGO_BIN_EXE_wginfer"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env_remove("WGINFER_MODEL").env("TERM", "xterm");
    command.env("WGINFER_CACHE_DIR", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    let paste = "Who are you?\nAnd who am I?\nSecond to last.\nLast.\n/exit\n";
    let done = program::Run { command, stdin: paste.into() }.piped().done();
    assert_eq!(done.code, Some(0), "{}", done.out);
    assert_eq!(done.out.matches("generated tokens").count(), 4, "{}", done.out);

    // Ctrl-D that was typed while an answer was written.
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env_remove("WGINFER_MODEL").env("TERM", "xterm");
    let mut run = program::Run { command, stdin: Vec::new() }.piped();
    let mut child = run.command.spawn().expect("it runs");
    let mut keys = child.stdin.take().expect("a pipe");
    keys.write_all(b"Who are you?\n\x04").expect("it reads");
    program::wait_until("the end", || child.try_wait().expect("a state").is_some());
    let output = child.wait_with_output().expect("it has ended");
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("generated tokens"));
}

/// There, nobody is in a conversation.
#[test]
#[cfg(unix)]
fn a_signal_ends_a_chat_through_a_pipe() {
    if common::gpu().is_none() {
        return;
    }
    let script = "Tell me a long story.\n".repeat(200);
    let mut child = wginfer("chat --json").stdin(script.as_bytes()).spawn();
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    program::read_until(&mut out, "}\n");
    program::send(&child, "INT");
    let n = 1 + out.lines().map_while(Result::ok).filter(|line| line.ends_with('}')).count();
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(n < 200, "{n} answers");
}

// --- encoders ---

#[test]
fn kinds_of_models_are_told_apart() {
    let (encoder, decoder) = (golden("bert-classifier"), golden("llama"));
    for command in ["generate a", "chat", "bench model"] {
        wginfer(command).model(&encoder).fails(1, "`bert` is an encoder");
    }
    wginfer("embed a").model(&decoder).fails(1, "`llama` is a decoder");
    wginfer("embed a").fails(1, "no model given");
    wginfer("logits --all --token-ids 1").model(&encoder).fails(2, "`--all`");
}

#[test]
fn logits_of_a_classifier() {
    if common::gpu().is_none() {
        return;
    }
    for name in ["bert", "roberta", "distilbert", "modernbert"].map(|name| format!("{name}-classifier")) {
        let want = golden_json(&name);
        let line = format!("logits --precision f32 --json --token-ids {}", ids(&want["token_ids"]));
        let found = wginfer(&line).model(&golden(&name)).json();
        assert_eq!(found["token_ids"], want["token_ids"], "{name}");
        let values = |json: &Value| -> Vec<f64> {
            json["logits"].as_array().expect("a list").iter().map(|v| v.as_f64().expect("a number")).collect()
        };
        let (found, want) = (values(&found), values(&want));
        assert_eq!(found.len(), want.len(), "{name}");
        assert!(found.iter().zip(&want).all(|(f, w)| (f - w).abs() < 1e-3), "{name}: {found:?}, {want:?}");
    }
    let table = wginfer("logits --token-ids 5,178,225 --top 2").model(&golden("bert-classifier")).out();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines.len() == 3 && lines[0].ends_with("probability") && lines[1].ends_with('%'), "{table}");
    let best =
        wginfer("logits --token-ids 5,178,225 --top 2 --json").model(&golden("bert-classifier")).json();
    let best = best["top"].as_array().expect("a list");
    assert_eq!(best.len(), 2);
    for (row, line) in best.iter().zip(&lines[1..]) {
        assert!(line.starts_with(row["label"].as_str().expect("a name")), "{row}: {line}");
        assert!(row["logit"].is_number() && row["probability"].as_f64() <= Some(1.0), "{row}");
    }
    wginfer("logits --token-ids 5,384").model(&golden("bert-classifier")).fails(1, "token 384 at position 1");
    let dir = copy_of("bert-classifier");
    change_config(dir.path(), |c| drop(c.insert("architectures".into(), serde_json::json!(["BertModel"]))));
    wginfer("logits --token-ids 5").model(dir.path()).fails(1, "has no classification head");
}

#[test]
fn inspect_shows_an_encoder() {
    let json = wginfer("inspect --json").model(&golden("modernbert-classifier")).json();
    assert_eq!(json["architecture"], "modernbert");
    assert_eq!(json["classifier"]["labels"][2], "LABEL_2");
    assert_eq!(json["classifier"]["problem"], "single_label_classification");
    assert_eq!(json["embedding"]["pooling"], serde_json::json!(["mean"]));
    assert_eq!(json["embedding"]["declared"], false);
    assert_eq!(json.get("kv_bytes_per_1000_tokens"), None);
    let text = wginfer("inspect").model(&golden("bert-classifier")).out();
    for what in ["one of `negative`, `neutral`, `positive`", "64 values: mean, length 1", "128 tokens"] {
        assert!(text.contains(what), "{what} is not in\n{text}");
    }
}

#[test]
fn vectors_in_every_format() {
    if common::gpu().is_none() {
        return;
    }
    let model = golden("roberta-classifier");
    let embed = |line: &str| wginfer(line).model(&model);
    let json = embed("embed one two").json();
    let vector = |json: &Value| -> Vec<f32> {
        json["embedding"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|v| v.as_f64().expect("a number") as f32)
            .collect()
    };
    let vectors: Vec<Vec<f32>> = json.as_array().expect("a list").iter().map(vector).collect();
    assert_eq!((json[0]["text"].as_str(), json[1]["text"].as_str()), (Some("one"), Some("two")));
    assert!(vectors.len() == 2 && vectors[0] != vectors[1]);
    for vector in &vectors {
        assert_eq!(vector.len(), 64);
        assert!((vector.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-5);
    }
    let csv = embed("embed --format csv").stdin(b"one\r\ntwo\n").out();
    let rows: Vec<Vec<f32>> =
        csv.lines().map(|line| line.split(',').map(|v| v.parse().expect("a number")).collect()).collect();
    assert_eq!(rows, vectors);
    let dir = TempDir::new().expect("a folder");
    let (lines, npy) = (dir.path().join("lines.jsonl"), dir.path().join("vectors.npy"));
    fs::write(&lines, "{\"text\": \"one\"}\n\n{\"id\": 2, \"text\": \"two\"}\n").expect("it can be written");
    let done = embed("embed --jsonl --format npy").arg("-f").arg(&lines).arg("-o").arg(&npy).succeeds();
    assert_eq!(done.out, "");
    assert!(done.err.contains("2 texts"), "{}", done.err);
    let bytes = fs::read(&npy).expect("it was written");
    assert_eq!((&bytes[..8], bytes.len()), (&b"\x93NUMPY\x01\x00"[..], 128 + 2 * 64 * 4));
    let header = String::from_utf8_lossy(&bytes[10..128]);
    assert!(header.contains("'descr': '<f4'") && header.contains("'shape': (2, 64)"), "{header}");
    assert_eq!(bytemuck::pod_collect_to_vec::<u8, f32>(&bytes[128..]), vectors.concat());

    let table = embed("embed --similarity one two one").out();
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["#", "text", "1", "2", "3"]);
    assert_eq!((lines[1][2], lines[1][4], lines[2][3]), ("1.000", "1.000", "1.000"));
    assert_eq!(lines[1][3], lines[2][2]);
    assert_eq!(embed("embed --json one two").json(), json);
    embed("embed --json --format csv one").fails_to_parse();
    let json = embed("embed --similarity --json one two").json();
    let cosine: f32 = vectors[0].iter().zip(&vectors[1]).map(|(a, b)| a * b).sum();
    assert!((json["similarity"][0][1].as_f64().expect("a number") - f64::from(cosine)).abs() < 1e-5);
    // A prefix is part of the text.
    let prefixed = embed("embed --format csv --prefix on e").out();
    assert_eq!(prefixed.trim(), csv.lines().next().expect("a line"));
}

#[test]
fn texts_that_do_not_fit_or_are_not_there() {
    let model = golden("bert-classifier");
    let embed = |line: &str| wginfer(line).model(&model);
    embed("embed").fails(1, "there is no text in standard input");
    embed("embed -f ./not/there").fails(1, "./not/there");
    embed("embed --prompt-name query a").fails(2, "no prompt `query`, it has none");
    embed("embed a -f b").fails_to_parse();
    if common::gpu().is_none() {
        return;
    }
    embed("embed --ctx 0 a").fails(2, "`ctx` is 0");
    embed("embed a -o ./not/there").fails(1, "`./not/there` cannot be written");
    let long = "one ".repeat(1000);
    let done = embed("embed --format csv").arg(&long).arg("one").succeeds();
    assert!(done.err.contains("warning: 1 of 2 texts cut to 128 tokens"), "{}", done.err);
    assert_eq!(done.out.lines().count(), 2);
}

/// What is wrong with some lines costs these lines only.
#[test]
fn texts_that_fail_leave_the_others_as_they_are() {
    if common::gpu().is_none() {
        return;
    }
    let model = golden("bert-classifier");
    let run = |line: &str| wginfer(line).model(&model);
    // With a byte order mark, line ends of Windows, a blank line, one of Latin-1, and one of zeros.
    let lines = b"\xef\xbb\xbfa red ball\r\n\r\ncaf\xe9\r\na\0b\r\nrain\r\n";
    let jsonl = b"\xef\xbb\xbf{\"text\": \"a red ball\"}\r\n\n{\"txt\": 1}\n{\"text\": \"\"}\n{\"text\": \"rain\"}\n[]\n{\"text\"";
    let cases = [
        ("embed --json", &lines[..], &[(2, "byte 3 is `0xe9`"), (3, "byte 1 is `0x00`")][..]),
        (
            "classify --json --jsonl",
            &jsonl[..],
            &[
                (2, "expected a field `text`"),
                (3, "text is empty"),
                (5, "a JSON object"),
                (6, "a JSON object"),
            ],
        ),
    ];
    for (command, input, errors) in cases {
        let alone = run(command.trim_end_matches(" --jsonl")).arg("a red ball").arg("rain").json();
        let done = run(command).stdin(input).done();
        assert_eq!(done.code, Some(1), "{}", done.err);
        let rows: Value = serde_json::from_str(&done.out).expect("JSON");
        let rows = rows.as_array().expect("a list");
        assert_eq!(rows.len(), 2 + errors.len(), "{}", done.out);
        for (row, index, expected) in [(&rows[0], 0, &alone[0]), (&rows[3], 4, &alone[1])] {
            let mut expected = expected.clone();
            expected["index"] = index.into();
            assert_eq!(row, &expected, "the bits of every batch are the same");
        }
        for (index, what) in errors {
            let row = rows.iter().find(|row| row["index"] == *index).expect("a row");
            assert!(row["error"].as_str().is_some_and(|e| e.contains(what)), "{row}");
        }
        let summary = format!("error: {} of {} inputs failed", errors.len(), rows.len());
        assert!(done.err.contains("1 blank line skipped") && done.err.contains(&summary), "{}", done.err);
    }

    // Blank lines alone are no failure, and have no row.
    let rows = run("embed").stdin(b"\na\n \t\n\nb\n\n").json();
    let indices: Vec<_> = rows.as_array().expect("a list").iter().map(|row| row["index"].as_u64()).collect();
    assert_eq!(indices, [Some(1), Some(4)]);

    // Rows of numbers stay in the order of the texts.
    let csv = run("embed --format csv").stdin(lines).done();
    let rows: Vec<&str> = csv.out.lines().collect();
    assert_eq!((csv.code, rows.len()), (Some(1), 4));
    let is_nan = |row: &str| row.split(',').all(|cell| cell == "NaN") && row.split(',').count() == 64;
    assert_eq!(rows.iter().map(|row| is_nan(row)).collect::<Vec<_>>(), [false, true, true, false]);
    for line in
        ["line 3: not valid UTF-8: byte 3 is `0xe9`", "line 4: not text", "error: 2 of 4 inputs failed"]
    {
        assert!(csv.err.contains(line), "{}", csv.err);
    }
    let dir = TempDir::new().expect("a folder");
    let npy = dir.path().join("vectors.npy");
    let done = run("embed --format npy").arg("-o").arg(&npy).arg("a red ball").arg("").arg("rain").done();
    assert_eq!(done.code, Some(1));
    assert!(done.err.contains("error: text 2: the text is empty"), "{}", done.err);
    let values = bytemuck::pod_collect_to_vec::<u8, f32>(&fs::read(&npy).expect("it was written")[128..]);
    assert_eq!(values.len(), 3 * 64);
    assert!(values.iter().enumerate().all(|(i, value)| value.is_nan() == (64..128).contains(&i)));
    let to_stdout = run("embed --format csv -o -").arg("a red ball").succeeds();
    assert!(to_stdout.out.lines().count() == 1 && !Path::new("-").exists());
    let done = run("embed --similarity --json").arg("a red ball").arg(" ").arg("rain").done();
    let found: Value = serde_json::from_str(&done.out).expect("JSON");
    assert_eq!((done.code, &found["errors"][0]["index"]), (Some(1), &1.into()));
    assert!(found["similarity"][0][1].is_null() && found["similarity"][2][0].is_number(), "{found}");

    // All fail: every row says so.
    let done = run("classify --json").arg("").done();
    let rows: Value = serde_json::from_str(&done.out).expect("JSON");
    assert_eq!((done.code, &rows[0]["error"]), (Some(1), &"the text is empty".into()));
    // A mark that begins no file is none.
    let done = run("classify --json").stdin(b"a cat\n\xff\xfe bad\n").done();
    let rows: Value = serde_json::from_str(&done.out).expect("JSON");
    assert_eq!((done.code, &rows[1]["error"]), (Some(1), &"not valid UTF-8: byte 0 is `0xff`".into()));
    // Another encoding is an error of the whole file.
    run("embed").stdin(b"\xff\xfea\0\n\0").fails(1, "standard input is UTF-16");
}

/// What a file has in its names acts on no terminal, and is cut.
#[test]
fn names_of_files_are_escaped() {
    let acting = |text: &str| {
        text.contains(|c: char| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c)))
    };
    for (key, value) in [
        ("model_type", "\x1b]0;title\x07\x1b[31m".to_string()),
        ("model_type", "a\rb\u{9b}31m\u{202e}\x7f".to_string()),
        ("model_type", format!("\x1b{}", "x".repeat(4 << 20))),
        ("hidden_act", "\x1b[2J\nerror: fake".to_string()),
    ] {
        let dir = copy();
        change_config(dir.path(), |config| drop(config.insert(key.into(), value.into())));
        let done = wginfer("inspect").model(dir.path()).done();
        assert!(!acting(&done.out) && !acting(&done.err), "{} {}", done.out, done.err);
        assert!(done.err.len() < 2500 && done.err.lines().count() < 4, "{} bytes", done.err.len());
    }
    // A report for people is escaped, JSON is exact.
    let dir = copy_of("bert-classifier");
    let name = "\x1b[31mred\u{202e}";
    change_config(dir.path(), |config| {
        drop(config.insert("id2label".into(), serde_json::json!({ "0": name, "1": "b", "2": "c" })));
    });
    let shown = wginfer("inspect").model(dir.path()).out();
    assert!(!acting(&shown) && shown.contains("`\\u{1b}[31mred\\u{202e}`"), "{shown}");
    let json = wginfer("inspect --json").model(dir.path()).json();
    assert_eq!(json["classifier"]["labels"][0], name);
    let folder = TempDir::new().expect("a folder").path().join("\x1b[31m");
    let done = wginfer("inspect").model(&folder).done();
    assert!(done.err.contains("\\u{1b}[31m") && !acting(&done.err), "{}", done.err);
    // So is an argument that the parser repeats: a name that the shell has put there.
    for argument in ["\x1b]0;x\x07.flac", "\u{9b}31m\r.flac", "a\u{202e}.flac"] {
        let done = wginfer("inspect").arg(argument).done();
        assert!(done.code == Some(2) && done.err.contains(".flac") && !acting(&done.err), "{}", done.err);
    }
    if common::gpu().is_some() {
        let shown = wginfer("classify --top 3 rain").model(dir.path()).out();
        assert!(!acting(&shown.replace('\t', " ")) && shown.contains("\\u{1b}[31mred"), "{shown}");
    }
}

/// A model's own files may have byte order marks, too.
#[test]
fn files_of_a_model_with_byte_order_marks() {
    let dir = copy();
    let config = dir.path().join("config.json");
    let text = fs::read(&config).expect("a config");
    fs::write(&config, [b"\xef\xbb\xbf", &text[..]].concat()).expect("it can be written");
    wginfer("inspect").model(dir.path()).succeeds();
    fs::write(&config, b"\xff\xfe{\0}\0").expect("it can be written");
    wginfer("inspect").model(dir.path()).fails(1, "config.json` is not UTF-8");
}

// --- bench ---

/// A config so small that everything is measured in no time.
fn tiny_shape() -> TempDir {
    let dir = TempDir::new().expect("a folder");
    let config = r#"{"model_type": "llama", "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 24, "vocab_size": 97,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-5}"#;
    fs::write(dir.path().join("config.json"), config).expect("it can be written");
    dir
}

#[test]
fn bench_kernels_in_every_format() {
    if common::gpu().is_none() {
        return;
    }
    let dir = tiny_shape();
    let run = |flags: &str| {
        wginfer(&format!("bench kernels --quick --time-ms 2 --rows 1,33 {flags} --shape")).arg(dir.path())
    };
    let svg = dir.path().join("roof.svg");
    let report = run("--json").arg("--plot").arg(&svg).json();
    assert_eq!(report["kind"], "kernels");
    run("--json --format csv").fails_to_parse();
    let meta = &report["meta"];
    for key in ["adapter", "driver", "backend", "wgpu_version", "version", "date", "command"] {
        assert!(meta[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {meta}");
    }
    assert!(report["limits"]["copy_gbps"].as_f64() > Some(0.0));
    let rows = report["rows"].as_array().expect("a list");
    assert!(rows.iter().all(|row| row["is_right"] == true && row["us"].as_f64() > Some(0.0)), "{rows:?}");
    let picture = fs::read_to_string(&svg).expect("it was drawn");
    assert!(picture.starts_with("<svg") && picture.matches("<circle").count() > 10, "{picture}");

    let n = rows.iter().filter(|row| row["kernel"] == "gate").count();
    let done = run("silu").succeeds();
    assert_eq!(done.out.lines().count(), n + 1, "{}", done.out);
    assert!(done.err.contains("limits: copy "), "{}", done.err);
    let md = run("silu --format md").out();
    assert!(md.starts_with("| kernel |") && md.lines().nth(1).is_some_and(|l| l.starts_with("|---")), "{md}");
    let csv = run("silu --format csv --type f32").out();
    assert!(csv.lines().all(|line| line.split(',').count() == 12), "{csv}");
}

#[test]
fn bench_model_with_random_weights_and_with_a_file() {
    if common::gpu().is_none() {
        return;
    }
    let dir = tiny_shape();
    let tests = "-p 20 -n 4 --pg 5,3 -r 2 -b 1,2 -d 0,16";
    let svg = dir.path().join("bars.svg");
    let report = wginfer(&format!("bench model {tests} --type bf16 --json --shape"))
        .arg(dir.path())
        .arg("--plot")
        .arg(&svg)
        .json();
    assert_eq!((&report["kind"], &report["model"]["dtype"]), (&Value::from("model"), &Value::from("BF16")));
    assert_eq!(report["rows"].as_array().map(Vec::len), Some(12));
    assert!(report["model"]["times_include"].as_str().is_some_and(|text| text.contains("sampling")));
    assert!(fs::read_to_string(&svg).expect("it was drawn").contains("pp5+tg3"));
    let done = wginfer("bench model -p 0 -n 3 --pg 0 -r 1 --format md").model(&golden("llama")).succeeds();
    assert!(done.out.lines().last().is_some_and(|l| l.contains("tg3") && l.contains("F32")), "{}", done.out);
    assert!(done.err.contains("peak memory") && done.err.contains("compiled in"), "{}", done.err);
}

#[test]
fn bench_guest_shows_frames_and_their_budget() {
    if common::gpu().is_none() {
        return;
    }
    let report = wginfer("bench guest --budget 3,30 --frames 12 --json").model(&golden("llama")).json();
    let rows = report["rows"].as_array().expect("rows");
    let works: Vec<&str> = rows.iter().filter_map(|row| row["work"].as_str()).collect();
    assert_eq!(works, ["load", "prompt", "decode", "mixed"].repeat(2));
    for row in rows.iter().filter(|row| row["work"] != "load") {
        let times = |key: &str| -> Vec<f64> {
            row[key].as_array().expect("percentiles").iter().filter_map(Value::as_f64).collect()
        };
        for times in [times("device_ms"), times("host_ms"), times("calibrated")] {
            assert!(times.len() == 4 && times[0] > 0.0 && times.is_sorted(), "{row}");
        }
        assert!(row["n_frames"] == 12 && row["per_second"].as_f64() >= Some(0.0), "{row}");
    }
    // Few short frames may end no token.
    assert!(
        rows.iter().any(|row| row["work"] == "decode" && row["per_second"].as_f64() > Some(0.0)),
        "{report}"
    );
    assert!(report["smallest_slice_ms"].as_f64() > Some(0.0));
    let table = wginfer("bench guest --budget 8 --frames 5 --format md").model(&golden("llama")).succeeds();
    assert!(table.out.contains("| decode |") && table.err.contains("cannot be cut"), "{}", table.out);
    wginfer("bench guest --budget 0").model(&golden("llama")).fails(2, "`budget` is 0");
}

#[test]
fn bench_compare_reads_what_bench_writes() {
    if common::gpu().is_none() {
        return;
    }
    let dir = tiny_shape();
    let file = |name: &str, line: &str| {
        let path = dir.path().join(name);
        fs::write(&path, wginfer(line).arg("--shape").arg(dir.path()).out()).expect("it can be written");
        path
    };
    let a = file("a.json", "bench kernels silu --quick --time-ms 2 --format json");
    let b = file("b.json", "bench kernels silu --quick --time-ms 2 --format json");
    let m = file("m.json", "bench model -p 8 -n 0 --pg 0 -r 1 --format json");
    let svg = dir.path().join("bars.svg");
    let table = wginfer("bench compare").arg(&a).arg(&b).arg("--plot").arg(&svg).out();
    assert!(table.contains("times faster") && table.lines().count() == 4, "{table}");
    assert!(fs::read_to_string(&svg).expect("it was drawn").contains("<rect"));
    let json = wginfer("bench compare --json").arg(&m).arg(&m).json();
    assert_eq!(json["rows"][0]["values"][1]["speedup"], 1.0);
    wginfer("bench compare").arg(&a).arg(&m).fails(1, "model rows");
}

#[test]
fn bench_refuses_what_makes_no_sense() {
    let dir = TempDir::new().expect("a folder");
    wginfer("bench model --shape llama-4").fails(2, "`llama-4` is not known");
    wginfer("bench kernels --shape llama-4").fails(2, "`llama-4` is not known");
    wginfer("bench kernels --plot roof.png").fails(2, "`roof.png` is not the name of an SVG");
    fs::write(dir.path().join("config.json"), "{").expect("it can be written");
    wginfer("bench model --shape").arg(dir.path()).fails(1, "config.json");
    let impossible = r#"{"model_type": "llama", "intermediate_size": 9223372036854775808}"#;
    fs::write(dir.path().join("config.json"), impossible).expect("it can be written");
    for command in ["bench model --shape", "bench kernels --shape", "tune --dry-run --shape"] {
        wginfer(command).arg(dir.path()).fails(1, "`intermediate_size` is `9223372036854775808`, expected");
    }
    wginfer("bench compare a.json b.json").fails(1, "`a.json` cannot be read");
    wginfer("bench compare Cargo.toml Cargo.toml").fails(1, "`Cargo.toml` is no report");
    wginfer("bench compare a.json").fails_to_parse();
    wginfer("bench model --pg 3").fails_to_parse();
    wginfer("bench model --shape gpt2 --type f8").fails_to_parse();
    wginfer("bench").fails_to_parse();
    if common::gpu().is_some() {
        wginfer("bench kernels convolution").fails(2, "no kernel matches `convolution`");
        wginfer("bench kernels --rows 0").fails(2, "`rows` is 0");
        wginfer("bench model --shape llama-15m -r 0").fails(2, "`repetitions` is 0");
        wginfer("bench model --shape llama-15m -p 0 -n 0 --pg 0").fails(2, "`tests` is 0");
        wginfer("bench model --shape gpt2 -p 2000 -n 0 --pg 0").fails(1, "positions are learned");
    }
}

// --- tune ---

/// What is kept is used by later runs, named when it cannot be, and gone when asked to be.
#[test]
fn tune_keeps_what_it_chose() {
    let Some(_) = common::gpu() else { return };
    let dir = TempDir::new().expect("a temporary folder");
    let cache = dir.path().to_str().expect("UTF-8");
    let kept = || {
        let all = fs::read_dir(cache).expect("a folder").map(|entry| entry.expect("an entry").path());
        let is_tuning = |path: &PathBuf| path.to_string_lossy().contains("/tuning-");
        all.filter(is_tuning).collect::<Vec<_>>()
    };
    let tune = |flags: &str| wginfer(&format!("tune {flags}")).env("WGINFER_CACHE_DIR", cache);
    let done = tune("--time-ms 2 --dry-run").model(&golden("llama")).succeeds();
    let head = done.out.lines().next().expect("a header");
    assert!(head.contains("default") && head.contains("chosen") && head.contains("times faster"), "{head}");
    // Four matrices, decoding and in a prompt, and the head.
    assert_eq!(done.out.lines().count(), 1 + 9, "{}", done.out);
    assert!(kept().is_empty(), "a dry run keeps nothing");

    let json = tune("--time-ms 2 --json").model(&golden("llama")).json();
    let [path] = &kept()[..] else { panic!("one file: {:?}", kept()) };
    assert_eq!(json["kept_in"], *path.to_string_lossy());
    let rows = json["rows"].as_array().expect("a list");
    assert!(rows.len() == 9 && rows.iter().all(|row| row["chosen_us"].as_f64() > Some(0.0)), "{json}");

    let generate = || {
        let run = wginfer("generate --token-ids 1,5,9 --max-tokens 3 --temperature 0 --json");
        run.env("WGINFER_CACHE_DIR", cache).model(&golden("llama")).succeeds()
    };
    let before = generate();
    assert!(!before.err.contains("warning"), "{}", before.err);
    fs::write(path, "{").expect("it can be written");
    let after = generate();
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let said = after.err.lines().find(|line| line.starts_with("warning: ") && line.contains(&name));
    assert!(said.is_some_and(|line| line.contains("default variants run")), "{}", after.err);
    let switched_off = wginfer("generate --token-ids 1,5,9 --max-tokens 3").env("WGINFER_DISABLE", "tuning");
    let done = switched_off.env("WGINFER_CACHE_DIR", cache).model(&golden("llama")).succeeds();
    assert!(!done.err.contains("warning"), "{}", done.err);

    assert!(tune("--forget").succeeds().err.contains(&name));
    assert!(kept().is_empty());
    assert!(tune("--forget").succeeds().err.contains("nothing was kept"));
}

#[test]
fn tune_refuses_what_makes_no_sense() {
    wginfer("tune --shape llama-4").fails(2, "`llama-4` is not known");
    wginfer("tune --model ./not/there").fails(1, "./not/there");
    for line in
        ["--type f16", "--shape gpt2 --type f8", "--shape gpt2 --quantize Q8_0", "--forget --json", "tile"]
    {
        wginfer(&format!("tune {line}")).fails_to_parse();
    }
    if common::gpu().is_some() {
        wginfer("tune --shape llama-15m --time-ms 0").fails(2, "`time-ms` is 0");
    }
}

/// A model with a classification head has labels of its own; an embedder compares texts with those it is given.
#[test]
fn classify_with_a_head_and_with_an_embedder() {
    let json =
        wginfer("classify --json").arg("a fine day").arg("rain").model(&golden("bert-classifier")).json();
    for text in [&json[0], &json[1]] {
        let labels = text["labels"].as_array().expect("labels");
        let mut names: Vec<&str> = labels.iter().filter_map(|l| l["label"].as_str()).collect();
        names.sort();
        assert_eq!(names, ["negative", "neutral", "positive"]);
        let sum: f64 = labels.iter().filter_map(|l| l["probability"].as_f64()).sum();
        assert!((sum - 1.0).abs() < 1e-6, "{text}");
    }
    assert_ne!(json[0]["labels"], json[1]["labels"]);
    // What the head says is what `logits` shows.
    let shown = wginfer("logits --top 1").arg("a fine day").model(&golden("bert-classifier")).out();
    let best = json[0]["labels"][0]["label"].as_str().expect("a label");
    assert!(shown.lines().nth(1).is_some_and(|line| line.starts_with(best)), "{shown}");
    let own = "labels of its own: negative, neutral, positive";
    wginfer("classify rain --labels wet,dry").model(&golden("bert-classifier")).fails(2, own);

    // Several labels may hold, or none, or the head gives a value.
    let with = |key: &str, value: Value| {
        let dir = copy_of("bert-classifier");
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("a config")).expect("JSON");
        config[key] = value;
        fs::write(&path, config.to_string()).expect("it can be written");
        dir
    };
    let several = with("problem_type", "multi_label_classification".into());
    let json = wginfer("classify --json rain").model(several.path()).json();
    let labels = json[0]["labels"].as_array().expect("labels");
    let sum: f64 = labels.iter().filter_map(|l| l["probability"].as_f64()).sum();
    assert!((sum - 1.0).abs() > 1e-3, "{json}");
    let value = with("problem_type", "regression".into());
    wginfer("classify rain").model(value.path()).fails(1, "gives a value, not probabilities");

    // Without its head the model embeds.
    let embedder = with("architectures", serde_json::json!(["BertModel"]));
    wginfer("classify rain").model(embedder.path()).fails(2, "no labels given");
    wginfer("classify rain --labels wet,wet").model(embedder.path()).fails(2, "`wet` is there twice");
    let labels = ["--labels", "this: rain,that: snow"];
    let json = wginfer("classify --json rain").arg(labels[0]).arg(labels[1]).model(embedder.path()).json();
    assert_eq!(json[0]["labels"][0]["label"], "this", "a text is most like itself: {json}");
    assert!(json[0]["labels"][0]["probability"].as_f64() > Some(0.5), "{json}");
}

/// An embedder chooses the pieces of a document that are asked.
#[test]
fn answer_with_an_embedder() {
    let dir = copy_of("bert-classifier");
    let path = dir.path().join("config.json");
    let config =
        fs::read_to_string(&path).expect("a config").replace("BertForSequenceClassification", "BertModel");
    fs::write(&path, config).expect("it can be written");
    let story = |name: &str, pet: &str| {
        format!("{name} went to the hill. {name} found a {pet} there. {name} took the {pet} home.\n\n")
    };
    let names = ["Mia", "Tom", "Owen", "Lily", "Ben", "Sam", "Anna", "Max", "Ella", "Jack", "Nora", "Leo"];
    let document: String = names.iter().map(|name| story(name, "gray cat")).collect();
    let ask = |embedder: bool| {
        let run = wginfer("answer --json --piece-tokens 64 -f -").arg("What did Leo find?");
        let run = if embedder { run.arg("--embedder").arg(dir.path()) } else { run };
        run.stdin(document.as_bytes()).json()
    };
    let asked = |json: &Value| {
        let pieces = json["pieces"].as_array().expect("pieces");
        (pieces.len(), pieces.iter().filter(|piece| !piece["answer"].is_null()).count())
    };
    let (n, n_all) = asked(&ask(false));
    let (n_again, n_chosen) = asked(&ask(true));
    assert_eq!((n, n_all), (n_again, n));
    assert!(n_chosen < n, "{n_chosen} of {n} pieces were asked");
    wginfer("answer why --embedder").arg(golden("llama")).stdin(b"text").fails(1, "`llama` is a decoder");
}
