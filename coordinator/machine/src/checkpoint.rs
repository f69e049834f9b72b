//! When the state of a job is saved, and what becomes of a step that was named.
//!
//! ```text
//!   name a step ahead ──> CheckpointAt to all ──> ShardWritten from all, curve durable ──> PublishManifest to rank 0
//!                              │ missed, failed, too slow                                      │
//!                              v                                                               v
//!                   DropCheckpoint to all, then                             ManifestPublished ──> recorded (T-6)
//!                   again at once (too late),                               StepsRemoved ──> forgotten
//!                   at the next interval, or after a pause, for a day (the last step)
//! ```
//!
//! Steps that are known in advance (the next [`MAX_MULTIPLES`] multiples of `interval_steps`, the last step) are named far ahead; those
//! for time and on request [`Job::margin`] steps ahead, and only while no other is being written. What a place wrote of a checkpoint that
//! failed it takes away itself, so that it is not in the way of the next; leftovers of places that died are removed with the next
//! publishing. A published checkpoint is removed only by a newer one, never the last.
//!
//! The last step's is tried again until it is there, see [`super::unsaved`].
//!
//! - **T-12** A multiple of `interval_steps` is saved at that very step, or an event says that it is not, and why.
//! - Before workers leave whose places nobody can take, and with them the only copies of a shard, the next step is saved and no step is
//!   made beyond it (see [`super::leave`]).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::manifest::ShardFile;
use toroid_torus::units;

use super::job::{Job, Phase};
use super::leave::Halt;
use super::record::{Checkpoint, PendingRecord, Why};
use super::{Context, Reply, RequestId};

const MIN_MARGIN_STEPS: u64 = 2;
const MAX_MARGIN_STEPS: u64 = 10_000;
/// Multiples of `interval_steps` that are named and not committed yet, at most.
const MAX_MULTIPLES: usize = 64;
/// Checkpoints that are removed with one publishing, at most.
const MAX_REMOVALS: usize = 1024;
/// Twice as far ahead after each that came too late, up to this often.
const MAX_DOUBLINGS: u32 = 10;

#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// By step; the same steps as in the record.
    pub pending: BTreeMap<u64, Pending>,
    /// `interval_s` passes then.
    due: Option<Duration>,
    /// A step is to be named as soon as none is being written.
    pub wanted: Option<Why>,
    /// Users who wait to hear which step.
    pub requests: Vec<RequestId>,
    pub doublings: u32,
    /// The last step's checkpoint has failed, and is not named again before.
    pub next_try: Option<Duration>,
    /// No step is made beyond this one in this epoch.
    pub halt: Option<Halt>,
    /// Removals that rank 0 was told of with a publishing and has not answered, by the step that it publishes; how long that is waited for.
    removing: BTreeMap<u64, Vec<u64>>,
    removing_until: Duration,
}

impl Schedule {
    fn is_removing(&self) -> bool {
        !self.removing.is_empty()
    }

    fn removes(&self, step: u64) -> bool {
        self.removing.values().flatten().any(|s| *s == step)
    }
}

/// A step that was named.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// By rank.
    shards: BTreeMap<usize, Shard>,
    /// Set when the step is committed.
    deadline: Option<Duration>,
    /// Rank 0 was told to publish, on the stream it has now.
    is_publish_sent: bool,
}

#[derive(Debug)]
struct Shard {
    file_json: String,
    write_s: f64,
}

impl Job {
    /// Steps between the newest known commit and a step named now, so that all hear of it in time.
    fn margin(&self, cx: &Context<'_>) -> u64 {
        let heartbeat_s = cx.config.limits.heartbeat_interval.as_secs_f64();
        let steps = self.live.progress.step_s().map_or(0.0, |step_s| (2.0 * heartbeat_s / step_s).ceil());
        let base = (steps as u64).clamp(MIN_MARGIN_STEPS, MAX_MARGIN_STEPS);
        (base << self.live.checkpoint.doublings).min(MAX_MARGIN_STEPS)
    }

    /// Starts the wait for the next checkpoint by time. One that was waited for before a heal comes when it was due: were the wait to
    /// begin anew, frequent deaths could put it off for ever.
    pub fn arm_interval(&mut self, cx: &Context<'_>, keeps_running: bool) {
        let schedule = &mut self.live.checkpoint;
        if keeps_running && schedule.due.take_if(|due| *due <= cx.now.monotonic).is_some() {
            schedule.wanted.get_or_insert(Why::Time);
        }
        if keeps_running && (schedule.due.is_some() || schedule.wanted.is_some()) {
            return;
        }
        let interval_s = self.record.spec.checkpoint.interval_s;
        let interval = Duration::try_from_secs_f64(interval_s).ok().filter(|i| !i.is_zero());
        self.live.checkpoint.due = interval.and_then(|i| cx.now.monotonic.checked_add(i));
    }

    /// Names the steps that are to be saved and can be named now. `at_start`: nothing of this epoch is computed yet.
    pub fn plan_checkpoints(&mut self, cx: &mut Context<'_>, at_start: bool) {
        if !self.is_whole() {
            return;
        }
        let (committed, total) = (self.committed(), self.total());
        let margin = self.margin(cx);
        let saved = self.record.last_checkpoint().map_or(0, |c| c.step);
        // Whoever took a place may have the room that others lack.
        let is_due = at_start || self.live.checkpoint.next_try.is_none_or(|at| cx.now.monotonic >= at);
        let is_named = self.record.pending.contains_key(&total) || self.live.checkpoint.removes(total);
        if saved < total && is_due && !is_named {
            self.name(cx, total, Why::Final);
        }
        self.name_multiples(cx, committed, at_start);
        if self.halt_to_leave(cx, at_start) {
            return;
        }
        self.name_wanted(cx, committed, margin);
    }

    /// Names the next multiples of `interval_steps`, and says which were passed without being saved. Where nothing is computed yet
    /// (`at_start`) the state that all begin with can still be saved.
    fn name_multiples(&mut self, cx: &mut Context<'_>, committed: u64, at_start: bool) {
        let interval = self.record.spec.checkpoint.interval_steps;
        if interval == 0 {
            return;
        }
        let passed = if at_start { committed.saturating_sub(1) } else { committed } / interval;
        let first = self.record.named_to / interval + 1;
        let is_missing = |job: &Job, step: u64| {
            !job.record.pending.contains_key(&step) && job.record.checkpoints.iter().all(|c| c.step != step)
        };
        self.skipped(
            cx,
            (first..=passed).map(|n| n * interval).filter(|step| is_missing(self, *step)).collect(),
            at_start,
        );
        let num_ahead = self.record.pending.range(committed + 1..).filter(|(_, p)| p.why == Why::Steps).count();
        let last = (self.total() - 1) / interval;
        let next = (first.max(passed + 1)..=last).take(MAX_MULTIPLES.saturating_sub(num_ahead)).map(|n| n * interval);
        let next: Vec<u64> = next.collect();
        self.record.named_to = next.last().copied().unwrap_or(passed * interval).max(self.record.named_to);
        for step in next {
            if is_missing(self, step) && !self.live.checkpoint.removes(step) {
                self.name(cx, step, Why::Steps);
            }
        }
    }

    /// T-12: multiples of `interval_steps` that will not be saved any more.
    fn skipped(&mut self, cx: &mut Context<'_>, steps: Vec<u64>, at_start: bool) {
        let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return };
        let which = match steps.len() {
            1 => format!("step {first} is"),
            n => format!("{n} steps from {first} to {last} are"),
        };
        let why = match at_start {
            true => "the epoch ended before all shards were written",
            false => "they were committed before the workers could be told",
        };
        let interval = self.record.spec.checkpoint.interval_steps;
        self.event(
            cx,
            "checkpoint.skipped",
            format!("{which} not saved, a multiple of interval_steps = {interval}: {why}"),
        );
    }

    fn name_wanted(&mut self, cx: &mut Context<'_>, committed: u64, margin: u64) {
        let Some(why) = self.live.checkpoint.wanted else { return };
        let total = self.total();
        let is_writing = self.record.pending.keys().any(|s| *s <= committed && *s < total);
        if is_writing {
            return;
        }
        self.live.checkpoint.wanted = None;
        let near = self.record.pending.keys().copied().find(|s| *s <= committed + margin);
        let step = near.unwrap_or_else(|| {
            // A step with leftovers may have a manifest that nobody heard of; its files stay as they are until removed.
            let free = (committed + margin..).find(|s| !self.record.leftovers.contains(s)).unwrap_or(total);
            free.min(total)
        });
        if step < total && near.is_none() {
            self.name(cx, step, why);
        }
        for request in std::mem::take(&mut self.live.checkpoint.requests) {
            cx.out.reply(request, Ok(Reply::Checkpoint { step }));
        }
    }

    pub fn name(&mut self, cx: &mut Context<'_>, step: u64, why: Why) {
        let halts = self.live.checkpoint.halt.is_some_and(|halt| halt.step == step);
        self.record.pending.insert(step, PendingRecord { why, publishing: false, halts });
        // Where all healed to this very step no commit is to come that would begin the wait.
        let deadline = (step <= self.committed()).then(|| cx.now.monotonic + cx.config.limits.checkpoint());
        self.live.checkpoint.pending.insert(step, Pending { deadline, ..Pending::default() });
        self.record.leftovers.remove(&step);
        self.send_all(cx, &self.checkpoint_at(step));
        self.changed(cx);
    }

    pub fn checkpoint_at(&self, step: u64) -> Body {
        let halt = self.record.pending.get(&step).is_some_and(|p| p.halts);
        Body::CheckpointAt(proto::CheckpointAt { job_id: self.record.id.clone(), epoch: self.record.epoch, step, halt })
    }

    /// A worker came back on another stream: it may have missed what was sent meanwhile. A step that it has committed is not named
    /// again: either it heard of it, and will say what became of its shard, or it is too late.
    pub fn name_again(&mut self, cx: &mut Context<'_>, rank: usize, committed: u64) {
        // Who is to halt there may be beyond it without knowing, and says so.
        let is_ahead = |(step, p): &(&u64, &PendingRecord)| **step > committed || p.halts && **step == committed;
        for (step, _) in self.record.pending.iter().filter(is_ahead) {
            self.send(cx, rank, self.checkpoint_at(*step));
        }
        if rank == 0 {
            self.live.asked_for = None;
            self.live.checkpoint.pending.values_mut().for_each(|p| p.is_publish_sent = false);
        }
        self.committed_advanced(cx);
    }

    /// A newer step is committed or reported: what waited for it may go on.
    pub fn committed_advanced(&mut self, cx: &mut Context<'_>) {
        let committed = self.committed();
        let deadline = cx.now.monotonic + cx.config.limits.checkpoint();
        for (_, pending) in self.live.checkpoint.pending.range_mut(..=committed) {
            pending.deadline.get_or_insert(deadline);
        }
        let steps: Vec<u64> = self.live.checkpoint.pending.keys().copied().collect();
        for step in steps {
            self.try_publish(cx, step);
        }
        self.plan_checkpoints(cx, false);
    }

    pub fn request_checkpoint(&mut self, cx: &mut Context<'_>, request: RequestId) {
        if !self.record.state.is_placed() {
            return cx.out.reply(request, Err(self.refuse("checkpointed")));
        }
        self.live.checkpoint.requests.push(request);
        self.live.checkpoint.wanted = Some(Why::Request);
        self.plan_checkpoints(cx, false);
    }

    pub fn shard_written(&mut self, cx: &mut Context<'_>, rank: usize, message: proto::ShardWritten) {
        let Some(pending) = self.live.checkpoint.pending.get_mut(&message.step) else { return };
        let file: Result<ShardFile, _> = serde_json::from_str(&message.file_json);
        match file {
            Ok(file) if file.rank == rank && message.rank as usize == rank => {
                let write_s = if message.write_s.is_finite() { message.write_s.max(0.0) } else { 0.0 };
                pending.shards.insert(rank, Shard { file_json: message.file_json, write_s });
                self.try_publish(cx, message.step);
            }
            Ok(file) => {
                let text = format!("{} reported the shard of rank {}", self.describe(rank), file.rank);
                self.checkpoint_failed(cx, message.step, &text);
            }
            Err(error) => {
                let text = format!("{} described its shard in a way that cannot be read: {error}", self.describe(rank));
                self.checkpoint_failed(cx, message.step, &text);
            }
        }
    }

    /// All shards are durable, and so is the curve up to here: the manifest may be written.
    fn try_publish(&mut self, cx: &mut Context<'_>, step: u64) {
        let curve_is_there = self.live.progress.last_step().max(self.live.floor_step) >= step;
        let (world, removes) = (self.world(), self.outdated_by(step));
        let Some(record) = self.record.pending.get_mut(&step) else { return };
        let Some(pending) = self.live.checkpoint.pending.get_mut(&step) else { return };
        if pending.is_publish_sent
            || !curve_is_there
            || pending.shards.len() + usize::from(failpoint!(PublishWithoutShard)) < world
        {
            return;
        }
        let files_json = pending.shards.values().map(|s| s.file_json.clone()).collect();
        record.publishing = true;
        pending.is_publish_sent = true;
        if !removes.is_empty() {
            self.live.checkpoint.removing.insert(step, removes.clone());
            self.live.checkpoint.removing_until = cx.now.monotonic + cx.config.limits.checkpoint();
        }
        let publish = proto::PublishManifest {
            job_id: self.record.id.clone(),
            epoch: self.record.epoch,
            step,
            files_json,
            remove_steps: removes,
        };
        self.send(cx, 0, Body::PublishManifest(publish));
        self.changed(cx);
    }

    /// Steps that go with the publishing of `step`: all but the newest `keep`, and leftovers. Never `step` itself, nor the newest
    /// that is recorded: until the publishing is recorded too, that one is the last good.
    fn outdated_by(&self, step: u64) -> Vec<u64> {
        let keep = (self.record.spec.checkpoint.keep as usize).max(1);
        let older: Vec<u64> = self.record.checkpoints.iter().map(|c| c.step).filter(|s| *s != step).collect();
        let num_outdated = (older.len() + 1).saturating_sub(keep.max(2));
        let is_kept = |s: &u64| older[num_outdated..].contains(s) || *s == step;
        let is_ordered = |s: &u64| self.live.checkpoint.removes(*s);
        let leftovers = self.record.leftovers.iter().copied().filter(|s| !is_kept(s) && !is_ordered(s));
        let mut out: Vec<u64> = older[..num_outdated].iter().copied().chain(leftovers).collect();
        out.sort_unstable();
        out.dedup();
        // The others go with the next.
        out.truncate(MAX_REMOVALS);
        out
    }

    pub fn manifest_published(&mut self, cx: &mut Context<'_>, message: proto::ManifestPublished) {
        let step = message.step;
        if !self.record.pending.get(&step).is_some_and(|p| p.publishing) {
            return;
        }
        if !message.error.is_empty() {
            // What was to be removed with it is removed with the next.
            self.live.checkpoint.removing.remove(&step);
            if let Some(pending) = self.record.pending.get_mut(&step) {
                pending.publishing = false;
            }
            let text = format!("{} could not publish the manifest: {}", self.describe(0), message.error);
            return self.checkpoint_failed(cx, step, &text);
        }
        let halts = self.record.pending.remove(&step).is_some_and(|p| p.halts);
        let pending = self.live.checkpoint.pending.remove(&step).unwrap_or_default();
        let keep = (self.record.spec.checkpoint.keep as usize).max(1);
        self.record.checkpoints.retain(|c| c.step != step);
        self.record.checkpoints.push(Checkpoint {
            step,
            epoch: self.record.epoch,
            path: message.path.clone(),
            bytes: message.bytes,
            unix_ms: cx.now.unix_ms,
            write_s: pending.shards.values().map(|s| s.write_s).fold(0.0, f64::max),
        });
        self.record.checkpoints.sort_by_key(|c| c.step);
        let num_outdated = self.record.checkpoints.len().saturating_sub(keep);
        let outdated = self.record.checkpoints.drain(..num_outdated);
        self.record.leftovers.extend(outdated.map(|c| c.step));
        self.record.unsaved = None;
        self.live.checkpoint.next_try = None;
        self.live.checkpoint.doublings = 0;
        self.event(cx, "checkpoint.done", format!("step {step}: {} at {}", units::bytes(message.bytes), message.path));
        self.arm_interval(cx, false);
        if halts {
            return self.leave(cx, step);
        }
        self.plan_checkpoints(cx, false);
        self.try_finish(cx);
    }

    /// From rank 0, after a publishing that ordered removals. What stays is told once (T-12), and not tried again.
    pub fn steps_removed(&mut self, cx: &mut Context<'_>, message: proto::StepsRemoved) {
        let mut kept = message.kept.iter().filter(|kept| self.record.leftovers.contains(&kept.step));
        if let Some(first) = kept.next() {
            let others = match kept.count() {
                0 => String::new(),
                n => format!(" (and {n} more stay)"),
            };
            let text = format!("the checkpoint of step {} stays where it is: {}{others}", first.step, first.error);
            self.event(cx, "checkpoint.kept", text);
        }
        let done: BTreeSet<u64> = message.removed.into_iter().chain(message.kept.into_iter().map(|k| k.step)).collect();
        self.record.leftovers.retain(|step| !done.contains(step));
        self.live.checkpoint.removing.remove(&message.step);
        self.changed(cx);
        self.plan_checkpoints(cx, false);
        self.try_finish(cx);
    }

    /// Rank 0 still removes what is no longer kept: it would be stopped in it.
    pub fn is_removing(&self) -> bool {
        self.live.checkpoint.is_removing()
    }

    pub fn checkpoint_missed(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::CheckpointMissed) {
        self.advance(cx, rank, message.committed_step);
        let Some(pending) = self.record.pending.get(&message.step).cloned() else { return };
        if !message.error.is_empty() {
            let text = format!("{} could not write its shard: {}", self.describe(rank), message.error);
            return self.checkpoint_failed(cx, message.step, &text);
        }
        // Its shard came: it has only been asked twice.
        let is_written = |p: &Pending| p.shards.contains_key(&rank);
        let is_written = self.live.checkpoint.pending.get(&message.step).is_some_and(is_written);
        if is_written && !pending.halts {
            return;
        }
        let schedule = &mut self.live.checkpoint;
        let is_known_ahead = pending.why == Why::Steps && !pending.halts;
        if !is_known_ahead {
            schedule.doublings = (schedule.doublings + 1).min(MAX_DOUBLINGS);
        }
        if pending.why == Why::Time || pending.why == Why::Request {
            schedule.wanted = Some(pending.why);
        }
        schedule.halt.take_if(|halt| halt.step == message.step);
        let text = format!(
            "step {}: {} had committed step {} before it heard of it; {}",
            message.step,
            self.describe(rank),
            message.committed_step,
            if is_known_ahead { "it is not saved" } else { "the next is named further ahead" }
        );
        self.event(cx, "checkpoint.late", text);
        if is_written {
            // It was named before it became the one to halt at.
            self.record.pending.entry(message.step).and_modify(|p| p.halts = false);
            return self.plan_checkpoints(cx, false);
        }
        self.take_away(cx, message.step);
        self.plan_checkpoints(cx, false);
    }

    /// Training goes on, and the newest good checkpoint stays.
    fn checkpoint_failed(&mut self, cx: &mut Context<'_>, step: u64, text: &str) {
        self.not_saved(cx, step, text);
        self.arm_interval(cx, false);
        self.try_halt_again(cx, step);
        self.take_away(cx, step);
        if step != self.total() || self.has_next_try(cx, text) {
            self.plan_checkpoints(cx, false);
        }
    }

    /// A step will not be saved: what was written of it goes.
    fn take_away(&mut self, cx: &mut Context<'_>, step: u64) {
        // What rank 0 may be publishing at this very moment stays whole (T-6): it is removed with the next publishing.
        if self.record.pending.remove(&step).is_some_and(|p| !p.publishing) {
            let (job_id, epoch) = (self.record.id.clone(), self.record.epoch);
            self.send_all(cx, &Body::DropCheckpoint(proto::DropCheckpoint { job_id, epoch, step }));
        }
        self.live.checkpoint.pending.remove(&step);
        self.record.leftovers.insert(step);
        self.changed(cx);
    }

    /// The job ends: nobody waits any more for what is still being written.
    pub fn take_all_away(&mut self, cx: &mut Context<'_>) {
        let committed = self.committed();
        let written: Vec<u64> = self.record.pending.keys().copied().filter(|step| *step <= committed).collect();
        for step in written {
            self.take_away(cx, step);
        }
    }

    /// The epoch is over: what was named in it is void (T-1), and what was written of it is left over. Where the state stays
    /// (`heals`), what was wanted is named anew.
    pub fn abandon_pending(&mut self, heals: bool) {
        let committed = self.committed();
        let written = self.record.pending.keys().copied().filter(|s| *s <= committed);
        self.record.leftovers.extend(written);
        let named = std::mem::take(&mut self.record.pending);
        let first = named.iter().find(|(_, p)| p.why == Why::Steps).map(|(step, _)| *step - 1);
        self.record.named_to = self.record.named_to.min(first.unwrap_or(u64::MAX));
        let schedule = &mut self.live.checkpoint;
        schedule.pending.clear();
        schedule.halt = None;
        // Its orders reach no file of the next epoch (T-1).
        schedule.removing.clear();
        schedule.wanted.take_if(|why| *why == Why::Leaving);
        if heals {
            let wanted = named.values().map(|p| p.why).find(|why| matches!(why, Why::Time | Why::Request));
            schedule.wanted = schedule.wanted.or(wanted);
        } else {
            schedule.due = None;
            schedule.wanted.take_if(|why| *why == Why::Time);
        }
    }

    pub fn checkpoint_timeout(&self) -> Option<Duration> {
        if self.live.phase != Phase::Started {
            return None;
        }
        let schedule = &self.live.checkpoint;
        let deadlines = schedule.pending.values().filter_map(|p| p.deadline);
        let total = self.total();
        let is_waiting = !self.record.pending.contains_key(&total) && !schedule.removes(total) && self.is_whole();
        let removing = schedule.is_removing().then_some(schedule.removing_until);
        let next_try = schedule.next_try.filter(|_| is_waiting);
        deadlines
            .chain(next_try)
            .chain(removing)
            .chain(schedule.due)
            .chain(schedule.halt.and_then(|halt| halt.again_at))
            .min()
    }

    pub fn tick_checkpoints(&mut self, cx: &mut Context<'_>) {
        if self.live.phase != Phase::Started {
            return;
        }
        let now = cx.now.monotonic;
        let schedule = &mut self.live.checkpoint;
        if schedule.due.is_some_and(|due| now >= due) {
            schedule.due = None;
            schedule.wanted.get_or_insert(Why::Time);
            self.plan_checkpoints(cx, false);
        }
        self.tick_halt(cx);
        if self.live.checkpoint.next_try.is_some_and(|at| now >= at) {
            self.plan_checkpoints(cx, false);
        }
        // They stay leftovers, and are ordered again with the next publishing.
        if self.live.checkpoint.is_removing() && now >= self.live.checkpoint.removing_until {
            self.live.checkpoint.removing.clear();
            self.try_finish(cx);
        }
        let overdue = |p: &Pending| p.deadline.is_some_and(|d| now >= d);
        let steps: Vec<u64> =
            self.live.checkpoint.pending.iter().filter(|(_, p)| overdue(p)).map(|(s, _)| *s).collect();
        for step in steps {
            if self.record.pending.contains_key(&step) {
                let text = self.overdue(cx, step);
                self.checkpoint_failed(cx, step, &text);
            }
        }
    }

    fn overdue(&self, cx: &Context<'_>, step: u64) -> String {
        const MAX_NAMED: usize = 8;
        let limit = cx.config.limits.checkpoint().as_secs_f64();
        let pending = self.live.checkpoint.pending.get(&step);
        let shards = pending.map(|p| &p.shards);
        let missing: Vec<String> = (0..self.world())
            .filter(|rank| shards.is_some_and(|s| !s.contains_key(rank)))
            .map(|rank| rank.to_string())
            .collect();
        match missing.len() {
            0 if pending.is_some_and(|p| !p.is_publish_sent) => {
                format!("the figures of the steps up to it did not all come within {limit} s")
            }
            0 => format!("the manifest was not published within {limit} s"),
            n if n <= MAX_NAMED => format!("no shard came within {limit} s from ranks {}", missing.join(", ")),
            n => format!("no shard came within {limit} s from {n} ranks, the first is {}", missing[0]),
        }
    }
}
