//! `/v1/chat/completions`.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use wginfer::checkpoint::Ability;
use wginfer::engine::Request;
use wginfer::text::{
    Delta, Message, ReasoningEffort, ReasoningOptions, ReasoningParser, Spelling, ToolCall, ToolDelta,
    ToolFormat, ToolParser,
};

use super::Server;
use super::error::ApiError;
use super::generation::{Ending, Generation, Piece, accepted};
use super::http::Body;
use super::model::{Info, Message as Sent, Model, Running};
use super::schema::{
    Completion, ContentLogprob, SamplingFields, TimingFields, UsageFields, check_logprobs, nth, reason,
};
use super::stream::{self, id, now};

/// A request. Fields that are not here are ignored, as far as they do not change what an answer is.
#[derive(Deserialize)]
pub struct ChatRequest {
    pub model: Option<String>,
    pub messages: Vec<Value>,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<bool>,
    top_logprobs: Option<usize>,
    pub tools: Option<Vec<Value>>,
    pub tool_choice: Option<Value>,
    response_format: Option<Value>,
    pub reasoning_effort: Option<String>,
    pub chat_template_kwargs: Option<Map<String, Value>>,
    #[serde(flatten)]
    sampling: SamplingFields,
}

#[derive(Deserialize)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// A rendered conversation.
pub struct Prompt {
    pub spelling: Spelling,
    /// The format of calls, if there are tools.
    tools: Option<ToolFormat>,
}

impl ChatRequest {
    /// Renders the messages into a prompt, and the prompt into tokens.
    ///
    /// # Errors
    /// 400 for what is wrong with the messages.
    pub fn prompt(&self, model: &Model) -> Result<Prompt, ApiError> {
        let info = &model.info;
        let tokenizer = info.tokenizer()?;
        let template = info.template.as_ref().map_err(|error| ApiError::from(error.clone()))?;
        if self.messages.is_empty() {
            return Err(ApiError::field("messages", "`messages` is empty, expected at least one message"));
        }
        let messages: Vec<Message> = self
            .messages
            .iter()
            .enumerate()
            .map(|(i, message)| read(i, message))
            .collect::<Result<_, _>>()?;
        let mut variables = self.thoughts().variables(template).unwrap_or_default();
        variables.extend(self.chat_template_kwargs.clone().unwrap_or_default());
        let tools = self.offered()?;
        if let Some(tools) = &tools {
            variables.insert("tools".into(), Value::Array(tools.clone()));
        }
        let text = template.render(&messages, true, &variables)?;
        let spelling = model.kept.spell(tokenizer, text)?;
        Ok(Prompt { spelling, tools: tools.and_then(|_| ToolFormat::of(tokenizer)) })
    }

    /// How much the model should think. A template that does not let one choose is left alone.
    fn thoughts(&self) -> ReasoningOptions {
        let effort = match self.reasoning_effort.as_deref() {
            None => return ReasoningOptions::default(),
            Some("none" | "minimal") => return ReasoningOptions { enabled: Some(false), effort: None },
            Some("low") => ReasoningEffort::Low,
            Some("medium") => ReasoningEffort::Medium,
            Some(_) => ReasoningEffort::High,
        };
        ReasoningOptions { enabled: None, effort: Some(effort) }
    }

    /// The tools that the model may call.
    fn offered(&self) -> Result<Option<Vec<Value>>, ApiError> {
        let Some(tools) = self.tools.as_ref().filter(|tools| !tools.is_empty()) else { return Ok(None) };
        let name = |tool: &Value| tool["function"]["name"].as_str().map(String::from);
        for (i, tool) in tools.iter().enumerate() {
            if tool["type"] != "function" || name(tool).is_none() {
                let message = format!("`tools[{i}]` is no function with a name");
                return Err(ApiError::field("tools", message));
            }
        }
        match &self.tool_choice {
            None | Some(Value::Null) => Ok(Some(tools.clone())),
            Some(Value::String(choice)) if choice == "none" => Ok(None),
            Some(Value::String(choice)) if choice == "auto" => Ok(Some(tools.clone())),
            Some(choice) => {
                let message = format!(
                    "`tool_choice` is `{choice}`, expected `auto` or `none`: answers cannot be constrained yet"
                );
                Err(ApiError::field("tool_choice", message))
            }
        }
    }

    /// Number of log-probabilities for each token, if they are wanted.
    fn logprobs(&self) -> Result<Option<usize>, ApiError> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (true, n) => check_logprobs("top_logprobs", n.unwrap_or(0)).map(Some),
            (false, None | Some(0)) => Ok(None),
            (false, Some(_)) => Err(ApiError::field("top_logprobs", "`top_logprobs` needs `logprobs`")),
        }
    }

    /// Refuses what would change the answer and is not done.
    fn check(&self) -> Result<(), ApiError> {
        match self.response_format.as_ref().and_then(|format| format["type"].as_str()) {
            None | Some("text") => Ok(()),
            Some(found) => {
                let message = format!(
                    "`response_format` is `{found}`, expected `text`: answers cannot be constrained yet"
                );
                Err(ApiError::field("response_format", message))
            }
        }
    }
}

/// Reads a message of a request.
fn read(i: usize, message: &Value) -> Result<Message, ApiError> {
    let wrong = |what: &str| ApiError::field("messages", format!("`messages[{i}]` {what}"));
    let Value::Object(fields) = message else { return Err(wrong("is no object")) };
    let role = match fields.get("role").and_then(Value::as_str) {
        Some("developer" | "system") => "system",
        Some(role @ ("user" | "assistant" | "tool")) => role,
        Some("function") => "tool",
        Some(found) => {
            let expected = "expected `system`, `developer`, `user`, `assistant` or `tool`";
            return Err(wrong(&format!("has the role `{found}`, {expected}")));
        }
        None => return Err(wrong("has no role")),
    };
    let calls = fields.get("tool_calls").filter(|calls| !calls.is_null());
    let content = match fields.get("content") {
        None | Some(Value::Null) if role == "assistant" => String::new(),
        None | Some(Value::Null) => return Err(wrong("has no content")),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            let text = |part: &Value| match part["type"].as_str() {
                Some("text" | "input_text" | "output_text") => part["text"].as_str().map(String::from),
                Some("refusal") => part["refusal"].as_str().map(String::from),
                _ => None,
            };
            let texts = parts.iter().map(|part| {
                text(part).ok_or_else(|| {
                    let found = part["type"].as_str().unwrap_or("nothing that is known");
                    wrong(&format!("has a part of the type `{found}`: the model reads only text"))
                })
            });
            texts.collect::<Result<Vec<_>, _>>()?.join("\n")
        }
        Some(_) => return Err(wrong("has a content that is neither text nor a list of parts")),
    };
    let mut extra = Map::new();
    for name in ["name", "tool_call_id"] {
        if let Some(value @ Value::String(_)) = fields.get(name) {
            extra.insert(name.into(), value.clone());
        }
    }
    if let Some(calls) = calls {
        let calls = calls.as_array().ok_or_else(|| wrong("has `tool_calls` that are no list"))?;
        extra.insert("tool_calls".into(), calls.iter().map(with_object).collect());
    }
    let reasoning = fields.get("reasoning_content").or_else(|| fields.get("reasoning"));
    Ok(Message {
        reasoning_content: reasoning.and_then(Value::as_str).map(String::from),
        extra,
        ..Message::new(role, content)
    })
}

/// A call whose arguments are an object, which templates expect; OpenAI's API has them as text.
fn with_object(call: &Value) -> Value {
    let mut call = call.clone();
    if let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments"))
        && let Some(object) = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok())
        && object.is_object()
    {
        *arguments = object;
    }
    call
}

/// One answer while it is written.
struct Choice {
    thoughts: Option<ReasoningParser>,
    tools: Option<ToolParser>,
    n_calls: usize,
    /// The whole text and its tokens.
    whole: (String, Vec<u32>),
}

/// What is new of an answer.
#[derive(Default)]
struct New {
    reasoning: String,
    content: String,
    calls: Vec<(usize, ToolCall)>,
}

impl Choice {
    fn take(&mut self, text: &str) -> New {
        let deltas = match &mut self.thoughts {
            Some(parser) => parser.push(text),
            None => vec![Delta::Content(text.to_string())],
        };
        self.sort(deltas)
    }

    fn finish(&mut self) -> New {
        let deltas = self.thoughts.as_mut().map_or(Vec::new(), ReasoningParser::finish);
        let mut new = self.sort(deltas);
        let rest = self.tools.as_mut().map_or(Vec::new(), ToolParser::finish);
        self.add(&mut new, rest);
        new
    }

    fn sort(&mut self, deltas: Vec<Delta>) -> New {
        let mut new = New::default();
        for delta in deltas {
            match delta {
                Delta::Reasoning(text) => new.reasoning += &text,
                Delta::Content(text) => {
                    let pieces = match &mut self.tools {
                        Some(parser) => parser.push(&text),
                        None => vec![ToolDelta::Content(text)],
                    };
                    self.add(&mut new, pieces);
                }
            }
        }
        new
    }

    fn add(&mut self, new: &mut New, pieces: Vec<ToolDelta>) {
        for piece in pieces {
            match piece {
                ToolDelta::Content(text) => new.content += &text,
                ToolDelta::Call(call) => {
                    new.calls.push((self.n_calls, call));
                    self.n_calls += 1;
                }
            }
        }
    }
}

/// All answers to a request.
struct Answers {
    model: Arc<Model>,
    running: Running<Generation>,
    prompt: Spelling,
    choices: Vec<Choice>,
    n_top: Option<usize>,
    usage: UsageFields,
    n_ended: usize,
}

/// What is new of the answers.
enum News {
    Some { index: usize, new: New, logprob: Option<ContentLogprob> },
    End { index: usize, new: New, reason: &'static str, timings: TimingFields },
}

impl Answers {
    /// The next news; `None` when all answers have ended.
    async fn next(&mut self) -> Result<Option<News>, ApiError> {
        loop {
            let piece = match self.running.next().await? {
                Sent::Done(()) => return Ok(None),
                Sent::Progress(piece) => piece,
            };
            match piece {
                Piece::Accepted => {}
                Piece::Token { index, token, text, logprobs } => {
                    let choice = &mut self.choices[index];
                    choice.whole.0 += &text;
                    choice.whole.1.push(token);
                    let new = choice.take(&text);
                    let logprob = match (self.n_top, logprobs) {
                        (Some(n), Some(logprobs)) => {
                            Some(ContentLogprob::new(self.model.info.tokenizer()?, &logprobs, n))
                        }
                        _ => None,
                    };
                    return Ok(Some(News::Some { index, new, logprob }));
                }
                Piece::End { index, text, ending } => return Ok(Some(self.end(index, &text, &ending))),
            }
        }
    }

    fn end(&mut self, index: usize, text: &str, ending: &Ending) -> News {
        let choice = &mut self.choices[index];
        choice.whole.0 += text;
        let mut new = choice.take(text);
        let rest = choice.finish();
        new.reasoning += &rest.reasoning;
        new.content += &rest.content;
        new.calls.extend(rest.calls);
        let reason = if choice.n_calls > 0 { "tool_calls" } else { reason(ending.finish_reason) };
        self.model.counters.answered(&ending.usage, &ending.timings);
        self.usage.add(&ending.usage, self.n_ended == 0);
        self.n_ended += 1;
        if let Some(tokenizer) = &self.model.info.tokenizer {
            let (text, ids) = std::mem::take(&mut choice.whole);
            if let Some(said) = self.prompt.clone().answered(tokenizer, &text, &ids) {
                self.model.kept.keep(said);
            }
        }
        News::End { index, new, reason, timings: TimingFields::new(&ending.usage, &ending.timings) }
    }
}

fn call_fields(index: Option<usize>, call: &ToolCall) -> Value {
    let mut fields = json!({
        "id": id("call_"),
        "type": "function",
        "function": { "name": call.name, "arguments": call.arguments },
    });
    if let Some(index) = index {
        fields["index"] = index.into();
    }
    fields
}

/// Answers a conversation.
pub async fn completions(
    State(server): State<Arc<Server>>,
    Body(request): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    request.check()?;
    let model = server.model(request.model.as_deref(), Ability::Generate)?;
    let stream = request.stream.unwrap_or(false);
    let with_usage = request.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false);
    let n_top = request.logprobs()?;
    let (n, requests, prompt, choices) = {
        let model = model.clone();
        tokio::task::spawn_blocking(move || prepare(&request, &model, n_top))
            .await
            .map_err(|_| ApiError::internal("the prompt could not be made"))??
    };
    let mut running = model.run(move |_| Ok(Generation::new(requests)))?;
    accepted(&mut running).await?;
    let answers = Answers {
        model: model.clone(),
        running,
        prompt,
        choices,
        n_top,
        usage: UsageFields::default(),
        n_ended: 0,
    };
    let id = id("chatcmpl-");
    match stream {
        true => Ok(streamed(id, model, answers, with_usage, n)),
        false => whole(&id, &model, answers, n).await,
    }
}

type Prepared = (usize, Vec<Request>, Spelling, Vec<Choice>);

/// Makes the requests. It may take a while: templates are programs, and prompts are long.
fn prepare(request: &ChatRequest, model: &Model, n_top: Option<usize>) -> Result<Prepared, ApiError> {
    let info = &model.info;
    let tokenizer = info.tokenizer()?;
    let Prompt { spelling, tools } = request.prompt(model)?;
    if spelling.ids.len() >= info.ctx {
        return Err(ApiError::too_long(spelling.ids.len(), info.ctx));
    }
    let n = request.sampling.n()?;
    let sampling = request.sampling.sampling(info)?;
    let marks = info.reasoning.map_or(Vec::new(), |format| format.special_tokens(tokenizer));
    let calls = tools.map_or(Vec::new(), |format| format.special_tokens(tokenizer));
    let base = Request {
        max_tokens: request.sampling.max_tokens()?,
        stop: request.sampling.stop()?,
        shown_tokens: marks.into_iter().chain(calls).collect(),
        logprobs: n_top,
        generated: spelling.generated.clone(),
        ..Request::new(spelling.ids.clone())
    };
    let requests = (0..n).map(|i| Request { sampling: nth(&sampling, i), ..base.clone() }).collect();
    let choice = || -> Result<Choice, ApiError> {
        let thoughts = match info.reasoning {
            Some(format) => Some(ReasoningParser::after(tokenizer, format, &spelling.ids)?),
            None => None,
        };
        Ok(Choice { thoughts, tools: tools.map(ToolParser::new), n_calls: 0, whole: Default::default() })
    };
    let choices = (0..n).map(|_| choice()).collect::<Result<_, _>>()?;
    Ok((n, requests, spelling, choices))
}

/// Waits for all answers.
async fn whole(id: &str, model: &Model, mut answers: Answers, n: usize) -> Result<Response, ApiError> {
    #[derive(Default)]
    struct Text {
        new: New,
        logprobs: Vec<ContentLogprob>,
        reason: &'static str,
    }
    let mut texts: Vec<Text> = (0..n).map(|_| Text::default()).collect();
    let mut timings = None;
    while let Some(news) = answers.next().await? {
        let (index, new) = match news {
            News::Some { index, new, logprob } => {
                texts[index].logprobs.extend(logprob);
                (index, new)
            }
            News::End { index, new, reason, timings: of } => {
                texts[index].reason = reason;
                timings.get_or_insert(of);
                (index, new)
            }
        };
        let text = &mut texts[index].new;
        text.reasoning += &new.reasoning;
        text.content += &new.content;
        text.calls.extend(new.calls);
    }
    let choice = |(index, text): (usize, Text)| {
        let Text { new: New { reasoning, content, calls }, logprobs, reason } = text;
        let content = if content.is_empty() && !calls.is_empty() { Value::Null } else { content.into() };
        let mut message = json!({ "role": "assistant", "content": content });
        if !reasoning.is_empty() {
            message["reasoning_content"] = reasoning.into();
        }
        if !calls.is_empty() {
            message["tool_calls"] = calls.iter().map(|(_, call)| call_fields(None, call)).collect();
        }
        let logprobs = answers.n_top.map(|_| json!({ "content": logprobs, "refusal": null }));
        json!({ "index": index, "message": message, "logprobs": logprobs, "finish_reason": reason })
    };
    Ok(Json(Completion {
        id,
        object: "chat.completion",
        created: now(),
        model: &model.id,
        system_fingerprint: super::FINGERPRINT,
        choices: texts.into_iter().enumerate().map(choice).collect(),
        usage: answers.usage,
        timings,
    })
    .into_response())
}

/// Streams the answers as server-sent events.
fn streamed(id: String, model: Arc<Model>, answers: Answers, with_usage: bool, n: usize) -> Response {
    let created = now();
    let chunk = move |choices: Value, usage: Option<Value>| {
        let mut chunk = json!({
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model.id,
            "system_fingerprint": super::FINGERPRINT,
            "choices": choices,
        });
        if with_usage {
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        SseEvent::default().data(chunk.to_string())
    };
    let first = (0..n).map(|index| {
        let delta = json!({ "role": "assistant", "content": "" });
        chunk(json!([{ "index": index, "delta": delta, "logprobs": null, "finish_reason": null }]), None)
    });
    let first: VecDeque<SseEvent> = first.collect();
    stream::respond(first, answers, move |mut answers| {
        let chunk = chunk.clone();
        async move {
            let mut events = Vec::new();
            let Some(news) = answers.next().await? else {
                if with_usage {
                    events.push(chunk(json!([]), Some(json!(answers.usage))));
                }
                return Ok((events, None));
            };
            let (index, new, logprob, end) = match news {
                News::Some { index, new, logprob } => (index, new, logprob, None),
                News::End { index, new, reason, .. } => (index, new, None, Some(reason)),
            };
            let mut delta = Map::new();
            if !new.reasoning.is_empty() {
                delta.insert("reasoning_content".into(), new.reasoning.into());
            }
            if !new.content.is_empty() {
                delta.insert("content".into(), new.content.into());
            }
            if !new.calls.is_empty() {
                let calls = new.calls.iter().map(|(i, call)| call_fields(Some(*i), call));
                delta.insert("tool_calls".into(), calls.collect());
            }
            let logprobs = logprob.map(|logprob| json!({ "content": [logprob], "refusal": null }));
            if !delta.is_empty() || logprobs.is_some() {
                let choice =
                    json!({ "index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null });
                events.push(chunk(json!([choice]), None));
            }
            // Some clients read no delta of a chunk that has a reason.
            if let Some(reason) = end {
                let choice =
                    json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": reason });
                events.push(chunk(json!([choice]), None));
            }
            Ok((events, Some(answers)))
        }
    })
}

impl Info {
    /// The tokenizer.
    ///
    /// # Errors
    /// 400 if the model has none.
    pub fn tokenizer(&self) -> Result<&wginfer::text::Tokenizer, ApiError> {
        self.tokenizer.as_ref().ok_or_else(|| ApiError::bad("the model has no tokenizer"))
    }
}
