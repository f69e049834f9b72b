//! What the tests of several packages share.
//!
//! ```text
//!   always                jobs      job files whose steps take milliseconds, and text to train on
//!                         formula   weights and text of the reference figures, and the shapes that must reproduce them
//!                         fuzz      bytes of strangers, for parsers of any package
//!                         Patience  a wait that is given up when nothing has moved for long
//!   feature coordinator   Coordinator   one within the process of the test
//!   feature etcd          Etcd      an etcd cluster of real processes
//!   feature bucket        Bucket    an S3-compatible store: a real process, which can be killed and started again on its data
//!   feature collector     Collector of OpenTelemetry, within the process of the test
//!   feature toroid        Cluster   a whole Toroid: processes of the binary under test, by way of `toroid::cluster`
//!                         Undisturbed   what a job comes to where nothing is done to it, to be compared with
//!                         SmallDisk, Process, parse   a full disk, a process that ends with the test, flags
//! ```
//!
//! Deliberately absent: anything that only one test binary uses, and anything that a program of users needs.

pub mod formula;
pub mod fuzz;
pub mod jobs;
mod patience;

#[cfg(feature = "bucket")]
mod bucket;
#[cfg(feature = "toroid")]
mod cluster;
#[cfg(feature = "collector")]
pub mod collector;
#[cfg(feature = "coordinator")]
mod coordinator;
mod disk;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "toroid")]
mod http;
#[cfg(feature = "toroid")]
mod process;
#[cfg(feature = "toroid")]
mod undisturbed;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

#[cfg(feature = "bucket")]
pub use bucket::Bucket;
#[cfg(feature = "toroid")]
pub use cluster::Cluster;
#[cfg(feature = "coordinator")]
pub use coordinator::{Coordinator, within};
pub use disk::SmallDisk;
#[cfg(feature = "etcd")]
pub use etcd::Etcd;
pub use patience::Patience;
#[cfg(feature = "toroid")]
pub use process::{Process, Toroid, parse};
#[cfg(feature = "toroid")]
pub use undisturbed::{Undisturbed, assert_same_curve, check_nothing_lost, is_whole, shard_file, worker_of};

/// The folder of this repository.
pub fn root() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.ancestors().nth(2).expect("the package is two folders below the root").into()
}

/// A port that nobody listens on now.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

pub fn path(p: &Path) -> &str {
    p.to_str().expect("test folders have UTF-8 names")
}
