//! Rounds of all members, one after another, against the schedules that they were made of.

use toroid_torus::collective::{self, Op, Order, Round, Schedule, Step, rounds};
use toroid_torus::cursor::splitmix64;

/// An element's value, and the order in which it was added up.
type Value = String;

fn add(own: &Value, came: &Value) -> Value {
    format!("({own}+{came})")
}

/// Round after round, every member sends what it held before the round. Both ends must agree on all of it.
fn run(members: &[Vec<Round>], mut buffers: Vec<Vec<Value>>) -> Vec<Vec<Value>> {
    let num_rounds = members.iter().map(Vec::len).max().unwrap_or(0);
    let nothing = Round::default();
    for number in 0..num_rounds {
        let round = |me: usize| members[me].get(number).unwrap_or(&nothing);
        let before = buffers.clone();
        let mut num_received = 0;
        for me in 0..members.len() {
            let mut ranges: Vec<_> = round(me).recvs.iter().map(|(piece, _)| piece.range.clone()).collect();
            ranges.extend(round(me).sends.iter().map(|piece| piece.range.clone()));
            ranges.sort_by_key(|r| (r.start, r.end));
            assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "R-3: round {number} of {me}: {ranges:?}");
            for (piece, op) in &round(me).recvs {
                let mut sent = round(piece.member).sends.iter().filter(|s| s.member == me && s.range == piece.range);
                assert!(sent.next().is_some() && sent.next().is_none(), "R-1: round {number}, {me} receives {piece:?}");
                num_received += 1;
                for i in piece.range.clone() {
                    let came = &before[piece.member][i];
                    buffers[me][i] = if *op == Op::Add { add(&before[me][i], came) } else { came.clone() };
                }
            }
        }
        let num_sent: usize = (0..members.len()).map(|me| round(me).sends.len()).sum();
        assert_eq!(num_sent, num_received, "R-1: round {number}");
    }
    buffers
}

fn inputs(n: usize, len: usize) -> Vec<Vec<Value>> {
    (0..n).map(|m| (0..len).map(|i| format!("{m}.{i}")).collect()).collect()
}

fn of(n: usize, schedule: impl Fn(usize) -> Schedule, len: usize, max: usize, order: Order) -> Vec<Vec<Round>> {
    (0..n).map(|m| rounds(&schedule(m), len, max, order)).collect()
}

/// With the copy for the member after along rows and columns.
fn scatter_twice(dx: usize, dy: usize, member: usize) -> Schedule {
    let mut schedule = collective::reduce_scatter(dx, dy, member);
    schedule.steps.extend(collective::pass_on_along_lines(dx, dy, member));
    schedule
}

const TORI: [(usize, usize); 10] = [(1, 1), (2, 1), (1, 2), (3, 1), (1, 3), (2, 2), (3, 2), (2, 3), (4, 3), (1, 5)];

#[test]
fn a_slice_goes_through_the_sums_of_the_schedule_whatever_the_order() {
    for (dx, dy) in TORI {
        let n = dx * dy;
        for (len, max) in [(n, 1), (12 * n, 4), (12 * n, 5), (7 * n, 100)] {
            let whole = run(&of(n, |m| collective::all_reduce(dx, dy, m), len, max, Order::Schedule), inputs(n, len));
            assert!(whole.iter().all(|b| *b == whole[0]), "{dx} x {dy}: all have the same sums");
            let scatter = |order| run(&of(n, |m| scatter_twice(dx, dy, m), len, max, order), inputs(n, len));
            for order in [Order::Schedule, Order::Ascending, Order::Descending] {
                let name = format!("{dx} x {dy}, {len} by {max}, {order:?}");
                let (scattered, per_chunk) = (scatter(order), len / n);
                for m in 0..n {
                    for member in [m, (m + n - 1) % n] {
                        let chunk = (member % dx) * dy + member / dx;
                        let range = chunk * per_chunk..(chunk + 1) * per_chunk;
                        assert_eq!(
                            scattered[m][range.clone()],
                            whole[0][range],
                            "R-2: {name}, {m} has that of {member}"
                        );
                    }
                }
                let gathered = run(&of(n, |m| collective::all_gather(dx, dy, m), len, max, order), scattered);
                assert!(gathered.iter().all(|b| *b == whole[0]), "{name}");
            }
        }
    }
}

/// What may be sent, or used, before the rest is final is what the order says.
#[test]
fn the_end_of_the_buffer_is_first_in_descending_rounds_and_last_in_ascending_ones() {
    let (dx, dy, len) = (2, 2, 64);
    for m in 0..4 {
        let down = rounds(&collective::reduce_scatter(dx, dy, m), len, 4, Order::Descending);
        let lowest: Vec<usize> = down.iter().filter_map(Round::first_element).collect();
        assert!(lowest.is_sorted_by(|a, b| a >= b), "{m}: {lowest:?}");
        let up = rounds(&collective::all_gather(dx, dy, m), len, 4, Order::Ascending);
        let first = up.iter().position(|round| round.first_written().is_some_and(|at| at >= len / 2));
        let last = up.iter().rposition(|round| round.first_written().is_some_and(|at| at < len / 4));
        assert!(last < first, "{m}: the first quarter is there before the second half begins");
    }
}

/// As many rounds as slices and steps: nobody waits for a whole buffer to go round.
#[test]
fn rounds_are_as_many_as_slices_and_steps() {
    for (dx, dy) in TORI.into_iter().filter(|(dx, dy)| dx * dy > 1) {
        let (n, per_chunk) = (dx * dy, 8);
        let schedule = collective::reduce_scatter(dx, dy, 0);
        let found = rounds(&schedule, n * per_chunk * 10, 10, Order::Descending).len();
        assert!(found < n * per_chunk + schedule.steps.len(), "{dx} x {dy}: {found}");
        assert_eq!(rounds(&schedule, n * 80, 10, Order::Schedule).len(), schedule.steps.len(), "whole steps");
    }
}

/// The test sees a member that cuts otherwise.
#[test]
#[should_panic(expected = "R-1")]
fn members_that_do_not_agree_are_seen() {
    let mut members = of(4, |m| collective::all_reduce(4, 1, m), 64, 4, Order::Descending);
    members[splitmix64(7) as usize % 4] =
        rounds(&collective::all_reduce(4, 1, splitmix64(7) as usize % 4), 64, 4, Order::Ascending);
    run(&members, inputs(4, 64));
}

#[test]
fn passing_on_along_lines_is_two_steps() {
    assert_eq!(collective::pass_on_along_lines(1, 1, 0), [Step::default(), Step::default()]);
    let show = |m| collective::pass_on_along_lines(2, 2, m).map(|step| step.to_string());
    assert_eq!(show(0), ["send 0..1 to 1, copy 2..3 from 1", "send 2..3 to 2, copy 3..4 from 2"]);
    assert_eq!(show(3), ["send 3..4 to 2, copy 1..2 from 2", ""]);
}
