//! Calls of tools in a model's answer.

use serde_json::Value;

use super::Tokenizer;

/// A call of a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// The tool's name.
    pub name: String,
    /// Its arguments: a JSON object, as text.
    pub arguments: String,
}

/// A piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolDelta {
    /// A part of the text.
    Content(String),
    /// A whole call.
    Call(ToolCall),
}

/// How a model marks calls of tools. What is between the marks is a JSON object with `name` and `arguments` (or
/// `parameters`), or an array of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolFormat {
    /// Between two marks: Qwen2.5, Qwen3, SmolLM3, Hermes, Granite, Phi-4-mini.
    Tags {
        /// The mark before.
        open: &'static str,
        /// The mark after.
        close: &'static str,
    },
    /// From a mark to the end: Mistral.
    ToEnd {
        /// The mark before.
        open: &'static str,
    },
    /// The whole answer is one object: Llama 3.
    Bare,
}

const TAGS: [(&str, &str); 2] = [("<tool_call>", "</tool_call>"), ("<|tool_call|>", "<|/tool_call|>")];
const MISTRAL: &str = "[TOOL_CALLS]";
/// Mistral's newer models write `[TOOL_CALLS]name[ARGS]{…}`.
const ARGS: &str = "[ARGS]";
/// What a template of Llama 3 says of the form of a call.
const LLAMA: &str = "\"parameters\"";

impl ToolFormat {
    /// The format of a tokenizer's model, by the marks in its chat template; `None` if there are none.
    pub fn of(tokenizer: &Tokenizer) -> Option<ToolFormat> {
        let template = tokenizer.chat_template_source()?;
        if let Some((open, close)) = TAGS.into_iter().find(|(open, _)| template.contains(open)) {
            return Some(ToolFormat::Tags { open, close });
        }
        if template.contains(MISTRAL) {
            return Some(ToolFormat::ToEnd { open: MISTRAL });
        }
        (template.contains(LLAMA) && template.contains("tools")).then_some(ToolFormat::Bare)
    }

    /// Special tokens that the text must contain for a [`ToolParser`].
    pub fn special_tokens(self, tokenizer: &Tokenizer) -> Vec<u32> {
        let marks = match self {
            ToolFormat::Tags { open, close } => vec![open, close],
            ToolFormat::ToEnd { open } => vec![open, ARGS],
            ToolFormat::Bare => Vec::new(),
        };
        let ids = marks.into_iter().filter_map(|mark| tokenizer.token_to_id(mark));
        ids.filter(|id| tokenizer.is_special(*id)).collect()
    }
}

/// Separates calls from an answer that arrives in pieces. What may be a call is held back until that is decided. What
/// looks like a call and cannot be read is text.
pub struct ToolParser {
    format: ToolFormat,
    held: String,
    state: State,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    /// Nothing but white space so far.
    Begin,
    Text,
    /// After an opening mark, which is not in the held text.
    Call,
    /// Between calls, where white space is none of the answer.
    After,
}

impl ToolParser {
    /// A parser for an answer.
    pub fn new(format: ToolFormat) -> ToolParser {
        ToolParser { format, held: String::new(), state: State::Begin }
    }

    /// Takes the next piece of the answer. Returns what has become certain.
    pub fn push(&mut self, text: &str) -> Vec<ToolDelta> {
        self.held.push_str(text);
        let mut deltas = Vec::new();
        while self.step(&mut deltas) {}
        deltas
    }

    /// Returns what was held back, at the end of the answer.
    pub fn finish(&mut self) -> Vec<ToolDelta> {
        let held = std::mem::take(&mut self.held);
        let mut deltas = Vec::new();
        match (self.state, self.format) {
            // An answer may end before the mark does.
            (State::Call, ToolFormat::Tags { open, .. } | ToolFormat::ToEnd { open }) => {
                self.decide(&held, open, "", &mut deltas);
            }
            (State::Begin, ToolFormat::Bare) if held.trim_start().starts_with('{') => {
                self.decide(&held, "", "", &mut deltas);
            }
            (State::After, _) if held.trim().is_empty() => {}
            _ => content(held, &mut deltas),
        }
        deltas
    }

    /// Decides about a part of the held text. Returns whether another part may follow.
    fn step(&mut self, deltas: &mut Vec<ToolDelta>) -> bool {
        match (self.state, self.format) {
            (State::Call, ToolFormat::Tags { open, close }) => {
                let Some((call, rest)) = self.held.split_once(close) else { return false };
                let (call, rest) = (call.to_string(), rest.to_string());
                self.decide(&call, open, close, deltas);
                self.held = rest;
                true
            }
            (State::Call, _) => false,
            (State::Begin, ToolFormat::Bare) => {
                let begin = self.held.trim_start();
                if !begin.is_empty() && !begin.starts_with('{') {
                    self.state = State::Text;
                    return true;
                }
                false
            }
            (_, ToolFormat::Bare) => {
                content(std::mem::take(&mut self.held), deltas);
                false
            }
            (_, ToolFormat::Tags { open, .. } | ToolFormat::ToEnd { open }) => self.find(open, deltas),
        }
    }

    /// Looks for an opening mark. White space before it is none of the answer, so it is held back, as is what may be the
    /// beginning of a mark.
    fn find(&mut self, open: &str, deltas: &mut Vec<ToolDelta>) -> bool {
        let found = self.held.find(open);
        let is_open = |at: &usize| open.starts_with(&self.held[*at..]);
        let end = found.or_else(|| self.held.char_indices().map(|(at, _)| at).find(is_open));
        let n_certain = self.held[..end.unwrap_or(self.held.len())].trim_end().len();
        if n_certain > 0 {
            content(self.held.drain(..n_certain).collect(), deltas);
            self.state = State::Text;
        }
        if let Some(at) = found {
            self.held.drain(..at - n_certain + open.len());
            self.state = State::Call;
        }
        found.is_some()
    }

    /// Reads a call between its marks.
    fn decide(&mut self, call: &str, open: &str, close: &str, deltas: &mut Vec<ToolDelta>) {
        match read(call) {
            Some(calls) => {
                deltas.extend(calls.into_iter().map(ToolDelta::Call));
                self.state = State::After;
            }
            None => {
                content(format!("{open}{call}{close}"), deltas);
                self.state = State::Text;
            }
        }
    }
}

fn content(text: String, deltas: &mut Vec<ToolDelta>) {
    if !text.is_empty() {
        deltas.push(ToolDelta::Content(text));
    }
}

/// One or more calls.
fn read(text: &str) -> Option<Vec<ToolCall>> {
    let text = text.trim();
    if let Some((name, arguments)) = text.split_once(ARGS) {
        let arguments: Value = serde_json::from_str(arguments).ok()?;
        return Some(vec![of(name.trim(), &arguments)?]);
    }
    let value: Value = serde_json::from_str(text).ok()?;
    let calls: Vec<ToolCall> = match &value {
        Value::Array(values) => values.iter().map(call).collect::<Option<_>>()?,
        value => vec![call(value)?],
    };
    (!calls.is_empty()).then_some(calls)
}

fn call(value: &Value) -> Option<ToolCall> {
    let value = value.get("function").filter(|inner| inner.is_object()).unwrap_or(value);
    let none = Value::Object(serde_json::Map::new());
    let arguments = value.get("arguments").or_else(|| value.get("parameters")).unwrap_or(&none);
    of(value.get("name")?.as_str()?, arguments)
}

fn of(name: &str, arguments: &Value) -> Option<ToolCall> {
    let arguments = match arguments {
        Value::Object(_) => arguments.to_string(),
        // Some models write the object as a text.
        Value::String(text) if serde_json::from_str::<Value>(text).is_ok_and(|v| v.is_object()) => {
            text.clone()
        }
        _ => return None,
    };
    (!name.is_empty()).then(|| ToolCall { name: name.to_string(), arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGGED: ToolFormat = ToolFormat::Tags { open: TAGS[0].0, close: TAGS[0].1 };
    const TO_END: ToolFormat = ToolFormat::ToEnd { open: MISTRAL };

    fn parsed(format: ToolFormat, pieces: &[&str]) -> (String, Vec<(String, String)>) {
        let mut parser = ToolParser::new(format);
        let mut deltas: Vec<ToolDelta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        deltas.extend(parser.finish());
        let (mut text, mut calls) = (String::new(), Vec::new());
        for delta in deltas {
            match delta {
                ToolDelta::Content(piece) if piece.is_empty() => panic!("an empty piece"),
                ToolDelta::Content(piece) => text += &piece,
                ToolDelta::Call(ToolCall { name, arguments }) => calls.push((name, arguments)),
            }
        }
        (text, calls)
    }

    /// Checks a text in one piece, cut at every character into two, and character by character.
    #[track_caller]
    fn check(format: ToolFormat, text: &str, content: &str, calls: &[(&str, &str)]) {
        let calls: Vec<_> = calls.iter().map(|(name, args)| (name.to_string(), args.to_string())).collect();
        let expected = (content.to_string(), calls);
        assert_eq!(parsed(format, &[text]), expected, "{text:?}");
        for (at, _) in text.char_indices() {
            let (a, b) = text.split_at(at);
            assert_eq!(parsed(format, &[a, b]), expected, "{a:?} and {b:?}");
        }
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        assert_eq!(parsed(format, &chars), expected, "{text:?} by characters");
    }

    #[test]
    fn text_stays() {
        for format in [TAGGED, TO_END, ToolFormat::Bare] {
            check(format, "", "", &[]);
            check(
                format,
                "Hello, <world> [TOOL_ and <tool_cal.",
                "Hello, <world> [TOOL_ and <tool_cal.",
                &[],
            );
            check(format, "A line.\n\nAnd another. ", "A line.\n\nAnd another. ", &[]);
        }
    }

    #[test]
    fn calls_between_tags() {
        let one = r#"<tool_call>
{"name": "weather", "arguments": {"city": "Köln", "days": 2}}
</tool_call>"#;
        let args = r#"{"city":"Köln","days":2}"#;
        check(TAGGED, one, "", &[("weather", args)]);
        check(
            TAGGED,
            &format!("I look.\n\n{one}\n{one}\n"),
            "I look.",
            &[("weather", args), ("weather", args)],
        );
        check(TAGGED, "<tool_call>{\"name\":\"now\"}", "", &[("now", "{}")]);
        check(TAGGED, &format!("{one} Done."), " Done.", &[("weather", args)]);
        let list =
            r#"<tool_call>[{"name":"a","arguments":"{\"x\":1}"},{"name":"b","parameters":{}}]</tool_call>"#;
        check(TAGGED, list, "", &[("a", "{\"x\":1}"), ("b", "{}")]);
    }

    #[test]
    fn what_cannot_be_read_is_text() {
        for text in [
            "<tool_call>{\"name\": \"weather\", \"arguments\": {\"city\": </tool_call>",
            "<tool_call>\nweather(city)\n</tool_call> or so",
            "<tool_call>{\"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"a\", \"arguments\": 3}</tool_call>",
            "<tool_call>[]</tool_call>",
            "<tool_call>",
        ] {
            check(TAGGED, text, text, &[]);
        }
        check(ToolFormat::Bare, "{\"name\": 3} is no call", "{\"name\": 3} is no call", &[]);
    }

    #[test]
    fn mistral_and_llama() {
        check(
            TO_END,
            "[TOOL_CALLS][{\"name\":\"a\",\"arguments\":{\"x\":[1]}}]",
            "",
            &[("a", "{\"x\":[1]}")],
        );
        check(TO_END, "[TOOL_CALLS]a[ARGS]{\"x\": 1}", "", &[("a", "{\"x\":1}")]);
        check(ToolFormat::Bare, "\n{\"name\": \"a\", \"parameters\": {\"x\": 1}}", "", &[("a", "{\"x\":1}")]);
    }
}
