//! Initial weights: the same bits under any split, and normal.

use toroid_torus::init::{fill_initial, initial_value};
use toroid_torus::model::{Init, ModelConfig};
use toroid_torus::partition::partition;

use crate::partition::elements;
use crate::torus;

#[test]
fn any_split_starts_from_the_bits_of_the_whole() {
    let (model, seed) = (ModelConfig { layers: 3, ..ModelConfig::preset("tiny").expect("a preset") }, 42);
    let whole = partition(&model, &torus(1, 1, 1, 1), 0, 0);
    let mut weights = vec![0.0; whole.len];
    for slice in &whole.slices {
        fill_initial(slice, seed, &mut weights[slice.offset..slice.offset + slice.len]);
        for element in [0, slice.len / 3, slice.len - 1] {
            let expected = initial_value(slice.init, seed, &slice.tensor, element as u64);
            assert_eq!(weights[slice.offset + element].to_bits(), expected.to_bits(), "{}", slice.tensor);
        }
    }
    for shape in [torus(2, 1, 1, 1), torus(4, 3, 2, 1), torus(1, 2, 1, 3)] {
        for (tp, pp) in (0..shape.tp()).flat_map(|tp| (0..shape.pp()).map(move |pp| (tp, pp))) {
            for slice in &partition(&model, &shape, tp, pp).slices {
                let mut part = vec![0.0; slice.len];
                fill_initial(slice, seed, &mut part);
                let of_whole = whole.slice(&slice.tensor).expect("the whole has every tensor").offset;
                for (x, element) in part.iter().zip(elements(&slice.slice, &slice.global_shape)) {
                    assert_eq!(x.to_bits(), weights[of_whole + element].to_bits(), "{} of {shape}", slice.tensor);
                }
            }
        }
    }
}

/// Mean, standard deviation and the share beyond two deviations of `n` values, each within five standard errors.
#[test]
fn values_are_normal() {
    let n = 200_000;
    let std = 0.02;
    for seed in 0..4 {
        let values: Vec<f64> =
            (0..n).map(|i| f64::from(initial_value(Init::Normal(std), seed, "head.weight", i)) / std).collect();
        let root_n = (n as f64).sqrt();
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        let beyond_two = values.iter().filter(|x| x.abs() > 2.0).count() as f64 / n as f64;
        let neighbours = values.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / n as f64;
        assert!(mean.abs() < 5.0 / root_n, "mean {mean}, seed {seed}");
        assert!((variance.sqrt() - 1.0).abs() < 5.0 / (2.0_f64.sqrt() * root_n), "variance {variance}, seed {seed}");
        assert!((beyond_two - 0.0455).abs() < 5.0 * 0.208 / root_n, "beyond two deviations {beyond_two}, seed {seed}");
        assert!(neighbours.abs() < 5.0 / root_n, "correlation of neighbours {neighbours}, seed {seed}");
    }
}

#[test]
fn tensors_and_seeds_have_values_of_their_own() {
    let values = |seed, tensor: &str| -> Vec<f32> {
        (0..1000).map(|i| initial_value(Init::Normal(1.0), seed, tensor, i)).collect()
    };
    let base = values(0, "blocks.0.attn.wq.weight");
    for other in [values(1, "blocks.0.attn.wq.weight"), values(0, "blocks.1.attn.wq.weight")] {
        let product: f32 = base.iter().zip(&other).map(|(a, b)| a * b).sum();
        assert!(product.abs() / 1000.0 < 5.0 / 1000_f32.sqrt(), "correlation {}", product / 1000.0);
    }
    assert!((0..10).all(|i| initial_value(Init::One, 5, "norm.weight", i) == 1.0));
}
