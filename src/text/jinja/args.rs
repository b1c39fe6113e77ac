//! The arguments of calls.

use super::repr::brief;
use super::syntax::Name;
use super::value::Value;
use super::{Error, Result, undefined};

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

pub fn wrong_type(expected: &str, found: &Value) -> Error {
    match found {
        Value::Undefined(name) => undefined(name.as_deref()),
        found => Error::new(format!("expected {expected}, found a {}", found.type_name())),
    }
}
