//! Lets calls in, or not: who makes it, whether they may, whether they make too many; and ends those whose caller may not go on.
//!
//! Every call goes through here, streams, reflection and health included, before its message is read. What it lets in has a
//! [`Caller`] among its extensions, and ends when the caller's certificate or token does, is revoked, or the account is closed.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http_body::Frame;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{Bytes, http};
use tonic::{Code, Status};
use toroid_proto::Role;
use toroid_security::server::Peer;
use tracing::Instrument as _;

use super::calls::{Call, Kind};
use super::durations::Durations;
use super::rates::{CallLimits, OpenCall, Rates};
use super::rules::{Rule, page, rule};
use crate::audit::Audit;
use crate::caller::{Caller, Who};
use crate::clock::unix_ms;
use crate::machine::access::{Digest, Token};
use crate::tokens::TokenTable;

/// As many sessions as may be open may be opened anew in so many seconds.
const SESSIONS_AGAIN_S: f64 = 10.0;

/// What decides about calls.
#[derive(Clone)]
pub(crate) struct Gate {
    pub tokens: watch::Receiver<TokenTable>,
    pub limits: CallLimits,
    pub rates: Rates,
    pub audit: Audit,
    pub durations: Durations,
}

/// A call that is let in.
struct Admitted {
    caller: Caller,
    token: Option<Token>,
    open: OpenCall,
}

impl Gate {
    fn who(&self, peer: &Peer, headers: &http::HeaderMap) -> Result<(Who, Option<Token>), Status> {
        let shown = headers.get(http::header::AUTHORIZATION);
        if !peer.is_tls {
            // A token that was sent in clear text is known to others from now on.
            return match shown {
                None => Ok((Who::Anyone, None)),
                Some(_) => Err(Status::unauthenticated(
                    "a token is taken over TLS only, and this coordinator runs without certificates; call without a token",
                )),
            };
        }
        if let Some(identity) = &peer.identity {
            return Ok((Who::Certificate { name: identity.name.to_string(), role: identity.role }, None));
        }
        let Some(shown) = shown else { return Ok((Who::Nobody, None)) };
        let secret = shown.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
        let digest = secret.map(|secret| Digest::of(secret.trim().as_bytes()));
        if !self.tokens.borrow().is_known() {
            return Err(Status::unavailable(
                "this coordinator does not lead, and only the one that does knows tokens; call that one, or show a certificate",
            ));
        }
        let token = digest.and_then(|digest| self.tokens.borrow().get(&digest).cloned());
        match token {
            Some(token) if token.is_good(unix_ms()) => {
                let (id, name, role) = (token.id.clone(), token.name.clone(), token.role);
                Ok((Who::Token { id, name, role }, Some(token)))
            }
            Some(token) => {
                let what = if token.revoked { "was revoked" } else { "has ended" };
                Err(Status::unauthenticated(format!("the token {} {what}; ask for another one", token.id)))
            }
            None => Err(Status::unauthenticated("the token is not one of this cluster's; ask for one")),
        }
    }

    fn admit(
        &self,
        (kind, rule): (Kind, Option<&Rule>),
        peer: &Peer,
        http::request::Parts { method, uri, headers, .. }: &http::request::Parts,
    ) -> Result<Admitted, (Caller, Status)> {
        let CallLimits { per_s, at_once, open, sessions, refused_per_s } = self.limits;
        let nobody = || Caller::new(Who::Nobody, peer);
        let refused = |caller: Caller, status: Status| {
            // Who tries many secrets, or all calls, is slowed down; what they hear is the same for all they try.
            let account = format!("refused {}", toroid_security::server::network(caller.address));
            match self.rates.take(&account, refused_per_s, 4.0 * refused_per_s, usize::MAX) {
                Ok(_) => (caller, status),
                Err(_) => (
                    caller,
                    Status::resource_exhausted("too many calls from this address were refused; try again later"),
                ),
            }
        };
        let wrong = match kind {
            Kind::Grpc => not_of_a_grpc_client(method, headers),
            Kind::Page => of_another_origin(uri, headers),
        };
        if let Some(status) = wrong {
            return Err(refused(nobody(), status));
        }
        let (who, token) = self.who(peer, headers).map_err(|status| refused(nobody(), status))?;
        let mut caller = Caller::new(who, peer);
        caller.good_until = caller.good_until.into_iter().chain(token.as_ref().map(end_of)).min();
        let Some(rule) = rule else {
            return Err(refused(caller, Status::unimplemented("there is no such call, or nobody may make it")));
        };
        if !caller.may(rule.least) {
            let needed = rule.least.map_or("", Role::name);
            let status = match caller.who {
                Who::Nobody => Status::unauthenticated(format!(
                    "this call needs the role {needed}: show a certificate (--credentials, or --cert and --key) or a token (--token)"
                )),
                _ => Status::permission_denied(format!("this call needs the role {needed}, and you are {caller}")),
            };
            return Err(refused(caller, status));
        }
        let taken = match rule.least {
            // All workers come at a time, and come back at a time after a restart of this end; often with one certificate.
            Some(Role::Worker) => {
                let at_once = sessions as f64;
                let account = format!("sessions of {}", caller.account());
                self.rates.take(&account, at_once / SESSIONS_AGAIN_S, at_once, sessions)
            }
            _ => self.rates.take(&caller.account(), per_s, at_once, open),
        };
        match taken {
            Ok(open) => Ok(Admitted { caller, token, open }),
            Err(reason) => Err((caller, Status::resource_exhausted(reason))),
        }
    }

    /// Resolves when the call of that token is to end; never where there is none.
    async fn token_ends(mut tokens: watch::Receiver<TokenTable>, token: Option<Token>) -> String {
        let Some(token) = token else { return std::future::pending().await };
        let is_revoked = |table: &TokenTable| table.get(&token.digest).is_none_or(|token| token.revoked);
        tokio::select! {
            () = toroid_security::until(end_of(&token)) => format!("the token {} has ended", token.id),
            Ok(_) = tokens.wait_for(is_revoked) => format!("the token {} was revoked", token.id),
        }
    }
}

/// A browser says whose page makes a request that changes something: it has to be this coordinator's.
fn of_another_origin(uri: &http::Uri, headers: &http::HeaderMap) -> Option<Status> {
    let text = |value: &http::HeaderValue| value.to_str().map(str::to_string).unwrap_or_default();
    let origin = text(headers.get(http::header::ORIGIN)?);
    let host = uri.authority().map(ToString::to_string).or_else(|| headers.get(http::header::HOST).map(text));
    let is_own = origin.split_once("://").is_some_and(|(_, origin)| Some(origin) == host.as_deref());
    (!is_own).then(|| Status::permission_denied("a page of another origin made this call; none may"))
}

/// For a client of gRPC, and for whoever else speaks HTTP.
fn refusal(status: &Status, headers: &http::HeaderMap) -> http::Response<Body> {
    if is_grpc(headers) {
        return status.clone().into_http();
    }
    let mut answer = crate::http::refusal(status).map(Body::new);
    // Words that are no header's value are in the body all the same.
    let _ = status.add_header(answer.headers_mut());
    answer
}

fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Why this is no call of a client of gRPC: a browser that somebody's page has make it, above all.
fn not_of_a_grpc_client(method: &http::Method, headers: &http::HeaderMap) -> Option<Status> {
    if method != http::Method::POST {
        Some(Status::unimplemented(format!("nothing is done by {method}; calls are made by POST")))
    } else if headers.contains_key(http::header::ORIGIN) {
        Some(Status::permission_denied("a page in a browser made this call; none may"))
    } else if !is_grpc(headers) {
        Some(Status::invalid_argument("this is no call of gRPC: its content-type is not application/grpc"))
    } else {
        None
    }
}

fn end_of(token: &Token) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(token.expires_unix_ms).unwrap_or(0))
}

impl<S> tower::Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { gate: self.clone(), inner }
    }
}

/// Services behind the gate.
#[derive(Clone)]
pub(crate) struct Gated<S> {
    gate: Gate,
    inner: S,
}

type Answer = Result<http::Response<Body>, Box<dyn std::error::Error + Send + Sync>>;

impl<S> tower::Service<http::Request<Body>> for Gated<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<Body>;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Answer> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        let Some(peer) = parts.extensions.get::<Peer>().cloned() else {
            let status = Status::internal("the call came from nowhere: please report it");
            return Box::pin(async move { Ok(status.into_http()) });
        };
        let path = parts.uri.path().to_string();
        let (kind, rule) = match page(&parts.method, &path) {
            Some(page) => (Kind::Page, Some(page)),
            None => (Kind::Grpc, rule(&path)),
        };
        let mut call = Call::begin(&self.gate.durations, (kind, rule), &parts, &peer);
        let span = call.span();
        let admitted = match self.gate.admit((kind, rule), &peer, &parts) {
            Ok(admitted) => admitted,
            Err((caller, status)) => {
                let audit = self.gate.audit.clone();
                let is_change = rule.is_some_and(|rule| rule.changes) && status.code() != Code::ResourceExhausted;
                let answer = refusal(&status, &parts.headers);
                call.refused(status.code(), &answer);
                let refused = async move {
                    if is_change {
                        audit.refused(&caller, &path, status.message()).await;
                    }
                    Ok(answer)
                };
                return Box::pin(refused.instrument(span));
            }
        };
        let Admitted { caller, token, open } = admitted;
        if caller.who != Who::Nobody {
            peer.take();
        }
        parts.extensions.insert(caller);
        let ends = |tokens, token, peer: Peer| async move {
            tokio::select! {
                reason = Gate::token_ends(tokens, token) => Status::unauthenticated(reason),
                reason = peer.ends() => Status::unauthenticated(reason),
            }
        };
        let of_request = ends(self.gate.tokens.clone(), token.clone(), peer.clone());
        let of_response = ends(self.gate.tokens.clone(), token, peer);
        let body =
            Body::new(Until { body, ends: Some(Box::pin(of_request)), is_response: false, call: None, _open: None });
        // The clone is the one that is not ready.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let answered = async move {
            let answer = inner.call(http::Request::from_parts(parts, body)).await.map_err(Into::into)?;
            call.answered(&answer);
            let until = |body| {
                let ends: Option<Ends> = Some(Box::pin(of_response));
                Body::new(Until { body, ends, is_response: true, call: Some(call), _open: Some(open) })
            };
            Ok(answer.map(until))
        };
        Box::pin(answered.instrument(span))
    }
}

type Ends = Pin<Box<dyn Future<Output = Status> + Send>>;

/// A body until its call is to end.
struct Until {
    body: Body,
    /// `None`: it has ended that way.
    ends: Option<Ends>,
    /// What ends tells the status in its trailers; a request fails with it.
    is_response: bool,
    /// Of an answer, the call that it is of.
    call: Option<Call>,
    _open: Option<OpenCall>,
}

impl http_body::Body for Until {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(ends) = &mut self.ends else { return Poll::Ready(None) };
        if let Poll::Ready(status) = ends.as_mut().poll(cx) {
            self.ends = None;
            if let Some(call) = &mut self.call {
                call.ended(status.code());
            }
            let mut trailers = http::HeaderMap::new();
            return Poll::Ready(Some(match self.is_response {
                true => status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
                false => Err(status),
            }));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(call)) = (&frame, &mut self.call)
            && let Some(trailers) = frame.trailers_ref()
        {
            call.seen(trailers);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.ends.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
