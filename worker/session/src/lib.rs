//! The worker's side of the protocol, pure: what it tells the coordinator and what it has its trainer do.
//!
//! ```text
//!   coordinator <──stream──> client ──> session ──Action::{Trainer(Command), Prepare(Assignment)}──> trainer
//!                               ^──────────────────────────TrainerEvent──────────────────────────────'
//! ```
//!
//! | file | what |
//! |---|---|
//! | `client` | around the session: when the worker dials, what waits for the Welcome, when it ends |
//! | `session` | the state machine of a place: what it reports, and what it has the trainer do |
//! | `work` | the place that a worker has, and what it reports of it |
//! | `reports` | step records that the coordinator has not acknowledged |
//! | `assignment` | a place in a job, and what a spare prepares for |
//! | `action` | what the session has its own process do |
//! | `command` | what the session tells the trainer |
//! | `event` | what the trainer reports |
//! | `parse` | from the coordinator's messages to checked values |
//!
//! Deliberately absent: tokio, sockets, files, clocks, threads, random sources, `HashMap`.

#![forbid(unsafe_code)]

mod action;
mod assignment;
pub mod client;
mod command;
mod event;
mod parse;
mod reports;
mod session;
#[cfg(test)]
mod tests;
mod work;

pub use action::Action;
pub use assignment::{Assignment, Claim, HealPlan, HeldAs, Knock, PeerAddr, WarmUp};
pub use command::{AfterCheckpoint, Command};
pub use event::{BadCheckpoint, Event, MissingLink, ReadFault, TrainerEvent};
pub use session::{Input, Output, Session, Standing};
