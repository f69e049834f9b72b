//! A study on a cluster: its trainings become jobs, so many at a time, and their losses a table.
//!
//! What has ended is in the table; what runs is at the coordinator, under names that follow from the study. So whoever runs the same
//! command again goes on where it was, also when this process was killed between a submission and the note of it.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use toroid_proto as proto;
use toroid_proto::json::{is_ended, state_word};
use toroid_torus::job;

use super::runs_file::{self, Finished};
use super::study::{Study, Training};
use crate::access::Access;
use crate::client::Client;
use crate::output;
use crate::watch::PATIENCE;

/// Between two looks at the jobs.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
const MAX_LISTED: usize = 100_000;

/// How a study ended.
#[derive(Debug)]
pub struct Outcome {
    pub finished: Vec<Finished>,
    /// Names of trainings that did not reach their end, and why.
    pub failed: Vec<(String, String)>,
}

/// A connection that may be away for a while.
struct Reached {
    access: Access,
    client: Client,
    away_since: Option<Instant>,
}

impl Reached {
    async fn new(access: Access) -> Result<Reached> {
        let client = Client::find(&access).await?;
        Ok(Reached { access, client, away_since: None })
    }

    /// What the coordinator says of a job; `None` while it is away.
    async fn job(&mut self, id: &str) -> Result<Option<proto::Job>> {
        let error = match self.client.job(id, false).await {
            Ok(job) => {
                self.away_since = None;
                return Ok(Some(job));
            }
            Err(error) if crate::exit::of(&error) != crate::exit::Exit::Unreachable => return Err(error),
            Err(error) => error,
        };
        let since = *self.away_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE {
            return Err(error).context("the jobs go on without this command; run it again to go on with the study");
        }
        if let Ok(client) = Client::find(&self.access).await {
            self.client = client;
        }
        Ok(None)
    }
}

/// Makes all trainings of `study` that `table` does not have, and writes each into it as it ends.
pub async fn conduct(study: &Study, access: Access, table: &Path) -> Result<Outcome> {
    let digests: HashMap<&str, String> = study.trainings.iter().map(|t| (t.name.as_str(), t.digest())).collect();
    let mut finished = runs_file::finished(table)?;
    if let Some(other) = finished.iter().find(|f| digests.get(f.name.as_str()) != Some(&f.spec)) {
        bail!(
            "{} has {}, which this study does not make: the study was changed; move the table away, or name another folder with --to",
            table.display(),
            other.name
        );
    }
    let mut waiting: VecDeque<&Training> =
        study.trainings.iter().filter(|t| finished.iter().all(|f| f.name != t.name)).collect();
    if !finished.is_empty() {
        output::note(format_args!("{} of {} trainings have ended before", finished.len(), study.trainings.len()));
    }
    let mut reached = Reached::new(access).await?;
    let mut known = if waiting.is_empty() { HashMap::new() } else { jobs_by_name(&mut reached.client).await? };
    let mut running: Vec<(&Training, String)> = Vec::new();
    let mut failed = Vec::new();
    loop {
        while running.len() < study.at_a_time
            && let Some(training) = waiting.pop_front()
        {
            let ids = known.remove(&training.name).unwrap_or_default();
            let id = match adopt(&mut reached.client, training, &ids).await? {
                Some(id) => id,
                None => {
                    let submitted = reached.client.submit(training.toml.clone()).await;
                    submitted.with_context(|| format!("submit {}", training.name))?
                }
            };
            running.push((training, id));
        }
        if running.is_empty() {
            return Ok(Outcome { finished, failed });
        }
        let mut still = Vec::new();
        for (training, id) in running {
            let Some(job) = reached.job(&id).await?.filter(|job| is_ended(job.state())) else {
                still.push((training, id));
                continue;
            };
            match loss(&job) {
                Ok(loss) => {
                    finished.push(Finished { name: training.name.clone(), spec: training.digest(), job: id, loss });
                    runs_file::write(table, &study.trainings, &finished)?;
                    let num_ended = finished.len() + failed.len();
                    output::note(format_args!(
                        "{}: loss {loss:.4} ({num_ended} of {})",
                        training.name,
                        study.trainings.len()
                    ));
                }
                Err(reason) => {
                    output::note(format_args!("{}: {reason}", training.name));
                    failed.push((training.name.clone(), reason));
                }
            }
        }
        running = still;
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Ids of the coordinator's jobs, the newest first.
async fn jobs_by_name(client: &mut Client) -> Result<HashMap<String, Vec<String>>> {
    let (jobs, _) = client.jobs(MAX_LISTED, String::new()).await?;
    let mut by_name: HashMap<String, Vec<String>> = HashMap::new();
    for job in jobs {
        by_name.entry(job.name).or_default().push(job.id);
    }
    Ok(by_name)
}

/// The newest of these jobs that makes exactly this training and has not failed.
async fn adopt(client: &mut Client, training: &Training, ids: &[String]) -> Result<Option<String>> {
    for id in ids {
        let found = client.job(id, false).await?;
        if is_ended(found.state()) && found.state() != proto::JobState::Done {
            continue;
        }
        let Ok(mut spec) = job::parse(&found.job_toml) else { continue };
        // The coordinator has filled in where its checkpoints are.
        spec.checkpoint.path.clone_from(&training.spec.checkpoint.path);
        if spec == training.spec {
            return Ok(Some(id.clone()));
        }
    }
    Ok(None)
}

/// The loss at its last step, on held-out text; else why there is none.
fn loss(job: &proto::Job) -> Result<f64, String> {
    if job.state() != proto::JobState::Done {
        return Err(format!("{} ended as {}: {}", job.id, state_word(job.state()), job.reason));
    }
    let last = job.validations.iter().rev().find(|v| v.step == job.total_steps);
    match last {
        Some(validation) if validation.ce.is_finite() && validation.ce > 0.0 => Ok(validation.ce),
        Some(validation) => Err(format!("{} ended with a loss of {}", job.id, validation.ce)),
        None => Err(format!("{} has no validation of its last step, {}", job.id, job.total_steps)),
    }
}
