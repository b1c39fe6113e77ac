//! What stands before the handlers: connections with limits, who may ask, and the reading of bodies.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use subtle::ConstantTimeEq;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::Server;
use super::error::ApiError;

/// Time for the head of a request, and for the next one on an open connection.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Time for the body of a request, or for a part of a form.
const BODY_TIME: Duration = Duration::from_secs(60);
/// Most bytes and fields of a head.
const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 100;
/// Most connections at once. More wait.
const MAX_CONNECTIONS: usize = 4096;

/// A JSON body. Its type need not be declared, as with `curl -d`.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes =
            in_time(Bytes::from_request(request, state)).await?.map_err(|rejection: BytesRejection| {
                ApiError::new(
                    rejection.status(),
                    format!("the body cannot be read: {}", rejection.body_text()),
                )
            })?;
        match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Body(value)),
            Err(error) => Err(ApiError::bad(format!("the body is not valid: {error}"))),
        }
    }
}

/// Waits for a part of a body.
///
/// # Errors
/// 408 if it takes too long.
pub async fn in_time<T>(part: impl Future<Output = T>) -> Result<T, ApiError> {
    tokio::time::timeout(BODY_TIME, part).await.map_err(|_| {
        let message = format!("the body did not arrive within {} s", BODY_TIME.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    })
}

/// Who may ask.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// The key that requests must have. Default: none.
    pub api_key: Option<String>,
    /// Origins of pages that may use the server; `*` is all. Default: only the server's own page.
    pub origins: Vec<String>,
    /// Whether the server listens only on the loopback interface.
    pub is_loopback: bool,
}

impl Access {
    fn has_key(&self, headers: &HeaderMap) -> bool {
        let Some(key) = &self.api_key else { return true };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let bearer = bearer.and_then(|value| value.strip_prefix("Bearer "));
        let named = headers.get("x-api-key").and_then(|value| value.to_str().ok());
        let is_key = |found: &str| bool::from(found.trim().as_bytes().ct_eq(key.as_bytes()));
        bearer.is_some_and(is_key) || named.is_some_and(is_key)
    }

    /// Whether the name that a client used for this machine is one of its own. A page of another site may have a name that
    /// leads here (DNS rebinding).
    fn is_own_name(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        if !self.is_loopback {
            return true;
        }
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok())
            .or(uri.authority().map(|a| a.as_str()));
        host.is_none_or(|host| is_local(name_of(host)))
    }

    /// The answer to a page's question whether it may ask; `None` if the request comes from no other page.
    fn is_allowed(&self, headers: &HeaderMap) -> Option<bool> {
        let origin = headers.get(header::ORIGIN)?.to_str().unwrap_or_default();
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let is_own = origin.split_once("://").is_some_and(|(_, of)| of == host);
        if is_own {
            return None;
        }
        Some(self.origins.iter().any(|allowed| allowed == "*" || allowed == origin))
    }
}

/// A host without its port.
fn name_of(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

fn is_local(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Refuses who may not ask, and answers browsers that ask for another page.
pub async fn guard(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let access = &server.access;
    if !access.is_own_name(request.headers(), request.uri()) {
        let message =
            "the name of the host is none of this machine's: `--host` with `--api-key` allows others";
        return ApiError::new(StatusCode::FORBIDDEN, message).into_response();
    }
    let allowed = access.is_allowed(request.headers());
    if allowed == Some(false) {
        let message = "pages of this origin may not use the server: `--cors ORIGIN` allows them";
        return ApiError::new(StatusCode::FORBIDDEN, message).into_response();
    }
    let origin = allowed.and_then(|_| request.headers().get(header::ORIGIN).cloned());
    let is_question = request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    // Whether it lives may be asked by anybody; the page asks for the key.
    let is_open = matches!(request.uri().path(), "/" | "/health");
    let mut response = if is_question && origin.is_some() {
        StatusCode::NO_CONTENT.into_response()
    } else if !is_open && !access.has_key(request.headers()) {
        let message = "the API key is missing or wrong: expected `Authorization: Bearer KEY`";
        ApiError::new(StatusCode::UNAUTHORIZED, message).with_code("invalid_api_key").into_response()
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type, x-api-key"),
        );
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, OPTIONS"));
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

/// Accepts connections until `stop`, then lets those that are open finish for `grace`.
pub async fn serve(listener: TcpListener, router: Router, stop: impl Future<Output = ()>, grace: Duration) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut builder = Builder::new(hyper_util::rt::TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS);
    tokio::pin!(stop);
    loop {
        let place = places.clone().acquire_owned();
        let accepted = tokio::select! {
            accepted = async { (place.await, listener.accept().await) } => accepted,
            () = &mut stop => break,
        };
        let (Ok(place), accepted) = accepted else { break };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Too many open files, or a client that has gone.
                log::warn!("a connection could not be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Tokens are small, and each is to be seen at once.
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("a connection ended: {error}");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(grace, graceful.shutdown()).await.is_err() {
        log::warn!("requests that did not end within {} s were cut off", grace.as_secs());
    }
}

/// Whether an address is on the loopback interface.
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().is_loopback()
}
