//! From one epoch to the next: what is kept, what is dropped (T-1), what is made anew.

use std::sync::Barrier;

use super::*;

over_all_kinds! {
    survivors_keep_their_connections_and_only_the_replaced_place_reconnects
    frames_of_an_older_epoch_are_dropped_wherever_they_are
    a_half_sent_frame_does_not_cost_the_connection
    a_half_received_frame_does_not_cost_the_connection
    frames_of_a_newer_epoch_wait_until_this_side_has_caught_up
    connections_follow_their_workers_to_other_ranks
    a_connection_that_one_side_has_lost_is_made_anew
    an_epoch_that_never_came_up_does_not_cost_the_connections
    another_job_gets_other_connections
    a_kept_connection_must_prove_the_new_key
    what_is_in_flight_when_an_epoch_ends_is_given_up
}

/// Of the socket of a link: tells it from every other.
fn inode(links: &Links, peer: usize) -> u64 {
    let (fd, _) = links.conns[&peer].interest().expect("a live link");
    rustix::fs::fstat(fd).unwrap().st_ino
}

/// Every link carries a message in each direction.
fn talk(links: &mut Links) {
    let (rank, epoch) = (links.rank(), links.epoch().get());
    let peers: Vec<usize> = links.conns.keys().copied().collect();
    for &peer in &peers {
        send(links, peer, Channel::Dp, &[rank as u8, epoch as u8]).unwrap();
    }
    for peer in peers {
        assert_eq!(recv(links, peer, Channel::Dp, 2).unwrap(), [peer as u8, epoch as u8]);
    }
}

fn survivors_keep_their_connections_and_only_the_replaced_place_reconnects(kind: LinkKind) {
    let nodes = nodes(kind, 4);
    let (before, after) = ([&nodes[0], &nodes[1], &nodes[2]], [&nodes[0], &nodes[1], &nodes[3]]);
    on_every_rank(&before, |rank, node| {
        let mut links = node.establish(plan(&before, rank, 1)).unwrap();
        let socket = (rank < 2).then(|| inode(&links, 1 - rank));
        talk(&mut links);
        if rank == 2 {
            // Dies; the spare takes its place.
            drop(links);
            let mut links = nodes[3].establish(plan(&after, 2, 2)).unwrap();
            talk(&mut links);
            return assert_eq!(links.stats().connections, 2);
        }
        let error = recv(&mut links, 2, Channel::Tp, 1).unwrap_err();
        assert!(matches!(error, CommError::PeerLost { rank: 2, .. }), "{error}");
        node.advance(&mut links, plan(&after, rank, 2)).unwrap();
        assert_eq!(Some(inode(&links, 1 - rank)), socket, "the connection between survivors is the same");
        talk(&mut links);
        assert_eq!(links.stats().connections, 3, "two in the first epoch, one to the newcomer");
    });
}

fn frames_of_an_older_epoch_are_dropped_wherever_they_are(kind: LinkKind) {
    let nodes = nodes(kind, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let (stashed, sent) = (Barrier::new(2), Barrier::new(2));
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        if rank == 0 {
            send(&mut links, 1, Channel::Dp, b"old, in the stash").unwrap();
            stashed.wait();
            send(&mut links, 1, Channel::Dp, b"old, in the kernel").unwrap();
            sent.wait();
        } else {
            while links.stats().frames_received == 0 {
                links.progress().unwrap();
            }
            stashed.wait();
            sent.wait();
        }
        node.advance(&mut links, plan(&nodes, rank, 2)).unwrap();
        talk(&mut links);
        assert_eq!(links.stats().stale_frames, 2 * rank as u64);
    });
}

/// Invariant 4, the sender's side: its call is aborted with a frame half sent.
fn a_half_sent_frame_does_not_cost_the_connection(kind: LinkKind) {
    let nodes = nodes(kind, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let aborted = Barrier::new(2);
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        if rank == 0 {
            let waits_for = links.waits_for();
            let (large, small) = (vec![1; 64 << 20], [2; 8]);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    await_waiting(&waits_for, &[1]);
                    node.fence.raise(Epoch::new(2));
                });
                let transfers = &mut [
                    Transfer::Send { peer: 1, channel: Channel::Dp, data: &large },
                    Transfer::Send { peer: 1, channel: Channel::Dp, data: &small },
                ];
                assert_eq!(links.run(transfers).unwrap_err(), fenced(1, 2));
            });
        }
        aborted.wait();
        node.advance(&mut links, plan(&nodes, rank, 2)).unwrap();
        talk(&mut links);
        assert_eq!(links.stats().connections, 1);
        assert_eq!(links.stats().stale_frames, rank as u64, "the half-sent frame, not the one behind it");
    });
}

/// Invariant 4, the receiver's side.
fn a_half_received_frame_does_not_cost_the_connection(kind: LinkKind) {
    let nodes = nodes(kind, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let (waits, is_waiting) = channel();
    let aborted = Barrier::new(2);
    let is_waiting = std::sync::Mutex::new(is_waiting);
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        if rank == 0 {
            let payload = vec![3; 300_000];
            write_raw(&mut links, 1, &header(kind, Channel::Dp, 0, &payload));
            write_raw(&mut links, 1, &payload[..100_000]);
            await_waiting(&is_waiting.lock().unwrap().recv().unwrap(), &[0]);
            nodes[1].fence.raise(Epoch::new(2));
            aborted.wait();
            write_raw(&mut links, 1, &payload[100_000..]);
        } else {
            waits.send(links.waits_for()).unwrap();
            assert_eq!(recv(&mut links, 0, Channel::Dp, 300_000).unwrap_err(), fenced(1, 2));
            aborted.wait();
        }
        node.advance(&mut links, plan(&nodes, rank, 2)).unwrap();
        talk(&mut links);
        assert_eq!(links.stats().connections, 1);
    });
}

/// A rank that is ahead harms nobody who is still in the epoch before, and what it has sent is there when they follow.
fn frames_of_a_newer_epoch_wait_until_this_side_has_caught_up(kind: LinkKind) {
    let nodes = nodes(kind, 3);
    let nodes: Vec<&Node> = nodes.iter().collect();
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        if rank != 0 {
            while links.conns[&0].interest().is_some() {
                links.progress().unwrap();
            }
            let peer = 3 - rank;
            send(&mut links, peer, Channel::Tp, &[rank as u8; 5]).unwrap();
            assert_eq!(recv(&mut links, peer, Channel::Tp, 5).unwrap(), [peer as u8; 5]);
        }
        node.advance(&mut links, plan(&nodes, rank, 2)).unwrap();
        talk(&mut links);
        assert_eq!((links.stats().connections, links.stats().stale_frames), (2, 0));
    });
}

fn connections_follow_their_workers_to_other_ranks(kind: LinkKind) {
    let nodes = nodes(kind, 3);
    let (before, after) = ([&nodes[0], &nodes[1], &nodes[2]], [&nodes[2], &nodes[0], &nodes[1]]);
    on_every_rank(&before, |rank, node| {
        let mut links = node.establish(plan(&before, rank, 1)).unwrap();
        talk(&mut links);
        node.advance(&mut links, plan(&after, (rank + 1) % 3, 2)).unwrap();
        talk(&mut links);
        assert_eq!(links.stats().connections, 2);
    });
}

fn a_connection_that_one_side_has_lost_is_made_anew(kind: LinkKind) {
    for loser in [0, 1] {
        let nodes = nodes(kind, 2);
        let nodes: Vec<&Node> = nodes.iter().collect();
        on_every_rank(&nodes, |rank, node| {
            let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
            talk(&mut links);
            if rank == loser {
                // The other side has no reason to think so, until it sees it.
                links.conns.clear();
            }
            node.advance(&mut links, plan(&nodes, rank, 2)).unwrap();
            talk(&mut links);
            assert_eq!(links.stats().connections, 2);
        });
    }
}

fn an_epoch_that_never_came_up_does_not_cost_the_connections(kind: LinkKind) {
    let nodes = nodes(kind, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        if rank == 0 {
            // Rank 1 never sees epoch 2. The fence of epoch 3 is raised before, so that no time passes.
            node.fence.raise(Epoch::new(3));
            let error = links.advance(&node.listener, plan(&nodes, 0, 2), &node.fence, HANG_GUARD).unwrap_err();
            assert_eq!(error, fenced(2, 3));
            assert_eq!(links.flush().unwrap_err(), error);
        }
        node.advance(&mut links, plan(&nodes, rank, 3)).unwrap();
        talk(&mut links);
        assert_eq!(links.stats().connections, 1);
    });
}

fn another_job_gets_other_connections(kind: LinkKind) {
    let nodes = nodes(kind, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        let other = LinkPlan { job_id: "other".into(), ..plan(&nodes, rank, 7) };
        node.advance(&mut links, other).unwrap();
        talk(&mut links);
        assert_eq!(links.stats().connections, 2);
    });
}

/// A kept connection is no way around the new epoch's key.
fn a_kept_connection_must_prove_the_new_key(kind: LinkKind) {
    let nodes = nodes(kind, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let errors = on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        let key = if rank == 0 { [1; 32] } else { KEY };
        let error = node.advance(&mut links, LinkPlan { key, ..plan(&nodes, rank, 2) }).unwrap_err();
        // The dialer knows; the other would go on waiting for the right one.
        await_event("the called rank has noted its refusal", || !nodes[1].listener.refusals().is_empty());
        nodes[1].fence.raise(Epoch::new(3));
        error
    });
    assert!(matches!(&errors[0], CommError::Refused { rank: 1, reason, .. } if reason.contains("another key")));
    assert_eq!(errors[1], fenced(2, 3));
    let refusals = nodes[1].listener.refusals();
    assert!(refusals.iter().any(|r| r.rank == 0 && r.reason.contains("another key")), "{refusals:?}");
}

/// T-1: a death ends a collective in flight, whatever of it is half on its way; in the next epoch the survivors' links are the same, and the
/// collective, made again, has nothing of the old one. A rank that waits for nothing of the dead one, but for another that does, learns of it
/// by the fence, as from a coordinator.
fn what_is_in_flight_when_an_epoch_ends_is_given_up(kind: LinkKind) {
    let nodes = nodes(kind, 4);
    let (before, after) = ([&nodes[0], &nodes[1], &nodes[2]], [&nodes[0], &nodes[1], &nodes[3]]);
    let len = 3 << 20;
    let group = |rank| Group::line(vec![0, 1, 2], rank);
    let gather = |links: &mut Links, value: f32| {
        let mut flat = vec![f32::NAN; len];
        let rank = links.rank();
        flat[rank * len / 3..(rank + 1) * len / 3].fill(value);
        start_all_gather(links, &group(rank), Channel::Dp, flat)
    };
    let up = Barrier::new(3);
    on_every_rank(&before, |rank, node| {
        let mut links = node.establish(plan(&before, rank, 1)).unwrap();
        up.wait();
        if rank == 2 {
            // Gives some of its part and dies.
            gather(&mut links, 0.5).unwrap();
            drop(links);
            before[..2].iter().for_each(|node| node.fence.raise(Epoch::new(2)));
            let mut links = nodes[3].establish(plan(&after, 2, 2)).unwrap();
            gather(&mut links, 2.0).unwrap();
            links.land().unwrap();
            return;
        }
        let socket = inode(&links, 1 - rank);
        let error = gather(&mut links, 0.5).and_then(|()| links.land().map(drop)).unwrap_err();
        assert!(matches!(error, CommError::PeerLost { rank: 2, .. } | CommError::Fenced { .. }), "{error}");
        node.advance(&mut links, plan(&after, rank, 2)).unwrap();
        assert_eq!(inode(&links, 1 - rank), socket, "the connection between survivors is the same");
        gather(&mut links, rank as f32).unwrap();
        let flat = links.land().unwrap();
        assert!(flat.chunks_exact(len / 3).zip(0..).all(|(part, of)| part.iter().all(|x| *x == of as f32)));
    });
}
