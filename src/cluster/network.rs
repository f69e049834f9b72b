//! A network of this process's own, whose cables can be cut: each worker is in a network namespace, all of them at one bridge.
//!
//! ```text
//!   this process, coordinator            worker 1      worker 2
//!   tr<pid> 198.18.n.254               eth0 .1        eth0 .2        one namespace a worker
//!      |                                  |              |
//!    host ------------ br0 ------------- p1             p2           the hub, a namespace as well
//! ```
//!
//! A cut is silent, as that of a cable behind a switch: nothing is refused or reset, packets are gone. A port that is taken from the
//! bridge cuts a worker off from everything; a false neighbour entry at both ends cuts it off from one other. Needs root and `ip`
//! (iproute2), nothing else. Names have the process id; what a process that was killed has left is removed by the next one.
//!
//! Deliberately absent: delay, loss and bandwidth.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// Reserved for tests of networks (RFC 2544): no real one has these addresses.
const NETWORK: [u8; 2] = [198, 18];
const HOST: u8 = 254;
/// The link address of nobody.
const NOBODY: &str = "02:00:00:00:ff:ff";
const PREFIX: &str = "toroid-";

/// From what a worker is cut off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// From everyone.
    All,
    /// From the coordinator alone.
    Coordinator,
    /// From this worker alone.
    Worker(String),
}

/// Removed when dropped.
pub struct Network {
    pid: u32,
    /// Third byte of all addresses.
    subnet: u8,
    /// Last byte of a worker's address.
    workers: BTreeMap<String, u8>,
}

impl Network {
    /// An error where this process may not do it, saying what to do.
    pub fn new() -> Result<Network> {
        let user = rustix::process::geteuid();
        ensure!(
            user.is_root(),
            "a network is cut by means of network namespaces, which only root can make; this is user {}",
            user.as_raw()
        );
        remove_leftovers()?;
        let pid = std::process::id();
        let network = Network { pid, subnet: free_subnet(pid)?, workers: BTreeMap::new() };
        let hub = network.hub();
        ip(&format!("netns add {hub}"))?;
        ip(&format!("-n {hub} link add br0 type bridge"))?;
        ip(&format!("-n {hub} link set br0 up"))?;
        let host = network.host_device();
        ip(&format!("link add {host} type veth peer name host netns {hub}"))?;
        ip(&format!("-n {hub} link set host master br0 up"))?;
        ip(&format!("addr add {}/24 dev {host}", network.address(HOST)))?;
        ip(&format!("link set {host} up"))?;
        Ok(network)
    }

    /// Where this process and its coordinator are.
    pub fn host(&self) -> Ipv4Addr {
        self.address(HOST)
    }

    /// Makes a namespace for a worker; returns the worker's address in it.
    pub fn add(&mut self, worker: &str) -> Result<Ipv4Addr> {
        let free = (1..HOST).find(|n| !self.workers.values().any(|used| used == n));
        let n = free.with_context(|| format!("find an address for {worker}: {} are in use", HOST - 1))?;
        self.workers.insert(worker.into(), n);
        let (hub, space, address) = (self.hub(), self.space(n), self.address(n));
        ip(&format!("netns add {space}"))?;
        // The next one at this address has the same link address: nobody has to forget the old one.
        ip(&format!("-n {hub} link add p{n} type veth peer name eth0 address 02:00:00:00:00:{n:02x} netns {space}"))?;
        ip(&format!("-n {hub} link set p{n} master br0 up"))?;
        ip(&format!("-n {space} addr add {address}/24 dev eth0"))?;
        ip(&format!("-n {space} link set eth0 up"))?;
        ip(&format!("-n {space} link set lo up"))?;
        Ok(address)
    }

    /// The worker has ended.
    pub fn remove(&mut self, worker: &str) {
        if let Some(n) = self.workers.remove(worker) {
            // What cannot be removed now is removed with all the rest, or by the next process.
            let _ = ip(&format!("netns del {}", self.space(n)));
        }
    }

    /// Runs `program` where the worker is; it keeps the process id.
    pub fn command(&self, worker: &str, program: &Path) -> Result<Command> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.space(self.number(worker)?)]).arg(program);
        Ok(command)
    }

    /// Cuts a worker off; everyone else is reached as before.
    pub fn cut(&self, worker: &str, from: &Cut) -> Result<()> {
        self.change(worker, from, "nomaster", "replace", &format!("lladdr {NOBODY} nud permanent"))
    }

    /// Takes back [`Network::cut`].
    pub fn heal(&self, worker: &str, from: &Cut) -> Result<()> {
        self.change(worker, from, "master br0", "del", "")
    }

    fn change(&self, worker: &str, from: &Cut, port: &str, verb: &str, neighbour: &str) -> Result<()> {
        let n = self.number(worker)?;
        let end = |n: u8| (format!("-n {}", self.space(n)), "eth0".to_string());
        let (other, (there, device)) = match from {
            Cut::All => return ip(&format!("-n {} link set p{n} {port}", self.hub())),
            Cut::Coordinator => (HOST, (String::new(), self.host_device())),
            Cut::Worker(other) => (self.number(other)?, end(self.number(other)?)),
        };
        let (here, eth0) = end(n);
        ip(&format!("{here} neigh {verb} {} {neighbour} dev {eth0}", self.address(other)))?;
        ip(&format!("{there} neigh {verb} {} {neighbour} dev {device}", self.address(n)))
    }

    fn number(&self, worker: &str) -> Result<u8> {
        self.workers.get(worker).copied().with_context(|| format!("find the namespace of {worker}"))
    }

    fn address(&self, n: u8) -> Ipv4Addr {
        Ipv4Addr::new(NETWORK[0], NETWORK[1], self.subnet, n)
    }

    fn hub(&self) -> String {
        format!("{PREFIX}{}-hub", self.pid)
    }

    fn space(&self, n: u8) -> String {
        format!("{PREFIX}{}-{n}", self.pid)
    }

    fn host_device(&self) -> String {
        format!("tr{}", self.pid)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // It would go with the hub, but later: namespaces end in the background, and the next network may want the name.
        drop(ip(&format!("link del {}", self.host_device())));
        let spaces = self.workers.values().map(|n| self.space(*n)).chain([self.hub()]);
        spaces.for_each(|space| drop(ip(&format!("netns del {space}"))));
    }
}

/// One command of iproute2.
fn ip(arguments: &str) -> Result<()> {
    output_of_ip(arguments).map(drop)
}

fn output_of_ip(arguments: &str) -> Result<String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output();
    let output = output.with_context(|| format!("run `ip {arguments}`; is iproute2 installed?"))?;
    if !output.status.success() {
        bail!("`ip {arguments}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn free_subnet(pid: u32) -> Result<u8> {
    let used = output_of_ip("-4 -o addr show")?;
    let [a, b] = NETWORK;
    let is_free = |n: &u8| !used.contains(&format!(" {a}.{b}.{n}."));
    let first = pid as u8;
    let free = (0..=u8::MAX).map(|n| first.wrapping_add(n)).find(is_free);
    free.with_context(|| format!("find a free network of {a}.{b}.0.0/16"))
}

/// Of processes that were killed before they could do it themselves.
fn remove_leftovers() -> Result<()> {
    for line in output_of_ip("netns list")?.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if let Some(pid) = owner.and_then(|pid| pid.parse::<u32>().ok())
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            ip(&format!("netns del {name}"))?;
        }
    }
    Ok(())
}
