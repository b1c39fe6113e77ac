//! What Jinja calls tests: `value is name`.

use super::args::{Args, int, required};
use super::budget::Budget;
use super::syntax::Name;
use super::value::{Object, Value};
use super::{Error, Result, compare, methods, names, ops, repr};

pub fn check(budget: &Budget, name: &Name, value: &Value, args: Args) -> Result<bool> {
    use std::cmp::Ordering::{Equal, Greater, Less};
    let order = |args: Args| {
        let other = other(args, name)?;
        compare::compare(budget, value, &other)
    };
    Ok(match &**name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        // In Python, strings and dicts have a length and items, and so has what is undefined.
        "sequence" => match value {
            Value::Str(_) | Value::Dict(_) | Value::Undefined(_) => true,
            Value::Seq(seq) => seq.is_indexed(),
            _ => false,
        },
        "iterable" => matches!(value, Value::Str(_) | Value::Dict(_) | Value::Undefined(_) | Value::Seq(_)),
        "callable" => match value {
            Value::Object(object) => !matches!(&**object, Object::Namespace(_) | Object::Cycler { .. }),
            // Undefined values have a method that fails when they are called.
            other => other.is_undefined(),
        },
        "escaped" => false,
        "lower" | "upper" => {
            let text = repr::to_text(budget, value)?;
            methods::is(&text, if **name == *"lower" { "islower" } else { "isupper" })
        }
        "odd" => int(value)?.rem_euclid(2) == 1,
        "even" => int(value)?.rem_euclid(2) == 0,
        "divisibleby" => {
            let by = int(&other(args, name)?)?;
            int(value)?.checked_rem(by).ok_or_else(|| Error::new("division by zero"))? == 0
        }
        "sameas" => {
            let other = other(args, name)?;
            match (value, &other) {
                (Value::Seq(a), Value::Seq(b)) => std::rc::Rc::ptr_eq(a, b),
                (Value::Dict(a), Value::Dict(b)) => std::rc::Rc::ptr_eq(a, b),
                (Value::Undefined(_), _) => false,
                (a, b) => a.type_name() == b.type_name() && compare::equal(budget, a, b)?,
            }
        }
        "in" => ops::contains(budget, &other(args, name)?, value)?,
        "eq" | "equalto" | "==" => compare::equal(budget, value, &other(args, name)?)?,
        "ne" | "!=" => !compare::equal(budget, value, &other(args, name)?)?,
        "lt" | "lessthan" | "<" => order(args)? == Some(Less),
        "gt" | "greaterthan" | ">" => order(args)? == Some(Greater),
        "le" | "<=" => matches!(order(args)?, Some(Less | Equal)),
        "ge" | ">=" => matches!(order(args)?, Some(Greater | Equal)),
        "filter" => value.as_str().is_some_and(names::is_filter),
        "test" => value.as_str().is_some_and(names::is_test),
        _ => return Err(Error::new(format!("there is no test `{}`", repr::brief(name)))),
    })
}

fn other(args: Args, name: &str) -> Result<Value> {
    let [other] = args.take(name, ["other"])?;
    required(other, name, "other")
}
