//! What a place says of the text that it prepares: that it waits for another process which makes the token file, though no longer than its
//! epoch lasts, and what of it is left out.

use std::sync::Mutex;
use std::sync::mpsc::channel;

use toroid_session::Event;

use super::*;
use crate::data::prepare as prepare_data;
use crate::trainer::shared::{PREPARE, WAIT_FOR_TOKENS};
use crate::trainer::{Emit, prepare};

/// The path of the one file in the cache with this ending.
fn cached(cache: &Path, ending: &str) -> PathBuf {
    let paths = std::fs::read_dir(cache).expect("list the cache").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> = paths.filter(|path| path.extension().is_some_and(|e| e == ending)).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// T-12.
#[test]
fn what_is_left_out_of_the_text_goes_with_the_report() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = dir.path().join("text");
    std::fs::create_dir(&text).expect("make a folder");
    std::fs::write(text.join("a.txt"), include_str!("text.rs")).expect("write the text");
    std::fs::write(text.join("b.bin"), [0xff, 0xfe, 0]).expect("write what is no text");
    let (assignment, environment) = only_place(dir.path(), &text);
    let fence = Fence::new().expect("an eventfd");
    let job = Job::prepare(&CpuDevice::new(1), &environment, assignment, fence, None).expect("prepare the place");
    let Event::Prepared { inputs, .. } = job.report() else { panic!("it is prepared") };
    let [left_out] = &inputs.left_out[..] else { panic!("{inputs:?}") };
    assert_eq!((left_out.reason.as_str(), left_out.num_files, left_out.bytes), ("not UTF-8 text", 1, 3));
    assert_eq!(left_out.first, ["b.bin"]);
    assert!(inputs.summary.contains("1 file, "), "{}", inputs.summary);
}

#[test]
fn t1_waiting_for_a_token_file_is_said_and_ends_with_the_epoch() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let text = dir.path().join("text.txt");
    std::fs::write(&text, include_str!("text.rs")).expect("write the text");
    let (assignment, environment) = only_place(dir.path(), &text);
    let shared = Arc::clone(&environment.shared);
    // Another has the lock and is about to make the file: it is made and taken away here only for its name.
    let source = &assignment.spec.data.all_sources()[0];
    prepare_data(source, &environment.cache_dir, &mut |_: u64| {}).expect("make the file");
    std::fs::remove_file(cached(&environment.cache_dir, "tokens")).expect("take the file away");
    let lock = std::fs::File::open(cached(&environment.cache_dir, "lock")).expect("open the lock");
    lock.lock().expect("take the lock");

    let fence = Fence::new().expect("an eventfd");
    let (sender, seen) = channel();
    let sender = Mutex::new(sender);
    let emit: Emit = Arc::new(move |event| drop(sender.lock().expect("nobody panics").send(event)));
    let of_place = fence.clone();
    let place = std::thread::spawn(move || {
        prepare(&CpuDevice::new(1), &environment, assignment, of_place, None, &emit).is_some()
    });
    loop {
        let operation = shared.operation();
        if operation == WAIT_FOR_TOKENS {
            break;
        }
        assert!(operation.is_empty() || operation == PREPARE, "{operation}");
        assert!(!place.is_finished(), "it did not wait");
        std::thread::yield_now();
    }
    let progress = shared.progress();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(shared.progress(), progress, "waiting is no progress");
    fence.raise(Epoch::new(4));
    assert!(!place.join().expect("the place does not panic"), "its epoch is over");
    assert_eq!(seen.try_iter().count(), 0, "nobody is told: it is no failure");
    assert_eq!(shared.operation(), "idle");
    drop(lock);
}
