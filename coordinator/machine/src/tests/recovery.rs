//! Workers that die, hang, fail and lose sight of each other.

use std::time::Duration;

use super::world::{LIMITS, World, job_file};
use crate::Input;
use crate::record::State;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_torus::ids::Rank;

/// A job of two places that runs on a and b, with c as a spare where there is to be one.
fn running(num_spares: usize, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 20, more));
    for id in ["a", "b", "c", "d"].iter().take(2 + num_spares) {
        world.join(id);
    }
    world.settle();
    world.train(&job, 3);
    assert_eq!(world.record(&job).state, State::Running);
    (world, job)
}

#[test]
fn steps_are_lost_also_where_the_job_ends_before_it_goes_on() {
    let (mut world, job) = running(1, "fault_tolerance.redundancy = false");
    world.kill("b");
    assert_eq!(world.record(&job).state, State::Recovering);
    world.request(|request| Input::Cancel { request, job: job.as_str().into() });
    let view = world.view(&job);
    assert_eq!((view.lost_steps, view.incidents[0].steps_lost, view.incidents[0].resolved), (3, 3, false));
}

fn rank_of(world: &World, job: &str, worker: &str) -> Option<usize> {
    world.record(job).rank_of(worker).map(Rank::index)
}

#[test]
fn without_redundancy_all_begin_again_with_a_spare() {
    let (mut world, job) = running(1, "fault_tolerance.redundancy = false");
    let (kept, lost) = (rank_of(&world, &job, "a"), rank_of(&world, &job, "b"));
    world.kill("b");
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get(), record.restore_step.get()), (State::Recovering, 2, 0));
    assert!(record.reason.starts_with("b (rank 1) closed its stream (reset); c takes rank 1 ("), "{}", record.reason);
    assert!(record.reason.ends_with("all go on from the initial weights"), "{}", record.reason);
    assert_eq!((rank_of(&world, &job, "a"), rank_of(&world, &job, "c")), (kept, lost), "T-7");
    world.settle();
    assert_eq!(world.curves[&job].len(), 0, "what is made again is cut");
    world.train(&job, 20);
    assert_eq!(world.record(&job).state, State::Done);
    assert_eq!(world.curves[&job].len(), 20);
}

#[test]
fn without_a_spare_the_job_waits_for_one() {
    let (mut world, job) = running(0, "fault_tolerance.min_dp = 2");
    world.kill("b");
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get()), (State::Recovering, 1), "the epoch moves when the place is filled");
    assert!(record.reason.ends_with("waits for a worker: 1 of 2 places filled"), "{}", record.reason);
    world.join("x");
    assert_eq!(world.record(&job).epoch.get(), 2);
    world.settle();
    world.train(&job, 20);
    assert_eq!(world.record(&job).state, State::Done);
}

#[test]
fn without_redundancy_everyone_goes_on_from_the_newest_checkpoint() {
    let (mut world, job) = running(1, "checkpoint.interval_steps = 2\nfault_tolerance.redundancy = false");
    let saved = world.record(&job).last_checkpoint().map(|c| c.step.get());
    assert_eq!(saved, Some(2));
    world.kill("a");
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.restore_step.get(), world.curves[&job].len()), (2, 2));
    assert!(record.reason.contains("epoch") || record.reason.contains("prepared"), "{}", record.reason);
    assert_eq!(world.view(&job).committed_step, 2);
    world.train(&job, 18);
    assert_eq!(world.record(&job).state, State::Done);
}

#[test]
fn a_host_that_dies_one_worker_after_the_other_is_few_epochs() {
    let mut world = World::new();
    let job = world.submit(&job_file(8, 20, "fault_tolerance.min_dp = 8"));
    let ids: Vec<String> = (0..16).map(|n| format!("w{n:02}")).collect();
    ids.iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 3);
    let epoch = |world: &World| world.record(&job).epoch.get();
    assert_eq!(epoch(&world), 1);
    let placed: Vec<String> = world.record(&job).places.iter().flatten().map(|w| w.to_string()).collect();
    let mut epochs = Vec::new();
    for id in &placed[..7] {
        world.kill(id);
        epochs.push(epoch(&world));
    }
    assert_eq!(epochs, [2, 3, 3, 3, 3, 3, 3], "two at once, and the others wait for more");
    world.pass(Duration::from_millis(10));
    let record = world.record(&job);
    let found = (record.epoch.get(), record.places.num_empty());
    assert_eq!(
        found,
        (5, 0),
        "one for all of them, which finds that both holders of a shard are lost: {}",
        record.reason
    );
    world.settle();
    world.train(&job, 3);
    let before = epoch(&world);
    world.kill(&placed[7]);
    assert_eq!(epoch(&world), before + 1, "after a start an epoch begins at once again");
    world.settle();
    world.train(&job, 20);
    assert_eq!(world.record(&job).state, State::Done);
}

#[test]
fn a_worker_that_hangs_is_replaced_after_the_failure_timeout() {
    let (mut world, job) = running(1, "");
    world.pass(Duration::from_secs(1));
    world.worker("b").is_hung = true;
    world.pass(LIMITS.failure_timeout - Duration::from_secs(1));
    assert_eq!(world.record(&job).epoch.get(), 1);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.record(&job).epoch.get(), 2);
    assert!(world.has_event(&job, "worker.lost", "b (rank 1) was silent for 5 s"));
    assert_eq!(world.worker("b").stream, None, "it may connect again as a spare");
}

#[test]
fn who_finished_in_an_older_epoch_has_yet_to_finish_in_this_one() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 2, ""));
    ["a", "b", "c"].iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 1);
    world.step(&job);
    while world.deliver_from("b") {}
    world.kill("a");
    world.settle();
    // All is heard of but the end of b in this epoch.
    world.step(&job);
    while world.deliver_from("c") || world.deliver_to("c") {}
    let record = world.record(&job);
    assert_eq!((record.last_checkpoint().map(|c| c.step.get()), record.state), (Some(2), State::Recovering));
    world.settle();
    assert_eq!(world.record(&job).state, State::Done);
}

pub(super) fn peer_lost(world: &mut World, job: &str, by: &str, rank: u32) {
    let (job_id, epoch) = (job.to_string(), world.record(job).epoch.get());
    let body =
        FromWorker::PeerLost(proto::PeerLost { job_id, epoch, rank, error: "reset".into(), ..Default::default() });
    world.worker(by).outbox.push_back(body);
    world.settle();
}

#[test]
fn a_broken_link_between_living_workers_begins_the_epoch_again_with_both() {
    let (mut world, job) = running(1, "");
    peer_lost(&mut world, &job, "a", 1);
    assert_eq!(world.record(&job).epoch.get(), 1, "b may turn out dead");
    world.pass(LIMITS.link_grace());
    let record = world.record(&job);
    assert_eq!(
        (record.epoch.get(), record.rank_of("a").map(Rank::index), record.rank_of("b").map(Rank::index)),
        (2, Some(0), Some(1))
    );
    assert!(world.has_event(&job, "job.recovering", "a (rank 0) lost its link to b (rank 1): reset; both are alive"));
    world.train(&job, 1);
    assert_eq!(world.record(&job).state, State::Running);
}

#[test]
fn a_peer_that_was_lost_and_is_dead_is_replaced_once() {
    let (mut world, job) = running(1, "");
    peer_lost(&mut world, &job, "a", 1);
    world.kill("b");
    world.settle();
    assert_eq!((world.record(&job).epoch.get(), rank_of(&world, &job, "c")), (2, Some(1)));
    world.pass(LIMITS.failure_timeout);
    assert_eq!(world.record(&job).epoch.get(), 2, "the suspicion went with the epoch");
}

#[test]
fn a_link_that_breaks_again_and_again_fails_the_job() {
    let (mut world, job) = running(0, "");
    for _ in 0..3 {
        assert!(!world.record(&job).state.is_ended());
        peer_lost(&mut world, &job, "a", 1);
        world.pass(LIMITS.link_grace());
    }
    let record = world.record(&job);
    assert_eq!(record.state, State::Failed);
    assert!(record.reason.starts_with("links to rank 1 broke 3 times without a new step"), "{}", record.reason);
}

fn fail(world: &mut World, job: &str, rank: usize) {
    let record = world.record(job);
    let (id, epoch) = (record.places[rank].clone().expect("filled"), record.epoch.get());
    let worker = world.worker(&id);
    worker.work = None;
    let error = "out of memory".into();
    let body =
        FromWorker::Failed(proto::Failed { job_id: job.into(), epoch, error, fatal: false, ..Default::default() });
    worker.outbox.push_back(body);
    world.settle();
}

#[test]
fn a_worker_that_fails_becomes_a_spare_and_another_takes_its_place() {
    let (mut world, job) = running(1, "");
    fail(&mut world, &job, 0);
    let record = world.record(&job);
    assert_eq!(
        (record.epoch.get(), record.rank_of("a").map(Rank::index), record.rank_of("c").map(Rank::index)),
        (2, None, Some(0))
    );
    assert_eq!(world.view(&job).spares, 1);
    fail(&mut world, &job, 0);
    assert_eq!(rank_of(&world, &job, "a"), Some(0), "one that failed comes only where nobody else is left");
}

#[test]
fn three_failures_of_a_place_without_a_new_step_fail_the_job() {
    let (mut world, job) = running(2, "");
    fail(&mut world, &job, 0);
    // One step further: the count begins anew.
    world.train(&job, 1);
    fail(&mut world, &job, 0);
    fail(&mut world, &job, 0);
    assert_eq!(world.record(&job).state, State::Recovering);
    fail(&mut world, &job, 0);
    let record = world.record(&job);
    assert_eq!(record.state, State::Failed);
    assert!(record.reason.contains("failed 3 times in a row"), "{}", record.reason);
    assert!(record.reason.ends_with("out of memory"), "{}", record.reason);
}

#[test]
fn a_spare_with_other_data_does_not_take_part_and_the_job_lives() {
    let (mut world, job) = running(0, "");
    world.join_as("x", |w| w.digest = 9);
    world.kill("b");
    world.settle();
    assert!(world.has_event(&job, "worker.lost", "x (rank 1) does not see the same data"));
    world.join("y");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, rank_of(&world, &job, "y")), (State::Running, Some(1)));
}

/// Weights that are read again in each epoch may have been replaced; those that a newcomer does not read say nothing.
#[test]
fn a_spare_with_other_weights_does_not_take_part_and_the_job_lives() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 20, ""));
    let weights =
        |names: &[(&str, &str)]| names.iter().map(|(key, name)| (key.to_string(), name.to_string())).collect();
    for id in ["a", "b"] {
        world.join_as(id, |w| w.weights = weights(&[("init_from", "11aa"), ("ppo.reward_model", "22bb")]));
    }
    world.settle();
    world.train(&job, 3);
    world.join_as("x", |w| w.weights = weights(&[("ppo.reward_model", "33cc")]));
    world.kill("b");
    world.settle();
    assert!(world.has_event(&job, "worker.lost", "x (rank 1) does not see the same data, model or weights"));
    assert!(world.has_event(&job, "worker.lost", "ppo.reward_model 33cc and not 22bb"));
    world.join_as("y", |w| w.weights = weights(&[("ppo.reward_model", "22bb")]));
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, rank_of(&world, &job, "y")), (State::Running, Some(1)));
}

#[test]
fn a_worker_that_comes_back_empty_loses_its_place() {
    let (mut world, job) = running(1, "");
    // The process of b was started anew under its name, and the older stream is not closed yet.
    world.worker("b").work = None;
    world.connect("b");
    world.settle();
    assert!(world.has_event(&job, "worker.lost", "b (rank 1) came back without its work"));
    let record = world.record(&job);
    assert!(
        record.epoch.get() == 2 && record.rank_of("b").xor(record.rank_of("c")) == Some(Rank::new(1)),
        "one of both is placed anew"
    );
    world.train(&job, 1);
    assert_eq!(world.view(&job).committed_step, 4);
}

#[test]
fn messages_of_an_older_epoch_change_nothing() {
    // T-1, for every message that carries an epoch.
    let (mut world, job) = running(1, "");
    world.kill("b");
    world.settle();
    world.train(&job, 1);
    let (job_id, epoch) = (job.clone(), 1);
    let record = Some(proto::StepRecord { step: 2, ..Default::default() });
    let validation = Some(proto::Validation { step: 1, ..Default::default() });
    let stale = [
        FromWorker::Heartbeat(proto::Heartbeat {
            job_id: job_id.clone(),
            epoch,
            committed_step: 9,
            ..Default::default()
        }),
        FromWorker::Prepared(proto::Prepared { job_id: job_id.clone(), epoch, ..Default::default() }),
        FromWorker::Step(proto::StepReport { job_id: job_id.clone(), epoch, record }),
        FromWorker::RecordsMissing(proto::RecordsMissing {
            job_id: job_id.clone(),
            epoch,
            from_step: 1,
            through_step: 20,
        }),
        FromWorker::ShardWritten(proto::ShardWritten { job_id: job_id.clone(), epoch, step: 20, ..Default::default() }),
        FromWorker::CheckpointMissed(proto::CheckpointMissed {
            job_id: job_id.clone(),
            epoch,
            step: 20,
            ..Default::default()
        }),
        FromWorker::ManifestPublished(proto::ManifestPublished {
            job_id: job_id.clone(),
            epoch,
            step: 20,
            ..Default::default()
        }),
        FromWorker::Finished(proto::Finished { job_id: job_id.clone(), epoch, committed_step: 20 }),
        FromWorker::Failed(proto::Failed {
            job_id: job_id.clone(),
            epoch,
            error: "late".into(),
            fatal: true,
            ..Default::default()
        }),
        FromWorker::PeerLost(proto::PeerLost {
            job_id: job_id.clone(),
            epoch,
            rank: 1,
            error: "late".into(),
            ..Default::default()
        }),
        FromWorker::Validation(proto::ValidationReport { job_id, epoch, validation }),
    ];
    let (before, view) = (world.record(&job).clone(), world.view(&job));
    let stream = world.worker("a").stream.expect("connected");
    let num_stale = stale.len() as u64;
    for body in stale {
        assert_eq!(
            world.input(Input::Message { stream, body: Box::new(body.clone()) }),
            0,
            "{body:?} led to something"
        );
    }
    assert_eq!((world.record(&job), world.view(&job)), (&before, view));
    assert_eq!(world.machine.num_stale(), num_stale);
}

#[test]
fn a_coordinator_that_was_stopped_itself_blames_nobody() {
    let (mut world, job) = running(1, "checkpoint.interval_s = 30");
    peer_lost(&mut world, &job, "a", 1);
    world.worker("a").outbox.clear();
    world.now += LIMITS.failure_timeout * 10;
    world.input(Input::Tick);
    assert!(world.machine.poll_timeout().is_some_and(|d| d > world.now), "no deadline is left behind");
    assert_eq!(world.record(&job).epoch.get(), 1);
    world.machine.jobs().for_each(|j| assert!(j.pending.len() == 2, "the checkpoint that is due is named"));
    world.pass(LIMITS.failure_timeout * 2);
    assert!(!world.has_event(&job, "worker.lost", ""), "all had something to say since");
}

#[test]
fn a_tick_without_a_deadline_does_nothing() {
    let (mut world, _) = running(1, "");
    assert_eq!(world.input(Input::Tick), 0);
}
