//! What can go wrong with a checkpoint, in words that say what to do.
//!
//! The words are whole: they have the cause in them, so no error here has a `source()` that would be printed twice.

use std::io;
use std::path::PathBuf;

use toroid_torus::manifest::ManifestError;
use toroid_torus::owner::Owner;
use toroid_torus::units::clauses;

/// A request that is refused whoever makes it, and will be: no such bucket, no permission. In words that name the object.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct RefusedToAll(pub String);

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error(
        "cannot keep checkpoints in `{root}`: the scheme `{scheme}` is not supported; give a folder's path, a file:// URL or an s3:// URL"
    )]
    Scheme { root: String, scheme: String },
    /// `what` says what to do, too.
    #[error("cannot keep checkpoints in `{root}`: {what}")]
    Root { root: String, what: String },
    #[error(
        "`{path}` is not the folder of a checkpoint; expected a path that ends with step-<n>, as `toroid checkpoint list` \
         prints"
    )]
    StepPath { path: String },
    #[error("cannot start the runtime for checkpoint files: {0}; raise the limit of threads or of open files")]
    Runtime(io::Error),
    #[error(
        "cannot write {file} ({bytes} bytes): {cause}; free that much space (or raise the quota) or write to another \
         disk (checkpoint.path). What was written of it is removed, earlier checkpoints are untouched"
    )]
    NoSpace { file: String, bytes: u64, cause: io::Error },
    #[error(
        "cannot write the export {file} ({bytes} bytes): {cause}; free that much space (or raise the quota), or name a file on another disk. What \
         was written of it is removed"
    )]
    NoSpaceForExport { file: String, bytes: u64, cause: io::Error },
    #[error("cannot write {file} ({bytes} bytes): {cause}; earlier checkpoints are untouched")]
    Write { file: String, bytes: u64, cause: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot read {file}: {cause}")]
    Read { file: String, cause: Box<dyn std::error::Error + Send + Sync> },
    #[error("cannot {action} {file}: {cause}")]
    Change { action: &'static str, file: String, cause: Box<dyn std::error::Error + Send + Sync> },
    #[error("there is no complete checkpoint of step {step} in {root}; {}", there_are(.available))]
    NotFound { step: u64, root: String, available: Vec<u64> },
    #[error("{file}: {cause}")]
    Manifest { file: String, cause: ManifestError },
    #[error("{file} is damaged: {what}; set the checkpoint aside and use the one before")]
    ManifestDamaged { file: String, what: String },
    #[error("{file} is missing, though the manifest names it")]
    Missing { file: String },
    #[error(
        "{file} is damaged at tensor {tensor} ({kind}): {what}; `toroid checkpoint verify` names everything that is, \
         set the checkpoint aside and use the one before"
    )]
    Damaged { file: String, tensor: String, kind: &'static str, what: String },
    #[error(
        "{file} has {value} in tensor {tensor} ({kind}), expected finite numbers: no step that begins with it makes an update; set the \
         checkpoint aside and use the one before"
    )]
    NotFinite { file: String, tensor: String, kind: &'static str, value: f32 },
    #[error(
        "cannot publish the checkpoint of step {step}: {file} has {found}, expected {expected} bytes; write the step again"
    )]
    Unpublishable { step: u64, file: String, expected: u64, found: String },
    #[error(
        "cannot remove the checkpoint of step {step} in {root} for epoch {epoch}: epoch {later} has published it or goes on from it"
    )]
    Claimed { step: u64, root: String, epoch: u64, later: u64 },
    #[error(
        "{root} is the checkpoint folder of {owner}: nothing is written or removed there for another job; give this job \
         another folder (checkpoint.path), and to go on from one of the checkpoints there name it with resume_from = \
         \"{root}/step-<n>\""
    )]
    Owned { root: String, owner: Box<Owner> },
    #[error(
        "{root} has checkpoints that this job has not written, and no record of whose they are ({}): nothing is written or \
         removed beside them; give this job another folder (checkpoint.path), and to go on from one of them name it with \
         resume_from = \"{root}/step-<n>\"", listed(.found)
    )]
    Unowned { root: String, found: Vec<String> },
    #[error(
        "cannot tell whose checkpoint folder it is: {file}: {what}; give the job another folder (checkpoint.path), or \
         remove that file if no job keeps its checkpoints there any more"
    )]
    OwnerDamaged { file: String, what: String },
    #[error(
        "the checkpoint of step {step} in {root} does not say that this job has written it, so it stays; remove it by hand if \
         nobody needs it"
    )]
    NotWritten { step: u64, root: String },
    #[error(
        "the checkpoint of step {step} in {root} is complete already, with other contents; remove it or set it aside first, \
         or set checkpoint.path to another folder"
    )]
    Exists { step: u64, root: String },
    #[error(
        "the checkpoint is of another model: {tensor} has the shape {found}, expected {expected}; resume with the model \
         it was made with"
    )]
    Model { tensor: String, expected: String, found: String },
    #[error("cannot start from the weights in {}: {}", .path.display(), listed(.problems))]
    Initial { path: PathBuf, problems: Vec<String> },
}

impl CheckpointError {
    /// The folder is, or may be, another job's: it is so whoever looks.
    pub fn is_about_owner(&self) -> bool {
        matches!(
            self,
            CheckpointError::Owned { .. } | CheckpointError::Unowned { .. } | CheckpointError::OwnerDamaged { .. }
        )
    }

    /// The store refuses this job, whichever worker asks: there is no such bucket, it may not be used, or it does not do what it must.
    pub fn is_about_store(&self) -> bool {
        match self {
            CheckpointError::Root { .. } | CheckpointError::Scheme { .. } => true,
            CheckpointError::Read { cause, .. }
            | CheckpointError::Write { cause, .. }
            | CheckpointError::Change { cause, .. } => cause.is::<RefusedToAll>(),
            _ => false,
        }
    }

    /// Bytes were read and are wrong.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            CheckpointError::Manifest { .. }
                | CheckpointError::ManifestDamaged { .. }
                | CheckpointError::Damaged { .. }
                | CheckpointError::NotFinite { .. }
        )
    }
}

fn there_are(steps: &[u64]) -> String {
    match steps {
        [] => "there is none of any step".into(),
        steps => format!("there are those of {}", steps.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// The first of them, and how many more there are: a model of another name scheme has thousands of problems.
fn listed(problems: &[String]) -> String {
    clauses(problems, 12)
}
