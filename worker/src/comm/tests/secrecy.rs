//! What somebody between two workers can read, change and say again.

use std::net::{Shutdown, TcpListener};
use std::sync::Mutex;

use super::super::handshake::{Message, Why};
use super::*;

/// A line that nothing else on a link looks like.
const SECRET: &[u8] = b"the weights of a model that nobody else may have";

/// Two ranks that reach each other over `wire`.
struct Wiretapped {
    nodes: [Node; 2],
    wire: TcpListener,
}

impl Wiretapped {
    fn new(kind: LinkKind) -> Wiretapped {
        let nodes = ["w0", "w1"].map(|id| Node::new(id, LinkChoice::Only(kind)));
        Wiretapped { nodes, wire: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    /// Runs both ranks, rank 0 with a link that `tap` sees: each piece of bytes that it sends to rank 1, with its number.
    fn run<T: Send>(&self, tap: impl Fn(&mut [u8], usize) + Sync, body: impl Fn(&mut Links) -> T + Sync) -> Vec<T> {
        let nodes = [&self.nodes[0], &self.nodes[1]];
        let address = self.wire.local_addr().unwrap().to_string();
        let target = nodes[1].listener.local_addr();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (caller, _) = self.wire.accept().unwrap();
                let called = TcpStream::connect(target).unwrap();
                let back = (called.try_clone().unwrap(), caller.try_clone().unwrap());
                scope.spawn(move || pass(&back.0, &back.1, |_, _| {}));
                pass(&caller, &called, &tap);
            });
            on_every_rank(&nodes, |rank, node| {
                let mut plan = plan(&nodes, rank, 1);
                if let Some(peer) = plan.peers.get_mut(&1) {
                    peer.address.clone_from(&address);
                }
                body(&mut node.establish(plan).unwrap())
            })
        })
    }
}

/// Passes bytes on until either side has ended.
fn pass(mut from: &TcpStream, mut to: &TcpStream, tap: impl Fn(&mut [u8], usize)) {
    let mut bytes = [0; 4096];
    let mut number = 0;
    while let Ok(read) = from.read(&mut bytes)
        && read > 0
    {
        tap(&mut bytes[..read], number);
        number += 1;
        if to.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    // The other side may have gone before.
    let _ = to.shutdown(Shutdown::Write);
}

fn has_secret(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET)
}

fn send_secret(links: &mut Links) {
    match links.rank() {
        0 => send(links, 1, Channel::Tp, SECRET).unwrap(),
        _ => assert_eq!(recv(links, 0, Channel::Tp, SECRET.len()).unwrap(), SECRET),
    }
}

/// What rank 0 has sent, as whoever is in between sees it.
fn heard(kind: LinkKind) -> Vec<u8> {
    let heard = Mutex::new(Vec::new());
    Wiretapped::new(kind).run(|bytes, _| heard.lock().unwrap().extend_from_slice(bytes), send_secret);
    heard.into_inner().unwrap()
}

#[test]
fn what_a_tls_link_carries_is_not_to_be_read() {
    assert!(has_secret(&heard(LinkKind::Tcp)), "whoever listens hears a plain link");
    assert!(!has_secret(&heard(LinkKind::Tls)));
}

#[test]
fn a_changed_byte_ends_a_tls_link_and_no_changed_payload_is_taken() {
    let wiretapped = Wiretapped::new(LinkKind::Tls);
    // Long after the handshake: the ranks say when.
    let (changes, changed) = (Mutex::new(false), Mutex::new(0));
    let tap = |bytes: &mut [u8], _| {
        if *changes.lock().unwrap() {
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            *changed.lock().unwrap() += 1;
        }
    };
    let results = wiretapped.run(tap, |links| {
        send_secret(links);
        // Rank 1 has it, so what comes now is changed.
        if links.rank() == 1 {
            *changes.lock().unwrap() = true;
            send(links, 0, Channel::Tp, b"go").unwrap();
            return recv(links, 0, Channel::Tp, SECRET.len()).err().map(|e| e.to_string());
        }
        recv(links, 1, Channel::Tp, 2).unwrap();
        send(links, 1, Channel::Tp, SECRET).unwrap();
        recv(links, 1, Channel::Tp, 1).err().map(|e| e.to_string())
    });
    assert!(*changed.lock().unwrap() > 0);
    let [sender, receiver] = [&results[0], &results[1]].map(|error| error.clone().unwrap());
    assert!(receiver.contains("a record was changed on its way"), "{receiver}");
    assert!(sender.contains("closed by the other side") || sender.contains("reset"), "{sender}");
}

#[test]
fn a_handshake_that_was_heard_cannot_be_said_again() {
    for kind in [LinkKind::Tcp, LinkKind::Tls] {
        let heard = heard(kind);
        let hello = message_at(&heard, 0);
        let proof = message_at(&heard, hello.len());
        assert!(matches!(Message::decode(proof).unwrap(), Message::Proof { .. }));
        let node = Node::new("w1", LinkChoice::Only(kind));
        let address = node.listener.local_addr();
        let peers = BTreeMap::from([(0, PeerAddr { worker_id: "w0".into(), address: "127.0.0.1:1".into() })]);
        let plan = LinkPlan { job_id: "job".into(), epoch: Epoch::new(1), rank: 1, key: KEY, peers };
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| node.establish(plan).err().unwrap());
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&[hello, proof].concat()).unwrap();
            let mut answers = Vec::new();
            // It is reset where the node closes with bytes unread.
            let _ = stream.read_to_end(&mut answers);
            let challenge = message_at(&answers, 0);
            assert!(matches!(Message::decode(challenge).unwrap(), Message::Challenge { .. }));
            let answer = Message::decode(message_at(&answers, challenge.len())).unwrap();
            assert!(matches!(answer, Message::Refuse { why: Why::Key, .. }), "{answer:?}");
            node.fence.raise(Epoch::new(2));
            waits.join().unwrap();
        });
    }
}

/// The whole message that begins there.
fn message_at(bytes: &[u8], at: usize) -> &[u8] {
    let bytes = &bytes[at..];
    let mut len = 0;
    loop {
        match Message::missing(&bytes[..len]).unwrap() {
            0 => return &bytes[..len],
            missing => len += missing,
        }
    }
}
