//! The tokenizer that `AutoTokenizer` of transformers 5 makes of a folder's files.
//!
//! A class of tokenizers takes the vocabulary, the merges and the post-processor of `tokenizer.json`, and has its own
//! steps around them, which settings of `tokenizer_config.json` change. [`CLASSES`] lists them. Every other class takes
//! `tokenizer.json` as it is, and these settings do nothing.
//!
//! Where versions 4 and 5 differ, this follows 5. With `tokenizer.json`, version 4 used its steps for every class;
//! `add_bos_token` and `add_eos_token` counted, and in version 5 they do not; a named token that no file lists becomes
//! a new token.

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::TextError;
use super::tokenizer_json::{MAX_TOKEN, TokenizerJson, describe};

pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";

/// The fields that name one special token.
const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// The parsed files that decide about a tokenizer; one that does not exist is empty.
pub(super) struct Settings {
    pub tokenizer_config: Map<String, Value>,
    pub special_tokens_map: Map<String, Value>,
    pub added_tokens: Map<String, Value>,
    /// `config.json`.
    pub config: Map<String, Value>,
}

/// The tokens that the files name besides the vocabulary.
pub(super) struct Tokens {
    /// Special tokens by their fields, such as `bos_token`.
    pub named: Vec<(String, AddedToken)>,
    /// Tokens to add to those of `tokenizer.json`, in this order. The last of the same name has the flags.
    pub added: Vec<AddedToken>,
}

/// What a class puts around a text.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Around {
    /// The post-processor of `tokenizer.json`.
    File,
    Nothing,
    /// The named tokens before and after the text, and how many of the latter are between the texts of a pair.
    Named(&'static str, &'static str, usize),
}

/// A class of tokenizers with steps of its own.
pub(super) struct Class {
    /// Its names in transformers, which may be followed by `Fast`.
    names: &'static [&'static str],
    /// The kind of model in `tokenizer.json`.
    model: &'static str,
    /// Special tokens unless the files name others.
    tokens: &'static [(&'static str, &'static str)],
    pub around: Around,
    /// The token for unknown characters unless the files name another, if the model needs one.
    unknown: Option<&'static str>,
    /// Whether special tokens lose the flags that the files give them.
    plain_special: bool,
    /// Changes the steps of `tokenizer.json` into those of the class.
    apply: fn(&Settings, &mut TokenizerJson) -> Result<(), TextError>,
}

const ENDOFTEXT: &str = "<|endoftext|>";

const CLASSES: &[Class] = &[
    Class {
        names: &["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer"],
        model: "WordPiece",
        tokens: &[
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
        around: Around::Named("cls_token", "sep_token", 1),
        unknown: Some("[UNK]"),
        plain_special: false,
        apply: bert,
    },
    Class {
        names: &["MPNetTokenizer"],
        model: "WordPiece",
        tokens: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "[UNK]"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("cls_token", "<s>"),
            ("mask_token", "<mask>"),
        ],
        around: Around::Named("cls_token", "sep_token", 2),
        unknown: Some("[UNK]"),
        plain_special: false,
        apply: bert,
    },
    Class {
        names: &["RobertaTokenizer", "BartTokenizer", "LongformerTokenizer"],
        model: "BPE",
        tokens: ROBERTA,
        around: Around::Named("cls_token", "sep_token", 2),
        unknown: None,
        plain_special: false,
        apply: |settings, json| byte_level(settings, json, Value::Null),
    },
    Class {
        // Whisper's transcription puts its own tokens around a text.
        names: &["GPT2Tokenizer", "WhisperTokenizer"],
        model: "BPE",
        tokens: &[("bos_token", ENDOFTEXT), ("eos_token", ENDOFTEXT), ("unk_token", ENDOFTEXT)],
        around: Around::File,
        unknown: None,
        plain_special: false,
        apply: |settings, json| byte_level(settings, json, Value::Null),
    },
    Class {
        names: &["GPTNeoXTokenizer"],
        model: "BPE",
        tokens: &[
            ("bos_token", ENDOFTEXT),
            ("eos_token", ENDOFTEXT),
            ("unk_token", ENDOFTEXT),
            ("pad_token", "<|padding|>"),
        ],
        around: Around::Nothing,
        unknown: None,
        plain_special: false,
        apply: |settings, json| byte_level(settings, json, json!({ "type": "NFC" })),
    },
    Class {
        names: &["Qwen2Tokenizer"],
        model: "BPE",
        tokens: &[("unk_token", ENDOFTEXT), ("eos_token", ENDOFTEXT), ("pad_token", ENDOFTEXT)],
        around: Around::File,
        unknown: None,
        plain_special: true,
        apply: qwen2,
    },
    Class {
        names: &["LlamaTokenizer"],
        model: "BPE",
        tokens: &[("unk_token", "<unk>"), ("bos_token", "<s>"), ("eos_token", "</s>")],
        around: Around::File,
        unknown: None,
        plain_special: false,
        apply: llama,
    },
    Class {
        names: &["GemmaTokenizer"],
        model: "BPE",
        tokens: &[
            ("unk_token", "<unk>"),
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        around: Around::File,
        unknown: Some("<unk>"),
        plain_special: false,
        apply: gemma,
    },
    Class {
        names: &["XLMRobertaTokenizer"],
        model: "Unigram",
        tokens: ROBERTA,
        around: Around::Named("bos_token", "eos_token", 2),
        unknown: None,
        plain_special: false,
        apply: xlm_roberta,
    },
];

const ROBERTA: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("sep_token", "</s>"),
    ("cls_token", "<s>"),
    ("unk_token", "<unk>"),
    ("pad_token", "<pad>"),
    ("mask_token", "<mask>"),
];

/// The class that transformers registers for a `model_type`. Those without an entry use the class that the files name.
const REGISTERED: &[(&str, &str)] = &[
    ("bert", "BertTokenizer"),
    ("distilbert", "BertTokenizer"),
    ("gemma", "GemmaTokenizer"),
    ("gemma2", "GemmaTokenizer"),
    ("gemma3", "GemmaTokenizer"),
    ("gemma3_text", "GemmaTokenizer"),
    ("gpt2", "GPT2Tokenizer"),
    ("gpt_neox", "GPTNeoXTokenizer"),
    ("mistral", AS_IT_IS),
    ("mixtral", AS_IT_IS),
    ("modernbert", AS_IT_IS),
    ("mpnet", "MPNetTokenizer"),
    ("phi3", AS_IT_IS),
    ("qwen2", "Qwen2Tokenizer"),
    ("qwen2_moe", "Qwen2Tokenizer"),
    ("qwen3", "Qwen2Tokenizer"),
    ("qwen3_moe", "Qwen2Tokenizer"),
    ("roberta", "RobertaTokenizer"),
    ("whisper", "WhisperTokenizer"),
    ("xlm-roberta", "XLMRobertaTokenizer"),
];

/// The class that takes `tokenizer.json` as it is.
const AS_IT_IS: &str = "TokenizersBackend";

/// The `model_type`s whose checkpoints often name a wrong class, so that the registered one is used instead.
const MISNAMED: &[&str] = &["modernbert", "phi3", "qwen2"];

impl Class {
    /// The class for the files; `None` for one that takes `tokenizer.json` as it is.
    pub fn find(settings: &Settings, json: &TokenizerJson) -> Option<&'static Class> {
        let field = |file: &Map<String, Value>, name: &str| {
            let value = file.get(name).and_then(Value::as_str).filter(|value| !value.is_empty());
            value.map(|value| value.strip_suffix("Fast").unwrap_or(value).to_string())
        };
        let model_type = field(&settings.config, "model_type").unwrap_or_default();
        let registered = REGISTERED.iter().find(|(known, _)| *known == model_type).map(|(_, class)| *class);
        let declared = field(&settings.tokenizer_config, "tokenizer_class")
            .or_else(|| field(&settings.config, "tokenizer_class"));
        let name = match (declared.as_deref(), registered) {
            (None, registered) => registered?,
            (Some(_), Some(AS_IT_IS)) => return None,
            (Some(_), Some(registered)) if MISNAMED.contains(&model_type.as_str()) => registered,
            // Llama 3 and others name this class, and are not SentencePiece.
            (Some("LlamaTokenizer"), _) if has_byte_level(json) => return None,
            (Some(declared), _) => declared,
        };
        // With a model of another kind, or without the token for unknown characters, the class would make nonsense of it.
        let class =
            CLASSES.iter().find(|class| class.names.contains(&name) && class.model == json.model.kind());
        class.filter(|class| {
            let unknown = class.unknown.map(|default| settings.unknown(default));
            unknown.is_none_or(|unknown| json.model.vocab.contains(&unknown))
        })
    }

    /// Puts the class's steps in place of those of `tokenizer.json`.
    pub fn apply(&self, settings: &Settings, json: &mut TokenizerJson) -> Result<(), TextError> {
        let model = &mut json.model;
        model.continuing_subword_prefix = None;
        model.end_of_word_suffix = None;
        model.unk_token = None;
        model.ignore_merges = None;
        model.fuse_unk = None;
        model.byte_fallback = None;
        model.max_input_chars_per_word = Some(100);
        (self.apply)(settings, json)
    }
}

fn has_byte_level(json: &TokenizerJson) -> bool {
    let is_byte_level = |part: &Value| part.to_string().contains("\"ByteLevel\"");
    [&json.normalizer, &json.pre_tokenizer, &json.post_processor, &json.decoder]
        .into_iter()
        .any(is_byte_level)
}

fn bert(settings: &Settings, json: &mut TokenizerJson) -> Result<(), TextError> {
    json.model.unk_token = Some(settings.unknown("[UNK]"));
    json.normalizer = json!({
        "type": "BertNormalizer",
        "clean_text": true,
        "handle_chinese_chars": settings.flag("tokenize_chinese_chars")?.unwrap_or(true),
        "strip_accents": settings.flag("strip_accents")?,
        "lowercase": settings.flag("do_lower_case")?.unwrap_or(true),
    });
    json.pre_tokenizer = json!({ "type": "BertPreTokenizer" });
    json.decoder = json!({ "type": "WordPiece", "prefix": "##", "cleanup": true });
    Ok(())
}

fn byte_level(settings: &Settings, json: &mut TokenizerJson, normalizer: Value) -> Result<(), TextError> {
    json.normalizer = normalizer;
    json.pre_tokenizer = byte_level_step(settings.flag("add_prefix_space")?.unwrap_or(false), true);
    json.decoder = byte_level_step(true, true);
    Ok(())
}

fn byte_level_step(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": true,
        "use_regex": use_regex,
    })
}

fn qwen2(settings: &Settings, json: &mut TokenizerJson) -> Result<(), TextError> {
    const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    json.normalizer = json!({ "type": "NFC" });
    let split =
        json!({ "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Isolated", "invert": false });
    let bytes = byte_level_step(settings.flag("add_prefix_space")?.unwrap_or(false), false);
    json.pre_tokenizer = json!({ "type": "Sequence", "pretokenizers": [split, bytes] });
    json.decoder = byte_level_step(true, true);
    Ok(())
}

fn llama(settings: &Settings, json: &mut TokenizerJson) -> Result<(), TextError> {
    let prefix = settings.flag("add_prefix_space")?.unwrap_or(true);
    let scheme = match (prefix, settings.flag("legacy")?.unwrap_or(false)) {
        (true, true) => "always",
        (true, false) => "first",
        (false, _) => "never",
    };
    json.normalizer = Value::Null;
    json.pre_tokenizer = metaspace(scheme, false);
    json.decoder = sentencepiece_decoder(prefix);
    (json.model.fuse_unk, json.model.byte_fallback) = (Some(true), Some(true));
    Ok(())
}

fn gemma(settings: &Settings, json: &mut TokenizerJson) -> Result<(), TextError> {
    let space = json!({ "String": " " });
    json.normalizer = json!({ "type": "Replace", "pattern": space, "content": "▁" });
    json.pre_tokenizer =
        json!({ "type": "Split", "pattern": space, "behavior": "MergedWithPrevious", "invert": false });
    json.decoder = sentencepiece_decoder(false);
    (json.model.fuse_unk, json.model.byte_fallback) = (Some(true), Some(true));
    json.model.unk_token = Some(settings.unknown("<unk>"));
    Ok(())
}

fn xlm_roberta(settings: &Settings, json: &mut TokenizerJson) -> Result<(), TextError> {
    let is_map = |step: &&Value| step.get("type").is_some_and(|kind| kind == "Precompiled");
    let map = match json.normalizer.get("normalizers").and_then(Value::as_array) {
        Some(steps) => steps.iter().find(is_map),
        None => Some(&json.normalizer).filter(is_map),
    };
    json.normalizer = map.cloned().unwrap_or_default();
    let prefix = settings.flag("add_prefix_space")?.unwrap_or(true);
    let space = metaspace(if prefix { "always" } else { "never" }, true);
    json.pre_tokenizer =
        json!({ "type": "Sequence", "pretokenizers": [{ "type": "WhitespaceSplit" }, space] });
    json.decoder = space;
    json.model.unk_id = Some(3);
    Ok(())
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split })
}

/// Drops the space at the beginning of a text if `strip`.
fn sentencepiece_decoder(strip: bool) -> Value {
    let mut steps = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if strip {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": steps })
}

impl Settings {
    /// Whether tokens in a text are found only if they are not special.
    pub fn split_special_tokens(&self) -> Result<bool, TextError> {
        Ok(self.flag("split_special_tokens")?.unwrap_or(false))
    }

    /// A switch of `tokenizer_config.json`.
    fn flag(&self, field: &'static str) -> Result<Option<bool>, TextError> {
        match self.tokenizer_config.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(TextError::Field {
                file: TOKENIZER_CONFIG.into(),
                field,
                expected: "true, false or null",
                found: describe(other),
            }),
        }
    }

    /// Whether the files are of the time before transformers 4.34: `tokenizer_config.json` has no list of added tokens.
    fn is_old(&self) -> bool {
        !self.tokenizer_config.contains_key("added_tokens_decoder")
    }

    /// A field that may be in either file of settings.
    fn field(&self, name: &str) -> Option<(&'static str, &Value)> {
        let map = if self.is_old() { self.special_tokens_map.get(name) } else { None };
        let map = map.map(|value| (SPECIAL_TOKENS_MAP, value));
        map.or_else(|| Some((TOKENIZER_CONFIG, self.tokenizer_config.get(name)?)))
    }

    fn named_token(&self, name: &str) -> Result<Option<AddedToken>, TextError> {
        match self.field(name) {
            Some((_, Value::Null)) | None => Ok(None),
            Some((file, value)) => token(file, name, value).map(Some),
        }
    }

    fn unknown(&self, default: &str) -> String {
        let named = self.named_token("unk_token").ok().flatten();
        named.map_or(default.into(), |token| token.content)
    }

    /// All tokens that the files name. Those of `tokenizer.json` are in `json` unless a class drops them.
    pub fn tokens(&self, json: &TokenizerJson, class: Option<&Class>) -> Result<Tokens, TextError> {
        let mut named: Vec<(String, AddedToken)> = Vec::new();
        for name in NAMED_TOKENS {
            let default = class.and_then(|class| class.tokens.iter().find(|(known, _)| *known == name));
            match (self.field(name), default) {
                (None, Some((_, token))) => named.push((name.into(), AddedToken::from(*token, true))),
                _ => named.extend(self.named_token(name)?.map(|token| (name.into(), token))),
            }
        }
        // Tokens of one model, such as `image_token`.
        let old = if self.is_old() { Some(&self.special_tokens_map) } else { None };
        for (name, value) in self.tokenizer_config.iter().chain(old.into_iter().flatten()) {
            if name.ends_with("_token") && !NAMED_TOKENS.contains(&name.as_str()) && value.is_string() {
                named.push((name.clone(), token(TOKENIZER_CONFIG, name, value)?));
            }
        }
        let mut extra = Vec::new();
        let lists = ["extra_special_tokens", "additional_special_tokens"];
        let is_empty = |value: &Value| {
            value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty)
        };
        let list = lists.into_iter().find_map(|name| {
            self.field(name).filter(|(_, value)| !is_empty(value)).map(|(file, value)| (file, name, value))
        });
        match list {
            None => {}
            Some((file, name, Value::Array(list))) => {
                for (i, value) in list.iter().enumerate() {
                    extra.push(token(file, &format!("{name}[{i}]"), value)?);
                }
            }
            Some((file, name, Value::Object(tokens))) => {
                for (key, value) in tokens {
                    named.push((key.clone(), token(file, &format!("{name}.{key}"), value)?));
                }
            }
            Some((file, name, other)) => return Err(wrong(file, name, "a list of tokens", other)),
        }

        let mut listed = self.listed(json, &named, &extra)?;
        listed.sort_by_key(|(id, _)| *id);
        let mut added: Vec<AddedToken> = listed.into_iter().map(|(_, token)| token).collect();
        for (_, token) in &mut named {
            // What is listed has its flags in the list.
            if let Some(listed) = added.iter_mut().find(|listed| listed.content == token.content) {
                listed.special = true;
                *token = listed.clone();
            }
        }
        for (_, token) in &mut named {
            token.special = true;
        }
        let n_listed = added.len();
        for token in named.iter().map(|(_, token)| token).chain(&extra) {
            let is_known = |known: &AddedToken| known.content == token.content;
            let is_in_json = class.is_none() && json.added.iter().any(|(_, known)| is_known(known));
            let is_listed = is_in_json || added[..n_listed].iter().any(is_known);
            if !is_listed && !added[n_listed..].contains(token) {
                added.push(token.clone());
            }
        }
        if class.is_some_and(|class| class.plain_special) {
            let special = named.iter().map(|(_, token)| token).chain(&extra);
            added.extend(special.map(|token| AddedToken::from(token.content.as_str(), true)));
        }
        Ok(Tokens { named, added })
    }

    /// The tokens that a file lists with their ids.
    fn listed(
        &self,
        json: &TokenizerJson,
        named: &[(String, AddedToken)],
        extra: &[AddedToken],
    ) -> Result<Vec<(u64, AddedToken)>, TextError> {
        let mut listed: Vec<(u64, AddedToken)> = Vec::new();
        let mut insert = |id: u64, token: AddedToken| match listed.iter_mut().find(|(known, _)| *known == id)
        {
            Some((_, known)) => *known = token,
            None => listed.push((id, token)),
        };
        if let Some(list) = self.tokenizer_config.get("added_tokens_decoder") {
            let wrong_list =
                || wrong(TOKENIZER_CONFIG, "added_tokens_decoder", "an object of ids and tokens", list);
            for (id, value) in list.as_object().ok_or_else(wrong_list)? {
                let key = format!("added_tokens_decoder.{id}");
                let parsed = id.trim().parse::<u32>();
                let parsed = parsed.map_err(|_| {
                    wrong(TOKENIZER_CONFIG, "added_tokens_decoder", "token ids", &Value::from(id.as_str()))
                })?;
                insert(parsed.into(), token(TOKENIZER_CONFIG, &key, value)?);
            }
            return Ok(listed);
        }
        for (content, id) in &self.added_tokens {
            let parsed = id.as_u64().filter(|id| u32::try_from(*id).is_ok());
            let parsed = parsed.ok_or_else(|| wrong(ADDED_TOKENS, content, "a token id", id))?;
            if content.is_empty() {
                return Err(wrong(ADDED_TOKENS, "", "a token of at least one character", id));
            }
            let mut tokens = named.iter().map(|(_, token)| token).chain(extra);
            let is_special = tokens.any(|token| token.content == *content);
            insert(parsed, AddedToken::from(content.as_str(), is_special));
        }
        for (id, token) in &json.added {
            insert((*id).into(), token.clone());
        }
        Ok(listed)
    }
}

/// A token in a file: its text, or an object with its flags.
fn token(file: &'static str, key: &str, value: &Value) -> Result<AddedToken, TextError> {
    let content = value.get("content").unwrap_or(value).as_str().filter(|content| !content.is_empty());
    let content =
        content.ok_or_else(|| wrong(file, key, "a token, or an object with its `content`", value))?;
    if content.len() > MAX_TOKEN {
        return Err(wrong(file, key, "a shorter token", value));
    }
    let flag = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(other) => Err(wrong(file, &format!("{key}.{name}"), "true or false", other)),
    };
    // A token by its name alone is special, and so is every token of the old file.
    let is_special = value.is_string() || file == SPECIAL_TOKENS_MAP || flag("special")?.unwrap_or(false);
    let token = AddedToken::from(content, is_special)
        .single_word(flag("single_word")?.unwrap_or(false))
        .lstrip(flag("lstrip")?.unwrap_or(false))
        .rstrip(flag("rstrip")?.unwrap_or(false));
    Ok(token.normalized(flag("normalized")?.unwrap_or(!is_special)))
}

fn wrong(file: &'static str, key: &str, expected: &str, found: &Value) -> TextError {
    TextError::Key { file, key: key.into(), expected: expected.into(), found: describe(found) }
}
