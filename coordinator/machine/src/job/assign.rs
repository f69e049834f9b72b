//! What workers are told of their places: `Assign`, which grows neither with the job nor with what stays as it was.
//!
//! ```text
//!   who has no place of the job yet, or has come back on another stream:  the job, and where all are that its place has links with
//!   who was told of the epoch before, on the stream that it still has:    which of those are others now
//! ```
//!
//! A place has links with its row, its column and the other holders of its shards (`Shape::peers`). Where the state may have to be split
//! anew, which may link any two places, everybody is told where all are.

use super::Job;
use crate::context::Context;
use crate::folders::checkpoint_root;
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::ids::{Epoch, Rank};
use toroid_torus::job::JobSpec;

impl Job {
    /// The workers of all places hear of the epoch that begins.
    pub(super) fn assign_all(&mut self, cx: &mut Context<'_>) {
        self.assigned.begin(&self.core.record, cx.pool);
        let all = self.said_to_all(cx);
        for rank in Rank::all(self.core.world()) {
            self.say_assign(cx, rank, &all);
        }
    }

    /// The worker of this place has not heard of the present epoch.
    pub(super) fn assign(&mut self, cx: &mut Context<'_>, rank: Rank) {
        assert_eq!(
            self.assigned.epoch(),
            self.core.record.epoch,
            "an epoch that is prepared was assigned when it began"
        );
        let all = self.said_to_all(cx);
        self.say_assign(cx, rank, &all);
    }

    /// What no place is told alone.
    fn said_to_all(&self, cx: &Context<'_>) -> proto::Assign {
        let record = &self.core.record;
        proto::Assign {
            job_id: record.id.to_string(),
            epoch: record.epoch.get(),
            rank: 0,
            since_epoch: 0,
            job_json: serde_json::to_string(&JobSpec { shape: record.shape, ..record.spec.clone() })
                .expect("a job spec has only string keys"),
            peers: Vec::new(),
            link_key: record.link_key(cx.secret).to_vec(),
            checkpoint_root: checkpoint_root(record, &cx.config.jobs_dir),
            restore_step: record.restore_step.get(),
            heal: self.core.can_heal(),
            owner_id: record.owner.as_ref().map(|owner| owner.bytes().to_vec()).unwrap_or_default(),
            submitted_unix_ms: record.submitted_unix_ms,
            begun_without_owner: record.begun_without_owner,
        }
    }

    fn say_assign(&self, cx: &mut Context<'_>, rank: Rank, all: &proto::Assign) {
        let record = &self.core.record;
        let Some(worker) = record.worker_at(rank) else { return };
        let knows = |since: &Epoch| cx.pool.get(worker).is_some_and(|w| w.was_told(&record.id, *since, rank));
        let rank_on_wire = rank.to_wire();
        let named = |peers: &dyn Fn() -> Vec<proto::Peer>| if cx.names_peers { peers() } else { Vec::new() };
        let assign = match self.assigned.since().filter(knows) {
            Some(since) => proto::Assign {
                rank: rank_on_wire,
                since_epoch: since.get(),
                job_json: String::new(),
                peers: named(&|| self.assigned.changed_of(&record.shape, rank)),
                job_id: all.job_id.clone(),
                link_key: all.link_key.clone(),
                checkpoint_root: all.checkpoint_root.clone(),
                owner_id: all.owner_id.clone(),
                ..*all
            },
            None => {
                let peers = named(&|| self.assigned.peers_of(&record.shape, rank));
                proto::Assign { rank: rank_on_wire, peers, ..all.clone() }
            }
        };
        cx.pool.tell_place(worker, &record.id, record.epoch, rank);
        self.core.send(cx, rank, Body::Assign(assign));
    }
}
