//! Whether a job may keep its checkpoints where its file says, as far as this machine can see (T-10).
//!
//! The first worker of a job looks again, and its word counts: the folder may be on machines that the coordinator does not see. Looking
//! here tells a user at once. A file system that does not answer holds up nobody: after [`PATIENCE`] the job is taken as if nothing
//! could be seen, and only [`MAX_LOOKS`] look at a time.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use toroid_storage::{Environment, Store, Timing, is_store};
use toroid_torus::job;
use toroid_torus::owner::{MAX_OWNER_BYTES, OWNER_NAME, Owner};

const PATIENCE: Duration = Duration::from_secs(2);
const MAX_LOOKS: usize = 4;
/// Entries of the folder that are looked at.
const MAX_ENTRIES: usize = 10_000;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FolderError {
    #[error(
        "checkpoint.path = \"{path}\" is the checkpoint folder of {owner}: nothing is written or removed there for another job; give \
         this job another folder, and to go on from a checkpoint there name it with resume_from = \"{path}/step-<n>\""
    )]
    Owned { path: String, owner: Box<Owner> },
    #[error(
        "checkpoint.path = \"{path}\" has checkpoints ({found}) and no record of whose they are: nothing is written or removed beside \
         them; give this job another folder, and to go on from one of them name it with resume_from = \"{path}/step-<n>\""
    )]
    Unowned { path: String, found: String },
    #[error(
        "checkpoint.path {found}, and several coordinators share this cluster's records: name a folder, absolute or as a file:// URL, or an s3:// URL, \
         that all coordinators and workers have in common; checkpoints and the curve of the job are kept there"
    )]
    NotShared { found: String },
}

/// What forbids a new job where several coordinators must find what it keeps. A file that is not valid is refused by the machine.
pub(crate) fn not_shared(toml: &str) -> Option<FolderError> {
    let found = match job::parse(toml).ok()?.checkpoint.path {
        Some(path) if is_store(&path) => return None,
        Some(path) if Path::new(path.strip_prefix("file://").unwrap_or(&path)).is_absolute() => return None,
        Some(path) => format!("= \"{path}\""),
        None => "is not set".into(),
    };
    Some(FolderError::NotShared { found })
}

/// What forbids a new job the folder that its file names. A file that is not valid is refused by the machine.
pub(crate) async fn refusal(toml: &str) -> Option<FolderError> {
    static LOOKS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_LOOKS)));
    let path = job::parse(toml).ok()?.checkpoint.path?;
    // Held until the look is over, which may be long after anybody waits for it.
    let turn = Arc::clone(&LOOKS).try_acquire_owned().ok()?;
    let look = tokio::task::spawn_blocking(move || {
        let found = look(&path);
        drop(turn);
        found
    });
    tokio::time::timeout(PATIENCE, look).await.ok()?.ok().flatten()
}

/// What cannot be read is left to the workers, which say so.
fn look(path: &str) -> Option<FolderError> {
    if is_store(path) {
        return look_in_bucket(path);
    }
    let folder = match path.split_once("://") {
        None => PathBuf::from(path),
        Some(("file", folder)) => PathBuf::from(folder),
        Some(_) => return None,
    };
    match owner(&folder) {
        Ok(Some(owner)) => Some(FolderError::Owned { path: path.into(), owner: Box::new(owner) }),
        Ok(None) => checkpoint_in(&folder).map(|found| FolderError::Unowned { path: path.into(), found }),
        Err(_) => None,
    }
}

fn look_in_bucket(url: &str) -> Option<FolderError> {
    let timing = Timing { connect: PATIENCE, silence: PATIENCE, patience: Duration::ZERO };
    let store = Store::open_with(url, &Environment::of_process(), timing).ok()?;
    if let Some(json) = store.get(OWNER_NAME, MAX_OWNER_BYTES).ok()? {
        let owner = Owner::parse(&json).ok()?;
        return Some(FolderError::Owned { path: url.into(), owner: Box::new(owner) });
    }
    let found = store.list_folder("", MAX_ENTRIES).ok()?.folders.into_iter().find(|name| is_checkpoint(name))?;
    Some(FolderError::Unowned { path: url.into(), found })
}

fn owner(folder: &Path) -> io::Result<Option<Owner>> {
    let file = match std::fs::File::open(folder.join(OWNER_NAME)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut json = Vec::new();
    file.take(MAX_OWNER_BYTES).read_to_end(&mut json)?;
    Owner::parse(&json).map(Some).map_err(io::Error::other)
}

fn is_checkpoint(name: &str) -> bool {
    let step = name.strip_prefix("damaged-").unwrap_or(name).strip_prefix("step-");
    step.is_some_and(|step| step.parse::<u64>().is_ok())
}

/// The name of a checkpoint, complete or not, with something in it.
fn checkpoint_in(folder: &Path) -> Option<String> {
    let has_files =
        |name: &String| std::fs::read_dir(folder.join(name)).is_ok_and(|mut entries| entries.next().is_some());
    let entries = std::fs::read_dir(folder).ok()?.take(MAX_ENTRIES).filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_checkpoint(name)).find(has_files)
}

#[cfg(test)]
mod tests {
    use toroid_torus::owner::OwnerId;

    use super::*;

    #[tokio::test]
    async fn t10_a_folder_of_another_job_is_refused_when_the_job_is_submitted() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("ck");
        for path in [folder.display().to_string(), format!("file://{}", folder.display())] {
            let toml = format!("steps = 3\ndata.path = \"/text\"\ncheckpoint.path = \"{path}\"\n");
            std::fs::create_dir_all(folder.join("step-5")).unwrap();
            std::fs::create_dir_all(folder.join("notes")).unwrap();
            std::fs::write(folder.join("notes/one"), "").unwrap();
            assert_eq!(refusal(&toml).await, None, "nobody's");
            std::fs::write(folder.join("step-5/manifest.json"), "").unwrap();
            let found = "step-5".into();
            assert_eq!(refusal(&toml).await, Some(FolderError::Unowned { path: path.clone(), found }));
            let owner = Owner::new(OwnerId::from_random([1; 16]), "tiny-1", "tiny", 1);
            std::fs::write(folder.join(OWNER_NAME), owner.to_json()).unwrap();
            let owned = refusal(&toml).await.unwrap();
            assert_eq!(owned, FolderError::Owned { path: path.clone(), owner: Box::new(owner) });
            std::fs::remove_dir_all(&folder).unwrap();
        }
        let elsewhere = "steps = 3\ndata.path = \"/text\"\ncheckpoint.path = \"s3://bucket/run\"\n";
        assert_eq!(refusal(elsewhere).await, None);
    }
}
