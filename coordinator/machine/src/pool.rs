//! The workers that are connected now, by id and by stream.
//!
//! A worker has one stream; a newer one replaces it. A worker that is not here is not connected, whatever the places say.

use core::net::IpAddr;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::api::StreamId;
use super::crashes::{Aside, CrashLog};
use super::deadlines::{Deadline, Deadlines};
use super::proof::{Probe, Proof, ProofStage};
use super::record::{Cordon, Meta, Process};
use toroid_proto as proto;
use toroid_proto::Register;
use toroid_torus::failpoint;
use toroid_torus::ids::{Epoch, JobId, Rank, WorkerId};
use toroid_torus::job::Products;
use toroid_torus::labels::Labels;
use toroid_torus::placement::Candidate;

#[derive(Debug)]
pub struct Worker {
    pub stream: StreamId,
    pub register: Register,
    /// This process is connected since, short breaks left out.
    pub since: Duration,
    pub last_heard: Duration,
    /// It is lost if it says nothing until then.
    pub silent_at: Duration,
    /// Bytes of its device's memory that it holds, and that are free, as it said last.
    pub memory_bytes: [u64; 2],
    /// How many links its place has of each kind, as it said last.
    pub links: BTreeMap<String, u32>,
    /// The job and rank whose place it fills; `None`: a spare.
    pub place: Option<(JobId, Rank)>,
    /// The place that it was told of last, on this stream, and in which epoch; `None`: it was told to leave it, or has none.
    pub told: Option<(JobId, Epoch, Rank)>,
    /// What this spare has shown of being able to fill a place.
    pub proof: Option<Proof>,
}

impl Worker {
    pub fn id(&self) -> WorkerId {
        self.register.worker_id.as_str().into()
    }

    /// What decides the bits that it computes with such products.
    pub fn fingerprint(&self, products: Products) -> &str {
        let Register { fingerprint, fingerprint_bf16, .. } = &self.register;
        if products == Products::Bf16 && !fingerprint_bf16.is_empty() { fingerprint_bf16 } else { fingerprint }
    }

    /// It knows its place as it was in that epoch.
    pub fn was_told(&self, job: &JobId, epoch: Epoch, rank: Rank) -> bool {
        self.told.as_ref().is_some_and(|(told, at, as_rank)| told == job && (*at, *as_rank) == (epoch, rank))
    }

    pub fn candidate(&self) -> Candidate {
        let r = &self.register;
        Candidate { worker: self.id(), host: r.host.clone(), rack: r.rack.clone(), zone: r.zone.clone() }
    }

    /// The value of a label, of those that it was given and those that every worker has.
    pub fn label(&self, name: &str) -> Option<&str> {
        let r = &self.register;
        match name {
            "device" => r.device.split(':').next(),
            "host" => Some(&r.host),
            "rack" => Some(&r.rack),
            "zone" => Some(&r.zone),
            name => r.labels.get(name).map(String::as_str),
        }
    }

    pub fn has_labels(&self, wanted: &Labels) -> bool {
        wanted.iter().all(|(name, value)| self.label(name) == Some(value))
    }
}

/// Where a connected worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    Placed,
    Spare,
    /// A spare again after a while.
    Aside(Aside<'a>),
    /// No process of this id, or none of its host, is given a place, until a user says so.
    Cordoned(Cordoned<'a>),
    /// This process is given no place any more.
    Retired,
}

/// Why a worker is given no place until a user says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cordoned<'a> {
    pub cordon: &'a Cordon,
    /// `None`: its own id is cordoned, and not its host.
    pub host: Option<&'a str>,
}

#[derive(Debug, Default)]
pub struct Pool {
    workers: BTreeMap<WorkerId, Worker>,
    /// Those of them without a place: few where most of ten thousands train.
    unplaced: BTreeSet<WorkerId>,
    streams: BTreeMap<StreamId, WorkerId>,
    /// How many of the workers only their own machine can dial.
    num_loopbacks: usize,
    crashes: CrashLog,
    /// The job that spares are asked to be ready for.
    pub asks_for: Option<JobId>,
    retired: BTreeMap<WorkerId, Process>,
    /// By id, connected or not.
    cordoned: BTreeMap<WorkerId, Cordon>,
    cordoned_hosts: BTreeMap<String, Cordon>,
    /// Workers without a place that hold state of a job as it was split before: nobody else's, until it lets them go.
    pub retained: BTreeMap<WorkerId, JobId>,
    /// Workers that are kept for others while a job is given its places.
    pub kept: BTreeSet<WorkerId>,
    /// When the silent are looked for next: no later than [`Worker::silent_at`] of anybody. Most have spoken by then, so this is all that is waited
    /// for, and a heartbeat changes no table of deadlines.
    look_at: Option<Duration>,
    /// For each worker that is probed [`Deadline::Probe`].
    deadlines: Deadlines,
    /// Until then what was found of many workers stands for all of them.
    counted_until: Option<Duration>,
}

/// Processes that are known as retired, at most.
const MAX_RETIRED: usize = 1000;
/// Workers that are cordoned, and hosts, at most each.
pub const MAX_CORDONED: usize = 10_000;
/// So many workers are looked at whenever one of them comes or goes.
const FEW: usize = 1000;
/// Of more, those that count are counted anew after so long while no job could start with all of them. A fleet that joins would else be
/// looked at for each few workers more: a time that grows as the square of their number.
const COUNTED_FOR: Duration = Duration::from_secs(1);

impl Pool {
    pub fn get(&self, worker: &str) -> Option<&Worker> {
        self.workers.get(worker)
    }

    pub fn by_stream(&mut self, stream: StreamId) -> Option<&mut Worker> {
        self.workers.get_mut(self.streams.get(&stream)?)
    }

    /// Whose stream it is.
    pub fn id_on(&self, stream: StreamId) -> Option<&WorkerId> {
        self.streams.get(&stream)
    }

    /// No worker is connected. What was stored says who is given no place.
    pub fn restore(meta: &Meta) -> Pool {
        let retired = meta.retired.clone();
        if failpoint!(ForgetCordons) {
            return Pool { retired, ..Pool::default() };
        }
        let (cordoned, cordoned_hosts) = (meta.cordoned.clone(), meta.cordoned_hosts.clone());
        Pool { retired, cordoned, cordoned_hosts, ..Pool::default() }
    }

    /// Adds a worker that is not connected yet. A process that was retired stays it, another of its name begins anew.
    pub fn insert(&mut self, worker: Worker) {
        let id = worker.id();
        if self.retired.get(&id).is_some_and(|process| *process != Process::of(&worker.register)) {
            self.retired.remove(&id);
        }
        self.streams.insert(worker.stream, id.clone());
        self.look_at = Some(self.look_at.map_or(worker.silent_at, |at| at.min(worker.silent_at)));
        if worker.place.is_none() {
            self.unplaced.insert(id.clone());
        }
        self.num_loopbacks += usize::from(is_loopback(&worker.register.data_address));
        let before = self.workers.insert(id, worker);
        assert!(before.is_none(), "a worker's older stream is removed before the newer one comes in");
    }

    pub fn remove(&mut self, stream: StreamId) -> Option<Worker> {
        let worker = self.workers.remove(&self.streams.remove(&stream)?)?;
        self.unplaced.remove(&worker.id());
        self.num_loopbacks -= usize::from(is_loopback(&worker.register.data_address));
        self.deadlines.clear(&probe(&worker.register.worker_id));
        if self.workers.is_empty() {
            self.look_at = None;
        }
        Some(worker)
    }

    /// The worker of this stream spoke, if there is one. It is lost if it says nothing more until `silent_at`.
    pub fn heard(&mut self, stream: StreamId, now: Duration, silent_at: Duration) -> Option<&mut Worker> {
        let worker = self.workers.get_mut(self.streams.get(&stream)?)?;
        self.look_at = Some(self.look_at.map_or(silent_at, |at| at.min(silent_at)));
        worker.last_heard = now;
        worker.silent_at = silent_at;
        Some(worker)
    }

    /// The coordinator itself was stopped: nobody was silent in that time.
    pub fn forgive(&mut self, now: Duration, silent_at: Duration) {
        for worker in self.workers.values_mut() {
            worker.last_heard = now;
            worker.silent_at = silent_at;
        }
        self.look_at = (!self.workers.is_empty()).then_some(silent_at);
    }

    /// Streams of the workers that have said nothing for too long; whoever asks drops them.
    pub fn silent(&mut self, now: Duration) -> Vec<StreamId> {
        if self.look_at.is_none_or(|at| now < at) {
            return Vec::new();
        }
        self.look_at = self.iter().map(|w| w.silent_at).filter(|at| *at > now).min();
        self.iter().filter(|w| w.silent_at <= now).map(|w| w.stream).collect()
    }

    pub fn len(&self) -> usize {
        self.workers.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    /// Workers that have no place, in order of their ids.
    pub fn unplaced(&self) -> impl Iterator<Item = &Worker> {
        self.unplaced.iter().filter_map(|id| self.workers.get(id))
    }

    /// Workers that may be given a place.
    pub fn spares(&self) -> impl Iterator<Item = &Worker> {
        self.unplaced().filter(|w| self.standing(w) == Standing::Spare)
    }

    /// Whether a connected worker has a place, may have one, or why not.
    pub fn standing(&self, worker: &Worker) -> Standing<'_> {
        let proto::Register { worker_id, host, .. } = &worker.register;
        if worker.place.is_some() {
            Standing::Placed
        } else if self.retired.contains_key(worker_id.as_str()) {
            Standing::Retired
        } else if let Some(cordoned) = self.cordon_of(worker) {
            Standing::Cordoned(cordoned)
        } else {
            self.crashes.aside(worker_id, host).map_or(Standing::Spare, Standing::Aside)
        }
    }

    /// What a job that waits for workers says of those that are there and do not count.
    pub fn not_counted(&self) -> String {
        let without: Vec<(&str, Standing<'_>)> =
            self.iter().map(|w| (w.register.worker_id.as_str(), self.standing(w))).collect();
        let mut text = String::new();
        let aside: Vec<&(&str, Standing<'_>)> =
            without.iter().filter(|(_, standing)| matches!(standing, Standing::Aside(_))).collect();
        if let Some((id, Standing::Aside(first))) = aside.first() {
            let more = if aside.len() > 1 { format!(" and {} more", aside.len() - 1) } else { String::new() };
            text += &format!(
                "; {id}{more} put aside for a while do not count, since {}: `toroid workers --readmit {id}` takes it back",
                first.reason
            );
        }
        match without.iter().filter(|(_, standing)| *standing == Standing::Retired).count() {
            0 => {}
            1 => text += "; one that was drained does not count",
            n => text += &format!("; {n} that were drained do not count"),
        }
        match without.iter().filter(|(_, standing)| matches!(standing, Standing::Cordoned(_))).count() {
            0 => {}
            1 => text += "; one that is cordoned does not count",
            n => text += &format!("; {n} that are cordoned do not count"),
        }
        text
    }

    /// Ends the time for which a worker is put aside, be it connected or not. Returns why it was, or who is.
    pub fn readmit(&mut self, worker: &str) -> Result<String, Vec<String>> {
        let host = self.workers.get(worker).map(|w| w.register.host.clone()).unwrap_or_default();
        self.crashes.readmit(worker, &host).ok_or_else(|| {
            let connected = self.iter().filter(|w| matches!(self.standing(w), Standing::Aside(_)));
            let connected = connected.map(|w| w.register.worker_id.clone());
            let all: BTreeSet<String> = connected.chain(self.crashes.workers_aside().map(str::to_string)).collect();
            all.into_iter().collect()
        })
    }

    /// It was drained, or hangs: this process is given no place any more.
    pub fn retire(&mut self, worker: &str) {
        let Some(connected) = self.workers.get(worker) else { return };
        if self.retired.len() == MAX_RETIRED {
            let is_away = |id: &&WorkerId| !self.workers.contains_key(*id);
            let gone = self.retired.keys().find(is_away).or(self.retired.keys().next()).cloned();
            gone.map(|id| self.retired.remove(&id));
        }
        self.retired.insert(worker.into(), Process::of(&connected.register));
    }

    /// From now on nobody of this id is given a place. Says whether that is possible: not beyond [`MAX_CORDONED`].
    pub fn cordon(&mut self, worker: &str, cordon: Cordon) -> bool {
        let fits = self.cordoned.len() < MAX_CORDONED || self.cordoned.contains_key(worker);
        if fits {
            self.cordoned.entry(worker.into()).or_insert(cordon);
        }
        fits
    }

    /// The same of a host: whatever worker there is.
    pub fn cordon_host(&mut self, host: &str, cordon: Cordon) -> bool {
        let fits = self.cordoned_hosts.len() < MAX_CORDONED || self.cordoned_hosts.contains_key(host);
        if fits {
            self.cordoned_hosts.entry(host.into()).or_insert(cordon);
        }
        fits
    }

    pub fn uncordon(&mut self, worker: &str) -> Option<Cordon> {
        self.cordoned.remove(worker)
    }

    pub fn uncordon_host(&mut self, host: &str) -> Option<Cordon> {
        self.cordoned_hosts.remove(host)
    }

    pub fn cordoned(&self) -> &BTreeMap<WorkerId, Cordon> {
        &self.cordoned
    }

    pub fn cordoned_hosts(&self) -> &BTreeMap<String, Cordon> {
        &self.cordoned_hosts
    }

    /// Its own, or that of its host.
    pub fn cordon_of(&self, worker: &Worker) -> Option<Cordoned<'_>> {
        let proto::Register { worker_id, host, .. } = &worker.register;
        let own = self.cordoned.get(worker_id.as_str()).map(|cordon| Cordoned { cordon, host: None });
        let of_host = || {
            let (host, cordon) = self.cordoned_hosts.get_key_value(host)?;
            Some(Cordoned { cordon, host: Some(host) })
        };
        own.or_else(of_host)
    }

    pub fn retired(&self) -> &BTreeMap<WorkerId, Process> {
        &self.retired
    }

    /// A worker was lost. Says who is put aside for it.
    pub fn crashed(&mut self, worker: &str, host: &str, now: Duration) -> Vec<String> {
        let has_other_hosts = self.workers.values().any(|w| w.register.host != host);
        self.crashes.lost(worker, host, has_other_hosts, now)
    }

    /// When the next deadline passes of those that no job waits for.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.poll_deadlines().into_iter().chain(self.look_at).min()
    }

    /// The same without the silence of workers.
    pub fn poll_deadlines(&self) -> Option<Duration> {
        self.deadlines.next(|_| true).into_iter().chain(self.crashes.next_return()).min()
    }

    /// Whether what was found of the workers may stand for now. If not, they are counted.
    pub fn is_counted(&mut self, now: Duration) -> bool {
        if self.len() <= FEW {
            return false;
        }
        if let Some(until) = self.counted_until.filter(|until| now < *until) {
            self.deadlines.set(Deadline::Count, until);
            return true;
        }
        self.counted_until = Some(now + COUNTED_FOR);
        self.deadlines.clear(&Deadline::Count);
        false
    }

    /// Somebody has come or gone since, and it is time to count again.
    pub fn is_count_due(&mut self, now: Duration) -> bool {
        self.deadlines.has_passed(&Deadline::Count, now) && self.deadlines.clear(&Deadline::Count)
    }

    /// It stands out: its workers were lost again and again, and those of no other.
    pub fn is_host_aside(&self, host: &str) -> bool {
        !host.is_empty() && self.crashes.aside("", host).is_some()
    }

    /// Says whether anyone who was put aside is back.
    pub fn forgive_until(&mut self, now: Duration) -> bool {
        self.crashes.forgive_until(now)
    }

    pub fn set_place(&mut self, worker: &str, place: Option<(JobId, Rank)>) {
        if let Some(worker) = self.workers.get_mut(worker) {
            if place.is_none() {
                worker.told = None;
            }
            if place.is_none() {
                self.unplaced.insert(worker.id());
            } else {
                self.unplaced.remove(&worker.id());
            }
            worker.place = place;
            worker.links.clear();
            // What it had made ready has become its place, or is dropped for another.
            worker.proof = None;
            self.deadlines.clear(&probe(&worker.register.worker_id));
        }
    }

    /// The worker is told of its place in this epoch.
    pub fn tell_place(&mut self, worker: &str, job: &JobId, epoch: Epoch, rank: Rank) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.told = Some((job.clone(), epoch, rank));
        }
    }

    /// The worker is told to leave the place that it has.
    pub fn tell_to_stop(&mut self, worker: &str) {
        self.forget_proof(worker);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.told = None;
        }
    }

    /// What a spare is to show from now on.
    pub fn set_proof(&mut self, worker: &str, proof: Proof) {
        self.deadlines.clear(&probe(worker));
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.proof = Some(proof);
        }
    }

    /// It has to show again that it can fill a place.
    pub fn forget_proof(&mut self, worker: &str) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.proof = None;
            self.deadlines.clear(&probe(&worker.register.worker_id));
        }
    }

    pub fn set_stage(&mut self, worker: &str, stage: ProofStage) {
        if let Some(proof) = self.workers.get_mut(worker).and_then(|w| w.proof.as_mut()) {
            proof.stage = stage;
        }
    }

    /// A spare and another dial each other; that is given up at `until`.
    pub fn begin_probe(&mut self, spare: &str, begun: Probe, until: Duration) {
        self.set_stage(spare, ProofStage::Probed(begun));
        self.deadlines.set(probe(spare), until);
    }

    /// Spares whose probe has both answers, or whose time is over at `now`.
    pub fn ended_probes(&self, now: Option<Duration>) -> Vec<WorkerId> {
        let has_ended = |w: &&Worker| match &w.proof {
            Some(Proof { stage: ProofStage::Probed(begun), .. }) => {
                let is_over = |now| self.deadlines.has_passed(&probe(&w.register.worker_id), now);
                begun.is_answered() || now.is_some_and(is_over)
            }
            _ => false,
        };
        self.unplaced().filter(has_ended).map(Worker::id).collect()
    }

    /// The probe of this number, and the spare that it is of.
    pub fn probe_mut(&mut self, number: u64) -> Option<(&WorkerId, &mut Probe)> {
        let is_it =
            |w: &&Worker| matches!(&w.proof, Some(Proof { stage: ProofStage::Probed(p), .. }) if p.number == number);
        let spare = self.unplaced().find(is_it)?.id();
        let (id, worker) = (self.unplaced.get(&spare)?, self.workers.get_mut(&spare)?);
        match &mut worker.proof.as_mut()?.stage {
            ProofStage::Probed(probe) => Some((id, probe)),
            _ => None,
        }
    }

    /// What a spare has shown of being able to fill a place; its probe, if there was one, is over.
    pub fn end_probe(&mut self, spare: &str) -> Option<&mut Proof> {
        self.deadlines.clear(&probe(spare));
        self.workers.get_mut(spare)?.proof.as_mut()
    }

    /// Only their own machine can dial some of the workers.
    pub fn has_loopbacks(&self) -> bool {
        self.num_loopbacks > 0
    }

    /// The index of those without a place says what the workers say, and so does the number of loopbacks.
    #[cfg(test)]
    pub fn check(&self) {
        let without: BTreeSet<WorkerId> = self.iter().filter(|w| w.place.is_none()).map(Worker::id).collect();
        assert_eq!(self.unplaced, without, "workers without a place");
        let num_loopbacks = self.iter().filter(|w| is_loopback(&w.register.data_address)).count();
        assert_eq!(self.num_loopbacks, num_loopbacks);
    }

    /// Where all connected workers are.
    pub fn candidates(&self) -> BTreeMap<WorkerId, Candidate> {
        self.workers.iter().map(|(id, w)| (id.clone(), w.candidate())).collect()
    }
}

/// Only the machine itself can dial this address.
pub(crate) fn is_loopback(address: &str) -> bool {
    let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn probe(spare: &str) -> Deadline {
    Deadline::Probe { spare: spare.into() }
}
