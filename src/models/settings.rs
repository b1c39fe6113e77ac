//! The values of a settings file in JSON, such as `config.json`.
//!
//! A key is read by one call, which has its type, its range and its default: no number of a file is used before it was
//! held against its range. An error names the key, its line, what was found and what was expected.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;

/// Layers. The deepest published models have a few hundred.
pub(crate) const LAYERS: RangeInclusive<usize> = 1..=1024;
/// Widths of the residual stream. With the ranges of the others, no size of a model overflows 64 bits.
pub(crate) const WIDTH: RangeInclusive<usize> = 1..=1 << 20;
/// Widths of an MLP.
pub(crate) const INNER_WIDTH: RangeInclusive<usize> = 1..=1 << 22;
/// Attention heads.
pub(crate) const HEADS: RangeInclusive<usize> = 1..=4096;
/// Elements of a head, of which kernels keep a row in registers.
pub(crate) const HEAD_WIDTH: RangeInclusive<usize> = 1..=256;
/// Rows of tables: vocabularies, positions. Small enough for a u32 index on the device, with bits to spare.
pub(crate) const ROWS: RangeInclusive<usize> = 1..=1 << 28;
/// Keys that a query sees. The device adds a position to it, in 32 bits.
pub(crate) const WINDOW: RangeInclusive<usize> = 1..=(1 << 31) - 1;
/// Caps on scores and logits. Published models have 20 to 50.
pub(crate) const CAP: RangeInclusive<f64> = 1e-3..=1e6;
/// Labels of a classification head.
pub(crate) const LABELS: RangeInclusive<usize> = 1..=1 << 20;
/// Token ids.
pub(crate) const TOKENS: RangeInclusive<usize> = 0..=u32::MAX as usize;
/// What a norm adds to the variance.
pub(crate) const EPSILON: RangeInclusive<f64> = 0.0..=1.0;

/// A value of a settings file that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// The file is not JSON, or not an object.
    #[error("{message}")]
    Syntax {
        /// What is wrong, and where.
        message: String,
    },
    /// A key has a value that it must not have.
    #[error("`{key}` is `{found}`, expected {expected}")]
    Value {
        /// Line of the value, from 1.
        line: usize,
        /// The key, with those around it: `rope_parameters.factor`.
        key: String,
        /// Its value, cut if it is long.
        found: String,
        /// Its range.
        expected: String,
    },
    /// A key that has no default is absent.
    #[error("`{key}` is missing, expected {expected}")]
    Missing {
        /// The key.
        key: String,
        /// Its range.
        expected: String,
    },
}

impl SettingError {
    /// Advice for the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        let is_syntax = matches!(self, SettingError::Syntax { .. });
        is_syntax.then(|| "the file may be damaged: download it again".into())
    }

    /// The line as it follows a file's name in a message: `, line 3`; empty if there is none.
    pub(crate) fn place(&self) -> String {
        match self {
            SettingError::Value { line, .. } => format!(", line {line}"),
            _ => String::new(),
        }
    }
}

/// The result of reading a key.
pub(crate) type Read<T> = Result<T, SettingError>;

/// An object of a settings file.
///
/// A key that is absent has its default. So has one that is `null`, except where `null` means something else in the
/// reference ([`Settings::some_whole`]). The last one of two equal keys counts, as in Python.
pub(crate) struct Settings<'a> {
    /// The whole file.
    file: &'a str,
    /// The keys around this object, as they precede a key's name: `rope_parameters.`.
    around: String,
    /// The values as they are written, each a part of `file`.
    values: BTreeMap<String, &'a str>,
    /// The keys that were read, with their defaults.
    defaults: RefCell<BTreeMap<String, Value>>,
}

impl<'a> Settings<'a> {
    /// The object in a file.
    ///
    /// # Errors
    /// [`SettingError::Syntax`].
    pub fn parse(file: &'a str) -> Read<Settings<'a>> {
        let syntax = |message: String| SettingError::Syntax { message };
        // This says where an error is, and does not recurse into values, however deeply they are nested.
        serde_json::from_str::<IgnoredAny>(file).map_err(|e| syntax(e.to_string()))?;
        let values = entries(file).ok_or_else(|| syntax("it is no JSON object, expected `{`".into()))?;
        Ok(Settings::new(file, String::new(), values))
    }

    fn new(file: &'a str, around: String, values: BTreeMap<String, &'a str>) -> Settings<'a> {
        Settings { file, around, values, defaults: RefCell::default() }
    }

    /// Lets the value of another name stand for a key that is absent, for each `(name, key)`.
    pub fn also(&mut self, names: &[(&str, &str)]) {
        for (name, key) in names {
            if let Some(raw) = self.values.get(*name).filter(|_| !self.has(key)).copied() {
                self.values.insert(key.to_string(), raw);
            }
        }
    }

    /// Gives a key another value, in JSON.
    pub fn put(&mut self, key: &str, value: &'a str) {
        self.values.insert(key.to_string(), value);
    }

    /// The keys that were read so far, with their defaults.
    pub fn defaults(self) -> BTreeMap<String, Value> {
        self.defaults.into_inner()
    }

    /// Whether the key is there, even as `null`.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// The error that a key has another value than `expected`.
    pub fn wrong(&self, key: &str, expected: impl Display) -> SettingError {
        match self.values.get(key) {
            Some(raw) => self.value_error(key, raw, raw, expected),
            None => SettingError::Missing { key: self.full(key), expected: expected.to_string() },
        }
    }

    /// As [`Settings::wrong`], with `found` in place of the value as it is written. An absent key has its default.
    pub fn wrong_value(&self, key: &str, found: impl Display, expected: impl Display) -> SettingError {
        match self.values.get(key) {
            Some(raw) => self.value_error(key, &found.to_string(), raw, expected),
            None => {
                let expected = format!("{expected}; `{found}` is the default");
                SettingError::Missing { key: self.full(key), expected }
            }
        }
    }

    fn value_error(&self, key: &str, found: &str, raw: &str, expected: impl Display) -> SettingError {
        SettingError::Value {
            line: self.line(raw),
            key: self.full(key),
            found: cut(found),
            expected: expected.to_string(),
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.around)
    }

    /// The line where a value begins, from 1.
    fn line(&self, raw: &str) -> usize {
        // The value is a part of the file, not a copy.
        let at = (raw.as_ptr() as usize).saturating_sub(self.file.as_ptr() as usize);
        1 + self.file.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count()
    }

    fn note(&self, key: &str, default: impl Into<Value>) {
        self.defaults.borrow_mut().insert(key.to_string(), default.into());
    }

    /// The value of a key as it is written, unless it is absent or `null`.
    pub fn written(&self, key: &str) -> Option<&'a str> {
        self.values.get(key).copied().filter(|raw| *raw != "null")
    }

    /// The value of a key in a type of its own, unless it is absent or `null`.
    pub fn of_type<T: Deserialize<'a>>(&self, key: &str, expected: &str) -> Read<Option<T>> {
        self.note(key, Value::Null);
        let Some(raw) = self.written(key) else { return Ok(None) };
        serde_json::from_str(raw).map(Some).map_err(|_| self.wrong(key, expected))
    }

    /// A whole number.
    pub fn whole(&self, key: &str, range: RangeInclusive<usize>, default: usize) -> Read<usize> {
        let value = self.found_whole(key, range)?;
        self.note(key, default);
        Ok(value.unwrap_or(default))
    }

    /// A whole number or nothing: `null` is nothing, whatever the default is.
    pub fn some_whole(
        &self,
        key: &str,
        range: RangeInclusive<usize>,
        default: Option<usize>,
    ) -> Read<Option<usize>> {
        let value = self.found_whole(key, range)?;
        self.note(key, default);
        Ok(if self.has(key) { value } else { default })
    }

    /// A whole number that has no default.
    pub fn needed_whole(&self, key: &str, range: RangeInclusive<usize>) -> Read<usize> {
        let expected = whole_range(&range);
        self.found_whole(key, range)?.ok_or_else(|| self.wrong(key, expected))
    }

    fn found_whole(&self, key: &str, range: RangeInclusive<usize>) -> Read<Option<usize>> {
        let Some(raw) = self.written(key) else { return Ok(None) };
        match whole(raw).filter(|n| range.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => Err(self.wrong(key, whole_range(&range))),
        }
    }

    /// A number.
    pub fn real(&self, key: &str, range: RangeInclusive<f64>, default: f64) -> Read<f64> {
        let value = self.some_real(key, range)?;
        self.note(key, default);
        Ok(value.unwrap_or(default))
    }

    /// A number, unless it is absent.
    pub fn some_real(&self, key: &str, range: RangeInclusive<f64>) -> Read<Option<f64>> {
        self.note(key, Value::Null);
        let Some(raw) = self.written(key) else { return Ok(None) };
        // JSON's numbers are Rust's; one that is too large becomes infinite, which no range has.
        match number(raw).filter(|x| range.contains(x)) {
            Some(x) => Ok(Some(x)),
            None => {
                let expected = format!("a number from {} to {}", range.start(), range.end());
                Err(self.wrong(key, expected))
            }
        }
    }

    /// A number or nothing: `null` is nothing, whatever the default is.
    pub fn real_or_none(
        &self,
        key: &str,
        range: RangeInclusive<f64>,
        default: Option<f64>,
    ) -> Read<Option<f64>> {
        let value = self.some_real(key, range)?;
        self.note(key, default);
        Ok(if self.has(key) { value } else { default })
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &str, default: bool) -> Read<bool> {
        let value = self.some_flag(key)?;
        self.note(key, default);
        Ok(value.unwrap_or(default))
    }

    /// `true` or `false`, unless it is absent.
    pub fn some_flag(&self, key: &str) -> Read<Option<bool>> {
        self.of_type(key, "`true` or `false`")
    }

    /// A text, unless it is absent.
    pub fn some_text(&self, key: &str) -> Read<Option<String>> {
        self.of_type(key, "a text")
    }

    /// One of the `known` names. The default is one of them.
    pub fn one_of<T: Copy>(&self, key: &str, known: &[(&str, T)], default: &str) -> Read<T> {
        let value = self.some_one_of(key, known)?;
        self.note(key, default);
        let default = known.iter().find(|(name, _)| *name == default).map(|(_, value)| *value);
        Ok(value.or(default).expect("the default is one of them"))
    }

    /// One of the `known` names, unless it is absent.
    pub fn some_one_of<T: Copy>(&self, key: &str, known: &[(&str, T)]) -> Read<Option<T>> {
        self.note(key, Value::Null);
        let Some(raw) = self.written(key) else { return Ok(None) };
        let found: Option<String> = serde_json::from_str(raw).ok();
        match known.iter().find(|(name, _)| found.as_deref() == Some(name)) {
            Some((_, value)) => Ok(Some(*value)),
            None => {
                let found = found.as_deref().unwrap_or(raw);
                Err(self.value_error(key, found, raw, names(known.iter().map(|(name, _)| *name))))
            }
        }
    }

    /// A list, each element one of the `known` names; nothing if it is absent.
    pub fn list_of<T: Copy>(&self, key: &str, known: &[(&str, T)]) -> Read<Option<Vec<T>>> {
        let Some(elements) = self.list(key)? else { return Ok(None) };
        let element = |(i, raw): (usize, &&'a str)| {
            let found: Option<String> = serde_json::from_str(raw).ok();
            let known_value = known.iter().find(|(name, _)| found.as_deref() == Some(name));
            known_value.map(|(_, value)| *value).ok_or_else(|| {
                let found = found.as_deref().unwrap_or(raw);
                let expected = names(known.iter().map(|(name, _)| *name));
                self.value_error(&format!("{key}[{i}]"), found, raw, expected)
            })
        };
        elements.iter().enumerate().map(element).collect::<Read<_>>().map(Some)
    }

    /// A list of texts, unless it is absent.
    pub fn texts(&self, key: &str) -> Read<Option<Vec<String>>> {
        self.of_type(key, "a list of texts")
    }

    /// A list of token ids, unless it is absent. One id is a list of one. Some lists have -1, which is no token.
    pub fn tokens(&self, key: &str) -> Read<Option<Vec<u32>>> {
        let Some(raw) = self.written(key) else { return Ok(None) };
        let elements = match raw.starts_with('[') {
            true => self.list(key)?.unwrap_or_default(),
            false => vec![raw],
        };
        let mut tokens = Vec::with_capacity(elements.len());
        for (i, raw) in elements.into_iter().enumerate() {
            match whole(raw).and_then(|id| u32::try_from(id).ok()) {
                Some(id) => tokens.push(id),
                None if number(raw) == Some(-1.0) => {}
                None => {
                    let expected = whole_range(&TOKENS);
                    return Err(self.value_error(&format!("{key}[{i}]"), raw, raw, expected));
                }
            }
        }
        Ok(Some(tokens))
    }

    /// The elements of a list, unless it is absent.
    pub fn list(&self, key: &str) -> Read<Option<Vec<&'a str>>> {
        self.note(key, Value::Null);
        let Some(raw) = self.written(key) else { return Ok(None) };
        elements(raw).map(Some).ok_or_else(|| self.wrong(key, "a list"))
    }

    /// The object below a key, unless it is absent.
    pub fn object(&self, key: &str) -> Read<Option<Settings<'a>>> {
        self.note(key, Value::Null);
        let Some(raw) = self.written(key) else { return Ok(None) };
        let values = entries(raw).ok_or_else(|| self.wrong(key, "an object"))?;
        Ok(Some(Settings::new(self.file, format!("{}{key}.", self.around), values)))
    }

    /// The keys of this object, in the order of their names, each with its value as it is written.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.values.iter().map(|(key, raw)| (key.as_str(), *raw))
    }
}

/// The keys of an object in valid JSON, each with its value as it is written; `None` if it is no object.
fn entries(json: &str) -> Option<BTreeMap<String, &str>> {
    let mut rest = json.trim_start().strip_prefix('{')?.trim_start();
    let mut values = BTreeMap::new();
    while !rest.starts_with('}') {
        let (key, after) = first(rest);
        // What is left of an escape that stands for no character, such as half of a pair, is no key that is read.
        let key = serde_json::from_str(key).unwrap_or_else(|_| key.to_string());
        let (value, after) = first(after.trim_start().strip_prefix(':')?.trim_start());
        values.insert(key, value);
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(values)
}

/// The elements of a list in valid JSON, each as it is written; `None` if it is no list.
fn elements(json: &str) -> Option<Vec<&str>> {
    let mut rest = json.trim_start().strip_prefix('[')?.trim_start();
    let mut elements = Vec::new();
    while !rest.starts_with(']') {
        let (element, after) = first(rest);
        if element.is_empty() {
            return None;
        }
        elements.push(element);
        rest = after.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(elements)
}

/// The first value of valid JSON, and what comes after it.
fn first(json: &str) -> (&str, &str) {
    let (mut depth, mut is_text, mut is_escaped) = (0usize, false, false);
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => {
                is_text = !is_text;
                if !is_text && depth == 0 {
                    return json.split_at(at + 1);
                }
            }
            _ if is_text => {}
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 1 => return json.split_at(at + 1),
            b'}' | b']' | b',' | b' ' | b'\t' | b'\n' | b'\r' if depth == 0 => return json.split_at(at),
            b'}' | b']' => depth -= 1,
            _ => {}
        }
    }
    (json, "")
}

/// A whole number, also as people's tools write it: `32.0`, `1e3`.
fn whole(text: &str) -> Option<usize> {
    /// The largest power of two up to which every whole number is one of f64.
    const EXACT: f64 = (1u64 << 53) as f64;
    text.parse().ok().or_else(|| {
        let x = number(text)?;
        ((0.0..=EXACT).contains(&x) && x.fract() == 0.0).then_some(x as usize)
    })
}

fn number(text: &str) -> Option<f64> {
    // Rust also takes `inf` and `nan`, which JSON does not have.
    let is_number = text.starts_with(|c: char| c == '-' || c.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

fn whole_range(range: &RangeInclusive<usize>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

/// Names with commas, and `or` before the last: `` `a`, `b` or `c` ``.
fn names<'n>(known: impl Iterator<Item = &'n str>) -> String {
    let mut names: Vec<String> = known.map(|name| format!("`{name}`")).collect();
    match names.pop() {
        Some(last) if names.is_empty() => last,
        Some(last) => format!("{} or {last}", names.join(", ")),
        None => String::new(),
    }
}

/// The beginning of a long value, on one line.
fn cut(text: &str) -> String {
    const MOST: usize = 60;
    let mut words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = words.char_indices().nth(MOST) {
        words.truncate(end);
        words.push('…');
    }
    words
}
