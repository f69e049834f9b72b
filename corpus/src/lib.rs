//! From raw documents to text that is trained on: what is removed, why, and which other document stays for it.
//!
//! ```text
//!   sources --read--> pieces --stage--> pieces --stage--> ... --write--> shards of text
//!                       |                 |                                |
//!                       '---- bad.jsonl   '---- rows of the ledger         '---- kept.jsonl
//! ```
//!
//! A *piece* is a run of documents in the order of their sources, files and positions. Work is made of tasks; a task reads files that
//! never change, and its output appears whole, by a rename, under a name that follows from inputs and options ([`durable`]). Documents
//! are brought together by sorted files of records of fixed size ([`runs`]), never by tables that grow with the corpus.
//!
//! Invariants:
//!
//! - D-1 What is written depends on the sources and the pipeline alone: not on threads, shards, memory, the size of pieces, or deaths.
//! - D-2 Which of several documents stays follows from their contents ([`doc::Rank`]); position decides between equal ones only.
//! - D-3 Each document that was read is in the output or in exactly one row of the ledger that removes it whole; bytes in, less those of
//!   all rows, plus what was put in their places, are the bytes out.
//! - D-4 No document is removed for another one that is removed itself.
//!
//! What a run does is a list of steps ([`step`]); a plan cuts each into tasks that any machine with the same folders may do ([`plan`]).
//!
//! Sources in a store are read, and outputs sent to one ([`send`]), by `toroid-storage`, whose threads the first object of one starts.
//!
//! Deliberately absent: an async runtime of its own, a scheduler for several machines (Ray, Slurm and Kubernetes are there), random numbers.

#![forbid(unsafe_code)]

pub mod address;
pub mod chat;
pub mod config;
pub mod contamination;
pub mod doc;
pub mod durable;
pub mod encode;
pub mod error;
pub mod explain;
pub mod heuristics;
pub mod language;
pub mod ledger;
pub mod lm;
pub mod mix;
pub mod ner;
pub mod open;
pub mod owned;
pub mod piece;
pub mod pii;
pub mod plan;
pub mod read;
pub mod report;
pub mod run;
pub mod runs;
pub mod send;
pub mod sentence;
pub mod shingle;
pub mod simhash;
pub mod stage;
pub mod star;
pub mod step;
pub mod words;
pub mod write;

pub use error::{Error, Result};
