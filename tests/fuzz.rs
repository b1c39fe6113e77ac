//! Mutations of the files that people and attackers hand in. Each has to end in a result or in an error, soon and with
//! bounded memory; never in a panic, which here fails the test, nor in a crash, which ends it.
//!
//! A run is always the same for a while and stops by the clock, after `FUZZ_SECONDS` per kind of file (3 by default).
//! `FUZZ_SEED` chooses other mutations. What fails is kept in `target/fuzz`, and its name has the seed that makes it again.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::Rng;
use serde_json::{Value, json};
#[cfg(feature = "audio")]
use wginfer::audio::AudioReader;
use wginfer::checkpoint::{ModelFiles, open_tokenizer};
use wginfer::models;
use wginfer::text::{ChatTemplate, Message, TextError, Tokenizer, TokenizerFiles};
use wginfer::weights::Weights;

/// Seconds of a kind.
const SECONDS: u64 = 3;
/// Longest time for one input, with room for a busy machine.
const MOST_TIME: Duration = Duration::from_secs(20);
/// Most memory of the process.
const MOST_BYTES: u64 = 3 << 30;

/// A kind of input: how it is tried, and what is mutated.
struct Kind {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    mutate: fn(&mut Rng, &mut Vec<u8>),
    run: fn(&[u8]),
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

#[cfg(feature = "audio")]
fn file(path: &str) -> Vec<u8> {
    std::fs::read(root().join(path)).expect(path)
}

fn golden(name: &str) -> Vec<Vec<u8>> {
    let folders = std::fs::read_dir(root().join("tests/golden")).expect("the golden models");
    let paths = folders.map(|entry| entry.expect("an entry").path().join(name));
    let mut paths: Vec<PathBuf> = paths.filter(|path| path.exists()).collect();
    paths.push(root().join("assets/whisper-words").join(name));
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

fn kinds() -> Vec<Kind> {
    vec![
        Kind {
            name: "template",
            seeds: TEMPLATES.iter().map(|text| text.as_bytes().to_vec()).collect(),
            mutate: |rng, text| mutate_text(rng, text, &FRAGMENTS),
            run: template,
        },
        Kind { name: "config", seeds: golden("config.json"), mutate: mutate_json, run: config },
        Kind { name: "tokenizer", seeds: golden("tokenizer.json"), mutate: mutate_json, run: tokenizer },
        Kind { name: "folder", seeds: side_files(), mutate: mutate_json, run: folder },
        Kind { name: "gguf", seeds: small_ggufs(), mutate: mutate_gguf, run: gguf },
        Kind { name: "safetensors", seeds: vec![small_tensors()], mutate: mutate_header, run: safetensors },
        #[cfg(feature = "audio")]
        Kind { name: "audio", seeds: recordings(), mutate: mutate_bytes, run: audio },
    ]
}

/// Runs mutations of one kind for a time.
fn fuzz(kind: &Kind, seed: u64, time: Duration) -> usize {
    let began = Instant::now();
    let mut n = 0;
    while began.elapsed() < time {
        let seed = seed.wrapping_add(n as u64);
        let mut rng = Rng::new(seed);
        let mut bytes = kind.seeds[rng.below(kind.seeds.len())].clone();
        for _ in 0..1 + rng.below(3) {
            (kind.mutate)(&mut rng, &mut bytes);
        }
        let (name, run, input) = (kind.name, kind.run, bytes.clone());
        let (done, wait) = mpsc::channel();
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let thread = thread.spawn(move || {
            run(&input);
            let _ = done.send(());
        });
        let thread = thread.expect("a thread");
        let failure = match wait.recv_timeout(MOST_TIME) {
            Ok(()) => None,
            Err(mpsc::RecvTimeoutError::Timeout) => Some("takes too long"),
            Err(mpsc::RecvTimeoutError::Disconnected) => Some("panics"),
        };
        let failure = failure.or((peak_bytes() > MOST_BYTES).then_some("takes too much memory"));
        if let Some(failure) = failure {
            let kept = keep(name, seed, &bytes);
            panic!("{name}: the input of seed {seed} {failure}; it is in `{}`", kept.display());
        }
        thread.join().expect("it has ended");
        n += 1;
    }
    n
}

fn keep(name: &str, seed: u64, bytes: &[u8]) -> PathBuf {
    let dir = root().join("target/fuzz");
    std::fs::create_dir_all(&dir).expect("a folder");
    let path = dir.join(format!("{name}-{seed}"));
    std::fs::write(&path, bytes).expect("a file");
    path
}

/// The most memory that this process has used; 0 where the system does not tell.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn number(name: &str, default: u64) -> u64 {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|e| panic!("`{name}` is `{text}`: {e}"))
}

fn run(name: &str) {
    let kinds = kinds();
    let kind = kinds.iter().find(|kind| kind.name == name).expect("a kind");
    for seed in &kind.seeds {
        (kind.run)(seed);
    }
    let (time, seed) = (Duration::from_secs(number("FUZZ_SECONDS", SECONDS)), number("FUZZ_SEED", 1));
    let n = fuzz(kind, seed, time);
    println!("{name}: {n} inputs from seed {seed}");
    assert!(n >= 5, "{name}: {n} inputs in {time:?}");
}

#[test]
fn templates() {
    run("template");
}

#[test]
fn configs() {
    run("config");
}

#[test]
fn tokenizers() {
    run("tokenizer");
}

#[test]
fn folders() {
    run("folder");
}

#[test]
fn headers_of_gguf() {
    run("gguf");
}

#[test]
fn headers_of_safetensors() {
    run("safetensors");
}

#[cfg(feature = "audio")]
#[test]
fn sounds() {
    run("audio");
}

fn template(bytes: &[u8]) {
    let source = String::from_utf8_lossy(bytes);
    let tokens = BTreeMap::from([("bos_token".to_string(), "<s>".to_string())]);
    // The interpreter turns a panic of its own into an error.
    let check = |error: TextError| assert!(!error.to_string().contains("panicked"), "{source:?}: {error}");
    let template = match ChatTemplate::new(&source, tokens) {
        Ok(template) => template,
        Err(error) => return check(error),
    };
    let messages = [Message::system("Be brief."), Message::user("Hello, é!"), Message::assistant("Hi")];
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"a": [1, null]}}}]);
    let extra = serde_json::Map::from_iter([("tools".to_string(), tools)]);
    for n in [1, 2, 3] {
        for (start, variables) in [(true, Default::default()), (false, extra.clone())] {
            let _ = template.render(&messages[..n], start, &variables).map_err(check);
        }
    }
}

fn config(bytes: &[u8]) {
    if let Ok(architecture) = models::open(&String::from_utf8_lossy(bytes)) {
        let shape = architecture.shape();
        assert!(shape.n_layers() > 0 && shape.hidden_size > 0 && shape.vocab_size > 0);
        let _ = architecture.labels();
    }
}

fn tokenizer(bytes: &[u8]) {
    let files = TokenizerFiles { tokenizer: bytes, ..TokenizerFiles::default() };
    let Ok(tokenizer) = Tokenizer::from_files(&files) else { return };
    for text in ["", "Hello world", "  é🙂\n\t<s>aaaa", "the the the"] {
        if let Ok(ids) = tokenizer.encode(text, true) {
            let _ = tokenizer.decode(&ids, false);
            let _ = tokenizer.decode(&ids, true);
        }
    }
    let _ = tokenizer.decode(&[0, 1, 2, 7, u32::MAX], false);
}

const SIDE_FILES: [&str; 4] =
    ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"];

/// Side files, each with the byte of its name in front.
fn side_files() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for (i, name) in SIDE_FILES.iter().enumerate() {
        let contents = match *name {
            "special_tokens_map.json" => {
                vec![br#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": true}}"#.to_vec()]
            }
            name => {
                let demo = root().join("assets/demo").join(name);
                golden(name).into_iter().chain(std::fs::read(demo)).collect()
            }
        };
        // JSON may begin with spaces: their number says which file it is.
        all.extend(contents.into_iter().map(|bytes| [vec![b' '; i + 1], bytes].concat()));
    }
    all
}

/// A model with one file replaced.
fn folder(bytes: &[u8]) {
    let n_spaces = bytes.iter().take_while(|b| **b == b' ').count();
    let name = SIDE_FILES[n_spaces.saturating_sub(1) % SIDE_FILES.len()];
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"] {
        let from = root().join("tests/golden/llama").join(name);
        std::fs::copy(from, dir.path().join(name)).expect("a copy");
    }
    std::fs::write(dir.path().join(name), bytes).expect("a file");
    if let Ok(files) = ModelFiles::open(dir.path()) {
        let _ = files.abilities();
        if let Ok(tokenizer) = &files.tokenizer {
            let _ = tokenizer.encode("Hello", true);
            let _ = tokenizer.chat_template();
        }
    }
}

fn safetensors(bytes: &[u8]) {
    if let Ok(weights) = Weights::from_bytes(bytes.to_vec()) {
        let n: usize = weights.entries().iter().map(|entry| entry.n_bytes).sum();
        assert!(n <= bytes.len(), "tensors of {n} bytes in a file of {}", bytes.len());
        let _ = weights.n_params();
    }
}

/// Files of the golden models, and vocabularies of each kind.
fn small_ggufs() -> Vec<Vec<u8>> {
    let models = ["llama", "llama3-rope", "qwen3", "gpt2", "bert-classifier", "modernbert-classifier"];
    let models = models.map(|model| common::gguf::of_folder(&root().join("tests/golden").join(model)));
    let golden = common::gguf::vocabularies();
    let mut files = models.to_vec();
    for kind in ["gemma4", "bert", "t5"] {
        let cases = golden["cases"].as_array().expect("cases");
        let case = cases.iter().find(|case| case["keys"]["model"] == kind).expect(kind);
        files.push(common::gguf::vocabulary_of(&golden, case));
    }
    let mut llama = files[files.len() - 1].clone();
    llama.text("tokenizer.ggml.model", "llama");
    files.push(llama);
    files.iter().map(common::gguf::Gguf::bytes).collect()
}

/// Changes the header, where a few bytes decide: most of the file are tensors.
fn mutate_gguf(rng: &mut Rng, bytes: &mut Vec<u8>) {
    const ODD: [u64; 10] =
        [0, 1, 2, 9, 31, 255, 0xffff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX, 0xffff_ffff_ffff_ffe0];
    let header = bytes.len().min([40, 400, 4000, 24_000][rng.below(4)]);
    let at = rng.below(header.max(1));
    match rng.below(6) {
        0 => bytes[at] = rng.bits() as u8,
        1 => bytes[at] ^= 1 << rng.below(8),
        2 => {
            let value = ODD[rng.below(ODD.len())].to_le_bytes();
            let n = [1, 4, 8][rng.below(3)].min(bytes.len() - at);
            bytes[at..at + n].copy_from_slice(&value[..n]);
        }
        3 => bytes.truncate(at.max(4)),
        4 => {
            let end = (at + 1 + rng.below(40)).min(bytes.len());
            bytes.drain(at..end);
        }
        // Another number in place of one of a key.
        _ => {
            let keys = [
                "_count",
                "_length",
                "alignment",
                "head_count",
                "token_id",
                "token_type",
                "epsilon",
                "freq_base",
            ];
            let key = keys[rng.below(keys.len())].as_bytes();
            if let Some(found) = bytes.windows(key.len()).position(|window| window == key) {
                let value = (found + key.len() + 4).min(bytes.len() - 8);
                let odd = ODD[rng.below(ODD.len())].to_le_bytes();
                bytes[value..value + 4].copy_from_slice(&odd[..4]);
            }
        }
    }
}

fn gguf(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("a file");
    if let Ok(tokenizer) = open_tokenizer(&path)
        && let Ok(ids) = tokenizer.encode("Hello <s> é🙂", true)
    {
        let _ = tokenizer.decode(&ids, false);
    }
    let Ok(files) = ModelFiles::open(&path) else { return };
    let n: usize = files.weights.entries().iter().map(|entry| entry.n_bytes).sum();
    assert!(n <= bytes.len(), "tensors of {n} bytes in a file of {}", bytes.len());
    let _ = files.abilities();
    if let Ok(tokenizer) = &files.tokenizer {
        let _ = tokenizer.chat_template();
    }
}

fn small_tensors() -> Vec<u8> {
    let data = [0u8; 96];
    let view = |n: usize, shape: &[usize]| {
        let dtype = safetensors::Dtype::F32;
        safetensors::tensor::TensorView::new(dtype, shape.to_vec(), &data[..n]).expect("a view")
    };
    let views = [("a.weight", view(96, &[4, 6])), ("b.bias", view(16, &[4])), ("c", view(0, &[0, 3]))];
    safetensors::serialize(views, None).expect("safetensors")
}

/// Most samples that a mutated recording of some seconds may have.
#[cfg(feature = "audio")]
const MOST_SAMPLES: usize = 16_000 * 3600;

#[cfg(feature = "audio")]
fn audio(bytes: &[u8]) {
    let Ok(mut reader) = AudioReader::decode(bytes.to_vec()) else { return };
    let (mut samples, mut n) = (Vec::new(), 0);
    while n < MOST_SAMPLES {
        samples.clear();
        match reader.read(16_000, &mut samples) {
            Ok(0) | Err(_) => break,
            Ok(read) => n += read,
        }
        assert!(samples.iter().all(|x| x.is_finite()), "a sample is no number");
    }
}

#[cfg(feature = "audio")]
fn recordings() -> Vec<Vec<u8>> {
    let mut wav = Vec::new();
    let n = 2000u32;
    for part in [&b"RIFF"[..], &(36 + 2 * n).to_le_bytes(), b"WAVEfmt ", &16u32.to_le_bytes()] {
        wav.extend(part);
    }
    for field in [1u16, 1] {
        wav.extend(field.to_le_bytes());
    }
    for field in [8000u32, 16000] {
        wav.extend(field.to_le_bytes());
    }
    for field in [2u16, 16] {
        wav.extend(field.to_le_bytes());
    }
    wav.extend(b"data");
    wav.extend((2 * n).to_le_bytes());
    wav.extend((0..n).flat_map(|i| (((i * 37) % 2000) as i16 - 1000).to_le_bytes()));
    vec![wav, file("assets/whisper-words/en.flac"), file("assets/whisper-words/silence.flac")]
}

const TEMPLATES: [&str; 5] = [
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] | trim }}\n{% endfor %}\
     {% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set loop_messages = messages[1:] %}{% else %}\
     {% set loop_messages = messages %}{% endif %}{% for m in loop_messages %}{% if (m.role == 'user') != \
     (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content.strip() }}\
     {% endfor %}",
    "{%- macro show(x, depth=0) -%}{{ x | tojson(indent=2) }}{%- endmacro -%}{%- if tools is iterable and tools | \
     length > 0 -%}{% for tool in tools %}{{ show(tool.function) }}{% endfor %}{%- endif -%}{% set ns = \
     namespace(n=0, s='') %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% set ns.s = ns.s ~ m.content %}\
     {% endfor %}{{ ns.s[:40] }}{{ '%s and %d' | format('a', ns.n) }}",
    "{% for i in range(3) %}{{ 'a,b' .split(',') | join(';') }}{{ messages | selectattr('role', 'equalto', 'user') | \
     list | length }}{{ {'a': [1, 2.5, none]} | tojson }}{% endfor %}{{ 'x' * 3 }}{{ 'ab'.replace('a', 'bb') }}",
    "{{ messages | map(attribute='role') | unique | sort | join(',') | upper | title | center(40) | indent(2) }}\
     {{ messages | groupby('role') | first | last | length }}{{ 'a b' | wordcount }}{{ [3, 1] | sum }}{{ [1, 2, 3] | \
     batch(2) | list }}{{ {'b': 1, 'a': 2} | dictsort | reverse | list }}{{ '7' | int | abs | round | float }}\
     {{ messages | rejectattr('role', 'in', ['user']) | map('tojson') | join | truncate(9) | urlencode }}{{ x | default(1) }}",
];

const FRAGMENTS: [&str; 78] = [
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-%}",
    "{%-",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "'",
    "\"",
    " ~ ",
    " + ",
    " * ",
    " ** ",
    " // ",
    " % ",
    " is ",
    " in ",
    " not ",
    " if ",
    " else ",
    "|",
    "99999999999",
    "1e300",
    "-1",
    "0",
    "messages",
    "ns.s",
    "{% for a in range(10000) %}",
    "{% endfor %}",
    "{% if true %}",
    "{% endif %}",
    "{% set x = x ~ x %}",
    "tojson(indent=99999)",
    "indent(9999999999)",
    ".replace('', 'aaaaaaaa')",
    ".format(9)",
    "'{:>9999999999}'",
    "'%999999999s'",
    "slice(99999999)",
    "batch(1)",
    "range(9999999)",
    "{%- ",
    " -%}",
    "if ",
    "endif",
    "for x in ",
    "endfor",
    "set x = ",
    "macro f(",
    "\\",
    ".",
    ",",
    ":",
    "~",
    "%",
    "**",
    "-",
    "not ",
    "is ",
    "x",
    "1",
    "1e400",
    "0x",
    "raw",
    "endraw",
    "upper",
    "\r\n",
    "é",
    "'%s' % ",
    "else ",
    "\u{0}",
];

fn mutate_text(rng: &mut Rng, text: &mut Vec<u8>, fragments: &[&str]) {
    let at = rng.below(text.len() + 1);
    match rng.below(8) {
        // Nothing but pieces, in or out of an expression.
        0 => {
            let pieces = (0..1 + rng.below(30)).map(|_| fragments[rng.below(fragments.len())]);
            let made = pieces.collect::<String>();
            *text = match rng.below(2) {
                0 => made,
                _ => format!("{{{{ {} }}}}", made.replace(['{', '%', '#', '}'], " ")),
            }
            .into_bytes();
        }
        1 => {
            let fragment = fragments[rng.below(fragments.len())].repeat(1 << rng.below(3));
            text.splice(at..at, fragment.into_bytes());
        }
        2 => {
            let fragment = fragments[rng.below(fragments.len())];
            text.splice(at..(at + fragment.len()).min(text.len()), fragment.bytes());
        }
        // The same again, often.
        3 => {
            let end = (at + 1 + rng.below(60)).min(text.len());
            let piece = text[at..end].repeat(1 << rng.below(12));
            text.splice(at..at, piece.into_iter().take(1 << 18));
        }
        _ => mutate_bytes(rng, text),
    }
}

fn mutate_bytes(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let n = bytes.len();
    if n == 0 {
        return bytes.push(rng.bits() as u8);
    }
    // Headers decide more than what follows.
    let near = if rng.below(2) == 0 { n.min(300) } else { n };
    let at = rng.below(near);
    match rng.below(6) {
        0 => bytes.truncate(rng.below(n)),
        1 => bytes[at] ^= 1 << rng.below(8),
        2 => (0..1 + rng.below(20)).for_each(|_| {
            let at = rng.below(near);
            bytes[at] = rng.bits() as u8;
        }),
        3 => {
            let value = [0xff, 0, 0x7f, 0x80][rng.below(4)];
            bytes[at..(at + 8).min(n)].fill(value);
        }
        4 => {
            bytes.drain(at..(at + 1 + rng.below(2000)).min(n));
        }
        _ => {
            let piece = bytes[at..(at + 1 + rng.below(2000)).min(n)].to_vec();
            let to = rng.below(near);
            bytes.splice(to..to, piece);
        }
    }
}

/// The bytes of a header, mostly in its JSON, with the length put right or left as it was.
fn mutate_header(rng: &mut Rng, bytes: &mut Vec<u8>) {
    if bytes.len() < 8 || rng.below(5) == 0 {
        return mutate_bytes(rng, bytes);
    }
    let length = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let end = length.saturating_add(8).min(bytes.len());
    let mut header = bytes[8..end].to_vec();
    mutate_json(rng, &mut header);
    let (n, rest) = (header.len() as u64, bytes[end..].to_vec());
    let n = if rng.below(8) == 0 { rng.bits() >> rng.below(64) } else { n };
    *bytes = [&n.to_le_bytes()[..], &header, &rest].concat();
}

fn mutate_json(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let n_spaces = bytes.iter().take_while(|b| **b == b' ').count();
    let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else { return mutate_bytes(rng, bytes) };
    match rng.below(12) {
        0 => return mutate_bytes(rng, bytes),
        // Deeper than any parser's stack.
        1 => {
            let n = 1 << rng.below(18);
            let at = bytes.iter().position(|b| *b == b':').map_or(0, |at| at + 1);
            bytes.splice(at..at, [&b"["[..], br#"{"a":"#][rng.below(2)].repeat(n));
            return;
        }
        _ => {
            let odd = odd_value(rng);
            let mut places = 0;
            count(&value, &mut places);
            let mut at = rng.below(places.max(1));
            // The first places are the keys that decide.
            if rng.below(2) == 0 {
                at = at.min(rng.below(60));
            }
            replace(&mut value, &mut at, rng, &odd);
        }
    }
    *bytes = [vec![b' '; n_spaces], serde_json::to_vec(&value).expect("JSON")].concat();
}

fn odd_value(rng: &mut Rng) -> Value {
    match rng.below(16) {
        0 => Value::Null,
        1 => json!(0),
        2 => json!(-1),
        3 => json!(1u64 << (31 + rng.below(33))),
        4 => json!((1u64 << 32) + 1),
        5 => json!(1e300),
        6 => json!(-1e-300),
        7 => json!(""),
        8 => json!("a".repeat(1 << rng.below(16))),
        9 => json!([]),
        10 => json!({}),
        11 => json!(rng.below(2) == 0),
        12 => json!("\u{1b}[31m\u{202e}\0"),
        13 => json!(vec![1; 1 << rng.below(14)]),
        14 => json!({"content": "", "special": true, "type": "Sequence"}),
        _ => json!(rng.bits() >> rng.below(64)),
    }
}

/// Adds the number of values below one.
fn count(value: &Value, n: &mut usize) {
    *n += 1;
    match value {
        Value::Array(items) => items.iter().for_each(|item| count(item, n)),
        Value::Object(fields) => fields.values().for_each(|field| count(field, n)),
        _ => {}
    }
}

/// Replaces, removes or doubles value number `at`.
fn replace(value: &mut Value, at: &mut usize, rng: &mut Rng, odd: &Value) -> bool {
    if *at == 0 {
        *value = odd.clone();
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(items) => {
            for i in 0..items.len() {
                if *at == 0 && rng.below(3) == 0 {
                    if rng.below(2) == 0 {
                        items.remove(i);
                    } else {
                        let item = items[i].clone();
                        items.insert(i, item);
                    }
                    return true;
                }
                if replace(&mut items[i], at, rng, odd) {
                    return true;
                }
            }
        }
        Value::Object(fields) => {
            let names: Vec<String> = fields.keys().cloned().collect();
            for name in names {
                if *at == 0 && rng.below(3) == 0 {
                    fields.remove(&name);
                    return true;
                }
                if fields.get_mut(&name).is_some_and(|field| replace(field, at, rng, odd)) {
                    return true;
                }
            }
        }
        _ => {}
    }
    false
}

/// Rows of a `.jsonl` file are read by the command line: each is scored, or is an error of its own.
#[cfg(feature = "cli")]
#[test]
fn rows_of_jsonl() {
    let Some(_gpu) = common::gpu() else { return };
    let lines = [
        r#"{"prompt": "The capital of France is", "answer": " Paris"}"#,
        r#"{"text": "Once upon a time"}"#,
        r#"{"prompt": "a", "answers": [" b", " c"]}"#,
    ];
    let mut rng = Rng::new(11);
    let mut all = Vec::new();
    for i in 0..60 {
        let mut line = lines[i % 3].as_bytes().to_vec();
        (0..rng.below(3)).for_each(|_| mutate_json(&mut rng, &mut line));
        line.truncate(4000);
        line.retain(|b| *b != b'\n' && *b != b'\r');
        all.extend(line);
        all.push(b'\n');
    }
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("rows.jsonl");
    std::fs::write(&path, all).expect("a file");
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_wginfer"))
        .args(["score", "-q", "--json", "-f"])
        .arg(&path)
        .output()
        .expect("it runs");
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(matches!(run.status.code(), Some(0..=2)), "{:?}: {errors}", run.status);
    assert!(!errors.contains("panicked"), "{errors}");
    if !run.stdout.is_empty() {
        serde_json::from_slice::<Value>(&run.stdout).expect("a document");
    }
}
