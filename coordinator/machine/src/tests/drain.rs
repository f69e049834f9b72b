//! Planned moves, and ranks that hang.

use std::time::Duration;

use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;

use super::worker::STEP_S;
use super::world::{LIMITS, World, job_file};
use crate::record::State;
use crate::{Input, Reply, RequestError};

/// A job of three places, a to c, that has committed 4 steps; d and e are spares.
fn running(spares: usize, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(3, 40, more));
    ["a", "b", "c", "d", "e"].iter().take(3 + spares).for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 4);
    (world, job)
}

fn drain(world: &mut World, worker: &str) -> Result<Reply, RequestError> {
    let request = world.request(|request| Input::Drain { request, worker: worker.into() });
    world.replies[&request].clone()
}

fn moved(job: &str, replacement: &str) -> Result<Reply, RequestError> {
    Ok(Reply::Drained { job: job.into(), replacement: replacement.into() })
}

#[test]
fn a_place_moves_to_a_spare_and_no_step_is_lost() {
    let (mut world, job) = running(1, "");
    assert_eq!(drain(&mut world, "b"), moved(&job, "d"));
    assert_eq!((world.record(&job).state, world.record(&job).epoch.get()), (State::Draining, 2));
    world.settle();
    assert!(world.worker("b").work.is_some(), "it keeps what it holds until the others have it");
    world.train(&job, 1);
    assert!(world.worker("b").work.is_none());
    let view = world.view(&job);
    assert_eq!((view.state(), view.committed_step, view.spares), (proto::JobState::Running, 5, 0));
    let incident = view.incidents.last().expect("a move is an incident");
    assert_eq!((incident.rung.as_str(), incident.seen_by.as_str(), incident.steps_lost), ("drain", "drain", 0));
    assert_eq!((incident.ranks.as_slice(), incident.workers.as_slice()), (&[1][..], &["b".to_string()][..]));
    world.kill("b");
    world.train(&job, 1);
    assert_eq!(world.record(&job).epoch.get(), 2, "nobody misses it");
}

#[test]
fn a_spare_that_is_drained_is_given_nothing_until_it_is_started_anew() {
    let (mut world, job) = running(1, "");
    assert_eq!(drain(&mut world, "d"), moved("", ""));
    world.kill("c");
    assert_eq!((world.record(&job).places[2].as_deref(), world.view(&job).spares), (None, 0));
    let reason = &world.record(&job).reason;
    assert!(
        reason.contains("waits for a worker") && reason.contains("; one that was drained does not count"),
        "{reason}"
    );
    world.connect("d");
    assert_eq!(world.record(&job).places[2], None, "it is the same process");
    world.restart(|_| true);
    world.pass(LIMITS.failure_timeout);
    assert_eq!(world.record(&job).places[2], None, "it is the same process");
    world.kill("d");
    world.join_as("d", |w| w.pid = 2);
    assert_eq!(world.record(&job).places[2].as_deref(), Some("d"));
}

#[test]
fn neighbours_move_one_after_the_other() {
    let (mut world, job) = running(2, "");
    assert_eq!(drain(&mut world, "a"), moved(&job, "d"));
    assert_eq!(drain(&mut world, "b"), moved(&job, ""), "it waits for the first");
    world.settle();
    assert_eq!((world.record(&job).epoch.get(), world.record(&job).places[1].as_deref()), (2, Some("b")));
    world.train(&job, 1);
    assert_eq!((world.record(&job).epoch.get(), world.record(&job).places[1].as_deref()), (3, Some("e")));
    world.train(&job, 1);
    let view = world.view(&job);
    let lost: u64 = view.incidents.iter().map(|i| i.steps_lost).sum();
    assert_eq!((view.incidents.len(), lost, view.committed_step), (2, 0, 6));
}

#[test]
fn a_drain_that_is_not_possible_says_what_to_do() {
    let says = |found: Result<Reply, RequestError>, part: &str| match found {
        Err(error) => assert!(error.to_string().contains(part), "`{part}` is not in: {error}"),
        Ok(reply) => panic!("expected an error with `{part}`, got {reply:?}"),
    };
    let (mut world, _) = running(0, "");
    says(drain(&mut world, "b"), "b cannot be drained: no worker can take rank 1 of demo-1; start one more");
    says(drain(&mut world, "z"), "no worker `z` is connected; there are a, b, c");
    let (mut world, _) = running(1, "fault_tolerance.redundancy = false");
    says(drain(&mut world, "b"), "demo-1 keeps one copy of its state");
}

#[test]
fn a_worker_that_leaves_moves_its_place_where_a_spare_is() {
    let (mut world, job) = running(1, "");
    let leave = |world: &mut World, id: &str| {
        world
            .worker(id)
            .outbox
            .push_back(FromWorker::Leaving(proto::Leaving { reason: "SIGTERM".into(), at_once: true }));
        while world.deliver_from(id) {}
    };
    leave(&mut world, "b");
    assert!(world.has_event(&job, "worker.draining", "b (rank 1) left: SIGTERM"));
    world.kill("b");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).epoch.get(), world.view(&job).incidents[0].rung.as_str()), (2, "drain"));
    leave(&mut world, "c");
    assert!(world.has_event(&job, "worker.lost", "c (rank 2) left: SIGTERM"), "nobody is there to take its place");
    assert_eq!(world.record(&job).state, State::Recovering);
}

/// It stays as a holder until somebody comes, and is told to stop when nothing that it holds is needed any more.
#[test]
fn a_worker_that_leaves_in_time_keeps_its_place_until_a_spare_comes() {
    let (mut world, job) = running(0, "");
    let leaving = proto::Leaving { reason: "SIGTERM".into(), at_once: false };
    world.worker("b").outbox.push_back(FromWorker::Leaving(leaving.clone()));
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).epoch.get(), world.record(&job).places[1].as_deref()), (1, Some("b")));
    world.join("e");
    assert_eq!(world.record(&job).places[1].as_deref(), Some("e"));
    world.settle();
    world.train(&job, 1);
    let view = world.view(&job);
    assert_eq!((view.incidents[0].rung.as_str(), view.lost_steps, view.spares), ("drain", 0, 0));
    assert!(world.worker("b").work.is_none(), "it was told to stop");
}

#[test]
fn a_drained_worker_has_its_place_again_if_the_other_holder_dies_before_it_was_copied() {
    let (mut world, job) = running(1, "");
    drain(&mut world, "b").expect("d is there");
    // The next rank holds the other copy of the shard of b.
    world.kill("c");
    let record = world.record(&job);
    assert_eq!((record.places[1].as_deref(), record.places[2].as_deref()), (Some("b"), Some("d")));
    world.settle();
    world.train(&job, 1);
    let view = world.view(&job);
    assert_eq!((view.incidents[0].steps_lost, view.committed_step), (0, 5));
    world.join("e");
    assert_eq!(world.record(&job).places[1].as_deref(), Some("e"), "now it is moved");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.view(&job).committed_step, world.view(&job).lost_steps), (6, 0));
}

#[test]
fn a_drain_goes_on_after_a_restart_of_the_coordinator() {
    let (mut world, job) = running(2, "");
    drain(&mut world, "a").expect("d is there");
    drain(&mut world, "b").expect("waits for the first");
    world.restart(|_| true);
    world.settle();
    world.train(&job, 1);
    world.train(&job, 1);
    let record = world.record(&job);
    assert!(record.draining.is_empty() && record.rank_of("a").is_none() && record.rank_of("b").is_none());
    assert_eq!(world.curves[&job].len(), 6);
}

/// `worker` hangs in `operation`, the other two wait for it.
fn hang(world: &mut World, worker: &str, operation: &str) {
    world.heartbeats();
    world.settle();
    let job = world.work(worker).job.clone();
    let rank = world.record(&job).rank_of(worker).expect("a place").to_wire();
    for id in ["a", "b", "c"] {
        let is_culprit = id == worker;
        let other = world.worker(id);
        other.stuck_in = Some(if is_culprit { operation.into() } else { "reduce-scatter".into() });
        other.waits_for = if is_culprit { Vec::new() } else { vec![rank] };
    }
}

fn release(world: &mut World) {
    world.workers.values_mut().for_each(|w| {
        w.stuck_in = None;
        w.waits_for.clear();
    });
}

#[test]
fn the_root_of_the_waits_is_replaced() {
    let (mut world, job) = running(1, "");
    hang(&mut world, "b", "forward");
    // Steps take a second: five seconds and four steps.
    world.pass(Duration::from_secs(8));
    assert_eq!(world.record(&job).epoch.get(), 1);
    world.pass(Duration::from_secs(6));
    assert!(world.has_event(&job, "worker.lost", "b (rank 1) hangs in forward: ranks 0, 2 wait for it"));
    assert_eq!(world.record(&job).places[1].as_deref(), Some("d"));
    release(&mut world);
    world.settle();
    world.train(&job, 1);
    let view = world.view(&job);
    assert_eq!((view.committed_step, view.incidents[0].seen_by.as_str(), view.spares), (5, "waits-for edges", 0));
}

#[test]
fn who_waits_for_whom_is_told_where_not_all_wait_for_the_root_alone() {
    let (mut world, job) = running(1, "");
    hang(&mut world, "b", "forward");
    world.worker("c").waits_for = vec![0];
    world.pass(Duration::from_secs(14));
    let text = "b (rank 1) hangs in forward: ranks 0, 2 wait for it (0 for 1, 2 for 0)";
    assert!(world.has_event(&job, "worker.lost", text));
}

/// The last validation is no step: found by the simulation (seed 1548).
#[test]
fn who_hangs_in_the_last_validation_is_replaced() {
    let (mut world, job) = running(1, "");
    world.train(&job, 35);
    world.step(&job);
    for id in ["a", "b", "c"] {
        world.worker(id).outbox.retain(|body| !matches!(body, FromWorker::Finished(_)));
    }
    hang(&mut world, "b", "validate");
    world.pass(LIMITS.hang(Some(STEP_S)) * 2 + LIMITS.failure_timeout);
    assert!(world.has_event(&job, "worker.lost", "b (rank 1) hangs in validate: ranks 0, 2 wait for it"));
    release(&mut world);
    world.settle();
    world.step(&job);
    world.settle();
    assert_eq!(world.record(&job).state, State::Done);
}

/// Found by the simulation (seed 2749): the step to halt at was never made, and nobody was looked for.
#[test]
fn who_hangs_before_the_step_that_all_halt_at_is_replaced() {
    let (mut world, job) = running(1, "");
    hang(&mut world, "b", "forward");
    world.request(|request| Input::Hold { request, job: job.clone() });
    world.pass(LIMITS.hang(Some(STEP_S)) * 2);
    assert!(world.has_event(&job, "worker.lost", "b (rank 1) hangs in forward: ranks 0, 2 wait for it"));
    release(&mut world);
    world.settle();
    world.train(&job, 1);
    let record = world.record(&job);
    assert_eq!((record.state, record.last_checkpoint().map(|c| c.step.get())), (State::Queued, Some(5)));
}

#[test]
fn a_hang_without_a_spare_does_not_give_the_place_back() {
    let (mut world, job) = running(0, "fault_tolerance.min_dp = 3");
    hang(&mut world, "b", "forward");
    world.pass(Duration::from_secs(20));
    assert_eq!((world.record(&job).places[1].as_deref(), world.record(&job).epoch.get()), (None, 1));
}

#[test]
fn a_cycle_begins_the_epoch_again_with_all_places() {
    let (mut world, job) = running(0, "");
    hang(&mut world, "b", "commit");
    world.worker("b").waits_for = vec![0];
    world.worker("a").waits_for = vec![1];
    world.pass(Duration::from_secs(10));
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.places.iter().flatten().count()), (2, 3));
    assert!(world.has_event(&job, "job.recovering", "ranks 0, 1, 2 wait for one another: nobody commits step 5"));
    release(&mut world);
    world.settle();
    world.train(&job, 1);
    assert_eq!(world.view(&job).incidents[0].rung, "reconnect");
}

#[test]
fn who_waits_for_nobody_is_not_blamed_and_a_validation_may_take_longer() {
    let (mut world, job) = running(1, "");
    world.pass(LIMITS.failure_timeout * 10);
    assert_eq!(world.record(&job).epoch.get(), 1, "all compute");
    world.train(&job, 1);
    hang(&mut world, "b", "validate");
    world.pass(Duration::from_secs(1));
    world.train(&job, 1);
    assert_eq!(world.record(&job).epoch.get(), 1);
}

#[test]
fn where_all_hang_the_first_is_replaced_after_a_long_while() {
    let (mut world, job) = running(1, "");
    world.pass(LIMITS.checkpoint() * 2 + LIMITS.hang(Some(STEP_S)) * 3);
    let record = world.record(&job);
    assert_eq!((record.places[0].as_deref(), record.epoch.get()), (Some("d"), 2));
    assert!(world.has_event(&job, "worker.lost", "no place does anything else any more"));
}

#[test]
fn who_hangs_in_the_older_epoch_does_not_keep_the_next_from_beginning() {
    let (mut world, job) = running(2, "");
    hang(&mut world, "b", "forward");
    world.pass(Duration::from_secs(1));
    world.kill("a");
    world.pass(LIMITS.hang(Some(STEP_S)) * 2);
    let record = world.record(&job);
    assert!(record.rank_of("b").is_none(), "{:?}", record.places);
    assert!(world.has_event(&job, "worker.lost", "hangs in forward: it does not turn to epoch 2"));
    // Of three any two are the holders of a shard.
    assert_eq!(world.view(&job).lost_steps, 4, "{:?}", world.story);
    world.train(&job, 1);
    assert_eq!(world.view(&job).lost_steps, 4);
}

/// Reading data takes as long as it takes while it gets on.
#[test]
fn who_hangs_while_it_prepares_is_replaced_and_who_gets_on_is_not() {
    // Another process of its host may read the data for it.
    for operation in ["prepare", "wait for token file"] {
        let (mut world, job) = running(2, "");
        // The first spare takes the place, and hangs in preparing it.
        world.worker("d").stuck_in = Some(operation.into());
        world.kill("a");
        world.settle();
        assert_eq!(world.record(&job).places[0].as_deref(), Some("d"));
        for progress in 1..=4 {
            world.worker("d").progress = progress;
            world.pass(LIMITS.prepare() / 2);
        }
        assert_eq!(
            (world.record(&job).epoch.get(), world.record(&job).places[0].as_deref()),
            (2, Some("d")),
            "{operation}"
        );
        world.pass(LIMITS.prepare() + LIMITS.hang(Some(STEP_S)));
        assert!(world.has_event(&job, "worker.lost", "d (rank 0) hangs while it prepares for epoch 2"));
        assert_eq!(world.record(&job).places[0].as_deref(), Some("e"));
        world.settle();
        world.train(&job, 1);
        assert_eq!(world.view(&job).lost_steps, 0);
    }
}
