//! `toroid local`: everything on this machine from one command.

use anyhow::{Result, ensure};
use toroid_testkit::jobs::text_folder;
use toroid_testkit::path;

use crate::TOROID;

#[test]
fn local_trains_prints_a_summary_and_leaves_what_it_says() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = TOROID
        .command()
        .args(["local", "--tp", "2", "--pp", "1", "--dp", "1", "--steps", "8", "--spares", "1"])
        .args(["--data", path(&text_folder()), "--dir", path(dir.path())])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).to_string() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}");
    for words in ["loss", "tokens/s", "goodput", "bits per byte", "curve.csv"] {
        ensure!(text.contains(words), "`{words}` is not in the output: {text}");
    }
    let exported = dir.path().join("out.safetensors");
    TOROID.run_ok(&["checkpoint", "export", "8", path(&exported), "--from", path(dir.path())])?;
    ensure!(exported.exists());
    Ok(())
}

/// The demo's death: said when it happens, and in the summary what it cost.
#[test]
fn local_kills_a_worker_and_says_what_it_cost() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = TOROID
        .command()
        .args(["local", "--kill-one", "--tp", "1", "--pp", "1", "--dp", "2", "--steps", "30", "--threads", "1"])
        .args(["--data", path(&text_folder()), "--dir", path(dir.path())])
        .output()?;
    let (text, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{text}{stderr}");
    ensure!(stderr.contains("killing w") && stderr.contains("SIGKILL"), "{stderr}");
    ensure!(text.contains("1 incident:") && text.contains("no step lost"), "{text}");
    Ok(())
}

#[test]
fn local_fails_with_the_reason_when_the_data_is_missing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let output = TOROID
        .command()
        .args(["local", "--tp", "1", "--pp", "1", "--dp", "1", "--steps", "8", "--data", "/nowhere/at/all"])
        .args(["--dir", path(dir.path())])
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout).to_string() + &String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && text.contains("/nowhere/at/all") && !text.contains("panicked"), "{text}");
    Ok(())
}
