//! Workers that hold what this store does not know: they stand apart, and keep it (T-14).
//!
//! ```text
//!   Register names: store, term, job, owner, epoch       another store                          refused: apart
//!                                                        this one, a greater term               refused, and this coordinator leads anew beyond it
//!                                                        this one, a job that it never had      refused: apart
//!                                                        this one, a later epoch of a job       the job goes on from it (`job::adopt`)
//! ```
//!
//! A store that comes up empty or from an old copy knows less than the workers do, and whoever is told to drop a place loses what nobody else may have.
//! So nobody is. Workers that have no place join whatever store there is. Deliberately absent: workers that do not say whose place they have (of
//! an earlier version); they drop what they are told to.

use super::Machine;
use crate::apart::store_id;
use crate::api::Output;
use crate::clock::Now;
use toroid_proto as proto;
use toroid_torus::ids::{Epoch, Term};

/// So many terms are not led in the life of a store: whoever says more has not heard them.
const MAX_TERMS_AHEAD: u64 = 1 << 20;
/// Of the failure timeout: who has not asked again for so long is gone.
const SHOWN_FOR: u32 = 4;

impl Machine {
    /// Why a worker that registers keeps what it holds and has no part here, if so.
    pub(super) fn stands_apart(&mut self, register: &proto::Register, now: Now) -> Option<String> {
        let limit = self.config.limits.failure_timeout * SHOWN_FOR;
        self.apart.forget_before(now.monotonic.saturating_sub(limit));
        let Some(reason) = self.knows_less_than(register) else {
            self.apart.remove(&register.worker_id);
            return None;
        };
        if !register.job_id.is_empty() {
            self.apart.insert(register, &reason, now.monotonic);
        }
        Some(reason)
    }

    fn knows_less_than(&mut self, register: &proto::Register) -> Option<String> {
        let job = &register.job_id;
        if register.store_id.is_empty() {
            return None;
        }
        if register.store_id != store_id(&self.meta.secret) {
            return (!job.is_empty()).then(|| {
                format!(
                    "this coordinator's store is not the one that gave the place in {job}: it is empty, or of another cluster. Start the coordinator \
                     with the store of then (its --dir, its etcd), or a copy of it; to give the place up, start the worker again"
                )
            });
        }
        let (heard, term) = (Term::new(register.term), self.config.term);
        if heard > term {
            return Some(self.lead_beyond(heard));
        }
        if job.is_empty() {
            return None;
        }
        let why = match self.jobs.get(job.as_str()).map(|job| job.record()) {
            None if self.meta.forgotten.iter().any(|id| *id == *job.as_str()) => return None,
            None => "does not know the job",
            Some(record) if record.owner.as_ref().is_some_and(|owner| owner.bytes()[..] != register.owner_id[..]) => {
                "has another job of this id"
            }
            Some(record) if record.state.is_ended() && Epoch::new(register.epoch) > record.epoch => {
                "has the job as one that had ended"
            }
            Some(_) => return None,
        };
        let step = register.committed_step;
        Some(format!(
            "this coordinator's store is a copy from before the place in {job} (epoch {}, step {step}) was given: it {why}. Start the coordinator with a \
             newer copy; or submit the job again from its newest checkpoint (resume_from), and start the worker again",
            register.epoch
        ))
    }

    /// Whoever has heard a greater term takes nothing of this one: the store is a copy from before it.
    fn lead_beyond(&mut self, heard: Term) -> String {
        let term = self.config.term;
        if heard.get() - term.get() > MAX_TERMS_AHEAD {
            return format!(
                "the worker says that it has heard term {} of this store, which has led {} times: that cannot be; start the worker again",
                heard.get(),
                term.get()
            );
        }
        let reason = format!(
            "a worker has heard term {} of this store, and this coordinator leads with {}: its store is an older copy, or another has led since",
            heard.get(),
            term.get()
        );
        self.out.effects.push(Output::LeadAnew { beyond: heard, reason: reason.clone() });
        format!("{reason}; it leads anew with a greater one")
    }

    /// For users: who keeps what this store does not know.
    pub fn view_apart(&self, now: Now) -> Vec<proto::ApartWorker> {
        let limit = self.config.limits.failure_timeout * SHOWN_FOR;
        self.apart.since(now.monotonic.saturating_sub(limit)).cloned().collect()
    }
}
