//! What one request to a store met.

use std::error::Error;
use std::time::Duration;

/// Why one attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Fault {
    /// The store answered, and not as was hoped.
    #[error("the store answered {status} {code}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Refused { status: u16, code: String, message: String, region: Option<String> },
    /// No connection came about.
    #[error("{endpoint} cannot be reached: {why}")]
    Unreachable { endpoint: String, why: String },
    /// Somebody else, or nobody we trust, is at the other end.
    #[error("{endpoint} cannot be trusted: {why}")]
    Untrusted { endpoint: String, why: String },
    /// What is at the other end does not speak TLS.
    #[error("{endpoint} does not speak TLS")]
    Plain { endpoint: String },
    /// No byte moved for as long as is waited.
    #[error("no byte has moved for {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// The connection ended before the answer was whole.
    #[error("the connection ended early: {0}")]
    Lost(String),
    /// The answer is not what the protocol says.
    #[error("the store's answer makes no sense: {0}")]
    Garbled(String),
    /// There are keys that are none of ours: empty parts, `.` or `..` between their slashes.
    #[error("there are keys below it that are no names: {0}")]
    Odd(String),
    /// We cannot say who we are.
    #[error("{why}")]
    Credentials { why: String, is_passing: bool },
}

impl Fault {
    /// What its words name.
    pub fn endpoint(&self) -> Option<&str> {
        match self {
            Fault::Unreachable { endpoint, .. } | Fault::Untrusted { endpoint, .. } | Fault::Plain { endpoint } => {
                Some(endpoint)
            }
            _ => None,
        }
    }

    pub fn is_status(&self, expected: u16) -> bool {
        matches!(self, Fault::Refused { status, .. } if *status == expected)
    }

    pub fn is_code(&self, expected: &str) -> bool {
        matches!(self, Fault::Refused { code, .. } if code == expected)
    }

    /// The store does not have what was asked for, whatever is asked.
    pub fn is_unsupported(&self) -> bool {
        self.is_status(501) || self.is_status(405) || self.is_code("NotImplemented")
    }

    /// Whether the same request may succeed a little later.
    pub fn is_passing(&self) -> bool {
        match self {
            _ if self.is_unsupported() => false,
            Fault::Refused { status: 408 | 425 | 429, .. } => true,
            // Two conditional writes at the same moment; the one that is tried again finds the other's object.
            Fault::Refused { status: 409, code, .. } => {
                code == "ConditionalRequestConflict" || code == "OperationAborted"
            }
            // The file of credentials is about to be replaced, or has been since the request was signed.
            Fault::Refused { code, .. } if matches!(code.as_str(), "ExpiredToken" | "RequestTimeout" | "SlowDown") => {
                true
            }
            Fault::Refused { status, .. } => *status >= 500,
            Fault::Unreachable { .. } | Fault::Silent(_) | Fault::Lost(_) | Fault::Garbled(_) => true,
            Fault::Untrusted { .. } | Fault::Plain { .. } | Fault::Odd(_) => false,
            Fault::Credentials { is_passing, .. } => *is_passing,
        }
    }

    /// What `object_store` tells: the fault that the service or the credentials gave it, or that it could not read an answer.
    pub fn of(error: &(dyn Error + 'static)) -> Fault {
        let mut last = error.to_string();
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(fault) = error.downcast_ref::<Fault>() {
                return fault.clone();
            }
            if let Some(odd) = error.downcast_ref::<object_store::path::Error>() {
                return Fault::Odd(odd.to_string());
            }
            last = error.to_string();
            next = error.source();
        }
        Fault::Garbled(last)
    }
}

impl From<object_store::Error> for Fault {
    fn from(error: object_store::Error) -> Fault {
        Fault::of(&error)
    }
}
