//! Python's operators.

use std::rc::Rc;

use super::budget::Budget;
use super::format::percent;
use super::syntax::BinaryOp;
use super::value::{Seq, SeqKind, Value};
use super::{Error, Result, compare, undefined};

pub fn binary(budget: &Budget, op: BinaryOp, left: &Value, right: &Value) -> Result<Value> {
    match (op, left, right) {
        (_, Value::Undefined(name), _) | (_, _, Value::Undefined(name)) if !is_format(op, left) => {
            return Err(undefined(name.as_deref()));
        }
        (BinaryOp::Add, Value::Str(a), Value::Str(b)) => {
            budget.reserve(a.len() + b.len())?;
            return Ok(Value::str([&**a, &**b].concat()));
        }
        (BinaryOp::Add, Value::Seq(a), Value::Seq(b)) if a.kind == b.kind && a.is_indexed() => {
            budget.reserve(32 * (a.items.len() + b.items.len()))?;
            return budget.seq([&*a.items, &*b.items].concat(), a.kind);
        }
        (BinaryOp::Mod, Value::Str(format), _) => return percent(budget, format, right),
        (BinaryOp::Mul, value, count) | (BinaryOp::Mul, count, value)
            if matches!(value, Value::Str(_) | Value::Seq(_)) && count.as_int().is_some() =>
        {
            let count = usize::try_from(count.as_int().unwrap_or(0).max(0)).unwrap_or(usize::MAX);
            return repeat(budget, value, count);
        }
        _ => {}
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return integers(op, a, b);
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return floats(op, a, b);
    }
    let (a, b) = (left.type_name(), right.type_name());
    Err(Error::new(format!("`{}` does not work on a {a} and a {b}", op.sign())))
}

/// Whether the operation formats a text. Its arguments may be undefined.
fn is_format(op: BinaryOp, left: &Value) -> bool {
    op == BinaryOp::Mod && matches!(left, Value::Str(_))
}

fn repeat(budget: &Budget, value: &Value, count: usize) -> Result<Value> {
    match value {
        Value::Str(text) => {
            budget.reserve(text.len().saturating_mul(count))?;
            Ok(Value::str(text.repeat(count)))
        }
        Value::Seq(seq) if seq.is_indexed() => {
            budget.reserve(seq.items.len().saturating_mul(count).saturating_mul(32))?;
            budget.seq(seq.items.iter().cycle().take(seq.items.len() * count).cloned().collect(), seq.kind)
        }
        other => Err(Error::new(format!("a {} cannot be repeated", other.type_name()))),
    }
}

fn integers(op: BinaryOp, a: i128, b: i128) -> Result<Value> {
    let is_division = matches!(op, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod);
    if b == 0 && is_division {
        return Err(Error::new("division by zero"));
    }
    let value = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        BinaryOp::Div => return Ok(Value::Float(a as f64 / b as f64)),
        BinaryOp::FloorDiv => {
            let (quotient, rest) = (a.checked_div(b), a.checked_rem(b).unwrap_or(0));
            quotient.map(|quotient| quotient - i128::from(rest != 0 && (rest < 0) != (b < 0)))
        }
        BinaryOp::Mod => {
            let rest = a.checked_rem(b).unwrap_or(0);
            Some(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest })
        }
        BinaryOp::Pow if b < 0 => return floats(op, a as f64, b as f64),
        BinaryOp::Pow if matches!(a, 0 | 1) => Some(if b == 0 { 1 } else { a }),
        BinaryOp::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    value.map(Value::Int).ok_or_else(|| Error::limit("bits of an integer", 127))
}

fn floats(op: BinaryOp, a: f64, b: f64) -> Result<Value> {
    let is_division = matches!(op, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod);
    if b == 0.0 && is_division || op == BinaryOp::Pow && a == 0.0 && b < 0.0 {
        return Err(Error::new("division by zero"));
    }
    let rest = || match a % b {
        0.0 => 0f64.copysign(b),
        rest if (rest < 0.0) != (b < 0.0) => rest + b,
        rest => rest,
    };
    Ok(Value::Float(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::FloorDiv => match ((a - rest()) / b).round() {
            0.0 => 0f64.copysign(a / b),
            quotient => quotient,
        },
        BinaryOp::Mod => rest(),
        BinaryOp::Pow => a.powf(b),
    }))
}

pub fn negative(value: &Value) -> Result<Value> {
    match (value.as_int(), value) {
        (Some(n), _) => {
            n.checked_neg().map(Value::Int).ok_or_else(|| Error::limit("bits of an integer", 127))
        }
        (None, Value::Float(x)) => Ok(Value::Float(-x)),
        (None, Value::Undefined(name)) => Err(undefined(name.as_deref())),
        (None, other) => Err(Error::new(format!("`-` does not work on a {}", other.type_name()))),
    }
}

pub fn positive(value: &Value) -> Result<Value> {
    negative(&negative(value)?)
}

/// `item in container`.
pub fn contains(budget: &Budget, container: &Value, item: &Value) -> Result<bool> {
    match container {
        Value::Str(text) => match item {
            Value::Str(part) => {
                budget.scan(text.len())?;
                Ok(text.contains(&**part))
            }
            Value::Undefined(name) => Err(undefined(name.as_deref())),
            other => Err(Error::new(format!("`in` of a str needs a str, not a {}", other.type_name()))),
        },
        Value::Dict(dict) => Ok(compare::find(budget, &dict.entries, compare::check_key(item)?)?.is_some()),
        Value::Seq(seq) => {
            for found in seq.read() {
                if compare::equal(budget, found, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        Value::Undefined(_) => Ok(false),
        other => Err(Error::new(format!("`in` does not work on a {}", other.type_name()))),
    }
}

/// What an iteration over a value visits.
pub fn sequence(budget: &Budget, value: &Value) -> Result<Rc<Seq>> {
    let items = match value {
        Value::Seq(seq) => {
            budget.step(seq.items.len())?;
            return Ok(seq.clone());
        }
        Value::Undefined(_) => Vec::new(),
        Value::Dict(dict) => {
            budget.reserve(32 * dict.entries.len())?;
            dict.entries.iter().map(|(key, _)| key.clone()).collect()
        }
        Value::Str(text) => {
            // Each character is a text of its own.
            budget.reserve(text.len().saturating_mul(64))?;
            text.chars().map(|c| Value::str(&*c.encode_utf8(&mut [0; 4]))).collect::<Vec<_>>()
        }
        Value::Object(object) if matches!(&**object, super::value::Object::Loop(_)) => {
            return Err(Error::new("`loop` cannot be iterated over"));
        }
        other => return Err(Error::new(format!("a {} is not iterable", other.type_name()))),
    };
    budget.step(items.len())?;
    Ok(Rc::new(Seq::new(items, SeqKind::List)))
}

/// `value[start:stop:step]`.
pub fn slice(budget: &Budget, value: &Value, [start, stop, step]: [Option<i128>; 3]) -> Result<Value> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new("the step of a slice is 0"));
    }
    let places = |n: usize| {
        let n = n as i128;
        let (low, high) = if step > 0 { (0, n) } else { (-1, n - 1) };
        let clamp = |i: i128| (if i < 0 { i.saturating_add(n) } else { i }).clamp(low, high);
        let start = start.map_or(if step > 0 { low } else { high }, clamp);
        let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
        let span = if step > 0 { stop - start } else { start - stop };
        let n = if span > 0 { (span as u128).div_ceil(step.unsigned_abs()) as usize } else { 0 };
        (0..n).map(move |i| (start + i as i128 * step) as usize)
    };
    match value {
        Value::Str(text) if text.is_ascii() && step == 1 => {
            let places = places(text.len());
            let (n, from) = (places.len(), places.clone().next().unwrap_or(0));
            budget.scan(text.len())?;
            budget.text(&text[from..from + n])
        }
        Value::Str(text) => {
            budget.reserve(text.len().saturating_mul(4))?;
            let chars: Vec<char> = text.chars().collect();
            Ok(Value::str(places(chars.len()).map(|i| chars[i]).collect::<String>()))
        }
        Value::Seq(seq) if seq.is_indexed() => {
            let places = places(seq.items.len());
            budget.seq(places.map(|i| seq.items[i].clone()).collect(), seq.kind)
        }
        Value::Undefined(name) => Err(undefined(name.as_deref())),
        other => Err(Error::new(format!("a {} cannot be sliced", other.type_name()))),
    }
}
