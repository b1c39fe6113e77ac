//! JSON to values and back, in the layout of Python's `json.dumps`.

use std::rc::Rc;

use serde_json::Value as Json;

use super::args::{Args, int};
use super::budget::Budget;
use super::repr::float;
use super::value::{Dict, Value};
use super::{Error, Result, limits, undefined};

/// A value of the host, or of `fromjson`.
pub fn to_value(budget: &Budget, json: &Json) -> Result<Value> {
    convert(budget, json, 0)
}

fn convert(budget: &Budget, json: &Json, depth: u64) -> Result<Value> {
    if depth > limits::VALUE_DEPTH {
        return Err(Error::limit("levels of nested lists and dicts", limits::VALUE_DEPTH));
    }
    Ok(match json {
        Json::Null => Value::None,
        Json::Bool(value) => Value::Bool(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(value), _) => Value::Int(value.into()),
            (None, Some(value)) => Value::Int(value.into()),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => budget.text(text)?,
        Json::Array(items) => {
            let items = items.iter().map(|item| convert(budget, item, depth + 1));
            budget.list(items.collect::<Result<_>>()?)?
        }
        Json::Object(entries) => {
            budget.reserve(64 * (entries.len() + 1))?;
            let entry =
                |(key, value): (&String, &Json)| Ok((budget.text(key)?, convert(budget, value, depth + 1)?));
            let dict = Dict::new(entries.iter().map(entry).collect::<Result<_>>()?);
            Value::Dict(Rc::new(dict))
        }
    })
}

/// The filter `fromjson`.
pub fn from_json(budget: &Budget, text: &str) -> Result<Value> {
    // What the parser makes of a text can be that much larger: `[1,1,1`.
    budget.reserve(text.len().saturating_mul(64))?;
    let json =
        serde_json::from_str(text).map_err(|e| Error::new(format!("`fromjson` found no JSON: {e}")))?;
    to_value(budget, &json)
}

/// The filter `tojson` of `transformers`: `json.dumps`, with `ensure_ascii` off by default.
pub fn dump(budget: &Budget, value: &Value, args: Args) -> Result<Value> {
    let [ascii, indent, separators, sort] =
        args.take("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some((1, text)),
        Some(width) => Some((usize::try_from(int(&width)?.max(0)).unwrap_or(usize::MAX), " ".into())),
    };
    let (item, key) = match separators {
        Some(Value::Seq(seq)) => match &*seq.items {
            [Value::Str(item), Value::Str(key)] => (item.clone(), key.clone()),
            _ => return Err(Error::new("`separators` of `tojson` must be two strings")),
        },
        None | Some(Value::None) => (if indent.is_some() { "," } else { ", " }.into(), ": ".into()),
        Some(_) => return Err(Error::new("`separators` of `tojson` must be two strings")),
    };
    let is_set = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let style = Style { budget, ascii: is_set(ascii), sort: is_set(sort), indent, item: &item, key: &key };
    let mut out = String::new();
    style.write(value, 1, &mut out)?;
    Ok(Value::str(out))
}

struct Style<'a> {
    budget: &'a Budget,
    ascii: bool,
    sort: bool,
    /// How often which text is written for each level.
    indent: Option<(usize, std::sync::Arc<str>)>,
    /// Between items.
    item: &'a str,
    /// Between a key and its value.
    key: &'a str,
}

impl Style<'_> {
    fn write(&self, value: &Value, level: usize, out: &mut String) -> Result<()> {
        let budget = self.budget;
        budget.step(1)?;
        match value {
            Value::Str(text) => self.string(text, out),
            Value::Seq(seq) => {
                let n = seq.items.len();
                self.bracketed("[", "]", n, level, out, |i, out| self.write(&seq.items[i], level + 1, out))
            }
            Value::Dict(dict) => {
                let mut entries: Vec<_> = dict.entries.iter().collect();
                if self.sort {
                    budget.step(entries.len() * 4)?;
                    entries.sort_by(|(a, _), (b, _)| a.as_str().cmp(&b.as_str()));
                }
                self.bracketed("{", "}", entries.len(), level, out, |i, out| {
                    let (key, value) = entries[i];
                    match key {
                        Value::Str(text) => self.string(text, out)?,
                        _ => self.string(&scalar(key)?, out)?,
                    }
                    budget.push(out, self.key)?;
                    self.write(value, level + 1, out)
                })
            }
            other => budget.push(out, &scalar(other)?),
        }
    }

    fn bracketed(
        &self,
        open: &str,
        close: &str,
        n: usize,
        level: usize,
        out: &mut String,
        write: impl Fn(usize, &mut String) -> Result<()>,
    ) -> Result<()> {
        self.budget.push(out, open)?;
        for i in 0..n {
            if i > 0 {
                self.budget.push(out, self.item)?;
            }
            self.line_break(level, out)?;
            write(i, out)?;
        }
        if n > 0 {
            self.line_break(level - 1, out)?;
        }
        self.budget.push(out, close)
    }

    fn line_break(&self, level: usize, out: &mut String) -> Result<()> {
        let Some((n, text)) = &self.indent else { return Ok(()) };
        let n = n.saturating_mul(level);
        self.budget.reserve(text.len().saturating_mul(n).saturating_add(1))?;
        out.push('\n');
        out.push_str(&text.repeat(n));
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) -> Result<()> {
        // At most six bytes for each: `\u0001`.
        self.budget.reserve(text.len() + 2)?;
        out.push('"');
        let mut clean = 0;
        for (at, c) in text.char_indices() {
            let escape = match c {
                '"' => "\\\"",
                '\\' => "\\\\",
                '\n' => "\\n",
                '\r' => "\\r",
                '\t' => "\\t",
                '\x08' => "\\b",
                '\x0c' => "\\f",
                c if c < ' ' || (self.ascii && !c.is_ascii()) => "",
                _ => continue,
            };
            out.push_str(&text[clean..at]);
            clean = at + c.len_utf8();
            if escape.is_empty() {
                self.budget.reserve(12)?;
                for unit in c.encode_utf16(&mut [0; 2]) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            } else {
                self.budget.reserve(1)?;
                out.push_str(escape);
            }
        }
        out.push_str(&text[clean..]);
        out.push('"');
        Ok(())
    }
}

/// JSON of a value that is neither text, list nor dict.
fn scalar(value: &Value) -> Result<String> {
    Ok(match value {
        Value::None => "null".to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Float(value) if value.is_nan() => "NaN".to_string(),
        Value::Float(value) if value.is_infinite() => {
            if *value > 0.0 { "Infinity" } else { "-Infinity" }.to_string()
        }
        Value::Float(value) => float(*value),
        Value::Undefined(name) => return Err(undefined(name.as_deref())),
        other => return Err(Error::new(format!("a {} cannot be written as JSON", other.type_name()))),
    })
}
