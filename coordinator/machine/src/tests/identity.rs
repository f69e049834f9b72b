//! One id, two processes: the second is refused as long as the first may live, and is taken at once when it is gone.

use proto::coordinator_message::Body as ToWorker;
use toroid_proto as proto;

use super::world::{LIMITS, World, job_file};
use crate::Input;
use crate::record::State;

/// A job of two places that waits for workers rather than go on with fewer.
fn running() -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 40, "fault_tolerance.min_dp = 2"));
    world.join("w0");
    world.join("w1");
    world.settle();
    world.train(&job, 3);
    (world, job)
}

/// Another process with the id w1 connects: a container with the same host name. What it is told; `None`: welcome.
fn twin(world: &mut World) -> Option<proto::Refused> {
    if !world.workers.contains_key("twin") {
        world.join_as("twin", |twin| (twin.id, twin.host) = ("w1".into(), "host-w1.b".into()));
    } else {
        world.connect("twin");
    }
    match world.worker("twin").inbox.front() {
        Some(ToWorker::Welcome(_)) => {
            // The world knows workers by id.
            let twin = world.workers.remove("twin").expect("it has just connected");
            world.workers.insert("w1".into(), twin);
            None
        }
        Some(ToWorker::Refused(refused)) => Some(refused.clone()),
        other => panic!("a registration is answered with {other:?}"),
    }
}

#[test]
fn the_second_of_two_living_processes_of_one_id_is_refused_and_both_are_named() {
    let (mut world, job) = running();
    let epoch = world.record(&job).epoch.get();
    for _ in 0..20 {
        let refused = twin(&mut world).expect("the first lives");
        assert_eq!(refused.kind(), proto::RefusalKind::IdInUse);
        for words in
            ["worker id `w1` is in use", "process 1 on host host-w1 (links at host-w1:1)", "host host-w1.b", "--id"]
        {
            assert!(refused.reason.contains(words), "{words}: {}", refused.reason);
        }
    }
    world.settle();
    world.train(&job, 2);
    let record = world.record(&job);
    assert_eq!(
        (record.epoch.get(), record.state, record.num_incidents),
        (epoch, State::Running, 0),
        "nobody is evicted"
    );
    assert_eq!(world.view(&job).committed_step, 5);
}

#[test]
fn the_same_process_takes_its_own_stream_over_at_once() {
    let (mut world, job) = running();
    let epoch = world.record(&job).epoch.get();
    world.connect("w1");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).epoch.get(), world.record(&job).num_incidents), (epoch, 0));
    assert_eq!(world.view(&job).committed_step, 4);
}

#[test]
fn another_process_is_taken_once_the_first_is_gone() {
    let (mut world, job) = running();
    // Its host lost its power: nobody has missed it yet.
    world.worker("w1").is_hung = true;
    assert!(twin(&mut world).is_some());
    world.pass(LIMITS.failure_timeout + LIMITS.heartbeat_interval);
    assert_eq!(twin(&mut world), None, "it was missed by now");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, world.view(&job).lost_steps), (State::Running, 0));
    // Nor is a process in the way whose stream has ended.
    world.kill("w0");
    world.join("w0");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, world.view(&job).committed_step), (State::Running, 5));
}

#[test]
fn after_a_restart_of_the_coordinator_a_twin_does_not_take_the_place_of_the_first() {
    let (mut world, job) = running();
    world.restart(|_| false);
    let refused = twin(&mut world).expect("the first may come back");
    assert!(refused.reason.contains(&format!("a place in {job}")), "{}", refused.reason);
    world.reconnect(|id| id != "twin");
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, world.record(&job).num_incidents), (State::Running, 0));
    // Where the first does not come back, the second is taken when its time is over.
    world.restart(|id| id == "w0");
    assert!(twin(&mut world).is_some());
    world.pass(LIMITS.reconnect() + LIMITS.heartbeat_interval);
    assert_eq!(twin(&mut world), None);
    world.settle();
    world.train(&job, 1);
    assert_eq!((world.record(&job).state, world.view(&job).lost_steps), (State::Running, 0));
}

/// Of two processes of one id the older one has an older state: it must not count as what the younger one held.
#[test]
fn t3_the_state_of_an_older_process_of_the_id_does_not_count() {
    let (mut world, job) = running();
    // It is cut off, not dead, and another takes its id and its place.
    let older = world.workers.remove("w1").expect("it is there");
    let stream = older.stream.expect("it is connected");
    world.input(Input::Closed { stream, reason: "closed its stream (reset)".into() });
    assert_eq!(twin(&mut world), None);
    world.settle();
    world.train(&job, 5);
    assert_eq!((world.view(&job).committed_step, world.record(&job).state), (8, State::Running));
    world.kill("w1");
    world.workers.insert("w1".into(), older);
    world.connect("w1");
    world.settle();
    world.train(&job, 1);
    let record = world.record(&job);
    assert_eq!((record.state, record.lost_steps), (State::Running, 0), "{}", record.reason);
    assert_eq!(world.view(&job).committed_step, 9, "it took the place as a newcomer");
}
