//! A coordinator and workers on this machine, as child processes.
//!
//! ```text
//!   children   the processes: start, signal, cut off, end, logs       what the system tests and `Cluster` have in common
//!   network    a network whose cables can be cut
//!   Cluster    children that are kept alive                           `toroid local`, `chaos` and `bench`
//! ```
//!
//! Nothing about jobs is decided here. A [`Cluster`] replaces a child that ended, unless they keep ending without a step being made.

pub mod children;
pub mod network;

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{Signal, SignalKind, signal};
use toroid_proto::json::is_ended;

use crate::access::Access;
use crate::client::Client;
use crate::progress::Progress;
use children::{Children, Ended, Role, Settings, Special, last_words};

/// A restarted coordinator answers long before.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// After an interrupt, the coordinator has this long to take the job back.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(3);
/// A coordinator that does not answer has ended by then, or is at fault in another way.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(1);
/// Between the end of the coordinator and its next start: its port may still be busy.
const RESTART_PAUSE: Duration = Duration::from_millis(200);
/// Children may end so often without a step being made in between, beyond the number of workers.
const MAX_DEATHS: usize = 6;

pub struct Cluster {
    pub children: Children,
    pub progress: Progress,
    /// Children that ended since the last step.
    deaths: usize,
    max_deaths: usize,
}

impl Cluster {
    /// Starts nothing yet.
    pub fn new(settings: &Settings, progress: Progress) -> Result<Cluster> {
        Ok(Cluster { children: Children::new(settings)?, progress, deaths: 0, max_deaths: MAX_DEATHS })
    }

    pub fn url(&self) -> String {
        self.children.url()
    }

    /// As an admin.
    pub fn access(&self) -> Access {
        self.children.access()
    }

    pub async fn client(&self) -> Result<Client> {
        Client::find(&self.access()).await
    }

    /// Starts the coordinator. First of all, so that a folder in use is noticed before anything else happens.
    pub async fn open(&mut self) -> Result<Client> {
        self.children.start_coordinator().await?;
        match self.take_over().await {
            Ok(client) => Ok(client),
            Err(error) => Err(self.coordinators_words().await.unwrap_or(error)),
        }
    }

    /// Starts a worker; `dies_at` (`PHASE@STEP`) says where it is to kill itself.
    pub fn start_worker(&mut self, dies_at: Option<&str>) -> Result<String> {
        self.max_deaths += 1;
        self.start_child(dies_at)
    }

    fn start_child(&mut self, dies_at: Option<&str>) -> Result<String> {
        let failpoints = dies_at.map(|at| format!("kill={at}"));
        self.children.start_worker(Special { failpoints: failpoints.as_deref(), ..Special::default() })
    }

    /// Cancels what an earlier run in this folder left unfinished: it would take the workers.
    async fn take_over(&self) -> Result<Client> {
        let mut client = self.client().await?;
        for old in client.jobs(usize::MAX, String::new()).await?.0.iter().filter(|job| !is_ended(job.state())) {
            client.cancel(&old.id).await?;
            self.progress.line(&format!("cancelled {}, which an earlier run left unfinished", old.id));
        }
        Ok(client)
    }

    /// Why the coordinator ended, if it did: it listens before it opens its folder.
    async fn coordinators_words(&mut self) -> Option<anyhow::Error> {
        let ended = tokio::time::timeout(LAST_WORDS_TIMEOUT, self.children.ended()).await.ok()?;
        last_words(&ended.log, 0).map(anyhow::Error::msg)
    }

    /// A step was made.
    pub fn advanced(&mut self) {
        self.deaths = 0;
    }

    /// A child ended that should not have: another one takes over, unless they keep ending. `dies_at` is for a
    /// worker, whose id is returned.
    pub async fn replace(&mut self, ended: Ended, dies_at: Option<&str>) -> Result<Option<String>> {
        self.deaths += 1;
        let Ended { role, name, status, log } = ended;
        let words = last_words(&log, 0).map_or_else(String::new, |words| format!("; its last words: {words}"));
        if self.deaths > self.max_deaths {
            bail!("{} processes ended without a step being made, the last was {name} ({status}){words}", self.deaths);
        }
        match role {
            Role::Coordinator => {
                tokio::time::sleep(RESTART_PAUSE).await;
                self.children.restart_coordinator()?;
                let line = format!("the coordinator ended ({status}) and was started again on the same folder");
                self.progress.line(&line);
                Ok(None)
            }
            Role::Worker => {
                let spare = self.start_child(dies_at)?;
                let log = log.display();
                self.progress
                    .line(&format!("worker {name} ended ({status}), see {log}; {spare} was started as a spare"));
                Ok(Some(spare))
            }
        }
    }

    /// Cancels the job of a run that was interrupted.
    pub async fn interrupt(&self, id: &str) {
        self.progress.line(&format!("interrupted: cancelling {id}"));
        let cancel = async { self.client().await?.cancel(id).await };
        match tokio::time::timeout(CANCEL_TIMEOUT, cancel).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.progress.line(&format!("the job could not be cancelled: {error:#}")),
            Err(_) => self.progress.line("the coordinator did not answer in time; the next run here cancels the job"),
        }
    }

    /// Ends all children; `hurry` ends the waiting for them: they are killed as this process ends.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        tokio::select! {
            () = self.children.stop() => {}
            () = hurry => {}
        }
    }
}

/// What asks this process to end.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn new() -> Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt()).context("listen for SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("listen for SIGTERM")?,
        })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
