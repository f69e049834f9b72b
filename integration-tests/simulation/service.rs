//! What a coordinator's process sees of etcd and the time: the calls that it has under way, and what came of them.
//!
//! The product's own code waits here, as futures that the event loop polls whenever something has happened to their process. Each call has its deadline, as
//! the product's calls have.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use tokio::time::Instant;
use toroid_coordinator::store::etcd::service::{Answer, Page, Range, Service, Txn};
use toroid_coordinator::store::etcd::{CallError, Kind};

use crate::network::Micros;

/// Of etcd. Which one a process asks is its own affair.
pub const NUM_MEMBERS: usize = 3;

/// One of several coordinators.
pub type Seat = usize;

#[derive(Debug, Clone)]
pub enum Request {
    Txn(Txn),
    List(Range),
    Grant(Micros),
    Renew(i64),
    Revoke(i64),
    Compact,
    /// Answered when this key has another revision than that, at the latest.
    Watch(String, i64),
}

#[derive(Debug, Clone)]
pub enum Response {
    Txn(Answer),
    List(Page),
    Lease(i64),
    Done,
}

/// A call that etcd has not seen yet.
#[derive(Debug)]
pub struct Call {
    pub number: u64,
    pub member: usize,
    pub request: Request,
}

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Default)]
pub struct Shared {
    /// By the clock of its machine.
    pub now: Micros,
    origin: Option<Instant>,
    num_calls: u64,
    /// That were made since the event loop has looked.
    pub calls: Vec<Call>,
    pub answers: BTreeMap<u64, Result<Response, Kind>>,
    /// When somebody who waits wants to be polled at the latest.
    pub wake_at: Option<Micros>,
    pub spawned: Vec<Task>,
}

impl Shared {
    pub fn instant(&self, at: Micros) -> Instant {
        self.origin.expect("set when it was made") + Duration::from_micros(at)
    }

    fn micros(&self, at: Instant) -> Micros {
        let since = at.saturating_duration_since(self.origin.expect("set when it was made"));
        since.as_nanos().div_ceil(1000) as Micros
    }

    fn wake(&mut self, at: Micros) {
        self.wake_at = Some(self.wake_at.map_or(at, |wake| wake.min(at)));
    }
}

/// Etcd as one process sees it.
#[derive(Clone)]
pub struct Played {
    shared: Arc<Mutex<Shared>>,
    limit: Duration,
    member: usize,
    failures: BTreeMap<usize, String>,
}

impl Played {
    pub fn new(limit: Duration) -> Played {
        let shared = Shared { origin: Some(Instant::now()), ..Shared::default() };
        Played { shared: Arc::new(Mutex::new(shared)), limit, member: 0, failures: BTreeMap::new() }
    }

    pub fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().expect("nobody panics with it")
    }

    async fn call(&mut self, what: &str, request: Request, limit: Duration) -> Result<Response, CallError> {
        let member = self.member;
        let (number, until) = {
            let mut shared = self.shared();
            shared.num_calls += 1;
            let number = shared.num_calls;
            shared.calls.push(Call { number, member, request });
            (number, shared.now + limit.as_micros() as Micros)
        };
        let answered = std::future::poll_fn(|_| {
            let mut shared = self.shared();
            match shared.answers.remove(&number) {
                Some(answer) => Poll::Ready(answer),
                None if shared.now >= until => Poll::Ready(Err(Kind::Silent)),
                None => {
                    shared.wake(until);
                    Poll::Pending
                }
            }
        });
        answered.await.inspect(|_| self.failures.clear()).map_err(|kind| {
            let words = format!("could not {what}: member {member} of etcd: {kind:?}");
            self.failures.insert(member, words.clone());
            self.next();
            CallError { kind, words }
        })
    }
}

/// Of an answer to another question than was asked there is none.
fn other<T>(response: Response) -> T {
    panic!("{response:?} answers another question")
}

impl Service for Played {
    fn now(&self) -> Instant {
        let shared = self.shared();
        shared.instant(shared.now)
    }

    async fn sleep_until(&self, at: Instant) {
        std::future::poll_fn(|_| {
            let mut shared = self.shared();
            let at = shared.micros(at);
            if shared.now >= at {
                return Poll::Ready(());
            }
            shared.wake(at);
            Poll::Pending
        })
        .await;
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared().spawned.push(Box::pin(task));
    }

    async fn txn(&mut self, what: &'static str, txn: &Txn) -> Result<Answer, CallError> {
        let answer = self.call(what, Request::Txn(txn.clone()), self.limit).await?;
        Ok(if let Response::Txn(answer) = answer { answer } else { other(answer) })
    }

    async fn list(&mut self, what: &'static str, range: &Range) -> Result<Page, CallError> {
        let answer = self.call(what, Request::List(range.clone()), self.limit).await?;
        Ok(if let Response::List(page) = answer { page } else { other(answer) })
    }

    async fn grant(&mut self, ttl: Duration) -> Result<i64, CallError> {
        let answer = self.call("get a lease", Request::Grant(ttl.as_micros() as Micros), self.limit).await?;
        Ok(if let Response::Lease(lease) = answer { lease } else { other(answer) })
    }

    async fn renew(&mut self, lease: i64) -> Result<(), CallError> {
        self.call("renew the lease", Request::Renew(lease), self.limit).await.map(drop)
    }

    async fn revoke(&mut self, lease: i64) -> Result<(), CallError> {
        self.call("give the lease back", Request::Revoke(lease), self.limit).await.map(drop)
    }

    async fn compact(&mut self, _: i64) -> Result<(), CallError> {
        self.call("compact etcd's history", Request::Compact, self.limit).await.map(drop)
    }

    async fn watch(&mut self, key: &str, revision: i64, limit: Duration) {
        // Whatever it came to, it is looked at again.
        drop(self.call("watch the leader", Request::Watch(key.into(), revision), limit).await);
    }

    fn next(&mut self) {
        self.member = (self.member + 1) % NUM_MEMBERS;
    }

    fn failures(&self) -> String {
        self.failures.values().cloned().collect::<Vec<_>>().join("; ")
    }
}
