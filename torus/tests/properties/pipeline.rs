//! All stages' schedules run against each other: every order is possible, none deadlocks, and times are the papers' closed formulas.

use std::collections::BTreeMap;

use toroid_torus::pipeline::{Action, Costs, Pass, Pipeline, Schedule, Timeline, simulate};

const UNIT: Costs = Costs { forward: 1.0, backward_input: 1.0, backward_weight: 1.0 };

fn schedules() -> impl Iterator<Item = Schedule> {
    let interleaved = (2..=4).map(|chunks| Schedule::Interleaved { chunks });
    [Schedule::OneFOneB, Schedule::ZeroBubble].into_iter().chain(interleaved)
}

/// Whole stages cost `costs`; a chunk has its part of that.
fn run(schedule: Schedule, num_stages: usize, m: usize, costs: Costs) -> Option<Timeline> {
    let v = schedule.num_chunks() as f64;
    let Costs { forward, backward_input, backward_weight } = costs;
    let part = Costs { forward: forward / v, backward_input: backward_input / v, backward_weight: backward_weight / v };
    simulate(&schedule.stages(num_stages, m), &vec![part; num_stages * schedule.num_chunks()], 0.0)
}

fn check(schedule: Schedule, num_stages: usize, m: usize) {
    let stages = schedule.stages(num_stages, m);
    for (s, stage) in stages.iter().enumerate() {
        let name = || format!("{schedule}, stage {s} of {num_stages}, {m} micro-batches: {stage}");
        check_order(schedule, stage, m, &name);
        assert!(stage.max_in_flight() <= schedule.in_flight_max(s, num_stages, m), "L-4: {}", name());
        assert_eq!(stage.to_string().parse(), Ok(stage.clone()), "{}", name());
    }
    let name = format!("{schedule}, {num_stages} stages, {m} micro-batches");
    let capacity = if schedule.num_chunks() == 1 || m.is_multiple_of(num_stages) { 1 } else { num_stages };
    assert!(ends_with_links_of(capacity, &stages, schedule.num_chunks()), "L-3: {name}");

    let timeline = run(schedule, num_stages, m, UNIT).unwrap_or_else(|| panic!("L-3: {name}"));
    let expected = 3.0 * m as f64 + schedule.bubble(num_stages, UNIT);
    let is_exact = match schedule {
        Schedule::OneFOneB => true,
        Schedule::ZeroBubble => m >= num_stages,
        Schedule::Interleaved { .. } => m.is_multiple_of(num_stages),
    };
    let plain = 3.0 * m as f64 + Schedule::OneFOneB.bubble(num_stages, UNIT);
    assert!(timeline.makespan <= plain + 1e-9, "{name}: {}, and 1F1B has {plain}", timeline.makespan);
    if is_exact {
        assert!((timeline.makespan - expected).abs() < 1e-9, "L-5: {name}: {} and not {expected}", timeline.makespan);
        let share = schedule.bubble(num_stages, UNIT) / expected;
        assert!((timeline.bubble() - share).abs() < 1e-9, "L-5: {name}: {} and not {share}", timeline.bubble());
    }
}

fn check_order(schedule: Schedule, stage: &Pipeline, m: usize, name: &dyn Fn() -> String) {
    let passes: &[Pass] = match schedule {
        Schedule::ZeroBubble => &[Pass::Forward, Pass::BackwardInput, Pass::BackwardWeight],
        _ => &[Pass::Forward, Pass::Backward],
    };
    let positions: BTreeMap<Action, usize> =
        stage.actions().iter().enumerate().map(|(at, action)| (*action, at)).collect();
    let num_actions = passes.len() * m * schedule.num_chunks();
    assert_eq!((positions.len(), stage.actions().len()), (num_actions, num_actions), "L-1: {}", name());
    for chunk in 0..schedule.num_chunks() {
        let mut before = None;
        for micro_batch in 0..m {
            let at: Vec<Option<&usize>> =
                passes.iter().map(|pass| positions.get(&Action { pass: *pass, micro_batch, chunk })).collect();
            assert!(at.iter().all(Option::is_some) && at.is_sorted(), "L-1: {}", name());
            assert!(before < at[passes.len() - 1], "L-2: {}", name());
            before = at[passes.len() - 1];
        }
    }
}

/// What a stage waits to send: to whom, whether forward, the virtual stage that sends it with the micro-batch.
type Unsent = (usize, bool, (usize, usize));

/// Whether all stages come to their end where a link keeps `capacity` messages a direction that the receiver has not asked for yet, a
/// sender waits before one more, and messages come out in the order in which they went in (L-3).
fn ends_with_links_of(capacity: usize, stages: &[Pipeline], chunks: usize) -> bool {
    let num_stages = stages.len();
    let last = num_stages * chunks - 1;
    // By receiving stage and direction: what is under way, the virtual stage that sent it with the micro-batch.
    let mut links: BTreeMap<(usize, bool), Vec<(usize, usize)>> = BTreeMap::new();
    let mut next = vec![0; num_stages];
    let mut unsent: Vec<Option<Unsent>> = vec![None; num_stages];
    loop {
        let mut moved = false;
        for (s, stage) in stages.iter().enumerate() {
            loop {
                if let Some((to, is_forward, message)) = unsent[s] {
                    let link = links.entry((to, is_forward)).or_default();
                    if link.len() >= capacity && to != s {
                        break;
                    }
                    link.push(message);
                    unsent[s] = None;
                }
                let Some(action) = stage.actions().get(next[s]) else { break };
                let virtual_stage = action.chunk * num_stages + s;
                let is_forward = action.pass == Pass::Forward;
                let (from, to) = match action.pass {
                    Pass::Forward => (virtual_stage.checked_sub(1), Some(virtual_stage + 1).filter(|to| *to <= last)),
                    Pass::Backward | Pass::BackwardInput => {
                        (Some(virtual_stage + 1).filter(|from| *from <= last), virtual_stage.checked_sub(1))
                    }
                    Pass::BackwardWeight => (None, None),
                };
                if let Some(from) = from {
                    let link = links.entry((s, is_forward)).or_default();
                    // A stage that is its own neighbour finds its own results without a link.
                    let wanted = (from, action.micro_batch);
                    let found = if num_stages == 1 { link.iter().position(|m| *m == wanted) } else { Some(0) };
                    match found.filter(|at| *at < link.len()) {
                        Some(at) => assert_eq!(link.remove(at), wanted, "L-3: a message overtakes another"),
                        None => break,
                    }
                }
                unsent[s] = to.map(|to| (to % num_stages, is_forward, (virtual_stage, action.micro_batch)));
                next[s] += 1;
                moved = true;
            }
        }
        if !moved {
            return stages.iter().zip(&next).all(|(stage, next)| stage.actions().len() == *next)
                && unsent.iter().all(Option::is_none);
        }
    }
}

#[test]
fn every_pipeline_keeps_the_invariants() {
    let of_pipelines = |num_stages| (1..=64).for_each(|m| schedules().for_each(|s| check(s, num_stages, m)));
    std::thread::scope(|scope| {
        (1..=16).for_each(|num_stages| drop(scope.spawn(move || of_pipelines(num_stages))));
    });
}

/// L-5 for other costs than equal ones.
#[test]
fn bubbles_are_those_of_the_papers_for_any_costs() {
    let lengths = [1.0, 2.0, 3.0];
    for forward in lengths {
        for backward_input in lengths {
            for backward_weight in lengths {
                let costs = Costs { forward, backward_input, backward_weight };
                for (num_stages, m) in [(2, 2), (3, 9), (4, 8), (8, 8), (8, 24)] {
                    for schedule in schedules() {
                        let found = run(schedule, num_stages, m, costs).expect("no deadlock").makespan;
                        let expected = m as f64 * costs.total() + schedule.bubble(num_stages, costs);
                        let name = format!("{schedule}, {num_stages} stages, {m} micro-batches, {costs:?}");
                        assert!((found - expected).abs() < 1e-9, "{name}: {found} and not {expected}");
                    }
                }
            }
        }
    }
}

/// A transfer costs every hop of the first micro-batch's way and of the last one's way back, while links are faster than stages.
#[test]
fn transfers_lengthen_the_way_there_and_back() {
    let found = simulate(&Schedule::OneFOneB.stages(4, 1), &[UNIT; 4], 0.25).expect("no deadlock").makespan;
    assert_eq!(found, 12.0 + 6.0 * 0.25);
}

#[test]
fn a_deadlock_would_be_seen() {
    let pair = |texts: [&str; 2]| texts.map(|text| text.parse::<Pipeline>().expect("a pipeline"));
    let other_order = pair(["F0 F1 B0 B1", "F0 B0 F1 B1"]);
    assert!(simulate(&other_order, &[UNIT; 2], 0.0).is_some(), "another order is no deadlock");
    let stuck = pair(["F0 B0 F1 B1", "F0 F1 B0 B1"]);
    assert_eq!(simulate(&stuck, &[UNIT; 2], 0.0), None, "stage 0 waits for B0, stage 1 for F1");
    assert!(!ends_with_links_of(9, &stuck, 1));
    let all_first = pair(["F0 F1 F2 F3 B0 B1 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]);
    assert!(!ends_with_links_of(1, &all_first, 1), "stage 0 waits to send F3, stage 1 to send B1");
    assert!(ends_with_links_of(2, &all_first, 1));
}

#[test]
fn three_stages_as_in_the_module_docs() {
    let one = Costs { forward: 1.0, backward_input: 0.5, backward_weight: 0.5 };
    let line = |schedule: Schedule, costs, s: usize| {
        let timeline = run(schedule, 3, 4, costs).expect("no deadlock");
        let spans = &timeline.stages[s];
        let last = spans[spans.len() - 1].start as usize;
        let at = |t| spans.iter().find(|span| span.start == t as f64).map(|span| span.action.to_string());
        (0..=last).map(|t| at(t).unwrap_or_else(|| "--".into())).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line(Schedule::OneFOneB, one, 0), "F0 F1 F2 -- -- B0 F3 B1 -- B2 -- B3");
    assert_eq!(line(Schedule::OneFOneB, one, 1), "-- F0 F1 -- B0 F2 B1 F3 B2 -- B3");
    assert_eq!(line(Schedule::OneFOneB, one, 2), "-- -- F0 B0 F1 B1 F2 B2 F3 B3");
    assert_eq!(line(Schedule::ZeroBubble, UNIT, 0), "F0 F1 F2 -- -- I0 W0 F3 I1 W1 I2 W2 I3 W3");
}
