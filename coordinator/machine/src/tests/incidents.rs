//! An incident lasts from its being seen to the first step of the epoch that ends it, by the monotonic clock.

use std::time::Duration;

use super::world::{LIMITS, World, job_file};
use crate::Input;
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
        world.now += Duration::from_secs(3600);
        assert!(world.view(&job).goodput > 0.9, "after its end no time counts: goodput {}", world.view(&job).goodput);
    }
}

/// Another machine has another clock. The calendar measures the time from the last record on, and no more: it was set before.
#[test]
fn on_another_machine_the_calendar_counts_only_from_the_last_record_on() {
    let (mut world, job) = running();
    world.calendar_ms += DAY_MS;
    world.train(&job, 5);
    let request = world.request(|request| Input::Checkpoint { request, job: job.clone() });
    assert!(matches!(world.replies.get(&request), Some(Ok(_))));
    world.settle();
    world.boot += 1;
    world.restart(|_| true);
    world.settle();
    world.train(&job, 5);
    world.pass(Duration::from_secs(4));
    let view = world.view(&job);
    assert_eq!(view.committed_step, 15);
    assert!(view.goodput > 0.9, "goodput {}", view.goodput);
}

/// T-12: the last step is committed, and saved by none yet, when rank 1 dies; what rank 0 says of it comes after.
#[test]
fn the_end_of_the_others_work_does_not_end_the_outage() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 6, "fault_tolerance.min_dp = 2"));
    for id in ["a", "b"] {
        world.join(id);
    }
    world.settle();
    world.train(&job, 5);
    world.step(&job);
    let is_shard = |body: &_| matches!(body, toroid_proto::worker_message::Body::ShardWritten(_));
    world.worker("b").outbox.retain(|body| !is_shard(body));
    while world.deliver_from("b") {}
    let total_s = wait_four_seconds(&mut world, &job, |_| {});
    assert!((4.0..5.0).contains(&total_s), "{total_s} s");
    assert_eq!((world.record(&job).state, world.view(&job).lost_steps), (State::Done, 0), "{:?}", world.story);
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
