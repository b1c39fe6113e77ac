//! Equality and order, and the dicts that depend on it.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::budget::{Budget, SLOT_BYTES};
use super::value::{Dict, SeqKind, Value};
use super::{Error, Result, undefined};

/// `a == b`.
pub fn equal(budget: &Budget, a: &Value, b: &Value) -> Result<bool> {
    budget.step(1)?;
    Ok(match (a, b) {
        (Value::Undefined(_), Value::Undefined(_)) | (Value::None, Value::None) => true,
        (Value::Str(a), Value::Str(b)) => {
            budget.scan(a.len().min(b.len()))?;
            a == b
        }
        (Value::Seq(a), Value::Seq(b)) => {
            if !a.is_indexed() || !b.is_indexed() {
                return Ok(Rc::ptr_eq(a, b));
            }
            if a.kind != b.kind || a.items.len() != b.items.len() {
                return Ok(false);
            }
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(budget, a, b)? {
                    return Ok(false);
                }
            }
            true
        }
        (Value::Dict(a), Value::Dict(b)) => {
            if a.entries.len() != b.entries.len() {
                return Ok(false);
            }
            for (key, value) in &a.entries {
                match find(budget, &b.entries, key)? {
                    Some(i) if equal(budget, value, &b.entries[i].1)? => {}
                    _ => return Ok(false),
                }
            }
            true
        }
        (Value::Object(a), Value::Object(b)) => Rc::ptr_eq(a, b),
        _ => match (a.as_int(), b.as_int()) {
            (Some(a), Some(b)) => a == b,
            _ => match (a.as_float(), b.as_float()) {
                (Some(a), Some(b)) => a == b,
                _ => false,
            },
        },
    })
}

/// The order of two values; none if one is not a number.
pub fn compare(budget: &Budget, a: &Value, b: &Value) -> Result<Option<Ordering>> {
    budget.step(1)?;
    match (a, b) {
        (Value::Undefined(name), _) | (_, Value::Undefined(name)) => return Err(undefined(name.as_deref())),
        (Value::Str(a), Value::Str(b)) => {
            budget.scan(a.len().min(b.len()))?;
            return Ok(Some(a.cmp(b)));
        }
        (Value::Seq(a), Value::Seq(b)) if a.kind == b.kind && a.is_indexed() => {
            for (a, b) in a.items.iter().zip(&b.items) {
                if !equal(budget, a, b)? {
                    return compare(budget, a, b);
                }
            }
            return Ok(Some(a.items.len().cmp(&b.items.len())));
        }
        _ => {}
    }
    if let (Some(a), Some(b)) = (a.as_int(), b.as_int()) {
        return Ok(Some(a.cmp(&b)));
    }
    match (a.as_float(), b.as_float()) {
        (Some(a), Some(b)) => Ok(a.partial_cmp(&b)),
        _ => Err(Error::new(format!("a {} and a {} cannot be compared", a.type_name(), b.type_name()))),
    }
}

/// A dict. Of equal keys the last one counts, in the place of the first.
pub fn dict(budget: &Budget, entries: Vec<(Value, Value)>) -> Result<Value> {
    budget.reserve(2 * SLOT_BYTES * (entries.len() + 1))?;
    let mut distinct: Vec<(Value, Value)> = Vec::with_capacity(entries.len());
    let mut strings: HashMap<Arc<str>, usize> = HashMap::new();
    for (key, value) in entries {
        budget.step(1)?;
        let place = match &key {
            Value::Str(text) => strings.get(text).copied(),
            _ => find(budget, &distinct, check_key(&key)?)?,
        };
        match (place, &key) {
            (Some(place), _) => distinct[place].1 = value,
            (None, Value::Str(text)) => {
                strings.insert(text.clone(), distinct.len());
                distinct.push((key, value));
            }
            (None, _) => distinct.push((key, value)),
        }
    }
    budget.dict_of(Dict::new(distinct))
}

/// The index of `key`.
pub fn find(budget: &Budget, entries: &[(Value, Value)], key: &Value) -> Result<Option<usize>> {
    budget.step(entries.len() / 8)?;
    if let Value::Str(text) = key {
        return Ok(entries.iter().position(|(found, _)| matches!(found, Value::Str(s) if s == text)));
    }
    for (i, (found, _)) in entries.iter().enumerate() {
        if equal(budget, found, key)? {
            return Ok(Some(i));
        }
    }
    Ok(None)
}

/// Refuses what cannot be a key of a dict.
pub fn check_key(key: &Value) -> Result<&Value> {
    match key {
        Value::Seq(seq) if seq.kind == SeqKind::List => Err(Error::new("a list cannot be a key")),
        Value::Dict(_) => Err(Error::new("a dict cannot be a key")),
        _ => Ok(key),
    }
}
