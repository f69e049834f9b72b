//! A byte stream in each direction through memory that two processes share. The comm module's one leaf of `unsafe`.
//!
//! ```text
//!   page 0:  to the caller { head, base, tail, reader sleeps, writer sleeps }, to the called { the same }
//!   then:    RING_BYTES of data to the caller, RING_BYTES to the called
//!
//!   writer: copies, then head += n (release)     reader: head (acquire), copies, then tail += n (release)
//! ```
//!
//! Head and tail count bytes from the beginning; `head - tail` is what can be read. Each is written by one side alone. Byte `i` lies at
//! `(i - base) % RING_BYTES`: a writer that finds the ring empty starts at its first byte again, which is still in the cache.
//!
//! *Sleep:* who finds nothing to do sets its `sleeps` flag, looks again, and polls the Unix socket that came with the memory. Who
//! makes something to do and finds the flag set clears it and sends one byte over the socket. Flag and index are both written before
//! the other is read, each with a full fence between, so one of the two sides always sees the other: no wake is lost. A writer is
//! woken when there is room for a good part, not for every few bytes.
//!
//! *Death:* the socket of a process that ends, however it ends, hangs up. What it has published before can still be read; a copy that it
//! had not finished was never published.
//!
//! *Trust:* the peer has proven the epoch's key before the memory changed hands. Even so an index beyond the ring is an error, and the
//! memory is sealed, so that nobody can shrink it under this side (SIGBUS).
#![allow(unsafe_code)]

use std::io::{self, ErrorKind, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use memmap2::MmapRaw;
use rustix::event::PollFlags;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::would_block;

/// Of data, in each direction; memory that was never written to costs nothing. A stage's message fits in, as it would in the kernel's
/// buffers, so that who has sent it can compute.
pub(crate) const RING_BYTES: usize = 4 << 20;
/// What a call that waits keeps in the ring at most. Measured on two cores with 1 MiB of second-level and 32 MiB of third-level cache: less
/// means more switches between processes, more means that the rings of many ranks fall out of the cache.
const STREAM_BYTES: usize = 256 << 10;
const CONTROL_BYTES: usize = 4096;
const MEMORY_BYTES: usize = CONTROL_BYTES + 2 * RING_BYTES;
/// Published and given back at a time, so that one side copies out while the other copies in.
const PUBLISH_BYTES: usize = 32 << 10;
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// Indices and flags of one direction, each on cache lines of its own (two, as processors fetch pairs).
#[repr(C)]
struct Control {
    head: Line<AtomicU64>,
    /// Written before the head, and only while nothing is to be read.
    base: Line<AtomicU64>,
    tail: Line<AtomicU64>,
    reader_sleeps: Line<AtomicU32>,
    writer_sleeps: Line<AtomicU32>,
}

#[repr(C, align(128))]
struct Line<T>(T);

const _: () = assert!(2 * size_of::<Control>() <= CONTROL_BYTES);

/// Which half this side writes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Caller,
    Called,
}

/// One end of a shared memory link.
#[derive(Debug)]
pub(crate) struct Ring {
    socket: UnixStream,
    memory: MmapRaw,
    side: Side,
    /// Bytes this side has written: its own copy of the head that it owns.
    head: u64,
    /// Bytes this side has read.
    tail: u64,
    /// As last seen: less to look at in memory that the other side writes.
    peer_head: u64,
    peer_tail: u64,
    base: u64,
    peer_base: u64,
    /// Bytes that this side lets lie in the ring.
    limit: usize,
    hung_up: bool,
}

impl Ring {
    /// Makes the memory, for the called side, which sends it to the caller.
    pub fn memory() -> io::Result<OwnedFd> {
        let fd = memfd_create("toroid-link", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, MEMORY_BYTES as u64)?;
        fcntl_add_seals(&fd, SEALS)?;
        Ok(fd)
    }

    pub fn open(socket: UnixStream, memory: &OwnedFd, side: Side) -> io::Result<Ring> {
        let (len, seals) = (fstat(memory)?.st_size, fcntl_get_seals(memory)?);
        if len != MEMORY_BYTES as i64 || !seals.contains(SEALS) {
            let what = format!(
                "the memory of a link should have {MEMORY_BYTES} bytes and seals {SEALS:?}, it has {len} bytes and {seals:?}; run the same build on all workers"
            );
            return Err(io::Error::new(ErrorKind::InvalidData, what));
        }
        let memory = memmap2::MmapOptions::new().len(MEMORY_BYTES).map_raw(memory)?;
        Ok(Ring {
            socket,
            memory,
            side,
            head: 0,
            tail: 0,
            peer_head: 0,
            peer_tail: 0,
            base: 0,
            peer_base: 0,
            limit: STREAM_BYTES,
            hung_up: false,
        })
    }

    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn control(&self, to: Side) -> &Control {
        let index = usize::from(to == Side::Called);
        // SAFETY: the map is page-aligned, lives as long as `self`, and has room for two of these before its data; all fields
        // are atomics, for which every bit pattern is valid and which the other process may change.
        unsafe { &*self.memory.as_ptr().cast::<Control>().add(index) }
    }

    fn data(&self, to: Side) -> *mut u8 {
        let at = CONTROL_BYTES + if to == Side::Called { RING_BYTES } else { 0 };
        // SAFETY: within the map, whose length is `MEMORY_BYTES`.
        unsafe { self.memory.as_mut_ptr().add(at) }
    }

    fn outgoing(&self) -> Side {
        match self.side {
            Side::Caller => Side::Called,
            Side::Called => Side::Caller,
        }
    }

    fn incoming(&self) -> Side {
        self.side
    }

    /// Bytes that can be read.
    fn readable(&mut self) -> io::Result<usize> {
        if self.peer_head == self.tail {
            let control = self.control(self.incoming());
            let head = control.head.0.load(Ordering::Acquire);
            let base = control.base.0.load(Ordering::Relaxed);
            (self.peer_head, self.peer_base) = (head, base);
        }
        within_ring(self.peer_head.wrapping_sub(self.tail))
    }

    /// Bytes that can be written, where at least `wanted` are if the last look says so.
    fn writable(&mut self, wanted: usize) -> io::Result<usize> {
        let free = |ring: &Ring| Ok(ring.limit.saturating_sub(within_ring(ring.head.wrapping_sub(ring.peer_tail))?));
        let known = free(self)?;
        if known >= wanted {
            return Ok(known);
        }
        self.peer_tail = self.control(self.outgoing()).tail.0.load(Ordering::Acquire);
        free(self)
    }

    /// What can be read without a copy, or a first part of it. Empty where the peer has ended and all it sent is read.
    pub fn peek(&mut self) -> io::Result<&[u8]> {
        let readable = self.readable()?;
        let at = offset(self.tail, self.peer_base);
        let len = readable.min(RING_BYTES - at).min(PUBLISH_BYTES);
        if len == 0 {
            return if self.hung_up { Ok(&[]) } else { Err(would_block()) };
        }
        // SAFETY: `at + len` is within the ring. The other side writes none of these bytes until the tail, which only this side
        // moves and not while `self` is borrowed, has passed them; the acquire load of the head saw them written.
        Ok(unsafe { std::slice::from_raw_parts(self.data(self.incoming()).add(at), len) })
    }

    /// Gives `len` peeked bytes back to the writer.
    pub fn consume(&mut self, len: usize) {
        self.tail += len as u64;
        let control = self.control(self.incoming());
        control.tail.0.store(self.tail, Ordering::Release);
        fence(Ordering::SeqCst);
        if control.writer_sleeps.0.load(Ordering::Relaxed) != 0 {
            let used = control.head.0.load(Ordering::Acquire).wrapping_sub(self.tail);
            if used <= STREAM_BYTES as u64 / 2 && control.writer_sleeps.0.swap(0, Ordering::AcqRel) != 0 {
                self.wake();
            }
        }
    }

    pub fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut read = 0;
        while read < bytes.len() {
            let came = match self.peek() {
                Ok(came) => came,
                Err(e) if e.kind() == ErrorKind::WouldBlock && read > 0 => break,
                Err(e) => return Err(e),
            };
            let len = came.len().min(bytes.len() - read);
            if len == 0 {
                break;
            }
            bytes[read..read + len].copy_from_slice(&came[..len]);
            self.consume(len);
            read += len;
        }
        Ok(read)
    }

    /// Whether what is written next may fill the whole ring: nobody waits for it to be sent.
    pub fn set_queued(&mut self, is_queued: bool) {
        self.limit = if is_queued { RING_BYTES } else { STREAM_BYTES };
    }

    pub fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.hung_up {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let mut written = 0;
        let mut unpublished = 0;
        for part in parts {
            let mut rest: &[u8] = part;
            while !rest.is_empty() {
                let wanted = unpublished + rest.len().min(PUBLISH_BYTES);
                let free = self.writable(wanted.min(self.limit))?.saturating_sub(unpublished);
                if unpublished == 0 && self.head == self.peer_tail && self.head != self.base {
                    self.base = self.head;
                    self.control(self.outgoing()).base.0.store(self.base, Ordering::Relaxed);
                }
                let at = offset(self.head + unpublished as u64, self.base);
                let len = rest.len().min(free).min(RING_BYTES - at).min(PUBLISH_BYTES);
                if len == 0 {
                    self.publish(unpublished);
                    return if written == 0 { Err(would_block()) } else { Ok(written) };
                }
                // SAFETY: `at + len` is within the ring, and `len` within what the reader has given back: it reads none of these bytes
                // until the head has passed them.
                unsafe { rest.as_ptr().copy_to_nonoverlapping(self.data(self.outgoing()).add(at), len) };
                rest = &rest[len..];
                written += len;
                unpublished += len;
                if unpublished >= PUBLISH_BYTES {
                    self.publish(unpublished);
                    unpublished = 0;
                }
            }
        }
        self.publish(unpublished);
        Ok(written)
    }

    fn publish(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        self.head += len as u64;
        let control = self.control(self.outgoing());
        control.head.0.store(self.head, Ordering::Release);
        fence(Ordering::SeqCst);
        if control.reader_sleeps.0.load(Ordering::Relaxed) != 0
            && control.reader_sleeps.0.swap(0, Ordering::AcqRel) != 0
        {
            self.wake();
        }
    }

    /// Where this fails the peer is dead, which the socket says, or has bytes to wake by.
    fn wake(&self) {
        let _ = send(&self.socket, &[0], SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    }

    pub fn ready(&self, wants_write: bool) -> PollFlags {
        let head = self.control(self.incoming()).head.0.load(Ordering::Acquire);
        let mut ready = PollFlags::empty();
        if head != self.tail || self.hung_up {
            ready |= PollFlags::IN;
        }
        if wants_write {
            let used = self.head.wrapping_sub(self.control(self.outgoing()).tail.0.load(Ordering::Acquire));
            if used < self.limit as u64 || self.hung_up {
                ready |= PollFlags::OUT;
            }
        }
        ready
    }

    pub fn announce(&mut self, wants_write: bool) -> PollFlags {
        self.control(self.incoming()).reader_sleeps.0.store(1, Ordering::Release);
        if wants_write {
            self.control(self.outgoing()).writer_sleeps.0.store(1, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        self.ready(wants_write)
    }

    pub fn heed(&mut self, events: PollFlags, wants_write: bool) -> PollFlags {
        self.control(self.incoming()).reader_sleeps.0.store(0, Ordering::Relaxed);
        if wants_write {
            self.control(self.outgoing()).writer_sleeps.0.store(0, Ordering::Relaxed);
        }
        if !events.is_empty() {
            self.take_wakes();
        }
        self.ready(wants_write)
    }

    /// Reads what woke this side, or that the peer has ended.
    fn take_wakes(&mut self) {
        let mut wakes = [0; 64];
        loop {
            match recv(&self.socket, &mut wakes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.hung_up = true,
                Ok((read, _)) if read == wakes.len() => continue,
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {}
                Err(_) => self.hung_up = true,
            }
            return;
        }
    }
}

/// Where byte `index` lies.
fn offset(index: u64, base: u64) -> usize {
    (index.wrapping_sub(base) % RING_BYTES as u64) as usize
}

fn within_ring(bytes: u64) -> io::Result<usize> {
    if bytes <= RING_BYTES as u64 {
        return Ok(bytes as usize);
    }
    let what = format!("the indices of a link's memory are {bytes} bytes apart, at most {RING_BYTES} can be");
    Err(io::Error::new(ErrorKind::InvalidData, what))
}
