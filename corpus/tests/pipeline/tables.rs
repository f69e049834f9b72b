//! Parquet files: nested columns by path, row groups, compressions, and what is wrong with some.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use crate::texts::text;
use crate::{Place, files};

const SCHEMA: &str = "message rows {
    optional int64 number;
    required group page { required binary address (STRING); optional binary body (STRING); }
    optional group parts (LIST) { repeated group list { optional binary element (STRING); } }
    optional double score;
}";

/// Rows of which each seventh has no body, in groups of so many.
pub fn write(path: &Path, bodies: &[Vec<u8>], group: usize, compression: Compression) {
    let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
    let properties = WriterProperties::builder().set_compression(compression).set_data_page_size_limit(2_000);
    let file = File::create(path).expect("create");
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).expect("a writer");
    for (n, bodies) in bodies.chunks(group).enumerate() {
        let rows: Vec<u64> = (0..bodies.len()).map(|k| (n * group + k) as u64).collect();
        let has_body = |row: &&u64| !row.is_multiple_of(7);
        let bytes = |text: String| ByteArray::from(text.into_bytes());
        let addresses: Vec<ByteArray> = rows.iter().map(|row| bytes(format!("http://a.org/{row}"))).collect();
        let numbers: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let there = |row: u64, level: i16| if has_body(&&row) { level } else { level - 1 };
        let body_levels: Vec<i16> = rows.iter().map(|row| there(*row, 1)).collect();
        let body_values: Vec<ByteArray> = rows
            .iter()
            .zip(bodies)
            .filter(|(row, _)| has_body(row))
            .map(|(_, body)| ByteArray::from(body.clone()))
            .collect();
        // Each row has two parts.
        let parts: Vec<ByteArray> =
            rows.iter().flat_map(|row| [bytes(format!("one {row}")), bytes("two".into())]).collect();
        let (defined, repeated) = (vec![3; parts.len()], [0, 1].repeat(rows.len()));
        let mut group = writer.next_row_group().expect("a group");
        let mut put = |column: usize| {
            let mut writer = group.next_column().expect("a column").expect("there is one more");
            let all = vec![1; rows.len()];
            match column {
                0 => writer.typed::<Int64Type>().write_batch(&numbers, Some(&all), None).map(drop),
                1 => writer.typed::<ByteArrayType>().write_batch(&addresses, None, None).map(drop),
                2 => writer.typed::<ByteArrayType>().write_batch(&body_values, Some(&body_levels), None).map(drop),
                3 => writer.typed::<ByteArrayType>().write_batch(&parts, Some(&defined), Some(&repeated)).map(drop),
                _ => {
                    let scores = vec![0.5; rows.len()];
                    writer.typed::<parquet::data_type::DoubleType>().write_batch(&scores, Some(&all), None).map(drop)
                }
            }
            .expect("written");
            writer.close().expect("closed");
        };
        (0..5).for_each(&mut put);
        group.close().expect("closed");
    }
    writer.close().expect("closed");
}

fn pipeline(text: &str) -> String {
    format!(
        "[[source]]\nname = \"t\"\npath = \"in\"\ntext = \"{text}\"\nid = \"number\"\nurl = \"page.address\"\n[read]\nmax_bad_share = 1.0\n\
         max_document_bytes = 5000\n[output]\nformat = \"jsonl\"\n"
    )
}

#[test]
fn rows_of_parquet_are_documents_by_the_paths_of_their_columns() {
    let place = Place::empty();
    let bodies: Vec<Vec<u8>> = (0..300).map(|n| format!("{n}: {}", text(n, 1 + n % 5)).into_bytes()).collect();
    std::fs::create_dir(place.path("in")).expect("a folder");
    let (gzip, zstd) = (Compression::GZIP(GzipLevel::default()), Compression::ZSTD(ZstdLevel::default()));
    for (name, compression) in [("a", Compression::SNAPPY), ("b", gzip), ("c", zstd), ("d", Compression::UNCOMPRESSED)]
    {
        write(&place.path(&format!("in/{name}.parquet")), &bodies, 80, compression);
    }
    place.write("pipeline.toml", pipeline("page.body"));
    let report = place.run(&[]);
    let without = (0..300u64).filter(|n| n.is_multiple_of(7)).count() as u64;
    assert_eq!((report.documents_read, report.bad_records), (4 * (300 - without), 4 * without));
    let written = place.text();
    let lines: Vec<serde_json::Value> =
        written.lines().map(|line| serde_json::from_str(line).expect("an object")).collect();
    for line in &lines {
        let row: usize = line["key"].as_str().and_then(|key| key.parse().ok()).expect("a number");
        assert_eq!(line["text"].as_str().map(str::as_bytes), Some(&bodies[row][..]), "row {row}");
        assert_eq!(line["url"].as_str(), Some(format!("http://a.org/{row}").as_str()));
        assert!(line["id"].as_str().is_some_and(|id| id.ends_with(&format!(".parquet#{row}"))), "{line}");
    }
    // Cut within files, at row groups, and within those.
    let expected = files(&place.path("out"));
    for piece in ["20K", "3K"] {
        std::fs::remove_dir_all(place.path("work")).expect("remove");
        assert_eq!(place.run(&["--piece", piece]), report);
        assert!(files(&place.path("out")) == expected, "{piece}");
    }

    place.write("pipeline.toml", pipeline("parts"));
    assert_eq!(place.run(&[]).documents_read, 1200);
    assert!(place.text().contains("\"text\":\"one 17\\ntwo\""));
    // Numbers are texts, too, and other types are none.
    place.write("pipeline.toml", pipeline("number"));
    assert_eq!(place.run(&[]).documents_read, 1200);
    place.write("pipeline.toml", pipeline("score"));
    let report = place.run(&[]);
    assert_eq!((report.documents_read, report.bad_records), (0, 4));
    assert!(bad(&place).contains("has neither texts nor whole numbers"), "{}", bad(&place));
}

fn bad(place: &Place) -> String {
    std::fs::read_to_string(place.path("out/ledger/bad.jsonl")).expect("bad records")
}

#[test]
fn damaged_tables_are_counted_and_what_is_whole_is_read() {
    let place = Place::empty();
    let mut bodies: Vec<Vec<u8>> = (0..40).map(|n| format!("{n}: {}", text(n, 2)).into_bytes()).collect();
    bodies[3] = b"Latin-1: caf\xe9".to_vec();
    bodies[5] = vec![b'x'; 6_000];
    std::fs::create_dir(place.path("in")).expect("a folder");
    write(&place.path("in/a.parquet"), &bodies, 20, Compression::SNAPPY);
    let whole = std::fs::read(place.path("in/a.parquet")).expect("read");
    place.write("in/cut.parquet", &whole[..whole.len() / 2]);
    place.write("in/empty.parquet", b"");
    place.write("in/garbage.parquet", b"PAR1 and no more PAR1");
    place.write("pipeline.toml", pipeline("page.body"));
    let report = place.run(&[]);
    let bad = bad(&place);
    assert_eq!(report.documents_read, 40 - 6 - 2, "{bad}");
    let check = |expected: &str| assert!(bad.contains(expected), "{expected}: {bad}");
    check("\"file\":\"a.parquet\",\"position\":3,\"reason\":\"invalid UTF-8 at byte 12\"");
    check("\"position\":5,\"reason\":\"longer than read.max_document_bytes = 5000\"");
    check("\"file\":\"cut.parquet\",\"position\":0,\"reason\":\"cannot be read as Parquet");
    check("\"file\":\"empty.parquet\",\"position\":0,\"reason\":\"cannot be read as Parquet");
    check("\"file\":\"garbage.parquet\",\"position\":0");
    // A byte changed anywhere: rows, bad records, and never a crash.
    for n in 0..60 {
        let mut changed = whole.clone();
        let at = (toroid_corpus::doc::mix(n) % whole.len() as u64) as usize;
        changed[at] ^= 1 << (n % 8);
        place.write(&format!("in/changed-{n}.parquet"), changed);
    }
    place.run(&[]);
}

#[test]
fn a_column_of_more_than_two_gigabytes_in_a_row_group_is_read_row_by_row() {
    let place = Place::empty();
    std::fs::create_dir(place.path("in")).expect("a folder");
    let path = place.path("in/large.parquet");
    let schema = Arc::new(parse_message_type("message rows { required binary body (STRING); }").expect("a schema"));
    let file = File::create(&path).expect("create");
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).expect("a writer");
    let mut group = writer.next_row_group().expect("a group");
    let mut column = group.next_column().expect("a column").expect("there is one");
    // The dictionary has each body once, so the file is small.
    let same = vec![ByteArray::from(vec![b'x'; 100_000]); 1_000];
    for _ in 0..22 {
        column.typed::<ByteArrayType>().write_batch(&same, None, None).expect("written");
    }
    let last = [ByteArray::from(b"the last one".to_vec())];
    column.typed::<ByteArrayType>().write_batch(&last, None, None).expect("written");
    column.close().expect("closed");
    let num_bytes = group.close().expect("closed").total_byte_size();
    writer.close().expect("closed");
    assert!(std::fs::metadata(&path).expect("there").len() < 1 << 20, "{num_bytes}");
    place.write("pipeline.toml", pipeline("body"));
    let report = place.run(&["--memory", "64M", "--threads", "1"]);
    assert_eq!((report.documents_read, report.bad_records), (1, 22_000));
    assert!(place.text().contains("the last one"));
}
