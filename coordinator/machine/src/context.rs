//! What a decision may look at and act on: time, limits, the workers that are there, and what leads out of the machine.

use std::collections::BTreeSet;

use super::api::{Output, Reply, RequestError, RequestId, StreamId};
use super::clock::Now;
use super::config::Config;
use super::pool::Pool;
use super::record::Record;
use toroid_proto as proto;
use toroid_torus::ids::JobId;

/// What an input leads to, collected until all of it is known.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub effects: Vec<Output>,
    pub dirty: BTreeSet<JobId>,
    /// Keys of records that are not kept any longer.
    pub removed: Vec<String>,
    pub dirty_meta: bool,
    /// Of tokens and worker ids.
    pub records: Vec<Record>,
    /// By job and number.
    pub dirty_incidents: BTreeSet<(JobId, u64)>,
    /// By job and page.
    pub dirty_validations: BTreeSet<(JobId, u64)>,
    pub changed: BTreeSet<JobId>,
    /// Workers or jobs came or went: look whether a place can be filled.
    pub unsettled: bool,
}

impl Outbox {
    /// The term comes with all that one input leads to, see [`crate::Machine`].
    pub fn send(&mut self, stream: StreamId, body: proto::coordinator_message::Body) {
        let message = Box::new(proto::CoordinatorMessage { body: Some(body), ..Default::default() });
        self.effects.push(Output::Send { stream, message });
    }

    /// A job's record changed: it is stored, and watchers are told.
    pub fn changed(&mut self, job: &JobId) {
        self.dirty.insert(job.clone());
        self.changed.insert(job.clone());
    }

    pub fn reply(&mut self, request: RequestId, reply: Result<Reply, RequestError>) {
        self.effects.push(Output::Reply { request, reply });
    }

    pub fn close(&mut self, stream: StreamId, reason: impl Into<String>) {
        self.effects.push(Output::Close { stream, reason: reason.into() });
    }
}

/// What a job may look at and act on while it handles something.
pub(crate) struct Context<'a> {
    pub pool: &'a mut Pool,
    pub out: &'a mut Outbox,
    pub config: &'a Config,
    pub secret: &'a [u8; 32],
    pub now: Now,
    /// Workers are told where those are that they have links with.
    pub names_peers: bool,
}
