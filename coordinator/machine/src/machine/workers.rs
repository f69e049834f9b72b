//! Workers that come, speak, fall silent and go.
//!
//! Every message passes [`Machine::message`], which drops what is not from the worker of a place in the present epoch of the job
//! it speaks of (T-1). When a stream ends, the worker is taken for dead and its place is given to another at once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Machine;
use crate::apart::store_id;
use crate::api::StreamId;
use crate::cause::Cause;
use crate::clock::Now;
use crate::config::Config;
use crate::job::{Claim, IfNobody, Job};
use crate::pool::Worker;
use crate::record::{Process, SeenBy};
use proto::RefusalKind;
use proto::coordinator_message::Body as ToWorker;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_torus::failpoint;
use toroid_torus::ids::{Epoch, Step};
use toroid_torus::labels;

/// Longer texts than this from a worker are refused at registration.
const MAX_NAME_BYTES: usize = 256;

/// Of what binds a worker id to whoever registers it first.
const SECRET_BYTES: usize = 32;

/// Of a store, and of whose a job's checkpoints are.
const MAX_ID_BYTES: usize = 16;

impl Config {
    /// Why a worker may not join, if so.
    fn refusal(&self, register: &proto::Register) -> Option<String> {
        let ours = proto::build();
        if protocol_with(register).is_none() {
            return Some(format!(
                "the worker is of version {} and speaks protocol {}, the coordinator is of version {} and speaks protocol {}: they have none in \
                 common; upgrade one release at a time, coordinators first",
                register.build_version,
                register.protocol(),
                ours.version,
                ours.protocol
            ));
        }
        if register.secret.len() != SECRET_BYTES {
            let found = register.secret.len();
            return Some(format!("the worker registers with a secret of {found} bytes, expected {SECRET_BYTES}"));
        }
        let num_bytes = register.store_id.len().max(register.owner_id.len());
        if num_bytes > MAX_ID_BYTES {
            return Some(format!(
                "the worker names a store or an owner with {num_bytes} bytes, expected at most {MAX_ID_BYTES}: it is not of this version"
            ));
        }
        // Digests compare in constant time.
        let is_known = |token: &String| blake3::hash(token.as_bytes()) == blake3::hash(register.token.as_bytes());
        if !self.join_token.as_ref().is_none_or(is_known) {
            let found = if register.token.is_empty() { "no join token" } else { "another join token" };
            return Some(format!(
                "the worker has {found}; start it with the token that the coordinator was started with"
            ));
        }
        let named = [
            ("worker_id", &register.worker_id),
            ("data_address", &register.data_address),
            ("host", &register.host),
            ("fingerprint", &register.fingerprint),
        ];
        if let Err(error) = labels::check_own(&register.labels) {
            return Some(format!("labels: {error}; start the worker with others (--label)"));
        }
        let is_bad = |(_, text): &(_, &String)| text.is_empty() || text.len() > MAX_NAME_BYTES;
        let of_bf16 = Some(("fingerprint_bf16", &register.fingerprint_bf16)).filter(|(_, text)| !text.is_empty());
        let bad = named.into_iter().chain(of_bf16).find(is_bad);
        bad.map(|(key, text)| {
            format!(
                "`{key}` has {} bytes; expected 1 to {MAX_NAME_BYTES}: the worker is not of this version",
                text.len()
            )
        })
    }
}

impl Machine {
    pub(crate) fn message(&mut self, stream: StreamId, body: FromWorker, now: Now) {
        let silent_at = now.monotonic + self.config.limits.failure_timeout;
        let Some(worker) = self.pool.heard(stream, now.monotonic, silent_at) else {
            return match body {
                FromWorker::Register(register) => self.register(stream, register, now),
                _ => {
                    let reason = "the first message on a stream must be Register".into();
                    self.refuse(stream, RefusalKind::Unspecified, reason);
                }
            };
        };
        if let FromWorker::Heartbeat(m) = &body {
            worker.memory_bytes = [m.memory_bytes, m.memory_free_bytes];
            if worker.links != m.links {
                worker.links.clone_from(&m.links);
            }
        }
        match body {
            FromWorker::Register(_) => {
                self.drop_worker(stream, SeenBy::WorkerReport, "registered twice on one stream", now);
            }
            FromWorker::Leaving(m) => self.leaving(stream, &m, now),
            // A spare's heartbeat speaks of no job, and is not stale.
            FromWorker::Heartbeat(m) if m.job_id.is_empty() => {}
            // Lines and stacks are evidence for people: the coordinator around the machine keeps them.
            FromWorker::Stopped(_) | FromWorker::LogLines(_) | FromWorker::Stacks(_) => {}
            FromWorker::WarmedUp(m) => self.warmed_up(stream, &m, now),
            FromWorker::Probed(m) => self.probed(stream, &m, now),
            body => self.place_message(stream, body, now),
        }
    }

    fn place_message(&mut self, stream: StreamId, body: FromWorker, now: Now) {
        let (jobs, mut cx) = self.split(now);
        let about = body.subject();
        let place = cx.pool.by_stream(stream).and_then(|worker| worker.place.as_ref());
        let present = place.and_then(|(job, rank)| Some((jobs.get_mut(job)?, *rank)));
        match present {
            Some((job, rank))
                if about == Some((job.record().id.as_str(), job.record().epoch.get()))
                    || failpoint!(MachineTakesOldEpoch) =>
            {
                job.message(&mut cx, rank, body);
            }
            _ => self.num_stale += 1,
        }
    }

    fn refuse(&mut self, stream: StreamId, kind: RefusalKind, reason: String) {
        self.out.send(stream, ToWorker::Refused(proto::Refused { reason: reason.clone(), kind: kind.into() }));
        self.out.close(stream, reason);
    }

    /// In words, the other process that has the id of a worker that registers, if it is alive or may be: a host that lost its power is noticed only
    /// after the failure timeout, and after a restart of the coordinator workers have time to come back.
    /// Whoever holds a later epoch of its job than the store knows (`is_later`) is the one that has it now.
    fn holder_of_id(&self, register: &proto::Register, is_later: bool, now: Now) -> Option<String> {
        let id = &register.worker_id;
        if let Some(holder) = self.pool.get(id) {
            let is_same = Process::of(&holder.register) == Process::of(register);
            let ago = |at: Duration| now.monotonic.saturating_sub(at).as_secs_f64();
            let (since, heard) = (ago(holder.since), ago(holder.last_heard));
            let process = in_words(&holder.register);
            return (!is_same).then(|| format!("{process} has it since {since:.0} s ago, last heard {heard:.1} s ago"));
        }
        let is_awaited = |job: &&Job| {
            if is_later && job.record().id == *register.job_id {
                return false;
            }
            let rank = job.record().rank_of(id);
            job.record().is_another(register) && rank.is_some_and(|rank| job.core().epoch.awaited().contains(&rank))
        };
        let job = self.jobs.values().find(is_awaited)?;
        Some(format!(
            "another process has a place in {} under it, and has {} s after the restart of the coordinator to come back",
            job.record().id,
            self.config.limits.reconnect().as_secs_f64()
        ))
    }

    fn register(&mut self, stream: StreamId, mut register: proto::Register, now: Now) {
        if let Some(reason) = self.config.refusal(&register) {
            return self.refuse(stream, RefusalKind::Unspecified, reason);
        }
        let id = register.worker_id.clone();
        if let Some(reason) = self.bind(&register, now) {
            return self.refuse(stream, RefusalKind::Unspecified, reason);
        }
        if let Some(reason) = self.stands_apart(&register, now) {
            return self.refuse(stream, RefusalKind::Apart, reason);
        }
        let later = self.jobs.get(register.job_id.as_str()).and_then(|job| job.later_of(&register));
        if let Some(holder) = self.holder_of_id(&register, later.is_some(), now) {
            let reason = format!(
                "the worker id `{id}` is in use: {holder}; this is {}. Give each worker an id of its own (--id), or none: then it is made",
                in_words(&register)
            );
            return self.refuse(stream, RefusalKind::IdInUse, reason);
        }
        let older = self.pool.get(&id).map(|w| (w.stream, w.since));
        if let Some((older, _)) = older {
            self.pool.remove(older);
            self.out.close(older, format!("{id} registered on another stream; the newer one counts"));
        }
        let since = older.map_or(now.monotonic, |(_, since)| since);
        let is_another = |job: &Job| job.record().id == *register.job_id && job.record().is_another(&register);
        if later.is_none() && self.jobs.values().any(is_another) {
            // Its state is older than that of the process that had its id since (T-1, T-3).
            let proto::Register { job_id, epoch, rank, committed_step, .. } = proto::Register::default();
            register = proto::Register { job_id, epoch, rank, committed_step, ..register };
        }
        let is_new = older.is_none() && register.job_id.is_empty();
        let (jobs, mut cx) = self.split(now);
        // It may have been started anew with what it lacked.
        for job in jobs.values_mut() {
            job.registered(&register);
        }
        let is_retained = jobs.values().any(|job| job.had_before(&register));
        let held = jobs.values_mut().find_map(|job| {
            if later.is_some() && job.record().id == *register.job_id {
                return None;
            }
            let rank = job.record().rank_of(&id).or_else(|| job.take_back(&register))?;
            Some((job, rank))
        });
        let mut kept = None;
        if let Some((job, rank)) = held {
            match job.claim_of(&register, rank) {
                Claim::Lost => job.lose(&mut cx, rank, Cause::new(SeenBy::Registration, "came back without its work")),
                claim => kept = Some((job, rank, claim)),
            }
        }
        let place = kept.as_ref().map(|(job, rank, _)| (job.record().id.clone(), *rank));
        let goes_on = kept.as_ref().is_some_and(|(.., claim)| *claim != Claim::Newcomer);
        let keep_going = goes_on || later.is_some() || kept.is_none() && is_retained;
        let protocol_version = protocol_with(&register).unwrap_or_default();
        let (epoch, committed) = (Epoch::new(register.epoch), Step::new(register.committed_step));
        let job_id = register.job_id.clone();
        let (last_heard, silent_at) = (now.monotonic, now.monotonic + cx.config.limits.failure_timeout);
        let (memory_bytes, links, told) = ([0; 2], BTreeMap::new(), None);
        cx.pool.insert(Worker {
            stream,
            register,
            since,
            last_heard,
            silent_at,
            memory_bytes,
            links,
            place,
            told,
            proof: None,
        });
        let welcome = proto::Welcome { protocol_version, ..welcome(cx.config, cx.secret, keep_going) };
        cx.out.send(stream, ToWorker::Welcome(welcome));
        match kept {
            Some((job, rank, Claim::GoesOn)) => job.rejoined(&mut cx, rank, epoch, committed),
            Some((job, rank, _)) => job.returned(rank),
            None => {}
        }
        if let (Some(held), Some(job)) = (later, jobs.get_mut(job_id.as_str())) {
            job.claim_later(&mut cx, id.as_str().into(), held);
        }
        self.out.unsettled = true;
        if is_new {
            self.try_unreadable_again(&id, now);
        }
    }

    /// The worker is to end: its place is moved as soon as another worker can take it. A worker that does not wait for that is lost.
    fn leaving(&mut self, stream: StreamId, leaving: &proto::Leaving, now: Now) {
        let why = format!("left: {}", leaving.reason);
        let Some(worker) = self.pool.by_stream(stream) else { return };
        let (worker, has_place) = (worker.register.worker_id.clone(), worker.place.is_some());
        let if_nobody = if leaving.at_once { IfNobody::Refuse } else { IfNobody::Wait };
        let is_moved = has_place && self.drain_worker(&worker, &why, if_nobody, now).is_ok();
        if leaving.at_once && !is_moved {
            self.drop_worker(stream, SeenBy::Left, &why, now);
        } else if !has_place {
            // It ends by itself.
            self.pool.retire(&worker);
        }
    }

    /// The worker is not connected any more.
    pub(crate) fn disconnected(&mut self, stream: StreamId, by: SeenBy, reason: &str, now: Now) {
        let Some(worker) = self.pool.remove(stream) else { return };
        let (jobs, mut cx) = self.split(now);
        if let Some((job, rank)) = worker.place
            && let Some(job) = jobs.get_mut(&job)
        {
            let silent = now.monotonic.saturating_sub(worker.last_heard);
            // A connection that ends after missed heartbeats ends because of them: its keepalive gives up before the failure timeout.
            let has_missed = by == SeenBy::StreamClosed && silent > 2 * cx.config.limits.heartbeat_interval;
            let (by, why) = match has_missed {
                true => (
                    SeenBy::Silence,
                    format!("was silent for {:.1} s until its connection ended", silent.as_secs_f64()),
                ),
                false => (by, reason.into()),
            };
            let detect = if by == SeenBy::Silence { silent } else { Duration::ZERO };
            job.lose(&mut cx, rank, Cause { by, why, detect, host: Some(worker.register.host) });
        }
        self.out.unsettled = true;
    }

    fn drop_worker(&mut self, stream: StreamId, by: SeenBy, reason: &str, now: Now) {
        self.out.close(stream, reason);
        self.disconnected(stream, by, reason, now);
    }

    /// Lets deadlines pass: silent workers are lost, and jobs look at theirs.
    pub(crate) fn tick(&mut self, now: Now) {
        let is_late = self.poll_timeout().is_some_and(|t| now.monotonic > t + self.config.limits.late());
        if is_late {
            self.forgive(now);
        }
        let limit = self.config.limits.failure_timeout;
        for stream in self.pool.silent(now.monotonic) {
            let reason = format!("was silent for {} s", limit.as_secs_f64());
            self.drop_worker(stream, SeenBy::Silence, &reason, now);
        }
        self.out.unsettled |= self.pool.forgive_until(now.monotonic) | self.pool.is_count_due(now.monotonic);
        for job in self.jobs.values_mut() {
            self.out.unsettled |= job.expire_unfit(now.monotonic);
        }
        self.tick_probes(now);
        let (jobs, mut cx) = self.split(now);
        jobs.values_mut().filter(|j| j.record().state.is_placed()).for_each(|job| job.tick(&mut cx));
    }

    /// The coordinator itself was stopped for a while, so nobody was silent: everything that is waited for gets its time anew.
    fn forgive(&mut self, now: Now) {
        self.pool.forgive(now.monotonic, now.monotonic + self.config.limits.failure_timeout);
        let (jobs, mut cx) = self.split(now);
        for job in jobs.values_mut().filter(|j| j.record().state.is_placed()) {
            job.forgive(&mut cx);
        }
    }
}

/// What this coordinator and a worker speak with each other: the greatest version that both do.
pub(super) fn protocol_with(register: &proto::Register) -> Option<u32> {
    proto::build().protocol.shared(register.protocol()).map(|shared| shared.newest)
}

/// A process as its user finds it.
fn in_words(register: &proto::Register) -> String {
    let proto::Register { pid, host, data_address, .. } = register;
    format!("process {pid} on host {host} (links at {data_address})")
}

fn welcome(config: &Config, secret: &[u8; 32], keep_going: bool) -> proto::Welcome {
    let ms = |d: Duration| u32::try_from(d.as_millis()).unwrap_or(u32::MAX);
    proto::Welcome {
        store_id: store_id(secret).to_vec(),
        heartbeat_interval_ms: ms(config.limits.heartbeat_interval),
        failure_timeout_ms: ms(config.limits.failure_timeout),
        keep_going,
        leave_grace_ms: ms(config.limits.leave()),
        connect_limit_ms: ms(config.limits.connect()),
        build_version: proto::build().version.clone(),
        protocol_version: 0,
    }
}
