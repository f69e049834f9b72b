//! When this coordinator leads, and what others are told while it does not.
//!
//! ```text
//!   standby ──campaign──> leads: a driver, with a machine that goes on from the store
//!      ^                    |
//!      '── lease lost ──────'   the machine is dropped, the streams of workers end
//! ```
//!
//! Deliberately absent: decisions about jobs, and how leadership is won (`store::etcd`).

use std::path::PathBuf;

use tokio::sync::{oneshot, watch};
use toroid_proto as proto;
use toroid_torus::ids::Term;

use crate::clock::random_number;
use crate::config::{Config, refuse_empty};
use crate::driver::{Driver, Ended};
use crate::error::CoordinatorError;
use crate::files::{Away, Place};
use crate::handle::{AskError, Command, Handle, Question, Standby};
use crate::machine::{self, Limits};
use crate::store::etcd::{Candidate, EtcdConfig, Sight};
use crate::store::{RedbStore, Store, StoreError};
use crate::tokens::TokenTable;

/// What this coordinator is now.
#[derive(Clone)]
enum Role {
    Standby(Standby),
    Leads(Handle),
}

/// How services reach whoever decides.
#[derive(Clone)]
pub(crate) struct Leader(watch::Receiver<Role>);

impl Leader {
    /// Waits until this coordinator leads.
    pub async fn leads(&mut self) {
        if self.0.wait_for(|role| matches!(role, Role::Leads(_))).await.is_err() {
            // Nobody will.
            std::future::pending::<()>().await;
        }
    }

    /// The driver, while this coordinator leads.
    pub fn handle(&self) -> Result<Handle, Standby> {
        match &*self.0.borrow() {
            Role::Leads(handle) => Ok(handle.clone()),
            Role::Standby(standby) => Err(standby.clone()),
        }
    }

    pub async fn ask<T>(
        &self,
        question: impl FnOnce(oneshot::Sender<Result<T, AskError>>) -> Question,
    ) -> Result<T, AskError> {
        self.handle()?.ask(question).await
    }

    pub async fn order<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, AskError>>) -> Command,
    ) -> Result<T, AskError> {
        self.handle()?.order(command).await
    }

    /// Who leads, as far as it is known here.
    pub async fn who(&self) -> proto::GetLeaderResponse {
        let standby = match self.ask(|answer| Question::Leader { answer }).await {
            Ok(leader) => return leader,
            Err(AskError::Standby(standby)) => standby,
            Err(error) => Standby { leader: None, term: 0, reason: error.to_string() },
        };
        let Standby { leader, term, reason } = standby;
        proto::GetLeaderResponse { leads: false, address: leader.unwrap_or_default(), term, reason }
    }
}

/// A coordinator process, but for its services.
pub(crate) struct Coordinator {
    config: Config,
    limits: Limits,
    data_dir: PathBuf,
    /// Where users and workers reach it, `http://host:port`.
    address: String,
    role: watch::Sender<Role>,
    /// For whoever lets calls in.
    tokens: watch::Sender<TokenTable>,
    /// How often it was asked to end.
    asked: watch::Receiver<u32>,
}

impl Coordinator {
    pub fn new(
        config: Config,
        limits: Limits,
        data_dir: PathBuf,
        address: String,
        asked: watch::Receiver<u32>,
    ) -> Coordinator {
        let starts = Standby { leader: None, term: 0, reason: "it starts".into() };
        let (role, tokens) = (watch::channel(Role::Standby(starts)).0, watch::channel(TokenTable::default()).0);
        Coordinator { config, limits, data_dir, address, role, tokens, asked }
    }

    pub fn leader(&self) -> Leader {
        Leader(self.role.subscribe())
    }

    pub fn tokens(&self) -> watch::Receiver<TokenTable> {
        self.tokens.subscribe()
    }

    /// Leads, now or when it is its turn, until it is asked to end.
    pub async fn lead(&self) -> Result<(), CoordinatorError> {
        match self.config.etcd.clone() {
            Some(etcd) => self.take_turns(etcd).await,
            None => self.lead_alone().await,
        }
    }

    async fn lead_alone(&self) -> Result<(), CoordinatorError> {
        let store_path = self.data_dir.join("coordinator.redb");
        refuse_empty(&store_path, &self.data_dir.join("jobs"))?;
        let mut heard = Term::default();
        loop {
            let store = Box::new(RedbStore::open_beyond(&store_path, heard)?);
            // The store of this turn is closed before the next opens it.
            match self.drive(store).await?.0 {
                Ended::Asked => return Ok(()),
                Ended::Deposed { reason } => return Err(StoreError::Deposed { reason }.into()),
                Ended::Behind { beyond, reason } => {
                    tracing::warn!("leads anew: {reason}");
                    self.stand_by(None, 0, reason);
                    heard = heard.max(beyond);
                }
            }
        }
    }

    async fn take_turns(&self, etcd: EtcdConfig) -> Result<(), CoordinatorError> {
        let id = format!("{:016x}", random_number()?);
        tracing::info!("waits for its turn to lead: {etcd:?}");
        let mut candidate = Candidate::new(etcd, self.address.clone(), id, self.limits.lease());
        let mut asked = self.asked.clone();
        loop {
            let (sight, seen) = watch::channel(Sight::default());
            let store = tokio::select! {
                store = candidate.campaign(&sight) => store,
                () = self.show(seen) => continue,
                _ = asked.wait_for(|times| *times > 0) => return Ok(()),
            };
            let reason = match self.drive(Box::new(store)).await {
                Ok((Ended::Asked, store)) => {
                    if let Some(mut store) = store {
                        store.resign().await;
                    }
                    return Ok(());
                }
                Ok((Ended::Behind { beyond, reason }, store)) => {
                    tracing::warn!("gives up its leadership, to lead anew with a greater term: {reason}");
                    self.stand_by(None, 0, reason);
                    candidate.lead_beyond(beyond);
                    if let Some(mut store) = store {
                        store.resign().await;
                    }
                    continue;
                }
                Ok((Ended::Deposed { reason }, _)) | Err(CoordinatorError::Store(StoreError::Deposed { reason })) => {
                    tracing::warn!("this coordinator does not lead any more, training goes on: {reason}");
                    self.stand_by(None, 0, reason);
                    continue;
                }
                Err(error @ CoordinatorError::Panic(_)) => return Err(error),
                Err(error) => error.to_string(),
            };
            // Another may see what this one does not; the lease ends meanwhile.
            tracing::error!("this coordinator cannot lead, and tries again: {reason}");
            self.stand_by(None, 0, format!("it cannot: {reason}"));
            tokio::select! {
                () = tokio::time::sleep(self.limits.failure_timeout) => {}
                _ = asked.wait_for(|times| *times > 0) => return Ok(()),
            }
        }
    }

    fn stand_by(&self, leader: Option<String>, term: u64, reason: String) {
        self.tokens.send_replace(TokenTable::default());
        self.role.send_replace(Role::Standby(Standby { leader, term, reason }));
    }

    /// Has services say what this standby sees. Ends only with whoever looks.
    async fn show(&self, mut seen: watch::Receiver<Sight>) {
        let mut told = None;
        while seen.changed().await.is_ok() {
            let Sight { leader, trouble } = seen.borrow_and_update().clone();
            let (address, term) = leader.map_or((None, 0), |leader| (Some(leader.address), leader.term.get()));
            let reason = match (&trouble, &address) {
                (Some(trouble), _) => {
                    format!("it does not reach the store, training goes on and decisions wait: {trouble}")
                }
                (None, Some(address)) => format!("{address} does, with term {term}"),
                (None, None) => "nobody does yet".into(),
            };
            if told.as_ref() != Some(&reason) {
                tracing::info!("does not lead: {reason}");
                told = Some(reason.clone());
            }
            self.stand_by(address, term, reason);
        }
    }

    /// Leads with this store until that is over.
    async fn drive(&self, store: Box<dyn Store>) -> Result<(Ended, Option<Box<dyn Store>>), CoordinatorError> {
        let jobs_dir = self.data_dir.join("jobs");
        let machine_config = machine::Config {
            jobs_dir: jobs_dir.to_string_lossy().into_owned(),
            limits: self.limits,
            term: store.tenure().term(),
            retention: self.config.retention,
            policy: self.config.policy.clone(),
            join_token: self.config.join_token.clone(),
        };
        let shared = self.config.etcd.is_some().then(|| store.tenure().term());
        let place = Place { jobs_dir, shared, carried: None, away: Away::default() };
        let (role, address, asked) = (self.role.clone(), self.address.clone(), self.asked.clone());
        let tokens = self.tokens.clone();
        let (folder, runtime) = (self.data_dir.display().to_string(), tokio::runtime::Handle::current());
        let term = store.tenure().term().get();
        // A thread of its own: durable writes block.
        let driving = tokio::task::spawn_blocking(move || {
            runtime.block_on(async move {
                let (driver, handle) = Driver::open(store, machine_config, place, &address, asked, tokens).await?;
                tracing::info!(folder, term, "the coordinator is ready");
                role.send_replace(Role::Leads(handle));
                driver.run().await
            })
        });
        driving.await.map_err(CoordinatorError::Panic)?
    }
}
