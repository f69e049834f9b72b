//! The calls of `JobService` as JSON: requests are paths and queries, answers are those of `-o json`.

use std::collections::BTreeMap;

use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use tonic::Request;
use toroid_proto as proto;
use toroid_proto::job_service_server::JobService as _;
use toroid_proto::json;

use super::Http;
use super::error::HttpError;
use crate::caller::Caller;

/// Steps of a curve that are sent at once: the newest.
const MAX_STEPS: u64 = 20_000;

type Answer = Result<Response, HttpError>;

/// The message with who sends it, as the gRPC services have it.
fn request<T>(caller: Caller, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(caller);
    request
}

#[derive(Deserialize)]
pub(super) struct PageQuery {
    #[serde(default)]
    page_token: String,
}

pub(super) async fn jobs(State(http): State<Http>, Query(query): Query<PageQuery>) -> Answer {
    let message = proto::ListJobsRequest { page_size: 0, page_token: query.page_token };
    let found = http.jobs.list_jobs(Request::new(message)).await?.into_inner();
    let jobs: Vec<_> = found.jobs.iter().map(|job| json::Job::new(job, false)).collect();
    Ok(Json(serde_json::json!({ "jobs": jobs, "next_page_token": found.next_page_token })).into_response())
}

pub(super) async fn job(State(http): State<Http>, Path(job_id): Path<String>) -> Answer {
    let message = proto::GetJobRequest { job_id, ..Default::default() };
    let job = http.jobs.get_job(Request::new(message)).await?.into_inner();
    Ok(Json(json::Job::new(&job, false)).into_response())
}

pub(super) async fn workers(State(http): State<Http>) -> Answer {
    let found = http.jobs.list_workers(Request::new(proto::ListWorkersRequest {})).await?.into_inner();
    Ok(Json(found.workers.iter().map(json::Worker::from).collect::<Vec<_>>()).into_response())
}

#[derive(Deserialize)]
pub(super) struct CurveQuery {
    from: Option<u64>,
}

/// The steps from `from` on, [`MAX_STEPS`] of the newest at most, by columns.
pub(super) async fn curve(
    State(http): State<Http>,
    Path(job): Path<String>,
    Query(query): Query<CurveQuery>,
) -> Answer {
    let message = proto::GetJobRequest { job_id: job.clone(), ..Default::default() };
    let committed = http.jobs.get_job(Request::new(message)).await?.into_inner().committed_step;
    let mut from = query.from.unwrap_or(0).max(committed.saturating_sub(MAX_STEPS) + 1);
    // Piece by piece: a step's expert load is many times what is kept of it.
    let mut columns = Columns::default();
    loop {
        let rows = http.jobs.rows(&job, from).await?;
        let Some(last) = rows.last() else { break };
        from = last.step + 1;
        columns.extend(&rows);
    }
    Ok(Json(columns).into_response())
}

/// Steps by columns, which is a third of the bytes of as many objects. What is not finite is `null`.
#[derive(Default, Serialize)]
pub(super) struct Columns {
    step: Vec<u64>,
    loss: Vec<f64>,
    ce: Vec<f64>,
    z_loss: Vec<f64>,
    balance_loss: Vec<f64>,
    grad_norm: Vec<f64>,
    lr: Vec<f64>,
    tokens_per_s: Vec<f64>,
    step_s: Vec<f64>,
    hidden_s: Vec<f64>,
    exposed_s: Vec<f64>,
    epoch: Vec<u64>,
    /// What only some kinds have, by name and as long as the others: figures of a policy, the accuracy of pairs.
    #[serde(flatten)]
    of_kind: BTreeMap<&'static str, Vec<f64>>,
}

impl Columns {
    pub fn of(steps: &[proto::StepRecord]) -> Columns {
        let mut columns = Columns::default();
        columns.extend(steps);
        columns
    }

    pub fn extend(&mut self, steps: &[proto::StepRecord]) {
        for step in steps {
            self.step.push(step.step);
            self.loss.push(step.loss);
            self.ce.push(step.ce);
            self.z_loss.push(step.z_loss);
            self.balance_loss.push(step.balance_loss);
            self.grad_norm.push(step.grad_norm);
            self.lr.push(step.lr);
            self.tokens_per_s.push(step.tokens_per_s);
            self.step_s.push(step.step_s);
            self.hidden_s.push(step.hidden_s);
            self.exposed_s.push(step.exposed_s);
            self.epoch.push(step.epoch);
            self.push_of_kind(step);
        }
    }

    /// A step without such figures has none among those that have.
    fn push_of_kind(&mut self, step: &proto::StepRecord) {
        let before = self.step.len() - 1;
        let accuracy = (step.pairs > 0).then(|| ("accuracy", step.correct as f64 / step.pairs as f64));
        for (name, figure) in step.policy.iter().flat_map(|policy| policy.figures()).chain(accuracy) {
            self.of_kind.entry(name).or_insert_with(|| vec![f64::NAN; before]).push(figure);
        }
        self.of_kind.values_mut().for_each(|column| column.resize(before + 1, f64::NAN));
    }
}

pub(super) async fn checkpoint(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    Path(job_id): Path<String>,
) -> Answer {
    let answer = http.jobs.checkpoint_job(request(caller, proto::CheckpointJobRequest { job_id })).await?.into_inner();
    Ok(Json(serde_json::json!({ "step": answer.step })).into_response())
}

pub(super) async fn cancel(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    Path(job_id): Path<String>,
) -> Answer {
    let job = http.jobs.cancel_job(request(caller, proto::CancelJobRequest { job_id })).await?.into_inner();
    Ok(Json(json::Job::new(&job, false)).into_response())
}

pub(super) async fn drain(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    Path(worker_id): Path<String>,
) -> Answer {
    let answer = http.jobs.drain_worker(request(caller, proto::DrainWorkerRequest { worker_id })).await?.into_inner();
    Ok(Json(serde_json::json!({ "job_id": answer.job_id, "replacement": answer.replacement })).into_response())
}

pub(super) async fn kill(
    State(http): State<Http>,
    Extension(caller): Extension<Caller>,
    Path(worker_id): Path<String>,
) -> Answer {
    let answer = http.jobs.kill_worker(request(caller, proto::KillWorkerRequest { worker_id })).await?.into_inner();
    Ok(Json(serde_json::json!({ "job_id": answer.job_id })).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_some_kinds_are_there_where_they_are_and_as_long_as_the_others() {
        let step = |step, policy| proto::StepRecord { step, policy, ..Default::default() };
        let plain = serde_json::to_value(Columns::of(&[step(1, None)])).expect("columns have names");
        assert!(plain.get("score").is_none() && plain["step"] == serde_json::json!([1]), "{plain}");
        let policy = Some(proto::PolicyStep { score: 0.75, kl: f64::INFINITY, ..Default::default() });
        let steps = [step(1, None), step(2, policy), step(3, None), step(4, policy)];
        let found = serde_json::to_value(Columns::of(&steps)).expect("columns have names");
        assert_eq!(found["score"], serde_json::json!([null, 0.75, null, 0.75]));
        assert_eq!(found["kl"], serde_json::json!([null, null, null, null]), "what is not finite");
        assert_eq!(found["answer_tokens"], serde_json::json!([null, 0.0, null, 0.0]));
        let pairs = |step, pairs| proto::StepRecord { step, pairs, correct: 3, ..Default::default() };
        let found = serde_json::to_value(Columns::of(&[pairs(1, 4), pairs(2, 0)])).expect("columns have names");
        assert_eq!((&found["accuracy"], found.get("score")), (&serde_json::json!([0.75, null]), None));
    }
}
