//! A whole Toroid on this machine for tests: processes of the binary under test, real sockets, a folder that goes away.
//!
//! The processes are those of `toroid local` ([`toroid::cluster::children`]), and questions go through the client of the command line. What
//! is added is what tests need: one cluster at a time, calls that block, waits for what is to be seen, and no child that is replaced.
//!
//! Nothing here waits for a time: waits are for an event, and given up only when nothing has moved for long ([`Patience`]). A machine
//! that is busy with other things makes them longer, not wrong.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use toroid::access::Access;
use toroid::client::Client;
use toroid::cluster::children::{COORDINATOR, Children, Settings, Special};
use toroid::cluster::network::Cut;
use toroid_proto::{GetLeaderResponse, Job, JobState, WorkerInfo};

use crate::{Patience, Toroid, path};

/// Two cores: clusters run one after the other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// One of several coordinators that takes longer is not the one that leads, or not for long.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// Each job with its state, step, epoch and numbers of events, checkpoints and validations; each worker with its place.
type Movement = (Vec<(String, i32, u64, u64, (usize, usize, usize))>, Vec<(String, String, i32)>);

/// Of a process.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub resident_kib: u64,
    /// The most that it ever was.
    pub peak_kib: u64,
    /// Sockets included.
    pub num_files: usize,
}

impl Usage {
    fn of(pid: u32) -> Result<Usage> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read its status")?;
        let kib = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
            value.with_context(|| format!("find {key} in the status of process {pid}"))
        };
        let num_files = std::fs::read_dir(format!("/proc/{pid}/fd")).context("list its open files")?.count();
        Ok(Usage { resident_kib: kib("VmRSS:")?, peak_kib: kib("VmHWM:")?, num_files })
    }
}

/// One coordinator and its workers.
pub struct Cluster {
    toroid: Toroid,
    dir: tempfile::TempDir,
    children: Children,
    /// Where each job has its checkpoints that several coordinators share.
    shared: Mutex<BTreeMap<String, PathBuf>>,
    /// Children that have ended by themselves or were killed, until somebody asks for how.
    ended: BTreeMap<String, ExitStatus>,
    runtime: tokio::runtime::Runtime,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `num_workers` workers of `threads` compute threads each.
    pub fn start(toroid: Toroid, num_workers: usize, threads: usize) -> Result<Cluster> {
        Cluster::with_failure_timeout(toroid, num_workers, threads, 5000)
    }

    /// The same; a silent worker is lost after `failure_timeout_ms`.
    pub fn with_failure_timeout(
        toroid: Toroid,
        num_workers: usize,
        threads: usize,
        failure_timeout_ms: u32,
    ) -> Result<Cluster> {
        Cluster::open(toroid, num_workers, threads, failure_timeout_ms, false, &[])
    }

    /// Each process with these variables in its environment.
    pub fn with_environment(toroid: Toroid, num_workers: usize, environment: &[(&str, &str)]) -> Result<Cluster> {
        let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        Cluster::opened(toroid, num_workers, 1, |settings| settings.environment = environment.iter().map(own).collect())
    }

    /// Several coordinators, of which one leads, each with a folder of its own, and their records in an etcd that these are the members of.
    /// Returns when one leads.
    pub fn with_coordinators(
        toroid: Toroid,
        etcd: &[String],
        num_coordinators: usize,
        num_workers: usize,
    ) -> Result<Cluster> {
        Cluster::with_coordinators_and_environment(toroid, etcd, (num_coordinators, num_workers), &[])
    }

    /// The same, each process with these variables in its environment.
    pub fn with_coordinators_and_environment(
        toroid: Toroid,
        etcd: &[String],
        (num_coordinators, num_workers): (usize, usize),
        environment: &[(&str, String)],
    ) -> Result<Cluster> {
        let mut cluster = Cluster::opened(toroid, 0, 1, |settings| {
            settings.failure_timeout = Some(Duration::from_secs(5));
            settings.etcd = etcd.to_vec();
            settings.environment = environment.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        })?;
        for n in 2..=num_coordinators {
            cluster.start_coordinator_named(&format!("{COORDINATOR}-{n}"))?;
        }
        for _ in 0..num_workers {
            cluster.add_worker(1)?;
        }
        cluster.leader()?;
        Ok(cluster)
    }

    /// Each worker in a network namespace of its own: its network can be cut. Needs root, and says so.
    pub fn on_network(toroid: Toroid, num_workers: usize, threads: usize, failure_timeout_ms: u32) -> Result<Cluster> {
        Cluster::open(toroid, num_workers, threads, failure_timeout_ms, true, &[])
    }

    fn open(
        toroid: Toroid,
        num_workers: usize,
        threads: usize,
        failure_timeout_ms: u32,
        has_network: bool,
        etcd: &[String],
    ) -> Result<Cluster> {
        Cluster::opened(toroid, num_workers, threads, |settings| {
            settings.failure_timeout = Some(Duration::from_millis(failure_timeout_ms.into()));
            settings.has_network = has_network;
            settings.etcd = etcd.to_vec();
        })
    }

    fn opened(
        toroid: Toroid,
        num_workers: usize,
        threads: usize,
        special: impl FnOnce(&mut Settings),
    ) -> Result<Cluster> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        // A thread beside the test's own sees at once who has ended. Children are started by the test's, which they do not outlive.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let dir = tempfile::tempdir()?;
        let mut settings = Settings { executable: toroid.executable().into(), ..Settings::new(dir.path(), threads)? };
        special(&mut settings);
        let children = Children::new(&settings)?;
        let mut cluster =
            Cluster { toroid, dir, children, shared: Mutex::default(), ended: BTreeMap::new(), runtime, _turn: turn };
        cluster.start_coordinator()?;
        for _ in 0..num_workers {
            cluster.add_worker(threads)?;
        }
        Ok(cluster)
    }

    /// For processes that are started from now on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.children.set_environment(name, value);
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn url(&self) -> String {
        self.children.url()
    }

    /// As an admin.
    pub fn access(&self) -> Access {
        self.children.access()
    }

    /// As a worker.
    pub async fn worker_channel(&self) -> Result<tonic::transport::Channel> {
        let authority = self.url().trim_start_matches("https://").to_string();
        let access = Access::by_folder(&authority, &self.certificates().join("worker"))?;
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{authority}"))?;
        Ok(toroid_security::connect(endpoint, &access.credentials).await?)
    }

    /// The process of a child that has not ended.
    pub fn pid(&self, child: &str) -> Option<u32> {
        self.children.pid(child)
    }

    /// The folder of the cluster's CA.
    pub fn certificates(&self) -> PathBuf {
        self.children.certificates()
    }

    /// The file of one child's words.
    pub fn log(&self, child: &str) -> PathBuf {
        self.children.log(child)
    }

    pub(crate) fn wait_on<T>(&self, what: impl Future<Output = T>) -> T {
        self.runtime.block_on(what)
    }

    /// Asks the coordinator as a user does.
    fn ask<T>(&self, question: impl AsyncFnOnce(&mut Client) -> Result<T>) -> Result<T> {
        self.runtime.block_on(async { question(&mut Client::find(&self.children.access()).await?).await })
    }

    /// Cuts a worker off.
    pub fn cut(&mut self, worker: &str, from: Cut) -> Result<()> {
        self.children.cut(worker, from).map(drop)
    }

    /// Takes the last cut back.
    pub fn heal(&mut self) -> Result<()> {
        self.children.heal()
    }

    /// Returns when it listens.
    pub fn start_coordinator(&mut self) -> Result<()> {
        self.runtime.block_on(self.children.start_coordinator()).context("start the coordinator")
    }

    /// One of several: it listens where it did before.
    pub fn start_coordinator_named(&mut self, name: &str) -> Result<()> {
        self.runtime.block_on(self.children.start_coordinator_named(name)).with_context(|| format!("start {name}"))
    }

    /// Waits until a coordinator leads that answers at once; its name and its term.
    pub fn leader(&self) -> Result<(String, u64)> {
        let mut patience = Patience::new();
        loop {
            for (name, url) in self.children.urls() {
                let found = self.asked(&url).ok().filter(|leader| leader.leads);
                if let Some(leader) = found {
                    return Ok((name, leader.term));
                }
            }
            patience.look(|| 0).with_context(|| format!("wait for a leader\n{}", self.logs()))?;
        }
    }

    /// What one coordinator says of who leads.
    pub fn leader_as_seen_by(&self, name: &str) -> Result<GetLeaderResponse> {
        let urls = self.children.urls();
        self.asked(urls.get(name).with_context(|| format!("find the address of {name}"))?)
    }

    fn asked(&self, url: &str) -> Result<GetLeaderResponse> {
        let asking = async { Client::connect(url, &self.access().credentials).await?.leader().await };
        self.runtime.block_on(async { tokio::time::timeout(ANSWERS_WITHIN, asking).await? })
    }

    /// `kill -9`.
    pub fn kill_coordinator(&mut self) -> Result<()> {
        self.kill_workers(&[COORDINATOR])
    }

    /// The coordinator is killed, and all that it has kept is gone.
    pub fn lose_store(&mut self) -> Result<()> {
        self.kill_coordinator()?;
        let folder = self.path().join(COORDINATOR);
        std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))
    }

    /// SIGTERM.
    pub fn terminate_coordinator(&self) -> Result<()> {
        self.signal(COORDINATOR, Signal::TERM)
    }

    /// Waits until the coordinator has ended by itself; returns its exit code.
    pub fn coordinator_exit_code(&mut self) -> Result<Option<i32>> {
        self.exit_code(COORDINATOR)
    }

    /// Starts one more worker and returns its id.
    pub fn add_worker(&mut self, threads: usize) -> Result<String> {
        self.add_worker_with(threads, &[])
    }

    /// The same, with armed failpoints: `ACTION=POINT@STEP`, as in `kill=commit@15`. Only with a binary that has them.
    pub fn add_worker_that_fails(&mut self, failpoints: &str) -> Result<String> {
        self.add(1, Special { failpoints: Some(failpoints), ..Special::default() })
    }

    /// The same, with more flags.
    pub fn add_worker_with(&mut self, threads: usize, flags: &[&str]) -> Result<String> {
        self.add(threads, Special { flags, ..Special::default() })
    }

    /// Starts an agent, or starts it again, and returns its socket.
    pub fn start_agent(&mut self, name: &str) -> Result<PathBuf> {
        self.runtime.block_on(self.children.start_agent(name)).with_context(|| format!("start {name}"))
    }

    /// Starts a worker that asks the agent at this socket before the coordinator.
    pub fn add_worker_behind(&mut self, agent: &Path) -> Result<String> {
        self.add(1, Special { agent: Some(agent), ..Special::default() })
    }

    /// Starts a worker that has no other way than this agent.
    pub fn add_worker_by_agent_alone(&mut self, agent: &Path) -> Result<String> {
        self.add(1, Special { agent: Some(agent), knows_agent_alone: true, ..Special::default() })
    }

    /// Starts a worker that sees an empty folder where this one is, as if it were not mounted there. Needs root.
    pub fn add_worker_without(&mut self, threads: usize, folder: &Path) -> Result<String> {
        let command = "mount -t tmpfs tmpfs \"$0\" && exec \"$@\"";
        let through = ["unshare", "--mount", "--propagation", "private", "sh", "-c", command, path(folder)];
        self.add(threads, Special { through: &through, ..Special::default() })
    }

    fn add(&mut self, threads: usize, special: Special<'_>) -> Result<String> {
        let _inside = self.runtime.enter();
        self.children.start_worker(Special { threads: Some(threads), ..special })
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

    /// Sends a signal to a child that has not ended.
    pub fn signal(&self, id: &str, signal: Signal) -> Result<()> {
        self.runtime.block_on(self.children.signal(id, signal)).map(drop)
    }

    /// Waits for the end of a worker that was killed or kills itself.
    pub fn bury(&mut self, id: &str) -> Result<()> {
        self.end_of(id).map(drop)
    }

    /// Waits until a worker has ended by itself; returns its exit code.
    pub fn exit_code(&mut self, id: &str) -> Result<Option<i32>> {
        Ok(self.end_of(id)?.code())
    }

    /// The same with the signal, if that was it.
    pub fn end_of(&mut self, who: &str) -> Result<ExitStatus> {
        let mut patience = Patience::new();
        loop {
            self.collect();
            if let Some(status) = self.ended.remove(who) {
                return Ok(status);
            }
            let waiting = || format!("wait for the end of {who}\n{}", self.logs());
            patience.look(|| self.movement()).with_context(waiting)?;
        }
    }

    fn collect(&mut self) {
        while let Some(ended) = self.children.try_ended() {
            self.ended.insert(ended.name, ended.status);
        }
    }

    /// Workers whose process has ended by itself.
    pub fn dead_workers(&mut self) -> Vec<String> {
        self.collect();
        self.ended.keys().filter(|name| !name.starts_with(COORDINATOR)).cloned().collect()
    }

    /// Those that are connected, as the coordinator has them; empty while it does not answer.
    pub fn connected(&self) -> Vec<WorkerInfo> {
        self.ask(Client::workers).unwrap_or_default()
    }

    /// As far as all jobs and workers are; of a coordinator that does not answer, nothing.
    fn movement(&self) -> Movement {
        let jobs = self.ask(async |client| Ok(client.jobs(usize::MAX, String::new()).await?.0)).unwrap_or_default();
        let of_job = |job: &Job| {
            let written = (job.events.len(), job.checkpoints.len(), job.validations.len());
            (job.id.clone(), job.state, job.committed_step, job.epoch, written)
        };
        let workers = self.connected().into_iter().map(|w| (w.worker_id, w.job_id, w.rank));
        (jobs.iter().map(of_job).collect(), workers.collect())
    }

    /// What the coordinator's process holds of the system.
    pub fn coordinator_usage(&self) -> Result<Usage> {
        Usage::of(self.children.pid(COORDINATOR).context("find the coordinator's process")?)
    }

    /// The same of each worker that is connected, by its id.
    pub fn workers_usage(&self) -> Result<BTreeMap<String, Usage>> {
        self.connected().into_iter().map(|w| Ok((w.worker_id, Usage::of(w.pid)?))).collect()
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

    /// Waits until a log has these words.
    pub fn wait_for_log(&self, log: &Path, words: &str) -> Result<()> {
        let mut patience = Patience::new();
        while !std::fs::read_to_string(log)?.contains(words) {
            let seen = || format!("wait for `{words}` in {}\n{}", log.display(), self.logs());
            patience.look(|| self.movement()).with_context(seen)?;
        }
        Ok(())
    }

    /// Several coordinators share the folder of a job's checkpoints, unless the job names a bucket.
    pub fn submit(&self, job_toml: &str) -> Result<String> {
        if !self.children.is_shared() || job_toml.contains("path = \"s3://") {
            return self.ask(async |client| client.submit(job_toml.into()).await);
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = self.path().join(format!("checkpoints-{}", shared.len()));
        let with_path = format!("[checkpoint]\npath = \"{}\"\n", path(&folder));
        let job_toml = job_toml.replace("[checkpoint]\n", &with_path);
        let id = self.ask(async |client| client.submit(job_toml).await)?;
        shared.insert(id.clone(), folder);
        Ok(id)
    }

    /// The job with its curve; `None` while the coordinator does not answer.
    pub fn job(&self, id: &str) -> Option<Job> {
        self.ask(async |client| client.job(id, true).await).ok()
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
        self.ask(async |client| client.cancel(id).await)?;
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
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let own = || self.path().join(COORDINATOR).join("jobs").join(id).join("checkpoints");
        shared.get(id).cloned().unwrap_or_else(own)
    }

    /// All parameters of a checkpoint as the bytes of one safetensors file.
    pub fn export(&self, id: &str, step: u64) -> Result<Vec<u8>> {
        let file = self.path().join(format!("{id}-{step}.safetensors"));
        let from = self.checkpoints(id);
        self.toroid.run_ok(&["checkpoint", "export", &step.to_string(), path(&file), "--from", path(&from)])?;
        Ok(std::fs::read(file)?)
    }

    /// The ends of all logs, for messages of failing tests.
    pub fn logs(&self) -> String {
        let folder = std::fs::read_dir(self.children.logs()).into_iter().flatten().flatten();
        let mut files: Vec<PathBuf> = folder.map(|entry| entry.path()).collect();
        files.sort();
        let mut out = String::new();
        for file in &files {
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
        // Before the folder goes.
        self.runtime.block_on(self.children.kill());
    }
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
