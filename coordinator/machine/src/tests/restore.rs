//! T-11: a checkpoint that one worker cannot read is not given up, and nothing begins from scratch by itself.

use toroid_torus::ids::Rank;

use super::world::{World, job_file};
use crate::record::{Hold, State};
use crate::{Input, Reply, RequestError};

/// A job of two places that has saved steps 3, 6 and 9 and has committed step 10; both its workers are dead.
fn dead(more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 20, &format!("checkpoint.interval_steps = 3\n{more}")));
    world.join("a");
    world.join("b");
    world.settle();
    world.train(&job, 10);
    assert_eq!(saved(&world, &job), [3, 6, 9]);
    world.kill("a");
    world.kill("b");
    world.settle();
    (world, job)
}

fn saved(world: &World, job: &str) -> Vec<u64> {
    world.record(job).checkpoints.iter().map(|c| c.step.get()).collect()
}

fn join_blind(world: &mut World, id: &str) {
    world.join_as(id, |worker| worker.is_blind = true);
    world.settle();
}

fn join(world: &mut World, id: &str) {
    world.join(id);
    world.settle();
}

fn resume(world: &mut World, job: &str, from_scratch: bool) -> Result<Reply, RequestError> {
    let request = world.request(|request| Input::Resume { request, job: job.into(), from_scratch, steps: None });
    let reply = world.replies[&request].clone();
    world.settle();
    reply
}

/// It is done, with a whole curve.
fn check_done(world: &mut World, job: &str) {
    world.train(job, 25);
    assert_eq!((world.record(job).state, world.curves[job].len()), (State::Done, 20), "{:?}", world.story);
}

#[test]
fn t11_who_alone_cannot_read_a_checkpoint_loses_the_place_and_the_checkpoint_stays() {
    let (mut world, job) = dead("fault_tolerance.min_dp = 2");
    join_blind(&mut world, "c");
    join(&mut world, "d");
    let record = world.record(&job);
    assert_eq!(record.state, State::Recovering);
    let words = "cannot read the checkpoint of step 9: there is none of any step; that is its own fault";
    assert!(record.reason.contains(words) && record.reason.contains("waits for a worker: 1 of 2"), "{}", record.reason);
    assert_eq!((saved(&world, &job), world.curves[&job].len()), (vec![3, 6, 9], 10));
    join(&mut world, "e");
    world.train(&job, 1);
    let record = world.record(&job);
    assert_eq!(
        (record.restore_step.get(), record.rank_of("c").map(Rank::index), record.state),
        (9, None, State::Running)
    );
    assert_eq!((world.view(&job).lost_steps, world.view(&job).incidents.len()), (1, 1));
    check_done(&mut world, &job);
}

/// Both new workers are blind, and good ones are there: others are asked before two have a say.
#[test]
fn t11_while_somebody_has_not_tried_two_are_not_enough() {
    let (mut world, job) = dead("");
    for id in ["g", "h"] {
        world.workers.insert(id.into(), super::worker::Worker::new(id));
    }
    join_blind(&mut world, "c");
    world.connect("g");
    world.connect("h");
    join_blind(&mut world, "d");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).restore_step.get(), world.record(&job).rank_of("c").map(Rank::index)), (9, None));
    check_done(&mut world, &job);
}

/// Whoever has loaded its shards has read the manifest: it is there.
#[test]
fn t11_who_does_not_find_what_another_has_loaded_is_always_to_blame() {
    let (mut world, job) = dead("fault_tolerance.min_dp = 2");
    join(&mut world, "a");
    for id in ["c", "d", "e"] {
        join_blind(&mut world, id);
        assert_eq!(saved(&world, &job), [3, 6, 9], "{id} is to blame");
        assert!(world.record(&job).places[1].is_none(), "{id} lost the place");
    }
    join(&mut world, "b");
    check_done(&mut world, &job);
}

#[test]
fn t11_where_nobody_can_read_any_the_job_waits_for_a_user_and_keeps_its_curve() {
    let (mut world, job) = dead("");
    join_blind(&mut world, "c");
    join_blind(&mut world, "d");
    let record = world.record(&job);
    assert_eq!((record.state, record.hold), (State::Queued, Some(Hold::Checkpoint)), "{:?}", world.story);
    for words in ["waits for a checkpoint that can be read", "step 9", "`toroid resume demo-1`", "--from-scratch"] {
        assert!(record.reason.contains(words), "{words}: {}", record.reason);
    }
    assert_eq!(world.curves[&job].len(), 10, "the curve stays until a checkpoint was loaded");
    // It keeps nobody from anything.
    let other = world.submit(&job_file(1, 5, ""));
    world.settle();
    assert_eq!(world.record(&other).state, State::Starting);
    world.train(&other, 5);
    // The folder is mounted.
    world.restart(|_| true);
    world.settle();
    world.workers.values_mut().for_each(|w| w.is_blind = false);
    assert_eq!(world.record(&job).state, State::Queued, "on hold after a restart of the coordinator, too");
    assert_eq!(resume(&mut world, &job, false), Ok(Reply::Resumed { job: job.as_str().into() }));
    world.train(&job, 1);
    assert_eq!((world.record(&job).restore_step.get(), world.view(&job).lost_steps), (9, 1));
    check_done(&mut world, &job);
}

#[test]
fn t11_a_worker_that_comes_reads_what_the_others_could_not() {
    let (mut world, job) = dead("");
    join_blind(&mut world, "c");
    join_blind(&mut world, "d");
    assert_eq!(world.record(&job).hold, Some(Hold::Checkpoint));
    join(&mut world, "e");
    join(&mut world, "f");
    world.train(&job, 1);
    assert_eq!(world.record(&job).restore_step.get(), 9, "{:?}", world.story);
    check_done(&mut world, &job);
}

#[test]
fn from_scratch_only_if_a_user_says_so() {
    let (mut world, job) = dead("");
    let refused =
        |reply: Result<Reply, RequestError>| matches!(reply, Err(RequestError::State { what: "resumed", .. }));
    assert!(refused(resume(&mut world, &job, true)), "it waits for workers");
    for id in ["c", "d"] {
        world.join_as(id, |worker| worker.damaged.extend([3, 6, 9]));
    }
    world.settle();
    assert!(world.has_event(&job, "checkpoint.damaged", "step 3"));
    assert_eq!((world.record(&job).hold, world.curves[&job].len()), (Some(Hold::Checkpoint), 10));
    // A worker that comes does not mend wrong bytes.
    join(&mut world, "e");
    assert_eq!(world.record(&job).hold, Some(Hold::Checkpoint));
    assert!(resume(&mut world, &job, true).is_ok());
    assert!(world.has_event(&job, "job.resumed", "10 steps are given up"));
    world.train(&job, 1);
    assert_eq!((world.record(&job).restore_step.get(), world.view(&job).lost_steps), (0, 10));
    check_done(&mut world, &job);
}
