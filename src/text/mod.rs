//! Layer 2: text to token ids and back, and messages to prompts. No GPU.
//!
//! [`Tokenizer`] holds the content of a checkpoint's text files: `tokenizer.json`, the special tokens, the ids that end
//! a text, the chat template. [`StreamDecoder`] turns ids into text as they arrive. [`ChatTemplate`] renders a
//! conversation into a prompt in the format that the model was trained on. [`ReasoningParser`] separates what a model
//! thinks from its answer.
//!
//! The reference is transformers 5 with the same files (`AutoTokenizer`, `apply_chat_template`). `tokenizer_json` reads
//! and checks `tokenizer.json`, `auto_tokenizer` decides what the other files change in it, `pipeline` runs its steps
//! within limits.

mod auto_tokenizer;
mod chat;
mod jinja;
mod pipeline;
mod reasoning;
mod spelling;
mod stream;
mod tokenizer;
mod tokenizer_json;
mod tools;

pub use chat::{ChatTemplate, Message};
pub use reasoning::{Delta, ReasoningEffort, ReasoningFormat, ReasoningOptions, ReasoningParser};
pub use spelling::Spelling;
pub use stream::StreamDecoder;
pub use tokenizer::{Pair, Tokenizer, TokenizerFiles};
pub use tools::{ToolCall, ToolDelta, ToolFormat, ToolParser};

use std::path::PathBuf;

/// An error in a checkpoint's text files, or in a text.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// A folder has no `tokenizer.json`.
    #[error("no tokenizer in `{}`: expected `tokenizer.json`, found {}", dir.display(), listed(found))]
    NoTokenizer {
        /// The folder.
        dir: PathBuf,
        /// Vocabulary files of other formats that are there.
        found: Vec<String>,
    },
    /// Only the headers of the model are open.
    #[error("the tokenizer is not open, only the headers of the model are")]
    NotOpened,
    /// A file has other content than its name promises.
    #[error("`{file}` is not valid: expected {expected}, found {found}")]
    File {
        /// The file's name.
        file: String,
        /// What it should hold.
        expected: &'static str,
        /// What it holds, or the parser's message.
        found: String,
    },
    /// A field of a JSON file has the wrong type.
    #[error("field `{field}` of `{file}`: expected {expected}, found `{found}`")]
    Field {
        /// The file's name.
        file: String,
        /// The field's name.
        field: &'static str,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        found: String,
    },
    /// A key of a JSON file has a value that cannot be right.
    #[error("`{key}` of `{file}`: expected {expected}, found {found}")]
    Key {
        /// The file's name.
        file: &'static str,
        /// The key, with those of the objects around it.
        key: Box<str>,
        /// What it should hold.
        expected: Box<str>,
        /// What it holds.
        found: String,
    },
    /// The metadata of a GGUF file describe no tokenizer that runs here.
    #[error("`{key}` is {found}, expected {expected}")]
    Metadata {
        /// The key.
        key: String,
        /// What it should hold.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// A text cannot be turned into ids.
    #[error("the tokenizer of the model fails on a text of {n_bytes} bytes: {reason}")]
    Encode {
        /// The text's length.
        n_bytes: usize,
        /// The tokenizer's message.
        reason: String,
    },
    /// Ids cannot be turned into text.
    #[error("the tokenizer of the model fails on {n_tokens} token ids: {reason}")]
    Decode {
        /// The number of ids.
        n_tokens: usize,
        /// The tokenizer's message.
        reason: String,
    },
    /// The tokenizer does not say what is around the texts of a pair.
    #[error(
        "the tokenizer takes no pairs of texts: expected `pair` in `post_processor` of `tokenizer.json`, found none"
    )]
    NoPairs,
    /// The checkpoint has no chat template.
    #[error(
        "no chat template: expected `chat_template.jinja` or `chat_template` in `tokenizer_config.json`, found none"
    )]
    NoChatTemplate,
    /// The checkpoint lists chat templates, but none is named `default`.
    #[error("no default chat template: expected one named `default`, found {}", listed(found))]
    NoDefaultTemplate {
        /// The names that are there.
        found: Vec<String>,
    },
    /// The chat template is not valid Jinja.
    #[error("the chat template{} has an error{}: {reason}", of(file), in_line(*line))]
    TemplateSyntax {
        /// The file that it is from, if that is known.
        file: Option<String>,
        /// The line in the template. 0 is unknown.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// The chat template failed on the conversation.
    #[error("the chat template{} failed{}: {reason}", of(file), in_line(*line))]
    TemplateRender {
        /// The file that it is from, if that is known.
        file: Option<String>,
        /// The line in the template. 0 is unknown.
        line: usize,
        /// What went wrong.
        reason: String,
    },
    /// The chat template refused the conversation: it called `raise_exception`.
    #[error("the chat template{} refused the conversation{}: {message}", of(file), in_line(*line))]
    TemplateRefused {
        /// The file that it is from, if that is known.
        file: Option<String>,
        /// The line in the template. 0 is unknown.
        line: usize,
        /// The template's own message.
        message: String,
    },
    /// The chat template has no such option.
    #[error("the chat template does not read `{name}`")]
    VariableNotRead {
        /// The variable.
        name: &'static str,
    },
    /// The chat template spends more than templates may: see [`ChatTemplate`].
    #[error("the chat template{} exceeds a limit{}: expected at most {limit} {what}", of(file), in_line(*line))]
    TemplateLimit {
        /// The file that it is from, if that is known.
        file: Option<String>,
        /// The line in the template. 0 is unknown.
        line: usize,
        /// What is limited, with its unit.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl TextError {
    /// Advice for the user, if there is any.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoTokenizer { found, .. } if found.is_empty() => {
                "point to the folder that holds the whole checkpoint, `tokenizer.json` included"
            }
            Self::NoTokenizer { .. } => {
                "convert it in Python: `AutoTokenizer.from_pretrained(dir).save_pretrained(dir)` writes `tokenizer.json`"
            }
            Self::Key { .. } | Self::Field { .. } => {
                "the file may be damaged, or of a newer format: fetch it again"
            }
            Self::File { .. } => {
                "the file may have been cut off or replaced by a Git LFS pointer: fetch it again"
            }
            Self::Metadata { .. } => {
                "the folder that the file was made from may have a `tokenizer.json`: open that folder"
            }
            Self::Encode { .. } | Self::Decode { .. } => "`tokenizer.json` may be damaged: fetch it again",
            Self::NoChatTemplate | Self::NoDefaultTemplate { .. } => {
                "a base model continues text; choose a model tuned for conversation"
            }
            Self::TemplateRefused { message, .. } if message.to_lowercase().contains("system") => {
                "the model was trained without system messages, or wants them elsewhere"
            }
            Self::TemplateRefused { message, .. } if message.to_lowercase().contains("alternat") => {
                "the model was trained on messages of user and assistant in turn"
            }
            Self::TemplateLimit { .. } => {
                "templates of real models need far less: this one is broken, or made to do harm"
            }
            _ => return None,
        };
        Some(hint.to_string())
    }
}

/// Names in backticks, separated by commas, or the word `none`.
fn listed(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_string();
    }
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// The file of a template in a message.
fn of(file: &Option<String>) -> String {
    file.as_ref().map_or_else(String::new, |file| format!(" of `{file}`"))
}

/// The line of a template in a message.
fn in_line(line: usize) -> String {
    if line == 0 { String::new() } else { format!(" in line {line}") }
}
