//! A law that is known comes back from its runs, and what determines no law is refused.

use super::*;

/// The law that arXiv 2404.10102 finds in the runs of Chinchilla.
const KNOWN: Law = Law {
    irreducible: 1.8172,
    size_coefficient: 482.01,
    size_exponent: 0.3478,
    token_coefficient: 2085.43,
    token_exponent: 0.3658,
};

/// Runs of `law` as a study makes them: budgets, and seven sizes around the best of each. Losses are off by up to `noise`.
fn runs_of(law: &Law, noise: f64) -> Vec<Run> {
    let mut runs = Vec::new();
    for (b, compute) in [6e18, 2e19, 6e19, 2e20, 6e20, 3e21].into_iter().enumerate() {
        let best = law.best_size(compute / 6.0);
        for (s, factor) in [0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0].into_iter().enumerate() {
            let size = factor * best;
            let tokens = compute / (6.0 * size);
            let random = splitmix64((100 * b + s) as u64) as f64 / u64::MAX as f64;
            let loss = law.loss(size, tokens) * (1.0 + noise * (2.0 * random - 1.0));
            runs.push(Run { size, cost: 6.0 * size, tokens, loss, lr: None, batch_tokens: None });
        }
    }
    runs
}

fn assert_near(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((found / expected - 1.0).abs() <= tolerance, "{what}: found {found}, expected {expected}");
}

#[test]
fn a_known_law_is_recovered() {
    let scaling = Scaling::fit(&runs_of(&KNOWN, 0.0), false, 0).unwrap();
    let law = scaling.law;
    assert_near(law.size_exponent, KNOWN.size_exponent, 0.01, "exponent of size");
    assert_near(law.token_exponent, KNOWN.token_exponent, 0.01, "exponent of tokens");
    assert_near(law.irreducible, KNOWN.irreducible, 0.01, "irreducible loss");
    assert!(scaling.num_agreeing > 1, "{} of {} starts agree", scaling.num_agreeing, scaling.num_starts);
    let best = scaling.best_size.unwrap();
    let exponent = KNOWN.token_exponent / (KNOWN.size_exponent + KNOWN.token_exponent);
    assert_near(best.exponent, exponent, 0.02, "exponent of the best size by parabolas");
    let allocation = scaling.allocate(1e23);
    assert_near(allocation.size, KNOWN.best_size(1e23 / 6.0), 0.05, "best size");
    assert!(allocation.beyond > FAR, "{allocation:?}");
}

/// arXiv 2404.10102: averaged over the runs the same objective is so flat that a minimizer with the usual tolerance stops, and reports exponents that do not
/// fit the runs. Summed and followed to the end it does not.
#[test]
fn the_wrong_minimum_of_an_averaged_loss_is_not_taken() {
    let runs = runs_of(&KNOWN, 0.002);
    let fitted = law::fit(&runs).unwrap();
    let wrong = Law {
        irreducible: 1.69,
        size_coefficient: 406.4,
        size_exponent: 0.34,
        token_coefficient: 410.7,
        token_exponent: 0.28,
    };
    let far_off = |law: &Law| {
        runs.iter().map(|r| (law.loss(r.size, r.tokens) / r.loss - 1.0).abs()).sum::<f64>() / runs.len() as f64
    };
    assert!(far_off(&fitted.law) < 0.0015, "the law is off by {}", far_off(&fitted.law));
    assert!(far_off(&wrong) > 5.0 * far_off(&fitted.law));
    // From the wrong one, too, the way leads to the right one.
    let again = law::fit_again(&runs, &wrong).unwrap();
    assert_near(again.token_exponent, fitted.law.token_exponent, 1e-3, "exponent of tokens");
}

#[test]
fn the_largest_budget_is_predicted_by_the_others() {
    let scaling = Scaling::fit(&runs_of(&KNOWN, 0.002), true, 7).unwrap();
    let held_out = scaling.held_out.unwrap();
    assert_eq!(held_out.num_runs, 7);
    assert!(held_out.error() < 0.01 && held_out.mean_error < 0.01, "{held_out:?}");
    assert_eq!(scaling.budgets.len(), 5);
    assert!(scaling.resampled.len() > NUM_RESAMPLES as usize / 2, "{} laws", scaling.resampled.len());
    let prediction = scaling.predict(1e9, 2e10);
    assert!(prediction.low < prediction.high, "{prediction:?}");
    let known = KNOWN.loss(1e9, 2e10);
    assert!(
        (prediction.low * 0.995..=prediction.high * 1.005).contains(&known),
        "{known} is far outside of {prediction:?}"
    );
}

#[test]
fn the_same_runs_in_another_order_give_the_same_laws() {
    let mut runs = runs_of(&KNOWN, 0.002);
    let first = Scaling::fit(&runs, true, 3).unwrap();
    runs.reverse();
    assert_eq!(Scaling::fit(&runs, true, 3).unwrap(), first);
    let again: Scaling = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
    assert_eq!(again, first, "JSON keeps it");
}

#[test]
fn a_parabola_without_a_minimum_inside_is_refused_in_words() {
    let check = |keep: std::ops::Range<usize>, expected: &str| {
        let runs = runs_of(&KNOWN, 0.0);
        let budgets = budgets::by_budget(&runs[keep]);
        let Best::Refused(reason) = &budgets[0].best else { panic!("{:?}", budgets[0].best) };
        assert!(reason.contains(expected), "{reason}");
    };
    check(0..3, "still falls at the largest size that was tried");
    check(4..7, "still falls at the smallest size that was tried");
    check(2..4, "2 sizes were tried; a parabola needs 3");
    check(2..3, "one size was tried");
}

#[test]
fn runs_that_determine_no_law_are_refused() {
    let runs = runs_of(&KNOWN, 0.0);
    assert!(matches!(Scaling::fit(&runs[..7], false, 0), Err(ScalingError::TooFew { num_runs: 7, .. })));
    assert!(matches!(Scaling::fit(&[], true, 0), Err(ScalingError::TooFew { num_runs: 0, .. })));
    // Only the largest budget: held out, it leaves nothing.
    assert!(matches!(Scaling::fit(&runs[35..], true, 0), Err(ScalingError::TooFew { num_runs: 0, .. })));
    for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let mut bad = runs.clone();
        bad[3].loss = value;
        let error = Scaling::fit(&bad, false, 0).unwrap_err().to_string();
        assert!(error.starts_with("run 3 has loss = "), "{error}");
    }
    let mut rising = runs;
    rising.iter_mut().for_each(|r| r.loss = 1.0 + r.size.ln() / 100.0);
    let error = Scaling::fit(&rising, false, 0).unwrap_err().to_string();
    assert!(
        error.contains("does not fall with the size of the model") || error.contains("determine no law"),
        "{error}"
    );
}

#[test]
fn learning_rates_near_the_best_give_their_law() {
    let mut runs = Vec::new();
    for compute in [1e15f64, 1e16, 1e17] {
        let best = 0.3 * compute.powf(-0.125);
        for factor in [0.25f64, 0.5, 1.0, 2.0, 4.0] {
            let loss = 3.0 + 0.1 * factor.ln().powi(2);
            runs.push(Run {
                size: 1e7,
                cost: 6e7,
                tokens: compute / 6e7,
                loss,
                lr: Some(factor * best),
                batch_tokens: Some(4096.0),
            });
        }
    }
    let budgets = budgets::by_budget(&runs);
    let law = budgets::setting_law(&budgets, |r| r.lr).unwrap();
    assert_near(law.exponent, -0.125, 1e-6, "exponent");
    assert_near(law.at(1e18), 0.3 * 1e18f64.powf(-0.125), 1e-6, "learning rate");
    assert_eq!(budgets::setting_law(&budgets, |r| r.batch_tokens), None, "one value says nothing");
}

#[test]
fn operations_of_a_token_are_those_of_the_paper_for_its_models() {
    // A dense model of the paper has 12 d^2 weights a layer; here attention has 4 d^2, and the experts are as wide as gives 8 d^2.
    let (d, layers, seq) = (384.0, 6.0, 1024.0);
    let model = ModelConfig {
        layers: 6,
        d_model: 384,
        heads: 6,
        kv_heads: 6,
        head_dim: 64,
        experts: 2,
        ff: 0,
        seq: 1024,
        vocab: 1000,
        rope_theta: 1e4,
        norm_eps: 1e-6,
        output: Default::default(),
    };
    let attention = layers * (24.0 * d * d + 12.0 * d * seq);
    assert_near(operations_per_token(&model) - 6.0 * layers * 2.0 * d, attention, 1e-12, "attention");
    // 72 n d^2 + 12 n d l, equation 2: with 8 d^2 weights of experts.
    let experts = operations_per_token(&ModelConfig { ff: 256, ..model.clone() }) - operations_per_token(&model);
    assert_near(experts, layers * 6.0 * 3.0 * 3.0 * d * 256.0, 1e-12, "experts");
}
