//! `/v1/models`, `/tokenize`, `/detokenize`, `/apply-template` and `/health`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use wginfer::checkpoint::Ability;

use super::Server;
use super::chat::ChatRequest;
use super::error::ApiError;
use super::http::Body;
use super::model::{Model, State as ModelState};
use super::schema::text_of;

fn described(model: &Model) -> Value {
    let abilities: Vec<&str> = model.info.abilities.iter().map(|ability| ability.name()).collect();
    json!({
        "id": model.id,
        "object": "model",
        "created": model.info.created,
        "owned_by": "wginfer",
        "meta": {
            "architecture": model.info.architecture,
            "n_ctx": model.info.ctx,
            "n_vocab": model.info.vocab_size,
            "size": model.info.n_bytes,
            "abilities": abilities,
            "state": state_name(model.state()),
        },
    })
}

fn state_name(state: ModelState) -> &'static str {
    match state {
        ModelState::Unloaded => "unloaded",
        ModelState::Loading => "loading",
        ModelState::Ready => "ready",
        ModelState::Lost => "lost",
        ModelState::Failed => "failed",
    }
}

/// All models.
pub async fn list(State(server): State<Arc<Server>>) -> Json<Value> {
    let data: Vec<Value> = server.models.iter().map(|model| described(model)).collect();
    Json(json!({ "object": "list", "data": data }))
}

/// One model.
pub async fn one(State(server): State<Arc<Server>>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    Ok(Json(described(&*server.named(&id)?)))
}

/// 200 if every model that was loaded works; 503 while one is loading, has lost its device or cannot be loaded.
pub async fn health(State(server): State<Arc<Server>>) -> Response {
    let states: Vec<(&str, ModelState)> =
        server.models.iter().map(|model| (model.id.as_str(), model.state())).collect();
    let (status, code) = match () {
        () if states.iter().any(|(_, state)| *state == ModelState::Failed) => ("failed", 503),
        () if states.iter().any(|(_, state)| *state == ModelState::Lost) => ("lost", 503),
        () if states.iter().any(|(_, state)| *state == ModelState::Loading) => ("loading", 503),
        () => ("ok", 200),
    };
    let models: serde_json::Map<String, Value> =
        states.iter().map(|(id, state)| (id.to_string(), state_name(*state).into())).collect();
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    (code, Json(json!({ "status": status, "models": models }))).into_response()
}

#[derive(Deserialize)]
pub struct TokenizeRequest {
    model: Option<String>,
    /// vLLM's name of it is `prompt`.
    #[serde(alias = "prompt")]
    content: String,
    add_special: Option<bool>,
    with_pieces: Option<bool>,
}

/// Text to token ids, with llama.cpp's fields.
pub async fn tokenize(
    State(server): State<Arc<Server>>,
    Body(request): Body<TokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let model = server.any(request.model.as_deref())?;
    let tokenizer = model.info.tokenizer()?.clone();
    let (text, special) = (request.content, request.add_special.unwrap_or(false));
    let ids = tokio::task::spawn_blocking({
        let tokenizer = tokenizer.clone();
        move || tokenizer.encode(&text, special)
    });
    let ids = ids.await.map_err(|_| ApiError::internal("the tokenizer failed"))??;
    let tokens: Vec<Value> = match request.with_pieces.unwrap_or(false) {
        true => ids.iter().map(|id| json!({ "id": id, "piece": text_of(&tokenizer, *id) })).collect(),
        false => ids.iter().map(|id| json!(id)).collect(),
    };
    Ok(Json(json!({ "tokens": tokens, "count": ids.len(), "max_model_len": model.info.ctx })))
}

#[derive(Deserialize)]
pub struct DetokenizeRequest {
    model: Option<String>,
    tokens: Vec<u32>,
}

/// Token ids to text, with llama.cpp's fields.
pub async fn detokenize(
    State(server): State<Arc<Server>>,
    Body(request): Body<DetokenizeRequest>,
) -> Result<Json<Value>, ApiError> {
    let model = server.any(request.model.as_deref())?;
    let n = model.info.vocab_size;
    if let Some(token) = request.tokens.iter().find(|token| **token as usize >= n) {
        return Err(ApiError::field("tokens", format!("token {token} is not in the vocabulary of {n}")));
    }
    let text = model.info.tokenizer()?.decode(&request.tokens, false)?;
    Ok(Json(json!({ "content": text })))
}

/// The prompt of a conversation, with llama.cpp's fields.
pub async fn apply_template(
    State(server): State<Arc<Server>>,
    Body(request): Body<ChatRequest>,
) -> Result<Json<Value>, ApiError> {
    let model = server.model(request.model.as_deref(), Ability::Generate)?;
    let prompt = tokio::task::spawn_blocking(move || request.prompt(&model));
    let prompt = prompt.await.map_err(|_| ApiError::internal("the prompt could not be made"))??;
    Ok(Json(json!({ "prompt": prompt.spelling.text })))
}
