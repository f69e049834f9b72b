//! What a cluster's coordinator says over HTTP.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use http_body::Body as _;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use toroid::access::Access;
use toroid::client::Client;

use crate::Cluster;

/// A stream that says nothing for so long, comments included, is dead.
const SILENT_MAX: Duration = Duration::from_secs(120);

/// Status and body.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// The next piece of a body; `None`: it has ended.
async fn piece(body: &mut Body) -> Result<Option<Vec<u8>>> {
    loop {
        let frame = tokio::time::timeout(SILENT_MAX, poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)));
        match frame.await.context("wait for more of an answer")? {
            None => return Ok(None),
            Some(Err(status)) => return Err(anyhow!("{status}").context("read an answer")),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data.to_vec()));
                }
            }
        }
    }
}

impl Cluster {
    async fn ask_http(&self, access: &Access, method: &str, path: &str) -> Result<Response<Body>> {
        let url = access.urls.first().context("name a coordinator")?;
        let client = Client::connect(url, &access.credentials).await?;
        let request = Request::builder().method(method).uri(path).body(Body::empty()).context("make a request")?;
        client.forward(request).await.with_context(|| format!("{method} {path}"))
    }

    /// One request, as a browser makes it.
    pub fn http(&self, access: &Access, method: &str, path: &str) -> Result<Answer> {
        self.wait_on(async {
            let (parts, mut body) = self.ask_http(access, method, path).await?.into_parts();
            let mut bytes = Vec::new();
            while let Some(more) = piece(&mut body).await? {
                bytes.extend(more);
            }
            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
            let headers =
                parts.headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
            Ok(Answer { status: parts.status.as_u16(), headers, body: String::from_utf8(bytes)? })
        })
    }

    /// Reads server-sent events as an admin until one is `found`: its name, its id and its data.
    pub fn events_until(&self, path: &str, mut found: impl FnMut(&str, &str, &str) -> Result<bool>) -> Result<()> {
        self.wait_on(async {
            let mut body = self.ask_http(&self.access(), "GET", path).await?.into_body();
            let mut text = String::new();
            while let Some(more) = piece(&mut body).await? {
                text.push_str(&String::from_utf8(more)?);
                while let Some((event, rest)) = text.split_once("\n\n") {
                    let field = |name: &str| {
                        let line = event.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                        line.unwrap_or_default().trim_start()
                    };
                    if found(field("event"), field("id"), field("data"))? {
                        return Ok(());
                    }
                    text = rest.to_string();
                }
            }
            Err(anyhow!("the stream {path} has ended before what was waited for"))
        })
    }
}
