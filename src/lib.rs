//! Everything that the binary `toroid` does: every command of the user, and the daemons.
//!
//! ```text
//!   local       a whole cluster of child processes of this binary      coordinator, worker   daemon; worker --restart   supervise
//!   agent       daemon: the workers of a host over one stream
//!   addresses   where this machine is dialled                         files   what users name, within a bound
//!   chaos       faults on such a cluster, and a verdict                 bench   figures of this machine
//!   submit      jobfile (paths), then progress and summary (--wait)     status, events   one job, once or as it goes on
//!   jobs        the list of jobs                                        queue   cancel, hold, release, resume
//!   incidents   what failed and what it cost                            workers   the list; cordon, uncordon, drain
//!   explain     the same in plain words, with what to do                trace   what the time of steps went to
//!   top         the cluster in a terminal                               doctor  is this machine fit, is the cluster well
//!   shell       completions and manual pages                            exit    with which code a command ends
//!   certs       a private CA and its certificates                    admin   tokens, the audit record      access  credentials of a command
//!   plan        what a job needs, before it is run
//!   slurm       batch scripts                                           scale   many small trainings, and the laws that they follow; svg: plots
//!   checkpoint  now, pin, list, verify, export; find: which folder is meant  client, calls, watch: gRPC   format, output
//!   generate    text from what was trained                              model_source  which model a command means, and its weights
//!   words       tokenizer and chat template of a folder, which come along with an export
//!   companion   programs of their own: `toroid data`, `toroid serve`, `toroid redteam`
//!   cluster     coordinator and workers as child processes: `local`, `chaos`, `bench` and the system tests share it
//! ```
//!
//! It is a library so that tests run the same clusters as users ([`cluster`]), and so that a second binary, `toroid-failpoint`, is the same
//! program with the feature `failpoint`. Of other
//! programs `toroid-serve` alone depends on it: it finds models and answers as the commands here do.
//!
//! Deliberately absent: decisions about jobs; they are the coordinator's.

#![forbid(unsafe_code)]

pub mod access;
mod addresses;
mod admin;
mod agent;
mod bench;
mod calls;
mod certs;
mod chaos;
mod checkpoint;
pub mod client;
pub mod cluster;
mod command_line;
mod companion;
mod daemon;
mod dashboard;
mod doctor;
mod events;
mod exit;
mod explain;
pub mod files;
mod find;
mod format;
pub mod generate;
#[cfg(test)]
mod golden;
mod incidents;
mod jobfile;
mod jobs;
mod links;
mod local;
pub mod model_source;
pub mod output;
mod plan;
mod progress;
mod queue;
mod scale;
mod scratch;
mod shell;
mod simulate;
mod slurm;
mod status;
mod submit;
mod summary;
mod supervise;
mod svg;
mod top;
mod trace;
mod watch;
mod words;
mod workers;

pub use command_line::run;

/// Whether tests can have things go wrong in this build, at points of their choice.
pub const HAS_FAILPOINTS: bool = cfg!(feature = "failpoint");

const _: () = assert!(
    toroid_worker::HAS_FAILPOINTS == HAS_FAILPOINTS && toroid_coordinator::HAS_FAILPOINTS == HAS_FAILPOINTS,
    "worker, coordinator and `toroid` must all be built with failpoints or all without: the feature is asked for by `-p toroid-failpoint      --features failpoint` alone"
);
