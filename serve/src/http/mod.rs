//! What clients of OpenAI's API are served.
//!
//! ```text
//!   client ── accept, bounded ──> gate: token, is it draining ──> request (fields, one by one) ──> Engine
//!          <── answer: whole, or pieces as server-sent events ───────────────────── Event ───────────'
//!   a client that hangs up ──> its future or stream is dropped ──> its channel is closed ──> the engine frees the place
//! ```
//!
//! Everything from outside has a bound: connections, bodies, prompts, texts of a request, texts that wait. Errors have OpenAI's form, and a field
//! that is not supported is refused by its name.
//!
//! Deliberately absent: TLS (a proxy's), several models, tools, images.

mod answer;
mod error;
mod fields;
mod listen;
mod request;
mod words;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::Sse;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use answer::{Answer, Chunks};
use error::ApiError;
pub use listen::{Limits, serve};
use request::{Asked, unix_seconds};

use crate::engine::{Engine, Task};

/// What all handlers share.
pub struct Served {
    pub engine: Engine,
    /// As clients name the model.
    pub name: String,
    created: u64,
    /// Hash of the token that clients show.
    token: Option<blake3::Hash>,
    is_draining: AtomicBool,
    /// Requests whose handlers are at work.
    num_handled: AtomicUsize,
}

impl Served {
    /// `token`: what clients show as `Authorization: Bearer TOKEN`.
    pub fn new(engine: Engine, name: String, token: Option<&str>) -> Served {
        let token = token.map(|token| blake3::hash(token.as_bytes()));
        Served {
            engine,
            name,
            created: unix_seconds(),
            token,
            is_draining: AtomicBool::new(false),
            num_handled: AtomicUsize::new(0),
        }
    }

    /// From now on nothing new is taken.
    pub fn drain(&self) {
        self.is_draining.store(true, Ordering::SeqCst);
    }

    /// Whether there is nothing left to be computed.
    fn is_idle(&self) -> bool {
        self.num_handled.load(Ordering::SeqCst) == 0 && (self.engine.is_idle() || !self.engine.is_well())
    }

    fn model_card(&self) -> Value {
        json!({
            "id": self.name, "object": "model", "created": self.created, "owned_by": "toroid",
            "max_model_len": self.engine.room.context, "digest": self.engine.digest,
        })
    }
}

type Body = Result<Bytes, BytesRejection>;

pub fn router(served: Arc<Served>, body_bytes: usize) -> Router {
    let gate = from_fn_with_state(Arc::clone(&served), gate);
    Router::new()
        // Some clients look whether there is anything before they ask.
        .route("/v1", get(models))
        .route("/v1/", get(models))
        .route("/v1/models", get(models))
        .route("/v1/models/{name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/tokenize", post(words::tokenize))
        .route("/detokenize", post(words::detokenize))
        .route("/tokenizer_info", get(words::tokenizer_info))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(|| async { ApiError::new(StatusCode::NOT_FOUND, "there is no such path; see docs/serve.md") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method; see docs/serve.md")
        })
        .layer(gate)
        .layer(DefaultBodyLimit::max(body_bytes))
        .with_state(served)
}

/// Lets in who shows the token, while something new is taken.
async fn gate(State(served): State<Arc<Served>>, request: Request, next: Next) -> Response {
    let response = match refusal(&served, &request) {
        Some(error) => error.into_response(),
        None => {
            let _handled = Handled::begin(&served);
            next.run(request).await
        }
    };
    served.engine.figures.answered(response.status().as_u16());
    response
}

/// A handler at work; it may be dropped at any time, when its client hangs up.
struct Handled<'a>(&'a Served);

impl Handled<'_> {
    fn begin(served: &Served) -> Handled<'_> {
        served.num_handled.fetch_add(1, Ordering::SeqCst);
        Handled(served)
    }
}

impl Drop for Handled<'_> {
    fn drop(&mut self) {
        self.0.num_handled.fetch_sub(1, Ordering::SeqCst);
    }
}

fn refusal(served: &Served, request: &Request) -> Option<ApiError> {
    if request.uri().path() == "/health" {
        return None;
    }
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|shown| shown.strip_prefix("Bearer ")).unwrap_or_default();
    // Hashes are compared in constant time.
    if served.token.is_some_and(|token| blake3::hash(shown.as_bytes()) != token) {
        let message = "show the token of this server as `Authorization: Bearer TOKEN`";
        return Some(ApiError { code: Some("invalid_api_key"), ..ApiError::new(StatusCode::UNAUTHORIZED, message) });
    }
    let is_new = request.method() == axum::http::Method::POST;
    (is_new && served.is_draining.load(Ordering::SeqCst)).then(|| {
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the server is about to end and takes nothing new; ask another")
    })
}

async fn models(State(served): State<Arc<Served>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [served.model_card()] }))
}

async fn model(State(served): State<Arc<Served>>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    if name == served.name {
        return Ok(Json(served.model_card()));
    }
    let message = format!("there is no model `{name}` here; the one that is served is `{}`", served.name);
    Err(ApiError { code: Some("model_not_found"), ..ApiError::new(StatusCode::NOT_FOUND, message) })
}

async fn completions(State(served): State<Arc<Served>>, body: Body) -> Result<Response, ApiError> {
    let asked = Asked::completion(&bytes(body)?, &served.engine.model, &served.name)?;
    answer(served, asked).await
}

async fn chat(State(served): State<Arc<Served>>, body: Body) -> Result<Response, ApiError> {
    let asked = Asked::chat(&bytes(body)?, &served.engine.model, &served.name)?;
    answer(served, asked).await
}

async fn answer(served: Arc<Served>, asked: Asked) -> Result<Response, ApiError> {
    let num = asked.prompts.len().saturating_mul(asked.n);
    let most = served.engine.room.waiting;
    if num > most {
        // Before any of them is made.
        return Err(ApiError::of_refused("n", crate::engine::Refused::TooMany { found: num, most }));
    }
    let (to, events) = mpsc::unbounded_channel();
    let asked_at = Instant::now();
    let task = |(index, sequence)| Task {
        sequence,
        stops: asked.stops.clone(),
        scores: asked.scores,
        index,
        to: to.clone(),
        asked_at,
    };
    let tasks = asked.sequences(served.engine.room.context).enumerate().map(task).collect();
    drop(to);
    served.engine.submit(tasks).map_err(|refused| ApiError::of_refused(asked.kind.field(), refused))?;
    let is_streamed = asked.is_streamed;
    let answer = Answer::new(served, asked)?;
    if is_streamed {
        let headers = [(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
        return Ok((headers, Sse::new(Chunks::new(answer, events))).into_response());
    }
    Ok(Json(answer.whole(events).await?).into_response())
}

fn bytes(body: Body) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            let what = "the body has more bytes than this server takes; send less, or start the server with a larger --body-bytes";
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, what)
        }
        status => ApiError::new(status, rejection.body_text()),
    })
}

async fn health(State(served): State<Arc<Served>>) -> Response {
    let (status, word) = match (served.engine.is_well(), served.is_draining.load(Ordering::SeqCst)) {
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "ended"),
        (true, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (true, false) => (StatusCode::OK, "ok"),
    };
    (status, Json(json!({ "status": word }))).into_response()
}

async fn metrics(State(served): State<Arc<Served>>) -> Response {
    let text = served.engine.figures.page(&served.engine);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
