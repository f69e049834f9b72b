//! What a worker says while it has no coordinator: at once, then ever more seldom, with the reason in words.

use std::error::Error;
use std::io;
use std::time::Duration;

use tonic::{Code, Status};

/// After the first failure it is said again when it has lasted this long, and then every [`EVERY`].
const AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
const EVERY: Duration = Duration::from_secs(60);

/// What keeps a worker from its coordinator. Another kind is said at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Unreachable,
    Lost,
    IdInUse,
}

/// The time without a coordinator, and what was said of it.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    began: Option<(Duration, Kind)>,
    num_said: u32,
}

impl Outage {
    /// Another attempt failed, `now` since any origin. Whether it is to be said: how long it has lasted.
    pub fn failed(&mut self, kind: Kind, now: Duration) -> Option<Duration> {
        let (began, _) = *self.began.filter(|(_, before)| *before == kind).get_or_insert_with(|| {
            self.num_said = 0;
            (now, kind)
        });
        self.began = Some((began, kind));
        let lasted = now.saturating_sub(began);
        let is_due = match self.num_said as usize {
            0 => true,
            n if n <= AGAIN_AFTER.len() => lasted >= AGAIN_AFTER[n - 1],
            n => lasted >= EVERY * (n - AGAIN_AFTER.len()) as u32,
        };
        self.num_said += u32::from(is_due);
        is_due.then_some(lasted)
    }

    /// The coordinator has taken the worker: how long that took, if anything was said.
    pub fn over(&mut self, now: Duration) -> Option<Duration> {
        let (began, _) = self.began.take()?;
        self.num_said = 0;
        Some(now.saturating_sub(began))
    }
}

/// Why a coordinator is not reached: what is likely to be wrong, and the words of the system.
pub(super) fn in_words(error: &(dyn Error + 'static)) -> String {
    let chain: Vec<&(dyn Error + 'static)> = std::iter::successors(Some(error), |e| (*e).source()).collect();
    let text = chain.last().map_or_else(|| error.to_string(), ToString::to_string);
    let all = chain.iter().map(ToString::to_string).collect::<Vec<_>>().join(": ").to_lowercase();
    let has = |part: &str| all.contains(part);
    if has("dns error") || has("failed to lookup address") {
        return format!("there is no host of that name ({text})");
    }
    if has("keep-alive timed out") || has("keepalivetimedout") {
        return format!("something takes the connection and answers nothing ({text}); is it the coordinator's port?");
    }
    if has("http2 error") || has("h2 protocol error") || has("frame with invalid size") || has("status: 4") {
        return format!("what answers there speaks no gRPC, as a web server on that port would do ({text})");
    }
    // The connection ended before the request was on its way, and took the reason along.
    if has("operation was canceled") {
        return format!(
            "what answers there ends the connection at once: it speaks no gRPC, as a web server on that port would do, or it is stopping ({text})"
        );
    }
    let kind = chain.iter().find_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => return format!("nothing listens there ({text})"),
        Some(io::ErrorKind::TimedOut) => {
            return format!("nothing answers there ({text}): a firewall, or the machine is off");
        }
        Some(io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable) => {
            return format!("there is no way to that machine ({text})");
        }
        Some(io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
            return format!("it closed the connection ({text})");
        }
        _ => {}
    }
    if has("deadline has elapsed") || has("timed out") {
        return format!("nothing answers there ({text}): a firewall, or the machine is off");
    }
    match chain.iter().find_map(|e| e.downcast_ref::<Status>()) {
        Some(status) if status.code() == Code::Unimplemented => format!(
            "what answers there is no Toroid coordinator, or of another version than {}",
            toroid_proto::BUILD_VERSION
        ),
        Some(status) if !status.message().is_empty() => status.message().to_string(),
        Some(status) => status.code().description().to_string(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_at_once_and_then_ever_more_seldom() {
        let mut outage = Outage::default();
        let seconds = |kind, outage: &mut Outage, from: u64, to: u64| -> Vec<u64> {
            let said = |s: &u64| outage.failed(kind, Duration::from_secs(*s)).is_some();
            (from..to).filter(said).collect()
        };
        assert_eq!(seconds(Kind::Unreachable, &mut outage, 100, 300), [100, 101, 110, 160, 220, 280]);
        assert_eq!(seconds(Kind::IdInUse, &mut outage, 300, 312), [300, 301, 310], "another reason is said at once");
        assert_eq!(outage.over(Duration::from_secs(330)), Some(Duration::from_secs(30)));
        assert_eq!(outage.over(Duration::from_secs(331)), None);
        assert_eq!(seconds(Kind::Unreachable, &mut outage, 400, 405), [400, 401], "it begins anew");
    }

    #[test]
    fn reasons_are_words() {
        let check = |error: &(dyn Error + 'static), expected: &str| {
            let words = in_words(error);
            assert!(words.contains(expected), "{words}");
        };
        check(&io::Error::from(io::ErrorKind::ConnectionRefused), "nothing listens there");
        check(&io::Error::from(io::ErrorKind::TimedOut), "nothing answers there");
        check(&io::Error::from(io::ErrorKind::ConnectionReset), "closed the connection");
        check(&io::Error::other("dns error"), "no host of that name");
        check(&io::Error::other("operation was canceled"), "speaks no gRPC");
        check(&Status::unimplemented(""), "no Toroid coordinator");
        check(&Status::unavailable("the coordinator is stopping"), "the coordinator is stopping");
    }
}
