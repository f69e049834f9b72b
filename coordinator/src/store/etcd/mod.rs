//! Records in etcd, for several coordinators of which one leads.
//!
//! ```text
//!   campaign   a candidate waits for its turn, and begins a term          client   calls, each with a deadline, at one member at a time
//!   records    the store of the leader                                    keys     the layout, and edits within etcd's bounds
//!   lease      renewed while it leads; counted from when that was sent    head     who leads, and what was written last
//!   history    the past is dropped                                     service  what all of these ask of etcd: `client` does it, or a simulation
//! ```
//!
//! Every write is a transaction that compares the leader's key (the revision at which it was made, T-8) and the last write. So what a leader
//! writes that was stopped and goes on is refused; a write whose answer was lost is known again and is not made twice; and one that etcd had held back
//! cannot come after a later one.

mod campaign;
mod client;
mod config;
mod head;
mod history;
mod keys;
mod lease;
mod records;
pub mod service;

pub use campaign::{Candidate, Sight, call_limit};
pub use client::Members;
pub use config::{DEFAULT_PREFIX, EtcdConfig, EtcdTls};
pub use head::Leader;
pub use history::History;
pub use records::{EtcdStore, record_of};
pub use service::{CallError, Kind};
