//! Why an operation failed, in one sentence: what was tried on which URL, what the store said, and what to do.

use std::time::Duration;

use crate::fault::Fault;

/// What kind of trouble it is, for those who act on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The URL, or a name below it, is not one.
    Url,
    /// The environment does not fit together: a variable, a file of it, a certificate.
    Setup,
    /// No credentials, or some that the store does not take.
    Credentials,
    /// The store knows us, and we may not.
    Denied,
    /// There is no such bucket.
    Bucket,
    /// There is no such object.
    Missing,
    /// The object is not the one any more that was meant.
    Changed,
    /// Nobody answers, or no answer comes to its end.
    Unreachable,
    /// The store answers that it cannot now.
    Busy,
    /// The store does not have this operation.
    Unsupported,
    /// More than the caller takes.
    TooLarge,
    /// Anything else that the store answered.
    Refused,
}

/// An operation that failed for good.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {action} {url}: {what}")]
pub struct StorageError {
    kind: Kind,
    action: &'static str,
    url: String,
    what: String,
}

impl StorageError {
    pub(crate) fn new(kind: Kind, action: &'static str, url: &str, what: impl Into<String>) -> StorageError {
        StorageError { kind, action, url: url.into(), what: what.into() }
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the store said, and what to do, for those who name the URL themselves.
    pub fn why(&self) -> &str {
        &self.what
    }

    /// `tried` is how often, and for how long, where it was more than once.
    pub(crate) fn of(fault: &Fault, action: &'static str, url: &str, tried: Option<(u32, Duration)>) -> StorageError {
        let (kind, advice) = judge(fault);
        let url = without_endpoint(url, fault);
        // A store's own sentence may go on.
        let mut what = fault.to_string().trim_end_matches('.').to_string();
        if let Some((attempts, time)) = tried {
            what += &format!(" (attempt {attempts}, over {:.0} s)", time.as_secs_f32());
        }
        if !advice.is_empty() {
            what += &format!("; {advice}");
        }
        StorageError::new(kind, action, url, what)
    }
}

/// `URL at ENDPOINT` beside the words of a fault, which may name the endpoint themselves.
pub(crate) fn without_endpoint<'a>(url: &'a str, fault: &Fault) -> &'a str {
    let named = fault.endpoint().and_then(|endpoint| url.strip_suffix(endpoint)?.strip_suffix(" at "));
    named.unwrap_or(url)
}

/// What kind of trouble a fault is, and what to do about it; nothing where the fault says it.
fn judge(fault: &Fault) -> (Kind, String) {
    let (status, code, region) = match fault {
        Fault::Refused { status, code, region, .. } => (*status, code.as_str(), region),
        Fault::Unreachable { .. } => {
            let advice = "see that AWS_ENDPOINT_URL names the store, and that this machine reaches it";
            return (Kind::Unreachable, advice.into());
        }
        Fault::Untrusted { .. } => {
            let advice = "set AWS_CA_BUNDLE to a file with the certificate of the store's CA";
            return (Kind::Setup, advice.into());
        }
        Fault::Plain { .. } => {
            let advice = "name it with http:// (AWS_ENDPOINT_URL), or the port where it speaks TLS";
            return (Kind::Setup, advice.into());
        }
        Fault::Silent(_) | Fault::Lost(_) => {
            return (Kind::Unreachable, "see what the store, or a proxy before it, says".into());
        }
        Fault::Garbled(_) => {
            return (
                Kind::Unreachable,
                "see that AWS_ENDPOINT_URL names a store that speaks S3, and no web page".into(),
            );
        }
        Fault::Odd(_) => return (Kind::Refused, "rename or remove them, or name another prefix".into()),
        Fault::Credentials { .. } => return (Kind::Credentials, String::new()),
    };
    let (kind, advice) = match (status, code) {
        (_, "NoSuchBucket") => (Kind::Bucket, "make the bucket, or name another one"),
        (_, "InvalidAccessKeyId") => {
            (Kind::Credentials, "the store does not know this key: see AWS_ACCESS_KEY_ID or the profile")
        }
        (_, "SignatureDoesNotMatch") => {
            (Kind::Credentials, "the secret does not belong to the key: see AWS_SECRET_ACCESS_KEY or the profile")
        }
        (_, "ExpiredToken" | "TokenRefreshRequired") => (Kind::Credentials, "the credentials have expired: renew them"),
        (_, "InvalidToken") => {
            (Kind::Credentials, "the session token does not belong to the key: see AWS_SESSION_TOKEN")
        }
        (_, "RequestTimeTooSkewed") => (Kind::Setup, "the clock of this machine is wrong: set it (NTP), and try again"),
        (_, "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" | "PermanentRedirect")
        | (300..=399, _) => {
            let advice = match region {
                Some(region) => format!("the bucket is in another region: set AWS_REGION={region}"),
                None => {
                    "the bucket is in another region, or behind another endpoint: set AWS_REGION or AWS_ENDPOINT_URL"
                        .into()
                }
            };
            return (Kind::Setup, advice);
        }
        (401, _) => (Kind::Credentials, "see the credentials that this process has"),
        (403, _) => {
            (Kind::Denied, "give this identity the rights that docs/storage.md lists, on the bucket and on its objects")
        }
        (404, _) => (Kind::Missing, ""),
        (501 | 405, _) | (_, "NotImplemented") => (Kind::Unsupported, "this store does not have the operation"),
        (429 | 500.., _) | (_, "SlowDown" | "RequestTimeout") => {
            (Kind::Busy, "the store is overloaded or down: see what it says")
        }
        _ => (Kind::Refused, ""),
    };
    (kind, advice.into())
}
