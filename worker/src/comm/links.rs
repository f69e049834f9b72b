//! The progress engine: one thread, all links, no thread of their own.
//!
//! ```text
//!   run(transfers) -> admit each: send into its link's queue, receive into its link's waiting list (or from the stash)
//!                  -> write and read what goes without waiting
//!                  -> yield a while where rings are awaited
//!                  -> poll(fence, links) -> write, read -> ... until the transfers are done
//! ```
//!
//! A call that fails ends the epoch for these links: the same error comes again until [`Links::advance`].

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::collective::Made;
use super::conn::{Conn, Tally, Turn};
use super::transport::Transport;
use super::work::{Nothing, Transfers, Work};
use super::{Channel, CommError, Fence, LinkKind, LinkStats, Transfer};
use crate::trace::Trace;

/// What one link keeps for later, in each direction, at most. Peers that run the same schedule are at most a few messages apart; far
/// below this, and reached only where they do not.
const KEPT_BYTES_MAX: usize = 4 << 30;

/// How long a rank yields before it sleeps: about what waking it would cost everyone.
pub(super) const YIELD_MAX: Duration = Duration::from_micros(50);

/// All links of one rank. Owned by the trainer's thread.
pub struct Links {
    pub(super) rank: usize,
    pub(super) epoch: u64,
    pub(super) job_id: String,
    pub(super) fence: Fence,
    /// By rank of the peer.
    pub(super) conns: BTreeMap<usize, Conn>,
    pub(super) tally: Tally,
    pub(super) failed: Option<CommError>,
    pub(super) made: Made,
    waits_for: WaitsFor,
    trace: Option<Trace>,
}

/// Whom a [`Links`] waits for now; for heartbeats, from any thread.
#[derive(Debug, Clone, Default)]
pub struct WaitsFor(Arc<Mutex<Vec<usize>>>);

impl WaitsFor {
    /// Ranks in ascending order; none while nothing is waited for.
    pub fn ranks(&self) -> Vec<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, ranks: impl Iterator<Item = usize>) {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        current.clear();
        current.extend(ranks);
    }
}

/// When a call is over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// So many transfers are done.
    Completed(usize),
    /// Everything queued is with the kernel.
    Flushed,
}

impl Links {
    pub(super) fn new(rank: usize, epoch: u64, job_id: String, fence: Fence) -> Links {
        let tally = Tally { limit_bytes: KEPT_BYTES_MAX, ..Tally::default() };
        let (conns, waits_for) = (BTreeMap::new(), WaitsFor::default());
        let made = Made::new();
        Links { rank, epoch, job_id, fence, conns, tally, failed: None, made, waits_for, trace: None }
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    pub fn stats(&self) -> LinkStats {
        self.tally.stats
    }

    /// Calls are written down there from now on.
    pub fn set_trace(&mut self, trace: Trace) {
        self.trace = Some(trace);
    }

    pub fn waits_for(&self) -> WaitsFor {
        self.waits_for.clone()
    }

    pub(super) fn transport(&mut self, rank: usize) -> Result<&mut Transport, CommError> {
        let conn = linked(&mut self.conns, rank);
        let lost = conn.lost();
        conn.transport().ok_or_else(|| lost.unwrap_or_else(|| unreachable!("a link without a transport is lost")))
    }

    pub(super) fn socket(&self, rank: usize) -> Option<BorrowedFd<'_>> {
        self.conns.get(&rank)?.interest().map(|(fd, _)| fd)
    }

    /// How many links of each kind there are, kinds without any left out.
    pub fn kinds(&self) -> BTreeMap<LinkKind, usize> {
        let mut kinds = BTreeMap::new();
        for conn in self.conns.values() {
            *kinds.entry(conn.kind()).or_default() += 1;
        }
        kinds
    }

    /// Does all of `transfers` at the same time and returns when they are done: a send is done when the kernel, or the shared memory,
    /// has all of it. The order matters only within a peer's channel. With an error, buffers of receives may have been written to
    /// and mean nothing.
    pub fn run(&mut self, transfers: &mut [Transfer<'_>]) -> Result<(), CommError> {
        self.call(&mut Transfers(transfers), |links, work| {
            links.tally.completed = 0;
            for index in 0..work.0.len() {
                match work.0[index] {
                    Transfer::Send { peer, channel, .. } => links.admit_send(work, peer, channel, index)?,
                    Transfer::Recv { peer, channel, .. } | Transfer::Add { peer, channel, .. } => {
                        links.admit_receive(work, peer, channel, index)?;
                    }
                }
            }
            links.start(work)?;
            let all = work.0.len();
            links.wait(work, Until::Completed(all))
        })
    }

    /// Sends without waiting: what the kernel does not take now goes out during later calls, or [`Links::flush`].
    pub fn queue(&mut self, peer: usize, channel: Channel, data: Vec<u8>) -> Result<(), CommError> {
        self.call(&mut Nothing, |links, work| {
            let (epoch, limit) = (links.epoch, links.tally.limit_bytes);
            links.usable(peer)?.enqueue_owned(epoch, channel, data, limit)?;
            links.start(work)
        })
    }

    /// Waits until everything queued is with the kernel.
    pub fn flush(&mut self) -> Result<(), CommError> {
        self.call(&mut Nothing, |links, work| links.wait(work, Until::Flushed))
    }

    /// Writes and reads what goes without waiting. For calls between two pieces of computing.
    pub fn progress(&mut self) -> Result<(), CommError> {
        self.call(&mut Nothing, |links, work| links.turn(work, false))
    }

    pub(super) fn call<W: Work>(
        &mut self,
        work: &mut W,
        body: impl FnOnce(&mut Links, &mut W) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let start = Instant::now();
        self.fence.check(self.epoch)?;
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = body(self, work);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            for conn in self.conns.values_mut() {
                conn.abort(work);
            }
        }
        self.waits_for.set(std::iter::empty());
        self.tally.stats.wait += start.elapsed();
        if let Some(trace) = &self.trace {
            trace.communicated(start);
        }
        result
    }

    fn usable(&mut self, peer: usize) -> Result<&mut Conn, CommError> {
        let conn = linked(&mut self.conns, peer);
        conn.lost().map_or(Ok(conn), Err)
    }

    pub(super) fn admit_send(
        &mut self,
        work: &mut dyn Work,
        peer: usize,
        channel: Channel,
        index: usize,
    ) -> Result<(), CommError> {
        let epoch = self.epoch;
        self.usable(peer)?.enqueue(epoch, channel, work.sent(index), index);
        Ok(())
    }

    /// Of a dead peer too: what it has sent before can still be had.
    pub(super) fn admit_receive(
        &mut self,
        work: &mut dyn Work,
        peer: usize,
        channel: Channel,
        index: usize,
    ) -> Result<(), CommError> {
        let mut turn = Turn { epoch: self.epoch, work, tally: &mut self.tally };
        linked(&mut self.conns, peer).expect(&mut turn, channel, index)
    }

    /// Whether the running call will ask `peer` for more on `channel` than it has so far.
    pub(super) fn hold(&mut self, peer: usize, channel: Channel, will_ask: bool) {
        linked(&mut self.conns, peer).hold(channel, will_ask);
    }

    /// First attempt without polling, on the links that have something to do: most small messages need no more.
    pub(super) fn start(&mut self, work: &mut dyn Work) -> Result<(), CommError> {
        let Links { epoch, conns, tally, .. } = self;
        let mut turn = Turn { epoch: *epoch, work, tally };
        for conn in conns.values_mut() {
            if conn.wants_write() {
                conn.send(&mut turn)?;
            }
            if conn.is_awaited() {
                conn.receive(&mut turn)?;
            }
        }
        Ok(())
    }

    fn wait(&mut self, work: &mut dyn Work, until: Until) -> Result<(), CommError> {
        loop {
            let over = match until {
                Until::Completed(number) => self.tally.completed == number,
                Until::Flushed => !self.has_unsent()?,
            };
            if over {
                return Ok(());
            }
            self.turn(work, true)?;
        }
    }

    fn has_unsent(&self) -> Result<bool, CommError> {
        let mut unsent = self.conns.values().filter(|conn| conn.wants_write()).peekable();
        let any = unsent.peek().is_some();
        match unsent.find_map(Conn::lost) {
            Some(error) => Err(error),
            None => Ok(any),
        }
    }

    /// What can be done now; where that is nothing and `block` is set, waits until something can.
    pub(super) fn turn(&mut self, work: &mut dyn Work, block: bool) -> Result<(), CommError> {
        if block {
            if self.yield_for_rings(work)? {
                return Ok(());
            }
            self.waits_for.set(self.conns.values().filter(|c| c.is_awaited() || c.wants_write()).map(|c| c.rank));
        }
        let ready = self.poll(block)?;
        if ready.fence {
            self.fence.drain(self.epoch)?;
        }
        let Links { epoch, conns, tally, .. } = self;
        let mut turn = Turn { epoch: *epoch, work, tally };
        for (rank, events) in ready.conns {
            if let Some(conn) = conns.get_mut(&rank) {
                conn.on_events(&mut turn, events)?;
            }
        }
        Ok(())
    }

    /// Gives the processor to other ranks a few times before it sleeps: where they share it, they write meanwhile, and nobody needs to
    /// be woken. True when something was done.
    fn yield_for_rings(&mut self, work: &mut dyn Work) -> Result<bool, CommError> {
        let is_awaited = |conn: &Conn| conn.kind() == LinkKind::Shm && (conn.is_awaited() || conn.wants_write());
        if !self.conns.values().any(is_awaited) {
            return Ok(false);
        }
        let start = Instant::now();
        loop {
            let Links { epoch, conns, tally, .. } = self;
            let mut turn = Turn { epoch: *epoch, work: &mut *work, tally };
            let mut did = false;
            for conn in conns.values_mut() {
                let ready = conn.ready();
                if !ready.is_empty() {
                    conn.act(&mut turn, ready)?;
                    did = true;
                }
            }
            if did {
                return Ok(true);
            }
            if start.elapsed() >= YIELD_MAX {
                return Ok(false);
            }
            self.fence.check(self.epoch)?;
            std::thread::yield_now();
        }
    }

    fn poll(&mut self, block: bool) -> Result<Ready, CommError> {
        let mut block = block;
        for conn in self.conns.values_mut() {
            block &= conn.announce().is_empty();
        }
        let mut fds = vec![PollFd::from_borrowed_fd(self.fence.wake_fd(), PollFlags::IN)];
        let mut ranks = Vec::with_capacity(self.conns.len());
        for conn in self.conns.values() {
            if let Some((fd, flags)) = conn.interest() {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                ranks.push(conn.rank);
            }
        }
        poll_all(&mut fds, if block { None } else { Some(Duration::ZERO) })?;
        // Who was announced to is heard out even without an event: it takes the announcement back.
        let is_ring = |rank: usize| self.conns.get(&rank).is_some_and(|conn| conn.kind() == LinkKind::Shm);
        let conns = ranks.into_iter().zip(&fds[1..]).map(|(rank, fd)| (rank, fd.revents()));
        let conns = conns.filter(|(rank, events)| !events.is_empty() || is_ring(*rank)).collect();
        Ok(Ready { fence: !fds[0].revents().is_empty(), conns })
    }
}

fn linked(conns: &mut BTreeMap<usize, Conn>, peer: usize) -> &mut Conn {
    conns.get_mut(&peer).unwrap_or_else(|| panic!("there is no link to rank {peer}: it is not in this rank's plan"))
}

/// What a poll found.
struct Ready {
    fence: bool,
    conns: Vec<(usize, PollFlags)>,
}

/// Waits for any of `fds`, at most `limit`. A signal that comes in between counts as nothing ready.
pub(super) fn poll_all(fds: &mut [PollFd<'_>], limit: Option<Duration>) -> Result<(), CommError> {
    let timeout = limit.map(|limit| Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    match poll(fds, timeout.as_ref()) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::INTR) => {
            fds.iter_mut().for_each(PollFd::clear_revents);
            Ok(())
        }
        Err(e) => Err(CommError::io("poll the links", e)),
    }
}
