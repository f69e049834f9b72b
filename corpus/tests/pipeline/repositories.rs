//! Source repositories, as folders and as archives: by file, with language and licence.

use std::io::Write as _;

use crate::Place;
use crate::texts::archive;

const PIPELINE: &str = "[[source]]\nname = \"code\"\npath = \"in\"\nformat = \"repository\"\n[read]\nmax_bad_share = 0.5\nmax_document_bytes = 100000\n";

/// The files of a repository: sources, what a program made, what others wrote, pictures, a file in Latin-1.
fn repository() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (".gitattributes", b"*.pb.rs linguist-generated\nvendor/** linguist-vendored\n".to_vec()),
        ("src/main.rs", b"// SPDX-License-Identifier: MIT\nfn main() {}\n".to_vec()),
        ("src/api.pb.rs", b"struct Generated;\n".to_vec()),
        ("vendor/zlib/zlib.c", b"int inflate();\n".to_vec()),
        ("tools/run", b"#!/usr/bin/env python3\nprint('GPL')\n# GNU General Public License version 3 of\n".to_vec()),
        ("logo.png", b"\x89PNG\r\n\0\0\0".to_vec()),
        ("large.bin", vec![0; 200_000]),
        ("large.txt", b"word ".repeat(40_000)),
        ("latin.txt", b"caf\xe9".to_vec()),
        ("empty.py", Vec::new()),
        ("README.md", b"A project.\n".to_vec()),
    ]
}

/// What the output says of each document: id, key, language, licence.
fn documents(place: &Place) -> Vec<[String; 4]> {
    let field = |line: &serde_json::Value, name: &str| line[name].as_str().unwrap_or("").to_owned();
    let text = place.text();
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("an object"));
    let mut found: Vec<[String; 4]> =
        lines.map(|line| ["id", "key", "language", "license"].map(|name| field(&line, name))).collect();
    found.sort();
    found
}

#[test]
fn folders_of_source_code_are_read_by_file() {
    let place = Place::empty();
    for (name, contents) in repository() {
        place.write(&format!("in/{name}"), contents);
    }
    place.write("in/.git/config", "[core]");
    place.write("pipeline.toml", format!("{PIPELINE}[output]\nformat = \"jsonl\"\n"));
    let report = place.run(&[]);
    let found = documents(&place);
    let rows: Vec<(&str, &str, &str)> =
        found.iter().map(|[id, _, language, license]| (id.as_str(), language.as_str(), license.as_str())).collect();
    assert_eq!(
        rows,
        [
            ("code:.gitattributes", "", ""),
            ("code:README.md", "", ""),
            ("code:src/main.rs", "rust", "MIT"),
            ("code:tools/run", "python", "GPL-3.0-only"),
        ]
    );
    assert_eq!((report.bad_records, report.other_records, report.files_left_out), (2, 5, 1));
    let bad = std::fs::read_to_string(place.path("out/ledger/bad.jsonl")).expect("bad records");
    assert!(bad.contains("\"file\":\"latin.txt\"") && bad.contains("\"file\":\"large.txt\""), "{bad}");

    let all = PIPELINE.replace("[read]", "skip_generated = false\nskip_vendored = false\n[read]");
    let stage = "[[stage]]\nkind = \"license\"\nallow = [\"MIT\"]\n";
    place.write("pipeline.toml", format!("{all}{stage}[output]\nformat = \"jsonl\"\n"));
    assert_eq!(place.run(&[]).documents_read, 6);
    assert_eq!(documents(&place).len(), 5);
    assert_eq!(place.rows("01-license")[0].rule, "GPL-3.0-only");
}

#[test]
fn archives_give_the_files_that_their_folder_gives_whatever_the_pieces() {
    let place = Place::empty();
    // Its attributes stand behind what they are about.
    let members = repository().into_iter().rev().map(|(name, contents)| (format!("project-1.0/{name}"), contents));
    let archive = archive(members);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).expect("in memory");
    place.write("in/project.tar.gz", gzip.finish().expect("in memory"));
    place.write("in/cut.tar", &archive[..archive.len() - 1024 - 512 - 200]);
    place.write("pipeline.toml", format!("{PIPELINE}[output]\nformat = \"jsonl\"\n"));
    let report = place.run(&[]);
    let found = documents(&place);
    let of = |file: &str| -> Vec<(&str, &str, &str)> {
        let of_file = found.iter().filter(|[id, ..]| id.starts_with(&format!("code:{file}#")));
        let mut rows: Vec<_> =
            of_file.map(|[_, key, language, license]| (key.as_str(), language.as_str(), license.as_str())).collect();
        rows.sort_unstable();
        rows
    };
    let expected = [
        ("project-1.0/.gitattributes", "", ""),
        ("project-1.0/README.md", "", ""),
        ("project-1.0/src/main.rs", "rust", "MIT"),
        ("project-1.0/tools/run", "python", "GPL-3.0-only"),
    ];
    assert_eq!(of("project.tar.gz"), expected);
    // Without its attributes, which were cut off, nothing says what was made by a program.
    assert_eq!(of("cut.tar").len(), 5, "{found:?}");
    assert_eq!(report.bad_records, 5);
    let bad = std::fs::read_to_string(place.path("out/ledger/bad.jsonl")).expect("bad records");
    assert!(bad.contains("project-1.0/latin.txt: invalid UTF-8") && bad.contains("the archive is cut"), "{bad}");
    // Gone on with in the middle of an archive.
    let expected = crate::files(&place.path("out"));
    std::fs::remove_dir_all(place.path("work")).expect("remove");
    assert_eq!(place.run(&["--piece", "1K", "--threads", "1"]), report);
    assert!(crate::files(&place.path("out")) == expected);
}
