//! Functions that every template can call.

use std::cell::Cell;
use std::collections::HashMap;

use super::args::{Args, int, required, text, wrong_type};
use super::budget::Budget;
use super::repr::to_text;
use super::value::{Builtin, Object, Value};
use super::{Error, ErrorKind, Result, compare, limits, ops};

/// The longest format of `strftime_now`.
const FORMAT_BYTES: usize = 1000;

pub fn find(name: &str) -> Option<Builtin> {
    Some(match name {
        "range" => Builtin::Range,
        "dict" => Builtin::Dict,
        "namespace" => Builtin::Namespace,
        "cycler" => Builtin::Cycler,
        "joiner" => Builtin::Joiner,
        "raise_exception" => Builtin::RaiseException,
        "strftime_now" => Builtin::StrftimeNow,
        "self" => Builtin::Template,
        _ => return None,
    })
}

pub fn call(budget: &Budget, builtin: Builtin, args: Args) -> Result<Value> {
    match builtin {
        Builtin::Range => range(budget, args),
        Builtin::Dict => {
            let mut entries = match args.positional.first() {
                Some(Value::Dict(dict)) => dict.entries.clone(),
                Some(pairs) => {
                    let pairs = ops::sequence(budget, pairs)?;
                    let pair = |pair: &Value| match ops::sequence(budget, pair)?.read() {
                        [key, value] => Ok((key.clone(), value.clone())),
                        other => Err(Error::new(format!("`dict` needs pairs, found {} items", other.len()))),
                    };
                    pairs.read().iter().map(pair).collect::<Result<_>>()?
                }
                None => Vec::new(),
            };
            entries.extend(args.named.into_iter().map(|(name, value)| (Value::Str(name), value)));
            compare::dict(budget, entries)
        }
        Builtin::Namespace => {
            let mut variables = HashMap::new();
            if let Some(first) = args.positional.first() {
                let Value::Dict(dict) = first else { return Err(wrong_type("a dict", first)) };
                for (key, value) in &dict.entries {
                    budget.step(1)?;
                    if let Value::Str(name) = key {
                        variables.insert(name.clone(), value.clone());
                    }
                }
            }
            variables.extend(args.named);
            budget.namespace(variables)
        }
        Builtin::Cycler => {
            if args.positional.is_empty() {
                return Err(Error::new("`cycler` needs at least one item"));
            }
            budget.step(args.positional.len())?;
            budget.object(Object::Cycler { items: args.positional, at: Cell::new(0) })
        }
        Builtin::Joiner => {
            let [separator] = args.take("joiner", ["sep"])?;
            let separator = separator.unwrap_or_else(|| Value::str(", "));
            budget.object(Object::Joiner { separator, used: Cell::new(false) })
        }
        Builtin::RaiseException => {
            let [message] = args.take("raise_exception", ["message"])?;
            let message = to_text(budget, &message.unwrap_or(Value::None))?;
            Err(Error { line: 0, kind: ErrorKind::Raised(super::cut(message)) })
        }
        Builtin::StrftimeNow => {
            let [format] = args.take("strftime_now", ["format"])?;
            let format = required(format, "strftime_now", "format")?;
            let format = text(&format)?;
            if format.len() > FORMAT_BYTES {
                return Err(Error::limit("bytes of a format of `strftime_now`", FORMAT_BYTES as u64));
            }
            let now = jiff::fmt::strtime::format(format, &jiff::Zoned::now());
            budget.text(&now.map_err(|e| Error::new(e.to_string()))?)
        }
        Builtin::Template => Err(Error::new("`self` cannot be called")),
    }
}

fn range(budget: &Budget, args: Args) -> Result<Value> {
    let [first, second, step] = args.take("range", ["start", "stop", "step"])?;
    let first = int(&required(first, "range", "stop")?)?;
    let (start, stop) = match &second {
        Some(second) => (first, int(second)?),
        None => (0, first),
    };
    let step = step.as_ref().map_or(Ok(1), int)?;
    let span = if step > 0 { stop.checked_sub(start) } else { start.checked_sub(stop) };
    let n = match (span, step.unsigned_abs()) {
        (_, 0) => return Err(Error::new("the step of a `range` is 0")),
        (Some(..=0), _) => 0,
        (Some(span), step) => span.unsigned_abs().div_ceil(step),
        (None, _) => u128::MAX,
    };
    if n > u128::from(limits::RANGE) {
        return Err(Error::limit("items of a `range`", limits::RANGE));
    }
    budget.reserve(32 * n as usize)?;
    budget.list((0..n as i128).map(|i| Value::Int(start + i * step)).collect())
}
