//! Errors as OpenAI's API writes them.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use wginfer::engine::EngineError;
use wginfer::tasks::TaskError;
use wginfer::tasks::transcribe::TranscribeError;
use wginfer::text::TextError;

/// An error that a client gets, with its status.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    code: Option<&'static str>,
    param: Option<String>,
    /// Seconds after which another try may succeed.
    retry_after: Option<u64>,
}

/// The body of an error.
#[derive(Serialize)]
pub struct ErrorBody<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), code: None, param: None, retry_after: None }
    }

    /// The request is wrong: 400.
    pub fn bad(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// The field `name` is wrong: 400.
    pub fn field(name: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(name.to_string()), ..ApiError::bad(message) }
    }

    /// The server cannot do it now: 503.
    pub fn unavailable(message: impl Into<String>) -> ApiError {
        ApiError { retry_after: Some(1), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// Something failed that is no fault of the client: 500.
    pub fn internal(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    pub fn with_code(self, code: &'static str) -> ApiError {
        ApiError { code: Some(code), ..self }
    }

    pub fn with_retry_after(self, seconds: u64) -> ApiError {
        ApiError { retry_after: Some(seconds), ..self }
    }

    /// A prompt that does not fit.
    pub fn too_long(found: usize, ctx: usize) -> ApiError {
        let message = format!(
            "the prompt has {found} tokens, and the context of the model {ctx}, of which at least one is for the answer"
        );
        ApiError::bad(message).with_code("context_length_exceeded")
    }

    pub fn body(&self) -> ErrorBody<'_> {
        let r#type = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            503 => "service_unavailable_error",
            _ => "server_error",
        };
        ErrorBody {
            error: Inner { message: &self.message, r#type, param: self.param.as_deref(), code: self.code },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        match error {
            EngineError::PromptTooLong { found, expected } => ApiError::too_long(found, expected),
            EngineError::EmptyPrompt
            | EngineError::CacheTooSmall { .. }
            | EngineError::TokenRange { .. }
            | EngineError::Parameter { .. }
            | EngineError::Speech { .. }
            | EngineError::Clip { .. } => ApiError::bad(error.to_string()),
            EngineError::Text(error) => error.into(),
            EngineError::Busy { .. } | EngineError::Gpu(_) => ApiError::unavailable(error.to_string()),
            _ => ApiError::internal(error.to_string()),
        }
    }
}

impl From<TextError> for ApiError {
    fn from(error: TextError) -> ApiError {
        match error {
            TextError::TemplateRefused { ref message, .. } => {
                ApiError::field("messages", format!("the chat template refused the messages: {message}"))
            }
            TextError::TemplateRender { .. } | TextError::TemplateLimit { .. } => {
                ApiError::field("messages", error.to_string())
            }
            TextError::NoChatTemplate | TextError::NoDefaultTemplate { .. } => ApiError::bad(
                "the model has no chat template: it continues texts, which is what `/v1/completions` does",
            ),
            TextError::VariableNotRead { .. } | TextError::Encode { .. } | TextError::Decode { .. } => {
                ApiError::bad(error.to_string())
            }
            _ => ApiError::internal(error.to_string()),
        }
    }
}

impl From<TaskError> for ApiError {
    fn from(error: TaskError) -> ApiError {
        match error {
            TaskError::Engine(error) => error.into(),
            error => ApiError::bad(error.to_string()),
        }
    }
}

impl From<TranscribeError> for ApiError {
    fn from(error: TranscribeError) -> ApiError {
        match error {
            TranscribeError::Engine(error) => error.into(),
            TranscribeError::Audio(_) => ApiError::field("file", error.to_string()),
            error => ApiError::bad(error.to_string()),
        }
    }
}
