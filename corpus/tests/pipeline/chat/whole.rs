//! Whole files: the same bytes each time, what is held out, balanced, and too bad to be used.

use std::collections::BTreeSet;
use std::fs;
use std::process::Stdio;

use serde_json::{Value, json};
use toroid_corpus::doc::mix;

use super::{chat, complaint, counts, documents, lines, turn, with_tokenizer};
use crate::texts::text;
use crate::{Place, files};

fn rows(num: u64) -> String {
    let row = |n: u64| match n % 50 {
        7 => json!({"messages": []}),
        _ => json!({"messages": turn(&text(n, 1), &text(n + 70_000, 1))}),
    };
    lines(&(0..num).map(row).collect::<Vec<_>>())
}

#[test]
fn threads_compression_files_and_deaths_change_no_byte() {
    let place = Place::empty();
    with_tokenizer(&place, None, json!({}));
    let text = rows(3000);
    place.write("rows.jsonl", &text);
    let arguments = [
        "--tokenizer",
        "model",
        "--held-out",
        "0.1",
        "--max-tokens",
        "180",
        "--too-long",
        "cut",
        "--max-refused",
        "0.9",
    ];
    let report = chat(&place, &[&arguments[..], &["--threads", "1"]].concat());
    assert!(report.used > 500 && report.cut_prompts > 10, "{report:?}");
    assert_eq!(counts(&report)["no-assistant-turn"], 60);
    let expected = files(&place.path("out"));
    let names: Vec<&str> = expected.keys().map(String::as_str).collect();
    let all = ["chat_template.jinja", "held-out/00000.tokens", "refused.jsonl", "report.json", "train/00000.tokens"];
    assert_eq!(names, all);
    chat(&place, &[&arguments[..], &["--threads", "3"]].concat());
    assert!(files(&place.path("out")) == expected);
    let packed = zstd::encode_all(text.as_bytes(), 1).expect("in memory");
    place.write("rows.jsonl", packed);
    chat(&place, &arguments);
    assert!(files(&place.path("out")) == expected);
    // Killed while it writes: nothing is seen under the name, and the next one makes the same.
    fs::remove_dir_all(place.path("out")).expect("remove");
    let command = [&["chat", "rows.jsonl", "--to", "out"], &arguments[..]].concat();
    for seed in 0..10 {
        let mut child = place.command(&command).stderr(Stdio::null()).stdout(Stdio::null()).spawn().expect("start");
        while !place.path("out.toroid-unfinished/train").exists() && child.try_wait().expect("wait").is_none() {
            std::hint::spin_loop();
        }
        let spin = (0..mix(seed) % 20_000_000).fold(0, |sum: u64, n| sum ^ mix(n));
        std::hint::black_box(spin);
        child.kill().expect("kill");
        child.wait().expect("wait");
        if place.path("out").exists() {
            assert!(files(&place.path("out")) == expected, "seed {seed}");
            fs::remove_dir_all(place.path("out")).expect("remove");
        }
    }
    chat(&place, &arguments);
    assert!(files(&place.path("out")) == expected);
    assert!(!place.path("out.toroid-unfinished").exists());
}

#[test]
fn rows_of_one_prompt_are_held_out_together() {
    let place = Place::empty();
    let rows: Vec<Value> = (0..2000)
        .map(|n| json!({"prompt": format!("question {}", n % 400), "response": format!("answer {n}")}))
        .collect();
    place.write("rows.jsonl", lines(&rows));
    chat(&place, &["--held-out", "0.2"]);
    let prompts = |split: &str| -> BTreeSet<Vec<u32>> {
        let prompt =
            |d: &super::Document| d.tokens[..d.trained.iter().position(|t| *t).expect("a trained token")].to_vec();
        documents(&place, split).0.iter().map(prompt).collect()
    };
    let (train, held_out) = (prompts("train"), prompts("held-out"));
    assert!(train.is_disjoint(&held_out) && train.len() + held_out.len() == 400);
    assert!((50..110).contains(&held_out.len()), "{} of 400", held_out.len());
    let first = files(&place.path("out/held-out"));
    chat(&place, &["--held-out", "0.2", "--seed", "1"]);
    assert!(files(&place.path("out/held-out")) != first);
}

#[test]
fn balanced_pairs_say_nothing_by_their_lengths() {
    let place = Place::empty();
    let rows: Vec<Value> = (0..1500u64)
        .map(|n| {
            let (long, short) = ("x".repeat(10 + (mix(n) % 50) as usize), "y".repeat(1 + (mix(n + 1) % 9) as usize));
            let (chosen, rejected) = if !mix(n + 2).is_multiple_of(4) { (long, short) } else { (short, long) };
            json!({"prompt": format!("p{n}"), "chosen": chosen, "rejected": rejected})
        })
        .collect();
    place.write("rows.jsonl", lines(&rows));
    let report = chat(&place, &[]);
    let before = report.balance.expect("of preferences").before;
    assert!((0.7..0.8).contains(&before.accuracy_of_longer()), "{before:?}");
    let report = chat(&place, &["--balance-length", "--held-out", "0.2"]);
    let after = report.balance.expect("of preferences").after;
    assert_eq!((report.balance.expect("of preferences").before, after.accuracy_of_longer()), (before, 0.5));
    assert!(report.unbalanced > 500 && report.used > 600, "{report:?}");
    for split in ["train", "held-out"] {
        let (pairs, margins) = documents(&place, split);
        let longer = pairs.chunks(2).filter(|pair| pair[0].tokens.len() > pair[1].tokens.len()).count();
        assert_eq!((pairs.len(), margins.len()), (4 * longer, 2 * longer), "{split}");
    }
    place.write("rows.jsonl", lines(&[json!({"prompt": "a", "response": "b"})]));
    assert!(complaint(&place, &["--balance-length"]).contains("these rows are dialogues"));
}

#[test]
fn too_many_refused_rows_end_the_command_and_nothing_of_others_is_replaced() {
    let place = Place::empty();
    place.write("rows.jsonl", rows(700) + "{\"messages\": 1}\n");
    let found = complaint(&place, &["--max-refused", "0.01", "--max-tokens", "100000"]);
    assert!(found.contains("15 of 701 rows cannot be used (no-assistant-turn 14, no-text 1)"), "{found}");
    let list = fs::read_to_string(place.path("out.refused.jsonl")).expect("a list");
    assert_eq!(list.lines().count(), 15);
    assert!(!place.path("out").exists() && !place.path("out.toroid-unfinished").exists());
    place.write("rows.jsonl", "\n");
    assert!(complaint(&place, &[]).contains("there is no row"));
    place.write("rows.jsonl", rows(10));
    place.write("out/mine.txt", "mine");
    assert!(complaint(&place, &["--max-refused", "0.5"]).contains("no output of this command"));
    assert!(place.path("out/mine.txt").exists());
    place.write("cut.jsonl.gz", [&[0x1f, 0x8b][..], &[0; 40]].concat());
    let output = place.output(&["chat", "cut.jsonl.gz", "--to", "other"]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.contains("mend the file"), "{complaint}");
}

#[test]
fn a_preview_shows_what_is_trained_and_writes_nothing() {
    let place = Place::empty();
    let rows =
        [json!({"messages": []}), json!({"messages": turn("Hi\u{1b}[2J", "Ho")}), json!({"messages": turn("a", "b")})];
    place.write("rows.jsonl", lines(&rows));
    let output = place.output(&["chat", "rows.jsonl", "--preview", "1"]);
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && found.contains("line 1: refused, no-assistant-turn"), "{found}");
    assert!(found.contains("␁user␂Hi␛[2J␃␁assistant␂⟦Ho␃⟧"), "{found}");
    assert!(!found.contains("line 3"), "{found}");
    assert_eq!(files(place.dir.path()).len(), 1);
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_first_row() {
    let place = Place::empty();
    let mark = "\u{feff}";
    place.write("rows.jsonl", format!("{mark}{}", rows(10)));
    let with = chat(&place, &["--max-refused", "0.5"]);
    place.write("rows.jsonl", rows(10));
    assert_eq!(chat(&place, &["--max-refused", "0.5"]), with);
    place.write("in/a.jsonl", format!("{mark}{{\"text\": \"one\"}}\n{{\"text\": \"two\"}}\n"));
    place.write("pipeline.toml", "[[source]]\nname = \"a\"\npath = \"in\"\n[output]\npath = \"texts\"\n");
    let report = place.run(&[]);
    assert_eq!((report.documents_out, report.bad_records, report.tokens_out), (2, 0, 6));
}
