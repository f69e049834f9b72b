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
//! Steps that are known in advance (the next [`MAX_MULTIPLES`] multiples of `interval_steps`, the last step) are named far ahead. Steps for
//! time and on request are named [`Checkpoints::margin`] steps ahead, and only while no other checkpoint is being written. After a checkpoint
//! has failed each place removes what it wrote of it, so that it is not in the way of the next; leftovers of places that died are removed with
//! the next publishing. A published checkpoint is removed only after a newer one is published, and the newest is never removed; which others
//! are kept says [`super::keeping`].
//!
//! The checkpoint of the last step is tried again until it is published, see [`super::unsaved`].
//!
//! - **T-12** A multiple of `interval_steps` is saved at that very step, or an event says that it is not, and why.
//! - **T-15** Of a job of kind ppo only ends of iterations are named (`JobSpec::steps_of_iteration`): `steps` and `interval_steps` are multiples
//!   by the job's checks, and every other step is one by [`free_step`].
//! - If workers are to end, nobody can take their places, and they hold the only copies of a shard, then the next step that can be
//!   saved is, and no step is made beyond it: all *halt* there. If that checkpoint fails it is tried again at the same step, whose state does not change any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::api::{Reply, RequestId};
use super::deadlines::Deadline;
use super::job_context::{Core, JobContext, Section};
use super::keeping;
use super::naming::{Skipped, checkpoint_at, free_step, is_missing, multiples};
use super::record::{Checkpoint, JobRecord, PendingRecord, Unsaved, Why};
use super::unsaved::{self, Retry};
use proto::coordinator_message::Body;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::ids::{Rank, Step};
use toroid_torus::manifest::ShardFile;
use toroid_torus::units;

const MIN_MARGIN_STEPS: u64 = 2;
const MAX_MARGIN_STEPS: u64 = 10_000;
/// Multiples of `interval_steps` that are named and not committed yet, at most.
const MAX_MULTIPLES: usize = 64;
/// Checkpoints that are removed with one publishing, at most.
const MAX_REMOVALS: usize = 1024;
/// After each step that was named too late the next is named twice as far ahead, up to so many times.
const MAX_DOUBLINGS: u32 = 10;
/// A message has reached every worker in this time, as a rule.
const TO_ALL_S: f64 = 0.25;
const MAX_AHEAD_STEPS: u64 = 10_000;

/// The checkpoints of a job that are named, written, published or wanted.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// By step; the same steps as in the record.
    pending: BTreeMap<Step, Pending>,
    /// A step is to be named as soon as none is being written.
    wanted: Option<Why>,
    /// Users who wait to hear which step.
    requests: Vec<RequestId>,
    doublings: u32,
    /// Who neither wrote the last step's shard in time nor said why, the last time that it was asked for.
    silent: BTreeSet<Rank>,
    /// Removals that rank 0 was told of with a publishing and has not answered, by the step that it publishes.
    removing: BTreeMap<Step, Vec<Step>>,
    /// Of the last step, once it is published: nothing is published after it, so what is left of earlier ones goes with a repetition of this.
    last_files: Option<Vec<String>>,
}

/// A step that was named.
#[derive(Debug, Default)]
struct Pending {
    /// By rank.
    shards: BTreeMap<Rank, Shard>,
    /// Rank 0 was told to publish, on the stream it has now.
    is_publish_sent: bool,
}

#[derive(Debug)]
struct Shard {
    file_json: String,
    bytes: u64,
    write_s: f64,
}

/// What of the record is about checkpoints.
pub(crate) struct CheckpointFields<'a> {
    pub named_to: &'a mut Step,
    pub checkpoints: &'a mut Vec<Checkpoint>,
    pub halt: &'a mut Option<Step>,
    pub pending: &'a mut BTreeMap<Step, PendingRecord>,
    pub unsaved: &'a mut Option<Unsaved>,
    pub leftovers: &'a mut BTreeSet<Step>,
}

impl Section for Checkpoints {
    type Fields<'a> = CheckpointFields<'a>;

    fn fields(record: &mut JobRecord) -> CheckpointFields<'_> {
        let JobRecord { named_to, checkpoints, halt, pending, unsaved, leftovers, .. } = record;
        CheckpointFields { named_to, checkpoints, halt, pending, unsaved, leftovers }
    }
}

type Cx<'a, 'b> = JobContext<'a, 'b, Checkpoints>;

/// What a message about a checkpoint means for the job.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Nothing but what was noted.
    Noted,
    /// Other steps may be named now.
    NameMore,
    /// A step will not be saved, for this reason: [`Checkpoints::failed`] is next. `hang`: these were asked twice and did nothing.
    Failed { step: Step, text: String, hang: Vec<Rank> },
    /// It is published and recorded. `halts`: no step is made beyond it, and whoever is to end may.
    Published { halts: bool },
}

/// What a checkpoint that failed means for the job.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There will be a later one.
    GoesOn,
    /// The last step is tried again after a pause.
    TriesAgain,
    /// The last step was tried for long enough: the job has failed, for this reason.
    GivesUp(String),
}

impl Checkpoints {
    /// After a restart of the coordinator: steps that were named stay named, and workers say again which shards they have written.
    pub fn restore(record: &JobRecord) -> Checkpoints {
        Checkpoints {
            pending: record.pending.keys().map(|step| (*step, Pending::default())).collect(),
            ..Checkpoints::default()
        }
    }

    /// After a restart of the coordinator: workers halt at a step that could not be saved, and was not named again yet.
    pub fn go_on_halting(&mut self, cx: &mut Cx<'_, '_>) {
        let is_missing = |step: &Step| {
            !cx.record.pending.contains_key(step) && cx.record.last_checkpoint().is_none_or(|c| c.step != *step)
        };
        if cx.record.halt.as_ref().is_some_and(is_missing) {
            let at = cx.now() + cx.limits().heartbeat_interval;
            cx.deadlines().set(Deadline::HaltAgain, at);
        }
    }

    /// Rank 0 still removes checkpoints that are no longer kept: a job that ended now would stop it in the middle.
    pub fn is_removing(&self) -> bool {
        !self.removing.is_empty()
    }

    fn removes(&self, step: Step) -> bool {
        self.removing.values().flatten().any(|s| *s == step)
    }

    /// Users who wait to hear of a step that will not be named any more.
    pub fn take_requests(&mut self) -> Vec<RequestId> {
        std::mem::take(&mut self.requests)
    }

    /// Steps between the newest known commit and a step named now, so that all hear of it in time.
    fn margin(&self, cx: &Cx<'_, '_>) -> u64 {
        let heartbeat_s = cx.limits().heartbeat_interval.as_secs_f64();
        let steps = cx.curve.progress().step_s().map_or(0.0, |step_s| (2.0 * heartbeat_s / step_s).ceil());
        let base = (steps as u64).clamp(MIN_MARGIN_STEPS, MAX_MARGIN_STEPS);
        (base << self.doublings).min(MAX_MARGIN_STEPS)
    }

    // -------------------------------------------------------------------------------------------------------- naming a step

    /// Starts the wait for the next checkpoint by time. One that was waited for before a heal (`keeps_running`) comes when it was due:
    /// were the wait to begin anew, frequent deaths could put it off for ever.
    pub fn arm_interval(&mut self, cx: &mut Cx<'_, '_>, keeps_running: bool) {
        let now = cx.now();
        if keeps_running {
            if cx.deadlines().take_passed(&Deadline::CheckpointInterval, now) {
                self.wanted.get_or_insert(Why::Time);
            }
            if self.wanted.is_some() || cx.deadlines.get(&Deadline::CheckpointInterval).is_some() {
                return;
            }
        }
        let interval = Duration::try_from_secs_f64(cx.record.spec.checkpoint.interval_s).ok();
        match interval.filter(|i| !i.is_zero()).and_then(|i| now.checked_add(i)) {
            Some(at) => cx.deadlines().set(Deadline::CheckpointInterval, at),
            None => drop(cx.deadlines().clear(&Deadline::CheckpointInterval)),
        }
    }

    /// A step is to be named, as soon as that is possible.
    pub fn want(&mut self, why: Why) {
        self.wanted.get_or_insert(why);
    }

    /// A user asks for a checkpoint, and waits to hear of which step.
    pub fn request(&mut self, request: RequestId) {
        self.requests.push(request);
        self.wanted = Some(Why::Request);
    }

    /// Names the steps that are to be saved and can be named now. `at_start`: nothing of this epoch is computed yet. `leaving`: why all are to
    /// halt, in words: workers that end take the only copy of a shard away, or the job gives its workers back.
    pub fn name_steps(&mut self, cx: &mut Cx<'_, '_>, at_start: bool, leaving: Option<&str>) {
        if !cx.is_whole() {
            return;
        }
        let (committed, total) = (cx.committed(), cx.total());
        let margin = self.margin(cx);
        let saved = cx.record.last_checkpoint().map_or(Step::ZERO, |c| c.step);
        // Whoever took a place may have the room that others lack.
        let is_due = at_start || cx.deadlines.get(&Deadline::LastStepAgain).is_none_or(|at| cx.now() >= at);
        let is_named = cx.record.pending.contains_key(&total) || self.removes(total);
        if saved < total && is_due && !is_named {
            self.name(cx, total, Why::Final);
        }
        self.name_multiples(cx, committed, at_start);
        if cx.record.halt.is_some() || leaving.is_some_and(|leaving| self.halt_for(cx, at_start, leaving)) {
            return;
        }
        self.name_wanted(cx, committed, margin);
    }

    /// Names the next multiples of `interval_steps`, and says which were passed without being saved. Where nothing is computed yet
    /// (`at_start`) the state that all begin with can still be saved.
    fn name_multiples(&mut self, cx: &mut Cx<'_, '_>, committed: Step, at_start: bool) {
        let interval = cx.record.spec.checkpoint.interval_steps;
        if interval == 0 {
            return;
        }
        let passed = if at_start { committed.previous().unwrap_or_default() } else { committed }.get() / interval;
        let first = cx.record.named_to.get() / interval + 1;
        let multiple = |n: u64| Step::new(n * interval);
        let skipped = multiples(&cx.record, cx.record.named_to, multiple(passed));
        say_skipped(cx, skipped, if at_start { Skipped::Ended } else { Skipped::Late });
        let num_ahead = cx.record.pending.range(committed.next()..).filter(|(_, p)| p.why == Why::Steps).count();
        let last = cx.total().previous().unwrap_or_default().get() / interval;
        let next = (first.max(passed + 1)..=last).take(MAX_MULTIPLES.saturating_sub(num_ahead)).map(multiple);
        let next: Vec<Step> = next.collect();
        let named_to = next.last().copied().unwrap_or(multiple(passed));
        // Not stored for this alone: the multiples up to it are saved or pending, which a restart sees in the record.
        let fields = cx.edit_later();
        *fields.named_to = named_to.max(*fields.named_to);
        for step in next {
            if is_missing(&cx.record, step) && !self.removes(step) {
                self.name(cx, step, Why::Steps);
            }
        }
    }

    fn name_wanted(&mut self, cx: &mut Cx<'_, '_>, committed: Step, margin: u64) {
        let Some(why) = self.wanted else { return };
        let total = cx.total();
        let is_writing = cx.record.pending.keys().any(|s| *s <= committed && *s < total);
        if is_writing {
            return;
        }
        self.wanted = None;
        let free = free_step(&cx.record, committed.after(margin), total);
        let near = cx.record.pending.keys().copied().find(|s| *s <= free);
        let step = near.unwrap_or(free);
        if step < total && near.is_none() {
            self.name(cx, step, why);
        }
        for request in std::mem::take(&mut self.requests) {
            cx.reply(request, Ok(Reply::Checkpoint { step }));
        }
    }

    fn name(&mut self, cx: &mut Cx<'_, '_>, step: Step, why: Why) {
        let halts = cx.record.halt == Some(step);
        cx.edit().pending.insert(step, PendingRecord { why, publishing: false, halts });
        // If all have healed to this very step, no commit will come that begins the wait.
        if step <= cx.committed() {
            let at = cx.now() + cx.limits().checkpoint();
            cx.deadlines().set(Deadline::Checkpoint { step }, at);
        }
        self.pending.insert(step, Pending::default());
        cx.edit().leftovers.remove(&step);
        cx.send_all(&checkpoint_at(&cx.record, step));
    }

    /// Has the next step saved, and no step made beyond it: why is `leaving`. Says whether no other checkpoint is to be named.
    fn halt_for(&mut self, cx: &mut Cx<'_, '_>, at_start: bool, leaving: &str) -> bool {
        let (committed, total) = (cx.committed(), cx.total());
        let steps = cx.curve.progress().step_s().map_or(1.0, |step_s| (TO_ALL_S / step_s).ceil());
        let ahead = ((steps.max(1.0) as u64) << self.doublings).min(MAX_AHEAD_STEPS);
        let first = committed.after(if at_start { 1 } else { ahead });
        let step = free_step(&cx.record, first, total);
        if step >= total {
            // The last step is saved in any case.
            return false;
        }
        *cx.edit().halt = Some(step);
        self.name_halt(cx, step, leaving);
        true
    }

    fn name_halt(&mut self, cx: &mut Cx<'_, '_>, step: Step, leaving: &str) {
        match cx.record.pending.contains_key(&step) {
            false => self.name(cx, step, Why::Leaving),
            true => {
                cx.edit().pending.entry(step).and_modify(|p| p.halts = true);
                cx.send_all(&checkpoint_at(&cx.record, step));
            }
        }
        cx.event("job.halting", format!("step {step} is saved and no step is made beyond it: {leaving}"));
    }

    /// A worker came back on another stream: it may have missed what was sent meanwhile. A step that it has committed is not named
    /// again: either it heard of it, and will say what became of its shard, or it is too late.
    pub fn name_again(&mut self, cx: &mut Cx<'_, '_>, rank: Rank, committed: Step) {
        // A worker that is to halt there may be beyond it without knowing, and says so.
        let is_ahead = |(step, p): &(&Step, &PendingRecord)| **step > committed || p.halts && **step == committed;
        let ahead: Vec<Step> = cx.record.pending.iter().filter(is_ahead).map(|(step, _)| *step).collect();
        for step in ahead {
            cx.send(rank, checkpoint_at(&cx.record, step));
        }
        if rank == Rank::ZERO {
            self.pending.values_mut().for_each(|p| p.is_publish_sent = false);
        }
    }

    // ---------------------------------------------------------------------------------------------------- writing, publishing

    /// A newer step is committed or recorded: what waited for it may be published.
    pub fn committed_advanced(&mut self, cx: &mut Cx<'_, '_>) {
        let at = cx.now() + cx.limits().checkpoint();
        let committed = cx.committed();
        for (step, _) in self.pending.range(..=committed) {
            cx.deadlines().set_first(Deadline::Checkpoint { step: *step }, at);
        }
        let steps: Vec<Step> = self.pending.keys().copied().collect();
        for step in steps {
            self.try_publish(cx, step);
        }
    }

    /// How far the oldest checkpoint that is being written is, of `world` places; `None`: none is. `writes`: the places that write their shards of a step.
    pub fn saving<I: Iterator<Item = (Rank, proto::ShardProgress)>>(
        &self,
        writes: impl Fn(Step) -> I,
        world: usize,
    ) -> Option<proto::Saving> {
        self.pending.iter().find_map(|(step, pending)| {
            let mut saving = proto::Saving { step: step.get(), places: world as u32, ..Default::default() };
            for shard in pending.shards.values() {
                saving.bytes += shard.bytes;
                saving.total_bytes += shard.bytes;
                saving.places_done += 1;
            }
            // What is written is heard of before the heartbeat that does not say any more that it is being written.
            let writes = writes(*step).filter(|(rank, _)| !pending.shards.contains_key(rank));
            let mut has_begun = saving.places_done > 0;
            for (_, shard) in writes {
                has_begun = true;
                saving.bytes = saving.bytes.saturating_add(shard.bytes);
                saving.total_bytes = saving.total_bytes.saturating_add(shard.total_bytes);
                if shard.for_s > 0.0 {
                    saving.bytes_per_s += shard.bytes as f64 / shard.for_s;
                }
            }
            has_begun.then_some(saving)
        })
    }

    pub fn shard_written(&mut self, cx: &mut Cx<'_, '_>, rank: Rank, message: proto::ShardWritten) -> Outcome {
        let step = Step::new(message.step);
        let Some(pending) = self.pending.get_mut(&step) else { return Outcome::Noted };
        let file: Result<ShardFile, _> = serde_json::from_str(&message.file_json);
        let text = match file {
            Ok(file) if file.rank == rank.index() && Rank::from(message.rank) == rank => {
                let write_s = if message.write_s.is_finite() { message.write_s.max(0.0) } else { 0.0 };
                let bytes = file.bytes;
                pending.shards.insert(rank, Shard { file_json: message.file_json, bytes, write_s });
                self.try_publish(cx, step);
                return Outcome::Noted;
            }
            Ok(file) => format!("{} reported the shard of rank {}", cx.describe(rank), file.rank),
            Err(error) => {
                format!("{} described its shard in a way that cannot be read: {error}", cx.describe(rank))
            }
        };
        Outcome::Failed { step, text, hang: Vec::new() }
    }

    /// All shards are durable, and so is the curve up to here: the manifest may be written.
    fn try_publish(&mut self, cx: &mut Cx<'_, '_>, step: Step) {
        let curve_is_there = cx.curve.recorded_step() >= step;
        let is_due = |pending: &&mut Pending| {
            let num_shards = pending.shards.len() + usize::from(failpoint!(PublishWithoutShard));
            !pending.is_publish_sent && num_shards >= cx.world()
        };
        if !curve_is_there || !cx.record.pending.contains_key(&step) {
            return;
        }
        let Some(pending) = self.pending.get_mut(&step).filter(is_due) else { return };
        let files_json: Vec<String> = pending.shards.values().map(|s| s.file_json.clone()).collect();
        if step == cx.total() {
            self.last_files = Some(files_json.clone());
        }
        pending.is_publish_sent = true;
        cx.edit().pending.entry(step).and_modify(|p| p.publishing = true);
        let removes = self.outdated_by(&cx.record, step);
        self.send_publish(cx, step, files_json, removes);
    }

    /// The last step is published, and all places have finished: what is left of earlier ones goes now. What cannot be removed is told, and stays.
    pub fn remove_rest(&mut self, cx: &mut Cx<'_, '_>) {
        let total = cx.total();
        if self.is_removing() {
            return;
        }
        let Some(files_json) = self.last_files.clone() else { return };
        self.take_all_away(cx);
        let removes = self.outdated_by(&cx.record, total);
        if !removes.is_empty() {
            self.send_publish(cx, total, files_json, removes);
        }
    }

    fn send_publish(&mut self, cx: &mut Cx<'_, '_>, step: Step, files_json: Vec<String>, removes: Vec<Step>) {
        if !removes.is_empty() {
            self.order_removal(cx, step, &removes);
            let at = cx.now() + cx.limits().checkpoint();
            cx.deadlines().set(Deadline::Removals, at);
        }
        let publish = proto::PublishManifest {
            job_id: cx.record.id.to_string(),
            epoch: cx.record.epoch.get(),
            step: step.get(),
            files_json,
            remove_steps: removes.into_iter().map(Step::get).collect(),
        };
        cx.send(Rank::ZERO, Body::PublishManifest(publish));
    }

    /// From now on they may be gone, also where nobody ever says so.
    fn order_removal(&mut self, cx: &mut Cx<'_, '_>, step: Step, removes: &[Step]) {
        self.removing.insert(step, removes.to_vec());
        for checkpoint in cx.edit().checkpoints.iter_mut().filter(|c| removes.contains(&c.step)) {
            checkpoint.is_removal_ordered = true;
        }
    }

    /// Steps that go with the publishing of `step`: what nothing keeps beside it, and leftovers. Never `step` itself, nor the newest
    /// that is recorded: until the publishing is recorded too, that one is the last good. Nor is anything that is pinned removed.
    fn outdated_by(&self, record: &JobRecord, step: Step) -> Vec<Step> {
        let config = &record.spec.checkpoint;
        let older = record.checkpoints.iter().filter(|c| c.step != step);
        // `step` will be one of the newest.
        let num_newest = keeping::num_newest(config).max(2) - 1;
        let outdated = keeping::outdated(older.clone(), num_newest, config.keep_every_steps, &record.pinned);
        let is_published = |s: &Step| *s == step || older.clone().any(|c| c.step == *s);
        let may_go = |s: &Step| !is_published(s) && !record.pinned.contains(s) && !self.removes(*s);
        let leftovers = record.leftovers.iter().copied().filter(may_go);
        let mut out: Vec<Step> = outdated.into_iter().chain(leftovers).collect();
        out.sort_unstable();
        out.dedup();
        // The others go with the next.
        out.truncate(MAX_REMOVALS);
        out
    }

    pub fn manifest_published(&mut self, cx: &mut Cx<'_, '_>, message: proto::ManifestPublished) -> Outcome {
        let step = Step::new(message.step);
        if !cx.record.pending.get(&step).is_some_and(|p| p.publishing) {
            return Outcome::Noted;
        }
        if !message.error.is_empty() {
            // What was to be removed with it is there still: removals come after the publishing. It is removed with the next.
            let stays = self.stop_removing(cx, step);
            for checkpoint in cx.edit().checkpoints.iter_mut().filter(|c| stays.contains(&c.step)) {
                checkpoint.is_removal_ordered = false;
            }
            cx.edit().pending.entry(step).and_modify(|p| p.publishing = false);
            let text = format!("{} could not publish the manifest: {}", cx.describe(Rank::ZERO), message.error);
            return Outcome::Failed { step, text, hang: Vec::new() };
        }
        let pending = self.forget(cx, step).unwrap_or_default();
        let (epoch, unix_ms) = (cx.record.epoch, cx.moment().unix_ms);
        let (config, pinned) = (cx.record.spec.checkpoint.clone(), cx.record.pinned.clone());
        let fields = cx.edit();
        let halts = fields.pending.remove(&step).is_some_and(|p| p.halts);
        fields.checkpoints.retain(|c| c.step != step);
        fields.checkpoints.push(Checkpoint {
            step,
            epoch,
            path: message.path.clone(),
            bytes: message.bytes,
            unix_ms,
            write_s: pending.shards.values().map(|s| s.write_s).fold(0.0, f64::max),
            is_removal_ordered: false,
        });
        fields.checkpoints.sort_by_key(|c| c.step);
        let num_newest = keeping::num_newest(&config);
        let outdated = keeping::outdated(fields.checkpoints.iter(), num_newest, config.keep_every_steps, &pinned);
        fields.checkpoints.retain(|c| !outdated.contains(&c.step));
        fields.leftovers.extend(outdated);
        *fields.unsaved = None;
        cx.deadlines().clear(&Deadline::LastStepAgain);
        self.doublings = 0;
        cx.event("checkpoint.done", format!("step {step}: {} at {}", units::bytes(message.bytes), message.path));
        self.arm_interval(cx, false);
        Outcome::Published { halts }
    }

    /// From rank 0, after a publishing that ordered removals. What stays is told once (T-12), and not tried again.
    pub fn steps_removed(&mut self, cx: &mut Cx<'_, '_>, message: proto::StepsRemoved) {
        let mut kept = message.kept.iter().filter(|kept| cx.record.leftovers.contains(&Step::new(kept.step)));
        if let Some(first) = kept.next() {
            let others = match kept.count() {
                0 => String::new(),
                n => format!(" (and {n} more stay)"),
            };
            let text = format!("the checkpoint of step {} stays where it is: {}{others}", first.step, first.error);
            cx.event("checkpoint.kept", text);
        }
        let done: BTreeSet<Step> =
            message.removed.into_iter().chain(message.kept.into_iter().map(|k| k.step)).map(Step::new).collect();
        cx.edit().leftovers.retain(|step| !done.contains(step));
        self.stop_removing(cx, Step::new(message.step));
    }

    /// The steps that were to be removed with the publishing of `step`.
    fn stop_removing(&mut self, cx: &mut Cx<'_, '_>, step: Step) -> Vec<Step> {
        let stopped = self.removing.remove(&step);
        if self.removing.is_empty() {
            cx.deadlines().clear(&Deadline::Removals);
        }
        stopped.unwrap_or_default()
    }

    // ------------------------------------------------------------------------------------------------- what comes to nothing

    pub fn missed(&mut self, cx: &mut Cx<'_, '_>, rank: Rank, message: &proto::CheckpointMissed) -> Outcome {
        self.silent.remove(&rank);
        let step = Step::new(message.step);
        let Some(pending) = cx.record.pending.get(&step).cloned() else { return Outcome::Noted };
        if !message.error.is_empty() {
            let text = format!("{} could not write its shard: {}", cx.describe(rank), message.error);
            return Outcome::Failed { step, text, hang: Vec::new() };
        }
        // Its shard has come: the worker was only asked twice.
        let is_written = self.pending.get(&step).is_some_and(|p| p.shards.contains_key(&rank));
        if is_written && !pending.halts {
            return Outcome::Noted;
        }
        let is_known_ahead = pending.why == Why::Steps && !pending.halts;
        if !is_known_ahead {
            self.doublings = (self.doublings + 1).min(MAX_DOUBLINGS);
        }
        if pending.why == Why::Time || pending.why == Why::Request {
            self.wanted = Some(pending.why);
        }
        if cx.record.halt == Some(step) {
            *cx.edit().halt = None;
            cx.deadlines().clear(&Deadline::HaltAgain);
        }
        let text = format!(
            "step {step}: {} had committed step {} before it heard of it; {}",
            cx.describe(rank),
            message.committed_step,
            if is_known_ahead { "it is not saved" } else { "the next is named further ahead" }
        );
        cx.event("checkpoint.late", text);
        if is_written {
            // It was named before it became the one to halt at.
            cx.edit().pending.entry(step).and_modify(|p| p.halts = false);
        } else {
            self.take_away(cx, step);
        }
        Outcome::NameMore
    }

    /// Training goes on, and the newest good checkpoint stays.
    pub fn failed(&mut self, cx: &mut Cx<'_, '_>, step: Step, text: &str) -> Failure {
        let (now, is_last) = (cx.moment(), step == cx.total());
        if let Some(text) = unsaved::count(cx.edit().unsaved, now, step, is_last, text) {
            cx.event("checkpoint.failed", text);
        }
        self.arm_interval(cx, false);
        if cx.record.halt == Some(step) {
            let at = cx.now() + cx.limits().heartbeat_interval;
            cx.deadlines().set(Deadline::HaltAgain, at);
        }
        self.take_away(cx, step);
        if !is_last {
            return Failure::GoesOn;
        }
        match unsaved::next_try(&cx.record, now, text) {
            Retry::At(at) => {
                cx.deadlines().set(Deadline::LastStepAgain, at);
                Failure::TriesAgain
            }
            Retry::Never(reason) => Failure::GivesUp(reason),
        }
    }

    /// The last step is to be made again.
    pub fn forget_last_step(&mut self, cx: &mut Cx<'_, '_>) {
        cx.deadlines().clear(&Deadline::LastStepAgain);
        if let Some(unsaved) = cx.edit().unsaved {
            unsaved.last_step = None;
        }
    }

    fn forget(&mut self, cx: &mut Cx<'_, '_>, step: Step) -> Option<Pending> {
        cx.deadlines().clear(&Deadline::Checkpoint { step });
        self.pending.remove(&step)
    }

    /// A step will not be saved: what was written of it goes.
    fn take_away(&mut self, cx: &mut Cx<'_, '_>, step: Step) {
        // What rank 0 may be publishing at this very moment stays whole (T-6): it is removed with the next publishing.
        if cx.edit().pending.remove(&step).is_some_and(|p| !p.publishing) {
            let (job_id, epoch) = (cx.record.id.to_string(), cx.record.epoch.get());
            let step = step.get();
            cx.send_all(&Body::DropCheckpoint(proto::DropCheckpoint { job_id, epoch, step }));
        }
        self.forget(cx, step);
        cx.edit().leftovers.insert(step);
    }

    /// The job ends: nobody waits any more for what is still being written.
    pub fn take_all_away(&mut self, cx: &mut Cx<'_, '_>) {
        let committed = cx.committed();
        let written: Vec<Step> = cx.record.pending.keys().copied().filter(|step| *step <= committed).collect();
        for step in written {
            self.take_away(cx, step);
        }
    }

    /// The epoch is over: what was named in it is void (T-1), and what was written of it is left over. Where the state stays
    /// (`heals`), what was wanted is named anew.
    pub fn abandon(&mut self, cx: &mut Cx<'_, '_>, heals: bool) {
        let committed = cx.committed();
        let fields = cx.edit();
        let named = std::mem::take(fields.pending);
        fields.leftovers.extend(named.keys().copied().filter(|s| *s <= committed));
        let first =
            named.iter().find(|(_, p)| p.why == Why::Steps).map(|(step, _)| step.previous().unwrap_or_default());
        *fields.named_to = first.unwrap_or(*fields.named_to).min(*fields.named_to);
        *fields.halt = None;
        self.pending.clear();
        self.silent.clear();
        // What it orders does not touch the files of the next epoch (T-1).
        self.removing.clear();
        self.last_files = None;
        let ends = |d: &Deadline| {
            matches!(d, Deadline::Checkpoint { .. } | Deadline::HaltAgain | Deadline::Removals)
                || !heals && *d == Deadline::CheckpointInterval
        };
        cx.deadlines().retain(|deadline| !ends(deadline));
        self.wanted.take_if(|why| *why == Why::Leaving);
        if heals {
            let wanted = named.values().map(|p| p.why).find(|why| matches!(why, Why::Time | Why::Request));
            self.wanted = self.wanted.or(wanted);
        } else {
            self.wanted.take_if(|why| *why == Why::Time);
        }
    }

    /// The same where the record is an older copy, and workers have committed `highest`: what it had named up to there may have been published
    /// since. Nobody removes that but a user.
    pub fn abandon_copy(&mut self, cx: &mut Cx<'_, '_>, highest: Step) {
        let leftovers = cx.record.leftovers.clone();
        self.abandon(cx, true);
        let named_to = cx.record.named_to;
        let fields = cx.edit();
        *fields.leftovers = leftovers;
        // The state that all begin with can still be saved.
        let passed = highest.previous().unwrap_or_default();
        *fields.named_to = named_to.max(passed);
        let unknown = multiples(&cx.record, named_to, passed);
        say_skipped(cx, unknown, Skipped::Unknown);
    }

    // ----------------------------------------------------------------------------------------------------------------- time

    /// Whether a deadline of checkpoints counts at the moment.
    pub fn counts(&self, core: &Core, deadline: &Deadline) -> bool {
        let total = core.total();
        core.epoch.is_started()
            && match deadline {
                Deadline::LastStepAgain => {
                    !core.record.pending.contains_key(&total) && !self.removes(total) && core.is_whole()
                }
                _ => true,
            }
    }

    /// `checkpoint.interval_s` has passed.
    pub fn interval_passed(&mut self, cx: &mut Cx<'_, '_>) {
        cx.deadlines().clear(&Deadline::CheckpointInterval);
        self.wanted.get_or_insert(Why::Time);
    }

    /// The step that all halt at is named again.
    pub fn halt_again(&mut self, cx: &mut Cx<'_, '_>, leaving: &str) {
        cx.deadlines().clear(&Deadline::HaltAgain);
        if let Some(step) = cx.record.halt {
            self.name_halt(cx, step, leaving);
        }
    }

    /// Steps whose removal was ordered stay leftovers, and are ordered again with the next publishing.
    pub fn removals_passed(&mut self, cx: &mut Cx<'_, '_>) {
        cx.deadlines().clear(&Deadline::Removals);
        self.removing.clear();
        self.last_files = None;
    }

    /// The time to write and publish this step is over. Nobody notices otherwise who hangs once all steps are made: who was asked for the
    /// last step's shard twice and said nothing is to be replaced. A trainer whose disk is slow says so when it is asked again.
    pub fn overdue(&mut self, cx: &Cx<'_, '_>, step: Step) -> Outcome {
        const MAX_NAMED: usize = 8;
        if !cx.record.pending.contains_key(&step) {
            return Outcome::Noted;
        }
        let limit = cx.limits().checkpoint().as_secs_f64();
        let pending = self.pending.get(&step);
        let shards = pending.map(|p| &p.shards);
        let is_missing = |rank: &Rank| shards.is_some_and(|s| !s.contains_key(rank));
        let silent: BTreeSet<Rank> = Rank::all(cx.world()).filter(is_missing).collect();
        let missing: Vec<String> = silent.iter().map(Rank::to_string).collect();
        let text = match missing.len() {
            0 if pending.is_some_and(|p| !p.is_publish_sent) => {
                format!("the figures of the steps up to it did not all come within {limit} s")
            }
            0 => format!("the manifest was not published within {limit} s"),
            n if n <= MAX_NAMED => format!("no shard came within {limit} s from ranks {}", missing.join(", ")),
            n => format!("no shard came within {limit} s from {n} ranks, the first is {}", missing[0]),
        };
        let before = std::mem::take(&mut self.silent);
        let hang = before.intersection(&silent).copied().collect();
        if step == cx.total() {
            self.silent = silent;
        }
        Outcome::Failed { step, text, hang }
    }
}

/// T-12: multiples of `interval_steps` that will not be saved any more.
fn say_skipped(cx: &mut Cx<'_, '_>, steps: Vec<Step>, skipped: Skipped) {
    let (Some(first), Some(last)) = (steps.first(), steps.last()) else { return };
    let (which, is) = match steps.len() {
        1 => (format!("step {first}"), "is"),
        n => (format!("{n} steps from {first} to {last}"), "are"),
    };
    let (saved, why) = match skipped {
        Skipped::Ended => (format!("{is} not saved"), "the epoch ended before all shards were written"),
        Skipped::Late => (format!("{is} not saved"), "they were committed before the workers could be told"),
        Skipped::Unknown => {
            ("may be saved".into(), "this store is older and does not know; what is in the folder stays there")
        }
    };
    let interval = cx.record.spec.checkpoint.interval_steps;
    cx.event("checkpoint.skipped", format!("{which} {saved}, a multiple of interval_steps = {interval}: {why}"));
}
