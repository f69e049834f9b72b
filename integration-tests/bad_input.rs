//! Bad input gives one clear error: nothing panics, nothing hangs, the last good checkpoint stays (done-when 7 of the training issue).

use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use toroid_proto::worker_service_client::WorkerServiceClient;
use toroid_proto::{Event, Job, JobState, Register, WorkerMessage, coordinator_message, worker_message};
use toroid_testkit::jobs::{endless_job, short_job, tiny_job};
use toroid_testkit::{Cluster, SmallDisk, Undisturbed, is_whole, path, shard_file, worker_of};

use crate::TOROID;

/// Submits a job file that must be refused, and checks that the words say what is wrong. One error, no panic.
fn check_refused(cluster: &Cluster, job_file: &str, expected: &[&str]) -> Result<()> {
    let file = cluster.path().join("bad.toml");
    std::fs::write(&file, job_file)?;
    let output = TOROID.command().args(["submit", path(&file), "--coordinator", &cluster.url()]).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success(), "{job_file} was taken");
    ensure!(!stderr.contains("panicked"), "{stderr}");
    for words in expected {
        ensure!(stderr.contains(words), "`{words}` is not in the error: {stderr}");
    }
    Ok(())
}

#[test]
fn job_files_that_cannot_work_are_refused_in_words() -> Result<()> {
    let cluster = Cluster::start(TOROID, 1, 1)?;
    let data = "[data]\npath = \"/tmp\"\n";
    cluster.train(&short_job((1, 1, 1), 1, ""))?;
    for (job_file, expected) in [
        (format!("steps = 5\n[shape]\ntp = 3\n{data}"), vec!["tp 3", "heads", "4"]),
        (format!("steps = 5\n[shape]\npp = 5\n{data}"), vec!["pp 5", "4 layers"]),
        (format!("stepz = 5\n{data}"), vec!["stepz", "did you mean `steps`"]),
        (format!("steps = 5\n{data}[optimizer]\nwarm_up = 3\n"), vec!["warm_up", "did you mean `warmup`"]),
        ("steps = 5\n".to_string(), vec!["data.path"]),
        (data.to_string(), vec!["steps"]),
        (format!("steps = \"five\"\n{data}"), vec!["steps", "string"]),
        (format!("steps = 5\npreset = \"huge\"\n{data}"), vec!["huge", "tiny", "67b"]),
        (format!("steps = 5\n{data}[batch]\nmicro_batch = 3\nglobal = 10\n"), vec!["batch.global", "multiple"]),
        ("steps = \n".to_string(), vec!["job file is not valid"]),
        (
            format!("steps = 5\ninit_from = \"a.safetensors\"\nresume_from = \"c/step-5\"\n{data}"),
            vec!["`init_from` and `resume_from` cannot be given together"],
        ),
    ] {
        check_refused(&cluster, &job_file, &expected)?;
    }
    Ok(())
}

/// A job that is taken, but fails on its workers: the state says why.
fn check_fails(cluster: &Cluster, job_file: &str, expected: &[&str]) -> Result<()> {
    let id = cluster.submit(job_file)?;
    let job = cluster.wait_for(&id, "the failure", |job| job.state() == JobState::Failed)?;
    for words in expected {
        ensure!(job.reason.contains(words), "`{words}` is not in the reason: {}", job.reason);
    }
    Ok(())
}

#[test]
fn data_that_cannot_be_read_fails_the_job_in_words() -> Result<()> {
    let mut cluster = Cluster::start(TOROID, 2, 1)?;
    let dir = cluster.path().to_path_buf();
    let file = |name: &str| format!("steps = 5\n[shape]\ndp = 2\n[data]\npath = \"{}\"\n", path(&dir.join(name)));
    std::fs::write(dir.join("empty.txt"), "")?;
    std::fs::write(dir.join("short.txt"), "too little")?;
    std::fs::create_dir(dir.join("nothing"))?;
    check_fails(&cluster, &file("missing"), &["missing"])?;
    check_fails(&cluster, &file("empty.txt"), &["empty.txt"])?;
    check_fails(&cluster, &file("short.txt"), &["short.txt"])?;
    check_fails(&cluster, &file("nothing"), &["nothing"])?;
    let weights = format!("init_from = \"{}\"\n", path(&dir.join("short.txt")));
    check_fails(&cluster, &short_job((1, 1, 2), 5, &weights), &["initial weights", "short.txt"])?;
    // Whatever the weights are: a row of the embedding means another token there.
    let header = br#"{"__metadata__":{"tokenizer":"0123abcd"}}"#;
    let other = [&(header.len() as u64).to_le_bytes(), &header[..]].concat();
    std::fs::write(dir.join("other.safetensors"), other)?;
    let weights = format!("init_from = \"{}\"\n", path(&dir.join("other.safetensors")));
    check_fails(
        &cluster,
        &short_job((1, 1, 2), 5, &weights),
        &["other.safetensors", "tokenizer", "0123abcd there and bytes in"],
    )?;
    let resume = format!("resume_from = \"{}\"\n", path(&dir.join("step-7")));
    check_fails(&cluster, &short_job((1, 1, 2), 5, &resume), &["cannot resume", "step 7"])?;
    // The workers are none the worse for it.
    ensure!(cluster.dead_workers().is_empty(), "{}", cluster.logs());
    cluster.train(&short_job((1, 1, 2), 2, ""))?;
    Ok(())
}

#[test]
fn a_port_in_use_is_named() -> Result<()> {
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let dir = tempfile::tempdir()?;
    let output = TOROID.run(&["coordinator", "--listen", &address, "--dir", path(dir.path())])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && stderr.contains(&address), "{stderr}");
    ensure!(stderr.contains("in use") && !stderr.contains("panicked"), "{stderr}");
    Ok(())
}

#[test]
fn a_coordinator_that_is_not_there_is_named() -> Result<()> {
    let output = TOROID.run(&["jobs", "--coordinator", "http://127.0.0.1:1"])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && stderr.contains("127.0.0.1:1"), "{stderr}");
    Ok(())
}

#[test]
fn a_second_coordinator_on_one_folder_is_refused() -> Result<()> {
    let cluster = Cluster::start(TOROID, 1, 1)?;
    cluster.train(&short_job((1, 1, 1), 1, ""))?;
    let output =
        TOROID.run(&["coordinator", "--listen", "127.0.0.1:0", "--dir", path(&cluster.path().join("coordinator"))])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && stderr.contains("another coordinator"), "{stderr}");
    Ok(())
}

#[test]
fn a_worker_of_another_version_is_refused_with_both_versions() -> Result<()> {
    let cluster = Cluster::start(TOROID, 1, 1)?;
    cluster.train(&short_job((1, 1, 1), 1, ""))?;
    let register = Register {
        worker_id: "stranger".into(),
        protocol_version: 99,
        build_version: "99.0.0".into(),
        ..Register::default()
    };
    let message = WorkerMessage { body: Some(worker_message::Body::Register(register)) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        let mut client = WorkerServiceClient::new(cluster.worker_channel().await?);
        let mut stream = client.session(tokio_stream::once(message)).await?.into_inner();
        anyhow::Ok(stream.message().await)
    })?;
    let words = match answer {
        Ok(Some(m)) => match m.body {
            Some(coordinator_message::Body::Refused(refused)) => refused.reason,
            other => anyhow::bail!("expected a refusal, found {other:?}"),
        },
        Ok(None) => anyhow::bail!("the stream ended without a word"),
        Err(status) => status.message().to_string(),
    };
    ensure!(words.contains("99") && words.contains(toroid_proto::BUILD_VERSION), "{words}");
    Ok(())
}

/// A file system that has room for one checkpoint of `tiny` (27 MB) and not for two: every write of a shard of the second fails.
#[test]
fn a_full_disk_under_the_checkpoint_leaves_the_last_good_one() -> Result<()> {
    let cluster = Cluster::start(TOROID, 2, 1)?;
    let disk = cluster.path().join("disk");
    let _mounted = SmallDisk::mount(&disk, "40m")?;
    let job_file = format!("{}path = \"{}\"\n", tiny_job((1, 1, 2), 20, ""), path(&disk));
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "the failure of the last checkpoint", |job| job.unsaved.is_some())?;
    ensure!(job.curve.len() == 20, "training stopped at step {}", job.curve.len());
    let words = job.events.iter().map(|e| e.text.as_str()).collect::<Vec<_>>().join("\n");
    ensure!(words.contains("shard-") && words.to_lowercase().contains("space"), "{words}");
    ensure!(words.contains("(rank ") && words.contains("could not write its shard"), "who could not: {words}");
    // A user does without it.
    TOROID.run_ok(&["cancel", &id, "--coordinator", &cluster.url()])?;
    let list = TOROID.run_ok(&["checkpoint", "list", path(&disk)])?;
    ensure!(list.contains("10") && !list.contains("step-20"), "{list}");
    TOROID.run_ok(&["checkpoint", "verify", path(&disk), "10"])?;
    Ok(())
}

/// A damaged checkpoint is set aside and named, and the one before is used. Both holders of the state die, so that one is needed; they
/// are stopped before, so that no newer one comes.
#[test]
fn a_damaged_checkpoint_is_passed_over_for_the_one_before() -> Result<()> {
    let job_file = endless_job((1, 1, 2));
    let mut cluster = Cluster::start(TOROID, 4, 1)?;
    let id = cluster.submit(&job_file)?;
    let is_ready = |job: &Job| job.checkpoints.len() >= 2 && job.spares == 2;
    let job = cluster.wait_for(&id, "the second checkpoint and two spares", is_ready)?;
    let victims = [worker_of(&job, 0), worker_of(&job, 1)];
    for victim in &victims {
        cluster.signal(victim, Signal::STOP)?;
    }
    // Looked at after they are stopped; what they had said before may still be on its way.
    let manifests = |folder: &Path| -> Result<Vec<u64>> {
        let steps = std::fs::read_dir(folder)?.filter_map(|entry| {
            let path = entry.ok()?.path();
            path.join("manifest.json").exists().then_some(())?;
            path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
        });
        Ok(steps.collect())
    };
    let folder = cluster.checkpoints(&id);
    let newest = manifests(&folder)?.into_iter().max().context("find the newest checkpoint")?;
    let shard = shard_file(&folder.join(format!("step-{newest}")), 0)?;
    let mut bytes = std::fs::read(&shard)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes)?;
    cluster.kill_workers(&[&victims[0], &victims[1]])?;
    let goes_on = |job: &Job| is_whole(job) && job.incidents.iter().any(|incident| incident.rung == "restore");
    cluster.wait_for(&id, "an older checkpoint to be restored", goes_on)?;
    let job = cluster.finish(&id)?;
    let named = |event: &Event| event.kind == "checkpoint.damaged" && event.text.contains(&newest.to_string());
    ensure!(job.events.iter().any(named), "step {newest} is not named: {:#?}", job.events);
    ensure!(folder.join(format!("damaged-step-{newest}")).exists(), "step {newest} is not set aside");
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}

#[test]
fn a_gpu_that_is_not_there_is_one_clear_error() -> Result<()> {
    for (device, expected) in [("cuda:1000", "cannot compute on cuda:1000: "), ("gpu", "the device `gpu` is not known")]
    {
        let output =
            TOROID.command().args(["worker", "--coordinator", "http://127.0.0.1:1", "--device", device]).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success(), "a worker started on {device}");
        ensure!(stderr.matches(expected).count() == 1 && !stderr.contains("panicked"), "{device}: {stderr}");
    }
    Ok(())
}
