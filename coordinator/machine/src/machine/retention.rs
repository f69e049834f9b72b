//! Which jobs are kept: all that have not ended, and of the others the newest, up to a number and an age.
//!
//! What goes is the job's record: it is no longer listed, and its id is never given again. Its folder, with curve and checkpoints,
//! stays where it is; only users remove it.

use std::collections::BTreeSet;

use super::Machine;
use crate::api::{Input, Output, Reply, RequestId};
use crate::clock::Now;
use crate::config::Retention;
use crate::folders::folder;
use crate::record::{MAX_FORGOTTEN, State};

impl Machine {
    /// A user asked. A job that has not ended is to be cancelled first.
    pub(crate) fn remove(&mut self, request: RequestId, id: &str) {
        let Some(job) = self.jobs.get(id) else {
            let error = self.unknown(id);
            return self.out.reply(request, Err(error));
        };
        if !job.record().state.is_ended() {
            let error = job.refuse("removed");
            return self.out.reply(request, Err(error));
        }
        let folder = folder(job.record(), &self.config.jobs_dir);
        self.forget(id, "a user asked");
        self.out.reply(request, Ok(Reply::Removed { job: id.into(), folder }));
    }

    /// Jobs that are too many or too old go, the oldest first.
    pub(crate) fn forget_old(&mut self, now: Now) {
        let Retention { max_jobs, max_age } = self.config.retention;
        let ended = self.jobs.values().filter(|j| j.record().state.is_ended());
        let mut ended: Vec<(i64, u64, &str)> =
            ended.map(|j| (j.record().finished_unix_ms, j.record().number, j.record().id.as_str())).collect();
        ended.sort();
        let oldest_unix_ms = now.unix_ms.saturating_sub(i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX));
        let num_surplus = ended.len().saturating_sub(max_jobs);
        let reason = |n: usize, finished_unix_ms: i64| {
            if n < num_surplus {
                Some(format!("{max_jobs} jobs that have ended are kept"))
            } else if finished_unix_ms < oldest_unix_ms {
                Some(format!("jobs are kept for {} days after their end", max_age.as_secs() / (24 * 3600)))
            } else {
                None
            }
        };
        let old: Vec<(String, String)> =
            ended.iter().enumerate().map_while(|(n, (at, _, id))| Some((id.to_string(), reason(n, *at)?))).collect();
        old.iter().for_each(|(id, reason)| self.forget(id, reason));
    }

    fn forget(&mut self, id: &str, reason: &str) {
        let Some(job) = self.jobs.remove(id) else { return };
        let folder = folder(job.record(), &self.config.jobs_dir);
        let reason = format!("{reason}; {folder} stays");
        self.meta.forgotten.push_back(id.into());
        if self.meta.forgotten.len() > MAX_FORGOTTEN {
            self.meta.forgotten.pop_front();
        }
        self.out.dirty_meta = true;
        self.out.removed.extend(job.into_keys());
        self.out.dirty.remove(id);
        self.out.dirty_incidents.retain(|(job, _)| job != id);
        self.out.dirty_validations.retain(|(job, _)| job != id);
        self.out.effects.push(Output::Forget { job: id.into(), reason });
    }

    /// Ids of folders that are there are not given to new jobs.
    pub(crate) fn skip_folders(&mut self, names: &BTreeSet<String>) {
        // No job gets so far, and a count must not overflow.
        const MAX_COUNT: u64 = 1 << 48;
        for name in names.iter().filter(|name| !self.jobs.contains_key(name.as_str())) {
            let numbered = name.rsplit_once('-').and_then(|(slug, n)| Some((slug, n.parse::<u64>().ok()?)));
            let Some((slug, number)) = numbered.filter(|(_, number)| *number < MAX_COUNT) else { continue };
            let count = self.meta.num_jobs.entry(slug.into()).or_insert(0);
            if *count < number {
                *count = number;
                self.out.dirty_meta = true;
            }
        }
    }

    /// What the driver has to say of a job.
    pub(crate) fn note(&mut self, input: Input, now: Now) {
        let (jobs, mut context) = self.split(now);
        match input {
            Input::Note { job, kind, text } => {
                if let Some(job) = jobs.get_mut(job.as_str()) {
                    job.note(&mut context, kind, text);
                }
            }
            Input::Fault { job, reason } => {
                if let Some(job) = jobs.get_mut(job.as_str()).filter(|j| !j.record().state.is_ended()) {
                    job.end(&mut context, State::Failed, &reason);
                }
            }
            other => unreachable!("{other:?} is no note"),
        }
    }
}
