//! Against sums made one after the other, for many shapes.

use std::sync::Mutex;

use super::super::frame::HEADER_LEN;
use super::*;
use crate::model::{ThreadGroup, TpComm};

over_all_kinds! {
    what_is_sent_is_what_the_formulas_say
    in_flight_is_as_blocking
    schedules_do_not_change_bits
}

const TORI: [(usize, usize); 12] =
    [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2), (5, 1), (3, 2), (2, 3), (4, 2), (3, 3), (4, 4)];

/// Element `i` of rank `rank`: integers, so that every order has the same sum, or fractions, for which orders differ.
fn value(rank: usize, i: usize, whole: bool) -> f32 {
    let x = Random((rank as u64) << 32 | i as u64).next();
    if whole { (x % 2001) as f32 - 1000.0 } else { (x >> 40) as f32 / 1e6 - 8.0 }
}

fn values(rank: usize, len: usize, whole: bool) -> Vec<f32> {
    (0..len).map(|i| value(rank, i, whole)).collect()
}

fn sum(ranks: &[usize], i: usize) -> f64 {
    ranks.iter().map(|&rank| f64::from(value(rank, i, true))).sum()
}

#[test]
fn reduce_scatter_leaves_each_member_the_sum_of_its_chunk() {
    for (dx, dy) in TORI {
        let shape = Shape::with_torus(1, 1, dx * dy, dx, dy).unwrap();
        let chunk = 37;
        on_shape(LinkKind::Shm, &shape, |links| {
            let group = Group::dp(&shape, links.rank());
            let mut buf = values(links.rank(), chunk * dx * dy, true);
            reduce_scatter(links, &group, Channel::Dp, &mut buf, &mut Vec::new()).unwrap();
            let own = (group.me % dx) * dy + group.me / dx;
            for i in own * chunk..(own + 1) * chunk {
                assert_eq!(f64::from(buf[i]), sum(&group.ranks, i), "{dx} x {dy}, member {}, element {i}", group.me);
            }
        });
    }
}

/// T-4: reduce-scatter and all-gather leave the same bits everywhere, and again the same when repeated.
#[test]
fn all_gather_gives_every_member_the_same_bits() {
    for (dx, dy) in TORI {
        let shape = Shape::with_torus(2, 1, dx * dy, dx, dy).unwrap();
        let results = on_shape(LinkKind::Shm, &shape, |links| {
            let group = Group::dp(&shape, links.rank());
            let mut scratch = Vec::new();
            let mut run = || {
                let mut buf = values(links.rank(), 50 * dx * dy, false);
                reduce_scatter(links, &group, Channel::Dp, &mut buf, &mut scratch).unwrap();
                all_gather(links, &group, Channel::Dp, &mut buf).unwrap();
                buf.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
            };
            let first = run();
            assert_eq!(first, run(), "{dx} x {dy}: another result when repeated");
            first
        });
        for (rank, bits) in results.iter().enumerate() {
            assert!(*bits == results[shape.dp_group(rank)[0]], "{dx} x {dy}: rank {rank} differs");
            let near = |i: usize| shape.dp_group(rank).iter().map(|&r| f64::from(value(r, i, false))).sum::<f64>();
            assert!(bits.iter().enumerate().all(|(i, &b)| (f64::from(f32::from_bits(b)) - near(i)).abs() < 1e-3));
        }
    }
}

/// Both sides of the threshold, lengths that do not divide.
#[test]
fn all_reduce_is_right_and_the_same_on_every_rank() {
    for n in 1..=5 {
        for len in [0, 1, 7, 1025, 33_000, 100_003] {
            let shape = Shape::new(n, 1, 1).unwrap();
            let results = on_shape(LinkKind::Shm, &shape, |links| {
                let group = Group::tp(&shape, links.rank());
                let mut scratch = Vec::new();
                let mut whole = values(links.rank(), len, true);
                all_reduce_sum(links, &group, Channel::Tp, &mut whole, &mut scratch).unwrap();
                let all: Vec<usize> = (0..n).collect();
                for (i, x) in whole.into_iter().enumerate() {
                    assert_eq!(f64::from(x), sum(&all, i), "{n} ranks, element {i} of {len}");
                }
                let mut parts = values(links.rank(), len, false);
                TpGroup::new(links, &group, &mut scratch).all_reduce(&mut parts).unwrap();
                parts.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            });
            assert!(results.iter().all(|bits| *bits == results[0]), "{n} ranks, {len} elements: bits differ");
        }
    }
}

/// T-4, M-6: both add in the order of the ranks, in one exchange or by chunks, also of other lengths.
#[test]
fn a_group_of_threads_has_the_bits_of_the_torus() {
    for (n, len) in [(1, 9), (2, 7), (2, 100_003), (3, 1025), (3, 70_001), (4, 5_000), (4, 5_462), (4, 90_000), (5, 4)]
    {
        let groups: Vec<_> = ThreadGroup::new(n).into_iter().map(Mutex::new).collect();
        let shape = Shape::new(n, 1, 1).unwrap();
        on_shape(LinkKind::Shm, &shape, |links| {
            let (group, mut sum) = (Group::tp(&shape, links.rank()), values(links.rank(), len, false));
            let mut of_threads = sum.clone();
            all_reduce_sum(links, &group, Channel::Tp, &mut sum, &mut Vec::new()).unwrap();
            groups[links.rank()].lock().unwrap().all_reduce(&mut of_threads).unwrap();
            assert!(sum.iter().zip(&of_threads).all(|(a, b)| a.to_bits() == b.to_bits()), "{n} ranks, {len} elements");
        });
    }
}

#[test]
fn a_direct_sum_adds_in_the_order_of_the_members() {
    let results = on_shape(LinkKind::Shm, &Shape::new(4, 1, 1).unwrap(), |links| {
        let group = Group::line(vec![0, 1, 2, 3], links.rank());
        // (1e8 + 1) + -1e8 loses the 1, which any order that adds the big ones first would keep.
        let mut buf = [[1e8, 1.0, -1e8, 0.5][links.rank()]];
        all_reduce_sum(links, &group, Channel::Tp, &mut buf, &mut Vec::new()).unwrap();
        buf[0]
    });
    assert_eq!(results, [0.5; 4]);
}

#[test]
fn a_tp_group_gathers_by_tp_rank() {
    let shape = Shape::new(3, 2, 2).unwrap();
    on_shape(LinkKind::Shm, &shape, |links| {
        let rank = links.rank();
        let (group, mut scratch) = (Group::tp(&shape, rank), Vec::new());
        let mut tp = TpGroup::new(links, &group, &mut scratch);
        assert_eq!((tp.size(), tp.rank()), (3, shape.place(rank).tp));
        let mut all = [0.0; 6];
        tp.all_gather(&[rank as f32, 0.5], &mut all).unwrap();
        let expected: Vec<f32> = shape.tp_group(rank).into_iter().flat_map(|r| [r as f32, 0.5]).collect();
        assert_eq!(all[..], expected);
    });
}

/// T-2: nobody has the result before everybody has come.
#[test]
fn the_global_sum_is_the_same_everywhere_and_waits_for_all() {
    for (tp, pp, dp) in [(1, 1, 1), (2, 1, 2), (1, 2, 3), (4, 1, 1), (1, 4, 1), (2, 2, 4), (3, 1, 4)] {
        let shape = Shape::new(tp, pp, dp).unwrap();
        let come = std::sync::atomic::AtomicUsize::new(0);
        let results = on_shape(LinkKind::Shm, &shape, |links| {
            let mut values = [1.0 / (links.rank() as f64 + 3.0), links.rank() as f64];
            come.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            global_sum(links, &shape, &mut values).unwrap();
            assert_eq!(come.load(std::sync::atomic::Ordering::SeqCst), shape.world());
            values.map(f64::to_bits)
        });
        let n = shape.world();
        assert!(results.iter().all(|bits| *bits == results[0]), "{shape}: bits differ");
        assert_eq!(f64::from_bits(results[0][1]), (n * (n - 1) / 2) as f64, "{shape}");
        let expected: f64 = (0..n).map(|rank| 1.0 / (rank as f64 + 3.0)).sum();
        assert!((f64::from_bits(results[0][0]) - expected).abs() < 1e-12, "{shape}");
    }
}

#[test]
fn a_death_within_a_collective_reaches_those_who_wait_for_it() {
    let shape = Shape::new(1, 1, 2).unwrap();
    let results = on_shape(LinkKind::Shm, &shape, |links| {
        (links.rank() == 0).then(|| {
            let group = Group::dp(&shape, 0);
            reduce_scatter(links, &group, Channel::Dp, &mut vec![1.0; 1 << 20], &mut Vec::new()).unwrap_err()
        })
    });
    assert!(matches!(results[0], Some(CommError::PeerLost { rank: 1, .. })), "{:?}", results[0]);
}

/// The design's formulas: rings move 2(n - 1)/n of the buffer in 2(dx - 1) + 2(dy - 1) steps, to the byte, over every kind of link.
fn what_is_sent_is_what_the_formulas_say(kind: LinkKind) {
    for (dx, dy) in [(2, 1), (4, 1), (2, 2), (4, 4), (16, 1), (3, 2)] {
        let (n, chunk) = (dx * dy, 8192);
        let shape = Shape::with_torus(1, 1, n, dx, dy).unwrap();
        let bytes = n * chunk * size_of::<f32>();
        on_shape(kind, &shape, |links| {
            let group = Group::dp(&shape, links.rank());
            let before = links.stats();
            let (mut buf, mut scratch) = (values(links.rank(), n * chunk, true), Vec::new());
            reduce_scatter(links, &group, Channel::Dp, &mut buf, &mut scratch).unwrap();
            all_gather(links, &group, Channel::Dp, &mut buf).unwrap();
            let after = links.stats();
            let frames = after.frames_sent - before.frames_sent;
            let payload = after.bytes_sent - before.bytes_sent - frames * HEADER_LEN as u64;
            assert_eq!(payload as usize, 2 * (n - 1) * bytes / n, "{dx} x {dy}: bytes of a member");
            // Chunks of 32 KiB are not cut: a frame is a step where schedules are rings, and a message to each of a line where they are direct;
            // both have as many.
            assert_eq!(frames as usize, 2 * (dx - 1) + 2 * (dy - 1), "{dx} x {dy}: frames of a member");
        });
    }
}

/// T-4: one buffer, cut in many slices, over each kind of link.
#[test]
fn kinds_of_link_do_not_change_bits() {
    let shape = Shape::with_torus(1, 1, 6, 3, 2).unwrap();
    for len in [6 * 100, 6 * 50_000] {
        let bits = |kind| {
            on_shape(kind, &shape, |links| {
                let (group, mut scratch) = (Group::dp(&shape, links.rank()), Vec::new());
                let mut buf = values(links.rank(), len, false);
                reduce_scatter(links, &group, Channel::Dp, &mut buf, &mut scratch).unwrap();
                all_gather(links, &group, Channel::Dp, &mut buf).unwrap();
                buf.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            })
        };
        let shm = bits(LinkKind::Shm);
        assert!(shm.iter().all(|rank| *rank == shm[0]), "{len} elements: ranks differ");
        assert!(bits(LinkKind::Tcp) == shm, "{len} elements: TCP has other bits than shared memory");
        assert!(bits(LinkKind::Unix) == shm, "{len} elements: Unix sockets have other bits than shared memory");
    }
}

/// T-4, C-2: an all-reduce has the same bits by rings and direct, in slices or not, which rows bring in an order of their own.
fn schedules_do_not_change_bits(kind: LinkKind) {
    for (dx, dy, chunk) in [(4, 1, 100), (2, 2, 40_000), (3, 2, 70_000), (2, 3, 40_001)] {
        let shape = Shape::with_torus(1, 1, dx * dy, dx, dy).unwrap();
        let results = on_shape(kind, &shape, |links| {
            let (group, mut scratch) = (Group::dp(&shape, links.rank()), Vec::new());
            [Algorithm::Ring, Algorithm::Direct, Algorithm::Auto].map(|algorithm| {
                let mut buf = values(links.rank(), dx * dy * chunk, false);
                all_reduce_torus(links, &group, algorithm, Channel::Dp, &mut buf, &mut scratch).unwrap();
                buf.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
            })
        });
        let first = &results[0][0];
        assert!(results.iter().flatten().all(|bits| bits == first), "{dx} x {dy}, chunks of {chunk}: bits differ");
    }
}

#[test]
fn what_is_small_goes_direct() {
    let kib = |kib: usize| kib * 256;
    let line = [(2, kib(64)), (2, kib(65)), (4, kib(16)), (4, kib(32)), (4, 3)];
    assert_eq!(
        line.map(|(members, len)| Path::on_line(members, len)),
        [Path::Exchange, Path::Ring, Path::Exchange, Path::Chunks, Path::Exchange]
    );
    // Chunks of 32 KiB at most, and no more than 256 KiB in all.
    let auto = |members, len| Path::on_torus(Algorithm::Auto, members, len);
    assert_eq!([auto(4, kib(128)), auto(4, kib(129))], [Path::Direct, Path::Ring]);
    assert_eq!([auto(16, kib(256)), auto(16, kib(257))], [Path::Direct, Path::Ring]);
    assert_eq!(Path::on_torus(Algorithm::Auto, 1, kib(64)), Path::Direct);
    assert_eq!(Path::on_torus(Algorithm::Ring, 4, 1), Path::Ring);
    assert_eq!(Path::on_torus(Algorithm::Direct, 4, kib(1 << 20)), Path::Direct);
}

/// What a place does in a step: sums over a TP group between the pieces that become final, a reduce-scatter that passes on meanwhile, then
/// an all-gather of which it reads ranges. T-4: bits of the blocking ones.
fn in_flight_is_as_blocking(kind: LinkKind) {
    for (dx, dy, chunk) in [(2, 1, 37), (2, 1, 90_000), (1, 3, 40_000), (2, 2, 100), (2, 2, 50_000)] {
        let (n, len) = (dx * dy, dx * dy * chunk);
        let shape = Shape::with_torus(2, 1, n, dx, dy).unwrap();
        on_shape(kind, &shape, |links| {
            let (dp, tp, mut scratch) = (Group::dp(&shape, links.rank()), Group::tp(&shape, links.rank()), Vec::new());
            let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            let chunk_of = |member: usize| {
                let at = (member % dx) * dy + member / dx;
                at * chunk..(at + 1) * chunk
            };
            let (own, before) = (chunk_of(dp.me), chunk_of((dp.me + n - 1) % n));
            let name = format!("{dx} x {dy}, chunks of {chunk}, rank {}", links.rank());
            // Everybody's own, by the blocking ones.
            let mut expected = values(links.rank(), len, false);
            reduce_scatter(links, &dp, Channel::Dp, &mut expected, &mut scratch).unwrap();
            all_gather(links, &dp, Channel::Dp, &mut expected).unwrap();
            for round in 0..3 {
                let mine = values(links.rank(), len, false);
                start_reduce_scatter(links, &dp, Channel::Dp, vec![f32::NAN; len], len, true).unwrap();
                let mut from = len;
                while from > 0 {
                    let mut sum = values(links.rank(), 20_000, false);
                    all_reduce_sum(links, &tp, Channel::Tp, &mut sum, &mut scratch).unwrap();
                    // Not by rank: the members of a TP group make the same calls.
                    let next = from - (1 + Random(from as u64 ^ round).below(from));
                    links.supply(next, |buf| buf.copy_from_slice(&mine[next..from])).unwrap();
                    from = next;
                }
                let mut flat = links.land().unwrap();
                assert_eq!(bits(&flat[own.clone()]), bits(&expected[own.clone()]), "its own chunk, {name}");
                assert_eq!(bits(&flat[before.clone()]), bits(&expected[before.clone()]), "the copy, {name}");
                flat[..own.start].fill(f32::NAN);
                flat[own.end..].fill(f32::NAN);
                start_all_gather(links, &dp, Channel::Dp, flat).unwrap();
                for start in (0..len).step_by(len.div_ceil(3)) {
                    let range = start..(start + len.div_ceil(3)).min(len);
                    let mut sum = values(links.rank(), 20_000, false);
                    all_reduce_sum(links, &tp, Channel::Tp, &mut sum, &mut scratch).unwrap();
                    assert_eq!(bits(links.await_range(range.clone()).unwrap()), bits(&expected[range]), "{name}");
                }
                assert_eq!(bits(&links.land().unwrap()), bits(&expected), "{name}");
            }
        });
    }
}

/// Whoever sums over its TP group serves its DP group meanwhile; else rows that wait for columns and columns that wait for rows close
/// a circle. Each rank lets its DP group wait until its TP group has come, and the other way round.
#[test]
fn a_rank_in_another_call_serves_what_is_in_flight() {
    let shape = Shape::new(2, 1, 2).unwrap();
    on_shape(LinkKind::Shm, &shape, |links| {
        let (rank, place) = (links.rank(), shape.place(links.rank()));
        let (dp, tp, mut scratch) = (Group::dp(&shape, rank), Group::tp(&shape, rank), Vec::new());
        // More than a ring takes.
        let mut flat = vec![0.0; 8 << 20];
        let own = place.dp * flat.len() / 2;
        flat[own..own + (4 << 20)].fill(1.0 + rank as f32);
        start_all_gather(links, &dp, Channel::Dp, flat).unwrap();
        let is_first_to_gather = place.tp == place.dp;
        let mut sum = vec![1.0; 100];
        if !is_first_to_gather {
            all_reduce_sum(links, &tp, Channel::Tp, &mut sum, &mut scratch).unwrap();
        }
        let flat = links.land().unwrap();
        if is_first_to_gather {
            all_reduce_sum(links, &tp, Channel::Tp, &mut sum, &mut scratch).unwrap();
        }
        assert_eq!(sum, [2.0; 100]);
        for (dp, half) in flat.chunks_exact(4 << 20).enumerate() {
            let giver = shape.rank(toroid_torus::geometry::Place { dp, ..place });
            assert!(half.iter().all(|x| *x == 1.0 + giver as f32));
        }
    });
}

/// The waits that heartbeats name are those of the call, not what goes on beside it.
#[test]
fn what_is_in_flight_is_waited_for_only_by_who_needs_it() {
    let shape = Shape::new(1, 1, 2).unwrap();
    let (told, tell) = std::sync::mpsc::channel();
    let (told, tell) = (std::sync::Mutex::new(told), std::sync::Mutex::new(tell));
    on_shape(LinkKind::Tcp, &shape, |links| {
        let group = Group::dp(&shape, links.rank());
        if links.rank() == 0 {
            start_all_gather(links, &group, Channel::Dp, vec![1.0; 1 << 16]).unwrap();
            links.progress().unwrap();
            assert_eq!(links.waits_for().ranks(), [0; 0], "it computes");
            told.lock().unwrap().send(links.waits_for()).unwrap();
            links.land().unwrap();
            assert_eq!(links.waits_for().ranks(), [0; 0]);
        } else {
            await_waiting(&tell.lock().unwrap().recv().unwrap(), &[1]);
            start_all_gather(links, &group, Channel::Dp, vec![1.0; 1 << 16]).unwrap();
            links.land().unwrap();
        }
    });
}
