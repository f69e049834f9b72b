//! Probes: two workers that dial each other before either has a place.

use toroid_session::Knock;

use super::super::ProbeError;
use super::*;

const NUMBER: u64 = 7;

fn knock(at: &PeerAddr) -> Knock {
    Knock { number: NUMBER, peer: at.clone(), key: KEY }
}

/// What each of two workers says of the other, where they are told these addresses.
fn probe(kind: LinkKind, address: impl Fn(&Node) -> PeerAddr, limit: Duration) -> [Result<(), ProbeError>; 2] {
    let nodes = nodes(kind, 2);
    let porters = [0, 1].map(|n| nodes[n].listener.porter(&nodes[n].worker_id).unwrap());
    let knocks = [1, 0].map(|n| knock(&address(&nodes[n])));
    std::thread::scope(|scope| {
        let first = scope.spawn(|| porters[0].probe(&knocks[0], limit));
        let second = porters[1].probe(&knocks[1], limit);
        [first.join().unwrap(), second]
    })
}

fn check_not_reached(found: Result<(), ProbeError>, text: &str) {
    let Err(ProbeError::NotReached(problem)) = found else { panic!("{found:?}") };
    assert!(problem.contains(text), "{problem}");
}

#[test]
fn two_workers_reach_each_other_over_every_kind_of_link() {
    for kind in [LinkKind::Tcp, LinkKind::Shm] {
        assert_eq!(probe(kind, Node::address, HANG_GUARD), [Ok(()), Ok(())]);
    }
}

#[test]
fn who_is_told_an_address_that_nobody_resolves_or_listens_at_says_so() {
    for (address, text) in [("nohost.invalid:7", "nohost.invalid:7"), ("127.0.0.1:1", "refused")] {
        let told = |node: &Node| match node.worker_id.as_str() {
            "w1" => PeerAddr { address: address.into(), ..node.address() },
            _ => node.address(),
        };
        let [first, second] = probe(LinkKind::Tcp, told, Duration::from_secs(2));
        check_not_reached(first, text);
        assert_eq!(second, Ok(()), "{address}");
    }
}

#[test]
fn another_worker_at_the_address_cannot_answer() {
    let nodes = nodes(LinkKind::Tcp, 3);
    let address = PeerAddr { address: nodes[2].address().address, ..nodes[1].address() };
    let porters = [0, 2].map(|n| nodes[n].listener.porter(&nodes[n].worker_id).unwrap());
    std::thread::scope(|scope| {
        // It knows the key, and is not the one that is meant.
        let other = scope.spawn(|| porters[1].probe(&knock(&nodes[0].address()), Duration::from_secs(1)));
        check_not_reached(porters[0].probe(&knock(&address), Duration::from_secs(1)), "does not answer");
        drop(other.join());
    });
}

#[test]
fn t11_who_makes_links_of_an_epoch_is_busy_and_says_whom_it_waits_for() {
    let nodes = nodes(LinkKind::Tcp, 3);
    let nodes: &[&Node] = &[&nodes[0], &nodes[1], &nodes[2]];
    let porter = nodes[2].listener.porter(&nodes[2].worker_id).unwrap();
    std::thread::scope(|scope| {
        let mut links = Links::none(&nodes[1].fence);
        let waits_for = links.waits_for();
        let connecting = scope.spawn(move || nodes[1].advance(&mut links, plan(&nodes[..2], 1, 1)));
        await_waiting(&waits_for, &[0]);
        let found = porter.probe(&knock(&nodes[1].address()), Duration::from_secs(1));
        assert!(matches!(found, Err(ProbeError::Busy(_))), "{found:?}");
        nodes[1].fence.raise(Epoch::new(2));
        assert_eq!(connecting.join().unwrap(), Err(fenced(1, 2)));
        await_waiting(&waits_for, &[]);
    });
}
