//! Instructions to a language model, and the prompts that they become.

use super::TaskError;
use super::write::Style;
use crate::engine::{Engine, Sampling};
use crate::text::{ChatTemplate, Message, ReasoningFormat, ReasoningOptions, TextError, Tokenizer};

/// A placeholder for the user's text while the template is rendered: private-use characters, which no text contains.
const PLACE: &str = "\u{e000}\u{e001}";

/// An instruction.
pub(super) struct Instruction<'a> {
    /// What the model should do: the system message.
    pub system: Option<&'a str>,
    /// The input: the user's message.
    pub user: &'a str,
    /// The text that a model without a chat template continues.
    pub cue: &'a str,
}

/// Makes prompts from instructions, which ask for as few thoughts as the model lets one choose: with the model's chat template, or as a text to continue if it has none.
pub(super) struct Prompter {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Whether the template takes a system message.
    has_system: bool,
}

impl Prompter {
    /// A prompter for the engine's model.
    ///
    /// # Errors
    /// [`TaskError::NoTokenizer`]; [`TextError`] if there is a template that is not valid, or fails.
    pub fn new(engine: &Engine) -> Result<Prompter, TaskError> {
        let no_tokenizer = || TaskError::NoTokenizer { model: engine.name().to_string() };
        let tokenizer = engine.tokenizer().ok_or_else(no_tokenizer)?.clone();
        let template = match tokenizer.chat_template() {
            Ok(template) => Some(template),
            Err(TextError::NoChatTemplate | TextError::NoDefaultTemplate { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let messages = [Message::system("a"), Message::user("b")];
        let has_system =
            match template.as_ref().map(|t| t.render(&messages, true, &ReasoningOptions::least())) {
                Some(Ok(_)) => true,
                None | Some(Err(TextError::TemplateRefused { .. })) => false,
                // No other failure says anything about system messages.
                Some(Err(error)) => return Err(error.into()),
            };
        Ok(Prompter { tokenizer, template, has_system })
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The tokens of a given answer after a prompt. If the model only continues text, the answer begins with a space.
    pub fn answer(&self, text: &str) -> Result<Vec<u32>, TaskError> {
        let text = if self.has_template() { text.to_string() } else { format!(" {text}") };
        Ok(self.tokenizer.encode_plain(&text)?)
    }

    /// How answers are generated. A model that only continues text would go on with the next paragraph.
    pub fn style(&self, sampling: Sampling, max_tokens: usize) -> Style {
        let stop = if self.has_template() { Vec::new() } else { vec!["\n\n".to_string()] };
        let format = ReasoningFormat::of(&self.tokenizer).filter(|_| self.has_template());
        Style { sampling, max_tokens, stop, reasoning: format.map(|format| (self.tokenizer.clone(), format)) }
    }

    /// The number of tokens of a text by itself.
    pub fn count(&self, text: &str) -> Result<usize, TaskError> {
        Ok(self.tokenizer.encode_plain(text)?.len())
    }

    /// The prompt. Names of special tokens in the instruction are ordinary characters.
    ///
    /// # Errors
    /// [`TextError`] of the template or the tokenizer.
    pub fn prompt(&self, instruction: &Instruction<'_>) -> Result<Vec<u32>, TaskError> {
        let Instruction { system, user, cue } = instruction;
        let joined = system.map(|system| format!("{system}\n\n{user}"));
        let Some(template) = &self.template else {
            let text = joined.as_deref().unwrap_or(user);
            let text = if cue.is_empty() { text.to_string() } else { format!("{text}\n\n{cue}") };
            return self.encode("", &text, "", true);
        };
        let render = |messages: &[Message]| template.render(messages, true, &ReasoningOptions::least());
        let (rendered, content) = match (system, joined) {
            (Some(system), _) if self.has_system => {
                (render(&[Message::system(*system), Message::user(PLACE)])?, user.to_string())
            }
            (_, Some(joined)) => (render(&[Message::user(PLACE)])?, joined),
            (_, None) => (render(&[Message::user(PLACE)])?, user.to_string()),
        };
        // If a template changes the user's text or repeats it, its parts cannot be separated from that text.
        let parts = rendered.split_once(PLACE).filter(|(_, after)| !after.contains(PLACE));
        let Some((before, after)) = parts else {
            let text = render(&[Message::user(content)])?;
            return Ok(self.tokenizer.encode(&text, false)?);
        };
        self.encode(before, &content, after, false)
    }

    /// Tokens of `content` between two pieces of a template.
    fn encode(
        &self,
        before: &str,
        content: &str,
        after: &str,
        add_special: bool,
    ) -> Result<Vec<u32>, TaskError> {
        let tokenizer = &self.tokenizer;
        let plain = tokenizer.encode_plain(content)?;
        if tokenizer.encode(content, false)? == plain {
            // With no special tokens in it, the whole is encoded at once, so that the seams are spelled as in training.
            return Ok(tokenizer.encode(&format!("{before}{content}{after}"), add_special)?);
        }
        let mut ids = tokenizer.encode(before, add_special)?;
        ids.extend(plain);
        ids.extend(tokenizer.encode(after, false)?);
        Ok(ids)
    }
}
