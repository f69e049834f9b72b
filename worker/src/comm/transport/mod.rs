//! What carries a link's bytes: TCP, a Unix socket, or memory that both ends share.
//!
//! ```text
//!   Tls    to any host, encrypted: see [`tls`]
//!   Tcp    to any host, readable for whoever is in between: on trusted fabrics, by name (`--links-plain`)
//!   Unix   within one network namespace: the abstract name of a listener is seen nowhere else
//!   Shm    a ring in shared memory for each direction; its Unix socket wakes who sleeps, and its end tells that the peer is dead
//! ```
//!
//! A listener has an abstract Unix name of its worker id and its port ([`local_name`]). Who can connect to that name is on the
//! same kernel and in the same network namespace: no host name is believed. Whoever answers still has to prove the epoch's key
//! (T-1), so a stranger that squats on the name is refused like any other, and the dialer goes on to TCP.
//!
//! Invariants: all kinds are byte streams that do not block, end when the peer's process ends, and deliver first what it has sent.
//! Only what crosses a wire as it is needs sums over payloads: [`LinkKind::has_sums`].

mod ring;
mod tls;

use std::fmt;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::str::FromStr;

use rustix::event::PollFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socket_with, sockopt,
};

pub(super) use ring::{Ring, Side};
pub(super) use tls::{LinkKey, PublicKey, Tls};

use crate::system::Stream;

/// Calls that a listener has not taken yet.
const BACKLOG: i32 = 1024;

/// What a link runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    Shm,
    Unix,
    Tcp,
    Tls,
}

/// Which kinds a worker uses (`--links`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LinkChoice {
    /// Shared memory where both ends are in one network namespace, else TLS over TCP.
    #[default]
    Auto,
    /// Shared memory where both ends are in one network namespace, else TCP as it is: for a fabric that nobody else can reach.
    Plain,
    /// Nothing else; for tests and diagnosis.
    Only(LinkKind),
}

impl LinkChoice {
    /// In the order in which a dialer tries them.
    pub(super) fn kinds(self) -> &'static [LinkKind] {
        match self {
            LinkChoice::Auto => &[LinkKind::Shm, LinkKind::Tls],
            LinkChoice::Plain => &[LinkKind::Shm, LinkKind::Tcp],
            LinkChoice::Only(LinkKind::Shm) => &[LinkKind::Shm],
            LinkChoice::Only(LinkKind::Unix) => &[LinkKind::Unix],
            LinkChoice::Only(LinkKind::Tcp) => &[LinkKind::Tcp],
            LinkChoice::Only(LinkKind::Tls) => &[LinkKind::Tls],
        }
    }
}

impl LinkKind {
    /// Frames carry sums over their payloads. What never leaves this machine's memory is guarded by that, as is every value that no link
    /// carries; TLS checks each record.
    pub(super) fn has_sums(self) -> bool {
        self == LinkKind::Tcp
    }

    /// Begins with the Unix socket of a listener.
    pub(super) fn is_local(self) -> bool {
        matches!(self, LinkKind::Shm | LinkKind::Unix)
    }
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkKind::Shm => "shm",
            LinkKind::Unix => "unix",
            LinkKind::Tcp => "tcp",
            LinkKind::Tls => "tls",
        })
    }
}

impl fmt::Display for LinkChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkChoice::Auto => f.write_str("auto"),
            LinkChoice::Plain => f.write_str("plain"),
            LinkChoice::Only(kind) => kind.fmt(f),
        }
    }
}

impl FromStr for LinkChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<LinkChoice, String> {
        match text {
            "auto" => Ok(LinkChoice::Auto),
            "shm" => Ok(LinkChoice::Only(LinkKind::Shm)),
            "unix" => Ok(LinkChoice::Only(LinkKind::Unix)),
            "plain" => Ok(LinkChoice::Plain),
            "tcp" => Ok(LinkChoice::Only(LinkKind::Tcp)),
            "tls" => Ok(LinkChoice::Only(LinkKind::Tls)),
            other => Err(format!("expected auto, plain, shm, unix, tcp or tls, found `{other}`")),
        }
    }
}

/// The abstract Unix name of the listener of `worker_id` at `port`: one in its network namespace, as the port is one of its
/// address there and the id one in its cluster.
fn local_name(worker_id: &str, port: u16) -> io::Result<SocketAddrUnix> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"toroid link").update(&port.to_le_bytes()).update(worker_id.as_bytes());
    Ok(SocketAddrUnix::new_abstract_name(format!("toroid/{}", hasher.finalize().to_hex()).as_bytes())?)
}

pub(super) fn listen_local(worker_id: &str, port: u16) -> io::Result<UnixListener> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&socket, &local_name(worker_id, port)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

/// Connects to a listener of this network namespace, which answers at once or not at all. One of another user is not trusted
/// even with the time that a handshake takes.
pub(super) fn connect_local(worker_id: &str, port: u16) -> io::Result<UnixStream> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &local_name(worker_id, port)?)?;
    let (found, own) = (sockopt::socket_peercred(&socket)?.uid, rustix::process::geteuid());
    if found != own {
        let what = format!("who listens there is user {}, this worker is user {}", found.as_raw(), own.as_raw());
        return Err(io::Error::new(ErrorKind::PermissionDenied, what));
    }
    Ok(UnixStream::from(socket))
}

/// Another congestion control than BBR for a TCP link, or for all that a listener will accept, where the system's own choice is BBR.
///
/// BBR paces by the rates that it has seen. A collective sends and waits in turns, and two links may share a port, so what it has seen
/// is less than what there is: of a shaped port it leaves a quarter unused, and short messages go out in drops (docs/measurements.md).
/// Any other choice of the system stays.
pub(super) fn avoid_bbr(socket: &impl AsFd) -> io::Result<()> {
    let system = sockopt::tcp_congestion(socket)?;
    if !system.starts_with("bbr") {
        return Ok(());
    }
    // Who may not choose freely may choose Reno, which is as good at the distances within a cluster.
    let taken = ["cubic", "reno"].into_iter().find(|name| sockopt::set_tcp_congestion(socket, name).is_ok());
    match taken {
        Some(name) => tracing::debug!(system, name, "chose another congestion control for a link"),
        None => tracing::warn!(system, "links keep the system's congestion control, which is slow here: allow cubic"),
    }
    Ok(())
}

/// A socket before and while its handshake goes on.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// In a simulation.
    Played(Box<dyn Stream>),
}

impl Socket {
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Socket::Tcp(socket) => socket.take_error(),
            Socket::Unix(socket) => socket.take_error(),
            Socket::Played(stream) => stream.connected().map(|_| None),
        }
    }

    /// What poll(2) says nothing of.
    pub fn played(&self) -> Option<&dyn Stream> {
        match self {
            Socket::Tcp(_) | Socket::Unix(_) => None,
            Socket::Played(stream) => Some(&**stream),
        }
    }

    /// `memory` goes along with the first byte, over a Unix socket.
    pub fn write(&mut self, bytes: &[u8], memory: Option<BorrowedFd<'_>>) -> io::Result<usize> {
        let socket = match self {
            Socket::Tcp(socket) => return socket.write(bytes),
            Socket::Played(stream) => return stream.write(bytes),
            Socket::Unix(socket) => socket,
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = memory.map(|fd| [fd]);
        if let Some(fds) = &fds {
            let pushed = control.push(SendAncillaryMessage::ScmRights(fds));
            assert!(pushed, "the buffer has room for one descriptor");
        }
        Ok(sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
    }

    /// A descriptor that came along is put into `memory`.
    pub fn read(&mut self, bytes: &mut [u8], memory: &mut Option<OwnedFd>) -> io::Result<usize> {
        let socket = match self {
            Socket::Tcp(socket) => return socket.read(bytes),
            Socket::Played(stream) => return stream.read(bytes),
            Socket::Unix(socket) => socket,
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let read = recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message {
                *memory = fds.next().or(memory.take());
            }
        }
        Ok(read.bytes)
    }
}

impl Socket {
    /// For poll(2); `None` in a simulation.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Socket::Tcp(socket) => Some(socket.as_fd()),
            Socket::Unix(socket) => Some(socket.as_fd()),
            Socket::Played(_) => None,
        }
    }
}

/// What carries an established link.
#[derive(Debug)]
pub(super) enum Transport {
    Tcp(TcpStream),
    Tls(Box<Tls>),
    Unix(UnixStream),
    Shm(Ring),
    /// In a simulation.
    Played(Box<dyn Stream>),
}

impl Transport {
    pub fn kind(&self) -> LinkKind {
        match self {
            Transport::Tcp(_) | Transport::Played(_) => LinkKind::Tcp,
            Transport::Tls(_) => LinkKind::Tls,
            Transport::Unix(_) => LinkKind::Unix,
            Transport::Shm(_) => LinkKind::Shm,
        }
    }

    /// Reads what is there; 0 where the peer has ended and all it sent is read.
    pub fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Transport::Tcp(socket) => socket.read(bytes),
            Transport::Tls(tls) => tls.read(bytes),
            Transport::Unix(socket) => socket.read(bytes),
            Transport::Shm(ring) => ring.read(bytes),
            Transport::Played(stream) => stream.read(bytes),
        }
    }

    pub fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Transport::Tcp(socket) => socket.write_vectored(parts),
            Transport::Tls(tls) => tls.write_vectored(parts),
            Transport::Unix(socket) => socket.write_vectored(parts),
            Transport::Shm(ring) => ring.write_vectored(parts),
            Transport::Played(stream) => stream.write_vectored(parts),
        }
    }

    /// Bytes can go both ways.
    pub fn is_open(&self) -> bool {
        match self {
            Transport::Tls(tls) => tls.is_open() && !tls.has_unsent(),
            Transport::Tcp(_) | Transport::Unix(_) | Transport::Shm(_) | Transport::Played(_) => true,
        }
    }

    /// Hands the kernel what was written and is not with it yet, as far as it takes that now; says whether it has all of it.
    pub fn flush(&mut self) -> io::Result<bool> {
        match self {
            Transport::Tls(tls) => tls.flush(),
            Transport::Tcp(_) | Transport::Unix(_) | Transport::Shm(_) | Transport::Played(_) => Ok(true),
        }
    }

    /// Bytes that can be read where they lie, without a copy: none where the peer has ended. `Unsupported` for the kernel's sockets.
    pub fn peek(&mut self) -> io::Result<&[u8]> {
        match self {
            Transport::Shm(ring) => ring.peek(),
            Transport::Tls(tls) => tls.peek(),
            Transport::Tcp(_) | Transport::Unix(_) | Transport::Played(_) => Err(ErrorKind::Unsupported.into()),
        }
    }

    /// Bytes of [`Transport::peek`] are dealt with.
    pub fn consume(&mut self, len: usize) {
        match self {
            Transport::Shm(ring) => ring.consume(len),
            Transport::Tls(tls) => tls.consume(len),
            Transport::Tcp(_) | Transport::Unix(_) | Transport::Played(_) => unreachable!("it shows nothing"),
        }
    }

    /// Whether what is written next was queued by a call that did not wait for it.
    pub fn set_queued(&mut self, is_queued: bool) {
        if let Transport::Shm(ring) = self {
            ring.set_queued(is_queued);
        }
    }

    /// Before poll: what can be done without waiting. A ring's peer is told to wake this side for the rest.
    pub fn announce(&mut self, wants_write: bool) -> PollFlags {
        match self {
            Transport::Shm(ring) => ring.announce(wants_write),
            Transport::Tcp(_) | Transport::Tls(_) | Transport::Unix(_) | Transport::Played(_) => {
                self.ready(wants_write)
            }
        }
    }

    /// What can be done without waiting, as far as that is known without the kernel.
    pub fn ready(&self, wants_write: bool) -> PollFlags {
        match self {
            Transport::Tcp(_) | Transport::Unix(_) => PollFlags::empty(),
            Transport::Shm(ring) => ring.ready(wants_write),
            Transport::Tls(tls) if tls.has_more() => PollFlags::IN,
            Transport::Tls(_) => PollFlags::empty(),
            Transport::Played(stream) => {
                let mut ready = PollFlags::empty();
                ready.set(PollFlags::IN, stream.can_read());
                ready.set(PollFlags::OUT, wants_write && stream.can_write());
                ready
            }
        }
    }

    /// After poll: `events` of the socket, as events of the stream.
    pub fn heed(&mut self, events: PollFlags, wants_write: bool) -> PollFlags {
        match self {
            Transport::Tcp(_) | Transport::Tls(_) | Transport::Unix(_) | Transport::Played(_) => {
                events | self.ready(false)
            }
            Transport::Shm(ring) => ring.heed(events, wants_write),
        }
    }

    /// What the socket is polled for.
    pub fn interest(&self, wants_write: bool) -> PollFlags {
        match self {
            Transport::Tls(tls) if wants_write || tls.has_unsent() => PollFlags::IN | PollFlags::OUT,
            Transport::Tcp(_) | Transport::Unix(_) if wants_write => PollFlags::IN | PollFlags::OUT,
            _ => PollFlags::IN,
        }
    }
}

impl Transport {
    /// For poll(2); `None` in a simulation.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Transport::Tcp(socket) => Some(socket.as_fd()),
            Transport::Tls(tls) => Some(tls.socket().as_fd()),
            Transport::Unix(socket) => Some(socket.as_fd()),
            Transport::Shm(ring) => Some(ring.socket()),
            Transport::Played(_) => None,
        }
    }
}

/// Not now.
fn would_block() -> io::Error {
    ErrorKind::WouldBlock.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever this machine has: another choice than BBR stays, BBR gives way, to a listener's calls too.
    #[test]
    fn links_do_not_run_over_bbr() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        avoid_bbr(&listener).unwrap();
        let caller = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let called = listener.accept().unwrap().0;
        assert!(!sockopt::tcp_congestion(&called).unwrap().starts_with("bbr"));
        sockopt::set_tcp_congestion(&caller, "reno").expect("every Linux has Reno");
        avoid_bbr(&caller).unwrap();
        assert_eq!(sockopt::tcp_congestion(&caller).unwrap(), "reno");
        if sockopt::set_tcp_congestion(&caller, "bbr").is_ok() {
            avoid_bbr(&caller).unwrap();
            assert!(!sockopt::tcp_congestion(&caller).unwrap().starts_with("bbr"));
        }
    }
}
