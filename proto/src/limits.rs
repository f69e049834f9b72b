//! How long messages may be. Both ends keep to it: who sends more is refused before it is read.

/// From a user to the coordinator; a job file is the longest.
pub const USER_REQUEST_BYTES_MAX: usize = 1 << 20;

/// From the coordinator to a user: a job, a page of jobs, a piece of a curve.
pub const USER_ANSWER_BYTES_MAX: usize = 64 << 20;

/// From a worker to the coordinator; the list of the tensors in a shard is the longest.
pub const WORKER_MESSAGE_BYTES_MAX: usize = 16 << 20;

/// From the coordinator to a worker: an assignment to a job of thousands of places, the list of the files of a checkpoint.
pub const COORDINATOR_MESSAGE_BYTES_MAX: usize = 64 << 20;
