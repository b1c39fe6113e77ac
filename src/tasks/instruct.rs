//! What tasks ask of a language model: an instruction becomes a prompt, prompts become a batch, and the batch texts.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::TaskError;
use crate::engine::{Engine, Event, FinishReason, Request, RequestId, Sampling, Usage};
use crate::text::{ChatTemplate, Message, TextError, Tokenizer};

/// Stands for the user's text while the template is rendered: characters for private use, so no text has them.
const PLACE: &str = "\u{e000}\u{e001}";

/// One thing to be done.
pub(super) struct Instruction<'a> {
    /// What the model shall do: the system message.
    pub system: Option<&'a str>,
    /// What it shall do it with: the user's message.
    pub user: &'a str,
    /// What a model without chat template is to go on from.
    pub cue: &'a str,
}

/// Makes prompts of instructions, as the model was trained for them: with its chat template, or as a text that is to
/// be continued if it has none.
pub(super) struct Prompter {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    /// Whether the template takes a system message.
    has_system: bool,
}

impl Prompter {
    /// For the engine's model.
    ///
    /// # Errors
    /// [`TaskError::NoTokenizer`]; [`TextError`] if there is a template that is not valid.
    pub fn new(engine: &Engine) -> Result<Prompter, TaskError> {
        let no_tokenizer = || TaskError::NoTokenizer { model: engine.name().to_string() };
        let tokenizer = engine.tokenizer().ok_or_else(no_tokenizer)?.clone();
        let template = match tokenizer.chat_template() {
            Ok(template) => Some(template),
            Err(TextError::NoChatTemplate | TextError::NoDefaultTemplate { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let has_system = template.as_ref().is_some_and(|template| {
            let messages = [Message::system("a"), Message::user("b")];
            template.render(&messages, true, &serde_json::Map::new()).is_ok()
        });
        Ok(Prompter { tokenizer, template, has_system })
    }

    /// Whether the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The tokens of a given answer behind a prompt: after a space where it continues a text.
    pub fn answer(&self, text: &str) -> Result<Vec<u32>, TaskError> {
        let text = if self.has_template() { text.to_string() } else { format!(" {text}") };
        Ok(self.tokenizer.encode_plain(&text)?)
    }

    /// Texts that end the model's answer: one that only continues texts goes on to the next paragraph.
    pub fn stop(&self) -> Vec<String> {
        if self.template.is_some() { Vec::new() } else { vec!["\n\n".to_string()] }
    }

    /// How many tokens a text has by itself.
    pub fn count(&self, text: &str) -> Result<usize, TaskError> {
        Ok(self.tokenizer.encode_plain(text)?.len())
    }

    /// The prompt. Special tokens that stand in the instruction are taken as ordinary characters.
    ///
    /// # Errors
    /// What the template or the tokenizer refuses.
    pub fn prompt(&self, instruction: &Instruction<'_>) -> Result<Vec<u32>, TaskError> {
        let Instruction { system, user, cue } = instruction;
        let joined = system.map(|system| format!("{system}\n\n{user}"));
        let Some(template) = &self.template else {
            let text = joined.as_deref().unwrap_or(user);
            let text = if cue.is_empty() { text.to_string() } else { format!("{text}\n\n{cue}") };
            return self.encode("", &text, "", true);
        };
        let render = |messages: &[Message]| template.render(messages, true, &serde_json::Map::new());
        let (rendered, content) = match (system, joined) {
            (Some(system), _) if self.has_system => {
                (render(&[Message::system(*system), Message::user(PLACE)])?, user.to_string())
            }
            (_, Some(joined)) => (render(&[Message::user(PLACE)])?, joined),
            (_, None) => (render(&[Message::user(PLACE)])?, user.to_string()),
        };
        // A template that changes what it is given, or leaves it out, cannot be told apart from the text.
        let Some((before, after)) = rendered.split_once(PLACE) else {
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
            // Nothing special in it: the whole is spelled as it was in training, over the seams too.
            return Ok(tokenizer.encode(&format!("{before}{content}{after}"), add_special)?);
        }
        let mut ids = tokenizer.encode(before, add_special)?;
        ids.extend(plain);
        ids.extend(tokenizer.encode(after, false)?);
        Ok(ids)
    }
}

/// What a task tells its caller on the way. The caller can end it at any of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Progress<'a> {
    /// A round begins.
    Round {
        /// Its number, from 1.
        round: usize,
        /// Pieces that are worked in it.
        n_pieces: usize,
        /// Tokens of their text.
        n_tokens: usize,
    },
    /// So much of the round is done. It is also told where nothing has changed, so that the caller can end the task.
    Done {
        /// Pieces that are done.
        n_done: usize,
        /// Pieces of the round.
        n_pieces: usize,
    },
    /// The next part of the final text.
    Text(&'a str),
}

/// Hears of progress.
pub type Observer<'a> = dyn FnMut(Progress<'_>) -> ControlFlow<()> + 'a;

/// How texts are written.
pub(super) struct Writing<'a> {
    pub sampling: &'a Sampling,
    pub max_tokens: usize,
    pub stop: &'a [String],
}

/// A finished text, without white space around it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub text: String,
    pub finish_reason: FinishReason,
    pub usage: Usage,
}

/// Writes the texts of several prompts in one batch, in their order.
///
/// # Errors
/// [`TaskError::Stopped`], and what a request is refused for or fails with: the others are cancelled then.
pub(super) fn write_all(
    engine: &mut Engine,
    prompts: Vec<Vec<u32>>,
    how: &Writing<'_>,
    on: &mut Observer<'_>,
) -> Result<Vec<Written>, TaskError> {
    let n_pieces = prompts.len();
    let mut n_done = 0;
    let (written, flow) = write(engine, prompts, how, &mut |event| {
        n_done += usize::from(matches!(event, Some(Event::Done { .. })));
        on(Progress::Done { n_done, n_pieces })
    })?;
    stopped(flow)?;
    Ok(written)
}

/// Writes the text of one prompt, telling it as it comes; a caller that stops it gets what is there.
///
/// # Errors
/// What the request is refused for or fails with.
pub(super) fn write_one(
    engine: &mut Engine,
    prompt: Vec<u32>,
    how: &Writing<'_>,
    on: &mut Observer<'_>,
) -> Result<Written, TaskError> {
    let mut held = String::new();
    let mut is_begun = false;
    let (written, _) = write(engine, vec![prompt], how, &mut |event| {
        // White space is told with what follows it, so that none is told before the text or behind it.
        if let Some(Event::Token { text, .. } | Event::Done { text, .. }) = event {
            held.push_str(text);
            let n = held.trim_end().len();
            if n > 0 {
                let rest = held.split_off(n);
                let text = std::mem::replace(&mut held, rest);
                let text = if is_begun { &text } else { text.trim_start() };
                is_begun = true;
                return on(Progress::Text(text));
            }
        }
        on(Progress::Done { n_done: 0, n_pieces: 1 })
    })?;
    written.into_iter().next().ok_or(TaskError::Stopped)
}

fn write(
    engine: &mut Engine,
    prompts: Vec<Vec<u32>>,
    how: &Writing<'_>,
    on: &mut dyn FnMut(Option<&Event>) -> ControlFlow<()>,
) -> Result<(Vec<Written>, ControlFlow<()>), TaskError> {
    let requests = prompts.into_iter().map(|prompt| Request {
        sampling: how.sampling.clone(),
        max_tokens: Some(how.max_tokens),
        stop: how.stop.to_vec(),
        ..Request::new(prompt)
    });
    let requests: Vec<Request> = requests.collect();
    let mut texts = vec![String::new(); requests.len()];
    let mut ends = vec![None; requests.len()];
    let flow = run(engine, requests, &mut |event| {
        match event {
            Some((i, Event::Token { text, .. })) => texts[i].push_str(text),
            Some((i, Event::Done { text, finish_reason, usage, .. })) => {
                texts[i].push_str(text);
                ends[i] = Some((*finish_reason, *usage));
            }
            _ => {}
        }
        on(event.map(|(_, event)| event))
    })?;
    let written = texts.iter().zip(ends).filter_map(|(text, end)| {
        let (finish_reason, usage) = end?;
        Some(Written { text: text.trim().to_string(), finish_reason, usage })
    });
    Ok((written.collect(), flow))
}

/// Runs requests in one batch until all are done. `on` hears each event with the number of its request, and nothing now
/// and then; at `Break` all are cancelled. Events of other requests are passed over.
///
/// # Errors
/// What a request is refused for or fails with: the others are cancelled then.
pub(super) fn run(
    engine: &mut Engine,
    requests: Vec<Request>,
    on: &mut dyn FnMut(Option<(usize, &Event)>) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, TaskError> {
    let mut ids: HashMap<RequestId, usize> = HashMap::new();
    let mut failed: Option<TaskError> = None;
    for (i, request) in requests.into_iter().enumerate() {
        match engine.submit(request) {
            Ok(id) => drop(ids.insert(id, i)),
            Err(error) => {
                failed = Some(error.into());
                break;
            }
        }
    }
    let mut flow = ControlFlow::Continue(());
    let mut is_cancelled = false;
    while !ids.is_empty() {
        if flow.is_continue() && failed.is_none() {
            flow = on(None);
        }
        if (flow.is_break() || failed.is_some()) && !is_cancelled {
            is_cancelled = true;
            ids.keys().for_each(|id| engine.cancel(*id));
        }
        for event in engine.pump()? {
            let id = event.request();
            let Some(i) = ids.get(&id).copied() else { continue };
            if matches!(event, Event::Done { .. } | Event::Failed { .. }) {
                ids.remove(&id);
            }
            match event {
                Event::Failed { error, .. } => failed = failed.or(Some(error.into())),
                _ if failed.is_some() => {}
                // What was on its way when the task was stopped is heard, too.
                event => {
                    if on(Some((i, &event))).is_break() {
                        flow = ControlFlow::Break(());
                    }
                }
            }
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(flow),
    }
}

/// Ends a task that its caller has stopped.
pub(super) fn stopped(flow: ControlFlow<()>) -> Result<(), TaskError> {
    if flow.is_break() { Err(TaskError::Stopped) } else { Ok(()) }
}

/// How many texts had no room to end.
pub(super) fn n_cut(written: &[Written]) -> usize {
    written.iter().filter(|written| written.finish_reason == FinishReason::Length).count()
}

/// Adds up token counts.
pub(super) fn add(sum: &mut Usage, usage: Usage) {
    sum.prompt_tokens += usage.prompt_tokens;
    sum.completion_tokens += usage.completion_tokens;
    sum.total_tokens += usage.total_tokens;
    sum.cached_tokens += usage.cached_tokens;
}
