//! First connections: who gets in, who does not, and what either side is told.

use super::super::handshake::{Hello, Message, Why};
use super::super::transport::listen_local;
use super::*;

const SHORT: Duration = Duration::from_millis(500);

fn hello() -> Hello {
    Hello {
        versions: toroid_proto::build().links,
        job_id: "job".into(),
        epoch: 1,
        from: 0,
        to: 1,
        nonce: [0; 32],
        kind: LinkKind::Tcp,
        link_key: [0; 32],
        more: Vec::new(),
    }
}

fn read_message(stream: &mut TcpStream) -> Message {
    let mut bytes = Vec::new();
    loop {
        match Message::missing(&bytes).unwrap() {
            0 => return Message::decode(&bytes).unwrap(),
            missing => {
                let have = bytes.len();
                bytes.resize(have + missing, 0);
                stream.read_exact(&mut bytes[have..]).unwrap();
            }
        }
    }
}

/// Rank 0, with a plan changed by `change`, calls rank 1. Both are told `text`: the caller by its error, the called one in
/// its refusals, and it goes on waiting for the right one.
fn check_refused(change: impl Fn(&mut LinkPlan) + Sync, text: &str) {
    let nodes = nodes(LinkKind::Tcp, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let errors = on_every_rank(&nodes, |rank, node| {
        let mut plan = plan(&nodes, rank, 5);
        if rank == 0 {
            change(&mut plan);
        }
        let error = node.establish(plan).err().expect("refused");
        await_event("the called rank has noted its refusal", || !nodes[1].listener.refusals().is_empty());
        nodes[1].fence.raise(Epoch::new(6));
        error
    });
    let CommError::Refused { rank: 1, worker_id, reason, .. } = &errors[0] else { panic!("{}", errors[0]) };
    assert_eq!(worker_id, "w1");
    assert!(reason.contains(text), "{reason:?} does not say {text:?}");
    assert_eq!(errors[1], fenced(5, 6));
    let refusals = nodes[1].listener.refusals();
    assert!(matches!(&refusals[..], [Refusal { rank: 0, reason, .. }] if reason.contains(text)), "{refusals:?}");
}

#[test]
fn a_wrong_key_job_or_epoch_is_refused_and_both_sides_know_why() {
    check_refused(|plan| plan.key = [0; 32], "another key");
    check_refused(|plan| plan.job_id = "another".into(), "the caller on job \"another\"");
    check_refused(|plan| plan.epoch = Epoch::new(4), "the caller still in epoch 4");
}

#[test]
fn a_wrong_rank_or_version_is_refused_and_the_caller_is_told() {
    let nodes = nodes(LinkKind::Tcp, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| nodes[1].establish(plan(&nodes, 1, 1)).err());
        let ask = |hello: Hello| {
            let mut stream = TcpStream::connect(nodes[1].listener.local_addr()).unwrap();
            stream.write_all(&Message::Hello(hello).encode()).unwrap();
            let answer = read_message(&mut stream);
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed behind a refusal");
            match answer {
                Message::Refuse { why, .. } => why,
                other => panic!("answered {other:?}"),
            }
        };
        assert_eq!(ask(Hello { versions: toroid_proto::Versions::new(0, 0), ..hello() }), Why::Version);
        assert_eq!(ask(Hello { from: 1, ..hello() }), Why::Rank);
        assert_eq!(ask(Hello { from: 7, ..hello() }), Why::Rank);
        assert_eq!(ask(Hello { to: 0, ..hello() }), Why::Rank);
        assert_eq!(ask(Hello { epoch: 2, ..hello() }), Why::NotYet);
        nodes[1].fence.raise(Epoch::new(2));
        assert_eq!(waiting.join().unwrap(), Some(fenced(1, 2)));
    });
    assert_eq!(nodes[1].listener.refusals().len(), 4, "not yet is no refusal");
}

#[test]
fn strangers_do_not_disturb() {
    let nodes = nodes(LinkKind::Tcp, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let call = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(nodes[1].listener.local_addr()).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    let mut browser = call(b"GET /metrics HTTP/1.1\r\nHost: worker\r\n\r\n");
    drop(call(b""));
    let silent = call(b"");
    let halting = call(b"TOROI");
    drop(call(b"TOROIDLK\x00"));
    let impostor = call(&Message::Hello(hello()).encode());
    let mut liar = call(&[Message::Hello(hello()).encode(), Message::Proof { proof: [0; 32] }.encode()].concat());
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        send(&mut links, 1 - rank, Channel::Tp, b"hello").unwrap();
        assert_eq!(recv(&mut links, 1 - rank, Channel::Tp, 5).unwrap(), b"hello");
        assert_eq!(links.stats().connections, 1);
    });
    // Dropped without an answer; closing with its request unread may show as a reset.
    assert!(matches!(browser.read(&mut [0]), Ok(0) | Err(_)));
    assert!(matches!(read_message(&mut liar), Message::Challenge { .. }));
    assert!(matches!(read_message(&mut liar), Message::Refuse { why: Why::Key, .. }));
    drop((silent, halting, impostor));
}

#[test]
fn a_peer_that_is_not_there_yet_is_called_again() {
    let node = Node::new("w0", LinkChoice::Only(LinkKind::Tcp));
    let late = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = PeerAddr { worker_id: "w1".into(), address: late.local_addr().unwrap().to_string() };
    let plan = LinkPlan { peers: BTreeMap::from([(1, peer)]), ..plan_with(&[], 0, 1, &BTreeSet::new()) };
    std::thread::scope(|scope| {
        let dialing = scope.spawn(|| node.establish(plan).err());
        // Cut off, then "not yet", then it calls once more.
        drop(late.accept().unwrap());
        let (mut stream, _) = late.accept().unwrap();
        assert!(matches!(read_message(&mut stream), Message::Hello(Hello { from: 0, to: 1, .. })));
        let answer = Message::Refuse { why: Why::NotYet, text: "wait".into() };
        stream.write_all(&answer.encode()).unwrap();
        let (mut stream, _) = late.accept().unwrap();
        assert!(matches!(read_message(&mut stream), Message::Hello(_)));
        node.fence.raise(Epoch::new(2));
        assert_eq!(dialing.join().unwrap(), Some(fenced(1, 2)));
    });
}

#[test]
fn a_timeout_says_who_is_missing_and_why() {
    let nodes = nodes(LinkKind::Tcp, 3);
    // Nobody listens there, and no other test will: it is no port that the system deals out.
    let closed = "127.0.0.1:1";
    let mut plan = plan(&[&nodes[0], &nodes[1], &nodes[2]], 1, 1);
    plan.peers.insert(2, PeerAddr { worker_id: "w2".into(), address: closed.to_string() });
    plan.peers.insert(3, PeerAddr { worker_id: "w3".into(), address: "no port".into() });
    let error = Links::establish(&nodes[1].listener, plan.clone(), &nodes[1].fence, SHORT).err().unwrap().to_string();
    assert!(error.contains("rank 0 (worker w0 at 127.0.0.1:"), "{error}");
    assert!(error.contains("has not called"), "{error}");
    assert!(
        error.contains(&format!("rank 2 (worker w2 at {closed}) cannot be reached by tcp: Connection refused")),
        "{error}"
    );
    assert!(error.contains("rank 3 (worker w3 at no port) cannot be reached by tcp"), "{error}");

    let mut stranger = TcpStream::connect(nodes[1].listener.local_addr()).unwrap();
    stranger.write_all(&Message::Hello(Hello { job_id: "other".into(), ..hello() }).encode()).unwrap();
    let error = Links::establish(&nodes[1].listener, plan, &nodes[1].fence, SHORT).err().unwrap().to_string();
    assert!(error.contains("was refused: rank 1 works on job \"job\", the caller on job \"other\""), "{error}");
}

#[test]
fn a_rank_alone_needs_nobody() {
    let node = Node::new("w0", LinkChoice::Only(LinkKind::Tcp));
    let plan = plan_with(&[], 0, 1, &BTreeSet::new());
    assert!(!format!("{plan:?}").contains("42"), "the key is not printed");
    let mut links = node.establish(plan).unwrap();
    links.run(&mut []).unwrap();
    links.flush().unwrap();
}

#[test]
fn an_address_that_is_taken_is_named() {
    let node = Node::new("w0", LinkChoice::Only(LinkKind::Tcp));
    let address = node.listener.local_addr().to_string();
    let error = Listener::bind(&address, "w1", LinkChoice::Auto).unwrap_err().to_string();
    assert!(error.contains(&address) && error.contains("in use"), "{error}");
}

/// Kinds of the link as both ranks see it.
fn kinds_of(choices: [LinkChoice; 2], change: impl Fn(&mut LinkPlan) + Sync) -> Vec<LinkKind> {
    let nodes = [Node::new("w0", choices[0]), Node::new("w1", choices[1])];
    let nodes = [&nodes[0], &nodes[1]];
    on_every_rank(&nodes, |rank, node| {
        let mut plan = plan(&nodes, rank, 1);
        change(&mut plan);
        let mut links = node.establish(plan).unwrap();
        send(&mut links, 1 - rank, Channel::Tp, b"hello").unwrap();
        assert_eq!(recv(&mut links, 1 - rank, Channel::Tp, 5).unwrap(), b"hello");
        links.conns[&(1 - rank)].kind()
    })
}

#[test]
fn peers_of_one_host_share_memory_and_others_do_not() {
    use LinkChoice::{Auto, Only, Plain};
    let same = |_: &mut LinkPlan| {};
    assert_eq!(kinds_of([Auto, Auto], same), [LinkKind::Shm; 2]);
    assert_eq!(kinds_of([Auto, Only(LinkKind::Tls)], same), [LinkKind::Tls; 2], "nobody listens within the host");
    assert_eq!(kinds_of([Plain, Only(LinkKind::Tcp)], same), [LinkKind::Tcp; 2], "nobody listens within the host");
    assert_eq!(kinds_of([Auto, Only(LinkKind::Shm)], same), [LinkKind::Shm; 2]);
    // What a name in another network namespace, or on another host, looks like.
    let elsewhere = |plan: &mut LinkPlan| {
        for peer in plan.peers.values_mut() {
            peer.worker_id = format!("{} of another host", peer.worker_id).into();
        }
    };
    assert_eq!(kinds_of([Auto, Auto], elsewhere), [LinkKind::Tls; 2]);
    assert_eq!(kinds_of([Plain, Plain], elsewhere), [LinkKind::Tcp; 2]);
}

/// T-1: memory is shared only with who has proven the key; who squats on a worker's name gets nothing, and delays nothing.
#[test]
fn a_stranger_on_a_local_name_is_passed_over() {
    let squatted = Node::new("w1", LinkChoice::Only(LinkKind::Tls));
    let name = listen_local("w1", squatted.listener.local_addr().port()).unwrap();
    name.set_nonblocking(false).unwrap();
    let caller = Node::new("w0", LinkChoice::Auto);
    let nodes = [&caller, &squatted];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = name.accept().unwrap();
            stream
                .write_all(
                    &Message::Challenge {
                        version: toroid_proto::build().links.newest,
                        nonce: [0; 32],
                        proof: [0; 32],
                        link_key: [0; 32],
                    }
                    .encode(),
                )
                .unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            assert!(!answer.windows(32).any(|w| w == KEY), "the key was given away");
        });
        let kinds = on_every_rank(&nodes, |rank, node| node.establish(plan(&nodes, rank, 1)).unwrap().kinds());
        assert!(kinds.iter().all(|kinds| kinds.get(&LinkKind::Tls) == Some(&1)), "{kinds:?}");
    });
}

#[test]
fn kinds_that_do_not_fit_are_named() {
    let check = |choices: [LinkKind; 2], expected: &str| {
        let nodes = choices.map(|kind| Node::new(format!("{kind}"), LinkChoice::Only(kind)));
        let nodes = [&nodes[0], &nodes[1]];
        let errors = on_every_rank(&nodes, |rank, node| {
            let error = node.establish(plan(&nodes, rank, 1)).err().unwrap();
            nodes[1].fence.raise(Epoch::new(2));
            error.to_string()
        });
        assert!(errors[0].contains(expected), "{}", errors[0]);
    };
    check([LinkKind::Unix, LinkKind::Shm], "rank 1 takes shm here and the caller wants unix");
    // Nobody is talked out of encryption.
    check([LinkKind::Tcp, LinkKind::Tls], "rank 1 takes tls here and the caller wants tcp");
    check([LinkKind::Tls, LinkKind::Tcp], "rank 1 takes tcp here and the caller wants tls");
}
