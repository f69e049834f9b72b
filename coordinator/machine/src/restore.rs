//! Checkpoints that cannot be read when all go back to the newest.
//!
//! ```text
//!   bytes were read and are wrong ─────────────────────────────> damaged ──> the one before
//!   a worker does not find it, or cannot read it ──> another in its place ──> it could: nothing is lost
//!                                                       │ could not either
//!                                                       v
//!                                                 unreadable ──> the one before ... none left ──> the job waits for a user
//! ```
//!
//! - **T-11** *I cannot read it* is a fault of the reader until another has failed, too: on another host where there is one, and while
//!   somebody is there who has not tried yet not before [`MAX_READERS`] have. Where anyone has read the manifest, who does not find it
//!   is always the one to blame.
//! - A job that had checkpoints never begins from scratch by itself: it waits as queued, on hold, for a worker that comes or for
//!   `toroid resume`.
//! - Until all have loaded a checkpoint the curve stays as it is: the one that is tried first may be read later.

use std::collections::{BTreeMap, BTreeSet};

use toroid_proto as proto;

use super::failures::Cause;
use super::fitness::Until;
use super::job::Job;
use super::record::{Hold, SeenBy, State, Unusable};
use super::{Context, Machine, Now, Reply, RequestId};

/// So many workers that could not read a checkpoint are enough, whoever else is there.
const MAX_READERS: usize = 4;
/// Checkpoints that a reason names one by one.
const MAX_NAMED: usize = 4;

/// Who could not read a checkpoint.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// Somebody has read its manifest.
    manifest_read: bool,
    failed: BTreeMap<String, Reader>,
}

#[derive(Debug)]
struct Reader {
    host: String,
    /// It has read the manifest, and could not read a file that it names.
    manifest_read: bool,
}

impl Readers {
    /// Those whose failure says something about the checkpoint.
    fn counted(&self) -> impl Iterator<Item = (&String, &Reader)> {
        self.failed.iter().filter(|(_, reader)| reader.manifest_read || !self.manifest_read)
    }
}

impl Machine {
    pub(super) fn resume_job(&mut self, request: RequestId, id: &str, from_scratch: bool, now: Now) {
        let (jobs, mut cx) = self.split(now);
        let reply = match jobs.get_mut(id) {
            None => Err(self.unknown(id)),
            Some(job) if job.record.hold.is_none() => Err(job.refuse("resumed")),
            Some(job) => {
                match from_scratch {
                    true => job.give_up_checkpoints(&mut cx),
                    false => job.try_again(&mut cx, "a user asked for it", |_| true),
                }
                Ok(Reply::Resumed { job: id.into() })
            }
        };
        self.out.reply(request, reply);
    }

    /// A worker that comes may see what the others do not.
    pub(super) fn try_unreadable_again(&mut self, worker: &str, now: Now) {
        let (jobs, mut cx) = self.split(now);
        for job in jobs.values_mut().filter(|job| job.record.hold.is_some()) {
            if job.record.unusable.values().any(|u| !u.is_damaged) {
                job.try_again(&mut cx, &format!("{worker} has come"), |unusable| !unusable.is_damaged);
            }
        }
    }
}

impl Job {
    /// Bytes of the checkpoint that the epoch began from are wrong: it does not count any more, all go on from the one before.
    pub fn checkpoint_damaged(&mut self, cx: &mut Context<'_>, rank: usize, error: &str) {
        let step = self.record.restore_step;
        let text = format!("{} cannot read the checkpoint of step {step}: {error}", self.describe(rank));
        self.event(cx, "checkpoint.damaged", text.clone());
        self.pass_over(step, &text, true);
        self.begin_again(cx, SeenBy::WorkerReport, text);
    }

    /// One worker cannot read the checkpoint that the epoch began from (T-11).
    pub fn checkpoint_unreadable(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::Failed) {
        let (step, error) = (self.record.restore_step, &message.error);
        let Some(worker) = self.record.places[rank].clone() else { return };
        let host = cx.pool.get(&worker).map(|w| w.register.host.clone()).unwrap_or_default();
        // Whoever has prepared in this epoch has loaded it.
        let has_loaded = !self.live.prepared.is_empty();
        let readers = self.live.readers.entry(step).or_default();
        readers.manifest_read |= message.manifest_read || has_loaded;
        readers.failed.insert(worker.clone(), Reader { host, manifest_read: message.manifest_read });
        let unable = format!("cannot read the checkpoint of step {step}: {error}");
        self.mark_unfit(cx, &worker, &unable, Until::Anew);
        if !self.is_unreadable(cx, step) {
            let why = format!(
                "cannot read the checkpoint of step {step}: {error}; that is its own fault until another cannot either, so it is \
                 given no place of this job until it is started anew"
            );
            return self.lose(cx, rank, Cause::new(SeenBy::Prepared, why));
        }
        let text = format!("{} cannot read the checkpoint of step {step} either: {error}", self.describe(rank));
        let readers = self.live.readers.remove(&step).unwrap_or_default();
        let failed: Vec<&String> = readers.counted().map(|(worker, _)| worker).collect();
        for worker in &failed {
            self.live.unfit.remove(worker);
        }
        self.event(cx, "checkpoint.unreadable", text.clone());
        self.pass_over(step, &text, false);
        self.begin_again(cx, SeenBy::Prepared, text);
    }

    /// Enough different workers have failed to read it.
    fn is_unreadable(&self, cx: &Context<'_>, step: u64) -> bool {
        let Some(readers) = self.live.readers.get(&step) else { return false };
        let hosts: BTreeSet<&str> = readers.counted().map(|(_, reader)| reader.host.as_str()).collect();
        let has_other_hosts = cx.pool.iter().any(|w| !hosts.contains(w.register.host.as_str()));
        let num_failed = readers.counted().count();
        let is_seen_twice = num_failed >= 2 && (hosts.len() >= 2 || !has_other_hosts);
        // Who failed is not among them.
        let has_untried = !self.candidates(cx.pool, 1).is_empty();
        is_seen_twice && (!has_untried || num_failed >= MAX_READERS)
    }

    fn pass_over(&mut self, step: u64, why: &str, is_damaged: bool) {
        let Some(at) = self.record.checkpoints.iter().position(|c| c.step == step) else { return };
        let checkpoint = self.record.checkpoints.remove(at);
        self.record.unusable.insert(step, Unusable { checkpoint, why: why.into(), is_damaged });
    }

    /// The next epoch would have to load a checkpoint, there were some, and none is left that can be read.
    pub fn lacks_checkpoint(&self) -> bool {
        !self.can_heal() && self.record.checkpoints.is_empty() && !self.record.unusable.is_empty()
    }

    /// To begin from scratch is for a user to decide.
    pub fn wait_for_checkpoint(&mut self, cx: &mut Context<'_>) {
        self.record.hold = Some(Hold::Checkpoint);
        let id = &self.record.id;
        let newest = self.record.unusable.values().rev();
        let mut named: Vec<String> = newest.clone().take(MAX_NAMED).map(|u| u.why.clone()).collect();
        if newest.len() > MAX_NAMED {
            named.push(format!("and {} older ones", newest.len() - MAX_NAMED));
        }
        let reason = format!(
            "waits for a checkpoint that can be read: {}. A worker that comes tries again, and so does `toroid resume {id}`; \
             `toroid resume {id} --from-scratch` gives them up",
            named.join("; ")
        );
        self.stand_by(cx, &reason);
    }

    /// Checkpoints that `counts` names may be gone on from again.
    fn try_again(&mut self, cx: &mut Context<'_>, why: &str, counts: impl Fn(&Unusable) -> bool) {
        let (again, kept) = std::mem::take(&mut self.record.unusable).into_iter().partition(|(_, u)| counts(u));
        let again: BTreeMap<u64, Unusable> = again;
        self.record.unusable = kept;
        let steps: Vec<String> = again.keys().rev().take(MAX_NAMED).map(u64::to_string).collect();
        self.record.checkpoints.extend(again.into_values().map(|u| u.checkpoint));
        self.record.checkpoints.sort_by_key(|c| c.step);
        self.live.unfit.clear();
        self.live.readers.clear();
        self.go_on(cx, &format!("{why}: the newest checkpoints are tried again, of steps {}", steps.join(", ")));
    }

    fn give_up_checkpoints(&mut self, cx: &mut Context<'_>) {
        let steps = self.committed();
        self.forget_unusable();
        self.go_on(cx, &format!("a user asked for it: {steps} steps are given up, and the job begins from scratch"));
    }

    fn go_on(&mut self, cx: &mut Context<'_>, reason: &str) {
        self.record.hold = None;
        self.set_state(cx, State::Queued, reason);
        self.event(cx, "job.resumed", reason);
        cx.out.unsettled = true;
    }

    /// The job goes on without them. What lies about of them goes with the next that is published; what is damaged was set aside.
    pub fn forget_unusable(&mut self) {
        let unusable = std::mem::take(&mut self.record.unusable);
        self.record.leftovers.extend(unusable.into_iter().filter(|(_, u)| !u.is_damaged).map(|(step, _)| step));
        self.live.readers.clear();
    }
}
