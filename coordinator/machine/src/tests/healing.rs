//! T-3: while one holder of each shard lives, no committed step is lost.

use proto::coordinator_message::Body as ToWorker;
use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;

use super::world::{LIMITS, World, job_file};
use crate::record::{Rung, SeenBy, State};
use crate::{Input, Reply};

/// A job of `dp` places, w0 at rank 0 and so on, that has committed `steps`; the rest are spares s0, s1.
fn running(dp: usize, spares: usize, steps: u64, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(dp, 40, more));
    (0..dp).for_each(|n| world.join(&format!("w{n}")));
    (0..spares).for_each(|n| world.join(&format!("s{n}")));
    world.settle();
    world.train(&job, steps);
    let places = (0..dp).map(|n| Some(format!("w{n}").into())).collect::<Vec<_>>();
    assert_eq!(*world.record(&job).places, *places);
    (world, job)
}

fn newest(world: &World, job: &str) -> proto::Incident {
    world.view(job).incidents.last().cloned().expect("an incident")
}

#[test]
fn a_spare_takes_the_place_and_no_step_is_lost() {
    let (mut world, job) = running(4, 1, 7, "");
    world.kill("w2");
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get(), record.places[2].as_deref()), (State::Recovering, 2, Some("s0")));
    let expected = "w2 (rank 2) closed its stream (reset); s0 takes rank 2 (";
    assert!(record.reason.starts_with(expected), "{}", record.reason);
    assert!(record.reason.ends_with("what is missing comes from the other holders"), "{}", record.reason);
    let assigned = world.worker("w0").inbox.iter().any(|m| matches!(m, ToWorker::Assign(a) if a.heal && a.epoch == 2));
    assert!(assigned, "the fence is on its way at once");
    world.settle();
    let heal = world.record(&job).heal.clone().expect("a healing epoch that was started");
    assert_eq!(
        (heal.step.get(), heal.source.index(), heal.newcomers.iter().map(|r| r.index()).collect::<Vec<_>>()),
        (7, 0, vec![2])
    );
    assert_eq!(world.curves[&job].len(), 7, "the curve is not cut");
    world.train(&job, 1);
    let incident = newest(&world, &job);
    assert_eq!(
        (incident.rung.as_str(), incident.seen_by.as_str(), incident.resolved),
        ("spare", "stream closed", true)
    );
    assert_eq!((incident.step, incident.resumed_step, incident.steps_lost, incident.epoch), (7, 7, 0, 2));
    assert_eq!((incident.ranks, incident.workers), (vec![2], vec!["w2".to_string()]));
    world.train(&job, 40);
    assert_eq!((world.record(&job).state, world.curves[&job].len()), (State::Done, 40));
}

#[test]
fn who_is_a_step_behind_gets_the_sums_and_commits() {
    let (mut world, job) = running(4, 1, 7, "");
    // All have sealed step 8; only w1 has its sums when w3 dies.
    let mut asked = 0;
    world.step_in_part(&job, |id| {
        asked += 1;
        asked <= 4 || id == "w1"
    });
    assert_eq!((world.work("w1").committed, world.work("w0").committed, world.work("w0").sealed), (8, 7, true));
    world.kill("w3");
    world.settle();
    let heal = world.record(&job).heal.clone().expect("a healing epoch that was started");
    assert_eq!(
        (heal.step.get(), heal.source.index(), heal.newcomers.iter().map(|r| r.index()).collect::<Vec<_>>()),
        (8, 1, vec![3])
    );
    world.train(&job, 1);
    assert_eq!((world.view(&job).committed_step, world.curves[&job].len()), (9, 9), "step 8 is in the curve too");
}

#[test]
fn a_step_that_only_the_dead_had_committed_is_made_again_and_the_curve_is_the_same() {
    let (mut world, job) = running(4, 1, 7, "");
    let mut asked = 0;
    world.step_in_part(&job, |id| {
        asked += 1;
        asked <= 4 || id == "w0"
    });
    while world.deliver_from("w0") {}
    assert_eq!(world.curves[&job].len(), 8);
    world.kill("w0");
    world.settle();
    let heal = world.record(&job).heal.clone().expect("a healing epoch that was started");
    assert_eq!(
        (heal.step.get(), heal.source.index(), heal.newcomers.iter().map(|r| r.index()).collect::<Vec<_>>()),
        (7, 1, vec![0])
    );
    world.train(&job, 33);
    assert_eq!((world.record(&job).state, world.curves[&job].len()), (State::Done, 40));
    assert_eq!(newest(&world, &job).steps_lost, 0);
}

#[test]
fn the_records_that_a_dead_rank_0_did_not_report_come_from_the_next_one() {
    let (mut world, job) = running(4, 1, 7, "");
    world.step(&job);
    world.step(&job);
    world.kill("w0");
    world.settle();
    assert_eq!(world.curves[&job].len(), 7, "steps 8 and 9 were not reported");
    world.train(&job, 1);
    assert_eq!(world.curves[&job].len(), 10);
}

#[test]
fn two_that_hold_no_shard_in_common_may_die_together() {
    let (mut world, job) = running(4, 2, 5, "");
    world.kill("w1");
    world.kill("w3");
    world.settle();
    let heal = world.record(&job).heal.clone().expect("a healing epoch that was started");
    assert_eq!((heal.step.get(), heal.newcomers.iter().map(|r| r.index()).collect::<Vec<_>>()), (5, vec![1, 3]));
    world.train(&job, 1);
    let incident = newest(&world, &job);
    assert_eq!((incident.number, incident.ranks, incident.steps_lost), (1, vec![1, 3], 0), "it is one incident");
}

#[test]
fn both_holders_of_a_shard_together_cost_the_steps_since_the_checkpoint() {
    let (mut world, job) = running(4, 2, 7, "checkpoint.interval_steps = 5");
    world.kill("w1");
    world.kill("w2");
    world.settle();
    world.train(&job, 1);
    let incident = newest(&world, &job);
    assert_eq!((incident.rung.as_str(), incident.resumed_step, incident.steps_lost), ("restore", 5, 2));
    assert!(incident.reason.contains("the shard of rank 1 is lost: both its holders, ranks 1 and 2"), "{incident:?}");
    assert!(incident.reason.ends_with("all go on from the checkpoint of step 5"), "{incident:?}");
    world.train(&job, 1);
    let view = world.view(&job);
    assert_eq!((view.committed_step, view.lost_steps, world.curves[&job].len()), (7, 2, 7));
}

#[test]
fn deaths_while_others_are_healed_are_one_incident() {
    let (mut world, job) = running(4, 2, 6, "");
    world.kill("w2");
    // s0 has its place and has not prepared; then it dies as well, and the next has not pulled its shards when w0 dies.
    world.kill("s0");
    world.settle();
    assert_eq!(world.record(&job).places[2].as_deref(), Some("s1"));
    world.join("s2");
    world.kill("w0");
    world.settle();
    let record = world.record(&job);
    assert_eq!(
        (record.epoch.get(), record.places[0].as_deref(), record.places[2].as_deref()),
        (4, Some("s2"), Some("s1"))
    );
    let heal = record.heal.clone().expect("a healing epoch that was started");
    assert_eq!(
        (heal.step.get(), heal.newcomers.iter().map(|r| r.index()).collect::<Vec<_>>()),
        (6, vec![0, 2]),
        "s1 had not pulled anything"
    );
    world.train(&job, 1);
    let incident = newest(&world, &job);
    assert_eq!((incident.number, incident.ranks, incident.steps_lost), (1, vec![0, 2], 0));
    assert_eq!(incident.workers, ["s0", "w0", "w2"]);
}

#[test]
fn in_the_first_epoch_the_initial_weights_are_a_state() {
    let (mut world, job) = running(4, 1, 0, "");
    world.kill("w1");
    world.settle();
    assert_eq!(world.record(&job).heal.as_ref().map(|h| h.step.get()), Some(0));
    world.train(&job, 1);
    assert_eq!(world.view(&job).committed_step, 1);
}

#[test]
fn a_death_before_the_first_start_loads_again() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 9, ""));
    ["a", "b", "c"].iter().for_each(|id| world.join(id));
    world.kill("b");
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.heal.is_none(), record.has_state), (2, true, true));
    world.train(&job, 1);
    assert_eq!(newest(&world, &job).rung, "spare");
}

#[test]
fn a_death_after_the_last_step_is_healed_and_the_job_is_done() {
    let (mut world, job) = running(2, 1, 39, "");
    world.step(&job);
    // The last shard of w1 was not heard of.
    while world.deliver_from("w0") {}
    world.kill("w1");
    world.settle();
    assert_eq!(world.record(&job).heal.as_ref().map(|h| h.step.get()), Some(40));
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, newest(&world, &job).resolved), (State::Done, true));
}

#[test]
fn the_lost_workers_own_restart_takes_its_place_where_no_spare_is() {
    let (mut world, job) = running(2, 0, 3, "");
    world.kill("w1");
    let incident = newest(&world, &job);
    assert_eq!((incident.rung.as_str(), incident.resolved), ("wait", false));
    world.join_as("again", |w| w.host = "host-w1".into());
    world.settle();
    world.train(&job, 1);
    assert_eq!((newest(&world, &job).rung.as_str(), newest(&world, &job).steps_lost), ("restart", 0));
    world.kill("again");
    world.join("elsewhere");
    world.settle();
    world.train(&job, 1);
    assert_eq!(newest(&world, &job).rung, "spare", "it is on another host");
}

#[test]
fn a_worker_that_comes_back_with_its_state_has_its_place_again() {
    let (mut world, job) = running(2, 0, 3, "");
    for id in ["w0", "w1"] {
        let stream = world.worker(id).stream.take().expect("connected");
        let reason = "closed its stream (reset)".into();
        world.input(crate::Input::Closed { stream, reason });
    }
    assert_eq!(*world.record(&job).places, [None, None], "the network of the coordinator was away");
    world.reconnect(|_| true);
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.places.iter().flatten().count()), (2, 2));
    assert_eq!(record.heal.as_ref().map(|h| h.newcomers.len()), Some(0), "both have their state");
    world.train(&job, 1);
    assert_eq!((newest(&world, &job).steps_lost, newest(&world, &job).rung.as_str()), (0, "reconnect"));
}

#[test]
fn a_worker_whose_place_was_given_away_drops_its_work() {
    // T-1
    let (mut world, job) = running(2, 1, 3, "");
    world.worker("w1").is_hung = true;
    world.pass(LIMITS.failure_timeout);
    assert_eq!(world.record(&job).places[1].as_deref(), Some("s0"));
    world.settle();
    world.train(&job, 1);
    let incident = newest(&world, &job);
    assert_eq!((incident.seen_by.as_str(), incident.detect_s), ("silence", 5.0));
    world.worker("w1").is_hung = false;
    world.connect("w1");
    world.settle();
    assert!(world.worker("w1").work.is_none());
    assert_eq!(world.record(&job).epoch.get(), 2);
}

#[test]
fn the_coordinator_may_die_between_any_two_outputs_of_a_heal() {
    for crash_after in 1..60 {
        let (mut world, job) = running(4, 1, 5, "");
        world.crash_after = world.num_outputs + crash_after;
        world.kill("w2");
        world.settle();
        world.pass(LIMITS.failure_timeout);
        world.train(&job, 2);
        let story = world.story.join("\n");
        assert_eq!(world.view(&job).committed_step, 7, "crash after {crash_after} outputs:\n{story}");
        assert_eq!(world.curves[&job].len(), 7, "crash after {crash_after} outputs:\n{story}");
        let incident = newest(&world, &job);
        assert!(incident.resolved && incident.steps_lost == 0 && incident.number == 1, "{incident:?}\n{story}");
    }
}

#[test]
fn a_survivor_that_did_not_hear_of_the_newer_epoch_is_taken_back() {
    let (mut world, job) = running(4, 1, 5, "");
    // Killed right after epoch 2 was stored.
    world.crash_after = world.num_outputs + 1;
    world.kill("w2");
    assert_eq!((world.record(&job).epoch.get(), world.work("w0").epoch), (3, 1));
    world.settle();
    let heal = world.record(&job).heal.clone().expect("a healing epoch that was started");
    assert_eq!((heal.step.get(), heal.newcomers.iter().map(|r| r.index()).collect::<Vec<_>>()), (5, vec![2]));
    assert!(!world.has_event(&job, "worker.lost", "w0") && !world.has_event(&job, "worker.lost", "s0"));
}

#[test]
fn a_survivor_that_connects_again_before_it_heard_of_the_epoch_is_told() {
    let (mut world, job) = running(4, 1, 5, "");
    world.kill("w2");
    world.worker("w0").inbox.clear();
    world.connect("w0");
    world.settle();
    assert_eq!((world.record(&job).epoch.get(), world.record(&job).heal.is_some()), (2, true));
}

#[test]
fn state_that_is_not_to_be_trusted_is_given_up() {
    let (mut world, job) = running(2, 0, 7, "checkpoint.interval_steps = 3");
    let failed = proto::Failed {
        job_id: job.clone(),
        epoch: 1,
        error: "the copies of shard 0 differ at step 7".into(),
        restore: true,
        ..Default::default()
    };
    world.worker("w1").outbox.push_back(FromWorker::Failed(failed));
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.restore_step.get(), world.curves[&job].len()), (2, 6, 6));
    world.train(&job, 1);
    let incident = newest(&world, &job);
    assert!(incident.cause.starts_with("silent corruption: w1 (rank 1): the copies"), "{}", incident.cause);
    assert_eq!((incident.rung.as_str(), incident.seen_by.as_str(), incident.steps_lost), ("restore", "digests", 1));
}

/// The other copy is right: no step is lost, and the process that held the wrong one gets nothing any more. Two may have seen it.
#[test]
fn t3_who_holds_a_wrong_copy_is_replaced_as_if_it_had_died() {
    let (mut world, job) = running(4, 1, 7, "checkpoint.interval_steps = 3");
    let failed = proto::Failed {
        job_id: job.clone(),
        epoch: 1,
        error: "the copy of rank 1 is wrong".into(),
        corrupt_ranks: vec![1],
        ..Default::default()
    };
    for who in ["w1", "w2"] {
        world.worker(who).outbox.push_back(FromWorker::Failed(failed.clone()));
    }
    world.settle();
    world.train(&job, 1);
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.places[1].as_deref(), world.curves[&job].len()), (2, Some("s0"), 8));
    let incident = newest(&world, &job);
    assert_eq!((incident.rung.as_str(), incident.seen_by.as_str(), incident.steps_lost), ("spare", "digests", 0));
    assert!(incident.cause.contains("w1 (rank 1) holds a wrong copy"), "{}", incident.cause);
    assert_eq!(world.view(&job).spares, 0, "w1 is no spare");
}

#[test]
fn the_phases_of_an_incident_add_up_to_what_was_lost() {
    use std::time::Duration;
    let (mut world, job) = running(2, 0, 7, "checkpoint.interval_steps = 5");
    let second = Duration::from_secs(1);
    world.kill("w1");
    world.pass(second * 2);
    world.join("x");
    world.now += second * 3;
    world.settle();
    world.now += second * 4;
    world.train(&job, 1);
    let i = newest(&world, &job);
    // A step takes a second.
    assert_eq!((i.fence_s, i.decide_s, i.heal_s, i.redo_s, i.total_s), (2.0, 3.0, 3.0, 1.0, 9.0));
    assert_eq!(world.view(&job).lost_s, 9.0);
    // Both holders: the steps since the checkpoint are made again, and that counts too.
    world.kill("w0");
    world.kill("x");
    ["y", "z"].iter().for_each(|id| world.join(id));
    world.settle();
    world.now += second;
    world.train(&job, 1);
    assert_eq!((newest(&world, &job).steps_lost, newest(&world, &job).total_s), (3, 1.0));
    world.now += second * 2;
    world.train(&job, 2);
    assert_eq!((newest(&world, &job).redo_s, newest(&world, &job).total_s), (3.0, 3.0));
    assert_eq!(world.view(&job).lost_s, 12.0);
}

#[test]
fn a_link_that_breaks_costs_no_step() {
    let (mut world, job) = running(2, 0, 3, "");
    let lost = proto::PeerLost { job_id: job.clone(), epoch: 1, rank: 1, error: "reset".into(), ..Default::default() };
    world.worker("w0").outbox.push_back(FromWorker::PeerLost(lost));
    world.settle();
    world.pass(LIMITS.link_grace());
    world.train(&job, 1);
    let incident = newest(&world, &job);
    assert_eq!((incident.rung.as_str(), incident.steps_lost, world.curves[&job].len()), ("reconnect", 0, 4));
}

#[test]
fn a_peer_that_turns_out_dead_without_a_spare_is_not_counted_twice() {
    let (mut world, job) = running(2, 0, 3, "");
    let lost = proto::PeerLost { job_id: job.clone(), epoch: 1, rank: 1, error: "reset".into(), ..Default::default() };
    world.worker("w0").outbox.push_back(FromWorker::PeerLost(lost));
    world.settle();
    world.kill("w1");
    world.pass(LIMITS.failure_timeout);
    assert!(world.record(&job).failures.is_empty());
    assert_eq!(newest(&world, &job).cause, "w1 (rank 1) closed its stream (reset)");
}

#[test]
fn a_step_that_ends_whoever_computes_it_ends_the_job() {
    let (mut world, job) = running(2, 3, 3, "");
    for victim in ["w1", "s0", "s1"] {
        assert!(!world.record(&job).state.is_ended());
        world.settle();
        world.kill(victim);
    }
    let record = world.record(&job);
    assert_eq!(record.state, State::Failed);
    let expected = "step 4 ends whoever computes it as rank 1: s0, s1, w1 were lost one after the other";
    assert!(record.reason.starts_with(expected), "{}", record.reason);
}

#[test]
fn a_worker_that_is_lost_again_and_again_is_put_aside_for_a_while() {
    let (mut world, job) = running(2, 0, 3, "fault_tolerance.min_dp = 2");
    world.kill("w1");
    for _ in 0..2 {
        world.join("w1");
        world.settle();
        world.train(&job, 1);
        world.kill("w1");
    }
    world.join("w1");
    world.settle();
    assert!(world.has_event(&job, "worker.aside", "worker w1 is put aside for 30 minutes"));
    assert_eq!((world.record(&job).places[1].as_deref(), world.view(&job).spares), (None, 0));
    // It says so wherever somebody looks.
    assert_eq!(world.view(&job).spares_aside, 1);
    let reason = &world.record(&job).reason;
    let expected = "; w1 put aside for a while do not count, since it was lost 3 times within 10 minutes: `toroid workers --readmit w1`";
    assert!(reason.contains("waits for a worker: 1 of 2") && reason.contains(expected), "{reason}");
    let seen = world.machine.view_workers(world.at());
    let seen = seen.iter().find(|w| w.worker_id == "w1").expect("it is connected");
    assert_eq!(seen.state(), proto::WorkerState::Aside);
    assert!(seen.state_reason.contains("3 times") && (1700.0..=1800.0).contains(&seen.aside_s), "{seen:?}");
    world.pass(LIMITS.failure_timeout * 12 * 31);
    assert_eq!(world.record(&job).places[1].as_deref(), Some("w1"), "it is given another chance");
}

#[test]
fn a_worker_that_is_aside_is_readmitted_by_its_user() {
    let (mut world, job) = running(2, 0, 3, "fault_tolerance.min_dp = 2");
    let readmit = |world: &mut World, worker: &str| {
        let request = world.request(|request| Input::Readmit { request, worker: worker.into() });
        world.replies.remove(&request).expect("an answer")
    };
    let refused = readmit(&mut world, "w1").expect_err("it is not put aside").to_string();
    assert_eq!(refused, "`w1` is not put aside; nobody is");
    for _ in 0..3 {
        world.kill("w1");
        world.join("w1");
        world.settle();
        world.train(&job, 1);
    }
    assert_eq!(world.record(&job).places[1], None, "three losses");
    let refused = readmit(&mut world, "w7").expect_err("it is not put aside").to_string();
    assert_eq!(refused, "`w7` is not put aside; these are: w1");
    let reply = readmit(&mut world, "w1").expect("it is put aside");
    assert_eq!(reply, Reply::Readmitted { reason: "it was lost 3 times within 10 minutes".into() });
    world.settle();
    assert_eq!(world.record(&job).places[1].as_deref(), Some("w1"), "the job has waited for it");
    let before = world.view(&job).committed_step;
    world.train(&job, 1);
    assert_eq!(world.view(&job).committed_step, before + 1, "and goes on");
}

/// SIGTERM, a preemption: however often.
#[test]
fn planned_ends_put_nobody_aside() {
    let (mut world, job) = running(2, 0, 3, "fault_tolerance.min_dp = 2");
    for round in 0..8 {
        let leaving = |at_once| FromWorker::Leaving(proto::Leaving { reason: "preempted".into(), at_once });
        let stream = world.worker("w1").stream.expect("connected");
        world.input(Input::Message { stream, body: Box::new(leaving(false)) });
        // Nobody comes within its grace: it ends by itself, or is killed.
        if round % 2 == 0 {
            world.input(Input::Message { stream, body: Box::new(leaving(true)) });
            world.workers.remove("w1");
        } else {
            world.kill("w1");
        }
        world.join("w1");
        world.settle();
        assert_eq!(world.record(&job).places[1].as_deref(), Some("w1"), "round {round}");
        world.train(&job, 1);
    }
    assert!(!world.has_event(&job, "worker.aside", ""));
}

#[test]
fn every_incident_is_stored_with_its_number() {
    let (mut world, job) = running(2, 0, 1, "");
    for n in 0..5 {
        world.join(&format!("x{n}"));
        let victim = world.record(&job).places[1].clone().expect("filled");
        world.kill(&victim);
        world.settle();
        world.train(&job, 1);
    }
    world.restart(|_| true);
    world.settle();
    let numbers: Vec<u64> = world.view(&job).incidents.iter().map(|i| i.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    assert!(world.view(&job).incidents.iter().all(|i| i.resolved));
    assert_eq!(world.record(&job).num_incidents, 5);
    let stored = world.store.values().filter_map(|r| match r {
        crate::record::Record::Incident(i) => Some((i.rung, i.seen_by)),
        _ => None,
    });
    assert!(stored.eq([(Rung::Spare, SeenBy::StreamClosed); 5]));
}
