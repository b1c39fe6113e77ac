//! The tokenizer: `tokenizer.json`, and the other files that name special tokens.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{
    AddedToken, DecoderWrapper, Model as _, NormalizedString, Normalizer as _, OffsetType,
    PostProcessor as _, PreTokenizedString, PreTokenizer as _, TruncationDirection,
};

use super::{ChatTemplate, TextError};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";
const CHAT_TEMPLATE: &str = "chat_template.json";
const CHAT_TEMPLATE_JINJA: &str = "chat_template.jinja";

/// The fields of `tokenizer_config.json` that name one special token.
const NAMED_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// The contents of a tokenizer's files; `None` is a file that does not exist.
#[derive(Clone, Copy, Default)]
pub struct TokenizerFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`: the names of the special tokens.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `generation_config.json`: ids of the tokens that end a text.
    pub generation_config: Option<&'a [u8]>,
    /// `config.json`: the same ids, as earlier versions of transformers wrote them.
    pub config: Option<&'a [u8]>,
    /// `chat_template.jinja`: takes precedence over the other two places of a chat template.
    pub chat_template_jinja: Option<&'a [u8]>,
    /// `chat_template.json`: takes precedence over `chat_template` in `tokenizer_config.json`.
    pub chat_template_json: Option<&'a [u8]>,
}

/// A checkpoint's tokenizer. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    hf: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Vec<u32>,
    /// The token to add at the start of a text if there is no post-processor.
    prepend: Option<u32>,
    byte_fallback: bool,
    special_tokens: BTreeMap<String, String>,
    /// Compiled only on demand, so that a model with a broken template can still continue text.
    chat_template: Result<String, TextError>,
    /// The file that it is from.
    template_file: &'static str,
}

impl Tokenizer {
    /// Builds a tokenizer from the contents of its files.
    ///
    /// # Errors
    /// [`TextError::File`] or [`TextError::Field`] for a file with invalid contents.
    pub fn from_files(files: &TokenizerFiles<'_>) -> Result<Self, TextError> {
        let template_file = match (files.chat_template_jinja, files.chat_template_json) {
            (Some(_), _) => CHAT_TEMPLATE_JINJA,
            (None, Some(_)) => CHAT_TEMPLATE,
            (None, None) => TOKENIZER_CONFIG,
        };
        let template = match (files.chat_template_jinja, files.chat_template_json) {
            (Some(bytes), _) => Some(utf8(bytes, CHAT_TEMPLATE_JINJA)?.to_string()),
            (None, Some(bytes)) => find_template(&object(Some(bytes), CHAT_TEMPLATE)?, CHAT_TEMPLATE)?,
            (None, None) => None,
        };
        let mut hf = tokenizers::Tokenizer::from_bytes(files.tokenizer).map_err(|e| TextError::File {
            file: TOKENIZER.into(),
            expected: "a tokenizer in the format of the `tokenizers` library",
            found: e.to_string(),
        })?;
        // A file may contain the padding and truncation of its last training run. Prompts are never truncated or
        // padded.
        let whole = hf.with_padding(None).with_truncation(None).map(|_| ());
        whole.map_err(|e| TextError::Encode { n_bytes: 0, reason: e.to_string() })?;

        let tokenizer_config = object(files.tokenizer_config, TOKENIZER_CONFIG)?;
        let generation_config = object(files.generation_config, GENERATION_CONFIG)?;
        let config = object(files.config, CONFIG)?;

        let special_tokens = named_tokens(&tokenizer_config)?;
        mark_special(&mut hf, special_tokens.values());

        let named_bos = special_tokens.get("bos_token").and_then(|token| hf.token_to_id(token));
        let mut eos: Vec<u32> =
            special_tokens.get("eos_token").and_then(|token| hf.token_to_id(token)).into_iter().collect();
        eos.extend(token_ids(&generation_config, "eos_token_id", GENERATION_CONFIG)?);
        eos.extend(token_ids(&config, "eos_token_id", CONFIG)?);
        let mut seen = std::collections::HashSet::new();
        eos.retain(|id| seen.insert(*id));

        let bos = match named_bos {
            Some(id) => Some(id),
            None => token_ids(&generation_config, "bos_token_id", GENERATION_CONFIG)?
                .into_iter()
                .chain(token_ids(&config, "bos_token_id", CONFIG)?)
                .next(),
        };
        let add_bos = tokenizer_config.get("add_bos_token").and_then(Value::as_bool).unwrap_or(false);
        let prepend = if add_bos && hf.get_post_processor().is_none() { named_bos } else { None };

        let chat_template = match template {
            Some(source) => Ok(source),
            None => match find_template(&tokenizer_config, TOKENIZER_CONFIG) {
                Ok(source) => source.ok_or(TextError::NoChatTemplate),
                Err(e) => Err(e),
            },
        };
        let byte_fallback = hf.get_decoder().is_some_and(has_byte_fallback);
        Ok(Self(Arc::new(Inner {
            hf,
            bos,
            eos,
            prepend,
            byte_fallback,
            special_tokens,
            chat_template,
            template_file,
        })))
    }

    /// Turns `text` into ids. The names of special tokens in it become these tokens, as a rendered chat needs.
    ///
    /// With `add_special`, adds the tokens that the model expects around a text, such as a beginning-of-text token.
    /// Pass `false` for a rendered chat template, which contains them.
    ///
    /// # Errors
    /// [`TextError::Encode`] for a text that the tokenizer cannot split.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let encoding = self.0.hf.encode_fast(text, add_special).map_err(|e| cannot_encode(text, e))?;
        let prepend = if add_special { self.0.prepend } else { None };
        Ok(prepend.into_iter().chain(encoding.get_ids().iter().copied()).collect())
    }

    /// As [`Tokenizer::encode`] with `add_special`, in at most `max_tokens` ids: cuts the end of the text, never the
    /// tokens around it. Returns the ids, and how many of the text's ids were cut.
    ///
    /// # Errors
    /// [`TextError::Encode`] for a text that the tokenizer cannot split.
    pub fn encode_cut(&self, text: &str, max_tokens: usize) -> Result<(Vec<u32>, usize), TextError> {
        let hf = &self.0.hf;
        let mut encoding = hf.encode_fast(text, false).map_err(|e| cannot_encode(text, e))?;
        let around = hf.get_post_processor().map_or(0, |p| p.added_tokens(false));
        let room = max_tokens.saturating_sub(around + usize::from(self.0.prepend.is_some()));
        let n_cut = encoding.len().saturating_sub(room);
        if n_cut > 0 {
            encoding.truncate(room, 0, TruncationDirection::Right);
            // `truncate` keeps the rest there, and `post_process` would process it too.
            encoding.take_overflowing();
        }
        let encoding = hf.post_process(encoding, None, true).map_err(|e| cannot_encode(text, e))?;
        Ok((self.0.prepend.into_iter().chain(encoding.get_ids().iter().copied()).collect(), n_cut))
    }

    /// Turns `text` into ids. Adds no special tokens, and treats their names in the text as ordinary characters.
    ///
    /// For text from untrusted sources: `<|im_end|>` in it does not end a message.
    ///
    /// # Errors
    /// [`TextError::Encode`] for a text that the tokenizer cannot split.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TextError> {
        // The library's switch for this is a setting of the whole tokenizer. So this calls its three steps one by one,
        // and leaves out the search for added tokens before them.
        let hf = &self.0.hf;
        let encode = || {
            let mut normalized = NormalizedString::from(text);
            if let Some(normalizer) = hf.get_normalizer() {
                normalizer.normalize(&mut normalized)?;
            }
            let mut words = PreTokenizedString::from(normalized);
            if let Some(pre_tokenizer) = hf.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut words)?;
            }
            words.tokenize(|word| hf.get_model().tokenize(word.get()))?;
            words.into_encoding(None, 0, OffsetType::None)
        };
        Ok(encode().map_err(|e| cannot_encode(text, e))?.get_ids().to_vec())
    }

    /// Turns `ids` into text. Omits special tokens if `skip_special`, and always ids outside the vocabulary.
    ///
    /// # Errors
    /// [`TextError::Decode`] for ids that the tokenizer's decoder refuses.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let text = self.0.hf.decode(ids, skip_special);
        text.map_err(|e| TextError::Decode { n_tokens: ids.len(), reason: e.to_string() })
    }

    /// The number of tokens, including special ones. A model's embedding may have more rows.
    pub fn vocab_size(&self) -> usize {
        self.0.hf.get_vocab_size(true)
    }

    /// The beginning-of-text token, if the checkpoint names one. [`Tokenizer::encode`] may or may not add it.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// The tokens that end a text, from `tokenizer_config.json`, `generation_config.json` and `config.json`.
    pub fn eos(&self) -> &[u32] {
        &self.0.eos
    }

    /// The id of `token`, spelled as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.hf.token_to_id(token)
    }

    /// The token of `id`, spelled as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.hf.id_to_token(id)
    }

    /// Whether `id` is a special token, which [`Tokenizer::decode`] can skip.
    pub fn is_special(&self, id: u32) -> bool {
        self.id_to_token(id).is_some_and(|token| self.0.hf.get_added_vocabulary().is_special_token(&token))
    }

    /// Compiles the checkpoint's chat template.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], [`TextError::NoDefaultTemplate`]; those of [`ChatTemplate::new`].
    pub fn chat_template(&self) -> Result<ChatTemplate, TextError> {
        let source = self.0.chat_template.as_ref().map_err(Clone::clone)?;
        ChatTemplate::of_file(self.0.template_file, source, self.0.special_tokens.clone())
    }

    /// Whether `token` stands for one byte of a character that the vocabulary lacks (`<0xE2>`).
    pub(super) fn is_byte(&self, token: &str) -> bool {
        self.0.byte_fallback && byte_of(token).is_some()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("bos", &self.0.bos)
            .field("eos", &self.0.eos)
            .finish_non_exhaustive()
    }
}

fn cannot_encode(text: &str, e: tokenizers::Error) -> TextError {
    TextError::Encode { n_bytes: text.len(), reason: e.to_string() }
}

/// The byte that a token such as `<0xE2>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

fn has_byte_fallback(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(has_byte_fallback),
        _ => false,
    }
}

fn utf8<'a>(bytes: &'a [u8], file: &str) -> Result<&'a str, TextError> {
    std::str::from_utf8(bytes).map_err(|e| TextError::File {
        file: file.into(),
        expected: "UTF-8 text",
        found: e.to_string(),
    })
}

/// Parses a JSON object. An absent file gives an empty one.
fn object(bytes: Option<&[u8]>, file: &str) -> Result<serde_json::Map<String, Value>, TextError> {
    let invalid = |found| TextError::File { file: file.into(), expected: "a JSON object", found };
    match bytes.map(serde_json::from_slice) {
        None => Ok(serde_json::Map::new()),
        Some(Ok(Value::Object(map))) => Ok(map),
        Some(Ok(other)) => Err(invalid(describe(&other))),
        Some(Err(e)) => Err(invalid(e.to_string())),
    }
}

/// A JSON value in an error message: the value if it is short, else its type.
fn describe(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.len() > 40 => format!("a string of {} bytes", text.len()),
        other => other.to_string(),
    }
}

/// The special tokens in `tokenizer_config.json`, which are strings or objects with `content`.
fn named_tokens(config: &serde_json::Map<String, Value>) -> Result<BTreeMap<String, String>, TextError> {
    let mut tokens = BTreeMap::new();
    for field in NAMED_TOKENS {
        let Some(value) = config.get(field).filter(|value| !value.is_null()) else { continue };
        let content = value.get("content").unwrap_or(value).as_str().ok_or_else(|| TextError::Field {
            file: TOKENIZER_CONFIG.into(),
            field,
            expected: "a token, or an object with its `content`",
            found: describe(value),
        })?;
        tokens.insert(field.to_string(), content.to_string());
    }
    Ok(tokens)
}

/// Marks tokens as special that `tokenizer_config.json` names but `tokenizer.json` has as ordinary ones.
fn mark_special<'a>(hf: &mut tokenizers::Tokenizer, tokens: impl Iterator<Item = &'a String>) {
    let missing: Vec<AddedToken> = tokens
        // Only tokens of the vocabulary: a new id would be outside the model's embedding.
        .filter(|token| {
            hf.token_to_id(token).is_some_and(|id| !hf.get_added_tokens_decoder().contains_key(&id))
        })
        .map(|token| AddedToken::from(token.as_str(), true))
        .collect();
    hf.add_special_tokens(&missing);
}

/// A field that holds a token id, a list of them, or null.
fn token_ids(
    config: &serde_json::Map<String, Value>,
    field: &'static str,
    file: &str,
) -> Result<Vec<u32>, TextError> {
    let one = |value: &Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| TextError::Field {
            file: file.into(),
            field,
            expected: "a token id or a list of them",
            found: describe(value),
        })
    };
    match config.get(field) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(values)) => values.iter().map(one).collect(),
        Some(value) => Ok(vec![one(value)?]),
    }
}

/// The field `chat_template`: a template, or a list of named ones from which `default` is taken.
fn find_template(config: &serde_json::Map<String, Value>, file: &str) -> Result<Option<String>, TextError> {
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(entries)) => {
            let named = |entry: &Value| {
                Some((entry.get("name")?.as_str()?.to_string(), entry.get("template")?.as_str()?.to_string()))
            };
            let mut templates: Vec<(String, String)> = entries.iter().filter_map(named).collect();
            match templates.iter().position(|(name, _)| name == "default") {
                Some(i) => Ok(Some(templates.swap_remove(i).1)),
                None => {
                    Err(TextError::NoDefaultTemplate { found: templates.into_iter().map(|t| t.0).collect() })
                }
            }
        }
        Some(other) => Err(TextError::Field {
            file: file.into(),
            field: "chat_template",
            expected: "a template, or a list of objects with `name` and `template`",
            found: describe(other),
        }),
    }
}
