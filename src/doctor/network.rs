//! Names, addresses and a port: whether other hosts can dial a worker of this one.

use std::net::{IpAddr, Ipv4Addr, TcpListener, ToSocketAddrs as _};

use super::check::Check;
use crate::daemon::host_name;

pub fn checks() -> Vec<Check> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let name = host_name();
    let resolved = (name.as_str(), 0).to_socket_addrs().map(|found| found.map(|a| a.ip()).collect::<Vec<_>>());
    let own = addresses(&read("/proc/net/fib_trie"), &read("/proc/net/if_inet6"));
    vec![of_name(&name, resolved.map_err(|e| e.to_string())), interfaces(&own), listens()]
}

fn in_words(addresses: &[IpAddr]) -> String {
    toroid_torus::units::names(addresses, 6)
}

fn of_name(name: &str, resolved: Result<Vec<IpAddr>, String>) -> Check {
    const EXPECTED: &str = "an address that other hosts reach";
    const TO_DO: &str = "harmless on one machine. With others: start workers with --advertise and a coordinator with --advertise, naming what \
                         others reach; or mend /etc/hosts";
    match resolved {
        Err(error) => Check::warning("host name", format!("`{name}` is not found: {error}"), EXPECTED, TO_DO),
        Ok(mut found) => {
            found.sort();
            found.dedup();
            let is_well = found.iter().any(|ip| !ip.is_loopback());
            Check::judged("host name", format!("`{name}` is {}", in_words(&found)), is_well, EXPECTED, TO_DO)
        }
    }
}

fn interfaces(own: &[IpAddr]) -> Check {
    match own {
        [] => Check::warning(
            "addresses",
            "none but the loopback's".to_string(),
            "an address that other hosts reach",
            "only workers of this machine can work together here; connect it to a network",
        ),
        [one] => Check::ok("addresses", one.to_string()),
        several => Check::ok(
            "addresses",
            format!(
                "{}: a worker listens on the one that faces its coordinator; `toroid worker --listen` and --advertise name another",
                in_words(several)
            ),
        ),
    }
}

/// Addresses of this machine beyond the loopback, as /proc/net lists them.
fn addresses(fib_trie: &str, if_inet6: &str) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in fib_trie.lines() {
        if let Some((_, address)) = line.split_once("|-- ") {
            last = address.trim().parse().ok();
        } else if line.contains("host LOCAL")
            && let Some(address) = last
        {
            found.push(address.into());
        }
    }
    // Address, index, length of the prefix, scope (00 is global), flags, name.
    for line in if_inet6.lines() {
        let mut words = line.split_whitespace();
        let (address, scope) = (words.next(), words.nth(2));
        if let (Some(Ok(bits)), Some("00")) = (address.map(|a| u128::from_str_radix(a, 16)), scope) {
            found.push(std::net::Ipv6Addr::from(bits).into());
        }
    }
    found.retain(|ip| !ip.is_loopback());
    found.sort();
    found.dedup();
    found
}

fn listens() -> Check {
    match TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)) {
        Ok(_) => Check::ok(
            "ports",
            "a worker can listen; which port is chosen anew each time, unless --listen names one for a firewall",
        ),
        Err(error) => Check::wrong(
            "ports",
            format!("listening on a free port failed: {error}"),
            "a port for the links of a worker",
            "let this process listen: a sandbox or a security module forbids it, or no port is free",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::*;

    #[test]
    fn addresses_are_read_as_the_kernel_lists_them() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.0.0.0\n        /24 link UNICAST\n     |-- 10.0.0.7\n        /32 host LOCAL\n     \
                    |-- 127.0.0.1\n        /32 host LOCAL\nLocal:\n     |-- 10.0.0.7\n        /32 host LOCAL\n";
        let v6 = "00000000000000000000000000000001 01 80 10 80       lo\n20010db8000000000000000000000007 02 40 00 80     eth0\n\
                  fe800000000000000000000000000007 02 40 20 80     eth0\n";
        let found: Vec<String> = addresses(trie, v6).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.7", "2001:db8::7"]);
        assert!(addresses("", "nonsense\n").is_empty());
    }

    #[test]
    fn a_name_of_the_loopback_is_unusual() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(of_name("h", Ok(vec![ip("127.0.1.1")])).state, State::Warning);
        assert_eq!(of_name("h", Ok(vec![ip("127.0.1.1"), ip("10.0.0.7")])).state, State::Ok);
        assert_eq!(of_name("h", Err("no such name".into())).state, State::Warning);
        assert_eq!(interfaces(&[]).state, State::Warning);
        assert_eq!(interfaces(&[ip("10.0.0.7"), ip("10.1.0.7")]).state, State::Ok);
    }
}
