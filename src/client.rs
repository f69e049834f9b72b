//! The user's side of `JobService`: one call, one answer or one clear sentence about what went wrong and what to do.

use std::error::Error as _;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use toroid_proto as proto;
use toroid_proto::job_service_client::JobServiceClient;
use toroid_proto::limits::USER_ANSWER_BYTES_MAX;

pub const DEFAULT_COORDINATOR: &str = "http://127.0.0.1:7070";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A cut network is noticed after twice this long.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Where the coordinator is.
#[derive(Debug, Clone, clap::Args)]
pub struct Connection {
    /// Address of the coordinator
    #[arg(long, env = "TOROID_COORDINATOR", default_value = DEFAULT_COORDINATOR, value_name = "URL", value_parser = parse_url)]
    pub coordinator: String,
}

/// `host:port` and `http://host:port` both name a coordinator.
pub fn parse_url(text: &str) -> Result<String, String> {
    let url = if text.contains("://") { text.to_string() } else { format!("http://{text}") };
    let uri: tonic::codegen::http::Uri = url.parse().map_err(|e| format!("{e}; expected http://host:port"))?;
    match (uri.scheme_str(), uri.port_u16()) {
        (Some("http"), Some(_)) => Ok(url.trim_end_matches('/').to_string()),
        (Some("http"), None) => Err("the port is missing; expected http://host:port".into()),
        (scheme, _) => {
            Err(format!("{} is not a scheme it speaks; expected http://host:port", scheme.unwrap_or("none")))
        }
    }
}

impl Connection {
    pub async fn open(&self) -> Result<Client> {
        Client::connect(&self.coordinator).await
    }
}

/// A connection to a coordinator.
pub struct Client {
    inner: JobServiceClient<Channel>,
    url: String,
}

impl Client {
    pub async fn connect(url: &str) -> Result<Client> {
        let endpoint = Endpoint::from_shared(url.to_string()).with_context(|| format!("read the address {url}"))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let channel = endpoint.connect().await.map_err(|e| unreachable(url, &e))?;
        let inner = JobServiceClient::new(channel).max_decoding_message_size(USER_ANSWER_BYTES_MAX);
        Ok(Client { inner, url: url.into() })
    }

    pub async fn submit(&mut self, job_toml: String) -> Result<String> {
        self.submit_as(proto::SubmitJobRequest { job_toml, ..Default::default() }).await
    }

    /// The id of the job.
    pub async fn submit_as(&mut self, request: proto::SubmitJobRequest) -> Result<String> {
        let answer = self.inner.submit_job(request).await.map_err(|s| explain("submit the job", &self.url, &s))?;
        Ok(answer.into_inner().job_id)
    }

    /// With every step's record where `include_curve` says so.
    pub async fn job(&mut self, job: &str, include_curve: bool) -> Result<proto::Job> {
        let request = proto::GetJobRequest { job_id: job.into(), ..Default::default() };
        let answer = self.inner.get_job(request).await.map_err(|s| explain("get the job", &self.url, &s))?;
        let mut found = answer.into_inner();
        if let (true, Some(last)) = (include_curve, &found.last_step) {
            let mut curve = self.curve(job, last.step).await?;
            while let Some(steps) = curve.next().await? {
                found.curve.extend(steps);
            }
        }
        Ok(found)
    }

    /// The records of all steps up to `to_step`, as they come.
    pub async fn curve(&mut self, job: &str, to_step: u64) -> Result<Curve> {
        let request = proto::GetCurveRequest { job_id: job.into(), from_step: 0, to_step };
        let answer = self.inner.get_curve(request).await.map_err(|s| explain("get the curve", &self.url, &s))?;
        Ok(Curve { pieces: answer.into_inner(), url: self.url.clone() })
    }

    /// The newest jobs, at most `limit`, the newest first; and the page where the next begin, which is empty where there are none.
    pub async fn jobs(&mut self, limit: usize, page: String) -> Result<(Vec<proto::Job>, String)> {
        let (mut jobs, mut page_token) = (Vec::new(), page);
        loop {
            let page_size = u32::try_from(limit - jobs.len()).unwrap_or(u32::MAX);
            let answer = self.inner.list_jobs(proto::ListJobsRequest { page_size, page_token }).await;
            let answer = answer.map_err(|s| explain("list the jobs", &self.url, &s))?.into_inner();
            jobs.extend(answer.jobs);
            page_token = answer.next_page_token;
            if page_token.is_empty() || jobs.len() >= limit {
                return Ok((jobs, page_token));
            }
        }
    }

    /// Takes a job that has ended off the list; its folder, which stays.
    pub async fn remove(&mut self, job: &str) -> Result<String> {
        let request = proto::RemoveJobRequest { job_id: job.into() };
        let answer = self.inner.remove_job(request).await.map_err(|s| explain("remove the job", &self.url, &s))?;
        Ok(answer.into_inner().folder)
    }

    pub async fn workers(&mut self) -> Result<Vec<proto::WorkerInfo>> {
        let answer = self.inner.list_workers(proto::ListWorkersRequest {}).await;
        Ok(answer.map_err(|s| explain("list the workers", &self.url, &s))?.into_inner().workers)
    }

    pub async fn cancel(&mut self, job: &str) -> Result<proto::Job> {
        let request = proto::CancelJobRequest { job_id: job.into() };
        let answer = self.inner.cancel_job(request).await.map_err(|s| explain("cancel the job", &self.url, &s))?;
        Ok(answer.into_inner())
    }

    /// The job is given no places until it is released.
    pub async fn hold(&mut self, job: &str) -> Result<proto::Job> {
        let request = proto::HoldJobRequest { job_id: job.into() };
        let answer = self.inner.hold_job(request).await.map_err(|s| explain("hold the job", &self.url, &s))?;
        Ok(answer.into_inner())
    }

    pub async fn release(&mut self, job: &str) -> Result<proto::Job> {
        let request = proto::ReleaseJobRequest { job_id: job.into() };
        let answer = self.inner.release_job(request).await.map_err(|s| explain("release the job", &self.url, &s))?;
        Ok(answer.into_inner())
    }

    /// The job in which the worker has a place still; empty: in none.
    pub async fn cordon(&mut self, worker: &str, reason: String) -> Result<String> {
        let request = proto::CordonWorkerRequest { worker_id: worker.into(), reason };
        let answer =
            self.inner.cordon_worker(request).await.map_err(|s| explain("cordon the worker", &self.url, &s))?;
        Ok(answer.into_inner().job_id)
    }

    /// Why the worker was cordoned; may be empty.
    pub async fn uncordon(&mut self, worker: &str) -> Result<String> {
        let request = proto::UncordonWorkerRequest { worker_id: worker.into() };
        let answer = self.inner.uncordon_worker(request).await;
        Ok(answer.map_err(|s| explain("uncordon the worker", &self.url, &s))?.into_inner().reason)
    }

    /// A job that waits for a checkpoint that can be read, or has ended; `steps`: in all, 0: as many as before.
    pub async fn resume(&mut self, job: &str, from_scratch: bool, steps: u64) -> Result<proto::Job> {
        let request = proto::ResumeJobRequest { job_id: job.into(), from_scratch, steps };
        let answer = self.inner.resume_job(request).await.map_err(|s| explain("resume the job", &self.url, &s))?;
        Ok(answer.into_inner())
    }

    /// The step whose state will be saved.
    pub async fn checkpoint(&mut self, job: &str) -> Result<u64> {
        let request = proto::CheckpointJobRequest { job_id: job.into() };
        let answer = self.inner.checkpoint_job(request).await;
        Ok(answer.map_err(|s| explain("ask for a checkpoint", &self.url, &s))?.into_inner().step)
    }

    /// Where the worker's place goes; an empty `job_id`: it was a spare.
    pub async fn drain(&mut self, worker: &str) -> Result<proto::DrainWorkerResponse> {
        let request = proto::DrainWorkerRequest { worker_id: worker.into() };
        let answer = self.inner.drain_worker(request).await.map_err(|s| explain("drain the worker", &self.url, &s))?;
        Ok(answer.into_inner())
    }

    /// Why the worker was put aside.
    pub async fn readmit(&mut self, worker: &str) -> Result<String> {
        let request = proto::ReadmitWorkerRequest { worker_id: worker.into() };
        let answer =
            self.inner.readmit_worker(request).await.map_err(|s| explain("readmit the worker", &self.url, &s))?;
        Ok(answer.into_inner().reason)
    }

    pub async fn watch(&mut self, job: &str, curve_from_step: u64) -> Result<Streaming<proto::JobUpdate>, Status> {
        let request = proto::WatchJobRequest { job_id: job.into(), curve_from_step };
        Ok(self.inner.watch_job(request).await?.into_inner())
    }
}

/// A curve on its way.
pub struct Curve {
    pieces: Streaming<proto::CurvePiece>,
    url: String,
}

impl Curve {
    /// The next records; `None` behind the last.
    pub async fn next(&mut self) -> Result<Option<Vec<proto::StepRecord>>> {
        let piece = self.pieces.message().await.map_err(|s| explain("get the curve", &self.url, &s))?;
        Ok(piece.map(|piece| piece.steps))
    }
}

fn unreachable(url: &str, error: &tonic::transport::Error) -> anyhow::Error {
    anyhow!(
        "no coordinator answers at {url} ({}); start one with `toroid coordinator` or `toroid local`, or name another with \
         --coordinator or TOROID_COORDINATOR",
        innermost(error)
    )
}

/// The last cause of an error: the words of the system.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// What a call's failure means for the user. The coordinator's own refusals are complete sentences already.
pub fn explain(doing: &str, url: &str, status: &Status) -> anyhow::Error {
    let found = if status.message().is_empty() { status.code().description() } else { status.message() };
    match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::DataLoss
        | Code::ResourceExhausted => anyhow!("{found}"),
        Code::Unimplemented => {
            anyhow!(
                "cannot {doing}: {url} is no Toroid coordinator, or one of another version than {} ({found})",
                proto::BUILD_VERSION
            )
        }
        Code::Unavailable | Code::Cancelled | Code::Unknown => {
            let cause = status.source().map_or_else(|| found.to_string(), innermost);
            anyhow!(
                "cannot {doing}: the connection to {url} broke ({cause}); see whether a coordinator runs there, and try again"
            )
        }
        code => anyhow!("cannot {doing}: {url} answered {code:?}: {found}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_completed_or_refused_in_words() {
        let check = |text: &str, expected: Result<&str, &str>| match (parse_url(text), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(expected)) => assert!(found.contains(expected), "{text}: {found}"),
            (found, expected) => panic!("{text}: expected {expected:?}, found {found:?}"),
        };
        check("http://10.0.0.1:7070", Ok("http://10.0.0.1:7070"));
        check("http://10.0.0.1:7070/", Ok("http://10.0.0.1:7070"));
        check("coordinator:7070", Ok("http://coordinator:7070"));
        check("[::1]:7070", Ok("http://[::1]:7070"));
        check("coordinator", Err("port is missing"));
        check("https://coordinator:7070", Err("expected http://host:port"));
        check("ftp://coordinator:7070", Err("expected http://host:port"));
        check("http://", Err("expected http://host:port"));
        check("", Err("expected http://host:port"));
    }

    #[test]
    fn a_refusal_is_shown_in_the_coordinators_words_and_a_broken_connection_with_what_to_do() {
        let check = |status: Status, expected: &[&str]| {
            let text = explain("cancel the job", "http://h:1", &status).to_string();
            assert!(expected.iter().all(|words| text.contains(words)), "{text}");
        };
        check(Status::not_found("there is no job `x`; there are tiny-1"), &["there is no job `x`; there are tiny-1"]);
        check(Status::unavailable("tcp reset"), &["cancel the job", "http://h:1", "tcp reset", "try again"]);
        check(Status::unimplemented(""), &["no Toroid coordinator", "http://h:1"]);
        check(Status::internal("oh"), &["cancel the job", "Internal", "oh"]);
    }

    #[tokio::test]
    async fn a_coordinator_that_does_not_answer_is_named_with_what_to_do() {
        // Nothing can listen on port 0.
        let error = Client::connect("http://127.0.0.1:0").await.err().expect("nobody listens").to_string();
        for words in ["127.0.0.1:0", "toroid coordinator", "--coordinator"] {
            assert!(error.contains(words), "{error}");
        }
    }
}
