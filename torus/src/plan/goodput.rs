//! Goodput, the share of the time that makes steps that stay, for workers that fail at random (exponential times between failures).
//!
//! Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", 2006: with failures at rate `L`, a segment of
//! `t` seconds that is lost when a failure comes within it and needs `r` seconds before each new try takes
//! `exp(L r) (exp(L t) - 1) / L` seconds on average. Without second holders of shards the segment is the checkpoint interval. With them it is
//! a single step, and only when both holders of a shard die within one recovery it is the checkpoint interval again; the two losses
//! are taken as independent. Spares are taken to be there at once.

use serde::Serialize;

use super::Machine;
use super::traffic::{Kind, Traffic};
use crate::job::JobSpec;
use crate::partition::partition;

/// How workers fail, and what a failure costs besides what a plan can count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Failures {
    /// Mean time between failures of one worker.
    pub mtbf_s: f64,
    /// Until a dead worker is noticed.
    pub detect_s: f64,
    /// Until all workers have read the last checkpoint and go on.
    pub restore_s: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Goodput {
    pub failures_per_day: f64,
    /// From a death to the start of the next step: notice, pull two shards, gather the parameters.
    pub recovery_s: f64,
    pub checkpoint_interval_s: f64,
    /// With two holders of every shard, 0 to 1.
    pub with_redundancy: f64,
    /// With the last checkpoint only.
    pub without_redundancy: f64,
    /// How often both holders of a shard die together.
    pub restores_per_day: f64,
}

/// Share of the time that counts: segments of `segment_s` that a failure (at `rate` a second) makes void, each new try after
/// `restart_s`.
pub fn daly(rate: f64, segment_s: f64, restart_s: f64) -> f64 {
    if rate == 0.0 {
        return 1.0;
    }
    rate * segment_s / ((rate * restart_s).exp() * (rate * segment_s).exp_m1())
}

pub(super) fn of_job(
    spec: &JobSpec,
    traffic: &[Traffic],
    step_s: f64,
    machine: &Machine,
    failures: &Failures,
) -> Goodput {
    let rate = spec.shape.world() as f64 / failures.mtbf_s;
    let gather_s: f64 = traffic.iter().filter(|t| t.kind == Kind::AllGather).map(|t| t.seconds).sum();
    let longest = (0..spec.shape.pp()).map(|pp| partition(&spec.model, &spec.shape, 0, pp).shard_len).max();
    let shards_s = 2.0 * 12.0 * longest.unwrap_or(0) as f64 / machine.link_bytes_per_s;
    let recovery_s = failures.detect_s + shards_s + gather_s;
    let of_steps = spec.checkpoint.interval_steps as f64 * step_s;
    // What is due within an iteration of a policy waits for its end.
    let iteration_s = spec.steps_of_iteration() as f64 * step_s;
    let intervals = [spec.checkpoint.interval_s, of_steps].into_iter().filter(|s| *s > 0.0).map(|s| s.max(iteration_s));
    // A job that saves only at its end loses everything.
    let checkpoint_interval_s = intervals.reduce(f64::min).unwrap_or(spec.steps as f64 * step_s);
    // Two others hold the shards of a dead worker; each dies within the recovery by this chance.
    let both = 2.0 * (recovery_s + step_s) / failures.mtbf_s;
    let restores = rate * both.min(1.0);
    let with_redundancy = daly(rate, step_s, recovery_s) * daly(restores, checkpoint_interval_s, failures.restore_s);
    Goodput {
        failures_per_day: rate * 86_400.0,
        recovery_s,
        checkpoint_interval_s,
        with_redundancy,
        without_redundancy: daly(rate, checkpoint_interval_s, failures.detect_s + failures.restore_s),
        restores_per_day: restores * 86_400.0,
    }
}
