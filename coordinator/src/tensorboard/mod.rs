//! Event files for TensorBoard beside `curve.csv`, so that `tensorboard --logdir` on a job's folder shows it while it trains.
//!
//! ```text
//!   driver <── questions: which curves have grown? the rows from step n on ── exporter ── events ──> tensorboard/events.out.tfevents...
//! ```
//!
//! The curve is what counts, and these files are made of it by one who reads it as any user does, a second behind: the driver never waits for them,
//! and nothing that goes wrong with them touches a job. Whoever begins to lead reads what is there, and goes on with what is missing
//! ([decision 74](../../../docs/decisions/74-tensorboard-reads-the-curve.md)).
//!
//! Deliberately absent: histograms, graphs, text; a protocol to TensorBoard.

mod events;
mod folder;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use toroid_torus::ids::JobId;

use crate::clock::since_epoch;
use crate::handle::{AskError, Export, Exported, Question};
use crate::lead::Leader;
use folder::{Folder, Mark};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

pub(crate) struct Exporter {
    leader: Leader,
    jobs_dir: PathBuf,
    /// Of the leadership that the folders are known from.
    term: u64,
    jobs: BTreeMap<JobId, Exports>,
}

/// One job's files.
#[derive(Default)]
struct Exports {
    /// `None`: as they are on disk is not known yet.
    folder: Option<Folder>,
    /// Something could not be written or read, and that has been said.
    is_stalled: bool,
}

/// Why a job's files are not as they should be, for now.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Panic(#[from] tokio::task::JoinError),
}

impl Exporter {
    pub fn new(leader: Leader, jobs_dir: PathBuf) -> Exporter {
        Exporter { leader, jobs_dir, term: 0, jobs: BTreeMap::new() }
    }

    /// For as long as somebody waits for it.
    pub async fn run(mut self) {
        loop {
            // Who does not lead has nothing to write.
            if let Ok(exports) = self.leader.ask(|answer| Question::Exports { answer }).await {
                self.round(exports).await;
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn round(&mut self, exports: Vec<Export>) {
        let term = exports.first().map_or(self.term, |export| export.term);
        if term != self.term {
            // Another has led meanwhile.
            (self.term, self.jobs) = (term, BTreeMap::new());
        }
        self.jobs.retain(|job, _| exports.iter().any(|export| export.job == *job));
        for export in exports {
            let of_job = self.jobs.entry(export.job.clone()).or_default();
            let (folder, result) = update(&self.leader, &self.jobs_dir, &export, of_job.folder.take()).await;
            of_job.folder = folder;
            match result {
                Ok(()) if of_job.is_stalled => {
                    tracing::info!(job = export.job.as_str(), "the files for TensorBoard are written again");
                    of_job.is_stalled = false;
                }
                Err(error) if !of_job.is_stalled => {
                    tracing::warn!(
                        job = export.job.as_str(),
                        "the files for TensorBoard wait, training goes on: {error}"
                    );
                    of_job.is_stalled = true;
                }
                _ => {}
            }
        }
    }
}

/// Writes what is new of a job. The folder as it is then; `None`: it is to be looked at anew.
async fn update(
    leader: &Leader,
    jobs_dir: &std::path::Path,
    export: &Export,
    folder: Option<Folder>,
) -> (Option<Folder>, Result<(), ExportError>) {
    let mut folder = match folder {
        // One that has ended may go on: what is there is looked at anew.
        Some(folder) if export.is_ended || !folder.is_complete => folder,
        _ => match found(leader, jobs_dir, export).await {
            Ok(folder) => folder,
            Err(error) => return (None, Err(error)),
        },
    };
    let has_all = export.last_step < folder.next_step && !export.is_ended;
    if !export.is_cut && (folder.is_complete || has_all) {
        return (Some(folder), Ok(()));
    }
    loop {
        let Exported { cut_to, steps, validations } =
            match rows(leader, export, folder.next_step, folder.next_validation).await {
                Ok(rows) => rows,
                Err(error) => return (Some(folder), Err(error.into())),
            };
        if let Some(kept) = cut_to
            && kept + 1 < folder.next_step
        {
            folder.begin_again(kept + 1);
            continue;
        }
        let is_last = steps.last().is_none_or(|record| record.step >= export.last_step);
        let (ended, wall_time) = (export.is_ended && is_last, since_epoch().as_secs_f64());
        let writing = tokio::task::spawn_blocking(move || {
            let written = folder.append(wall_time, &steps, &validations, ended);
            (folder, written)
        });
        folder = match writing.await {
            Ok((folder, Ok(()))) => folder,
            Ok((folder, Err(error))) => return (Some(folder), Err(error.into())),
            Err(error) => return (None, Err(error.into())),
        };
        if is_last {
            return (Some(folder), Ok(()));
        }
    }
}

/// What is there of a job. Where it is not of this curve, it counts no more.
async fn found(leader: &Leader, jobs_dir: &std::path::Path, export: &Export) -> Result<Folder, ExportError> {
    let (path, is_ended) = (jobs_dir.join(&*export.job), export.is_ended);
    let mut folder = tokio::task::spawn_blocking(move || Folder::open(&path, is_ended)).await??;
    if let Some(last) = folder.last {
        let kept = rows(leader, export, last.step, folder.next_validation).await?.steps;
        if kept.first().is_none_or(|record| Mark::of(record) != last) {
            folder.begin_again(1);
        }
    }
    Ok(folder)
}

async fn rows(leader: &Leader, export: &Export, from: u64, validations_from: u64) -> Result<Exported, AskError> {
    leader.ask(|answer| Question::Export { job: export.job.clone(), from, validations_from, answer }).await
}
