//! Tasks of a plan write what one process writes, in whatever order, number and place they are done (P-1 to P-3).

use std::collections::BTreeMap;
use std::process::{Child, Stdio};

use toroid_corpus::doc::mix;
use toroid_corpus::plan::Plan;

use crate::same_bytes::place;
use crate::texts::{json, text};
use crate::{Place, files};

impl Place {
    fn plan(&self, arguments: &[&str]) -> Plan {
        let output = self.output(&[&["plan", "pipeline.toml", "--memory", "64M"], arguments].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Plan::load(&self.path("plan.json")).expect("a plan")
    }

    fn task(&self, id: &str, threads: &str) -> Child {
        let arguments = ["task", "plan.json", id, "--memory", "128M", "--threads", threads];
        self.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start")
    }
}

/// The output has these files; otherwise it is said which differ.
fn same_files(place: &Place, expected: &BTreeMap<String, Vec<u8>>) {
    let found = files(&place.path("out"));
    let names = found.keys().chain(expected.keys()).filter(|name| found.get(*name) != expected.get(*name));
    assert_eq!(names.collect::<Vec<_>>(), [""; 0]);
}

/// What it prints, which must be a success.
fn end(child: Child) -> String {
    let output = child.wait_with_output().expect("wait");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// A pipeline with all stages, and what one process makes of it.
fn expected() -> (Place, BTreeMap<String, Vec<u8>>) {
    let place = place();
    place.run(&["--threads", "1"]);
    let expected = files(&place.path("out"));
    for folder in ["work", "out"] {
        std::fs::remove_dir_all(place.path(folder)).expect("remove");
    }
    (place, expected)
}

#[test]
fn tasks_write_what_one_process_writes_also_twice_at_once_and_killed() {
    let (place, expected) = expected();
    let plan = place.plan(&["--shards", "3", "--piece", "200K"]);
    let complaint = place.task("01-url.keys.0", "1").wait_with_output().expect("wait");
    let complaint = String::from_utf8_lossy(&complaint.stderr).into_owned();
    assert!(complaint.contains("01-url.keys.0 begins when 00-read.done.0 is done"), "{complaint}");
    let (mut num_killed, mut seed) = (0, 0u64);
    for step in &plan.steps {
        let mut ids: Vec<&str> =
            plan.tasks.iter().filter(|task| task.step == step.name).map(|task| task.id.as_str()).collect();
        ids.sort_by_key(|id| mix(id.len() as u64 ^ u64::from(id.as_bytes()[id.len() - 1])));
        for id in ids {
            seed += 1;
            // Some are killed at any time first, and all but a few are done twice at once.
            if seed.is_multiple_of(3) {
                let mut child = place.task(id, "1");
                let spin = (0..mix(seed) % 3_000_000).fold(0, |sum: u64, n| sum ^ mix(n));
                std::hint::black_box(spin);
                child.kill().expect("kill");
                num_killed += u32::from(!child.wait().expect("wait").success());
            }
            let both = [place.task(id, "1"), place.task(id, "2")].map(end);
            assert!(both.iter().all(|said| said.contains(&format!("{id}: "))), "{both:?}");
        }
    }
    println!("{} tasks, {num_killed} killed", plan.tasks.len());
    assert!(num_killed > 5);
    same_files(&place, &expected);
    // Late, when what it was made of is gone.
    assert!(end(place.task("02-exact.keys.1", "1")).contains("was done"));
    let folders =
        std::fs::read_dir(place.path("work")).expect("list").map(|entry| entry.expect("an entry").file_name());
    let scratch = folders.filter(|name| name.to_string_lossy().starts_with("scratch")).count();
    assert_eq!(scratch, 0, "what killed tasks sorted is gone");
}

#[test]
fn what_dead_tasks_left_of_their_files_is_not_in_the_output() {
    let place = Place::empty();
    place.write("in/a.jsonl", (0..30).map(|n| json("", "", &text(n, 3))).collect::<String>());
    place.write("pipeline.toml", "[[source]]\nname = \"a\"\npath = \"in\"\n");
    place.run(&[]);
    let expected = files(&place.path("out"));
    for folder in ["work", "out"] {
        std::fs::remove_dir_all(place.path(folder)).expect("remove");
    }
    let plan = place.plan(&[]);
    let (last, before) = plan.tasks.split_last().expect("tasks");
    before.iter().for_each(|task| drop(end(place.task(&task.id, "1"))));
    let entries = std::fs::read_dir(place.dir.path()).expect("list").map(|entry| entry.expect("an entry").file_name());
    let unfinished = entries.map(|name| name.to_string_lossy().into_owned()).find(|name| name.starts_with("out."));
    let unfinished = unfinished.expect("the output is begun");
    for folder in ["text", "ledger"] {
        place.write(&format!("{unfinished}/{folder}/.unfinished-77-00000.txt"), "half of a te");
    }
    end(place.task(&last.id, "1"));
    same_files(&place, &expected);
}

#[test]
fn workers_share_a_plan_and_who_comes_again_goes_on() {
    let (place, expected) = expected();
    place.plan(&["--shards", "4", "--piece", "150K"]);
    // As an array of Slurm starts them.
    let worker = |number: &str| {
        let mut command = std::process::Command::new("bash");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/data/slurm_array.sh"));
        command.env("PLAN", place.path("plan.json")).env("TOROID_DATA", crate::PROGRAM).env("TOROID_MEMORY", "64M");
        command.env("SLURM_ARRAY_TASK_ID", number).env("SLURM_ARRAY_TASK_MIN", "0").env("SLURM_ARRAY_TASK_COUNT", "3");
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start")
    };
    let mut lost = worker("1");
    let [first, last] = ["0", "2"].map(worker);
    // It has begun: its own first task is of the first step.
    let mut line = [0];
    std::io::Read::read_exact(lost.stdout.as_mut().expect("piped"), &mut line).expect("a word");
    lost.kill().expect("kill");
    lost.wait().expect("wait");
    [worker("1"), first, last].into_iter().for_each(|worker| drop(end(worker)));
    same_files(&place, &expected);
    // One process finds all done, and goes on from what tasks left.
    let report = place.run(&["--shards", "4"]);
    assert!(report.documents_out > 0);
    same_files(&place, &expected);
    std::fs::remove_dir_all(place.path("out")).expect("remove");
    let plan = place.plan(&["--shards", "4"]);
    assert!(
        plan.tasks
            .iter()
            .filter(|task| !task.step.contains("read"))
            .all(|task| plan.is_done(task) != task.step.contains("write"))
    );
    for task in &plan.tasks {
        end(place.task(&task.id, "1"));
    }
    same_files(&place, &expected);
}

#[test]
fn a_source_that_changed_after_the_plan_is_not_read() {
    let place = place();
    let plan = place.plan(&["--shards", "2"]);
    place.write("web/a.jsonl", "{\"text\": \"another one\"}\n");
    let id = &plan.tasks[0].id;
    let output = place.task(id, "1").wait_with_output().expect("wait");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && complaint.contains("has changed since the sources were listed"), "{complaint}");
    let nothing = place.task("7-nothing", "1").wait_with_output().expect("wait");
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("there is no task `7-nothing`"));
}
