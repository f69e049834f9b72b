//! T-1 in the checkpoints: a rank 0 that may have been replaced publishes and removes nothing, whatever is still in its queue.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use toroid_session::{Event, TrainerEvent};
use toroid_torus::ids::Step;
use toroid_torus::manifest::ShardFile;

use super::*;
use crate::checkpoint::Storage;
use crate::trainer::Emit;
use crate::trainer::save::ToPublish;

/// The only place of a job, with the checkpoint of step 0 written and not published.
struct Place {
    _dir: tempfile::TempDir,
    job: Job<CpuDevice>,
    environment: Environment,
    fence: Fence,
    storage: Storage,
    file: ShardFile,
    emit: Emit,
    seen: Receiver<TrainerEvent>,
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = dir.path().join("text.txt");
    std::fs::write(&text, include_str!("publish.rs")).expect("write the text");
    let (assignment, environment) = only_place(dir.path(), &text);
    let storage = Storage::open(&assignment.checkpoint_root).expect("open the folder");
    let fence = Fence::new().expect("an eventfd");
    let mut job =
        Job::prepare(&CpuDevice::new(1), &environment, assignment, fence.clone(), None).expect("prepare the place");
    job.checkpoints.own_folder(&job.assignment).expect("the folder is nobody's");
    let (sender, seen) = channel();
    let sender = Mutex::new(sender);
    let emit: Emit = Arc::new(move |event| drop(sender.lock().expect("not poisoned").send(event)));
    job.write_checkpoint(&emit);
    let TrainerEvent { event: Event::ShardWritten { file, .. }, .. } = seen.recv().expect("the shard") else {
        panic!("the shard is not written")
    };
    Place { _dir: dir, job, environment, fence, storage, file: *file, emit, seen }
}

fn to_publish(file: ShardFile, remove: Vec<Step>) -> ToPublish {
    ToPublish { step: Step::ZERO, files: vec![file], remove }
}

/// Publishes; says which events came and which steps can be seen.
fn publish(place: &mut Place) -> (usize, Vec<u64>) {
    place.job.publish(to_publish(place.file.clone(), Vec::new()), &place.environment.shared, &place.emit);
    place.job.checkpoints.publisher().wait_for_all();
    (place.seen.try_iter().count(), place.storage.steps().expect("list the steps"))
}

#[test]
fn t1_after_the_fence_nothing_is_published() {
    let mut place = place();
    place.fence.raise(Epoch::new(4));
    assert_eq!(publish(&mut place), (0, vec![]));
}

#[test]
fn t1_without_a_coordinator_nothing_is_published_and_with_it_again() {
    let mut place = place();
    place.environment.shared.set_connected(false);
    assert_eq!(publish(&mut place), (0, vec![]));
    place.environment.shared.set_connected(true);
    assert_eq!(publish(&mut place), (1, vec![0]));
}

/// The disk of rank 0 does nothing for a while: the trainer's thread gives its orders and goes on.
#[test]
fn a_publishing_that_takes_long_keeps_no_step_waiting() {
    let mut place = place();
    let (go, wait) = channel::<()>();
    place
        .job
        .checkpoints
        .publisher()
        .order(move || assert!(wait.recv().is_err(), "nothing is sent"), |error| panic!("{error}"));
    place.job.publish(to_publish(place.file.clone(), vec![Step::new(7)]), &place.environment.shared, &place.emit);
    place.job.write_checkpoint(&place.emit);
    let next = place.seen.recv().expect("the next shard").event;
    assert!(matches!(next, Event::ShardWritten { .. }), "{next:?}");
    drop(go);
    place.job.checkpoints.publisher().wait_for_all();
    let events: Vec<Event> = place.seen.try_iter().map(|e| e.event).collect();
    let is_removed = |removed: &[Step], kept: &[(Step, String)]| removed == [Step::new(7)] && kept.is_empty();
    assert!(
        matches!(&events[..], [Event::Published { .. }, Event::Removed { step: Step::ZERO, removed, kept }] if is_removed(removed, kept)),
        "{events:?}"
    );
}

#[test]
fn what_was_written_of_a_failed_checkpoint_is_taken_away() {
    let mut place = place();
    let folder = std::path::PathBuf::from(place.storage.step_path(0));
    assert_eq!(std::fs::read_dir(&folder).expect("it is written").count(), 1);
    place.job.checkpoints.drop_shard(&place.job.assignment, Step::ZERO);
    place.job.checkpoints.writer().wait_for_all();
    assert!(!folder.exists());
    // The next try follows at once, and is written after what is dropped.
    place.job.checkpoints.drop_shard(&place.job.assignment, Step::ZERO);
    place.job.write_checkpoint(&place.emit);
    place.job.checkpoints.writer().wait_for_all();
    assert_eq!(publish(&mut place).1, [0]);
    // What can be seen is complete (T-6), whoever still says that it has failed.
    place.job.checkpoints.drop_shard(&place.job.assignment, Step::ZERO);
    place.job.checkpoints.writer().wait_for_all();
    assert_eq!(place.storage.verify(0).expect("it is there"), []);
}

/// The disk takes the shard of a checkpoint and does not come back: the next one fails in words, and steps go on.
#[test]
fn a_shard_that_is_never_written_keeps_no_step_waiting() {
    let mut place = place();
    let (go, wait) = channel::<()>();
    place
        .job
        .checkpoints
        .writer()
        .order(move || assert!(wait.recv().is_err(), "nothing is sent"), |error| panic!("{error}"));
    place.job.write_checkpoint(&place.emit);
    let event = place.seen.recv().expect("an event").event;
    let Event::CheckpointFailed { step: Step::ZERO, error } = event else { panic!("{event:?}") };
    assert!(error.starts_with("the checkpoint before is still being written, for 2."), "{error}");
    drop(go);
    place.job.checkpoints.writer().wait_for_all();
    place.job.write_checkpoint(&place.emit);
    place.job.checkpoints.writer().wait_for_all();
    assert_eq!(publish(&mut place), (2, vec![0]));
}

/// T-12: at once, and in words.
#[test]
fn a_writer_that_panics_has_failed_that_checkpoint() {
    let mut place = place();
    place.job.shards.own_mut().range.end += 1;
    place.job.write_checkpoint(&place.emit);
    let event = place.seen.recv().expect("an event").event;
    let Event::CheckpointFailed { step: Step::ZERO, error } = event else { panic!("{event:?}") };
    assert!(error.starts_with("its thread panicked, which is a bug of Toroid: "), "{error}");
    place.job.shards.own_mut().range.end -= 1;
    place.job.write_checkpoint(&place.emit);
    place.job.checkpoints.writer().wait_for_all();
    assert_eq!(publish(&mut place), (2, vec![0]));
}
