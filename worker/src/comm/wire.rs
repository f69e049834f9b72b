//! Handshake messages over a socket that never blocks, and the socket and the nonce that a handshake begins with.
//!
//! Deliberately absent: what the messages mean, see `handshake`.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::handshake::{Garbage, Message, Nonce, Verdict};
use super::transport::{LinkKey, PublicKey, Ring, Side, Socket, Tls, Transport, avoid_bbr};
use super::{CommError, LinkKind};
use crate::system;

/// Handshake messages over a socket.
pub(super) struct Wire {
    pub socket: Socket,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    /// That goes out with the next byte.
    attached: bool,
    /// To share, made by the called side.
    memory: Option<OwnedFd>,
    verdict: Verdict,
}

impl Wire {
    pub fn new(socket: Socket, outgoing: Vec<u8>) -> Wire {
        let (incoming, memory, verdict) = (Vec::new(), None, Verdict::Continue);
        Wire { socket, incoming, outgoing, attached: false, memory, verdict }
    }

    pub fn interest(&self) -> PollFlags {
        if self.outgoing.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT }
    }

    /// Something is to be sent.
    pub fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// The handshake is done. `own` and `peer` are the keys for TLS.
    pub fn into_transport(
        self,
        kind: LinkKind,
        side: Side,
        own: Option<&LinkKey>,
        peer: &PublicKey,
    ) -> std::io::Result<Transport> {
        match (self.socket, kind, self.memory) {
            (Socket::Tcp(socket), LinkKind::Tls, _) => {
                let own = own.ok_or_else(|| std::io::Error::from(ErrorKind::Unsupported))?;
                Ok(Transport::Tls(Box::new(Tls::begin(socket, side, own, peer)?)))
            }
            (Socket::Tcp(socket), LinkKind::Tcp, _) => Ok(Transport::Tcp(socket)),
            (Socket::Played(stream), LinkKind::Tcp, _) => Ok(Transport::Played(stream)),
            (Socket::Unix(socket), LinkKind::Unix, _) => Ok(Transport::Unix(socket)),
            (Socket::Unix(socket), LinkKind::Shm, Some(memory)) => {
                Ok(Transport::Shm(Ring::open(socket, &memory, side)?))
            }
            (_, kind, _) => {
                let what = format!("a {kind} link was agreed on, and what it needs did not come with the welcome");
                Err(std::io::Error::new(ErrorKind::InvalidData, what))
            }
        }
    }

    /// Goes on as far as the socket lets it. A verdict is given once all that belongs to it is sent.
    pub fn drive(
        &mut self,
        mut side: impl FnMut(Message) -> Result<(Option<Message>, Verdict), Garbage>,
    ) -> Result<Verdict, String> {
        loop {
            if !self.flush()? {
                return Ok(Verdict::Continue);
            }
            if self.verdict != Verdict::Continue {
                return Ok(std::mem::replace(&mut self.verdict, Verdict::Continue));
            }
            let Some(message) = self.next_message()? else { return Ok(Verdict::Continue) };
            let (reply, verdict) = side(message).map_err(|garbage| garbage.to_string())?;
            let is_welcome = reply == Some(Message::Welcome);
            if is_welcome && matches!(verdict, Verdict::Established { kind: LinkKind::Shm, .. }) {
                self.memory = Some(Ring::memory().map_err(|e| format!("cannot make memory to share: {e}"))?);
                self.attached = true;
            }
            self.outgoing = reply.map(|reply| reply.encode()).unwrap_or_default();
            self.verdict = verdict;
        }
    }

    /// True when nothing is left to be sent.
    fn flush(&mut self) -> Result<bool, String> {
        while !self.outgoing.is_empty() {
            let memory = self.memory.as_ref().filter(|_| self.attached).map(AsFd::as_fd);
            match self.socket.write(&self.outgoing, memory) {
                Ok(written) => {
                    self.attached = false;
                    self.outgoing.drain(..written);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("writing failed: {e}")),
            }
        }
        Ok(true)
    }

    fn next_message(&mut self) -> Result<Option<Message>, String> {
        loop {
            let missing = Message::missing(&self.incoming).map_err(|garbage| garbage.to_string())?;
            if missing == 0 {
                let message = Message::decode(&self.incoming).map_err(|garbage| garbage.to_string())?;
                self.incoming.clear();
                return Ok(Some(message));
            }
            let have = self.incoming.len();
            self.incoming.resize(have + missing, 0);
            let read = self.socket.read(&mut self.incoming[have..], &mut self.memory);
            self.incoming.truncate(have + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Err("the other side closed the connection".into()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(format!("reading failed: {e}")),
            }
        }
    }
}

/// Begins to connect, without waiting for it.
///
/// Socket buffers are left to the kernel: setting them switches its tuning off, and with it most of what a long path could use.
pub(super) fn connect(address: &SocketAddr) -> std::io::Result<TcpStream> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    avoid_bbr(&socket)?;
    match rustix::net::connect(&socket, address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
        Err(e) => return Err(e.into()),
    }
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Fresh for each handshake.
pub(super) fn nonce() -> Result<Nonce, CommError> {
    let mut nonce = [0; 32];
    system::fill_random(&mut nonce)
        .map(|()| nonce)
        .map_err(|e| CommError::io("read the system's random source for a link's handshake", e))
}
