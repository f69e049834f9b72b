//! What changes, as server-sent events: one stream for all panels of a tab.
//!
//! - `pool`: who leads, all jobs in short, and the workers; once a second at most;
//! - `job`: the job that is looked at: what `-o json` says of it, its places, new steps by columns, new events. Its id is the step that is to come,
//!   from which a stream that broke goes on (`Last-Event-ID`);
//! - comments, so that nothing between takes a quiet stream for dead.
//!
//! ```text
//!   all streams ── looks, once for all ──> Pool, Look     version n: what differs from n - 1, and (made when it is asked for) all there is
//!   a stream that has n - 1 is sent what differs, one that is new or was slower is sent all: `"first": true`
//! ```
//!
//! A browser that does not read holds up its own stream only: what is to be sent is made when what was sent has been taken, and whatever came
//! between is skipped.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Http;
use super::error::HttpError;
use super::look::Follower;

/// Between two looks: so much shorter than what is said is old at most that no stream misses a version, or it would be sent all there is.
const INTERVAL: Duration = Duration::from_millis(250);
/// Under what proxies take for dead: a minute in most.
const PING_INTERVAL: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
pub(super) struct StreamQuery {
    #[serde(default)]
    job: String,
    /// The first step that is wanted.
    #[serde(default)]
    from: u64,
}

pub(super) async fn stream(
    State(http): State<Http>,
    Query(query): Query<StreamQuery>,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()?.parse().ok());
    // Who asks for a job that there is none of hears that at once, and not in the stream.
    let job = match query.job.as_str() {
        "" => None,
        job => Some(http.looks.follow(job, last.unwrap_or(query.from)).await?),
    };
    let (events, sent) = mpsc::channel(1);
    tokio::spawn(Watcher { http, job, pool_version: 0, events }.run());
    let headers = [(header::CACHE_CONTROL, "no-store"), (HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((headers, Sse::new(ReceiverStream::new(sent))).into_response())
}

/// One stream.
struct Watcher {
    http: Http,
    /// `None`: no job is looked at.
    job: Option<Follower>,
    pool_version: u64,
    events: mpsc::Sender<Result<Event, Infallible>>,
}

impl Watcher {
    /// Until nobody reads it any more, or there is nobody to ask.
    async fn run(mut self) {
        let mut sent_at = Instant::now();
        loop {
            let new = match self.new_events().await {
                Ok(new) => new,
                Err(status) => {
                    // Nobody may be left to hear of it.
                    self.send(ended(&status)).await;
                    return;
                }
            };
            let is_quiet = new.is_empty() && sent_at.elapsed() >= PING_INTERVAL;
            for event in new.into_iter().chain(is_quiet.then(|| Event::default().comment(""))) {
                sent_at = Instant::now();
                if !self.send(event).await {
                    return;
                }
            }
            if self.job.as_ref().is_some_and(Follower::has_more) {
                continue;
            }
            tokio::select! {
                () = tokio::time::sleep(INTERVAL) => {}
                () = self.events.closed() => return,
            }
        }
    }

    async fn new_events(&mut self) -> Result<Vec<Event>, Status> {
        let mut new = Vec::new();
        if let Some(job) = &mut self.job
            && let Some((step, text)) = job.next().await?
        {
            new.push(Event::default().event("job").id(step.to_string()).data(&*text));
        }
        if let Some((version, text)) = self.http.pool.next(self.pool_version).await? {
            self.pool_version = version;
            new.push(Event::default().event("pool").data(&*text));
        }
        Ok(new)
    }

    async fn send(&self, event: Event) -> bool {
        self.events.send(Ok(event)).await.is_ok()
    }
}

/// Why the stream ends: the page says it, and asks again.
fn ended(status: &Status) -> Event {
    Event::default().event("ended").data(status.message().replace(['\r', '\n'], " "))
}
