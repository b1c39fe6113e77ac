//! Chat templates: Jinja, rendered as `transformers` does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TextError;
use super::jinja::{Error, ErrorKind, Template};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// The text.
    pub content: String,
    /// What the model thought before it wrote the text. Templates decide whether it is part of a prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// Further fields that templates read, with OpenAI's names: `name`, `tool_call_id`, `tool_calls` (whose `arguments`
    /// templates expect as an object).
    #[serde(flatten)]
    pub extra: serde_json::Map<String, Value>,
}

impl Message {
    /// A message of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let (role, content) = (role.into(), content.into());
        Self { role, content, reasoning_content: None, extra: serde_json::Map::new() }
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
///
/// A template is a program from a file that nobody has checked. It cannot reach files, the network or other templates, and
/// what it may spend is limited. A template that exceeds a limit is refused with [`TextError::TemplateLimit`], which names
/// the limit. Templates of real models stay far below all of them.
///
/// | limit | value | exceeded by |
/// |---|---|---|
/// | source | 1 MiB | [`ChatTemplate::new`] |
/// | nesting of blocks, brackets and prefix operators in the source | 200 levels | [`ChatTemplate::new`] |
/// | operators, filters or subscripts in a row in one expression | 1000 | [`ChatTemplate::new`] |
/// | steps: expressions, statements, visited items, and each 64 bytes read or written | 10 million | [`ChatTemplate::render`] |
/// | all texts and lists made while rendering, also those no longer in use | 512 MiB | [`ChatTemplate::render`] |
/// | the prompt | 64 MiB | [`ChatTemplate::render`] |
/// | nested expressions, blocks, calls of macros and recursive loops | 1000 levels | [`ChatTemplate::render`] |
/// | nested lists and dicts, those of the variables included | 150 levels | [`ChatTemplate::render`] |
/// | items of a `range` | 100,000 | [`ChatTemplate::render`] |
/// | integers | 127 bits | both |
///
/// So a rendering ends within seconds, and its memory is of the order of the limit. The limits are counts, no times: a
/// conversation that is rendered on one machine is rendered on all. Both functions run on a short-lived thread
/// with a stack of its own, so they can be called from threads with a small one.
#[derive(Clone)]
pub struct ChatTemplate {
    template: Template,
    file: Option<String>,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles `source`. The `special_tokens` (`bos_token`, `eos_token`, ...) are variables of the template.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`] if `source` is not valid Jinja, [`TextError::TemplateLimit`] if it is too long or
    /// nested too deep.
    pub fn new(source: &str, special_tokens: BTreeMap<String, String>) -> Result<Self, TextError> {
        Self::compile(source, special_tokens, None)
    }

    /// As [`ChatTemplate::new`], for the template of `file`, which errors name.
    ///
    /// # Errors
    /// As [`ChatTemplate::new`].
    pub fn of_file(
        file: &str,
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, TextError> {
        Self::compile(source, special_tokens, Some(file.to_string()))
    }

    fn compile(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        file: Option<String>,
    ) -> Result<Self, TextError> {
        match Template::parse(source) {
            Ok(template) => Ok(Self { template, file, special_tokens }),
            Err(Error { line, kind: ErrorKind::Limit { what, limit } }) => {
                Err(TextError::TemplateLimit { file, line, what, limit })
            }
            Err(Error { line, kind: ErrorKind::Failed(reason) | ErrorKind::Raised(reason) }) => {
                Err(TextError::TemplateSyntax { file, line, reason })
            }
        }
    }

    /// Whether the template reads the variable `name`.
    pub fn reads(&self, name: &str) -> bool {
        self.template.reads(name)
    }

    /// Renders `messages` into a prompt. If `add_generation_prompt`, it ends with the start of the assistant's turn.
    ///
    /// `extra` holds further variables (`tools`, `enable_thinking`, ...), which replace others of the same name.
    ///
    /// # Errors
    /// [`TextError::TemplateRefused`] if the template raises an exception, [`TextError::TemplateRender`] if it cannot be
    /// evaluated or makes nothing but white space, [`TextError::TemplateLimit`] if it exceeds a limit.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        extra: &serde_json::Map<String, Value>,
    ) -> Result<String, TextError> {
        let file = || self.file.clone();
        let mut messages = serde_json::to_value(messages).map_err(|e| TextError::TemplateRender {
            file: file(),
            line: 0,
            reason: e.to_string(),
        })?;
        for message in messages.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
            // gpt-oss's name.
            if let Some(reasoning) = message.get("reasoning_content").cloned() {
                message.insert("thinking".into(), reasoning);
            }
        }
        let special_tokens: Vec<(&str, Value)> =
            self.special_tokens.iter().map(|(name, token)| (name.as_str(), token.as_str().into())).collect();
        let add_generation_prompt = add_generation_prompt.into();
        // transformers always passes these two, and templates compare them with `none`.
        let mut variables = vec![("tools", &Value::Null), ("documents", &Value::Null)];
        variables.extend(special_tokens.iter().map(|(name, token)| (*name, token)));
        variables.extend([("messages", &messages), ("add_generation_prompt", &add_generation_prompt)]);
        variables.extend(extra.iter().map(|(name, value)| (name.as_str(), value)));
        let rendered = self.template.render(&variables).map_err(|Error { line, kind }| match kind {
            ErrorKind::Failed(reason) => TextError::TemplateRender { file: file(), line, reason },
            ErrorKind::Raised(message) => TextError::TemplateRefused { file: file(), line, message },
            ErrorKind::Limit { what, limit } => TextError::TemplateLimit { file: file(), line, what, limit },
        })?;
        if rendered.trim().is_empty() {
            let reason = "expected a prompt, found nothing".into();
            return Err(TextError::TemplateRender { file: file(), line: 0, reason });
        }
        Ok(rendered)
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("special_tokens", &self.special_tokens).finish_non_exhaustive()
    }
}
