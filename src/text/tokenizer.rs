//! The tokenizer: `tokenizer.json`, and the other files that name special tokens.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::{
    AddedToken, AddedVocabulary, Model as _, ModelWrapper, NormalizedString, Normalizer as _, OffsetType,
    PreTokenizedString,
};

use super::auto_tokenizer::{ADDED_TOKENS, Around, Class, SPECIAL_TOKENS_MAP, Settings, TOKENIZER_CONFIG};
use super::pipeline::{Decoder, Normalizer, PreTokenizer, bound};
use super::tokenizer_json::{self, PairPart, PostProcessor, TokenizerJson, describe, wrong};
use super::{ChatTemplate, TextError};
use crate::guard::guarded;

const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";
const CHAT_TEMPLATE: &str = "chat_template.json";
const CHAT_TEMPLATE_JINJA: &str = "chat_template.jinja";

/// Bytes of a word that a WordPiece model cuts: the time grows with their square. Longer ones become unknown tokens in
/// nearly every tokenizer.
const MAX_WORD: usize = 4 << 10;

/// Most added tokens, in all files together. Their number counts twice in the time to load them; real tokenizers have some
/// thousand.
const MAX_ADDED: usize = 40_000;

/// The contents of a tokenizer's files; `None` is a file that does not exist.
#[derive(Clone, Copy, Default)]
pub struct TokenizerFiles<'a> {
    /// `tokenizer.json`.
    pub tokenizer: &'a [u8],
    /// `tokenizer_config.json`: the class of the tokenizer, its settings, and the special tokens.
    pub tokenizer_config: Option<&'a [u8]>,
    /// `special_tokens_map.json`: the special tokens, in checkpoints without `added_tokens_decoder` in
    /// `tokenizer_config.json`.
    pub special_tokens_map: Option<&'a [u8]>,
    /// `added_tokens.json`: tokens besides the vocabulary, in the same checkpoints.
    pub added_tokens: Option<&'a [u8]>,
    /// `generation_config.json`: ids of the tokens that end a text.
    pub generation_config: Option<&'a [u8]>,
    /// `config.json`: the type of the model, and the same ids as earlier versions of transformers wrote them.
    pub config: Option<&'a [u8]>,
    /// `chat_template.jinja`: takes precedence over the other two places of a chat template.
    pub chat_template_jinja: Option<&'a [u8]>,
    /// `chat_template.json`: takes precedence over `chat_template` in `tokenizer_config.json`.
    pub chat_template_json: Option<&'a [u8]>,
}

/// The tokens of two texts, with those around them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// The ids.
    pub token_ids: Vec<u32>,
    /// The type of each: which of the texts it belongs to, if the model distinguishes them.
    pub types: Vec<u32>,
    /// Number of ids that were cut.
    pub n_cut: usize,
}

/// A checkpoint's tokenizer, as `AutoTokenizer` of transformers 5 reads it. Cheap to clone.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    /// Tokens that are found in a text before its words.
    added: AddedVocabulary,
    normalizer: Normalizer,
    pre_tokenizer: PreTokenizer,
    model: ModelWrapper,
    decoder: Decoder,
    /// The tokens around a text.
    around: PostProcessor,
    vocab_size: usize,
    bos: Option<u32>,
    eos: Vec<u32>,
    byte_fallback: bool,
    filler: Option<u32>,
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
    /// [`TextError::File`], [`TextError::Key`] or [`TextError::Field`] for a file with invalid contents.
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
        let mut json = TokenizerJson::parse(files.tokenizer)?;
        let settings = Settings {
            tokenizer_config: object(files.tokenizer_config, TOKENIZER_CONFIG)?,
            special_tokens_map: object(files.special_tokens_map, SPECIAL_TOKENS_MAP)?,
            added_tokens: object(files.added_tokens, ADDED_TOKENS)?,
            config: object(files.config, CONFIG)?,
        };
        let generation_config = object(files.generation_config, GENERATION_CONFIG)?;

        let in_config = |name: &str| match settings.tokenizer_config.get(name) {
            Some(Value::Object(tokens)) => tokens.len(),
            Some(Value::Array(tokens)) => tokens.len(),
            _ => 0,
        };
        let lists = ["added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"];
        let n_added =
            json.added.len() + settings.added_tokens.len() + lists.map(in_config).iter().sum::<usize>();
        if n_added > MAX_ADDED {
            return Err(wrong(
                "added_tokens",
                format!("at most {MAX_ADDED} tokens, those of other files included"),
                n_added,
            ));
        }
        let class = Class::find(&settings, &json);
        let tokens = settings.tokens(&json, class)?;
        if let Some(class) = class {
            class.apply(&settings, &mut json)?;
        }
        let normalizer = Normalizer::new(json.normalizer)?;
        let pre_tokenizer = PreTokenizer::new(json.pre_tokenizer)?;
        let decoder = Decoder::new(json.decoder)?;
        let around = tokenizer_json::post_processor(&json.post_processor)?;
        let model = json.model.build()?;

        let listed = json.added.into_iter().map(|(_, token)| token).filter(|_| class.is_none());
        let added_tokens = merged(listed.chain(tokens.added));
        let n_bytes = added_tokens.iter().map(|token| token.content.len()).sum();
        let mut added = AddedVocabulary::new();
        let result = guarded(|| {
            let normalizing = normalizer.within(bound(n_bytes));
            added.add_tokens(&added_tokens, &model, Some(&normalizing));
            normalizing.finish()
        });
        let invalid = |e: &dyn std::fmt::Display| wrong("normalizer", "one that takes the added tokens", e);
        result.map_err(|e| invalid(&e))?.map_err(|e| invalid(&e))?;
        added.set_encode_special_tokens(settings.split_special_tokens()?);
        let id_of = |token: &str| added.token_to_id(token, &model);
        let vocab_size = added.get_vocab().keys().filter(|token| model.token_to_id(token).is_none()).count()
            + model.get_vocab_size();

        let named = |name: &str| tokens.named.iter().find(|(known, _)| known == name).map(|(_, token)| token);
        let named_id = |name: &str| named(name).and_then(|token| id_of(&token.content));
        let around = match class.map_or(Around::File, |class| class.around) {
            Around::File => around,
            Around::Nothing => PostProcessor::default(),
            Around::Named(first, last, n_between) => {
                PostProcessor::of(named_id(first), named_id(last), n_between)
            }
        };
        let is_known = |id: &u32| added.simple_id_to_token(*id).or_else(|| model.id_to_token(*id)).is_some();
        if let Some(id) = around.ids().find(|id| !is_known(id)) {
            return Err(wrong("post_processor", "ids of the vocabulary", id));
        }

        let mut eos: Vec<u32> = named_id("eos_token").into_iter().collect();
        eos.extend(token_ids(&generation_config, "eos_token_id", GENERATION_CONFIG)?);
        eos.extend(token_ids(&settings.config, "eos_token_id", CONFIG)?);
        let mut seen = std::collections::HashSet::new();
        eos.retain(|id| seen.insert(*id));
        let bos = match named_id("bos_token") {
            Some(id) => Some(id),
            None => token_ids(&generation_config, "bos_token_id", GENERATION_CONFIG)?
                .into_iter()
                .chain(token_ids(&settings.config, "bos_token_id", CONFIG)?)
                .next(),
        };

        let chat_template = match template {
            Some(source) => Ok(source),
            None => match find_template(&settings.tokenizer_config, TOKENIZER_CONFIG) {
                Ok(source) => source.ok_or(TextError::NoChatTemplate),
                Err(e) => Err(e),
            },
        };
        let special_tokens = tokens.named.into_iter().map(|(name, token)| (name, token.content)).collect();
        let mut inner = Inner {
            byte_fallback: decoder.has_byte_fallback(),
            added,
            normalizer,
            pre_tokenizer,
            model,
            decoder,
            around,
            vocab_size,
            bos,
            eos,
            filler: None,
            special_tokens,
            chat_template,
            template_file,
        };
        inner.filler = inner.find_filler();
        Ok(Self(Arc::new(inner)))
    }

    /// Turns `text` into ids. The names of special tokens in it become these tokens, as a rendered chat needs.
    ///
    /// With `add_special`, adds the tokens that the model expects around a text, such as a beginning-of-text token.
    /// Pass `false` for a rendered chat template, which contains them.
    ///
    /// # Errors
    /// [`TextError::Encode`] for a text that the tokenizer cannot split, or of which it makes too much.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let ids = self.0.encode(text, true)?;
        if !add_special {
            return Ok(ids);
        }
        Ok([&self.0.around.before[..], &ids, &self.0.around.after].concat())
    }

    /// As [`Tokenizer::encode`] with `add_special`, in at most `max_tokens` ids: cuts the end of the text, never the
    /// tokens around it. Returns the ids, and how many of the text's ids were cut.
    ///
    /// # Errors
    /// [`TextError::Encode`] as for [`Tokenizer::encode`].
    pub fn encode_cut(&self, text: &str, max_tokens: usize) -> Result<(Vec<u32>, usize), TextError> {
        let PostProcessor { before, after, .. } = &self.0.around;
        let mut ids = self.0.encode(text, true)?;
        let room = max_tokens.saturating_sub(before.len() + after.len());
        let n_cut = ids.len().saturating_sub(room);
        ids.truncate(room);
        Ok(([&before[..], &ids, after].concat(), n_cut))
    }

    /// The ids of two texts that belong together, such as a question and a text that may answer it, in at most
    /// `max_tokens` ids: cuts the end of the longer text, as transformers does with `longest_first`.
    ///
    /// # Errors
    /// [`TextError::NoPairs`] if `tokenizer.json` has no template for pairs; [`TextError::Encode`] as for
    /// [`Tokenizer::encode`].
    pub fn encode_pair(&self, first: &str, second: &str, max_tokens: usize) -> Result<Pair, TextError> {
        let parts = &self.0.around.pair;
        if parts.is_empty() {
            return Err(TextError::NoPairs);
        }
        let (mut first, mut second) = (self.0.encode(first, true)?, self.0.encode(second, true)?);
        let n_around = parts.iter().filter(|(part, _)| matches!(part, PairPart::Token(_))).count();
        let n_cut = (first.len() + second.len()).saturating_sub(max_tokens.saturating_sub(n_around));
        for _ in 0..n_cut {
            let longer = if first.len() > second.len() { &mut first } else { &mut second };
            longer.pop();
        }
        let mut pair = Pair { n_cut, ..Pair::default() };
        for (part, kind) in parts {
            match part {
                PairPart::First => pair.token_ids.extend(&first),
                PairPart::Second => pair.token_ids.extend(&second),
                PairPart::Token(id) => pair.token_ids.push(*id),
            }
            pair.types.resize(pair.token_ids.len(), *kind);
        }
        Ok(pair)
    }

    /// Turns `text` into ids. Adds no special tokens, and treats their names in the text as ordinary characters.
    ///
    /// For text from untrusted sources: `<|im_end|>` in it does not end a message.
    ///
    /// # Errors
    /// [`TextError::Encode`] as for [`Tokenizer::encode`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.0.encode(text, false)
    }

    /// Turns `ids` into text. Omits special tokens if `skip_special`, and always ids outside the vocabulary.
    ///
    /// # Errors
    /// [`TextError::Decode`] for ids that the tokenizer's decoder refuses, or of which it makes too much.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let is_kept = |token: &String| !skip_special || !self.0.added.is_special_token(token);
        let tokens = ids.iter().filter_map(|id| self.id_to_token(*id)).filter(is_kept).collect();
        let failed = |reason: String| TextError::Decode { n_tokens: ids.len(), reason };
        guarded(|| self.0.decoder.run(tokens)).map_err(failed)?.map_err(|e| failed(e.to_string()))
    }

    /// The number of tokens, including special ones. A model's embedding may have more rows, and fewer if the last
    /// tokens are never used.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The beginning-of-text token, if the checkpoint names one. [`Tokenizer::encode`] may or may not add it.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// The tokens that end a text, from the files that name special tokens, `generation_config.json` and `config.json`.
    pub fn eos(&self) -> &[u32] {
        &self.0.eos
    }

    /// The id of `token`, spelled as in the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.added.token_to_id(token, &self.0.model)
    }

    /// The token of `id`, spelled as in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    /// Whether `id` is a special token, which [`Tokenizer::decode`] can skip.
    pub fn is_special(&self, id: u32) -> bool {
        self.id_to_token(id).is_some_and(|token| self.0.added.is_special_token(&token))
    }

    /// Compiles the checkpoint's chat template.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], [`TextError::NoDefaultTemplate`]; those of [`ChatTemplate::new`].
    pub fn chat_template(&self) -> Result<ChatTemplate, TextError> {
        let source = self.0.chat_template.as_ref().map_err(Clone::clone)?;
        ChatTemplate::of_file(self.0.template_file, source, self.0.special_tokens.clone())
    }

    /// The source of the chat template, if there is one.
    pub(super) fn chat_template_source(&self) -> Option<&str> {
        self.0.chat_template.as_deref().ok()
    }

    /// Whether `token` stands for one byte of a character that the vocabulary lacks (`<0xE2>`).
    pub(super) fn is_byte(&self, token: &str) -> bool {
        self.0.byte_fallback && byte_of(token).is_some()
    }

    /// Some token of whole characters, neither special nor a byte, if there is one.
    pub(super) fn filler(&self) -> Option<u32> {
        self.0.filler
    }
}

impl Inner {
    fn id_to_token(&self, id: u32) -> Option<String> {
        self.added.simple_id_to_token(id).or_else(|| self.model.id_to_token(id))
    }

    /// The ids of `text` without those around it. Added tokens in it are found if `with_added`.
    fn encode(&self, text: &str, with_added: bool) -> Result<Vec<u32>, TextError> {
        // The library has a method for all of this, without limits. Its switch for added tokens is a setting of the
        // whole tokenizer.
        let run = || -> tokenizers::Result<Vec<u32>> {
            let bound = bound(text.len());
            let normalizing = self.normalizer.within(bound);
            let mut words = if with_added {
                self.added.extract_and_normalize(Some(&normalizing), text)
            } else {
                let mut normalized = NormalizedString::from(text);
                normalizing.normalize(&mut normalized)?;
                PreTokenizedString::from(normalized)
            };
            normalizing.finish()?;
            self.pre_tokenizer.run(&mut words, bound)?;
            words.tokenize(|word| {
                let word = word.get();
                match &self.model {
                    ModelWrapper::WordPiece(model) if word.len() > MAX_WORD => {
                        let n_chars = word.chars().count();
                        if n_chars <= model.max_input_chars_per_word {
                            let n_bytes = word.len();
                            return Err(
                                format!("a word has {n_bytes} bytes, expected at most {MAX_WORD}").into()
                            );
                        }
                        model.tokenize(word)
                    }
                    model => model.tokenize(word),
                }
            })?;
            Ok(words.into_encoding(None, 0, OffsetType::None)?.get_ids().to_vec())
        };
        let failed = |reason: String| TextError::Encode { n_bytes: text.len(), reason };
        guarded(run).map_err(failed)?.map_err(|e| failed(e.to_string()))
    }

    fn find_filler(&self) -> Option<u32> {
        let is_filler = |id: &u32| {
            let Some(token) = self.id_to_token(*id) else { return false };
            let is_word = !self.added.is_special_token(&token) && byte_of(&token).is_none();
            let run = guarded(|| self.decoder.run(vec![token]));
            is_word
                && matches!(run, Ok(Ok(text)) if !text.is_empty() && !text.contains(char::REPLACEMENT_CHARACTER))
        };
        // The first ones may be special tokens and all bytes.
        (0..1024).find(is_filler)
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

/// The tokens in the order of their first mention, with the flags of the last one. A token stays special.
fn merged(tokens: impl Iterator<Item = AddedToken>) -> Vec<AddedToken> {
    let (mut merged, mut places) = (Vec::<AddedToken>::new(), HashMap::new());
    for token in tokens {
        match places.entry(token.content.clone()) {
            Entry::Vacant(place) => {
                place.insert(merged.len());
                merged.push(token);
            }
            Entry::Occupied(place) => {
                let before = &mut merged[*place.get()];
                *before = AddedToken { special: token.special || before.special, ..token };
            }
        }
    }
    merged
}

/// The byte that a token such as `<0xE2>` stands for.
fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
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
