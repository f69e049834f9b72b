//! What goes as a double is one, and doubles do not stay: against all pairs.

use std::collections::{BTreeMap, BTreeSet};

use crate::texts::{edited, json, sentence, text, word};
use crate::{Place, files};

const MINHASH: &str = "[[source]]\nname = \"a\"\npath = \"a.jsonl\"\n[[stage]]\nkind = \"minhash\"\n";

/// Shingles as sets of words, with nothing of the program's own.
fn shingles(text: &str) -> BTreeSet<Vec<String>> {
    let words: Vec<String> = text
        .to_lowercase()
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect();
    if words.len() < 5 {
        return BTreeSet::from([words]);
    }
    words.windows(5).map(<[String]>::to_vec).collect()
}

fn jaccard(a: &BTreeSet<Vec<String>>, b: &BTreeSet<Vec<String>>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both) as f64
}

#[test]
fn near_duplicates_are_those_of_all_pairs() {
    let place = Place::empty();
    // Families: a text, and the same with more and more words changed.
    let texts: Vec<String> =
        (0..600).map(|n| edited(&text(n / 6, 12 + n / 6 % 7), n, [0, 3, 10, 20, 40, 90][(n % 6) as usize])).collect();
    let lines = texts.iter().enumerate().map(|(n, text)| json(&format!("{n}"), "", text));
    place.write("a.jsonl", lines.collect::<String>());
    place.write("pipeline.toml", MINHASH);
    let report = place.run(&[]);
    let sets: Vec<_> = texts.iter().map(|text| shingles(text)).collect();
    let rows = place.rows("01-minhash");
    let ids: BTreeMap<String, usize> = {
        let mut at = 0;
        let starts = texts.iter().enumerate().map(|(n, text)| {
            let id = format!("a:a.jsonl#{at}");
            at += json(&format!("{n}"), "", text).len();
            (id, n)
        });
        starts.collect()
    };
    let gone: BTreeSet<usize> = rows.iter().map(|row| ids[&row.id]).collect();
    // Precision 1: each is as like the one that stays as its row says, and that one stays (D-4).
    for row in &rows {
        let kept = ids[row.kept.as_ref().expect("one stays")];
        let true_score = jaccard(&sets[ids[&row.id]], &sets[kept]);
        let score = row.score.expect("a score");
        assert!(true_score >= 0.7 && (true_score - score).abs() < 1e-6, "{}: {true_score}, {score}", row.id);
        assert!(!gone.contains(&kept), "{} goes for {kept}, which goes too", row.id);
    }
    // Recall: of those that are alike, one goes, unless both are like nothing that stays.
    let (mut num_alike, mut num_missed) = (0, 0);
    for a in 0..texts.len() {
        for b in 0..a {
            if jaccard(&sets[a], &sets[b]) >= 0.8 {
                num_alike += 1;
                num_missed += u32::from(!gone.contains(&a) && !gone.contains(&b));
            }
        }
    }
    let recall = 1.0 - f64::from(num_missed) / f64::from(num_alike);
    println!("{num_alike} pairs of 0.8 and more, recall {recall:.4}, {} of 600 gone", gone.len());
    assert!(num_alike > 300 && recall >= 0.95);
    assert_eq!(report.documents_out + gone.len() as u64, 600);
}

#[test]
fn texts_shorter_than_a_shingle_are_compared_whole() {
    let place = Place::empty();
    let words = ["cat", "dog", "cat", "...", "...", "Cat!", "two words", "two  WORDS", "words two"];
    place.write("a.jsonl", words.iter().map(|word| json("", "", word)).collect::<String>());
    place.write("pipeline.toml", MINHASH);
    let report = place.run(&[]);
    assert_eq!(report.documents_out, 6);
    let text = place.text();
    let mut left: Vec<&str> = text.split("\n\n").collect();
    left.sort_unstable();
    // The longest stays; what has no words is like nothing.
    assert_eq!(left, ["...", "...", "Cat!", "dog", "two  WORDS", "words two"]);
}

#[test]
fn templated_texts_and_unlike_books_are_no_cluster() {
    let place = Place::empty();
    // They share what stands around them, and less than the threshold.
    let template = text(7, 5);
    let lines = (0..2_000).map(|n| json(&n.to_string(), "", &format!("{template} {} {template}", text(1_000 + n, 12))));
    place.write("a.jsonl", lines.collect::<String>());
    place.write("pipeline.toml", MINHASH);
    assert_eq!(place.run(&[]).documents_out, 2_000);
}

#[test]
fn a_giant_cluster_of_equal_documents_takes_linear_work() {
    let place = Place::empty();
    let same = text(3, 6);
    let lines = (0..100_000).map(|n| json(&n.to_string(), &format!("http://a.org/{}", n / 2), &same));
    place.write("a.jsonl", lines.collect::<String>());
    let stages = ["minhash", "sentences"].map(|kind| format!("[[stage]]\nkind = \"{kind}\"\n")).concat();
    place.write("pipeline.toml", format!("[[source]]\nname = \"a\"\npath = \"a.jsonl\"\n{stages}"));
    let report = place.run(&["--memory", "64M"]);
    assert_eq!(report.documents_out, 1);
    // And of documents that are nearly equal, each by a word of its own.
    let lines = (0..20_000).map(|n| json(&n.to_string(), "", &format!("{same} number{n}")));
    place.write("a.jsonl", lines.collect::<String>());
    assert_eq!(place.run(&["--memory", "64M"]).documents_out, 1);
}

#[test]
fn candidates_that_do_not_fit_in_memory_are_chosen_from_as_if_they_did() {
    let place = Place::empty();
    let near = |n: u64| {
        if n.is_multiple_of(2) {
            let one = edited(&text(n / 8, 6), n, [0, 0, 15][(n % 3) as usize]);
            return json("", "", &format!("{one} And {}.", word(n)));
        }
        // A long sentence, of which each document has a word of its own.
        let many: Vec<String> = (0..150).map(|k| word(n % 500 * 1_000 + k)).collect();
        json("", "", &format!("So {} {} it is. {}", many.join(" "), word(n * 7), text(5_000_000 + n, 2)))
    };
    place.write("a.jsonl", (0..20_000).map(near).collect::<String>());
    place.write("pipeline.toml", format!("{MINHASH}[[stage]]\nkind = \"sentences\"\ndistance = 7\n"));
    let report = place.run(&["--memory", "2G"]);
    let expected = files(&place.path("out"));
    for stage in &report.stages {
        let rows = stage.counts.rules.iter().find(|(rule, _)| rule.starts_with("near-")).map_or(0, |(_, r)| r.rows);
        assert!(rows > 1_000, "{}", report.table());
    }
    std::fs::remove_dir_all(place.path("work")).expect("remove");
    assert_eq!(place.run(&["--memory", "64M", "--shards", "3"]), report);
    assert!(files(&place.path("out")) == expected);
}

#[test]
fn versions_that_all_stay_are_more_than_are_compared_and_the_same_ones_go_whatever_cuts_them() {
    let place = Place::empty();
    // Versions of one text: most are alike by less than the threshold and stay, and share buckets.
    let original = text(1, 30);
    let versions = (0..1_500).map(|n| json("", "", &edited(&original, n, 30)));
    place.write("a.jsonl", versions.collect::<String>());
    place.write("pipeline.toml", format!("{MINHASH}[[stage]]\nkind = \"sentences\"\n"));
    let report = place.run(&["--threads", "1", "--memory", "2G"]);
    let expected = files(&place.path("out"));
    let counts = &report.stages[0].counts;
    let num_left_out: u64 = counts.notes.values().sum();
    assert!(num_left_out > 1_000 && counts.docs_out > 750 && counts.docs_out < 1_500, "{counts:?}");
    for options in [&["--threads", "3", "--shards", "3", "--piece", "200K"][..], &["--threads", "2", "--memory", "64M"]]
    {
        std::fs::remove_dir_all(place.path("work")).expect("remove");
        assert_eq!(place.run(options), report, "{options:?}");
        assert!(files(&place.path("out")) == expected, "{options:?}");
    }
}

#[test]
fn the_same_address_is_found_and_the_preferred_source_stays() {
    let place = Place::empty();
    place.write(
        "a.jsonl",
        json("1", "http://Example.org:80/x/?utm_source=y#top", "long text of the first one")
            + &json("2", "", "no address")
            + &json("3", "", "no address"),
    );
    place.write("b.jsonl", json("1", "https://example.org/x", "short"));
    place.write("pipeline.toml", "[[source]]\nname = \"a\"\npath = \"a.jsonl\"\npriority = 1\n[[source]]\nname = \"b\"\npath = \"b.jsonl\"\n[[stage]]\nkind = \"url\"\n[[stage]]\nkind = \"exact\"\n");
    let report = place.run(&[]);
    assert_eq!(report.documents_out, 2);
    let rows = place.rows("01-url");
    assert_eq!((rows[0].id.as_str(), rows[0].kept.as_deref()), ("a:a.jsonl#0", Some("b:b.jsonl#0")));
    assert_eq!(place.rows("02-exact").len(), 1);
}

#[test]
fn sentences_go_where_they_stand_again_and_code_stays() {
    let place = Place::empty();
    let shared = sentence(5);
    let near = shared.replacen(' ', ", ", 1);
    let code = "fn main() { call_this_with(many, words, and, more, words, again, and, again); }";
    let one = format!("{} {shared} {}\n{code}\n", text(1, 4), text(2, 3));
    let other = format!("{} {near} {}\n{code}\n", text(3, 2), text(4, 2));
    let little = format!("{shared} A tail.");
    place.write("a.jsonl", json("1", "", &one) + &json("2", "", &other) + &json("3", "", &little));
    place.write("pipeline.toml", "[[source]]\nname = \"a\"\npath = \"a.jsonl\"\n[[stage]]\nkind = \"sentences\"\n");
    let report = place.run(&[]);
    let rows = place.rows("01-sentences");
    assert_eq!(report.documents_out, 2, "{rows:?}");
    assert_eq!(rows.len(), 2);
    let cut = &other[rows[0].start as usize..rows[0].end as usize];
    assert_eq!((cut.trim(), rows[0].rule.as_str(), rows[0].whole), (near.as_str(), "same-sentence", false));
    assert_eq!((rows[1].rule.as_str(), rows[1].whole, rows[1].score), ("too-little-left", true, Some(2.0)));
    assert_eq!(place.text().matches(code).count(), 2);
    assert_eq!(place.text().matches(&shared).count(), 1);
}
