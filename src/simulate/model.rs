//! What is simulated, and how long each part of it takes: the formulas of `toroid plan` for what a job computes and sends, and assumptions,
//! each of them a flag, for what no formula gives.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use toroid_torus::geometry::Shape;
use toroid_torus::job::{self, JobSpec};
use toroid_torus::partition::partition;
use toroid_torus::plan::{self, Failures, Machine};

use super::fleet::{Kind, Mix, WORKERS_OF_A_HOST};
use crate::exit::wrong_use;

/// Master weight and both moments of a parameter.
const STATE_BYTES: f64 = 12.0;
/// Samples of a micro-batch, and micro-batches of a replica, as in the recipe of the model of 67 billion parameters.
const MICRO_BATCH: usize = 2;
const MICRO_BATCHES: usize = 8;

/// One run: what is varied.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scenario {
    pub places: usize,
    pub spares: usize,
    pub tp: usize,
    pub pp: usize,
    /// Mean time between failures that come to one of the places.
    pub failure_every_s: f64,
    pub interval_s: f64,
    pub second_holder: bool,
    pub days: f64,
    pub seed: u64,
}

/// What is the same in all runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    pub preset: String,
    pub machine: Machine,
    /// Bytes a second that the workers of a host together read from and write to where checkpoints lie.
    pub storage_bytes_per_s: f64,
    /// Bytes a second at which a place copies its state aside for a checkpoint, while it makes no step.
    pub copy_bytes_per_s: f64,
    /// Shares of the kinds of failures.
    pub mix: Mix,
    pub failure_timeout_s: f64,
    pub heartbeat_interval_s: f64,
    /// From the end of a process until the coordinator knows.
    pub notice_s: f64,
    /// From what the coordinator knows until all places are told of an epoch, and again until all are told to start: for each place.
    pub decide_us: f64,
    /// A newcomer's links, and those of all others to it.
    pub connect_s: f64,
    /// Until what failed is back: a worker, a host, a rack or switch.
    pub repair_s: [f64; 3],
    /// Until somebody acts on a slow worker that was named, or on a job that has failed.
    pub operator_s: f64,
    /// The launcher: until all processes are there again and have their links, beside reading the checkpoint.
    pub restart_s: f64,
    /// The launcher: until a worker that hangs is noticed.
    pub hang_timeout_s: f64,
}

impl Settings {
    pub fn repair(&self, kind: Kind) -> Duration {
        let [worker, host, rack] = self.repair_s;
        Duration::from_secs_f64(match kind {
            Kind::Worker | Kind::Hang | Kind::Slow => worker,
            Kind::Host => host,
            Kind::Rack | Kind::Switch => rack,
        })
    }
}

/// A scenario with its job, and the time that each part takes.
pub struct Model {
    pub scenario: Scenario,
    pub settings: Settings,
    pub toml: String,
    pub spec: JobSpec,
    /// Bytes of the largest shard.
    pub shard_bytes: f64,
    /// A step with all places.
    pub step: Duration,
    steps: BTreeMap<usize, Duration>,
    /// Pulling two shards and gathering the parameters.
    heal: Duration,
}

impl Model {
    pub fn new(scenario: Scenario, settings: Settings) -> Result<Model> {
        let Scenario { places, spares, tp, pp, .. } = scenario;
        let num = tp.checked_mul(pp).filter(|n| *n > 0 && places > 0).ok_or_else(|| {
            wrong_use(format!("cannot simulate {places} places with tp {tp} and pp {pp}: expected at least 1 of each"))
        })?;
        let refused = |why: String| wrong_use(format!("cannot simulate {places} places: {why}"));
        if places % num != 0 {
            return Err(refused(format!(
                "tp {tp} times pp {pp} makes {num} places of a replica, which do not divide them; name another number, or other --tp and --pp"
            )));
        }
        if spares > places {
            return Err(refused(format!("{spares} spares are more than there are places; ask for fewer (--spares)")));
        }
        let toml = job_file(&scenario, &settings.preset);
        let spec = job::parse(&toml).map_err(|error| refused(format!("{error}")))?;
        let longest = (0..pp).map(|stage| partition(&spec.model, &spec.shape, 0, stage).shard_len).max();
        let shard_bytes = STATE_BYTES * longest.unwrap_or(0) as f64;
        let failures = Failures { mtbf_s: 1e12, detect_s: 0.0, restore_s: 0.0 };
        let of_job = plan::plan(&spec, &settings.machine, &failures);
        let (step_s, heal_s) = (of_job.step.total, of_job.goodput.recovery_s);
        ensure!(step_s > 0.0 && step_s.is_finite(), "a step takes {step_s} s: expected a finite time above 0");
        let step = Duration::try_from_secs_f64(step_s).context("the time of a step")?;
        let heal = Duration::try_from_secs_f64(heal_s).context("the time of a heal")?;
        Ok(Model { scenario, settings, toml, spec, shard_bytes, step, steps: BTreeMap::new(), heal })
    }

    pub fn num_workers(&self) -> usize {
        self.scenario.places + self.scenario.spares
    }

    pub fn end(&self) -> Duration {
        Duration::from_secs_f64(self.scenario.days * 86_400.0)
    }

    /// A step with so many replicas, which take the same samples.
    pub fn step_of(&mut self, shape: &Shape) -> Duration {
        if *shape == self.spec.shape {
            return self.step;
        }
        let (spec, machine) = (&self.spec, &self.settings.machine);
        *self.steps.entry(shape.dp()).or_insert_with(|| {
            let failures = Failures { mtbf_s: 1e12, detect_s: 0.0, restore_s: 0.0 };
            let of_shape = plan::plan(&JobSpec { shape: *shape, ..spec.clone() }, machine, &failures);
            Duration::from_secs_f64(of_shape.step.total)
        })
    }

    /// From knowing to telling all places, once.
    pub fn decide(&self, world: usize) -> Duration {
        Duration::from_secs_f64(self.settings.decide_us * 1e-6 * world as f64 / 2.0)
    }

    /// Until all hold the state of a healing epoch. `pulls`: a place lacks its shards; else all only gather the parameters.
    pub fn heal(&self, pulls: bool) -> Duration {
        if pulls { Duration::from_secs_f64(self.settings.connect_s) + self.heal } else { self.heal }
    }

    fn through_storage(&self, num_shards: f64) -> Duration {
        let bytes = WORKERS_OF_A_HOST as f64 * num_shards * self.shard_bytes;
        Duration::from_secs_f64(bytes / self.settings.storage_bytes_per_s)
    }

    /// Until all places have read a checkpoint: their own shard, and the other's that they hold.
    pub fn restore(&self) -> Duration {
        self.through_storage(if self.scenario.second_holder { 2.0 } else { 1.0 }) + self.heal
    }

    /// Until all shards are written. Steps go on.
    pub fn write(&self) -> Duration {
        self.through_storage(1.0)
    }

    /// No step is made while the state is copied aside.
    pub fn copy_aside(&self) -> Duration {
        Duration::from_secs_f64(self.shard_bytes / self.settings.copy_bytes_per_s)
    }

    /// The launcher: from noticing until the next step begins.
    pub fn launch(&self) -> Duration {
        Duration::from_secs_f64(self.settings.restart_s) + self.through_storage(1.0) + self.heal
    }
}

fn job_file(s: &Scenario, preset: &str) -> String {
    let dp = s.places / (s.tp * s.pp);
    format!(
        "name = \"simulated\"\npreset = \"{preset}\"\nsteps = 1000000000\nshape = {{ tp = {}, pp = {}, dp = {dp} }}\n\
         [batch]\nmicro_batch = {MICRO_BATCH}\nglobal = {}\n[data]\npath = \"/nobody/reads/it\"\nvalidation = 0.0\n\
         [checkpoint]\ninterval_s = {:?}\n[fault_tolerance]\nredundancy = {}\nreplay = false\n",
        s.tp,
        s.pp,
        MICRO_BATCH * MICRO_BATCHES * dp,
        s.interval_s,
        s.second_holder,
    )
}
