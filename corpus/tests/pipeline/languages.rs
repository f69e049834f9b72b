//! Prose stays by its language; code stays.

use crate::texts::json;
use crate::{Place, files};

#[test]
fn documents_in_other_languages_go_and_code_stays() {
    let place = Place::empty();
    let english = "Nobody knows today what the weather will be like in a month, and that is quite all right.";
    let german = "Niemand weiß heute, wie das Wetter in einem Monat sein wird, und das ist auch gut so.";
    let lines = (0..300).map(|n| {
        let text = [english, german, "12 345"][n % 3];
        json(&n.to_string(), "", &format!("{text} {n}"))
    });
    place.write("in/a.jsonl", lines.collect::<String>());
    place.write(
        "in/b.rs",
        "// Niemand weiß heute, wie das Wetter in einem Monat sein wird, und das ist auch gut so.\nfn a() {}\n",
    );
    let pipeline = |more: &str| {
        format!(
            "[[source]]\nname = \"a\"\npath = \"in\"\n[[stage]]\nkind = \"language\"\nkeep = [\"eng\", \"fra\"]\n{more}"
        )
    };
    place.write("pipeline.toml", pipeline(""));
    let report = place.run(&["--threads", "1"]);
    assert_eq!((report.documents_read, report.documents_out), (301, 201), "{}", report.table());
    assert!(
        !place
            .text()
            .contains("Niemand weiß heute, wie das Wetter in einem Monat sein wird, und das ist auch gut so. ")
    );
    let rows = place.rows("01-language");
    assert!(rows.iter().all(|row| row.rule == "deu" && row.score.is_some_and(|score| score > 0.5)), "{:?}", rows[0]);
    let expected = files(&place.path("out"));
    std::fs::remove_dir_all(place.path("work")).expect("remove");
    assert_eq!(place.run(&["--threads", "2", "--shards", "3", "--piece", "2K"]), report);
    assert!(files(&place.path("out")) == expected);
    place.write("pipeline.toml", pipeline("keep_unsure = false\n"));
    assert_eq!(place.run(&[]).documents_out, 101);
    assert_eq!(place.rows("01-language").iter().filter(|row| row.rule == "unsure").count(), 100);
}
