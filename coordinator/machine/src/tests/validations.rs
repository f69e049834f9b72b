//! Validations are pages of records: none is lost, and what is written for one does not grow with the age of the job.

use proto::worker_message::Body as FromWorker;
use toroid_proto as proto;
use toroid_torus::ids::{Epoch, Step};

use super::world::{World, job_file};
use crate::record::{MAX_VALIDATION_PAGES, Record, State, VALIDATIONS_PER_PAGE, Validation};
use crate::{Input, Reply};

/// `a` has rank 0.
fn running(dp: usize, more: &str) -> (World, String) {
    let mut world = World::new();
    let job = world.submit(&job_file(dp, 100_000, more));
    for id in ["a", "b"].into_iter().take(dp) {
        world.join(id);
    }
    world.settle();
    world.train(&job, 5);
    assert_eq!(world.record(&job).state, State::Running);
    (world, job)
}

fn found(step: u64) -> proto::Validation {
    let ce = 5.0 - step as f64 * 1e-6;
    proto::Validation { step, ce, bits_per_byte: ce / 2f64.ln(), tokens: 64, ..Default::default() }
}

/// Rank 0 says it; how many outputs that has.
fn say(world: &mut World, job: &str, validation: proto::Validation) -> usize {
    let epoch = world.record(job).epoch.get();
    let stream = world.worker("a").stream.expect("it is connected");
    let report = proto::ValidationReport { job_id: job.into(), epoch, validation: Some(validation) };
    world.input(Input::Message { stream, body: Box::new(FromWorker::Validation(report)) })
}

fn say_all(world: &mut World, job: &str, steps: impl IntoIterator<Item = u64>) {
    for step in steps {
        say(world, job, found(step));
    }
}

/// Of the pages in the store, by their number: how many validations each has. What they have is what users see.
fn pages(world: &World, job: &str) -> Vec<(u64, usize)> {
    let mut pages: Vec<_> = world
        .store
        .values()
        .filter_map(|record| match record {
            Record::Validations(page) if page.job == *job => Some((page.number, &page.validations)),
            _ => None,
        })
        .collect();
    pages.sort_by_key(|(number, _)| *number);
    let stored: Vec<u64> = pages.iter().flat_map(|(_, of_page)| of_page.iter().map(|v| v.step.get())).collect();
    let seen: Vec<u64> = world.view(job).validations.iter().map(|v| v.step).collect();
    assert_eq!(stored, seen, "the store has what users see");
    assert!(seen.is_sorted_by(|a, b| a < b), "they ascend: {seen:?}");
    pages.into_iter().map(|(number, of_page)| (number, of_page.len())).collect()
}

fn num_bytes(record: &Record) -> usize {
    serde_json::to_string(record).unwrap().len()
}

#[test]
fn a_job_record_does_not_grow_with_its_validations() {
    let (mut world, job) = running(2, "");
    let key = format!("job/{job}");
    let mut sizes = Vec::new();
    for step in 10_000..12_000 {
        say(&mut world, &job, found(step));
        // The events are as many as are kept after the first hundred.
        if step % 500 == 499 {
            let largest = world.store.values().filter(|r| matches!(r, Record::Validations(_))).map(num_bytes).max();
            sizes.push((num_bytes(&world.store[&key]), largest.unwrap_or(0)));
        }
    }
    let (first, last) = (sizes[0], sizes[3]);
    assert!(last.0 <= first.0 + 8, "the record of the job grows: {sizes:?}");
    assert!(last.1 <= first.1 + 8 && last.1 < 8 << 10, "the pages grow: {sizes:?}");
    assert_eq!(pages(&world, &job).len(), 2000usize.div_ceil(VALIDATIONS_PER_PAGE));
    let since = world.machine.validations_from(&job, Step::new(11_990));
    assert_eq!(since, (11_990..12_000).map(found).collect::<Vec<_>>());
}

/// Rank 0 says after its next Welcome again what it had said.
#[test]
fn a_restart_at_any_point_loses_none_and_doubles_none() {
    let story = |crash_after: usize| {
        let (mut world, job) = running(2, "");
        world.num_outputs = 0;
        world.crash_after = crash_after;
        for step in 0..130 {
            say(&mut world, &job, found(step));
            world.settle();
        }
        (world, job)
    };
    let (undisturbed, job) = story(0);
    let num_outputs = undisturbed.num_outputs;
    assert_eq!(pages(&undisturbed, &job), [(0, 64), (1, 64), (2, 2)]);
    for crash_after in (1..num_outputs).step_by(7) {
        let (mut world, job) = story(crash_after);
        say_all(&mut world, &job, 0..130);
        assert_eq!(pages(&world, &job), [(0, 64), (1, 64), (2, 2)], "killed after output {crash_after}");
        assert_eq!(world.view(&job).validations, undisturbed.view(&job).validations);
        world.restart(|_| true);
        world.settle();
        assert_eq!(world.view(&job).validations, undisturbed.view(&job).validations);
        assert_eq!(say(&mut world, &job, found(129)), 0, "what is there already leads to nothing");
    }
}

#[test]
fn one_that_comes_late_has_its_place_and_one_that_differs_replaces_the_first() {
    let (mut world, job) = running(2, "");
    say_all(&mut world, &job, (0..200).filter(|step| *step != 70));
    assert_eq!(pages(&world, &job), [(0, 64), (1, 64), (2, 64), (3, 7)]);
    say(&mut world, &job, found(70));
    assert_eq!(pages(&world, &job), [(0, 64), (1, 64), (2, 64), (3, 8)]);
    say(&mut world, &job, proto::Validation { ce: 1.0, ..found(3) });
    assert_eq!(pages(&world, &job), [(0, 64), (1, 64), (2, 64), (3, 8)]);
    assert_eq!(world.view(&job).validations[3].ce, 1.0);
}

#[test]
fn a_restore_of_an_earlier_step_drops_those_after_it() {
    let (mut world, job) = running(1, "checkpoint.interval_steps = 4");
    say_all(&mut world, &job, 0..=200);
    assert_eq!(pages(&world, &job), [(0, 64), (1, 64), (2, 64), (3, 9)]);
    world.kill("a");
    world.join("a");
    world.settle();
    assert_eq!(world.record(&job).restore_step, Step::new(4));
    assert_eq!(pages(&world, &job), [(0, 5)]);
    world.restart(|_| true);
    world.settle();
    say(&mut world, &job, found(5));
    assert_eq!(pages(&world, &job), [(0, 6)]);
}

#[test]
fn those_of_an_older_store_are_taken_over_and_the_oldest_go() {
    let (mut world, job) = running(2, "");
    let num = MAX_VALIDATION_PAGES * VALIDATIONS_PER_PAGE;
    let older = |step: u64| {
        let proto::Validation { ce, bits_per_byte, tokens, .. } = found(step);
        let (step, epoch) = (Step::new(step), Epoch::new(1));
        Validation { step, epoch, ce, bits_per_byte, tokens, sources: Vec::new(), correct: 0, ties: 0 }
    };
    let key = format!("job/{job}");
    let Some(Record::Job(record)) = world.store.get_mut(&key) else { panic!("it is stored") };
    record.earlier_validations = (0..num as u64).map(older).collect();
    let text = serde_json::to_value(&world.store[&key]).unwrap();
    assert_eq!(text["job"]["validations"][7]["step"], 7, "as the version before wrote it");
    world.restart(|_| true);
    assert_eq!(pages(&world, &job).len(), MAX_VALIDATION_PAGES);
    assert!(matches!(&world.store[&key], Record::Job(record) if record.earlier_validations.is_empty()));
    assert!(!serde_json::to_string(&world.store[&key]).unwrap().contains("validations"));
    world.settle();
    say(&mut world, &job, found(num as u64));
    let kept = pages(&world, &job);
    assert_eq!((kept.len(), kept[0], kept[kept.len() - 1]), (MAX_VALIDATION_PAGES, (1, 64), (256, 1)));
    world.restart(|_| true);
    world.settle();
    assert_eq!(pages(&world, &job), kept, "numbers of pages go on");
    let seen = world.view(&job).validations;
    assert_eq!((seen.len(), &seen[0]), (num - 63, &found(64)));
}

/// A loss that is not finite is what a validation of a model that diverges finds. JSON has no such number: the store could not be read any more.
#[test]
fn what_is_no_number_is_read_back() {
    let (mut world, job) = running(2, "");
    for (step, ce) in [(1, f64::NAN), (2, f64::INFINITY), (3, 2.0)] {
        say(&mut world, &job, proto::Validation { ce, bits_per_byte: ce, ..found(step) });
    }
    world.restart(|_| true);
    world.settle();
    let seen: Vec<bool> = world.view(&job).validations.iter().map(|v| v.ce.is_finite()).collect();
    assert_eq!(seen, [false, false, true]);
    for ce in [f64::NAN, f64::INFINITY] {
        let again = proto::Validation { ce, bits_per_byte: ce, ..found(2) };
        assert_eq!(say(&mut world, &job, again), 0, "it is there already");
    }
}

#[test]
fn they_go_with_their_job() {
    let (mut world, job) = running(1, "");
    say_all(&mut world, &job, 0..100);
    assert_eq!(pages(&world, &job), [(0, 64), (1, 36)]);
    let id = job.clone();
    world.request(|request| Input::Cancel { request, job: id });
    let id = job.clone();
    let request = world.request(|request| Input::Remove { request, job: id });
    assert!(matches!(world.replies[&request], Ok(Reply::Removed { .. })), "{:?}", world.replies[&request]);
    let left: Vec<&String> = world.store.keys().filter(|key| *key != "meta" && !key.starts_with("worker/")).collect();
    assert!(left.is_empty(), "{left:?} are left");
}
