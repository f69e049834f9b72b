//! What is kept of an incident.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use toroid_torus::ids::{Epoch, JobId, Rank, Step, WorkerId};

use crate::clock::Moment;

/// How a failure, or a move that was asked for, came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SeenBy {
    /// The worker's control stream ended.
    StreamClosed,
    /// It said nothing for the failure timeout.
    Silence,
    /// It registered and did not know its place.
    Registration,
    /// It did not come back after a restart of the coordinator.
    CoordinatorRestart,
    /// Another lost the link to it.
    PeerReport,
    /// It said so itself.
    WorkerReport,
    /// Two copies of a shard differ.
    Digests,
    /// Others wait for it and it does not get on.
    WaitsFor,
    /// What the workers prepared does not fit.
    Prepared,
    /// A user asked, or the worker was told to end.
    Drain,
    /// The worker was told to end, and could not wait for another to take its place.
    Left,
    /// Workers are there for another replica.
    Capacity,
    /// A job of a higher priority is to have them.
    Priority,
}

impl SeenBy {
    pub fn name(self) -> &'static str {
        match self {
            SeenBy::StreamClosed => "stream closed",
            SeenBy::Silence => "silence",
            SeenBy::Registration => "registration",
            SeenBy::CoordinatorRestart => "coordinator's restart",
            SeenBy::PeerReport => "peer's report",
            SeenBy::WorkerReport => "worker's report",
            SeenBy::Digests => "digests",
            SeenBy::WaitsFor => "waits-for edges",
            SeenBy::Prepared => "preparation",
            SeenBy::Drain => "drain",
            SeenBy::Left => "worker's end",
            SeenBy::Capacity => "capacity",
            SeenBy::Priority => "priority",
        }
    }
}

/// What was done about an incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// Other workers took the places.
    Spare,
    /// The lost worker's host had it back, and nobody else was there.
    Restart,
    /// Nobody had to be replaced: all began the next epoch with their state.
    Reconnect,
    /// Nobody was there for the place: the others go on as fewer replicas, with the same samples in every step.
    Shrink,
    /// Workers came back: there are more replicas again.
    Grow,
    /// There is nobody for the place yet.
    Wait,
    /// All went back to the newest checkpoint.
    Restore,
    /// The place was moved on request.
    Drain,
}

impl Rung {
    pub fn name(self) -> &'static str {
        match self {
            Rung::Spare => "spare",
            Rung::Restart => "restart",
            Rung::Reconnect => "reconnect",
            Rung::Shrink => "shrink",
            Rung::Grow => "grow",
            Rung::Wait => "wait",
            Rung::Restore => "restore",
            Rung::Drain => "drain",
        }
    }
}

/// From a failure to the next step that all commit; failures on the way belong to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Incident {
    pub job: JobId,
    /// From 1 within the job.
    pub number: u64,
    pub unix_ms: i64,
    pub cause: String,
    pub seen_by: SeenBy,
    pub ranks: BTreeSet<Rank>,
    pub workers: BTreeSet<WorkerId>,
    pub rung: Rung,
    /// Why this rung, in words.
    pub reason: String,
    /// Committed when it was seen.
    pub step: Step,
    /// The step that all went on from.
    pub resumed_step: Step,
    pub steps_lost: u64,
    /// That ended it.
    pub epoch: Epoch,
    /// Last sign of life to seen.
    pub detect_s: f64,
    /// To the new epoch on its way; waiting for a worker counts here.
    pub fence_s: f64,
    /// To the last report.
    pub decide_s: f64,
    /// To the first commit, less a step's time.
    pub heal_s: f64,
    /// Making again the step in flight, and after a restore all that were lost.
    pub redo_s: f64,
    pub resolved: bool,
    /// When it was stored, the epoch that ends it was started: its next step does, whichever coordinator hears of it.
    #[serde(default)]
    pub is_healing: bool,
    /// What lasts is accounted for up to here.
    #[serde(default)]
    pub since: Option<Moment>,
}

impl Incident {
    /// From its being seen on.
    pub fn total_s(&self) -> f64 {
        self.fence_s + self.decide_s + self.heal_s + self.redo_s
    }
}
