//! Tests of the machine: a behaviour each, and restarts at every point.

mod checkpoints;
mod curve;
mod drain;
mod figures;
mod healing;
mod identity;
mod incidents;
mod keeping;
mod leave;
mod lifecycle;
mod newcomers;
mod older_copy;
mod queue;
mod recovery;
mod reports;
mod resize;
mod restart;
mod restore;
mod scheduler;
mod validations;
mod worker;
mod world;
