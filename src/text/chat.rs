//! Chat templates: Jinja, rendered as `transformers` does.

use std::collections::BTreeMap;
use std::io;

use minijinja::value::{Kwargs, Serde};
use minijinja::{AutoEscape, Environment, ErrorKind, Value, syntax::SyntaxConfig};
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;

use super::TextError;

const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }

    /// A system message, which sets the assistant's task.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// A user's message.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// A message of the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }
}

/// A compiled chat template, with the special tokens that it may name.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles `source`. The `special_tokens` (`bos_token`, `eos_token`, ...) are variables of the template.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] if `source` is not valid Jinja.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, TextError> {
        let syntax_error = |e: minijinja::Error| TextError::TemplateSyntax {
            line: e.line().unwrap_or(0),
            reason: reason(&e),
        };
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(syntax_error)?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let source = without_generation_tags(source);
        environment.add_template_owned(NAME, source).map_err(syntax_error)?;
        Ok(Self { environment, special_tokens })
    }

    /// Renders `messages` into a prompt. If `add_generation_prompt`, it ends with the start of the assistant's turn.
    ///
    /// `extra` holds further variables (`tools`, `enable_thinking`, ...), which replace others of the same name.
    ///
    /// # Errors
    /// [`TextError::TemplateRender`] if the template raises an exception or cannot be evaluated.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        // transformers always passes these two, and templates compare them with `none`.
        variables.insert("tools", Value::from(()));
        variables.insert("documents", Value::from(()));
        variables.extend(
            self.special_tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str()))),
        );
        variables.insert("messages", Value::from(Serde(messages)));
        variables.insert("add_generation_prompt", Value::from(add_generation_prompt));
        variables.extend(extra.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));

        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(variables));
        rendered.map_err(|e| TextError::TemplateRender { line: e.line().unwrap_or(0), reason: reason(&e) })
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("special_tokens", &self.special_tokens).finish_non_exhaustive()
    }
}

/// The message of a template error, without the kind and line that minijinja adds.
fn reason(error: &minijinja::Error) -> String {
    error.detail().map_or_else(|| error.kind().to_string(), str::to_string)
}

fn invalid(message: impl ToString) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, message.to_string())
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(invalid(message))
}

fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(format, &jiff::Zoned::now()).map_err(invalid)
}

/// Replaces `{% generation %}`, with which transformers marks the tokens to train on, by a condition that is always
/// true.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let (tag, after) = rest[start..].split_at(length + 2);
        out.push_str(&rest[..start]);
        match tag.trim_matches(['{', '%', '}', '-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// The `tojson` filter of `transformers`: Python's `json.dumps`, with `ensure_ascii` off by default.
fn to_json(value: Serde<serde_json::Value>, options: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<(String, String)> =
        options.get::<Option<Serde<(String, String)>>>("separators")?.map(|pair| pair.0);
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;

    // json.dumps writes no space after a comma if a line break follows.
    let (item, key) = separators
        .unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.to_string(), ": ".to_string()));
    let style =
        PythonStyle { item, key, indent, depth: 0, empty: true, ensure_ascii: ensure_ascii.unwrap_or(false) };
    let mut value = value.0;
    if sort_keys.unwrap_or(false) {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, style)).map_err(invalid)?;
    String::from_utf8(out).map_err(invalid)
}

/// JSON in the layout of Python's `json.dumps`.
struct PythonStyle {
    item: String,
    key: String,
    indent: Option<usize>,
    depth: usize,
    /// Whether the innermost array or object has no items yet: an empty one stays on its line.
    empty: bool,
    ensure_ascii: bool,
}

impl PythonStyle {
    fn open<W: ?Sized + io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        w.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, w: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.line_break(w)?;
        }
        self.empty = false;
        w.write_all(bracket)
    }

    fn next<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        if !first {
            w.write_all(self.item.as_bytes())?;
        }
        self.empty = false;
        self.line_break(w)
    }

    fn line_break<W: ?Sized + io::Write>(&self, w: &mut W) -> io::Result<()> {
        match self.indent {
            Some(width) => write!(w, "\n{:1$}", "", width * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for PythonStyle {
    fn write_f64<W: ?Sized + io::Write>(&mut self, w: &mut W, value: f64) -> io::Result<()> {
        // The digits are the same, but Python writes the exponent with a sign and at least two digits.
        let text = serde_json::Number::from_f64(value).map_or("NaN".to_string(), |n| n.to_string());
        match text.split_once('e').and_then(|(digits, e)| Some((digits, e.parse::<i32>().ok()?))) {
            Some((digits, e)) => write!(w, "{digits}e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()),
            None => w.write_all(text.as_bytes()),
        }
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, w: &mut W, text: &str) -> io::Result<()> {
        if !self.ensure_ascii {
            return w.write_all(text.as_bytes());
        }
        for c in text.chars() {
            if c.is_ascii() {
                write!(w, "{c}")?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(w, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.open(w, b"[")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.close(w, b"]")
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.open(w, b"{")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        self.next(w, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(self.key.as_bytes())
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, w: &mut W) -> io::Result<()> {
        self.close(w, b"}")
    }
}
