//! The processes of a cluster on this machine: one coordinator and the workers, all of them one executable.
//!
//! Faults are injected here as well: a signal goes to a child that is still waited for, so that it meets no other process.
//!
//! Invariants: no child outlives this process (`--die-with-parent`, and the end of its standard input); a child's own end is
//! reported once, by [`Children::ended`] or [`Children::try_ended`]; a terminal's Ctrl-C reaches this process alone, which then ends the children in order.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use toroid_security::issue::{Authority, REVOKED_FILE, Request};
use toroid_security::{Credentials, Files};
use toroid_worker::control::carrier::UNIX;
use toroid_worker::device::Choice;

use super::network::{Cut, Network};
use crate::access::{Access, LocalEntry, LocalRole};
use crate::daemon::LISTENS_ON;
use crate::scratch::LOCAL;

/// Children that do not end within this time after they were asked to are killed.
const GRACE: Duration = Duration::from_secs(5);
/// Of a log, this much is looked at for a child's last words.
const LAST_WORDS_BYTES: u64 = 16 << 10;

/// Below the folder of a cluster.
const CERTIFICATES_DIR: &str = "certs";
/// Certificates of a cluster on this machine are made anew by the next run, long before they end.
const CERTIFICATES_VALID: Duration = Duration::from_secs(365 * 86_400);

/// What a child is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Coordinator,
    Worker,
}

/// A child that ended by itself.
#[derive(Debug)]
pub struct Ended {
    pub role: Role,
    pub name: String,
    pub status: ExitStatus,
    pub log: PathBuf,
}

/// How to run the children.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The program `toroid`.
    pub executable: PathBuf,
    /// Folder for everything that is kept.
    pub dir: PathBuf,
    /// Of the coordinator; 0: any free one.
    pub port: u16,
    /// Of each worker.
    pub device: Choice,
    /// Compute threads of each worker.
    pub threads: usize,
    /// `None`: the coordinator's default.
    pub failure_timeout: Option<Duration>,
    /// How often workers say that they are there; `None`: five times in a failure timeout.
    pub heartbeat: Option<Duration>,
    /// Workers have a network of their own that can be cut; needs root.
    pub has_network: bool,
    /// Folder for what the first steps' time of each worker goes to.
    pub trace: Option<PathBuf>,
    /// Variables of each child's environment, beside those of this process.
    pub environment: Vec<(String, String)>,
    /// Members of the etcd that several coordinators share, `http://host:port`; empty: there is one coordinator, with a store of its own.
    pub etcd: Vec<String>,
}

/// Certificates of a cluster on this machine, made for the run: the children know one another by them, and users of this machine's user are
/// admins.
struct Certificates {
    /// A folder of credentials each.
    coordinator: PathBuf,
    worker: PathBuf,
    admin: PathBuf,
}

impl Certificates {
    /// In this folder, in the place of those of an earlier run.
    fn make(folder: &Path, host: Ipv4Addr) -> Result<Certificates> {
        LOCAL.remove(folder)?;
        let name = |text: &str| text.parse().map_err(anyhow::Error::msg);
        let authority = Authority::init(folder, &name("local")?).context("make a CA for this run")?;
        LOCAL.sign(folder)?;
        let issue = |who: &str, role: toroid_proto::Role, hosts: Vec<String>| {
            authority
                .issue(&Request { name: name(who)?, role, hosts, valid: CERTIFICATES_VALID })
                .context("make a certificate")
        };
        Ok(Certificates {
            coordinator: issue(
                "coordinator",
                toroid_proto::Role::Coordinator,
                vec!["localhost".into(), host.to_string()],
            )?,
            worker: issue(LocalRole::Worker.name(), toroid_proto::Role::Worker, Vec::new())?,
            admin: issue(LocalRole::Admin.name(), toroid_proto::Role::Admin, Vec::new())?,
        })
    }
}

impl Settings {
    /// Children of this program, on any port, with the coordinator's defaults, on whatever device there is.
    pub fn new(dir: &Path, threads: usize) -> Result<Settings> {
        Ok(Settings {
            executable: std::env::current_exe().context("find this executable")?,
            dir: dir.into(),
            port: 0,
            device: Choice::Auto,
            threads,
            failure_timeout: None,
            heartbeat: None,
            has_network: false,
            trace: None,
            environment: Vec::new(),
            etcd: Vec::new(),
        })
    }
}

/// What is special about one worker.
#[derive(Debug, Clone, Copy, Default)]
pub struct Special<'a> {
    /// `None`: as many as the others.
    pub threads: Option<usize>,
    /// Armed in it, as in `kill=commit@15`; only in a build with failpoints.
    pub failpoints: Option<&'a str>,
    /// More of them for `toroid worker`.
    pub flags: &'a [&'a str],
    /// The socket of an agent, which it asks before the coordinators.
    pub agent: Option<&'a Path>,
    /// It knows no coordinator's own address.
    pub knows_agent_alone: bool,
    /// A program with arguments that runs the command which follows it, as `env` does.
    pub through: &'a [&'a str],
}

/// The coordinator's name among the children, and its folder; further ones are `coordinator-2` and so on.
pub const COORDINATOR: &str = crate::find::COORDINATOR_DIR;

/// To be sent to one child; answered with the moment at which it was sent.
type Order = (Signal, oneshot::Sender<std::io::Result<Instant>>);

pub struct Children {
    executable: PathBuf,
    logs: PathBuf,
    /// Each coordinator's folder is below it.
    dir: PathBuf,
    cache_dir: PathBuf,
    device: Choice,
    threads: usize,
    failure_timeout: Option<Duration>,
    heartbeat: Option<Duration>,
    environment: Vec<(String, String)>,
    trace: Option<PathBuf>,
    certificates: Certificates,
    credentials: Credentials,
    /// By which other commands find the credentials, for each coordinator that listens.
    entries: BTreeMap<String, LocalEntry>,
    etcd: Vec<String>,
    network: Option<Network>,
    /// The last cut, which is not healed yet.
    cut: Option<(String, Cut)>,
    num_workers: usize,
    /// To the task of each child that was started and has not been reported as ended.
    orders: BTreeMap<String, mpsc::UnboundedSender<Order>>,
    /// Of the process that each name had last.
    pids: BTreeMap<String, u32>,
    /// Where a coordinator is to listen that never did.
    listen: SocketAddr,
    /// Where each coordinator listens, once it does; a restarted one listens there again.
    addresses: BTreeMap<String, SocketAddr>,
    ended: mpsc::UnboundedReceiver<Ended>,
    report: mpsc::UnboundedSender<Ended>,
    /// True, or dropped: all children are to end.
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Children {
    /// Makes the folders; starts nothing.
    pub fn new(settings: &Settings) -> Result<Children> {
        let folder = |name: &str| -> Result<PathBuf> {
            let path = settings.dir.join(name);
            std::fs::create_dir_all(&path).with_context(|| format!("make the folder {}", path.display()))?;
            path.canonicalize().with_context(|| format!("find the folder {}", path.display()))
        };
        let (report, ended) = mpsc::unbounded_channel();
        let network = settings.has_network.then(Network::new).transpose().context("make a network that can be cut")?;
        let host = network.as_ref().map_or(Ipv4Addr::LOCALHOST, Network::host);
        let certificates = Certificates::make(&folder("")?.join(CERTIFICATES_DIR), host)?;
        let credentials =
            Credentials::tls(Files::of_folder(&certificates.admin), None).context("read the credentials")?;
        Ok(Children {
            certificates,
            credentials,
            entries: BTreeMap::new(),
            executable: settings.executable.clone(),
            logs: folder("logs")?,
            dir: folder("")?,
            cache_dir: folder("cache")?,
            device: settings.device,
            threads: settings.threads,
            failure_timeout: settings.failure_timeout,
            heartbeat: settings.heartbeat,
            trace: settings.trace.clone(),
            environment: settings.environment.clone(),
            etcd: settings.etcd.clone(),
            num_workers: 0,
            orders: BTreeMap::new(),
            pids: BTreeMap::new(),
            network,
            cut: None,
            listen: SocketAddr::from((host, settings.port)),
            addresses: BTreeMap::new(),
            ended,
            report,
            stop: watch::channel(false).0,
            tasks: JoinSet::new(),
        })
    }

    /// For processes that are started from now on, in the place of what the variable had.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.retain(|(other, _)| other != name);
        self.environment.push((name.into(), value.into()));
    }

    /// Of the first coordinator.
    pub fn url(&self) -> String {
        format!("https://{}", self.addresses.get(COORDINATOR).unwrap_or(&self.listen))
    }

    /// Of all coordinators, by name.
    pub fn urls(&self) -> BTreeMap<String, String> {
        let known = self.addresses.iter().map(|(name, address)| (name.clone(), format!("https://{address}")));
        if self.addresses.is_empty() { BTreeMap::from([(COORDINATOR.into(), self.url())]) } else { known.collect() }
    }

    /// As an admin.
    pub fn access(&self) -> Access {
        Access { urls: self.urls().into_values().collect(), credentials: self.credentials.clone() }
    }

    /// The folder of the CA, which each child's and each user's credentials are below.
    pub fn certificates(&self) -> PathBuf {
        self.certificates.admin.with_file_name("")
    }

    /// Several coordinators share their records.
    pub fn is_shared(&self) -> bool {
        !self.etcd.is_empty()
    }

    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The file of one child's words.
    pub fn log(&self, child: &str) -> PathBuf {
        self.logs.join(format!("{child}.log"))
    }

    /// The process id of a child; `None`: it was not started, or its end was reported.
    pub fn pid(&self, child: &str) -> Option<u32> {
        self.pids.get(child).copied().filter(|_| self.orders.contains_key(child))
    }

    /// The next child that ended by itself.
    pub async fn ended(&mut self) -> Ended {
        let ended = self.ended.recv().await.expect("this end of the channel keeps a sender");
        self.note(ended)
    }

    /// A child that has ended by itself already.
    pub fn try_ended(&mut self) -> Option<Ended> {
        let ended = self.ended.try_recv().ok()?;
        Some(self.note(ended))
    }

    fn note(&mut self, ended: Ended) -> Ended {
        self.orders.remove(&ended.name);
        if let Some(network) = &mut self.network {
            network.remove(&ended.name);
        }
        ended
    }

    /// Cuts a worker off; returns when that was.
    pub fn cut(&mut self, worker: &str, from: Cut) -> Result<Instant> {
        let now = Instant::now();
        self.network()?.cut(worker, &from).with_context(|| format!("cut {worker} off"))?;
        self.cut = Some((worker.into(), from));
        Ok(now)
    }

    /// Takes the last cut back.
    pub fn heal(&mut self) -> Result<()> {
        let Some((worker, from)) = self.cut.take() else { return Ok(()) };
        self.network()?.heal(&worker, &from).with_context(|| format!("heal the network of {worker}"))
    }

    fn network(&self) -> Result<&Network> {
        self.network.as_ref().context("find the network, which was not asked for")
    }

    /// Sends a signal to a child; returns when that was. An error where it has ended already.
    pub async fn signal(&self, child: &str, signal: Signal) -> Result<Instant> {
        let has_ended = || format!("send {signal:?} to {child}, which has ended by itself");
        let (answer, answered) = oneshot::channel();
        let orders = self.orders.get(child).with_context(has_ended)?;
        orders.send((signal, answer)).ok().with_context(has_ended)?;
        answered.await.with_context(has_ended)?.with_context(|| format!("send {signal:?} to {child}"))
    }

    /// Starts the coordinator and waits until it listens, after the first time where it did before. An error has the coordinator's own words.
    pub async fn start_coordinator(&mut self) -> Result<()> {
        self.start_coordinator_named(COORDINATOR).await
    }

    /// The same for one of several: it listens where it did before.
    pub async fn start_coordinator_named(&mut self, name: &str) -> Result<()> {
        let log = self.log(name);
        let log_start = log.metadata().map_or(0, |m| m.len());
        let mut child = self.spawn_coordinator(name, &log, Stdio::piped())?;
        let stdout = child.stdout.take().context("take the coordinator's output")?;
        let Some(address) = listening_address(stdout).await else {
            let status = child.wait().await.context("wait for the coordinator")?;
            match last_words(&log, log_start) {
                Some(words) => bail!("{words}"),
                None => bail!("the coordinator ended with {status} and said nothing; see {}", log.display()),
            }
        };
        self.addresses.insert(name.into(), address);
        // One that ended left the same; dropped after the new one, it would take that away.
        self.entries.remove(name);
        self.entries.insert(name.into(), LocalEntry::leave(&address.to_string(), &self.certificates())?);
        self.tend(Role::Coordinator, name.into(), child, log);
        Ok(())
    }

    /// Starts the coordinator again, on the same folder and address.
    pub fn restart_coordinator(&mut self) -> Result<()> {
        let log = self.log(COORDINATOR);
        let child = self.spawn_coordinator(COORDINATOR, &log, Stdio::null())?;
        self.tend(Role::Coordinator, COORDINATOR.into(), child, log);
        Ok(())
    }

    fn spawn_coordinator(&self, name: &str, log: &Path, stdout: Stdio) -> Result<Child> {
        let mut command = Command::new(&self.executable);
        wire(&mut command, log)?;
        command.envs(self.environment.iter().cloned());
        command.stdout(stdout).args([
            "coordinator",
            "--die-with-parent",
            "--listen",
            &self.listen_of(name).to_string(),
        ]);
        if !self.etcd.is_empty() {
            command.args(["--etcd", &self.etcd.join(",")]);
        }
        command.arg("--dir").arg(self.dir.join(name)).arg("--credentials").arg(&self.certificates.coordinator);
        // Its users are those who started it: they may name what they may read themselves.
        command.args(["--allow-root", "/"]).arg("--revoked").arg(self.certificates().join(REVOKED_FILE));
        let of_timeout = |timeout: Duration| Duration::from_millis(timeout.as_millis().div_ceil(5) as u64);
        if let Some(timeout) = self.failure_timeout {
            command.args(["--failure-timeout-ms", &timeout.as_millis().to_string()]);
        }
        if let Some(heartbeat) = self.heartbeat.or(self.failure_timeout.map(of_timeout)) {
            command.args(["--heartbeat-interval-ms", &heartbeat.as_millis().to_string()]);
        }
        command.spawn().context("start the coordinator")
    }

    fn listen_of(&self, name: &str) -> SocketAddr {
        let any = SocketAddr::new(self.listen.ip(), 0);
        let first = if name == COORDINATOR { self.listen } else { any };
        self.addresses.get(name).copied().unwrap_or(first)
    }

    /// Starts one more worker and returns its id.
    pub fn start_worker(&mut self, special: Special<'_>) -> Result<String> {
        // An agent speaks for ids that begin with the name in its certificate, which is the workers' here.
        let prefix = if special.agent.is_some() { "worker-" } else { "w" };
        let id = format!("{prefix}{}", self.num_workers);
        self.num_workers += 1;
        let log = self.log(&id);
        // Of this run alone.
        File::create(&log).with_context(|| format!("make the log {}", log.display()))?;
        let line: Vec<&OsStr> = special.through.iter().map(OsStr::new).chain([self.executable.as_os_str()]).collect();
        let (address, mut command) = command_on(&mut self.network, &id, Path::new(line[0]))?;
        command.args(&line[1..]);
        wire(&mut command, &log)?;
        command.envs(self.environment.iter().cloned());
        command.args(["worker", "--die-with-parent", "--id", &id]);
        let agent = special.agent.map(|socket| format!("{UNIX}{}", socket.display()));
        let of_coordinators = self.urls().into_values().filter(|_| !special.knows_agent_alone);
        let addresses: Vec<String> = agent.into_iter().chain(of_coordinators).collect();
        command.args(["--coordinator", &addresses.join(",")]);
        command.arg("--credentials").arg(&self.certificates.worker).args(["--allow-root", "/"]);
        command.args([
            "--listen",
            &format!("{address}:0"),
            "--threads",
            &special.threads.unwrap_or(self.threads).to_string(),
        ]);
        command.args(["--device", &self.device.to_string()]);
        command.arg("--cache").arg(&self.cache_dir).args(special.flags);
        if let Some(folder) = &self.trace {
            command.arg("--trace").arg(folder);
        }
        #[cfg(feature = "failpoint")]
        match special.failpoints {
            Some(armed) => command.env(toroid_worker::trainer::failpoint::VARIABLE, armed),
            None => command.env_remove(toroid_worker::trainer::failpoint::VARIABLE),
        };
        assert!(
            special.failpoints.is_none() || crate::HAS_FAILPOINTS,
            "only a build with failpoints plans such deaths"
        );
        let child = command.spawn().with_context(|| format!("start the worker {id}"))?;
        self.tend(Role::Worker, id.clone(), child, log);
        Ok(id)
    }

    /// Starts an agent of this name, or starts it again, and returns its socket when it listens there.
    pub async fn start_agent(&mut self, name: &str) -> Result<PathBuf> {
        let (log, socket) = (self.log(name), self.dir.join(name));
        if let Some(network) = &mut self.network {
            network.remove(name);
        }
        let (_, mut command) = command_on(&mut self.network, name, &self.executable)?;
        wire(&mut command, &log)?;
        command.envs(self.environment.iter().cloned());
        command.args(["agent", "--die-with-parent", "--name", name, "--listen"]).arg(&socket);
        command.args(["--coordinator", &self.urls().into_values().collect::<Vec<_>>().join(",")]);
        command.arg("--credentials").arg(&self.certificates.worker);
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("start {name}"))?;
        let mut lines = BufReader::new(child.stdout.take().context("take the agent's output")?).lines();
        let first = lines.next_line().await.context("read the agent's output")?;
        if !first.is_some_and(|line| line.contains(LISTENS_ON)) {
            bail!("{name} does not listen: {}", last_words(&log, 0).unwrap_or_default());
        }
        self.tend(Role::Worker, name.into(), child, log);
        Ok(socket)
    }

    /// Starts another process of this program, which is given orders over its standard input, with which it ends, and says something over its
    /// standard output.
    pub fn start_aside(&mut self, name: &str, line: &[OsString]) -> Result<(ChildStdin, ChildStdout)> {
        let log = self.log(name);
        let mut command = Command::new(&self.executable);
        wire(&mut command, &log)?;
        let mut child = command.stdout(Stdio::piped()).args(line).spawn().with_context(|| format!("start {name}"))?;
        let (orders, words) = (child.stdin.take(), child.stdout.take());
        let ends = orders.zip(words).with_context(|| format!("take the input and the output of {name}"))?;
        self.tend(Role::Worker, name.into(), child, log);
        Ok(ends)
    }

    /// Waits for the child's end, and brings it about when all are to end.
    fn tend(&mut self, role: Role, name: String, mut child: Child, log: PathBuf) {
        let (report, mut stop) = (self.report.clone(), self.stop.subscribe());
        let stdin = child.stdin.take();
        let (orders, mut ordered) = mpsc::unbounded_channel::<Order>();
        self.orders.insert(name.clone(), orders);
        self.pids.extend(child.id().map(|pid| (name.clone(), pid)));
        self.tasks.spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    Ok(status) = child.wait() => {
                        // Nobody listens any more where this process is about to end.
                        let _ = report.send(Ended { role, name, status, log });
                        return;
                    }
                    Some((signal, answer)) = ordered.recv() => {
                        // Whoever gave the order may have gone on without an answer.
                        let _ = answer.send(send_signal(&child, signal));
                    }
                    _ = stop.wait_for(|is_over| *is_over) => break,
                }
            }
            drop(stdin);
            // A stopped process would not hear of it; for the others it changes nothing.
            let _ = send_signal(&child, Signal::CONT);
            if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                // It may end by itself at this very moment.
                let _ = child.kill().await;
            }
        });
    }

    /// Ends all children, and returns when they have ended.
    pub async fn stop(&mut self) {
        self.stop.send_replace(true);
        while self.tasks.join_next().await.is_some() {}
    }

    /// The same with SIGKILL: none of them has time for anything.
    pub async fn kill(&mut self) {
        for orders in self.orders.values() {
            // It may have ended by itself.
            let _ = orders.send((Signal::KILL, oneshot::channel().0));
        }
        self.stop().await;
    }
}

/// Runs `program` for a child where its network is, of its own where there is one; with the address that it has there.
fn command_on(network: &mut Option<Network>, child: &str, program: &Path) -> Result<(Ipv4Addr, Command)> {
    Ok(match network {
        None => (Ipv4Addr::LOCALHOST, Command::new(program)),
        Some(network) => (network.add(child)?, network.command(child, program)?.into()),
    })
}

/// Where a child's words go; its standard input says that this process lives.
fn wire(command: &mut Command, log: &Path) -> Result<()> {
    let file = File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("open the log {}", log.display()))?;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(file).process_group(0).kill_on_drop(true);
    Ok(())
}

/// The child has not been waited for to its end, so that its process id is its own.
fn send_signal(child: &Child, signal: Signal) -> std::io::Result<Instant> {
    let id = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let id = id.ok_or_else(|| std::io::Error::other("it has ended already"))?;
    let now = Instant::now();
    kill_process(id, signal)?;
    Ok(now)
}

/// The address in the line that a coordinator prints; `None` where it ends without one.
async fn listening_address(stdout: ChildStdout) -> Option<SocketAddr> {
    let mut lines = BufReader::new(stdout).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(address) = address_in(&line) {
            return Some(address);
        }
    }
    None
}

fn address_in(line: &str) -> Option<SocketAddr> {
    line.split_once(LISTENS_ON)?.1.trim().parse().ok()
}

/// The last error that a child wrote to its log after `start`, without its mark; the last line where there is none.
pub fn last_words(log: &Path, start: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(LAST_WORDS_BYTES)))).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let error = text.lines().rev().find_map(|line| line.strip_prefix("error: "));
    let words = error.or_else(|| text.lines().rev().find(|line| !line.trim().is_empty()))?;
    Some(words.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coordinators_line_is_understood() {
        assert_eq!(address_in("toroid coordinator 0.1.0 listens on 127.0.0.1:41234"), "127.0.0.1:41234".parse().ok());
        assert_eq!(address_in("toroid coordinator 0.1.0 listens on [::1]:7070"), "[::1]:7070".parse().ok());
        assert_eq!(address_in("something else"), None);
    }

    #[test]
    fn last_words_are_those_of_this_run() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let log = dir.path().join("log");
        std::fs::write(&log, "of the run before\nINFO ready\nerror: the port is taken\n\nlater\n")?;
        assert_eq!(last_words(&log, 18).as_deref(), Some("the port is taken"));
        assert_eq!(last_words(&log, 0).as_deref(), Some("the port is taken"));
        assert_eq!(last_words(&log, 54).as_deref(), Some("later"));
        assert_eq!(last_words(&log, 60), None);
        assert_eq!(last_words(&dir.path().join("none"), 0), None);
        Ok(())
    }
}
