//! What a command asks its coordinator, as spans: one for the command, and below it one for each call.
//!
//! Each call says which trace it belongs to (`traceparent`): that of its span, or where no collector is named that of whoever started the command, which
//! the environment variable TRACEPARENT has. Attributes are those of OpenTelemetry's conventions for clients of RPC. The span of a stream that lasts as
//! long as somebody looks is that of its opening.

use std::pin::Pin;
use std::process::ExitCode;
use std::task::{Context, Poll};

use anyhow::Result;
use http_body::Frame;

use tonic::body::Body;
use tonic::codegen::{Bytes, Service, http};
use tonic::transport::{Channel, Error};
use tonic::{Code, Status};
use toroid_proto::{CALL_TARGET, status_name};
use tracing::field::Empty;
use tracing::{Instrument as _, Span, trace_span};

/// Not known before they have ended, which they do when nobody looks any more.
const STREAM: &str = "toroid.v1.JobService/WatchJob";

/// The span of a command of that name, below that of whoever started it.
pub fn of_command(name: &str) -> Span {
    trace_span!(
        target: CALL_TARGET,
        "command",
        otel.name = name,
        traceparent = toroid_telemetry::traceparent().unwrap_or_default(),
        otel.status_code = Empty,
        otel.status_description = Empty,
    )
}

/// The command has come to this.
pub fn end_command(span: Span, code: &Result<ExitCode>) {
    if let Err(error) = code {
        span.record("otel.status_code", "error");
        span.record("otel.status_description", format!("{error:#}"));
    }
}

/// A connection, whose calls have spans.
#[derive(Clone)]
pub struct Calls(Channel);

impl Calls {
    pub fn new(channel: Channel) -> Calls {
        Calls(channel)
    }
}

impl Service<http::Request<Body>> for Calls {
    type Response = http::Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let method = request.uri().path().trim_start_matches('/').to_string();
        let span = trace_span!(
            target: CALL_TARGET,
            "rpc",
            otel.name = method,
            otel.kind = "client",
            rpc.system.name = "grpc",
            rpc.method = method,
            "rpc.response.status_code" = Empty,
            "error.type" = Empty,
            otel.status_code = Empty,
        );
        let traceparent = span.in_scope(toroid_telemetry::traceparent).and_then(|text| text.parse().ok());
        if let Some(traceparent) = traceparent {
            request.headers_mut().insert("traceparent", traceparent);
        }
        let answered = self.0.call(request);
        let mut call = Call(Some(span.clone()));
        let watched = async move {
            let answer = answered.await.inspect_err(|_| call.end(Code::Unavailable))?;
            call.seen(answer.headers());
            if method == STREAM {
                call.end(Code::Ok);
            }
            Ok(answer.map(|body| Body::new(Answer { body, call })))
        };
        Box::pin(watched.instrument(span))
    }
}

/// The span of a call until its status is known; one that is dropped before was cancelled.
struct Call(Option<Span>);

impl Call {
    fn seen(&mut self, headers: &http::HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            self.end(Code::from_bytes(status.as_bytes()));
        }
    }

    /// Of a client each code but OK is an error.
    fn end(&mut self, code: Code) {
        let Some(span) = self.0.take() else { return };
        let name = status_name(code as i32);
        span.record("rpc.response.status_code", name);
        if code != Code::Ok {
            span.record("error.type", name);
            span.record("otel.status_code", "error");
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// The body of an answer, whose trailers say how the call has ended.
struct Answer {
    body: Body,
    call: Call,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.call.seen(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => {
                let code = status.code();
                self.call.end(code);
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
