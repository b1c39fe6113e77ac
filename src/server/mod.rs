//! Layer 6: the server, which answers OpenAI's API with the public API of the library.
//!
//! Handlers only pass messages: the engine of each model belongs to a thread of its own (`model`), which a channel wakes.
//! Whoever drops the receiving end of a piece of work cancels it, so a client that goes away costs nothing more.
//!
//! A route is a file with its request and what it answers, and a line in [`router`]. `http` decides who may ask and how
//! much a client may send, `schema` has what the routes that generate text share, `error` the form of errors.

mod audio;
mod chat;
mod completions;
mod counters;
mod embeddings;
mod error;
mod generation;
mod http;
mod kept;
mod metrics;
mod model;
mod models;
mod page;
mod schema;
mod stream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;
use wginfer::checkpoint::{Ability, Source};
use wginfer::gpu::Gpu;

use counters::Counters;
use error::ApiError;
pub use http::Access;
use model::Model;
pub use model::ModelOptions;

/// What answers say of the program that made them.
const FINGERPRINT: &str = concat!("wginfer-", env!("CARGO_PKG_VERSION"));

/// Most bytes of a body, and of one with a recording: the limit of OpenAI's API for the latter is 25 MB.
const MAX_BODY: usize = 16 << 20;
const MAX_RECORDING: usize = 100 << 20;

/// How to serve.
pub struct Options {
    pub address: SocketAddr,
    pub access: Access,
    /// Time for open requests to end after a signal.
    pub grace: Duration,
    pub models: ModelOptions,
    /// Whether models are loaded at the start, or for their first request.
    pub preload: bool,
}

/// The models, and what requests have in common.
pub struct Server {
    models: Vec<Arc<Model>>,
    access: Access,
    counters: Arc<Counters>,
}

impl Server {
    /// The model with this name.
    fn named(&self, id: &str) -> Result<Arc<Model>, ApiError> {
        let found = self.models.iter().find(|model| model.id.eq_ignore_ascii_case(id));
        found.cloned().ok_or_else(|| {
            let names: Vec<String> = self.models.iter().map(|model| format!("`{}`", model.id)).collect();
            let message = format!("there is no model `{id}`, only {}", names.join(", "));
            ApiError::new(StatusCode::NOT_FOUND, message).with_code("model_not_found")
        })
    }

    /// The model with this name, or one that can do it if a request has no name.
    fn model(&self, id: Option<&str>, ability: Ability) -> Result<Arc<Model>, ApiError> {
        let can = |model: &Model| model.info.abilities.contains(&ability);
        match id.filter(|id| !id.is_empty()) {
            Some(id) => {
                let model = self.named(id)?;
                match can(&model) {
                    true => Ok(model),
                    false => {
                        let message = format!("the model `{}` cannot {}", model.id, ability.name());
                        Err(ApiError::field("model", message))
                    }
                }
            }
            None => {
                // One that does nothing else before one that does it, too.
                let able = self.models.iter().filter(|model| can(model));
                let best = able.min_by_key(|model| model.info.abilities.len()).cloned();
                let message = || format!("no model of this server can {}", ability.name());
                best.ok_or_else(|| ApiError::field("model", message()))
            }
        }
    }

    /// The model with this name, or the first.
    fn any(&self, id: Option<&str>) -> Result<Arc<Model>, ApiError> {
        match id.filter(|id| !id.is_empty()) {
            Some(id) => self.named(id),
            None => self.models.first().cloned().ok_or_else(|| ApiError::internal("there is no model")),
        }
    }
}

fn router(server: &Arc<Server>) -> Router {
    let sound = DefaultBodyLimit::max(MAX_RECORDING);
    Router::new()
        .route("/", get(page::page))
        .route("/v1/chat/completions", post(chat::completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/embeddings", post(embeddings::embeddings))
        .route("/v1/rerank", post(embeddings::rerank))
        .route("/v1/audio/transcriptions", post(audio::transcriptions).layer(sound))
        .route("/v1/audio/translations", post(audio::translations).layer(sound))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/tokenize", post(models::tokenize))
        .route("/detokenize", post(models::detokenize))
        .route("/apply-template", post(models::apply_template))
        .route("/health", get(models::health))
        .route("/metrics", get(metrics::metrics))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path has other methods")
        })
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn_with_state(server.clone(), http::guard))
        .route_layer(from_fn_with_state(server.clone(), metrics::count))
        .with_state(server.clone())
}

/// Opens the models, and serves until `stop`. Calls `on_ready` with the address when connections are accepted.
///
/// # Errors
/// A model that cannot be opened, an address that cannot be had.
pub fn run(
    gpu: &Gpu,
    sources: Vec<Source>,
    options: Options,
    stop: impl Future<Output = ()>,
    on_ready: impl FnOnce(SocketAddr, &[String]),
) -> Result<(), Error> {
    let counters = Arc::<Counters>::default();
    let mut models: Vec<Arc<Model>> = Vec::new();
    for source in sources {
        let model = Model::open(gpu, source, &options.models, counters.clone())?;
        if models.iter().any(|other| other.id == model.id) {
            return Err(Error::Twice { id: model.id });
        }
        models.push(Arc::new(model));
    }
    if options.preload {
        models.iter().for_each(|model| model.load());
    }
    let access = Access { is_loopback: http::is_loopback(&options.address), ..options.access };
    let server = Arc::new(Server { models, access, counters });
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(options.address)
            .await
            .map_err(|source| Error::Address { address: options.address, source })?;
        let names: Vec<String> = server.models.iter().map(|model| model.id.clone()).collect();
        on_ready(listener.local_addr()?, &names);
        http::serve(listener, router(&server), stop, options.grace).await;
        Ok(())
    })
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Model(#[from] wginfer::Error),
    #[error("two models have the name `{id}`")]
    Twice { id: String },
    #[error("cannot listen on {address}: {source}")]
    Address { address: SocketAddr, source: std::io::Error },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}
