//! Fewer replicas where nobody is there for a place, and more again when workers come (T-3, T-5).

use std::time::Duration;

use super::world::{LIMITS, World, job_file};
use crate::record::State;
use toroid_proto as proto;
use toroid_torus::ids::WorkerId;

/// A job of `tp * dp` places, w0 at rank 0 and so on, that has committed 5 steps. No spare is there.
fn running(tp: usize, dp: usize, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(0, 40, &format!("shape.tp = {tp}\nshape.dp = {dp}\n{more}")));
    (0..tp * dp).for_each(|n| world.join(&format!("w{n}")));
    world.settle();
    world.train(&job, 5);
    assert_eq!(world.view(&job).committed_step, 5);
    (world, job)
}

/// Long enough for a shrink.
fn patience() -> Duration {
    LIMITS.replacement() + LIMITS.heartbeat_interval
}

fn newest(world: &World, job: &str) -> proto::Incident {
    world.view(job).incidents.last().cloned().expect("an incident")
}

fn places(world: &World, job: &str) -> Vec<String> {
    world.record(job).places.iter().map(|w| w.as_ref().map_or_else(String::new, WorkerId::to_string)).collect()
}

/// Trains on, and checks that nothing was lost: the world checks that the curve is whole and the same.
fn check_done(world: &mut World, job: &str) {
    world.train(job, 40);
    let record = world.record(job);
    assert_eq!((record.state, world.curves[job].len()), (State::Done, 40), "{}", record.reason);
    let lost = world.view(job).lost_steps;
    assert_eq!(lost, 0, "{:#?}", world.view(job).incidents);
}

#[test]
fn without_a_spare_it_goes_on_with_fewer_replicas_and_grows_when_a_worker_comes() {
    let (mut world, job) = running(1, 4, "");
    world.kill("w1");
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get()), (State::Recovering, 1));
    assert!(record.reason.ends_with("without one it goes on with dp 3 after 10 s"), "{}", record.reason);
    world.pass(LIMITS.replacement() - Duration::from_secs(1));
    assert_eq!(world.record(&job).epoch.get(), 1, "a worker may come back until then");
    world.pass(Duration::from_secs(2));
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.shape.dp(), record.earlier.len()), (2, 3, 1));
    assert_eq!(places(&world, &job), ["w0", "w2", "w3"], "the others keep their order");
    let origin = record.heal.as_ref().and_then(|h| h.origin.clone()).expect("the state is split anew");
    assert_eq!((origin.shape.dp(), origin.ranks), (4, vec![Some(0), Some(2), Some(3)]));
    world.train(&job, 3);
    let (record, view) = (world.record(&job), world.view(&job));
    assert_eq!((record.state, record.earlier.len(), view.committed_step), (State::Degraded, 0, 8));
    assert_eq!((view.state(), view.places.len()), (proto::JobState::Degraded, 3));
    let dp = |shape: Option<proto::Shape>| shape.expect("a shape").dp;
    assert_eq!((dp(view.shape), dp(view.full_shape)), (3, 4));
    let incident = newest(&world, &job);
    assert_eq!((incident.rung.as_str(), incident.steps_lost, incident.resolved), ("shrink", 0, true));
    let expected =
        "nobody came for it within 10 s: the others go on with dp 3 instead of 4 and the same samples in every step";
    assert!(incident.reason.contains(expected), "{}", incident.reason);

    world.join("x");
    assert_eq!(world.record(&job).epoch.get(), 2, "it shows first that it can fill a place");
    world.settle();
    assert_eq!(
        (world.record(&job).epoch.get(), places(&world, &job)),
        (3, ["w0", "w2", "w3", "x"].map(String::from).to_vec())
    );
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, world.view(&job).committed_step), (State::Running, 9));
    let incident = newest(&world, &job);
    assert_eq!((incident.rung.as_str(), incident.seen_by.as_str(), incident.steps_lost), ("grow", "capacity", 0));
    check_done(&mut world, &job);
}

#[test]
fn a_worker_that_comes_in_time_takes_the_place() {
    let (mut world, job) = running(1, 4, "");
    world.kill("w1");
    world.pass(LIMITS.replacement() / 2);
    world.join("x");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).shape.dp(), newest(&world, &job).rung.as_str()), (4, "spare"));
    // The next death has all of the time again.
    world.kill("w2");
    world.pass(LIMITS.replacement() - Duration::from_secs(1));
    assert_eq!(world.record(&job).epoch.get(), 2);
    check_done_after_shrink(world, &job, 3);
}

fn check_done_after_shrink(mut world: World, job: &str, dp: usize) {
    world.pass(Duration::from_secs(2));
    assert_eq!(world.record(job).shape.dp(), dp);
    check_done(&mut world, job);
}

#[test]
fn it_does_not_go_below_the_fewest_replicas_that_the_job_asks_for() {
    let (mut world, job) = running(1, 4, "fault_tolerance.min_dp = 3");
    world.kill("w1");
    world.kill("w3");
    world.settle();
    let reason = &world.record(&job).reason;
    assert!(reason.ends_with("dp 2 would be fewer replicas than fault_tolerance.min_dp = 3"), "{reason}");
    world.pass(10 * patience());
    assert_eq!(world.record(&job).epoch.get(), 1);
    world.join("x");
    assert_eq!(world.record(&job).shape.dp(), 3, "it has waited long enough");
    world.settle();
    check_done(&mut world, &job);
}

#[test]
fn with_one_copy_of_the_state_it_waits() {
    let (mut world, job) = running(1, 4, "fault_tolerance.redundancy = false");
    world.kill("w1");
    world.pass(10 * patience());
    assert_eq!((world.record(&job).epoch.get(), world.record(&job).shape.dp()), (1, 4));
}

#[test]
fn down_to_one_place_and_up_again() {
    let (mut world, job) = running(1, 3, "");
    for (victim, dp) in [("w1", 2), ("w0", 1)] {
        world.kill(victim);
        world.pass(patience());
        assert_eq!(world.record(&job).shape.dp(), dp);
        world.train(&job, 2);
    }
    world.join("x");
    world.settle();
    world.train(&job, 1);
    world.join("y");
    world.settle();
    assert_eq!(places(&world, &job), ["w2", "x", "y"]);
    check_done(&mut world, &job);
}

/// T-3: the mate of the lost one has no place any more, and holds shards until all have theirs.
#[test]
fn t3_who_is_left_over_keeps_its_state_until_a_step_is_committed() {
    let (mut world, job) = running(2, 3, "");
    world.kill("w2");
    world.pass(patience());
    assert_eq!(
        (places(&world, &job), world.view(&job).spares),
        (["w0", "w1", "w4", "w5"].map(String::from).to_vec(), 1)
    );
    assert_eq!(world.work("w3").held.len(), 1, "it may be asked for it");
    // w5 held the only other copy of a shard of w3's, and nobody has split the state yet.
    world.kill("w5");
    world.settle();
    assert_eq!(places(&world, &job), ["w0", "w1", "w4", "w3"]);
    let heal = world.record(&job).heal.clone().expect("a healing epoch");
    assert_eq!((heal.newcomers.len(), heal.origin.map(|o| o.ranks[3])), (0, Some(Some(3))));
    world.train(&job, 2);
    assert_eq!(world.record(&job).shape.dp(), 2);
    check_done(&mut world, &job);
}

/// It was a spare while it still held its state for the others, and heard nothing then of what a spare is asked.
#[test]
fn t11_who_is_left_over_shows_that_it_can_fill_a_place_once_it_holds_nothing() {
    let (mut world, job) = running(2, 2, "");
    world.kill("w2");
    world.pass(patience());
    world.train(&job, 3);
    assert_eq!((world.record(&job).state, places(&world, &job)), (State::Degraded, vec!["w0".into(), "w1".into()]));
    world.join("x");
    world.settle();
    world.train(&job, 3);
    let mut grown = places(&world, &job);
    grown.sort_unstable();
    assert_eq!((world.record(&job).state, grown.join(" ")), (State::Running, "w0 w1 w3 x".into()));
    check_done(&mut world, &job);
}

#[test]
fn who_is_left_over_is_a_spare_afterwards() {
    let (mut world, job) = running(2, 3, "");
    world.kill("w2");
    world.pass(patience());
    world.train(&job, 1);
    assert!(world.workers["w3"].work.is_none(), "what it held is not needed any more");
    world.kill("w5");
    world.settle();
    assert_eq!((places(&world, &job)[3].as_str(), newest(&world, &job).rung.as_str()), ("w3", "spare"));
    world.train(&job, 1);
    world.join("x");
    world.join("y");
    world.settle();
    assert_eq!(world.record(&job).shape.dp(), 3);
    check_done(&mut world, &job);
}

/// Some have split the state anew, nobody knows whether all have.
#[test]
fn t3_deaths_while_the_state_is_split_anew_cost_no_step() {
    // w0 and w3 hold no shard in common but are next to the lost w1; how many points does each get through?
    for victim in ["w3", "w4"] {
        for num_points in 0..10 {
            let (mut world, job) = running(1, 5, "");
            world.kill("w1");
            world.pass(patience());
            let mut num = 0;
            world.step_in_part(&job, |_| {
                num += 1;
                num <= num_points
            });
            world.kill(victim);
            world.pass(patience());
            world.settle();
            world.train(&job, 1);
            let record = world.record(&job);
            assert_eq!((record.shape.dp(), record.state), (3, State::Degraded), "{victim} after {num_points}");
            ["x", "y"].iter().for_each(|id| world.join(id));
            world.settle();
            check_done(&mut world, &job);
        }
    }
}

#[test]
fn a_newcomer_that_dies_while_it_grows_costs_no_step() {
    for num_points in 0..10 {
        let (mut world, job) = running(1, 3, "");
        world.kill("w1");
        world.pass(patience());
        world.train(&job, 1);
        world.join("x");
        world.settle();
        let mut num = 0;
        world.step_in_part(&job, |_| {
            num += 1;
            num <= num_points
        });
        world.kill("x");
        world.pass(patience());
        world.settle();
        world.train(&job, 1);
        assert_eq!(world.record(&job).state, State::Degraded, "after {num_points}");
        check_done(&mut world, &job);
    }
}

#[test]
fn the_coordinator_may_die_between_any_two_outputs_of_a_shrink_and_a_growth() {
    for (tp, dp, victim) in [(1, 4, "w2"), (2, 2, "w1")] {
        for crash_after in 1..60 {
            let (mut world, job) = running(tp, dp, "");
            world.crash_after = world.num_outputs + crash_after;
            world.kill(victim);
            world.pass(2 * patience());
            world.train(&job, 2);
            let story = world.story.join("\n");
            assert_eq!(world.record(&job).shape.dp(), dp - 1, "crash after {crash_after} outputs:\n{story}");
            world.crash_after = world.num_outputs + crash_after;
            world.join("x");
            world.pass(patience());
            world.train(&job, 2);
            let story = world.story.join("\n");
            let record = world.record(&job);
            assert_eq!((record.state, record.shape.dp()), (State::Running, dp), "after {crash_after}:\n{story}");
            assert_eq!(world.curves[&job].len(), 9, "crash after {crash_after} outputs:\n{story}");
            assert!(world.view(&job).incidents.iter().all(|i| i.resolved && i.steps_lost == 0), "{story}");
        }
    }
}

#[test]
fn a_degraded_job_goes_on_over_a_restart_of_the_coordinator() {
    let (mut world, job) = running(1, 4, "");
    world.kill("w1");
    world.pass(patience());
    world.train(&job, 2);
    world.restart(|_| true);
    world.settle();
    world.train(&job, 2);
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get(), record.shape.dp()), (State::Degraded, 2, 3));
    check_done(&mut world, &job);
}

/// Both holders of a shard are gone: fewer replicas load the last checkpoint.
#[test]
fn a_restore_may_have_fewer_replicas_too() {
    let (mut world, job) = running(1, 4, "checkpoint.interval_steps = 2");
    world.kill("w1");
    world.kill("w2");
    world.pass(patience());
    world.settle();
    world.train(&job, 3);
    let record = world.record(&job);
    assert_eq!((record.state, record.shape.dp(), record.restore_step.get()), (State::Degraded, 2, 4));
    assert_eq!(newest(&world, &job).rung, "restore");
    ["x", "y"].iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 40);
    assert_eq!(world.record(&job).state, State::Done);
}

/// T-2: of the replicas of two, the broken one has the only place that has committed the newest step.
#[test]
fn who_alone_has_committed_the_newest_step_keeps_a_place() {
    let (mut world, job) = running(2, 2, "");
    // All have sealed step 6; only w1 has its sums when w0 dies.
    let mut num = 0;
    world.step_in_part(&job, |id| {
        num += 1;
        num <= 4 || id == "w1"
    });
    world.settle();
    assert_eq!((world.work("w1").committed, world.work("w3").committed, world.work("w3").sealed), (6, 5, true));
    world.kill("w0");
    world.pass(patience());
    assert_eq!(places(&world, &job), ["w2", "w1"], "w3 is left over");
    let heal = world.record(&job).heal.clone().expect("a healing epoch");
    assert_eq!((heal.step.get(), heal.source.index()), (6, 1), "a committed step is not made again");
    check_done(&mut world, &job);
}

#[test]
fn a_step_that_ends_whoever_computes_it_does_not_eat_all_replicas() {
    let (mut world, job) = running(1, 5, "");
    for victim in ["w1", "w3", "w0"] {
        world.kill(victim);
        world.pass(patience());
        world.settle();
    }
    let record = world.record(&job);
    assert_eq!((record.state, record.shape.dp()), (State::Failed, 3));
    assert!(record.reason.contains("w0, w1, w3 were lost one after the other"), "{}", record.reason);
}

#[test]
fn many_that_die_at_once_are_no_such_step() {
    let (mut world, job) = running(1, 6, "");
    ["w1", "w3", "w5"].iter().for_each(|victim| world.kill(victim));
    world.pass(patience());
    world.settle();
    world.kill("w0");
    world.pass(patience());
    world.settle();
    assert_ne!(world.record(&job).state, State::Failed, "{}", world.record(&job).reason);
}

#[test]
fn state_that_is_not_to_be_trusted_is_loaded_by_fewer_replicas() {
    let (mut world, job) = running(1, 3, "checkpoint.interval_steps = 4");
    let error = "two copies differ".to_string();
    let failed = proto::Failed { job_id: job.clone(), epoch: 1, error, restore: true, ..Default::default() };
    world.worker("w0").outbox.push_back(proto::worker_message::Body::Failed(failed));
    world.deliver_from("w0");
    world.kill("w1");
    world.pass(patience());
    world.settle();
    world.train(&job, 3);
    let (record, incident) = (world.record(&job), newest(&world, &job));
    assert_eq!((record.state, record.shape.dp(), record.restore_step.get()), (State::Degraded, 2, 4));
    assert_eq!((incident.rung.as_str(), incident.steps_lost), ("restore", 1), "{incident:?}");
    assert!(incident.reason.ends_with("all go on from the checkpoint of step 4"), "{}", incident.reason);
}
