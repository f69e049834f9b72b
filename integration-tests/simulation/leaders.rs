//! Several coordinators over one etcd: their processes, and what goes wrong between them and the model of etcd.
//!
//! ```text
//!   process: campaign, load, commit, renew   (the product's code over `service`) ── calls ──> members ──> the model
//!      ^ polled when something has happened to it      <── answers, late or never ────────────'     │ what was written: checked
//! ```
//!
//! - **T-8** who leads alone writes, each write follows the one before, and whoever led decides nothing any more when another begins to lead.
//! - **T-13** each leader has a greater term than all before.
//! - A new leader begins with what was written last.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::sync::watch;
use toroid_coordinator::machine;
use toroid_coordinator::machine::record::Record;
use toroid_coordinator::store::etcd::{Candidate, EtcdStore, Kind, Leader, Sight, call_limit, record_of};
use toroid_coordinator::store::{Store as _, StoreError, Tenure};

use crate::coordinator::LIMITS;
use crate::etcd::{Change, Etcd, Refusal};
use crate::network::{Event, MS, Micros, SECOND};
use crate::service::{Call, NUM_MEMBERS, Played, Request, Response, Seat};
use crate::world::World;

const PREFIX: &str = "/toroid/simulated";

type Waits<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Elected = EtcdStore<Played>;

/// What a coordinator's process does.
enum Role {
    Stands(Waits<(Candidate<Played>, Elected)>),
    Loads(Waits<(Elected, Result<Vec<Record>, StoreError>)>),
    Leads { store: Option<Elected>, commit: Option<Waits<(Elected, Result<(), StoreError>)>> },
}

/// A coordinator's process.
pub struct Process {
    incarnation: u64,
    etcd: Played,
    role: Role,
    /// While it leads.
    candidate: Option<Candidate<Played>>,
    tenure: Option<Tenure>,
    tasks: Vec<Waits<()>>,
    sight: watch::Receiver<Sight>,
    /// SIGSTOP, or its whole machine, whose clock stands still then.
    pub is_stopped: bool,
    /// So much its clock is behind.
    lag: Micros,
    /// In its leadership its clock has stood still, or its lease was gone before its time: it cannot know.
    is_excused: bool,
    alarm: (u64, Option<Micros>),
}

/// What came of polling a process.
enum Outcome {
    Nothing,
    Elected(Candidate<Played>, Elected),
    Loaded(Elected, Result<Vec<Record>, StoreError>),
    Committed(Elected, Result<(), StoreError>),
}

/// What is to be heard by somebody else: a call by etcd, or its answer by the process that made it.
#[derive(Debug)]
pub enum AtEtcd {
    Call {
        seat: Seat,
        incarnation: u64,
        call: Call,
    },
    Answer {
        seat: Seat,
        incarnation: u64,
        number: u64,
        answer: Result<Response, Kind>,
    },
    /// A process wants to be polled.
    Alarm {
        seat: Seat,
        incarnation: u64,
        number: u64,
    },
    /// The time of a lease may be over.
    LeaseEnds,
    /// Enough members run again.
    QuorumIsBack,
}

struct Watcher {
    seat: Seat,
    incarnation: u64,
    number: u64,
    key: String,
}

/// etcd, with what goes wrong there, and the processes.
#[derive(Default)]
pub struct Cluster {
    pub etcd: Etcd,
    /// As a member remembers it that was paused.
    stale: Option<Etcd>,
    pub processes: BTreeMap<Seat, Process>,
    num_incarnations: u64,
    watchers: Vec<Watcher>,
    /// Until when a member refuses calls, or is silent.
    pub down: [Micros; NUM_MEMBERS],
    pub silent: [Micros; NUM_MEMBERS],
    pub no_quorum: Micros,
    pub no_space: Micros,
    pub slow: Micros,
    /// Until when a process is cut off all members.
    pub cut: BTreeMap<Seat, Micros>,
    /// When leases are looked at next.
    lease_alarm: Micros,
    /// The greatest term, and the number of the last write.
    last: (u64, u64),
    /// Processes to which something has happened.
    pub touched: BTreeSet<Seat>,
}

/// A coordinator as a worker sees it that dials it.
#[derive(Debug, Clone)]
pub struct SeatView {
    pub leads: bool,
    pub is_stopped: bool,
    /// Who leads, as far as it knows.
    pub leader: Option<String>,
}

pub fn address(seat: Seat) -> String {
    format!("http://c{seat}:7070")
}

pub fn seat_at(address: &str) -> Option<Seat> {
    address.strip_prefix("http://c")?.strip_suffix(":7070")?.parse().ok()
}

fn key(name: &str) -> String {
    format!("{PREFIX}/{name}")
}

impl Process {
    fn new(incarnation: u64, seat: Seat, id: u64) -> Process {
        let ttl = LIMITS.lease();
        let etcd = Played::new(call_limit(ttl));
        let candidate = Candidate::over(etcd.clone(), PREFIX, address(seat), format!("{id:016x}"), ttl);
        let (role, sight) = stand(candidate);
        Process {
            incarnation,
            etcd,
            role,
            candidate: None,
            tenure: None,
            tasks: Vec::new(),
            sight,
            is_stopped: false,
            lag: 0,
            is_excused: false,
            alarm: (0, None),
        }
    }

    /// Why it leads no more, by its own clock.
    pub fn over(&self, now: Micros) -> Option<String> {
        let now = self.etcd.shared().instant(now.saturating_sub(self.lag));
        self.tenure.as_ref()?.over_at(now)
    }

    pub fn is_writing(&self) -> bool {
        matches!(&self.role, Role::Leads { commit: Some(_), .. })
    }

    fn poll(&mut self, now: Micros) -> Outcome {
        {
            let mut shared = self.etcd.shared();
            shared.now = now - self.lag;
            shared.wake_at = None;
        }
        let mut context = Context::from_waker(Waker::noop());
        self.tasks.retain_mut(|task| task.as_mut().poll(&mut context).is_pending());
        let outcome = match &mut self.role {
            Role::Stands(waits) => match waits.as_mut().poll(&mut context) {
                Poll::Ready((candidate, store)) => Outcome::Elected(candidate, store),
                Poll::Pending => Outcome::Nothing,
            },
            Role::Loads(waits) => match waits.as_mut().poll(&mut context) {
                Poll::Ready((store, records)) => Outcome::Loaded(store, records),
                Poll::Pending => Outcome::Nothing,
            },
            Role::Leads { commit: Some(waits), .. } => match waits.as_mut().poll(&mut context) {
                Poll::Ready((store, written)) => Outcome::Committed(store, written),
                Poll::Pending => Outcome::Nothing,
            },
            Role::Leads { .. } => Outcome::Nothing,
        };
        // What begins now waits for something before anybody looks again.
        let spawned = std::mem::take(&mut self.etcd.shared().spawned);
        for mut task in spawned {
            if task.as_mut().poll(&mut context).is_pending() {
                self.tasks.push(task);
            }
        }
        outcome
    }
}

/// Waits for its turn.
fn stand(mut candidate: Candidate<Played>) -> (Role, watch::Receiver<Sight>) {
    let (sight, seen) = watch::channel(Sight::default());
    let campaign = async move {
        let store = candidate.campaign(&sight).await;
        (candidate, store)
    };
    (Role::Stands(Box::pin(campaign)), seen)
}

impl World {
    pub fn are_several(&self) -> bool {
        self.scenario.num_coordinators > 1
    }

    pub fn start_process(&mut self, seat: Seat) {
        if self.cluster.processes.contains_key(&seat) {
            return;
        }
        self.env.tell(|| format!("coordinator {seat} starts"));
        self.cluster.num_incarnations += 1;
        let id = self.env.net.random.next();
        self.cluster.processes.insert(seat, Process::new(self.cluster.num_incarnations, seat, id));
        self.cluster.touched.insert(seat);
    }

    /// Has all go on to which something has happened, and shows workers where the leader is.
    pub fn poll_processes(&mut self) {
        if !self.are_several() {
            return;
        }
        while let Some(seat) = self.cluster.touched.pop_first() {
            self.poll_process(seat);
        }
        self.show_seats();
    }

    fn poll_process(&mut self, seat: Seat) {
        loop {
            let now = self.env.net.now;
            let Some(process) = self.cluster.processes.get_mut(&seat).filter(|p| !p.is_stopped) else { return };
            match process.poll(now) {
                Outcome::Nothing => {
                    if let Some(reason) = process.over(now) {
                        self.depose(seat, &reason);
                        continue;
                    }
                    break;
                }
                Outcome::Elected(candidate, mut store) => {
                    let tenure = store.tenure();
                    process.candidate = Some(candidate);
                    process.tenure = Some(tenure);
                    process.is_excused = false;
                    process.role = Role::Loads(Box::pin(async move {
                        let records = store.load().await;
                        (store, records)
                    }));
                }
                Outcome::Loaded(store, Ok(records)) => {
                    process.role = Role::Leads { store: Some(store), commit: None };
                    let tenure = process.tenure.clone().expect("it was elected");
                    // Whoever stood still until its lease was over does nothing of what it says with these records.
                    if process.over(now).is_none() {
                        self.check_loaded(seat, &records);
                    }
                    self.take_seat(seat);
                    self.restore(records, tenure.term());
                }
                Outcome::Committed(store, Ok(())) => {
                    process.role = Role::Leads { store: Some(store), commit: None };
                    self.at_seat(seat, World::go_on);
                }
                Outcome::Loaded(_, Err(StoreError::Deposed { reason }))
                | Outcome::Committed(_, Err(StoreError::Deposed { reason })) => self.depose(seat, &reason),
                Outcome::Loaded(_, Err(error)) | Outcome::Committed(_, Err(error)) => {
                    self.env.truth.check(false, || format!("T-8: the records are damaged: {error}"));
                    return;
                }
            }
        }
        self.make_calls(seat);
    }

    /// What a process has asked for is on its way; and when it wants to be polled.
    fn make_calls(&mut self, seat: Seat) {
        let Some(process) = self.cluster.processes.get_mut(&seat) else { return };
        let (incarnation, lag) = (process.incarnation, process.lag);
        let (calls, wake_at) = {
            let mut shared = process.etcd.shared();
            (std::mem::take(&mut shared.calls), shared.wake_at)
        };
        let wake_at = wake_at.map(|at| at + lag);
        if wake_at != process.alarm.1 {
            process.alarm = (process.alarm.0 + 1, wake_at);
            if let Some(at) = wake_at {
                let number = process.alarm.0;
                self.env.net.push_at(at, Event::AtEtcd(AtEtcd::Alarm { seat, incarnation, number }));
            }
        }
        for call in calls {
            if let Some(delay) = self.way(seat, call.member) {
                self.env.net.push(delay, Event::AtEtcd(AtEtcd::Call { seat, incarnation, call }));
            }
        }
    }

    /// How long what is sent takes between a process and etcd; `None`: it never comes.
    fn way(&mut self, seat: Seat, member: usize) -> Option<Micros> {
        let now = self.env.net.now;
        let is_cut = self.cluster.cut.get(&seat).is_some_and(|until| *until > now);
        let silent = self.cluster.silent[member];
        let slow = if self.cluster.slow > now { self.env.net.random.below(SECOND) } else { 0 };
        let delay = 1 + self.env.net.random.below(2 * MS) + slow;
        if is_cut {
            return None;
        }
        if silent > now {
            // A paused member does afterwards what it was asked for.
            return self.env.net.random.percent(50).then(|| silent - now + delay);
        }
        if self.is_calm() {
            return Some(delay);
        }
        match self.env.net.random.below(100) {
            0..2 => None,
            2..4 => Some(delay + self.env.net.random.between(200 * MS, 3 * SECOND)),
            _ => Some(delay),
        }
    }

    pub fn at_etcd(&mut self, what: AtEtcd) {
        match what {
            AtEtcd::Alarm { seat, incarnation, number } => {
                let process = self.cluster.processes.get_mut(&seat).filter(|p| p.incarnation == incarnation);
                if let Some(process) = process.filter(|p| p.alarm.0 == number) {
                    process.alarm.1 = None;
                    self.cluster.touched.insert(seat);
                }
            }
            AtEtcd::Answer { seat, incarnation, number, answer } => {
                if let Some(process) = self.cluster.processes.get(&seat).filter(|p| p.incarnation == incarnation) {
                    process.etcd.shared().answers.insert(number, answer);
                    self.cluster.touched.insert(seat);
                }
            }
            AtEtcd::LeaseEnds => self.leases_end(),
            AtEtcd::QuorumIsBack => {
                self.cluster.etcd.extend(self.env.net.now);
                self.await_lease_end();
            }
            AtEtcd::Call { seat, incarnation, call } => self.called(seat, incarnation, call),
        }
    }

    fn called(&mut self, seat: Seat, incarnation: u64, call: Call) {
        let now = self.env.net.now;
        let Call { number, member, request } = call;
        if let Request::Watch(key, revision) = &request {
            let modified = self.cluster.etcd.modified(key);
            if modified.is_some_and(|modified| modified <= *revision) {
                self.cluster.watchers.push(Watcher { seat, incarnation, number, key: key.clone() });
                return;
            }
        }
        let answer = if self.cluster.down[member] > now {
            Err(Kind::Other)
        } else if self.cluster.no_quorum > now {
            Err(Kind::NoQuorum)
        } else if self.cluster.no_space > now && needs_space(&request) {
            Err(Kind::NoSpace)
        } else {
            self.done(seat, request)
        };
        if let Some(delay) = self.way(seat, member) {
            self.env.net.push(delay, Event::AtEtcd(AtEtcd::Answer { seat, incarnation, number, answer }));
        }
    }

    fn done(&mut self, seat: Seat, request: Request) -> Result<Response, Kind> {
        let now = self.env.net.now;
        let kind = |refusal| match refusal {
            Refusal::LeaseNotFound => Kind::LeaseGone,
            Refusal::DuplicateKey => Kind::Other,
        };
        if !self.is_calm() && self.env.net.random.percent(5) {
            self.cluster.stale = Some(self.cluster.etcd.clone());
        }
        match request {
            Request::Txn(txn) => {
                let led = self.cluster.etcd.value(&key("leader")).is_some();
                let (answer, changes) = self.cluster.etcd.txn(&txn).map_err(kind)?;
                self.written(changes, Some((seat, led)));
                Ok(Response::Txn(answer))
            }
            Request::List(range) => {
                let remembers = !self.is_calm() && self.env.net.random.percent(30);
                let stale = self.cluster.stale.as_ref().filter(|_| remembers);
                Ok(Response::List(stale.unwrap_or(&self.cluster.etcd).list(&range)))
            }
            Request::Grant(ttl) => {
                let lease = self.cluster.etcd.grant(now, ttl);
                self.await_lease_end();
                Ok(Response::Lease(lease))
            }
            Request::Renew(lease) => self.cluster.etcd.renew(now, lease).map(|()| Response::Done).map_err(kind),
            Request::Revoke(lease) => {
                let changes = self.cluster.etcd.revoke(lease).map_err(kind)?;
                self.written(changes, None);
                Ok(Response::Done)
            }
            // The model has no past.
            Request::Watch(..) | Request::Compact => Ok(Response::Done),
        }
    }

    fn await_lease_end(&mut self) {
        let (now, alarm) = (self.env.net.now, self.cluster.lease_alarm);
        let next = self.cluster.etcd.next_end().filter(|at| alarm <= now || *at < alarm);
        if let Some(at) = next {
            self.cluster.lease_alarm = at;
            self.env.net.push_at(at, Event::AtEtcd(AtEtcd::LeaseEnds));
        }
    }

    /// Without a quorum no lease ends.
    fn leases_end(&mut self) {
        let now = self.env.net.now;
        if self.cluster.no_quorum <= now {
            let changes = self.cluster.etcd.expire(now);
            self.written(changes, None);
            if self.cluster.etcd.next_end().is_some_and(|at| at > now) {
                self.await_lease_end();
            }
        }
    }

    /// The lease of whoever leads is gone, before its time.
    pub fn lose_lease(&mut self) {
        if let Some(lease) = self.cluster.etcd.lease_of(&key("leader")) {
            self.cluster.processes.values_mut().for_each(|process| process.is_excused = true);
            let changes = self.cluster.etcd.revoke(lease).unwrap_or_default();
            self.written(changes, None);
        }
    }

    // --------------------------------------------------------------------------------------------------------- what must hold

    /// etcd has changed; `by`: whose transaction it was, and whether anybody led before.
    fn written(&mut self, changes: Vec<Change>, by: Option<(Seat, bool)>) {
        let (leader_key, head_key, records) = (key("leader"), key("head"), key("record/"));
        for change in changes {
            let (changed, value) = match &change {
                Change::Put { key, value } => (key, Some(value.as_slice())),
                Change::Delete { key } => (key, None),
            };
            self.tell_watchers(changed);
            match (value, by) {
                (Some(value), Some((seat, led))) if *changed == leader_key => self.begins_to_lead(seat, led, value),
                (Some(value), Some((seat, _))) if *changed == head_key => self.check_write(seat, value),
                (Some(value), _) => {
                    let name = changed.strip_prefix(&records);
                    match name.and_then(|name| record_of(name, value).transpose()) {
                        Some(Ok(record)) => self.persist(record),
                        Some(Err(error)) => self.env.truth.check(false, || format!("T-8: {error}")),
                        None => {}
                    }
                }
                (None, _) => {
                    if let Some(name) = changed.strip_prefix(&records) {
                        self.forget(name);
                    }
                }
            }
        }
        // A decision of more than a transaction takes is whole when its journal is gone.
        if self.cluster.etcd.value(&key("journal")).is_none() {
            self.check_decision();
        }
    }

    fn tell_watchers(&mut self, key: &str) {
        let (told, kept) = std::mem::take(&mut self.cluster.watchers).into_iter().partition(|w| w.key == key);
        self.cluster.watchers = kept;
        for Watcher { seat, incarnation, number, .. } in told {
            // A watch may have been lost in silence.
            if self.is_calm() || !self.env.net.random.percent(20) {
                let (delay, answer) = (self.env.net.random.below(5 * MS), Ok(Response::Done));
                self.env.net.push(delay, Event::AtEtcd(AtEtcd::Answer { seat, incarnation, number, answer }));
            }
        }
    }

    fn begins_to_lead(&mut self, seat: Seat, led: bool, value: &[u8]) {
        let now = self.env.net.now;
        let Ok(leader) = serde_json::from_slice::<Leader>(value) else {
            return self.env.truth.check(false, || "T-8: the leader's key cannot be read".into());
        };
        let term = leader.term.get();
        self.env.tell(|| format!("coordinator {seat} leads, with term {term}"));
        self.env.truth.check(!led, || format!("T-8: coordinator {seat} leads while another does"));
        let last = self.cluster.last.0;
        self.env.truth.check(term > last, || format!("T-13: term {term} of coordinator {seat} follows term {last}"));
        self.cluster.last = (term.max(last), 0);
        let decides = |(other, process): &(&Seat, &Process)| {
            **other != seat && process.tenure.is_some() && !process.is_excused && process.over(now).is_none()
        };
        let other = self.cluster.processes.iter().find(decides).map(|(other, _)| *other);
        self.env.truth.check(other.is_none(), || {
            format!("T-8: coordinator {} decides still when coordinator {seat} leads", other.unwrap_or_default())
        });
    }

    /// Each write replaces the head.
    fn check_write(&mut self, seat: Seat, value: &[u8]) {
        let head: serde_json::Value = serde_json::from_slice(value).unwrap_or_default();
        let (term, write) = (head["term"].as_u64().unwrap_or(0), head["write"].as_u64().unwrap_or(0));
        let leader = self.cluster.etcd.value(&key("leader"));
        let leader = leader.and_then(|value| serde_json::from_slice::<Leader>(value).ok());
        let leads = leader.is_some_and(|leader| leader.term.get() == term && leader.address == address(seat));
        let last = self.cluster.last;
        self.env.truth.check(leads, || format!("T-8: coordinator {seat} writes with term {term} and does not lead"));
        let is_next = write == 0 || last == (term, write - 1);
        self.env.truth.check(is_next, || format!("T-8: write {write} of term {term} follows {last:?}"));
        self.cluster.last = (term, write);
    }

    fn check_loaded(&mut self, seat: Seat, records: &[Record]) {
        let text = |record: &Record| serde_json::to_string(record).expect("records are JSON");
        let loaded: BTreeMap<String, String> = records.iter().map(|r| (r.key(), text(r))).collect();
        let stored: BTreeMap<String, String> = self.store.iter().map(|(key, r)| (key.clone(), text(r))).collect();
        self.env.truth.check(loaded == stored, || {
            format!("T-8: coordinator {seat} begins to lead with other records than were written last")
        });
        self.check_promises();
        self.num_taken_over += u64::from(!self.gave_way.is_empty());
    }

    // --------------------------------------------------------------------------------------------------------------- who leads

    /// The seat's coordinator is the one that the rest of the world means.
    fn take_seat(&mut self, seat: Seat) {
        if let Some(before) = self.coordinator.take() {
            self.deposed.insert(self.seat, before);
        }
        self.seat = seat;
        self.coordinator = self.deposed.remove(&seat);
    }

    /// Does it as the coordinator of this seat.
    pub fn at_seat(&mut self, seat: Seat, does: impl FnOnce(&mut World)) {
        if seat == self.seat {
            return does(self);
        }
        let here = self.deposed.remove(&seat);
        let (before, was) = (std::mem::replace(&mut self.coordinator, here), self.seat);
        self.seat = seat;
        does(self);
        if let Some(coordinator) = std::mem::replace(&mut self.coordinator, before) {
            self.deposed.insert(seat, coordinator);
        }
        self.seat = was;
    }

    /// It leads no more: its machine is dropped, and its streams end.
    pub fn depose(&mut self, seat: Seat, reason: &str) {
        self.env.tell(|| format!("coordinator {seat} leads no more: {reason}"));
        self.at_seat(seat, World::end_streams);
        let Some(process) = self.cluster.processes.get_mut(&seat) else { return };
        process.tenure = None;
        if let Some(candidate) = process.candidate.take() {
            (process.role, process.sight) = stand(candidate);
        }
        self.cluster.touched.insert(seat);
    }

    /// Has the leader's decision written, which takes a while.
    pub fn commit(&mut self, change: machine::Change) {
        let seat = self.seat;
        let Some(process) = self.cluster.processes.get_mut(&seat) else { return };
        let Role::Leads { store, commit } = &mut process.role else { return };
        let mut store = store.take().expect("nothing else is written at the same time");
        *commit = Some(Box::pin(async move {
            let written = store.commit(&change).await;
            (store, written)
        }));
        self.cluster.touched.insert(seat);
    }

    /// SIGKILL.
    pub fn kill_process(&mut self, seat: Seat, down: Micros) {
        if self.cluster.processes.remove(&seat).is_some() {
            self.env.tell(|| format!("coordinator {seat} is killed, for {} s", down as f64 / 1e6));
            self.at_seat(seat, World::end_streams);
            self.env.net.push(down, Event::CoordinatorStarts { seat });
        }
    }

    /// SIGSTOP; of a whole machine the clock stands still as well.
    pub fn stop_process(&mut self, seat: Seat, time: Micros, is_machine: bool) {
        let Some(process) = self.cluster.processes.get_mut(&seat).filter(|p| !p.is_stopped) else { return };
        process.is_stopped = true;
        self.env.tell(|| format!("coordinator {seat} is stopped for {} s, its clock: {is_machine}", time as f64 / 1e6));
        if is_machine {
            process.lag += time;
            process.is_excused = true;
        }
        let lag = if is_machine { time } else { 0 };
        self.at_seat(seat, |world| world.suspend(lag));
        self.env.net.push(time, Event::CoordinatorContinues { seat });
    }

    pub fn process_continues(&mut self, seat: Seat) {
        let Some(process) = self.cluster.processes.get_mut(&seat).filter(|p| p.is_stopped) else { return };
        process.is_stopped = false;
        self.env.tell(|| format!("coordinator {seat} goes on"));
        self.cluster.touched.insert(seat);
        self.poll_processes();
        self.at_seat(seat, World::coordinator_continues);
    }

    fn show_seats(&mut self) {
        let now = self.env.net.now;
        let seats = self.cluster.processes.iter().map(|(seat, process)| {
            let coordinator = if *seat == self.seat { self.coordinator.as_ref() } else { self.deposed.get(seat) };
            let leads = coordinator.is_some_and(|c| c.is_ready) && process.over(now).is_none();
            let leader = process.sight.borrow().leader.as_ref().map(|leader| leader.address.clone());
            (*seat, SeatView { leads, is_stopped: process.is_stopped, leader })
        });
        self.env.seats = seats.collect();
        let view = self.env.seats.get(&self.seat);
        self.env.is_coordinator_up = view.is_some_and(|view| view.leads);
        let is_idle = self.cluster.processes.get(&self.seat).is_some_and(|p| !p.is_writing() && !p.is_stopped);
        self.env.is_coordinator_awake = self.env.is_coordinator_up && is_idle;
    }

    /// Everything is mended.
    pub fn mend_etcd(&mut self) {
        let had_none = self.cluster.no_quorum > self.env.net.now;
        (self.cluster.down, self.cluster.silent) = ([0; NUM_MEMBERS], [0; NUM_MEMBERS]);
        (self.cluster.no_quorum, self.cluster.no_space, self.cluster.slow) = (0, 0, 0);
        self.cluster.cut.clear();
        self.cluster.stale = None;
        if had_none {
            self.at_etcd(AtEtcd::QuorumIsBack);
        }
    }
}

fn needs_space(request: &Request) -> bool {
    match request {
        Request::Txn(txn) => !txn.when.is_empty(),
        Request::Grant(_) => true,
        Request::List(_) | Request::Renew(_) | Request::Revoke(_) | Request::Compact | Request::Watch(..) => false,
    }
}
