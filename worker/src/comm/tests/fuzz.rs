//! What a stranger may send to the port of links: whatever it is, nobody is let in who has not proven the key, no more is kept of it than one
//! message, and those who belong there get their links all the same.

use std::sync::atomic::{AtomicBool, Ordering};

use toroid_testkit::fuzz::{Random, fuzz, fuzz_from_seeds, mutated};

use super::super::frame::{HEADER_LEN, MAX_PAYLOAD_BYTES};
use super::super::handshake::{Acceptor, Dialer, Identity, Message, Verdict, Why};
use super::super::transport::connect_local;
use super::*;

/// For millions of callers.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// Of a handshake message, with what stands before its body.
const MAX_MESSAGE_BYTES: usize = 11 + 1024;

fn me(rank: usize) -> Identity<'static> {
    let versions = toroid_proto::build().links;
    Identity { job_id: "job", epoch: 1, rank, key: &KEY, link_key: [rank as u8; 32], versions }
}

/// The messages of a whole handshake, in both directions, and those of a probe.
fn handshake() -> Vec<Message> {
    let (mut dialer, hello) = Dialer::new(&me(0), 1, LinkKind::Tcp, [1; 32]);
    let mut acceptor = Acceptor::new([2; 32], vec![LinkKind::Tcp]);
    let receive = |acceptor: &mut Acceptor, message| acceptor.receive(&me(1), |rank| rank == 0, message).unwrap().0;
    let challenge = receive(&mut acceptor, hello.clone()).unwrap();
    let proof = dialer.receive(challenge.clone()).unwrap().0.unwrap();
    let welcome = receive(&mut acceptor, proof.clone()).unwrap();
    let refusal = Message::Refuse { why: Why::NotYet, text: "not yet".into() };
    let knock = Message::Knock { number: 7, nonce: [3; 32], proof: [4; 32] };
    vec![hello, challenge, proof, welcome, refusal, knock, Message::Here { proof: [5; 32] }]
}

fn corpus() -> Vec<Vec<u8>> {
    handshake().iter().map(Message::encode).collect()
}

/// The whole messages at the beginning of `bytes`, as a reader takes them that asks for no more than is missing.
fn messages(bytes: &[u8]) -> Vec<Message> {
    let (mut found, mut at, mut len) = (Vec::new(), 0, 0);
    while let Ok(missing) = Message::missing(&bytes[at..at + len]) {
        assert!(len + missing <= MAX_MESSAGE_BYTES, "{} bytes are waited for", len + missing);
        if missing > 0 {
            // The rest does not come.
            if at + len + missing > bytes.len() {
                break;
            }
            len += missing;
            continue;
        }
        let Ok(message) = Message::decode(&bytes[at..at + len]) else { break };
        found.push(message);
        (at, len) = (at + len, 0);
    }
    found
}

#[test]
fn handshake_messages() {
    fuzz("handshake-messages", &corpus(), |bytes| {
        for message in messages(bytes) {
            let again = message.encode();
            assert_eq!(Message::decode(&again), Ok(message), "what is taken can be said");
        }
    });
}

/// Both sides, to whom somebody speaks who does not have the key, and has heard a handshake of others.
#[test]
fn handshakes_without_the_key() {
    let corpus = corpus();
    let all: Vec<u8> = corpus.concat();
    let corpus: Vec<Vec<u8>> = corpus.into_iter().chain([all]).collect();
    fuzz("handshakes", &corpus, |bytes| {
        let said = messages(bytes);
        // Other nonces than those of the handshake that was heard.
        let mut acceptor = Acceptor::new([6; 32], vec![LinkKind::Shm, LinkKind::Tcp, LinkKind::Tls]);
        for message in said.clone() {
            match acceptor.receive(&me(1), |rank| rank == 0, message) {
                Ok((_, Verdict::Continue)) => {}
                Ok((_, Verdict::Established { .. })) => panic!("somebody is let in"),
                Ok((_, Verdict::Refused { .. })) | Err(_) => break,
            }
        }
        let (mut dialer, _) = Dialer::new(&me(0), 1, LinkKind::Tcp, [6; 32]);
        for message in said {
            match dialer.receive(message) {
                Ok((_, Verdict::Continue)) => {}
                Ok((_, Verdict::Established { .. })) => panic!("somebody is taken for the peer"),
                Ok((_, Verdict::Refused { .. })) | Err(_) => break,
            }
        }
    });
}

/// Every second header has a right sum, so that what stands in it is looked at.
#[test]
fn frames() {
    let headers = [Stream::Data(Channel::Dp), Stream::Resume].map(|stream| Header::of(stream, 3, 9, b"payload"));
    let corpus: Vec<Vec<u8>> = headers.iter().map(|header| header.encode().to_vec()).collect();
    let mut is_summed = false;
    fuzz("frames", &corpus, |bytes| {
        let mut header = [0; HEADER_LEN];
        let len = bytes.len().min(HEADER_LEN);
        header[..len].copy_from_slice(&bytes[..len]);
        is_summed = !is_summed;
        if is_summed {
            let sum = crc32c::crc32c(&header[..36]);
            header[36..].copy_from_slice(&sum.to_le_bytes());
        }
        if let Ok(found) = Header::decode(&header) {
            assert!(found.length <= MAX_PAYLOAD_BYTES);
            assert_eq!(Header::decode(&found.encode()), Ok(found), "what is taken can be said");
        }
    });
}

/// Over real sockets, of the network and of this machine: while strangers call a rank that waits for its peer, and after them that peer comes.
#[test]
fn callers_of_a_port() {
    let corpus = corpus();
    for kind in [LinkKind::Tls, LinkKind::Shm] {
        let nodes = ["w0", "w1"].map(|id| Node::new(id, LinkChoice::Only(kind)));
        let nodes = [&nodes[0], &nodes[1]];
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let links = Links::establish(&nodes[1].listener, plan(&nodes, 1, 1), &nodes[1].fence, LONG);
                is_over.store(true, Ordering::SeqCst);
                links.map(|links| links.kinds())
            });
            fuzz_from_seeds(&format!("callers-of-{kind}-links"), |random| {
                call(nodes[1], kind, &corpus, random);
                assert!(!is_over.load(Ordering::SeqCst), "the rank has ended, or took a stranger for its peer");
            });
            let peer = nodes[0].establish(plan(&nodes, 0, 1)).map(|links| links.kinds());
            assert_eq!(peer, Ok(BTreeMap::from([(kind, 1)])));
            assert_eq!(waits.join().unwrap(), Ok(BTreeMap::from([(kind, 1)])));
        });
    }
}

/// Says something and hangs up, and now and then hears the answer before.
fn call(node: &Node, kind: LinkKind, corpus: &[Vec<u8>], random: &mut Random) {
    let (bytes, hears) = (mutated(corpus, random), random.below(4) == 0);
    let speak = |stream: &mut dyn ReadWrite| {
        // Who was refused already cannot go on.
        let _ = stream.write_all(&bytes);
        if hears {
            let mut answer = [0; 256];
            let _ = stream.read(&mut answer);
        }
    };
    let address = node.listener.local_addr();
    match kind {
        LinkKind::Shm => {
            let mut stream = connected(|| connect_local(&node.worker_id, address.port()));
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            stream.set_nonblocking(false).unwrap();
            speak(&mut stream);
        }
        _ => {
            let mut stream = connected(|| TcpStream::connect(address));
            stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            speak(&mut stream);
        }
    }
}

/// Where the system has no port or no place in the queue at the moment it is tried again.
fn connected<T>(connect: impl Fn() -> std::io::Result<T>) -> T {
    loop {
        match connect() {
            Ok(stream) => return stream,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::AddrNotAvailable) => {
                std::thread::yield_now();
            }
            Err(e) => panic!("cannot connect: {e}"),
        }
    }
}

trait ReadWrite: Read + Write {}

impl<T: Read + Write> ReadWrite for T {}
