//! A real Prometheus scrapes a real run, with the configuration, the alerts and the dashboard that are in `deploy/grafana`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toroid_testkit::jobs::endless_job;
use toroid_testkit::{Cluster, Patience, Process, free_port, path, root, worker_of};

use crate::TOROID;

/// Between two scrapes: it only keeps the test short.
const SCRAPE_INTERVAL: &str = "1s";

fn deployed(name: &str) -> PathBuf {
    root().join("deploy/grafana").join(name)
}

/// Runs promtool, which has to find nothing wrong.
fn promtool(args: &[&str], input: &str) -> Result<String> {
    let mut command = Command::new("promtool");
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let missing = "run promtool, of Debian's package prometheus: scripts/setup.sh installs it (make test does)";
    let mut child = command.spawn().context(missing)?;
    child.stdin.take().context("take its input")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    let (said, complaints) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    ensure!(output.status.success() && complaints.is_empty(), "promtool {}: {said}{complaints}", args.join(" "));
    Ok(said)
}

/// What promtool says of all expressions: values by their labels, as `{...} => 7`.
fn query(url: &str, expression: &str) -> Result<Vec<f64>> {
    let found = promtool(&["query", "instant", "--format=json", url, expression], "")?;
    let found: Value = serde_json::from_str(&found).with_context(|| format!("{expression}: {found}"))?;
    let value = |sample: &Value| sample["value"][1].as_str().and_then(|value| value.parse().ok());
    found.as_array().into_iter().flatten().map(|sample| value(sample).context("a sample has a value")).collect()
}

/// Names of metrics in a text, of whatever kind.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("toroid_")).collect()
}

/// Expressions of the dashboard's panels, for all jobs, and of the alerts.
fn expressions() -> Result<Vec<String>> {
    let board: Value = serde_json::from_str(&std::fs::read_to_string(deployed("dashboard.json"))?)?;
    let mut targets = board["panels"].as_array().into_iter().flatten().flat_map(|panel| panel["targets"].as_array());
    let panels: Vec<String> =
        targets.by_ref().flatten().filter_map(|t| Some(t["expr"].as_str()?.replace("$job", ".*"))).collect();
    let alerts = std::fs::read_to_string(deployed("alerts.yml"))?;
    let alerts = alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: "));
    Ok(panels.into_iter().chain(alerts.map(str::to_string)).collect())
}

#[test]
fn the_alerts_fire_when_they_should() -> Result<()> {
    promtool(&["check", "rules", path(&deployed("alerts.yml"))], "")?;
    promtool(&["test", "rules", path(&deployed("alerts.test.yml"))], "")?;
    Ok(())
}

/// The configuration as it is deployed, for this cluster; with the certificate of a user who may look and nothing more.
fn configured(cluster: &Cluster, folder: &Path) -> Result<PathBuf> {
    TOROID.run_ok(&["certs", "issue", "prometheus", "--role", "view", "--dir", path(&cluster.certificates())])?;
    let certificate = cluster.certificates().join("prometheus");
    let deployed_file = std::fs::read_to_string(deployed("prometheus.yml"))?;
    let mut text = deployed_file.replace("interval: 15s", &format!("interval: {SCRAPE_INTERVAL}"));
    for (from, to) in [
        ("coordinator:7070", cluster.url().trim_start_matches("https://")),
        ("alerts.yml\n", &format!("{}\n", deployed("alerts.yml").display())),
        ("certs/", &format!("{}/", certificate.display())),
    ] {
        ensure!(text.contains(from), "prometheus.yml does not have {from}");
        text = text.replace(from, to);
    }
    let file = folder.join("prometheus.yml");
    std::fs::write(&file, text)?;
    Ok(file)
}

#[test]
fn prometheus_scrapes_a_run_and_sees_a_death() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 5, 1)?;
    let folder = cluster.path().join("prometheus");
    std::fs::create_dir(&folder)?;
    let config = configured(&cluster, &folder)?;
    promtool(&["check", "config", path(&config)], "")?;
    let id = cluster.submit(&endless_job((1, 1, 4)))?;
    let is_full = |job: &toroid_proto::Job| !job.checkpoints.is_empty() && !job.validations.is_empty();
    cluster.wait_for(&id, "a checkpoint and a validation", is_full)?;

    let (port, log) = (free_port()?, std::fs::File::create(folder.join("log"))?);
    let url = format!("http://127.0.0.1:{port}");
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{port}")).stderr(log);
    let _prometheus = Process(command.spawn().context("run prometheus: scripts/setup.sh installs it")?);
    // It answers after a while, and its first scrape is later than that.
    let wait = |cluster: &Cluster, expression: &str, is: &dyn Fn(f64) -> bool| -> Result<f64> {
        let mut patience = Patience::new();
        loop {
            let found = query(&url, expression);
            if let Ok([value]) = found.as_deref()
                && is(*value)
            {
                return Ok(*value);
            }
            let seen = || {
                let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                format!("wait for {expression}, which is {found:?}\n{log}\n{}", cluster.logs())
            };
            patience.look(|| cluster.job(&id).map(|job| job.committed_step)).with_context(seen)?;
        }
    };
    wait(&cluster, "up{job=\"toroid\"}", &|up| up == 1.0)?;
    let of_job = |metric: &str| format!("{metric}{{job=\"toroid\",job_id=\"{id}\"}}");
    let committed = of_job("toroid_job_committed_steps_total");
    let first = wait(&cluster, &committed, &|step| step > 0.0)?;
    wait(&cluster, &committed, &|step| step > first)?;
    wait(&cluster, &of_job("toroid_job_incidents_total"), &|num| num == 0.0)?;
    let victim = worker_of(&cluster.job(&id).context("ask for the job")?, 1);
    cluster.kill_worker(&victim)?;
    wait(&cluster, &of_job("toroid_job_incidents_total"), &|num| num == 1.0)?;
    wait(&cluster, &of_job("toroid_job_lost_seconds_total"), &|lost_s| lost_s > 0.0)?;
    wait(&cluster, &of_job("toroid_job_places_alive"), &|num| num == 4.0)?;
    wait(&cluster, "count(toroid_job_slowest_place_rank{position=\"1\"})", &|num| num == 1.0)?;

    let metrics = cluster.http(&cluster.access(), "GET", "/metrics")?.body;
    promtool(&["check", "metrics"], &metrics)?;
    let said = names(&metrics);
    for file in ["dashboard.json", "alerts.yml"] {
        let text = std::fs::read_to_string(deployed(file))?;
        let unknown: Vec<_> = names(&text).difference(&said).copied().collect();
        ensure!(unknown.is_empty(), "{file} asks for {unknown:?}, which /metrics does not have:\n{metrics}");
    }
    let expressions = expressions()?;
    ensure!(expressions.len() > 20, "only {expressions:?} were found");
    for expression in &expressions {
        query(&url, expression).with_context(|| format!("ask for `{expression}`"))?;
    }
    Ok(())
}
