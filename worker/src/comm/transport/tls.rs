//! TLS 1.3 over TCP: what crosses a wire is encrypted, and changed bytes end the link.
//!
//! ```text
//!   handshake::Hello, Challenge   name the key of either process; both ends prove the epoch's key over what they have named
//!   TLS 1.3 handshake             either end shows that it has the key that it named: raw public keys (RFC 7250), no certificates
//!   records                       AES-128-GCM where the processor has it in hardware, at most 16 KiB each
//! ```
//!
//! So a link's keys are those of two processes that belong to the epoch, and nobody in between has them. An epoch that keeps the link keeps
//! the keys, and both ends prove the new epoch's key over it. No session is ever resumed. The library renews the keys of a long session.
//!
//! A write is taken record by record, and counts as sent when the kernel has the records: see [`Tls::flush`].
//!
//! Deliberately absent: the kernel's own TLS. It would save a copy in each direction, and is not there in most containers.

use std::io::{self, ErrorKind, IoSlice, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ClientConfig, Resumption, UnbufferedClientConnection};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring as provider, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage, ServerConfig, UnbufferedServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::unbuffered::{ConnectionState, UnbufferedStatus};
use rustls::version::TLS13;
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};

use super::Side;

/// The public key of a process for TLS: Ed25519.
pub(in crate::comm) type PublicKey = [u8; 32];
/// What stands before the 32 bytes of an Ed25519 key in its `SubjectPublicKeyInfo` (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// Plaintext that is encrypted at once: small enough for the cache, large enough for few system calls.
const CHUNK_BYTES: usize = 128 << 10;
/// What encryption adds to a chunk at most: header, type and tag of each record (RFC 8446, section 5.2), and a change of keys.
const CHUNK_OVERHEAD: usize = (CHUNK_BYTES / (16 << 10) + 1) * 22 + 1024;
/// Type, version and length (RFC 8446, section 5.1).
const RECORD_HEADER_LEN: usize = 5;
/// One message of a session's own: with raw keys all are small.
const HANDSHAKE_BYTES_MAX: usize = 16 << 10;
/// Ciphertext that is read at once. A record fits several times.
const INCOMING_BYTES: usize = 256 << 10;
/// Nobody looks it up: the peer is known by its key.
const SERVER_NAME: &str = "link.toroid.invalid";

/// The key that a process is known by at its links, made anew by each.
#[derive(Debug, Clone)]
pub(in crate::comm) struct LinkKey {
    certified: Arc<CertifiedKey>,
    provider: Arc<CryptoProvider>,
    public: PublicKey,
}

impl LinkKey {
    /// From the system's random source.
    pub fn generate() -> io::Result<LinkKey> {
        let refused = |what: &dyn std::fmt::Display| io::Error::other(format!("make a key for links: {what}"));
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = ring::signature::Ed25519KeyPair::generate_pkcs8(&random).map_err(|e| refused(&e))?;
        let pkcs8 = PrivatePkcs8KeyDer::from(pkcs8.as_ref());
        let private = provider::sign::any_eddsa_type(&pkcs8).map_err(|e| refused(&e))?;
        let spki = private.public_key().ok_or_else(|| refused(&"it has no public part"))?.to_vec();
        let public = spki.strip_prefix(&SPKI_PREFIX).and_then(|key| key.try_into().ok());
        let public = public.ok_or_else(|| refused(&"its public part is not that of an Ed25519 key"))?;
        let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], private));
        Ok(LinkKey { certified, provider: Arc::new(provider()), public })
    }

    pub fn public(&self) -> PublicKey {
        self.public
    }
}

/// TLS 1.3 with the fastest cipher first: all are strong.
fn provider() -> CryptoProvider {
    use provider::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256};
    CryptoProvider {
        cipher_suites: vec![TLS13_AES_128_GCM_SHA256, TLS13_CHACHA20_POLY1305_SHA256],
        kx_groups: vec![provider::kx_group::X25519],
        ..provider::default_provider()
    }
}

/// Takes the peer that has the key which it named before, and nobody else.
#[derive(Debug)]
struct Named {
    spki: Vec<u8>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Named {
    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), Error> {
        // Public keys are no secret: the comparison may take its time.
        if shown.as_ref() == self.spki { Ok(()) } else { Err(CertificateError::ApplicationVerificationFailure.into()) }
    }
}

/// What both kinds of verifiers ask alike: who shows a raw key signs with it, in TLS 1.3.
macro_rules! checks_signatures_by_raw_keys {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            // Links speak TLS 1.3 only.
            Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            shown: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            let spki = SubjectPublicKeyInfoDer::from(shown.as_ref());
            verify_tls13_signature_with_raw_key(message, &spki, signature, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(shown).map(|()| ServerCertVerified::assertion())
    }

    checks_signatures_by_raw_keys!();
}

impl ClientCertVerifier for Named {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(shown).map(|()| ClientCertVerified::assertion())
    }

    checks_signatures_by_raw_keys!();
}

enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What is to be done next, as far as the bytes that are here say.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Something changed: look again.
    Again,
    /// A record was decrypted: so many bytes went where the reader wants them, what had no room there into `plain`.
    Plain(usize),
    /// What was wanted is encrypted.
    Encrypted,
    /// Nothing without more ciphertext. The handshake is done or not.
    More { is_open: bool },
    /// The peer has said that it sends no more.
    Closed,
}

/// A TCP connection whose bytes are TLS records.
pub(in crate::comm) struct Tls {
    socket: TcpStream,
    session: Session,
    /// Ciphertext that came and is not looked at yet: `incoming[begin..end]`.
    incoming: Vec<u8>,
    begin: usize,
    end: usize,
    /// Records of them that the session is shown while the handshake lasts.
    shown: usize,
    /// Of one record, from `plain_read` on.
    plain: Vec<u8>,
    plain_read: usize,
    /// Ciphertext that the socket has not taken yet, from `outgoing_sent` on.
    outgoing: Vec<u8>,
    outgoing_sent: usize,
    is_open: bool,
    /// The peer sends no more.
    is_closed: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Tls {
    /// Over a connected socket that does not block, with the peer that has named `peer` as its key. Reading carries the handshake on.
    pub fn begin(socket: TcpStream, side: Side, own: &LinkKey, peer: &PublicKey) -> io::Result<Tls> {
        let algorithms = own.provider.signature_verification_algorithms;
        let named = Arc::new(Named { spki: [&SPKI_PREFIX[..], peer].concat(), algorithms });
        let session = match side {
            Side::Caller => Session::Client(client(own, named).map_err(refused)?),
            Side::Called => Session::Server(server(own, named).map_err(refused)?),
        };
        let mut tls = Tls {
            socket,
            session,
            incoming: vec![0; INCOMING_BYTES],
            begin: 0,
            end: 0,
            shown: 1,
            plain: Vec::new(),
            plain_read: 0,
            outgoing: Vec::with_capacity(CHUNK_BYTES + CHUNK_OVERHEAD),
            outgoing_sent: 0,
            is_open: false,
            is_closed: false,
        };
        // A caller speaks first.
        while tls.step(&mut [], None)? == Next::Again {}
        tls.flush()?;
        Ok(tls)
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// The handshake is done.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// Ciphertext waits for the socket.
    pub fn has_unsent(&self) -> bool {
        self.outgoing_sent < self.outgoing.len()
    }

    fn has_plain(&self) -> bool {
        self.plain_read < self.plain.len()
    }

    /// Something can be read without the kernel: plaintext, or a record that is here as a whole.
    pub fn has_more(&self) -> bool {
        self.has_plain() || self.len_of(1).is_some()
    }

    /// Bytes of so many records that are here as a whole.
    fn len_of(&self, num_records: usize) -> Option<usize> {
        let incoming = &self.incoming[self.begin..self.end];
        let mut len = 0;
        for _ in 0..num_records {
            let header: &[u8; RECORD_HEADER_LEN] = incoming.get(len..)?.first_chunk()?;
            len += RECORD_HEADER_LEN + usize::from(u16::from_be_bytes([header[3], header[4]]));
        }
        (len <= incoming.len()).then_some(len)
    }

    /// Hands the kernel what is encrypted, as far as it takes that now; says whether it has all of it.
    pub fn flush(&mut self) -> io::Result<bool> {
        while self.has_unsent() {
            match self.socket.write(&self.outgoing[self.outgoing_sent..]) {
                Ok(written) => self.outgoing_sent += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.outgoing.clear();
        self.outgoing_sent = 0;
        Ok(true)
    }

    /// Encrypts bytes and hands the kernel what it takes now. The rest waits for [`Tls::flush`], or the next write, which takes nothing
    /// before: `WouldBlock`.
    pub fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        // Reading carries the handshake on.
        if !self.flush()? || !self.is_open {
            return Err(ErrorKind::WouldBlock.into());
        }
        let mut taken = 0;
        // A header is a record of its own: cheaper than to copy the payload behind it.
        for part in parts {
            let part = &part[..part.len().min(CHUNK_BYTES - taken)];
            if !part.is_empty() {
                self.encrypt(part)?;
                taken += part.len();
            }
        }
        self.flush().map(|_| taken)
    }

    fn encrypt(&mut self, bytes: &[u8]) -> io::Result<()> {
        loop {
            match self.step(&mut [], Some(bytes))? {
                // The session had something to say or to take in first.
                Next::Again | Next::Plain(_) => {}
                Next::Closed => self.is_closed = true,
                Next::Encrypted => return Ok(()),
                Next::More { .. } => unreachable!("an open session encrypts, and only an open one is written to"),
            }
        }
    }

    /// Reads until `bytes` are full or there is nothing more now; 0 where the peer has ended and all it sent is read.
    pub fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < bytes.len() {
            match self.read_some(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                // What came before is taken first; the error comes again.
                Err(_) if filled > 0 => break,
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    /// At most one record.
    fn read_some(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if !self.has_plain() {
            let filled = self.next_record(bytes)?;
            if filled > 0 {
                return Ok(filled);
            }
        }
        let plain = &self.plain[self.plain_read..];
        let len = plain.len().min(bytes.len());
        bytes[..len].copy_from_slice(&plain[..len]);
        self.consume(len);
        Ok(len)
    }

    /// The bytes that come next, some of them; none where the peer has ended and all it sent is read.
    pub fn peek(&mut self) -> io::Result<&[u8]> {
        if !self.has_plain() {
            self.next_record(&mut [])?;
        }
        Ok(&self.plain[self.plain_read..])
    }

    /// Bytes of [`Tls::peek`] are dealt with.
    pub fn consume(&mut self, len: usize) {
        self.plain_read += len;
        assert!(self.plain_read <= self.plain.len(), "more is consumed than was shown");
    }

    /// Decrypts the next record into `bytes`, and what has no room there into `plain`, which is empty. How many bytes were filled.
    fn next_record(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let was_open = self.is_open;
        while !self.is_closed {
            match self.step(bytes, None)? {
                Next::Again | Next::Encrypted => {}
                Next::Plain(filled) => return Ok(filled),
                Next::Closed => self.is_closed = true,
                // A message of the handshake goes on in the next record.
                Next::More { is_open: false } if self.len_of(self.shown + 1).is_some() => self.shown += 1,
                Next::More { .. } => {
                    // What the session has answered, in the handshake for instance.
                    self.flush()?;
                    if self.is_open && !was_open {
                        // The link is up: what came behind the handshake, and that a peer has gone since, is for whoever reads then.
                        return Err(ErrorKind::WouldBlock.into());
                    }
                    self.is_closed = !self.take_in()?;
                }
            }
        }
        Ok(0)
    }

    /// Reads ciphertext; false where the connection has ended.
    fn take_in(&mut self) -> io::Result<bool> {
        self.incoming.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        loop {
            match self.socket.read(&mut self.incoming[self.end..]) {
                Ok(read) => {
                    self.end += read;
                    return Ok(read > 0);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Looks at the ciphertext that is here, and encrypts `wanted` once nothing goes before it.
    fn step(&mut self, bytes: &mut [u8], wanted: Option<&[u8]>) -> io::Result<Next> {
        // Record by record while the handshake lasts, so that nothing behind it is looked at before the link is up.
        let shown = self.len_of(self.shown).filter(|_| !self.is_open);
        let Tls { session, incoming, begin, end, plain, plain_read, outgoing, .. } = self;
        let shown = shown.map_or(*end, |len| *begin + len);
        let incoming = &mut incoming[*begin..shown];
        if *plain_read == plain.len() {
            plain.clear();
            *plain_read = 0;
        }
        let mut sink = Sink { bytes, plain, outgoing };
        let (discard, next) = match session {
            Session::Client(session) => sink.take(session.process_tls_records(incoming), wanted),
            Session::Server(session) => sink.take(session.process_tls_records(incoming), wanted),
        };
        *begin += discard;
        self.is_open |= matches!(next, Ok(Next::More { is_open: true } | Next::Plain(_) | Next::Encrypted));
        if discard > 0 && !self.is_open {
            self.shown = 1;
            // The next record may be here already.
            return next.map(|next| if next == (Next::More { is_open: false }) { Next::Again } else { next });
        }
        next
    }
}

/// Where a step of a session puts what it yields.
struct Sink<'a> {
    /// For plaintext.
    bytes: &'a mut [u8],
    /// For plaintext that has no room there.
    plain: &'a mut Vec<u8>,
    outgoing: &'a mut Vec<u8>,
}

impl Sink<'_> {
    /// What the session wants done is done. Also how many bytes of ciphertext are dealt with.
    fn take<Data>(
        &mut self,
        status: UnbufferedStatus<'_, '_, Data>,
        wanted: Option<&[u8]>,
    ) -> (usize, io::Result<Next>) {
        let UnbufferedStatus { mut discard, state } = status;
        let next = match state {
            Err(error) => Err(refused(error)),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                let mut filled = 0;
                while let Some(record) = traffic.next_record() {
                    match record {
                        Ok(record) => {
                            discard += record.discard;
                            filled += self.put(record.payload, filled);
                        }
                        Err(error) => return (discard, Err(refused(error))),
                    }
                }
                Ok(Next::Plain(filled))
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let encoded = self.append(HANDSHAKE_BYTES_MAX, |space| data.encode(space).map_err(io::Error::other));
                encoded.map(|()| Next::Again)
            }
            // It lies in `outgoing`, which is sent in order.
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                Ok(Next::Again)
            }
            Ok(ConnectionState::BlockedHandshake) => Ok(Next::More { is_open: false }),
            Ok(ConnectionState::WriteTraffic(mut traffic)) => match wanted {
                None => Ok(Next::More { is_open: true }),
                Some(bytes) => {
                    let space = bytes.len() + CHUNK_OVERHEAD;
                    let encrypted = self.append(space, |space| traffic.encrypt(bytes, space).map_err(io::Error::other));
                    encrypted.map(|()| Next::Encrypted)
                }
            },
            Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => Ok(Next::Closed),
            Ok(other) => {
                Err(io::Error::other(format!("a link's session is in a state that it cannot have: {other:?}")))
            }
        };
        (discard, next)
    }

    /// How many bytes went where the reader wants them, behind the first `filled`.
    fn put(&mut self, payload: &[u8], filled: usize) -> usize {
        let len = payload.len().min(self.bytes.len() - filled);
        self.bytes[filled..filled + len].copy_from_slice(&payload[..len]);
        self.plain.extend_from_slice(&payload[len..]);
        len
    }

    /// Has `write` put ciphertext behind what is there, at most so much.
    fn append(&mut self, space: usize, write: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
        let len = self.outgoing.len();
        self.outgoing.resize(len + space, 0);
        let written = write(&mut self.outgoing[len..]);
        self.outgoing.truncate(len + written.as_ref().map_or(0, |written| *written));
        written.map(|_| ())
    }
}

fn refused(error: Error) -> io::Error {
    let what = match error {
        Error::InvalidCertificate(_) => "it does not have the key that it named in its handshake".into(),
        Error::DecryptError => "a record was changed on its way".into(),
        other => format!("its TLS is not to be taken: {other}"),
    };
    io::Error::new(ErrorKind::InvalidData, what)
}

fn client(own: &LinkKey, peer: Arc<Named>) -> Result<UnbufferedClientConnection, Error> {
    let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&own.certified));
    let mut config = ClientConfig::builder_with_provider(Arc::clone(&own.provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(peer)
        .with_client_cert_resolver(Arc::new(resolver));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    let name = ServerName::try_from(SERVER_NAME).map_err(|e| Error::General(e.to_string()))?;
    UnbufferedClientConnection::new(Arc::new(config), name)
}

fn server(own: &LinkKey, peer: Arc<Named>) -> Result<UnbufferedServerConnection, Error> {
    let resolver = AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&own.certified));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(&own.provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(peer)
        .with_cert_resolver(Arc::new(resolver));
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    UnbufferedServerConnection::new(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// A caller that names `named`, and the called side, over loopback.
    fn pair(caller: &LinkKey, called: &LinkKey, named: &PublicKey) -> io::Result<[Tls; 2]> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let calling = TcpStream::connect(listener.local_addr()?)?;
        let (called_socket, _) = listener.accept()?;
        calling.set_nonblocking(true)?;
        called_socket.set_nonblocking(true)?;
        Ok([
            Tls::begin(calling, Side::Caller, caller, &called.public())?,
            Tls::begin(called_socket, Side::Called, called, named)?,
        ])
    }

    /// Carries the handshake on until both are open.
    fn open(pair: &mut [Tls; 2]) -> io::Result<()> {
        while !pair.iter().all(Tls::is_open) {
            for tls in &mut *pair {
                match tls.peek().map(<[u8]>::len) {
                    Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    fn keys() -> [LinkKey; 2] {
        [(); 2].map(|()| LinkKey::generate().expect("the system has random bytes"))
    }

    #[test]
    fn bytes_of_any_length_come_out_as_they_went_in() -> io::Result<()> {
        let [caller, called] = keys();
        let mut pair = pair(&caller, &called, &caller.public())?;
        open(&mut pair)?;
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut received = vec![0; sent.len()];
        let (mut written, mut read, mut turn) = (0, 0, 0);
        while read < received.len() {
            let header = sent.len().min(written + 40 * (turn % 3));
            let parts = [&sent[written..header], &sent[header..]].map(IoSlice::new);
            match pair[0].write_vectored(&parts) {
                Ok(taken) => written += taken,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
            // By both ways to read, in pieces that fit no record.
            let end = received.len().min(read + 1 + 70_001 * (turn % 5));
            if turn % 2 == 0 {
                match pair[1].read(&mut received[read..end]) {
                    Ok(len) => read += len,
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            } else {
                let len = match pair[1].peek() {
                    Ok(plain) => {
                        let len = plain.len().min(end - read);
                        received[read..read + len].copy_from_slice(&plain[..len]);
                        len
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => 0,
                    Err(e) => return Err(e),
                };
                pair[1].consume(len);
                read += len;
            }
            turn += 1;
        }
        assert!(received == sent, "other bytes came out");
        let [caller, mut called] = pair;
        drop(caller);
        assert_eq!(called.read(&mut [0])?, 0, "the end of the connection is its end");
        Ok(())
    }

    #[test]
    fn a_peer_with_another_key_than_it_named_is_refused() -> io::Result<()> {
        let [caller, called] = keys();
        let [other, _] = keys();
        let mut by_the_called = pair(&caller, &called, &other.public())?;
        let error = open(&mut by_the_called).expect_err("it is not taken").to_string();
        assert!(error.contains("does not have the key that it named"), "{error}");
        Ok(())
    }
}
