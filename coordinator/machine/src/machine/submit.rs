//! Jobs that come, and what users have them do: submit, cancel, hold, release, resume, pin and unpin their checkpoints.

use toroid_torus::ids::{JobId, Step};
use toroid_torus::job::{self as job_file, JobSpec};
use toroid_torus::owner::OwnerId;

use super::Machine;
use crate::api::{Reply, RequestError, RequestId, Submission};
use crate::clock::Now;
use crate::context::Context;
use crate::folders;
use crate::job::Job;
use crate::record::{JobRecord, State};

/// Of the name of a user.
const MAX_USER_BYTES: usize = 64;

impl Machine {
    pub(super) fn submit(&mut self, request: RequestId, submission: &Submission, owner: OwnerId, now: Now) {
        let spec = match self.checked(submission) {
            Ok(spec) => spec,
            Err(error) => return self.out.reply(request, Err(error)),
        };
        let slug = slug(&spec.name);
        let count = self.meta.num_jobs.entry(slug.clone()).or_insert(0);
        *count += 1;
        let id = JobId::from(format!("{slug}-{count}"));
        let number = self.meta.num_jobs.values().sum();
        self.out.dirty_meta = true;
        self.out.unsettled = true;
        self.out.effects.push(crate::Output::CreateFolder { job: id.clone(), toml: spec.to_toml() });
        let (jobs, mut context) = self.split(now);
        let job = Job::submit(id.clone(), number, owner, submission.user.clone(), spec, &mut context);
        jobs.insert(id.clone(), job);
        self.out.reply(request, Ok(Reply::Submitted { job: id }));
    }

    /// The job that is asked for, if it may be.
    fn checked(&self, submission: &Submission) -> Result<JobSpec, RequestError> {
        let Submission { toml, user, priority } = submission;
        let mut spec = job_file::parse(toml)?;
        if let Some(priority) = priority {
            spec.priority = *priority;
            spec.check()?;
        }
        let is_possible = |c: u8| c.is_ascii_alphanumeric() || b"-_.@".contains(&c);
        if user.len() > MAX_USER_BYTES || !user.bytes().all(is_possible) {
            let found = user.chars().take(MAX_USER_BYTES).collect();
            return Err(RequestError::User { found, max: MAX_USER_BYTES });
        }
        self.check_quota(user, &spec)?;
        match self.keeper_of(&spec) {
            Some(other) => {
                let path = spec.checkpoint.path.unwrap_or_default();
                Err(RequestError::Folder { path, job: other.id.clone() })
            }
            None => Ok(spec),
        }
    }

    /// A job that no quota would ever let run is refused at once, and so is one too many.
    fn check_quota(&self, user: &str, spec: &JobSpec) -> Result<(), RequestError> {
        let max = self.config.policy.max_jobs;
        let num_jobs = self.jobs().filter(|job| !job.state.is_ended() && job.user == user).count();
        if num_jobs >= max {
            let user = if user.is_empty() { "whoever names no user".into() } else { format!("the user `{user}`") };
            return Err(RequestError::TooManyJobs { user, max });
        }
        let (needs, quota) = (spec.shape.world(), self.config.policy.quotas.of(user));
        match quota.filter(|quota| needs > *quota) {
            Some(quota) => Err(RequestError::Quota { user: user.into(), needs, quota }),
            None => Ok(()),
        }
    }

    /// The job that has not ended and keeps its checkpoints where `spec` wants to keep its own (T-10). What ended jobs have left, and what other
    /// coordinators do, shows in the folder.
    fn keeper_of(&self, spec: &JobSpec) -> Option<&JobRecord> {
        let wanted = folders::folder_of(spec.checkpoint.path.as_deref()?);
        let has_it =
            |job: &&JobRecord| folders::folder_of(&folders::checkpoint_root(job, &self.config.jobs_dir)) == wanted;
        self.jobs().filter(|job| !job.state.is_ended()).find(has_it)
    }

    /// Does something with a job, if it is there.
    fn with_job(
        &mut self,
        request: RequestId,
        id: &str,
        now: Now,
        does: impl FnOnce(&mut Job, &mut Context<'_>) -> Result<Reply, RequestError>,
    ) {
        let (jobs, mut cx) = self.split(now);
        let reply = match jobs.get_mut(id) {
            Some(job) => does(job, &mut cx),
            None => Err(self.unknown(id)),
        };
        self.out.reply(request, reply);
    }

    pub(super) fn cancel(&mut self, request: RequestId, id: &str, now: Now) {
        self.with_job(request, id, now, |job, cx| match job.record().state {
            State::Cancelled => Ok(Reply::Cancelled { job: id.into() }),
            state if state.is_ended() => Err(job.refuse("cancelled")),
            _ => {
                job.end(cx, State::Cancelled, "cancelled by a user");
                Ok(Reply::Cancelled { job: id.into() })
            }
        });
    }

    pub(super) fn hold(&mut self, request: RequestId, id: &str, now: Now) {
        self.with_job(request, id, now, |job, cx| job.hold(cx).map(|()| Reply::Held { job: id.into() }));
    }

    pub(super) fn pin(&mut self, request: RequestId, (id, step): (&str, Step), now: Now) {
        self.with_job(request, id, now, |job, cx| job.pin_checkpoint(cx, step));
    }

    pub(super) fn unpin(&mut self, request: RequestId, (id, step): (&str, Step), now: Now) {
        self.with_job(request, id, now, |job, cx| job.unpin_checkpoint(cx, step));
    }

    pub(super) fn release(&mut self, request: RequestId, id: &str, now: Now) {
        self.with_job(request, id, now, |job, cx| job.release(cx).map(|()| Reply::Released { job: id.into() }));
    }

    /// `steps`: of a job that has ended, in all.
    pub(super) fn resume_job(&mut self, request: RequestId, id: &str, how: (bool, Option<u64>), now: Now) {
        let (from_scratch, steps) = how;
        let ended = self.jobs.get(id).map(|job| job.record()).filter(|record| record.state.is_ended());
        if let Some(other) = ended.and_then(|record| self.keeper_of(&record.spec)) {
            let path = other.spec.checkpoint.path.clone().unwrap_or_default();
            let error = RequestError::Folder { path, job: other.id.clone() };
            return self.out.reply(request, Err(error));
        }
        let quota = ended.map(|record| self.check_quota(&record.user, &record.spec));
        if let Some(Err(error)) = quota {
            return self.out.reply(request, Err(error));
        }
        self.with_job(request, id, now, |job, cx| {
            if job.record().state.is_ended() {
                job.come_back(cx, steps, from_scratch)?;
            } else if job.record().hold.is_none() || steps.is_some() {
                return Err(job.refuse("resumed"));
            } else if from_scratch {
                job.give_up_checkpoints(cx);
            } else {
                job.try_again(cx, "a user asked for it", |_| true);
            }
            Ok(Reply::Resumed { job: id.into() })
        });
    }
}

/// The name of a job as it stands in its id: short, lower case, safe as a folder's name.
fn slug(name: &str) -> String {
    const MAX_CHARS: usize = 40;
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let slug: String = name.chars().take(MAX_CHARS).map(safe).collect();
    match slug.trim_matches('-') {
        "" => "job".into(),
        slug => slug.into(),
    }
}
