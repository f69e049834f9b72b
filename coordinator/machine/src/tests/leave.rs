//! SIGTERM to workers whose places nobody can take: the state is saved before they go.

use std::time::Duration;

use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;

use super::world::{LIMITS, POLICY, World, job_file};
use crate::record::State;
use crate::{Input, Reply};

/// A job of `dp` places that has committed 4 steps, and saved none.
fn running(dp: usize, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(dp, 40, more));
    ["a", "b", "c", "d"].iter().take(dp).for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 4);
    (world, job)
}

fn leave(world: &mut World, ids: &[&str]) {
    for id in ids {
        let leaving = proto::Leaving { reason: "SIGTERM".into(), at_once: false };
        world.worker(id).outbox.push_back(FromWorker::Leaving(leaving));
        while world.deliver_from(id) {}
    }
}

/// It stands by with all of its steps, and goes on from there with others to its end.
fn check_goes_on(world: &mut World, job: &str, dp: usize) {
    let record = world.record(job);
    let step = record.last_checkpoint().map_or(0, |c| c.step.get());
    assert_eq!((record.state, world.curves[job].len() as u64), (State::Queued, step), "{:?}", world.story);
    assert!(world.has_event(job, "job.queued", &format!("the state of step {step} is saved")), "{:?}", world.story);
    assert!(record.reason.contains(&format!("go on from the checkpoint of step {step}")), "{}", record.reason);
    let gone: Vec<String> = world.workers.keys().cloned().collect();
    assert!(world.workers.values().all(|w| w.work.is_none()), "all are told to stop");
    gone.iter().for_each(|id| world.kill(id));
    world.settle();
    assert_eq!(world.record(job).state, State::Queued);
    ["e", "f", "g", "h"].iter().take(dp).for_each(|id| world.join(id));
    world.settle();
    assert_eq!(world.record(job).restore_step.get(), step);
    world.train(job, 40);
    let view = world.view(job);
    assert_eq!((view.state(), view.lost_steps, world.curves[job].len()), (proto::JobState::Done, 0, 40));
    assert!(view.incidents.iter().all(|i| i.resolved && i.steps_lost == 0), "{:#?}", view.incidents);
    assert!(view.incidents.iter().any(|i| i.cause.contains("nobody can take the places")), "{:#?}", view.incidents);
}

#[test]
fn all_leave_and_the_next_step_is_saved_before_they_do() {
    let (mut world, job) = running(2, "");
    leave(&mut world, &["a", "b"]);
    world.train(&job, 5);
    assert_eq!(world.curves[&job].len(), 5, "no step beyond it: {:?}", world.story);
    check_goes_on(&mut world, &job, 2);
}

#[test]
fn the_only_copy_leaves() {
    let (mut world, job) = running(2, "fault_tolerance.redundancy = false");
    leave(&mut world, &["b"]);
    world.train(&job, 5);
    let record = world.record(&job);
    assert_eq!((record.state, record.last_checkpoint().map(|c| c.step.get())), (State::Recovering, Some(5)));
    assert_eq!(record.places[0].as_deref(), Some("a"), "who stays keeps its place");
    world.join("e");
    world.settle();
    world.train(&job, 40);
    assert_eq!((world.record(&job).state, world.view(&job).lost_steps), (State::Done, 0), "{:?}", world.story);
    let (mut world, job) = running(1, "");
    leave(&mut world, &["a"]);
    world.train(&job, 5);
    check_goes_on(&mut world, &job, 1);
}

#[test]
fn both_holders_of_a_shard_leave_and_the_others_stay() {
    let (mut world, job) = running(4, "fault_tolerance.min_dp = 4");
    leave(&mut world, &["b", "c"]);
    world.train(&job, 5);
    let record = world.record(&job);
    assert_eq!((record.state, record.last_checkpoint().map(|c| c.step.get())), (State::Recovering, Some(5)));
    assert_eq!(*record.places, [Some("a".into()), None, None, Some("d".into())]);
    ["e", "f"].iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 40);
    assert_eq!((world.record(&job).state, world.view(&job).lost_steps), (State::Done, 0), "{:?}", world.story);
}

#[test]
fn one_of_many_leaves_and_training_goes_on() {
    let (mut world, job) = running(4, "");
    leave(&mut world, &["b"]);
    world.train(&job, 6);
    let record = world.record(&job);
    assert_eq!((record.state, world.curves[&job].len()), (State::Running, 10));
    assert_eq!(record.checkpoints.len(), 1, "what it holds is saved beside the training");
}

#[test]
fn who_is_beyond_the_step_already_is_followed() {
    let (mut world, job) = running(2, "");
    leave(&mut world, &["a", "b"]);
    // Nobody hears of it before that step is over.
    world.step(&job);
    world.step(&job);
    world.settle();
    assert!(
        world.has_event(&job, "checkpoint.late", "had committed step 6 before it heard of it"),
        "{:?}",
        world.story
    );
    world.train(&job, 9);
    check_goes_on(&mut world, &job, 2);
}

#[test]
fn a_step_that_could_not_be_saved_is_tried_again() {
    let (mut world, job) = running(2, "");
    world.worker("b").write_error = Some("disk full".into());
    leave(&mut world, &["a", "b"]);
    world.train(&job, 3);
    assert!(world.has_event(&job, "checkpoint.failed", "step 5: b (rank 1) could not write its shard: disk full"));
    world.pass(Duration::from_secs(5));
    assert_eq!((world.record(&job).state, world.curves[&job].len()), (State::Running, 5));
    // However long it takes: who halts does not hang.
    world.pass(3 * LIMITS.checkpoint());
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get(), world.curves[&job].len()), (State::Running, 1, 5));
    assert!(!world.has_event(&job, "worker.lost", ""), "{:?}", world.record(&job).events);
    world.worker("b").write_error = None;
    world.pass(Duration::from_secs(2));
    check_goes_on(&mut world, &job, 2);
}

/// Found by the simulation (seed 1899): the next coordinator did not know that the workers halt, and nobody told them to go on.
#[test]
fn a_step_that_could_not_be_saved_is_tried_again_after_a_restart_of_the_coordinator() {
    let (mut world, job) = running(2, "");
    world.worker("b").write_error = Some("disk full".into());
    leave(&mut world, &["a", "b"]);
    world.train(&job, 3);
    assert!(world.has_event(&job, "checkpoint.failed", "step 5"), "{:?}", world.record(&job).events);
    let record = world.record(&job);
    assert!(record.pending.keys().all(|step| step.get() != 5) && record.halt.is_some_and(|step| step.get() == 5));
    world.worker("b").write_error = None;
    world.restart(|_| true);
    world.settle();
    world.pass(Duration::from_secs(2));
    let saved = world.record(&job).last_checkpoint().map(|c| c.step.get());
    assert_eq!((saved, world.curves[&job].len()), (Some(5), 5), "they halt where they were told to");
    check_goes_on(&mut world, &job, 2);
}

#[test]
fn it_goes_on_after_a_restart_of_the_coordinator() {
    for come_first in [false, true] {
        let (mut world, job) = running(2, "");
        leave(&mut world, &["a", "b"]);
        if come_first {
            world.step(&job);
        }
        world.restart(|_| true);
        world.settle();
        world.train(&job, 5);
        let saved = world.record(&job).last_checkpoint().map(|c| c.step.get());
        assert_eq!(saved, Some(5), "they halt where they were told to: {:?}", world.story);
        check_goes_on(&mut world, &job, 2);
    }
}

/// Its rollouts go with the workers: they end when the steps that are made of them are.
#[test]
fn workers_of_a_policy_leave_at_the_end_of_an_iteration() {
    for restarts in [false, true] {
        let (mut world, job) = running(2, POLICY);
        leave(&mut world, &["a", "b"]);
        assert!(
            world.has_event(&job, "job.halting", "step 8 is saved and no step is made beyond it"),
            "{:?}",
            world.story
        );
        world.train(&job, 2);
        if restarts {
            world.restart(|_| true);
            world.settle();
        }
        assert_eq!((world.record(&job).state, world.curves[&job].len()), (State::Running, 6), "{:?}", world.story);
        world.train(&job, 9);
        let saved = world.record(&job).last_checkpoint().map(|c| c.step.get());
        assert_eq!((saved, world.curves[&job].len()), (Some(8), 8), "{:?}", world.story);
        check_goes_on(&mut world, &job, 2);
    }
}

#[test]
fn workers_of_a_policy_that_were_beyond_the_end_of_an_iteration_leave_at_the_next() {
    let (mut world, job) = running(2, POLICY);
    world.train(&job, 3);
    leave(&mut world, &["a", "b"]);
    assert!(world.has_event(&job, "job.halting", "step 8 is saved"), "{:?}", world.story);
    world.step(&job);
    world.step(&job);
    world.settle();
    assert!(world.has_event(&job, "checkpoint.late", "had committed step 9"), "{:?}", world.story);
    world.train(&job, 12);
    assert_eq!(world.record(&job).last_checkpoint().map(|c| c.step.get()), Some(16));
    check_goes_on(&mut world, &job, 2);
}

#[test]
fn a_spare_that_comes_takes_the_place_instead() {
    let (mut world, job) = running(2, "");
    leave(&mut world, &["a", "b"]);
    world.join("e");
    world.join("f");
    world.settle();
    for _ in 0..20 {
        world.pass(Duration::from_secs(1));
        world.train(&job, 1);
    }
    // Nobody halts any more, so other steps are saved again.
    let request = world.request(|request| Input::Checkpoint { request, job: job.clone() });
    assert!(matches!(world.replies.get(&request), Some(Ok(Reply::Checkpoint { .. }))), "{:?}", world.replies);
    for _ in 0..20 {
        world.pass(Duration::from_secs(1));
        world.train(&job, 1);
    }
    let record = world.record(&job);
    assert_eq!((world.curves[&job].len(), world.view(&job).lost_steps), (40, 0), "{:?}", world.story);
    assert_eq!((record.state, record.num_incidents), (State::Done, 2));
}
