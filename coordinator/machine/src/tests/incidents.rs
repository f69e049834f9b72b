//! An incident lasts from its being seen to the first step of the epoch that ends it, by the monotonic clock.

use std::time::Duration;

use super::world::{LIMITS, World, job_file};
use crate::record::State;

const DAY_MS: i64 = 86_400_000;

/// Two places and no spare; the job may not have fewer replicas.
fn running() -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 60, "fault_tolerance.min_dp = 2"));
    for id in ["a", "b"] {
        world.join(id);
    }
    world.settle();
    world.train(&job, 5);
    (world, job)
}

/// Rank 1 dies without a spare, and four seconds later another worker comes.
fn wait_four_seconds(world: &mut World, job: &str, meanwhile: impl FnOnce(&mut World)) -> f64 {
    world.kill("b");
    meanwhile(world);
    world.settle();
    assert!(!world.view(job).incidents[0].resolved, "nobody has the place");
    world.pass(Duration::from_secs(4));
    world.join("c");
    world.settle();
    world.train(job, 1);
    let incident = world.view(job).incidents[0].clone();
    assert_eq!((world.view(job).incidents.len(), incident.resolved, incident.rung.as_str()), (1, true, "spare"));
    incident.total_s
}

#[test]
fn t12_a_late_record_of_the_old_epoch_does_not_end_the_outage() {
    let (mut world, job) = running();
    // All have sealed the sixth step, and its record reaches the coordinator after the death of another place.
    world.step(&job);
    let total_s = wait_four_seconds(&mut world, &job, |_| {});
    assert!((4.0..5.0).contains(&total_s), "{total_s} s");
    assert!((4.0..5.0).contains(&world.view(&job).lost_s), "{} s", world.view(&job).lost_s);
}

#[test]
fn a_calendar_that_is_set_while_a_coordinator_is_away_changes_no_figure() {
    for by in [DAY_MS, -DAY_MS] {
        let (mut world, job) = running();
        let restart = |world: &mut World| {
            world.calendar_ms += by;
            world.restart(|_| true);
        };
        let total_s = wait_four_seconds(&mut world, &job, restart);
        assert!((4.0..5.0).contains(&total_s), "{total_s} s where the calendar was set by {by} ms");
        world.pass(LIMITS.heartbeat_interval);
        world.calendar_ms += by;
        let view = world.view(&job);
        assert!((4.0..6.0).contains(&view.lost_s), "{} s lost", view.lost_s);
        // Five seconds of steps in as many seconds: the fake workers take no time for them.
        assert!(view.goodput > 0.9, "goodput {}", view.goodput);
        world.train(&job, 60);
        world.calendar_ms += by;
        assert_eq!(world.record(&job).state, State::Done);
        assert!(world.view(&job).goodput > 0.9, "goodput {}", world.view(&job).goodput);
    }
}

#[test]
fn steps_that_are_made_again_are_measured_over_a_restart() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 60, "fault_tolerance.redundancy = false"));
    for id in ["a", "b", "c"] {
        world.join(id);
    }
    world.settle();
    world.train(&job, 5);
    world.kill("b");
    world.settle();
    world.train(&job, 2);
    assert_eq!(world.view(&job).incidents[0].steps_lost, 5);
    world.pass(Duration::from_secs(3));
    world.calendar_ms += DAY_MS;
    world.restart(|_| true);
    world.settle();
    world.pass(Duration::from_secs(2));
    world.train(&job, 3);
    let redo_s = world.view(&job).incidents[0].redo_s;
    assert!((5.0..6.5).contains(&redo_s), "{redo_s} s");
}
