//! Where etcd is, and as whom it is asked.

use std::path::PathBuf;

use super::history::History;

/// Under which a cluster keeps its keys where nothing else is said.
pub const DEFAULT_PREFIX: &str = "/toroid/default";

/// Where etcd is, and as whom it is asked.
#[derive(Clone)]
pub struct EtcdConfig {
    /// `http://host:port` or `https://host:port` of its members; at least one.
    pub endpoints: Vec<String>,
    /// Of all keys, without a slash at its end: several clusters may share one etcd.
    pub prefix: String,
    /// Name and password.
    pub user: Option<(String, String)>,
    pub tls: Option<EtcdTls>,
    /// `None`: whoever runs etcd compacts it.
    pub history: Option<History>,
}

/// PEM files, read whenever a connection is made.
#[derive(Debug, Clone)]
pub struct EtcdTls {
    /// Certificates of those who sign etcd's.
    pub ca: PathBuf,
    /// Our own certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

impl EtcdConfig {
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> EtcdConfig {
        let endpoints = endpoints.into_iter().map(Into::into).collect();
        EtcdConfig {
            endpoints,
            prefix: DEFAULT_PREFIX.into(),
            user: None,
            tls: None,
            history: Some(History::default()),
        }
    }
}

/// Without the password.
impl std::fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let EtcdConfig { endpoints, prefix, user, tls, history: _ } = self;
        let user = user.as_ref().map(|(name, _)| name);
        write!(f, "etcd at {endpoints:?}, keys under {prefix}, as {user:?}, {tls:?}")
    }
}
