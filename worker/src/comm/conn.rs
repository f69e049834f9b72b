//! One connection to one rank: frames on their way out, the frame that is coming in, and what nobody has asked for yet.
//!
//! ```text
//!   enqueue -> out -----------> socket        socket -> header -> the buffer that waits for it      (no copy)
//!              (one at a time,                                  | stash, until somebody asks for it (one copy)
//!               header and payload                              | discard: of an older epoch        (T-1, counted)
//!               in one call)                                    | park: of a newer epoch            (T-1)
//! ```
//!
//! What is added (gradients) is added as it comes: from shared memory without a copy, from a socket through a buffer that stays in
//! the cache.
//!
//! A frame for which the running call has no place yet, but will have, stays where it is too: in the ring, or the kernel.
//!
//! A frame of a newer epoch stays where it is, in the kernel: its connection is not read any further until this side has advanced, so
//! that keeping it aside costs no memory.
//!
//! A frame is never cut short, whatever happens to the call that sends or receives it: what is left of a half-sent one is copied and
//! goes out later, what is left of a half-received one is read and thrown away. So the connection outlives the epoch.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::BorrowedFd;

use rustix::event::PollFlags;

use toroid_session::PeerAddr;
use toroid_torus::ids::WorkerId;

use super::frame::{Channel, FrameFault, HEADER_LEN, Header, NUM_CHANNELS, Stream};
use super::handshake::Binding;
use super::transport::Transport;
use super::work::{Adder, Id, Landing, Works};
use super::{CommError, LinkKind, LinkStats};

/// Bytes that one turn reads from or writes to one connection at most, so that a fast peer does not starve the others.
const TURN_BYTES: usize = 4 << 20;
/// Of the buffer for what is thrown away or added.
const STAGING_BYTES: usize = 64 << 10;

pub(super) struct Conn {
    pub rank: usize,
    pub worker_id: WorkerId,
    /// Where the peer listens, which tells it from another process of its id.
    pub address: String,
    pub binding: Binding,
    /// `None` once it is lost; `loss` says why.
    stream: Option<Transport>,
    kind: LinkKind,
    loss: String,
    out: VecDeque<Outgoing>,
    reading: Reading,
    /// The peer has proven to be in this epoch.
    confirmed: bool,
    expected_resume: Option<blake3::Hash>,
    next_send: [u64; NUM_CHANNELS],
    next_recv: [u64; NUM_CHANNELS],
    /// Transfers that wait, by channel.
    waiting: [VecDeque<Id>; NUM_CHANNELS],
    stash: [VecDeque<Vec<u8>>; NUM_CHANNELS],
    /// Whoever waits will ask for more: what comes stays where it is until then.
    held: [bool; NUM_CHANNELS],
    /// For what is thrown away or added; empty until then.
    staging: Vec<u8>,
    adder: Adder,
}

/// What all connections of a [`Links`](super::Links) share while one call runs.
pub(super) struct Turn<'a> {
    pub epoch: u64,
    pub work: Works<'a>,
    pub tally: &'a mut Tally,
}

impl Turn<'_> {
    fn complete(&mut self, transfer: Id) {
        self.tally.completed += usize::from(matches!(transfer, Id::Call(_)));
        self.work.complete(transfer);
    }
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub stats: LinkStats,
    /// Transfers of the running call that are done.
    pub completed: usize,
    /// Bound of what one connection keeps for later: received and not asked for, and queued and not sent.
    pub limit_bytes: usize,
}

struct Outgoing {
    header: [u8; HEADER_LEN],
    payload: Payload,
    header_sent: usize,
    payload_sent: usize,
}

enum Payload {
    Owned(Vec<u8>),
    Transfer(Id),
}

enum Reading {
    Header { bytes: [u8; HEADER_LEN], filled: usize },
    Payload { header: Header, target: Target, filled: usize, crc: u32 },
    Parked(Header),
}

enum Target {
    Transfer(Id),
    Owned(Vec<u8>),
    Discard,
}

impl Reading {
    fn next() -> Reading {
        Reading::Header { bytes: [0; HEADER_LEN], filled: 0 }
    }
}

impl Conn {
    /// A connection whose handshake for the present epoch is done.
    pub fn new(rank: usize, peer: &PeerAddr, stream: Transport, binding: Binding) -> Conn {
        Conn {
            rank,
            worker_id: peer.worker_id.clone(),
            address: peer.address.clone(),
            binding,
            kind: stream.kind(),
            stream: Some(stream),
            loss: String::new(),
            out: VecDeque::new(),
            reading: Reading::next(),
            confirmed: true,
            expected_resume: None,
            next_send: [0; NUM_CHANNELS],
            next_recv: [0; NUM_CHANNELS],
            waiting: Default::default(),
            stash: Default::default(),
            held: Default::default(),
            staging: Vec::new(),
            adder: Adder::default(),
        }
    }

    /// What to poll for. Nothing while a frame is parked: of a newer epoch, and then this epoch is over with that peer, which a fence will
    /// say; or ahead of what this rank will ask for.
    pub fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let stream = self.stream.as_ref().filter(|_| !matches!(self.reading, Reading::Parked(_)))?;
        Some((stream.fd()?, stream.interest(self.wants_write())))
    }

    /// Before a poll that waits: what can be done at once, and the peer is to wake this side for the rest.
    pub fn announce(&mut self) -> PollFlags {
        let wants_write = self.wants_write();
        match &mut self.stream {
            Some(stream) if !matches!(self.reading, Reading::Parked(_)) => stream.announce(wants_write),
            _ => PollFlags::empty(),
        }
    }

    /// What can be done at once, as far as that is known without the kernel.
    pub fn ready(&self) -> PollFlags {
        match &self.stream {
            Some(stream) if !matches!(self.reading, Reading::Parked(_)) => stream.ready(self.wants_write()),
            _ => PollFlags::empty(),
        }
    }

    /// Does what `events` of a poll allow.
    pub fn on_events(&mut self, turn: &mut Turn<'_>, events: PollFlags) -> Result<(), CommError> {
        let wants_write = self.wants_write();
        let Some(stream) = &mut self.stream else { return Ok(()) };
        let events = stream.heed(events, wants_write);
        self.act(turn, events)
    }

    /// First reading: what a peer sent before it died must not be lost to a failing write.
    pub fn act(&mut self, turn: &mut Turn<'_>, events: PollFlags) -> Result<(), CommError> {
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            self.receive(turn)?;
        }
        if events.contains(PollFlags::OUT) { self.send(turn) } else { Ok(()) }
    }

    /// For who bypasses the frames. `None` once it is lost.
    pub fn transport(&mut self) -> Option<&mut Transport> {
        self.stream.as_mut()
    }

    /// Messages put on the way in this epoch.
    pub fn num_sent(&self, channel: Channel) -> u64 {
        self.next_send[channel.index()]
    }

    pub fn kind(&self) -> LinkKind {
        self.kind
    }

    pub fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// A transfer, of the running call or in flight beside it, needs this connection.
    pub fn is_awaited(&self) -> bool {
        self.has_transfer(|_| true)
    }

    /// A transfer of the running call needs this connection, or what was queued is to go out.
    pub fn is_awaited_by_call(&self) -> bool {
        self.has_transfer(|id| matches!(id, Id::Call(_)))
            || self.out.iter().any(|o| matches!(o.payload, Payload::Owned(_)))
    }

    /// What is in flight needs this connection.
    pub fn is_awaited_by_flight(&self) -> bool {
        self.has_transfer(|id| matches!(id, Id::Flight(_)))
    }

    fn has_transfer(&self, is_it: impl Fn(Id) -> bool) -> bool {
        self.waiting.iter().flatten().any(|id| is_it(*id))
            || matches!(self.reading, Reading::Payload { target: Target::Transfer(id), .. } if is_it(id))
            || self.out.iter().any(|o| matches!(o.payload, Payload::Transfer(id) if is_it(id)))
    }

    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Frames can go both ways: the TLS handshake is done where there is one.
    pub fn is_open(&self) -> bool {
        self.stream.as_ref().is_some_and(Transport::is_open)
    }

    pub fn lost(&self) -> Option<CommError> {
        self.stream.is_none().then(|| CommError::PeerLost {
            rank: self.rank,
            worker_id: self.worker_id.clone(),
            why: self.loss.clone(),
        })
    }

    /// Closes the connection. An error only where a transfer of the running call needs it: a rank that has all it wants from a dead
    /// one goes on.
    fn lose(&mut self, why: String) -> Result<(), CommError> {
        tracing::debug!(rank = self.rank, worker_id = self.worker_id.as_str(), why, "lost a link");
        self.stream = None;
        self.loss = why;
        match self.lost() {
            Some(error) if self.is_awaited() => Err(error),
            _ => Ok(()),
        }
    }

    fn corrupt(&mut self, fault: FrameFault) -> CommError {
        let FrameFault { what, expected, found } = fault;
        self.stream = None;
        self.loss = format!("the link was closed after a damaged frame ({what})");
        CommError::Corrupt { rank: self.rank, what, expected, found }
    }

    // Sending

    pub fn enqueue(&mut self, epoch: u64, channel: Channel, payload: &[u8], transfer: Id) {
        let header = self.header(epoch, channel, payload);
        self.out.push_back(Outgoing::new(header, Payload::Transfer(transfer)));
    }

    pub fn enqueue_owned(
        &mut self,
        epoch: u64,
        channel: Channel,
        payload: Vec<u8>,
        limit: usize,
    ) -> Result<(), CommError> {
        let queued: usize = self.out.iter().map(Outgoing::owned_bytes).sum();
        let held = queued + payload.len();
        if held > limit {
            let what = "queued and not taken by the other side";
            return Err(CommError::Overflow { rank: self.rank, channel, what, held, limit });
        }
        let header = self.header(epoch, channel, &payload);
        self.out.push_back(Outgoing::new(header, Payload::Owned(payload)));
        Ok(())
    }

    fn header(&mut self, epoch: u64, channel: Channel, payload: &[u8]) -> Header {
        let sequence = &mut self.next_send[channel.index()];
        let make = if self.kind.has_sums() { Header::of } else { Header::without_sum };
        let header = make(Stream::Data(channel), epoch, *sequence, payload);
        *sequence += 1;
        header
    }

    /// Writes what the socket takes. Rust's runtime ignores SIGPIPE, so a dead peer is an error here and no signal.
    pub fn send(&mut self, turn: &mut Turn<'_>) -> Result<(), CommError> {
        let mut budget = TURN_BYTES;
        if let Some(stream) = &mut self.stream
            && let Err(error) = stream.flush()
        {
            return self.write_failed(turn, &error);
        }
        while let (Some(front), Some(stream), true) = (self.out.front_mut(), self.stream.as_mut(), budget > 0) {
            let payload = match &front.payload {
                Payload::Owned(bytes) => bytes.as_slice(),
                Payload::Transfer(i) => turn.work.sent(*i),
            };
            let parts = [&front.header[front.header_sent..], &payload[front.payload_sent..]].map(IoSlice::new);
            stream.set_queued(!matches!(front.payload, Payload::Transfer(Id::Call(_))));
            match stream.write_vectored(&parts) {
                Ok(written) => {
                    let of_header = written.min(HEADER_LEN - front.header_sent);
                    front.header_sent += of_header;
                    front.payload_sent += written - of_header;
                    turn.tally.stats.bytes_sent += written as u64;
                    budget = budget.saturating_sub(written);
                    if front.header_sent == HEADER_LEN && front.payload_sent == payload.len() {
                        match stream.flush() {
                            Ok(true) => self.sent(turn),
                            Ok(false) => break,
                            Err(error) => return self.write_failed(turn, &error),
                        }
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return self.write_failed(turn, &e),
            }
        }
        Ok(())
    }

    /// What the peer sent before it died is still to be had: it is read first.
    fn write_failed(&mut self, turn: &mut Turn<'_>, error: &std::io::Error) -> Result<(), CommError> {
        let mut before = None;
        while self.stream.is_some() && before != Some(turn.tally.stats.bytes_received) {
            before = Some(turn.tally.stats.bytes_received);
            self.receive(turn)?;
        }
        if self.stream.is_some() { self.lose(format!("writing failed: {error}")) } else { Ok(()) }
    }

    fn sent(&mut self, turn: &mut Turn<'_>) {
        turn.tally.stats.frames_sent += 1;
        match self.out.pop_front().map(|o| o.payload) {
            Some(Payload::Transfer(i)) => turn.complete(i),
            Some(Payload::Owned(_)) => {}
            None => unreachable!("a frame was being sent"),
        }
    }

    // Receiving

    /// `transfer` waits for the next message of `channel`; if that is here already it is done at once.
    pub fn expect(&mut self, turn: &mut Turn<'_>, channel: Channel, transfer: Id) -> Result<(), CommError> {
        if let Some(message) = self.stash[channel.index()].pop_front() {
            return self.hand_over(turn, transfer, &message);
        }
        match self.lost() {
            Some(error) => Err(error),
            None => {
                self.waiting[channel.index()].push_back(transfer);
                self.unpark(turn)
            }
        }
    }

    pub fn hold(&mut self, channel: Channel, will_ask: bool) {
        self.held[channel.index()] = will_ask;
    }

    fn hand_over(&mut self, turn: &mut Turn<'_>, transfer: Id, message: &[u8]) -> Result<(), CommError> {
        let landing = turn.work.landing(transfer);
        if landing.len_bytes() != message.len() {
            let fault = FrameFault::new("length", landing.len_bytes(), message.len());
            return Err(self.corrupt(fault));
        }
        match landing {
            Landing::Copy(buffer) => buffer.copy_from_slice(message),
            Landing::Add(sum) => Adder::default().add(sum, 0, message),
        }
        turn.complete(transfer);
        Ok(())
    }

    /// Reads what the stream has, until it is empty, a frame of a newer epoch comes, or the turn is over.
    pub fn receive(&mut self, turn: &mut Turn<'_>) -> Result<(), CommError> {
        let mut budget = TURN_BYTES;
        while budget > 0 {
            let Some((asked, result)) = self.read_once(turn) else { return Ok(()) };
            match result {
                Ok(0) => return self.lose("the connection was closed by the other side".into()),
                Ok(read) => {
                    turn.tally.stats.bytes_received += read as u64;
                    budget = budget.saturating_sub(read);
                    self.take_in(turn)?;
                    if read < asked {
                        // The stream is empty: another call would only say so. Polling tells when there is more.
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return self.lose(format!("reading failed: {e}")),
            }
        }
        Ok(())
    }

    /// Reads to where the next bytes belong; how many those are, and how many came. `None` where nothing is to be read.
    fn read_once(&mut self, turn: &mut Turn<'_>) -> Option<(usize, io::Result<usize>)> {
        let Conn { stream: Some(stream), reading, staging, adder, .. } = self else { return None };
        let (header, target, filled, crc) = match reading {
            Reading::Parked(_) => return None,
            Reading::Header { bytes, filled } => {
                let result = stream.read(&mut bytes[*filled..]);
                let asked = HEADER_LEN - *filled;
                *filled += *result.as_ref().unwrap_or(&0);
                return Some((asked, result));
            }
            Reading::Payload { header, target, filled, crc } => (header, target, filled, crc),
        };
        let rest = header.length - *filled;
        let mut sum = |bytes: &[u8]| {
            if header.payload_crc.is_some() {
                // While they are still in the cache.
                *crc = crc32c::crc32c_append(*crc, bytes);
            }
        };
        let mut read_into = |stream: &mut Transport, space: &mut [u8]| {
            let result = stream.read(space);
            sum(&space[..*result.as_ref().unwrap_or(&0)]);
            (space.len(), result)
        };
        let (asked, result) = match target {
            Target::Owned(bytes) => read_into(stream, &mut bytes[*filled..]),
            Target::Discard => {
                staging.resize(STAGING_BYTES, 0);
                read_into(stream, &mut staging[..rest.min(STAGING_BYTES)])
            }
            Target::Transfer(i) => match (turn.work.landing(*i), &*stream) {
                (Landing::Copy(buffer), _) => read_into(stream, &mut buffer[*filled..]),
                (Landing::Add(sum), Transport::Shm(_) | Transport::Tls(_)) => {
                    let result = stream.peek().map(|came| {
                        let len = came.len().min(rest);
                        adder.add(sum, *filled, &came[..len]);
                        len
                    });
                    if let Ok(len) = result {
                        stream.consume(len);
                    }
                    // It is read in pieces: there may be more.
                    (*result.as_ref().unwrap_or(&0), result)
                }
                (Landing::Add(sum), _) => {
                    staging.resize(STAGING_BYTES, 0);
                    let space = &mut staging[..rest.min(STAGING_BYTES)];
                    let (asked, result) = read_into(stream, space);
                    adder.add(sum, *filled, &space[..*result.as_ref().unwrap_or(&0)]);
                    (asked, result)
                }
            },
        };
        *filled += *result.as_ref().unwrap_or(&0);
        Some((asked, result))
    }

    /// More bytes have come: goes on where a header or a payload is whole.
    fn take_in(&mut self, turn: &mut Turn<'_>) -> Result<(), CommError> {
        match &self.reading {
            Reading::Header { bytes, filled: HEADER_LEN } => match Header::decode(bytes) {
                Ok(header) => self.dispatch(turn, header),
                Err(fault) => Err(self.corrupt(fault)),
            },
            Reading::Payload { header, filled, .. } if *filled == header.length => self.finish(turn),
            _ => Ok(()),
        }
    }

    /// Decides where the payload of `header` goes.
    fn dispatch(&mut self, turn: &mut Turn<'_>, header: Header) -> Result<(), CommError> {
        let is_held = |channel: Channel| self.held[channel.index()] && self.waiting[channel.index()].is_empty();
        let is_early = matches!(header.stream, Stream::Data(channel) if header.epoch == turn.epoch && is_held(channel));
        if header.epoch > turn.epoch || is_early {
            self.reading = Reading::Parked(header);
            return Ok(());
        }
        let target = if header.epoch < turn.epoch {
            turn.tally.stats.stale_frames += 1;
            Target::Discard
        } else {
            match header.stream {
                Stream::Resume => self.target_of_resume(&header)?,
                Stream::Data(channel) => self.target_of_data(turn, channel, &header)?,
            }
        };
        self.reading = Reading::Payload { header, target, filled: 0, crc: 0 };
        if header.length == 0 { self.finish(turn) } else { Ok(()) }
    }

    fn target_of_resume(&mut self, header: &Header) -> Result<Target, CommError> {
        if self.confirmed || header.sequence != 0 || header.length != blake3::OUT_LEN {
            let found = format!("sequence {}, {} bytes, confirmed: {}", header.sequence, header.length, self.confirmed);
            return Err(self.corrupt(FrameFault::new("resumption", "one of 32 bytes, first in its epoch", found)));
        }
        Ok(Target::Owned(vec![0; header.length]))
    }

    fn target_of_data(&mut self, turn: &mut Turn<'_>, channel: Channel, header: &Header) -> Result<Target, CommError> {
        let expected = self.next_recv[channel.index()];
        if header.payload_crc.is_some() != self.kind.has_sums() {
            let found = if header.payload_crc.is_some() { "one" } else { "none" };
            return Err(self.corrupt(FrameFault::new(
                "sum of the payload",
                format!("that of a {} link", self.kind),
                found,
            )));
        }
        if !self.confirmed {
            return Err(self.corrupt(FrameFault::new(
                "first frame of the epoch",
                "a resumption",
                format!("{channel}"),
            )));
        }
        if header.sequence != expected {
            return Err(self.corrupt(FrameFault::new("sequence number", expected, header.sequence)));
        }
        self.next_recv[channel.index()] += 1;
        if let Some(transfer) = self.waiting[channel.index()].pop_front() {
            let len = turn.work.landing(transfer).len_bytes();
            if len != header.length {
                return Err(self.corrupt(FrameFault::new("length", len, header.length)));
            }
            return Ok(Target::Transfer(transfer));
        }
        let stashed: usize = self.stash.iter().flatten().map(Vec::len).sum();
        let (held, limit) = (stashed + header.length, turn.tally.limit_bytes);
        if held > limit {
            let what = "that nobody has asked for yet";
            return Err(CommError::Overflow { rank: self.rank, channel, what, held, limit });
        }
        Ok(Target::Owned(vec![0; header.length]))
    }

    /// The payload is whole.
    fn finish(&mut self, turn: &mut Turn<'_>) -> Result<(), CommError> {
        let Reading::Payload { header, target, crc, .. } = std::mem::replace(&mut self.reading, Reading::next()) else {
            unreachable!("a payload was being read");
        };
        if matches!(target, Target::Discard) {
            return Ok(());
        }
        if let Some(expected) = header.payload_crc.filter(|expected| *expected != crc) {
            let (expected, found) = (format!("{expected:#010x}"), format!("{crc:#010x}"));
            return Err(self.corrupt(FrameFault::new("checksum of the payload", expected, found)));
        }
        turn.tally.stats.frames_received += 1;
        match (target, header.stream) {
            (Target::Transfer(i), _) => turn.complete(i),
            (Target::Owned(message), Stream::Data(channel)) => match self.waiting[channel.index()].pop_front() {
                // Asked for while it was on its way into the stash.
                Some(transfer) => self.hand_over(turn, transfer, &message)?,
                None => self.stash[channel.index()].push_back(message),
            },
            (Target::Owned(proof), Stream::Resume) => self.confirm(&proof)?,
            (Target::Discard, _) => unreachable!("returned above"),
        }
        Ok(())
    }

    fn confirm(&mut self, proof: &[u8]) -> Result<(), CommError> {
        let proof = <[u8; blake3::OUT_LEN]>::try_from(proof).map(blake3::Hash::from_bytes).ok();
        if proof.is_none() || proof != self.expected_resume {
            // Not an error of its own: the handshake that follows says what is wrong.
            return self.lose("it proved another key than this rank has for this epoch".into());
        }
        self.confirmed = true;
        Ok(())
    }

    // Changes of epoch

    /// The running call, and what is in flight, end without their transfers: nothing refers to them from here on.
    pub fn abort(&mut self, work: &Works<'_>) {
        self.waiting.iter_mut().for_each(VecDeque::clear);
        self.held = Default::default();
        if let Reading::Payload { target, .. } = &mut self.reading
            && matches!(target, Target::Transfer(_))
        {
            *target = Target::Discard;
        }
        if self.stream.is_none() {
            return self.out.clear();
        }
        self.out.retain(|o| o.is_begun() || matches!(o.payload, Payload::Owned(_)));
        if let Some(front) = self.out.front_mut()
            && let Payload::Transfer(i) = front.payload
        {
            front.payload = Payload::Owned(work.sent(i)[front.payload_sent..].to_vec());
            front.payload_sent = 0;
        }
    }

    /// Keeps the connection for `epoch`, in which the peer is `rank` and proves it with `expected`; `proof` is this side's.
    /// Sequences start again, what is left of older epochs is dropped.
    pub fn begin_epoch(
        &mut self,
        epoch: u64,
        rank: usize,
        proof: blake3::Hash,
        expected: blake3::Hash,
        tally: &mut Tally,
    ) {
        assert!(!self.is_awaited(), "a call must be over, or aborted, before its epoch ends");
        self.rank = rank;
        self.confirmed = false;
        self.expected_resume = Some(expected);
        self.next_send = [0; NUM_CHANNELS];
        self.next_recv = [0; NUM_CHANNELS];
        for queue in &mut self.stash {
            tally.stats.stale_frames += queue.len() as u64;
            queue.clear();
        }
        if let Reading::Payload { target, .. } = &mut self.reading
            && !matches!(target, Target::Discard)
        {
            tally.stats.stale_frames += 1;
            *target = Target::Discard;
        }
        self.out.retain(Outgoing::is_begun);
        let header = Header::of(Stream::Resume, epoch, 0, proof.as_bytes());
        self.out.push_back(Outgoing::new(header, Payload::Owned(proof.as_bytes().to_vec())));
    }

    /// Goes on with a frame that was ahead of the epoch before, or of what the call had asked for.
    pub fn unpark(&mut self, turn: &mut Turn<'_>) -> Result<(), CommError> {
        match self.reading {
            Reading::Parked(header) => self.dispatch(turn, header),
            _ => Ok(()),
        }
    }
}

impl Outgoing {
    fn new(header: Header, payload: Payload) -> Outgoing {
        Outgoing { header: header.encode(), payload, header_sent: 0, payload_sent: 0 }
    }

    fn owned_bytes(&self) -> usize {
        match &self.payload {
            Payload::Owned(bytes) => bytes.len(),
            Payload::Transfer(_) => 0,
        }
    }

    fn is_begun(&self) -> bool {
        self.header_sent > 0
    }
}
