//! Files that are damaged, gone, late, or where other coordinators find them.

use super::*;
use crate::segments::played::Objects;
use toroid_torus::ids::Term;
use toroid_torus::owner::{OWNER_NAME, Owner};

fn record_of(state: State) -> JobRecord {
    JobRecord { state, epoch: Epoch::new(1), high_step: Step::new(3), ..crate::tests::submitted("j") }
}

fn local(jobs_dir: &tempfile::TempDir) -> Place {
    Place { jobs_dir: jobs_dir.path().into(), shared: None, carried: None, away: Away::default() }
}

fn step(step: u64) -> proto::StepRecord {
    proto::StepRecord { step, loss: 0.5, ..Default::default() }
}

/// Files of j-1 with three rows, whose second and third were swapped.
fn swapped() -> (tempfile::TempDir, PathBuf) {
    let jobs_dir = tempfile::tempdir().unwrap();
    let mut files = JobFiles::create(&local(&jobs_dir), &record_of(State::Running), "toml").unwrap();
    (1..=3).for_each(|n| assert_eq!(files.append(&step(n)), None));
    let path = jobs_dir.path().join("j-1").join(FILE_NAME);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.swap(2, 3);
    std::fs::write(&path, lines.join("\n") + "\n").unwrap();
    (jobs_dir, path)
}

fn steps(files: &JobFiles) -> Vec<u64> {
    files.curve().read(0, 99, usize::MAX).unwrap().iter().map(|r| r.step).collect()
}

#[test]
fn a_job_that_goes_on_gets_a_new_curve_of_what_can_be_read() {
    let (jobs_dir, path) = swapped();
    let (mut files, summaries, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
    let Condition::Repaired(text) = condition else { panic!("it is repaired") };
    for words in ["step 2 follows step 3", "3 of 3 rows can be read", "curve.csv.damaged-1"] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!((summaries.len(), files.fault()), (3, None));
    assert_eq!(files.append(&step(4)), None);
    assert_eq!(steps(&files), [1, 2, 3, 4]);
    assert!(path.with_file_name("curve.csv.damaged-1").exists());
    let (files, _, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
    assert!(matches!(condition, Condition::Sound));
    assert_eq!(steps(&files), [1, 2, 3, 4]);
}

#[test]
fn a_job_that_has_ended_is_shown_as_damaged() {
    let (jobs_dir, path) = swapped();
    let before = std::fs::read(&path).unwrap();
    let record = record_of(State::Failed);
    let (files, summaries, condition) = JobFiles::restore(&local(&jobs_dir), &record);
    assert!(matches!(condition, Condition::Damaged(text) if text.contains("step 2 follows step 3")));
    assert_eq!((summaries.len(), steps(&files)), (3, vec![1, 2, 3]));
    assert_eq!(std::fs::read(&path).unwrap(), before);

    std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let (files, _, condition) = JobFiles::restore(&local(&jobs_dir), &record);
    assert!(matches!(condition, Condition::Damaged(text) if text.ends_with("j-1 is gone")));
    assert!(files.fault().is_some() && !path.exists(), "nothing is made again");
}

#[test]
fn a_curve_that_is_gone_is_told_where_the_job_goes_on() {
    let (jobs_dir, path) = swapped();
    std::fs::remove_file(&path).unwrap();
    let fresh = JobRecord { high_step: Step::ZERO, ..record_of(State::Running) };
    let (_, _, condition) = JobFiles::restore(&local(&jobs_dir), &fresh);
    assert!(matches!(condition, Condition::Sound), "it had none");
    std::fs::remove_file(&path).unwrap();
    let (mut files, _, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
    assert!(matches!(condition, Condition::Repaired(text) if text.contains("was gone; a new one begins")));
    assert_eq!(files.append(&step(4)), None);
    assert_eq!(steps(&files), [4]);
}

#[test]
fn a_curve_that_ends_too_early_is_seen() {
    let (jobs_dir, _) = swapped();
    let (_, _, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
    assert!(matches!(condition, Condition::Repaired(_)));
    let (_, _, condition) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Done));
    assert!(matches!(condition, Condition::Damaged(text) if text.contains("ends at step 3, and had step 9")));
}

#[test]
fn what_says_that_a_row_is_kept_waits_for_the_disk() {
    let (jobs_dir, path) = swapped();
    let (mut files, _, _) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
    let away = path.with_file_name("away");
    std::fs::rename(&path, &away).unwrap();
    let ack = |step| Body::StepAck(proto::StepAck { job_id: "j-1".into(), step });
    assert!(!files.must_hold(&ack(3)));
    let event = files.append(&step(4)).unwrap();
    assert!(event.contains("curve.csv failed: No such file") && event.contains("wait in memory"), "{event}");
    assert_eq!(files.append(&step(5)), None, "it is told once");
    for n in [4, 5] {
        assert!(files.must_hold(&ack(n)));
        files.hold(
            StreamId(7),
            Box::new(proto::CoordinatorMessage { term: 1, body: Some(ack(n)), ..Default::default() }),
        );
    }
    assert_eq!((files.flush(), files.released().len()), (None, 0), "it fails again");
    std::fs::rename(&away, &path).unwrap();
    assert!(files.flush().unwrap().contains("on disk again"));
    let released: Vec<_> = files.released().into_iter().map(|(_, m)| m.body).collect();
    assert_eq!(released, [Some(ack(5))], "one acknowledgement is that of all before");
    assert_eq!((steps(&files), files.fault()), (vec![1, 2, 3, 4, 5], None));
}

#[test]
fn rows_that_wait_have_a_bound() {
    let (jobs_dir, path) = swapped();
    let (mut files, _, _) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
    std::fs::remove_file(&path).unwrap();
    let mut step = step(3);
    step.expert_load = vec![u64::MAX; 100_000];
    step.num_layers = 1;
    let mut num = 0;
    while !files.is_overrun() {
        (step.step, num) = (step.step + 1, num + 1);
        files.append(&step);
    }
    assert!((20..50).contains(&num), "{num} rows of 2 MiB");
}

#[test]
fn messages_that_wait_for_the_disk_have_a_bound() {
    let (jobs_dir, path) = swapped();
    let (mut files, _, _) = JobFiles::restore(&local(&jobs_dir), &record_of(State::Running));
    std::fs::remove_file(&path).unwrap();
    assert!(files.append(&step(4)).is_some(), "the row waits");
    for step in 1..=100 {
        let body = Body::PublishManifest(proto::PublishManifest { step, ..Default::default() });
        assert!(files.must_hold(&body));
        files
            .hold(StreamId(7), Box::new(proto::CoordinatorMessage { term: 1, body: Some(body), ..Default::default() }));
    }
    let steps = files.held.iter().filter_map(|held| match &held.message.body {
        Some(Body::PublishManifest(publish)) => Some(publish.step),
        _ => None,
    });
    assert!(steps.eq(85..=100), "the newest are kept");
}

/// The job's record, and the folder of its checkpoints.
fn shared(root: &Path, state: State) -> JobRecord {
    let mut record = record_of(state);
    record.spec.checkpoint.path = Some(root.to_string_lossy().into_owned());
    let owner = Owner::new(record.owner.unwrap(), "j-1", "j", 1);
    std::fs::create_dir_all(root).unwrap();
    std::fs::write(root.join(OWNER_NAME), owner.to_json()).unwrap();
    record
}

/// A coordinator with a disk of its own that leads with this term.
fn coordinator(term: u64) -> (tempfile::TempDir, Place) {
    let dir = tempfile::tempdir().unwrap();
    let place =
        Place { jobs_dir: dir.path().into(), shared: Some(Term::new(term)), carried: None, away: Away::default() };
    (dir, place)
}

#[test]
fn the_curve_outlives_the_disk_of_a_coordinator() {
    let root = tempfile::tempdir().unwrap();
    let record = shared(root.path(), State::Running);
    let (first_dir, first) = coordinator(1);
    let mut files = JobFiles::create(&first, &record, "toml").unwrap();
    (1..=3).for_each(|n| assert_eq!(files.append(&step(n)), None));
    files.append_gap(4..=5);
    drop(first_dir);

    let (second_dir, second) = coordinator(2);
    let (mut files, summaries, condition) = JobFiles::restore(&second, &record);
    assert!(matches!(condition, Condition::Sound));
    assert_eq!((summaries.len(), steps(&files)), (5, vec![1, 2, 3, 4, 5]));
    assert_eq!(files.cut(2), None);
    assert_eq!(files.append(&step(3)), None);
    let text = std::fs::read_to_string(second_dir.path().join("j-1").join(FILE_NAME)).unwrap();
    assert_eq!(text.lines().count(), 4, "people find it, too: {text}");

    // The first comes back to lead, with an old copy: what counts is what all find.
    let (_third_dir, third) = coordinator(3);
    std::fs::create_dir(third.folder("j-1")).unwrap();
    std::fs::write(third.folder("j-1").join(FILE_NAME), "an old copy").unwrap();
    let (files, _, condition) = JobFiles::restore(&third, &record);
    assert!(matches!(condition, Condition::Sound));
    assert_eq!(files.curve().read(0, 9, usize::MAX).unwrap(), [step(1), step(2), step(3)]);
    let (_fourth_dir, fourth) = coordinator(4);
    let (files, summaries, _) = JobFiles::restore(&fourth, &shared(root.path(), State::Failed));
    assert_eq!((summaries.len(), files.fault()), (3, None), "one that has ended is shown");
}

#[test]
fn a_curve_that_cannot_be_read_now_is_left_for_whoever_can() {
    let root = tempfile::tempdir().unwrap();
    let (root, away) = (root.path().join("ck"), root.path().join("away"));
    let record = shared(&root, State::Running);
    let (_first_dir, first) = coordinator(1);
    JobFiles::create(&first, &record, "toml").unwrap().append(&step(1));
    // The owner's record is there, and what is in the folder cannot be read.
    std::fs::rename(root.join("curve"), &away).unwrap();
    std::fs::write(root.join("curve"), "").unwrap();
    let (_second_dir, second) = coordinator(2);
    let (mut files, summaries, condition) = JobFiles::restore(&second, &record);
    assert!(matches!(condition, Condition::Unread(text) if text.contains("wait in memory")));
    assert!(summaries.is_empty() && files.is_stalled());
    assert_eq!((files.append(&step(2)), files.flush(), files.is_outdated()), (None, None, false));
    std::fs::remove_file(root.join("curve")).unwrap();
    std::fs::rename(&away, root.join("curve")).unwrap();
    assert_eq!((files.flush(), files.is_outdated()), (None, true), "{:?}", files.fault());
    let (_third_dir, third) = coordinator(3);
    let (files, _, condition) = JobFiles::restore(&third, &record);
    assert!(matches!(condition, Condition::Sound));
    assert_eq!(steps(&files), [1]);
}

#[test]
fn a_damaged_segment_is_written_anew_for_all() {
    let root = tempfile::tempdir().unwrap();
    let record = shared(root.path(), State::Running);
    let (_first_dir, first) = coordinator(1);
    let mut files = JobFiles::create(&first, &record, "toml").unwrap();
    (1..=3).for_each(|n| assert_eq!(files.append(&step(n)), None));
    let head = std::fs::read_dir(root.path().join("curve")).unwrap().next().unwrap().unwrap().path();
    let damaged = std::fs::read_to_string(&head).unwrap().replacen("\n2,", "\n2,x", 1);
    std::fs::write(&head, damaged).unwrap();
    let (_second_dir, second) = coordinator(2);
    let (_, _, condition) = JobFiles::restore(&second, &record);
    assert!(matches!(condition, Condition::Repaired(text) if text.contains("2 of 3 rows can be read")));
    let (_third_dir, third) = coordinator(3);
    let (files, _, condition) = JobFiles::restore(&third, &record);
    assert!(matches!(condition, Condition::Sound), "what could be read is what all find");
    assert_eq!(steps(&files), [1, 3]);
}

/// T-9: acknowledged is what has come to the bucket, step by step, and a manifest waits for the rows before it.
#[test]
fn what_is_on_its_way_to_a_bucket_is_not_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let record = record_of(State::Running);
    let objects = Objects::of(record.owner.unwrap());
    let (wake, woken) = std::sync::mpsc::channel();
    let segments = Segments::played(&objects, record.owner.unwrap(), Term::new(1));
    let carrier = Carrier::new(segments, None, 0, Box::new(move || wake.send(()).unwrap_or_default()));
    let (mut curve, _) = Curve::open(dir.path()).unwrap();
    curve.carry(carrier);
    let mut files = JobFiles::of(curve);
    let said = |files: &mut JobFiles| -> Vec<Body> {
        files.released().into_iter().filter_map(|(_, message)| message.body).collect()
    };
    let say = |files: &mut JobFiles, body: Body| {
        assert!(files.must_hold(&body), "{body:?}");
        let message = proto::CoordinatorMessage { term: 1, body: Some(body), ..Default::default() };
        files.hold(StreamId(7), Box::new(message));
    };
    let ack = |step| Body::StepAck(proto::StepAck { job_id: "j-1".into(), step });
    let publish = |step| Body::PublishManifest(proto::PublishManifest { step, ..Default::default() });

    objects.set_dead(true);
    assert_eq!(files.append(&step(1)), None, "the driver waits for nobody");
    say(&mut files, ack(1));
    say(&mut files, publish(1));
    woken.recv().unwrap();
    let event = files.flush().unwrap();
    assert!(event.contains("503 SlowDown") && event.contains("wait in memory"), "{event}");
    assert_eq!((files.is_stalled(), said(&mut files)), (true, vec![]));
    assert_eq!(files.append(&step(2)), None);
    say(&mut files, ack(2));
    objects.set_dead(false);
    while files.is_stalled() || files.curve().num_unwritten() > 0 {
        woken.recv().unwrap();
        files.flush();
    }
    assert_eq!(said(&mut files), [publish(1), ack(2)], "one acknowledgement is that of all before");
    assert_eq!((steps(&files), files.fault()), (vec![1, 2], None));

    // A step that is still on its way does not keep back those before it.
    assert_eq!(files.append(&step(3)), None);
    say(&mut files, ack(3));
    say(&mut files, publish(3));
    woken.recv().unwrap();
    assert_eq!(files.append(&step(4)), None);
    say(&mut files, ack(4));
    assert_eq!(files.flush(), None);
    let found = said(&mut files);
    assert!(found == [publish(3), ack(3)] || found == [publish(3), ack(4)], "{found:?}");
}

#[test]
fn a_store_that_does_not_answer_is_asked_for_one_job() {
    let owner = record_of(State::Running).owner.unwrap();
    let (objects, away) = (Objects::of(owner), Away::default());
    let of_job = |term| Segments::played(&objects, owner, Term::new(term));
    assert!(away.ask(&of_job(1), || of_job(1).find()).is_ok());
    objects.set_dead(true);
    let error = away.ask(&of_job(1), || of_job(1).find()).unwrap_err();
    assert!(error.to_string().contains("503 SlowDown"), "{error}");
    objects.set_dead(false);
    let error = away.ask(&of_job(2), || of_job(2).find()).unwrap_err();
    assert!(error.to_string().contains("has not answered for another job"), "{error}");
}
