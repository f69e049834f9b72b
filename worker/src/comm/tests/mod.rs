//! Ranks as threads of one process, over links of every kind.
//!
//! Waits are for events; [`HANG_GUARD`] only turns a hang into a failure.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use rustix::event::PollFlags;
use toroid_session::PeerAddr;
use toroid_torus::ids::Epoch;

use super::frame::{Header, Stream};
use super::*;

/// A test for each kind of link.
macro_rules! over_all_kinds {
    ($($name:ident)*) => {
        $(mod $name {
            use super::LinkKind;

            #[test]
            fn shm() {
                super::$name(LinkKind::Shm);
            }

            #[test]
            fn unix() {
                super::$name(LinkKind::Unix);
            }

            #[test]
            fn tcp() {
                super::$name(LinkKind::Tcp);
            }

            #[test]
            fn tls() {
                super::$name(LinkKind::Tls);
            }
        })*
    };
}

mod collectives;
mod epochs;
mod establishing;
mod fuzz;
mod messages;
mod probing;
mod secrecy;

const HANG_GUARD: Duration = Duration::from_secs(180);
const KEY: [u8; 32] = [42; 32];

/// One worker: what it keeps over epochs.
struct Node {
    worker_id: String,
    listener: Listener,
    fence: Fence,
}

impl Node {
    fn new(worker_id: impl Into<String>, links: LinkChoice) -> Node {
        let worker_id = worker_id.into();
        let listener = Listener::bind("127.0.0.1:0", &worker_id, links).unwrap();
        Node { worker_id, listener, fence: Fence::new().unwrap() }
    }

    fn address(&self) -> PeerAddr {
        PeerAddr { worker_id: self.worker_id.as_str().into(), address: self.listener.local_addr().to_string() }
    }

    fn establish(&self, plan: LinkPlan) -> Result<Links, CommError> {
        Links::establish(&self.listener, plan, &self.fence, HANG_GUARD)
    }

    fn advance(&self, links: &mut Links, plan: LinkPlan) -> Result<(), CommError> {
        self.fence.raise(plan.epoch);
        links.advance(&self.listener, plan, &self.fence, HANG_GUARD)
    }
}

fn nodes(kind: LinkKind, n: usize) -> Vec<Node> {
    (0..n).map(|i| Node::new(format!("w{i}"), LinkChoice::Only(kind))).collect()
}

/// Node `i` has rank `i`; everyone is a peer of everyone.
fn plan(nodes: &[&Node], rank: usize, epoch: u64) -> LinkPlan {
    plan_with(nodes, rank, epoch, &(0..nodes.len()).collect())
}

/// The error of a wait of `epoch` that a fence has ended.
fn fenced(epoch: u64, raised: u64) -> CommError {
    CommError::Fenced { epoch: Epoch::new(epoch), raised: Epoch::new(raised) }
}

fn plan_with(nodes: &[&Node], rank: usize, epoch: u64, peers: &BTreeSet<usize>) -> LinkPlan {
    let peers: BTreeMap<usize, PeerAddr> =
        peers.iter().filter(|&&peer| peer != rank).map(|&peer| (peer, nodes[peer].address())).collect();
    LinkPlan { job_id: "job".into(), epoch: Epoch::new(epoch), rank, key: KEY, peers }
}

/// Runs `body` for every rank on a thread of its own; results by rank.
fn on_every_rank<T: Send>(nodes: &[&Node], body: impl Fn(usize, &Node) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let (done, results) = channel();
        for (rank, node) in nodes.iter().enumerate() {
            let (done, body) = (done.clone(), &body);
            scope.spawn(move || done.send((rank, body(rank, node))));
        }
        drop(done);
        let mut by_rank = BTreeMap::new();
        while by_rank.len() < nodes.len() {
            match results.recv_timeout(HANG_GUARD) {
                Ok((rank, result)) => drop(by_rank.insert(rank, result)),
                Err(RecvTimeoutError::Disconnected) => panic!("a rank panicked"),
                Err(RecvTimeoutError::Timeout) => {
                    nodes.iter().for_each(|node| node.fence.raise(Epoch::LAST));
                    panic!("only ranks {:?} came to an end", by_rank.keys());
                }
            }
        }
        by_rank.into_values().collect()
    })
}

/// `n` ranks with links between all of them, in epoch 1.
fn on_mesh<T: Send>(kind: LinkKind, n: usize, body: impl Fn(&mut Links) -> T + Sync) -> Vec<T> {
    let nodes = nodes(kind, n);
    let nodes: Vec<&Node> = nodes.iter().collect();
    on_every_rank(&nodes, |rank, node| body(&mut node.establish(plan(&nodes, rank, 1)).unwrap()))
}

/// The ranks of `shape` with the links that they need, in epoch 1.
fn on_shape<T: Send>(kind: LinkKind, shape: &Shape, body: impl Fn(&mut Links) -> T + Sync) -> Vec<T> {
    let nodes = nodes(kind, shape.world());
    let nodes: Vec<&Node> = nodes.iter().collect();
    on_every_rank(&nodes, |rank, node| {
        body(&mut node.establish(plan_with(&nodes, rank, 1, &peers_of(shape, rank))).unwrap())
    })
}

fn send(links: &mut Links, peer: usize, channel: Channel, data: &[u8]) -> Result<(), CommError> {
    links.run(&mut [Transfer::Send { peer, channel, data }])
}

fn recv(links: &mut Links, peer: usize, channel: Channel, len: usize) -> Result<Vec<u8>, CommError> {
    let mut buf = vec![0; len];
    links.run(&mut [Transfer::Recv { peer, channel, buf: &mut buf }])?;
    Ok(buf)
}

/// A header of epoch 1 as a link of `kind` has it.
fn header(kind: LinkKind, channel: Channel, sequence: u64, payload: &[u8]) -> Vec<u8> {
    let make = if kind.has_sums() { Header::of } else { Header::without_sum };
    make(Stream::Data(channel), 1, sequence, payload).encode().to_vec()
}

/// Writes to a link what no link would.
fn write_raw(links: &mut Links, peer: usize, mut bytes: &[u8]) {
    let transport = links.conns.get_mut(&peer).unwrap().transport().unwrap();
    while !bytes.is_empty() {
        match transport.write_vectored(&[IoSlice::new(bytes)]) {
            Ok(written) => bytes = &bytes[written..],
            Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(e) => panic!("{e}"),
        }
    }
}

/// Waits until the other side has closed the link.
fn await_end(links: &mut Links, peer: usize) {
    let transport = links.conns.get_mut(&peer).unwrap().transport().unwrap();
    let mut is_open = || {
        transport.heed(PollFlags::IN, false);
        !matches!(transport.read(&mut [0]).map_err(|e| e.kind()), Ok(0) | Err(ErrorKind::ConnectionReset))
    };
    while is_open() {
        std::thread::yield_now();
    }
}

fn await_event(what: &str, happened: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !happened() {
        assert!(start.elapsed() < HANG_GUARD, "still waiting until {what}");
        std::thread::yield_now();
    }
}

fn await_waiting(waits_for: &WaitsFor, ranks: &[usize]) {
    await_event("a rank waits for its peers", || waits_for.ranks() == ranks);
}

/// The splitmix64 sequence.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

#[test]
fn peers_are_mutual_and_hold_every_group() {
    for (tp, pp, dp) in [(1, 1, 1), (2, 1, 1), (1, 1, 2), (2, 2, 4), (1, 3, 6), (4, 2, 9), (2, 1, 12)] {
        let shape = Shape::new(tp, pp, dp).unwrap();
        for rank in 0..shape.world() {
            let peers = peers_of(&shape, rank);
            assert!(!peers.contains(&rank));
            for peer in &peers {
                assert!(
                    peers_of(&shape, *peer).contains(&rank),
                    "{shape}: {rank} needs {peer}, which does not need it"
                );
            }
            let dp_group = shape.dp_group(rank);
            let next = dp_group[(shape.place(rank).dp + 1) % dp_group.len()];
            let needed = shape.tp_group(rank).into_iter().chain(shape.pp_group(rank)).chain([next]);
            assert!(needed.filter(|r| *r != rank).all(|r| peers.contains(&r)), "{shape}: rank {rank} has {peers:?}");
        }
    }
}
