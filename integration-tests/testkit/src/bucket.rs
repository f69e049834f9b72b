//! An S3-compatible store as a real process, for tests: it can be killed and started again on its data.
//!
//! Two programs from PyPI, which `scripts/setup.sh` installs; both keep objects and unfinished parts as files. `localbucket` heeds conditions of
//! writes, and takes any key. `nanio` checks signatures and keeps metadata, and does as if conditions were not there.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{Patience, free_port, root};

const NAME: &str = "bucket";
/// The one key that [`Bucket::start_strict`] takes.
const KEY: [&str; 2] = ["TESTKEY", "of-no-use-elsewhere"];

/// One bucket of one store, which ends with it.
pub struct Bucket {
    dir: tempfile::TempDir,
    port: u16,
    is_strict: bool,
    child: Option<Child>,
}

impl Bucket {
    /// A store that heeds conditions of writes. Returns when it answers.
    pub fn start() -> Result<Bucket> {
        Bucket::open(false)
    }

    /// A store that checks signatures.
    pub fn start_strict() -> Result<Bucket> {
        Bucket::open(true)
    }

    fn open(is_strict: bool) -> Result<Bucket> {
        let port = free_port()?;
        let mut bucket = Bucket { dir: tempfile::tempdir()?, port, is_strict, child: None };
        fs::create_dir_all(bucket.folder())?;
        bucket.start_again()?;
        Ok(bucket)
    }

    /// The store, as `AWS_ENDPOINT_URL` names it.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Of what is below `prefix`.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{NAME}/{prefix}")
    }

    /// What a process needs in its environment to use the store.
    pub fn variables(&self) -> Vec<(&'static str, String)> {
        let endpoint = ("AWS_ENDPOINT_URL", self.endpoint());
        vec![endpoint, ("AWS_ACCESS_KEY_ID", KEY[0].into()), ("AWS_SECRET_ACCESS_KEY", KEY[1].into())]
    }

    /// Where its objects lie, as files named by their keys.
    pub fn folder(&self) -> PathBuf {
        self.dir.path().join("data").join(NAME)
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Ends the process with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// `Signal::STOP` has it answer nobody, `Signal::CONT` all that have asked.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("signal a store that does not run")?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process has an id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Starts the process on its data, and returns when it answers.
    pub fn start_again(&mut self) -> Result<()> {
        self.kill();
        let (bin, data, port) = (root().join(".venv/bin"), self.dir.path().join("data"), self.port.to_string());
        let program = bin.join(if self.is_strict { "nanio" } else { "localbucket" });
        let mut command = Command::new(&program);
        if self.is_strict {
            command.args(["serve", "--host", "127.0.0.1", "--port", &port, "--no-access-log", "--data-dir"]).arg(data);
            command.env("NANIO_ACCESS_KEY", KEY[0]).env("NANIO_SECRET_KEY", KEY[1]);
        } else {
            command.args(["--port", &port]).arg(data);
        }
        let log = File::options().create(true).append(true).open(self.log())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let started =
            command.spawn().with_context(|| format!("start {} (scripts/setup.sh installs it)", program.display()));
        let child = self.child.insert(started?);
        let mut patience = Patience::new();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "{} ended with {status}: {}",
                    program.display(),
                    fs::read_to_string(self.log()).unwrap_or_default()
                );
            }
            patience.look(|| ())?;
        }
        Ok(())
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.kill();
    }
}
