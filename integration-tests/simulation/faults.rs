//! What goes wrong, and how it ends: a fault is drawn whenever the scenario has one due.
//!
//! Faults come by the number of events and not by time: most events are messages of a step, so that most faults hit the middle of
//! a collective. After the last of them everything becomes whole again, and every job has to come to its end.

use crate::coordinator::{FAILURE_TIMEOUT, checkpoint_root};
use crate::leaders::AtEtcd;
use crate::network::{AtCoordinator, AtWorker, Event, MS, Micros, Pid, SECOND};
use crate::worker::{id_of, pid_of, time};
use crate::world::World;
use toroid_coordinator::machine::Input;
use toroid_proto::coordinator_message::Body as ToWorker;
use toroid_proto::worker_message::Body as FromWorker;

impl World {
    pub fn is_calm(&self) -> bool {
        self.num_faults > self.scenario.faults.len() as u64
    }

    /// Draws the faults whose time has come.
    pub fn faults_are_due(&mut self) {
        while !self.is_calm() {
            let next = self.scenario.faults.get(self.num_faults as usize);
            let is_over = self.are_submitted() && !self.records().any(|r| !r.state.is_ended());
            match next {
                Some(at) if *at > self.num_events && !is_over => return,
                Some(_) if !is_over => {
                    self.num_faults += 1;
                    self.fault();
                }
                _ => self.calm_down(),
            }
        }
    }

    fn fault(&mut self) {
        if self.scenario.is_long && self.env.net.random.percent(40) {
            return self.lose_rank_0_in_an_absence();
        }
        if self.scenario.is_pool && self.env.net.random.percent(40) {
            return self.pool_fault();
        }
        if self.are_several() && self.env.net.random.percent(40) {
            return self.leadership_fault();
        }
        match self.env.net.random.below(100) {
            0..28 => self.kill_some(),
            28..34 => self.stop_one(),
            34..37 => self.hang_one(),
            37..41 => self.break_a_link(),
            41..46 => self.block_a_link(),
            46..51 => self.cut_one_off(),
            51..55 => self.isolate_one(),
            55..58 => self.reset_a_stream(),
            58..70 => self.kill_the_coordinator(),
            70..74 => self.stop_the_coordinator(),
            74..76 => self.jump_the_clock(),
            76..79 => self.break_a_disk(),
            79..81 => self.damage_a_checkpoint(),
            81..83 => self.ask_for_a_checkpoint(),
            83..87 => self.drain_one(),
            87..89 => self.end_one(),
            89..90 => self.cancel_a_job(),
            90..97 => self.repeat_something_old(),
            _ => self.put_a_stranger(),
        }
    }

    // ---------------------------------------------------------------------------------------------------- whom it happens to

    fn placed(&self) -> Vec<Pid> {
        let placed = self.records().flat_map(|r| r.places.iter().flatten()).map(|w| pid_of(w));
        placed.filter(|pid| self.workers.contains_key(pid)).collect()
    }

    /// Mostly one with a place.
    fn someone(&mut self) -> Option<Pid> {
        let placed = self.placed();
        let all: Vec<Pid> = self.workers.keys().copied().collect();
        let of = if placed.is_empty() || self.env.net.random.percent(15) { all } else { placed };
        self.env.net.random.pick(&of)
    }

    /// Two with places.
    fn pair(&mut self) -> Option<(Pid, Pid)> {
        let placed = self.placed();
        let (a, b) = (self.env.net.random.pick(&placed)?, self.env.net.random.pick(&placed)?);
        (a != b).then_some((a, b))
    }

    /// From a blink to long enough to be taken for dead.
    fn a_while(&mut self) -> Micros {
        if self.env.net.random.percent(50) {
            self.env.net.random.between(20 * MS, SECOND)
        } else {
            self.env.net.random.between(SECOND, 4 * FAILURE_TIMEOUT)
        }
    }

    // ------------------------------------------------------------------------------------------------------------ to workers

    /// Now and then several at once, or one soon after the other.
    fn kill_some(&mut self) {
        let num = if self.env.net.random.percent(25) { self.env.net.random.between(2, 3) } else { 1 };
        for _ in 0..num {
            if let Some(pid) = self.someone() {
                self.kill_worker(pid);
            }
        }
    }

    /// SIGSTOP, and SIGCONT later.
    fn stop_one(&mut self) {
        let (Some(pid), time) = (self.someone(), self.a_while()) else { return };
        let Some(worker) = self.workers.get_mut(&pid).filter(|w| w.backlog.is_none()) else { return };
        worker.backlog = Some(Vec::new());
        self.env.was_unable.insert(pid);
        self.env.tell(|| format!("{} is stopped for {} s", id_of(pid), time as f64 / 1e6));
        self.env.net.push(time, Event::WorkerContinues { pid });
    }

    /// It computes for ever, and heartbeats.
    fn hang_one(&mut self) {
        let Some(pid) = self.someone() else { return };
        self.env.tell(|| format!("{} hangs", id_of(pid)));
        self.env.hangs.insert(pid);
        self.env.was_unable.insert(pid);
    }

    /// SIGTERM. It stays until its place is moved, and now and then whoever asked has not the patience.
    fn end_one(&mut self) {
        let Some(pid) = self.someone() else { return };
        self.env.tell(|| format!("{} is asked to end", id_of(pid)));
        self.env.net.at_worker(pid, 0, AtWorker::Asked { times: 1 });
        let after = self.env.net.random.below(3 * SECOND);
        match self.env.net.random.below(4) {
            0 => self.env.net.at_worker(pid, after, AtWorker::Asked { times: 2 }),
            1 => self.env.net.push(after, Event::WorkerEnds { pid }),
            _ => {}
        }
    }

    fn break_a_link(&mut self) {
        if let Some((a, b)) = self.pair() {
            self.env.tell(|| format!("the link of {} and {} breaks", id_of(a), id_of(b)));
            self.env.net.break_link(a, b);
        }
    }

    fn block_a_link(&mut self) {
        if let (Some((a, b)), time) = (self.pair(), self.a_while()) {
            self.env.tell(|| format!("{} and {} are apart for {} s", id_of(a), id_of(b), time as f64 / 1e6));
            let until = self.env.net.now + time;
            self.env.net.block_link(a, b, until);
            self.env.was_apart.extend([a, b]);
        }
    }

    fn cut_one_off(&mut self) {
        if let (Some(pid), time) = (self.someone(), self.a_while()) {
            self.env.tell(|| format!("{} is cut off the coordinator for {} s", id_of(pid), time as f64 / 1e6));
            self.cut_off(pid, time);
        }
    }

    fn cut_off(&mut self, pid: Pid, time: Micros) {
        let until = self.env.net.now + time;
        self.env.net.cut_off(pid, until);
        if let Some(stream) = self.workers.get(&pid).and_then(|w| w.stream) {
            self.env.net.at_worker(pid, FAILURE_TIMEOUT, AtWorker::KeepaliveFailed { stream });
        }
    }

    /// From everyone.
    fn isolate_one(&mut self) {
        let (Some(pid), time) = (self.someone(), self.a_while()) else { return };
        self.env.tell(|| format!("{} is isolated for {} s", id_of(pid), time as f64 / 1e6));
        self.cut_off(pid, time);
        self.env.was_unable.insert(pid);
        let until = self.env.net.now + time;
        for peer in self.workers.keys().filter(|peer| **peer != pid) {
            self.env.net.block_link(pid, *peer, until);
        }
    }

    /// Both ends see it.
    fn reset_a_stream(&mut self) {
        let Some(pid) = self.someone() else { return };
        let Some(stream) = self.workers.get(&pid).and_then(|w| w.stream) else { return };
        self.env.tell(|| format!("the stream of {} is reset", id_of(pid)));
        self.env.net.close_at_worker(stream, "closed its stream (reset)");
        self.env.net.at_worker(pid, 0, AtWorker::StreamClosed { stream });
    }

    fn break_a_disk(&mut self) {
        if let (Some(pid), time) = (self.someone(), self.a_while()) {
            self.env.tell(|| format!("the disk of {} is full for {} s", id_of(pid), time as f64 / 1e6));
            let until = self.env.net.now + time;
            self.env.disk.full.insert(pid, until);
            self.env.disk.were_full.insert(pid);
        }
    }

    /// A shard of the newest recorded checkpoint is not what it was.
    fn damage_a_checkpoint(&mut self) {
        let mut running = Vec::new();
        for record in self.records().filter(|r| !r.state.is_ended()) {
            // The last step's is what the job has to end with.
            let last = record.last_checkpoint().filter(|c| c.step.get() < record.spec.steps);
            running.extend(last.map(|c| (record.id.clone(), c.step.get(), record.spec.shape.world() as u64)));
        }
        let Some((job, step, world)) = self.env.net.random.pick(&running) else { return };
        let rank = self.env.net.random.below(world) as usize;
        self.env.tell(|| format!("the shard of rank {rank} in the checkpoint of step {step} of {job} is damaged"));
        self.env.disk.damage(&checkpoint_root(&job), step, rank);
    }

    /// Another job's file comes into the folder of a checkpoint: nobody may take it away (T-10).
    fn put_a_stranger(&mut self) {
        let steps: Vec<(String, u64)> =
            self.records().flat_map(|r| r.checkpoints.iter().map(|c| (checkpoint_root(&r.id), c.step.get()))).collect();
        let Some((root, step)) = self.env.net.random.pick(&steps) else { return };
        self.env.tell(|| format!("another job has a file in the folder of step {step}"));
        let name = "shard-00000-of-00001-epoch-1-by-ffffffffffffffffffffffffffffffff.safetensors";
        self.env.disk.put_stranger(&root, step, name);
    }

    // ----------------------------------------------------------------------------------------------------- to the coordinator

    /// At once, or between two outputs of what it does next.
    fn kill_the_coordinator(&mut self) {
        if self.env.net.random.percent(60) {
            self.crash_in = Some(self.env.net.random.between(1, 12));
        } else {
            let down = self.env.net.random.below(3 * FAILURE_TIMEOUT);
            self.kill_coordinator(down);
        }
    }

    /// The coordinator is away for hundreds of steps, and on the way the only one dies who tells it of them.
    fn lose_rank_0_in_an_absence(&mut self) {
        let first = self.records().find_map(|r| r.places.first()?.as_deref().map(pid_of));
        let down = self.env.net.random.between(2 * SECOND, 4 * FAILURE_TIMEOUT);
        if let Some(pid) = first {
            let after = self.env.net.random.between(SECOND, down);
            self.env.net.push(after, Event::WorkerEnds { pid });
        }
        if self.are_several() { self.leave_nobody_to_lead(down) } else { self.kill_coordinator(down) }
    }

    /// Without a quorum of etcd nobody can lead on, nor begin to; now and then no coordinator is there, either.
    fn leave_nobody_to_lead(&mut self, time: Micros) {
        self.lose_quorum(time);
        if self.env.net.random.percent(30) {
            (0..self.scenario.num_coordinators).for_each(|seat| self.kill_process(seat, time));
        }
    }

    fn lose_quorum(&mut self, time: Micros) {
        self.env.tell(|| format!("etcd has no quorum for {} s", time as f64 / 1e6));
        self.cluster.no_quorum = self.env.net.now + time;
        self.env.net.push(time, Event::AtEtcd(AtEtcd::QuorumIsBack));
    }

    fn stop_the_coordinator(&mut self) {
        let (time, seat) = (self.a_while(), self.seat);
        if self.are_several() {
            return self.stop_process(seat, time, false);
        }
        if self.coordinator.as_ref().is_some_and(|c| c.backlog.is_none()) {
            self.env.tell(|| format!("the coordinator is stopped for {} s", time as f64 / 1e6));
            self.suspend(0);
            self.env.net.push(time, Event::CoordinatorContinues { seat });
        }
    }

    /// To whoever leads, or to etcd.
    fn leadership_fault(&mut self) {
        let (time, seat) = (self.a_while(), self.seat);
        let until = self.env.net.now + time;
        let in_words = time as f64 / 1e6;
        let num = self.scenario.num_coordinators as u64;
        let (any, member) = (self.env.net.random.below(num) as usize, self.env.net.random.below(3) as usize);
        match self.env.net.random.below(100) {
            0..15 => self.kill_process(seat, time),
            15..20 => self.kill_process(any, time),
            20..35 => self.stop_process(seat, time, false),
            35..42 => self.stop_process(seat, time, true),
            42..45 => self.stop_process(any, time, false),
            45..55 => {
                self.env.tell(|| format!("coordinator {seat} is cut off etcd for {in_words} s"));
                self.cluster.cut.insert(seat, until);
            }
            55..60 => {
                self.env.tell(|| format!("coordinator {seat} is cut off all workers for {in_words} s"));
                self.env.net.cut_seat(seat, until);
                self.fail_keepalives(|net, stream| net.seat_of(stream) == seat);
            }
            60..66 => {
                self.env.tell(|| format!("member {member} of etcd is down for {in_words} s"));
                self.cluster.down[member] = until;
            }
            66..72 => {
                self.env.tell(|| format!("member {member} of etcd is stopped for {in_words} s"));
                self.cluster.silent[member] = until;
            }
            72..78 => {
                self.env.tell(|| format!("etcd is slow for {in_words} s"));
                self.cluster.slow = until;
            }
            78..82 => self.lose_quorum(time),
            82..85 => {
                self.env.tell(|| format!("etcd has no space for {in_words} s"));
                self.cluster.no_space = until;
            }
            85..90 => {
                self.env.tell(|| "the lease of the leader is gone".into());
                self.lose_lease();
            }
            _ => self.repeat_an_older_term(),
        }
    }

    fn drain_one(&mut self) {
        let is_awake = self.env.is_coordinator_awake;
        if let Some(pid) = self.someone().filter(|_| is_awake) {
            self.env.tell(|| format!("a user drains {}", id_of(pid)));
            self.request(|request| Input::Drain { request, worker: id_of(pid) });
        }
    }

    /// Only the second one, if there is one: the first has to come to its end.
    fn cancel_a_job(&mut self) {
        let job = self.records().map(|r| r.id.clone()).find(|id| id.starts_with("second"));
        let is_awake = self.env.is_coordinator_awake;
        if let Some(job) = job.filter(|_| is_awake) {
            self.env.tell(|| format!("a user cancels {job}"));
            self.request(|request| Input::Cancel { request, job: job.into() });
        }
    }

    fn jump_the_clock(&mut self) {
        let by = self.env.net.random.below(7_200_000) as i64 - 3_600_000;
        self.env.tell(|| format!("the coordinator's clock jumps by {} s", by / 1000));
        self.clock_jump_ms += by;
    }

    fn ask_for_a_checkpoint(&mut self) {
        let jobs: Vec<String> = self.records().map(|r| r.id.to_string()).collect();
        let is_awake = self.env.is_coordinator_awake;
        if let Some(job) = self.env.net.random.pick(&jobs).filter(|_| is_awake) {
            self.env.tell(|| format!("a user asks for a checkpoint of {job}"));
            self.request(|request| Input::Checkpoint { request, job });
        }
    }

    // ------------------------------------------------------------------------------------------------------------------ T-1

    /// A message of an older epoch comes once more, at anyone: nothing may come of it.
    fn repeat_something_old(&mut self) {
        match self.env.net.random.below(2) {
            0 => self.repeat_to_coordinator(),
            _ => self.repeat_to_worker(),
        }
    }

    fn repeat_to_coordinator(&mut self) {
        let (Some(pid), Some(body)) = (self.someone(), self.env.heard.pick(&mut self.env.net.random)) else { return };
        let Some(stream) = self.workers.get(&pid).and_then(|w| w.stream) else { return };
        let Some((job, epoch)) = body.subject() else { return };
        if self.record(job).is_some_and(|r| epoch < r.epoch.get()) {
            self.env.tell(|| format!("{} says again, of epoch {epoch}: {}", id_of(pid), name(&body)));
            self.env.net.send_to_coordinator(stream, AtCoordinator::Message { stream, body: Box::new(body) });
        }
    }

    fn repeat_to_worker(&mut self) {
        let (Some(pid), Some((_, body))) = (self.someone(), self.env.said.pick(&mut self.env.net.random)) else {
            return;
        };
        let Some(worker) = self.workers.get_mut(&pid).filter(|w| w.backlog.is_none()) else { return };
        let standing = worker.client.standing();
        let of = match &body {
            ToWorker::Assign(m) => (m.job_id.clone(), m.epoch),
            ToWorker::Start(m) => (m.job_id.clone(), m.epoch),
            ToWorker::CheckpointAt(m) => (m.job_id.clone(), m.epoch),
            ToWorker::PublishManifest(m) => (m.job_id.clone(), m.epoch),
            ToWorker::DropCheckpoint(m) => (m.job_id.clone(), m.epoch),
            ToWorker::Stop(m) => (m.job_id.clone(), m.epoch),
            ToWorker::ReportSteps(m) => (m.job_id.clone(), m.epoch),
            ToWorker::Welcome(_)
            | ToWorker::StepAck(_)
            | ToWorker::Refused(_)
            | ToWorker::WarmUp(_)
            | ToWorker::Probe(_)
            | ToWorker::Kill(_) => return,
        };
        if standing.job_id == of.0.as_str() && of.1 < standing.epoch.get() {
            self.env.tell(|| format!("{} hears something of epoch {} again", id_of(pid), of.1));
            let input = toroid_session::client::Input::FromCoordinator { term: self.env.term, body: body.clone() };
            let outputs = worker.client.handle(input, time(&self.env));
            // Said again by the coordinator of now, it may be the first that is heard of its term.
            let after = toroid_session::Standing { term: standing.term, ..worker.client.standing() };
            let holds = outputs.is_empty() && after == standing;
            self.env.truth.check(holds, || format!("T-1: in epoch {} came {body:?}: {outputs:?}", standing.epoch));
        }
    }

    /// T-13: a coordinator that leads no more says something to a worker that has heard its successor.
    fn repeat_an_older_term(&mut self) {
        let (Some(pid), Some((term, body))) = (self.someone(), self.env.said.pick(&mut self.env.net.random)) else {
            return;
        };
        let runs = |worker: &&mut crate::worker::Worker| worker.backlog.is_none() && worker.stream.is_some();
        if let Some(worker) = self.workers.get_mut(&pid).filter(runs).filter(|worker| term < worker.greatest) {
            self.env.tell(|| format!("{} hears something of {term:?} again", id_of(pid)));
            worker.heard(term, body, &mut self.env);
        }
    }

    // -------------------------------------------------------------------------------------------------------------- the end

    /// No more faults; what is broken is mended, and there are workers enough.
    pub fn calm_down(&mut self) {
        self.num_faults = self.scenario.faults.len() as u64 + 1;
        self.env.tell(|| "no more faults".into());
        self.crash_in = None;
        self.env.net.heal();
        self.mend_etcd();
        self.env.disk.full.clear();
        self.env.hangs.clear();
        self.env.unable.clear();
        if self.env.truth.recorded.is_some() {
            return;
        }
        for n in 0..self.scenario.num_places + 1 {
            let after = self.env.net.random.below(SECOND);
            self.env.net.push(after, Event::WorkerStarts { host: format!("fresh-{n}") });
        }
    }
}

fn name(body: &FromWorker) -> String {
    let text = format!("{body:?}");
    text.split(['(', ' ']).next().unwrap_or_default().to_string()
}
