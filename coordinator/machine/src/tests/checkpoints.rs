//! When steps are named, and what becomes of them.

use std::time::Duration;

use toroid_proto as proto;
use toroid_proto::worker_message::Body as FromWorker;
use toroid_torus::ids::Step;

use super::world::{LIMITS, POLICY, World, job_file};
use crate::record::{Record, State};
use crate::{Input, Reply, RequestError, RequestId, Submission};

fn running(steps: u64, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(2, steps, more));
    world.join("a");
    world.join("b");
    world.settle();
    world.train(&job, 1);
    (world, job)
}

fn steps_saved(world: &World, job: &str) -> Vec<u64> {
    world.record(job).checkpoints.iter().map(|c| c.step.get()).collect()
}

fn ask(world: &mut World, job: &str) -> RequestId {
    world.request(|request| Input::Checkpoint { request, job: job.into() })
}

#[test]
fn every_so_many_steps_and_the_last_keeping_the_newest() {
    let (mut world, job) = running(10, "checkpoint.interval_steps = 3\ncheckpoint.keep = 2");
    world.train(&job, 9);
    assert_eq!(world.record(&job).state, State::Done);
    assert_eq!(steps_saved(&world, &job), [9, 10]);
    let on_disk: Vec<u64> = world.disk.manifests.keys().map(|(_, step)| *step).collect();
    assert_eq!(on_disk, [9, 10], "older ones are removed");
    for step in [3, 6, 9, 10] {
        assert!(world.has_event(&job, "checkpoint.done", &format!("step {step}:")), "step {step}");
    }
}

/// Steps of milliseconds: what a heartbeat takes is hundreds of them.
#[test]
fn t12_every_so_many_steps_however_fast_they_are() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 2000, "checkpoint.interval_steps = 50\ncheckpoint.keep = 100"));
    for id in ["a", "b"] {
        world.join_as(id, |w| w.step_s = 0.004);
    }
    world.settle();
    world.train(&job, 420);
    assert_eq!(steps_saved(&world, &job), [50, 100, 150, 200, 250, 300, 350, 400]);
}

/// The coordinator hears of nothing meanwhile: it has named the next 64 long before.
#[test]
fn t12_multiples_are_named_far_ahead() {
    let (mut world, job) = running(2000, "checkpoint.interval_steps = 2\ncheckpoint.keep = 2000");
    for _ in 0..120 {
        world.step(&job);
    }
    world.settle();
    let expected: Vec<u64> = (1..=60).map(|n| 2 * n).collect();
    assert_eq!(steps_saved(&world, &job), expected, "{:?}", world.record(&job).events);
    assert!(!world.has_event(&job, "checkpoint.skipped", "") && !world.has_event(&job, "checkpoint.late", ""));
}

/// The coordinator is away for longer than it has named steps for.
#[test]
fn t12_what_nobody_could_be_told_of_in_time_is_an_event() {
    let (mut world, job) = running(2000, "checkpoint.interval_steps = 2\ncheckpoint.keep = 2000");
    world.train(&job, 9);
    world.disconnect_all();
    for _ in 0..200 {
        world.step(&job);
    }
    world.restart(|_| true);
    world.settle();
    world.train(&job, 5);
    let saved = steps_saved(&world, &job);
    assert!(world.has_event(
        &job,
        "checkpoint.skipped",
        "a multiple of interval_steps = 2: they were committed before"
    ));
    let next: Vec<u64> = saved.iter().copied().filter(|step| *step > 210).collect();
    assert_eq!(next, [212, 214], "{:?}", world.story);
}

/// The state that all heal to can still be saved.
#[test]
fn t12_a_multiple_that_a_death_interrupts_is_saved_or_an_event() {
    let (mut world, job) = running(2000, "checkpoint.interval_steps = 5");
    world.join("c");
    world.train(&job, 3);
    // Step 5 is committed, and nobody has heard of its shards.
    world.step(&job);
    world.kill("b");
    world.settle();
    world.train(&job, 1);
    assert_eq!(steps_saved(&world, &job), [5], "{:?}", world.story);
    world.train(&job, 3);
    world.step(&job);
    let is_shard = |b: &_| matches!(b, toroid_proto::worker_message::Body::ShardWritten(_));
    world.worker("c").outbox.retain(|b| !is_shard(b));
    world.train(&job, 1);
    world.join("d");
    world.kill("c");
    world.settle();
    world.train(&job, 1);
    assert!(world.has_event(&job, "checkpoint.skipped", "step 10 is not saved"), "{:?}", world.story);
}

#[test]
fn with_one_to_keep_the_one_before_goes_only_when_the_next_is_recorded() {
    let (mut world, job) = running(100, "checkpoint.interval_steps = 2\ncheckpoint.keep = 1");
    world.train(&job, 5);
    let on_disk = |world: &World| world.disk.manifests.keys().map(|(_, step)| *step).collect::<Vec<_>>();
    assert_eq!((steps_saved(&world, &job), on_disk(&world)), (vec![6], vec![4, 6]));
    world.train(&job, 2);
    assert_eq!((steps_saved(&world, &job), on_disk(&world)), (vec![8], vec![6, 8]));
}

#[test]
fn every_so_many_seconds() {
    let (mut world, job) = running(1000, "checkpoint.interval_s = 30");
    for _ in 0..100 {
        world.pass(Duration::from_secs(1));
        world.train(&job, 1);
    }
    let count = world.record(&job).events.iter().filter(|e| e.kind == "checkpoint.done").count();
    assert_eq!(count, 3, "in 100 s: {:?}", steps_saved(&world, &job));
}

#[test]
fn on_request_a_step_ahead_is_named_and_saved() {
    let (mut world, job) = running(100, "");
    let request = ask(&mut world, &job);
    // Steps of one second: two heartbeats are two steps.
    assert_eq!(world.replies[&request], Ok(Reply::Checkpoint { step: Step::new(3) }));
    let same = ask(&mut world, &job);
    assert_eq!(world.replies[&same], Ok(Reply::Checkpoint { step: Step::new(3) }), "one that comes soon serves both");
    world.train(&job, 2);
    assert_eq!(steps_saved(&world, &job), [3]);
}

#[test]
fn a_request_waits_while_another_step_is_written() {
    let (mut world, job) = running(100, "");
    ask(&mut world, &job);
    world.settle();
    // Step 3 is committed, and the word of b's shard is not heard yet.
    for _ in 0..2 {
        world.step(&job);
        while world.deliver_from("a") {}
    }
    let waiting = ask(&mut world, &job);
    assert_eq!(world.replies.get(&waiting), None);
    world.settle();
    assert_eq!(steps_saved(&world, &job), [3]);
    assert_eq!(world.replies[&waiting], Ok(Reply::Checkpoint { step: Step::new(5) }));
}

#[test]
fn a_step_that_was_named_too_late_is_named_again_further_ahead() {
    let (mut world, job) = running(100, "");
    let request = ask(&mut world, &job);
    assert_eq!(world.replies[&request], Ok(Reply::Checkpoint { step: Step::new(3) }));
    // Nobody hears of it before step 3 is over.
    for _ in 0..3 {
        world.step(&job);
    }
    world.settle();
    assert!(world.has_event(&job, "checkpoint.late", "had committed step 4 before it heard of it"));
    assert_eq!(world.record(&job).pending.keys().map(|s| s.get()).collect::<Vec<_>>(), [8, 100], "4 ahead of 4");
    world.train(&job, 4);
    assert_eq!(steps_saved(&world, &job), [8]);
}

#[test]
fn a_failed_write_costs_only_that_checkpoint() {
    let (mut world, job) = running(100, "checkpoint.interval_steps = 5");
    world.train(&job, 5);
    assert_eq!(steps_saved(&world, &job), [5]);
    world.worker("b").write_error = Some("no space left on /ckpt".into());
    world.train(&job, 5);
    assert!(world.has_event(&job, "checkpoint.failed", "b (rank 1) could not write its shard: no space left on /ckpt"));
    assert_eq!((steps_saved(&world, &job), world.record(&job).state), (vec![5], State::Running));
    world.worker("b").write_error = None;
    world.train(&job, 5);
    assert_eq!(steps_saved(&world, &job), [5, 15], "the next interval");
    let leftovers = world.disk.shards.keys().any(|(_, step)| *step == 10);
    assert!(!leftovers, "the shard of a that nobody needs is removed");
}

#[test]
fn how_far_a_checkpoint_is_written_is_shown() {
    let (mut world, job) = running(100, "checkpoint.interval_steps = 4");
    world.train(&job, 2);
    assert_eq!(world.view(&job).saving, None, "it is named and not begun");
    let beat = |world: &mut World, worker: &str, saving| {
        let heartbeat = proto::Heartbeat { saving: Some(saving), ..world.worker(worker).heartbeat() };
        let stream = world.worker(worker).stream.expect("it is connected");
        world.input(Input::Message { stream, body: Box::new(FromWorker::Heartbeat(heartbeat)) });
    };
    let progress = |step, bytes| proto::ShardProgress { step, bytes, total_bytes: 1000, for_s: 2.0 };
    beat(&mut world, "a", progress(4, 400));
    beat(&mut world, "b", progress(4, 100));
    let expected =
        proto::Saving { step: 4, bytes: 500, total_bytes: 2000, places_done: 0, places: 2, bytes_per_s: 250.0 };
    assert_eq!(world.view(&job).saving, Some(expected));
    // Of a step that nobody has named nothing is said.
    beat(&mut world, "a", progress(3, 400));
    beat(&mut world, "b", progress(3, 400));
    assert_eq!(world.view(&job).saving, None);
    world.train(&job, 3);
    assert_eq!((world.view(&job).saving, steps_saved(&world, &job)), (None, vec![4]));
}

/// Training is over: its last state is all that is left to lose.
#[test]
fn the_last_step_is_kept_and_tried_with_pauses_until_the_disk_has_room() {
    let (mut world, job) = running(6, "checkpoint.interval_steps = 4");
    world.train(&job, 3);
    world.worker("a").write_error = Some("disk full".into());
    world.train(&job, 2);
    let num_failed = |world: &World| world.record(&job).unsaved.as_ref().map_or(0, |unsaved| unsaved.num_tries);
    assert_eq!(num_failed(&world), 1, "{:?}", world.story);
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Running, vec![4]));
    let unsaved = world.view(&job).unsaved.expect("it shows from the first failure on");
    assert_eq!((unsaved.step, unsaved.num_tries, unsaved.next_try_s), (6, 1, 1.0));
    assert!(unsaved.error.contains("a (rank 0) could not write its shard: disk full"), "{}", unsaved.error);
    assert!(!world.disk.shards.keys().any(|(_, step)| *step == 6), "b has taken away what it wrote");
    // 1 s, then twice as long, a minute at most.
    for (pause, num) in [(1, 2), (1, 2), (1, 3), (3, 3), (1, 4)] {
        world.pass(Duration::from_secs(pause));
        assert_eq!(num_failed(&world), num, "{:?}", world.story);
    }
    for _ in 0..20 {
        world.pass(Duration::from_secs(60));
    }
    let told = world.record(&job).events.iter().filter(|e| e.kind == "checkpoint.failed").count();
    assert_eq!(told, 5, "when there are twice as many: {:?}", world.story);
    assert!(world.has_event(&job, "checkpoint.failed", "step 6, 16 tries so far: a (rank 0) could not write"));
    assert!(num_failed(&world) > 20 && world.record(&job).reason.contains("the last is not saved yet"));
    world.worker("a").write_error = None;
    world.pass(Duration::from_secs(60));
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Done, vec![4, 6]));
    assert_eq!(world.view(&job).unsaved, None);
}

#[test]
fn the_last_step_is_given_up_after_a_day_or_by_a_user() {
    for is_cancelled in [false, true] {
        let (mut world, job) = running(6, "checkpoint.interval_steps = 4");
        world.train(&job, 3);
        world.worker("a").write_error = Some("disk full".into());
        world.train(&job, 2);
        for minute in 0..(if is_cancelled { 10 } else { 24 * 60 + 2 }) {
            world.pass(Duration::from_secs(60));
            if minute == 12 * 60 {
                world.restart(|_| true);
                world.settle();
            }
        }
        if is_cancelled {
            world.request(|request| Input::Cancel { request, job: job.clone() });
            assert_eq!(world.record(&job).state, State::Cancelled);
            continue;
        }
        let record = world.record(&job);
        assert_eq!(record.state, State::Failed);
        assert!(record.reason.starts_with("the last step could not be saved in 24 h and 1"), "{}", record.reason);
        assert!(record.reason.ends_with("the newest good one is of step 4 at step-4"), "{}", record.reason);
        assert_eq!(steps_saved(&world, &job), [4]);
    }
}

#[test]
fn the_last_step_is_tried_again_by_whoever_takes_a_place_and_after_a_restart() {
    let (mut world, job) = running(6, "");
    world.worker("a").write_error = Some("disk full".into());
    world.train(&job, 5);
    world.join("c");
    world.restart(|_| true);
    world.settle();
    assert!(world.record(&job).unsaved.is_some() && world.record(&job).state == State::Running);
    world.kill("a");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Done, vec![6]), "{:?}", world.story);
    assert_eq!(world.view(&job).lost_steps, 0);
}

/// The disk stays full for whoever takes the place, too: nobody recovers any more, all wait.
#[test]
fn whoever_takes_a_place_after_the_last_step_waits_with_the_others() {
    let (mut world, job) = running(6, "");
    world.worker("a").write_error = Some("disk full".into());
    world.train(&job, 5);
    world.join_as("c", |c| c.write_error = Some("disk full".into()));
    world.kill("a");
    world.settle();
    world.train(&job, 1);
    let record = world.record(&job);
    let tries = record.unsaved.as_ref().map(|unsaved| unsaved.num_tries);
    assert_eq!((record.state, tries), (State::Running, Some(2)), "{:?}", world.story);
    assert_eq!(record.reason, "all steps are committed, the last is not saved yet");
    world.worker("c").write_error = None;
    world.pass(Duration::from_secs(60));
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Done, vec![6]), "{:?}", world.story);
}

/// Nobody has the last state any more: it is made again from the newest checkpoint.
#[test]
fn where_all_that_wait_to_save_the_last_step_die_it_is_made_again() {
    let (mut world, job) = running(6, "checkpoint.interval_steps = 4");
    world.train(&job, 3);
    world.worker("a").write_error = Some("disk full".into());
    world.train(&job, 2);
    world.pass(Duration::from_secs(600));
    for (dies, comes) in [("a", "c"), ("b", "d")] {
        world.kill(dies);
        world.join(comes);
    }
    world.settle();
    assert_eq!((world.record(&job).restore_step.get(), world.view(&job).lost_steps), (4, 2), "{:?}", world.story);
    world.train(&job, 2);
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Done, vec![4, 6]), "{:?}", world.story);
    assert_eq!(world.view(&job).unsaved, None);
}

/// T-6: rank 0 may be publishing at this very moment, so nobody takes a shard away.
#[test]
fn t6_nothing_is_taken_away_from_a_publishing_that_is_late() {
    let (mut world, job) = running(100, "checkpoint.interval_steps = 2");
    world.step(&job);
    while world.deliver_from("a") | world.deliver_from("b") {}
    let is_order = |m: &toroid_proto::coordinator_message::Body| {
        matches!(m, toroid_proto::coordinator_message::Body::PublishManifest(_))
    };
    let order = world.worker("a").inbox.iter().find(|m| is_order(m)).cloned().expect("rank 0 is told to publish");
    world.worker("a").inbox.retain(|m| !is_order(m));
    world.settle();
    world.pass(LIMITS.checkpoint());
    assert!(world.has_event(&job, "checkpoint.failed", "step 2: the manifest was not published within 300 s"));
    assert!(world.disk.shards.keys().any(|(_, step)| *step == 2));
    world.worker("a").inbox.push_back(order);
    world.settle();
    assert!(world.disk.manifests.keys().any(|(_, step)| *step == 2), "it is complete");
    // Nobody counts on it: it goes with the next.
    world.train(&job, 2);
    assert_eq!(steps_saved(&world, &job), [4]);
    assert!(!world.disk.manifests.keys().any(|(_, step)| *step == 2));
}

/// What rank 0 says of its removals is not heard at once.
fn until_steps_removed(world: &mut World) {
    while !world.worker("a").outbox.iter().any(|m| matches!(m, toroid_proto::worker_message::Body::StepsRemoved(_))) {
        assert!(world.deliver_from("a") | world.deliver_from("b") | world.deliver_to("a") | world.deliver_to("b"));
    }
}

#[test]
fn t12_what_could_not_be_removed_is_told() {
    let (mut world, job) = running(100, "checkpoint.interval_steps = 2\ncheckpoint.keep = 1");
    world.train(&job, 3);
    world.step(&job);
    world.step(&job);
    until_steps_removed(&mut world);
    for body in &mut world.worker("a").outbox {
        if let toroid_proto::worker_message::Body::StepsRemoved(m) = body {
            let step = m.removed.remove(0);
            m.kept.push(toroid_proto::KeptStep { step, error: "permission denied".into() });
        }
    }
    world.settle();
    let text = "the checkpoint of step 2 stays where it is: permission denied";
    assert!(world.has_event(&job, "checkpoint.kept", text), "{:?}", world.story);
    assert!(!world.record(&job).leftovers.contains(&Step::new(2)));
}

/// The job would stop whoever removes.
#[test]
fn a_job_ends_when_what_is_not_kept_is_removed() {
    let (mut world, job) = running(6, "checkpoint.interval_steps = 2\ncheckpoint.keep = 1");
    world.train(&job, 4);
    world.step(&job);
    let is_removal =
        |m: &toroid_proto::worker_message::Body| matches!(m, toroid_proto::worker_message::Body::StepsRemoved(_));
    until_steps_removed(&mut world);
    let removal = world.worker("a").outbox.iter().find(|m| is_removal(m)).cloned().expect("it is there");
    world.worker("a").outbox.retain(|m| !is_removal(m));
    world.settle();
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Running, vec![6]), "{:?}", world.story);
    world.worker("a").outbox.push_back(removal);
    world.settle();
    assert_eq!(world.record(&job).state, State::Done, "{:?}", world.story);
}

#[test]
fn a_removal_that_is_never_answered_holds_up_no_job_for_ever() {
    let (mut world, job) = running(6, "checkpoint.interval_steps = 2\ncheckpoint.keep = 1");
    world.train(&job, 4);
    world.step(&job);
    until_steps_removed(&mut world);
    world.worker("a").outbox.retain(|m| !matches!(m, toroid_proto::worker_message::Body::StepsRemoved(_)));
    world.settle();
    world.pass(LIMITS.checkpoint());
    assert_eq!(world.record(&job).state, State::Done, "{:?}", world.story);
}

#[test]
fn the_last_step_succeeds_when_the_disk_does_again() {
    let (mut world, job) = running(3, "");
    world.worker("a").write_error = Some("disk full".into());
    world.train(&job, 1);
    world.step(&job);
    world.deliver_from("a");
    while !world.has_event(&job, "checkpoint.failed", "disk full") {
        assert!(world.deliver_from("a"), "the failure is reported");
    }
    world.worker("a").write_error = None;
    world.settle();
    world.pass(Duration::from_secs(1));
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Done, vec![3]));
}

/// No later record shows that the last one is missing.
#[test]
fn t12_the_record_of_the_last_step_is_asked_for() {
    let (mut world, job) = running(3, "");
    world.train(&job, 1);
    world.step(&job);
    let is_record = |b: &_| matches!(b, toroid_proto::worker_message::Body::Step(_));
    world.worker("a").outbox.retain(|b| !is_record(b));
    world.settle();
    assert_eq!((world.record(&job).state, world.curves[&job].len()), (State::Done, 3), "{:?}", world.story);
}

#[test]
fn a_manifest_waits_for_the_curve() {
    // A restore must not leave a hole in the curve.
    let (mut world, job) = running(100, "checkpoint.interval_steps = 2");
    world.step(&job);
    let report = world.worker("a").outbox.pop_front().expect("rank 0 reports its step");
    world.settle();
    assert!(world.record(&job).pending.contains_key(&Step::new(2)), "all shards are there, the step's record is not");
    assert!(steps_saved(&world, &job).is_empty());
    world.worker("a").outbox.push_back(report);
    world.settle();
    assert_eq!(steps_saved(&world, &job), [2]);
}

#[test]
fn shards_that_never_come_are_named_and_training_goes_on() {
    let (mut world, job) = running(100, "checkpoint.interval_steps = 2");
    world.step(&job);
    let is_shard = |b: &_| matches!(b, toroid_proto::worker_message::Body::ShardWritten(_));
    world.worker("b").outbox.retain(|b| !is_shard(b));
    world.settle();
    world.pass(LIMITS.checkpoint());
    assert!(world.has_event(&job, "checkpoint.failed", "step 2: no shard came within 300 s from ranks 1"));
    world.train(&job, 2);
    assert_eq!((steps_saved(&world, &job), world.record(&job).state), (vec![4], State::Running));
}

/// Nobody waits for it in a step any more, so no hang is seen: found by the simulation (its trainer hung after its last step).
#[test]
fn who_never_answers_for_the_last_step_is_replaced() {
    let (mut world, job) = running(2, "");
    world.join("c");
    world.settle();
    world.worker("b").writes_nothing = true;
    world.step(&job);
    world.step(&job);
    for _ in 0..3 {
        world.settle();
        world.pass(LIMITS.checkpoint());
        world.settle();
    }
    let lost = "b (rank 1) hangs: it was asked twice for its shard of the last step";
    assert!(world.has_event(&job, "worker.lost", lost), "{:#?}", world.record(&job).events);
    world.step(&job);
    world.settle();
    assert_eq!((steps_saved(&world, &job), world.record(&job).state), (vec![2], State::Done));
}

#[test]
fn a_shard_that_makes_no_sense_is_a_failed_write() {
    let (mut world, job) = running(100, "checkpoint.interval_steps = 2");
    world.step(&job);
    for body in &mut world.worker("b").outbox {
        if let toroid_proto::worker_message::Body::ShardWritten(m) = body {
            m.file_json = "{}".into();
        }
    }
    world.settle();
    assert!(world.has_event(&job, "checkpoint.failed", "b (rank 1) described its shard in a way that cannot be read"));
}

#[test]
fn a_shard_that_came_is_not_missed_afterwards() {
    let (mut world, job) = running(100, "checkpoint.interval_steps = 2");
    world.step(&job);
    while world.deliver_from("b") {}
    let (job_id, epoch, step, committed_step) = (job.clone(), 1, 2, 2);
    let missed = toroid_proto::CheckpointMissed { job_id, epoch, step, committed_step, error: String::new() };
    world.worker("b").outbox.push_back(toroid_proto::worker_message::Body::CheckpointMissed(missed));
    world.deliver_from("b");
    world.settle();
    assert_eq!(steps_saved(&world, &job), [2]);
}

#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() {
    let (mut world, job) = running(20, "checkpoint.interval_steps = 3\nfault_tolerance.redundancy = false");
    world.train(&job, 7);
    assert_eq!(steps_saved(&world, &job), [3, 6]);
    for id in ["a", "b", "c"] {
        if id == "c" {
            world.join(id);
        }
        world.worker(id).damaged.insert(6);
    }
    world.kill("b");
    world.settle();
    assert!(world.has_event(&job, "checkpoint.damaged", "cannot read the checkpoint of step 6: digest differs"));
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.restore_step.get(), steps_saved(&world, &job)), (3, 3, vec![3]));
    assert!(record.failures.is_empty(), "no place is to blame");
    world.workers.values_mut().for_each(|w| w.damaged.clear());
    world.train(&job, 20);
    assert_eq!((world.record(&job).state, world.curves[&job].len()), (State::Done, 20));
}

#[test]
fn what_a_heal_interrupts_is_named_anew() {
    let (mut world, job) = running(100, "checkpoint.interval_s = 30");
    for _ in 0..29 {
        world.pass(Duration::from_secs(1));
        world.train(&job, 1);
    }
    world.join("c");
    world.kill("b");
    world.settle();
    let request = ask(&mut world, &job);
    world.settle();
    assert!(matches!(world.replies[&request], Ok(Reply::Checkpoint { .. })));
    world.join("d");
    world.kill("a");
    world.settle();
    for _ in 0..8 {
        world.pass(Duration::from_secs(1));
        world.train(&job, 1);
    }
    assert_eq!(steps_saved(&world, &job).len(), 1, "deaths do not put a checkpoint off: {:?}", world.story);
}

/// T-10: what the machine knows of a folder; what ended jobs left, and other coordinators, the folder itself says.
#[test]
fn t10_a_folder_that_another_job_keeps_its_checkpoints_in_is_refused() {
    let in_folder = |path: &str| job_file(2, 10, &format!("checkpoint.path = \"{path}\""));
    let (mut world, job) = running(10, "checkpoint.path = \"/ck\"");
    let submit = |world: &mut World, toml: String| {
        let owner = world.next_owner();
        let request = world.request(|request| Input::Submit {
            request,
            submission: Submission { toml, ..Submission::default() },
            owner,
        });
        world.replies[&request].clone()
    };
    for path in ["/ck", "/ck/", "file:///ck"] {
        let (path, folder) = (path.to_string(), in_folder(path));
        assert_eq!(submit(&mut world, folder), Err(RequestError::Folder { path, job: job.as_str().into() }));
    }
    assert!(submit(&mut world, in_folder("/jobs/t-1")).is_ok(), "{:?}", world.story);
    world.train(&job, 10);
    assert_eq!(world.record(&job).state, State::Done);
    assert!(submit(&mut world, in_folder("/ck")).is_ok());
}

#[test]
fn t10_every_job_has_an_owner_of_its_own_for_life() {
    let (mut world, job) = running(10, "");
    let other = world.submit(&job_file(2, 10, ""));
    let owners = |world: &World| [&job, &other].map(|job| world.record(job).owner);
    let before = owners(&world);
    assert!(before[0].is_some() && before[0] != before[1], "{before:?}");
    world.restart(|_| true);
    assert_eq!(owners(&world), before);
}

/// Its records say nothing of owners, and what it has written neither.
#[test]
fn t10_a_job_of_an_earlier_version_gets_an_owner_and_takes_its_folder_over() {
    let (mut world, job) = running(10, "");
    let waiting = world.submit(&job_file(2, 10, ""));
    for record in world.store.values_mut() {
        if let Record::Job(record) = record {
            (record.owner, record.begun_without_owner) = (None, false);
        }
    }
    world.restart(|_| true);
    let found = |world: &World, job: &str| (world.record(job).owner, world.record(job).begun_without_owner);
    let (begun, not_begun) = (found(&world, &job), found(&world, &waiting));
    assert!(begun.0.is_some() && begun.1 && not_begun.0.is_some() && !not_begun.1, "{begun:?} {not_begun:?}");
    assert_ne!(begun.0, not_begun.0);
    world.restart(|_| true);
    assert_eq!((found(&world, &job), found(&world, &waiting)), (begun, not_begun));
}

/// Storage is slow: all are told to be published before the first is.
#[test]
fn checkpoints_that_are_overtaken_are_gone_when_the_job_ends() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 8, "checkpoint.interval_steps = 2\ncheckpoint.keep = 2"));
    ["a", "b"].into_iter().for_each(|id| world.join(id));
    world.settle();
    while world.step(&job) {
        // What the workers say is heard, and they hear nothing.
        ["a", "b"].into_iter().for_each(|id| while world.deliver_from(id) {});
    }
    world.settle();
    assert_eq!(world.record(&job).state, State::Done);
    let left: Vec<u64> = world.disk.shards.keys().chain(world.disk.manifests.keys()).map(|(_, step)| *step).collect();
    assert_eq!((left, world.record(&job).leftovers.len()), (vec![6, 8, 6, 8], 0));
}

/// What was rolled out is in no checkpoint: only ends of iterations can be gone on from.
#[test]
fn t15_of_a_policy_only_ends_of_iterations_are_saved() {
    let (mut world, job) = running(80, POLICY);
    let request = ask(&mut world, &job);
    assert_eq!(world.replies[&request], Ok(Reply::Checkpoint { step: Step::new(8) }));
    world.train(&job, 3);
    let same = ask(&mut world, &job);
    assert_eq!(world.replies[&same], Ok(Reply::Checkpoint { step: Step::new(8) }), "it is named once");
    world.train(&job, 3);
    // Step 7 is committed: step 8 was named long ago, so that all have heard of it.
    let near = ask(&mut world, &job);
    assert_eq!(world.replies[&near], Ok(Reply::Checkpoint { step: Step::new(8) }));
    world.train(&job, 8);
    let next = ask(&mut world, &job);
    assert_eq!(world.replies[&next], Ok(Reply::Checkpoint { step: Step::new(24) }), "not all may hear of 16 in time");
    world.train(&job, 10);
    assert_eq!(steps_saved(&world, &job), [8, 24]);
    world.train(&job, 47);
    let last = ask(&mut world, &job);
    assert_eq!(world.replies[&last], Ok(Reply::Checkpoint { step: Step::new(80) }));
    world.train(&job, 8);
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Done, vec![8, 24, 80]));
}

#[test]
fn of_a_policy_the_end_of_an_iteration_comes_after_the_time_or_the_steps_between_checkpoints() {
    let (mut world, job) = running(800, &format!("{POLICY}\ncheckpoint.interval_s = 30\ncheckpoint.keep = 100"));
    for _ in 0..100 {
        world.pass(Duration::from_secs(1));
        world.train(&job, 1);
    }
    let saved = steps_saved(&world, &job);
    assert!(saved.len() == 3 && saved.iter().all(|step| step % 8 == 0), "{saved:?}");
    let (mut world, job) = running(64, &format!("{POLICY}\ncheckpoint.interval_steps = 16"));
    world.train(&job, 15);
    assert_eq!(steps_saved(&world, &job), [16]);
    world.train(&job, 48);
    assert_eq!((world.record(&job).state, steps_saved(&world, &job)), (State::Done, vec![32, 48, 64]));
}

#[test]
fn of_a_policy_what_was_named_too_late_is_named_again_for_the_end_of_a_later_iteration() {
    let (mut world, job) = running(80, POLICY);
    world.train(&job, 4);
    let request = ask(&mut world, &job);
    assert_eq!(world.replies[&request], Ok(Reply::Checkpoint { step: Step::new(8) }));
    for _ in 0..4 {
        world.step(&job);
    }
    world.settle();
    assert!(
        world.has_event(&job, "checkpoint.late", "had committed step 9 before it heard of it"),
        "{:?}",
        world.story
    );
    let pending: Vec<u64> = world.record(&job).pending.keys().map(|s| s.get()).collect();
    assert_eq!(pending, [16, 80]);
    // The next coordinator knows of it.
    world.restart(|_| true);
    world.settle();
    let again = ask(&mut world, &job);
    assert_eq!(world.replies[&again], Ok(Reply::Checkpoint { step: Step::new(16) }));
    world.train(&job, 8);
    assert_eq!(steps_saved(&world, &job), [16]);
}
