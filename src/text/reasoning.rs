//! What a model thinks before it answers, apart from the answer.

use serde_json::{Map, Value};

use super::{ChatTemplate, TextError, Tokenizer};

/// A piece of a model's text, with OpenAI's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// A part of its thoughts.
    Reasoning(String),
    /// A part of the answer.
    Content(String),
}

/// How a model marks its thoughts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// A mark before the thoughts and one after them, both at the beginning of the text (DeepSeek-R1, Qwen3, SmolLM3).
    Tags {
        /// The mark before.
        open: &'static str,
        /// The mark after.
        close: &'static str,
    },
    /// Messages in channels, the format "harmony" of gpt-oss:
    /// `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…`.
    Channels,
}

const TAGS: [(&str, &str); 2] = [("<think>", "</think>"), ("[THINK]", "[/THINK]")];

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const CONSTRAIN: &str = "<|constrain|>";
const MESSAGE: &str = "<|message|>";
const END: &str = "<|end|>";
const RETURN: &str = "<|return|>";
const CALL: &str = "<|call|>";
/// In the header of a message, what comes before the name of the tool that it is for.
const RECIPIENT: &str = "to=";

/// What a header can begin with.
const HEADERS: [&str; 5] = [START, CHANNEL, CONSTRAIN, MESSAGE, RECIPIENT];
/// What ends a message.
const ENDS: [&str; 5] = [END, RETURN, CALL, START, CHANNEL];

/// Most bytes of a header with the mark after it. They have a role, a channel, and at most the name of a tool and of a type.
const MAX_HEADER: usize = 256;

/// Tokens at the end of a prompt that decide how the answer begins: a header, or a mark with some white space.
const PROMPT_END: usize = 64;

impl ReasoningFormat {
    /// The format of a tokenizer's model, by the marks in its vocabulary and its chat template; `None` if there are
    /// none.
    pub fn of(tokenizer: &Tokenizer) -> Option<ReasoningFormat> {
        let is_token = |mark: &str| tokenizer.token_to_id(mark).is_some();
        if is_token(CHANNEL) && is_token(MESSAGE) {
            return Some(ReasoningFormat::Channels);
        }
        let template = tokenizer.chat_template_source().unwrap_or_default();
        let is_used = |(open, close): &(&str, &str)| {
            is_token(close) || template.contains(open) || template.contains(close)
        };
        TAGS.into_iter().find(is_used).map(|(open, close)| ReasoningFormat::Tags { open, close })
    }

    /// Special tokens that the text must contain for a [`ReasoningParser`].
    pub fn special_tokens(self, tokenizer: &Tokenizer) -> Vec<u32> {
        let marks = match self {
            ReasoningFormat::Tags { open, close } => vec![open, close],
            ReasoningFormat::Channels => vec![START, CHANNEL, CONSTRAIN, MESSAGE, END, RETURN, CALL],
        };
        let ids = marks.into_iter().filter_map(|mark| tokenizer.token_to_id(mark));
        ids.filter(|id| tokenizer.is_special(*id)).collect()
    }
}

/// How much a model thinks before it answers, as far as its chat template lets one choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReasoningOptions {
    /// Whether it thinks. Default: the template's.
    pub enabled: Option<bool>,
    /// How much it thinks. Default: the template's.
    pub effort: Option<ReasoningEffort>,
}

/// How much a model thinks, with OpenAI's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningEffort {
    /// Least.
    Low,
    /// The default of gpt-oss.
    Medium,
    /// Most.
    High,
}

impl ReasoningEffort {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            ReasoningEffort::Low => "low",
            ReasoningEffort::Medium => "medium",
            ReasoningEffort::High => "high",
        }
    }
}

/// Variables that switch thoughts on and off: Qwen3's and SmolLM3's, then DeepSeek-V3.1's and Granite's.
const ENABLED: [&str; 2] = ["enable_thinking", "thinking"];
const EFFORT: [&str; 1] = ["reasoning_effort"];

impl ReasoningOptions {
    /// The variables that tell `template` so.
    ///
    /// # Errors
    /// [`TextError::VariableNotRead`] for an option that the template does not have.
    pub fn variables(self, template: &ChatTemplate) -> Result<Map<String, Value>, TextError> {
        let options = [
            (&ENABLED[..], self.enabled.map(Value::from)),
            (&EFFORT[..], self.effort.map(|effort| effort.as_str().into())),
        ];
        let mut variables = Map::new();
        for (names, value) in options {
            let Some(value) = value else { continue };
            let name = names.iter().find(|name| template.reads(name));
            let name = name.ok_or(TextError::VariableNotRead { name: names[0] })?;
            variables.insert(name.to_string(), value);
        }
        Ok(variables)
    }

    /// The variables with which any template makes a model think as little as it lets one choose.
    pub fn least() -> Map<String, Value> {
        let enabled = ENABLED.iter().map(|name| (name.to_string(), false.into()));
        let effort = EFFORT.iter().map(|name| (name.to_string(), ReasoningEffort::Low.as_str().into()));
        enabled.chain(effort).collect()
    }
}

/// Separates a text that arrives in pieces. What may be the beginning of a mark is held back until that is decided.
///
/// With tags, thoughts are what is between a mark at the beginning, or at the end of the prompt, and the first closing
/// mark. Marks in other places are text. With channels, the answer is the channel `final`, and of `commentary` the
/// messages that are for the user; calls of tools count as thoughts. Messages of one kind have an empty line between
/// them.
///
/// White space around thoughts is omitted, as are line breaks between thoughts and answer.
pub struct ReasoningParser {
    format: ReasoningFormat,
    state: State,
    /// Text that is not decided.
    held: String,
    /// White space after the last word of a thought: it may be the end.
    space: String,
    /// Whether the current thought or answer has text already.
    is_begun: bool,
    /// Whether line breaks at the beginning of the answer are omitted.
    trims: bool,
    /// Whether there were thoughts, and an answer.
    has: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// The beginning of a text, or the header of a message.
    Header,
    Reasoning,
    Content,
}

impl ReasoningParser {
    /// A parser for an answer to `prompt`.
    ///
    /// # Errors
    /// [`TextError::Decode`] for a prompt that the tokenizer's decoder refuses.
    pub fn after(
        tokenizer: &Tokenizer,
        format: ReasoningFormat,
        prompt: &[u32],
    ) -> Result<ReasoningParser, TextError> {
        let end = tokenizer.decode(&prompt[prompt.len().saturating_sub(PROMPT_END)..], false)?;
        Ok(ReasoningParser::new(format, &end))
    }

    /// A parser for an answer to a prompt that ends in `prompt`.
    pub fn new(format: ReasoningFormat, prompt: &str) -> ReasoningParser {
        let mut parser = ReasoningParser {
            format,
            state: State::Header,
            held: String::new(),
            space: String::new(),
            is_begun: false,
            trims: false,
            has: [false; 2],
        };
        match format {
            // In the middle of a prompt, it may be a word of the user.
            ReasoningFormat::Tags { open, .. } if prompt.trim_end().ends_with(open) => {
                parser.begin(State::Reasoning);
            }
            ReasoningFormat::Tags { .. } => {}
            ReasoningFormat::Channels => {
                let header = prompt.rfind(START).map_or("", |at| &prompt[at..]);
                if let Some((header, _)) = header.split_once(MESSAGE) {
                    parser.begin(kind(header));
                } else if let Some(at) = header.find(CHANNEL) {
                    parser.held = header[at..].to_string();
                }
            }
        }
        parser
    }

    /// Takes the next piece of the text. Returns what has become certain.
    pub fn push(&mut self, text: &str) -> Vec<Delta> {
        self.held.push_str(text);
        let mut deltas = Vec::new();
        while self.step(&mut deltas) {}
        deltas
    }

    /// Returns what was held back, at the end of the text.
    pub fn finish(&mut self) -> Vec<Delta> {
        let mut deltas = Vec::new();
        let held = std::mem::take(&mut self.held);
        // A header that has no end, or white space after a message.
        let is_none = [START, CHANNEL].iter().any(|mark| held.contains(mark)) || held.trim().is_empty();
        match self.state {
            State::Header if self.format == ReasoningFormat::Channels && is_none => {}
            State::Header => self.emit(State::Content, &held, &mut deltas),
            state => self.emit(state, &held, &mut deltas),
        }
        deltas
    }

    /// Whether the text so far ends within a thought.
    pub fn is_reasoning(&self) -> bool {
        self.state == State::Reasoning
    }

    /// Decides about a part of the held text. Returns whether another part may follow.
    fn step(&mut self, deltas: &mut Vec<Delta>) -> bool {
        let next = match (self.state, self.format) {
            (State::Header, ReasoningFormat::Tags { open, .. }) => {
                let text = self.held.trim_start();
                match text.strip_prefix(open) {
                    Some(rest) => Some((State::Reasoning, rest.to_string())),
                    None if open.starts_with(text) => None,
                    None => Some((State::Content, self.held.clone())),
                }
            }
            (State::Header, ReasoningFormat::Channels) => match is_header(&self.held) {
                None => None,
                Some(true) => {
                    let (header, rest) = self.held.split_once(MESSAGE).unwrap_or_default();
                    Some((kind(header), rest.to_string()))
                }
                Some(false) => {
                    // Even a mark at its beginning is text then.
                    let rest = self.held.split_off(self.held.chars().next().map_or(0, char::len_utf8));
                    let first = std::mem::replace(&mut self.held, rest);
                    self.begin(State::Content);
                    self.emit(State::Content, &first, deltas);
                    return true;
                }
            },
            (state @ State::Reasoning, ReasoningFormat::Tags { close, .. }) => {
                let at = self.emit_until(state, &[close], deltas);
                self.trims |= at.is_some();
                at.map(|mark| (State::Content, self.held[mark.len()..].to_string()))
            }
            (state @ State::Content, ReasoningFormat::Tags { .. }) => {
                self.emit_until(state, &[], deltas);
                None
            }
            (state, ReasoningFormat::Channels) => {
                let mark = self.emit_until(state, &ENDS, deltas);
                let is_header = |mark: &str| HEADERS.contains(&mark);
                mark.map(|mark| {
                    let n = if is_header(mark) { 0 } else { mark.len() };
                    (State::Header, self.held[n..].to_string())
                })
            }
        };
        let Some((state, rest)) = next else { return false };
        self.begin(state);
        self.held = rest;
        true
    }

    fn begin(&mut self, state: State) {
        self.state = state;
        self.is_begun = false;
        self.space.clear();
    }

    /// Emits the held text before the first of the marks, and returns that mark, with which the held text then begins.
    /// If there is none, keeps only what may be the beginning of one.
    fn emit_until(
        &mut self,
        state: State,
        marks: &[&'static str],
        deltas: &mut Vec<Delta>,
    ) -> Option<&'static str> {
        let found = marks.iter().filter_map(|mark| Some((self.held.find(mark)?, *mark))).min();
        let is_open = |at: &usize| marks.iter().any(|mark| mark.starts_with(&self.held[*at..]));
        let open = self.held.char_indices().map(|(at, _)| at).find(is_open).unwrap_or(self.held.len());
        let rest = self.held.split_off(found.map_or(open, |(at, _)| at));
        let text = std::mem::replace(&mut self.held, rest);
        self.emit(state, &text, deltas);
        found.map(|(_, mark)| mark)
    }

    fn emit(&mut self, state: State, text: &str, deltas: &mut Vec<Delta>) {
        let mut text = match state {
            State::Reasoning => {
                let mut text = std::mem::take(&mut self.space) + text;
                self.space = text.split_off(text.trim_end().len());
                if self.is_begun { text } else { text.trim_start().to_string() }
            }
            _ if self.trims && !self.is_begun => text.trim_start_matches(['\n', '\r']).to_string(),
            _ => text.to_string(),
        };
        if text.is_empty() {
            return;
        }
        let had = std::mem::replace(&mut self.has[usize::from(state == State::Content)], true);
        if had && !self.is_begun {
            text.insert_str(0, "\n\n");
        }
        self.is_begun = true;
        deltas.push(match state {
            State::Reasoning => Delta::Reasoning(text),
            _ => Delta::Content(text),
        });
    }
}

/// Whether a text begins with a header and the mark after it; `None` if that is not decided.
fn is_header(text: &str) -> Option<bool> {
    let begin = text.trim_start();
    if !HEADERS.iter().any(|mark| begin.starts_with(mark)) {
        return if HEADERS.iter().any(|mark| mark.starts_with(begin)) { None } else { Some(false) };
    }
    match text.find(MESSAGE) {
        Some(at) => Some(at + MESSAGE.len() <= MAX_HEADER),
        None if text.len() < MAX_HEADER => None,
        None => Some(false),
    }
}

/// What comes after a header.
fn kind(header: &str) -> State {
    let channel = header.rsplit_once(CHANNEL).map_or("final", |(_, channel)| channel);
    let name = channel.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or_default();
    match name {
        _ if header.contains(RECIPIENT) => State::Reasoning,
        "final" | "commentary" => State::Content,
        _ => State::Reasoning,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THINK: ReasoningFormat = ReasoningFormat::Tags { open: "<think>", close: "</think>" };
    use ReasoningFormat::Channels;

    /// The thoughts and the answer, and whether the text ended within a thought.
    fn parsed(parser: &mut ReasoningParser, pieces: &[&str]) -> (String, String, bool) {
        let mut deltas: Vec<Delta> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
        let is_open = parser.is_reasoning();
        deltas.extend(parser.finish());
        let (mut reasoning, mut content) = (String::new(), String::new());
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) | Delta::Content(text) if text.is_empty() => panic!("an empty piece"),
                Delta::Reasoning(text) => reasoning += &text,
                Delta::Content(text) => content += &text,
            }
        }
        (reasoning, content, is_open)
    }

    /// Checks a text in one piece, cut at every character into two, and character by character.
    #[track_caller]
    fn check(format: ReasoningFormat, prompt: &str, text: &str, reasoning: &str, content: &str) {
        let expected = |is_open| (reasoning.to_string(), content.to_string(), is_open);
        let whole = parsed(&mut ReasoningParser::new(format, prompt), &[text]);
        assert_eq!(whole, expected(whole.2), "{text:?} after {prompt:?}");
        for (at, _) in text.char_indices() {
            let (a, b) = text.split_at(at);
            let cut = parsed(&mut ReasoningParser::new(format, prompt), &[a, b]);
            assert_eq!(cut, whole, "{a:?} and {b:?} after {prompt:?}");
        }
        let chars: Vec<String> = text.chars().map(String::from).collect();
        let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
        assert_eq!(
            parsed(&mut ReasoningParser::new(format, prompt), &chars),
            whole,
            "{text:?} by characters"
        );
    }

    #[test]
    fn tags_are_separated_wherever_the_text_is_cut() {
        let user = "<|im_start|>assistant\n";
        let check = |prompt: &str, text: &str, reasoning: &str, content: &str| {
            check(THINK, prompt, text, reasoning, content)
        };
        check(
            user,
            "<think>\nTwo and two.\n\n  Four?\n</think>\n\nIt is 4.\n",
            "Two and two.\n\n  Four?",
            "It is 4.\n",
        );
        check(user, "\n <think>a</think>b", "a", "b");
        check(user, "<think>\n\n</think>\n\nYes.", "", "Yes.");
        check(user, "<think></think>", "", "");
        check(user, "Yes. <think>no</think> x", "", "Yes. <think>no</think> x");
        check(user, "  Yes.\n", "", "  Yes.\n");
        check(user, "<thin air", "", "<thin air");
        check(user, "<th", "", "<th");
        check(user, "", "", "");
        check(user, "a </think> b", "", "a </think> b");
        check(user, "<think>a<think>b</think>c</think>d", "a<think>b", "c</think>d");
        check(user, "<think>1 < 2 </thin </think>  x", "1 < 2 </thin", "  x");
        check(user, "<think>no end, né 猫 </th", "no end, né 猫 </th", "");
        check(user, "<think>a </think>\n\n    indented\n\nb", "a", "    indented\n\nb");
        // The template has opened it.
        check("<｜Assistant｜><think>\n", "Hm.\n</think>\n\nYes.", "Hm.", "Yes.");
        check("<think>", "<think>a</think>b", "<think>a", "b");
        check("<think>", "Hm. It", "Hm. It", "");
        // It has closed it, or a user speaks of it.
        check("<think>\n\n</think>\n\n", "Yes.", "", "Yes.");
        check("What is <think>?<|im_end|>\n<|im_start|>assistant\n", "A mark.", "", "A mark.");
    }

    #[test]
    fn channels_are_separated_wherever_the_text_is_cut() {
        let user = "<|start|>user<|message|>Hi<|end|><|start|>assistant";
        let check = |prompt: &str, text: &str, reasoning: &str, content: &str| {
            check(Channels, prompt, text, reasoning, content)
        };
        let (analysis, last) =
            ("<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>final<|message|>");
        check(user, &format!("{analysis}Greet. <|end|>{last}Hello!\n"), "Greet.", "Hello!\n");
        check(user, &format!("{analysis}Greet.<|end|>{last}Hello!<|return|>"), "Greet.", "Hello!");
        check(user, &format!("{analysis}a<|end|><|start|>assistant{analysis}b<|end|>{last}c"), "a\n\nb", "c");
        check(user, &format!("{analysis}a{last}b"), "a", "b");
        check(user, &format!("{analysis}a<|channel|>final<|message|>b"), "a", "b");
        check(user, "<|channel|>final<|message|>1 <|x|> 2 <|", "", "1 <|x|> 2 <|");
        // A preamble is for the user, a call of a tool is not.
        let preamble = "<|channel|>commentary<|message|>I look.<|end|>";
        let call = "<|start|>assistant<|channel|>commentary to=functions.look <|constrain|>json<|message|>{\"a\": 1}<|call|>";
        check(user, &format!("{preamble}{call}"), "{\"a\": 1}", "I look.");
        check(user, &format!("{preamble}{last}Seen."), "", "I look.\n\nSeen.");
        check(user, " to=functions.look<|channel|>commentary json<|message|>{}<|call|>", "{}", "");
        check(user, "<|channel|>thought<|message|>a", "a", "");
        // No channel, no header, and a header without an end.
        check(user, "<|message|>Hello!", "", "Hello!");
        check(user, "Hello, <|channel|>!", "", "Hello, ");
        check(user, "Hello", "", "Hello");
        check(user, "tomorrow", "", "tomorrow");
        check(user, "<|channel|>analy", "", "");
        check(user, &format!("{analysis}no end, né 猫"), "no end, né 猫", "");
        check(
            user,
            &format!("<|channel|>{}", "x".repeat(300)),
            "",
            &format!("<|channel|>{}", "x".repeat(300)),
        );
        // The template has begun the message.
        check(&format!("{user}<|channel|>final<|message|>"), "Hello!", "", "Hello!");
        check(&format!("{user}{analysis}"), "a<|end|>", "a", "");
        check(&format!("{user}<|channel|>"), "final<|message|>b", "", "b");
        check("", &format!("{analysis}a<|end|>{last}b"), "a", "b");
    }

    /// Whatever a model writes, the pieces in which it arrives do not count, and nothing is made up.
    #[test]
    fn any_order_of_marks_is_decided_alike_in_all_pieces() {
        let tags = ["<think>", "</think>", "a", "\n", " <", "é"];
        let channels = [START, "assistant", CHANNEL, "final", "analysis ", MESSAGE, END, " to=f", "\nb<"];
        let all = [(THINK, &tags[..], 5), (Channels, &channels[..], 4)];
        for (format, alphabet, n) in all {
            for prompt in ["", "<think>\n", "<|start|>assistant", "<|start|>assistant<|channel|>analysis"] {
                for i in 0..alphabet.len().pow(n) {
                    let word = |k| alphabet[i / alphabet.len().pow(k) % alphabet.len()];
                    let text: String = (0..n).map(word).collect();
                    let parser = || ReasoningParser::new(format, prompt);
                    let whole = parsed(&mut parser(), &[&text]);
                    let chars: Vec<String> = text.chars().map(String::from).collect();
                    let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
                    assert_eq!(parsed(&mut parser(), &chars), whole, "{text:?} after {prompt:?}");
                    // Between messages there may be more line breaks.
                    let n_letters = |text: &str| text.chars().filter(|c| !c.is_whitespace()).count();
                    assert!(n_letters(&whole.0) + n_letters(&whole.1) <= n_letters(&text), "{text:?}");
                }
            }
        }
    }

    #[test]
    fn the_end_within_a_thought_is_known() {
        let is_open = |format, text| parsed(&mut ReasoningParser::new(format, ""), &[text]).2;
        assert!(is_open(THINK, "<think>a"));
        assert!(!is_open(THINK, "<think>a</think>") && !is_open(THINK, "a") && !is_open(THINK, "<think"));
        assert!(is_open(Channels, "<|channel|>analysis<|message|>a"));
        assert!(!is_open(Channels, "<|channel|>analysis<|message|>a<|end|>"));
    }
}
