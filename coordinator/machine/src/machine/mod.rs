//! The machine as its driver sees it: jobs, the workers that are connected, and the order of what an input leads to.

mod access;
mod apart;
mod cordon;
mod drain;
mod retention;
mod schedule;
mod submit;
mod view;
mod warm;
mod workers;

use std::collections::BTreeMap;
use std::time::Duration;

use toroid_torus::failpoint;
use toroid_torus::ids::JobId;

use crate::access::{Bindings, Tokens};
use crate::apart::Apart;
use crate::api::{Change, Input, Output, RequestError, RequestId, RestoreError};
use crate::clock::Now;
use crate::config::Config;
use crate::context::{Context, Outbox};
use crate::job::{Job, Stored};
use crate::limits::Limits;
use crate::pool::Pool;
use crate::progress::StepSummary;
use crate::record::{FORMAT, Incident, JobRecord, Meta, Record, SeenBy, ValidationPage};

#[derive(Debug)]
pub struct Machine {
    config: Config,
    meta: Meta,
    jobs: BTreeMap<JobId, Job>,
    pool: Pool,
    tokens: Tokens,
    bindings: Bindings,
    out: Outbox,
    /// Messages that were not taken because of T-1.
    num_stale: u64,
    apart: Apart,
    /// Number of the next question to a spare. Answers to those of a coordinator before this one are none of its numbers.
    next_probe: u64,
    /// `Assign` says where the workers are that a place has links with.
    names_peers: bool,
}

impl Machine {
    /// A machine that goes on from `records`. `curves` has the curve of each job, as far as it is durable; `entropy` becomes the
    /// secret of a new store. The outputs are to be executed like those of an input.
    pub fn restore(
        config: Config,
        records: Vec<Record>,
        mut curves: BTreeMap<JobId, Vec<StepSummary>>,
        entropy: [u8; 32],
        now: Now,
    ) -> Result<(Machine, Vec<Output>), RestoreError> {
        let (mut meta, mut tokens, mut bindings) = (None, Vec::new(), Vec::new());
        let mut jobs: Vec<JobRecord> = Vec::new();
        let mut incidents: BTreeMap<JobId, Vec<Incident>> = BTreeMap::new();
        let mut validations: BTreeMap<JobId, Vec<ValidationPage>> = BTreeMap::new();
        for record in records {
            match record {
                Record::Meta(found) if found.format != FORMAT => {
                    return Err(RestoreError::Format { found: found.format });
                }
                Record::Meta(found) => meta = Some(found),
                Record::Job(job) => jobs.push(*job),
                Record::Incident(incident) => incidents.entry(incident.job.clone()).or_default().push(*incident),
                Record::Validations(page) => validations.entry(page.job.clone()).or_default().push(*page),
                Record::Token(token) => tokens.push(*token),
                Record::Binding(binding) => bindings.push(binding),
            }
        }
        let mut out = Outbox::default();
        if meta.is_none() && !jobs.is_empty() {
            return Err(RestoreError::NoMeta);
        }
        let meta = meta.unwrap_or_else(|| {
            out.dirty_meta = true;
            let (num_jobs, retired, cordoned, cordoned_hosts) = Default::default();
            let forgotten = Default::default();
            Meta { format: FORMAT, secret: entropy, num_jobs, retired, cordoned, cordoned_hosts, forgotten }
        });
        let pool = Pool::restore(&meta);
        let mut machine = Machine {
            config,
            meta,
            jobs: BTreeMap::new(),
            pool,
            tokens: Tokens::restore(tokens),
            bindings: Bindings::restore(bindings),
            out,
            num_stale: 0,
            apart: Apart::default(),
            next_probe: first_probe(now),
            names_peers: true,
        };
        for record in jobs {
            let id = record.id.clone();
            let kept = Stored {
                record,
                incidents: incidents.remove(&id).unwrap_or_default(),
                validations: validations.remove(&id).unwrap_or_default(),
                steps: curves.remove(&id).unwrap_or_default(),
            };
            let (_, mut context) = machine.split(now);
            let job = Job::restore(kept, &mut context);
            machine.jobs.insert(id, job);
        }
        let outputs = machine.settle(now);
        Ok((machine, outputs))
    }

    /// For workers that have no links, as a simulation's: `Assign` names none of the others from now on. Nothing that is decided changes; what is
    /// said does, which for all of 131,072 places would be 11 GB at a time.
    pub fn without_peers(self) -> Machine {
        Machine { names_peers: false, ..self }
    }

    /// Handles one input. Time never goes back.
    pub fn handle(&mut self, input: Input, now: Now) -> Vec<Output> {
        self.take(input, now);
        self.settle(now)
    }

    /// Takes one input of several that came at a time; [`Machine::settle`] decides what all of them lead to, and says it. Where a host dies with
    /// all its workers that is one epoch and not one for each, and what is stored is stored once.
    pub fn take(&mut self, input: Input, now: Now) {
        match input {
            Input::Submit { request, submission, owner } => self.submit(request, &submission, owner, now),
            Input::Cancel { request, job } => self.cancel(request, &job, now),
            Input::Checkpoint { request, job } => self.request_checkpoint(request, &job, now),
            Input::Pin { request, job, step } => self.pin(request, (&job, step), now),
            Input::Unpin { request, job, step } => self.unpin(request, (&job, step), now),
            Input::Resume { request, job, from_scratch, steps } => {
                self.resume_job(request, &job, (from_scratch, steps), now);
            }
            Input::Hold { request, job } => self.hold(request, &job, now),
            Input::Release { request, job } => self.release(request, &job, now),
            Input::Cordon { request, who, reason } => self.cordon(request, &who, &reason, now),
            Input::Uncordon { request, who } => self.uncordon(request, &who),
            Input::Drain { request, worker } => self.drain(request, &worker, now),
            Input::Remove { request, job } => self.remove(request, &job),
            Input::Folders { names } => self.skip_folders(&names),
            Input::Note { .. } | Input::Fault { .. } => self.note(input, now),
            Input::Readmit { request, worker } => self.readmit(request, &worker),
            Input::CreateToken { request, new } => self.create_token(request, new, now),
            Input::RevokeToken { request, id } => self.revoke_token(request, &id),
            Input::ForgetWorker { request, worker } => self.forget_worker(request, &worker),
            Input::Message { stream, body } => self.message(stream, *body, now),
            Input::Closed { stream, reason } => self.disconnected(stream, SeenBy::StreamClosed, &reason, now),
            Input::Tick => self.tick(now),
        }
    }

    #[cfg(test)]
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    pub fn limits(&self) -> Limits {
        self.config.limits
    }

    /// When the next deadline passes, by [`Now::monotonic`]; `None` while nothing is waited for.
    pub fn poll_timeout(&self) -> Option<Duration> {
        self.jobs.values().filter_map(Job::poll_timeout).chain(self.pool.poll_timeout()).min()
    }

    /// The same without the silence of workers: for whoever knows that none is silent, as a simulation does.
    pub fn poll_deadlines(&self) -> Option<Duration> {
        self.jobs.values().filter_map(Job::poll_timeout).chain(self.pool.poll_deadlines()).min()
    }

    /// The incident of a job that is not over.
    pub fn open_incident(&self, job: &str) -> Option<u64> {
        self.jobs.get(job)?.incidents().open()
    }

    /// Workers that are connected.
    pub fn num_workers(&self) -> usize {
        self.pool.len()
    }

    /// Whose stream it is; nobody's before the worker is registered.
    pub fn worker_on(&self, stream: crate::StreamId) -> Option<&toroid_torus::ids::WorkerId> {
        self.pool.id_on(stream)
    }

    /// Messages of older epochs, or from workers without that place, that were dropped (T-1).
    pub fn num_stale(&self) -> u64 {
        self.num_stale
    }

    pub fn record(&self, job: &str) -> Option<&JobRecord> {
        self.jobs.get(job).map(|j| j.record())
    }

    pub fn jobs(&self) -> impl Iterator<Item = &JobRecord> {
        self.jobs.values().map(|j| j.record())
    }

    /// The error for a job that is not there.
    pub fn unknown(&self, job: &str) -> RequestError {
        const MAX_NAMED: usize = 10;
        let mut ids: Vec<(u64, &str)> = self.jobs().map(|j| (j.number, j.id.as_str())).collect();
        ids.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
        let named: Vec<&str> = ids.iter().take(MAX_NAMED).map(|(_, id)| *id).collect();
        let known = match ids.len() {
            0 => "no job was submitted yet".into(),
            n if n > MAX_NAMED => format!("the newest of {n} are {}", named.join(", ")),
            _ => format!("there are {}", named.join(", ")),
        };
        RequestError::UnknownJob { job: job.into(), known }
    }

    fn split(&mut self, now: Now) -> (&mut BTreeMap<JobId, Job>, Context<'_>) {
        let Machine { config, meta, jobs, pool, out, names_peers, .. } = self;
        (jobs, Context { pool, out, config, secret: &meta.secret, now, names_peers: *names_peers })
    }

    fn request_checkpoint(&mut self, request: RequestId, id: &str, now: Now) {
        let (jobs, mut context) = self.split(now);
        match jobs.get_mut(id) {
            Some(job) => job.request_checkpoint(&mut context, request),
            None => {
                let error = self.unknown(id);
                self.out.reply(request, Err(error));
            }
        }
    }

    /// Workers have places in jobs.
    pub fn is_training(&self) -> bool {
        self.jobs.values().any(|job| job.record().places.iter().any(Option::is_some))
    }

    /// Workers that were asked to end have their places yet: without a coordinator what they hold is neither moved nor saved.
    pub fn is_being_left(&self) -> bool {
        self.jobs.values().any(|job| !job.leaving().is_empty())
    }

    /// A worker that comes may see what the others do not.
    pub(crate) fn try_unreadable_again(&mut self, worker: &str, now: Now) {
        let (jobs, mut cx) = self.split(now);
        for job in jobs.values_mut().filter(|job| job.record().hold.is_some()) {
            if job.record().unusable.values().any(|u| !u.is_damaged) {
                job.try_again(&mut cx, &format!("{worker} has come"), |unusable| !unusable.is_damaged);
            }
        }
    }

    /// Fills places where that has become possible, and puts the outputs of all inputs that were taken into their order.
    pub fn settle(&mut self, now: Now) -> Vec<Output> {
        let is_unsettled = self.out.unsettled;
        while std::mem::take(&mut self.out.unsettled) {
            self.schedule(now);
        }
        if is_unsettled {
            self.warm_spares(now);
            self.forget_old(now);
        }
        let mut out = std::mem::take(&mut self.out);
        if self.meta.retired != *self.pool.retired() {
            self.meta.retired.clone_from(self.pool.retired());
            out.dirty_meta = true;
        }
        if self.meta.cordoned != *self.pool.cordoned() {
            self.meta.cordoned.clone_from(self.pool.cordoned());
            out.dirty_meta = true;
        }
        if self.meta.cordoned_hosts != *self.pool.cordoned_hosts() {
            self.meta.cordoned_hosts.clone_from(self.pool.cordoned_hosts());
            out.dirty_meta = true;
        }
        for id in &out.dirty {
            if let Some(job) = self.jobs.get_mut(id) {
                job.advance_stopwatch(now);
            }
        }
        let mut records = Vec::new();
        if out.dirty_meta {
            records.push(Record::Meta(self.meta.clone()));
        }
        records.extend(out.dirty.iter().map(|id| Record::Job(Box::new(self.jobs[id].record().clone()))));
        let incident = |(job, number): &(JobId, u64)| self.jobs[job].incidents().stored(*number, now);
        let incidents = out.dirty_incidents.iter().filter_map(incident);
        records.extend(incidents.map(|i| Record::Incident(Box::new(i))));
        for (job, number) in &out.dirty_validations {
            match self.jobs[job].validations().stored(job, *number) {
                Some(page) => records.push(Record::Validations(Box::new(page))),
                None => out.removed.push(Record::validations_key(job, *number)),
            }
        }
        records.append(&mut out.records);
        let change = Change { put: records, remove: out.removed };
        let persist = (!change.is_empty()).then_some(Output::Persist(change));
        for effect in &mut out.effects {
            if let Output::Send { message, .. } = effect {
                message.term = self.config.term.get();
            }
        }
        let changed = out.changed.into_iter().map(|job| Output::Changed { job });
        if failpoint!(SendBeforePersist) {
            return out.effects.into_iter().chain(persist).collect();
        }
        persist.into_iter().chain(out.effects).chain(changed).collect()
    }
}

fn first_probe(now: Now) -> u64 {
    u64::try_from(now.unix_ms).unwrap_or(0) << 16
}
