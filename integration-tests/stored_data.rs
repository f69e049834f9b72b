//! Data that is read from an object store, and exports that are written to one.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use toroid_testkit::jobs::text_folder;
use toroid_testkit::{Bucket, path};

use crate::TOROID;

/// Eight steps on `data`; returns what was printed. Everything is below `dir`.
fn train(bucket: &Bucket, data: &str, dir: &Path) -> Result<String> {
    let mut command = TOROID.command();
    command.args(["local", "--tp", "1", "--pp", "1", "--dp", "2", "--threads", "1", "--steps", "8", "--data", data]);
    let output = command.args(["--dir", path(dir)]).envs(bucket.variables()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).to_string() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}");
    Ok(text)
}

/// Step and loss of each row.
fn losses(dir: &Path) -> Result<Vec<String>> {
    let jobs = dir.join("coordinator/jobs");
    let job = fs::read_dir(&jobs)?.next().context("there is no job")??.path();
    let curve = fs::read_to_string(job.join("curve.csv"))?;
    Ok(curve.lines().map(|row| row.split(',').take(3).collect::<Vec<_>>().join(",")).collect())
}

/// Two workers of one host fetch it once, and train as on the same files in a folder; an export is the same bytes as a file.
#[test]
fn data_comes_from_a_store_and_exports_go_to_it() -> Result<()> {
    let (bucket, dir) = (Bucket::start()?, tempfile::tempdir()?);
    let (stored, in_folder) = (dir.path().join("stored"), dir.path().join("in-folder"));
    let copy = bucket.folder().join("text");
    fs::create_dir(&copy)?;
    for entry in fs::read_dir(text_folder())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), copy.join(entry.file_name()))?;
        }
    }
    train(&bucket, &bucket.url("text"), &stored)?;
    train(&bucket, path(&copy), &in_folder)?;
    let found = losses(&stored)?;
    ensure!(found.len() == 9 && found == losses(&in_folder)?, "{found:?}");
    let cached = fs::read_dir(stored.join("cache/objects"))?.filter_map(Result::ok);
    let sets: Vec<_> = cached.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    ensure!(sets.len() == 1, "{sets:?}");

    let (file, url) = (dir.path().join("model.safetensors"), bucket.url("exports/model.safetensors"));
    TOROID.run_ok(&["checkpoint", "export", "8", path(&file), "--from", path(&stored)])?;
    let mut command = TOROID.command();
    command.args(["checkpoint", "export", "8", &url, "--from", path(&stored)]).envs(bucket.variables());
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && text.contains(&url), "{text}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(fs::read(&file)? == fs::read(bucket.folder().join("exports/model.safetensors"))?);
    Ok(())
}

#[test]
fn data_that_cannot_be_fetched_ends_the_job_with_the_reason() -> Result<()> {
    let (bucket, dir) = (Bucket::start_strict()?, tempfile::tempdir()?);
    let mut command = TOROID.command();
    command.args(["local", "--tp", "1", "--pp", "1", "--dp", "1", "--steps", "8", "--data", &bucket.url("nothing")]);
    let output = command.args(["--dir", path(dir.path())]).envs(bucket.variables()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).to_string() + &String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && !text.contains("panicked"), "{text}");
    ensure!(text.contains("there is nothing at s3://bucket/nothing"), "{text}");
    Ok(())
}
