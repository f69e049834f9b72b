//! Two workers show that they reach each other before either has a place beside the other (T-11).
//!
//! ```text
//!   coordinator: Probe{number, the other, key} to both        each dials the other, and answers where it dials
//!     Knock{number, nonce, proof}  ->
//!                                 <-  Here{proof}
//! ```
//!
//! A knock goes over the same kinds of link, to the same address, as a link of an epoch would. Proofs are BLAKE3 keyed with the probe's
//! key over role, number, nonce and the worker that is meant: another worker at that address cannot answer.
//!
//! A [`Porter`] takes calls only while no epoch's links are made ([`Listener`](super::Listener)'s door). A call for a link that comes
//! just then is told "not yet", and is made again.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use toroid_session::{Knock, PeerAddr};

use super::LinkChoice;
use super::handshake::{Message, Nonce, Why};
use super::resolve::Lookup;
use super::transport::connect_local;
use super::wire::nonce;
use crate::sync::lock;

/// Between two looks for a call.
const LOOK: Duration = Duration::from_millis(10);
/// Between two tries to reach the other.
const RETRY: Duration = Duration::from_millis(50);
/// Whoever calls says what it wants within this.
const PATIENCE: Duration = Duration::from_millis(500);
/// Probes of one worker at a time, at most.
pub const MAX_PROBES: usize = 256;

/// Answers knocks at a worker's listener, and knocks at others'.
#[derive(Debug, Clone)]
pub struct Porter {
    worker_id: String,
    socket: Arc<TcpListener>,
    local: Option<Arc<UnixListener>>,
    links: LinkChoice,
    door: Arc<Mutex<()>>,
    /// Of the probes that go on, by number.
    keys: Arc<Mutex<BTreeMap<u64, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    key: [u8; 32],
    was_answered: bool,
}

/// Why a probe came to nothing; a verb phrase about the other worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProbeError {
    /// It makes links of an epoch: that says nothing about either.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    NotReached(String),
}

impl From<String> for ProbeError {
    fn from(problem: String) -> ProbeError {
        ProbeError::NotReached(problem)
    }
}

trait Call: Read + Write {}
impl<T: Read + Write> Call for T {}

impl Porter {
    pub(super) fn new(
        worker_id: &str,
        socket: TcpListener,
        local: Option<UnixListener>,
        links: LinkChoice,
        door: Arc<Mutex<()>>,
    ) -> Porter {
        let (socket, local) = (Arc::new(socket), local.map(Arc::new));
        Porter { worker_id: worker_id.into(), socket, local, links, door, keys: Arc::default() }
    }

    /// Knocks at the other until it answers, and answers it meanwhile, within `limit`. Blocks.
    pub fn probe(&self, knock: &Knock, limit: Duration) -> Result<(), ProbeError> {
        let until = Instant::now() + limit;
        {
            let mut keys = lock(&self.keys);
            if keys.len() >= MAX_PROBES {
                return Err(ProbeError::Busy(format!("was not dialled: this worker is busy with {MAX_PROBES} others")));
            }
            keys.insert(knock.number, Entry { key: knock.key, was_answered: false });
        }
        let result = std::thread::scope(|scope| {
            let dialled = scope.spawn(|| self.dial(knock, until));
            while Instant::now() < until && !(dialled.is_finished() && self.was_answered(knock.number)) {
                self.answer_one();
                std::thread::sleep(LOOK);
            }
            let ended = || Err(ProbeError::NotReached("was not dialled: dialling ended unexpectedly".into()));
            dialled.join().unwrap_or_else(|_| ended())
        });
        lock(&self.keys).remove(&knock.number);
        result
    }

    fn was_answered(&self, number: u64) -> bool {
        lock(&self.keys).get(&number).is_none_or(|entry| entry.was_answered)
    }

    // ------------------------------------------------------------------------------------------------------------- knocking

    fn dial(&self, knock: &Knock, until: Instant) -> Result<(), ProbeError> {
        let mut problem = ProbeError::NotReached("was not reached yet".into());
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(problem);
            }
            match self.dial_once(knock, left) {
                Ok(()) => return Ok(()),
                Err(error) => problem = error,
            }
            std::thread::sleep(RETRY.min(left));
        }
    }

    fn dial_once(&self, knock: &Knock, left: Duration) -> Result<(), ProbeError> {
        let kinds = self.links.kinds();
        let mut problem = None;
        if kinds.iter().any(|kind| kind.is_local()) {
            match self.dial_local(knock, left) {
                Err(ProbeError::NotReached(error)) => problem = Some(error),
                reached => return reached,
            }
        }
        if kinds.iter().any(|kind| !kind.is_local()) {
            return self.dial_tcp(knock, left);
        }
        Err(problem.unwrap_or_else(|| "was not dialled: no kind of link is allowed".into()).into())
    }

    fn dial_local(&self, knock: &Knock, left: Duration) -> Result<(), ProbeError> {
        let PeerAddr { worker_id, address } = &knock.peer;
        let port = knock.peer.port().ok_or_else(|| format!("cannot be dialled: its address {address} has no port"))?;
        let cannot = |e: std::io::Error| format!("is not on this host: {e}");
        let stream: UnixStream = connect_local(worker_id, port).map_err(cannot)?;
        stream.set_nonblocking(false).map_err(cannot)?;
        stream.set_read_timeout(Some(left)).map_err(cannot)?;
        self.knock(knock, stream)
    }

    fn dial_tcp(&self, knock: &Knock, left: Duration) -> Result<(), ProbeError> {
        let address = &knock.peer.address;
        let cannot = |what: &dyn std::fmt::Display| format!("cannot be reached at {address}: {what}");
        let lookup = Lookup::begin(address).map_err(|e| cannot(&e))?;
        let found = lookup.wait(left).map_err(|e| cannot(&e))?;
        let mut problem = String::new();
        for target in found {
            match TcpStream::connect_timeout(&target, left) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(left)).map_err(|e| cannot(&e))?;
                    return self.knock(knock, stream);
                }
                Err(error) => problem = cannot(&error),
            }
        }
        Err(problem.into())
    }

    fn knock(&self, knock: &Knock, mut stream: impl Call) -> Result<(), ProbeError> {
        let PeerAddr { worker_id, address } = &knock.peer;
        let nonce = nonce().map_err(|e| e.to_string())?;
        let prove = |role| proof(&knock.key, role, knock.number, &nonce, worker_id);
        let message = Message::Knock { number: knock.number, nonce, proof: prove(Role::Knock).into() };
        stream.write_all(&message.encode()).map_err(|e| format!("broke off at {address}: {e}"))?;
        match read_message(&mut stream) {
            Ok(Message::Here { proof }) if blake3::Hash::from_bytes(proof) == prove(Role::Here) => Ok(()),
            Ok(Message::Refuse { why: Why::NotYet, text }) => Err(ProbeError::Busy(format!("is busy: {text}"))),
            Ok(_) => Err(format!("is not who answers at {address}").into()),
            Err(error) => Err(format!("does not answer at {address}: {error}").into()),
        }
    }

    // ------------------------------------------------------------------------------------------------------------ answering

    /// Takes one call, if there is one and no epoch's links are made.
    fn answer_one(&self) {
        let (tcp, local) = {
            let Ok(_door) = self.door.try_lock() else { return };
            (self.socket.accept().ok(), self.local.as_ref().and_then(|local| local.accept().ok()))
        };
        if let Some((stream, _)) = tcp
            && stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE))).is_ok()
        {
            self.answer(stream);
        }
        if let Some((stream, _)) = local
            && stream.set_nonblocking(false).and_then(|()| stream.set_read_timeout(Some(PATIENCE))).is_ok()
        {
            self.answer(stream);
        }
    }

    /// Whoever is no worker is dropped without an answer.
    fn answer(&self, mut stream: impl Call) {
        let reply = match read_message(&mut stream) {
            Ok(Message::Knock { number, nonce, proof: found }) => self.here(number, &nonce, found),
            Ok(Message::Hello(hello)) => {
                let text = format!("this worker is not yet in the caller's epoch {}", hello.epoch);
                Some(Message::Refuse { why: Why::NotYet, text })
            }
            Ok(_) | Err(_) => None,
        };
        if let Some(reply) = reply {
            // Who has gone meanwhile calls again.
            let _ = stream.write_all(&reply.encode());
        }
    }

    fn here(&self, number: u64, nonce: &Nonce, found: [u8; 32]) -> Option<Message> {
        let mut keys = lock(&self.keys);
        let entry = keys.get_mut(&number)?;
        let prove = |role| proof(&entry.key, role, number, nonce, &self.worker_id);
        if blake3::Hash::from_bytes(found) != prove(Role::Knock) {
            return None;
        }
        let proof = prove(Role::Here).into();
        entry.was_answered = true;
        Some(Message::Here { proof })
    }
}

#[derive(Clone, Copy)]
enum Role {
    Knock,
    Here,
}

fn proof(key: &[u8; 32], role: Role, number: u64, nonce: &Nonce, worker_id: &str) -> blake3::Hash {
    let label: &[u8] = match role {
        Role::Knock => b"toroid probe: knock",
        Role::Here => b"toroid probe: here",
    };
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(label).update(&number.to_le_bytes()).update(nonce).update(worker_id.as_bytes());
    hasher.finalize()
}

fn read_message(stream: &mut impl Read) -> Result<Message, String> {
    let mut bytes = Vec::new();
    loop {
        let missing = Message::missing(&bytes).map_err(|garbage| garbage.to_string())?;
        if missing == 0 {
            return Message::decode(&bytes).map_err(|garbage| garbage.to_string());
        }
        let have = bytes.len();
        bytes.resize(have + missing, 0);
        match stream.read(&mut bytes[have..]) {
            Ok(0) => return Err("the connection was closed".into()),
            Ok(read) => bytes.truncate(have + read),
            Err(e) if e.kind() == ErrorKind::Interrupted => bytes.truncate(have),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err("nothing came in time".into());
            }
            Err(e) => return Err(e.to_string()),
        }
    }
}
