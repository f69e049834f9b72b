//! The numbers: every operation against naive arithmetic in f64, the model against an independent implementation
//! (`tests/reference/tiny.json`), and every split and number of threads against the undivided run.

mod emulator;
mod ops;
mod parallel;
mod reference;
mod support;
