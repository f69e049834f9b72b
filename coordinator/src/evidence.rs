//! What was seen of workers that were lost: the last lines of their logs, and the stacks of those that hung. It is for people; nothing is decided by it.
//!
//! ```text
//!   workers ── LogLines, Stacks ──> the newest of each worker, in memory
//!   an incident is stored ──> of its workers that were not moved on purpose: into the job's evidence ──> a thread writes it beside the curve
//! ```
//!
//! The machine knows nothing of it, and neither does the store. Like the curve it outlives a coordinator: it is in the job's folder, and where several
//! coordinators share records, in the folder of the job's checkpoints, by term (`segments`). It is small and bounded, and goes where the curve goes. A
//! write that fails costs the evidence and nothing else: it is tried again with the next incident's.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use toroid_proto as proto;
use toroid_torus::ids::{JobId, WorkerId};

use crate::files::{Away, Place};
use crate::machine::record::{Incident, JobRecord, SeenBy};
use crate::segments::Segments;

/// In a job's folder.
const FILE_NAME: &str = "evidence.json";
const FORMAT: u32 = 1;
/// Lines of a worker's log that are kept with an incident.
const MAX_LOG_LINES: usize = 20;
/// Workers of which something is kept; beyond, those that were heard of least lately go.
const MAX_WORKERS: usize = 4096;
/// Of one incident.
const MAX_WORKERS_OF_INCIDENT: usize = 8;
/// Of one job: the newest that have any.
const MAX_INCIDENTS: usize = 16;
/// Of one job, as text; beyond, the oldest incident's goes.
const MAX_BYTES: usize = 128 << 10;
/// Of a file that is read: far more than is ever written.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Writes that wait; beyond, one is left to the next incident.
const MAX_WRITES: usize = 16;

pub(crate) const LOG: &str = "log";
pub(crate) const STACKS: &str = "stacks";

/// What a worker said last.
#[derive(Debug, Default)]
struct Said {
    lines: VecDeque<String>,
    stacks: Option<proto::Stacks>,
    /// Grows with each message of any worker.
    heard: u64,
}

type ByIncident = BTreeMap<u64, Vec<proto::Evidence>>;

/// What there is of one job.
#[derive(Debug)]
pub(crate) struct OfJob {
    incidents: ByIncident,
    /// The newest that was stored: what comes of its workers a moment later belongs to it, too.
    newest: Option<Incident>,
    keeper: Arc<Mutex<Keeper>>,
}

impl OfJob {
    /// Of a job that this coordinator did not have, with what coordinators before have kept of its incidents.
    pub fn new(place: &Place, job: &JobRecord) -> OfJob {
        let keeper = Keeper::of(place, job);
        let found = if job.num_incidents == 0 { Ok(ByIncident::new()) } else { keeper.find(&place.away) };
        let incidents = found.unwrap_or_else(|error| {
            tracing::info!(job = job.id.as_str(), "what was seen of lost workers before cannot be read: {error}");
            ByIncident::new()
        });
        OfJob { incidents, newest: None, keeper: Arc::new(Mutex::new(keeper)) }
    }
}

/// All evidence that this coordinator has.
pub(crate) struct Evidence {
    workers: BTreeMap<WorkerId, Said>,
    num_heard: u64,
    jobs: BTreeMap<JobId, OfJob>,
    writes: SyncSender<Write>,
}

/// A job's evidence is to be written.
struct Write {
    job: JobId,
    keeper: Arc<Mutex<Keeper>>,
    bytes: Vec<u8>,
}

impl Evidence {
    /// The thread that writes ends with this.
    pub fn new() -> io::Result<Evidence> {
        let (writes, to_write) = sync_channel::<Write>(MAX_WRITES);
        std::thread::Builder::new().name("evidence".into()).spawn(move || {
            for Write { job, keeper, bytes } in to_write {
                let kept = keeper.lock().unwrap_or_else(PoisonError::into_inner).keep(&bytes);
                if let Err(error) = kept {
                    tracing::info!(
                        job = job.as_str(),
                        "what was seen of lost workers is in memory only, until the next incident: {error}"
                    );
                }
            }
        })?;
        Ok(Evidence { workers: BTreeMap::new(), num_heard: 0, jobs: BTreeMap::new(), writes })
    }

    pub fn restore(&mut self, job: JobId, found: OfJob) {
        self.jobs.insert(job, found);
    }

    pub fn forget(&mut self, job: &JobId) {
        self.jobs.remove(job);
    }

    /// A worker has logged this.
    pub fn logged(&mut self, worker: &WorkerId, lines: Vec<String>) {
        let said = self.said(worker);
        said.lines.extend(lines);
        let num_old = said.lines.len().saturating_sub(MAX_LOG_LINES);
        said.lines.drain(..num_old);
    }

    /// The threads of a worker were in this when its trainer got on with nothing.
    pub fn stacked(&mut self, worker: &WorkerId, stacks: proto::Stacks) {
        let job = JobId::from(stacks.job_id.as_str());
        self.said(worker).stacks = Some(stacks);
        // Looking up names takes a while, in which the worker may have lost its place.
        let newest = self.jobs.get(&job).and_then(|of_job| of_job.newest.clone());
        if let Some(incident) = newest.filter(|incident| incident.workers.contains(worker)) {
            self.add(&incident);
        }
    }

    fn said(&mut self, worker: &WorkerId) -> &mut Said {
        self.num_heard += 1;
        if self.workers.len() >= MAX_WORKERS && !self.workers.contains_key(worker) {
            let oldest = self.workers.iter().min_by_key(|(_, said)| said.heard).map(|(worker, _)| worker.clone());
            oldest.map(|oldest| self.workers.remove(&oldest));
        }
        let said = self.workers.entry(worker.clone()).or_default();
        said.heard = self.num_heard;
        said
    }

    /// An incident was stored: what was seen of its workers belongs to it from now on.
    pub fn incident(&mut self, incident: &Incident) {
        let Some(of_job) = self.jobs.get_mut(&incident.job) else { return };
        if incident.resolved || is_on_purpose(incident.seen_by) {
            return;
        }
        // Its epoch is the one that ended; later it is the one that follows.
        let is_new = of_job.newest.as_ref().is_none_or(|newest| newest.number != incident.number);
        let epoch = of_job.newest.as_ref().filter(|_| !is_new).map_or(incident.epoch, |newest| newest.epoch);
        let incident = Incident { epoch, ..incident.clone() };
        of_job.newest = Some(incident.clone());
        self.add(&incident);
    }

    /// What is known of its workers, as far as it is not there yet.
    fn add(&mut self, incident: &Incident) {
        let Some(of_job) = self.jobs.get_mut(&incident.job) else { return };
        let kept = of_job.incidents.get(&incident.number).map_or(&[][..], Vec::as_slice);
        let has = |worker: &WorkerId, kind: &str| {
            kept.iter().any(|evidence| evidence.worker_id == worker.as_str() && evidence.kind == kind)
        };
        let mut found = Vec::new();
        for worker in incident.workers.iter().take(MAX_WORKERS_OF_INCIDENT) {
            let Some(said) = self.workers.get(worker) else { continue };
            let evidence =
                |kind: &str, lines| proto::Evidence { worker_id: worker.to_string(), kind: kind.into(), lines };
            let is_of_this = |stacks: &&proto::Stacks| {
                stacks.job_id == incident.job.as_str() && stacks.epoch == incident.epoch.get()
            };
            if let Some(stacks) = said.stacks.as_ref().filter(is_of_this).filter(|_| !has(worker, STACKS)) {
                let head = format!("got on with nothing in {}", stacks.operation);
                found.push(evidence(STACKS, [head].into_iter().chain(stacks.lines.iter().cloned()).collect()));
            }
            if !said.lines.is_empty() && !has(worker, LOG) {
                found.push(evidence(LOG, said.lines.iter().cloned().collect()));
            }
        }
        if found.is_empty() {
            return;
        }
        of_job.incidents.entry(incident.number).or_default().extend(found);
        bound(&mut of_job.incidents);
        let write =
            Write { job: incident.job.clone(), keeper: of_job.keeper.clone(), bytes: to_json(&of_job.incidents) };
        match self.writes.try_send(write) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(write)) => {
                tracing::info!(job = write.job.as_str(), "{MAX_WRITES} writes wait: evidence is in memory only");
            }
        }
    }

    /// Of one incident.
    pub fn of(&self, job: &str, incident: u64) -> &[proto::Evidence] {
        self.jobs.get(job).and_then(|job| job.incidents.get(&incident)).map_or(&[], Vec::as_slice)
    }
}

/// The workers of such an incident did not fail.
fn is_on_purpose(seen_by: SeenBy) -> bool {
    matches!(seen_by, SeenBy::Drain | SeenBy::Left | SeenBy::Capacity | SeenBy::Priority)
}

fn bytes_of(evidence: &[proto::Evidence]) -> usize {
    evidence.iter().flat_map(|evidence| &evidence.lines).map(String::len).sum()
}

/// Drops the oldest beyond the bounds.
fn bound(incidents: &mut ByIncident) {
    let is_beyond = |incidents: &ByIncident| {
        let bytes: usize = incidents.values().map(|evidence| bytes_of(evidence)).sum();
        incidents.len() > 1 && (incidents.len() > MAX_INCIDENTS || bytes > MAX_BYTES)
    };
    while is_beyond(incidents) {
        incidents.pop_first();
    }
}

// ------------------------------------------------------------------------------------------------------------- the file

#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    incidents: Vec<KeptIncident>,
}

#[derive(Serialize, Deserialize)]
struct KeptIncident {
    number: u64,
    evidence: Vec<KeptEvidence>,
}

#[derive(Serialize, Deserialize)]
struct KeptEvidence {
    worker: String,
    kind: String,
    lines: Vec<String>,
}

fn to_json(incidents: &ByIncident) -> Vec<u8> {
    let kept = |e: &proto::Evidence| KeptEvidence {
        worker: e.worker_id.clone(),
        kind: e.kind.clone(),
        lines: e.lines.clone(),
    };
    let of_incident = |(number, evidence): (&u64, &Vec<proto::Evidence>)| KeptIncident {
        number: *number,
        evidence: evidence.iter().map(kept).collect(),
    };
    let kept = Kept { format: FORMAT, incidents: incidents.iter().map(of_incident).collect() };
    serde_json::to_vec(&kept).expect("texts and numbers are JSON")
}

fn from_json(json: &[u8]) -> Result<ByIncident, String> {
    let kept: Kept = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if kept.format != FORMAT {
        return Err(format!("it has format {}, this program reads format {FORMAT}", kept.format));
    }
    let evidence = |kept: KeptEvidence| proto::Evidence { worker_id: kept.worker, kind: kept.kind, lines: kept.lines };
    let incident = |kept: KeptIncident| (kept.number, kept.evidence.into_iter().map(evidence).collect());
    let mut incidents = kept.incidents.into_iter().map(incident).collect();
    bound(&mut incidents);
    Ok(incidents)
}

/// Where the evidence of a job is kept.
#[derive(Debug)]
enum Keeper {
    /// On the only coordinator's disk.
    Local(PathBuf),
    Shared(Segments),
    /// Nowhere that others find: a job of an older version.
    Nowhere,
}

impl Keeper {
    fn of(place: &Place, job: &JobRecord) -> Keeper {
        match (&place.shared, place.segments(job)) {
            (None, _) => Keeper::Local(place.folder(&job.id).join(FILE_NAME)),
            (Some(_), Ok(Some(segments))) => Keeper::Shared(segments.beside()),
            (Some(_), Ok(None) | Err(_)) => Keeper::Nowhere,
        }
    }

    fn find(&self, away: &Away) -> Result<ByIncident, String> {
        let json = match self {
            Keeper::Local(path) => read(path).map_err(|error| format!("reading {} failed: {error}", path.display()))?,
            Keeper::Shared(segments) => {
                let found = away.ask(segments, || segments.find_beside(MAX_FILE_BYTES));
                found.map_err(|error| error.to_string())?
            }
            Keeper::Nowhere => None,
        };
        json.map_or(Ok(ByIncident::new()), |json| from_json(&json))
    }

    fn keep(&mut self, json: &[u8]) -> Result<(), String> {
        match self {
            Keeper::Local(path) => {
                write(path, json).map_err(|error| format!("writing {} failed: {error}", path.display()))
            }
            Keeper::Shared(segments) => segments.keep_beside(json).map_err(|error| error.to_string()),
            Keeper::Nowhere => Ok(()),
        }
    }
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut json = Vec::new();
    file.take(MAX_FILE_BYTES).read_to_end(&mut json)?;
    Ok(Some(json))
}

/// It is seen whole or not at all.
fn write(path: &Path, json: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(json)?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(lines: usize, bytes: usize) -> Vec<proto::Evidence> {
        let lines = vec!["l".repeat(bytes); lines];
        vec![proto::Evidence { worker_id: "w3".into(), kind: LOG.into(), lines }]
    }

    #[test]
    fn the_oldest_goes_beyond_the_bounds() {
        let mut incidents: ByIncident = (1..=40).map(|number| (number, evidence(1, 10))).collect();
        bound(&mut incidents);
        assert_eq!((incidents.len(), incidents.keys().next()), (MAX_INCIDENTS, Some(&25)));
        let mut incidents: ByIncident = (1..=9).map(|number| (number, evidence(64, 512))).collect();
        bound(&mut incidents);
        assert_eq!((incidents.len(), incidents.keys().next()), (4, Some(&6)), "128 KiB are four of 32");
        let mut one: ByIncident = [(1, evidence(512, 512))].into();
        bound(&mut one);
        assert_eq!(one.len(), 1, "the newest stays");
    }

    #[test]
    fn what_is_kept_is_read_back_and_what_is_torn_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let mut keeper = Keeper::Local(path.clone());
        assert!(keeper.find(&Away::default()).unwrap().is_empty(), "there was none");
        let incidents: ByIncident = [(7, evidence(2, 5))].into();
        keeper.keep(&to_json(&incidents)).unwrap();
        assert_eq!(keeper.find(&Away::default()).unwrap(), incidents);
        std::fs::write(&path, b"{\"format\":2,\"incidents\":[]}").unwrap();
        assert_eq!(keeper.find(&Away::default()).unwrap_err(), "it has format 2, this program reads format 1");
        std::fs::write(&path, b"{\"format\":1,\"inc").unwrap();
        assert!(keeper.find(&Away::default()).unwrap_err().contains("EOF"));
    }

    #[test]
    fn workers_that_were_heard_of_least_lately_go() {
        let mut all = Evidence::new().unwrap();
        let id = |n: usize| WorkerId::from(format!("w{n}").as_str());
        (0..MAX_WORKERS).for_each(|n| all.logged(&id(n), vec!["a line".into(); 30]));
        all.logged(&id(0), vec!["another".into()]);
        all.logged(&id(MAX_WORKERS), vec!["new".into()]);
        assert_eq!(all.workers.len(), MAX_WORKERS);
        assert!(all.workers.contains_key(&id(0)) && !all.workers.contains_key(&id(1)));
        let said = &all.workers[&id(0)].lines;
        assert_eq!((said.len(), said.back().map(String::as_str)), (MAX_LOG_LINES, Some("another")));
    }
}
