//! A study of many small trainings, on a cluster whose parts are killed, and laws from tables that anybody makes.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toroid_testkit::jobs::text_folder;
use toroid_testkit::{Cluster, Patience, Process, root};

use crate::TOROID;

const NUM_TRAININGS: usize = 9;

/// Three budgets and three sizes, of steps that take milliseconds.
fn study() -> String {
    format!(
        "name = 'study'\nbudgets = [6e9, 1e10, 1.6e10]\nlr = [3e-3]\nbatch = [16]\nmin_steps = 5\nat_a_time = 2\n\
         [[size]]\nlayers = 1\n[[size]]\nlayers = 2\n[[size]]\nlayers = 4\n\
         [job]\npreset = 'micro'\ndata = {{ path = {:?}, extensions = ['rs'], validation = 0.1 }}\n\
         batch = {{ micro_batch = 4 }}\neval = {{ micro_batches = 4 }}\n",
        text_folder()
    )
}

/// Lines of the table without its first, ascending.
fn rows(table: &Path) -> Vec<String> {
    let text = fs::read_to_string(table).unwrap_or_default();
    let mut rows: Vec<String> = text.lines().skip(1).map(String::from).collect();
    rows.sort();
    rows
}

/// Until the table has so many.
fn wait_for_rows(table: &Path, num_rows: usize) -> Result<()> {
    let mut patience = Patience::new();
    while rows(table).len() < num_rows {
        patience.look(|| rows(table).len() as u64).with_context(|| format!("wait for {num_rows} trainings"))?;
    }
    Ok(())
}

/// The command is killed, then the coordinator under the second one, then a worker: each training is made once, and what was found stays.
#[test]
fn a_study_goes_on_where_it_was() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 2, 1)?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("study.toml");
    fs::write(&file, study())?;
    let (file, url) = (file.to_str().context("name the file")?, cluster.url());
    let listed: Value = serde_json::from_str(&TOROID.run_ok(&["scale", file, "--dry-run", "-o", "json"])?)?;
    ensure!(listed.as_array().map(Vec::len) == Some(NUM_TRAININGS), "{listed:#}");
    let table = folder.path().join("study/runs.csv");
    let command = ["scale", file, "--no-hold-out", "--coordinator", &url];
    let first = Process(TOROID.command().args(command).spawn()?);
    wait_for_rows(&table, 2)?;
    drop(first);
    let before = rows(&table);
    let mut second = Process(TOROID.command().args(command).spawn()?);
    wait_for_rows(&table, before.len() + 2)?;
    let beside = TOROID.run(&command)?;
    let said = String::from_utf8_lossy(&beside.stderr);
    ensure!(!beside.status.success() && said.contains("is another `toroid scale` at work"), "{said}");
    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    wait_for_rows(&table, before.len() + 4)?;
    let worker = cluster.connected().first().context("find a worker")?.worker_id.clone();
    cluster.kill_worker(&worker)?;
    second.0.wait()?;
    let after = rows(&table);
    ensure!(after.len() == NUM_TRAININGS, "{after:#?}");
    ensure!(before.iter().all(|row| after.contains(row)), "{before:#?} became {after:#?}");
    let changed = folder.path().join("changed.toml");
    fs::write(&changed, study().replace("3e-3", "4e-3"))?;
    let to = folder.path().join("study");
    let (changed, to) = (changed.to_str().context("name the file")?, to.to_str().context("name the folder")?);
    let other = TOROID.run(&["scale", changed, "--to", to, "--no-hold-out", "--coordinator", &url])?;
    let said = String::from_utf8_lossy(&other.stderr);
    ensure!(!other.status.success() && said.contains("the study was changed") && rows(&table) == after, "{said}");
    let names: BTreeSet<&str> = after.iter().filter_map(|row| row.split(',').next()).collect();
    ensure!(names.len() == NUM_TRAININGS, "each has a row: {after:#?}");
    let jobs: Value =
        serde_json::from_str(&TOROID.run_ok(&["jobs", "-o", "json", "--coordinator", &cluster.url()])?)?;
    ensure!(jobs.as_array().map(Vec::len) == Some(NUM_TRAININGS), "each was made once: {jobs:#}");
    Ok(())
}

#[test]
fn runs_of_a_known_law_give_it_back_and_predict_a_job() -> Result<()> {
    let (irreducible, a, alpha, b, beta) = (1.8, 400.0, 0.34, 1200.0, 0.36);
    let mut table = String::from("parameters,operations_per_token,tokens,loss\n");
    for budget in [1e16f64, 4e16, 1.6e17, 6.4e17] {
        for factor in [0.1, 0.3, 1.0, 3.0, 10.0] {
            let size = factor * (0.1 * budget).sqrt();
            let tokens = budget / size;
            let loss = irreducible + a / size.powf(alpha) + b / tokens.powf(beta);
            writeln!(table, "{},{size},{tokens},{loss}", size / 6.0)?;
        }
    }
    let folder = tempfile::tempdir()?;
    let (csv, to) = (folder.path().join("runs.csv"), folder.path().join("laws"));
    fs::write(&csv, table)?;
    let (csv, to_text) = (csv.to_str().context("name the table")?, to.to_str().context("name the folder")?);
    let answer = TOROID.run_ok(&["scale", "--fit", csv, "--to", to_text, "--compute", "1e20", "-o", "json"])?;
    let answer: Value = serde_json::from_str(&answer)?;
    let law = &answer["scaling"]["law"];
    for (key, expected) in [("irreducible", irreducible), ("size_exponent", alpha), ("token_exponent", beta)] {
        let found = law[key].as_f64().with_context(|| format!("read {key}"))?;
        ensure!((found / expected - 1.0).abs() < 0.01, "{key} is {found}: expected {expected}");
    }
    let error = answer["scaling"]["held_out"]["mean_error"].as_f64().context("read what was held out")?;
    ensure!(error < 1e-3, "the largest budget is off by {error}");
    let text = TOROID.run_ok(&["scale", "--fit", csv, "--compute", "1e20"])?;
    ensure!(text.contains("warning: 1e20 operations are"), "{text}");
    for name in ["laws.json", "budgets.svg", "law.svg", "sizes.svg"] {
        ensure!(to.join(name).is_file(), "{name} is not there");
    }
    let laws = to.join("laws.json");
    let laws = laws.to_str().context("name the laws")?;
    let planned: Value = serde_json::from_str(
        &TOROID.run_ok(&["plan", "--preset", "small", "--tp", "1", "--law", laws, "-o", "json"])?,
    )?;
    ensure!(planned["loss"]["loss"].as_f64().is_some_and(|loss| loss > irreducible), "{planned:#}");
    let plain: Value =
        serde_json::from_str(&TOROID.run_ok(&["plan", "--preset", "small", "--tp", "1", "-o", "json"])?)?;
    ensure!(plain.get("loss").is_none(), "{plain:#}");
    Ok(())
}

/// The one whose figures are in docs/scaling-laws.md.
#[test]
fn the_study_of_the_documentation_is_one() -> Result<()> {
    let root = root().join("docs/scaling");
    let file = root.join("study.toml");
    let listed = TOROID.run_ok(&["scale", file.to_str().context("name the study")?, "--dry-run", "-o", "json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    let names: Option<Vec<&str>> = listed.as_array().map(|all| all.iter().filter_map(|t| t["name"].as_str()).collect());
    let seen: Vec<String> = rows(&root.join("runs.csv"));
    ensure!(names.map(|names| names.len()) == Some(seen.len()), "{listed:#}, and its table has {seen:#?}");
    Ok(())
}

#[test]
fn tables_and_studies_that_are_none_are_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let check = |name: &str, text: &str, command: &[&str], expected: &str| -> Result<()> {
        let file = folder.path().join(name);
        fs::write(&file, text)?;
        let file = file.to_str().context("name the file")?;
        let command: Vec<&str> = command.iter().map(|part| if *part == "FILE" { file } else { part }).collect();
        let output = TOROID.run(&command)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains(expected), "{command:?} said {said}");
        Ok(())
    };
    check("a.csv", "parameters,tokens\n1,2\n", &["scale", "--fit", "FILE"], "there is no column `loss`")?;
    check(
        "b.csv",
        "parameters,tokens,loss\n1e6,1e9,3.0\n",
        &["scale", "--fit", "FILE", "--no-hold-out"],
        "1 runs with 1 sizes",
    )?;
    check(
        "d.csv",
        "parameters,tokens,loss\n1e6,1e9,3.0\n",
        &["scale", "--fit", "FILE"],
        "largest budget, which is held out",
    )?;
    let endless = TOROID.run(&["scale", "--fit", "/dev/zero"])?;
    let said = String::from_utf8_lossy(&endless.stderr);
    ensure!(said.contains("/dev/zero: it has more than"), "{said}");
    check("c.toml", "name = 'x'\n", &["scale", "FILE"], "missing field")?;
    check("laws.json", "{}", &["plan", "--law", "FILE"], "read the laws in")
}
