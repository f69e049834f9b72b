//! What a browser and Prometheus are served of a real run.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use toroid::access::Access;
use toroid_security::{Credentials, Files};
use toroid_testkit::jobs::endless_job;
use toroid_testkit::{Cluster, Undisturbed, check_nothing_lost, worker_of};

use crate::TOROID;

fn get(cluster: &Cluster, path: &str) -> Result<Value> {
    let answer = cluster.http(&cluster.access(), "GET", path)?;
    ensure!(answer.status == 200, "GET {path}: {answer:?}");
    serde_json::from_str(&answer.body).with_context(|| format!("read {path}: {}", answer.body))
}

fn steps(columns: &Value) -> Vec<u64> {
    columns["step"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
}

#[test]
fn the_stream_shows_a_death_with_its_cost_and_goes_on_after_a_break() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 5, 1)?;
    let job_file = endless_job((1, 1, 4));
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "the first steps", |job| job.committed_step > 3)?;
    let victim = worker_of(&job, 2);
    cluster.kill_worker(&victim)?;

    let (mut places, mut seen, mut is_resolved, mut next, mut pool) =
        (vec![None; 4], Vec::new(), false, String::new(), BTreeSet::new());
    cluster.events_until(&format!("/api/stream?job={id}&from=1"), |event, event_id, data| {
        if event == "pool" {
            let view: Value = serde_json::from_str(data)?;
            ensure!(view["jobs"][0]["id"] == id.as_str(), "{view}");
            let ids = |name: &str| view[name].as_array().cloned().unwrap_or_default();
            if view["first"] == true {
                pool.clear();
            }
            pool.extend(ids("workers").iter().filter_map(|row| row["id"].as_str()).map(str::to_string));
            pool.retain(|id| !ids("gone").iter().any(|gone| gone == id.as_str()));
        }
        if event != "job" {
            return Ok(false);
        }
        let view: Value = serde_json::from_str(data)?;
        next = event_id.into();
        seen.extend(steps(&view["steps"]));
        for row in view["places"].as_array().into_iter().flatten() {
            let rank = row["rank"].as_u64().context("read a rank")? as usize;
            places[rank] = row["worker"].as_str().map(str::to_string).filter(|_| row["alive"] == true);
        }
        is_resolved |= view["job"]["incidents"].as_array().into_iter().flatten().any(|incident| {
            incident["resolved"] == true
                && incident["workers"][0] == victim.as_str()
                && incident["total_s"].as_f64() > Some(0.0)
        });
        Ok(is_resolved && !pool.is_empty() && places.iter().all(Option::is_some))
    })?;
    ensure!(pool.len() == 4 && !pool.contains(&victim), "{pool:?} are left");
    let holders: BTreeSet<&String> = places.iter().flatten().collect();
    ensure!(holders.len() == 4 && !holders.contains(&victim), "{places:?} after {victim} was killed");
    // From where it broke: no step twice, none left out.
    let mut after = Vec::new();
    cluster.events_until(&format!("/api/stream?job={id}&from={next}"), |event, _, data| {
        if event == "job" {
            after.extend(steps(&serde_json::from_str::<Value>(data)?["steps"]));
        }
        Ok(after.len() > 2)
    })?;
    seen.extend(after);
    ensure!(seen.iter().copied().eq(1..=seen.len() as u64), "{seen:?}");

    let saved = cluster.http(&cluster.access(), "POST", &format!("/api/jobs/{id}/checkpoint"))?;
    ensure!(saved.status == 200, "{saved:?}");
    let step = serde_json::from_str::<Value>(&saved.body)?["step"].as_u64().context("read the step")?;
    cluster.wait_for(&id, "the checkpoint", |job| job.checkpoints.iter().any(|c| c.step == step))?;
    let metrics = cluster.http(&cluster.access(), "GET", "/metrics")?.body;
    for line in [
        format!("toroid_job_incidents_total{{job_id=\"{id}\"}} 1"),
        format!("toroid_job_checkpoint_step{{job_id=\"{id}\"}} {step}"),
    ] {
        ensure!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
    let job = cluster.finish(&id)?;
    check_nothing_lost(&job)?;
    let curve = steps(&get(&cluster, &format!("/api/jobs/{id}/curve"))?);
    let num = curve.len() as u64;
    ensure!(
        num >= job.committed_step && curve.iter().copied().eq(1..=num),
        "{curve:?} of {} steps",
        job.committed_step
    );
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}

#[test]
fn pages_are_for_everybody_and_what_they_show_is_not() -> Result<()> {
    let cluster = Cluster::start(TOROID, 1, 1)?;
    let url = cluster.url();
    let authority = url.trim_start_matches("https://");
    let worker = Access::by_folder(authority, &cluster.certificates().join("worker"))?;
    let ca = Files { ca: cluster.certificates().join("worker/ca.pem"), pair: None, revoked: None };
    let nobody = Access { urls: vec![url.clone()], credentials: Credentials::tls(ca, None)? };
    for path in ["/", "/assets/main.js", "/assets/style.css", "/healthz"] {
        let answer = cluster.http(&nobody, "GET", path)?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
    }
    let page = cluster.http(&nobody, "GET", "/")?;
    let policy = page.headers.iter().find(|(name, _)| name == "content-security-policy");
    ensure!(policy.is_some_and(|(_, policy)| policy.starts_with("default-src 'none'")), "{:?}", page.headers);
    ensure!(!page.body.contains("http://") && !page.body.contains("https://"), "something comes from elsewhere");
    for (method, path) in [
        ("GET", "/metrics"),
        ("GET", "/api/jobs"),
        ("GET", "/api/jobs/x-1"),
        ("GET", "/api/jobs/x-1/curve"),
        ("GET", "/api/workers"),
        ("GET", "/api/stream"),
        ("POST", "/api/jobs/x-1/cancel"),
        ("POST", "/api/jobs/x-1/checkpoint"),
        ("POST", "/api/workers/w0/drain"),
        ("POST", "/api/workers/w0/kill"),
    ] {
        let refused = cluster.http(&nobody, method, path)?;
        ensure!(refused.status == 401 && refused.body.contains("error"), "{method} {path}: {refused:?}");
        let refused = cluster.http(&worker, method, path)?;
        ensure!(refused.status == 403, "{method} {path}: {refused:?}");
    }
    let admin = cluster.access();
    for (method, path, status) in [
        // No action by GET, and nothing beside the paths that there are.
        ("GET", "/api/jobs/x-1/cancel", 404),
        ("DELETE", "/api/jobs/x-1", 404),
        ("GET", "/api/jobs/x-1", 404),
        ("GET", "/api/jobs/x-1/../../metrics", 404),
        ("GET", "/assets/..%2fmod.rs", 404),
        ("GET", "/api/stream?job=x-1", 404),
        ("GET", "/api/stream?job=x-1&from=-1", 400),
        ("POST", "/api/workers/nobody/drain", 404),
        ("POST", "/api/workers/nobody/kill", 404),
    ] {
        let answer = cluster.http(&admin, method, path)?;
        ensure!(answer.status == status, "{method} {path}: expected {status}, found {answer:?}");
    }
    Ok(())
}
