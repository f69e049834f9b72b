//! Which folder of checkpoints a user means: by path, as far up as the folder of `toroid local`, or by a job's id.
//!
//! ```text
//!   .toroid/coordinator/jobs/tiny-1/checkpoints/step-100
//!   |       |                |      |           one checkpoint
//!   |       |                a job  a folder of checkpoints (elsewhere if the job file says so)
//!   |       a coordinator: its newest job
//!   `toroid local`: the newest job
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use toroid_proto as proto;
use toroid_worker::checkpoint::Storage;

use crate::client::Connection;
use crate::exit::not_found;
use crate::files::read_text;
use crate::jobfile;

/// Where `toroid local` keeps everything, unless told otherwise.
pub const LOCAL_DIR: &str = ".toroid";
/// The folder of the coordinator below [`LOCAL_DIR`].
pub const COORDINATOR_DIR: &str = "coordinator";
const JOBS_DIR: &str = "jobs";
const JOB_FILE: &str = "job.toml";
const PINNED: &str = "pinned";

/// Checkpoints that a user named.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// For `Storage::open`.
    pub root: String,
    /// Where one checkpoint was named.
    pub step: Option<u64>,
    /// For messages: what was chosen.
    pub what: String,
    /// By step, why it is not removed when newer ones come; `None`: no coordinator was asked.
    pub kept: Option<BTreeMap<u64, &'static str>>,
}

impl Found {
    fn in_folder(root: &Path) -> Found {
        let root = root.to_string_lossy().into_owned();
        Found { what: format!("the checkpoints in {root}"), root, step: None, kept: None }
    }

    /// The folder was found by way of a job, which is worth saying.
    fn of_job(job: &str, root: String) -> Found {
        Found { what: format!("job {job} (checkpoints in {root})"), root, step: None, kept: None }
    }
}

/// A path that exists comes first. Then a job: of the coordinator that the user has named, else of `.toroid`, else of the coordinator that is there by default.
pub async fn checkpoints(path_or_job: &str, connection: &Connection) -> Result<Found> {
    let path = Path::new(path_or_job);
    if path_or_job.contains("://") || path.exists() {
        return by_path(path_or_job);
    }
    if path_or_job.contains('/') || path_or_job == LOCAL_DIR {
        return Err(not_found(format!(
            "there is no folder {path_or_job} here; name a folder of checkpoints or a job (`toroid jobs` lists them)"
        )));
    }
    let local_job = Path::new(LOCAL_DIR).join(COORDINATOR_DIR).join(JOBS_DIR).join(path_or_job);
    // Ids are those of a coordinator: what is here may be another's job.
    if !connection.is_named() && local_job.is_dir() {
        return of_job_folder(&local_job);
    }
    let asked = async { connection.open().await?.job(path_or_job, false).await };
    let not_here = || match connection.is_named() {
        true => format!("{path_or_job} is no folder here, so the coordinator was asked"),
        false => {
            format!("{path_or_job} is neither a folder here nor a job in {LOCAL_DIR}, so the coordinator was asked")
        }
    };
    let job = asked.await.with_context(not_here)?;
    let root =
        root_of_job(&job.job_toml, &job.folder).with_context(|| format!("read the job file of {path_or_job}"))?;
    if !root.contains("://") && !Path::new(&root).is_dir() {
        bail!(
            "the checkpoints of {path_or_job} are in {root}, and there is no such folder on this machine; run this where the \
             coordinator at {} runs, or wait for the job's first checkpoint",
            connection.coordinator.join(", ")
        );
    }
    Ok(Found { kept: Some(kept(&job)), ..Found::of_job(path_or_job, root) })
}

/// A checkpoint of which the coordinator says nothing goes with the next that is published, or is another job's.
fn kept(job: &proto::Job) -> BTreeMap<u64, &'static str> {
    // What could not be read, or was given up, is not listed, and its pin holds all the same.
    let pinned = job.pinned_steps.iter().map(|step| (*step, PINNED));
    pinned.chain(job.checkpoints.iter().map(|c| (c.step, why_kept(c)))).collect()
}

pub fn why_kept(checkpoint: &proto::CheckpointInfo) -> &'static str {
    match (checkpoint.is_pinned, checkpoint.is_for_good) {
        (true, _) => PINNED,
        (false, true) => "for good",
        (false, false) => "newest",
    }
}

fn by_path(text: &str) -> Result<Found> {
    let path = Path::new(text);
    let is_url = text.contains("://");
    if !is_url && !path.is_dir() {
        bail!("{text} is a file; name a folder of checkpoints or a job");
    }
    if let Ok((storage, step)) = Storage::open_step(text) {
        let root = storage.root().to_string();
        return Ok(Found { what: format!("the checkpoints in {root}"), root, step: Some(step), kept: None });
    }
    if is_url {
        return Ok(Found { root: text.into(), step: None, what: format!("the checkpoints in {text}"), kept: None });
    }
    if path.join(JOB_FILE).is_file() {
        return of_job_folder(path);
    }
    for jobs in [path.join(COORDINATOR_DIR).join(JOBS_DIR), path.join(JOBS_DIR)] {
        if jobs.is_dir() {
            return of_job_folder(&newest_job(&jobs)?);
        }
    }
    Ok(Found::in_folder(path))
}

fn of_job_folder(folder: &Path) -> Result<Found> {
    let file = folder.join(JOB_FILE);
    let toml = read_text(&file, "the job file", jobfile::MAX_BYTES)?;
    let folder = folder.canonicalize().with_context(|| format!("find {}", folder.display()))?;
    let root = root_of_job(&toml, &folder.to_string_lossy()).with_context(|| format!("read {}", file.display()))?;
    let job = folder.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(Found::of_job(&job, root))
}

/// As the coordinator has it: in the job's folder unless the job names another place. Nothing else of the job file is looked at: that of an
/// older job may have keys that are refused by now, and its checkpoints are there all the same.
pub fn root_of_job(job_toml: &str, folder: &str) -> Result<String> {
    let file: toml::Table = job_toml.parse()?;
    let configured = file.get("checkpoint").and_then(|checkpoint| checkpoint.get("path")).and_then(toml::Value::as_str);
    Ok(configured.map_or_else(|| format!("{folder}/checkpoints"), str::to_string))
}

/// The one whose job file was written last.
fn newest_job(jobs: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(jobs).with_context(|| format!("look for jobs in {}", jobs.display()))?;
    let mut found: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in entries {
        let folder = entry.with_context(|| format!("look for jobs in {}", jobs.display()))?.path();
        // A folder without a job file is none of a job.
        if let Ok(written) = folder.join(JOB_FILE).metadata().and_then(|m| m.modified()) {
            found.push((written, folder));
        }
    }
    let newest = found.into_iter().max();
    newest.map(|(_, folder)| folder).with_context(|| format!("there is no job in {} yet", jobs.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = "steps = 3\n[data]\npath = \"/t\"\n";

    /// `.toroid` with two jobs; the first was written later.
    fn local_dir() -> Result<tempfile::TempDir> {
        let dir = tempfile::tempdir()?;
        let jobs = dir.path().join("coordinator/jobs");
        for (job, toml, age_s) in
            [("tiny-1", JOB.to_string(), 0), ("tiny-2", format!("{JOB}[checkpoint]\npath = \"/elsewhere\"\n"), 60)]
        {
            std::fs::create_dir_all(jobs.join(job))?;
            std::fs::write(jobs.join(job).join(JOB_FILE), toml)?;
            let written = SystemTime::now() - std::time::Duration::from_secs(age_s);
            std::fs::File::options().append(true).open(jobs.join(job).join(JOB_FILE))?.set_modified(written)?;
        }
        std::fs::create_dir_all(jobs.join("tiny-1/checkpoints/step-10"))?;
        Ok(dir)
    }

    #[test]
    fn every_folder_on_the_way_leads_to_the_checkpoints() -> Result<()> {
        let dir = local_dir()?;
        let root = dir.path().canonicalize()?;
        let own = root.join("coordinator/jobs/tiny-1/checkpoints");
        let check = |path: &str, expected: &Path, step| -> Result<()> {
            let found = by_path(root.join(path).to_str().context("test folders have UTF-8 names")?)?;
            assert_eq!((Path::new(&found.root), found.step), (expected, step), "{path}");
            Ok(())
        };
        check("", &own, None)?;
        check("coordinator", &own, None)?;
        check("coordinator/jobs/tiny-1", &own, None)?;
        check("coordinator/jobs/tiny-1/checkpoints", &own, None)?;
        check("coordinator/jobs/tiny-1/checkpoints/step-10", &own, Some(10))?;
        check("coordinator/jobs/tiny-2", Path::new("/elsewhere"), None)
    }

    #[test]
    fn a_url_is_a_folder_of_checkpoints_or_one_of_them() -> Result<()> {
        for (url, root, step) in [
            ("s3://bucket/run", "s3://bucket/run", None),
            ("s3://bucket/run/step-10/", "s3://bucket/run", Some(10)),
            ("file:///ck/step-7", "/ck", Some(7)),
        ] {
            let found = by_path(url)?;
            assert_eq!((found.root.as_str(), found.step), (root, step), "{url}");
        }
        Ok(())
    }

    #[test]
    fn the_job_that_was_chosen_is_named() -> Result<()> {
        let dir = local_dir()?;
        let found = by_path(dir.path().to_str().context("test folders have UTF-8 names")?)?;
        assert!(found.what.starts_with("job tiny-1 (checkpoints in "), "{}", found.what);
        Ok(())
    }

    #[test]
    fn a_pin_is_shown_where_the_coordinator_lists_no_checkpoint_any_more() {
        let checkpoint =
            |step, is_for_good, is_pinned| proto::CheckpointInfo { step, is_for_good, is_pinned, ..Default::default() };
        let checkpoints =
            vec![checkpoint(500, true, false), checkpoint(700, true, true), checkpoint(900, false, false)];
        let job = proto::Job { checkpoints, pinned_steps: vec![300, 700], ..Default::default() };
        let expected = [(300, "pinned"), (500, "for good"), (700, "pinned"), (900, "newest")];
        assert_eq!(kept(&job), BTreeMap::from(expected));
    }

    #[tokio::test]
    async fn what_is_nowhere_is_refused_with_where_it_was_looked_for() -> Result<()> {
        let connection: Connection = toroid_testkit::parse(&["--coordinator", "http://127.0.0.1:0"]);
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        std::fs::write(&file, "")?;
        std::fs::create_dir_all(dir.path().join("empty/jobs"))?;
        let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        for (text, expected) in [
            ("no-such-job-9".to_string(), ["is no folder here, so the coordinator was asked", "127.0.0.1:0"]),
            (path("none"), ["there is no folder", "toroid jobs"]),
            (path("file"), ["is a file", "folder of checkpoints"]),
            (path("empty"), ["no job", "empty"]),
        ] {
            let error = checkpoints(&text, &connection).await.err().map(|e| format!("{e:#}")).unwrap_or_default();
            assert!(expected.iter().all(|words| error.contains(words)), "{text}: {error}");
        }
        Ok(())
    }
}
