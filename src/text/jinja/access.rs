//! What is in a value: its methods, attributes and items.

use super::budget::Budget;
use super::compare;
use super::syntax::Name;
use super::value::{Loop, Object, SeqKind, Value};
use super::{Result, undefined};

const STR: [&str; 46] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const LIST: [&str; 3] = ["copy", "count", "index"];
pub const LIST_CHANGES: [&str; 8] =
    ["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];
const DICT: [&str; 5] = ["copy", "get", "items", "keys", "values"];
pub const DICT_CHANGES: [&str; 5] = ["clear", "pop", "popitem", "setdefault", "update"];

/// Whether a value has a method.
pub fn has(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => STR.contains(&name),
        Value::Seq(seq) => match seq.kind {
            SeqKind::List => LIST.contains(&name) || LIST_CHANGES.contains(&name),
            SeqKind::Tuple | SeqKind::Group => LIST[1..].contains(&name),
            SeqKind::View(_) | SeqKind::Generator => false,
        },
        Value::Dict(_) => DICT.contains(&name) || DICT_CHANGES.contains(&name),
        Value::Object(object) => has_method(object, name),
        _ => false,
    }
}

/// Whether an object has such a method.
fn has_method(object: &Object, name: &str) -> bool {
    match object {
        Object::Loop(_) => matches!(name, "cycle" | "changed"),
        Object::Cycler { .. } => matches!(name, "next" | "reset"),
        _ => false,
    }
}

/// `value.name`: a method, else an item, else undefined.
pub fn attr(budget: &Budget, value: &Value, name: &Name) -> Result<Value> {
    if has(value, name) {
        return budget.object(Object::Method(value.clone(), name.clone()));
    }
    let found = match value {
        Value::Undefined(what) => return Err(undefined(what.as_deref())),
        Value::Dict(dict) => {
            budget.step(dict.entries.len() / 8)?;
            dict.get(name).cloned()
        }
        Value::Seq(seq) if seq.kind == SeqKind::Group => {
            let i = ["grouper", "list"].iter().position(|known| **known == **name);
            i.map(|i| seq.items[i].clone())
        }
        Value::Object(object) => match &**object {
            Object::Namespace(variables) => variables.borrow().get(name).cloned(),
            Object::Loop(state) => loop_attr(state, name),
            Object::Cycler { items, at } if **name == *"current" => items.get(at.get()).cloned(),
            Object::Macro(object) if **name == *"name" => Some(Value::Str(object.code.name.clone())),
            _ => None,
        },
        _ => None,
    };
    Ok(found.unwrap_or_else(|| Value::Undefined(Some(name.clone()))))
}

/// `value[index]`: an item, else a method, else undefined.
pub fn item(budget: &Budget, value: &Value, index: &Value) -> Result<Value> {
    let found = match (value, index) {
        (Value::Undefined(what), _) => return Err(undefined(what.as_deref())),
        (Value::Dict(dict), _) => {
            compare::find(budget, &dict.entries, index)?.map(|i| dict.entries[i].1.clone())
        }
        (Value::Seq(seq), _) if seq.is_indexed() => {
            let i = index.as_int().and_then(|i| index_of(i, seq.items.len()));
            i.map(|i| seq.items[i].clone())
        }
        (Value::Str(text), _) => match index.as_int() {
            Some(i) => {
                budget.scan(text.len())?;
                let n = if text.is_ascii() { text.len() } else { text.chars().count() };
                let c = index_of(i, n).and_then(|i| text.chars().nth(i));
                c.map(|c| Value::str(&*c.encode_utf8(&mut [0; 4])))
            }
            None => None,
        },
        (Value::Object(_), Value::Str(name)) => return attr(budget, value, name),
        _ => None,
    };
    match (found, index) {
        (Some(found), _) => Ok(found),
        (None, Value::Str(name)) if has(value, name) => attr(budget, value, name),
        (None, Value::Str(name)) => Ok(Value::Undefined(Some(name.clone()))),
        (None, _) => Ok(Value::Undefined(None)),
    }
}

/// The place of a Python index, which counts from the end if it is negative.
fn index_of(i: i128, n: usize) -> Option<usize> {
    let i = if i < 0 { i.checked_add(n as i128)? } else { i };
    usize::try_from(i).ok().filter(|i| *i < n)
}

fn loop_attr(state: &Loop, name: &str) -> Option<Value> {
    let (at, n) = (state.at.get(), state.items.items.len());
    Some(match name {
        "index" => Value::from(at + 1),
        "index0" => Value::from(at),
        "revindex" => Value::from(n - at),
        "revindex0" => Value::from(n - at - 1),
        "first" => Value::Bool(at == 0),
        "last" => Value::Bool(at + 1 == n),
        "length" => Value::from(n),
        "depth" => Value::from(state.level),
        "depth0" => Value::from(state.level - 1),
        "previtem" => match at.checked_sub(1) {
            Some(previous) => state.items.items[previous].clone(),
            None => Value::Undefined(None),
        },
        "nextitem" => state.items.items.get(at + 1).cloned().unwrap_or(Value::Undefined(None)),
        _ => return None,
    })
}
