//! The training thread of a worker: prepares a place, connects it to its peers and makes steps.
//!
//! ```text
//!  session --Order--> trainer thread --TrainerEvent--> session
//!      \---- Fence: every wait of an older epoch returns at once (T-1)
//!  Prepare: data, weights or checkpoint -> Prepared     Start: connect, then steps -> Committed ... Finished
//! ```
//!
//! What a place has is a [`Job`], whose parts own their fields; what is done with them is in a file for each phase: `ready` and
//! `prepare` before the start, `train` from then on, `step`, `heal`, `resplit`, `replay`.
//!
//! The trainer decides nothing about membership: it reports what it sees and does what the assignment says. Between two commits it
//! needs no coordinator (T-9).

mod attends;
mod curve;
mod emit;
mod encode;
mod environment;
mod error;
mod evaluate;
#[cfg(any(test, feature = "failpoint"))]
pub mod failpoint;
#[cfg(any(test, feature = "failpoint"))]
mod flip;
mod heal;
mod held;
mod history;
mod holders;
mod initial;
mod job;
mod kept;
mod lane;
mod long_sum;
pub mod memory;
mod observe;
mod orders;
mod overlap;
mod passes;
mod ppo;
mod prepare;
mod publish;
mod ready;
mod replay;
mod resplit;
mod samples;
mod save;
mod shards;
mod shared;
mod show;
mod step;
#[cfg(test)]
mod tests;
mod totals;
mod train;
mod validations;
mod weights;
mod workspace;

use std::sync::mpsc::Receiver;

use toroid_session::Command;

use crate::device::CachedAttention;

pub use emit::Emit;
pub use environment::Environment;
pub use error::{PrepareError, StepError};
pub use job::Job;
pub use observe::{Deed, Observer, Shown};
pub use orders::Order;
pub use shared::{Computed, Requested, Shared};

use orders::Inbox;
use ready::{prepare, warm_up};
use save::ToPublish;
use train::train;
use workspace::Workspace;

/// Runs until the channel of orders closes. `emit` is called from this thread and, for checkpoints, from the threads of `save`.
pub fn run<D: CachedAttention>(device: &D, environment: &Environment, orders: Receiver<Order>, emit: &Emit) {
    let mut inbox = Inbox::new(orders);
    let mut job: Option<Job<D>> = None;
    let mut warm: Option<Workspace<D>> = None;
    while let Some(order) = inbox.wait() {
        match order {
            Order::Prepare(assignment, fence) => {
                let survivor = job.take().filter(|j| j.can_heal(&assignment));
                job = match survivor {
                    Some(survivor) => Some(survivor.rejoin(*assignment, &environment.shared, emit)),
                    None => prepare(device, environment, *assignment, fence, warm.take(), emit),
                };
            }
            Order::Command(Command::WarmUp(ahead)) => {
                if job.is_none() {
                    warm = warm_up(device, environment, &ahead, warm.take(), emit);
                }
            }
            Order::Command(Command::Start { epoch, heal }) => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    train(running, heal.as_ref(), environment, &mut inbox, emit);
                }
            }
            Order::Command(Command::Publish { epoch, step, files, remove }) => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.publish(ToPublish { step, files, remove }, &environment.shared, emit);
                }
            }
            Order::Command(Command::Report { epoch, from }) => {
                if let Some(running) = job.as_ref().filter(|j| j.assignment.epoch == epoch) {
                    running.report_since(from, emit);
                }
            }
            Order::Command(Command::Checkpoint { epoch, step }) => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.write_checkpoint_of(step, emit);
                }
            }
            Order::Command(Command::DropShard { epoch, step }) => {
                if let Some(running) = job.as_mut().filter(|j| j.assignment.epoch == epoch) {
                    running.checkpoints.drop_shard(&running.assignment, step);
                }
            }
            Order::Command(Command::Drop { epoch }) => job = job.filter(|j| j.assignment.epoch > epoch),
        }
    }
}
