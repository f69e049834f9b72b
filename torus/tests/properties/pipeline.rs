//! All stages' schedules run against each other.

use std::collections::BTreeMap;

use toroid_torus::pipeline::{Action, Pipeline, bubble, max_in_flight, one_f_one_b};

/// When each action of each stage starts, all of length 1, and the time when the last one ends; `None` where the stages deadlock.
///
/// Stages with one order of actions, waiting receives and buffered sends are a Kahn network: whether it stops depends on no timing, so
/// that one order of execution speaks for all.
fn timeline(stages: &[Pipeline]) -> Option<(Vec<Vec<usize>>, usize)> {
    let mut ends: BTreeMap<(usize, String), usize> = BTreeMap::new();
    let mut starts: Vec<Vec<usize>> = vec![Vec::new(); stages.len()];
    let mut clocks = vec![0; stages.len()];
    loop {
        let mut moved = false;
        for (s, stage) in stages.iter().enumerate() {
            while let Some(action) = stage.actions().get(starts[s].len()) {
                let needs = match action {
                    Action::Forward(_) => s.checked_sub(1),
                    Action::Backward(_) => Some(s + 1).filter(|next| *next < stages.len()),
                };
                let arrived = match needs {
                    None => 0,
                    Some(from) => match ends.get(&(from, action.to_string())) {
                        Some(end) => *end,
                        None => break,
                    },
                };
                let start = arrived.max(clocks[s]);
                clocks[s] = start + 1;
                ends.insert((s, action.to_string()), start + 1);
                starts[s].push(start);
                moved = true;
            }
        }
        if !moved {
            let done = stages.iter().zip(&starts).all(|(stage, starts)| stage.actions().len() == starts.len());
            return done.then(|| (starts, clocks.into_iter().max().unwrap_or(0)));
        }
    }
}

fn check(num_stages: usize, m: usize) {
    let stages: Vec<Pipeline> = (0..num_stages).map(|s| one_f_one_b(s, num_stages, m)).collect();
    for (s, stage) in stages.iter().enumerate() {
        let name = format!("stage {s} of {num_stages}, {m} micro-batches: {stage}");
        let position = |action| stage.actions().iter().position(|a| *a == action);
        assert_eq!(stage.actions().len(), 2 * m, "L-1: {name}");
        for i in 0..m {
            let (forward, backward) = (position(Action::Forward(i)), position(Action::Backward(i)));
            assert!(forward.is_some() && forward < backward, "L-1: {name}");
            assert!(i == 0 || position(Action::Backward(i - 1)) < backward, "L-2: {name}");
        }
        assert!(max_in_flight(stage) <= m.min(num_stages - s), "L-4: {name}");
        assert_eq!(stage.to_string().parse(), Ok(stage.clone()), "{name}");
    }
    let (_, end) = timeline(&stages).unwrap_or_else(|| panic!("L-3: {num_stages} stages, {m} micro-batches"));
    assert_eq!(end, 2 * (m + num_stages - 1), "{num_stages} stages, {m} micro-batches");
    let idle = 1.0 - (2 * m) as f64 / end as f64;
    assert!((idle - bubble(num_stages, m)).abs() < 1e-12, "L-5: {num_stages} stages, {m} micro-batches: {idle}");
}

#[test]
fn every_pipeline_keeps_the_invariants() {
    for num_stages in 1..=16 {
        (1..=24).for_each(|m| check(num_stages, m));
    }
}

#[test]
fn a_deadlock_would_be_seen() {
    let stages = ["F0 F1 B0 B1", "F1 B1 F0 B0"].map(|s| s.parse().expect("a pipeline"));
    assert!(timeline(&stages).is_some(), "another order is no deadlock");
    let stages = ["F0 B0 F1 B1", "F0 F1 B0 B1"].map(|s| s.parse().expect("a pipeline"));
    assert_eq!(timeline(&stages), None, "stage 0 waits for B0, stage 1 for F1");
}

#[test]
fn three_stages_as_in_the_module_docs() {
    let stages: Vec<Pipeline> = (0..3).map(|s| one_f_one_b(s, 3, 4)).collect();
    let (starts, _) = timeline(&stages).expect("no deadlock");
    let line = |s: usize| {
        let last = starts[s][7];
        let at = |t| starts[s].iter().position(|start| *start == t).map(|i| stages[s].actions()[i].to_string());
        (0..=last).map(|t| at(t).unwrap_or_else(|| "--".into())).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line(0), "F0 F1 F2 -- -- B0 F3 B1 -- B2 -- B3");
    assert_eq!(line(1), "-- F0 F1 -- B0 F2 B1 F3 B2 -- B3");
    assert_eq!(line(2), "-- -- F0 B0 F1 B1 F2 B2 F3 B3");
}
