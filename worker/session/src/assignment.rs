//! A place in a job as the coordinator assigns it, and what a spare prepares for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use toroid_torus::geometry::{Place, Shape};
use toroid_torus::ids::{Epoch, JobId, Rank, Step, WorkerId};
use toroid_torus::job::JobSpec;
use toroid_torus::owner::Owner;
use toroid_torus::resplit::Origin;

use crate::{Event, TrainerEvent};

/// A place in a job, checked.
#[derive(Debug, Clone)]
pub struct Assignment {
    pub job_id: JobId,
    pub epoch: Epoch,
    pub rank: Rank,
    /// Its shape is that of this epoch, which may have fewer replicas than the job file asks for.
    pub spec: Arc<JobSpec>,
    /// This rank, those that it has links with, and others where the state may have to be split anew.
    pub peers: Arc<BTreeMap<Rank, PeerAddr>>,
    pub link_key: [u8; 32],
    /// Folder or URL that holds `step-<n>`.
    pub checkpoint_root: String,
    /// This job, as the record in the folder names it.
    pub owner: Owner,
    pub claim: Claim,
    /// `None`: initial weights, or what `spec.resume_from` names.
    pub restore_step: Option<Step>,
    /// Workers with the job's state keep it; the others pull it from the holders of its shards.
    pub heal: bool,
}

impl Assignment {
    pub fn place(&self) -> Place {
        self.spec.shape.place(self.rank.index())
    }

    /// How the shards of this place are to be split.
    pub fn held_as(&self) -> HeldAs {
        HeldAs { shape: self.spec.shape, rank: self.rank }
    }

    /// Of this job and epoch.
    pub fn event(&self, event: Event) -> TrainerEvent {
        TrainerEvent { job_id: self.job_id.clone(), epoch: self.epoch, event }
    }
}

/// Where a worker's links are dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddr {
    pub worker_id: WorkerId,
    /// `host:port` of its listener.
    pub address: String,
}

impl PeerAddr {
    /// Workers of one host find each other by it.
    pub fn port(&self) -> Option<u16> {
        self.address.rsplit_once(':').and_then(|(_, port)| port.parse().ok())
    }
}

/// What a job may find in a checkpoint folder without an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// No step: it has written none.
    New,
    /// Its own steps, written by a version of Toroid that wrote no owner.
    Begun,
}

/// Two shards, as the place of a rank in a shape has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldAs {
    pub shape: Shape,
    pub rank: Rank,
}

/// What the coordinator decided from the reports of a healing epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealPlan {
    /// All ranks go on from this step.
    pub step: Step,
    /// A rank that has committed it.
    pub source: Rank,
    /// Ranks without state.
    pub newcomers: BTreeSet<Rank>,
    /// The state is split anew, from this; `None`: every rank has its own shards already, or is a newcomer.
    pub origin: Option<Origin>,
    /// The coordinator has the records up to this step.
    pub recorded: Step,
}

/// A place that a spare gets ready for.
#[derive(Debug, Clone)]
pub struct WarmUp {
    pub job_id: JobId,
    pub spec: Arc<JobSpec>,
    /// The spare will most likely get a place with the tp_rank and the stage of this one.
    pub rank: Rank,
    pub checkpoint_root: String,
    /// The answer carries it.
    pub number: u64,
    /// A checkpoint of the job, which the spare has to see.
    pub checkpoint_step: Option<Step>,
}

/// One probe: which worker to dial, and with what key.
#[derive(Clone)]
pub struct Knock {
    pub number: u64,
    pub peer: PeerAddr,
    pub key: [u8; 32],
}

/// Without the key.
impl fmt::Debug for Knock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Knock").field("number", &self.number).field("peer", &self.peer).finish_non_exhaustive()
    }
}
