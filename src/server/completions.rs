//! `/v1/completions`: texts that go on.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::sse::Event as SseEvent;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wginfer::checkpoint::Ability;
use wginfer::engine::{Logprobs, Request};
use wginfer::text::Tokenizer;

use super::Server;
use super::chat::StreamOptions;
use super::error::ApiError;
use super::generation::{Generation, Piece, accepted};
use super::http::Body;
use super::model::{Info, Message, Model};
use super::schema::{
    Completion, OneOrMany, SamplingFields, TimingFields, UsageFields, check_logprobs, nth, reason, text_of,
};
use super::stream::{self, id, now};

/// Most prompts in a request.
const MAX_PROMPTS: usize = 2048;
/// Most tokens of an answer if the request does not say, as OpenAI's API has it.
const DEFAULT_MAX_TOKENS: usize = 16;

/// A request. Fields that are not here are ignored, as far as they do not change what an answer is.
#[derive(Deserialize)]
pub struct CompletionRequest {
    model: Option<String>,
    prompt: Prompts,
    #[serde(default)]
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<usize>,
    #[serde(flatten)]
    sampling: SamplingFields,
}

/// A prompt or several, as texts or as token ids.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Prompts {
    Ids(Vec<u32>),
    Texts(OneOrMany<String>),
    ManyIds(Vec<Vec<u32>>),
}

impl Prompts {
    /// The token ids of each.
    ///
    /// # Errors
    /// 400 for none or too many; those of the tokenizer.
    pub fn ids(self, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>, ApiError> {
        let ids = match self {
            Prompts::Ids(ids) if ids.is_empty() => Vec::new(),
            Prompts::Ids(ids) => vec![ids],
            Prompts::ManyIds(all) => all,
            Prompts::Texts(texts) => {
                let texts: Vec<String> = texts.into();
                texts.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<_, _>>()?
            }
        };
        match ids.len() {
            0 => Err(ApiError::field("prompt", "`prompt` is empty, expected a text or token ids")),
            n if n > MAX_PROMPTS => {
                Err(ApiError::field("prompt", format!("{n} prompts, expected at most {MAX_PROMPTS}")))
            }
            _ => Ok(ids),
        }
    }
}

impl CompletionRequest {
    /// Refuses what would change the answer and is not done.
    fn check(&self) -> Result<(), ApiError> {
        if self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
            return Err(ApiError::field(
                "suffix",
                "`suffix` is not supported: texts only go on at their end",
            ));
        }
        if self.best_of.is_some_and(|best_of| best_of != self.sampling.n.unwrap_or(1)) {
            return Err(ApiError::field("best_of", "`best_of` is not supported, other than `n`"));
        }
        if self.echo.unwrap_or(false) && self.logprobs.is_some() {
            return Err(ApiError::field("echo", "`echo` is not supported together with `logprobs`"));
        }
        Ok(())
    }
}

/// The log-probabilities of an answer, as OpenAI's completions have them.
#[derive(Default, Serialize)]
struct LogprobLists {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<serde_json::Map<String, Value>>,
    text_offset: Vec<usize>,
}

impl LogprobLists {
    fn add(&mut self, tokenizer: &Tokenizer, logprobs: &Logprobs, n_top: usize, offset: usize) {
        self.tokens.push(text_of(tokenizer, logprobs.chosen.token));
        self.token_logprobs.push(logprobs.chosen.logprob);
        let top = logprobs.top.iter().take(n_top);
        self.top_logprobs.push(top.map(|t| (text_of(tokenizer, t.token), t.logprob.into())).collect());
        self.text_offset.push(offset);
    }
}

struct Prepared {
    requests: Vec<Request>,
    /// What comes before each answer.
    begins: Vec<String>,
    n: usize,
}

fn prepare(request: CompletionRequest, info: &Info, n_top: Option<usize>) -> Result<Prepared, ApiError> {
    let tokenizer = info.tokenizer()?;
    let n = request.sampling.n()?;
    let sampling = request.sampling.sampling(info)?;
    let (max_tokens, stop) = (request.sampling.max_tokens()?, request.sampling.stop()?);
    let (mut requests, mut begins) = (Vec::new(), Vec::new());
    for ids in request.prompt.ids(tokenizer)? {
        if ids.len() >= info.ctx {
            return Err(ApiError::too_long(ids.len(), info.ctx));
        }
        let begin = match request.echo {
            Some(true) => tokenizer.decode(&ids, true)?,
            _ => String::new(),
        };
        for i in 0..n {
            begins.push(begin.clone());
            requests.push(Request {
                sampling: nth(&sampling, i),
                max_tokens: Some(max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
                stop: stop.clone(),
                logprobs: n_top,
                ..Request::new(ids.clone())
            });
        }
    }
    Ok(Prepared { requests, begins, n })
}

/// Continues texts.
pub async fn completions(
    State(server): State<Arc<Server>>,
    Body(request): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    request.check()?;
    let model = server.model(request.model.as_deref(), Ability::Generate)?;
    let stream = request.stream.unwrap_or(false);
    let with_usage = request.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false);
    let n_top = request.logprobs.map(|n| check_logprobs("logprobs", n)).transpose()?;
    let Prepared { requests, begins, n } = {
        let model = model.clone();
        tokio::task::spawn_blocking(move || prepare(request, &model.info, n_top))
            .await
            .map_err(|_| ApiError::internal("the prompt could not be made"))??
    };
    let mut running = model.run(move |_| Ok(Generation::new(requests)))?;
    accepted(&mut running).await?;
    let id = id("cmpl-");
    if stream {
        return Ok(streamed(
            id,
            model,
            Streaming { running, n, n_top, begins, n_ended: Vec::new() },
            with_usage,
        ));
    }
    let mut texts: Vec<(String, LogprobLists, &'static str)> =
        begins.into_iter().map(|begin| (begin, LogprobLists::default(), "")).collect();
    let (mut usage, mut timings, mut seen) = (UsageFields::default(), None, Vec::new());
    while let Message::Progress(piece) = running.next().await? {
        match piece {
            Piece::Accepted => {}
            Piece::Token { index, text, logprobs, .. } => {
                if let (Some(logprobs), Some(n_top)) = (logprobs, n_top) {
                    let offset = texts[index].0.chars().count();
                    texts[index].1.add(model.info.tokenizer()?, &logprobs, n_top, offset);
                }
                texts[index].0 += &text;
            }
            Piece::End { index, text, ending } => {
                texts[index].0 += &text;
                texts[index].2 = reason(ending.finish_reason);
                model.counters.answered(&ending.usage, &ending.timings);
                usage.add(&ending.usage, is_first(&mut seen, index / n));
                timings.get_or_insert(TimingFields::new(&ending.usage, &ending.timings));
            }
        }
    }
    let choices = texts.into_iter().enumerate().map(|(index, (text, logprobs, reason))| {
        let logprobs = n_top.map(|_| logprobs);
        json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason })
    });
    Ok(Json(Completion {
        id: &id,
        object: "text_completion",
        created: now(),
        model: &model.id,
        system_fingerprint: super::FINGERPRINT,
        choices: choices.collect(),
        usage,
        timings,
    })
    .into_response())
}

/// Whether `i` was not seen before.
fn is_first(seen: &mut Vec<usize>, i: usize) -> bool {
    let is_new = !seen.contains(&i);
    if is_new {
        seen.push(i);
    }
    is_new
}

/// Answers that are being streamed.
struct Streaming {
    running: super::model::Running<Generation>,
    n: usize,
    n_top: Option<usize>,
    begins: Vec<String>,
    n_ended: Vec<usize>,
}

fn streamed(id: String, model: Arc<Model>, state: Streaming, with_usage: bool) -> Response {
    let created = now();
    let name = model.id.clone();
    let chunk = move |choices: Value, usage: Option<Value>| {
        let mut chunk = json!({
            "id": id,
            "object": "text_completion",
            "created": created,
            "model": name,
            "system_fingerprint": super::FINGERPRINT,
            "choices": choices,
        });
        if with_usage {
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        SseEvent::default().data(chunk.to_string())
    };
    let part = |index: usize, text: &str, logprobs: Option<LogprobLists>, reason: Option<&str>| json!([{ "index": index, "text": text, "logprobs": logprobs, "finish_reason": reason }]);
    let begins = state.begins.iter().enumerate().filter(|(_, begin)| !begin.is_empty());
    let first: VecDeque<SseEvent> =
        begins.map(|(index, begin)| chunk(part(index, begin, None, None), None)).collect();
    stream::respond(first, (state, UsageFields::default()), move |(mut state, mut usage)| {
        let (chunk, model) = (chunk.clone(), model.clone());
        async move {
            let events = match state.running.next().await? {
                Message::Done(()) => {
                    let last = with_usage.then(|| chunk(json!([]), Some(json!(usage))));
                    return Ok((last.into_iter().collect(), None));
                }
                Message::Progress(Piece::Accepted) => Vec::new(),
                Message::Progress(Piece::Token { index, text, logprobs, .. }) => {
                    let mut lists = None;
                    if let (Some(logprobs), Some(n_top)) = (logprobs, state.n_top) {
                        let lists = lists.insert(LogprobLists::default());
                        let offset = state.begins[index].chars().count();
                        lists.add(model.info.tokenizer()?, &logprobs, n_top, offset);
                    }
                    state.begins[index] += &text;
                    let is_new = !text.is_empty() || lists.is_some();
                    is_new.then(|| chunk(part(index, &text, lists, None), None)).into_iter().collect()
                }
                Message::Progress(Piece::End { index, text, ending }) => {
                    model.counters.answered(&ending.usage, &ending.timings);
                    usage.add(&ending.usage, is_first(&mut state.n_ended, index / state.n));
                    vec![chunk(part(index, &text, None, Some(reason(ending.finish_reason))), None)]
                }
            };
            Ok((events, Some((state, usage))))
        }
    })
}
