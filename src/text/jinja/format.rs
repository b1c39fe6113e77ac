//! Formatting: Python's `%` operator and `str.format`.

use std::fmt::Write as _;

use super::args::Args;
use super::budget::Budget;
use super::repr::{brief, float, to_text, write_repr};
use super::syntax::Name;
use super::value::{SeqKind, Value};
use super::{Error, Result, access};

/// Most digits after the point.
const PRECISION: usize = 1000;

/// How a value is written: what both notations have in common.
#[derive(Default, Clone)]
struct Spec {
    fill: Option<char>,
    /// `<`, `>`, `^`, or `=` for padding between sign and digits.
    align: Option<char>,
    /// `+`, ` ` or `-`.
    sign: Option<char>,
    alternate: bool,
    /// `,` or `_` between groups of digits.
    group: Option<char>,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    /// Appends `text` with its padding. `sign` stands before it, and before zeros.
    fn pad(&self, budget: &Budget, out: &mut String, sign: &str, text: &str, default: char) -> Result<()> {
        let fill = self.fill.unwrap_or(' ');
        let n_chars = sign.chars().count() + text.chars().count();
        let n_fill = self.width.saturating_sub(n_chars);
        budget.reserve(n_fill.saturating_mul(fill.len_utf8()).saturating_add(sign.len() + text.len()))?;
        let (before, inside) = match self.align.unwrap_or(default) {
            '<' => (0, 0),
            '^' => (n_fill / 2, 0),
            '=' => (0, n_fill),
            _ => (n_fill, 0),
        };
        let n = |n: usize| std::iter::repeat_n(fill, n);
        out.extend(n(before));
        out.push_str(sign);
        out.extend(n(inside));
        out.push_str(text);
        out.extend(n(n_fill - before - inside));
        Ok(())
    }

    fn sign_of(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            (false, _) => "",
        }
    }

    fn write_str(&self, budget: &Budget, out: &mut String, text: &str) -> Result<()> {
        match self.precision.and_then(|n| text.char_indices().nth(n)) {
            Some((end, _)) => self.pad(budget, out, "", &text[..end], '<'),
            None => self.pad(budget, out, "", text, '<'),
        }
    }

    fn write_int(&self, budget: &Budget, out: &mut String, value: i128, default: char) -> Result<()> {
        let magnitude = value.unsigned_abs();
        let (mut digits, prefix, group) = match self.kind {
            Some('b') => (format!("{magnitude:b}"), "0b", 4),
            Some('o') => (format!("{magnitude:o}"), "0o", 4),
            Some('x') => (format!("{magnitude:x}"), "0x", 4),
            Some('X') => (format!("{magnitude:X}"), "0X", 4),
            _ => (magnitude.to_string(), "", 3),
        };
        if let Some(separator) = self.group {
            digits = grouped(&digits, separator, group);
        }
        let sign = self.sign_of(value < 0).to_string() + if self.alternate { prefix } else { "" };
        self.pad(budget, out, &sign, &digits, default)
    }

    fn write_float(&self, budget: &Budget, out: &mut String, value: f64, default: char) -> Result<()> {
        let magnitude = value.abs();
        let precision = self.precision.unwrap_or(6);
        if precision > PRECISION {
            return Err(Error::limit("digits after the point", PRECISION as u64));
        }
        let kind = self.kind.unwrap_or('r');
        let mut text = match kind.to_ascii_lowercase() {
            _ if !magnitude.is_finite() => float(magnitude),
            'f' => format!("{magnitude:.precision$}"),
            '%' => format!("{:.precision$}", magnitude * 100.0),
            'e' => exponential(magnitude, precision),
            'g' | 'n' => general(magnitude, precision, self.alternate, false),
            _ => match self.precision {
                Some(precision) => general(magnitude, precision, false, true),
                None => float(magnitude),
            },
        };
        if kind.is_ascii_uppercase() {
            text = text.to_ascii_uppercase();
        }
        if let Some(separator) = self.group {
            let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
            text = grouped(&text[..end], separator, 3) + &text[end..];
        }
        if kind == '%' {
            text.push('%');
        }
        self.pad(budget, out, self.sign_of(value.is_sign_negative() && !value.is_nan()), &text, default)
    }
}

/// Digits with a separator between groups of `n`.
fn grouped(digits: &str, separator: char, n: usize) -> String {
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(n) {
            out.push(separator);
        }
        out.push(digit);
    }
    out
}

fn exponential(value: f64, precision: usize) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// The shorter of the plain and the exponential notation. `as_repr` keeps a digit after the point.
fn general(value: f64, precision: usize, keep_zeros: bool, as_repr: bool) -> String {
    let precision = precision.max(1);
    let scientific = exponential(value, precision - 1);
    let exponent = scientific.split_once('e').and_then(|(_, e)| e.parse::<i32>().ok()).unwrap_or(0);
    let is_plain = (-4..precision as i32 - i32::from(as_repr && exponent > 0)).contains(&exponent);
    let (mut digits, tail) = if is_plain {
        let n = (precision as i32 - 1 - exponent).max(0) as usize;
        (format!("{value:.n$}"), String::new())
    } else {
        let (digits, tail) = scientific.split_once('e').unwrap_or((&scientific, ""));
        (digits.to_string(), format!("e{tail}"))
    };
    if !keep_zeros && digits.contains('.') {
        digits.truncate(digits.trim_end_matches('0').trim_end_matches('.').len());
    }
    if as_repr && is_plain && !digits.contains('.') {
        digits.push_str(".0");
    }
    digits + &tail
}

/// A number that a value stands for where an integer is asked for.
fn integer(value: &Value, kind: char) -> Result<i128> {
    match value {
        Value::Float(x) if matches!(kind, 'd' | 'i' | 'u') && x.is_finite() => Ok(*x as i128),
        _ => value.as_int().ok_or_else(|| {
            Error::new(format!("format `{kind}` needs an integer, not a {}", value.type_name()))
        }),
    }
}

fn number(value: &Value, kind: char) -> Result<f64> {
    value
        .as_float()
        .ok_or_else(|| Error::new(format!("format `{kind}` needs a number, not a {}", value.type_name())))
}

// --- `%` -----------------------------------------------------------------------------------------------------

/// `format % args`.
pub fn percent(budget: &Budget, format: &str, args: &Value) -> Result<Value> {
    let (many, one);
    let mut values: std::slice::Iter<'_, Value> = match args {
        Value::Seq(seq) if seq.kind == SeqKind::Tuple => {
            many = seq.clone();
            many.items.iter()
        }
        _ => {
            one = [args.clone()];
            one.iter()
        }
    };
    let not_enough = || Error::new("a format has more places than there are values");
    let mut out = String::new();
    let mut rest = format;
    let mut is_mapping = false;
    while let Some(at) = rest.find('%') {
        budget.step(1)?;
        budget.push(&mut out, &rest[..at])?;
        let mut chars = Cursor(&rest[at + 1..]);
        let named = if chars.skip('(') {
            let (key, after) =
                chars.0.split_once(')').ok_or_else(|| Error::new("a format key has no end `)`"))?;
            chars.0 = after;
            let Value::Dict(dict) = args else { return Err(Error::new("a format with names needs a dict")) };
            budget.step(dict.entries.len() / 8)?;
            is_mapping = true;
            let value = dict.get(key).cloned();
            Some(value.ok_or_else(|| Error::new(format!("the format's key `{}` is missing", brief(key))))?)
        } else {
            None
        };
        let mut spec = Spec::default();
        while let Some(flag) = chars.0.chars().next().filter(|c| matches!(c, '-' | '+' | ' ' | '#' | '0')) {
            chars.skip(flag);
            match flag {
                '-' => spec.align = Some('<'),
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => spec.fill = Some('0'),
            }
        }
        let star = |values: &mut std::slice::Iter<'_, Value>| {
            let value = values.next().ok_or_else(not_enough)?;
            value.as_int().ok_or_else(|| Error::new("`*` in a format needs an integer"))
        };
        if chars.skip('*') {
            let width = star(&mut values)?;
            if width < 0 {
                spec.align = Some('<');
            }
            spec.width = usize::try_from(width.unsigned_abs()).unwrap_or(usize::MAX);
        } else {
            spec.width = chars.number()?.unwrap_or(0);
        }
        if chars.skip('.') {
            spec.precision = Some(match chars.skip('*') {
                true => usize::try_from(star(&mut values)?.max(0)).unwrap_or(usize::MAX),
                false => chars.number()?.unwrap_or(0),
            });
        }
        while chars.skip('h') || chars.skip('l') || chars.skip('L') {}
        let kind = chars.0.chars().next().ok_or_else(|| Error::new("a format ends after `%`"))?;
        chars.skip(kind);
        rest = chars.0;
        if kind == '%' {
            budget.push(&mut out, "%")?;
            continue;
        }
        let value = match &named {
            Some(value) => value,
            None => values.next().ok_or_else(not_enough)?,
        };
        spec.kind = Some(match kind {
            'r' | 'a' | 'c' => 's',
            'i' | 'u' => 'd',
            kind => kind,
        });
        let is_left = spec.align == Some('<');
        if is_left || matches!(kind, 's' | 'r' | 'a' | 'c') {
            // Zeros pad only numbers, and only before them.
            spec.fill = None;
        } else if spec.fill.is_some() {
            spec.align = Some('=');
        }
        match kind {
            's' | 'r' | 'a' | 'c' => {
                let text = match (kind, value) {
                    ('s', value) => to_text(budget, value)?,
                    ('c', Value::Int(code)) => {
                        let c = u32::try_from(*code).ok().and_then(char::from_u32);
                        c.ok_or_else(|| Error::new("format `c` needs a character"))?.to_string()
                    }
                    ('c', value) => to_text(budget, value)?,
                    _ => {
                        let mut text = String::new();
                        write_repr(budget, value, &mut text)?;
                        text
                    }
                };
                spec.align = spec.align.or(Some('>'));
                spec.write_str(budget, &mut out, &text)?;
            }
            'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
                let value = integer(value, kind)?;
                spec.write_int_with_digits(budget, &mut out, value)?;
            }
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => {
                spec.write_float(budget, &mut out, number(value, kind)?, '>')?
            }
            other => return Err(Error::new(format!("`%{}` is no format", other.escape_debug()))),
        }
    }
    budget.push(&mut out, rest)?;
    if values.next().is_some() && !is_mapping && !matches!(args, Value::Dict(_)) {
        return Err(Error::new("a format has fewer places than there are values"));
    }
    Ok(Value::str(out))
}

impl Spec {
    /// An integer whose precision is the least number of digits.
    fn write_int_with_digits(&self, budget: &Budget, out: &mut String, value: i128) -> Result<()> {
        let Some(n_digits) = self.precision else { return self.write_int(budget, out, value, '>') };
        let mut digits = String::new();
        let inner =
            Spec { fill: Some('0'), align: Some('>'), width: n_digits, kind: self.kind, ..Spec::default() };
        inner.write_int(
            budget,
            &mut digits,
            i128::try_from(value.unsigned_abs()).unwrap_or(i128::MAX),
            '>',
        )?;
        self.pad(budget, out, self.sign_of(value < 0), &digits, '>')
    }
}

/// The rest of a format.
struct Cursor<'a>(&'a str);

impl Cursor<'_> {
    fn skip(&mut self, c: char) -> bool {
        let rest = self.0.strip_prefix(c);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn number(&mut self) -> Result<Option<usize>> {
        let n = self.0.bytes().take_while(u8::is_ascii_digit).count();
        let (digits, rest) = self.0.split_at(n);
        self.0 = rest;
        if digits.is_empty() {
            return Ok(None);
        }
        // What does not fit is refused where its memory is counted.
        Ok(Some(digits.parse().unwrap_or(usize::MAX)))
    }
}

// --- `str.format` --------------------------------------------------------------------------------------------

/// `format.format(*args, **kwargs)`.
pub fn str_format(budget: &Budget, format: &str, args: &Args) -> Result<Value> {
    let mut out = String::new();
    Fields { budget, args, next: Some(0) }.write(format, 0, &mut out)?;
    Ok(Value::str(out))
}

struct Fields<'a> {
    budget: &'a Budget,
    args: &'a Args,
    /// The next value without a number; none after a number was given.
    next: Option<usize>,
}

impl Fields<'_> {
    fn write(&mut self, format: &str, level: usize, out: &mut String) -> Result<()> {
        let mut rest = format;
        while let Some(at) = rest.find(['{', '}']) {
            self.budget.step(1)?;
            self.budget.push(out, &rest[..at])?;
            let brace = &rest[at..=at];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                self.budget.push(out, brace)?;
                rest = after;
            } else if brace == "}" {
                return Err(Error::new("a single `}` in a format"));
            } else {
                let end = field_end(rest).ok_or_else(|| Error::new("a single `{` in a format"))?;
                self.field(&rest[..end], level, out)?;
                rest = &rest[end + 1..];
            }
        }
        self.budget.push(out, rest)
    }

    fn field(&mut self, field: &str, level: usize, out: &mut String) -> Result<()> {
        if level > 1 {
            return Err(Error::limit("levels of fields in a format", 2));
        }
        // In `[...]` a colon belongs to the name.
        let mut in_brackets = false;
        let end = field.find(|c: char| {
            in_brackets = c == '[' || (in_brackets && c != ']');
            !in_brackets && matches!(c, ':' | '!')
        });
        let (name, rest) = field.split_at(end.unwrap_or(field.len()));
        let mut value = self.value(name)?;
        let mut cursor = Cursor(rest);
        if cursor.skip('!') {
            let conversion = cursor.0.chars().next().filter(|c| matches!(c, 's' | 'r' | 'a'));
            let conversion = conversion.ok_or_else(|| Error::new("a format's `!` needs `s` or `r`"))?;
            cursor.skip(conversion);
            let mut text = String::new();
            match conversion {
                's' => text = to_text(self.budget, &value)?,
                _ => write_repr(self.budget, &value, &mut text)?,
            }
            value = Value::str(text);
        }
        if !cursor.0.is_empty() && !cursor.skip(':') {
            return Err(Error::new("a format needs `:` after the conversion"));
        }
        let mut spec = String::new();
        self.write(cursor.0, level + 1, &mut spec)?;
        write_value(self.budget, &value, &spec, out)
    }

    /// The value of `name.attribute[item]`.
    fn value(&mut self, name: &str) -> Result<Value> {
        let end = name.find(['.', '[']).unwrap_or(name.len());
        let (first, mut path) = name.split_at(end);
        let numbered = match (first, self.next) {
            ("", Some(next)) => {
                self.next = Some(next + 1);
                Some(next)
            }
            ("", None) => return Err(Error::new("a format mixes fields with and without numbers")),
            _ => first.parse().ok(),
        };
        if !first.is_empty() && numbered.is_some() {
            self.next = self.next.filter(|next| *next > 0);
        }
        let missing = || Error::new(format!("the format's field `{}` has no value", brief(first)));
        let mut value = match numbered {
            Some(i) => self.args.positional.get(i).cloned().ok_or_else(missing)?,
            None => {
                self.budget.step(self.args.named.len() / 8)?;
                let named = self.args.named.iter().rev().find(|(found, _)| **found == *first);
                named.map(|(_, value)| value.clone()).ok_or_else(missing)?
            }
        };
        while !path.is_empty() {
            self.budget.step(1)?;
            let mut cursor = Cursor(path);
            if cursor.skip('.') {
                let end = cursor.0.find(['.', '[']).unwrap_or(cursor.0.len());
                value = access::attr(self.budget, &value, &Name::from(&cursor.0[..end]))?;
                path = &cursor.0[end..];
            } else {
                let inside = path.strip_prefix('[').and_then(|rest| rest.split_once(']'));
                let (key, rest) = inside.ok_or_else(|| Error::new("a field of a format has no end `]`"))?;
                let key = key.parse().map_or_else(|_| Value::str(key), Value::Int);
                value = access::item(self.budget, &value, &key)?;
                path = rest;
            }
        }
        Ok(value)
    }
}

/// Where the field that `text` begins in ends.
fn field_end(text: &str) -> Option<usize> {
    let mut level = 0;
    text.find(|c| {
        match c {
            '{' => level += 1,
            '}' if level == 0 => return true,
            '}' => level -= 1,
            _ => {}
        }
        false
    })
}

/// Appends `format(value, spec)`.
fn write_value(budget: &Budget, value: &Value, spec: &str, out: &mut String) -> Result<()> {
    if spec.is_empty() {
        let text = to_text(budget, value)?;
        return budget.push(out, &text);
    }
    let spec = parse_spec(spec)?;
    match (value, spec.kind) {
        (Value::Str(text), None | Some('s')) => spec.write_str(budget, out, text),
        (Value::Bool(_) | Value::Int(_), Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%'))
        | (Value::Float(_), _) => {
            if matches!(spec.kind, Some('b' | 'c' | 'd' | 'o' | 's' | 'x' | 'X')) {
                return Err(Error::new(format!(
                    "format `{}` does not work on a float",
                    spec.kind.unwrap_or(' ')
                )));
            }
            spec.write_float(budget, out, value.as_float().unwrap_or(0.0), '>')
        }
        (Value::Int(code), Some('c')) => {
            let c = u32::try_from(*code).ok().and_then(char::from_u32);
            let c = c.ok_or_else(|| Error::new("format `c` needs a character"))?;
            spec.pad(budget, out, "", c.encode_utf8(&mut [0; 4]), '>')
        }
        (Value::Bool(_) | Value::Int(_), None | Some('b' | 'd' | 'n' | 'o' | 'x' | 'X'))
            if spec.precision.is_none() =>
        {
            spec.write_int(budget, out, value.as_int().unwrap_or(0), '>')
        }
        _ => {
            let kind = spec.kind.map_or(String::new(), |kind| format!(" `{}`", kind.escape_debug()));
            Err(Error::new(format!("format{kind} does not work on a {}", value.type_name())))
        }
    }
}

/// `[[fill]align][sign][#][0][width][group][.precision][kind]`
fn parse_spec(text: &str) -> Result<Spec> {
    let is_align = |c: char| matches!(c, '<' | '>' | '^' | '=');
    let mut spec = Spec::default();
    let mut cursor = Cursor(text);
    let mut chars = text.chars();
    match (chars.next(), chars.next()) {
        (Some(fill), Some(align)) if is_align(align) => {
            spec.fill = Some(fill);
            spec.align = Some(align);
            cursor.0 = chars.as_str();
        }
        (Some(align), _) if is_align(align) => {
            spec.align = Some(align);
            cursor.skip(align);
        }
        _ => {}
    }
    spec.sign = ['+', '-', ' '].into_iter().find(|sign| cursor.skip(*sign));
    cursor.skip('z');
    spec.alternate = cursor.skip('#');
    if cursor.skip('0') && spec.align.is_none() {
        spec.fill = spec.fill.or(Some('0'));
        spec.align = Some('=');
    }
    spec.width = cursor.number()?.unwrap_or(0);
    spec.group = [',', '_'].into_iter().find(|group| cursor.skip(*group));
    if cursor.skip('.') {
        let precision = cursor.number()?;
        spec.precision = Some(precision.ok_or_else(|| Error::new("a format has no digits after its `.`"))?);
    }
    let mut rest = cursor.0.chars();
    spec.kind = rest.next();
    if rest.next().is_some() {
        let mut message = String::new();
        let _ = write!(message, "`{}` is no format", brief(text));
        return Err(Error::new(message));
    }
    Ok(spec)
}
