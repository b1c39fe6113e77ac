//! Functions that every template can call, and the arguments of calls.

use std::cell::Cell;
use std::collections::HashMap;

use super::repr::{brief, to_text, write_repr};
use super::syntax::Name;
use super::value::{Object, Value};
use super::vm::Vm;
use super::{Error, ErrorKind, Result, limits, ops};

/// The longest format of `strftime_now`.
const FORMAT_BYTES: usize = 1000;

#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Builtin {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    RaiseException,
    StrftimeNow,
    /// `self`: the template, whose blocks are its attributes. Here it has none.
    Template,
}

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

/// The arguments of a call.
#[derive(Default)]
pub struct Args {
    pub positional: Vec<Value>,
    pub named: Vec<(Name, Value)>,
}

impl Args {
    /// The arguments of a function with parameters of these names.
    pub fn take<const N: usize>(self, function: &str, names: [&str; N]) -> Result<[Option<Value>; N]> {
        if self.positional.len() > N {
            return Err(Error::new(format!("`{}` takes at most {N} arguments", brief(function))));
        }
        let mut taken = [const { None }; N];
        for (place, value) in taken.iter_mut().zip(self.positional) {
            *place = Some(value);
        }
        for (name, value) in self.named {
            let place = names.iter().position(|known| **known == *name).filter(|i| taken[*i].is_none());
            let place = place.ok_or_else(|| {
                Error::new(format!("`{}` takes no argument `{}`", brief(function), brief(&name)))
            })?;
            taken[place] = Some(value);
        }
        Ok(taken)
    }
}

/// An argument that must be an integer.
pub fn int(value: &Value) -> Result<i128> {
    value.as_int().ok_or_else(|| wrong_type("an integer", value))
}

/// An argument that must be a text.
pub fn text(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| wrong_type("a string", value))
}

pub fn required(value: Option<Value>, function: &str, name: &str) -> Result<Value> {
    value.ok_or_else(|| Error::new(format!("`{}` needs the argument `{name}`", brief(function))))
}

fn wrong_type(expected: &str, found: &Value) -> Error {
    match found {
        Value::Undefined(name) => super::vm::undefined(name.as_deref()),
        found => Error::new(format!("expected {expected}, found a {}", found.type_name())),
    }
}

pub fn call(vm: &Vm, builtin: Builtin, args: Args) -> Result<Value> {
    match builtin {
        Builtin::Range => range(vm, args),
        Builtin::Dict => {
            let mut entries = match args.positional.first() {
                Some(Value::Dict(dict)) => dict.entries.clone(),
                Some(pairs) => {
                    let pairs = ops::sequence(vm, pairs)?;
                    let pair = |pair: &Value| match ops::sequence(vm, pair)?.read() {
                        [key, value] => Ok((key.clone(), value.clone())),
                        other => Err(Error::new(format!("`dict` needs pairs, found {} items", other.len()))),
                    };
                    pairs.read().iter().map(pair).collect::<Result<_>>()?
                }
                None => Vec::new(),
            };
            entries.extend(args.named.into_iter().map(|(name, value)| (Value::Str(name), value)));
            vm.dict(entries)
        }
        Builtin::Namespace => {
            let mut variables = HashMap::new();
            if let Some(first) = args.positional.first() {
                let Value::Dict(dict) = first else { return Err(wrong_type("a dict", first)) };
                for (key, value) in &dict.entries {
                    vm.step(1)?;
                    if let Value::Str(name) = key {
                        variables.insert(name.clone(), value.clone());
                    }
                }
            }
            variables.extend(args.named);
            vm.namespace(variables)
        }
        Builtin::Cycler => {
            if args.positional.is_empty() {
                return Err(Error::new("`cycler` needs at least one item"));
            }
            vm.step(args.positional.len())?;
            vm.object(Object::Cycler { items: args.positional, at: Cell::new(0) })
        }
        Builtin::Joiner => {
            let [separator] = args.take("joiner", ["sep"])?;
            let separator = separator.unwrap_or_else(|| Value::str(", "));
            vm.object(Object::Joiner { separator, used: Cell::new(false) })
        }
        Builtin::RaiseException => {
            let [message] = args.take("raise_exception", ["message"])?;
            let message = to_text(vm, &message.unwrap_or(Value::None))?;
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
            vm.text(&now.map_err(|e| Error::new(e.to_string()))?)
        }
        Builtin::Template => Err(Error::new("`self` cannot be called")),
    }
}

fn range(vm: &Vm, args: Args) -> Result<Value> {
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
    vm.reserve(32 * n as usize)?;
    vm.list((0..n as i128).map(|i| Value::Int(start + i * step)).collect())
}

/// The methods of `loop` and of cyclers.
pub fn call_object_method(vm: &Vm, object: &Object, name: &str, args: Args) -> Result<Value> {
    match (object, name) {
        (Object::Loop(state), "cycle") => {
            let at = state.at.get().checked_rem(args.positional.len());
            let at = at.ok_or_else(|| Error::new("`loop.cycle` needs at least one item"))?;
            Ok(args.positional[at].clone())
        }
        (Object::Loop(state), "changed") => {
            let mut seen = String::new();
            for value in &args.positional {
                write_repr(vm, value, &mut seen)?;
                vm.push(&mut seen, ",")?;
            }
            let last = state.changed.replace(Some(seen.clone()));
            Ok(Value::Bool(last != Some(seen)))
        }
        (Object::Cycler { items, at }, "next") => {
            let value = items[at.get()].clone();
            at.set((at.get() + 1) % items.len());
            Ok(value)
        }
        (Object::Cycler { at, .. }, "reset") => {
            at.set(0);
            Ok(Value::None)
        }
        _ => Err(Error::new(format!("no method `{}`", brief(name)))),
    }
}

/// Whether objects have such a method.
pub fn has_method(object: &Object, name: &str) -> bool {
    match object {
        Object::Loop(_) => matches!(name, "cycle" | "changed"),
        Object::Cycler { .. } => matches!(name, "next" | "reset"),
        _ => false,
    }
}
