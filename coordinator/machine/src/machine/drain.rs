//! Users who move a worker's place, or take back a worker that is put aside; workers that are to end.

use toroid_torus::ids::JobId;

use super::Machine;
use crate::api::{Reply, RequestError, RequestId, StreamId};
use crate::clock::Now;
use crate::job::IfNobody;
use crate::pool::{Standing, Worker};

/// Workers that an error names.
const MAX_NAMED: usize = 10;

impl Machine {
    pub(crate) fn drain(&mut self, request: RequestId, worker: &str, now: Now) {
        let reply = self.drain_worker(worker, "is drained: a user asked for it", IfNobody::Refuse, now);
        self.out.reply(request, reply);
    }

    /// The stream of a worker that is connected, and the job in which it has a place.
    pub fn stream_of(&self, worker: &str) -> Result<(StreamId, Option<JobId>), RequestError> {
        let worker = self.connected(worker)?;
        Ok((worker.stream, worker.place.as_ref().map(|(job, _)| job.clone())))
    }

    fn connected(&self, worker: &str) -> Result<&Worker, RequestError> {
        self.pool.get(worker).ok_or_else(|| {
            let known: Vec<&str> = self.pool.iter().map(|w| w.register.worker_id.as_str()).take(MAX_NAMED).collect();
            let known = match known.len() {
                0 => "none is".into(),
                MAX_NAMED => format!("the first are {}", known.join(", ")),
                _ => format!("there are {}", known.join(", ")),
            };
            RequestError::UnknownWorker { worker: worker.into(), known }
        })
    }

    /// Ends the time for which a worker is put aside.
    pub(crate) fn readmit(&mut self, request: RequestId, worker: &str) {
        let reply = self.pool.readmit(worker).map(|reason| Reply::Readmitted { reason }).map_err(|aside| {
            let aside = match aside.len() {
                0 => "nobody is".into(),
                n if n > MAX_NAMED => format!("the first of {n} are {}", aside[..MAX_NAMED].join(", ")),
                _ => format!("these are: {}", aside.join(", ")),
            };
            let is_retired = self.pool.get(worker).is_some_and(|w| self.pool.standing(w) == Standing::Retired);
            let worker = worker.into();
            if is_retired { RequestError::Retired { worker } } else { RequestError::NotAside { worker, aside } }
        });
        self.out.unsettled |= reply.is_ok();
        self.out.reply(request, reply);
    }

    pub(crate) fn drain_worker(
        &mut self,
        worker: &str,
        why: &str,
        if_nobody: IfNobody,
        now: Now,
    ) -> Result<Reply, RequestError> {
        let place = self.connected(worker)?.place.clone();
        let (jobs, mut cx) = self.split(now);
        let (job, replacement) = match place.and_then(|(job, rank)| Some((jobs.get_mut(&job)?, rank))) {
            Some((job, rank)) => (job.record().id.clone(), job.drain(&mut cx, rank, why, if_nobody)?),
            None => {
                cx.pool.retire(worker);
                (JobId::default(), None)
            }
        };
        cx.out.unsettled = true;
        Ok(Reply::Drained { job, replacement: replacement.unwrap_or_default() })
    }
}
