//! Small runs.
