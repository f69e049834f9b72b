//! A rolling upgrade: processes of two builds work together, and those that cannot say so. The other build is this binary, which pretends to be one.

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use toroid_proto::{Job, WorkerInfo};
use toroid_testkit::jobs::endless_job;
use toroid_testkit::{Cluster, Etcd, Undisturbed, check_nothing_lost, is_whole, worker_of};

use crate::TOROID;

const VARIABLE: &str = "TOROID_PRETEND";
/// The next release: it speaks what this one does, and more.
const NEXT: &str = "version=0.2.0,protocol=1-2,links=7-8";
const COORDINATORS: [&str; 3] = ["coordinator", "coordinator-2", "coordinator-3"];

/// Has one process of a cluster end in good order.
fn end(cluster: &mut Cluster, name: &str) -> Result<()> {
    cluster.signal(name, Signal::TERM)?;
    let code = cluster.exit_code(name)?;
    ensure!(code == Some(0), "{name} ended with {code:?}");
    Ok(())
}

/// Waits until two more steps are committed by all places.
fn goes_on(cluster: &Cluster, id: &str, what: &str) -> Result<Job> {
    let after = cluster.wait_for(id, "an answer", |_| true)?.committed_step + 2;
    cluster.wait_for(id, what, |job: &Job| is_whole(job) && job.committed_step >= after)
}

fn words_of(cluster: &Cluster, child: &str) -> Result<String> {
    Ok(std::fs::read_to_string(cluster.log(child))?)
}

#[test]
fn every_process_is_replaced_by_one_of_the_next_version_within_a_run_and_no_step_is_lost() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let job_file = endless_job((1, 1, 2));
    let mut cluster = Cluster::with_coordinators(TOROID, &etcd.urls(), COORDINATORS.len(), 2)?;
    let id = cluster.submit(&job_file)?;
    let job = cluster.wait_for(&id, "step 3", |job| job.committed_step >= 3)?;
    let old = [worker_of(&job, 0), worker_of(&job, 1)];

    cluster.set_environment(VARIABLE, NEXT);
    for name in COORDINATORS {
        end(&mut cluster, name)?;
        cluster.start_coordinator_named(name)?;
        cluster.leader()?;
        goes_on(&cluster, &id, &format!("steps with {name} of the next version"))?;
    }
    for worker in &old {
        let said = "the coordinator is of version 0.2.0, this worker of";
        let words = words_of(&cluster, worker)?;
        ensure!(words.contains(said) && words.contains("they speak protocol 1"), "{words}");
        cluster.add_worker(1)?;
        end(&mut cluster, worker)?;
        goes_on(&cluster, &id, &format!("steps without {worker}"))?;
    }
    let workers = cluster.connected();
    let is_next = |w: &WorkerInfo| (w.build_version.as_str(), w.protocol_version) == ("0.2.0", 2);
    ensure!(workers.len() == 2 && workers.iter().all(is_next), "{workers:#?}");

    // One that speaks nothing which this coordinator does ends, and says why.
    cluster.set_environment(VARIABLE, "version=0.9.0,protocol=8-9");
    let refused = cluster.add_worker(1)?;
    let code = cluster.exit_code(&refused)?;
    let words = words_of(&cluster, &refused)?;
    let expected =
        "of version 0.9.0 and speaks protocol 8 to 9, the coordinator is of version 0.2.0 and speaks protocol 1 to 2";
    ensure!(code != Some(0) && words.contains(expected), "{code:?}: {words}");

    // Those that compute differently, or cannot link with the places, are no spares.
    cluster.set_environment(VARIABLE, "version=0.3.0,protocol=1-2,links=7-8,numerics=2");
    let differs = cluster.add_worker(1)?;
    cluster.set_environment(VARIABLE, "version=0.4.0,protocol=2-3,links=9-9");
    let mute = cluster.add_worker(1)?;
    let has_said = |workers: &[WorkerInfo]| {
        let says =
            |id: &str, words: &str| workers.iter().any(|w| w.worker_id == id && w.warm_up_reason.contains(words));
        says(&differs, "computes with numerics 2") && says(&mute, "speaks links of version 9")
    };
    cluster.wait_for_workers("them to be put aside in words", has_said)?;
    let job = cluster.wait_for(&id, "an answer", |_| true)?;
    cluster.kill_worker(&worker_of(&job, 1))?;
    cluster.set_environment(VARIABLE, NEXT);
    let spare = cluster.add_worker(1)?;
    let job =
        cluster.wait_for(&id, "the spare to take the place", |job| is_whole(job) && worker_of(job, 1) == spare)?;
    ensure!(job.epoch > 1, "{job:#?}");

    let job = cluster.finish(&id).context("end the job")?;
    check_nothing_lost(&job)?;
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}
