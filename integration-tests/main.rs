//! Toroid as its users meet it: real processes of the binary, real sockets, real files. One binary: linking is what costs.

mod agents;
mod bad_input;
mod browser;
mod chaos;
mod cuts;
mod dashboard;
mod deploy;
mod figures;
mod fleet;
mod identity;
mod leaving;
mod local;
mod newcomers;
mod object_store;
mod ownership;
mod pool;
mod prometheus;
mod python;
mod reference;
mod resize;
mod restoring;
mod scaling;
mod shipped;
mod stored_data;
mod telemetry;
mod tensorboard;
mod terminal;
mod training;

use toroid_testkit::Toroid;

/// The binary under test, as it is shipped.
const TOROID: Toroid = Toroid::at(env!("CARGO_BIN_EXE_toroid"));
