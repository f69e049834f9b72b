//! T-11: what a newcomer cannot do costs it its place, and nobody else theirs.

use std::time::Duration;

use super::world::{LIMITS, World, job_file};
use crate::Input;
use crate::record::State;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_torus::ids::Rank;

/// A job of `dp` places that runs on a, b, ...
fn running(dp: usize) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(dp, 40, ""));
    ["a", "b", "c", "d"].iter().take(dp).for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 3);
    (world, job)
}

fn unreached(world: &mut World, job: &str, by: &str, of: u32, called: bool) {
    let (job_id, epoch) = (job.to_string(), world.record(job).epoch.get());
    let reason = "nohost.invalid:1 cannot be resolved".into();
    let peers = vec![proto::UnreachedPeer { rank: of, reason, called }];
    let body = FromWorker::Unreached(proto::Unreached { job_id, epoch, peers });
    world.worker(by).outbox.push_back(body);
    world.settle();
}

fn warm_up(world: &World, worker: &str) -> proto::WorkerInfo {
    let workers = world.machine.view_workers(world.at());
    workers.into_iter().find(|w| w.worker_id == worker).unwrap_or_else(|| panic!("no worker {worker}"))
}

#[test]
fn t11_a_newcomer_without_data_loses_its_place_and_the_job_lives() {
    let (mut world, job) = running(2);
    world.kill("b");
    world.join_as("x", |w| w.prepare_error = Some(("cannot read /data: not found".into(), true)));
    assert_eq!(world.record(&job).rank_of("x").map(Rank::index), Some(1), "nobody else is there");
    world.settle();
    let record = world.record(&job);
    assert_eq!(
        (record.state, record.rank_of("a").map(Rank::index), record.rank_of("x").map(Rank::index)),
        (State::Recovering, Some(0), None)
    );
    assert!(
        record.reason.contains("x is given no place: cannot fill its place: cannot read /data"),
        "{}",
        record.reason
    );
    assert!(world.has_event(&job, "worker.unfit", "it is tried again in 5 s"));
    world.join("y");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, world.record(&job).rank_of("y").map(Rank::index)), (State::Running, Some(1)));
    assert_eq!(world.view(&job).lost_steps, 0);
}

#[test]
fn t11_the_job_fails_where_nobody_can_prepare_it() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 20, ""));
    for id in ["a", "b"] {
        world.join_as(id, |w| w.prepare_error = Some(("cannot read /data: not found".into(), true)));
    }
    world.settle();
    let record = world.record(&job);
    assert_eq!(record.state, State::Failed);
    assert!(record.reason.ends_with("cannot go on: cannot read /data: not found"), "{}", record.reason);
}

#[test]
fn t11_at_the_first_start_who_lacks_the_data_gives_way_to_another() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 20, ""));
    world.join_as("x", |w| w.prepare_error = Some(("cannot read /data: not found".into(), true)));
    ["a", "b"].iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 2);
    let record = world.record(&job);
    assert_eq!((record.state, record.rank_of("x").map(Rank::index)), (State::Running, None), "{}", record.reason);
}

#[test]
fn t11_who_is_new_and_not_reached_goes_and_never_who_reports_it() {
    for (by, of) in [("a", 1), ("x", 0)] {
        let (mut world, job) = running(2);
        world.kill("b");
        world.join("x");
        world.settle();
        assert_eq!(world.record(&job).rank_of("x").map(Rank::index), Some(1));
        unreached(&mut world, &job, by, of, true);
        world.pass(LIMITS.link_grace());
        let record = world.record(&job);
        assert_eq!(
            (record.rank_of("a").map(Rank::index), record.rank_of("x").map(Rank::index)),
            (Some(0), None),
            "{by} reports {of}"
        );
        assert!(world.has_event(&job, "worker.unfit", "look at the address that it is dialled at (--advertise)"));
        world.join("y");
        world.settle();
        world.train(&job, 1);
        assert_eq!(
            (world.record(&job).state, world.record(&job).rank_of("y").map(Rank::index)),
            (State::Running, Some(1))
        );
    }
}

/// Found by the simulation, seed 6342.
#[test]
fn t11_who_comes_back_with_its_state_is_no_newer_than_before() {
    let (mut world, job) = running(2);
    world.kill("b");
    world.join("x");
    world.settle();
    assert_eq!(world.record(&job).rank_of("x").map(Rank::index), Some(1));
    let stream = world.worker("a").stream.take().expect("it is connected");
    world.input(Input::Closed { stream, reason: "closed its stream (reset)".into() });
    world.connect("a");
    world.settle();
    assert_eq!(world.record(&job).rank_of("a").map(Rank::index), Some(0), "it came back with its state");
    // Each says it of the other, and a was called.
    unreached(&mut world, &job, "x", 0, true);
    unreached(&mut world, &job, "a", 1, false);
    world.pass(LIMITS.link_grace());
    let record = world.record(&job);
    let ranks = (record.rank_of("a").map(Rank::index), record.rank_of("x").map(Rank::index));
    assert_eq!(ranks, (Some(0), None), "{}", record.reason);
}

#[test]
fn t11_spares_that_cannot_fill_a_place_are_shown_and_passed_over() {
    let (mut world, job) = running(2);
    world.join_as("p", |w| w.prepare_error = Some(("cannot read /data: not found".into(), true)));
    world.join_as("q", |w| w.unreachable = true);
    world.join_as("r", |w| w.digest = 9);
    world.join("z");
    world.settle();
    let failed = i32::from(proto::WarmUpState::Failed);
    for (worker, reason) in [("p", "cannot read /data"), ("q", "does not reach"), ("r", "does not see the same data")] {
        let shown = warm_up(&world, worker);
        assert_eq!((shown.warm_up, shown.warm_up_job.as_str()), (failed, job.as_str()), "{shown:?}");
        assert!(shown.warm_up_reason.contains(reason) && shown.warm_up_retry_s > 0.0, "{shown:?}");
    }
    assert_eq!(warm_up(&world, "z").warm_up, i32::from(proto::WarmUpState::Ready));
    world.kill("b");
    assert_eq!(world.record(&job).rank_of("z").map(Rank::index), Some(1), "the one that has shown that it can");
    world.settle();
    world.train(&job, 1);
    assert_eq!(world.record(&job).state, State::Running);
}

#[test]
fn a_spare_that_is_mended_is_tried_again() {
    let (mut world, job) = running(2);
    world.join_as("p", |w| w.prepare_error = Some(("cannot read /data: not found".into(), true)));
    world.settle();
    world.pass(LIMITS.prove_again(0));
    assert_eq!(world.worker("p").told_to_warm_up.len(), 2, "asked again after the pause");
    world.worker("p").prepare_error = None;
    world.pass(LIMITS.prove_again(0));
    assert_eq!(warm_up(&world, "p").warm_up, i32::from(proto::WarmUpState::Failed), "the second pause is longer");
    world.pass(LIMITS.prove_again(1));
    assert_eq!(warm_up(&world, "p").warm_up, i32::from(proto::WarmUpState::Ready));
    assert!(!world.record(&job).events.iter().any(|e| e.kind == "worker.lost"));
}

#[test]
fn a_probe_without_an_answer_is_given_up() {
    let (mut world, job) = running(2);
    world.join("z");
    world.deliver_to("z");
    while world.deliver_to("z") || world.deliver_from("z") {}
    // a is asked to dial z, and is silent about it.
    world.worker("a").inbox.retain(|m| !matches!(m, proto::coordinator_message::Body::Probe(_)));
    world.settle();
    assert_eq!(warm_up(&world, "z").warm_up, i32::from(proto::WarmUpState::Proving));
    world.pass(LIMITS.probe() + Duration::from_secs(1));
    assert_eq!(warm_up(&world, "z").warm_up, i32::from(proto::WarmUpState::Ready), "b has reached it");
    assert_eq!(world.record(&job).state, State::Running);
}

#[test]
fn a_damaged_frame_is_laid_upon_nobody_at_once_and_then_weighed() {
    let (mut world, job) = running(3);
    world.join("z");
    world.settle();
    for n in 0..2 {
        let (job_id, epoch) = (job.clone(), world.record(&job).epoch.get());
        let error = "a frame is damaged".into();
        let body = FromWorker::PeerLost(proto::PeerLost { job_id, epoch, rank: 1, error, damaged: true });
        world.worker("a").outbox.push_back(body);
        world.settle();
        world.pass(LIMITS.link_grace());
        assert_eq!(world.record(&job).epoch.get(), n + 2);
    }
    let record = world.record(&job);
    assert_eq!(
        (
            record.rank_of("a").map(Rank::index),
            record.rank_of("b").map(Rank::index),
            record.rank_of("z").map(Rank::index)
        ),
        (Some(0), None, Some(1))
    );
}

#[test]
fn a_worker_on_the_loopback_is_named_before_the_first_step() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 20, ""));
    world.join_as("here", |w| w.address = Some("127.0.0.1:7".into()));
    world.join("there");
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get()), (State::Queued, 0));
    assert!(
        record.reason.contains("cannot dial here at 127.0.0.1:7") && record.reason.contains("--advertise"),
        "{}",
        record.reason
    );
}
