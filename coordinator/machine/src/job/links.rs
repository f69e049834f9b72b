//! Links between living workers of a job that are not there: told, weighed, and who goes for it (T-11).

use super::Job;
use super::failures::MAX_FAILURES;
use crate::cause::Cause;
use crate::context::Context;
use crate::deadlines::Deadline;
use crate::fitness::Until;
use crate::reach::{Culprits, Fault, Report};
use crate::record::SeenBy;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::ids::Rank;

impl Job {
    pub(super) fn peer_lost(&mut self, cx: &mut Context<'_>, rank: Rank, message: &proto::PeerLost) {
        let fault = if message.damaged { Fault::Damaged } else { Fault::Lost };
        self.link_missed(cx, rank, Rank::from(message.rank), fault, &message.error);
    }

    pub(super) fn unreached(&mut self, cx: &mut Context<'_>, rank: Rank, message: &proto::Unreached) {
        for peer in &message.peers {
            let fault = if peer.called { Fault::NotReached } else { Fault::NoCall };
            self.link_missed(cx, rank, Rank::from(peer.rank), fault, &peer.reason);
        }
    }

    fn link_missed(&mut self, cx: &mut Context<'_>, rank: Rank, peer: Rank, fault: Fault, error: &str) {
        if peer.index() >= self.core.world()
            || peer == rank
            || !self.core.has_all_places()
            || !self.core.epoch.is_started()
        {
            return;
        }
        let what = match fault {
            Fault::NotReached => "does not reach",
            Fault::NoCall => "is not called by",
            Fault::Lost => "lost its link to",
            Fault::Damaged => "had damaged frames from",
        };
        let text = format!("{} {what} {}: {error}", self.core.describe(rank), self.core.describe(peer));
        let (by, of) = (self.core.record.worker_at(rank).cloned(), self.core.record.worker_at(peer).cloned());
        let (Some(by), Some(of)) = (by, of) else { return };
        self.reach.missed(&mut self.core.context(cx), Report { by, of, fault, text });
    }

    /// Both ends of what was reported are still connected.
    pub(super) fn links_passed(&mut self, cx: &mut Context<'_>) {
        self.core.deadlines.clear(&Deadline::Links);
        let fitness = &self.fitness;
        let Culprits { workers: culprits, first } = self.reach.weigh(
            |worker| fitness.is_new(worker),
            |worker| fitness.is_new(worker) != failpoint!(BlameTheInnocent),
            |worker| fitness.is_linked(worker),
        );
        let mut has_lost = false;
        for (worker, text) in culprits {
            let Some(rank) = self.core.record.rank_of(&worker) else { continue };
            // An established worker gives way only to another.
            if !self.fitness.is_new(&worker) && !self.has_candidate(cx.pool) {
                continue;
            }
            let why =
                format!("has no link with others: {text}; look at the address that it is dialled at (--advertise)");
            self.mark_unfit(cx, &worker, &why, Until::Retry);
            self.lose(cx, rank, Cause::new(SeenBy::PeerReport, why));
            has_lost = true;
        }
        if let Some(report) = first.filter(|_| !has_lost) {
            self.begin_again_without(cx, &report);
        }
    }

    /// Only the link is broken, as far as can be told.
    fn begin_again_without(&mut self, cx: &mut Context<'_>, report: &Report) {
        let Some(rank) = self.core.record.rank_of(&report.of) else { return };
        let mut ends = self.core.record.rank_of(&report.by).into_iter().chain([rank]);
        let text = match ends.find(|end| self.core.epoch.awaited().contains(end)) {
            Some(end) => {
                let who = self.core.describe(end);
                format!("{}; {who} has not come back since the coordinator was started", report.text)
            }
            None => format!("{}; both are alive", report.text),
        };
        if self.count_failure(cx, rank) >= MAX_FAILURES {
            let reason = format!("links to rank {rank} broke {MAX_FAILURES} times without a new step: {text}");
            return self.end(cx, crate::record::State::Failed, &reason);
        }
        self.begin_again(cx, SeenBy::PeerReport, text);
    }
}
