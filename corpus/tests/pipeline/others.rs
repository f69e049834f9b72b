//! Nothing that this program did not make is removed, whatever it is called and wherever it lies.

use std::fs;

use crate::texts::json;
use crate::{Place, files};

const PIPELINE: &str = "[[source]]\nname = \"a\"\npath = \"in\"\n[[stage]]\nkind = \"exact\"\n";
const ROW: &str = "{\"prompt\": \"a\", \"response\": \"b\"}\n";
const CHAT: [&str; 4] = ["chat", "rows.jsonl", "--to", "out"];

fn place() -> Place {
    let place = Place::empty();
    place.write("in/a.jsonl", json("1", "", "text"));
    place.write("pipeline.toml", PIPELINE);
    place.write("rows.jsonl", ROW);
    place
}

/// Both commands that write a folder `out`.
fn commands() -> [&'static [&'static str]; 2] {
    [&CHAT, &["run", "pipeline.toml"]]
}

/// The command refuses because of this path, and all files are as they were.
fn refuses(place: &Place, command: &[&str], path: &str) {
    let before = files(place.dir.path());
    let output = place.output(command);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.contains(path), "{command:?} with {path}: {complaint}");
    let after = files(place.dir.path());
    let gone = before.iter().filter(|(name, bytes)| after.get(*name) != Some(bytes)).map(|(name, _)| name);
    assert_eq!(gone.collect::<Vec<_>>(), [""; 0], "{command:?}: {complaint}");
}

fn succeeds(place: &Place, command: &[&str]) {
    let output = place.output(command);
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn folders_beside_an_output_stay() {
    for command in commands() {
        let place = place();
        place.write("out.old/keep.txt", "precious");
        succeeds(&place, command);
        succeeds(&place, command);
        assert_eq!(fs::read(place.path("out.old/keep.txt")).expect("there"), b"precious");
        let names = fs::read_dir(place.dir.path()).expect("list").map(|entry| entry.expect("an entry").file_name());
        let beside = names.filter(|name| name.to_string_lossy().starts_with("out.")).count();
        assert_eq!(beside, 1, "nothing of ours stays beside it");
    }
    for name in ["out.toroid-unfinished", "out.toroid-replaced"] {
        let place = place();
        place.write(&format!("{name}/keep.txt"), "precious");
        refuses(&place, &CHAT, name);
    }
    let place = place();
    place.write("out.toroid-replaced/keep.txt", "precious");
    refuses(&place, &["run", "pipeline.toml"], "out.toroid-replaced");
    assert!(!place.path("work").exists(), "it is said before any work");
}

#[test]
fn an_unfinished_output_of_others_stays() {
    let place = place();
    let plan = place.output(&["plan", "pipeline.toml"]);
    assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));
    let plan = toroid_corpus::plan::Plan::load(&place.path("plan.json")).expect("a plan");
    let name = format!("out.unfinished-{}", plan.layout.digest);
    place.write(&format!("{name}/keep.txt"), "precious");
    refuses(&place, &["run", "pipeline.toml"], &name);
}

#[test]
fn a_file_is_no_empty_folder() {
    for command in commands() {
        let place = place();
        place.write("out", "precious");
        refuses(&place, command, "out: is a file");
        fs::remove_file(place.path("out")).expect("remove");
        std::os::unix::fs::symlink("nowhere", place.path("out")).expect("a link");
        let complaint = String::from_utf8_lossy(&place.output(command).stderr).into_owned();
        assert!(complaint.contains("out: is a link to nothing"), "{complaint}");
        assert!(place.path("out").is_symlink());
    }
    let place = place();
    refuses(&place, &["chat", "rows.jsonl", "--to", "rows.jsonl"], "rows.jsonl: is a file");
}

#[test]
fn reports_of_others_are_not_ours() {
    for report in ["{\"categories\": []}", "[]", "no JSON", "{\"made_by\": \"somebody\"}"] {
        for command in commands() {
            let place = place();
            place.write("out/report.json", report);
            refuses(&place, command, "name another");
        }
    }
    // Neither of one command for the other.
    let place = place();
    succeeds(&place, &CHAT);
    refuses(&place, &["run", "pipeline.toml"], "output.path");
    fs::remove_dir_all(place.path("out")).expect("remove");
    succeeds(&place, &["run", "pipeline.toml"]);
    refuses(&place, &CHAT, "--to");
    // As the last release wrote it.
    let path = place.path("out/report.json");
    let mut report: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("read")).expect("JSON");
    assert_eq!(report.as_object_mut().expect("an object").remove("made_by"), Some("toroid data run".into()));
    fs::write(&path, report.to_string()).expect("write");
    place.write("in/b.jsonl", json("2", "", "other"));
    assert_eq!(place.run(&[]).documents_out, 2);
}

#[test]
fn a_folder_of_work_is_ours_or_new() {
    for command in [["run", "pipeline.toml"], ["plan", "pipeline.toml"]] {
        for name in ["00-mine", "scratch", "scratch-mine", "tasks-mine", "notes", "lock"] {
            let place = place();
            place.write(&format!("work/{name}"), "precious");
            refuses(&place, &command, "work");
            fs::remove_file(place.path(&format!("work/{name}"))).expect("remove");
            succeeds(&place, &command);
            succeeds(&place, &command);
        }
        // What a file system has from its making.
        let place = place();
        fs::create_dir_all(place.path("work/lost+found")).expect("a folder");
        succeeds(&place, &command);
    }
}
