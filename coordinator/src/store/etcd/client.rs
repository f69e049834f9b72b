//! Calls to etcd: one at a time, each with a deadline, each at the member that answered last.
//!
//! The client library takes members in turn, dead ones too, and notices a silent one only by HTTP/2 pings, which etcd answers with
//! `too_many_pings` where they come more often than every 5 s. So here each member has a client of its own, a member that is silent beyond the deadline
//! of a call, or fails it, is left for the next, and nothing is kept alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tonic::Code;

use super::config::EtcdConfig;

/// Why a call came to nothing, in words that say what to do.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{words}")]
pub(super) struct CallError {
    pub kind: Kind,
    words: String,
}

/// What can be told apart by what etcd answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nothing came within the deadline: whether it was done is not known.
    Silent,
    NoSpace,
    NoQuorum,
    /// The user is not taken, or none is named where one must be.
    User,
    Permission,
    LeaseGone,
    Other,
}

/// The members of an etcd cluster.
#[derive(Clone)]
pub(super) struct Members {
    config: Arc<EtcdConfig>,
    current: usize,
    /// Of the current member.
    client: Option<Client>,
    /// How long one call may take.
    pub limit: Duration,
    /// Why each member's last call failed; empty once a call is answered.
    failures: BTreeMap<usize, CallError>,
}

impl Members {
    pub fn new(config: Arc<EtcdConfig>, limit: Duration) -> Members {
        Members { config, current: 0, client: None, limit, failures: BTreeMap::new() }
    }

    /// One attempt at one member. `what`: as in "could not `what`".
    pub async fn call<T, F>(&mut self, what: &str, call: impl FnOnce(Client) -> F + Send) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, Error>> + Send,
    {
        let limit = self.limit;
        let attempt = async { call(self.client().await?).await };
        let found = match tokio::time::timeout(limit, attempt).await {
            Ok(Ok(answer)) => {
                self.failures.clear();
                return Ok(answer);
            }
            Ok(Err(error)) => self.explain(what, &error),
            Err(_) => {
                let words = format!("{} did not answer within {:?}", self.endpoint(), self.limit);
                CallError { kind: Kind::Silent, words: format!("could not {what}: {words}") }
            }
        };
        self.failures.insert(self.current, found.clone());
        self.next();
        Err(found)
    }

    /// The next call goes to the member after this one.
    pub fn next(&mut self) {
        self.client = None;
        self.current = (self.current + 1) % self.config.endpoints.len();
    }

    /// What every member that was tried since the last answer has said, each sentence once.
    pub fn failures(&self) -> String {
        let mut words: Vec<&str> = self.failures.values().map(|error| error.words.as_str()).collect();
        words.dedup();
        words.join("; ")
    }

    fn endpoint(&self) -> &str {
        &self.config.endpoints[self.current]
    }

    async fn client(&mut self) -> Result<Client, Error> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        let options = self.config.options().map_err(Error::IoError)?.with_connect_timeout(self.limit);
        let client = Client::connect([self.endpoint()], Some(options)).await?;
        Ok(self.client.insert(client).clone())
    }

    fn explain(&self, what: &str, error: &Error) -> CallError {
        let (kind, found) = match error {
            Error::GRpcStatus(status) => (kind_of(status.code(), status.message()), innermost(status)),
            Error::LeaseKeepAliveError(words) => (Kind::LeaseGone, words.clone()),
            other => (Kind::Other, innermost(other)),
        };
        let (endpoint, prefix) = (self.endpoint(), &self.config.prefix);
        let user = self.config.user.as_ref().map_or("", |(name, _)| name);
        let advice = match kind {
            Kind::NoSpace => {
                "; etcd has no space left: compact and defragment it (etcdctl compact, etcdctl defrag) or raise its --quota-backend-bytes, then \
                 take the alarm back (etcdctl alarm disarm)"
                    .into()
            }
            Kind::NoQuorum => {
                "; fewer than half of the members of etcd run and reach one another: start those that are missing".into()
            }
            Kind::User if user.is_empty() => {
                "; this etcd wants to know who asks: name a user with --etcd-user and its password in TOROID_ETCD_PASSWORD".into()
            }
            Kind::User => format!("; etcd does not take the user `{user}` with this password: see --etcd-user and TOROID_ETCD_PASSWORD"),
            Kind::Permission => format!(
                "; the user `{user}` of etcd must be allowed to read and write what is under {prefix}: etcdctl role grant-permission ROLE readwrite \
                 {prefix}/ --prefix=true"
            ),
            Kind::LeaseGone => "; the lease of this leadership has run out".into(),
            Kind::Silent | Kind::Other => String::new(),
        };
        CallError { kind, words: format!("could not {what}: {endpoint} says: {found}{advice}") }
    }
}

fn kind_of(code: Code, message: &str) -> Kind {
    let says = |words: &str| message.contains(words);
    if says("database space exceeded") {
        Kind::NoSpace
    } else if says("no leader") || says("etcdserver: request timed out") || says("not enough started members") {
        Kind::NoQuorum
    } else if says("authentication failed")
        || says("user name is empty")
        || says("invalid auth token")
        || code == Code::Unauthenticated
    {
        Kind::User
    } else if code == Code::PermissionDenied {
        Kind::Permission
    } else if says("requested lease not found") {
        Kind::LeaseGone
    } else {
        Kind::Other
    }
}

/// The last cause of an error: the words of the system.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    // A status has its message among other things that nobody wants to read.
    error.downcast_ref::<tonic::Status>().map_or_else(|| error.to_string(), |status| status.message().into())
}

impl EtcdConfig {
    /// Certificates are read each time: they are renewed in place.
    fn options(&self) -> std::io::Result<ConnectOptions> {
        // A member without a leader fails a watch instead of keeping silent.
        let mut options = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        if let Some(tls) = &self.tls {
            let read = |path: &std::path::Path| {
                std::fs::read(path).map_err(|e| std::io::Error::other(format!("cannot read {}: {e}", path.display())))
            };
            let mut trusted = TlsOptions::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
            if let Some((certificate, key)) = &tls.identity {
                trusted = trusted.identity(Identity::from_pem(read(certificate)?, read(key)?));
            }
            options = options.with_tls(trusted);
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_etcd_answers_is_told_apart_and_says_what_to_do() {
        let config = EtcdConfig { user: Some(("toroid".into(), "x".into())), ..EtcdConfig::new(["http://e:1"]) };
        let members = Members::new(Arc::new(config), Duration::from_millis(500));
        let check = |code: Code, message: &str, expected: Kind, words: &str| {
            let found = members.explain("store a decision", &Error::GRpcStatus(tonic::Status::new(code, message)));
            assert_eq!(found.kind, expected, "{found}");
            let text = found.to_string();
            let has_all =
                ["could not store a decision: http://e:1 says: ", message, words].iter().all(|w| text.contains(w));
            assert!(has_all, "{text}");
        };
        check(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", Kind::NoSpace, "alarm disarm");
        check(Code::Unavailable, "etcdserver: no leader", Kind::NoQuorum, "start those that are missing");
        check(Code::Unavailable, "etcdserver: request timed out", Kind::NoQuorum, "start those");
        let password = "etcdserver: authentication failed, invalid user ID or password";
        check(Code::InvalidArgument, password, Kind::User, "`toroid` with this password");
        check(Code::PermissionDenied, "etcdserver: permission denied", Kind::Permission, "readwrite /toroid/default/");
        check(Code::NotFound, "etcdserver: requested lease not found", Kind::LeaseGone, "run out");
        check(Code::Internal, "etcdserver: something new", Kind::Other, "something new");
    }
}
