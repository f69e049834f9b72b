//! A listener that takes connections in clear text or over TLS 1.3, knows who is at their other end, and lets no one hold it up.
//!
//! ```text
//!   accept ──> room? ──> TLS handshake, in a task of its own, within its time ──> queue ──> HTTP/2
//!     no: closed at once, counted            fails, too late, or has to give way to a newer one: closed
//! ```
//!
//! Invariants: no session is resumed and no ticket is given, so that each connection shows a certificate that is good now; a connection ends
//! when its peer's certificate ends or is revoked, and where no call of it was taken within [`Limits::first_call`] (which covers whoever opens
//! connections and says nothing); one address has a share of all connections, never all of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::client::ALPN;
use crate::files::{Loaded, POLL};
use crate::guarded::{Guarded, until};
use crate::{Files, Identity, Revoked, SecurityError, Watched, provider};

/// Connections that wait to be taken by HTTP/2.
const MAX_WAITING: usize = 64;
/// After an `accept` that failed, as it does where there are no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What is refused is said so often at most.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// What connections may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a TLS handshake.
    pub handshake: Duration,
    /// Until a call of a new connection was taken.
    pub first_call: Duration,
    /// Handshakes that are not done, of all and of one address.
    pub half_open: usize,
    pub half_open_of_address: usize,
    /// Connections, of all and of one address.
    pub connections: usize,
    pub connections_of_address: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake: Duration::from_secs(5),
            first_call: Duration::from_secs(10),
            half_open: 1024,
            half_open_of_address: 256,
            connections: 16_384,
            connections_of_address: 4096,
        }
    }
}

/// What this end shows to others, and whom it knows.
pub struct ServerTls {
    watched: Watched,
    made: Mutex<Option<(Arc<Loaded>, Arc<ServerConfig>)>>,
}

impl ServerTls {
    pub fn open(files: Files) -> Result<ServerTls, SecurityError> {
        let tls = ServerTls { watched: Watched::open(files)?, made: Mutex::new(None) };
        let loaded = tls.watched.current();
        let own = loaded.own.as_ref().ok_or_else(no_pair)?;
        if own.identity.role != crate::Role::Coordinator {
            let (cert, _) = tls.watched.files().pair.as_ref().expect("it was just read");
            let reason = format!(
                "its role is {}; expected coordinator, as `toroid certs issue --role coordinator` gives it",
                own.identity.role
            );
            return Err(SecurityError::file(cert, reason));
        }
        tls.config()?;
        Ok(tls)
    }

    /// For a handshake that begins now.
    fn config(&self) -> Result<(Arc<Loaded>, Arc<ServerConfig>), SecurityError> {
        let loaded = self.watched.current();
        let mut made = lock(&self.made);
        let config = match &*made {
            Some((of, config)) if Arc::ptr_eq(of, &loaded) => Arc::clone(config),
            _ => {
                let config = Arc::new(config(&loaded)?);
                *made = Some((Arc::clone(&loaded), Arc::clone(&config)));
                config
            }
        };
        Ok((loaded, config))
    }
}

fn no_pair() -> SecurityError {
    SecurityError::Wrong("a coordinator needs a certificate and its key".into())
}

fn config(loaded: &Loaded) -> Result<ServerConfig, SecurityError> {
    let own = loaded.own.as_ref().ok_or_else(no_pair)?;
    let webpki = WebPkiClientVerifier::builder_with_provider(Arc::clone(&loaded.roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| SecurityError::Wrong(format!("the CA's certificates cannot be used: {e}")))?;
    let verifier = PeerVerifier { webpki, revoked: loaded.revoked.clone() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&own.key))));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// Takes certificates of the CA that say who somebody is and were not revoked; and who shows none, who may have a token.
#[derive(Debug)]
struct PeerVerifier {
    webpki: Arc<dyn ClientCertVerifier>,
    revoked: Revoked,
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.webpki.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.webpki.verify_client_cert(certificate, between, now)?;
        let peer = Identity::of(certificate).map_err(rustls::Error::General)?;
        match self.revoked.has(&peer.serial) {
            true => Err(rustls::CertificateError::Revoked.into()),
            false => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// A connection that was taken, until it is to end.
pub type Incoming = Guarded<Taken>;

pub struct Taken {
    io: Io,
    peer: Peer,
    _place: Place,
}

/// In clear text or over TLS.
enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connected for Incoming {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.get_ref().peer.clone()
    }
}

impl AsyncRead for Taken {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Taken {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bytes),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }
}

/// Who is at the other end of a connection; an extension of each of its requests.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    pub is_tls: bool,
    /// What its certificate says, if it showed one.
    pub identity: Option<Arc<Identity>>,
    /// When the certificate ends that this end has shown to it.
    own_ends: Option<SystemTime>,
    was_taken: Arc<AtomicBool>,
    revoked: watch::Receiver<Revoked>,
}

impl Peer {
    /// A call of this connection was taken: it is somebody's.
    pub fn take(&self) {
        self.was_taken.store(true, Ordering::Relaxed);
    }

    /// When the connection ends by itself, since one of its certificates does; `None`: never.
    pub fn good_until(&self) -> Option<SystemTime> {
        self.identity.as_ref().map(|identity| identity.not_after).into_iter().chain(self.own_ends).min()
    }

    /// Returns with the reason when its certificate is not taken any more; never where it showed none.
    pub async fn ends(self) -> &'static str {
        let Peer { identity: Some(identity), mut revoked, .. } = self else { return std::future::pending().await };
        tokio::select! {
            () = until(identity.not_after) => "the certificate has ended; connect again with the renewed one",
            Ok(_) = revoked.wait_for(|revoked| revoked.has(&identity.serial)) => "the certificate was revoked",
        }
    }
}

/// How many connections there are, by address.
#[derive(Debug, Default)]
struct Counts {
    /// Handshakes that are not done, by age.
    half_open: BTreeMap<u64, HalfOpen>,
    num_taken: u64,
    connections: usize,
    of_address: BTreeMap<IpAddr, OfAddress>,
}

#[derive(Debug)]
struct HalfOpen {
    address: IpAddr,
    /// Dropped when its room goes to a newer one.
    _room: oneshot::Sender<Infallible>,
}

#[derive(Debug, Default, Clone, Copy)]
struct OfAddress {
    half_open: usize,
    connections: usize,
}

impl Counts {
    /// Whoever is the longest about its handshake gives way, of the address that has too many or, where all together have, the most: who opens
    /// connections and says nothing keeps out neither others nor its own neighbours.
    fn make_room(&mut self, limits: &Limits, newcomer: IpAddr) {
        let num_of = |counts: &Counts, address: &IpAddr| counts.of_address.get(address).map_or(0, |of| of.half_open);
        let from = if num_of(self, &newcomer) >= limits.half_open_of_address {
            Some(newcomer)
        } else if self.half_open.len() >= limits.half_open {
            self.of_address.iter().max_by_key(|(_, of)| of.half_open).map(|(address, _)| *address)
        } else {
            None
        };
        let oldest = self.half_open.iter().find(|(_, half_open)| Some(half_open.address) == from);
        if let Some(number) = oldest.map(|(number, _)| *number) {
            self.is_open(number);
        }
    }

    /// The handshake of this number is over, or has given way; does nothing where it was so before.
    fn is_open(&mut self, number: u64) {
        let Some(half_open) = self.half_open.remove(&number) else { return };
        if let Some(of_address) = self.of_address.get_mut(&half_open.address) {
            of_address.half_open -= 1;
        }
    }
}

type Shared = Arc<Mutex<Counts>>;

/// Nobody panics while it has the lock, and the numbers would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection's share; given back when it is dropped.
struct Place {
    counts: Shared,
    address: IpAddr,
    number: u64,
}

/// Ends when its sender is dropped: the handshake has to give way.
type GaveWay = oneshot::Receiver<Infallible>;

impl Place {
    /// `None`: there is no room.
    fn take(counts: &Shared, limits: &Limits, address: IpAddr) -> Option<(Place, GaveWay)> {
        // One who has a network of IPv6 addresses is one.
        let address = network(address);
        let mut now = lock(counts);
        let of_address = now.of_address.get(&address).copied().unwrap_or_default();
        if now.connections >= limits.connections || of_address.connections >= limits.connections_of_address {
            return None;
        }
        now.make_room(limits, address);
        let (room, gave_way) = oneshot::channel();
        let number = now.num_taken;
        now.num_taken += 1;
        now.connections += 1;
        now.half_open.insert(number, HalfOpen { address, _room: room });
        let of_address = now.of_address.entry(address).or_default();
        of_address.half_open += 1;
        of_address.connections += 1;
        Some((Place { counts: Arc::clone(counts), address, number }, gave_way))
    }

    fn is_open(&self) {
        lock(&self.counts).is_open(self.number);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut now = lock(&self.counts);
        now.is_open(self.number);
        now.connections -= 1;
        if let Some(of_address) = now.of_address.get_mut(&self.address) {
            of_address.connections -= 1;
            if of_address.connections == 0 {
                now.of_address.remove(&self.address);
            }
        }
    }
}

/// The address by which somebody is counted: of IPv6 the first 64 bits, which one customer has.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// Connections as they come, until what is returned is dropped. `tls`: `None` for clear text.
pub fn listen(listener: TcpListener, tls: Option<ServerTls>, limits: Limits) -> mpsc::Receiver<io::Result<Incoming>> {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    tokio::spawn(accept(listener, tls.map(Arc::new), limits, sender));
    receiver
}

async fn accept(
    listener: TcpListener,
    tls: Option<Arc<ServerTls>>,
    limits: Limits,
    taken: mpsc::Sender<io::Result<Incoming>>,
) {
    let counts = Shared::default();
    let (revoked, _) = watch::channel(Revoked::default());
    let mut polls = tokio::time::interval(POLL);
    polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut num_refused, mut complained_at) = (0_u64, None);
    loop {
        let (tcp, address) = tokio::select! {
            () = taken.closed() => return,
            _ = polls.tick() => {
                if let Some(tls) = &tls {
                    let found = &tls.watched.current().revoked;
                    revoked.send_if_modified(|now| *now != *found && { now.clone_from(found); true });
                }
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!("taking a connection failed: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let Some((place, gave_way)) = Place::take(&counts, &limits, address.ip()) else {
            num_refused += 1;
            if complained_at.is_none_or(|at: tokio::time::Instant| at.elapsed() >= COMPLAINT_INTERVAL) {
                complained_at = Some(tokio::time::Instant::now());
                tracing::warn!(
                    "{num_refused} connections were refused since the start, the last from {address}: too many are open"
                );
            }
            continue;
        };
        let newcomer = Newcomer { tcp, address, place, limits, revoked: revoked.subscribe() };
        let (tls, taken) = (tls.clone(), taken.clone());
        tokio::spawn(async move {
            match newcomer.shake_hands(tls.as_deref(), gave_way).await {
                // Nobody takes it any more where the coordinator ends.
                Ok(incoming) => drop(taken.send(Ok(incoming)).await),
                Err(error) => tracing::debug!("the TLS handshake with {address} failed: {error}"),
            }
        });
    }
}

struct Newcomer {
    tcp: TcpStream,
    address: SocketAddr,
    place: Place,
    limits: Limits,
    revoked: watch::Receiver<Revoked>,
}

impl Newcomer {
    async fn shake_hands(self, tls: Option<&ServerTls>, gave_way: GaveWay) -> io::Result<Incoming> {
        let Newcomer { tcp, address, place, limits, revoked } = self;
        tcp.set_nodelay(true)?;
        let (io, identity, own_ends) = match tls {
            None => (Io::Plain(tcp), None, None),
            Some(tls) => {
                let (loaded, config) = tls.config().map_err(io::Error::other)?;
                let own_ends = loaded.own.as_ref().map(|own| own.identity.not_after);
                let handshake = tokio::time::timeout(limits.handshake, TlsAcceptor::from(config).accept(tcp));
                let stream = tokio::select! {
                    shaken = handshake => shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??,
                    Err(_) = gave_way => return Err(io::Error::other("it gave way to a newer one")),
                };
                let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                let identity = certificate.map(Identity::of).transpose().map_err(io::Error::other)?;
                (Io::Tls(Box::new(stream)), identity.map(Arc::new), own_ends)
            }
        };
        place.is_open();
        let was_taken = Arc::new(AtomicBool::new(false));
        let peer =
            Peer { address, is_tls: tls.is_some(), identity, own_ends, was_taken: Arc::clone(&was_taken), revoked };
        let ends = ends(peer.clone(), limits.first_call);
        Ok(Guarded::new(Taken { io, peer, _place: place }, Box::pin(ends)))
    }
}

/// Why a connection ends by itself.
async fn ends(peer: Peer, first_call: Duration) -> &'static str {
    /// Calls are told first why they end.
    const FAREWELL: Duration = Duration::from_secs(1);
    let was_taken = Arc::clone(&peer.was_taken);
    let idle = async move {
        tokio::time::sleep(first_call).await;
        if was_taken.load(Ordering::Relaxed) {
            std::future::pending().await
        } else {
            "it made no call in time that was taken"
        }
    };
    tokio::select! {
        reason = idle => reason,
        reason = peer.ends() => {
            tokio::time::sleep(FAREWELL).await;
            reason
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::HandshakeKind;
    use rustls::client::Resumption;
    use tokio::io::AsyncReadExt as _;
    use tokio_rustls::TlsConnector;

    use crate::issue::{Authority, Request};

    /// A client that would resume a session is given none: each connection shows a certificate that is good now.
    #[tokio::test]
    async fn no_session_is_resumed() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), &"lab".parse().unwrap()).unwrap();
        let issue = |name: &str, role| {
            let (hosts, valid) = (Vec::new(), Duration::from_secs(3600));
            authority.issue(&Request { name: name.parse().unwrap(), role, hosts, valid }).unwrap()
        };
        let tls = ServerTls::open(Files::of_folder(&issue("c", crate::Role::Coordinator))).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut taken = listen(listener, Some(tls), Limits::default());
        let client = Watched::open(Files::of_folder(&issue("alice", crate::Role::View))).unwrap();
        let mut config = crate::client::config(&client.current()).unwrap();
        config.resumption = Resumption::in_memory_sessions(8);
        let connector = TlsConnector::from(Arc::new(config));
        for _ in 0..2 {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = "coordinator.toroid".try_into().unwrap();
            let mut tls = connector.connect(name, tcp).await.unwrap();
            let incoming = taken.recv().await.unwrap().unwrap();
            assert_eq!(
                incoming.get_ref().peer.identity.as_ref().map(|peer| peer.name.to_string()).as_deref(),
                Some("alice")
            );
            assert_eq!(tls.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
            drop(incoming);
            // A ticket would have come by the end of the connection.
            let _ = tls.read_to_end(&mut Vec::new()).await;
        }
    }
}
