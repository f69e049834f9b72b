//! What the trainer reports to the session.

use std::collections::BTreeMap;

use toroid_proto::{Inputs, StepRecord, Validation};
use toroid_torus::ids::{Epoch, JobId, Rank, Step, WorkerId};
use toroid_torus::manifest::ShardFile;

use crate::HeldAs;

/// What the trainer reports. Everything carries the job and the epoch it belongs to: another job may be in the same epoch.
#[derive(Debug)]
pub struct TrainerEvent {
    pub job_id: JobId,
    pub epoch: Epoch,
    pub event: Event,
}

/// What has happened in an epoch.
#[derive(Debug)]
pub enum Event {
    Prepared {
        committed_step: Step,
        /// None: a newcomer. Two, the older first, while not all are known to have split the state anew.
        held: Vec<HeldAs>,
        sealed_next: bool,
        /// It has the global sums from this step to the committed one.
        sums_from: Step,
        data_digest: [u8; 32],
        num_samples: u64,
        num_params: u64,
        /// What names the weights that it has read, by the job's key.
        weights: BTreeMap<String, String>,
        inputs: Box<Inputs>,
    },
    Connected,
    /// With the record of the step at rank 0.
    Committed {
        step: Step,
        record: Option<Box<StepRecord>>,
    },
    /// At rank 0: nobody has the figures of these steps any more.
    RecordsMissing {
        from: Step,
        through: Step,
    },
    Validated(Validation),
    ShardWritten {
        step: Step,
        file: Box<ShardFile>,
        write_s: f64,
    },
    /// `error` is empty where the request came too late.
    CheckpointFailed {
        step: Step,
        error: String,
    },
    Published {
        step: Step,
        bytes: u64,
        path: String,
    },
    PublishFailed {
        step: Step,
        error: String,
    },
    /// What came of the removals that were ordered with the publishing of `step`; one that is in neither list was not tried.
    Removed {
        step: Step,
        removed: Vec<Step>,
        /// With why they stay.
        kept: Vec<(Step, String)>,
    },
    Finished {
        step: Step,
    },
    /// `damaged`: what came from there was not what was sent.
    PeerLost {
        rank: Rank,
        error: String,
        damaged: bool,
    },
    /// Not all links of the epoch were up in time.
    Unreached(Vec<MissingLink>),
    /// What became of a [`Command::WarmUp`](crate::Command::WarmUp): why this worker cannot fill a place, or nothing.
    WarmedUp {
        number: u64,
        error: Option<String>,
        data_digest: [u8; 32],
        /// Why it does not see the checkpoint that the job has.
        unseen: Option<String>,
    },
    /// `fatal`: every other worker would fail in the same way. `checkpoint`: it could not be loaded. `restore`: the
    /// state of this epoch is not to be trusted. `corrupt_ranks`: these hold a wrong copy of a shard, whose other copy is right.
    Failed {
        error: String,
        fatal: bool,
        checkpoint: Option<BadCheckpoint>,
        restore: bool,
        corrupt_ranks: Vec<Rank>,
    },
}

/// A checkpoint of this job that could not be loaded, and what that says about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadCheckpoint {
    pub step: Step,
    pub fault: ReadFault,
}

/// What an error of loading a checkpoint says: about the checkpoint, or about the worker that read it (T-11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadFault {
    /// Bytes were read and are wrong, for every worker.
    Damaged,
    /// It was not found, or could not be read: a mount, permissions, I/O. Another worker may be able to.
    Unreadable {
        /// Only a file that the manifest names is missing or cannot be read.
        manifest_read: bool,
    },
}

/// A peer without a link when there should have been one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingLink {
    pub rank: Rank,
    pub worker_id: WorkerId,
    pub address: String,
    /// This rank called the peer; otherwise the peer was to call.
    pub called: bool,
    /// A verb phrase.
    pub problem: String,
}
