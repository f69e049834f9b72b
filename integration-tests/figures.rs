//! What workers say of their input and of their work reaches the user (T-12), with real processes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use toroid_proto::Job;
use toroid_testkit::{Cluster, is_whole, path, worker_of};

use crate::TOROID;

/// Steps of a few milliseconds.
const SMALL: &str =
    "[model]\nlayers = 1\nd_model = 32\nheads = 2\nkv_heads = 1\nhead_dim = 16\nff = 32\nseq = 32\nvocab = 256\n";

/// The worker that is stopped and continued again and again computes for longer than its peers; who waits for it does not.
#[test]
fn a_worker_that_is_slow_is_named_and_who_waits_for_it_is_not() -> Result<()> {
    let cluster = Cluster::with_failure_timeout(TOROID, 3, 1, 4000)?;
    let text = cluster.path().join("text");
    std::fs::create_dir(&text)?;
    std::fs::write(text.join("a.txt"), "all work and no play makes jack a dull boy\n".repeat(400))?;
    std::fs::write(text.join("b.bin"), [0xff, 0xfe, 0])?;
    let job_file =
        format!("steps = 10000000\nshape.dp = 3\neval.micro_batches = 0\n{SMALL}[data]\npath = \"{}\"\n", path(&text));
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "step 5", |job| job.committed_step >= 5)?;
    let slow = worker_of(&job, 1);
    let is_over = AtomicBool::new(false);
    let names = |job: &Job| job.stragglers.iter().map(|s| s.worker_id.clone()).collect::<Vec<_>>();
    std::thread::scope(|scope| -> Result<()> {
        let (cluster, is_over, slow) = (&cluster, &is_over, &slow);
        let slows = scope.spawn(move || -> Result<()> {
            // Time is what makes it slow; nobody waits for it.
            while !is_over.load(Ordering::SeqCst) {
                cluster.signal(slow, Signal::STOP)?;
                std::thread::sleep(Duration::from_millis(80));
                cluster.signal(slow, Signal::CONT)?;
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        let found = cluster.wait_for(&id, "the slow worker to be named", |job| !job.stragglers.is_empty());
        is_over.store(true, Ordering::SeqCst);
        slows.join().map_err(|_| anyhow::anyhow!("the thread that stops it panicked"))??;
        let job = found?;
        ensure!(names(&job) == [slow.clone()], "{:#?}", job.stragglers);
        ensure!(job.stragglers[0].factor > 1.5 && job.stragglers[0].rank == 1, "{:#?}", job.stragglers);
        Ok(())
    })?;
    let job = cluster.wait_for(&id, "it to keep up again", |job| job.stragglers.is_empty())?;
    ensure!(
        is_whole(&job) && job.epoch == 1 && worker_of(&job, 1) == slow,
        "it has lost its place: {:#?}",
        job.incidents
    );
    let of = |kind: &str| job.events.iter().filter(|e| e.kind == kind).map(|e| e.worker_id.clone()).collect::<Vec<_>>();
    ensure!(of("worker.slow") == [slow.clone()] && of("worker.keeps_up") == [slow], "{:#?}", job.events);

    // T-12: what is not text is told, in events, in the status and to programs.
    let expected = "1 file is left out, 3 bytes: not UTF-8 text (b.bin)";
    ensure!(job.events.iter().any(|e| e.kind == "data.left_out" && e.text == expected), "{:#?}", job.events);
    let status = TOROID.run_ok(&["status", &id, "--coordinator", &cluster.url()])?;
    ensure!(status.contains("not UTF-8 text (b.bin)") && status.contains("1 file, "), "{status}");
    let json = TOROID.run_ok(&["status", &id, "--no-curve", "-o", "json", "--coordinator", &cluster.url()])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(json["inputs"]["left_out"][0]["first"][0] == "b.bin", "{json:#}");
    let workers = TOROID.run_ok(&["workers", "--coordinator", &cluster.url()])?;
    ensure!(workers.contains("COMPUTES A STEP"), "{workers}");
    TOROID.run_ok(&["cancel", &id, "--coordinator", &cluster.url()])?;
    Ok(())
}
