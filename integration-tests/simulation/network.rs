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
use toroid_session::{Assignment, TrainerEvent};
use toroid_torus::manifest::ShardFile;

use crate::place::Frame;
use crate::random::Random;

/// Virtual time in microseconds.
pub type Micros = u64;
pub const MS: Micros = 1000;
pub const SECOND: Micros = 1_000_000;
pub const NEVER: Micros = Micros::MAX;

/// A worker's process; never used twice.
pub type Pid = usize;

#[derive(Debug)]
pub enum Event {
    AtCoordinator(AtCoordinator),
    AtWorker { pid: Pid, what: AtWorker },
    CoordinatorStarts,
    CoordinatorContinues,
    WorkerContinues { pid: Pid },
    WorkerStarts { host: String },
    WorkerEnds { pid: Pid },
}

#[derive(Debug)]
pub enum AtCoordinator {
    Message { stream: StreamId, body: Box<FromWorker> },
    Closed { stream: StreamId, reason: &'static str },
    Tick { number: u64 },
}

#[derive(Debug)]
pub enum AtWorker {
    Dial,
    Message {
        stream: StreamId,
        body: Box<ToWorker>,
    },
    StreamClosed {
        stream: StreamId,
    },
    /// The path to the coordinator has been cut for so long that this end gives up.
    KeepaliveFailed {
        stream: StreamId,
    },
    Heartbeat {
        stream: StreamId,
    },
    /// The session has something for the trainer: a command, or a raised fence.
    Wake,
    Trained(TrainerEvent),
    /// The links of this epoch were to be up by now.
    ConnectOver {
        epoch: u64,
    },
    /// What the trainer's thread was busy with is done.
    Computed {
        number: u64,
    },
    /// A writer's thread is done, of whatever job it was begun for.
    ShardWritten {
        assignment: Box<Assignment>,
        step: u64,
        shard: crate::arithmetic::Values,
    },
    /// The same for what it takes away again.
    ShardDropped {
        assignment: Box<Assignment>,
        step: u64,
    },
    /// The publisher's thread has its turn.
    Publish {
        assignment: Box<Assignment>,
        step: u64,
        files: Vec<ShardFile>,
        remove: Vec<u64>,
    },
    Frame {
        from: Pid,
        incarnation: u64,
        due: Micros,
        frame: Frame,
    },
    LinkClosed {
        peer: Pid,
        incarnation: u64,
    },
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

/// Both directions of a connection between two workers, the one from the lower to the higher pid first.
#[derive(Debug, Default)]
struct Link {
    incarnation: u64,
    is_open: bool,
    blocked_until: Micros,
    /// When the newest message arrives.
    last: [Micros; 2],
    /// After a break: what arrives later is lost.
    cut: [Micros; 2],
}

#[derive(Debug)]
struct Stream {
    pid: Pid,
    last_to_coordinator: Micros,
    last_to_worker: Micros,
    /// What the worker sent and would arrive later is lost.
    cut: Micros,
}

pub struct Network {
    pub now: Micros,
    pub random: Random,
    queue: BinaryHeap<Reverse<Scheduled>>,
    num_events: u64,
    links: BTreeMap<(Pid, Pid), Link>,
    streams: BTreeMap<StreamId, Stream>,
    next_stream: u64,
    /// Until when a worker's path to the coordinator is cut.
    cut_off: BTreeMap<Pid, Micros>,
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
            links: BTreeMap::new(),
            streams: BTreeMap::new(),
            next_stream: 1,
            cut_off: BTreeMap::new(),
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

    pub fn open_stream(&mut self, pid: Pid) -> StreamId {
        let stream = StreamId(self.next_stream);
        self.next_stream += 1;
        self.streams.insert(stream, Stream { pid, last_to_coordinator: 0, last_to_worker: 0, cut: NEVER });
        stream
    }

    /// Streams that are opened from now on are not below this one.
    pub fn next_stream(&self) -> StreamId {
        StreamId(self.next_stream)
    }

    pub fn is_cut_off(&self, pid: Pid) -> bool {
        self.cut_off.get(&pid).is_some_and(|until| *until > self.now)
    }

    /// The path between a worker and the coordinator is cut; what is under way already arrives.
    pub fn cut_off(&mut self, pid: Pid, until: Micros) {
        self.cut_off.insert(pid, until);
    }

    fn due(&mut self, pid: Pid, last: Micros) -> Micros {
        let (delay, blocked) = (self.delay(), self.cut_off.get(&pid).copied().unwrap_or(0));
        (self.now.max(blocked) + delay).max(last + 1)
    }

    pub fn send_to_coordinator(&mut self, stream: StreamId, what: AtCoordinator) {
        let (pid, last) = match self.streams.get(&stream) {
            Some(s) => (s.pid, s.last_to_coordinator),
            None => return,
        };
        let due = self.due(pid, last);
        self.streams.get_mut(&stream).expect("looked up above").last_to_coordinator = due;
        self.push_at(due, Event::AtCoordinator(what));
    }

    pub fn send_to_worker(&mut self, stream: StreamId, what: impl FnOnce(StreamId) -> AtWorker) {
        let (pid, last) = match self.streams.get(&stream) {
            Some(s) => (s.pid, s.last_to_worker),
            None => return,
        };
        let due = self.due(pid, last);
        self.streams.get_mut(&stream).expect("looked up above").last_to_worker = due;
        self.push_at(due, Event::AtWorker { pid, what: what(stream) });
    }

    /// The worker's end of a stream is gone: some of what is under way arrives, then the coordinator sees the end.
    pub fn close_at_worker(&mut self, stream: StreamId, reason: &'static str) {
        let cut = self.point_of_break(|n, s| n.streams[&s].last_to_coordinator, stream);
        self.streams.get_mut(&stream).expect("a worker closes streams that it opened").cut = cut;
        self.send_to_coordinator(stream, AtCoordinator::Closed { stream, reason });
    }

    /// Whether a message from a worker that arrives now is not lost.
    pub fn reaches_coordinator(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|s| self.now <= s.cut)
    }

    // ----------------------------------------------------------------------------------------------- links between workers

    /// The link between two workers, opened anew if it was closed; its incarnation.
    pub fn connect(&mut self, a: Pid, b: Pid) -> u64 {
        let now = self.now;
        let link = self.links.entry((a.min(b), a.max(b))).or_default();
        if !link.is_open {
            link.incarnation += 1;
            link.is_open = true;
            link.last = [now; 2];
            link.cut = [NEVER; 2];
        }
        link.incarnation
    }

    pub fn is_open(&self, a: Pid, b: Pid, incarnation: u64) -> bool {
        self.links.get(&(a.min(b), a.max(b))).is_some_and(|l| l.is_open && l.incarnation == incarnation)
    }

    pub fn send_frame(&mut self, from: Pid, to: Pid, incarnation: u64, frame: Frame) {
        let delay = self.delay();
        let now = self.now;
        let Some(link) = self.links.get_mut(&(from.min(to), from.max(to))) else { return };
        if !link.is_open || link.incarnation != incarnation {
            return;
        }
        let last = &mut link.last[usize::from(from > to)];
        let due = (now.max(link.blocked_until) + delay).max(*last + 1);
        *last = due;
        self.push_at(due, Event::AtWorker { pid: to, what: AtWorker::Frame { from, incarnation, due, frame } });
    }

    /// Whether a frame that arrives now is not lost.
    pub fn reaches(&self, from: Pid, to: Pid, incarnation: u64, due: Micros) -> bool {
        let link = self.links.get(&(from.min(to), from.max(to)));
        link.is_some_and(|l| l.incarnation == incarnation && (l.is_open || due <= l.cut[usize::from(from > to)]))
    }

    /// Nothing passes between two workers until then; the connection stays.
    pub fn block_link(&mut self, a: Pid, b: Pid, until: Micros) {
        self.links.entry((a.min(b), a.max(b))).or_default().blocked_until = until;
    }

    pub fn is_any_link_blocked(&self) -> bool {
        self.links.values().any(|l| l.blocked_until > self.now)
    }

    /// A connection breaks: of what is under way in each direction, a prefix arrives.
    pub fn break_link(&mut self, a: Pid, b: Pid) {
        let key = (a.min(b), a.max(b));
        if !self.links.get(&key).is_some_and(|l| l.is_open) {
            return;
        }
        for (direction, (to, peer)) in [(key.1, key.0), (key.0, key.1)].into_iter().enumerate() {
            let cut = self.point_of_break(|n, key| n.links[&key].last[direction], key);
            let delay = self.delay();
            let link = self.links.get_mut(&key).expect("looked up above");
            link.is_open = false;
            link.cut[direction] = cut;
            let seen = self.now.max(link.blocked_until).max(cut) + delay;
            let what = AtWorker::LinkClosed { peer, incarnation: link.incarnation };
            self.push_at(seen, Event::AtWorker { pid: to, what });
        }
    }

    pub fn break_links_of(&mut self, pid: Pid) {
        let keys: Vec<(Pid, Pid)> = self.links.keys().filter(|(a, b)| *a == pid || *b == pid).copied().collect();
        keys.into_iter().for_each(|(a, b)| self.break_link(a, b));
    }

    /// Up to when a broken connection still delivers: nothing of what is under way, everything, or a part.
    fn point_of_break<K>(&mut self, last: impl Fn(&Network, K) -> Micros, key: K) -> Micros {
        let last = last(self, key).max(self.now);
        match self.random.below(3) {
            0 => self.now,
            1 => last,
            _ => self.now + self.random.below(last - self.now + 1),
        }
    }

    /// No path is cut any more.
    pub fn heal(&mut self) {
        let now = self.now;
        self.cut_off.clear();
        self.links.values_mut().for_each(|l| l.blocked_until = l.blocked_until.min(now));
    }
}
