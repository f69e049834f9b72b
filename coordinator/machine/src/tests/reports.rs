//! What others reported of clusters in the field, played through: most workers gone at once, nodes that are drained, come back, or kill what they get.

use std::time::Duration;

use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_torus::ids::WorkerId;

use super::world::{LIMITS, World, job_file};
use crate::record::State;
use crate::{Input, Reply, RequestError, Who};

const SECOND: Duration = Duration::from_secs(1);

/// A job of `dp` places on workers n0 and so on, each on a host of its own, with `spares` more; it has committed `steps`.
fn running(dp: usize, spares: usize, steps: u64, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(dp, 200, more));
    (0..dp + spares).for_each(|n| join_on(&mut world, &format!("n{n}"), &format!("node-{n}")));
    world.settle();
    world.train(&job, steps);
    assert_eq!(world.view(&job).committed_step, steps, "{:?}", world.story);
    (world, job)
}

fn join_on(world: &mut World, id: &str, host: &str) {
    world.join_as(id, |w| w.host = host.into());
}

fn ask(world: &mut World, input: impl FnOnce(crate::RequestId) -> Input) -> Result<Reply, RequestError> {
    let request = world.request(input);
    world.replies[&request].clone()
}

fn has_place(world: &World, job: &str, worker: &str) -> bool {
    world.record(job).places.iter().flatten().any(|w| *w == *worker)
}

fn check_goes_on(world: &mut World, job: &str, dp: usize) {
    let before = world.view(job).committed_step;
    world.train(job, 3);
    let record = world.record(job);
    assert_eq!((record.state, record.shape.dp()), (State::Running, dp), "{}", record.reason);
    assert_eq!(world.view(job).committed_step, before + 3, "{}", world.record(job).reason);
}

/// `kubectl delete pod` with force, or a rack without power: both holders of most shards are gone.
#[test]
fn thirty_of_thirty_two_workers_die_at_once_and_it_is_one_incident() {
    let (mut world, job) = running(32, 0, 9, "checkpoint.interval_steps = 4");
    (2..32).for_each(|n| world.kill(&format!("n{n}")));
    world.pass(SECOND);
    assert_eq!(world.record(&job).state, State::Recovering, "{}", world.record(&job).reason);
    // The pods of the ReplicaSet, one after the other.
    for n in 32..62 {
        join_on(&mut world, &format!("n{n}"), &format!("node-{n}"));
        world.pass(SECOND / 10);
    }
    // No deadline has to pass: who comes is taken.
    world.settle();
    let record = world.record(&job);
    assert!(record.places.iter().all(Option::is_some), "{}", record.reason);
    check_goes_on(&mut world, &job, 32);
    let view = world.view(&job);
    let [incident] = view.incidents.as_slice() else { panic!("one incident: {:#?}", view.incidents) };
    assert!(incident.resolved && incident.rung == "restore" && incident.ranks.len() == 30, "{incident:#?}");
    assert_eq!((view.lost_steps, view.committed_step), (1, 11), "back to step 8: {incident:#?}");
    let seconds = incident.total_s;
    assert!(seconds < 20.0, "{seconds} s");
}

/// `kubectl delete pod`, a scale-down that was a mistake: each has its grace.
#[test]
fn thirty_of_thirty_two_workers_are_asked_to_end_and_no_step_is_lost() {
    let (mut world, job) = running(32, 0, 9, "checkpoint.interval_steps = 40");
    for n in 2..32 {
        let leaving = proto::Leaving { reason: "SIGTERM".into(), at_once: false };
        world.worker(&format!("n{n}")).outbox.push_back(FromWorker::Leaving(leaving));
    }
    world.settle();
    // Their replacements come while the state is being saved.
    (32..62).for_each(|n| join_on(&mut world, &format!("n{n}"), &format!("node-{n}")));
    world.settle();
    let (since, old) = (world.now, |n: &u32| format!("n{n}"));
    let is_there = |world: &World| (2..32).any(|n| has_place(world, &job, &old(&n)));
    while is_there(&world) && world.now - since < 5 * LIMITS.failure_timeout {
        world.train(&job, 1);
        world.pass(SECOND / 4);
        // Whoever has no place any more has ended.
        let is_gone = |id: &String| world.workers.contains_key(id) && !has_place(&world, &job, id);
        let gone: Vec<String> = (2..32).map(|n| old(&n)).filter(is_gone).collect();
        for id in gone {
            world.kill(&id);
        }
        world.settle();
    }
    assert!(!is_there(&world), "within their grace: {:?}", world.record(&job).places);
    check_goes_on(&mut world, &job, 32);
    let view = world.view(&job);
    assert_eq!(view.lost_steps, 0, "{:#?}", view.incidents);
    assert!(view.incidents.iter().all(|i| i.resolved), "{:#?}", view.incidents);
}

/// A node is drained, others take its places, one of those dies with nobody left; then the node is back. Its workers have other ids, as most have, or the
/// same.
#[test]
fn a_drained_node_that_returns_after_others_took_its_places_is_used_again() {
    for same_ids in [true, false] {
        let (mut world, job) = running(4, 1, 5, "fault_tolerance.min_dp = 2");
        assert!(matches!(
            ask(&mut world, |request| Input::Drain { request, worker: "n1".into() }),
            Ok(Reply::Drained { .. })
        ));
        world.settle();
        world.train(&job, 2);
        assert!(has_place(&world, &job, "n4") && !has_place(&world, &job, "n1"), "{:?}", world.record(&job).places);
        // While it is there its process is given nothing, and once it has ended there is nobody.
        world.kill("n4");
        world.settle();
        world.kill("n1");
        world.pass(3 * LIMITS.replacement());
        world.train(&job, 2);
        assert_eq!(world.record(&job).state, State::Degraded, "{}", world.record(&job).reason);
        let id = if same_ids { "n1" } else { "n1-again" };
        world.join_as(id, |w| {
            w.host = "node-1".into();
            w.pid = 77;
        });
        world.settle();
        world.pass(LIMITS.replacement());
        world.train(&job, 2);
        assert!(has_place(&world, &job, id), "same ids: {same_ids}; {}", world.record(&job).reason);
        check_goes_on(&mut world, &job, 4);
        assert_eq!(world.view(&job).lost_steps, 0);
    }
}

/// Its memory is broken, say: whatever worker is started there dies within a step, and its supervisor starts another, under another id.
#[test]
fn a_node_that_kills_every_worker_that_it_gets_is_put_aside_by_name_and_jobs_go_on() {
    let (mut world, job) = running(3, 0, 5, "fault_tolerance.min_dp = 3");
    let second = world.submit(&job_file(2, 200, ""));
    ["x0", "x1"].iter().for_each(|id| join_on(&mut world, id, &format!("node-{id}")));
    world.settle();
    world.train(&second, 3);
    // Nobody else is there for the place: it is the bad node's again and again.
    world.kill("n2");
    for n in 0..3 {
        let id = format!("bad-{n}");
        join_on(&mut world, &id, "node-2");
        world.settle();
        if has_place(&world, &job, &id) {
            world.kill(&id);
            world.settle();
        }
    }
    let told = "host node-2 is put aside for 30 minutes: workers of its host were lost 3 times within 10 minutes";
    assert!(world.has_event(&job, "worker.aside", told), "{:#?}", world.record(&job).events);
    let record = world.record(&job);
    assert_eq!(record.state, State::Recovering, "it waits for another: {}", record.reason);
    let seen = world.machine.view_workers(world.at());
    let aside = seen.iter().find(|w| w.host == "node-2").expect("the last one is connected");
    assert_eq!(aside.state(), proto::WorkerState::Aside, "{aside:?}");
    check_goes_on(&mut world, &second, 2);
    join_on(&mut world, "good", "node-7");
    world.settle();
    assert!(has_place(&world, &job, "good"), "{}", world.record(&job).reason);
    check_goes_on(&mut world, &job, 3);
    assert_eq!(world.view(&job).lost_steps, 0);
}

/// The same where other hosts lose workers as well: then it is the step, and the job ends.
#[test]
fn a_step_that_kills_workers_of_several_nodes_still_ends_the_job() {
    let (mut world, job) = running(3, 3, 5, "fault_tolerance.min_dp = 3");
    for _ in 0..3 {
        let at_rank_1 = world.record(&job).places[1].as_ref().map(WorkerId::to_string).expect("it is filled");
        world.kill(&at_rank_1);
        world.settle();
    }
    let record = world.record(&job);
    assert_eq!(record.state, State::Failed, "{}", record.reason);
    assert!(record.reason.contains("step 6 ends whoever computes it as rank 1"), "{}", record.reason);
}

/// An admin takes a node out of use. It reboots, and its workers come back under other ids: they have no place until the admin says so.
#[test]
fn a_node_that_was_cordoned_stays_so_when_it_recovers() {
    let (mut world, job) = running(2, 1, 5, "fault_tolerance.min_dp = 2");
    let cordon = |host: &str| {
        let (who, reason) = (Who::Host(host.into()), "its fan is loud".to_string());
        move |request| Input::Cordon { request, who, reason }
    };
    let placed = vec![("n1".into(), job.as_str().into())];
    assert_eq!(
        ask(&mut world, cordon("node-1")),
        Ok(Reply::Cordoned { placed }),
        "it keeps its place until it is drained"
    );
    assert!(ask(&mut world, |request| Input::Drain { request, worker: "n1".into() }).is_ok());
    world.settle();
    world.train(&job, 2);
    assert!(has_place(&world, &job, "n2"), "{:?}", world.record(&job).places);
    world.kill("n1");
    world.restart(|_| true);
    world.settle();
    join_on(&mut world, "n1-again", "node-1");
    world.settle();
    let seen = world.machine.view_workers(world.at());
    let back = seen.iter().find(|w| w.worker_id == "n1-again").expect("it is connected");
    assert_eq!((back.state(), back.is_cordoned), (proto::WorkerState::Cordoned, true));
    assert_eq!(
        back.state_reason,
        "a user cordoned its host: its fan is loud; `toroid uncordon --host node-1` takes it back"
    );
    world.kill("n2");
    world.settle();
    world.pass(4 * LIMITS.failure_timeout);
    assert!(!has_place(&world, &job, "n1-again"), "it stays drained: {}", world.record(&job).reason);
    let uncordon = |host: &str| {
        let who = Who::Host(host.into());
        move |request| Input::Uncordon { request, who }
    };
    let unknown = ask(&mut world, uncordon("node-9")).map_err(|e| e.to_string());
    assert_eq!(unknown, Err("the host `node-9` is not cordoned; these are: node-1".into()));
    assert_eq!(ask(&mut world, uncordon("node-1")), Ok(Reply::Uncordoned { reason: "its fan is loud".into() }));
    world.settle();
    assert!(has_place(&world, &job, "n1-again"), "{}", world.record(&job).reason);
    check_goes_on(&mut world, &job, 2);
}
