//! What all streams say of one job, once for all of them: see `stream`.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::Status;
use toroid_proto as proto;
use toroid_proto::json;

use super::api::Columns;
use super::pool::text;
use crate::grpc::jobs::Jobs;
use crate::handle::Seen;

/// How old what is said may be.
const INTERVAL: Duration = Duration::from_millis(450);

/// The jobs that somebody looks at.
#[derive(Clone)]
pub(super) struct Looks {
    jobs: Jobs,
    of: Arc<std::sync::Mutex<BTreeMap<String, Weak<Mutex<Look>>>>>,
}

impl Looks {
    pub fn new(jobs: Jobs) -> Looks {
        Looks { jobs, of: Arc::default() }
    }

    /// From that step on. An error where there is no such job.
    pub async fn follow(&self, job: &str, from: u64) -> Result<Follower, Status> {
        let look = {
            let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
            of.retain(|_, look| look.strong_count() > 0);
            let known = of.get(job).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let look = Arc::new(Mutex::new(Look::new(job)));
                of.insert(job.into(), Arc::downgrade(&look));
                look
            })
        };
        let mut locked = look.lock().await;
        locked.refresh(&self.jobs).await?;
        // Steps may have been taken back while nobody looked.
        let next_step = from.min(locked.seen.next_step);
        drop(locked);
        Ok(Follower { jobs: self.jobs.clone(), look, version: 0, next_step, has_more: false })
    }
}

/// One job, as it was said last.
struct Look {
    id: String,
    at: Option<Instant>,
    /// From 1.
    version: u64,
    seen: Seen,
    /// `seen.next_step` of the version before.
    from_step: u64,
    job: proto::Job,
    /// All fields of the job but its places and events.
    fields: Map<String, Value>,
    /// What differs from the version before.
    delta: Arc<str>,
}

#[derive(Serialize)]
struct PlaceRow<'a> {
    rank: u32,
    x: u32,
    y: u32,
    worker: &'a str,
    host: &'a str,
    alive: bool,
}

impl<'a> PlaceRow<'a> {
    fn of(place: &'a proto::PlaceInfo) -> PlaceRow<'a> {
        let proto::PlaceInfo { rank, x, y, alive, .. } = *place;
        PlaceRow { rank, x, y, worker: &place.worker_id, host: &place.host, alive }
    }
}

/// What is said of a job at a time.
#[derive(Serialize)]
struct View<'a> {
    /// All there is, but for the steps.
    first: bool,
    job: &'a Map<String, Value>,
    num_places: usize,
    places: Vec<PlaceRow<'a>>,
    steps: Columns,
    events: Vec<json::Event<'a>>,
}

impl Look {
    fn new(id: &str) -> Look {
        Look {
            id: id.into(),
            at: None,
            version: 0,
            seen: Seen { next_step: 1, num_events: 0 },
            from_step: 1,
            job: proto::Job::default(),
            fields: Map::new(),
            delta: Arc::default(),
        }
    }

    /// Looks again where what is known is old.
    async fn refresh(&mut self, jobs: &Jobs) -> Result<(), Status> {
        if self.at.is_some_and(|at| at.elapsed() < INTERVAL) {
            return Ok(());
        }
        // At first whoever looks reads the steps that there are by itself.
        let seen = if self.version == 0 { Seen { next_step: u64::MAX, ..self.seen } } else { self.seen };
        let update = jobs.update(&self.id, seen).await?;
        self.at = Some(Instant::now());
        self.take(update.update, update.seen)
    }

    fn take(&mut self, update: proto::JobUpdate, mut seen: Seen) -> Result<(), Status> {
        let proto::JobUpdate { job, steps, events } = update;
        let mut job = job.unwrap_or_default();
        // Also where steps were taken back: they come again.
        let newest = job.last_step.as_ref().map_or(0, |step| step.step);
        if steps.is_empty() {
            seen.next_step = seen.next_step.min(newest + 1);
        }
        let places = std::mem::take(&mut job.places);
        let fields = serde_json::to_value(json::Job::new(&job, false));
        let fields = fields.map_err(|e| Status::internal(format!("the job is no JSON: {e}")))?;
        let Value::Object(mut fields) = fields else { return Err(Status::internal("the job is no object")) };
        fields.remove("places");
        fields.remove("events");
        let new_fields: Map<String, Value> = (fields.iter())
            .filter(|(name, value)| self.fields.get(*name) != Some(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        let known = |i: usize| self.job.places.get(i);
        let new_places: Vec<PlaceRow<'_>> = (places.iter().enumerate())
            .filter(|(i, place)| known(*i).is_none_or(|known| differs(known, place)))
            .map(|(_, place)| PlaceRow::of(place))
            .collect();
        let is_same = new_fields.is_empty() && new_places.is_empty() && steps.is_empty() && events.is_empty();
        if self.version > 0 && is_same && places.len() == self.job.places.len() {
            return Ok(());
        }
        let (num_places, events) = (places.len(), events.iter().map(json::Event::from).collect());
        let steps = Columns::of(&steps);
        let delta = text(&View { first: false, job: &new_fields, num_places, places: new_places, steps, events })?;
        self.delta = delta.into();
        self.from_step = if self.version == 0 { seen.next_step } else { self.seen.next_step };
        job.places = places;
        (self.version, self.seen, self.job, self.fields) = (self.version + 1, seen, job, fields);
        Ok(())
    }

    /// All there is, but for the steps, of which those are said.
    fn full(&self, steps: &[proto::StepRecord]) -> Result<String, Status> {
        let places: Vec<_> = self.job.places.iter().map(PlaceRow::of).collect();
        let events = self.job.events.iter().map(json::Event::from).collect();
        let (job, num_places) = (&self.fields, places.len());
        text(&View { first: true, job, num_places, places, steps: Columns::of(steps), events })
    }

    /// Steps and nothing else.
    fn steps(&self, steps: &[proto::StepRecord]) -> Result<String, Status> {
        let (job, num_places, steps) = (&Map::new(), self.job.places.len(), Columns::of(steps));
        text(&View { first: false, job, num_places, places: Vec::new(), steps, events: Vec::new() })
    }
}

/// Its step counts with every step, and is not looked at.
fn differs(known: &proto::PlaceInfo, place: &proto::PlaceInfo) -> bool {
    (known.rank, known.alive, &known.worker_id, &known.host) != (place.rank, place.alive, &place.worker_id, &place.host)
}

/// What one stream has been sent of a job.
pub(super) struct Follower {
    jobs: Jobs,
    look: Arc<Mutex<Look>>,
    /// 0: nothing yet.
    version: u64,
    next_step: u64,
    has_more: bool,
}

impl Follower {
    /// More is there already.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// What is new, and the step that is to come after it; `None`: nothing.
    pub async fn next(&mut self) -> Result<Option<(u64, Arc<str>)>, Status> {
        let mut look = self.look.lock().await;
        look.refresh(&self.jobs).await?;
        self.has_more = false;
        let known = std::mem::replace(&mut self.version, look.version);
        if known == look.version && self.next_step >= look.seen.next_step {
            return Ok(None);
        }
        if known > 0 && known + 1 == look.version && self.next_step == look.from_step {
            self.next_step = look.seen.next_step;
            return Ok(Some((self.next_step, Arc::clone(&look.delta))));
        }
        let mut steps = self.jobs.rows(&look.id, self.next_step).await?;
        // What is newer comes with the next version.
        steps.retain(|step| step.step < look.seen.next_step);
        self.next_step = steps.last().map_or(look.seen.next_step, |step| step.step + 1);
        self.has_more = self.next_step < look.seen.next_step;
        let said = if known == look.version { look.steps(&steps)? } else { look.full(&steps)? };
        Ok(Some((self.next_step, said.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64) -> proto::StepRecord {
        proto::StepRecord { step, ..Default::default() }
    }

    /// A job that is as far as `newest`, with these steps since.
    fn update(newest: u64, alive: &[bool], steps: &[u64]) -> proto::JobUpdate {
        let place =
            |(rank, alive): (usize, &bool)| proto::PlaceInfo { rank: rank as u32, alive: *alive, ..Default::default() };
        let job = proto::Job {
            last_step: Some(record(newest)),
            committed_step: newest,
            places: alive.iter().enumerate().map(place).collect(),
            ..Default::default()
        };
        proto::JobUpdate { job: Some(job), steps: steps.iter().copied().map(record).collect(), events: Vec::new() }
    }

    #[test]
    fn a_version_says_what_differs_from_the_one_before() {
        let mut look = Look::new("a-1");
        let mut take = |update: proto::JobUpdate, next_step: u64| -> (u64, u64, u64, Value) {
            look.take(update, Seen { next_step, num_events: 0 }).unwrap();
            (look.version, look.from_step, look.seen.next_step, serde_json::from_str(&look.delta).unwrap())
        };
        let (version, from_step, next_step, _) = take(update(7, &[true, true], &[]), u64::MAX);
        assert_eq!((version, from_step, next_step), (1, 8, 8), "who wants the steps before reads them");
        let (version, from_step, next_step, delta) = take(update(9, &[true, false], &[8, 9]), 10);
        assert_eq!((version, from_step, next_step), (2, 8, 10));
        assert_eq!(delta["steps"]["step"], serde_json::json!([8, 9]));
        assert_eq!((delta["places"].as_array().unwrap().len(), &delta["places"][0]["rank"]), (1, &1.into()));
        assert_eq!(delta["job"]["committed_step"], 9);
        assert!(delta["job"].get("name").is_none(), "it is as it was: {delta}");
        assert_eq!(take(update(9, &[true, false], &[]), 10).0, 2, "nothing is new");
        let (version, from_step, next_step, _) = take(update(4, &[true, false], &[]), 10);
        assert_eq!((version, from_step, next_step), (3, 10, 5), "steps were taken back");
        let full: Value = serde_json::from_str(&look.full(&[]).unwrap()).unwrap();
        assert_eq!((full["first"].as_bool(), full["places"].as_array().unwrap().len()), (Some(true), 2));
    }
}
