//! Several coordinators over one etcd, all of them real processes: whatever dies of the control plane, training goes on and ends as if nothing had been.
//!
//! T-8 and T-13 (a leader that was stopped changes nothing), T-9 (without a store steps go on), T-4 (the undisturbed run's bits). `TOROID_KILLS=50` kills as
//! many leaders, a fifth as many leaders of etcd, and two fifths together with a worker.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use toroid_proto::{Job, JobState};
use toroid_testkit::jobs::{ended, endless_job, short_job};
use toroid_testkit::{Bucket, Cluster, Etcd, Patience, Toroid, Undisturbed, assert_same_curve, is_whole};

/// The binary under test, as it is shipped.
const TOROID: Toroid = Toroid::at(env!("CARGO_BIN_EXE_toroid"));

const COORDINATORS: usize = 3;
const WAYS: (usize, usize, usize) = (2, 2, 2);
/// With the default limits.
const LEADER_WITHIN: Duration = Duration::from_secs(3);

fn num_kills() -> Result<usize> {
    match std::env::var("TOROID_KILLS") {
        Ok(text) => text.parse().with_context(|| format!("read TOROID_KILLS = {text}")),
        Err(_) => Ok(2),
    }
}

/// Steps are made, and all workers of the job are known to the leader.
fn gets_on(cluster: &Cluster, id: &str, what: &str) -> Result<Job> {
    let before = cluster.wait_for(id, what, is_whole)?.committed_step;
    cluster.wait_for(id, what, |job| is_whole(job) && job.committed_step > before + 1)
}

/// Another than `before` leads, with a greater term; how long that took since `since`.
fn next_leader(cluster: &Cluster, before: &(String, u64), since: Instant) -> Result<Duration> {
    let mut patience = Patience::new();
    loop {
        let (name, term) = cluster.leader()?;
        if term > before.1 {
            ensure!(name != before.0, "{name} leads again");
            return Ok(since.elapsed());
        }
        patience.look(|| 0)?;
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Steps a second while leaders died, beside those in between: the workers were the same all the time.
fn print_pace(job: &Job, without_leader: &[RangeInclusive<u64>]) {
    let (Some(first), Some(last)) = (without_leader.first(), without_leader.last()) else { return };
    let of_kills = job.curve.iter().filter(|r| (*first.start()..=*last.end()).contains(&r.step));
    let (during, between): (Vec<_>, Vec<_>) =
        of_kills.partition(|r| without_leader.iter().any(|range| range.contains(&r.step)));
    for (what, records) in [("while a leader was missing", during), ("in between", between)] {
        let seconds: f64 = records.iter().map(|r| r.step_s).sum();
        eprintln!("{:.1} steps/s {what} ({} steps in {seconds:.1} s)", records.len() as f64 / seconds, records.len());
    }
}

#[test]
fn leaders_of_either_kind_die_and_the_job_does_not_notice() -> Result<()> {
    let num = num_kills()?;
    let mut etcd = Etcd::start(3)?;
    let mut cluster = Cluster::with_coordinators(TOROID, &etcd.urls(), COORDINATORS, 9)?;
    // Thousands of checkpoints are made: as many stay as with a user.
    let job_file = endless_job(WAYS).replace("keep = 100000", "keep = 3");
    let id = cluster.submit(&job_file)?;
    gets_on(&cluster, &id, "the first steps")?;

    let mut times = Vec::new();
    let mut without_leader = Vec::new();
    for kill in 0..num {
        let leader = cluster.leader()?;
        let before = gets_on(&cluster, &id, "steps before a leader is killed")?.committed_step;
        let since = Instant::now();
        cluster.kill_workers(&[&leader.0])?;
        times.push(next_leader(&cluster, &leader, since)?);
        let after = gets_on(&cluster, &id, &format!("steps after leader {kill} was killed"))?.committed_step;
        without_leader.push(before + 1..=after);
        cluster.start_coordinator_named(&leader.0)?;
        // As many steps as there were without a leader, to compare with.
        cluster.wait_for(&id, "as many steps", |job| job.committed_step > after + (after - before))?;
    }
    eprintln!("a new leader after {:?}, the median of {} of {times:?}", median(times.clone()), times.len());
    print_pace(&gets_on(&cluster, &id, "the curve")?, &without_leader);

    for kill in 0..num.div_ceil(5) {
        let member = etcd.leader()?;
        etcd.kill(member)?;
        gets_on(&cluster, &id, &format!("steps after leader {kill} of etcd was killed"))?;
        etcd.restart(member)?;
        etcd.wait_until_healthy()?;
    }

    for kill in 0..(2 * num).div_ceil(5) {
        let job = cluster.wait_for(&id, "a spare", |job| is_whole(job) && job.spares > 0)?;
        let victim = &job.places[kill % job.places.len()].worker_id;
        let leader = cluster.leader()?;
        cluster.kill_workers(&[&leader.0, victim])?;
        let num_incidents = job.incidents.len();
        let what = format!("the job to heal after worker and leader {kill} were killed");
        cluster.wait_for(&id, &what, |job| is_whole(job) && job.incidents.len() > num_incidents)?;
        cluster.start_coordinator_named(&leader.0)?;
        cluster.add_worker(1)?;
    }

    let job = cluster.finish(&id)?;
    ensure!(job.lost_steps == 0, "{} steps were lost", job.lost_steps);
    ensure!(job.missing_steps == 0, "{} steps have no record", job.missing_steps);
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)?;
    // On a machine that has nothing else to do.
    let is_measured = std::env::var_os("TOROID_KILLS").is_some();
    ensure!(!is_measured || median(times) <= LEADER_WITHIN, "a new leader takes too long");
    Ok(())
}

#[test]
fn t8_t13_a_leader_that_was_stopped_changes_nothing() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let mut cluster = Cluster::with_coordinators(TOROID, &etcd.urls(), 2, 8)?;
    let job_file = endless_job(WAYS);
    let id = cluster.submit(&job_file)?;
    gets_on(&cluster, &id, "the first steps")?;
    let leader = cluster.leader()?;
    cluster.signal(&leader.0, Signal::STOP)?;
    next_leader(&cluster, &leader, Instant::now())?;
    let job = gets_on(&cluster, &id, "steps under the next leader")?;
    let epoch = job.epoch;
    ensure!(job.term > leader.1, "the status shows the term {} after {}", job.term, leader.1);
    cluster.signal(&leader.0, Signal::CONT)?;
    cluster.wait_for_log(&cluster.log(&leader.0), "does not lead any more")?;
    let job = gets_on(&cluster, &id, "steps after the first leader went on")?;
    ensure!(job.epoch == epoch && job.incidents.is_empty(), "epoch {} after {epoch}: {:?}", job.epoch, job.incidents);
    let other = cluster.leader_as_seen_by(&leader.0)?;
    ensure!(!other.leads && other.term == job.term, "{other:?}");
    // Whoever asks it is told who leads.
    let job = cluster.finish(&id)?;
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)?;
    cluster.kill_workers(&[&leader.0])
}

/// T-8, T-13: an agent asks the coordinators in turn, as workers do, and its own end beside the leader's is nobody's, either.
#[test]
fn workers_behind_agents_follow_whoever_leads() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let mut cluster = Cluster::with_coordinators(TOROID, &etcd.urls(), COORDINATORS, 0)?;
    let agents = ["agent-1", "agent-2"];
    for agent in agents {
        let socket = cluster.start_agent(agent)?;
        cluster.add_worker_behind(&socket)?;
        cluster.add_worker_by_agent_alone(&socket)?;
    }
    let job_file = endless_job((1, 2, 2));
    let id = cluster.submit(&job_file)?;
    gets_on(&cluster, &id, "the first steps")?;

    let leader = cluster.leader()?;
    cluster.kill_workers(&[&leader.0])?;
    next_leader(&cluster, &leader, Instant::now())?;
    gets_on(&cluster, &id, "steps under the second leader")?;
    cluster.start_coordinator_named(&leader.0)?;

    let leader = cluster.leader()?;
    cluster.signal(&leader.0, Signal::STOP)?;
    next_leader(&cluster, &leader, Instant::now())?;
    gets_on(&cluster, &id, "steps under the third leader")?;
    cluster.signal(&leader.0, Signal::CONT)?;

    let leader = cluster.leader()?;
    cluster.kill_workers(&[&leader.0, agents[0]])?;
    cluster.start_agent(agents[0])?;
    next_leader(&cluster, &leader, Instant::now())?;
    let job = gets_on(&cluster, &id, "steps under the fourth leader")?;
    ensure!(job.epoch == 1 && job.incidents.is_empty(), "epoch {}: {:#?}", job.epoch, job.incidents);
    let job = cluster.finish(&id)?;
    ensure!(job.lost_steps == 0 && job.missing_steps == 0, "{} lost, {} missing", job.lost_steps, job.missing_steps);
    Undisturbed::as_far_as(&cluster, &job_file, &job)?.check_same(&cluster, &job)
}

#[test]
fn t9_without_a_store_training_goes_on_and_that_is_said() -> Result<()> {
    let mut etcd = Etcd::start(3)?;
    let cluster = Cluster::with_coordinators(TOROID, &etcd.urls(), 2, 8)?;
    // It ends by itself, without anybody who could hear of it.
    let job_file = short_job(WAYS, 400, "");
    let id = cluster.submit(&job_file)?;
    gets_on(&cluster, &id, "the first steps")?;
    let (leader, _) = cluster.leader()?;
    etcd.kill(0)?;
    etcd.kill(1)?;
    let mut patience = Patience::new();
    let reason = loop {
        let seen = cluster.leader_as_seen_by(&leader)?;
        if !seen.leads && seen.reason.contains("decisions wait") {
            break seen.reason;
        }
        patience.look(|| 0)?;
    };
    ensure!(reason.contains("does not reach the store, training goes on"), "{reason}");
    etcd.restart(0)?;
    etcd.restart(1)?;
    let job = cluster.done(&id)?;
    ensure!(job.state() == JobState::Done && job.incidents.is_empty(), "{:?}", job.incidents);
    ensure!(job.missing_steps == 0, "{} steps have no record", job.missing_steps);
    Undisturbed::train(&cluster, &job_file, 400)?.check_same(&cluster, &job)
}

/// T-8, T-9, T-13: checkpoints and curve are in a bucket. Leaders die, and the bucket does for a while, which is said: every row is there in the end.
#[test]
fn the_curve_in_a_bucket_is_whole_whoever_leads() -> Result<()> {
    let etcd = Etcd::start(1)?;
    let mut bucket = Bucket::start()?;
    let sizes = (2, 3);
    let mut cluster = Cluster::with_coordinators_and_environment(TOROID, &etcd.urls(), sizes, &bucket.variables())?;
    let in_bucket = |prefix: &str| {
        let path = format!("[checkpoint]\npath = \"{}\"\n", bucket.url(prefix));
        endless_job((1, 1, 2)).replace("keep = 100000", "keep = 3").replace("[checkpoint]\n", &path)
    };
    let (job_file, undisturbed) = (in_bucket("run"), in_bucket("undisturbed"));
    let id = cluster.submit(&job_file)?;
    gets_on(&cluster, &id, "the first steps")?;
    let heads = |bucket: &Bucket| -> Result<Vec<String>> {
        let names = std::fs::read_dir(bucket.folder().join("run/curve"))?;
        let names = names.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.filter(|name: &Result<String>| name.as_ref().is_ok_and(|name| name.starts_with("head-"))).collect()
    };
    for kill in 0..2 {
        let leader = cluster.leader()?;
        let job =
            cluster.wait_for(&id, "rows in the bucket", |_| heads(&bucket).is_ok_and(|heads| !heads.is_empty()))?;
        cluster.kill_workers(&[&leader.0])?;
        next_leader(&cluster, &leader, Instant::now())?;
        let what = format!("steps after leader {kill} was killed");
        cluster.wait_for(&id, &what, |now| is_whole(now) && now.committed_step > job.committed_step + 20)?;
        cluster.start_coordinator_named(&leader.0)?;
        if kill > 0 {
            continue;
        }
        bucket.kill();
        let job =
            cluster.wait_for(&id, "the status to say that rows wait", |job| job.damaged.contains("wait in memory"))?;
        let goes_on = |now: &Job| now.committed_step > job.committed_step + 20;
        cluster.wait_for(&id, "steps without a bucket", goes_on)?;
        bucket.start_again()?;
        cluster.wait_for(&id, "the rows to be written", |job| job.damaged.is_empty() && job.unsaved.is_none())?;
    }
    let job = cluster.finish(&id)?;
    ensure!(job.missing_steps == 0 && job.lost_steps == 0, "{} missing, {} lost", job.missing_steps, job.lost_steps);
    ensure!(job.curve.iter().map(|r| r.step).eq(1..=job.committed_step), "the curve has gaps");
    let undisturbed = cluster.train(&ended(&undisturbed, job.committed_step))?;
    assert_same_curve(&undisturbed.curve, &job.curve);
    Ok(())
}
