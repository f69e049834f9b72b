//! Bad input is counted, named and kept aside; nothing of it blows up.

use std::io::{Seek as _, Write as _};

use crate::Place;
use crate::texts::{json, text};

const PIPELINE: &str =
    "[[source]]\nname = \"a\"\npath = \"in\"\n[read]\nmax_bad_share = 0.9\nmax_document_bytes = 100000\n";

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text).expect("in memory");
    encoder.finish().expect("in memory")
}

#[test]
fn bad_records_are_counted_named_and_kept_aside() {
    let place = Place::empty();
    let good = |n: u64| json(&n.to_string(), "", &text(n, 3));
    let at = (good(1) + "\r\n\n").len();
    place.write(
        "in/a.jsonl",
        good(1) + "\r\n\n" + "{broken\n" + &good(2) + "[1]\n{\"id\": 3}\n{\"text\": \"\"}\n" + &good(3),
    );
    place.write("in/b.jsonl.gz", [gzip(good(4).as_bytes()), gzip(good(5).as_bytes()), b"garbage".to_vec()].concat());
    let whole = gzip((0..400).map(good).collect::<String>().as_bytes());
    place.write("in/c.jsonl.gz", &whole[..whole.len() / 2]);
    place.write("in/d.txt", b"Latin-1: caf\xe9");
    place.write("in/e.txt", "NUL \0, CRLF\r\n, \u{202e}right to left, \u{1f600}");
    place.write("in/f.txt", "x".repeat(100_001));
    place.write("in/g.txt", "");
    place.write("pipeline.toml", PIPELINE);
    let report = place.run(&[]);
    let bad = std::fs::read_to_string(place.path("out/ledger/bad.jsonl")).expect("bad records");
    let check = |expected: &str| assert!(bad.contains(expected), "{expected}: {bad}");
    assert_eq!(report.bad_records, bad.lines().count() as u64);
    assert_eq!(report.bad_records, 9);
    check(&format!("\"file\":\"a.jsonl\",\"position\":{at},\"reason\":\"broken JSON"));
    check("the line is no object");
    check("no text in the field `text`");
    check("\"file\":\"b.jsonl.gz\"");
    check("cannot be decompressed");
    check("\"reason\":\"invalid UTF-8 at byte 12\"");
    check("longer than read.max_document_bytes");
    check("\"file\":\"g.txt\",\"position\":0,\"reason\":\"no text\"");
    assert!(report.documents_out > 100, "what was whole before the damage is there");
    assert!(place.text().contains("NUL \0, CRLF\r\n, \u{202e}right to left, \u{1f600}"));
    let explained = place.output(&["explain", "a:d.txt", "--in", "out"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("no document: invalid UTF-8"), "{explained:?}");
    // The same with too little patience.
    place.write("pipeline.toml", PIPELINE.replace("0.9", "0.01"));
    let complaint = place.complaint(&[]);
    assert!(complaint.contains("9 of ") && complaint.contains("bad.jsonl"), "{complaint}");
}

#[test]
fn a_document_of_a_gigabyte_in_one_line_is_counted_in_little_memory() {
    let place = Place::empty();
    let mut file = std::fs::File::create(place.path("in.jsonl")).expect("create");
    file.write_all(b"{\"text\": \"").expect("write");
    // A hole: read as zeros.
    file.seek(std::io::SeekFrom::Start(10 + (1 << 30))).expect("seek");
    file.write_all(b"\"}\n{\"text\": \"small\"}\n").expect("write");
    drop(file);
    place.write("pipeline.toml", PIPELINE.replace("path = \"in\"", "path = \"in.jsonl\""));
    // As much address space as a few pieces need.
    let limited = format!("ulimit -v 400000; exec {} run pipeline.toml --memory 64M --threads 1", crate::PROGRAM);
    let output =
        std::process::Command::new("bash").arg("-c").arg(limited).current_dir(place.dir.path()).output().expect("bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bad = std::fs::read_to_string(place.path("out/ledger/bad.jsonl")).expect("bad records");
    assert!(bad.contains("a line of 1073741837 bytes"), "{bad}");
    assert_eq!(place.text(), "small");
}

#[test]
fn a_document_of_a_gigabyte_that_is_allowed_ends_the_run_in_little_memory_or_is_read_with_enough() {
    let place = Place::empty();
    let sparse = |name: &str, start: &[u8], end: &[u8]| {
        let mut file = std::fs::File::create(place.path(name)).expect("create");
        file.write_all(start).expect("write");
        file.seek(std::io::SeekFrom::Start((1 << 30) - 100)).expect("seek");
        file.write_all(end).expect("write");
    };
    sparse("a.jsonl", b"{\"text\": \"", b"\"}\n{\"text\": \"small\"}\n");
    sparse("b.txt", b"a text", b"its end");
    sparse("c.log", b"a line", b"its end\nsmall\n");
    for (file, format) in [("a.jsonl", "jsonl"), ("b.txt", "text"), ("c.log", "lines")] {
        let allowed = PIPELINE
            .replace("100000", "1073741824")
            .replace("path = \"in\"", &format!("path = \"{file}\"\nformat = \"{format}\""));
        place.write("pipeline.toml", allowed);
        let limited = format!("ulimit -v 400000; exec {} run pipeline.toml --memory 64M --threads 1", crate::PROGRAM);
        let mut bash = std::process::Command::new("bash");
        let output = bash.arg("-c").arg(limited).current_dir(place.dir.path()).output().expect("bash");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{file}");
        assert!(complaint.contains(file) && complaint.contains("raise --memory"), "{file}: {complaint}");
        assert!(complaint.contains("10737418") || complaint.contains("10737417"), "how long it is: {complaint}");
    }
    // A smaller limit counts it, and the rest goes on.
    place.write("pipeline.toml", PIPELINE.replace("path = \"in\"", "path = \"c.log\"\nformat = \"lines\""));
    let report = place.run(&["--memory", "64M"]);
    assert_eq!((report.documents_read, report.bad_records, place.text().as_str()), (1, 1, "small"));
}

#[test]
fn pieces_cut_no_character() {
    let place = Place::empty();
    let lines: Vec<String> =
        (0..2_000).map(|n| format!("Строка {n}: {}", "ж\u{1f600}".repeat((n % 50 + 1) as usize))).collect();
    place.write("in.txt", lines.join("\n"));
    place.write("pipeline.toml", "[[source]]\nname = \"a\"\npath = \"in.txt\"\nformat = \"lines\"\n");
    for piece in ["1K", "777", "64M"] {
        let _ = std::fs::remove_dir_all(place.path("work"));
        assert_eq!(place.run(&["--piece", piece]).bad_records, 0);
        let text = place.text();
        let mut found: Vec<&str> = text.split("\n\n").collect();
        let mut expected: Vec<&str> = lines.iter().map(String::as_str).collect();
        found.sort_unstable();
        expected.sort_unstable();
        assert!(found == expected, "{piece}");
    }
}

#[test]
fn half_a_million_tiny_documents_take_the_memory_that_they_are_given() {
    let place = Place::empty();
    // The records of their bands are two hundred bytes for each of theirs.
    place.write("in.jsonl", (0..420_000).map(|n| json("", "", &format!("tiny {n}"))).collect::<String>());
    let stages = "[[stage]]\nkind = \"minhash\"\n";
    place.write("pipeline.toml", PIPELINE.replace("path = \"in\"", "path = \"in.jsonl\"") + stages);
    let limited = format!("ulimit -v 400000; exec {} run pipeline.toml --memory 64M --threads 1", crate::PROGRAM);
    let output =
        std::process::Command::new("bash").arg("-c").arg(limited).current_dir(place.dir.path()).output().expect("bash");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(std::fs::read_to_string(place.path("out/ledger/kept.jsonl")).expect("kept").lines().count(), 420_000);
}

#[test]
fn a_document_without_room_in_memory_ends_the_run_and_says_what_to_do() {
    let place = Place::empty();
    place.write("in/a.jsonl", json("", "", &"word ".repeat(1 << 20)));
    place.write("pipeline.toml", PIPELINE.replace("100000", "100000000"));
    let complaint = place.complaint(&["--memory", "64M", "--threads", "2"]);
    assert!(
        complaint.contains("a.jsonl at byte 0: a document of 5242880 bytes") && complaint.contains("2 MiB"),
        "{complaint}"
    );
    place.run(&["--memory", "256M", "--threads", "2"]);
    place.write("in/a.jsonl", "x".repeat(9 << 20));
    let complaint = place.complaint(&["--memory", "64M", "--threads", "2"]);
    assert!(complaint.contains("a.jsonl") && complaint.contains("raise --memory"), "{complaint}");
}

#[test]
fn an_empty_corpus_gives_an_empty_output() {
    let place = Place::empty();
    place.write("in/a.jsonl", "\n\n");
    let stages = ["url", "exact", "minhash", "sentences", "heuristics", "pii"];
    let stages: String = stages.iter().map(|kind| format!("[[stage]]\nkind = \"{kind}\"\n")).collect();
    place.write("pipeline.toml", format!("{PIPELINE}{stages}"));
    let report = place.run(&[]);
    assert_eq!((report.documents_read, report.documents_out, report.files.len()), (0, 0, 0));
}

#[test]
fn ids_may_be_missing_or_double_and_explain_finds_all() {
    let place = Place::empty();
    let long = text(1, 5);
    place.write("in/a.jsonl", json("x", "", &long) + &json("x", "", &long) + &json("", "", "Other words here."));
    place.write("pipeline.toml", format!("{PIPELINE}[[stage]]\nkind = \"exact\"\n"));
    place.run(&[]);
    let explain = |id: &str| String::from_utf8(place.output(&["explain", id, "--in", "out"]).stdout).expect("UTF-8");
    let second = format!("a:a.jsonl#{}", json("x", "", &long).len());
    assert!(
        explain("x")
            .contains(&format!("{second}: 01-exact: removed by the rule same-text, score 1.0000; a:a.jsonl#0 stays"))
    );
    assert!(explain("a:a.jsonl#0").contains("in text/00000.txt at byte"));
    let nothing = place.output(&["explain", "nobody", "--in", "out"]);
    assert!(
        !nothing.status.success() && String::from_utf8_lossy(&nothing.stderr).contains("nothing is known of `nobody`")
    );
}

#[test]
fn the_ledger_says_where_personal_data_was_and_never_what() {
    let place = Place::empty();
    let body = "\u{1f600} Write to ada.lovelace@example.org or 4111 1111 1111 1111.";
    place.write("in/a.jsonl", json("1", "", body));
    place.write("pipeline.toml", format!("{PIPELINE}[[stage]]\nkind = \"pii\"\n"));
    let report = place.run(&[]);
    assert_eq!(place.text(), "\u{1f600} Write to [EMAIL] or [CARD].");
    let rows = place.rows("01-pii");
    assert_eq!(&body[rows[0].start as usize..rows[0].end as usize], "ada.lovelace@example.org");
    assert_eq!((rows[0].tokens, rows[0].added), (24, 7));
    for (name, contents) in crate::files(&place.path("out")) {
        assert!(!String::from_utf8_lossy(&contents).contains("lovelace"), "{name}");
    }
    assert_eq!(report.tokens_out, report.tokens_read - 24 + 7 - 19 + 6);
}

#[test]
fn foreign_folders_are_not_replaced_and_dry_runs_do_nothing() {
    let place = Place::empty();
    place.write("in/a.jsonl", json("1", "", "text"));
    place.write("out/precious.txt", "mine");
    place.write("pipeline.toml", format!("{PIPELINE}[[stage]]\nkind = \"minhash\"\n"));
    assert!(place.complaint(&[]).contains("name another with output.path"));
    let output = place.output(&["run", "pipeline.toml", "--dry-run"]);
    let plan = String::from_utf8_lossy(&output.stdout);
    assert!(
        plan.contains("threshold = 0.7") && plan.contains("# 01-minhash: MinHash") && plan.contains("0.8 "),
        "{plan}"
    );
    assert!(!place.path("work").exists());
    assert_eq!(std::fs::read(place.path("out/precious.txt")).expect("there"), b"mine");
}
