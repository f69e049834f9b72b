//! Why a coordinator is not reached, in words.

use std::error::Error;
use std::io;

use tonic::{Code, Status};

/// What is likely to be wrong, and the words of the system.
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
        Some(io::ErrorKind::NotFound) => return format!("there is no such socket ({text})"),
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

/// Where the coordinator is that leads, as one that does not has said.
pub(super) fn leader(error: &(dyn Error + 'static)) -> Option<String> {
    let mut chain = std::iter::successors(Some(error), |e| (*e).source());
    let status = chain.find_map(|e| e.downcast_ref::<Status>())?;
    Some(status.metadata().get(toroid_proto::LEADER_METADATA)?.to_str().ok()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

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
