//! Workers that kill themselves at a named phase of a step: T-3 and T-4 at each of them.

use anyhow::{Context, Result, ensure};
use toroid_proto::{Job, WorkerInfo};
use toroid_testkit::jobs::{endless_job, short_job};
use toroid_testkit::{Cluster, Undisturbed, check_nothing_lost, is_whole, worker_of};
use toroid_torus::geometry::Shape;
use toroid_torus::holders::lost_shard;

use crate::TOROID;

type Ways = (usize, usize, usize);

/// The worker that takes a place of the job kills itself at `dies_at`. There is no spare until the job has its workers.
struct Doomed<'a> {
    cluster: &'a mut Cluster,
    undisturbed: &'a Undisturbed,
    job_file: String,
    ways: Ways,
}

impl Doomed<'_> {
    /// Of as many workers as there are places, the last one started is doomed.
    fn submit(&mut self, job_file: &str, dies_at: &str) -> Result<(String, String)> {
        let old = self.cluster.connected().pop().context("find a worker to replace")?.worker_id;
        self.cluster.kill_worker(&old)?;
        let gone = |workers: &[WorkerInfo]| workers.iter().all(|worker| worker.worker_id != old);
        self.cluster.wait_for_workers("the coordinator to see its end", gone)?;
        let doomed = self.cluster.add_worker_that_fails(&format!("kill={dies_at}"))?;
        let id = self.cluster.submit(job_file)?;
        // Only as many workers are there as there are places. It may have died already.
        self.cluster.wait_for(&id, "the places to be given away", |job| job.epoch > 0)?;
        Ok((id, doomed))
    }

    fn is_dead(&mut self, doomed: &str) -> Result<()> {
        let dead = self.cluster.dead_workers();
        ensure!(dead == [doomed], "{doomed} was to kill itself, dead are {dead:?}");
        self.cluster.bury(doomed)
    }

    /// Dies at a phase of a step; a spare is at hand.
    fn check(&mut self, dies_at: &str) -> Result<()> {
        let (id, doomed) = self.submit(&self.job_file.clone(), dies_at)?;
        self.cluster.add_worker(1)?;
        let job = self.cluster.done(&id)?;
        self.is_dead(&doomed)?;
        self.undisturbed.check_same(self.cluster, &job)?;
        check_nothing_lost(&job)
    }

    /// Another one dies; the doomed one, which holds no shard together with it, dies while that is healed.
    fn check_healing(&mut self) -> Result<()> {
        let (tp, pp, dp) = self.ways;
        let shape = Shape::new(tp, pp, dp)?;
        let job_file = endless_job(self.ways);
        let (id, doomed) = self.submit(&job_file, "heal@0")?;
        for _ in 0..2 {
            self.cluster.add_worker(1)?;
        }
        let is_ready = |job: &Job| job.curve.len() >= 10 && job.spares == 2;
        let job = self.cluster.wait_for(&id, "step 10 and two spares", is_ready)?;
        let rank = job.places.iter().position(|place| place.worker_id == doomed).context("find the doomed one")?;
        let other =
            (0..shape.world()).find(|&other| other != rank && lost_shard(&shape, &[rank, other].into()).is_none());
        let other = other.context("find a rank that holds no shard together with the doomed one")?;
        let other = worker_of(&job, other);
        self.cluster.kill_worker(&other)?;
        let is_over =
            |job: &Job| is_whole(job) && job.places.iter().all(|p| ![&doomed, &other].contains(&&p.worker_id));
        self.cluster.wait_for(&id, "both places to be filled", is_over)?;
        let job = self.cluster.finish(&id)?;
        self.is_dead(&doomed)?;
        check_nothing_lost(&job)?;
        Undisturbed::as_far_as(self.cluster, &job_file, &job)?.check_same(self.cluster, &job)
    }
}

/// T-3 and T-4 at every named phase of a step, and while another place is healed.
#[test]
fn death_at_every_phase_of_a_step_costs_no_step_and_no_bit() -> Result<()> {
    let (ways, steps) = ((2, 2, 2), 40);
    let job_file = short_job(ways, steps, "");
    let mut cluster = Cluster::start(TOROID, 8, 1)?;
    let undisturbed = Undisturbed::train(&cluster, &job_file, steps)?;
    let mut doomed = Doomed { cluster: &mut cluster, undisturbed: &undisturbed, job_file, ways };
    for dies_at in [
        "forward@15",
        "stage-transfer@15",
        "reduce-scatter@15",
        "sealed@15",
        "commit@15",
        "optimizer@15",
        "all-gather@15",
        "checkpoint@0",
    ] {
        doomed.check(dies_at).with_context(|| format!("death at {dies_at}"))?;
    }
    doomed.check_healing().context("death while another is healed")
}
