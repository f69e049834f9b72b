//! One epoch: order, bounds, deadlock, death, damage.

use super::super::frame::{HEADER_LEN, Header, Stream};
use super::*;

over_all_kinds! {
    large_messages_in_both_directions_at_once_do_not_deadlock
    channels_do_not_wait_for_one_another_and_each_keeps_its_order
    empty_messages_are_messages
    queued_messages_go_out_in_order_while_the_rank_does_other_things
    random_traffic_arrives_once_and_unchanged
    what_nobody_asks_for_is_bounded
    a_length_beyond_the_bound_takes_no_memory
    what_nobody_takes_is_bounded
    a_peer_that_dies_within_a_message_is_lost_at_once
    a_dead_peer_harms_only_those_who_need_it
    damage_names_the_rank_and_is_never_a_value
    repeated_lost_and_misfit_frames_are_damage
    a_raised_fence_ends_a_wait_and_keeps_the_next_from_beginning
}

const CHANNELS: [Channel; 4] = [Channel::Tp, Channel::Forward, Channel::Backward, Channel::Dp];

fn large_messages_in_both_directions_at_once_do_not_deadlock(kind: LinkKind) {
    let message = |rank: usize| vec![rank as u8 + 1; 64 << 20];
    on_mesh(kind, 2, |links| {
        let (own, peer) = (message(links.rank()), 1 - links.rank());
        // In one call.
        let mut came = vec![0; own.len()];
        let transfers = &mut [
            Transfer::Send { peer, channel: Channel::Dp, data: &own },
            Transfer::Recv { peer, channel: Channel::Dp, buf: &mut came },
        ];
        links.run(transfers).unwrap();
        assert!(came == message(peer));
        // Both send first: invariant 3.
        send(links, peer, Channel::Dp, &own).unwrap();
        assert!(recv(links, peer, Channel::Dp, own.len()).unwrap() == message(peer));
        links.stats()
    })
    .iter()
    .for_each(|stats| {
        assert_eq!((stats.frames_sent, stats.frames_received), (2, 2));
        assert_eq!(stats.bytes_sent, 2 * (HEADER_LEN as u64 + (64 << 20)));
        assert_eq!(stats.bytes_sent, stats.bytes_received);
    });
}

fn channels_do_not_wait_for_one_another_and_each_keeps_its_order(kind: LinkKind) {
    on_mesh(kind, 2, |links| {
        if links.rank() == 0 {
            for number in 0..3 {
                for channel in CHANNELS {
                    send(links, 1, channel, &[channel as u8, number]).unwrap();
                }
            }
            return;
        }
        for channel in CHANNELS.into_iter().rev() {
            for number in 0..3 {
                assert_eq!(recv(links, 0, channel, 2).unwrap(), [channel as u8, number]);
            }
        }
    });
}

fn empty_messages_are_messages(kind: LinkKind) {
    on_mesh(kind, 2, |links| {
        let peer = 1 - links.rank();
        for _ in 0..2 {
            send(links, peer, Channel::Tp, &[]).unwrap();
            recv(links, peer, Channel::Tp, 0).unwrap();
        }
        assert_eq!(links.stats().frames_received, 2);
    });
}

fn queued_messages_go_out_in_order_while_the_rank_does_other_things(kind: LinkKind) {
    on_mesh(kind, 2, |links| {
        let peer = 1 - links.rank();
        for number in 0..8 {
            links.queue(peer, Channel::Forward, vec![number; 1 << 20]).unwrap();
        }
        send(links, peer, Channel::Forward, &[8; 16]).unwrap();
        links.progress().unwrap();
        for number in 0..8 {
            assert!(recv(links, peer, Channel::Forward, 1 << 20).unwrap() == vec![number; 1 << 20]);
        }
        assert_eq!(recv(links, peer, Channel::Forward, 16).unwrap(), [8; 16]);
        links.flush().unwrap();
    });
}

/// Four ranks go through one random list of messages in its order, each cutting it into calls of its own; whatever is in a
/// call, received, sent or queued, all arrives once and unchanged.
fn check_random_traffic(kind: LinkKind, seed: u64) {
    println!("seed {seed}");
    const RANKS: usize = 4;
    let mut random = Random(seed);
    let messages: Vec<(usize, usize, Channel, Vec<u8>)> = (0..300)
        .map(|_| {
            let from = random.below(RANKS);
            let to = (from + 1 + random.below(RANKS - 1)) % RANKS;
            let len = [0, 1, 100, 5_000, 200_000][random.below(5)];
            (from, to, CHANNELS[random.below(CHANNELS.len())], random.bytes(len))
        })
        .collect();
    on_mesh(kind, RANKS, |links| {
        let rank = links.rank();
        let mut random = Random(seed ^ rank as u64);
        let mut next = 0;
        while next < messages.len() {
            let batch = &messages[next..(next + 1 + random.below(20)).min(messages.len())];
            next += batch.len();
            // A queued message must not overtake, nor be overtaken: a batch is either queued or sent.
            let queued = random.below(2) == 0;
            let mut buffers: Vec<Vec<u8>> = batch.iter().map(|(.., data)| vec![0; data.len()]).collect();
            let mut transfers = Vec::new();
            for ((from, to, channel, data), buf) in batch.iter().zip(&mut buffers) {
                let channel = *channel;
                if *from == rank && queued {
                    links.queue(*to, channel, data.clone()).unwrap();
                } else if *from == rank {
                    transfers.push(Transfer::Send { peer: *to, channel, data });
                } else if *to == rank {
                    transfers.push(Transfer::Recv { peer: *from, channel, buf });
                }
            }
            links.run(&mut transfers).unwrap();
            for ((_, to, _, data), buf) in batch.iter().zip(&buffers) {
                assert!(*to != rank || data == buf, "seed {seed}: rank {rank} got something else");
            }
        }
        links.flush().unwrap();
    });
}

fn random_traffic_arrives_once_and_unchanged(kind: LinkKind) {
    (0..6).for_each(|seed| check_random_traffic(kind, seed));
}

fn what_nobody_asks_for_is_bounded(kind: LinkKind) {
    on_mesh(kind, 2, |links| {
        links.tally.limit_bytes = 1000;
        if links.rank() == 0 {
            send(links, 1, Channel::Forward, &[0; 900]).unwrap();
            // Fails or not, by when the other side gives up.
            let _ = send(links, 1, Channel::Forward, &[0; 900]);
            return;
        }
        let error = recv(links, 0, Channel::Tp, 1).unwrap_err();
        assert!(
            matches!(error, CommError::Overflow { rank: 0, channel: Channel::Forward, held: 1800, limit: 1000, .. }),
            "{error}"
        );
        assert_eq!(recv(links, 0, Channel::Forward, 900).unwrap_err(), error, "the epoch is over for these links");
    });
}

/// A header names a length, and nothing follows: no memory is taken for it.
fn a_length_beyond_the_bound_takes_no_memory(kind: LinkKind) {
    on_mesh(kind, 2, |links| {
        links.keep_at_most(1000);
        if links.rank() == 0 {
            let mut huge = header(kind, Channel::Dp, 0, &[7; 64]);
            huge[24..32].copy_from_slice(&(4_u64 << 30).to_le_bytes());
            let crc = crc32c::crc32c(&huge[..36]);
            huge[36..40].copy_from_slice(&crc.to_le_bytes());
            write_raw(links, 1, &huge);
            return;
        }
        let error = recv(links, 0, Channel::Tp, 1).unwrap_err();
        assert!(matches!(error, CommError::Overflow { held, limit: 1000, .. } if held == 4 << 30), "{error}");
    });
}

fn what_nobody_takes_is_bounded(kind: LinkKind) {
    let [error, _] = on_mesh(kind, 2, |links| {
        links.tally.limit_bytes = 1000;
        (links.rank() == 0).then(|| links.queue(1, Channel::Backup, vec![0; 1001]).unwrap_err())
    })
    .try_into()
    .unwrap();
    assert!(matches!(error, Some(CommError::Overflow { rank: 1, held: 1001, limit: 1000, .. })), "{error:?}");
}

fn a_peer_that_dies_within_a_message_is_lost_at_once(kind: LinkKind) {
    on_mesh(kind, 2, |links| {
        if links.rank() == 0 {
            write_raw(links, 1, &header(kind, Channel::Dp, 0, &[7; 4096]));
            write_raw(links, 1, &[7; 1000]);
            return;
        }
        let error = recv(links, 0, Channel::Dp, 4096).unwrap_err();
        assert!(matches!(&error, CommError::PeerLost { rank: 0, worker_id, .. } if worker_id == "w0"), "{error}");
        assert_eq!(links.queue(0, Channel::Dp, vec![1]).unwrap_err(), error);
    });
}

/// Invariant 5.
fn a_dead_peer_harms_only_those_who_need_it(kind: LinkKind) {
    let nodes = nodes(kind, 3);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let survivors_know = std::sync::Barrier::new(2);
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        if rank == 0 {
            send(&mut links, 1, Channel::Tp, b"last words").unwrap();
            return send(&mut links, 2, Channel::Tp, b"last words").unwrap();
        }
        // An end of file, seen while waiting for another rank.
        while links.conns[&0].lost().is_none() {
            links.progress().unwrap();
        }
        survivors_know.wait();
        let peer = 3 - rank;
        send(&mut links, peer, Channel::Dp, &[rank as u8]).unwrap();
        assert_eq!(recv(&mut links, peer, Channel::Dp, 1).unwrap(), [peer as u8]);
        assert_eq!(recv(&mut links, 0, Channel::Tp, 10).unwrap(), b"last words");
        let error = recv(&mut links, 0, Channel::Tp, 10).unwrap_err();
        assert!(matches!(error, CommError::PeerLost { rank: 0, .. }), "{error}");
    });
}

/// Writes `bytes` to rank 1, which waits for 8 bytes on channel tp; returns what rank 1 says to it.
fn error_on(kind: LinkKind, frames: &[u8]) -> CommError {
    let [_, error] = on_mesh(kind, 2, |links| {
        if links.rank() == 0 {
            write_raw(links, 1, frames);
            await_end(links, 1);
            return None;
        }
        recv(links, 0, Channel::Tp, 8).and_then(|_| recv(links, 0, Channel::Tp, 8)).err()
    })
    .try_into()
    .unwrap();
    error.expect("damage was believed")
}

fn frame(kind: LinkKind, sequence: u64, payload: &[u8]) -> Vec<u8> {
    [&header(kind, Channel::Tp, sequence, payload), payload].concat()
}

fn damage_names_the_rank_and_is_never_a_value(kind: LinkKind) {
    let good = [frame(kind, 0, b"message0"), frame(kind, 1, b"message1")].concat();
    // Magic, channel, epoch, sequence, length, both sums, then the same of the second frame; payloads where they cross a wire.
    let payloads: &[usize] = if kind.has_sums() { &[40, 47, 95] } else { &[] };
    for &at in [0, 4, 5, 8, 16, 24, 32, 36, 48, 56, 72].iter().chain(payloads) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        let error = error_on(kind, &bad);
        assert!(matches!(error, CommError::Corrupt { rank: 0, .. }), "byte {at}: {error}");
    }
}

fn repeated_lost_and_misfit_frames_are_damage(kind: LinkKind) {
    let check = |frames: &[Vec<u8>], expected: &str| {
        let error = error_on(kind, &frames.concat()).to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    check(
        &[frame(kind, 0, b"message0"), frame(kind, 0, b"message0")],
        "rank 0 is damaged: sequence number should be 1, found 0",
    );
    check(&[frame(kind, 1, b"message1")], "sequence number should be 0, found 1");
    check(&[frame(kind, 0, b"longer than that")], "length should be 8, found 16");
    let resume = Header::of(Stream::Resume, 1, 0, &[0; 32]).encode();
    check(&[[&resume[..], &[0; 32]].concat()], "resumption");
}

fn a_raised_fence_ends_a_wait_and_keeps_the_next_from_beginning(kind: LinkKind) {
    let nodes = nodes(kind, 2);
    let nodes: Vec<&Node> = nodes.iter().collect();
    let fenced = fenced(1, 2);
    let both_are_up = std::sync::Barrier::new(2);
    on_every_rank(&nodes, |rank, node| {
        let mut links = node.establish(plan(&nodes, rank, 1)).unwrap();
        both_are_up.wait();
        if rank == 0 {
            let waits_for = links.waits_for();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    await_waiting(&waits_for, &[1]);
                    node.fence.raise(Epoch::new(2));
                });
                assert_eq!(recv(&mut links, 1, Channel::Global, 8).unwrap_err(), fenced);
            });
            assert_eq!(links.waits_for().ranks(), [0; 0]);
            assert_eq!(links.flush().unwrap_err(), fenced);
            assert_eq!(links.queue(1, Channel::Tp, vec![]).unwrap_err(), fenced);
            // Lets rank 1 go.
            nodes[1].fence.raise(Epoch::new(2));
        } else {
            assert_eq!(recv(&mut links, 0, Channel::Global, 8).unwrap_err(), fenced);
        }
    });
}
