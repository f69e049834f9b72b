//! The numbers: every operation against naive arithmetic in f64, the model against an independent implementation
//! (`tests/reference/tiny.json`), and every split and number of threads against the undivided run.
//!
//! The bodies are generic over the device. Here they run on the CPU and on the CUDA device in an emulator; with the feature `gpu`, of
//! `make gpu-check`, on a GPU as well.

mod compile;
mod decode;
mod emulator;
mod graphs;
mod hf;
mod memory;
mod nccl;
mod ops;
mod parallel;
mod reference;
mod streams;
mod support;
mod texts;
