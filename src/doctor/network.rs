//! Names, addresses and a port: whether other hosts can dial a worker of this one.

use std::net::{IpAddr, Ipv4Addr, TcpListener, ToSocketAddrs as _};

use super::check::Check;
use crate::addresses::{self, Own};
use crate::daemon::host_name;

pub fn checks() -> Vec<Check> {
    let name = host_name();
    let resolved = (name.as_str(), 0).to_socket_addrs().map(|found| found.map(|a| a.ip()).collect::<Vec<_>>());
    vec![of_name(&name, resolved.map_err(|e| e.to_string())), interfaces(addresses::of_this_machine()), listens()]
}

fn in_words<T: std::fmt::Display>(addresses: &[T]) -> String {
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

fn interfaces(found: anyhow::Result<Vec<Own>>) -> Check {
    const EXPECTED: &str = "an address that other hosts reach";
    let mut own = match found {
        Ok(own) => own,
        Err(error) => {
            let to_do = "let this process see its network: a sandbox or a security module forbids it";
            return Check::warning("addresses", format!("{error:#}"), EXPECTED, to_do);
        }
    };
    own.retain(|own| !own.ip.is_loopback() && !addresses::is_link_local(own.ip));
    match &own[..] {
        [] => Check::warning(
            "addresses",
            "none but the loopback's".to_string(),
            EXPECTED,
            "only workers of this machine can work together here; connect it to a network",
        ),
        [one] => Check::ok("addresses", one.to_string()),
        several => Check::ok(
            "addresses",
            format!(
                "{}: a worker listens on the one that faces its coordinator; `toroid worker --interface` names another",
                in_words(several)
            ),
        ),
    }
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
    fn a_name_of_the_loopback_is_unusual() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(of_name("h", Ok(vec![ip("127.0.1.1")])).state, State::Warning);
        assert_eq!(of_name("h", Ok(vec![ip("127.0.1.1"), ip("10.0.0.7")])).state, State::Ok);
        assert_eq!(of_name("h", Err("no such name".into())).state, State::Warning);
    }

    #[test]
    fn a_host_without_an_address_of_its_own_is_unusual() {
        let check = |all: &[(&str, &str)], state: State, words: &str| {
            let own = |(interface, ip): &(&str, &str)| Own {
                interface: (*interface).into(),
                ip: ip.parse().expect("an address"),
            };
            let found = interfaces(Ok(all.iter().map(own).collect()));
            assert!(found.state == state && found.found.contains(words), "{found:?}");
        };
        check(&[("lo", "127.0.0.1"), ("eth0", "fe80::7")], State::Warning, "none but");
        check(&[("lo", "127.0.0.1"), ("eth0", "10.0.0.7")], State::Ok, "10.0.0.7 (eth0)");
        check(&[("eth0", "10.0.0.7"), ("docker0", "172.17.0.1")], State::Ok, "172.17.0.1 (docker0): a worker listens");
        assert_eq!(interfaces(Err(anyhow::anyhow!("not allowed"))).state, State::Warning);
    }
}
