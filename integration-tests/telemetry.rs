//! What users and their tools learn of a run beside the job itself: traces over process borders, logs as JSON, and what is left of a worker that was
//! killed.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use toroid_proto::Job;
use toroid_testkit::collector::{Collector, Found};
use toroid_testkit::jobs::endless_job;
use toroid_testkit::{Cluster, Patience, is_whole, worker_of};

use crate::TOROID;

const WAYS: (usize, usize, usize) = (1, 1, 4);

/// A job whose worker of rank 2 was killed, and which goes on.
fn killed(cluster: &mut Cluster) -> Result<(Job, String)> {
    let id = cluster.submit(&endless_job(WAYS))?;
    let is_ready = |job: &Job| job.curve.len() >= 10 && job.spares == 1;
    let before = cluster.wait_for(&id, "step 10 and a spare", is_ready)?;
    let victim = worker_of(&before, 2);
    cluster.kill_worker(&victim)?;
    let is_over = |job: &Job| is_whole(job) && job.incidents.iter().any(|incident| incident.resolved);
    Ok((cluster.wait_for(&id, "the incident to be over", is_over)?, victim))
}

/// Waits until these have come.
fn wait_for(collector: &Collector, what: &str, found: impl Fn(&[Found]) -> bool) -> Result<Vec<Found>> {
    let mut patience = Patience::new();
    loop {
        let spans = collector.spans();
        if found(&spans) {
            return Ok(spans);
        }
        let names: Vec<_> = spans.iter().map(|found| found.span.name.as_str()).collect();
        patience.look(|| spans.len()).with_context(|| format!("wait for {what}; there are {names:?}"))?;
    }
}

#[test]
fn an_incident_is_one_trace_with_its_phases_over_coordinator_and_workers() -> Result<()> {
    let collector = Collector::start()?;
    let url = collector.url();
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str()), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let mut cluster = Cluster::with_environment(TOROID, 5, &environment)?;
    let (job, _) = killed(&mut cluster)?;
    let incident = job.incidents.first().context("find the incident")?;
    ensure!(incident.trace_id.len() == 32, "{incident:#?}");
    let of_incident = |spans: &[Found]| -> Vec<Found> {
        spans.iter().filter(|found| found.trace_id() == incident.trace_id).cloned().collect()
    };
    // From the coordinator, and from each of the four places: the newcomer among them.
    let names = |spans: &[Found]| -> BTreeSet<String> { spans.iter().map(|found| found.span.name.clone()).collect() };
    let processes = |spans: &[Found]| -> BTreeSet<String> {
        spans.iter().filter_map(|found| found.resource.get("service.instance.id").cloned()).collect()
    };
    let expected = ["incident", "detect", "fence", "decide", "heal", "redo", "connect", "first step"];
    let is_there = |spans: &[Found]| {
        let spans = of_incident(spans);
        expected.iter().all(|name| names(&spans).contains(*name)) && processes(&spans).len() == 5
    };
    let spans = of_incident(&wait_for(&collector, "the incident's spans from five processes", is_there)?);
    let is_root = |found: &&Found| found.span.parent_span_id.is_empty();
    let roots: Vec<&Found> = spans.iter().filter(is_root).collect();
    let [root] = roots.as_slice() else { anyhow::bail!("one root, but {roots:#?}") };
    ensure!(root.span.name == "incident" && root.attribute("toroid.cause").is_some(), "{root:#?}");
    let is_below =
        |found: &Found| found.span.parent_span_id == root.span.span_id || found.span.span_id == root.span.span_id;
    ensure!(spans.iter().all(is_below), "{spans:#?}");
    let of_coordinator = |name: &str| {
        let is_it = |found: &&Found| found.span.name == name && found.resource["service.name"] == "toroid-coordinator";
        spans.iter().find(is_it).with_context(|| format!("find the coordinator's {name}"))
    };
    // The phases follow one another without a gap, from the root's beginning to its end.
    let mut at = root.span.start_time_unix_nano;
    for (name, seconds) in [
        ("detect", incident.detect_s),
        ("fence", incident.fence_s),
        ("decide", incident.decide_s),
        ("heal", incident.heal_s),
        ("redo", incident.redo_s),
    ] {
        let span = &of_coordinator(name)?.span;
        ensure!(span.start_time_unix_nano == at, "{name} begins where the phase before ends: {span:#?}");
        let took_s = (span.end_time_unix_nano - span.start_time_unix_nano) as f64 / 1e9;
        ensure!((took_s - seconds).abs() < 1e-5, "{name} took {seconds} s, its span {took_s} s");
        at = span.end_time_unix_nano;
    }
    ensure!(at.abs_diff(root.span.end_time_unix_nano) < 10_000, "they add up to the incident: {root:#?}");
    Ok(())
}

#[test]
fn the_last_lines_of_a_killed_worker_are_with_its_incident_and_outlive_the_coordinator() -> Result<()> {
    let mut cluster = Cluster::with_environment(TOROID, 5, &[("TOROID_LOG_FORMAT", "json")])?;
    let (job, victim) = killed(&mut cluster)?;
    let evidence = |job: &Job| -> Result<Vec<String>> {
        let incident = job.incidents.first().context("find the incident")?;
        let [evidence] = incident.evidence.as_slice() else { anyhow::bail!("one worker's log, but {incident:#?}") };
        ensure!((evidence.worker_id.as_str(), evidence.kind.as_str()) == (victim.as_str(), "log"), "{evidence:#?}");
        Ok(evidence.lines.clone())
    };
    let lines = evidence(&job)?;
    ensure!(lines.iter().any(|line| line.contains("INFO")), "{lines:#?}");

    // Each line of the logs is JSON; a worker's with its place, and in an incident with its trace.
    let log = |child: &str| -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(cluster.log(child))?;
        let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("parse a line of {child}: {line}"));
        // What a process prints for whoever starts it is no line of the log.
        text.lines().filter(|line| !line.starts_with("toroid coordinator ")).map(parse).collect()
    };
    let survivor = worker_of(&job, 0);
    let of_worker = log(&survivor)?;
    let has_place = |line: &Value| line["job"] == job.id.as_str() && line["epoch"].is_u64() && line["rank"] == 0;
    ensure!(of_worker.iter().any(has_place), "{survivor} says where it is: {of_worker:#?}");
    let of_coordinator = log("coordinator")?;
    let trace_id = &job.incidents[0].trace_id;
    let is_begin = |line: &&Value| line["fields"]["kind"] == "incident.begin";
    let begin = of_coordinator.iter().find(is_begin).context("find the line of the incident")?;
    ensure!(begin["trace_id"] == trace_id.as_str() && begin["job"] == job.id.as_str(), "{begin:#?}");

    cluster.kill_coordinator()?;
    cluster.start_coordinator()?;
    let again = cluster.wait_for(&job.id, "the coordinator to be back", is_whole)?;
    assert_eq!(evidence(&again)?, lines, "it is what the one before had");
    assert_eq!(again.incidents[0].trace_id, *trace_id);
    Ok(())
}
