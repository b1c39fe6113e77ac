//! The GGUF format: metadata, the tensors' descriptions, the tensors' bytes.
//!
//! Nothing that a file says is believed: each count and length is held against the rest of the file and against what
//! published models have, before anything is allocated for it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::ggml::{GgmlType, TYPES};
use super::{Entry, Order, WeightsError};

const MAGIC: &[u8; 4] = b"GGUF";
/// Most bytes of metadata and descriptions. Those of a vocabulary of 256 thousand tokens take 15 MB.
const MOST_HEADER: usize = 256 << 20;
/// Bytes of the header that are read at once.
const PIECE: usize = 1 << 20;
/// Most tensors of a file.
const MOST_TENSORS: u64 = 1 << 18;
/// Most keys of a file. Published models have some dozens.
const MOST_KEYS: u64 = 1 << 14;
/// Most elements of all lists together. A vocabulary has three lists, and at most some hundred thousand tokens.
const MOST_ELEMENTS: u64 = 1 << 23;
/// Longest key, and longest name of a tensor, in bytes: what the format allows.
const MOST_NAME: u64 = (1 << 16) - 1;
/// Lists in lists. No known key has any.
const MOST_DEPTH: usize = 4;
/// Most dimensions of a tensor (`GGML_MAX_DIMS`).
const MOST_DIMS: u32 = 4;
/// Alignment of the tensors in bytes, unless `general.alignment` has another.
const ALIGNMENT: u64 = 32;
/// Largest alignment.
const MOST_ALIGNMENT: u64 = 1 << 20;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A whole number that is not negative.
    Whole(u64),
    /// A negative number.
    Negative(i64),
    /// A floating-point number.
    Real(f64),
    /// A switch.
    Flag(bool),
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Numbers, or switches as 0 and 1.
    Numbers(Vec<f64>),
    /// Lists of lists, which no key that is read here has.
    Nested,
}

/// What the file says about its model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The file, the first one of several.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All values by their keys.
    pub fn values(&self) -> &BTreeMap<String, Value> {
        &self.values
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// A whole number.
    ///
    /// # Errors
    /// [`WeightsError::Format`] with another value, as for the other types.
    pub fn whole(&self, key: &str) -> Result<Option<u64>, WeightsError> {
        self.get(key, "a whole number", |value| match value {
            Value::Whole(n) => Some(*n),
            _ => None,
        })
    }

    /// A number.
    ///
    /// # Errors
    /// As [`Metadata::whole`].
    pub fn real(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        self.get(key, "a number", |value| match value {
            Value::Whole(n) => Some(*n as f64),
            Value::Negative(n) => Some(*n as f64),
            Value::Real(x) => Some(*x).filter(|x| x.is_finite()),
            _ => None,
        })
    }

    /// A switch.
    ///
    /// # Errors
    /// As [`Metadata::whole`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>, WeightsError> {
        self.get(key, "a switch", |value| match value {
            Value::Flag(is_on) => Some(*is_on),
            _ => None,
        })
    }

    /// A text.
    ///
    /// # Errors
    /// As [`Metadata::whole`].
    pub fn text(&self, key: &str) -> Result<Option<&str>, WeightsError> {
        self.get(key, "a text", |value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A list of texts.
    ///
    /// # Errors
    /// As [`Metadata::whole`].
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, WeightsError> {
        self.get(key, "a list of texts", |value| match value {
            Value::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// A list of numbers.
    ///
    /// # Errors
    /// As [`Metadata::whole`].
    pub fn numbers(&self, key: &str) -> Result<Option<&[f64]>, WeightsError> {
        self.get(key, "a list of numbers", |value| match value {
            Value::Numbers(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, WeightsError> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(self.wrong(key, expected)),
        }
    }

    /// The error that a key is absent or has another value than `expected`.
    pub(crate) fn wrong(&self, key: &str, expected: impl std::fmt::Display) -> WeightsError {
        let message = match self.values.get(key) {
            Some(value) => format!("`{key}` is {value}, expected {expected}"),
            None => format!("`{key}` is missing, expected {expected}"),
        };
        WeightsError::Format { path: self.path.clone(), message }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Whole(n) => write!(f, "`{n}`"),
            Value::Negative(n) => write!(f, "`{n}`"),
            Value::Real(x) => write!(f, "`{x}`"),
            Value::Flag(is_on) => write!(f, "`{is_on}`"),
            Value::Text(text) => write!(f, "`{}`", cut(text)),
            Value::Texts(texts) => write!(f, "a list of {} texts", texts.len()),
            Value::Numbers(numbers) => write!(f, "a list of {} numbers", numbers.len()),
            Value::Nested => write!(f, "a list of lists"),
        }
    }
}

/// The metadata and the tensors of file number `file`, of `n_bytes`. `read` returns a range of its bytes.
pub(super) fn open<'a>(
    path: &Path,
    read: impl Fn(Range<usize>) -> Result<Cow<'a, [u8]>, WeightsError>,
    n_bytes: usize,
    file: usize,
) -> Result<(Metadata, Vec<Entry>), WeightsError> {
    let mut header = Header { path, read, n_bytes, at: 0, buffer: Vec::new(), used: 0, n_elements: 0 };
    header.version()?;
    let n_tensors = header.count("tensors", MOST_TENSORS, 24)?;
    let n_keys = header.count("keys", MOST_KEYS, 13)?;
    let values = header.values(n_keys)?;
    let metadata = Metadata { path: path.to_path_buf(), values };
    let alignment = metadata.whole("general.alignment")?.unwrap_or(ALIGNMENT);
    if alignment == 0 || alignment % 8 != 0 || alignment > MOST_ALIGNMENT {
        let expected = format!("a multiple of 8 up to {MOST_ALIGNMENT}");
        return Err(metadata.wrong("general.alignment", expected));
    }
    let described = (0..n_tensors).map(|_| header.tensor(alignment)).collect::<Result<Vec<_>, _>>()?;
    let data = (header.at as u64).next_multiple_of(alignment);
    let mut entries = Vec::with_capacity(described.len());
    for Described { name, kind, shape, offset, tensor_bytes } in described {
        let end = data.checked_add(offset).and_then(|start| start.checked_add(tensor_bytes));
        match end.filter(|end| *end <= n_bytes as u64) {
            Some(end) => entries.push(Entry {
                stored_name: name.clone(),
                name,
                dtype: kind.name.to_string(),
                shape,
                n_bytes: tensor_bytes as usize,
                order: Order::Plain,
                file,
                start: (end - tensor_bytes) as usize,
            }),
            None => {
                let end = end.map_or("2^64".into(), |end| end.to_string());
                return Err(
                    header.wrong(format!("tensor `{name}` ends at byte {end}, beyond the file's end"))
                );
            }
        }
    }
    let mut by_place: Vec<&Entry> = entries.iter().collect();
    by_place.sort_by_key(|entry| entry.start);
    if let Some(pair) = by_place.windows(2).find(|pair| pair[0].start + pair[0].n_bytes > pair[1].start) {
        return Err(header.wrong(format!("tensors `{}` and `{}` overlap", pair[0].name, pair[1].name)));
    }
    Ok((metadata, entries))
}

/// Checks that `parts`, each with its metadata, are all of one model, in their order.
pub(super) fn check_parts(parts: &[Metadata], n_tensors: usize) -> Result<(), WeightsError> {
    for (i, part) in parts.iter().enumerate() {
        let n = parts.len() as u64;
        if part.whole("split.count")?.unwrap_or(1).max(1) != n {
            return Err(part.wrong("split.count", format!("{n}, the number of files")));
        }
        if part.whole("split.no")?.unwrap_or(0) != i as u64 {
            return Err(part.wrong("split.no", format!("{i} in this place")));
        }
    }
    let Some(first) = parts.first() else { return Ok(()) };
    match first.whole("split.tensors.count")? {
        Some(n) if n != n_tensors as u64 => {
            Err(first
                .wrong("split.tensors.count", format!("{n_tensors}, the number of tensors in the files")))
        }
        _ => Ok(()),
    }
}

/// A tensor as the header describes it.
struct Described {
    name: String,
    kind: &'static GgmlType,
    /// Outermost dimension first; the file has the innermost first.
    shape: Vec<usize>,
    /// From the start of all tensors' bytes.
    offset: u64,
    tensor_bytes: u64,
}

/// A reader of the header, which takes it in pieces from the file.
struct Header<'p, R> {
    path: &'p Path,
    read: R,
    /// Bytes of the file.
    n_bytes: usize,
    /// Bytes that were taken.
    at: usize,
    /// Bytes of the file, of which the first `used` were taken.
    buffer: Vec<u8>,
    used: usize,
    /// Elements of lists so far.
    n_elements: u64,
}

impl<'a, R: Fn(Range<usize>) -> Result<Cow<'a, [u8]>, WeightsError>> Header<'_, R> {
    fn wrong(&self, message: impl std::fmt::Display) -> WeightsError {
        let message = format!("{message} (the file has {} bytes)", self.n_bytes);
        WeightsError::Format { path: self.path.to_path_buf(), message }
    }

    /// Bytes that the header may still have.
    fn left(&self) -> u64 {
        (self.n_bytes.min(MOST_HEADER) - self.at) as u64
    }

    /// The next `n` bytes.
    fn take(&mut self, n: u64, what: &str) -> Result<&[u8], WeightsError> {
        if n > self.left() {
            let whole = if self.n_bytes > MOST_HEADER { "what a header may have" } else { "the file" };
            return Err(
                self.wrong(format!("{what} at byte {} takes {n} bytes, more than {whole} has", self.at))
            );
        }
        let n = n as usize;
        if n > self.buffer.len() - self.used {
            self.buffer.drain(..self.used);
            self.used = 0;
            let from = self.at + self.buffer.len();
            let missing = n - self.buffer.len();
            let to = (from + missing.max(PIECE)).min(self.n_bytes);
            self.buffer.extend_from_slice(&(self.read)(from..to)?);
        }
        let first = self.used;
        (self.used, self.at) = (first + n, self.at + n);
        Ok(&self.buffer[first..self.used])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], WeightsError> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("as many as were asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32, WeightsError> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: &str) -> Result<u64, WeightsError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// The magic and the version.
    fn version(&mut self) -> Result<(), WeightsError> {
        if self.n_bytes < 4 {
            return Err(self.wrong("no header, expected `GGUF`"));
        }
        let magic: [u8; 4] = self.array("the header")?;
        if magic != *MAGIC {
            let message = match &magic {
                b"lmgg" | b"fmgg" | b"tjgg" | b"algg" => {
                    "it is in ggml's format from before GGUF, expected `GGUF`".to_string()
                }
                _ => format!("it begins with `{}`, expected `GGUF`", magic.escape_ascii()),
            };
            return Err(self.wrong(message));
        }
        let version = self.u32("the version")?;
        match version {
            2 | 3 => Ok(()),
            1 => Err(self.wrong("it is GGUF version 1, expected version 2 or 3: convert it again")),
            _ if (1..=3).contains(&version.swap_bytes()) => {
                Err(self.wrong("it is a GGUF file for big-endian machines, expected a little-endian one"))
            }
            _ => Err(self.wrong(format!("it is GGUF version {version}, expected version 2 or 3"))),
        }
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, most: u64, least: u64) -> Result<u64, WeightsError> {
        let n = self.u64(what)?;
        let most = most.min(self.left() / least);
        match n > most {
            true => Err(self.wrong(format!("{n} {what}, expected at most {most}"))),
            false => Ok(n),
        }
    }

    fn text(&mut self, what: &str, most: u64) -> Result<String, WeightsError> {
        let n = self.u64(what)?;
        if n > most {
            return Err(self.wrong(format!("{what} has {n} bytes, expected at most {most}")));
        }
        match std::str::from_utf8(self.take(n, what)?) {
            Ok(text) => Ok(text.to_string()),
            Err(_) => Err(self.wrong(format!("{what} before byte {} is not UTF-8", self.at))),
        }
    }

    fn values(&mut self, n: u64) -> Result<BTreeMap<String, Value>, WeightsError> {
        let mut values = BTreeMap::new();
        for i in 0..n {
            let key = self.text(&format!("key {i}"), MOST_NAME)?;
            let kind = self.u32(&key)?;
            let value = match kind {
                9 => self.list(&key, 1)?,
                _ => self.value(&key, kind)?,
            };
            if values.contains_key(&key) {
                return Err(self.wrong(format!("key `{}` is there twice", cut(&key))));
            }
            values.insert(key, value);
        }
        Ok(values)
    }

    /// A value that is no list.
    fn value(&mut self, key: &str, kind: u32) -> Result<Value, WeightsError> {
        let whole = |n: u64| Ok(Value::Whole(n));
        let signed = |n: i64| Ok(u64::try_from(n).map_or(Value::Negative(n), Value::Whole));
        match kind {
            0 => whole(u8::from_le_bytes(self.array(key)?).into()),
            1 => signed(i8::from_le_bytes(self.array(key)?).into()),
            2 => whole(u16::from_le_bytes(self.array(key)?).into()),
            3 => signed(i16::from_le_bytes(self.array(key)?).into()),
            4 => whole(u32::from_le_bytes(self.array(key)?).into()),
            5 => signed(i32::from_le_bytes(self.array(key)?).into()),
            6 => Ok(Value::Real(f32::from_le_bytes(self.array(key)?).into())),
            7 => match self.array(key)? {
                [byte @ 0..=1] => Ok(Value::Flag(byte == 1)),
                [byte] => Err(self.wrong(format!("`{}` is the switch {byte}, expected 0 or 1", cut(key)))),
            },
            8 => Ok(Value::Text(self.text(&format!("`{}`", cut(key)), MOST_HEADER as u64)?)),
            10 => whole(u64::from_le_bytes(self.array(key)?)),
            11 => signed(i64::from_le_bytes(self.array(key)?)),
            12 => Ok(Value::Real(f64::from_le_bytes(self.array(key)?))),
            _ => Err(self.wrong(format!("`{}` has type {kind}, expected one from 0 to 12", cut(key)))),
        }
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Value, WeightsError> {
        if depth > MOST_DEPTH {
            return Err(self.wrong(format!("`{}` has lists in lists, deeper than {MOST_DEPTH}", cut(key))));
        }
        let kind = self.u32(key)?;
        let least = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            9 => 12,
            _ => {
                let message = format!("`{}` is a list of type {kind}, expected one from 0 to 12", cut(key));
                return Err(self.wrong(message));
            }
        };
        let n = self.count(&format!("elements of `{}`", cut(key)), MOST_ELEMENTS - self.n_elements, least)?;
        self.n_elements += n;
        match kind {
            8 => {
                let what = format!("an element of `{}`", cut(key));
                let texts = (0..n).map(|_| self.text(&what, MOST_HEADER as u64));
                Ok(Value::Texts(texts.collect::<Result<_, _>>()?))
            }
            9 => (0..n).try_for_each(|_| self.list(key, depth + 1).map(drop)).map(|()| Value::Nested),
            _ => {
                let number = |value| match value {
                    Value::Whole(n) => n as f64,
                    Value::Negative(n) => n as f64,
                    Value::Real(x) => x,
                    Value::Flag(is_on) => f64::from(u8::from(is_on)),
                    _ => unreachable!("the type is that of a number"),
                };
                let numbers = (0..n).map(|_| self.value(key, kind).map(number));
                Ok(Value::Numbers(numbers.collect::<Result<_, _>>()?))
            }
        }
    }

    fn tensor(&mut self, alignment: u64) -> Result<Described, WeightsError> {
        let name = self.text("the name of a tensor", MOST_NAME)?;
        let shown = cut(&name);
        let n_dims = self.u32("a tensor's dimensions")?;
        if n_dims == 0 || n_dims > MOST_DIMS {
            let message = format!("tensor `{shown}` has {n_dims} dimensions, expected 1 to {MOST_DIMS}");
            return Err(self.wrong(message));
        }
        let dims = (0..n_dims).map(|_| self.u64("a tensor's dimensions")).collect::<Result<Vec<_>, _>>()?;
        let number = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        let kind = GgmlType::from_number(number).ok_or_else(|| {
            let known: Vec<&str> = TYPES.iter().map(|kind| kind.name).collect();
            self.wrong(format!(
                "tensor `{shown}` has ggml's type number {number}, expected one of {}",
                known.join(", ")
            ))
        })?;
        if dims[0] % kind.block as u64 != 0 {
            return Err(self.wrong(format!(
                "tensor `{shown}` has rows of {} elements in {}, expected a multiple of {}",
                dims[0], kind.name, kind.block
            )));
        }
        let n_elements = dims.iter().try_fold(1u64, |n, dim| n.checked_mul(*dim)).filter(|n| *n > 0);
        let tensor_bytes =
            n_elements.and_then(|n| (n / kind.block as u64).checked_mul(kind.block_bytes as u64));
        let Some(tensor_bytes) = tensor_bytes.filter(|n| *n <= self.n_bytes as u64) else {
            return Err(
                self.wrong(format!("tensor `{shown}` has the dimensions {dims:?}, which no file holds"))
            );
        };
        if offset % alignment != 0 {
            let message = format!("tensor `{shown}` is at {offset}, expected a multiple of {alignment}");
            return Err(self.wrong(message));
        }
        let shape = dims.iter().rev().map(|dim| *dim as usize).collect();
        Ok(Described { name, kind, shape, offset, tensor_bytes })
    }
}

/// A text for a message: long ones are cut.
fn cut(text: &str) -> &str {
    text.char_indices().nth(64).map_or(text, |(end, _)| &text[..end])
}
