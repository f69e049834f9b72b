//! All members' schedules run against each other, with messages that arrive in any order that links allow.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use proptest::prelude::*;
use toroid_torus::collective::{self, Action, Op, Recv, Schedule, Send, Task, Tasks, chunk_range};
use toroid_torus::cursor::splitmix64;
use toroid_torus::geometry::Shape;
use toroid_torus::partition::shard_position;

use crate::Random;

enum Transfer<'a> {
    Send(&'a Send),
    Recv(&'a Recv),
}

/// What a run left.
struct Outcome<V> {
    /// `(members, chunks)`.
    buffers: Vec<Vec<V>>,
    /// How often each chunk was sent.
    moves: Vec<usize>,
    /// Chunks that each member sent.
    sent: Vec<usize>,
}

type Queues<V> = BTreeMap<(usize, usize), VecDeque<(Range<usize>, Vec<V>)>>;

/// Runs one schedule a member in an order that `seed` chooses: any member's next transfer, any transfer of its step first. Sends are
/// buffered, receives wait (C-4); links keep the order of their messages.
fn simulate<V: Clone>(
    schedules: &[Schedule],
    mut buffers: Vec<Vec<V>>,
    add: impl Fn(&V, &V) -> V,
    seed: u64,
) -> Outcome<V> {
    let mut random = Random(splitmix64(seed));
    let mut queues: Queues<V> = BTreeMap::new();
    let (mut moves, mut sent) = (vec![0; schedules[0].num_chunks], vec![0; schedules.len()]);
    let mut steps: Vec<_> = schedules.iter().map(|s| s.steps.iter()).collect();
    let mut pending: Vec<Vec<Transfer<'_>>> = schedules.iter().map(|_| Vec::new()).collect();
    let mut ready: Vec<usize> = (0..schedules.len()).collect();
    let mut waits = vec![false; schedules.len()];
    while !ready.is_empty() {
        let me = ready.swap_remove(random.below(ready.len()));
        if pending[me].is_empty() {
            let Some(step) = steps[me].next() else { continue };
            let recvs = step.recvs.iter().map(Transfer::Recv);
            pending[me] = step.sends.iter().map(Transfer::Send).chain(recvs).collect();
        }
        let possible = |transfer: &Transfer<'_>| match transfer {
            Transfer::Send(_) => true,
            Transfer::Recv(recv) => queues.get(&(recv.from, me)).is_some_and(|q| !q.is_empty()),
        };
        let choices: Vec<usize> = (0..pending[me].len()).filter(|i| possible(&pending[me][*i])).collect();
        if choices.is_empty() {
            waits[me] = true;
            continue;
        }
        match pending[me].swap_remove(choices[random.below(choices.len())]) {
            Transfer::Send(send) => {
                let payload = buffers[me][send.chunks.clone()].to_vec();
                queues.entry((me, send.to)).or_default().push_back((send.chunks.clone(), payload));
                send.chunks.clone().for_each(|chunk| moves[chunk] += 1);
                sent[me] += send.chunks.len();
                if std::mem::take(&mut waits[send.to]) {
                    ready.push(send.to);
                }
            }
            Transfer::Recv(recv) => {
                let message = queues.get_mut(&(recv.from, me)).and_then(VecDeque::pop_front);
                let (chunks, payload) = message.expect("the queue has a message");
                assert_eq!(chunks, recv.chunks, "member {me} receives what {} sent, seed {seed}", recv.from);
                for (own, received) in buffers[me][chunks].iter_mut().zip(&payload) {
                    *own = match recv.op {
                        Op::Copy => received.clone(),
                        Op::Add => add(own, received),
                    };
                }
            }
        }
        ready.push(me);
    }
    let stuck: Vec<usize> = (0..schedules.len()).filter(|m| waits[*m]).collect();
    assert!(stuck.is_empty(), "C-4: members {stuck:?} wait for ever, seed {seed}");
    assert!(queues.values().all(VecDeque::is_empty), "a message was sent that nobody receives, seed {seed}");
    Outcome { buffers, moves, sent }
}

fn members(n: usize, schedule: impl Fn(usize) -> Schedule) -> Vec<Schedule> {
    (0..n).map(schedule).collect()
}

/// Chunk of each member.
fn own_chunk(dx: usize, dy: usize, member: usize) -> usize {
    (member % dx) * dy + member / dx
}

/// A value that gives a sum away which lacks a member or has it twice.
fn mark(member: usize, chunk: usize) -> u64 {
    splitmix64((member as u64) << 32 | chunk as u64)
}

fn check(dx: usize, dy: usize, seed: u64) {
    let n = dx * dy;
    let name = format!("{dx} x {dy}, seed {seed}");
    let inputs: Vec<Vec<u64>> = (0..n).map(|m| (0..n).map(|chunk| mark(m, chunk)).collect()).collect();
    let sums: Vec<u64> = (0..n).map(|c| (0..n).fold(0_u64, |sum, m| sum.wrapping_add(inputs[m][c]))).collect();
    let add = |a: &u64, b: &u64| a.wrapping_add(*b);

    let scatter = members(n, |m| collective::reduce_scatter(dx, dy, m));
    let gather = members(n, |m| collective::all_gather(dx, dy, m));
    let reduce = members(n, |m| collective::all_reduce(dx, dy, m));
    for (m, schedule) in reduce.iter().enumerate() {
        assert_eq!(schedule.steps, [&scatter[m].steps[..], &gather[m].steps[..]].concat(), "{name}");
        assert_eq!(schedule.steps.len(), 2 * (dx - 1) + 2 * (dy - 1), "C-1: {name}");
        check_disjoint(schedule, &name);
    }

    let scattered = simulate(&scatter, inputs.clone(), add, seed);
    let mut parts = vec![vec![0; n]; n];
    for m in 0..n {
        let own = own_chunk(dx, dy, m);
        assert_eq!(scattered.buffers[m][own], sums[own], "the sum at member {m}, {name}");
        parts[m][own] = sums[own];
    }
    let gathered = simulate(&gather, parts, add, seed);
    assert!(gathered.buffers.iter().all(|b| *b == sums), "all-gather, {name}");
    for outcome in [&scattered, &gathered] {
        assert!(outcome.moves.iter().all(|moves| *moves == n - 1), "each chunk moves n - 1 times, {name}");
        assert!(outcome.sent.iter().all(|sent| *sent == n - 1), "C-1: each member sends n - 1 of n chunks, {name}");
    }

    let reduced = simulate(&reduce, inputs, add, seed);
    assert!(reduced.buffers.iter().all(|b| *b == sums), "all-reduce, {name}");
    assert!(reduced.sent.iter().all(|sent| *sent == 2 * (n - 1)), "C-1: 2(n-1)/n of the buffer, {name}");
}

/// C-3.
fn check_disjoint(schedule: &Schedule, name: &str) {
    for step in &schedule.steps {
        let mut ranges: Vec<&Range<usize>> =
            step.sends.iter().map(|s| &s.chunks).chain(step.recvs.iter().map(|r| &r.chunks)).collect();
        ranges.sort_by_key(|r| r.start);
        assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "C-3: {step}, {name}");
    }
}

#[test]
fn every_small_torus_sums_and_gathers() {
    for dx in 1..=64 {
        for dy in 1..=64 / dx {
            (0..3).for_each(|seed| check(dx, dy, seed));
        }
    }
}

#[test]
fn the_large_torus_sums_and_gathers() {
    check(32, 64, 1);
}

#[test]
fn direct_gather_takes_one_step() {
    for n in 1..=64 {
        let schedules = members(n, |m| collective::all_gather_direct(n, 1, m));
        let parts = (0..n).map(|m| (0..n).map(|c| if c == m { mark(m, c) } else { 0 }).collect()).collect();
        let outcome = simulate(&schedules, parts, |_, received| *received, n as u64);
        let whole: Vec<u64> = (0..n).map(|m| mark(m, m)).collect();
        assert!(outcome.buffers.iter().all(|b| *b == whole), "n {n}");
        assert!(schedules.iter().all(|s| s.steps.len() == usize::from(n > 1)), "n {n}");
        assert!(outcome.moves.iter().all(|moves| *moves == n - 1), "n {n}");
    }
}

/// How a member's elements look after its tasks have run against those of the others, in an order that `seed` chooses, without any step
/// to hold them together: a task runs when those before it are done, and messages of two members keep their order.
fn run_tasks<V: Clone + Default>(
    tasks: &[Tasks],
    mut buffers: Vec<Vec<V>>,
    add: impl Fn(&V, &V) -> V,
    seed: u64,
) -> Vec<Vec<V>> {
    let mut random = Random(splitmix64(seed));
    let mut scratch: Vec<Vec<V>> = tasks.iter().map(|t| vec![V::default(); t.num_scratch]).collect();
    let mut left: Vec<Vec<usize>> =
        tasks.iter().map(|t| t.tasks.iter().map(|task| task.num_before).collect()).collect();
    let mut queues: Queues<V> = BTreeMap::new();
    // By member and link: its tasks, in order. What is local has a queue of its own.
    let mut todo: BTreeMap<(usize, usize, bool), VecDeque<usize>> = BTreeMap::new();
    let mut local: Vec<(usize, usize)> = Vec::new();
    for (me, of_member) in tasks.iter().enumerate() {
        for (index, task) in of_member.tasks.iter().enumerate() {
            match task.action {
                Action::Send { to } => todo.entry((me, to, true)).or_default().push_back(index),
                Action::Recv { from, .. } | Action::RecvScratch { from, .. } => {
                    todo.entry((me, from, false)).or_default().push_back(index);
                }
                Action::Fold { .. } => local.push((me, index)),
            }
        }
    }
    loop {
        let heads = todo.iter().filter_map(|(&(me, peer, is_send), queue)| {
            let &index = queue.front()?;
            let came = is_send || queues.get(&(peer, me)).is_some_and(|q| !q.is_empty());
            (came && left[me][index] == 0).then_some((me, index, Some((me, peer, is_send))))
        });
        let folds = local.iter().filter(|(me, index)| left[*me][*index] == 0).map(|(me, index)| (*me, *index, None));
        let choices: Vec<_> = heads.chain(folds).collect();
        if choices.is_empty() {
            break;
        }
        let (me, index, link) = choices[random.below(choices.len())];
        let Task { action, range, after, .. } = &tasks[me].tasks[index];
        match (action, link) {
            (Action::Send { to }, _) => {
                queues.entry((me, *to)).or_default().push_back((range.clone(), buffers[me][range.clone()].to_vec()));
            }
            (Action::Fold { at }, _) => {
                for (i, element) in range.clone().enumerate() {
                    buffers[me][element] = add(&buffers[me][element], &scratch[me][at + i]);
                }
                local.retain(|l| *l != (me, index));
            }
            (Action::Recv { from, op } | Action::RecvScratch { from, op, .. }, _) => {
                let (sent, message) = queues.get_mut(&(*from, me)).and_then(VecDeque::pop_front).expect("a message");
                assert_eq!(sent, *range, "member {me} receives what {from} sent, seed {seed}");
                let into = match action {
                    Action::RecvScratch { at, .. } => &mut scratch[me][*at..at + range.len()],
                    _ => &mut buffers[me][range.clone()],
                };
                for (own, came) in into.iter_mut().zip(&message) {
                    *own = if *op == Op::Add { add(own, came) } else { came.clone() };
                }
            }
        }
        if let Some(queue) = link.and_then(|link| todo.get_mut(&link)) {
            queue.pop_front();
        }
        after.iter().for_each(|later| left[me][*later] -= 1);
    }
    assert!(todo.values().all(VecDeque::is_empty) && local.is_empty(), "C-4: members wait for ever, seed {seed}");
    assert!(queues.values().all(VecDeque::is_empty), "a message was sent that nobody receives, seed {seed}");
    buffers
}

/// Elements that member `m` sends.
fn elements_sent(tasks: &Tasks) -> usize {
    let sends = tasks.tasks.iter().filter(|task| matches!(task.action, Action::Send { .. }));
    sends.map(|task| task.range.len()).sum()
}

/// C-1, C-2, C-4: rings and direct schedules, cut in slices or not, give the same bits and move each byte as often as it must.
fn check_tasks(dx: usize, dy: usize, len: usize, slice: usize, seed: u64) {
    let n = dx * dy;
    let name = format!("{dx} x {dy}, {len} elements in slices of {slice}, seed {seed}");
    let value = |m, c| (mark(m, c) >> 40) as f32 / 1e3 - 8e3;
    let inputs: Vec<Vec<f32>> = (0..n).map(|m| (0..len).map(|c| value(m, c)).collect()).collect();
    let run = |schedule: fn(usize, usize, usize) -> Schedule, slice: usize| {
        let tasks: Vec<Tasks> = (0..n).map(|m| Tasks::new(&schedule(dx, dy, m), len, slice)).collect();
        let sent: usize = tasks.iter().map(elements_sent).sum();
        assert_eq!(sent, 2 * (n - 1) * len, "C-1: every element moves 2(n - 1) times, {name}");
        let bits = |buffer: Vec<f32>| buffer.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        run_tasks(&tasks, inputs.clone(), |a, b| a + b, seed).into_iter().map(bits).collect::<Vec<_>>()
    };
    let whole = run(collective::all_reduce, usize::MAX);
    assert!(whole.iter().all(|buffer| *buffer == whole[0]), "C-2: members differ, {name}");
    assert!(run(collective::all_reduce, slice) == whole, "C-2: slices change the ring's bits, {name}");
    assert!(run(collective::all_reduce_direct, usize::MAX) == whole, "C-2: direct has other bits, {name}");
    assert!(run(collective::all_reduce_direct, slice) == whole, "C-2: slices change the direct bits, {name}");
}

#[test]
fn tasks_of_rings_and_direct_schedules_have_the_same_bits() {
    for (dx, dy) in [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (5, 1), (3, 4), (4, 4), (16, 1)] {
        for (len, slice) in [(0, 1), (1, 1), (37, 1), (37, 2), (64, 3), (101, 4)] {
            (0..4).for_each(|seed| check_tasks(dx, dy, len, slice, seed));
        }
    }
}

#[test]
fn tasks_leave_the_scattered_sum_where_the_schedule_does() {
    for (dx, dy) in [(4, 1), (1, 3), (3, 2)] {
        let n = dx * dy;
        let expected = simulate(&members(n, |m| collective::reduce_scatter(dx, dy, m)), inputs_of(n), plus, 0);
        for schedule in [collective::reduce_scatter, collective::reduce_scatter_direct] {
            let tasks: Vec<Tasks> = (0..n).map(|m| Tasks::new(&schedule(dx, dy, m), n, 1)).collect();
            let found = run_tasks(&tasks, inputs_of(n), plus, 1);
            for m in 0..n {
                let own = own_chunk(dx, dy, m);
                assert_eq!(found[m][own], expected.buffers[m][own], "{dx} x {dy}, member {m}");
            }
        }
    }
}

fn inputs_of(n: usize) -> Vec<Vec<u64>> {
    (0..n).map(|m| (0..n).map(|chunk| mark(m, chunk)).collect()).collect()
}

fn plus(a: &u64, b: &u64) -> u64 {
    a.wrapping_add(*b)
}

#[test]
fn sums_have_one_order_whatever_the_timing() {
    for (dx, dy) in [(5, 1), (1, 5), (3, 4), (8, 4)] {
        let n = dx * dy;
        let schedules = members(n, |m| collective::all_reduce(dx, dy, m));
        let value = |m, c| (mark(m, c) >> 40) as f32 / 1e3 - 8e3;
        let inputs: Vec<Vec<f32>> = (0..n).map(|m| (0..n).map(|c| value(m, c)).collect()).collect();
        let bits = |seed| -> Vec<Vec<u32>> {
            let outcome = simulate(&schedules, inputs.clone(), |a, b| a + b, seed);
            outcome.buffers.iter().map(|b| b.iter().map(|x| x.to_bits()).collect()).collect()
        };
        let first = bits(0);
        assert!(first.iter().all(|b| *b == first[0]), "C-2: members of {dx} x {dy} differ");
        (1..20).for_each(|seed| assert_eq!(bits(seed), first, "C-2: {dx} x {dy}, seed {seed}"));
    }
}

/// The sum that member 0 gets of its own chunk, written out.
fn sum_of_member_0(dx: usize, dy: usize) -> String {
    let n = dx * dy;
    let names = (0..n).map(|m| vec![m.to_string(); n]).collect();
    let schedules = members(n, |m| collective::reduce_scatter(dx, dy, m));
    simulate(&schedules, names, |a, b| format!("({a}+{b})"), 0).buffers[0][0].clone()
}

#[test]
fn the_order_of_sums_is_by_row_then_column() {
    assert_eq!(sum_of_member_0(1, 1), "0");
    assert_eq!(sum_of_member_0(4, 1), "(0+(3+(2+1)))");
    assert_eq!(sum_of_member_0(1, 3), "(0+(2+1))");
    assert_eq!(sum_of_member_0(2, 2), "((0+1)+(2+3))");
    assert_eq!(sum_of_member_0(3, 2), "((0+(2+1))+(3+(5+4)))");
}

#[test]
fn a_member_owns_the_chunk_of_its_shard() {
    for (dx, dy) in [(1, 1), (4, 1), (1, 4), (3, 5), (32, 64)] {
        let shape = Shape::with_torus(1, 1, dx * dy, dx, dy).expect("a valid shape");
        (0..dx * dy).for_each(|m| assert_eq!(own_chunk(dx, dy, m), shard_position(&shape, m)));
    }
}

#[test]
fn schedules_print_and_are_read_back() {
    for (dx, dy) in [(1, 1), (2, 1), (1, 2), (3, 4), (8, 8)] {
        for m in 0..dx * dy {
            for schedule in [collective::all_reduce(dx, dy, m), collective::all_reduce_direct(dx, dy, m)] {
                assert_eq!(schedule.to_string().parse(), Ok(schedule));
            }
        }
    }
}

proptest! {
    #[test]
    fn chunks_lie_side_by_side_and_are_of_equal_length(elements in 0_usize..1 << 40, n in 1_usize..5000) {
        let chunks: Vec<Range<usize>> = (0..n).map(|c| chunk_range(elements, n, &(c..c + 1))).collect();
        prop_assert_eq!(chunks[0].start, 0);
        prop_assert_eq!(chunks[n - 1].end, elements);
        prop_assert!(chunks.windows(2).all(|w| w[0].end == w[1].start && w[0].len() >= w[1].len()));
        prop_assert!(chunks[0].len() - chunks[n - 1].len() <= 1);
        prop_assert_eq!(chunk_range(elements, n, &(0..n)), 0..elements);
    }
}
