//! `tokenizer.json`: read and checked before the `tokenizers` library sees any of it.
//!
//! The library panics, recurses or allocates as the file says. What it gets from here is shallow, and its numbers,
//! strings and patterns are of the sizes that tokenizers have.

use std::fmt;

use serde::Deserialize;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use tokenizers::models::bpe::{BpeBuilder, Vocab as Ids};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordlevel::WordLevelBuilder;
use tokenizers::models::wordpiece::WordPieceBuilder;
use tokenizers::{AddedToken, ModelWrapper};

use super::TextError;
use crate::guard::guarded;

pub(super) const TOKENIZER: &str = "tokenizer.json";

/// Sequences in sequences. Tokenizers have one or two.
const MAX_DEPTH: usize = 8;
/// Steps of a normalizer, pre-tokenizer or decoder. Tokenizers have up to about ten.
const MAX_STEPS: usize = 64;
/// Bytes of a string in a step, such as what a pattern is replaced by. Most have one character.
const MAX_STRING: usize = 1 << 10;
/// Bytes of a token. The longest known ones are runs of a few hundred spaces.
pub(super) const MAX_TOKEN: usize = 8 << 10;
/// Bytes of a token of a Unigram model, which keeps them in a tree and descends it recursively.
const MAX_PIECE: usize = 1 << 10;
/// Bytes of all tokens of a Unigram model: each may become a node of about 200 bytes. 256 thousand tokens have 3 MB.
const MAX_PIECES: usize = 16 << 20;
/// Bytes of a prefix or suffix that a model adds to each character.
const MAX_AFFIX: usize = 16;
/// Bytes of a map of characters. That of NFKC has 237 KB.
const MAX_CHARSMAP: usize = 4 << 20;
/// Bytes that such a map may make of one character. NFKC makes 33 of U+FDFA.
const MAX_MAPPED: usize = 64;
/// Tokens that a post-processor adds. Tokenizers have one or two.
const MAX_AROUND: usize = 256;

/// Most types of tokens. Real tokenizers have two.
const MAX_TYPES: u64 = 16;

/// The parts of `tokenizer.json`.
pub(super) struct TokenizerJson {
    /// Tokens that are found in a text before anything else, and their ids.
    pub added: Vec<(u32, AddedToken)>,
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub post_processor: Value,
    pub decoder: Value,
    pub model: ModelJson,
}

/// The field `model`.
#[derive(Default, Deserialize)]
pub(super) struct ModelJson {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub vocab: Vocab,
    #[serde(default)]
    pub merges: Option<Vec<Merge>>,
    pub unk_token: Option<String>,
    pub unk_id: Option<usize>,
    pub continuing_subword_prefix: Option<String>,
    pub end_of_word_suffix: Option<String>,
    pub fuse_unk: Option<bool>,
    pub byte_fallback: Option<bool>,
    pub ignore_merges: Option<bool>,
    pub max_input_chars_per_word: Option<usize>,
}

/// The tokens of a model.
pub(super) enum Vocab {
    /// With their ids.
    Ids(Vec<(String, u32)>),
    /// With their scores; the ids are their places.
    Scores(Vec<(String, f64)>),
}

/// Two tokens that become one.
pub(super) struct Merge(String, String);

impl TokenizerJson {
    /// Parses the contents of `tokenizer.json`.
    pub fn parse(json: &[u8]) -> Result<Self, TextError> {
        #[derive(Deserialize)]
        struct Added {
            id: u32,
            content: String,
            #[serde(default)]
            single_word: bool,
            #[serde(default)]
            lstrip: bool,
            #[serde(default)]
            rstrip: bool,
            normalized: Option<bool>,
            #[serde(default)]
            special: bool,
        }
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            added_tokens: Vec<Added>,
            #[serde(default)]
            normalizer: Value,
            #[serde(default)]
            pre_tokenizer: Value,
            #[serde(default)]
            post_processor: Value,
            #[serde(default)]
            decoder: Value,
            model: ModelJson,
        }
        let file: File = serde_json::from_slice(json).map_err(|e| TextError::File {
            file: TOKENIZER.into(),
            expected: "a tokenizer in the format of the `tokenizers` library",
            found: e.to_string(),
        })?;
        let mut added = Vec::with_capacity(file.added_tokens.len());
        for (i, token) in file.added_tokens.into_iter().enumerate() {
            let key = format!("added_tokens[{i}].content");
            check_len(&key, &token.content, MAX_TOKEN)?;
            if token.content.is_empty() {
                return Err(wrong(key, "a token of at least one character", "an empty one"));
            }
            let new = AddedToken::from(token.content, token.special)
                .single_word(token.single_word)
                .lstrip(token.lstrip)
                .rstrip(token.rstrip)
                .normalized(token.normalized.unwrap_or(!token.special));
            added.push((token.id, new));
        }
        Ok(Self {
            added,
            normalizer: file.normalizer,
            pre_tokenizer: file.pre_tokenizer,
            post_processor: file.post_processor,
            decoder: file.decoder,
            model: file.model,
        })
    }
}

impl ModelJson {
    /// The kind of model. Old files do not name it.
    pub fn kind(&self) -> &str {
        match (&self.kind, &self.vocab) {
            (Some(kind), _) => kind,
            (None, Vocab::Scores(_)) => "Unigram",
            (None, _) if self.merges.is_some() => "BPE",
            (None, _) if self.max_input_chars_per_word.is_some() => "WordPiece",
            (None, _) => "WordLevel",
        }
    }

    /// Builds the library's model.
    pub fn build(self) -> Result<ModelWrapper, TextError> {
        let kind = self.kind().to_string();
        self.check(&kind)?;
        let unknown = |unk: Option<String>| unk.ok_or_else(|| wrong("model.unk_token", "a token", "nothing"));
        let failed = |e: tokenizers::Error| wrong("model", "a model of the `tokenizers` library", e);
        let built = match kind.as_str() {
            "Unigram" => {
                let scores = self.vocab.scores()?;
                let n_bytes: usize = scores.iter().map(|(token, _)| token.len()).sum();
                if n_bytes > MAX_PIECES {
                    let expected = format!("at most {MAX_PIECES} bytes of tokens");
                    return Err(wrong("model.vocab", expected, format!("{n_bytes}")));
                }
                let (unk_id, byte_fallback) = (self.unk_id, self.byte_fallback.unwrap_or(false));
                guarded(|| Unigram::from(scores, unk_id, byte_fallback).map(ModelWrapper::from))
            }
            "BPE" => {
                let merges = self.merges.ok_or_else(|| wrong("model.merges", "a list", "nothing"))?;
                let merges = merges.into_iter().map(|Merge(left, right)| (left, right)).collect();
                let mut builder = BpeBuilder::new()
                    .vocab_and_merges(self.vocab.ids()?, merges)
                    .fuse_unk(self.fuse_unk.unwrap_or(false))
                    .byte_fallback(self.byte_fallback.unwrap_or(false))
                    .ignore_merges(self.ignore_merges.unwrap_or(false));
                if let Some(unk) = self.unk_token {
                    builder = builder.unk_token(unk);
                }
                if let Some(prefix) = self.continuing_subword_prefix {
                    builder = builder.continuing_subword_prefix(prefix);
                }
                if let Some(suffix) = self.end_of_word_suffix {
                    builder = builder.end_of_word_suffix(suffix);
                }
                let built = guarded(|| builder.build().map(ModelWrapper::from));
                let failed = |e: &dyn fmt::Display| wrong("model.merges", "tokens of `model.vocab`", e);
                return match built {
                    Ok(model) => model.map_err(|e| failed(&e)),
                    Err(e) => Err(failed(&e)),
                };
            }
            "WordPiece" => {
                let missing = || wrong("model.max_input_chars_per_word", "a number", "nothing");
                let builder = WordPieceBuilder::new()
                    .max_input_chars_per_word(self.max_input_chars_per_word.ok_or_else(missing)?)
                    .continuing_subword_prefix(self.continuing_subword_prefix.unwrap_or_else(|| "##".into()))
                    .unk_token(unknown(self.unk_token)?)
                    .vocab(self.vocab.ids()?);
                guarded(|| builder.build().map(ModelWrapper::from))
            }
            "WordLevel" => {
                let builder = WordLevelBuilder::new().unk_token(unknown(self.unk_token)?);
                let builder = builder.vocab(self.vocab.ids()?);
                guarded(|| builder.build().map(ModelWrapper::from))
            }
            other => {
                let expected = "`BPE`, `Unigram`, `WordPiece` or `WordLevel`";
                return Err(wrong("model.type", expected, cut(other)));
            }
        };
        built.map_err(|e| wrong("model", "a model of the `tokenizers` library", e))?.map_err(failed)
    }

    fn check(&self, kind: &str) -> Result<(), TextError> {
        let longest = if kind == "Unigram" { MAX_PIECE } else { MAX_TOKEN };
        let check = |token: &str| check_len("model.vocab", token, longest);
        match &self.vocab {
            Vocab::Ids(tokens) => tokens.iter().try_for_each(|(token, _)| check(token))?,
            Vocab::Scores(tokens) => tokens.iter().try_for_each(|(token, _)| check(token))?,
        }
        // With byte fallback, each of their bytes may become a token of each character.
        let affix = if self.byte_fallback == Some(true) { MAX_AFFIX / 4 } else { MAX_AFFIX };
        for (key, affix, longest) in [
            ("model.continuing_subword_prefix", &self.continuing_subword_prefix, affix),
            ("model.end_of_word_suffix", &self.end_of_word_suffix, affix),
            ("model.unk_token", &self.unk_token, MAX_TOKEN),
        ] {
            affix.iter().try_for_each(|affix| check_len(key, affix, longest))?;
        }
        Ok(())
    }
}

impl Default for Vocab {
    fn default() -> Self {
        Vocab::Ids(Vec::new())
    }
}

impl Vocab {
    pub fn contains(&self, token: &str) -> bool {
        match self {
            Vocab::Ids(tokens) => tokens.iter().any(|(known, _)| known == token),
            Vocab::Scores(tokens) => tokens.iter().any(|(known, _)| known == token),
        }
    }

    fn ids(self) -> Result<Ids, TextError> {
        match self {
            Vocab::Ids(tokens) => Ok(tokens.into_iter().collect()),
            Vocab::Scores(_) => Err(wrong("model.vocab", "an object of tokens and ids", "a list")),
        }
    }

    fn scores(self) -> Result<Vec<(String, f64)>, TextError> {
        match self {
            Vocab::Scores(tokens) => Ok(tokens),
            Vocab::Ids(_) => Err(wrong("model.vocab", "a list of tokens and scores", "an object")),
        }
    }
}

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vocab;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the tokens of `model.vocab`, an object or a list")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocab, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = map.next_key::<String>()? {
                    let found: Value = map.next_value()?;
                    // The last one is free, so that one more can be added.
                    let id = found.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < u32::MAX);
                    let id = id.ok_or_else(|| {
                        let (token, found) = (cut(&token), describe(&found));
                        A::Error::custom(format!(
                            "`model.vocab`: expected an id below 2^32 - 1 for `{token}`, found {found}"
                        ))
                    })?;
                    tokens.push((token, id));
                }
                Ok(Vocab::Ids(tokens))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vocab, A::Error> {
                let mut tokens = Vec::new();
                while let Some((token, score)) = seq.next_element::<(String, f64)>()? {
                    if !score.is_finite() {
                        let token = cut(&token);
                        return Err(A::Error::custom(format!(
                            "`model.vocab`: expected a finite score for `{token}`, found {score}"
                        )));
                    }
                    tokens.push((token, score));
                }
                Ok(Vocab::Scores(tokens))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Merge;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("two tokens in `model.merges`")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Merge, E> {
                match text.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => Ok(Merge(left.into(), right.into())),
                    _ => Err(E::invalid_value(serde::de::Unexpected::Str(cut(text)), &self)),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Merge, A::Error> {
                let left = seq.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
                let right = seq.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
                match seq.next_element::<IgnoredAny>()? {
                    None => Ok(Merge(left, right)),
                    Some(_) => Err(A::Error::invalid_length(3, &self)),
                }
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A step of a normalizer, pre-tokenizer or decoder, and its key.
pub(super) type Step = (String, Map<String, Value>);

/// The steps of a normalizer, pre-tokenizer or decoder in their order. Sequences, whose steps are in
/// the field `list`, are unfolded; all steps are checked.
pub(super) fn steps(part: Value, key: &str, list: &str) -> Result<Vec<Step>, TextError> {
    fn unfold(
        part: Value,
        key: String,
        list: &str,
        depth: usize,
        steps: &mut Vec<Step>,
    ) -> Result<(), TextError> {
        let mut step = match part {
            Value::Null => return Ok(()),
            Value::Object(step) => step,
            other => return Err(wrong(key, "an object", describe(&other))),
        };
        if step.get("type").is_some_and(|kind| kind == "Sequence") || step.contains_key(list) {
            let items = match step.remove(list) {
                Some(Value::Array(items)) => items,
                other => {
                    let found = other.as_ref().map_or("nothing".into(), describe);
                    return Err(wrong(format!("{key}.{list}"), "a list", found));
                }
            };
            if depth == MAX_DEPTH {
                return Err(wrong(key, format!("at most {MAX_DEPTH} sequences in each other"), "more"));
            }
            for (i, item) in items.into_iter().enumerate() {
                unfold(item, format!("{key}.{list}[{i}]"), list, depth + 1, steps)?;
            }
            return Ok(());
        }
        if steps.len() == MAX_STEPS {
            return Err(wrong(key, format!("at most {MAX_STEPS} steps"), "more"));
        }
        check_step(&key, &step)?;
        steps.push((key, step));
        Ok(())
    }
    let mut found = Vec::new();
    unfold(part, key.to_string(), list, 0, &mut found)?;
    Ok(found)
}

fn check_step(key: &str, step: &Map<String, Value>) -> Result<(), TextError> {
    for (name, value) in step {
        if let Some(text) = value.as_str().filter(|_| name != "precompiled_charsmap") {
            check_len(&format!("{key}.{name}"), text, MAX_STRING)?;
        }
    }
    match step.get("type").and_then(Value::as_str) {
        None if step.contains_key("pattern") => Err(wrong(format!("{key}.type"), "a type", "nothing")),
        Some("Precompiled") => {
            let key = format!("{key}.precompiled_charsmap");
            let map = step.get("precompiled_charsmap").and_then(Value::as_str);
            check_charsmap(&key, map.ok_or_else(|| wrong(key.clone(), "a map in Base64", "nothing"))?)
        }
        Some("FixedLength") if step.get("length").is_some_and(|n| n.as_u64() == Some(0)) => {
            Err(wrong(format!("{key}.length"), "at least 1", "0"))
        }
        _ => Ok(()),
    }
}

/// Checks the sizes in a compiled map of characters: a table's size, the table, and the texts that characters become,
/// each ended by a zero.
fn check_charsmap(key: &str, base64: &str) -> Result<(), TextError> {
    if base64.len() > MAX_CHARSMAP / 3 * 4 {
        return Err(wrong(key, format!("at most {MAX_CHARSMAP} bytes"), format!("{}", base64.len() / 4 * 3)));
    }
    let map = from_base64(base64).ok_or_else(|| wrong(key, "a map in Base64", "something else"))?;
    let size = map.first_chunk::<4>().map(|size| u32::from_le_bytes(*size) as usize);
    let texts = size.and_then(|size| map.get(4..)?.get(size / 4 * 4..).filter(|_| size >= 4));
    let Some(texts) = texts else {
        let found = size.map_or("none".to_string(), |size| format!("one of {size}"));
        return Err(wrong(key, format!("a table within its {} bytes", map.len()), found));
    };
    match texts.split(|byte| *byte == 0).map(<[u8]>::len).max() {
        Some(longest) if longest > MAX_MAPPED => {
            Err(wrong(key, format!("at most {MAX_MAPPED} bytes for a character"), format!("{longest}")))
        }
        _ => Ok(()),
    }
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut n_bits) = (0u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
            bits &= (1 << n_bits) - 1;
        }
    }
    Some(bytes)
}

/// What a post-processor puts around a text, and around a pair.
#[derive(Clone, Default)]
pub(super) struct PostProcessor {
    pub before: Vec<u32>,
    pub after: Vec<u32>,
    /// Each with its type. Empty if the tokenizer takes no pairs.
    pub pair: Vec<(PairPart, u32)>,
}

/// A part of a pair.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum PairPart {
    First,
    Second,
    Token(u32),
}

impl PostProcessor {
    /// All tokens.
    pub fn ids(&self) -> impl Iterator<Item = u32> {
        let pair = self.pair.iter().filter_map(|(part, _)| match part {
            PairPart::Token(id) => Some(*id),
            _ => None,
        });
        self.before.iter().chain(&self.after).copied().chain(pair)
    }

    /// Tokens around a text, and the same around the texts of a pair, with so many of the last between them. With one,
    /// as in BERT, the second text has a type of its own.
    pub fn of(first: Option<u32>, last: Option<u32>, n_between: usize) -> PostProcessor {
        let second = u32::from(n_between == 1);
        let tokens = |id: Option<u32>, kind| id.map(move |id| (PairPart::Token(id), kind));
        let mut pair: Vec<_> = tokens(first, 0).into_iter().collect();
        pair.push((PairPart::First, 0));
        (0..n_between).for_each(|_| pair.extend(tokens(last, 0)));
        pair.push((PairPart::Second, second));
        pair.extend(tokens(last, second));
        PostProcessor { before: first.into_iter().collect(), after: last.into_iter().collect(), pair }
    }
}

/// What a post-processor puts around a text.
pub(super) fn post_processor(part: &Value) -> Result<PostProcessor, TextError> {
    let mut found = None;
    find_around(part, "post_processor", 0, &mut found)?;
    let found: PostProcessor = found.unwrap_or_default();
    let n = found.before.len() + found.after.len();
    if n > MAX_AROUND {
        return Err(wrong("post_processor", format!("at most {MAX_AROUND} tokens around a text"), n));
    }
    Ok(found)
}

fn find_around(
    part: &Value,
    key: &str,
    depth: usize,
    around: &mut Option<PostProcessor>,
) -> Result<(), TextError> {
    if part.is_null() {
        return Ok(());
    }
    let Some(step) = part.as_object() else { return Err(wrong(key, "an object", describe(part))) };
    let new = match step.get("type").and_then(Value::as_str) {
        Some("ByteLevel") => return Ok(()),
        Some("Sequence") => {
            let key = format!("{key}.processors");
            let items = step.get("processors").and_then(Value::as_array);
            let items = items.filter(|_| depth < MAX_DEPTH);
            for (i, item) in
                items.ok_or_else(|| wrong(key.as_str(), "a list", "something else"))?.iter().enumerate()
            {
                find_around(item, &format!("{key}[{i}]"), depth + 1, around)?;
            }
            return Ok(());
        }
        Some("TemplateProcessing") => template(step, key)?,
        // Old files do not name the type.
        Some("BertProcessing" | "RobertaProcessing") | None => {
            let id = |name: &str| {
                let key = format!("{key}.{name}");
                let found = step.get(name).unwrap_or(&Value::Null);
                let id = found.get(1).and_then(Value::as_u64).and_then(|id| u32::try_from(id).ok());
                id.ok_or_else(|| wrong(key, "a token and its id", describe(found)))
            };
            // RoBERTa's has a setting that BERT's has not.
            let is_bert =
                !step.contains_key("trim_offsets") && step.get("type") != Some(&"RobertaProcessing".into());
            PostProcessor::of(Some(id("cls")?), Some(id("sep")?), if is_bert { 1 } else { 2 })
        }
        Some(other) => {
            let expected =
                "`TemplateProcessing`, `BertProcessing`, `RobertaProcessing`, `ByteLevel` or `Sequence`";
            return Err(wrong(format!("{key}.type"), expected, cut(other)));
        }
    };
    match around.replace(new) {
        None => Ok(()),
        Some(_) => Err(wrong(key, "one step that adds tokens", "another")),
    }
}

/// What a template puts around a text (`single`), and around a pair.
fn template(step: &Map<String, Value>, key: &str) -> Result<PostProcessor, TextError> {
    let single = pieces(step, key, "single", &[("A", PairPart::First)])?;
    let at = single.iter().position(|(part, _)| *part == PairPart::First);
    let list = format!("{key}.single");
    let at = at.ok_or_else(|| wrong(list, "a piece `Sequence`, for the text", "none"))?;
    let ids = |parts: &[(PairPart, u32)]| {
        let id = |(part, _): &(PairPart, u32)| if let PairPart::Token(id) = part { Some(*id) } else { None };
        parts.iter().filter_map(id).collect::<Vec<u32>>()
    };
    let pair = match step.get("pair") {
        None | Some(Value::Null) => Vec::new(),
        Some(_) => pieces(step, key, "pair", &[("A", PairPart::First), ("B", PairPart::Second)])?,
    };
    let has = |text| pair.iter().any(|(part, _)| *part == text);
    let pair = if has(PairPart::First) && has(PairPart::Second) { pair } else { Vec::new() };
    Ok(PostProcessor { before: ids(&single[..at]), after: ids(&single[at + 1..]), pair })
}

/// The pieces of a template, each with its type. Each of the texts `names` is there at most once.
fn pieces(
    step: &Map<String, Value>,
    key: &str,
    name: &str,
    names: &[(&str, PairPart)],
) -> Result<Vec<(PairPart, u32)>, TextError> {
    let list = format!("{key}.{name}");
    let all = step.get(name).and_then(Value::as_array);
    let all = all.ok_or_else(|| wrong(list.as_str(), "a list of pieces", "something else"))?;
    let mut parts: Vec<(PairPart, u32)> = Vec::new();
    for (i, piece) in all.iter().enumerate() {
        let key_of = |name: &str| format!("{list}[{i}].{name}");
        let kind_of = |piece: &Value| match piece.get("type_id") {
            None => Ok(0),
            Some(kind) => {
                kind.as_u64().filter(|kind| *kind < MAX_TYPES).map(|kind| kind as u32).ok_or_else(|| {
                    wrong(key_of("type_id"), format!("a number below {MAX_TYPES}"), describe(kind))
                })
            }
        };
        if let Some(text) = piece.get("Sequence") {
            let id = text.get("id").and_then(Value::as_str).unwrap_or_default();
            let known = names.iter().find(|(name, _)| *name == id).map(|(_, part)| *part);
            let known = known.filter(|part| parts.iter().all(|(other, _)| other != part));
            let expected = names.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(" or ");
            let part = known
                .ok_or_else(|| wrong(key_of("Sequence.id"), format!("{expected}, once"), describe(text)))?;
            parts.push((part, kind_of(text)?));
            continue;
        }
        let token = piece.get("SpecialToken");
        let name = token.and_then(|token| token.get("id")).and_then(Value::as_str);
        let name =
            name.ok_or_else(|| wrong(key_of("SpecialToken.id"), "the name of a token", describe(piece)))?;
        let kind = token.map_or(Ok(0), kind_of)?;
        let token = step.get("special_tokens").and_then(|tokens| tokens.get(name));
        let ids = token.and_then(|token| token.get("ids")).and_then(Value::as_array).ok_or_else(|| {
            wrong(key_of("SpecialToken.id"), format!("a token of `{key}.special_tokens`"), cut(name))
        })?;
        for id in ids {
            let found = id.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = found.ok_or_else(|| {
                wrong(format!("{key}.special_tokens.{}.ids", cut(name)), "token ids", describe(id))
            })?;
            parts.push((PairPart::Token(id), kind));
        }
        if parts.len() > MAX_AROUND + names.len() {
            return Err(wrong(list, format!("at most {MAX_AROUND} tokens around a text"), "more"));
        }
    }
    Ok(parts)
}

/// An error about `key` of `tokenizer.json`.
pub(super) fn wrong(
    key: impl Into<Box<str>>,
    expected: impl Into<Box<str>>,
    found: impl fmt::Display,
) -> TextError {
    TextError::Key { file: TOKENIZER, key: key.into(), expected: expected.into(), found: found.to_string() }
}

fn check_len(key: &str, text: &str, longest: usize) -> Result<(), TextError> {
    match text.len() > longest {
        true => Err(wrong(key, format!("at most {longest} bytes"), format!("{}", text.len()))),
        false => Ok(()),
    }
}

/// The beginning of a text of a file, for a message.
fn cut(text: &str) -> &str {
    match text.char_indices().nth(40) {
        Some((at, _)) => &text[..at],
        None => text,
    }
}

/// A JSON value in an error message: the value if it is short, else its type.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
        Value::String(text) if text.len() > 40 => format!("a string of {} bytes", text.len()),
        other => other.to_string(),
    }
}
