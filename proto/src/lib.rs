//! The wire of Toroid: types generated from `proto/toroid/v1/*.proto`, and the facts both ends must agree on.
//!
//! Deliberately absent: behaviour.

/// Made by `tests/generated.rs`.
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic)]
#[path = "generated/toroid.v1.rs"]
mod generated;
pub use generated::*;

mod build;
pub mod json;
pub mod limits;
mod policy;
mod role;
mod shape;
mod subject;

#[cfg(feature = "failpoint")]
pub use build::pretend;
pub use build::{Build, Versions, build};
pub use role::Role;

/// The serialized `FileDescriptorSet` of all services, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/toroid_descriptor.bin");

/// Of an answer of a coordinator that does not lead: the address of the one that does, `http://host:port`.
pub const LEADER_METADATA: &str = "toroid-leader";

/// Events of `tracing` of this target are spans that have ended, and no lines of a log: their fields are in `toroid_telemetry::spans`.
pub const SPAN_TARGET: &str = "toroid::span";

/// Spans of `tracing` of this target are open while a process works on a call, and are told when they end: see `toroid_telemetry::calls`.
pub const CALL_TARGET: &str = "toroid::call";

/// The status codes of gRPC, as OpenTelemetry's conventions write them.
const STATUS_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The name of a status code of gRPC; a code that there is not is UNKNOWN.
pub fn status_name(code: i32) -> &'static str {
    usize::try_from(code).ok().and_then(|code| STATUS_NAMES.get(code)).unwrap_or(&STATUS_NAMES[2])
}

/// Version of the program; see [`Build`] for what decides whether two work together.
pub const BUILD_VERSION: &str = env!("CARGO_PKG_VERSION");
