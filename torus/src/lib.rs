//! The pure mathematics of Toroid.
//!
//! ```text
//!  job      job files: what a user asks for, checked and with defaults filled in
//!  labels   names and values that workers have and jobs ask for
//!  model    dims, presets and tensors of the model         partition  which slice of which tensor a place holds
//!  geometry places, groups, rows and columns of the torus  placement  which worker fills which place
//!  collective, pipeline  schedules as data                 cursor     which sample of a source comes when
//!  mixture  which sample of which source comes when        cut        what of a source is held out, samples of the rest
//!  schedule learning rate and weight decay by step         manifest   what a checkpoint consists of
//!  init     the first value of every weight                holders    which two places keep each shard
//!  plan     memory, traffic, step time and goodput of a job by formulas
//!  units    sizes and times for people                 digest     what two holders of a shard compare
//!  owner    whose a folder of checkpoints is
//!  ids      steps, epochs, ranks, workers, jobs: numbers and names that are not taken for one another
//!  resplit  another number of replicas: who keeps a place, which part of the state goes where
//!  failpoint  decisions that a test has go wrong
//! ```
//!
//! Deliberately absent: tokio, sockets, files, clocks, random sources, `HashMap`. Time and seeds are arguments, so the same
//! inputs give the same outputs (`integration-tests/tidy.rs` keeps it so).

#![forbid(unsafe_code)]

pub mod collective;
pub mod cursor;
pub mod cut;
pub mod digest;
pub mod failpoint;
pub mod geometry;
pub mod holders;
pub mod ids;
pub mod init;
pub mod job;
pub mod labels;
pub mod manifest;
pub mod mixture;
pub mod model;
pub mod owner;
pub mod partition;
pub mod pipeline;
pub mod placement;
pub mod plan;
pub mod resplit;
pub mod schedule;
pub mod units;
