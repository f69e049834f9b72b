//! A whole Toroid on this machine for tests: real processes of the binary under test, real sockets, a folder that goes away.
//!
//! Nothing here waits for a time: waits are for an event, and given up only when nothing has moved for long ([`Patience`]). A machine
//! that is busy with other things makes them longer, not wrong.

mod disk;
mod jobs;
mod patience;
mod undisturbed;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use toroid_proto::job_service_client::JobServiceClient;
use toroid_proto::{
    CancelJobRequest, GetJobRequest, Job, JobState, ListJobsRequest, ListWorkersRequest, StepRecord, SubmitJobRequest,
    WorkerInfo,
};

use crate::network::Network;

pub use disk::SmallDisk;
pub use jobs::{ENDLESS, endless_job, short_job, tiny_job, tiny_job_on};
pub use undisturbed::{Undisturbed, check_nothing_lost, is_whole, worker_of};

use patience::Patience;

/// Between two looks at what is waited for: it only keeps the cores for the workers.
const PAUSE: Duration = Duration::from_millis(20);

/// Two cores: clusters run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub fn toroid() -> Command {
    let mut command = Command::new(crate::TOROID);
    command.stdin(Stdio::null()).env("NO_COLOR", "1");
    command
}

/// Runs the binary to its end.
pub fn run(args: &[&str]) -> Result<Output> {
    toroid().args(args).output().with_context(|| format!("run toroid {}", args.join(" ")))
}

/// Runs the binary, which has to succeed, and returns what it printed.
pub fn run_ok(args: &[&str]) -> Result<String> {
    let output = run(args)?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "toroid {} failed: {stderr}", args.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}

pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Words that are in a binary only where a test can have things go wrong in it.
pub const HOOKS: [&str; 3] = ["TOROID_FAILPOINTS", "TOROID_TEST_", "failpoint: "];

/// Each job with its state, step, epoch and numbers of events, checkpoints and validations; each worker with its place.
type Movement = (Vec<(String, i32, u64, u64, (usize, usize, usize))>, Vec<(String, String, i32)>);

/// One coordinator and its workers.
pub struct Cluster {
    dir: tempfile::TempDir,
    port: u16,
    coordinator: Option<Child>,
    workers: BTreeMap<String, Child>,
    next_worker: usize,
    runtime: tokio::runtime::Runtime,
    failure_timeout_ms: u32,
    /// That can be cut; else all are on the loopback.
    network: Option<Network>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `num_workers` workers of `threads` compute threads each.
    pub fn start(num_workers: usize, threads: usize) -> Result<Cluster> {
        Cluster::with_failure_timeout(num_workers, threads, 5000)
    }

    /// The same; a silent worker is lost after `failure_timeout_ms`.
    pub fn with_failure_timeout(num_workers: usize, threads: usize, failure_timeout_ms: u32) -> Result<Cluster> {
        Cluster::open(num_workers, threads, failure_timeout_ms, false)
    }

    /// Each worker in a network namespace of its own: its network can be cut. Needs root, and says so.
    pub fn on_network(num_workers: usize, threads: usize, failure_timeout_ms: u32) -> Result<Cluster> {
        Cluster::open(num_workers, threads, failure_timeout_ms, true)
    }

    fn open(num_workers: usize, threads: usize, failure_timeout_ms: u32, has_network: bool) -> Result<Cluster> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut cluster = Cluster {
            dir: tempfile::tempdir()?,
            port: free_port()?,
            coordinator: None,
            workers: BTreeMap::new(),
            next_worker: 0,
            runtime,
            failure_timeout_ms,
            network: has_network.then(Network::new).transpose()?,
            _turn: turn,
        };
        cluster.start_coordinator()?;
        for _ in 0..num_workers {
            cluster.add_worker(threads)?;
        }
        Ok(cluster)
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::from((self.network.as_ref().map_or(Ipv4Addr::LOCALHOST, Network::host), self.port))
    }

    pub fn network(&self) -> Result<&Network> {
        self.network.as_ref().context("find the network of the cluster")
    }

    pub fn start_coordinator(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.path().join("coordinator.log"))?;
        let child = toroid()
            .args(["coordinator", "--listen", &self.address().to_string()])
            .args(["--failure-timeout-ms", &self.failure_timeout_ms.to_string()])
            .args(["--heartbeat-interval-ms", &(self.failure_timeout_ms / 5).to_string()])
            .arg("--dir")
            .arg(self.path().join("coordinator"))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the coordinator")?;
        self.coordinator = Some(child);
        Ok(())
    }

    /// `kill -9`.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        let mut child = self.coordinator.take().context("find the running coordinator")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM.
    pub fn terminate_coordinator(&self) -> Result<()> {
        let child = self.coordinator.as_ref().context("find the running coordinator")?;
        send(child, Signal::TERM).context("send SIGTERM to the coordinator")
    }

    /// Waits until the coordinator has ended by itself; returns its exit code.
    pub fn coordinator_exit_code(&mut self) -> Result<Option<i32>> {
        let child = self.coordinator.take().context("find the running coordinator")?;
        self.end_of(child, "the coordinator")
    }

    /// Starts one more worker and returns its id.
    pub fn add_worker(&mut self, threads: usize) -> Result<String> {
        self.add_worker_with(threads, None)
    }

    /// The same, with armed failpoints: `ACTION=POINT@STEP`, as in `kill=commit@15`.
    #[cfg(feature = "failpoint")]
    pub fn add_worker_that_fails(&mut self, failpoints: &str) -> Result<String> {
        self.add_worker_with(1, Some((toroid_worker::trainer::failpoint::VARIABLE, failpoints)))
    }

    fn add_worker_with(&mut self, threads: usize, variable: Option<(&str, &str)>) -> Result<String> {
        self.add_worker_as(threads, variable, &[])
    }

    /// The same, with a variable of the environment, and more flags.
    pub fn add_worker_as(&mut self, threads: usize, variable: Option<(&str, &str)>, flags: &[&str]) -> Result<String> {
        let id = self.new_id();
        let (address, mut command) = match &mut self.network {
            None => (Ipv4Addr::LOCALHOST, toroid()),
            Some(network) => {
                let address = network.add(&id)?;
                (address, network.command(&id, Path::new(crate::TOROID))?)
            }
        };
        command.envs(variable);
        self.spawn_worker(id, threads, address, command, flags)
    }

    /// Starts a worker that sees an empty folder where this one is, as if it were not mounted there. Needs root.
    pub fn add_worker_without(&mut self, threads: usize, folder: &Path) -> Result<String> {
        let id = self.new_id();
        let mut command = Command::new("unshare");
        command.env("NO_COLOR", "1");
        command.args(["--mount", "--propagation", "private", "sh", "-c"]);
        command.args(["mount -t tmpfs tmpfs \"$0\" && exec \"$@\"", path(folder), crate::TOROID]);
        self.spawn_worker(id, threads, Ipv4Addr::LOCALHOST, command, &[])
    }

    fn new_id(&mut self) -> String {
        let id = format!("w{}", self.next_worker);
        self.next_worker += 1;
        id
    }

    fn spawn_worker(
        &mut self,
        id: String,
        threads: usize,
        address: Ipv4Addr,
        mut command: Command,
        flags: &[&str],
    ) -> Result<String> {
        let log = std::fs::File::create(self.path().join(format!("{id}.log")))?;
        let child = command
            .args(["worker", "--coordinator", &self.url(), "--id", &id, "--listen", &format!("{address}:0")])
            .args(["--threads", &threads.to_string()])
            .args(flags)
            .arg("--cache")
            .arg(self.path().join("cache"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start a worker")?;
        self.workers.insert(id.clone(), child);
        Ok(id)
    }

    /// `kill -9`.
    pub fn kill_worker(&mut self, id: &str) -> Result<()> {
        self.kill_workers(&[id])
    }

    /// `kill -9` for all of them at once: nobody is waited for before the last has its signal.
    pub fn kill_workers(&mut self, ids: &[&str]) -> Result<()> {
        for id in ids {
            self.signal(id, Signal::KILL)?;
        }
        for id in ids {
            self.bury(id)?;
        }
        Ok(())
    }

    /// Sends a signal to a worker that has not been waited for.
    pub fn signal(&self, id: &str, signal: Signal) -> Result<()> {
        let child = self.workers.get(id).with_context(|| format!("find the running worker {id}"))?;
        send(child, signal).with_context(|| format!("send {signal:?} to {id}"))
    }

    /// Waits for the end of a worker that was killed or kills itself.
    pub fn bury(&mut self, id: &str) -> Result<()> {
        let mut child = self.workers.remove(id).with_context(|| format!("find the running worker {id}"))?;
        child.wait().with_context(|| format!("wait for the end of {id}"))?;
        if let Some(network) = &mut self.network {
            network.remove(id);
        }
        Ok(())
    }

    /// Those that are connected, as the coordinator has them; empty while it does not answer.
    pub fn connected(&self) -> Vec<WorkerInfo> {
        let url = self.url();
        let answer = self.runtime.block_on(async {
            let mut client = JobServiceClient::connect(url).await.ok()?;
            client.list_workers(ListWorkersRequest {}).await.ok()
        });
        answer.map_or_else(Vec::new, |answer| answer.into_inner().workers)
    }

    /// Waits until a worker has ended by itself; returns its exit code.
    pub fn exit_code(&mut self, id: &str) -> Result<Option<i32>> {
        let child = self.workers.remove(id).with_context(|| format!("find the running worker {id}"))?;
        self.end_of(child, id)
    }

    fn end_of(&self, mut child: Child, who: &str) -> Result<Option<i32>> {
        let mut patience = Patience::new();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.code());
            }
            if let Err(error) = patience.look(|| self.movement()) {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error).with_context(|| format!("wait for the end of {who}\n{}", self.logs()));
            }
        }
    }

    /// As far as all jobs and workers are; of a coordinator that does not answer, nothing.
    fn movement(&self) -> Movement {
        let url = self.url();
        let jobs = self.runtime.block_on(async {
            let mut client = JobServiceClient::connect(url).await.ok()?;
            Some(client.list_jobs(ListJobsRequest::default()).await.ok()?.into_inner().jobs)
        });
        let of_job = |job: &Job| {
            let written = (job.events.len(), job.checkpoints.len(), job.validations.len());
            (job.id.clone(), job.state, job.committed_step, job.epoch, written)
        };
        let jobs = jobs.iter().flatten().map(of_job).collect();
        (jobs, self.connected().into_iter().map(|w| (w.worker_id, w.job_id, w.rank)).collect())
    }

    /// Polls the list of connected workers until `found` says so.
    pub fn wait_for_workers(&self, what: &str, mut found: impl FnMut(&[WorkerInfo]) -> bool) -> Result<()> {
        let mut patience = Patience::new();
        while !found(&self.connected()) {
            let seen = || format!("wait for {what}; connected: {:?}\n{}", self.connected(), self.logs());
            patience.look(|| self.movement()).with_context(seen)?;
        }
        Ok(())
    }

    /// Workers whose process has ended by itself.
    pub fn dead_workers(&mut self) -> Result<Vec<String>> {
        let mut dead = Vec::new();
        for (id, child) in &mut self.workers {
            if child.try_wait()?.is_some() {
                dead.push(id.clone());
            }
        }
        Ok(dead)
    }

    /// Waits until a log has these words.
    pub fn wait_for_log(&self, log: &Path, words: &str) -> Result<()> {
        let mut patience = Patience::new();
        while !std::fs::read_to_string(log)?.contains(words) {
            let seen = || format!("wait for `{words}` in {}\n{}", log.display(), self.logs());
            patience.look(|| self.movement()).with_context(seen)?;
        }
        Ok(())
    }

    /// Submits a job file. Retries while the coordinator is not up yet.
    pub fn submit(&self, job_toml: &str) -> Result<String> {
        let request = SubmitJobRequest { job_toml: job_toml.to_string() };
        let url = self.url();
        self.runtime.block_on(async {
            let mut patience = Patience::new();
            loop {
                match JobServiceClient::connect(url.clone()).await {
                    Ok(mut client) => return Ok(client.submit_job(request).await?.into_inner().job_id),
                    // Nothing but its being there can be seen of a coordinator that comes up.
                    Err(error) => patience.look(|| ()).with_context(|| format!("reach the coordinator: {error}"))?,
                }
            }
        })
    }

    /// The job with its curve; `None` while the coordinator does not answer.
    pub fn job(&self, id: &str) -> Option<Job> {
        let request = GetJobRequest { job_id: id.into(), include_curve: true, curve_from_step: 0 };
        let url = self.url();
        self.runtime.block_on(async {
            let client = JobServiceClient::connect(url).await.ok()?;
            client.max_decoding_message_size(256 << 20).get_job(request).await.ok().map(tonic::Response::into_inner)
        })
    }

    /// Polls the job until `found` says so; fails when the job ends before.
    pub fn wait_for(&self, id: &str, what: &str, mut found: impl FnMut(&Job) -> bool) -> Result<Job> {
        let mut patience = Patience::new();
        loop {
            if let Some(job) = self.job(id) {
                if found(&job) {
                    return Ok(job);
                }
                let state = job.state();
                if matches!(state, JobState::Failed | JobState::Done | JobState::Cancelled) {
                    bail!("waited for {what}, but {id} is {state:?}: {}\n{}", brief(&job), self.logs());
                }
            }
            let seen = || {
                let job = self.job(id).map_or_else(|| "no coordinator".into(), |job| brief(&job));
                format!("wait for {what} of {id}; last seen: {job}\n{}", self.logs())
            };
            patience.look(|| self.movement()).with_context(seen)?;
        }
    }

    /// Waits until the job is done.
    pub fn done(&self, id: &str) -> Result<Job> {
        self.wait_for(id, "the end", |job| job.state() == JobState::Done)
    }

    /// Ends an endless job at its next checkpoint, and returns it as far as that.
    pub fn finish(&self, id: &str) -> Result<Job> {
        let last = self.job(id).map_or(0, |job| job.committed_step);
        let mut job = self.wait_for(id, "another checkpoint", |job| job.checkpoints.iter().any(|c| c.step > last))?;
        let step = job.checkpoints.iter().map(|c| c.step).filter(|step| *step > last).min();
        let step = step.context("find the checkpoint just seen")?;
        let url = self.url();
        self.runtime.block_on(async {
            let mut client = JobServiceClient::connect(url).await?;
            client.cancel_job(CancelJobRequest { job_id: id.into() }).await?;
            anyhow::Ok(())
        })?;
        job.curve.retain(|record| record.step <= step);
        job.validations.retain(|validation| validation.step <= step);
        job.committed_step = step;
        Ok(job)
    }

    /// Submits and waits until done.
    pub fn train(&self, job_toml: &str) -> Result<Job> {
        let id = self.submit(job_toml)?;
        self.done(&id)
    }

    /// Where the job's checkpoints are.
    pub fn checkpoints(&self, id: &str) -> PathBuf {
        self.path().join("coordinator/jobs").join(id).join("checkpoints")
    }

    /// All parameters of a checkpoint as the bytes of one safetensors file.
    pub fn export(&self, id: &str, step: u64) -> Result<Vec<u8>> {
        let file = self.path().join(format!("{id}-{step}.safetensors"));
        let from = self.checkpoints(id);
        run_ok(&["checkpoint", "export", &step.to_string(), path(&file), "--from", path(&from)])?;
        Ok(std::fs::read(file)?)
    }

    fn log_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(self.path()).into_iter().flatten().flatten().map(|e| e.path()).collect();
        files.retain(|file| file.extension().is_some_and(|e| e == "log"));
        files.sort();
        files
    }

    /// The ends of all logs, for messages of failing tests.
    pub fn logs(&self) -> String {
        let mut out = String::new();
        for file in &self.log_files() {
            let Ok(file_open) = std::fs::File::open(file) else { continue };
            let lines: Vec<String> = BufReader::new(file_open).lines().map_while(Result::ok).collect();
            out.push_str(&format!("--- {}\n", file.file_name().unwrap_or_default().to_string_lossy()));
            for line in &lines[lines.len().saturating_sub(12)..] {
                out.push_str(line);
                out.push('\n');
            }
        }
        out
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.workers.values_mut().chain(self.coordinator.as_mut()) {
            // They may have ended by themselves.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn send(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?).context("a process id is not 0")?;
    Ok(kill_process(pid, signal)?)
}

/// A job without its curve, for messages of failing tests.
fn brief(job: &Job) -> String {
    let places: Vec<&str> = job.places.iter().map(|place| place.worker_id.as_str()).collect();
    let mut text = format!("{:?} at step {}, epoch {}: {}\n", job.state(), job.committed_step, job.epoch, job.reason);
    text.push_str(&format!("  places {places:?}, {} spares\n", job.spares));
    for event in &job.events {
        text.push_str(&format!("  step {} epoch {} {}: {}\n", event.step, event.epoch, event.kind, event.text));
    }
    text
}

pub fn path(p: &Path) -> &str {
    p.to_str().expect("test folders have UTF-8 names")
}

/// What must be equal to the bit in two runs of one job: everything but times and epochs.
pub fn figures(curve: &[StepRecord]) -> Vec<StepRecord> {
    let timeless = |r: &StepRecord| StepRecord {
        tokens_per_s: 0.0,
        step_s: 0.0,
        hidden_s: 0.0,
        exposed_s: 0.0,
        epoch: 0,
        ..r.clone()
    };
    curve.iter().map(timeless).collect()
}

/// The file that a rank has written into a checkpoint, whatever the epoch.
pub fn shard_file(step: &Path, rank: usize) -> Result<PathBuf> {
    let is_of_rank = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str());
        name.is_some_and(|n| n.starts_with(&format!("shard-{rank:05}-of-")) && n.ends_with(".safetensors"))
    };
    let entries = std::fs::read_dir(step).with_context(|| format!("list {}", step.display()))?;
    let mut files = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(is_of_rank);
    files.next().with_context(|| format!("find the shard of rank {rank} in {}", step.display()))
}

/// Compares two curves bit for bit and names the first step that differs.
pub fn assert_same_curve(left: &[StepRecord], right: &[StepRecord]) {
    assert_eq!(left.len(), right.len(), "the curves have different lengths");
    for (l, r) in figures(left).iter().zip(&figures(right)) {
        assert_eq!(l, r, "step {} differs", l.step);
    }
}

/// Some text to train on: this repository's own sources.
pub fn text_folder() -> PathBuf {
    Path::new(crate::ROOT).join("torus/src")
}
