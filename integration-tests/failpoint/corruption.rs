//! Silent corruption in a real process: a bit of its memory flips, and it is that worker that is replaced.
//!
//! T-3 and T-4: no step lost, no checkpoint restored, the curve to the bit the undisturbed one. What is decided from which bit is tested
//! in the worker; here it is told, believed and acted on.

use anyhow::{Context, Result, ensure};
use toroid_proto::{Job, WorkerInfo};
use toroid_testkit::jobs::short_job;
use toroid_testkit::{Cluster, Undisturbed, check_nothing_lost};

use crate::TOROID;

#[test]
fn a_worker_whose_memory_flips_a_bit_is_replaced_and_the_curve_does_not_know() -> Result<()> {
    let steps = 40;
    let job_file = short_job((1, 1, 4), steps, "");
    let mut cluster = Cluster::start(TOROID, 4, 1)?;
    let undisturbed = Undisturbed::train(&cluster, &job_file, steps)?;
    let old = cluster.connected().pop().context("find a worker to replace")?.worker_id;
    cluster.kill_worker(&old)?;
    let is_gone = |workers: &[WorkerInfo]| workers.iter().all(|worker| worker.worker_id != old);
    cluster.wait_for_workers("the coordinator to see its end", is_gone)?;
    let flips = cluster.add_worker_that_fails("flip=own.exp_avg_sq@15")?;
    let id = cluster.submit(&job_file)?;
    let has_place = |job: &Job| job.places.iter().any(|place| place.worker_id == flips);
    let before = cluster.wait_for(&id, "the worker to have a place", has_place)?;
    let rank = before.places.iter().position(|place| place.worker_id == flips).context("find its rank")?;
    cluster.add_worker(1)?;
    let job = cluster.done(&id)?;
    undisturbed.check_same(&cluster, &job)?;
    check_nothing_lost(&job)?;
    let [incident] = job.incidents.as_slice() else { anyhow::bail!("one flipped bit, but {:#?}", job.incidents) };
    ensure!(incident.seen_by == "digests" && incident.workers == [flips.clone()], "{incident:#?}");
    ensure!(incident.cause.contains(&format!("the copy of rank {rank} is wrong")), "{incident:#?}");
    // The digests of both copies are told, and they differ.
    let is_digest = |word: &&str| word.len() == 32 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let digests: Vec<&str> = incident.cause.split(' ').filter(is_digest).collect();
    ensure!(digests.len() >= 2 && digests[0] != digests[1], "{incident:#?}");
    let is_aside = |w: &WorkerInfo| w.worker_id == flips && w.rank < 0;
    ensure!(cluster.connected().iter().any(is_aside), "{flips} lives, without a place: {:?}", cluster.connected());
    Ok(())
}
