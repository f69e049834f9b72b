//! Refusals and errors over HTTP: the status of the gRPC call with its words.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tonic::{Code, Status};

use crate::handle::AskError;

/// Why a request was not answered as asked.
pub(super) struct HttpError(Status);

impl From<Status> for HttpError {
    fn from(status: Status) -> HttpError {
        HttpError(status)
    }
}

impl From<AskError> for HttpError {
    fn from(error: AskError) -> HttpError {
        HttpError(error.into())
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        response(&self.0)
    }
}

/// By the table of `google.rpc.Code`.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => StatusCode::CONFLICT,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound | Code::Unimplemented => StatusCode::NOT_FOUND,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// `{"error": "..."}`, with the address of the leader where this coordinator is none.
pub(crate) fn response(status: &Status) -> Response {
    let leader = status.metadata().get(toroid_proto::LEADER_METADATA).and_then(|address| address.to_str().ok());
    let body = serde_json::json!({ "error": status.message(), "leader": leader });
    (http_status(status.code()), Json(body)).into_response()
}
