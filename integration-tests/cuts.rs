//! Networks that are cut, silently, and heal again: of a worker from everyone, of two workers from each other, of a worker from the
//! coordinator alone.
//!
//! T-1: who was replaced meanwhile comes back and cannot write a frame, shard, checkpoint or report into the job; the curve (T-4) and
//! the checkpoints say so. Each worker is in a network namespace: this needs root.

use anyhow::{Context, Result, ensure};
use toroid::cluster::network;
use toroid_proto::{Job, WorkerInfo};
use toroid_testkit::jobs::endless_job;
use toroid_testkit::{Cluster, Undisturbed, check_nothing_lost, is_whole, path, worker_of};

use crate::TOROID;

/// Long enough that a busy machine makes nobody look dead.
const FAILURE_TIMEOUT_MS: u32 = 3000;
const AGENT: &str = "agent";
const WAYS: (usize, usize, usize) = (1, 1, 4);

/// A job at (1, 1, 4) with a spare, whose network is about to be cut.
struct Cut {
    cluster: Cluster,
    id: String,
    /// Before the cut.
    before: Job,
}

impl Cut {
    fn start() -> Result<Cut> {
        Cut::of(Cluster::on_network(TOROID, 4, 1, FAILURE_TIMEOUT_MS)?)
    }

    /// Of as many workers as the job has places; the spare follows.
    fn of(mut cluster: Cluster) -> Result<Cut> {
        let id = cluster.submit(&endless_job(WAYS))?;
        cluster.wait_for(&id, "all places to be filled", is_whole)?;
        cluster.add_worker(1)?;
        // Within the failure timeout step 20 comes, which is validated: whoever is not heard of then knows what nobody else may lose.
        let is_ready = |job: &Job| job.curve.len() >= 15 && job.spares == 1;
        let before = cluster.wait_for(&id, "step 15 and a spare", is_ready)?;
        Ok(Cut { cluster, id, before })
    }

    fn worker(&self, rank: usize) -> String {
        worker_of(&self.before, rank)
    }

    /// Waits until the job goes on with one of these workers replaced; returns which.
    fn replaced(&self, workers: &[&str]) -> Result<(Job, String)> {
        let missing = |job: &Job| {
            let is_missing = |worker: &&&str| job.places.iter().all(|place| place.worker_id != **worker);
            workers.iter().find(is_missing).map(|worker| worker.to_string())
        };
        let goes_on = |job: &Job| is_whole(job) && !job.incidents.is_empty() && missing(job).is_some();
        let job = self.cluster.wait_for(&self.id, "a step with another worker in the place", goes_on)?;
        let who = missing(&job).context("find who was replaced")?;
        Ok((job, who))
    }

    /// Waits until a worker that has no place any more is heard of again.
    fn is_back(&self, worker: &str) -> Result<()> {
        let is_spare = |w: &WorkerInfo| w.worker_id == worker && w.rank < 0 && w.silent_s < 1.0;
        self.cluster.wait_for_workers("the worker to come back as a spare", |all| all.iter().any(is_spare))
    }

    /// T-1 and T-4: the rest of the job as if nothing had been, and nothing of who came back is in it.
    fn check_done(&self, epoch: u64) -> Result<Job> {
        let job = self.cluster.finish(&self.id)?;
        check_nothing_lost(&job)?;
        ensure!(job.epoch == epoch, "epoch {epoch} was the last, but {} came: {:#?}", job.epoch, job.incidents);
        TOROID.run_ok(&["checkpoint", "verify", path(&self.cluster.checkpoints(&self.id))])?;
        Undisturbed::as_far_as(&self.cluster, &endless_job(WAYS), &job)?.check_same(&self.cluster, &job)?;
        Ok(job)
    }
}

/// Rank 0 is the one that writes manifests, removes checkpoints and reports the steps.
#[test]
fn t1_a_worker_whose_network_was_cut_is_replaced_and_has_nothing_more_to_say() -> Result<()> {
    let mut cut = Cut::start()?;
    let worker = cut.worker(0);
    cut.cluster.cut(&worker, network::Cut::All)?;
    let (job, _) = cut.replaced(&[&worker])?;
    cut.cluster.heal()?;
    cut.is_back(&worker)?;
    let done = cut.check_done(job.epoch)?;
    let [incident] = done.incidents.as_slice() else { anyhow::bail!("one cut, but {:#?}", done.incidents) };
    let timeout_s = f64::from(FAILURE_TIMEOUT_MS) / 1e3;
    ensure!(incident.detect_s >= 0.5 * timeout_s, "silence takes time to be seen: {incident:#?}");
    ensure!(incident.seen_by == "silence", "{incident:#?}");
    Ok(())
}

/// Both are heard of by the coordinator all the time, and no new connection between them can be made: one of them has to go.
#[test]
fn two_workers_that_do_not_reach_each_other_any_more_are_parted() -> Result<()> {
    let mut cut = Cut::start()?;
    let (one, other) = (cut.worker(1), cut.worker(2));
    cut.cluster.cut(&one, network::Cut::Worker(other.clone()))?;
    let (job, replaced) = cut.replaced(&[&one, &other])?;
    let incident = job.incidents.first().context("find the incident")?;
    let rank = if replaced == one { 1 } else { 2 };
    ensure!(incident.ranks.contains(&rank) && incident.cause.contains(&replaced), "who and why: {incident:#?}");
    cut.cluster.heal()?;
    cut.check_done(job.epoch)?;
    Ok(())
}

/// The links still carry what it says when the coordinator has given its place to another.
#[test]
fn t1_a_worker_that_is_cut_off_from_the_coordinator_alone_is_replaced() -> Result<()> {
    let mut cut = Cut::start()?;
    // Not rank 0: what it alone says of validations while nobody hears it dies with it.
    let worker = cut.worker(1);
    cut.cluster.cut(&worker, network::Cut::Coordinator)?;
    let (job, _) = cut.replaced(&[&worker])?;
    cut.cluster.heal()?;
    cut.is_back(&worker)?;
    cut.check_done(job.epoch)?;
    Ok(())
}

/// The links still carry what its worker says, which has no other way to the coordinator: the worker is replaced, and comes back with the agent.
#[test]
fn t1_a_worker_behind_an_agent_that_is_cut_off_is_replaced_and_comes_back_behind_it() -> Result<()> {
    let mut cluster = Cluster::on_network(TOROID, 3, 1, FAILURE_TIMEOUT_MS)?;
    let socket = cluster.start_agent(AGENT)?;
    let worker = cluster.add_worker_by_agent_alone(&socket)?;
    let mut cut = Cut::of(cluster)?;
    let place = cut.before.places.iter().find(|place| place.worker_id == worker).context("find its place")?;
    ensure!(place.rank != 0, "what rank 0 alone says of validations while nobody hears it dies with it");
    cut.cluster.cut(AGENT, network::Cut::All)?;
    let (job, _) = cut.replaced(&[&worker])?;
    cut.cluster.heal()?;
    cut.is_back(&worker)?;
    let done = cut.check_done(job.epoch)?;
    ensure!(done.incidents.len() == 1, "one cut, but {:#?}", done.incidents);
    Ok(())
}
