//! Small runs: what must hold whatever is simulated, and formulas that know the answer.

use std::ops::Range;
use std::time::Duration;

use toroid_torus::plan::daly;

use super::account::{Account, Cause};
use super::fleet::{Failure, Kind, Mix};
use super::model::{Model, Scenario, Settings};
use super::{launcher, world};

const HOUR_S: f64 = 3600.0;

fn settings() -> Settings {
    let machine = toroid_torus::plan::Machine {
        flops: 4e14,
        memory_bytes_per_s: 3.35e12,
        tp_bytes_per_s: 4.5e11,
        link_bytes_per_s: 5e10,
        latency_s: 1e-5,
    };
    Settings {
        preset: "67b".into(),
        machine,
        storage_bytes_per_s: 1e9,
        copy_bytes_per_s: 25e9,
        mix: Mix([72.0, 14.0, 2.0, 1.0, 6.0, 5.0]),
        failure_timeout_s: 5.0,
        heartbeat_interval_s: 1.0,
        notice_s: 0.1,
        decide_us: 130.0,
        connect_s: 0.5,
        repair_s: [1800.0, 14_400.0, 7200.0],
        operator_s: 600.0,
        restart_s: 120.0,
        hang_timeout_s: 600.0,
    }
}

/// 64 places on 8 hosts: 8 ways of tensor parallelism, 8 replicas.
fn scenario() -> Scenario {
    Scenario {
        places: 64,
        spares: 16,
        tp: 8,
        pp: 1,
        failure_every_s: HOUR_S,
        interval_s: 600.0,
        second_holder: true,
        days: 1.0,
        seed: 5,
    }
}

fn model(scenario: Scenario, settings: Settings) -> Model {
    Model::new(scenario, settings).expect("a scenario")
}

fn run(scenario: Scenario, settings: Settings) -> Account {
    world::run(model(scenario, settings)).expect("a run")
}

/// What is to happen is named instead of drawn.
fn run_with(scenario: Scenario, failures: &[(f64, Kind, Range<usize>)]) -> Account {
    let failure = |(at_s, kind, workers): &(f64, Kind, Range<usize>)| Failure {
        at: Duration::from_secs_f64(*at_s),
        kind: *kind,
        workers: workers.clone(),
        factor: 2.0,
    };
    world::run_with(model(scenario, settings()), failures.iter().map(failure).collect()).expect("a run")
}

#[test]
fn one_seed_gives_the_same_account_and_another_another() {
    let of = |seed| run(Scenario { seed, failure_every_s: HOUR_S / 2.0, ..scenario() }, settings());
    let found = of(1);
    assert_eq!(found, of(1));
    assert_ne!(found, of(2));
    assert!(found.counts.failures > 20 && found.counts.deaths >= found.counts.failures / 2, "{:?}", found.counts);
    let of = |seed| launcher::run(&model(Scenario { seed, ..scenario() }, settings()));
    assert_eq!(of(1), of(1));
}

#[test]
fn without_failures_only_checkpoints_cost_anything() {
    let settings = Settings { copy_bytes_per_s: 1e9, storage_bytes_per_s: 1e12, ..settings() };
    let scenario = Scenario { failure_every_s: 1e9, ..scenario() };
    let at_hand = model(scenario.clone(), settings.clone());
    let (toroid, launcher) = (run(scenario, settings), launcher::run(&at_hand));
    for found in [&toroid, &launcher] {
        let copies = found.of(Cause::Checkpoint).as_secs_f64();
        assert_eq!(found.of(Cause::Steps) + found.of(Cause::Checkpoint), found.total(), "{found:?}");
        // 143 intervals of ten minutes end within a day, and some of a step each.
        assert!((136..=143).contains(&found.counts.checkpoints), "{found:?}");
        let each = at_hand.copy_aside().as_secs_f64();
        assert!((copies / each - found.counts.checkpoints as f64).abs() < 1.5, "{copies} s of {each} s each");
        assert_eq!((found.counts.lost_steps, found.counts.restores), (0, 0));
    }
}

/// What comes to nobody ends a quiet time, so that every checkpoint is named, written and published.
#[test]
fn a_quiet_time_that_is_skipped_is_as_one_that_is_not() {
    let nobody: Vec<(f64, Kind, Range<usize>)> = (1..288).map(|n| (300.0 * f64::from(n), Kind::Worker, 0..0)).collect();
    let (skipped, made) = (run_with(scenario(), &[]), run_with(scenario(), &nobody));
    let apart = skipped.counts.checkpoints.abs_diff(made.counts.checkpoints);
    assert!(apart <= 1 && made.counts.checkpoints > 100, "{skipped:?} and {made:?}");
    assert!((skipped.goodput() - made.goodput()).abs() < 1e-4, "{skipped:?} and {made:?}");
}

/// Daly's formula for exponential failures: see `toroid_torus::plan`.
#[test]
fn the_launcher_is_what_the_formula_says() {
    const TOLERANCE: f64 = 0.02;
    let settings = Settings {
        mix: Mix::WORKERS,
        storage_bytes_per_s: 1e12,
        copy_bytes_per_s: 1e13,
        repair_s: [600.0; 3],
        ..settings()
    };
    for (failure_every_s, interval_s, num_failures) in [(1200.0, 600.0, 2000.0), (4.0 * HOUR_S, 1800.0, 200.0)] {
        let days = num_failures * failure_every_s / 86_400.0;
        let at_hand = model(Scenario { failure_every_s, interval_s, days, spares: 64, ..scenario() }, settings.clone());
        let restart_s = settings.notice_s + at_hand.launch().as_secs_f64();
        let expected = daly(1.0 / failure_every_s, interval_s, restart_s);
        let found = launcher::run(&at_hand).goodput();
        assert!((found - expected).abs() < TOLERANCE, "{found} and not {expected}");
    }
}

/// The same formula with a step in place of the interval.
#[test]
fn deaths_that_heal_cost_a_recovery_and_a_step() {
    const TOLERANCE: f64 = 0.003;
    let settings = Settings { mix: Mix::WORKERS, repair_s: [600.0; 3], copy_bytes_per_s: 1e13, ..settings() };
    let scenario = Scenario { failure_every_s: 600.0, days: 3.0, ..scenario() };
    let at_hand = model(scenario.clone(), settings.clone());
    let recovery = at_hand.decide(64) + at_hand.heal(true);
    let expected = daly(1.0 / 600.0, at_hand.step.as_secs_f64(), settings.notice_s + recovery.as_secs_f64());
    let found = run(scenario, settings);
    assert!((found.goodput() - expected).abs() < TOLERANCE, "{} and not {expected}", found.goodput());
    assert!(found.counts.deaths > 350 && found.counts.restores <= 2, "{:?}", found.counts);
}

#[test]
fn both_holders_at_once_need_a_checkpoint_and_one_of_them_does_not() {
    // Ranks 0 and 8 are of one DP group, one after the other: they hold the same shards. Workers are placed by name.
    let one = run_with(scenario(), &[(7200.0, Kind::Worker, 0..1)]);
    assert_eq!((one.counts.deaths, one.counts.restores, one.counts.lost_steps), (1, 0, 0), "{one:?}");
    let both = run_with(scenario(), &[(7200.0, Kind::Worker, 0..1), (7200.0, Kind::Worker, 8..9)]);
    assert_eq!((both.counts.deaths, both.counts.restores), (2, 1), "{both:?}");
    let step_s = model(scenario(), settings()).step.as_secs_f64();
    let lost_s = both.counts.lost_steps as f64 * step_s;
    assert!(lost_s > 0.0 && lost_s < 660.0, "{lost_s} s are lost, at most an interval");
    let alone = run_with(Scenario { second_holder: false, ..scenario() }, &[(7200.0, Kind::Worker, 0..1)]);
    assert_eq!((alone.counts.restores, alone.counts.lost_steps > 0), (1, true), "{alone:?}");
}

#[test]
fn what_is_silent_or_hangs_is_detected_and_what_is_slow_is_named_and_moved() {
    let detected = |kind, workers| run_with(scenario(), &[(7200.0, kind, workers)]).of(Cause::Detect).as_secs_f64();
    let silent = detected(Kind::Host, 0..8);
    assert!((4.9..5.1).contains(&silent), "the failure timeout: {silent} s");
    // From the last commit 5 s and four steps, see `Limits::hang`.
    let step_s = model(scenario(), settings()).step.as_secs_f64();
    let hangs = detected(Kind::Hang, 0..1);
    assert!(hangs > 5.0 + 2.0 * step_s && hangs < 11.0 + 4.0 * step_s, "{hangs} s");
    let slow = run_with(scenario(), &[(7200.0, Kind::Slow, 0..1)]);
    let slow_s = slow.of(Cause::Slow).as_secs_f64();
    assert!((300.0..600.0).contains(&slow_s), "half of the time until the operator moved it: {slow_s} s");
    assert_eq!((slow.counts.epochs, slow.counts.restores), (1, 0), "{slow:?}");
}

#[test]
fn without_spares_it_goes_on_with_fewer_replicas_and_grows_again() {
    let found = run_with(Scenario { spares: 0, ..scenario() }, &[(7200.0, Kind::Worker, 0..1)]);
    assert_eq!((found.counts.resizes, found.counts.restores), (2, 0), "{found:?}");
    assert!(found.of(Cause::Fewer) > Duration::ZERO && found.of(Cause::Wait) < Duration::from_secs(15), "{found:?}");
}

#[test]
fn what_cannot_be_is_refused_in_one_sentence() {
    let check = |scenario: Scenario, part: &str| {
        let error = Model::new(scenario, settings()).err().map(|e| format!("{e:#}")).unwrap_or_default();
        assert!(error.contains(part), "{error}");
    };
    check(Scenario { places: 0, ..scenario() }, "expected at least 1 of each");
    check(Scenario { places: 60, ..scenario() }, "do not divide them");
    check(Scenario { spares: 72, ..scenario() }, "72 spares are more than there are places");
    check(Scenario { places: 1 << 18, ..scenario() }, "at most 131072 places");
    check(Scenario { tp: 16, places: 64, pp: 4, ..scenario() }, "cannot simulate 64 places");
}
