//! The connections of a process of players: one for each worker, as real workers have them, or one for several. Behind agents, which are in this
//! process as well and are those of `toroid agent`, each agent has one. Its workers call it without a socket: on a cluster they are on machines of
//! their own, so what they cost is nothing that is to be measured.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tonic::transport::{Channel, Endpoint};
use toroid_proto::Register;
use toroid_proto::worker_service_server::WorkerServiceServer;
use toroid_security::Credentials;
use toroid_worker::control::agent;
use toroid_worker::control::carrier::{DialError, Opened, endpoint_of, register_on};

/// Handshakes that go on at a time. All players come from one address, of which a coordinator lets fewer begin than it would of as many hosts.
const MAX_HANDSHAKES: usize = 64;
/// How long an attempt may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Connections {
    coordinator: String,
    credentials: Credentials,
    /// Workers of one connection.
    per: usize,
    shared: Vec<Mutex<Option<Channel>>>,
    handshakes: Arc<Semaphore>,
    /// After which a coordinator is left.
    silence: Duration,
    agents: Option<Agents>,
}

type Agent = WorkerServiceServer<agent::Local>;

/// The agents of this process.
#[derive(Default)]
struct Agents {
    /// Workers of one agent.
    per: usize,
    /// By number, once they are started.
    started: OnceLock<Vec<Agent>>,
}

impl Connections {
    /// The same by agents, each of so many workers. They dial when they are started.
    pub fn by_agents(coordinator: String, credentials: Credentials, per: usize, silence: Duration) -> Connections {
        let agents = Some(Agents { per, ..Agents::default() });
        Connections { agents, ..Connections::new(coordinator, credentials, (1, 0), silence) }
    }

    /// Starts the agents of workers of these numbers, `0..num`; none where there are to be none.
    pub fn start_agents(&self, num: usize, first: usize) {
        let Some(agents) = &self.agents else { return };
        let start = |number| {
            let name = format!("agent-{first}-{number}");
            let (service, speaking) = agent::agent(agent::Config {
                coordinators: vec![self.coordinator.clone()],
                credentials: self.credentials.clone(),
                host: name.clone(),
                name,
                failure_timeout: self.silence,
            });
            tokio::spawn(speaking);
            service
        };
        agents.started.get_or_init(|| (0..num.div_ceil(agents.per)).map(start).collect());
    }

    /// For workers of these numbers, `0..num`, of which `per` share one. `silence`: after which a coordinator is left.
    pub fn new(
        coordinator: String,
        credentials: Credentials,
        (per, num): (usize, usize),
        silence: Duration,
    ) -> Connections {
        let shared = if per == 1 { 0 } else { num.div_ceil(per) };
        let shared = (0..shared).map(|_| Mutex::default()).collect();
        Connections {
            coordinator,
            credentials,
            per,
            shared,
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            silence,
            agents: None,
        }
    }

    /// Opens a stream for the worker of this number and registers on it.
    pub async fn open(&self, number: usize, register: Register) -> Result<Opened, DialError> {
        if let Some(agents) = &self.agents {
            let agent = agents.started.get().and_then(|started| started.get(number / agents.per));
            return register_on(agent.ok_or("its agent is not started")?.clone(), register).await;
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
        let endpoint: Endpoint = endpoint_of(&self.coordinator, PATIENCE, self.silence)?;
        Ok(toroid_security::connect(endpoint, &self.credentials).await?)
    }
}
