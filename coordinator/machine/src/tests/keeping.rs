//! Which checkpoints stay when newer ones come: those for good, and those that users have pinned.

use toroid_proto as proto;
use toroid_torus::ids::Step;

use super::world::{LIMITS, World, job_file};
use crate::keeping::MAX_PINNED;
use crate::record::State;
use crate::{Input, Reply, RequestError};

/// A job of two places that has committed `at` of 200 steps.
fn running(at: u64, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 200, more));
    world.join("a");
    world.join("b");
    world.settle();
    world.train(&job, at);
    (world, job)
}

fn ask(world: &mut World, input: impl FnOnce(crate::RequestId) -> Input) -> Result<Reply, RequestError> {
    let request = world.request(input);
    world.replies[&request].clone()
}

fn pin(world: &mut World, job: &str, step: u64) -> Result<Reply, RequestError> {
    ask(world, |request| Input::Pin { request, job: job.into(), step: Step::new(step) })
}

fn unpin(world: &mut World, job: &str, step: u64) -> Result<Reply, RequestError> {
    ask(world, |request| Input::Unpin { request, job: job.into(), step: Step::new(step) })
}

fn listed(world: &World, job: &str) -> Vec<u64> {
    world.record(job).checkpoints.iter().map(|c| c.step.get()).collect()
}

fn on_disk(world: &World) -> Vec<u64> {
    world.disk.manifests.keys().map(|(_, step)| *step).collect()
}

#[test]
fn one_of_every_so_many_steps_stays_for_good() {
    let (mut world, job) = running(23, "checkpoint = { interval_steps = 2, keep = 2, keep_every_steps = 5 }");
    assert_eq!((listed(&world, &job), on_disk(&world)), (vec![6, 10, 16, 20, 22], vec![6, 10, 16, 20, 22]));
    let for_good = |world: &World, job: &str| {
        let all = world.view(job).checkpoints;
        all.iter().filter(|c| c.is_for_good).map(|c| c.step).collect::<Vec<_>>()
    };
    assert_eq!(for_good(&world, &job), [6, 10, 16, 20]);
    // Also where a worker dies, and the coordinator is another.
    world.join("c");
    world.kill("b");
    world.settle();
    world.restart(|_| true);
    world.settle();
    world.train(&job, 8);
    assert_eq!(
        (listed(&world, &job), on_disk(&world)),
        (vec![6, 10, 16, 20, 26, 28, 30], vec![6, 10, 16, 20, 26, 28, 30])
    );
    assert_eq!(for_good(&world, &job), [6, 10, 16, 20, 26, 30]);
}

#[test]
fn a_pin_outlives_newer_checkpoints_the_coordinator_and_another_shape() {
    let (mut world, job) = running(5, "checkpoint = { interval_steps = 2, keep = 1 }\nfault_tolerance.min_dp = 1");
    assert_eq!(pin(&mut world, &job, 4), Ok(Reply::Pinned { path: "step-4".into() }));
    assert_eq!(pin(&mut world, &job, 4), Ok(Reply::Pinned { path: "step-4".into() }), "twice is the same as once");
    world.train(&job, 4);
    assert_eq!((listed(&world, &job), on_disk(&world)), (vec![4, 8], vec![4, 6, 8]));
    world.restart(|_| true);
    world.settle();
    world.train(&job, 4);
    // One replica is left, and another comes.
    world.kill("b");
    world.settle();
    world.pass(4 * LIMITS.replacement());
    assert_eq!(world.record(&job).shape.dp(), 1, "{}", world.record(&job).reason);
    world.train(&job, 4);
    world.join("c");
    world.settle();
    world.train(&job, 4);
    assert_eq!(world.record(&job).shape.dp(), 2, "{}", world.record(&job).reason);
    let saved = listed(&world, &job);
    assert!(saved[0] == 4 && saved.len() == 2 && on_disk(&world).contains(&4), "{saved:?} {:?}", on_disk(&world));
    let view = world.view(&job);
    assert!(view.checkpoints[0].is_pinned && !view.checkpoints[1].is_pinned && view.pinned_steps == [4], "{view:?}");
    assert!(world.has_event(&job, "checkpoint.pinned", "a user pinned step 4"));

    assert_eq!(unpin(&mut world, &job, 4), Ok(Reply::Unpinned { stays: false }));
    world.train(&job, 4);
    assert!(!on_disk(&world).contains(&4) && !listed(&world, &job).contains(&4), "{:?}", on_disk(&world));
}

/// Its folder stays when the coordinator forgets the job: nothing is removed by that, pinned or not.
#[test]
fn a_pin_of_a_job_that_has_ended_counts_when_it_goes_on_and_nothing_is_removed_with_its_record() {
    let (mut world, job) = running(5, "checkpoint = { interval_steps = 2, keep = 1 }");
    assert!(ask(&mut world, |request| Input::Cancel { request, job: job.clone() }).is_ok());
    world.settle();
    assert!(pin(&mut world, &job, 4).is_ok());
    assert!(
        ask(&mut world, |request| Input::Resume { request, job: job.clone(), from_scratch: true, steps: None }).is_ok()
    );
    world.settle();
    world.train(&job, 9);
    assert_eq!(listed(&world, &job), [4, 8], "made again, and pinned still: {:?}", world.story);
    world.train(&job, 200);
    assert_eq!((world.record(&job).state, listed(&world, &job)), (State::Done, vec![4, 200]));
    let before = on_disk(&world);
    assert!(ask(&mut world, |request| Input::Remove { request, job: job.clone() }).is_ok());
    world.settle();
    assert_eq!(on_disk(&world), before);
}

/// From scratch: the pinned one is listed no more, and stays.
#[test]
fn what_is_given_up_stays_where_it_is_pinned() {
    let (mut world, job) = running(9, "checkpoint = { interval_steps = 4, keep = 2 }");
    assert!(pin(&mut world, &job, 8).is_ok());
    assert!(ask(&mut world, |request| Input::Cancel { request, job: job.clone() }).is_ok());
    world.settle();
    assert!(
        ask(&mut world, |request| Input::Resume { request, job: job.clone(), from_scratch: true, steps: None }).is_ok()
    );
    world.settle();
    world.train(&job, 6);
    assert_eq!((listed(&world, &job), on_disk(&world)), (vec![4], vec![4, 8]));
    let view: proto::Job = world.view(&job);
    assert_eq!((view.pinned_steps, view.checkpoints.len()), (vec![8], 1));
    assert_eq!(unpin(&mut world, &job, 8), Ok(Reply::Unpinned { stays: false }));
    // It is made again before anything is published that could take it away.
    world.train(&job, 7);
    assert_eq!(listed(&world, &job), [8, 12]);
}

#[test]
fn what_cannot_be_pinned_is_refused_in_words() {
    let (mut world, job) = running(7, "checkpoint = { interval_steps = 2, keep = 2 }");
    let error = |reply: Result<Reply, RequestError>| reply.expect_err("it is refused").to_string();
    assert_eq!(error(pin(&mut world, &job, 5)), "demo-1 has no checkpoint of step 5; there are 6, 4");
    assert_eq!(
        error(pin(&mut world, &job, 8)),
        "demo-1 has no checkpoint of step 8; it is to be saved: pin it when it is there"
    );
    assert_eq!(error(unpin(&mut world, &job, 4)), "no checkpoint of step 4 of demo-1 is pinned; there is none");
    assert!(pin(&mut world, &job, 6).is_ok());
    assert_eq!(error(unpin(&mut world, &job, 4)), "no checkpoint of step 4 of demo-1 is pinned; these are: 6");
    assert!(error(pin(&mut world, "x", 4)).starts_with("there is no job `x`"));
    assert_eq!(unpin(&mut world, &job, 6), Ok(Reply::Unpinned { stays: true }), "it is the newest");
}

#[test]
fn pins_have_a_bound() {
    let mut world = World::new();
    let steps = MAX_PINNED as u64 + 20;
    let job = world.submit(&job_file(1, steps, "checkpoint = { interval_steps = 1, keep = 2000 }"));
    world.join("a");
    world.settle();
    world.train(&job, steps - 5);
    for step in 1..=MAX_PINNED as u64 {
        assert!(pin(&mut world, &job, step).is_ok(), "step {step}");
    }
    let error = pin(&mut world, &job, MAX_PINNED as u64 + 1).expect_err("it is one too many").to_string();
    assert!(error.starts_with("demo-1 has 1000 checkpoints that are pinned, and may have no more"), "{error}");
}

/// Rank 0 was told to remove it and died: nobody says whether it is there.
#[test]
fn one_whose_removal_was_ordered_cannot_be_pinned_also_after_the_epoch() {
    let (mut world, job) = running(5, "checkpoint = { interval_steps = 2, keep = 1 }");
    world.join("c");
    world.settle();
    assert_eq!(on_disk(&world), [2, 4]);
    world.train(&job, 1);
    assert_eq!(on_disk(&world), [4, 6]);
    // The next publishing, of step 8, removes step 6 of those that are listed once step 8 is.
    world.train(&job, 1);
    world.step(&job);
    let is_ordered = |world: &World| world.record(&job).pending.values().any(|p| p.publishing);
    while !is_ordered(&world) {
        assert!(world.deliver_from("a") | world.deliver_from("b"), "{:?}", world.story);
    }
    assert_eq!(listed(&world, &job), [6], "the last good one is not ordered to go");
    assert!(pin(&mut world, &job, 6).is_ok());
    world.kill("a");
    world.settle();
    world.train(&job, 6);
    assert!(on_disk(&world).contains(&6), "{:?}", on_disk(&world));

    let (mut world, job) = running(7, "checkpoint = { interval_steps = 2, keep = 2 }");
    world.join("c");
    world.settle();
    world.step(&job);
    while !is_ordered(&world) {
        assert!(world.deliver_from("a") | world.deliver_from("b"), "{:?}", world.story);
    }
    assert_eq!(listed(&world, &job), [4, 6]);
    let error = pin(&mut world, &job, 4).expect_err("it is being removed").to_string();
    assert_eq!(error, "the checkpoint of step 4 of demo-1 cannot be pinned: it is being removed");
    world.kill("a");
    world.settle();
    world.restart(|_| true);
    assert!(matches!(
        pin(&mut world, &job, 4),
        Err(RequestError::Removed { .. } | RequestError::UnknownCheckpoint { .. })
    ));
}
