//! Spares are told ahead which job they may be needed for: most of what a place needs does not depend on whose it is.
//!
//! A spare warms up for the oldest job that has its places, and for the places of one (tp_rank, stage) of it: the next spare for the
//! next, so that several are ready for any. Nothing depends on it: a spare that was told nothing prepares when it has a place.

use std::collections::BTreeSet;

use proto::coordinator_message::Body;
use toroid_proto as proto;

use super::{Machine, Now};

impl Machine {
    /// Tells the spares that have not heard of it yet.
    pub(super) fn warm_spares(&mut self, now: Now) {
        let (jobs, cx) = self.split(now);
        let placed = jobs.values().filter(|job| job.record.state.is_placed());
        let Some(job) = placed.min_by_key(|job| job.record.number) else { return };
        let (record, shape) = (&job.record, &job.record.spec.shape);
        let mut seen = BTreeSet::new();
        let coordinate = |rank: usize| (shape.place(rank).tp, shape.place(rank).pp);
        let ranks: Vec<usize> = (0..shape.world()).filter(|rank| seen.insert(coordinate(*rank))).collect();
        let spares: Vec<String> = cx.pool.spares().map(|w| w.register.worker_id.clone()).collect();
        for (worker, rank) in spares.iter().zip(ranks.into_iter().cycle()) {
            let ahead = (record.id.clone(), *shape);
            let Some(worker) = cx.pool.get_mut(worker).filter(|w| w.warm_for.as_ref() != Some(&ahead)) else {
                continue;
            };
            let stream = worker.stream;
            worker.warm_for = Some(ahead);
            let warm_up = proto::WarmUp {
                job_id: record.id.clone(),
                rank: rank as u32,
                job_json: serde_json::to_string(&record.spec).expect("a job spec has only string keys"),
                checkpoint_root: super::view::checkpoint_root(record, &cx.config.jobs_dir),
            };
            cx.out.send(stream, Body::WarmUp(warm_up));
        }
    }
}
