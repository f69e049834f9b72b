//! What an agent is told by who starts it.

use std::time::Duration;

use toroid_security::Credentials;

/// Of an agent.
#[derive(Debug, Clone)]
pub struct Config {
    /// `http://host:port` of each coordinator, of which one leads; at least one.
    pub coordinators: Vec<String>,
    pub credentials: Credentials,
    pub name: String,
    pub host: String,
    /// How long an attempt to connect may take, and a coordinator may be silent on the connection.
    pub failure_timeout: Duration,
}
