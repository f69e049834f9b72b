//! Tests of the machine: a behaviour each, restarts at every point, and a simulation with faults.

mod checkpoints;
mod curve;
mod drain;
mod figures;
mod healing;
mod identity;
mod incidents;
mod leave;
mod lifecycle;
mod newcomers;
mod queue;
mod recovery;
mod resize;
mod restart;
mod restore;
mod scheduler;
mod simulation;
mod worker;
mod world;
