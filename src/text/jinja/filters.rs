//! Jinja's filters: `value | name(args)`.

use std::cmp::Ordering;

use super::args::{Args, int, required, text};
use super::budget::Budget;
use super::format::percent;
use super::repr::{self, brief, to_text};
use super::syntax::Name;
use super::value::{Object, SeqKind, Value};
use super::{Error, Result, access, compare, json, methods, ops, predicates, undefined};

pub fn apply(budget: &Budget, name: &Name, value: Value, args: Args) -> Result<Value> {
    if let Value::Str(text) = &value {
        budget.scan(text.len())?;
    }
    match &**name {
        "map" => map(budget, &value, args),
        "select" | "reject" => select(budget, &value, args, None, **name == *"select"),
        "selectattr" | "rejectattr" => {
            let mut positional = args.positional.into_iter();
            let attribute = required(positional.next(), name, "attribute")?;
            let args = Args { positional: positional.collect(), named: args.named };
            select(budget, &value, args, Some(&attribute), **name == *"selectattr")
        }
        "format" => {
            let format = to_text(budget, &value)?;
            let values = if args.named.is_empty() {
                budget.tuple(args.positional)?
            } else {
                compare::dict(
                    budget,
                    args.named.into_iter().map(|(name, value)| (Value::Str(name), value)).collect(),
                )?
            };
            percent(budget, &format, &values)
        }
        "tojson" => json::dump(budget, &value, args),
        _ => match plain(budget, name, &value, args)? {
            Some(value) => Ok(value),
            None => Err(Error::new(format!("there is no filter `{}`", brief(name)))),
        },
    }
}

/// The filters that take a fixed list of arguments.
fn plain(budget: &Budget, name: &str, value: &Value, args: Args) -> Result<Option<Value>> {
    let is_set = |arg: Option<Value>| arg.is_some_and(|arg| arg.is_true());
    Ok(Some(match name {
        "default" | "d" => {
            let [default, boolean] = args.take(name, ["default_value", "boolean"])?;
            let is_missing = value.is_undefined() || (is_set(boolean) && !value.is_true());
            if is_missing { default.unwrap_or_else(|| Value::str("")) } else { value.clone() }
        }
        "length" | "count" => {
            let [] = args.take(name, [])?;
            length(budget, value)?
        }
        "upper" | "lower" | "capitalize" => {
            let [] = args.take(name, [])?;
            methods::change_case(budget, &to_text(budget, value)?, name)?
        }
        "title" => {
            let [] = args.take(name, [])?;
            let text = to_text(budget, value)?;
            budget.reserve(text.len() * 3)?;
            Value::str(title(&text))
        }
        "trim" => {
            let [chars] = args.take(name, ["chars"])?;
            let chars = chars.filter(|chars| !matches!(chars, Value::None));
            let whole = to_text(budget, value)?;
            budget.text(methods::strip(budget, &whole, "strip", chars.as_ref().map(text).transpose()?)?)?
        }
        "replace" => {
            let [old, new, count] = args.take(name, ["old", "new", "count"])?;
            let old = to_text(budget, &required(old, name, "old")?)?;
            let new = to_text(budget, &required(new, name, "new")?)?;
            let count = count.filter(|count| !matches!(count, Value::None));
            let count = count.as_ref().map(int).transpose()?.and_then(|n| usize::try_from(n).ok());
            methods::replace(budget, &to_text(budget, value)?, &old, &new, count)?
        }
        "center" => {
            let [width] = args.take(name, ["width"])?;
            let width = usize::try_from(width.as_ref().map_or(Ok(80), int)?.max(0)).unwrap_or(usize::MAX);
            methods::pad(budget, &to_text(budget, value)?, name, width, ' ')?
        }
        "string" => {
            let [] = args.take(name, [])?;
            match value {
                Value::Str(_) => value.clone(),
                _ => Value::str(to_text(budget, value)?),
            }
        }
        "safe" => value.clone(),
        "escape" | "e" | "forceescape" => {
            let mut out = String::new();
            for c in to_text(budget, value)?.chars() {
                match c {
                    '&' => budget.push(&mut out, "&amp;")?,
                    '<' => budget.push(&mut out, "&lt;")?,
                    '>' => budget.push(&mut out, "&gt;")?,
                    '\'' => budget.push(&mut out, "&#39;")?,
                    '"' => budget.push(&mut out, "&#34;")?,
                    c => budget.push(&mut out, c.encode_utf8(&mut [0; 4]))?,
                }
            }
            Value::str(out)
        }
        "urlencode" => {
            let [] = args.take(name, [])?;
            let mut out = String::new();
            for byte in to_text(budget, value)?.bytes() {
                match byte {
                    b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                        budget.push(&mut out, (byte as char).encode_utf8(&mut [0; 4]))?;
                    }
                    byte => budget.push(&mut out, &format!("%{byte:02X}"))?,
                }
            }
            Value::str(out)
        }
        "pprint" => {
            let mut out = String::new();
            repr::write_repr(budget, value, &mut out)?;
            Value::str(out)
        }
        "wordcount" => {
            let text = to_text(budget, value)?;
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            Value::from(words.filter(|word| !word.is_empty()).count())
        }
        "indent" | "int" | "float" if value.is_undefined() => {
            let Value::Undefined(missing) = value else { return Ok(None) };
            return Err(undefined(missing.as_deref()));
        }
        "indent" => indent(budget, value, args)?,
        "truncate" => truncate(budget, value, args)?,
        "fromjson" | "from_json" => {
            let [] = args.take(name, [])?;
            json::from_json(budget, text(value)?)?
        }
        "abs" | "round" | "int" | "float" | "filesizeformat" => number(budget, name, value, args)?,
        "first" | "last" => {
            let [] = args.take(name, [])?;
            let items = ops::sequence(budget, value)?;
            let items = items.read();
            let item = if name == "first" { items.first() } else { items.last() };
            item.cloned().unwrap_or(Value::Undefined(None))
        }
        "list" => {
            let [] = args.take(name, [])?;
            budget.list(items(budget, value)?)?
        }
        "reverse" => {
            let [] = args.take(name, [])?;
            match value {
                Value::Str(text) => budget.text(&text.chars().rev().collect::<String>())?,
                _ => {
                    let mut items = items(budget, value)?;
                    items.reverse();
                    budget.seq(items, SeqKind::Generator)?
                }
            }
        }
        "items" => match value {
            Value::Undefined(_) => budget.seq(Vec::new(), SeqKind::Generator)?,
            Value::Dict(dict) => {
                let items =
                    dict.entries.iter().map(|(key, value)| budget.tuple(vec![key.clone(), value.clone()]));
                budget.seq(items.collect::<Result<_>>()?, SeqKind::Generator)?
            }
            other => return Err(Error::new(format!("`items` needs a dict, not a {}", other.type_name()))),
        },
        "attr" => {
            let [attribute] = args.take(name, ["name"])?;
            let attribute = required(attribute, name, "name")?;
            let attribute = text(&attribute)?;
            match value {
                Value::Dict(_) if !access::has(value, attribute) => Value::Undefined(Some(attribute.into())),
                _ => access::attr(budget, value, &attribute.into())?,
            }
        }
        "join" => {
            let [separator, attribute] = args.take(name, ["d", "attribute"])?;
            let separator = separator.map_or(Ok(String::new()), |separator| to_text(budget, &separator))?;
            let mut out = String::new();
            for (i, item) in items(budget, value)?.iter().enumerate() {
                budget.step(1)?;
                if i > 0 {
                    budget.push(&mut out, &separator)?;
                }
                match &attribute {
                    Some(attribute) => repr::write_text(budget, &get(budget, item, attribute)?, &mut out)?,
                    None => repr::write_text(budget, item, &mut out)?,
                }
            }
            Value::str(out)
        }
        "sum" => {
            let [attribute, start] = args.take(name, ["attribute", "start"])?;
            let mut sum = start.unwrap_or(Value::Int(0));
            for item in items(budget, value)? {
                let item = match &attribute {
                    Some(Value::None) | None => item,
                    Some(attribute) => get(budget, &item, attribute)?,
                };
                sum = ops::binary(budget, super::syntax::BinaryOp::Add, &sum, &item)?;
            }
            sum
        }
        "batch" | "slice" => columns(budget, name, value, args)?,
        "sort" | "dictsort" | "unique" | "min" | "max" | "groupby" => ordered(budget, name, value, args)?,
        _ => return Ok(None),
    }))
}

/// What an iteration visits, as a list of its own.
fn items(budget: &Budget, value: &Value) -> Result<Vec<Value>> {
    let items = ops::sequence(budget, value)?;
    budget.reserve(32 * items.items.len())?;
    Ok(items.read().to_vec())
}

/// The same, but none of a value that is false: `tools | selectattr(...)` with `none`.
fn items_if_any(budget: &Budget, value: &Value) -> Result<Vec<Value>> {
    if value.is_true() { items(budget, value) } else { Ok(Vec::new()) }
}

fn length(budget: &Budget, value: &Value) -> Result<Value> {
    Ok(Value::from(match value {
        Value::Undefined(_) => 0,
        Value::Str(text) => {
            budget.scan(text.len())?;
            text.chars().count()
        }
        Value::Seq(seq) if seq.kind != SeqKind::Generator => seq.items.len(),
        Value::Dict(dict) => dict.entries.len(),
        Value::Object(object) => match &**object {
            Object::Loop(state) => state.items.items.len(),
            _ => return Err(Error::new(format!("a {} has no length", value.type_name()))),
        },
        other => return Err(Error::new(format!("a {} has no length", other.type_name()))),
    }))
}

/// Each word with a capital letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for c in text.chars() {
        if begins {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        begins = c.is_whitespace() || matches!(c, '-' | '(' | '{' | '[' | '<');
    }
    out
}

fn indent(budget: &Budget, value: &Value, args: Args) -> Result<Value> {
    let [width, first, blank] = args.take("indent", ["width", "first", "blank"])?;
    let is_set = |arg: Option<Value>| arg.is_some_and(|arg| arg.is_true());
    let (first, blank) = (is_set(first), is_set(blank));
    let indent = match &width {
        Some(Value::Str(text)) => text.to_string(),
        width => {
            let n = usize::try_from(width.as_ref().map_or(Ok(4), int)?.max(0)).unwrap_or(usize::MAX);
            budget.reserve(n)?;
            " ".repeat(n)
        }
    };
    let whole = to_text(budget, value)? + "\n";
    let mut out = String::new();
    // Jinja's own notion of lines is Python's.
    let lines = methods::lines(budget, &whole, false)?;
    for (i, line) in lines.into_iter().enumerate() {
        if i > 0 {
            budget.push(&mut out, "\n")?;
        }
        if if i == 0 { first } else { blank || !line.is_empty() } {
            budget.push(&mut out, &indent)?;
        }
        budget.push(&mut out, line)?;
    }
    Ok(Value::str(out))
}

fn truncate(budget: &Budget, value: &Value, args: Args) -> Result<Value> {
    let [length, kill, end, leeway] = args.take("truncate", ["length", "killwords", "end", "leeway"])?;
    let size = |arg: Option<Value>, default: i128| {
        let n = arg.filter(|arg| !matches!(arg, Value::None)).as_ref().map_or(Ok(default), int)?;
        Ok::<_, Error>(usize::try_from(n.max(0)).unwrap_or(usize::MAX))
    };
    let (length, leeway) = (size(length, 255)?, size(leeway, 5)?);
    let end = end.map_or(Ok("...".to_string()), |end| to_text(budget, &end))?;
    let whole = to_text(budget, value)?;
    if whole.chars().count() <= length.saturating_add(leeway) {
        return Ok(Value::str(whole));
    }
    let n = length.checked_sub(end.chars().count());
    let n = n.ok_or_else(|| Error::new("`truncate` is shorter than its `end`"))?;
    let mut kept = whole.char_indices().nth(n).map_or(&*whole, |(at, _)| &whole[..at]);
    if !kill.is_some_and(|kill| kill.is_true()) {
        kept = kept.rsplit_once(' ').map_or(kept, |(kept, _)| kept);
    }
    budget.text(&format!("{kept}{end}"))
}

fn number(budget: &Budget, name: &str, value: &Value, args: Args) -> Result<Value> {
    match name {
        "abs" => {
            let [] = args.take(name, [])?;
            match (value.as_int(), value.as_float()) {
                (Some(n), _) => {
                    n.checked_abs().map(Value::Int).ok_or_else(|| Error::limit("bits of an integer", 127))
                }
                (None, Some(x)) => Ok(Value::Float(x.abs())),
                (None, None) => Err(Error::new(format!("`abs` does not work on a {}", value.type_name()))),
            }
        }
        "int" => {
            let [default, base] = args.take(name, ["default", "base"])?;
            let base =
                u32::try_from(base.as_ref().map_or(Ok(10), int)?).ok().filter(|base| (2..=36).contains(base));
            let base = base.ok_or_else(|| Error::new("the base of `int` must be from 2 to 36"))?;
            let truncate = |x: f64| (x.is_finite() && x.abs() < 1e38).then_some(x as i128);
            let n = match value {
                Value::Str(text) => {
                    let text = text.trim().replace('_', "");
                    let digits = match base {
                        16 => text.trim_start_matches("0x"),
                        8 => text.trim_start_matches("0o"),
                        2 => text.trim_start_matches("0b"),
                        _ => &text,
                    };
                    let parsed = i128::from_str_radix(digits, base).ok();
                    parsed.or_else(|| parse_float(&text).and_then(truncate))
                }
                other => other.as_int().or_else(|| other.as_float().and_then(truncate)),
            };
            Ok(n.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
        }
        "float" => {
            let [default] = args.take(name, ["default"])?;
            let x = match value {
                Value::Str(text) => parse_float(text.trim()),
                other => other.as_float(),
            };
            Ok(x.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "round" => {
            let [precision, method] = args.take(name, ["precision", "method"])?;
            let precision = precision.as_ref().map_or(Ok(0), int)?.clamp(-300, 300) as i32;
            let x = value.as_float();
            let x =
                x.ok_or_else(|| Error::new(format!("`round` does not work on a {}", value.type_name())))?;
            let factor = 10f64.powi(precision);
            let method = method.as_ref().map_or(Ok("common"), text)?;
            Ok(match (method, value.as_int()) {
                ("common", Some(n)) if precision >= 0 => Value::Int(n),
                ("common", _) if precision >= 0 => {
                    let n = precision as usize;
                    Value::Float(format!("{x:.n$}").parse().unwrap_or(x))
                }
                ("common", _) => Value::Float((x * factor).round_ties_even() / factor),
                ("ceil", _) => Value::Float((x * factor).ceil() / factor),
                ("floor", _) => Value::Float((x * factor).floor() / factor),
                _ => return Err(Error::new("`round` knows the methods `common`, `ceil` and `floor`")),
            })
        }
        _ => {
            let [binary] = args.take(name, ["binary"])?;
            let is_binary = binary.is_some_and(|binary| binary.is_true());
            let bytes = value.as_float().or_else(|| value.as_str().and_then(parse_float));
            let bytes = bytes.ok_or_else(|| Error::new("`filesizeformat` needs a number"))?;
            let base: f64 = if is_binary { 1024.0 } else { 1000.0 };
            if bytes == 1.0 {
                return Ok(Value::str("1 Byte"));
            }
            if bytes < base {
                return Ok(Value::str(format!("{} Bytes", bytes as i64)));
            }
            let mut unit = base;
            let mut letters = "kMGTPEZY".chars().peekable();
            let mut letter = letters.next().unwrap_or('Y');
            while bytes >= unit * base && letters.peek().is_some() {
                unit *= base;
                letter = letters.next().unwrap_or('Y');
            }
            let prefix =
                if is_binary { format!("{}i", letter.to_ascii_uppercase()) } else { letter.to_string() };
            budget.text(&format!("{:.1} {prefix}B", bytes / unit))
        }
    }
}

fn parse_float(text: &str) -> Option<f64> {
    text.trim().replace('_', "").parse().ok()
}

/// An attribute by its path: `a.b.0`.
fn get(budget: &Budget, item: &Value, attribute: &Value) -> Result<Value> {
    let Value::Str(path) = attribute else { return access::item(budget, item, attribute) };
    let mut value = item.clone();
    for part in path.split('.') {
        budget.step(1)?;
        let part = part.parse().map_or_else(|_| Value::str(part), Value::Int);
        value = access::item(budget, &value, &part)?;
    }
    Ok(value)
}

fn map(budget: &Budget, value: &Value, mut args: Args) -> Result<Value> {
    let items = items_if_any(budget, value)?;
    let is_attribute =
        args.positional.is_empty() && args.named.iter().any(|(name, _)| **name == *"attribute");
    let mapped: Result<Vec<Value>> = if is_attribute {
        let [attribute, default] = args.take("map", ["attribute", "default"])?;
        let attribute = required(attribute, "map", "attribute")?;
        let one = |item: &Value| match (get(budget, item, &attribute)?, &default) {
            (Value::Undefined(_), Some(default)) => Ok(default.clone()),
            (found, _) => Ok(found),
        };
        items.iter().map(one).collect()
    } else {
        if args.positional.is_empty() {
            return Err(Error::new("`map` needs a filter or an attribute"));
        }
        let filter = args.positional.remove(0);
        let filter: Name = text(&filter)?.into();
        budget.deeper(|| {
            items.into_iter().map(|item| apply(budget, &filter, item, copy(budget, &args)?)).collect()
        })
    };
    budget.seq(mapped?, SeqKind::Generator)
}

/// The arguments once more, for the next item.
fn copy(budget: &Budget, args: &Args) -> Result<Args> {
    budget.step(1 + args.positional.len() + args.named.len())?;
    Ok(Args { positional: args.positional.clone(), named: args.named.clone() })
}

fn select(
    budget: &Budget,
    value: &Value,
    mut args: Args,
    attribute: Option<&Value>,
    keep: bool,
) -> Result<Value> {
    let test: Option<Name> = match args.positional.is_empty() {
        true => None,
        false => Some(text(&args.positional.remove(0))?.into()),
    };
    let mut kept = Vec::new();
    for item in items_if_any(budget, value)? {
        let tested = match attribute {
            Some(attribute) => get(budget, &item, attribute)?,
            None => item.clone(),
        };
        let passes = match &test {
            Some(test) => predicates::check(budget, test, &tested, copy(budget, &args)?)?,
            None => tested.is_true(),
        };
        if passes == keep {
            kept.push(item);
        }
    }
    budget.seq(kept, SeqKind::Generator)
}

/// `batch` and `slice`.
fn columns(budget: &Budget, name: &str, value: &Value, args: Args) -> Result<Value> {
    let [n, fill] = args.take(name, ["n", "fill_with"])?;
    let n = usize::try_from(int(&required(n, name, "n")?)?).ok().filter(|n| *n > 0);
    let n = n.ok_or_else(|| Error::new(format!("`{name}` needs a number of at least 1")))?;
    let fill = fill.filter(|fill| !matches!(fill, Value::None));
    let items = items(budget, value)?;
    let mut parts = Vec::new();
    if name == "batch" {
        for part in items.chunks(n) {
            let mut part = part.to_vec();
            if let Some(fill) = &fill {
                budget.reserve(32usize.saturating_mul(n - part.len()))?;
                part.resize(n, fill.clone());
            }
            parts.push(budget.list(part)?);
        }
    } else {
        budget.reserve(64usize.saturating_mul(n))?;
        budget.step(n)?;
        let (each, more) = (items.len() / n, items.len() % n);
        let mut items = items.into_iter();
        for i in 0..n {
            let mut part: Vec<Value> = items.by_ref().take(each + usize::from(i < more)).collect();
            part.extend(fill.clone().filter(|_| i >= more));
            parts.push(budget.list(part)?);
        }
    }
    budget.seq(parts, SeqKind::Generator)
}

/// The filters that compare items.
fn ordered(budget: &Budget, name: &str, value: &Value, args: Args) -> Result<Value> {
    let is_set = |arg: &Option<Value>| arg.as_ref().is_some_and(Value::is_true);
    if name == "dictsort" {
        let [case, by, reverse] = args.take(name, ["case_sensitive", "by", "reverse"])?;
        let Value::Dict(dict) = value else {
            return Err(Error::new(format!("`dictsort` needs a dict, not a {}", value.type_name())));
        };
        let by_value = by.as_ref().and_then(Value::as_str) == Some("value");
        let mut pairs = Vec::new();
        for (key, value) in &dict.entries {
            let sort_key = fold(budget, if by_value { value } else { key }.clone(), is_set(&case))?;
            pairs.push((vec![sort_key], budget.tuple(vec![key.clone(), value.clone()])?));
        }
        return budget.list(sorted(budget, pairs, is_set(&reverse))?);
    }
    let (reverse, case, attribute, default) = match name {
        "sort" => {
            let [reverse, case, attribute] = args.take(name, ["reverse", "case_sensitive", "attribute"])?;
            (is_set(&reverse), is_set(&case), attribute, None)
        }
        "groupby" => {
            let [attribute, default, case] = args.take(name, ["attribute", "default", "case_sensitive"])?;
            (false, is_set(&case), Some(required(attribute, name, "attribute")?), default)
        }
        _ => {
            let [case, attribute] = args.take(name, ["case_sensitive", "attribute"])?;
            (name == "max", is_set(&case), attribute, None)
        }
    };
    let attribute = attribute.filter(|attribute| !matches!(attribute, Value::None));
    let mut keyed = Vec::new();
    for item in items(budget, value)? {
        let keys = match &attribute {
            None => vec![fold(budget, item.clone(), case)?],
            Some(attribute) => {
                // Several attributes have commas between them.
                let paths: Vec<Value> = match attribute {
                    Value::Str(paths) if name == "sort" => paths.split(',').map(Value::str).collect(),
                    path => vec![path.clone()],
                };
                let one = |path: &Value| match (get(budget, &item, path)?, &default) {
                    (Value::Undefined(_), Some(default)) => Ok(default.clone()),
                    (found, _) => fold(budget, found, case),
                };
                paths.iter().map(one).collect::<Result<_>>()?
            }
        };
        budget.reserve(32 * (keys.len() + 1))?;
        keyed.push((keys, item));
    }
    match name {
        "sort" => budget.list(sorted(budget, keyed, reverse)?),
        "min" | "max" => {
            let mut best: Option<(Vec<Value>, Value)> = None;
            for (keys, item) in keyed {
                let order = best.as_ref().map(|(best, _)| compare(budget, &keys, best)).transpose()?;
                let better = if reverse { Ordering::Greater } else { Ordering::Less };
                if order.is_none_or(|order| order == better) {
                    best = Some((keys, item));
                }
            }
            Ok(best.map_or(Value::Undefined(None), |(_, item)| item))
        }
        "unique" => {
            let mut seen: Vec<(Value, Value)> = Vec::new();
            let mut kept = Vec::new();
            for (mut keys, item) in keyed {
                let Some(key) = keys.pop() else { continue };
                if compare::find(budget, &seen, &key)?.is_none() {
                    seen.push((key, Value::None));
                    kept.push(item);
                }
            }
            budget.seq(kept, SeqKind::Generator)
        }
        _ => {
            let attribute = required(attribute, name, "attribute")?;
            let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
            for item in sorted(budget, keyed, false)? {
                let mut key = get(budget, &item, &attribute)?;
                if let (true, Some(default)) = (key.is_undefined(), &default) {
                    key = default.clone();
                }
                let same = match groups.last() {
                    Some((last, _)) => compare::equal(
                        budget,
                        &fold(budget, last.clone(), case)?,
                        &fold(budget, key.clone(), case)?,
                    )?,
                    None => false,
                };
                match groups.last_mut() {
                    Some((_, items)) if same => items.push(item),
                    _ => groups.push((key, vec![item])),
                }
            }
            let group = |(key, items)| budget.seq(vec![key, budget.list(items)?], SeqKind::Group);
            budget.list(groups.into_iter().map(group).collect::<Result<_>>()?)
        }
    }
}

/// A key to compare: in small letters, unless case counts.
fn fold(budget: &Budget, value: Value, case_sensitive: bool) -> Result<Value> {
    match &value {
        Value::Str(text) if !case_sensitive => budget.text(&text.to_lowercase()),
        _ => Ok(value),
    }
}

fn compare(budget: &Budget, a: &[Value], b: &[Value]) -> Result<Ordering> {
    for (a, b) in a.iter().zip(b) {
        match compare::compare(budget, a, b)? {
            Some(Ordering::Equal) | None => {}
            Some(order) => return Ok(order),
        }
    }
    Ok(Ordering::Equal)
}

/// The items in the order of their keys; equal ones stay in order. The standard library's sorting cannot end with an error.
fn sorted(budget: &Budget, items: Vec<(Vec<Value>, Value)>, reverse: bool) -> Result<Vec<Value>> {
    let mut items: Vec<Option<(Vec<Value>, Value)>> = items.into_iter().map(Some).collect();
    let mut width = 1;
    while width < items.len() {
        let mut merged = Vec::with_capacity(items.len());
        for pair in items.chunks_mut(2 * width) {
            let (left, right) = pair.split_at_mut(width.min(pair.len()));
            let (mut i, mut j) = (0, 0);
            while let (Some(Some(a)), Some(Some(b))) = (left.get(i), right.get(j)) {
                let order = compare(budget, &a.0, &b.0)?;
                let takes_right = order == if reverse { Ordering::Less } else { Ordering::Greater };
                let (side, at) = if takes_right { (&mut *right, &mut j) } else { (&mut *left, &mut i) };
                merged.push(side[*at].take());
                *at += 1;
            }
            merged.extend(left[i..].iter_mut().map(Option::take));
            merged.extend(right[j..].iter_mut().map(Option::take));
        }
        items = merged;
        width *= 2;
    }
    Ok(items.into_iter().flatten().map(|(_, item)| item).collect())
}
