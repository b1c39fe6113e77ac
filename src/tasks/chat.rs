//! Chat: a conversation with messages, the model's chat template, and a limited context.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use super::task::{Engines, Events, Task, run};
use crate::engine::{Engine, EngineError, Event, FinishReason, Request, RequestId, Sampling, Timings, Usage};
use crate::text::{
    ChatTemplate, Delta, Message, ReasoningFormat, ReasoningOptions, ReasoningParser, Spelling, TextError,
    Tokenizer,
};

/// The context is divided by this for the part that is kept free for an answer of unknown length.
const ANSWER_SHARE: usize = 4;

/// A conversation with one model. It keeps the messages, and the engine's prefix cache keeps their keys and values, so
/// that a turn computes only what is new.
///
/// What the model thinks is apart from its answer, in the progress reports and in the [`Reply`]. The template decides
/// which thoughts of earlier turns are part of a prompt; mostly none is.
///
/// [`Chat::ask`] waits for the answer. A guest calls [`Chat::say`], and drives the answer like every [`Task`]. After it
/// has finished, the next turn can begin.
pub struct Chat {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    system: Option<String>,
    /// User and assistant alternately, oldest first.
    messages: Vec<Message>,
    /// The last prompt with its answer.
    said: Spelling,
    turn: Turn,
    /// Dropped requests, until they have ended.
    stale: Vec<RequestId>,
    /// How the model marks its thoughts, if it does.
    format: Option<ReasoningFormat>,
    /// Variables for the template.
    variables: serde_json::Map<String, serde_json::Value>,
    /// Pieces that have not been reported yet.
    progress: VecDeque<Delta>,
    /// Sampling parameters.
    pub sampling: Sampling,
    /// Most tokens of an answer. Default: as many as fit in the context.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer. They are not part of it.
    pub stop: Vec<String>,
}

/// The state of the last message.
enum Turn {
    /// There is none, or its reply has been taken.
    Idle,
    /// It has not been submitted.
    Said,
    /// The answer is being generated.
    Pending(Pending),
    Ended(Result<Reply, EngineError>),
}

struct Pending {
    id: RequestId,
    prompt: Spelling,
    /// The whole answer, with thoughts and their marks, and its tokens.
    answer: (String, Vec<u32>),
    parser: Option<ReasoningParser>,
    text: String,
    reasoning: String,
    n_dropped: usize,
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer, without thoughts.
    pub text: String,
    /// What the model thought, if it did.
    pub reasoning_content: Option<String>,
    /// Whether the answer ended within a thought.
    pub ends_in_reasoning: bool,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Token counts. `cached_tokens` of the prompt were computed in earlier turns.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
    /// Number of messages that were dropped, oldest first, because the conversation exceeded the context.
    pub n_dropped: usize,
}

impl Chat {
    /// A new conversation, with the tokenizer's chat template.
    ///
    /// # Errors
    /// [`EngineError::Text`] if there is no template, or it is invalid.
    pub fn new(tokenizer: &Tokenizer, sampling: Sampling) -> Result<Chat, EngineError> {
        Ok(Chat {
            template: tokenizer.chat_template()?,
            tokenizer: tokenizer.clone(),
            system: None,
            messages: Vec::new(),
            said: Spelling::default(),
            turn: Turn::Idle,
            stale: Vec::new(),
            format: ReasoningFormat::of(tokenizer),
            variables: serde_json::Map::new(),
            progress: VecDeque::new(),
            sampling,
            max_tokens: None,
            stop: Vec::new(),
        })
    }

    /// Sets or removes the system message.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text;
    }

    /// Sets how much the model thinks.
    ///
    /// # Errors
    /// [`TextError::VariableNotRead`] if the template does not let one choose. Nothing has changed then.
    pub fn set_reasoning(&mut self, options: ReasoningOptions) -> Result<(), TextError> {
        self.variables = options.variables(&self.template)?;
        Ok(())
    }

    /// The messages so far, without the system message.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Removes all messages but the system message. Drops an answer that is being generated.
    pub fn reset(&mut self) {
        self.withdraw();
        self.messages.clear();
        self.said = Spelling::default();
    }

    /// Adds a message of the user. The caller then drives the answer as a [`Task`]. If the conversation is too long for
    /// the context, its oldest turns are dropped. An answer that is still being generated is cancelled, and its turn
    /// removed.
    pub fn say(&mut self, text: &str) {
        self.withdraw();
        self.messages.push(Message::user(text));
        self.turn = Turn::Said;
    }

    /// Adds the message `text` and waits for the reply. Calls `on_piece` with each piece, and with `None`
    /// while nothing has arrived. On `Break`, the answer ends there.
    ///
    /// # Errors
    /// As [`Chat::finish`]; [`GpuError::Adopted`](crate::gpu::GpuError::Adopted) on an adopted device, where only the
    /// host submits.
    pub fn ask(
        &mut self,
        engine: &mut Engine,
        text: &str,
        mut on_piece: impl FnMut(Option<&Delta>) -> ControlFlow<()>,
    ) -> Result<Reply, EngineError> {
        self.say(text);
        run(self, &mut Engines::from(engine), |piece| on_piece(piece.as_ref()))
    }

    /// Removes a message that has no reply yet.
    fn withdraw(&mut self) {
        match std::mem::replace(&mut self.turn, Turn::Idle) {
            Turn::Idle | Turn::Ended(_) => {}
            Turn::Said => drop(self.messages.pop()),
            Turn::Pending(pending) => {
                self.stale.push(pending.id);
                self.messages.pop();
            }
        }
        self.progress.clear();
    }

    /// Submits the request for the answer.
    fn submit(&mut self, engine: &mut Engine) -> Result<Pending, EngineError> {
        let messages = self.messages.clone();
        let (prompt, n_dropped) = self.fit(engine.ctx())?;
        let parser = match self.format {
            Some(format) => Some(ReasoningParser::after(&self.tokenizer, format, &prompt.ids)?),
            None => None,
        };
        let id = engine.submit(Request {
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            shown_tokens: self.format.map_or(Vec::new(), |format| format.special_tokens(&self.tokenizer)),
            generated: prompt.generated.clone(),
            ..Request::new(prompt.ids.clone())
        });
        // A message that is refused takes no earlier ones with it.
        let id = id.inspect_err(|_| self.messages = messages)?;
        Ok(Pending {
            id,
            prompt,
            answer: <(String, Vec<u32>)>::default(),
            parser,
            text: String::new(),
            reasoning: String::new(),
            n_dropped,
        })
    }

    /// Handles an event of the answer's request.
    fn take(&mut self, mut pending: Pending, event: Event) -> Turn {
        match event {
            Event::Token { token, text, .. } => {
                pending.answer.1.push(token);
                self.hear(&mut pending, text);
                Turn::Pending(pending)
            }
            Event::Failed { error, .. } => {
                self.messages.pop();
                Turn::Ended(Err(error))
            }
            Event::Done { text, finish_reason, usage, timings, .. } => {
                self.hear(&mut pending, text);
                let ends_in_reasoning = pending.parser.as_ref().is_some_and(ReasoningParser::is_reasoning);
                let rest = pending.parser.as_mut().map_or(Vec::new(), ReasoningParser::finish);
                self.report(&mut pending, rest);
                let n_dropped = pending.n_dropped;
                let message = self.conclude(pending, finish_reason);
                let Message { content: text, reasoning_content, .. } = message;
                Turn::Ended(Ok(Reply {
                    text,
                    reasoning_content,
                    ends_in_reasoning,
                    finish_reason,
                    usage,
                    timings,
                    n_dropped,
                }))
            }
            _ => Turn::Pending(pending),
        }
    }

    fn hear(&mut self, pending: &mut Pending, text: String) {
        pending.answer.0.push_str(&text);
        let pieces = match &mut pending.parser {
            Some(parser) => parser.push(&text),
            None if text.is_empty() => Vec::new(),
            None => vec![Delta::Content(text)],
        };
        self.report(pending, pieces);
    }

    fn report(&mut self, pending: &mut Pending, pieces: Vec<Delta>) {
        for piece in &pieces {
            match piece {
                Delta::Reasoning(text) => pending.reasoning.push_str(text),
                Delta::Content(text) => pending.text.push_str(text),
            }
        }
        self.progress.extend(pieces);
    }

    /// Adds the answer to the conversation, and returns it.
    fn conclude(&mut self, pending: Pending, finish_reason: FinishReason) -> Message {
        let Pending { prompt, answer: (whole, ids), text, reasoning, .. } = pending;
        let reasoning_content = (!reasoning.is_empty()).then_some(reasoning);
        let message = Message { reasoning_content, ..Message::assistant(text) };
        if whole.is_empty() && finish_reason == FinishReason::Cancelled {
            self.messages.pop();
            return message;
        }
        self.said = prompt.answered(&self.tokenizer, &whole, &ids).unwrap_or_default();
        self.messages.push(message.clone());
        message
    }

    /// The prompt, after dropping as many of the oldest turns as necessary, and the number of dropped messages.
    fn fit(&mut self, ctx: usize) -> Result<(Spelling, usize), EngineError> {
        let room = self.max_tokens.unwrap_or(usize::MAX).min(ctx / ANSWER_SHARE).max(1);
        let mut n_dropped = 0;
        loop {
            let prompt = self.prompt()?;
            if prompt.ids.len() + room <= ctx || self.messages.len() <= 1 {
                return Ok((prompt, n_dropped));
            }
            let n = self.messages.len().min(2);
            self.messages.drain(..n);
            n_dropped += n;
        }
    }

    fn prompt(&self) -> Result<Spelling, EngineError> {
        let system = self.system.iter().map(Message::system);
        let all: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let text = self.template.render(&all, true, &self.variables)?;
        Ok(Spelling::of(&self.tokenizer, text, [&self.said])?)
    }
}

impl Task for Chat {
    type Output = Reply;
    type Error = EngineError;
    type Progress = Delta;

    fn advance(&mut self, engines: &mut Engines<'_>) {
        let engine = match engines.language() {
            Ok(engine) => engine,
            Err(error) => {
                if !self.is_done() {
                    self.withdraw();
                    self.turn = Turn::Ended(Err(error));
                }
                return;
            }
        };
        self.stale.iter().for_each(|id| engine.cancel(*id));
        if matches!(self.turn, Turn::Said) && engine.has_room() {
            self.turn = match self.submit(engine) {
                Ok(pending) => Turn::Pending(pending),
                Err(error) => {
                    self.messages.pop();
                    Turn::Ended(Err(error))
                }
            };
        }
    }

    fn observe(&mut self, events: &mut Events) {
        for event in events.take(|id| self.stale.contains(&id)) {
            if let Event::Done { id, .. } | Event::Failed { id, .. } = event {
                self.stale.retain(|stale| *stale != id);
            }
        }
        let Turn::Pending(Pending { id, .. }) = self.turn else { return };
        for event in events.take(|of| of == id) {
            self.turn = match std::mem::replace(&mut self.turn, Turn::Idle) {
                Turn::Pending(pending) => self.take(pending, event),
                turn => turn,
            };
        }
    }

    /// The next part of the thoughts or of the answer.
    fn progress(&mut self) -> Option<Delta> {
        self.progress.pop_front()
    }

    /// Ends the answer here.
    fn cancel(&mut self, engines: &mut Engines<'_>) {
        match (&self.turn, engines.language()) {
            (Turn::Pending(pending), Ok(engine)) => engine.cancel(pending.id),
            (Turn::Said, _) => {
                self.withdraw();
                self.turn = Turn::Ended(Ok(Reply {
                    text: String::new(),
                    reasoning_content: None,
                    ends_in_reasoning: false,
                    finish_reason: FinishReason::Cancelled,
                    usage: Usage::default(),
                    timings: Timings::default(),
                    n_dropped: 0,
                }));
            }
            _ => {}
        }
    }

    fn is_done(&self) -> bool {
        !matches!(self.turn, Turn::Said | Turn::Pending(_))
    }

    /// The reply.
    ///
    /// # Errors
    /// [`EngineError::PromptTooLong`] if the last message does not fit in the context; those of the template, of
    /// [`Engine::submit`] and of the request. In these cases the message is not part of the conversation.
    /// [`EngineError::EmptyPrompt`] if there is no message.
    fn finish(&mut self) -> Result<Reply, EngineError> {
        match std::mem::replace(&mut self.turn, Turn::Idle) {
            Turn::Ended(result) => result,
            turn => {
                self.turn = turn;
                Err(EngineError::EmptyPrompt)
            }
        }
    }
}
