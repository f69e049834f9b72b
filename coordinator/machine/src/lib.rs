//! The coordinator's decisions, as a pure state machine: an input and the time in, outputs in order out.
//!
//! ```text
//!   users    Submit, Hold, Cordon,       ┐                   ┌─ Persist     records, one transaction, always first
//!            Resume, Drain, ...          │                   │
//!   workers  Message, Closed ────────────┼─> Machine::handle ┼─ AppendCurve, AppendGap, CutCurve, CreateFolder
//!   clock    Tick (at poll_timeout) ─────┘                   └─ Send, Close, Reply, Event, Changed
//!
//!   queued ──> starting ──> running ──> done            any of them ──> failed, cancelled ──> queued (resumed by a user)
//!                 │  ^         │
//!                 v  └─────────v        a place was lost or is to be moved: the next epoch heals what is missing from the
//!       recovering, draining <─┘        other holders, or the job waits for a worker, or it restores a checkpoint
//!                 └─────────> degraded: as running, with fewer replicas than asked for (`job::resize`)
//! ```
//!
//! An epoch begins with `Assign` to all places (the fence); when all have reported what they hold (`Prepared`), the step that all go
//! on from is known, and `Start` goes to all. Invariants kept here:
//!
//! - **T-1** A message counts only if it comes from the worker of a place, about this job and its present epoch.
//! - **T-2, T-3** A healing epoch goes on from the highest step that a place has committed, and who has sealed it follows
//!   ([`recovery::resume`]). State is given up only where both holders of a shard are gone, or where it is not to be trusted. A step
//!   that nobody but the dead had committed is made again, to the bit.
//! - **T-4, T-12** A record is taken only after the one before it, and the figures of a step are given up only where rank 0 says that
//!   no place has them; then the curve says so.
//! - **T-6** A checkpoint is recorded only after all its shards were reported in one epoch and rank 0 has published the manifest,
//!   and not before the curve is durable up to its step: a restore never leaves a hole in the curve.
//! - **T-7** Survivors keep their places while the shape is the same: [`recovery::decide`] fills only the empty ones.
//! - **T-8** Epochs only grow. Whatever an input changes is one [`Output::Persist`], before all other outputs of that input.
//! - **T-9** After a restart nothing is taken from a worker that says it goes on with its place, be it in an epoch that is older by
//!   what the coordinator had stored and not said.
//! - **T-13** All messages to workers have the term of this coordinator ([`Config::term`]).
//! - **T-14** No worker is told to drop what this store knows less of than the worker does: it is refused and keeps it, or the job goes on from it
//!   (`later`).
//!
//! The worker's side of it: between `Register` and `Welcome` it says nothing. After a `Welcome` with `keep_going` it first says
//! again what it had said in its epoch and what may have been lost (unacknowledged `StepReport`s in order, `Prepared`,
//! `ShardWritten`, `ManifestPublished`, `Finished`, a `PeerLost` that still holds), and it takes a repeated `Start`, `CheckpointAt`
//! or `PublishManifest` as the same one. Here repetitions of all of these change nothing.
//!
//! ```text
//!   machine/   inputs to jobs and workers, outputs in order      api, config, limits       what goes in and comes out
//!   job/       a job: its parts wired together                   record, clock, access     what is stored
//!     epoch, curve, deadlines      the core, read by all parts   pool, crashes, proof      workers that are connected
//!                                                                scheduler                which job gets workers next
//!     checkpoints, unsaved         saving the state              recovery, hang, straggler, progress, facts
//!     incidents                    what failures cost                                      pure functions and accounts
//!     validations                  what they found, in pages
//!     activity                     who hangs                     job_context, context      what a decision may look at and do
//!     reach, fitness, readers      who is to blame (T-11)
//!     moves, replacement, pace     places that are moved, or wait for somebody; epochs that wait for more deaths
//!     later                        epochs that workers know and the store does not
//! ```
//!
//! A part of a job owns its fields and knows none of the others. It acts through a `JobContext`, which lets it change its own
//! section of the record and nothing else, and has each change stored. All that is waited for with a time limit is a
//! `Deadline`. No file needs one that needs it (`integration-tests/circles.rs`).
//!
//! Deliberately absent: tokio, sockets, files, clocks, random sources, `HashMap`. Also absent: step records, which are in the
//! curve's file, and anything about how workers compute.

pub mod access;
mod activity;
mod apart;
mod api;
mod assigned;
mod cause;
mod checkpoints;
pub mod clock;
mod config;
mod context;
mod crashes;
mod curve;
mod deadlines;
mod epoch;
mod facts;
mod fitness;
mod folders;
pub mod hang;
mod incidents;
mod job;
mod job_context;
mod keeping;
mod kind;
mod later;
mod limits;
mod machine;
mod moves;
mod naming;
mod pace;
mod places;
mod pool;
mod progress;
mod proof;
mod reach;
mod readers;
pub mod record;
pub mod recovery;
mod replacement;
pub mod scheduler;
pub mod straggler;
mod unsaved;
mod validations;

#[cfg(test)]
mod tests;

pub use api::{Change, Input, Output, Reply, RequestError, RequestId, RestoreError, StreamId, Submission, Who};
pub use clock::Now;
pub use config::{Config, Retention};
pub use limits::Limits;
pub use machine::Machine;
pub use progress::{Progress, StepSummary, missing_record};
pub use scheduler::{Policy, Quotas};
