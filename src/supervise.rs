//! `toroid worker --restart`: a process that stays and starts the worker again whenever it ends, one for each device.
//!
//! ```text
//!   container runtime, Slurm, systemd ── SIGTERM ──> this process ── a byte on its standard input ──> worker: leaves in good order
//!                                                      ^ its end: it is started again, at once or after a while
//! ```
//!
//! It is what process 1 of a container runs: a container that ends is started again by Kubernetes after up to 300 s, a worker within the
//! time that its place waits. The worker is a process of its own, since what ends it may be a SIGKILL, the memory limit or a driver.
//!
//! Invariants: no worker outlives this process (`--die-with-parent`). A SIGTERM that reaches both processes, as Slurm sends it to all of a
//! step, is one request to end: this process asks by the pipe, and the worker does not add that to the signals that it gets itself.
//!
//! Deliberately absent: giving up. Whether a worker that ends again and again is given places is the coordinator's decision, which puts it aside.

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use toroid_worker::device::Choice;

/// A worker that lived for so long was well: it is started again at once.
const WELL: Duration = Duration::from_secs(10);
/// The wait before one that was not is started again; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Exit code of a command line that is wrong, which it will be again.
const WRONG_USE: i32 = 2;

/// What a worker that is kept running does.
enum State {
    /// It is asked to end over this.
    Running {
        ask: ChildStdin,
        since: Instant,
    },
    /// It is started again then.
    Waiting {
        until: Instant,
    },
    Gone {
        well: bool,
    },
}

/// One worker of this process.
struct Kept {
    arguments: Vec<OsString>,
    state: State,
    /// Ends in a row, each after a short life.
    num_short: u32,
}

/// Runs a worker for each device until all have left, which they do once this process is asked to end.
///
/// # Errors
///
/// If a worker cannot be started.
pub async fn run(devices: &[Choice], listen: Option<SocketAddr>, mut asked: watch::Receiver<u32>) -> Result<ExitCode> {
    let given: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut workers: Vec<Kept> = arguments(&given, devices, listen).into_iter().map(Kept::new).collect();
    let (ends, mut ended) = mpsc::channel(workers.len());
    loop {
        for (i, worker) in workers.iter_mut().enumerate() {
            // From this thread: a child's life is bound to that of the thread that started it.
            if let Some(child) = worker.start_if_due()? {
                let ends = ends.clone();
                let wait = move || wait_for(child, i, &ends);
                std::thread::Builder::new().name("child".into()).spawn(wait).context("start a thread that waits")?;
            }
        }
        let gone = workers.iter().map(|worker| if let State::Gone { well } = worker.state { Some(well) } else { None });
        if let Some(all_well) = gone.collect::<Option<Vec<bool>>>() {
            return Ok(if all_well.contains(&false) { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        let next = workers.iter().filter_map(Kept::due).min();
        tokio::select! {
            Some((i, status)) = ended.recv() => {
                let status = status.context("wait for the worker")?;
                workers[i].ended(status, *asked.borrow() > 0);
            }
            Ok(()) = asked.changed() => workers.iter_mut().for_each(Kept::ask),
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

fn wait_for(mut child: Child, i: usize, ends: &mpsc::Sender<(usize, std::io::Result<ExitStatus>)>) {
    // The receiver is gone only when this process ends.
    let _ = ends.blocking_send((i, child.wait()));
}

/// The command line of each worker: as this one's, but for what says that there are several.
fn arguments(given: &[OsString], devices: &[Choice], listen: Option<SocketAddr>) -> Vec<Vec<OsString>> {
    let num = devices.len().max(1);
    let has_value = |name: &str| ["--devices", "--listen"].contains(&name);
    let mut common = Vec::new();
    let mut rest = given.iter();
    while let Some(argument) = rest.next() {
        match argument.to_str() {
            Some("--restart") => {}
            Some(name) if has_value(name) => drop(rest.next()),
            Some(text) if text.split_once('=').is_some_and(|(name, _)| has_value(name)) => {}
            _ => common.push(argument.clone()),
        }
    }
    let of_worker = |i: usize| {
        let mut own = common.clone();
        own.push("--die-with-parent".into());
        if let Some(device) = devices.get(i) {
            own.extend(["--device".into(), device.to_string().into()]);
        }
        if let Some(mut listen) = listen {
            // Each has a port of its own; 0 is any.
            let offset = if listen.port() == 0 { 0 } else { u16::try_from(i).unwrap_or(u16::MAX) };
            listen.set_port(listen.port().saturating_add(offset));
            own.extend(["--listen".into(), listen.to_string().into()]);
        }
        own
    };
    (0..num).map(of_worker).collect()
}

impl Kept {
    fn new(arguments: Vec<OsString>) -> Kept {
        Kept { arguments, state: State::Waiting { until: Instant::now() }, num_short: 0 }
    }

    fn due(&self) -> Option<Instant> {
        if let State::Waiting { until } = self.state { Some(until) } else { None }
    }

    fn start_if_due(&mut self) -> Result<Option<Child>> {
        if self.due().is_none_or(|due| due > Instant::now()) {
            return Ok(None);
        }
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(&program);
        command.args(&self.arguments).stdin(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let ask = child.stdin.take().context("take the worker's standard input")?;
        tracing::info!("worker {} was started", child.id());
        self.state = State::Running { ask, since: Instant::now() };
        Ok(Some(child))
    }

    /// Passes on that this process was asked to end.
    fn ask(&mut self) {
        match &mut self.state {
            // One that cannot be told has ended.
            State::Running { ask, .. } => drop(ask.write_all(b"e")),
            State::Waiting { .. } => self.state = State::Gone { well: true },
            State::Gone { .. } => {}
        }
    }

    fn ended(&mut self, status: ExitStatus, asked: bool) {
        let lived = if let State::Running { since, .. } = self.state { since.elapsed() } else { Duration::ZERO };
        if asked || status.code() == Some(WRONG_USE) {
            self.state = State::Gone { well: asked && status.success() };
            return;
        }
        let wait = self.wait_after(lived);
        let how = match status.signal() {
            Some(signal) => format!("by signal {signal}"),
            None => format!("with exit code {}", status.code().unwrap_or_default()),
        };
        tracing::warn!(
            "the worker ended {how} after {} s, it is started again in {} s",
            lived.as_secs(),
            wait.as_secs()
        );
        self.state = State::Waiting { until: Instant::now() + wait };
    }

    fn wait_after(&mut self, lived: Duration) -> Duration {
        if lived >= WELL {
            self.num_short = 0;
            return Duration::ZERO;
        }
        let doubled = FIRST_WAIT * 2u32.saturating_pow(self.num_short.min(16));
        self.num_short += 1;
        doubled.min(LONGEST_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(given: &[&str], devices: &[Choice], listen: Option<&str>) -> Vec<String> {
        let given: Vec<OsString> = given.iter().map(OsString::from).collect();
        let listen = listen.map(|listen| listen.parse().expect("parse the address"));
        let joined = |own: Vec<OsString>| own.join(std::ffi::OsStr::new(" ")).to_string_lossy().into_owned();
        arguments(&given, devices, listen).into_iter().map(joined).collect()
    }

    #[test]
    fn each_device_has_a_worker_with_a_port_of_its_own() {
        let one = lines(&["worker", "--restart", "--host", "n1"], &[], None);
        assert_eq!(one, ["worker --host n1 --die-with-parent"]);
        let given = ["worker", "--restart", "--devices", "cuda:0,cuda:1", "--listen=10.0.0.1:7071", "--rack", "r"];
        let two = lines(&given, &[Choice::Cuda(0), Choice::Cuda(1)], Some("10.0.0.1:7071"));
        let common = "worker --rack r --die-with-parent";
        assert_eq!(
            two,
            [
                format!("{common} --device cuda:0 --listen 10.0.0.1:7071"),
                format!("{common} --device cuda:1 --listen 10.0.0.1:7072"),
            ]
        );
        let any = lines(&given, &[Choice::Cuda(0), Choice::Cuda(1)], Some("[fd00::1]:0"));
        assert!(any.iter().all(|line| line.ends_with("--listen [fd00::1]:0")), "{any:?}");
    }

    #[test]
    fn a_worker_that_was_well_is_started_again_at_once_and_others_ever_later() {
        let mut kept = Kept::new(Vec::new());
        let waits: Vec<u64> = (0..7).map(|_| kept.wait_after(Duration::ZERO).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(kept.wait_after(WELL), Duration::ZERO);
        assert_eq!(kept.wait_after(Duration::ZERO), FIRST_WAIT);
    }

    #[test]
    fn who_was_asked_to_end_and_who_was_called_wrongly_is_not_started_again() {
        let end = |raw: i32, asked: bool| {
            let mut kept = Kept::new(Vec::new());
            kept.ended(ExitStatus::from_raw(raw), asked);
            match kept.state {
                State::Gone { well } => Some(well),
                _ => None,
            }
        };
        assert_eq!(end(0, true), Some(true));
        assert_eq!(end(1 << 8, true), Some(false));
        assert_eq!(end(WRONG_USE << 8, false), Some(false));
        for again in [0, 1 << 8, 9] {
            assert_eq!(end(again, false), None, "{again}");
        }
    }
}
