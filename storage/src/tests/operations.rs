//! Every operation, on both servers.

use toroid_testkit::Bucket;

use super::{bytes, open};
use crate::{Kind, PART_BYTES, PutNew, Store};

fn names(store: &Store, below: &str) -> Vec<String> {
    store.list(below, 10_000).unwrap().into_iter().map(|object| object.name).collect()
}

#[test]
fn objects_are_put_read_listed_and_deleted() {
    for bucket in [Bucket::start().unwrap(), Bucket::start_strict().unwrap()] {
        let store = open(&bucket, "runs/7");
        assert_eq!(store.get("a", 10).unwrap(), None);
        assert_eq!(store.head("a").unwrap(), None);
        store.put("a", "hello").unwrap();
        store.put("folder/b c", "").unwrap();
        store.put("folder/deep/c", "see").unwrap();
        assert_eq!(store.get("a", 5).unwrap().unwrap(), "hello");
        assert_eq!(store.get("folder/b c", 5).unwrap().unwrap(), "");
        assert_eq!(store.head("a").unwrap().unwrap().num_bytes, 5);
        assert_eq!(store.get_range("a", 1..3).unwrap(), "el");
        assert_eq!(store.get("a", 4).unwrap_err().kind(), Kind::TooLarge);
        assert_eq!(store.get_range("none", 1..3).unwrap_err().kind(), Kind::Missing);
        assert_eq!(store.get_range("a", 3..9).unwrap_err().kind(), Kind::Refused);
        assert_eq!(names(&store, ""), ["a", "folder/b c", "folder/deep/c"]);
        assert_eq!(names(&store, "fold"), [""; 0], "a name is a folder, and no beginning of one");
        let listing = store.list_folder("folder", 10).unwrap();
        assert_eq!((listing.folders, listing.objects[0].name.as_str()), (vec!["deep".to_string()], "folder/b c"));
        store.delete("a").unwrap();
        store.delete("a").unwrap();
        store.delete_all(&["folder/b c".into(), "folder/deep/c".into(), "none".into()]).unwrap();
        assert_eq!(names(&store, ""), [""; 0]);
    }
}

/// Neither of the two servers heeds conditions of reads.
#[test]
fn an_object_that_was_replaced_since_it_was_listed_is_not_read_for_it() {
    for bucket in [Bucket::start().unwrap(), Bucket::start_strict().unwrap()] {
        let store = open(&bucket, "");
        store.put("a", "hello").unwrap();
        let listed = store.list("", 10).unwrap().remove(0);
        assert_eq!(store.get_range_of(&listed, 1..3).unwrap(), "el");
        store.put("a", "world").unwrap();
        assert_eq!(store.get_range_of(&listed, 1..3).unwrap_err().kind(), Kind::Changed);
        assert_eq!(store.get("a", 5).unwrap().unwrap(), "world");
    }
}

#[test]
fn a_large_object_is_seen_when_it_is_whole() {
    for bucket in [Bucket::start().unwrap(), Bucket::start_strict().unwrap()] {
        let (store, content) = (open(&bucket, ""), bytes(2 * PART_BYTES + 12_345));
        let mut upload = store.upload("large", Some(content.len() as u64)).unwrap();
        for piece in content.chunks(1_000_003) {
            upload.write(piece).unwrap();
        }
        assert_eq!(store.head("large").unwrap(), None, "nothing is seen before it is finished");
        assert_eq!(upload.num_bytes(), content.len() as u64);
        upload.finish().unwrap();
        assert!(store.get("large", u64::MAX).unwrap().unwrap() == content);
        assert!(store.get_range("large", 8_000_000..9_000_000).unwrap() == content[8_000_000..9_000_000]);

        let mut upload = store.upload("small", None).unwrap();
        upload.write(b"one request").unwrap();
        upload.finish().unwrap();
        assert_eq!(store.get("small", 100).unwrap().unwrap(), "one request");
    }
}

#[test]
fn of_two_writers_exactly_one_was_first() {
    let bucket = Bucket::start().unwrap();
    let store = open(&bucket, "");
    assert!(store.heeds_conditions().unwrap());
    for round in 0..5 {
        let (name, barrier) = (format!("owner-{round}"), std::sync::Barrier::new(4));
        let put = |n: usize| {
            barrier.wait();
            store.put_new(&name, format!("writer {n}")).unwrap()
        };
        let results: Vec<PutNew> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4).map(|n| scope.spawn(move || put(n))).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let first = results.iter().position(|result| *result == PutNew::Created).unwrap();
        assert_eq!(results.iter().filter(|result| **result == PutNew::Created).count(), 1, "{results:?}");
        assert_eq!(store.get(&name, 100).unwrap().unwrap(), format!("writer {first}"));
    }
    assert_eq!(names(&store, "").len(), 5, "the probe is deleted");
}

#[test]
fn a_store_that_ignores_conditions_is_found_out() {
    let bucket = Bucket::start_strict().unwrap();
    let store = open(&bucket, "");
    assert!(!store.heeds_conditions().unwrap());
    assert_eq!(store.put_new("owner", "first").unwrap(), PutNew::Created);
    assert_eq!(store.put_new("owner", "second").unwrap(), PutNew::Exists);
    assert_eq!(store.get("owner", 100).unwrap().unwrap(), "first");
}

#[test]
fn lists_of_many_pages_are_whole() {
    let bucket = Bucket::start().unwrap();
    let store = open(&bucket, "many");
    let folder = bucket.folder().join("many/deep");
    std::fs::create_dir_all(&folder).unwrap();
    for n in 0..2_345 {
        std::fs::write(folder.join(format!("{n:04}")), "x").unwrap();
    }
    let found = names(&store, "deep");
    assert_eq!((found.len(), found[0].as_str(), found[2_344].as_str()), (2_345, "deep/0000", "deep/2344"));
    let error = store.list("", 2_344).unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("more than 2344")), (Kind::TooLarge, true), "{error}");
    store.delete_all(&found).unwrap();
    assert_eq!(names(&store, ""), [""; 0]);
}
