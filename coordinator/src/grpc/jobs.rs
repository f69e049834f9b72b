//! `JobService`: what users ask. Each call is a question to the driver.

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use toroid_proto as proto;
use toroid_proto::job_service_server::JobService;
use toroid_security::Roots;
use toroid_torus::ids::{JobId, Step};

use super::orders::{Orders, opened};
use crate::audit::Audit;
use crate::caller::Caller;
use crate::folder;
use crate::handle::{Answer, AskError, Command, Page, Question, Seen, Update};
use crate::lead::Leader;
use crate::machine::access::AccessError;
use crate::machine::{Reply, RequestError, Submission, Who};
use crate::roots;

/// Updates that wait for a watcher; beyond, the watcher's own task waits and then skips to the newest state.
const MAX_UPDATES: usize = 4;
/// Pieces of a curve that wait for who reads it; beyond, reading the file waits.
const MAX_PIECES: usize = 2;
/// Jobs on a page, and where no number is asked for.
const MAX_PAGE: usize = 100;
/// A curve within the message of its job.
const MAX_CURVE_BYTES: usize = 16 << 20;

#[derive(Clone)]
pub(crate) struct Jobs {
    leader: Leader,
    orders: Orders,
    roots: Roots,
}

impl Jobs {
    pub fn new(leader: Leader, audit: Audit, roots: Roots) -> Jobs {
        Jobs { orders: Orders::new(leader.clone(), audit), leader, roots }
    }

    /// Changes a job, and answers how it is then.
    async fn change_job(
        &self,
        caller: Option<Caller>,
        (call, what): (&str, &str),
        command: impl FnOnce(Answer<Reply>) -> Command + Send,
        taken: impl FnOnce(Reply) -> Result<JobId, Reply> + Send,
    ) -> Result<Response<proto::Job>, Status> {
        let change = async {
            let job = self.orders.order(command, taken).await?;
            Ok(Response::new(self.job(job.into()).await?))
        };
        self.orders.audit.change(caller.as_ref(), call, what, change).await
    }

    async fn job(&self, job: String) -> Result<proto::Job, AskError> {
        self.leader.ask(|answer| Question::Job { job, answer }).await
    }

    /// The newest first.
    pub async fn newest(&self, max_jobs: usize) -> Result<Vec<proto::Job>, AskError> {
        let page = Page { max_jobs, before: u64::MAX };
        Ok(self.leader.ask(|answer| Question::Jobs { page, answer }).await?.jobs)
    }

    pub async fn all_workers(&self) -> Result<Vec<proto::WorkerInfo>, AskError> {
        Ok(self.list_of_workers().await?.workers)
    }

    async fn list_of_workers(&self) -> Result<proto::ListWorkersResponse, AskError> {
        self.leader.ask(|answer| Question::Workers { answer }).await
    }

    pub async fn who_leads(&self) -> proto::GetLeaderResponse {
        self.leader.who().await
    }

    /// What is new of a job.
    pub async fn update(&self, job: &str, seen: Seen) -> Result<Update, AskError> {
        self.leader.ask(|answer| Question::Update { job: job.into(), seen, answer }).await
    }

    pub async fn rows(&self, job: &str, from: u64) -> Result<Vec<proto::StepRecord>, AskError> {
        self.leader.ask(|answer| Question::Rows { job: job.into(), from, answer }).await
    }

    /// The curve from `from` on, asked for in pieces, so that the driver is never held up for long.
    async fn curve(&self, job: &str, mut from: u64) -> Result<Vec<proto::StepRecord>, Status> {
        let (mut curve, mut bytes) = (Vec::new(), 0);
        loop {
            let rows = self.rows(job, from).await?;
            let Some(last) = rows.last() else { return Ok(curve) };
            from = last.step + 1;
            bytes += rows.iter().map(prost::Message::encoded_len).sum::<usize>();
            if bytes > MAX_CURVE_BYTES {
                let limit = MAX_CURVE_BYTES >> 20;
                return Err(Status::resource_exhausted(format!(
                    "the curve of {job} is longer than the {limit} MiB that GetJob gives; ask for it with GetCurve, or from a later step on"
                )));
            }
            curve.extend(rows);
        }
    }
}

/// One `GetCurve` call: reads on when the client has taken what came before.
struct CurveReader {
    jobs: Jobs,
    request: proto::GetCurveRequest,
    pieces: mpsc::Sender<Result<proto::CurvePiece, Status>>,
}

impl CurveReader {
    async fn run(self, mut steps: Vec<proto::StepRecord>) {
        let to_step = if self.request.to_step == 0 { u64::MAX } else { self.request.to_step };
        while let Some(last) = steps.last().map(|s| s.step) {
            steps.retain(|s| s.step <= to_step);
            if self.pieces.send(Ok(proto::CurvePiece { steps })).await.is_err() || last >= to_step {
                return;
            }
            steps = match self.jobs.rows(&self.request.job_id, last + 1).await {
                Ok(steps) => steps,
                Err(error) => {
                    // The client may be gone as well; then nobody is left to hear of it.
                    return drop(self.pieces.send(Err(error.into())).await);
                }
            };
        }
    }
}

impl From<AskError> for Status {
    fn from(error: AskError) -> Status {
        let text = error.to_string();
        match error {
            AskError::Request(RequestError::Invalid(_) | RequestError::User { .. } | RequestError::WorkerId { .. }) => {
                Status::invalid_argument(text)
            }
            AskError::Request(
                RequestError::Quota { .. }
                | RequestError::TooManyJobs { .. }
                | RequestError::Cordons { .. }
                | RequestError::Pins { .. },
            ) => Status::resource_exhausted(text),
            AskError::Request(
                RequestError::UnknownJob { .. }
                | RequestError::UnknownWorker { .. }
                | RequestError::NotAside { .. }
                | RequestError::UnknownCheckpoint { .. }
                | RequestError::NotPinned { .. }
                | RequestError::NotCordoned { .. },
            ) => Status::not_found(text),
            AskError::Request(RequestError::Access(AccessError::UnknownToken(_) | AccessError::UnknownBinding(_))) => {
                Status::not_found(text)
            }
            AskError::Request(RequestError::Access(AccessError::Validity { .. } | AccessError::Role(_))) => {
                Status::invalid_argument(text)
            }
            AskError::Request(RequestError::Access(AccessError::TooManyTokens)) => Status::resource_exhausted(text),
            AskError::Request(
                RequestError::Access(AccessError::Connected(_))
                | RequestError::State { .. }
                | RequestError::Drain { .. }
                | RequestError::Retired { .. }
                | RequestError::Removed { .. }
                | RequestError::Steps { .. }
                | RequestError::Folder { .. },
            )
            | AskError::Folder(_) => Status::failed_precondition(text),
            AskError::Curve(_) => Status::data_loss(text),
            AskError::Stopping => Status::unavailable(text),
            AskError::Standby(standby) => {
                let mut status = Status::unavailable(text);
                let address = standby.leader.and_then(|address| address.parse().ok());
                address.map(|address| status.metadata_mut().insert(proto::LEADER_METADATA, address));
                status
            }
        }
    }
}

/// The name in a job file, for the audit record; nobody has checked it yet.
fn job_name(toml: &str) -> String {
    let digest = blake3::hash(toml.as_bytes()).to_hex();
    let name = toroid_torus::job::parse(toml).map_or_else(|_| "an invalid job file".into(), |spec| spec.name);
    format!("{name} (job file {})", &digest[..16])
}

/// Whom a cordon is about.
fn who(worker_id: String, host: String) -> Result<Who, Status> {
    match (worker_id.as_str(), host.as_str()) {
        (_, "") => Ok(Who::Worker(worker_id)),
        ("", _) => Ok(Who::Host(host)),
        _ => Err(Status::invalid_argument(format!(
            "a worker (`{worker_id}`) and a host (`{host}`) are named; say one of them"
        ))),
    }
}

fn for_audit(who: &Who) -> String {
    match who {
        Who::Worker(worker) => worker.clone(),
        Who::Host(host) => format!("host {host}"),
    }
}

#[tonic::async_trait]
impl JobService for Jobs {
    type WatchJobStream = ReceiverStream<Result<proto::JobUpdate, Status>>;
    type GetCurveStream = ReceiverStream<Result<proto::CurvePiece, Status>>;

    async fn submit_job(
        &self,
        request: Request<proto::SubmitJobRequest>,
    ) -> Result<Response<proto::SubmitJobResponse>, Status> {
        let (caller, proto::SubmitJobRequest { job_toml: toml, user, priority }) = opened(request);
        let user = caller.as_ref().map_or(user.clone(), |caller| caller.submits_as(user));
        let what = job_name(&toml);
        let change = async {
            if let Some(refusal) = roots::refusal(&self.roots, &toml).await {
                return Err(Status::permission_denied(refusal.to_string()));
            }
            if let Some(refusal) = folder::refusal(&toml).await {
                return Err(AskError::from(refusal).into());
            }
            let submission = Submission { toml, user, priority };
            let taken = |reply| match reply {
                Reply::Submitted { job } => Ok(proto::SubmitJobResponse { job_id: job.into() }),
                reply => Err(reply),
            };
            self.orders.order(|answer| Command::Submit { submission, answer }, taken).await.map(Response::new)
        };
        self.orders.audit.change(caller.as_ref(), "SubmitJob", &what, change).await
    }

    async fn get_job(&self, request: Request<proto::GetJobRequest>) -> Result<Response<proto::Job>, Status> {
        let request = request.into_inner();
        let mut job = self.job(request.job_id.clone()).await?;
        if request.include_curve {
            job.curve = self.curve(&request.job_id, request.curve_from_step).await?;
        }
        Ok(Response::new(job))
    }

    async fn get_curve(
        &self,
        request: Request<proto::GetCurveRequest>,
    ) -> Result<Response<Self::GetCurveStream>, Status> {
        let request = request.into_inner();
        let first = self.rows(&request.job_id, request.from_step).await?;
        let (pieces, stream) = mpsc::channel(MAX_PIECES);
        tokio::spawn(CurveReader { jobs: self.clone(), request, pieces }.run(first));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_jobs(
        &self,
        request: Request<proto::ListJobsRequest>,
    ) -> Result<Response<proto::ListJobsResponse>, Status> {
        let proto::ListJobsRequest { page_size, page_token } = request.into_inner();
        let max_jobs = if page_size == 0 { MAX_PAGE } else { MAX_PAGE.min(page_size as usize) };
        let bad = |_| {
            Status::invalid_argument(format!("`{page_token}` is no token of a page; take next_page_token of an answer"))
        };
        let before = if page_token.is_empty() { u64::MAX } else { page_token.parse().map_err(bad)? };
        let page = Page { max_jobs, before };
        let found = self.leader.ask(|answer| Question::Jobs { page, answer }).await?;
        let next_page_token = found.next.map_or_else(String::new, |before| before.to_string());
        Ok(Response::new(proto::ListJobsResponse { jobs: found.jobs, next_page_token }))
    }

    async fn remove_job(
        &self,
        request: Request<proto::RemoveJobRequest>,
    ) -> Result<Response<proto::RemoveJobResponse>, Status> {
        let (caller, proto::RemoveJobRequest { job_id: job }) = opened(request);
        let what = job.clone();
        let taken = |reply| match reply {
            Reply::Removed { folder, .. } => Ok(proto::RemoveJobResponse { folder }),
            reply => Err(reply),
        };
        self.orders.change(caller, ("RemoveJob", &what), |answer| Command::Remove { job, answer }, taken).await
    }

    async fn watch_job(
        &self,
        request: Request<proto::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let job = request.job_id.clone();
        let changes = self.leader.ask(|answer| Question::Watch { job, answer }).await?;
        let (updates, stream) = mpsc::channel(MAX_UPDATES);
        let watcher = Watcher { leader: self.leader.clone(), job: request.job_id, changes, updates };
        tokio::spawn(watcher.run(request.curve_from_step));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn cancel_job(&self, request: Request<proto::CancelJobRequest>) -> Result<Response<proto::Job>, Status> {
        let (caller, proto::CancelJobRequest { job_id: job }) = opened(request);
        let what = job.clone();
        let taken = |reply| match reply {
            Reply::Cancelled { job } => Ok(job),
            reply => Err(reply),
        };
        self.change_job(caller, ("CancelJob", &what), |answer| Command::Cancel { job, answer }, taken).await
    }

    async fn checkpoint_job(
        &self,
        request: Request<proto::CheckpointJobRequest>,
    ) -> Result<Response<proto::CheckpointJobResponse>, Status> {
        let (caller, proto::CheckpointJobRequest { job_id: job }) = opened(request);
        let what = job.clone();
        let taken = |reply| match reply {
            Reply::Checkpoint { step } => Ok(proto::CheckpointJobResponse { step: step.get() }),
            reply => Err(reply),
        };
        self.orders.change(caller, ("CheckpointJob", &what), |answer| Command::Checkpoint { job, answer }, taken).await
    }

    async fn pin_checkpoint(
        &self,
        request: Request<proto::PinCheckpointRequest>,
    ) -> Result<Response<proto::PinCheckpointResponse>, Status> {
        let (caller, proto::PinCheckpointRequest { job_id: job, step }) = opened(request);
        let (what, step) = (format!("{job}, step {step}"), Step::new(step));
        let taken = |reply| match reply {
            Reply::Pinned { path } => Ok(proto::PinCheckpointResponse { path }),
            reply => Err(reply),
        };
        self.orders.change(caller, ("PinCheckpoint", &what), |answer| Command::Pin { job, step, answer }, taken).await
    }

    async fn unpin_checkpoint(
        &self,
        request: Request<proto::UnpinCheckpointRequest>,
    ) -> Result<Response<proto::UnpinCheckpointResponse>, Status> {
        let (caller, proto::UnpinCheckpointRequest { job_id: job, step }) = opened(request);
        let (what, step) = (format!("{job}, step {step}"), Step::new(step));
        let taken = |reply| match reply {
            Reply::Unpinned { stays } => Ok(proto::UnpinCheckpointResponse { stays }),
            reply => Err(reply),
        };
        let command = |answer| Command::Unpin { job, step, answer };
        self.orders.change(caller, ("UnpinCheckpoint", &what), command, taken).await
    }

    async fn resume_job(&self, request: Request<proto::ResumeJobRequest>) -> Result<Response<proto::Job>, Status> {
        let (caller, proto::ResumeJobRequest { job_id: job, from_scratch, steps }) = opened(request);
        let mut what = if from_scratch { format!("{job}, from scratch") } else { job.clone() };
        let steps = (steps > 0).then_some(steps);
        what.extend(steps.map(|steps| format!(", up to step {steps}")));
        let taken = |reply| match reply {
            Reply::Resumed { job } => Ok(job),
            reply => Err(reply),
        };
        let command = |answer| Command::Resume { job, from_scratch, steps, answer };
        self.change_job(caller, ("ResumeJob", &what), command, taken).await
    }

    async fn hold_job(&self, request: Request<proto::HoldJobRequest>) -> Result<Response<proto::Job>, Status> {
        let (caller, proto::HoldJobRequest { job_id: job }) = opened(request);
        let what = job.clone();
        let taken = |reply| match reply {
            Reply::Held { job } => Ok(job),
            reply => Err(reply),
        };
        self.change_job(caller, ("HoldJob", &what), |answer| Command::Hold { job, answer }, taken).await
    }

    async fn release_job(&self, request: Request<proto::ReleaseJobRequest>) -> Result<Response<proto::Job>, Status> {
        let (caller, proto::ReleaseJobRequest { job_id: job }) = opened(request);
        let what = job.clone();
        let taken = |reply| match reply {
            Reply::Released { job } => Ok(job),
            reply => Err(reply),
        };
        self.change_job(caller, ("ReleaseJob", &what), |answer| Command::Release { job, answer }, taken).await
    }

    async fn cordon_worker(
        &self,
        request: Request<proto::CordonWorkerRequest>,
    ) -> Result<Response<proto::CordonWorkerResponse>, Status> {
        let (caller, proto::CordonWorkerRequest { worker_id, reason, host }) = opened(request);
        let who = who(worker_id, host)?;
        let what = format!("{}: {reason}", for_audit(&who));
        let is_host = matches!(who, Who::Host(_));
        let taken = |reply| match reply {
            Reply::Cordoned { placed } => {
                let of_worker = placed.first().filter(|_| !is_host);
                Ok(proto::CordonWorkerResponse {
                    job_id: of_worker.map_or_else(String::new, |(_, job)| job.to_string()),
                    worker_ids: placed.into_iter().map(|(worker, _)| worker.to_string()).collect(),
                })
            }
            reply => Err(reply),
        };
        let command = |answer| Command::Cordon { who, reason, answer };
        self.orders.change(caller, ("CordonWorker", &what), command, taken).await
    }

    async fn uncordon_worker(
        &self,
        request: Request<proto::UncordonWorkerRequest>,
    ) -> Result<Response<proto::UncordonWorkerResponse>, Status> {
        let (caller, proto::UncordonWorkerRequest { worker_id, host }) = opened(request);
        let who = who(worker_id, host)?;
        let what = for_audit(&who);
        let taken = |reply| match reply {
            Reply::Uncordoned { reason } => Ok(proto::UncordonWorkerResponse { reason }),
            reply => Err(reply),
        };
        self.orders.change(caller, ("UncordonWorker", &what), |answer| Command::Uncordon { who, answer }, taken).await
    }

    async fn drain_worker(
        &self,
        request: Request<proto::DrainWorkerRequest>,
    ) -> Result<Response<proto::DrainWorkerResponse>, Status> {
        let (caller, proto::DrainWorkerRequest { worker_id: worker }) = opened(request);
        let what = worker.clone();
        let taken = |reply| match reply {
            Reply::Drained { job, replacement } => {
                Ok(proto::DrainWorkerResponse { job_id: job.into(), replacement: replacement.into() })
            }
            reply => Err(reply),
        };
        self.orders.change(caller, ("DrainWorker", &what), |answer| Command::Drain { worker, answer }, taken).await
    }

    async fn kill_worker(
        &self,
        request: Request<proto::KillWorkerRequest>,
    ) -> Result<Response<proto::KillWorkerResponse>, Status> {
        let (caller, proto::KillWorkerRequest { worker_id: worker }) = opened(request);
        let (what, who) = (worker.clone(), caller.as_ref().map_or_else(|| "somebody".into(), Caller::to_string));
        let change = async {
            let job = self.leader.order(|answer| Command::Kill { worker, who, answer }).await?;
            Ok(Response::new(proto::KillWorkerResponse { job_id: job.map_or_else(String::new, Into::into) }))
        };
        self.orders.audit.change(caller.as_ref(), "KillWorker", &what, change).await
    }

    async fn readmit_worker(
        &self,
        request: Request<proto::ReadmitWorkerRequest>,
    ) -> Result<Response<proto::ReadmitWorkerResponse>, Status> {
        let (caller, proto::ReadmitWorkerRequest { worker_id: worker }) = opened(request);
        let what = worker.clone();
        let taken = |reply| match reply {
            Reply::Readmitted { reason } => Ok(proto::ReadmitWorkerResponse { reason }),
            reply => Err(reply),
        };
        self.orders.change(caller, ("ReadmitWorker", &what), |answer| Command::Readmit { worker, answer }, taken).await
    }

    async fn get_leader(
        &self,
        _: Request<proto::GetLeaderRequest>,
    ) -> Result<Response<proto::GetLeaderResponse>, Status> {
        Ok(Response::new(self.who_leads().await))
    }

    async fn list_workers(
        &self,
        _: Request<proto::ListWorkersRequest>,
    ) -> Result<Response<proto::ListWorkersResponse>, Status> {
        Ok(Response::new(self.list_of_workers().await?))
    }
}

/// One `WatchJob` call: asks for what is new whenever something changed and the client has taken what came before.
struct Watcher {
    leader: Leader,
    job: String,
    changes: watch::Receiver<()>,
    updates: mpsc::Sender<Result<proto::JobUpdate, Status>>,
}

impl Watcher {
    async fn run(mut self, from_step: u64) {
        let mut seen = Seen { next_step: from_step, num_events: 0 };
        loop {
            self.changes.mark_unchanged();
            let job = self.job.clone();
            let update = match self.leader.ask(|answer| Question::Update { job, seen, answer }).await {
                Ok(update) => update,
                Err(error) => {
                    // The client may be gone as well; then nobody is left to hear of it.
                    drop(self.updates.send(Err(error.into())).await);
                    return;
                }
            };
            seen = update.seen;
            if self.updates.send(Ok(update.update)).await.is_err() {
                return;
            }
            if update.has_more {
                continue;
            }
            if update.is_ended {
                return;
            }
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() {
                    drop(self.updates.send(Err(AskError::Stopping.into())).await);
                    return;
                },
                () = self.updates.closed() => return,
            }
        }
    }
}
