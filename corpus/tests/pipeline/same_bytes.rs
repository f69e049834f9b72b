//! Threads, shards, memory, pieces and deaths change no byte of the output (D-1).

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use toroid_corpus::doc::mix;
use toroid_testkit::SmallDisk;

use crate::texts::{archive, edited, json, random, sentence, text};
use crate::{Place, files};

const PIPELINE: &str = r#"
[[source]]
name = "web"
path = "web"
weight = 2.0
[[source]]
name = "books"
path = "books"
extensions = ["txt"]
priority = 1
weight = 1.0
max_epochs = 2.5
[[source]]
name = "code"
path = "code"
format = "repository"
weight = 0.01
[read]
max_bad_share = 0.5
[[stage]]
kind = "url"
[[stage]]
kind = "exact"
[[stage]]
kind = "minhash"
[[stage]]
kind = "sentences"
[[stage]]
kind = "heuristics"
min_words = 20
max_mean_word_chars = 20.0
[[stage]]
kind = "perplexity"
model = "model.arpa"
quantile = 0.9
min_domain_documents = 20
[[stage]]
kind = "pii"
[[stage]]
kind = "contamination"
sets = ["eval.jsonl"]
[output]
shard_bytes = 100000
"#;

pub fn place() -> Place {
    let place = Place::empty();
    let page = |n: u64, text: &str| {
        let address = if n % 8 == 1 { n - 1 } else { n };
        json(&format!("k{n}"), &format!("http://h{}.org/{address}", address % 5), text)
    };
    let line = |n: u64| {
        let base = n / 3;
        let shared = sentence(9_000 + n % 40);
        let mail = if n.is_multiple_of(11) { format!("Write to user{n}@example.org soon.") } else { String::new() };
        let question = if n.is_multiple_of(97) { sentence(1) + " " + &sentence(2) } else { String::new() };
        let own = match n {
            // Equal texts of other pages, and texts that are too short.
            _ if n % 30 == 7 => return page(n, &text(n / 60, 8)),
            _ if n % 41 == 5 => return page(n, &sentence(n)),
            _ => edited(&text(base, 6 + base % 9), n, [0, 0, 8][(n % 3) as usize]),
        };
        page(n, &format!("{own} {shared} {mail} {question}"))
    };
    let lines = |range: std::ops::Range<u64>| range.map(line).collect::<String>();
    place.write("web/a.jsonl", lines(0..900) + "\n\nno json\n[1]\n" + &lines(900..1000));
    place.write("web/b.jsonl.zst", zstd(&lines(1000..1400)));
    place.write("web/c.jsonl", lines(1400..1700));
    for n in 0..60 {
        place.write(&format!("books/{}/{n}.txt", n % 4), text(50_000 + n, 40));
    }
    place.write("books/not.txt", b"\xff\xfe");
    let files = (0..90).map(|n| (format!("src/{n}.rs"), text(70_000 + n, 25).into_bytes()));
    place.write("code/a.tar.zst", zstd::encode_all(&archive(files)[..], 3).expect("in memory"));
    place.write("eval.jsonl", serde_json::json!({"question": sentence(1), "more": [sentence(2)]}).to_string());
    place.write("pipeline.toml", PIPELINE);
    place.write("train.txt", (0..600).map(|n| text(random(77, n), 3) + "\n").collect::<String>());
    let output = place.output(&["lm", "train.txt", "--to", "model.arpa", "--memory", "64M"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    place
}

fn zstd(text: &str) -> Vec<u8> {
    zstd::encode_all(text.as_bytes(), 3).expect("in memory")
}

#[test]
fn threads_shards_memory_and_pieces_change_nothing() {
    let place = place();
    let report = place.run(&["--threads", "1", "--shards", "1"]);
    let expected = files(&place.path("out"));
    assert!(expected.contains_key("text/00003.txt"), "several files: {:?}", expected.keys());
    let removes_something = |n: usize| report.stages[n].counts.removed().rows > 0;
    let idle: Vec<&str> = (0..9).filter(|n| !removes_something(*n)).map(|n| report.stages[n].name.as_str()).collect();
    assert!(idle.is_empty(), "each stage has something to do: {idle:?}\n{}", report.table());
    assert_eq!(report.bad_records, 3);
    for options in [
        &["--threads", "2", "--shards", "7"][..],
        &["--threads", "3", "--shards", "2", "--piece", "64K"],
        &["--threads", "2", "--shards", "16", "--memory", "64M", "--piece", "300K", "--keep-stages"],
    ] {
        std::fs::remove_dir_all(place.path("work")).expect("remove");
        assert_eq!(place.run(options), report, "{options:?}");
        assert!(files(&place.path("out")) == expected, "{options:?}");
    }
    // Once more: nothing is left to do.
    assert_eq!(place.run(&["--shards", "3"]), report);
    assert!(files(&place.path("out")) == expected);
}

#[test]
fn fifty_deaths_change_nothing() {
    let place = place();
    place.write("t.json", crate::token_files::tokenizer_json());
    place.write("pipeline.toml", format!("{PIPELINE}format = \"tokens\"\ntokenizer = \"t.json\"\n"));
    let report = place.run(&[]);
    let expected = files(&place.path("out"));
    std::fs::remove_dir_all(place.path("work")).expect("remove");
    std::fs::remove_dir_all(place.path("out")).expect("remove");
    let (mut num_kills, mut num_lines_most) = (0u64, 0);
    while num_kills < 50 {
        let arguments = [
            "run",
            "pipeline.toml",
            "--piece",
            "100K",
            "--shards",
            if num_kills.is_multiple_of(2) { "3" } else { "5" },
        ];
        let mut child = place.command(&arguments).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().expect("start");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        // Somewhere behind a phase: as far as some work on this thread takes.
        let num_lines = mix(num_kills) % 9;
        let num_seen = (0..num_lines).map_while(|_| lines.next()).count() as u64;
        let spin = (0..mix(num_kills * 3) % 4_000_000).fold(0, |sum: u64, n| sum ^ mix(n));
        std::hint::black_box(spin);
        let has_ended = child.try_wait().expect("wait").is_some();
        child.kill().expect("kill");
        let status = child.wait().expect("wait");
        if has_ended {
            assert!(status.success(), "seed {num_kills}");
            // It came to its end: from the start again.
            std::fs::remove_dir_all(place.path("work")).expect("remove");
        }
        num_lines_most = num_lines_most.max(num_seen);
        num_kills += 1;
    }
    assert_eq!(place.run(&["--piece", "100K"]), report);
    assert!(files(&place.path("out")) == expected);
    let unfinished = files(&place.path("work")).into_keys().filter(|name| name.contains("unfinished")).count();
    assert_eq!(unfinished, 0, "what dead processes left is gone");
}

#[test]
fn a_full_disk_is_an_error_and_the_next_run_goes_on() {
    let place = place();
    let report = place.run(&[]);
    let expected = files(&place.path("out"));
    std::fs::remove_dir_all(place.path("work")).expect("remove");
    // Files that may not grow: the system refuses the write, as it does on a disk that is full.
    let limited = format!("trap '' XFSZ; ulimit -f 60; exec {} run pipeline.toml", crate::PROGRAM);
    let output =
        std::process::Command::new("bash").arg("-c").arg(limited).current_dir(place.dir.path()).output().expect("bash");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.contains("error: write "), "{complaint}");
    assert_eq!(place.run(&[]), report);
    assert!(files(&place.path("out")) == expected);
}

#[test]
fn a_disk_that_is_full_at_any_point_loses_nothing() {
    let place = place();
    let report = place.run(&[]);
    let expected = files(&place.path("out"));
    std::fs::remove_dir_all(place.path("work")).expect("remove");
    std::fs::remove_dir_all(place.path("out")).expect("remove");
    let pipeline = std::fs::read_to_string(place.path("pipeline.toml")).expect("a pipeline");
    place.write("pipeline.toml", pipeline.replace("[output]\n", "[output]\npath = \"small/out\"\n"));
    let pipeline = std::fs::read_to_string(place.path("pipeline.toml")).expect("a pipeline");
    place.write("pipeline.toml", format!("work = \"small/work\"\n{pipeline}"));
    let small = place.path("small");
    let disk = SmallDisk::mount(&small, "256K").expect("a small disk");
    let mut num_full = 0;
    for halves in 1.. {
        // What the run before left is gone on with.
        disk.resize(&format!("{}K", halves * 512)).expect("more room");
        let output = place.output(&["run", "pipeline.toml", "--memory", "64M", "--piece", "200K"]);
        if output.status.success() {
            break;
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(complaint.contains("No space left on device") && !complaint.contains("panicked"), "{complaint}");
        num_full += 1;
        assert!(num_full < 60, "{complaint}");
    }
    println!("full {num_full} times");
    assert!(num_full > 3);
    assert_eq!(place.run(&[]), report);
    assert!(files(&small.join("out")) == expected);
}

#[test]
fn another_pipeline_in_the_same_folder_does_not_get_what_was_left() {
    let place = place();
    let first = place.run(&[]);
    place.write("pipeline.toml", PIPELINE.replace("min_words = 20", "min_words = 120"));
    let second = place.run(&[]);
    assert_ne!(first.documents_out, second.documents_out);
    place.write("pipeline.toml", PIPELINE);
    assert_eq!(place.run(&[]), first);
}
