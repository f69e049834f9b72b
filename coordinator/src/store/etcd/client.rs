//! Calls to etcd: one at a time, each with a deadline, each at the member that answered last.
//!
//! The client library takes members in turn, dead ones too, and notices a silent one only by HTTP/2 pings, which etcd answers with
//! `too_many_pings` where they come more often than every 5 s. So here each member has a client of its own, a member that is silent beyond the deadline
//! of a call, or fails it, is left for the next, and nothing is kept alive.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Certificate, Client, CompareOp, ConnectOptions, DeleteOptions, Error, GetOptions, Identity, KeyValue, PutOptions,
    TlsOptions, TxnOp, TxnOpResponse, WatchOptions, WatchResponse,
};
use tokio::time::Instant;
use tonic::Code;

use super::config::EtcdConfig;
use super::service::{Answer, CallError, Compare, Kind, Op, Page, Pair, Range, Service, Txn};

/// Bytes of an answer with many keys, and how long it may take.
const ANSWER_BYTES: usize = 64 << 20;
const READ_LIMIT: Duration = Duration::from_secs(10);

/// The members of an etcd cluster.
#[derive(Clone)]
pub struct Members {
    config: Arc<EtcdConfig>,
    current: usize,
    /// Of the current member.
    client: Option<Client>,
    /// How long one call may take.
    limit: Duration,
    /// Why each member's last call failed; empty once a call is answered.
    failures: BTreeMap<usize, CallError>,
}

impl Members {
    /// `limit`: how long one call may take.
    pub fn new(config: Arc<EtcdConfig>, limit: Duration) -> Members {
        Members { config, current: 0, client: None, limit, failures: BTreeMap::new() }
    }

    /// One attempt at one member. `what`: as in "could not `what`".
    async fn call<T, F>(&mut self, what: &str, call: impl FnOnce(Client) -> F + Send) -> Result<T, CallError>
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

impl Service for Members {
    fn now(&self) -> Instant {
        Instant::now()
    }

    async fn sleep_until(&self, at: Instant) {
        tokio::time::sleep_until(at).await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }

    async fn txn(&mut self, what: &'static str, txn: &Txn) -> Result<Answer, CallError> {
        let asked = etcd_client::Txn::new()
            .when(txn.when.iter().map(to_compare).collect::<Vec<_>>())
            .and_then(txn.then.iter().map(to_op).collect::<Vec<_>>())
            .or_else(txn.otherwise.iter().map(to_op).collect::<Vec<_>>());
        let answer = self.call(what, |mut client| async move { client.txn(asked).await }).await?;
        let found = answer.op_responses().into_iter().filter_map(|answer| match answer {
            TxnOpResponse::Get(mut get) => Some(get.take_kvs()),
            _ => None,
        });
        let pairs = found.flatten().map(to_pair).collect::<Result<_, _>>()?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        Ok(Answer { succeeded: answer.succeeded(), revision, pairs })
    }

    async fn list(&mut self, what: &'static str, range: &Range) -> Result<Page, CallError> {
        let options = GetOptions::new().with_range(range.end.as_str()).with_limit(range.limit);
        let options = if range.keys_only { options.with_keys_only() } else { options };
        let from = range.from.as_str();
        let limit = self.limit;
        self.limit = READ_LIMIT.min(limit * 8);
        let get = |client: Client| async move {
            client.kv_client().max_decoding_message_size(ANSWER_BYTES).get(from, Some(options)).await
        };
        let answer = self.call(what, get).await;
        self.limit = limit;
        let mut answer = answer?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let has_more = answer.more();
        let pairs = answer.take_kvs().into_iter().map(to_pair).collect::<Result<_, _>>()?;
        Ok(Page { revision, pairs, has_more })
    }

    async fn grant(&mut self, ttl: Duration) -> Result<i64, CallError> {
        let ttl_s = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let grant = |mut client: Client| async move { client.lease_grant(ttl_s, None).await };
        // Some members give longer ones than were asked for; never shorter.
        Ok(self.call("get a lease", grant).await?.id())
    }

    async fn renew(&mut self, lease: i64) -> Result<(), CallError> {
        let renew = |mut client: Client| async move { client.lease_keep_alive(lease).await };
        self.call("renew the lease", renew).await.map(drop)
    }

    async fn revoke(&mut self, lease: i64) -> Result<(), CallError> {
        let revoke = |mut client: Client| async move { client.lease_revoke(lease).await };
        self.call("give the lease back", revoke).await.map(drop)
    }

    async fn compact(&mut self, revision: i64) -> Result<(), CallError> {
        let compact = |mut client: Client| async move {
            match client.compact(revision, None).await {
                // By somebody else who shares this etcd.
                Err(Error::GRpcStatus(status)) if status.message().contains("has been compacted") => Ok(()),
                answer => answer.map(drop),
            }
        };
        self.call("compact etcd's history", compact).await
    }

    async fn watch(&mut self, key: &str, revision: i64, limit: Duration) {
        let watching = async move |mut client: Client| {
            let options = WatchOptions::new().with_start_revision(revision + 1);
            let mut stream = client.watch(key, Some(options)).await?;
            while let Some(answer) = stream.message().await? {
                if is_news(&answer) {
                    break;
                }
            }
            Ok(())
        };
        // Whatever it came to, it is looked at again: at another member where this one fails or says nothing at all.
        let mut members = Members { limit, ..self.clone() };
        if let Err(error) = members.call("watch the leader", watching).await {
            tracing::trace!("{error}");
        }
    }

    fn next(&mut self) {
        self.client = None;
        self.current = (self.current + 1) % self.config.endpoints.len();
    }

    fn failures(&self) -> String {
        // Each sentence once.
        let mut words: Vec<&str> = self.failures.values().map(|error| error.words.as_str()).collect();
        words.dedup();
        words.join("; ")
    }
}

fn to_compare(compare: &Compare) -> etcd_client::Compare {
    match compare {
        Compare::Created { key, revision } => {
            etcd_client::Compare::create_revision(key.as_str(), CompareOp::Equal, *revision)
        }
        Compare::Modified { key, revision } => {
            etcd_client::Compare::mod_revision(key.as_str(), CompareOp::Equal, *revision)
        }
    }
}

fn to_op(op: &Op) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| PutOptions::new().with_lease(lease));
            TxnOp::put(key.as_str(), value.as_slice(), options)
        }
        Op::Get { key } => TxnOp::get(key.as_str(), None),
        Op::Delete { key } => TxnOp::delete(key.as_str(), None),
        Op::DeletePrefix { prefix } => TxnOp::delete(prefix.as_str(), Some(DeleteOptions::new().with_prefix())),
    }
}

fn to_pair(pair: KeyValue) -> Result<Pair, CallError> {
    let (created, modified) = (pair.create_revision(), pair.mod_revision());
    let (key, value) = pair.into_key_value();
    let words = |e| format!("a key of ours in etcd is no text: {e}");
    let key = String::from_utf8(key).map_err(|e| CallError { kind: Kind::Other, words: words(e) })?;
    Ok(Pair { key, value, created, modified })
}

/// It was changed, or the watch has ended: compacted, canceled.
fn is_news(answer: &WatchResponse) -> bool {
    answer.canceled() || answer.compact_revision() > 0 || !answer.events().is_empty()
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
