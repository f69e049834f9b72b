//! Who we are: where it is looked for, what is said where it is wrong, and credentials that are replaced.

use std::fs;

use toroid_testkit::Bucket;

use super::proxy::{Turn, refusal};
use super::{QUICK, behind, environment};
use crate::{Environment, Kind, Store, Timing};

fn error_of(bucket: &Bucket, changes: &[(&'static str, &str)]) -> crate::StorageError {
    match Store::open_with(&bucket.url("runs"), &environment(bucket, changes), QUICK) {
        Ok(store) => store.put("a", "content").unwrap_err(),
        Err(error) => error,
    }
}

#[test]
fn a_wrong_key_is_told_at_once() {
    let bucket = Bucket::start_strict().unwrap();
    let error = error_of(&bucket, &[("AWS_SECRET_ACCESS_KEY", "wrong")]);
    assert_eq!(error.kind(), Kind::Credentials, "{error}");
    assert!(error.to_string().contains("the secret does not belong to the key"), "{error}");
    assert!(!error.to_string().contains("attempt"), "it is not tried again: {error}");
    let error = error_of(&bucket, &[("AWS_ACCESS_KEY_ID", "NOBODY")]);
    assert!(error.to_string().contains("the store does not know this key"), "{error}");
    let error = error_of(&bucket, &[("AWS_ACCESS_KEY_ID", "")]);
    assert!(error.to_string().contains("AWS_ACCESS_KEY_ID is not: set both"), "{error}");
}

#[test]
fn what_everybody_may_read_needs_no_credentials() {
    let bucket = Bucket::start().unwrap();
    std::fs::write(bucket.folder().join("a"), "content").unwrap();
    let none = [("AWS_ENDPOINT_URL", bucket.endpoint()), ("AWS_SKIP_SIGNATURE", "true".into())];
    let store = Store::open_with(&bucket.url(""), &Environment::from_iter(none), QUICK).unwrap();
    assert_eq!(store.get("a", 100).unwrap().unwrap(), "content");
}

#[test]
fn a_bucket_that_is_not_there_is_told_at_once() {
    for bucket in [Bucket::start().unwrap(), Bucket::start_strict().unwrap()] {
        let store = Store::open_with("s3://nowhere/runs", &environment(&bucket, &[]), QUICK).unwrap();
        for error in [
            store.put("a", "content").unwrap_err(),
            store.check(QUICK.patience).unwrap_err(),
            store.get("a", 1).unwrap_err(),
        ] {
            assert_eq!(error.kind(), Kind::Bucket, "{error}");
            assert!(error.to_string().contains("make the bucket, or name another one"), "{error}");
        }
    }
}

#[test]
fn where_no_credentials_are_found_all_places_are_named() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path().to_str().unwrap();
    let none = [("HOME", home), ("AWS_EC2_METADATA_DISABLED", "true")];
    let error = Store::open_with("s3://bucket/runs", &Environment::from_iter(none), QUICK).unwrap_err();
    assert_eq!(error.kind(), Kind::Credentials);
    let (credentials, config) = (format!("{home}/.aws/credentials"), format!("{home}/.aws/config"));
    for place in [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        &credentials,
        &config,
        "AWS_CONTAINER_",
        "metadata service",
    ] {
        assert!(error.to_string().contains(place), "{place}: {error}");
    }
    // The metadata service is asked when credentials are needed.
    let nobody = [("HOME", home), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:1/")];
    let error =
        Store::open_with("s3://bucket/runs", &Environment::from_iter(nobody), QUICK).unwrap().get("a", 1).unwrap_err();
    assert!(
        error.to_string().contains("and at the instance's metadata service (http://127.0.0.1:1 cannot be reached"),
        "{error}"
    );
    let error =
        Store::open_with("s3://bucket/runs", &Environment::from_iter([("HOME", home), ("AWS_PROFILE", "ours")]), QUICK);
    assert!(error.unwrap_err().to_string().contains("profile ours has no aws_access_key_id"));
    fs::create_dir(format!("{home}/.aws")).unwrap();
    fs::write(&config, "[default]\nsso_session = work\n").unwrap();
    let error = Store::open_with("s3://bucket/runs", &Environment::from_iter(none), QUICK).unwrap_err();
    assert!(error.to_string().contains("it has sso_session, which needs AWS's own tools"), "{error}");
}

#[test]
fn a_file_of_credentials_is_read_again_when_it_changes() {
    let bucket = Bucket::start_strict().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    let variables = bucket.variables();
    let key = |name: &str| variables.iter().find(|(n, _)| *n == name).unwrap().1.clone();
    let text = |secret: &str| {
        format!("[ours]\naws_access_key_id = {}\naws_secret_access_key = {secret}\n", key("AWS_ACCESS_KEY_ID"))
    };
    fs::write(&file, text("of yesterday")).unwrap();
    let changes = [
        ("AWS_ACCESS_KEY_ID", ""),
        ("AWS_SECRET_ACCESS_KEY", ""),
        ("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap()),
        ("AWS_PROFILE", "ours"),
    ];
    let store = Store::open_with(&bucket.url(""), &environment(&bucket, &changes), Timing::default()).unwrap();
    assert_eq!(store.put("a", "content").unwrap_err().kind(), Kind::Credentials);
    fs::write(&file, text(&key("AWS_SECRET_ACCESS_KEY"))).unwrap();
    store.put("a", "content").unwrap();
    fs::remove_file(&file).unwrap();
    let error = store.put("a", "content").unwrap_err();
    assert!(error.to_string().contains("profile ours has no aws_access_key_id"), "{error}");
}

#[test]
fn credentials_that_expire_are_waited_for() {
    let bucket = Bucket::start_strict().unwrap();
    let (store, proxy) = behind(&bucket, Timing::default(), |_, n| match n {
        0 | 1 => refusal("400 Bad Request", "ExpiredToken"),
        _ => Turn::Forward,
    });
    store.put("a", "content").unwrap();
    assert_eq!(proxy.seen().len(), 3);
    let (store, _proxy) = behind(&bucket, QUICK, |_, _| refusal("400 Bad Request", "ExpiredToken"));
    let error = store.put("a", "content").unwrap_err();
    assert!(error.to_string().contains("the credentials have expired: renew them"), "{error}");
}

#[test]
fn other_refusals_say_what_to_do() {
    let bucket = Bucket::start().unwrap();
    for (status, code, kind, advice) in [
        ("403 Forbidden", "AccessDenied", Kind::Denied, "docs/storage.md"),
        ("403 Forbidden", "RequestTimeTooSkewed", Kind::Setup, "the clock of this machine is wrong"),
        ("301 Moved Permanently", "PermanentRedirect", Kind::Setup, "another region"),
        ("501 Not Implemented", "NotImplemented", Kind::Unsupported, "does not have the operation"),
    ] {
        let (store, _proxy) = behind(&bucket, QUICK, move |_, _| refusal(status, code));
        let error = store.put("a", "content").unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(advice) && error.to_string().contains("As the test says"), "{error}");
    }
    let region =
        "HTTP/1.1 301 Moved\r\nx-amz-bucket-region: eu-west-1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let (store, _proxy) = behind(&bucket, QUICK, move |_, _| Turn::Answer(region.into()));
    assert!(store.head("a").unwrap_err().to_string().contains("set AWS_REGION=eu-west-1"));
}
