//! Workers, as users see and treat them: the list of those that are connected; taking one back, cordoning one, moving its place away.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use toroid_proto as proto;
use toroid_proto::json;
use toroid_torus::units;

use crate::client::Connection;
use crate::format::{bytes, duration, seconds, table};
use crate::links;
use crate::output::FormatArgs;

/// Workers that an answer names.
const MAX_NAMED: usize = 10;

#[derive(Debug, clap::Args)]
pub struct WorkersArgs {
    /// A worker that is put aside for a while, or whose host is, may be given a place again at once
    #[arg(long, value_name = "ID")]
    readmit: Option<String>,
    /// The id of a worker that is not connected is free for whoever registers it next: its secret or certificate is lost
    #[arg(long, value_name = "ID", conflicts_with = "readmit")]
    forget: Option<String>,
    /// The worker's process ends at once, as if its machine had died: a trial of what that costs. `toroid drain` takes a machine out of use
    #[arg(long, value_name = "ID", conflicts_with_all = ["readmit", "forget"])]
    kill: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct DrainArgs {
    /// The worker's id, as `toroid workers` lists it
    worker: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct CordonArgs {
    /// The worker's id, as `toroid workers` lists it; it need not be connected
    #[arg(required_unless_present = "host", conflicts_with = "host")]
    worker: Option<String>,
    /// Instead: every worker of this host, also one that comes later
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// Why, for those who see it
    #[arg(long, default_value = "", value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Debug, clap::Args)]
pub struct UncordonArgs {
    /// The worker's id
    #[arg(required_unless_present = "host", conflicts_with = "host")]
    worker: Option<String>,
    /// Instead: the host that was cordoned
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    #[command(flatten)]
    format: FormatArgs,
    #[command(flatten)]
    connection: Connection,
}

/// What was done to a worker, for programs.
#[derive(Debug, Default, Serialize)]
struct Done<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_id: Option<&'a str>,
    /// Instead: a host.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    /// Of the host: those that have places still.
    #[serde(skip_serializing_if = "Option::is_none")]
    worker_ids: Option<&'a [String]>,
    /// In which it has a place still, or had one; empty: in none.
    #[serde(skip_serializing_if = "Option::is_none")]
    job_id: Option<&'a str>,
    /// Who takes its place; empty: nobody yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    replacement: Option<&'a str>,
    /// Why it was kept out.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

pub async fn workers(args: WorkersArgs) -> Result<ExitCode> {
    let WorkersArgs { readmit, forget, kill, format, connection } = args;
    let mut client = connection.open().await?;
    if let Some(worker) = kill {
        let job = client.kill(&worker).await?;
        let what = match job.as_str() {
            "" => "it was a spare".into(),
            job => format!("`toroid incidents {job}` says what it costs"),
        };
        let done = Done { worker_id: Some(&worker), job_id: Some(&job), ..Done::default() };
        format.answer(&done, format_args!("{worker} was told to end at once; {what}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(worker) = forget {
        client.forget_worker(&worker).await?;
        let done = Done { worker_id: Some(&worker), ..Done::default() };
        format.answer(&done, format_args!("{worker} is free for whoever registers it next\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(worker) = readmit {
        let why = client.readmit(&worker).await?;
        let done = Done { worker_id: Some(&worker), reason: Some(&why), ..Done::default() };
        format.answer(&done, format_args!("{worker} is a spare again; it was put aside since {why}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let proto::ListWorkersResponse { workers, apart } = client.all_workers().await?;
    let mut text = if workers.is_empty() {
        let url = connection.coordinator.join(",");
        format!("no workers are connected; start some with `toroid worker --coordinator {url}`\n")
    } else {
        worker_table(&workers)
    };
    text.extend(apart.iter().take(MAX_NAMED).map(|w| {
        let proto::ApartWorker { worker_id, host, job_id, rank, committed_step, reason, .. } = w;
        format!("{worker_id} on {host} stands apart with rank {rank} of {job_id} (step {committed_step}): {reason}\n")
    }));
    if apart.len() > MAX_NAMED {
        text += &format!("{} more stand apart\n", apart.len() - MAX_NAMED);
    }
    format.answer(&workers.iter().map(json::Worker::from).collect::<Vec<_>>(), text)?;
    Ok(ExitCode::SUCCESS)
}

pub async fn cordon(args: CordonArgs) -> Result<ExitCode> {
    let (worker, host) = (args.worker.unwrap_or_default(), args.host.unwrap_or_default());
    let request = proto::CordonWorkerRequest { worker_id: worker.clone(), host: host.clone(), reason: args.reason };
    let found = args.connection.open().await?.cordon(request).await?;
    let text = match (host.as_str(), found.job_id.as_str(), &found.worker_ids[..]) {
        ("", "", _) => format!("{worker} is given no place until `toroid uncordon {worker}`\n"),
        ("", job, _) => format!(
            "{worker} is given no other place until `toroid uncordon {worker}`; it keeps that in {job}, which `toroid drain {worker}` moves\n"
        ),
        (host, _, []) => format!("no worker of {host} is given a place until `toroid uncordon --host {host}`\n"),
        (host, _, placed) => format!(
            "no worker of {host} is given another place until `toroid uncordon --host {host}`; {} keep theirs, which `toroid drain WORKER` moves\n",
            units::names(placed, MAX_NAMED)
        ),
    };
    let done = match host.as_str() {
        "" => Done { worker_id: Some(&worker), job_id: Some(&found.job_id), ..Done::default() },
        host => Done { host: Some(host), worker_ids: Some(&found.worker_ids), ..Done::default() },
    };
    args.format.answer(&done, text)?;
    Ok(ExitCode::SUCCESS)
}

pub async fn uncordon(args: UncordonArgs) -> Result<ExitCode> {
    let (worker, host) = (args.worker.unwrap_or_default(), args.host.unwrap_or_default());
    let request = proto::UncordonWorkerRequest { worker_id: worker.clone(), host: host.clone() };
    let reason = args.connection.open().await?.uncordon(request).await?;
    let why = if reason.is_empty() { String::new() } else { format!("; it was cordoned: {reason}") };
    let (done, who) = match host.as_str() {
        "" => (Done { worker_id: Some(&worker), reason: Some(&reason), ..Done::default() }, worker.clone()),
        host => (Done { host: Some(host), reason: Some(&reason), ..Done::default() }, format!("a worker of {host}")),
    };
    args.format.answer(&done, format_args!("{who} may be given a place again{why}\n"))?;
    Ok(ExitCode::SUCCESS)
}

pub async fn drain(args: DrainArgs) -> Result<ExitCode> {
    let drained = args.connection.open().await?.drain(&args.worker).await?;
    let (job_id, replacement) = (Some(drained.job_id.as_str()), Some(drained.replacement.as_str()));
    let done = Done { worker_id: Some(&args.worker), job_id, replacement, ..Done::default() };
    args.format.answer(&done, format_args!("{}\n", drain_line(&args.worker, &drained)))?;
    Ok(ExitCode::SUCCESS)
}

pub fn drain_line(worker: &str, drained: &proto::DrainWorkerResponse) -> String {
    match (drained.job_id.as_str(), drained.replacement.as_str()) {
        ("", _) => format!("{worker} was a spare and gets no place any more: stop it whenever you like"),
        (job, "") => {
            format!("{worker} leaves {job} once a spare is there to take its place; `toroid events {job} -f` says when")
        }
        (job, spare) => {
            format!("{spare} takes the place of {worker} in {job}; `toroid incidents {job}` says what it cost")
        }
    }
}

/// What a worker holds of its device's memory, and what is free where that is known.
fn memory(worker: &proto::WorkerInfo) -> String {
    match (worker.memory_bytes, worker.memory_free_bytes) {
        (0, _) => "-".into(),
        (held, 0) => bytes(held),
        (held, free) => format!("{}, {} free", bytes(held), bytes(free)),
    }
}

/// How long a worker computes a step, and that it is a straggler where it is one.
fn computes(worker: &proto::WorkerInfo) -> String {
    match (worker.compute_s, worker.slow_factor) {
        (0.0, _) => "-".into(),
        (s, 0.0) => seconds(s),
        (s, factor) => format!("{}, slow: {factor:.1} times its peers", seconds(s)),
    }
}

/// Whether a worker without a place has shown that it can fill one.
fn warm_up(worker: &proto::WorkerInfo) -> String {
    let proto::WorkerInfo { warm_up_job: job, warm_up_reason: reason, .. } = worker;
    match worker.warm_up() {
        proto::WarmUpState::Unspecified => "-".into(),
        proto::WarmUpState::Proving => format!("for {job}: {reason}"),
        proto::WarmUpState::Ready => format!("ready for {job}"),
        proto::WarmUpState::Failed if worker.warm_up_retry_s > 0.0 => {
            format!("failed for {job}: {reason}; tried again in {}", duration(worker.warm_up_retry_s))
        }
        proto::WarmUpState::Failed => format!("failed for {job}: {reason}"),
    }
}

fn worker_table(workers: &[proto::WorkerInfo]) -> String {
    let header = [
        "WORKER",
        "HOST",
        "PID",
        "DEVICE",
        "MEMORY",
        "JOB",
        "RANK",
        "COMPUTES A STEP",
        "SILENT",
        "VERSION",
        "FINGERPRINT",
        "LINKS",
        "WARM-UP",
    ];
    let mut rows = vec![header.map(String::from).to_vec()];
    rows.extend(workers.iter().map(|w| {
        let (job, rank) = match w.state() {
            proto::WorkerState::Aside => ("(aside)", "-".to_string()),
            proto::WorkerState::Retired => ("(drained)", "-".to_string()),
            proto::WorkerState::Cordoned => ("(cordoned)", "-".to_string()),
            _ if w.rank < 0 => ("(spare)", "-".to_string()),
            _ => (w.job_id.as_str(), w.rank.to_string()),
        };
        let (silent, fingerprint) = (duration(w.silent_s), w.fingerprint.clone());
        vec![
            w.worker_id.clone(),
            w.host.clone(),
            w.pid.to_string(),
            w.device.clone(),
            memory(w),
            job.into(),
            rank,
            computes(w),
            silent,
            w.build_version.clone(),
            fingerprint,
            links::in_words(&w.links),
            warm_up(w),
        ]
    }));
    workers.iter().filter_map(kept_out).fold(table(&rows), |text, line| text + &line + "\n")
}

/// Why a worker without a place is given none.
fn kept_out(w: &proto::WorkerInfo) -> Option<String> {
    let id = &w.worker_id;
    match w.state() {
        proto::WorkerState::Aside => Some(format!(
            "{id} is put aside for {} more: {}; `toroid workers --readmit {id}` ends that",
            duration(w.aside_s),
            w.state_reason
        )),
        proto::WorkerState::Retired | proto::WorkerState::Cordoned => {
            Some(format!("{id} is no spare: {}", w.state_reason))
        }
        _ if w.is_cordoned => Some(format!("{id} is cordoned: it keeps its place and gets no other")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_says_where_the_place_goes() {
        let drained = |job_id: &str, replacement: &str| {
            drain_line("w3", &proto::DrainWorkerResponse { job_id: job_id.into(), replacement: replacement.into() })
        };
        assert!(drained("", "").contains("w3 was a spare"));
        assert!(drained("tiny-1", "").contains("once a spare is there"));
        assert!(drained("tiny-1", "w8").starts_with("w8 takes the place of w3 in tiny-1"));
    }

    #[test]
    fn the_table_says_who_does_what_and_who_is_kept_out() {
        let worker = |worker_id: &str, rank| proto::WorkerInfo {
            worker_id: worker_id.into(),
            host: "h".into(),
            device: "cpu".into(),
            fingerprint: "f".into(),
            build_version: "0.1.0".into(),
            job_id: if rank < 0 { String::new() } else { "tiny-1".into() },
            rank,
            silent_s: 0.25,
            pid: 4242,
            memory_bytes: if rank < 0 { 0 } else { 60_000_000_000 },
            memory_free_bytes: 20_000_000_000,
            compute_s: if rank < 0 { 0.0 } else { 0.0412 },
            slow_factor: f64::from(rank.max(0)),
            warm_up: if rank < 0 { proto::WarmUpState::Failed } else { proto::WarmUpState::Unspecified }.into(),
            warm_up_job: if rank < 0 { "tiny-1".into() } else { String::new() },
            warm_up_reason: if rank < 0 { "no data".into() } else { String::new() },
            warm_up_retry_s: if rank < 0 { 5.0 } else { 0.0 },
            links: (rank >= 0).then(|| ("tcp".to_string(), 2)).into_iter().collect(),
            ..Default::default()
        };
        assert_eq!(
            worker_table(&[worker("w0", 0), worker("w1", -1)]),
            "WORKER  HOST  PID   DEVICE  MEMORY                 JOB      RANK  COMPUTES A STEP  SILENT  VERSION  FINGERPRINT  LINKS                WARM-UP\n\
             w0      h     4242  cpu     60.0 GB, 20.0 GB free  tiny-1   0     41.2 ms          0.2 s   0.1.0    f            2 tcp in clear text  -\n\
             w1      h     4242  cpu     -                      (spare)  -     -                0.2 s   0.1.0    f            -                    failed for tiny-1: no data; tried again in 5.0 s\n"
        );
        assert!(worker_table(&[worker("w2", 2)]).contains("41.2 ms, slow: 2.0 times its peers"));
        let mut aside = worker("w1", -1);
        aside.set_state(proto::WorkerState::Aside);
        (aside.state_reason, aside.aside_s) = ("it was lost 3 times within 10 minutes".into(), 1740.0);
        let text = worker_table(&[aside]);
        assert!(text.contains("(aside)  -") && !text.contains("(spare)"), "{text}");
        let why = "w1 is put aside for 29 min";
        assert!(text.contains(why) && text.contains("3 times within") && text.contains("--readmit w1"), "{text}");
        let mut cordoned = worker("w1", -1);
        cordoned.set_state(proto::WorkerState::Cordoned);
        cordoned.state_reason = "a user cordoned it".into();
        let text = worker_table(&[cordoned, proto::WorkerInfo { is_cordoned: true, ..worker("w2", 2) }]);
        assert!(text.contains("(cordoned)") && text.contains("w1 is no spare: a user cordoned it"), "{text}");
        assert!(text.contains("w2 is cordoned: it keeps its place"), "{text}");
    }
}
