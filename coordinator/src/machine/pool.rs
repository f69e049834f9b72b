//! The workers that are connected now, by id and by stream.
//!
//! A worker has one stream; a newer one replaces it. A worker that is not here is not connected, whatever the places say.

use std::collections::BTreeMap;
use std::time::Duration;

use toroid_proto::Register;
use toroid_torus::placement::Candidate;

use super::StreamId;
use super::crashes::CrashLog;

#[derive(Debug)]
pub struct Worker {
    pub stream: StreamId,
    pub register: Register,
    pub last_heard: Duration,
    /// The job and rank whose place it fills; `None`: a spare.
    pub place: Option<(String, usize)>,
    /// It was drained, or hangs: it is given no place until it registers anew.
    pub is_retired: bool,
}

impl Worker {
    pub fn candidate(&self) -> Candidate {
        let r = &self.register;
        Candidate { worker: r.worker_id.clone(), host: r.host.clone(), rack: r.rack.clone(), zone: r.zone.clone() }
    }
}

#[derive(Debug, Default)]
pub struct Pool {
    workers: BTreeMap<String, Worker>,
    streams: BTreeMap<StreamId, String>,
    crashes: CrashLog,
}

impl Pool {
    pub fn get(&self, worker: &str) -> Option<&Worker> {
        self.workers.get(worker)
    }

    pub fn by_stream(&mut self, stream: StreamId) -> Option<&mut Worker> {
        self.workers.get_mut(self.streams.get(&stream)?)
    }

    /// Adds a worker that is not connected yet.
    pub fn insert(&mut self, worker: Worker) {
        let id = worker.register.worker_id.clone();
        self.streams.insert(worker.stream, id.clone());
        let before = self.workers.insert(id, worker);
        assert!(before.is_none(), "a worker's older stream is removed before the newer one comes in");
    }

    pub fn remove(&mut self, stream: StreamId) -> Option<Worker> {
        self.workers.remove(&self.streams.remove(&stream)?)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.workers.values_mut()
    }

    /// Workers that may be given a place.
    pub fn spares(&self) -> impl Iterator<Item = &Worker> {
        let is_aside = |w: &Worker| self.crashes.is_aside(&w.register.worker_id, &w.register.host);
        self.iter().filter(move |w| w.place.is_none() && !w.is_retired && !is_aside(w))
    }

    pub fn retire(&mut self, worker: &str) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.is_retired = true;
        }
    }

    /// A worker was lost. Says who is put aside for it.
    pub fn crashed(&mut self, worker: &str, host: &str, now: Duration) -> Vec<String> {
        let has_other_hosts = self.workers.values().any(|w| w.register.host != host);
        self.crashes.lost(worker, host, has_other_hosts, now)
    }

    /// When the next of those put aside comes back.
    pub fn next_return(&self) -> Option<Duration> {
        self.crashes.next_return()
    }

    /// Says whether anyone who was put aside is back.
    pub fn forgive_until(&mut self, now: Duration) -> bool {
        self.crashes.forgive_until(now)
    }

    pub fn set_place(&mut self, worker: &str, place: Option<(String, usize)>) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.place = place;
        }
    }

    /// Where all connected workers are.
    pub fn candidates(&self) -> BTreeMap<String, Candidate> {
        self.workers.iter().map(|(id, w)| (id.clone(), w.candidate())).collect()
    }
}
