//! Toroid as its users meet it: real processes of the binary, real sockets, real files. One binary: linking is what costs.

mod bad_input;
mod chaos;
mod cluster;
mod cuts;
mod figures;
mod identity;
mod leaving;
mod local;
#[path = "../src/chaos/network.rs"]
mod network;
mod newcomers;
mod ownership;
mod reference;
mod resize;
mod restoring;
mod shipped;
mod training;

/// The binary under test, as it is shipped.
const TOROID: &str = env!("CARGO_BIN_EXE_toroid");
/// The folder of this repository.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
