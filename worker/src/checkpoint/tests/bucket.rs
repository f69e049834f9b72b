//! What a bucket has that a folder has not: requests that fail, answers that are lost, conditions that a store does not know.

use std::sync::atomic::{AtomicU32, Ordering};

use super::kept::Fault;
use super::*;

fn is_of(name: &str, of: &str) -> bool {
    name.contains(of)
}

/// T-6: whatever request fails at whatever point of a checkpoint, done or not, there is a whole checkpoint or none, and the next one succeeds.
#[test]
fn t6_a_request_that_fails_leaves_a_whole_checkpoint_or_none() {
    for fault in [Fault::Refused, Fault::AnswerLost] {
        for nth in 0.. {
            let kept = Kept::bucket();
            let storage = kept.own(1);
            let first = write(&storage, 10, shape(1, 1, 1));
            let num_asked = Arc::new(AtomicU32::new(0));
            let count = Arc::clone(&num_asked);
            kept.store().fail(move |_, _| (count.fetch_add(1, Ordering::SeqCst) == nth).then_some(fault));
            let shape = shape(1, 1, 2);
            let files: Result<Vec<ShardFile>, _> = (0..2).map(|rank| write_rank(&storage, 20, &shape, rank)).collect();
            let published = files.and_then(|files| {
                let job = job(shape);
                let samples = 20 * job.batch.samples();
                storage.publish(&Manifest { job, shape, step: 20, samples, files, ..first.clone() })
            });
            if published.is_err() {
                // As the coordinator has the places do.
                (0..2).for_each(|rank| drop(storage.drop_shard(20, writer(&storage, EPOCH, rank, 2))));
            }
            let is_over = num_asked.load(Ordering::SeqCst) <= nth;
            kept.store().work_again();
            if storage.steps().unwrap().contains(&20) {
                assert_eq!(storage.verify(20).unwrap(), [], "{fault:?} of request {nth}");
            }
            assert_eq!(kept.store().open_uploads(), [] as [String; 0], "{fault:?} of request {nth}");
            assert_eq!(storage.verify(10).unwrap(), []);
            write(&storage, 30, shape);
            assert_eq!(storage.verify(30).unwrap(), []);
            // Nothing is in the way of the step, and nothing is left of it.
            let again = write_shards_in(&storage, EPOCH + 1, 20, shape);
            storage.publish(&again).unwrap();
            assert_eq!(storage.verify(20).unwrap(), [], "{fault:?} of request {nth}");
            storage.remove(20, EPOCH + 1).unwrap();
            assert_eq!(kept.files().iter().filter(|name| name.starts_with("step-20/")).count(), 0);
            // Nobody has asked so often.
            if is_over {
                assert!(nth > 10 && published.is_ok(), "{nth} requests, {published:?}");
                break;
            }
        }
    }
}

/// T-10: a store that takes a second object of a name would give two jobs one folder.
#[test]
fn t10_a_store_without_conditions_is_refused_before_anything_is_written() {
    let kept = Kept::bucket();
    kept.store().ignore_conditions();
    let error = kept.storage().own(&owner(1), Claim::New).unwrap_err();
    for words in ["s3://bucket/run", "If-None-Match", "two jobs could have one folder"] {
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(kept.files(), [] as [String; 0]);
}

#[test]
fn access_is_checked_by_writing_reading_and_removing() {
    in_each(|kept, storage| {
        storage.check_access().unwrap();
        assert_eq!(kept.files(), ["toroid-owner.json"]);
    });
    for what in ["put", "get", "delete"] {
        let kept = Kept::bucket();
        kept.store().fail(move |asked, _| (asked == what).then_some(Fault::Refused));
        let error = kept.storage().check_access().unwrap_err().to_string();
        assert!(error.contains("s3://bucket/run/.access-") && error.contains("503 SlowDown"), "{error}");
    }
}

/// The shard of a checkpoint that failed could not be taken away, and the step is written once more: it counts again.
#[test]
fn a_shard_that_is_written_anew_is_not_marked_any_more() {
    let kept = Kept::bucket();
    let storage = kept.own(1);
    let manifest = write_shards(&storage, 10, shape(1, 1, 2));
    kept.store().fail(|what, name| (what == "delete" && is_of(name, "shard-")).then_some(Fault::Refused));
    storage.drop_shard(10, writer(&storage, EPOCH, 1, 2)).unwrap_err();
    kept.store().work_again();
    let error = storage.publish(&manifest).unwrap_err();
    assert!(matches!(&error, CheckpointError::Unpublishable { found, .. } if found == "no file"), "{error}");
    assert_eq!(write_shards(&storage, 10, shape(1, 1, 2)), manifest);
    storage.publish(&manifest).unwrap();
    assert_eq!(storage.verify(10).unwrap(), []);
}

/// A manifest whose put was given up is carried out after its shards were dropped: nobody believes it.
#[test]
fn t6_a_manifest_that_comes_too_late_is_taken_for_damaged() {
    let kept = Kept::bucket();
    let storage = kept.own(1);
    let manifest = write_shards(&storage, 10, shape(1, 1, 2));
    kept.store().fail(|what, name| (what == "put new" && is_of(name, MANIFEST_NAME)).then_some(Fault::Refused));
    storage.publish(&manifest).unwrap_err();
    kept.store().work_again();
    (0..2).for_each(|rank| storage.drop_shard(10, writer(&storage, EPOCH, rank, 2)).unwrap());
    kept.write(&name_in(10, MANIFEST_NAME), manifest.to_json());
    let error = storage.manifest(10).unwrap_err();
    assert!(error.is_damage(), "{error}");
    storage.set_aside(10, &error.to_string()).unwrap();
    assert_eq!(storage.steps().unwrap(), [] as [u64; 0]);
}

/// Large reads are several requests, in their order.
#[test]
fn a_range_of_any_length_is_read_whole_or_not_at_all() {
    let kept = Kept::bucket();
    let whole: Vec<u8> = (0..20 << 20).map(|i: u32| (i % 251) as u8 ^ (i >> 20) as u8).collect();
    kept.write("large", &whole);
    let storage = kept.storage();
    for range in [0..0, 0..1, 7..(8 << 20) + 7, 5..(20 << 20), 0..(20 << 20)] {
        let found = storage.objects.read_range("large", range.clone()).unwrap();
        assert!(found == whole[range.start as usize..range.end as usize], "{range:?}");
    }
    let beyond = storage.objects.read_range("large", 0..(20 << 20) + 1).unwrap_err();
    assert!(matches!(beyond, CheckpointError::Read { .. }), "{beyond}");
    let missing = storage.objects.read_range("none", 0..(20 << 20)).unwrap_err();
    assert!(matches!(missing, CheckpointError::Missing { .. }), "{missing}");
    // Who looks at pieces may have seen enough.
    let mut num_seen = 0;
    let stopped = storage.objects.for_each_piece("large", 0..(20 << 20), &mut |_| {
        num_seen += 1;
        Err(CheckpointError::Missing { file: "enough".into() })
    });
    assert!(matches!(stopped, Err(CheckpointError::Missing { file }) if file == "enough") && num_seen == 1);
}
