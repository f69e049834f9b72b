//! Sums and gathers between GPUs: the schedules of [`toroid_torus::collective`] in groups of NCCL's sends and receives.
//!
//! ```text
//!   calls        the few calls of NCCL, as a trait
//!   library      the same through cudarc, loaded when the program runs
//!   epoch        communicators from epoch to epoch: made, kept, aborted
//!   collective   rounds of transfers on a stream, and the adds between them
//!   device_comm  both as the trainer asks for them
//!
//!   compute stream   operations, sums of the TP group ... wait ------------------ wait
//!   comm stream                          rounds of the DP group: ... round, add, round, add ...
//! ```
//!
//! Sums of the TP group are needed at once, so they are in the compute stream. Those of the DP group run under computation, in a stream of their own
//! and on communicators of their own: all ranks ask for them in the same order, and NCCL runs two communicators side by side.
//!
//! Invariants:
//!
//! - **N-3** the host waits for the device only in `Comms::await_event`, which looks at the fence meanwhile. Once the fence is up, what has
//!   not come to its end is aborted and the streams go on; what lies in the buffers then means nothing, and no call succeeds before the next epoch.
//! - **N-4** sums are `own + received` by our own kernel, in the order of the schedules (T-4). NCCL's own reductions are never called: their
//!   order depends on the machines that it finds.
//! - A collective in flight writes to a buffer that its owner keeps until it was awaited, or the epoch has ended ([`DeviceComm::end`](crate::comm::nccl::DeviceComm::end)).
//!
//! Deliberately absent: `ncclCommDestroy`, which waits for others. An idle communicator is aborted, which does not.

mod calls;
mod collective;
mod comms;
mod device_comm;
mod epoch;
mod flight;
mod library;

pub use calls::{Nccl, PointToPoint};
pub(super) use comms::Comms;
pub use library::is_present;
