//! Virtual time, and a network on it that delays, reorders between connections, holds back, cuts and loses.
//!
//! ```text
//!   worker <── stream, both ways in order ──> coordinator        worker <── link, both ways in order ──> worker
//! ```
//!
//! What is sent over one connection arrives in that order; between connections anything goes. A connection that breaks delivers
//! what was under way up to a random point, so that of the messages of a collective any subset may arrive. A path that is cut
//! (a partition) holds everything back until it is whole again or an end gives up.
//!
//! Deliberately absent: duplicates within a connection. TCP has none; late duplicates come from old epochs, see `faults`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use toroid_coordinator::machine::StreamId;
use toroid_proto::coordinator_message::Body as ToWorker;
use toroid_proto::worker_message::Body as FromWorker;
use toroid_session::TrainerEvent;
use toroid_torus::ids::Term;

use crate::leaders::AtEtcd;
use crate::links::{End, Links};
use crate::played::Thread;
use crate::random::Random;
use crate::service::Seat;

/// Virtual time in microseconds.
pub type Micros = u64;
pub const MS: Micros = 1000;
pub const SECOND: Micros = 1_000_000;
pub const NEVER: Micros = Micros::MAX;

/// A worker's process; never used twice.
pub type Pid = usize;

#[derive(Debug)]
pub enum Event {
    AtCoordinator(Seat, AtCoordinator),
    AtEtcd(AtEtcd),
    AtWorker {
        pid: Pid,
        what: AtWorker,
    },
    CoordinatorStarts {
        seat: Seat,
    },
    CoordinatorContinues {
        seat: Seat,
    },
    WorkerContinues {
        pid: Pid,
    },
    WorkerStarts {
        host: String,
    },
    WorkerEnds {
        pid: Pid,
    },
    /// A call comes to the called.
    LinkCalls {
        id: u64,
    },
    /// Bytes come to the reader.
    LinkArrives {
        id: u64,
        writer: usize,
    },
    /// The reader hears that no more will come.
    LinkEnds {
        id: u64,
        writer: usize,
        how: End,
    },
}

#[derive(Debug)]
pub enum AtCoordinator {
    Message { stream: StreamId, body: Box<FromWorker> },
    Closed { stream: StreamId, reason: &'static str },
    Tick { number: u64 },
}

#[derive(Debug)]
pub enum AtWorker {
    Message {
        stream: StreamId,
        term: Term,
        body: Box<ToWorker>,
    },
    StreamClosed {
        stream: StreamId,
    },
    /// The path to the coordinator has been cut for so long that this end gives up.
    KeepaliveFailed {
        stream: StreamId,
    },
    /// The client's deadline has come, unless it has another since.
    Deadline {
        number: u64,
    },
    /// SIGTERM, for the n-th time.
    Asked {
        times: u32,
    },
    /// A thread's wait is over.
    Resume {
        thread: Thread,
        number: u64,
    },
    Trained(TrainerEvent),
}

struct Scheduled {
    at: Micros,
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

#[derive(Debug)]
struct Stream {
    pid: Pid,
    /// Of the coordinator that it leads to.
    seat: Seat,
    last_to_coordinator: Micros,
    last_to_worker: Micros,
    /// What the worker sent and would arrive later is lost.
    cut: Micros,
}

#[derive(Default)]
pub struct Network {
    pub now: Micros,
    pub random: Random,
    queue: BinaryHeap<Reverse<Scheduled>>,
    num_events: u64,
    pub links: Links,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u64,
    /// Until when a worker's path to the coordinator is cut.
    cut_off: BTreeMap<Pid, Micros>,
    /// Until when a coordinator is cut off all workers.
    cut_seats: BTreeMap<Seat, Micros>,
    /// Upper bound of the usual delay; some seeds have a slow network.
    delay_max: Micros,
}

impl Network {
    pub fn new(mut random: Random) -> Network {
        let delay_max = random.pick(&[MS, 5 * MS, 40 * MS]).expect("there are some");
        Network {
            now: 0,
            random,
            queue: BinaryHeap::new(),
            num_events: 0,
            links: Links::default(),
            streams: BTreeMap::new(),
            next_stream: 1,
            cut_off: BTreeMap::new(),
            cut_seats: BTreeMap::new(),
            delay_max,
        }
    }

    pub fn push_at(&mut self, at: Micros, event: Event) {
        self.num_events += 1;
        self.queue.push(Reverse(Scheduled { at: at.max(self.now), number: self.num_events, event }));
    }

    pub fn push(&mut self, after: Micros, event: Event) {
        self.push_at(self.now.saturating_add(after), event);
    }

    pub fn at_worker(&mut self, pid: Pid, after: Micros, what: AtWorker) {
        self.push(after, Event::AtWorker { pid, what });
    }

    /// The next event; time goes on to it.
    pub fn pop(&mut self) -> Option<Event> {
        let Reverse(next) = self.queue.pop()?;
        self.now = next.at;
        Some(next.event)
    }

    /// One message in twenty takes far longer than the others.
    pub fn delay(&mut self) -> Micros {
        let max = if self.random.percent(5) { 10 * self.delay_max } else { self.delay_max };
        1 + self.random.below(max)
    }

    // ------------------------------------------------------------------------------------------- streams to the coordinator

    pub fn open_stream(&mut self, pid: Pid, seat: Seat) -> StreamId {
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        self.streams.insert(stream, Stream { pid, seat, last_to_coordinator: 0, last_to_worker: 0, cut: NEVER });
        stream
    }

    /// Streams that are opened from now on are not below this one.
    pub fn next_stream(&self) -> StreamId {
        StreamId(self.next_stream)
    }

    /// Whether nothing passes between a worker and a coordinator.
    pub fn is_cut_off(&self, pid: Pid, seat: Seat) -> bool {
        let cut = self.cut_off.get(&pid).max(self.cut_seats.get(&seat));
        cut.is_some_and(|until| *until > self.now)
    }

    /// The coordinator that a stream leads to.
    pub fn seat_of(&self, stream: StreamId) -> Seat {
        self.streams.get(&stream).map_or(0, |s| s.seat)
    }

    /// The paths between a coordinator and all workers are cut.
    pub fn cut_seat(&mut self, seat: Seat, until: Micros) {
        self.cut_seats.insert(seat, until);
    }

    /// The path between a worker and the coordinator is cut; what is under way already arrives.
    pub fn cut_off(&mut self, pid: Pid, until: Micros) {
        self.cut_off.insert(pid, until);
    }

    fn due(&mut self, pid: Pid, seat: Seat, last: Micros) -> Micros {
        let cut = self.cut_off.get(&pid).max(self.cut_seats.get(&seat));
        let (blocked, delay) = (cut.copied().unwrap_or(0), self.delay());
        (self.now.max(blocked) + delay).max(last + 1)
    }

    pub fn send_to_coordinator(&mut self, stream: StreamId, what: AtCoordinator) {
        let (pid, seat, last) = match self.streams.get(&stream) {
            Some(s) => (s.pid, s.seat, s.last_to_coordinator),
            None => return,
        };
        let due = self.due(pid, seat, last);
        self.streams.get_mut(&stream).expect("looked up above").last_to_coordinator = due;
        self.push_at(due, Event::AtCoordinator(seat, what));
    }

    pub fn send_to_worker(&mut self, stream: StreamId, what: impl FnOnce(StreamId) -> AtWorker) {
        let (pid, seat, last) = match self.streams.get(&stream) {
            Some(s) => (s.pid, s.seat, s.last_to_worker),
            None => return,
        };
        let due = self.due(pid, seat, last);
        self.streams.get_mut(&stream).expect("looked up above").last_to_worker = due;
        self.push_at(due, Event::AtWorker { pid, what: what(stream) });
    }

    /// The worker's end of a stream is gone: some of what is under way arrives, then the coordinator sees the end.
    pub fn close_at_worker(&mut self, stream: StreamId, reason: &'static str) {
        let last = self.streams[&stream].last_to_coordinator;
        let cut = self.point_of_break(last);
        self.streams.get_mut(&stream).expect("a worker closes streams that it opened").cut = cut;
        self.send_to_coordinator(stream, AtCoordinator::Closed { stream, reason });
    }

    /// Whether a message from a worker that arrives now is not lost.
    pub fn reaches_coordinator(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|s| self.now <= s.cut)
    }

    /// No path is cut any more.
    pub fn heal(&mut self) {
        self.cut_off.clear();
        self.cut_seats.clear();
        self.links.heal();
    }
}
