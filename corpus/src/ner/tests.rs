//! What a small model learns, and that its file says the same.

use super::conll::Sentence as Annotated;
use super::train::{Options, train};
use super::*;

/// Sentences of few forms with many names in them.
fn sentences(num: u64, seed: u64) -> Vec<Annotated> {
    const FIRST: [&str; 8] = ["Ada", "Grace", "Alan", "Edsger", "Barbara", "Niklaus", "Frances", "Leslie"];
    const LAST: [&str; 8] = ["Lovelace", "Hopper", "Turing", "Dijkstra", "Liskov", "Wirth", "Allen", "Lamport"];
    const CITY: [&str; 6] = ["London", "Paris", "New York", "Oslo", "Rio de Janeiro", "Kyoto"];
    const FIRM: [&str; 4] = ["Acme Corp", "Globex Inc", "Initech Ltd", "Umbrella Bank"];
    const FORMS: [&str; 6] = [
        "O:Yesterday P:? O:met P:? .",
        "P:? O:lives O:in L:? .",
        "O:The O:office O:of G:? O:in L:? O:is O:closed .",
        "O:Dear P:? , O:your O:card O:is O:ready .",
        "O:We O:have O:no O:names O:on Mondays .",
        "G:? O:hired P:? O:in L:? .",
    ];
    let draw = |n: u64, k: u64, len: usize| (crate::doc::mix(seed ^ (n * 31 + k)) % len as u64) as usize;
    let sentence = |n: u64| {
        let mut sentence = Annotated::default();
        for (k, part) in FORMS[draw(n, 0, FORMS.len())].split(' ').enumerate() {
            let k = k as u64;
            let (entity, text) = match part.rsplit_once(':') {
                Some(("P", _)) => {
                    let names = (FIRST[draw(n, k + 1, 8)], LAST[draw(n, k + 9, 8)]);
                    (Some(Entity::Person), format!("{} {}", names.0, names.1))
                }
                Some(("L", _)) => (Some(Entity::Location), CITY[draw(n, k + 2, CITY.len())].to_owned()),
                Some(("G", _)) => (Some(Entity::Organization), FIRM[draw(n, k + 3, FIRM.len())].to_owned()),
                Some((_, word)) => (None, word.to_owned()),
                None => (None, part.to_owned()),
            };
            for (n, word) in text.split(' ').enumerate() {
                sentence.words.push(word.to_owned());
                sentence.tags.push(entity.map_or(OUTSIDE, |entity| tag(entity, n == 0)));
            }
        }
        sentence
    };
    (0..num).map(sentence).collect()
}

fn options() -> Options {
    Options { num_epochs: 5, min_count: 1, seed: 1, trained_on: "sentences of a test".into() }
}

#[test]
fn a_model_finds_names_in_sentences_that_it_has_not_seen() {
    let places = Gazetteer::of_lines("places", "Rio de Janeiro\nOslo\n");
    let model = train(&sentences(400, 1), vec![places], &options()).expect("trained");
    let scores = score(&model, &sentences(200, 77));
    for entity in Entity::ALL {
        assert!(scores[&entity].f1() > 0.98, "{entity:?}: {:?}", scores[&entity]);
    }
    let text = "\u{1f600} Dear Grace Lovelace, the office of Acme Corp in Rio de Janeiro is closed. Barbara Wirth lives in Oslo.";
    let found: Vec<(Entity, &str)> =
        model.find(text).into_iter().map(|name| (name.entity, &text[name.span.clone()])).collect();
    let expected = [
        (Entity::Person, "Grace Lovelace"),
        (Entity::Organization, "Acme Corp"),
        (Entity::Location, "Rio de Janeiro"),
        (Entity::Person, "Barbara Wirth"),
        (Entity::Location, "Oslo"),
    ];
    assert_eq!(found, expected);
    assert!(model.find("").is_empty() && model.find("no capital, no name\n\n...").is_empty());
}

#[test]
fn the_same_text_gives_the_same_file_and_a_changed_file_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = |name: &str| dir.path().join(name);
    for name in ["a", "b"] {
        let places = Gazetteer::of_lines("places", "Kyoto\nNew York\n");
        train(&sentences(100, 1), vec![places], &options()).expect("trained").save(&path(name)).expect("saved");
    }
    let mut bytes = std::fs::read(path("a")).expect("read");
    assert!(bytes == std::fs::read(path("b")).expect("read"));
    let model = Model::load(&path("a")).expect("loaded");
    assert_eq!(model.trained_on, "sentences of a test");
    assert_eq!(model, train(&sentences(100, 1), model.gazetteers.clone(), &options()).expect("trained"));
    for at in (0..bytes.len()).step_by(101) {
        bytes[at] ^= 4;
        std::fs::write(path("c"), &bytes).expect("write");
        assert!(Model::load(&path("c")).is_err(), "byte {at}");
        bytes[at] ^= 4;
        std::fs::write(path("c"), &bytes[..at]).expect("write");
        assert!(Model::load(&path("c")).is_err(), "cut at {at}");
    }
}

#[test]
fn annotated_text_is_read_in_the_forms_that_there_are() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x");
    let read = |text: &str| {
        std::fs::write(&path, text).expect("write");
        conll::read(&path)
    };
    let tags = |text: &str| read(text).expect("annotated").into_iter().map(|s| s.tags).collect::<Vec<_>>();
    let (begin, inside, place) = (tag(Entity::Person, true), tag(Entity::Person, false), tag(Entity::Location, true));
    // IO, as CoNLL 2003 has it at first; BIO; BIOES; by other names, and what is not looked for.
    assert_eq!(
        tags("-DOCSTART- O\n\nAda I-PER\nLovelace I-PER\nB-PER B-PER\n\n. O\n"),
        [vec![begin, inside, begin], vec![0]]
    );
    assert_eq!(tags("Ada\tNN\tB-PERSON\nL\tNN\tI-PERSON\nOslo\tNN\tB-GPE\n"), [vec![begin, inside, place]]);
    assert_eq!(tags("Ada B-PER\nL E-PER\nGrace S-PER\nGerman B-MISC\n"), [vec![begin, inside, begin, 0]]);
    assert!(read("Ada\n").expect_err("no tag").to_string().contains("line 1: a word without a tag"));
    assert!(read("\n").expect_err("nothing").to_string().contains("no annotated sentence"));
    assert!(read("Ada nonsense\n").expect_err("no tag").to_string().contains("`nonsense` is no tag"));
}

#[test]
fn hostile_texts_take_linear_time() {
    let places = Gazetteer::of_lines("places", "A A A A\nRio de Janeiro\n");
    let model = train(&sentences(100, 1), vec![places], &options()).expect("trained");
    for text in [
        "A ".repeat(1 << 18),
        "A".repeat(1 << 20),
        "A.".repeat(1 << 19),
        "A'".repeat(1 << 19),
        "Rio de ".repeat(1 << 17),
    ] {
        // A quadratic step would take minutes for this much.
        model.find(&text);
    }
}
