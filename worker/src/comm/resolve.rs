//! Look-ups of host names, off the thread that needs them.
//!
//! The system's resolver may take half a minute, and cannot be told to hurry. So it runs on a thread of its own, at most one for each
//! [`Lookup`]; who waits looks in between whether there is an answer, and goes on without one when its own time is over.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;

/// Look-ups of this process at a time, at most: those whose answer nobody waits for any more run on.
const MAX_LOOKUPS: usize = 256;

static NUM_RUNNING: AtomicUsize = AtomicUsize::new(0);

/// One of the look-ups that may run; given back when it is dropped.
struct Turn(&'static AtomicUsize);

impl Turn {
    fn take(num_running: &'static AtomicUsize) -> Option<Turn> {
        let more = |num: usize| (num < MAX_LOOKUPS).then_some(num + 1);
        num_running.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Turn(num_running))
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The addresses of one `host:port`, as they come to be known.
#[derive(Debug)]
pub(super) enum Lookup {
    /// An address needs no look-up.
    Known(Vec<SocketAddr>),
    Runs(Receiver<Result<Vec<SocketAddr>, String>>),
}

impl Lookup {
    pub fn begin(address: &str) -> std::io::Result<Lookup> {
        if let Ok(address) = address.parse() {
            return Ok(Lookup::Known(vec![address]));
        }
        let turn = Turn::take(&NUM_RUNNING).ok_or_else(|| {
            std::io::Error::other(format!("{MAX_LOOKUPS} names are being looked up already; is the name server away?"))
        })?;
        let (sender, receiver) = channel();
        let address = address.to_string();
        let look_up = move || {
            let _turn = turn;
            let found = address.to_socket_addrs().map(Iterator::collect).map_err(|e| e.to_string());
            // Nobody may wait for it any more.
            let _ = sender.send(found);
        };
        std::thread::Builder::new().name("resolver".into()).spawn(look_up)?;
        Ok(Lookup::Runs(receiver))
    }

    /// The addresses, if they are known by now.
    pub fn poll(&mut self) -> Option<Result<Vec<SocketAddr>, String>> {
        match self {
            Lookup::Known(addresses) => Some(Ok(std::mem::take(addresses))),
            Lookup::Runs(receiver) => match receiver.try_recv() {
                Ok(found) => Some(at_least_one(found)),
                Err(TryRecvError::Empty) => None,
                Err(TryRecvError::Disconnected) => Some(Err("its look-up ended without an answer".into())),
            },
        }
    }

    /// Waits for the addresses, at most so long.
    pub fn wait(self, limit: Duration) -> Result<Vec<SocketAddr>, String> {
        match self {
            Lookup::Known(addresses) => Ok(addresses),
            Lookup::Runs(receiver) => match receiver.recv_timeout(limit) {
                Ok(found) => at_least_one(found),
                Err(RecvTimeoutError::Timeout) => Err(format!("its name was not resolved within {limit:?}")),
                Err(RecvTimeoutError::Disconnected) => Err("its look-up ended without an answer".into()),
            },
        }
    }
}

fn at_least_one(found: Result<Vec<SocketAddr>, String>) -> Result<Vec<SocketAddr>, String> {
    match found {
        Ok(addresses) if addresses.is_empty() => Err("the name has no address".into()),
        found => found,
    }
}

/// What is wrong with an address that peers are to dial, `host:port` or a host alone, and how to write it.
pub fn check_advertised(address: &str) -> Result<(), String> {
    let expected = "write host, host:port, or [IPv6 address]:port";
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some(rest) = address.strip_prefix('[') {
        let Some((ip, after)) = rest.split_once(']') else { return Err(format!("`[` is not closed; {expected}")) };
        match ip.parse() {
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => return Err(unspecified(&ip)),
            Ok(IpAddr::V6(ip)) if ip.is_unicast_link_local() => return Err(of_the_link(&ip)),
            Ok(IpAddr::V6(_)) => {}
            Ok(IpAddr::V4(_)) | Err(_) => {
                return Err(format!("{ip:?} between the brackets is no IPv6 address; {expected}"));
            }
        }
        return match after.strip_prefix(':') {
            Some(port) if is_port(port) => Ok(()),
            Some(port) => Err(format!("{port:?} is no port from 1 to 65535; {expected}")),
            None => {
                Err(format!("the port is missing; write {ip} alone for the port that is listened on, or [{ip}]:port"))
            }
        };
    }
    let (host, port) = match address.parse::<IpAddr>() {
        Ok(_) => (address, None),
        Err(_) => address.rsplit_once(':').map_or((address, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() || host.contains(|c: char| c.is_whitespace() || "/[]@".contains(c)) {
        return Err(format!("{host:?} is no host name; {expected}"));
    }
    if host.contains(':') && host.parse::<IpAddr>().is_err() {
        return Err(format!("{host:?} is no host name and no IPv6 address; {expected}"));
    }
    if let Some(port) = port.filter(|port| !is_port(port)) {
        return Err(format!("{port:?} is no port from 1 to 65535; {expected}"));
    }
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Err(unspecified(&ip)),
        Ok(IpAddr::V6(ip)) if ip.is_unicast_link_local() => Err(of_the_link(&ip)),
        _ => Ok(()),
    }
}

fn unspecified(ip: &dyn std::fmt::Display) -> String {
    format!("{ip} is an address to listen on, and nobody can dial it; name one of this machine")
}

fn of_the_link(ip: &dyn std::fmt::Display) -> String {
    format!(
        "{ip} is an address of the link, which other hosts cannot dial without knowing the interface; name another of this machine"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_nobody_can_dial_are_refused_with_how_to_write_them() {
        let check = |address: &str, expected: &str| match check_advertised(address) {
            Ok(()) => assert_eq!(expected, "", "{address}"),
            Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{address}: {error}"),
        };
        for good in
            ["node-1", "node-1:7000", "10.0.0.1", "10.0.0.1:7000", "::1", "fd00::2", "[::1]:7000", "a.b.example"]
        {
            check(good, "");
        }
        check("[::1]", "write ::1 alone for the port that is listened on, or [::1]:port");
        check("[::1", "not closed");
        check("[node]:7", "no IPv6 address");
        check("[::1]:0", "no port from 1 to 65535");
        check("node:port", "no port");
        check("node:70000", "no port");
        check(":7000", "no host name");
        check("http://node:7000", "no host name");
        check("a:b:7", "no host name and no IPv6 address");
        check("0.0.0.0", "nobody can dial it");
        check("[::]:7000", "nobody can dial it");
        check("fe80::2", "an address of the link");
        check("[fe80::2]:7000", "an address of the link");
        check("fe80::2%eth0", "no host name and no IPv6 address");
    }

    #[test]
    fn so_many_names_are_looked_up_at_a_time() {
        static NUM: AtomicUsize = AtomicUsize::new(0);
        let turns: Vec<Turn> = std::iter::from_fn(|| Turn::take(&NUM)).collect();
        assert_eq!(turns.len(), MAX_LOOKUPS);
        drop(turns);
        assert!(Turn::take(&NUM).is_some());
    }

    #[test]
    fn an_address_needs_no_look_up_and_a_name_is_looked_up_elsewhere() {
        let mut known = Lookup::begin("127.0.0.1:7").unwrap();
        assert!(matches!(known, Lookup::Known(_)));
        assert_eq!(known.poll(), Some(Ok(vec!["127.0.0.1:7".parse().unwrap()])));
        let found = Lookup::begin("localhost:7").unwrap().wait(Duration::from_secs(60)).unwrap();
        assert!(found.iter().all(|a| a.ip().is_loopback() && a.port() == 7), "{found:?}");
        assert!(Lookup::begin("nohost.invalid:7").unwrap().wait(Duration::from_secs(60)).is_err());
    }
}
