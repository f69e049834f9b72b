//! The dashboard for one user: a page on this machine that shows what the coordinator serves, with this user's credentials.
//!
//! ```text
//!   browser ── http://127.0.0.1:port/#token=... ──> toroid dashboard ── TLS, certificate or token ──> the coordinator that leads
//! ```
//!
//! A browser would not know the cluster's private CA, nor have the user's certificate. The page is for whoever has the key in its address: it is
//! random, lives as long as this process, and comes back as an `authorization` header, so that neither another user of this machine nor a page of
//! another origin gets anything. Requests under another host's name are refused (DNS rebinding).

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

use crate::access::Access;
use crate::client::{Client, Connection};
use crate::output;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// Port on this machine; 0: any free one
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    port: u16,
}

/// Serves until Ctrl-C.
pub async fn run(args: Args) -> Result<()> {
    let access = args.connection.access()?;
    // Who cannot be reached, or lets nobody in, is said here and not in the browser.
    Client::find(&access).await?;
    let dashboard = Dashboard::open(access, args.port).await?;
    output::line(format_args!("{}\nopen it in a browser on this machine; Ctrl-C ends it", dashboard.address()))?;
    tokio::select! {
        served = dashboard.serve() => served,
        interrupted = tokio::signal::ctrl_c() => interrupted.context("wait for Ctrl-C"),
    }
}

/// A page that is served to whoever has its key.
pub struct Dashboard {
    listener: TcpListener,
    port: u16,
    shared: Shared,
}

#[derive(Clone)]
struct Shared {
    access: Arc<Access>,
    key: Arc<str>,
    hosts: Arc<[String; 2]>,
    /// To the coordinator that led when it was asked last.
    client: Arc<Mutex<Option<Client>>>,
}

impl Dashboard {
    /// On this machine alone.
    pub async fn open(access: Access, port: u16) -> Result<Dashboard> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
        let listener = listener.with_context(|| format!("listen on port {port} of this machine for the dashboard"))?;
        let port = listener.local_addr().context("find the port of the dashboard")?.port();
        let mut key = [0; 16];
        getrandom::fill(&mut key).context("make a key for the dashboard")?;
        let key = format!("{:032x}", u128::from_le_bytes(key));
        let hosts = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
        let shared = Shared { access: access.into(), key: key.into(), hosts: hosts.into(), client: Arc::default() };
        Ok(Dashboard { listener, port, shared })
    }

    /// For the browser.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}/#token={}", self.port, self.shared.key)
    }

    pub async fn serve(self) -> Result<()> {
        let router = Router::new().fallback(forward).with_state(self.shared);
        axum::serve(self.listener, router).await.context("serve the dashboard")
    }
}

/// Without their key the page's own files are all that anybody gets.
fn refusal(shared: &Shared, path: &str, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let text = |name| headers.get(name).and_then(|value: &axum::http::HeaderValue| value.to_str().ok());
    if !text(header::HOST).is_some_and(|host| shared.hosts.iter().any(|known| known == host)) {
        return Some((StatusCode::MISDIRECTED_REQUEST, "this page is for this machine alone"));
    }
    let is_page = path == "/" || path.starts_with("/assets/");
    let shown = text(header::AUTHORIZATION).and_then(|shown| shown.strip_prefix("Bearer ")).unwrap_or_default();
    // Hashes are compared in constant time.
    let is_known = blake3::hash(shown.as_bytes()) == blake3::hash(shared.key.as_bytes());
    (!is_page && !is_known).then_some((
        StatusCode::UNAUTHORIZED,
        "open the address that `toroid dashboard` has printed: the key is behind its #",
    ))
}

async fn forward(State(shared): State<Shared>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if let Some((status, why)) = refusal(&shared, parts.uri.path(), &parts.headers) {
        return error(status, why);
    }
    let mut client = shared.client.lock().await;
    let found = match client.clone() {
        Some(found) => found,
        None => match Client::find(&shared.access).await {
            Ok(found) => client.insert(found).clone(),
            Err(why) => return error(StatusCode::BAD_GATEWAY, &format!("{why:#}")),
        },
    };
    drop(client);
    let mut forwarded = axum::http::Request::new(tonic::body::Body::new(body));
    *forwarded.method_mut() = parts.method;
    *forwarded.uri_mut() = parts.uri;
    // Whatever else the browser says is between it and this page.
    if let Some(id) = parts.headers.get("last-event-id") {
        forwarded.headers_mut().insert("last-event-id", id.clone());
    }
    let answer = found.forward(forwarded).await;
    // Another may lead now; whoever asks next looks for it.
    if !answer.as_ref().is_ok_and(|answer| answer.status() != StatusCode::SERVICE_UNAVAILABLE) {
        shared.client.lock().await.take();
    }
    match answer {
        Ok(answer) => answer.map(Body::new),
        Err(why) => error(StatusCode::BAD_GATEWAY, &format!("{why:#}")),
    }
}

fn error(status: StatusCode, why: &str) -> Response {
    (status, axum::Json(serde_json::json!({ "error": why }))).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_who_has_the_key_gets_more_than_the_page() -> Result<()> {
        let dashboard = Dashboard::open(Access::plain("http://127.0.0.1:1"), 0).await?;
        let (host, key) = (format!("127.0.0.1:{}", dashboard.port), dashboard.shared.key.to_string());
        let asked = |path: &str, host: &str, key: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().expect("a host is a header's value"));
            let shown = key.map(|key| format!("Bearer {key}").parse().expect("a key is a header's value"));
            shown.map(|shown| headers.insert(header::AUTHORIZATION, shown));
            refusal(&dashboard.shared, path, &headers).map(|(status, _)| status)
        };
        assert_eq!(asked("/", &host, None), None);
        assert_eq!(asked("/api/jobs", &host, Some(&key)), None);
        assert_eq!(asked("/api/jobs", &host, None), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(asked("/api/jobs", &host, Some("")), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(asked("/metrics", &host, Some(&key[1..])), Some(StatusCode::UNAUTHORIZED));
        assert_eq!(asked("/", "evil.example:80", Some(&key)), Some(StatusCode::MISDIRECTED_REQUEST));
        Ok(())
    }
}
