//! Toroid as its users meet it: real processes of the binary, real sockets, real files. One binary: linking is what costs.

mod bad_input;
mod chaos;
mod cluster;
mod local;
mod reference;
mod resize;
mod training;
