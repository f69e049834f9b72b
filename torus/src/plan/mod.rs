//! What a job needs and how fast it can be, before any device is paid for: memory, traffic, pipeline, step time and goodput by formulas.
//!
//! ```text
//!  memory   bytes of a worker by part        work     floating-point operations of a stage's passes
//!  traffic  bytes and messages of a step     goodput  share of the time that counts, for a failure rate
//!  data     passes over each source
//! ```
//!
//! What is counted is what the worker does today: f32 everywhere, and nothing of what goes over the links is hidden under computation
//! (stage transfers are: a stage computes while they are under way). Experts are taken to be evenly loaded.
//!
//! Deliberately absent: what only a run can tell (caches, contention, stragglers), validation and checkpoint writes, which run beside
//! the steps.

mod data;
mod goodput;
mod memory;
mod traffic;
mod work;

use serde::Serialize;

use crate::job::JobSpec;
use crate::pipeline::{Costs, Schedule, simulate};

pub use data::{DataPlan, SourcePlan, TooFewTokens, of_data};
pub use goodput::{Failures, Goodput, daly};
pub use memory::{Memory, memory_of_stage};
pub use traffic::{Kind, Traffic};
pub use work::Dims;

/// Speeds of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Machine {
    /// Floating-point operations a second that matrix products reach.
    pub flops: f64,
    /// Bytes a second between a device and its memory, for the optimizer.
    pub memory_bytes_per_s: f64,
    /// Bytes a second that a worker sends to its tensor-parallel neighbours.
    pub tp_bytes_per_s: f64,
    /// Bytes a second that it sends to all others.
    pub link_bytes_per_s: f64,
    /// Seconds from sending a message to its arrival, beyond its bytes.
    pub latency_s: f64,
}

/// One schedule of the pipeline on this job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelinePlan {
    pub schedule: String,
    /// Share of all stages' time in which they are idle, with stages as unequal as they are.
    pub bubble: f64,
    /// The same for equal stages and free transfers: the closed formula of the schedule's paper.
    pub bubble_of_equal_stages: f64,
    /// From the first forward to the last gradient.
    pub seconds: f64,
    pub step_s: f64,
    /// Micro-batches whose activations the first stage keeps, in whole stages: a chunk of two counts a half.
    pub in_flight: f64,
    /// Of the worker with the largest.
    pub memory_bytes: u64,
    /// A worker can run it today.
    pub is_executable: bool,
}

/// Where the time of a step goes, in seconds; the pipeline's is that of the job's schedule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepTime {
    pub pipeline: f64,
    pub collectives: f64,
    pub optimizer: f64,
    pub total: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    pub num_params: u64,
    /// Parameters that a token meets.
    pub num_active_params: u64,
    pub num_places: usize,
    pub tokens_per_step: u64,
    pub micro_batches_per_replica: usize,
    /// By stage, with the job's schedule.
    pub memory: Vec<Memory>,
    /// By kind, of the stage that sends most of it.
    pub traffic: Vec<Traffic>,
    pub pipelines: Vec<PipelinePlan>,
    pub step: StepTime,
    pub tokens_per_s: f64,
    /// Share of the devices' product speed that the model's own operations use (6 a parameter and token, and attention).
    pub flops_utilization: f64,
    pub goodput: Goodput,
}

/// The plan of a job on workers that are as fast as `machine` and fail as `failures` says.
pub fn plan(spec: &JobSpec, machine: &Machine, failures: &Failures) -> Plan {
    let (shape, dims) = (&spec.shape, Dims::new(spec));
    let m = micro_batches(spec);
    let stages = |schedule: Schedule| -> Vec<Memory> {
        (0..shape.pp()).map(|stage| memory::of_stage(spec, &dims, schedule, stage, m)).collect()
    };
    let traffic = traffic::of_step(spec, &dims, m, machine);
    let collectives: f64 = traffic.iter().filter(|t| !t.kind.is_within_the_pipeline()).map(|t| t.seconds).sum();
    let optimizer = memory::optimizer_bytes(spec) as f64 / machine.memory_bytes_per_s;
    let pipelines: Vec<PipelinePlan> = schedules(spec)
        .into_iter()
        .map(|schedule| {
            let costs = costs(spec, &dims, schedule.num_chunks(), machine);
            let transfer = machine.latency_s + dims.activation_bytes() as f64 / machine.link_bytes_per_s;
            let orders = schedule.stages(shape.pp(), m);
            let timeline = simulate(&orders, &costs, transfer).expect("L-3: no schedule deadlocks");
            let mean = mean_of_stages(&costs, shape.pp());
            let idle = schedule.bubble(shape.pp(), mean);
            PipelinePlan {
                schedule: schedule.to_string(),
                bubble: timeline.bubble(),
                bubble_of_equal_stages: idle / (m as f64 * mean.total() + idle),
                seconds: timeline.makespan,
                step_s: timeline.makespan + collectives + optimizer,
                in_flight: orders[0].max_in_flight() as f64 / schedule.num_chunks() as f64,
                memory_bytes: stages(schedule).iter().map(Memory::total).max().unwrap_or(0),
                is_executable: schedule.num_chunks() == 1,
            }
        })
        .collect();
    let name = spec.pipeline.schedule.to_string();
    let pipeline = pipelines.iter().find(|p| p.schedule == name).map_or(0.0, |p| p.seconds);
    let step = StepTime { pipeline, collectives, optimizer, total: pipeline + collectives + optimizer };
    let tokens_per_step = spec.batch.samples() * spec.model.seq as u64;
    Plan {
        num_params: spec.model.num_params(),
        num_active_params: spec.model.num_active_params(),
        num_places: shape.world(),
        tokens_per_step,
        micro_batches_per_replica: m,
        memory: stages(spec.pipeline.schedule),
        tokens_per_s: tokens_per_step as f64 / step.total,
        flops_utilization: work::of_step(spec) / (step.total * machine.flops * shape.world() as f64),
        goodput: goodput::of_job(spec, &traffic, step.total, machine, failures),
        traffic,
        pipelines,
        step,
    }
}

/// Micro-batches of the largest replica.
fn micro_batches(spec: &JobSpec) -> usize {
    spec.batch.num_micro_batches.div_ceil(spec.shape.dp())
}

/// The job's schedule, and what else its stages allow.
fn schedules(spec: &JobSpec) -> Vec<Schedule> {
    let mut all = vec![Schedule::OneFOneB, Schedule::ZeroBubble];
    let pp = spec.shape.pp();
    let chunks = [2, 4].into_iter().filter(|chunks| pp > 1 && pp * chunks <= spec.model.layers);
    all.extend(chunks.map(|chunks| Schedule::Interleaved { chunks }));
    all
}

/// Seconds of one micro-batch in each virtual stage, sums over TP included.
fn costs(spec: &JobSpec, dims: &Dims, chunks: usize, machine: &Machine) -> Vec<Costs> {
    let num = spec.shape.pp() * chunks;
    let of_virtual_stage = |v| {
        let part = work::Part::of(&spec.model, num, v);
        let Costs { forward, backward_input, backward_weight } = work::of_part(dims, &part, spec.recompute);
        let sum = traffic::tp_sum_s(spec, dims, machine);
        Costs {
            forward: forward / machine.flops + part.num_forward_sums() as f64 * sum,
            backward_input: backward_input / machine.flops + part.num_backward_sums() as f64 * sum,
            backward_weight: backward_weight / machine.flops,
        }
    };
    (0..num).map(of_virtual_stage).collect()
}

/// Costs of a stage as if all were alike.
fn mean_of_stages(costs: &[Costs], num_stages: usize) -> Costs {
    let mean = |of: fn(&Costs) -> f64| costs.iter().map(of).sum::<f64>() / num_stages as f64;
    Costs {
        forward: mean(|c| c.forward),
        backward_input: mean(|c| c.backward_input),
        backward_weight: mean(|c| c.backward_weight),
    }
}
