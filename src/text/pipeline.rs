//! The steps from a text to tokens and back, as `tokenizer.json` lists them, each bounded.
//!
//! The library's own sequences run without limits: a few replacements make a gigabyte of one letter, and a pattern that
//! backtracks too much silently matches nothing. So the steps run one by one here, and those with a pattern of the file
//! are this module's own.

use std::cell::{Cell, RefCell};

use fancy_regex::{Regex, RegexBuilder};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::{
    Decoder as _, DecoderWrapper, NormalizedString, Normalizer as _, NormalizerWrapper, OffsetReferential,
    OffsetType, Offsets, PreTokenizedString, PreTokenizer as _, PreTokenizerWrapper, SplitDelimiterBehavior,
};

use super::TextError;
use super::tokenizer_json::{TOKENIZER, describe, steps, wrong};
use crate::guard::guarded;

/// Bytes that the shortest text may become.
const FLOOR: usize = 64 << 10;
/// Bytes that each byte of a longer text may become. Tokenizers make up to 13 of one: NFKC spells U+FDFA in 33 bytes,
/// and three of them are spaces, which become `▁`.
const FACTOR: usize = 16;
/// Bytes of a regular expression. Those of tokenizers have up to about 600.
const MAX_PATTERN: usize = 4 << 10;
/// Groups of a regular expression, each of which may be compiled by itself.
const MAX_GROUPS: usize = 100;
/// Bytes of such a compiled piece.
const MAX_COMPILED: usize = 4 << 20;

/// Bytes that a text of `n_bytes` may become.
pub(super) fn bound(n_bytes: usize) -> usize {
    n_bytes.saturating_mul(FACTOR).saturating_add(FLOOR)
}

type Step<T> = (String, T);

/// Changes a text before it is cut.
#[derive(Default)]
pub(super) struct Normalizer(Vec<Step<NormalStep>>);

enum NormalStep {
    Library(NormalizerWrapper),
    Replace(Expression, String),
}

/// Cuts a text into words.
#[derive(Default)]
pub(super) struct PreTokenizer(Vec<Step<CutStep>>);

enum CutStep {
    Library(PreTokenizerWrapper),
    Split { pattern: Expression, behavior: SplitDelimiterBehavior, invert: bool },
}

/// Turns tokens into text.
pub(super) struct Decoder(Vec<Step<DecodeStep>>);

enum DecodeStep {
    Library(DecoderWrapper),
    Replace(Expression, String),
}

impl Normalizer {
    pub fn new(part: Value) -> Result<Self, TextError> {
        let make = |(key, step): Step<Map<String, Value>>| {
            let step = match type_of(&step) {
                "Replace" => {
                    let (pattern, content) = replace(&key, &step)?;
                    NormalStep::Replace(pattern, content)
                }
                _ => NormalStep::Library(library(&key, step, "a normalizer of the `tokenizers` library")?),
            };
            Ok((key, step))
        };
        let steps = steps(part, "normalizer", "normalizers")?;
        Ok(Self(steps.into_iter().map(make).collect::<Result<_, _>>()?))
    }

    /// For pieces that together may become `bound` bytes.
    pub fn within(&self, bound: usize) -> Normalizing<'_> {
        Normalizing { steps: &self.0, bound, left: Cell::new(bound), error: RefCell::new(None) }
    }
}

/// A normalizer at work on the pieces of one text.
pub(super) struct Normalizing<'a> {
    steps: &'a [Step<NormalStep>],
    bound: usize,
    left: Cell<usize>,
    error: RefCell<Option<String>>,
}

impl Normalizing<'_> {
    /// The first error. The library ignores those of a normalizer.
    pub fn finish(self) -> tokenizers::Result<()> {
        self.error.into_inner().map_or(Ok(()), |error| Err(error.into()))
    }

    fn run(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        for (key, step) in self.steps {
            match step {
                NormalStep::Library(step) => step.normalize(text)?,
                NormalStep::Replace(pattern, content) => {
                    let found = pattern.find(key, text.get())?;
                    self.check(key, text.len() + replaced(&found, content))?;
                    text.replace(Found(found), content)?;
                }
            }
            self.check(key, text.len())?;
        }
        self.left.set(self.left.get() - text.len().min(self.left.get()));
        Ok(())
    }

    fn check(&self, key: &str, n_bytes: usize) -> tokenizers::Result<()> {
        check(key, n_bytes + self.bound - self.left.get(), self.bound)
    }
}

impl tokenizers::Normalizer for Normalizing<'_> {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        if self.error.borrow().is_some() {
            return Ok(());
        }
        let result = self.run(text);
        if let Err(error) = &result {
            *self.error.borrow_mut() = Some(error.to_string());
        }
        result
    }
}

impl PreTokenizer {
    pub fn new(part: Value) -> Result<Self, TextError> {
        let make = |(key, step): Step<Map<String, Value>>| {
            let step = match type_of(&step) {
                "Split" => {
                    let field = |name: &str| step.get(name).cloned().unwrap_or_default();
                    let behavior = format!("{key}.behavior");
                    CutStep::Split {
                        pattern: Expression::new(&format!("{key}.pattern"), field("pattern"))?,
                        behavior: library(&behavior, field("behavior"), "what becomes of the found pieces")?,
                        invert: field("invert").as_bool().unwrap_or(false),
                    }
                }
                _ => CutStep::Library(library(&key, step, "a pre-tokenizer of the `tokenizers` library")?),
            };
            Ok((key, step))
        };
        let steps = steps(part, "pre_tokenizer", "pretokenizers")?;
        Ok(Self(steps.into_iter().map(make).collect::<Result<_, _>>()?))
    }

    /// Cuts pieces that together may become `bound` bytes.
    pub fn run(&self, words: &mut PreTokenizedString, bound: usize) -> tokenizers::Result<()> {
        for (key, step) in &self.0 {
            match step {
                CutStep::Library(step) => step.pre_tokenize(words)?,
                CutStep::Split { pattern, behavior, invert } => words.split(|_, text| {
                    let found = Found(pattern.find(key, text.get())?);
                    match invert {
                        true => text.split(Invert(found), *behavior),
                        false => text.split(found, *behavior),
                    }
                })?,
            }
            let words = words.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
            check(key, words.last().map_or(0, |(_, (_, end), _)| *end), bound)?;
        }
        Ok(())
    }
}

impl Decoder {
    pub fn new(part: Value) -> Result<Self, TextError> {
        let make = |(key, step): Step<Map<String, Value>>| {
            let step = match type_of(&step) {
                "Replace" => {
                    let (pattern, content) = replace(&key, &step)?;
                    DecodeStep::Replace(pattern, content)
                }
                _ => DecodeStep::Library(library(&key, step, "a decoder of the `tokenizers` library")?),
            };
            Ok((key, step))
        };
        let steps = steps(part, "decoder", "decoders")?;
        Ok(Self(steps.into_iter().map(make).collect::<Result<_, _>>()?))
    }

    /// Whether it turns tokens such as `<0xE2>` into bytes.
    pub fn has_byte_fallback(&self) -> bool {
        self.0.iter().any(|(_, step)| matches!(step, DecodeStep::Library(DecoderWrapper::ByteFallback(_))))
    }

    /// The text of `tokens`.
    pub fn run(&self, mut tokens: Vec<String>) -> tokenizers::Result<String> {
        // Some steps count on a first token.
        if tokens.is_empty() {
            return Ok(String::new());
        }
        if self.0.is_empty() {
            return Ok(tokens.join(" "));
        }
        let size = |tokens: &[String]| tokens.iter().map(String::len).sum::<usize>();
        let bound = bound(size(&tokens));
        for (key, step) in &self.0 {
            match step {
                DecodeStep::Library(step) => tokens = step.decode_chain(tokens)?,
                DecodeStep::Replace(pattern, content) => {
                    let mut n_bytes = size(&tokens);
                    for token in &mut tokens {
                        let found = pattern.find(key, token)?;
                        n_bytes += replaced(&found, content);
                        check(key, n_bytes, bound)?;
                        *token = found
                            .iter()
                            .map(|(at, is_match)| match is_match {
                                true => content.as_str(),
                                false => &token[at.0..at.1],
                            })
                            .collect();
                    }
                }
            }
            check(key, size(&tokens), bound)?;
        }
        Ok(tokens.concat())
    }
}

/// The pattern of a step: a text, or a regular expression.
struct Expression(Regex);

impl Expression {
    fn new(key: &str, pattern: Value) -> Result<Self, TextError> {
        let (source, is_text) = match (pattern.get("String"), pattern.get("Regex")) {
            (Some(Value::String(text)), None) => (text, true),
            (None, Some(Value::String(source))) => (source, false),
            _ => return Err(wrong(key, "an object with `String` or `Regex`", describe(&pattern))),
        };
        let n_groups = source.bytes().filter(|byte| *byte == b'(' && !is_text).count();
        if source.is_empty() {
            return Err(wrong(key, "a pattern of at least one character", "an empty one"));
        }
        if source.len() > MAX_PATTERN || n_groups > MAX_GROUPS {
            let expected = format!("at most {MAX_PATTERN} bytes and {MAX_GROUPS} groups");
            return Err(wrong(key, expected, format!("{} bytes and {n_groups} groups", source.len())));
        }
        let source = if is_text { fancy_regex::escape(source).into_owned() } else { source.clone() };
        let regex = guarded(|| {
            let regex = RegexBuilder::new(&source).delegate_size_limit(MAX_COMPILED).build();
            regex.map_err(|e| e.to_string())
        });
        let invalid = |e: &dyn std::fmt::Display| wrong(key, "a regular expression", e);
        Ok(Self(regex.map_err(|e| invalid(&e))?.map_err(|e| invalid(&e))?))
    }

    /// The pieces of `text`, and whether each is a match.
    fn find(&self, key: &str, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let (mut pieces, mut end) = (Vec::new(), 0);
        for found in self.0.find_iter(text) {
            let found = found.map_err(|e| format!("`{key}.pattern` of `{TOKENIZER}`: {e}"))?;
            if end != found.start() {
                pieces.push(((end, found.start()), false));
            }
            pieces.push(((found.start(), found.end()), true));
            end = found.end();
        }
        if end != text.len() {
            pieces.push(((end, text.len()), false));
        }
        Ok(pieces)
    }
}

/// Pieces that have been found already.
struct Found(Vec<(Offsets, bool)>);

impl Pattern for Found {
    fn find_matches(&self, _text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        Ok(self.0.clone())
    }
}

/// Bytes that `content` takes in place of the matches.
fn replaced(found: &[(Offsets, bool)], content: &str) -> usize {
    found.iter().filter(|(_, is_match)| *is_match).count() * content.len()
}

fn replace(key: &str, step: &Map<String, Value>) -> Result<(Expression, String), TextError> {
    let pattern = step.get("pattern").cloned().unwrap_or_default();
    let content = step.get("content").and_then(Value::as_str);
    let content = content.ok_or_else(|| wrong(format!("{key}.content"), "a text", "something else"))?;
    Ok((Expression::new(&format!("{key}.pattern"), pattern)?, content.to_string()))
}

fn type_of(step: &Map<String, Value>) -> &str {
    step.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Makes one of the library's objects.
fn library<T: DeserializeOwned>(key: &str, value: impl Into<Value>, expected: &str) -> Result<T, TextError> {
    let value = value.into();
    let made = guarded(|| serde_json::from_value(value));
    made.map_err(|e| wrong(key, expected, e))?.map_err(|e| wrong(key, expected, e))
}

fn check(key: &str, n_bytes: usize, bound: usize) -> tokenizers::Result<()> {
    match n_bytes > bound {
        true => {
            Err(format!("`{key}` of `{TOKENIZER}` makes {n_bytes} bytes of it, expected at most {bound}")
                .into())
        }
        false => Ok(()),
    }
}
