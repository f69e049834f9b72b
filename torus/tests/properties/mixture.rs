//! The ledger of samples over several sources (T-5).

use std::collections::BTreeMap;

use proptest::prelude::*;
use toroid_torus::cursor::Cursor;
use toroid_torus::job::{BatchConfig, SampleOrder};
use toroid_torus::mixture::{Drawn, Mixture, Part, WHOLE, shares};

/// Sources with any weights; of each pass a few samples, so that passes end within short runs.
fn parts(with_limits: bool) -> impl Strategy<Value = Vec<Part>> {
    let part = (1_u64..50, -6_i32..=6, 1.0_f64..10.0, proptest::option::of(1_u64..300));
    proptest::collection::vec(part, 1..12).prop_map(move |found| {
        let weights: Vec<f64> = found.iter().map(|(_, exponent, weight, _)| weight * 4_f64.powi(*exponent)).collect();
        let part = |((num_samples, .., num_max), share): (&(u64, i32, f64, Option<u64>), u64)| Part {
            num_samples: *num_samples,
            share,
            num_max: num_max.filter(|_| with_limits),
        };
        found.iter().zip(shares(&weights)).map(part).collect()
    })
}

/// The samples of `step`, replica by replica of `dp`.
fn samples_of_step(mixture: &Mixture, batch: &BatchConfig, step: u64, dp: usize) -> Vec<Drawn> {
    let indices = (0..dp).flat_map(|dp_rank| batch.of_replica(dp, dp_rank));
    indices.flat_map(|index| mixture.micro_batch(step, batch, index)).collect()
}

proptest! {
    /// Of every prefix each source has its share, to two samples at most.
    #[test]
    fn no_source_is_more_than_two_samples_off_its_share(parts in parts(false), start in 0_u64..1 << 50, seed: u64) {
        let mixture = Mixture::new(seed, SampleOrder::Shuffled, &parts);
        for n in (0..300).chain(start..start + 300) {
            let given = mixture.given(n);
            prop_assert_eq!(given.iter().sum::<u64>(), n);
            for (part, given) in parts.iter().zip(given) {
                // Exactly: |given - n * share / WHOLE| <= 2.
                let off = i128::from(given) * i128::from(WHOLE) - i128::from(n) * i128::from(part.share);
                prop_assert!(off.abs() <= 2 * i128::from(WHOLE), "sample {}: {:?}, {} given", n, part, given);
            }
        }
    }

    /// What is drawn one by one is what is said of any prefix; each source is passed over in the order of its own cursor, every sample once
    /// before any comes again, and none gives more than it may.
    #[test]
    fn each_source_is_passed_over_in_its_own_order(parts in parts(true), seed: u64) {
        let mixture = Mixture::new(seed, SampleOrder::Shuffled, &parts);
        let mut of_sources: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        let num = mixture.end().unwrap_or(2000).min(2000);
        for n in 0..num {
            let given: Vec<u64> = (0..parts.len()).map(|s| of_sources.get(&s).map_or(0, Vec::len) as u64).collect();
            prop_assert_eq!(mixture.given(n), given);
            let Drawn { source, sample } = mixture.sample(n);
            of_sources.entry(source).or_default().push(sample);
        }
        for (source, samples) in &of_sources {
            let part = parts[*source];
            prop_assert!(part.num_max.is_none_or(|max| samples.len() as u64 <= max));
            for pass in samples.chunks(part.num_samples as usize) {
                let mut sorted = pass.to_vec();
                sorted.sort_unstable();
                sorted.dedup();
                prop_assert_eq!(sorted.len(), pass.len(), "T-5: a sample comes twice in a pass of source {}", source);
                prop_assert!(pass.len() < part.num_samples as usize || sorted.last() == Some(&(part.num_samples - 1)));
            }
        }
        for (n, source) in mixture.ends() {
            prop_assert_eq!(Some(mixture.given(n)[source]), parts[source].num_max);
            prop_assert!(n >= num || (n..num).all(|n| mixture.sample(n).source != source));
        }
        if let Some(end) = mixture.end() {
            prop_assert_eq!(end, parts.iter().filter_map(|part| part.num_max).sum::<u64>());
        }
    }

    /// T-5: who computes what is no matter.
    #[test]
    fn the_samples_of_a_step_are_the_same_for_every_dp(parts in parts(false), step in 0_u64..1 << 40, seed: u64) {
        let batch = BatchConfig { micro_batch: 3, num_micro_batches: 12 };
        let mixture = Mixture::new(seed, SampleOrder::Shuffled, &parts);
        let expected = samples_of_step(&mixture, &batch, step, 1);
        prop_assert_eq!(expected.len(), 36);
        for dp in 2..=12 {
            prop_assert_eq!(&samples_of_step(&mixture, &batch, step, dp), &expected, "dp {}", dp);
        }
    }
}

/// Also a checkpoint of before there were mixtures goes on in its order.
#[test]
fn one_source_has_the_order_of_its_cursor() {
    let batch = BatchConfig { micro_batch: 3, num_micro_batches: 12 };
    for order in [SampleOrder::Shuffled, SampleOrder::Sequential] {
        let alone = Mixture::new(7, order, &[Part { num_samples: 1000, share: WHOLE, num_max: None }]);
        let cursor = Cursor::new(7, 1000, order);
        for step in [0, 1, 27, 28, 1000, 1 << 50] {
            let expected: Vec<u64> = (step * 36..(step + 1) * 36).map(|n| cursor.sample(n)).collect();
            let found: Vec<u64> = samples_of_step(&alone, &batch, step, 4).iter().map(|drawn| drawn.sample).collect();
            assert_eq!(found, expected, "step {step}");
        }
    }
}
