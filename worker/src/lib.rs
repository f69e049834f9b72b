//! One worker of Toroid: a process with one device that fills one place of a job's torus, or none as a spare.
//!
//! ```text
//!   control (gRPC stream) <-> session (pure state machine) -> trainer thread: prepare, connect, steps
//!                                                               | model/  forward and backward of a stage
//!                                                               | device/ the operations, CPU or CUDA
//!                                                               | comm/   links, frames, collectives
//!                                                               | optim   AdamW on the shards that this place holds
//!                                                               | data/, checkpoint/
//! ```

#![deny(unsafe_code)]

pub mod checkpoint;
pub mod comm;
pub mod data;
pub mod device;
pub mod model;
