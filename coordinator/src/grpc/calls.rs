//! A call that is being made: how long it takes ([`super::durations`]), and its span.
//!
//! Both have the attributes that OpenTelemetry's semantic conventions give servers of RPC and HTTP. A span is below the one that the caller names in
//! the header `traceparent`, and lasts until the call's status is known; that of a stream, which lasts as long as its caller stays, until it is open.
//! Probes have none. Where nobody takes spans one costs a comparison.

use tonic::Code;
use tonic::body::Body;
use tonic::codegen::http;
use toroid_proto::CALL_TARGET;
use toroid_security::server::Peer;
use tracing::field::Empty;
use tracing::{Span, trace_span};

use super::durations::{Durations, OTHER, Running};
use super::rules::Rule;

/// As what a request is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Grpc,
    /// A page of the dashboard, or what one asks for.
    Page,
}

/// Until its status is known; one that is dropped before was cancelled.
#[derive(Debug)]
pub(super) struct Call {
    kind: Kind,
    is_stream: bool,
    /// `None`: a page.
    running: Option<Running>,
    /// `None`: it has ended.
    span: Option<Span>,
}

impl Call {
    pub fn begin(
        durations: &Durations,
        (kind, rule): (Kind, Option<&'static Rule>),
        parts: &http::request::Parts,
        peer: &Peer,
    ) -> Call {
        let path = rule.map(|rule| rule.path);
        let span = match kind {
            _ if rule.is_some_and(Rule::is_probe) => Span::none(),
            Kind::Grpc => of_grpc(path, parts, peer),
            Kind::Page => of_page(path, parts, peer),
        };
        Call {
            kind,
            is_stream: rule.is_some_and(|rule| rule.is_stream),
            running: (kind == Kind::Grpc).then(|| durations.begin(path)),
            span: Some(span),
        }
    }

    /// What is done for the call is done within it.
    pub fn span(&self) -> Span {
        self.span.clone().unwrap_or_else(Span::none)
    }

    /// It is not let in.
    pub fn refused<B>(&mut self, code: Code, answer: &http::Response<B>) {
        match self.kind {
            Kind::Grpc => self.ended(code),
            Kind::Page => self.end_page(answer.status()),
        }
    }

    /// The headers of its answer are there.
    pub fn answered(&mut self, answer: &http::Response<Body>) {
        match self.kind {
            Kind::Grpc => self.seen(answer.headers()),
            Kind::Page => self.end_page(answer.status()),
        }
        if self.is_stream && self.span.is_some() {
            self.end_span(Code::Ok);
        }
    }

    /// By the headers or trailers of an answer, if they say that it has ended.
    pub fn seen(&mut self, headers: &http::HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.ended(Code::from_bytes(status.as_bytes()));
        }
    }

    pub fn ended(&mut self, code: Code) {
        if let Some(running) = &mut self.running {
            running.end(code);
        }
        if self.kind == Kind::Grpc {
            self.end_span(code);
        }
    }

    fn end_span(&mut self, code: Code) {
        let Some(span) = self.span.take() else { return };
        let name = toroid_proto::status_name(code as i32);
        span.record("rpc.response.status_code", name);
        if is_fault_of_server(code) {
            span.record("error.type", name);
            span.record("otel.status_code", "error");
        }
    }

    fn end_page(&mut self, status: http::StatusCode) {
        let Some(span) = self.span.take() else { return };
        span.record("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.record("error.type", status.as_str());
            span.record("otel.status_code", "error");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.kind == Kind::Grpc {
            self.end_span(Code::Cancelled);
        }
    }
}

/// By the conventions; all others are what its caller asked for.
fn is_fault_of_server(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

fn traceparent(parts: &http::request::Parts) -> &str {
    parts.headers.get("traceparent").and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// `path`: as a rule has it, `None`: of no call that there is. Strangers make no new names.
fn of_grpc(path: Option<&'static str>, parts: &http::request::Parts, peer: &Peer) -> Span {
    let method = path.map_or(OTHER, |path| path.trim_start_matches('/'));
    trace_span!(
        target: CALL_TARGET,
        "rpc",
        otel.name = method,
        otel.kind = "server",
        traceparent = traceparent(parts),
        rpc.system.name = "grpc",
        rpc.method = method,
        client.address = %peer.address.ip(),
        "rpc.response.status_code" = Empty,
        "error.type" = Empty,
        otel.status_code = Empty,
    )
}

fn of_page(path: Option<&'static str>, parts: &http::request::Parts, peer: &Peer) -> Span {
    let (method, route) = (parts.method.as_str(), path.unwrap_or_default());
    trace_span!(
        target: CALL_TARGET,
        "http",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        traceparent = traceparent(parts),
        http.request.method = method,
        http.route = route,
        url.path = parts.uri.path(),
        url.scheme = if peer.is_tls { "https" } else { "http" },
        client.address = %peer.address.ip(),
        "http.response.status_code" = Empty,
        "error.type" = Empty,
        otel.status_code = Empty,
    )
}
