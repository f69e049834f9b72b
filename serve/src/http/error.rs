//! Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use toroid_worker::generate::GenerateError;

use crate::engine::Refused;

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The field that is wrong.
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code: None }
    }

    /// A field has no good value.
    pub fn field(name: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(name.into()), ..ApiError::new(StatusCode::BAD_REQUEST, message) }
    }

    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }

    pub fn of_prompt(field: &str, error: &GenerateError) -> ApiError {
        let code = matches!(error, GenerateError::TooLong { .. }).then_some("context_length_exceeded");
        match error {
            GenerateError::NotFinite { .. } => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            _ => ApiError { code, ..ApiError::field(field, error.to_string()) },
        }
    }

    pub fn of_refused(field: &str, refused: Refused) -> ApiError {
        match refused {
            Refused::Busy => ApiError::new(
                StatusCode::TOO_MANY_REQUESTS,
                "as many texts as there is room for wait already; try again soon, or with fewer texts",
            ),
            Refused::TooMany { found, most } => ApiError::field(
                field,
                format!("{found} texts are asked for, at most {most} may wait at a time; ask for fewer"),
            ),
            Refused::Prompt(error) => ApiError::of_prompt(field, &error),
            Refused::Gone => gone(),
        }
    }
}

/// The thread that computes is not there any more.
pub fn gone() -> ApiError {
    ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the engine has ended; the server's log says why, start it again")
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let is_later = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE].contains(&self.status);
        let retry = is_later.then_some([(header::RETRY_AFTER, "1")]);
        let challenge = (self.status == StatusCode::UNAUTHORIZED).then_some([(header::WWW_AUTHENTICATE, "Bearer")]);
        (self.status, retry, challenge, Json(self.body())).into_response()
    }
}
