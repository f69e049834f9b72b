//! Which address of this machine others dial: for the links of a worker, and for users and workers of a coordinator.
//!
//! ```text
//!   --advertise HOST[:PORT]        what it says: behind a NAT, or where a name is to stand for the address
//!   --interface NAME|CIDR          an address of that interface, or of that network
//!   --listen IP[:PORT]             that one
//!   else                           the address that faces the coordinator: others come the same way, or a way like it
//! ```
//!
//! A host of a cluster has many addresses: of bridges of container engines, which are the same on every host, of a network for storage, of both
//! families. The one that faces the coordinator is right wherever there is one network, and the kernel knows it once the coordinator's name has an
//! address. Before that there is nothing to choose by, so a worker waits: it could not register either.
//!
//! Deliberately absent: whether others reach it. That shows when they dial, before the first step.

use std::fmt;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::sync::watch;
use toroid_torus::units::names;

/// Between two looks for a way to the coordinator. Name servers keep "there is no such name" for 5 to 30 s.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Addresses that an error names.
const MAX_NAMED: usize = 12;

/// An address of this machine.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Own {
    pub interface: String,
    pub ip: IpAddr,
}

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.ip, self.interface)
    }
}

/// What `--interface` names: an interface, or the addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Interface(String),
    Network { ip: IpAddr, num_bits: u8 },
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        const EXPECTED: &str = "expected the name of an interface or a network, as in eth0, 10.0.0.0/8 or fd00::/8";
        if let Some((ip, num_bits)) = text.split_once('/') {
            let ip: IpAddr = ip.parse().map_err(|_| format!("`{ip}` is no address; {EXPECTED}"))?;
            let max = if ip.is_ipv4() { 32 } else { 128 };
            let num_bits = num_bits.parse().ok().filter(|n| *n <= max);
            let num_bits = num_bits.ok_or_else(|| format!("a prefix of `{ip}` has 0 to {max} bits; {EXPECTED}"))?;
            return Ok(Wanted::Network { ip, num_bits });
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Err(format!(
                "{ip} is an address: name it with --listen, or its network as {ip}/PREFIX; {EXPECTED}"
            ));
        }
        // Linux has 15 bytes for it.
        if text.is_empty() || text.len() > 15 || text.contains(char::is_whitespace) {
            return Err(format!("`{text}` is no name of an interface; {EXPECTED}"));
        }
        Ok(Wanted::Interface(text.into()))
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Interface(name) => f.write_str(name),
            Wanted::Network { ip, num_bits } => write!(f, "{ip}/{num_bits}"),
        }
    }
}

impl Wanted {
    fn has(&self, own: &Own) -> bool {
        match self {
            Wanted::Interface(name) => own.interface == *name,
            Wanted::Network { ip, num_bits } => is_in(own.ip, *ip, *num_bits),
        }
    }
}

fn is_in(ip: IpAddr, network: IpAddr, num_bits: u8) -> bool {
    let bits = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => (u128::from(ip.to_bits()), 32),
        IpAddr::V6(ip) => (ip.to_bits(), 128),
    };
    let ((ip, width), (network, of_network)) = (bits(ip), bits(network));
    let num_free = width - u32::from(num_bits).min(width);
    width == of_network && (ip ^ network).checked_shr(num_free).unwrap_or(0) == 0
}

/// fe80::/10: good on one cable, and only together with the name of the interface there, which differs from host to host.
pub fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The addresses of this machine, those of the loopback and of the link included.
pub fn of_this_machine() -> Result<Vec<Own>> {
    let found = nix::ifaddrs::getifaddrs().context("list the addresses of this machine")?;
    let own = |a: nix::ifaddrs::InterfaceAddress| {
        let address = a.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let ip = v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))?;
        Some(Own { interface: a.interface_name, ip })
    };
    Ok(found.filter_map(own).collect())
}

/// The address of the first of `wanted` that this machine has: of several the first of the family that `facing` has, as the kernel lists them.
/// Those that only this machine or this cable can dial do not count.
pub fn choose(own: &[Own], wanted: &[Wanted], facing: Option<IpAddr>) -> Result<IpAddr> {
    let is_like = |ip: IpAddr| facing.is_none_or(|facing| facing.is_ipv4() == ip.is_ipv4());
    for wanted in wanted {
        let has: Vec<IpAddr> = own.iter().filter(|own| wanted.has(own)).map(|own| own.ip).collect();
        let is_lo = has.iter().all(IpAddr::is_loopback);
        let mut of_others = has.iter().filter(|ip| !is_link_local(**ip) && (is_lo || !ip.is_loopback()));
        let first = of_others.clone().next();
        if let Some(ip) = of_others.find(|ip| is_like(**ip)).or(first) {
            return Ok(*ip);
        }
    }
    let wanted = names(wanted, MAX_NAMED);
    let own: Vec<&Own> = own.iter().filter(|own| !is_link_local(own.ip)).collect();
    bail!("this machine has no address of --interface {wanted}; it has {}", names(&own, MAX_NAMED))
}

/// The address of this machine from which one of the coordinators is reached. Nothing is sent. An error says of each why there is no way to it.
pub async fn facing(coordinators: &[String]) -> Result<IpAddr, String> {
    let mut words = Vec::new();
    for url in coordinators {
        let authority = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        match tokio::net::lookup_host(authority).await {
            Err(error) => words.push(format!("{authority} is not found: {error}")),
            Ok(found) => {
                // A name may have addresses of a family that this machine has not.
                for address in found {
                    match towards(address) {
                        Ok(ip) => return Ok(ip),
                        Err(error) => words.push(format!("no way to {address}: {error}")),
                    }
                }
            }
        }
    }
    Err(words.join("; "))
}

fn towards(address: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(address)?;
    Ok(socket.local_addr()?.ip())
}

/// Waits for a way to a coordinator: for its name, for a network. `None`: this process was asked to end meanwhile.
pub async fn wait_for_way(coordinators: &[String], asked: &mut watch::Receiver<u32>) -> Option<IpAddr> {
    let mut said: Option<String> = None;
    loop {
        match facing(coordinators).await {
            Ok(ip) => return Some(ip),
            Err(why) if said.as_ref() == Some(&why) => {}
            Err(why) => {
                tracing::warn!(
                    "there is no way to a coordinator yet, looks again every {} s: {why}",
                    LOOK_AGAIN.as_secs()
                );
                said = Some(why);
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_AGAIN) => {}
            // The sender is gone only when this process ends.
            _ = asked.wait_for(|times| *times > 0) => return None,
        }
    }
}

/// What a user says about where a worker is dialled.
#[derive(Debug, Clone, Default)]
pub struct Said {
    pub listen: Option<SocketAddr>,
    pub advertise: Option<String>,
    pub interface: Vec<Wanted>,
}

impl Said {
    /// The address that faces the coordinator says the rest.
    pub fn needs_facing(&self) -> bool {
        let is_somewhere = self.listen.is_some_and(|listen| !listen.ip().is_unspecified());
        self.advertise.is_none() && self.interface.is_empty() && !is_somewhere
    }

    /// Where to listen for links, and what peers dial if that is another address. `own`: the addresses of this machine. `host`: its name.
    ///
    /// # Errors
    ///
    /// If what is said contradicts itself, or peers could not dial what comes of it.
    pub fn for_links(self, own: &[Own], facing: Option<IpAddr>, host: &str) -> Result<(SocketAddr, Option<String>)> {
        let chosen = match self.interface[..] {
            [] => None,
            _ => Some(choose(own, &self.interface, facing)?),
        };
        let ip = chosen.or(facing);
        let everywhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let listen = self.listen.unwrap_or_else(|| ip.map_or(everywhere, |ip| SocketAddr::new(ip, 0)));
        if let Some(chosen) = chosen.filter(|ip| !listen.ip().is_unspecified() && listen.ip() != *ip) {
            bail!(
                "--listen {} and --interface, which is {chosen} here, contradict each other: leave one of them away",
                listen.ip()
            );
        }
        if self.advertise.is_some() {
            return Ok((listen, self.advertise));
        }
        if is_link_local(listen.ip()) {
            bail!(
                "{} is an address of the link, which other hosts cannot dial without knowing the interface: name another with --interface or \
                 --listen, or what they dial with --advertise",
                listen.ip()
            );
        }
        if !listen.ip().is_unspecified() {
            return Ok((listen, None));
        }
        // Nobody can dial 0.0.0.0, and one who listens there hears no IPv6. The other way it does.
        let is_heard = |ip: &IpAddr| ip.is_ipv4() || listen.is_ipv6();
        let dialled = ip.filter(|ip| is_heard(ip) && !is_link_local(*ip));
        Ok((listen, Some(dialled.map_or_else(|| host.to_string(), |ip| ip.to_string()))))
    }
}

/// What users and workers dial, `https://host:port`, where that is not the address that a coordinator listens on.
pub fn of_coordinator(
    (scheme, listening): (&str, SocketAddr),
    own: &[Own],
    interface: &[Wanted],
    host: &str,
) -> Result<Option<String>> {
    let port = listening.port();
    match interface {
        // Nobody can dial 0.0.0.0: the host's name stands for it.
        [] => Ok(listening.ip().is_unspecified().then(|| format!("{scheme}://{host}:{port}"))),
        interface => {
            let chosen = choose(own, interface, Some(listening.ip()))?;
            let is_heard = listening.ip() == chosen
                || listening.ip().is_unspecified() && (chosen.is_ipv4() || listening.is_ipv6());
            if !is_heard {
                bail!(
                    "--interface is {chosen} here, and the coordinator listens on {}: they contradict each other",
                    listening.ip()
                );
            }
            Ok(Some(format!("{scheme}://{}", SocketAddr::new(chosen, port))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// A host with a bridge of a container engine, which every host has, a network for storage, and both families.
    fn host() -> Vec<Own> {
        let own =
            |(interface, ip): (&str, &str)| Own { interface: interface.into(), ip: ip.parse().expect("an address") };
        [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("docker0", "172.17.0.1"),
            ("eth0", "10.1.2.3"),
            ("eth0", "fe80::3"),
            ("eth0", "fd00:1::3"),
            ("eth0", "fd00:1::4"),
            ("ib0", "192.168.7.3"),
            ("wg0", "fe80::9"),
        ]
        .map(own)
        .to_vec()
    }

    fn wanted(texts: &[&str]) -> Vec<Wanted> {
        texts.iter().map(|text| text.parse().expect("an interface or a network")).collect()
    }

    #[test]
    fn an_address_is_chosen_by_interface_or_network() {
        let check = |texts: &[&str], facing: Option<&str>, expected: Result<&str, &str>| {
            let found = choose(&host(), &wanted(texts), facing.map(ip)).map_err(|e| e.to_string());
            match expected {
                Ok(expected) => assert_eq!(found, Ok(ip(expected)), "{texts:?} {facing:?}"),
                Err(words) => assert!(found.as_ref().is_err_and(|e| e.contains(words)), "{texts:?}: {found:?}"),
            }
        };
        check(&["eth0"], None, Ok("10.1.2.3"));
        check(&["eth0"], Some("10.9.9.9"), Ok("10.1.2.3"));
        // As the coordinator is reached: never the address of the link, which is the first of its family.
        check(&["eth0"], Some("fd00:1::3"), Ok("fd00:1::3"));
        check(&["ib0"], Some("fd00:1::3"), Ok("192.168.7.3"));
        check(&["fd00::/8"], None, Ok("fd00:1::3"));
        check(&["fd00:1::4/128"], None, Ok("fd00:1::4"));
        check(&["10.0.0.0/8"], None, Ok("10.1.2.3"));
        check(&["0.0.0.0/0"], None, Ok("172.17.0.1"));
        // The first that is there, for hosts that differ.
        check(&["eth7", "ib0", "eth0"], None, Ok("192.168.7.3"));
        check(&["10.200.0.0/16", "192.168.0.0/16"], None, Ok("192.168.7.3"));
        check(&["lo"], None, Ok("127.0.0.1"));
        check(
            &["eth7"],
            None,
            Err(
                "no address of --interface eth7; it has 127.0.0.1 (lo), ::1 (lo), 172.17.0.1 (docker0), 10.1.2.3 (eth0)",
            ),
        );
        check(&["wg0"], None, Err("no address of --interface wg0"));
        check(&["fe80::/10"], None, Err("no address of --interface fe80::/10"));
    }

    #[test]
    fn what_names_an_interface_is_a_name_or_a_network() {
        for text in ["eth0", "enp3s0f1np1", "10.0.0.0/8", "fd00::/8", "::/0", "10.1.2.3/32"] {
            assert_eq!(text.parse::<Wanted>().map(|wanted| wanted.to_string()).as_deref(), Ok(text));
        }
        for (text, words) in [
            ("10.0.0.0/33", "0 to 32 bits"),
            ("fd00::/129", "0 to 128 bits"),
            ("fd00::/", "0 to 128 bits"),
            ("eth0/8", "`eth0` is no address"),
            ("10.1.2.3", "--listen"),
            ("", "no name"),
            ("a name that is too long", "no name"),
        ] {
            let error = text.parse::<Wanted>().err().unwrap_or_default();
            assert!(error.contains(words) && error.contains("eth0, 10.0.0.0/8"), "{text}: {error}");
        }
    }

    #[test]
    fn an_address_is_in_a_network_of_its_family_alone() {
        assert!(is_in(ip("10.255.0.1"), ip("10.0.0.0"), 8) && !is_in(ip("11.0.0.1"), ip("10.0.0.0"), 8));
        assert!(is_in(ip("10.0.0.1"), ip("0.0.0.0"), 0) && !is_in(ip("::1"), ip("0.0.0.0"), 0));
        assert!(is_in(ip("fd00::1"), ip("::"), 0) && is_in(ip("fd00::1"), ip("fd00::1"), 128));
        assert!(is_link_local(ip("fe80::1")) && is_link_local(ip("febf::1")) && !is_link_local(ip("fec0::1")));
    }

    #[test]
    fn links_listen_where_the_coordinator_is_reached_and_are_dialled_there() {
        let check =
            |listen: Option<&str>, advertise: Option<&str>, interface: &[&str], facing: Option<&str>, expected| {
                let listen = listen.map(|l| l.parse().expect("parse the address"));
                let said = Said { listen, advertise: advertise.map(String::from), interface: wanted(interface) };
                let found = said.for_links(&host(), facing.map(ip), "node-7");
                let found = found.map(|(listen, advertise)| (listen.to_string(), advertise)).map_err(|e| e.to_string());
                let expected: Result<(&str, Option<&str>), &str> = expected;
                match expected {
                    Ok((listen, advertise)) => assert_eq!(found, Ok((listen.into(), advertise.map(String::from)))),
                    Err(words) => assert!(found.as_ref().is_err_and(|e| e.contains(words)), "{found:?}"),
                }
            };
        let (v4, v6) = (Some("10.1.2.3"), Some("fd00:1::3"));
        check(None, None, &[], v4, Ok(("10.1.2.3:0", None)));
        check(None, None, &[], v6, Ok(("[fd00:1::3]:0", None)));
        check(Some("127.0.0.1:9"), None, &[], v4, Ok(("127.0.0.1:9", None)));
        check(Some("0.0.0.0:9"), None, &[], v4, Ok(("0.0.0.0:9", Some("10.1.2.3"))));
        check(Some("[::]:9"), None, &[], v6, Ok(("[::]:9", Some("fd00:1::3"))));
        check(Some("[::]:9"), None, &[], v4, Ok(("[::]:9", Some("10.1.2.3"))));
        // Who listens there hears no IPv6.
        check(Some("0.0.0.0:9"), None, &[], v6, Ok(("0.0.0.0:9", Some("node-7"))));
        check(Some("0.0.0.0:9"), Some("pod.svc"), &[], v4, Ok(("0.0.0.0:9", Some("pod.svc"))));
        check(None, Some("nat:7071"), &[], None, Ok(("0.0.0.0:0", Some("nat:7071"))));
        check(None, None, &["ib0"], v4, Ok(("192.168.7.3:0", None)));
        check(Some("0.0.0.0:9"), None, &["ib0"], v4, Ok(("0.0.0.0:9", Some("192.168.7.3"))));
        check(Some("192.168.7.3:9"), None, &["ib0"], v4, Ok(("192.168.7.3:9", None)));
        check(Some("10.1.2.3:9"), None, &["ib0"], v4, Err("contradict each other"));
        check(None, None, &["ib9"], v4, Err("no address of --interface ib9"));
        check(None, None, &[], Some("fe80::3"), Err("an address of the link"));
        check(Some("[fe80::3]:9"), None, &[], v6, Err("an address of the link"));
    }

    #[test]
    fn only_who_says_nothing_needs_the_way_to_the_coordinator() {
        let said = |listen: Option<&str>, advertise: Option<&str>, interface: &[&str]| Said {
            listen: listen.map(|l| l.parse().expect("parse the address")),
            advertise: advertise.map(String::from),
            interface: wanted(interface),
        };
        assert!(said(None, None, &[]).needs_facing() && said(Some("0.0.0.0:7"), None, &[]).needs_facing());
        assert!(!said(Some("10.0.0.1:7"), None, &[]).needs_facing());
        assert!(!said(None, Some("h"), &[]).needs_facing() && !said(None, None, &["eth0"]).needs_facing());
    }

    #[test]
    fn a_coordinator_is_dialled_by_its_host_or_at_the_interface() {
        let check = |listening: &str, interface: &[&str], expected: Result<Option<&str>, &str>| {
            let listening = listening.parse().expect("parse the address");
            let found =
                of_coordinator(("https", listening), &host(), &wanted(interface), "node-7").map_err(|e| e.to_string());
            match expected {
                Ok(expected) => assert_eq!(found, Ok(expected.map(String::from))),
                Err(words) => assert!(found.as_ref().is_err_and(|e| e.contains(words)), "{found:?}"),
            }
        };
        check("0.0.0.0:7070", &[], Ok(Some("https://node-7:7070")));
        check("10.1.2.3:7070", &[], Ok(None));
        check("0.0.0.0:7070", &["eth0"], Ok(Some("https://10.1.2.3:7070")));
        check("[::]:7070", &["eth0"], Ok(Some("https://[fd00:1::3]:7070")));
        check("[::]:7070", &["ib0"], Ok(Some("https://192.168.7.3:7070")));
        check("10.1.2.3:7070", &["eth0"], Ok(Some("https://10.1.2.3:7070")));
        check("10.1.2.3:7070", &["ib0"], Err("contradict each other"));
        check("0.0.0.0:7070", &["fd00::/8"], Err("contradict each other"));
    }

    #[tokio::test]
    async fn the_way_to_a_coordinator_on_this_machine_is_the_loopback() {
        let urls = |urls: &[&str]| urls.iter().map(|url| (*url).to_string()).collect::<Vec<_>>();
        assert_eq!(facing(&urls(&["http://127.0.0.1:7070"])).await, Ok(ip("127.0.0.1")));
        let found = facing(&urls(&["http://no such host:7070", "localhost:7070"])).await;
        assert!(found.is_ok_and(|ip| ip.is_loopback()));
        let error = facing(&urls(&["http://no such host:7070"])).await.err().unwrap_or_default();
        assert!(error.contains("no such host:7070 is not found"), "{error}");
    }

    /// As a supervisor or Kubernetes ends one that waits for ever.
    #[tokio::test]
    async fn who_waits_for_a_way_ends_when_it_is_asked_to() {
        let (ask, mut asked) = watch::channel(0);
        let urls = ["http://no such host:7070".to_string()];
        let waits = wait_for_way(&urls, &mut asked);
        let asks = async { ask.send_replace(1) };
        let (found, _) = tokio::join!(waits, asks);
        assert_eq!(found, None);
    }

    #[test]
    fn the_loopback_is_among_the_addresses_of_this_machine() {
        let own = of_this_machine().expect("list them");
        assert!(own.iter().any(|own| own.interface == "lo" && own.ip.is_loopback()), "{own:?}");
    }
}
