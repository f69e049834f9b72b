//! Dials a store: name, TCP, and where the URL says https a proxy if the environment has one, and TLS.

use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use hyper::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::trust::Trust;
use super::watched::{Stream, Watched};
use crate::fault::Fault;
use crate::patience::Timing;

/// What the kernel may hold of what we have written. What it holds has moved as far as [`Watched`] can see: with more of it, a store that takes
/// 40 kB/s would look silent for longer than is waited.
const SEND_BUFFER_BYTES: usize = 1 << 20;

#[derive(Debug, Clone)]
pub(super) struct Connect {
    tcp: HttpConnector,
    timing: Timing,
    trust: Arc<Trust>,
    proxies: Arc<Matcher>,
    /// Of the first connection with TLS.
    tls: Arc<OnceLock<Result<Arc<ClientConfig>, String>>>,
}

impl Connect {
    pub fn new(timing: Timing, trust: Trust, proxies: Arc<Matcher>) -> Connect {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_send_buffer_size(Some(SEND_BUFFER_BYTES));
        Connect { tcp, timing, trust: Arc::new(trust), proxies, tls: Arc::default() }
    }

    async fn dial(mut self, uri: Uri) -> Result<TokioIo<Watched>, Fault> {
        let endpoint = endpoint_of(&uri);
        let unreachable = |why: String| Fault::Unreachable { endpoint: endpoint.clone(), why };
        let untrusted = |why: String| Fault::Untrusted { endpoint: endpoint.clone(), why };
        if uri.scheme_str() != Some("https") {
            let tcp = self.tcp.call(uri).await.map_err(|e| unreachable(deepest(&e)))?.into_inner();
            return Ok(Watched::over(Stream::Plain(tcp), self.timing.silence));
        }
        let tcp = match self.proxies.intercept(&uri) {
            None => self.tcp.call(uri.clone()).await.map_err(|e| unreachable(deepest(&e)))?.into_inner(),
            Some(proxy) => {
                let mut tunnel = Tunnel::new(proxy.uri().clone(), self.tcp.clone());
                if let Some(auth) = proxy.basic_auth() {
                    tunnel = tunnel.with_auth(auth.clone());
                }
                let through = |e| unreachable(format!("by the proxy {}: {}", endpoint_of(proxy.uri()), deepest(&e)));
                tunnel.call(uri.clone()).await.map_err(through)?.into_inner()
            }
        };
        let config = self.tls.get_or_init(|| self.trust.config()).clone().map_err(untrusted)?;
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_string();
        let name = ServerName::try_from(host).map_err(|e| untrusted(e.to_string()))?;
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|error| {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                Some(rustls::Error::InvalidCertificate(why)) => {
                    untrusted(format!("its certificate is not taken: {why:?}"))
                }
                // The first bytes of an answer in clear text are no record of TLS.
                Some(rustls::Error::InvalidMessage(_)) => Fault::Plain { endpoint: endpoint.clone() },
                _ => unreachable(format!("TLS: {error}")),
            }
        })?;
        Ok(Watched::over(Stream::Tls(Box::new(tls)), self.timing.silence))
    }
}

impl Service<Uri> for Connect {
    type Response = TokioIo<Watched>;
    type Error = Fault;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Watched>, Fault>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fault>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connect = self.clone();
        Box::pin(async move {
            let (endpoint, bound) = (endpoint_of(&uri), connect.timing.connect);
            let late =
                |_| Fault::Unreachable { endpoint, why: format!("no connection after {} s", bound.as_secs_f32()) };
            tokio::time::timeout(bound, connect.dial(uri)).await.map_err(late)?
        })
    }
}

/// Scheme, host and port: paths of objects are in the messages anyway.
pub(super) fn endpoint_of(uri: &Uri) -> String {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    format!("{}://{authority}", uri.scheme_str().unwrap_or("http"))
}

/// An error, what caused it, and so on.
pub(super) fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// The innermost reason, which says most.
pub(super) fn deepest(error: &(dyn Error + 'static)) -> String {
    causes(error).last().unwrap_or(error).to_string()
}
