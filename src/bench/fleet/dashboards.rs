//! Dashboards that somebody has open, without a browser: the stream of events that a page reads, and one that nobody reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result, ensure};
use axum::body::Body;
use axum::http::Response;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

use crate::access::Access;
use crate::client::Client;

pub struct Dashboards {
    access: Access,
    path: String,
    read_bytes: Arc<AtomicU64>,
    reading: JoinSet<()>,
    /// Their answers have begun, and are not read.
    stalled: Vec<Response<Body>>,
}

impl Dashboards {
    pub fn new(access: Access, job: &str) -> Dashboards {
        Dashboards {
            access,
            path: format!("/api/stream?job={job}&from=0"),
            read_bytes: Arc::default(),
            reading: JoinSet::new(),
            stalled: Vec::new(),
        }
    }

    /// Over a connection of its own, as each tab's is.
    async fn stream(&self) -> Result<Response<Body>> {
        let client = Client::find(&self.access).await?;
        let mut request = axum::http::Request::new(tonic::body::Body::empty());
        *request.uri_mut() = self.path.parse().context("name the stream of events")?;
        let answer = client.forward(request).await?;
        ensure!(answer.status().is_success(), "the coordinator answers a dashboard with {}", answer.status());
        Ok(answer.map(Body::new))
    }

    /// Opens one more, which reads whatever comes.
    pub async fn open(&mut self) -> Result<()> {
        let mut events = self.stream().await?.into_body().into_data_stream();
        let read_bytes = Arc::clone(&self.read_bytes);
        self.reading.spawn(async move {
            while let Some(Ok(bytes)) = events.next().await {
                read_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
        });
        Ok(())
    }

    /// Opens one more, which reads nothing.
    pub async fn stall(&mut self) -> Result<()> {
        let answer = self.stream().await?;
        self.stalled.push(answer);
        Ok(())
    }

    /// All of them together, so far.
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    /// That are read, and whose coordinator has not ended them.
    pub fn num_open(&mut self) -> usize {
        while self.reading.try_join_next().is_some() {}
        self.reading.len()
    }
}
