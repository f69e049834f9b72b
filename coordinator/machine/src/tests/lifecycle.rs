//! A job from its submission to its end, and who may take part.

use std::time::Duration;

use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;

use super::world::{LIMITS, World, job_file};
use crate::record::{Record, State};
use crate::{Input, Reply, RequestError, StreamId};

#[test]
fn a_job_goes_from_queued_to_done() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 3, ""));
    assert_eq!(world.record(&job).reason, "waits for workers: needs 2 workers, 0 are there");
    world.join("a");
    assert_eq!(world.record(&job).reason, "waits for workers: needs 2 workers, 1 are there");
    world.join("b");
    assert_eq!((world.record(&job).state, world.record(&job).epoch.get()), (State::Starting, 1));
    world.settle();
    assert_eq!(world.record(&job).state, State::Starting, "nothing is committed yet");
    world.train(&job, 1);
    assert_eq!(world.record(&job).state, State::Running);
    world.train(&job, 2);
    let record = world.record(&job);
    assert_eq!((record.state, record.reason.as_str()), (State::Done, "all 3 steps are committed and saved"));
    assert_eq!(record.last_checkpoint().map(|c| c.step.get()), Some(3));
    assert_eq!(world.view(&job).spares, 2, "its workers are free again");
    assert!(world.workers.values().all(|w| w.work.is_none()), "and were told to stop");
}

#[test]
fn jobs_are_served_in_order_and_smaller_ones_run_ahead_for_a_while() {
    let mut world = World::new();
    let big = world.submit(&job_file(2, 3, ""));
    let small = world.submit(&job_file(1, 3, ""));
    assert_eq!((big.as_str(), small.as_str()), ("demo-1", "demo-2"));
    world.join("a");
    assert_eq!(world.record(&big).reason, "waits for workers: needs 2 workers, 1 are there");
    assert_eq!(world.record(&small).state, State::Starting, "nobody waits for what cannot be");
    world.join("b");
    assert_eq!(world.record(&big).reason, "needs 2 workers, 1 are free; demo-2 of the same priority runs");
    let next = world.submit(&job_file(1, 3, ""));
    assert_eq!(world.record(&next).state, State::Starting, "it runs ahead");
    world.settle();
    world.train(&small, 3);
    world.pass(Duration::from_secs(600));
    let late = world.submit(&job_file(1, 3, ""));
    let reason = "needs 2 workers, 1 are free; demo-3 of the same priority runs; no job behind it starts before it";
    assert_eq!(world.record(&big).reason, reason);
    assert_eq!(world.record(&late).reason, "waits behind demo-1: needs 1 worker, 1 are free");
    world.train(&next, 3);
    assert_eq!((world.record(&big).state, world.record(&late).state), (State::Starting, State::Queued));
}

#[test]
fn a_cancelled_job_frees_its_workers_and_its_requests_are_answered() {
    let mut world = World::new();
    let job = world.submit(&job_file(1, 9, ""));
    world.join("a");
    let waits = world.request(|request| Input::Checkpoint { request, job: job.clone() });
    let cancel = world.request(|request| Input::Cancel { request, job: job.clone() });
    assert_eq!(world.replies[&cancel], Ok(Reply::Cancelled { job: job.as_str().into() }));
    assert!(matches!(world.replies[&waits], Err(RequestError::State { .. })));
    world.settle();
    assert!(world.worker("a").work.is_none());
    let again = world.request(|request| Input::Cancel { request, job: job.clone() });
    assert_eq!(world.replies[&again], Ok(Reply::Cancelled { job: job.into() }), "cancelling twice is the same as once");
}

#[test]
fn data_that_differs_fails_the_job_and_names_both_workers() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 3, ""));
    world.join("a");
    world.join_as("b", |w| w.digest = 8);
    world.settle();
    let record = world.record(&job);
    assert_eq!(record.state, State::Failed);
    for part in ["a (rank", "b (rank", "0707070707070707", "0808080808080808", "same files"] {
        assert!(record.reason.contains(part), "`{part}` is not in: {}", record.reason);
    }
}

#[test]
fn a_fatal_failure_fails_the_job_in_the_workers_words() {
    let mut world = World::new();
    let job = world.submit(&job_file(1, 3, ""));
    world.join_as("a", |w| w.prepare_error = Some(("/data is empty".into(), true)));
    world.settle();
    let record = world.record(&job);
    assert_eq!((record.state, record.reason.as_str()), (State::Failed, "a (rank 0) cannot go on: /data is empty"));
    assert_eq!(world.view(&job).spares, 1);
}

#[test]
fn an_exact_job_takes_workers_of_one_fingerprint_only() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 9, "exact = true"));
    world.join_as("a", |w| w.fingerprint = "avx2".into());
    world.join_as("b", |w| w.fingerprint = "avx512".into());
    assert_eq!(world.record(&job).reason, "waits for workers: needs 2 workers of one numeric fingerprint, 1 are there");
    world.join_as("c", |w| w.fingerprint = "avx512".into());
    world.settle();
    world.train(&job, 1);
    assert_eq!(world.record(&job).fingerprint.as_deref(), Some("avx512"));
    world.kill("b");
    assert_eq!(world.record(&job).state, State::Recovering, "the spare computes differently");
    world.join_as("d", |w| w.fingerprint = "avx512".into());
    world.settle();
    world.train(&job, 1);
    assert_eq!(world.record(&job).state, State::Running);
}

/// Two builds that compute differently, or whose workers cannot link, are never in one job, exact or not.
#[test]
fn the_places_of_a_job_are_of_builds_that_compute_alike_and_speak_with_each_other() {
    let check = |own: (u32, u32, u32), other: (u32, u32, u32), words: &str| {
        let mut world = World::new();
        let job = world.submit(&job_file(2, 99, ""));
        world.join_as("a", |w| w.build = own);
        world.join_as("b", |w| w.build = other);
        assert_eq!(world.record(&job).state, State::Queued, "{:?}", world.story);
        world.join_as("c", |w| w.build = own);
        world.settle();
        world.train(&job, 1);
        let why = |world: &World, id: &str| {
            let workers = world.machine.view_workers(world.at());
            workers.into_iter().find(|w| w.worker_id == id).map(|w| w.warm_up_reason).unwrap_or_default()
        };
        assert!(why(&world, "b").contains(words), "{:?}", why(&world, "b"));
        world.kill("c");
        assert_eq!(world.record(&job).state, State::Recovering, "the spare does not fit");
        world.join_as("d", |w| w.build = own);
        world.settle();
        world.train(&job, 1);
        assert_eq!(world.record(&job).state, State::Running);
    };
    check((1, 7, 7), (2, 7, 7), "which computes with numerics 2, and the places of demo-1 with numerics 1");
    check((1, 7, 8), (1, 9, 9), "speaks links of version 9, all places of demo-1 those of version 7 to 8");
}

/// Releases that are neighbours speak with each other: of three, all in between may stand beside both.
#[test]
fn links_of_a_job_are_narrowed_to_what_all_its_places_speak() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 99, ""));
    world.join_as("a", |w| w.build = (1, 6, 7));
    world.join_as("b", |w| w.build = (1, 7, 8));
    world.settle();
    world.train(&job, 1);
    world.join_as("c", |w| w.build = (1, 8, 9));
    world.kill("b");
    assert_eq!(world.record(&job).state, State::Recovering, "c cannot speak with a");
    world.join_as("d", |w| w.build = (1, 7, 8));
    world.settle();
    world.train(&job, 1);
    assert_eq!(world.record(&job).state, State::Running);
}

/// Processors that multiply pairs of bf16 differ there alone.
#[test]
fn workers_that_differ_in_bf16_alone_are_alike_for_a_job_of_f32() {
    for (keys, are_alike) in [("exact = true", true), ("exact = true\nproducts = \"bf16\"", false)] {
        let mut world = World::new();
        let job = world.submit(&job_file(2, 9, keys));
        world.join("a");
        world.join_as("b", |w| w.fingerprint_bf16 = "pairs".into());
        assert_eq!(world.record(&job).state == State::Queued, !are_alike, "{keys}");
        world.join_as("c", |w| w.fingerprint_bf16 = "pairs".into());
        world.settle();
        world.train(&job, 1);
        let expected = if are_alike { "alike" } else { "pairs" };
        assert_eq!(world.record(&job).fingerprint.as_deref(), Some(expected), "{keys}");
    }
}

#[test]
fn mixed_fingerprints_are_warned_about() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 9, ""));
    world.join_as("a", |w| w.fingerprint = "avx2".into());
    world.join_as("b", |w| w.fingerprint = "avx512".into());
    assert!(world.has_event(&job, "job.mixed", "avx2 | avx512"));
}

#[test]
fn a_job_that_resumes_goes_on_from_there() {
    let mut world = World::new();
    world.resume_step = 100;
    let job = world.submit(&job_file(1, 104, "checkpoint.interval_steps = 102"));
    world.join_as("a", |w| w.resume_step = 100);
    world.settle();
    assert_eq!(world.view(&job).committed_step, 100);
    world.train(&job, 1);
    assert_eq!(world.curves[&job][0].step, 101);
    world.join_as("b", |w| w.resume_step = 100);
    world.kill("a");
    world.settle();
    assert_eq!((world.view(&job).committed_step, world.curves[&job].len()), (100, 0), "again from there");
    world.train(&job, 4);
    assert_eq!((world.record(&job).state, world.curves[&job].len()), (State::Done, 4));
}

#[test]
fn a_job_that_resumes_beyond_its_end_fails() {
    let mut world = World::new();
    let job = world.submit(&job_file(1, 50, ""));
    world.join_as("a", |w| w.resume_step = 100);
    world.settle();
    let expected = "`resume_from` is at step 100 and the job has only 50 steps; raise `steps`";
    assert_eq!((world.record(&job).state, world.record(&job).reason.as_str()), (State::Failed, expected));
}

/// There is nothing to be made: what it was given is saved as its own, and it keeps nobody waiting.
#[test]
fn a_job_that_resumes_at_its_end_is_done() {
    let mut world = World::new();
    world.resume_step = 20;
    let job = world.submit(&job_file(2, 20, ""));
    for id in ["a", "b"] {
        world.join_as(id, |w| w.resume_step = 20);
    }
    world.settle();
    let record = world.record(&job);
    assert_eq!(
        (record.state, record.last_checkpoint().map(|c| c.step.get())),
        (State::Done, Some(20)),
        "{:?}",
        world.story
    );
}

#[test]
fn jobs_that_ended_long_ago_are_forgotten_and_those_that_wait_are_not() {
    const DAY_MS: i64 = 86_400_000;
    let mut world = World::new();
    let old = world.submit(&job_file(1, 2, ""));
    world.join("a");
    world.settle();
    world.train(&old, 2);
    assert_eq!(world.record(&old).state, State::Done);
    let waits = world.submit(&job_file(9, 2, ""));
    world.calendar_ms += 89 * DAY_MS;
    world.join("b");
    assert!(world.machine.record(&old).is_some(), "90 days are not over");
    world.calendar_ms += 2 * DAY_MS;
    world.join("c");
    assert!(world.machine.record(&old).is_none(), "it ended 91 days ago");
    assert_eq!(world.record(&waits).state, State::Queued, "it has not ended, however old it is");
    let is_stored = |record: &Record, id: &str| matches!(record, Record::Job(job) if job.id == id);
    assert!(world.store.values().any(|record| is_stored(record, &waits)));
    assert!(!world.store.values().any(|record| is_stored(record, &old)), "nor does the next coordinator know it");
    assert_eq!(world.submit(&job_file(9, 2, "")), "demo-3", "its id is not given again");
}

/// What a coordinator with a token says to a registration; `None`: welcome.
fn refusal(change: impl FnOnce(&mut proto::Register)) -> Option<String> {
    let mut world = World::with_token(Some("secret"));
    let mut register = proto::Register {
        secret: vec![7; 32],
        worker_id: "a".into(),
        protocol_version: proto::build().protocol.newest,
        build_version: proto::BUILD_VERSION.into(),
        host: "here".into(),
        data_address: "here:1".into(),
        fingerprint: "alike".into(),
        token: "secret".into(),
        ..Default::default()
    };
    change(&mut register);
    let stream = StreamId(99);
    let outputs =
        world.machine.handle(Input::Message { stream, body: Box::new(FromWorker::Register(register)) }, world.at());
    let sent = outputs.into_iter().find_map(|o| match o {
        crate::Output::Send { message, .. } => message.body,
        _ => None,
    });
    match sent {
        Some(proto::coordinator_message::Body::Welcome(_)) => None,
        Some(proto::coordinator_message::Body::Refused(refused)) => Some(refused.reason),
        other => panic!("a registration is answered with {other:?}"),
    }
}

#[test]
fn a_worker_that_does_not_fit_is_refused_with_what_was_found() {
    let contains = |reason: Option<String>, part: &str| {
        assert!(reason.as_ref().is_some_and(|r| r.contains(part)), "`{part}` is not in {reason:?}");
    };
    assert_eq!(refusal(|_| {}), None);
    assert_eq!(refusal(|r| r.build_version = "0.0.1".into()), None, "the version of the program decides nothing");
    let of_both = |oldest, newest| {
        refusal(move |r| (r.build_version, r.protocol_oldest, r.protocol_version) = ("9.9.9".into(), oldest, newest))
    };
    let own = proto::build().protocol;
    assert_eq!(of_both(own.newest, own.newest + 7), None);
    for (oldest, newest, said) in [(70, 77, "70 to 77"), (0, 77, "77")] {
        let reason = of_both(oldest, newest);
        contains(reason.clone(), &format!("the worker is of version 9.9.9 and speaks protocol {said},"));
        contains(reason.clone(), "upgrade one release at a time");
        contains(reason, &format!("of version {} and speaks protocol {own}:", proto::BUILD_VERSION));
    }
    contains(refusal(|r| r.token.clear()), "no join token");
    contains(refusal(|r| r.token = "wrong".into()), "another join token");
    contains(refusal(|r| r.data_address.clear()), "`data_address` has 0 bytes");
    contains(refusal(|r| r.worker_id = "x".repeat(1000)), "`worker_id` has 1000 bytes");
}

#[test]
fn the_newer_stream_of_a_worker_wins() {
    let mut world = World::new();
    let job = world.submit(&job_file(1, 9, ""));
    world.join("a");
    world.settle();
    world.train(&job, 2);
    let older = world.worker("a").stream.expect("connected");
    world.connect("a");
    world.settle();
    assert!(world.story.iter().all(|s| !s.contains("worker.lost")), "it goes on with its place: {:?}", world.story);
    world.input(Input::Closed { stream: older, reason: "closed late".into() });
    world.train(&job, 1);
    let record = world.record(&job);
    assert_eq!((record.epoch.get(), record.state, world.view(&job).committed_step), (1, State::Running, 3));
}

#[test]
fn what_is_measured_adds_up() {
    let mut world = World::new();
    let job = world.submit(&job_file(1, 100, ""));
    world.join("a");
    world.settle();
    for _ in 0..10 {
        world.pass(Duration::from_secs(2));
        world.train(&job, 1);
    }
    let view = world.view(&job);
    assert_eq!((view.committed_step, view.tokens_per_s, view.eta_s), (10, 100.0, 90.0));
    assert_eq!(view.goodput, 0.5, "steps of one second, every two seconds");
    assert_eq!((view.first_loss, view.places.len(), view.places_alive), (5.0, 1, 1));
}

#[test]
fn a_silent_spare_is_closed_and_deadlines_end() {
    let mut world = World::new();
    world.join("a");
    world.worker("a").is_hung = true;
    world.pass(LIMITS.failure_timeout * 2);
    assert_eq!(world.worker("a").stream, None);
    assert_eq!(world.machine.poll_timeout(), None, "nothing is left to wait for");
}

#[test]
fn spares_are_told_once_what_to_be_ready_for() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 30, ""));
    ["a", "b", "c"].iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 2);
    let told = |world: &mut World, who: &str| world.worker(who).told_to_warm_up.clone();
    assert_eq!(told(&mut world, "c"), [(job.clone(), 0)]);
    assert!(told(&mut world, "a").is_empty() && told(&mut world, "b").is_empty());
    world.kill("a");
    world.join("d");
    world.settle();
    assert_eq!(told(&mut world, "d"), [(job, 0)]);
    assert_eq!(told(&mut world, "c").len(), 1, "it has a place by now");
}
