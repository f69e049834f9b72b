//! The wire of Toroid: types generated from `proto/toroid/v1/*.proto`, and the facts both ends must agree on.
//!
//! Deliberately absent: behaviour.

/// Made by `tests/generated.rs`.
#[rustfmt::skip]
#[allow(clippy::all, clippy::pedantic)]
#[path = "generated/toroid.v1.rs"]
mod generated;
pub use generated::*;

pub mod json;
pub mod limits;
mod role;
mod shape;
mod subject;

pub use role::Role;

/// The serialized `FileDescriptorSet` of all services, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("generated/toroid_descriptor.bin");

/// Of an answer of a coordinator that does not lead: the address of the one that does, `http://host:port`.
pub const LEADER_METADATA: &str = "toroid-leader";

/// Version of the control and data plane. A worker and a coordinator, or two workers, of different versions refuse each other.
pub const PROTOCOL_VERSION: u32 = 2;

/// Events of `tracing` of this target are spans that have ended, and no lines of a log: their fields are in `toroid_telemetry::spans`.
pub const SPAN_TARGET: &str = "toroid::span";

/// Version of the program, shown wherever two versions meet.
pub const BUILD_VERSION: &str = env!("CARGO_PKG_VERSION");
