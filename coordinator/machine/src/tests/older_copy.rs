//! T-14: a store that comes up empty, or from an older copy, costs nobody what workers hold.

use std::collections::BTreeMap;

use super::world::{LIMITS, World, job_file};
use crate::record::{Record, State};

type Copy = BTreeMap<String, Record>;

/// A job at step 5, whose second worker was replaced since the copy was taken.
fn replaced_since(places: usize, keys: &str) -> (World, String, Copy) {
    let mut world = World::new();
    let job = world.submit(&job_file(places, 20, keys));
    ["a", "b", "c"].into_iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 3);
    let copy = world.store.clone();
    world.kill("b");
    world.settle();
    world.train(&job, 2);
    assert_eq!((world.record(&job).epoch.get(), world.view(&job).committed_step), (2, 5));
    (world, job, copy)
}

/// The coordinator is killed, and starts on another store.
fn start_on(world: &mut World, store: Copy, come_back: impl Fn(&str) -> bool) {
    world.disconnect_all();
    world.store = store;
    world.restart(come_back);
    world.settle();
}

#[test]
fn the_job_goes_on_from_the_later_epoch_that_its_workers_hold() {
    let (mut world, job, copy) = replaced_since(2, "checkpoint.interval_steps = 4");
    start_on(&mut world, copy, |_| true);
    assert!(world.has_event(&job, "store.behind", "goes on from epoch 2, of which 2 of 2 places are there"));
    let record = world.record(&job);
    let ranks = ["a", "b", "c"].map(|id| record.rank_of(id).map(toroid_torus::ids::Rank::index));
    assert_eq!((record.epoch.get(), ranks), (3, [Some(0), None, Some(1)]));
    world.train(&job, 20);
    let (record, view) = (world.record(&job), world.view(&job));
    assert_eq!((record.state, record.lost_steps, view.committed_step), (State::Done, 0, 20));
    assert_eq!(world.curves[&job].len(), 20);
}

/// It had named step 4 before it was taken, and cannot know whether that was published.
#[test]
fn what_was_published_since_the_copy_stays() {
    let (mut world, job, copy) = replaced_since(2, "checkpoint = { interval_steps = 2, keep = 2 }");
    let on_disk = |world: &World| world.disk.manifests.keys().map(|(_, step)| *step).collect::<Vec<_>>();
    assert_eq!(on_disk(&world), [2, 4]);
    start_on(&mut world, copy, |_| true);
    let words = "step 4 may be saved, a multiple of interval_steps = 2: this store is older and does not know";
    assert!(world.has_event(&job, "checkpoint.skipped", words), "{:?}", world.record(&job).events);
    world.train(&job, 9);
    assert_eq!(on_disk(&world), [4, 12, 14], "the user's to remove");
}

#[test]
fn nothing_is_decided_before_the_others_of_that_epoch_had_time_to_come() {
    let (mut world, job, copy) = replaced_since(2, "");
    world.join("d");
    start_on(&mut world, copy, |id| id != "c");
    assert_eq!(world.record(&job).epoch.get(), 1, "d is a spare, and c may come");
    world.pass(LIMITS.reconnect());
    assert!(world.has_event(&job, "store.behind", "1 of 2 places are there"));
    world.settle();
    world.train(&job, 1);
    let record = world.record(&job);
    assert_eq!((record.state, record.lost_steps, world.view(&job).committed_step), (State::Running, 0, 6));
    assert!(record.rank_of("d").is_some(), "it has its shards from a");
}

/// It is cut off while another takes its place, and comes back to a coordinator that knows of neither.
#[test]
fn t3_the_state_of_an_older_epoch_does_not_count_beside_a_later_one() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 20, ""));
    ["a", "b", "c"].into_iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 3);
    let copy = world.store.clone();
    let older = world.workers.remove("b").expect("it is there");
    let stream = older.stream.expect("it is connected");
    world.input(crate::Input::Closed { stream, reason: "closed its stream (reset)".into() });
    world.settle();
    world.train(&job, 2);
    world.workers.insert("b".into(), older);
    start_on(&mut world, copy, |_| true);
    world.train(&job, 1);
    let record = world.record(&job);
    assert_eq!((record.rank_of("b"), record.lost_steps, world.view(&job).committed_step), (None, 0, 6));
    assert_eq!(world.worker("b").work.as_ref().map(|w| w.epoch), None, "it was told to stop");
}

#[test]
fn a_job_with_one_copy_of_its_state_goes_on_in_its_epoch() {
    let mut world = World::new();
    let job = world.submit(&job_file(1, 20, "checkpoint.interval_steps = 2"));
    world.join("a");
    world.settle();
    world.train(&job, 3);
    let copy = world.store.clone();
    world.kill("a");
    world.join("b");
    world.settle();
    world.train(&job, 4);
    let (epoch, step) = (world.record(&job).epoch.get(), world.view(&job).committed_step);
    start_on(&mut world, copy, |_| true);
    let record = world.record(&job);
    assert_eq!((record.state, record.epoch.get(), record.lost_steps), (State::Running, epoch, 0));
    world.train(&job, 1);
    assert_eq!(world.view(&job).committed_step, step + 1);
    world.train(&job, 20);
    assert_eq!(world.record(&job).state, State::Done);
}

#[test]
fn a_job_that_was_queued_in_the_copy_goes_on_where_it_is() {
    let mut world = World::new();
    let job = world.submit(&job_file(2, 20, ""));
    let copy = world.store.clone();
    ["a", "b"].into_iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 5);
    start_on(&mut world, copy, |_| true);
    world.train(&job, 15);
    let record = world.record(&job);
    assert_eq!((record.state, record.lost_steps, record.epoch.get()), (State::Done, 0, 2));
}

#[test]
fn who_has_a_place_stands_apart_from_an_empty_store_and_from_one_that_never_had_the_job() {
    let mut world = World::new();
    let before = world.store.clone();
    let job = world.submit(&job_file(2, 20, ""));
    ["a", "b", "spare"].into_iter().for_each(|id| world.join(id));
    world.settle();
    world.train(&job, 5);
    for (store, words) in [(Copy::new(), "is empty, or of another cluster"), (before, "does not know the job")] {
        let (newest, step) = (world.store.clone(), world.view(&job).committed_step);
        start_on(&mut world, store, |_| true);
        let apart = world.machine.view_apart(world.at());
        assert_eq!(apart.len(), 2, "{apart:?}");
        for worker in &apart {
            assert!(worker.reason.contains(words) && worker.reason.contains("start the worker again"), "{worker:?}");
            assert_eq!((worker.job_id.as_str(), worker.committed_step), (job.as_str(), step));
            assert!(world.worker(&worker.worker_id).work.is_some(), "it keeps its place");
        }
        assert!(world.worker("spare").is_welcome, "who has no place joins whatever store there is");
        world.pass(LIMITS.failure_timeout * 5);
        assert!(world.machine.view_apart(world.at()).is_empty(), "nobody has asked for long");
        // The store of then is found.
        start_on(&mut world, newest, |_| true);
        assert_eq!((world.record(&job).state, world.record(&job).epoch.get()), (State::Running, 1));
        world.train(&job, 1);
    }
    assert_eq!(world.view(&job).committed_step, 7);
}

#[test]
fn t13_whoever_has_heard_a_greater_term_has_the_coordinator_lead_anew() {
    let (mut world, _, copy) = replaced_since(2, "");
    world.workers.values_mut().for_each(|worker| worker.term = 9);
    start_on(&mut world, copy, |_| true);
    assert!(world.story.iter().any(|line| line.contains("is to lead beyond 9")), "{}", world.story.join("\n"));
    world.worker("a").term = u64::MAX;
    world.connect("a");
    let apart = world.machine.view_apart(world.at());
    assert!(apart.iter().any(|w| w.reason.contains("that cannot be")), "{apart:?}");
}
