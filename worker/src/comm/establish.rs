//! Brings up the links of an epoch: dials, accepts, and keeps what can be kept.
//!
//! ```text
//!   peer with a higher rank, no connection:  dial -> connecting -> handshake -> up
//!                                             ^________ retry ______|           (nobody listens, "not yet", cut off)
//!   peer with a lower rank, no connection:   wait for its call    -> handshake -> up
//!   peer whose connection is kept:           resumption out, resumption in     -> up
//!                                             |_ lost: as if there had been none
//! ```
//!
//! Whose call can be trusted is known only after its proof. So a call that fails, whether of a stranger or of a rank with the wrong
//! key, job or epoch, is refused, logged and remembered in [`Listener::refusals`], and never ends the wait for the right one; if
//! that does not come in time, the error says who was refused and why. The dialer, who has called an address that its own coordinator
//! named, takes a refusal as final, except for "not yet": a peer that has not advanced to this epoch is called again.
//!
//! A dialer tries the kinds of link that its worker may use, the fastest first: memory shared with a peer in the same network namespace,
//! which answers at once or is not there, then TCP. A kind that a peer refuses is followed by the next.
//!
//! All of it is one loop around poll(2), ended at once by the fence. A host *name* in a peer's address is resolved on another thread, at
//! each attempt, because a restarted peer may have moved. What fails for a moment (no descriptor is free, a call was broken off before it
//! was accepted) is told in the log and tried again; only what fails for good ends the wait.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use toroid_session::{MissingLink, PeerAddr};
use toroid_torus::ids::{Epoch, JobId, Rank, WorkerId};

use super::accept::Refused;
use super::conn::{Conn, Turn};
use super::handshake::{Acceptor, Dialer, Identity, MAX_JOB_ID_LEN, Verdict, Why, resume_proof};
use super::links::poll_all;
use super::probe::Porter;
use super::resolve::Lookup;
use super::transport::{LinkKey, PublicKey, Side, Socket, Transport, avoid_bbr, connect_local, listen_local};
use super::wire::{Wire, connect, nonce};
use super::work::{Nothing, Works};
use super::{CommError, Fence, LinkChoice, LinkKind, Links};
use crate::system;

const RETRY_MIN: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(250);
/// How often it is looked whether a name is resolved.
const RESOLVE_LOOK: Duration = Duration::from_millis(2);
/// A pause before the next call is taken, where the system had no room for one.
const DEAF: Duration = Duration::from_millis(50);
/// Calls that have not proven anything yet. The oldest makes room for a new one.
const CALLS_MAX: usize = 1024;
const REFUSALS_KEPT: usize = 16;
/// Handshakes that a peer may break off before its dialer tries the next kind of link.
const BREAKS_MAX: usize = 3;

/// Who is where in an epoch, as far as one rank needs to know.
#[derive(Clone)]
pub struct LinkPlan {
    pub job_id: JobId,
    pub epoch: Epoch,
    pub rank: usize,
    /// Known to the workers of this epoch and the coordinator only.
    pub key: [u8; 32],
    /// By rank; see [`peers_of`](super::peers_of).
    pub peers: BTreeMap<usize, PeerAddr>,
}

/// Without the key.
impl fmt::Debug for LinkPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LinkPlan { job_id, epoch, rank, peers, .. } = self;
        f.debug_struct("LinkPlan")
            .field("job_id", job_id)
            .field("epoch", epoch)
            .field("rank", rank)
            .field("peers", peers)
            .finish_non_exhaustive()
    }
}

/// Where the peers of a worker reach it, for the worker's life.
#[derive(Debug)]
pub struct Listener {
    /// `None` in a simulation.
    socket: Option<TcpListener>,
    /// For peers in the same network namespace; `None` where the worker may only use TCP.
    local: Option<UnixListener>,
    links: LinkChoice,
    /// That this process is known by at its TLS links; `None` where it makes none.
    key: Option<LinkKey>,
    address: SocketAddr,
    refusals: Mutex<VecDeque<Refusal>>,
    /// Held by whoever takes calls.
    door: Arc<Mutex<()>>,
}

/// A call that was refused. `rank` is what the caller claimed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub address: String,
    pub rank: usize,
    pub reason: String,
}

impl Listener {
    /// `address` is `host:port`; port 0 takes a free one. `links`: the kinds of link that this worker makes and takes.
    pub fn bind(address: &str, worker_id: &str, links: LinkChoice) -> Result<Listener, CommError> {
        let bound = TcpListener::bind(address).and_then(|socket| {
            socket.set_nonblocking(true)?;
            avoid_bbr(&socket)?;
            Ok((socket.local_addr()?, socket))
        });
        let (address, socket) =
            bound.map_err(|e| CommError::Bind { address: address.to_owned(), why: e.to_string() })?;
        let kinds = links.kinds();
        let local = kinds.iter().any(|kind| kind.is_local()).then(|| listen_local(worker_id, address.port()));
        let local = match local.transpose() {
            Ok(local) => local,
            Err(e) if kinds.iter().any(|kind| !kind.is_local()) => {
                tracing::warn!(error = %e, "cannot listen for links within this host, they go over TCP");
                None
            }
            Err(e) => return Err(CommError::io("listen for links within this host", e)),
        };
        let key = kinds.contains(&LinkKind::Tls).then(LinkKey::generate).transpose();
        let key = key.map_err(|e| CommError::io("make a key for TLS links", e))?;
        let (refusals, door) = (Mutex::default(), Arc::default());
        Ok(Listener { socket: Some(socket), local, links, key, address, refusals, door })
    }

    /// In a simulation, which has this worker's peers call it there.
    pub fn played(address: SocketAddr) -> Listener {
        let links = LinkChoice::Only(LinkKind::Tcp);
        let (refusals, door) = (Mutex::default(), Arc::default());
        Listener { socket: None, local: None, links, key: None, address, refusals, door }
    }

    /// Answers for this listener while no epoch's links are made, see [`Porter`].
    pub fn porter(&self, worker_id: &str) -> Result<Porter, CommError> {
        let cloned = |e: std::io::Error| CommError::io("share the listener for links", e);
        let local = self.local.as_ref().map(UnixListener::try_clone).transpose().map_err(cloned)?;
        let socket = self.socket.as_ref().ok_or_else(|| cloned(ErrorKind::Unsupported.into()))?;
        let socket = socket.try_clone().map_err(cloned)?;
        Ok(Porter::new(worker_id, socket, local, self.links, Arc::clone(&self.door)))
    }

    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The newest calls that were refused, oldest first.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Zeros where no TLS link is made.
    fn public_key(&self) -> PublicKey {
        self.key.as_ref().map_or(PublicKey::default(), LinkKey::public)
    }

    fn remember(&self, refusal: Refusal) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() == REFUSALS_KEPT {
            refusals.pop_front();
        }
        refusals.push_back(refusal);
    }
}

impl Links {
    /// Connects to all peers of `plan`, or says within `timeout` which are missing and why.
    pub fn establish(
        listener: &Listener,
        plan: LinkPlan,
        fence: &Fence,
        timeout: Duration,
    ) -> Result<Links, CommError> {
        let mut links = Links::new(plan.rank, plan.epoch, plan.job_id.clone(), fence.clone());
        Establish::new(&mut links, listener, &plan, timeout)?.run()?;
        Ok(links)
    }

    /// Goes on to the epoch of `plan`, which must be a newer one. Connections to workers that are peers in both epochs are kept, even
    /// under another rank; both ends prove the new key over them. Sequences start again; what is left of older epochs is dropped.
    ///
    /// After an error what could be kept still is, for the epoch after.
    pub fn advance(
        &mut self,
        listener: &Listener,
        plan: LinkPlan,
        fence: &Fence,
        timeout: Duration,
    ) -> Result<(), CommError> {
        assert!(plan.epoch > self.epoch, "links of epoch {} cannot go on to epoch {}", self.epoch, plan.epoch);
        self.give_up();
        let kept = std::mem::take(&mut self.conns).into_values();
        let mut kept: BTreeMap<WorkerId, Conn> = kept
            .filter(|conn| conn.lost().is_none() && plan.job_id == self.job_id)
            .map(|conn| (conn.worker_id.clone(), conn))
            .collect();
        (self.rank, self.epoch, self.job_id) = (plan.rank, plan.epoch, plan.job_id.clone());
        self.fence = fence.clone();
        for (&rank, peer) in &plan.peers {
            // Another process of the same id listens elsewhere.
            let is_same = |conn: &Conn| conn.address == peer.address;
            let Some(mut conn) = kept.remove(&peer.worker_id).filter(is_same) else { continue };
            let epoch = plan.epoch.get();
            let proof = resume_proof(&plan.key, &conn.binding, epoch, plan.rank, rank);
            let expected = resume_proof(&plan.key, &conn.binding, epoch, rank, plan.rank);
            conn.begin_epoch(epoch, rank, proof, expected, &mut self.tally);
            self.conns.insert(rank, conn);
        }
        let result = Establish::new(self, listener, &plan, timeout).and_then(Establish::run);
        self.failed = result.as_ref().err().cloned();
        result
    }
}

struct Establish<'a> {
    links: &'a mut Links,
    listener: &'a Listener,
    plan: &'a LinkPlan,
    timeout: Duration,
    deadline: Instant,
    /// By rank.
    dials: BTreeMap<usize, Dial>,
    /// No call is taken until then: the system has no room for one.
    deaf_until: Option<Instant>,
    /// By number of the call.
    calls: BTreeMap<u64, Call>,
    next_call: u64,
}

/// Our attempts to reach a peer.
struct Dial {
    phase: DialPhase,
    retry: Duration,
    attempts: usize,
    /// What is tried now, then what is left.
    kinds: &'static [LinkKind],
    breaks: usize,
    problem: String,
}

enum DialPhase {
    Idle { until: Instant },
    Resolving(Lookup),
    Connecting(Socket),
    Shaking(Wire, Dialer),
}

/// Somebody has called.
struct Call {
    wire: Wire,
    acceptor: Acceptor,
    address: String,
}

/// Who is ready, according to poll.
#[derive(Clone, Copy)]
enum Token {
    Fence,
    Listener,
    Local,
    Dial(usize),
    Call(u64),
    Kept(usize),
}

impl<'a> Establish<'a> {
    fn new(
        links: &'a mut Links,
        listener: &'a Listener,
        plan: &'a LinkPlan,
        timeout: Duration,
    ) -> Result<Establish<'a>, CommError> {
        assert!(!plan.peers.contains_key(&plan.rank), "rank {} is not a peer of its own", plan.rank);
        if plan.job_id.len() > MAX_JOB_ID_LEN {
            let why = format!("its job id has {} bytes, at most {MAX_JOB_ID_LEN} are allowed", plan.job_id.len());
            return Err(CommError::Io { what: "connect by this plan", why });
        }
        let start = system::now();
        let calls_for = plan.peers.keys().filter(|&&rank| rank > plan.rank && !links.conns.contains_key(&rank));
        let dials = calls_for.map(|&rank| (rank, Dial::new(listener.links.kinds(), start))).collect();
        let deadline = start + timeout;
        let (calls, next_call, deaf_until) = (BTreeMap::new(), 0, None);
        Ok(Establish { links, listener, plan, timeout, deadline, dials, deaf_until, calls, next_call })
    }

    fn run(mut self) -> Result<(), CommError> {
        let listener = self.listener;
        let _door = listener.door.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.until_all_are_up();
        self.links.waits_for().set(std::iter::empty());
        result
    }

    fn until_all_are_up(&mut self) -> Result<(), CommError> {
        self.unpark();
        loop {
            self.links.fence.check(self.plan.epoch)?;
            self.dial_what_is_due();
            if self.plan.peers.keys().all(|rank| self.is_up(*rank)) {
                let kinds: Vec<String> = self.links.kinds().iter().map(|(kind, n)| format!("{n} {kind}")).collect();
                let (rank, epoch, kinds) = (self.plan.rank, self.plan.epoch, kinds.join(", "));
                tracing::info!(rank, %epoch, kinds, "all links are up");
                return Ok(());
            }
            let missing = self.plan.peers.keys().copied().filter(|rank| !self.is_up(*rank));
            self.links.waits_for().set(missing);
            if system::now() >= self.deadline {
                return Err(CommError::Timeout { after: self.timeout, missing: self.missing() });
            }
            for (token, events) in self.poll()? {
                match token {
                    Token::Fence => self.links.fence.drain(self.plan.epoch)?,
                    Token::Listener => self.accept()?,
                    Token::Local => self.accept_local()?,
                    Token::Dial(rank) => self.on_dial(rank)?,
                    Token::Call(number) => self.on_call(number),
                    Token::Kept(rank) => self.on_kept(rank, events),
                }
            }
        }
    }

    fn is_up(&self, rank: usize) -> bool {
        let conn = self.links.conns.get(&rank);
        conn.is_some_and(|conn| conn.is_confirmed() && !conn.wants_write() && conn.is_open())
    }

    fn missing(&self) -> Vec<MissingLink> {
        let missing = self.plan.peers.iter().filter(|(rank, _)| !self.is_up(**rank));
        let missing = missing.map(|(&rank, PeerAddr { worker_id, address })| {
            let refused = self.listener.refusals().into_iter().rfind(|refusal| refusal.rank == rank);
            let problem = match (self.dials.get(&rank), refused) {
                _ if self.links.conns.get(&rank).is_some_and(|conn| !conn.is_open()) => {
                    "has not finished the TLS handshake".to_owned()
                }
                _ if self.links.conns.contains_key(&rank) => "has not confirmed the new epoch".to_owned(),
                (Some(dial), _) => dial.problem.clone(),
                (None, Some(refusal)) => format!("called from {} and was refused: {}", refusal.address, refusal.reason),
                (None, None) => "has not called".to_owned(),
            };
            let called = self.dials.contains_key(&rank);
            let (rank, worker_id, address) = (Rank::new(rank), worker_id.clone(), address.clone());
            MissingLink { rank, worker_id, address, called, problem }
        });
        missing.collect()
    }

    /// As [`Establish::poll`], in a simulation.
    fn poll_played(&mut self, system: &dyn system::System) -> Result<Vec<(Token, PollFlags)>, CommError> {
        self.accept()?;
        let mut ready = self.ready_played();
        if ready.is_empty() {
            let due = |dial: &Dial| match dial.phase {
                DialPhase::Idle { until } => Some(until),
                DialPhase::Resolving(_) | DialPhase::Connecting(_) | DialPhase::Shaking(..) => None,
            };
            system.wait(Some(self.dials.values().filter_map(due).fold(self.deadline, Instant::min)));
            ready = self.ready_played();
        }
        Ok(ready)
    }

    fn ready_played(&self) -> Vec<(Token, PollFlags)> {
        let is_ready = |wire: &Wire| {
            let stream = wire.socket.played();
            stream.is_some_and(|stream| stream.can_read() || wire.has_outgoing() && stream.can_write())
        };
        let goes_on = |dial: &Dial| match &dial.phase {
            DialPhase::Connecting(socket) => socket.played().is_some_and(|stream| stream.connected().unwrap_or(true)),
            DialPhase::Shaking(wire, _) => is_ready(wire),
            DialPhase::Idle { .. } | DialPhase::Resolving(_) => false,
        };
        let all = PollFlags::IN | PollFlags::OUT;
        let dials = self.dials.iter().filter(|(_, dial)| goes_on(dial)).map(|(rank, _)| (Token::Dial(*rank), all));
        let calls = self.calls.iter().filter(|(_, call)| is_ready(&call.wire));
        let calls = calls.map(|(number, _)| (Token::Call(*number), all));
        let kept = self.links.conns.iter().filter(|(rank, _)| !self.is_up(**rank));
        let kept = kept.map(|(rank, conn)| (Token::Kept(*rank), conn.ready()));
        dials.chain(calls).chain(kept.filter(|(_, events)| !events.is_empty())).collect()
    }

    fn poll(&mut self) -> Result<Vec<(Token, PollFlags)>, CommError> {
        if let Some(system) = system::simulated() {
            return self.poll_played(&*system);
        }
        let mut wake = self.deadline;
        for conn in self.links.conns.values_mut() {
            if !conn.announce().is_empty() {
                wake = system::now();
            }
        }
        let mut fds = vec![PollFd::from_borrowed_fd(self.links.fence.wake_fd(), PollFlags::IN)];
        let mut tokens = vec![Token::Fence];
        self.deaf_until = self.deaf_until.filter(|until| *until > system::now());
        match self.deaf_until {
            Some(until) => wake = wake.min(until),
            None => {
                if let Some(socket) = &self.listener.socket {
                    fds.push(PollFd::new(socket, PollFlags::IN));
                    tokens.push(Token::Listener);
                }
                if let Some(local) = &self.listener.local {
                    fds.push(PollFd::new(local, PollFlags::IN));
                    tokens.push(Token::Local);
                }
            }
        }
        for (rank, dial) in &self.dials {
            let (fd, flags) = match &dial.phase {
                DialPhase::Idle { until } => {
                    wake = wake.min(*until);
                    continue;
                }
                DialPhase::Resolving(_) => {
                    wake = wake.min(system::now() + RESOLVE_LOOK);
                    continue;
                }
                DialPhase::Connecting(socket) => (socket.fd(), PollFlags::OUT),
                DialPhase::Shaking(wire, _) => (wire.socket.fd(), wire.interest()),
            };
            if let Some(fd) = fd {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                tokens.push(Token::Dial(*rank));
            }
        }
        for (number, call) in &self.calls {
            if let Some(fd) = call.wire.socket.fd() {
                fds.push(PollFd::from_borrowed_fd(fd, call.wire.interest()));
                tokens.push(Token::Call(*number));
            }
        }
        for (rank, conn) in &self.links.conns {
            if let Some((fd, flags)) = conn.interest().filter(|_| !self.is_up(*rank)) {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                tokens.push(Token::Kept(*rank));
            }
        }
        poll_all(&mut fds, Some(wake.saturating_duration_since(system::now())))?;
        let ready = tokens.into_iter().zip(&fds).map(|(token, fd)| (token, fd.revents()));
        // What was announced to a kept ring is taken back, with an event or without.
        Ok(ready.filter(|(token, events)| !events.is_empty() || matches!(token, Token::Kept(_))).collect())
    }

    fn identity(&self) -> Identity<'a> {
        let LinkPlan { job_id, epoch, rank, key, .. } = self.plan;
        let (link_key, versions) = (self.listener.public_key(), toroid_proto::build().links);
        Identity { job_id, epoch: epoch.get(), rank: *rank, key, link_key, versions }
    }

    /// The handshake is done. An older connection to the same rank gives way: its other end knows it is gone, or it would not
    /// have made a new one.
    fn up(&mut self, rank: usize, transport: Transport, binding: [u8; 32]) {
        let Some(peer) = self.plan.peers.get(&rank) else { unreachable!("only peers of the plan pass the handshake") };
        self.links.tally.stats.connections += 1;
        tracing::debug!(rank, worker_id = peer.worker_id.as_str(), kind = %transport.kind(), "a link's handshake is done");
        self.links.conns.insert(rank, Conn::new(rank, peer, transport, binding));
        self.dials.remove(&rank);
    }

    // Calls of ours

    fn dial_what_is_due(&mut self) {
        let now = system::now();
        for (rank, dial) in &mut self.dials {
            let Some(peer) = self.plan.peers.get(rank) else { continue };
            let begun = match &mut dial.phase {
                DialPhase::Idle { until } if *until <= now => dial.begin(peer),
                DialPhase::Resolving(lookup) => match lookup.poll() {
                    None => Ok(()),
                    Some(found) => dial.connect(found),
                },
                DialPhase::Idle { .. } | DialPhase::Connecting(_) | DialPhase::Shaking(..) => Ok(()),
            };
            if let Err(error) = begun {
                dial.cannot_be_reached(&error);
            }
        }
    }

    fn on_dial(&mut self, rank: usize) -> Result<(), CommError> {
        let identity = self.identity();
        let Some(dial) = self.dials.get_mut(&rank) else { return Ok(()) };
        if matches!(dial.phase, DialPhase::Connecting(_)) {
            dial.greet(&identity, rank)?;
        }
        let DialPhase::Shaking(wire, dialer) = &mut dial.phase else { return Ok(()) };
        match wire.drive(|message| dialer.receive(message)) {
            Ok(Verdict::Continue) => {}
            Ok(Verdict::Established { rank, binding, kind, link_key }) => {
                let Some(DialPhase::Shaking(wire, _)) = self.dials.get_mut(&rank).map(Dial::take) else {
                    return Ok(());
                };
                match wire.into_transport(kind, Side::Caller, self.listener.key.as_ref(), &link_key) {
                    Ok(transport) => self.up(rank, transport, binding),
                    Err(e) => {
                        if let Some(dial) = self.dials.get_mut(&rank) {
                            dial.cannot_be_reached(&e);
                        }
                    }
                }
            }
            Ok(Verdict::Refused { why: Why::NotYet, text, .. }) => dial.fail(format!("refused the link: {text}")),
            Ok(Verdict::Refused { text, .. }) if dial.kinds.len() > 1 => {
                dial.next_kind(format!("refused the link: {text}"))
            }
            Ok(Verdict::Refused { text, .. }) => {
                let Some(PeerAddr { worker_id, address }) = self.plan.peers.get(&rank).cloned() else { return Ok(()) };
                return Err(CommError::Refused { rank, worker_id, address, reason: text });
            }
            Err(problem) => dial.broke_off(&problem),
        }
        Ok(())
    }

    // Calls of others

    fn accept(&mut self) -> Result<(), CommError> {
        let listener = self.listener;
        if let Some(system) = system::simulated() {
            while let Some((stream, address)) = self.taken(system.accept())? {
                self.take_call(Socket::Played(stream), address)?;
            }
        }
        let Some(socket) = &listener.socket else { return Ok(()) };
        while let Some((stream, address)) = self.taken(socket.accept())? {
            match stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)) {
                Ok(()) => self.take_call(Socket::Tcp(stream), address.to_string())?,
                Err(e) => tracing::debug!(%address, error = %e, "dropped a call"),
            }
        }
        Ok(())
    }

    fn accept_local(&mut self) -> Result<(), CommError> {
        let listener = self.listener;
        let Some(local) = &listener.local else { return Ok(()) };
        while let Some((stream, _)) = self.taken(local.accept())? {
            match stream.set_nonblocking(true) {
                Ok(()) => self.take_call(Socket::Unix(stream), "this host".into())?,
                Err(e) => tracing::debug!(error = %e, "dropped a call of this host"),
            }
        }
        Ok(())
    }

    /// What an accept has brought; `None` where nobody calls any more, or none can be taken now.
    fn taken<T>(&mut self, accepted: std::io::Result<T>) -> Result<Option<T>, CommError> {
        let error = match accepted {
            Ok(call) => return Ok(Some(call)),
            Err(error) => error,
        };
        match Refused::of(&error) {
            Refused::Nothing => Ok(None),
            Refused::ThisCall => {
                tracing::debug!(%error, "a call ended before it was taken");
                // Others may wait behind it: poll says so.
                Ok(None)
            }
            Refused::ForNow => {
                tracing::warn!(%error, "cannot take calls for links, they are tried again; is the limit of open files too low (ulimit -n)?");
                self.deaf_until = Some(system::now() + DEAF);
                Ok(None)
            }
            Refused::ForGood => Err(CommError::io("accept a link", error)),
        }
    }

    fn take_call(&mut self, socket: Socket, address: String) -> Result<(), CommError> {
        if self.calls.len() == CALLS_MAX {
            self.calls.pop_first();
        }
        let is_local = matches!(socket, Socket::Unix(_));
        let kinds = self.listener.links.kinds().iter().copied().filter(|kind| kind.is_local() == is_local).collect();
        let (wire, acceptor) = (Wire::new(socket, Vec::new()), Acceptor::new(nonce()?, kinds));
        self.calls.insert(self.next_call, Call { wire, acceptor, address });
        self.next_call += 1;
        Ok(())
    }

    fn on_call(&mut self, number: u64) {
        let (identity, plan) = (self.identity(), self.plan);
        let Some(mut call) = self.calls.remove(&number) else { return };
        let expects = |rank| rank < plan.rank && plan.peers.contains_key(&rank);
        match call.wire.drive(|message| call.acceptor.receive(&identity, expects, message)) {
            Ok(Verdict::Continue) => {
                self.calls.insert(number, call);
            }
            Ok(Verdict::Established { rank, binding, kind, link_key }) => {
                match call.wire.into_transport(kind, Side::Called, self.listener.key.as_ref(), &link_key) {
                    Ok(transport) => self.up(rank, transport, binding),
                    Err(e) => tracing::warn!(address = call.address, rank, error = %e, "dropped a call"),
                }
            }
            Ok(Verdict::Refused { why: Why::NotYet, text, rank }) => {
                tracing::debug!(address = call.address, rank, text, "a call for a later epoch");
            }
            Ok(Verdict::Refused { rank, text, .. }) => {
                tracing::warn!(address = call.address, rank, text, "refused a link");
                self.listener.remember(Refusal { address: call.address, rank, reason: text });
            }
            Err(problem) => tracing::warn!(address = call.address, problem, "dropped a call"),
        }
    }

    // Connections kept from the epoch before

    fn unpark(&mut self) {
        let ranks: Vec<usize> = self.links.conns.keys().copied().collect();
        for rank in ranks {
            self.on_conn(rank, |conn, turn| conn.unpark(turn));
        }
    }

    fn on_kept(&mut self, rank: usize, events: PollFlags) {
        self.on_conn(rank, |conn, turn| conn.on_events(turn, events));
    }

    /// Whatever is wrong with a kept connection, a new one is the cure.
    fn on_conn(&mut self, rank: usize, act: impl FnOnce(&mut Conn, &mut Turn<'_>) -> Result<(), CommError>) {
        let Links { conns, tally, .. } = &mut *self.links;
        let Some(conn) = conns.get_mut(&rank) else { return };
        let (epoch, work) = (self.plan.epoch.get(), Works { call: &mut Nothing, flight: None });
        let result = act(conn, &mut Turn { epoch, work, tally });
        if let Some(error) = result.err().or_else(|| conn.lost()) {
            tracing::debug!(rank, %error, "a link could not be kept, it is made anew");
            conns.remove(&rank);
            if rank > self.plan.rank {
                self.dials.insert(rank, Dial::new(self.listener.links.kinds(), system::now()));
            }
        }
    }
}

impl Dial {
    /// Looks the peer up, or connects where that needs no look-up.
    fn begin(&mut self, peer: &PeerAddr) -> std::io::Result<()> {
        if let Some(system) = system::simulated() {
            self.phase = DialPhase::Connecting(Socket::Played(system.connect(&peer.address)?));
            return Ok(());
        }
        if self.kind().is_local() {
            let port =
                peer.port().ok_or_else(|| std::io::Error::new(ErrorKind::InvalidInput, "its address has no port"))?;
            self.phase = DialPhase::Connecting(connect_local(&peer.worker_id, port).map(Socket::Unix)?);
            return Ok(());
        }
        let mut lookup = Lookup::begin(&peer.address)?;
        match lookup.poll() {
            Some(found) => self.connect(found),
            None => {
                self.phase = DialPhase::Resolving(lookup);
                Ok(())
            }
        }
    }

    /// `found`: what a look-up came to.
    fn connect(&mut self, found: Result<Vec<SocketAddr>, String>) -> std::io::Result<()> {
        let unresolved = |error| std::io::Error::other(format!("its name cannot be resolved: {error}"));
        let addresses = found.map_err(unresolved)?;
        let Some(address) = addresses.get(self.attempts % addresses.len().max(1)) else {
            return Err(std::io::Error::new(ErrorKind::NotFound, "the name has no address"));
        };
        self.phase = DialPhase::Connecting(connect(address).map(Socket::Tcp)?);
        Ok(())
    }

    fn new(kinds: &'static [LinkKind], until: Instant) -> Dial {
        let problem = "was not reached yet".to_owned();
        Dial { phase: DialPhase::Idle { until }, retry: RETRY_MIN, attempts: 0, kinds, breaks: 0, problem }
    }

    fn kind(&self) -> LinkKind {
        self.kinds[0]
    }

    /// What this dial has come to; it starts again.
    fn take(&mut self) -> DialPhase {
        std::mem::replace(&mut self.phase, DialPhase::Idle { until: system::now() })
    }

    /// The socket is connected, or failed to be.
    fn greet(&mut self, me: &Identity<'_>, peer: usize) -> Result<(), CommError> {
        let DialPhase::Connecting(socket) = self.take() else { unreachable!("a dial connects") };
        match socket.take_error().and_then(|error| error.map_or(Ok(()), Err)) {
            Ok(()) => {
                let (dialer, hello) = Dialer::new(me, peer, self.kind(), nonce()?);
                self.phase = DialPhase::Shaking(Wire::new(socket, hello.encode()), dialer);
            }
            Err(e) => self.cannot_be_reached(&e),
        }
        Ok(())
    }

    /// Nobody of this host answers to that name: the peer is elsewhere.
    fn cannot_be_reached(&mut self, error: &std::io::Error) {
        let problem = format!("cannot be reached by {}: {error}", self.kind());
        if self.kind().is_local() && error.kind() != ErrorKind::WouldBlock {
            self.next_kind(problem);
        } else {
            self.fail(problem);
        }
    }

    fn broke_off(&mut self, problem: &str) {
        self.breaks += 1;
        let problem = format!("broke off the handshake: {problem}");
        if self.breaks >= BREAKS_MAX { self.next_kind(problem) } else { self.fail(problem) }
    }

    /// Goes on with the next kind of link, at once; after the last, tries that again.
    fn next_kind(&mut self, problem: String) {
        match self.kinds {
            [_, rest @ ..] if !rest.is_empty() => {
                self.kinds = rest;
                self.breaks = 0;
                self.phase = DialPhase::Idle { until: system::now() };
                self.problem = problem;
            }
            _ => self.fail(problem),
        }
    }

    /// Tries again in a while, and in a longer while the next time.
    fn fail(&mut self, problem: String) {
        self.phase = DialPhase::Idle { until: system::now() + self.retry };
        self.retry = (self.retry * 2).min(RETRY_MAX);
        self.attempts += 1;
        self.problem = problem;
    }
}
