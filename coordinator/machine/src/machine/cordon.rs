//! Workers that users keep from having places: by id, whatever process has it, until they say otherwise.
//!
//! A place that the worker has it keeps; a drain moves it. The cordon is stored, so it outlives the worker and the coordinator.

use toroid_torus::ids::JobId;

use super::Machine;
use crate::api::{Reply, RequestError, RequestId};
use crate::clock::Now;
use crate::pool::MAX_CORDONED;
use crate::record::Cordon;

/// Of the id of a worker.
const MAX_ID_BYTES: usize = 256;
/// Characters that are kept of why.
const MAX_REASON_CHARS: usize = 500;
/// Workers that an error names.
const MAX_NAMED: usize = 10;

impl Machine {
    pub(super) fn cordon(&mut self, request: RequestId, worker: &str, reason: &str, now: Now) {
        let reply = if worker.is_empty() || worker.len() > MAX_ID_BYTES {
            Err(RequestError::WorkerId { num_bytes: worker.len(), max: MAX_ID_BYTES })
        } else {
            let reason = reason.chars().take(MAX_REASON_CHARS).collect();
            match self.pool.cordon(worker, Cordon { reason, unix_ms: now.unix_ms }) {
                false => Err(RequestError::Cordons { max: MAX_CORDONED }),
                true => {
                    let place = self.pool.get(worker).and_then(|w| w.place.clone());
                    Ok(Reply::Cordoned { job: place.map_or_else(JobId::default, |(job, _)| job) })
                }
            }
        };
        self.out.unsettled |= reply.is_ok();
        self.out.reply(request, reply);
    }

    pub(super) fn uncordon(&mut self, request: RequestId, worker: &str) {
        let reply = match self.pool.uncordon(worker) {
            Some(cordon) => Ok(Reply::Uncordoned { reason: cordon.reason }),
            None => {
                let named: Vec<&str> = self.pool.cordoned().keys().take(MAX_NAMED).map(|id| id.as_str()).collect();
                let cordoned = match self.pool.cordoned().len() {
                    0 => "nobody is".into(),
                    n if n > MAX_NAMED => format!("the first of {n} are {}", named.join(", ")),
                    _ => format!("these are: {}", named.join(", ")),
                };
                Err(RequestError::NotCordoned { worker: worker.into(), cordoned })
            }
        };
        self.out.unsettled |= reply.is_ok();
        self.out.reply(request, reply);
    }
}
