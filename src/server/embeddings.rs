//! `/v1/embeddings` and `/v1/rerank`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use serde::Deserialize;
use serde_json::{Value, json};
use wginfer::checkpoint::Ability;
use wginfer::engine::Output;
use wginfer::tasks::{EncodeTask, Encoding, Finished, TaskError, rerank_task};

use super::Server;
use super::error::ApiError;
use super::http::Body;
use super::model::Running;
use super::schema::OneOrMany;

/// Most texts in a request, as OpenAI's API has it.
const MAX_TEXTS: usize = 2048;

#[derive(Deserialize)]
pub struct EmbeddingRequest {
    model: Option<String>,
    input: Input,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
}

/// A text or several, as texts or as token ids.
#[derive(Deserialize)]
#[serde(untagged)]
enum Input {
    Ids(Vec<u32>),
    Texts(OneOrMany<String>),
    ManyIds(Vec<Vec<u32>>),
}

/// The result of each text, in their order.
///
/// # Errors
/// That of the first text that failed.
async fn all(running: Running<EncodeTask>, n: usize) -> Result<Vec<Encoding>, ApiError> {
    let mut results: Vec<Option<Result<Encoding, TaskError>>> = (0..n).map(|_| None).collect();
    let mut set = |Finished { index, result }: Finished<Encoding>| results[index] = Some(result);
    let rest = running.finish(&mut set).await?;
    rest.into_iter().for_each(set);
    let one = |(i, result): (usize, Option<Result<Encoding, TaskError>>)| match result {
        Some(Ok(encoding)) => Ok(encoding),
        Some(Err(TaskError::Empty { .. } | TaskError::TooShort { .. })) => {
            Err(ApiError::field("input", format!("text {i} is empty")))
        }
        Some(Err(error)) => Err(error.into()),
        None => Err(ApiError::internal("a text has no result")),
    };
    results.into_iter().enumerate().map(one).collect()
}

fn check_count(name: &str, n: usize) -> Result<(), ApiError> {
    match n {
        0 => Err(ApiError::field(name, format!("`{name}` is empty, expected at least one text"))),
        n if n > MAX_TEXTS => {
            Err(ApiError::field(name, format!("`{name}` has {n} texts, expected at most {MAX_TEXTS}")))
        }
        _ => Ok(()),
    }
}

/// Embeds texts. One that is longer than the model's context is cut.
pub async fn embeddings(
    State(server): State<Arc<Server>>,
    Body(request): Body<EmbeddingRequest>,
) -> Result<Json<Value>, ApiError> {
    let model = server.model(request.model.as_deref(), Ability::Embed)?;
    let width = model.info.width;
    let dimensions = match request.dimensions {
        None => width,
        Some(n) if (1..=width).contains(&n) => n,
        Some(n) => {
            let message =
                format!("`dimensions` is {n}, expected 1 to {width}, the width of the model's embeddings");
            return Err(ApiError::field("dimensions", message));
        }
    };
    let is_base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(found) => {
            let message = format!("`encoding_format` is `{found}`, expected `float` or `base64`");
            return Err(ApiError::field("encoding_format", message));
        }
    };
    let (n, running) = match request.input {
        Input::Texts(texts) => {
            let texts: Vec<String> = texts.into();
            check_count("input", texts.len())?;
            let n = texts.len();
            let start = move |loaded: &super::model::Loaded| {
                Ok(EncodeTask::new(loaded.encoder()?, &texts, Output::Embedding)?)
            };
            (n, model.run(start)?)
        }
        ids => {
            let ids = match ids {
                Input::Ids(ids) if ids.is_empty() => Vec::new(),
                Input::Ids(ids) => vec![ids],
                Input::ManyIds(all) => all,
                Input::Texts(_) => Vec::new(),
            };
            check_count("input", ids.len())?;
            (ids.len(), model.run(move |_| Ok(EncodeTask::from_tokens(ids, Output::Embedding)))?)
        }
    };
    let results = all(running, n).await?;
    let n_tokens: usize = results.iter().map(|encoding| encoding.n_tokens).sum();
    let data = results.into_iter().enumerate().map(|(index, encoding)| {
        let values = shortened(encoding.values, dimensions);
        let embedding = match is_base64 {
            true => base64::prelude::BASE64_STANDARD.encode(bytemuck::cast_slice::<f32, u8>(&values)).into(),
            false => json!(values),
        };
        json!({ "object": "embedding", "index": index, "embedding": embedding })
    });
    Ok(Json(json!({
        "object": "list",
        "data": data.collect::<Vec<Value>>(),
        "model": model.id,
        "usage": { "prompt_tokens": n_tokens, "total_tokens": n_tokens },
    })))
}

/// The first values, scaled to length one again, as models with nested embeddings are made for.
fn shortened(mut values: Vec<f32>, n: usize) -> Vec<f32> {
    if n < values.len() {
        values.truncate(n);
        let length = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if length > 0.0 {
            values.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
    }
    values
}

#[derive(Deserialize)]
pub struct RerankRequest {
    model: Option<String>,
    query: String,
    documents: Vec<Document>,
    top_n: Option<usize>,
    return_documents: Option<bool>,
    instruction: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Object { text: String },
}

impl Document {
    fn text(&self) -> &str {
        match self {
            Document::Text(text) | Document::Object { text } => text,
        }
    }
}

/// Sorts texts by how well they answer a query, with the interface of Jina's and Cohere's servers.
pub async fn rerank(
    State(server): State<Arc<Server>>,
    Body(request): Body<RerankRequest>,
) -> Result<Json<Value>, ApiError> {
    let model = server.model(request.model.as_deref(), Ability::Rerank)?;
    check_count("documents", request.documents.len())?;
    if request.query.trim().is_empty() {
        return Err(ApiError::field("query", "`query` is empty"));
    }
    let texts: Vec<String> = request.documents.iter().map(|document| document.text().to_string()).collect();
    let (query, instruction, n) = (request.query, request.instruction, texts.len());
    let running = model
        .run(move |loaded| Ok(rerank_task(loaded.encoder()?, &query, &texts, instruction.as_deref())?))?;
    let results = all(running, n).await?;
    let n_tokens: usize = results.iter().map(|encoding| encoding.n_tokens).sum();
    let score = |encoding: &Encoding| encoding.values.first().copied().unwrap_or_default();
    let mut scores: Vec<(usize, f32)> = results.iter().map(score).enumerate().collect();
    scores.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    scores.truncate(request.top_n.unwrap_or(usize::MAX));
    let results = scores.into_iter().map(|(index, score)| {
        let mut result = json!({ "index": index, "relevance_score": score });
        if request.return_documents.unwrap_or(false) {
            result["document"] = json!({ "text": request.documents[index].text() });
        }
        result
    });
    Ok(Json(json!({
        "model": model.id,
        "object": "list",
        "results": results.collect::<Vec<Value>>(),
        "usage": { "prompt_tokens": n_tokens, "total_tokens": n_tokens },
    })))
}
