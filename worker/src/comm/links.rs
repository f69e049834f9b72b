//! The progress engine: one thread, all links, no thread of their own.
//!
//! ```text
//!   run(transfers) -> admit each: send into its link's queue, receive into its link's waiting list (or from the stash)
//!                  -> write and read what goes without waiting
//!                  -> yield a while where rings are awaited
//!                  -> poll(fence, links) -> write, read -> ... until the transfers are done
//! ```
//!
//! A collective may be in flight beside the calls ([`super::flight`]): whichever call runs moves it on.
//!
//! A call that fails ends the epoch for these links: the same error comes again until [`Links::advance`].

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use toroid_torus::collective::Run;
use toroid_torus::ids::{Epoch, JobId};

use super::conn::{Conn, Tally, Turn};
use super::program::{Flight, Started};
use super::schedule::Made;
use super::transport::Transport;
use super::work::{Id, Nothing, Transfers, Work, Works};
use super::{Channel, CommError, Fence, LinkKind, LinkStats, Transfer};
use crate::system;
use crate::trace::{Trace, thread_cpu_time};

/// What one link keeps for later, in each direction, at most; [`Links::keep_at_most`] lowers it. Peers that run the same schedule are at most a
/// few messages apart; far below this, and reached only where they do not.
const KEPT_BYTES_MAX: usize = 4 << 30;

/// How long a rank yields before it sleeps, not counting the time in which others had its core: about what waking it would cost everyone.
const YIELD_MAX: Duration = Duration::from_micros(50);
/// And counting it. Many ranks that wait for each other on few cores need some hundred microseconds for a turn of all; a rank that shares
/// its core with one that computes is to be woken, so that it has its turn at once.
const YIELD_WALL_MAX: Duration = Duration::from_millis(1);
/// A yield that took longer gave the core to somebody.
const YIELD_ALONE_MAX: Duration = Duration::from_micros(5);

/// Gives the core away again and again while a ring is waited for.
pub(super) struct Yields {
    since: Instant,
    own: Duration,
}

impl Yields {
    pub fn begin() -> Yields {
        Yields { since: Instant::now(), own: Duration::ZERO }
    }

    /// False where it is time to sleep.
    pub fn again(&mut self) -> bool {
        let before = Instant::now();
        if self.own >= YIELD_MAX || before - self.since >= YIELD_WALL_MAX {
            return false;
        }
        std::thread::yield_now();
        let gone = before.elapsed();
        if gone <= YIELD_ALONE_MAX {
            self.own += gone;
        }
        true
    }
}

/// All links of one rank. Owned by the trainer's thread.
pub struct Links {
    pub(super) rank: usize,
    pub(super) epoch: Epoch,
    pub(super) job_id: JobId,
    pub(super) fence: Fence,
    /// By rank of the peer.
    pub(super) conns: BTreeMap<usize, Conn>,
    pub(super) tally: Tally,
    pub(super) failed: Option<CommError>,
    pub(super) made: Made,
    /// Goes on beside the calls.
    pub(super) flight: Option<Flight>,
    /// Since then no call has run, and something is on its way.
    moving_since: Option<Instant>,
    waits_for: WaitsFor,
    /// Ranks that the running call has waited for.
    waited_for: BTreeSet<usize>,
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

    pub(crate) fn set(&self, ranks: impl Iterator<Item = usize>) {
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
    pub(super) fn new(rank: usize, epoch: Epoch, job_id: JobId, fence: Fence) -> Links {
        let tally = Tally { limit_bytes: KEPT_BYTES_MAX, ..Tally::default() };
        let (conns, waits_for) = (BTreeMap::new(), WaitsFor::default());
        Links {
            rank,
            epoch,
            job_id,
            fence,
            conns,
            tally,
            failed: None,
            made: Made::default(),
            flight: None,
            moving_since: None,
            waits_for,
            waited_for: BTreeSet::new(),
            trace: None,
        }
    }

    /// No links yet, before the first epoch.
    pub fn none(fence: &Fence) -> Links {
        Links::new(0, Epoch::NONE, JobId::default(), fence.clone())
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// What one link keeps for later, in each direction: what came and nobody has asked for, and what was queued and is not taken. No
    /// length that a peer names makes this rank take more memory than that.
    pub fn keep_at_most(&mut self, bytes: u64) {
        self.tally.limit_bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(KEPT_BYTES_MAX);
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub fn stats(&self) -> LinkStats {
        self.tally.stats
    }

    /// Messages that went to `peer` on `channel` in this epoch.
    pub fn num_sent(&self, peer: usize, channel: Channel) -> u64 {
        self.conns.get(&peer).map_or(0, |conn| conn.num_sent(channel))
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
        let what = transfers.first().map_or("nothing", |transfer| transfer.channel().name());
        self.call(what, &mut Transfers(transfers), |links, work| {
            links.tally.completed = 0;
            for index in 0..work.0.len() {
                let id = Id::Call(index);
                match work.0[index] {
                    Transfer::Send { peer, channel, .. } => links.admit_send(work, peer, channel, id)?,
                    Transfer::Recv { peer, channel, .. } | Transfer::Add { peer, channel, .. } => {
                        links.admit_receive(work, peer, channel, id)?;
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
        self.call(channel.name(), &mut Nothing, |links, work| {
            let (epoch, limit) = (links.epoch.get(), links.tally.limit_bytes);
            links.usable(peer)?.enqueue_owned(epoch, channel, data, limit)?;
            links.start(work)
        })
    }

    /// Waits until everything queued is with the kernel.
    pub fn flush(&mut self) -> Result<(), CommError> {
        self.call("flush", &mut Nothing, |links, work| links.wait(work, Until::Flushed))
    }

    /// Moves on what is on its way, without waiting. For calls between two pieces of computing.
    pub fn progress(&mut self) -> Result<(), CommError> {
        self.call("progress", &mut Nothing, |links, work| {
            loop {
                let before = links.num_flown();
                links.turn(work, false)?;
                if links.num_flown() == before {
                    return Ok(());
                }
            }
        })
    }

    /// Something is on its way that no running call waits for.
    fn is_moving(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| !flight.program.run.is_over())
            || self.conns.values().any(Conn::wants_write)
    }

    /// `what` names the call in a trace.
    pub(super) fn call<W: Work>(
        &mut self,
        what: &'static str,
        work: &mut W,
        body: impl FnOnce(&mut Links, &mut W) -> Result<(), CommError>,
    ) -> Result<(), CommError> {
        let start = system::now();
        let cpu_start = if self.trace.is_some() { thread_cpu_time() } else { Duration::ZERO };
        self.fence.check(self.epoch)?;
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let hidden_since = self.moving_since.take();
        let moving = self.flight.as_ref().map_or("stage transfer", |flight| flight.name);
        let result = body(self, work);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.abort(work);
        }
        self.waits_for.set(std::iter::empty());
        let end = system::now();
        self.tally.stats.wait += end - start;
        self.moving_since = self.is_moving().then_some(end);
        self.tally.stats.hidden += hidden_since.map_or(Duration::ZERO, |since| start - since);
        if let Some(trace) = &self.trace {
            if let Some(since) = hidden_since {
                trace.moved(moving, since, start);
            }
            trace.communicated(what, (start, cpu_start), end, &self.waited_for);
            self.waited_for.clear();
        }
        result
    }

    /// Whatever calls and flights have put on the links is taken from them.
    fn abort(&mut self, work: &mut dyn Work) {
        let works = works(work, &mut self.flight);
        self.conns.values_mut().for_each(|conn| conn.abort(&works));
    }

    /// Before another epoch: what was in flight is given up.
    pub(super) fn give_up(&mut self) {
        self.abort(&mut Nothing);
        (self.flight, self.moving_since) = (None, None);
    }

    /// Tasks of the flight that are done.
    fn num_flown(&self) -> usize {
        self.flight.as_ref().map_or(0, |flight| flight.program.run.num_done())
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
        id: Id,
    ) -> Result<(), CommError> {
        let epoch = self.epoch.get();
        self.usable(peer)?;
        let Links { conns, flight, .. } = self;
        linked(conns, peer).enqueue(epoch, channel, works(work, flight).sent(id), id);
        Ok(())
    }

    /// Of a dead peer too: what it has sent before can still be had.
    pub(super) fn admit_receive(
        &mut self,
        work: &mut dyn Work,
        peer: usize,
        channel: Channel,
        id: Id,
    ) -> Result<(), CommError> {
        let Links { epoch, conns, tally, flight, .. } = self;
        let mut turn = Turn { epoch: epoch.get(), work: works(work, flight), tally };
        linked(conns, peer).expect(&mut turn, channel, id)
    }

    /// Puts a transfer of a collective on the link to `peer`.
    pub(super) fn admit(
        &mut self,
        work: &mut dyn Work,
        id: Id,
        peer: usize,
        channel: Channel,
        started: &Started,
    ) -> Result<(), CommError> {
        if started.is_send {
            return self.admit_send(work, peer, channel, id);
        }
        self.hold(peer, channel, started.will_receive);
        self.admit_receive(work, peer, channel, id)
    }

    /// Whether more will be asked of `peer` on `channel` than it has been so far.
    pub(super) fn hold(&mut self, peer: usize, channel: Channel, will_ask: bool) {
        linked(&mut self.conns, peer).hold(channel, will_ask);
    }

    /// What comes for tasks that have not started stays where it is.
    pub(super) fn hold_receives(&mut self, run: &Run, ranks: &[usize], channel: Channel) {
        let senders = ranks.iter().enumerate().filter(|(member, _)| run.will_receive(*member));
        senders.for_each(|(_, &peer)| self.hold(peer, channel, true));
    }

    /// Puts on the links what of the flight may start.
    fn launch(&mut self, work: &mut dyn Work) -> Result<(), CommError> {
        while let Some(flight) = &mut self.flight
            && let Some(started) = flight.program.start_next()
        {
            let (peer, channel) = (flight.ranks[started.member], flight.channel);
            self.admit(work, Id::Flight(started.task), peer, channel, &started)?;
        }
        Ok(())
    }

    /// First attempt without polling, on the links that have something to do: most small messages need no more.
    pub(super) fn start(&mut self, work: &mut dyn Work) -> Result<(), CommError> {
        self.launch(work)?;
        let Links { epoch, conns, tally, flight, .. } = self;
        let mut turn = Turn { epoch: epoch.get(), work: works(work, flight), tally };
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
        let before = self.num_flown();
        self.launch(work)?;
        if self.num_flown() > before {
            return Ok(());
        }
        if block {
            if self.trace.is_some() {
                let awaited: Vec<usize> = self.awaited().collect();
                self.waited_for.extend(awaited);
            }
            if self.yield_for_rings(work)? {
                return Ok(());
            }
            self.waits_for.set(self.awaited());
        }
        let ready = self.poll(block)?;
        if ready.fence {
            self.fence.drain(self.epoch)?;
        }
        let Links { epoch, conns, tally, flight, .. } = self;
        let mut turn = Turn { epoch: epoch.get(), work: works(work, flight), tally };
        for (rank, events) in ready.conns {
            if let Some(conn) = conns.get_mut(&rank) {
                conn.on_events(&mut turn, events)?;
            }
        }
        Ok(())
    }

    /// Ranks that the running call waits for. A collective in flight counts only while the call waits for that.
    fn awaited(&self) -> impl Iterator<Item = usize> {
        let flight = self.flight.as_ref().is_some_and(|flight| flight.is_waited_for);
        let is_awaited = move |conn: &&Conn| conn.is_awaited_by_call() || flight && conn.is_awaited_by_flight();
        self.conns.values().filter(is_awaited).map(|conn| conn.rank)
    }

    /// Gives the processor to other ranks a few times before it sleeps: where they share it, they write meanwhile, and nobody needs to
    /// be woken. True when something was done.
    fn yield_for_rings(&mut self, work: &mut dyn Work) -> Result<bool, CommError> {
        let is_awaited = |conn: &Conn| conn.kind() == LinkKind::Shm && (conn.is_awaited() || conn.wants_write());
        if !self.conns.values().any(is_awaited) {
            return Ok(false);
        }
        let mut yields = Yields::begin();
        loop {
            let Links { epoch, conns, tally, flight, .. } = self;
            let mut turn = Turn { epoch: epoch.get(), work: works(&mut *work, flight), tally };
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
            self.fence.check(self.epoch)?;
            if !yields.again() {
                return Ok(false);
            }
        }
    }

    fn poll(&mut self, block: bool) -> Result<Ready, CommError> {
        if let Some(system) = system::simulated() {
            let ready = |links: &Links| {
                let ready = links.conns.values().map(|conn| (conn.rank, conn.ready()));
                ready.filter(|(_, events)| !events.is_empty()).collect::<Vec<_>>()
            };
            let mut conns = ready(self);
            if block && conns.is_empty() {
                system.wait(None);
                conns = ready(self);
            }
            return Ok(Ready { fence: true, conns });
        }
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
        // Who has decrypted bytes already needs none.
        let is_heard = |conn: &Conn| conn.kind() == LinkKind::Shm || !conn.ready().is_empty();
        let is_heard_out = |rank: usize| self.conns.get(&rank).is_some_and(is_heard);
        let conns = ranks.into_iter().zip(&fds[1..]).map(|(rank, fd)| (rank, fd.revents()));
        let conns = conns.filter(|(rank, events)| !events.is_empty() || is_heard_out(*rank)).collect();
        Ok(Ready { fence: !fds[0].revents().is_empty(), conns })
    }
}

fn works<'a>(call: &'a mut dyn Work, flight: &'a mut Option<Flight>) -> Works<'a> {
    Works { call, flight: flight.as_mut().map(|flight| &mut flight.program as &mut dyn Work) }
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
