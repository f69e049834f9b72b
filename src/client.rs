//! The user's side of `JobService`: one call, one answer or one clear sentence about what went wrong and what to do.

use std::error::Error as _;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tonic::codegen::{Service as _, http};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use toroid_proto as proto;
use toroid_proto::admin_service_client::AdminServiceClient;
use toroid_proto::job_service_client::JobServiceClient;
use toroid_proto::limits::USER_ANSWER_BYTES_MAX;
use toroid_security::{Credentials, Files};
use toroid_worker::control::carrier::UNIX;

use crate::access::{Access, CredentialArgs, LocalRole, way};
use crate::calls::Calls;
use crate::exit::{self, CallError, Exit};

pub const DEFAULT_COORDINATOR: &str = "127.0.0.1:7070";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A cut network is noticed after twice this long.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// One of several coordinators may take so long to answer before the next is asked.
const NEXT_AFTER: Duration = Duration::from_secs(1);
/// So long nobody may lead before that is an error: longer than it takes several coordinators to have another leader.
const LEADERLESS: Duration = Duration::from_secs(10);
/// Between two looks for a leader.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Where the coordinator is.
#[derive(Debug, Clone, clap::Args)]
pub struct Connection {
    /// Address of the coordinator; of several, with commas between: the one that leads is found. A worker may name the agent of its host first, unix:PATH
    #[arg(long, env = "TOROID_COORDINATOR", default_value = DEFAULT_COORDINATOR, value_name = "HOST:PORT[,...]", value_delimiter = ',', value_parser = parse_url)]
    pub coordinator: Vec<String>,
    /// A token in the place of a certificate, over TLS only
    #[arg(long, env = "TOROID_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    #[command(flatten)]
    pub credentials: CredentialArgs,
}

/// `host:port`, `http://host:port` and `https://host:port` name a coordinator; what the first is spoken in depends on the credentials.
/// `unix:/path` is the socket of an agent, which takes workers alone.
pub fn parse_url(text: &str) -> Result<String, String> {
    match text.strip_prefix(UNIX) {
        Some(path) if path.starts_with('/') => return Ok(text.to_string()),
        Some(path) => return Err(format!("`{path}` is no absolute path; expected unix:/path of an agent's socket")),
        None => {}
    }
    const EXPECTED: &str = "expected host:port, https://host:port or http://host:port";
    let url = if text.contains("://") { text.to_string() } else { format!("http://{text}") };
    let uri: tonic::codegen::http::Uri = url.parse().map_err(|e| format!("{e}; {EXPECTED}"))?;
    match (uri.scheme_str(), uri.port_u16()) {
        (Some("http" | "https"), Some(_)) => Ok(text.trim_end_matches('/').to_string()),
        (Some("http" | "https"), None) => Err(format!("the port is missing; {EXPECTED}")),
        (scheme, _) => Err(format!("{} is not a scheme it speaks; {EXPECTED}", scheme.unwrap_or("none"))),
    }
}

impl Connection {
    /// What a user names, with what it needs to be reached.
    pub fn access(&self) -> Result<Access> {
        self.access_as(LocalRole::Admin)
    }

    /// The same, for whoever finds other credentials at a cluster of this machine.
    pub fn access_as(&self, role: LocalRole) -> Result<Access> {
        Access::find(&self.coordinator, &self.credentials, self.token.as_deref(), role)
    }

    /// Where the certificate is that is shown to the coordinator; `None` where none is.
    pub fn files(&self) -> Option<Files> {
        let (_, files) =
            way(self.coordinator.first()?, &self.credentials, self.token.as_deref(), LocalRole::Admin).ok()?;
        files.filter(|_| self.token.is_none())
    }

    pub async fn open(&self) -> Result<Client> {
        Client::find(&self.access()?).await
    }

    /// The user has said, by a flag or the environment, that it is another coordinator than the default one.
    pub fn is_named(&self) -> bool {
        let default = parse_url(DEFAULT_COORDINATOR);
        self.coordinator.len() != 1 || self.coordinator.first() != default.as_ref().ok()
    }
}

/// Shows a token with each call.
#[derive(Clone)]
struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(shown) = &self.0 {
            request.metadata_mut().insert("authorization", shown.clone());
        }
        Ok(request)
    }
}

type Authorized = InterceptedService<Calls, Bearer>;

/// A connection to a coordinator.
#[derive(Clone)]
pub struct Client {
    inner: JobServiceClient<Authorized>,
    admin: AdminServiceClient<Authorized>,
    /// For what is no gRPC.
    http: Channel,
    bearer: Bearer,
    url: String,
}

impl Client {
    /// To a coordinator, whether it leads or not.
    pub async fn connect(url: &str, credentials: &Credentials) -> Result<Client> {
        Client::open(url, credentials, CONNECT_TIMEOUT).await
    }

    async fn open(url: &str, credentials: &Credentials, limit: Duration) -> Result<Client> {
        let authority = url.split_once("://").map_or(url, |(_, authority)| authority);
        let endpoint = Endpoint::from_shared(format!("http://{authority}"));
        let endpoint = endpoint.with_context(|| format!("read the address {url}"))?;
        let endpoint = endpoint
            .connect_timeout(limit)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let channel = toroid_security::connect(endpoint, credentials).await.map_err(|e| unreachable(url, &e))?;
        let shown = credentials.token().map(|token| {
            let mut shown: MetadataValue<Ascii> = format!("Bearer {token}").parse()?;
            shown.set_sensitive(true);
            anyhow::Ok(shown)
        });
        let bearer = Bearer(shown.transpose().context("read the token")?);
        let calls = Calls::new(channel.clone());
        let inner = JobServiceClient::with_interceptor(calls.clone(), bearer.clone());
        let admin = AdminServiceClient::with_interceptor(calls, bearer.clone());
        Ok(Client {
            http: channel,
            bearer,
            inner: inner.max_decoding_message_size(USER_ANSWER_BYTES_MAX),
            admin: admin.max_decoding_message_size(USER_ANSWER_BYTES_MAX),
            url: url.into(),
        })
    }

    /// To whichever of these coordinators leads. One that does not answer is left for the next within a second; while they choose a leader, it waits.
    ///
    /// # Errors
    /// None of them answers, or none leads for long: what each has said.
    pub async fn find(access: &Access) -> Result<Client> {
        let Access { urls, credentials } = access;
        if let [url] = &urls[..] {
            let mut client = Client::connect(url, credentials).await?;
            // One that leads, or is alone and of an earlier version, answers all else.
            match client.leader().await {
                Ok(leader) if !leader.leads => {}
                _ => return Ok(client),
            }
        }
        let start = tokio::time::Instant::now();
        loop {
            let (mut asked, mut words, mut is_one_there) = (Vec::new(), Vec::new(), false);
            let mut exit = Exit::Unreachable;
            let mut next: Vec<String> = urls.iter().rev().cloned().collect();
            while let Some(url) = next.pop() {
                if asked.contains(&url) {
                    continue;
                }
                asked.push(url.clone());
                let look = async {
                    let mut client = Client::open(&url, credentials, NEXT_AFTER).await?;
                    let leader = client.leader().await?;
                    anyhow::Ok((client, leader))
                };
                match tokio::time::timeout(NEXT_AFTER, look).await {
                    Ok(Ok((client, leader))) if leader.leads => return Ok(client),
                    Ok(Ok((_, leader))) => {
                        is_one_there = true;
                        words.push(format!("{url} does not lead: {}", leader.reason));
                        next.extend((!leader.address.is_empty()).then_some(leader.address));
                    }
                    Ok(Err(error)) => {
                        // Who does not take the credentials will not take them later either.
                        exit = if exit::of(&error) == Exit::Refused { Exit::Refused } else { exit };
                        words.push(error.to_string());
                    }
                    Err(_) => words.push(format!("{url} does not answer within {NEXT_AFTER:?}")),
                }
            }
            if !is_one_there || start.elapsed() >= LEADERLESS {
                let text = format!("no coordinator leads: {}", words.join("; "));
                return Err(CallError::new(exit, text).into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Sends a request of a browser on, with this user's token where there is one.
    pub async fn forward(
        mut self,
        mut request: http::Request<tonic::body::Body>,
    ) -> Result<http::Response<tonic::body::Body>> {
        if let Some(shown) = &self.bearer.0 {
            let shown = http::HeaderValue::from_bytes(shown.as_encoded_bytes()).context("read the token")?;
            request.headers_mut().insert(http::header::AUTHORIZATION, shown);
        }
        let url = self.url.clone();
        std::future::poll_fn(|cx| self.http.poll_ready(cx)).await.map_err(|e| unreachable(&url, &e))?;
        self.http.call(request).await.map_err(|e| unreachable(&url, &e))
    }

    /// Who leads, as the coordinator that was asked knows.
    pub async fn leader(&mut self) -> Result<proto::GetLeaderResponse> {
        let answer = self.inner.get_leader(proto::GetLeaderRequest {}).await;
        Ok(answer.map_err(|s| explain("see who leads", &self.url, &s))?.into_inner())
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
        Ok(self.all_workers().await?.workers)
    }

    /// Those that are connected, and those that keep places which the coordinator's store does not know.
    pub async fn all_workers(&mut self) -> Result<proto::ListWorkersResponse> {
        let answer = self.inner.list_workers(proto::ListWorkersRequest {}).await;
        Ok(answer.map_err(|s| explain("list the workers", &self.url, &s))?.into_inner())
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

    /// A worker, or a host; who has places still.
    pub async fn cordon(&mut self, request: proto::CordonWorkerRequest) -> Result<proto::CordonWorkerResponse> {
        let what = if request.host.is_empty() { "cordon the worker" } else { "cordon the host" };
        Ok(self.inner.cordon_worker(request).await.map_err(|s| explain(what, &self.url, &s))?.into_inner())
    }

    /// Why the worker, or the host, was cordoned; may be empty.
    pub async fn uncordon(&mut self, request: proto::UncordonWorkerRequest) -> Result<String> {
        let what = if request.host.is_empty() { "uncordon the worker" } else { "uncordon the host" };
        let answer = self.inner.uncordon_worker(request).await;
        Ok(answer.map_err(|s| explain(what, &self.url, &s))?.into_inner().reason)
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

    /// Where the checkpoint is that stays from now on.
    pub async fn pin(&mut self, job: &str, step: u64) -> Result<String> {
        let request = proto::PinCheckpointRequest { job_id: job.into(), step };
        let answer = self.inner.pin_checkpoint(request).await;
        Ok(answer.map_err(|s| explain("pin the checkpoint", &self.url, &s))?.into_inner().path)
    }

    /// Whether the checkpoint is kept without a pin, too, until newer ones come.
    pub async fn unpin(&mut self, job: &str, step: u64) -> Result<bool> {
        let request = proto::UnpinCheckpointRequest { job_id: job.into(), step };
        let answer = self.inner.unpin_checkpoint(request).await;
        Ok(answer.map_err(|s| explain("unpin the checkpoint", &self.url, &s))?.into_inner().stays)
    }

    /// Where the worker's place goes; an empty `job_id`: it was a spare.
    pub async fn drain(&mut self, worker: &str) -> Result<proto::DrainWorkerResponse> {
        let request = proto::DrainWorkerRequest { worker_id: worker.into() };
        let answer = self.inner.drain_worker(request).await.map_err(|s| explain("drain the worker", &self.url, &s))?;
        Ok(answer.into_inner())
    }

    /// Has the worker's process end at once; the job in which it had a place, empty: it was a spare.
    pub async fn kill(&mut self, worker: &str) -> Result<String> {
        let request = proto::KillWorkerRequest { worker_id: worker.into() };
        let answer = self.inner.kill_worker(request).await.map_err(|s| explain("kill the worker", &self.url, &s))?;
        Ok(answer.into_inner().job_id)
    }

    /// Why the worker was put aside.
    pub async fn readmit(&mut self, worker: &str) -> Result<String> {
        let request = proto::ReadmitWorkerRequest { worker_id: worker.into() };
        let answer =
            self.inner.readmit_worker(request).await.map_err(|s| explain("readmit the worker", &self.url, &s))?;
        Ok(answer.into_inner().reason)
    }

    /// A token that is good for so many seconds from now.
    pub async fn create_token(
        &mut self,
        name: String,
        role: String,
        valid_s: u64,
    ) -> Result<proto::CreateTokenResponse> {
        let answer = self.admin.create_token(proto::CreateTokenRequest { name, role, valid_s }).await;
        Ok(answer.map_err(|s| explain("make a token", &self.url, &s))?.into_inner())
    }

    pub async fn tokens(&mut self) -> Result<Vec<proto::Token>> {
        let answer = self.admin.list_tokens(proto::ListTokensRequest {}).await;
        Ok(answer.map_err(|s| explain("list the tokens", &self.url, &s))?.into_inner().tokens)
    }

    pub async fn revoke_token(&mut self, id: String) -> Result<proto::Token> {
        let answer = self.admin.revoke_token(proto::RevokeTokenRequest { id }).await;
        Ok(answer.map_err(|s| explain("revoke the token", &self.url, &s))?.into_inner())
    }

    /// The newest records of changes, as lines of JSON.
    pub async fn audit(&mut self, limit: u32) -> Result<Vec<String>> {
        let answer = self.admin.get_audit(proto::GetAuditRequest { limit }).await;
        Ok(answer.map_err(|s| explain("read the audit record", &self.url, &s))?.into_inner().records)
    }

    /// Has the id of a worker that is not connected be free for whoever registers it next.
    pub async fn forget_worker(&mut self, worker: &str) -> Result<()> {
        let answer = self.admin.forget_worker(proto::ForgetWorkerRequest { worker_id: worker.into() }).await;
        answer.map(drop).map_err(|s| explain("forget the worker", &self.url, &s))
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
    let text = format!(
        "no coordinator answers at {url} ({}); start one with `toroid coordinator` or `toroid local`, or name another with \
         --coordinator or TOROID_COORDINATOR",
        innermost(error)
    );
    CallError::new(Exit::of_connection(error), text).into()
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
    let text = match status.code() {
        Code::InvalidArgument
        | Code::NotFound
        | Code::FailedPrecondition
        | Code::DataLoss
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::ResourceExhausted => found.to_string(),
        Code::Unimplemented => {
            format!(
                "cannot {doing}: {url} is no Toroid coordinator, or one of another version than {} ({found})",
                proto::BUILD_VERSION
            )
        }
        Code::Unavailable | Code::Cancelled | Code::Unknown => {
            let cause = status.source().map_or_else(|| found.to_string(), innermost);
            format!(
                "cannot {doing}: the connection to {url} broke ({cause}); see whether a coordinator runs there, and try again"
            )
        }
        code => format!("cannot {doing}: {url} answered {code:?}: {found}"),
    };
    CallError::new(Exit::of_status(status), text).into()
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
        check("coordinator:7070", Ok("coordinator:7070"));
        check("[::1]:7070", Ok("[::1]:7070"));
        check("https://coordinator:7070", Ok("https://coordinator:7070"));
        check("coordinator", Err("port is missing"));
        check("ftp://coordinator:7070", Err("expected host:port"));
        check("http://", Err("expected host:port"));
        check("", Err("expected host:port"));
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
        let error = Client::connect("http://127.0.0.1:0", &Credentials::none())
            .await
            .err()
            .expect("nobody listens")
            .to_string();
        for words in ["127.0.0.1:0", "toroid coordinator", "--coordinator"] {
            assert!(error.contains(words), "{error}");
        }
    }
}
