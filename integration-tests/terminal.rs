//! What scripts and people get from commands of a real cluster: exit codes, JSON on standard output and nothing else, an incident explained.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use toroid_proto::JobState;
use toroid_testkit::Cluster;
use toroid_testkit::jobs::endless_job;

use crate::TOROID;

fn on(cluster: &Cluster, words: &[&str]) -> Result<Output> {
    let url = cluster.url();
    TOROID.run(&[words, &["--coordinator", &url]].concat())
}

fn check_exit(output: &Output, code: i32, words: &str) -> Result<()> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code), "expected exit code {code}, found {:?}: {stderr}", output.status);
    ensure!(stderr.contains(words), "`{words}` is not in the error: {stderr}");
    Ok(())
}

fn json(output: &Output) -> Result<Value> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn without_a_coordinator_commands_end_with_3_and_without_a_terminal_top_names_another() -> Result<()> {
    let nobody = ["--coordinator", "http://127.0.0.1:1"];
    for words in [&["jobs"][..], &["status", "x"], &["explain", "x"], &["cancel", "x"], &["workers"], &["drain", "w0"]]
    {
        check_exit(&TOROID.run(&[words, &nobody].concat())?, 3, "127.0.0.1:1")?;
    }
    check_exit(&TOROID.run(&["top", "x"])?, 2, "toroid status -w x")?;
    check_exit(&TOROID.run(&["status", "x", "--no-curve"])?, 2, "-o json")?;
    check_exit(&TOROID.run(&["jobs", "--coordinator", "https://127.0.0.1:1"])?, 2, "no CA is named")?;
    Ok(())
}

#[test]
fn a_cluster_answers_in_json_and_explains_a_death() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 3, 1)?;
    check_exit(&on(&cluster, &["status", "x"])?, 5, "there is no job `x`")?;
    check_exit(&on(&cluster, &["drain", "x"])?, 5, "no worker `x` is connected")?;
    let id = cluster.submit(&endless_job((1, 1, 2)))?;
    let job = cluster.wait_for(&id, "some steps", |job| job.committed_step > 3)?;
    let dead = job.places[1].worker_id.clone();
    cluster.kill_worker(&dead)?;
    cluster.wait_for(&id, "the end of the incident", |job| job.incidents.first().is_some_and(|i| i.resolved))?;

    check_exit(&on(&cluster, &["explain", &id, "7"])?, 5, "no incident 7; there are 1 to 1")?;
    let text = String::from_utf8(on(&cluster, &["explain", &id])?.stdout)?;
    for words in ["What happened", &dead, "rung `spare`", "No committed step was lost", "dmesg", "No spare is left"] {
        ensure!(text.contains(words), "`{words}` is not in {text}");
    }
    let explained = json(&on(&cluster, &["explain", &id, "1", "-o", "json"])?)?;
    ensure!(explained["incident"]["rung"] == "spare" && explained["sections"][0]["heading"] == "What happened");

    let step = json(&on(&cluster, &["checkpoint", "now", &id, "-o", "json"])?)?["step"].as_u64();
    let step = step.context("checkpoint now names a step")?;
    cluster.wait_for(&id, "the checkpoint", |job| job.checkpoints.iter().any(|c| c.step == step))?;
    let listed = json(&on(&cluster, &["checkpoint", "list", &id, "-o", "json"])?)?;
    ensure!(listed[0]["fault"].is_null() && listed[0]["job_id"] == id.as_str(), "{listed}");
    let host = json(&on(&cluster, &["cordon", "--host", "h77", "-o", "json"])?)?;
    ensure!(host["host"] == "h77" && host["worker_ids"] == Value::Array(Vec::new()), "{host}");
    on(&cluster, &["uncordon", "--host", "h77"])?;
    check_exit(&on(&cluster, &["uncordon", "--host", "h77"])?, 5, "the host `h77` is not cordoned; nobody is")?;
    let cordoned = json(&on(&cluster, &["cordon", "w77", "--reason", "fan", "-o", "json"])?)?;
    ensure!(cordoned["worker_id"] == "w77" && cordoned["job_id"] == "", "{cordoned}");
    ensure!(json(&on(&cluster, &["uncordon", "w77", "-o", "json"])?)?["reason"] == "fan");
    let cancelled = json(&on(&cluster, &["cancel", &id, "-o", "json"])?)?;
    ensure!(cancelled["id"] == id.as_str(), "{cancelled}");
    let job = cluster.wait_for(&id, "the end", |job| job.state() == JobState::Cancelled)?;
    let step = job.checkpoints.last().context("it was saved")?.step;
    let at = step.to_string();
    let pinned = json(&on(&cluster, &["checkpoint", "pin", &id, &at, "-o", "json"])?)?;
    ensure!(pinned["step"] == step && pinned["path"].as_str().is_some_and(|path| path.ends_with(&at)), "{pinned}");
    // Where `toroid local` has left a job of the same id, it is still the coordinator's that was named.
    let elsewhere = cluster.path().join("elsewhere");
    std::fs::create_dir_all(elsewhere.join(".toroid/coordinator/jobs").join(&id).join("checkpoints"))?;
    let line = ["checkpoint", "list", &id, "--coordinator", &cluster.url()];
    let table = String::from_utf8(TOROID.command().args(line).current_dir(&elsewhere).output()?.stdout)?;
    let row = table.lines().find(|line| line.starts_with(&at)).context("the checkpoint is listed")?;
    ensure!(table.contains("KEPT") && row.contains("pinned"), "{table}");
    check_exit(&on(&cluster, &["checkpoint", "pin", &id, "7777777"])?, 5, "has no checkpoint of step 7777777")?;
    ensure!(json(&on(&cluster, &["checkpoint", "unpin", &id, &at, "-o", "json"])?)?["stays"] == true);
    check_exit(&on(&cluster, &["checkpoint", "unpin", &id, &at])?, 5, "is pinned; there is none")?;
    ensure!(json(&on(&cluster, &["jobs", "rm", &id, "-o", "json"])?)?["job_id"] == id.as_str());

    let dir = cluster.path().to_string_lossy().into_owned();
    let found = on(&cluster, &["doctor", "--dir", &dir, "-o", "json"])?;
    let report: Value = serde_json::from_slice(&found.stdout)?;
    let state = |name: &str| {
        let checks = report["checks"].as_array().into_iter().flatten();
        checks.into_iter().find(|c| c["name"] == name).map_or(Value::Null, |c| c["state"].clone())
    };
    for name in ["program", "coordinator", "leader", "version", "clock", "workers", "links", "paths", "disk links"] {
        ensure!(state(name) == "ok", "{name} is {}: {report}", state(name));
    }
    Ok(())
}
