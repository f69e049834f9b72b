//! The workers that are connected now, by id and by stream.
//!
//! A worker has one stream; a newer one replaces it. A worker that is not here is not connected, whatever the places say.

use std::collections::BTreeMap;
use std::time::Duration;

use toroid_proto::Register;
use toroid_torus::placement::Candidate;

use super::StreamId;

#[derive(Debug)]
pub struct Worker {
    pub stream: StreamId,
    pub register: Register,
    pub last_heard: Duration,
    /// The job and rank whose place it fills; `None`: a spare.
    pub place: Option<(String, usize)>,
    /// What it does, in its own words.
    pub operation: String,
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

    pub fn spares(&self) -> impl Iterator<Item = &Worker> {
        self.iter().filter(|w| w.place.is_none())
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
