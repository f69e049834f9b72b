//! Where a job keeps its files, as workers and users see it.

use super::record::JobRecord;

pub(crate) fn folder(record: &JobRecord, jobs_dir: &str) -> String {
    format!("{jobs_dir}/{}", record.id)
}

/// Where `step-<n>` come to lie.
pub(crate) fn checkpoint_root(record: &JobRecord, jobs_dir: &str) -> String {
    let configured = record.spec.checkpoint.path.clone();
    configured.unwrap_or_else(|| format!("{}/checkpoints", folder(record, jobs_dir)))
}

/// A checkpoint root as a folder's path, so that two ways to write it compare equal.
pub(crate) fn folder_of(root: &str) -> &str {
    let path = root.strip_prefix("file://").unwrap_or(root);
    path.trim_end_matches('/')
}
