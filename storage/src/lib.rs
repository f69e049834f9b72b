//! Objects of an S3-compatible store, for threads that wait: what checkpoints, curves and data need of one, and no more.
//!
//! ```text
//!   location     s3://BUCKET/PREFIX, taken apart
//!   environment  variables and files as AWS's tools have them: endpoint, region, profile
//!   credentials  who we are, by the first of the places that names a key; a file is read again when it changes
//!   http/        requests over hyper and rustls: `connect` dials, `watched` ends a connection on which no byte moves, `service` tells
//!                what a store answered, `trust` whose certificates count
//!   fault        what one request met             error     the same in one sentence, for people
//!   patience     how often it is tried again      client    the operations, each tried again
//!   upload       a large object, in parts         store     the operations and uploads, for threads
//!   measure      how fast a store is
//!   cache        objects as files of this machine, fetched once a host
//! ```
//!
//! Signing, the requests themselves and what is read from answers are `object_store`'s. It is built without `reqwest`, so requests go over
//! the client that gRPC has brought anyway ([decision 87](../../docs/decisions/87-object-store-without-reqwest.md)), and without its
//! retries: those of ours sign anew, with the credentials of now, and know what a lost answer means.
//!
//! Invariants:
//! 1. An object is seen whole or not at all: one request, or parts that one request at the end puts together.
//! 2. [`Store::put_new`] says [`PutNew::Exists`] only of an object that somebody else wrote, also where an answer was lost.
//! 3. Nothing waits without a bound: an attempt ends when no byte has moved for [`Timing::silence`], and attempts end with
//!    [`Timing::patience`]. An attempt that moves, however slowly, goes on.
//! 4. What a store says is bounded: answers other than objects by a few megabytes (`http::service`), objects and lists by what the caller takes.
//!
//! Deliberately absent: folders of this machine, which those who write there keep durable themselves; any other cloud's own protocol.

#![forbid(unsafe_code)]

mod cache;
mod client;
mod credentials;
mod environment;
mod error;
mod fault;
mod http;
mod location;
pub mod measure;
mod patience;
mod store;
#[cfg(test)]
mod tests;
mod upload;

pub use cache::{Attend, Cache, CacheError, Fetched};
pub use client::{Listing, Object, PutNew};
pub use environment::Environment;
pub use error::{Kind, StorageError};
pub use location::{Location, is_store};
pub use patience::Timing;
pub use store::Store;
pub use upload::{PART_BYTES, Upload};
