//! What this build is, and which versions it speaks of what several processes have in common.
//!
//! Processes of different builds work together as long as they have a version of the protocol in common, of which the greatest counts: while a cluster
//! is upgraded, its processes are replaced one by one (decision 86). The version of the program decides nothing. What decides the bits of a result has a
//! number of its own.

use std::fmt;

use crate::{Agent, Register};

/// The versions of a protocol that somebody speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Versions {
    pub oldest: u32,
    pub newest: u32,
}

impl Versions {
    pub const fn new(oldest: u32, newest: u32) -> Versions {
        Versions { oldest, newest }
    }

    /// As a message has them, in which an older build left out the oldest.
    pub fn from_wire(oldest: u32, newest: u32) -> Versions {
        Versions { oldest: if oldest == 0 { newest } else { oldest }, newest }
    }

    pub fn has(self, version: u32) -> bool {
        (self.oldest..=self.newest).contains(&version)
    }

    /// Those that both speak.
    pub fn shared(self, other: Versions) -> Option<Versions> {
        let shared = Versions::new(self.oldest.max(other.oldest), self.newest.min(other.newest));
        (shared.oldest <= shared.newest).then_some(shared)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "{}", self.newest),
            false => write!(f, "{} to {}", self.oldest, self.newest),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Of the program: information.
    pub version: String,
    /// Of the control plane, between a worker and a coordinator.
    pub protocol: Versions,
    /// Of the data plane, between two workers: handshake and frames.
    pub links: Versions,
    /// Of all arithmetic that is not in a fingerprint by itself (what a step computes, in which order sums are made): builds of one number give the same
    /// bits on the same device.
    pub numerics: u32,
}

/// Raise `protocol.newest` for what an older build cannot be told or would take wrongly, `links.newest` for another handshake or frame, and leave the oldest
/// one behind by one release; raise `numerics` when a result changes by a bit.
fn own() -> Build {
    Build {
        version: crate::BUILD_VERSION.into(),
        protocol: Versions::new(1, 1),
        links: Versions::new(7, 7),
        numerics: 1,
    }
}

static BUILD: std::sync::OnceLock<Build> = std::sync::OnceLock::new();

/// This build.
pub fn build() -> &'static Build {
    BUILD.get_or_init(own)
}

/// For tests of upgrades: this process is taken for another build from now on, as in `version=0.2.0,protocol=1-2,links=7-8,numerics=2`. What is left out is this
/// build's. To be called before anything asks.
///
/// # Errors
/// What cannot be read, in words.
#[cfg(feature = "failpoint")]
pub fn pretend(text: &str) -> Result<(), String> {
    let mut build = own();
    for item in text.split(',') {
        let bad = || format!("`{item}`; expected version=V, protocol=N-N, links=N-N or numerics=N");
        let (name, value) = item.split_once('=').ok_or_else(bad)?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| bad());
        let versions = || {
            let (oldest, newest) = value.split_once('-').ok_or_else(bad)?;
            Ok::<_, String>(Versions::new(number(oldest)?, number(newest)?))
        };
        match name {
            "version" => build.version = value.into(),
            "protocol" => build.protocol = versions()?,
            "links" => build.links = versions()?,
            "numerics" => build.numerics = number(value)?,
            _ => return Err(bad()),
        }
    }
    BUILD.set(build).map_err(|_| "too late: somebody has asked already".into())
}

impl Build {
    /// What an agent of this build says first.
    pub fn agent(&self, name: String, host: String) -> Agent {
        Agent {
            name,
            host,
            protocol_version: self.protocol.newest,
            protocol_oldest: self.protocol.oldest,
            build_version: self.version.clone(),
        }
    }

    /// What a worker of this build registers with, whoever it is.
    pub fn register(&self) -> Register {
        Register {
            protocol_version: self.protocol.newest,
            protocol_oldest: self.protocol.oldest,
            links_version: self.links.newest,
            links_oldest: self.links.oldest,
            numerics: self.numerics,
            build_version: self.version.clone(),
            ..Register::default()
        }
    }
}

impl Register {
    /// Of the control plane.
    pub fn protocol(&self) -> Versions {
        Versions::from_wire(self.protocol_oldest, self.protocol_version)
    }

    /// Of the data plane.
    pub fn links(&self) -> Versions {
        Versions::from_wire(self.links_oldest, self.links_version)
    }
}

impl Agent {
    /// Of the control plane.
    pub fn protocol(&self) -> Versions {
        Versions::from_wire(self.protocol_oldest, self.protocol_version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_common_version_counts() {
        let check = |a: (u32, u32), b: (u32, u32), expected: Option<u32>| {
            let (a, b) = (Versions::from_wire(a.0, a.1), Versions::from_wire(b.0, b.1));
            let newest = |shared: Option<Versions>| shared.map(|shared| shared.newest);
            assert_eq!(newest(a.shared(b)), expected, "{a} and {b}");
            assert_eq!(newest(b.shared(a)), expected, "{b} and {a}");
        };
        check((1, 2), (2, 3), Some(2));
        check((1, 9), (2, 3), Some(3));
        check((1, 1), (2, 3), None);
        check((0, 1), (1, 2), Some(1));
        check((0, 0), (1, 2), None);
        check((5, 3), (1, 9), None);
        assert_eq!(Versions::new(1, 2).to_string(), "1 to 2");
        assert_eq!(Versions::new(2, 2).to_string(), "2");
    }
}
