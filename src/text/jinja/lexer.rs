//! Tokens of a template, with Jinja's rules for white space around tags: `trim_blocks` and `lstrip_blocks` are on.

use std::sync::Arc;

use super::{Error, Result};

#[derive(Debug, Clone, PartialEq)]
pub enum Token {
    /// Text outside tags.
    Text(String),
    /// `{{`
    PrintBegin,
    /// `}}`
    PrintEnd,
    /// `{%`
    TagBegin,
    /// `%}`
    TagEnd,
    Name(Arc<str>),
    Str(String),
    Int(i128),
    Float(f64),
    Op(&'static str),
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Text(_) => f.write_str("text"),
            Token::PrintBegin => f.write_str("`{{`"),
            Token::PrintEnd => f.write_str("`}}`"),
            Token::TagBegin => f.write_str("`{%`"),
            Token::TagEnd => f.write_str("`%}`"),
            Token::Name(name) => write!(f, "`{name}`"),
            Token::Str(_) => f.write_str("a string"),
            Token::Int(n) => write!(f, "`{n}`"),
            Token::Float(x) => write!(f, "`{x}`"),
            Token::Op(op) => write!(f, "`{op}`"),
        }
    }
}

/// Longer ones first.
const OPERATORS: [&str; 27] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";", "!",
];

/// Splits `source` into tokens with their lines.
pub fn lex(source: &str) -> Result<Vec<(Token, usize)>> {
    // Jinja reads every kind of line break as a line feed, and drops one at the end.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer { rest: source, line: 1, at_line_start: true, tokens: Vec::new() };
    lexer.root().map_err(|e| e.at(lexer.line))?;
    Ok(lexer.tokens)
}

struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    /// Whether the last tag, with the white space that it removes, ended with a line break.
    at_line_start: bool,
    tokens: Vec<(Token, usize)>,
}

impl<'a> Lexer<'a> {
    fn root(&mut self) -> Result<()> {
        while !self.rest.is_empty() {
            let bytes = self.rest.as_bytes();
            let begin = bytes.windows(2).position(|pair| matches!(pair, [b'{', b'{' | b'%' | b'#']));
            let Some(begin) = begin else {
                let text = self.advance(self.rest.len());
                self.push_text(text);
                return Ok(());
            };
            let kind = bytes[begin + 1];
            let sign = bytes.get(begin + 2).copied().filter(|sign| matches!(sign, b'-' | b'+'));
            let text = self.strip_before(begin, kind, sign);
            let line_of_text = self.line;
            self.advance(begin);
            if !text.is_empty() {
                self.tokens.push((Token::Text(text.to_string()), line_of_text));
            }
            self.advance(2 + usize::from(sign.is_some()));
            self.at_line_start = false;
            match kind {
                b'#' => self.comment()?,
                b'%' => match self.raw_begin() {
                    Some(n_bytes) => {
                        self.advance(n_bytes);
                        self.raw()?;
                    }
                    None => self.tag(Token::TagBegin, Token::TagEnd)?,
                },
                _ => self.tag(Token::PrintBegin, Token::PrintEnd)?,
            }
        }
        Ok(())
    }

    fn advance(&mut self, n_bytes: usize) -> &'a str {
        let (done, rest) = self.rest.split_at(n_bytes);
        self.line += done.bytes().filter(|byte| *byte == b'\n').count();
        self.rest = rest;
        done
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    fn push_text(&mut self, text: &str) {
        if !text.is_empty() {
            self.push(Token::Text(text.to_string()));
        }
    }

    /// The next `n_bytes` of text, without the white space that the tag after them removes.
    fn strip_before(&self, n_bytes: usize, kind: u8, sign: Option<u8>) -> &'a str {
        let text = &self.rest[..n_bytes];
        match sign {
            Some(b'-') => text.trim_end(),
            Some(_) => text,
            None if kind == b'{' => text,
            None => {
                let line = text.rfind('\n').map_or(0, |at| at + 1);
                let is_indent = (line > 0 || self.at_line_start) && text[line..].trim().is_empty();
                if is_indent { &text[..line] } else { text }
            }
        }
    }

    /// Skips the rest of a comment.
    fn comment(&mut self) -> Result<()> {
        let end = self.rest.find("#}").ok_or_else(|| Error::new("a comment has no end `#}`"))?;
        let sign = self.rest[..end].bytes().last();
        self.advance(end);
        self.end_tag("#}", sign, true);
        Ok(())
    }

    /// The length of the rest of `{% raw %}`, if it is that tag.
    fn raw_begin(&self) -> Option<usize> {
        let rest = self.rest.trim_start().strip_prefix("raw")?.trim_start();
        let rest = match rest.strip_prefix("-%}") {
            Some(rest) => rest.trim_start(),
            None => rest.strip_prefix("%}")?,
        };
        Some(self.rest.len() - rest.len())
    }

    /// Text up to `{% endraw %}`.
    fn raw(&mut self) -> Result<()> {
        let missing = || Error::new("`{% raw %}` has no end `{% endraw %}`");
        let mut from = 0;
        loop {
            let begin = from + self.rest[from..].find("{%").ok_or_else(missing)?;
            let sign =
                self.rest.as_bytes().get(begin + 2).copied().filter(|sign| matches!(sign, b'-' | b'+'));
            let inside = &self.rest[begin + 2 + usize::from(sign.is_some())..];
            let end = inside.trim_start().strip_prefix("endraw").map(str::trim_start);
            let end = end.and_then(|end| {
                let closing = end.strip_prefix(['-', '+']).unwrap_or(end);
                closing.starts_with("%}").then_some((end.as_bytes()[0], closing))
            });
            let Some((end_sign, closing)) = end else {
                from = begin + 2;
                continue;
            };
            let to_end = self.rest.len() - closing.len();
            let text = self.strip_before(begin, b'%', sign);
            self.push_text(text);
            self.advance(to_end);
            self.end_tag("%}", Some(end_sign), true);
            return Ok(());
        }
    }

    /// Skips the end of a tag with the white space after it that the tag removes.
    fn end_tag(&mut self, end: &str, sign: Option<u8>, trim: bool) {
        self.advance(end.len());
        let n_bytes = match sign {
            Some(b'-') => self.rest.len() - self.rest.trim_start().len(),
            Some(b'+') => 0,
            _ => usize::from(trim && self.rest.starts_with('\n')),
        };
        self.at_line_start = self.advance(n_bytes).ends_with('\n');
    }

    /// The tokens of a tag.
    fn tag(&mut self, begin: Token, end: Token) -> Result<()> {
        self.push(begin);
        let is_print = end == Token::PrintEnd;
        let delimiter = if is_print { "}}" } else { "%}" };
        let mut open: Vec<&'static str> = Vec::new();
        loop {
            self.advance(self.rest.len() - self.rest.trim_start().len());
            let Some(first) = self.rest.chars().next() else { return Ok(()) };
            if open.is_empty() {
                let sign =
                    self.rest.bytes().next().filter(|sign| *sign == b'-' || (*sign == b'+' && !is_print));
                let closing = &self.rest[usize::from(sign.is_some())..];
                if closing.starts_with(delimiter) {
                    self.push(end);
                    self.advance(usize::from(sign.is_some()));
                    self.end_tag(delimiter, sign, !is_print);
                    return Ok(());
                }
                if self.rest.starts_with(delimiter) {
                    self.push(end);
                    self.end_tag(delimiter, None, !is_print);
                    return Ok(());
                }
            }
            if first.is_ascii_digit() {
                self.number()?;
            } else if first == '\'' || first == '"' {
                self.string(first)?;
            } else if first.is_alphabetic() || first == '_' {
                let len =
                    self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
                let name = Token::Name(self.rest[..len].into());
                self.push(name);
                self.advance(len);
            } else {
                let op = OPERATORS.into_iter().find(|op| self.rest.starts_with(op));
                let op =
                    op.ok_or_else(|| Error::new(format!("unexpected character `{}`", first.escape_debug())))?;
                match op {
                    "(" => open.push(")"),
                    "[" => open.push("]"),
                    "{" => open.push("}"),
                    ")" | "]" | "}" => match open.pop() {
                        Some(expected) if expected != op => {
                            return Err(Error::new(format!("unexpected `{op}`, expected `{expected}`")));
                        }
                        Some(_) => {}
                        None => return Err(Error::new(format!("unexpected `{op}`"))),
                    },
                    _ => {}
                }
                self.push(Token::Op(op));
                self.advance(op.len());
            }
        }
    }

    fn number(&mut self) -> Result<()> {
        let bytes = self.rest.as_bytes();
        let radix = match bytes.get(1).map(u8::to_ascii_lowercase) {
            Some(b'x') if bytes[0] == b'0' => 16,
            Some(b'o') if bytes[0] == b'0' => 8,
            Some(b'b') if bytes[0] == b'0' => 2,
            _ => 10,
        };
        let digits = |from: usize, radix: u32| {
            let is_digit = |byte: &u8| *byte == b'_' || (*byte as char).is_digit(radix);
            from + bytes[from..].iter().take_while(|byte| is_digit(byte)).count()
        };
        if radix != 10 {
            let end = digits(2, radix);
            let text = self.rest[2..end].replace('_', "");
            let value = i128::from_str_radix(&text, radix);
            let value = value.map_err(|_| Error::new(format!("`{}` is not a number", &self.rest[..end])))?;
            self.push(Token::Int(value));
            self.advance(end);
            return Ok(());
        }
        let starts_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        let mut end = digits(0, 10);
        let mut is_float = false;
        // After a dot, a number is an index: `a.0.1`.
        let is_index = matches!(self.tokens.last(), Some((Token::Op("."), _)));
        if !is_index {
            if bytes.get(end) == Some(&b'.') && starts_digit(end + 1) {
                end = digits(end + 1, 10);
                is_float = true;
            }
            if matches!(bytes.get(end), Some(b'e' | b'E')) {
                let signed = end + 1 + usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
                if starts_digit(signed) {
                    end = digits(signed, 10);
                    is_float = true;
                }
            }
        }
        let text = self.rest[..end].replace('_', "");
        let wrong = || Error::new(format!("`{text}` is not a number"));
        if is_float {
            self.push(Token::Float(text.parse().map_err(|_| wrong())?));
        } else if text.len() > 1 && text.starts_with('0') && text.bytes().any(|byte| byte != b'0') {
            return Err(wrong());
        } else {
            let value = text.parse().map_err(|_| Error::limit("bits of an integer", 127))?;
            self.push(Token::Int(value));
        }
        self.advance(end);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let mut escaped = false;
        let end = self.rest[1..].find(|c: char| {
            let is_end = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            is_end
        });
        let end = 1 + end.ok_or_else(|| Error::new("a string has no end"))?;
        let text = unescape(&self.rest[1..end])?;
        self.push(Token::Str(text));
        self.advance(end + 1);
        Ok(())
    }
}

/// Replaces the escapes of a Python string.
fn unescape(text: &str) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        let Some(c) = rest.chars().next() else { break };
        let after = &rest[c.len_utf8()..];
        let simple = match c {
            '\n' => Some(""),
            '\\' => Some("\\"),
            '\'' => Some("'"),
            '"' => Some("\""),
            'a' => Some("\x07"),
            'b' => Some("\x08"),
            'f' => Some("\x0c"),
            'n' => Some("\n"),
            'r' => Some("\r"),
            't' => Some("\t"),
            'v' => Some("\x0b"),
            _ => None,
        };
        if let Some(simple) = simple {
            out.push_str(simple);
            rest = after;
            continue;
        }
        let n_digits = match c {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '0'..='7' => {
                let digits = rest.bytes().take(3).take_while(|byte| (b'0'..b'8').contains(byte)).count();
                out.extend(u32::from_str_radix(&rest[..digits], 8).ok().and_then(char::from_u32));
                rest = &rest[digits..];
                continue;
            }
            // Python keeps a backslash that begins no escape.
            _ => {
                out.push('\\');
                continue;
            }
        };
        let wrong = || {
            Error::new(format!("`\\{}` in a string is no character", rest.get(..=n_digits).unwrap_or(rest)))
        };
        let code = |text: &str| {
            let digits =
                text.get(..n_digits).filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u32::from_str_radix(digits, 16).ok()
        };
        let mut value = code(after).ok_or_else(wrong)?;
        rest = &after[n_digits..];
        if (0xd800..0xdc00).contains(&value) {
            // Two halves of a character, as JSON writes it.
            let low = rest.strip_prefix("\\u").and_then(code).filter(|low| (0xdc00..0xe000).contains(low));
            if let Some(low) = low {
                value = 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
                rest = &rest[6..];
            }
        }
        out.push(char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    out.push_str(rest);
    Ok(out)
}
