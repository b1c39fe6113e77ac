//! Values as text: Python's `str` and `repr`.

use super::Result;
use super::value::{Object, SeqKind, Value};
use super::vm::Vm;

/// `str(value)`; nothing for an undefined value.
pub fn to_text(vm: &Vm, value: &Value) -> Result<String> {
    let mut out = String::new();
    write_text(vm, value, &mut out)?;
    Ok(out)
}

/// Appends `str(value)`.
pub fn write_text(vm: &Vm, value: &Value, out: &mut String) -> Result<()> {
    match value {
        Value::Undefined(_) => Ok(()),
        Value::Str(text) => vm.push(out, text),
        _ => write_repr(vm, value, out),
    }
}

/// Appends `repr(value)`.
pub fn write_repr(vm: &Vm, value: &Value, out: &mut String) -> Result<()> {
    vm.step(1)?;
    match value {
        Value::Undefined(_) => vm.push(out, "Undefined"),
        Value::None => vm.push(out, "None"),
        Value::Bool(true) => vm.push(out, "True"),
        Value::Bool(false) => vm.push(out, "False"),
        Value::Int(value) => vm.push(out, &value.to_string()),
        Value::Float(value) => vm.push(out, &float(*value)),
        Value::Str(text) => quote(vm, text, out),
        Value::Seq(seq) => {
            let (open, close) = match seq.kind {
                SeqKind::List => ("[", "]"),
                SeqKind::Tuple if seq.items.len() == 1 => ("(", ",)"),
                SeqKind::Tuple | SeqKind::Group => ("(", ")"),
                SeqKind::View(name) => {
                    vm.push(out, name)?;
                    ("([", "])")
                }
                SeqKind::Generator => return vm.push(out, "<generator object>"),
            };
            vm.push(out, open)?;
            for (i, item) in seq.items.iter().enumerate() {
                if i > 0 {
                    vm.push(out, ", ")?;
                }
                write_repr(vm, item, out)?;
            }
            vm.push(out, close)
        }
        Value::Dict(dict) => {
            vm.push(out, "{")?;
            for (i, (key, value)) in dict.entries.iter().enumerate() {
                if i > 0 {
                    vm.push(out, ", ")?;
                }
                write_repr(vm, key, out)?;
                vm.push(out, ": ")?;
                write_repr(vm, value, out)?;
            }
            vm.push(out, "}")
        }
        Value::Object(object) => match &**object {
            Object::Macro(object) => vm.push(out, &format!("<Macro '{}'>", object.code.name)),
            _ => vm.push(out, &format!("<{}>", value.type_name())),
        },
    }
}

fn quote(vm: &Vm, text: &str, out: &mut String) -> Result<()> {
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
            vm.push(out, &quoted)?;
            quoted.clear();
        }
    }
    quoted.push(quote);
    vm.push(out, &quoted)
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
