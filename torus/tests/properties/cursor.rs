//! The order of the samples of one source (T-5).

use std::collections::BTreeSet;

use proptest::prelude::*;
use toroid_torus::cursor::{Cursor, NUM_SAMPLES_MAX, Permutation};
use toroid_torus::job::SampleOrder;

#[test]
fn a_permutation_has_every_element_once() {
    for n in (1..=260).chain([1000, 4096, 4097]) {
        for seed in 0..8 {
            let permutation = Permutation::new(n, seed);
            let images: BTreeSet<u64> = (0..n).map(|i| permutation.at(i)).collect();
            assert_eq!(images, (0..n).collect(), "n {n}, seed {seed}");
        }
    }
}

/// Each element is as likely as any other at each position: the chi-squared statistic of its images over many seeds. With n - 1 = 9
/// degrees of freedom 45 is passed by a fair permutation once in a million times; the seeds are fixed.
#[test]
fn a_permutation_prefers_nothing() {
    let (n, num_seeds) = (10, 20_000);
    for position in 0..n {
        let mut counts = vec![0_u32; n as usize];
        (0..num_seeds).for_each(|seed| counts[Permutation::new(n, seed).at(position) as usize] += 1);
        let expected = num_seeds as f64 / n as f64;
        let chi_squared: f64 = counts.iter().map(|c| (f64::from(*c) - expected).powi(2) / expected).sum();
        assert!(chi_squared < 45.0, "position {position}: {counts:?}");
    }
}

proptest! {
    #[test]
    fn a_large_permutation_stays_inside_and_apart(n in 2..=NUM_SAMPLES_MAX, seed: u64, i: u64, distance in 1_u64..1000) {
        let permutation = Permutation::new(n, seed);
        let (a, b) = (i % n, (i % n + distance) % n);
        prop_assert!(permutation.at(a) < n);
        prop_assert_eq!(permutation.at(a) == permutation.at(b), a == b);
    }
}

#[test]
fn a_pass_has_every_sample_once_and_the_next_another_order() {
    let num_samples = 1000;
    let order = |seed: u64| -> Vec<u64> {
        let cursor = Cursor::new(seed, num_samples, SampleOrder::Shuffled);
        (0..3 * num_samples).map(|n| cursor.sample(n)).collect()
    };
    for seed in 0..5 {
        let run = order(seed);
        let passes: Vec<&[u64]> = run.chunks_exact(num_samples as usize).collect();
        for pass in &passes {
            assert_eq!(pass.iter().copied().collect::<BTreeSet<_>>(), (0..num_samples).collect(), "T-5: seed {seed}");
        }
        assert!(passes[0] != passes[1] && passes[1] != passes[2], "seed {seed}");
    }
    assert_ne!(order(0), order(1));
}

#[test]
fn sequential_samples_lie_as_in_the_data() {
    let cursor = Cursor::new(3, 6, SampleOrder::Sequential);
    let run: Vec<u64> = (0..12).map(|n| cursor.sample(n)).collect();
    assert_eq!(run, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]);
}
