//! Data for post-training: rows of messages or of preferences become token files that say which tokens are trained.
//!
//! ```text
//!   line --row--> messages --template--> text, what is trained --tokenizer--> tokens, bits --make--> within the limit --write--> token file
//!     |             |                      |                        |                        |
//!     '-------------'----------------------'------------------------'------------------------'--> refused.jsonl, with file, line, reason
//! ```
//!
//! Invariants:
//!
//! - C-1 Each row is in a token file or in the list of refused rows, with its reason; balancing counts what it leaves out.
//! - C-2 What is written depends on the rows and the options alone: not on threads, nor on deaths.
//! - C-3 A token that only the template may write is there as often as the template wrote it, whatever users write.
//! - C-4 Each document has a trained token, and its answers are trained whole, with the token that ends a turn.
//! - C-5 The chosen and the rejected of a pair have the same tokens before their answers, whatever is cut.

pub mod balance;
pub mod make;
pub mod preview;
pub mod refusal;
pub mod report;
pub mod row;
pub mod rows;
pub mod run;
pub mod template;
pub mod tokenizer;
pub mod write;
