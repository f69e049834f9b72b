//! What users and their tools learn of a run beside the job itself: traces over process borders, logs as JSON, and what is left of a worker that was
//! killed.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use toroid_proto::{CheckpointInfo, Job};
use toroid_testkit::collector::{Collector, Found, SpanKind};
use toroid_testkit::jobs::{endless_job, short_job};
use toroid_testkit::{Cluster, Patience, is_whole, path, worker_of};

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

/// A cluster whose processes have a collector.
struct Traced {
    collector: Collector,
    cluster: Cluster,
}

/// Which collector, for processes that are started.
fn named(collector: &Collector) -> [(&'static str, String); 2] {
    [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url()), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".into())]
}

fn names(spans: &[Found]) -> BTreeSet<&str> {
    spans.iter().map(|found| found.span.name.as_str()).collect()
}

fn processes(spans: &[Found]) -> BTreeSet<&str> {
    spans.iter().filter_map(|found| found.resource.get("service.instance.id").map(String::as_str)).collect()
}

fn took_s(found: &Found) -> f64 {
    (found.span.end_time_unix_nano - found.span.start_time_unix_nano) as f64 / 1e9
}

/// The only span of a name that a service has told.
fn one<'a>(spans: &'a [Found], service: &str, name: &str) -> Result<&'a Found> {
    let is_it = |found: &&Found| found.span.name == name && found.resource["service.name"] == service;
    let found: Vec<&Found> = spans.iter().filter(is_it).collect();
    let [found] = found.as_slice() else { bail!("one `{name}` of {service}, but {found:#?}") };
    Ok(found)
}

impl Traced {
    fn start(num_workers: usize) -> Result<Traced> {
        let collector = Collector::start()?;
        let [(endpoint, url), (protocol, grpc)] = named(&collector);
        let environment = [(endpoint, url.as_str()), (protocol, grpc.as_str()), ("TOROID_LOG_FORMAT", "json")];
        let cluster = Cluster::with_environment(TOROID, num_workers, &environment)?;
        Ok(Traced { collector, cluster })
    }

    /// Waits until all of these spans have come.
    fn wait_for(
        &self,
        what: &str,
        of: impl Fn(&Found) -> bool,
        is_all: impl Fn(&[Found]) -> bool,
    ) -> Result<Vec<Found>> {
        let mut patience = Patience::new();
        loop {
            let spans: Vec<Found> = self.collector.spans().into_iter().filter(&of).collect();
            if is_all(&spans) {
                return Ok(spans);
            }
            let found = || format!("wait for {what}; there are {:?}", names(&spans));
            patience.look(|| self.collector.spans().len()).with_context(found)?;
        }
    }

    /// The spans of one trace when all of these names are among them.
    fn trace(&self, id: &str, expected: &[&str], num_processes: usize) -> Result<Vec<Found>> {
        let is_all = |spans: &[Found]| {
            expected.iter().all(|name| names(spans).contains(name)) && processes(spans).len() == num_processes
        };
        self.wait_for(&format!("{expected:?} in {id}"), |found| found.trace_id() == id, is_all)
    }
}

/// The root of a trace, which all others of it are directly below.
fn root(spans: &[Found]) -> Result<&Found> {
    let roots: Vec<&Found> = spans.iter().filter(|found| found.span.parent_span_id.is_empty()).collect();
    let [root] = roots.as_slice() else { bail!("one root, but {roots:#?}") };
    let is_below = |found: &Found| found.span.parent_span_id == root.span.span_id;
    ensure!(spans.iter().all(|found| is_below(found) || found.span == root.span), "{spans:#?}");
    Ok(root)
}

#[test]
fn an_incident_is_one_trace_with_its_phases_over_coordinator_and_workers() -> Result<()> {
    let mut traced = Traced::start(5)?;
    let (job, _) = killed(&mut traced.cluster)?;
    let incident = job.incidents.first().context("find the incident")?;
    ensure!(incident.trace_id.len() == 32, "{incident:#?}");
    // From the coordinator, and from each of the four places: the newcomer among them.
    let expected = ["incident", "detect", "fence", "decide", "heal", "redo", "connect", "first step"];
    let spans = traced.trace(&incident.trace_id, &expected, 5)?;
    let root = root(&spans)?;
    ensure!(root.span.name == "incident" && root.attribute("toroid.cause").is_some(), "{root:#?}");
    // The phases follow one another without a gap, from the root's beginning to its end.
    let mut at = root.span.start_time_unix_nano;
    for (name, seconds) in [
        ("detect", incident.detect_s),
        ("fence", incident.fence_s),
        ("decide", incident.decide_s),
        ("heal", incident.heal_s),
        ("redo", incident.redo_s),
    ] {
        let found = one(&spans, "toroid-coordinator", name)?;
        ensure!(found.span.start_time_unix_nano == at, "{name} begins where the phase before ends: {found:#?}");
        ensure!((took_s(found) - seconds).abs() < 1e-5, "{name} took {seconds} s, its span {} s", took_s(found));
        at = found.span.end_time_unix_nano;
    }
    ensure!(at.abs_diff(root.span.end_time_unix_nano) < 10_000, "they add up to the incident: {root:#?}");
    Ok(())
}

/// Each line that a process has logged, as JSON.
fn log(cluster: &Cluster, child: &str) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(cluster.log(child))?;
    let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("parse a line of {child}: {line}"));
    // What a process prints for whoever starts it is no line of the log.
    text.lines().filter(|line| !line.starts_with("toroid coordinator ")).map(parse).collect()
}

/// The trace that a pipeline of the user's begins with its `toroid submit`: the command, its call, the coordinator's part and that of the driver.
fn check_call(traced: &Traced, trace: &str, above: &str) -> Result<()> {
    const CALL: &str = "toroid.v1.JobService/SubmitJob";
    let steps = ["wait for the driver", "decide", "write the store"];
    let spans = traced.trace(trace, &[&["toroid submit", CALL][..], &steps].concat(), 2)?;
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    let command = one(&spans, "toroid", "toroid submit")?;
    ensure!(hex(&command.span.parent_span_id) == above, "{command:#?}");
    let asked = one(&spans, "toroid", CALL)?;
    ensure!(asked.span.parent_span_id == command.span.span_id && asked.span.kind() == SpanKind::Client, "{asked:#?}");
    let answered = one(&spans, "toroid-coordinator", CALL)?;
    ensure!(answered.span.parent_span_id == asked.span.span_id && answered.span.kind() == SpanKind::Server);
    for found in [asked, answered] {
        for (name, expected) in [("rpc.system.name", "grpc"), ("rpc.method", CALL), ("rpc.response.status_code", "OK")]
        {
            ensure!(found.attribute(name).as_deref() == Some(expected), "{name} of {found:#?}");
        }
        ensure!(found.attribute("traceparent").is_none(), "{found:#?}");
    }
    for name in ["wait for the driver", "decide"] {
        let step = one(&spans, "toroid-coordinator", name)?;
        ensure!(step.span.parent_span_id == answered.span.span_id, "{step:#?}");
    }
    let decide = one(&spans, "toroid-coordinator", "decide")?;
    let is_write = |found: &&Found| found.span.name == "write the store";
    ensure!(spans.iter().filter(is_write).all(|found| found.span.parent_span_id == decide.span.span_id), "{spans:#?}");
    let lines = log(&traced.cluster, "coordinator")?;
    let submitted = lines.iter().find(|line| line["fields"]["kind"] == "job.submitted");
    let submitted = submitted.with_context(|| format!("find the line of the submission: {lines:#?}"))?;
    ensure!(submitted["trace_id"] == trace, "{submitted:#?}");
    Ok(())
}

/// What the coordinator and all four places did for a checkpoint, as long as the status says.
fn check_checkpoint(traced: &Traced, checkpoint: &CheckpointInfo) -> Result<()> {
    let step = checkpoint.step.to_string();
    let is_of =
        |found: &Found| found.span.name == "checkpoint" && found.attribute("toroid.step").as_deref() == Some(&step);
    let told = traced.wait_for("the checkpoint", is_of, |spans| !spans.is_empty())?;
    let expected = ["checkpoint", "write shards", "publish", "write shard", "write manifest"];
    let spans = traced.trace(&told[0].trace_id(), &expected, 5)?;
    let root = root(&spans)?;
    ensure!(root.span.name == "checkpoint" && spans.len() == 3 + 4 + 1, "{spans:#?}");
    let of_coordinator = |name: &str| one(&spans, "toroid-coordinator", name);
    let (shards, publish) = (of_coordinator("write shards")?, of_coordinator("publish")?);
    ensure!((took_s(shards) + took_s(publish) - took_s(root)).abs() < 1e-5, "{spans:#?}");
    let of_workers: Vec<&Found> = spans.iter().filter(|found| found.span.name == "write shard").collect();
    let ranks: BTreeSet<_> = of_workers.iter().filter_map(|found| found.attribute("toroid.rank")).collect();
    ensure!(ranks == ["0", "1", "2", "3"].map(String::from).into(), "{ranks:?}");
    let longest = of_workers.iter().map(|found| took_s(found)).fold(0.0, f64::max);
    let said = checkpoint.write_s;
    ensure!((longest - said).abs() < 1e-5, "writing took {said} s by the status, the longest span {longest} s");
    let manifest = one(&spans, "toroid-worker", "write manifest")?;
    ensure!(manifest.attribute("toroid.rank").as_deref() == Some("0"), "{manifest:#?}");
    Ok(())
}

#[test]
fn calls_checkpoints_and_sampled_steps_are_traces() -> Result<()> {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const ABOVE: &str = "00f067aa0ba902b7";
    let mut traced = Traced::start(0)?;
    for _ in 0..4 {
        traced.cluster.add_worker_with(1, &["--trace-steps", "4"])?;
    }
    let job_file = traced.cluster.path().join("job.toml");
    std::fs::write(&job_file, short_job(WAYS, 12, ""))?;
    let submitted = TOROID
        .command()
        .args(["submit", path(&job_file), "--coordinator", &traced.cluster.url()])
        .env("TRACEPARENT", format!("00-{TRACE}-{ABOVE}-01"))
        .envs(named(&traced.collector))
        .output()?;
    ensure!(submitted.status.success(), "{}", String::from_utf8_lossy(&submitted.stderr));
    let id = String::from_utf8(submitted.stdout)?.trim().to_string();
    let job = traced.cluster.done(&id)?;
    check_call(&traced, TRACE, ABOVE)?;
    check_checkpoint(&traced, job.checkpoints.first().context("find a checkpoint")?)?;

    // Of twelve steps every fourth, and rank 0 alone tells of them.
    let is_step = |found: &Found| found.span.name == "step";
    let steps = traced.wait_for("the sampled steps", is_step, |spans| spans.len() >= 3)?;
    let told = |name: &str| -> BTreeSet<String> { steps.iter().filter_map(|found| found.attribute(name)).collect() };
    ensure!(steps.len() == 3 && told("toroid.rank") == ["0".to_string()].into(), "{steps:#?}");
    ensure!(told("toroid.step").iter().all(|step| step.parse::<u64>().is_ok_and(|step| step % 4 == 0)), "{steps:#?}");
    for step in &steps {
        let spans = traced.trace(&step.trace_id(), &["step", "forward", "backward", "commit"], 1)?;
        let whole = took_s(root(&spans)?);
        let parts: f64 = spans.iter().filter(|found| !is_step(found)).map(took_s).sum();
        ensure!((whole - parts).abs() < 1e-4, "a step of {whole} s, its parts {parts} s: {spans:#?}");
    }

    // A stream is told when it is open, as those of the workers are still; a page by its route.
    let is_session = |found: &Found| found.span.name == "toroid.v1.WorkerService/Session";
    traced.wait_for("the sessions", is_session, |spans| spans.len() == 4)?;
    traced.cluster.http(&traced.cluster.access(), "GET", &format!("/api/jobs/{id}"))?;
    let is_page = |found: &Found| found.span.name == "GET /api/jobs/*";
    let pages = traced.wait_for("the page", is_page, |spans| !spans.is_empty())?;
    ensure!(pages[0].attribute("http.response.status_code").as_deref() == Some("200"), "{pages:#?}");
    ensure!(pages[0].span.kind() == SpanKind::Server, "{pages:#?}");
    Ok(())
}

#[test]
fn an_endpoint_that_spans_cannot_leave_by_is_named_with_what_to_do() -> Result<()> {
    for (endpoint, words) in [("https://c:4317", "pass them on over TLS"), ("ftp://c", "expected http://host:port")] {
        let found = TOROID.command().arg("version").env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).output()?;
        let stderr = String::from_utf8_lossy(&found.stderr).into_owned();
        ensure!(found.status.success() && stderr.contains(words) && stderr.contains(endpoint), "{stderr}");
        ensure!(stderr.lines().count() == 1, "it is said once: {stderr}");
    }
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
    let survivor = worker_of(&job, 0);
    let of_worker = log(&cluster, &survivor)?;
    let has_place = |line: &Value| line["job"] == job.id.as_str() && line["epoch"].is_u64() && line["rank"] == 0;
    ensure!(of_worker.iter().any(has_place), "{survivor} says where it is: {of_worker:#?}");
    let of_coordinator = log(&cluster, "coordinator")?;
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
