//! One request, and what a store answered: `object_store` sees good answers alone, and everything else is a [`Fault`].

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::client::legacy::Client;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};

use super::connect::{Connect, causes, deepest, endpoint_of};
use super::trust::Trust;
use super::watched::Silence;
use crate::fault::Fault;
use crate::patience::Timing;

/// What a store may say that is no object: a list of a thousand keys has some hundreds of kilobytes.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// Connections that are kept open, and for how long: less than stores keep them (AWS and nginx: 20 s to 75 s).
const IDLE_MAX: usize = 16;
const IDLE_FOR: Duration = Duration::from_secs(15);

/// What is done with answers that are not 2xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answers {
    /// They are faults.
    Judged,
    /// `object_store` sees them: its own credentials look at them.
    Raw,
}

/// Makes clients for `object_store`.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub timing: Timing,
    pub trust: Trust,
    /// Of connections with TLS; stores and metadata services of one's own network speak without, and have no proxy before them.
    pub proxies: Arc<Matcher>,
    pub answers: Answers,
}

impl HttpConnector for Dialer {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_FOR)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(Connect::new(self.timing, self.trust.clone(), Arc::clone(&self.proxies)));
        Ok(HttpClient::new(Caller { client, answers: self.answers }))
    }
}

#[derive(Debug)]
struct Caller {
    client: Client<Connect, HttpRequestBody>,
    answers: Answers,
}

#[async_trait]
impl HttpService for Caller {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let asked = Asked::of(&request);
        let endpoint = endpoint_of(request.uri());
        let response = self.client.request(request).await.map_err(|e| told(fault_of(&e, &endpoint)))?;
        let (parts, body) = response.into_parts();
        if self.answers == Answers::Raw {
            let whole = read(body, &endpoint).await.map_err(told)?;
            return Ok(Response::from_parts(parts, whole.into()));
        }
        if !parts.status.is_success() {
            // Without the words that belong to it an answer still is one.
            let words =
                if asked == Asked::Nothing { Bytes::new() } else { read(body, &endpoint).await.unwrap_or_default() };
            return Err(told(refusal(parts.status.as_u16(), &parts.headers, &String::from_utf8_lossy(&words))));
        }
        if asked == Asked::Object {
            return Ok(Response::from_parts(parts, HttpResponseBody::new(Told { body, endpoint })));
        }
        let whole = read(body, &endpoint).await.map_err(told)?;
        let words = String::from_utf8_lossy(&whole);
        let root = after_declaration(&words);
        // A request that puts parts together may be answered before its end is known: the error comes with status 200.
        if root.starts_with("<Error") {
            return Err(told(refusal(500, &parts.headers, &words)));
        }
        // Some of many objects were not deleted, or none.
        if root.starts_with("<DeleteResult") && words.contains("<Error>") {
            let status = match element(&words, "Code").as_deref() {
                Some("AccessDenied") => 403,
                Some("InternalError" | "SlowDown" | "ServiceUnavailable") => 503,
                _ => 400,
            };
            return Err(told(refusal(status, &parts.headers, &words)));
        }
        // `object_store` would take anything else for an empty list.
        if asked == Asked::List && !root.starts_with("<ListBucketResult") {
            let start: String = words.chars().take(60).collect();
            return Err(told(Fault::Garbled(format!("it is no list, and begins with {start:?}"))));
        }
        Ok(Response::from_parts(parts, whole.into()))
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// No body.
    Nothing,
    /// An object, as large as it is.
    Object,
    /// A list.
    List,
    /// That something is done.
    Done,
}

impl Asked {
    fn of(request: &Request<HttpRequestBody>) -> Asked {
        match *request.method() {
            Method::HEAD => Asked::Nothing,
            Method::GET if request.uri().query().is_some_and(|query| query.contains("list-type=")) => Asked::List,
            Method::GET => Asked::Object,
            _ => Asked::Done,
        }
    }
}

/// `object_store` does not try again what is told so; [`crate::patience`] does.
fn told(fault: Fault) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, fault)
}

async fn read(body: Incoming, endpoint: &str) -> Result<Bytes, Fault> {
    match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(whole) => Ok(whole.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Fault::Garbled(format!("it has more than {ANSWER_BYTES_MAX} bytes")))
        }
        Err(error) => Err(fault_of(&*error, endpoint)),
    }
}

/// What hyper says of a connection.
fn fault_of(error: &(dyn Error + 'static), endpoint: &str) -> Fault {
    for cause in causes(error) {
        if let Some(fault) = cause.downcast_ref::<Fault>() {
            return fault.clone();
        }
        // hyper's errors hide the `io::Error` of a connection behind it.
        if let Some(silence) =
            cause.downcast_ref::<std::io::Error>().and_then(|e| e.get_ref()?.downcast_ref::<Silence>())
        {
            return Fault::Silent(silence.0);
        }
        if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return Fault::Garbled(format!("{endpoint} does not speak HTTP/1.1: {cause}"));
        }
    }
    Fault::Lost(deepest(error))
}

/// What a store says when it does not do what was asked: XML with a code, a message, and sometimes the region to ask in.
fn refusal(status: u16, headers: &HeaderMap, words: &str) -> Fault {
    let region = headers.get("x-amz-bucket-region").and_then(|value| value.to_str().ok()).map(String::from);
    let region = region.or_else(|| element(words, "Region"));
    let code = element(words, "Code").unwrap_or_default();
    // What is no XML comes from something between us and the store.
    let message =
        element(words, "Message").unwrap_or_else(|| if code.is_empty() { words.trim().into() } else { "".into() });
    Fault::Refused { status, code, message: message.chars().take(300).collect(), region }
}

/// The text of the first element of this name.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once("</")?;
    Some(text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}

fn after_declaration(xml: &str) -> &str {
    let xml = xml.trim_start();
    match xml.strip_prefix("<?xml") {
        Some(rest) => rest.split_once("?>").map_or("", |(_, rest)| rest.trim_start()),
        None => xml,
    }
}

/// The body of an object, whose errors are faults.
struct Told {
    body: Incoming,
    endpoint: String,
}

impl Body for Told {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map_err(|e| told(fault_of(&e, &self.endpoint)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_stores_own_words() {
        let xml =
            "<?xml version=\"1.0\"?>\n<Error><Code>AccessDenied</Code><Message>No &quot;you&quot;</Message></Error>";
        let fault = refusal(403, &HeaderMap::new(), xml);
        assert_eq!(fault.to_string(), "the store answered 403 AccessDenied: No \"you\"");
        assert!(after_declaration(xml).starts_with("<Error>"));
        assert_eq!(
            refusal(502, &HeaderMap::new(), "Bad gateway\n").to_string(),
            "the store answered 502 : Bad gateway"
        );
        let mut headers = HeaderMap::new();
        headers.insert("x-amz-bucket-region", "eu-west-1".parse().unwrap());
        assert!(
            matches!(refusal(301, &headers, ""), Fault::Refused { region: Some(region), .. } if region == "eu-west-1")
        );
    }
}
