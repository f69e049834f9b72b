//! How long messages may be. Both ends keep to it: who sends more is refused before it is read.

/// From a user to the coordinator; a job file is the longest.
pub const USER_REQUEST_BYTES_MAX: usize = 1 << 20;

/// From the coordinator to a user: a job, a page of jobs, a piece of a curve.
pub const USER_ANSWER_BYTES_MAX: usize = 64 << 20;

/// From a worker to the coordinator; the list of the tensors in a shard is the longest.
pub const WORKER_MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Workers of one stream of a host.
pub const HOST_WORKERS_MAX: usize = 1024;

/// Entries of one message of such a stream, either way.
pub const HOST_ENTRIES_MAX: usize = 4096;

/// What is said by several workers, or to several, goes into one message up to so many bytes. One that is longer goes alone.
pub const HOST_BYTES_TOGETHER: usize = 1 << 20;

/// From a worker to its agent: what the agent makes of it is no longer than [`WORKER_MESSAGE_BYTES_MAX`].
pub const AGENT_MESSAGE_BYTES_MAX: usize = WORKER_MESSAGE_BYTES_MAX - 1024;

/// From the coordinator to a worker: an assignment to a job of thousands of places, the list of the files of a checkpoint.
pub const COORDINATOR_MESSAGE_BYTES_MAX: usize = 64 << 20;
