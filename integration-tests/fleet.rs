//! A small fleet: `toroid bench fleet` with 64 workers, whose trainers are played.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toroid_testkit::path;

use crate::TOROID;

/// Of a run that was too slow for its own limits nothing could be said.
const FAILURE_TIMEOUT_MS: &str = "60000";

/// The report of a fleet of 64 that has these flags as well.
fn fleet(more: &[&str]) -> Result<Value> {
    let dir = tempfile::tempdir()?;
    let mut command = TOROID.command();
    command.args(["bench", "fleet", "--workers", "64", "--spares", "16", "--processes", "2", "-o", "json"]);
    command.args(["--seconds", "1", "--step-hz", "20", "--failure-timeout-ms", FAILURE_TIMEOUT_MS, "--restart"]);
    command.args(["--kills", "2", "--kill-hosts", "1", "--kill-racks", "0"]).args(more);
    let output = command.args(["--dir", path(dir.path())]).output().context("run toroid bench fleet")?;
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "toroid bench fleet ended with {}: {words}", output.status);
    serde_json::from_slice(&output.stdout).context("read the report")
}

#[test]
fn a_fleet_joins_survives_deaths_and_a_restart_and_nobody_is_held_up_by_who_does_not_read() -> Result<()> {
    let report = fleet(&["--dashboards", "2"])?;
    // It has waited for all to have their Welcome and their places; nothing else makes it go on.
    assert_eq!((&report["shape"], &report["spares"]), (&serde_json::json!([2, 2, 12]), &16.into()), "{report:#}");
    assert_eq!(report["trains"], false);
    let steady = &report["steady"];
    assert!(steady["record_s"]["median"].as_f64() > Some(0.0), "steps are recorded: {steady:#}");
    assert!(steady["heartbeat_s"]["median"].as_f64() > Some(0.0), "heartbeats are heard: {steady:#}");

    check_deaths(&report)?;
    let watched = &report["dashboards"];
    assert!(watched["read_bytes_per_s"].as_f64() > Some(0.0), "{watched:#}");
    let stalled = &watched["stalled"];
    assert_eq!(stalled["still_open"], 2, "who reads goes on: {watched:#}");
    assert!(stalled["read_bytes_per_s"].as_f64() > Some(0.0), "and hears what is new: {watched:#}");
    let more =
        stalled["rss_bytes"].as_u64().unwrap_or(u64::MAX).saturating_sub(watched["rss_bytes"].as_u64().unwrap_or(0));
    assert!(more < 16 << 20, "what nobody reads is not kept: {more} bytes more");
    assert_eq!(report["restart"]["epochs"], 0, "all keep their places: {report:#}");
    Ok(())
}

#[test]
fn a_fleet_behind_agents_does_the_same() -> Result<()> {
    let report = fleet(&["--workers-per-agent", "8"])?;
    assert_eq!((&report["workers_per_agent"], &report["num_agents"]), (&8.into(), &8.into()), "{report:#}");
    assert!(report["steady"]["heartbeat_s"]["median"].as_f64() > Some(0.0), "{report:#}");
    assert_eq!(report["steady"]["streams_lost"], 0, "{report:#}");
    check_deaths(&report)?;
    assert_eq!(report["restart"]["epochs"], 0, "all keep their places: {report:#}");
    Ok(())
}

/// Of two workers and a host, each.
fn check_deaths(report: &Value) -> Result<()> {
    let deaths = report["deaths"].as_array().context("deaths")?;
    let of = |at: usize| (deaths[at]["what"].as_str(), deaths[at]["workers"].as_u64());
    assert_eq!((of(0), of(1)), ((Some("worker"), Some(1)), (Some("host"), Some(8))), "{deaths:#?}");
    for death in deaths {
        assert!(death["decided_s"]["max"].as_f64() >= death["told_s"]["max"].as_f64(), "{death:#}");
        // Its other holders are elsewhere: no step is lost. Streams that end one after the other may be an epoch each, and none is more.
        assert_eq!(death["restores"], 0, "{death:#}");
        let (epochs, workers) = (death["epochs"].as_f64(), death["workers"].as_f64().unwrap_or(0.0));
        assert!(epochs.is_some_and(|n| (1.0..=workers).contains(&n)), "{death:#}");
    }
    Ok(())
}
