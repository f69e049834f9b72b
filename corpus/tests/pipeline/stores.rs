//! Sources in an S3-compatible store, a real process: the same bytes out as from a folder, and what is wrong is named.

use std::path::Path;

use parquet::basic::Compression;
use toroid_corpus::doc::mix;
use toroid_testkit::Bucket;

use crate::same_bytes::place;
use crate::tables::write;
use crate::texts::{json, text};
use crate::{Place, files};

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        std::fs::create_dir_all(to.join(&name).parent().expect("a parent")).expect("a folder");
        std::fs::write(to.join(name), bytes).expect("write");
    }
}

/// Success, and what is printed.
fn call(place: &Place, bucket: &Bucket, arguments: &[&str]) -> (bool, String) {
    let output = place.command(arguments).envs(bucket.variables()).output().expect("start toroid-data");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    (output.status.success(), said)
}

fn run(place: &Place, bucket: &Bucket, more: &[&str]) {
    let (is_well, said) = call(place, bucket, &[&["run", "pipeline.toml"], more].concat());
    assert!(is_well, "{said}");
}

#[test]
fn sources_in_a_store_give_the_bytes_that_they_give_in_folders() {
    let (place, bucket) = (place(), Bucket::start().expect("a store"));
    // Beside lines, compressed lines, texts and archives of `place`: tables, and a page of the web.
    let bodies: Vec<Vec<u8>> = (0..200).map(|n| text(90_000 + n, 20).into_bytes()).collect();
    std::fs::create_dir(place.path("tables")).expect("a folder");
    write(&place.path("tables/a.parquet"), &bodies, 70, Compression::SNAPPY);
    let page = text(95_000, 30);
    let length = page.len();
    place.write(
        "archive/a.warc",
        format!("WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://b.org/\r\nContent-Length: {length}\r\n\r\n{page}\r\n\r\n"),
    );
    let pipeline = std::fs::read_to_string(place.path("pipeline.toml")).expect("a pipeline");
    let more = "[[source]]\nname = \"tables\"\npath = \"tables/a.parquet\"\ntext = \"page.body\"\nweight = 1.0\n\
                [[source]]\nname = \"archive\"\npath = \"archive\"\nweight = 1.0\n[read]";
    let pipeline = pipeline.replace("[read]", more);
    place.write("pipeline.toml", &pipeline);
    place.run(&["--piece", "200K"]);
    let expected = files(&place.path("out"));

    let mut stored = pipeline;
    for name in ["web", "books", "code", "tables", "archive"] {
        copy(&place.path(name), &bucket.folder().join("corpus").join(name));
        let from = if name == "tables" { "tables/a.parquet" } else { name };
        stored = stored
            .replace(&format!("path = \"{from}\""), &format!("path = \"{}\"", bucket.url(&format!("corpus/{from}"))));
        std::fs::remove_dir_all(place.path(name)).expect("remove");
    }
    place.write("pipeline.toml", stored);
    for options in [&["--piece", "200K"][..], &["--threads", "1", "--memory", "64M"]] {
        for folder in ["work", "out"] {
            std::fs::remove_dir_all(place.path(folder)).expect("remove");
        }
        run(&place, &bucket, options);
        assert!(files(&place.path("out")) == expected, "{options:?}");
    }
    // Nothing is left to do, and nothing has changed there.
    run(&place, &bucket, &[]);
    // Killed at any time, and by the tasks of a plan.
    for folder in ["work", "out"] {
        std::fs::remove_dir_all(place.path(folder)).expect("remove");
    }
    for n in 0..6 {
        let mut command = place.command(&["run", "pipeline.toml", "--piece", "100K"]);
        let mut child = command.envs(bucket.variables()).spawn().expect("start");
        std::hint::black_box((0..(n + 1) * 4_000_000).fold(0, |sum: u64, k| sum ^ mix(k)));
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
    let (is_well, said) = call(&place, &bucket, &["plan", "pipeline.toml", "--shards", "2", "--to", "plan.json"]);
    assert!(is_well, "{said}");
    let (is_well, said) = call(&place, &bucket, &["task", "plan.json", "--worker", "0", "--workers", "1"]);
    assert!(is_well, "{said}");
    assert!(files(&place.path("out")) == expected);
}

#[test]
fn what_is_wrong_with_a_store_is_named() {
    let (place, bucket) = (Place::empty(), Bucket::start_strict().expect("a store"));
    let pipeline = |key: &str, more: &str| format!("[[source]]\nname = \"a\"\npath = \"{}\"\n{more}", bucket.url(key));
    let complaint = |pipeline: &str, expected: &[&str]| {
        place.write("pipeline.toml", pipeline);
        let (is_well, said) = call(&place, &bucket, &["run", "pipeline.toml"]);
        assert!(!is_well && expected.iter().all(|part| said.contains(part)), "{said}");
    };
    complaint(&pipeline("nothing", ""), &["s3://bucket/nothing: there is no file in it"]);
    complaint(&pipeline("a//b", ""), &["it is no key"]);
    complaint(&pipeline("x", "").replace("s3://bucket/", "s3://other/"), &["s3://other/"]);
    std::fs::create_dir(bucket.folder().join("code")).expect("a folder");
    std::fs::write(bucket.folder().join("code/a.rs"), "fn a() {}").expect("write");
    complaint(&pipeline("code", "format = \"repository\"\n"), &["s3://bucket/code/a.rs", "an archive of tar"]);
    complaint(&pipeline("code", "extensions = [\"md\"]\n"), &["there is no file that ends with md"]);
    place.write("pipeline.toml", pipeline("code", ""));
    let wrong =
        place.command(&["run", "pipeline.toml"]).envs(bucket.variables()).env("AWS_SECRET_ACCESS_KEY", "x").output();
    let said = String::from_utf8_lossy(&wrong.expect("start").stderr).into_owned();
    assert!(said.contains("see AWS_SECRET_ACCESS_KEY"), "{said}");
    run(&place, &bucket, &[]);
    assert_eq!(place.text(), "fn a() {}");
}

#[test]
fn an_object_that_is_replaced_behind_a_plan_is_no_part_of_it() {
    let (place, bucket) = (Place::empty(), Bucket::start().expect("a store"));
    let lines = |first: u64| (first..first + 3_000).map(|n| json("", "", &text(n, 6))).collect::<String>();
    std::fs::write(bucket.folder().join("a.jsonl"), lines(0)).expect("write");
    place.write("pipeline.toml", format!("[[source]]\nname = \"a\"\npath = \"{}\"\n", bucket.url("a.jsonl")));
    let (is_well, said) = call(&place, &bucket, &["plan", "pipeline.toml", "--to", "plan.json", "--piece", "200K"]);
    assert!(is_well, "{said}");
    std::fs::write(bucket.folder().join("a.jsonl"), lines(5_000)).expect("write");
    let (is_well, said) = call(&place, &bucket, &["task", "plan.json", "0"]);
    assert!(!is_well && said.contains("s3://bucket/a.jsonl"), "{said}");
    // A run begins again with what is there now.
    run(&place, &bucket, &[]);
    assert!(place.text().contains(&text(5_001, 6)) && !place.text().contains(&text(1, 6)));
}

#[test]
fn rows_of_dialogues_in_a_store_give_the_token_files_that_they_give_in_folders() {
    let (place, bucket) = (Place::empty(), Bucket::start().expect("a store"));
    let row = |n: u64| {
        let turn = |role, seed| serde_json::json!({"role": role, "content": text(seed, 3)});
        serde_json::json!({"messages": [turn("user", 2 * n), turn("assistant", 2 * n + 1)]}).to_string() + "\n"
    };
    let rows = |range: std::ops::Range<u64>| range.map(row).collect::<String>();
    // More than is asked for at a time, something that is refused, compressed, and what has no rows in it.
    place.write("rows/a.jsonl", rows(0..4_000) + "{\"messages\": []}\n");
    let packed = zstd::encode_all(rows(4_000..5_000).as_bytes(), 3).expect("compressed");
    place.write("rows/b/c.jsonl.zst", packed);
    place.write("rows/readme.md", "no rows");
    copy(&place.path("rows"), &bucket.folder().join("chat/rows"));
    let arguments = |rows: &str, to: &str| ["chat", rows, "--held-out", "0.1", "--to", to].map(str::to_owned);
    let chat = |rows: &str, to: &str| {
        let (is_well, said) = call(&place, &bucket, &arguments(rows, to).each_ref().map(String::as_str));
        assert!(is_well, "{said}");
        files(&place.path(to))
    };
    let expected = chat("rows", "of-folder");
    let url = bucket.url("chat/rows");
    let found = chat(&url, "of-store");
    assert!(found.keys().eq(expected.keys()) && found.contains_key("held-out/00000.tokens"), "{:?}", found.keys());
    for (name, bytes) in &found {
        // Rows that are refused are named by where they are.
        let text = String::from_utf8_lossy(bytes).replace(&format!("{url}/"), "rows/");
        let is_same =
            if name.ends_with(".tokens") { *bytes == expected[name] } else { text.as_bytes() == expected[name] };
        assert!(is_same, "{name}: {text}");
    }
    // One object, whatever it is called.
    std::fs::rename(bucket.folder().join("chat/rows/a.jsonl"), bucket.folder().join("chat/rows/a.txt"))
        .expect("rename");
    std::fs::rename(place.path("rows/a.jsonl"), place.path("rows/a.txt")).expect("rename");
    let (one, expected) = (chat(&bucket.url("chat/rows/a.txt"), "one-of-store"), chat("rows/a.txt", "one-of-folder"));
    assert!(one["train/00000.tokens"] == expected["train/00000.tokens"]);
    let call = |rows: &str| call(&place, &bucket, &arguments(rows, "none").each_ref().map(String::as_str));
    let (is_well, said) = call(&bucket.url("chat/nothing"));
    assert!(!is_well && said.contains("s3://bucket/chat/nothing: there is no file that ends with .jsonl"), "{said}");
}

#[test]
fn an_output_is_sent_whole_or_goes_on_and_replaces_nothing() {
    let (place, bucket) = (Place::empty(), Bucket::start().expect("a store"));
    // Files of more than a part, and of less.
    let lines: String = (0..60_000).map(|n| json("", "", &text(n, 3))).collect();
    place.write("in/a.jsonl", lines);
    let pipeline = |store: &str, more: &str| {
        format!(
            "[[source]]\nname = \"a\"\npath = \"in\"\n[[stage]]\nkind = \"exact\"\n{more}[output]\nformat = \"tokens\"\n\
             shard_bytes = 10000000\nstore = \"{}\"\n",
            bucket.url(store)
        )
    };
    let sent = |store: &str| {
        let folder = bucket.folder().join(store);
        let mut found = if folder.exists() { files(&folder) } else { Default::default() };
        // Of a process that was killed while it tried whether the store heeds conditions.
        found.retain(|name, _| !name.starts_with(".toroid-probe-"));
        found
    };
    let is_same = |store: &str| {
        let (mut there, here) = (sent(store), files(&place.path("out")));
        let claim = there.remove(".toroid-output").expect("a claim");
        assert_eq!(claim.len(), 64);
        there == here
    };
    let complaint = |expected: &str| {
        let (is_well, said) = call(&place, &bucket, &["run", "pipeline.toml"]);
        assert!(!is_well && said.contains(expected), "{said}");
    };
    // Made before, so that it is the sending that is killed.
    let stored = pipeline("made/first", "");
    place.write("pipeline.toml", &stored[..stored.find("store =").expect("a store")]);
    place.run(&[]);
    place.write("pipeline.toml", stored);
    for n in 0..12 {
        let mut command = place.command(&["run", "pipeline.toml"]);
        let mut child = command.envs(bucket.variables()).spawn().expect("start");
        std::hint::black_box((0..(n + 1) * 3_000_000).fold(0, |sum: u64, k| sum ^ mix(k)));
        child.kill().expect("kill");
        child.wait().expect("wait");
        let there = sent("made/first");
        assert!(!there.contains_key("report.json") || is_same("made/first"), "{:?}", there.keys());
    }
    run(&place, &bucket, &[]);
    let there: Vec<(String, usize)> = sent("made/first").into_iter().map(|(name, bytes)| (name, bytes.len())).collect();
    assert!(is_same("made/first") && there.iter().any(|(name, _)| name == "tokens/00001.tokens"), "{there:?}");

    // What was begun is gone on with, and what is not as it should be is sent again.
    let folder = bucket.folder().join("made/first");
    std::fs::remove_file(folder.join("report.json")).expect("remove");
    std::fs::remove_file(folder.join("tokens/00001.tokens")).expect("remove");
    let damaged = files(&folder)["ledger/kept.jsonl"].iter().map(|byte| byte ^ 1).collect::<Vec<u8>>();
    std::fs::write(folder.join("ledger/kept.jsonl"), damaged).expect("write");
    let (is_well, said) = call(&place, &bucket, &["run", "pipeline.toml"]);
    assert!(is_well && is_same("made/first"), "{said}");
    // Once it is there, nothing is sent.
    let (is_well, said) = call(&place, &bucket, &["run", "pipeline.toml"]);
    assert!(is_well && said.contains("the output is there, 0 bytes of it were sent"), "{said}");

    // To another place without making it again; by the tasks of a plan, too.
    place.write("pipeline.toml", pipeline("made/second", ""));
    let (is_well, said) = call(&place, &bucket, &["run", "pipeline.toml"]);
    assert!(is_well && said.contains("everything is done already") && is_same("made/second"), "{said}");
    std::fs::remove_dir_all(place.path("work")).expect("remove");
    place.write("pipeline.toml", pipeline("made/third", ""));
    let (is_well, said) = call(&place, &bucket, &["plan", "pipeline.toml", "--shards", "2", "--to", "plan.json"]);
    assert!(is_well, "{said}");
    let (is_well, said) = call(&place, &bucket, &["task", "plan.json", "--worker", "0", "--workers", "1"]);
    assert!(is_well && is_same("made/third"), "{said}");

    // Another output, and what is none.
    let before = sent("made");
    place.write("pipeline.toml", pipeline("made/first", "[[stage]]\nkind = \"sentences\"\n"));
    complaint("another output is there");
    place.write("pipeline.toml", pipeline("made", ""));
    complaint("something is there, and no output of this program");
    assert!(sent("made") == before);
}

#[test]
fn an_output_goes_to_a_store_or_nothing_is_begun() {
    let (place, bucket) = (Place::empty(), Bucket::start().expect("a store"));
    place.write("in/a.txt", text(1, 10));
    let pipeline = |store: &str| format!("[[source]]\nname = \"a\"\npath = \"in\"\n[output]\nstore = \"{store}\"\n");
    let check = |store: &str, expected: &str| {
        place.write("pipeline.toml", pipeline(store));
        let (is_well, said) = call(&place, &bucket, &["run", "pipeline.toml"]);
        assert!(!is_well && said.contains(expected), "{said}");
        assert!(!place.path("out").exists());
    };
    check("somewhere", "s3://");
    check("s3://other/made", "s3://other/made");
    // A store that does as if conditions were not there.
    let bucket = Bucket::start_strict().expect("a store");
    place.write("pipeline.toml", pipeline(&bucket.url("made")));
    let (is_well, said) = call(&place, &bucket, &["run", "pipeline.toml"]);
    assert!(!is_well && said.contains("so two outputs could be mixed"), "{said}");
    let (is_well, said) = call(&place, &bucket, &["plan", "pipeline.toml", "--to", "plan.json"]);
    assert!(!is_well && said.contains("so two outputs could be mixed") && !place.path("plan.json").exists(), "{said}");
    assert!(!place.path("out").exists() && files(&bucket.folder()).is_empty());
}
