//! A conversation: messages, the model's chat template, and what fits the context.

use std::ops::ControlFlow;

use crate::engine::{Engine, EngineError, Event, FinishReason, Request, RequestId, Sampling, Timings, Usage};
use crate::text::{ChatTemplate, Message, Tokenizer};

/// Share of the context that is kept free for an answer of unknown length: one part in so many.
const ANSWER_SHARE: usize = 4;

/// A conversation with one model. It keeps the messages; the engine's prefix cache keeps what was computed
/// for them, so a turn costs what is new in it.
///
/// [`Chat::ask`] waits for the answer. A guest calls [`Chat::submit`], and hands the engine's events to
/// [`Chat::observe`].
pub struct Chat {
    template: ChatTemplate,
    tokenizer: Tokenizer,
    system: Option<String>,
    /// User and assistant in turns, oldest first.
    messages: Vec<Message>,
    /// The last prompt with its answer.
    said: Said,
    /// The answer on its way.
    pending: Option<Pending>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens of an answer at most; as many as the context holds without.
    pub max_tokens: Option<usize>,
    /// Texts that end an answer; they are not part of it.
    pub stop: Vec<String>,
}

/// A text with its tokens.
#[derive(Default)]
struct Said {
    text: String,
    ids: Vec<u32>,
}

struct Pending {
    id: RequestId,
    prompt: Said,
    answer: Said,
    n_dropped: usize,
}

/// A finished answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The answer.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Token counts: `cached_tokens` of the prompt were known from earlier turns.
    pub usage: Usage,
    /// Times.
    pub timings: Timings,
    /// Messages that were dropped, oldest first, because the conversation had outgrown the context.
    pub n_dropped: usize,
}

impl Chat {
    /// A conversation that has not begun, with the chat template that comes with the tokenizer.
    ///
    /// # Errors
    /// [`EngineError::Text`]: there is no template, or it is not valid.
    pub fn new(tokenizer: &Tokenizer, sampling: Sampling) -> Result<Chat, EngineError> {
        Ok(Chat {
            template: tokenizer.chat_template()?,
            tokenizer: tokenizer.clone(),
            system: None,
            messages: Vec::new(),
            said: Said::default(),
            pending: None,
            sampling,
            max_tokens: None,
            stop: Vec::new(),
        })
    }

    /// Sets the system message, or takes it away.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text;
    }

    /// The messages so far, the system message excepted.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// Forgets the messages, the system message excepted. An answer on its way is not heard any more.
    pub fn reset(&mut self) {
        self.messages.clear();
        self.said = Said::default();
        self.pending = None;
    }

    /// Adds what the user says and asks the engine for the answer. Where the conversation leaves too little
    /// room for one, its oldest turns are dropped. An answer still on its way is cancelled with its turn.
    ///
    /// # Errors
    /// [`EngineError::PromptTooLong`] if this message alone does not fit, and what the template and
    /// [`Engine::submit`] refuse: the message is not part of the conversation then.
    pub fn submit(&mut self, engine: &mut Engine, text: &str) -> Result<RequestId, EngineError> {
        if let Some(pending) = self.pending.take() {
            engine.cancel(pending.id);
            self.messages.pop();
        }
        self.messages.push(Message::user(text));
        let submitted = self.fit(engine.ctx()).and_then(|(prompt, n_dropped)| {
            let id = engine.submit(Request {
                sampling: self.sampling.clone(),
                max_tokens: self.max_tokens,
                stop: self.stop.clone(),
                ..Request::new(prompt.ids.clone())
            })?;
            self.pending = Some(Pending { id, prompt, answer: Said::default(), n_dropped });
            Ok(id)
        });
        if submitted.is_err() {
            self.messages.pop();
        }
        submitted
    }

    /// Takes in an event; `on_text` hears the text that came with it. The last one gives the reply. Events of
    /// other requests are passed over.
    ///
    /// # Errors
    /// What the request failed with: the turn is not part of the conversation then.
    pub fn observe(
        &mut self,
        event: Event,
        mut on_text: impl FnMut(&str),
    ) -> Result<Option<Reply>, EngineError> {
        let Some(mut pending) = self.pending.take() else { return Ok(None) };
        match event {
            Event::Token { id, token, text, .. } if id == pending.id => {
                on_text(&text);
                pending.answer.ids.push(token);
                pending.answer.text.push_str(&text);
            }
            Event::Failed { id, error } if id == pending.id => {
                self.messages.pop();
                return Err(error);
            }
            Event::Done { id, text, finish_reason, usage, timings, .. } if id == pending.id => {
                on_text(&text);
                pending.answer.text.push_str(&text);
                let n_dropped = pending.n_dropped;
                let text = pending.answer.text.clone();
                self.conclude(pending, finish_reason);
                return Ok(Some(Reply { text, finish_reason, usage, timings, n_dropped }));
            }
            _ => {}
        }
        self.pending = Some(pending);
        Ok(None)
    }

    /// Says `text` and waits for the reply. `on_text` hears it piece by piece, an empty one where nothing has
    /// come yet; at `Break` the answer ends with what is there.
    ///
    /// # Errors
    /// Those of [`Chat::submit`] and [`Chat::observe`], and [`EngineError::Gpu`].
    ///
    /// # Panics
    /// On an adopted device, whose host submits.
    pub fn ask(
        &mut self,
        engine: &mut Engine,
        text: &str,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply, EngineError> {
        let id = self.submit(engine, text)?;
        let mut flow = ControlFlow::Continue(());
        loop {
            let was_stopped = flow.is_break();
            if !was_stopped {
                flow = on_text("");
            }
            if flow.is_break() && !was_stopped {
                engine.cancel(id);
            }
            for event in engine.pump()? {
                let reply = self.observe(event, |text| {
                    // Text that was on its way when the answer was stopped is part of it.
                    if let ControlFlow::Break(()) = on_text(text) {
                        flow = ControlFlow::Break(());
                        engine.cancel(id);
                    }
                })?;
                if let Some(reply) = reply {
                    return Ok(reply);
                }
            }
        }
    }

    /// Makes the answer part of the conversation.
    fn conclude(&mut self, pending: Pending, finish_reason: FinishReason) {
        let Pending { mut prompt, answer, .. } = pending;
        if answer.text.is_empty() && finish_reason == FinishReason::Cancelled {
            self.messages.pop();
            return;
        }
        // A stop text is cut from the answer but not from its tokens.
        let are_same = self.tokenizer.decode(&answer.ids, true).is_ok_and(|text| text == answer.text);
        self.said = if are_same {
            prompt.text.push_str(&answer.text);
            prompt.ids.extend(answer.ids);
            prompt
        } else {
            Said::default()
        };
        self.messages.push(Message::assistant(answer.text));
    }

    /// The prompt, after dropping as many of the oldest turns as its length demands; and how many messages
    /// these were.
    fn fit(&mut self, ctx: usize) -> Result<(Said, usize), EngineError> {
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

    fn prompt(&self) -> Result<Said, EngineError> {
        let system = self.system.iter().map(Message::system);
        let all: Vec<Message> = system.chain(self.messages.iter().cloned()).collect();
        let text = self.template.render(&all, true, &serde_json::Map::new())?;
        let ids = self.encode(&text)?;
        Ok(Said { text, ids })
    }

    /// Tokens of a rendered conversation. Where it goes on from the last turn, that turn keeps the tokens it
    /// was computed with: the model may have spelled its answer otherwise than the tokenizer would, and then
    /// nothing in the cache would fit.
    fn encode(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let rest = text.strip_prefix(&self.said.text).filter(|_| !self.said.ids.is_empty());
        if let Some(rest) = rest {
            let new = self.tokenizer.encode(rest, false)?;
            // No word crosses a special token, so the two parts can be taken apart there.
            if new.first().is_some_and(|id| self.tokenizer.is_special(*id)) {
                return Ok(self.said.ids.iter().copied().chain(new).collect());
            }
        }
        Ok(self.tokenizer.encode(text, false)?)
    }
}
