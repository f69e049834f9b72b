//! All members' schedules run against each other, with messages that arrive in any order that links allow.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use proptest::prelude::*;
use toroid_torus::collective::{self, Action, Op, Order, Recv, Run, Schedule, Send, Task, Tasks, chunk_range};
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

/// A link and whether it is sent; `None`: nothing is moved.
type Lane = Option<(usize, bool)>;

/// How a member's elements look after its tasks have run against those of the others, in an order that `seed` chooses, without any step
/// to hold them together: a task runs when it may start, and messages of two members keep their order.
///
/// Where it `trickles`, a member's inputs become final from the end of the buffer on, in pieces, at any time; until then there is `poison`.
fn run_tasks<V: Clone + Default>(
    tasks: &[Tasks],
    inputs: Vec<Vec<V>>,
    add: impl Fn(&V, &V) -> V,
    trickles: Option<V>,
    seed: u64,
) -> Vec<Vec<V>> {
    let mut random = Random(splitmix64(seed));
    let mut scratch: Vec<Vec<V>> = tasks.iter().map(|t| vec![V::default(); t.num_scratch]).collect();
    let (mut buffers, from) = match trickles {
        Some(poison) => (inputs.iter().map(|i| vec![poison.clone(); i.len()]).collect(), inputs[0].len()),
        None => (inputs.clone(), 0),
    };
    let mut runs: Vec<Run> = tasks.iter().map(|t| Run::new(Arc::new(t.clone()), from)).collect();
    let mut queues: Queues<V> = BTreeMap::new();
    // Tasks that have started: by member, and by link and direction or alone, in order.
    let mut started: BTreeMap<(usize, Lane), VecDeque<usize>> = BTreeMap::new();
    loop {
        for (me, run) in runs.iter_mut().enumerate() {
            while let Some(index) = run.start_next() {
                let link = match tasks[me].tasks[index].action {
                    Action::Send { to } => Some((to, true)),
                    Action::Recv { from, .. } | Action::RecvScratch { from, .. } => Some((from, false)),
                    Action::Fold { .. } => None,
                };
                started.entry((me, link)).or_default().push_back(index);
            }
        }
        let has_come = |me: usize, link: Lane| match link {
            Some((from, false)) => queues.get(&(from, me)).is_some_and(|q| !q.is_empty()),
            _ => true,
        };
        let heads: Vec<_> = started
            .iter()
            .filter(|((me, link), queue)| !queue.is_empty() && has_come(*me, *link))
            .map(|(k, _)| *k)
            .collect();
        let late: Vec<usize> = (0..runs.len()).filter(|me| runs[*me].final_from() > 0).collect();
        if heads.is_empty() && late.is_empty() {
            break;
        }
        let choice = random.below(heads.len() + late.len());
        if choice >= heads.len() {
            let me = late[choice - heads.len()];
            let end = runs[me].final_from();
            let start = random.below(end);
            buffers[me][start..end].clone_from_slice(&inputs[me][start..end]);
            runs[me].lower(start);
            continue;
        }
        let (me, _) = heads[choice];
        let index = started.get_mut(&heads[choice]).and_then(VecDeque::pop_front).expect("it has one");
        let Task { action, range, .. } = &tasks[me].tasks[index];
        match action {
            Action::Send { to } => {
                queues.entry((me, *to)).or_default().push_back((range.clone(), buffers[me][range.clone()].to_vec()));
            }
            Action::Fold { at } => {
                for (i, element) in range.clone().enumerate() {
                    buffers[me][element] = add(&buffers[me][element], &scratch[me][at + i]);
                }
            }
            Action::Recv { from, op } | Action::RecvScratch { from, op, .. } => {
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
        runs[me].complete(index);
    }
    assert!(runs.iter().all(Run::is_over), "C-4, G-2: members wait for ever, seed {seed}");
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
        run_tasks(&tasks, inputs.clone(), |a, b| a + b, None, seed).into_iter().map(bits).collect::<Vec<_>>()
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
            let found = run_tasks(&tasks, inputs_of(n), plus, None, 1);
            for m in 0..n {
                let own = own_chunk(dx, dy, m);
                assert_eq!(found[m][own], expected.buffers[m][own], "{dx} x {dy}, member {m}");
            }
        }
    }
}

/// What a member has of its own chunk and of that of the member before, which it keeps a copy of.
fn sealed(buffers: &[Vec<f32>], dx: usize, dy: usize) -> Vec<[Vec<u32>; 2]> {
    let n = dx * dy;
    let chunk = |m: usize, of: usize| {
        let chunk = own_chunk(dx, dy, of);
        buffers[m][chunk_range(buffers[m].len(), n, &(chunk..chunk + 1))].iter().map(|x| x.to_bits()).collect()
    };
    (0..n).map(|m| [chunk(m, m), chunk(m, (m + n - 1) % n)]).collect()
}

/// G-1, G-2: whatever becomes final when, sums that are made meanwhile have the bits of the schedule, and nobody waits for ever.
#[test]
fn sums_of_what_becomes_final_bit_by_bit_are_those_of_the_whole() {
    for (dx, dy) in [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (5, 1), (3, 4), (4, 4)] {
        let n = dx * dy;
        for (len, slice) in [(0, 1), (1, 1), (37, 1), (64, 3), (144, 64), (101, 4)] {
            let value = |m, c| (mark(m, c) >> 40) as f32 / 1e3 - 8e3;
            let inputs: Vec<Vec<f32>> = (0..n).map(|m| (0..len).map(|c| value(m, c)).collect()).collect();
            let plain: Vec<Tasks> = members(n, |m| collective::reduce_scatter(dx, dy, m))
                .iter()
                .map(|schedule| Tasks::new(schedule, len, usize::MAX))
                .collect();
            let whole = run_tasks(&plain, inputs.clone(), |a, b| a + b, None, 0);
            for schedule in [collective::reduce_scatter, collective::reduce_scatter_direct] {
                let made = members(n, |m| {
                    let mut schedule = schedule(dx, dy, m);
                    schedule.steps.push(collective::pass_on(dx, dy, m));
                    schedule
                });
                let tasks: Vec<Tasks> =
                    made.iter().map(|s| Tasks::new(s, len, slice).in_order(Order::Descending)).collect();
                for seed in 0..6 {
                    let found = run_tasks(&tasks, inputs.clone(), |a, b| a + b, Some(f32::NAN), seed);
                    for (m, [own, guarded]) in sealed(&found, dx, dy).into_iter().enumerate() {
                        let name = format!("{dx} x {dy}, {len} in slices of {slice}, member {m}, seed {seed}");
                        let of = |m: usize| sealed(&whole, dx, dy)[m][0].clone();
                        assert_eq!(own, of(m), "G-1: its own chunk, {name}");
                        assert_eq!(guarded, of((m + n - 1) % n), "G-1: the copy, {name}");
                    }
                }
            }
        }
    }
}

/// Chunks are cut in slices or are smaller than one, and come in an order of their own: every member has the whole in the end.
#[test]
fn parameters_are_gathered_from_the_first_to_the_last() {
    for (dx, dy) in [(1, 1), (2, 1), (1, 3), (2, 2), (5, 1), (3, 4)] {
        let n = dx * dy;
        for (len, slice) in [(n, 1), (7 * n, 2), (64 * n, 100)] {
            let whole: Vec<u64> = (0..len).map(|i| mark(0, i)).collect();
            let of_member = |m: usize| {
                let mut buffer = vec![0; len];
                let chunk = own_chunk(dx, dy, m);
                let own = chunk_range(len, n, &(chunk..chunk + 1));
                buffer[own.clone()].copy_from_slice(&whole[own]);
                buffer
            };
            for schedule in [collective::all_gather, collective::all_gather_direct] {
                let made = members(n, |m| schedule(dx, dy, m));
                let tasks: Vec<Tasks> =
                    made.iter().map(|s| Tasks::new(s, len, slice).in_order(Order::Ascending)).collect();
                for seed in 0..6 {
                    let found = run_tasks(&tasks, (0..n).map(of_member).collect(), plus, None, seed);
                    assert!(found.iter().all(|b| *b == whole), "{dx} x {dy}, {len} in slices of {slice}, seed {seed}");
                }
            }
        }
    }
}

/// What a range waits for is what writes to it, and only that.
#[test]
fn a_range_is_written_when_all_that_writes_to_it_is_done() {
    let tasks = Tasks::new(&collective::all_gather(2, 1, 0), 8, 2).in_order(Order::Ascending);
    let mut run = Run::new(Arc::new(tasks), 0);
    let started: Vec<usize> = std::iter::from_fn(|| run.start_next()).collect();
    assert_eq!(started.len(), 4, "two slices to send, two to receive, none of which waits");
    assert!(run.has_written(&(0..4)), "member 0 has its own chunk");
    let receives: Vec<usize> =
        started.iter().copied().filter(|t| matches!(run.tasks().tasks[*t].action, Action::Recv { .. })).collect();
    run.complete(receives[0]);
    assert!(run.has_written(&(0..6)) && !run.has_written(&(0..7)));
    run.complete(receives[1]);
    assert!(run.has_written(&(0..8)) && !run.is_over(), "what it sends is still on its way");
}

/// Ticks of an all-reduce where every member has one port, out of which goes one slice a tick, and into which comes one: links of both axes
/// take turns. What comes early is kept, as the kernel does.
fn ticks_with_one_port(schedules: &[Schedule], len: usize, slice: usize) -> usize {
    let tasks = schedules.iter().map(|schedule| Arc::new(Tasks::new(schedule, len, slice)));
    let mut runs: Vec<Run> = tasks.map(|tasks| Run::new(tasks, 0)).collect();
    let n = runs.len();
    // By sender and receiver: sends that may go, how many slices are under way and how many have come, receives that wait for them.
    let mut links = vec![vec![(VecDeque::new(), 0_usize, 0_usize, VecDeque::new()); n]; n];
    // Whose turn each port had last.
    let mut last = vec![(0, 0); n];
    let next = |last: usize, may: &dyn Fn(usize) -> bool| (1..=n).map(|i| (last + i) % n).find(|i| may(*i));
    for tick in 0..100 * len {
        for (me, run) in runs.iter_mut().enumerate() {
            while let Some(task) = run.start_next() {
                match run.tasks().tasks[task].action {
                    Action::Send { to } => links[me][to].0.push_back(task),
                    Action::Recv { from, .. } => links[from][me].3.push_back(task),
                    Action::RecvScratch { .. } | Action::Fold { .. } => unreachable!("rings have none"),
                }
            }
        }
        if runs.iter().all(Run::is_over) {
            return tick;
        }
        for me in 0..n {
            if let Some(to) = next(last[me].0, &|to| !links[me][to].0.is_empty()) {
                let task = links[me][to].0.pop_front().expect("it has one");
                runs[me].complete(task);
                (links[me][to].1, last[me].0) = (links[me][to].1 + 1, to);
            }
        }
        for me in 0..n {
            if let Some(from) = next(last[me].1, &|from| links[from][me].1 > 0) {
                let (_, under_way, came, _) = &mut links[from][me];
                (*under_way, *came, last[me].1) = (*under_way - 1, *came + 1, from);
            }
            for from in 0..n {
                let (_, _, came, waits) = &mut links[from][me];
                while *came > 0
                    && let Some(task) = waits.pop_front()
                {
                    *came -= 1;
                    runs[me].complete(task);
                }
            }
        }
    }
    panic!("members wait for ever");
}

/// Where rows and columns share a port it is never idle: a row brings the chunks in the order in which its column wants them.
#[test]
fn a_port_that_both_axes_share_is_always_busy() {
    for (dx, dy) in [(4, 1), (1, 4), (2, 2), (4, 4), (3, 5), (5, 3), (2, 8), (16, 1)] {
        let (n, per_chunk) = (dx * dy, 32);
        let least = 2 * (n - 1) * per_chunk;
        let mut schedules = members(n, |m| collective::all_reduce(dx, dy, m));
        assert_eq!(ticks_with_one_port(&schedules, n * per_chunk, 1), least, "{dx} x {dy}");
        schedules.iter_mut().flat_map(|s| &mut s.steps).for_each(|step| step.first = None);
        let plain = ticks_with_one_port(&schedules, n * per_chunk, 1);
        assert!(dx == 1 || dy == 1 || plain > least + per_chunk, "{dx} x {dy}: the order of the chunks is of no use");
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
