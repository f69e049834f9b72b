//! Toroid as its users meet it: real processes of the binary, real sockets, real files. One binary: linking is what costs.

mod bad_input;
mod chaos;
mod cluster;
mod corruption;
mod cuts;
mod leaving;
mod local;
#[path = "../src/chaos/network.rs"]
mod network;
mod publishing;
mod reference;
mod resize;
mod restoring;
mod training;
