//! The methods of Python's strings, lists and dicts. Those that would change a value are refused, as in Jinja's sandbox.

use super::access::{DICT_CHANGES, LIST_CHANGES};
use super::args::{Args, int, required, text};
use super::budget::Budget;
use super::format::str_format;
use super::repr::{brief, is_printable, write_repr};
use super::syntax::Name;
use super::value::{Object, SeqKind, Value};
use super::{Error, Result, compare, ops};

/// `value.name(args)`.
pub fn call(budget: &Budget, value: &Value, name: &Name, args: Args) -> Result<Value> {
    match value {
        Value::Str(text) => {
            budget.scan(text.len())?;
            str_method(budget, text, name, args)
        }
        Value::Seq(_) | Value::Dict(_)
            if LIST_CHANGES.contains(&&**name) || DICT_CHANGES.contains(&&**name) =>
        {
            let kind = value.type_name();
            Err(Error::new(format!("`{name}` would change a {kind}, which templates may not")))
        }
        Value::Seq(seq) => match &**name {
            "copy" => Ok(value.clone()),
            _ => {
                let [item, start, stop] = args.take(name, ["value", "start", "stop"])?;
                let item = required(item, name, "value")?;
                let at = |bound: Option<Value>, default: usize| {
                    let bound = bound.as_ref().map(int).transpose()?;
                    let n = seq.items.len() as i128;
                    let place =
                        bound.map(|i| (if i < 0 { i.saturating_add(n) } else { i }).clamp(0, n) as usize);
                    Ok::<_, Error>(place.unwrap_or(default))
                };
                let (start, stop) = (at(start, 0)?, at(stop, seq.items.len())?);
                let mut count = 0;
                for (i, found) in seq.items.iter().enumerate().take(stop).skip(start) {
                    if compare::equal(budget, found, &item)? {
                        if **name == *"index" {
                            return Ok(Value::from(i));
                        }
                        count += 1;
                    }
                }
                if **name == *"index" {
                    return Err(Error::new(format!("`index` found no such item in a {}", value.type_name())));
                }
                Ok(Value::from(count))
            }
        },
        Value::Dict(dict) => {
            let entries = &dict.entries;
            match &**name {
                "get" => {
                    let [key, default] = args.take(name, ["key", "default"])?;
                    let found =
                        compare::find(budget, entries, compare::check_key(&required(key, name, "key")?)?)?;
                    Ok(found.map_or(default.unwrap_or(Value::None), |i| entries[i].1.clone()))
                }
                "keys" => budget
                    .seq(entries.iter().map(|(key, _)| key.clone()).collect(), SeqKind::View("dict_keys")),
                "values" => {
                    let values = entries.iter().map(|(_, value)| value.clone());
                    budget.seq(values.collect(), SeqKind::View("dict_values"))
                }
                "items" => {
                    let items =
                        entries.iter().map(|(key, value)| budget.tuple(vec![key.clone(), value.clone()]));
                    budget.seq(items.collect::<Result<_>>()?, SeqKind::View("dict_items"))
                }
                _ => Ok(value.clone()),
            }
        }
        Value::Object(object) => call_object_method(budget, object, name, args),
        other => Err(Error::new(format!("a {} has no method `{}`", other.type_name(), brief(name)))),
    }
}

fn str_method(budget: &Budget, s: &str, name: &str, args: Args) -> Result<Value> {
    let none = |args: Args| args.take(name, []).map(|[]: [_; 0]| ());
    match name {
        "upper" | "lower" | "casefold" | "capitalize" | "title" | "swapcase" => {
            none(args)?;
            change_case(budget, s, name)
        }
        "isalnum" | "isalpha" | "isascii" | "isdecimal" | "isdigit" | "isidentifier" | "islower"
        | "isnumeric" | "isprintable" | "isspace" | "istitle" | "isupper" => {
            none(args)?;
            Ok(Value::Bool(is(s, name)))
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.take(name, ["chars"])?;
            let chars = chars.filter(|chars| !matches!(chars, Value::None));
            budget.text(strip(budget, s, name, chars.as_ref().map(text).transpose()?)?)
        }
        "replace" => {
            let [old, new, count] = args.take(name, ["old", "new", "count"])?;
            let (old, new) = (required(old, name, "old")?, required(new, name, "new")?);
            let count = count.as_ref().map(int).transpose()?.and_then(|n| usize::try_from(n).ok());
            replace(budget, s, text(&old)?, text(&new)?, count)
        }
        "split" | "rsplit" => {
            let [separator, limit] = args.take(name, ["sep", "maxsplit"])?;
            let separator = separator.filter(|separator| !matches!(separator, Value::None));
            let limit = limit.as_ref().map(int).transpose()?.and_then(|n| usize::try_from(n).ok());
            let parts = split(budget, s, separator.as_ref().map(text).transpose()?, limit, name == "rsplit")?;
            texts(budget, parts)
        }
        "splitlines" => {
            let [keep] = args.take(name, ["keepends"])?;
            texts(budget, lines(budget, s, keep.is_some_and(|keep| keep.is_true()))?)
        }
        "partition" | "rpartition" => {
            let [separator] = args.take(name, ["sep"])?;
            let separator = required(separator, name, "sep")?;
            let separator = text(&separator)?;
            let at = if name == "partition" { s.find(separator) } else { s.rfind(separator) };
            let parts = match at {
                Some(at) => [&s[..at], separator, &s[at + separator.len()..]],
                None if name == "partition" => [s, "", ""],
                None => ["", "", s],
            };
            budget.tuple(parts.into_iter().map(|part| budget.text(part)).collect::<Result<_>>()?)
        }
        "join" => {
            let [items] = args.take(name, ["iterable"])?;
            let items = ops::sequence(budget, &required(items, name, "iterable")?)?;
            let mut out = String::new();
            for (i, item) in items.read().iter().enumerate() {
                budget.step(1)?;
                if i > 0 {
                    budget.push(&mut out, s)?;
                }
                budget.push(&mut out, text(item)?)?;
            }
            Ok(Value::str(out))
        }
        "removeprefix" | "removesuffix" => {
            let [part] = args.take(name, ["part"])?;
            let part = required(part, name, "part")?;
            let part = text(&part)?;
            let rest = if name == "removeprefix" { s.strip_prefix(part) } else { s.strip_suffix(part) };
            budget.text(rest.unwrap_or(s))
        }
        "startswith" | "endswith" => {
            let [part, start, end] = args.take(name, ["part", "start", "end"])?;
            let part = required(part, name, "part")?;
            let (s, _) = within(budget, s, start, end)?;
            let fits = |part: &Value| {
                let part = text(part)?;
                Ok(if name == "startswith" { s.starts_with(part) } else { s.ends_with(part) })
            };
            match &part {
                Value::Seq(parts) if parts.kind == SeqKind::Tuple => {
                    for part in &parts.items {
                        budget.step(1)?;
                        if fits(part)? {
                            return Ok(Value::Bool(true));
                        }
                    }
                    Ok(Value::Bool(false))
                }
                part => Ok(Value::Bool(fits(part)?)),
            }
        }
        "count" | "find" | "rfind" | "index" | "rindex" => {
            let [part, start, end] = args.take(name, ["sub", "start", "end"])?;
            let part = required(part, name, "sub")?;
            let part = text(&part)?;
            let (s, n_before) = within(budget, s, start, end)?;
            if name == "count" {
                return Ok(Value::from(s.matches(part).count()));
            }
            let at = if name.starts_with('r') { s.rfind(part) } else { s.find(part) };
            match at {
                Some(at) => Ok(Value::from(n_before + s[..at].chars().count())),
                None if name.ends_with("index") => Err(Error::new(format!("`{name}` found no such text"))),
                None => Ok(Value::Int(-1)),
            }
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = args.take(name, ["width", "fillchar"])?;
            let width = usize::try_from(int(&required(width, name, "width")?)?.max(0)).unwrap_or(usize::MAX);
            let fill = fill.as_ref().map_or(Ok(" "), text)?;
            let mut chars = fill.chars();
            let (Some(fill), None) = (chars.next(), chars.next()) else {
                return Err(Error::new(format!("`{name}` fills with one character")));
            };
            pad(budget, s, name, width, fill)
        }
        "expandtabs" => {
            let [size] = args.take(name, ["tabsize"])?;
            let size = usize::try_from(size.as_ref().map_or(Ok(8), int)?.max(0)).unwrap_or(usize::MAX);
            let mut out = String::new();
            let mut column = 0;
            for c in s.chars() {
                if c == '\t' {
                    let n = size.saturating_sub(column % size.max(1));
                    budget.reserve(n)?;
                    out.push_str(&" ".repeat(n));
                    column += n;
                } else {
                    budget.reserve(c.len_utf8())?;
                    out.push(c);
                    column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
                }
            }
            Ok(Value::str(out))
        }
        "format" => str_format(budget, s, &args),
        "format_map" => {
            let [map] = args.take(name, ["mapping"])?;
            let Some(Value::Dict(dict)) = map else { return Err(Error::new("`format_map` needs a dict")) };
            budget.reserve(64 * dict.entries.len())?;
            let named = dict.entries.iter().filter_map(|(key, value)| match key {
                Value::Str(name) => Some((name.clone(), value.clone())),
                _ => None,
            });
            str_format(budget, s, &Args { positional: Vec::new(), named: named.collect() })
        }
        _ => Err(Error::new(format!("the method `{name}` of strings is not supported"))),
    }
}

/// `upper` and the like.
pub fn change_case(budget: &Budget, s: &str, name: &str) -> Result<Value> {
    // Some letters become three.
    budget.reserve(if s.is_ascii() { s.len() } else { s.len().saturating_mul(3) })?;
    Ok(Value::str(changed_case(s, name)))
}

fn changed_case(s: &str, name: &str) -> String {
    match name {
        "upper" => s.to_uppercase(),
        "lower" => s.to_lowercase(),
        "casefold" => s.to_lowercase().replace('ß', "ss").replace('ς', "σ"),
        "capitalize" => {
            let mut chars = s.chars();
            let first: String = chars.next().into_iter().flat_map(char::to_uppercase).collect();
            first + &chars.as_str().to_lowercase()
        }
        "swapcase" => {
            let swap = |c: char| {
                if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
            };
            s.chars().map(swap).collect()
        }
        _ => {
            let mut out = String::with_capacity(s.len());
            let mut in_word = false;
            for c in s.chars() {
                if in_word {
                    out.extend(c.to_lowercase());
                } else {
                    out.extend(c.to_uppercase());
                }
                in_word = c.is_alphabetic();
            }
            out
        }
    }
}

/// `isalpha` and the like.
pub fn is(s: &str, name: &str) -> bool {
    let all = |test: fn(char) -> bool| !s.is_empty() && s.chars().all(test);
    match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => s.is_ascii(),
        "isdigit" => all(|c| c.is_numeric() && !c.is_alphabetic() && !is_fraction(c)),
        "isdecimal" => all(|c| c.is_numeric() && !c.is_alphabetic() && !is_fraction(c) && !is_raised(c)),
        "isnumeric" => all(char::is_numeric),
        "isprintable" => s.chars().all(is_printable),
        "isspace" => all(char::is_whitespace),
        "islower" => s.chars().any(char::is_lowercase) && !s.chars().any(char::is_uppercase),
        "isupper" => s.chars().any(char::is_uppercase) && !s.chars().any(char::is_lowercase),
        "istitle" => s.chars().any(char::is_alphabetic) && changed_case(s, "title") == s,
        _ => {
            let begins = s.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_');
            begins && s.chars().all(|c| c.is_alphanumeric() || c == '_')
        }
    }
}

fn is_raised(c: char) -> bool {
    matches!(c, '\u{b2}' | '\u{b3}' | '\u{b9}' | '\u{2070}'..='\u{209c}' | '\u{2460}'..='\u{24ff}' | '\u{2776}'..='\u{2793}')
}

fn is_fraction(c: char) -> bool {
    matches!(c, '\u{bc}'..='\u{be}' | '\u{2150}'..='\u{215f}' | '\u{2189}')
}

/// `strip`, `lstrip` or `rstrip`.
pub fn strip<'a>(budget: &Budget, s: &'a str, name: &str, chars: Option<&str>) -> Result<&'a str> {
    let n_chars = chars.map_or(1, str::len);
    budget.step(s.len().saturating_mul(n_chars) / 64)?;
    let is_stripped = |c: char| match chars {
        Some(chars) => chars.contains(c),
        None => c.is_whitespace() || matches!(c, '\x1c'..='\x1f'),
    };
    Ok(match name {
        "lstrip" => s.trim_start_matches(is_stripped),
        "rstrip" => s.trim_end_matches(is_stripped),
        _ => s.trim_matches(is_stripped),
    })
}

pub fn replace(budget: &Budget, s: &str, old: &str, new: &str, count: Option<usize>) -> Result<Value> {
    budget.scan(s.len())?;
    let n = s.matches(old).take(count.unwrap_or(usize::MAX)).count();
    budget.reserve(n.saturating_mul(new.len()).saturating_add(s.len()))?;
    Ok(Value::str(s.replacen(old, new, n)))
}

/// The part of `s` between two places, and how many characters are before it.
fn within<'a>(
    budget: &Budget,
    s: &'a str,
    start: Option<Value>,
    end: Option<Value>,
) -> Result<(&'a str, usize)> {
    if start.is_none() && end.is_none() {
        return Ok((s, 0));
    }
    budget.scan(s.len())?;
    let n = s.chars().count();
    let place = |bound: Option<Value>, default: usize| {
        let bound = bound.filter(|bound| !matches!(bound, Value::None));
        let Some(i) = bound.as_ref().map(int).transpose()? else { return Ok(default) };
        Ok::<_, Error>((if i < 0 { i.saturating_add(n as i128) } else { i }).clamp(0, n as i128) as usize)
    };
    let (start, end) = (place(start, 0)?, place(end, n)?);
    let at = |i: usize| s.char_indices().nth(i).map_or(s.len(), |(at, _)| at);
    Ok((s.get(at(start)..at(end)).unwrap_or(""), start))
}

/// Texts that are parts of one text.
fn texts(budget: &Budget, parts: Vec<&str>) -> Result<Value> {
    // A value and a text of its own for each.
    budget.reserve(parts.iter().map(|part| part.len() + 80).sum())?;
    budget.list(parts.into_iter().map(Value::str).collect())
}

fn split<'a>(
    budget: &Budget,
    s: &'a str,
    separator: Option<&str>,
    limit: Option<usize>,
    from_right: bool,
) -> Result<Vec<&'a str>> {
    let n = limit.map_or(usize::MAX, |limit| limit.saturating_add(1));
    let n_parts = match separator {
        Some(separator) => 1 + s.matches(separator).count(),
        None => s.split_whitespace().count(),
    };
    budget.step(n_parts.min(n))?;
    budget.reserve(16usize.saturating_mul(n_parts.min(n)))?;
    Ok(match (separator, from_right) {
        (Some(""), _) => return Err(Error::new("the separator of `split` is empty")),
        (Some(separator), false) => s.splitn(n, separator).collect(),
        (Some(separator), true) => {
            let mut parts: Vec<&str> = s.rsplitn(n, separator).collect();
            parts.reverse();
            parts
        }
        (None, false) => {
            let mut parts = Vec::new();
            let mut rest = s.trim_start();
            while !rest.is_empty() {
                let end = if parts.len() + 1 == n { None } else { rest.find(char::is_whitespace) };
                let (part, after) = rest.split_at(end.unwrap_or(rest.len()));
                parts.push(part);
                rest = after.trim_start();
            }
            parts
        }
        (None, true) => {
            let mut parts = Vec::new();
            let mut rest = s.trim_end();
            while !rest.is_empty() {
                let last = rest.char_indices().rev().find(|(_, c)| c.is_whitespace());
                let start =
                    if parts.len() + 1 == n { 0 } else { last.map_or(0, |(at, c)| at + c.len_utf8()) };
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end();
            }
            parts.reverse();
            parts
        }
    })
}

/// The lines of a text, with every break that Python knows.
pub fn lines<'a>(budget: &Budget, s: &'a str, keep_ends: bool) -> Result<Vec<&'a str>> {
    let is_break =
        |c| matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let n_lines = 1 + s.matches(is_break).count();
    budget.step(n_lines)?;
    budget.reserve(16 * n_lines)?;
    let mut lines = Vec::new();
    let mut rest = s;
    while !rest.is_empty() {
        let end = rest.find(is_break).unwrap_or(rest.len());
        let n_break = match rest[end..].chars().next() {
            Some('\r') if rest[end..].starts_with("\r\n") => 2,
            Some(c) => c.len_utf8(),
            None => 0,
        };
        lines.push(&rest[..if keep_ends { end + n_break } else { end }]);
        rest = &rest[end + n_break..];
    }
    Ok(lines)
}

/// `center` and the like.
pub fn pad(budget: &Budget, s: &str, name: &str, width: usize, fill: char) -> Result<Value> {
    let n_fill = width.saturating_sub(s.chars().count());
    budget.reserve(n_fill.saturating_mul(fill.len_utf8()).saturating_add(s.len()))?;
    let fills = |n: usize| std::iter::repeat_n(fill, n).collect::<String>();
    Ok(Value::str(match name {
        "ljust" => s.to_string() + &fills(n_fill),
        "rjust" => fills(n_fill) + s,
        "zfill" => {
            let digits = s.strip_prefix(['+', '-']).unwrap_or(s);
            s[..s.len() - digits.len()].to_string()
                + &std::iter::repeat_n('0', n_fill).collect::<String>()
                + digits
        }
        _ => {
            let left = n_fill / 2 + (n_fill & width & 1);
            fills(left) + s + &fills(n_fill - left)
        }
    }))
}

/// The methods of `loop` and of cyclers.
fn call_object_method(budget: &Budget, object: &Object, name: &str, args: Args) -> Result<Value> {
    match (object, name) {
        (Object::Loop(state), "cycle") => {
            let at = state.at.get().checked_rem(args.positional.len());
            let at = at.ok_or_else(|| Error::new("`loop.cycle` needs at least one item"))?;
            Ok(args.positional[at].clone())
        }
        (Object::Loop(state), "changed") => {
            let mut seen = String::new();
            for value in &args.positional {
                write_repr(budget, value, &mut seen)?;
                budget.push(&mut seen, ",")?;
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
