//! No spare is left: the job goes on with fewer replicas and the same samples in every step, and grows back when a worker comes.
//!
//! T-3 and T-5, with real processes. Sums have another order while there are fewer replicas, so losses are near those of the
//! undisturbed run, not equal; up to the death they are the same to the bit (T-4).

use anyhow::{Result, ensure};
use toroid_proto::{Incident, Job, JobState, StepRecord};
use toroid_testkit::jobs::tiny_job_on;
use toroid_testkit::{Cluster, assert_same_curve, path, root};

use crate::TOROID;
use crate::training::check_near;

/// Steps with fewer replicas whose losses are compared.
const NUM_STEPS: u64 = 20;

fn is_whole(job: &Job, state: JobState, dp: u32) -> bool {
    job.state() == state
        && job.shape.as_ref().is_some_and(|shape| shape.dp == dp)
        && job.places.iter().all(|place| place.alive)
        && job.incidents.iter().all(|incident| incident.resolved)
}

/// Kills the worker of `victim`, waits for `NUM_STEPS` steps with one replica less, starts a worker and waits for the end.
fn check(ways: (usize, usize, usize), victim: usize, num_left_over: u32) -> Result<()> {
    let ((tp, pp, dp), steps) = (ways, 70);
    // A text that never changes: whether a token's second and third expert are even up to rounding within these steps depends on it.
    let text = root().join("LICENSE");
    let job_file = tiny_job_on(&text, ways, steps, "");
    let mut cluster = Cluster::start(TOROID, tp * pp * dp, 1)?;
    let undisturbed = cluster.train(&job_file)?;
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "step 15", |job| job.curve.len() >= 15)?;
    cluster.kill_worker(&job.places[victim].worker_id)?;
    let fewer = dp as u32 - 1;
    let job = cluster.wait_for(&id, "fewer replicas", |job| is_whole(job, JobState::Degraded, fewer))?;
    let shrink = job.incidents.last().cloned().unwrap_or_default();
    check_incident(&shrink, "shrink")?;
    ensure!(job.places.len() == tp * pp * fewer as usize && job.spares == num_left_over, "{job:#?}");
    let goes_on = |job: &Job| job.curve.len() as u64 >= shrink.resumed_step + NUM_STEPS;
    cluster.wait_for(&id, "steps with fewer replicas", goes_on)?;
    cluster.add_worker(1)?;
    cluster.wait_for(&id, "all replicas again", |job| is_whole(job, JobState::Running, dp as u32))?;
    let job = cluster.done(&id)?;
    ensure!(job.incidents.len() == 2 && job.lost_steps == 0, "{:#?}", job.incidents);
    check_incident(&job.incidents[1], "grow")?;
    check_curve(&undisturbed.curve, &job.curve, &shrink)?;
    // The checkpoints of both shapes are whole.
    TOROID.run_ok(&["checkpoint", "verify", path(&cluster.checkpoints(&id))])?;
    let listed = TOROID.run_ok(&["incidents", &id, "--coordinator", &cluster.url()])?;
    ensure!(listed.contains("shrink") && listed.contains("grow"), "{listed}");
    ensure!(cluster.dead_workers().is_empty(), "others died too: {}", cluster.logs());
    Ok(())
}

fn check_incident(incident: &Incident, rung: &str) -> Result<()> {
    let is_fine = incident.resolved && incident.steps_lost == 0 && incident.rung == rung;
    ensure!(is_fine, "expected the rung {rung} and no step lost: {incident:#?}");
    Ok(())
}

fn check_curve(expected: &[StepRecord], found: &[StepRecord], shrink: &Incident) -> Result<()> {
    ensure!(found.len() == expected.len(), "the curve has {} steps of {}", found.len(), expected.len());
    let same = shrink.resumed_step as usize;
    assert_same_curve(&expected[..same], &found[..same]);
    for (expected, found) in expected.iter().zip(found).skip(same).take(NUM_STEPS as usize) {
        let relative = (found.loss - expected.loss).abs() / expected.loss;
        let (step, loss) = (found.step, found.loss);
        ensure!(relative <= 1e-5, "step {step}: {loss} against {}", expected.loss);
    }
    check_near(expected, found)?;
    // T-5: as many tokens, all routed.
    let routed = |record: &StepRecord| record.expert_load.iter().sum::<u64>();
    let is_same = |(a, b): (&StepRecord, &StepRecord)| (a.tokens, routed(a)) == (b.tokens, routed(b));
    ensure!(expected.iter().zip(found).all(is_same), "T-5: a step has other tokens");
    Ok(())
}

/// dp = 1: the copies are at the neighbours along the torus, and the mate of the dead one is a spare.
#[test]
fn two_replicas_of_two_become_one_and_two_again() -> Result<()> {
    check((2, 1, 2), 2, 1)
}

/// The first rank dies, and all stages have other micro-batches than before.
#[test]
fn three_pipelines_become_two_and_three_again() -> Result<()> {
    check((1, 2, 3), 0, 1)
}
