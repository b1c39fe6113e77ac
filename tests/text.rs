//! The text layer against reference tokenizations and renderings, and on broken input.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use wginfer::checkpoint::{CheckpointError, open_tokenizer};
use wginfer::text::{
    ChatTemplate, Message, ReasoningEffort, ReasoningFormat, ReasoningOptions, StreamDecoder, TextError,
    Tokenizer, TokenizerFiles,
};

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of reference data that not every machine has; prints a line if it is absent.
fn shared(test: &str, folder: &str) -> Option<PathBuf> {
    let path = here().join("../shared").join(folder);
    if path.is_dir() {
        return Some(path);
    }
    // Not `eprintln!`: the test harness captures its output for tests that pass.
    let line = format!("{test}: skipped, `{}` is absent\n", path.display());
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn ids_of(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn golden_tokenizer_bytes() -> Vec<u8> {
    std::fs::read(here().join("tests/golden/llama/tokenizer.json")).unwrap()
}

fn golden_tokenizer() -> Tokenizer {
    tokenizer_of(&golden_tokenizer_bytes(), TokenizerFiles::default()).unwrap()
}

/// A tokenizer of `json` and what `others` has beside it.
fn tokenizer_of(json: &[u8], others: TokenizerFiles<'_>) -> Result<Tokenizer, TextError> {
    Tokenizer::from_files(&TokenizerFiles { tokenizer: json, ..others })
}

/// A `tokenizer_config.json` and nothing else.
fn config_only(config: &str) -> TokenizerFiles<'_> {
    TokenizerFiles { tokenizer_config: Some(config.as_bytes()), ..TokenizerFiles::default() }
}

/// Texts whose characters take two to four bytes, join, combine, or are spelled in byte tokens.
const TEXTS: [&str; 11] = [
    "",
    "Hello, world!",
    " leading space",
    "  two spaces, and two after  ",
    "line\n\nbreaks\n",
    "naïve café, e\u{301}\u{327} combining",
    "中文字符，混合 English 与数字 123。龘靐齉",
    "🦙🚀 😶\u{200d}🌫\u{fe0f} 👩\u{200d}👩\u{200d}👧 🇩🇪",
    "កាន់តែពិសេស อักษรไทย አማርኛ",
    "a replacement \u{fffd} character \u{fffd}\u{fffd} and one last \u{fffd}",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ∑∞ <0xE2>",
];

fn streamed(tokenizer: &Tokenizer, ids: &[u32], skip_special: bool) -> String {
    let mut decoder = StreamDecoder::new(tokenizer, skip_special);
    let mut text = String::new();
    for &id in ids {
        text += &decoder.push(id).unwrap();
    }
    text + &decoder.finish().unwrap()
}

fn assert_streams(tokenizer: &Tokenizer, ids: &[u32], what: &str) {
    for skip_special in [false, true] {
        let whole = tokenizer.decode(ids, skip_special).unwrap();
        assert_eq!(
            streamed(tokenizer, ids, skip_special),
            whole,
            "{what}: ids {ids:?}, skip_special {skip_special}"
        );
    }
}

/// A deterministic generator of ids that make no sensible text.
fn random_ids(seed: u64, n: usize, vocab_size: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..n).map(|_| (next() % vocab_size as u64) as u32).collect()
}

// --- tokenizer -------------------------------------------------------------------------------------------

#[test]
fn reference_tokenizations() {
    let Some(folder) = shared("reference_tokenizations", "golden/tokenizers") else { return };
    let mut n_cases = 0;
    for dir in sorted(&folder) {
        let tokenizer = open_tokenizer(&dir).unwrap();
        for case in json_file(&dir.join("cases.json")).as_array().unwrap() {
            let (text, ids) = (case["text"].as_str().unwrap(), ids_of(&case["ids"]));
            assert_eq!(tokenizer.encode(text, false).unwrap(), ids, "{}: {text:?}", dir.display());
            assert_eq!(tokenizer.encode_plain(text).unwrap(), ids, "{}: plain {text:?}", dir.display());
            assert_eq!(tokenizer.decode(&ids, false).unwrap(), text, "{}: {text:?}", dir.display());
            assert_streams(&tokenizer, &ids, "reference case");
            n_cases += 1;
        }
        for text in TEXTS {
            let ids = tokenizer.encode(text, true).unwrap();
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{}", dir.display());
            assert_streams(&tokenizer, &ids, text);
        }
        for seed in 0..40 {
            assert_streams(&tokenizer, &random_ids(seed, 60, tokenizer.vocab_size()), "random ids");
            // The lowest ids are the single bytes, so unfinished and invalid characters are frequent.
            assert_streams(&tokenizer, &random_ids(seed, 60, 262), "random bytes");
        }
    }
    assert!(n_cases >= 3 * 40, "only {n_cases} cases were compared");
}

#[test]
fn beginning_of_text_follows_the_post_processor() {
    let Some(dir) = shared("beginning_of_text_follows_the_post_processor", "models/stories260k") else {
        return;
    };
    let tokenizer = open_tokenizer(&dir).unwrap();
    assert_eq!(tokenizer.bos(), Some(1));
    assert_eq!(tokenizer.eos(), [2]);
    let golden = json_file(&dir.join("golden.json"));
    let golden = golden.as_array().unwrap();
    assert!(!golden.is_empty());
    for case in golden {
        let prompt = case["prompt"].as_str().unwrap();
        let ids = ids_of(&case["token_ids"]);
        assert_eq!(tokenizer.encode(prompt, true).unwrap(), ids, "{prompt:?}");
        assert_eq!(tokenizer.encode(prompt, false).unwrap(), ids[1..], "{prompt:?}");
        assert_streams(&tokenizer, &ids, prompt);
        assert_streams(&tokenizer, &ids_of(&case["greedy"]), prompt);
    }
    for text in TEXTS {
        assert_streams(&tokenizer, &tokenizer.encode(text, true).unwrap(), text);
    }
    for seed in 0..200 {
        assert_streams(&tokenizer, &random_ids(seed, 50, 300), "random ids, half of them bytes");
    }
}

#[test]
fn padding_and_truncation_of_training_do_not_apply() {
    let Some(dir) = shared("padding_and_truncation_of_training_do_not_apply", "models/all-MiniLM-L6-v2")
    else {
        return;
    };
    let tokenizer = open_tokenizer(&dir).unwrap();
    let short = tokenizer.encode("hello", true).unwrap();
    assert_eq!(short, [101, 7592, 102]);
    assert_eq!(tokenizer.encode(&"hello ".repeat(700), true).unwrap().len(), 702);
}

#[test]
fn ends_of_text_are_the_union_of_all_files() {
    let json = golden_tokenizer_bytes();
    let plain = golden_tokenizer();
    let special = (0..plain.vocab_size() as u32).find(|&id| plain.is_special(id)).unwrap();
    let token = plain.id_to_token(special).unwrap();
    for eos in [json!(token), json!({ "content": token, "special": true })] {
        let config = json!({ "eos_token": eos, "bos_token": null }).to_string();
        let generation = json!({ "eos_token_id": [7, 5, special] }).to_string();
        let model = json!({ "eos_token_id": 5, "bos_token_id": 3 }).to_string();
        let files = TokenizerFiles {
            generation_config: Some(generation.as_bytes()),
            config: Some(model.as_bytes()),
            ..config_only(&config)
        };
        let tokenizer = tokenizer_of(&json, files).unwrap();
        assert_eq!(tokenizer.eos(), [special, 7, 5]);
        assert_eq!(tokenizer.bos(), Some(3));
    }
    assert_eq!(plain.eos(), [0; 0]);
    assert_eq!(plain.bos(), None);
}

#[test]
fn special_tokens_in_a_text() {
    let tokenizer = golden_tokenizer();
    let special = (0..tokenizer.vocab_size() as u32).find(|&id| tokenizer.is_special(id)).unwrap();
    let token = tokenizer.id_to_token(special).unwrap();
    let text = format!("a{token}b");
    let ids = tokenizer.encode(&text, false).unwrap();
    assert!(ids.contains(&special));
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "ab");
    assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    let plain = tokenizer.encode_plain(&text).unwrap();
    assert!(!plain.contains(&special));
    assert_eq!(tokenizer.decode(&plain, true).unwrap(), text);
    assert_eq!(tokenizer.token_to_id(&token), Some(special));
    assert_eq!(tokenizer.token_to_id("no such token"), None);
    assert_eq!(tokenizer.id_to_token(u32::MAX), None);
    assert!(!tokenizer.is_special(u32::MAX));
}

#[test]
fn a_token_named_special_in_the_config_becomes_special() {
    let plain = golden_tokenizer();
    let id = plain.encode("a", false).unwrap()[0];
    assert!(!plain.is_special(id));
    let config = json!({ "eos_token": "a", "pad_token": "no such token" }).to_string();
    let tokenizer = tokenizer_of(&golden_tokenizer_bytes(), config_only(&config)).unwrap();
    assert!(tokenizer.is_special(id));
    assert_eq!(tokenizer.eos(), [id]);
    // A name that is no token becomes one.
    assert_eq!(tokenizer.vocab_size(), plain.vocab_size() + 1);
    assert_eq!(tokenizer.encode("no such token", false).unwrap(), [plain.vocab_size() as u32]);
}

/// Small tokenizers with every kind of setting beside them, and the ids that `AutoTokenizer` gives.
#[test]
fn all_files_count_as_in_transformers_5() {
    let golden = json_file(&here().join("tests/golden/auto_tokenizer.json"));
    let cases = golden["cases"].as_array().unwrap();
    for case in cases {
        let json = golden["tokenizers"][case["base"].as_str().unwrap()].to_string();
        let file = |name: &str| case["files"].get(name).map(Value::to_string);
        let (config, map, added) =
            (file("tokenizer_config"), file("special_tokens_map"), file("added_tokens"));
        let model = file("config");
        let files = TokenizerFiles {
            tokenizer_config: config.as_deref().map(str::as_bytes),
            special_tokens_map: map.as_deref().map(str::as_bytes),
            added_tokens: added.as_deref().map(str::as_bytes),
            config: model.as_deref().map(str::as_bytes),
            ..TokenizerFiles::default()
        };
        let tokenizer = tokenizer_of(json.as_bytes(), files).unwrap();
        for text in case["texts"].as_array().unwrap() {
            let (name, input) = (&case["name"], text["text"].as_str().unwrap());
            let ids = ids_of(&text["ids"]);
            assert_eq!(tokenizer.encode(input, true).unwrap(), ids, "{name}: {input:?}");
            assert_eq!(tokenizer.encode(input, false).unwrap(), ids_of(&text["inner"]), "{name}: {input:?}");
            assert_eq!(tokenizer.encode_cut(input, 512).unwrap(), (ids.clone(), 0), "{name}: {input:?}");
            assert_eq!(tokenizer.decode(&ids, true).unwrap(), text["decoded"], "{name}: {input:?}");
            assert_streams(&tokenizer, &ids, input);
        }
    }
    assert!(cases.len() >= 40);
}

// --- streaming -------------------------------------------------------------------------------------------

/// A SentencePiece-style vocabulary: words, single characters, and all 256 bytes.
fn byte_fallback_tokenizer(decoder: Value) -> Tokenizer {
    let mut vocab = Map::new();
    for byte in 0..256 {
        vocab.insert(format!("<0x{byte:02X}>"), json!(byte));
    }
    for token in ["▁", "▁the", "cat", "s", "▁▁", "\u{fffd}", "é", ".", "<unk>"] {
        vocab.insert(token.to_string(), json!(vocab.len()));
    }
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
        "post_processor": null, "decoder": decoder,
        "added_tokens": [{ "id": 265, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true }],
        "model": { "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab, "merges": [] },
    });
    tokenizer_of(json.to_string().as_bytes(), TokenizerFiles::default()).unwrap()
}

fn llama_decoder() -> Value {
    json!({ "type": "Sequence", "decoders": [
        { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
        { "type": "ByteFallback" }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] })
}

#[test]
fn streaming_equals_decoding_at_once() {
    let metaspace =
        json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true });
    let both = json!({ "type": "Sequence", "decoders": [{ "type": "ByteFallback" }, metaspace] });
    let word_piece = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    let tokenizers = [
        golden_tokenizer(),
        byte_fallback_tokenizer(llama_decoder()),
        byte_fallback_tokenizer(metaspace),
        byte_fallback_tokenizer(both),
        byte_fallback_tokenizer(word_piece),
        byte_fallback_tokenizer(json!(null)),
    ];
    for (i, tokenizer) in tokenizers.iter().enumerate() {
        for text in TEXTS {
            assert_streams(tokenizer, &tokenizer.encode(text, false).unwrap(), text);
        }
        for seed in 0..300 {
            // A few ids beyond the vocabulary, which decoding omits.
            let ids = random_ids(seed, 1 + seed as usize % 70, tokenizer.vocab_size() + 3);
            assert_streams(tokenizer, &ids, &format!("tokenizer {i}, seed {seed}"));
            let mostly_words: Vec<u32> =
                ids.iter().map(|id| if id % 3 == 0 { *id } else { 256 + id % 10 }).collect();
            assert_streams(tokenizer, &mostly_words, &format!("tokenizer {i}, words, seed {seed}"));
        }
    }
}

#[test]
fn streaming_with_every_shared_tokenizer() {
    for folder in ["golden", "models"] {
        let Some(folder) = shared("streaming_with_every_shared_tokenizer", folder) else { continue };
        let mut n = 0;
        for dir in sorted(&folder).into_iter().filter(|dir| dir.join("tokenizer.json").exists()) {
            let tokenizer = open_tokenizer(&dir).unwrap();
            for text in TEXTS {
                assert_streams(&tokenizer, &tokenizer.encode(text, true).unwrap(), text);
            }
            for seed in 0..10 {
                let what = dir.display().to_string();
                assert_streams(&tokenizer, &random_ids(seed, 60, tokenizer.vocab_size()), &what);
            }
            n += 1;
        }
        assert!(n > 0);
    }
}

/// The comparison above does not notice a decoder that returns everything at the end, nor, without hard texts, a naive one.
#[test]
fn pieces_come_early_and_whole() {
    let tokenizer = golden_tokenizer();
    let text = "plain words 🦙 é";
    let ids = tokenizer.encode(text, false).unwrap();
    let naive: String = ids.iter().map(|&id| tokenizer.decode(&[id], false).unwrap()).collect();
    assert_ne!(naive, text, "the text must have characters that span tokens");

    let mut decoder = StreamDecoder::new(&tokenizer, true);
    let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id).unwrap()).collect();
    assert_eq!(pieces.concat(), text, "nothing is left for the end of a complete text");
    assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
    assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 5);
    assert_eq!(decoder.finish().unwrap(), "");

    // Each ASCII token comes out at once, spaces included, and a finished decoder can be reused.
    for id in tokenizer.encode("plain words", false).unwrap() {
        assert_eq!(decoder.push(id).unwrap(), tokenizer.decode(&[id], false).unwrap());
    }
}

#[test]
fn byte_tokens_wait_for_the_rest_of_their_run() {
    let tokenizer = byte_fallback_tokenizer(llama_decoder());
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let mut decoder = StreamDecoder::new(&tokenizer, true);
    let mut push = |token: &str| decoder.push(id(token)).unwrap();
    assert_eq!(push("▁the"), "the");
    assert_eq!(push("▁"), " ");
    for byte in ["<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"] {
        assert_eq!(push(byte), "");
    }
    assert_eq!(push("<|end|>"), "", "a skipped token neither ends the run nor becomes context");
    assert_eq!(push("cat"), "🦙cat");
    assert_eq!(push("▁the"), " the");
    assert_eq!(push("<0xF0>"), "");
    assert_eq!(decoder.finish().unwrap(), "\u{fffd}");
}

/// The answer of a model to `prompt`, as it is streamed.
fn answered(tokenizer: &Tokenizer, prompt: &[u32], answer: &[u32]) -> String {
    let mut decoder = StreamDecoder::after(tokenizer, prompt, true).unwrap();
    let mut text = String::new();
    for id in answer {
        text += &decoder.push(*id).unwrap();
    }
    text + &decoder.finish().unwrap()
}

#[test]
fn an_answer_has_none_of_the_prompt_s_bytes() {
    let tokenizer = byte_fallback_tokenizer(llama_decoder());
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let ids = |tokens: &[&str]| tokens.iter().map(|token| id(token)).collect::<Vec<_>>();
    // (the end of the prompt, the answer, its text)
    for (prompt, answer, text) in [
        (&["▁the", "<0x0A>"][..], &["cat"][..], "cat"),
        (&["▁the", "<0x0A>"], &["▁the"], " the"),
        (&["<0xF0>", "<0x9F>", "<0xA6>", "<0x99>"], &["cat", "s"], "cats"),
        // The bytes of both together would be a character, or spoil one.
        (&["<0xC3>"], &["<0xA9>"], "\u{fffd}"),
        (&["<0x0A>"], &["<0xC3>", "<0xA9>", "s"], "és"),
        (&["<0x80>"], &["<0xC3>", "<0xA9>"], "é"),
        (&["<0x0A>"], &["<0x80>", "s"], "\u{fffd}s"),
        (&["<|end|>"], &["▁the"], "the"),
        (&["<|end|>", "<0x0A>"], &["▁the"], " the"),
        (&["cat"], &["▁the"], " the"),
        (&[], &["▁the"], "the"),
    ] {
        assert_eq!(answered(&tokenizer, &ids(prompt), &ids(answer)), text, "{prompt:?}, {answer:?}");
    }
    // Ids that are not in the vocabulary are nothing.
    assert_eq!(answered(&tokenizer, &[id("cat"), 9_999], &ids(&["▁the"])), " the");

    // A prompt of ids may end within a character in any vocabulary.
    let tokenizer = golden_tokenizer();
    let parts = tokenizer.encode("é", false).unwrap();
    assert_eq!(parts.len(), 2);
    let [word] = tokenizer.encode("a", false).unwrap()[..] else { panic!() };
    assert_eq!(answered(&tokenizer, &parts[..1], &[word]), "a");
    assert_eq!(answered(&tokenizer, &parts, &[word]), "a");
    assert_eq!(answered(&tokenizer, &parts[..1], &[parts[1], word]), "\u{fffd}a");
}

#[test]
fn pending_text_is_what_finish_returns() {
    let tokenizer = byte_fallback_tokenizer(llama_decoder());
    let mut decoder = StreamDecoder::after(&tokenizer, &[], true).unwrap();
    let mut seen = Vec::new();
    for token in ["▁the", "<0x0A>", "<0xC3>", "<0xA9>", "s"] {
        decoder.push(tokenizer.token_to_id(token).unwrap()).unwrap();
        seen.push(decoder.pending().unwrap());
    }
    assert_eq!(seen, ["", "\n", "\u{fffd}\u{fffd}", "\né", ""]);
    assert_eq!(decoder.finish().unwrap(), "");
}

#[test]
fn garbage_does_not_accumulate() {
    // Continuation bytes by themselves form no character; each comes out as a replacement character one token later.
    let tokenizer = golden_tokenizer();
    let text = "é".to_string();
    let last = *tokenizer.encode(&text, false).unwrap().last().unwrap();
    let mut decoder = StreamDecoder::new(&tokenizer, true);
    let n_chars: usize = (0..1000).map(|_| decoder.push(last).unwrap().chars().count()).sum();
    assert_eq!(n_chars, 999);
    assert_eq!(decoder.finish().unwrap(), "\u{fffd}");
}

#[test]
fn decoders_and_tokenizers_move_between_threads() {
    fn is_send<T: Send + 'static>(_: &T) {}
    fn is_sync<T: Sync>(_: &T) {}
    let tokenizer = golden_tokenizer();
    is_send(&tokenizer);
    is_sync(&tokenizer);
    is_send(&StreamDecoder::new(&tokenizer.clone(), false));
}

// --- chat templates --------------------------------------------------------------------------------------

fn strings(value: &Value) -> BTreeMap<String, String> {
    value.as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.as_str().unwrap().to_string())).collect()
}

fn render(source: &str, extra: Value) -> Result<String, TextError> {
    let template = ChatTemplate::new(source, BTreeMap::from([("bos_token".to_string(), "<s>".to_string())]))?;
    let messages =
        [Message::system("Be brief."), Message::user("  Hi <b>&\"you\" "), Message::assistant("Yes.")];
    template.render(&messages, true, extra.as_object().unwrap())
}

#[test]
fn reference_renderings() {
    let Some(folder) = shared("reference_renderings", "golden/chat") else { return };
    let mut n_cases = 0;
    for path in sorted(&folder) {
        let golden = json_file(&path);
        let source = golden["chat_template"].as_str().unwrap();
        let template = ChatTemplate::new(source, strings(&golden["special_tokens"])).unwrap();
        for case in golden["rendered"].as_array().unwrap() {
            let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
            let open = case["add_generation_prompt"].as_bool().unwrap();
            let text = template.render(&messages, open, &Map::new()).unwrap();
            assert_eq!(text, case["text"].as_str().unwrap(), "{}: {}", path.display(), case["title"]);
            n_cases += 1;
        }
    }
    assert!(n_cases >= 4 * 6, "only {n_cases} conversations were compared");
}

#[test]
fn qwen3_tools_and_thinking() {
    let Some(folder) = shared("qwen3_tools_and_thinking", "golden/chat") else { return };
    let golden = json_file(&folder.join("qwen3.json"));
    let template = ChatTemplate::new(golden["chat_template"].as_str().unwrap(), BTreeMap::new()).unwrap();
    let tool = json!({ "type": "function", "function": { "name": "zeit", "description": "<Ort> & \"Zeit\" für 'dich'" } });
    let extra = json!({ "tools": [tool], "enable_thinking": false });
    let text = template.render(&[Message::user("Hi")], true, extra.as_object().unwrap()).unwrap();
    let line =
        r#"{"type": "function", "function": {"name": "zeit", "description": "<Ort> & \"Zeit\" für 'dich'"}}"#;
    assert!(text.contains(&format!("<tools>\n{line}\n</tools>")), "{text}");
    assert!(text.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"), "{text}");

    let messages =
        [Message::user("1"), Message::assistant("<think>\nhm\n</think>\n\nok"), Message::user("2")];
    let text = template.render(&messages, false, &Map::new()).unwrap();
    let expected =
        "<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\nok<|im_end|>\n<|im_start|>user\n2<|im_end|>\n";
    assert_eq!(text, expected);
}

/// Templates of models that think: which options they have, what they get of earlier thoughts, and how a tokenizer's marks
/// are found.
#[test]
fn thoughts_in_templates_and_tokenizers() {
    let options = |enabled, effort| ReasoningOptions { enabled, effort };
    let variables = |source: &str, options: ReasoningOptions| {
        options.variables(&ChatTemplate::new(source, BTreeMap::new()).unwrap()).map(Value::Object)
    };
    let (off, low) = (options(Some(false), None), options(None, Some(ReasoningEffort::Low)));
    let set = "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}{{ enable_thinking }}";
    assert_eq!(variables(set, off), Ok(json!({ "enable_thinking": false })));
    assert_eq!(variables("{{ 1 if thinking else 2 }}", off), Ok(json!({ "thinking": false })));
    let gpt_oss = "{% macro f() %}{{ 'Reasoning: ' + reasoning_effort }}{% endmacro %}{{ f() }}";
    assert_eq!(variables(gpt_oss, low), Ok(json!({ "reasoning_effort": "low" })));
    assert_eq!(variables(gpt_oss, options(None, None)), Ok(json!({})));
    let not_read = |name| Err(TextError::VariableNotRead { name });
    assert_eq!(variables(set, low), not_read("reasoning_effort"));
    // An attribute, a text, and a name of its own are none.
    for source in ["{{ m.thinking }}", "{{ 'thinking' }}", "{% set thinking = 1 %}{{ thinking }}", "thinking"]
    {
        assert_eq!(variables(source, off), not_read("enable_thinking"), "{source}");
    }

    let message = Message { reasoning_content: Some("hm".into()), ..Message::assistant("Yes.") };
    let source = "{% for m in messages %}{{ m.reasoning_content }}|{{ m.thinking }}|{{ 'thinking' in m }};{% endfor %}";
    let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
    let text = template.render(&[message, Message::user("a")], true, &Map::new()).unwrap();
    assert_eq!(text, "hm|hm|True;||False;");

    let format = |tokens: &[(&str, bool)], template: Option<&str>| {
        let added: Vec<Value> = tokens
            .iter()
            .enumerate()
            .map(|(id, (token, special))| {
                json!({ "id": id, "content": token, "special": special, "single_word": false,
                "lstrip": false, "rstrip": false, "normalized": false })
            })
            .collect();
        let vocab: Map<String, Value> =
            tokens.iter().enumerate().map(|(id, (token, _))| (token.to_string(), id.into())).collect();
        let json = json!({ "added_tokens": added, "model": { "type": "BPE", "vocab": vocab, "merges": [] } });
        let files =
            TokenizerFiles { chat_template_jinja: template.map(str::as_bytes), ..TokenizerFiles::default() };
        let tokenizer = tokenizer_of(json.to_string().as_bytes(), files).unwrap();
        let format = ReasoningFormat::of(&tokenizer)?;
        Some((format, format.special_tokens(&tokenizer)))
    };
    let think = ReasoningFormat::Tags { open: "<think>", close: "</think>" };
    assert_eq!(format(&[("a", false), ("<think>", false), ("</think>", false)], None), Some((think, vec![])));
    assert_eq!(
        format(&[("a", false), ("<think>", true), ("</think>", true)], None),
        Some((think, vec![1, 2]))
    );
    assert_eq!(format(&[("a", false)], Some("{{ '<think>\n' }}")), Some((think, vec![])));
    let channels = [("<|start|>", true), ("<|channel|>", true), ("a", false), ("<|message|>", true)];
    assert_eq!(format(&channels, None), Some((ReasoningFormat::Channels, vec![0, 1, 3])));
    assert_eq!(format(&[("a", false)], Some("{{ 'think' }}")), None);
}

/// Special tokens that a request shows are text, in their place.
#[test]
fn shown_special_tokens_are_text() {
    let json = json!({
        "added_tokens": [{ "id": 2, "content": "<|x|>", "special": true, "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false }, { "id": 3, "content": "<|y|>", "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false }],
        "decoder": { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
        "model": { "type": "BPE", "vocab": { "a": 0, "Ã": 1, "<|x|>": 2, "<|y|>": 3 }, "merges": [] },
    });
    let tokenizer = tokenizer_of(json.to_string().as_bytes(), TokenizerFiles::default()).unwrap();
    let text = |shown: Vec<u32>| {
        let mut decoder = StreamDecoder::new(&tokenizer, true).showing(shown);
        let pieces = [0, 2, 1, 3, 0].map(|id| decoder.push(id).unwrap());
        pieces.concat() + &decoder.finish().unwrap()
    };
    assert_eq!(text(vec![2]), "a<|x|>\u{fffd}a");
    assert_eq!(text(vec![3, 2]), "a<|x|>\u{fffd}<|y|>a");
    assert_eq!(text(vec![]), "a\u{fffd}a");
}

#[test]
fn templates_render_as_in_python() {
    // (template, output of Jinja2 with transformers' settings)
    let cases = [
        ("{{ bos_token }}{{ eos_token }}|", "<s>|"),
        (
            "{% for m in messages %}\n  {% if loop.index0 == 1 %}{% break %}{% endif %}\n{{ m.role }}\n{% endfor %}\n",
            "system\n",
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m['role'] }};{% endfor %}",
            "system;assistant;",
        ),
        ("{{ messages[1:]|length }}{{ messages[::-1][0].role }}", "2assistant"),
        ("{{ messages[1].content.strip().replace('Hi', 'Ho').split(' ')[0].upper() }}", "HO"),
        ("{{ messages[1].content }}", "  Hi <b>&\"you\" "),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{{ tools is none }} {{ tools is defined }} {{ nothing is defined }}", "True True False"),
        ("{{ messages[0] | tojson }}", r#"{"role": "system", "content": "Be brief."}"#),
        ("{{ messages[1].content | tojson }}", r#""  Hi <b>&\"you\" ""#),
        (
            "{{ v | tojson }}",
            r#"{"b": [1, 2.5, 1e-07, 1e+16], "a": {"ü": null, "t": true}, "e": [], "o": {}}"#,
        ),
        (
            "{{ v | tojson(sort_keys=true, ensure_ascii=true, separators=(',', ':')) }}",
            r#"{"a":{"t":true,"\u00fc":null},"b":[1,2.5,1e-07,1e+16],"e":[],"o":{}}"#,
        ),
        (
            "{{ v | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1,\n    2.5,\n    1e-07,\n    1e+16\n  ],\n  \"a\": {\n    \"ü\": null,\n    \"t\": true\n  },\n  \"e\": [],\n  \"o\": {}\n}",
        ),
        (
            "{% for m in messages %}{%- generation -%} {{ m.role }} {% endgeneration %}{% endfor %}",
            "system user assistant ",
        ),
        ("{% for k, x in v.a.items() %}{{ k }}={{ x }},{% endfor %}", "ü=None,t=True,"),
        ("{{ 'generation' }} {# {% generation %} #}", "generation "),
        ("{{ '<' + messages[1].content | trim + '>' }}", "<Hi <b>&\"you\">"),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | map(attribute='role') | join(',') }}",
            "1system,user,assistant",
        ),
        ("{% macro f(a, b='x') %}{{ a ~ b }}{% endmacro %}{{ f('1') }}{{ f('1', b=2) }}", "1x12"),
        ("{{ messages[0] }}{{ ['a', 1, none] }}", "{'role': 'system', 'content': 'Be brief.'}['a', 1, None]"),
        (
            "{{ messages is mapping }}{{ messages[0] is mapping }}{{ false is false }}{{ messages[9] is defined }}",
            "FalseTrueTrueFalse",
        ),
        (
            "{% set x %}a{{ 1 }}b{% endset %}{{ x }}{{ x|length }}{{ nope | default('d') }}{{ nope or 'y' }}",
            "a1b3dy",
        ),
        ("a\n  {# c #}\nb\n  {%+ if 1 %}x{% endif +%}\ny\n\n", "a\nb\n  x\ny\n"),
        ("{{ strftime_now('%Y')|length }}", "4"),
    ];
    let extra =
        json!({ "v": { "b": [1, 2.5, 1e-7, 1e16], "a": { "ü": null, "t": true }, "e": [], "o": {} } });
    for (source, expected) in cases {
        assert_eq!(render(source, extra.clone()).as_deref(), Ok(expected), "{source}");
    }
    assert_eq!(
        render("{{ add_generation_prompt }}", json!({ "add_generation_prompt": 5 })).as_deref(),
        Ok("5")
    );
}

/// `tests/golden/templates.json` has what Jinja2 makes of our own templates, set up as transformers does it.
#[test]
fn templates_render_as_with_jinja2() {
    let golden = json_file(&here().join("tests/golden/templates.json"));
    let messages: Vec<Message> = serde_json::from_value(golden["messages"].clone()).unwrap();
    let rendered = |source: &str| {
        let special_tokens = BTreeMap::from([("bos_token".to_string(), "<s>".to_string())]);
        ChatTemplate::new(source, special_tokens)?.render(&messages, true, &Map::new())
    };
    let cases = golden["rendered"].as_array().unwrap();
    for case in cases {
        let source = case["template"].as_str().unwrap();
        // Here, an empty prompt is an error.
        let rendered = rendered(source).or_else(|error| match error {
            TextError::TemplateRender { line: 0, .. } => Ok(String::new()),
            error => Err(error),
        });
        assert_eq!(rendered.as_deref(), Ok(case["text"].as_str().unwrap()), "{source}");
    }
    let refused = golden["refused"].as_array().unwrap();
    for source in refused {
        let source = source.as_str().unwrap();
        assert!(rendered(source).is_err(), "{source}");
    }
    assert!(cases.len() > 140 && refused.len() > 40);
}

/// Python's string operations, which a template of a public report uses.
#[test]
fn templates_use_python_strings() {
    let source = "{%- for m in messages %}{{ '<%s-%02d>' % (m.role, loop.index) }}{{ m.content.rsplit(' ', 1)[0] }}\
        {{- m.role.removeprefix('a').removesuffix('m') }};{% endfor %}";
    assert_eq!(
        render(source, json!({})).as_deref(),
        Ok("<system-01>Besyste;<user-02>  Hi <b>&\"you\"user;<assistant-03>Yes.ssistant;")
    );
    assert_eq!(
        render("{{ s | fromjson | tojson }}", json!({ "s": "{\"a\":[1,null]}" })).unwrap(),
        r#"{"a": [1, null]}"#
    );
    for tools in [json!(null), json!([])] {
        let source = "{% if tools is iterable and tools | length > 0 %}tools{% endif %}|";
        assert_eq!(render(source, json!({ "tools": tools })).as_deref(), Ok("|"));
    }
}

#[test]
fn template_errors_carry_the_template_s_message() {
    let source = "{% if messages[0].role == 'system' %}\n{{ raise_exception('System role not supported') }}\n{% endif %}";
    let error = render(source, json!({})).unwrap_err();
    assert_eq!(
        error,
        TextError::TemplateRefused { file: None, line: 2, message: "System role not supported".into() }
    );
    assert_eq!(
        error.to_string(),
        "the chat template refused the conversation in line 2: System role not supported"
    );
    assert!(error.hint().unwrap().contains("system"));
    // Only a refusal that names system messages is explained by them.
    for source in
        ["{{ raise_exception('No tools') }}", "{{ nothing.at.all }}", "{% if %}", "{{ 'a' * 10 ** 12 }}"]
    {
        let hint = render(source, json!({})).unwrap_err().hint().unwrap_or_default();
        assert!(!hint.contains("system"), "{source}: {hint}");
    }

    let error = render("a\n{% if %}", json!({})).unwrap_err();
    assert!(matches!(error, TextError::TemplateSyntax { line: 2, .. }), "{error:?}");
    let error = render("a\n\n{{ messages[0].nothing.at }}", json!({})).unwrap_err();
    assert_eq!(error.to_string(), "the chat template failed in line 3: `nothing` is undefined");
    for source in
        ["", " \n ", "{# nothing #}", "{% for m in messages if m.role == 'tool' %}{{ m }}{% endfor %}"]
    {
        let error = render(source, json!({})).unwrap_err().to_string();
        assert_eq!(error, "the chat template failed: expected a prompt, found nothing", "{source}");
    }
    for source in [
        "{{ nothing.at.all }}",
        "{{ 1 + 'a' }}",
        "{{ strftime_now('%!') }}",
        "{{ 1 | tojson(indnt=2) }}",
        "{% generation %}",
        "{% include 'chat_template' %}",
        "{% extends 'chat_template' %}",
    ] {
        assert!(render(source, json!({})).is_err(), "{source}");
    }
}

/// What a hostile file may try. Each is refused by the limit that it exceeds, at once.
#[test]
fn hostile_templates_exceed_a_limit() {
    let many = |before: &str, middle: &str, after: &str| {
        let n = 20_000;
        format!("{}{middle}{}", before.repeat(n), after.repeat(n))
    };
    let in_print = |inside: String| format!("{{{{ {inside} }}}}");
    let grow = |start: &str, step: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(90000) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
        )
    };
    let nesting = "200 levels of nesting in the source";
    let chain = "1000 operators in a row";
    let memory = "536870912 bytes of text and lists";
    let depth = "1000 levels of nested expressions, blocks and calls";
    let values = "150 levels of nested lists and dicts";
    let steps = "10000000 steps of evaluation";
    let integer = "127 bits of an integer";
    let cases: Vec<(String, &str)> = vec![
        (in_print(many("", "1", " ~ 1")), chain),
        (in_print(many("", "1", " + 1")), chain),
        (in_print(many("", "1", " and 1")), chain),
        (in_print(many("", "1", " < 1")), chain),
        (in_print(many("", "a", ".a")), chain),
        (in_print(many("", "a", "[0]")), chain),
        (in_print(many("", "a", "()")), chain),
        (in_print(many("", "a", " | upper")), chain),
        (in_print(many("", "a", " is defined")), chain),
        (in_print(many("", "1", " if 1")), chain),
        (in_print(many("1 if 1 else ", "1", "")), nesting),
        (in_print(many("(", "1", ")")), nesting),
        (in_print(many("[", "1", "]")), nesting),
        (in_print(many("{1: ", "1", "} ")), nesting),
        (in_print(many("f(", "1", ")")), nesting),
        (in_print(many("a[", "1", "]")), nesting),
        (in_print(many("- ", "1", "")), nesting),
        (in_print(many("not ", "1", "")), nesting),
        (many("{% if 1 %}", "", "{% endif %}"), nesting),
        (many("{% for x in [1] %}", "", "{% endfor %}"), nesting),
        (many("{% macro m() %}", "", "{% endmacro %}"), nesting),
        (many("{% set x %}", "", "{% endset %}"), nesting),
        (format!("{{% for {} in [] %}}{{% endfor %}}", many("(", "x", ")")), nesting),
        ("x".repeat((1 << 20) + 1), "1048576 bytes of source"),
        ("{{ [1] | tojson(indent=10000000000) }}".into(), memory),
        ("{{ [1] | tojson(indent='x' * 300000000) }}".into(), memory),
        ("{{ 'a\nb' | indent(10000000000) }}".into(), memory),
        ("{{ '%1000000000s' | format('a') }}".into(), memory),
        ("{{ '%-1000000000d' % 5 }}".into(), memory),
        ("{{ '%.1000000000d' % 5 }}".into(), memory),
        ("{{ '%*d' % (10 ** 18, 5) }}".into(), memory),
        ("{{ '%.1000000000f' % 5 }}".into(), "1000 digits after the point"),
        ("{{ '{:.1000000000e}'.format(5.0) }}".into(), "1000 digits after the point"),
        ("{{ '{:>10000000000}'.format(5) }}".into(), memory),
        ("{{ '{:>1{w}}'.format(5, w=10 ** 30) }}".into(), memory),
        ("{{ 'a'.center(10 ** 11) }}".into(), memory),
        ("{{ 'a'.zfill(10 ** 11) }}".into(), memory),
        ("{{ 'a'.ljust(10 ** 11, 'ß') }}".into(), memory),
        ("{{ 'a' | center(10 ** 11) }}".into(), memory),
        ("{{ '\t'.expandtabs(10 ** 11) }}".into(), memory),
        ("{{ 'a' * 10 ** 11 }}".into(), memory),
        ("{{ [1] * 10 ** 11 }}".into(), memory),
        ("{{ [1, 2] | slice(10000000000) | list }}".into(), memory),
        ("{{ [1, 2] | batch(10000000000, 1) | list }}".into(), memory),
        ("{{ ('a' * 100000).replace('a', 'b' * 100000) }}".into(), memory),
        ("{{ ('a' * 100000).replace('', 'b' * 100000) }}".into(), memory),
        ("{{ ('a' * 1000000).join('b' * 100000) }}".into(), memory),
        ("{{ 'ab' | join('a' * 300000000) }}".into(), memory),
        ("{{ ('a' * 100000000) | list }}".into(), memory),
        ("{{ ('[' ~ '1,' * 5000000 ~ '1]') | fromjson }}".into(), memory),
        (grow("'aaaaaaaa'", "ns.x ~ ns.x"), memory),
        (grow("'aaaaaaaa'", "ns.x + ns.x"), memory),
        (grow("'aaaaaaaa'", "'%s%s' % (ns.x, ns.x)"), memory),
        (grow("[1]", "ns.x + ns.x"), steps),
        (grow("[1]", "[ns.x]"), values),
        (grow("[1]", "{1: ns.x}"), values),
        (grow("[1]", "(ns.x,)"), values),
        (grow("[1]", "cycler(ns.x)"), values),
        (grow("[1]", "[ns.x].count"), values),
        (grow("2", "ns.x * ns.x"), integer),
        ("{{ 9 ** 9 ** 9 }}".into(), integer),
        ("{{ 170141183460469231731687303715884105728 }}".into(), integer),
        ("{{ range(10 ** 11) | list }}".into(), "100000 items of a `range`"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(), depth),
        (
            "{% macro f() %}{% call g() %}x{% endcall %}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
            depth,
        ),
        ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}".into(), depth),
        ("{{ strftime_now('%Y' * 1000) }}".into(), "1000 bytes of a format of `strftime_now`"),
        ("{% for a in range(10000) %}{{ 'a' * 100000 }}{% endfor %}".into(), "67108864 bytes of output"),
        // Lists that contain one another twice, forty times over: small in memory, endless when they are compared.
        (
            "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}\
             {% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}"
                .into(),
            steps,
        ),
        ("{% for a in range(10000) %}{% for b in range(10000) %}{% endfor %}{% endfor %}".into(), steps),
    ];
    for (source, expected) in cases {
        let shown: String = source.chars().take(100).collect();
        match render(&source, json!({})) {
            Err(error @ TextError::TemplateLimit { .. }) => {
                let message = error.to_string();
                assert!(message.contains(&format!("expected at most {expected}")), "{shown}: {message}");
                assert!(error.hint().is_some());
            }
            other => panic!("{shown}: expected at most {expected}, found {other:?}"),
        }
    }
}

/// Close to the limits, and what refers to itself, is no reason to fail.
#[test]
fn templates_within_the_limits_render() {
    let nested = |n: usize| format!("{}x{}", "{% if 1 %}".repeat(n), "{% endif %}".repeat(n));
    assert_eq!(render(&nested(190), json!({})).as_deref(), Ok("x"));
    let chain = format!("{{{{ 1{} }}}}", " + 1".repeat(900));
    assert_eq!(render(&chain, json!({})).as_deref(), Ok("901"));
    let many = "{% if messages is string %}{% elif 0 %}".to_string()
        + &"{% elif 0 %}".repeat(5000)
        + "{% endif %}ok";
    assert_eq!(render(&many, json!({})).as_deref(), Ok("ok"));
    let calls = "{% macro f(n) %}{{ n }}{% if n %},{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}";
    assert!(render(calls, json!({})).unwrap().ends_with("2,1,0"));
    let own = "{% set ns = namespace() %}{% set ns.x = ns %}{% macro m() %}{% endmacro %}{% set ns.m = m %}\
        {%- for i in range(5000) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}{{ ns.x.x is defined }}";
    assert_eq!(render(own, json!({})).as_deref(), Ok("True"));

    // Deep variables of the host are refused as well as deep values of the template.
    let mut deep = json!(1);
    for _ in 0..200 {
        deep = json!([deep]);
    }
    assert!(matches!(render("{{ deep }}", json!({ "deep": deep })), Err(TextError::TemplateLimit { .. })));
    // A small stack of the caller suffices.
    let source = format!("{{{{ {}1{} }}}}", "(".repeat(180), ")".repeat(180));
    let caller = std::thread::Builder::new().stack_size(128 << 10).spawn(move || render(&source, json!({})));
    assert_eq!(caller.unwrap().join().unwrap().as_deref(), Ok("1"));
}

#[test]
fn where_the_template_comes_from() {
    let json = golden_tokenizer_bytes();
    let with = |config: Value, file: Option<&str>| {
        let config = config.to_string();
        let files = TokenizerFiles { chat_template_jinja: file.map(str::as_bytes), ..config_only(&config) };
        tokenizer_of(&json, files).unwrap().chat_template()
    };
    let text = |template: ChatTemplate| template.render(&[Message::user("x")], false, &Map::new()).unwrap();
    let list = json!({ "chat_template": [
        { "name": "tool_use", "template": "tools" }, { "name": "default", "template": "{{ eos_token }}{{ messages[0].content }}" } ],
        "eos_token": { "content": "<e>" } });
    assert_eq!(text(with(list.clone(), None).unwrap()), "<e>x");
    assert_eq!(text(with(list, Some("file {{ eos_token }}")).unwrap()), "file <e>");
    assert_eq!(text(with(json!({ "chat_template": "config" }), None).unwrap()), "config");

    assert_eq!(with(json!({}), None).unwrap_err(), TextError::NoChatTemplate);
    assert!(TextError::NoChatTemplate.hint().unwrap().contains("tuned for conversation"));
    let named = with(json!({ "chat_template": [{ "name": "rag", "template": "" }] }), None).unwrap_err();
    assert_eq!(named, TextError::NoDefaultTemplate { found: vec!["rag".into()] });
    assert!(matches!(
        with(json!({ "chat_template": 3 }), None),
        Err(TextError::Field { field: "chat_template", .. })
    ));
    assert!(matches!(with(json!({ "chat_template": "{% if" }), None), Err(TextError::TemplateSyntax { .. })));
    for (config, file) in
        [(json!({ "chat_template": "{% if" }), "tokenizer_config.json"), (json!({}), "chat_template.jinja")]
    {
        let jinja = (file == "chat_template.jinja").then_some("{{ 'a' * 10 ** 12");
        let error = with(config, jinja).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("the chat template of `{file}` has an error in line 1: ")),
            "{error}"
        );
        let template = with(json!({ "chat_template": "{{ 'a' * 10 ** 12 }}" }), None).unwrap();
        assert_eq!(
            template.render(&[], false, &Map::new()).unwrap_err().to_string(),
            "the chat template of `tokenizer_config.json` exceeds a limit in line 1: expected at most 536870912 bytes of \
             text and lists made while rendering"
        );
    }
}

#[test]
fn template_files_of_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let text = || {
        let template = open_tokenizer(dir.path()).unwrap().chat_template().unwrap();
        template.render(&[], false, &Map::new()).unwrap()
    };
    std::fs::write(dir.path().join("tokenizer.json"), golden_tokenizer_bytes()).unwrap();
    write("tokenizer_config.json", r#"{ "chat_template": "config" }"#);
    assert_eq!(text(), "config");
    write("chat_template.json", r#"{ "chat_template": "json" }"#);
    assert_eq!(text(), "json");
    write("chat_template.jinja", "jinja");
    assert_eq!(text(), "jinja");
}

// --- broken files ----------------------------------------------------------------------------------------

#[test]
fn broken_files_are_errors_that_name_them() {
    let good = golden_tokenizer_bytes();
    let error = tokenizer_of(b"{ not json", TokenizerFiles::default()).unwrap_err();
    assert!(error.to_string().starts_with("`tokenizer.json` is not valid: expected "), "{error}");
    assert!(matches!(&error, TextError::File { file, .. } if file == "tokenizer.json"));
    for (bad, file) in
        [("[1, 2]", "tokenizer_config.json"), ("{", "generation_config.json"), ("7", "config.json")]
    {
        let part = |name: &str| (name == file).then_some(bad.as_bytes());
        let files = TokenizerFiles {
            tokenizer_config: part("tokenizer_config.json"),
            generation_config: part("generation_config.json"),
            config: part("config.json"),
            ..TokenizerFiles::default()
        };
        let error = tokenizer_of(&good, files).unwrap_err();
        assert!(matches!(&error, TextError::File { file: named, .. } if named == file), "{error:?}");
    }
    for bad in [
        r#"{ "eos_token_id": "two" }"#,
        r#"{ "eos_token_id": [1, -2] }"#,
        r#"{ "eos_token_id": 4294967296 }"#,
    ] {
        let error =
            tokenizer_of(&good, TokenizerFiles { config: Some(bad.as_bytes()), ..TokenizerFiles::default() })
                .unwrap_err();
        assert!(matches!(&error, TextError::Field { field: "eos_token_id", .. }), "{error:?}");
    }
    let error = tokenizer_of(&good, config_only(r#"{ "bos_token": 5 }"#)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`bos_token` of `tokenizer_config.json`: expected a token, or an object with its `content`, found 5"
    );
}

#[test]
fn added_tokens_have_a_limit_in_all_files_together() {
    let with = |n: usize| -> Value {
        (0..n).map(|i| json!({"id": 1000 + i, "content": format!("<{i}>"), "special": true})).collect()
    };
    let mut tokenizer: Value = serde_json::from_slice(&golden_tokenizer_bytes()).expect("JSON");
    tokenizer["added_tokens"] = with(40_001);
    let error = tokenizer_of(&serde_json::to_vec(&tokenizer).expect("JSON"), TokenizerFiles::default());
    let error = error.map(|_| ()).expect_err("too many").to_string();
    assert!(error.contains("`added_tokens` of `tokenizer.json`: expected at most 40000 tokens"), "{error}");
    assert!(error.ends_with("found 40001"), "{error}");
    let listed: serde_json::Map<String, Value> =
        (0..40_001).map(|i| ((1000 + i).to_string(), json!({"content": format!("<{i}>")}))).collect();
    let config = json!({ "added_tokens_decoder": listed }).to_string();
    tokenizer_of(&golden_tokenizer_bytes(), config_only(&config)).map(|_| ()).expect_err("too many");
}

#[test]
fn absent_files() {
    let dir = tempfile::tempdir().unwrap();
    let open = || match open_tokenizer(dir.path()) {
        Err(CheckpointError::Text(error)) => error,
        other => panic!("{other:?}"),
    };
    let error = open();
    assert_eq!(error, TextError::NoTokenizer { dir: dir.path().to_path_buf(), found: vec![] });
    assert!(error.hint().unwrap().contains("whole checkpoint"));

    for name in ["vocab.json", "merges.txt"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let error = open();
    assert!(
        error.to_string().ends_with("expected `tokenizer.json`, found `vocab.json`, `merges.txt`"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("save_pretrained"));
}

#[test]
fn every_golden_checkpoint_opens() {
    let mut n = 0;
    for dir in sorted(&here().join("tests/golden")) {
        if !dir.join("tokenizer.json").exists() {
            continue;
        }
        let tokenizer = open_tokenizer(&dir).unwrap();
        for text in TEXTS {
            let ids = tokenizer.encode(text, false).unwrap();
            let decoded = tokenizer.decode(&ids, false).unwrap();
            // Some compose characters.
            assert!(decoded == text || text.contains("combining"), "{}: {decoded}", dir.display());
            assert_streams(&tokenizer, &ids, text);
        }
        n += 1;
    }
    assert!(n > 0);
}

// --- hostile files ---------------------------------------------------------------------------------------

/// A small tokenizer with one part replaced.
fn with_part(base: &str, part: &str, value: Value) -> Vec<u8> {
    let golden = json_file(&here().join("tests/golden/auto_tokenizer.json"));
    let mut json = golden["tokenizers"][base].clone();
    *json.pointer_mut(part).unwrap() = value;
    json.to_string().into_bytes()
}

fn nested(list: &str, depth: usize) -> Value {
    (0..depth).fold(
        json!({ "type": "Sequence", list: [] }),
        |inner, _| json!({ "type": "Sequence", list: [inner] }),
    )
}

#[test]
fn impossible_parts_of_a_tokenizer_are_named() {
    let replace =
        |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let split = |pattern: Value| json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false });
    let template = |pieces: Value| {
        json!({ "type": "TemplateProcessing", "single": pieces, "pair": [],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] }, "<x>": { "id": "<x>", "ids": [70000], "tokens": ["<x>"] },
            "<many>": { "id": "<many>", "ids": vec![1; 1000], "tokens": [] } } })
    };
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let token = |name: &str| json!({ "SpecialToken": { "id": name, "type_id": 0 } });
    let long = "a".repeat(70_000);
    let text_and = |pieces: &[Value]| template(json!([std::slice::from_ref(&text), pieces].concat()));
    let cases = [
        ("/normalizer", replace(json!({ "String": "" }), "aaaa"), "`normalizer.pattern`"),
        ("/normalizer", replace(json!({ "Regex": "" }), "a"), "`normalizer.pattern`"),
        ("/normalizer", replace(json!({ "Regex": "(" }), "a"), "`normalizer.pattern`"),
        ("/normalizer", replace(json!({ "Regex": "(?:a{1000}){1000}{1000}" }), "a"), "`normalizer.pattern`"),
        ("/normalizer", replace(json!({ "Regex": "(".repeat(3000) }), "a"), "`normalizer.pattern`"),
        ("/normalizer", replace(json!("a"), "a"), "`normalizer.pattern`"),
        ("/normalizer", replace(json!({ "String": "a" }), &long), "`normalizer.content`"),
        ("/normalizer", json!({ "type": "Prepend", "prepend": long }), "`normalizer.prepend`"),
        (
            "/normalizer",
            json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" }),
            "`normalizer.precompiled_charsmap`",
        ),
        (
            "/normalizer",
            json!({ "type": "Precompiled", "precompiled_charsmap": "/////w==" }),
            "`normalizer.precompiled_charsmap`",
        ),
        (
            "/normalizer",
            json!({ "type": "Precompiled", "precompiled_charsmap": "é" }),
            "`normalizer.precompiled_charsmap`",
        ),
        ("/normalizer", json!({ "type": "Precompiled" }), "`normalizer.precompiled_charsmap`"),
        ("/normalizer", json!({ "type": "NoSuchThing" }), "`normalizer`"),
        ("/normalizer", json!(7), "`normalizer`"),
        ("/normalizer", nested("normalizers", 40), "`normalizer.normalizers[0]"),
        (
            "/normalizer",
            json!({ "type": "Sequence", "normalizers": vec![json!({ "type": "NFC" }); 1000] }),
            "`normalizer.normalizers[64]`",
        ),
        ("/normalizer", json!({ "type": "Sequence", "normalizers": {} }), "`normalizer.normalizers`"),
        ("/pre_tokenizer", split(json!({ "String": "" })), "`pre_tokenizer.pattern`"),
        ("/pre_tokenizer", split(json!({ "Regex": "[" })), "`pre_tokenizer.pattern`"),
        (
            "/pre_tokenizer",
            json!({ "type": "Split", "pattern": { "String": "a" }, "behavior": "Eaten" }),
            "`pre_tokenizer.behavior`",
        ),
        ("/pre_tokenizer", json!({ "type": "FixedLength", "length": 0 }), "`pre_tokenizer.length`"),
        ("/pre_tokenizer", nested("pretokenizers", 40), "`pre_tokenizer.pretokenizers[0]"),
        ("/decoder", nested("decoders", 40), "`decoder.decoders[0]"),
        ("/decoder", replace(json!({ "String": "" }), "a"), "`decoder.pattern`"),
        ("/decoder", json!({ "type": "WordPiece" }), "`decoder`"),
        ("/decoder", json!({ "typ": "x" }), "`decoder`"),
        ("/post_processor", nested("processors", 40), "`post_processor.processors[0]"),
        ("/post_processor", text_and(&[token("<nope>")]), "`post_processor.single[1].SpecialToken.id`"),
        ("/post_processor", text_and(std::slice::from_ref(&text)), "`post_processor.single[1].Sequence.id`"),
        (
            "/post_processor",
            text_and(&[json!({ "Sequence": { "id": "B", "type_id": 0 } })]),
            "`post_processor.single[1].Sequence.id`",
        ),
        ("/post_processor", text_and(&[token("<x>")]), "`post_processor`"),
        ("/post_processor", text_and(&[token("<many>")]), "`post_processor.single`"),
        ("/post_processor", text_and(&vec![token("<s>"); 1000]), "`post_processor.single`"),
        ("/post_processor", template(json!([])), "`post_processor.single`"),
        (
            "/post_processor",
            json!({ "type": "BertProcessing", "sep": ["</s>", -1], "cls": ["<s>", 1] }),
            "`post_processor.",
        ),
        ("/post_processor", json!({ "type": "Other" }), "`post_processor.type`"),
        ("/model/type", json!("Other"), "`model.type`"),
        ("/model/type", json!("Unigram"), "`model.vocab`"),
        ("/model/merges", json!([["h", "nope"]]), "`model.merges`"),
        ("/model/merges", json!(["a b c"]), "`model.merges`"),
        ("/model/merges", json!([["a"]]), "`model.merges`"),
        ("/model/continuing_subword_prefix", json!(long), "`model.continuing_subword_prefix`"),
        ("/model/end_of_word_suffix", json!("a".repeat(17)), "`model.end_of_word_suffix`"),
        ("/model/vocab", json!({ "a": 4294967296u64 }), "`model.vocab`"),
        ("/model/vocab", json!({ "a": -1 }), "`model.vocab`"),
        ("/model/vocab", json!({ "a": 0.5 }), "`model.vocab`"),
        ("/model/vocab", json!({ long.as_str(): 1 }), "`model.vocab`"),
        ("/model/vocab", json!(7), "`model.vocab`"),
        ("/added_tokens/0/content", json!(""), "`added_tokens[0].content`"),
        ("/added_tokens/0/content", json!(long), "`added_tokens[0].content`"),
        ("/added_tokens/0/id", json!(-5), "u32"),
        ("/added_tokens", json!({ "a": 1 }), "sequence"),
    ];
    for (part, value, named) in cases {
        let short = value.to_string().chars().take(120).collect::<String>();
        let json = with_part("sentencepiece", part, value);
        let error =
            tokenizer_of(&json, TokenizerFiles::default()).map(|_| short.clone()).unwrap_err().to_string();
        assert!(error.contains("`tokenizer.json`") && error.contains(named), "{part} {short}: {error}");
        assert!(
            error.contains("expected") && error.contains("found") && error.len() < 400,
            "{part} {short}: {error}"
        );
    }
    for (part, value, named) in [
        ("/model/vocab/4/0", json!("a".repeat(2000)), "`model.vocab`"),
        ("/model/vocab/4/1", json!(null), "f64"),
        ("/model/vocab/4", json!(["a"]), "tuple"),
        ("/model/unk_id", json!(1000), "`model`"),
    ] {
        let error = tokenizer_of(&with_part("unigram", part, value), TokenizerFiles::default()).unwrap_err();
        assert!(error.to_string().contains(named), "{part}: {error}");
    }
    // Numbers that JSON does not have, and nesting that no parser should follow.
    let json = String::from_utf8(with_part("unigram", "/normalizer", json!("HERE"))).unwrap();
    let deep = "[".repeat(100_000);
    for text in [json.replace("-2.0", "NaN"), json.replace("-2.0", "-1e999"), json.replace("\"HERE\"", &deep)]
    {
        let error = tokenizer_of(text.as_bytes(), TokenizerFiles::default()).unwrap_err();
        assert!(matches!(&error, TextError::File { file, .. } if file == "tokenizer.json"), "{error}");
    }
}

#[test]
fn impossible_values_of_the_other_files_are_named() {
    let json = with_part("byte_level", "/normalizer", json!(null));
    for (config, named) in [
        (json!({ "added_tokens_decoder": [] }), "`added_tokens_decoder`"),
        (json!({ "added_tokens_decoder": { "x": { "content": "a" } } }), "`added_tokens_decoder`"),
        (json!({ "added_tokens_decoder": { "4294967296": { "content": "a" } } }), "`added_tokens_decoder`"),
        (json!({ "added_tokens_decoder": { "5": { "content": "" } } }), "`added_tokens_decoder.5`"),
        (
            json!({ "added_tokens_decoder": { "5": { "content": "a", "lstrip": "yes" } } }),
            "`added_tokens_decoder.5.lstrip`",
        ),
        (
            json!({ "added_tokens_decoder": { "5": { "content": "a".repeat(9000) } } }),
            "`added_tokens_decoder.5`",
        ),
        (json!({ "additional_special_tokens": "a" }), "`additional_special_tokens`"),
        (json!({ "extra_special_tokens": [3] }), "`extra_special_tokens[0]`"),
        (json!({ "eos_token": "" }), "`eos_token`"),
        (json!({ "split_special_tokens": 1 }), "`split_special_tokens`"),
        (json!({ "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": "yes" }), "`add_prefix_space`"),
    ] {
        let error = tokenizer_of(&json, config_only(&config.to_string())).unwrap_err().to_string();
        assert!(error.contains("`tokenizer_config.json`") && error.contains(named), "{config}: {error}");
        assert!(error.contains("expected") && error.contains("found") && error.len() < 300, "{error}");
    }
    let other = |map: &str, added: &str| {
        let files = TokenizerFiles {
            special_tokens_map: Some(map.as_bytes()),
            added_tokens: Some(added.as_bytes()),
            ..TokenizerFiles::default()
        };
        tokenizer_of(&json, files).unwrap_err().to_string()
    };
    assert!(other("[]", "{}").contains("`special_tokens_map.json`"));
    assert!(other(r#"{ "eos_token": 3 }"#, "{}").contains("`eos_token` of `special_tokens_map.json`"));
    assert!(other("{}", r#"{ "a": 4294967296 }"#).contains("`a` of `added_tokens.json`"));
    assert!(other("{}", r#"{ "": 5 }"#).contains("`added_tokens.json`"));
}

/// What a file makes of a text is bounded, and so is the time that it takes.
#[test]
fn explosions_are_errors_of_the_text() {
    let replace =
        |from: &str, to: &str| json!({ "type": "Replace", "pattern": { "String": from }, "content": to });
    let steps = |steps: Vec<Value>, list: &str| json!({ "type": "Sequence", list: steps });
    let catastrophe = json!({ "Regex": "((?:(?!y)x)+)+y" });
    let split = |pattern: &Value| json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false });
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": false });
    let letters = "x".repeat(40);
    let cases = [
        (
            "/normalizer",
            steps(vec![replace("a", "aaaaaaaaaa"); 9], "normalizers"),
            "a",
            "`normalizer.normalizers[",
        ),
        ("/normalizer", replace("a", &"b".repeat(1000)), "a".repeat(1000).leak(), "`normalizer`"),
        (
            "/normalizer",
            json!({ "type": "Replace", "pattern": catastrophe, "content": "y" }),
            letters.as_str(),
            "`normalizer",
        ),
        ("/pre_tokenizer", split(&catastrophe), letters.as_str(), "`pre_tokenizer"),
        ("/pre_tokenizer", steps(vec![bytes; 60], "pretokenizers"), "é", "`pre_tokenizer.pretokenizers["),
    ];
    for (part, value, text, named) in cases {
        let tokenizer =
            tokenizer_of(&with_part("sentencepiece", part, value), TokenizerFiles::default()).unwrap();
        for result in [tokenizer.encode(text, true), tokenizer.encode_plain(text)] {
            let error = result.unwrap_err();
            assert!(matches!(error, TextError::Encode { .. }), "{error}");
            assert!(
                error.to_string().contains(named) && error.to_string().contains("`tokenizer.json`"),
                "{error}"
            );
        }
        assert!(tokenizer.encode("", true).is_ok());
    }
    let decoder = steps(vec![replace("h", "hhhhhhhhhh"); 9], "decoders");
    let tokenizer =
        tokenizer_of(&with_part("sentencepiece", "/decoder", decoder), TokenizerFiles::default()).unwrap();
    let error = tokenizer.decode(&tokenizer.encode("hello", true).unwrap(), false).unwrap_err();
    assert!(
        matches!(&error, TextError::Decode { reason, .. } if reason.contains("`decoder.decoders[")),
        "{error}"
    );

    // Many words, each at its limit, share one limit.
    let prepend = json!({ "type": "Prepend", "prepend": "b".repeat(1000) });
    let tokenizer =
        tokenizer_of(&with_part("sentencepiece", "/normalizer", prepend), TokenizerFiles::default()).unwrap();
    assert_eq!(tokenizer.decode(&tokenizer.encode("a", false).unwrap(), true).unwrap().len(), 1001);
    assert!(tokenizer.encode(&"a</s>".repeat(1000), false).unwrap_err().to_string().contains("`normalizer`"));

    // WordPiece looks at every pair of ends of a word.
    let json = with_part("word_piece", "/model/max_input_chars_per_word", json!(1_000_000_000));
    let tokenizer = tokenizer_of(&json, TokenizerFiles::default()).unwrap();
    assert!(tokenizer.encode(&"a".repeat(100_000), true).unwrap_err().to_string().contains("100000 bytes"));
}

/// Panics of the library are errors.
#[test]
fn panics_of_the_library_are_errors_of_the_text() {
    // A table of one unit that leads out of it, and texts.
    let map = json!({ "type": "Precompiled", "precompiled_charsmap": "BAAAAAD///8AAAAA" });
    match tokenizer_of(&with_part("sentencepiece", "/normalizer", map), TokenizerFiles::default()) {
        Ok(tokenizer) => assert!(matches!(tokenizer.encode("hello", true), Err(TextError::Encode { .. }))),
        Err(error) => assert!(error.to_string().contains("`normalizer"), "{error}"),
    }
    // More spaces to strip than there are.
    let strip = json!({ "type": "Strip", "content": "h", "start": 0, "stop": 5 });
    let tokenizer =
        tokenizer_of(&with_part("sentencepiece", "/decoder", strip), TokenizerFiles::default()).unwrap();
    let [.., h] = tokenizer.encode_plain("h").unwrap()[..] else { panic!() };
    assert!(matches!(tokenizer.decode(&[h], false), Err(TextError::Decode { n_tokens: 1, .. })));
    assert_eq!(tokenizer.decode(&[], false).unwrap(), "");
}

#[test]
fn vocabularies_with_gaps_and_tokens_beyond_them_work() {
    let mut vocab = json_file(&here().join("tests/golden/auto_tokenizer.json"))["tokenizers"]["byte_level"]["model"]["vocab"].clone();
    vocab["a"] = json!(4_000_000_000u32);
    let tokenizer =
        tokenizer_of(&with_part("byte_level", "/model/vocab", vocab), TokenizerFiles::default()).unwrap();
    assert_eq!(tokenizer.encode("a", false).unwrap(), [4_000_000_000]);
    assert_eq!(tokenizer.decode(&[4_000_000_000, 97, u32::MAX], false).unwrap(), "a");
}
