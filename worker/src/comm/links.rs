//! The progress engine: one thread, all links, no thread of their own.
//!
//! ```text
//!   run(transfers) -> admit each: send into its link's queue, receive into its link's waiting list (or from the stash)
//!                  -> write and read what goes without waiting
//!                  -> poll(fence, links) -> write, read -> ... until the transfers are done
//! ```
//!
//! A call that fails ends the epoch for these links: the same error comes again until [`Links::advance`].

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::conn::{Conn, Tally, Turn};
use super::{Channel, CommError, Fence, LinkStats, Transfer};

/// What one link keeps for later, in each direction, at most. Peers that run the same schedule are at most a few messages apart; far
/// below this, and reached only where they do not.
const KEPT_BYTES_MAX: usize = 4 << 30;

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
    waits_for: WaitsFor,
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
        Links { rank, epoch, job_id, fence, conns, tally, failed: None, waits_for }
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

    pub fn waits_for(&self) -> WaitsFor {
        self.waits_for.clone()
    }

    /// Does all of `transfers` at the same time and returns when they are done: a send is done when the kernel has all of it. The order
    /// matters only within a peer's channel. With an error, buffers of receives may have been written to and mean nothing.
    pub fn run(&mut self, transfers: &mut [Transfer<'_>]) -> Result<(), CommError> {
        self.call(transfers, |links, transfers| {
            links.tally.completed = 0;
            for index in 0..transfers.len() {
                links.admit(transfers, index)?;
            }
            links.start(transfers)?;
            links.wait(transfers, Until::Completed(transfers.len()))
        })
    }

    /// Sends without waiting: what the kernel does not take now goes out during later calls, or [`Links::flush`].
    pub fn queue(&mut self, peer: usize, channel: Channel, data: Vec<u8>) -> Result<(), CommError> {
        self.call(&mut [], |links, transfers| {
            let (epoch, limit) = (links.epoch, links.tally.limit_bytes);
            links.usable(peer)?.enqueue_owned(epoch, channel, data, limit)?;
            links.start(transfers)
        })
    }

    /// Waits until everything queued is with the kernel.
    pub fn flush(&mut self) -> Result<(), CommError> {
        self.call(&mut [], |links, transfers| links.wait(transfers, Until::Flushed))
    }

    /// Writes and reads what goes without waiting. For calls between two pieces of computing.
    pub fn progress(&mut self) -> Result<(), CommError> {
        self.call(&mut [], |links, transfers| links.turn(transfers, false))
    }

    fn call<'t>(
        &mut self,
        transfers: &mut [Transfer<'t>],
        body: impl FnOnce(&mut Links, &mut [Transfer<'t>]) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let start = Instant::now();
        self.fence.check(self.epoch)?;
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = body(self, transfers);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            for conn in self.conns.values_mut() {
                conn.abort(transfers);
            }
        }
        self.waits_for.set(std::iter::empty());
        self.tally.stats.wait += start.elapsed();
        result
    }

    fn usable(&mut self, peer: usize) -> Result<&mut Conn, CommError> {
        let conn = linked(&mut self.conns, peer);
        conn.lost().map_or(Ok(conn), Err)
    }

    fn admit(&mut self, transfers: &mut [Transfer<'_>], index: usize) -> Result<(), CommError> {
        let epoch = self.epoch;
        match transfers[index] {
            Transfer::Send { peer, channel, data } => {
                self.usable(peer)?.enqueue(epoch, channel, data, index);
                Ok(())
            }
            // Not `usable`: what a dead peer has sent before can still be had.
            Transfer::Recv { peer, channel, .. } => {
                let mut turn = Turn { epoch, transfers, tally: &mut self.tally };
                linked(&mut self.conns, peer).expect(&mut turn, channel, index)
            }
        }
    }

    /// First attempt without polling, on the links that have something to do: most small messages need no more.
    fn start(&mut self, transfers: &mut [Transfer<'_>]) -> Result<(), CommError> {
        let Links { epoch, conns, tally, .. } = self;
        let mut turn = Turn { epoch: *epoch, transfers, tally };
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

    fn wait(&mut self, transfers: &mut [Transfer<'_>], until: Until) -> Result<(), CommError> {
        loop {
            let over = match until {
                Until::Completed(number) => self.tally.completed == number,
                Until::Flushed => !self.has_unsent()?,
            };
            if over {
                return Ok(());
            }
            self.turn(transfers, true)?;
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

    /// One poll over fence and links, and what it says can be done.
    fn turn(&mut self, transfers: &mut [Transfer<'_>], block: bool) -> Result<(), CommError> {
        if block {
            self.waits_for.set(self.conns.values().filter(|c| c.is_awaited() || c.wants_write()).map(|c| c.rank));
        }
        let ready = self.poll(block)?;
        if ready.fence {
            self.fence.drain(self.epoch)?;
        }
        let Links { epoch, conns, tally, .. } = self;
        let mut turn = Turn { epoch: *epoch, transfers, tally };
        for (rank, events) in ready.conns {
            let Some(conn) = conns.get_mut(&rank) else { continue };
            // First reading: what a peer sent before it died must not be lost to a failing write.
            if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                conn.receive(&mut turn)?;
            }
            if events.contains(PollFlags::OUT) {
                conn.send(&mut turn)?;
            }
        }
        Ok(())
    }

    fn poll(&self, block: bool) -> Result<Ready, CommError> {
        let mut fds = vec![PollFd::from_borrowed_fd(self.fence.wake_fd(), PollFlags::IN)];
        let mut ranks = Vec::with_capacity(self.conns.len());
        for conn in self.conns.values() {
            if let Some((fd, flags)) = conn.interest() {
                fds.push(PollFd::from_borrowed_fd(fd, flags));
                ranks.push(conn.rank);
            }
        }
        poll_all(&mut fds, if block { None } else { Some(Duration::ZERO) })?;
        let conns = ranks.into_iter().zip(&fds[1..]).map(|(rank, fd)| (rank, fd.revents()));
        Ok(Ready { fence: !fds[0].revents().is_empty(), conns: conns.filter(|(_, e)| !e.is_empty()).collect() })
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
