//! When the state of a job is saved, and what becomes of a step that was named.
//!
//! ```text
//!   name a step ahead ──> CheckpointAt to all ──> ShardWritten from all, curve durable ──> PublishManifest to rank 0
//!                              │ missed, failed, too slow                                      │
//!                              v                                                               v
//!                   again at once (too late),                               ManifestPublished ──> recorded (T-6)
//!                   at the next interval, or 3 times (the last step)
//! ```
//!
//! Steps that are known in advance (the next multiples of `interval_steps`, the last step) are named far ahead; those for time
//! and on request [`Job::margin`] steps ahead, and only while no other is being written. Leftovers of what failed are removed
//! with the next publishing; a published checkpoint is removed only by a newer one, never the last.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::manifest::ShardFile;
use toroid_torus::units;

use super::job::{Job, Phase};
use super::record::{Checkpoint, PendingRecord, State, Why};
use super::{Context, Reply, RequestId};

/// The last step's checkpoint is tried this often before the job has failed.
const MAX_FINAL_TRIES: u32 = 3;
const MIN_MARGIN_STEPS: u64 = 2;
const MAX_MARGIN_STEPS: u64 = 10_000;
/// Multiples of `interval_steps` that one look names, at most.
const MAX_MULTIPLES: usize = 64;
/// Twice as far ahead after each that came too late, up to this often.
const MAX_DOUBLINGS: u32 = 10;

#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// By step; the same steps as in the record.
    pub pending: BTreeMap<u64, Pending>,
    /// `interval_s` passes then.
    due: Option<Duration>,
    /// A step is to be named as soon as none is being written.
    wanted: Option<Why>,
    /// Users who wait to hear which step.
    pub requests: Vec<RequestId>,
    doublings: u32,
    final_tries: u32,
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
    /// What rank 0 was told to remove with the publishing.
    removes: Vec<u64>,
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
        if saved < total && !self.record.pending.contains_key(&total) {
            self.name(cx, total, Why::Final);
        }
        self.name_multiples(cx, committed, if at_start { 1 } else { margin }, margin);
        self.name_wanted(cx, committed, margin);
    }

    /// Names the multiples of `interval_steps` from `ahead` steps after the committed one on, so far that the next look comes in
    /// time for those that are left.
    fn name_multiples(&mut self, cx: &mut Context<'_>, committed: u64, ahead: u64, margin: u64) {
        let interval = self.record.spec.checkpoint.interval_steps;
        if interval == 0 {
            return;
        }
        let until = committed.saturating_add(2 * margin).saturating_add(interval).min(self.total() - 1);
        let first = committed.saturating_add(ahead).div_ceil(interval);
        let multiples = (first..=until / interval).take(MAX_MULTIPLES).map(|n| n * interval);
        for step in multiples.collect::<Vec<_>>() {
            if !self.record.pending.contains_key(&step) {
                self.name(cx, step, Why::Steps);
            }
        }
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

    fn name(&mut self, cx: &mut Context<'_>, step: u64, why: Why) {
        self.record.pending.insert(step, PendingRecord { why, publishing: false });
        // Where all healed to this very step no commit is to come that would begin the wait.
        let deadline = (step <= self.committed()).then(|| cx.now.monotonic + cx.config.limits.checkpoint());
        self.live.checkpoint.pending.insert(step, Pending { deadline, ..Pending::default() });
        self.record.leftovers.remove(&step);
        self.send_all(cx, &self.checkpoint_at(step));
        self.changed(cx);
    }

    fn checkpoint_at(&self, step: u64) -> Body {
        Body::CheckpointAt(proto::CheckpointAt { job_id: self.record.id.clone(), epoch: self.record.epoch, step })
    }

    /// A worker came back on another stream: it may have missed what was sent meanwhile. A step that it has committed is not named
    /// again: either it heard of it, and will say what became of its shard, or it is too late.
    pub fn name_again(&mut self, cx: &mut Context<'_>, rank: usize, committed: u64) {
        for step in self.record.pending.keys().filter(|s| **s > committed) {
            self.send(cx, rank, self.checkpoint_at(*step));
        }
        if rank == 0 {
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
        let curve_is_there = self.live.progress.last_step() >= step;
        let (world, removes) = (self.world(), self.outdated_by(step));
        let Some(record) = self.record.pending.get_mut(&step) else { return };
        let Some(pending) = self.live.checkpoint.pending.get_mut(&step) else { return };
        if pending.is_publish_sent
            || !curve_is_there
            || pending.shards.len() + usize::from(planted!(PublishWithoutShard)) < world
        {
            return;
        }
        let files_json = pending.shards.values().map(|s| s.file_json.clone()).collect();
        record.publishing = true;
        pending.is_publish_sent = true;
        pending.removes.clone_from(&removes);
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
        let leftovers = self.record.leftovers.iter().copied().filter(|s| !is_kept(s));
        let mut out: Vec<u64> = older[..num_outdated].iter().copied().chain(leftovers).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    pub fn manifest_published(&mut self, cx: &mut Context<'_>, message: proto::ManifestPublished) {
        let step = message.step;
        if !self.record.pending.get(&step).is_some_and(|p| p.publishing) {
            return;
        }
        if !message.error.is_empty() {
            let text = format!("{} could not publish the manifest: {}", self.describe(0), message.error);
            return self.checkpoint_failed(cx, step, &text);
        }
        self.record.pending.remove(&step);
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
        self.record.leftovers.retain(|s| !pending.removes.contains(s));
        self.live.checkpoint.doublings = 0;
        self.event(cx, "checkpoint.done", format!("step {step}: {} at {}", units::bytes(message.bytes), message.path));
        self.arm_interval(cx, false);
        self.plan_checkpoints(cx, false);
        self.try_finish(cx);
    }

    pub fn checkpoint_missed(&mut self, cx: &mut Context<'_>, rank: usize, message: &proto::CheckpointMissed) {
        self.advance(cx, rank, message.committed_step);
        let Some(why) = self.record.pending.get(&message.step).map(|p| p.why) else { return };
        if !message.error.is_empty() {
            let text = format!("{} could not write its shard: {}", self.describe(rank), message.error);
            return self.checkpoint_failed(cx, message.step, &text);
        }
        // Its shard came: it has only been asked twice.
        let is_written = |p: &Pending| p.shards.contains_key(&rank);
        if self.live.checkpoint.pending.get(&message.step).is_some_and(is_written) {
            return;
        }
        let schedule = &mut self.live.checkpoint;
        schedule.doublings = (schedule.doublings + 1).min(MAX_DOUBLINGS);
        if why == Why::Time || why == Why::Request {
            schedule.wanted = Some(why);
        }
        let text = format!(
            "step {}: {} had committed step {} before it heard of it; the next is named further ahead",
            message.step,
            self.describe(rank),
            message.committed_step
        );
        self.event(cx, "checkpoint.late", text.clone());
        self.drop_pending(cx, message.step, &text);
    }

    /// Training goes on, and the newest good checkpoint stays.
    fn checkpoint_failed(&mut self, cx: &mut Context<'_>, step: u64, text: &str) {
        self.event(cx, "checkpoint.failed", format!("step {step}: {text}"));
        self.arm_interval(cx, false);
        self.drop_pending(cx, step, text);
    }

    fn drop_pending(&mut self, cx: &mut Context<'_>, step: u64, text: &str) {
        self.record.pending.remove(&step);
        self.live.checkpoint.pending.remove(&step);
        self.record.leftovers.insert(step);
        self.changed(cx);
        if step == self.total() {
            self.live.checkpoint.final_tries += 1;
            if self.live.checkpoint.final_tries >= MAX_FINAL_TRIES {
                let good = match self.record.last_checkpoint() {
                    Some(c) => format!("the newest good one is of step {} at {}", c.step, c.path),
                    None => "there is no earlier one".into(),
                };
                let reason = format!("the last step could not be saved in {MAX_FINAL_TRIES} tries: {text}; {good}");
                return self.end(cx, State::Failed, &reason);
            }
        }
        self.plan_checkpoints(cx, false);
    }

    /// The epoch is over: what was named in it is void (T-1), and what was written of it is left over. Where the state stays
    /// (`heals`), what was wanted is named anew.
    pub fn abandon_pending(&mut self, heals: bool) {
        let committed = self.committed();
        let written = self.record.pending.keys().copied().filter(|s| *s <= committed);
        self.record.leftovers.extend(written);
        let named = std::mem::take(&mut self.record.pending);
        let schedule = &mut self.live.checkpoint;
        schedule.pending.clear();
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
        let deadlines = self.live.checkpoint.pending.values().filter_map(|p| p.deadline);
        deadlines.chain(self.live.checkpoint.due).min()
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
        let shards = self.live.checkpoint.pending.get(&step).map(|p| &p.shards);
        let missing: Vec<String> = (0..self.world())
            .filter(|rank| shards.is_some_and(|s| !s.contains_key(rank)))
            .map(|rank| rank.to_string())
            .collect();
        match missing.len() {
            0 => format!("the manifest was not published within {limit} s"),
            n if n <= MAX_NAMED => format!("no shard came within {limit} s from ranks {}", missing.join(", ")),
            n => format!("no shard came within {limit} s from {n} ranks, the first is {}", missing[0]),
        }
    }
}
