//! Connections between workers: bytes in order, over the virtual network.
//!
//! ```text
//!   connect ── Call ──> the kernel of the other: refused where nobody lives there, else it waits for accept
//!   write ── in flight ── Arrives ──> read               close, death, break ── Ends ──> read gives 0, or an error
//! ```
//!
//! The kernel of a stopped process takes calls and bytes all the same. What a connection that breaks has under way arrives up to a random
//! point. Between two that are apart everything waits.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind};

use toroid_worker::system::Stream;

use crate::network::{Event, Micros, NEVER, Network, Pid, SECOND};
use crate::played::stage;
use crate::world::{Env, Unable};

/// Bytes that are under way or not yet read, in one direction, at most.
const WINDOW: usize = 32 << 10;

/// After a connection broke, everybody has needed it.
const ENDING: Micros = 20 * SECOND;

#[derive(Debug, Default)]
struct Direction {
    /// With when they arrive.
    flight: VecDeque<(Micros, Vec<u8>)>,
    arrived: VecDeque<u8>,
    /// When the newest bytes arrive.
    last: Micros,
    /// After a break: what arrives later is lost.
    cut: Micros,
    /// The reader has come to the end of it, or to the break.
    end: Option<End>,
    /// The writer has found no room.
    is_full: bool,
}

impl Direction {
    /// Bytes that may be written now. A writer that finds no room hears when there is some.
    fn room(&mut self) -> usize {
        let held = self.arrived.len() + self.flight.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        self.is_full = held >= WINDOW;
        WINDOW.saturating_sub(held)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Closed,
    Reset,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Calling,
    Open,
    Refused,
    /// An end was closed, or it broke: nothing more is written.
    Over,
}

#[derive(Debug)]
struct Link {
    /// The caller, and the called.
    ends: [Pid; 2],
    state: State,
    /// By the writer's end.
    directions: [Direction; 2],
    /// Ends that were dropped.
    num_dropped: usize,
}

#[derive(Debug, Default)]
pub struct Links {
    links: BTreeMap<u64, Link>,
    next: u64,
    /// Calls that nobody has taken, by who is called.
    calls: BTreeMap<Pid, VecDeque<u64>>,
    /// When a connection broke last.
    broke_at: Option<Micros>,
    /// Until when two workers are apart, the lower pid first.
    apart_until: BTreeMap<(Pid, Pid), Micros>,
}

impl Links {
    /// The oldest call for this worker, and who calls.
    pub fn accept(&mut self, pid: Pid) -> Option<(PlayedStream, Pid)> {
        let id = self.calls.get_mut(&pid)?.pop_front()?;
        let from = self.links.get(&id)?.ends[0];
        Some((PlayedStream { id, end: 1 }, from))
    }

    /// Who is called.
    pub fn called(&self, id: u64) -> Option<Pid> {
        self.links.get(&id).map(|link| link.ends[1])
    }

    /// A connection broke lately: who has lost it may not have needed it yet.
    pub fn is_any_ending(&self, now: Micros) -> bool {
        self.broke_at.is_some_and(|at| now < at + ENDING)
    }

    fn apart(&self, a: Pid, b: Pid) -> Micros {
        self.apart_until.get(&(a.min(b), a.max(b))).copied().unwrap_or(0)
    }

    pub fn is_any_apart(&self, now: Micros) -> bool {
        self.apart_until.values().any(|until| *until > now)
    }

    /// Nobody is apart any more.
    pub fn heal(&mut self) {
        self.apart_until.clear();
    }
}

impl Network {
    /// Nothing passes between two workers until then; connections stay.
    pub fn block_link(&mut self, a: Pid, b: Pid, until: Micros) {
        self.links.apart_until.insert((a.min(b), a.max(b)), until);
    }

    pub fn is_any_link_blocked(&self) -> bool {
        self.links.is_any_apart(self.now)
    }

    fn due_between(&mut self, a: Pid, b: Pid, last: Micros) -> Micros {
        let (apart, delay) = (self.links.apart(a, b), self.delay());
        (self.now.max(apart) + delay).max(last + 1)
    }

    /// Connections between these two break.
    pub fn break_link(&mut self, a: Pid, b: Pid) {
        self.break_all(|ends| ends == [a, b] || ends == [b, a], None);
    }

    /// Its process has ended: the kernel closes what it had.
    pub fn break_links_of(&mut self, pid: Pid) {
        self.links.calls.remove(&pid);
        self.break_all(|ends| ends.contains(&pid), Some(pid));
    }

    fn break_all(&mut self, is_it: impl Fn([Pid; 2]) -> bool, dead: Option<Pid>) {
        self.links.broke_at = Some(self.now);
        let live = |link: &Link| matches!(link.state, State::Calling | State::Open);
        let ids: Vec<u64> =
            self.links.links.iter().filter(|(_, l)| live(l) && is_it(l.ends)).map(|(id, _)| *id).collect();
        for id in ids {
            for end in [0, 1] {
                let link = &self.links.links[&id];
                let (writer, reader, last) = (link.ends[end], link.ends[1 - end], link.directions[end].last);
                let cut = self.point_of_break(last);
                let apart = self.links.apart(writer, reader);
                let seen = self.now.max(apart).max(cut) + self.delay();
                let link = self.links.links.get_mut(&id).expect("looked up above");
                link.state = State::Over;
                link.directions[end].cut = cut;
                if dead != Some(reader) {
                    let how = if self.random.percent(50) { End::Closed } else { End::Reset };
                    self.push_at(seen, Event::LinkEnds { id, writer: end, how });
                }
            }
        }
    }

    /// Up to when a broken connection still delivers: nothing of what is under way, everything, or a part.
    pub fn point_of_break(&mut self, last: Micros) -> Micros {
        let last = last.max(self.now);
        match self.random.below(3) {
            0 => self.now,
            1 => last,
            _ => self.now + self.random.below(last - self.now + 1),
        }
    }

    /// A call has come to the called. Who is to hear of it.
    pub fn called(&mut self, id: u64, is_alive: bool) -> Vec<Pid> {
        let Some(link) = self.links.links.get_mut(&id).filter(|l| l.state == State::Calling) else { return Vec::new() };
        link.state = if is_alive { State::Open } else { State::Refused };
        let [caller, called] = link.ends;
        if is_alive {
            self.links.calls.entry(called).or_default().push_back(id);
        }
        vec![caller, called]
    }

    /// What is due in this direction arrives at the reader.
    pub fn arrives(&mut self, id: u64, writer: usize) -> Option<Pid> {
        let now = self.now;
        let link = self.links.links.get_mut(&id)?;
        let direction = &mut link.directions[writer];
        while let Some((due, bytes)) = direction.flight.pop_front() {
            if due > now {
                direction.flight.push_front((due, bytes));
                break;
            }
            if due <= direction.cut {
                direction.arrived.extend(bytes);
            }
        }
        Some(link.ends[1 - writer])
    }

    /// The reader is told of the end.
    pub fn ends(&mut self, id: u64, writer: usize, how: End) -> Option<Pid> {
        self.arrives(id, writer);
        let link = self.links.links.get_mut(&id)?;
        link.directions[writer].end.get_or_insert(how);
        Some(link.ends[1 - writer])
    }
}

/// An end of a connection.
pub struct PlayedStream {
    id: u64,
    end: usize,
}

impl PlayedStream {
    pub fn connect(env: &mut Env, from: Pid, to: Pid) -> PlayedStream {
        let net = &mut env.net;
        let id = net.links.next;
        net.links.next += 1;
        let direction = || Direction { cut: NEVER, ..Direction::default() };
        let directions = [direction(), direction()];
        net.links.links.insert(id, Link { ends: [from, to], state: State::Calling, directions, num_dropped: 0 });
        let is_lost = [from, to].iter().any(|pid| env.unable.get(pid) == Some(&Unable::Unreachable));
        if !is_lost {
            let due = net.due_between(from, to, 0);
            net.push_at(due, Event::LinkCalls { id });
        }
        PlayedStream { id, end: 0 }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Env, &PlayedStream) -> T) -> T {
        stage().with(|env, _| f(env, self))
    }

    fn has_ended(&self) -> bool {
        self.link(|link| link.directions[1 - self.end].end.is_some())
    }

    fn link<T>(&self, f: impl FnOnce(&mut Link) -> T) -> T {
        self.with(|env, own| f(env.net.links.links.get_mut(&own.id).expect("an end that lives has a link")))
    }
}

impl Stream for PlayedStream {
    fn connected(&self) -> io::Result<bool> {
        match self.link(|link| link.state) {
            State::Calling => Ok(false),
            State::Open => Ok(true),
            State::Refused => Err(ErrorKind::ConnectionRefused.into()),
            State::Over if self.has_ended() => Err(ErrorKind::ConnectionReset.into()),
            State::Over => Ok(false),
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let end = self.end;
        let (read, woken) = self.link(|link| {
            let direction = &mut link.directions[1 - end];
            let num = bytes.len().min(direction.arrived.len());
            let (first, second) = direction.arrived.as_slices();
            let cut = num.min(first.len());
            bytes[..cut].copy_from_slice(&first[..cut]);
            bytes[cut..num].copy_from_slice(&second[..num - cut]);
            direction.arrived.drain(..num);
            let woken = (num > 0 && std::mem::take(&mut direction.is_full)).then_some(link.ends[1 - end]);
            let read = match link.directions[1 - end].end {
                _ if num > 0 || bytes.is_empty() => Ok(num),
                None => Err(ErrorKind::WouldBlock.into()),
                Some(End::Closed) => Ok(0),
                Some(End::Reset) => Err(ErrorKind::ConnectionReset.into()),
            };
            (read, woken)
        });
        if let Some(pid) = woken {
            self.with(|env, _| env.happens(pid));
        }
        read
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.with(|env, own| {
            let net = &mut env.net;
            let link = net.links.links.get_mut(&own.id).expect("an end that lives has a link");
            if link.directions[1 - own.end].end.is_some() {
                return Err(ErrorKind::BrokenPipe.into());
            }
            if link.state == State::Over {
                // Lost on the way, which this end does not know yet.
                return Ok(bytes.len());
            }
            let (ends, direction) = (link.ends, &mut link.directions[own.end]);
            let num = bytes.len().min(direction.room());
            if num == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let last = direction.last;
            let due = net.due_between(ends[0], ends[1], last);
            let link = net.links.links.get_mut(&own.id).expect("looked up above");
            let direction = &mut link.directions[own.end];
            direction.last = due;
            direction.flight.push_back((due, bytes[..num].to_vec()));
            net.push_at(due, Event::LinkArrives { id: own.id, writer: own.end });
            Ok(num)
        })
    }

    fn can_read(&self) -> bool {
        let end = self.end;
        self.link(|link| !link.directions[1 - end].arrived.is_empty() || link.directions[1 - end].end.is_some())
    }

    fn can_write(&self) -> bool {
        let end = self.end;
        self.link(|link| {
            let direction = &mut link.directions[end];
            direction.room() > 0
        })
    }
}

impl Drop for PlayedStream {
    fn drop(&mut self) {
        let own = &*self;
        stage().with(|env, pid| {
            let net = &mut env.net;
            let Some(link) = net.links.links.get_mut(&own.id) else { return };
            link.num_dropped += 1;
            let (reader, last) = (link.ends[1 - own.end], link.directions[own.end].last);
            if matches!(link.state, State::Open | State::Calling) {
                link.state = State::Over;
                let due = net.due_between(pid, reader, last);
                net.push_at(due, Event::LinkEnds { id: own.id, writer: own.end, how: End::Closed });
            } else if link.num_dropped == 2 {
                net.links.links.remove(&own.id);
            }
        });
    }
}
