//! `JobService`: what users ask. Each call is a question to the driver.

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use toroid_proto as proto;
use toroid_proto::job_service_server::JobService;

use crate::driver::{AskError, Command, Handle, MAX_ROWS, Seen};
use crate::machine::{Reply, RequestError};

/// Updates that wait for a watcher; beyond, the watcher's own task waits and then skips to the newest state.
const MAX_UPDATES: usize = 4;

pub(crate) struct Jobs {
    handle: Handle,
}

impl Jobs {
    pub fn new(handle: Handle) -> Jobs {
        Jobs { handle }
    }

    async fn job(&self, job: String) -> Result<proto::Job, AskError> {
        self.handle.ask(|answer| Command::Job { job, answer }).await
    }

    /// The curve from `from` on, in pieces, so that the driver is never held up for long.
    async fn curve(&self, job: &str, mut from: u64) -> Result<Vec<proto::StepRecord>, AskError> {
        let mut curve = Vec::new();
        loop {
            let rows = self.handle.ask(|answer| Command::Rows { job: job.into(), from, answer }).await?;
            let is_last = rows.len() < MAX_ROWS;
            curve.extend(rows);
            match curve.last() {
                Some(last) if !is_last => from = last.step + 1,
                _ => return Ok(curve),
            }
        }
    }
}

impl From<AskError> for Status {
    fn from(error: AskError) -> Status {
        let text = error.to_string();
        match error {
            AskError::Request(RequestError::Invalid(_)) => Status::invalid_argument(text),
            AskError::Request(RequestError::UnknownJob { .. } | RequestError::UnknownWorker { .. }) => {
                Status::not_found(text)
            }
            AskError::Request(RequestError::State { .. } | RequestError::Drain { .. }) => {
                Status::failed_precondition(text)
            }
            AskError::Curve(_) => Status::data_loss(text),
            AskError::Stopping => Status::unavailable(text),
        }
    }
}

/// The driver answers each request with its own kind of reply.
fn mismatch(reply: &Reply) -> Status {
    Status::internal(format!("the coordinator answered something else: {reply:?}"))
}

#[tonic::async_trait]
impl JobService for Jobs {
    type WatchJobStream = ReceiverStream<Result<proto::JobUpdate, Status>>;

    async fn submit_job(
        &self,
        request: Request<proto::SubmitJobRequest>,
    ) -> Result<Response<proto::SubmitJobResponse>, Status> {
        let toml = request.into_inner().job_toml;
        match self.handle.ask(|answer| Command::Submit { toml, answer }).await? {
            Reply::Submitted { job } => Ok(Response::new(proto::SubmitJobResponse { job_id: job })),
            reply => Err(mismatch(&reply)),
        }
    }

    async fn get_job(&self, request: Request<proto::GetJobRequest>) -> Result<Response<proto::Job>, Status> {
        let request = request.into_inner();
        let mut job = self.job(request.job_id.clone()).await?;
        if request.include_curve {
            job.curve = self.curve(&request.job_id, request.curve_from_step).await?;
        }
        Ok(Response::new(job))
    }

    async fn list_jobs(&self, _: Request<proto::ListJobsRequest>) -> Result<Response<proto::ListJobsResponse>, Status> {
        let jobs = self.handle.ask(|answer| Command::Jobs { answer }).await?;
        Ok(Response::new(proto::ListJobsResponse { jobs }))
    }

    async fn watch_job(
        &self,
        request: Request<proto::WatchJobRequest>,
    ) -> Result<Response<Self::WatchJobStream>, Status> {
        let request = request.into_inner();
        let job = request.job_id.clone();
        let changes = self.handle.ask(|answer| Command::Watch { job, answer }).await?;
        let (updates, stream) = mpsc::channel(MAX_UPDATES);
        let watcher = Watcher { handle: self.handle.clone(), job: request.job_id, changes, updates };
        tokio::spawn(watcher.run(request.curve_from_step));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn cancel_job(&self, request: Request<proto::CancelJobRequest>) -> Result<Response<proto::Job>, Status> {
        let job = request.into_inner().job_id;
        match self.handle.ask(|answer| Command::Cancel { job, answer }).await? {
            Reply::Cancelled { job } => Ok(Response::new(self.job(job).await?)),
            reply => Err(mismatch(&reply)),
        }
    }

    async fn checkpoint_job(
        &self,
        request: Request<proto::CheckpointJobRequest>,
    ) -> Result<Response<proto::CheckpointJobResponse>, Status> {
        let job = request.into_inner().job_id;
        match self.handle.ask(|answer| Command::Checkpoint { job, answer }).await? {
            Reply::Checkpoint { step } => Ok(Response::new(proto::CheckpointJobResponse { step })),
            reply => Err(mismatch(&reply)),
        }
    }

    async fn resume_job(&self, request: Request<proto::ResumeJobRequest>) -> Result<Response<proto::Job>, Status> {
        let proto::ResumeJobRequest { job_id: job, from_scratch } = request.into_inner();
        match self.handle.ask(|answer| Command::Resume { job, from_scratch, answer }).await? {
            Reply::Resumed { job } => Ok(Response::new(self.job(job).await?)),
            reply => Err(mismatch(&reply)),
        }
    }

    async fn drain_worker(
        &self,
        request: Request<proto::DrainWorkerRequest>,
    ) -> Result<Response<proto::DrainWorkerResponse>, Status> {
        let worker = request.into_inner().worker_id;
        match self.handle.ask(|answer| Command::Drain { worker, answer }).await? {
            Reply::Drained { job, replacement } => {
                Ok(Response::new(proto::DrainWorkerResponse { job_id: job, replacement }))
            }
            reply => Err(mismatch(&reply)),
        }
    }

    async fn list_workers(
        &self,
        _: Request<proto::ListWorkersRequest>,
    ) -> Result<Response<proto::ListWorkersResponse>, Status> {
        let workers = self.handle.ask(|answer| Command::Workers { answer }).await?;
        Ok(Response::new(proto::ListWorkersResponse { workers }))
    }
}

/// One `WatchJob` call: asks for what is new whenever something changed and the client has taken what came before.
struct Watcher {
    handle: Handle,
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
            let update = match self.handle.ask(|answer| Command::Update { job, seen, answer }).await {
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
