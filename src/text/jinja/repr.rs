//! Values as text: Python's `str` and `repr`.

use super::Result;
use super::budget::Budget;
use super::value::{Object, SeqKind, Value};

/// `str(value)`; nothing for an undefined value.
pub fn to_text(budget: &Budget, value: &Value) -> Result<String> {
    let mut out = String::new();
    write_text(budget, value, &mut out)?;
    Ok(out)
}

/// Appends `str(value)`.
pub fn write_text(budget: &Budget, value: &Value, out: &mut String) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) => budget.push(out, text),
        _ => write_repr(budget, value, out),
    }
}

/// Appends `repr(value)`.
pub fn write_repr(budget: &Budget, value: &Value, out: &mut String) -> Result<()> {
    budget.step(1)?;
    match value {
        Value::Undefined(_) => budget.push(out, "Undefined"),
        Value::None => budget.push(out, "None"),
        Value::Bool(true) => budget.push(out, "True"),
        Value::Bool(false) => budget.push(out, "False"),
        Value::Int(value) => budget.push(out, &value.to_string()),
        Value::Float(value) => budget.push(out, &float(*value)),
        Value::Str(text) => quote(budget, text, out),
        Value::Seq(seq) => {
            let (open, close) = match seq.kind {
                SeqKind::List => ("[", "]"),
                SeqKind::Tuple if seq.items.len() == 1 => ("(", ",)"),
                SeqKind::Tuple | SeqKind::Group => ("(", ")"),
                SeqKind::View(name) => {
                    budget.push(out, name)?;
                    ("([", "])")
                }
                SeqKind::Generator => return budget.push(out, "<generator object>"),
            };
            budget.push(out, open)?;
            for (i, item) in seq.items.iter().enumerate() {
                if i > 0 {
                    budget.push(out, ", ")?;
                }
                write_repr(budget, item, out)?;
            }
            budget.push(out, close)
        }
        Value::Dict(dict) => {
            budget.push(out, "{")?;
            for (i, (key, value)) in dict.entries.iter().enumerate() {
                if i > 0 {
                    budget.push(out, ", ")?;
                }
                write_repr(budget, key, out)?;
                budget.push(out, ": ")?;
                write_repr(budget, value, out)?;
            }
            budget.push(out, "}")
        }
        Value::Object(object) => match &**object {
            Object::Macro(object) => budget.push(out, &format!("<Macro '{}'>", object.code.name)),
            _ => budget.push(out, &format!("<{}>", value.type_name())),
        },
    }
}

fn quote(budget: &Budget, text: &str, out: &mut String) -> Result<()> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut quoted = String::new();
    quoted.push(quote);
    for c in text.chars() {
        match c {
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c == quote => quoted.extend(['\\', c]),
            c if !is_printable(c) => match u32::from(c) {
                code @ ..0x100 => quoted.push_str(&format!("\\x{code:02x}")),
                code @ ..0x10000 => quoted.push_str(&format!("\\u{code:04x}")),
                code => quoted.push_str(&format!("\\U{code:08x}")),
            },
            c => quoted.push(c),
        }
        if quoted.len() > 4096 {
            budget.push(out, &quoted)?;
            quoted.clear();
        }
    }
    quoted.push(quote);
    budget.push(out, &quoted)
}

/// Nearly `str.isprintable`: neither control characters nor separators other than the space.
pub fn is_printable(c: char) -> bool {
    let hidden = c.is_control()
        || matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}')
        || matches!(c, '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0001}'..='\u{e007f}');
    c == ' ' || !(hidden || c.is_whitespace())
}

/// `repr` of a float: the shortest digits that give it back.
pub fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_string();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{value}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// A name in a message: the first characters, without control characters.
pub fn brief(text: &str) -> String {
    let mut brief: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        brief.push_str("...");
    }
    brief
}
