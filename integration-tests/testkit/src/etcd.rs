//! An etcd cluster of real processes, for tests: members can be killed, stopped and started again on their data.
//!
//! The program is `etcd` on the search path (`scripts/setup.sh` installs Debian's package), or what `TOROID_TEST_ETCD` names: tests run with other versions.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::Patience;

/// Members that hear nothing for so long choose another leader among them. A busy machine of two cores must not look dead.
const ELECTION_MS: &str = "1000";

struct Member {
    client: u16,
    peer: u16,
    /// Health and figures, without TLS or a user.
    metrics: u16,
    child: Option<Child>,
}

/// Members are numbered from 0. All end with it.
pub struct Etcd {
    dir: tempfile::TempDir,
    members: Vec<Member>,
    flags: Vec<String>,
    scheme: &'static str,
}

impl Etcd {
    /// Returns when all members have a leader.
    pub fn start(num_members: usize) -> Result<Etcd> {
        Etcd::start_with(num_members, &[])
    }

    /// The same, with more flags for each.
    pub fn start_with(num_members: usize, flags: &[&str]) -> Result<Etcd> {
        Etcd::open(tempfile::tempdir()?, num_members, flags, "http")
    }

    /// One member that speaks TLS, and only with who shows a certificate: see [`Etcd::pem`].
    pub fn start_with_tls() -> Result<Etcd> {
        let dir = tempfile::tempdir()?;
        make_certificates(dir.path())?;
        let pem = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let (ca, certificate, key) = (pem("ca.pem"), pem("etcd.pem"), pem("etcd.key"));
        let flags = ["--client-cert-auth", "--trusted-ca-file", &ca, "--cert-file", &certificate, "--key-file", &key];
        Etcd::open(dir, 1, &flags, "https")
    }

    fn open(dir: tempfile::TempDir, num_members: usize, flags: &[&str], scheme: &'static str) -> Result<Etcd> {
        let ports = free_ports(3 * num_members)?;
        let members =
            ports.chunks(3).map(|p| Member { client: p[0], peer: p[1], metrics: p[2], child: None }).collect();
        let flags = flags.iter().map(ToString::to_string).collect();
        let mut etcd = Etcd { dir, members, flags, scheme };
        for n in 0..num_members {
            etcd.spawn(n)?;
        }
        etcd.wait_until_healthy()?;
        Ok(etcd)
    }

    /// Of all members, as `--etcd` takes them.
    pub fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| format!("{}://127.0.0.1:{}", self.scheme, m.client)).collect()
    }

    /// Of a member that speaks TLS: `ca.pem`, who signs; `etcd.pem` and `etcd.key`, a certificate for both sides.
    pub fn pem(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn log(&self, n: usize) -> PathBuf {
        self.dir.path().join(format!("log{n}"))
    }

    fn spawn(&mut self, n: usize) -> Result<()> {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let cluster: Vec<String> =
            self.members.iter().enumerate().map(|(n, m)| format!("n{n}={}", url(m.peer))).collect();
        let log = std::fs::File::options().create(true).append(true).open(self.log(n))?;
        let program = std::env::var_os("TOROID_TEST_ETCD").unwrap_or_else(|| "etcd".into());
        let member = &self.members[n];
        let client = format!("{}://127.0.0.1:{}", self.scheme, member.client);
        let child = Command::new(&program)
            .args(["--name", &format!("n{n}"), "--election-timeout", ELECTION_MS, "--heartbeat-interval", "100"])
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("n{n}")))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &url(member.peer), "--initial-advertise-peer-urls", &url(member.peer)])
            .args(["--listen-metrics-urls", &url(member.metrics)])
            .args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"])
            // As docs/operate.md advises: it has so many writes in memory.
            .args(["--snapshot-count", "10000"])
            .args(&self.flags)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}; scripts/setup.sh installs it", Path::new(&program).display()))?;
        self.members[n].child = Some(child);
        Ok(())
    }

    /// Waits until all that run say that they have a leader.
    pub fn wait_until_healthy(&self) -> Result<()> {
        for n in (0..self.members.len()).filter(|n| self.members[*n].child.is_some()) {
            let mut patience = Patience::new();
            while !self.ask(n, "/health").is_some_and(|answer| answer.contains("\"health\":\"true\"")) {
                let log = || std::fs::read_to_string(self.log(n)).unwrap_or_default();
                patience.look(|| log().len()).with_context(|| format!("wait for member {n} of etcd\n{}", log()))?;
            }
        }
        Ok(())
    }

    /// The member that the others follow.
    pub fn leader(&self) -> Result<usize> {
        let mut patience = Patience::new();
        loop {
            let leads = |n: &usize| {
                self.members[*n].child.is_some()
                    && self.ask(*n, "/metrics").is_some_and(|answer| answer.contains("etcd_server_is_leader 1"))
            };
            if let Some(n) = (0..self.members.len()).find(leads) {
                return Ok(n);
            }
            patience.look(|| 0).context("wait for a leader of etcd")?;
        }
    }

    fn ask(&self, n: usize, path: &str) -> Option<String> {
        let address = (Ipv4Addr::LOCALHOST, self.members[n].metrics).into();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// `kill -9`.
    pub fn kill(&mut self, n: usize) -> Result<()> {
        let Some(mut child) = self.members[n].child.take() else { bail!("member {n} of etcd does not run") };
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Starts a member again, on its data.
    pub fn restart(&mut self, n: usize) -> Result<()> {
        self.spawn(n)
    }

    pub fn signal(&self, n: usize, signal: Signal) -> Result<()> {
        let child =
            self.members[n].child.as_ref().with_context(|| format!("signal member {n} of etcd, which does not run"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a process has an id")?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            if let Some(child) = &mut member.child {
                // It may have ended by itself.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// A CA, and a certificate of the loopback that it has signed, for servers and clients.
fn make_certificates(folder: &Path) -> Result<()> {
    std::fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")?;
    let new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    for arguments in [
        format!("req -x509 {new_key} -keyout ca.key -out ca.pem -days 30 -subj /CN=tests"),
        format!("req {new_key} -keyout etcd.key -out etcd.csr -subj /CN=etcd"),
        "x509 -req -in etcd.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -out etcd.pem -extfile extensions"
            .into(),
    ] {
        let run = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output();
        let output = run.context("run openssl; scripts/setup.sh installs it")?;
        ensure!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

fn free_ports(num: usize) -> Result<Vec<u16>> {
    let listeners: std::io::Result<Vec<TcpListener>> = (0..num).map(|_| TcpListener::bind("127.0.0.1:0")).collect();
    listeners?.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}
