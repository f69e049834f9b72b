//! Silent corruption: a bit is flipped in one place, and the place that is replaced is that one; the curve does not know of it (T-4).

use std::collections::BTreeSet;

use super::heal::{Cluster, spec};

use crate::trainer::failpoint::{Action, Failpoint};

const PARTS: [&str; 8] = [
    "own.param",
    "own.exp_avg",
    "own.exp_avg_sq",
    "own.grads",
    "copy.param",
    "copy.exp_avg",
    "copy.exp_avg_sq",
    "copy.grads",
];

fn flip(part: &str, step: u64) -> Failpoint {
    Failpoint { action: Action::Flip, point: part.into(), step }
}

/// Runs until somebody says that copies differ.
fn until_corrupt(cluster: &mut Cluster<'_>) -> (BTreeSet<usize>, String) {
    while cluster.corrupt.is_none() {
        cluster.next();
    }
    cluster.corrupt.take().expect("just seen")
}

#[test]
fn t4_of_two_copies_that_differ_the_wrong_one_is_replaced_and_the_curve_goes_on() {
    for shape in [(1, 1, 4), (2, 1, 2), (2, 2, 1)] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let text = dir.path().join("text.txt");
        std::fs::write(&text, include_str!("replay.rs")).expect("write the text");
        let spec = spec(shape, &text);
        let undisturbed = Cluster::start(&spec, dir.path()).finish();
        for (i, part) in PARTS.into_iter().enumerate() {
            let (rank, step) = (i % spec.shape.world(), 2 + i as u64 % 3);
            let mut cluster = Cluster::start_with_flip(&spec, dir.path(), Some((rank, flip(part, step))));
            let (wrong, words) = until_corrupt(&mut cluster);
            assert_eq!(wrong, BTreeSet::from([rank]), "{shape:?} {part} of rank {rank}: {words}");
            assert!(words.contains(&format!("after step {step}")), "{words}");
            cluster.replace(&wrong);
            assert_eq!(cluster.finish(), undisturbed, "{shape:?} {part} of rank {rank}");
        }
    }
}

/// Where the inputs of the step are not kept nobody is named, and the state of all is given up.
#[test]
fn without_replay_nobody_is_named() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = dir.path().join("text.txt");
    std::fs::write(&text, include_str!("replay.rs")).expect("write the text");
    let mut spec = spec((1, 1, 4), &text);
    spec.fault_tolerance.replay = false;
    let mut cluster = Cluster::start_with_flip(&spec, dir.path(), Some((1, flip("own.exp_avg", 3))));
    let (wrong, words) = until_corrupt(&mut cluster);
    assert!(wrong.is_empty() && words.contains("cannot be told: neither rank 1 nor rank 2 can replay it"), "{words}");
}
