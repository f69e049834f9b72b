//! The connections of a process of players: one for each worker, as real workers have them, or one for several.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore};
use tonic::transport::{Channel, Endpoint};
use toroid_proto::Register;
use toroid_security::Credentials;
use toroid_worker::control::carrier::{DialError, Opened, endpoint_of, register_on};

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
}

impl Connections {
    /// For workers of these numbers, `0..num`.
    pub fn new(coordinator: String, credentials: Credentials, per: usize, num: usize) -> Connections {
        let shared = if per == 1 { 0 } else { num.div_ceil(per) };
        let shared = (0..shared).map(|_| Mutex::default()).collect();
        Connections { coordinator, credentials, per, shared, handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)) }
    }

    /// Opens a stream for the worker of this number and registers on it.
    pub async fn open(&self, number: usize, register: Register) -> Result<Opened, DialError> {
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
