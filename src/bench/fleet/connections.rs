//! The connections of a process of players: one for each worker, as real workers have them, or one for several. Behind agents, which are in this
//! process as well and are those of `toroid agent`, each worker has one to its agent, and each agent one to the coordinator.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{Mutex, Semaphore};
use tonic::transport::{Channel, Endpoint};
use toroid_proto::Register;
use toroid_security::Credentials;
use toroid_worker::control::agent;
use toroid_worker::control::carrier::{DialError, Opened, UNIX, connect, endpoint_of, register_on};

/// Handshakes that go on at a time. All players come from one address, of which a coordinator lets fewer begin than it would of as many hosts.
const MAX_HANDSHAKES: usize = 64;
/// How long an attempt may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// After which a coordinator is left: that of real workers, whose pings the coordinator answers.
const SILENCE: Duration = Duration::from_secs(5);

pub struct Connections {
    coordinator: String,
    credentials: Credentials,
    /// Workers of one connection.
    per: usize,
    shared: Vec<Mutex<Option<Channel>>>,
    handshakes: Arc<Semaphore>,
    agents: Option<Agents>,
}

/// The agents of this process.
struct Agents {
    /// Their sockets, by number; it goes with this process.
    folder: tempfile::TempDir,
    /// Workers of one agent.
    per: usize,
}

impl Agents {
    fn socket(&self, number: usize) -> PathBuf {
        self.folder.path().join(number.to_string())
    }
}

impl Connections {
    /// The same by agents, each of so many workers. They dial when they are started.
    pub fn by_agents(coordinator: String, credentials: Credentials, per: usize) -> Result<Connections> {
        let folder = tempfile::tempdir().context("make a folder for the sockets of agents")?;
        let agents = Some(Agents { folder, per });
        Ok(Connections { agents, ..Connections::new(coordinator, credentials, 1, 0) })
    }

    /// Starts the agents of workers of these numbers, `0..num`; none where there are to be none.
    pub async fn start_agents(&self, num: usize, first: usize) -> Result<()> {
        let Some(agents) = &self.agents else { return Ok(()) };
        for number in 0..num.div_ceil(agents.per) {
            let name = format!("agent-{first}-{number}");
            let config = agent::Config {
                coordinators: vec![self.coordinator.clone()],
                credentials: self.credentials.clone(),
                host: name.clone(),
                name,
                failure_timeout: SILENCE,
            };
            let listener = agent::listen(&agents.socket(number)).await.context("start an agent")?;
            tokio::spawn(agent::run(listener, config));
        }
        Ok(())
    }

    /// For workers of these numbers, `0..num`.
    pub fn new(coordinator: String, credentials: Credentials, per: usize, num: usize) -> Connections {
        let shared = if per == 1 { 0 } else { num.div_ceil(per) };
        let shared = (0..shared).map(|_| Mutex::default()).collect();
        Connections {
            coordinator,
            credentials,
            per,
            shared,
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            agents: None,
        }
    }

    /// Opens a stream for the worker of this number and registers on it.
    pub async fn open(&self, number: usize, register: Register) -> Result<Opened, DialError> {
        if let Some(agents) = &self.agents {
            let address = format!("{UNIX}{}", agents.socket(number / agents.per).display());
            let endpoint = endpoint_of(&address, PATIENCE, SILENCE)?;
            return register_on(connect(&address, endpoint, &Credentials::none()).await?, register).await;
        }
        let Some(slot) = self.shared.get(number / self.per).filter(|_| self.per > 1) else {
            return register_on(self.dial().await?, register).await;
        };
        let mut channel = slot.lock().await;
        let found = match channel.clone() {
            Some(found) => found,
            None => channel.insert(self.dial().await?).clone(),
        };
        drop(channel);
        let opened = register_on(found, register).await;
        if opened.is_err() {
            // Whoever comes next dials anew.
            slot.lock().await.take();
        }
        opened
    }

    async fn dial(&self) -> Result<Channel, DialError> {
        let _handshake = self.handshakes.acquire().await?;
        let endpoint: Endpoint = endpoint_of(&self.coordinator, PATIENCE, SILENCE)?;
        Ok(toroid_security::connect(endpoint, &self.credentials).await?)
    }
}
