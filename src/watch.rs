//! Following a job to its end, across broken connections and restarts of the coordinator.
//!
//! Invariants: an event is given once, also where a new connection tells the kept ones again; [`Follow::next`] may be dropped
//! while it waits (in a `select!`) and loses nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tonic::{Code, Streaming};
use toroid_proto as proto;
use toroid_proto::json::is_ended;

use crate::access::Access;
use crate::client::{Client, explain};

/// Jobs go on without a coordinator; whoever watches one gives it this long to come back.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Between two attempts to reach the coordinator again.
const PAUSE: Duration = Duration::from_millis(200);

/// One job, followed.
pub struct Follow {
    access: Access,
    job: String,
    /// How long the coordinator may be away; zero: the first connection must succeed.
    patience: Duration,
    stream: Option<Streaming<proto::JobUpdate>>,
    /// Since when it is away.
    away_since: Option<Instant>,
    next_step: u64,
    events: SeenEvents,
    /// The job was last seen in a state that it does not leave.
    is_ended: bool,
    /// And the stream gave all there is.
    is_complete: bool,
}

impl Follow {
    /// `patience`: how long the coordinator may be away before that is an error.
    pub fn new(access: Access, job: &str, patience: Duration) -> Follow {
        Follow {
            access,
            job: job.into(),
            patience,
            stream: None,
            away_since: None,
            next_step: 0,
            events: SeenEvents::default(),
            is_ended: false,
            is_complete: false,
        }
    }

    /// The next change of the job; `None` once it has ended.
    pub async fn next(&mut self) -> Result<Option<proto::JobUpdate>> {
        while !self.is_complete {
            let Some(stream) = &mut self.stream else {
                self.connect().await?;
                continue;
            };
            match stream.message().await {
                Ok(Some(update)) => return Ok(Some(self.take(update))),
                Ok(None) => {
                    self.stream = None;
                    self.is_complete = self.is_ended;
                }
                Err(status) if is_transient(status.code()) => self.stream = None,
                Err(status) => return Err(explain("watch the job", &self.access.urls.join(", "), &status)),
            }
            self.away_since.get_or_insert_with(Instant::now);
        }
        Ok(None)
    }

    async fn connect(&mut self) -> Result<()> {
        if self.away_since.is_some() {
            tokio::time::sleep(PAUSE).await;
        }
        let urls = self.access.urls.join(", ");
        let failure = match Client::find(&self.access).await {
            Ok(mut client) => match client.watch(&self.job, self.next_step).await {
                Ok(stream) => {
                    self.stream = Some(stream);
                    return Ok(());
                }
                Err(status) if is_transient(status.code()) => explain("watch the job", &urls, &status),
                Err(status) => return Err(explain("watch the job", &urls, &status)),
            },
            Err(error) => error,
        };
        let away_since = *self.away_since.get_or_insert_with(Instant::now);
        if away_since.elapsed() >= self.patience {
            bail!(failure);
        }
        Ok(())
    }

    fn take(&mut self, mut update: proto::JobUpdate) -> proto::JobUpdate {
        self.away_since = None;
        if let Some(last) = update.steps.last() {
            self.next_step = last.step + 1;
        }
        update.events = self.events.only_new(update.events);
        self.is_ended = update.job.as_ref().is_some_and(|job| is_ended(job.state()));
        update
    }
}

fn is_transient(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal)
}

/// Knows the events that were given already. They come in order, and again from the oldest that is kept.
#[derive(Debug, Default)]
struct SeenEvents {
    last: Option<proto::Event>,
}

impl SeenEvents {
    fn only_new(&mut self, mut events: Vec<proto::Event>) -> Vec<proto::Event> {
        if let Some(at) = self.last.as_ref().and_then(|last| events.iter().rposition(|e| e == last)) {
            events.drain(..=at);
        }
        if let Some(newest) = events.last() {
            self.last = Some(newest.clone());
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_are_told_again_are_given_once() {
        let event = |unix_ms| proto::Event { unix_ms, kind: "k".into(), ..Default::default() };
        let mut seen = SeenEvents::default();
        let mut check = |told: &[i64], expected: &[i64]| {
            let found = seen.only_new(told.iter().map(|ms| event(*ms)).collect());
            assert_eq!(found.iter().map(|e| e.unix_ms).collect::<Vec<_>>(), expected);
        };
        check(&[1, 2], &[1, 2]);
        check(&[3], &[3]);
        check(&[], &[]);
        // A new connection: all kept ones again, and one more.
        check(&[1, 2, 3, 4], &[4]);
        check(&[2, 3, 4], &[]);
        // So many happened meanwhile that the last one is no longer kept.
        check(&[7, 8], &[7, 8]);
    }
}
