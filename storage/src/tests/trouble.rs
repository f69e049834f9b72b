//! Stores that are slow, silent, busy, garbled or killed, and answers that are lost.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use toroid_testkit::Bucket;

use super::proxy::{Turn, refusal};
use super::{QUICK, behind, bytes, environment, open};
use crate::{Kind, PART_BYTES, PutNew, Store, Timing};

#[test]
fn a_store_that_is_slow_is_waited_for_as_long_as_bytes_move() {
    let bucket = Bucket::start().unwrap();
    // 4 MB/s: longer than a request may be silent, either way.
    let (store, _proxy) = behind(&bucket, QUICK, |_, _| Turn::Slowly(4 << 20));
    let content = bytes(PART_BYTES);
    let start = Instant::now();
    store.put("slow", content.clone()).unwrap();
    assert!(start.elapsed() > QUICK.silence, "the test is slow enough: {:?}", start.elapsed());
    assert!(store.get("slow", u64::MAX).unwrap().unwrap() == content);
}

#[test]
fn a_store_that_is_silent_is_given_up() {
    let bucket = Bucket::start().unwrap();
    let (store, proxy) = behind(&bucket, QUICK, |_, _| Turn::Silence);
    let start = Instant::now();
    let error = store.put("a", bytes(4 << 20)).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(error.to_string().contains("no byte has moved for 1.2 s (attempt"), "{error}");
    assert!(start.elapsed() < QUICK.patience + 2 * QUICK.silence, "{:?}", start.elapsed());
    assert!(proxy.seen().len() > 1, "it was tried again");
    let error = store.check(Duration::from_millis(300)).unwrap_err();
    assert!(error.to_string().ends_with("it has not answered within 0.3 s"), "{error}");
}

#[test]
fn a_store_that_is_not_there_is_named_with_what_to_do() {
    let mut bucket = Bucket::start().unwrap();
    let store = Store::open_with(&bucket.url("runs"), &environment(&bucket, &[]), QUICK).unwrap();
    bucket.kill();
    let error = store.get("a", 1).unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    let text = error.to_string();
    let start = format!("cannot read s3://bucket/runs/a: {} cannot be reached: ", bucket.endpoint());
    assert!(text.starts_with(&start) && text.contains("refused") && text.contains("AWS_ENDPOINT_URL"), "{text}");
    // Whoever asks at the start does not wait for long, and is told the same.
    let text = store.check(Duration::from_millis(800)).unwrap_err().to_string();
    let start = format!("cannot open s3://bucket/runs: {} cannot be reached: ", bucket.endpoint());
    assert!(text.starts_with(&start) && text.contains("(attempt ") && text.contains("AWS_ENDPOINT_URL"), "{text}");
}

#[test]
fn a_store_that_is_busy_is_asked_again() {
    let bucket = Bucket::start().unwrap();
    let (store, proxy) = behind(&bucket, Timing::default(), |_, n| match n {
        0..=2 => refusal("503 Slow Down", "SlowDown"),
        3 => refusal("500 Internal Server Error", "InternalError"),
        4 => Turn::Answer("garbled\r\n\r\n".into()),
        5 => Turn::Answer("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!".into()),
        6 => Turn::CutAnswer(0),
        _ => Turn::Forward,
    });
    store.put("a", "content").unwrap();
    assert_eq!(proxy.seen().len(), 8);
    assert_eq!(store.get("a", 7).unwrap().unwrap(), "content");

    let (store, _proxy) = behind(&bucket, QUICK, |_, _| refusal("503 Slow Down", "SlowDown"));
    let error = store.put("a", "other").unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("the store answered 503 SlowDown: As the test says (attempt "), "{error}");
}

#[test]
fn an_answer_that_makes_no_sense_is_told() {
    let bucket = Bucket::start().unwrap();
    let page = "HTTP/1.1 200 OK\r\nContent-Length: 16\r\nConnection: close\r\n\r\n<html>Hi!</html>";
    let (store, _proxy) = behind(&bucket, QUICK, move |_, _| Turn::Answer(page.into()));
    let error = store.list("", 10).unwrap_err();
    assert!(
        error.to_string().contains("the store's answer makes no sense: it is no list, and begins with \"<html>"),
        "{error}"
    );
    assert!(error.to_string().contains("and no web page"), "{error}");
    let (store, _proxy) = behind(&bucket, QUICK, |_, _| Turn::Answer("SSH-2.0-OpenSSH_9.2\r\n".into()));
    let error = store.get("a", 10).unwrap_err();
    assert!(error.to_string().contains("does not speak HTTP/1.1"), "{error}");
    // As large as it likes.
    let body = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{}", "x".repeat(9 << 20));
    let (store, _proxy) = behind(&bucket, QUICK, move |_, _| Turn::Answer(body.clone()));
    let error = store.list("", 10).unwrap_err();
    assert!(error.to_string().contains("it has more than 8388608 bytes"), "{error}");
}

#[test]
fn objects_that_may_not_be_deleted_are_told_at_once() {
    let bucket = Bucket::start().unwrap();
    let body = "<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>No</Message></Error></DeleteResult>";
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let (store, proxy) = behind(&bucket, QUICK, move |_, _| Turn::Answer(answer.clone()));
    let error = store.delete_all(&["a".into(), "b".into()]).unwrap_err();
    assert_eq!((error.kind(), proxy.seen().len()), (Kind::Denied, 1), "{error}");
}

#[test]
fn keys_that_are_no_names_are_told_at_once() {
    let bucket = Bucket::start().unwrap();
    let object =
        "<Contents><Key>text//a</Key><Size>1</Size><LastModified>2026-01-01T00:00:00Z</LastModified></Contents>";
    let body = format!("<ListBucketResult>{object}</ListBucketResult>");
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
    let (store, proxy) = behind(&bucket, QUICK, move |_, _| Turn::Answer(answer.clone()));
    let error = store.list("text", 10).unwrap_err();
    assert!(error.to_string().contains("keys below it that are no names") && proxy.seen().len() == 1, "{error}");
}

#[test]
fn an_object_is_read_on_where_the_answer_ended() {
    let bucket = Bucket::start().unwrap();
    let content = bytes(3 << 20);
    std::fs::write(bucket.folder().join("a"), &content).unwrap();
    let (store, proxy) = behind(&bucket, Timing::default(), |_, n| match n {
        0 | 1 => Turn::CutAnswer(1 << 20),
        _ => Turn::Forward,
    });
    assert!(store.get("a", u64::MAX).unwrap().unwrap() == content);
    assert_eq!(proxy.seen().len(), 3);
}

#[test]
fn a_writer_whose_answer_was_lost_knows_its_own_object() {
    // By its metadata in one, by its bytes in the other, which keeps none.
    for bucket in [Bucket::start().unwrap(), Bucket::start_strict().unwrap()] {
        let (store, proxy) = behind(&bucket, Timing::default(), |what, n| match n {
            _ if !what.starts_with("PUT /bucket/owner") => Turn::Forward,
            _ if n < 6 => Turn::LoseAnswer,
            _ => Turn::Forward,
        });
        assert_eq!(store.put_new("owner", "ours").unwrap(), PutNew::Created);
        assert!(
            proxy.seen().iter().filter(|what| what.starts_with("PUT /bucket/owner")).count() > 1,
            "{:?}",
            proxy.seen()
        );
        assert_eq!(store.put_new("owner", "theirs").unwrap(), PutNew::Exists);
        assert_eq!(store.get("owner", 100).unwrap().unwrap(), "ours");
    }
}

#[test]
fn an_upload_whose_last_answer_was_lost_is_complete() {
    let bucket = Bucket::start_strict().unwrap();
    let lost = std::sync::atomic::AtomicBool::new(false);
    let (store, proxy) = behind(&bucket, Timing::default(), move |what, _| {
        let is_last = what.starts_with("POST") && what.contains("uploadId=");
        if is_last && !lost.swap(true, std::sync::atomic::Ordering::Relaxed) { Turn::LoseAnswer } else { Turn::Forward }
    });
    let content = bytes(PART_BYTES + 1);
    let mut upload = store.upload("a", Some(content.len() as u64)).unwrap();
    upload.write(&content).unwrap();
    upload.finish().unwrap();
    assert!(store.get("a", u64::MAX).unwrap().unwrap() == content);
    assert_eq!(proxy.seen().iter().filter(|what| what.contains("uploadId=") && what.starts_with("POST")).count(), 2);
}

#[test]
fn an_end_that_is_refused_with_status_200_is_an_error() {
    let bucket = Bucket::start().unwrap();
    let (store, _proxy) = behind(&bucket, QUICK, |what, _| {
        let is_last = what.starts_with("POST") && what.contains("uploadId=");
        if is_last { refusal("200 OK", "InternalError") } else { Turn::Forward }
    });
    let mut upload = store.upload("a", None).unwrap();
    upload.write(&bytes(16 << 20)).unwrap();
    upload.write(b"more").unwrap();
    let error = upload.finish().unwrap_err();
    assert!(error.to_string().contains("500 InternalError"), "{error}");
    assert_eq!(open(&bucket, "").head("a").unwrap(), None);
}

/// Waits until a request of this kind has come by.
fn wait_for(seen: &mpsc::Receiver<String>, what: impl Fn(&str) -> bool) {
    let mut last = Vec::new();
    while let Ok(request) = seen.recv_timeout(Duration::from_secs(60)) {
        if what(&request) {
            return;
        }
        last.push(request);
    }
    panic!("it never came; there came {last:?}");
}

#[test]
fn an_upload_that_is_given_up_leaves_nothing() {
    let bucket = Bucket::start_strict().unwrap();
    let (tell, seen) = mpsc::channel();
    let (store, _proxy) = behind(&bucket, Timing::default(), move |what, _| {
        let _ = tell.send(what.into());
        Turn::Forward
    });
    let mut upload = store.upload("a", Some(1)).unwrap();
    upload.write(&bytes(PART_BYTES + 1)).unwrap();
    drop(upload);
    wait_for(&seen, |what| what.starts_with("DELETE") && what.contains("uploadId="));
    assert_eq!(store.head("a").unwrap(), None);
}

/// The store is killed while parts are on their way, and comes back: the upload goes on, and nobody sees half of it meanwhile.
#[test]
fn an_upload_survives_a_store_that_is_killed() {
    for is_strict in [false, true] {
        let mut bucket = if is_strict { Bucket::start_strict() } else { Bucket::start() }.unwrap();
        let (tell, seen) = mpsc::channel();
        let (store, _proxy) = behind(&bucket, Timing::default(), move |what, _| {
            let _ = tell.send(what.into());
            // So that parts are in the middle of it.
            if what.contains("partNumber=2") { Turn::Slowly(8 << 20) } else { Turn::Forward }
        });
        let content = bytes(4 * PART_BYTES + 77);
        std::thread::scope(|scope| {
            let uploading = scope.spawn(|| {
                let mut upload = store.upload("a", Some(content.len() as u64)).unwrap();
                upload.write(&content).unwrap();
                upload.finish().unwrap();
            });
            wait_for(&seen, |what| what.contains("partNumber=2"));
            bucket.kill();
            assert!(!bucket.folder().join("a").exists(), "nothing is seen before the end");
            // Something has met the store that is not there.
            wait_for(&seen, |what| what.contains("partNumber="));
            bucket.start_again().unwrap();
            uploading.join().unwrap();
        });
        assert!(store.get("a", u64::MAX).unwrap().unwrap() == content);
    }
}

/// A store that never comes back: the upload fails, and says so.
#[test]
fn an_upload_to_a_store_that_stays_away_is_given_up() {
    let mut bucket = Bucket::start().unwrap();
    let store = Store::open_with(&bucket.url(""), &environment(&bucket, &[]), QUICK).unwrap();
    let mut upload = store.upload("a", Some(1)).unwrap();
    upload.write(&bytes(PART_BYTES + 1)).unwrap();
    bucket.kill();
    let error = upload.finish().unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    assert!(error.to_string().contains("s3://bucket/a: http://127.0.0.1:"), "{error}");
    assert!(!bucket.folder().join("a").exists());
}
