//! What a browser and a metrics collector are served, on the port of the gRPC services: the dashboard, its JSON, a stream of what changes, `/metrics`.
//!
//! ```text
//!   browser ── GET /, /assets/* ──────────────> pages    files of this repository, embedded; tell nothing of any job
//!           ── GET /api/..., POST /api/... ───> api      the calls of JobService, as JSON
//!           ── GET /api/stream ───────────────> stream   server-sent events; one for all panels of a tab
//!   Prometheus ── GET /metrics ───────────────> metrics
//! ```
//!
//! All requests pass the gate of the gRPC services ([`crate::grpc::rules`] has their roles), and all that is asked or changed goes through
//! `JobService`: one place decides, bounds and keeps the audit record. Credentials are a certificate or an `authorization` header, never a
//! cookie, so that a page of another origin can do nothing in a user's name.
//!
//! Deliberately absent: decisions, and figures that no gRPC call gives.

mod api;
mod error;
mod look;
mod metrics;
mod pages;
mod pool;
mod stream;

pub(crate) use error::response as refusal;

use axum::Router;
use axum::routing::{get, post};

use crate::grpc::durations::Durations;
use crate::grpc::jobs::Jobs;
use crate::machine::Limits;

/// What all handlers share.
#[derive(Clone)]
pub(crate) struct Http {
    jobs: Jobs,
    pool: pool::Pool,
    looks: look::Looks,
    failure_timeout_s: f64,
    durations: Durations,
}

pub(crate) fn router(jobs: Jobs, limits: Limits, durations: Durations) -> Router {
    let (pool, looks) = (pool::Pool::new(jobs.clone()), look::Looks::new(jobs.clone()));
    let http = Http { jobs, pool, looks, failure_timeout_s: limits.failure_timeout.as_secs_f64(), durations };
    Router::new()
        .route("/", get(pages::index))
        .route("/assets/{name}", get(pages::asset))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/metrics", get(metrics::metrics))
        .route("/api/jobs", get(api::jobs))
        .route("/api/jobs/{job}", get(api::job))
        .route("/api/jobs/{job}/curve", get(api::curve))
        .route("/api/jobs/{job}/checkpoint", post(api::checkpoint))
        .route("/api/jobs/{job}/cancel", post(api::cancel))
        .route("/api/workers", get(api::workers))
        .route("/api/workers/{worker}/drain", post(api::drain))
        .route("/api/workers/{worker}/kill", post(api::kill))
        .route("/api/stream", get(stream::stream))
        .with_state(http)
}
