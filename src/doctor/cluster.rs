//! A cluster as its coordinator describes it: whether it answers, as whom, what its clock says, how its workers, links and jobs are.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use axum::http::{Request, header};
use toroid_proto as proto;
use toroid_proto::json::{is_ended, worker_state_word};
use toroid_security::{Identity, Watched};
use toroid_torus::geometry::Shape;
use toroid_torus::units::names;
use toroid_worker::comm::peers_of;

use super::check::Check;
use crate::access::Access;
use crate::client::{Client, Connection};
use crate::exit::{self, Exit};
use crate::format::{duration, now_unix_ms, num, seconds, time, unix_ms};

/// Workers, pairs and jobs that a check names.
const MAX_NAMED: usize = 6;
/// Jobs that are looked at, the newest.
const MAX_JOBS: usize = 50;
/// Of the coordinator's figures.
const MAX_METRICS_BYTES: usize = 4 << 20;
/// Beyond the second to which the coordinator says its time.
const MAX_CLOCK_OFFSET: Duration = Duration::from_secs(2);
/// Workers say every second, unless told otherwise, that they are there.
const MAX_SILENCE_S: f64 = 3.0;
const SOON: Duration = Duration::from_secs(7 * 86_400);

pub async fn checks(connection: &Connection) -> Vec<Check> {
    let named = connection.coordinator.join(", ");
    let access = match connection.access() {
        Ok(access) => access,
        Err(error) => {
            let to_do = "name what `toroid certs issue` made with --credentials, or --ca with --token";
            return vec![Check::wrong("credentials", format!("{error:#}"), "credentials that can be read", to_do)];
        }
    };
    let mut checks = vec![identity(connection, &access, &named).await];
    let start = Instant::now();
    let mut client = match Client::find(&access).await {
        Ok(client) => client,
        Err(error) => {
            checks.push(unreachable(&error));
            return checks;
        }
    };
    checks.push(Check::ok(
        "coordinator",
        format!("{named} answers, {} after it was dialled", seconds(start.elapsed().as_secs_f64())),
    ));
    match client.leader().await {
        Ok(leader) => checks.push(leads(&leader)),
        Err(error) => checks.push(Check::unknown("leader", format!("{error:#}"))),
    }
    checks.extend(figures(client.clone()).await);
    let asked = async { anyhow::Ok((client.all_workers().await?, client.jobs(MAX_JOBS, String::new()).await?.0)) };
    match asked.await {
        Ok((proto::ListWorkersResponse { workers, apart }, jobs)) => {
            checks.extend(of_workers(&workers));
            checks.extend(of_apart(&apart));
            checks.push(paths(&workers, &jobs));
            checks.push(links(&jobs));
            checks.extend(of_jobs(&jobs, now_unix_ms()));
        }
        Err(error) => checks.push(Check::wrong(
            "cluster",
            format!("{error:#}"),
            "the role view at least",
            "ask whoever runs the cluster for credentials with that role",
        )),
    }
    checks
}

/// As whom this program comes, and until when.
async fn identity(connection: &Connection, access: &Access, named: &str) -> Check {
    if !access.credentials.is_tls() {
        let mut is_local = true;
        for url in &access.urls {
            let authority = url.split_once("://").map_or(url.as_str(), |(_, authority)| authority);
            let found = tokio::net::lookup_host(authority).await;
            is_local &= found.is_ok_and(|mut found| found.all(|address| address.ip().is_loopback()));
        }
        return Check::judged(
            "credentials",
            format!("{named} is reached in clear text, by anybody"),
            is_local,
            "TLS, where a network is between",
            "make a CA and certificates (`toroid certs init`), and start the coordinator with them",
        );
    }
    // The coordinator's own check of them follows with the first call.
    let watched = connection.files().and_then(|files| Watched::open(files).ok());
    match watched.and_then(|watched| watched.current().own.clone()) {
        Some(own) => certificate(&own.identity, SystemTime::now()),
        None => {
            Check::ok("credentials", "TLS with a token, or with none; the coordinator knows the token's role and end")
        }
    }
}

fn certificate(own: &Identity, now: SystemTime) -> Check {
    let until = format!("{} UTC", time(unix_ms(own.not_after)));
    let found = format!("TLS as {} with the role {} of the cluster {}, until {until}", own.name, own.role, own.cluster);
    match own.not_after.duration_since(now) {
        Err(_) => {
            Check::wrong("credentials", found, "a certificate that is good", "make another: `toroid certs renew`")
        }
        Ok(left) => Check::judged(
            "credentials",
            found,
            left > SOON,
            "a week more at least",
            "make another (`toroid certs renew`); processes take it without a restart",
        ),
    }
}

fn unreachable(error: &anyhow::Error) -> Check {
    let to_do = match exit::of(error) {
        Exit::Refused => {
            "bring credentials of this cluster: --credentials, or --ca with --token; a certificate may have ended or been revoked"
        }
        _ => {
            "see whether it runs there and listens beyond the loopback (--listen 0.0.0.0:7070), and whether a firewall lets its port in"
        }
    };
    Check::wrong("coordinator", format!("{error:#}"), "a coordinator that leads", to_do)
}

fn leads(leader: &proto::GetLeaderResponse) -> Check {
    let found = match leader.reason.as_str() {
        "" => format!("decides, term {}", leader.term),
        reason => format!("term {}: {reason}", leader.term),
    };
    Check::judged(
        "leader",
        found,
        leader.leads && leader.reason.is_empty(),
        "one that can decide",
        "look at the coordinators' disk or etcd; steps go on meanwhile, decisions wait",
    )
}

/// Its version and its clock, by the page of figures that it has for Prometheus.
async fn figures(client: Client) -> Vec<Check> {
    let mut request = Request::new(tonic::body::Body::empty());
    *request.uri_mut() = axum::http::Uri::from_static("/metrics");
    let before = SystemTime::now();
    let answer = match client.forward(request).await {
        Ok(answer) => answer,
        Err(error) => return vec![Check::unknown("clock", format!("{error:#}"))],
    };
    let middle = before + SystemTime::now().duration_since(before).unwrap_or_default() / 2;
    let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_string);
    let body = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), MAX_METRICS_BYTES).await;
    let text = body.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    vec![clock(date.as_deref(), middle), version(&text)]
}

fn clock(date: Option<&str>, here: SystemTime) -> Check {
    let Some(there) = date.and_then(|date| httpdate::parse_http_date(date).ok()) else {
        return Check::unknown("clock", "the coordinator's answers do not say what time it is there");
    };
    // It says whole seconds, the last that has begun.
    let there = there + Duration::from_millis(500);
    let (offset, way) = match here.duration_since(there) {
        Ok(ahead) => (ahead, "ahead of"),
        Err(behind) => (behind.duration(), "behind"),
    };
    let found = match offset.as_secs_f64() {
        s if s <= 0.6 => "as the coordinator's, to the second".to_string(),
        s => format!("{s:.1} s {way} the coordinator's, to the second"),
    };
    Check::judged(
        "clock",
        found,
        offset <= MAX_CLOCK_OFFSET,
        "the same to the second or two",
        "let both set their clocks (chrony, systemd-timesyncd). Decisions do not depend on it; certificates, logs and `toroid trace` do",
    )
}

fn version(metrics: &str) -> Check {
    let line = metrics.lines().find(|line| line.starts_with("toroid_build_info{"));
    match line.and_then(|line| line.split('"').nth(1)) {
        None => Check::unknown("version", "the coordinator does not say which it has"),
        Some(version) => Check::judged(
            "version",
            format!("the coordinator has {version}, this program {}", proto::build().version),
            version == proto::build().version,
            "the same version everywhere",
            "put the newer one everywhere, coordinators first (docs/operate.md); releases that are neighbours work together meanwhile",
        ),
    }
}

type Judge = fn(&'static str, String, &str, &str) -> Check;

/// What is to be said where there are any of these.
fn found(judge: Judge, name: &'static str, these: Vec<String>, expected: &str, to_do: &str) -> Option<Check> {
    (!these.is_empty()).then(|| judge(name, names(these, MAX_NAMED), expected, to_do))
}

fn of_workers(workers: &[proto::WorkerInfo]) -> Vec<Check> {
    if workers.is_empty() {
        let to_do = "start some: `toroid worker --coordinator HOST:PORT`";
        return vec![Check::warning("workers", "none is connected", "workers", to_do)];
    }
    let mut hosts: Vec<&str> = workers.iter().map(|w| w.host.as_str()).collect();
    hosts.sort();
    hosts.dedup();
    let placed = workers.iter().filter(|w| w.rank >= 0).count();
    let mut checks = vec![Check::ok(
        "workers",
        format!("{} on {}, {placed} of them with places", workers.len(), num(hosts.len(), "host")),
    )];
    let silent: Vec<String> = workers
        .iter()
        .filter(|w| w.silent_s > MAX_SILENCE_S)
        .map(|w| format!("{} on {} for {}", w.worker_id, w.host, duration(w.silent_s)))
        .collect();
    checks.extend(found(
        Check::warning,
        "silent workers",
        silent,
        "a sign of life every second, unless --heartbeat-interval-ms says otherwise",
        "look whether the process is stopped, the host overloaded or the network cut; after the failure timeout it is lost",
    ));
    let kept_out: Vec<String> = workers
        .iter()
        .filter(|w| {
            matches!(w.state(), proto::WorkerState::Aside | proto::WorkerState::Retired | proto::WorkerState::Cordoned)
        })
        .map(|w| format!("{} is {}: {}", w.worker_id, worker_state_word(w.state()), w.state_reason))
        .collect();
    checks.extend(found(
        Check::warning,
        "workers kept out",
        kept_out,
        "workers that may have places",
        "`toroid workers --readmit ID` takes one back that was put aside, `toroid uncordon ID` one that was cordoned; a retired process is \
         started anew",
    ));
    let failed: Vec<String> = workers
        .iter()
        .filter(|w| w.warm_up() == proto::WarmUpState::Failed)
        .map(|w| format!("{} on {} for {}: {}", w.worker_id, w.host, w.warm_up_job, w.warm_up_reason))
        .collect();
    checks.extend(found(
        Check::wrong,
        "warm-up",
        failed,
        "spares that have shown that they can fill a place",
        "mend what the reason names on that host (data, checkpoint folder, address) and start the worker anew; until then it is no spare",
    ));
    let own = &proto::build().version;
    let others: Vec<String> = workers
        .iter()
        .filter(|w| w.build_version != *own)
        .map(|w| format!("{} ({})", w.worker_id, w.build_version))
        .collect();
    checks.extend(found(
        Check::warning,
        "workers' versions",
        others,
        own,
        "harmless while a cluster is upgraded; then put one version everywhere, and replace those workers one by one (docs/operate.md)",
    ));
    let fingerprints: BTreeSet<&str> = workers.iter().map(|w| w.fingerprint.as_str()).collect();
    if fingerprints.len() > 1 {
        checks.push(Check::warning(
            "fingerprints",
            names(&fingerprints, MAX_NAMED),
            "one, where runs are to be the same to the bit",
            "harmless otherwise; a job with `exact = true` takes workers of one fingerprint only",
        ));
    }
    checks
}

/// Workers that hold what the coordinator's store does not know.
fn of_apart(apart: &[proto::ApartWorker]) -> Option<Check> {
    let named = apart.iter().map(|w| format!("{} on {} (rank {} of {})", w.worker_id, w.host, w.rank, w.job_id));
    let to_do = apart.first().map_or("", |w| w.reason.as_str());
    found(Check::wrong, "workers apart", named.collect(), "the store that gave the workers their places", to_do)
}

/// Between which hosts bytes have gone: places of a job that trains have links to their peers.
fn paths(workers: &[proto::WorkerInfo], jobs: &[proto::Job]) -> Check {
    let hosts: BTreeSet<&str> = workers.iter().map(|w| w.host.as_str()).collect();
    let mut proven: BTreeSet<(&str, &str)> = BTreeSet::new();
    for job in jobs {
        let trains = matches!(job.state(), proto::JobState::Running | proto::JobState::Degraded);
        let shape = job.shape.as_ref().and_then(|shape| Shape::try_from(shape).ok());
        let Some(shape) = shape.filter(|shape| trains && shape.world() == job.places.len()) else { continue };
        for (rank, place) in job.places.iter().enumerate().filter(|(_, p)| p.alive) {
            let peers = peers_of(&shape, rank).into_iter().filter_map(|peer| job.places.get(peer)).filter(|p| p.alive);
            proven.extend(peers.map(|peer| pair(&place.host, &peer.host)));
        }
    }
    let all: Vec<(&str, &str)> =
        hosts.iter().flat_map(|a| hosts.iter().filter(move |b| a < *b).map(move |b| (*a, *b))).collect();
    if all.is_empty() {
        return Check::ok("paths", "all workers are on one host");
    }
    let unproven: Vec<String> =
        all.iter().filter(|pair| !proven.contains(*pair)).map(|(a, b)| format!("{a} and {b}")).collect();
    match unproven.len() {
        0 => Check::ok("paths", format!("links of jobs that train are up between all {} pairs of hosts", all.len())),
        n => Check::unknown(
            "paths",
            format!(
                "no job that trains has links between {n} of {} pairs of hosts: {}; a spare is dialled by one other worker in its warm-up",
                all.len(),
                names(unproven, MAX_NAMED)
            ),
        ),
    }
}

fn pair<'a>(a: &'a str, b: &'a str) -> (&'a str, &'a str) {
    if a <= b { (a, b) } else { (b, a) }
}

fn links(jobs: &[proto::Job]) -> Check {
    let places = jobs.iter().filter(|job| !is_ended(job.state())).flat_map(|job| &job.places);
    let plain: Vec<&str> = places.filter(|p| p.links.contains_key("tcp")).map(|p| p.worker_id.as_str()).collect();
    match plain.len() {
        0 => Check::ok("links", "none in clear text"),
        n => Check::warning(
            "links",
            format!("{n} places have links in clear text: {}", names(plain, MAX_NAMED)),
            "TLS between hosts, as by default",
            "whoever is in between can read weights and data: start these workers without --links-plain",
        ),
    }
}

fn of_jobs(jobs: &[proto::Job], now_unix_ms: i64) -> Vec<Check> {
    let mut troubles: Vec<Check> = jobs.iter().flat_map(|job| of_job(job, now_unix_ms)).collect();
    if troubles.is_empty() {
        let going_on = jobs.iter().filter(|job| !is_ended(job.state())).count();
        troubles.push(Check::ok("jobs", format!("{going_on} of {} go on, none with trouble", jobs.len())));
    }
    troubles
}

/// What is wrong or unusual with a job that goes on, in a line each.
fn of_job(job: &proto::Job, now_unix_ms: i64) -> Vec<Check> {
    let mut checks = Vec::new();
    let explain = format!("`toroid explain {}` says more", job.id);
    let name = format!("job {}", job.id);
    if !job.store_trouble.is_empty() {
        checks.push(Check::wrong(
            &name,
            &job.store_trouble,
            "a store that takes what is decided",
            "mend the coordinator's disk or etcd",
        ));
    }
    if is_ended(job.state()) {
        return checks;
    }
    if let Some(unsaved) = &job.unsaved {
        let for_s = (now_unix_ms - unsaved.since_unix_ms) as f64 / 1e3;
        let found = format!("no checkpoint for {}: step {}: {}", duration(for_s), unsaved.step, unsaved.error);
        checks.push(Check::wrong(&name, found, "checkpoints that can be written", &explain));
    }
    if !job.damaged.is_empty() {
        checks.push(Check::warning(&name, &job.damaged, "whole files", &explain));
    }
    if let Some(i) = job.incidents.last().filter(|i| !i.resolved) {
        let for_s = (now_unix_ms - i.unix_ms) as f64 / 1e3;
        let found = format!("incident {} lasts for {}: {}", i.number, duration(for_s), i.cause);
        checks.push(Check::warning(&name, found, "none", &explain));
    }
    let slow: Vec<String> = job.stragglers.iter().map(|s| format!("{} by {:.1}", s.worker_id, s.factor)).collect();
    if !slow.is_empty() {
        let found = format!("stragglers: {}", names(slow, MAX_NAMED));
        checks.push(Check::warning(&name, found, "places that keep up with each other", &explain));
    }
    if job.state() == proto::JobState::Queued {
        let found = format!("waits for {}: {}", duration(job.waited_s), job.reason);
        checks.push(Check::warning(&name, found, "places", &explain));
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;

    fn worker(id: &str, host: &str) -> proto::WorkerInfo {
        proto::WorkerInfo {
            worker_id: id.into(),
            host: host.into(),
            fingerprint: "cpu-numerics-1-products-1".into(),
            build_version: proto::BUILD_VERSION.into(),
            ..Default::default()
        }
    }

    fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|c| c.name == name).unwrap_or_else(|| panic!("{name} is not among {checks:?}"))
    }

    #[test]
    fn clocks_are_compared_to_the_second() {
        let at = |date: &str| httpdate::parse_http_date(date).expect("a date");
        let there = "Tue, 24 Nov 2026 09:58:54 GMT";
        assert_eq!(clock(Some(there), at(there)).found, "as the coordinator's, to the second");
        let behind = clock(Some(there), at(there) - Duration::from_secs(30));
        assert!(behind.state == State::Warning && behind.found.starts_with("30.5 s behind"), "{behind:?}");
        assert_eq!(clock(Some("noon"), at(there)).state, State::NotKnown);
        assert_eq!(clock(None, at(there)).state, State::NotKnown);
    }

    #[test]
    fn versions_are_read_from_the_page_of_figures() {
        let page = |version: &str| format!("# HELP x\ntoroid_build_info{{version=\"{version}\"}} 1\n");
        assert_eq!(version(&page(proto::BUILD_VERSION)).state, State::Ok);
        assert_eq!(version(&page("9.9.9")).state, State::Warning);
        assert_eq!(version("").state, State::NotKnown);
    }

    #[test]
    fn workers_that_are_no_use_are_named_with_their_reasons() {
        assert_eq!(of_workers(&[]).len(), 1);
        assert!(of_workers(&[worker("w0", "h0")]).iter().all(|c| c.state == State::Ok));
        let mut aside = worker("w1", "h0");
        aside.set_state(proto::WorkerState::Aside);
        aside.state_reason = "it was lost 3 times".into();
        let mut failed =
            proto::WorkerInfo { warm_up_job: "a-1".into(), warm_up_reason: "no data".into(), ..worker("w2", "h1") };
        failed.set_warm_up(proto::WarmUpState::Failed);
        let silent = proto::WorkerInfo {
            silent_s: 4.0,
            fingerprint: "cpu-numerics-2-products-1".into(),
            build_version: "0.0.1".into(),
            ..worker("w3", "h1")
        };
        let found = of_workers(&[worker("w0", "h0"), aside, failed, silent]);
        assert!(find(&found, "workers kept out").found.contains("w1 is aside: it was lost 3 times"), "{found:?}");
        let warm_up = find(&found, "warm-up");
        assert!(warm_up.state == State::Wrong && warm_up.found.contains("w2 on h1 for a-1: no data"), "{found:?}");
        assert!(find(&found, "silent workers").found.contains("w3 on h1 for 4.0 s"), "{found:?}");
        assert!(find(&found, "workers' versions").found.contains("w3 (0.0.1)"), "{found:?}");
        assert_eq!(find(&found, "fingerprints").state, State::Warning);
    }

    #[test]
    fn pairs_of_hosts_without_links_are_named() {
        let place =
            |rank: u32, host: &str| proto::PlaceInfo { rank, host: host.into(), alive: true, ..Default::default() };
        let job = |hosts: [&str; 2]| proto::Job {
            state: proto::JobState::Running.into(),
            shape: Some(proto::Shape { tp: 1, pp: 1, dp: 2, dx: 2, dy: 1 }),
            places: vec![place(0, hosts[0]), place(1, hosts[1])],
            ..Default::default()
        };
        let workers = [worker("w0", "h0"), worker("w1", "h1"), worker("w2", "h2")];
        assert_eq!(paths(&workers[..1], &[]).state, State::Ok);
        assert_eq!(paths(&workers[..2], &[job(["h1", "h0"])]).state, State::Ok);
        let found = paths(&workers, &[job(["h0", "h1"])]);
        assert!(
            found.state == State::NotKnown && found.found.contains("2 of 3") && found.found.contains("h1 and h2"),
            "{found:?}"
        );
        let queued = proto::Job { state: proto::JobState::Queued.into(), ..job(["h0", "h1"]) };
        assert_eq!(paths(&workers[..2], &[queued]).state, State::NotKnown);
    }

    #[test]
    fn a_certificate_that_ends_soon_is_told() -> anyhow::Result<()> {
        use toroid_security::Files;
        use toroid_security::issue::{Authority, Request};
        let parse = |text: &str| text.parse().map_err(anyhow::Error::msg);
        let dir = tempfile::tempdir()?;
        let ca = Authority::init(&dir.path().join("certs"), &parse("lab")?)?;
        let (month, day) = (Duration::from_secs(30 * 86_400), Duration::from_secs(86_400));
        let request = Request { name: parse("alice")?, role: proto::Role::View, hosts: Vec::new(), valid: month };
        let folder = ca.issue(&request)?;
        let files = Files::of_folder(&folder);
        let loaded = Watched::open(files)?.current();
        let own = &loaded.own.as_ref().expect("the folder has a certificate").identity;
        let now = SystemTime::now();
        let found = certificate(own, now);
        assert!(
            found.state == State::Ok && found.found.contains("alice with the role view of the cluster lab"),
            "{found:?}"
        );
        assert_eq!(certificate(own, now + month - day).state, State::Warning);
        assert_eq!(certificate(own, now + month + day).state, State::Wrong);
        Ok(())
    }

    #[test]
    fn trouble_of_jobs_and_links_in_clear_text_are_told() {
        let unsaved =
            proto::Unsaved { step: 5, error: "No space left".into(), since_unix_ms: 1_000, ..Default::default() };
        let straggler = proto::Straggler { worker_id: "w1".into(), factor: 2.5, ..Default::default() };
        let incident =
            proto::Incident { number: 2, unix_ms: 1_000, cause: "w2 was silent for 1 s".into(), ..Default::default() };
        let links_of = [("tcp".to_string(), 2u32)].into_iter().collect();
        let place = proto::PlaceInfo { worker_id: "w1".into(), links: links_of, ..Default::default() };
        let job = proto::Job {
            id: "a-1".into(),
            state: proto::JobState::Running.into(),
            unsaved: Some(unsaved),
            stragglers: vec![straggler],
            incidents: vec![incident],
            places: vec![place],
            store_trouble: "the disk is full".into(),
            damaged: "line 3".into(),
            ..Default::default()
        };
        let found = of_jobs(std::slice::from_ref(&job), 61_000);
        assert_eq!(found.len(), 5, "{found:?}");
        assert!(found.iter().any(|c| c.found.contains("no checkpoint for 1 min")), "{found:?}");
        assert_eq!(links(std::slice::from_ref(&job)).state, State::Warning);
        let done = proto::Job { state: proto::JobState::Done.into(), store_trouble: String::new(), ..job };
        assert_eq!(of_jobs(std::slice::from_ref(&done), 61_000)[0].state, State::Ok);
        assert_eq!(links(&[done]).state, State::Ok);
    }
}
