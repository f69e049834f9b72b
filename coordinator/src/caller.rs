//! Who makes a call, and what makes them known.

use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use toroid_proto::Role;
use toroid_security::server::{Peer, network};

/// Who makes a call: an extension of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub who: Who,
    pub address: IpAddr,
    /// When its certificate, its token or the certificate of this end does end, and its streams with it; `None`: never.
    pub good_until: Option<SystemTime>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Who {
    /// A certificate of the cluster's CA.
    Certificate {
        name: String,
        role: Role,
    },
    Token {
        id: String,
        name: String,
        role: Role,
    },
    /// The coordinator runs without certificates: whoever reaches it may do everything.
    Anyone,
    /// Showed nothing, where something is asked for.
    Nobody,
}

impl Caller {
    pub fn new(who: Who, peer: &Peer) -> Caller {
        Caller { who, address: peer.address.ip(), good_until: peer.good_until() }
    }

    pub fn may(&self, least: Option<Role>) -> bool {
        match (&self.who, least) {
            (_, None) | (Who::Anyone, _) => true,
            (Who::Certificate { role, .. } | Who::Token { role, .. }, Some(least)) => role.may(least),
            (Who::Nobody, Some(_)) => false,
        }
    }

    /// By which their calls are counted: users who are known by who they are, others by where they come from.
    pub fn account(&self) -> String {
        match self.who {
            Who::Certificate { .. } | Who::Token { .. } => self.to_string(),
            Who::Anyone | Who::Nobody => network(self.address).to_string(),
        }
    }

    /// Whose quota a job counts against. Who shows who they are submits as that; only operators submit for others.
    pub fn submits_as(&self, said: String) -> String {
        match &self.who {
            Who::Certificate { name, role } | Who::Token { name, role, .. } => {
                if !said.is_empty() && role.may(Role::Operate) { said } else { name.clone() }
            }
            Who::Anyone | Who::Nobody => said,
        }
    }

    /// The name in a worker's certificate; empty where it has none.
    pub fn certified_worker(&self) -> String {
        match &self.who {
            Who::Certificate { name, role: Role::Worker } => name.clone(),
            _ => String::new(),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Certificate { name, role } => write!(f, "certificate {name} ({role})"),
            Who::Token { id, name, role } => write!(f, "token {id} of {name} ({role})"),
            Who::Anyone => f.write_str("anyone"),
            Who::Nobody => f.write_str("nobody"),
        }
    }
}
