//! The coordinator is killed and goes on from what it had stored (T-9).

use toroid_proto as proto;
use toroid_proto::worker_message::Body;
use toroid_torus::ids::Rank;

use super::recovery::peer_lost;
use super::world::{LIMITS, World, job_file};
use crate::record::State;

fn running() -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 12, "checkpoint.interval_steps = 4"));
    for id in ["a", "b", "c"] {
        world.join(id);
    }
    world.settle();
    world.train(&job, 5);
    (world, job)
}

#[test]
fn workers_that_come_back_go_on() {
    let (mut world, job) = running();
    // Steps that are committed meanwhile are reported afterwards.
    world.disconnect_all();
    world.step(&job);
    world.step(&job);
    world.restart(|_| true);
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get()), (State::Running, 1));
    assert_eq!(world.curves[&job].len(), 7);
    world.pass(LIMITS.failure_timeout * 3);
    world.train(&job, 5);
    let record = world.record(&job);
    assert_eq!(
        (record.state, record.epoch.get(), record.last_checkpoint().map(|c| c.step.get())),
        (State::Done, 1, Some(12))
    );
    assert_eq!(world.curves[&job].len(), 12);
}

#[test]
fn a_worker_that_does_not_come_back_is_replaced() {
    let (mut world, job) = running();
    world.restart(|id| id != "b");
    world.settle();
    // It may be the last to see that the coordinator before is not there any more.
    world.pass(LIMITS.failure_timeout);
    assert_eq!(
        world.record(&job).epoch.get(),
        1,
        "b has as long as a ping takes that nobody answers, and then time to dial"
    );
    world.pass(LIMITS.reconnect() - LIMITS.failure_timeout);
    assert!(world.has_event(&job, "worker.lost", "b (rank 1) has not come back within 7.5 s"));
    let record = world.record(&job);
    assert_eq!(
        (record.epoch.get(), record.rank_of("a").map(Rank::index), record.rank_of("c").map(Rank::index)),
        (2, Some(0), Some(1))
    );
    world.train(&job, 12);
    assert_eq!(world.record(&job).state, State::Done);
}

/// Killed together with the coordinator: nobody has seen it alive since.
#[test]
fn a_worker_that_has_not_come_back_is_not_said_to_be_alive() {
    let (mut world, job) = running();
    world.restart(|id| id != "b");
    world.settle();
    peer_lost(&mut world, &job, "a", 1);
    world.pass(LIMITS.link_grace());
    let cause = &world.view(&job).incidents[0].cause;
    assert!(cause.ends_with("; b (rank 1) has not come back since the coordinator was started"), "{cause}");
}

#[test]
fn a_job_that_was_starting_begins_again() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 3, ""));
    world.join("a");
    world.join("b");
    assert_eq!(world.record(&job).state, State::Starting);
    world.restart(|_| true);
    world.settle();
    world.train(&job, 3);
    assert_eq!((world.record(&job).state, world.record(&job).epoch.get()), (State::Done, 2));
}

/// The coordinator begins the epoch again; what was done about the death is what it had done before.
#[test]
fn an_incident_keeps_its_rung_when_the_coordinator_dies_in_it() {
    let (mut world, job) = running();
    world.kill("b");
    world.restart(|_| true);
    world.settle();
    world.train(&job, 1);
    let incidents = world.view(&job).incidents;
    assert_eq!((incidents.len(), incidents[0].rung.as_str(), incidents[0].resolved), (1, "spare", true));
    let reason = &incidents[0].reason;
    assert!(reason.contains("c takes rank 1") && reason.contains("the coordinator was restarted"), "{reason}");
}

/// The validation of the step that all go on from shows that the job runs, before another step is made. The coordinator dies then, all keep the epoch,
/// and its next step ends the incident.
#[test]
fn an_incident_ends_when_the_coordinator_dies_behind_its_start() {
    let (mut world, job) = running();
    world.kill("b");
    world.settle();
    let validation = proto::Validation { step: 5, ce: 2.0, tokens: 64, ..Default::default() };
    let report = proto::ValidationReport { job_id: job.clone(), epoch: 2, validation: Some(validation) };
    world.worker("a").outbox.push_back(Body::Validation(report));
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.state), (2, State::Running), "{:?}", world.story);
    assert!(!world.view(&job).incidents[0].resolved);
    world.restart(|_| true);
    world.settle();
    world.pass(std::time::Duration::from_secs(1));
    world.train(&job, 1);
    let incidents = world.view(&job).incidents;
    let found = (world.record(&job).epoch.get(), incidents.len(), incidents[0].rung.as_str(), incidents[0].resolved);
    assert_eq!(found, (2, 1, "spare", true), "{incidents:?}");
    let lasted_s = incidents[0].heal_s + incidents[0].redo_s;
    assert!((1.0..2.0).contains(&lasted_s), "it was healed all the time: {incidents:?}");
}

#[test]
fn ended_and_queued_jobs_stay_what_they_are() {
    let mut world = World::new();
    let done = world.submit(&job_file(1, 2, ""));
    world.join("a");
    world.settle();
    world.train(&done, 2);
    let queued = world.submit(&job_file(3, 2, ""));
    world.restart(|_| true);
    world.settle();
    assert_eq!((world.record(&done).state, world.view(&done).committed_step), (State::Done, 2));
    assert_eq!(world.record(&queued).reason, "waits for workers: needs 3 workers, 1 are there");
    assert_eq!(world.submit(&job_file(1, 2, "")), "demo-3", "ids are not used twice");
}

#[test]
fn the_link_key_of_an_epoch_survives_a_restart() {
    let (mut world, job) = running();
    let secret = |world: &World| match &world.store["meta"] {
        crate::record::Record::Meta(meta) => meta.secret,
        other => panic!("{other:?} under the key of meta"),
    };
    let before = (secret(&world), world.record(&job).link_key(&secret(&world)));
    world.restart(|_| true);
    assert_eq!((secret(&world), world.record(&job).link_key(&secret(&world))), before);
    let mut next = world.record(&job).clone();
    next.epoch = next.epoch.next();
    assert_ne!(next.link_key(&before.0), before.1, "each epoch has a key of its own");
}

/// Submits, trains, loses a worker, recovers and finishes.
fn story(world: &mut World) -> String {
    for id in ["a", "b", "c"] {
        world.join(id);
    }
    let mut job = world.submit(&job_file(2, 6, "checkpoint.interval_steps = 2"));
    if world.machine.record(&job).is_none() {
        // Killed before the submission was stored: the user sees an error, and submits again.
        job = world.submit(&job_file(2, 6, "checkpoint.interval_steps = 2"));
    }
    world.settle();
    world.train(&job, 3);
    world.kill("b");
    world.settle();
    for _ in 0..12 {
        world.pass(LIMITS.heartbeat_interval);
        world.train(&job, 1);
    }
    job
}

#[test]
fn a_restart_after_any_output_changes_nothing_about_the_end() {
    let mut undisturbed = World::new();
    story(&mut undisturbed);
    let num_outputs = undisturbed.num_outputs;
    assert!(num_outputs > 50, "the story has {num_outputs} outputs");
    for crash_after in 1..=num_outputs {
        let mut world = World::new();
        world.crash_after = crash_after;
        let job = story(&mut world);
        let record = world.record(&job);
        let saved: Vec<u64> = record.checkpoints.iter().map(|c| c.step.get()).collect();
        assert_eq!(record.state, State::Done, "killed after output {crash_after}:\n{}", world.story.join("\n"));
        assert_eq!((saved.last(), world.curves[&job].len()), (Some(&6), 6), "killed after output {crash_after}");
    }
}
