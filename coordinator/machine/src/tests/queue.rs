//! Several jobs over one pool of workers: priorities, preemption, quotas, labels, hold, cordon, jobs that come back.

use std::collections::BTreeMap;
use std::time::Duration;

use toroid_proto as proto;
use toroid_torus::ids::WorkerId;

use super::world::{LIMITS, World, job_file};
use crate::record::State;
use crate::{Input, Policy, Quotas, Reply, RequestError, Submission, Who};

/// A job of `dp` places that has committed 5 of 40 steps, on workers w0 and so on; `spares` more are there.
fn running(dp: usize, spares: usize, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(dp, 40, more));
    (0..dp + spares).for_each(|n| world.join(&format!("w{n}")));
    world.settle();
    world.train(&job, 5);
    assert_eq!(world.view(&job).committed_step, 5);
    (world, job)
}

/// Trains all jobs to their end, side by side, and checks that nothing was lost: the world checks the curves.
fn check_all_done(world: &mut World, jobs: &[&str]) {
    for _ in 0..400 {
        for job in jobs {
            world.train(job, 1);
        }
        world.pass(LIMITS.heartbeat_interval);
        if jobs.iter().all(|job| world.record(job).state.is_ended()) {
            break;
        }
    }
    for job in jobs {
        let (record, lost) = (world.record(job), world.view(job).lost_steps);
        let steps = record.spec.steps as usize;
        assert_eq!((record.state, world.curves[*job].len(), lost), (State::Done, steps, 0), "{job}: {}", record.reason);
    }
}

fn places(world: &World, job: &str) -> Vec<String> {
    world.record(job).places.iter().map(|w| w.as_ref().map_or_else(String::new, WorkerId::to_string)).collect()
}

fn ask(world: &mut World, input: impl FnOnce(crate::RequestId) -> Input) -> Result<Reply, RequestError> {
    let request = world.request(input);
    world.replies[&request].clone()
}

#[test]
fn a_job_of_a_higher_priority_has_an_elastic_one_go_on_with_fewer_replicas_and_it_grows_again() {
    let (mut world, low) = running(4, 0, "fault_tolerance.min_dp = 2");
    let high = world.submit(&job_file(2, 10, "priority = 5"));
    let record = world.record(&low);
    assert_eq!((record.shape.dp(), record.state), (2, State::Recovering), "{}", record.reason);
    let gives = "gives 2 of its workers to demo-2, whose priority 5 is higher than 0: it goes on with dp 2; dp 2 instead of 4 and the same samples";
    assert!(record.reason.starts_with(gives) && world.has_event(&low, "job.shrunk", gives), "{}", record.reason);
    assert_eq!(world.record(&high).state, State::Queued, "they hold the state until a step is made");
    let waits = "needs 2 workers, 0 are free; 2 more are saved first, and come then";
    world.settle();
    assert_eq!(world.view(&high).reason, waits);
    world.train(&low, 1);
    assert_eq!((world.record(&low).state, world.record(&high).state), (State::Degraded, State::Starting));
    // What its user asked for is kept: a second one of the same size has to have it stopped.
    world.settle();
    world.train(&high, 10);
    assert_eq!(world.record(&high).state, State::Done);
    for _ in 0..4 {
        world.train(&low, 1);
        world.pass(LIMITS.heartbeat_interval);
    }
    assert_eq!((world.record(&low).shape.dp(), world.record(&low).state), (4, State::Running));
    let mut rungs: Vec<(String, String)> =
        world.view(&low).incidents.iter().map(|i| (i.rung.clone(), i.seen_by.clone())).collect();
    // Each worker comes back as soon as it has shown that it can fill a place.
    rungs.dedup();
    assert_eq!(rungs, [("shrink".into(), "priority".into()), ("grow".into(), "capacity".into())]);
    check_all_done(&mut world, &[&low]);
}

#[test]
fn a_job_that_is_stopped_is_saved_first_and_goes_on_from_there_by_itself() {
    let (mut world, low) = running(3, 0, "fault_tolerance.min_dp = 3");
    let high = world.submit(&job_file(2, 10, "priority = 5"));
    assert!(world.has_event(&low, "job.preempted", "gives its workers to demo-2, whose priority 5 is higher than 0"));
    assert!(world.has_event(
        &low,
        "job.halting",
        "is saved and no step is made beyond it: gives its workers to demo-2"
    ));
    assert_eq!(world.view(&high).reason, "needs 2 workers, 0 are free; demo-1 is saved and gives its workers");
    world.settle();
    world.train(&low, 5);
    let record = world.record(&low);
    let saved = record.last_checkpoint().map(|c| c.step.get()).expect("a checkpoint");
    assert_eq!((record.state, world.curves[&low].len() as u64), (State::Queued, saved), "{}", record.reason);
    assert_eq!(world.record(&high).state, State::Starting);
    let reason = world.view(&low).reason;
    let expected = format!(
        "needs 3 workers, 1 are free; demo-2 of higher priority runs; then all go on from the checkpoint of step {saved}"
    );
    assert_eq!(reason, expected);
    // So it does after a restart of the coordinator.
    world.restart(|_| true);
    world.settle();
    assert_eq!(world.view(&low).reason, expected);
    world.train(&high, 10);
    assert_eq!((world.record(&high).state, world.record(&low).state), (State::Done, State::Starting));
    world.settle();
    assert_eq!(world.record(&low).restore_step.get(), saved);
    check_all_done(&mut world, &[&low]);
    assert!(world.view(&low).incidents.is_empty(), "nothing has failed");
}

#[test]
fn a_restart_between_preemption_and_checkpoint_changes_nothing() {
    let (mut world, low) = running(3, 0, "fault_tolerance.min_dp = 3");
    let high = world.submit(&job_file(2, 10, "priority = 5"));
    assert!(world.record(&low).yields.is_some());
    world.restart(|_| true);
    world.settle();
    world.pass(LIMITS.heartbeat_interval);
    world.train(&low, 5);
    assert_eq!((world.record(&low).state, world.record(&high).state), (State::Queued, State::Starting));
    world.settle();
    check_all_done(&mut world, &[&high, &low]);
}

#[test]
fn a_death_while_a_job_is_being_saved_costs_nothing() {
    let (mut world, low) = running(3, 1, "fault_tolerance.min_dp = 3");
    let high = world.submit(&job_file(3, 10, "priority = 5"));
    assert!(world.record(&low).yields.is_some(), "one is free, which is not enough");
    world.kill("w1");
    world.settle();
    world.train(&low, 6);
    assert_eq!(
        (world.record(&low).state, world.record(&high).state),
        (State::Queued, State::Starting),
        "{:#?}",
        world.story
    );
    world.settle();
    check_all_done(&mut world, &[&high, &low]);
}

#[test]
fn a_job_that_has_made_no_step_gives_its_workers_at_once() {
    let mut world = World::new();
    let low = world.submit(&job_file(2, 10, ""));
    world.join("a");
    world.join("b");
    let high = world.submit(&job_file(2, 10, "priority = 1"));
    assert_eq!((world.record(&low).state, world.record(&high).state), (State::Queued, State::Starting));
    world.settle();
    check_all_done(&mut world, &[&high, &low]);
}

#[test]
fn a_shared_spare_goes_to_the_job_of_the_higher_priority() {
    let mut world = World::new();
    let low = world.submit(&job_file(2, 40, "fault_tolerance.min_dp = 2"));
    let high = world.submit(&job_file(2, 40, "priority = 3\nfault_tolerance.min_dp = 2"));
    (0..4).for_each(|n| world.join(&format!("w{n}")));
    world.settle();
    for job in [&low, &high] {
        world.train(job, 3);
    }
    let victims: Vec<String> = [&low, &high].map(|job| places(&world, job)[1].clone()).to_vec();
    // The older one of the lower priority has lost its worker first.
    victims.iter().for_each(|id| world.kill(id));
    world.settle();
    world.join("x");
    assert!(places(&world, &high).contains(&"x".into()), "{:?}", places(&world, &low));
    world.settle();
    assert!(world.has_event(&low, "job.keeps", "what they were wanted for is there"));
    world.join("y");
    world.settle();
    check_all_done(&mut world, &[&low, &high]);
    assert!(!world.has_event(&low, "job.queued", ""), "it was not stopped in vain");
}

#[test]
fn a_job_that_lost_a_worker_takes_one_from_a_job_of_a_lower_priority() {
    let mut world = World::new();
    let high = world.submit(&job_file(3, 40, "priority = 3\nfault_tolerance.min_dp = 3"));
    let low = world.submit(&job_file(3, 40, "fault_tolerance.min_dp = 3"));
    (0..7).for_each(|n| world.join(&format!("w{n}")));
    world.settle();
    for job in [&high, &low] {
        world.train(job, 3);
    }
    // The first takes the spare, the second needs one of the other job.
    for rank in [0, 1] {
        let victim = places(&world, &high)[rank].clone();
        world.kill(&victim);
        world.settle();
        world.train(&high, 1);
    }
    assert!(world.record(&low).yields.is_some(), "{:#?}", world.story);
    world.train(&low, 5);
    world.settle();
    assert_eq!((world.record(&low).state, world.record(&high).state), (State::Queued, State::Recovering));
    world.train(&high, 2);
    assert_eq!(world.record(&high).state, State::Running);
    let reason = world.view(&low).reason;
    assert!(
        reason.starts_with("waits for workers: needs 3 workers, 5 are there")
            || reason.starts_with("needs 3 workers, 2 are free"),
        "{reason}"
    );
    world.join("x");
    world.settle();
    check_all_done(&mut world, &[&high, &low]);
}

#[test]
fn a_job_on_hold_is_saved_and_waits_until_it_is_released() {
    let (mut world, job) = running(2, 0, "");
    let next = world.submit(&job_file(2, 5, ""));
    let held = Ok(Reply::Held { job: job.as_str().into() });
    assert_eq!(ask(&mut world, |request| Input::Hold { request, job: job.clone() }), held);
    assert_eq!(ask(&mut world, |request| Input::Hold { request, job: job.clone() }), held, "twice is once");
    world.settle();
    world.train(&job, 5);
    assert_eq!((world.record(&job).state, world.record(&next).state), (State::Queued, State::Starting));
    assert_eq!(world.view(&job).reason, "is held by a user; `toroid release demo-1` lets it run");
    world.settle();
    world.train(&next, 5);
    world.restart(|_| true);
    world.settle();
    world.pass(10 * LIMITS.failure_timeout);
    assert_eq!((world.record(&job).state, world.view(&job).is_held), (State::Queued, true));
    let waited = world.view(&job).waited_s;
    assert!(waited < 1.0, "on hold it does not wait: {waited} s");
    assert!(ask(&mut world, |request| Input::Release { request, job: job.clone() }).is_ok());
    let again = ask(&mut world, |request| Input::Release { request, job: job.clone() });
    assert!(matches!(again, Err(RequestError::State { what: "released", .. })), "{again:?}");
    world.settle();
    check_all_done(&mut world, &[&job]);
    let ended = ask(&mut world, |request| Input::Hold { request, job: job.clone() });
    assert!(matches!(ended, Err(RequestError::State { what: "held", .. })), "{ended:?}");
}

#[test]
fn a_cordon_outlives_the_worker_and_the_coordinator() {
    let (mut world, job) = running(2, 1, "fault_tolerance.min_dp = 2");
    let cordon = |worker: &str| {
        let (who, reason) = (Who::Worker(worker.to_string()), "its fan is loud".to_string());
        move |request| Input::Cordon { request, who, reason }
    };
    // The spare, and one with a place, which keeps it.
    assert_eq!(ask(&mut world, cordon("w2")), Ok(Reply::Cordoned { placed: Vec::new() }));
    assert_eq!(ask(&mut world, cordon("w1")), Ok(Reply::Cordoned { placed: vec![("w1".into(), job.as_str().into())] }));
    world.train(&job, 1);
    let info = |world: &World, id: &str| {
        world.machine.view_workers(world.at()).into_iter().find(|w| w.worker_id == id).expect("a worker")
    };
    assert_eq!((info(&world, "w1").state(), info(&world, "w1").is_cordoned), (proto::WorkerState::Placed, true));
    assert_eq!(info(&world, "w2").state(), proto::WorkerState::Cordoned);
    assert_eq!(info(&world, "w2").state_reason, "a user cordoned it: its fan is loud; `toroid uncordon` takes it back");
    world.kill("w1");
    world.settle();
    let record = world.record(&job);
    assert!(record.reason.ends_with("; one that is cordoned does not count"), "{}", record.reason);
    world.restart(|_| true);
    // They come back as other processes.
    world.kill("w2");
    for id in ["w1", "w2"] {
        world.join_as(id, |w| w.pid = 77);
    }
    world.settle();
    world.pass(4 * LIMITS.failure_timeout);
    assert_eq!(world.record(&job).state, State::Recovering, "{}", world.record(&job).reason);
    let uncordon = |worker: &str| {
        let who = Who::Worker(worker.to_string());
        move |request| Input::Uncordon { request, who }
    };
    let unknown = ask(&mut world, uncordon("w9"));
    assert_eq!(unknown.map_err(|e| e.to_string()), Err("`w9` is not cordoned; these are: w1, w2".into()));
    assert_eq!(ask(&mut world, uncordon("w2")), Ok(Reply::Uncordoned { reason: "its fan is loud".into() }));
    world.settle();
    check_all_done(&mut world, &[&job]);
    assert!(matches!(ask(&mut world, cordon("")), Err(RequestError::WorkerId { .. })));
}

#[test]
fn labels_say_which_workers_a_job_takes() {
    let mut world = World::new();
    let job =
        world.submit(&job_file(2, 10, "workers.labels = { gpu = \"h100\", zone = \"a\" }\nfault_tolerance.min_dp = 2"));
    let other = world.submit(&job_file(1, 10, ""));
    let join = |world: &mut World, id: &str, zone: &str, gpu: &str| {
        let labels = BTreeMap::from([("gpu".to_string(), gpu.to_string())]);
        world.join_as(id, |w| (w.zone, w.labels) = (zone.into(), labels));
    };
    join(&mut world, "a", "a", "h100");
    join(&mut world, "b", "b", "h100");
    join(&mut world, "c", "a", "a100");
    assert_eq!(world.view(&job).reason, "waits for workers: needs 2 workers with gpu = h100, zone = a, 1 are there");
    assert_eq!(world.record(&other).state, State::Starting);
    join(&mut world, "d", "a", "h100");
    world.settle();
    // The one of no label may have taken one of theirs.
    check_all_done(&mut world, &[&other]);
    world.settle();
    world.train(&job, 2);
    let mut found = places(&world, &job);
    found.sort();
    assert_eq!(found, ["a", "d"]);
    world.kill("d");
    world.settle();
    assert_eq!(world.record(&job).state, State::Recovering, "b and c do not suit it");
    join(&mut world, "e", "a", "h100");
    world.settle();
    check_all_done(&mut world, &[&job]);
    world.join_as("f", |w| w.labels = BTreeMap::from([("zone".into(), "a".into())]));
    assert!(world.machine.view_workers(world.at()).iter().all(|w| w.worker_id != "f"), "it is refused");
}

#[test]
fn quotas_are_each_users_own() {
    let mut world = World::new();
    world.set_policy(Policy { quotas: Quotas { default: Some(2), by_user: BTreeMap::new() }, ..Policy::default() });
    let submission = Submission { toml: job_file(3, 5, ""), user: "ada".into(), priority: None };
    let owner = world.next_owner();
    let refused = ask(&mut world, |request| Input::Submit { request, submission, owner }).expect_err("too many");
    let text = "the job needs 3 workers and the quota of the user `ada` is 2; ask for a smaller shape";
    assert!(refused.to_string().starts_with(text), "{refused}");
    let submission = Submission { toml: job_file(1, 5, ""), user: "a b".into(), priority: None };
    let refused = ask(&mut world, |request| Input::Submit { request, submission, owner }).expect_err("no name");
    assert!(refused.to_string().starts_with("the user `a b` is not possible"), "{refused}");
    (0..5).for_each(|n| world.join(&format!("w{n}")));
    let first = world.submit_as("ada", &job_file(2, 5, ""));
    let second = world.submit_as("ada", &job_file(1, 5, ""));
    let third = world.submit_as("bob", &job_file(2, 5, ""));
    assert_eq!(
        [&first, &second, &third].map(|job| world.record(job).state),
        [State::Starting, State::Queued, State::Starting]
    );
    assert_eq!(world.view(&second).reason, "needs 1 worker; the quota of ada is 2 workers, 2 are in use");
    world.settle();
    check_all_done(&mut world, &[&first, &second, &third]);
}

/// Those that wait, that run and that come back count; those that have ended, and other users', do not.
#[test]
fn a_user_has_so_many_jobs_at_a_time_and_no_more() {
    let mut world = World::new();
    world.set_policy(Policy { max_jobs: 2, ..Policy::default() });
    world.join("a");
    let submit = |world: &mut World, user: &str| {
        let submission = Submission { toml: job_file(1, 5, ""), user: user.into(), priority: None };
        let owner = world.next_owner();
        ask(world, |request| Input::Submit { request, submission, owner }).map_err(|e| e.to_string())
    };
    let runs = world.submit_as("ada", &job_file(1, 5, ""));
    let waits = world.submit_as("ada", &job_file(1, 5, ""));
    assert_eq!([&runs, &waits].map(|job| world.record(job).state), [State::Starting, State::Queued]);
    let refused = submit(&mut world, "ada").expect_err("one too many");
    let text = "the user `ada` has 2 jobs that have not ended, and may have no more";
    assert!(refused.starts_with(text) && refused.contains("--max-jobs-per-user"), "{refused}");
    assert!(submit(&mut world, "bob").is_ok());
    assert!(ask(&mut world, |request| Input::Cancel { request, job: waits.clone() }).is_ok());
    world.settle();
    assert!(submit(&mut world, "ada").is_ok(), "one has ended");
    let resume = |request| Input::Resume { request, job: waits.clone(), from_scratch: false, steps: None };
    assert!(ask(&mut world, resume).expect_err("it would be the third").to_string().starts_with(text));
    let nameless = (0..3).map(|_| submit(&mut world, "")).collect::<Vec<_>>();
    assert!(nameless[1].is_ok() && nameless[2].as_ref().is_err_and(|e| e.starts_with("whoever names no user has 2")));
}

#[test]
fn a_job_that_has_ended_goes_on_from_its_checkpoint_with_other_steps() {
    let (mut world, job) = running(2, 0, "checkpoint.interval_steps = 4");
    world.train(&job, 5);
    assert!(ask(&mut world, |request| Input::Cancel { request, job: job.clone() }).is_ok());
    world.settle();
    let resume = |steps: Option<u64>| {
        let job = job.clone();
        move |request| Input::Resume { request, job, from_scratch: false, steps }
    };
    let refused = ask(&mut world, resume(Some(8))).expect_err("it is there already").to_string();
    assert!(
        refused.starts_with("demo-1 cannot be resumed up to step 8: its newest checkpoint is of step 8"),
        "{refused}"
    );
    assert_eq!(ask(&mut world, resume(Some(12))), Ok(Reply::Resumed { job: job.as_str().into() }));
    let text = "it was cancelled, and goes on from the checkpoint of step 8 up to step 12 instead of 40; 2 steps since then are made again";
    assert!(world.has_event(&job, "job.resumed", text), "{:#?}", world.record(&job).events);
    world.settle();
    check_all_done(&mut world, &[&job]);
    let refused = ask(&mut world, resume(None)).expect_err("all steps are made").to_string();
    assert!(refused.contains("give more with --steps"), "{refused}");
    // Also a job that is done, after a restart, and again.
    for steps in [20, 24] {
        world.restart(|_| true);
        assert!(ask(&mut world, resume(Some(steps))).is_ok());
        world.settle();
        check_all_done(&mut world, &[&job]);
        assert_eq!(world.record(&job).restore_step.get(), if steps == 20 { 12 } else { 20 });
    }
}

#[test]
fn a_job_that_failed_comes_back_when_what_it_lacked_is_there() {
    let mut world = World::new();
    let job = world.submit(&job_file(1, 3, ""));
    world.join_as("a", |w| w.prepare_error = Some(("/data is empty".into(), true)));
    world.settle();
    assert_eq!(world.record(&job).state, State::Failed);
    world.worker("a").prepare_error = None;
    assert!(
        ask(&mut world, |request| Input::Resume { request, job: job.clone(), from_scratch: false, steps: None })
            .is_ok()
    );
    assert!(world.has_event(&job, "job.resumed", "it was failed, and goes on from its beginning up to step 3"));
    world.settle();
    world.train(&job, 3);
    assert_eq!(world.record(&job).state, State::Done);
}

/// One after another and side by side: what is stored and said stays in proportion to the jobs.
#[test]
fn a_thousand_jobs_run_on_eight_workers() {
    const NUM_JOBS: usize = 1000;
    let mut world = World::new();
    let more = |n: usize| format!("priority = {}\n", n % 3);
    let jobs: Vec<String> =
        (0..NUM_JOBS).map(|n| world.submit(&job_file(1 + n % 2, 1 + n as u64 % 2, &more(n)))).collect();
    (0..8).for_each(|n| world.join(&format!("w{n}")));
    for _ in 0..4 * NUM_JOBS {
        world.settle();
        let placed: Vec<String> =
            world.machine.jobs().filter(|j| j.state.is_placed()).map(|j| j.id.to_string()).collect();
        if placed.is_empty() {
            break;
        }
        for job in &placed {
            world.step(job);
        }
        world.now += Duration::from_millis(100);
    }
    let num_done = jobs.iter().filter(|job| world.record(job).state == State::Done).count();
    assert_eq!(num_done, NUM_JOBS);
    // Each is stored a number of times that does not depend on how many wait.
    let per_job = world.num_stored as f64 / NUM_JOBS as f64;
    println!("{per_job:.1} records are stored for each job, {:.1} outputs", world.num_outputs as f64 / NUM_JOBS as f64);
    assert!(per_job < 60.0, "{per_job} records for each job");
}

/// A fleet that joins is not counted at each of its words, and a job starts with the word of the last that it needs.
#[test]
fn of_many_workers_those_that_count_are_counted_now_and_then() {
    let mut world = World::new();
    let job = world.submit(&job_file(1200, 40, "batch.micro_batches = 1"));
    (0..1100).for_each(|n| world.join(&format!("w{n}")));
    assert!(world.record(&job).reason.ends_with("needs 1200 workers, 1001 are there"), "{}", world.record(&job).reason);
    world.pass(Duration::from_secs(1));
    assert!(world.record(&job).reason.ends_with("needs 1200 workers, 1100 are there"), "{}", world.record(&job).reason);
    (1100..1200).for_each(|n| world.join(&format!("w{n}")));
    assert_eq!(world.record(&job).state, State::Starting, "{}", world.record(&job).reason);
}
