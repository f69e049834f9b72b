//! Workers and hosts that users keep from having places: by id, whatever process has it, or by host, whatever worker is there, until they say
//! otherwise.
//!
//! A place that a worker has it keeps; a drain moves it. The cordon is stored, so it outlives the worker and the coordinator. That of a host also
//! counts for workers that come later: most have another id each time that they are started.

use toroid_torus::ids::{JobId, WorkerId};
use toroid_torus::units::names;

use super::Machine;
use crate::api::{Reply, RequestError, RequestId, Who};
use crate::clock::Now;
use crate::pool::MAX_CORDONED;
use crate::record::Cordon;

/// Of the id of a worker, or the name of a host.
const MAX_NAME_BYTES: usize = 256;
/// Characters that are kept of why.
const MAX_REASON_CHARS: usize = 500;
/// Workers that an error names.
const MAX_NAMED: usize = 10;

impl Machine {
    pub(super) fn cordon(&mut self, request: RequestId, who: &Who, reason: &str, now: Now) {
        let num_bytes = who.name().len();
        let reason = reason.chars().take(MAX_REASON_CHARS).collect();
        let cordon = Cordon { reason, unix_ms: now.unix_ms };
        let reply = if !(1..=MAX_NAME_BYTES).contains(&num_bytes) {
            Err(RequestError::WorkerId { num_bytes, max: MAX_NAME_BYTES })
        } else {
            let fits = match who {
                Who::Worker(worker) => self.pool.cordon(worker, cordon),
                Who::Host(host) => self.pool.cordon_host(host, cordon),
            };
            match fits {
                false => Err(RequestError::Cordons { max: MAX_CORDONED }),
                true => Ok(Reply::Cordoned { placed: self.placed(who) }),
            }
        };
        self.out.unsettled |= reply.is_ok();
        self.out.reply(request, reply);
    }

    /// Those that have places, with their jobs.
    fn placed(&self, who: &Who) -> Vec<(WorkerId, JobId)> {
        let is_meant = |register: &toroid_proto::Register| match who {
            Who::Worker(worker) => register.worker_id == *worker,
            Who::Host(host) => register.host == *host,
        };
        let meant = self.pool.iter().filter(|w| is_meant(&w.register));
        meant.filter_map(|w| Some((w.id(), w.place.as_ref()?.0.clone()))).collect()
    }

    pub(super) fn uncordon(&mut self, request: RequestId, who: &Who) {
        let (cordon, num, named) = match who {
            Who::Worker(worker) => {
                let cordon = self.pool.uncordon(worker);
                (cordon, self.pool.cordoned().len(), names(self.pool.cordoned().keys(), MAX_NAMED))
            }
            Who::Host(host) => {
                let cordon = self.pool.uncordon_host(host);
                (cordon, self.pool.cordoned_hosts().len(), names(self.pool.cordoned_hosts().keys(), MAX_NAMED))
            }
        };
        let reply = cordon.map(|cordon| Reply::Uncordoned { reason: cordon.reason }).ok_or_else(|| {
            let cordoned = if num == 0 { "nobody is".into() } else { format!("these are: {named}") };
            RequestError::NotCordoned { who: who.clone(), cordoned }
        });
        self.out.unsettled |= reply.is_ok();
        self.out.reply(request, reply);
    }
}
